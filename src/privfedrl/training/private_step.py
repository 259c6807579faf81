"""The private step: trajectories in, one clipped row each out.

Guarantee: row i of the update is a function of the policy and of trajectory i alone and has L2 norm
at most the update's ``clip_norm``; the update is a sum, never divided by anything private.
Proof: audits/proofs/clipped_gradient.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError
from privfedrl.privacy.units import Unit
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.training.local_update import LocalUpdate, check_clip_norm, clip_rows
from privfedrl.training.networks import TorchMlp
from privfedrl.training.reinforce import Truncation, trajectory_weights
from privfedrl.training.trajectory_gradients import TrajectoryGradient, fused

__all__ = ["ReturnRelease", "private_rows", "return_coordinate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnRelease:
    """Release the mean return as one more coordinate of the protected vector.

    Attributes:
        low, high: public bounds; returns outside are clamped.
        weight: size of the coordinate relative to the clip norm of the gradient. The L2 bound of a
            row grows from C to C sqrt(1 + weight^2), and the noise with it.
    """

    low: float
    high: float
    weight: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigurationError(
                f"return_release needs finite low < high, got {self.low!r} and {self.high!r}"
            )
        if not 1e-6 <= self.weight <= 1e6:
            raise ConfigurationError(
                f"return_release.weight must be in [1e-6, 1e6], got {self.weight!r}"
            )

    @property
    def middle(self) -> float:
        """The return that is encoded as zero."""
        return self.low / 2.0 + self.high / 2.0

    @property
    def half_width(self) -> float:
        """Distance from the middle to either bound."""
        return self.high / 2.0 - self.low / 2.0

    def total_clip(self, clip_norm: float) -> float:
        """C sqrt(1 + weight^2): the L2 bound of a row with this coordinate."""
        return clip_norm * math.sqrt(1.0 + self.weight**2)

    def mean_return(self, coordinate_sum: float, *, clip_norm: float, denominator: int) -> float:
        """The mean return that a released sum of this coordinate stands for (post-processing).

        Args:
            coordinate_sum: the noised sum over ``denominator`` units.
            clip_norm: C of the gradient part.
            denominator: public number of units, >= 1.
        """
        mean = coordinate_sum / (denominator * self.weight * clip_norm)
        return self.middle + self.half_width * mean


def return_coordinate(
    returns: NDArray[np.floating], release: ReturnRelease, *, clip_norm: float
) -> NDArray[np.float64]:
    """float64 [B], weight C clamp((R - middle) / half_width, -1, 1); zero if R is not finite."""
    values = np.asarray(returns, dtype=np.float64)
    finite = np.isfinite(values)
    clamped = np.clip(np.where(finite, values, release.middle), release.low, release.high)
    position = np.clip((clamped - release.middle) / release.half_width, -1.0, 1.0)
    return np.asarray(release.weight * clip_norm * position, dtype=np.float64)


def private_rows(
    network: TorchMlp,
    batch: TrajectoryBatch,
    *,
    clip_norm: float,
    gamma: float,
    entropy_weight: float = 0.0,
    truncation: Truncation = Truncation.NONE,
    return_release: ReturnRelease | None = None,
    gradient: TrajectoryGradient = fused,
) -> LocalUpdate:
    """Per-trajectory REINFORCE gradients of ``batch``, each clipped by itself.

    Args:
        network: the policy that collected ``batch``.
        batch: B trajectories; an absent one is a row whose mask is False throughout.
        clip_norm: C, L2 bound of the gradient part of a row.
        gamma, truncation: see :func:`trajectory_weights`.
        entropy_weight: factor of the entropy bonus, >= 0.
        return_release: append a clamped return as the last coordinate. An absent trajectory and a
            non-finite return give zero there.
        gradient: how the rows are computed; all paths agree to float rounding.
    Returns:
        LocalUpdate with rows [B, d] or [B, d + 1], ascent direction, unit TRAJECTORY.
    """
    check_clip_norm(clip_norm)
    weights = trajectory_weights(batch, gamma=gamma, truncation=truncation)
    rows, dropped = clip_rows(gradient(network, batch, weights, entropy_weight).numpy(), clip_norm)
    bound = clip_norm
    if return_release is not None:
        present = batch.mask.any(axis=1)
        column = return_coordinate(_returns(batch), return_release, clip_norm=clip_norm)
        rows = np.concatenate([rows, np.where(present, column, 0.0)[:, None]], axis=1)
        bound = return_release.total_clip(clip_norm)
        rows, _ = clip_rows(rows, bound)  # rounding of the two parts only; leaves the rest as it is
    return LocalUpdate(
        rows=rows,
        clip_norm=bound,
        unit=Unit.TRAJECTORY,
        nonfinite_units=dropped,
        batch_id=batch.batch_id,
    )


def _returns(batch: TrajectoryBatch) -> NDArray[np.float64]:
    """Undiscounted returns [B]; infinities of both signs in a row make NaN, silently."""
    with np.errstate(invalid="ignore"):
        return batch.returns
