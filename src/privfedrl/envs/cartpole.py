"""CartPole for many rows at once, each with its own physics.

Guarantee: every row follows Gymnasium's ``CartPole-v1`` (Euler integrator, reward 1 per step) bit
for bit in float64, for every valid parameter value, whatever the other rows are.

Notation: n rows; state rows x, theta, x', theta' (positions first, so that one Euler step is one
multiply-add of overlapping slices); a dash is a time derivative.
Source: Barto, Sutton and Anderson 1983; equations as in gymnasium.envs.classic_control.cartpole.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from privfedrl.envs.numpy_block import Actions, Float64, NumpyBlock
from privfedrl.envs.vector_env import Step

__all__ = ["VectorCartPole"]

_X_LIMIT = 2.4
_THETA_LIMIT = 12 * 2 * math.pi / 360
_RESET_LIMIT = 0.05
_FOUR_THIRDS = 4.0 / 3.0


class VectorCartPole(NumpyBlock):
    """``num_envs`` CartPoles in one block; satisfies ``VectorEnv``. Actions: left, right."""

    family = "CartPole-v1"
    state_size = 4
    observation_size = 4
    num_actions = 2

    @staticmethod
    def start(rng: np.random.Generator, rows: int) -> Float64:
        """Uniform in +-0.05."""
        return rng.uniform(-_RESET_LIMIT, _RESET_LIMIT, size=(rows, 4))

    def _allocate(self, params: dict[str, Float64]) -> None:
        """Parameters, derived constants and every buffer of a step, for the rows of ``params``."""
        self._constants = params
        n = params["length"].shape[0]
        self._length, self._gravity = params["length"], params["gravity"]
        self._masspole = params["masspole"]
        # the order of Gymnasium's sums and products, so that every bit agrees
        self._total_mass = params["masspole"] + params["masscart"]
        self._polemass_length = params["masspole"] * params["length"]
        self._push, self._pull = params["force_mag"], -params["force_mag"]
        self._live_tau = params["tau"].copy()  # 0 for rows that ended: their state stands still
        self._motion = np.zeros((6, n))  # x, theta, x', theta', x'', theta''
        self._state, self._rates = self._motion[:4], self._motion[2:]
        self._positions, self._theta = self._motion[:2], self._motion[1]
        self._theta_rate, self._x_acc, self._theta_acc = self._motion[3:]
        self._delta = np.empty((4, n))
        self._a, self._b, self._cos, self._sin = (np.empty(n) for _ in range(4))
        self._absolute = np.empty((2, n))
        self._limits = np.array([[_X_LIMIT], [_THETA_LIMIT]])
        self._outside = np.empty((2, n), dtype=np.bool_)
        self._terminated = np.zeros(n, dtype=np.bool_)
        self._truncated = np.zeros(n, dtype=np.bool_)
        self._rewards = np.ones(n, dtype=np.float32)
        self._columns = np.empty((4, n), dtype=np.float32)  # x, x', theta, theta'
        self._observations = self._columns
        self._columns_pairs = self._columns.reshape(2, 2, n)
        self._state_pairs = self._state.reshape(2, 2, n).transpose(1, 0, 2)
        self._num_ended = 0

    @property
    def state(self) -> Float64:
        """float64 [n, 4], a copy of x, x', theta, theta' in Gymnasium's order."""
        return self._state[[0, 2, 1, 3]].T.copy()

    def _place(self, columns: Float64) -> None:
        self._state[[0, 2, 1, 3]] = columns

    def _write(self) -> None:
        self._columns_pairs[...] = self._state_pairs

    def step(self, actions: Actions) -> Step:
        """One Euler step; action 1 pushes right, 0 left. See ``VectorEnv.step``."""
        self._accelerate(actions)
        np.multiply(self._live_tau, self._rates, out=self._delta)
        np.add(self._state, self._delta, out=self._state)
        np.abs(self._positions, out=self._absolute)
        np.greater(self._absolute, self._limits, out=self._outside)
        np.logical_or(self._outside[0], self._outside[1], out=self._terminated)
        self._columns_pairs[...] = self._state_pairs
        self._steps += 1
        ended = int(np.count_nonzero(self._terminated))
        if ended != self._num_ended:
            self._num_ended = ended
            self._live_tau[self._terminated] = 0.0
        if self._steps >= self._limit:
            np.logical_not(self._terminated, out=self._truncated)
            self._live_tau[:] = 0.0
        return self._columns.T, self._rewards, self._terminated, self._truncated

    def _accelerate(self, actions: Actions) -> None:
        """x'' and theta'' in Gymnasium's order of operations, without temporaries."""
        a, b, cos, sin = self._a, self._b, self._cos, self._sin
        np.cos(self._theta, out=cos)
        np.sin(self._theta, out=sin)
        # a = temp = (force + polemass_length * theta'^2 * sin) / total_mass
        np.square(self._theta_rate, out=a)
        np.multiply(self._polemass_length, a, out=a)
        np.multiply(a, sin, out=a)
        np.add(np.where(actions, self._push, self._pull), a, out=a)
        np.divide(a, self._total_mass, out=a)
        # sin = gravity * sin - cos * temp
        np.multiply(self._gravity, sin, out=sin)
        np.multiply(cos, a, out=b)
        np.subtract(sin, b, out=sin)
        # b = length * (4/3 - masspole * cos^2 / total_mass)
        np.square(cos, out=b)
        np.multiply(self._masspole, b, out=b)
        np.divide(b, self._total_mass, out=b)
        np.subtract(_FOUR_THIRDS, b, out=b)
        np.multiply(self._length, b, out=b)
        np.divide(sin, b, out=self._theta_acc)
        # x'' = temp - polemass_length * theta'' * cos / total_mass
        np.multiply(self._polemass_length, self._theta_acc, out=b)
        np.multiply(b, cos, out=b)
        np.divide(b, self._total_mass, out=b)
        np.subtract(a, b, out=self._x_acc)

    def select(self, rows: NDArray[np.intp]) -> None:
        """Keep only these rows until the next reset."""
        state, tau = self._state[:, rows], self._live_tau[rows]
        terminated, truncated = self._terminated[rows], self._truncated[rows]
        self._allocate({name: values[rows] for name, values in self._constants.items()})
        self._state[...], self._live_tau[:] = state, tau
        self._terminated[:], self._truncated[:] = terminated, truncated
        self._num_ended = int(np.count_nonzero(terminated))
        self._columns_pairs[...] = self._state_pairs
