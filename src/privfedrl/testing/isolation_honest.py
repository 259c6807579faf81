"""Small sound trainers in parts, so that a defect replaces one part and nothing else.

Guarantee: each trainer here is clean under the leak linter; it is the control of the pitfalls that
derive from it (``isolation_defects_policy``, ``_value`` and ``_round``).

Notation: B trajectories, T steps, d parameters, C the clip norm, w [B, T] weights of the policy
gradient, phi = [o, 1] features, delta the temporal-difference error, heard = what everybody hears
of a round, with its noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfedrl.privacy.mechanisms import DistributedSkellam
from privfedrl.privacy.units import IntegerSensitivity, Unit
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.returns import returns_to_go
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.training import LocalUpdate, TorchMlp, clip_rows, trajectory_weights
from privfedrl.training.trajectory_gradients import fused

__all__ = ["GAMMA", "Epochs", "Honest", "QLearning", "Rows", "finite_rewards", "to_go"]

Float = NDArray[np.float64]
IntArray = NDArray[np.int64]

GAMMA = 0.9
_CLIP = 0.5
_NETWORK = MlpPolicy(observation_size=3, hidden=(4,), action="categorical", action_size=2)
_LINEAR = MlpPolicy(observation_size=3, hidden=(), action="categorical", action_size=2)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """An update whose rows nobody checked; the public fields of a defect go into ``public``."""

    rows: Float
    clip_norm: float
    public: tuple[tuple[str, object], ...] = ()


class Honest:
    """REINFORCE, one clipped row per trajectory; noise of its own from the system."""

    unit = Unit.TRAJECTORY
    charged_releases = 1

    def __init__(self) -> None:
        self.policy = _NETWORK
        self.clip_norm = _CLIP
        self._network = TorchMlp(self.policy)

    @property
    def dimension(self) -> int:
        """d."""
        return self.policy.num_parameters

    def weights(self, batch: TrajectoryBatch) -> Float:
        """w [B, T], each row from its own trajectory."""
        return trajectory_weights(batch, gamma=GAMMA).astype(np.float64)

    def gradients(self, parameters: Float, batch: TrajectoryBatch) -> Float:
        """[B, d], unclipped."""
        self._network.load(parameters)
        weights = np.where(batch.mask, self.weights(batch), 0.0).astype(np.float32)
        rows: Float = fused(self._network, batch, weights).numpy().astype(np.float64)
        return rows

    def clipped(self, parameters: Float, batch: TrajectoryBatch) -> Float:
        """[B, d], every row within C."""
        return clip_rows(self.gradients(parameters, batch), self.clip_norm)[0]

    def local_update(
        self, parameters: Float, batch: TrajectoryBatch
    ) -> LocalUpdate | Rows | tuple[LocalUpdate | Rows, ...]:
        """What is released."""
        try:
            with np.errstate(all="ignore"):
                return self.released(parameters, batch)
        finally:
            self._network.load(parameters)  # nothing but the public policy stays

    def released(
        self, parameters: Float, batch: TrajectoryBatch
    ) -> LocalUpdate | Rows | tuple[LocalUpdate | Rows, ...]:
        """:meth:`local_update` without the warnings of floating point."""
        return self.update(self.clipped(parameters, batch), batch)

    def update(self, rows: Float, batch: TrajectoryBatch) -> LocalUpdate:
        """Rows that are within C, as the library's own checked value."""
        return LocalUpdate(
            rows=rows,
            clip_norm=self.clip_norm,
            unit=self.unit,
            nonfinite_units=0,
            batch_id=batch.batch_id,
        )

    def noise_share(self, length: int) -> IntArray:
        """A share of Skellam noise, from the system's entropy."""
        sensitivity = IntegerSensitivity(l2_squared=2**20, l1=2**20, unit=self.unit)
        mechanism = DistributedSkellam(
            sensitivity=sensitivity, share_variance=2**10, num_coordinates=length
        )
        return mechanism.sample_share()


class Epochs(Honest):
    """K epochs on one batch: K releases and K charges; the policy moves by what is heard."""

    charged_releases = 3

    def __init__(self) -> None:
        super().__init__()
        # stands for the noised releases of the epochs, which everybody hears
        self._heard = 0.2 * np.random.default_rng(7).normal(size=self.dimension)

    def epochs(self, parameters: Float, batch: TrajectoryBatch) -> int:
        """K, a public number."""
        return 3

    def released(self, parameters: Float, batch: TrajectoryBatch) -> tuple[LocalUpdate | Rows, ...]:
        """One update per epoch."""
        return tuple(
            self.update(self.clipped(parameters + k * self._heard, batch), batch)
            for k in range(self.epochs(parameters, batch))
        )


class QLearning(Honest):
    """Linear Q-learning: delta phi summed within a trajectory, then clipped; a public target."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = _LINEAR
        self._network = TorchMlp(self.policy)
        self._target = np.zeros(self.dimension)

    def temporal_differences(self, parameters: Float, batch: TrajectoryBatch) -> Float:
        """delta = r + gamma max Q_target(o') - Q(o, a), [B, T]; 0 past the end of a trajectory."""
        actions = batch.actions.astype(np.int64)[..., None]
        taken = np.take_along_axis(self._values(parameters, batch), actions, axis=2)[..., 0]
        later = np.zeros_like(taken)
        later[:, :-1] = self._values(self._target, batch).max(axis=2)[:, 1:]
        follows = np.zeros_like(batch.mask)
        follows[:, :-1] = batch.mask[:, 1:]
        delta = batch.rewards + GAMMA * np.where(follows, later, 0.0) - taken
        return np.where(batch.mask, delta, 0.0)

    def _values(self, parameters: Float, batch: TrajectoryBatch) -> Float:
        """Q [B, T, actions]."""
        actions = self.policy.action_size
        weights, bias = parameters[:-actions].reshape(actions, -1), parameters[-actions:]
        return np.asarray(batch.observations.astype(np.float64) @ weights.T + bias)

    def transitions(self, parameters: Float, batch: TrajectoryBatch) -> Float:
        """delta grad Q of every transition, [B, T, d] in the layout of the policy."""
        delta = self.temporal_differences(parameters, batch)
        chosen = np.eye(self.policy.action_size)[batch.actions] * delta[..., None]
        slopes = chosen[..., None] * batch.observations.astype(np.float64)[..., None, :]
        parts = [slopes.reshape(*batch.mask.shape, -1), chosen]
        return np.where(batch.mask[..., None], np.concatenate(parts, axis=2), 0.0)

    def gradients(self, parameters: Float, batch: TrajectoryBatch) -> Float:
        """[B, d], the sum of a trajectory's transitions."""
        return np.asarray(self.transitions(parameters, batch).sum(axis=1))


def to_go(batch: TrajectoryBatch) -> Float:
    """Discounted returns-to-go [B, T]; 0 past the end."""
    return returns_to_go(finite_rewards(batch), batch.mask, gamma=GAMMA)


def finite_rewards(batch: TrajectoryBatch) -> Float:
    """Rewards [B, T] with 0 for what is no number or past the end."""
    rewards = np.where(batch.mask, batch.rewards, 0.0).astype(np.float64)
    return np.nan_to_num(rewards, nan=0.0, posinf=0.0, neginf=0.0)
