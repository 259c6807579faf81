"""A running bill of one unit's releases: every release is added in constant time.

Guarantee: ``epsilon`` is never below the figure of the accountant's RDP (or exact Gaussian) bound
for the same releases in any order: the rounding of the running sums is bounded and added.

The schedule must have been fixed before the first release. If releases were chosen from earlier
outputs, this is a diagnostic; see ``filters`` for what holds then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from privfedrl.errors import ConfigurationError, shown
from privfedrl.privacy.events import (
    DpEvent,
    GaussianEvent,
    NoReleaseEvent,
    UnboundedEvent,
    check_one_unit,
    unit_of,
)
from privfedrl.privacy.gdp import check_delta, gaussian_epsilon
from privfedrl.privacy.rdp import ORDERS, event_rdp, rdp_to_epsilon
from privfedrl.privacy.units import Adjacency, Unit

__all__ = ["Bound", "Composition"]

FloatArray = npt.NDArray[np.float64]
Bound = Literal["no-release", "exact-gdp", "rdp", "unbounded"]


def _nothing() -> FloatArray:
    zeros = np.zeros_like(ORDERS)
    zeros.flags.writeable = False
    return zeros


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Composition:
    """The composition of some releases, as a frozen value; start from ``Composition()``.

    Attributes:
        adjacency: the relation that the bill is about.
        unit: the unit of all releases; None before the first.
        releases: how many releases were added.
        rdp: float64, the summed curve at ``rdp.ORDERS``, read-only, rounded up.
        precision: sum of 1 / noise_multiplier^2 over the unsampled Gaussian releases, rounded up.
        bound: what the epsilon of these releases rests on.
    """

    adjacency: Adjacency = Adjacency.ADD_REMOVE
    unit: Unit | None = None
    releases: int = 0
    rdp: FloatArray = field(default_factory=_nothing, repr=False)
    precision: float = 0.0
    bound: Bound = "no-release"

    def add(self, event: DpEvent, count: int = 1) -> Composition:
        """This composition and ``count`` more releases of ``event``; constant time.

        Raises:
            ConfigurationError: count is not an integer >= 0.
            UnsupportedMechanism: the event is unknown or about another unit.
        """
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= 2**53:
            raise ConfigurationError(f"count must be an integer in 0 .. 2^53, got {shown(count)}")
        one = Composition(
            adjacency=self.adjacency,
            unit=unit_of(event),
            releases=count,
            rdp=_times(event_rdp(event, adjacency=self.adjacency), count),
            precision=_precision(event, count),
            bound=_bound_of(event) if count else "no-release",
        )
        return self.merge(one)

    def merge(self, other: Composition) -> Composition:
        """Both together. Associative and commutative but for rounding, which is upwards.

        Raises:
            ConfigurationError: the two are about different adjacencies.
            UnsupportedMechanism: the two are about different units.
        """
        if self.adjacency is not other.adjacency:
            raise ConfigurationError(
                f"adjacency must be {self.adjacency.value!r}, found {other.adjacency.value!r}"
            )
        units = {unit for unit in (self.unit, other.unit) if unit is not None}
        check_one_unit(units)
        with np.errstate(over="ignore"):
            total: FloatArray = self.rdp + other.rdp
        return Composition(
            adjacency=self.adjacency,
            unit=units.pop() if units else None,
            releases=self.releases + other.releases,
            rdp=_rounded_up(total),
            precision=_up(self.precision + other.precision),
            bound=_weaker(self.bound, other.bound),
        )

    def epsilon(self, delta: float) -> float:
        """Epsilon of everything added so far: exact if all of it was unsampled Gaussian noise.

        Returns:
            >= 0, inf if something left without noise.
        Raises:
            ConfigurationError: delta is not strictly between 0 and 1.
        """
        delta = check_delta(delta)
        if self.bound == "no-release":
            return 0.0
        if self.bound == "exact-gdp":
            factor = 2.0 if self.adjacency is Adjacency.REPLACE_ONE else 1.0
            return gaussian_epsilon(factor * math.sqrt(self.precision), delta)
        return rdp_to_epsilon(self.rdp, ORDERS, delta)[0]


def _times(curve: FloatArray, count: int) -> FloatArray:
    with np.errstate(over="ignore"):
        return _rounded_up(curve * float(count)) if count else _nothing()


def _rounded_up(curve: FloatArray) -> FloatArray:
    """At least the exact sum or product that was rounded to ``curve``: one unit in the last place
    more, so that n additions err by at most n 2^-52 relative, upwards. Zero stays zero."""
    up = np.where(curve > 0.0, np.nextafter(curve, math.inf), 0.0)
    up.flags.writeable = False
    return up


def _precision(event: DpEvent, count: int) -> float:
    if not isinstance(event, GaussianEvent) or not count:
        return 0.0
    inverse = 1.0 / event.noise_multiplier
    return _up(inverse * inverse * (1.0 + 2.0**-50) * float(count))


def _up(value: float) -> float:
    return math.nextafter(value, math.inf) if value else 0.0


def _bound_of(event: DpEvent) -> Bound:
    if isinstance(event, UnboundedEvent):
        return "unbounded"
    if isinstance(event, NoReleaseEvent):
        return "no-release"
    return "exact-gdp" if isinstance(event, GaussianEvent) else "rdp"


_STRENGTH: tuple[Bound, ...] = ("no-release", "exact-gdp", "rdp", "unbounded")


def _weaker(first: Bound, second: Bound) -> Bound:
    return max(first, second, key=_STRENGTH.index)
