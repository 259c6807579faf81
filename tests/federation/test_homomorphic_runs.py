"""Whole runs under encryption: the same policy, everything charged, and no key left anywhere."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import privfedrl.federation.simulation as simulation
from privfedrl.audit import verify_transcripts
from privfedrl.errors import (
    BudgetExceeded,
    ConfigurationError,
    LedgerIntegrity,
    ProtocolError,
    RemoteProtocolError,
    RoundAborted,
)
from privfedrl.federation.participants import AUDITOR, KEY_AUTHORITY, Participants
from privfedrl.federation.report import write_report
from privfedrl.federation.run_directory import METRICS, ORACLE, RunDirectory
from privfedrl.federation.setup import round_setup
from privfedrl.federation.simulate import Run, Runtime, simulate
from privfedrl.federation.trustee import SumAuditor, Trustee
from privfedrl.he import HETranscript, LocalVault, Vault
from privfedrl.he.frames import Kind
from privfedrl.parties import Registry
from privfedrl.plan import MeanReturnRelease, Plan
from privfedrl.primitives.random import DeterministicEntropy, system_entropy
from privfedrl.privacy import Charge, Ledger
from privfedrl.secagg import Transcript

ONE = Runtime(workers=1)
ROUNDS = 2
SHORT: dict[str, dict[str, Any]] = {"federation": {"rounds": ROUNDS}}


class Killed(BaseException):
    """Stands for the end of the process: no handler of the library may swallow it."""


def run(plan: Plan, out: Path, **changes: Any) -> Run:
    return simulate(plan, **({"out": out, "seed": 3, "runtime": ONE} | changes))


def rows(path: Path, name: str = METRICS) -> list[dict[str, Any]]:
    return RunDirectory(path).rows(name)


def ledger(path: Path, name: str) -> Ledger:
    return Ledger.open(path / "agents" / name / "ledger.db", read_only=True)


def releases(path: Path, name: str) -> list[str]:
    """round/attempt of everything that ``name`` has charged, in order."""
    with ledger(path, name) as found:
        return [one.charge.release_id.partition("/")[2] for one in found.reservations()]


def records(path: Path) -> list[bytes]:
    return [one.read_bytes() for one in sorted((path / "transcript").glob("*.bin"))]


def survivors(path: Path) -> list[tuple[str, ...]]:
    """As the signed records say."""
    registry = Registry.load(path / "registry.json")
    return [
        (HETranscript if data[:4] == b"PFHE" else Transcript).from_bytes(data).survivors(registry)
        for data in records(path)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """For runs that several tests read; in memory where the system allows it, as ``tmp_path``."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path_factory.mktemp("runs")
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as found:
        yield Path(found)


def vaults_by(patch: pytest.MonkeyPatch, vault: Callable[[], Any]) -> None:
    """Every trustee of a run takes its vaults from ``vault``."""
    patch.setattr(
        simulation, "Trustee", lambda *args, **kwargs: Trustee(*args, vault=vault, **kwargs)
    )


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vaults without a process, where the process is not the point: each costs 0.3 s."""
    vaults_by(monkeypatch, LocalVault)


# --- bit for bit --------------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "bfv": {"kind": "bfv"},
    "bfv, auditor": {"kind": "bfv", "readding": "auditor"},
    "bfv, nobody re-adds": {"kind": "bfv", "readding": "none"},
    "bfv, wide": {"kind": "bfv", "parameter_set": "bfv-4096-wide"},
    "bfv, compact": {"kind": "bfv", "parameter_set": "bfv-4096-compact"},
    "bfv, 192": {"kind": "bfv", "parameter_set": "bfv-4096-192"},
    "ckks": {"kind": "ckks"},
}
LAYERS: dict[str, dict[str, dict[str, Any]]] = {
    "trajectory": {
        **SHORT,
        "privacy": {"mean_return": MeanReturnRelease(low=0.0, high=60.0, weight=0.5)},
        "simulation": {"dropouts_per_round": 2},
    },
    "agent": {
        "privacy": {"unit": "agent", "epsilon": 20.0},
        "federation": {"strategy": "fedavg", "rounds": ROUNDS},
        "training": {"local_steps": 2, "local_learning_rate": 0.1},
        "simulation": {"dropouts_per_round": 1},
    },
    "64-bit ring": {
        **SHORT,
        "encoding": {"ring_bits": 64},
        "simulation": {"dropouts_per_round": 2},
    },
}


@pytest.fixture(scope="module")
def pairwise(folder: Path, make_plan: Callable[..., Plan]) -> dict[str, Run]:
    """The masked run of each layer, that all others are compared with."""
    return {
        name: run(
            make_plan(layer),
            folder / "pairwise" / name,
            entropy=DeterministicEntropy(b"a"),
        )
        for name, layer in LAYERS.items()
    }


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("layer", "variant"),
    [
        *(("trajectory", name) for name in VARIANTS),
        *(("agent", name) for name in ("bfv", "ckks")),
        ("64-bit ring", "bfv"),
    ],
)
def test_the_policy_is_bit_for_bit_that_of_masking_dropouts_included(
    tmp_path: Path,
    make_plan: Callable[..., Plan],
    pairwise: dict[str, Run],
    layer: str,
    variant: str,
) -> None:
    masked = pairwise[layer]
    plan = make_plan(LAYERS[layer], protection=VARIANTS[variant])
    other = run(plan, tmp_path / "run", entropy=DeterministicEntropy(b"a"))
    assert np.array_equal(other.parameters, masked.parameters)
    assert other.parameters.tobytes() == masked.parameters.tobytes()
    assert survivors(other.path) == survivors(masked.path)
    assert any(len(names) < 6 for names in survivors(masked.path))  # somebody did drop out
    assert other.summary.epsilon == masked.summary.epsilon
    for mine, theirs in zip(rows(other.path), rows(masked.path), strict=True):
        for key in ("survivors", "policy_sha256", "attempt", "released_mean_return", "epsilon"):
            assert mine[key] == theirs[key]
    assert plan.digest != masked.plan.digest


# --- a run with the system's entropy ------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(folder: Path, make_plan: Callable[..., Plan]) -> dict[str, Run]:
    """One run per way of re-adding; real vaults, system entropy. Read only."""
    return {
        readding: run(
            make_plan(SHORT, protection={"kind": "bfv", "readding": readding}),
            folder / "finished" / readding,
        )
        for readding in ("key-authority", "auditor", "none")
    }


@pytest.mark.parametrize("readding", ["key-authority", "auditor", "none"])
def test_everybody_who_charges_holds_one_settled_entry_per_round(
    finished: dict[str, Run], readding: str
) -> None:
    done = finished[readding]
    event = round_setup(done.plan).event(6 - 1)  # all agents less the colluder
    names = sorted(path.name for path in (done.path / "agents").iterdir())
    assert names == [*(f"agent-{index:03d}" for index in range(6)), KEY_AUTHORITY]
    for name in names:
        with ledger(done.path, name) as own:
            found = own.verify()
            assert (found.reservations, found.settled) == (ROUNDS, ROUNDS)
            assert [one.realised for one in own.reservations()] == [event] * ROUNDS
        assert releases(done.path, name) == [f"{index}/0" for index in range(ROUNDS)]
    with done.ledger as own:
        assert own.verify().settled == ROUNDS
        assert [one.realised for one in own.reservations()] == [event] * ROUNDS
        assert done.summary.epsilon == own.spent().epsilon <= done.plan.privacy.epsilon


@pytest.mark.parametrize("readding", ["key-authority", "auditor", "none"])
def test_the_records_of_a_run_verify_as_one_chain_and_name_the_trustees_ledger(
    finished: dict[str, Run], readding: str
) -> None:
    done = finished[readding]
    registry = Registry.load(done.path / "registry.json")
    report = verify_transcripts(records(done.path), registry)
    assert report.ok, report
    assert [one.round for one in report.rounds] == list(range(ROUNDS))
    expected = "homomorphic encryption with a key authority"
    assert {one.protection for one in report.rounds} == {expected}
    assert [one.survivors for one in report.rounds] == [registry.agents] * ROUNDS
    with ledger(done.path, KEY_AUTHORITY) as own:
        heads = [
            HETranscript.from_bytes(data).receipt.ledger_head.hex() for data in records(done.path)
        ]
        assert heads[-1] == own.head
        for head in heads:
            own.verify(anchor=head)


def test_two_runs_with_system_entropy_never_release_the_same_policy(
    finished: dict[str, Run],
) -> None:
    policies = {done.parameters.tobytes() for done in finished.values()}
    assert len(policies) == 3


@pytest.mark.usefixtures("in_process")
def test_an_encrypted_fleet_learns(tmp_path: Path, make_plan: Callable[..., Plan]) -> None:
    """From 24 steps to more than 60 of at most 200, with noise.

    Over 8 runs with fresh entropy the last return was 182 to 200, standard deviation 6: the limit
    is above 20 standard deviations away, so the false-positive rate is below 1e-6.
    """
    plan = make_plan(
        fleet={"trajectories": 12, "horizon": 200},
        privacy={"epsilon": 50.0},
        federation={"rounds": 12, "learning_rate": 0.1},
        simulation={"evaluation_interval": 12},
        protection={"kind": "bfv"},
    )
    done = run(plan, tmp_path / "run")
    assert done.summary.mean_return_first < 30
    assert done.summary.mean_return_last > 60
    assert done.summary.epsilon is not None
    assert done.summary.epsilon <= 50.0


# --- what lies on disk --------------------------------------------------------------------------

RUN_FILES = {
    *("run.json", "plan.toml", "registry.json", "lock", "ledger.db", "checkpoint.bin"),
    *("metrics.jsonl", "oracle_simulation_only.jsonl", "heterogeneity_simulation_only.json"),
    *("summary.json", "statement.json"),
    *("policy.safetensors", "transcript/000000.bin", "transcript/000001.bin"),
}


@pytest.mark.parametrize("readding", ["key-authority", "auditor", "none"])
def test_a_run_leaves_exactly_these_files_and_none_is_for_a_secret_key(
    finished: dict[str, Run], readding: str
) -> None:
    people = [f"agent-{index:03d}" for index in range(6)]
    services = [KEY_AUTHORITY, *([AUDITOR] if readding == "auditor" else [])]
    expected = RUN_FILES | {f"keys/{name}.json" for name in (*people, "coordinator", *services)}
    for name in (*people, KEY_AUTHORITY):  # the auditor keeps nothing
        expected |= {f"agents/{name}/ledger.db", f"agents/{name}/journal.db"}
    path = finished[readding].path
    found = {str(one.relative_to(path)) for one in path.rglob("*") if one.is_file()}
    # beside an open SQLite file, and after it was only read
    side_files = {f"{name}-{kind}" for name in expected for kind in ("wal", "shm")}
    assert found - side_files == expected
    for name in (*people, "coordinator", *services):
        key = json.loads((path / "keys" / f"{name}.json").read_text())
        assert sorted(key) == ["format", "name", "secret_key"]
        assert key["format"] == "pfrl-identity/1"
        assert len(bytes.fromhex(key["secret_key"])) == 32  # Ed25519, and nothing beside it
        assert (path / "keys" / f"{name}.json").stat().st_mode & 0o077 == 0


def test_no_file_of_a_run_has_room_for_a_secret_key_beside_what_is_accounted_for(
    finished: dict[str, Run],
) -> None:
    """A ternary secret of 4096 coefficients has 4096 log2(3) / 8 = 811 bytes of entropy."""
    path = finished["key-authority"].path
    least = 811
    for one in path.rglob("*"):
        accounted = one.parent.name == "transcript" or one.name in RUN_FILES
        if one.is_file() and not accounted and ".db" not in one.name:
            assert one.stat().st_size < least, one
    with contextlib.closing(sqlite3.connect(path / "agents" / KEY_AUTHORITY / "journal.db")) as db:
        tables = [
            name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")
        ]
        assert tables
        for table in tables:
            for row in db.execute(f"SELECT * FROM {table}"):
                assert all(len(cell) < least for cell in row if isinstance(cell, bytes | str))
    for data in records(path):  # every field of a record is a signed frame of a known kind
        body = HETranscript.from_bytes(data).body
        frames = (body.config, body.roster, *body.commits, body.receipt)
        kinds = [Kind(frame[7]) for frame in frames]
        assert kinds == [Kind.CONFIG, Kind.ROSTER, *[Kind.COMMIT] * 6, Kind.RECEIPT]
        assert len(data) < sum(map(len, frames)) + 400


def test_a_finished_run_leaves_no_process(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Vault] = []

    class Recorded(Vault):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    vaults_by(monkeypatch, Recorded)
    run(make_plan(SHORT, protection={"kind": "bfv"}), tmp_path / "run")
    assert len(made) == ROUNDS + 1  # one a round, and the one that was kept warm
    assert not any(one.alive for one in made)


def test_a_run_that_fails_leaves_no_process_either(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Vault] = []

    class Dying(Vault):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

        def decrypt(self, ciphertexts: bytes, count: int) -> Any:
            raise Killed

    vaults_by(monkeypatch, Dying)
    with pytest.raises(Killed):
        run(make_plan(SHORT, protection={"kind": "bfv"}), tmp_path / "run")
    assert made
    assert not any(one.alive for one in made)


# --- the report ---------------------------------------------------------------------------------


def test_the_report_of_an_encrypted_run_names_its_protection(
    finished: dict[str, Run], tmp_path: Path
) -> None:
    shutil.copytree(finished["none"].path, tmp_path / "run")
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "bfv, threshold 4 of 6" in page
    assert "pfrl-he/1 with bfv-4096-std: BFV, N = 4096" in " ".join(page.split())
    assert "GUARANTEE STATEMENT" in page
    assert "NO CRYPTOGRAPHIC PROTECTION" not in page
    assert "Nobody re-adds: a lying coordinator" in " ".join(page.split())


# --- death between charge and decryption --------------------------------------------------------

DYING = """
import os, signal, sys
from pathlib import Path
import privfedrl.federation.simulation as simulation
from privfedrl.federation.simulate import Runtime, simulate
from privfedrl.federation.trustee import Trustee
from privfedrl.he import LocalVault
from privfedrl.plan import Plan

used = 0

class Dying(LocalVault):
    def decrypt(self, ciphertexts, count):
        global used
        used += 1
        if used == 2:  # in the second round
            os.kill(os.getpid(), signal.SIGKILL)
        return super().decrypt(ciphertexts, count)

simulation.Trustee = lambda *args, **kwargs: Trustee(*args, vault=Dying, **kwargs)
plan, out = Plan.from_toml(sys.argv[1]), Path(sys.argv[2])
simulate(plan, out=out, seed=3, runtime=Runtime(workers=1))
"""


def test_a_process_killed_between_charge_and_decryption_has_charged_and_never_opens_it(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, out = make_plan(protection={"kind": "bfv"}), tmp_path / "run"
    (tmp_path / "plan.toml").write_text(plan.to_toml())
    command = [sys.executable, "-c", DYING, str(tmp_path / "plan.toml"), str(out)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [row["round"] for row in rows(out)] == [0]
    assert releases(out, KEY_AUTHORITY) == ["0/0", "1/0"]  # durable, though nothing was opened
    with ledger(out, KEY_AUTHORITY) as own:
        assert own.verify().settled == 2

    opened: list[list[str]] = []

    class Recorded(LocalVault):
        def decrypt(self, ciphertexts: bytes, count: int) -> Any:
            opened.append(releases(out, KEY_AUTHORITY))
            return super().decrypt(ciphertexts, count)

    vaults_by(monkeypatch, Recorded)
    resumed = run(plan, out, resume=True)
    assert resumed.summary.rounds == 3
    assert [(row["round"], row["attempt"]) for row in rows(out)] == [(0, 0), (1, 1), (2, 0)]
    # at each decryption the charge of that very attempt was already on disk, and "1/0" is no more
    charged = ["0/0", "1/0", "1/1", "2/0"]
    assert opened == [charged[:3], charged]
    assert releases(out, KEY_AUTHORITY) == charged
    assert releases(out, "agent-000") == charged
    returns = [row["agent_returns"] for row in rows(out, ORACLE)]
    assert len({json.dumps(one) for one in returns}) == 3
    assert verify_transcripts(records(out), Registry.load(out / "registry.json")).ok


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [
        (Trustee, "_charge", False),
        (Trustee, "_charge", True),
        (Vault, "open", True),
        (Vault, "decrypt", True),
        (RunDirectory, "save", False),
    ],
    ids=["charge, before", "charge", "key", "decryption", "checkpoint, before"],
)
def test_a_run_that_died_beside_any_step_of_the_trustee_goes_on(
    tmp_path: Path,
    make_plan: Callable[..., Plan],
    killed_at: Any,
    owner: Any,
    name: str,
    after: bool,
) -> None:
    plan, out = make_plan(SHORT, protection={"kind": "bfv"}), tmp_path / "run"
    with killed_at(owner, name, call=2, after=after):
        run(plan, out)
    run(plan, out, resume=True)
    assert [row["round"] for row in rows(out)] == [0, 1]
    # what was charged before it died stays charged, and the round is made anew
    charged = (name, after) not in ((("_charge", False)), ("open", True))
    expected = ["0/0", *(["1/0"] if charged else []), "1/1"]
    assert releases(out, KEY_AUTHORITY) == expected
    with ledger(out, KEY_AUTHORITY) as own:
        assert own.verify().settled == len(expected)


# --- resuming -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halted_once(folder: Path, make_plan: Callable[..., Plan]) -> tuple[Plan, Path, bytes]:
    """A run that died after two of three rounds, and its trustee's ledger after the first."""
    plan, out = make_plan(protection={"kind": "bfv"}), folder / "halted"
    original, copies = RunDirectory.save, list[bytes]()

    def dying(self: RunDirectory, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        own = self.agent(KEY_AUTHORITY) / "ledger.db"
        with contextlib.closing(sqlite3.connect(own)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        copies.append(own.read_bytes())
        if len(copies) == 2:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "save", dying)
        with pytest.raises(Killed):
            run(plan, out)
    return plan, out, copies[0]


@pytest.fixture
def halted(halted_once: tuple[Plan, Path, bytes], tmp_path: Path) -> tuple[Plan, Path, bytes]:
    plan, template, older = halted_once
    shutil.copytree(template, tmp_path / "run")
    return plan, tmp_path / "run", older


@pytest.mark.usefixtures("in_process")
def test_an_interrupted_run_goes_on_from_the_same_anchors(
    halted: tuple[Plan, Path, bytes],
) -> None:
    plan, out, _ = halted
    anchors = RunDirectory(out).anchors()
    assert sorted(anchors) == sorted(
        [*(f"agent-{index:03d}" for index in range(6)), "coordinator", KEY_AUTHORITY]
    )
    done = run(plan, out, resume=True)
    assert [(row["round"], row["attempt"]) for row in rows(out)] == [(0, 0), (1, 0), (2, 0)]
    assert RunDirectory(out).anchors() != anchors
    for name, head in anchors.items():  # what was anchored is still there
        own = done.ledger if name == "coordinator" else ledger(out, name)
        with own:
            own.verify(anchor=head)
    assert releases(out, KEY_AUTHORITY) == ["0/0", "1/0", "2/0"]
    assert verify_transcripts(records(out), Registry.load(out / "registry.json")).ok


def _unlink(path: Path) -> None:
    for one in path.parent.glob(f"{path.name}*"):
        one.unlink()


def test_a_trustees_ledger_that_was_rolled_back_is_refused(
    halted: tuple[Plan, Path, bytes],
) -> None:
    plan, out, older = halted
    path = out / "agents" / KEY_AUTHORITY / "ledger.db"
    _unlink(path)
    path.write_bytes(older)
    with pytest.raises(LedgerIntegrity, match="anchor"):
        run(plan, out, resume=True)
    assert len(rows(out)) == 2


def test_a_trustees_ledger_that_was_deleted_is_not_replaced_by_an_empty_one(
    halted: tuple[Plan, Path, bytes],
) -> None:
    plan, out, _ = halted
    _unlink(out / "agents" / KEY_AUTHORITY / "ledger.db")
    with pytest.raises(LedgerIntegrity, match="anchor"):
        run(plan, out, resume=True)


def test_a_trustees_ledger_that_was_edited_is_refused(halted: tuple[Plan, Path, bytes]) -> None:
    plan, out, _ = halted
    with contextlib.closing(sqlite3.connect(out / "agents" / KEY_AUTHORITY / "ledger.db")) as db:
        triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type='trigger'").fetchall()
        for name, _ in triggers:
            db.execute(f"DROP TRIGGER {name}")
        db.execute("UPDATE entries SET hash = zeroblob(32) WHERE id = 2")
        for _, sql in triggers:
            db.execute(sql)
        db.commit()
    with pytest.raises(LedgerIntegrity):
        run(plan, out, resume=True)


@pytest.mark.parametrize(
    "changes",
    [{"kind": "pairwise"}, {"readding": "none"}, {"parameter_set": "bfv-4096-wide"}],
    ids=["kind", "re-adding", "set"],
)
def test_a_run_is_not_continued_under_another_protection(
    halted: tuple[Plan, Path, bytes], changes: dict[str, Any]
) -> None:
    plan, out, _ = halted
    with pytest.raises(ConfigurationError, match="cannot change its plan"):
        run(plan.replace("protection", **changes), out, resume=True)


@pytest.mark.usefixtures("in_process")
def test_a_trustees_journal_that_knows_later_rounds_opens_none(
    halted: tuple[Plan, Path, bytes],
) -> None:
    """Somebody else used its key material: every attempt is given up, none is decrypted."""
    plan, out, _ = halted
    with contextlib.closing(sqlite3.connect(out / "agents" / KEY_AUTHORITY / "journal.db")) as db:
        db.execute("UPDATE spent SET round = 99")
        db.commit()
    with pytest.raises(RoundAborted, match="Deadline: key-authority did not answer"):
        run(plan, out, resume=True)
    assert releases(out, KEY_AUTHORITY) == ["0/0", "1/0"]


# --- those who do not answer --------------------------------------------------------------------


def refusing(patch: pytest.MonkeyPatch, owner: type[Any], kind: Kind, *, times: int) -> list[int]:
    """``owner`` is given ``kind`` and does not answer, the first ``times`` times."""
    original, seen = owner.receive, list[int]()

    def receive(self: Any, data: bytes) -> Any:
        if data[:4] == b"PFHE" and data[7] == kind:
            seen.append(1)
            if len(seen) <= times:
                raise RemoteProtocolError("refused on purpose")
        return original(self, data)

    patch.setattr(owner, "receive", receive)
    return seen


@pytest.mark.parametrize(
    ("owner", "kind"),
    [
        (Trustee, Kind.CONFIG),
        (Trustee, Kind.SEALED),
        (SumAuditor, Kind.SEALED),
    ],
)
@pytest.mark.usefixtures("in_process")
def test_a_service_that_does_not_answer_costs_an_attempt_and_the_next_has_fresh_trajectories(
    tmp_path: Path,
    make_plan: Callable[..., Plan],
    monkeypatch: pytest.MonkeyPatch,
    owner: type[Any],
    kind: Kind,
) -> None:
    refusing(monkeypatch, owner, kind, times=1)
    plan = make_plan(SHORT, protection={"kind": "bfv", "readding": "auditor"})
    done = run(plan, tmp_path / "run")
    found = [(row["attempt"], row["aborted_before"]) for row in rows(done.path)]
    assert found == [(1, ["Deadline"]), (0, [])]
    assert releases(done.path, KEY_AUTHORITY) == ["0/1", "1/0"]
    uploaded = kind is Kind.SEALED
    assert releases(done.path, "agent-000") == [*(["0/0"] if uploaded else []), "0/1", "1/0"]
    with ledger(done.path, "agent-000") as own:
        groups = [one.charge.group for one in own.reservations()]
        assert len(set(groups)) == len(groups)
        assert own.verify().settled == ROUNDS
    with done.ledger as own:
        assert own.verify().reservations == ROUNDS + 1  # the lost attempt stands at its worst case


@pytest.mark.usefixtures("in_process")
def test_a_service_that_never_answers_ends_the_run_and_opens_nothing(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = refusing(monkeypatch, Trustee, Kind.SEALED, times=99)
    with pytest.raises(RoundAborted, match="Deadline"):
        run(make_plan(protection={"kind": "bfv"}), tmp_path / "run")
    assert len(seen) == simulation.MAX_ATTEMPTS
    assert releases(tmp_path / "run", KEY_AUTHORITY) == []
    assert rows(tmp_path / "run") == []


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("kind", [Kind.CONTEXT, Kind.ROSTER, Kind.RECEIPT])
def test_agents_that_refuse_are_dropouts(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    original = simulation.Agent.receive

    def receive(self: Any, data: bytes) -> Any:
        if self.name in ("agent-000", "agent-004") and data[7] == kind:
            raise RemoteProtocolError("refused on purpose")
        return original(self, data)

    monkeypatch.setattr(simulation.Agent, "receive", receive)
    done = run(make_plan(SHORT, protection={"kind": "bfv"}), tmp_path / "run")
    in_sum = 6 if kind is Kind.RECEIPT else 4
    assert [len(names) for names in survivors(done.path)] == [in_sum] * ROUNDS
    assert all(row["aborted_before"] == [] for row in rows(done.path))
    event = round_setup(done.plan).event(in_sum - 1)
    with ledger(done.path, KEY_AUTHORITY) as own:
        assert [one.realised for one in own.reservations()] == [event] * ROUNDS
    with ledger(done.path, "agent-000") as own:  # charged only for what may have left it
        found = own.verify()
        assert (found.reservations, found.settled) == (ROUNDS * (in_sum == 6), 0)


@pytest.mark.usefixtures("in_process")
def test_too_many_refusals_open_nothing_and_the_trustee_charges_nothing(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, data: bytes) -> Any:
        raise ProtocolError("refused on purpose")

    monkeypatch.setattr(simulation.Agent, "receive", refuse)
    with pytest.raises(RoundAborted, match="ThresholdNotMet"):
        run(make_plan(protection={"kind": "bfv"}), tmp_path / "run")
    assert releases(tmp_path / "run", KEY_AUTHORITY) == []


@pytest.mark.usefixtures("in_process")
def test_the_trustees_budget_ends_a_run_though_the_coordinators_does_not(
    tmp_path: Path, make_plan: Callable[..., Plan], agent_unit: dict[str, dict[str, Any]]
) -> None:
    """The coordinator lost its ledger's past; the key authority did not."""
    plan, out = make_plan(agent_unit, protection={"kind": "bfv"}), tmp_path / "run"
    setup = round_setup(plan)
    directory = RunDirectory(out)
    with directory.locked(), Participants.open(directory, plan, system_entropy) as people:
        for index in range(plan.federation.rounds):
            people.ledgers[KEY_AUTHORITY].reserve(
                Charge(
                    plan_digest=plan.digest,
                    release_id=f"earlier/{index}",
                    group=f"earlier/{index}",
                    unit=plan.unit,
                    adversary=setup.adversary,
                    event=setup.worst_event,
                    epsilon=setup.budget,
                    delta=setup.accounted_delta,
                )
            )
    with pytest.raises(BudgetExceeded, match="nothing was charged"):
        run(plan, out)
    assert rows(out) == []
    assert records(out) == []
