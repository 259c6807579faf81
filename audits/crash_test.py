"""Kill ledger writers at random instants and check that no release was ever under-charged.

Several processes share one ledger. Each reserves a release, then "releases" it by writing a marker
durably to a file of its own, then settles it; SIGKILL ends it at a random instant and another one
takes its place. While they run and after each wave of kills this process checks, from the outside:

    chain       the ledger opens, verifies from the first byte and contains every earlier head
    charged     every marker has a reservation: nothing was released without a charge before it
    kept        every reservation and settlement that a writer reported is there
    covered     the ledger's epsilon is at least that of all markers together
    in budget   the lifetime budget holds for everything in the ledger
    overcharge  at most one reservation per killed writer stands without a marker

One ledger serves until its budget is used up, then a new one begins. Half of the ledgers hold one
plan, half hold two, so both rules for budgets are exercised.

    python audits/crash_test.py [--kills N] [--seed N] [--json]

Exit 0: every check held. Exit 1: one did not, or of 200 kills none fell between charge and release.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from privfedrl.errors import BudgetExceeded, PrivfedrlError
from privfedrl.privacy.accountant import epsilon
from privfedrl.privacy.events import SkellamEvent
from privfedrl.privacy.ledger import Account, Charge, Ledger
from privfedrl.privacy.units import IntegerSensitivity, Unit

__all__ = ["DEFECTS", "Outcome", "crash_test", "main"]

CHECKS = ("chain", "charged", "kept", "covered", "in budget", "overcharge")
DEFECTS = ("none", "release-before-reserve", "settle-below-truth")
"""What a writer can be told to do wrong, to show that the checks can fail."""

# fork: a writer starts in milliseconds, so hundreds can be killed in a minute
FORK = multiprocessing.get_context("fork")
BOUND = IntegerSensitivity(l2_squared=10**6, l1=10**4, unit=Unit.PERSON)
RESERVED = SkellamEvent(sensitivity=BOUND, variance=10**8)
REALISED = SkellamEvent(sensitivity=BOUND, variance=12 * 10**7)
ADVERSARY, EPSILON, DELTA = "coordinator+1", 1.5, 1e-5
WRITERS = 3
# one wave in four is killed from the start on, the others from the first line that a writer left
# on: so a slow machine also sees kills between charge, release and settlement
EARLY_WAVES = 0.25
LONGEST_WAIT_S = 0.04
# with so many kills it is certain that some fell there
ENOUGH_KILLS = 200


@dataclass(slots=True)
class Outcome:
    """What happened, and what did not hold."""

    kills: int = 0
    waves: int = 0
    ledgers: int = 0
    released: int = 0
    reserved: int = 0
    settled: int = 0
    refused_by_budget: int = 0
    killed_with_a_reservation_open: int = 0
    checks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CHECKS, 0))
    failures: list[str] = field(default_factory=list)
    wall_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every check held, and the kills fell where they prove something."""
        few = self.kills < ENOUGH_KILLS
        return not self.failures and (few or self.killed_with_a_reservation_open > 0)


class Notes:
    """Lines that a writer leaves behind, durable before the next step; read after its death."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def write(self, kind: str, release_id: str) -> None:
        os.write(self._file, f"{kind} {release_id}\n".encode())
        os.fsync(self._file)


def write_until_killed(path: Path, notes_path: Path, name: str, plan: bytes, defect: str) -> None:
    """What a coordinator does, without the release itself: reserve, release, settle, again."""
    notes = Notes(notes_path)
    with Ledger.open(path, timeout_s=30.0) as ledger:
        number = 0
        while True:
            release_id = f"{name}/{number}"
            number += 1
            if defect == "release-before-reserve":
                notes.write("released", release_id)
            try:
                row = ledger.reserve(_charge(release_id, plan))
            except BudgetExceeded:
                notes.write("refused", release_id)
                time.sleep(60)  # until killed
                continue
            notes.write("reserved", release_id)
            if defect != "release-before-reserve":
                notes.write("released", release_id)
            if number % 2:
                event = REALISED
                if defect == "settle-below-truth":
                    event = SkellamEvent(sensitivity=BOUND, variance=10**12)
                ledger.settle(row, event)
                notes.write("settled", release_id)


def _charge(release_id: str, plan: bytes) -> Charge:
    return Charge(
        plan_digest=plan,
        release_id=release_id,
        group=release_id,
        unit=Unit.PERSON,
        adversary=ADVERSARY,
        event=RESERVED,
        epsilon=EPSILON,
        delta=DELTA,
    )


def crash_test(kills: int, *, seed: int, folder: Path, defect: str = "none") -> Outcome:
    """Kill ``kills`` writers (rounded up to whole waves); stops at the first failure."""
    rng = random.Random(seed)  # noqa: S311 - when to kill, nothing secret
    outcome = Outcome()
    begun = time.monotonic()
    while outcome.kills < kills and not outcome.failures:
        outcome.ledgers += 1
        home = folder / f"ledger-{outcome.ledgers}"
        home.mkdir()
        _one_ledger(home, kills, outcome, rng, defect)
    outcome.wall_s = round(time.monotonic() - begun, 3)
    return outcome


def _one_ledger(home: Path, kills: int, outcome: Outcome, rng: random.Random, defect: str) -> None:
    """Waves of writers on one ledger, until the budget is used up or enough were killed."""
    path, anchor, dead = home / "ledger.db", "", 0
    plans = [bytes(32)] if outcome.ledgers % 2 else [bytes(32), bytes([1]) * 32]
    used_up = False
    with Ledger.open(path) as ledger:
        ledger.declare_budget(Unit.PERSON, ADVERSARY, EPSILON, DELTA)
    while outcome.kills < kills and not used_up and not outcome.failures:
        outcome.waves += 1
        workers = []
        for number in range(WRITERS):
            name = f"{outcome.waves}.{number}"
            arguments = (path, home / f"{name}.txt", name, rng.choice(plans), defect)
            workers.append(FORK.Process(target=write_until_killed, args=arguments))
        for worker in workers:
            worker.start()
        if rng.random() >= EARLY_WAVES:
            _await_line(home, f"{outcome.waves}.")
        for worker in workers:
            time.sleep(rng.uniform(0.0, LONGEST_WAIT_S))
            worker.kill()
            if worker is workers[0]:
                _check(home, outcome, anchor, dead=None)
        for worker in workers:
            worker.join()
            if worker.exitcode != -signal.SIGKILL:
                outcome.failures.append(f"a writer ended by itself: exit code {worker.exitcode}")
        outcome.kills += WRITERS
        dead += WRITERS
        anchor = _check(home, outcome, anchor, dead=dead)
        used_up = any(kind == "refused" for kind, _ in _notes(home))
    _tally(home, outcome)


def _await_line(home: Path, wave: str) -> None:
    """Wait until a writer of this wave has left its first line, or a minute."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if any(path.stat().st_size for path in home.glob(f"{wave}*.txt")):
            return
        time.sleep(0.001)


def _notes(home: Path) -> Iterator[tuple[str, str]]:
    """Whole lines only: a writer may have died in the middle of one."""
    for path in sorted(home.glob("*.txt")):
        text = path.read_text()
        for line in text[: text.rfind("\n") + 1].splitlines():
            kind, release_id = line.split(" ")
            yield kind, release_id


def _check(home: Path, outcome: Outcome, anchor: str, *, dead: int | None) -> str:
    """All checks; ``dead`` is None while writers run. Returns the head that was found."""
    # notes first: whatever they say must be in a ledger that is read later
    said: dict[str, set[str]] = {"reserved": set(), "released": set(), "settled": set()}
    for kind, release_id in _notes(home):
        said.setdefault(kind, set()).add(release_id)
    try:
        with Ledger.open(home / "ledger.db", read_only=True, timeout_s=30.0) as ledger:
            found = ledger.verify(anchor=anchor or None)
            held = {one.charge.release_id: one for one in ledger.reservations()}
            account = ledger.account(Unit.PERSON, ADVERSARY, delta=None)
    except PrivfedrlError as error:
        _note(outcome, "chain", f"{type(error).__name__}: {error}")
        return anchor
    _note(outcome, "chain", "")
    _note(outcome, "charged", _missing(said["released"], set(held)))
    settled = {name for name, one in held.items() if one.realised is not None}
    _note(
        outcome,
        "kept",
        _missing(said["reserved"], set(held)) or _missing(said["settled"], settled),
    )
    _note(outcome, "covered", _uncovered(said, account))
    _note(outcome, "in budget", _over_budget(account))
    if dead is not None:
        stands = len(set(held) - said["released"])
        too_many = f"{stands} reservations without a release after {dead} kills"
        _note(outcome, "overcharge", too_many if stands > dead else "")
    return found.head


def _note(outcome: Outcome, check: str, problem: str) -> None:
    outcome.checks[check] += 1
    if problem:
        outcome.failures.append(f"{check}: {problem}")


def _missing(said: set[str], held: set[str]) -> str:
    lost = sorted(said - held)
    return f"{len(lost)} not in the ledger, e.g. {lost[0]}" if lost else ""


def _uncovered(said: dict[str, set[str]], account: Account) -> str:
    """The truth from the markers alone; a writer that died before settling may have settled."""
    truth = epsilon([REALISED] * len(said["released"]), DELTA).epsilon
    booked = account.running.epsilon
    return "" if booked >= truth * (1 - 1e-9) else f"ledger {booked:.6g}, released {truth:.6g}"


def _over_budget(account: Account) -> str:
    """By the accountant for one plan; the ledger's own check of the filter is in ``chain``."""
    if account.regime == "adaptive":
        return "" if account.spent.epsilon == EPSILON else f"states {account.spent.epsilon:.6g}"
    spent = account.spent.epsilon
    return "" if spent <= EPSILON * (1 + 1e-9) else f"spent {spent:.6g} of {EPSILON:g}"


def _tally(home: Path, outcome: Outcome) -> None:
    """Counts for the report; a ledger that does not open was reported before."""
    said = Counter(kind for kind, _ in _notes(home))
    outcome.released += said["released"]
    outcome.refused_by_budget += said["refused"]
    if not outcome.failures:
        with Ledger.open(home / "ledger.db", read_only=True) as ledger:
            found = ledger.verify()
        outcome.reserved += found.reservations
        outcome.settled += found.settled
        outcome.killed_with_a_reservation_open += found.reservations - said["released"]


def _table(outcome: Outcome) -> str:
    lines = [f"{name.replace('_', ' '):32} {value}" for name, value in _figures(outcome).items()]
    lines += [f"{'check ' + name:32} {count} times" for name, count in outcome.checks.items()]
    lines += [f"FAILED  {failure}" for failure in outcome.failures]
    if not outcome.failures and not outcome.ok:
        lines.append("FAILED  no kill fell between charge and release: use more kills")
    return "\n".join([*lines, "ok" if outcome.ok else "not ok"])


def _figures(outcome: Outcome) -> dict[str, object]:
    whole = asdict(outcome)
    return {name: value for name, value in whole.items() if name not in ("checks", "failures")}


def main(arguments: list[str] | None = None) -> int:
    """Run with command line arguments; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=240, help="writers to kill (default 240)")
    parser.add_argument("--seed", type=int, default=1, help="of the instants (default 1)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument(
        "--defect", choices=DEFECTS, default="none", help="seed a defect: must fail"
    )
    given = parser.parse_args(arguments)
    if given.kills < 1:
        parser.error(f"--kills must be >= 1, got {given.kills}")
    with tempfile.TemporaryDirectory() as folder:
        outcome = crash_test(given.kills, seed=given.seed, folder=Path(folder), defect=given.defect)
    if given.json:
        print(json.dumps({"ok": outcome.ok, "seed": given.seed, **asdict(outcome)}, indent=2))
    else:
        print(_table(outcome))
    return 0 if outcome.ok else 1


if __name__ == "__main__":
    sys.exit(main())
