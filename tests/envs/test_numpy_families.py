"""VectorAcrobot and VectorPendulum against Gymnasium's scalar environments, bit for bit."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.envs import (
    EnvSpec,
    VectorAcrobot,
    VectorCartPole,
    VectorEnv,
    VectorPendulum,
    heterogeneous,
    make_fleet_env,
)
from privfedrl.envs.pendulum import _cost
from privfedrl.envs.spec import FAMILIES
from privfedrl.errors import ConfigurationError, EnvironmentFault
from privfedrl.rollout import MlpPolicy, collect, collect_fleet

FAMILY_IDS = ("Acrobot-v1", "CartPole-v1", "Pendulum-v1")
BLOCKS = {"Acrobot-v1": VectorAcrobot, "CartPole-v1": VectorCartPole, "Pendulum-v1": VectorPendulum}
STATE_RANGE = {"Acrobot-v1": [3.1, 3.1, 12.0, 28.0], "Pendulum-v1": [9.0, 8.0]}


def specs(family):
    table = FAMILIES[family].parameters
    values = {name: st.floats(row.low, row.high) for name, row in table.items()}
    return st.fixed_dictionaries(values).map(
        lambda params: EnvSpec(family, params=tuple(params.items()))
    )


def scalar(spec):
    """Gymnasium's environment with the spec's physics, set as its documentation says."""
    env = gymnasium.make(spec.id, disable_env_checker=True, max_episode_steps=spec.time_limit)
    raw = env.unwrapped
    for name, value in spec.parameters().items():
        if name == "max_torque":
            raw.AVAIL_TORQUE = [-value, 0.0, value]
        else:
            assert hasattr(raw, name)
            setattr(raw, name, value)
    return env


def random_actions(env, rng, shape):
    if env.action_kind == "discrete":
        return rng.integers(env.num_actions, size=shape)
    return rng.uniform(-3.0, 3.0, size=(*shape, 1)).astype(np.float32)


def assert_follows(env, oracles, actions):
    """Step both; every live row agrees in state, observation, reward and flags."""
    ended = np.zeros(len(oracles), dtype=bool)
    for row_actions in actions:
        observations, rewards, terminated, truncated = env.step(row_actions)
        state = env.state
        for row in np.flatnonzero(~ended):
            action = row_actions[row] if env.action_size else int(row_actions[row])
            seen, reward, over, cut, _ = oracles[row].step(action)
            np.testing.assert_array_equal(state[row], oracles[row].unwrapped.state)
            np.testing.assert_array_equal(observations[row], seen)
            assert rewards[row] == np.float32(reward)
            assert (terminated[row], truncated[row]) == (over, cut and not over)
        ended = terminated | truncated
    return ended


@pytest.mark.parametrize("family", ["Acrobot-v1", "Pendulum-v1"])
@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_every_row_equals_gymnasium_for_every_parameter_value(family, data, seed):
    fleet = data.draw(st.lists(specs(family), min_size=1, max_size=4))
    rng = np.random.default_rng(seed)
    reach = np.array(STATE_RANGE[family])
    start = rng.uniform(-reach, reach, (len(fleet), len(reach)))
    env = BLOCKS[family](fleet, len(fleet))
    env.set_state(start)
    oracles = [scalar(spec) for spec in fleet]
    for oracle, state in zip(oracles, start, strict=True):
        oracle.reset(seed=0)
        oracle.unwrapped.state = state.copy()
    assert_follows(env, oracles, random_actions(env, rng, (8, len(fleet))))


@pytest.mark.parametrize("family", ["Acrobot-v1", "Pendulum-v1"])
def test_whole_episodes_from_gymnasiums_own_starts_equal_gymnasium(family):
    """Same generator, same start; then 500 (200) steps, past goals and the time limit."""
    fleet = heterogeneous(family, level=0.5, agents=4, seed=0)
    env = BLOCKS[family](fleet, 4)
    found = env.reset([np.random.Generator(np.random.PCG64(k)) for k in range(4)])
    oracles = [scalar(spec) for spec in fleet]
    for k, oracle in enumerate(oracles):
        seen, _ = oracle.reset(seed=k)
        np.testing.assert_array_equal(found[k], seen)
    rng = np.random.default_rng(1)
    limit = fleet[0].time_limit
    actions = random_actions(env, rng, (limit, 4))
    if family == "Acrobot-v1":
        fresh = VectorAcrobot(fleet, 4)
        fresh.reset([np.random.default_rng(k) for k in range(4)])
        for t in range(limit):  # pump the first two: they reach the goal
            actions[t, :2] = np.where(fresh.state[:2, 2] + fresh.state[:2, 3] > 0, 2, 0)
            fresh.step(actions[t])
    ended = assert_follows(env, oracles, actions)
    assert ended.all()
    assert bool(env._terminated.any()) == (family == "Acrobot-v1")


@pytest.mark.parametrize("family", FAMILY_IDS)
def test_rows_that_ended_stand_still_and_keep_their_flag(family):
    env = BLOCKS[family](EnvSpec(family, horizon=4), 3)
    env.reset(np.random.default_rng(0))
    rng = np.random.default_rng(1)
    for _ in range(4):
        *_, terminated, truncated = env.step(random_actions(env, rng, (3,)))
    flags, last = (terminated.copy(), truncated.copy()), env.state
    assert (terminated | truncated).all()
    for _ in range(3):
        *_, terminated, truncated = env.step(random_actions(env, rng, (3,)))
        np.testing.assert_array_equal((terminated, truncated), flags)
        np.testing.assert_array_equal(env.state, last)


def test_squares_are_those_of_the_c_library_in_thousands_of_steps():
    """Gymnasium's scalar x**2 is ``pow``, which differs from x * x about once in a thousand."""
    rng = np.random.default_rng(0)
    states = rng.uniform(-1, 1, (2000, 4)) * STATE_RANGE["Acrobot-v1"]
    env = VectorAcrobot(EnvSpec("Acrobot-v1"), 2000)
    env.set_state(states)
    env.step(np.ones(2000, dtype=np.int64))
    oracle = gymnasium.make("Acrobot-v1").unwrapped
    for state, found in zip(states, env.state, strict=True):
        oracle.state = state
        oracle.step(1)
        np.testing.assert_array_equal(found, oracle.state)


def test_costs_of_thousands_of_pendulums_equal_gymnasiums_in_float64():
    rng = np.random.default_rng(0)
    theta, rate = rng.uniform(-9, 9, (2, 8000))
    torque = rng.uniform(-2, 2, 8000).astype(np.float32)
    found = _cost(theta, rate, torque)
    oracle = gymnasium.make("Pendulum-v1").unwrapped
    for k in range(8000):
        oracle.state = np.array([theta[k], rate[k]])
        assert found[k] == -oracle.step(torque[k : k + 1])[1]


def test_first_cosines_of_an_acrobot_are_float32_as_gymnasiums():
    env = VectorAcrobot(EnvSpec("Acrobot-v1"), 3000)
    found = env.reset([np.random.default_rng(k) for k in range(3000)])
    oracle = gymnasium.make("Acrobot-v1")
    for k in range(3000):
        np.testing.assert_array_equal(found[k], oracle.reset(seed=k)[0])


@pytest.mark.parametrize("family", FAMILY_IDS)
def test_a_row_that_had_ended_before_a_select_stands_still_after_it(family):
    env = BLOCKS[family](EnvSpec(family, horizon=3), 3)
    env.reset(np.random.default_rng(0))
    rng = np.random.default_rng(1)
    for _ in range(3):
        *_, truncated = env.step(random_actions(env, rng, (3,)))
    assert truncated.all()
    env.select(np.array([0, 2]))
    last = env.state
    *_, truncated = env.step(random_actions(env, rng, (2,)))
    assert truncated.all()
    np.testing.assert_array_equal(env.state, last)


def test_an_acrobot_at_its_goal_stands_still_while_another_goes_on():
    env = VectorAcrobot(EnvSpec("Acrobot-v1"), 2)
    env.set_state(np.array([[3.0, 0.0, 0.0, 0.0], [0.1, 0.0, 0.0, 0.0]]))
    _, rewards, terminated, _ = env.step(np.array([1, 1]))
    assert terminated.tolist() == [True, False]
    assert rewards.tolist() == [0.0, -1.0]
    at_goal, other = env.state
    *_, terminated, _ = env.step(np.array([0, 0]))
    assert terminated.tolist() == [True, False]
    np.testing.assert_array_equal(env.state[0], at_goal)
    assert (env.state[1] != other).any()


@pytest.mark.parametrize("family", FAMILY_IDS)
def test_select_changes_nothing_for_the_rows_that_stay(family):
    fleet = heterogeneous(family, level=1, agents=6, seed=2)
    whole, part = (BLOCKS[family](fleet, 6) for _ in range(2))
    rows = np.array([0, 3, 4])
    whole.reset(np.random.default_rng(5))
    part.reset(np.random.default_rng(5))
    rng = np.random.default_rng(6)
    for step in range(60):
        actions = random_actions(whole, rng, (6,))
        expected = whole.step(actions)
        found = part.step(actions[rows] if step > 10 else actions)
        if step > 10:
            for left, right in zip(expected, found, strict=True):
                np.testing.assert_array_equal(left[rows], right)
        if step == 10:
            part.select(rows)
            np.testing.assert_array_equal(part.observe(), whole.observe()[rows])
    assert part.reset(np.random.default_rng(0)).shape[0] == 6


@pytest.mark.parametrize("family", FAMILY_IDS)
def test_a_fleet_in_one_block_equals_each_agent_alone(family):
    block = BLOCKS[family]
    policy = MlpPolicy(
        observation_size=block.observation_size,
        hidden=(8,),
        action="categorical" if block.num_actions else "gaussian",
        action_size=block.num_actions or block.action_size,
    )
    parameters = policy.initial_parameters(np.random.default_rng(0)) * 3
    fleet = heterogeneous(family, level=0.8, agents=3, seed=0)
    rngs = [np.random.default_rng(k) for k in range(3)]
    batches = collect_fleet(policy, parameters, fleet, 4, horizon=90, rngs=rngs)
    for k, (spec, batch) in enumerate(zip(fleet, batches, strict=True)):
        rng = np.random.default_rng(k)
        alone = collect(policy, parameters, block(spec, 4), horizon=90, rng=rng)
        for name in ("observations", "actions", "rewards", "mask", "terminated"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(alone, name))
        assert rng.random() == rngs[k].random()


def test_a_torque_that_is_no_number_ends_its_own_row_only():
    env, sound = (VectorPendulum(EnvSpec("Pendulum-v1"), 4) for _ in range(2))
    env.reset(np.random.default_rng(0))
    sound.reset(np.random.default_rng(0))
    env.select(np.array([0, 2, 3]))
    sound.select(np.array([0, 2, 3]))
    bad = np.float32([[0.5], [np.nan], [1.0]])
    found = env.step(bad)
    expected = sound.step(np.nan_to_num(bad))
    assert list(env.failures) == [2]  # as numbered at the reset
    assert "not finite" in str(env.failures[2])
    assert found[3].tolist() == [False, True, False]
    for left, right in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_array_equal(left[[0, 2]], right[[0, 2]])
        assert np.isfinite(left).all()
    env.reset(np.random.default_rng(0))
    assert not env.failures
    with pytest.raises(EnvironmentFault, match="not finite"):
        env.step(np.full((4, 1), np.nan, dtype=np.float32))


@pytest.mark.parametrize("family", FAMILY_IDS)
def test_states_and_blocks_that_make_no_sense_are_refused(family):
    block = BLOCKS[family]
    env = block(EnvSpec(family), 1)
    for state in (np.zeros((2, env.state_size)), np.full((1, env.state_size), np.nan)):
        with pytest.raises(ConfigurationError, match="state"):
            env.set_state(state)
    with pytest.raises(ConfigurationError, match="num_envs"):
        block([EnvSpec(family)] * 2, 3)
    with pytest.raises(ConfigurationError, match="horizon"):
        block([EnvSpec(family), EnvSpec(family, horizon=9)], 2)
    with pytest.raises(ConfigurationError, match="Ant-v5"):
        block([EnvSpec("Ant-v5", horizon=9)], 1)


@pytest.mark.parametrize("family", FAMILY_IDS)
def test_they_satisfy_the_seam(family):
    env: VectorEnv = make_fleet_env([EnvSpec(family)] * 2, 3)
    space = gymnasium.make(family)
    assert (env.num_envs, env.observation_size) == (6, space.observation_space.shape[0])
    if env.action_kind == "discrete":
        assert (env.num_actions, env.action_size) == (space.action_space.n, 0)
    else:
        assert (env.num_actions, env.action_size) == (0, 1)
        np.testing.assert_array_equal(env.action_low, space.action_space.low)
        np.testing.assert_array_equal(env.action_high, space.action_space.high)
    env.close()
