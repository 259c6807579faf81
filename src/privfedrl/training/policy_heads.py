"""Log-probabilities of a policy's outputs and the derivatives that policy gradients need.

Guarantee: ``error`` is the exact derivative of the stated sum, up to float32 rounding (tested
against torch); row i of it depends on row i of the outputs alone.

Notation: n rows, o outputs (logits of o actions, or o means); pi the policy, H its entropy.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["CategoricalHead", "GaussianHead", "PolicyHead"]

Float32 = NDArray[np.float32]
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class PolicyHead(Protocol):
    """What turns the outputs of a network into a distribution over actions."""

    def log_probabilities(self, outputs: Float32, actions: NDArray) -> Float32:
        """log pi(action), float32 [n], and remember the rows for ``error``."""
        ...

    def describe(self, outputs: Float32) -> Float32:
        """[n, columns], all that ``error`` needs to know of a guide's distribution."""
        ...

    def error(
        self, weights: Float32, *, entropy: float, guide: Float32 | None, guidance: float
    ) -> Float32:
        """Derivative by the outputs, [n, o], of the sum over the remembered rows of

        weights * log pi(action) - entropy * H(pi) + guidance * KL(guide || pi).

        A head with parameters of its own writes their derivative where it was told to.

        Args:
            weights: float32 [n].
            guide: the guide's ``describe``, or None without one.
        """
        ...


class CategoricalHead:
    """Logits of a distribution over o actions."""

    def log_probabilities(self, outputs: Float32, actions: NDArray) -> Float32:
        # actions first: reductions then run along rows, not along a handful of actions
        self._log_p = _log_softmax(outputs)
        self._chosen = actions == np.arange(outputs.shape[1])[:, None]
        return self._log_p[actions, np.arange(actions.shape[0])]

    def describe(self, outputs: Float32) -> Float32:
        """Probabilities [n, o]."""
        return np.ascontiguousarray(np.exp(_log_softmax(outputs)).T)

    def error(
        self, weights: Float32, *, entropy: float, guide: Float32 | None, guidance: float
    ) -> Float32:
        p = np.exp(self._log_p)
        error = self._chosen - p
        error *= weights
        if entropy:
            # dH/dlogit_a = -p_a (log p_a + H)
            minus_entropy = (p * self._log_p).sum(axis=0)
            error += entropy * p * (self._log_p - minus_entropy)
        if guide is not None:
            error += guidance * (p - guide.T)
        return error.T


class GaussianHead:
    """Means of independent Gaussians; their log standard deviations are parameters of the head.

    Args:
        log_std: float32 [o], read at every call.
        gradient: float32 [o], where ``error`` writes the derivative by ``log_std``.
    """

    def __init__(self, log_std: Float32, gradient: Float32) -> None:
        self._log_std = log_std
        self._gradient = gradient

    def log_probabilities(self, outputs: Float32, actions: NDArray) -> Float32:
        self._outputs = outputs
        self._z = (actions - outputs) * np.exp(-self._log_std)
        constant = float(self._log_std.sum()) + outputs.shape[1] * _HALF_LOG_2PI
        density = -0.5 * np.einsum("no,no->n", self._z, self._z) - np.float32(constant)
        return density.astype(np.float32)

    def describe(self, outputs: Float32) -> Float32:
        """Means and log standard deviations, [n, 2 * o]."""
        return np.concatenate([outputs, np.broadcast_to(self._log_std, outputs.shape)], axis=1)

    def error(
        self, weights: Float32, *, entropy: float, guide: Float32 | None, guidance: float
    ) -> Float32:
        precision = np.exp(-self._log_std)
        error = self._z * precision * weights[:, None]
        rows = weights.shape[0]
        np.matmul(weights, self._z * self._z - 1.0, out=self._gradient)
        self._gradient -= entropy * rows
        if guide is not None:
            means, log_std = np.split(guide, 2, axis=1)
            gap = (self._outputs - means) * precision
            spread = np.exp(2.0 * (log_std - self._log_std)) + gap * gap
            error += guidance * gap * precision
            self._gradient += guidance * (1.0 - spread).sum(axis=0)
        return error.astype(np.float32, copy=False)


def _log_softmax(outputs: Float32) -> Float32:
    """[o, n], contiguous."""
    logits = np.ascontiguousarray(outputs.T)
    logits -= logits.max(axis=0)
    logits -= np.log(np.exp(logits).sum(axis=0))
    return logits
