"""Stochastic multilayer perceptrons over a flat parameter vector, in plain numpy.

Guarantee: what a row gets depends on the parameters and that row alone (of a recurrent policy: on
what that row has seen since the start), bit for bit, whatever other rows share the block.

Notation: n rows, h units of a memory, o outputs (logits or Q values of n actions, or k means).
Flat layout: of a recurrent policy first the memory's two layers, from the observation [3h, obs] and
from itself [3h, h], whose rows are those of the reset, update and new gates in turn (torch's GRU);
then the actor's layers; a Gaussian policy appends log_std [k]; a critic's layers come last. A layer
is the weights W, row-major [out, in], then the bias b [out]. Actor and critic are tanh between
layers and linear at the end, and share nothing; the critic has no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError

__all__ = ["BoundPolicy", "MlpPolicy"]

Float32 = NDArray[np.float32]

#: larger weights would let float32 logits overflow for observations up to 1e20
MAX_PARAMETER = 1e9
#: exp(+-80) is inside the range of float32
MAX_LOG_STD = 80.0
#: beyond this a squashed action would lose its float32 resolution
MAX_BOUND = 1e6
_MAX_LOGIT_GAP = np.float32(80.0)
_LAST_LAYER_GAIN = 0.01
# np.einsum walks rows in its inner loop only if there are at least two of them
_MIN_ROWS = 2
_ACTIONS = ("categorical", "gaussian", "q-values")


@dataclass(frozen=True, kw_only=True)
class MlpPolicy:
    """Shape of a policy; parameters are passed in as one flat vector.

    Attributes:
        observation_size: length of a flat observation, >= 1.
        hidden: sizes of the tanh layers, may be empty.
        action: ``categorical`` (one logit per action), ``gaussian`` (one mean per dimension and
            a log standard deviation that does not depend on the state) or ``q-values`` (one value
            per action; acts greedily, or at random with a given probability).
        action_size: number of actions (>= 2), or dimension of the action (>= 1).
        critic_hidden: tanh layers of a value network V(o) beside the actor, or None without one.
        bounds: public (low, high) into which tanh squashes every Gaussian action, or None: actions
            go out as sampled, and the environment clips them. Trajectories keep what was sampled,
            whose density is that of the Gaussian.
        recurrent: units h of a GRU between the observation and the actor's layers, which then see
            its state alone; 0 = none. The state is zero at the start of a trajectory.
    """

    observation_size: int
    hidden: tuple[int, ...]
    action: Literal["categorical", "gaussian", "q-values"]
    action_size: int
    critic_hidden: tuple[int, ...] | None = None
    bounds: tuple[float, float] | None = None
    recurrent: int = 0

    def __post_init__(self) -> None:
        if self.action not in _ACTIONS:
            raise ConfigurationError(f"action must be one of {_ACTIONS}, got {self.action!r}")
        least = 1 if self.action == "gaussian" else 2
        sizes = [("observation_size", self.observation_size, 1)]
        sizes += [("hidden", size, 1) for size in self.hidden]
        sizes += [("critic_hidden", size, 1) for size in self.critic_hidden or ()]
        sizes += [("action_size", self.action_size, least), ("recurrent", self.recurrent, 0)]
        for name, size, low in sizes:
            if not isinstance(size, int) or isinstance(size, bool) or size < low:
                raise ConfigurationError(f"{name} must be an integer >= {low}, got {size!r}")
        if self.bounds is not None:
            _check_bounds(self.action, self.bounds)
        if self.recurrent and self.action == "q-values":
            raise ConfigurationError(
                f"recurrent must be 0 for action 'q-values', got {self.recurrent}: single "
                "transitions are replayed without what came before them"
            )

    @cached_property
    def memory_layers(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of the memory's weights, from the observation and from itself; or empty."""
        if not self.recurrent:
            return ()
        gates = 3 * self.recurrent
        return ((gates, self.observation_size), (gates, self.recurrent))

    @cached_property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of every weight matrix of the actor, first layer first; each has a bias."""
        return _layers(self.recurrent or self.observation_size, self.hidden, self.action_size)

    @cached_property
    def critic_layers(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of every weight matrix of the critic; empty without one."""
        if self.critic_hidden is None:
            return ()
        return _layers(self.observation_size, self.critic_hidden, 1)

    @cached_property
    def actor_parameters(self) -> int:
        """Length of the actor's part with memory and log_std; the critic's part follows it."""
        return self._log_std.stop

    @cached_property
    def _log_std(self) -> slice:
        """Where log_std lies; empty unless the policy is Gaussian."""
        start = _count(self.memory_layers) + _count(self.layers)
        return slice(start, start + (self.action_size if self.action == "gaussian" else 0))

    @cached_property
    def num_parameters(self) -> int:
        """Length of the flat vector."""
        return self.actor_parameters + _count(self.critic_layers)

    def initial_parameters(
        self, rng: np.random.Generator, *, log_std: float = 0.0
    ) -> NDArray[np.float64]:
        """float64 [num_parameters]: orthogonal weights, last layers scaled by 0.01, zero biases.

        The small last layer makes the first policy nearly uniform; a Gaussian one starts with
        standard deviation exp(log_std). Each gate of a memory is orthogonal by itself.
        """
        parts: list[NDArray[np.float64]] = []
        for out, into in self.memory_layers:
            parts += [_orthogonal(self.recurrent, into, rng).ravel() for _gate in range(3)]
            parts.append(np.zeros(out))
        parts += _initial(self.layers, rng)
        if self.action == "gaussian":
            parts.append(np.full(self.action_size, log_std))
        return np.concatenate(parts + _initial(self.critic_layers, rng))

    def bind(self, parameters: NDArray[np.floating], *, exploration: float = 0.0) -> BoundPolicy:
        """Check a flat vector and make it ready to act.

        Args:
            exploration: ``q-values`` only: probability of a uniformly random action.
        Raises:
            ConfigurationError: wrong shape, NaN, infinite or absurdly large (> 1e9) entries;
                exploration outside [0, 1], or given for another kind of action.
        """
        if not 0.0 <= exploration <= 1.0:
            raise ConfigurationError(f"exploration must be in [0, 1], got {exploration!r}")
        if exploration and self.action != "q-values":
            raise ConfigurationError(
                f"exploration is for action 'q-values', got {exploration!r} for {self.action!r}"
            )
        return BoundPolicy(self, self.checked(parameters), exploration=exploration)

    def checked(self, parameters: NDArray[np.floating]) -> Float32:
        """The vector as float32 [num_parameters], or ConfigurationError."""
        array = np.asarray(parameters)
        if array.shape != (self.num_parameters,) or array.dtype.kind != "f":
            raise ConfigurationError(
                f"parameters must be floats of shape ({self.num_parameters},), "
                f"got {array.dtype} {array.shape}"
            )
        if not (np.abs(array) <= MAX_PARAMETER).all():  # False for NaN too
            raise ConfigurationError(
                f"parameters must be finite with absolute value <= {MAX_PARAMETER:g}"
            )
        if (np.abs(array[self._log_std]) > MAX_LOG_STD).any():
            raise ConfigurationError(f"log_std must be in +-{MAX_LOG_STD:g}")
        return array.astype(np.float32)

    def draws(self, rng: np.random.Generator, steps: int, rows: int) -> Float32:
        """The random numbers of a block of steps: one per row, or action_size normals per row.

        Returns:
            float32 [steps, rows] uniform in [0, 1), or [steps, rows, action_size] standard normal.
        """
        if self.action != "gaussian":
            return rng.random((steps, rows), dtype=np.float32)
        return rng.standard_normal((steps, rows, self.action_size), dtype=np.float32)


class BoundPolicy:
    """A policy with parameters; owns the buffers of its forward pass (not for two threads)."""

    def __init__(self, policy: MlpPolicy, parameters: Float32, *, exploration: float = 0.0) -> None:
        self.policy = policy
        self._exploration = np.float32(exploration)
        start, self._gates = _matrices(parameters, policy.memory_layers, 0)
        start, self._matrices = _matrices(parameters, policy.layers, start)
        self._std = np.exp(parameters[start : policy.actor_parameters])
        self._rows = -1

    def begin(self, rows: int) -> None:
        """A block of ``rows`` trajectories starts: every memory is zero."""
        self._resize(rows)

    def select(self, kept: NDArray[np.intp]) -> None:
        """Go on with these rows of the block, and their memories, alone."""
        if self.policy.recurrent:
            memory = self._memory[:-1, kept]
            self._resize(kept.size)
            self._memory[:-1, : kept.size] = memory

    def _resize(self, rows: int) -> None:
        """Buffers for a block of ``rows``; the last row of each input is the bias input 1."""
        width = max(rows, _MIN_ROWS)
        policy = self.policy
        self._rows = rows
        self._inputs = np.zeros((policy.observation_size + 1, width), dtype=np.float32)
        self._memory = np.zeros((policy.recurrent + 1, width), dtype=np.float32)
        self._inputs[-1] = self._memory[-1] = 1.0
        self._gated = np.empty((2, 3 * policy.recurrent, width), dtype=np.float32)
        self._hidden = [np.ones((size + 1, width), dtype=np.float32) for size in policy.hidden]
        self._out = np.empty((policy.action_size, width), dtype=np.float32)
        outs = [buffer[:-1] for buffer in self._hidden] + [self._out]
        inputs = [self._memory if policy.recurrent else self._inputs, *self._hidden]
        self._plan = list(zip(self._matrices, inputs, outs, strict=True))

    def draws(self, rng: np.random.Generator, steps: int, rows: int) -> Float32:
        """See ``MlpPolicy.draws``."""
        return self.policy.draws(rng, steps, rows)

    def forward(self, observations: Float32) -> Float32:
        """Logits, Q values or means, float32 [n, o], for observations [n, observation_size].

        The result is a view of a buffer that the next call overwrites. Sums run input by input
        in a fixed order (einsum, not BLAS, whose order depends on the block size). A recurrent
        policy takes a step of its memory: it needs ``begin`` first, and every row every time.
        """
        rows = observations.shape[0]
        if rows != self._rows:
            if self.policy.recurrent:
                raise ConfigurationError(
                    f"a recurrent policy must see the rows that it began with, got {rows}"
                )
            self._resize(rows)
        self._inputs[:-1, :rows] = observations.T
        if self.policy.recurrent:
            self._remember()
        for index, (matrix, source, target) in enumerate(self._plan):
            if index:
                np.tanh(source[:-1], out=source[:-1])
            np.einsum("oi,in->on", matrix, source, out=target)
        return self._out[:, :rows].T

    def _remember(self) -> None:
        """One step of the GRU: h <- (1 - z) tanh(n_x + r n_h) + z h."""
        units = self.policy.recurrent
        seen, held = self._gated
        np.einsum("oi,in->on", self._gates[0], self._inputs, out=seen)
        np.einsum("oi,in->on", self._gates[1], self._memory, out=held)
        # the logistic function as a tanh, which cannot overflow
        gates = 0.5 * (1.0 + np.tanh(0.5 * (seen[: 2 * units] + held[: 2 * units])))
        reset, update = gates[:units], gates[units:]
        fresh = np.tanh(seen[2 * units :] + reset * held[2 * units :])
        memory = self._memory[:-1]
        memory[...] = (1.0 - update) * fresh + update * memory

    def sample(
        self, outputs: Float32, draws: Float32
    ) -> NDArray[np.int64] | NDArray[np.bool_] | Float32:
        """Actions for ``outputs`` [n, o] of ``forward`` and one step of ``MlpPolicy.draws``.

        Returns:
            Categorical: integers [n] by the inverse of the cumulative distribution, one uniform
            per row (bool for two actions: False is 0). Q values: integers [n], uniform where the
            draw is below ``exploration``. Gaussian: float32 [n, k], neither clipped nor squashed.
        """
        if self.policy.action == "gaussian":
            return (outputs + self._std * draws).astype(np.float32)
        if self.policy.action == "q-values":
            return self._explore(outputs, draws)
        if self.policy.action_size == 2:
            # P(action 0) = 1 / (1 + e^(l1 - l0)); capped so that e^x stays finite
            odds = np.exp(np.minimum(outputs[:, 1] - outputs[:, 0], _MAX_LOGIT_GAP))
            return draws * (1.0 + odds) >= 1.0
        weights = outputs.T - outputs.max(axis=1)
        cumulative = np.cumsum(np.exp(weights), axis=0)
        # the last boundary is left out: rounding can never give an action that does not exist
        return (draws * cumulative[-1] >= cumulative[:-1]).sum(axis=0, dtype=np.int64)

    def greedy(self, outputs: Float32) -> NDArray[np.int64] | Float32:
        """The most likely action: integers [n] (first of equals), or the means float32 [n, k]."""
        if self.policy.action == "gaussian":
            return outputs.copy()
        return outputs.argmax(axis=1).astype(np.int64)

    def to_environment(self, actions: NDArray[np.int64] | Float32) -> NDArray[np.int64] | Float32:
        """What the environment gets: Gaussian actions squashed into the bounds, others as is."""
        if self.policy.bounds is None:
            return actions
        low, high = self.policy.bounds
        # bounds are public; the float32 product may round a hair outside, so it is clipped
        squashed = low + np.float32(0.5 * (high - low)) * (1.0 + np.tanh(actions))
        return np.clip(squashed, low, high).astype(np.float32)

    def _explore(self, outputs: Float32, draws: Float32) -> NDArray[np.int64]:
        """One draw decides both whether and, rescaled, which random action is taken."""
        best = outputs.argmax(axis=1).astype(np.int64)
        if not self._exploration:
            return best
        last = self.policy.action_size - 1
        uniform = np.minimum(draws / self._exploration * (last + 1), last).astype(np.int64)
        return np.where(draws < self._exploration, uniform, best)


def _layers(inputs: int, hidden: tuple[int, ...], outputs: int) -> tuple[tuple[int, int], ...]:
    return tuple((out, into) for into, out in pairwise((inputs, *hidden, outputs)))


def _matrices(
    parameters: Float32, layers: tuple[tuple[int, int], ...], start: int
) -> tuple[int, list[Float32]]:
    """Where the layers that begin at ``start`` end, and each as [W | b].

    [W | b] times [x; 1] is one product instead of a product and a sum.
    """
    matrices: list[Float32] = []
    for out, into in layers:
        weights = parameters[start : start + out * into].reshape(out, into)
        bias = parameters[start + out * into : start + out * into + out]
        matrices.append(np.concatenate([weights, bias[:, None]], axis=1))
        start += out * into + out
    return start, matrices


def _count(layers: tuple[tuple[int, int], ...]) -> int:
    return sum(out * into + out for out, into in layers)


def _initial(
    layers: tuple[tuple[int, int], ...], rng: np.random.Generator
) -> list[NDArray[np.float64]]:
    parts: list[NDArray[np.float64]] = []
    for index, (out, into) in enumerate(layers):
        gain = _LAST_LAYER_GAIN if index == len(layers) - 1 else np.sqrt(2.0)
        parts += [gain * _orthogonal(out, into, rng).ravel(), np.zeros(out)]
    return parts


def _check_bounds(action: str, bounds: tuple[float, float]) -> None:
    """ConfigurationError unless these are bounds for Gaussian actions."""
    if action != "gaussian":
        raise ConfigurationError(f"bounds are for action 'gaussian', got {bounds!r} for {action!r}")
    if not isinstance(bounds, tuple) or len(bounds) != 2:
        raise ConfigurationError(f"bounds must be (low, high), got {bounds!r}")
    for bound in bounds:
        number = isinstance(bound, int | float) and not isinstance(bound, bool)
        if not number or not abs(bound) <= MAX_BOUND:
            raise ConfigurationError(f"bounds must be within +-{MAX_BOUND:g}, got {bounds!r}")
    if not bounds[0] < bounds[1]:
        raise ConfigurationError(f"bounds must be low < high, got {bounds!r}")


def _orthogonal(out: int, into: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """[out, in] with orthonormal rows or columns (Saxe, McClelland and Ganguli 2014)."""
    tall = rng.standard_normal((max(out, into), min(out, into)))
    q, r = np.linalg.qr(tall)
    q = q * np.sign(np.diag(r))  # makes the distribution uniform
    return q if out >= into else q.T
