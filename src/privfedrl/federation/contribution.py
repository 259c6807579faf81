"""What one agent adds to the sum: experience, clipped rows, integers, noise, ring vector.

Guarantee: whatever the environment does (raise, NaN, nothing), the result has the same shape and
the same noise share; each unit's integer row is within the declared sensitivity (checked on
integers).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import EnvironmentFault, PrivacyError
from privfedrl.federation.setup import RoundSetup
from privfedrl.primitives.random import Entropy
from privfedrl.privacy import Unit
from privfedrl.rollout import TrajectoryBatch
from privfedrl.training import (
    LocalTrainer,
    LocalUpdate,
    ReinforceSettings,
    ReturnRelease,
    Truncation,
)

__all__ = ["Contribution", "contribute", "local_trainer"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contribution:
    """A vector that is ready to be masked.

    Attributes:
        vector: uint32 or uint64 [words]; sum of the units' integers and one noise share, mod m.
        batch_id: identity of the trajectories in it; spent when the vector leaves.
        fault: why the experience is missing (the rows are then zero). Stays in the agent.
        lost: trajectories whose environment failed; their rows are zero. Stays in the agent.
    """

    vector: NDArray[np.unsignedinteger]
    batch_id: bytes
    fault: EnvironmentFault | None
    lost: int

    def __repr__(self) -> str:
        return f"Contribution(length={self.vector.shape[0]})"


def local_trainer(setup: RoundSetup) -> LocalTrainer:
    """The trainer that the plan describes. Needs the extra ``rl``."""
    plan = setup.plan
    release = plan.privacy.mean_return
    return LocalTrainer(
        setup.policy,
        ReinforceSettings(
            gamma=plan.training.gamma,
            clip_norm=plan.privacy.clip_norm,
            entropy_weight=plan.training.entropy_weight,
            truncation=Truncation(plan.training.truncation),
            return_release=None
            if release is None
            else ReturnRelease(low=release.low, high=release.high, weight=release.weight),
            unit=plan.unit,
            local_steps=plan.training.local_steps,
            learning_rate=plan.training.local_learning_rate,
        ),
    )


def contribute(
    setup: RoundSetup,
    trainer: LocalTrainer,
    parameters: NDArray[np.float64],
    *,
    experience: Callable[[NDArray[np.float64], int], TrajectoryBatch],
    rotation_seed: bytes,
    entropy: Entropy,
) -> Contribution:
    """One agent's whole part in a round, before masking.

    Args:
        trainer: the agent's, from :func:`local_trainer`; it remembers which batches were used.
        parameters: float64 [d], the policy of the round.
        experience: (parameters, local step) -> fresh trajectories.
        rotation_seed: 32 public bytes of the round.
        entropy: for rounding and noise.
    """
    lost: list[int] = []

    def collect(theta: NDArray[np.float64]) -> TrajectoryBatch:
        batch = experience(theta, len(lost))
        _check_batch(setup, batch)
        lost.append(batch.lost)
        return batch.padded(setup.plan.fleet.horizon)  # a public shape, see padded

    update, fault = _update(setup, trainer, parameters, collect)
    integers = setup.codec.encode_units(update.rows, rotation_seed=rotation_seed, entropy=entropy)
    if setup.mechanism is not None:
        integers = integers + setup.mechanism.sample_share(entropy)
    return Contribution(
        vector=setup.codec.to_ring(integers),
        batch_id=update.batch_id,
        fault=fault,
        lost=sum(lost),
    )


def _update(
    setup: RoundSetup,
    trainer: LocalTrainer,
    parameters: NDArray[np.float64],
    collect: Callable[[NDArray[np.float64]], TrajectoryBatch],
) -> tuple[LocalUpdate, EnvironmentFault | None]:
    try:
        with _faults():
            if setup.plan.unit is Unit.AGENT:
                return trainer.local_steps(parameters, collect), None
            return trainer.local_update(parameters, collect(parameters)), None
    except EnvironmentFault as fault:
        zeros = LocalUpdate.zeros(
            num_units=setup.plan.units_per_agent,
            dimension=setup.dimension,
            clip_norm=setup.total_clip,
            unit=setup.plan.unit,
        )
        return zeros, fault


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Any error that data could cause becomes a fault: escaping, it would show that it was caused.

    A PrivacyError is about the caller (the same batch twice), not about what is in the batch.
    """
    try:
        yield
    except (EnvironmentFault, PrivacyError):
        raise
    except Exception as error:
        raise EnvironmentFault(f"the experience cannot be used: {type(error).__name__}") from error


def _check_batch(setup: RoundSetup, batch: TrajectoryBatch) -> None:
    """Refuse a batch that is not the plan's: in another shape it could not be clipped per unit."""
    plan = setup.plan
    if not isinstance(batch, TrajectoryBatch):
        raise EnvironmentFault(f"a batch must be a TrajectoryBatch, got {type(batch).__name__}")
    if batch.num_trajectories != plan.fleet.trajectories:
        raise EnvironmentFault(
            f"a batch must hold {plan.fleet.trajectories} trajectories, "
            f"got {batch.num_trajectories}"
        )
    if batch.mask.shape[1] > plan.fleet.horizon:
        raise EnvironmentFault(
            f"a trajectory must end after {plan.fleet.horizon} steps, got {batch.mask.shape[1]}"
        )
