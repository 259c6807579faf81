"""Processes that race for the budget, and processes that die at any instant."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import struct
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

from privfedrl.errors import BudgetExceeded, LocalProtocolError, PrivacyError
from privfedrl.privacy.accountant import compose
from privfedrl.privacy.events import GaussianEvent
from privfedrl.privacy.ledger import Charge, Ledger
from privfedrl.privacy.units import Unit

# fork: a child starts in milliseconds, so that many can be killed within a second
FORK = multiprocessing.get_context("fork")
RESERVED = GaussianEvent(noise_multiplier=10.0, unit=Unit.AGENT)
REALISED = GaussianEvent(noise_multiplier=11.0, unit=Unit.AGENT)
ROW = struct.Struct("<cq")


def charge(release_id: str, *, epsilon: float = 1e6, unit: Unit = Unit.AGENT) -> Charge:
    return Charge(
        plan_digest=bytes(32),
        release_id=release_id,
        group=release_id,
        unit=unit,
        adversary="coordinator",
        event=GaussianEvent(noise_multiplier=10.0, unit=unit),
        epsilon=epsilon,
        delta=1e-5,
    )


def race(path: Path, name: int, epsilon: float, tries: int) -> None:
    with Ledger.open(path, timeout_s=30) as ledger:
        won = 0
        for number in range(tries):
            try:
                ledger.reserve(charge(f"{name}/{number}", epsilon=epsilon))
                won += 1
            except BudgetExceeded:
                continue
        ledger.verify()
    os._exit(won)


def test_four_writers_never_overspend_and_never_lose_a_charge(path: Path) -> None:
    admitted = 21
    budget = compose(Unit.AGENT, [("g", RESERVED)] * admitted, 1e-5).epsilon * (1 + 1e-9)
    workers = [FORK.Process(target=race, args=(path, name, budget, 10)) for name in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert sum(worker.exitcode or 0 for worker in workers) == admitted
    with Ledger.open(path) as ledger:
        assert ledger.verify().reservations == admitted
        assert ledger.spent().epsilon <= budget


def same_group(path: Path, name: int) -> None:
    with Ledger.open(path, timeout_s=30) as ledger:
        won = 0
        for number in range(20):
            one = charge(f"{name}/{number}", unit=Unit.TRAJECTORY)
            values = {field: getattr(one, field) for field in Charge.__dataclass_fields__}
            try:
                ledger.reserve(Charge(**{**values, "group": f"batch-{number}"}))
                won += 1
            except PrivacyError:
                continue
    os._exit(won)


def test_two_processes_never_spend_one_trajectory_set_twice(path: Path) -> None:
    workers = [FORK.Process(target=same_group, args=(path, name)) for name in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert sum(worker.exitcode or 0 for worker in workers) == 20


def test_threads_may_share_one_ledger(path: Path) -> None:
    with Ledger.open(path) as ledger:
        threads = [
            threading.Thread(
                target=lambda name=name: [ledger.reserve(charge(f"{name}/{n}")) for n in range(10)]
            )
            for name in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ledger.verify().reservations == 40


def write_until_killed(path: Path, name: int, pipe: int) -> None:
    """Report each row after the ledger returned, as a coordinator would send after it."""
    with Ledger.open(path, timeout_s=30) as ledger:
        number = 0
        while True:
            row = ledger.reserve(charge(f"{name}/{number}"))
            os.write(pipe, ROW.pack(b"r", row))
            if number % 2:
                ledger.settle(row, REALISED)
                os.write(pipe, ROW.pack(b"s", row))
            number += 1


def reported(reader: int) -> list[tuple[bytes, int]]:
    data = b""
    while chunk := os.read(reader, 1 << 16):
        data += chunk
    whole = len(data) // ROW.size * ROW.size
    return [tuple(found) for found in ROW.iter_unpack(data[:whole])]  # type: ignore[misc]  # (c, q)


@pytest.mark.parametrize("seed", range(16))
def test_a_killed_writer_leaves_every_reported_charge_and_a_sound_chain(
    path: Path, seed: int
) -> None:
    """SIGKILL at a random instant, from before the file exists to the middle of a commit."""
    rng = random.Random(seed)
    said: list[tuple[bytes, int]] = []
    for life in range(2):
        reader, writer = os.pipe()
        workers = [
            FORK.Process(target=write_until_killed, args=(path, 10 * life + name, writer))
            for name in range(2)
        ]
        for worker in workers:
            worker.start()
        os.close(writer)
        time.sleep(rng.uniform(0.0, 0.12))
        for worker in workers:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
        for worker in workers:
            worker.join()
            assert worker.exitcode == -signal.SIGKILL
        said += reported(reader)
        os.close(reader)
    with Ledger.open(path) as ledger:
        checked = ledger.verify(anchor=ledger.head)
        held = {one.id: one for one in ledger.reservations()}
        assert checked.settled <= checked.reservations == len(held)
        # at most one unreported row per killed process and kind: over-charged, never under-charged
        assert checked.reservations - sum(kind == b"r" for kind, _ in said) in range(5)
        for kind, row in said:
            assert row in held
            assert kind == b"r" or held[row].realised == REALISED


def test_a_charge_is_durable_the_moment_it_is_returned(path: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        ledger = Ledger.open(path)
        os.write(writer, ROW.pack(b"r", ledger.reserve(charge("only"))))
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(writer)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    ((_, row),) = reported(reader)
    os.close(reader)
    with Ledger.open(path) as ledger:
        (held,) = ledger.reservations()
        assert held.id == row
        assert held.realised is None
        assert ledger.spent().epsilon > 0


def test_a_forked_child_may_not_use_its_parents_ledger(path: Path) -> None:
    with Ledger.open(path) as ledger:
        child = os.fork()
        if child == 0:
            try:
                ledger.reserve(charge("child"))
            except LocalProtocolError:
                ledger.close()
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        ledger.reserve(charge("parent"))
        assert ledger.verify().reservations == 1


def interrupted_charge(ledger: Ledger) -> None:
    with ledger._store.writing():
        ledger._store.insert(ledger._chain.reserve(charge("interrupted"), 0))
        raise KeyboardInterrupt


def test_an_error_between_lock_and_commit_charges_nothing(path: Path) -> None:
    """The caller is interrupted while the write lock is held: nothing is charged, nothing hangs."""
    with Ledger.open(path) as ledger, Ledger.open(path, timeout_s=0.2) as other:
        with pytest.raises(KeyboardInterrupt):
            interrupted_charge(ledger)
        assert len(ledger) == 0
        other.reserve(charge("other"))
        ledger.reserve(charge("interrupted"))
        assert ledger.verify().reservations == 2


# ---- audits/crash_test.py: the same from outside, with releases, restarts and budgets -----------


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[2] / "audits" / "crash_test.py"
    spec = importlib.util.spec_from_file_location("crash_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_writers_killed_at_random_instants_never_release_what_was_not_charged(
    script: ModuleType, tmp_path: Path
) -> None:
    found = script.crash_test(36, seed=3, folder=tmp_path)
    assert found.failures == []
    assert found.ok
    assert found.kills == 36
    assert min(found.checks.values()) >= 12
    assert found.released > 0


@pytest.mark.parametrize("defect", ["release-before-reserve", "settle-below-truth"])
def test_the_crash_test_notices_a_writer_that_breaks_a_rule(
    script: ModuleType, tmp_path: Path, defect: str
) -> None:
    """Control. A release before its charge stands alone as soon as the budget refuses the charge,
    a settlement below the truth as soon as one is made: neither depends on the instant of a kill,
    and the run stops there.
    """
    found = script.crash_test(300, seed=3, folder=tmp_path, defect=defect)
    assert not found.ok
    assert found.failures


def test_the_crash_test_notices_a_ledger_that_lost_its_newest_rows(
    script: ModuleType, tmp_path: Path
) -> None:
    outcome = script.Outcome()
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.declare_budget(Unit.PERSON, script.ADVERSARY, script.EPSILON, script.DELTA)
        for name in ("a", "b"):
            notes = script.Notes(tmp_path / f"{name}.txt")
            ledger.reserve(script._charge(name, bytes(32)))
            for kind in ("reserved", "released"):
                notes.write(kind, name)
    head = script._check(tmp_path, outcome, "", dead=0)
    assert outcome.failures == []
    connection = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    trigger = connection.execute(
        "SELECT sql FROM sqlite_master WHERE name = 'entries_refuse_delete'"
    ).fetchone()[0]
    connection.execute("DROP TRIGGER entries_refuse_delete")
    connection.execute("DELETE FROM entries WHERE id = 3")
    connection.execute(trigger)
    connection.close()
    script._check(tmp_path, outcome, head, dead=0)
    script._check(tmp_path, outcome, "", dead=0)
    assert [failure.split(":")[0] for failure in outcome.failures] == [
        "chain",
        "charged",
        "kept",
        "covered",
    ]


def test_the_crash_test_prints_a_table_or_json_and_fails_with_1(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--kills", "12", "--seed", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["kills"], found["failures"]) == (True, 12, [])
    assert script.main(["--kills", "300", "--defect", "settle-below-truth"]) == 1
    text = capsys.readouterr().out
    assert "FAILED  covered" in text
    assert text.endswith("not ok\n")
    with pytest.raises(SystemExit) as caught:
        script.main(["--kills", "0"])
    assert caught.value.code == 2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"
