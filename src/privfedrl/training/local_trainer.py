"""What one agent does with its experience in one round.

Guarantee: every batch feeds at most one update, and every update states the unit and the L2 bound
it was clipped for. The unclipped arm of an experiment exists only under the name ``private=False``.

Notation: C the clip norm, d parameters, E local steps, P persons in a sum, m trajectories of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Set
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError, PrivacyError, UnsupportedMechanism
from privfedrl.privacy.units import Unit
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.training.clip_groups import ClipGroup, total_clip
from privfedrl.training.local_update import LocalUpdate, check_clip_norm, clip_rows
from privfedrl.training.metric_coordinates import ClipQuantile, ReturnRelease, row_groups
from privfedrl.training.networks import TorchMlp
from privfedrl.training.private_step import private_rows, unit_rows
from privfedrl.training.reinforce import Truncation, check_discount
from privfedrl.training.subjects import Grouping, grouped
from privfedrl.training.trajectory_gradients import TrajectoryGradient, fused

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
        return_release: release the mean return, and its spread if asked, as coordinates of the row
            (TRAJECTORY and PERSON).
        unit: TRAJECTORY (one row per trajectory), PERSON (one row per person, the clipped sum of
            that person's gradients) or AGENT (one row, the model delta).
        local_steps: E >= 1 gradient steps between releases; more than one for AGENT only.
        learning_rate: of the local steps, finite and > 0; used by AGENT only.
        private: False is the control arm of an experiment: no clipping, no guarantee.
        clip_quantile: release whether a unit was within the current clip (TRAJECTORY and PERSON).
        max_trajectories_per_unit: m >= 1, trajectories of a person that count; PERSON only.
        units: P >= 1, rows of every update, whatever the batch holds; PERSON only, required there.
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
    clip_quantile: ClipQuantile | None = None
    max_trajectories_per_unit: int = 1
    units: int | None = None

    def __post_init__(self) -> None:
        check_discount(self.gamma, self.truncation)
        for name, low in (("entropy_weight", 0.0), ("learning_rate", 1e-300)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= low):
                raise ConfigurationError(f"{name} must be finite and >= {low}, got {value!r}")
        for name in ("local_steps", "max_trajectories_per_unit"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} must be an integer >= 1, got {value!r}")
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
        elif (self.clip_norm, self.return_release, self.clip_quantile) != (None, None, None):
            raise ConfigurationError(
                "clip_norm, return_release and clip_quantile must be None when private is False: "
                "the control arm neither clips nor releases privately"
            )

    def _check_unit(self) -> None:
        if self.unit is Unit.PERSON:
            if isinstance(self.units, bool) or not isinstance(self.units, int) or self.units < 1:
                raise ConfigurationError(
                    f"units must be the public number of persons in a sum for unit PERSON, "
                    f"got {self.units!r}"
                )
        elif self.units is not None or self.max_trajectories_per_unit != 1:
            raise ConfigurationError(
                f"units and max_trajectories_per_unit are for unit PERSON, got {self.units!r} and "
                f"{self.max_trajectories_per_unit!r} for {self.unit.name}"
            )
        if self.unit is not Unit.AGENT and self.local_steps > 1:
            raise UnsupportedMechanism(
                f"local_steps must be 1 for unit {self.unit.name}, got {self.local_steps}: "
                "later iterates depend on earlier trajectories without noise, so clipping each row "
                "does not bound what one unit can change; use unit AGENT, whose delta is clipped "
                "as a whole, or noise in every local step (mechanism 'local-skellam')"
            )
        for name in ("return_release", "clip_quantile"):
            if self.unit is Unit.AGENT and getattr(self, name) is not None:
                raise UnsupportedMechanism(
                    f"{name} is offered for units TRAJECTORY and PERSON; for AGENT leave it out "
                    "(a fixed clip_norm, no released return)"
                )


class LocalTrainer:
    """REINFORCE on one agent. Not for two threads; remembers which batches it has used.

    ``gradient`` chooses how per-trajectory gradients are computed: ``fused``, or ``hooks`` of
    Opacus; they agree to float rounding (``trajectory_gradients``).
    """

    def __init__(
        self,
        policy: MlpPolicy,
        settings: ReinforceSettings,
        *,
        dtype: torch.dtype = torch.float32,
        gradient: TrajectoryGradient = fused,
    ) -> None:
        self.policy = policy
        self.settings = settings
        self._gradient = gradient
        self._network = TorchMlp(policy, dtype=dtype)
        self._spent: set[bytes] = set()

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
        batch: TrajectoryBatch,
        *,
        admitted: Set[str] | None = None,
        current_clip: float | None = None,
    ) -> LocalUpdate:
        """One row per unit of ``batch``, collected under ``parameters`` float64 [d].

        TRAJECTORY: a row per trajectory. PERSON: ``units`` rows, one for each of the first subjects
        that may take part, zero beyond them; surplus trajectories are dropped before anything is
        computed (:func:`privfedrl.training.subjects.grouped`).

        Args:
            admitted: PERSON only; the subjects whose participation in this release is recorded.
                None = every subject of the batch, where the plan has no cap on participations.
            current_clip: the broadcast clip of an adaptive run; None = ``clip_norm``.
        Raises:
            PrivacyError: the batch has been used before (it is spent even if this call fails).
            EnvironmentFault: unit PERSON and the batch names no subjects.
            ConfigurationError: an argument is out of range or does not fit the settings.
            UnsupportedMechanism: the unit is AGENT; use :meth:`local_steps`.
        """
        settings = self.settings
        if settings.unit is Unit.AGENT:
            raise UnsupportedMechanism(
                "local_update is for units TRAJECTORY and PERSON; use local_steps for AGENT"
            )
        self._spend(batch)
        self._network.load(self.policy.checked(parameters))
        grouping = self._grouping(batch, admitted)
        if settings.clip_norm is None:
            if current_clip is not None:
                raise ConfigurationError("current_clip must be None when private is False")
            return self._unclipped(batch, grouping)
        return private_rows(
            self._network,
            batch,
            clip_norm=settings.clip_norm,
            gamma=settings.gamma,
            entropy_weight=settings.entropy_weight,
            truncation=settings.truncation,
            return_release=settings.return_release,
            clip_quantile=settings.clip_quantile,
            current_clip=current_clip,
            grouping=grouping,
            gradient=self._gradient,
        )

    def local_steps(self, parameters: Float, collect: Collect) -> LocalUpdate:
        """The model delta of E plain gradient-ascent steps, clipped as one row [1, d].

        Each step moves by learning_rate times the mean trajectory gradient of a fresh batch from
        ``collect(theta)``. Everything between two releases stays inside the unit, so nothing but
        the delta needs clipping. A delta that is not finite, or iterates that leave the policy's
        range, make a zero row, not an error, and collecting goes on from the last iterate within
        it: a release must look the same whatever the data.

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
            following = theta + settings.learning_rate * self._mean_gradient(theta, batch)
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

    def _mean_gradient(self, theta: Float, batch: TrajectoryBatch) -> Float:
        self._network.load(theta)
        rows, _ = self._raw_rows(batch, None)
        return np.asarray(rows.sum(axis=0) / max(len(rows), 1), dtype=np.float64)

    def _unclipped(self, batch: TrajectoryBatch, grouping: Grouping | None) -> LocalUpdate:
        rows, dropped = self._raw_rows(batch, grouping)
        return LocalUpdate(
            rows=rows,
            clip_norm=math.inf,
            unit=self.settings.unit,
            nonfinite_units=dropped,
            batch_id=batch.batch_id,
            private=False,
        )

    def _raw_rows(self, batch: TrajectoryBatch, grouping: Grouping | None) -> tuple[Float, int]:
        settings = self.settings
        units = unit_rows(
            self._network,
            batch,
            gamma=settings.gamma,
            entropy_weight=settings.entropy_weight,
            truncation=settings.truncation,
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
        return row_groups(
            self.policy.num_parameters,
            clip_norm=clip_norm,
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
        if batch.batch_id in self._spent:
            raise PrivacyError(
                "batch must be fresh, got one that an earlier update used: "
                "a trajectory may feed one release only"
            )
        self._spent.add(batch.batch_id)


def _finite_rows(rows: Float) -> tuple[Float, int]:
    finite = np.asarray(np.isfinite(rows).all(axis=1))
    return np.where(finite[:, None], rows, 0.0), int(np.count_nonzero(~finite))
