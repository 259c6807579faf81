"""Pitfalls of policy gradients (spec table 1.8): what makes one trajectory move all the others.

Guarantee: every class differs from its sound parent in one part, and a docstring says which.

Notation: as in ``isolation_honest``; G returns-to-go, V a linear critic on the observation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.testing.isolation_honest import GAMMA, Epochs, Honest, Rows, finite_rewards, to_go
from privfedrl.training import LocalUpdate, clip_rows
from privfedrl.training.local_update import row_norms

__all__ = [
    "BatchAdvantages",
    "BatchMeanBaseline",
    "BatchNorm",
    "DividesByCount",
    "EpochsChargedAsOne",
    "EpochsInOneSum",
    "KlEarlyStop",
    "PrivateCritic",
    "RawQuantileClip",
    "ReturnStandardisation",
    "RunningNormaliser",
    "StepBudget",
]

Float = NDArray[np.float64]


def _roots(batch: TrajectoryBatch) -> Float:
    return np.asarray(np.sqrt(np.maximum(batch.lengths, 1))[:, None], dtype=np.float64)


class BatchMeanBaseline(Honest):
    """Row 1: returns less the mean return of the batch, the textbook baseline."""

    def weights(self, batch: TrajectoryBatch) -> Float:
        """w from everybody's returns."""
        present = batch.mask.any(axis=1)
        mean = finite_rewards(batch).sum(axis=1)[present].mean() if present.any() else 0.0
        return (to_go(batch) - mean) / _roots(batch)


class ReturnStandardisation(Honest):
    """Row 1: rewards divided by the standard deviation of the batch's returns."""

    def weights(self, batch: TrajectoryBatch) -> Float:
        """w from everybody's returns."""
        present = batch.mask.any(axis=1)
        returns = finite_rewards(batch).sum(axis=1)[present]
        scale = returns.std() if len(returns) else 0.0
        # short enough that the clip does not hide the scale
        return 0.05 * to_go(batch) / (scale + 1e-8) / _roots(batch)


class DividesByCount(Honest):
    """Row 2: the sum divided by how many episodes there were, not by how many there may be."""

    def released(self, parameters: Float, batch: TrajectoryBatch) -> Rows:
        """Rows of a mean, scaled as if it were over B."""
        present = max(int(batch.mask.any(axis=1).sum()), 1)
        rows = self.clipped(parameters, batch) * (batch.num_trajectories / present)
        return Rows(rows=rows, clip_norm=self.clip_norm)


class BatchAdvantages(Honest):
    """Row 3: advantages normalised over the batch, as in most PPO code."""

    def weights(self, batch: TrajectoryBatch) -> Float:
        """w with mean 0 and deviation 1 over everybody's steps."""
        advantages = to_go(batch)
        chosen = advantages[batch.mask]
        if not chosen.size:
            return advantages
        scaled = (advantages - chosen.mean()) / (chosen.std() + 1e-8)
        return np.asarray(scaled / _roots(batch), dtype=np.float64)


class PrivateCritic(Honest):
    """Row 4: GAE with a critic fitted without noise to the same people, kept for the next round."""

    def __init__(self) -> None:
        super().__init__()
        self._critic: Float = np.zeros(self.policy.observation_size + 1)

    def weights(self, batch: TrajectoryBatch) -> Float:
        """w = GAE(0.95) of the critic so far; then the critic learns."""
        features = _features(batch)
        values: Float = np.asarray(features @ self._critic, dtype=np.float64)
        returns, advantages = to_go(batch), np.zeros(batch.mask.shape)
        following: Float = np.zeros(len(values))
        after: Float = np.zeros(len(values))
        for t in range(values.shape[1] - 1, -1, -1):
            delta = finite_rewards(batch)[:, t] + GAMMA * after - values[:, t]
            following = batch.mask[:, t] * (delta + GAMMA * 0.95 * following)
            after = batch.mask[:, t] * values[:, t]
            advantages[:, t] = following
        known = features[batch.mask]
        gram = known.T @ known + np.eye(known.shape[1])
        fitted = np.linalg.solve(gram, known.T @ returns[batch.mask])
        self._critic = np.asarray(fitted, dtype=np.float64)
        return advantages / _roots(batch)


class KlEarlyStop(Epochs):
    """Row 5: epochs end when the policy has moved too far on the batch's own observations."""

    def epochs(self, parameters: Float, batch: TrajectoryBatch) -> int:
        """As many as the batch allows: the number of releases tells."""
        seen = _features(batch)[batch.mask][:, :-1].astype(np.float32)
        if not len(seen):
            return 3
        old = self._log_policy(parameters, seen)
        for k in range(1, 3):
            new = self._log_policy(parameters + k * self._heard, seen)
            if (np.exp(old) * (old - new)).sum(axis=1).mean() > 0.02:
                return k
        return 3

    def _log_policy(self, parameters: Float, observations: NDArray[np.float32]) -> Float:
        logits = self.policy.bind(parameters).forward(observations).astype(np.float64)
        return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


class EpochsChargedAsOne(Epochs):
    """Row 6: three epochs are three looks at everybody; one is charged."""

    charged_releases = 1


class EpochsInOneSum(Epochs):
    """Row 6: three clipped epochs added up are clipped to 3 C, not to C."""

    charged_releases = 1

    def released(self, parameters: Float, batch: TrajectoryBatch) -> tuple[Rows]:
        """One update, the sum of the epochs."""
        rows = sum(
            (self.clipped(parameters + k * self._heard, batch) for k in range(3)),
            np.zeros((batch.num_trajectories, self.dimension)),
        )
        return (Rows(rows=rows, clip_norm=self.clip_norm),)


class StepBudget(Honest):
    """Row 7: a rollout of a fixed number of steps; what does not fit waits for the next round."""

    def __init__(self) -> None:
        super().__init__()
        self._left_over: TrajectoryBatch | None = None

    def released(self, parameters: Float, batch: TrajectoryBatch) -> tuple[LocalUpdate, ...]:
        """Rows of the steps within the budget, and of those that waited."""
        kept = self._within_budget(batch)
        rows = self.clipped(parameters, _masked(batch, kept))
        if self._left_over is not None:
            rows = np.concatenate([rows, self.clipped(parameters, self._left_over)])
        self._left_over = _masked(batch, batch.mask & ~kept)
        return (self.update(rows, batch),)

    def _within_budget(self, batch: TrajectoryBatch) -> NDArray[np.bool_]:
        order = np.cumsum(batch.mask.ravel()).reshape(batch.mask.shape)
        return batch.mask & (order <= batch.mask.size // 2)


class RunningNormaliser(Honest):
    """Row 8: observations normalised by everything seen so far."""

    def __init__(self) -> None:
        super().__init__()
        self._sums = np.zeros((3, self.policy.observation_size))

    def gradients(self, parameters: Float, batch: TrajectoryBatch) -> Float:
        """Rows of normalised observations."""
        seen = _features(batch)[batch.mask][:, :-1]
        count = np.full(self.policy.observation_size, len(seen))
        self._sums += np.stack([count, seen.sum(axis=0), (seen**2).sum(axis=0)])
        number = np.maximum(self._sums[0], 1.0)
        mean = self._sums[1] / number
        deviation = np.sqrt(np.maximum(self._sums[2] / number - mean**2, 1e-6))
        return super().gradients(parameters, _observing(batch, (mean, deviation)))


class RawQuantileClip(Honest):
    """Row 11: everybody is clipped to the median norm of the batch, then scaled up to C."""

    def clipped(self, parameters: Float, batch: TrajectoryBatch) -> Float:
        """Rows within C, but of a length that depends on everybody."""
        rows, _ = clip_rows(self.gradients(parameters, batch), 1e6)
        norms = row_norms(rows)
        norms = norms[norms > 0]
        clip = float(np.median(norms)) if len(norms) else 1.0
        return clip_rows(clip_rows(rows, clip)[0] * (self.clip_norm / clip), self.clip_norm)[0]


class BatchNorm(Honest):
    """Row 12: a batch normalisation layer on the input; its buffers outlive the round."""

    def __init__(self) -> None:
        super().__init__()
        self._running = np.zeros((2, self.policy.observation_size))

    def gradients(self, parameters: Float, batch: TrajectoryBatch) -> Float:
        """Rows of observations normalised over the batch."""
        seen = _features(batch)[batch.mask][:, :-1]
        if len(seen):
            mean, deviation = seen.mean(axis=0), np.sqrt(seen.var(axis=0) + 1e-5)
            self._running = 0.9 * self._running + 0.1 * np.stack([mean, deviation])
            batch = _observing(batch, (mean, deviation))
        return super().gradients(parameters, batch)


def _features(batch: TrajectoryBatch) -> Float:
    """[o, 1], [B, T, obs + 1]; 0 for what is no number, nothing too large to be squared."""
    finite = np.nan_to_num(batch.observations.astype(np.float64), posinf=0.0, neginf=0.0)
    ones = np.ones((*batch.mask.shape, 1))
    return np.concatenate([np.clip(finite, -1e3, 1e3), ones], axis=2)


def _observing(batch: TrajectoryBatch, scale: tuple[Float, Float]) -> TrajectoryBatch:
    mean, deviation = scale
    seen = (_features(batch)[..., :-1] - mean) / deviation
    return replace(batch, observations=seen.astype(np.float32))


def _masked(batch: TrajectoryBatch, mask: NDArray[np.bool_]) -> TrajectoryBatch:
    """``batch`` with the steps of ``mask`` moved to the front of their rows."""
    order = np.argsort(~mask, axis=1, kind="stable")

    def taken(array: NDArray[Any]) -> NDArray[Any]:
        index = order.reshape(*order.shape, *[1] * (array.ndim - 2))
        return np.take_along_axis(array, index, axis=1)

    return replace(
        batch,
        observations=taken(batch.observations),
        actions=taken(batch.actions),
        rewards=taken(batch.rewards),
        mask=taken(mask),
    )
