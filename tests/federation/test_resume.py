"""A run that dies at any instant goes on, hides no release and repeats no round."""

from __future__ import annotations

import contextlib
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import privfedrl.federation.simulation as simulation
from privfedrl.errors import ConfigurationError, LedgerIntegrity, PrivfedrlError, StorageError
from privfedrl.federation.participants import Participants
from privfedrl.federation.run_directory import METRICS, ORACLE, RunDirectory
from privfedrl.federation.simulate import Run, Runtime, simulate
from privfedrl.plan import Plan
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.privacy import Ledger

ONE = Runtime(workers=1)
ROUNDS = 3


def run(plan: Plan, out: Path, **changes: Any) -> Run:
    return simulate(plan, **({"out": out, "seed": 3, "runtime": ONE} | changes))


def ledgers(out: Path) -> dict[str, Ledger]:
    found = {"coordinator": out / "ledger.db"}
    found |= {path.parent.name: path for path in sorted(out.glob("agents/*/ledger.db"))}
    return {name: Ledger.open(path, read_only=True) for name, path in found.items()}


def check_complete(out: Path, *, kills: int, rounds: int = ROUNDS) -> None:
    """Whatever happened before: every round once, every ledger whole, at most one more charge."""
    for name in (METRICS, ORACLE):
        assert [row["round"] for row in RunDirectory(out).rows(name)] == list(range(rounds))
    transcripts = sorted(path.name for path in (out / "transcript").iterdir())
    assert transcripts == [f"{index:06d}.bin" for index in range(rounds)]
    assert (out / "policy.safetensors").exists()
    for ledger in ledgers(out).values():
        with ledger:
            found = ledger.verify()
            assert rounds <= found.reservations <= rounds + kills
            assert found.settled >= rounds
            groups = [one.charge.group for one in ledger.reservations()]
            assert len(set(groups)) == len(groups)
    assert not [path for path in out.rglob(".*") if path.is_file()]  # no half-written files


# --- death between any two writes ---------------------------------------------------------------

POINTS: dict[str, tuple[Any, str]] = {
    "plan and header": (RunDirectory, "create"),
    "a charge": (Ledger, "reserve"),
    "a settlement": (Ledger, "settle"),
    "a row": (RunDirectory, "append"),
    "a transcript": (RunDirectory, "save_transcript"),
    "a checkpoint": (RunDirectory, "save"),
    "the policy": (simulation, "save_policy"),
    "the statement": (simulation, "run_statement"),
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("point", POINTS)
def test_a_run_that_died_beside_any_write_goes_on(
    tmp_path: Path, make_plan: Callable[..., Plan], killed_at: Any, point: str, after: bool
) -> None:
    plan = make_plan(federation={"rounds": 2}, fleet={"agents": 5}, protection={"min_clients": 3})
    owner, name = POINTS[point]
    late = {"a charge": 9, "a settlement": 9, "a row": 4, "a transcript": 2, "a checkpoint": 2}
    with killed_at(owner, name, call=late.get(point, 1), after=after):
        run(plan, tmp_path / "run")
    finished = run(plan, tmp_path / "run", resume=True)
    check_complete(tmp_path / "run", kills=1, rounds=2)
    assert finished.summary.rounds == 2


def test_a_row_cut_short_by_a_crash_is_replaced(
    tmp_path: Path, make_plan: Callable[..., Plan], killed_at: Any
) -> None:
    plan, out = make_plan(), tmp_path / "run"
    with killed_at(RunDirectory, "append", call=3, after=True):
        run(plan, out)
    with open(out / METRICS, "a", encoding="utf-8") as file:
        file.write('{"round": 2, "epsi')
    (out / ".privfedrl-partial-checkpoint.bin.abc123").write_bytes(b"half a checkpoint")
    run(plan, out, resume=True)
    check_complete(out, kills=1)


def test_a_resumed_run_continues_bit_for_bit_where_nothing_was_lost(
    tmp_path: Path, make_plan: Callable[..., Plan], killed_at: Any
) -> None:
    """Death after a checkpoint: with replayable entropy the result is that of a whole run."""
    plan = make_plan()
    given = {"entropy": DeterministicEntropy(b"a")}
    whole = run(plan, tmp_path / "whole", **given)
    with killed_at(RunDirectory, "save", call=2, after=True):
        run(plan, tmp_path / "run", **given)
    resumed = run(plan, tmp_path / "run", resume=True, **given)
    assert np.array_equal(whole.parameters, resumed.parameters)
    first, second = (RunDirectory(tmp_path / name).rows(METRICS) for name in ("whole", "run"))
    assert first == second
    check_complete(tmp_path / "run", kills=0)


def test_a_round_that_was_lost_is_made_with_fresh_trajectories_and_fresh_noise(
    tmp_path: Path, make_plan: Callable[..., Plan], killed_at: Any
) -> None:
    plan, out = make_plan(), tmp_path / "run"
    given = {"entropy": DeterministicEntropy(b"a")}
    with killed_at(RunDirectory, "save", call=1, after=False):
        run(plan, out, **given)
    (lost,) = RunDirectory(out).rows(ORACLE)
    run(plan, out, resume=True, **given)
    repeated = RunDirectory(out).rows(ORACLE)[0]
    assert repeated["agent_returns"] != lost["agent_returns"]
    assert RunDirectory(out).rows(METRICS)[0]["attempt"] == 1
    check_complete(out, kills=1)


def test_resuming_a_complete_run_adds_nothing(
    tmp_path: Path, make_plan: Callable[..., Plan]
) -> None:
    out = tmp_path / "run"
    first = run(make_plan(), out)
    before = {path.name: path.read_bytes() for path in out.glob("*.jsonl")}
    again = run(make_plan(), out, resume=True)
    assert np.array_equal(first.parameters, again.parameters)
    assert again.summary == first.summary
    assert before == {path.name: path.read_bytes() for path in out.glob("*.jsonl")}
    check_complete(out, kills=0)


# --- what is refused ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halted_once(
    tmp_path_factory: pytest.TempPathFactory, make_plan: Callable[..., Plan], killed_at: Any
) -> tuple[Plan, Path]:
    plan, out = make_plan(), tmp_path_factory.mktemp("halted") / "run"
    with killed_at(RunDirectory, "save", call=2, after=True):
        run(plan, out)
    return plan, out


@pytest.fixture
def halted(halted_once: tuple[Plan, Path], tmp_path: Path) -> tuple[Plan, Path]:
    """A run with two of three rounds done, in a directory of the test's own."""
    plan, template = halted_once
    shutil.copytree(template, tmp_path / "run")
    return plan, tmp_path / "run"


def test_a_run_is_not_continued_under_another_plan_seed_or_entropy(
    halted: tuple[Plan, Path], make_plan: Callable[..., Plan]
) -> None:
    plan, out = halted
    with pytest.raises(ConfigurationError, match="cannot change its plan"):
        run(make_plan(privacy={"epsilon": 4.0}), out, resume=True)
    with pytest.raises(ConfigurationError, match="seed must be 3"):
        run(plan, out, resume=True, seed=4)
    with pytest.raises(ConfigurationError, match="entropy"):
        run(plan, out, resume=True, entropy=DeterministicEntropy(b""))
    with pytest.raises(StorageError, match="holds a run already"):
        run(plan, out)
    run(plan, out, resume=True, seed=None)
    check_complete(out, kills=0)


def test_two_processes_never_share_a_directory(halted: tuple[Plan, Path]) -> None:
    plan, out = halted
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from privfedrl.federation.run_directory import RunDirectory\n"
        f"with RunDirectory(Path({str(out)!r})).locked():\n"
        "    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StorageError, match="in use by another process"):
            run(plan, out, resume=True)
        other.communicate("")
    run(plan, out, resume=True)
    check_complete(out, kills=0)


def test_a_path_that_cannot_be_a_directory_is_a_storage_error(
    tmp_path: Path, make_plan: Callable[..., Plan]
) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(StorageError, match="run directory"):
        run(make_plan(), tmp_path / "file")
    with pytest.raises(StorageError, match="run directory"):
        run(make_plan(), tmp_path / "file" / "below")


@pytest.mark.parametrize("name", ["checkpoint.bin", "run.json", METRICS, ORACLE])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "noise"])
def test_a_damaged_file_never_continues_silently(
    halted: tuple[Plan, Path], name: str, damage: str
) -> None:
    plan, out = halted
    path = out / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 3] ^= 0x80
    changed = {"flip": bytes(data), "cut": bytes(data[:-5]), "empty": b"", "noise": b"\xff\n\xff\n"}
    path.write_bytes(changed[damage])
    with pytest.raises((StorageError, ConfigurationError)):
        run(plan, out, resume=True)
    with Ledger.open(out / "ledger.db", read_only=True) as ledger:
        assert ledger.verify().reservations == 2  # refused before anything was charged


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_without_its_header_is_not_mistaken_for_a_new_one(
    halted: tuple[Plan, Path], make_plan: Callable[..., Plan], resume: bool
) -> None:
    _, out = halted
    (out / "run.json").unlink()
    with pytest.raises(StorageError, match=r"lost its run\.json"):
        run(make_plan(privacy={"epsilon": 4.0}), out, resume=resume)


def test_a_checkpoint_of_another_run_is_refused(halted: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, out = halted
    run(plan, tmp_path / "other")
    (out / "checkpoint.bin").write_bytes((tmp_path / "other" / "checkpoint.bin").read_bytes())
    with pytest.raises(PrivfedrlError):
        run(plan, out, resume=True)


@contextlib.contextmanager
def edited(path: Path) -> Iterator[sqlite3.Connection]:
    """The ledger without its triggers; they are put back, so that only the rows differ."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type='trigger'").fetchall()
        for name, _ in triggers:
            db.execute(f"DROP TRIGGER {name}")
        yield db
        for _, sql in triggers:
            db.execute(sql)
        db.commit()


LEDGERS = ["ledger.db", "agents/agent-003/ledger.db"]


@pytest.mark.parametrize("ledger", LEDGERS)
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET record = replace(record, 'trajectory', 'agentagent') WHERE id = 1",
        "DELETE FROM entries WHERE id = (SELECT max(id) FROM entries)",
        "DELETE FROM entries WHERE id > 0",
        "UPDATE entries SET hash = zeroblob(32) WHERE id = 2",
    ],
    ids=["edited row", "last row cut", "all rows cut", "edited hash"],
)
def test_an_edited_ledger_stops_a_run(
    halted: tuple[Plan, Path], ledger: str, statement: str
) -> None:
    plan, out = halted
    with edited(out / ledger) as db:
        db.execute(statement)
    with pytest.raises(LedgerIntegrity):
        run(plan, out, resume=True)


@pytest.mark.parametrize("ledger", LEDGERS)
def test_a_ledger_that_was_deleted_is_not_replaced_by_an_empty_one(
    halted: tuple[Plan, Path], ledger: str
) -> None:
    plan, out = halted
    for path in (out / ledger).parent.glob("ledger.db*"):
        path.unlink()
    with pytest.raises(LedgerIntegrity):
        run(plan, out, resume=True)


def test_an_older_copy_of_a_ledger_is_noticed(
    tmp_path: Path, make_plan: Callable[..., Plan], killed_at: Any
) -> None:
    plan, out = make_plan(), tmp_path / "run"
    with killed_at(RunDirectory, "save", call=1, after=True):
        run(plan, out)
    with contextlib.closing(sqlite3.connect(out / "ledger.db")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    copy = (out / "ledger.db").read_bytes()
    run(plan, out, resume=True)
    for path in out.glob("ledger.db*"):
        path.unlink()
    (out / "ledger.db").write_bytes(copy)
    with pytest.raises(LedgerIntegrity, match="anchor"):
        run(plan, out, resume=True)


def test_a_journal_that_refuses_makes_a_dropout_and_no_second_vector(
    halted: tuple[Plan, Path],
) -> None:
    plan, out = halted
    with contextlib.closing(sqlite3.connect(out / "agents/agent-001/journal.db")) as db:
        db.execute("UPDATE spent SET round = 99")
        db.commit()
    run(plan, out, resume=True)
    last = RunDirectory(out).rows(METRICS)[-1]
    assert "agent-001" not in last["survivors"]
    assert len(last["survivors"]) == 5


# --- a full disk --------------------------------------------------------------------------------


def test_a_full_disk_is_a_storage_error_keeps_earlier_rounds_and_can_be_resumed(
    halted: tuple[Plan, Path],
) -> None:
    """No file may grow beyond 1 byte more than metrics.jsonl has: the next append fails."""
    plan, out = halted
    kept = (out / METRICS).read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = max(path.stat().st_size for path in out.rglob("*.db*"))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limit[1]))
        with pytest.raises(StorageError):
            run(plan, out, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert (out / METRICS).read_bytes()[: len(kept)] == kept
    run(plan, out, resume=True)
    check_complete(out, kills=1)


@pytest.mark.parametrize("name", ["append", "save", "save_transcript"])
def test_a_disk_that_fills_at_any_file_keeps_what_was_there(
    halted: tuple[Plan, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plan, out = halted
    original = getattr(RunDirectory, name)

    def full(self: RunDirectory, *args: Any, **kwargs: Any) -> None:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, limit[1]))
            original(self, *args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, before)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, name, full)
        with pytest.raises(StorageError, match="cannot be written"):
            run(plan, out, resume=True)
    saved = RunDirectory(out).restore()
    assert saved is not None
    assert saved[0].round == 2
    run(plan, out, resume=True)
    check_complete(out, kills=1)


# --- a real kill --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_process_goes_on_after_every_one_of_four_kills(
    tmp_path: Path, make_plan: Callable[..., Plan]
) -> None:
    """SIGKILL at random instants of `privfedrl train`, then --resume, four times over one run."""
    rounds, chance = 40, random.Random(11)
    plan, out = make_plan(federation={"rounds": rounds}), tmp_path / "run"
    (tmp_path / "plan.toml").write_text(plan.to_toml())
    command = [sys.executable, "-m", "privfedrl", "train", str(tmp_path / "plan.toml")]
    command += ["--out", str(out), "--seed", "3", "--workers", "1"]
    kills = 0
    for _ in range(4):
        with subprocess.Popen(
            [*command, "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            before = len(RunDirectory(out).rows(METRICS))
            deadline = time.monotonic() + 60
            while len(RunDirectory(out).rows(METRICS)) < before + 3:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(chance.uniform(0.0, 0.2))
            process.kill()
            kills += process.wait() == -signal.SIGKILL
    assert kills == 4
    subprocess.run([*command, "--resume"], check=True, capture_output=True)
    check_complete(out, kills=kills, rounds=rounds)


def test_participants_notice_a_ledger_that_nobody_has(
    halted: tuple[Plan, Path],
) -> None:
    plan, out = halted
    with (
        Participants.open(RunDirectory(out), plan, DeterministicEntropy(b"")) as participants,
        pytest.raises(LedgerIntegrity, match="gone"),
    ):
        participants.verify({"agent-999": "00" * 32})
