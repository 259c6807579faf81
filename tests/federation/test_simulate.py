"""A whole federation in one process: reproducible where it may be, charged where it must be."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import privfedrl.federation.simulation as simulation
from privfedrl.errors import (
    BudgetExceeded,
    ConfigurationError,
    EnvironmentFault,
    PrivacyError,
    RoundAborted,
)
from privfedrl.federation import fleet_experience
from privfedrl.federation.run_directory import HETEROGENEITY, METRICS, ORACLE, RunDirectory
from privfedrl.federation.simulate import Progress, Runtime, simulate
from privfedrl.federation.simulated_round import DROPOUT_STAGES, dropout_schedule
from privfedrl.plan import Plan
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.privacy import Ledger
from privfedrl.training import load_policy

ONE = Runtime(workers=1)
SHORT: dict[str, dict[str, Any]] = {"federation": {"rounds": 2}}


def released(path: Path) -> list[dict[str, Any]]:
    return RunDirectory(path).rows(METRICS)


def oracle(path: Path) -> list[dict[str, Any]]:
    return RunDirectory(path).rows(ORACLE)


def test_the_same_seeds_give_the_same_run(tmp_path: Path, make_plan: Callable[..., Plan]) -> None:
    runs = [
        simulate(
            make_plan(),
            out=tmp_path / name,
            seed=3,
            runtime=ONE,
            entropy=DeterministicEntropy(b"a"),
        )
        for name in ("a", "b")
    ]
    assert np.array_equal(runs[0].parameters, runs[1].parameters)
    assert released(tmp_path / "a") == released(tmp_path / "b")
    timeless = [
        [{k: v for k, v in row.items() if k != "stage_s"} for row in oracle(tmp_path / name)]
        for name in ("a", "b")
    ]
    assert timeless[0] == timeless[1]


def test_a_seed_fixes_the_experience_of_the_first_round_and_never_the_noise(
    tmp_path: Path, make_plan: Callable[..., Plan]
) -> None:
    plan = make_plan(federation={"rounds": 1})
    runs = [simulate(plan, out=tmp_path / name, seed=3, runtime=ONE) for name in ("a", "b")]
    assert runs[0].mean_return == runs[1].mean_return
    assert not np.array_equal(runs[0].parameters, runs[1].parameters)
    other = simulate(plan, out=tmp_path / "c", seed=4, runtime=ONE)
    assert oracle(other.path)[0]["agent_returns"] != oracle(runs[0].path)[0]["agent_returns"]


@pytest.mark.parametrize("unit", ["trajectory", "agent"])
def test_protection_changes_no_bit_of_the_result(
    tmp_path: Path,
    make_plan: Callable[..., Plan],
    agent_unit: dict[str, dict[str, Any]],
    unit: str,
) -> None:
    """Masked sums are the plain sums, in every round, dropouts at every stage included."""
    layers = [agent_unit] if unit == "agent" else []
    found = {}
    for kind in ("pairwise", "none"):
        plan = make_plan(*layers, protection={"kind": kind}, simulation={"dropouts_per_round": 2})
        found[kind] = simulate(
            plan, out=tmp_path / kind, seed=3, runtime=ONE, entropy=DeterministicEntropy(b"a")
        )
    assert np.array_equal(found["pairwise"].parameters, found["none"].parameters)
    for with_masks, without in zip(
        released(tmp_path / "pairwise"), released(tmp_path / "none"), strict=True
    ):
        assert with_masks["survivors"] == without["survivors"]
        assert with_masks["policy_sha256"] == without["policy_sha256"]


def test_a_run_leaves_everything_that_was_promised(
    tmp_path: Path, make_plan: Callable[..., Plan]
) -> None:
    plan = make_plan(privacy={"mean_return": None})
    seen: list[Progress] = []
    run = simulate(plan, out=tmp_path / "run", seed=3, runtime=ONE, progress=seen.append)
    assert [now.round for now in seen] == [1, 2, 3]
    assert all(now.survivors == 6 and now.dropouts == 0 for now in seen)
    assert len(list((run.path / "transcript").glob("*.bin"))) == 3
    loaded = load_policy(
        run.path / "policy.safetensors",
        simulation.round_setup(plan).policy,
        plan_digest=plan.digest,
    )
    assert np.array_equal(loaded, run.parameters)
    with run.ledger as ledger:
        assert ledger.verify().settled == 3
        assert run.summary.ledger_head == ledger.head
        assert run.summary.epsilon == ledger.spent().epsilon <= plan.privacy.epsilon
    assert run.summary.env_steps == sum(row["env_steps"] for row in oracle(run.path))
    assert run.mean_return == oracle(run.path)[-1]["mean_return"]
    assert run.summary.bytes_up_per_agent_round <= plan.check().bytes_up_per_agent_round


def test_released_and_oracle_figures_are_in_different_files(
    tmp_path: Path, make_plan: Callable[..., Plan]
) -> None:
    simulate(make_plan(SHORT), out=tmp_path / "run", seed=3, runtime=ONE)
    names = {"released": set(), "oracle": set()}
    for row in released(tmp_path / "run"):
        names["released"] |= set(row)
    for row in oracle(tmp_path / "run"):
        names["oracle"] |= set(row)
    assert names["released"] & names["oracle"] == {"round"}
    assert not names["released"] & {"mean_return", "greedy_return", "agent_returns", "env_steps"}
    assert names["released"] == {
        "round",
        "attempt",
        "aborted_before",
        "survivors",
        "dropouts",
        "epsilon",
        "released_mean_return",
        "released_mean_return_std",
        "released_return_spread",
        "next_clip",
        "bytes_up_max",
        "bytes_down_max",
        "policy_sha256",
    }


def test_every_step_of_every_local_epoch_is_counted(
    tmp_path: Path, make_plan: Callable[..., Plan], agent_unit: dict[str, dict[str, Any]]
) -> None:
    plan = make_plan(agent_unit, federation={"strategy": "fedavg", "rounds": 1})
    run = simulate(plan, out=tmp_path / "run", seed=3, runtime=ONE)
    first = sum(oracle(run.path)[0]["agent_returns"].values()) * plan.fleet.trajectories
    # a CartPole return is its length, so the first batches alone make `first` steps
    assert run.summary.env_steps > 1.5 * first
    assert run.summary.episodes_per_agent == 2 * plan.fleet.trajectories


# --- dropouts -----------------------------------------------------------------------------------


def only(stage: int, count: int = 1) -> Callable[..., dict[str, int]]:
    def schedule(names: Any, **_: Any) -> dict[str, int]:
        return dict.fromkeys(names[:count], stage)

    return schedule


@pytest.mark.parametrize("stage", range(len(DROPOUT_STAGES)), ids=DROPOUT_STAGES)
def test_agents_that_vanish_at_any_stage_do_not_stop_a_round(
    tmp_path: Path,
    make_plan: Callable[..., Plan],
    monkeypatch: pytest.MonkeyPatch,
    stage: int,
) -> None:
    monkeypatch.setattr(simulation, "dropout_schedule", only(stage, count=2))
    plan = make_plan(SHORT)
    run = simulate(plan, out=tmp_path / "run", seed=3, runtime=ONE)
    in_sum = 6 if DROPOUT_STAGES[stage] in ("consistency", "unmask") else 4
    assert [len(row["survivors"]) for row in released(run.path)] == [in_sum] * 2
    assert all(row["aborted_before"] == [] for row in released(run.path))
    released_vector = DROPOUT_STAGES[stage] in ("consistency", "unmask")
    for name, expected in (("agent-000", 2 * released_vector), ("agent-005", 2)):
        with Ledger.open(run.path / "agents" / name / "ledger.db", read_only=True) as ledger:
            assert len(ledger.reservations()) == expected


def test_too_many_dropouts_abort_and_every_attempt_stays_charged(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulation, "dropout_schedule", only(2, count=3))
    with pytest.raises(RoundAborted, match="ThresholdNotMet"):
        simulate(make_plan(), out=tmp_path / "run", seed=3, runtime=ONE)
    with Ledger.open(tmp_path / "run" / "ledger.db", read_only=True) as ledger:
        held = ledger.reservations()
        assert ledger.verify().settled == 0
    assert len(held) == simulation.MAX_ATTEMPTS
    assert {one.charge.release_id.split("/")[-1] for one in held} == set("01234")
    assert released(tmp_path / "run") == []


def test_an_aborted_attempt_is_followed_by_one_with_everybody_and_fresh_trajectories(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_attempts_fail(names: Any, *, attempt: int, **_: Any) -> dict[str, int]:
        return dict.fromkeys(names[:4], attempt) if attempt < 4 else {}

    monkeypatch.setattr(simulation, "dropout_schedule", first_attempts_fail)
    # stages 0 to 3 in turn; too few for a sum in each of them
    run = simulate(make_plan(federation={"rounds": 1}), out=tmp_path / "run", seed=3, runtime=ONE)
    (row,) = released(run.path)
    assert row["attempt"] == 4
    assert row["aborted_before"] == ["ThresholdNotMet"] * 4
    assert len(row["survivors"]) == 6
    for name in ("agent-000", "agent-005"):
        with Ledger.open(run.path / "agents" / name / "ledger.db", read_only=True) as ledger:
            held = ledger.reservations()
            assert len({one.charge.group for one in held}) == len(held)
            # attempts 2 and 3 end after masked vectors have left; those of stage 2 stay behind
            assert len(held) == (2 if name == "agent-000" else 3)


def test_the_unprotected_control_also_needs_the_threshold(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulation, "dropout_schedule", only(0, count=3))
    plan = make_plan(protection={"kind": "none"})
    with pytest.raises(RoundAborted, match="3 survivors of 4"):
        simulate(plan, out=tmp_path / "run", seed=3, runtime=ONE)
    with Ledger.open(tmp_path / "run" / "ledger.db", read_only=True) as ledger:
        assert len(ledger.reservations()) == simulation.MAX_ATTEMPTS


def test_the_dropout_schedule_is_public_and_uses_every_stage() -> None:
    names = [f"agent-{index}" for index in range(6)]
    seen = set()
    for index in range(60):
        drawn = dropout_schedule(names, dropouts=2, seed=1, round_index=index, attempt=0)
        assert drawn == dropout_schedule(names, dropouts=2, seed=1, round_index=index, attempt=0)
        assert len(drawn) == 2
        seen |= set(drawn.values())
    assert seen == set(range(len(DROPOUT_STAGES)))
    assert dropout_schedule(names, dropouts=0, seed=1, round_index=0, attempt=0) == {}


# --- controls, faults, budget -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "deterministic", "words"),
    [
        ({}, False, []),
        ({}, True, ["deterministic"]),
        ({"protection": {"kind": "none"}}, False, ["no cryptographic protection"]),
        ({"privacy": {"mechanism": "none"}}, False, ["no differential privacy"]),
    ],
    ids=["real", "deterministic", "unprotected", "no noise"],
)
def test_a_statement_is_stamped_when_a_run_does_not_protect(
    tmp_path: Path,
    make_plan: Callable[..., Plan],
    sections: dict[str, Any],
    deterministic: bool,
    words: list[str],
) -> None:
    extra = {"entropy": DeterministicEntropy(b"a")} if deterministic else {}
    run = simulate(make_plan(SHORT, sections), out=tmp_path / "run", seed=3, runtime=ONE, **extra)
    stamps = " ".join(run.statement.stamps).lower()
    assert bool(stamps) is bool(words)
    assert all(word in stamps for word in words)
    rendered = run.statement.render()
    voided = deterministic or "privacy" in sections
    assert run.statement.voided is voided
    if voided:
        with pytest.raises(PrivacyError):
            run.statement.epsilon_text()
        assert "epsilon =" not in rendered
    else:
        assert "epsilon = " in run.statement.epsilon_text()
    assert (run.summary.epsilon is None) is ("privacy" in sections)


def test_the_statement_claims_what_the_ledger_holds_and_less_for_weaker_adversaries(
    tmp_path: Path, make_plan: Callable[..., Plan]
) -> None:
    plan = make_plan(SHORT, simulation={"dropouts_per_round": 1})
    run = simulate(plan, out=tmp_path / "run", seed=3, runtime=ONE)
    text = json.loads((run.path / "statement.json").read_text())
    claims = {claim["adversary"]: claim["epsilon"] for claim in text["epsilon"]["claims"]}
    with run.ledger as ledger:
        assert claims["coordinator+1"] == ledger.spent().epsilon
    assert claims["coordinator"] == claims["public"] < claims["coordinator+1"]
    assert claims["coordinator+1"] <= plan.privacy.epsilon


def test_one_broken_environment_does_not_stop_the_fleet(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_environments(monkeypatch, lambda agent: agent == 1)
    run = simulate(make_plan(SHORT), out=tmp_path / "run", seed=3, runtime=ONE)
    assert all(len(row["survivors"]) == 6 for row in released(run.path))
    assert all(row["failed_environments"] == 1 for row in oracle(run.path))


@pytest.mark.parametrize("kind", ["pairwise", "none"])
@pytest.mark.parametrize("stage", [0, 2])
def test_a_fleet_without_any_working_environment_says_so(
    tmp_path: Path,
    make_plan: Callable[..., Plan],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    stage: int,
) -> None:
    break_environments(monkeypatch, lambda agent: True)
    monkeypatch.setattr(simulation, "dropout_schedule", only(stage))
    with pytest.raises(EnvironmentFault, match="no agent's environment works"):
        simulate(make_plan(protection={"kind": kind}), out=tmp_path / "run", seed=3, runtime=ONE)


def break_environments(monkeypatch: pytest.MonkeyPatch, which: Callable[[int], bool]) -> None:
    original = simulation.FleetExperience._collect

    def collect(self: Any, parameters: Any, agents: Any, *position: int) -> list[Any]:
        found = original(self, parameters, agents, *position)
        return [
            EnvironmentFault("broken on purpose") if which(agent) else batch
            for agent, batch in zip(agents, found, strict=True)
        ]

    monkeypatch.setattr(simulation.FleetExperience, "_collect", collect)


def test_epsilon_of_the_agent_unit_grows_with_rounds_up_to_the_budget(
    tmp_path: Path, make_plan: Callable[..., Plan], agent_unit: dict[str, dict[str, Any]]
) -> None:
    run = simulate(make_plan(agent_unit), out=tmp_path / "run", seed=3, runtime=ONE)
    spent = [row["epsilon"] for row in released(run.path)]
    assert all(more > 1.2 * less for less, more in itertools.pairwise(spent))
    assert spent[-1] <= 20.0


def test_epsilon_of_the_trajectory_unit_does_not_grow_with_rounds(
    tmp_path: Path, make_plan: Callable[..., Plan]
) -> None:
    run = simulate(make_plan(), out=tmp_path / "run", seed=3, runtime=ONE)
    assert len({row["epsilon"] for row in released(run.path)}) == 1


def test_an_exhausted_budget_stops_the_run_and_keeps_earlier_rounds(
    tmp_path: Path,
    make_plan: Callable[..., Plan],
    agent_unit: dict[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = make_plan(agent_unit, federation={"strategy": "fedavg", "rounds": 6})

    def later_rounds_abort(names: Any, *, round_index: int, attempt: int, **_: Any) -> Any:
        return dict.fromkeys(names[:4], 2) if round_index == 3 and attempt < 4 else {}

    monkeypatch.setattr(simulation, "dropout_schedule", later_rounds_abort)
    with pytest.raises(BudgetExceeded, match="nothing was charged"):
        simulate(plan, out=tmp_path / "run", seed=3, runtime=ONE)
    kept = released(tmp_path / "run")
    assert [row["round"] for row in kept] == list(range(len(kept)))
    assert len(kept) == 3
    with Ledger.open(tmp_path / "run" / "ledger.db", read_only=True) as ledger:
        assert ledger.spent().epsilon <= plan.privacy.epsilon
    saved = RunDirectory(tmp_path / "run").restore()
    assert saved is not None
    assert saved[0].round == len(kept)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused_before_anything_is_written(
    tmp_path: Path, make_plan: Callable[..., Plan], seed: int
) -> None:
    with pytest.raises(ConfigurationError, match="seed must lie in"):
        simulate(make_plan(), out=tmp_path / "run", seed=seed)
    assert not (tmp_path / "run").exists()


def test_a_plan_for_another_environment_is_refused(
    tmp_path: Path, make_plan: Callable[..., Plan]
) -> None:
    plan = make_plan(policy={"observations": 5})
    with pytest.raises(ConfigurationError, match="observation"):
        simulate(plan, out=tmp_path / "run", seed=3, runtime=ONE)
    assert not (tmp_path / "run").exists()  # nor a charge in a ledger of it


def test_an_environment_that_does_not_exist_leaves_no_run(
    tmp_path: Path, make_plan: Callable[..., Plan]
) -> None:
    plan = make_plan(fleet={"environment": "NoSuchEnvironment-v0"})
    with pytest.raises(ConfigurationError, match="registered"):
        simulate(plan, out=tmp_path / "run", seed=3, runtime=ONE)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fleet", "text"),
    [
        ({"environment": "MountainCar-v0", "level": 0.5}, "fleet.level must be 0 for the physics"),
        (
            {"environment": "LunarLander-v3", "level": 0.5, "varies": ("initial-states",)},
            "fleet.varies must not name initial-states",
        ),
    ],
)
def test_what_an_environment_cannot_vary_is_told_by_the_check(
    make_plan: Callable[..., Plan], fleet: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigurationError, match=text):
        make_plan(fleet=fleet).check()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"workers": 0}, "workers"),
        ({"workers": -1}, "workers"),
        ({"workers": True}, "workers"),
        ({"torch_threads": 0}, "torch_threads"),
        ({"torch_threads": None}, "torch_threads"),
        ({"rollout_timeout_s": 0.0}, "rollout_timeout_s"),
        ({"rollout_timeout_s": math.inf}, "rollout_timeout_s"),
    ],
)
def test_switches_out_of_range_are_refused_by_their_names(given: Any, named: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{named} must be"):
        Runtime(**given)


DYING = """
import os, gymnasium, numpy as np

class Dying(gymnasium.Env):
    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(3, np.float32), {}
    def step(self, action):
        self.time += 1
        if self.time > 10:
            os._exit(3)
        return np.zeros(3, np.float32), 1.0, False, False, {}

gymnasium.register("Dying-v0", entry_point=Dying)
"""


def test_an_environment_that_dies_beyond_the_horizon_costs_the_measurement_only(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heterogeneity is measured by a random policy after training: not in this process."""
    (tmp_path / "privfedrl_dying.py").write_text(DYING)
    monkeypatch.syspath_prepend(str(tmp_path))
    plan = make_plan(
        SHORT,
        fleet={"environment": "privfedrl_dying:Dying-v0", "horizon": 8},
        policy={"observations": 3},
    )
    run = simulate(plan, out=tmp_path / "run", seed=3, runtime=ONE)
    assert (run.path / HETEROGENEITY).exists()  # at the plan's horizon nobody dies
    with pytest.raises(EnvironmentFault, match="ended without an answer"):
        fleet_experience.fleet_heterogeneity(plan.replace("fleet", horizon=20), seed=3)


def test_nothing_is_released_where_the_mean_return_is_not(
    tmp_path: Path, make_plan: Callable[..., Plan]
) -> None:
    without = simulate(make_plan(SHORT), out=tmp_path / "a", seed=3, runtime=ONE)
    assert all(row["released_mean_return"] is None for row in released(without.path))
    from privfedrl.plan import MeanReturnRelease

    release = MeanReturnRelease(low=0.0, high=60.0, weight=0.5)
    plan = make_plan(SHORT, privacy={"mean_return": release, "mechanism": "none"})
    run = simulate(plan, out=tmp_path / "b", seed=3, runtime=ONE)
    for row, truth in zip(released(run.path), oracle(run.path), strict=True):
        assert row["released_mean_return"] == pytest.approx(truth["mean_return"], abs=3.0)
        assert math.isclose(row["released_mean_return_std"], 0.0)


@pytest.mark.slow
def test_a_fleet_of_lunar_landers_trains(tmp_path: Path, make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(
        fleet={
            "environment": "LunarLander-v3",
            "agents": 5,
            "trajectories": 2,
            "horizon": 40,
            "level": 0.5,
        },
        policy={"observations": 8, "actions": 4},
        federation={"rounds": 1},
        privacy={"max_colluding": 0},
    )
    run = simulate(plan, out=tmp_path / "run", seed=3)
    assert run.summary.env_steps > 5 * 2 * 10
    assert math.isfinite(run.summary.greedy_return)
