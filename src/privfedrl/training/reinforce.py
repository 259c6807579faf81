"""REINFORCE weights: how much each step's log-probability counts, within its own trajectory.

Guarantee: row i of the weights is a function of trajectory i alone. There is no batch baseline, no
batch standardisation and no running statistic: any of them lets one trajectory move the clipped
rows of all the others (measured: up to 6.3 clip norms instead of one).

Notation: B trajectories, T steps, r_it rewards, l_i the length of trajectory i, G_it returns-to-go.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError
from privfedrl.rollout.returns import returns_to_go, whiten_per_trajectory
from privfedrl.rollout.trajectory import TrajectoryBatch

__all__ = ["Truncation", "check_discount", "trajectory_weights"]


class Truncation(Enum):
    """What is assumed of the rewards beyond the step at which a time limit cut a trajectory.

    NONE: nothing; the trajectory is worth what it collected.
    CONTINUE: its own mean reward, for ever, discounted: a bootstrap that needs no critic (and so
        no state learned from other trajectories). Requires gamma < 1.
    BOOTSTRAP: what the published critic, or the Q network, says of the last state that was seen.
    """

    NONE = "none"
    CONTINUE = "continue"
    BOOTSTRAP = "bootstrap"


def check_discount(gamma: float, truncation: Truncation) -> None:
    """ConfigurationError unless gamma is in [0, 1], and below 1 for ``CONTINUE``."""
    if not isinstance(truncation, Truncation):
        raise ConfigurationError(f"truncation must be a Truncation, got {truncation!r}")
    if not 0.0 <= gamma <= 1.0:  # False for NaN too
        raise ConfigurationError(f"gamma must be in [0, 1], got {gamma!r}")
    if truncation is Truncation.CONTINUE and gamma >= 1.0:
        raise ConfigurationError(
            f"gamma must be < 1 when truncation is 'continue', got {gamma!r}: "
            "an undiscounted reward for ever has no finite value"
        )


def trajectory_weights(
    batch: TrajectoryBatch, *, gamma: float, truncation: Truncation = Truncation.NONE
) -> NDArray[np.float32]:
    """Returns-to-go, whitened within each trajectory, divided by the root of its length.

    Args:
        batch: B trajectories.
        gamma: discount in [0, 1].
        truncation: see :class:`Truncation`.
    Returns:
        float32 [B, T], zero at masked steps. A row whose rewards are not finite is not finite at
        its own steps: the clipper drops that trajectory and no other.
    Raises:
        ConfigurationError: gamma or truncation is out of range.
    """
    check_discount(gamma, truncation)
    if truncation is Truncation.BOOTSTRAP:
        raise ConfigurationError(
            "truncation must be 'none' or 'continue' for REINFORCE, which has no critic, "
            "got 'bootstrap'"
        )
    rewards = np.where(batch.mask, batch.rewards, 0.0).astype(np.float64)
    lengths = np.maximum(batch.lengths, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        # finite rewards can have a sum that is not
        worth = np.zeros(len(rewards))
        if truncation is Truncation.CONTINUE:
            worth = rewards.sum(axis=1) / lengths / (1.0 - gamma)
    finite = np.isfinite(rewards).all(axis=1) & np.isfinite(worth)
    rewards[~finite] = worth[~finite] = 0.0
    returns = returns_to_go(
        rewards,
        batch.mask,
        gamma=gamma,
        truncated=batch.truncated & ~batch.terminated,
        continuation=worth,
    )
    weights = whiten_per_trajectory(returns, batch.mask) / np.sqrt(lengths)[:, None]
    weights = np.where(batch.mask & ~finite[:, None], np.nan, weights)
    return np.where(batch.mask, weights, 0.0).astype(np.float32)
