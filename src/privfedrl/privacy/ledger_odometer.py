"""The running epsilon of one account after each of its rows, for display.

Guarantee: every figure is that of ``ledger_costs.running_cost`` for the releases up to the row, to
1e-9 relative; the time per row does not depend on how many rows there are.

It is no guarantee about the account, see ``ledger_accounts``.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from privfedrl.privacy.events import DpEvent, GaussianEvent, NoReleaseEvent, UnboundedEvent
from privfedrl.privacy.filters import sum_of_costliest
from privfedrl.privacy.gdp import gaussian_epsilon
from privfedrl.privacy.ledger_chain import AccountKey, Chain
from privfedrl.privacy.ledger_costs import GAUSSIAN, committed_cost
from privfedrl.privacy.ledger_rows import Charge, Entry
from privfedrl.privacy.rdp import ORDERS, event_rdp, rdp_to_epsilon
from privfedrl.privacy.units import Unit

__all__ = ["OdometerRow", "odometer_rows"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class OdometerRow:
    """The diagnostic epsilon of an account after one of its rows."""

    entry: int
    kind: str
    release_id: str
    epsilon: float


def odometer_rows(chain: Chain, key: AccountKey, delta: float) -> tuple[OdometerRow, ...]:
    """The running epsilon of one account after each of its reserve and settle rows."""
    meter = _Worst(delta) if key[0] is Unit.TRAJECTORY else _Sum(delta)
    rows = []
    for entry in chain.entries:
        charge = None if entry.budget is not None else _charge(chain, entry)
        if charge is None or (charge.unit, charge.adversary) != key:
            continue
        if entry.reservation is not None:
            meter.change(charge, charge.event, -1)
        meter.change(charge, entry.event, 1)
        rows.append(
            OdometerRow(
                entry=entry.id,
                kind=entry.kind,
                release_id=charge.release_id,
                epsilon=meter.epsilon(),
            )
        )
    return tuple(rows)


def _charge(chain: Chain, entry: Entry) -> Charge:
    """The charge that a reserve or settle row is about."""
    reserved = entry.id if entry.reservation is None else entry.reservation
    return chain.reservations[reserved].charge


@dataclass(slots=True)
class _Worst:
    """Trajectories: the figure of the costliest plan."""

    delta: float
    plans: dict[bytes, tuple[Counter[DpEvent], int | None]] = field(default_factory=dict)
    figures: dict[bytes, float] = field(default_factory=dict)
    changed: set[bytes] = field(default_factory=set)
    alone: dict[DpEvent, float] = field(default_factory=dict)

    def change(self, charge: Charge, event: DpEvent, by: int) -> None:
        counts, _ = self.plans.setdefault(charge.plan_digest, (Counter(), charge.cap))
        counts[event] += by
        if not counts[event]:
            del counts[event]
        self.changed.add(charge.plan_digest)

    def epsilon(self) -> float:
        for digest in self.changed:
            counts, cap = self.plans[digest]
            self.figures[digest] = (
                max(map(self._alone, counts), default=0.0) if cap == 1 else self._of(counts, cap)
            )
        self.changed.clear()
        return max(self.figures.values(), default=0.0)

    def _of(self, counts: Counter[DpEvent], cap: int | None) -> float:
        return committed_cost(Unit.TRAJECTORY, [(counts, cap)], self.delta).epsilon

    def _alone(self, event: DpEvent) -> float:
        # kept, so that a row costs no more than a glance at each event
        if event not in self.alone:
            self.alone[event] = self._of(Counter([event]), 1)
        return self.alone[event]


@dataclass(slots=True)
class _Sum:
    """Persons and agents: the curves of all plans, added."""

    delta: float
    plans: dict[bytes, _PlanCurve] = field(default_factory=dict)
    kinds: Counter[type] = field(default_factory=Counter)

    def change(self, charge: Charge, event: DpEvent, by: int) -> None:
        self.kinds[type(event)] += by
        plan = self.plans.get(charge.plan_digest)
        if plan is None:
            plan = self.plans[charge.plan_digest] = _PlanCurve(charge.cap)
        plan.change(event, by)

    def epsilon(self) -> float:
        costly = {kind for kind, count in self.kinds.items() if count} - {NoReleaseEvent}
        if not costly:
            return 0.0
        if UnboundedEvent in costly:
            return math.inf
        total = np.sum([plan.total for plan in self.plans.values()], axis=0)
        if costly == {GaussianEvent}:
            return gaussian_epsilon(math.sqrt(float(total[-1])), self.delta)
        return rdp_to_epsilon(total[:-1], ORDERS, self.delta)[0]


@dataclass(slots=True)
class _PlanCurve:
    """One plan: the summed curve of what one unit may have taken part in.

    ``curves``: float64 [events that ever stood, orders + 1]; the last column is the loss of the
    Gaussian filter, 0 for other events.
    """

    cap: int | None
    releases: int = 0
    finite: bool = True
    places: dict[DpEvent, int] = field(default_factory=dict)
    counts: FloatArray = field(default_factory=lambda: np.zeros(1))
    curves: FloatArray = field(default_factory=lambda: np.zeros((1, ORDERS.size + 1)))
    total: FloatArray = field(default_factory=lambda: np.zeros(ORDERS.size + 1))

    def change(self, event: DpEvent, by: int) -> None:
        place = self.places.setdefault(event, len(self.places))
        if place == len(self.counts):
            # doubled, so that many different events cost no more than their number
            self.counts = np.concatenate([self.counts, np.zeros_like(self.counts)])
            self.curves = np.concatenate([self.curves, np.zeros_like(self.curves)])
        if not self.counts[place]:
            loss = GAUSSIAN.loss(event) if isinstance(event, GaussianEvent) else 0.0
            self.curves[place] = np.append(event_rdp(event), loss)
            self.finite = self.finite and bool(np.isfinite(self.curves[place]).all())
        self.counts[place] += by
        self.releases += by
        if self.finite and (self.cap is None or self.releases <= self.cap):
            # the same sum, at a tenth of the time
            self.total = self.counts @ self.curves
        else:
            self.total = sum_of_costliest(self.curves, self.counts.tolist(), self.cap)
