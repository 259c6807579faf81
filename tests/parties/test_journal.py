"""Journals: nothing is spent twice, nothing older after something newer, also after a restart."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedrl.errors import LocalProtocolError, RoundAborted, StorageError
from privfedrl.parties.journal import STAGES, Journal, MemoryJournal, SqliteJournal
from privfedrl.parties.participation import Participation, Scope

A, B = b"a" * 32, b"b" * 32
MODEL, OTHER = b"m" * 32, b"o" * 32
ALL, WITHOUT_ONE = b"\xff\xff", b"\xff\x7f"
Calls = list[tuple[int, int, str, bytes, bytes]]


@pytest.fixture(params=["memory", "sqlite"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "memory":
        yield MemoryJournal()
        return
    file = SqliteJournal(tmp_path / "j.db")
    yield file
    file.close()


def agreed(
    number: int, attempt: int = 0, *, members: bytes = ALL, model: bytes = MODEL
) -> Participation:
    return Participation(round=number, attempt=attempt, model_digest=model, members=members)


def sign(
    journal: Journal,
    participation: Participation,
    *,
    task: bytes = A,
    floor: int = 3,
    scope: Scope = "model",
) -> None:
    journal.spend_consistency(task, participation, floor=floor, scope=scope)


def spend(journal: Journal, stage: str, number: int, attempt: int = 0, task: bytes = A) -> None:
    if stage == "masked":
        journal.spend_masked(task, number, attempt)
    else:
        sign(journal, agreed(number, attempt), task=task)


def test_a_stage_is_spent_once(journal: Journal) -> None:
    for stage in STAGES:
        spend(journal, stage, 3)
    for stage in STAGES:
        with pytest.raises(LocalProtocolError, match="not newer"):
            spend(journal, stage, 3)
    assert journal.participations(A) == (agreed(3),)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("number", "attempt"), [(2, 9), (3, 0), (3, 1), (0, 0)])
def test_an_older_round_or_attempt_is_refused(
    journal: Journal, stage: str, number: int, attempt: int
) -> None:
    spend(journal, stage, 3, 1)
    with pytest.raises(LocalProtocolError):
        spend(journal, stage, number, attempt)


def test_a_signature_for_a_round_before_the_last_masked_vector_is_refused(
    journal: Journal,
) -> None:
    journal.spend_masked(A, 3, 0)
    journal.spend_masked(A, 4, 0)
    with pytest.raises(LocalProtocolError, match="older"):
        sign(journal, agreed(3))
    assert journal.participations(A) == ()


def test_newer_rounds_attempts_and_other_tasks_are_free(journal: Journal) -> None:
    journal.spend_masked(A, 3, 1)
    journal.spend_masked(A, 3, 2)
    journal.spend_masked(A, 4, 0)
    journal.spend_masked(B, 0, 0)
    journal.spend_masked(A, 2**63 - 1, 2**32 - 1)


def test_a_signed_set_is_there_in_order_and_by_task(journal: Journal) -> None:
    sets = [agreed(1), agreed(1, 1), agreed(2, members=WITHOUT_ONE, model=OTHER)]
    for one in sets:
        sign(journal, one)
    sign(journal, agreed(9), task=B)
    assert journal.participations(A) == tuple(sets)
    assert journal.participations(B) == (agreed(9),)
    assert journal.participations(b"c" * 32) == ()


def test_a_differencing_set_is_neither_signed_nor_spent(journal: Journal) -> None:
    sign(journal, agreed(1))
    with pytest.raises(RoundAborted, match="Differencing") as caught:
        sign(journal, agreed(1, 1, members=WITHOUT_ONE))
    assert caught.value.code == "Differencing"
    assert journal.participations(A) == (agreed(1),)
    sign(journal, agreed(1, 1))  # the same set again tells nothing new


def test_the_scope_decides_which_earlier_sets_count(journal: Journal) -> None:
    sign(journal, agreed(1))
    with pytest.raises(RoundAborted):
        sign(journal, agreed(2, members=WITHOUT_ONE, model=OTHER), scope="task")
    sign(journal, agreed(2, members=WITHOUT_ONE, model=OTHER), scope="model")
    sign(journal, agreed(2, members=b"\xff\x0f", model=b"x" * 32), task=B, scope="task")


@pytest.mark.parametrize("scope", ["model", "task"])
def test_a_new_task_is_no_way_around_the_guard(journal: Journal, scope: Scope) -> None:
    """The coordinator names the task; the model is what the inputs were computed from."""
    sign(journal, agreed(1), task=A, scope=scope)
    with pytest.raises(RoundAborted, match="Differencing"):
        sign(journal, agreed(1, members=WITHOUT_ONE), task=B, scope=scope)
    assert journal.participations(B) == ()
    sign(journal, agreed(1, members=WITHOUT_ONE, model=OTHER), task=B, scope=scope)


def test_a_restart_does_not_forget(tmp_path: Path) -> None:
    first = SqliteJournal(tmp_path / "j.db")
    first.spend_masked(A, 5, 0)
    sign(first, agreed(5))
    first.close()
    second = SqliteJournal(tmp_path / "j.db")
    with pytest.raises(LocalProtocolError):
        second.spend_masked(A, 5, 0)
    with pytest.raises(RoundAborted):
        sign(second, agreed(5, 1, members=WITHOUT_ONE))
    second.close()


def test_two_processes_share_one_memory(tmp_path: Path) -> None:
    one, two = SqliteJournal(tmp_path / "j.db"), SqliteJournal(tmp_path / "j.db")
    one.spend_masked(A, 5, 0)
    with pytest.raises(LocalProtocolError):
        two.spend_masked(A, 5, 0)
    two.spend_masked(A, 6, 0)
    sign(one, agreed(6))
    with pytest.raises(RoundAborted):
        sign(two, agreed(6, 1, members=WITHOUT_ONE))
    one.close()
    two.close()


CONTENDER = """
import sys
from privfedrl.errors import ProtocolError
from privfedrl.parties.journal import SqliteJournal
from privfedrl.parties.participation import Participation
path, absent = sys.argv[1], int(sys.argv[2])
journal = SqliteJournal(path)
members = (0xFFFF ^ 1 << absent).to_bytes(2, "little")
sys.stdin.readline()
for attempt in range(20):
    one = Participation(round=1, attempt=attempt, model_digest=b"m" * 32, members=members)
    try:
        journal.spend_consistency(b"a" * 32, one, floor=3, scope="model")
    except ProtocolError:
        continue
"""


def test_processes_that_race_never_sign_two_sets_that_isolate_a_client(tmp_path: Path) -> None:
    """Each wants its own set; reading, checking and recording are one step, so one of them wins."""
    path = tmp_path / "j.db"
    SqliteJournal(path).close()
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", CONTENDER, str(path), str(absent)],
            stdin=subprocess.PIPE,
            text=True,
        )
        for absent in range(3)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        racer.communicate(timeout=60)
        assert racer.returncode == 0
    journal = SqliteJournal(path)
    signed = journal.participations(A)
    journal.close()
    assert signed
    assert len({one.members for one in signed}) == 1


def test_a_lock_that_is_not_let_go_is_a_storage_error(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "j.db")
    journal._connection.execute("PRAGMA busy_timeout = 10")
    with sqlite3.connect(tmp_path / "j.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="locked"):
            journal.spend_masked(A, 1, 0)
    other.close()
    journal.spend_masked(A, 1, 0)
    journal.close()


def test_the_file_is_durable_by_its_settings(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "j.db")
    connection: sqlite3.Connection = journal._connection
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    journal.close()


def test_a_crash_at_any_write_leaves_signature_and_set_or_neither(tmp_path: Path) -> None:
    """What is on disk at the moment of a crash is some prefix of the write-ahead log."""
    journal = SqliteJournal(tmp_path / "j.db")
    journal.spend_masked(A, 1, 0)
    sign(journal, agreed(1))
    log = tmp_path / "j.db-wal"
    before = log.stat().st_size
    sign(journal, agreed(2, members=b"\xff\x01"))
    whole = log.read_bytes()
    assert len(whole) > before
    outcomes = set()
    for length in [*range(before, len(whole), 509), len(whole)]:
        crashed = tmp_path / f"crashed-{length}"
        crashed.mkdir()
        shutil.copy(tmp_path / "j.db", crashed / "j.db")
        (crashed / "j.db-wal").write_bytes(whole[:length])
        outcomes.add((length == len(whole), *_state(crashed / "j.db")))
    journal.close()
    assert outcomes == {(False, 1, (1,)), (True, 2, (1, 2))}


def _state(path: Path) -> tuple[int, tuple[int, ...]]:
    """The last round whose signature is spent, and the rounds whose sets are there."""
    journal = SqliteJournal(path)
    query = "SELECT round FROM spent WHERE stage = 'consistency'"
    (spent,) = journal._connection.execute(query).fetchone()
    rounds = tuple(one.round for one in journal.participations(A))
    journal.close()
    return spent, rounds


def test_an_unusable_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is not a database, and long enough to be read as one")
    with pytest.raises(StorageError):
        SqliteJournal(tmp_path / "text")
    with pytest.raises(StorageError):
        SqliteJournal(tmp_path / "absent" / "j.db")


def test_a_journal_of_the_earlier_layout_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(
        "CREATE TABLE spent (task BLOB NOT NULL, stage TEXT NOT NULL, "
        "round INTEGER NOT NULL, attempt INTEGER NOT NULL, PRIMARY KEY (task, stage))"
    )
    connection.execute("INSERT INTO spent VALUES (x'aa', 'masked', 7, 0)")
    with pytest.raises(StorageError, match=r"must have layout 2, got 0.*new identity"):
        SqliteJournal(path)
    assert connection.execute("SELECT round FROM spent").fetchall() == [(7,)]
    connection.execute("PRAGMA user_version = 3")
    connection.close()
    with pytest.raises(StorageError, match="got 3"):
        SqliteJournal(path)


def test_a_damaged_set_is_a_storage_error(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "j.db")
    journal._connection.execute("INSERT INTO signed VALUES (?, 1, 0, x'00', x'ff')", (A,))
    for read in (lambda: journal.participations(A), lambda: sign(journal, agreed(2), scope="task")):
        with pytest.raises(StorageError, match="damaged"):
            read()
    journal.close()


def test_what_cannot_be_recorded_is_not_spent(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "j.db")
    with pytest.raises(StorageError):
        journal.spend_masked(A, 2**64, 0)
    journal.spend_masked(A, 1, 0)  # the failed transaction is gone
    journal.close()
    for use in (
        lambda: journal.spend_masked(A, 2, 0),
        lambda: sign(journal, agreed(2)),
        lambda: journal.participations(A),
    ):
        with pytest.raises(StorageError):
            use()


def test_another_thread_gets_a_storage_error_for_every_call(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "j.db")
    calls: list[Callable[[], object]] = [
        lambda: journal.spend_masked(A, 1, 0),
        lambda: sign(journal, agreed(1)),
        lambda: journal.participations(A),
        journal.close,
    ]
    failures: list[BaseException] = []

    def elsewhere() -> None:
        for call in calls:
            try:
                call()
            except Exception as error:  # noqa: BLE001 - the kind of error is what is tested
                failures.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert [type(failure) for failure in failures] == [StorageError] * len(calls)
    journal.spend_masked(A, 1, 0)  # unharmed
    journal.close()


@given(
    calls=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.integers(0, 2),
            st.sampled_from(["masked", "model", "task"]),
            st.sampled_from([ALL, WITHOUT_ONE, b"\x0f\x00", b"\xf0\xff", b"\x03\x00"]),
            st.sampled_from([A, B]),
        ),
        max_size=8,
    ),
    models=st.integers(1, 3),
)
def test_memory_and_file_accept_the_same_calls(calls: Calls, models: int) -> None:
    memory, file = MemoryJournal(), SqliteJournal(":memory:")
    try:
        for number, attempt, kind, members, task in calls:
            one = agreed(number, attempt, members=members, model=bytes([number % models]) * 32)
            verdicts = [_verdict(journal, kind, one, task) for journal in (memory, file)]
            assert verdicts[0] == verdicts[1]
        for task in (A, B):
            assert memory.participations(task) == file.participations(task)
    finally:
        file.close()


def _verdict(
    journal: Journal, kind: str, one: Participation, task: bytes
) -> type[Exception] | None:
    try:
        if kind == "masked":
            journal.spend_masked(task, one.round, one.attempt)
        else:
            sign(journal, one, task=task, scope="task" if kind == "task" else "model")
    except (LocalProtocolError, RoundAborted) as error:
        return type(error)
    return None
