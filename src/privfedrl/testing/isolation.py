"""The leak linter: no unit can be noticed in what a trainer releases, says, raises or remembers.

    from privfedrl.testing import assert_unit_isolated
    assert_unit_isolated(MyTrainer(policy))

Guarantee: if it raises :class:`UnitLeak`, there are two worlds that differ in one unit and can be
told apart; the message shows them. If it returns, none of the worlds that were tried could be: it
searches, it does not prove, and time is not observed (docs/leak-linter.md).

``python -m privfedrl.testing.isolation [--json]`` lints the shipped trainers, which must be clean,
and the seeded pitfalls, which must be found; it exits 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from privfedrl.errors import ConfigurationError
from privfedrl.privacy.units import Unit
from privfedrl.testing.isolation_rounds import RoundUnderTest, Step, TrainerRounds, UnitTrainer
from privfedrl.testing.isolation_values import (
    ALL_CHANNELS,
    Channel,
    Leak,
    Observation,
    UnitLeak,
    compare,
    compare_repeats,
    movement,
)
from privfedrl.testing.isolation_worlds import EFFORTS, Pair, World, pairs

__all__ = ["LintReport", "assert_unit_isolated", "lint", "lint_trainer", "main"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LintReport:
    """What :func:`lint` found.

    Attributes:
        subject: what was linted. worlds: pairs that were compared.
        leaks: (pair, leak), the first pair's first.
        moved: the largest movement of the releases, in units of what is charged for one unit (two
            where the unit was replaced); nan if nothing could be measured.
    """

    subject: str
    worlds: int
    leaks: tuple[tuple[str, Leak], ...]
    moved: float

    @property
    def clean(self) -> bool:
        """Nothing was found."""
        return not self.leaks

    @property
    def channels(self) -> frozenset[Channel]:
        """Through what the unit was noticed."""
        return frozenset(leak.kind for _, leak in self.leaks)

    def check(self) -> None:
        """Raise UnitLeak with the leaks of the first pair that had one."""
        if self.leaks:
            pair = self.leaks[0][0]
            raise UnitLeak(self.subject, pair, [leak for name, leak in self.leaks if name == pair])


def assert_unit_isolated(
    trainer: UnitTrainer,
    *,
    unit: Unit | None = None,
    effort: str = "default",
    seed: int = 0,
    private: Iterable[str] = (),
    step: Step | None = None,
) -> None:
    """Raise UnitLeak if one unit can be noticed in any of the worlds that are tried.

    Args:
        trainer: in its initial state; it is copied, never changed.
        unit: of the guarantee; None = ``trainer.unit`` or ``trainer.settings.unit``.
        effort: "quick", "default" (well below a second) or "thorough".
        seed: of the worlds; the same seed tries the same worlds.
        private: attributes of the trainer that may depend on the unit after a round.
        step: (trainer, parameters, collect) -> update(s); None = ``local_update`` or
            ``local_steps``.
    Raises:
        UnitLeak: a finding; an AssertionError with a table of what differed.
        ConfigurationError: the trainer states no unit or no finite clip, or cannot be copied.
    """
    report = lint_trainer(
        trainer, unit=unit, effort=effort, seed=seed, private=private, step=step, all_pairs=False
    )
    report.check()


def lint_trainer(
    trainer: UnitTrainer,
    *,
    unit: Unit | None = None,
    effort: str = "default",
    seed: int = 0,
    private: Iterable[str] = (),
    step: Step | None = None,
    channels: frozenset[Channel] = ALL_CHANNELS,
    all_pairs: bool = True,
) -> LintReport:
    """As :func:`assert_unit_isolated`, but report what was found."""
    rounds = TrainerRounds(
        trainer=trainer, unit=_unit_of(trainer, unit), private=frozenset(private), step=step
    )
    worlds = pairs(
        trainer.policy,
        unit=rounds.unit,
        dimension=trainer.dimension,
        collects=rounds.collects,
        effort=effort,
        seed=seed,
    )
    return lint(rounds, worlds, channels=channels, all_pairs=all_pairs)


def lint(
    subject: RoundUnderTest,
    worlds: Iterable[Pair],
    *,
    channels: frozenset[Channel] = ALL_CHANNELS,
    all_pairs: bool = True,
) -> LintReport:
    """Play ``worlds`` and compare each pair.

    Args:
        subject: what is linted; anything with ``play(world) -> Observation`` will do.
        channels: what to look at; a linter that looks at less misses what only shows there.
        all_pairs: False stops at the first pair with a finding.
    """
    leaks: list[tuple[str, Leak]] = []
    moved, count, last = math.nan, 0, _Last(subject)
    for count, pair in enumerate(worlds, start=1):
        before = last.play(pair.before)
        found: tuple[Leak, ...] = ()
        if count == 1:
            found = compare_repeats(before, subject.play(pair.before), channels=channels)
        after = last.play(pair.after)
        found += compare(
            before, after, unit=subject.unit, adjacency=pair.adjacency, channels=channels
        )
        leaks += [(pair.name, leak) for leak in found]
        moved = _larger(moved, movement(before, after, unit=subject.unit, adjacency=pair.adjacency))
        if leaks and not all_pairs:
            break
    if count == 0:
        raise ConfigurationError("worlds must hold at least one pair, got none")
    return LintReport(subject=subject.name, worlds=count, leaks=tuple(leaks), moved=moved)


class _Last:
    """Plays a world once while consecutive pairs share it, on whichever side."""

    def __init__(self, subject: RoundUnderTest) -> None:
        self._subject = subject
        self._played: list[tuple[World, Observation]] = []

    def play(self, world: World) -> Observation:
        for known, seen in self._played:
            if known is world:
                return seen
        self._played = [*self._played[-1:], (world, self._subject.play(world))]
        return self._played[-1][1]


def _larger(one: float, other: float) -> float:
    if math.isnan(one) or math.isnan(other):
        return one if math.isnan(other) else other
    return max(one, other)


def _unit_of(trainer: UnitTrainer, unit: Unit | None) -> Unit:
    stated = unit or getattr(
        trainer, "unit", getattr(getattr(trainer, "settings", None), "unit", None)
    )
    if not isinstance(stated, Unit):
        raise ConfigurationError(
            f"unit must be given, or stated by the trainer as unit or settings.unit, got {stated!r}"
        )
    return stated


def main(arguments: Sequence[str] | None = None) -> int:
    """Lint pitfalls and shipped trainers; print the tables. Returns the exit code."""
    # the tables import this module, and need torch
    from privfedrl.testing.isolation_report import examine

    parser = argparse.ArgumentParser(
        prog="python -m privfedrl.testing.isolation", description="the leak linter against itself"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--effort", choices=tuple(EFFORTS), default="quick")
    given = parser.parse_args(arguments)
    result = examine(effort=given.effort)
    print(json.dumps(result.to_dict(), indent=2) if given.json else result.to_text())
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
