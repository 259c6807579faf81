"""Which trajectories of a batch count for which person, before anything is computed from them.

Guarantee: :func:`grouped` reads the subjects of a batch and nothing else of it, so what a
trajectory contains never decides whether it counts; what does not count reaches no later stage
(:func:`kept` zeroes it and masks it out). Removing what one person's trajectories contain changes
no row but that person's (audits/proofs/person_unit.md).

Notation: B trajectories, P rows (one per person, a public number), m trajectories of a person that
count. Needs numpy only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError, EnvironmentFault
from privfedrl.rollout.trajectory import TrajectoryBatch

__all__ = ["Grouping", "distinct_subjects", "grouped", "kept", "sum_by_person"]

# rows are dense arrays; a plan with more persons than this in one sum of one agent is a mistake
_MAX_COUNT = 2**24


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Grouping:
    """Where each trajectory of a batch goes.

    Attributes:
        rows: int64 [B], read-only; the row of trajectory i, or -1 if it does not count. Private:
            it tells which trajectories belong together.
        num_rows: P, whatever the batch holds.
    Raises:
        ConfigurationError: a row is not in -1 .. P - 1.
    """

    rows: NDArray[np.int64]
    num_rows: int

    def __post_init__(self) -> None:
        _check_count("num_rows", self.num_rows)
        rows = np.array(self.rows, dtype=np.int64)  # own copy
        if rows.ndim != 1 or ((rows < -1) | (rows >= self.num_rows)).any():
            raise ConfigurationError(f"rows must be one-dimensional in -1 .. {self.num_rows - 1}")
        rows.flags.writeable = False
        object.__setattr__(self, "rows", rows)

    def __repr__(self) -> str:
        """Public numbers only."""
        return f"Grouping(B={len(self.rows)}, num_rows={self.num_rows})"


def distinct_subjects(batch: TrajectoryBatch) -> tuple[str, ...]:
    """The subjects that ``batch`` names, in order of first appearance: whom a release may touch.

    Raises:
        EnvironmentFault: the batch names nobody.
    """
    return tuple(dict.fromkeys(_named(batch)))


def grouped(
    batch: TrajectoryBatch,
    *,
    max_trajectories: int,
    max_subjects: int,
    admitted: Set[str] | None = None,
) -> Grouping:
    """The public rule: who counts, and how much of them.

    The first ``max_subjects`` subjects in order of first appearance among those admitted count, and
    of each the first ``max_trajectories`` trajectories in batch order, absent ones included.

    Args:
        max_trajectories: m >= 1.
        max_subjects: P >= 1, the number of rows.
        admitted: subjects that may take part; None = all that the batch names.
    Raises:
        EnvironmentFault: the batch names nobody.
        ConfigurationError: a count is out of range.
    """
    most = _check_count("max_trajectories", max_trajectories)
    limit = _check_count("max_subjects", max_subjects)
    row_of: dict[str, int] = {}
    taken: Counter[str] = Counter()
    rows = np.full(batch.num_trajectories, -1, dtype=np.int64)
    for index, subject in enumerate(_named(batch)):
        if admitted is not None and subject not in admitted:
            continue
        if subject not in row_of and len(row_of) == limit:
            continue
        row = row_of.setdefault(subject, len(row_of))
        if taken[subject] < most:
            taken[subject] += 1
            rows[index] = row
    return Grouping(rows=rows, num_rows=limit)


def kept(batch: TrajectoryBatch, grouping: Grouping) -> TrajectoryBatch:
    """The same batch in the same shape with every trajectory that does not count absent and zero.

    Raises:
        ConfigurationError: ``grouping`` is of a batch of another size.
    """
    _check_length(grouping, batch.num_trajectories)
    counts = grouping.rows >= 0

    def zeroed(array: NDArray[Any]) -> NDArray[Any]:
        # by choice, not by a product: nonsense times zero would still be nonsense
        return np.where(counts.reshape(-1, *[1] * (array.ndim - 1)), array, array.dtype.type(0))

    return replace(
        batch,
        observations=zeroed(batch.observations),
        actions=zeroed(batch.actions),
        rewards=zeroed(batch.rewards),
        mask=zeroed(batch.mask),
        terminated=zeroed(batch.terminated),
        truncated=zeroed(batch.truncated),
    )


def sum_by_person(values: NDArray[np.floating], grouping: Grouping) -> NDArray[np.float64]:
    """Sum the rows of ``values`` that belong to one person; others are not read.

    Args:
        values: [B, ...], one entry per trajectory.
    Returns:
        float64 [P, ...]; row r adds its trajectories in batch order, so its bits depend on them
        alone. A sum that overflows, or of infinities of both signs, is not finite.
    Raises:
        ConfigurationError: ``grouping`` is of a batch of another size.
    """
    _check_length(grouping, len(values))
    total = np.zeros((grouping.num_rows, *values.shape[1:]))
    with np.errstate(over="ignore", invalid="ignore"):  # the clipper drops what is not finite
        for index in np.flatnonzero(grouping.rows >= 0):
            total[grouping.rows[index]] += values[index]
    return total


def _named(batch: TrajectoryBatch) -> tuple[str, ...]:
    if batch.subjects is None:
        raise EnvironmentFault(
            "batch.subjects must name the person of every trajectory for unit PERSON, got None"
        )
    return batch.subjects


def _check_count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_COUNT:
        raise ConfigurationError(f"{name} must be an integer in 1 .. {_MAX_COUNT}, got {value!r}")
    return value


def _check_length(grouping: Grouping, count: int) -> None:
    if len(grouping.rows) != count:
        raise ConfigurationError(
            f"grouping must be of {count} trajectories, got one of {len(grouping.rows)}"
        )
