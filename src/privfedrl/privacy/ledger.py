"""The privacy ledger: every release is charged durably before any of its bytes leave.

Guarantee: when :meth:`Ledger.reserve` returns, the worst-case cost of the release is on disk and
the budget still holds with every earlier reservation counted; when it raises, nothing was charged.
A crash can over-charge by one release, never under-charge
(audits/proofs/charge_before_release.md).

What the ledger detects, and what it needs for it:

| attack on the file                                  | detected by                            |
|-----------------------------------------------------|----------------------------------------|
| a row edited, deleted inside, reordered, inserted   | opening or verifying, no anchor needed |
| rows appended by an honest second process           | not an attack: read and counted        |
| rewritten or replaced while a process has it open   | the next call of that process          |
| newest rows cut off (also: ``-wal`` file removed)   | ``verify(anchor=...)``                 |
| replaced by an older copy, or by a fork of it       | ``verify(anchor=...)``                 |
| rewritten as a whole, with fresh hashes             | ``verify(anchor=...)``                 |

An anchor is any earlier :attr:`Ledger.head` kept where the attacker cannot write, e.g. signed in a
statement or sent to the other parties.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from privfedrl.errors import BudgetExceeded, ConfigurationError, LedgerIntegrity, PrivacyError
from privfedrl.privacy.accountant import Spent, epsilon_of_counts, parallel
from privfedrl.privacy.events import DpEvent, event_to_dict
from privfedrl.privacy.gdp import check_delta
from privfedrl.privacy.ledger_chain import (
    Chain,
    Charge,
    Entry,
    Reservation,
    Row,
    charge_to_dict,
)
from privfedrl.privacy.ledger_store import Store
from privfedrl.privacy.units import Adjacency, Unit

__all__ = ["Charge", "Entry", "Ledger", "Reservation", "Verified"]

_Counts = Counter[DpEvent]


@dataclass(slots=True)
class _Account:
    """Running state of one unit and adversary: how often each event is charged."""

    events: _Counts = field(default_factory=Counter)
    smallest_delta: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """Result of a full check: rows (settled or reserved), head in hex, and how many of each."""

    entries: int
    head: str
    reservations: int
    settled: int


class Ledger:
    """An append-only, hash-chained account of releases in one sqlite file.

    Several processes may append to one file; threads of one process may share one object. A
    process that forks must open its own. Rows already read are not read again: a charge costs one
    durable commit plus time linear in the number of *distinct* events, however many rounds ran.
    """

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        """Use :meth:`open`."""
        self._store = store
        self._clock = clock
        self._lock = threading.RLock()
        self._chain = Chain()
        self._accounts: dict[tuple[Unit, str], _Account] = {}
        store.check_pages()
        rows = store.rows_from(0)
        if not rows:
            raise LedgerIntegrity(f"ledger {store.name} has lost all its rows")
        for row in rows:
            self._absorb(row)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        clock: Callable[[], float] = time.time,
        timeout_s: float = 10.0,
    ) -> Ledger:
        """Open or create the ledger at ``path`` (or ":memory:") and verify its whole chain.

        Args:
            read_only: never writes a row; the file must exist.
            clock: Unix time; recorded in whole seconds, no decision depends on it.
            timeout_s: how long to wait for another process that holds the write lock.
        Raises:
            LedgerIntegrity: the file is edited, truncated, damaged or not a ledger.
            StorageError: the file cannot be opened or created.
        """
        store = Store(path, read_only=read_only, timeout_s=timeout_s)
        try:
            return cls(store, clock)
        except BaseException:
            store.close()
            raise

    def close(self) -> None:
        """Release the file; further use raises LocalProtocolError."""
        with self._lock:
            self._store.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Ledger {self._store.name!r} rows={len(self._chain.entries)}>"

    def __len__(self) -> int:
        with self._lock:
            return len(self._refreshed().entries)

    @property
    def head(self) -> str:
        """Hash of the newest row, 64 hex digits; commits to every row before it."""
        with self._lock:
            return self._refreshed().head.hex()

    def entries(self) -> tuple[Entry, ...]:
        """All rows in order."""
        with self._lock:
            return tuple(self._refreshed().entries)

    def reservations(
        self, plan_digest: bytes | None = None, prefix: str = ""
    ) -> tuple[Reservation, ...]:
        """Reservations in order, of one plan and with a release_id that starts with ``prefix``."""
        with self._lock:
            held = tuple(self._refreshed().reservations.values())
        return tuple(
            one
            for one in held
            if one.charge.release_id.startswith(prefix)
            and plan_digest in (None, one.charge.plan_digest)
        )

    def reserve(self, charge: Charge) -> int:
        """Charge a release at its worst case, durably, before it happens; returns the row id.

        The budget is checked for add/remove adjacency, over all charges of the same unit and
        adversary; an unsettled reservation counts as reserved.

        Raises:
            BudgetExceeded: budget, spent so far and cost are in the message.
            PrivacyError: the release or the set of trajectories was reserved before.
            UnsupportedMechanism: the accountant has no bound for the event.
            LedgerIntegrity: the history was rewritten since this object read it.
            StorageError: locked, full or not writable.
            In every case nothing was charged.
        """
        now = self._now()
        with self._lock:
            with self._store.writing():
                row = self._refreshed().reserve(charge, now)
                self._check_budget(charge)
                self._store.insert(row)
            self._absorb(row)
        return row.id

    def settle(self, row_id: int, event: DpEvent, *, note: str = "") -> int:
        """Record what reservation ``row_id`` really released; returns the id of the new row.

        A reservation that is never settled stands as reserved.

        Raises:
            PrivacyError: unknown or settled already, or ``event`` costs more than was reserved.
            LedgerIntegrity, StorageError: as for :meth:`reserve`; the reservation stands.
        """
        now = self._now()
        with self._lock:
            with self._store.writing():
                row = self._refreshed().settle(row_id, event, note, now)
                self._store.insert(row)
            self._absorb(row)
        return row.id

    def spent(
        self,
        *,
        unit: Unit | None = None,
        adversary: str | None = None,
        delta: float | None = None,
        adjacency: Adjacency = Adjacency.ADD_REMOVE,
    ) -> Spent:
        """What one unit has lost to one adversary, unsettled reservations counted as reserved.

        Args:
            unit, adversary: needed when the ledger holds charges of several.
            delta: default the smallest delta that was charged; 0 if nothing was.
        Raises:
            PrivacyError: the ledger holds several units or adversaries and none was chosen.
        """
        with self._lock:
            self._refreshed()
            matching = [
                key
                for key in self._accounts
                if unit in (None, key[0]) and adversary in (None, key[1])
            ]
            if len(matching) > 1:
                known = "; ".join(f"unit={u.name}, adversary={a!r}" for u, a in matching)
                raise PrivacyError(f"epsilon is about one unit and one adversary, choose: {known}")
            if not matching:
                delta = 0.0 if delta is None else check_delta(delta)
                return Spent(epsilon=0.0, delta=delta, bound="no-release")
            account = self._accounts[matching[0]]
            if delta is None:
                delta = account.smallest_delta
            return _cost(matching[0][0], account.events, delta, adjacency)

    def verify(self, *, anchor: str | None = None) -> Verified:
        """Read and check everything again, from the first byte.

        Args:
            anchor: an earlier head in hex, kept elsewhere; it must occur in the chain. Which
                attacks only an anchor detects is in the module's table.
        Raises:
            LedgerIntegrity: any row, page or hash is wrong, or the anchor is not in the chain.
        """
        with self._lock:
            self._store.check_pages()
            chain, heads = Chain(), []
            for row in self._store.rows_from(0):
                chain.append(row)
                heads.append(row.hash)
            known = self._chain
            if chain.length < known.length or heads[known.length - 1] != known.head:
                raise LedgerIntegrity("the ledger's history was rewritten while it was open")
        if anchor is not None and _parse_anchor(anchor) not in heads:
            raise LedgerIntegrity(
                f"anchor {anchor} is not in the ledger: rows were cut off, or this is another, "
                "older or rewritten ledger"
            )
        settled = sum(one.realised is not None for one in chain.reservations.values())
        return Verified(
            entries=len(chain.entries),
            head=chain.head.hex(),
            reservations=len(chain.reservations),
            settled=settled,
        )

    def export(self) -> list[dict[str, Any]]:
        """All rows, JSON-ready: plain dictionaries, an infinite budget is the text "inf"."""
        return [_entry_to_dict(entry) for entry in self.entries()]

    def _now(self) -> int:
        seconds = self._clock()
        if not math.isfinite(seconds):
            raise ConfigurationError(f"clock must return finite Unix seconds, got {seconds!r}")
        return math.floor(seconds)

    def _refreshed(self) -> Chain:
        """The chain, after reading what other processes appended."""
        known = self._chain
        rows = self._store.rows_from(known.length - 1)
        if not rows or rows[0].hash != known.head:
            raise LedgerIntegrity(
                f"ledger {self._store.name} no longer contains row {known.length - 1} as it was "
                "read: rolled back, forked or rewritten"
            )
        for row in rows[1:]:
            self._absorb(row)
        return known

    def _absorb(self, row: Row) -> None:
        entry = self._chain.append(row)
        if entry is None:
            return
        held = self._chain.reservations[row.id if entry.reservation is None else entry.reservation]
        charge = held.charge
        account = self._accounts.setdefault((charge.unit, charge.adversary), _Account())
        account.smallest_delta = min(account.smallest_delta, charge.delta)
        if entry.reservation is not None:
            account.events[charge.event] -= 1
            if not account.events[charge.event]:
                del account.events[charge.event]
        account.events[entry.event] += 1

    def _check_budget(self, charge: Charge) -> None:
        before = self._accounts.get((charge.unit, charge.adversary), _Account()).events
        after = before.copy()
        after[charge.event] += 1
        total = _cost(charge.unit, after, charge.delta).epsilon
        # written so that a NaN refuses
        if total <= charge.epsilon:
            return
        spent = _cost(charge.unit, before, charge.delta).epsilon
        alone = _cost(charge.unit, Counter([charge.event]), charge.delta).epsilon
        raise BudgetExceeded(
            f"release {charge.release_id!r} would exceed the budget of one {charge.unit.value} "
            f"against {charge.adversary!r}: budget epsilon {charge.epsilon:.6g} at delta "
            f"{charge.delta:.3g}, spent {spent:.6g}, this release alone costs {alone:.6g}, "
            f"together {total:.6g}; nothing was charged"
        )


def _cost(
    unit: Unit, counts: _Counts, delta: float, adjacency: Adjacency = Adjacency.ADD_REMOVE
) -> Spent:
    """As ``accountant.compose``, for a multiset: time linear in the number of distinct events.

    A trajectory set feeds one release (the chain refuses a second), so for the trajectory unit
    every event is a group of its own and the multiplicities do not matter.
    """
    if unit is Unit.TRAJECTORY:
        return parallel(([event] for event in counts), delta, adjacency=adjacency)
    return epsilon_of_counts(counts, delta, adjacency=adjacency)


def _parse_anchor(anchor: str) -> bytes:
    try:
        raw = bytes.fromhex(anchor)
    except (TypeError, ValueError):
        raw = b""
    if len(raw) != 32:
        raise ConfigurationError("anchor must be a ledger head of 64 hex digits")
    return raw


def _entry_to_dict(entry: Entry) -> dict[str, Any]:
    common = {
        "id": entry.id,
        "kind": entry.kind,
        "unix_time": entry.unix_time,
        "hash": entry.hash,
    }
    if entry.charge is not None:
        return {**common, **charge_to_dict(entry.charge)}
    event = event_to_dict(entry.event)
    return {**common, "reservation": entry.reservation, "event": event, "note": entry.note}
