"""The sqlite file below a privacy ledger: durable, append-only rows and nothing else.

Guarantee: a row is on disk before :meth:`Store.writing` returns, or it is not in the ledger and
nothing was lost. The file refuses UPDATE, DELETE and out-of-order INSERT by trigger; whoever goes
around the triggers meets the hash chain in ``ledger_chain``. Errors: see ``sqlite_files``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator

from privfedrl.errors import LedgerIntegrity, StorageError
from privfedrl.privacy.ledger_chain import Chain
from privfedrl.privacy.ledger_rows import Row
from privfedrl.privacy.sqlite_files import SqliteFile, closed_on_error

__all__ = ["Store"]


class Store(SqliteFile):
    """One open ledger file (or ":memory:"). Not for use across a fork."""

    application_id = 0x50464C44  # "PFLD"
    schema_version = 3
    schema = (
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
    kind, contents = "ledger", "rows"
    if_empty, if_busy = "truncated, or not a ledger", ", nothing is charged"

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool, timeout_s: float) -> None:
        self.read_only = read_only
        super().__init__(path, timeout_s=timeout_s)

    def rows_from(self, first: int) -> list[Row]:
        """All rows with id >= ``first`` in order, from one snapshot."""
        query = "SELECT id, record, settles, hash FROM entries WHERE id >= ? ORDER BY id"
        with self.reading() as connection:
            return [Row(*row) for row in connection.execute(query, (first,))]

    def check_pages(self) -> None:
        """Raise LedgerIntegrity unless sqlite finds its own structure sound."""
        with self.reading() as connection:
            found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            broken = connection.execute("PRAGMA foreign_key_check").fetchone()
        if found != "ok" or broken is not None:
            raise LedgerIntegrity(f"ledger {self.name} is damaged: {found}")

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock; commit durably at the end, or roll back if anything is raised."""
        if self.read_only:
            raise StorageError(f"ledger {self.name} was opened read-only, nothing is charged")
        with super().writing() as connection:
            yield connection

    def insert(self, row: Row) -> None:
        """Write ``row`` inside :meth:`writing`."""
        _insert(self._live(), row)

    def _first_row(self, connection: sqlite3.Connection) -> None:
        _insert(connection, Chain().genesis(secrets.token_bytes(16)))

    def _open_memory(self) -> sqlite3.Connection:
        if self.read_only:
            raise StorageError("a ledger in memory cannot be opened read-only: it would be empty")
        return super()._open_memory()

    def _open_file(self) -> sqlite3.Connection:
        if not self.read_only:
            return super()._open_file()
        self._find()
        connection = self._connect(f"{self._path.as_uri()}?mode=ro")
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            connection.close()
            wal = self._log_path()
            # an archived copy in a read-only folder has no room for the shared-memory file; it is
            # safe to read as immutable only if no write-ahead log holds newer rows
            if os.access(wal.parent, os.W_OK) or (wal.exists() and wal.stat().st_size > 0):
                raise
            connection = self._connect(f"{self._path.as_uri()}?immutable=1")
        with closed_on_error(connection):
            self._check_schema(connection)
        return connection

    def _create(self) -> None:
        if self.read_only:
            raise StorageError(f"ledger {self.name} does not exist")
        super()._create()

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if application != self.application_id:
            raise LedgerIntegrity(f"{self.name} is not a privfedrl ledger")
        if version != self.schema_version:
            raise LedgerIntegrity(
                f"ledger schema version must be {self.schema_version}, found {version}: it was "
                "written by another version of privfedrl"
            )
        found = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
        if {row[0] for row in found} != set(self.schema):
            raise LedgerIntegrity(
                f"ledger {self.name} has another schema: a table or trigger was edited"
            )


def _insert(connection: sqlite3.Connection, row: Row) -> None:
    connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", row)
