"""Perturbed environments: each perturbation does what it says, rows stay independent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.envs import EnvSpec, make_fleet_env, make_vector_env
from privfedrl.envs.gymnasium_env import GymnasiumEnv
from privfedrl.envs.perturbed import PerturbedEnv, perturbed
from privfedrl.errors import ConfigurationError
from privfedrl.rollout import MlpPolicy, collect, collect_fleet

CARTPOLE = MlpPolicy(observation_size=4, hidden=(5,), action="categorical", action_size=2)
PENDULUM = MlpPolicy(observation_size=3, hidden=(5,), action="gaussian", action_size=1)
FIELDS = ("observations", "actions", "rewards", "mask", "terminated", "truncated")


def rolled(spec, actions, rows=3, seed=0):
    """(observations incl. the first, rewards) of one block under given actions."""
    env = make_vector_env(spec, rows)
    observations = [env.reset(np.random.default_rng(seed)).copy()]
    rewards = []
    for row_actions in actions:
        seen, paid, *_ = env.step(row_actions)
        observations.append(seen.copy())
        rewards.append(paid.copy())
    return np.array(observations), np.array(rewards)


def cartpole_actions(steps=9, rows=3):
    return np.random.default_rng(7).integers(2, size=(steps, rows))


def test_a_spec_without_perturbations_is_the_bare_environment():
    env = make_vector_env(EnvSpec("CartPole-v1"), 2)
    assert perturbed(env, [EnvSpec("CartPole-v1", params=(("length", 0.7),))]) is env
    shifted = EnvSpec("Hopper-v5", initial_noise=0.05)
    assert isinstance(make_vector_env(shifted, 1), GymnasiumEnv)  # shifts its own starts


def test_rewards_are_scaled_and_offset_and_nothing_else_changes():
    actions = np.random.default_rng(1).uniform(-2, 2, (9, 3, 1)).astype(np.float32)
    plain = rolled(EnvSpec("Pendulum-v1"), actions)
    found = rolled(EnvSpec("Pendulum-v1", reward_scale=0.3, reward_offset=-1.5), actions)
    np.testing.assert_array_equal(found[0], plain[0])
    expected = (0.3 * plain[1].astype(np.float64) - 1.5).astype(np.float32)
    np.testing.assert_array_equal(found[1], expected)


@pytest.mark.parametrize("delay", [1, 2, 5])
def test_actions_act_late_and_the_default_acts_first(delay):
    actions = cartpole_actions()
    late = np.concatenate([np.zeros((delay, 3), dtype=np.int64), actions])[: len(actions)]
    found = rolled(EnvSpec("CartPole-v1", action_delay=delay), actions)
    expected = rolled(EnvSpec("CartPole-v1"), late)
    np.testing.assert_array_equal(found[0], expected[0])
    assert (found[0] != rolled(EnvSpec("CartPole-v1"), actions)[0]).any()


def test_a_continuous_default_is_zero_and_a_reset_forgets_pending_actions():
    env = make_vector_env(EnvSpec("Pendulum-v1", action_delay=2), 1)
    bare = make_vector_env(EnvSpec("Pendulum-v1"), 1)
    push, none = np.float32([[2.0]]), np.float32([[0.0]])
    for _ in range(2):
        env.reset(np.random.default_rng(0))
        bare.reset(np.random.default_rng(0))
        for effect in (none, none, push):
            for left, right in zip(env.step(push), bare.step(effect), strict=True):
                np.testing.assert_array_equal(left, right)


def test_a_reset_starts_the_noise_afresh_from_its_generator():
    env = make_vector_env(EnvSpec("CartPole-v1", observation_noise=0.1), 2)
    runs = []
    for _ in range(2):
        seen = [env.reset(np.random.default_rng(4)).copy()]
        seen += [env.step(np.zeros(2, dtype=np.int64))[0].copy() for _ in range(5)]
        runs.append(seen)
    np.testing.assert_array_equal(runs[0], runs[1])


def test_zero_outside_the_bounds_is_clipped_into_them(weird):
    from gymnasium import spaces

    space = spaces.Box(np.float32([0.5, -3.0]), np.float32([1.0, -2.0]))
    env = make_vector_env(EnvSpec(weird(action_space=space), action_delay=1), 1)
    env.reset(np.random.default_rng(0))
    env.step(np.float32([[1.0, -2.5]]))
    env.step(np.float32([[1.0, -2.5]]))
    first, second = env.env._envs[0].unwrapped.actions
    assert first.tolist() == [0.5, -2.0]
    assert second.tolist() == [1.0, -2.5]


def test_observation_noise_has_its_deviation_and_never_reaches_the_state():
    spec = EnvSpec("CartPole-v1", observation_noise=0.25)
    actions = np.tile([0, 1], 4)[:, None].repeat(400, axis=1)
    noisy, rewards = rolled(spec, actions, rows=400)
    plain, paid = rolled(EnvSpec("CartPole-v1"), actions, rows=400)
    errors = (noisy - plain).astype(np.float64)
    # 14400 draws: 6 standard errors of the deviation, of the mean and of the correlation in time
    assert abs(errors.std() / 0.25 - 1) < 6 / np.sqrt(2 * errors.size)
    assert abs(errors.mean()) < 6 * 0.25 / np.sqrt(errors.size)
    assert abs((errors[1:] * errors[:-1]).mean()) < 6 * 0.25**2 / np.sqrt(errors[1:].size)
    assert len(np.unique(errors[0])) > 1500  # no row repeats another's noise
    np.testing.assert_array_equal(rewards, paid)


@pytest.mark.parametrize("family", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1"])
def test_starts_are_shifted_within_the_given_width(family):
    spec = EnvSpec(family, initial_noise=0.12)
    env, bare = make_vector_env(spec, 500), make_vector_env(EnvSpec(family), 500)
    env.reset(np.random.default_rng(3))
    bare.reset(np.random.default_rng(3))
    shift = env.env.state - bare.state
    assert (np.abs(shift) <= 0.12 + 1e-12).all()
    assert (shift.min(axis=0) < -0.11).all()
    assert (shift.max(axis=0) > 0.11).all()
    np.testing.assert_array_equal(env.env.observe(), env.reset(np.random.default_rng(3)))


def test_mujoco_starts_are_shifted_and_their_seed_decides():
    spec = EnvSpec("HalfCheetah-v5", initial_noise=0.3)
    env, bare = make_vector_env(spec, 3), make_vector_env(EnvSpec("HalfCheetah-v5"), 3)
    first = env.reset(np.random.default_rng(3)).copy()
    shift = first - bare.reset(np.random.default_rng(3))
    assert (np.abs(shift) <= 0.3 + 1e-6).all()
    assert np.abs(shift).max() > 0.2
    assert len(np.unique(shift)) == shift.size
    np.testing.assert_array_equal(env.reset(np.random.default_rng(3)), first)


@pytest.mark.parametrize("env_id", ["LunarLander-v3", "MountainCar-v0"])
def test_starts_that_cannot_be_shifted_are_refused(env_id):
    with pytest.raises(ConfigurationError, match=f"initial_noise must be 0.*{env_id}"):
        EnvSpec(env_id, initial_noise=0.1)


def perturbations():
    return st.fixed_dictionaries(
        {
            "reward_scale": st.sampled_from([1.0, 0.5]),
            "reward_offset": st.sampled_from([0.0, 0.25]),
            "initial_noise": st.sampled_from([0.0, 0.05, 0.1]),
            "observation_noise": st.sampled_from([0.0, 0.05, 0.2]),
            "action_delay": st.integers(0, 3),
        }
    )


@settings(max_examples=40, deadline=None)
@given(
    family=st.sampled_from(["CartPole-v1", "Pendulum-v1"]),
    changes=st.lists(perturbations(), min_size=1, max_size=4),
    each=st.integers(1, 4),
    horizon=st.integers(1, 90),
    seed=st.integers(0, 2**32 - 1),
)
def test_rolling_a_perturbed_fleet_in_one_block_is_rolling_each_agent_alone(
    family, changes, each, horizon, seed
):
    policy = CARTPOLE if family == "CartPole-v1" else PENDULUM
    parameters = np.random.default_rng(seed).normal(size=policy.num_parameters)
    fleet = [EnvSpec(family, **change) for change in changes]
    rngs = [np.random.default_rng([seed, k]) for k in range(len(fleet))]
    block = collect_fleet(policy, parameters, fleet, each, horizon=horizon, rngs=rngs)
    for k, (spec, batch) in enumerate(zip(fleet, block, strict=True)):
        rng = np.random.default_rng([seed, k])
        alone = collect(policy, parameters, make_vector_env(spec, each), horizon=horizon, rng=rng)
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(batch, name), getattr(alone, name))
        assert rng.bit_generator.state == rngs[k].bit_generator.state


@pytest.mark.parametrize("family", ["CartPole-v1", "Pendulum-v1"])
def test_an_unperturbed_agent_among_perturbed_ones_lives_in_the_bare_environment(family):
    policy = CARTPOLE if family == "CartPole-v1" else PENDULUM
    parameters = policy.initial_parameters(np.random.default_rng(0))
    wild = EnvSpec(
        family, initial_noise=0.1, observation_noise=0.3, action_delay=2, reward_offset=1.0
    )
    rngs = [np.random.default_rng(k) for k in range(3)]
    fleet = [wild, EnvSpec(family), wild]
    batch = collect_fleet(policy, parameters, fleet, 3, horizon=40, rngs=rngs)[1]
    rng = np.random.default_rng(1)
    bare = make_vector_env(EnvSpec(family), 3)
    assert not isinstance(bare, PerturbedEnv)
    alone = collect(policy, parameters, bare, horizon=40, rng=rng)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(batch, name), getattr(alone, name))
    assert rng.random() == rngs[1].random()


def test_select_changes_nothing_for_the_rows_that_stay():
    fleet = [
        EnvSpec("CartPole-v1", observation_noise=0.1 * k, action_delay=k, reward_scale=1.0 + k)
        for k in range(3)
    ]
    whole, part = make_fleet_env(fleet, 2), make_fleet_env(fleet, 2)
    rows = np.array([0, 3, 4])
    for env in (whole, part):
        env.reset([np.random.default_rng(k) for k in range(3)])
    rng = np.random.default_rng(6)
    for step in range(70):  # past two draws of noise
        actions = rng.integers(2, size=6)
        expected = whole.step(actions)
        found = part.step(actions[rows] if step > 5 else actions)
        if step > 5:
            for left, right in zip(expected, found, strict=True):
                np.testing.assert_array_equal(left[rows], right)
        if step == 5:
            part.select(rows)


def test_one_failing_row_stays_one_row_behind_the_perturbations(misbehaving):
    policy = MlpPolicy(observation_size=2, hidden=(4,), action="categorical", action_size=3)
    parameters = policy.initial_parameters(np.random.default_rng(1))

    def batch_of(broken):
        spec = EnvSpec(misbehaving(""), observation_noise=0.1, action_delay=1, reward_offset=1.0)
        env = make_vector_env(spec, 4)
        assert isinstance(env, PerturbedEnv)
        if broken:
            env.env._envs[2].unwrapped.fault = "step observation NaN"
        return collect(policy, parameters, env, horizon=5, rng=np.random.default_rng(0))

    sound, broken = batch_of(False), batch_of(True)
    assert (sound.lost, broken.lost) == (0, 1)
    assert not broken.mask[2].any()
    for name in FIELDS[:5]:
        left, right = getattr(sound, name), getattr(broken, name)
        assert left[[0, 1, 3]].tobytes() == right[[0, 1, 3]].tobytes()


@pytest.mark.parametrize("env_id", ["LunarLander-v3", "MountainCar-v0"])
def test_any_environment_can_be_perturbed_and_closed(env_id):
    spec = EnvSpec(env_id, observation_noise=0.1, action_delay=2, reward_scale=0.5)
    bare = EnvSpec(env_id)
    actions = np.full((4, 2), 2)
    late = np.concatenate([np.zeros((2, 2), dtype=np.int64), actions])[:4]
    _, rewards = rolled(spec, actions, rows=2)
    _, expected = rolled(bare, late, rows=2)
    np.testing.assert_array_equal(rewards, np.float32(0.5) * expected)
    make_vector_env(spec, 1).close()
