"""Few rows that show every value of every option beside every value of every other one.

Guarantee: :func:`covering` is a function of its argument alone, and each pair of values of two
different axes is in at least one of its rows. A fault that needs one or two options to be on is
therefore met by some row; one that needs three may not be.
Reference: Cohen, Dalal, Fredman and Patton 1997, The AETG system (greedy pairwise covering).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import TypeVar

__all__ = ["covering"]

Value = TypeVar("Value")
Spot = tuple[int, int]  # (axis, index of the value)
Spots = frozenset[Spot]


def covering(axes: Sequence[Sequence[Value]]) -> tuple[tuple[Value, ...], ...]:
    """Rows with one value of each axis, greedily chosen until every pair of values is in one.

    Args:
        axes: at least one value each. A single axis gives one row per value.
    """
    if len(axes) == 1:
        return tuple((value,) for value in axes[0])
    open_pairs = dict.fromkeys(
        frozenset(pair)
        for one, other in combinations(range(len(axes)), 2)
        for pair in product(_spots(axes, one), _spots(axes, other))
    )
    rows = []
    while open_pairs:
        row = _row(axes, open_pairs)
        for pair in combinations(row, 2):
            open_pairs.pop(frozenset(pair), None)
        rows.append(tuple(axes[axis][index] for axis, index in sorted(row)))
    return tuple(rows)


def _row(axes: Sequence[Sequence[Value]], open_pairs: dict[Spots, None]) -> list[Spot]:
    """The first pair that is open, and for each other axis the value that closes most."""
    row = sorted(next(iter(open_pairs)))
    taken = {axis for axis, _ in row}
    for axis in range(len(axes)):
        if axis not in taken:
            row.append(max(_spots(axes, axis), key=lambda spot: _closed(spot, row, open_pairs)))
    return row


def _closed(spot: Spot, row: Sequence[Spot], open_pairs: dict[Spots, None]) -> int:
    return sum(frozenset((spot, other)) in open_pairs for other in row)


def _spots(axes: Sequence[Sequence[Value]], axis: int) -> list[Spot]:
    return [(axis, index) for index in range(len(axes[axis]))]
