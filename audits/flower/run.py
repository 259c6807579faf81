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

from observations import OBSERVATIONS, Observation, observe
from report import render
from secaggplus_adapter import SecAggPlusAdapter

from privfedrl.testing.adapter import Claim
from privfedrl.testing.attacks import ATTACKS, run_attacks
from privfedrl.testing.machine import aggregation_machine
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
        text = str(failure)
        steps = next(line for line in text.splitlines() if line.startswith("SCHEDULE"))
        return row | {
            "outcome": f"failed: {text.splitlines()[0]}",
            "detail": f"`{steps.removeprefix('SCHEDULE = r').strip(chr(39))}`",
        }
    return row | {"outcome": "nothing found", "detail": ""}


def main() -> int:
    """Exit status 0 if everything ran, whatever was found; 2 on another version of flwr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("audits/reports"))
    parser.add_argument("--date", default=datetime.date.today().isoformat())
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
    write(given.out / f"{given.date}-flower-secaggplus-{version}", given.date)
    return 0


def write(stem: Path, date: str) -> None:
    """The three files; what takes long says so on stderr."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    print("attacks (under a minute)", file=sys.stderr)
    verdict = run_attacks(SecAggPlusAdapter(), attacks=(*ATTACKS, *UNIFORMITY))
    _put(stem, ".json", verdict.to_json())
    print("observations (two minutes)", file=sys.stderr)
    found: list[Observation] = observe()
    print("state machine (three minutes)", file=sys.stderr)
    machines = [
        machine(SecAggPlusAdapter(), "honest-but-curious"),
        machine(WithoutDropouts(), "honest-but-curious"),
    ]
    seen = {
        "date": date,
        "observations": [dataclasses.asdict(each) for each in found],
        "machines": machines,
    }
    _put(stem, ".observations.json", json.dumps(seen, indent=2))
    _put(stem, ".md", render(date, verdict, machines, found).rstrip())


def _put(stem: Path, suffix: str, text: str) -> None:
    stem.with_name(stem.name + suffix).write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
