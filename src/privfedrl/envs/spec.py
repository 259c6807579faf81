"""Which MDP an agent lives in, as a frozen, hashable value.

Guarantee: a spec that exists has only known parameters inside their valid range, and two specs
with the same dynamics and time limit are equal (a parameter at its nominal value is not stored).

The tables are the one place where families, parameters, nominal values and ranges are written.
A Gymnasium id without a row is allowed; it takes no parameters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from types import MappingProxyType

from privfedrl.errors import ConfigurationError

__all__ = ["FAMILIES", "EnvSpec", "Family", "Parameter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One physical parameter of a family.

    Attributes:
        nominal: the value of the unmodified environment.
        low, high: closed range of valid values.
        spread: half-range of a heterogeneous fleet at level 1, in the parameter's own unit.
        one_sided: the fleet covers [nominal, nominal + spread] instead of nominal +- spread.
    """

    nominal: float
    low: float
    high: float
    spread: float = 0.0
    one_sided: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The parameters of one environment id, and its own time limit in steps."""

    parameters: Mapping[str, Parameter]
    horizon: int


_LUNAR_LANDER = Family(
    parameters=MappingProxyType(
        {
            # Box2D asserts -12 < gravity < 0
            "gravity": Parameter(nominal=-10.0, low=-11.99, high=-0.01, spread=1.0),
            # 0 means no wind; at level 1 half of the maxima (20, 2) that Gymnasium recommends
            "turbulence_power": Parameter(
                nominal=0.0, low=0.0, high=2.0, spread=1.0, one_sided=True
            ),
            "wind_power": Parameter(nominal=0.0, low=0.0, high=20.0, spread=10.0, one_sided=True),
        }
    ),
    horizon=1000,
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "CartPole-v1": Family(
            parameters=MappingProxyType(
                {
                    "force_mag": Parameter(nominal=10.0, low=0.1, high=100.0),
                    "gravity": Parameter(nominal=9.8, low=0.1, high=50.0, spread=0.3 * 9.8),
                    # half the pole's length; factor 0.1 .. 1.9 at level 1
                    "length": Parameter(nominal=0.5, low=0.05, high=10.0, spread=0.5),
                    "masscart": Parameter(nominal=1.0, low=0.01, high=100.0),
                    "masspole": Parameter(nominal=0.1, low=0.001, high=100.0),
                    "tau": Parameter(nominal=0.02, low=0.001, high=0.1),
                }
            ),
            horizon=500,
        ),
        "LunarLander-v3": _LUNAR_LANDER,
        "LunarLanderContinuous-v3": _LUNAR_LANDER,
        "Pendulum-v1": Family(
            parameters=MappingProxyType(
                {
                    "g": Parameter(nominal=10.0, low=0.1, high=50.0, spread=3.0),
                    "l": Parameter(nominal=1.0, low=0.1, high=10.0, spread=0.5),
                    "m": Parameter(nominal=1.0, low=0.1, high=10.0),
                }
            ),
            horizon=200,
        ),
    }
)


@dataclass(frozen=True, slots=True)
class EnvSpec:
    """One environment: a family, its changed parameters, its time limit.

    Attributes:
        id: Gymnasium id, for example ``CartPole-v1``.
        params: (name, value) pairs, stored sorted by name and without nominal values.
        horizon: the environment's own time limit in steps; None keeps the family's limit.
    Raises:
        ConfigurationError: unknown parameter, value outside its range, horizon below 1.
    """

    id: str
    _: KW_ONLY
    params: tuple[tuple[str, float], ...] = ()
    horizon: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise ConfigurationError(f"id must be a non-empty string, got {self.id!r}")
        family = FAMILIES.get(self.id)
        object.__setattr__(self, "params", _checked_params(self.id, family, self.params))
        object.__setattr__(self, "horizon", _checked_horizon(family, self.horizon))

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
        """Canonical JSON; ``from_json`` gives back an equal spec."""
        return json.dumps(
            {"id": self.id, "params": dict(self.params), "horizon": self.horizon},
            sort_keys=True,
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, text: str) -> EnvSpec:
        """Parse ``to_json``'s format; anything else raises ConfigurationError."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ConfigurationError("environment spec must be valid JSON") from error
        if not isinstance(data, dict) or set(data) != {"id", "params", "horizon"}:
            raise ConfigurationError(
                "environment spec must be an object with id, params and horizon"
            )
        if not isinstance(data["params"], dict):
            raise ConfigurationError("params must be an object of names and numbers")
        return cls(data["id"], params=tuple(data["params"].items()), horizon=data["horizon"])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _checked_params(
    env_id: str, family: Family | None, params: tuple[tuple[str, float], ...]
) -> tuple[tuple[str, float], ...]:
    table = family.parameters if family else {}
    given: dict[str, float] = {}
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
