"""The sqlite file below a participation register: counters that only grow, and nothing else.

Guarantee: what is written inside :meth:`ParticipationStore.writing` is on disk as a whole when it
returns, or not at all. The file refuses by trigger to lower or delete a counter or a release; it is
created whole, readable by its owner only. Errors: see ``sqlite_files``.
"""

from __future__ import annotations

import secrets
import sqlite3

from privfedrl.errors import LedgerIntegrity
from privfedrl.privacy.sqlite_files import SqliteFile

__all__ = ["ParticipationStore"]


class ParticipationStore(SqliteFile):
    """One open register file (or ":memory:"). Not for use across a fork."""

    application_id = 0x50465052  # "PFPR"
    schema_version = 1
    # counts only, not who took part when: the cap needs no more, so no more is kept
    schema = (
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
    owner_only = True
    kind, contents, if_empty = "register", "counts", "it was truncated"

    def _first_row(self, connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO secret VALUES (0, ?)", (secrets.token_bytes(32),))

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        if connection.execute("PRAGMA application_id").fetchone()[0] != self.application_id:
            raise LedgerIntegrity(f"{self.name} is not a participation register")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version != self.schema_version:
            raise LedgerIntegrity(
                f"register schema version must be {self.schema_version}, found {version}"
            )
        found = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
        if {row[0] for row in found} != set(self.schema):
            raise LedgerIntegrity(
                f"register {self.name} has another schema: a table or trigger was edited"
            )
        if connection.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
            raise LedgerIntegrity(f"register {self.name} is damaged")
        if connection.execute("SELECT count(*) FROM secret").fetchone()[0] != 1:
            raise LedgerIntegrity(f"register {self.name} has lost its key")
