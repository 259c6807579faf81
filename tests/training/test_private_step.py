from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from privfedrl.errors import ConfigurationError
from privfedrl.privacy.units import Unit
from privfedrl.training.local_update import clip_rows, row_norms
from privfedrl.training.private_step import ReturnRelease, private_rows, return_coordinate
from privfedrl.training.reinforce import trajectory_weights
from privfedrl.training.trajectory_gradients import hooks, loop

RELEASE = ReturnRelease(low=0.0, high=10.0, weight=0.5)


def test_rows_are_clipped_gradients_of_the_reinforce_objective(make_batch, make_network):
    network, batch = make_network(), make_batch([4, 0, 9])
    weights = trajectory_weights(batch, gamma=0.9)
    expected, _ = clip_rows(loop(network, batch, weights, 0.0).numpy(), 0.2)
    update = private_rows(network, batch, clip_norm=0.2, gamma=0.9)
    assert np.allclose(update.rows, expected, atol=1e-6)
    assert (update.unit, update.clip_norm) == (Unit.TRAJECTORY, 0.2)
    assert update.batch_id == batch.batch_id
    slow = private_rows(network, batch, clip_norm=0.2, gamma=0.9, gradient=hooks)
    assert np.allclose(slow.rows, update.rows, atol=1e-6)


def test_a_poisoned_trajectory_is_dropped_and_counted(make_batch, make_network):
    batch = make_batch([4, 9])
    observations = batch.observations.copy()
    observations[0, 1, 2] = math.nan
    update = private_rows(
        make_network(), replace(batch, observations=observations), clip_norm=1.0, gamma=0.9
    )
    assert update.nonfinite_units == 1
    assert not update.rows[0].any()
    assert update.rows[1].any()


def test_return_coordinate_is_clamped_and_zero_when_not_finite():
    values = np.array([5.0, 10.0, 1e300, -3.0, math.nan, math.inf, -math.inf, 7.5])
    found = return_coordinate(values, RELEASE, clip_norm=2.0)
    assert found.tolist() == [0.0, 1.0, 1.0, -1.0, 0.0, 0.0, 0.0, 0.5]


def test_the_mean_return_comes_back_from_the_summed_coordinate(make_batch, make_network):
    batch = make_batch([4, 7, 9])
    batch = replace(batch, rewards=np.ones_like(batch.rewards))
    update = private_rows(make_network(), batch, clip_norm=0.2, gamma=0.9, return_release=RELEASE)
    assert update.clip_norm == pytest.approx(0.2 * math.sqrt(1.25))
    assert (row_norms(update.rows) <= update.clip_norm).all()
    total = update.rows[:, -1].sum()
    assert RELEASE.mean_return(total, clip_norm=0.2, denominator=3) == pytest.approx(20 / 3)


def test_infinite_rewards_of_both_signs_release_a_zero_return(make_batch, make_network):
    batch = make_batch([4])
    rewards = batch.rewards.copy()
    rewards[0, :2] = [math.inf, -math.inf]
    update = private_rows(
        make_network(),
        replace(batch, rewards=rewards),
        clip_norm=1.0,
        gamma=0.9,
        return_release=RELEASE,
    )
    assert not update.rows.any()


@pytest.mark.parametrize(
    "values",
    [(1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (math.nan, 1.0, 1.0), (0.0, math.inf, 1.0), (0.0, 1.0, 0.0)],
)
def test_impossible_return_bounds_are_refused(values):
    with pytest.raises(ConfigurationError, match="return_release"):
        ReturnRelease(low=values[0], high=values[1], weight=values[2])
