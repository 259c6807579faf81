"""Several coordinates in one 64-bit word: packing adds, so the packed sum is a function of the sum.

Notation: w = bits of a lane, L = floor(64 / w) lanes in a word, p = coordinates, W = ceil(p / L)
words. Lane l of word k holds coordinate l W + k, so a lane is one contiguous slice of the vector.

    pack(v)_k   = sum_l v_(l W + k) 2^(w l)                        mod 2^64, v_i any integer
    unpack(x)_i = (((x_k + sum_l 2^(w - 1 + w l)) >> w l) mod 2^w) - 2^(w - 1)

Guarantee: pack is a homomorphism from integer vectors to vectors over Z_{2^64}; adding packed
vectors is packing the exact sum, whatever overflows. Reducing each agent's coordinate to w bits
first would not be: the carries into the next lane would count the wraps of single agents.
The 64 - w L bits above the last lane stay unused. Proof: audits/proofs/lane_packing.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privfedrl.errors import ConfigurationError, EncodingError

__all__ = ["MAX_LANE_BITS", "MIN_LANE_BITS", "WORD_BITS", "Lanes", "narrowest_lane"]

IntArray = npt.NDArray[np.int64]
WordArray = npt.NDArray[np.uint64]

WORD_BITS = 64
MIN_LANE_BITS = 2  # a sign and one bit
MAX_LANE_BITS = 32  # wider ones leave a single lane in a word


def narrowest_lane(magnitude: int) -> int:
    """Smallest w, at least 2, with ``magnitude`` < 2^(w - 1); it may exceed MAX_LANE_BITS."""
    return max(MIN_LANE_BITS, magnitude.bit_length() + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lanes:
    """How ``length`` coordinates lie in words.

    Attributes:
        bits: w, bits of a lane, 2 .. 32.
        length: p, coordinates, >= 1.
    Raises:
        ConfigurationError: out of range.
    """

    bits: int
    length: int

    def __post_init__(self) -> None:
        ranges = (("bits", MIN_LANE_BITS, MAX_LANE_BITS), ("length", 1, 2**62))
        for name, low, high in ranges:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ConfigurationError(
                    f"{name} of lanes must be an integer in {low} .. {high}, got {value!r}"
                )

    @property
    def per_word(self) -> int:
        """L, lanes in a word."""
        return WORD_BITS // self.bits

    @property
    def words(self) -> int:
        """W, length of a packed vector."""
        return -(-self.length // self.per_word)

    def pack(self, vector: IntArray) -> WordArray:
        """Put coordinates into words: int64 [p], any values -> a new uint64 [W].

        Guarantees:
            pack(a) + pack(b) = pack(a + b) mod 2^64 for all a, b.
        Raises:
            EncodingError: another type or shape.
        """
        _check("vector", vector, np.dtype(np.int64), self.length)
        # two's complement: an int64 seen as uint64 is its residue mod 2^64
        residues = np.ascontiguousarray(vector).view(np.uint64)
        packed: WordArray = residues[: self.words].copy()
        shifted = np.empty_like(packed)
        for lane in range(1, self.per_word):
            part = residues[lane * self.words : (lane + 1) * self.words]
            room = shifted[: part.size]
            np.left_shift(part, np.uint64(lane * self.bits), out=room)
            packed[: part.size] += room
        return packed

    def unpack(self, total: WordArray) -> IntArray:
        """Read the coordinates of a sum of packed vectors: uint64 [W] -> int64 [p].

        Guarantees:
            the exact sum if and only if each of its coordinates lies in [-2^(w-1), 2^(w-1)). A
            coordinate outside comes back within that range, off by a multiple of 2^w, and shifts
            the next lane of its word by the multiple.
        Raises:
            EncodingError: another type or shape.
        """
        _check("total", total, np.dtype(np.uint64), self.words)
        half = 1 << (self.bits - 1)
        # with 2^(w-1) in every lane no lane is negative, so none borrows from the next
        offset = sum(half << (lane * self.bits) for lane in range(self.per_word))
        biased = total + np.uint64(offset)
        lanes: WordArray = np.empty(self.length, dtype=np.uint64)
        mask = np.uint64((1 << self.bits) - 1)
        for lane in range(self.per_word):
            part = lanes[lane * self.words : (lane + 1) * self.words]
            np.right_shift(biased[: part.size], np.uint64(lane * self.bits), out=part)
            part &= mask
        centred: IntArray = lanes.view(np.int64)
        centred -= half
        return centred


def _check(
    name: str,
    array: npt.NDArray[np.int64] | npt.NDArray[np.uint64],
    dtype: np.dtype[np.int64] | np.dtype[np.uint64],
    length: int,
) -> None:
    if array.dtype != dtype or array.shape != (length,):
        raise EncodingError(f"{name} must be {dtype} [{length}], got {array.dtype} {array.shape}")
