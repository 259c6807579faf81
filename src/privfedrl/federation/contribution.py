"""What one agent adds to the sum: experience, clipped rows, integers, noise, ring vector.

Guarantee: whatever the environment does (raise, NaN, nothing), the result has the same shape and
the same noise; each unit's integer row is within the declared sensitivity (checked on integers).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError, EnvironmentFault
from privfedrl.federation.held_experience import HeldExperience, TakenExperience
from privfedrl.federation.metrics import clip_quantile, return_release
from privfedrl.federation.noised_steps import NoisedSteps, as_faults
from privfedrl.federation.persons import Admission
from privfedrl.federation.setup import RoundSetup
from privfedrl.plan import AgentLearner, Plan
from privfedrl.primitives.random import Entropy
from privfedrl.privacy import Unit
from privfedrl.rollout import TrajectoryBatch
from privfedrl.training import (
    DqnSettings,
    LocalTrainer,
    LocalUpdate,
    Objective,
    PpoSettings,
    TrainerSettings,
    Truncation,
)
from privfedrl.training.subjects import distinct_subjects
from privfedrl.training.trajectory_gradients import hooks

__all__ = ["Contribution", "PublishedModel", "contribute", "local_trainer", "published_model"]


# a clip range that no ratio of a float32 policy leaves in one pass
_NEVER = 1e30


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contribution:
    """A vector that is ready to be masked.

    Attributes:
        vector: uint32 or uint64 [words]; sum of the units' integers and one noise share, mod m.
        spent: identities of the trajectories in it, the newest batch first, a tuple for each
            private step; each is used once more when the vector leaves.
        fault: why the experience is missing (the rows are then zero). Stays in the agent.
        lost: trajectories whose environment failed; their rows are zero. Stays in the agent.
    """

    vector: NDArray[np.unsignedinteger]
    spent: tuple[tuple[bytes, ...], ...]
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


def local_trainer(setup: RoundSetup, *, rng: np.random.Generator | None = None) -> LocalTrainer:
    """The trainer that the plan describes; ``rng`` as for it. Needs the extra ``rl``."""
    plan = setup.plan
    local, agent = setup.step_codec is not None, plan.unit is Unit.AGENT
    person = plan.unit is Unit.PERSON
    return LocalTrainer(
        setup.policy,
        TrainerSettings(
            objective=_objective(plan),
            clip_norm=plan.privacy.clip_norm,
            critic_clip_norm=None if agent else plan.privacy.critic_clip_norm,
            return_release=return_release(plan),
            clip_quantile=clip_quantile(plan),
            unit=plan.unit,
            uses=plan.uses_per_trajectory,
            max_trajectories_per_unit=plan.privacy.max_trajectories_per_unit if person else 1,
            units=plan.units_per_agent if person else None,
            local_steps=1 if local else plan.training.local_steps,
            learning_rate=plan.training.local_learning_rate,
            learner=_learner(plan) if agent else None,
        ),
        # local DP-SGD takes Opacus' per-sample gradients, everything else what the policy allows
        gradient=hooks if local else None,
        rng=rng,
    )


def _objective(plan: Plan) -> Objective:
    training = plan.training
    # a learner corrects for the mixture itself
    mixture = training.behaviour_mixture if training.algorithm == "reinforce" else 0.0
    return Objective(
        algorithm=training.algorithm,
        gamma=training.gamma,
        truncation=Truncation(training.truncation),
        entropy_weight=training.entropy_weight,
        gae_lambda=training.gae_lambda,
        value_scale=training.value_scale,
        advantage_scale=training.advantage_scale,
        clip_range=training.clip_range,
        advantages=training.advantages,
        guidance_weight=training.guidance_weight,
        behaviour_mixture=mixture,
        reward_low=-math.inf if training.reward_low is None else training.reward_low,
        reward_high=math.inf if training.reward_high is None else training.reward_high,
        step_cost=training.step_cost,
    )


def _learner(plan: Plan) -> PpoSettings | DqnSettings | None:
    """How an AGENT learns inside; None: plain gradient steps."""
    training = plan.training
    chosen = AgentLearner() if training.learner is None else training.learner
    if training.algorithm == "reinforce":
        return None
    if training.algorithm == "dqn":
        return DqnSettings(
            gamma=training.gamma,
            learning_rate=training.local_learning_rate,
            batch_size=chosen.minibatch,
            updates_per_step=chosen.updates_per_step,
            replay_capacity=chosen.replay_capacity,
            target_interval=training.target_rounds,
            reset_optimiser=chosen.reset_optimiser,
            value_scale=training.value_scale,
        )
    return PpoSettings(
        gamma=training.gamma,
        gae_lambda=training.gae_lambda,
        epochs=training.epochs,
        minibatch_size=chosen.minibatch,
        learning_rate=training.local_learning_rate,
        entropy_weight=training.entropy_weight,
        reset_optimiser=chosen.reset_optimiser,
        # A2C clips no ratio: a minibatch after the first is weighed by it, and none is clipped away
        clip_range=_NEVER if training.algorithm == "a2c" else training.clip_range,
        value_scale=training.value_scale,
        normalise_advantages=chosen.normalise_advantages,
        normalise_observations=chosen.normalise_observations,
        target_kl=chosen.target_kl,
        guidance_weight=training.guidance_weight,
        behaviour_mixture=training.behaviour_mixture,
        private_critic_hidden=chosen.private_critic,
    )


def contribute(
    setup: RoundSetup,
    trainer: LocalTrainer,
    model: PublishedModel,
    *,
    experience: Callable[[NDArray[np.float64], int], TrajectoryBatch],
    held: HeldExperience | None = None,
    round_index: int = 0,
    admit: Admission | None = None,
    rotation_seed: bytes,
    entropy: Entropy,
) -> Contribution:
    """One agent's whole part in a round, before masking.

    Args:
        trainer: the agent's, from :func:`local_trainer`; it remembers which batches were used.
        model: of the round.
        experience: (parameters, local step) -> fresh trajectories.
        held: what the agent keeps between rounds; the same object in all of them. None = nothing:
            trajectories are used once, and the target network is the current policy.
        round_index: of the plan's rounds, from 0.
        admit: who may take part, for unit PERSON; see ``persons``.
        rotation_seed: 32 public bytes of the round.
        entropy: for rounding and noise.
    """
    # out here: an error of the caller's must not look like one of the environment
    parameters, clip = model.parameters, model.clip
    lost: list[int] = []
    broken: list[EnvironmentFault | None] = []

    def collect(theta: NDArray[np.float64]) -> TrajectoryBatch:
        batch = _checked(setup, experience(theta, len(lost)))
        lost.append(batch.lost)
        if batch.lost == batch.num_trajectories:
            broken.append(batch.fault)
        # a public shape, see padded; whatever lies beyond it is dropped trajectory by trajectory
        horizon = setup.plan.fleet.horizon
        return batch.within(horizon).padded(horizon)

    if setup.step_codec is not None:
        steps = NoisedSteps(setup, rotation_seed=rotation_seed, entropy=entropy)
        delta = steps.run(trainer, parameters, collect)
        update, fault = delta.update, delta.fault
        spent: tuple[tuple[bytes, ...], ...] = tuple((one,) for one in delta.batch_ids)
    elif setup.plan.unit is Unit.AGENT:
        update, fault = _delta(setup, trainer, parameters, collect)
        spent = ((update.batch_id,),)
    else:
        source = HeldExperience(setup) if held is None else held
        take = partial(source.take, parameters, round_index, _as_faults(collect))
        update, used, fault = _rows(setup, trainer, parameters, clip, take, admit)
        spent = (used,)
    integers = setup.codec.encode_units(update.rows, rotation_seed=rotation_seed, entropy=entropy)
    if setup.mechanism is not None and setup.plan.privacy.distributed:
        integers = integers + setup.mechanism.sample_share(entropy)
    return Contribution(
        vector=setup.codec.to_ring(integers),
        spent=spent,
        # where every trajectory failed by itself nothing was raised
        fault=next(iter(broken), None) if fault is None else fault,
        lost=sum(lost),
    )


def _delta(
    setup: RoundSetup,
    trainer: LocalTrainer,
    parameters: NDArray[np.float64],
    collect: Callable[[NDArray[np.float64]], TrajectoryBatch],
) -> tuple[LocalUpdate, EnvironmentFault | None]:
    try:
        with as_faults():
            return trainer.local_steps(parameters, collect), None
    except EnvironmentFault as fault:
        return _nothing(setup), fault


def _rows(
    setup: RoundSetup,
    trainer: LocalTrainer,
    parameters: NDArray[np.float64],
    clip: float | None,
    take: Callable[[], TakenExperience],
    admit: Admission | None,
) -> tuple[LocalUpdate, tuple[bytes, ...], EnvironmentFault | None]:
    """Rows of the units, and the identities of the batches that they come from, newest first."""
    try:
        taken = take()
        if taken.fault is not None and admit is not None:
            raise taken.fault
        with as_faults():
            named = () if admit is None else distinct_subjects(taken.batches[-1])
        # a register that cannot be written must stop the agent, not look like a broken environment
        admitted = None if admit is None else admit(named)
        with as_faults():
            update = trainer.local_update(
                parameters,
                taken.batches,
                behaviour=taken.behaviour,
                target=taken.target,
                current_clip=clip,
                admitted=admitted,
            )
            return update, taken.identities[::-1], taken.fault
    except EnvironmentFault as fault:
        nothing = _nothing(setup)
        return nothing, (nothing.batch_id,), fault


def _as_faults(
    collect: Callable[[NDArray[np.float64]], TrajectoryBatch],
) -> Callable[[NDArray[np.float64]], TrajectoryBatch]:
    def collected(parameters: NDArray[np.float64]) -> TrajectoryBatch:
        with as_faults():
            return collect(parameters)

    return collected


def _nothing(setup: RoundSetup) -> LocalUpdate:
    """The zero rows of an agent whose experience is missing."""
    return LocalUpdate.zeros(
        num_units=setup.plan.units_per_agent,
        dimension=setup.dimension,
        clip_norm=setup.total_clip,
        unit=setup.plan.unit,
    )


def _checked(setup: RoundSetup, batch: TrajectoryBatch) -> TrajectoryBatch:
    """An own copy of a batch; refuses one that is not the plan's, which could not be clipped.

    Here, and not where it is used: it is kept for further rounds beside batches that are sound, and
    whoever made it may use its memory again.
    """
    plan, policy = setup.plan, setup.policy
    if not isinstance(batch, TrajectoryBatch):
        raise EnvironmentFault(f"a batch must be a TrajectoryBatch, got {type(batch).__name__}")
    if batch.num_trajectories != plan.fleet.trajectories:
        raise EnvironmentFault(
            f"a batch must hold {plan.fleet.trajectories} trajectories, "
            f"got {batch.num_trajectories}"
        )
    return batch.owned(
        observation_size=policy.observation_size,
        action_size=policy.action_size if policy.action == "gaussian" else None,
    )
