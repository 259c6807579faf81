"""The value that training hands to encoding: clipped rows that state their own bound.

Guarantee: every row of a :class:`LocalUpdate` is finite and no longer than ``clip_norm``, so
removing one unit moves the sum by at most ``clip_norm`` (audits/proofs/clipped_gradient.md).

Notation: C the clip norm (L2), d the number of coordinates, a row = what one unit contributes.
Needs numpy only; a coordinator or an encoder never loads torch for it.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privfedrl.errors import ConfigurationError, EncodingError
from privfedrl.privacy.units import Unit

__all__ = ["LocalUpdate", "check_clip_norm", "clip_rows", "row_norms"]

Float = NDArray[np.float64]

# float64 rounding of a norm of d <= 2^40 coordinates stays far below this; encoding re-checks on
# exact integers, so the leeway is never part of a privacy claim
LEEWAY = 1e-9
# squares of numbers in this range neither overflow nor vanish in float64
CLIP_RANGE = (1e-100, 1e100)
# larger than the rounding error of a float64 norm, smaller than anything that learning can notice
SHRINK = 1.0 - 1e-12


def check_clip_norm(clip_norm: float, *, name: str = "clip_norm") -> float:
    """``clip_norm`` as a float, or ConfigurationError unless it is in [1e-100, 1e100]."""
    low, high = CLIP_RANGE
    if isinstance(clip_norm, bool) or not isinstance(clip_norm, int | float | np.floating):
        raise ConfigurationError(f"{name} must be a number, got {type(clip_norm).__name__}")
    if not low <= clip_norm <= high:
        raise ConfigurationError(f"{name} must be in [{low}, {high}], got {clip_norm!r}")
    return float(clip_norm)


def row_norms(rows: Float) -> Float:
    """L2 norms, float64 [n], of finite rows [n, d]; no square overflows or vanishes on the way."""
    largest = _largest(rows)
    scaled = rows / np.where(largest > 0, largest, 1.0)[:, None]
    with np.errstate(over="ignore"):  # a norm beyond the largest float64 is inf, which is true
        return np.asarray(largest * _unit_norms(scaled), dtype=np.float64)


def clip_rows(rows: ArrayLike, clip_norm: float) -> tuple[Float, int]:
    """Shorten every row to at most ``clip_norm``; drop rows that are not finite.

    Args:
        rows: [n, d], any real dtype, any values.
        clip_norm: C > 0.
    Returns:
        float64 [n, d] and the number of rows that held NaN or infinity. Those rows are zero. A row
        within C is unchanged, a longer one keeps its direction. The count is private.
    Guarantees:
        ``row_norms(result) <= clip_norm`` exactly as compared in float64; row i depends on row i
        alone.
    Raises:
        ConfigurationError: C is out of range or rows is not two-dimensional.
    """
    bound = check_clip_norm(clip_norm)
    values = _matrix(rows)
    finite = np.asarray(np.isfinite(values).all(axis=1))
    values = np.where(finite[:, None], values, 0.0)
    largest = _largest(values)
    scaled = values / np.where(largest > 0, largest, 1.0)[:, None]
    lengths = _unit_norms(scaled)
    with np.errstate(over="ignore"):  # an overflowing norm compares as longer than C, which it is
        long = largest * lengths > bound
    # scaled / lengths has norm one whatever the magnitude of the row
    factors = bound / np.where(long, lengths, 1.0)
    clipped = np.where(long[:, None], scaled * factors[:, None], values)
    while (over := row_norms(clipped) > bound).any():  # rounding: one pass as a rule
        clipped[over] *= SHRINK
    return clipped, int(np.count_nonzero(~finite))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class LocalUpdate:
    """What an agent's training step produced: one clipped row per unit, never yet summed.

    Guarantee: rows are finite, read-only and within ``clip_norm`` (checked at construction).

    Attributes:
        rows: float64 [units, d]; the update is their sum, never their mean.
        clip_norm: L2 bound of every row, metrics included = sensitivity of the sum for add/remove
            of one unit; infinity only if ``private`` is False.
        unit: what one row stands for.
        nonfinite_units: rows replaced by zero because they were not finite. Private: local only.
        batch_id: identity of the experience that was used; a ledger spends it once.
        private: False marks the unclipped control arm of an experiment, which no encoder accepts.
    Raises:
        EncodingError: a row is not finite or longer than C (1 + 1e-9).
        ConfigurationError: another attribute is impossible.
    """

    rows: Float
    clip_norm: float
    unit: Unit
    nonfinite_units: int
    batch_id: bytes
    private: bool = True

    def __post_init__(self) -> None:
        rows = np.array(_matrix(self.rows), dtype=np.float64, order="C")  # own copy
        rows.flags.writeable = False
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "clip_norm", self._checked_clip_norm())
        if not isinstance(self.unit, Unit):
            raise ConfigurationError(f"unit must be a Unit, got {type(self.unit).__name__}")
        if not isinstance(self.batch_id, bytes) or not self.batch_id:
            raise ConfigurationError("batch_id must be non-empty bytes")
        if not 0 <= self.nonfinite_units <= len(rows):
            raise ConfigurationError(
                f"nonfinite_units must be between 0 and the number of rows {len(rows)}"
            )
        if not np.isfinite(rows).all():
            raise EncodingError("every row of an update must be finite; clip_rows removes the rest")
        if (row_norms(rows) > self.clip_norm * (1.0 + LEEWAY)).any():
            raise EncodingError(f"every row must have L2 norm <= clip_norm = {self.clip_norm}")

    def _checked_clip_norm(self) -> float:
        if not self.private and self.clip_norm == math.inf:
            return math.inf
        return check_clip_norm(self.clip_norm)

    def __repr__(self) -> str:
        """Shape and bound only: values and the count of dropped units are private."""
        units, dimension = self.rows.shape
        return (
            f"LocalUpdate(units={units}, d={dimension}, clip_norm={self.clip_norm}, "
            f"unit={self.unit.value}, private={self.private})"
        )

    @property
    def num_units(self) -> int:
        """Rows, a public number: absent units are zero rows."""
        return int(self.rows.shape[0])

    @property
    def dimension(self) -> int:
        """d."""
        return int(self.rows.shape[1])

    @classmethod
    def zeros(
        cls, *, num_units: int, dimension: int, clip_norm: float, unit: Unit, batch_id: bytes = b""
    ) -> LocalUpdate:
        """The update of an empty round: the same public shape, nothing in it."""
        return cls(
            rows=np.zeros((num_units, dimension)),
            clip_norm=clip_norm,
            unit=unit,
            nonfinite_units=0,
            batch_id=batch_id or secrets.token_bytes(16),
        )


def _matrix(rows: ArrayLike) -> Float:
    array = np.asarray(rows)
    if array.dtype.kind not in "fiu":
        raise ConfigurationError(f"rows must be real numbers, got dtype {array.dtype}")
    if array.ndim != 2 or array.shape[1] < 1:
        raise ConfigurationError(f"rows must have shape [units, d >= 1], got {array.shape}")
    return array.astype(np.float64, copy=False)


def _largest(rows: Float) -> Float:
    return np.abs(rows).max(axis=1, initial=0.0)


def _unit_norms(scaled: Float) -> Float:
    return np.sqrt(np.einsum("nd,nd->n", scaled, scaled))
