"""The sqlite file below a privacy ledger: durable, append-only rows and nothing else.

Guarantee: a row is on disk before :meth:`Store.writing` returns, or it is not in the ledger and
nothing was lost. The file refuses UPDATE, DELETE and out-of-order INSERT by trigger; whoever goes
around the triggers meets the hash chain in ``ledger_chain``.

| sqlite says                                     | raised          |
|-------------------------------------------------|-----------------|
| locked, full, read-only, cannot open, I/O error | StorageError    |
| malformed, not a database, other schema, short  | LedgerIntegrity |
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from privfedrl.errors import LedgerIntegrity, LocalProtocolError, StorageError
from privfedrl.privacy.ledger_chain import Chain
from privfedrl.privacy.ledger_rows import Row
from privfedrl.privacy.sqlite_files import checked_path, file_identity

__all__ = ["Store"]

_APPLICATION_ID = 0x50464C44  # "PFLD"
_SCHEMA_VERSION = 2
_SCHEMA = (
    """CREATE TABLE entries (
    id INTEGER PRIMARY KEY CHECK (id >= 0),
    record TEXT NOT NULL CHECK (typeof(record) = 'text'),
    settles INTEGER UNIQUE REFERENCES entries (id),
    hash BLOB NOT NULL CHECK (typeof(hash) = 'blob' AND length(hash) = 32)
)""",
    """CREATE TRIGGER entries_refuse_update BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'ledger rows are never updated'); END""",
    """CREATE TRIGGER entries_refuse_delete BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'ledger rows are never deleted'); END""",
    """CREATE TRIGGER entries_refuse_gap BEFORE INSERT ON entries
WHEN NEW.id <> (SELECT coalesce(max(id) + 1, 0) FROM entries)
BEGIN SELECT RAISE(ABORT, 'ledger rows are appended in order'); END""",
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


class Store:
    """One open ledger file (or ":memory:"). Not for use across a fork."""

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool, timeout_s: float) -> None:
        self.name = checked_path("ledger", path, timeout_s)
        self.read_only = read_only
        self._memory = self.name == ":memory:"
        # absolute: the process may change its folder while the ledger is open
        self._path = Path(self.name).absolute()
        self._timeout_s = timeout_s
        self._pid = os.getpid()
        self._inode: tuple[int, int] | None = None
        self._log: tuple[int, int] | None = None
        self._connection: sqlite3.Connection | None = None
        with self._translated():
            self._connection = self._open_memory() if self._memory else self._open_file()
        try:
            with self._translated():
                self._check_schema()
            if not (self._memory or read_only):
                # there since the first read, and until the last connection is closed
                self._log = file_identity(self._log_path())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the file; further use raises."""
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
                f"ledger {self.name} was opened by another process; open it again after a fork"
            )

    def rows_from(self, first: int) -> list[Row]:
        """All rows with id >= ``first`` in order, from one snapshot."""
        query = "SELECT id, record, settles, hash FROM entries WHERE id >= ? ORDER BY id"
        with self._translated():
            return [Row(*row) for row in self._live().execute(query, (first,))]

    def check_pages(self) -> None:
        """Raise LedgerIntegrity unless sqlite finds its own structure sound."""
        with self._translated():
            found = self._live().execute("PRAGMA integrity_check(1)").fetchone()[0]
            broken = self._live().execute("PRAGMA foreign_key_check").fetchone()
        if found != "ok" or broken is not None:
            raise LedgerIntegrity(f"ledger {self.name} is damaged: {found}")

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the write lock; commit durably at the end, or roll back if anything is raised."""
        if self.read_only:
            raise StorageError(f"ledger {self.name} was opened read-only, nothing is charged")
        self._roll_back()  # what an interrupt may have left behind
        try:
            with self._translated():
                self._live().execute("BEGIN IMMEDIATE")
            yield
            with self._translated():
                self._live().execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def insert(self, row: Row) -> None:
        """Write ``row`` inside :meth:`writing`."""
        with self._translated():
            self._live().execute("INSERT INTO entries VALUES (?, ?, ?, ?)", row)

    def _roll_back(self) -> None:
        connection = None if self.is_foreign else self._connection
        if connection is not None and connection.in_transaction:
            # the error that brought us here is the one to report
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")

    def _live(self) -> sqlite3.Connection:
        """The connection, if it still belongs to this process and to the files at the path."""
        self.check_process()
        if self._connection is None:
            raise LocalProtocolError(f"ledger {self.name} is closed")
        if self._inode is not None and file_identity(self._path) != self._inode:
            raise LedgerIntegrity(f"ledger {self.name} was replaced or removed while it was open")
        # rows in a log that has no name are lost with this process, and no other one counts them
        if self._log is not None and file_identity(self._log_path()) != self._log:
            raise LedgerIntegrity(
                f"the write-ahead log of ledger {self.name} was replaced or removed while it was "
                "open: its newest rows may be lost"
            )
        return self._connection

    def _log_path(self) -> Path:
        return self._path.with_name(self._path.name + "-wal")

    def _open_memory(self) -> sqlite3.Connection:
        if self.read_only:
            raise StorageError("a ledger in memory cannot be opened read-only: it would be empty")
        connection = self._connect(":memory:")
        _initialise(connection)
        return connection

    def _open_file(self) -> sqlite3.Connection:
        path = self._path
        try:
            if not path.exists():
                self._create(path)
            if path.stat().st_size == 0:
                raise LedgerIntegrity(f"ledger {self.name} is empty: truncated, or not a ledger")
            self._inode = file_identity(path)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"ledger {self.name} cannot be opened: {error.strerror}") from error
        if not self.read_only:
            connection = self._connect(f"{path.as_uri()}?mode=rw")
            with _closed_on_error(connection):
                self._tune(connection)
            return connection
        return self._open_read_only(path)

    def _open_read_only(self, path: Path) -> sqlite3.Connection:
        connection = self._connect(f"{path.as_uri()}?mode=ro")
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            connection.close()
            wal = self._log_path()
            # an archived copy in a read-only folder has no room for the shared-memory file; it is
            # safe to read as immutable only if no write-ahead log holds newer rows
            if os.access(path.parent, os.W_OK) or (wal.exists() and wal.stat().st_size > 0):
                raise
            connection = self._connect(f"{path.as_uri()}?immutable=1")
        return connection

    def _create(self, path: Path) -> None:
        """Make the whole new ledger aside, then link it into place: never half a file."""
        if self.read_only:
            raise StorageError(f"ledger {self.name} does not exist")
        aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            connection = self._connect(f"{aside.as_uri()}?mode=rwc")
            try:
                self._tune(connection)
                _initialise(connection)
            finally:
                connection.close()
            # another process may have won the race: its ledger is the ledger
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
            _sync_folder(path.parent)
        finally:
            for suffix in ("", "-wal", "-shm", "-journal"):
                aside.with_name(aside.name + suffix).unlink(missing_ok=True)

    def _connect(self, target: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            target,
            uri=True,
            timeout=self._timeout_s,
            isolation_level=None,
            check_same_thread=False,  # Ledger serialises its callers with a lock
        )
        with _closed_on_error(connection):
            for pragma in ("foreign_keys = ON", "trusted_schema = OFF", "cell_size_check = ON"):
                connection.execute(f"PRAGMA {pragma}")
        return connection

    def _tune(self, connection: sqlite3.Connection) -> None:
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StorageError(
                f"ledger {self.name} needs write-ahead logging, its file system allows {mode!r}"
            )
        connection.execute("PRAGMA synchronous = FULL")

    def _check_schema(self) -> None:
        application = self._live().execute("PRAGMA application_id").fetchone()[0]
        version = self._live().execute("PRAGMA user_version").fetchone()[0]
        if application != _APPLICATION_ID:
            raise LedgerIntegrity(f"{self.name} is not a privfedrl ledger")
        if version != _SCHEMA_VERSION:
            raise LedgerIntegrity(
                f"ledger schema version must be {_SCHEMA_VERSION}, found {version}: it was written "
                "by another version of privfedrl"
            )
        found = self._live().execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
        if {row[0] for row in found} != set(_SCHEMA):
            raise LedgerIntegrity(
                f"ledger {self.name} has another schema: a table or trigger was edited"
            )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn sqlite's errors into the two of this library (table in the module header)."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
            text = f"ledger {self.name}: {error}"
            if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                text += f" by another process for more than {self._timeout_s} s, nothing is charged"
            # a short read is a truncated file, not a failing disk
            if code & 0xFF in _STORAGE_CODES and code != sqlite3.SQLITE_IOERR_SHORT_READ:
                raise StorageError(text) from error
            raise LedgerIntegrity(text) from error


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
    row = Chain().genesis(secrets.token_bytes(16))
    connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", row)
    connection.execute("COMMIT")


def _sync_folder(folder: Path) -> None:
    """Make a new folder entry survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
