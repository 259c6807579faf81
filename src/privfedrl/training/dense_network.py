"""Tanh networks, their gradients and Adam on one flat float32 vector, without autograd.

Guarantee: ``backward`` is the exact derivative of ``forward`` up to float32 rounding (tested
against torch). A vector that was finite stays so if only gradients that ``clip_norm_`` accepts are
handed to ``Adam.step``.

Small networks spend their time between operations, not in them: everything here works in place on
buffers that are allocated once. Measured on one core for 64 to 1,024 rows, two layers of 64 units:
1.6 to 2.2 times as fast as the same operations in torch without autograd, whose tanh is slower.

Notation: n rows; flat layout per layer: W row-major [out, in], then b [out].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError

__all__ = ["Adam", "DenseNetwork", "RunningScale", "clip_norm_", "layer_sizes", "num_weights"]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Layers = Sequence[tuple[int, int]]

_BETA1, _BETA2 = 0.9, 0.999


def layer_sizes(inputs: int, hidden: Sequence[int], outputs: int) -> tuple[tuple[int, int], ...]:
    """(out, in) of every layer of a network, first layer first."""
    sizes = (inputs, *hidden, outputs)
    return tuple(zip(sizes[1:], sizes[:-1], strict=True))


def num_weights(layers: Layers) -> int:
    """Coordinates that a network with these layers has in a flat vector."""
    return sum(out * into + out for out, into in layers)


class DenseNetwork:
    """A network on a slice of a flat vector: tanh between layers, linear at the end.

    Args:
        layers: (out, in) per layer.
        vector: float32 [num_weights(layers)]; kept as a view, so that a step on the vector is a
            step of the network.
        gradient: float32 of the same length; what ``backward`` writes, also kept as a view.
    """

    def __init__(self, layers: Layers, vector: Float32, gradient: Float32) -> None:
        for name, array in (("vector", vector), ("gradient", gradient)):
            if array.shape != (num_weights(layers),) or array.dtype != np.float32:
                raise ConfigurationError(
                    f"{name} must be float32 of shape ({num_weights(layers)},), "
                    f"got {array.dtype} {array.shape}"
                )
        self._weights, self._biases = _views(layers, vector)
        self._weight_gradients, self._bias_gradients = _views(layers, gradient)
        self._transposed = [weights.T for weights in self._weights]
        self._outs = [out for out, _ in layers]
        self._inputs: list[Float32] = []
        self._grow(1)

    def _grow(self, rows: int) -> None:
        """Buffers for at least ``rows`` rows."""
        self._capacity = rows
        self._values = [np.empty((rows, out), np.float32) for out in self._outs]
        self._errors = [np.empty((rows, out), np.float32) for out in self._outs[:-1]]
        self._ones = np.ones(rows, np.float32)

    def forward(self, inputs: Float32) -> Float32:
        """[n, out] for inputs [n, in]; a view of a buffer that the next call overwrites."""
        rows = inputs.shape[0]
        if rows > self._capacity:
            self._grow(rows)
        source, last = inputs, len(self._outs) - 1
        self._inputs = []
        for index, weights in enumerate(self._transposed):
            self._inputs.append(source)
            target = self._values[index][:rows]
            np.matmul(source, weights, out=target)
            target += self._biases[index]
            if index < last:
                np.tanh(target, out=target)
            source = target
        return source

    def backward(self, error: Float32) -> None:
        """Write the gradient of sum(error * output) at the rows of the last ``forward``.

        Spends the hidden values of that forward pass: one backward per forward.

        Args:
            error: float32 [n, out], the derivative of a loss by each output.
        """
        rows = error.shape[0]
        ones = self._ones[:rows]
        for index in range(len(self._outs) - 1, -1, -1):
            source = self._inputs[index]
            np.matmul(error.T, source, out=self._weight_gradients[index])
            np.matmul(ones, error, out=self._bias_gradients[index])
            if index:
                below = self._errors[index - 1][:rows]
                np.matmul(error, self._weights[index], out=below)
                np.multiply(source, source, out=source)  # tanh' = 1 - tanh^2
                np.subtract(1.0, source, out=source)
                below *= source
                error = below


def _views(layers: Layers, vector: Float32) -> tuple[list[Float32], list[Float32]]:
    """Views of the weights [out, in] and the biases [out] of every layer."""
    weights, biases, start = [], [], 0
    for out, into in layers:
        middle, end = start + out * into, start + out * into + out
        weights.append(vector[start:middle].reshape(out, into))
        biases.append(vector[middle:end])
        start = end
    return weights, biases


def clip_norm_(gradient: Float32, max_norm: float) -> bool:
    """Scale the gradient in place to L2 norm at most ``max_norm``.

    Returns:
        False, and the gradient untouched, if its norm is not finite.
    """
    square = float(np.dot(gradient, gradient))
    if not math.isfinite(square):
        return False
    if square > max_norm * max_norm:
        gradient *= np.float32(max_norm / math.sqrt(square))
    return True


class Adam:
    """Adam (Kingma and Ba 2015) on one flat vector, in place.

    Args:
        size: length of the vector.
        epsilon: added to the root of the second moment; PPO is commonly run with 1e-5.
    """

    def __init__(self, size: int, *, epsilon: float = 1e-5) -> None:
        self._epsilon = epsilon
        self._first = np.zeros(size, np.float32)
        self._second = np.zeros(size, np.float32)
        self._step = np.empty(size, np.float32)
        self._denominator = np.empty(size, np.float32)
        self._count = 0

    def reset(self) -> None:
        """Forget all gradients."""
        self._first[:] = 0.0
        self._second[:] = 0.0
        self._count = 0

    def step(self, vector: Float32, gradient: Float32, learning_rate: float) -> None:
        """One step down the gradient; ``vector`` changes in place."""
        self._count += 1
        first, second, step, bottom = self._first, self._second, self._step, self._denominator
        np.multiply(gradient, 1.0 - _BETA1, out=step)
        first *= _BETA1
        first += step
        np.multiply(gradient, gradient, out=step)
        step *= 1.0 - _BETA2
        second *= _BETA2
        second += step
        np.sqrt(second, out=bottom)
        bottom *= 1.0 / math.sqrt(1.0 - _BETA2**self._count)
        bottom += self._epsilon
        np.divide(first, bottom, out=step)
        step *= learning_rate / (1.0 - _BETA1**self._count)
        vector -= step


class RunningScale:
    """Mean and deviation of all inputs seen so far, and networks in those coordinates.

    A network on raw inputs x equals one on z = (x - mean) / std with W' = W * std (by column) and
    b' = b + W mean: normalising inputs is a change of coordinates of the first layer and nothing
    else, so the network that leaves needs no normaliser.

    Args:
        size: length of one input.
        min_std: least deviation of a coordinate. One that hardly varies would turn an ordinary
            step in z into a huge one in x, and use up the clip norm of the whole update.
    """

    def __init__(self, size: int, *, min_std: float = 1e-2) -> None:
        self._min_std = min_std
        self._count = 0.0
        self._squares = np.zeros(size)
        self.mean: Float64 = np.zeros(size)

    @property
    def std(self) -> Float64:
        """float64 [size], at least ``min_std``; ones before anything was seen."""
        if self._count == 0:
            return np.ones_like(self.mean)
        return np.maximum(np.sqrt(self._squares / self._count), self._min_std)

    def update(self, inputs: NDArray[np.floating]) -> None:
        """Take finite inputs [n, size] into account (Chan, Golub and LeVeque 1979)."""
        count = inputs.shape[0]
        if count == 0:
            return
        values = inputs.astype(np.float64)
        mean = values.mean(axis=0)
        shift, total = mean - self.mean, self._count + count
        self._squares += ((values - mean) ** 2).sum(axis=0)
        self._squares += shift**2 * (self._count * count / total)
        self.mean = self.mean + shift * (count / total)
        self._count = total

    def normalised(self, inputs: NDArray[np.floating]) -> Float32:
        """float32 [n, size], (x - mean) / std."""
        return ((inputs - self.mean) / self.std).astype(np.float32)

    def to_normalised(self, layers: Layers, vector: Float64) -> None:
        """Rewrite, in place, the first layer of a network for inputs that are normalised."""
        weights, bias = _first_layer(layers, vector)
        bias += weights @ self.mean
        weights *= self.std

    def to_raw(self, layers: Layers, vector: Float64) -> None:
        """The inverse of ``to_normalised`` for the present mean and deviation."""
        weights, bias = _first_layer(layers, vector)
        weights /= self.std
        bias -= weights @ self.mean


def _first_layer(layers: Layers, vector: Float64) -> tuple[Float64, Float64]:
    out, into = layers[0]
    return vector[: out * into].reshape(out, into), vector[out * into : out * into + out]
