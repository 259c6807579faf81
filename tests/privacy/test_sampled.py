"""What sampling saves is never overstated, at any order and in either direction."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import ive, logsumexp

from privfedrl.privacy.events import SkellamEvent
from privfedrl.privacy.rdp import ORDERS, skellam_rdp
from privfedrl.privacy.sampled import sampled_gaussian_rdp, sampled_rdp
from privfedrl.privacy.units import IntegerSensitivity, Unit

FloatArray = npt.NDArray[np.float64]
# fractional and whole, on and between the orders that are integrated
SOME = np.array([1.01, 1.237, 1.5, 2.0, 2.5, 3.0, 7.37, 16.0, 33.3, 64.0, 100.0, 200.0])


def line(sigma: float) -> Any:
    return lambda orders: orders / (2 * sigma * sigma)


def both_directions(sigma: float, rate: float, order: float) -> tuple[float, float]:
    """D(mixture || without), D(without || mixture) by adaptive integration."""

    def log_mixture(x: float) -> float:
        y = (2 * x - 1) / (2 * sigma**2)
        return float(np.logaddexp(math.log1p(-rate), math.log(rate) + y))

    def moment(power: float) -> float:
        grid = np.linspace(-20 * sigma, order + 20 * sigma, 4001)
        logs = [-x * x / (2 * sigma**2) + power * log_mixture(x) for x in grid]
        top = max(logs)

        def integrand(x: float) -> float:
            return math.exp(-x * x / (2 * sigma**2) + power * log_mixture(x) - top)

        pieces = np.linspace(grid[0], grid[-1], 60)
        total = sum(
            quad(integrand, a, b, epsabs=1e-13, epsrel=1e-11)[0] for a, b in pairwise(pieces)
        )
        return top + math.log(total / (sigma * math.sqrt(2 * math.pi)))

    return moment(order) / (order - 1), moment(1 - order) / (order - 1)


@pytest.mark.parametrize(("sigma", "rate"), [(1.0, 0.01), (0.5, 0.1), (4.0, 0.3), (0.2, 0.5)])
@pytest.mark.parametrize("order", [1.237, 2.0, 3.7, 12.0])
def test_the_gaussian_curve_is_above_the_integrated_divergence_in_both_directions(
    sigma: float, rate: float, order: float
) -> None:
    there, back = both_directions(sigma, rate, order)
    curve = sampled_gaussian_rdp(sigma, rate, np.array([order]))[0]
    assert curve >= there * (1 - 1e-9)
    assert curve >= back * (1 - 1e-9)
    assert curve <= there * (1 + 1e-3)


@pytest.mark.parametrize(("sigma", "rate"), [(1.0, 0.01), (0.7, 0.2), (3.0, 0.001), (20.0, 0.05)])
def test_integration_and_the_binomial_sum_agree_at_whole_orders(sigma: float, rate: float) -> None:
    whole = np.array([2.0, 3.0, 5.0, 17.0, 64.0])
    summed = sampled_rdp(line(sigma), rate, whole)
    np.testing.assert_allclose(sampled_gaussian_rdp(sigma, rate, whole), summed, rtol=2e-6)


def skellam_pmf(variance: int, radius: int) -> FloatArray:
    pmf: FloatArray = ive(np.abs(np.arange(-radius, radius + 1)), variance)
    return pmf


@pytest.mark.parametrize("order", [2.0, 2.6, 4.0, 9.0])
@pytest.mark.parametrize("rate", [0.003, 0.2, 0.9])
@pytest.mark.parametrize(("shift", "variance"), [(1, 2), (3, 40), (10, 400)])
def test_the_bound_for_a_sampled_skellam_is_above_direct_summation_in_both_directions(
    shift: int, variance: int, rate: float, order: float
) -> None:
    bound = IntegerSensitivity(l2_squared=shift * shift, l1=shift, unit=Unit.AGENT)
    event = SkellamEvent(sensitivity=bound, variance=variance)
    claimed = sampled_rdp(lambda orders: skellam_rdp(event, orders), rate, np.array([order]))[0]
    radius = 30 + int(14 * math.sqrt(variance))
    pmf = skellam_pmf(variance, radius + shift)
    without, present = np.log(pmf[shift:]), np.log(pmf[: pmf.size - shift])
    mixed = np.logaddexp(math.log1p(-rate) + without, math.log(rate) + present)
    for first, second in ((mixed, without), (without, mixed)):
        exact = logsumexp(order * first + (1 - order) * second) / (order - 1)
        assert exact <= claimed * (1 + 1e-12)
    assert claimed <= skellam_rdp(event, [order])[0]


@given(st.floats(1e-3, 1 - 1e-3), st.floats(0, 30), st.floats(1, 50))
def test_symmetric_noise_needs_one_direction_only(
    rate: float, log_ratio: float, alpha: float
) -> None:
    """The inequality of the proof: h(a) + r h(b) >= 0, where h(x) = x^alpha - x^(1-alpha)."""
    ratio = math.exp(log_ratio)
    a, b = 1 - rate + rate * ratio, 1 - rate + rate / ratio

    def h(x: float) -> float:
        return float(np.exp(alpha * np.log(x)) - np.exp((1 - alpha) * np.log(x)))

    with np.errstate(over="ignore"):
        # absolute: h is a difference of numbers near 1 where it vanishes
        assert h(a) + ratio * h(b) >= -1e-12 * (abs(h(a)) + ratio * abs(h(b)) + ratio)


sigmas = st.floats(0.05, 100)
rates = st.floats(1e-6, 1 - 1e-6)


@given(sigmas, rates)
def test_sampling_never_costs_and_the_curve_never_falls(sigma: float, rate: float) -> None:
    curve = sampled_gaussian_rdp(sigma, rate, ORDERS)
    assert np.all(curve <= ORDERS / (2 * sigma * sigma) * (1 + 1e-12))
    assert np.all(curve >= 0)
    assert np.all(curve[1:] >= curve[:-1] * (1 - 2e-3))


@given(sigmas, rates, st.floats(1, 3))
def test_more_noise_never_costs_more_and_a_higher_rate_never_less(
    sigma: float, rate: float, factor: float
) -> None:
    base = sampled_gaussian_rdp(sigma, rate, SOME)
    slack = 1e-3 * base + 1e-9
    assert np.all(sampled_gaussian_rdp(sigma * factor, rate, SOME) <= base + slack)
    assert np.all(sampled_gaussian_rdp(sigma, rate / factor, SOME) <= base + slack)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 10.0])
def test_a_rate_near_one_costs_nearly_what_no_sampling_costs(sigma: float) -> None:
    plain = SOME / (2 * sigma * sigma)
    np.testing.assert_allclose(sampled_gaussian_rdp(sigma, 1 - 1e-9, SOME), plain, rtol=1e-3)
    np.testing.assert_allclose(sampled_gaussian_rdp(sigma, 1.0, SOME), plain, rtol=1e-12)
    np.testing.assert_array_equal(sampled_rdp(line(sigma), 1.0, SOME), line(sigma)(SOME))
    nearly = sampled_rdp(line(sigma), 1 - 1e-9, SOME)
    whole = np.rint(SOME) == SOME
    np.testing.assert_allclose(nearly[whole & (SOME < 65)], plain[whole & (SOME < 65)], rtol=1e-6)


@pytest.mark.parametrize("sigma", [1e-300, 1e-9, 0.02, 1.0, 300.0, 700.0, 1e4, 1e9, 1e300])
@pytest.mark.parametrize("rate", [5e-324, 1e-12, 0.5, 1 - 2**-53])
def test_no_input_gives_a_nan_or_a_negative_curve(sigma: float, rate: float) -> None:
    curve = sampled_gaussian_rdp(sigma, rate, ORDERS)
    assert np.all(curve >= 0)
    general = sampled_rdp(lambda orders: orders * (0.5 / sigma / sigma), rate, SOME)
    assert np.all(general >= 0)


def test_orders_beyond_every_table_have_a_bound() -> None:
    far = np.array([2.0, 1e9])
    plain = far / 200.0
    assert np.all(sampled_gaussian_rdp(10.0, 0.01, far) <= plain)
    assert np.all(sampled_rdp(line(10.0), 0.01, far) <= plain)
    assert sampled_rdp(line(10.0), 0.01, far)[1] > 0.99 * plain[1]
