"""VectorCartPole against Gymnasium's scalar CartPole, bit for bit."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.envs import EnvSpec, VectorCartPole, VectorEnv, heterogeneous, make_fleet_env
from privfedrl.envs.spec import FAMILIES
from privfedrl.errors import ConfigurationError

TABLE = FAMILIES["CartPole-v1"].parameters


def specs():
    values = {name: st.floats(row.low, row.high) for name, row in TABLE.items()}
    return st.fixed_dictionaries(values).map(
        lambda params: EnvSpec("CartPole-v1", params=tuple(params.items()))
    )


def gymnasium_cartpole(spec, state):
    """Gymnasium's environment with the spec's physics, its cached values recomputed."""
    env = gymnasium.make("CartPole-v1", disable_env_checker=True)
    env.reset(seed=0)
    raw = env.unwrapped
    for name, value in spec.parameters().items():
        setattr(raw, name, value)
    raw.total_mass = raw.masspole + raw.masscart
    raw.polemass_length = raw.masspole * raw.length
    raw.state = np.array(state, dtype=np.float64)
    return env


def assert_follows_gymnasium(fleet, start, actions):
    """Step both; every live row must agree in state, observation, reward and both flags."""
    env = VectorCartPole(fleet, len(fleet))
    env.set_state(start)
    oracles = [gymnasium_cartpole(*pair) for pair in zip(fleet, start, strict=True)]
    ended = np.zeros(len(fleet), dtype=bool)
    for row_actions in actions:
        observations, rewards, terminated, truncated = env.step(row_actions)
        state = env.state
        for row in np.flatnonzero(~ended):
            seen, reward, over, cut, _ = oracles[row].step(int(row_actions[row]))
            np.testing.assert_array_equal(state[row], oracles[row].unwrapped.state)
            np.testing.assert_array_equal(observations[row], seen)
            assert rewards[row] == reward
            assert terminated[row] == over
            assert truncated[row] == (cut and not over)
        ended = terminated | truncated
    return ended


@settings(max_examples=60, deadline=None)
@given(fleet=st.lists(specs(), min_size=1, max_size=5), seed=st.integers(0, 2**32 - 1))
def test_every_row_equals_gymnasium_for_every_parameter_value(fleet, seed):
    rng = np.random.default_rng(seed)
    start = rng.uniform(-1, 1, (len(fleet), 4)) * [2.4, 3.0, 0.2, 3.0]
    assert_follows_gymnasium(fleet, start, rng.integers(2, size=(12, len(fleet))))


def test_a_balanced_fleet_equals_gymnasium_up_to_the_time_limit():
    fleet = heterogeneous("CartPole-v1", level=0.5, agents=3, seed=0)
    env = VectorCartPole(fleet, 3)
    start = np.random.default_rng(0).uniform(-0.05, 0.05, (3, 4))
    env.set_state(start)
    actions = np.zeros((500, 3), dtype=np.int64)
    for t in range(500):
        state = env.state
        actions[t] = state @ [0.05, 0.1, 1.0, 0.3] > 0
        *_, terminated, truncated = env.step(actions[t])
    assert truncated.all()
    assert not terminated.any()
    assert assert_follows_gymnasium(fleet, start, actions).all()


def test_rows_that_ended_stand_still_and_keep_their_flag():
    env = VectorCartPole(EnvSpec("CartPole-v1"), 2)
    env.set_state(np.array([[0, 0, 0, 0], [0, 0, 0.2, 3.0]]))
    *_, terminated, _ = env.step(np.array([0, 1]))
    assert terminated.tolist() == [False, True]
    fallen = env.state[1]
    for step in range(6):
        *_, terminated, truncated = env.step(np.array([step % 2, 1]))
        assert terminated.tolist() == [False, True]
        assert not truncated.any()
        np.testing.assert_array_equal(env.state[1], fallen)


def test_select_changes_nothing_for_the_rows_that_stay():
    fleet = heterogeneous("CartPole-v1", level=1, agents=6, seed=2)
    whole, part = VectorCartPole(fleet, 6), VectorCartPole(fleet, 6)
    rows = np.array([0, 3, 4])
    whole.reset(np.random.default_rng(5))
    part.reset(np.random.default_rng(5))
    rng = np.random.default_rng(6)
    for step in range(60):
        actions = rng.integers(2, size=6)
        expected = whole.step(actions)
        found = part.step(actions[rows] if step > 10 else actions)
        if step > 10:
            for left, right in zip(expected, found, strict=True):
                np.testing.assert_array_equal(left[rows], right)
        if step == 10:
            part.select(rows)


def test_reset_starts_afresh_after_select_and_ends():
    env = VectorCartPole(EnvSpec("CartPole-v1", horizon=3), 4)
    first = env.reset(np.random.default_rng(0)).copy()
    for _ in range(3):
        *_, truncated = env.step(np.zeros(4, dtype=np.int64))
    assert truncated.all()
    env.select(np.array([1]))
    np.testing.assert_array_equal(env.reset(np.random.default_rng(0)), first)
    *_, terminated, truncated = env.step(np.ones(4, dtype=np.int64))
    assert not (terminated | truncated).any()
    assert (np.abs(first) <= 0.05).all()


def test_a_share_of_rows_depends_on_its_own_generator_only():
    fleet = heterogeneous("CartPole-v1", level=0.5, agents=3, seed=0)
    block = make_fleet_env(fleet, 4).reset([np.random.default_rng(k) for k in range(3)])
    for k, spec in enumerate(fleet):
        alone = VectorCartPole(spec, 4).reset(np.random.default_rng(k))
        np.testing.assert_array_equal(block[4 * k : 4 * k + 4], alone)


def test_generators_must_divide_the_rows():
    env = VectorCartPole(EnvSpec("CartPole-v1"), 4)
    for count in (0, 3):
        with pytest.raises(ConfigurationError, match="divides 4 rows"):
            env.reset([np.random.default_rng(k) for k in range(count)])


@pytest.mark.parametrize(
    ("fleet", "rows", "named"),
    [
        ([], 2, "num_envs"),
        ([EnvSpec("CartPole-v1")], 0, "num_envs"),
        ([EnvSpec("CartPole-v1")] * 2, 3, "num_envs"),
        ([EnvSpec("CartPole-v1"), EnvSpec("Acrobot-v1")], 2, "Acrobot-v1"),
        ([EnvSpec("CartPole-v1"), EnvSpec("CartPole-v1", horizon=9)], 2, "horizon"),
    ],
)
def test_blocks_that_make_no_sense_are_refused(fleet, rows, named):
    with pytest.raises(ConfigurationError, match=named):
        VectorCartPole(fleet, rows)


@pytest.mark.parametrize("state", [np.zeros((2, 4)), np.full((1, 4), np.nan)])
def test_a_state_of_another_shape_or_not_finite_is_refused(state):
    with pytest.raises(ConfigurationError, match="state"):
        VectorCartPole(EnvSpec("CartPole-v1"), 1).set_state(state)


def test_it_satisfies_the_seam():
    env: VectorEnv = VectorCartPole(EnvSpec("CartPole-v1"), 2)
    assert (env.num_envs, env.observation_size, env.num_actions, env.action_size) == (2, 4, 2, 0)
    assert env.action_kind == "discrete"
    assert env.action_low.shape == env.action_high.shape == (0,)
    env.close()
