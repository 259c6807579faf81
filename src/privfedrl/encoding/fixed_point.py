"""Units to the ring Z_m and sums back again: the ring sum is the integer sum, and cannot wrap.

Notation: m = 2^ring_bits, d = dimension, p = d padded to a power of two, R = resolution (grid steps
per clip_norm), q_u = integer vector of unit u, n = max_units, v = noise_variance.

    agent:       sum over its units of q_u  (+ noise share)  mod m
    coordinator: centre to [-m/2, m/2), times clip_norm / R, inverse rotation, drop the padding

Removing a unit removes exactly its own q_u, so the sensitivity of the sum is the bound that
``rounding`` checks on q_u (audits/proofs/rounding_sensitivity.md).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
from privfedrl.privacy.samplers import tail_radius
from privfedrl.privacy.units import IntegerSensitivity, Unit

__all__ = ["FixedPoint", "RingArray"]

RingArray = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]

_WRAP_BITS = 40  # P(any coordinate of a released sum wraps) <= 2^-40


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
    Guarantees:
        a sum of at most max_units units and that noise leaves [-m/2, m/2) in any coordinate with
        probability at most 2^-40 (checked at construction). A wrap would cost accuracy, never
        privacy.
    Raises:
        ConfigurationError: a parameter is out of range, or the ring is too narrow.
    """

    ring_bits: int
    dimension: int
    resolution: int
    clip_norm: float
    max_units: int
    noise_variance: int

    def __post_init__(self) -> None:
        if self.ring_bits not in (32, 64):
            raise ConfigurationError(f"ring_bits must be 32 or 64, got {self.ring_bits!r}")
        for name, low in (("dimension", 1), ("max_units", 1), ("noise_variance", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ConfigurationError(f"{name} must be an integer >= {low}, got {value!r}")
        half = 2 ** (self.ring_bits - 1)
        if self.headroom >= half:
            raise ConfigurationError(
                f"ring_bits = {self.ring_bits} is too narrow: max_units = {self.max_units} units "
                f"at resolution = {self.resolution} with noise_variance = {self.noise_variance} "
                f"can reach {self.headroom}, the ring holds magnitudes below {half}"
            )

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
        signal = self.max_units * (math.isqrt(self.bound[0]) + 1)
        # two tails in each of p coordinates share 2^-40
        noise = tail_radius(self.noise_variance, _WRAP_BITS + 1 + math.log2(self.padded))
        return signal + (noise if self.noise_variance else 0)

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
        """Residues modulo m: int64 [p] -> uint32 or uint64 [p]. Addition mod m follows."""
        if vector.dtype != np.int64 or vector.shape != (self.padded,):
            raise EncodingError(
                f"vector must be int64 [{self.padded}], got {vector.dtype} {vector.shape}"
            )
        words = np.ascontiguousarray(vector).view(np.uint64)
        return words.astype(np.uint32) if self.ring_bits == 32 else words.copy()

    def decode_sum(self, total: RingArray, *, rotation_seed: bytes) -> FloatArray:
        """The real sum that a ring sum stands for.

        Args:
            total: uint32 or uint64 [p] (as ring_bits says), the sum of ring vectors modulo m.
            rotation_seed: as given to encode_units.
        Returns:
            float64 [d]; without noise it differs from the sum of the units by at most
            sqrt(p) clip_norm / resolution per unit in L2, half of it in root mean square.
        """
        expected = np.dtype(f"uint{self.ring_bits}")
        if total.dtype != expected or total.shape != (self.padded,):
            raise EncodingError(
                f"total must be {expected} [{self.padded}], got {total.dtype} {total.shape}"
            )
        centred = np.ascontiguousarray(total).view(f"int{self.ring_bits}").astype(np.float64)
        rotation = Rotation(self.dimension, rotation_seed)
        return rotation.inverse(centred / self.resolution) * self.clip_norm
