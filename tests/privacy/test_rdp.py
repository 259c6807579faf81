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

from privfedrl.errors import ConfigurationError, UnsupportedMechanism
from privfedrl.privacy.events import (
    DiscreteGaussianEvent,
    DpEvent,
    GaussianEvent,
    NoReleaseEvent,
    PoissonSampledEvent,
    SkellamEvent,
    UnboundedEvent,
)
from privfedrl.privacy.gdp import gaussian_epsilon
from privfedrl.privacy.rdp import (
    ORDERS,
    discrete_gaussian_rdp,
    discrete_gaussian_tau,
    event_rdp,
    gaussian_rdp,
    rdp_to_epsilon,
    skellam_rdp,
)
from privfedrl.privacy.units import Adjacency, IntegerSensitivity, Unit

FloatArray = npt.NDArray[np.float64]
WHOLE = np.rint(ORDERS) == ORDERS


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
        gaps.append(float(np.max((skellam_rdp(event) / gaussian - 1)[WHOLE][:100])))
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


def test_the_orders_are_dense_and_cannot_be_changed() -> None:
    assert np.array_equal(ORDERS[WHOLE][:1023], np.arange(2, 1025))
    assert ORDERS[0] == 1.01
    assert ORDERS[-1] == 2**24
    assert np.all(np.diff(ORDERS) > 0)
    gaps = ORDERS - 1
    assert np.max(gaps[1:] / gaps[:-1]) <= 1.05
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


# --- the discrete Gaussian ----------------------------------------------------------------------


def discrete(
    shift: int, variance: int, *, shares: int = 1, coordinates: int = 1
) -> DiscreteGaussianEvent:
    """One coordinate that a unit moves by ``shift``."""
    bound = IntegerSensitivity(l2_squared=shift * shift, l1=shift, unit=Unit.AGENT)
    return DiscreteGaussianEvent(
        sensitivity=bound, variance=variance, shares=shares, coordinates=coordinates
    )


def sum_of_discrete_gaussians(variance: int, shares: int) -> tuple[FloatArray, int]:
    """(pmf on -radius..radius, radius) of the sum of ``shares`` variables."""
    reach = int(12 * math.sqrt(variance)) + 8
    k = np.arange(-reach, reach + 1)
    one = np.exp(-(k.astype(float) ** 2) / (2 * variance))
    one /= one.sum()
    pmf = one
    for _ in range(shares - 1):
        pmf = np.convolve(pmf, one)
    return pmf, (pmf.size - 1) // 2


def divergence(pmf: FloatArray, shift: int, order: float) -> float:
    """Order-alpha divergence of the pmf and its translate, where both are above 1e-280."""
    known = np.log(pmf[pmf > 1e-280])
    moved, fixed = known[: known.size - shift], known[shift:]
    return float(logsumexp(order * moved + (1 - order) * fixed) / (order - 1))


@pytest.mark.parametrize("order", [1.01, 1.5, 2.0, 3.3, 8.0])
@pytest.mark.parametrize("shift", [1, 2, 5])
@pytest.mark.parametrize(("variance", "shares"), [(1, 1), (3, 1), (50, 1), (4, 2), (4, 5), (9, 3)])
def test_the_discrete_gaussian_bound_is_above_direct_summation_at_every_order(
    variance: int, shares: int, shift: int, order: float
) -> None:
    pmf, _ = sum_of_discrete_gaussians(variance, shares)
    bound = discrete_gaussian_rdp(discrete(shift, variance, shares=shares), [order])[0]
    assert divergence(pmf, shift, order) <= bound * (1 + 1e-9)
    if shares > 1 or variance > 3:
        assert divergence(pmf, shift, order) == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize(
    ("shift", "variance", "shares"), [(1, 4, 1), (3, 9, 4), (2, 4, 3), (1, 1, 1)]
)
def test_the_claimed_delta_of_a_discrete_gaussian_is_above_the_exact_hockey_stick(
    shift: int, variance: int, shares: int
) -> None:
    event = discrete(shift, variance, shares=shares)
    pmf, _ = sum_of_discrete_gaussians(variance, shares)
    moved, fixed = np.append(np.zeros(shift), pmf), np.append(pmf, np.zeros(shift))
    for delta in (1e-3, 1e-6):
        epsilon, _ = rdp_to_epsilon(discrete_gaussian_rdp(event), ORDERS, delta)
        assert np.maximum(moved - math.exp(epsilon) * fixed, 0).sum() <= delta
        assert np.maximum(fixed - math.exp(epsilon) * moved, 0).sum() <= delta


@pytest.mark.parametrize(
    ("deviation", "tau"), [(0.5, 9.7), (1.0, 5.5e-4), (1.5, 2.3e-9), (2.0, 7.2e-17), (3.0, 2.6e-38)]
)
def test_the_distance_of_100_shares_to_one_is_that_of_the_published_table(
    deviation: float, tau: float
) -> None:
    assert discrete_gaussian_tau(deviation**2, 100) == pytest.approx(tau, rel=0.03)
    assert discrete_gaussian_tau(deviation**2, 1) == 0.0


@pytest.mark.parametrize(("variance", "shares"), [(0.5, 2), (1.0, 2), (1.0, 6), (1.5, 3)])
def test_a_sum_of_shares_is_within_half_tau_of_a_discrete_gaussian_everywhere(
    variance: float, shares: int
) -> None:
    k = np.arange(-25, 26).astype(float)
    one = np.exp(-k * k / (2 * variance))
    total = one / one.sum()
    for _ in range(shares - 1):
        total = np.convolve(total, one / one.sum())
    reach = (total.size - 1) // 2
    x = np.arange(-reach, reach + 1).astype(float)
    whole = np.exp(-x * x / (2 * shares * variance))
    whole /= whole.sum()
    # inside one share's window: beyond it the truncated convolution is not the sum
    inner = np.abs(x) <= 8
    distance = np.max(np.abs(np.log(total[inner] / whole[inner])))
    assert distance <= discrete_gaussian_tau(variance, shares) / 2
    assert distance > discrete_gaussian_tau(variance, shares) / 2000  # the bound is no formality


def test_the_distance_of_many_shares_is_bounded_without_summing_them_all() -> None:
    k = np.arange(1.0, 5000.0)
    exact = 10 * float(np.exp(-2 * math.pi**2 * 4 * k / (k + 1)).sum())
    assert exact <= discrete_gaussian_tau(4, 5000) <= exact * 1.1


def test_one_share_is_the_gaussian_line_exactly() -> None:
    event = discrete(3, 10, coordinates=10**9)
    np.testing.assert_allclose(discrete_gaussian_rdp(event), ORDERS * (9 / 20), rtol=1e-15)


def test_many_wide_shares_cost_what_one_gaussian_of_their_variance_costs() -> None:
    for shares in (2, 100, 10**6):
        curve = discrete_gaussian_rdp(discrete(3, 16, shares=shares, coordinates=1000))
        np.testing.assert_allclose(curve, ORDERS * (9 / (32 * shares)), rtol=1e-9)
        assert np.all(curve >= ORDERS * (9 / (32 * shares)))


def test_narrow_shares_cost_more_in_more_coordinates() -> None:
    curves = [
        discrete_gaussian_rdp(discrete(3, 4, shares=50, coordinates=d)) for d in (1, 10**12, 10**20)
    ]
    assert np.all(curves[0] < curves[1])
    assert np.all(curves[1] < curves[2])


def test_huge_shares_and_coordinates_overflow_to_infinity_not_to_an_error() -> None:
    bound = discrete_gaussian_rdp(discrete(1, 4, shares=10**300, coordinates=10**400))
    assert np.all(np.isinf(bound))
    assert np.all(discrete_gaussian_rdp(discrete(1, 10**400, shares=10**9)) < 1e-300)
    assert np.all(np.isinf(discrete_gaussian_rdp(discrete(10**200, 1))))


# --- any event ----------------------------------------------------------------------------------

SKELLAM = shifted(30, 2000)
EVENTS: list[DpEvent] = [
    SKELLAM,
    discrete(30, 1000, shares=2, coordinates=50),
    GaussianEvent(noise_multiplier=2.0, unit=Unit.AGENT),
    NoReleaseEvent(unit=Unit.AGENT),
    UnboundedEvent(unit=Unit.AGENT),
]
SAMPLED: list[DpEvent] = [
    PoissonSampledEvent(event=event, sampling_rate=0.1)
    for event in EVENTS
    if isinstance(event, SkellamEvent | DiscreteGaussianEvent | GaussianEvent)
]


def test_the_curve_of_any_event_is_that_of_its_own_function() -> None:
    assert isinstance(EVENTS[1], DiscreteGaussianEvent)
    assert isinstance(EVENTS[2], GaussianEvent)
    np.testing.assert_array_equal(event_rdp(SKELLAM), skellam_rdp(SKELLAM))
    np.testing.assert_array_equal(event_rdp(EVENTS[1]), discrete_gaussian_rdp(EVENTS[1]))
    np.testing.assert_array_equal(event_rdp(EVENTS[2]), gaussian_rdp(EVENTS[2]))
    assert not event_rdp(EVENTS[3]).any()
    assert np.all(np.isinf(event_rdp(EVENTS[4])))


@pytest.mark.parametrize("event", EVENTS + SAMPLED)
@pytest.mark.parametrize("adjacency", list(Adjacency))
def test_a_curve_is_kept_and_cannot_be_changed(event: DpEvent, adjacency: Adjacency) -> None:
    curve = event_rdp(event, adjacency=adjacency)
    assert curve is event_rdp(event, adjacency=adjacency)
    with pytest.raises(ValueError, match="read-only"):
        curve[0] = 0.0
    some = event_rdp(event, adjacency=adjacency, orders=[1.5, 2.0, 77.0, 5000.0])
    np.testing.assert_array_equal(some[1:3], curve[np.isin(ORDERS, [2.0, 77.0])])


@pytest.mark.parametrize("event", EVENTS + SAMPLED)
def test_replacing_a_unit_never_costs_less_than_removing_it(event: DpEvent) -> None:
    replaced = event_rdp(event, adjacency=Adjacency.REPLACE_ONE)
    assert np.all(replaced >= event_rdp(event))


def test_replacing_a_sampled_unit_is_charged_as_if_it_were_not_sampled() -> None:
    for event in SAMPLED:
        assert isinstance(event, PoissonSampledEvent)
        np.testing.assert_array_equal(
            event_rdp(event, adjacency=Adjacency.REPLACE_ONE),
            event_rdp(event.event, adjacency=Adjacency.REPLACE_ONE),
        )


def test_a_sample_that_holds_everybody_is_no_sample() -> None:
    for event in SAMPLED:
        assert isinstance(event, PoissonSampledEvent)
        always = PoissonSampledEvent(event=event.event, sampling_rate=1.0)
        np.testing.assert_array_equal(event_rdp(always), event_rdp(event.event))


def test_unknown_events_have_no_curve() -> None:
    stranger: Any = object()
    with pytest.raises(UnsupportedMechanism, match="unknown event"):
        event_rdp(stranger)
