from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from privfedrl.errors import ConfigurationError
from privfedrl.privacy.units import Unit
from privfedrl.training.algorithms import Models, Objective
from privfedrl.training.local_update import clip_rows, row_norms
from privfedrl.training.metric_coordinates import ClipQuantile
from privfedrl.training.private_step import ReturnRelease, private_rows, return_coordinate
from privfedrl.training.reinforce import trajectory_weights
from privfedrl.training.subjects import grouped
from privfedrl.training.trajectory_gradients import Terms, fused, hooks, loop

RELEASE = ReturnRelease(low=0.0, high=10.0, weight=0.5)
QUANTILE = ClipQuantile(quantile=0.5, learning_rate=0.2, low=1e-3, high=1e3, weight=0.25)


def rows_of(network, batch, *, gamma, entropy_weight=0.0, **options):
    """The private step of REINFORCE."""
    objective = Objective(gamma=gamma, entropy_weight=entropy_weight)
    return private_rows(Models(network), batch, objective, **options)


def raw(network, batch):
    return loop(network, batch, trajectory_weights(batch, gamma=0.9), Terms(0.0)).numpy()


def by_person(batch, subjects, *, most=2, limit=3, admitted=None):
    """``batch`` with subjects, and its grouping."""
    named = replace(batch, subjects=tuple(subjects))
    grouping = grouped(named, max_trajectories=most, max_subjects=limit, admitted=admitted)
    return named, grouping


def test_rows_are_clipped_gradients_of_the_reinforce_objective(make_batch, make_network):
    network, batch = make_network(), make_batch([4, 0, 9])
    weights = trajectory_weights(batch, gamma=0.9)
    expected, _ = clip_rows(loop(network, batch, weights, Terms(0.0)).numpy(), 0.2)
    update = rows_of(network, batch, clip_norm=0.2, gamma=0.9)
    assert np.allclose(update.rows, expected, atol=1e-6)
    assert (update.unit, update.clip_norm) == (Unit.TRAJECTORY, 0.2)
    assert update.batch_id == batch.batch_id
    slow = rows_of(network, batch, clip_norm=0.2, gamma=0.9, gradient=hooks)
    assert np.allclose(slow.rows, update.rows, atol=1e-6)


def test_a_poisoned_trajectory_is_dropped_and_counted(make_batch, make_network):
    batch = make_batch([4, 9])
    observations = batch.observations.copy()
    observations[0, 1, 2] = math.nan
    update = rows_of(
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
    update = rows_of(make_network(), batch, clip_norm=0.2, gamma=0.9, return_release=RELEASE)
    assert update.clip_norm == pytest.approx(0.2 * math.sqrt(1.25))
    assert (row_norms(update.rows) <= update.clip_norm).all()
    total = update.rows[:, -1].sum()
    assert RELEASE.mean_return(total, clip_norm=0.2, denominator=3) == pytest.approx(20 / 3)


def test_infinite_rewards_of_both_signs_release_a_zero_return(make_batch, make_network):
    batch = make_batch([4])
    rewards = batch.rewards.copy()
    rewards[0, :2] = [math.inf, -math.inf]
    update = rows_of(
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


def test_a_persons_row_is_the_clipped_sum_of_that_persons_gradients(make_batch, make_network):
    network, batch = make_network(), make_batch([4, 7, 9, 5])
    named, grouping = by_person(batch, "abab")
    rows = raw(network, batch).astype(np.float64)
    expected, _ = clip_rows(np.stack([rows[0] + rows[2], rows[1] + rows[3], 0 * rows[0]]), 0.2)
    update = rows_of(network, named, clip_norm=0.2, gamma=0.9, grouping=grouping)
    assert np.allclose(update.rows, expected, atol=1e-6)
    assert (update.unit, update.clip_norm, update.num_units) == (Unit.PERSON, 0.2, 3)


def test_gradients_that_do_not_count_never_reach_the_gradient_code(make_batch, make_network):
    """Poison in what is dropped: the code that computes sees zeros, and the update is the same."""
    batch = make_batch([4, 7, 9, 5])
    seen = []

    def counting(network, given, weights, terms):
        seen.append((given, weights))
        return fused(network, given, weights, terms)

    updates = []
    for poison in (0.0, math.nan, math.inf, -3e38):
        observations, rewards = batch.observations.copy(), batch.rewards.copy()
        actions = batch.actions.copy()
        observations[[1, 3]], rewards[[1, 3]], actions[[1, 3]] = poison, poison, 99
        spoiled = replace(batch, observations=observations, rewards=rewards, actions=actions)
        # of a the second trajectory is surplus, c is not admitted
        named, grouping = by_person(spoiled, "aabc", most=1, admitted={"a", "b"})
        update = rows_of(
            make_network(),
            named,
            clip_norm=0.2,
            gamma=0.9,
            entropy_weight=0.1,
            return_release=RELEASE,
            clip_quantile=QUANTILE,
            grouping=grouping,
            gradient=counting,
        )
        updates.append((update.rows.tobytes(), update.nonfinite_units))
    assert len(set(updates)) == 1
    assert updates[0][1] == 0
    for given, weights in seen:
        assert given.mask.any(axis=1).tolist() == [True, False, True, False]
        for array in (given.observations, given.rewards, given.actions, weights):
            assert array.shape[0] == 4
            assert not array[[1, 3]].any()


def test_one_trajectory_that_is_not_finite_zeroes_its_persons_row_alone(make_batch, make_network):
    batch = make_batch([4, 7, 9])
    observations = batch.observations.copy()
    observations[1, 2, 0] = math.inf
    named, grouping = by_person(replace(batch, observations=observations), "aab")
    update = rows_of(make_network(), named, clip_norm=0.2, gamma=0.9, grouping=grouping)
    assert update.nonfinite_units == 1
    assert update.rows.any(axis=1).tolist() == [False, True, False]


def test_a_persons_return_is_the_mean_over_the_trajectories_that_happened(make_batch, make_network):
    batch = make_batch([4, 8, 0, 9, 5])
    batch = replace(batch, rewards=np.ones_like(batch.rewards))
    named, grouping = by_person(batch, "aaabc", most=3, limit=4, admitted={"a", "b"})
    release = replace(RELEASE, spread=True)
    update = rows_of(
        make_network(), named, clip_norm=0.2, gamma=0.9, return_release=release, grouping=grouping
    )
    # returns 6 and 9 between 0 and 10: positions 0.2 and 0.8
    assert update.rows[:, -2] / 0.1 == pytest.approx([0.2, 0.8, 0.0, 0.0])
    assert update.rows[:, -1] / 0.1 == pytest.approx([2 * 0.04 - 1, 2 * 0.64 - 1, 0.0, 0.0])
    assert update.clip_norm == pytest.approx(0.2 * math.sqrt(1.5))


def test_coordinates_come_in_the_documented_order(make_batch, make_network):
    network, batch = make_network(), make_batch([4, 0, 9])
    batch = replace(batch, rewards=np.ones_like(batch.rewards))
    update = rows_of(
        network,
        batch,
        clip_norm=0.2,
        gamma=0.9,
        return_release=replace(RELEASE, spread=True),
        clip_quantile=QUANTILE,
    )
    plain = rows_of(network, batch, clip_norm=0.2, gamma=0.9)
    within = np.where(row_norms(raw(network, batch).astype(np.float64)) <= 0.2, 1.0, -1.0)
    assert update.dimension == network.num_parameters + 3
    assert np.array_equal(update.rows[:, :-3], plain.rows)
    assert update.rows[:, -3] / 0.1 == pytest.approx([-0.2, 0.0, 0.8])
    assert update.rows[:, -2] / 0.1 == pytest.approx([2 * 0.04 - 1, 0.0, 2 * 0.64 - 1])
    assert update.rows[:, -1] / 0.05 == pytest.approx([within[0], 0.0, within[2]])
    assert update.clip_norm == pytest.approx(0.2 * math.sqrt(1 + 2 * 0.25 + 0.0625))


@pytest.mark.parametrize("current", [1e-3, 0.05, 0.2, 1.0, 50.0, 1e3])
def test_the_current_clip_scales_rows_to_the_plans_clip_and_no_further(
    make_batch, make_network, current
):
    network, batch = make_network(), make_batch([4, 0, 9, 9], seed=3)
    options = {"clip_norm": 0.2, "gamma": 0.9, "clip_quantile": QUANTILE}
    update = rows_of(network, batch, current_clip=current, **options)
    gradients = raw(network, batch)
    expected = clip_rows(gradients, current)[0] * (0.2 / current)
    assert np.allclose(update.rows[:, :-1], expected, rtol=1e-4, atol=1e-6)
    assert (row_norms(update.rows[:, :-1]) <= 0.2).all()
    assert update.clip_norm == pytest.approx(0.2 * math.sqrt(1.0625))
    within = np.where(row_norms(gradients.astype(np.float64)) <= current, 0.05, -0.05)
    assert update.rows[:, -1] == pytest.approx(within * [1, 0, 1, 1])


def test_a_gradient_that_is_not_finite_is_zero_and_counts_as_above(make_batch, make_network):
    batch = make_batch([4, 9])
    observations = batch.observations.copy()
    observations[0, 1, 2] = math.nan
    for current in (None, 0.5):
        update = rows_of(
            make_network(),
            replace(batch, observations=observations),
            clip_norm=1e3,
            gamma=0.9,
            clip_quantile=QUANTILE,
            current_clip=current,
        )
        assert update.nonfinite_units == 1
        assert not update.rows[0, :-1].any()
        assert update.rows[0, -1] == -250.0


@pytest.mark.parametrize("current", [0.0, -1.0, math.nan, math.inf, "1", 5e-4, 2e3])
def test_a_current_clip_outside_the_announced_range_is_refused(make_batch, make_network, current):
    with pytest.raises(ConfigurationError, match="current_clip"):
        rows_of(
            make_network(),
            make_batch([4]),
            clip_norm=1.0,
            gamma=0.9,
            clip_quantile=QUANTILE,
            current_clip=current,
        )


def test_a_public_clip_needs_no_quantile(make_batch, make_network):
    network, batch = make_network(), make_batch([4, 9])
    rows = rows_of(network, batch, clip_norm=1.0, gamma=0.9, current_clip=1e-4).rows
    assert row_norms(rows) == pytest.approx([1.0, 1.0])
