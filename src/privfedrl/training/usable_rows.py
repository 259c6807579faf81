"""What an agent's learners accept: the trajectories of a batch and scheduled values.

Guarantee: whether row i is usable depends on trajectory i alone. Only for what stays inside an
agent: dropping a trajectory changes what the others are averaged with.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch

__all__ = ["scheduled", "usable_rows"]


def scheduled(name: str, value: float | None, default: float) -> float:
    """A public schedule's value for this round, or the default where there is none.

    Raises:
        ConfigurationError: negative or not finite.
    """
    if value is None:
        return default
    if not 0.0 <= value < math.inf:
        raise ConfigurationError(f"{name} must be finite and >= 0, got {value!r}")
    return value


def usable_rows(batch: TrajectoryBatch, policy: MlpPolicy) -> NDArray[np.bool_]:
    """bool [B]: rows with a step, finite values and actions that the policy could have taken.

    Raises:
        ConfigurationError: the batch's observations or actions do not fit the policy.
    """
    _check_fits(batch, policy)
    happened = batch.mask
    good = np.isfinite(batch.observations).all(axis=2) & np.isfinite(batch.rewards)
    if policy.action == "gaussian":
        good &= np.isfinite(batch.actions).all(axis=2)
    else:
        good &= (batch.actions >= 0) & (batch.actions < policy.action_size)
    return np.asarray(happened.any(axis=1) & (good | ~happened).all(axis=1))


def _check_fits(batch: TrajectoryBatch, policy: MlpPolicy) -> None:
    found = (batch.observations.shape[2:], batch.actions.shape[2:], batch.actions.dtype.kind)
    continuous = policy.action == "gaussian"
    expected = (
        (policy.observation_size,),
        (policy.action_size,) if continuous else (),
        "f" if continuous else "i",
    )
    if found != expected:
        raise ConfigurationError(
            "batch must have (observation shape, action shape, kind of action) = "
            f"{expected}, got {found}"
        )
