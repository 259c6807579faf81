"""The value that rollout hands to training: whole trajectories, padded to a public length."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import EnvironmentFault

__all__ = ["TrajectoryBatch"]

Float = NDArray[np.float32]
Bool = NDArray[np.bool_]


# an identifier, not a document; also the limit for names in a plan
_MAX_SUBJECT = 200
# float64 holds every whole number below it
_NO_INDEX = 2**53


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class TrajectoryBatch:
    """B whole trajectories of at most T steps, from their reset to their own end.

    Guarantee: row i depends on trajectory i alone; steps past its end are zero and masked out.

    Attributes:
        observations: float32 [B, T, obs]; what the policy saw before each action.
        actions: int64 [B, T] (discrete) or float32 [B, T, act] (continuous).
        rewards: float32 [B, T], after each action.
        mask: bool [B, T], True for steps that happened; every row is True then False.
        terminated: bool [B], the environment's own end (no value beyond it).
        truncated: bool [B], cut by a time limit (the environment's or the horizon T).
        lost: rows whose environment failed; they are absent (masked throughout). Private: local.
        fault: what the first of them failed with, or None. Private: local.
        batch_id: random identity; a ledger spends it once, so no trajectory feeds two releases.
        subjects: whose trajectory each row is, B identifiers of 1 to 200 printable characters, or
            None where nobody is named; needed for unit PERSON. Compared character by character:
            two spellings are two persons. An absent trajectory keeps the subject it was meant for.
            Private: stays inside the agent.
    Raises:
        EnvironmentFault: shapes differ or a subject is not an identifier.
    """

    observations: Float
    actions: NDArray[np.int64] | Float
    rewards: Float
    mask: Bool
    terminated: Bool
    truncated: Bool
    lost: int = 0
    fault: EnvironmentFault | None = None
    batch_id: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    subjects: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        rows, steps = self.mask.shape
        shapes = {
            "observations": (self.observations.shape[:2], (rows, steps)),
            "actions": (self.actions.shape[:2], (rows, steps)),
            "rewards": (self.rewards.shape, (rows, steps)),
            "terminated": (self.terminated.shape, (rows,)),
            "truncated": (self.truncated.shape, (rows,)),
        }
        for name, (found, expected) in shapes.items():
            if found != expected:
                raise EnvironmentFault(f"{name} must have shape {expected}, got {found}")
        if self.subjects is not None:
            _check_subjects(self.subjects, rows)

    def __repr__(self) -> str:
        """The public number of trajectories only; T can be the length of the longest one."""
        return f"TrajectoryBatch(B={self.num_trajectories})"

    @property
    def num_trajectories(self) -> int:
        """B."""
        return int(self.mask.shape[0])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [B], steps of each trajectory. Private: stays inside the agent."""
        return self.mask.sum(axis=1, dtype=np.int64)

    @property
    def returns(self) -> NDArray[np.float64]:
        """float64 [B], undiscounted. Private: stays inside the agent."""
        return np.where(self.mask, self.rewards, 0.0).sum(axis=1, dtype=np.float64)

    @classmethod
    def joined(cls, batches: Sequence[TrajectoryBatch]) -> TrajectoryBatch:
        """One batch of all trajectories in order, padded to the longest; identity of the last.

        Raises:
            EnvironmentFault: there is no batch, observations or actions differ in kind, or some
                batches name subjects and others do not.
        """
        if not batches:
            raise EnvironmentFault("joined needs at least one batch, got none")
        kinds = {(b.observations.shape[2:], b.actions.shape[2:], b.actions.dtype) for b in batches}
        if len(kinds) > 1 or len({b.subjects is None for b in batches}) > 1:
            raise EnvironmentFault("joined batches must be of one kind")
        steps = max(batch.mask.shape[1] for batch in batches)
        parts = [batch.padded(steps) for batch in batches]

        def stacked(name: str) -> NDArray[Any]:
            return np.concatenate([getattr(part, name) for part in parts])

        named = None if parts[0].subjects is None else [part.subjects or () for part in parts]
        return cls(
            observations=stacked("observations"),
            actions=stacked("actions"),
            rewards=stacked("rewards"),
            mask=stacked("mask"),
            terminated=stacked("terminated"),
            truncated=stacked("truncated"),
            lost=sum(part.lost for part in parts),
            fault=next((part.fault for part in parts if part.fault is not None), None),
            batch_id=parts[-1].batch_id,
            subjects=None if named is None else tuple(name for part in named for name in part),
        )

    def owned(self, *, observation_size: int, action_size: int | None) -> TrajectoryBatch:
        """A copy in the declared types that shares no memory with anything its maker still has.

        Foreign code may hand out one buffer again and again, or types of its own. What one row
        holds decides about that row alone: a value that is too large for float32 is infinite,
        an action that is no index is -1, and either makes its own row unusable later on.

        Args:
            observation_size: length of an observation.
            action_size: of a continuous action, or None for discrete ones.
        Raises:
            EnvironmentFault: shapes are not those of the arguments, or an array holds no numbers.
        """
        if self.observations.shape[2:] != (observation_size,):
            raise EnvironmentFault(
                f"observations must have shape [B, T, {observation_size}], got "
                f"{self.observations.shape}"
            )
        wanted = () if action_size is None else (action_size,)
        if self.actions.shape[2:] != wanted:
            raise EnvironmentFault(
                f"actions must have shape {('B', 'T', *wanted)}, got {self.actions.shape}"
            )
        actions = _numbers("actions", self.actions)
        return replace(
            self,
            observations=_float32("observations", self.observations),
            actions=_indices(actions) if action_size is None else _float32("actions", actions),
            rewards=_float32("rewards", self.rewards),
            mask=_flags("mask", self.mask),
            terminated=_flags("terminated", self.terminated),
            truncated=_flags("truncated", self.truncated),
        )

    def within(self, steps: int) -> TrajectoryBatch:
        """The same trajectories, cut after ``steps`` steps; a cut one counts as truncated.

        One trajectory that is too long must not decide about the others.
        """
        if self.mask.shape[1] <= steps:
            return self
        cut = self.mask[:, steps:].any(axis=1)
        return replace(
            self,
            observations=self.observations[:, :steps],
            actions=self.actions[:, :steps],
            rewards=self.rewards[:, :steps],
            mask=self.mask[:, :steps],
            terminated=self.terminated & ~cut,
            truncated=self.truncated | cut,
        )

    def padded(self, steps: int) -> TrajectoryBatch:
        """The same trajectories with ``steps`` columns, masked and zero past their ends.

        Training needs a public T: with T the longest trajectory's length, the last bits of every
        row could change with the longest one (audits/proofs/clipped_gradient.md).

        Raises:
            EnvironmentFault: a trajectory is longer than ``steps``.
        """
        extra = steps - self.mask.shape[1]
        if extra < 0:
            raise EnvironmentFault(f"trajectories must have at most {steps} steps, got more")
        if extra == 0:
            return self

        def pad(array: NDArray[Any]) -> NDArray[Any]:
            return np.pad(array, [(0, 0), (0, extra)] + [(0, 0)] * (array.ndim - 2))

        return replace(
            self,
            observations=pad(self.observations),
            actions=pad(self.actions),
            rewards=pad(self.rewards),
            mask=pad(self.mask),
        )


def _numbers(name: str, values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind not in "biuf":
        raise EnvironmentFault(f"{name} must hold real numbers, got type {values.dtype}")
    return values


def _float32(name: str, values: NDArray[Any]) -> Float:
    with np.errstate(over="ignore", invalid="ignore"):
        return _numbers(name, values).astype(np.float32)


def _indices(values: NDArray[Any]) -> NDArray[np.int64]:
    """A copy as int64; -1 where there is no whole number that an index could be."""
    with np.errstate(invalid="ignore"):
        index = (values >= 0) & (values < _NO_INDEX) & (values == np.floor(values))
    return np.where(index, values, -1).astype(np.int64)


def _flags(name: str, values: NDArray[Any]) -> Bool:
    if values.dtype != np.bool_:
        raise EnvironmentFault(f"{name} must be of type bool, got {values.dtype}")
    return values.copy()


def _check_subjects(subjects: object, rows: int) -> None:
    """EnvironmentFault unless ``subjects`` names every row; the message holds no subject."""
    if not isinstance(subjects, tuple) or len(subjects) != rows:
        raise EnvironmentFault(
            f"subjects must be a tuple of {rows} identifiers, one per trajectory"
        )
    for subject in subjects:
        if not isinstance(subject, str) or not subject.isprintable():
            raise EnvironmentFault("every subject must be printable text")
        if not 1 <= len(subject) <= _MAX_SUBJECT:
            raise EnvironmentFault(f"every subject must have 1 to {_MAX_SUBJECT} characters")
