"""Exact privacy curve of the Gaussian mechanism.

Guarantee: delta is exact to 1e-9 relative, and so is every epsilon above 1e-9; composition of
unsampled Gaussian releases is exact.

Notation: mu = L2 sensitivity / standard deviation (Gaussian differential privacy);
a = epsilon/mu - mu/2, b = epsilon/mu + mu/2; Phi, phi = standard normal distribution and density;

    delta(epsilon) = Phi(-a) - e^epsilon Phi(-b) = phi(a) [ R(a) - R(b) ],  R(x) = Phi(-x) / phi(x).

The second form is used because e^epsilon Phi(-b) loses every digit for large mu. Composition of
releases r at sampling rate 1 is again Gaussian: mu^2 = sum mu_r^2.
Reference: Balle and Wang 2018 (arXiv 1805.06530), Theorem 8; Dong, Roth and Su 2019.
"""

from __future__ import annotations

import math
import sys

from scipy.optimize import brentq
from scipy.special import erfcx, log_ndtr

from privfedrl.errors import ConfigurationError, shown

__all__ = [
    "check_delta",
    "check_non_negative",
    "gaussian_delta",
    "gaussian_epsilon",
    "gaussian_noise_multiplier",
]

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
_SQRT_HALF = math.sqrt(0.5)
_SQRT_HALF_PI = math.sqrt(0.5 * math.pi)
# below this mu, R(a) - R(b) loses digits that its expansion about the middle still has
_SMALL_MU = 4e-3


def check_delta(delta: float) -> float:
    """``delta`` itself if it lies strictly between 0 and 1, else ConfigurationError."""
    if not isinstance(delta, (int, float)) or isinstance(delta, bool) or not 0.0 < delta < 1.0:
        raise ConfigurationError(f"delta must lie strictly between 0 and 1, got {shown(delta)}")
    return float(delta)


def check_non_negative(name: str, value: float) -> float:
    """``value`` as a float >= 0, inf allowed, else ConfigurationError that names it."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # an integer above every float is refused, the float inf is not
    if not (number and (0.0 <= value <= sys.float_info.max or value == math.inf)):
        raise ConfigurationError(f"{name} must be a number >= 0, got {shown(value)}")
    return float(value)


def _log_delta(mu: float, epsilon: float) -> float:
    """ln delta(epsilon) for 0 < mu < inf, 0 <= epsilon < inf; -inf where it underflows."""
    a, b = epsilon / mu - mu / 2.0, epsilon / mu + mu / 2.0
    if a > 1e150:
        return -math.inf
    if mu < _SMALL_MU:
        return math.log(mu) - a * a / 2.0 - _LOG_SQRT_2PI + math.log(_slope(epsilon / mu, mu))
    log_far = -a * a / 2.0 + math.log(float(erfcx(b * _SQRT_HALF)) / 2.0)
    if a > 0.0:
        log_near = -a * a / 2.0 + math.log(float(erfcx(a * _SQRT_HALF)) / 2.0)
    else:
        log_near = float(log_ndtr(-a))
    return log_near + math.log(-math.expm1(min(log_far - log_near, -1e-300)))


def _slope(middle: float, mu: float) -> float:
    """(R(a) - R(b)) / mu for a, b = middle -+ mu/2 and mu < _SMALL_MU, to second order.

    It is the mean of S = -R' = 1 - x R over [a, b]: S(m) + mu^2 S''(m) / 24 + ..., where
    R'' = R - x S and S'' = -R''' = 2 S - x R''. The next term is below 10^-14 relative. Beyond 100,
    where that cancels, S <= 1 / (1 + x^2).
    """
    if middle > 100.0:
        low = middle - mu / 2.0
        return 1.0 / (1.0 + low * low)
    ratio = _SQRT_HALF_PI * float(erfcx(middle * _SQRT_HALF))
    slope = 1.0 - middle * ratio
    curvature = 2.0 * slope - middle * (ratio - middle * slope)
    return slope + mu * mu / 24.0 * curvature


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Smallest delta for which mu-GDP gives (epsilon, delta)-DP.

    Args:
        mu: sensitivity / standard deviation, >= 0; inf means no noise.
        epsilon: >= 0; inf is allowed.
    Returns:
        delta in [0, 1], exact to 1e-9 relative.
    Raises:
        ConfigurationError: an argument is negative or NaN.
    """
    mu, epsilon = check_non_negative("mu", mu), check_non_negative("epsilon", epsilon)
    if mu == 0.0 or math.isinf(epsilon):
        return 0.0
    if math.isinf(mu):
        return 1.0
    return min(1.0, math.exp(_log_delta(mu, epsilon)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Smallest epsilon >= 0 for which mu-GDP gives (epsilon, delta)-DP; inf if mu is inf.

    Guarantees:
        gaussian_delta(mu, result) <= delta (checked after the root is found).
    Raises:
        ConfigurationError: mu negative or NaN, delta outside (0, 1).
    """
    mu, delta = check_non_negative("mu", mu), check_delta(delta)
    log_target = math.log(delta)
    # mu-GDP is (mu^2/2)-zCDP, whose conversion bounds the root from above
    upper = (mu * mu / 2.0 + mu * math.sqrt(-2.0 * log_target)) * (1.0 + 1e-12)
    if not math.isfinite(upper):
        return math.inf
    if upper == 0.0 or _log_delta(mu, 0.0) <= log_target:
        return 0.0

    def excess(epsilon: float) -> float:
        return _log_delta(mu, epsilon) - log_target

    root = float(brentq(excess, 0.0, upper, xtol=1e-14, rtol=1e-14, maxiter=200))
    step = max(root * 1e-15, 1e-300)
    while root < upper and excess(root) > 0.0:
        root, step = min(upper, root + step), 2.0 * step
    return root


def gaussian_noise_multiplier(*, epsilon: float, delta: float) -> float:
    """Smallest noise multiplier (standard deviation / sensitivity) that gives (epsilon, delta).

    Guarantees:
        gaussian_delta(1 / result, epsilon) <= delta; within 1e-12 relative of the optimum.
    Raises:
        ConfigurationError: epsilon is not finite and > 0, or delta is outside (0, 1).
    """
    epsilon = check_non_negative("epsilon", epsilon)
    log_target = math.log(check_delta(delta))
    if not 1e-12 <= epsilon <= 1e12:
        raise ConfigurationError(f"epsilon must lie in [1e-12, 1e12], got {shown(epsilon)}")
    low, high = 1e-9, 1e18  # too little noise, and enough for every float delta at these epsilons
    while high / low > 1.0 + 1e-13:
        middle = math.sqrt(low) * math.sqrt(high)
        if _log_delta(1.0 / middle, epsilon) <= log_target:
            high = middle
        else:
            low = middle
    return high
