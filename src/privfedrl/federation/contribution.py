"""What one agent adds to the sum: experience, clipped rows, integers, noise, ring vector.

Guarantee: whatever the environment does (raise, NaN, nothing), the result has the same shape and
the same noise; each unit's integer row is within the declared sensitivity (checked on integers).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError, EnvironmentFault
from privfedrl.federation.metrics import clip_quantile, return_release
from privfedrl.federation.noised_steps import NoisedSteps, as_faults
from privfedrl.federation.persons import Admission
from privfedrl.federation.setup import RoundSetup
from privfedrl.primitives.random import Entropy
from privfedrl.privacy import Unit
from privfedrl.rollout import TrajectoryBatch
from privfedrl.training import (
    LocalTrainer,
    LocalUpdate,
    ReinforceSettings,
    Truncation,
)
from privfedrl.training.subjects import distinct_subjects
from privfedrl.training.trajectory_gradients import fused, hooks

__all__ = ["Contribution", "PublishedModel", "contribute", "local_trainer", "published_model"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contribution:
    """A vector that is ready to be masked.

    Attributes:
        vector: uint32 or uint64 [words]; sum of the units' integers and one noise share, mod m.
        batch_ids: identities of the trajectories in it, one for each private step; spent when the
            vector leaves.
        fault: why the experience is missing (the rows are then zero). Stays in the agent.
        lost: trajectories whose environment failed; their rows are zero. Stays in the agent.
    """

    vector: NDArray[np.unsignedinteger]
    batch_ids: tuple[bytes, ...]
    fault: EnvironmentFault | None
    lost: int

    def __repr__(self) -> str:
        return f"Contribution(length={self.vector.shape[0]})"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PublishedModel:
    """What a round is about: float64 [d] parameters, and the clip norm where it adapts."""

    parameters: NDArray[np.float64]
    clip: float | None


def published_model(setup: RoundSetup, published: NDArray[np.float64]) -> PublishedModel:
    """Split what the coordinator published; inverse of ``coordinator.published``.

    Raises:
        ConfigurationError: it is no policy of the plan, or the clip leaves the plan's bounds.
    """
    bounds = setup.plan.privacy.adaptive_clip
    if bounds is None:
        setup.policy.checked(published)
        return PublishedModel(parameters=published, clip=None)
    parameters, clip = published[:-1], float(published[-1])
    setup.policy.checked(parameters)
    if not bounds.low <= clip <= bounds.high:
        raise ConfigurationError(
            f"clip must lie in [{bounds.low:g}, {bounds.high:g}], got {clip!r}"
        )
    return PublishedModel(parameters=parameters, clip=clip)


def local_trainer(setup: RoundSetup) -> LocalTrainer:
    """The trainer that the plan describes. Needs the extra ``rl``."""
    plan = setup.plan
    local = setup.step_codec is not None
    return LocalTrainer(
        setup.policy,
        ReinforceSettings(
            gamma=plan.training.gamma,
            clip_norm=plan.privacy.clip_norm,
            entropy_weight=plan.training.entropy_weight,
            truncation=Truncation(plan.training.truncation),
            return_release=return_release(plan),
            clip_quantile=clip_quantile(plan),
            unit=plan.unit,
            max_trajectories_per_unit=plan.privacy.max_trajectories_per_unit
            if plan.unit is Unit.PERSON
            else 1,
            units=plan.units_per_agent if plan.unit is Unit.PERSON else None,
            local_steps=1 if local else plan.training.local_steps,
            learning_rate=plan.training.local_learning_rate,
        ),
        # local DP-SGD takes Opacus' per-sample gradients, everything else the fused ones
        gradient=hooks if local else fused,
    )


def contribute(
    setup: RoundSetup,
    trainer: LocalTrainer,
    model: PublishedModel,
    *,
    experience: Callable[[NDArray[np.float64], int], TrajectoryBatch],
    admit: Admission | None = None,
    rotation_seed: bytes,
    entropy: Entropy,
) -> Contribution:
    """One agent's whole part in a round, before masking.

    Args:
        trainer: the agent's, from :func:`local_trainer`; it remembers which batches were used.
        model: of the round.
        experience: (parameters, local step) -> fresh trajectories.
        admit: who may take part, for unit PERSON; see ``persons``.
        rotation_seed: 32 public bytes of the round.
        entropy: for rounding and noise.
    """
    # out here: an error of the caller's must not look like one of the environment
    parameters, clip = model.parameters, model.clip
    lost: list[int] = []

    def collect(theta: NDArray[np.float64]) -> TrajectoryBatch:
        batch = experience(theta, len(lost))
        _check_batch(setup, batch)
        lost.append(batch.lost)
        # a public shape, see padded; whatever lies beyond it is dropped trajectory by trajectory
        horizon = setup.plan.fleet.horizon
        return batch.within(horizon).padded(horizon)

    if setup.step_codec is not None:
        steps = NoisedSteps(setup, rotation_seed=rotation_seed, entropy=entropy)
        delta = steps.run(trainer, parameters, collect)
        update, used, fault = delta.update, delta.batch_ids, delta.fault
    else:
        update, fault = _update(setup, trainer, parameters, clip, collect, admit)
        used = (update.batch_id,)
    integers = setup.codec.encode_units(update.rows, rotation_seed=rotation_seed, entropy=entropy)
    if setup.mechanism is not None and setup.plan.privacy.distributed:
        integers = integers + setup.mechanism.sample_share(entropy)
    return Contribution(
        vector=setup.codec.to_ring(integers),
        batch_ids=used,
        fault=fault,
        lost=sum(lost),
    )


def _update(
    setup: RoundSetup,
    trainer: LocalTrainer,
    parameters: NDArray[np.float64],
    clip: float | None,
    collect: Callable[[NDArray[np.float64]], TrajectoryBatch],
    admit: Admission | None,
) -> tuple[LocalUpdate, EnvironmentFault | None]:
    try:
        with as_faults():
            if setup.plan.unit is Unit.AGENT:
                return trainer.local_steps(parameters, collect), None
            batch = collect(parameters)
            named = () if admit is None else distinct_subjects(batch)
        # a register that cannot be written must stop the agent, not look like a broken environment
        admitted = None if admit is None else admit(named)
        with as_faults():
            update = trainer.local_update(parameters, batch, current_clip=clip, admitted=admitted)
            return update, None
    except EnvironmentFault as fault:
        zeros = LocalUpdate.zeros(
            num_units=setup.plan.units_per_agent,
            dimension=setup.dimension,
            clip_norm=setup.total_clip,
            unit=setup.plan.unit,
        )
        return zeros, fault


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
