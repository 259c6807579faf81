"""For all batches: a row's returns and weights do not depend on other rows or on padding."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from privfedrl.envs import EnvSpec, heterogeneous, make_vector_env
from privfedrl.rollout.collect import collect, collect_fleet
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.returns import returns_to_go, whiten_per_trajectory

POLICY = MlpPolicy(observation_size=4, hidden=(5,), action="categorical", action_size=2)


@st.composite
def batches(draw):
    rows, steps = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    rewards = draw(hnp.arrays(np.float64, (rows, steps), elements=st.floats(-1e6, 1e6)))
    lengths = draw(hnp.arrays(np.int64, rows, elements=st.integers(1, steps)))
    return rewards, lengths


@settings(max_examples=60, deadline=None)
@given(batch=batches(), gamma=st.floats(0, 1), padding=st.integers(0, 300))
def test_a_row_alone_and_padded_gives_the_same_bits(batch, gamma, padding):
    rewards, lengths = batch
    mask = np.arange(rewards.shape[1]) < lengths[:, None]
    returns = returns_to_go(rewards, mask, gamma=gamma)
    white = whiten_per_trajectory(returns, mask)
    for i, length in enumerate(lengths):
        alone = np.zeros((1, length + padding))
        alone[0, :length] = rewards[i, :length]
        own_mask = np.arange(length + padding)[None] < length
        own_returns = returns_to_go(alone, own_mask, gamma=gamma)
        np.testing.assert_array_equal(own_returns[0, :length], returns[i, :length])
        own_white = whiten_per_trajectory(own_returns, own_mask)
        np.testing.assert_array_equal(own_white[0, :length], white[i, :length])


@settings(max_examples=25, deadline=None)
@given(
    agents=st.integers(1, 4),
    each=st.integers(1, 5),
    horizon=st.integers(1, 80),
    level=st.sampled_from([0, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_rolling_a_fleet_in_one_block_is_rolling_each_agent_alone(
    agents, each, horizon, level, seed
):
    parameters = np.random.default_rng(seed).normal(size=POLICY.num_parameters)
    fleet = heterogeneous("CartPole-v1", level=level, agents=agents, seed=seed)
    rngs = [np.random.default_rng([seed, k]) for k in range(agents)]
    block = collect_fleet(POLICY, parameters, fleet, each, horizon=horizon, rngs=rngs)
    for k, (spec, batch) in enumerate(zip(fleet, block, strict=True)):
        rng = np.random.default_rng([seed, k])
        env = make_vector_env(spec, each)
        alone = collect(POLICY, parameters, env, horizon=horizon, rng=rng)
        for name in ("observations", "actions", "rewards", "mask", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(alone, name))
        assert rng.bit_generator.state == rngs[k].bit_generator.state


@settings(max_examples=25, deadline=None)
@given(each=st.integers(1, 6), horizon=st.integers(1, 70), seed=st.integers(0, 2**32 - 1))
def test_every_trajectory_runs_from_its_reset_to_exactly_one_end(each, horizon, seed):
    parameters = np.random.default_rng(seed).normal(size=POLICY.num_parameters)
    env = make_vector_env(EnvSpec("CartPole-v1", horizon=50), each)
    batch = collect(POLICY, parameters, env, horizon=horizon, rng=np.random.default_rng(seed))
    lengths = batch.lengths
    assert (lengths >= 1).all()
    assert batch.mask.shape == (each, lengths.max())
    np.testing.assert_array_equal(batch.mask, np.arange(lengths.max()) < lengths[:, None])
    assert (batch.terminated != batch.truncated).all()
    assert (lengths[batch.truncated] == min(horizon, 50)).all()
    assert (np.abs(batch.observations[:, 0]) <= 0.05).all()
    for values in (batch.observations, batch.actions, batch.rewards):
        assert not values[~batch.mask].any()
    np.testing.assert_array_equal(batch.returns, lengths)
