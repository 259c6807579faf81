"""Table samplers and the exact oracle follow their laws; samples are independent.

Seeds are fixed, so results do not vary. False-positive rate (over seeds) of each test at most 1e-6,
for chi-square and normal scores up to the quality of these approximations (cells of at least 100).
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import chi2, norm

from privfedrl.privacy.exact_samplers import (
    exact_discrete_gaussian,
    exact_discrete_laplace,
    exact_poisson,
    exact_skellam,
)
from privfedrl.privacy.samplers import DiscreteGaussianSampler, SkellamSampler
from privfedrl.privacy.table_sampler import BLOCK

pytestmark = pytest.mark.statistical

ALPHA = 1e-6
SIZE = 300_000  # more than two blocks
ORACLE = 8_000
SAMPLERS = {"skellam": SkellamSampler, "gaussian": DiscreteGaussianSampler}
ORACLES: dict[str, Callable[..., list[int]]] = {
    "gaussian": exact_discrete_gaussian,
    "skellam": exact_skellam,
    "poisson": exact_poisson,
    "laplace": exact_discrete_laplace,
}
LawOf = Callable[[str, float], Any]
Dkw = Callable[[int, float], float]
both = pytest.mark.parametrize("family", ["skellam", "gaussian"])


def table_samples(family: str, variance: int, *, seed: int = 0) -> npt.NDArray[np.int64]:
    entropy = np.random.default_rng([variance, seed]).bytes
    return SAMPLERS[family](variance, entropy=entropy).sample(SIZE)


def oracle_samples(family: str, parameter: int | Fraction, size: int) -> npt.NDArray[np.int64]:
    entropy = np.random.default_rng([int(4 * parameter), size]).bytes
    return np.array(ORACLES[family](parameter, size, entropy=entropy), dtype=np.int64)


@both
@pytest.mark.parametrize("variance", [1, 2, 10, 100, 2500, 10**6])
def test_table_samples_follow_the_exact_pmf(family: str, variance: int, law_of: LawOf) -> None:
    """Chi-square; rate 1e-6."""
    assert law_of(family, variance).p_value(table_samples(family, variance)) > ALPHA


@both
@pytest.mark.parametrize("variance", [1, 9, 900, 10**6])
def test_the_distribution_function_of_table_samples_is_as_near_as_it_must_be(
    family: str, variance: int, law_of: LawOf, dkw: Dkw
) -> None:
    """DKW inequality, proven for every size; rate 1e-6."""
    samples = table_samples(family, variance, seed=1)
    assert law_of(family, variance).cdf_distance(samples) <= dkw(SIZE, ALPHA)


@both
@pytest.mark.parametrize("variance", [1, 9, 900, 10**6, 2**30])
def test_mean_and_variance_of_table_samples_are_right(family: str, variance: int) -> None:
    """Normal scores, 5e-7 each; moments of both laws in closed form."""
    samples = table_samples(family, variance, seed=2).astype(np.float64)
    limit = norm.isf(ALPHA / 4)
    # fourth moments: 3 v^2 + v of a Skellam, 3 v^2 (to six digits) of a discrete Gaussian
    fourth = 3.0 * variance**2 + (variance if family == "skellam" else 0)
    assert abs(samples.mean()) <= limit * math.sqrt(variance / SIZE)
    spread = math.sqrt((fourth - variance**2) / SIZE)
    assert abs((samples**2).mean() - variance) <= limit * spread


@both
@pytest.mark.parametrize("variance", [9, 10**4])
def test_pairs_of_successive_samples_are_independent(
    family: str, variance: int, law_of: LawOf
) -> None:
    """Chi-square of disjoint pairs in 8 x 8 bins against the product of the exact laws; 1e-6."""
    law = law_of(family, variance)
    bins = law.bins(8)
    chances = np.bincount(bins, weights=law.pmf, minlength=8)
    found = bins[table_samples(family, variance, seed=3) + law.reach].reshape(-1, 2)
    counts = np.bincount(found[:, 0] * 8 + found[:, 1], minlength=64)
    expected = len(found) * np.outer(chances, chances).ravel()
    filled = expected > 0  # narrow laws leave bins empty
    assert expected[filled].min() >= 100
    statistic = ((counts - expected)[filled] ** 2 / expected[filled]).sum()
    assert counts[~filled].sum() == 0
    assert chi2.sf(statistic, np.count_nonzero(filled) - 1) > ALPHA


def correlation(x: npt.NDArray[np.float64], lag: int) -> float:
    """Normal score of the correlation of values that have mean 0 at that lag."""
    product = x[lag:] * x[:-lag]
    return float(product.sum() / math.sqrt(float((product**2).sum())))


@both
def test_signs_are_fair_and_independent_of_each_other_and_of_magnitudes(family: str) -> None:
    """Normal scores at 22 places, 1e-6 in all: a sign bit shares its byte with seven others."""
    samples = table_samples(family, 2500, seed=4)
    sign = np.sign(samples).astype(np.float64)
    limit = norm.isf(ALPHA / (2 * 22))
    assert abs(sign.sum()) / math.sqrt(float(np.abs(sign).sum())) < limit
    for lag in (*range(1, 18), 64, BLOCK):
        assert abs(correlation(sign, lag)) < limit, lag
    magnitude = np.abs(samples).astype(np.float64)
    for values in (magnitude - magnitude.mean(), (magnitude > 100) - (magnitude > 100).mean()):
        product = values * sign
        assert abs(product.sum()) / math.sqrt(float((product**2).sum())) < limit


@both
def test_magnitudes_do_not_correlate_within_or_across_blocks(family: str) -> None:
    """Normal scores at six lags, 1e-6 in all."""
    magnitude = np.abs(table_samples(family, 2500, seed=5)).astype(np.float64)
    limit = norm.isf(ALPHA / (2 * 6))
    for lag in (1, 2, 3, 8, BLOCK - 1, BLOCK):
        assert abs(correlation(magnitude - magnitude.mean(), lag)) < limit, lag


@pytest.mark.parametrize(
    ("family", "parameter"),
    [
        ("gaussian", Fraction(1, 4)),
        ("gaussian", 1),
        ("gaussian", Fraction(22, 7)),
        ("gaussian", 900),
        ("gaussian", 10**6),
        ("skellam", Fraction(1, 4)),
        ("skellam", 1),
        ("skellam", 5),
        ("poisson", Fraction(5, 3)),
        ("laplace", Fraction(7, 3)),
        ("laplace", 30),
    ],
)
def test_oracle_samples_follow_the_exact_pmf(
    family: str, parameter: int | Fraction, law_of: LawOf, dkw: Dkw
) -> None:
    """Chi-square 5e-7 and DKW 5e-7."""
    samples = oracle_samples(family, parameter, ORACLE)
    law = law_of(family, float(parameter))
    assert law.p_value(samples) > ALPHA / 2
    assert law.cdf_distance(samples) <= dkw(ORACLE, ALPHA / 2)


@pytest.mark.parametrize(
    ("family", "variance"),
    [("gaussian", 1), ("gaussian", 100), ("gaussian", 10**6), ("skellam", 4)],
)
def test_table_and_oracle_cannot_be_told_apart(
    family: str, variance: int, law_of: LawOf, dkw: Dkw
) -> None:
    """Two samples: chi-square 5e-7; sup |F_n - F_m| at most both DKW distances, 5e-7 in all."""
    table = table_samples(family, variance, seed=6)
    oracle = oracle_samples(family, variance, ORACLE - 1)
    law = law_of(family, variance)
    assert law.p_value_of_two(table, oracle) > ALPHA / 2
    gap = np.cumsum(law.counts(table) / SIZE - law.counts(oracle) / oracle.size)
    assert np.abs(gap).max() <= dkw(SIZE, ALPHA / 4) + dkw(oracle.size, ALPHA / 4)


@pytest.mark.parametrize("shares", [3, 17])
def test_a_sum_of_skellam_shares_is_skellam_and_of_wide_gaussians_nearly_gaussian(
    shares: int, law_of: LawOf
) -> None:
    """Chi-square 5e-7 each. At v = 16 the gap of the Gaussian sum is below 1e-60 (tau)."""
    for family in SAMPLERS:
        total = sum(table_samples(family, 16, seed=10 + i) for i in range(shares))
        assert law_of(family, 16 * shares).p_value(np.asarray(total)) > ALPHA / 2


# controls: the tests above can fail


@both
def test_a_variance_that_is_3_percent_off_is_noticed(family: str, law_of: LawOf, dkw: Dkw) -> None:
    samples = table_samples(family, 103)
    assert law_of(family, 100).p_value(samples) < ALPHA
    assert law_of(family, 110).cdf_distance(samples) > dkw(SIZE, ALPHA)


def test_the_two_families_are_told_apart_at_equal_variance(law_of: LawOf, dkw: Dkw) -> None:
    skellam, gaussian = table_samples("skellam", 2), table_samples("gaussian", 2)
    law = law_of("gaussian", 2)
    assert law.p_value(skellam) < ALPHA
    assert law.p_value_of_two(skellam, gaussian) < ALPHA
    assert law.cdf_distance(skellam) > dkw(SIZE, ALPHA)


def test_the_sum_of_narrow_gaussians_is_told_from_a_gaussian(law_of: LawOf) -> None:
    """Why shares of standard deviation below 2 are refused: here two of 1/2, by the oracle."""
    pairs = oracle_samples("gaussian", Fraction(1, 4), 40_000).reshape(2, -1)
    assert law_of("gaussian", 0.5).p_value(pairs.sum(axis=0)) < ALPHA


def test_a_repeated_sample_is_seen_as_correlation() -> None:
    magnitude = np.abs(table_samples("skellam", 2500)).astype(np.float64)
    copied = np.where(np.arange(SIZE) % 100 == 0, np.roll(magnitude, 1), magnitude)
    assert correlation(copied - copied.mean(), 1) > norm.isf(ALPHA)
