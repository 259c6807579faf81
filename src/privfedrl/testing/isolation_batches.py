"""Batches of trajectories that make one unit count, and rows taken out of them or put in.

Guarantee: a batch is a function of the arguments alone, and every change keeps its public shape and
its identity; ``without`` and ``with_rows`` change the named rows and nothing else.

Notation: B trajectories, T steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch

__all__ = ["BATCHES", "draw_batch", "named", "with_rows", "without"]

Rows = NDArray[np.intp]
Sketch = Callable[[TrajectoryBatch], TrajectoryBatch]


def _ordinary(batch: TrajectoryBatch) -> TrajectoryBatch:
    return batch


def _one_dominates(batch: TrajectoryBatch) -> TrajectoryBatch:
    rewards = batch.rewards.copy()
    # and turns the sign of the mean: the others have their first two steps
    rewards[0] = -500.0 * np.sign(rewards[1:, :2].sum())
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
    rewards[0, ::2], rewards[0, 1::2], observations[0] = 3e38, -3e38, 1e20
    return replace(batch, rewards=rewards, observations=observations)


def _one_no_number(batch: TrajectoryBatch) -> TrajectoryBatch:
    rewards, observations = batch.rewards.copy(), batch.observations.copy()
    rewards[0, 1:], rewards[0, 0], observations[0] = np.inf, np.nan, np.nan
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
    "one no number": _one_no_number,
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
        if policy.action != "gaussian"
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
    return _zero_past_end(BATCHES[kind](batch))


def _zero_past_end(batch: TrajectoryBatch) -> TrajectoryBatch:
    """What the batch promises of steps that did not happen."""

    def zeroed(array: NDArray[Any]) -> NDArray[Any]:
        happened = batch.mask.reshape(*batch.mask.shape, *[1] * (array.ndim - 2))
        return np.where(happened, array, array.dtype.type(0))

    return replace(
        batch,
        observations=zeroed(batch.observations),
        actions=zeroed(batch.actions),
        rewards=zeroed(batch.rewards),
    )


def _masked(batch: TrajectoryBatch, lengths: list[int | None]) -> TrajectoryBatch:
    """``batch`` with row i cut, or extended within T, to lengths[i] steps (None: all T)."""
    steps = batch.mask.shape[1]
    ends = np.array([steps if length is None else length for length in lengths])
    mask = np.arange(steps) < ends[:, None]
    absent = np.flatnonzero(ends == 0)
    return without(replace(batch, mask=mask), tuple(int(k) for k in absent))


def _taken(batch: TrajectoryBatch, rows: Rows) -> TrajectoryBatch:
    return replace(batch, **{name: getattr(batch, name)[rows] for name in _ARRAYS})


def without(batch: TrajectoryBatch, rows: tuple[int, ...]) -> TrajectoryBatch:
    """``rows`` absent: zero and masked out, in a batch of the same public shape."""
    return _changed(batch, rows, {name: np.zeros_like(getattr(batch, name)) for name in _ARRAYS})


def with_rows(
    batch: TrajectoryBatch, rows: tuple[int, ...], other: TrajectoryBatch
) -> TrajectoryBatch:
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


def named(batch: TrajectoryBatch, prefix: str) -> TrajectoryBatch:
    """Persons with one, two and three trajectories, interleaved; others in every round."""
    order = range(batch.num_trajectories)
    return replace(batch, subjects=tuple(f"{prefix}-{_PERSONS[k % 6] + k // 6 * 3}" for k in order))


_PERSONS = (0, 1, 0, 2, 1, 1)
_ARRAYS = ("observations", "actions", "rewards", "mask", "terminated", "truncated")
