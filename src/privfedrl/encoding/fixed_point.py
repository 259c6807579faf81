"""Units to the ring Z_m and sums back again: the ring sum is the integer sum, and cannot wrap.

Notation: m = 2^ring_bits, d = dimension, p = d padded to a power of two, R = resolution (grid steps
per clip_norm), q_u = integer vector of unit u, n = max_units, v = noise_variance, w = bits that a
coordinate has: lane_bits, or ring_bits where a coordinate has a word to itself.

    agent:       sum over its units of q_u  (+ noise share), packed into words mod m
    coordinator: unpack to [-2^(w-1), 2^(w-1)), times clip_norm / R, inverse rotation, drop the
                 padding

Removing a unit removes exactly its own q_u, so the sensitivity of the sum is the bound that
``rounding`` checks on q_u (audits/proofs/rounding_sensitivity.md).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from privfedrl.encoding.headroom import HeadroomRule, headroom
from privfedrl.encoding.lanes import MAX_LANE_BITS, MIN_LANE_BITS, Lanes, narrowest_lane
from privfedrl.encoding.rotation import Rotation
from privfedrl.encoding.rounding import (
    DEFAULT_BETA,
    Entropy,
    FloatArray,
    IntArray,
    check_rows,
    round_units,
    rounding_bound,
)
from privfedrl.errors import ConfigurationError, EncodingError
from privfedrl.privacy.units import IntegerSensitivity, Unit

__all__ = ["FixedPoint", "RingArray"]

RingArray = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedPoint:
    """How clipped units become ring vectors, and what one unit can change.

    Attributes:
        ring_bits: 32 or 64.
        dimension: true length of a unit's vector.
        resolution: grid steps per clip_norm, 1 .. 2^30.
        clip_norm: L2 bound of one unit, finite and > 0.
        max_units: most units in one released sum, over all agents together, >= 1.
        noise_variance: variance of all noise shares together per coordinate, squared grid units.
        lane_bits: None for one coordinate per word, or 2 .. 32: that many bits per coordinate and
            floor(64 / lane_bits) coordinates in a 64-bit word. Decoded sums are the same bits.
        headroom_rule: "worst-case", or "rotated": trust the public rotation to spread the sum.
    Guarantees:
        a sum of at most max_units units and that noise leaves [-2^(w-1), 2^(w-1)) in any
        coordinate with probability at most 2^-40 (checked at construction); under "rotated" only
        for rows chosen without knowledge of the rotation seed. A wrap would cost accuracy, never
        privacy.
    Raises:
        ConfigurationError: a parameter is out of range, or the ring or the lanes are too narrow.
    """

    ring_bits: int
    dimension: int
    resolution: int
    clip_norm: float
    max_units: int
    noise_variance: int
    lane_bits: int | None = None
    headroom_rule: HeadroomRule = "worst-case"

    def __post_init__(self) -> None:
        if self.ring_bits not in (32, 64):
            raise ConfigurationError(f"ring_bits must be 32 or 64, got {self.ring_bits!r}")
        for name, low in (("dimension", 1), ("max_units", 1), ("noise_variance", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ConfigurationError(f"{name} must be an integer >= {low}, got {value!r}")
        if self.headroom_rule not in get_args(HeadroomRule):
            raise ConfigurationError(
                f"headroom_rule must be one of {', '.join(map(repr, get_args(HeadroomRule)))}, "
                f"got {self.headroom_rule!r}"
            )
        if self.lane_bits is not None:
            self._check_lanes(self.lane_bits)
        if self.headroom >= 2 ** (self.coordinate_bits - 1):
            raise ConfigurationError(self._too_narrow())

    def _check_lanes(self, bits: int) -> None:
        if self.ring_bits != 64:
            raise ConfigurationError(f"lane_bits needs ring_bits = 64, got {self.ring_bits}")
        integer = isinstance(bits, int) and not isinstance(bits, bool)
        if not integer or not MIN_LANE_BITS <= bits <= MAX_LANE_BITS:
            raise ConfigurationError(
                f"lane_bits must be an integer in {MIN_LANE_BITS} .. {MAX_LANE_BITS} or absent, "
                f"got {bits!r}"
            )

    def _too_narrow(self) -> str:
        lanes = self.lane_bits is not None
        name, holder = ("lane_bits", "a lane") if lanes else ("ring_bits", "the ring")
        width, fitting = self.coordinate_bits, self.narrowest_lane_bits
        text = (
            f"{name} = {width} is too narrow: max_units = {self.max_units} units at resolution = "
            f"{self.resolution} with noise_variance = {self.noise_variance} can reach "
            f"{self.headroom} ({self.headroom_rule} headroom), {holder} holds magnitudes below "
            f"{2 ** (width - 1)}"
        )
        if not lanes:
            return text
        if fitting <= MAX_LANE_BITS:
            return f"{text}; the narrowest lane that fits has {fitting} bits"
        return f"{text}; {fitting} bits are needed, so leave lane_bits out: one coordinate per word"

    @property
    def padded(self) -> int:
        """p, the length of an encoded vector."""
        return 1 << (self.dimension - 1).bit_length()

    @property
    def bound(self) -> tuple[int, int]:
        """(l2_squared, l1) that every unit's integer vector obeys."""
        return rounding_bound(
            clip_norm=self.clip_norm,
            resolution=self.resolution,
            dimension=self.padded,
            beta=DEFAULT_BETA,
        )

    @property
    def headroom(self) -> int:
        """Largest magnitude of a coordinate of a released sum, except with probability 2^-40."""
        return headroom(
            self.headroom_rule,
            max_units=self.max_units,
            resolution=self.resolution,
            padded=self.padded,
            l2_squared=self.bound[0],
            noise_variance=self.noise_variance,
        )

    @property
    def coordinate_bits(self) -> int:
        """w, bits that one coordinate of the sum has."""
        return self.ring_bits if self.lane_bits is None else self.lane_bits

    @property
    def narrowest_lane_bits(self) -> int:
        """Smallest lane that holds the headroom; above 32 there is none."""
        return narrowest_lane(self.headroom)

    @property
    def words(self) -> int:
        """Length of a ring vector."""
        return self.padded if self.lane_bits is None else self._lanes(self.lane_bits).words

    def _lanes(self, bits: int) -> Lanes:
        return Lanes(bits=bits, length=self.padded)

    def sensitivity(self, unit: Unit) -> IntegerSensitivity:
        """How far one unit moves the integer sum, if each row given to encode_units is one unit."""
        l2_squared, l1 = self.bound
        return IntegerSensitivity(l2_squared=l2_squared, l1=l1, unit=unit)

    def encode_units(
        self, rows: npt.ArrayLike, *, rotation_seed: bytes, entropy: Entropy = os.urandom
    ) -> IntArray:
        """Rotate and round each unit by itself, then add the integer vectors.

        Args:
            rows: float [B, d], one unit per row, L2 norm <= clip_norm; B = 0 gives zeros.
            rotation_seed: 32 public bytes, the same for everyone in the round.
            entropy: cryptographic bytes for the rounding.
        Returns:
            int64 [p], without noise: it must not leave the agent as it is.
        Raises:
            EncodingError: a row is not finite or not clipped, the shape is wrong, or there are
                more than max_units rows.
        """
        array = np.asarray(rows, dtype=np.float64)
        check_rows(array, clip_norm=self.clip_norm)
        if array.shape[1] != self.dimension:
            raise EncodingError(
                f"rows must have dimension = {self.dimension} columns, got {array.shape[1]}"
            )
        if array.shape[0] > self.max_units:
            raise EncodingError(f"at most max_units = {self.max_units} rows, got {array.shape[0]}")
        rotated = Rotation(self.dimension, rotation_seed).forward(array)
        rounded = round_units(
            rotated, resolution=self.resolution, clip_norm=self.clip_norm, entropy=entropy
        )
        total: IntArray = rounded.sum(axis=0, dtype=np.int64)
        return total

    def to_ring(self, vector: IntArray) -> RingArray:
        """Residues modulo m: int64 [p], any values -> uint32 or uint64 [words].

        Addition mod m follows, also across lanes, whatever wraps (audits/proofs/lane_packing.md).
        """
        _check_ring("vector", vector, "int64", self.padded)
        if self.lane_bits is not None:
            return self._lanes(self.lane_bits).pack(vector)
        words = np.ascontiguousarray(vector).view(np.uint64)
        return words.astype(np.uint32) if self.ring_bits == 32 else words.copy()

    def decode_sum(self, total: RingArray, *, rotation_seed: bytes) -> FloatArray:
        """The real sum that a ring sum stands for.

        Args:
            total: uint32 or uint64 [words] (as ring_bits says), sum of ring vectors modulo m.
            rotation_seed: as given to encode_units.
        Returns:
            float64 [d]; without noise it differs from the sum of the units by at most
            sqrt(p) clip_norm / resolution per unit in L2, half of it in root mean square.
        """
        _check_ring("total", total, f"uint{self.ring_bits}", self.words)
        if self.lane_bits is not None:
            centred = self._lanes(self.lane_bits).unpack(total.astype(np.uint64, copy=False))
        else:
            centred = np.ascontiguousarray(total).view(f"int{self.ring_bits}")
        rotation = Rotation(self.dimension, rotation_seed)
        return rotation.inverse(centred.astype(np.float64) / self.resolution) * self.clip_norm


def _check_ring(name: str, array: IntArray | RingArray, dtype: str, length: int) -> None:
    if array.dtype != np.dtype(dtype) or array.shape != (length,):
        raise EncodingError(f"{name} must be {dtype} [{length}], got {array.dtype} {array.shape}")
