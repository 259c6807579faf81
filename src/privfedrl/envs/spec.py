"""Which MDP an agent lives in, as a frozen, hashable value.

Guarantee: a spec that exists has only known parameters inside their valid range, and two specs
with the same dynamics, starts, rewards, observations, delay and time limit are equal (what is at
its nominal value is not stored).

A Gymnasium id without a row in ``families`` is allowed; it takes no physical parameters.
"""

from __future__ import annotations

import json
import math
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any

from privfedrl.envs.families import FAMILIES, Family, Parameter
from privfedrl.errors import ConfigurationError, shown

__all__ = ["FAMILIES", "MAX_ACTION_DELAY", "MAX_ACTION_REPEAT", "EnvSpec", "Family", "Parameter"]

#: more steps of delay than any environment here can be controlled with
MAX_ACTION_DELAY = 32
#: an action held for longer leaves nothing to decide
MAX_ACTION_REPEAT = 64
_REQUIRED = ("id", "params", "horizon")


@dataclass(frozen=True, slots=True)
class EnvSpec:
    """One environment: a family, its changed parameters, its time limit, its perturbations.

    Attributes:
        id: Gymnasium id, for example ``CartPole-v1``.
        params: (name, value) pairs, stored sorted by name and without nominal values.
        horizon: the environment's own time limit in steps; None keeps the family's limit.
        reward_scale, reward_offset: a reward r becomes scale * r + offset; 0.01 .. 100, +-100.
        initial_noise: half-width of a uniform shift of every coordinate of the initial state.
        observation_noise: standard deviation of Gaussian noise on every coordinate of every
            observation; 0 .. 10.
        action_delay: steps between an action and its effect; the first ones are the public default
            (action 0, or zeros clipped into the bounds).
        action_repeat: steps of the environment for which each action is held, 1 .. 64; rewards are
            summed. The time limit still counts steps of the environment.
    Raises:
        ConfigurationError: unknown parameter, value outside its range, horizon below 1, noise on
            starts of an id whose state cannot be set.
    """

    id: str
    _: KW_ONLY
    params: tuple[tuple[str, float], ...] = ()
    horizon: int | None = None
    reward_scale: float = 1.0
    reward_offset: float = 0.0
    initial_noise: float = 0.0
    observation_noise: float = 0.0
    action_delay: int = 0
    action_repeat: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise ConfigurationError(f"id must be a non-empty string, got {self.id!r}")
        family = FAMILIES.get(self.id)
        object.__setattr__(self, "params", _checked_params(self.id, family, self.params))
        object.__setattr__(self, "horizon", _checked_horizon(family, self.horizon))
        self._check_start(family.start_limit if family else 0.0)
        for name, low, high in (
            ("reward_scale", 0.01, 100.0),
            ("reward_offset", -100.0, 100.0),
            ("initial_noise", 0.0, math.inf),
            ("observation_noise", 0.0, 10.0),
        ):
            object.__setattr__(self, name, _checked_number(self, name, low, high))
        _check_count("action_delay", self.action_delay, 0, MAX_ACTION_DELAY)
        _check_count("action_repeat", self.action_repeat, 1, MAX_ACTION_REPEAT)

    def _check_start(self, limit: float) -> None:
        if not _is_number(self.initial_noise) or self.initial_noise > limit:
            rule = f"in [0, {limit}] for" if limit else "0: the state cannot be set in"
            raise ConfigurationError(
                f"initial_noise must be {rule} {self.id}, got {shown(self.initial_noise)}"
            )

    def parameters(self) -> dict[str, float]:
        """Every parameter of the family by name, nominal where it was not changed."""
        family = FAMILIES.get(self.id)
        table = family.parameters if family else {}
        return {name: row.nominal for name, row in table.items()} | dict(self.params)

    @property
    def time_limit(self) -> int | None:
        """The limit that holds: the spec's, else the family's, else None (Gymnasium's registry)."""
        family = FAMILIES.get(self.id)
        return self.horizon if self.horizon is not None else (family.horizon if family else None)

    def to_json(self) -> str:
        """Canonical JSON, without perturbations that are absent; ``from_json`` reads it back."""
        data: dict[str, Any] = {
            "id": self.id,
            "params": dict(self.params),
            "horizon": self.horizon,
        } | {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in _REQUIRED and getattr(self, field.name) != field.default
        }
        return json.dumps(data, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> EnvSpec:
        """Parse ``to_json``'s format; anything else raises ConfigurationError."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigurationError("environment spec must be valid JSON") from error
        known = {field.name for field in fields(cls)}
        if not isinstance(data, dict) or not set(_REQUIRED) <= set(data) <= known:
            raise ConfigurationError(
                "environment spec must be an object with id, params, horizon and perturbations"
            )
        if not isinstance(data["params"], dict):
            raise ConfigurationError("params must be an object of names and numbers")
        return cls(data.pop("id"), params=tuple(data.pop("params").items()), **data)


def _check_count(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigurationError(f"{name} must be an integer in {low}..{high}, got {shown(value)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _checked_number(spec: EnvSpec, name: str, low: float, high: float) -> float:
    value = getattr(spec, name)
    if not _is_number(value) or not low <= value <= high:
        raise ConfigurationError(f"{name} must be in [{low}, {high}], got {shown(value)}")
    return float(value)


def _checked_params(
    env_id: str, family: Family | None, params: tuple[tuple[str, float], ...]
) -> tuple[tuple[str, float], ...]:
    table = family.parameters if family else {}
    given: dict[str, float] = {}
    if not isinstance(params, tuple) or not all(
        isinstance(pair, tuple) and len(pair) == 2 for pair in params
    ):
        raise ConfigurationError(
            f"params must be a tuple of (name, number) pairs, got {shown(params)}"
        )
    for name, value in params:
        if name not in table:
            known = ", ".join(sorted(table)) or "none"
            raise ConfigurationError(
                f"{env_id} has no parameter {name!r}; known parameters: {known}"
            )
        if name in given:
            raise ConfigurationError(f"params must name {name!r} once")
        row = table[name]
        if not _is_number(value) or not row.low <= value <= row.high:
            raise ConfigurationError(
                f"{name} of {env_id} must be in [{row.low}, {row.high}], got {value!r}"
            )
        given[name] = float(value)
    return tuple(
        (name, value) for name, value in sorted(given.items()) if value != table[name].nominal
    )


def _checked_horizon(family: Family | None, horizon: int | None) -> int | None:
    if horizon is None:
        return None
    if not isinstance(horizon, int) or isinstance(horizon, bool) or horizon < 1:
        raise ConfigurationError(f"horizon must be an integer >= 1 or None, got {horizon!r}")
    return None if family is not None and horizon == family.horizon else horizon
