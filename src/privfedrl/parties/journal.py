"""What a client has already let out, or a key authority opened, kept across restarts.

Guarantee: a stage of a (task, round, attempt) is spent at most once, and never after a newer one
of the same task: a client that was restarted, restored from a backup of its code or rewound by the
coordinator cannot release a second masked vector or sign a second survivor set. A survivor set is
signed only after it has passed the differencing guard together with every comparable set signed
before, and is on disk before the signature leaves; a crash leaves both records or neither. Sets of
one model are compared in whatever task they were signed: the coordinator names the task.

The file itself must not be restored from a backup; that is the one thing that would undo this.
A signed set costs about 180 bytes and one bit per registered agent: 100,000 rounds of 100 agents
are 19 MB on disk. With scope "model" only the sets of one model are read back; with "task" all
of a task's distinct ones as well, so a very long run is better cut into tasks.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from privfedrl.errors import ConfigurationError, LocalProtocolError, StorageError
from privfedrl.parties.participation import Participation, Scope, check_participation

__all__ = ["STAGES", "Journal", "MemoryJournal", "SqliteJournal"]

STAGES: Final = ("masked", "consistency")
"""In the order in which a round spends them."""

_Point = tuple[int, int]


class Journal(Protocol):
    """A durable, monotone record of what has left. One per agent or key authority, for all its
    rounds."""

    def spend_masked(self, task_id: bytes, round: int, attempt: int) -> None:  # noqa: A002 - the protocol's own word
        """Record that the masked vector of (task, round, attempt) leaves now; durable on return.

        Raises:
            LocalProtocolError: spent before, or not newer than what was spent before.
            StorageError: the record cannot be made durable; nothing may then be released.
        """

    def spend_consistency(
        self, task_id: bytes, participation: Participation, *, floor: int, scope: Scope
    ) -> None:
        """Record that the signature on this survivor set leaves now; durable on return.

        Compared are the sets of this model from every task and, with scope "task", all of this
        task. Reading them, :func:`~privfedrl.parties.participation.check_participation` and
        the record are one step: no other process of this agent can come between.

        Raises:
            RoundAborted: the set and earlier ones isolate fewer than ``floor`` clients.
            LocalProtocolError, StorageError: as for :meth:`spend_masked`.
        """

    def participations(self, task_id: bytes) -> tuple[Participation, ...]:
        """Every survivor set that was signed in this task, oldest first.

        Raises:
            StorageError: unreadable.
        """


def _check(last: dict[str, _Point], point: _Point, stage: str) -> None:
    """Refuse a ``point`` not newer than the stage's last, or older than the last masked vector."""
    if stage in last and point <= last[stage]:
        raise LocalProtocolError(
            f"round {point[0]} attempt {point[1]} is not newer than what this client has already "
            f"spent for stage {stage!r}: round {last[stage][0]} attempt {last[stage][1]}"
        )
    if "masked" in last and point < last["masked"]:
        raise LocalProtocolError(
            f"round {point[0]} attempt {point[1]} is older than the last masked vector's"
        )


class MemoryJournal:
    """A journal that lasts as long as the process: for simulation, where a restart starts anew."""

    __slots__ = ("_last", "_signed")

    def __init__(self) -> None:
        self._last: dict[bytes, dict[str, _Point]] = {}
        self._signed: dict[bytes, list[Participation]] = {}

    def spend_masked(self, task_id: bytes, round: int, attempt: int) -> None:  # noqa: A002 - as above
        """See :meth:`Journal.spend_masked`."""
        last = self._last.setdefault(task_id, {})
        _check(last, (round, attempt), "masked")
        last["masked"] = (round, attempt)

    def spend_consistency(
        self, task_id: bytes, participation: Participation, *, floor: int, scope: Scope
    ) -> None:
        """See :meth:`Journal.spend_consistency`."""
        last = self._last.setdefault(task_id, {})
        point = participation.round, participation.attempt
        _check(last, point, "consistency")
        earlier = [
            row
            for task, rows in self._signed.items()
            for row in rows
            if (task == task_id and scope == "task")
            or row.model_digest == participation.model_digest
        ]
        check_participation(earlier, participation, floor=floor, scope=scope)
        self._signed.setdefault(task_id, []).append(participation)
        last["consistency"] = point

    def participations(self, task_id: bytes) -> tuple[Participation, ...]:
        """See :meth:`Journal.participations`."""
        return tuple(self._signed.get(task_id, ()))


_LAYOUT: Final = 2
_TABLES: Final = (
    "CREATE TABLE spent (task BLOB NOT NULL, stage TEXT NOT NULL, round INTEGER NOT NULL, "
    "attempt INTEGER NOT NULL, PRIMARY KEY (task, stage)) WITHOUT ROWID",
    "CREATE TABLE signed (task BLOB NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL, "
    "model BLOB NOT NULL, members BLOB NOT NULL, PRIMARY KEY (task, round, attempt)) WITHOUT ROWID",
    "CREATE INDEX signed_model ON signed (model)",
    f"PRAGMA user_version = {_LAYOUT}",
)
_SIGNED: Final = "SELECT round, attempt, model, members FROM signed"


class SqliteJournal:
    """A journal in an SQLite file: write-ahead log, synchronous FULL.

    Belongs to the thread that opened it. Processes that share the file exclude each other.

    Args:
        path: the database; created if absent.
    Raises:
        StorageError: the file cannot be used, or is a journal of another layout.
    """

    __slots__ = ("_connection",)

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with _storage_errors(f"cannot use the journal {os.fspath(path)}"):
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=10.0)
            try:
                self._prepare(os.fspath(path))
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self, path: str) -> None:
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        with self._transaction():
            (layout,) = self._connection.execute("PRAGMA user_version").fetchone()
            (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if layout == 0 and tables == 0:
                for statement in _TABLES:
                    self._connection.execute(statement)
            elif layout != _LAYOUT:
                raise StorageError(
                    f"the journal {path} must have layout {_LAYOUT}, got {layout}; it is not "
                    "converted: give the agent a new identity and a new journal"
                )

    def spend_masked(self, task_id: bytes, round: int, attempt: int) -> None:  # noqa: A002 - as above
        """See :meth:`Journal.spend_masked`."""
        with _storage_errors("the journal cannot record this round"), self._transaction():
            self._spend(task_id, (round, attempt), "masked")

    def spend_consistency(
        self, task_id: bytes, participation: Participation, *, floor: int, scope: Scope
    ) -> None:
        """See :meth:`Journal.spend_consistency`."""
        new = participation
        with _storage_errors("the journal cannot record this round"), self._transaction():
            self._spend(task_id, (new.round, new.attempt), "consistency")
            earlier = self._comparable(task_id, new, scope)
            check_participation(earlier, new, floor=floor, scope=scope)
            self._connection.execute(
                "INSERT INTO signed (task, round, attempt, model, members) VALUES (?, ?, ?, ?, ?)",
                (task_id, new.round, new.attempt, new.model_digest, new.members),
            )

    def participations(self, task_id: bytes) -> tuple[Participation, ...]:
        """See :meth:`Journal.participations`."""
        return self._read(f"{_SIGNED} WHERE task = ? ORDER BY round, attempt", (task_id,))

    def close(self) -> None:
        """Close the file; a closed journal refuses to spend."""
        with _storage_errors("the journal cannot be closed"):
            self._connection.close()

    def _spend(self, task_id: bytes, point: _Point, stage: str) -> None:
        rows = self._connection.execute(
            "SELECT stage, round, attempt FROM spent WHERE task = ?", (task_id,)
        ).fetchall()
        _check({row[0]: (row[1], row[2]) for row in rows}, point, stage)
        self._connection.execute(
            "INSERT OR REPLACE INTO spent (task, stage, round, attempt) VALUES (?, ?, ?, ?)",
            (task_id, stage, *point),
        )

    def _comparable(
        self, task_id: bytes, new: Participation, scope: Scope
    ) -> tuple[Participation, ...]:
        """The earlier sets that the guard looks at: one of each, since repeats change nothing."""
        wanted = "model = ?"
        values: tuple[bytes, ...] = (new.model_digest,)
        if scope == "task":
            wanted, values = "task = ? OR model = ?", (task_id, new.model_digest)
        return self._read(f"{_SIGNED} WHERE {wanted} GROUP BY members", values)

    def _read(self, query: str, values: tuple[bytes, ...]) -> tuple[Participation, ...]:
        with _storage_errors("the journal cannot be read"):
            rows = self._connection.execute(query, values).fetchall()
        try:
            return tuple(
                Participation(round=row[0], attempt=row[1], model_digest=row[2], members=row[3])
                for row in rows
            )
        except ConfigurationError as error:
            raise StorageError(f"the journal is damaged: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All that is written inside is durable at the end, or none of it ever was."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise


@contextmanager
def _storage_errors(what: str) -> Iterator[None]:
    """SQLite's own errors, also those of a foreign thread or a full disk, as a StorageError."""
    try:
        yield
    except (sqlite3.Error, OverflowError) as error:
        raise StorageError(f"{what}: {error}") from error
