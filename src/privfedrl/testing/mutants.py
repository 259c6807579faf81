"""The kit is tested in turn: protocols that are wrong in one way each, and all must be noticed.

    python -m privfedrl.testing.mutants [--json] [--jobs 2] [--only ID]

Guarantee: a mutant counts as killed only if an attack, a known answer or an invariant of the kit
fails on it; a mutant that nobody notices and an alarm on a correct protocol both give exit code 1.
Each protocol is examined in a child process of its own, so no defect can reach another.

Two families: seeded defects of our own protocol (``mutant_*``), and simulacra, which share no code
with it. The same order, seeds and examples every time: two runs differ in times alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Final
from unittest import TestResult

from privfedrl.errors import ConfigurationError
from privfedrl.testing.adapter import AggregationAdapter
from privfedrl.testing.attacks import ATTACKS, Attack, run_attack
from privfedrl.testing.known_answers import KNOWN_ANSWERS
from privfedrl.testing.mutant import Mutant
from privfedrl.testing.mutant_client import CLIENT_MUTANTS
from privfedrl.testing.mutant_masks import MASK_MUTANTS
from privfedrl.testing.mutant_seeded import Seeded
from privfedrl.testing.mutant_server import SERVER_MUTANTS
from privfedrl.testing.mutant_views import VIEW_MUTANTS
from privfedrl.testing.pairwise_guarded import GuardedPairwiseAdapter
from privfedrl.testing.simulacra import TOY_MUTANTS, Simulacrum
from privfedrl.testing.suites import UNIFORMITY
from privfedrl.testing.verdict import Status

__all__ = [
    "CORRECT",
    "LIMIT_S",
    "MUTANTS",
    "Examined",
    "Mutant",
    "MutantReport",
    "check_mutants",
    "examine",
    "main",
]

MUTANTS: Final[tuple[Mutant, ...]] = (
    *VIEW_MUTANTS,
    *CLIENT_MUTANTS,
    *MASK_MUTANTS,
    *SERVER_MUTANTS,
    *TOY_MUTANTS,
)
"""All mutants; ids are unique."""

CORRECT: Final[dict[str, Callable[[], AggregationAdapter]]] = {
    "reference": GuardedPairwiseAdapter,
    "correct toy": Simulacrum,
}
"""Protocols on which any finding is a false alarm."""

LIMIT_S: Final = 120.0
"""An examination that takes longer is ended. A correct protocol takes a tenth of it."""

_EVERY: Final[tuple[Attack, ...]] = tuple(
    sorted((*ATTACKS, *UNIFORMITY), key=lambda attack: attack.cost)
)
_PROFILES: Final = ("malicious-server", "coalition")
_TIMEOUT: Final = "timeout"
_CRASH: Final = "crash"
"""No finding: the examination itself went wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What the kit said of one protocol.

    Attributes:
        by: id of the attack, known answer or machine profile that failed; empty if none did.
        detail: its finding. script: replays it, where a schedule shows it.
        seconds: until then.
    """

    id: str
    by: str = ""
    detail: str = ""
    seconds: float = 0.0
    script: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class MutantReport:
    """``alarms``: findings on correct protocols. ``surprises``: killed, but not as expected."""

    killed: tuple[Examined, ...]
    survived: tuple[Examined, ...]
    alarms: tuple[Examined, ...]
    surprises: tuple[str, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every mutant was noticed and nothing correct was."""
        return not self.survived and not self.alarms

    def to_json(self) -> str:
        """One JSON object with these fields and ``ok``."""
        return json.dumps({"ok": self.ok, **asdict(self)}, indent=2, sort_keys=True)

    def to_text(self) -> str:
        """A line per mutant, then what is wrong with the kit."""
        rows = [
            f"{name:9} {each.id:24} {each.seconds:6.2f} s  {each.by:18} {each.detail[:90]}"
            for name in ("killed", "survived", "alarms")
            for each in getattr(self, name)
        ]
        total = len(self.killed) + len(self.survived)
        return "\n".join(
            [
                *rows,
                *(f"unexpected: {text}" for text in self.surprises),
                f"{len(self.killed)} of {total} mutants killed, {len(self.alarms)} false alarms, "
                f"{self.seconds:.1f} s",
            ]
        )


def examine(
    name: str,
    adapter: AggregationAdapter,
    *,
    expected: Sequence[str] = (),
    thorough: bool = False,
    profiles: Sequence[str] = _PROFILES,
) -> Examined:
    """Look for one finding: what is expected, then known answers, every attack, the machine.

    Args:
        thorough: run the expected attacks in their long form, after everything else is.
        profiles: of the state machine.
    """
    started = time.perf_counter()
    for by, detail, script in _findings(adapter, tuple(expected), thorough, profiles):
        spent = round(time.perf_counter() - started, 2)
        return Examined(id=name, by=by, detail=detail, seconds=spent, script=script)
    return Examined(id=name, seconds=round(time.perf_counter() - started, 2))


_Finding = tuple[str, str, str]


def _findings(
    adapter: AggregationAdapter, expected: tuple[str, ...], thorough: bool, profiles: Sequence[str]
) -> Iterator[_Finding]:
    first = [attack for name in expected for attack in _EVERY if attack.id == name]
    rest = [attack for attack in _EVERY if attack not in first]
    yield from _attacked(adapter, first, thorough=thorough)
    yield from _known(adapter)
    yield from _attacked(adapter, rest, thorough=False)
    for profile in profiles:
        yield from _machine(adapter, profile)


def _attacked(
    adapter: AggregationAdapter, attacks: Iterable[Attack], *, thorough: bool
) -> Iterator[_Finding]:
    for attack in attacks:
        outcome = run_attack(adapter, attack, thorough=thorough, shrink_tries=0)
        if outcome.status is Status.FAILED:
            yield attack.id, outcome.detail, outcome.script


def _known(adapter: AggregationAdapter) -> Iterator[_Finding]:
    """Known answers, computed where the defect acts. A simulacrum has primitives of its own."""
    with adapter.applied() if isinstance(adapter, Seeded) else nullcontext():
        for answer in KNOWN_ANSWERS:
            if not answer.holds():
                yield answer.id, answer.source, ""


def _machine(adapter: AggregationAdapter, profile: Any) -> Iterator[_Finding]:
    # only here: everything else of the kit works without hypothesis
    from privfedrl.testing.machine import aggregation_machine

    result = TestResult()
    aggregation_machine(adapter, profile, shrinking=False)("runTest").run(result)
    for _, text in (*result.failures, *result.errors):
        said = [line for line in text.splitlines() if line.startswith(("I", "AssertionError: I"))]
        detail = said[0].removeprefix("AssertionError: ") if said else text.splitlines()[-1]
        yield detail.split()[0] if said else profile, f"{profile}: {detail}", text


def check_mutants(
    only: Iterable[str] | None = None, *, jobs: int = 1, limit_s: float = LIMIT_S
) -> MutantReport:
    """Examine mutants and, unless ``only`` some are asked for, the correct protocols as well.

    Args:
        only: ids of mutants. jobs: child processes at once. limit_s: for each examination.
    Raises:
        ConfigurationError: an id is unknown.
    """
    started = time.perf_counter()
    rows = {mutant.id: mutant for mutant in MUTANTS}
    chosen = list(rows) if only is None else list(only)
    unknown = sorted(set(chosen) - set(rows))
    if unknown:
        raise ConfigurationError(f"only must name mutants, got {', '.join(unknown)}")
    correct = [] if only is not None else list(CORRECT)
    found = _in_children([*correct, *chosen], jobs, limit_s)
    slow = any(each.by == _TIMEOUT for name, each in found.items() if name in CORRECT)
    void = {_CRASH, _TIMEOUT} if slow else {_CRASH}
    killed = [found[name] for name in chosen if found[name].by and found[name].by not in void]
    return MutantReport(
        killed=tuple(killed),
        survived=tuple(found[name] for name in chosen if found[name] not in killed),
        alarms=tuple(found[name] for name in correct if found[name].by),
        surprises=tuple(
            f"{each.id} was killed by {each.by}, not by {' or '.join(rows[each.id].expected)}"
            for each in killed
            if each.by not in rows[each.id].expected
        ),
        seconds=round(time.perf_counter() - started, 1),
    )


def _examine_named(name: str) -> Examined:
    if name in CORRECT:
        return examine(name, CORRECT[name]())
    row = next(mutant for mutant in MUTANTS if mutant.id == name)
    return examine(name, row.make(), expected=row.expected, thorough=row.thorough)


def _child(name: str, answer: Connection) -> None:
    warnings.simplefilter("ignore")  # a defect may divide by zero on its way
    try:
        found = _examine_named(name)
    except Exception as error:  # noqa: BLE001 - a defect may show in any way
        found = Examined(id=name, by=_CRASH, detail=f"{type(error).__name__}: {error}")
    answer.send(found)
    answer.close()


def _in_children(names: Sequence[str], jobs: int, limit_s: float) -> dict[str, Examined]:
    """One forked process per name, at most ``jobs`` at once; who takes too long is ended."""
    context = multiprocessing.get_context("fork")
    waiting, found = list(names), {}
    running: dict[Connection, tuple[str, Any, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < max(1, jobs):
                ours, theirs = context.Pipe(duplex=False)
                name = waiting.pop(0)
                process = context.Process(target=_child, args=(name, theirs))
                process.start()
                theirs.close()
                running[ours] = (name, process, time.perf_counter())
            wait(list(running), timeout=0.5)
            for ours in [each for each in running if each.poll()]:
                name, process, _ = running.pop(ours)
                found[name] = _received(name, ours)
                process.join()
            for ours, (name, process, started) in list(running.items()):
                if time.perf_counter() - started > limit_s:
                    process.kill()
                    process.join()
                    del running[ours]
                    detail = f"not done after {limit_s:.0f} s"
                    found[name] = Examined(id=name, by=_TIMEOUT, detail=detail, seconds=limit_s)
    finally:
        for _, process, _ in running.values():
            process.kill()
    return found


def _received(name: str, ours: Any) -> Examined:
    try:
        found: Examined = ours.recv()
    except EOFError:
        return Examined(id=name, by=_CRASH, detail="the process ended without an answer")
    return found


def __getattr__(name: str) -> Any:
    """The adapter of a row as ``mutant_...``: printed scripts name it so."""
    for mutant in MUTANTS:
        if name == f"mutant_{mutant.id.replace('-', '_')}":
            return mutant.make
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m privfedrl.testing.mutants")
    parser.add_argument("--json", action="store_true", help="the report as JSON on stdout")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at once")
    parser.add_argument("--only", action="append", metavar="ID", help="a mutant; repeatable")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine everything. Exit code 0: the kit is good. 1: it is not. 2: bad arguments."""
    given = _parser().parse_args(arguments)
    try:
        report = check_mutants(given.only, jobs=given.jobs)
    except ConfigurationError as error:
        print(f"ConfigurationError: {error}", file=sys.stderr)
        return 2
    print(report.to_json() if given.json else report.to_text())
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
