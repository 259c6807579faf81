"""Pairs of worlds that differ in one unit: where the leak linter looks.

Guarantee: a pair is a function of the arguments alone (no clock, no system randomness), its two
worlds have the same public shapes, batch identities, parameters and public answers, and differ in
the experience of one unit in round 0 and in nothing else.

Notation: B trajectories, T steps. The batches are chosen to make one unit count: one dominates, all
the others are its opposite, nobody else is there, its numbers are not numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError
from privfedrl.privacy.units import Adjacency, Unit
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch

__all__ = ["BATCHES", "EFFORTS", "Effort", "Pair", "RoundData", "World", "draw_batch", "pairs"]

Float = NDArray[np.float64]
Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How far to look: B, T, replaced units per batch (each unit in turn), seeds per batch."""

    trajectories: int
    steps: int
    replacements: int
    seeds: int


EFFORTS: Mapping[str, Effort] = {
    "quick": Effort(trajectories=4, steps=6, replacements=0, seeds=1),
    "default": Effort(trajectories=6, steps=8, replacements=1, seeds=1),
    "thorough": Effort(trajectories=16, steps=12, replacements=16, seeds=3),
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


Sketch = Callable[[TrajectoryBatch], TrajectoryBatch]


def _ordinary(batch: TrajectoryBatch) -> TrajectoryBatch:
    return batch


def _one_dominates(batch: TrajectoryBatch) -> TrajectoryBatch:
    rewards = batch.rewards.copy()
    others = np.where(batch.mask, rewards, 0.0)[1:, :2].sum()
    rewards[0] = -500.0 * np.sign(others)  # and turns the sign of the mean
    return _masked(replace(batch, rewards=rewards), [None] + [2] * (len(rewards) - 1))


def _one_against_all(batch: TrajectoryBatch) -> TrajectoryBatch:
    same = _duplicates(batch)
    rewards = same.rewards.copy()
    rewards[0] = -rewards[0]
    return replace(same, rewards=rewards)


def _duplicates(batch: TrajectoryBatch) -> TrajectoryBatch:
    return _taken(_masked(batch, [None] * batch.num_trajectories), np.zeros(len(batch.mask), int))


def _huge(batch: TrajectoryBatch) -> TrajectoryBatch:
    rewards, observations = batch.rewards.copy(), batch.observations.copy()
    rewards[0], rewards[1, ::2], rewards[1, 1::2] = 3e38, 3e38, -3e38
    observations[0], observations[1] = 1e20, -1e20
    return replace(batch, rewards=rewards, observations=observations)


def _not_numbers(batch: TrajectoryBatch) -> TrajectoryBatch:
    rewards, observations = batch.rewards.copy(), batch.observations.copy()
    rewards[0], rewards[1, 0], observations[2, 0] = np.nan, np.inf, np.nan
    return replace(batch, rewards=rewards, observations=observations)


def _long_and_short(batch: TrajectoryBatch) -> TrajectoryBatch:
    return _masked(batch, [None if k % 3 == 0 else k % 3 - 1 for k in range(len(batch.mask))])


def _tiny(batch: TrajectoryBatch) -> TrajectoryBatch:
    return replace(batch, rewards=(batch.rewards * 1e-30).astype(np.float32))


def _alone(batch: TrajectoryBatch) -> TrajectoryBatch:
    return _masked(batch, [None] + [0] * (len(batch.mask) - 1))


def _two_alone(batch: TrajectoryBatch) -> TrajectoryBatch:
    return _masked(batch, [None, None] + [0] * (len(batch.mask) - 2))


def _nobody(batch: TrajectoryBatch) -> TrajectoryBatch:
    return _masked(batch, [0] * len(batch.mask))


def _all_zero(batch: TrajectoryBatch) -> TrajectoryBatch:
    zero = replace(
        batch,
        observations=np.zeros_like(batch.observations),
        actions=np.zeros_like(batch.actions),
        rewards=np.zeros_like(batch.rewards),
    )
    return _masked(zero, [None] * len(batch.mask))


BATCHES: Mapping[str, Sketch] = {
    "ordinary": _ordinary,
    "one dominates": _one_dominates,
    "one against all": _one_against_all,
    "huge numbers": _huge,
    "not numbers": _not_numbers,
    "long and short": _long_and_short,
    "duplicates": _duplicates,
    "tiny rewards": _tiny,
    "one alone": _alone,
    "two alone": _two_alone,
    "nobody": _nobody,
    "all zero": _all_zero,
}


def draw_batch(
    policy: MlpPolicy, *, trajectories: int, steps: int, seed: int, kind: str = "ordinary"
) -> TrajectoryBatch:
    """A batch of one of the kinds in ``BATCHES``, the same for the same arguments.

    Rewards drift along a trajectory, so that some are good and some are bad as a whole; lengths are
    1 .. T, and the first trajectory has T steps.
    """
    rng = np.random.default_rng([seed, sorted(BATCHES).index(kind)])
    shape = (trajectories, steps)
    lengths = rng.integers(1, steps + 1, trajectories)
    lengths[0] = steps
    mask = np.arange(steps) < lengths[:, None]
    actions = (
        rng.integers(0, policy.action_size, shape)
        if policy.action == "categorical"
        else rng.normal(size=(*shape, policy.action_size)).astype(np.float32)
    )
    rewards = rng.normal(size=shape) + 2.0 * rng.normal(size=(trajectories, 1))
    ended = rng.random(trajectories) < 0.5
    batch = TrajectoryBatch(
        observations=rng.normal(size=(*shape, policy.observation_size)).astype(np.float32),
        actions=actions,
        rewards=rewards.astype(np.float32),
        mask=mask,
        terminated=ended,
        truncated=~ended,
        batch_id=hashlib.sha256(str(seed).encode()).digest()[:16],
    )
    return BATCHES[kind](batch)


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
            _named(
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
    for name, rows in groups.items():
        if first.mask[list(rows)].any():
            yield Pair(
                name=f"{kind}: {name} absent",
                before=before,
                after=draw.world((_without(first, rows), *rest), later),
                adjacency=Adjacency.ADD_REMOVE,
            )
    turn = list(BATCHES).index(kind)
    names = list(groups)
    for k in range(min(draw.effort.replacements, len(names))):
        # another unit and another donor for every batch
        name = names[(turn + k) % len(names)]
        donor = _DONORS[(turn + k) % len(_DONORS)]
        other = draw.batches(donor, 2)[0]
        yield Pair(
            name=f"{kind}: {name} replaced by one of '{donor}'",
            before=before,
            after=draw.world((_with(first, groups[name], other), *rest), later),
            adjacency=Adjacency.REPLACE_ONE,
        )


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


def _masked(batch: TrajectoryBatch, lengths: list[int | None]) -> TrajectoryBatch:
    """``batch`` with row i cut, or extended within T, to lengths[i] steps (None: all T)."""
    steps = batch.mask.shape[1]
    ends = np.array([steps if length is None else length for length in lengths])
    mask = np.arange(steps) < ends[:, None]
    absent = np.flatnonzero(ends == 0)
    return _without(replace(batch, mask=mask), tuple(int(k) for k in absent))


def _taken(batch: TrajectoryBatch, rows: Rows) -> TrajectoryBatch:
    return replace(batch, **{name: getattr(batch, name)[rows] for name in _ARRAYS})


def _without(batch: TrajectoryBatch, rows: tuple[int, ...]) -> TrajectoryBatch:
    """``rows`` absent: zero and masked out, in a batch of the same public shape."""
    return _changed(batch, rows, {name: np.zeros_like(getattr(batch, name)) for name in _ARRAYS})


def _with(batch: TrajectoryBatch, rows: tuple[int, ...], other: TrajectoryBatch) -> TrajectoryBatch:
    """``rows`` with what the first rows of ``other`` hold."""
    order = np.arange(batch.num_trajectories)
    order[list(rows)] = np.arange(len(rows))
    return _changed(batch, rows, {name: getattr(other, name)[order] for name in _ARRAYS})


def _changed(
    batch: TrajectoryBatch, rows: tuple[int, ...], values: Mapping[str, NDArray[Any]]
) -> TrajectoryBatch:
    chosen = np.zeros(batch.num_trajectories, dtype=np.bool_)
    chosen[list(rows)] = True
    mixed: dict[str, Any] = {
        name: np.where(chosen.reshape(-1, *[1] * (value.ndim - 1)), value, getattr(batch, name))
        for name, value in values.items()
    }
    return replace(batch, **mixed)


def _named(batch: TrajectoryBatch, prefix: str) -> TrajectoryBatch:
    """Persons with one, two and three trajectories, interleaved; others in every round."""
    order = range(batch.num_trajectories)
    return replace(batch, subjects=tuple(f"{prefix}-{_PERSONS[k % 6] + k // 6 * 3}" for k in order))


_PERSONS = (0, 1, 0, 2, 1, 1)
_ARRAYS = ("observations", "actions", "rewards", "mask", "terminated", "truncated")
