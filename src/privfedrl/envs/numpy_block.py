"""What the numpy environments share: rows, per-row constants, starts and the time limit.

Guarantee: a row depends on its own spec, its own share's generator and its own actions only; rows
that ended stand still and keep their flag until the next reset.

Notation: n rows that are still stepped, K specs that get n / K consecutive rows each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from privfedrl.envs.spec import EnvSpec
from privfedrl.envs.vector_env import Step, row_shares
from privfedrl.errors import ConfigurationError, EnvironmentFault

__all__ = ["Actions", "Float64", "NumpyBlock"]

Float64 = NDArray[np.float64]
Actions = NDArray[np.int64] | NDArray[np.float32]


class NumpyBlock(ABC):
    """``num_envs`` environments of one family in one block; satisfies ``VectorEnv``.

    A family gives its sizes, ``constants``, ``start``, ``_allocate``, ``_write`` and ``step``.

    Args:
        specs: one spec for all rows, or K specs that get ``num_envs / K`` consecutive rows each.
        num_envs: number of rows.
    Raises:
        ConfigurationError: another family, unequal time limits, rows that K does not divide.
    """

    family: ClassVar[str]
    state_size: ClassVar[int]
    wrapped: ClassVar[tuple[int, ...]] = ()  # state coordinates that are taken modulo a turn
    observation_size: int
    action_kind: Literal["discrete", "continuous"] = "discrete"
    num_actions: int = 0
    action_size: int = 0
    action_low: NDArray[np.float32] = np.zeros(0, dtype=np.float32)
    action_high: NDArray[np.float32] = np.zeros(0, dtype=np.float32)

    def __init__(self, specs: EnvSpec | Sequence[EnvSpec], num_envs: int) -> None:
        specs = (specs,) if isinstance(specs, EnvSpec) else tuple(specs)
        self.num_envs = num_envs
        self.failures: dict[int, EnvironmentFault] = {}
        self._limit = _shared_time_limit(specs, num_envs, self.family)
        self._steps = 0
        share = num_envs // len(specs)
        constants = [self.constants(spec.parameters()) for spec in specs]
        self._full = {
            name: np.repeat(np.array([one[name] for one in constants]), share)
            for name in constants[0]
        }
        self._allocate(self._full)

    @staticmethod
    def constants(params: dict[str, float]) -> dict[str, float]:
        """What a row keeps of its spec's parameters, by name."""
        return params

    @staticmethod
    @abstractmethod
    def start(rng: np.random.Generator, rows: int) -> Float64:
        """Initial states float64 [rows, state_size] of one share."""

    def _allocate(self, constants: dict[str, Float64]) -> None:
        """Take these rows' constants and make room for their state and answers."""
        self._constants = constants
        n = next(iter(constants.values())).shape[0]
        self._state = np.zeros((self.state_size, n))
        self._observations = np.zeros((self.observation_size, n), dtype=np.float32)
        self._rewards = np.zeros(n, dtype=np.float32)
        self._terminated = np.zeros(n, dtype=np.bool_)
        self._truncated = np.zeros(n, dtype=np.bool_)

    @abstractmethod
    def _write(self) -> None:
        """Write what the state looks like into ``_observations``."""

    @property
    def state(self) -> Float64:
        """float64 [n, state_size], a copy in Gymnasium's order."""
        return self._state.T.copy()

    def set_state(self, state: Float64) -> None:
        """Put all rows at ``state`` float64 [num_envs, state_size] (Gymnasium's order), time 0."""
        expected = (self.num_envs, self.state_size)
        if state.shape != expected or not np.isfinite(state).all():
            raise ConfigurationError(
                f"state must be finite with shape {expected}, got {state.shape}"
            )
        self._allocate(self._full)
        self.failures.clear()
        self._steps = 0
        self._place(state.T)
        self._write()

    def _place(self, columns: Float64) -> None:
        """Take ``columns`` float64 [state_size, n], in Gymnasium's order, as the state."""
        self._state[...] = columns

    def reset(
        self, rng: np.random.Generator | Sequence[np.random.Generator]
    ) -> NDArray[np.float32]:
        """Start every share from its own generator; float32 [num_envs, observation_size]."""
        shares = row_shares(rng, self.num_envs)
        self.set_state(np.concatenate([self.start(one, rows) for one, rows in shares]))
        return self.observe()

    def observe(self) -> NDArray[np.float32]:
        """What every row shows now, float32 [n, observation_size]; valid until the next step."""
        return self._observations.T

    @abstractmethod
    def step(self, actions: Actions) -> Step:
        """One step of every row that has not ended. See ``VectorEnv.step``."""

    def select(self, rows: NDArray[np.intp]) -> None:
        """Keep only these rows until the next reset."""
        kept = {
            name: getattr(self, name)[..., rows]
            for name in ("_state", "_observations", "_terminated", "_truncated")
        }
        self._allocate({name: values[rows] for name, values in self._constants.items()})
        for name, values in kept.items():
            getattr(self, name)[...] = values

    def close(self) -> None:  # noqa: B027 - arrays hold nothing that has to be given back
        """Nothing is held."""


def _shared_time_limit(specs: Sequence[EnvSpec], num_envs: int, family: str) -> int:
    if isinstance(num_envs, bool) or num_envs < 1 or not specs or num_envs % len(specs):
        raise ConfigurationError(
            f"num_envs must be a positive multiple of the {len(specs)} specs, got {num_envs}"
        )
    others = sorted({spec.id for spec in specs} - {family})
    if others:
        raise ConfigurationError(f"id must be {family} for every row, got {', '.join(others)}")
    limits = {spec.time_limit for spec in specs}
    limit = limits.pop()
    if limits or limit is None:
        raise ConfigurationError("horizon must be the same for all specs of one block")
    return limit
