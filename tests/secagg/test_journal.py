"""Journals: nothing is spent twice, nothing older after something newer, also after a restart."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedrl.errors import LocalProtocolError, StorageError
from privfedrl.secagg.journal import Journal, MemoryJournal, SqliteJournal

A, B = b"a" * 32, b"b" * 32


@pytest.fixture(params=["memory", "sqlite"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Journal:
    return MemoryJournal() if request.param == "memory" else SqliteJournal(tmp_path / "j.db")


def test_a_stage_is_spent_once(journal: Journal) -> None:
    journal.spend(A, 3, 0, "masked")
    journal.spend(A, 3, 0, "consistency")
    for stage in ("masked", "consistency"):
        with pytest.raises(LocalProtocolError, match="not newer"):
            journal.spend(A, 3, 0, stage)


@pytest.mark.parametrize(("round_", "attempt"), [(2, 9), (3, 0), (3, 1), (0, 0)])
def test_an_older_round_or_attempt_is_refused(journal: Journal, round_: int, attempt: int) -> None:
    journal.spend(A, 3, 1, "masked")
    with pytest.raises(LocalProtocolError):
        journal.spend(A, round_, attempt, "masked")


def test_a_signature_for_a_round_before_the_last_masked_vector_is_refused(
    journal: Journal,
) -> None:
    journal.spend(A, 3, 0, "masked")
    journal.spend(A, 4, 0, "masked")
    with pytest.raises(LocalProtocolError, match="older"):
        journal.spend(A, 3, 0, "consistency")


def test_an_older_signature_is_refused_whatever_was_masked(journal: Journal) -> None:
    journal.spend(A, 3, 0, "consistency")
    with pytest.raises(LocalProtocolError, match="not newer"):
        journal.spend(A, 2, 0, "consistency")


def test_newer_rounds_attempts_and_other_tasks_are_free(journal: Journal) -> None:
    journal.spend(A, 3, 1, "masked")
    journal.spend(A, 3, 2, "masked")
    journal.spend(A, 4, 0, "masked")
    journal.spend(B, 0, 0, "masked")
    journal.spend(A, 2**63 - 1, 2**32 - 1, "masked")


def test_unknown_stages_are_refused(journal: Journal) -> None:
    with pytest.raises(LocalProtocolError, match="stage"):
        journal.spend(A, 1, 0, "other")


def test_a_restart_does_not_forget(tmp_path: Path) -> None:
    first = SqliteJournal(tmp_path / "j.db")
    first.spend(A, 5, 0, "masked")
    first.close()
    second = SqliteJournal(tmp_path / "j.db")
    with pytest.raises(LocalProtocolError):
        second.spend(A, 5, 0, "masked")
    second.close()


def test_two_processes_share_one_memory(tmp_path: Path) -> None:
    one, two = SqliteJournal(tmp_path / "j.db"), SqliteJournal(tmp_path / "j.db")
    one.spend(A, 5, 0, "masked")
    with pytest.raises(LocalProtocolError):
        two.spend(A, 5, 0, "masked")
    two.spend(A, 6, 0, "masked")
    one.close()
    two.close()


def test_the_file_is_durable_by_its_settings(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "j.db")
    connection: sqlite3.Connection = journal._connection
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    journal.close()


def test_an_unusable_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is not a database, and long enough to be read as one")
    with pytest.raises(StorageError):
        SqliteJournal(tmp_path / "text")
    with pytest.raises(StorageError):
        SqliteJournal(tmp_path / "absent" / "j.db")


def test_what_cannot_be_recorded_is_not_spent(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "j.db")
    with pytest.raises(StorageError):
        journal.spend(A, 2**64, 0, "masked")
    journal.spend(A, 1, 0, "masked")  # the failed transaction is gone
    journal.close()
    with pytest.raises(StorageError):
        journal.spend(A, 2, 0, "masked")


@given(
    calls=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from(["masked", "consistency"]))
    )
)
def test_memory_and_file_accept_the_same_calls(calls: list[tuple[int, int, str]]) -> None:
    memory, file = MemoryJournal(), SqliteJournal(":memory:")
    try:
        for round_, attempt, stage in calls:
            verdicts = [
                _accepts(lambda j=j: j.spend(A, round_, attempt, stage))  # noqa: B023 - called now
                for j in (memory, file)
            ]
            assert verdicts[0] == verdicts[1]
    finally:
        file.close()


def _accepts(call: Callable[[], None]) -> bool:
    try:
        call()
    except LocalProtocolError:
        return False
    return True
