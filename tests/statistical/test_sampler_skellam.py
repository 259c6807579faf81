"""Samples follow the exact Skellam law: fixed seeds, false-positive rate at most 1e-6 per test."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import ive
from scipy.stats import norm

from privfedrl.privacy.mechanisms import DistributedSkellam
from privfedrl.privacy.samplers import SkellamSampler
from privfedrl.privacy.units import IntegerSensitivity, Unit

pytestmark = pytest.mark.statistical

ALPHA = 1e-6
SIZE = 200_000
LawOf = Callable[[str, float], Any]


def stream(seed: int) -> Callable[[int], bytes]:
    return np.random.default_rng(seed).bytes


@pytest.mark.parametrize("variance", [1, 2, 10, 100, 2500, 10**6])
def test_samples_follow_the_exact_pmf(variance: int, law_of: LawOf) -> None:
    """Chi-square on 200,000 samples; false-positive rate 1e-6."""
    samples = SkellamSampler(variance, entropy=stream(1000 + variance)).sample(SIZE)
    assert law_of("skellam", variance).p_value(samples) > ALPHA


def test_the_chi_square_rejects_a_wrong_variance(law_of: LawOf) -> None:
    """Control: a table for 103 instead of 100 is caught, so the test above can fail."""
    samples = SkellamSampler(103, entropy=stream(4)).sample(SIZE)
    assert law_of("skellam", 100).p_value(samples) < ALPHA


@pytest.mark.parametrize("shares", [2, 5, 20])
def test_a_sum_of_shares_is_skellam_with_the_summed_variance(shares: int, law_of: LawOf) -> None:
    """Chi-square of the sum against Sk(shares * 13); false-positive rate 1e-6."""
    bound = IntegerSensitivity(l2_squared=4, l1=2, unit=Unit.AGENT)
    mechanism = DistributedSkellam(sensitivity=bound, share_variance=13, num_coordinates=SIZE)
    entropy = stream(shares)
    total = np.sum([mechanism.sample_share(entropy) for _ in range(shares)], axis=0)
    assert law_of("skellam", mechanism.event(shares).variance).p_value(total) > ALPHA


@pytest.mark.parametrize("variance", [1, 7, 100, 2500])
def test_convolution_of_pmfs_is_the_pmf_of_the_summed_variance(variance: int) -> None:
    radius = int(12 * math.sqrt(2 * variance)) + 20
    grid = np.abs(np.arange(-radius, radius + 1))
    once = ive(grid, variance)
    twice = np.convolve(once, once)[radius : radius + grid.size]
    np.testing.assert_allclose(twice, ive(grid, 2 * variance), atol=1e-12)


@pytest.mark.parametrize("variance", [4, 900])
def test_both_tails_hold_what_they_should(variance: int) -> None:
    """Counts beyond 4 standard deviations on each side; exact binomial tails, rate below 1e-6."""
    size = 1_000_000
    samples = SkellamSampler(variance, entropy=stream(77 + variance)).sample(size)
    cut = int(4 * math.sqrt(variance))
    k = np.arange(cut, cut + int(20 * math.sqrt(variance)) + 40)
    mean = size * float(ive(k, variance).sum())
    margin = norm.isf(ALPHA / 8) * math.sqrt(mean) + 12  # Poisson counts: normal part plus slack
    assert abs(int((samples >= cut).sum()) - mean) < margin
    assert abs(int((samples <= -cut).sum()) - mean) < margin


def test_signs_are_fair_and_coordinates_do_not_correlate() -> None:
    """z-scores of the sign balance and the lag-1 correlation; false-positive rate 1e-6 each."""
    samples = SkellamSampler(10**4, entropy=stream(5)).sample(SIZE)
    signs = np.sign(samples)
    limit = norm.isf(ALPHA / 2)
    assert abs(signs.sum()) / math.sqrt(np.count_nonzero(signs)) < limit
    lag = float(np.dot(samples[1:], samples[:-1])) / (10**4 * math.sqrt(SIZE - 1))
    assert abs(lag) < limit
