"""Renyi differential privacy of the released mechanisms: every curve is a proven upper bound.

Guarantee: no curve here is below the true divergence of its event, in either direction, for the
stated adjacency, and no epsilon is below the one that the curve proves.

Notation, all in grid units: D2, D1 = L2 and L1 sensitivity (integers for D2^2 and D1), mu = noise
variance per coordinate, alpha = Renyi order, rdp[j] = bound on the order-alpha_j divergence in
both directions. RDP of a sequence of releases is the sum of the curves; see ``filters`` for what
may be chosen adaptively.
References: Agarwal, Kairouz and Liu 2021, "The Skellam mechanism" (arXiv 2110.04995), main theorem
in its multi-dimensional form; Kairouz, Liu and Steinke 2021, "The distributed discrete Gaussian
mechanism" (arXiv 2102.06387), Proposition 14; Mironov 2017 (arXiv 1702.07476); conversion of
Canonne, Kamath and Steinke 2020 (arXiv 2004.00010), Proposition 12.
See audits/proofs/skellam_rdp.md and audits/proofs/discrete_gaussian_rdp.md.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from privfedrl.errors import ConfigurationError
from privfedrl.privacy.events import (
    DiscreteGaussianEvent,
    DpEvent,
    GaussianEvent,
    NoReleaseEvent,
    PoissonSampledEvent,
    SkellamEvent,
    UnboundedEvent,
    unit_of,
)
from privfedrl.privacy.gdp import check_delta
from privfedrl.privacy.sampled import sampled_gaussian_rdp, sampled_rdp
from privfedrl.privacy.units import Adjacency

__all__ = [
    "ORDERS",
    "discrete_gaussian_rdp",
    "discrete_gaussian_tau",
    "event_rdp",
    "gaussian_rdp",
    "rdp_to_epsilon",
    "skellam_rdp",
]

FloatArray = npt.NDArray[np.float64]


def _orders() -> FloatArray:
    """Fractions from 1.01 to 64 (16 per octave of alpha - 1, and tenths to 16), every integer from
    2 to 1024, then 32 integers per octave up to 2^24.

    The best order is near 1 + sqrt(2 ln(1/delta)) / mu_GDP, so 1.01 serves every epsilon below
    some 10^5, and 2^24 every epsilon above about 1e-6; beyond them the bound is loose but valid.
    """
    fractions = 1.0 + np.round(0.01 * 2.0 ** (np.arange(0, 203) / 16), 4)
    fractions = np.union1d(fractions, np.arange(11, 160) / 10.0)
    sparse = np.unique(np.rint(2.0 ** np.arange(10, 24 + 1 / 64, 1 / 32)))
    orders = np.union1d(np.union1d(fractions, np.arange(2.0, 1025.0)), sparse)
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


def _to_float_up(value: int) -> float:
    return _ratio_up(value, 1)


# terms of tau that are summed one by one; the later ones are bounded by the first of them
_TAU_TERMS = 1000


def discrete_gaussian_tau(share_variance: float, shares: int) -> float:
    """10 sum_{k=1}^{N-1} exp(-2 pi^2 v k/(k+1)), rounded up: how far the privacy loss of a sum of
    N discrete Gaussians of parameter v can be from that of one, per coordinate; 0 for one share."""
    if shares == 1:
        return 0.0
    # beyond 1000 the exponential underflows, and a huge integer is no float
    scale = -2.0 * math.pi**2 * min(share_variance, 1000)
    k = np.arange(1.0, min(shares, _TAU_TERMS))
    head = float(np.exp(scale * (k / (k + 1.0))).sum())
    tail = max(0, shares - _TAU_TERMS)
    rest = _to_float_up(tail) * math.exp(scale * (_TAU_TERMS / (_TAU_TERMS + 1.0)))
    return math.nextafter(10.0 * (head + rest) * (1.0 + 1e-12), math.inf)


def discrete_gaussian_rdp(
    event: DiscreteGaussianEvent, orders: npt.ArrayLike = ORDERS
) -> FloatArray:
    """RDP curve of an integer query with the sum of N discrete Gaussian shares of parameter v.

        sigma^2 = N v,   tau = 10 sum_{k=1}^{N-1} exp(-2 pi^2 v k/(k+1)),   d coordinates,
        min{ alpha/2 (D2/sigma)^2 + tau d,
             alpha/2 ((D2/sigma)^2 + 2 (D1/sigma) tau + tau^2 d),
             alpha/2 (D2/sigma + tau sqrt(d))^2 }

    One share is exact central noise: tau = 0.

    Args:
        event: sensitivity as stated by the event (add/remove unless already converted).
        orders: [k], any real numbers > 1.
    Returns:
        float64 [k], non-negative; inf where the bound overflows.
    """
    alpha = _checked_orders(orders)
    bound, variance = event.sensitivity, event.variance * event.shares
    squared = _ratio_up(bound.l2_squared, variance)
    with np.errstate(over="ignore"):
        plain: FloatArray = alpha * (0.5 * squared)
        if event.shares == 1:
            return plain
        tau, dimension = (
            discrete_gaussian_tau(event.variance, event.shares),
            _to_float_up(event.coordinates),
        )
        l1 = math.sqrt(_ratio_up(bound.l1 * bound.l1, variance))
        cross = squared + 2.0 * l1 * tau + tau * (tau * dimension)
        root = math.sqrt(squared) + tau * math.sqrt(dimension)
        concentrated = (0.5 * min(cross, root * root)) * (1.0 + 1e-12)
        curve: FloatArray = np.minimum(plain + tau * dimension, alpha * concentrated)
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


def event_rdp(
    event: DpEvent,
    *,
    adjacency: Adjacency = Adjacency.ADD_REMOVE,
    orders: npt.ArrayLike = ORDERS,
) -> FloatArray:
    """RDP curve of any event: the one function that knows them all.

    Args:
        adjacency: REPLACE_ONE doubles the sensitivity; a sampled event is then charged as if it
            were not sampled, because no bound for that case is proven here.
        orders: [k]; the curve at ``ORDERS`` is kept, so asking again costs nothing.
    Returns:
        float64 [k], read-only if ``orders`` is ``ORDERS``: zeros for no release, inf for an
        unbounded one.
    Raises:
        UnsupportedMechanism: the event is of an unknown kind.
    """
    unit_of(event)
    if orders is ORDERS:
        return _kept(event, adjacency)
    return _curve(event, adjacency, _checked_orders(orders))


@lru_cache(maxsize=1024)
def _kept(event: DpEvent, adjacency: Adjacency) -> FloatArray:
    curve = _curve(event, adjacency, ORDERS)
    curve.flags.writeable = False
    return curve


def _curve(event: DpEvent, adjacency: Adjacency, orders: FloatArray) -> FloatArray:
    match event:
        case SkellamEvent(sensitivity=bound, variance=variance):
            moved = bound.for_adjacency(adjacency)
            return skellam_rdp(SkellamEvent(sensitivity=moved, variance=variance), orders)
        case DiscreteGaussianEvent(sensitivity=bound):
            moved = bound.for_adjacency(adjacency)
            return discrete_gaussian_rdp(replace(event, sensitivity=moved), orders)
        case GaussianEvent():
            with np.errstate(over="ignore"):
                scale = 4.0 if adjacency is Adjacency.REPLACE_ONE else 1.0
                curve: FloatArray = scale * gaussian_rdp(event, orders)
            return curve
        case PoissonSampledEvent(event=inner, sampling_rate=rate):
            if adjacency is Adjacency.REPLACE_ONE or rate == 1.0:
                return _curve(inner, adjacency, orders)
            if isinstance(inner, GaussianEvent):
                return sampled_gaussian_rdp(inner.noise_multiplier, rate, orders)
            return sampled_rdp(partial(_curve, inner, adjacency), rate, orders)
        case NoReleaseEvent():
            return np.zeros_like(orders)
        case UnboundedEvent():
            return np.full_like(orders, math.inf)


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
