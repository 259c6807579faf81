"""Renyi divergence of releases on a secret Poisson sample.

Guarantee: every figure is at least the divergence in both directions, for add/remove adjacency, at
every order, fractional ones included (audits/proofs/discrete_gaussian_rdp.md, part B).

Notation: Q, P = output without and with the unit, q = sampling rate, M = (1-q) Q + q P,
r = P/Q, c(alpha) = (alpha - 1) D_alpha(M || Q) = ln E_Q[(1 - q + q r)^alpha]. The noise is
symmetric, so D_alpha(Q || M) <= D_alpha(M || Q). c is convex with c(1) = 0: between two orders the
chord is an upper bound, so a few hundred orders serve all.
References: Mironov, Talwar and Zhang 2019 (arXiv 1908.10530); Zhu and Wang 2019 (ICML).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

__all__ = ["sampled_gaussian_rdp", "sampled_rdp"]

FloatArray = npt.NDArray[np.float64]

_ROUNDING = 2.0**-50
# the trapezoidal rule is off by a factor of at most 1 + 2 e^-44, see _step
_DIGITS = 44.0
_TAIL = 10.0
# where q e^((alpha-1)/(2 sigma^2)) > e^12 the norm bound is within 1e-5 of the truth
_BEYOND = 12.0
_LARGEST_SUM = 4096
_LARGEST_INTEGRAL = 2.0**24
_MOST_NODES = 2**15


def _per_octave(low: int, high: int, count: int) -> FloatArray:
    grid: FloatArray = np.unique(np.rint(low * 2.0 ** (np.arange(0, 64 * count) / count)))
    return grid[grid <= high]


def _fractions() -> FloatArray:
    return np.union1d(
        1.0 + np.round(0.01 * 2.0 ** (np.arange(0, 203) / 16), 4), np.arange(11, 160) / 10.0
    )


_INTEGERS = np.union1d(np.arange(2.0, 65.0), _per_octave(64, _LARGEST_SUM, 16))
_ALL = np.union1d(
    _fractions(), np.union1d(_INTEGERS, _per_octave(_LARGEST_SUM, int(_LARGEST_INTEGRAL), 16))
)


def sampled_gaussian_rdp(
    noise_multiplier: float, sampling_rate: float, orders: FloatArray
) -> FloatArray:
    """RDP curve of a Gaussian release on a Poisson sample, both directions, add/remove.

    c(alpha) is integrated by the trapezoidal rule with a proven relative error below 1e-18, and
    bounded in closed form where that is as good.

    Args:
        noise_multiplier, sampling_rate: finite and > 0; in (0, 1].
        orders: [k], each > 1.
    Returns:
        float64 [k], never above the curve without sampling.
    """
    sigma, rate = noise_multiplier, sampling_rate

    def plain(alpha: FloatArray) -> FloatArray:
        with np.errstate(over="ignore"):
            curve: FloatArray = alpha * (0.5 * (1.0 / sigma) * (1.0 / sigma))
        return curve

    if rate == 1.0:
        return plain(orders)
    span = -math.log(rate) + _BEYOND
    # compared by square roots: sigma^2 may overflow
    reach = math.sqrt(_LARGEST_INTEGRAL / (2.0 * span))
    limit = _LARGEST_INTEGRAL if sigma > reach else 1.0 + 2.0 * sigma * sigma * span
    moments = _closed(_ALL, plain(_ALL), rate)
    used = int(np.searchsorted(_ALL, limit, side="right"))
    begin, edge = 0, 16.0 * sigma
    while begin < used:
        end = max(begin, min(used, int(np.searchsorted(_ALL, edge, side="right"))))
        if end > begin:
            found = _integrals(_ALL[begin:end], sigma, rate)
            moments[begin:end] = np.minimum(moments[begin:end], found)
        begin, edge = end, 2.0 * edge
    return _from_moments(_ALL, moments, orders, plain(orders), rate)


def sampled_rdp(
    renyi: Callable[[FloatArray], FloatArray], sampling_rate: float, orders: FloatArray
) -> FloatArray:
    """RDP curve of a release with symmetric noise on a Poisson sample, both directions.

        c(alpha) <= ln sum_l C(alpha, l) (1-q)^(alpha-l) q^l e^((l-1) eps(l))   at integers alpha,

    the sum of Zhu and Wang without their factor 3, which symmetric noise does not need.

    Args:
        renyi: bound on D_alpha(P || Q) without sampling, for a vector of orders > 1. The pair must
            be a symmetric law and its translate.
        sampling_rate: in (0, 1].
        orders: [k], each > 1.
    Returns:
        float64 [k], never above the curve without sampling.
    """
    if sampling_rate == 1.0:
        return renyi(orders)
    moments = _closed(_INTEGERS, renyi(_INTEGERS), sampling_rate)
    moments = np.minimum(moments, _sums(renyi, sampling_rate))
    return _from_moments(_INTEGERS, moments, orders, renyi(orders), sampling_rate)


def _from_moments(
    known: FloatArray, moments: FloatArray, orders: FloatArray, plain: FloatArray, rate: float
) -> FloatArray:
    """The curve at ``orders`` from bounds on c at ``known``: chords, or the closed bounds."""
    # the divergence does not decrease with the order: what a higher order proves, a lower one has
    moments = np.minimum.accumulate((moments / (known - 1.0))[::-1])[::-1] * (known - 1.0)
    finite = np.isfinite(moments)
    at, values = np.append(1.0, known[finite]), np.append(0.0, moments[finite])
    bounds = np.interp(orders, at, values)
    beyond = orders > at[-1]
    if beyond.any():
        bounds[beyond] = _closed(orders[beyond], plain[beyond], rate)
    curve: FloatArray = np.fmin(bounds / (orders - 1.0) * (1.0 + _ROUNDING), plain)
    return curve


def _closed(alpha: FloatArray, plain: FloatArray, rate: float) -> FloatArray:
    """Bound on c from the divergence eps without sampling: the norm of L_alpha is subadditive.

    alpha ln(1 - q + q e^((alpha-1) eps / alpha))
    """
    with np.errstate(over="ignore"):
        bound: FloatArray = alpha * _log_mixture((1.0 - 1.0 / alpha) * plain, rate)
    return bound * (1.0 + _ROUNDING)


def _log_mixture(gain: FloatArray, rate: float) -> FloatArray:
    """ln(1 - q + q e^gain) without overflow and without cancellation near 0."""
    small: FloatArray = np.log1p(rate * np.expm1(np.minimum(gain, 30.0)))
    if not gain.size or float(np.max(gain)) <= 30.0:
        return small
    large = np.logaddexp(math.log1p(-rate), math.log(rate) + gain)
    return np.where(gain <= 30.0, small, large)


def _step(sigma: float) -> float:
    """Width h of the trapezoidal rule over t = x / sigma.

    The integrand is analytic for |Im t| < pi sigma, where it is at most e^(a^2/2) times its value
    on the real line at |Im t| = a, so the relative error is at most 2 e^(a^2/2 - 2 pi a / h).
    """
    a = min(math.pi * sigma, math.sqrt(2.0 * _DIGITS))
    return 2.0 * math.pi * a / (_DIGITS + a * a / 2.0)


def _integrals(alpha: FloatArray, sigma: float, rate: float) -> FloatArray:
    """c(alpha) by integration over t, [k]; inf if that takes too many nodes.

    Outside [-10, alpha / sigma + 10] the integrand is below e^-49 of its value inside, because
    the exponent -t^2/2 + alpha s(t) has a slope above -t for t < 0 and below alpha / sigma - t.
    """
    h = _step(sigma)
    low, high = math.ceil(_TAIL / h), math.ceil((float(alpha[-1]) / sigma + _TAIL) / h)
    if low + high > _MOST_NODES:
        return np.full_like(alpha, math.inf)
    t: FloatArray = np.arange(-low, high + 1, dtype=np.float64) * h
    exponent = alpha[:, None] * _log_mixture(t / sigma - 0.5 / sigma / sigma, rate) - t * t / 2.0
    top = np.max(exponent, axis=1)
    total = np.exp(exponent - top[:, None]).sum(axis=1) * (h / math.sqrt(2.0 * math.pi))
    # every exponent is the difference of two numbers below (alpha / sigma + 10)^2
    rounding = _ROUNDING * (8.0 + (alpha / sigma + _TAIL) ** 2)
    moments: FloatArray = np.maximum(top + np.log(total), 0.0) + rounding
    return moments


@lru_cache(maxsize=1)
def _binomials() -> tuple[npt.NDArray[np.intp], FloatArray, FloatArray, FloatArray]:
    """For every integer order, one after another, l = 2..alpha: start, alpha, l, ln C(alpha, l)."""
    counts = _INTEGERS.astype(np.intp) - 1
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    alpha = np.repeat(_INTEGERS, counts)
    ell = np.arange(counts.sum()) - np.repeat(starts, counts) + 2.0
    log_choose = gammaln(alpha + 1.0) - gammaln(ell + 1.0) - gammaln(alpha - ell + 1.0)
    return starts, alpha, ell, log_choose


def _sums(renyi: Callable[[FloatArray], FloatArray], rate: float) -> FloatArray:
    """ln(1 + sum over l >= 2 of C(alpha, l) (1-q)^(alpha-l) q^l (e^((l-1) eps(l)) - 1)).

    The binomial weights sum to 1, and l = 0 and 1 contribute nothing: no term is negative.
    """
    starts, alpha, ell, log_choose = _binomials()
    whole = np.arange(2.0, _LARGEST_SUM + 1.0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        gain = (whole - 1.0) * renyi(whole)
        # ln(e^x - 1)
        log_gain = np.where(gain < 1.0, np.log(np.expm1(np.minimum(gain, 1.0))), gain)
        log_gain += np.where(gain < 1.0, 0.0, np.log1p(-np.exp(-gain)))
        log_rest, log_rate = math.log1p(-rate), math.log(rate)
        terms = log_choose + ell * log_rate + (alpha - ell) * log_rest
        terms += log_gain[ell.astype(np.intp) - 2]
        top = np.maximum.reduceat(terms, starts)
        bounded = np.isfinite(top)
        shift = np.where(bounded, top, 0.0)
        sums = np.add.reduceat(
            np.exp(terms - np.repeat(shift, _INTEGERS.astype(np.intp) - 1)), starts
        )
        size = gammaln(_INTEGERS + 1.0) - _INTEGERS * (log_rate + log_rest) + np.abs(shift)
        logs = shift + np.log(sums) + _ROUNDING * (8.0 + size)
    return np.where(bounded | (top == -math.inf), np.logaddexp(0.0, logs), math.inf)
