"""Runs the kit and the observations against the installed flwr; writes the report.

python audits/flower/run.py --out audits/reports          everything
python audits/flower/run.py --only overflow_is_silent     one observation, as JSON on stdout
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

from observations import OBSERVATIONS, observe
from report import environment, render
from secaggplus_adapter import SecAggPlusAdapter

from privfedrl.testing.adapter import Claim, RoundSpec
from privfedrl.testing.attacks import ATTACKS, run_attacks
from privfedrl.testing.machine import aggregation_machine
from privfedrl.testing.replay import judge
from privfedrl.testing.schedule import Schedule, shrink
from privfedrl.testing.suites import UNIFORMITY

PINNED = "1.41.0"


class WithoutDropouts(SecAggPlusAdapter):
    """The same with one claim set aside, so that the machine looks past the first finding."""

    claims = SecAggPlusAdapter.claims - {Claim.DROPOUTS}


def machine(adapter: SecAggPlusAdapter, profile: Any) -> dict[str, str]:
    """One run of the state machine, in words."""
    place = f"secaggplus_adapter:{SecAggPlusAdapter.__name__}"
    case = aggregation_machine(adapter, profile, place=place)
    row = {"profile": str(profile), "claims": ", ".join(sorted(c.name for c in adapter.claims))}
    try:
        case("runTest").debug()
    except AssertionError as failure:
        first, *lines = str(failure).splitlines()
        found = next(line for line in lines if line.startswith("SCHEDULE"))
        long = Schedule.from_json(found.removeprefix("SCHEDULE = r").strip("'"))
        invariant = first.split()[0]
        short = shrink(long, lambda each: invariant in _broken(adapter, each))
        said = _broken(adapter, short)[invariant]
        return row | {"outcome": f"failed: {said}", "schedule": short.to_json()}
    return row | {"outcome": "nothing found", "schedule": ""}


def _broken(adapter: SecAggPlusAdapter, schedule: Schedule) -> dict[str, str]:
    return {each.invariant: str(each) for each in judge(adapter, RoundSpec(), schedule)}


def main() -> int:
    """Exit status 0 if everything ran, whatever was found; 2 on another version of flwr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("audits/reports"))
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    parser.add_argument("--verdict-only", action="store_true")
    parser.add_argument("--only", choices=list(OBSERVATIONS))
    given = parser.parse_args()
    if (version := importlib.metadata.version("flwr")) != PINNED:
        print(f"flwr must be {PINNED}, found {version}", file=sys.stderr)
        return 2
    logging.getLogger("flwr").handlers = [logging.NullHandler()]
    logging.getLogger("flwr").propagate = False
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="flwr")
    if given.only:
        print(json.dumps(dataclasses.asdict(OBSERVATIONS[given.only]()), indent=2))
        return 0
    stem = given.out / f"{given.date}-flower-secaggplus-{version}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    if not given.verdict_only:
        _put(stem, ".observations.json", json.dumps(measure(given.date), indent=2))
    write(stem)
    return 0


def measure(date: str) -> dict[str, Any]:
    """What takes long, with a word on stderr."""
    print("observations (a minute)", file=sys.stderr)
    found = [dataclasses.asdict(each) for each in observe()]
    print("state machine (a minute)", file=sys.stderr)
    adapters = SecAggPlusAdapter(), WithoutDropouts()
    machines = [machine(adapter, "honest-but-curious") for adapter in adapters]
    return {"date": date, "environment": environment(), "observations": found, "machines": machines}


def write(stem: Path) -> None:
    """The verdict, and the report on it and on what was measured."""
    print("attacks (under a minute)", file=sys.stderr)
    verdict = run_attacks(SecAggPlusAdapter(), attacks=(*ATTACKS, *UNIFORMITY))
    _put(stem, ".json", verdict.to_json())
    seen = json.loads(stem.with_name(stem.name + ".observations.json").read_text())
    _put(stem, ".md", render(verdict, seen).rstrip())


def _put(stem: Path, suffix: str, text: str) -> None:
    stem.with_name(stem.name + suffix).write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
