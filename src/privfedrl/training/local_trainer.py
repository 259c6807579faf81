"""What one agent does with its experience in one round.

Guarantee: every batch feeds at most one update, and every update states the unit and the L2 bound
it was clipped for. The unclipped arm of an experiment exists only under the name ``private=False``.

Notation: C the clip norm, d parameters, E local steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError, PrivacyError, UnsupportedMechanism
from privfedrl.privacy.units import Unit
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.training.local_update import LocalUpdate, check_clip_norm, clip_rows
from privfedrl.training.networks import TorchMlp
from privfedrl.training.private_step import ReturnRelease, private_rows
from privfedrl.training.reinforce import Truncation, check_discount, trajectory_weights
from privfedrl.training.trajectory_gradients import fused

__all__ = ["LocalTrainer", "ReinforceSettings"]

Float = NDArray[np.float64]
Collect = Callable[[Float], TrajectoryBatch]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinforceSettings:
    """Everything about the local step that privacy or the result depends on.

    Attributes:
        gamma: discount in [0, 1].
        clip_norm: C, L2 bound of one unit's gradient (or model delta); None only if not private.
        entropy_weight: factor of the entropy bonus, finite and >= 0.
        truncation: see :class:`Truncation`.
        return_release: release the mean return as one more coordinate (TRAJECTORY only).
        unit: TRAJECTORY (one row per trajectory) or AGENT (one row, the model delta).
        local_steps: E >= 1 gradient steps between releases; more than one for AGENT only.
        learning_rate: of the local steps, finite and > 0; used by AGENT only.
        private: False is the control arm of an experiment: no clipping, no guarantee.
    """

    gamma: float
    clip_norm: float | None
    entropy_weight: float = 0.0
    truncation: Truncation = Truncation.NONE
    return_release: ReturnRelease | None = None
    unit: Unit = Unit.TRAJECTORY
    local_steps: int = 1
    learning_rate: float = 1.0
    private: bool = True

    def __post_init__(self) -> None:
        check_discount(self.gamma, self.truncation)
        for name, low in (("entropy_weight", 0.0), ("learning_rate", 1e-300)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= low):
                raise ConfigurationError(f"{name} must be finite and >= {low}, got {value!r}")
        if isinstance(self.local_steps, bool) or not isinstance(self.local_steps, int):
            raise ConfigurationError(f"local_steps must be an integer, got {self.local_steps!r}")
        if self.local_steps < 1:
            raise ConfigurationError(f"local_steps must be >= 1, got {self.local_steps}")
        self._check_clipping()
        self._check_unit()

    def _check_clipping(self) -> None:
        if self.private:
            if self.clip_norm is None:
                raise ConfigurationError(
                    "clip_norm must be a number when private is True, got None; "
                    "the unclipped control arm is private=False"
                )
            check_clip_norm(self.clip_norm)
        elif self.clip_norm is not None or self.return_release is not None:
            raise ConfigurationError(
                "clip_norm and return_release must be None when private is False: "
                "the control arm neither clips nor releases privately"
            )

    def _check_unit(self) -> None:
        if self.unit is Unit.PERSON:
            raise UnsupportedMechanism(
                "unit PERSON needs trajectories grouped by subject before clipping; "
                "this trainer clips trajectories (TRAJECTORY) or the model delta (AGENT)"
            )
        if self.unit is Unit.TRAJECTORY and self.local_steps > 1:
            raise UnsupportedMechanism(
                f"local_steps must be 1 for unit TRAJECTORY, got {self.local_steps}: "
                "later iterates depend on earlier trajectories without noise, "
                "so clipping each row does not bound what one trajectory can change"
            )
        if self.unit is Unit.AGENT and self.return_release is not None:
            raise UnsupportedMechanism("return_release is offered for unit TRAJECTORY only")


class LocalTrainer:
    """REINFORCE on one agent. Not for two threads; remembers which batches it has used."""

    def __init__(
        self,
        policy: MlpPolicy,
        settings: ReinforceSettings,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.policy = policy
        self.settings = settings
        self._network = TorchMlp(policy, dtype=dtype)
        self._spent: set[bytes] = set()

    @property
    def dimension(self) -> int:
        """Coordinates of an update: d, or d + 1 when the mean return is released."""
        return self.policy.num_parameters + (self.settings.return_release is not None)

    @property
    def clip_norm(self) -> float:
        """L2 bound of a row of an update; infinity for the non-private control."""
        settings = self.settings
        if settings.clip_norm is None:
            return math.inf
        if settings.return_release is None:
            return float(settings.clip_norm)
        return settings.return_release.total_clip(settings.clip_norm)

    def local_update(self, parameters: Float, batch: TrajectoryBatch) -> LocalUpdate:
        """One row per trajectory of ``batch``, collected under ``parameters`` float64 [d].

        Raises:
            PrivacyError: the batch has been used before (it is spent even if this call fails).
            UnsupportedMechanism: the unit is AGENT; use :meth:`local_steps`.
        """
        settings = self.settings
        if settings.unit is not Unit.TRAJECTORY:
            raise UnsupportedMechanism(f"local_update is for unit TRAJECTORY, not {settings.unit}")
        self._spend(batch)
        self._network.load(self.policy.checked(parameters))
        if settings.clip_norm is None:
            return self._unclipped(batch)
        return private_rows(
            self._network,
            batch,
            clip_norm=settings.clip_norm,
            gamma=settings.gamma,
            entropy_weight=settings.entropy_weight,
            truncation=settings.truncation,
            return_release=settings.return_release,
        )

    def local_steps(self, parameters: Float, collect: Collect) -> LocalUpdate:
        """The model delta of E plain gradient-ascent steps, clipped as one row [1, d].

        Each step moves by learning_rate times the mean trajectory gradient of a fresh batch from
        ``collect(theta)``. Everything between two releases stays inside the unit, so nothing but
        the delta needs clipping. A delta that is not finite, or iterates that leave the policy's
        range, make a zero row, not an error: a release must look the same whatever the data.

        Raises:
            PrivacyError: ``collect`` returned a batch that has been used before.
            UnsupportedMechanism: the unit is TRAJECTORY; use :meth:`local_update`.
        """
        settings = self.settings
        if settings.unit is not Unit.AGENT:
            raise UnsupportedMechanism(f"local_steps is for unit AGENT, not {settings.unit}")
        start = self.policy.checked(parameters).astype(np.float64)
        theta = start
        batch_id = b""
        for _ in range(settings.local_steps):
            batch = collect(theta.copy())
            self._spend(batch)
            batch_id = batch.batch_id
            theta = theta + settings.learning_rate * self._mean_gradient(theta, batch)
            if not self._usable(theta):
                theta = np.full_like(start, np.nan)
                break
        return self._delta_update((theta - start)[None, :], batch_id)

    def _delta_update(self, delta: Float, batch_id: bytes) -> LocalUpdate:
        bound = self.clip_norm
        rows, dropped = clip_rows(delta, bound) if math.isfinite(bound) else _finite_rows(delta)
        return LocalUpdate(
            rows=rows,
            clip_norm=bound,
            unit=Unit.AGENT,
            nonfinite_units=dropped,
            batch_id=batch_id,
            private=self.settings.private,
        )

    def _mean_gradient(self, theta: Float, batch: TrajectoryBatch) -> Float:
        rows, _ = _finite_rows(self._gradients(theta, batch))
        return np.asarray(rows.sum(axis=0) / max(len(rows), 1), dtype=np.float64)

    def _gradients(self, theta: Float, batch: TrajectoryBatch) -> Float:
        settings = self.settings
        self._network.load(theta)
        weights = trajectory_weights(batch, gamma=settings.gamma, truncation=settings.truncation)
        rows = fused(self._network, batch, weights, settings.entropy_weight)
        return np.asarray(rows.to(torch.float64).numpy(), dtype=np.float64)

    def _unclipped(self, batch: TrajectoryBatch) -> LocalUpdate:
        rows, dropped = _finite_rows(self._gradients(self._network.flat(), batch))
        return LocalUpdate(
            rows=rows,
            clip_norm=math.inf,
            unit=Unit.TRAJECTORY,
            nonfinite_units=dropped,
            batch_id=batch.batch_id,
            private=False,
        )

    def _usable(self, theta: Float) -> bool:
        try:
            self.policy.checked(theta)
        except ConfigurationError:
            return False
        return True

    def _spend(self, batch: TrajectoryBatch) -> None:
        if batch.batch_id in self._spent:
            raise PrivacyError(
                "batch must be fresh, got one that an earlier update used: "
                "a trajectory may feed one release only"
            )
        self._spent.add(batch.batch_id)


def _finite_rows(rows: Float) -> tuple[Float, int]:
    finite = np.asarray(np.isfinite(rows).all(axis=1))
    return np.where(finite[:, None], rows, 0.0), int(np.count_nonzero(~finite))
