"""The published policy acts in a share of the steps; everything else is as for one policy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from privfedrl.envs import EnvSpec, make_fleet_env, make_vector_env
from privfedrl.errors import ConfigurationError
from privfedrl.rollout import Guide, MlpPolicy, collect
from privfedrl.rollout.collect import collect_fleet, roll_block
from privfedrl.rollout.workers import RolloutWorkers
from privfedrl.training.algorithms import Models, Objective, signals
from privfedrl.training.networks import TorchMlp, log_probabilities

POLICY = MlpPolicy(observation_size=4, hidden=(4,), action="categorical", action_size=2)
SPEC = EnvSpec("CartPole-v1")


def always(action: int, policy: MlpPolicy = POLICY) -> np.ndarray:
    """Parameters of a policy that takes one action, whatever it sees."""
    theta = np.zeros(policy.num_parameters)
    theta[policy.actor_parameters - policy.action_size + action] = 60.0
    return theta


def rolled(guide: Guide | None, *, rows: int = 400, seed: int = 0):
    env = make_vector_env(SPEC, rows)
    rng = np.random.default_rng(seed)
    return collect(POLICY, always(0), env, horizon=30, rng=rng, guide=guide)


@pytest.mark.statistical
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_guide_acts_in_its_share_of_the_steps(share):
    """5 standard deviations of a binomial: false-positive rate below 6e-7."""
    batch = rolled(Guide(always(1), share))
    taken = batch.actions[batch.mask]
    assert abs(taken.mean() - share) < 5 * math.sqrt(share * (1 - share) / taken.size)


def test_a_guide_that_never_acts_changes_no_policy():
    assert not rolled(Guide(always(1), 0.0)).actions.any()
    assert not rolled(None).actions.any()


def test_agents_in_one_block_get_what_each_gets_alone():
    specs = [EnvSpec("CartPole-v1", params=(("length", x),)) for x in (0.3, 0.6)]
    theta = 0.3 * np.random.default_rng(1).normal(size=POLICY.num_parameters)
    guide = Guide(-theta, 0.4)
    block = roll_block(
        POLICY,
        theta,
        make_fleet_env(specs, 3),
        horizon=60,
        rngs=[np.random.default_rng(k) for k in (5, 6)],
        guide=guide,
    )
    for k, spec in enumerate(specs):
        env, rng = make_vector_env(spec, 3), np.random.default_rng(5 + k)
        alone = collect(POLICY, theta, env, horizon=60, rng=rng, guide=guide)
        assert np.array_equal(alone.actions, block[k].actions)
        assert np.array_equal(alone.observations, block[k].observations)


def test_gaussian_policies_mix_as_well():
    policy = MlpPolicy(observation_size=3, hidden=(), action="gaussian", action_size=1)
    low, high = np.zeros(policy.num_parameters), np.zeros(policy.num_parameters)
    low[3], high[3], low[4], high[4] = -50.0, 50.0, -2.0, -2.0
    env = make_vector_env(EnvSpec("Pendulum-v1"), 50)
    rng = np.random.default_rng(0)
    batch = collect(policy, low, env, horizon=20, rng=rng, guide=Guide(high, 0.25))
    guided = batch.actions[batch.mask] > 0
    assert 0.15 < guided.mean() < 0.35
    assert (np.abs(np.abs(batch.actions[batch.mask]) - 50.0) < 2.0).all()


@pytest.mark.parametrize("share", [1.0, -0.1, math.nan])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(ConfigurationError, match="probability"):
        rolled(Guide(always(1), share), rows=2)


def test_reinforce_weighs_steps_by_the_ratio_to_the_mixture():
    rng = np.random.default_rng(2)
    theta, other = (0.5 * rng.normal(size=POLICY.num_parameters) for _ in range(2))
    env = make_vector_env(SPEC, 6)
    batch = collect(POLICY, theta, env, horizon=40, rng=rng, guide=Guide(other, 0.3))
    own, guide = TorchMlp(POLICY, theta), TorchMlp(POLICY, other)
    plain = signals(Models(own), batch, Objective(gamma=0.9)).weights
    mixed = signals(Models(own, guide), batch, Objective(gamma=0.9, behaviour_mixture=0.3)).weights
    seen, actions = torch.from_numpy(batch.observations), torch.from_numpy(batch.actions)
    with torch.no_grad():
        p, q = (log_probabilities(net(seen), actions).exp().numpy() for net in (own, guide))
    assert np.allclose(mixed, plain * p / (0.7 * p + 0.3 * q), atol=1e-6)
    assert (np.abs(mixed) <= np.abs(plain) / 0.7 + 1e-6).all()


@pytest.mark.parametrize("agents", [1, 3])
@pytest.mark.parametrize("family", ["CartPole-v1", "MountainCar-v0"])
def test_every_way_to_roll_a_fleet_lets_the_guide_act(family, agents):
    sizes = {"CartPole-v1": (4, 2), "MountainCar-v0": (2, 3)}[family]
    policy = MlpPolicy(
        observation_size=sizes[0], hidden=(), action="categorical", action_size=sizes[1]
    )
    theta = 0.3 * np.random.default_rng(1).normal(size=policy.num_parameters)
    guide, spec = Guide(always(sizes[1] - 1, policy), 0.5), EnvSpec(family)

    def generators() -> list[np.random.Generator]:
        return [np.random.default_rng(k) for k in range(agents)]

    alone = [
        collect(policy, theta, make_vector_env(spec, 4), horizon=20, rng=rng, guide=guide)
        for rng in generators()
    ]
    fleet = {"horizon": 20, "guide": guide}
    ways = [collect_fleet(policy, theta, [spec] * agents, 4, rngs=generators(), **fleet)]
    with RolloutWorkers(2) as workers:
        ways.append(workers.collect(policy, theta, [spec] * agents, 4, rngs=generators(), **fleet))
    for found in ways:
        for one, other in zip(found, alone, strict=True):
            assert np.array_equal(one.actions, other.actions)
            assert np.array_equal(one.observations, other.observations)
    unguided = collect(policy, theta, make_vector_env(spec, 4), horizon=20, rng=generators()[0])
    assert not np.array_equal(unguided.actions, alone[0].actions)
