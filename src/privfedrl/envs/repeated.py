"""Each action held for several steps of the environment: fewer decisions, shorter trajectories.

Guarantee: a row's rewards are summed up to its own end and not beyond; rows do not touch another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from privfedrl.envs.vector_env import Step, VectorEnv
from privfedrl.errors import EnvironmentFault

__all__ = ["RepeatedEnv", "repeated"]


def repeated(env: VectorEnv, times: int) -> VectorEnv:
    """``env`` with every action held for ``times`` steps; itself if that is one."""
    if times == 1:
        return env
    held: VectorEnv = RepeatedEnv(env, times)
    return held


class RepeatedEnv:
    """A block whose step is ``times`` steps of another; satisfies ``VectorEnv``."""

    def __init__(self, env: VectorEnv, times: int) -> None:
        self.env = env
        self.times = times
        self.num_envs = env.num_envs
        self.observation_size = env.observation_size
        self.action_kind: Literal["discrete", "continuous"] = env.action_kind
        self.num_actions, self.action_size = env.num_actions, env.action_size
        self.action_low, self.action_high = env.action_low, env.action_high
        self._running = np.ones(env.num_envs, dtype=np.bool_)

    @property
    def failures(self) -> dict[int, EnvironmentFault]:
        """The block's own: one record."""
        return self.env.failures

    @failures.setter
    def failures(self, found: dict[int, EnvironmentFault]) -> None:
        self.env.failures = found

    def reset(
        self, rng: np.random.Generator | Sequence[np.random.Generator]
    ) -> NDArray[np.float32]:
        """As the block's."""
        observations = self.env.reset(rng)
        self._running = np.ones(self.num_envs, dtype=np.bool_)
        return observations

    def step(self, actions: NDArray[np.int64] | NDArray[np.float32]) -> Step:
        """Hold ``actions``; rewards float32 [n] are sums. See ``VectorEnv.step``."""
        total = np.zeros(self._running.size, dtype=np.float32)
        for _ in range(self.times):
            observations, rewards, terminated, truncated = self.env.step(actions)
            # rewards of rows that ended before are meaningless
            total[self._running] += rewards[self._running]
            self._running = ~(terminated | truncated)
            if not self._running.any():
                break
        return observations, total, terminated, truncated

    def select(self, rows: NDArray[np.intp]) -> None:
        """Keep only these rows until the next reset."""
        self.env.select(rows)
        self._running = self._running[rows]

    def close(self) -> None:
        """Close the block."""
        self.env.close()
