"""The privacy ledger: every release is charged durably before any of its bytes leave.

Guarantee: when :meth:`Ledger.reserve` returns, the worst-case cost of the release is on disk and
every budget still holds with every earlier reservation counted; when it raises, nothing was
charged. A crash can over-charge by what one round reserves, never under-charge
(audits/proofs/charge_before_release.md). Which budgets, and by which rule: ``ledger_accounts``.

What the ledger detects, and what it needs for it:

| attack on the file                                  | detected by                            |
|-----------------------------------------------------|----------------------------------------|
| a row edited, deleted inside, reordered, inserted   | opening or verifying, no anchor needed |
| rows appended by an honest second process           | not an attack: read and counted        |
| rewritten or replaced while a process has it open   | the next call of that process          |
| newest rows cut off (also: ``-wal`` file removed)   | ``verify`` with anchor or checkpoint   |
| replaced by an older copy, or by a fork of it       | ``verify`` with anchor or checkpoint   |
| rewritten as a whole, with fresh hashes             | ``verify`` with anchor or checkpoint   |
| replaced by another ledger                          | ``verify`` with anchor or checkpoint   |

An anchor is any earlier :attr:`Ledger.head` kept where the attacker cannot write. A checkpoint is
the same with a signature, so it may be kept anywhere: it also says who saw that head, and when.
Neither detects what happened after it was made.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from privfedrl.errors import (
    ConfigurationError,
    LedgerIntegrity,
    LocalProtocolError,
    PrivacyError,
    shown,
)
from privfedrl.privacy.accountant import Spent
from privfedrl.privacy.events import DpEvent
from privfedrl.privacy.filters import FilterKind
from privfedrl.privacy.gdp import check_delta
from privfedrl.privacy.ledger_accounts import (
    Account,
    AccountState,
    absorb_entry,
    check_budgets,
)
from privfedrl.privacy.ledger_chain import AccountKey, Chain
from privfedrl.privacy.ledger_checkpoint import Checkpoint, check_place, parse_head
from privfedrl.privacy.ledger_odometer import OdometerRow, odometer_rows
from privfedrl.privacy.ledger_rows import (
    Budget,
    Charge,
    Entry,
    Reservation,
    Row,
    entry_to_dict,
)
from privfedrl.privacy.ledger_store import Store
from privfedrl.privacy.units import Adjacency, Unit

__all__ = [
    "Account",
    "Budget",
    "Charge",
    "Entry",
    "Ledger",
    "OdometerRow",
    "Reservation",
    "Verified",
]


# the last second that every JSON reader knows exactly
_LATEST = 2**53 - 1


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
        self._torn = False
        self._chain = Chain()
        self._accounts: dict[AccountKey, AccountState] = {}
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
        if self._store.is_foreign:
            return  # a fork may have inherited the lock shut
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
        with self._alone():
            return len(self._refreshed().entries)

    @property
    def head(self) -> str:
        """Hash of the newest row, 64 hex digits; commits to every row before it."""
        with self._alone():
            return self._refreshed().head.hex()

    def entries(self) -> tuple[Entry, ...]:
        """All rows in order."""
        with self._alone():
            return tuple(self._refreshed().entries)

    def reservations(
        self, plan_digest: bytes | None = None, prefix: str = ""
    ) -> tuple[Reservation, ...]:
        """Reservations in order, of one plan and with a release_id that starts with ``prefix``."""
        with self._alone():
            held = tuple(self._refreshed().reservations.values())
        return tuple(
            one
            for one in held
            if one.charge.release_id.startswith(prefix)
            and plan_digest in (None, one.charge.plan_digest)
        )

    def uses(self, group: str) -> int:
        """How many releases a set of trajectories fed, whatever came of them; 0 if unknown.

        Ask before anything is computed from the set: at the plan's cap :meth:`reserve` refuses it.
        """
        with self._alone():
            return self._refreshed().uses(group)

    def declare_budget(
        self,
        unit: Unit,
        adversary: str,
        epsilon: float,
        delta: float,
        *,
        kind: FilterKind = "rdp",
    ) -> int:
        """Fix what one unit may lose to one adversary over the life of this ledger.

        Must come before the first charge of the account and never changes. The same declaration
        again is the same row, so that a program may declare whenever it starts.

        Args:
            epsilon: finite and > 0; the most that one unit loses, by any number of plans.
            delta: at which each charge is checked; once several plans have charged the account,
                the budget is kept at twice this delta.
            kind: the filter that several plans must pass; ``gdp`` is tighter and admits Gaussian
                releases only.
        Returns:
            the id of the row.
        Raises:
            PrivacyError: the account holds a charge or another budget.
            ConfigurationError: epsilon or delta is out of range or admits no release at all.
            LedgerIntegrity, StorageError: as for :meth:`reserve`.
        """
        budget = Budget.declare(unit, adversary, epsilon, delta, kind=kind)
        now = self._now()
        with self._alone():
            with self._store.writing():
                known = self._refreshed().budgets.get((unit, adversary))
                if known is not None and known.budget == budget:
                    return known.id
                row = self._chain.declare(budget, now)
                self._store.insert(row)
            self._absorb(row)
        return row.id

    def reserve(self, charge: Charge) -> int:
        """Charge a release at its worst case, durably, before it happens; returns the row id.

        Budgets are about add/remove adjacency; an unsettled reservation counts as reserved. Two
        must hold: that of the charge, for all releases of its plan (for trajectories: of the
        account), and the account's lifetime budget.

        Raises:
            BudgetExceeded: budget, spent so far and cost are in the message.
            PrivacyError: the release was reserved before, a set of trajectories fed as many
                releases as the plan's cap says or one of another plan, or the cap changed.
            UnsupportedMechanism: the accountant has no bound for the event.
            LedgerIntegrity: the history was rewritten since this object read it.
            StorageError: locked, full or not writable.
            In every case nothing was charged.
        """
        now = self._now()
        with self._alone():
            with self._store.writing():
                row = self._refreshed().reserve(charge, now)
                key = (charge.unit, charge.adversary)
                self._accounts.get(key, AccountState(*key)).check(charge)
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
        with self._alone():
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

        Once several plans have charged the account this is its lifetime budget, with a bound that
        is named after the filter: no smaller figure may be stated. REPLACE_ONE is then two steps.

        Args:
            unit, adversary: needed when the ledger holds charges of several.
            delta: default the smallest delta that was charged (0 if nothing was), or that at which
                the lifetime budget is kept.
        Raises:
            PrivacyError: the ledger holds several units or adversaries and none was chosen, or
                ``delta`` is below that of a lifetime budget which must be quoted.
        """
        with self._alone():
            self._refreshed()
            matching = [
                key
                for key, state in self._accounts.items()
                if unit in (None, key[0]) and adversary in (None, key[1]) and state.plans
            ]
            if len(matching) > 1:
                known = "; ".join(f"unit={u.name}, adversary={a!r}" for u, a in matching)
                raise PrivacyError(f"epsilon is about one unit and one adversary, choose: {known}")
            if not matching:
                delta = 0.0 if delta is None else check_delta(delta)
                return Spent(epsilon=0.0, delta=delta, bound="no-release")
            return self._accounts[matching[0]].spent(delta, adjacency)

    def account(
        self,
        unit: Unit,
        adversary: str,
        *,
        delta: float | None = None,
        adjacency: Adjacency = Adjacency.ADD_REMOVE,
    ) -> Account:
        """Regime, lifetime budget and loss of one account; arguments and errors as :meth:`spent`.

        Raises:
            PrivacyError: the ledger holds no such account.
        """
        with self._alone():
            self._refreshed()
            return self._known(unit, adversary).report(delta, adjacency)

    def accounts(self, *, adjacency: Adjacency = Adjacency.ADD_REMOVE) -> tuple[Account, ...]:
        """Every account with a charge or a budget, sorted by unit and adversary."""
        with self._alone():
            self._refreshed()
            states = sorted(
                self._accounts.values(), key=lambda one: (one.unit.value, one.adversary)
            )
            return tuple(state.report(None, adjacency) for state in states)

    def odometer(
        self, unit: Unit, adversary: str, *, delta: float | None = None
    ) -> tuple[OdometerRow, ...]:
        """The running epsilon after each row of one account, for display.

        By RDP or the exact Gaussian curve at ``delta`` (default: as :attr:`Account.running`). What
        it shows is no guarantee for an account of several plans, and no reason to stop early or
        to go on: the budget decides.

        Raises:
            PrivacyError: the ledger holds no such account.
        """
        with self._alone():
            chain = self._refreshed()
            known = self._known(unit, adversary)
            at = known.default_delta() if delta is None else check_delta(delta)
            return odometer_rows(chain, (unit, adversary), at)

    def checkpoint(self, name: str, sign: Callable[[bytes], bytes]) -> Checkpoint:
        """A signed head, to be kept by somebody else.

        Args:
            name: the signer's name in the registry.
            sign: returns the 64-byte signature of a message, e.g. ``Identity.sign``.
        """
        now = self._now()
        with self._alone():
            chain = self._refreshed()
            ledger_id, entries, head = chain.ledger_id, len(chain.entries), chain.head.hex()
        return Checkpoint.make(
            ledger_id=ledger_id, entries=entries, head=head, unix_time=now, name=name, sign=sign
        )

    def verify(
        self, *, anchor: str | None = None, checkpoint: Checkpoint | None = None
    ) -> Verified:
        """Read and check everything again, from the first byte.

        Args:
            anchor: an earlier head in hex, kept elsewhere; it must occur in the chain. Which
                attacks only an anchor or a checkpoint detects is in the module's table.
            checkpoint: its head must stand where it says, in the ledger that it names. Check its
                signature before (:meth:`Checkpoint.verify`), else it is only an anchor.
        Raises:
            LedgerIntegrity: any row, page or hash is wrong, a lifetime budget is exceeded, or
                anchor or checkpoint is not in the chain.
        """
        with self._alone():
            self._store.check_pages()
            chain, heads = Chain(), []
            for row in self._store.rows_from(0):
                chain.append(row)
                heads.append(row.hash)
            known = self._chain
            if chain.length < known.length or heads[known.length - 1] != known.head:
                raise LedgerIntegrity("the ledger's history was rewritten while it was open")
        check_budgets(chain)
        if anchor is not None and parse_head(anchor) not in heads:
            raise LedgerIntegrity(
                f"anchor {anchor} is not in the ledger: rows were cut off, or this is another, "
                "older or rewritten ledger"
            )
        if checkpoint is not None:
            check_place(checkpoint, chain.ledger_id, heads)
        settled = sum(one.realised is not None for one in chain.reservations.values())
        return Verified(
            entries=len(chain.entries),
            head=chain.head.hex(),
            reservations=len(chain.reservations),
            settled=settled,
        )

    def export(self) -> list[dict[str, Any]]:
        """All rows, JSON-ready: plain dictionaries, an infinite budget is the text "inf"."""
        return [entry_to_dict(entry) for entry in self.entries()]

    def _known(self, unit: Unit, adversary: str) -> AccountState:
        found = self._accounts.get((unit, adversary))
        if found is None:
            raise PrivacyError(
                f"the ledger holds no charge and no budget of unit {unit!r} against {adversary!r}"
            )
        return found

    def _now(self) -> int:
        seconds: object = self._clock()
        # written so that a NaN is refused
        if not (isinstance(seconds, (int, float)) and -_LATEST <= seconds <= _LATEST):
            raise ConfigurationError(
                f"clock must return finite Unix seconds, got {shown(seconds)[:40]}"
            )
        return math.floor(seconds)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads out, and refuse what would hang or under-state the account."""
        self._store.check_process()  # first: a fork may have inherited the lock shut
        with self._lock:
            if self._torn:
                raise LocalProtocolError(
                    f"ledger {self._store.name}: a call was interrupted while it took over a row; "
                    "close this object and open the ledger again"
                )
            yield

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
        # an interrupt may come between any two statements: then chain and accounts are not used
        self._torn = True
        try:
            entry = self._chain.append(row)
        except LedgerIntegrity:
            self._torn = False  # the chain is unchanged
            raise
        if entry is not None:
            absorb_entry(self._accounts, self._chain, entry)
        self._torn = False
