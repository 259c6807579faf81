"""Every algorithm in every unit through the whole protected pipeline: charged, stated, resumed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfedrl.federation.run_directory import METRICS, ORACLE, RunDirectory
from privfedrl.federation.setup import round_setup
from privfedrl.federation.simulate import Run, Runtime, simulate
from privfedrl.plan import AgentLearner, Plan
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.privacy import Ledger
from privfedrl.privacy.accountant import epsilon
from privfedrl.privacy.statement import Statement
from privfedrl.privacy.units import Unit
from privfedrl.training import load_policy

Sections = Mapping[str, Mapping[str, Any]]
Make = Callable[..., Plan]
ONE = Runtime(workers=1)
ROUNDS = 4
SMALL: Sections = {
    "fleet": {"agents": 5, "trajectories": 4, "horizon": 20},
    "policy": {"hidden": (4,)},
    "federation": {"rounds": ROUNDS},
    "protection": {"min_clients": 3},
}
CRITIC: Sections = {"policy": {"critic_hidden": (3,)}}
PPO: Sections = {"training": {"algorithm": "ppo"}}
EPOCHS: Sections = {"training": {"epochs": 3, "guidance_weight": 0.1}}
RETURNS: Sections = {"training": {"algorithm": "ppo", "advantages": "returns", "epochs": 2}}
DQN: Sections = {"training": {"algorithm": "dqn", "target_rounds": 2}}
A2C: Sections = {"training": {"algorithm": "a2c", "truncation": "bootstrap", "entropy_weight": 0.1}}
PERSON: Sections = {
    "privacy": {"unit": "person", "max_trajectories_per_unit": 2, "epsilon": 12.0},
    "simulation": {"persons_per_agent": 4},
}
AGENT: Sections = {
    "privacy": {"unit": "agent", "epsilon": 20.0},
    "federation": {"strategy": "fedavg"},
    "training": {"local_learning_rate": 0.02},
}
PRIVATE: Sections = {
    "training": {
        "epochs": 2,
        "learner": AgentLearner(
            minibatch=16, private_critic=(3,), normalise_observations=True, target_kl=0.05
        ),
    }
}
REPLAY: Sections = {"training": {"learner": AgentLearner(minibatch=8, replay_capacity=100)}}
ARMS: Mapping[str, tuple[Sections, ...]] = {
    "reinforce-trajectory": ({"privacy": {"mean_return": None}},),
    "a2c-trajectory": (A2C, CRITIC, {"privacy": {"critic_clip_norm": 0.3}}),
    "ppo-trajectory-epochs": (PPO, CRITIC, EPOCHS),
    "ppo-trajectory-returns": (RETURNS,),
    "dqn-trajectory-replay": (DQN, {"training": {"replay_rounds": 3}}),
    "reinforce-person": (PERSON,),
    "a2c-person": (A2C, CRITIC, PERSON),
    "ppo-person-epochs": (PPO, CRITIC, EPOCHS, PERSON),
    "dqn-person": (DQN, PERSON),
    "reinforce-agent": (AGENT, {"training": {"local_steps": 2}}),
    "a2c-agent": (A2C, CRITIC, AGENT),
    "ppo-agent-private": (PPO, AGENT, PRIVATE),
    "dqn-agent-replay": (DQN, AGENT, REPLAY),
}
REUSING = {"ppo-trajectory-epochs": 3, "ppo-trajectory-returns": 2, "dqn-trajectory-replay": 3}


def run(plan: Plan, out: Path, **changes: Any) -> Run:
    return simulate(plan, **({"out": out, "seed": 3, "runtime": ONE} | changes))


def agents_of(path: Path) -> dict[str, Ledger]:
    found = sorted(path.glob("agents/*/ledger.db"))
    return {one.parent.name: Ledger.open(one, read_only=True) for one in found}


def uses_of(ledger: Ledger) -> Counter[str]:
    """How many releases of an agent's ledger each set of its trajectories is charged for."""
    charges = [reserved.charge for reserved in ledger.reservations()]
    return Counter(group for charge in charges for group in (charge.group, *charge.replayed))


@pytest.mark.parametrize("name", ARMS)
def test_a_protected_run_equals_the_plain_one_is_charged_and_states_its_promise(
    tmp_path: Path, make_plan: Make, name: str
) -> None:
    found = {}
    for kind in ("pairwise", "none"):
        plan = make_plan(SMALL, *ARMS[name], protection={"kind": kind})
        found[kind] = run(plan, tmp_path / kind, entropy=DeterministicEntropy(b"a"))
    masked = found["pairwise"]
    assert np.array_equal(masked.parameters, found["none"].parameters)
    assert not np.array_equal(masked.parameters, np.zeros_like(masked.parameters))
    plan, setup = masked.plan, round_setup(masked.plan)
    loaded = load_policy(masked.path / "policy.safetensors", setup.policy, plan_digest=plan.digest)
    assert np.array_equal(loaded, masked.parameters)
    with masked.ledger as ledger:
        assert ledger.verify().settled == ROUNDS
        spent = ledger.spent()
        # everybody survived, so K releases of one event are the whole bill
        expected = epsilon(
            [setup.settled(plan.fleet.agents)] * plan.releases_per_unit, setup.accounted_delta
        )
        assert spent.epsilon == pytest.approx(expected.epsilon, rel=1e-9)
        assert 0 < spent.epsilon <= plan.privacy.epsilon
    stated = Statement.from_json((masked.path / "statement.json").read_text())
    assert stated == masked.statement
    assert not stated.unknown_fields()
    assert stated.ledger.head == masked.summary.ledger_head
    assert stated.unit.unit == plan.privacy.unit


@pytest.mark.parametrize("name", REUSING)
def test_a_trajectory_pays_for_each_of_its_releases_and_agents_vouch_for_no_more(
    tmp_path: Path, make_plan: Make, name: str
) -> None:
    plan = make_plan(SMALL, *ARMS[name], federation={"rounds": 6})
    uses = REUSING[name]
    assert plan.uses_per_trajectory == plan.releases_per_unit == uses
    finished = run(plan, tmp_path / "run")
    setup = round_setup(plan)
    once = epsilon([setup.settled(5)], setup.accounted_delta).epsilon
    with finished.ledger as ledger:
        assert ledger.spent().epsilon > 1.2 * once  # K-fold, and not the maximum over rounds
    collected = sum(plan.collects(index) for index in range(6))
    for ledger in agents_of(finished.path).values():
        with ledger:
            assert ledger.verify().settled == 6
            counts = uses_of(ledger)
            assert len(counts) == collected
            assert max(counts.values()) == uses
            assert all(ledger.uses(group) == count for group, count in counts.items())
            assert ledger.spent().epsilon <= plan.privacy.epsilon
    assert finished.summary.episodes_per_agent == collected * plan.fleet.trajectories


def test_the_bill_does_not_grow_with_the_rounds_of_a_trajectory_and_does_of_an_agent(
    make_plan: Make,
) -> None:
    def noise(name: str, rounds: int) -> float:
        plan = make_plan(SMALL, *ARMS[name], federation={"rounds": rounds})
        return round_setup(plan).noise_multiplier

    for name in REUSING:
        assert noise(name, 40) == noise(name, 4)
        once = noise("reinforce-trajectory", 4)
        assert noise(name, 4) > 1.2 * once
    assert noise("ppo-agent-private", 40) > 2 * noise("ppo-agent-private", 4)


@pytest.mark.parametrize("name", [*REUSING, "ppo-person-epochs", "ppo-agent-private"])
def test_a_run_that_was_interrupted_goes_on_and_uses_nothing_too_often(
    tmp_path: Path, make_plan: Make, name: str
) -> None:
    plan = make_plan(SMALL, *ARMS[name])

    def stop(now: Any) -> None:
        if now.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path / "run", progress=stop)
    finished = run(plan, tmp_path / "run", resume=True)
    directory = RunDirectory(tmp_path / "run")
    assert [row["round"] for row in directory.rows(METRICS)] == list(range(ROUNDS))
    with finished.ledger as ledger:
        assert ledger.verify().settled == ROUNDS
        assert ledger.spent().epsilon <= plan.privacy.epsilon
    for ledger in agents_of(finished.path).values():
        with ledger:
            ledger.verify()
            if plan.unit is Unit.TRAJECTORY:
                assert max(uses_of(ledger).values()) <= plan.uses_per_trajectory


def test_dropouts_between_epochs_leave_the_others_and_the_charges_as_they_are(
    tmp_path: Path, make_plan: Make
) -> None:
    """Agents that vanish in a collecting round collect when they are back."""
    plan = make_plan(
        SMALL,
        *ARMS["ppo-trajectory-epochs"],
        federation={"rounds": 6},
        simulation={"dropouts_per_round": 1},
    )
    runs = {}
    for kind in ("pairwise", "none"):
        chosen = plan.replace("protection", kind=kind)
        runs[kind] = run(chosen, tmp_path / kind, entropy=DeterministicEntropy(b"b"))
    assert np.array_equal(runs["pairwise"].parameters, runs["none"].parameters)
    for ledger in agents_of(runs["pairwise"].path).values():
        with ledger:
            assert max(uses_of(ledger).values(), default=0) <= 3
    with runs["pairwise"].ledger as ledger:
        assert ledger.spent().epsilon <= plan.privacy.epsilon


# all that metrics.jsonl may hold, whatever the algorithm
RELEASED = {
    *("round", "attempt", "aborted_before", "survivors", "dropouts", "epsilon", "next_clip"),
    *("released_mean_return", "released_mean_return_std", "released_return_spread"),
    *("bytes_up_max", "bytes_down_max", "policy_sha256"),
}


def test_what_is_released_names_no_private_figure_of_an_algorithm(
    tmp_path: Path, make_plan: Make
) -> None:
    """Losses, KL, entropy and TD errors stay where they are computed."""
    for name in ("reinforce-trajectory", "ppo-trajectory-epochs", "dqn-agent-replay"):
        run(make_plan(SMALL, *ARMS[name]), tmp_path / name)
        rows = RunDirectory(tmp_path / name).rows(METRICS)
        assert rows
        assert {key for row in rows for key in row} == RELEASED
        assert RunDirectory(tmp_path / name).rows(ORACLE)
