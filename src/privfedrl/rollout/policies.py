"""Stochastic multilayer perceptrons over a flat parameter vector, in plain numpy.

Guarantee: what a row gets depends on the parameters and that row alone, bit for bit, whatever
other rows share the block.

Notation: n rows, h hidden units, o outputs (logits of n actions, or k means).
Flat layout: per layer the weights W, row-major [out, in], then the bias b [out]; a Gaussian policy
appends log_std [k]. The network is tanh between layers and linear at the end.
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
_MAX_LOGIT_GAP = np.float32(80.0)
_LAST_LAYER_GAIN = 0.01
# np.einsum walks rows in its inner loop only if there are at least two of them
_MIN_ROWS = 2


@dataclass(frozen=True, kw_only=True)
class MlpPolicy:
    """Shape of a policy; parameters are passed in as one flat vector.

    Attributes:
        observation_size: length of a flat observation, >= 1.
        hidden: sizes of the tanh layers, may be empty.
        action: ``categorical`` (one logit per action) or ``gaussian`` (one mean per dimension and
            a log standard deviation that does not depend on the state).
        action_size: number of actions (>= 2), or dimension of the action (>= 1).
    """

    observation_size: int
    hidden: tuple[int, ...]
    action: Literal["categorical", "gaussian"]
    action_size: int

    def __post_init__(self) -> None:
        if self.action not in ("categorical", "gaussian"):
            raise ConfigurationError(
                f"action must be 'categorical' or 'gaussian', got {self.action!r}"
            )
        least = 2 if self.action == "categorical" else 1
        sizes = [("observation_size", self.observation_size, 1)]
        sizes += [("hidden", size, 1) for size in self.hidden]
        sizes += [("action_size", self.action_size, least)]
        for name, size, low in sizes:
            if not isinstance(size, int) or isinstance(size, bool) or size < low:
                raise ConfigurationError(f"{name} must be an integer >= {low}, got {size!r}")

    @cached_property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of every weight matrix, first layer first; each has a bias [out]."""
        sizes = (self.observation_size, *self.hidden, self.action_size)
        return tuple((out, into) for into, out in pairwise(sizes))

    @cached_property
    def num_parameters(self) -> int:
        """Length of the flat vector."""
        weights = sum(out * into + out for out, into in self.layers)
        return weights + (self.action_size if self.action == "gaussian" else 0)

    def initial_parameters(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """float64 [num_parameters]: orthogonal weights, last layer scaled by 0.01, zero biases.

        The small last layer makes the first policy nearly uniform; log_std starts at 0.
        """
        parts: list[NDArray[np.float64]] = []
        for index, (out, into) in enumerate(self.layers):
            gain = _LAST_LAYER_GAIN if index == len(self.layers) - 1 else np.sqrt(2.0)
            parts += [gain * _orthogonal(out, into, rng).ravel(), np.zeros(out)]
        if self.action == "gaussian":
            parts.append(np.zeros(self.action_size))
        return np.concatenate(parts)

    def bind(self, parameters: NDArray[np.floating]) -> BoundPolicy:
        """Check a flat vector and make it ready to act.

        Raises:
            ConfigurationError: wrong shape, NaN, infinite or absurdly large (> 1e9) entries.
        """
        return BoundPolicy(self, self.checked(parameters))

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
        if self.action == "gaussian" and (np.abs(array[-self.action_size :]) > MAX_LOG_STD).any():
            raise ConfigurationError(f"log_std must be in +-{MAX_LOG_STD:g}")
        return array.astype(np.float32)

    def draws(self, rng: np.random.Generator, steps: int, rows: int) -> Float32:
        """The random numbers of a block of steps: one per row, or action_size normals per row.

        Returns:
            float32 [steps, rows] uniform in [0, 1), or [steps, rows, action_size] standard normal.
        """
        if self.action == "categorical":
            return rng.random((steps, rows), dtype=np.float32)
        return rng.standard_normal((steps, rows, self.action_size), dtype=np.float32)


class BoundPolicy:
    """A policy with parameters; owns the buffers of its forward pass (not for two threads)."""

    def __init__(self, policy: MlpPolicy, parameters: Float32) -> None:
        self.policy = policy
        self._matrices: list[Float32] = []
        start = 0
        for out, into in policy.layers:
            weights = parameters[start : start + out * into].reshape(out, into)
            bias = parameters[start + out * into : start + out * into + out]
            # [W | b] times [x; 1]: one product instead of a product and a sum
            self._matrices.append(np.concatenate([weights, bias[:, None]], axis=1))
            start += out * into + out
        self._std = np.exp(parameters[start:])
        self._rows = -1

    def _resize(self, rows: int) -> None:
        """Buffers for a block of ``rows``; the last row of each input is the bias input 1."""
        width = max(rows, _MIN_ROWS)
        self._rows = rows
        self._inputs = np.zeros((self.policy.observation_size + 1, width), dtype=np.float32)
        self._inputs[-1] = 1.0
        self._hidden = [np.ones((size + 1, width), dtype=np.float32) for size in self.policy.hidden]
        self._out = np.empty((self.policy.action_size, width), dtype=np.float32)
        outs = [buffer[:-1] for buffer in self._hidden] + [self._out]
        inputs = [self._inputs, *self._hidden]
        self._plan = list(zip(self._matrices, inputs, outs, strict=True))

    def forward(self, observations: Float32) -> Float32:
        """Logits or means, float32 [n, o], for observations [n, observation_size].

        The result is a view of a buffer that the next call overwrites. Sums run input by input
        in a fixed order (einsum, not BLAS, whose order depends on the block size).
        """
        rows = observations.shape[0]
        if rows != self._rows:
            self._resize(rows)
        self._inputs[:-1, :rows] = observations.T
        for index, (matrix, source, target) in enumerate(self._plan):
            if index:
                np.tanh(source[:-1], out=source[:-1])
            np.einsum("oi,in->on", matrix, source, out=target)
        return self._out[:, :rows].T

    def sample(
        self, outputs: Float32, draws: Float32
    ) -> NDArray[np.int64] | NDArray[np.bool_] | Float32:
        """Actions for ``outputs`` [n, o] of ``forward`` and one step of ``MlpPolicy.draws``.

        Returns:
            Categorical: integers [n] by the inverse of the cumulative distribution, one uniform
            per row (bool for two actions: False is 0). Gaussian: float32 [n, k], not clipped.
        """
        if self.policy.action == "gaussian":
            return (outputs + self._std * draws).astype(np.float32)
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


def _orthogonal(out: int, into: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """[out, in] with orthonormal rows or columns (Saxe, McClelland and Ganguli 2014)."""
    tall = rng.standard_normal((max(out, into), min(out, into)))
    q, r = np.linalg.qr(tall)
    q = q * np.sign(np.diag(r))  # makes the distribution uniform
    return q if out >= into else q.T
