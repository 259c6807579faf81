"""Skellam and discrete Gaussian noise from exact tables, and what their inexactness costs in delta.

Guarantee: each sample is within the stated, proven total variation of its law, independently of
the others, provided that the entropy source returns independent uniform bytes.

Notation: v = variance (the parameter), N = last magnitude kept, w_k = integer weight of k.
    Sk(v)      Poisson(v/2) - Poisson(v/2);  p_k = e^-v I_|k|(v); sums of Skellams are Skellam
    N_Z(0, v)  discrete Gaussian;            p_k proportional to exp(-k^2 / (2 v))

Randomness comes from ``entropy``, a source of cryptographic bytes (``os.urandom`` by default); it
must not be the training generator, and samples are never kept or logged. How a table is inverted
is in ``table_sampler``; an independent slow sampler without any error is in ``exact_samplers``.
Reference: audits/proofs/table_sampler.md (bounds on N, on the weights and on the thresholds).
"""

from __future__ import annotations

import math
import os
from functools import lru_cache

from privfedrl.errors import ConfigurationError, shown
from privfedrl.privacy.table_sampler import (
    Entropy,
    IntArray,
    Table,
    check_integer,
    draw_sum,
    table_of,
)

__all__ = [
    "MAX_GAUSSIAN_VARIANCE",
    "MAX_VARIANCE",
    "DiscreteGaussianSampler",
    "Entropy",
    "IntArray",
    "SkellamSampler",
    "delta_of_sampler",
    "discrete_gaussian_total_variation",
    "skellam_total_variation",
    "tail_radius",
]

_TABLE_VARIANCE = 2**30  # one table: standard deviations up to 2^15, about 500,000 thresholds
_MAX_PARTS = 64  # sums of tables beyond that: standard deviations up to 2^18
MAX_VARIANCE = _TABLE_VARIANCE * _MAX_PARTS
MAX_GAUSSIAN_VARIANCE = _TABLE_VARIANCE  # a discrete Gaussian is no sum of smaller ones

_TAIL_BITS = 168  # P(|X| >= N) <= 2^-168 each side: negligible against 2^-128 per threshold
_GAUSSIAN_TAIL = 233  # N^2 >= 233 v, and 233 > 2 * 168 * ln 2 = 232.9
_WEIGHT_BITS = 192  # fixed point of the weights (Skellam: of the last one, the smallest)
_GUARD_BITS = 64  # of the exponential series, so that only its last rounding counts
_WORD = 2.0**-128
_RADIUS_VARIANCE, _RADIUS_BITS = 2**256, 2**20  # far beyond use; floats stay finite, loops short


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigurationError(f"{name} must be a number, got {type(value).__name__}")


def tail_radius(variance: int, bits: float) -> int:
    """Smallest integer x >= 1 whose Chernoff bound gives P(X >= x) <= 2^-bits, X ~ Sk(variance).

    P(X >= x) <= exp( sqrt(v^2 + x^2) - v - x asinh(x/v) ), the minimum over t of
    E[exp(t(X - x))] with E[exp(tX)] = exp(v (cosh t - 1)). Zero variance gives 1.
    """
    check_integer("variance", variance, low=0, high=_RADIUS_VARIANCE)
    _check_number("bits", bits)
    if not -_RADIUS_BITS <= bits <= _RADIUS_BITS:
        raise ConfigurationError(f"bits must lie within +-{_RADIUS_BITS}, got {shown(bits)}")
    if variance == 0:
        return 1
    target = bits * math.log(2.0) * (1.0 + 1e-9)  # leeway for rounding of the exponent
    v = float(variance)

    def enough(x: int) -> bool:
        return x * math.asinh(x / v) - x * x / (v + math.hypot(v, x)) >= target

    high = 1
    while not enough(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _gaussian_radius(variance: int) -> int:
    """Smallest x with x^2 >= 233 v: P(X >= x) <= exp(-x^2 / (2 v)) <= 2^-168, X ~ N_Z(0, v)."""
    return math.isqrt(_GAUSSIAN_TAIL * variance - 1) + 1


def _skellam_weights(variance: int, last: int) -> list[int]:
    """Integer weights w_0..w_last proportional to I_k(variance), by Miller's backward recurrence.

    I_{k-1} = I_{k+1} + (2k/v) I_k is stable downwards. The seed ratio w_{last+1}/w_last is a float
    approximation of I_{last+1}/I_last in (0, 1); its error dies out (see the proof).
    """
    ratio = variance / (last + 1 + math.hypot(last + 1, variance))
    above, here = int(ratio * 2**52) << (_WEIGHT_BITS - 52), 1 << _WEIGHT_BITS
    weights = [here]
    for k in range(last, 0, -1):
        above, here = here, above + 2 * k * here // variance
        weights.append(here)
    weights.reverse()
    return weights


def _exp_of_minus_reciprocal(divisor: int) -> int:
    """2^192 exp(-1/divisor) within 2, divisor >= 1, by the alternating series in integers."""
    term = 1 << (_WEIGHT_BITS + _GUARD_BITS)
    total, j = term, 0
    while term:
        j += 1
        term //= divisor * j
        total += term if j % 2 == 0 else -term
    return total >> _GUARD_BITS


def _gaussian_weights(variance: int, last: int) -> list[int]:
    """Weights w_0..w_last, about 2^192 exp(-k^2 / (2 variance)), by a two-term recurrence.

    w_{k+1} = w_k r_k and r_{k+1} = r_k e^(-1/v) from w_0 = 1, r_0 = e^(-1/(2v)), every product
    rounded down: w_k is off by at most 3k(k+1)/2 units of 2^-192 (see the proof).
    """
    ratio, step = _exp_of_minus_reciprocal(2 * variance), _exp_of_minus_reciprocal(variance)
    weights = [1 << _WEIGHT_BITS]
    for _ in range(last):
        weights.append(weights[-1] * ratio >> _WEIGHT_BITS)
        ratio = ratio * step >> _WEIGHT_BITS
    return weights


@lru_cache(maxsize=16)
def _skellam_table(variance: int) -> Table:
    return table_of(_skellam_weights(variance, tail_radius(variance, _TAIL_BITS)))


@lru_cache(maxsize=16)
def _gaussian_table(variance: int) -> Table:
    return table_of(_gaussian_weights(variance, _gaussian_radius(variance)))


def _parts(variance: int) -> list[int]:
    """Variances of independent Skellam parts whose sum is exactly Sk(variance)."""
    count = -(-variance // _TABLE_VARIANCE)
    quotient, remainder = divmod(variance, count)
    return [quotient + 1] * remainder + [quotient] * (count - remainder)


@lru_cache(maxsize=1024)
def _skellam_total_variation(variance: int) -> float:
    return sum((tail_radius(part, _TAIL_BITS) + 2) * _WORD for part in _parts(variance))


def skellam_total_variation(variance: int) -> float:
    """Proven upper bound on the total variation between one sample and Sk(variance).

    (N + 2) 2^-128 per table, summed over the parts of a large variance. Builds no table.
    """
    check_integer("variance", variance, low=1, high=MAX_VARIANCE)
    return _skellam_total_variation(variance)


def _check_gaussian_variance(variance: int) -> None:
    check_integer(
        "variance",
        variance,
        low=1,
        high=MAX_GAUSSIAN_VARIANCE,
        remedy="; a discrete Gaussian is not a sum of narrower ones: use a coarser resolution",
    )


def discrete_gaussian_total_variation(variance: int) -> float:
    """Proven upper bound on the total variation between one sample and N_Z(0, variance).

    (N + 2) 2^-128. Builds no table.
    """
    _check_gaussian_variance(variance)
    return (_gaussian_radius(variance) + 2) * _WORD


class SkellamSampler:
    """Source of independent Sk(variance) integers, Sk(v) = Poisson(v/2) - Poisson(v/2).

    Args:
        variance: integer, 1 .. MAX_VARIANCE (standard deviation up to 2^18). Above 2^30 a sample is
            the sum of up to 64 independent Skellams, which is exact and that much slower.
        entropy: returns that many cryptographically random bytes.
    Guarantees:
        each sample is within ``total_variation`` of Sk(variance), independently of the others.
    Raises:
        ConfigurationError: variance out of range, or entropy returns the wrong number of bytes.
    """

    __slots__ = ("_entropy", "variance")

    def __init__(self, variance: int, *, entropy: Entropy = os.urandom) -> None:
        check_integer("variance", variance, low=1, high=MAX_VARIANCE)
        self.variance = variance
        self._entropy = entropy

    def __repr__(self) -> str:
        return f"SkellamSampler(variance={self.variance})"

    @property
    def total_variation(self) -> float:
        """Upper bound on the total variation per sample; see :func:`skellam_total_variation`."""
        return skellam_total_variation(self.variance)

    def sample(self, size: int) -> IntArray:
        """``size`` independent samples, int64 [size]."""
        tables = [_skellam_table(part) for part in _parts(self.variance)]
        return draw_sum(tables, size, self._entropy)


class DiscreteGaussianSampler:
    """Source of independent N_Z(0, variance) integers, P(k) proportional to exp(-k^2 / (2 v)).

    Args:
        variance: the parameter v, an integer, 1 .. MAX_GAUSSIAN_VARIANCE (standard deviation up to
            2^15). The variance of the law itself is at most v, and above v (1 - 3e-7).
        entropy: returns that many cryptographically random bytes.
    Guarantees:
        each sample is within ``total_variation`` of N_Z(0, variance), independently of the others.
    Raises:
        ConfigurationError: variance out of range, or entropy returns the wrong number of bytes.
    """

    __slots__ = ("_entropy", "variance")

    def __init__(self, variance: int, *, entropy: Entropy = os.urandom) -> None:
        _check_gaussian_variance(variance)
        self.variance = variance
        self._entropy = entropy

    def __repr__(self) -> str:
        return f"DiscreteGaussianSampler(variance={self.variance})"

    @property
    def total_variation(self) -> float:
        """Bound on the total variation per sample; :func:`discrete_gaussian_total_variation`."""
        return discrete_gaussian_total_variation(self.variance)

    def sample(self, size: int) -> IntArray:
        """``size`` independent samples, int64 [size]."""
        return draw_sum([_gaussian_table(self.variance)], size, self._entropy)


def delta_of_sampler(
    total_variation: float, *, coordinates: int, epsilon: float, shares: int
) -> float:
    """The delta to charge because samples are only within a total variation of their law.

    (1 + e^epsilon) TV coordinates shares, at most 1: replacing ``shares`` vectors of
    ``coordinates`` table samples by ideal ones moves each of the two neighbouring distributions by
    at most TV coordinates shares.

    Args:
        total_variation: of one sample, e.g. :func:`skellam_total_variation`; > 0.
        coordinates: length of the released vector, >= 1.
        epsilon: >= 0, the epsilon of the ideal mechanism.
        shares: shares that the guarantee relies on, times the releases, >= 1.
    """
    check_integer("coordinates", coordinates, low=1)
    check_integer("shares", shares, low=1)
    _check_number("total_variation", total_variation)
    _check_number("epsilon", epsilon)
    if not 0.0 < total_variation <= 1.0:
        raise ConfigurationError(
            f"total_variation must lie in (0, 1], got {shown(total_variation)}"
        )
    if not epsilon >= 0.0:
        raise ConfigurationError(f"epsilon must be >= 0, got {shown(epsilon)}")
    if epsilon > 700.0:  # e^epsilon would overflow; TV >= 2^-127 makes the charge 1 long before
        return 1.0
    try:
        charge = (1.0 + math.exp(epsilon)) * total_variation * coordinates
        return min(1.0, charge * shares)
    except OverflowError:
        return 1.0
