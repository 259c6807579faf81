"""A sqlite file that is created whole, held open by one process, and written durably or not at all.

Guarantee: what is written inside :meth:`SqliteFile.writing` is on disk as a whole when it returns,
or not at all. An object that was forked, or whose file or write-ahead log was replaced or removed,
refuses every further use.

| sqlite says                                     | raised          |
|-------------------------------------------------|-----------------|
| locked, full, read-only, cannot open, I/O error | StorageError    |
| malformed, not a database, other schema, short  | LedgerIntegrity |
"""

from __future__ import annotations

import abc
import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from privfedrl.errors import (
    ConfigurationError,
    LedgerIntegrity,
    LocalProtocolError,
    StorageError,
    shown,
)

__all__ = ["SqliteFile", "closed_on_error"]

# sqlite counts milliseconds in 31 bits
_LONGEST_WAIT_S = 2_000_000.0
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


class SqliteFile(abc.ABC):
    """One open file (or ":memory:"). Not for use across a fork."""

    application_id: ClassVar[int]
    schema_version: ClassVar[int]
    schema: ClassVar[tuple[str, ...]]
    owner_only: ClassVar[bool] = False  # nobody else may read the file
    # for messages: what the file is, what it holds, why it may be empty, what a wait in vain means
    kind: ClassVar[str]
    contents: ClassVar[str]
    if_empty: ClassVar[str]
    if_busy: ClassVar[str] = ""

    def __init__(self, path: str | os.PathLike[str], *, timeout_s: float) -> None:
        self.name = _checked_path(self.kind, path, timeout_s)
        # absolute: the process may change its folder while the file is open
        self._path = Path(self.name).absolute()
        self._timeout_s = timeout_s
        self._pid = os.getpid()
        self._inode: tuple[int, int] | None = None
        self._log: tuple[int, int] | None = None
        self._connection: sqlite3.Connection | None = None
        with self._translated():
            memory = self.name == ":memory:"
            self._connection = self._open_memory() if memory else self._open_file()

    @abc.abstractmethod
    def _first_row(self, connection: sqlite3.Connection) -> None:
        """Write what a new file begins with."""

    @abc.abstractmethod
    def _check_schema(self, connection: sqlite3.Connection) -> None:
        """LedgerIntegrity unless this is a file of this kind and version."""

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
                f"{self.kind} {self.name} was opened by another process; open it again after a fork"
            )

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, with errors translated."""
        with self._translated():
            yield self._live()

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock; commit durably at the end, or roll back if anything is raised."""
        self._roll_back()  # what an interrupt may have left behind
        with self._translated():
            try:
                connection = self._live()
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                self._live().execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        connection = None if self.is_foreign else self._connection
        if connection is not None and connection.in_transaction:
            # the error that brought us here is the one to report
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")

    def _live(self) -> sqlite3.Connection:
        """The connection, if it still belongs to this process and to the files at the path."""
        self.check_process()
        title = f"{self.kind} {self.name}"
        if self._connection is None:
            raise LocalProtocolError(f"{title} is closed")
        if self._inode is not None and _file_identity(self._path) != self._inode:
            raise LedgerIntegrity(f"{title} was replaced or removed while it was open")
        # what is in a log that has no name is lost with this process, and no other one counts it
        if self._log is not None and _file_identity(self._log_path()) != self._log:
            raise LedgerIntegrity(
                f"the write-ahead log of {title} was replaced or removed while it was open: its "
                f"newest {self.contents} may be lost"
            )
        return self._connection

    def _log_path(self) -> Path:
        return self._path.with_name(self._path.name + "-wal")

    def _open_memory(self) -> sqlite3.Connection:
        connection = self._connect(":memory:")
        with closed_on_error(connection):
            self._initialise(connection)
        return connection

    def _open_file(self) -> sqlite3.Connection:
        self._find()
        connection = self._connect(f"{self._path.as_uri()}?mode=rw")
        with closed_on_error(connection):
            self._check_schema(connection)  # first: what is of another kind is left as it is
            self._make_durable(connection)
            # there since the first read, and until the last connection is closed
            self._log = _file_identity(self._log_path())
        return connection

    def _find(self) -> None:
        """Make the file if there is none, and remember which one it is."""
        try:
            if not self._path.exists():
                self._create()
            if self._path.stat().st_size == 0:
                raise LedgerIntegrity(f"{self.kind} {self.name} is empty: {self.if_empty}")
            self._inode = _file_identity(self._path)
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(
                f"{self.kind} {self.name} cannot be opened: {error.strerror}"
            ) from error

    def _create(self) -> None:
        """Make the whole new file aside, then link it into place: never half a file."""
        aside = self._path.with_name(f".{self._path.name}.{secrets.token_hex(8)}")
        try:
            if self.owner_only:
                # sqlite gives the files beside it the same permissions
                os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            connection = self._connect(f"{aside.as_uri()}?mode=rwc")
            try:
                self._make_durable(connection)
                self._initialise(connection)
            finally:
                connection.close()
            # another process may have won the race: its file is the file
            with contextlib.suppress(FileExistsError):
                os.link(aside, self._path)
            _sync_folder(self._path.parent)
        finally:
            for suffix in ("", "-wal", "-shm", "-journal"):
                aside.with_name(aside.name + suffix).unlink(missing_ok=True)

    def _connect(self, target: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            target,
            uri=True,
            timeout=self._timeout_s,
            isolation_level=None,
            check_same_thread=False,  # the owner of this object serialises its callers with a lock
        )
        with closed_on_error(connection):
            for pragma in ("foreign_keys = ON", "trusted_schema = OFF", "cell_size_check = ON"):
                connection.execute(f"PRAGMA {pragma}")
        return connection

    def _make_durable(self, connection: sqlite3.Connection) -> None:
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StorageError(
                f"{self.kind} {self.name} needs write-ahead logging, its file system allows "
                f"{mode!r}"
            )
        connection.execute("PRAGMA synchronous = FULL")

    def _initialise(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA application_id = {self.application_id}")
        connection.execute(f"PRAGMA user_version = {self.schema_version}")
        for statement in self.schema:
            connection.execute(statement)
        self._first_row(connection)
        connection.execute("COMMIT")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn sqlite's errors into the two of this library (table in the module header)."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
            text = f"{self.kind} {self.name}: {error}"
            if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                text += f" by another process for more than {self._timeout_s} s{self.if_busy}"
            # a short read is a truncated file, not a failing disk
            if code & 0xFF in _STORAGE_CODES and code != sqlite3.SQLITE_IOERR_SHORT_READ:
                raise StorageError(text) from error
            raise LedgerIntegrity(text) from error


@contextlib.contextmanager
def closed_on_error(connection: sqlite3.Connection) -> Iterator[None]:
    """Close ``connection`` if anything is raised."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


def _checked_path(kind: str, path: object, timeout_s: object) -> str:
    """``path`` as text that names a file (or ":memory:"); ``timeout_s`` is checked as well.

    Raises:
        ConfigurationError: no path, or no time in 0 .. 2,000,000 s.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigurationError(f"path of the {kind} must be a path, got {type(path).__name__}")
    name = os.fspath(path)
    if not isinstance(name, str) or not name or "\0" in name:
        raise ConfigurationError(f"path of the {kind} must be text without zero bytes: {name!r}")
    if not (isinstance(timeout_s, (int, float)) and 0 <= timeout_s <= _LONGEST_WAIT_S):
        raise ConfigurationError(
            f"timeout_s must lie in 0 .. {_LONGEST_WAIT_S:g} seconds, got {shown(timeout_s)}"
        )
    return name


def _file_identity(path: Path) -> tuple[int, int] | None:
    """Which file ``path`` leads to, whatever it is called by now; None if to none to be seen."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _sync_folder(folder: Path) -> None:
    """Make a new folder entry survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
