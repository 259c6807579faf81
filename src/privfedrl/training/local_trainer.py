"""What one agent does with its experience in one round.

Guarantee: every batch feeds at most as many updates as its settings say (one unless the algorithm
uses it again and every use is charged), and every update states the unit and the L2 bound it was
clipped for.

Notation: C the clip norm, d parameters, E local steps, P persons in a sum, m trajectories of each.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError, PrivacyError, UnsupportedMechanism
from privfedrl.privacy.units import Unit
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.training.algorithms import Models
from privfedrl.training.clip_groups import ClipGroup, total_clip
from privfedrl.training.dqn_learner import DqnLearner, DqnSettings
from privfedrl.training.local_update import LocalUpdate, clip_rows
from privfedrl.training.metric_coordinates import row_groups
from privfedrl.training.networks import TorchMlp
from privfedrl.training.ppo_learner import PpoLearner
from privfedrl.training.private_step import private_rows, unit_rows
from privfedrl.training.reinforce import Truncation
from privfedrl.training.settings import TrainerSettings
from privfedrl.training.subjects import Grouping, grouped
from privfedrl.training.trajectory_gradients import TrajectoryGradient, fused, hooks

__all__ = ["LocalTrainer"]

Float = NDArray[np.float64]
Collect = Callable[[Float], TrajectoryBatch]


class LocalTrainer:
    """The training of one agent. Not for two threads; remembers which batches it has used.

    Args:
        policy: shape of the policy, with a critic where the algorithm needs one.
        gradient: how per-trajectory gradients are computed: ``fused``, or ``hooks`` of Opacus;
            they agree to float rounding (``trajectory_gradients``). None = ``fused``, or ``hooks``
            for a recurrent policy, which has no other.
        rng: of the order in which a learner inside an AGENT sees its samples; from the system if
            None. Noise and keys never come from it.
    """

    def __init__(
        self,
        policy: MlpPolicy,
        settings: TrainerSettings,
        *,
        dtype: torch.dtype = torch.float32,
        gradient: TrajectoryGradient | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.policy = policy
        self.settings = settings
        self._gradient = gradient or (hooks if policy.recurrent else fused)
        self._dtype = dtype
        self._network = TorchMlp(policy, dtype=dtype)
        self._used: Counter[bytes] = Counter()
        self._learner = _learner(policy, settings, rng)

    @property
    def dimension(self) -> int:
        """Coordinates of an update: d and the released metrics."""
        return sum(group.size for group in self._groups(1.0))

    @property
    def clip_norm(self) -> float:
        """L2 bound of a row of an update, metrics included; infinity for the control arm."""
        clip_norm = self.settings.clip_norm
        return math.inf if clip_norm is None else total_clip(self._groups(clip_norm))

    def local_update(
        self,
        parameters: Float,
        batch: TrajectoryBatch | Sequence[TrajectoryBatch],
        *,
        behaviour: Float | None = None,
        target: Float | None = None,
        admitted: Set[str] | None = None,
        current_clip: float | None = None,
    ) -> LocalUpdate:
        """One row per unit of ``batch``, a step of ``parameters`` float64 [d].

        TRAJECTORY: a row per trajectory. PERSON: ``units`` rows, one for each of the first subjects
        that may take part, zero beyond them; surplus trajectories are dropped before anything is
        computed (:func:`privfedrl.training.subjects.grouped`).

        Args:
            batch: fresh trajectories, or used ones that may be used again; of several batches the
                rows follow one another.
            behaviour: published parameters that collected the batch; None = ``parameters``.
            target: published parameters of DQN's target network; None = ``parameters``.
            admitted: PERSON only; the subjects whose participation in this release is recorded.
                None = every subject of the batch, where the plan has no cap on participations.
            current_clip: the broadcast clip of an adaptive run; None = ``clip_norm``.
        Raises:
            PrivacyError: a batch has had all its uses (this one counts even if the call fails).
            EnvironmentFault: unit PERSON and the batch names no subjects.
            ConfigurationError: an argument is out of range or does not fit the settings.
            UnsupportedMechanism: the unit is AGENT; use :meth:`local_steps`.
        """
        settings = self.settings
        if settings.unit is Unit.AGENT:
            raise UnsupportedMechanism(
                "local_update is for units TRAJECTORY and PERSON; use local_steps for AGENT"
            )
        given = (batch,) if isinstance(batch, TrajectoryBatch) else tuple(batch)
        for one in given:
            self._spend(one)
        batch = given[0] if len(given) == 1 else TrajectoryBatch.joined(given)
        models = self._models(parameters, behaviour, target)
        grouping = self._grouping(batch, admitted)
        if settings.clip_norm is None:
            if current_clip is not None:
                raise ConfigurationError("current_clip must be None when private is False")
            return self._unclipped(models, batch, grouping)
        return private_rows(
            models,
            batch,
            settings.objective,
            clip_norm=settings.clip_norm,
            critic_clip_norm=settings.critic_clip,
            return_release=settings.return_release,
            clip_quantile=settings.clip_quantile,
            current_clip=current_clip,
            grouping=grouping,
            gradient=self._gradient,
        )

    def local_steps(self, parameters: Float, collect: Collect) -> LocalUpdate:
        """The model delta of E local steps, clipped as one row [1, d].

        Each step takes a fresh batch from ``collect(theta)`` and moves by learning_rate times its
        mean trajectory gradient, or as the learner does. Everything between two releases stays
        inside the unit, so nothing but the delta needs clipping. A delta that is not finite, or
        iterates that leave the policy's range, make a zero row, not an error, and collecting goes
        on from the last iterate within it: a release must look the same whatever the data.

        Raises:
            PrivacyError: ``collect`` returned a batch that has been used before.
            UnsupportedMechanism: the unit is not AGENT; use :meth:`local_update`.
        """
        settings = self.settings
        if settings.unit is not Unit.AGENT:
            raise UnsupportedMechanism(
                f"local_steps is for unit AGENT; use local_update for {settings.unit.name}"
            )
        start = self.policy.checked(parameters).astype(np.float64)
        theta, lost = start, False
        batch_id = b""
        for _ in range(settings.local_steps):
            batch = collect(theta.copy())
            self._spend(batch)
            batch_id = batch.batch_id
            following = self._improved(theta, batch, start)
            lost = lost or not self._usable(following)
            theta = theta if lost else following
        delta = np.full_like(start, np.nan) if lost else theta - start
        return self._delta_update(delta[None, :], batch_id)

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

    def _improved(self, theta: Float, batch: TrajectoryBatch, published: Float) -> Float:
        """One local step of an AGENT."""
        if self._learner is not None:
            shaped = self.settings.objective.shaped(batch)
            if self.settings.objective.truncation is Truncation.NONE:
                # a cut is an end: nothing lies beyond it
                shaped = replace(shaped, terminated=np.ones_like(shaped.terminated))
            return self._learner.improve(theta, shaped, global_parameters=published)
        rows, _ = self._raw_rows(self._models(theta, published, None), batch, None)
        mean = np.asarray(rows.sum(axis=0) / max(len(rows), 1), dtype=np.float64)
        return theta + self.settings.learning_rate * mean

    def _models(self, parameters: Float, behaviour: Float | None, target: Float | None) -> Models:
        self._network.load(self.policy.checked(parameters))

        def other(given: Float | None) -> TorchMlp | None:
            if given is None:
                return None
            return TorchMlp(self.policy, self.policy.checked(given), dtype=self._dtype)

        return Models(self._network, other(behaviour), other(target))

    def _unclipped(
        self, models: Models, batch: TrajectoryBatch, grouping: Grouping | None
    ) -> LocalUpdate:
        rows, dropped = self._raw_rows(models, batch, grouping)
        return LocalUpdate(
            rows=rows,
            clip_norm=math.inf,
            unit=self.settings.unit,
            nonfinite_units=dropped,
            batch_id=batch.batch_id,
            private=False,
        )

    def _raw_rows(
        self, models: Models, batch: TrajectoryBatch, grouping: Grouping | None
    ) -> tuple[Float, int]:
        units = unit_rows(
            models,
            batch,
            self.settings.objective,
            grouping=grouping,
            gradient=self._gradient,
        )
        return _finite_rows(units.gradients.astype(np.float64, copy=False))

    def _grouping(self, batch: TrajectoryBatch, admitted: Set[str] | None) -> Grouping | None:
        settings = self.settings
        if settings.units is None:
            if admitted is not None:
                raise ConfigurationError(
                    f"admitted is for unit PERSON, got it for {settings.unit.name}"
                )
            return None
        return grouped(
            batch,
            max_trajectories=settings.max_trajectories_per_unit,
            max_subjects=settings.units,
            admitted=admitted,
        )

    def _groups(self, clip_norm: float) -> tuple[ClipGroup, ...]:
        settings = self.settings
        policy = self.policy
        if settings.unit is Unit.AGENT:
            return row_groups(policy.num_parameters, clip_norm=clip_norm)
        return row_groups(
            policy.actor_parameters,
            clip_norm=clip_norm,
            critic=(policy.num_parameters - policy.actor_parameters, settings.critic_clip or 1.0),
            return_release=settings.return_release,
            clip_quantile=settings.clip_quantile,
        )

    def _usable(self, theta: Float) -> bool:
        try:
            self.policy.checked(theta)
        except ConfigurationError:
            return False
        return True

    def _spend(self, batch: TrajectoryBatch) -> None:
        if self._used[batch.batch_id] >= self.settings.uses:
            uses = self.settings.uses
            raise PrivacyError(
                f"batch must be fresh or used less than {uses} times, got one that {uses} earlier "
                f"updates used: a trajectory may feed {'one release' if uses == 1 else uses} only"
            )
        self._used[batch.batch_id] += 1


def _learner(
    policy: MlpPolicy, settings: TrainerSettings, rng: np.random.Generator | None
) -> PpoLearner | DqnLearner | None:
    if settings.learner is None:
        return None
    source = np.random.default_rng() if rng is None else rng
    if isinstance(settings.learner, DqnSettings):
        return DqnLearner(policy, settings.learner, rng=source)
    return PpoLearner(policy, settings.learner, rng=source)


def _finite_rows(rows: Float) -> tuple[Float, int]:
    finite = np.asarray(np.isfinite(rows).all(axis=1))
    return np.where(finite[:, None], rows, 0.0), int(np.count_nonzero(~finite))
