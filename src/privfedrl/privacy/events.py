"""What a release was, as frozen values with one meaning each.

A DP event states the mathematics of one release. Its meaning never changes; an accountant refuses
an event that it does not know. Model: dp_accounting's ``dp_event``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from privfedrl.errors import ConfigurationError, UnsupportedMechanism
from privfedrl.privacy.units import IntegerSensitivity, Unit

__all__ = [
    "DpEvent",
    "GaussianEvent",
    "NoReleaseEvent",
    "SkellamEvent",
    "UnboundedEvent",
    "event_from_dict",
    "event_to_dict",
    "unit_of",
]


def _check_unit(unit: object) -> None:
    if not isinstance(unit, Unit):
        raise ConfigurationError(f"unit must be a Unit, got {unit!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SkellamEvent:
    """An integer vector q(D) + Z, Z_i ~ Sk(variance) independent, was released.

    Sk(v) = Poisson(v/2) - Poisson(v/2). ``variance`` is that of the shares which the named
    adversary does not know (honest survivors only), per coordinate, in squared grid units.
    Removing a unit moves q by an integer vector within ``sensitivity``.
    """

    sensitivity: IntegerSensitivity
    variance: int

    def __post_init__(self) -> None:
        if not isinstance(self.sensitivity, IntegerSensitivity):
            raise ConfigurationError(
                f"sensitivity must be an IntegerSensitivity, got {type(self.sensitivity).__name__}"
            )
        if (
            not isinstance(self.variance, int)
            or isinstance(self.variance, bool)
            or self.variance < 1
        ):
            raise ConfigurationError(f"variance must be an integer >= 1, got {self.variance!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianEvent:
    """q(D) + N(0, (noise_multiplier * L2 sensitivity)^2 I) was released, without subsampling.

    Used as an idealised reference and for mechanisms proven to be dominated by it; the library
    itself never releases floating-point noise.
    """

    noise_multiplier: float
    unit: Unit

    def __post_init__(self) -> None:
        _check_unit(self.unit)
        value = self.noise_multiplier
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and 0.0 < value < math.inf):
            raise ConfigurationError(f"noise_multiplier must be finite and > 0, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NoReleaseEvent:
    """Nothing that depends on private data was released (an attempt proven to have stopped)."""

    unit: Unit

    def __post_init__(self) -> None:
        _check_unit(self.unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnboundedEvent:
    """A data-dependent value was released without noise: epsilon is infinite, said plainly."""

    unit: Unit

    def __post_init__(self) -> None:
        _check_unit(self.unit)


DpEvent = SkellamEvent | GaussianEvent | NoReleaseEvent | UnboundedEvent

_FIELDS = {
    "skellam": {"kind", "unit", "l2_squared", "l1", "variance"},
    "gaussian": {"kind", "unit", "noise_multiplier"},
    "no-release": {"kind", "unit"},
    "unbounded": {"kind", "unit"},
}


def unit_of(event: DpEvent) -> Unit:
    """The unit of privacy that ``event`` is about; UnsupportedMechanism if it is unknown.

    Only the exact types count: a subclass may mean something that no proof here covers.
    """
    if type(event) is SkellamEvent:
        return event.sensitivity.unit
    if type(event) in (GaussianEvent, NoReleaseEvent, UnboundedEvent):
        return event.unit  # type: ignore[union-attr]  # narrowed by the line above
    raise UnsupportedMechanism(f"unknown event {type(event).__name__}")


def event_to_dict(event: DpEvent) -> dict[str, Any]:
    """A JSON-ready form of ``event``; :func:`event_from_dict` inverts it exactly."""
    match event:
        case SkellamEvent(sensitivity=s, variance=v):
            return {
                "kind": "skellam",
                "unit": s.unit.value,
                "l2_squared": s.l2_squared,
                "l1": s.l1,
                "variance": v,
            }
        case GaussianEvent(noise_multiplier=z, unit=u):
            return {"kind": "gaussian", "unit": u.value, "noise_multiplier": z}
        case NoReleaseEvent(unit=u):
            return {"kind": "no-release", "unit": u.value}
        case UnboundedEvent(unit=u):
            return {"kind": "unbounded", "unit": u.value}
    raise UnsupportedMechanism(f"unknown event {type(event).__name__}")


def event_from_dict(data: dict[str, Any]) -> DpEvent:
    """Inverse of :func:`event_to_dict`; anything unknown, missing or extra is refused."""
    kind = data.get("kind")
    if not isinstance(kind, str) or set(data) != _FIELDS.get(kind):
        raise UnsupportedMechanism(f"unknown event of kind {kind!r} with fields {sorted(data)}")
    try:
        unit = Unit(data["unit"])
    except ValueError as error:
        raise UnsupportedMechanism(f"unknown unit {data['unit']!r} in an event") from error
    if kind == "skellam":
        bound = IntegerSensitivity(l2_squared=data["l2_squared"], l1=data["l1"], unit=unit)
        return SkellamEvent(sensitivity=bound, variance=data["variance"])
    if kind == "gaussian":
        return GaussianEvent(noise_multiplier=data["noise_multiplier"], unit=unit)
    return NoReleaseEvent(unit=unit) if kind == "no-release" else UnboundedEvent(unit=unit)
