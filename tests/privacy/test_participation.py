"""Participations are counted durably before they are used, and never beyond the cap."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import struct
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedrl.errors import (
    ConfigurationError,
    LedgerIntegrity,
    LocalProtocolError,
    PrivacyError,
    StorageError,
)
from privfedrl.privacy.participation import ParticipationRegister

# fork: a child starts in milliseconds, so that many can be killed within a second
FORK = multiprocessing.get_context("fork")
PLAN, OTHER = bytes(32), bytes([1]) * 32
ADMITTED = struct.Struct("<qq")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "participation.db"


def test_a_person_is_admitted_until_the_cap_and_never_again() -> None:
    with ParticipationRegister(":memory:") as register:
        found = [
            register.admit(PLAN, f"r{n}", ["ann", "bob"][: 1 + n % 2], cap=2) for n in range(5)
        ]
        assert found == [{"ann"}, {"ann", "bob"}, set(), {"bob"}, set()]
        assert register.participations(PLAN, "ann") == register.participations(PLAN, "bob") == 2
        assert register.participations(PLAN, "carl") == 0


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=8), max_size=12), st.integers(1, 4))
def test_admission_is_the_persons_own_history_alone(rounds: list[list[str]], cap: int) -> None:
    """Against a plain count; so leaving anybody out changes nobody else's admissions."""
    seen: dict[str, int] = {}
    with ParticipationRegister(":memory:") as register:
        for number, named in enumerate(rounds):
            expected = {name for name in named if seen.get(name, 0) < cap}
            assert register.admit(PLAN, str(number), named, cap=cap) == expected
            for name in expected:
                seen[name] = seen.get(name, 0) + 1
        assert all(register.participations(PLAN, name) == seen.get(name, 0) for name in "abcdef")


def test_each_plan_counts_for_itself() -> None:
    with ParticipationRegister(":memory:") as register:
        assert register.admit(PLAN, "r0", ["ann"], cap=1) == {"ann"}
        assert register.admit(OTHER, "r1", ["ann"], cap=3) == {"ann"}
        assert register.admit(PLAN, "r2", ["ann"], cap=1) == frozenset()


def test_a_release_is_recorded_once_and_a_repeat_records_nothing() -> None:
    with ParticipationRegister(":memory:") as register:
        register.admit(PLAN, "r0", ["ann"], cap=5)
        for digest in (PLAN, OTHER):
            with pytest.raises(PrivacyError, match="release_id"):
                register.admit(digest, "r0", ["ann"], cap=5)
        assert register.participations(PLAN, "ann") == 1
        assert register.participations(OTHER, "ann") == 0


def test_a_release_that_names_nobody_is_spent_too() -> None:
    with ParticipationRegister(":memory:") as register:
        assert register.admit(PLAN, "r0", (), cap=1) == frozenset()
        with pytest.raises(PrivacyError, match="release_id"):
            register.admit(PLAN, "r0", ["ann"], cap=1)


def test_the_cap_of_a_plan_cannot_be_changed_later() -> None:
    with ParticipationRegister(":memory:") as register:
        register.admit(PLAN, "r0", ["ann"], cap=1)
        with pytest.raises(PrivacyError, match="cap"):
            register.admit(PLAN, "r1", ["ann"], cap=2)
        assert register.admit(PLAN, "r1", ["bob"], cap=1) == {"bob"}


def test_participations_survive_closing_and_opening(path: Path) -> None:
    with ParticipationRegister(path) as register:
        register.admit(PLAN, "r0", ["ann"], cap=2)
    with ParticipationRegister(path) as register:
        assert register.participations(PLAN, "ann") == 1
        with pytest.raises(PrivacyError, match="release_id"):
            register.admit(PLAN, "r0", ["ann"], cap=2)


def test_the_file_holds_no_subject_and_two_files_hash_differently(tmp_path: Path) -> None:
    contents = []
    for name in ("a.db", "b.db"):
        with ParticipationRegister(tmp_path / name) as register:
            register.admit(PLAN, "r0", ["patient-4711"], cap=2)
        data = b"".join(file.read_bytes() for file in sorted(tmp_path.glob(f"{name}*")))
        assert b"patient-4711" not in data
        with sqlite3.connect(tmp_path / name) as connection:
            contents.append(connection.execute("SELECT subject FROM participations").fetchall())
        connection.close()
    assert contents[0] != contents[1]


def test_only_the_owner_may_read_the_file(path: Path) -> None:
    with ParticipationRegister(path) as register:
        register.admit(PLAN, "r0", ["ann"], cap=2)
        for file in path.parent.iterdir():
            assert file.stat().st_mode & 0o077 == 0, file.name


def test_repr_and_refusals_name_nobody() -> None:
    register = ParticipationRegister(":memory:")
    register.admit(PLAN, "r0", ["ann"], cap=1)
    assert repr(register) == "<ParticipationRegister ':memory:' open>"
    with pytest.raises(ConfigurationError) as caught:
        register.admit(PLAN, "r1", ["ann", "ann\n"], cap=1)
    assert "ann" not in str(caught.value)
    register.close()
    assert repr(register) == "<ParticipationRegister ':memory:' closed>"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"plan_digest": b"short"}, "plan_digest"),
        ({"plan_digest": "0" * 32}, "plan_digest"),
        ({"release_id": ""}, "release_id"),
        ({"release_id": "r\x00"}, "release_id"),
        ({"release_id": 3}, "release_id"),
        ({"release_id": "r" * 201}, "release_id"),
        ({"subjects": "ann"}, "subjects"),
        ({"subjects": b"ann"}, "subjects"),
        ({"subjects": {"ann"}}, "subjects"),
        ({"subjects": None}, "subjects"),
        ({"subjects": [""]}, "subject"),
        ({"subjects": ["\ud800"]}, "subject"),
        ({"subjects": ["a" * 201]}, "subject"),
        ({"subjects": [None]}, "subject"),
        ({"cap": 0}, "cap"),
        ({"cap": -1}, "cap"),
        ({"cap": True}, "cap"),
        ({"cap": 1.0}, "cap"),
        ({"cap": 10**10}, "cap"),
    ],
)
def test_malformed_requests_are_refused_and_record_nothing(
    changes: dict[str, object], name: str
) -> None:
    values = {"plan_digest": PLAN, "release_id": "r0", "subjects": ["ann"], "cap": 1} | changes
    with ParticipationRegister(":memory:") as register:
        with pytest.raises(ConfigurationError, match=name):
            register.admit(
                values["plan_digest"], values["release_id"], values["subjects"], cap=values["cap"]
            )
        assert register.admit(PLAN, "r0", ["ann"], cap=1) == {"ann"}


def test_a_count_is_asked_for_identifiers_only() -> None:
    with ParticipationRegister(":memory:") as register, pytest.raises(ConfigurationError):
        register.participations(PLAN, "\ud800")


def test_a_closed_register_refuses(path: Path) -> None:
    register = ParticipationRegister(path)
    register.close()
    register.close()
    with pytest.raises(LocalProtocolError, match="closed"):
        register.admit(PLAN, "r0", ["ann"], cap=1)
    with pytest.raises(LocalProtocolError, match="closed"):
        register.participations(PLAN, "ann")


def test_a_locked_file_is_a_storage_error_and_records_nothing(path: Path) -> None:
    with ParticipationRegister(path, timeout_s=0.05) as register:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="another process"):
            register.admit(PLAN, "r0", ["ann"], cap=1)
        other.execute("ROLLBACK")
        other.close()
        assert register.admit(PLAN, "r0", ["ann"], cap=1) == {"ann"}


def test_a_folder_that_does_not_exist_is_a_storage_error(path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be opened"):
        ParticipationRegister(path.parent / "absent" / "participation.db")
    with pytest.raises(StorageError):
        ParticipationRegister(path.parent)


def test_a_file_system_without_write_ahead_logging_is_a_storage_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some network file systems: durability would be another, so nothing is created."""
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda _, **options: connect(":memory:", **options))
    with pytest.raises(StorageError, match="write-ahead"):
        ParticipationRegister(path)
    assert list(path.parent.iterdir()) == []


def damaged(path: Path, sql: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.executescript(sql)
    connection.close()


@pytest.mark.parametrize(
    "sql",
    [
        "PRAGMA application_id = 1",
        "PRAGMA user_version = 2",
        "DROP TRIGGER participations_only_grow",
        "CREATE TABLE more (id INTEGER)",
        "DELETE FROM secret",
        "PRAGMA ignore_check_constraints = ON; UPDATE secret SET key = x'00'",
    ],
)
def test_a_file_that_is_not_this_register_is_refused(path: Path, sql: str) -> None:
    with ParticipationRegister(path) as register:
        register.admit(PLAN, "r0", ["ann"], cap=1)
    damaged(path, sql)
    with pytest.raises(LedgerIntegrity):
        ParticipationRegister(path)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE participations SET count = 0",
        "UPDATE participations SET count = count + 2",
        "DELETE FROM participations",
        "DELETE FROM releases",
        "UPDATE plans SET cap = 9",
    ],
)
def test_the_file_itself_refuses_to_forget(path: Path, sql: str) -> None:
    with ParticipationRegister(path) as register:
        register.admit(PLAN, "r0", ["ann"], cap=5)
    with pytest.raises(sqlite3.IntegrityError):
        damaged(path, sql)


def test_a_foreign_database_is_refused_and_left_as_it_was(path: Path) -> None:
    damaged(path, "CREATE TABLE mine (id INTEGER)")
    before = path.read_bytes()
    with pytest.raises(LedgerIntegrity, match="not a participation register"):
        ParticipationRegister(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("data", [b"", b"not a database at all", bytes(8192)])
def test_bytes_that_are_no_database_are_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(LedgerIntegrity):
        ParticipationRegister(path)


def test_a_truncated_or_scribbled_file_is_refused(path: Path) -> None:
    with ParticipationRegister(path) as register:
        register.admit(PLAN, "r0", [f"person {n}" for n in range(500)], cap=1)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LedgerIntegrity):
        ParticipationRegister(path)
    path.write_bytes(whole[:4096] + b"\xff" * 4096 + whole[8192:])
    with pytest.raises(LedgerIntegrity):
        ParticipationRegister(path)


def test_a_file_that_is_replaced_while_open_is_noticed(path: Path) -> None:
    with ParticipationRegister(path) as register:
        register.admit(PLAN, "r0", ["ann"], cap=1)
        path.rename(path.with_name("moved"))
        with pytest.raises(LedgerIntegrity, match="replaced or removed"):
            register.admit(PLAN, "r1", ["ann"], cap=1)


def test_a_forked_child_may_not_use_its_parents_register(path: Path) -> None:
    with ParticipationRegister(path) as register:
        child = os.fork()
        if child == 0:
            try:
                register.admit(PLAN, "child", ["ann"], cap=9)
            except LocalProtocolError:
                register.close()
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        register.admit(PLAN, "parent", ["ann"], cap=9)
        assert register.participations(PLAN, "ann") == 1


def test_threads_may_share_one_register(path: Path) -> None:
    won: list[frozenset[str]] = []
    with ParticipationRegister(path) as register:

        def admit(name: int) -> None:
            won.extend(register.admit(PLAN, f"{name}/{n}", ["ann"], cap=7) for n in range(5))

        threads = [threading.Thread(target=admit, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 20
        assert sum("ann" in found for found in won) == 7


def race(path: Path, name: int, people: list[str], cap: int, tries: int) -> None:
    with ParticipationRegister(path, timeout_s=30) as register:
        won = 0
        for number in range(tries):
            won += len(register.admit(PLAN, f"{name}/{number}", people, cap=cap))
    os._exit(won)


def test_two_writers_never_admit_anybody_beyond_the_cap(path: Path) -> None:
    """Both start before the file exists, too: one of them creates it."""
    people, cap = [f"p{n}" for n in range(6)], 9
    workers = [FORK.Process(target=race, args=(path, name, people, cap, 15)) for name in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert sum(worker.exitcode or 0 for worker in workers) == len(people) * cap
    with ParticipationRegister(path) as register:
        assert [register.participations(PLAN, name) for name in people] == [cap] * 6


PEOPLE = [f"p{n}" for n in range(4)]


def admit_until_killed(path: Path, name: int, pipe: int) -> None:
    """Report each admission after the register returned, as an agent would compute after it."""
    rng = random.Random(name)
    with ParticipationRegister(path, timeout_s=30) as register:
        for number in range(10**6):
            chosen = rng.sample(range(4), 2)
            found = register.admit(PLAN, f"{name}/{number}", [PEOPLE[i] for i in chosen], cap=25)
            for index in chosen:
                if PEOPLE[index] in found:
                    os.write(pipe, ADMITTED.pack(name, index))


@pytest.mark.parametrize("seed", range(8))
def test_a_killed_agent_leaves_every_admission_counted(path: Path, seed: int) -> None:
    """SIGKILL at a random instant, from before the file exists to the middle of a commit."""
    rng = random.Random(seed)
    reported = [0] * 4
    for life in range(2):
        reader, writer = os.pipe()
        workers = [
            FORK.Process(target=admit_until_killed, args=(path, 10 * life + name, writer))
            for name in range(2)
        ]
        for worker in workers:
            worker.start()
        os.close(writer)
        time.sleep(rng.uniform(0.0, 0.1))
        for worker in workers:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
        for worker in workers:
            worker.join()
        data = b""
        while chunk := os.read(reader, 1 << 16):
            data += chunk
        os.close(reader)
        for _, index in ADMITTED.iter_unpack(data):
            reported[index] += 1
    with ParticipationRegister(path) as register:
        for name, said in zip(PEOPLE, reported, strict=True):
            held = register.participations(PLAN, name)
            # at most the one release in flight of each of four killed processes is over-counted
            assert said <= held <= min(25, said + 4)


def test_an_admission_is_durable_the_moment_it_is_returned(path: Path) -> None:
    child = os.fork()
    if child == 0:
        ParticipationRegister(path).admit(PLAN, "only", ["ann"], cap=1)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    with ParticipationRegister(path) as register:
        assert register.admit(PLAN, "next", ["ann"], cap=1) == frozenset()
