"""Pairs of worlds that differ in one unit: where the leak linter looks.

Guarantee: a pair is a function of the arguments alone (no clock, no system randomness), its two
worlds have the same public shapes, batch identities, parameters and public answers, and differ in
the experience of one unit in round 0 and in nothing else.

Notation: B trajectories, T steps. The batches are chosen to make one unit count: one dominates, all
the others are its opposite, nobody else is there, its numbers are not numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError
from privfedrl.privacy.units import Adjacency, Unit
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.testing.isolation_batches import BATCHES, draw_batch, named, with_rows, without

__all__ = ["EFFORTS", "Effort", "Pair", "RoundData", "World", "pairs"]

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How far to look: B, T, units removed and replaced per batch, seeds per batch.

    The first unit, which is the remarkable one, is always removed; others take turns.
    """

    trajectories: int
    steps: int
    removals: int
    replacements: int
    seeds: int


EFFORTS: Mapping[str, Effort] = {
    "quick": Effort(trajectories=4, steps=6, removals=2, replacements=0, seeds=1),
    "default": Effort(trajectories=5, steps=8, removals=3, replacements=1, seeds=1),
    "thorough": Effort(trajectories=16, steps=12, removals=16, replacements=16, seeds=3),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoundData:
    """What comes to an agent in one round.

    Attributes:
        parameters: float64 [d], the public policy.
        batches: what ``collect`` returns, call by call.
        heard: float64 [dimension], the noised mean that everybody hears afterwards. The same in
            both worlds: what follows from it is post-processing, and free.
    """

    parameters: Float
    batches: tuple[TrajectoryBatch, ...]
    heard: Float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
    """Two rounds of one agent; the unit is in round 0 only (AGENT: it is the agent)."""

    rounds: tuple[RoundData, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """Two worlds that must look the same, and how they are neighbours."""

    name: str
    before: World
    after: World
    adjacency: Adjacency


def pairs(
    policy: MlpPolicy,
    *,
    unit: Unit,
    dimension: int,
    collects: int = 1,
    effort: str = "default",
    seed: int = 0,
) -> Iterator[Pair]:
    """Every pair to look at, the most telling batches first.

    Args:
        policy: shapes of observations, actions and parameters.
        unit: whose experience differs. TRAJECTORY: one row of round 0; PERSON: all rows of one
            subject; AGENT: every batch of both rounds.
        dimension: length of an update. collects: batches that an agent may ask for in a round.
        effort: a key of ``EFFORTS``. seed: of everything.
    """
    if effort not in EFFORTS:
        raise ConfigurationError(f"effort must be one of {', '.join(EFFORTS)}, got {effort!r}")
    makers = {Unit.TRAJECTORY: _row_pairs, Unit.PERSON: _person_pairs, Unit.AGENT: _agent_pairs}
    chosen = EFFORTS[effort]
    for shift in range(chosen.seeds):
        draw = _Draw(policy, chosen, dimension, collects, seed + 1000 * shift)
        yield from makers[unit](draw)


@dataclass(frozen=True, slots=True)
class _Draw:
    """One seed's worth of worlds; everything in them follows from the fields."""

    policy: MlpPolicy
    effort: Effort
    dimension: int
    collects: int
    seed: int

    def batches(self, kind: str, where: int) -> tuple[TrajectoryBatch, ...]:
        """What ``collect`` returns in one round; ``where`` tells rounds and donors apart."""
        return tuple(
            named(
                draw_batch(
                    self.policy,
                    trajectories=self.effort.trajectories,
                    steps=self.effort.steps,
                    seed=self.seed + 100 * where + call,
                    kind=kind,
                ),
                f"r{where}",
            )
            for call in range(self.collects)
        )

    def world(self, first: tuple[TrajectoryBatch, ...], later: RoundData) -> World:
        return World(rounds=(self.round(0, first), later))

    def round(self, index: int, batches: tuple[TrajectoryBatch, ...]) -> RoundData:
        rng = np.random.default_rng([self.seed, index])
        return RoundData(
            parameters=0.5 * rng.normal(size=self.policy.num_parameters),
            batches=batches,
            heard=0.1 * rng.normal(size=self.dimension),
        )


def _row_pairs(draw: _Draw) -> Iterator[Pair]:
    groups = {k: (k,) for k in range(draw.effort.trajectories)}
    for kind in BATCHES:
        yield from _group_pairs(draw, kind, {f"trajectory {k}": rows for k, rows in groups.items()})


def _person_pairs(draw: _Draw) -> Iterator[Pair]:
    for kind in BATCHES:
        subjects = draw.batches(kind, 0)[0].subjects or ()
        groups: dict[str, tuple[int, ...]] = {}
        for row, subject in enumerate(subjects):
            groups[f"person {subject}"] = (*groups.get(f"person {subject}", ()), row)
        yield from _group_pairs(draw, kind, groups)


def _group_pairs(draw: _Draw, kind: str, groups: Mapping[str, tuple[int, ...]]) -> Iterator[Pair]:
    """Each group of rows absent, then with the experience of somebody else."""
    batches, later = draw.batches(kind, 0), draw.round(1, draw.batches("ordinary", 1))
    before, (first, *rest) = draw.world(batches, later), batches
    turn, names = list(BATCHES).index(kind), list(groups)
    others = _in_turn(names[1:], turn)
    for name in [*names[:1], *others][: draw.effort.removals]:
        rows = groups[name]
        if first.mask[list(rows)].any():
            yield Pair(
                name=f"{kind}: {name} absent",
                before=before,
                after=draw.world((without(first, rows), *rest), later),
                adjacency=Adjacency.ADD_REMOVE,
            )
    # another unit and another donor for every batch
    for k, name in enumerate(_in_turn(names, turn)[: draw.effort.replacements]):
        donor = _DONORS[(turn + k) % len(_DONORS)]
        other = draw.batches(donor, 2)[0]
        yield Pair(
            name=f"{kind}: {name} replaced by one of '{donor}'",
            before=before,
            after=draw.world((with_rows(first, groups[name], other), *rest), later),
            adjacency=Adjacency.REPLACE_ONE,
        )


def _in_turn(names: list[str], turn: int) -> list[str]:
    start = turn % max(len(names), 1)
    return names[start:] + names[:start]


def _agent_pairs(draw: _Draw) -> Iterator[Pair]:
    """One agent's experience replaced as a whole, in both rounds: it is in all of them."""
    kinds = list(BATCHES)
    worlds = {
        kind: draw.world(draw.batches(kind, 0), draw.round(1, draw.batches(kind, 1)))
        for kind in kinds
    }
    for kind, other in zip(kinds, kinds[1:] + kinds[:1], strict=True):
        yield Pair(
            name=f"the agent's '{kind}' replaced by '{other}'",
            before=worlds[kind],
            after=worlds[other],
            adjacency=Adjacency.REPLACE_ONE,
        )


# who takes the place of a replaced unit; their first rows are the remarkable ones
_DONORS = ("one dominates", "not numbers", "huge numbers", "all zero")
