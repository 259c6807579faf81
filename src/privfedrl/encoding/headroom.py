"""How large a coordinate of a released sum can get: by counting, or by what the rotation does.

Notation: n = units in the sum, R = resolution (grid steps per clip norm), p = padded dimension,
Delta = integer L2 bound of a rounded unit, v = variance of all noise together.

    worst-case   n Delta + noise tail. Holds for every input.
    rotated      n R sqrt(2 ln(2^42 p) / p) + n (1 + R / 2^27) + noise tail. Holds for rows that
                 were chosen without knowledge of the rotation seed (Hoeffding over its signs).

Guarantee: under its assumption a coordinate of the sum exceeds the figure with probability at most
2^-40, all p together. Beyond it the sum wraps: that costs accuracy, never privacy.
Proof: audits/proofs/lane_packing.md.
"""

from __future__ import annotations

import math
from typing import Literal

from privfedrl.privacy.samplers import tail_radius

__all__ = ["HeadroomRule", "headroom"]

HeadroomRule = Literal["worst-case", "rotated"]

_WRAP_BITS = 40  # P(any coordinate of a released sum wraps) <= 2^-40
_GRID_BITS = 32  # the spread of a rotated coordinate is rounded up to a multiple of 2^-32
_DRIFT_BITS = 27  # leeway of a clipped row, its shrinking and float error: below R 2^-27


def headroom(
    rule: HeadroomRule,
    *,
    max_units: int,
    resolution: int,
    padded: int,
    l2_squared: int,
    noise_variance: int,
) -> int:
    """Largest magnitude of a coordinate of a released sum, except with probability 2^-40.

    Args:
        rule: "worst-case", or "rotated", which is never above it.
        max_units: n, most units in one sum. resolution: R. padded: p, a power of two.
        l2_squared: integer bound on the squared norm of a rounded unit.
        noise_variance: of all noise shares together, squared grid units; 0 for none.
    """
    log_p = padded.bit_length() - 1
    # two tails in each of p coordinates share what the noise may spend
    largest = max_units * (math.isqrt(l2_squared) + 1)
    counted = largest + _noise(noise_variance, _WRAP_BITS + 1 + log_p)
    if rule == "worst-case":
        return counted
    # signal and noise spend half of 2^-40 each
    spread = _spread(max_units, resolution, log_p, _WRAP_BITS + 1)
    return min(counted, spread + _noise(noise_variance, _WRAP_BITS + 2 + log_p))


def _noise(variance: int, bits: int) -> int:
    return tail_radius(variance, bits) if variance else 0


def _spread(max_units: int, resolution: int, log_p: int, bits: int) -> int:
    """Bound on all coordinates of a rotated sum of n rounded units, except with prob. 2^-bits."""
    # 2 p exp(-tau^2 p / (2 B^2)) = 2^-bits at B = n R; integers from here on, n may be huge
    factor = math.sqrt(2.0 * math.log(2.0) * (bits + 1 + log_p) / (1 << log_p))
    norm = max_units * resolution
    tail = (norm * math.ceil(factor * (1 << _GRID_BITS)) >> _GRID_BITS) + 1
    # rounding moves a coordinate of a unit by less than one step
    drift = max_units + (norm >> _DRIFT_BITS) + 1
    return tail + drift
