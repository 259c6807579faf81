"""Several parts of a row, each clipped by itself, released together.

Guarantee: part g of every clipped row has L2 norm at most C_g and the whole row at most
sqrt(sum C_g^2), so one release of all parts costs what a vector with that one bound costs
(audits/proofs/clipped_gradient.md). Parts never borrow from each other: a long gradient does not
shrink a metric, and the other way round.

Needs numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privfedrl.errors import ConfigurationError
from privfedrl.training.local_update import check_clip_norm, clip_rows

__all__ = ["ClipGroup", "ClippedGroups", "clip_by_group", "total_clip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipGroup:
    """Consecutive coordinates of a row that share one clip.

    Attributes:
        name: for messages; different within a row.
        size: number of coordinates, >= 1.
        clip_norm: C_g, L2 bound of this part of a row.
    """

    name: str
    size: int
    clip_norm: float

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigurationError(f"name must be non-empty text, got {self.name!r}")
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise ConfigurationError(f"size of {self.name} must be >= 1, got {self.size!r}")
        check_clip_norm(self.clip_norm, name=f"clip_norm of {self.name}")


class ClippedGroups(NamedTuple):
    """What :func:`clip_by_group` returns.

    ``rows`` float64 [n, d]; ``clip_norm`` = sqrt(sum C_g^2); ``nonfinite`` the number of rows per
    group whose part was not finite and is zero now. The counts are private.
    """

    rows: NDArray[np.float64]
    clip_norm: float
    nonfinite: tuple[int, ...]


def total_clip(groups: Sequence[ClipGroup]) -> float:
    """sqrt(sum C_g^2): the L2 bound of a whole row.

    Raises:
        ConfigurationError: there is no group, or two have one name.
    """
    names = [group.name for group in groups]
    if not names or len(set(names)) < len(names):
        raise ConfigurationError(f"groups must be at least one, named differently, got {names}")
    return check_clip_norm(
        math.hypot(*(group.clip_norm for group in groups)), name="total clip_norm"
    )


def clip_by_group(rows: ArrayLike, groups: Sequence[ClipGroup]) -> ClippedGroups:
    """Clip each group of every row by itself, as :func:`clip_rows` does.

    Args:
        rows: [n, d], any real dtype, any values; d is the sum of the sizes of ``groups``.
        groups: in the order of the coordinates.
    Guarantees:
        Row i depends on row i alone. NaN or infinity in one group zeroes that group of that row.
        The norms of the groups and of the row are within their bounds as compared in float64.
    Raises:
        ConfigurationError: the sizes do not add up to d.
    """
    bound = total_clip(groups)
    values = np.asarray(rows)
    width = sum(group.size for group in groups)
    if values.ndim != 2 or values.shape[1] != width:
        raise ConfigurationError(f"rows must have shape [n, {width}], got {values.shape}")
    parts, dropped, start = [], [], 0
    for group in groups:
        part, count = clip_rows(values[:, start : start + group.size], group.clip_norm)
        parts.append(part)
        dropped.append(count)
        start += group.size
    if len(parts) == 1:
        return ClippedGroups(parts[0], bound, tuple(dropped))
    joined, _ = clip_rows(np.concatenate(parts, axis=1), bound)  # rounding of the parts only
    return ClippedGroups(joined, bound, tuple(dropped))
