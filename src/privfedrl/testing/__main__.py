"""``python -m privfedrl.testing MODULE:ADAPTER``: a verdict on an aggregation protocol.

Exit code 0: no claim was broken. 1: a finding. 2: the arguments make no sense.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from privfedrl.errors import ConfigurationError
from privfedrl.testing.attacks import ATTACKS, run_attacks
from privfedrl.testing.replay import load_adapter
from privfedrl.testing.suites import UNIFORMITY
from privfedrl.testing.verdict import Verdict

__all__ = ["main"]

_REFERENCE = "privfedrl.testing.pairwise_guarded:GuardedPairwiseAdapter"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m privfedrl.testing", description=__doc__)
    parser.add_argument(
        "adapter", nargs="?", default=_REFERENCE, help=f"module:name; {_REFERENCE} if absent"
    )
    parser.add_argument("--json", action="store_true", help="the verdict as JSON on stdout")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML to FILE")
    parser.add_argument("--profile", choices=("quick", "thorough"), default="quick")
    parser.add_argument(
        "--only", action="append", metavar="ID", help="an attack, or A4 for all of A4; repeatable"
    )
    return parser


def _report(verdict: Verdict, *, as_json: bool, junit: Path | None) -> None:
    if junit is not None:
        junit.write_text(verdict.to_junit(), encoding="utf-8")
    print(verdict.to_json() if as_json else verdict.to_text())
    for outcome in verdict.failures:
        print(f"\n# --- {outcome.id}: save and run ---\n{outcome.script}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the attacks and the mask statistics. Returns the exit code."""
    given = _parser().parse_args(arguments)
    sys.path.insert(0, "")  # an adapter beside the caller, as for ``python -c``
    try:
        verdict = run_attacks(
            load_adapter(given.adapter),
            only=given.only,
            thorough=given.profile == "thorough",
            attacks=(*ATTACKS, *UNIFORMITY),
        )
        _report(verdict, as_json=given.json, junit=given.junit)
    except (ConfigurationError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    finally:
        sys.path.remove("")
    return 0 if verdict.ok else 1


if __name__ == "__main__":
    sys.exit(main())
