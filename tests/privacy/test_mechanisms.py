"""A mechanism charges exactly the noise that its adversary does not know."""

from typing import Any

import numpy as np
import pytest

from privfedrl.errors import ConfigurationError
from privfedrl.privacy import accountant
from privfedrl.privacy.correlated import CorrelatedNoise
from privfedrl.privacy.events import MIN_SHARE_VARIANCE, DiscreteGaussianEvent, SkellamEvent
from privfedrl.privacy.mechanisms import (
    CentralDiscreteGaussian,
    CorrelatedDiscreteGaussian,
    DistributedDiscreteGaussian,
    DistributedSkellam,
    LocalSkellam,
    Mechanism,
)
from privfedrl.privacy.samplers import (
    MAX_GAUSSIAN_VARIANCE,
    MAX_VARIANCE,
    delta_of_sampler,
    discrete_gaussian_total_variation,
    skellam_total_variation,
)
from privfedrl.privacy.units import IntegerSensitivity, Unit

BOUND = IntegerSensitivity(l2_squared=10**4, l1=10**3, unit=Unit.PERSON)
KINDS = (
    DistributedSkellam,
    DistributedDiscreteGaussian,
    CentralDiscreteGaussian,
    LocalSkellam,
)
DISTRIBUTED = KINDS[:2]
ONE_SHARE = KINDS[2:]


def mechanism(kind: type[Mechanism] = DistributedSkellam, **changes: Any) -> Mechanism:
    values: dict[str, Any] = {
        "sensitivity": BOUND,
        "share_variance": 50,
        "num_coordinates": 8,
        **changes,
    }
    return kind(**values)


@pytest.mark.parametrize("honest", [1, 2, 17, 10**6])
def test_the_event_holds_the_noise_of_the_honest_survivors_only(honest: int) -> None:
    skellam = mechanism().event(honest)
    assert skellam == SkellamEvent(sensitivity=BOUND, variance=50 * honest)
    gaussian = mechanism(DistributedDiscreteGaussian).event(honest)
    assert gaussian == DiscreteGaussianEvent(
        sensitivity=BOUND, variance=50, shares=honest, coordinates=8
    )


@pytest.mark.parametrize("kind", ONE_SHARE)
def test_noise_that_is_not_the_survivors_does_not_depend_on_them(kind: type[Mechanism]) -> None:
    events = {mechanism(kind).event(honest) for honest in (1, 2, 1000)}
    assert len(events) == 1
    (event,) = events
    assert event.variance == 50


@pytest.mark.parametrize("kind", DISTRIBUTED)
def test_fewer_survivors_cost_more(kind: type[Mechanism]) -> None:
    one = mechanism(kind)
    costs = [accountant.epsilon([one.event(n)], 1e-5).epsilon for n in range(1, 20)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [0, -3, 1.0, True, None])
def test_a_sum_without_an_honest_share_is_refused(kind: type[Mechanism], bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="honest_survivors"):
        mechanism(kind).event(bad)


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_covers_every_coordinate_and_is_fresh(kind: type[Mechanism]) -> None:
    source = np.random.default_rng(2).bytes
    first = mechanism(kind, share_variance=10**6).sample_share(source)
    second = mechanism(kind, share_variance=10**6).sample_share(source)
    assert first.shape == (8,)
    assert first.dtype == np.int64
    assert not np.array_equal(first, second)
    assert mechanism(kind).sample_share().shape == (8,)


def test_the_sampler_charge_counts_coordinates_and_shares() -> None:
    for kind in KINDS:
        bound = skellam_total_variation if "Skellam" in kind.__name__ else None
        variation = (bound or discrete_gaussian_total_variation)(50)
        assert mechanism(kind).total_variation == variation
        assert mechanism(kind).sampler_delta(epsilon=1.0, shares=3) == delta_of_sampler(
            variation, coordinates=8, epsilon=1.0, shares=3
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changes",
    [
        {"sensitivity": 100.0},
        {"sensitivity": None},
        {"share_variance": 0},
        {"share_variance": -1},
        {"share_variance": 2.5},
        {"share_variance": float("nan")},
        {"share_variance": True},
        {"share_variance": MAX_VARIANCE + 1},
        {"num_coordinates": 0},
        {"num_coordinates": "8"},
    ],
)
def test_impossible_parameters_are_refused(kind: type[Mechanism], changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(changes))):
        mechanism(kind, **changes)


def test_several_discrete_gaussian_shares_must_be_wide_enough_to_add_up() -> None:
    with pytest.raises(ConfigurationError, match=f"share_variance must be >= {MIN_SHARE_VARIANCE}"):
        mechanism(DistributedDiscreteGaussian, share_variance=MIN_SHARE_VARIANCE - 1)
    assert mechanism(CentralDiscreteGaussian, share_variance=1).event(1).variance == 1


def test_a_discrete_gaussian_is_drawn_from_one_table_or_not_at_all() -> None:
    for kind in (DistributedDiscreteGaussian, CentralDiscreteGaussian):
        with pytest.raises(ConfigurationError, match="use a coarser resolution"):
            mechanism(kind, share_variance=MAX_GAUSSIAN_VARIANCE + 1)


def test_correlated_noise_is_charged_for_every_release_that_a_unit_is_in() -> None:
    noise = CorrelatedNoise(bands=4)
    made = mechanism(CorrelatedDiscreteGaussian, noise=noise)
    assert {made.event(honest) for honest in (1, 9)} == {
        DiscreteGaussianEvent(
            sensitivity=noise.sensitivity(BOUND), variance=50, shares=1, coordinates=4 * 8
        )
    }
    assert made.sampler_delta(epsilon=1.0, shares=3) == delta_of_sampler(
        discrete_gaussian_total_variation(50), coordinates=32, epsilon=1.0, shares=3
    )
    assert made.sample_share().shape == (8,)
    # equal privacy: the mixture's share is wider by the norm of its coefficients
    squares = sum(m * m for m in noise.coefficients)
    wide = mechanism(CorrelatedDiscreteGaussian, noise=noise, share_variance=10**4 * squares)
    costs = [
        accountant.epsilon([one.event(1)], 1e-5).epsilon
        for one in (wide, mechanism(CentralDiscreteGaussian, share_variance=10**4))
    ]
    assert costs[0] == pytest.approx(costs[1], rel=1e-12)


def test_correlated_noise_needs_to_know_how_sums_are_mixed() -> None:
    with pytest.raises(ConfigurationError, match="noise must be a CorrelatedNoise"):
        mechanism(CorrelatedDiscreteGaussian, noise=3)
    with pytest.raises(ConfigurationError, match="honest_survivors must be"):
        mechanism(CorrelatedDiscreteGaussian, noise=CorrelatedNoise(bands=2)).event(0)
    with pytest.raises(ConfigurationError, match="share_variance"):
        mechanism(CorrelatedDiscreteGaussian, noise=CorrelatedNoise(bands=2), share_variance=0)


def test_mechanisms_of_different_kinds_are_different_values() -> None:
    assert len({mechanism(kind) for kind in KINDS}) == len(KINDS)
