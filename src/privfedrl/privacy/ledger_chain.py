"""The rows of a privacy ledger and the rules that a list of rows must obey.

Guarantee: :meth:`Chain.append` accepts a row only if it continues the hash chain and the accounting
rules (a release is reserved once, a trajectory set feeds one release, a reservation is settled at
most once and never by something costlier), so a verified chain is a consistent account.

Notation: r_i is the canonical JSON text of row i, h_{-1} = 32 zero bytes and
h_i = SHA-256("privfedrl/ledger/v1" || 0x00 || h_{i-1} || r_i). The *head* is the newest h_i. Row 0
holds a random ledger identity, so two ledgers never share a head.

Nothing here touches a file, a clock or the accountant: an auditor can replay exported rows with it.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from privfedrl.errors import ConfigurationError, LedgerIntegrity, PrivacyError, PrivfedrlError
from privfedrl.privacy.events import (
    DpEvent,
    GaussianEvent,
    NoReleaseEvent,
    SkellamEvent,
    UnboundedEvent,
    event_from_dict,
    event_to_dict,
    unit_of,
)
from privfedrl.privacy.units import Unit

__all__ = [
    "Chain",
    "Charge",
    "Entry",
    "Reservation",
    "Row",
    "charge_to_dict",
    "is_no_costlier",
    "link",
]

_LABEL = b"privfedrl/ledger/v1\x00"
_ZERO = bytes(32)
_FORMAT = 1
# identifiers are repeated in every export; the limit keeps a row below one sqlite page
_MAX_TEXT = 512
_SHAPES = {
    "genesis": {"kind", "id", "format", "ledger_id"},
    "reserve": {"kind", "id", "time", "plan_digest", "release_id", "group", "unit", "adversary"}
    | {"event", "epsilon", "delta"},
    "settle": {"kind", "id", "time", "reservation", "event", "note"},
}


def is_no_costlier(realised: DpEvent, reserved: DpEvent) -> bool:
    """Whether ``realised`` provably costs at most what ``reserved`` costs, at every delta.

    | reserved  | realised may be                                             |
    |-----------|-------------------------------------------------------------|
    | anything  | no release, same unit                                       |
    | unbounded | anything, same unit                                         |
    | Gaussian  | Gaussian, same unit, noise multiplier >= the reserved one   |
    | Skellam   | Skellam, the same sensitivity, variance >= the reserved one |
    """
    if unit_of(realised) is not unit_of(reserved):
        return False
    match realised, reserved:
        case (NoReleaseEvent(), _) | (_, UnboundedEvent()):
            return True
        case GaussianEvent(noise_multiplier=now), GaussianEvent(noise_multiplier=planned):
            return now >= planned
        case SkellamEvent(), SkellamEvent():
            same = realised.sensitivity == reserved.sensitivity
            return same and realised.variance >= reserved.variance
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One release to reserve, before any of its bytes leave.

    Attributes:
        plan_digest: 32 bytes, the digest of the pinned plan.
        release_id: names the attempt, e.g. "task/round/attempt"; used once per ledger.
        group: identity of the set of units touched, e.g. a hex batch id. For the trajectory unit
            a group feeds one release, once per ledger.
        unit: the unit of privacy; equal to the unit of ``event``.
        adversary: who sees the release, e.g. "coordinator+1".
        event: the worst case that the protocol allows.
        epsilon: budget that must hold after this charge, >= 0; inf for an unprotected control.
        delta: the delta of that budget, 0 < delta < 1.
    """

    plan_digest: bytes
    release_id: str
    group: str
    unit: Unit
    adversary: str
    event: DpEvent
    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not isinstance(self.plan_digest, bytes) or len(self.plan_digest) != 32:
            raise ConfigurationError("plan_digest must be 32 bytes")
        for name in ("release_id", "group", "adversary"):
            _check_text(name, getattr(self, name))
        if not isinstance(self.unit, Unit):
            raise ConfigurationError(f"unit must be a Unit, got {self.unit!r}")
        _event_text(self.event)
        if unit_of(self.event) is not self.unit:
            raise ConfigurationError(
                f"event must be about the unit {self.unit.value}, got {unit_of(self.event).value}"
            )
        _check_number("epsilon", self.epsilon)
        _check_number("delta", self.delta)
        if not self.epsilon >= 0:
            raise ConfigurationError(f"epsilon must be >= 0, got {self.epsilon!r}")
        if not 0 < self.delta < 1:
            raise ConfigurationError(f"delta must lie in (0, 1), got {self.delta!r}")


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
    """One verified row. ``charge`` belongs to a reserve row, ``reservation`` to a settle row.

    ``unix_time`` is what the clock said, in whole seconds; no rule depends on it.
    """

    id: int
    kind: str
    unix_time: int
    charge: Charge | None
    reservation: int | None
    event: DpEvent
    note: str
    hash: str


class Row(NamedTuple):
    """One stored row: its id, canonical JSON text, the id it settles (if any) and its hash."""

    id: int
    record: str
    settles: int | None
    hash: bytes


@dataclass(slots=True, kw_only=True)
class Chain:
    """A verified prefix of a ledger and the account that it implies."""

    head: bytes = _ZERO
    length: int = 0  # rows, the genesis row included
    entries: list[Entry] = field(default_factory=list)
    reservations: dict[int, Reservation] = field(default_factory=dict)
    releases: set[str] = field(default_factory=set)
    trajectory_groups: set[str] = field(default_factory=set)

    def genesis(self, ledger_id: bytes) -> Row:
        """Row 0 of a new ledger; ``ledger_id``: 16 random bytes."""
        return self._row({"kind": "genesis", "format": _FORMAT, "ledger_id": ledger_id.hex()})

    def reserve(self, charge: Charge, unix_time: int) -> Row:
        """The next row, which reserves ``charge``.

        Raises:
            PrivacyError: the release was reserved before, or the trajectory set fed a release.
        """
        self._admit(charge)
        return self._row({"kind": "reserve", "time": unix_time, **charge_to_dict(charge)})

    def settle(self, reservation: int, event: DpEvent, note: str, unix_time: int) -> Row:
        """The next row, which settles ``reservation`` with what was really released.

        Raises:
            PrivacyError: no such reservation, settled before, or costlier than reserved.
        """
        self._admit_settlement(reservation, event)
        if not isinstance(note, str) or len(note) > _MAX_TEXT or not _is_encodable(note):
            raise ConfigurationError(f"note must be text of at most {_MAX_TEXT} characters")
        body = {"kind": "settle", "time": unix_time, "reservation": reservation, "note": note}
        return self._row({**body, "event": event_to_dict(event)}, settles=reservation)

    def append(self, row: Row) -> Entry | None:
        """Check that ``row`` continues this chain and apply it; None for the genesis row.

        Raises:
            LedgerIntegrity: it does not; the chain is unchanged.
        """
        data = self._open(row)
        try:
            entry = self._apply(row, data)
        except LedgerIntegrity:
            raise
        except (PrivfedrlError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise LedgerIntegrity(f"ledger row {row.id} breaks a rule: {error}") from error
        self.head = row.hash
        self.length += 1
        return entry

    def _row(self, body: dict[str, Any], settles: int | None = None) -> Row:
        record = _canonical({**body, "id": self.length})
        return Row(self.length, record, settles, link(self.head, record))

    def _open(self, row: Row) -> dict[str, Any]:
        """The parsed record of a row that is next in the chain and canonical."""
        if row.id != self.length:
            raise LedgerIntegrity(f"ledger row {self.length} is missing, found row {row.id}")
        if not isinstance(row.record, str) or row.hash != link(self.head, row.record):
            raise LedgerIntegrity(f"ledger row {row.id} does not continue the hash chain")
        try:
            data = json.loads(row.record)
            canonical = _canonical(data) == row.record
        except (ValueError, RecursionError) as error:
            raise LedgerIntegrity(f"ledger row {row.id} is not canonical JSON") from error
        if not (canonical and isinstance(data, dict) and data.get("id") == row.id):
            raise LedgerIntegrity(f"ledger row {row.id} is not canonical JSON of its own row")
        kind = data.get("kind")
        if not isinstance(kind, str) or set(data) != _SHAPES.get(kind):
            raise LedgerIntegrity(f"ledger row {row.id} has unknown fields or an unknown kind")
        if (kind == "genesis") != (row.id == 0) or row.settles != data.get("reservation"):
            raise LedgerIntegrity(f"ledger row {row.id} stands in the wrong place")
        return data

    def _apply(self, row: Row, data: dict[str, Any]) -> Entry | None:
        if data["kind"] == "genesis":
            if data["format"] != _FORMAT:
                raise LedgerIntegrity(
                    f"ledger format must be {_FORMAT}, found {data['format']!r}: another version "
                    "of privfedrl wrote it"
                )
            return None
        if type(data["time"]) is not int:
            raise LedgerIntegrity(f"ledger row {row.id} has a time that is not whole seconds")
        if data["kind"] == "reserve":
            return self._apply_reserve(row, data)
        return self._apply_settle(row, data)

    def _apply_reserve(self, row: Row, data: dict[str, Any]) -> Entry:
        charge = _charge_from_dict(data)
        self._admit(charge)
        self.releases.add(charge.release_id)
        if charge.unit is Unit.TRAJECTORY:
            self.trajectory_groups.add(charge.group)
        self.reservations[row.id] = Reservation(id=row.id, charge=charge, realised=None)
        return self._enter(row, data, charge.event, charge=charge)

    def _apply_settle(self, row: Row, data: dict[str, Any]) -> Entry:
        event = event_from_dict(data["event"])
        self._admit_settlement(data["reservation"], event)
        charge = self.reservations[data["reservation"]].charge
        settled = Reservation(id=data["reservation"], charge=charge, realised=event)
        self.reservations[settled.id] = settled
        return self._enter(row, data, event, charge=None)

    def _enter(
        self, row: Row, data: dict[str, Any], event: DpEvent, *, charge: Charge | None
    ) -> Entry:
        entry = Entry(
            id=row.id,
            kind=data["kind"],
            unix_time=data["time"],
            charge=charge,
            reservation=row.settles,
            event=event,
            note=str(data.get("note", "")),
            hash=row.hash.hex(),
        )
        self.entries.append(entry)
        return entry

    def _admit(self, charge: Charge) -> None:
        if charge.release_id in self.releases:
            raise PrivacyError(
                f"release_id must be new to the ledger, {charge.release_id!r} is reserved already"
            )
        if charge.unit is Unit.TRAJECTORY and charge.group in self.trajectory_groups:
            raise PrivacyError(
                f"group {charge.group!r} was reserved already: a set of trajectories feeds one "
                "release; collect fresh trajectories, or choose the unit person or agent"
            )

    def _admit_settlement(self, reservation: int, event: DpEvent) -> None:
        held = self.reservations.get(reservation)
        if held is None:
            raise PrivacyError(f"row_id must be a reservation of this ledger, got {reservation!r}")
        if held.realised is not None:
            raise PrivacyError(f"reservation {reservation} is settled already")
        _event_text(event)
        if not is_no_costlier(event, held.charge.event):
            raise PrivacyError(
                f"the realised event must cost no more than reservation {reservation}: reserved "
                f"{held.charge.event!r}, realised {event!r}"
            )


def link(previous: bytes, record: str) -> bytes:
    """h_i from h_{i-1} (32 bytes) and r_i, as in the module header."""
    return hashlib.sha256(_LABEL + previous + record.encode()).digest()


def _canonical(data: object) -> str:
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
    }


def _charge_from_dict(data: dict[str, Any]) -> Charge:
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
    )


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT or not _is_encodable(value):
        raise ConfigurationError(f"{name} must be text of 1 to {_MAX_TEXT} characters")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigurationError(f"{name} must be a number, got {type(value).__name__}")


def _event_text(event: DpEvent) -> str:
    """Canonical JSON of ``event``; refuses what could not be read back, e.g. huge integers."""
    try:
        text = _canonical(event_to_dict(event))
        if event_from_dict(json.loads(text)) != event:
            raise ValueError("it does not survive a round trip")
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"event cannot be recorded: {error}") from error
    return text
