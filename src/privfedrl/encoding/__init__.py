"""Clipped units to ring vectors: public rotation, checked integer rounding, fixed point, lanes."""

from __future__ import annotations

from privfedrl.encoding.fixed_point import FixedPoint, RingArray
from privfedrl.encoding.headroom import HeadroomRule
from privfedrl.encoding.lanes import Lanes
from privfedrl.encoding.rotation import Rotation, walsh_hadamard
from privfedrl.encoding.rounding import round_units, rounding_bound

__all__ = [
    "FixedPoint",
    "HeadroomRule",
    "Lanes",
    "RingArray",
    "Rotation",
    "round_units",
    "rounding_bound",
    "walsh_hadamard",
]
