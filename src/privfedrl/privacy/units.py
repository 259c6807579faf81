"""The unit of privacy, adjacency and sensitivity, as types.

Guarantee: no noise can be sized and no release can be charged from a loose float; a mechanism
takes an :class:`IntegerSensitivity`, which only the code that clips and rounds can state.

There is no transition-level unit: T correlated steps of one trajectory would hide a T-fold larger
loss behind a small epsilon.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from privfedrl.errors import ConfigurationError, shown

__all__ = ["Adjacency", "IntegerSensitivity", "Unit"]


class Unit(Enum):
    """Whose presence or absence the guarantee hides.

    TRAJECTORY: one trajectory. Fresh, disjoint trajectories compose in parallel over rounds.
    PERSON: all trajectories with one subject id. Composes over that person's participations.
    AGENT: everything an agent does in a round. Composes over that agent's participations.
    """

    TRAJECTORY = "trajectory"
    PERSON = "person"
    AGENT = "agent"


class Adjacency(Enum):
    """The neighbouring relation: a unit is absent (contributes zero), or is replaced by another."""

    ADD_REMOVE = "add-remove"
    REPLACE_ONE = "replace-one"


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerSensitivity:
    """How far one unit can move the integer sum, for add/remove adjacency.

    Attributes:
        l2_squared: every unit's integer vector k has sum k_i^2 <= l2_squared (exact integer).
        l1: every unit's integer vector has sum |k_i| <= l1 (exact integer).
        unit: the unit of privacy that the bound is about.
    Reference: audits/proofs/rounding_sensitivity.md.
    """

    l2_squared: int
    l1: int
    unit: Unit

    def __post_init__(self) -> None:
        for name in ("l2_squared", "l1"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigurationError(f"{name} must be an integer >= 1, got {shown(value)}")
        if not isinstance(self.unit, Unit):
            raise ConfigurationError(f"unit must be a Unit, got {self.unit!r}")
        # |k| <= k^2 for integers, so an L1 bound above the squared L2 bound is never needed
        if self.l1 > self.l2_squared:
            raise ConfigurationError(
                f"l1 must be <= l2_squared = {shown(self.l2_squared)} for integer vectors, "
                f"got {shown(self.l1)}"
            )

    def for_adjacency(self, adjacency: Adjacency) -> IntegerSensitivity:
        """The bound under ``adjacency``: replacing a unit moves the sum by twice as much."""
        if adjacency is Adjacency.ADD_REMOVE:
            return self
        return IntegerSensitivity(l2_squared=4 * self.l2_squared, l1=2 * self.l1, unit=self.unit)
