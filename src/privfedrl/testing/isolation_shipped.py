"""Every combination of the shipped trainer that a plan can ask for, for the leak linter.

Guarantee: the table is a product of options, so a combination cannot be forgotten; each row is
built from the public face of ``LocalTrainer`` and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np

from privfedrl.privacy.units import Unit
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.testing.isolation_rounds import Collect, Float, Step
from privfedrl.training import (
    ClipQuantile,
    LocalTrainer,
    LocalUpdate,
    ReinforceSettings,
    ReturnRelease,
    Truncation,
)
from privfedrl.training.trajectory_gradients import TrajectoryGradient, fused, hooks

__all__ = ["SHIPPED", "Shipped"]

_CLIP = 0.5
_RETURN = ReturnRelease(low=-5.0, high=20.0, weight=0.3)
_QUANTILE = ClipQuantile(quantile=0.5, learning_rate=0.2, low=0.01, high=2.0, weight=0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """One combination. ``options`` say in words what is on; ``step`` is None for the plain call."""

    unit: Unit
    action: Literal["categorical", "gaussian"]
    options: str
    settings: ReinforceSettings
    step: Step | None = None
    gradient: TrajectoryGradient = fused

    @property
    def name(self) -> str:
        """Unit, policy and options."""
        return f"{self.unit.value}, {self.action}, {self.options}"

    def make(self) -> LocalTrainer:
        """A fresh trainer."""
        policy = MlpPolicy(observation_size=3, hidden=(4,), action=self.action, action_size=2)
        return LocalTrainer(policy, self.settings, gradient=self.gradient)


@dataclass(frozen=True, slots=True)
class _Option:
    words: str
    changes: Mapping[str, Any]
    step: Step | None = None
    gradient: TrajectoryGradient = fused


def _at_current_clip(trainer: LocalTrainer, parameters: Float, collect: Collect) -> LocalUpdate:
    """The broadcast clip of an adaptive run, well below the plan's."""
    return trainer.local_update(parameters, collect(parameters), current_clip=0.05)


def _admitted(trainer: LocalTrainer, parameters: Float, collect: Collect) -> LocalUpdate:
    """Only some persons may still take part."""
    batch = collect(parameters)
    admitted = frozenset(sorted(set(batch.subjects or ()))[::2])
    return trainer.local_update(parameters, batch, admitted=admitted)


def _noised_steps(
    trainer: LocalTrainer, parameters: Float, collect: Collect
) -> tuple[LocalUpdate, ...]:
    """Local DP-SGD: each step is a release of its own, and what it leads to is public."""
    public = np.full(len(parameters), 0.01)  # stands for a noised sum
    return tuple(
        trainer.local_update(theta, collect(theta)) for theta in (parameters, parameters + public)
    )


_TRUNCATIONS = tuple(_Option(f"truncation {t.value}", {"truncation": t}) for t in Truncation)
_ENTROPIES = tuple(_Option(f"entropy {w}", {"entropy_weight": w}) for w in (0.0, 0.05))
_METRICS = (
    _Option("no metrics", {}),
    _Option("returns", {"return_release": _RETURN}),
    _Option("returns and spread", {"return_release": replace(_RETURN, spread=True)}),
    _Option("clip count", {"clip_quantile": _QUANTILE}, _at_current_clip),
    _Option("returns, clip count", {"return_release": _RETURN, "clip_quantile": _QUANTILE}),
)
_PERSONS = (
    _Option("all persons", {"units": 3, "max_trajectories_per_unit": 3}),
    _Option("surplus dropped", {"units": 2, "max_trajectories_per_unit": 1}),
)
_CAPPED = _Option("some admitted", {"units": 3, "max_trajectories_per_unit": 2}, _admitted)
_NOISED = _Option("noised local steps, Opacus' gradients", {}, _noised_steps, hooks)
_STEPS = tuple(_Option(f"{n} local steps", {"local_steps": n}) for n in (1, 3))
_AXES: Mapping[Unit, tuple[tuple[_Option, ...], ...]] = {
    Unit.TRAJECTORY: (_TRUNCATIONS, _ENTROPIES, _METRICS),
    Unit.PERSON: (_TRUNCATIONS, _ENTROPIES, _METRICS, _PERSONS),
    Unit.AGENT: (_TRUNCATIONS, _ENTROPIES, _STEPS),
}
_ACTIONS: tuple[Literal["categorical", "gaussian"], ...] = ("categorical", "gaussian")


def _combinations() -> Iterator[Shipped]:
    for action in _ACTIONS:
        for unit, axes in _AXES.items():
            for chosen in product(*axes):
                yield _shipped(unit, action, chosen)
        yield _shipped(Unit.PERSON, action, (_CAPPED,))
        for chosen in product(_TRUNCATIONS, _ENTROPIES):
            yield _shipped(Unit.TRAJECTORY, action, (*chosen, _NOISED))


def _shipped(
    unit: Unit, action: Literal["categorical", "gaussian"], chosen: tuple[_Option, ...]
) -> Shipped:
    changes: dict[str, Any] = {}
    for option in chosen:
        changes |= option.changes
    steps = [option.step for option in chosen if option.step is not None]
    gradients = [option.gradient for option in chosen if option.gradient is not fused]
    return Shipped(
        unit=unit,
        action=action,
        options=", ".join(option.words for option in chosen),
        settings=ReinforceSettings(gamma=0.9, clip_norm=_CLIP, unit=unit, **changes),
        step=steps[0] if steps else None,
        gradient=gradients[0] if gradients else fused,
    )


SHIPPED = tuple(_combinations())
