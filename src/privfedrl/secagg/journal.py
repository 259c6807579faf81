"""What a client has already let out, kept across restarts.

Guarantee: a stage of a (task, round, attempt) is spent at most once, and never after a newer one
of the same task: a client that was restarted, restored from a backup of its code or rewound by the
coordinator cannot release a second masked vector or sign a second survivor set.

The file itself must not be restored from a backup; that is the one thing that would undo this.
"""

from __future__ import annotations

import os
import sqlite3
from typing import Final, Protocol

from privfedrl.errors import LocalProtocolError, StorageError

__all__ = ["STAGES", "Journal", "MemoryJournal", "SqliteJournal"]

STAGES: Final = ("masked", "consistency")
"""In the order in which a round spends them."""


class Journal(Protocol):
    """A durable, monotone record of spent stages."""

    def spend(self, task_id: bytes, round: int, attempt: int, stage: str) -> None:  # noqa: A002 - the protocol's own word
        """Record that ``stage`` of (task, round, attempt) leaves now; durable on return.

        Raises:
            LocalProtocolError: spent before, or not newer than what was spent before.
            StorageError: the record cannot be made durable; nothing may then be released.
        """


def _check(last: dict[str, tuple[int, int]], point: tuple[int, int], stage: str) -> None:
    """Refuse a ``point`` not newer than the stage's last, or older than the last masked vector."""
    if stage not in STAGES:
        raise LocalProtocolError(f"stage must be one of {STAGES}, got {stage!r}")
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

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: dict[bytes, dict[str, tuple[int, int]]] = {}

    def spend(self, task_id: bytes, round: int, attempt: int, stage: str) -> None:  # noqa: A002 - as above
        """See :meth:`Journal.spend`."""
        last = self._last.setdefault(task_id, {})
        _check(last, (round, attempt), stage)
        last[stage] = (round, attempt)


class SqliteJournal:
    """A journal in an SQLite file: write-ahead log, synchronous FULL, one row per task and stage.

    Args:
        path: the database; created if absent. Processes that share it exclude each other.
    Raises:
        StorageError: the file cannot be used.
    """

    __slots__ = ("_connection",)

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=10.0)
            try:
                self._prepare()
            except sqlite3.Error:
                self._connection.close()
                raise
        except sqlite3.Error as error:
            raise StorageError(f"cannot use the journal {os.fspath(path)}: {error}") from error

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS spent (task BLOB NOT NULL, stage TEXT NOT NULL, "
            "round INTEGER NOT NULL, attempt INTEGER NOT NULL, PRIMARY KEY (task, stage))"
        )

    def spend(self, task_id: bytes, round: int, attempt: int, stage: str) -> None:  # noqa: A002 - as above
        """See :meth:`Journal.spend`."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._spend(task_id, (round, attempt), stage)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OverflowError) as error:
            raise StorageError(f"the journal cannot record this round: {error}") from error

    def _spend(self, task_id: bytes, point: tuple[int, int], stage: str) -> None:
        rows = self._connection.execute(
            "SELECT stage, round, attempt FROM spent WHERE task = ?", (task_id,)
        ).fetchall()
        _check({row[0]: (row[1], row[2]) for row in rows}, point, stage)
        self._connection.execute(
            "INSERT OR REPLACE INTO spent (task, stage, round, attempt) VALUES (?, ?, ?, ?)",
            (task_id, stage, *point),
        )

    def close(self) -> None:
        """Close the file; a closed journal refuses to spend."""
        self._connection.close()
