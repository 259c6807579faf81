"""Metric coordinates: bounded, centred, and read back by post-processing alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedrl.errors import ConfigurationError
from privfedrl.training.clip_groups import total_clip
from privfedrl.training.metric_coordinates import (
    ClipQuantile,
    ReturnRelease,
    count_coordinate,
    return_coordinate,
    row_groups,
    spread_coordinate,
)

RELEASE = ReturnRelease(low=0.0, high=10.0, weight=0.5, spread=True)
QUANTILE = ClipQuantile(quantile=0.5, learning_rate=0.2, low=0.01, high=4.0, weight=0.25)
NONSENSE = np.array([math.nan, math.inf, -math.inf])


def test_a_row_is_policy_then_returns_then_clip_count():
    groups = row_groups(7, clip_norm=2.0, return_release=RELEASE, clip_quantile=QUANTILE)
    assert [(g.name, g.size) for g in groups] == [("policy", 7), ("returns", 2), ("clip count", 1)]
    assert [g.clip_norm for g in groups] == pytest.approx([2.0, math.sqrt(2.0), 0.5])
    assert total_clip(groups) == pytest.approx(2.0 * math.sqrt(1 + 2 * 0.5**2 + 0.25**2))
    assert [g.name for g in row_groups(7, clip_norm=2.0)] == ["policy"]


@pytest.mark.parametrize(("spread", "factor"), [(False, 1), (True, 2)])
def test_the_total_clip_counts_every_released_coordinate(spread, factor):
    release = ReturnRelease(low=0.0, high=1.0, weight=0.5, spread=spread)
    assert release.total_clip(2.0) == pytest.approx(2.0 * math.sqrt(1 + 0.25 * factor))


def test_the_spread_coordinate_is_centred_clamped_and_zero_when_not_finite():
    values = np.array([5.0, 10.0, 0.0, 1e300, -1e300, 7.5])
    found = spread_coordinate(values, RELEASE, clip_norm=2.0)
    assert found.tolist() == [-1.0, 1.0, 1.0, 1.0, 1.0, -0.5]
    assert spread_coordinate(NONSENSE, RELEASE, clip_norm=2.0).tolist() == [0.0] * 3


@given(st.lists(st.floats(), min_size=1), st.floats(0.01, 3.0), st.floats(1e-3, 1e3))
def test_return_coordinates_stay_within_their_group_whatever_the_returns(values, weight, clip):
    release = ReturnRelease(low=-3.0, high=5.0, weight=weight, spread=True)
    returns = np.array(values)
    found = [
        return_coordinate(returns, release, clip_norm=clip),
        spread_coordinate(returns, release, clip_norm=clip),
    ]
    for column in found:
        assert (np.abs(column) <= weight * clip * (1 + 1e-12)).all()
    norms = np.hypot(*found)
    assert (norms <= release.group(clip).clip_norm * (1 + 1e-12)).all()


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=50))
def test_mean_and_standard_deviation_come_back_from_the_summed_coordinates(values):
    returns = np.array(values)
    sums = [
        float(column.sum())
        for column in (
            return_coordinate(returns, RELEASE, clip_norm=0.3),
            spread_coordinate(returns, RELEASE, clip_norm=0.3),
        )
    ]
    options = {"clip_norm": 0.3, "denominator": len(values)}
    assert RELEASE.mean_return(sums[0], **options) == pytest.approx(returns.mean(), abs=1e-6)
    assert RELEASE.return_std(*sums, **options) == pytest.approx(returns.std(), abs=1e-5)


def test_noise_can_make_a_variance_negative_and_its_root_is_then_zero():
    assert RELEASE.return_std(1.0, -50.0, clip_norm=1.0, denominator=3) == 0.0


def test_the_count_coordinate_is_plus_within_the_clip_and_minus_above_or_without_a_norm():
    norms = np.array([0.0, 1.0, 1.0000001, math.inf, math.nan])
    found = count_coordinate(norms, QUANTILE, current_clip=1.0, clip_norm=2.0)
    assert found.tolist() == [0.5, 0.5, -0.5, -0.5, -0.5]


def moved(fraction: float, *, clip: float = 1.0, count: int = 8, quantile=QUANTILE) -> float:
    """The next clip when ``fraction`` of ``count`` units were within the clip; no noise."""
    total = quantile.weight * 2.0 * count * (2 * fraction - 1)
    return quantile.next_clip(clip, total, clip_norm=2.0, denominator=count)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.875, 1.0])
def test_the_clip_moves_by_the_geometric_rule_of_andrew_et_al(fraction):
    assert moved(fraction) == pytest.approx(math.exp(-0.2 * (fraction - 0.5)))


def test_the_clip_settles_at_the_quantile_of_the_norms():
    norms = np.random.default_rng(0).lognormal(size=2000)
    quantile = ClipQuantile(quantile=0.8, learning_rate=0.2, low=1e-3, high=1e3, weight=0.1)
    clip = 1e-2
    for _ in range(300):
        column = count_coordinate(norms, quantile, current_clip=clip, clip_norm=0.5)
        clip = quantile.next_clip(clip, float(column.sum()), clip_norm=0.5, denominator=len(norms))
    assert np.mean(norms <= clip) == pytest.approx(0.8, abs=0.01)


@given(st.floats(-1e300, 1e300), st.floats(0.01, 4.0), st.integers(1, 10**9))
def test_whatever_the_noise_the_clip_stays_within_its_bounds_and_its_step(noise, clip, count):
    found = QUANTILE.next_clip(clip, noise, clip_norm=2.0, denominator=count)
    assert 0.01 <= found <= 4.0
    assert clip * math.exp(-0.1) * (1 - 1e-12) <= found <= clip * math.exp(0.1) * (1 + 1e-12)


def test_absent_units_pull_the_measured_share_to_one_half():
    """A bias of the estimate, not of the guarantee; harmless at quantile 1/2."""
    present = moved(1.0, count=4)
    total = QUANTILE.weight * 2.0 * 4
    half_absent = QUANTILE.next_clip(1.0, total, clip_norm=2.0, denominator=8)
    assert half_absent == pytest.approx(math.sqrt(present))


@pytest.mark.parametrize("clip", [0.0, 0.009, 4.1, math.nan, math.inf, True, "1", None])
def test_a_current_clip_outside_its_bounds_is_refused(clip):
    with pytest.raises(ConfigurationError, match="current_clip"):
        QUANTILE.next_clip(clip, 0.0, clip_norm=1.0, denominator=1)


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_sum_that_is_not_finite_is_refused(value):
    with pytest.raises(ConfigurationError, match="coordinate_sum"):
        QUANTILE.next_clip(1.0, value, clip_norm=1.0, denominator=1)


@pytest.mark.parametrize("count", [0, -1, 1.5, True, None, 10**400])
def test_an_impossible_denominator_is_refused(count):
    with pytest.raises(ConfigurationError, match="denominator"):
        QUANTILE.next_clip(1.0, 0.0, clip_norm=1.0, denominator=count)
    with pytest.raises(ConfigurationError, match="denominator"):
        RELEASE.mean_return(0.0, clip_norm=1.0, denominator=count)
    with pytest.raises(ConfigurationError, match="denominator"):
        RELEASE.return_std(0.0, 0.0, clip_norm=1.0, denominator=count)


@pytest.mark.parametrize(
    "changes",
    [
        {"quantile": 0.0},
        {"quantile": 1.0},
        {"quantile": math.nan},
        {"quantile": "half"},
        {"learning_rate": 0.0},
        {"learning_rate": 11.0},
        {"learning_rate": math.inf},
        {"low": 0.0},
        {"high": math.inf},
        {"low": 5.0},
        {"weight": 0.0},
        {"weight": math.nan},
        {"weight": True},
    ],
)
def test_impossible_quantiles_are_refused(changes):
    values = {"quantile": 0.5, "learning_rate": 0.2, "low": 0.01, "high": 4.0, "weight": 0.25}
    with pytest.raises(ConfigurationError, match="clip_quantile"):
        ClipQuantile(**(values | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"low": 1.0, "high": 1.0},
        {"low": 2.0},
        {"low": math.nan},
        {"high": math.inf},
        {"high": None},
        {"low": 2e-323, "high": 2.5e-323},  # both halve to the same number
        {"weight": 0.0},
        {"weight": 1e7},
        {"spread": 1},
    ],
)
def test_impossible_return_releases_are_refused(changes):
    with pytest.raises(ConfigurationError, match="return_release"):
        ReturnRelease(**({"low": 0.0, "high": 1.0, "weight": 1.0} | changes))
