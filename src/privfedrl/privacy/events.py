"""What a release was, as frozen values with one meaning each.

A DP event states the mathematics of one release. Its meaning never changes; an accountant refuses
an event that it does not know. Model: dp_accounting's ``dp_event``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from privfedrl.errors import ConfigurationError, UnsupportedMechanism, shown
from privfedrl.privacy.units import IntegerSensitivity, Unit

__all__ = [
    "DiscreteGaussianEvent",
    "DpEvent",
    "GaussianEvent",
    "NoReleaseEvent",
    "PoissonSampledEvent",
    "SkellamEvent",
    "UnboundedEvent",
    "check_one_unit",
    "event_from_dict",
    "event_to_dict",
    "unit_of",
]


# below a standard deviation of 2 the sum of discrete Gaussians is too far from one (tau > 1e-16)
MIN_SHARE_VARIANCE = 4
# what a record can hold; no float and no grid comes near it
_LARGEST = 2**4096


def _check_unit(unit: object) -> None:
    if not isinstance(unit, Unit):
        raise ConfigurationError(f"unit must be a Unit, got {shown(unit)}")


def _check_sensitivity(value: object) -> None:
    if not isinstance(value, IntegerSensitivity):
        raise ConfigurationError(
            f"sensitivity must be an IntegerSensitivity, got {type(value).__name__}"
        )
    _check_count("l2_squared", value.l2_squared)


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{name} must be an integer >= 1, got {shown(value)}")
    if value > _LARGEST:
        raise ConfigurationError(f"{name} must be <= 2^4096, got {shown(value)}")


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
        _check_sensitivity(self.sensitivity)
        _check_count("variance", self.variance)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscreteGaussianEvent:
    """An integer vector q(D) + Z_1 + .. + Z_shares was released, Z_i ~ N_Z(0, variance) iid.

    N_Z(0, v) has P(k) proportional to exp(-k^2 / (2 v)). ``variance`` is the parameter v of one
    share per coordinate, in squared grid units; only shares that the named adversary does not know
    count. The sum of several is not quite a discrete Gaussian, and by how much it may differ grows
    with the number of ``coordinates``; one share (central noise) is exact.
    """

    sensitivity: IntegerSensitivity
    variance: int
    shares: int
    coordinates: int

    def __post_init__(self) -> None:
        _check_sensitivity(self.sensitivity)
        for name in ("variance", "shares", "coordinates"):
            _check_count(name, getattr(self, name))
        if self.shares > 1 and self.variance < MIN_SHARE_VARIANCE:
            raise ConfigurationError(
                f"variance must be >= {MIN_SHARE_VARIANCE} where several discrete Gaussian shares "
                f"are added, got {self.variance}: the sum of narrower ones is no discrete Gaussian"
            )


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
        # integers beyond every float are refused too
        if not (number and 0.0 < value <= sys.float_info.max):
            raise ConfigurationError(f"noise_multiplier must be finite and > 0, got {shown(value)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoissonSampledEvent:
    """``event`` on a secret sample that every unit is in with probability ``sampling_rate``.

    Each unit is drawn by itself, the draw is unknown to the adversary, and nothing public (no
    divisor, no size) depends on it. Only a single release can be sampled, never a composition.
    """

    event: GaussianEvent | SkellamEvent | DiscreteGaussianEvent
    sampling_rate: float

    def __post_init__(self) -> None:
        if type(self.event) not in (GaussianEvent, SkellamEvent, DiscreteGaussianEvent):
            raise ConfigurationError(
                f"event must be one release with noise, got {type(self.event).__name__}"
            )
        rate = self.sampling_rate
        number = isinstance(rate, (int, float)) and not isinstance(rate, bool)
        if not (number and 0.0 < rate <= 1.0):
            raise ConfigurationError(f"sampling_rate must lie in (0, 1], got {shown(rate)}")


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


DpEvent = (
    SkellamEvent
    | DiscreteGaussianEvent
    | GaussianEvent
    | PoissonSampledEvent
    | NoReleaseEvent
    | UnboundedEvent
)

_BOUND = {"kind", "unit", "l2_squared", "l1"}
_FIELDS = {
    "skellam": {*_BOUND, "variance"},
    "discrete-gaussian": {*_BOUND, "variance", "shares", "coordinates"},
    "gaussian": {"kind", "unit", "noise_multiplier"},
    "poisson-sampled": {"kind", "unit", "sampling_rate", "event"},
    "no-release": {"kind", "unit"},
    "unbounded": {"kind", "unit"},
}


def unit_of(event: DpEvent) -> Unit:
    """The unit of privacy that ``event`` is about; UnsupportedMechanism if it is unknown.

    Only the exact types count: a subclass may mean something that no proof here covers.
    """
    found: Unit | None = _unit(event) if type(event) in _KINDS else None
    if found is None:
        raise UnsupportedMechanism(f"unknown event {type(event).__name__}")
    return found


def _unit(event: DpEvent) -> Unit:
    match event:
        case SkellamEvent(sensitivity=bound) | DiscreteGaussianEvent(sensitivity=bound):
            return bound.unit
        case PoissonSampledEvent(event=inner):
            return _unit(inner)
        case GaussianEvent(unit=unit) | NoReleaseEvent(unit=unit) | UnboundedEvent(unit=unit):
            return unit


_KINDS = {
    SkellamEvent: "skellam",
    DiscreteGaussianEvent: "discrete-gaussian",
    GaussianEvent: "gaussian",
    PoissonSampledEvent: "poisson-sampled",
    NoReleaseEvent: "no-release",
    UnboundedEvent: "unbounded",
}


def event_to_dict(event: DpEvent) -> dict[str, Any]:
    """A JSON-ready form of ``event``; :func:`event_from_dict` inverts it exactly."""
    common = {"unit": unit_of(event).value, "kind": _KINDS[type(event)]}
    match event:
        case SkellamEvent(sensitivity=s, variance=v):
            return {**common, "l2_squared": s.l2_squared, "l1": s.l1, "variance": v}
        case DiscreteGaussianEvent(sensitivity=s, variance=v, shares=n, coordinates=d):
            bound = {"l2_squared": s.l2_squared, "l1": s.l1}
            return {**common, **bound, "variance": v, "shares": n, "coordinates": d}
        case GaussianEvent(noise_multiplier=z):
            return {**common, "noise_multiplier": z}
        case PoissonSampledEvent(event=inner, sampling_rate=q):
            return {**common, "sampling_rate": q, "event": event_to_dict(inner)}
        case NoReleaseEvent() | UnboundedEvent():
            return common


def event_from_dict(data: dict[str, Any]) -> DpEvent:
    """Inverse of :func:`event_to_dict`; anything unknown, missing or extra is refused."""
    kind = data.get("kind")
    if not isinstance(kind, str) or set(data) != _FIELDS.get(kind):
        raise UnsupportedMechanism(f"unknown event of kind {kind!r} with fields {sorted(data)}")
    try:
        unit = Unit(data["unit"])
    except ValueError as error:
        raise UnsupportedMechanism(f"unknown unit {data['unit']!r} in an event") from error
    if kind == "poisson-sampled":
        return _sampled_from_dict(data, unit)
    if kind == "gaussian":
        return GaussianEvent(noise_multiplier=data["noise_multiplier"], unit=unit)
    if kind in ("no-release", "unbounded"):
        return NoReleaseEvent(unit=unit) if kind == "no-release" else UnboundedEvent(unit=unit)
    bound = IntegerSensitivity(l2_squared=data["l2_squared"], l1=data["l1"], unit=unit)
    if kind == "skellam":
        return SkellamEvent(sensitivity=bound, variance=data["variance"])
    return DiscreteGaussianEvent(
        sensitivity=bound,
        variance=data["variance"],
        shares=data["shares"],
        coordinates=data["coordinates"],
    )


def _sampled_from_dict(data: dict[str, Any], unit: Unit) -> PoissonSampledEvent:
    inner = data["event"]
    # one level only: a sample of a sample has no meaning here, and nesting must not recurse
    if not isinstance(inner, dict) or inner.get("kind") == "poisson-sampled":
        raise UnsupportedMechanism("a sampled event must hold one release")
    event = event_from_dict(inner)
    if not isinstance(event, GaussianEvent | SkellamEvent | DiscreteGaussianEvent):
        raise UnsupportedMechanism("a sampled event must hold one release with noise")
    if unit_of(event) is not unit:
        raise UnsupportedMechanism("a sampled event and what it samples must name one unit")
    return PoissonSampledEvent(event=event, sampling_rate=data["sampling_rate"])


def check_one_unit(units: set[Unit]) -> None:
    """UnsupportedMechanism if costs of several units of privacy would be added."""
    if len(units) > 1:
        names = ", ".join(sorted(unit.value for unit in units))
        raise UnsupportedMechanism(f"events must share one unit of privacy, found {names}")
