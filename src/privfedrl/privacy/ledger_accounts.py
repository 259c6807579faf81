"""The account of one unit against one adversary: what it may lose, has lost, and how we know.

Guarantee: :meth:`AccountState.check` admits a charge only if afterwards the plan's own budget and
the account's lifetime budget hold, by the rule that is sound for the account's regime:

| regime    | charges of      | rule                                     | may be stated           |
|-----------|-----------------|------------------------------------------|-------------------------|
| committed | one plan digest | cost at delta <= epsilon, by any bound   | that cost, at its delta |
| adaptive  | several         | the filter that was fixed before the     | the budget: epsilon, at |
|           |                 | first charge admits everything together  | twice its delta         |

A plan fixes its releases before the first of them, so the best bound may be picked afterwards.
Which plan comes next may depend on everything released so far: then only a filter is sound. Twice
delta: once for the runs in which the first plan remained alone, once for the others
(audits/proofs/privacy_filter.md). A trajectory is in releases of one plan only, so the regime of
trajectories is always committed, and the cost is that of the costliest plan
(audits/proofs/parallel_composition.md).

Without a declaration, epsilon and delta of the first charge are the lifetime budget of a person or
an agent. A person or trajectory that takes part in at most K releases of a plan pays for the K
costliest; K is 1 for trajectories of a plan that does not say otherwise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from privfedrl.errors import BudgetExceeded, LedgerIntegrity, UnsupportedMechanism
from privfedrl.privacy.accountant import Spent
from privfedrl.privacy.events import DpEvent, GaussianEvent, UnboundedEvent
from privfedrl.privacy.filters import Filter, FilterKind, Part
from privfedrl.privacy.gdp import check_delta
from privfedrl.privacy.ledger_chain import AccountKey, Chain
from privfedrl.privacy.ledger_costs import budget_spent, committed_cost, running_cost
from privfedrl.privacy.ledger_rows import Budget, Charge, Entry, Reservation
from privfedrl.privacy.units import Adjacency, Unit

__all__ = [
    "Account",
    "AccountState",
    "Regime",
    "absorb_entry",
    "check_budgets",
]

Regime = Literal["committed", "adaptive"]
# two processes may add the same losses in another order; no budget is kept to more digits than this
_RECHECK_SLACK = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a ledger says about one unit and one adversary.

    Attributes:
        regime: which rule applies; see the table of the module.
        budget: of the lifetime; None for trajectories without a declaration, or before any charge.
        declared_in: the row that declares it; None if it is that of the first charge.
        spent: what may be stated about all releases so far.
        running: the composed loss by RDP or the exact Gaussian curve; only a diagnostic in the
            adaptive regime, where it is no guarantee.
        plans: how many plan digests were charged.
        releases, unsettled: reservations, and those that stand as reserved.
    """

    unit: Unit
    adversary: str
    regime: Regime
    budget: Budget | None
    declared_in: int | None
    spent: Spent
    running: Spent
    plans: int
    releases: int
    unsettled: int


@dataclass(slots=True)
class _Plan:
    """How often each event of one plan is charged, and how many of them one unit takes part in."""

    cap: int | None
    events: Counter[DpEvent] = field(default_factory=Counter)

    def part(self) -> Part:
        return self.events, self.cap

    def with_event(self, event: DpEvent) -> _Plan:
        return _Plan(self.cap, self.events + Counter([event]))


@dataclass(slots=True)
class AccountState:
    """The running account: changed by absorbing verified rows, and by nothing else."""

    unit: Unit
    adversary: str
    budget: Budget | None = None
    declared_in: int | None = None
    smallest_delta: float = math.inf
    releases: int = 0
    unsettled: int = 0
    plans: dict[bytes, _Plan] = field(default_factory=dict)

    def declare(self, entry: Entry) -> None:
        """Take over the budget of a budget row."""
        self.budget, self.declared_in = entry.budget, entry.id

    def absorb(self, held: Reservation) -> None:
        """Count a reserve row, or the settlement of one (``held.realised`` is set)."""
        charge = held.charge
        if not self.plans and self.budget is None and self.unit is not Unit.TRAJECTORY:
            self.budget = _first_budget(charge)
        plan = self.plans.setdefault(charge.plan_digest, _Plan(charge.cap))
        if held.realised is None:
            self.smallest_delta = min(self.smallest_delta, charge.delta)
            self.releases += 1
            self.unsettled += 1
        else:
            self.unsettled -= 1
            plan.events[charge.event] -= 1
            if not plan.events[charge.event]:
                del plan.events[charge.event]
        plan.events[held.event] += 1

    @property
    def regime(self) -> Regime:
        """``adaptive`` as soon as a person or agent account holds charges of two plans."""
        several = len(self.plans) > 1 and self.unit is not Unit.TRAJECTORY
        return "adaptive" if several else "committed"

    def check(self, charge: Charge) -> None:
        """Raise BudgetExceeded unless ``charge`` may be added; changes nothing.

        Raises:
            UnsupportedMechanism: no bound, or not of the kind of the account's filter.
        """
        plan = self.plans.get(charge.plan_digest, _Plan(charge.cap))
        after = {**self.plans, charge.plan_digest: plan.with_event(charge.event)}
        own = after if self.unit is Unit.TRAJECTORY else {b"": after[charge.plan_digest]}
        if not _keeps(self.unit, _parts(own), charge.epsilon, charge.delta):
            before = self.plans if self.unit is Unit.TRAJECTORY else {b"": plan}
            raise BudgetExceeded(_plan_message(charge, _parts(before), _parts(own)))
        if len(after) > 1 and self.unit is not Unit.TRAJECTORY:
            self._check_adaptive(charge, after)
        elif self.budget is not None and not _keeps_budget(self.budget, _parts(after)):
            raise BudgetExceeded(self._lifetime_message(charge, _parts(after)))

    def _check_adaptive(self, charge: Charge, after: Mapping[bytes, _Plan]) -> None:
        assert self.budget is not None  # the first charge of a person or agent has set it
        kept = self.budget.filter
        if not kept.admits(_parts(after)):
            raise BudgetExceeded(self._filter_message(charge, kept, _parts(after)))
        open_end = any(isinstance(e, UnboundedEvent) for p in after.values() for e in p.events)
        if open_end and math.isfinite(charge.epsilon):
            raise BudgetExceeded(
                f"release {charge.release_id!r} promises epsilon {charge.epsilon:.6g}, but an "
                f"earlier plan released something of one {self.unit.value} to {self.adversary!r} "
                "without noise; use a new ledger and units that took part in nothing so far; "
                "nothing was charged"
            )

    def overspent(self) -> bool:
        """Whether the lifetime budget is exceeded: never, if this library wrote every row."""
        if self.budget is None:
            return False
        if self.regime == "adaptive":
            try:
                total = self.budget.filter.total(_parts(self.plans))
            except UnsupportedMechanism:
                return True  # what the filter has no number for, it never admitted
            return not total <= self.budget.filter.allowed * (1 + _RECHECK_SLACK)
        slack = self.budget.epsilon * (1 + _RECHECK_SLACK) + _RECHECK_SLACK
        return not _keeps(self.unit, _parts(self.plans), slack, self.budget.delta)

    def spent(self, delta: float | None, adjacency: Adjacency) -> Spent:
        """What may be stated; :meth:`privfedrl.privacy.ledger.Ledger.spent` has the rules."""
        if self.regime == "adaptive" and self.budget is not None:
            return budget_spent(self.budget, delta, adjacency)
        delta = self.default_delta() if delta is None else check_delta(delta)
        return committed_cost(self.unit, _parts(self.plans), delta, adjacency)

    def report(self, delta: float | None, adjacency: Adjacency) -> Account:
        """The account as a value; arguments as for :meth:`spent`."""
        at = self.default_delta() if delta is None else check_delta(delta)
        return Account(
            unit=self.unit,
            adversary=self.adversary,
            regime=self.regime,
            budget=self.budget,
            declared_in=self.declared_in,
            spent=self.spent(delta, adjacency),
            running=running_cost(self.unit, _parts(self.plans), at, adjacency),
            plans=len(self.plans),
            releases=self.releases,
            unsettled=self.unsettled,
        )

    def default_delta(self) -> float:
        """The smallest delta that was charged; before any charge, that of the budget."""
        if self.plans or self.budget is None:
            return self.smallest_delta
        return self.budget.delta

    def _where(self) -> str:
        row = self.declared_in
        return "of its first charge" if row is None else f"declared in row {row}"

    def _lifetime_message(self, charge: Charge, after: list[Part]) -> str:
        assert self.budget is not None
        before, alone, together = (
            committed_cost(self.unit, parts, self.budget.delta).epsilon
            for parts in (_parts(self.plans), _alone(charge), after)
        )
        return (
            f"release {charge.release_id!r} would exceed the lifetime budget {self._where()} of "
            f"one {self.unit.value} against {self.adversary!r}: epsilon {self.budget.epsilon:.6g} "
            f"at delta {self.budget.delta:.3g}, spent {before:.6g}, this release alone costs "
            f"{alone:.6g}, together {together:.6g}; {_WAY_OUT}"
        )

    def _filter_message(self, charge: Charge, kept: Filter, after: list[Part]) -> str:
        assert self.budget is not None
        rule = "gdp filter" if kept.order is None else f"rdp filter at order {kept.order:g}"
        before, alone, together = (
            kept.total(parts) for parts in (_parts(self.plans), _alone(charge), after)
        )
        return (
            f"release {charge.release_id!r} would exceed the lifetime budget {self._where()} of "
            f"one {self.unit.value} against {self.adversary!r}: epsilon {self.budget.epsilon:.6g} "
            f"at delta {self.budget.delta:.3g}. {len(self.plans)} plan(s) were charged before, so "
            f"the {rule} decides: it allows {kept.allowed:.6g}, used {before:.6g}, this release "
            f"alone takes {alone:.6g}, together {together:.6g}; {_WAY_OUT}"
        )


def absorb_entry(accounts: dict[AccountKey, AccountState], chain: Chain, entry: Entry) -> None:
    """Apply one entry of ``chain`` to the account that it is about."""
    key = _account_of(chain, entry)
    state = accounts.setdefault(key, AccountState(*key))
    if entry.budget is not None:
        state.declare(entry)
        return
    charge = chain.reservations[_reserved_in(entry)].charge
    realised = None if entry.reservation is None else entry.event
    state.absorb(Reservation(id=_reserved_in(entry), charge=charge, realised=realised))


def check_budgets(chain: Chain) -> None:
    """Recompute every account of a whole chain, as it stood after its last charge.

    Raises:
        LedgerIntegrity: a lifetime budget is exceeded, which this library would have refused.
    """
    last = {
        (entry.charge.unit, entry.charge.adversary): entry.id
        for entry in chain.entries
        if entry.charge is not None
    }
    accounts: dict[AccountKey, AccountState] = {}
    for entry in chain.entries:
        # later settlements cost no more, and a bound that rises a little by one proves no fault
        if entry.id <= last.get(_account_of(chain, entry), -1):
            absorb_entry(accounts, chain, entry)
    for (unit, adversary), state in accounts.items():
        if state.overspent():
            raise LedgerIntegrity(
                f"the lifetime budget of one {unit.value} against {adversary!r} is exceeded: "
                "something else than this library appended to the ledger"
            )


def _account_of(chain: Chain, entry: Entry) -> AccountKey:
    about = entry.budget or chain.reservations[_reserved_in(entry)].charge
    return about.unit, about.adversary


def _reserved_in(entry: Entry) -> int:
    """The reserve row that a reserve or settle row is about."""
    return entry.id if entry.reservation is None else entry.reservation


_WAY_OUT = (
    "a lifetime budget never changes: add noise, run fewer rounds, or declare a larger budget in a "
    "new ledger for units that took part in nothing so far; nothing was charged"
)


def _keeps(unit: Unit, parts: list[Part], epsilon: float, delta: float) -> bool:
    """Whether a committed cost keeps a budget: first by the cheap bound, then by the best one."""
    # written so that a NaN refuses
    return (
        running_cost(unit, parts, delta).epsilon <= epsilon
        or committed_cost(unit, parts, delta).epsilon <= epsilon
    )


def _keeps_budget(budget: Budget, parts: list[Part]) -> bool:
    return _keeps(budget.unit, parts, budget.epsilon, budget.delta)


def _parts(plans: Mapping[bytes, _Plan]) -> list[Part]:
    return [plan.part() for plan in plans.values()]


def _alone(charge: Charge) -> list[Part]:
    return [(Counter([charge.event]), None)]


def _first_budget(charge: Charge) -> Budget:
    """The lifetime budget that a first charge implies: fixed before anything is released."""
    kind: FilterKind = "gdp" if isinstance(charge.event, GaussianEvent) else "rdp"
    kept = Filter.declare(kind, charge.epsilon, charge.delta)
    return Budget(unit=charge.unit, adversary=charge.adversary, filter=kept)


def _plan_message(charge: Charge, before: list[Part], after: list[Part]) -> str:
    spent, alone, total = (
        committed_cost(charge.unit, parts, charge.delta).epsilon
        for parts in (before, _alone(charge), after)
    )
    return (
        f"release {charge.release_id!r} would exceed the budget of one {charge.unit.value} "
        f"against {charge.adversary!r}: budget epsilon {charge.epsilon:.6g} at delta "
        f"{charge.delta:.3g}, spent {spent:.6g}, this release alone costs {alone:.6g}, "
        f"together {total:.6g}; nothing was charged"
    )
