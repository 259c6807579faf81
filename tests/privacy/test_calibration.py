"""Calibrated noise keeps the promise with the fewest honest shares, and one less does not."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.errors import ConfigurationError
from privfedrl.privacy import accountant
from privfedrl.privacy.calibration import calibrate_skellam, mechanism_epsilon
from privfedrl.privacy.gdp import gaussian_noise_multiplier
from privfedrl.privacy.mechanisms import DistributedSkellam
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
    with pytest.raises(ConfigurationError, match="charge of the noise sampler"):
        calibrated(epsilon=1e6)
    weak = calibrated()
    assert mechanism_epsilon(weak, min_honest=10, epsilon=1.0, delta=1e-40) == math.inf


def test_infeasible_targets_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="coarser resolution"):
        calibrated(sensitivity=bound(2**60, 2**40), min_honest=1, epsilon=0.01)


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
