"""CartPole for many rows at once, each with its own physics.

Guarantee: every row follows Gymnasium's ``CartPole-v1`` (Euler integrator, reward 1 per step) bit
for bit in float64, for every valid parameter value, whatever the other rows are.

Notation: n rows; state rows x, theta, x', theta' (positions first, so that one Euler step is one
multiply-add of overlapping slices); a dash is a time derivative.
Source: Barto, Sutton and Anderson 1983; equations as in gymnasium.envs.classic_control.cartpole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from privfedrl.envs.spec import EnvSpec
from privfedrl.envs.vector_env import Step, row_shares
from privfedrl.errors import ConfigurationError, EnvironmentFault

__all__ = ["VectorCartPole"]

FAMILY = "CartPole-v1"
_X_LIMIT = 2.4
_THETA_LIMIT = 12 * 2 * math.pi / 360
_RESET_LIMIT = 0.05
_FOUR_THIRDS = 4.0 / 3.0

Float64 = NDArray[np.float64]


class VectorCartPole:
    """``num_envs`` CartPoles in one block; satisfies ``VectorEnv``.

    Args:
        specs: one spec for all rows, or K specs that get ``num_envs / K`` consecutive rows each.
        num_envs: number of rows.
    Raises:
        ConfigurationError: another family, unequal time limits, rows that K does not divide.
    """

    observation_size = 4
    action_kind: Literal["discrete", "continuous"] = "discrete"
    num_actions = 2
    action_size = 0
    action_low: NDArray[np.float32] = np.zeros(0, dtype=np.float32)
    action_high: NDArray[np.float32] = np.zeros(0, dtype=np.float32)

    def __init__(self, specs: EnvSpec | Sequence[EnvSpec], num_envs: int) -> None:
        specs = (specs,) if isinstance(specs, EnvSpec) else tuple(specs)
        self.num_envs = num_envs
        self.failures: dict[int, EnvironmentFault] = {}  # arithmetic on checked parameters: none
        self._limit = _shared_time_limit(specs, num_envs)
        share = num_envs // len(specs)
        names = sorted(specs[0].parameters())
        self._full = {
            name: np.repeat([spec.parameters()[name] for spec in specs], share) for name in names
        }
        self._allocate(self._full)

    def _allocate(self, params: dict[str, Float64]) -> None:
        """Parameters, derived constants and every buffer of a step, for the rows of ``params``."""
        self._params = params
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
        self._columns_pairs = self._columns.reshape(2, 2, n)
        self._state_pairs = self._state.reshape(2, 2, n).transpose(1, 0, 2)
        self._num_ended = 0

    @property
    def state(self) -> Float64:
        """float64 [n, 4], a copy of x, x', theta, theta' in Gymnasium's order."""
        return self._state[[0, 2, 1, 3]].T.copy()

    def set_state(self, state: Float64) -> None:
        """Put all rows at ``state`` float64 [num_envs, 4] (Gymnasium's order), time 0."""
        if state.shape != (self.num_envs, 4) or not np.isfinite(state).all():
            raise ConfigurationError(
                f"state must be finite with shape ({self.num_envs}, 4), got {state.shape}"
            )
        self._allocate(self._full)
        self._state[[0, 2, 1, 3]] = state.T
        self._steps = 0
        self._columns_pairs[...] = self._state_pairs

    def reset(
        self, rng: np.random.Generator | Sequence[np.random.Generator]
    ) -> NDArray[np.float32]:
        """Uniform start in +-0.05, [rows, 4] draws per generator; float32 [num_envs, 4]."""
        shares = row_shares(rng, self.num_envs)
        blocks = [one.uniform(-_RESET_LIMIT, _RESET_LIMIT, size=(rows, 4)) for one, rows in shares]
        self.set_state(np.concatenate(blocks))
        return self._columns.T

    def step(self, actions: NDArray[np.int64] | NDArray[np.float32]) -> Step:
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

    def _accelerate(self, actions: NDArray[np.int64] | NDArray[np.float32]) -> None:
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
        self._allocate({name: values[rows] for name, values in self._params.items()})
        self._state[...], self._live_tau[:] = state, tau
        self._terminated[:], self._truncated[:] = terminated, truncated
        self._num_ended = int(np.count_nonzero(terminated))
        self._columns_pairs[...] = self._state_pairs

    def close(self) -> None:
        """Nothing is held."""


def _shared_time_limit(specs: Sequence[EnvSpec], num_envs: int) -> int:
    if isinstance(num_envs, bool) or num_envs < 1 or not specs or num_envs % len(specs):
        raise ConfigurationError(
            f"num_envs must be a positive multiple of the {len(specs)} specs, got {num_envs}"
        )
    others = sorted({spec.id for spec in specs} - {FAMILY})
    if others:
        raise ConfigurationError(f"id must be {FAMILY} for every row, got {', '.join(others)}")
    limits = {spec.time_limit for spec in specs}
    limit = limits.pop()
    if limits or limit is None:
        raise ConfigurationError("horizon must be the same for all specs of one block")
    return limit
