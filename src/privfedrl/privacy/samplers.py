"""Exact-table Skellam sampling: each sample is within a proven total variation of Sk(variance).

Notation: v = variance, p_k = e^-v I_|k|(v) the Skellam probabilities, N = last magnitude kept,
w_k = integer weights proportional to p_k, T_j = floor(2^128 P(|X| <= j)).

A sample is one uniform 128-bit number compared with the thresholds T_j, and one sign bit. The high
64 bits decide unless they equal the high word of a threshold (probability about N / 2^64); only
then are the low 64 bits drawn. 64 bits alone would not be enough: N 2^-64 times 2^30 coordinates
is 2^-17. Not constant time (tables sit in caches), but no rejection loop tells the magnitude.

Randomness comes from ``entropy``, a source of cryptographic bytes (``os.urandom`` by default); it
must not be the training generator, and samples are never kept or logged.
Reference: audits/proofs/table_sampler.md (bounds on N, on the weights and on the thresholds).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from privfedrl.errors import ConfigurationError

__all__ = [
    "MAX_VARIANCE",
    "Entropy",
    "SkellamSampler",
    "delta_of_sampler",
    "skellam_total_variation",
    "tail_radius",
]

Entropy = Callable[[int], bytes]
IntArray = npt.NDArray[np.int64]
WordArray = npt.NDArray[np.uint64]

_TABLE_VARIANCE = 2**30  # one table: standard deviations up to 2^15, about 500,000 thresholds
_MAX_PARTS = 64  # sums of tables beyond that: standard deviations up to 2^18
MAX_VARIANCE = _TABLE_VARIANCE * _MAX_PARTS

_TAIL_BITS = 168  # P(|X| >= N) <= 2^-168 each side: negligible against 2^-128 per threshold
_SEED_BITS = 192  # weight of the last entry; bounds the relative rounding error by N 2^-191
_WORD = 2**64
_GUIDE_BITS = 16  # first-level index: 65,536 buckets of the high word
_BLOCK = 1 << 17  # samples per pass; keeps temporaries inside the second-level cache


def _check_integer(name: str, value: int, *, low: int, high: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigurationError(f"{name} must be an integer >= {low}, got {value!r}")
    if high is not None and value > high:
        raise ConfigurationError(f"{name} must be <= {high}, got {value}")


def tail_radius(variance: int, bits: float) -> int:
    """Smallest integer x >= 1 whose Chernoff bound gives P(X >= x) <= 2^-bits, X ~ Sk(variance).

    P(X >= x) <= exp( sqrt(v^2 + x^2) - v - x asinh(x/v) ), the minimum over t of
    E[exp(t(X - x))] with E[exp(tX)] = exp(v (cosh t - 1)). Zero variance gives 1.
    """
    _check_integer("variance", variance, low=0)
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Table:
    """Thresholds of |X| split into words, and for each bucket of high words how many lie below.

    high, low: uint64 [N]; T_j = high[j] 2^64 + low[j], j = 0..N-1 (T_N = 2^128 is implied).
    start, stop: int64 [2^16]; thresholds below the bucket, and up to its end.
    """

    high: WordArray
    low: WordArray
    start: IntArray
    stop: IntArray


def _weights(variance: int, last: int) -> list[int]:
    """Integer weights w_0..w_last proportional to I_k(variance), by Miller's backward recurrence.

    I_{k-1} = I_{k+1} + (2k/v) I_k is stable downwards. The seed ratio w_{last+1}/w_last is a float
    approximation of I_{last+1}/I_last in (0, 1); its error dies out (see the proof).
    """
    ratio = variance / (last + 1 + math.hypot(last + 1, variance))
    above, here = int(ratio * 2**52) << (_SEED_BITS - 52), 1 << _SEED_BITS
    weights = [here]
    for k in range(last, 0, -1):
        above, here = here, above + 2 * k * here // variance
        weights.append(here)
    weights.reverse()
    return weights


@lru_cache(maxsize=16)
def _table(variance: int) -> _Table:
    last = tail_radius(variance, _TAIL_BITS)
    weights = _weights(variance, last)
    total = 2 * sum(weights) - weights[0]
    words = bytearray()
    cumulative = -weights[0]
    for weight in weights[:-1]:
        # P(|X| <= j) = (w_0 + 2 w_1 + ... + 2 w_j) / total
        cumulative += 2 * weight
        words += ((cumulative << 128) // total).to_bytes(16, "big")
    pairs = np.frombuffer(bytes(words), dtype=">u8").reshape(-1, 2).astype(np.uint64)
    high, low = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
    edges = np.arange(2**_GUIDE_BITS, dtype=np.uint64) << np.uint64(64 - _GUIDE_BITS)
    last_word = edges + np.uint64(2 ** (64 - _GUIDE_BITS) - 1)
    start = np.searchsorted(high, edges, side="left").astype(np.int64)
    stop = np.searchsorted(high, last_word, side="right").astype(np.int64)
    return _Table(high=high, low=low, start=start, stop=stop)


def _read(entropy: Entropy, size: int) -> bytes:
    data = entropy(size)
    if len(data) != size:
        raise ConfigurationError(f"entropy must return {size} bytes when asked, got {len(data)}")
    return data


def _magnitudes(table: _Table, words: WordArray, entropy: Entropy) -> IntArray:
    """Number of thresholds at or below each 128-bit uniform with the given high words."""
    bucket = (words >> np.uint64(64 - _GUIDE_BITS)).astype(np.intp)
    result: IntArray = table.start[bucket]
    open_ = np.flatnonzero(result != table.stop[bucket])
    if open_.size == 0:
        return result
    keys = words[open_]
    below = np.searchsorted(table.high, keys, side="left")
    result[open_] = below
    equal = np.flatnonzero(
        table.high[np.minimum(below, table.high.size - 1)] == keys,
    )
    for index in equal:  # about once in 2^64 / N samples
        first = int(below[index])
        end = int(np.searchsorted(table.high, keys[index], side="right"))
        low = np.uint64(int.from_bytes(_read(entropy, 8), "little"))
        ties = table.low[first:end]
        result[open_[index]] = first + int(np.searchsorted(ties, low, side="right"))
    return result


def _draw(table: _Table, size: int, entropy: Entropy) -> IntArray:
    words = np.frombuffer(_read(entropy, 8 * size), dtype="<u8").astype(np.uint64, copy=False)
    magnitude = _magnitudes(table, words, entropy)
    packed = np.frombuffer(_read(entropy, (size + 7) // 8), dtype=np.uint8)
    sign = np.unpackbits(packed, count=size).astype(np.int64)
    return (magnitude ^ -sign) + sign  # two's complement negation where sign is 1


def _parts(variance: int) -> list[int]:
    """Variances of independent Skellam parts whose sum is exactly Sk(variance)."""
    count = -(-variance // _TABLE_VARIANCE)
    quotient, remainder = divmod(variance, count)
    return [quotient + 1] * remainder + [quotient] * (count - remainder)


@lru_cache(maxsize=1024)
def skellam_total_variation(variance: int) -> float:
    """Proven upper bound on the total variation between one sample and Sk(variance).

    (N + 2) 2^-128 per table, summed over the parts of a large variance. Builds no table.
    """
    _check_integer("variance", variance, low=1, high=MAX_VARIANCE)
    return sum((tail_radius(part, _TAIL_BITS) + 2) * 2.0**-128 for part in _parts(variance))


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
        _check_integer("variance", variance, low=1, high=MAX_VARIANCE)
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
        _check_integer("size", size, low=0)
        out: IntArray = np.zeros(size, dtype=np.int64)
        for part in _parts(self.variance):
            table = _table(part)
            for begin in range(0, size, _BLOCK):
                end = min(begin + _BLOCK, size)
                out[begin:end] += _draw(table, end - begin, self._entropy)
        return out


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
    _check_integer("coordinates", coordinates, low=1)
    _check_integer("shares", shares, low=1)
    if not 0.0 < total_variation <= 1.0:
        raise ConfigurationError(f"total_variation must lie in (0, 1], got {total_variation!r}")
    if not epsilon >= 0.0:
        raise ConfigurationError(f"epsilon must be >= 0, got {epsilon!r}")
    if epsilon > 700.0:  # e^epsilon would overflow; TV >= 2^-127 makes the charge 1 long before
        return 1.0
    try:
        charge = (1.0 + math.exp(epsilon)) * total_variation * coordinates
        return min(1.0, charge * shares)
    except OverflowError:
        return 1.0
