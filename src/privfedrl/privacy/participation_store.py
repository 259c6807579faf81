"""The sqlite file below a participation register: counters that only grow, and nothing else.

Guarantee: what is written inside :meth:`ParticipationStore.writing` is on disk as a whole when it
returns, or not at all. The file refuses by trigger to lower or delete a counter or a release; it is
created whole, readable by its owner only.

| sqlite says                                     | raised             |
|-------------------------------------------------|--------------------|
| locked, full, read-only, cannot open, I/O error | StorageError       |
| malformed, not a database, other schema, short  | LedgerIntegrity    |
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from privfedrl.errors import LedgerIntegrity, LocalProtocolError, StorageError
from privfedrl.privacy.sqlite_files import checked_path, file_identity

__all__ = ["ParticipationStore"]

_APPLICATION_ID = 0x50465052  # "PFPR"
_SCHEMA_VERSION = 1
# counts only, not who took part when: the cap needs no more, so no more is kept
_SCHEMA = (
    """CREATE TABLE secret (
    id INTEGER PRIMARY KEY CHECK (id = 0),
    key BLOB NOT NULL CHECK (typeof(key) = 'blob' AND length(key) = 32)
)""",
    """CREATE TABLE plans (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE CHECK (typeof(digest) = 'blob' AND length(digest) = 32),
    cap INTEGER NOT NULL CHECK (typeof(cap) = 'integer' AND cap >= 1)
)""",
    """CREATE TABLE releases (
    id TEXT NOT NULL PRIMARY KEY,
    plan INTEGER NOT NULL REFERENCES plans (id)
) WITHOUT ROWID""",
    """CREATE TABLE participations (
    plan INTEGER NOT NULL REFERENCES plans (id),
    subject BLOB NOT NULL CHECK (typeof(subject) = 'blob' AND length(subject) = 32),
    count INTEGER NOT NULL CHECK (typeof(count) = 'integer' AND count >= 1),
    PRIMARY KEY (plan, subject)
) WITHOUT ROWID""",
    """CREATE TRIGGER participations_only_grow BEFORE UPDATE ON participations
WHEN NEW.plan <> OLD.plan OR NEW.subject <> OLD.subject OR NEW.count <> OLD.count + 1
BEGIN SELECT RAISE(ABORT, 'participations only grow'); END""",
    """CREATE TRIGGER participations_refuse_delete BEFORE DELETE ON participations
BEGIN SELECT RAISE(ABORT, 'participations are never deleted'); END""",
    """CREATE TRIGGER plans_refuse_update BEFORE UPDATE ON plans
BEGIN SELECT RAISE(ABORT, 'the cap of a plan never changes'); END""",
    """CREATE TRIGGER releases_refuse_delete BEFORE DELETE ON releases
BEGIN SELECT RAISE(ABORT, 'releases are never deleted'); END""",
)
_STORAGE_CODES = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_NOLFS,
}


class ParticipationStore:
    """One open register file (or ":memory:"). Not for use across a fork."""

    def __init__(self, path: str | os.PathLike[str], *, timeout_s: float) -> None:
        self.name = checked_path("register", path, timeout_s)
        # absolute: the process may change its folder while the register is open
        self._path = Path(self.name).absolute()
        self._timeout_s = timeout_s
        self._pid = os.getpid()
        self._inode: tuple[int, int] | None = None
        self._log: tuple[int, int] | None = None
        self._connection: sqlite3.Connection | None = None
        with self._translated():
            memory = self.name == ":memory:"
            self._connection = self._open_memory() if memory else self._open_file()
        if not memory:
            # there since the first read, and until the last connection is closed
            self._log = file_identity(self._log_path())

    @property
    def is_open(self) -> bool:
        """Whether :meth:`close` has not been called."""
        return self._connection is not None

    def close(self) -> None:
        """Release the file; further use raises LocalProtocolError."""
        if self.is_foreign:
            return  # it is the parent's: not even its memory may be given back here
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @property
    def is_foreign(self) -> bool:
        """Whether this is a forked copy of what another process opened."""
        return self._pid != os.getpid()

    def check_process(self) -> None:
        """Raise LocalProtocolError in a forked child: locks are inherited shut."""
        if self.is_foreign:
            raise LocalProtocolError(
                f"register {self.name} was opened by another process; open it again after a fork"
            )

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, with errors translated."""
        with self._translated():
            yield self._live()

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock; commit durably at the end, or roll back if anything is raised."""
        with self._translated():
            connection = self._live()
            _roll_back(connection)  # what an interrupt may have left behind
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                _roll_back(connection)
                raise

    def _live(self) -> sqlite3.Connection:
        """The connection, if it still belongs to this process and to the files at the path."""
        self.check_process()
        if self._connection is None:
            raise LocalProtocolError(f"register {self.name} is closed")
        if self._inode is not None and file_identity(self._path) != self._inode:
            raise LedgerIntegrity(f"register {self.name} was replaced or removed while it was open")
        # counts in a log that has no name are lost with this process
        if self._log is not None and file_identity(self._log_path()) != self._log:
            raise LedgerIntegrity(
                f"the write-ahead log of register {self.name} was replaced or removed while it "
                "was open: its newest counts may be lost"
            )
        return self._connection

    def _log_path(self) -> Path:
        return self._path.with_name(self._path.name + "-wal")

    def _open_memory(self) -> sqlite3.Connection:
        connection = _connect(":memory:", self._timeout_s)
        with _closed_on_error(connection):
            _initialise(connection)
        return connection

    def _open_file(self) -> sqlite3.Connection:
        path = self._path
        try:
            if not path.exists():
                self._create(path)
            if path.stat().st_size == 0:
                raise LedgerIntegrity(f"register {self.name} is empty: it was truncated")
            self._inode = file_identity(path)
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(
                f"register {self.name} cannot be opened: {error.strerror}"
            ) from error
        connection = _connect(f"{path.as_uri()}?mode=rw", self._timeout_s)
        with _closed_on_error(connection):
            self._check_schema(connection)  # first: what is not a register is left as it is
            self._make_durable(connection)
        return connection

    def _create(self, path: Path) -> None:
        """Make the whole new register aside, then link it into place: never half a file."""
        aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            # sqlite gives the files beside it the same permissions
            os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            connection = _connect(f"{aside.as_uri()}?mode=rw", self._timeout_s)
            try:
                self._make_durable(connection)
                _initialise(connection)
            finally:
                connection.close()
            # another process may have won the race: its register is the register
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
            _sync_folder(path.parent)
        finally:
            for suffix in ("", "-wal", "-shm", "-journal"):
                aside.with_name(aside.name + suffix).unlink(missing_ok=True)

    def _make_durable(self, connection: sqlite3.Connection) -> None:
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StorageError(
                f"register {self.name} needs write-ahead logging, its file system allows {mode!r}"
            )
        connection.execute("PRAGMA synchronous = FULL")

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        """LedgerIntegrity unless this is a sound register of this version."""
        if connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
            raise LedgerIntegrity(f"{self.name} is not a participation register")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version != _SCHEMA_VERSION:
            raise LedgerIntegrity(
                f"register schema version must be {_SCHEMA_VERSION}, found {version}"
            )
        found = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
        if {row[0] for row in found} != set(_SCHEMA):
            raise LedgerIntegrity(
                f"register {self.name} has another schema: a table or trigger was edited"
            )
        if connection.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
            raise LedgerIntegrity(f"register {self.name} is damaged")
        if connection.execute("SELECT count(*) FROM secret").fetchone()[0] != 1:
            raise LedgerIntegrity(f"register {self.name} has lost its key")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn sqlite's errors into those of this library (table in the module header)."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
            text = f"register {self.name}: {error}"
            if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                text += f" by another process for more than {self._timeout_s} s"
            # a short read is a truncated file, not a failing disk
            if code & 0xFF in _STORAGE_CODES and code != sqlite3.SQLITE_IOERR_SHORT_READ:
                raise StorageError(text) from error
            raise LedgerIntegrity(text) from error


def _connect(target: str, timeout_s: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        target,
        uri=True,
        timeout=timeout_s,
        isolation_level=None,
        check_same_thread=False,  # ParticipationRegister serialises its callers with a lock
    )
    with _closed_on_error(connection):
        for pragma in ("foreign_keys = ON", "trusted_schema = OFF", "cell_size_check = ON"):
            connection.execute(f"PRAGMA {pragma}")
    return connection


@contextlib.contextmanager
def _closed_on_error(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise


def _initialise(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    for statement in _SCHEMA:
        connection.execute(statement)
    connection.execute("INSERT INTO secret VALUES (0, ?)", (secrets.token_bytes(32),))
    connection.execute("COMMIT")


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        # the error that brought us here is the one to report
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


def _sync_folder(folder: Path) -> None:
    """Make a new folder entry survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
