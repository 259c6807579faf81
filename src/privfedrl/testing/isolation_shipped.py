"""The shipped trainer under every algorithm, unit and option that a plan can ask for.

Guarantee: each cell (algorithm, unit) has rows in which every value of every one of its options
occurs together with every value of every other one (:func:`isolation_covering.covering`), as far as
both can be on at once (:func:`axes`); no cell and no value is left out. Each row is built from the
public face of ``LocalTrainer`` alone.

Notation: K uses of a batch, W = K batches in a window of DQN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np

from privfedrl.errors import PrivacyError
from privfedrl.privacy.units import Unit
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.testing.isolation_batches import without
from privfedrl.testing.isolation_covering import covering
from privfedrl.testing.isolation_rounds import Collect, Float, Step
from privfedrl.training import (
    ClipQuantile,
    DqnSettings,
    LocalTrainer,
    LocalUpdate,
    Objective,
    PpoSettings,
    ReturnRelease,
    TrainerSettings,
)
from privfedrl.training.algorithms import ALGORITHMS, Algorithm
from privfedrl.training.trajectory_gradients import TrajectoryGradient, fused, hooks

__all__ = ["SHIPPED", "Option", "Shipped", "axes"]

_CLIP = 0.5
_USES = 3
_POLICY = MlpPolicy(observation_size=3, hidden=(4,), action="categorical", action_size=2)
_RETURN = ReturnRelease(low=-5.0, high=20.0, weight=0.3)
_QUANTILE = ClipQuantile(quantile=0.5, learning_rate=0.2, low=0.01, high=2.0, weight=0.1)
_BATCHES = TrajectoryBatch | Sequence[TrajectoryBatch]
Axes = tuple[tuple["Option", ...], ...]
_Update = Callable[..., LocalUpdate]
_Use = Callable[[_Update, int, Float, Collect], tuple[LocalUpdate, ...]]


# --- what a round releases -----------------------------------------------------------------------


def _once(update: _Update, uses: int, theta: Float, collect: Collect) -> tuple[LocalUpdate, ...]:
    return (update(theta, collect(theta)),)


def _noised_steps(
    update: _Update, uses: int, theta: Float, collect: Collect
) -> tuple[LocalUpdate, ...]:
    """Local DP-SGD: each step is a release of its own, and what it leads to is public."""
    return tuple(update(at, collect(at)) for at in (theta, _heard(theta, 1)))


def _epochs(update: _Update, uses: int, theta: Float, collect: Collect) -> tuple[LocalUpdate, ...]:
    """K releases of one batch, each charged; one more must be refused, or it is found to move."""
    batch = collect(theta)
    updates = [update(theta, batch)]
    updates += [update(_heard(theta, k), batch, behaviour=theta) for k in range(1, uses)]
    return (*updates, *_refused(update, theta, batch))


def _window(update: _Update, uses: int, theta: Float, collect: Collect) -> tuple[LocalUpdate, ...]:
    """W releases with the first batch in a sliding window, then one without it: not charged."""
    held: list[TrajectoryBatch] = []
    updates = []
    for k in range(uses + 1):
        held.append(collect(_heard(theta, k)))
        chosen = (*(_absent(held[0], k, n) for n in range(uses - len(held))), *held[-uses:])
        # the target network stays behind, as it does between two copies
        updates.append(update(_heard(theta, k), chosen, target=theta))
    return (*updates, *_refused(update, theta, held[0]))


def _target(update: _Update, uses: int, theta: Float, collect: Collect) -> tuple[LocalUpdate, ...]:
    return (update(theta, collect(theta), target=_heard(theta, 2)),)


def _refused(update: _Update, theta: Float, batch: TrajectoryBatch) -> tuple[LocalUpdate, ...]:
    try:
        return (update(theta, batch),)
    except PrivacyError:
        return ()


def _heard(theta: Float, times: int) -> Float:
    """What the policy is after so many noised sums, which everybody hears."""
    return theta + 0.01 * times


def _absent(batch: TrajectoryBatch, *position: int) -> TrajectoryBatch:
    """Nothing, in the public shape; its identity is the same in all worlds."""
    everyone = tuple(range(batch.num_trajectories))
    return replace(without(batch, everyone), batch_id=f"absent {position}".encode())


# --- options -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One value of one option: in words, and what it changes.

    Attributes:
        objective, trainer, learner: fields of the settings of that name.
        policy: fields of the policy. call: arguments of ``local_update``.
        use: what a round releases; None = one update of a fresh batch.
        gradient: the path that computes rows; None = ``fused``.
        some_admitted: only every second person may take part.
    """

    words: str
    objective: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    learner: Mapping[str, Any] = field(default_factory=dict)
    policy: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    use: _Use | None = None
    gradient: TrajectoryGradient | None = None
    some_admitted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """A round of ``local_update`` as a step of the linter."""

    use: _Use
    call: Mapping[str, Any]
    some_admitted: bool

    def __call__(
        self, trainer: LocalTrainer, parameters: Float, collect: Collect
    ) -> tuple[LocalUpdate, ...]:
        def update(theta: Float, batch: _BATCHES, **more: Any) -> LocalUpdate:
            return trainer.local_update(theta, batch, **self.call, **self._admitted(batch), **more)

        return self.use(update, trainer.settings.uses, parameters, collect)

    def _admitted(self, batch: _BATCHES) -> dict[str, Any]:
        if not self.some_admitted or not isinstance(batch, TrajectoryBatch):
            return {}
        return {"admitted": frozenset(sorted(set(batch.subjects or ()))[::2])}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """One combination; ``step`` is None for the plain call of an AGENT."""

    algorithm: Algorithm
    unit: Unit
    options: tuple[Option, ...]
    policy: MlpPolicy
    settings: TrainerSettings
    step: Step | None
    gradient: TrajectoryGradient

    @property
    def name(self) -> str:
        """Algorithm, unit and options."""
        return ", ".join([self.algorithm, self.unit.value, *(o.words for o in self.options)])

    def make(self) -> LocalTrainer:
        """A fresh trainer; the same draws inside an agent every time."""
        rng = np.random.default_rng(5)
        return LocalTrainer(self.policy, self.settings, gradient=self.gradient, rng=rng)


def _values(words: str, where: str, name: str, *values: Any) -> tuple[Option, ...]:
    def option(value: Any) -> Option:
        changed: Any = {where: {name: value}}
        return Option(words=f"{words} {value}", **changed)

    return tuple(option(value) for value in values)


_ACTIONS = tuple(
    Option(words=kind, policy={"action": kind}) for kind in ("categorical", "gaussian")
)
_Q_VALUES = (Option(words="q-values", policy={"action": "q-values"}),)
_ENTROPIES = _values("entropy", "objective", "entropy_weight", 0.0, 0.05)
_PATHS = (Option(words="fused"), Option(words="Opacus' gradients", gradient=hooks))
_MEMORY = Option(words="memory", policy={"recurrent": 2}, gradient=hooks)
_REWARDS = (
    Option(words="rewards as they are"),
    Option(
        words="clipped rewards",
        objective={"reward_low": -1.0, "reward_high": 1.0, "step_cost": 0.1},
    ),
)
_METRICS = (
    Option(words="no metrics"),
    Option(words="returns", trainer={"return_release": _RETURN}),
    Option(words="spread", trainer={"return_release": replace(_RETURN, spread=True)}),
    Option(words="clip count", trainer={"clip_quantile": _QUANTILE}, call={"current_clip": 0.05}),
    Option(
        words="returns, clip count",
        trainer={"return_release": _RETURN, "clip_quantile": _QUANTILE},
    ),
)
_PERSONS = (
    Option(words="all persons", trainer={"units": 3, "max_trajectories_per_unit": 3}),
    Option(words="surplus dropped", trainer={"units": 2, "max_trajectories_per_unit": 1}),
    Option(
        words="some admitted",
        trainer={"units": 3, "max_trajectories_per_unit": 2},
        some_admitted=True,
    ),
)
_CRITICS = (
    Option(words="one clip for both", policy={"critic_hidden": (4,)}),
    Option(
        words="critic's own clip",
        policy={"critic_hidden": ()},
        trainer={"critic_clip_norm": 0.2},
        objective={"value_scale": 10.0, "advantage_scale": 0.1},
    ),
)
_NOISED = Option(words="noised local steps", use=_noised_steps)
_FRESH = Option(words="fresh", use=_once)
_REUSED = {"uses": _USES}
_USED: Mapping[str, tuple[Option, ...]] = {
    "reinforce": (_FRESH,),
    "a2c": (_FRESH,),
    "ppo": (
        _FRESH,
        Option(words=f"{_USES} epochs", trainer=_REUSED, use=_epochs),
        Option(
            words=f"{_USES} guided epochs",
            trainer=_REUSED,
            objective={"guidance_weight": 0.3, "clip_range": 0.01},
            use=_epochs,
        ),
    ),
    "dqn": (
        _FRESH,
        Option(words="target network", objective={"double": False}, use=_target),
        Option(words=f"window of {_USES}", trainer=_REUSED, use=_window),
    ),
}
_STEPS = _values("local steps", "trainer", "local_steps", 1, 3)
_LEARNERS = (
    _STEPS,
    (
        Option(words="published critic", policy={"critic_hidden": (4,)}),
        Option(words="private critic", learner={"private_critic_hidden": (4,)}),
    ),
    _values("raw observations:", "learner", "normalise_observations", False, True),
    _values("normal advantages:", "learner", "normalise_advantages", False, True),
    _values("target KL", "learner", "target_kl", None, 1e-4),
    _values("forget moments:", "learner", "reset_optimiser", False, True),
    _values("guidance", "learner", "guidance_weight", 0.0, 0.3),
    _values("mixture", "learner", "behaviour_mixture", 0.0, 0.2),
    _values("entropy", "learner", "entropy_weight", 0.0, 0.05),
    _values("minibatch", "learner", "minibatch_size", 4, 1000),
)
_REPLAY = (
    _Q_VALUES,
    _STEPS,
    _values("memory", "learner", "replay_capacity", 8, 1000),
    _values("target every", "learner", "target_interval", 1, 3),
    _values("double:", "learner", "double", False, True),
    _values("forget moments:", "learner", "reset_optimiser", False, True),
)
_PPO = PpoSettings(
    gamma=0.9,
    gae_lambda=0.9,
    epochs=1,
    minibatch_size=1000,
    learning_rate=0.1,
    entropy_weight=0.0,
    reset_optimiser=True,
)
_DQN = DqnSettings(
    gamma=0.9,
    learning_rate=0.1,
    batch_size=4,
    updates_per_step=0.5,
    replay_capacity=1000,
    target_interval=1,
    reset_optimiser=True,
)


def axes(algorithm: Algorithm, unit: Unit) -> tuple[Axes, ...]:
    """The options of a cell, each with its values; any combination within one entry is sound.

    PPO has two entries for rows: advantages from a critic, and returns without one. The second has
    the extremes of the metrics only: they are columns of their own, beside all else in the first.
    """
    if unit is Unit.AGENT:
        return (_agent_axes(algorithm),)
    with_critic = (_row_axes(algorithm, unit, critic=ALGORITHMS[algorithm].critic),)
    if algorithm != "ppo":
        return with_critic
    returns = Option(words="whitened returns", objective={"advantages": "returns"})
    without = _row_axes(algorithm, unit, critic=False, metrics=(_METRICS[0], _METRICS[-1]))
    return (*with_critic, ((returns,), *without))


def _row_axes(
    algorithm: Algorithm,
    unit: Unit,
    *,
    critic: bool,
    metrics: tuple[Option, ...] = _METRICS,
) -> Axes:
    q_values = ALGORITHMS[algorithm].q_values
    found = [
        _Q_VALUES if q_values else _ACTIONS,
        _truncations(algorithm if critic or q_values else "reinforce"),
        *([] if q_values else [_ENTROPIES]),
        *([_CRITICS] if critic else []),
        _REWARDS,
        metrics,
        _PATHS if q_values else (*_PATHS, _MEMORY),
    ]
    if unit is Unit.TRAJECTORY:
        return (*found, (*_USED[algorithm], _NOISED))
    # a plan refuses a person's replay: a person could be in several batches of a window
    used = tuple(option for option in _USED[algorithm] if option.use is not _window)
    return (*found, _PERSONS, used)


def _agent_axes(algorithm: Algorithm) -> Axes:
    if algorithm == "reinforce":
        return (
            _ACTIONS,
            _truncations(algorithm),
            _ENTROPIES,
            _REWARDS,
            _STEPS,
            (Option(words="no memory"), _MEMORY),
            _values("guidance", "objective", "guidance_weight", 0.0, 0.3),
            _values("mixture", "objective", "behaviour_mixture", 0.0, 0.2),
        )
    if algorithm == "dqn":
        return (*_REPLAY, _REWARDS)
    epochs = (1,) if algorithm == "a2c" else (1, 3)
    return (_ACTIONS, *_LEARNERS, _REWARDS, _values("epochs", "learner", "epochs", *epochs))


def _truncations(algorithm: Algorithm) -> tuple[Option, ...]:
    allowed = ALGORITHMS[algorithm].truncations
    return tuple(Option(words=f"cut {t.value}", objective={"truncation": t}) for t in allowed)


# --- rows ----------------------------------------------------------------------------------------


def _combinations() -> Iterator[Shipped]:
    for algorithm, unit in product(_ALGORITHMS, Unit):
        for cell in axes(algorithm, unit):
            for chosen in covering(cell):
                yield _shipped(algorithm, unit, chosen)


def _shipped(algorithm: Algorithm, unit: Unit, chosen: tuple[Option, ...]) -> Shipped:
    def merged(where: str) -> dict[str, Any]:
        return {key: value for option in chosen for key, value in getattr(option, where).items()}

    objective = Objective(
        algorithm=algorithm, **({"gamma": 0.9, "gae_lambda": 0.9} | merged("objective"))
    )
    uses = [option.use for option in chosen if option.use is not None]
    paths = [option.gradient for option in chosen if option.gradient is not None]
    step = _Rows(
        use=uses[0] if uses else _once,
        call=merged("call"),
        some_admitted=any(option.some_admitted for option in chosen),
    )
    return Shipped(
        algorithm=algorithm,
        unit=unit,
        options=chosen,
        policy=replace(_POLICY, **merged("policy")),
        settings=TrainerSettings(
            objective=objective,
            clip_norm=_CLIP,
            unit=unit,
            learner=_learner(algorithm, unit, merged("learner")),
            **merged("trainer"),
        ),
        step=None if unit is Unit.AGENT else step,
        gradient=paths[0] if paths else fused,
    )


def _learner(
    algorithm: Algorithm, unit: Unit, changes: dict[str, Any]
) -> PpoSettings | DqnSettings | None:
    if unit is not Unit.AGENT or algorithm == "reinforce":
        return None
    return replace(_DQN, **changes) if algorithm == "dqn" else replace(_PPO, **changes)


_ALGORITHMS: tuple[Algorithm, ...] = ("reinforce", "a2c", "ppo", "dqn")
SHIPPED = tuple(_combinations())
