from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from privfedrl.errors import ConfigurationError
from privfedrl.training.reinforce import Truncation, trajectory_weights


def test_weights_are_whitened_returns_over_root_length(make_batch):
    batch = make_batch([4, 0, 9])
    rewards = batch.rewards[0, :4].astype(np.float64)
    returns = np.array([sum(0.9**k * r for k, r in enumerate(rewards[t:])) for t in range(4)])
    expected = (returns - returns.mean()) / returns.std() / 2.0
    weights = trajectory_weights(batch, gamma=0.9)
    assert weights.dtype == np.float32
    assert np.allclose(weights[0, :4], expected, atol=1e-6)
    assert not weights[1].any()
    assert not weights[0, 4:].any()


def test_a_cut_trajectory_continues_with_its_own_mean_reward(make_batch):
    """Equals appending the mean reward for so long that the rest is negligible."""
    batch = make_batch([9])
    long = 2000
    rewards = batch.rewards[0].astype(np.float64)
    endless = np.concatenate([rewards, np.full(long, rewards.mean())])
    returns = np.array([(0.9 ** np.arange(len(endless) - t) * endless[t:]).sum() for t in range(9)])
    expected = (returns - returns.mean()) / returns.std() / 3.0
    found = trajectory_weights(batch, gamma=0.9, truncation=Truncation.CONTINUE)
    assert np.allclose(found[0], expected, atol=1e-5)
    ended = replace(batch, terminated=np.array([True]))
    plain = trajectory_weights(batch, gamma=0.9)
    assert np.array_equal(
        trajectory_weights(ended, gamma=0.9, truncation=Truncation.CONTINUE), plain
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("truncation", [Truncation.NONE, Truncation.CONTINUE])
def test_a_reward_that_is_not_finite_spoils_its_own_trajectory_only(bad, truncation, make_batch):
    batch = make_batch([4, 9])
    rewards = batch.rewards.copy()
    rewards[0, 2] = bad
    found = trajectory_weights(replace(batch, rewards=rewards), gamma=0.9, truncation=truncation)
    assert np.isnan(found[0, :4]).all()
    assert not found[0, 4:].any()
    assert np.array_equal(found[1], trajectory_weights(batch, gamma=0.9, truncation=truncation)[1])


def test_rewards_whose_sum_is_not_finite_spoil_their_own_trajectory_only(make_batch):
    batch = make_batch([4, 9])
    arguments = {"gamma": 0.9, "truncation": Truncation.CONTINUE}
    rewards = batch.rewards.astype(np.float64)
    rewards[0, :2] = 1.7e308  # finite, unlike their sum
    found = trajectory_weights(replace(batch, rewards=rewards), **arguments)
    assert np.isnan(found[0, :4]).all()
    assert np.array_equal(found[1], trajectory_weights(batch, **arguments)[1])


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_a_discount_outside_the_unit_interval_is_refused(gamma, make_batch):
    with pytest.raises(ConfigurationError, match="gamma"):
        trajectory_weights(make_batch([3]), gamma=gamma)


def test_an_undiscounted_endless_continuation_is_refused(make_batch):
    with pytest.raises(ConfigurationError, match="gamma must be < 1"):
        trajectory_weights(make_batch([3]), gamma=1.0, truncation=Truncation.CONTINUE)
    with pytest.raises(ConfigurationError, match="truncation"):
        trajectory_weights(make_batch([3]), gamma=0.5, truncation="continue")
