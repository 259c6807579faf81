"""Epsilon at the plan's delta and at others, with the noise sampler's own share of that delta paid.

Guarantee: a figure is given only if the mechanism at delta minus the sampler's deviation at that
very figure gives it; where the deviation eats all of delta, there is no figure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from privfedrl.federation.setup import RoundSetup
from privfedrl.plan import Plan
from privfedrl.privacy import Adjacency, DpEvent, Spent, Unit, compose
from privfedrl.privacy.ledger_costs import committed_cost

__all__ = ["bounded_curve", "bounded_epsilon", "plan_cost"]

_STEPS = 64
# small ones for the comparison with a population, large ones because attack figures rest on them
_CURVE_DELTAS = (1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def bounded_epsilon(
    setup: RoundSetup,
    events: Sequence[tuple[Any, DpEvent]],
    *,
    adjacency: Adjacency = Adjacency.ADD_REMOVE,
    delta: float | None = None,
) -> float:
    """The smallest epsilon found for (group, event) pairs; infinite where none is proven.

    The sampler deviates from its exact distribution by total variation, which costs up to
    (1 + e^epsilon) times as much in delta (audits/proofs/table_sampler.md). What the plan's epsilon
    takes of ``delta`` is subtracted first; a larger epsilon is paid for here.

    Args:
        delta: of the figure; the plan's own by default.
    """
    plan = setup.plan
    whole = plan.privacy.delta if delta is None else delta

    def found_at(paid: float) -> float:
        return plan_cost(plan, events, whole - paid, adjacency=adjacency).epsilon

    if setup.mechanism is None:
        return found_at(0.0)
    # aborted attempts may have made more releases than the plan has rounds
    releases = plan.releases_per_unit if plan.unit is Unit.TRAJECTORY else len(events)
    shares = setup.shares_per_run * max(1, -(-releases // plan.releases_per_unit))
    paid = setup.mechanism.sampler_delta(epsilon=plan.privacy.epsilon, shares=shares)
    # where the plan's epsilon would take all of delta, a smaller one may still be proven
    epsilon = found_at(paid if paid < whole else 0.0)
    if paid < whole and epsilon <= plan.privacy.epsilon:
        return epsilon
    for _ in range(_STEPS):
        paid = setup.mechanism.sampler_delta(epsilon=epsilon, shares=shares)
        if not paid < whole:
            return math.inf
        found = found_at(paid)
        if found <= epsilon:
            return epsilon
        epsilon = found * (1 + 1e-12)
    return math.inf


def plan_cost(
    plan: Plan,
    events: Sequence[tuple[Any, DpEvent]],
    delta: float,
    *,
    adjacency: Adjacency = Adjacency.ADD_REMOVE,
) -> Spent:
    """The bill of one unit for (group, event) pairs of one plan, its participation cap counted."""
    if plan.unit is Unit.AGENT:
        return compose(plan.unit, events, delta, adjacency=adjacency)
    counts = Counter(event for _, event in events)
    return committed_cost(plan.unit, [(counts, plan.releases_per_unit)], delta, adjacency)


def bounded_curve(
    setup: RoundSetup, events: Sequence[tuple[Any, DpEvent]]
) -> tuple[tuple[float, float], ...]:
    """(delta, epsilon) pairs that hold at once, the sampler paid in each; the plan's delta is one.

    Pairs for which nothing is proven are left out, so it may be empty.
    """
    deltas = sorted({*_CURVE_DELTAS, setup.plan.privacy.delta})
    pairs = ((delta, bounded_epsilon(setup, events, delta=delta)) for delta in deltas)
    return tuple(pair for pair in pairs if math.isfinite(pair[1]))
