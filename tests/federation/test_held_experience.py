"""A trajectory is handed out at most K times, in a public shape, whatever goes wrong in between."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.envs import EnvSpec, make_vector_env
from privfedrl.errors import EnvironmentFault
from privfedrl.federation.contribution import contribute, local_trainer, published_model
from privfedrl.federation.held_experience import HeldExperience
from privfedrl.federation.setup import RoundSetup, round_setup
from privfedrl.plan import Plan
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.privacy.units import Adjacency
from privfedrl.rollout import TrajectoryBatch, collect

ROUNDS = 9
PPO: dict[str, dict[str, Any]] = {
    "training": {"algorithm": "ppo", "epochs": 3, "guidance_weight": 0.1},
    "policy": {"critic_hidden": (4,)},
    "federation": {"rounds": ROUNDS},
}
DQN: dict[str, dict[str, Any]] = {
    "training": {"algorithm": "dqn", "replay_rounds": 3, "target_rounds": 4},
    "federation": {"rounds": ROUNDS},
}
ONCE: dict[str, dict[str, Any]] = {"federation": {"rounds": ROUNDS}}
CONTROL = {"privacy": {"mechanism": "none"}, "protection": {"kind": "none"}}


def setup_of(make_plan: Any, sections: dict[str, dict[str, Any]], **more: Any) -> RoundSetup:
    return round_setup(make_plan(sections, **more))


def policy(setup: RoundSetup, round_index: int) -> np.ndarray:
    """What is published in a round."""
    return np.random.default_rng(round_index).normal(size=setup.policy.num_parameters) * 0.1


class Environment:
    """Fresh batches that can be told apart; fails when it is told to."""

    def __init__(self, setup: RoundSetup) -> None:
        self.setup = setup
        self.collected: list[TrajectoryBatch] = []
        self.under: dict[bytes, np.ndarray] = {}
        self.broken = False

    def __call__(self, parameters: np.ndarray) -> TrajectoryBatch:
        if self.broken:
            raise EnvironmentFault("broken")
        fleet = self.setup.plan.fleet
        rng = np.random.default_rng(100 + len(self.collected))
        env = make_vector_env(EnvSpec("CartPole-v1"), fleet.trajectories)
        batch = collect(self.setup.policy, parameters, env, horizon=fleet.horizon, rng=rng)
        batch = batch.padded(fleet.horizon)
        self.collected.append(batch)
        self.under[batch.batch_id] = parameters.copy()
        return batch


@given(
    kind=st.sampled_from(["ppo", "dqn", "once"]),
    rounds=st.lists(st.integers(0, 12), min_size=1, max_size=12),
    faults=st.sets(st.integers(0, 11)),
)
@settings(max_examples=settings.default.max_examples // 2)
def test_no_batch_is_handed_out_more_often_than_the_plan_charges_for(
    make_plan, kind, rounds, faults
):
    """Rounds missed, repeated and out of order, environments that fail: never more than K uses."""
    setup = setup_of(make_plan, {"ppo": PPO, "dqn": DQN, "once": ONCE}[kind])
    plan, window = setup.plan, setup.plan.training.replay_rounds
    held, environment, uses = HeldExperience(setup), Environment(setup), Counter[bytes]()
    for attempt, round_index in enumerate(rounds):
        environment.broken = attempt in faults
        wanted = held.needs_fresh(round_index)
        before = len(environment.collected)
        taken = held.take(policy(setup, round_index), round_index, environment)
        failed = wanted and environment.broken
        assert (taken.fault is not None) == failed
        assert len(environment.collected) - before == (wanted and not failed)
        if failed:
            environment.under[taken.identities[-1]] = policy(setup, round_index)
            assert not taken.batches[-1].mask.any()
        uses.update(taken.identities)
        assert 1 <= len(taken.identities) <= window
        assert len(set(taken.identities)) == len(taken.identities)
        # the public shape: absent batches stand for those that never were, oldest first
        assert len(taken.batches) == window
        shapes = {(batch.observations.shape, batch.actions.shape) for batch in taken.batches}
        fleet = plan.fleet
        assert shapes == {
            ((fleet.trajectories, fleet.horizon, 4), (fleet.trajectories, fleet.horizon))
        }
        missing = window - len(taken.identities)
        assert not any(batch.mask.any() for batch in taken.batches[:missing])
        present = [batch.batch_id for batch in taken.batches[missing:]]
        assert present == list(taken.identities)
        if window == 1:
            collected_by = environment.under[taken.identities[0]]
            found = policy(setup, round_index) if taken.behaviour is None else taken.behaviour
            assert np.array_equal(found, collected_by)
    assert max(uses.values(), default=0) <= plan.uses_per_trajectory


def test_epochs_collect_in_every_third_round_and_use_what_is_there_in_the_others(make_plan):
    setup = setup_of(make_plan, PPO)
    held, environment = HeldExperience(setup), Environment(setup)
    seen = []
    for index in range(ROUNDS):
        assert held.needs_fresh(index) == (index % 3 == 0)
        taken = held.take(policy(setup, index), index, environment)
        seen.append(taken.identities)
        # the policy that collected is named where it is another one
        assert (taken.behaviour is None) == (index % 3 == 0)
        if taken.behaviour is not None:
            assert np.array_equal(taken.behaviour, policy(setup, index - index % 3))
    assert len(environment.collected) == 3
    assert seen == [(batch.batch_id,) for batch in environment.collected for _ in range(3)]


def test_an_agent_that_missed_the_collecting_round_collects_later_and_keeps_in_step(make_plan):
    setup = setup_of(make_plan, PPO)
    held, environment = HeldExperience(setup), Environment(setup)
    late = held.take(policy(setup, 1), 1, environment)
    assert late.behaviour is None
    assert held.take(policy(setup, 2), 2, environment).identities == late.identities
    # used twice only; but round 3 is one in which everybody collects
    assert held.take(policy(setup, 3), 3, environment).identities != late.identities
    assert len(environment.collected) == 2


def test_replay_slides_a_window_of_three_rounds(make_plan):
    setup = setup_of(make_plan, DQN)
    held, environment = HeldExperience(setup), Environment(setup)
    for index in range(6):
        assert held.needs_fresh(index)
        taken = held.take(policy(setup, index), index, environment)
        newest = [batch.batch_id for batch in environment.collected[-3:]]
        assert list(taken.identities) == newest
        assert taken.behaviour is None


def test_the_target_network_follows_every_fourth_round_only(make_plan):
    setup = setup_of(make_plan, DQN)
    held, environment = HeldExperience(setup), Environment(setup)
    for index in range(ROUNDS):
        taken = held.take(policy(setup, index), index, environment)
        assert np.array_equal(taken.target, policy(setup, index - index % 4))


def test_only_dqn_has_a_target_network(make_plan):
    setup = setup_of(make_plan, PPO)
    taken = HeldExperience(setup).take(policy(setup, 0), 0, Environment(setup))
    assert taken.target is None


def test_a_target_that_was_not_heard_is_the_first_policy_heard_of_its_span(make_plan):
    setup = setup_of(make_plan, DQN)
    held, environment = HeldExperience(setup), Environment(setup)
    for index, source in ((1, 1), (3, 1), (6, 6), (7, 6)):
        taken = held.take(policy(setup, index), index, environment)
        assert np.array_equal(taken.target, policy(setup, source))


def test_a_fault_leaves_a_batch_of_nothing_in_the_place_of_the_one_that_failed(make_plan):
    """So how often the others are used, and when is collected, does not tell who failed."""
    setup = setup_of(make_plan, DQN)
    held, environment = HeldExperience(setup), Environment(setup)
    first = held.take(policy(setup, 0), 0, environment)
    environment.broken = True
    during = held.take(policy(setup, 1), 1, environment)
    assert isinstance(during.fault, EnvironmentFault)
    assert during.identities[0] == first.identities[0]
    assert during.identities[1] not in environment.under
    assert not during.batches[-1].mask.any()
    environment.broken = False
    after = held.take(policy(setup, 2), 2, environment)
    assert after.fault is None
    assert after.identities[:2] == during.identities
    assert held.take(policy(setup, 3), 3, environment).identities[0] == during.identities[1]


def test_an_agent_whose_collecting_round_failed_has_nothing_until_the_next_one(make_plan):
    setup = setup_of(make_plan, PPO)
    held, environment = HeldExperience(setup), Environment(setup)
    environment.broken = True
    failed = held.take(policy(setup, 0), 0, environment)
    environment.broken = False
    for index in (1, 2):
        assert not held.needs_fresh(index)
        assert held.take(policy(setup, index), index, environment).identities == failed.identities
    assert held.take(policy(setup, 3), 3, environment).batches[0].mask.any()


def test_what_is_kept_is_a_copy_of_what_was_published(make_plan):
    setup = setup_of(make_plan, PPO)
    held, environment = HeldExperience(setup), Environment(setup)
    parameters = policy(setup, 0)
    held.take(parameters, 0, environment)
    parameters += 1.0
    taken = held.take(policy(setup, 1), 1, environment)
    assert np.array_equal(taken.behaviour, policy(setup, 0))


def test_a_repr_tells_public_numbers_only(make_plan):
    setup = setup_of(make_plan, PPO)
    held = HeldExperience(setup)
    held.take(policy(setup, 0), 0, Environment(setup))
    assert repr(held) == "HeldExperience(uses=3)"


# --- through the whole contribution --------------------------------------------------------------


class World:
    """One agent over several rounds, before noise; without trajectory ``gone`` of its first."""

    def __init__(self, setup: RoundSetup, gone: int | None = None) -> None:
        self.setup, self.environment, self.gone = setup, Environment(setup), gone
        self.trainer, self.held = local_trainer(setup), HeldExperience(setup)

    def experience(self, parameters: np.ndarray, step: int) -> TrajectoryBatch:
        batch = self.environment(parameters)
        if self.gone is None or len(self.environment.collected) > 1:
            return batch
        mask = batch.mask.copy()
        mask[self.gone] = False
        return dataclasses.replace(batch, mask=mask)

    def round(self, index: int) -> Any:
        return contribute(
            self.setup,
            self.trainer,
            published_model(self.setup, policy(self.setup, index)),
            experience=self.experience,
            held=self.held,
            round_index=index,
            rotation_seed=bytes(32),
            # the same randomness for the rows of both worlds
            entropy=DeterministicEntropy(b"round" + bytes([index])),
        )

    def integers(self, index: int) -> np.ndarray:
        vector = self.round(index).vector
        return vector.view(np.int32 if vector.dtype == np.uint32 else np.int64).astype(np.int64)


@pytest.mark.parametrize("sections", [PPO, DQN, ONCE], ids=["epochs", "replay", "once"])
def test_a_trajectory_moves_as_many_rounds_as_are_charged_and_each_within_its_bound(
    make_plan, sections
):
    setup = setup_of(make_plan, sections, **CONTROL)
    plan: Plan = setup.plan
    with_it, without_it = World(setup), World(setup, gone=1)
    moved = []
    bound = setup.sensitivity.for_adjacency(Adjacency.ADD_REMOVE)
    for index in range(6):
        difference = with_it.integers(index) - without_it.integers(index)
        # rounding draws may differ for the row that is gone: the bound holds for any of them
        assert (difference**2).sum() <= bound.l2_squared
        assert np.abs(difference).sum() <= bound.l1
        moved.append(bool(difference.any()))
    uses = plan.uses_per_trajectory
    assert moved == [True] * uses + [False] * (6 - uses)


def test_every_use_is_named_to_the_ledger_newest_first(make_plan):
    world = World(setup_of(make_plan, DQN, **CONTROL))
    spent = [world.round(index).spent for index in range(5)]
    ids = [batch.batch_id for batch in world.environment.collected]
    assert spent == [(tuple(ids[max(k - 2, 0) : k + 1][::-1]),) for k in range(5)]


@pytest.mark.parametrize("sections", [PPO, DQN], ids=["epochs", "replay"])
def test_a_broken_environment_sends_a_vector_of_the_same_shape(make_plan, sections):
    world = World(setup_of(make_plan, sections, **CONTROL))
    first = world.round(0)
    world.environment.broken = True
    during = world.round(3)
    assert isinstance(during.fault, EnvironmentFault)
    assert during.vector.shape == first.vector.shape
    # of the window the older batch is still there; an epoch has the one batch that failed
    held = first.spent[0] if sections is DQN else ()
    assert during.spent[0][1:] == held
    assert bool(during.vector.any()) == bool(held)


def test_a_batch_of_another_size_counts_as_a_fault_and_not_as_experience(make_plan):
    setup = setup_of(make_plan, PPO, **CONTROL)
    world = World(setup)
    wrong = world.environment(policy(setup, 0))
    wrong = dataclasses.replace(
        wrong,
        **{
            name: getattr(wrong, name)[:-1]
            for name in ("observations", "actions", "rewards", "mask", "terminated", "truncated")
        },
    )
    world.experience = lambda parameters, step: wrong
    sent = world.round(0)
    assert isinstance(sent.fault, EnvironmentFault)
    assert not sent.vector.any()
