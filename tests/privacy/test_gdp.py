"""The Gaussian curve agrees with known figures and closed forms and never errs downwards."""

import math
from typing import Any

import mpmath
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from privfedrl.errors import ConfigurationError
from privfedrl.privacy.gdp import (
    check_delta,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_noise_multiplier,
)

mus = st.floats(1e-6, 1e4)
deltas = st.floats(1e-300, 0.999)


@pytest.mark.parametrize(("epsilon", "sigma"), [(1, 3.7306), (2, 1.9938), (4, 1.0812), (8, 0.6002)])
def test_noise_multipliers_match_the_published_figures(epsilon: float, sigma: float) -> None:
    assert gaussian_noise_multiplier(epsilon=epsilon, delta=1e-5) == pytest.approx(sigma, abs=6e-5)


@pytest.mark.parametrize(
    ("sigma", "steps", "delta", "epsilon"),
    [(5, 100, 1e-5, 9.99726), (10, 2000, 1e-5, 28.37347), (1, 1, 1e-9, 6.17394)],
)
def test_epsilon_matches_independent_accountants(
    sigma: float, steps: int, delta: float, epsilon: float
) -> None:
    assert gaussian_epsilon(math.sqrt(steps) / sigma, delta) == pytest.approx(epsilon, abs=2e-5)


@given(st.floats(0.05, 10), st.floats(0, 5))
@settings(deadline=None)
def test_delta_matches_the_textbook_formula_where_that_is_accurate(
    mu: float, epsilon: float
) -> None:
    direct = norm.cdf(mu / 2 - epsilon / mu)
    direct -= math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
    assert gaussian_delta(mu, epsilon) == pytest.approx(direct, rel=1e-6, abs=1e-13)


def precise_log_delta(mu: float, epsilon: float) -> float:
    """ln delta in 80-digit arithmetic."""
    with mpmath.workdps(80):
        m, e = mpmath.mpf(mu), mpmath.mpf(epsilon)
        direct = mpmath.ncdf(m / 2 - e / m) - mpmath.exp(e) * mpmath.ncdf(-m / 2 - e / m)
        return float(mpmath.log(direct))


@given(st.floats(1e-9, 100), st.floats(0, 30))
@settings(deadline=None, max_examples=200)
def test_delta_is_exact_to_a_billionth_against_high_precision(mu: float, distance: float) -> None:
    epsilon = mu * (distance + mu / 2)
    exact = precise_log_delta(mu, epsilon)
    assert math.log(gaussian_delta(mu, epsilon)) == pytest.approx(exact, abs=1e-9, rel=1e-15)


@given(st.floats(1e-4, 50), st.floats(1e-100, 0.1))
@settings(deadline=None, max_examples=100)
def test_epsilon_is_exact_to_a_billionth_against_high_precision(mu: float, delta: float) -> None:
    epsilon = gaussian_epsilon(mu, delta)
    assume(epsilon > 1e-3 * mu)
    assert precise_log_delta(mu, epsilon * (1 + 1e-9)) < math.log(delta)
    assert precise_log_delta(mu, epsilon * (1 - 1e-9)) > math.log(delta)


def test_far_beyond_every_delta_the_curve_underflows_without_an_error() -> None:
    assert gaussian_delta(1e-310, 1e-100) == 0.0
    assert gaussian_delta(1.0, 1e300) == 0.0
    assert gaussian_delta(1e-6, 1.1e-4) == 0.0


@given(mus, deltas)
@settings(deadline=None, max_examples=200)
def test_epsilon_is_the_smallest_that_reaches_delta(mu: float, delta: float) -> None:
    epsilon = gaussian_epsilon(mu, delta)
    assert epsilon >= 0
    assert gaussian_delta(mu, epsilon) <= delta * (1 + 1e-9)
    if epsilon > 1e-6 and mu < 100 and delta > 1e-200:
        assert gaussian_delta(mu, epsilon * (1 - 1e-6)) > delta


@given(mus, st.floats(1, 10), deltas)
@settings(deadline=None)
def test_more_signal_never_costs_less(mu: float, factor: float, delta: float) -> None:
    assert gaussian_epsilon(mu * factor, delta) >= gaussian_epsilon(mu, delta) - 1e-9


@given(st.floats(1e-14, 1e-7), st.floats(0, 8))
@settings(deadline=None)
def test_tiny_signals_are_bounded_from_above(mu: float, distance: float) -> None:
    # to first order in mu, delta = mu (phi(a) - a Phi(-a)): the reference loses no digits
    epsilon = mu * distance
    exact = mu * (norm.pdf(distance) - distance * norm.sf(distance))
    assume(exact > 0)
    assert gaussian_delta(mu, epsilon) >= exact * (1 - 1e-5)
    assert gaussian_delta(mu, epsilon) <= mu


@given(st.floats(0.01, 100), st.floats(1e-100, 0.5))
@settings(deadline=None)
def test_the_noise_multiplier_keeps_its_promise_and_is_least(epsilon: float, delta: float) -> None:
    sigma = gaussian_noise_multiplier(epsilon=epsilon, delta=delta)
    assert gaussian_delta(1 / sigma, epsilon) <= delta * (1 + 1e-9)
    assert gaussian_delta(1.0001 / sigma, epsilon) > delta


def test_extremes_need_no_special_care_from_the_caller() -> None:
    assert gaussian_epsilon(0.0, 1e-5) == 0.0
    assert gaussian_epsilon(math.inf, 1e-5) == math.inf
    assert gaussian_epsilon(1e200, 1e-5) == math.inf
    assert gaussian_epsilon(1e-320, 1e-300) == 0.0
    assert gaussian_epsilon(1.0, 0.9) == 0.0
    assert gaussian_delta(0.0, 0.0) == 0.0
    assert gaussian_delta(math.inf, 1.0) == 1.0
    assert gaussian_delta(1.0, math.inf) == 0.0
    assert gaussian_delta(1e-310, 1.0) == 0.0
    assert gaussian_delta(1e9, 0.0) == 1.0
    assert gaussian_delta(1e-9, 0.0) == pytest.approx(1e-9 / math.sqrt(2 * math.pi), rel=1e-7)
    assert gaussian_epsilon(1e8, 1e-5) == pytest.approx(5e15, rel=1e-6)


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 1.1, math.nan, "0.1", True, None])
def test_delta_outside_the_open_unit_interval_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="delta"):
        check_delta(bad)
    with pytest.raises(ConfigurationError, match="delta"):
        gaussian_epsilon(1.0, bad)


@pytest.mark.parametrize("bad", [-1.0, math.nan, "1", True])
def test_negative_or_missing_arguments_are_refused(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="mu"):
        gaussian_delta(bad, 1.0)
    with pytest.raises(ConfigurationError, match="epsilon"):
        gaussian_delta(1.0, bad)


@pytest.mark.parametrize("epsilon", [0.0, math.inf, 1e-13])
def test_unreachable_targets_are_refused(epsilon: float) -> None:
    with pytest.raises(ConfigurationError, match="epsilon"):
        gaussian_noise_multiplier(epsilon=epsilon, delta=1e-5)


def test_the_hardest_admissible_target_is_reached() -> None:
    sigma = gaussian_noise_multiplier(epsilon=1e-12, delta=1e-300)
    assert gaussian_delta(1 / sigma, 1e-12) <= 1e-300
