"""What a list of releases costs: never below the proven loss of the composition, never negative.

Two rules, and no others:

* sequential: releases that may touch the same unit add up;
* parallel: groups of releases that touch disjoint sets of units cost the maximum, for the same
  delta (audits/proofs/parallel_composition.md).

What is reported is the least of the bounds that are valid for the releases, by name:

| bound       | holds for                                                          |
|-------------|--------------------------------------------------------------------|
| `exact-gdp` | Gaussian releases without sampling: mu^2 = sum mu_r^2              |
| `pld`       | Gaussian releases, Poisson-sampled or not (``pld``)                |
| `rdp`       | every event that has a curve (``rdp``): curves add                 |
| `two-steps` | Poisson-sampled releases when a unit is replaced: one step to      |
|             | remove it and one to add the other, 2 eps at delta' with           |
|             | (1 + e^eps) delta' = delta                                         |

All of it is about schedules that were committed in advance: events chosen by looking at earlier
outputs need a filter (``filters``), which the ledger applies by itself.
The cost of an event is computed once: a thousand equal rounds cost as much time as one.
The sampler's own delta (``samplers.delta_of_sampler``) is not included: callers subtract it from
the delta that they pass, as ``calibration`` does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from privfedrl.errors import ConfigurationError, UnsupportedMechanism
from privfedrl.privacy.events import (
    DpEvent,
    GaussianEvent,
    NoReleaseEvent,
    PoissonSampledEvent,
    UnboundedEvent,
    check_one_unit,
    unit_of,
)
from privfedrl.privacy.gdp import check_delta, gaussian_epsilon
from privfedrl.privacy.pld import pld_epsilon
from privfedrl.privacy.rdp import ORDERS, event_rdp, rdp_to_epsilon
from privfedrl.privacy.units import Adjacency, Unit

__all__ = ["Spent", "compose", "epsilon", "epsilon_of_counts", "parallel"]

_Counts = tuple[tuple[DpEvent, int], ...]
_LARGEST_STEP = 700.0  # exp of it is near the largest float
_HALVINGS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """An (epsilon, delta) statement and the bound that proves it.

    Attributes:
        epsilon: >= 0; inf when something left without noise.
        delta: the delta that was asked for.
        bound: a name of the module's table, ``no-release`` or ``unbounded``; a figure that is
            the maximum over disjoint groups carries the prefix ``parallel ``.
        order: the Renyi order that attains the bound, if it is an RDP bound.
    """

    epsilon: float
    delta: float
    bound: str
    order: float | None = None


def epsilon(
    events: Sequence[DpEvent], delta: float, *, adjacency: Adjacency = Adjacency.ADD_REMOVE
) -> Spent:
    """Cost of releases that may all touch the same unit (sequential composition).

    Args:
        events: any number, in any order; the result does not depend on the order.
        delta: strictly between 0 and 1.
        adjacency: REPLACE_ONE doubles every sensitivity.
    Raises:
        ConfigurationError: delta is out of range.
        UnsupportedMechanism: an event is of an unknown kind, or two events name different units.
    """
    return _spent(_counted(events), check_delta(delta), adjacency)


def epsilon_of_counts(
    counts: Mapping[DpEvent, int], delta: float, *, adjacency: Adjacency = Adjacency.ADD_REMOVE
) -> Spent:
    """As :func:`epsilon`, for a multiset: time linear in the number of distinct events.

    Args:
        counts: how often each event happened, >= 0.
    """
    if any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in counts.values()):
        raise ConfigurationError("counts must be integers >= 0")
    check_one_unit({unit_of(event) for event in counts})
    present = ((event, n) for event, n in counts.items() if n)
    return _spent(tuple(sorted(present, key=_sort_key)), check_delta(delta), adjacency)


def parallel(
    groups: Iterable[Sequence[DpEvent]],
    delta: float,
    *,
    adjacency: Adjacency = Adjacency.ADD_REMOVE,
) -> Spent:
    """Cost of groups of releases, where no unit is touched by two groups: the maximum.

    The caller vouches for the disjointness. Errors as for :func:`epsilon`.
    """
    check_delta(delta)
    counted = [_counted(group) for group in groups]
    distinct = set(counted)
    check_one_unit({_unit(counts) for counts in distinct if counts})
    nothing = Spent(epsilon=0.0, delta=float(delta), bound="no-release")
    costs = [_spent(counts, float(delta), adjacency) for counts in distinct]
    worst = max(costs, key=lambda spent: spent.epsilon, default=nothing)
    prefix = "parallel " if len(counted) > 1 and worst.epsilon > 0.0 else ""
    return replace(worst, bound=prefix + worst.bound)


def compose(
    unit: Unit,
    releases: Sequence[tuple[Hashable, DpEvent]],
    delta: float,
    *,
    adjacency: Adjacency = Adjacency.ADD_REMOVE,
) -> Spent:
    """The bill of a run, by the unit of privacy.

    TRAJECTORY: releases with the same key compose, different keys are disjoint sets of fresh
    trajectories and cost the maximum. PERSON, AGENT: everything composes, the key is not used.
    Where a release mixes several sets (a replay window), or only an upper limit on the uses of a
    trajectory is known, no key says it: ``ledger_costs.committed_cost`` with that cap does.

    Args:
        releases: (participant key, event). The key names the set of trajectories that the release
            was computed from (for example the round); for frozensets the disjointness is checked.
    Raises:
        UnsupportedMechanism: an event is about another unit than ``unit``, or two frozenset keys
            overlap without being equal.
    """
    for found in {unit_of(event) for event in _distinct(event for _, event in releases)}:
        if found is not unit:
            raise UnsupportedMechanism(
                f"every event must be about the unit {unit.value!r}, found {found.value!r}"
            )
    if unit is not Unit.TRAJECTORY:
        return epsilon([event for _, event in releases], delta, adjacency=adjacency)
    groups: dict[Hashable, list[DpEvent]] = {}
    for key, event in releases:
        groups.setdefault(key, []).append(event)
    _refuse_overlap(groups)
    return parallel(groups.values(), delta, adjacency=adjacency)


def _refuse_overlap(keys: Iterable[Hashable]) -> None:
    owner: dict[Hashable, Hashable] = {}
    for key in keys:
        for member in key if isinstance(key, frozenset) else ():
            if owner.setdefault(member, key) != key:
                raise UnsupportedMechanism(
                    "parallel composition needs disjoint sets of trajectories, found two sets "
                    "that overlap"
                )


def _distinct(events: Iterable[DpEvent]) -> list[DpEvent]:
    """One object per identity: cheap even for a million references to few events."""
    return list({id(event): event for event in events}.values())


def _counted(events: Sequence[DpEvent]) -> _Counts:
    """Distinct events with multiplicities, in an order that does not depend on hashing.

    Identities first: hashing a nested frozen value a million times would take seconds.
    """
    objects = _distinct(events)
    check_one_unit({unit_of(event) for event in objects})
    by_identity = Counter(map(id, events))
    counts: Counter[DpEvent] = Counter()
    for event in objects:
        counts[event] += by_identity[id(event)]
    return tuple(sorted(counts.items(), key=_sort_key))


def _sort_key(item: tuple[DpEvent, int]) -> str:
    return repr(item[0])


def _unit(counts: _Counts) -> Unit:
    return unit_of(counts[0][0])


@lru_cache(maxsize=4096)
def _spent(counts: _Counts, delta: float, adjacency: Adjacency) -> Spent:
    if any(isinstance(event, UnboundedEvent) for event, _ in counts):
        return Spent(epsilon=math.inf, delta=delta, bound="unbounded")
    costly = [(e, n) for e, n in counts if not isinstance(e, NoReleaseEvent)]
    if not costly:
        return Spent(epsilon=0.0, delta=delta, bound="no-release")
    gaussian = [(event, n) for event, n in costly if isinstance(event, GaussianEvent)]
    if len(gaussian) == len(costly):
        factor = 2.0 if adjacency is Adjacency.REPLACE_ONE else 1.0
        mu = factor * math.hypot(*(math.sqrt(n) / e.noise_multiplier for e, n in gaussian))
        return Spent(epsilon=gaussian_epsilon(mu, delta), delta=delta, bound="exact-gdp")
    return min(_bounds(costly, delta, adjacency), key=lambda spent: spent.epsilon)


def _bounds(
    costly: Sequence[tuple[DpEvent, int]], delta: float, adjacency: Adjacency
) -> Iterator[Spent]:
    """Every bound that holds for releases with noise, some of them not plain Gaussians."""
    total = np.zeros_like(ORDERS)
    with np.errstate(over="ignore"):
        for event, count in costly:
            total += count * event_rdp(event, adjacency=adjacency)
    value, order = rdp_to_epsilon(total, ORDERS, delta)
    yield Spent(epsilon=value, delta=delta, bound="rdp", order=order)
    exact = pld_epsilon(dict(costly), delta, adjacency=adjacency)
    if exact is not None:
        yield Spent(epsilon=exact, delta=delta, bound="pld")
    sampled = any(isinstance(event, PoissonSampledEvent) for event, _ in costly)
    if sampled and adjacency is Adjacency.REPLACE_ONE:
        yield _two_steps(tuple(costly), delta)


def _two_steps(costly: _Counts, delta: float) -> Spent:
    """Replacing is removing and adding: twice (eps, delta') is (2 eps, (1 + e^eps) delta')."""

    def single(step: float) -> float:
        share = delta / (1.0 + math.exp(min(step, _LARGEST_STEP)))
        return _spent(costly, share, Adjacency.ADD_REMOVE).epsilon

    # single is increasing in step; the least step with single(step) <= step is what we look for
    high = max(single(0.0), 1e-300)
    while high <= _LARGEST_STEP and single(high) > high:
        high *= 2.0
    if high > _LARGEST_STEP:
        return Spent(epsilon=math.inf, delta=delta, bound="two-steps")
    low = high / 2.0
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if single(middle) <= middle else (middle, high)
    return Spent(epsilon=2.0 * high, delta=delta, bound="two-steps")
