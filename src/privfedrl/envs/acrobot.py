"""Acrobot for many rows at once, each with its own links and torque.

Guarantee: every row follows Gymnasium's ``Acrobot-v1`` (Runge-Kutta of order 4, the equations of
the book, reward -1 per step and 0 at the goal) bit for bit in float64, for every valid parameter
value, whatever the other rows are.

Notation: n rows; state rows theta1, theta2, theta1', theta2'; a dash is a time derivative; lc is
the distance of a link's centre of mass from its joint. d1, d2, phi1 and phi2 are Sutton and
Barto's (section 11.3 of the first edition).
Source: Sutton 1996; equations as in gymnasium.envs.classic_control.acrobot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from privfedrl.envs.numpy_block import Actions, Float64, NumpyBlock
from privfedrl.envs.vector_env import Step

__all__ = ["VectorAcrobot"]

_GRAVITY = 9.8
_START_LIMIT = 0.1
_MAX_RATE = np.array([[4 * math.pi], [9 * math.pi]])
_TURN = math.pi - -math.pi


class VectorAcrobot(NumpyBlock):
    """``num_envs`` Acrobots in one block; satisfies ``VectorEnv``. Actions: torque -, 0, +."""

    family = "Acrobot-v1"
    state_size = 4
    wrapped = (0, 1)
    observation_size = 6
    num_actions = 3

    @staticmethod
    def constants(params: dict[str, float]) -> dict[str, float]:
        """The factors of the equations that do not depend on the state, in Gymnasium's order.

        Python floats, as there: ``x**2`` is the C library's ``pow``, not always x * x.
        """
        m1, m2, inertia = params["LINK_MASS_1"], params["LINK_MASS_2"], params["LINK_MOI"]
        l1, lc1, lc2 = (params[f"LINK_{name}"] for name in ("LENGTH_1", "COM_POS_1", "COM_POS_2"))
        return {
            "mass2": m2,
            "inertia": inertia,
            "inertia1": m1 * lc1**2,
            "squares": l1**2 + lc2**2,
            "twice_arms": 2 * l1 * lc2,
            "lc2_squared": lc2**2,
            "arms": l1 * lc2,
            "inertia2": m2 * lc2**2 + inertia,
            "centrifugal": m2 * l1 * lc2,
            "minus_centrifugal": -m2 * l1 * lc2,
            "coriolis": 2 * m2 * l1 * lc2,
            "weight1": (m1 * lc1 + m2 * l1) * _GRAVITY,
            "weight2": m2 * lc2 * _GRAVITY,
            "torque": params["max_torque"],
            "dt": params["dt"],
        }

    @staticmethod
    def start(rng: np.random.Generator, rows: int) -> Float64:
        """Uniform in +-0.1, rounded to float32 as Gymnasium does."""
        draws = rng.uniform(-_START_LIMIT, _START_LIMIT, size=(rows, 4))
        return draws.astype(np.float32).astype(np.float64)

    def _allocate(self, constants: dict[str, Float64]) -> None:
        super()._allocate(constants)
        self._live_dt = constants["dt"].copy()  # 0 for rows that ended: their state stands still
        torque = constants["torque"]
        self._torques = np.stack([-torque, np.zeros_like(torque), torque])
        self._columns = np.arange(torque.shape[0])

    def reset(
        self, rng: np.random.Generator | Sequence[np.random.Generator]
    ) -> NDArray[np.float32]:
        """As ``NumpyBlock.reset``."""
        super().reset(rng)
        # Gymnasium's first state is float32, and so are its first cosines
        self._write_angles(self._state[:2].astype(np.float32))
        return self.observe()

    def _write(self) -> None:
        self._write_angles(self._state[:2])
        self._observations[4:] = self._state[2:]

    def _write_angles(self, angles: NDArray[np.floating]) -> None:
        self._observations[0:4:2] = np.cos(angles)
        self._observations[1:4:2] = np.sin(angles)

    def step(self, actions: Actions) -> Step:
        """One Runge-Kutta step of 0.2 s. See ``VectorEnv.step``."""
        self._integrate(self._torques[actions, self._columns])
        self._steps += 1
        self._write()
        theta1, theta2 = self._state[:2]
        np.greater(-np.cos(theta1) - np.cos(theta2 + theta1), 1.0, out=self._terminated)
        np.subtract(self._terminated, 1.0, out=self._rewards, dtype=np.float32)
        self._live_dt[self._terminated] = 0.0
        if self._steps >= self._limit:
            np.logical_not(self._terminated, out=self._truncated)
            self._live_dt[:] = 0.0
        return self._observations.T, self._rewards, self._terminated, self._truncated

    def _integrate(self, torque: Float64) -> None:
        """Runge-Kutta, then angles into [-pi, pi] and rates into their bounds."""
        dt, y = self._live_dt, self._state
        half = dt / 2.0
        k1 = self._derivative(y, torque)
        k2 = self._derivative(y + half * k1, torque)
        k3 = self._derivative(y + half * k2, torque)
        k4 = self._derivative(y + dt * k3, torque)
        y = y + dt / 6.0 * (k1 + 2 * k2 + 2 * k3 + k4)
        np.minimum(np.maximum(y[2:], -_MAX_RATE), _MAX_RATE, out=self._state[2:])
        self._state[:2] = _wrapped(y[:2])

    def _derivative(self, y: Float64, torque: Float64) -> Float64:
        """theta1', theta2', theta1'', theta2'' at ``y``; terms in Gymnasium's order."""
        c = self._constants
        theta1, theta2, rate1, rate2 = y
        cos, sin = np.cos(theta2), np.sin(theta2)
        mass2, inertia = c["mass2"], c["inertia"]
        d1 = c["inertia1"] + mass2 * (c["squares"] + c["twice_arms"] * cos) + inertia + inertia
        d2 = mass2 * (c["lc2_squared"] + c["arms"] * cos) + inertia
        phi2 = c["weight2"] * np.cos(theta1 + theta2 - math.pi / 2.0)
        phi1 = (
            c["minus_centrifugal"] * _squared(rate2) * sin
            - c["coriolis"] * rate2 * rate1 * sin
            + c["weight1"] * np.cos(theta1 - math.pi / 2)
            + phi2
        )
        result = np.empty_like(y)
        result[:2] = y[2:]
        result[3] = (torque + d2 / d1 * phi1 - c["centrifugal"] * _squared(rate1) * sin - phi2) / (
            c["inertia2"] - _squared(d2) / d1
        )
        result[2] = -(d2 * result[3] + phi1) / d1
        return result

    def select(self, rows: NDArray[np.intp]) -> None:
        """Keep only these rows until the next reset."""
        live_dt = self._live_dt[rows]
        super().select(rows)
        self._live_dt[:] = live_dt


def _squared(x: Float64) -> Float64:
    """x**2 as numpy's scalars compute it: the C library's ``pow``, which is not always x * x."""
    return np.asarray(np.float_power(x, 2.0))


def _wrapped(angles: Float64) -> Float64:
    """Whole turns off, one at a time as Gymnasium takes them, until within [-pi, pi]."""
    while (above := angles > math.pi).any():
        np.subtract(angles, _TURN, out=angles, where=above)
    while (below := angles < -math.pi).any():
        np.add(angles, _TURN, out=angles, where=below)
    return angles
