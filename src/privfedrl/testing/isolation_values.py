"""What the leak linter sees of two worlds that differ in one unit, and the one comparison of them.

Guarantee: :func:`compare` is a pure function of two observations; it is silent exactly when every
released integer vector moved by at most what was charged for it and everything else that was seen
is equal. It compares exact integers and strings, never floats within a tolerance.

Notation: Delta the charged integer sensitivity; round 0 is the one that the unit takes part in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError
from privfedrl.privacy.units import Adjacency, IntegerSensitivity, Unit

__all__ = [
    "ALL_CHANNELS",
    "Channel",
    "Leak",
    "Observation",
    "RoundSeen",
    "UnitLeak",
    "compare",
    "compare_repeats",
    "movement",
]

IntArray = NDArray[np.int64]


class Channel(Enum):
    """Through what a unit can be noticed.

    SENSITIVITY: the integers of its own round move by more than Delta, L2 or L1.
    COMPOSITION: a release that is not charged moves as well.
    LATER_ROUND: integers of a later round move although the unit is not in it.
    SHAPE, CALLS, EXCEPTION, LOG, OUTPUT, WARNING: shapes, dtypes and message sizes; how often what
    was called; what was raised; logging records; stdout and stderr; warnings.
    EVENT: what is charged depends on the data. FIELD: a public field of the update does.
    STATE: an attribute that outlives the round does.
    NOISE: two runs from one checkpoint draw the same noise.
    REPEAT: the same world twice is not the same: no comparison means anything.
    """

    SENSITIVITY = "sensitivity"
    COMPOSITION = "composition"
    LATER_ROUND = "later round"
    SHAPE = "shape"
    CALLS = "calls"
    EXCEPTION = "exception"
    LOG = "log"
    OUTPUT = "output"
    WARNING = "warning"
    EVENT = "event"
    FIELD = "field"
    STATE = "state"
    NOISE = "noise"
    REPEAT = "repeat"


ALL_CHANNELS = frozenset(Channel)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoundSeen:
    """One round of one world.

    Attributes:
        vectors: int64 [p] each, what is released before noise, in order of release.
        charges: what is charged for the round, the k-th for the k-th release.
        seen: (channel, name) -> canonical text of everything else.
        noise: int64 [p], the noise share that was drawn; None where it is not part of the test.
    """

    vectors: tuple[IntArray, ...]
    charges: tuple[IntegerSensitivity, ...]
    seen: Mapping[tuple[Channel, str], str] = field(default_factory=dict)
    noise: IntArray | None = None

    def __post_init__(self) -> None:
        for vector in self.vectors:
            if not isinstance(vector, np.ndarray) or vector.dtype.kind not in "iu":
                kind = getattr(vector, "dtype", type(vector).__name__)
                raise ConfigurationError(f"vectors must be integer arrays before noise, got {kind}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observation:
    """Everything that was seen of one world, round by round; the unit is in round 0 only."""

    rounds: tuple[RoundSeen, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """One thing that depends on the unit and must not.

    Attributes:
        kind: the channel. name: what in it. expected, found: the two values, or bound and movement.
        message: one sentence for a reader.
    """

    kind: Channel
    name: str
    expected: str
    found: str
    message: str


class UnitLeak(AssertionError):
    """A unit can be noticed. ``leaks`` are the findings, ``pair`` says in which two worlds."""

    def __init__(self, subject: str, pair: str, leaks: Sequence[Leak]) -> None:
        self.subject, self.pair, self.leaks = subject, pair, tuple(leaks)
        rows = [("channel", "what", "expected", "found")]
        rows += [(leak.kind.value, leak.name, leak.expected, leak.found) for leak in self.leaks]
        text = [[_short(cell) for cell in row] for row in rows]
        widths = [max(len(row[k]) for row in text) for k in range(4)]
        table = "\n".join(
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            for row in text
        )
        reasons = "\n".join(dict.fromkeys(f"  - {leak.message}" for leak in self.leaks))
        super().__init__(f"{subject}: one unit can be noticed ({pair})\n{table}\n{reasons}")


def compare(
    before: Observation,
    after: Observation,
    *,
    unit: Unit,
    adjacency: Adjacency,
    channels: frozenset[Channel] = ALL_CHANNELS,
) -> tuple[Leak, ...]:
    """Everything that shows which of two worlds it was.

    Args:
        before, after: the worlds; one unit of round 0 is absent (ADD_REMOVE) or another.
        unit: AGENT is in all rounds, so a later round may move by what is charged for it.
        channels: what to look at; leave it alone unless you are testing the linter.
    """
    found = _all_leaks(before, after, unit, adjacency)
    return tuple(leak for leak in found if leak.kind in channels)


def compare_repeats(
    first: Observation, second: Observation, *, channels: frozenset[Channel] = ALL_CHANNELS
) -> tuple[Leak, ...]:
    """What is wrong with two runs of one world from one checkpoint: all equal but the noise."""
    found = list(_repeat_leaks(first, second))
    return tuple(leak for leak in found if leak.kind in channels)


def movement(before: Observation, after: Observation, *, unit: Unit, adjacency: Adjacency) -> float:
    """How far all releases together moved, in units of what is charged for the unit.

    Returns:
        sqrt(sum of squared movements / sum of squared bounds), the bounds of round 0 (of all rounds
        for AGENT): at most 1 for what is sound; nan if nothing was charged or the vectors cannot
        be compared.
    """
    charged = before.rounds if unit is Unit.AGENT else before.rounds[:1]
    bounds = [bound.for_adjacency(adjacency) for part in charged for bound in part.charges]
    allowed = sum(bound.l2_squared for bound in bounds)
    total = 0
    for one, other in zip(before.rounds, after.rounds, strict=False):
        for x, y in zip(one.vectors, other.vectors, strict=False):
            if x.shape != y.shape:
                return math.nan
            total += _norms(x, y)[0]
    return math.sqrt(total / allowed) if allowed else math.nan


def _all_leaks(
    before: Observation, after: Observation, unit: Unit, adjacency: Adjacency
) -> Iterator[Leak]:
    if len(before.rounds) != len(after.rounds):
        yield _differs(Channel.CALLS, "rounds", len(before.rounds), len(after.rounds))
    for index, (one, other) in enumerate(zip(before.rounds, after.rounds, strict=False)):
        yield from _vector_leaks(index, one, other, unit, adjacency)
        if unit is Unit.AGENT:
            yield from _size_leaks(index, one)
            yield from _size_leaks(index, other)
        yield from _seen_leaks(index, one, other)


def _vector_leaks(
    index: int, one: RoundSeen, other: RoundSeen, unit: Unit, adjacency: Adjacency
) -> Iterator[Leak]:
    where = f"round {index}"
    if len(one.vectors) != len(other.vectors):
        yield _differs(Channel.CALLS, f"{where}: releases", len(one.vectors), len(other.vectors))
    if one.charges != other.charges:
        yield _differs(Channel.EVENT, f"{where}: charges", one.charges, other.charges)
    for k, (x, y) in enumerate(zip(one.vectors, other.vectors, strict=False)):
        name = f"{where}, release {k}"
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            yield _differs(
                Channel.SHAPE, name, f"{x.dtype}{list(x.shape)}", f"{y.dtype}{list(y.shape)}"
            )
        elif index > 0 and unit is not Unit.AGENT:
            yield from _untouched(Channel.LATER_ROUND, name, x, y, _LATER)
        elif k < len(one.charges):
            yield from _within(name, x, y, one.charges[k].for_adjacency(adjacency))
        else:
            yield from _untouched(Channel.COMPOSITION, name, x, y, _UNCHARGED)


_LATER = "integers of a round without the unit moved: un-noised state survived"
_UNCHARGED = "a release that is not charged moved: fewer compositions are declared than happen"


def _within(name: str, x: IntArray, y: IntArray, bound: IntegerSensitivity) -> Iterator[Leak]:
    l2_squared, l1 = _norms(x, y)
    for norm, found, allowed, times in (
        ("L2 squared", l2_squared, bound.l2_squared, math.sqrt(l2_squared / bound.l2_squared)),
        ("L1", l1, bound.l1, l1 / bound.l1),
    ):
        if found > allowed:
            yield Leak(
                kind=Channel.SENSITIVITY,
                name=f"{name}: {norm}",
                expected=f"<= {allowed}",
                found=str(found),
                message=f"the sum before noise moved by {times:.3f} times what is charged "
                f"({norm.split()[0]})",
            )


def _size_leaks(index: int, one: RoundSeen) -> Iterator[Leak]:
    """An agent that is not there adds zero, so a vector of its own must be within the bound."""
    for k, (vector, charge) in enumerate(zip(one.vectors, one.charges, strict=False)):
        yield from _within(f"round {index}, release {k}, by itself", vector, vector * 0, charge)


def _untouched(kind: Channel, name: str, x: IntArray, y: IntArray, message: str) -> Iterator[Leak]:
    l2_squared, _ = _norms(x, y)
    if l2_squared:
        found = str(l2_squared)
        yield Leak(
            kind=kind, name=f"{name}: L2 squared", expected="0", found=found, message=message
        )


def _seen_leaks(index: int, one: RoundSeen, other: RoundSeen) -> Iterator[Leak]:
    missing = len(one.vectors) != len(other.vectors)
    for key in dict.fromkeys([*one.seen, *other.seen]):
        x, y = one.seen.get(key, _ABSENT), other.seen.get(key, _ABSENT)
        # the shape and the fields of a release that is missing say no more than that it is missing
        if missing and _ABSENT in (x, y) and key[0] in (Channel.SHAPE, Channel.FIELD):
            continue
        if x != y:
            yield _differs(key[0], f"round {index}: {key[1]}", x, y)


_ABSENT = "absent"


def _repeat_leaks(first: Observation, second: Observation) -> Iterator[Leak]:
    # a noise share of all zeros twice is no coincidence either: it hides nothing
    for leak in _all_leaks(first, second, Unit.TRAJECTORY, Adjacency.ADD_REMOVE):
        yield _repeated(leak.name, leak.expected, leak.found)
    for index, (one, other) in enumerate(zip(first.rounds, second.rounds, strict=False)):
        for k, (x, y) in enumerate(zip(one.vectors, other.vectors, strict=False)):
            if x.shape == y.shape and _norms(x, y)[0]:
                yield _repeated(f"round {index}, release {k}", "equal integers", "other integers")
        if _same(one.noise, other.noise):
            yield Leak(
                kind=Channel.NOISE,
                name=f"round {index}: noise share",
                expected="fresh on every run",
                found="the same twice",
                message="noise is repeatable: seeded from the training generator or checkpointed "
                "with it, so whoever knows the seed can subtract it",
            )


def _same(one: IntArray | None, other: IntArray | None) -> bool:
    return one is not None and other is not None and np.array_equal(one, other)


def _repeated(name: str, expected: str, found: str) -> Leak:
    return Leak(
        kind=Channel.REPEAT,
        name=name,
        expected=expected,
        found=found,
        message="one world twice, from one checkpoint, is not the same: seed the trainer",
    )


def _differs(kind: Channel, name: str, expected: object, found: object) -> Leak:
    return Leak(
        kind=kind,
        name=name,
        expected=str(expected),
        found=str(found),
        message=f"{kind.value}: {name} depends on one unit",
    )


def _norms(x: IntArray, y: IntArray) -> tuple[int, int]:
    """(L2 squared, L1) of x - y as Python integers: exact whatever the size."""
    if np.array_equal(x, y):
        return 0, 0
    moved = [int(a) - int(b) for a, b in zip(x.ravel(), y.ravel(), strict=True)]
    return sum(m * m for m in moved), sum(abs(m) for m in moved)


def _short(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."
