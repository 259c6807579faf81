"""What the rows of a privacy ledger say, as frozen values with one canonical text each.

Guarantee: ``charge_from_dict`` and ``budget_from_dict`` invert the functions that write; a value
that could not be read back is refused when it is made, before anything is recorded.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

from privfedrl.errors import ConfigurationError, shown
from privfedrl.privacy.events import DpEvent, event_from_dict, event_to_dict, unit_of
from privfedrl.privacy.filters import Filter, FilterKind
from privfedrl.privacy.units import Unit

__all__ = [
    "MAX_TEXT",
    "Budget",
    "Charge",
    "Entry",
    "Reservation",
    "Row",
    "budget_from_dict",
    "budget_to_dict",
    "canonical",
    "charge_from_dict",
    "charge_to_dict",
    "check_event",
    "check_text",
    "entry_to_dict",
]

# identifiers are repeated in every export; the limit keeps a row below one sqlite page
MAX_TEXT = 512
_MAX_PARTICIPATIONS = 2**53
_MAX_REPLAYED = 1024  # so that a row stays readable


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One release to reserve, before any of its bytes leave.

    Attributes:
        plan_digest: 32 bytes, the digest of the pinned plan.
        release_id: names the attempt, e.g. "task/round/attempt"; used once per ledger.
        group: identity of the set of units touched, e.g. a hex batch id. A set of trajectories
            feeds at most ``max_participations`` releases, all of one plan.
        replayed: identities of further sets that the release touches, e.g. the older batches of a
            replay window; each of them is used once more by this release.
        unit: the unit of privacy; equal to the unit of ``event``.
        adversary: who sees the release, e.g. "coordinator+1".
        event: the worst case that the protocol allows.
        epsilon: budget of the plan that must hold after this charge, >= 0; inf for an unprotected
            control.
        delta: the delta of that budget, 0 < delta < 1.
        max_participations: in how many releases of this plan one person or trajectory takes part
            at most, >= 1. None: a trajectory in one, a person or an agent in all. The same in all
            charges of a plan.
    """

    plan_digest: bytes
    release_id: str
    group: str
    unit: Unit
    adversary: str
    event: DpEvent
    epsilon: float
    delta: float
    max_participations: int | None = None
    replayed: tuple[str, ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        """All sets of units that the release touches."""
        return (self.group, *self.replayed)

    @property
    def cap(self) -> int | None:
        """In how many releases of the plan a unit takes part at most; None for all of them."""
        once = self.unit is Unit.TRAJECTORY and self.max_participations is None
        return 1 if once else self.max_participations

    def __post_init__(self) -> None:
        if not isinstance(self.plan_digest, bytes) or len(self.plan_digest) != 32:
            raise ConfigurationError("plan_digest must be 32 bytes")
        for name in ("release_id", "group", "adversary"):
            check_text(name, getattr(self, name))
        _check_replayed(self.replayed, self.group)
        _check_unit(self.unit)
        check_event(self.event)
        if unit_of(self.event) is not self.unit:
            raise ConfigurationError(
                f"event must be about the unit {self.unit.value}, got {unit_of(self.event).value}"
            )
        _check_number("epsilon", self.epsilon)
        _check_number("delta", self.delta)
        # an integer above every float could be written and not be compared
        if not (0 <= self.epsilon <= sys.float_info.max or self.epsilon == math.inf):
            raise ConfigurationError(f"epsilon must be >= 0, got {shown(self.epsilon)}")
        if not 0 < self.delta < 1:
            raise ConfigurationError(f"delta must lie in (0, 1), got {shown(self.delta)}")
        _check_participations(self.max_participations, self.unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What one unit may lose to one adversary over the life of a ledger.

    Attributes:
        filter: holds epsilon and delta, and how they are kept once several plans draw on them.
    """

    unit: Unit
    adversary: str
    filter: Filter

    def __post_init__(self) -> None:
        _check_unit(self.unit)
        check_text("adversary", self.adversary)
        if not isinstance(self.filter, Filter):
            raise ConfigurationError(f"filter must be a Filter, got {type(self.filter).__name__}")

    @classmethod
    def declare(
        cls, unit: Unit, adversary: str, epsilon: float, delta: float, *, kind: FilterKind = "rdp"
    ) -> Budget:
        """A budget that admits at least some release; arguments as ``Ledger.declare_budget``.

        Raises:
            ConfigurationError: epsilon or delta is out of range, or admits no release at all.
        """
        kept = Filter.declare(kind, epsilon, delta)
        if not (kept.allowed > 0.0 and 0.0 < epsilon < math.inf):
            raise ConfigurationError(
                "epsilon must be finite and > 0, and large enough to admit any release at delta = "
                f"{delta!r}, got {shown(epsilon)}"
            )
        return cls(unit=unit, adversary=adversary, filter=kept)

    @property
    def epsilon(self) -> float:
        """The most that one unit may lose, at ``delta``."""
        return self.filter.epsilon

    @property
    def delta(self) -> float:
        """The delta at which each charge is checked."""
        return self.filter.delta


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A reserved release; ``realised`` is None while the reservation stands as reserved."""

    id: int
    charge: Charge
    realised: DpEvent | None

    @property
    def event(self) -> DpEvent:
        """The event that is charged: the realised one once settled, else the reserved one."""
        return self.charge.event if self.realised is None else self.realised


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One verified row.

    ``charge`` belongs to a reserve row, ``reservation`` to a settle row, ``budget`` to a budget
    row, whose event is no release. ``unix_time`` is what the clock said, in whole seconds; no rule
    depends on it.
    """

    id: int
    kind: str
    unix_time: int
    charge: Charge | None
    reservation: int | None
    event: DpEvent
    note: str
    hash: str
    budget: Budget | None = None


class Row(NamedTuple):
    """One stored row: its id, canonical JSON text, the id it settles (if any) and its hash."""

    id: int
    record: str
    settles: int | None
    hash: bytes


def canonical(data: object) -> str:
    """The one JSON text of ``data``: sorted keys, no blanks, no NaN or infinity."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def charge_to_dict(charge: Charge) -> dict[str, Any]:
    """A JSON-ready form of ``charge``; an infinite budget is the text "inf"."""
    return {
        "plan_digest": charge.plan_digest.hex(),
        "release_id": charge.release_id,
        "group": charge.group,
        "unit": charge.unit.value,
        "adversary": charge.adversary,
        "event": event_to_dict(charge.event),
        # JSON has no infinity
        "epsilon": "inf" if math.isinf(charge.epsilon) else charge.epsilon,
        "delta": charge.delta,
        "max_participations": charge.max_participations,
        "replayed": list(charge.replayed),
    }


def charge_from_dict(data: dict[str, Any]) -> Charge:
    """Inverse of :func:`charge_to_dict`; raises what the parts raise for anything else."""
    epsilon = data["epsilon"]
    return Charge(
        plan_digest=bytes.fromhex(data["plan_digest"]),
        release_id=data["release_id"],
        group=data["group"],
        unit=Unit(data["unit"]),
        adversary=data["adversary"],
        event=event_from_dict(data["event"]),
        epsilon=math.inf if epsilon == "inf" else epsilon,
        delta=data["delta"],
        max_participations=data["max_participations"],
        replayed=_tuple("replayed", data["replayed"]),
    )


def budget_to_dict(budget: Budget) -> dict[str, Any]:
    """A JSON-ready form of ``budget``; an infinite epsilon is the text "inf"."""
    return {
        "unit": budget.unit.value,
        "adversary": budget.adversary,
        "epsilon": "inf" if math.isinf(budget.epsilon) else budget.epsilon,
        "delta": budget.delta,
        "filter": budget.filter.kind,
        "order": budget.filter.order,
    }


def budget_from_dict(data: dict[str, Any]) -> Budget:
    """Inverse of :func:`budget_to_dict` for a declared, hence finite, budget."""
    kept = Filter(
        kind=data["filter"], epsilon=data["epsilon"], delta=data["delta"], order=data["order"]
    )
    return Budget(unit=Unit(data["unit"]), adversary=data["adversary"], filter=kept)


def entry_to_dict(entry: Entry) -> dict[str, Any]:
    """A JSON-ready form of one row, for an export."""
    common = {
        "id": entry.id,
        "kind": entry.kind,
        "unix_time": entry.unix_time,
        "hash": entry.hash,
    }
    if entry.charge is not None:
        return {**common, **charge_to_dict(entry.charge)}
    if entry.budget is not None:
        return {**common, **budget_to_dict(entry.budget)}
    event = event_to_dict(entry.event)
    return {**common, "reservation": entry.reservation, "event": event, "note": entry.note}


def check_text(name: str, value: object, *, least: int = 1) -> None:
    """Refuse what is not storable text of ``least`` to ``MAX_TEXT`` characters."""
    if not isinstance(value, str) or not least <= len(value) <= MAX_TEXT or not _encodes(value):
        raise ConfigurationError(f"{name} must be text of {least} to {MAX_TEXT} characters")


def check_event(event: DpEvent) -> None:
    """Refuse an event that could not be read back, e.g. one with huge integers."""
    try:
        if event_from_dict(json.loads(canonical(event_to_dict(event)))) != event:
            raise ValueError("it does not survive a round trip")
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"event cannot be recorded: {error}") from error


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_unit(unit: object) -> None:
    if not isinstance(unit, Unit):
        raise ConfigurationError(f"unit must be a Unit, got {shown(unit)}")


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigurationError(f"{name} must be a number, got {type(value).__name__}")


def _tuple(name: str, value: object) -> tuple[Any, ...]:
    # a text is a sequence of texts, too
    if not isinstance(value, list):
        raise ConfigurationError(f"{name} must be a list, got {type(value).__name__}")
    return tuple(value)


def _check_replayed(value: object, group: str) -> None:
    if not isinstance(value, tuple) or len(value) > _MAX_REPLAYED:
        raise ConfigurationError(
            f"replayed must be a tuple of at most {_MAX_REPLAYED} groups, got {shown(value)[:80]}"
        )
    for each in value:
        check_text("replayed", each)
    if len({group, *value}) != 1 + len(value):
        raise ConfigurationError(
            f"group and replayed must be different sets, each named once, got {group!r} and "
            f"{shown(value)[:80]}"
        )


def _check_participations(value: object, unit: Unit) -> None:
    if value is None:
        return
    if unit is Unit.AGENT:
        raise ConfigurationError(
            "max_participations is about persons and trajectories: leave it None for the unit "
            "agent, which takes part in every release"
        )
    if type(value) is not int or not 1 <= value <= _MAX_PARTICIPATIONS:
        raise ConfigurationError(f"max_participations must be an integer >= 1, got {shown(value)}")
