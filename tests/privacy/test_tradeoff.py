"""Noise, rounds, cohort: any two give the third, which holds while its neighbour does not."""

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.errors import ConfigurationError
from privfedrl.privacy import accountant
from privfedrl.privacy.calibration import (
    MAX_COHORT,
    Target,
    least_noise,
    most_rounds,
    smallest_cohort,
)
from privfedrl.privacy.mechanisms import (
    CentralDiscreteGaussian,
    DistributedDiscreteGaussian,
    DistributedSkellam,
    LocalSkellam,
    Mechanism,
)
from privfedrl.privacy.units import Adjacency, IntegerSensitivity, Unit

BOUND = IntegerSensitivity(l2_squared=2**20, l1=2**17, unit=Unit.AGENT)
USUAL = Target(epsilon=2.0, delta=1e-5)
KINDS = [DistributedSkellam, LocalSkellam, DistributedDiscreteGaussian, CentralDiscreteGaussian]


def noise(variance: int, kind: type[Mechanism] = DistributedSkellam) -> Mechanism:
    return kind(sensitivity=BOUND, share_variance=variance, num_coordinates=256)


def spent(mechanism: Mechanism, target: Target, *, honest: int, rounds: int) -> float:
    """The accountant's own figure, at what the sampler leaves of delta."""
    charge = mechanism.sampler_delta(epsilon=target.epsilon, shares=honest * rounds)
    if charge >= target.delta:
        return math.inf
    events = {mechanism.event(honest): rounds}
    found = accountant.epsilon_of_counts(events, target.delta - charge, adjacency=target.adjacency)
    return found.epsilon


TARGETS = st.builds(
    Target,
    epsilon=st.floats(0.5, 20),
    delta=st.floats(1e-10, 1e-3),
    adjacency=st.sampled_from(list(Adjacency)),
)
EXACT = settings(max_examples=60, deadline=None)


@given(TARGETS, st.integers(2**30, 2**34), st.integers(1, 60))
@EXACT
def test_one_release_more_than_the_most_breaks_the_promise(
    target: Target, variance: int, honest: int
) -> None:
    most = most_rounds(noise(variance), target, min_honest=honest)
    assert spent(noise(variance), target, honest=honest, rounds=most) <= target.epsilon
    beyond = spent(noise(variance), target, honest=honest, rounds=most + 1)
    assert beyond > target.epsilon * (1 - 1e-12)


@given(TARGETS, st.integers(2**20, 2**30), st.integers(1, 60))
@EXACT
def test_one_share_fewer_than_the_smallest_cohort_breaks_the_promise(
    target: Target, variance: int, rounds: int
) -> None:
    least = smallest_cohort(noise(variance), target, participations=rounds)
    assert spent(noise(variance), target, honest=least, rounds=rounds) <= target.epsilon
    if least > 1:
        below = spent(noise(variance), target, honest=least - 1, rounds=rounds)
        assert below > target.epsilon * (1 - 1e-12)


@given(TARGETS, st.integers(1, 60), st.integers(2, 100))
@EXACT
def test_the_three_answers_fit_each_other(target: Target, honest: int, rounds: int) -> None:
    found = least_noise(noise, target, min_honest=honest, participations=rounds)
    assert most_rounds(found, target, min_honest=honest) >= rounds
    assert smallest_cohort(found, target, participations=rounds) <= honest
    less = noise(found.share_variance - 1)
    assert most_rounds(less, target, min_honest=honest) < rounds
    assert smallest_cohort(less, target, participations=rounds) > honest


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_noise_affords_exactly_its_rounds(kind: type[Mechanism]) -> None:
    mechanism = noise(2**28, kind)
    most = most_rounds(mechanism, USUAL, min_honest=4)
    assert spent(mechanism, USUAL, honest=4, rounds=most) <= USUAL.epsilon
    assert spent(mechanism, USUAL, honest=4, rounds=most + 1) > USUAL.epsilon
    shares = 4 if kind in (DistributedSkellam, DistributedDiscreteGaussian) else 1
    # 2-DP at 1e-5 takes a multiplier of 1.99 and the release's is 2^14 / 2^10; RDP is a little off
    assert 0.8 < most / (shares * 2**28 / 2**20 / 1.9938**2) < 1


def test_noise_that_is_added_once_asks_for_no_cohort() -> None:
    enough, short = (noise(v, CentralDiscreteGaussian) for v in (2**28, 2**20))
    assert smallest_cohort(enough, USUAL) == 1
    with pytest.raises(ConfigurationError, match="does not grow with it"):
        smallest_cohort(short, USUAL)


def test_a_budget_below_one_release_is_refused_with_its_price_and_the_cohort_that_pays() -> None:
    with pytest.raises(ConfigurationError, match="do not pay for one release") as refused:
        most_rounds(noise(2**20), USUAL, min_honest=1)
    words = str(refused.value)
    price = float(words.split("costs epsilon = ")[1].split(". ")[0])
    assert price == pytest.approx(spent(noise(2**20), USUAL, honest=1, rounds=1), rel=1e-3)
    cohort = int(words.split(" honest shares,")[0].split()[-1])
    assert most_rounds(noise(2**20), USUAL, min_honest=cohort) >= 1
    assert cohort == smallest_cohort(noise(2**20), USUAL)


def test_a_cohort_beyond_all_fleets_is_refused_with_the_rounds_that_would_do() -> None:
    with pytest.raises(ConfigurationError, match="by a larger cohort") as refused:
        smallest_cohort(noise(1), USUAL, participations=1000)
    rounds = int(str(refused.value).split("at most ")[1].split(" releases")[0])
    assert most_rounds(noise(1), USUAL, min_honest=MAX_COHORT) == rounds < 1000
    assert smallest_cohort(noise(1), USUAL, participations=rounds) <= MAX_COHORT


HARD = [
    Target(epsilon=1e-12, delta=1e-5),
    Target(epsilon=1e6, delta=1e-5),
    Target(epsilon=1.0, delta=5e-324),
    Target(epsilon=1e-300, delta=1.0 - 1e-16),
    Target(epsilon=5e-324, delta=1e-20),
]


@pytest.mark.parametrize("target", HARD, ids=str)
@pytest.mark.parametrize("count", [1, 10**6, 2**24])
def test_hopeless_targets_end_with_a_typed_error_or_a_result_that_holds(
    target: Target, count: int
) -> None:
    probes: list[int] = []

    def family(variance: int) -> Mechanism:
        probes.append(variance)
        return noise(variance)

    def holds(mechanism: Mechanism, honest: int, rounds: int) -> bool:
        return spent(mechanism, target, honest=honest, rounds=rounds) <= target.epsilon

    fixed = noise(2**20)
    with contextlib.suppress(ConfigurationError):
        assert holds(least_noise(family, target, min_honest=9, participations=count), 9, count)
    with contextlib.suppress(ConfigurationError):
        assert holds(fixed, count, most_rounds(fixed, target, min_honest=count))
    with contextlib.suppress(ConfigurationError):
        assert holds(fixed, smallest_cohort(fixed, target, participations=count), count)
    assert len(probes) <= 2 * 36 + 3  # 2 log2(largest variance)


def test_a_million_rounds_are_one_search() -> None:
    found = least_noise(noise, USUAL, min_honest=1000, participations=10**6)
    assert most_rounds(found, USUAL, min_honest=1000) >= 10**6


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, 2**60, math.nan, "1"])
def test_counts_out_of_range_are_refused(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="min_honest must be"):
        most_rounds(noise(2**20), USUAL, min_honest=bad)
    with pytest.raises(ConfigurationError, match="participations must be"):
        smallest_cohort(noise(2**20), USUAL, participations=bad)
