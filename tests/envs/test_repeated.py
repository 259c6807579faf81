"""An action that is held: sums of rewards, own ends, agents that do not touch each other."""

from __future__ import annotations

import numpy as np
import pytest

from privfedrl.envs import EnvSpec, VectorCartPole, fits_one_block, make_fleet_env, make_vector_env
from privfedrl.envs.perturbed import perturbed
from privfedrl.envs.repeated import repeated
from privfedrl.errors import ConfigurationError, EnvironmentFault
from privfedrl.rollout import MlpPolicy, collect
from privfedrl.rollout.collect import roll_block

POLICY = MlpPolicy(observation_size=4, hidden=(), action="categorical", action_size=2)


def theta(seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=POLICY.num_parameters)


@pytest.mark.parametrize("times", [2, 3, 7])
def test_held_actions_are_steps_of_the_environment_with_summed_rewards(times):
    spec = EnvSpec("CartPole-v1", action_repeat=times)
    held, plain = make_vector_env(spec, 3), make_vector_env(EnvSpec("CartPole-v1"), 3)
    held.reset(np.random.default_rng(0))
    plain.reset(np.random.default_rng(0))
    rng, total, ended = np.random.default_rng(1), np.zeros(3), np.zeros(3, dtype=bool)
    for _ in range(80):
        actions = rng.integers(0, 2, 3)
        seen, rewards, terminated, truncated = held.step(actions)
        expected = np.zeros(3)
        for _ in range(times):
            going = ~ended
            if not going.any():
                break
            states, one, *ends = plain.step(actions)
            expected[going] += one[going]
            ended = ends[0] | ends[1]
        assert np.array_equal(rewards, expected)
        assert np.array_equal(terminated | truncated, ended)
        assert np.array_equal(seen, states)
        total += rewards
        if ended.all():
            break
    assert ended.all()
    assert total.sum() > 0


def test_returns_are_counted_in_steps_and_horizons_in_actions():
    env = make_vector_env(EnvSpec("Pendulum-v1", action_repeat=4), 5)
    policy = MlpPolicy(observation_size=3, hidden=(), action="gaussian", action_size=1)
    rng = np.random.default_rng(0)
    batch = collect(policy, np.zeros(policy.num_parameters), env, horizon=60, rng=rng)
    assert batch.lengths.tolist() == [50] * 5  # 200 steps of the environment


def test_agents_in_one_block_get_what_each_gets_alone():
    specs = [
        EnvSpec("CartPole-v1", params=(("length", x),), action_repeat=3, action_delay=d)
        for x, d in ((0.3, 0), (0.6, 2))
    ]
    rngs = [np.random.default_rng(k) for k in (5, 6)]
    block = roll_block(POLICY, theta(), make_fleet_env(specs, 4), horizon=60, rngs=rngs)
    for k, spec in enumerate(specs):
        env, rng = make_vector_env(spec, 4), np.random.default_rng(5 + k)
        alone = collect(POLICY, theta(), env, horizon=60, rng=rng)
        for name in ("observations", "actions", "rewards", "mask"):
            assert np.array_equal(getattr(alone, name), getattr(block[k], name)), name


def test_a_fleet_with_several_repeats_is_no_block():
    specs = [EnvSpec("CartPole-v1", action_repeat=k) for k in (1, 2)]
    assert not fits_one_block(specs)
    with pytest.raises(ConfigurationError, match="action_repeat"):
        make_fleet_env(specs, 2)


@pytest.mark.parametrize("times", [0, -1, 65, 1.5, True, "2"])
def test_impossible_repeats_are_refused(times):
    with pytest.raises(ConfigurationError, match="action_repeat"):
        EnvSpec("CartPole-v1", action_repeat=times)


def test_the_spec_survives_a_round_trip():
    spec = EnvSpec("LunarLander-v3", action_repeat=4)
    assert EnvSpec.from_json(spec.to_json()) == spec
    assert "action_repeat" not in EnvSpec("LunarLander-v3").to_json()


def test_failures_of_a_block_that_forgets_its_old_record_are_seen_through_every_wrapper():
    """An own block may begin a new dictionary at every reset."""

    class Own(VectorCartPole):
        def reset(self, rng):
            self.failures, self.numbers = {}, np.arange(self.num_envs)
            return super().reset(rng)

        def select(self, rows):
            self.numbers = self.numbers[rows]
            super().select(rows)

        def step(self, actions):
            if not self.failures:
                self.failures[1] = EnvironmentFault("the valve")
            seen, rewards, terminated, truncated = super().step(actions)
            return seen, rewards, terminated, truncated | (self.numbers == 1)

    for wrap in (
        lambda env: env,
        lambda env: repeated(env, 2),
        lambda env: perturbed(env, [EnvSpec("CartPole-v1", reward_scale=2.0)]),
        lambda env: repeated(perturbed(env, [EnvSpec("CartPole-v1", reward_scale=2.0)]), 2),
    ):
        env = wrap(Own(EnvSpec("CartPole-v1"), 3))
        rng = np.random.default_rng(0)
        for _ in range(2):
            batch = collect(POLICY, theta(), env, horizon=8, rng=rng)
            assert batch.lost == 1
            assert str(batch.fault) == "the valve"
            assert not batch.mask[1].any()
            assert batch.mask[[0, 2]].any(axis=1).all()
