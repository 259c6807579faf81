"""Inversion of a table: integers from a symmetric law whose half table of weights is given.

Guarantee: if the N + 1 integer weights are within E of the law in L1 after normalisation (tail
included), a sample is within E/2 + (N + 1) 2^-129 of it in total variation, and samples are
independent, provided that the entropy source returns independent uniform bytes.

Notation: w_k = weight of k and of -k, N = last magnitude kept, T_j = floor(2^128 P(|X| <= j)).

A sample is one uniform 128-bit number compared with the thresholds T_j, and one sign bit. The high
64 bits decide unless they equal the high word of a threshold (probability about N / 2^64); only
then are the low 64 bits drawn. 64 bits alone would not be enough: N 2^-64 times 2^30 coordinates
is 2^-17. Not constant time (tables sit in caches), but no rejection loop tells the magnitude.
Reference: audits/proofs/table_sampler.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privfedrl.errors import ConfigurationError, shown

__all__ = [
    "BLOCK",
    "MAX_SIZE",
    "Entropy",
    "IntArray",
    "Table",
    "WordArray",
    "check_integer",
    "draw_sum",
    "read_entropy",
    "table_of",
]

Entropy = Callable[[int], bytes]
IntArray = npt.NDArray[np.int64]
WordArray = npt.NDArray[np.uint64]

BLOCK = 1 << 17  # samples per pass; keeps temporaries inside the second-level cache
MAX_SIZE = 1 << 28  # samples per call, 2 GiB of them: a mistyped size must not exhaust memory
_TOP = 2**128 - 1
_GUIDE_BITS = 16  # first-level index: 65,536 buckets of the high word


def check_integer(
    name: str, value: object, *, low: int, high: int | None = None, remedy: str = ""
) -> None:
    """ConfigurationError unless ``value`` is an int (no bool) in [low, high]; remedy ends it."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigurationError(f"{name} must be an integer >= {low}, got {shown(value)}")
    if high is not None and value > high:
        raise ConfigurationError(f"{name} must be <= {high}, got {shown(value)}{remedy}")


def read_entropy(entropy: Entropy, size: int) -> bytes:
    """``size`` bytes from the source; ConfigurationError if it returns anything else."""
    data = entropy(size)
    if not isinstance(data, bytes) or len(data) != size:
        found = f"{len(data)}" if isinstance(data, bytes) else type(data).__name__
        raise ConfigurationError(f"entropy must return {size} bytes when asked, got {found}")
    return data


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """Thresholds of |X| split into words, and for each bucket of high words how many lie below.

    high, low: uint64 [N]; T_j = high[j] 2^64 + low[j], j = 0..N-1 (T_N = 2^128 is implied).
    start, stop: int64 [2^16]; thresholds below the bucket, and up to its end.
    """

    high: WordArray
    low: WordArray
    start: IntArray
    stop: IntArray


def table_of(weights: Sequence[int]) -> Table:
    """The table of P(X = k) = w_|k| / (w_0 + 2 w_1 + ... + 2 w_N) for integers w_k >= 0, w_0 > 0.

    N >= 1. The cumulative sums are exact integers; only the thresholds are rounded, downwards by at
    most 2^-128 (where trailing weights are 0, down from 2^128, which no two words hold).
    """
    total = 2 * sum(weights) - weights[0]
    words = bytearray()
    cumulative = -weights[0]
    for weight in weights[:-1]:
        cumulative += 2 * weight
        words += min((cumulative << 128) // total, _TOP).to_bytes(16, "big")
    pairs = np.frombuffer(bytes(words), dtype=">u8").reshape(-1, 2).astype(np.uint64)
    high, low = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
    edges = np.arange(2**_GUIDE_BITS, dtype=np.uint64) << np.uint64(64 - _GUIDE_BITS)
    last_word = edges + np.uint64(2 ** (64 - _GUIDE_BITS) - 1)
    start = np.searchsorted(high, edges, side="left").astype(np.int64)
    stop = np.searchsorted(high, last_word, side="right").astype(np.int64)
    for array in (high, low, start, stop):  # tables are cached and shared
        array.flags.writeable = False
    return Table(high=high, low=low, start=start, stop=stop)


def _magnitudes(table: Table, words: WordArray, entropy: Entropy) -> IntArray:
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
        low = np.uint64(int.from_bytes(read_entropy(entropy, 8), "little"))
        ties = table.low[first:end]
        result[open_[index]] = first + int(np.searchsorted(ties, low, side="right"))
    return result


def _draw(table: Table, size: int, entropy: Entropy) -> IntArray:
    drawn = np.frombuffer(read_entropy(entropy, 8 * size), dtype="<u8")
    words = drawn.astype(np.uint64, copy=False)  # a copy on big-endian machines only
    magnitude = _magnitudes(table, words, entropy)
    packed = np.frombuffer(read_entropy(entropy, (size + 7) // 8), dtype=np.uint8)
    sign = np.unpackbits(packed, count=size).astype(np.int64)
    return (magnitude ^ -sign) + sign  # two's complement negation where sign is 1


def draw_sum(tables: Sequence[Table], size: int, entropy: Entropy) -> IntArray:
    """``size`` independent samples, int64 [size], each the sum of one sample of every table.

    Raises:
        ConfigurationError: size is no integer in 0 .. MAX_SIZE, or the source of bytes is faulty.
    """
    check_integer("size", size, low=0, high=MAX_SIZE, remedy="; draw in several calls")
    out: IntArray = np.zeros(size, dtype=np.int64)
    for table in tables:
        for begin in range(0, size, BLOCK):
            end = min(begin + BLOCK, size)
            out[begin:end] += _draw(table, end - begin, entropy)
    return out
