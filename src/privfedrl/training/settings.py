"""Everything about a local step that privacy or the result depends on, as one frozen value.

Guarantee: settings that exist are sound: what cannot be clipped per unit is refused with the reason
and the sound alternative. The unclipped arm of an experiment exists only as ``private=False``.

Notation: C_a the clip norm of the policy's part of a row, C_c that of the critic's, E local steps,
K uses of a trajectory, P persons in a sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from privfedrl.errors import ConfigurationError, UnsupportedMechanism
from privfedrl.privacy.units import Unit
from privfedrl.training.algorithms import Objective
from privfedrl.training.dqn_learner import DqnSettings
from privfedrl.training.local_update import check_clip_norm
from privfedrl.training.metric_coordinates import ClipQuantile, ReturnRelease
from privfedrl.training.ppo_learner import PpoSettings

__all__ = ["TrainerSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings:
    """How one agent turns experience into an update.

    Attributes:
        objective: the algorithm and its constants.
        clip_norm: C_a, L2 bound of one unit's policy gradient (or of the model delta); None only
            if not private.
        critic_clip_norm: C_c, L2 bound of one unit's critic gradient; None = C_a. Needs a critic.
        return_release: release the mean return, and its spread if asked, as coordinates of the row
            (TRAJECTORY and PERSON).
        unit: TRAJECTORY (one row per trajectory), PERSON (one row per person, the clipped sum of
            that person's gradients) or AGENT (one row, the model delta).
        uses: K >= 1, updates that a batch may feed, each a release of its own (TRAJECTORY, PERSON).
        local_steps: E >= 1 rounds of experience between releases; more than one for AGENT only.
        learning_rate: of plain gradient steps, finite and > 0; used by AGENT without a learner.
        learner: how an AGENT improves inside; None: plain gradient steps on the objective.
        private: False is the control arm of an experiment: no clipping, no guarantee.
        clip_quantile: release whether a unit was within the current clip (TRAJECTORY and PERSON).
        max_trajectories_per_unit: m >= 1, trajectories of a person that count; PERSON only.
        units: P >= 1, rows of every update, whatever the batch holds; PERSON only, required there.
    """

    objective: Objective = field(default_factory=Objective)
    clip_norm: float | None
    critic_clip_norm: float | None = None
    return_release: ReturnRelease | None = None
    unit: Unit = Unit.TRAJECTORY
    uses: int = 1
    local_steps: int = 1
    learning_rate: float = 1.0
    learner: PpoSettings | DqnSettings | None = None
    private: bool = True
    clip_quantile: ClipQuantile | None = None
    max_trajectories_per_unit: int = 1
    units: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigurationError(
                f"learning_rate must be finite and > 0, got {self.learning_rate!r}"
            )
        for name in ("local_steps", "max_trajectories_per_unit", "uses"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} must be an integer >= 1, got {value!r}")
        self._check_clipping()
        self._check_units()
        if self.unit is Unit.AGENT:
            self._check_agent()
        else:
            self._check_rows()

    @property
    def critic_clip(self) -> float | None:
        """C_c, or None without a critic or without clipping."""
        if self.clip_norm is None or not self.objective.has_critic or self.unit is Unit.AGENT:
            return None
        return self.clip_norm if self.critic_clip_norm is None else self.critic_clip_norm

    def _check_clipping(self) -> None:
        if self.critic_clip_norm is not None:
            check_clip_norm(self.critic_clip_norm, name="critic_clip_norm")
            if not self.objective.has_critic:
                raise ConfigurationError(
                    f"critic_clip_norm must be None for {self.objective.algorithm!r}, which has no "
                    f"critic, got {self.critic_clip_norm!r}"
                )
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

    def _check_units(self) -> None:
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

    def _check_rows(self) -> None:
        if self.local_steps > 1:
            raise UnsupportedMechanism(
                f"local_steps must be 1 for unit {self.unit.name}, got {self.local_steps}: "
                "later iterates depend on earlier trajectories without noise, so clipping each row "
                "does not bound what one unit can change; use unit AGENT, whose delta is clipped "
                "as a whole, or noise in every local step (mechanism 'local-skellam')"
            )
        if self.learner is not None:
            raise UnsupportedMechanism(
                f"learner must be None for unit {self.unit.name}: minibatches, normalisers, replay "
                "and stopping rules mix units without noise; use unit AGENT, whose delta is "
                "clipped as a whole"
            )

    def _check_agent(self) -> None:
        for name in ("return_release", "clip_quantile", "critic_clip_norm"):
            if getattr(self, name) is not None:
                raise UnsupportedMechanism(
                    f"{name} is offered for units TRAJECTORY and PERSON; for AGENT leave it out "
                    "(one fixed clip_norm of the model delta, no released return)"
                )
        if self.uses != 1:
            raise UnsupportedMechanism(
                f"uses must be 1 for unit AGENT, got {self.uses}: epochs and replay belong to the "
                "learner, inside the delta"
            )
        wanted = _LEARNERS[self.objective.algorithm]
        if not isinstance(self.learner, wanted):
            names = " or ".join(kind.__name__ for kind in wanted)
            raise ConfigurationError(
                f"learner must be {names} for {self.objective.algorithm!r} and unit AGENT, got "
                f"{type(self.learner).__name__}"
            )


# an AGENT's critic and Q network are trained by a learner; REINFORCE takes plain gradient steps
_LEARNERS: dict[str, tuple[type, ...]] = {
    "reinforce": (type(None),),
    "a2c": (PpoSettings,),
    "ppo": (PpoSettings,),
    "dqn": (DqnSettings,),
}
