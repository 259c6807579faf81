"""Fleets of agents whose MDPs differ by one scalar level.

Guarantee: level 0 gives identical nominal MDPs; at level h the varied parameters lie evenly
spread over nominal +- h * spread (table in ``families``), centred on nominal, always valid.

Notation: h level in [0, 1], K agents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from privfedrl.envs.families import FAMILIES, Family, Parameter
from privfedrl.envs.spec import EnvSpec
from privfedrl.errors import ConfigurationError

__all__ = ["VARIES", "heterogeneous", "nominal"]


def nominal(family: str) -> EnvSpec:
    """The unmodified environment of a family (any Gymnasium id)."""
    return EnvSpec(family)


def heterogeneous(
    family: str,
    *,
    level: float,
    agents: int,
    seed: int,
    varies: tuple[str, ...] = ("physics",),
) -> tuple[EnvSpec, ...]:
    """K environments of one family with parameters spread evenly around nominal.

    Each varied parameter takes K equally spaced values, both ends included, dealt to the agents by
    a permutation of its own (so that parameters are not aligned). One agent gets the centre.
    Parameters that cannot go both ways (wind, noise, delay) cover nominal to nominal + h * spread.

    CartPole-v1: pole length factor 1 +- h (kept >= 0.1), gravity factor 1 +- 0.3 h.
    LunarLander-v3: gravity -10 +- h, wind 0 .. 10 h, turbulence 0 .. h.
    Other families: their spreads in ``families``.

    What may vary, any family unless said otherwise:
        physics: the parameters above; a family with a table only.
        rewards: ``reward_scale`` 1 +- 0.5 h.
        initial-states: ``initial_noise`` 0 .. h * the family's ``start_spread``; only where states
            can be set.
        observations: ``observation_noise`` 0 .. h * the family's ``observation_spread`` (0.05
            without a table).
        actions: ``action_delay`` 0 .. round(3 h).

    Args:
        level: h in [0, 1]; 0 = identical MDPs.
        agents: K >= 1.
        seed: >= 0; fixes the permutations. What else varies does not move those of the physics.
        varies: names out of the list above, each once.
    Raises:
        ConfigurationError: argument out of range, or level > 0 for what the id cannot vary.
    """
    _check(level=level, agents=agents, seed=seed)
    _check_varies(varies)
    if level == 0:
        return (nominal(family),) * agents
    physics = _physics(family, level, agents, seed) if "physics" in varies else {}
    others = {
        row.name: _dealt(row, family, level, agents, seed) for row in _OTHERS if row.what in varies
    }
    return tuple(
        EnvSpec(
            family,
            params=tuple((name, float(values[k])) for name, values in physics.items()),
            **{name: values[k].item() for name, values in others.items()},
        )
        for k in range(agents)
    )


def _physics(family: str, level: float, agents: int, seed: int) -> dict[str, np.ndarray]:
    """Column of values per physical parameter that varies."""
    if family not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ConfigurationError(
            f"level must be 0 for the physics of {family!r}; "
            f"families with a heterogeneity table: {known}"
        )
    rng = np.random.default_rng(seed)
    return {
        name: rng.permutation(_values(row, level=level, agents=agents))
        for name, row in sorted(FAMILIES[family].parameters.items())
        if row.spread > 0
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Other:
    """A field of EnvSpec that varies: by how much at level 1, one-sided unless it is the scale."""

    what: str
    name: str
    spread: Callable[[Family], float]
    nominal: float = 0.0


_UNKNOWN = Family(parameters={}, horizon=1)
_OTHERS = (
    _Other(what="rewards", name="reward_scale", spread=lambda _family: 0.5, nominal=1.0),
    _Other(what="initial-states", name="initial_noise", spread=lambda family: family.start_spread),
    _Other(
        what="observations",
        name="observation_noise",
        spread=lambda family: family.observation_spread,
    ),
    _Other(what="actions", name="action_delay", spread=lambda _family: 3.0),
)
#: what ``heterogeneous`` can vary
VARIES = ("physics", *(row.what for row in _OTHERS))


def _dealt(row: _Other, env_id: str, level: float, agents: int, seed: int) -> np.ndarray:
    """K values of one field, dealt by a generator that belongs to this field."""
    spread = row.spread(FAMILIES.get(env_id, _UNKNOWN))
    if spread == 0:
        raise ConfigurationError(
            f"varies must not name {row.what} for {env_id}: its state cannot be set"
        )
    rng = np.random.default_rng([seed, 1 + _OTHERS.index(row)])
    if row.name == "action_delay":
        most = round(level * spread)
        values = np.rint(np.linspace(0, most, agents) if agents > 1 else np.full(1, most / 2))
        return rng.permutation(values.astype(np.int64))
    parameter = Parameter(
        nominal=row.nominal,
        low=0.0,
        high=np.inf,
        spread=spread,
        one_sided=row.nominal == 0,
    )
    return rng.permutation(_values(parameter, level=level, agents=agents))


def _values(row: Parameter, *, level: float, agents: int) -> np.ndarray:
    """K evenly spaced values; the half-range shrinks where nominal - spread would be invalid."""
    positions = np.linspace(-1.0, 1.0, agents) if agents > 1 else np.zeros(1)
    if row.one_sided:
        half = 0.5 * min(level * row.spread, row.high - row.nominal)
        return np.clip(row.nominal + half + half * positions, row.low, row.high)
    half = min(level * row.spread, row.nominal - row.low, row.high - row.nominal)
    # clipped: at the full half-range the end may round to one bit outside
    return np.clip(row.nominal + half * positions, row.low, row.high)


def _check(*, level: float, agents: int, seed: int) -> None:
    if not isinstance(level, int | float) or isinstance(level, bool) or not 0 <= level <= 1:
        raise ConfigurationError(f"level must be in [0, 1], got {level!r}")
    for name, value, low in (("agents", agents, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ConfigurationError(f"{name} must be an integer >= {low}, got {value!r}")


def _check_varies(varies: tuple[str, ...]) -> None:
    names = list(varies) if isinstance(varies, tuple) else [None]
    if not names or len(set(names)) != len(names) or not set(names) <= set(VARIES):
        raise ConfigurationError(
            f"varies must be a tuple of different names out of {', '.join(VARIES)}, got {varies!r}"
        )
