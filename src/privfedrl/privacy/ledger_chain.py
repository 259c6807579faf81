"""The hash chain of a privacy ledger and the rules that its rows must obey.

Guarantee: :meth:`Chain.append` accepts a row only if it continues the hash chain and the accounting
rules (a lifetime budget is declared once and before the first charge of its account, a release is
reserved once, a set of trajectories feeds releases of one plan and no more than that plan's cap on
participations, which never changes, a reservation is settled at most once and never by something
costlier), so a verified chain is a consistent account.

Notation: r_i is the canonical JSON text of row i, h_{-1} = 32 zero bytes and
h_i = SHA-256("privfedrl/ledger/v3" || 0x00 || h_{i-1} || r_i). The *head* is the newest h_i. Row 0
holds a random ledger identity, so two ledgers never share a head.

Nothing here touches a file or a clock or sums up a cost: an auditor can replay exported rows.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from privfedrl.errors import LedgerIntegrity, PrivacyError, PrivfedrlError, shown
from privfedrl.privacy.dominance import is_no_costlier
from privfedrl.privacy.events import DpEvent, NoReleaseEvent, event_from_dict, event_to_dict
from privfedrl.privacy.ledger_rows import (
    Budget,
    Charge,
    Entry,
    Reservation,
    Row,
    budget_from_dict,
    budget_to_dict,
    canonical,
    charge_from_dict,
    charge_to_dict,
    check_event,
    check_text,
)
from privfedrl.privacy.units import Unit

__all__ = ["AccountKey", "Chain", "Fed", "link"]

AccountKey = tuple[Unit, str]
"""Whose loss against whom: unit and adversary."""

_LABEL = b"privfedrl/ledger/v3\x00"
_ZERO = bytes(32)
_FORMAT = 3
_ID_BYTES = 16
_SHAPES = {
    "genesis": {"kind", "id", "format", "ledger_id"},
    "budget": {"kind", "id", "time", "unit", "adversary", "epsilon", "delta", "filter", "order"},
    "reserve": {"kind", "id", "time", "plan_digest", "release_id", "group", "unit", "adversary"}
    | {"event", "epsilon", "delta", "max_participations", "replayed"},
    "settle": {"kind", "id", "time", "reservation", "event", "note"},
}


class Fed(NamedTuple):
    """A set of trajectories: whose plan it belongs to, and how many releases it fed."""

    adversary: str
    plan_digest: bytes
    releases: int


@dataclass(slots=True, kw_only=True)
class Chain:
    """A verified prefix of a ledger and the account that it implies."""

    head: bytes = _ZERO
    length: int = 0  # rows, the genesis row included
    ledger_id: str = ""
    entries: list[Entry] = field(default_factory=list)
    reservations: dict[int, Reservation] = field(default_factory=dict)
    budgets: dict[AccountKey, Entry] = field(default_factory=dict)
    caps: dict[AccountKey, dict[bytes, int | None]] = field(default_factory=dict)
    releases: set[str] = field(default_factory=set)
    fed: dict[str, Fed] = field(default_factory=dict)  # sets of trajectories

    def genesis(self, ledger_id: bytes) -> Row:
        """Row 0 of a new ledger; ``ledger_id``: 16 random bytes."""
        return self._row({"kind": "genesis", "format": _FORMAT, "ledger_id": ledger_id.hex()})

    def declare(self, budget: Budget, unix_time: int) -> Row:
        """The next row, which declares ``budget``.

        Raises:
            PrivacyError: the account holds a charge or another budget already.
        """
        self._admit_budget(budget)
        return self._row({"kind": "budget", "time": unix_time, **budget_to_dict(budget)})

    def reserve(self, charge: Charge, unix_time: int) -> Row:
        """The next row, which reserves ``charge``.

        Raises:
            PrivacyError: the release was reserved before, a set of trajectories fed as many
                releases as it may or one of another plan, or the plan's cap changed.
        """
        self._admit(charge)
        return self._row({"kind": "reserve", "time": unix_time, **charge_to_dict(charge)})

    def settle(self, reservation: int, event: DpEvent, note: str, unix_time: int) -> Row:
        """The next row, which settles ``reservation`` with what was really released.

        Raises:
            PrivacyError: no such reservation, settled before, or costlier than reserved.
        """
        self._admit_settlement(reservation, event)
        check_text("note", note, least=0)
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

    def uses(self, group: str) -> int:
        """How many releases a set of trajectories fed."""
        fed = self.fed.get(group)
        return 0 if fed is None else fed.releases

    def _row(self, body: dict[str, Any], settles: int | None = None) -> Row:
        record = canonical({**body, "id": self.length})
        return Row(self.length, record, settles, link(self.head, record))

    def _open(self, row: Row) -> dict[str, Any]:
        """The parsed record of a row that is next in the chain and canonical."""
        if row.id != self.length:
            raise LedgerIntegrity(f"ledger row {self.length} is missing, found row {row.id}")
        if not isinstance(row.record, str) or row.hash != link(self.head, row.record):
            raise LedgerIntegrity(f"ledger row {row.id} does not continue the hash chain")
        try:
            data = json.loads(row.record)
            is_canonical = canonical(data) == row.record
        except (ValueError, RecursionError) as error:
            raise LedgerIntegrity(f"ledger row {row.id} is not canonical JSON") from error
        if not (is_canonical and isinstance(data, dict) and _is_int(data.get("id"), row.id)):
            raise LedgerIntegrity(f"ledger row {row.id} is not canonical JSON of its own row")
        kind = data.get("kind")
        if not isinstance(kind, str) or set(data) != _SHAPES.get(kind):
            raise LedgerIntegrity(f"ledger row {row.id} has unknown fields or an unknown kind")
        if (kind == "genesis") != (row.id == 0) or row.settles != data.get("reservation"):
            raise LedgerIntegrity(f"ledger row {row.id} stands in the wrong place")
        return data

    def _apply(self, row: Row, data: dict[str, Any]) -> Entry | None:
        if data["kind"] == "genesis":
            self._apply_genesis(data)
            return None
        if type(data["time"]) is not int:
            raise LedgerIntegrity(f"ledger row {row.id} has a time that is not whole seconds")
        apply = {
            "budget": self._apply_budget,
            "reserve": self._apply_reserve,
            "settle": self._apply_settle,
        }
        entry = apply[data["kind"]](row, data)
        self.entries.append(entry)
        return entry

    def _apply_genesis(self, data: dict[str, Any]) -> None:
        if not _is_int(data["format"], _FORMAT):
            raise LedgerIntegrity(
                f"ledger format must be {_FORMAT}, found {data['format']!r}: another version "
                "of privfedrl wrote it"
            )
        if len(bytes.fromhex(data["ledger_id"])) != _ID_BYTES:
            raise LedgerIntegrity(f"a ledger's identity must be {_ID_BYTES} bytes")
        self.ledger_id = data["ledger_id"]

    def _apply_budget(self, row: Row, data: dict[str, Any]) -> Entry:
        budget = budget_from_dict(data)
        self._admit_budget(budget)
        entry = _entry(row, data, NoReleaseEvent(unit=budget.unit), budget=budget)
        self.budgets[budget.unit, budget.adversary] = entry
        return entry

    def _apply_reserve(self, row: Row, data: dict[str, Any]) -> Entry:
        charge = charge_from_dict(data)
        self._admit(charge)
        self.releases.add(charge.release_id)
        if charge.unit is Unit.TRAJECTORY:
            for group in charge.groups:
                uses = self.uses(group) + 1
                self.fed[group] = Fed(charge.adversary, charge.plan_digest, uses)
        plans = self.caps.setdefault((charge.unit, charge.adversary), {})
        plans[charge.plan_digest] = charge.max_participations
        self.reservations[row.id] = Reservation(id=row.id, charge=charge, realised=None)
        return _entry(row, data, charge.event, charge=charge)

    def _apply_settle(self, row: Row, data: dict[str, Any]) -> Entry:
        event = event_from_dict(data["event"])
        self._admit_settlement(data["reservation"], event)
        check_text("note", data["note"], least=0)
        charge = self.reservations[data["reservation"]].charge
        settled = Reservation(id=data["reservation"], charge=charge, realised=event)
        self.reservations[settled.id] = settled
        return _entry(row, data, event)

    def _admit_budget(self, budget: Budget) -> None:
        key = (budget.unit, budget.adversary)
        about = f"the account of one {budget.unit.value} against {budget.adversary!r}"
        if key in self.budgets:
            raise PrivacyError(
                f"{about} has a lifetime budget since row {self.budgets[key].id}, and it never "
                "changes; open a new ledger for units that took part in nothing so far"
            )
        if key in self.caps:
            raise PrivacyError(
                f"{about} holds charges: a lifetime budget must be declared before the first one; "
                "open a new ledger for units that took part in nothing so far"
            )

    def _admit(self, charge: Charge) -> None:
        if charge.release_id in self.releases:
            raise PrivacyError(
                f"release_id must be new to the ledger, {charge.release_id!r} is reserved already"
            )
        plans = self.caps.get((charge.unit, charge.adversary), {})
        cap = plans.get(charge.plan_digest, charge.max_participations)
        if cap != charge.max_participations:
            raise PrivacyError(
                f"max_participations of a plan never changes: its earlier charges say {cap}, this "
                f"one says {charge.max_participations}; another cap is another plan"
            )
        if charge.unit is Unit.TRAJECTORY:
            for group in charge.groups:
                self._admit_use(group, charge)

    def _admit_use(self, group: str, charge: Charge) -> None:
        fed = self.fed.get(group)
        if fed is None:
            return
        if (fed.adversary, fed.plan_digest) != (charge.adversary, charge.plan_digest):
            raise PrivacyError(
                f"group {group!r} was reserved already, for another plan or adversary: plans do "
                "not share trajectories; collect fresh ones"
            )
        if charge.cap is None or fed.releases >= charge.cap:
            most = "one release" if charge.cap == 1 else f"{charge.cap} releases"
            raise PrivacyError(
                f"group {group!r} was reserved already: a set of trajectories of this plan feeds "
                f"{most}; collect fresh trajectories, or choose the unit person or agent"
            )

    def _admit_settlement(self, reservation: int, event: DpEvent) -> None:
        # True and 1.0 are equal to 1, and would be written otherwise
        held = self.reservations.get(reservation) if type(reservation) is int else None
        if held is None:
            raise PrivacyError(
                f"row_id must be a reservation of this ledger, got {shown(reservation)}"
            )
        if held.realised is not None:
            raise PrivacyError(f"reservation {reservation} is settled already")
        check_event(event)
        if not is_no_costlier(event, held.charge.event):
            raise PrivacyError(
                f"the realised event must cost no more than reservation {reservation}: reserved "
                f"{held.charge.event!r}, realised {event!r}"
            )


def _is_int(found: object, expected: int) -> bool:
    """Whether ``found`` is that integer and no boolean or float that equals it."""
    return type(found) is int and found == expected


def link(previous: bytes, record: str) -> bytes:
    """h_i from h_{i-1} (32 bytes) and r_i, as in the module header."""
    return hashlib.sha256(_LABEL + previous + record.encode()).digest()


def _entry(
    row: Row,
    data: dict[str, Any],
    event: DpEvent,
    *,
    charge: Charge | None = None,
    budget: Budget | None = None,
) -> Entry:
    return Entry(
        id=row.id,
        kind=data["kind"],
        unix_time=data["time"],
        charge=charge,
        reservation=row.settles,
        event=event,
        note=data.get("note", ""),
        hash=row.hash.hex(),
        budget=budget,
    )
