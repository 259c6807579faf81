"""How different the environments of a fleet really are, measured.

Guarantee: the same specs and seed give the same figures; an agent's figures depend on its own spec
and the nominal environment only.

This is an oracle for simulations: it looks into every agent's environment. In a deployment each of
these figures would be computed from private experience, and telling it would be a release.

Notation: S states, E episodes; sigma_j root mean square of the nominal environment's own change of
state coordinate j in one step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from privfedrl.envs import BLOCKS, make_vector_env
from privfedrl.envs.numpy_block import Actions, Float64, NumpyBlock
from privfedrl.envs.spec import EnvSpec
from privfedrl.envs.vector_env import VectorEnv
from privfedrl.errors import ConfigurationError, EnvironmentFault

__all__ = ["AgentDistance", "Heterogeneity", "measure"]

_SPREAD_STEPS = 32  # common states are taken from the first steps of a random policy
_TABLE_ROWS = (
    ("state_mean", "state"),
    ("state_max", "max"),
    ("reward_mean", "reward"),
    ("reward_max", "max"),
    ("return_difference", "return"),
    ("return_error", "+-"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentDistance:
    """One agent against the nominal environment; None where it cannot be measured.

    Attributes:
        state_mean, state_max: distance of the next states from common states and actions, root
            mean square over coordinates in units of sigma_j.
        reward_mean, reward_max: distance of the rewards there, in units of the root mean square of
            the nominal rewards.
        return_difference, return_error: mean return of the uniformly random policy less that in
            the nominal environment (same seeds), and its standard error.
        lost: episodes that an environment failed in.
    """

    state_mean: float | None = None
    state_max: float | None = None
    reward_mean: float | None = None
    reward_max: float | None = None
    return_difference: float | None = None
    return_error: float | None = None
    lost: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heterogeneity:
    """What ``measure`` found; ``str`` gives a table, ``to_json`` all figures.

    Attributes:
        nominal_return, nominal_error: the random policy in the nominal environment.
    """

    family: str
    agents: tuple[AgentDistance, ...]
    nominal_return: float
    nominal_error: float
    states: int
    episodes: int
    horizon: int
    seed: int

    def to_json(self) -> str:
        """All figures as one JSON object."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Heterogeneity:
        """Read ``to_json``'s format; ConfigurationError for anything else."""
        try:
            data = json.loads(text)
            agents = tuple(AgentDistance(**agent) for agent in data.pop("agents"))
            return cls(agents=agents, **data)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ConfigurationError("measured heterogeneity must be JSON of its own") from error

    def __str__(self) -> str:
        head = (
            f"{self.family}: {len(self.agents)} agents against nominal; random policy returns "
            f"{self.nominal_return:.4g} +- {self.nominal_error:.2g} there"
        )
        titles = "agent" + "".join(f"{title:>11}" for _name, title in _TABLE_ROWS)
        rows = [
            f"{k:>5}" + "".join(f"{_figure(getattr(agent, name)):>11}" for name, _ in _TABLE_ROWS)
            for k, agent in enumerate(self.agents)
        ]
        return "\n".join([head, titles, *rows])


def measure(
    specs: Sequence[EnvSpec],
    *,
    seed: int,
    states: int = 256,
    episodes: int = 32,
    horizon: int = 200,
) -> Heterogeneity:
    """Compare every agent's environment with the nominal one of its family.

    Families with a numpy environment are compared step by step from common states and actions
    (rewards with the spec's scale and offset). Noise, delay and starts do not show in one step;
    for them, and for every other id, the returns of one fixed policy are compared.

    Args:
        specs: agents of one family with one time limit and action repeat.
        seed: >= 0.
        states, episodes: S >= 1 and E >= 2.
        horizon: most steps of an episode.
    Raises:
        ConfigurationError: families or time limits differ, an argument is out of range.
        EnvironmentFault: the nominal environment fails.
    """
    for name, value, low in (
        ("seed", seed, 0),
        ("states", states, 1),
        ("episodes", episodes, 2),
        ("horizon", horizon, 1),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ConfigurationError(f"{name} must be an integer >= {low}, got {value!r}")
    if len({(spec.id, spec.time_limit, spec.action_repeat) for spec in specs}) != 1:
        raise ConfigurationError(
            "specs must be at least one, of one family with one horizon and action_repeat"
        )
    base = EnvSpec(specs[0].id, horizon=specs[0].horizon, action_repeat=specs[0].action_repeat)
    reference = _returns(base, episodes, horizon, seed)
    found: dict[EnvSpec, AgentDistance] = {}
    for spec in specs:
        if spec not in found:
            found[spec] = _distance(spec, base, reference, states, horizon, seed)
    return Heterogeneity(
        family=base.id,
        agents=tuple(found[spec] for spec in specs),
        nominal_return=float(np.nanmean(reference)),
        nominal_error=_standard_error(reference[np.isfinite(reference)]),
        states=states,
        episodes=episodes,
        horizon=horizon,
        seed=seed,
    )


def _distance(
    spec: EnvSpec, base: EnvSpec, reference: Float64, states: int, horizon: int, seed: int
) -> AgentDistance:
    step = _one_step(spec, base, states, seed) if spec.id in BLOCKS else {}
    try:
        difference = _returns(spec, reference.shape[0], horizon, seed) - reference
    except EnvironmentFault:
        return AgentDistance(**step, lost=reference.shape[0])
    kept = difference[np.isfinite(difference)]
    lost = reference.shape[0] - kept.shape[0]
    if kept.shape[0] < 2:
        return AgentDistance(**step, lost=lost)
    return AgentDistance(
        **step,
        return_difference=float(kept.mean()),
        return_error=_standard_error(kept),
        lost=lost,
    )


def _one_step(spec: EnvSpec, base: EnvSpec, states: int, seed: int) -> dict[str, float]:
    """Distances after one step from common states and actions."""
    common, actions = _common(base, states, seed)
    nominal_next, nominal_paid = _stepped(base, common, actions)
    found_next, found_paid = _stepped(spec, common, actions)
    angles = list(BLOCKS[spec.id].wrapped)
    sigma = np.sqrt(np.mean(_difference(nominal_next, common, angles) ** 2, axis=0))
    sigma[sigma == 0] = 1.0
    far = _difference(found_next, nominal_next, angles) / sigma
    distance = np.sqrt(np.mean(far**2, axis=1))
    unit = math.sqrt(float(np.mean(nominal_paid**2))) or 1.0
    paid = np.abs(found_paid - nominal_paid) / unit
    return {
        "state_mean": float(distance.mean()),
        "state_max": float(distance.max()),
        "reward_mean": float(paid.mean()),
        "reward_max": float(paid.max()),
    }


def _common(base: EnvSpec, states: int, seed: int) -> tuple[Float64, Actions]:
    """S states that a random policy visits in the nominal environment, and an action for each."""
    rng = np.random.default_rng([seed, 0])
    env: NumpyBlock = BLOCKS[base.id](base, states)
    env.reset(rng)
    visited = env.state
    moments = rng.integers(_SPREAD_STEPS, size=states)
    for moment in range(_SPREAD_STEPS):
        *_, terminated, truncated = env.step(_random_actions(env, rng, states))
        current = (moments > moment) & ~(terminated | truncated)
        visited[current] = env.state[current]
    return visited, _random_actions(env, rng, states)


def _stepped(spec: EnvSpec, states: Float64, actions: Actions) -> tuple[Float64, Float64]:
    env = BLOCKS[spec.id](spec, states.shape[0])
    env.set_state(states)
    _, rewards, _, _ = env.step(actions)
    return env.state, spec.reward_scale * rewards.astype(np.float64) + spec.reward_offset


def _difference(left: Float64, right: Float64, angles: list[int]) -> Float64:
    """left - right, whole turns off where the state itself takes them off."""
    difference = left - right
    difference[:, angles] = (difference[:, angles] + math.pi) % (2 * math.pi) - math.pi
    return difference


def _returns(spec: EnvSpec, episodes: int, horizon: int, seed: int) -> Float64:
    """Return of the uniformly random policy per episode; NaN where the environment failed."""
    env = make_vector_env(spec, episodes)
    try:
        env.reset(np.random.default_rng([seed, 1]))
        rng = np.random.default_rng([seed, 2])
        total, live = np.zeros(episodes), np.ones(episodes, dtype=np.bool_)
        for _ in range(horizon):
            _, rewards, terminated, truncated = env.step(_random_actions(env, rng, episodes))
            total[live] += rewards[live]
            live &= ~(terminated | truncated)
            if not live.any():
                break
        total[list(env.failures)] = np.nan
    finally:
        env.close()
    return total


def _random_actions(env: VectorEnv, rng: np.random.Generator, rows: int) -> Actions:
    if env.action_kind == "discrete":
        return rng.integers(env.num_actions, size=rows)
    low, high = np.maximum(env.action_low, -1e3), np.minimum(env.action_high, 1e3)
    actions: NDArray[np.float32] = rng.uniform(low, high, size=(rows, env.action_size)).astype(
        np.float32
    )
    return actions


def _standard_error(values: Float64) -> float:
    return float(values.std(ddof=1) / math.sqrt(values.shape[0]))


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
