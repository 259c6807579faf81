"""Pendulum for many rows at once, each with its own mass, length and gravity.

Guarantee: every row follows Gymnasium's ``Pendulum-v1`` bit for bit (state in float64, torque in
float32 as there), for every valid parameter value, whatever the other rows are.

Notation: n rows; state rows theta, theta'; a dash is a time derivative; u torque.
Source: equations as in gymnasium.envs.classic_control.pendulum.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from privfedrl.envs.numpy_block import Actions, Float64, NumpyBlock
from privfedrl.envs.vector_env import Step
from privfedrl.errors import EnvironmentFault

__all__ = ["VectorPendulum"]

_MAX_TORQUE = np.full(1, 2.0, dtype=np.float32)
_MAX_RATE = 8
_START_LIMITS = np.array([math.pi, 1.0])
_DT = 0.05


class VectorPendulum(NumpyBlock):
    """``num_envs`` Pendulums in one block; satisfies ``VectorEnv``. Never terminates."""

    family = "Pendulum-v1"
    state_size = 2
    observation_size = 3
    action_kind = "continuous"
    action_size = 1
    action_low = -_MAX_TORQUE
    action_high = _MAX_TORQUE

    @staticmethod
    def constants(params: dict[str, float]) -> dict[str, float]:
        """The two factors of the angular acceleration, in Gymnasium's order and Python floats."""
        g, m, length = params["g"], params["m"], params["l"]
        return {"weight": 3 * g / (2 * length), "response": 3.0 / (m * length**2)}

    @staticmethod
    def start(rng: np.random.Generator, rows: int) -> Float64:
        """Any angle, rate uniform in +-1."""
        return rng.uniform(-_START_LIMITS, _START_LIMITS, size=(rows, 2))

    def _allocate(self, constants: dict[str, Float64]) -> None:
        super()._allocate(constants)
        self._response = constants["response"].astype(np.float32)
        self._numbers = np.arange(constants["weight"].shape[0])
        self._live = np.ones(constants["weight"].shape[0], dtype=np.bool_)

    def _write(self) -> None:
        theta, rate = self._state
        np.cos(theta, out=self._observations[0], casting="same_kind")
        np.sin(theta, out=self._observations[1], casting="same_kind")
        self._observations[2] = rate

    def step(self, actions: Actions) -> Step:
        """One step of 0.05 s; torque is clipped to +-2. See ``VectorEnv.step``."""
        torque = np.clip(np.asarray(actions, dtype=np.float32)[:, 0], -_MAX_TORQUE, _MAX_TORQUE)
        self._drop_rows_without_torque(torque)
        theta, rate = self._state
        self._rewards[:] = -_cost(theta, rate, torque)
        turned = self._constants["weight"] * np.sin(theta) + self._response * torque
        new_rate = np.clip(rate + turned * _DT, -_MAX_RATE, _MAX_RATE)
        np.copyto(self._state[1], new_rate, where=self._live)
        np.copyto(self._state[0], theta + new_rate * _DT, where=self._live)
        self._write()
        self._steps += 1
        if self._steps >= self._limit:
            self._truncated[:], self._live[:] = True, False
        return self._observations.T, self._rewards, self._terminated, self._truncated

    def _drop_rows_without_torque(self, torque: NDArray[np.float32]) -> None:
        """A torque that is no number ends its own row, and only that."""
        if np.isfinite(torque).all():
            return
        for row in np.flatnonzero(~np.isfinite(torque) & self._live).tolist():
            fault = EnvironmentFault(f"{self.family}: action is not finite")
            self.failures[int(self._numbers[row])] = fault
            self._live[row], self._truncated[row] = False, True
        torque[~np.isfinite(torque)] = 0.0
        if len(self.failures) == self.num_envs:
            raise next(iter(self.failures.values()))

    def select(self, rows: NDArray[np.intp]) -> None:
        """Keep only these rows until the next reset."""
        numbers, live = self._numbers[rows], self._live[rows]
        super().select(rows)
        self._numbers[:], self._live[:] = numbers, live


def _cost(theta: Float64, rate: Float64, torque: NDArray[np.float32]) -> Float64:
    """Squared angle, rate and torque, summed with Gymnasium's weights, order and precision.

    Its squares are those of numpy scalars, that is the C library's ``pow``: for float64 arrays
    ``float_power`` calls it; for float32 no array function does, hence the list.
    """
    angle = ((theta + math.pi) % (2 * math.pi)) - math.pi
    effort = np.array([u**2 for u in torque], dtype=np.float32)
    squares: Float64 = np.float_power(angle, 2.0) + 0.1 * np.float_power(rate, 2.0)
    return squares + 0.001 * effort
