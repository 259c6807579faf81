"""Every RDP curve is above the true divergence, and its conversion above the true delta."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ive, logsumexp
from scipy.stats import skellam

from privfedrl.errors import ConfigurationError
from privfedrl.privacy.events import GaussianEvent, SkellamEvent
from privfedrl.privacy.gdp import gaussian_epsilon
from privfedrl.privacy.rdp import ORDERS, gaussian_rdp, rdp_to_epsilon, skellam_rdp
from privfedrl.privacy.units import IntegerSensitivity, Unit

FloatArray = npt.NDArray[np.float64]


def shifted(shift: int, variance: int) -> SkellamEvent:
    """One coordinate that a unit moves by ``shift``."""
    bound = IntegerSensitivity(l2_squared=shift * shift, l1=shift, unit=Unit.AGENT)
    return SkellamEvent(sensitivity=bound, variance=variance)


def log_pmf(variance: int, radius: int) -> FloatArray:
    """ln P(X = k) for k = -radius..radius, from the Bessel function of scipy."""
    values: FloatArray = np.log(ive(np.abs(np.arange(-radius, radius + 1)), variance))
    return values


def radius_of(shift: int, variance: int, order: int) -> int:
    return shift * order + int(14 * math.sqrt(variance)) + 12


def test_the_bessel_form_is_the_skellam_distribution() -> None:
    k = np.arange(-20, 21)
    np.testing.assert_allclose(np.exp(log_pmf(9, 20)), skellam.pmf(k, 4.5, 4.5), rtol=1e-8)


@pytest.mark.parametrize("variance", [1, 2, 5, 10, 40, 100, 1000])
@pytest.mark.parametrize("shift", [1, 2, 3, 7])
@pytest.mark.parametrize("order", [2, 3, 4, 6, 10])
def test_the_bound_is_above_direct_summation(shift: int, variance: int, order: int) -> None:
    radius = min(radius_of(shift, variance, order), 60 + int(30 * math.sqrt(variance)))
    p = log_pmf(variance, radius)
    assert np.all(np.isfinite(p))
    # P shifted by +shift against Q, on the window where both are known; the rest only adds
    moved, fixed = p[: p.size - shift], p[shift:]
    exact = logsumexp(order * moved + (1 - order) * fixed) / (order - 1)
    bound = skellam_rdp(shifted(shift, variance), [order])[0]
    assert exact <= bound
    gaussian = order * shift**2 / (2 * variance)
    if variance >= 1000:
        assert exact == pytest.approx(gaussian, rel=0.02)


@pytest.mark.parametrize(
    ("shift", "variance", "delta"),
    [(1, 4, 1e-5), (1, 1, 1e-3), (3, 25, 1e-6), (10, 400, 1e-5), (20, 3000, 1e-8), (5, 10, 1e-4)],
)
def test_the_claimed_delta_is_above_the_exact_hockey_stick(
    shift: int, variance: int, delta: float
) -> None:
    epsilon, _ = rdp_to_epsilon(skellam_rdp(shifted(shift, variance)), ORDERS, delta)
    radius = int(34 * math.sqrt(variance)) + 40
    p = np.exp(log_pmf(variance, radius))
    padded = np.concatenate([np.zeros(shift), p])
    other = np.concatenate([p, np.zeros(shift)])
    for first, second in ((padded, other), (other, padded)):
        exact = np.maximum(first - math.exp(min(epsilon, 700)) * second, 0).sum()
        assert exact <= delta


@given(st.integers(1, 10**9), st.integers(1, 10**9), st.integers(1, 10**12))
@settings(deadline=None)
def test_skellam_is_never_below_the_gaussian_of_the_same_variance(
    squared: int, l1: int, variance: int
) -> None:
    bound = IntegerSensitivity(l2_squared=squared, l1=min(l1, squared), unit=Unit.AGENT)
    curve = skellam_rdp(SkellamEvent(sensitivity=bound, variance=variance))
    assert np.all(curve >= ORDERS * (squared / (2 * variance)))


def test_skellam_converges_to_the_gaussian_as_the_grid_gets_finer() -> None:
    gaps = []
    for scale in (1, 10, 100, 1000):
        event = shifted(3 * scale, 30 * scale**2)
        gaussian = ORDERS * (9 / 60)
        gaps.append(float(np.max(skellam_rdp(event)[:100] / gaussian[:100] - 1)))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-2 * gaps[0]
    assert gaps[-1] < 1e-3


@given(st.integers(1, 10**6), st.integers(1, 10**9), st.integers(2, 10))
@settings(deadline=None)
def test_more_noise_never_costs_more_and_more_sensitivity_never_less(
    shift: int, variance: int, factor: int
) -> None:
    base = skellam_rdp(shifted(shift, variance))
    assert np.all(skellam_rdp(shifted(shift, variance * factor)) <= base)
    assert np.all(skellam_rdp(shifted(shift * factor, variance)) >= base)
    assert np.all(np.diff(base) >= 0)


def test_a_fractional_order_is_charged_at_its_ceiling() -> None:
    event = shifted(3, 10)
    assert skellam_rdp(event, [2.5])[0] == skellam_rdp(event, [3.0])[0]


def test_huge_integers_overflow_to_infinity_not_to_an_error() -> None:
    assert np.all(np.isinf(skellam_rdp(shifted(10**200, 1))))
    assert np.all(skellam_rdp(shifted(10**200, 10**410)) < 1)
    tiny = GaussianEvent(noise_multiplier=1e-300, unit=Unit.AGENT)
    assert np.all(np.isinf(gaussian_rdp(tiny)))


def test_the_gaussian_curve_is_the_textbook_line() -> None:
    event = GaussianEvent(noise_multiplier=2.0, unit=Unit.AGENT)
    np.testing.assert_allclose(gaussian_rdp(event, [1.5, 8.0]), [1.5 / 8, 1.0])


def test_the_orders_are_dense_integers_and_cannot_be_changed() -> None:
    assert np.array_equal(ORDERS, np.rint(ORDERS))
    assert np.array_equal(ORDERS[:1023], np.arange(2, 1025))
    assert np.max(ORDERS[1:] / ORDERS[:-1]) <= 1.5
    with pytest.raises(ValueError, match="read-only"):
        ORDERS[0] = 1.0


@given(st.floats(0.3, 1000), st.floats(1e-12, 0.1))
@settings(deadline=None)
def test_conversion_of_the_gaussian_curve_is_above_the_exact_epsilon(
    sigma: float, delta: float
) -> None:
    curve = gaussian_rdp(GaussianEvent(noise_multiplier=sigma, unit=Unit.AGENT))
    converted, _ = rdp_to_epsilon(curve, ORDERS, delta)
    exact = gaussian_epsilon(1 / sigma, delta)
    assert exact <= converted + 1e-12
    if sigma < 100 and delta < 1e-3 and sigma > 1:
        assert converted <= 1.5 * exact + 1e-3


def test_conversion_agrees_with_opacus_and_dp_accounting_at_integer_orders() -> None:
    analysis = pytest.importorskip("opacus.accountants.analysis.rdp")
    orders = list(range(2, 200))
    for sigma, steps in ((1.0, 1), (5.0, 100), (20.0, 50)):
        curve = steps * gaussian_rdp(GaussianEvent(noise_multiplier=sigma, unit=Unit.AGENT), orders)
        theirs, _ = analysis.get_privacy_spent(orders=orders, rdp=list(curve), delta=1e-5)
        assert rdp_to_epsilon(curve, orders, 1e-5)[0] == pytest.approx(theirs, rel=1e-9)


def test_conversion_is_zero_for_nothing_and_infinite_for_no_bound() -> None:
    assert rdp_to_epsilon(np.zeros(3), [2, 3, 4], 1e-5) == (0.0, None)
    assert rdp_to_epsilon(np.full(3, np.inf), [2, 3, 4], 1e-5) == (math.inf, None)
    value, order = rdp_to_epsilon([np.inf, 1.0], [2, 3], 1e-5)
    assert order == 3.0
    assert math.isfinite(value)


@given(st.lists(st.floats(0, 1e300), min_size=3, max_size=3), st.floats(1e-300, 1 - 1e-9))
@settings(deadline=None)
def test_conversion_is_never_negative(curve: list[float], delta: float) -> None:
    assert rdp_to_epsilon(curve, [2, 8, 1e6], delta)[0] >= 0


@pytest.mark.parametrize("orders", [[], [1.0], [[2.0]], [math.nan], [math.inf]])
def test_orders_that_mean_nothing_are_refused(orders: Any) -> None:
    with pytest.raises(ConfigurationError, match="orders"):
        skellam_rdp(shifted(1, 1), orders)


@pytest.mark.parametrize("curve", [[1.0], [1.0, -1.0], [1.0, math.nan]])
def test_curves_that_mean_nothing_are_refused(curve: list[float]) -> None:
    with pytest.raises(ConfigurationError, match="rdp"):
        rdp_to_epsilon(curve, [2, 3], 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, math.nan])
def test_conversion_refuses_a_delta_out_of_range(delta: float) -> None:
    with pytest.raises(ConfigurationError, match="delta"):
        rdp_to_epsilon([1.0, 1.0], [2, 3], delta)
