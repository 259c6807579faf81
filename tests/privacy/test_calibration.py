"""Calibrated noise keeps the promise with the fewest honest shares, and one less does not."""

import math
import re
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.errors import ConfigurationError
from privfedrl.privacy import accountant
from privfedrl.privacy.calibration import (
    Target,
    calibrate_skellam,
    least_noise,
    mechanism_epsilon,
    variance_of_multiplier,
)
from privfedrl.privacy.gdp import gaussian_noise_multiplier
from privfedrl.privacy.mechanisms import (
    CentralDiscreteGaussian,
    DistributedDiscreteGaussian,
    DistributedSkellam,
    LocalSkellam,
    Mechanism,
)
from privfedrl.privacy.units import Adjacency, IntegerSensitivity, Unit


def bound(squared: int = 2**20, l1: int = 2**17) -> IntegerSensitivity:
    return IntegerSensitivity(l2_squared=squared, l1=min(l1, squared), unit=Unit.TRAJECTORY)


def calibrated(**changes: Any) -> DistributedSkellam:
    values: dict[str, Any] = {
        "sensitivity": bound(),
        "min_honest": 10,
        "epsilon": 1.0,
        "delta": 1e-5,
        "num_coordinates": 8192,
        **changes,
    }
    return calibrate_skellam(**values)


@given(
    st.integers(1, 2**20),  # every combination below is feasible
    st.integers(1, 100),
    st.floats(0.3, 20),
    st.floats(1e-12, 1e-2),
    st.integers(1, 50),
    st.sampled_from(list(Adjacency)),
)
@settings(max_examples=60, deadline=None)
def test_the_result_keeps_the_promise_and_one_less_breaks_it(
    squared: int, honest: int, epsilon: float, delta: float, k: int, adjacency: Adjacency
) -> None:
    found = calibrated(
        sensitivity=bound(squared),
        min_honest=honest,
        epsilon=epsilon,
        delta=delta,
        participations=k,
        adjacency=adjacency,
    )
    remaining = delta - found.sampler_delta(epsilon=epsilon, shares=honest * k)
    spent = accountant.epsilon([found.event(honest)] * k, remaining, adjacency=adjacency)
    assert spent.epsilon <= epsilon * (1 + 1e-12)
    if found.share_variance > 1:
        less = DistributedSkellam(
            sensitivity=found.sensitivity,
            share_variance=found.share_variance - 1,
            num_coordinates=found.num_coordinates,
        )
        short = accountant.epsilon([less.event(honest)] * k, remaining, adjacency=adjacency)
        assert short.epsilon > epsilon * (1 - 1e-12)


def test_the_noise_is_close_to_the_exact_gaussian_on_a_fine_grid() -> None:
    found = calibrated()
    multiplier = math.sqrt(10 * found.share_variance / 2**20)
    exact = gaussian_noise_multiplier(epsilon=1.0, delta=1e-5)
    assert exact < multiplier < 1.1 * exact


def test_more_honest_shares_need_less_noise_each() -> None:
    variances = [calibrated(min_honest=n).share_variance for n in (1, 2, 5, 10, 100)]
    assert variances == sorted(variances, reverse=True)
    assert variances[0] / variances[-1] == pytest.approx(100, rel=1e-3)


def test_more_survivors_than_promised_only_lower_the_cost() -> None:
    found = calibrated()
    costs = [
        mechanism_epsilon(found, min_honest=n, epsilon=1.0, delta=1e-5) for n in (10, 11, 20, 100)
    ]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] <= 1.0


def test_participations_multiply_the_variance() -> None:
    one, four = calibrated().share_variance, calibrated(participations=4).share_variance
    assert four / one == pytest.approx(4, rel=1e-2)


def test_a_weak_promise_needs_the_least_noise_there_is() -> None:
    found = calibrated(sensitivity=bound(1, 1), epsilon=20.0, min_honest=50, delta=0.9)
    assert found.share_variance == 1


def test_a_delta_below_the_charge_of_the_sampler_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="charge of the noise sampler"):
        calibrated(delta=1e-40)
    with pytest.raises(ConfigurationError, match="ask for a delta above"):
        calibrated(delta=1e-40)
    with pytest.raises(ConfigurationError, match="charge of the noise sampler"):
        calibrated(epsilon=1e6)
    weak = calibrated()
    assert mechanism_epsilon(weak, min_honest=10, epsilon=1.0, delta=1e-40) == math.inf


def test_the_epsilon_that_a_refusal_names_is_where_the_charge_reaches_delta() -> None:
    with pytest.raises(ConfigurationError, match="ask for epsilon below") as refused:
        calibrated(epsilon=100.0)
    named = float(str(refused.value).split("below ")[-1])
    assert calibrated(epsilon=named * 0.9).share_variance >= 1
    with pytest.raises(ConfigurationError, match="charge of the noise sampler"):
        calibrated(epsilon=named * 1.01)


def test_infeasible_targets_are_refused_with_their_ways_out() -> None:
    impossible = {"sensitivity": bound(2**60, 2**40), "epsilon": 0.01}
    with pytest.raises(ConfigurationError, match="coarser resolution") as refused:
        calibrated(min_honest=1, **impossible)
    assert "no cohort is large enough" in str(refused.value)
    assert "not even one release" in str(refused.value)
    near: dict[str, Any] = {"sensitivity": bound(2**29, 2**21), "epsilon": 0.5}
    with pytest.raises(ConfigurationError) as refused:
        calibrated(min_honest=1, participations=9, **near)
    cohort, releases = map(
        int, re.findall(r"(\d+) honest shares, at most (\d+) releases", str(refused.value))[0]
    )
    calibrated(min_honest=cohort, participations=9, **near)
    calibrated(min_honest=1, participations=releases, **near)
    for honest, many in ((cohort - 1, 9), (1, releases + 1)):
        with pytest.raises(ConfigurationError, match="Ways out"):
            calibrated(min_honest=honest, participations=many, **near)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("epsilon", 0.0),
        ("epsilon", -1.0),
        ("epsilon", math.nan),
        ("epsilon", math.inf),
        ("epsilon", "1"),
        ("epsilon", True),
        ("delta", 0.0),
        ("delta", 1.0),
        ("delta", math.nan),
        ("min_honest", 0),
        ("min_honest", 1.5),
        ("min_honest", True),
        ("participations", 0),
        ("participations", 2**60),
        ("num_coordinates", 0),
    ],
)
def test_targets_out_of_range_are_refused(name: str, bad: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        calibrated(**{name: bad})


# --- every kind of noise ------------------------------------------------------------------------

KINDS = [DistributedSkellam, LocalSkellam, DistributedDiscreteGaussian, CentralDiscreteGaussian]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adjacency", list(Adjacency))
def test_every_kind_of_noise_is_the_least_that_keeps_the_promise(
    kind: type[Mechanism], adjacency: Adjacency
) -> None:
    target = Target(epsilon=1.0, delta=1e-5, adjacency=adjacency)

    def mechanism(variance: int) -> Mechanism:
        return kind(sensitivity=bound(), share_variance=variance, num_coordinates=256)

    def spent(variance: int) -> float:
        found = mechanism(variance)
        remaining = 1e-5 - found.sampler_delta(epsilon=1.0, shares=8 * 3)
        return accountant.epsilon([found.event(8)] * 3, remaining, adjacency=adjacency).epsilon

    found = least_noise(
        mechanism,
        target,
        min_honest=8,
        participations=3,
        low=kind.least_variance,
        high=kind.most_variance,
    )
    assert type(found) is kind
    assert spent(found.share_variance) <= 1.0
    assert spent(found.share_variance - 1) > 1.0
    # all of it within ten per cent of the exact Gaussian, from above
    shares = 8 if kind in (DistributedSkellam, DistributedDiscreteGaussian) else 1
    moved = bound().for_adjacency(adjacency).l2_squared
    multiplier = math.sqrt(found.share_variance * shares / moved / 3)
    exact = gaussian_noise_multiplier(epsilon=1.0, delta=1e-5)
    assert exact < multiplier < 1.1 * exact


def test_a_target_without_effort_gets_the_least_variance_of_its_kind() -> None:
    def mechanism(variance: int) -> DistributedDiscreteGaussian:
        return DistributedDiscreteGaussian(
            sensitivity=bound(1, 1), share_variance=variance, num_coordinates=1
        )

    target = Target(epsilon=30.0, delta=0.1)
    assert least_noise(mechanism, target, min_honest=4, low=4).share_variance == 4


@pytest.mark.parametrize(("low", "high"), [(0, 10), (11, 10), (-1, 1)])
def test_variances_must_be_a_range_of_positive_integers(low: int, high: int) -> None:
    def mechanism(variance: int) -> DistributedSkellam:
        raise AssertionError(variance)

    with pytest.raises(ConfigurationError, match="low must lie in"):
        least_noise(mechanism, Target(epsilon=1.0, delta=0.1), min_honest=1, low=low, high=high)


@given(st.floats(1e-3, 1e3), st.integers(1, 2**40))
def test_a_multiplier_is_rounded_up_to_the_next_variance(multiplier: float, squared: int) -> None:
    variance = variance_of_multiplier(multiplier, bound(squared))
    assert variance >= Fraction(multiplier) ** 2 * squared > variance - 1


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, True, "1"])
def test_a_multiplier_out_of_range_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="noise_multiplier"):
        variance_of_multiplier(bad, bound())


def test_a_target_needs_a_known_adjacency() -> None:
    unknown: Any = "add-remove"
    with pytest.raises(ConfigurationError, match="adjacency"):
        Target(epsilon=1.0, delta=1e-5, adjacency=unknown)
