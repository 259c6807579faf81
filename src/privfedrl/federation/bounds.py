"""Epsilon at the plan's delta, with the noise sampler's own share of that delta paid.

Guarantee: a figure is given only if the mechanism at delta minus the sampler's deviation at that
very figure gives it; where the deviation eats all of delta, there is no figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from privfedrl.federation.setup import RoundSetup
from privfedrl.privacy import Adjacency, DpEvent, compose

__all__ = ["bounded_epsilon"]

_STEPS = 64


def bounded_epsilon(
    setup: RoundSetup,
    events: Sequence[tuple[Any, DpEvent]],
    *,
    adjacency: Adjacency = Adjacency.ADD_REMOVE,
) -> float:
    """The smallest epsilon found for (group, event) pairs; infinite where none is proven.

    The sampler deviates from its exact distribution by total variation, which costs up to
    (1 + e^epsilon) times as much in delta (audits/proofs/table_sampler.md). The plan's delta was
    reduced by that at the plan's epsilon; a larger epsilon is paid for here.
    """
    plan = setup.plan
    epsilon = compose(plan.unit, events, setup.accounted_delta, adjacency=adjacency).epsilon
    if setup.mechanism is None or epsilon <= plan.privacy.epsilon:
        return epsilon
    shares = plan.fleet.agents * plan.releases_per_unit
    for _ in range(_STEPS):
        delta = plan.privacy.delta - setup.mechanism.sampler_delta(epsilon=epsilon, shares=shares)
        if not delta > 0:
            return math.inf
        found = compose(plan.unit, events, delta, adjacency=adjacency).epsilon
        if found <= epsilon:
            return epsilon
        epsilon = found * (1 + 1e-12)
    return math.inf
