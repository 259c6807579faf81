"""What the releases of an account cost, by the bound that its regime allows.

Guarantee: :func:`committed_cost` and :func:`running_cost` are upper bounds for releases that were
fixed before the first of them, :func:`budget_spent` for releases that a filter admitted; none is
ever below the loss of a unit that takes part in as many releases as its cap allows.

| unit       | cost                                                                            |
|------------|---------------------------------------------------------------------------------|
| trajectory | the costliest plan, of each the K costliest releases (K = 1 unless it says so)   |
| person     | all plans together, of each the K costliest releases (all without a cap)        |
| agent      | all plans together, all releases                                                |

A unit that takes part in at most K of a plan's releases chooses which. If every two of them can be
compared, the K costliest bound every choice; else the K largest losses at each Renyi order do
(audits/proofs/privacy_filter.md, section 4). Why trajectories of different plans, or of different
rounds of one, do not add up: audits/proofs/parallel_composition.md.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from privfedrl.errors import PrivacyError
from privfedrl.privacy.accountant import Spent, epsilon_of_counts
from privfedrl.privacy.dominance import is_no_costlier
from privfedrl.privacy.events import DpEvent, GaussianEvent, NoReleaseEvent, UnboundedEvent
from privfedrl.privacy.filters import Filter, Part, sum_of_costliest
from privfedrl.privacy.gdp import check_delta, gaussian_epsilon
from privfedrl.privacy.ledger_rows import Budget
from privfedrl.privacy.rdp import ORDERS, event_rdp, rdp_to_epsilon
from privfedrl.privacy.units import Adjacency, Unit

__all__ = ["GAUSSIAN", "budget_spent", "committed_cost", "running_cost"]

# only its loss function is used, which no budget enters
GAUSSIAN = Filter(kind="gdp", epsilon=1.0, delta=1e-5, order=None)


def committed_cost(
    unit: Unit, parts: Sequence[Part], delta: float, adjacency: Adjacency = Adjacency.ADD_REMOVE
) -> Spent:
    """Cost of releases that were fixed beforehand, by the best valid bound.

    Time is linear in the number of distinct events.

    Args:
        parts: one for each plan. A cap of None: a trajectory is in one release of the plan, other
            units are in all.
    """
    if unit is Unit.TRAJECTORY:
        return _costliest_plan(parts, check_delta(delta), adjacency)
    return _by_best_bound(parts, delta, adjacency)


def _costliest_plan(parts: Sequence[Part], delta: float, adjacency: Adjacency) -> Spent:
    """No trajectory is in two plans, nor in more of a plan's releases than its cap says."""
    costs = (_by_best_bound([one], delta, adjacency) for part in parts for one in _choices(part))
    nothing = Spent(epsilon=0.0, delta=delta, bound="no-release")
    worst = max(costs, key=lambda spent: spent.epsilon, default=nothing)
    together = len(parts) == 1 and sum(parts[0][0].values()) <= (parts[0][1] or 1)
    prefix = "" if together or worst.epsilon == 0.0 else "parallel "
    return replace(worst, bound=prefix + worst.bound)


def _choices(part: Part) -> Iterator[Part]:
    """What a trajectory may have taken part in, by cases: one each if it is in one release."""
    counts, cap = part
    if cap is not None and cap > 1:
        yield part
        return
    for event, number in counts.items():
        yield {event: min(number, 1)}, 1


def _by_best_bound(parts: Sequence[Part], delta: float, adjacency: Adjacency) -> Spent:
    """All plans together."""
    merged: Counter[DpEvent] = Counter()
    for counts, cap in parts:
        chosen = _costliest(counts, cap)
        if chosen is None:
            return _by_cheap_bound(parts, delta, adjacency)
        merged.update(chosen)
    return epsilon_of_counts(merged, delta, adjacency=adjacency)


def running_cost(
    unit: Unit, parts: Sequence[Part], delta: float, adjacency: Adjacency = Adjacency.ADD_REMOVE
) -> Spent:
    """The composed loss by the cheap bounds: exact for Gaussian releases, else RDP.

    A valid, maybe loose, bound for releases that were fixed beforehand; else a diagnostic.
    """
    if unit is Unit.TRAJECTORY:
        return committed_cost(unit, parts, delta, adjacency)
    return _by_cheap_bound(parts, delta, adjacency)


def _by_cheap_bound(parts: Sequence[Part], delta: float, adjacency: Adjacency) -> Spent:
    """All plans together."""
    events = {event for counts, _ in parts for event in counts}
    events = {event for event in events if not isinstance(event, NoReleaseEvent)}
    if not events:
        return Spent(epsilon=0.0, delta=delta, bound="no-release")
    if any(isinstance(event, UnboundedEvent) for event in events):
        return Spent(epsilon=math.inf, delta=delta, bound="unbounded")
    if all(isinstance(event, GaussianEvent) for event in events):
        factor = 2.0 if adjacency is Adjacency.REPLACE_ONE else 1.0
        total = GAUSSIAN.total(parts)
        epsilon = gaussian_epsilon(factor * math.sqrt(total), delta)
        return Spent(epsilon=epsilon, delta=delta, bound="exact-gdp")
    total_curve = np.zeros_like(ORDERS)
    for counts, cap in parts:
        curves = np.array([event_rdp(event, adjacency=adjacency) for event in counts])
        total_curve += sum_of_costliest(curves.reshape(-1, ORDERS.size), counts.values(), cap)
    epsilon, order = rdp_to_epsilon(total_curve, ORDERS, delta)
    return Spent(epsilon=epsilon, delta=delta, bound="rdp", order=order)


def budget_spent(budget: Budget, delta: float | None, adjacency: Adjacency) -> Spent:
    """What an adaptive account may state: its budget, at twice its delta."""
    epsilon, kept = budget.epsilon, 2.0 * budget.delta
    if adjacency is Adjacency.REPLACE_ONE:
        # two steps of add/remove
        kept *= 1.0 + math.exp(min(epsilon, 700.0))
        epsilon *= 2.0
    if delta is not None and not check_delta(delta) >= kept:
        raise PrivacyError(
            f"an account of several plans keeps its budget at delta {kept:.6g} and at no smaller "
            f"one, got {delta!r}; leave delta out"
        )
    at = kept if delta is None else delta
    if not (kept < 1.0 and math.isfinite(epsilon)):
        return Spent(epsilon=math.inf, delta=budget.delta, bound="unbounded")
    order = budget.filter.order
    return Spent(epsilon=epsilon, delta=at, bound=f"{budget.filter.kind}-filter", order=order)


def _costliest(counts: Mapping[DpEvent, int], cap: int | None) -> Counter[DpEvent] | None:
    """The ``cap`` costliest releases; None if not every two events can be compared."""
    if cap is None or sum(counts.values()) <= cap:
        return Counter(counts)
    ranked = sorted(counts, key=functools.cmp_to_key(_compare))
    if not all(is_no_costlier(low, high) for high, low in itertools.pairwise(ranked)):
        return None
    chosen: Counter[DpEvent] = Counter()
    for event in ranked:
        chosen[event] = min(counts[event], cap - chosen.total())
    return +chosen


def _compare(left: DpEvent, right: DpEvent) -> int:
    """Costlier first; equal where nothing is proven, which ``_costliest`` then notices."""
    return is_no_costlier(left, right) - is_no_costlier(right, left)
