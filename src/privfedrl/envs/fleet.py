"""Fleets of agents whose MDPs differ by one scalar level.

Guarantee: level 0 gives identical nominal MDPs; at level h the varied parameters lie evenly
spread over nominal +- h * spread (table in ``spec``), centred on nominal, always valid.

Notation: h level in [0, 1], K agents.
"""

from __future__ import annotations

import numpy as np

from privfedrl.envs.spec import FAMILIES, EnvSpec, Parameter
from privfedrl.errors import ConfigurationError

__all__ = ["heterogeneous", "nominal"]


def nominal(family: str) -> EnvSpec:
    """The unmodified environment of a family (any Gymnasium id)."""
    return EnvSpec(family)


def heterogeneous(family: str, *, level: float, agents: int, seed: int) -> tuple[EnvSpec, ...]:
    """K environments of one family with parameters spread evenly around nominal.

    Each varied parameter takes K equally spaced values, both ends included, dealt to the agents by
    a permutation of its own (so that parameters are not aligned). One agent gets the centre.
    Parameters that cannot go both ways (wind) cover nominal to nominal + h * spread.

    CartPole-v1: pole length factor 1 +- h (kept >= 0.1), gravity factor 1 +- 0.3 h.
    LunarLander-v3: gravity -10 +- h, wind 0 .. 10 h, turbulence 0 .. h.

    Args:
        level: h in [0, 1]; 0 = identical MDPs.
        agents: K >= 1.
        seed: >= 0; fixes the permutations.
    Raises:
        ConfigurationError: argument out of range, or level > 0 for an id without a table row.
    """
    _check(level=level, agents=agents, seed=seed)
    if level == 0:
        return (nominal(family),) * agents
    if family not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ConfigurationError(
            f"level must be 0 for {family!r}; families with a heterogeneity table: {known}"
        )
    rng = np.random.default_rng(seed)
    columns = {
        name: rng.permutation(_values(row, level=level, agents=agents))
        for name, row in sorted(FAMILIES[family].parameters.items())
        if row.spread > 0
    }
    return tuple(
        EnvSpec(family, params=tuple((name, float(values[k])) for name, values in columns.items()))
        for k in range(agents)
    )


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
