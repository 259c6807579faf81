"""Renyi differential privacy of the released mechanisms: every curve is a proven upper bound.

Notation, all in grid units: D2, D1 = L2 and L1 sensitivity (integers for D2^2 and D1), mu = noise
variance per coordinate, alpha = Renyi order, rdp[j] = bound on the order-alpha_j divergence in
both directions. RDP of a sequence of adaptively chosen releases is the sum of the curves.
References: Agarwal, Kairouz and Liu 2021, "The Skellam mechanism" (arXiv 2110.04995), main theorem
in its multi-dimensional form; Mironov 2017 (arXiv 1702.07476); conversion of Canonne, Kamath
and Steinke 2020 (arXiv 2004.00010), Proposition 12. See audits/proofs/skellam_rdp.md.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from privfedrl.errors import ConfigurationError
from privfedrl.privacy.events import GaussianEvent, SkellamEvent
from privfedrl.privacy.gdp import check_delta

__all__ = ["ORDERS", "gaussian_rdp", "rdp_to_epsilon", "skellam_rdp"]

FloatArray = npt.NDArray[np.float64]


def _orders() -> FloatArray:
    """Every integer from 2 to 1024, then 32 integers per octave up to 2^24.

    The Skellam theorem is about integers. The best order is near sqrt(2 ln(1/delta)) / mu_GDP, so
    2^24 serves every epsilon above about 1e-6; beyond it the bound is loose but valid.
    """
    sparse = np.unique(np.rint(2.0 ** np.arange(10, 24 + 1 / 64, 1 / 32)))
    orders = np.union1d(np.arange(2.0, 1025.0), sparse)
    orders.flags.writeable = False
    return orders


ORDERS: FloatArray = _orders()


def _ratio_up(numerator: int, denominator: int) -> float:
    """numerator / denominator of non-negative integers, rounded up; inf on overflow."""
    try:
        return math.nextafter(numerator / denominator, math.inf) if numerator else 0.0
    except OverflowError:
        return math.inf


def _checked_orders(orders: npt.ArrayLike) -> FloatArray:
    array = np.asarray(orders, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.all(np.isfinite(array)) or np.any(array <= 1):
        raise ConfigurationError("orders must be a non-empty vector of finite numbers > 1")
    return array


def skellam_rdp(event: SkellamEvent, orders: npt.ArrayLike = ORDERS) -> FloatArray:
    """RDP curve of an integer query with Skellam noise.

        alpha D2^2/(2 mu) + min{ ((2 alpha - 1) D2^2 + 6 D1)/(4 mu^2), 3 D1/(2 mu) }

    Args:
        event: sensitivity as stated by the event (add/remove unless already converted).
        orders: [k]; the theorem holds for integers, a fractional order is evaluated at its
            ceiling, which is sound because RDP increases with the order.
    Returns:
        float64 [k], non-negative; inf where the bound overflows.
    """
    alpha = np.ceil(_checked_orders(orders))
    squared, l1, variance = event.sensitivity.l2_squared, event.sensitivity.l1, event.variance
    with np.errstate(over="ignore"):
        gaussian = alpha * _ratio_up(squared, 2 * variance)
        quadratic = (2.0 * alpha - 1.0) * _ratio_up(squared, 4 * variance * variance)
        quadratic += _ratio_up(3 * l1, 2 * variance * variance)
        curve: FloatArray = gaussian + np.minimum(quadratic, _ratio_up(3 * l1, 2 * variance))
    return curve


def gaussian_rdp(event: GaussianEvent, orders: npt.ArrayLike = ORDERS) -> FloatArray:
    """RDP curve alpha / (2 z^2) of the Gaussian mechanism with noise multiplier z; float64 [k]."""
    alpha = _checked_orders(orders)
    with np.errstate(over="ignore"):
        curve: FloatArray = alpha * (0.5 * _inverse_square(event.noise_multiplier))
    return curve


def _inverse_square(value: float) -> float:
    """1 / value^2 for value > 0; inf instead of an overflow."""
    inverse = 1.0 / value
    return inverse * inverse


def rdp_to_epsilon(
    rdp: npt.ArrayLike, orders: npt.ArrayLike, delta: float
) -> tuple[float, float | None]:
    """Convert an RDP curve to epsilon at ``delta``.

        epsilon = min over alpha of rdp + ln((alpha-1)/alpha) - (ln delta + ln alpha)/(alpha-1)

    Args:
        rdp: [k], non-negative, inf allowed; the curve at ``orders``.
        orders: [k], each > 1.
        delta: strictly between 0 and 1.
    Returns:
        (epsilon >= 0, order that attains it). (0, None) for an all-zero curve, (inf, None) for an
        all-infinite one.
    Raises:
        ConfigurationError: shapes differ, a value is NaN or negative, delta is out of range.
    """
    alpha, delta = _checked_orders(orders), check_delta(delta)
    curve: npt.NDArray[Any] = np.asarray(rdp, dtype=np.float64)
    if curve.shape != alpha.shape or not np.all(curve >= 0.0):
        raise ConfigurationError(
            f"rdp must hold {alpha.size} numbers >= 0, one per order, got shape {curve.shape}"
        )
    if not curve.any():
        return 0.0, None
    # a negative value at some alpha proves delta(0) <= delta: epsilon 0 is then valid
    bound = curve + np.log1p(-1.0 / alpha) - (math.log(delta) + np.log(alpha)) / (alpha - 1.0)
    best = int(np.argmin(bound))
    if math.isinf(bound[best]):
        return math.inf, None
    return max(0.0, float(bound[best])), float(alpha[best])
