"""A signed head that somebody else keeps: every rewriting of the past is found, each by name."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privfedrl.errors import (
    AuthenticationFailed,
    ConfigurationError,
    LedgerIntegrity,
    LocalProtocolError,
)
from privfedrl.privacy.events import GaussianEvent
from privfedrl.privacy.ledger import Charge, Ledger
from privfedrl.privacy.ledger_chain import link
from privfedrl.privacy.ledger_checkpoint import Checkpoint, ed25519_verifier
from privfedrl.privacy.units import Unit

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
VERIFY_KEY = KEY.public_key().public_bytes_raw()
VERIFIER = ed25519_verifier(VERIFY_KEY)
NAME = "auditor-1"


def charge(number: int) -> Charge:
    return Charge(
        plan_digest=bytes(32),
        release_id=f"r/{number}",
        group=f"g/{number}",
        unit=Unit.AGENT,
        adversary="coordinator",
        event=GaussianEvent(noise_multiplier=10.0, unit=Unit.AGENT),
        epsilon=100.0,
        delta=1e-5,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed ledger of eight entries: a budget, five reservations, two of them settled."""
    path = tmp_path / "ledger.db"
    with Ledger.open(path) as ledger:
        ledger.declare_budget(Unit.AGENT, "coordinator", 50.0, 1e-5, kind="gdp")
        for number in range(5):
            row = ledger.reserve(charge(number))
            if number < 2:
                ledger.settle(row, charge(number).event)
    return path


@pytest.fixture
def signed(path: Path) -> Checkpoint:
    with Ledger.open(path, clock=lambda: 1234.5) as ledger:
        return ledger.checkpoint(NAME, KEY.sign)


def rewritten(path: Path, *statements: str) -> None:
    """Run statements around the triggers, put these back, and write the log into the file."""
    connection = sqlite3.connect(path, isolation_level=None)
    found = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
    saved = found.fetchall()
    for name, _ in saved:
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement)
    for _, sql in saved:
        connection.execute(sql)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def rechained(path: Path, change: Callable[[int, str], str]) -> None:
    """Edit records and give every row a fresh, right hash, as a forger would."""
    connection = sqlite3.connect(path, isolation_level=None)
    rows = connection.execute("SELECT id, record FROM entries ORDER BY id").fetchall()
    connection.close()
    statements, head = [], bytes(32)
    for number, record in rows:
        changed = change(number, record)
        head = link(head, changed)
        text = changed.replace("'", "''")
        statements.append(
            f"UPDATE entries SET record = '{text}', hash = x'{head.hex()}' WHERE id = {number}"
        )
    rewritten(path, *statements)


# ---- the checkpoint itself ----------------------------------------------------------------------


def test_a_checkpoint_names_the_ledger_its_head_and_the_signer(
    path: Path, signed: Checkpoint
) -> None:
    with Ledger.open(path) as ledger:
        assert signed.head == ledger.head
        assert (signed.entries, len(ledger)) == (8, 8)
    assert (signed.name, signed.unix_time) == (NAME, 1234)
    signed.verify(VERIFIER)
    assert Checkpoint.from_json(signed.to_json()) == signed
    assert Checkpoint.from_json(signed.to_json().encode()).to_json() == signed.to_json()


def test_a_checkpoint_of_a_ledger_without_entries_binds_its_identity() -> None:
    with Ledger.open(":memory:") as one, Ledger.open(":memory:") as other:
        signed = one.checkpoint(NAME, KEY.sign)
        assert signed.entries == 0
        one.reserve(charge(0))
        assert one.verify(checkpoint=signed).entries == 1
        with pytest.raises(LedgerIntegrity, match="is about ledger"):
            other.verify(checkpoint=signed)


@pytest.mark.parametrize(
    "changes",
    [
        {"ledger_id": "0" * 32},
        {"entries": 7},
        {"head": "0" * 64},
        {"unix_time": 1235},
        {"name": "auditor-2"},
        {"signature": "0" * 128},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_signature_covers_every_field(signed: Checkpoint, changes: dict[str, Any]) -> None:
    with pytest.raises(AuthenticationFailed):
        replace(signed, **changes).verify(VERIFIER)


def test_another_key_does_not_verify(signed: Checkpoint) -> None:
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    with pytest.raises(AuthenticationFailed):
        signed.verify(ed25519_verifier(other))


def test_a_signature_over_other_bytes_of_this_library_does_not_verify(signed: Checkpoint) -> None:
    """The label keeps a signed plan, frame or transcript from passing as a checkpoint."""
    unlabelled = signed.signed_bytes().split(b"\x00", 1)[1]
    forged = replace(signed, signature=KEY.sign(unlabelled).hex())
    with pytest.raises(AuthenticationFailed):
        forged.verify(VERIFIER)


@pytest.mark.parametrize(
    "changes",
    [
        {"ledger_id": "ab"},
        {"ledger_id": "AB" * 16},
        {"head": "zz" * 32},
        {"head": None},
        {"entries": -1},
        {"entries": 2**53},
        {"entries": True},
        {"entries": 1.0},
        {"unix_time": 2**60},
        {"unix_time": math.nan},
        {"name": ""},
        {"name": "two words"},
        {"name": "a" * 65},
        {"name": "new\nline"},
        {"name": 3},
        {"signature": ""},
        {"signature": "ab" * 65},
    ],
    ids=str,
)
def test_a_malformed_checkpoint_is_refused(signed: Checkpoint, changes: dict[str, Any]) -> None:
    fields = {**asdict(signed), **changes}
    with pytest.raises(ConfigurationError):
        Checkpoint(**fields)
    if not any(isinstance(value, float) for value in changes.values()):
        document = {"format": "pfrl-ledger-checkpoint/1", **fields}
        with pytest.raises(ConfigurationError):
            Checkpoint.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"x"', b"\xff\xfe", "null"])
def test_what_is_no_checkpoint_document_is_refused(text: str | bytes) -> None:
    with pytest.raises(ConfigurationError, match="pfrl-ledger-checkpoint/1"):
        Checkpoint.from_json(text)


def test_an_unknown_field_or_format_is_refused(signed: Checkpoint) -> None:
    document = json.loads(signed.to_json())
    for changes in ({"more": 1}, {"format": "pfrl-ledger-checkpoint/2"}):
        with pytest.raises(ConfigurationError):
            Checkpoint.from_json(json.dumps({**document, **changes}))


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), "ab"])
def test_a_key_of_another_length_is_refused(key: Any) -> None:
    with pytest.raises(ConfigurationError, match="verify_key"):
        ed25519_verifier(key)


def test_a_signer_that_returns_no_signature_or_a_clock_without_time_makes_no_checkpoint() -> None:
    times = iter([1.0, 1.0, math.nan])
    text: Any = lambda message: "ab" * 64  # noqa: E731 - a signer of the wrong kind
    with Ledger.open(":memory:", clock=lambda: next(times)) as ledger:
        for sign in (text, lambda message: message):
            with pytest.raises(ConfigurationError, match="signature"):
                ledger.checkpoint(NAME, sign)
        with pytest.raises(ConfigurationError, match="clock"):
            ledger.checkpoint(NAME, KEY.sign)
    with pytest.raises(LocalProtocolError, match="closed"):
        ledger.verify()


# ---- attacks: what needs the checkpoint, and what does not --------------------------------------


def opened_without_complaint(path: Path) -> bool:
    try:
        with Ledger.open(path) as ledger:
            ledger.verify()
    except LedgerIntegrity:
        return False
    return True


def refused(path: Path, checkpoint: Checkpoint, match: str) -> None:
    with Ledger.open(path) as ledger, pytest.raises(LedgerIntegrity, match=match):
        ledger.verify(checkpoint=checkpoint)


def test_growth_by_honest_rows_is_no_attack(path: Path, signed: Checkpoint) -> None:
    with Ledger.open(path) as ledger:
        for number in range(9, 12):
            ledger.reserve(charge(number))
            assert ledger.verify(checkpoint=signed, anchor=signed.head).entries == number
        ledger.verify(checkpoint=ledger.checkpoint(NAME, KEY.sign))


@pytest.mark.parametrize(
    "statements",
    [
        pytest.param(
            ["UPDATE entries SET record = replace(record, '10.0', '11.0') WHERE id = 3"], id="edit"
        ),
        pytest.param(["DELETE FROM entries WHERE id = 3"], id="deletion"),
        pytest.param(
            ["DELETE FROM entries WHERE id = 6", "UPDATE entries SET id = id - 1 WHERE id > 6"],
            id="deletion-that-closes-the-gap",
        ),
        pytest.param(
            [
                "UPDATE entries SET id = 1000 WHERE id = 7",
                "UPDATE entries SET id = 7 WHERE id = 8",
                "UPDATE entries SET id = 8 WHERE id = 1000",
            ],
            id="reorder",
        ),
        pytest.param(
            ["UPDATE entries SET record = replace(record, '50.0', '99.0') WHERE id = 1"],
            id="raised-budget",
        ),
    ],
)
def test_edit_deletion_and_reorder_need_no_checkpoint(path: Path, statements: list[str]) -> None:
    rewritten(path, *statements)
    assert not opened_without_complaint(path)


@pytest.mark.parametrize("count", [1, 4, 8])
def test_truncation_is_found_with_the_checkpoint_and_not_without(
    path: Path, signed: Checkpoint, count: int
) -> None:
    rewritten(path, f"DELETE FROM entries WHERE id > {8 - count}")
    assert opened_without_complaint(path)
    refused(path, signed, "cut off")


def test_an_edit_with_fresh_hashes_is_found_with_the_checkpoint_and_not_without(
    path: Path, signed: Checkpoint
) -> None:
    rechained(path, lambda _, record: record.replace('"epsilon":50.0', '"epsilon":99.0'))
    assert opened_without_complaint(path)
    refused(path, signed, "forked or rewritten")


def test_a_deletion_with_fresh_hashes_and_new_rows_is_found_with_the_checkpoint(
    path: Path, signed: Checkpoint
) -> None:
    rewritten(path, "DELETE FROM entries WHERE id > 7")
    with Ledger.open(path) as ledger:
        for number in range(20, 24):
            ledger.reserve(charge(number))
    assert opened_without_complaint(path)
    refused(path, signed, "forked or rewritten")


def test_a_fork_is_found_by_the_checkpoint_of_the_other_branch(path: Path, tmp_path: Path) -> None:
    fork = tmp_path / "fork.db"
    shutil.copy(path, fork)
    with Ledger.open(path) as left, Ledger.open(fork) as right:
        common = left.checkpoint(NAME, KEY.sign)
        left.reserve(charge(8))
        right.reserve(charge(9))
        ours, theirs = (one.checkpoint(NAME, KEY.sign) for one in (left, right))
        for one in (left, right):
            one.verify(checkpoint=common)
        left.verify(checkpoint=ours)
        with pytest.raises(LedgerIntegrity, match="forked"):
            right.verify(checkpoint=ours)
        with pytest.raises(LedgerIntegrity, match="forked"):
            left.verify(checkpoint=theirs)


def test_replay_of_an_old_file_is_found_with_the_checkpoint_and_not_without(
    path: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old.db"
    shutil.copy(path, old)
    with Ledger.open(path) as ledger:
        ledger.reserve(charge(8))
        signed = ledger.checkpoint(NAME, KEY.sign)
    shutil.copy(old, path)
    assert opened_without_complaint(path)
    refused(path, signed, "older copy")


def test_another_ledger_with_the_same_rows_is_found_with_the_checkpoint(
    path: Path, signed: Checkpoint
) -> None:
    rechained(path, lambda _, record: record.replace(signed.ledger_id, "0" * 32))
    assert opened_without_complaint(path)
    refused(path, signed, "is about ledger")


def test_what_happened_after_the_checkpoint_is_not_covered_by_it(
    path: Path, signed: Checkpoint
) -> None:
    """Said in the module's table: keep checkpoints often."""
    with Ledger.open(path) as ledger:
        ledger.reserve(charge(8))
    rewritten(path, "DELETE FROM entries WHERE id > 8")
    with Ledger.open(path) as ledger:
        assert ledger.verify(checkpoint=signed).entries == 8
