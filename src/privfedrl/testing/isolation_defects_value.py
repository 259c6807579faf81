"""Pitfalls of value learning and of optimisers (spec table 1.8), and their sound counterparts.

Guarantee: every class differs from its sound parent in one part, and a docstring says which.
``TargetOfHeard`` and ``AdamOfHeard`` (rows 16 and 17) are sound: what follows from a noised release
is post-processing, and a linter that finds something there is wrong.

Notation: as in ``isolation_honest``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.testing.isolation_honest import Honest, QLearning, Rows
from privfedrl.training import LocalUpdate, clip_rows

__all__ = [
    "AdamOfHeard",
    "AdamOfOwnGradients",
    "PrioritisedReplay",
    "ReplayBuffer",
    "TargetOfHeard",
    "TargetOfOwnGradients",
    "TransitionClip",
]

Float = NDArray[np.float64]


class TransitionClip(QLearning):
    """Row 13: every transition is clipped to C; a trajectory of T of them moves the sum by T C."""

    def released(self, parameters: Float, batch: TrajectoryBatch) -> Rows:
        """Rows that are sums of clipped transitions."""
        steps = self.transitions(parameters, batch)
        clipped, _ = clip_rows(steps.reshape(-1, steps.shape[2]), self.clip_norm)
        return Rows(rows=clipped.reshape(steps.shape).sum(axis=1), clip_norm=self.clip_norm)


class PrioritisedReplay(QLearning):
    """Row 14: transitions drawn in proportion to their error, which everybody's errors scale."""

    def transitions(self, parameters: Float, batch: TrajectoryBatch) -> Float:
        """Each transition as often as it was drawn."""
        steps = super().transitions(parameters, batch)
        errors = np.nan_to_num(np.abs(self.temporal_differences(parameters, batch)))
        priorities = np.minimum(errors, 1e6).ravel()
        if not priorities.sum():
            return steps
        draws = np.random.default_rng(5).choice(
            priorities.size, size=priorities.size // 2, p=priorities / priorities.sum()
        )
        counts = np.bincount(draws, minlength=priorities.size).reshape(batch.mask.shape)
        return np.where(counts[..., None] > 0, steps * counts[..., None], 0.0)


class ReplayBuffer(QLearning):
    """Row 15: the batch of the last round is used again and not charged again."""

    def __init__(self) -> None:
        super().__init__()
        self._buffer: TrajectoryBatch | None = None

    def released(self, parameters: Float, batch: TrajectoryBatch) -> LocalUpdate:
        """Rows of this batch and of the last one."""
        rows = self.clipped(parameters, batch)
        if self._buffer is not None:
            rows = np.concatenate([rows, self.clipped(parameters, self._buffer)])
        self._buffer = batch
        return self.update(rows, batch)


class TargetOfHeard(QLearning):
    """Row 16, sound: the target follows the public policy, Polyak average and all."""

    def released(self, parameters: Float, batch: TrajectoryBatch) -> LocalUpdate:
        """Rows towards the target."""
        self._policy = parameters
        return self.update(self.clipped(parameters, batch), batch)

    def receive(self, heard: Float) -> None:
        """Post-processing of a noised release."""
        self._target = 0.9 * self._target + 0.1 * (self._policy + heard)


class TargetOfOwnGradients(QLearning):
    """Row 16 done wrong: the target follows the agent's own gradients, before any noise."""

    def released(self, parameters: Float, batch: TrajectoryBatch) -> LocalUpdate:
        """Rows towards the target, which then moves."""
        rows = self.clipped(parameters, batch)
        self._target = 0.9 * self._target + 0.1 * (parameters + rows.mean(axis=0))
        return self.update(rows, batch)


class AdamOfHeard(Honest):
    """Row 17, sound: moments of what everybody hears."""

    def __init__(self) -> None:
        super().__init__()
        self._moments = np.zeros((2, self.dimension))

    def released(self, parameters: Float, batch: TrajectoryBatch) -> LocalUpdate:
        """Rows at the policy that the moments lead to."""
        first, second = self._moments
        step = 0.1 * first / (np.sqrt(second) + 1e-8)
        return self.update(self.clipped(parameters + step, batch), batch)

    def receive(self, heard: Float) -> None:
        """Post-processing of a noised release."""
        self.learn(heard)

    def learn(self, gradient: Float) -> None:
        """Move both moments."""
        target = np.stack([gradient, gradient**2])
        self._moments = 0.9 * self._moments + 0.1 * target


class AdamOfOwnGradients(AdamOfHeard):
    """Row 17 done wrong: moments of the agent's own gradients, before any noise."""

    def released(self, parameters: Float, batch: TrajectoryBatch) -> LocalUpdate:
        """Rows as above; then the moments learn from them."""
        update = super().released(parameters, batch)
        self.learn(update.rows.sum(axis=0))
        return update

    def receive(self, heard: Float) -> None:
        """Nothing: the moments know better."""
