"""Perturbations of any block: shifted starts, noisy observations, delayed actions, other rewards.

Guarantee: a row's perturbation depends on its own spec, its own share's generator and its own
actions only, never on which other rows are in the block or still run; so rolling K agents in one
block gives bit for bit what rolling each alone gives. Specs without noise draw nothing.

Notation: n rows that are still stepped, D the longest delay in the block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from privfedrl.envs.numpy_block import Actions, NumpyBlock
from privfedrl.envs.spec import EnvSpec
from privfedrl.envs.vector_env import Step, VectorEnv, row_shares
from privfedrl.errors import EnvironmentFault

__all__ = ["PerturbedEnv", "perturbed"]

Float32 = NDArray[np.float32]
# observations whose noise is drawn at a time; no effect on the values
_CHUNK = 32
_MAX_SEED = 2**63


def perturbed(env: VectorEnv, specs: Sequence[EnvSpec]) -> VectorEnv:
    """``env`` with the perturbations of its specs; itself if there are none.

    Args:
        specs: one per equal share of consecutive rows. ``initial_noise`` is applied here to numpy
            blocks only; environments of Gymnasium shift their own starts.
    """
    plain = all(
        (spec.reward_scale, spec.reward_offset, spec.observation_noise, spec.action_delay)
        == (1.0, 0.0, 0.0, 0)
        and not (spec.initial_noise and isinstance(env, NumpyBlock))
        for spec in specs
    )
    return env if plain else PerturbedEnv(env, specs)


class PerturbedEnv:
    """A block behind its perturbations; satisfies ``VectorEnv``."""

    def __init__(self, env: VectorEnv, specs: Sequence[EnvSpec]) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self.observation_size = env.observation_size
        self.action_kind: Literal["discrete", "continuous"] = env.action_kind
        self.num_actions, self.action_size = env.num_actions, env.action_size
        self.action_low, self.action_high = env.action_low, env.action_high
        self._specs = tuple(specs)
        self._share = env.num_envs // len(specs)
        self._default = _default_action(env)
        self._begin([None] * len(specs))

    def _begin(self, generators: list[np.random.Generator | None]) -> None:
        """All rows at time 0, with one generator of noise per share (None: it has no noise)."""
        self._generators = generators
        self._rows = np.arange(self.num_envs)
        scale, offset, std, delay = np.array(
            [
                (spec.reward_scale, spec.reward_offset, spec.observation_noise, spec.action_delay)
                for spec in self._specs
                for _ in range(self._share)
            ]
        ).T
        self._scale, self._offset = scale, offset
        self._rewarded = bool((scale != 1).any() or (offset != 0).any())
        self._std, self._delay = std.astype(np.float32), delay.astype(np.int64)
        self._noise = np.zeros((0, self.num_envs, self.observation_size), dtype=np.float32)
        self._seen = self._acted = 0  # observations and actions since the reset
        shape = (int(self._delay.max()) + 1, self.num_envs, *self._default.shape)
        self._pending = np.broadcast_to(self._default, shape).copy()

    @property
    def failures(self) -> dict[int, EnvironmentFault]:
        """The block's own: one record."""
        return self.env.failures

    @failures.setter
    def failures(self, found: dict[int, EnvironmentFault]) -> None:
        self.env.failures = found

    def reset(self, rng: np.random.Generator | Sequence[np.random.Generator]) -> Float32:
        """Start the block, then shift the starts; noise gets a generator of its own."""
        observations = self.env.reset(rng)
        shares = _per_spec(rng, self.num_envs, len(self._specs))
        shifts = [
            one.uniform(-spec.initial_noise, spec.initial_noise, size=(self._share, size))
            if spec.initial_noise
            else np.zeros((self._share, size))
            for spec, one in zip(self._specs, shares, strict=True)
            if (size := getattr(self.env, "state_size", 0))
        ]
        if isinstance(self.env, NumpyBlock) and any(shift.any() for shift in shifts):
            observations = self._shifted(self.env, np.concatenate(shifts))
        self._begin(
            [
                np.random.default_rng(int(one.integers(_MAX_SEED)))
                if spec.observation_noise
                else None
                for spec, one in zip(self._specs, shares, strict=True)
            ]
        )
        return self._noisy(observations)

    @staticmethod
    def _shifted(env: NumpyBlock, shifts: NDArray[np.float64]) -> Float32:
        env.set_state(env.state + shifts)
        return env.observe()

    def step(self, actions: Actions) -> Step:
        """Let the actions of ``action_delay`` steps ago act. See ``VectorEnv.step``."""
        observations, rewards, terminated, truncated = self.env.step(self._due(actions))
        if self._rewarded:
            rewards = (self._scale * rewards + self._offset).astype(np.float32)
        return self._noisy(observations), rewards, terminated, truncated

    def _due(self, actions: Actions) -> Actions:
        """Remember these actions and take out those whose time has come."""
        slots = self._pending.shape[0]
        if slots == 1:
            return actions
        self._pending[self._acted % slots] = actions
        due: Actions = self._pending[
            (self._acted - self._delay) % slots, np.arange(self._rows.size)
        ]
        self._acted += 1
        return due

    def _noisy(self, observations: Float32) -> Float32:
        if not self._std.any():
            return observations
        position = self._seen % _CHUNK
        if position == 0:
            self._noise = self._draw()
        self._seen += 1
        noisy: Float32 = observations + self._std[:, None] * self._noise[position]
        return noisy

    def _draw(self) -> Float32:
        """Standard normal noise [chunk, n, obs]; a share draws for all its rows, or not at all."""
        noise = np.zeros((_CHUNK, self._rows.size, self.observation_size), dtype=np.float32)
        owners = self._rows // self._share
        for owner, generator in enumerate(self._generators):
            mine = owners == owner
            if generator is not None and mine.any():
                shape = (_CHUNK, self._share, self.observation_size)
                block = generator.standard_normal(shape, dtype=np.float32)
                noise[:, mine] = block[:, self._rows[mine] - owner * self._share]
        return noise

    def select(self, rows: NDArray[np.intp]) -> None:
        """Keep only these rows until the next reset."""
        self.env.select(rows)
        for name in ("_rows", "_scale", "_offset", "_std", "_delay"):
            setattr(self, name, getattr(self, name)[rows])
        self._pending, self._noise = self._pending[:, rows], self._noise[:, rows]

    def close(self) -> None:
        """Close the block."""
        self.env.close()


def _default_action(env: VectorEnv) -> NDArray[np.generic]:
    """What acts before the first action does: a public constant, which the block clips."""
    if env.action_kind == "discrete":
        return np.zeros((), dtype=np.int64)
    return np.zeros(env.action_size, dtype=np.float32)


def _per_spec(
    rng: np.random.Generator | Sequence[np.random.Generator], num_envs: int, specs: int
) -> list[np.random.Generator]:
    """The generator that serves each spec's rows, in order."""
    generators = [one for one, rows in row_shares(rng, num_envs) for _ in range(rows)]
    return generators[:: num_envs // specs]
