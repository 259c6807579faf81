"""How often each person has taken part in a plan: a durable counter at the agent, with a cap.

Guarantee: when :meth:`ParticipationRegister.admit` returns, one participation of every admitted
person is on disk and nobody has more than the plan's cap; when it raises, nothing was recorded. The
agent admits before it computes, so a crash can over-count a participation, never under-count one
(audits/proofs/person_unit.md). Whether a person is admitted depends on that person's own
participations alone, never on who else is there.

The file is PRIVATE to the agent. It holds no subject ids, only keyed hashes (HMAC-SHA256) and
counts; but the key lies in the same file, so whoever holds the file can test guessed ids and learn
how often each took part. It is created readable by its owner only. A person is a unit at one agent:
registers of two agents share no key and cannot be joined.

| the file                                               | raised              |
|--------------------------------------------------------|---------------------|
| locked, full, read-only, cannot be opened, I/O error   | StorageError        |
| malformed, not a register, other schema, short         | LedgerIntegrity     |
| closed, or used after a fork                           | LocalProtocolError  |

What it cannot detect: a file that was deleted, replaced by an older copy while closed, robbed of
its ``-wal`` file after a crash, or rewritten by somebody who can write it. Keep it by the ledger.
"""

from __future__ import annotations

import hmac
import os
import sqlite3
import threading
from collections.abc import Sequence
from types import TracebackType

from privfedrl.errors import ConfigurationError, PrivacyError, shown
from privfedrl.privacy.participation_store import ParticipationStore

__all__ = ["ParticipationRegister"]

_MAX_CAP = 10**9
_MAX_TEXT = 200
# one statement counts and checks, so there is no gap between the two
_COUNT = """INSERT INTO participations (plan, subject, count) VALUES (?, ?, 1)
ON CONFLICT (plan, subject) DO UPDATE SET count = count + 1 WHERE count < ?"""


class ParticipationRegister:
    """One agent's register, in a file or in memory.

    Several processes may use one file; threads of one process may share one object. A process that
    forks must open its own.

    Args:
        path: the file, created if absent, or ":memory:" for a simulation (gone when it is closed).
        timeout_s: how long to wait for another process that holds the write lock.
    Raises:
        LedgerIntegrity: the file is damaged, or not a register.
        StorageError: it cannot be opened or created.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout_s: float = 10.0) -> None:
        self._lock = threading.RLock()
        self._store = ParticipationStore(path, timeout_s=timeout_s)
        with self._store.reading() as connection:
            (self._key,) = connection.execute("SELECT key FROM secret").fetchone()

    def admit(
        self, plan_digest: bytes, release_id: str, subjects: Sequence[str], *, cap: int
    ) -> frozenset[str]:
        """Record, durably and before anything is computed, who takes part in a release.

        Args:
            plan_digest: 32 bytes; participations are counted per plan.
            release_id: names the attempt; used once per register, whatever comes of the release.
            subjects: everybody whom the release may touch, in any order, repeats allowed; none is
                fine.
            cap: the plan's participations per person, >= 1; the same in every call for a plan.
        Returns:
            Those who had taken part fewer than ``cap`` times; one participation more is recorded
            for each of them, and no other trajectory may enter the release.
        Raises:
            PrivacyError: the release was recorded before, or ``cap`` is not the plan's.
            ConfigurationError: an argument is malformed.
            StorageError, LedgerIntegrity, LocalProtocolError: see the module.
            In every case nothing was recorded.
        """
        names = _checked(plan_digest, release_id, subjects, cap)
        self._store.check_process()
        with self._lock, self._store.writing() as connection:
            plan = self._plan(connection, plan_digest, cap)
            known = connection.execute("SELECT 1 FROM releases WHERE id = ?", (release_id,))
            if known.fetchone() is not None:
                raise PrivacyError(
                    f"release_id must be new to the register, {release_id!r} is recorded already"
                )
            connection.execute("INSERT INTO releases VALUES (?, ?)", (release_id, plan))
            return frozenset(
                name
                for name in names
                if connection.execute(_COUNT, (plan, self._hashed(name), cap)).rowcount == 1
            )

    def participations(self, plan_digest: bytes, subject: str) -> int:
        """How often ``subject`` is recorded under a plan. Private: stays inside the agent."""
        query = (
            "SELECT count FROM participations JOIN plans ON plans.id = plan "
            "WHERE digest = ? AND subject = ?"
        )
        _check_digest(plan_digest)
        if not _is_name(subject):
            raise ConfigurationError(f"subject must be 1 to {_MAX_TEXT} printable characters")
        self._store.check_process()
        values = (plan_digest, self._hashed(subject))
        with self._lock, self._store.reading() as connection:
            found = connection.execute(query, values).fetchone()
        return 0 if found is None else int(found[0])

    def close(self) -> None:
        """Release the file; further use raises LocalProtocolError."""
        if self._store.is_foreign:
            return  # a fork may have inherited the lock shut
        with self._lock:
            self._store.close()

    def __enter__(self) -> ParticipationRegister:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "open" if self._store.is_open else "closed"
        return f"<ParticipationRegister {self._store.name!r} {state}>"

    def _hashed(self, subject: str) -> bytes:
        return hmac.digest(self._key, subject.encode(), "sha256")

    def _plan(self, connection: sqlite3.Connection, digest: bytes, cap: int) -> int:
        """The row id of the plan, whose cap the first release fixes."""
        connection.execute(
            "INSERT INTO plans (digest, cap) VALUES (?, ?) ON CONFLICT DO NOTHING", (digest, cap)
        )
        query = "SELECT id, cap FROM plans WHERE digest = ?"
        plan, recorded = connection.execute(query, (digest,)).fetchone()
        if recorded != cap:
            raise PrivacyError(
                f"cap must be that of the plan's first release, {recorded}, got {cap}"
            )
        return int(plan)


def _checked(
    plan_digest: object, release_id: object, subjects: object, cap: object
) -> frozenset[str]:
    """The distinct subjects; ConfigurationError without naming anybody."""
    _check_digest(plan_digest)
    if not _is_name(release_id):
        raise ConfigurationError(f"release_id must be 1 to {_MAX_TEXT} printable characters")
    if isinstance(cap, bool) or not isinstance(cap, int) or not 1 <= cap <= _MAX_CAP:
        raise ConfigurationError(f"cap must be an integer in 1 .. {_MAX_CAP}, got {shown(cap)}")
    # a text is a sequence of texts, too: its letters would be taken for persons
    if isinstance(subjects, str | bytes) or not isinstance(subjects, Sequence):
        raise ConfigurationError(f"subjects must be a sequence, got {type(subjects).__name__}")
    if not all(_is_name(subject) for subject in subjects):
        raise ConfigurationError(f"every subject must be 1 to {_MAX_TEXT} printable characters")
    return frozenset(subjects)


def _check_digest(plan_digest: object) -> None:
    if not isinstance(plan_digest, bytes) or len(plan_digest) != 32:
        raise ConfigurationError("plan_digest must be 32 bytes")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= _MAX_TEXT and value.isprintable()
