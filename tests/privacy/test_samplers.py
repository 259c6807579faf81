"""The sampler's table is within its stated distance of the exact distribution."""

import math
import os
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ive
from scipy.stats import skellam as scipy_skellam

from privfedrl.errors import ConfigurationError
from privfedrl.privacy import samplers
from privfedrl.privacy.samplers import (
    MAX_VARIANCE,
    SkellamSampler,
    delta_of_sampler,
    skellam_total_variation,
    tail_radius,
)

BITS = 512  # working precision of the independent reference


def stream(seed: int) -> Callable[[int], bytes]:
    return np.random.default_rng(seed).bytes


def bessel(order: int, variance: int) -> int:
    """I_order(variance) 2^BITS by its power series in exact integers: no recurrence, no float."""
    half = Fraction(variance, 2)
    term = (Fraction(2**BITS) * half**order) / math.factorial(order)
    value, square, m, total = int(term), half * half, 0, 0
    while value:
        total += value
        m += 1
        value = int(value * square.numerator // (square.denominator * m * (m + order)))
    return total


@pytest.mark.parametrize("variance", [1, 2, 3, 9, 50])
def test_every_threshold_is_within_the_bound_of_a_high_precision_reference(variance: int) -> None:
    table = samplers._table(variance)
    entries = table.high.size
    tail = tail_radius(variance, 300)
    exact = [bessel(k, variance) for k in range(tail + 1)]
    total = 2 * sum(exact) - exact[0]
    cumulative, worst = -exact[0], Fraction(0)
    previous = Fraction(0)
    distance = Fraction(0)
    last = Fraction(0)
    for j in range(entries):
        cumulative += 2 * exact[j]
        ours = Fraction((int(table.high[j]) << 64) + int(table.low[j]), 2**128)
        reference = Fraction(cumulative, total)
        worst = max(worst, abs(ours - reference))
        distance += abs((ours - previous) - (reference - last))
        previous, last = ours, reference
    distance += abs((1 - previous) - (1 - last))
    assert worst <= Fraction(entries + 2, 2**128)
    assert distance / 2 <= Fraction(skellam_total_variation(variance))
    assert skellam_total_variation(variance) <= (entries + 2) * 2.0**-126


@pytest.mark.parametrize("variance", [100, 10**4, 10**6])
def test_larger_tables_agree_with_scipy(variance: int) -> None:
    table = samplers._table(variance)
    cdf = table.high.astype(np.float64) * 2.0**-64
    j = np.arange(0, int(6 * math.sqrt(variance)), max(1, int(math.sqrt(variance)) // 7))
    terms = ive(np.arange(int(8 * math.sqrt(variance))), variance)
    reference = 2 * np.cumsum(terms) - terms[0]
    np.testing.assert_allclose(cdf[j], reference[j], rtol=1e-9)


@pytest.mark.parametrize("variance", [1, 9, 10**4])
def test_thresholds_increase_and_the_guide_brackets_them(variance: int) -> None:
    table = samplers._table(variance)
    values = [(int(h) << 64) + int(x) for h, x in zip(table.high, table.low, strict=True)]
    assert values == sorted(values)
    assert values[-1] < 2**128
    assert np.all(table.start <= table.stop)
    assert np.array_equal(table.start[1:], table.stop[:-1])


def magnitude_of(uniform: int, variance: int) -> int:
    """What the sampler returns for one given 128-bit uniform, sign bit 0."""
    parts = [(uniform >> 64).to_bytes(8, "little"), b"\x00"]

    def entropy(size: int) -> bytes:
        if size == 1:
            return b"\x00"
        if parts:
            first = parts.pop(0)
            if len(first) == 8:
                parts.clear()
                return first
        return (uniform & (2**64 - 1)).to_bytes(8, "little")

    return int(SkellamSampler(variance, entropy=entropy).sample(1)[0])


@pytest.mark.parametrize("variance", [1, 9, 1000])
def test_all_128_bits_decide_and_the_edges_fall_on_the_right_side(variance: int) -> None:
    table = samplers._table(variance)
    thresholds = [(int(h) << 64) + int(x) for h, x in zip(table.high, table.low, strict=True)]
    picks = sorted({0, 1, 2, 3, len(thresholds) // 2, len(thresholds) - 2, len(thresholds) - 1})
    for j in picks:
        threshold = thresholds[j]
        at = sum(t <= threshold for t in thresholds)
        assert magnitude_of(threshold, variance) == at
        assert magnitude_of(threshold - 1, variance) == sum(t <= threshold - 1 for t in thresholds)
    assert magnitude_of(0, variance) == 0
    assert magnitude_of(2**128 - 1, variance) == len(thresholds)


@given(st.integers(0, 2**128 - 1))
@settings(deadline=None)
def test_inversion_equals_a_count_of_thresholds(uniform: int) -> None:
    table = samplers._table(9)
    thresholds = [(int(h) << 64) + int(x) for h, x in zip(table.high, table.low, strict=True)]
    assert magnitude_of(uniform, 9) == sum(t <= uniform for t in thresholds)


def test_the_sign_bit_negates_and_leaves_the_magnitude() -> None:
    def entropy(fill: bytes) -> Callable[[int], bytes]:
        source = stream(5)
        return lambda size: source(size) if size >= 8 else fill * size

    plus = SkellamSampler(100, entropy=entropy(b"\x00")).sample(8)
    minus = SkellamSampler(100, entropy=entropy(b"\xff")).sample(8)
    assert np.array_equal(plus, -minus)
    assert np.all(plus >= 0)


@given(st.integers(1, 10**9), st.floats(1, 300))
@settings(deadline=None)
def test_the_tail_radius_is_the_least_that_its_bound_allows(variance: int, bits: float) -> None:
    x = tail_radius(variance, bits)
    assert x >= 1

    def log2_bound(k: int) -> float:
        v = float(variance)
        return (math.hypot(v, k) - v - k * math.asinh(k / v)) / math.log(2)

    assert log2_bound(x) <= -bits * (1 - 1e-6) + 1e-6
    if x > 1:
        assert log2_bound(x - 1) > -bits * (1 + 1e-6) - 1e-6


@pytest.mark.parametrize("variance", [1, 4, 100, 2500])
def test_the_chernoff_tail_is_above_the_true_tail(variance: int) -> None:
    for bits in (3, 10, 30):
        x = tail_radius(variance, bits)
        assert scipy_skellam.sf(x - 1, variance / 2, variance / 2) <= 2.0**-bits


def test_no_noise_has_no_tail() -> None:
    assert tail_radius(0, 100) == 1


@pytest.mark.parametrize("variance", [2**30, 2**30 + 1, 3 * 2**30 + 7, MAX_VARIANCE])
def test_large_variances_are_split_without_loss(variance: int) -> None:
    parts = samplers._parts(variance)
    assert sum(parts) == variance
    assert max(parts) <= 2**30
    assert max(parts) - min(parts) <= 1
    assert skellam_total_variation(variance) < 2.0**-100


def test_a_sum_of_two_tables_has_the_variance_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variance of 200,000 samples within 6 standard errors; false-positive rate < 1e-8."""
    monkeypatch.setattr(samplers, "_TABLE_VARIANCE", 10)
    size = 200_000
    drawn = SkellamSampler(25, entropy=stream(3)).sample(size)
    assert samplers._parts(25) == [9, 8, 8]
    assert drawn.var() == pytest.approx(25, abs=6 * math.sqrt((2 * 25**2 + 25) / size))


def test_blocks_join_and_sizes_are_exact() -> None:
    sampler = SkellamSampler(4, entropy=stream(1))
    assert sampler.sample(0).shape == (0,)
    assert sampler.sample(samplers._BLOCK + 3).shape == (samplers._BLOCK + 3,)
    assert sampler.sample(5).dtype == np.int64


def test_noise_comes_from_the_given_source_and_from_the_system_by_default() -> None:
    first, second = (SkellamSampler(10**4, entropy=stream(9)).sample(64) for _ in range(2))
    assert np.array_equal(first, second)
    system = SkellamSampler(10**4)
    assert system._entropy is os.urandom
    assert not np.array_equal(system.sample(64), system.sample(64))


def test_a_source_that_returns_too_little_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="entropy"):
        SkellamSampler(4, entropy=lambda size: bytes(max(0, size - 1))).sample(3)


def test_the_repr_shows_no_randomness() -> None:
    assert repr(SkellamSampler(4)) == "SkellamSampler(variance=4)"


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, MAX_VARIANCE + 1])
def test_a_variance_out_of_range_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="variance"):
        SkellamSampler(bad)
    with pytest.raises(ConfigurationError, match="variance"):
        skellam_total_variation(bad)


@pytest.mark.parametrize("bad", [-1, 1.0, True])
def test_a_size_out_of_range_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="size"):
        SkellamSampler(4).sample(bad)


def test_the_charge_for_the_sampler_is_negligible_but_not_zero() -> None:
    charge = delta_of_sampler(
        skellam_total_variation(1000**2), coordinates=2**20, epsilon=1.0, shares=1000
    )
    assert 0 < charge < 2.0**-70
    sampler = SkellamSampler(1000**2)
    assert charge == pytest.approx((1 + math.e) * sampler.total_variation * 2**20 * 1000)


def test_the_charge_for_the_sampler_is_a_probability_at_any_input() -> None:
    assert (
        delta_of_sampler(skellam_total_variation(1), coordinates=1, epsilon=math.inf, shares=1)
        == 1.0
    )
    assert (
        delta_of_sampler(skellam_total_variation(1), coordinates=1, epsilon=500.0, shares=1) == 1.0
    )
    assert (
        delta_of_sampler(
            skellam_total_variation(1), coordinates=10**400, epsilon=1.0, shares=10**400
        )
        == 1.0
    )
    assert delta_of_sampler(
        skellam_total_variation(1), coordinates=1, epsilon=0.0, shares=1
    ) == 2 * skellam_total_variation(1)


@pytest.mark.parametrize(
    ("coordinates", "epsilon", "shares", "name"),
    [
        (0, 1.0, 1, "coordinates"),
        (1, -1.0, 1, "epsilon"),
        (1, math.nan, 1, "epsilon"),
        (1, 1.0, 0, "shares"),
    ],
)
def test_the_charge_refuses_nonsense(
    coordinates: int, epsilon: float, shares: int, name: str
) -> None:
    with pytest.raises(ConfigurationError, match=name):
        delta_of_sampler(
            skellam_total_variation(4), coordinates=coordinates, epsilon=epsilon, shares=shares
        )
