"""Returns-to-go and whitening, per trajectory.

Guarantee: row i of every result depends on row i of the inputs alone, bit for bit, and not on how
far the batch is padded; so a clipped per-trajectory gradient has sensitivity C and no more.

Notation: [B, T] rewards r and mask; G_t = r_t + gamma G_{t+1} within one trajectory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError

__all__ = ["returns_to_go", "whiten_per_trajectory"]

Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]


def returns_to_go(
    rewards: NDArray[np.floating],
    mask: Bool,
    *,
    gamma: float,
    truncated: Bool | None = None,
    continuation: float | Float64 = 0.0,
) -> Float64:
    """G_t for every step that happened, by the exact reverse recursion.

    Args:
        rewards: [B, T]; entries outside the mask are not read.
        mask: bool [B, T], every row True then False.
        gamma: discount in [0, 1].
        truncated: bool [B]; rows whose return goes on beyond their last step. None: no row.
        continuation: what a truncated row is worth after its last step, a public constant or
            float [B] with entry i computed from row i alone. Terminated rows are worth 0.
    Returns:
        float64 [B, T], 0 outside the mask.
    Raises:
        ConfigurationError: shapes differ, gamma outside [0, 1], continuation not finite.
    """
    _check_shapes(rewards, mask, name="rewards")
    if not 0 <= gamma <= 1:
        raise ConfigurationError(f"gamma must be in [0, 1], got {gamma!r}")
    steps = np.where(mask, rewards, 0.0).T.astype(np.float64, order="C")  # [T, B]
    happened = np.ascontiguousarray(mask.T)
    result = np.zeros_like(steps)
    following = _continuation(mask.shape[0], truncated, continuation)
    for t in range(steps.shape[0] - 1, -1, -1):
        value = steps[t] + gamma * following
        # until its last step comes, a row keeps the value beyond it
        following = np.where(happened[t], value, following)
        result[t] = np.where(happened[t], value, 0.0)
    return np.ascontiguousarray(result.T)


def whiten_per_trajectory(
    weights: NDArray[np.floating], mask: Bool, *, epsilon: float = 1e-8
) -> Float64:
    """Each row shifted to mean 0 and scaled to standard deviation 1 within its own mask.

    Args:
        weights: [B, T]; entries outside the mask are not read.
        epsilon: a row whose deviation is at most epsilon times max(1, its largest absolute value)
            counts as constant and becomes zero, so that rounding errors are not blown up.
    Returns:
        float64 [B, T], 0 outside the mask; the deviation is the population's (divided by count).
    Raises:
        ConfigurationError: shapes differ, epsilon not positive.
    """
    _check_shapes(weights, mask, name="weights")
    if not 0 < epsilon < np.inf:
        raise ConfigurationError(f"epsilon must be positive and finite, got {epsilon!r}")
    values = np.where(mask, weights, 0.0).astype(np.float64)
    counts = np.maximum(mask.sum(axis=1), 1)[:, None]
    centred = np.where(mask, values - _row_sums(values) / counts, 0.0)
    deviation = np.sqrt(_row_sums(centred * centred) / counts)
    largest = np.abs(values).max(axis=1, initial=1.0)[:, None]
    varies = deviation > epsilon * largest
    return np.where(varies, centred / np.where(varies, deviation, 1.0), 0.0)


def _row_sums(values: Float64) -> Float64:
    """[B, 1], summed strictly left to right: zeros of padding change no bit (sum() pairs them)."""
    if values.shape[1] == 0:
        return np.zeros((values.shape[0], 1))
    return np.cumsum(values, axis=1)[:, -1:]


def _continuation(rows: int, truncated: Bool | None, value: float | Float64) -> Float64:
    beyond = np.asarray(value, dtype=np.float64)
    if beyond.shape not in ((), (rows,)) or not np.isfinite(beyond).all():
        raise ConfigurationError(
            f"continuation must be a finite number or finite of shape ({rows},), "
            f"got shape {beyond.shape}"
        )
    if truncated is None:
        if beyond.any():
            raise ConfigurationError("continuation needs truncated, to know which rows it is for")
        return np.zeros(rows)
    if truncated.shape != (rows,):
        raise ConfigurationError(f"truncated must have shape ({rows},), got {truncated.shape}")
    return np.where(truncated, beyond, 0.0)


def _check_shapes(values: NDArray[np.floating], mask: Bool, *, name: str) -> None:
    if mask.ndim != 2 or mask.dtype != np.bool_ or values.shape != mask.shape:
        raise ConfigurationError(
            f"{name} and mask must have one shape [B, T] and mask be bool, "
            f"got {values.shape} and {mask.dtype} {mask.shape}"
        )
