"""Conditional stochastic rounding: every integer vector that is returned obeys the stated bound.

Notation, in grid units of clip_norm / resolution: R = resolution (the clip), p = padded dimension,
Q = rounded vector, Delta = L2 bound, beta = upper bound on the probability of a rejection;

    Delta^2 = min{ (R + sqrt p)^2,  R^2 + p/4 + sqrt(2 ln(1/beta)) (R + sqrt(p)/2) }.

Each unit of privacy is rounded BY ITSELF. Rounding a sum of units with rejection has no unit-level
proof, because the rejection would depend on everybody's data. The bound that counts is the exact
integer check on the vector that is returned, never a floating-point norm.
Reference: Kairouz, Liu and Steinke 2021 (arXiv 2102.06387), conditional randomised rounding;
audits/proofs/rounding_sensitivity.md.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from privfedrl.errors import ConfigurationError, EncodingError

__all__ = ["DEFAULT_BETA", "MAX_RESOLUTION", "check_rows", "round_units", "rounding_bound"]

Entropy = Callable[[int], bytes]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

DEFAULT_BETA = math.exp(-0.5)
MAX_RESOLUTION = 2**30  # with MAX_DIMENSION: |Q|^2 <= (R + sqrt p)^2 < 2^62, exact in int64
_MAX_DIMENSION = 2**30
_LEEWAY = 1e-9  # relative excess of a float norm that is put down to rounding
_ATTEMPTS = 64  # each is accepted with probability >= 1 - beta = 0.39: all fail below 2^-46
_SHRINK = 1.0 - 4e-9  # keeps a truncated vector inside R even with the leeway above
_LOG_BETA_GRID = 2**20  # sqrt(2 ln(1/beta)) on a grid, so that all machines agree on the integer


def rounding_bound(
    *, clip_norm: float, resolution: int, dimension: int, beta: float = DEFAULT_BETA
) -> tuple[int, int]:
    """Integer bounds on a rounded unit: (sum of squares, sum of magnitudes).

    Args:
        clip_norm: L2 bound of a unit before scaling, finite and > 0.
        resolution: grid steps per clip_norm, 1 .. 2^30.
        dimension: length of the rounded vector, after padding, 1 .. 2^30.
        beta: in [0, 1); 0 selects the bound that holds without rejection.
    Returns:
        (l2_squared, l1): floor(Delta^2) and floor(min(sqrt(p) Delta, Delta^2)), the same integers
        on every machine. An integer vector within l2_squared is within l1: by Cauchy-Schwarz, and
        because |k| <= k^2 for integers.
    """
    _check_scale(clip_norm, resolution)
    _check_range("dimension", dimension, _MAX_DIMENSION)
    if not isinstance(beta, (int, float)) or isinstance(beta, bool) or not 0.0 <= beta < 1.0:
        raise ConfigurationError(f"beta must lie in [0, 1), got {beta!r}")
    r, p = resolution, dimension
    squared = r * r + p + math.isqrt(4 * r * r * p)
    if beta > 0.0:
        grid = round(math.sqrt(-2.0 * math.log(beta)) * _LOG_BETA_GRID)
        slope = Fraction(grid, _LOG_BETA_GRID)
        half_root = Fraction(math.isqrt(p << 62), 2**32)  # sqrt(p)/2, within 2^-32
        squared = min(squared, math.floor(r * r + Fraction(p, 4) + slope * (r + half_root)))
    return squared, min(math.isqrt(p * squared), squared)


def check_rows(rows: FloatArray, *, clip_norm: float) -> None:
    """Refuse rows that are not finite or exceed ``clip_norm`` by more than rounding error.

    Messages say what was wrong, never a value.
    """
    if rows.ndim != 2:
        raise EncodingError(f"rows must have shape [units, dimension], got {rows.ndim} axes")
    if not np.all(np.isfinite(rows)):
        raise EncodingError("rows must be finite: a unit holds NaN or infinity")
    with np.errstate(over="ignore", under="ignore"):
        scaled = rows / clip_norm
        squared = np.einsum("ij,ij->i", scaled, scaled)
    if not np.all(squared <= (1.0 + _LEEWAY) ** 2):
        raise EncodingError("rows must be clipped: the norm of a unit exceeds clip_norm")


def round_units(
    rows: npt.ArrayLike,
    *,
    resolution: int,
    clip_norm: float,
    entropy: Entropy = os.urandom,
    beta: float = DEFAULT_BETA,
) -> IntArray:
    """Round each row to integers by itself, up with its fractional probability.

    Args:
        rows: float [B, p], one unit per row, L2 norm <= clip_norm (1e-9 relative leeway).
        resolution, clip_norm, beta: as for :func:`rounding_bound`.
        entropy: returns that many cryptographically random bytes.
    Returns:
        int64 [B, p]. Unbiased given acceptance of all roundings; the conditioning adds a bias that
        vanishes with the probability of rejection. A row rejected 64 times running (probability
        below 2^-46) is truncated towards zero instead, which can only shrink it.
    Guarantees:
        every returned row q has sum q_i^2 <= l2_squared and sum |q_i| <= l1 of
        :func:`rounding_bound`, checked exactly on the integers.
    Raises:
        EncodingError: a row is not finite or not clipped; nothing is clipped silently.
    """
    array = np.asarray(rows, dtype=np.float64)
    _check_scale(clip_norm, resolution)
    check_rows(array, clip_norm=clip_norm)
    bound = rounding_bound(
        clip_norm=clip_norm, resolution=resolution, dimension=array.shape[1], beta=beta
    )
    with np.errstate(under="ignore"):
        scaled = array / clip_norm * resolution
    floor = np.floor(scaled)
    fraction, base = scaled - floor, floor.astype(np.int64)
    result = np.empty(array.shape, dtype=np.int64)
    waiting = np.arange(array.shape[0])
    for _ in range(_ATTEMPTS):
        if waiting.size == 0:
            return result
        drawn = base[waiting] + (_uniforms(fraction[waiting].shape, entropy) < fraction[waiting])
        accepted = _within(drawn, bound)
        result[waiting[accepted]] = drawn[accepted]
        waiting = waiting[~accepted]
    result[waiting] = np.trunc(scaled[waiting] * _SHRINK).astype(np.int64)
    return result


def _within(drawn: IntArray, bound: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Which integer rows obey both bounds, in exact int64 arithmetic."""
    squares = np.einsum("ij,ij->i", drawn, drawn)
    magnitudes = np.abs(drawn).sum(axis=1)
    accepted: npt.NDArray[np.bool_] = (squares <= bound[0]) & (magnitudes <= bound[1])
    return accepted


def _uniforms(shape: tuple[int, ...], entropy: Entropy) -> FloatArray:
    """Independent uniforms on the grid 2^-53 {0, .., 2^53 - 1}."""
    size = 8 * math.prod(shape)
    data = entropy(size)
    if len(data) != size:
        raise ConfigurationError(f"entropy must return {size} bytes when asked, got {len(data)}")
    words = np.frombuffer(data, dtype="<u8").reshape(shape)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _check_scale(clip_norm: float, resolution: int) -> None:
    number = isinstance(clip_norm, (int, float)) and not isinstance(clip_norm, bool)
    if not (number and 0.0 < clip_norm < math.inf):
        raise ConfigurationError(f"clip_norm must be finite and > 0, got {clip_norm!r}")
    _check_range("resolution", resolution, MAX_RESOLUTION)


def _check_range(name: str, value: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
        raise ConfigurationError(f"{name} must be an integer in 1 .. {high}, got {value!r}")
