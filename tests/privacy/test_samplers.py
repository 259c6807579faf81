"""Both samplers' tables are within their stated distance of the exact distributions."""

import math
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ive
from scipy.stats import skellam as scipy_skellam

from privfedrl.errors import ConfigurationError
from privfedrl.privacy import samplers, table_sampler
from privfedrl.privacy.samplers import (
    MAX_GAUSSIAN_VARIANCE,
    MAX_VARIANCE,
    DiscreteGaussianSampler,
    SkellamSampler,
    delta_of_sampler,
    discrete_gaussian_total_variation,
    skellam_total_variation,
    tail_radius,
)
from privfedrl.privacy.table_sampler import MAX_SIZE, Table, draw_sum, read_entropy, table_of

BITS = 512  # working precision of the independent references

Sampler = type[SkellamSampler] | type[DiscreteGaussianSampler]
SAMPLERS: list[Sampler] = [SkellamSampler, DiscreteGaussianSampler]
TABLES: dict[Sampler, Callable[[int], Table]] = {
    SkellamSampler: samplers._skellam_table,
    DiscreteGaussianSampler: samplers._gaussian_table,
}
both = pytest.mark.parametrize("sampler", SAMPLERS)


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


def gaussian(k: int, variance: int) -> int:
    """exp(-k^2 / (2 variance)) 2^BITS as 1 / exp(k^2 / (2 variance)): a sum of positive terms."""
    square, denominator = k * k, 2 * variance
    term = total = 2 ** (2 * BITS)
    m = 0
    while term:
        m += 1
        term = term * square // (denominator * m)
        total += term
    return 2 ** (3 * BITS) // total


def exact_weights(sampler: Sampler, variance: int) -> Iterator[int]:
    """All that matters of one side: up to a tail below 2^-300."""
    if sampler is SkellamSampler:
        return (bessel(k, variance) for k in range(tail_radius(variance, 300) + 1))
    return (gaussian(k, variance) for k in range(math.isqrt(420 * variance) + 2))


def thresholds_of(table: Table) -> list[int]:
    return [(int(h) << 64) + int(x) for h, x in zip(table.high, table.low, strict=True)]


CASES = [(sampler, variance) for variance in (1, 2, 3, 9, 50) for sampler in SAMPLERS]


@pytest.mark.parametrize(
    ("sampler", "variance"), [*CASES, (DiscreteGaussianSampler, 1000), (SkellamSampler, 300)]
)
def test_every_threshold_is_within_the_bound_of_a_high_precision_reference(
    sampler: Sampler, variance: int
) -> None:
    """All numbers are integers over 2^128 total: no rounding in the comparison."""
    ours = [*thresholds_of(TABLES[sampler](variance)), 2**128]
    exact = list(exact_weights(sampler, variance))
    total = 2 * sum(exact) - exact[0]
    worst = distance = previous = last = 0
    cumulative = -exact[0]
    for j, threshold in enumerate(ours):
        cumulative += 2 * exact[j] if j < len(ours) - 1 else total - cumulative
        difference = threshold * total - (cumulative << 128)
        worst = max(worst, abs(difference))
        distance += abs((threshold - previous) * total - ((cumulative - last) << 128))
        previous, last = threshold, cumulative
    # beyond the last threshold the table gives nothing: the law's tail moves to the last magnitude
    tail = sum(2 * weight for weight in exact[len(ours) :]) << 128
    bound = sampler(variance).total_variation
    assert worst <= total + (total >> 8)  # one unit of rounding, and next to nothing else
    assert Fraction(distance + 2 * tail, 2 * total << 128) <= Fraction(bound)
    assert 2.0**-128 < bound <= (len(ours) + 1) * 2.0**-128


@pytest.mark.parametrize("variance", [1, 2, 7, 1000])
def test_gaussian_weights_err_by_less_than_the_proof_says(variance: int) -> None:
    last = samplers._gaussian_radius(variance)
    weights = samplers._gaussian_weights(variance, last)
    for k, weight in enumerate(weights):
        error = abs((weight << (BITS - 192)) - gaussian(k, variance))
        assert error <= (3 * k * (k + 1) // 2 << (BITS - 192)) + 2, k


@pytest.mark.parametrize("divisor", [1, 2, 3, 10**6, 2**31])
def test_the_exponential_series_errs_by_less_than_two_units(divisor: int) -> None:
    ours = samplers._exp_of_minus_reciprocal(divisor) << (BITS - 192)
    reference = gaussian(2, 2 * divisor)  # exp(-4 / (4 divisor))
    assert abs(ours - reference) < 2 << (BITS - 192)


@given(st.integers(1, MAX_GAUSSIAN_VARIANCE))
def test_the_gaussian_radius_is_the_least_with_the_stated_tail(variance: int) -> None:
    x = samplers._gaussian_radius(variance)
    assert x * x >= 233 * variance > (x - 1) ** 2
    assert x * x / (2 * variance) > 168 * math.log(2)
    assert x < 2**19


@pytest.mark.parametrize("variance", [1, 4, 100])
def test_the_subgaussian_tail_is_above_the_true_tail(variance: int) -> None:
    exact = list(exact_weights(DiscreteGaussianSampler, variance))
    total = 2 * sum(exact) - exact[0]
    for x in range(1, len(exact), max(1, len(exact) // 20)):
        # P(X >= x) <= exp(-x^2 / (2 v)), up to what the reference cut off
        assert Fraction(sum(exact[x:]), total) <= Fraction(gaussian(x, variance) + 1, 2**BITS)


def test_larger_gaussian_tables_agree_with_scipy_at_every_threshold() -> None:
    for variance in (10**4, 10**6):
        cdf = samplers._gaussian_table(variance).high.astype(np.float64) * 2.0**-64
        k = np.arange(cdf.size, dtype=np.float64)
        weights = np.exp(-k * k / (2 * variance))
        reference = 2 * np.cumsum(weights) - 1
        np.testing.assert_allclose(cdf, reference / (2 * weights.sum() - 1), rtol=1e-12)


@pytest.mark.parametrize("variance", [100, 10**4, 10**6])
def test_larger_skellam_tables_agree_with_scipy(variance: int) -> None:
    table = samplers._skellam_table(variance)
    cdf = table.high.astype(np.float64) * 2.0**-64
    j = np.arange(0, int(6 * math.sqrt(variance)), max(1, int(math.sqrt(variance)) // 7))
    terms = ive(np.arange(int(8 * math.sqrt(variance))), variance)
    reference = 2 * np.cumsum(terms) - terms[0]
    np.testing.assert_allclose(cdf[j], reference[j], rtol=1e-9)


@both
@pytest.mark.parametrize("variance", [1, 9, 10**4])
def test_thresholds_increase_and_the_guide_brackets_them(sampler: Sampler, variance: int) -> None:
    table = TABLES[sampler](variance)
    values = thresholds_of(table)
    assert values == sorted(values)
    assert values[-1] < 2**128
    assert np.all(table.start <= table.stop)
    assert np.array_equal(table.start[1:], table.stop[:-1])


def test_tables_are_cached_and_cannot_be_edited() -> None:
    table = samplers._gaussian_table(9)
    assert samplers._gaussian_table(9) is table
    with pytest.raises(ValueError, match="read-only"):
        table.high[0] = 0


def magnitude_of(uniform: int, sampler: Sampler, variance: int) -> int:
    """What the sampler returns for one given 128-bit uniform, sign bit 0."""
    reads = 0

    def lazily(size: int) -> bytes:
        # order of reads: high word, then the low word if it is needed, then the sign
        nonlocal reads
        reads += 1
        if size == 1:
            return b"\x00"
        return (uniform >> 64 if reads == 1 else uniform & (2**64 - 1)).to_bytes(8, "little")

    return int(sampler(variance, entropy=lazily).sample(1)[0])


@both
@pytest.mark.parametrize("variance", [1, 9, 1000])
def test_all_128_bits_decide_and_the_edges_fall_on_the_right_side(
    sampler: Sampler, variance: int
) -> None:
    thresholds = thresholds_of(TABLES[sampler](variance))
    picks = sorted({0, 1, 2, 3, len(thresholds) // 2, len(thresholds) - 2, len(thresholds) - 1})
    for j in picks:
        threshold = thresholds[j]
        for uniform in (threshold, threshold - 1):
            at = sum(t <= uniform for t in thresholds)
            assert magnitude_of(uniform, sampler, variance) == at
    assert magnitude_of(0, sampler, variance) == 0
    assert magnitude_of(2**128 - 1, sampler, variance) == len(thresholds)


@both
@given(uniform=st.integers(0, 2**128 - 1))
def test_inversion_equals_a_count_of_thresholds(sampler: Sampler, uniform: int) -> None:
    thresholds = thresholds_of(TABLES[sampler](9))
    assert magnitude_of(uniform, sampler, 9) == sum(t <= uniform for t in thresholds)


@both
def test_the_sign_bit_negates_and_leaves_the_magnitude(sampler: Sampler) -> None:
    def entropy(fill: bytes) -> Callable[[int], bytes]:
        source = stream(5)
        return lambda size: source(size) if size >= 8 else fill * size

    plus = sampler(100, entropy=entropy(b"\x00")).sample(8)
    minus = sampler(100, entropy=entropy(b"\xff")).sample(8)
    assert np.array_equal(plus, -minus)
    assert np.all(plus >= 0)


@given(st.lists(st.integers(0, 2**200) | st.just(0), min_size=1, max_size=12), st.integers(1))
def test_any_half_table_of_weights_gives_thresholds_rounded_down_by_at_most_one_unit(
    rest: list[int], first: int
) -> None:
    weights = [first, *rest]
    total = 2 * sum(weights) - weights[0]
    for j, threshold in enumerate([*thresholds_of(table_of(weights)), 2**128]):
        exact = Fraction((2 * sum(weights[: j + 1]) - weights[0]) << 128, total)
        assert 0 <= exact - threshold <= 1
        assert threshold < 2**128 or j == len(rest)


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


@pytest.mark.parametrize(
    "variance", [MAX_GAUSSIAN_VARIANCE + 1, 2**60, 10**5000], ids=["first", "wide", "huge"]
)
def test_a_gaussian_too_wide_for_a_table_is_refused_and_the_way_out_is_named(variance: int) -> None:
    for refuses in (DiscreteGaussianSampler, discrete_gaussian_total_variation):
        with pytest.raises(ConfigurationError, match=r"variance must be <= .*coarser resolution"):
            refuses(variance)


def test_the_widest_gaussian_table_is_built_and_within_its_bound() -> None:
    sampler = DiscreteGaussianSampler(MAX_GAUSSIAN_VARIANCE, entropy=stream(2))
    assert sampler.total_variation < 2.0**-109
    drawn = sampler.sample(1000)
    assert np.abs(drawn).max() < 8 * 2**15
    assert drawn.std() == pytest.approx(2**15, rel=0.15)  # 6.7 standard errors


@both
def test_blocks_join_and_sizes_are_exact(sampler: Sampler) -> None:
    source = sampler(4, entropy=stream(1))
    assert source.sample(0).shape == (0,)
    assert source.sample(table_sampler.BLOCK + 3).shape == (table_sampler.BLOCK + 3,)
    assert source.sample(5).dtype == np.int64


@both
def test_noise_comes_from_the_given_source_and_from_the_system_by_default(
    sampler: Sampler,
) -> None:
    first, second = (sampler(10**4, entropy=stream(9)).sample(64) for _ in range(2))
    assert np.array_equal(first, second)
    system = sampler(10**4)
    assert system._entropy is os.urandom
    assert not np.array_equal(system.sample(64), system.sample(64))


@both
@pytest.mark.parametrize(
    "faulty", [lambda size: bytes(max(0, size - 1)), lambda size: bytes(size + 1)]
)
def test_a_source_that_returns_the_wrong_number_of_bytes_is_refused(
    sampler: Sampler, faulty: Callable[[int], bytes]
) -> None:
    with pytest.raises(ConfigurationError, match="entropy must return 24 bytes when asked"):
        sampler(4, entropy=faulty).sample(3)


@pytest.mark.parametrize("answer", ["text", None, 8, [0] * 8])
def test_a_source_that_returns_no_bytes_is_refused(answer: Any) -> None:
    with pytest.raises(ConfigurationError, match=type(answer).__name__):
        read_entropy(lambda size: answer, 8)


@both
def test_constant_bytes_neither_hang_nor_leave_the_table(sampler: Sampler) -> None:
    for fill in (b"\x00", b"\x55", b"\xff"):
        drawn = sampler(9, entropy=lambda size, fill=fill: fill * size).sample(9)
        assert np.abs(drawn).max() <= TABLES[sampler](9).high.size


def test_the_repr_shows_no_randomness() -> None:
    assert repr(SkellamSampler(4)) == "SkellamSampler(variance=4)"
    assert repr(DiscreteGaussianSampler(4)) == "DiscreteGaussianSampler(variance=4)"


@pytest.mark.parametrize(
    "bad",
    [0, -1, 2.0, math.nan, math.inf, True, "9", None, MAX_VARIANCE + 1, -(10**5000)],
    ids=lambda bad: str(bad) if not isinstance(bad, int) or abs(bad) < 2**64 else "huge",
)
def test_a_variance_out_of_range_is_refused(bad: Any) -> None:
    for refuses in (
        SkellamSampler,
        DiscreteGaussianSampler,
        skellam_total_variation,
        discrete_gaussian_total_variation,
    ):
        with pytest.raises(ConfigurationError, match="variance"):
            refuses(bad)


def test_a_bool_is_refused_even_after_the_same_number_was_cached() -> None:
    assert skellam_total_variation(1) > 0
    with pytest.raises(ConfigurationError, match="variance"):
        skellam_total_variation(True)


@both
@pytest.mark.parametrize("bad", [-1, 1.0, True, None, MAX_SIZE + 1, 10**30])
def test_a_size_out_of_range_is_refused(sampler: Sampler, bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="size"):
        sampler(4).sample(bad)


def test_a_sum_of_no_tables_is_zero() -> None:
    assert not draw_sum([], 3, os.urandom).any()


@pytest.mark.parametrize("bits", [math.nan, math.inf, -math.inf, 2.0**21, 10**400, "9", True])
def test_a_tail_of_nonsense_bits_is_refused(bits: Any) -> None:
    with pytest.raises(ConfigurationError, match="bits"):
        tail_radius(9, bits)


def test_a_tail_of_an_absurd_variance_is_refused() -> None:
    assert tail_radius(2**256, 100) > 2**128
    with pytest.raises(ConfigurationError, match="variance"):
        tail_radius(10**400, 100)


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
        (1, "1", 1, "epsilon"),
        (0, 1.0, 1, "coordinates"),
        (1, -1.0, 1, "epsilon"),
        (1, math.nan, 1, "epsilon"),
        (1, 1.0, 0, "shares"),
    ],
)
def test_the_charge_refuses_nonsense(
    coordinates: int, epsilon: Any, shares: int, name: str
) -> None:
    with pytest.raises(ConfigurationError, match=name):
        delta_of_sampler(
            skellam_total_variation(4), coordinates=coordinates, epsilon=epsilon, shares=shares
        )


@pytest.mark.parametrize("bad", [0.0, -0.5, 1.5, math.nan, 10**400, "0.5", None, True])
def test_a_total_variation_that_is_no_probability_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="total_variation"):
        delta_of_sampler(bad, coordinates=1, epsilon=1.0, shares=1)
