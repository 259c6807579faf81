"""The test vectors of `pfrl-sa/1`: ``python -m privfedrl.testing.vectors --out DIR --write``.

Guarantee: every file is a pure function of this code: ``--check`` finds any byte that differs.
See the last section of ``docs/protocol.md`` for what is in the files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from privfedrl.durable_files import write_atomically
from privfedrl.testing.vector_cases import Case, Scene
from privfedrl.testing.vector_derivations import derivations, graphs
from privfedrl.testing.vector_federation import (
    COMPLETE,
    COMPLETE_CLIENT,
    COMPLETE_KEEP,
    SPARSE,
    SPARSE_CLIENT,
    SPARSE_KEEP,
    play,
    round_file,
)
from privfedrl.testing.vector_refusals import client_cases
from privfedrl.testing.vector_server_refusals import coordinator_cases, transcript_cases

__all__ = ["cases", "documents", "files", "main"]

FORMAT: Final = "pfrl-sa/1 vectors, 1"
COMPLETE_FILE: Final = "secagg_round_complete.json"
SPARSE_FILE: Final = "secagg_round_sparse.json"
OWNED: Final = ("secagg_*.json",)


@cache
def _scenes() -> tuple[Scene, Scene]:
    complete, sparse = play(COMPLETE, COMPLETE_KEEP), play(SPARSE, SPARSE_KEEP)
    return (
        Scene(round=complete, name=COMPLETE_CLIENT, file=COMPLETE_FILE),
        Scene(round=sparse, name=SPARSE_CLIENT, file=SPARSE_FILE),
    )


def cases() -> tuple[Case, ...]:
    """Every input that must be refused."""
    complete, sparse = _scenes()
    return (
        *client_cases(complete, sparse),
        *coordinator_cases(complete),
        *transcript_cases(complete, sparse),
    )


def documents() -> dict[str, dict[str, Any]]:
    """The content of every file, by its name."""
    complete, sparse = _scenes()
    found = {
        "secagg_derivations.json": derivations(),
        "secagg_graphs.json": graphs(),
        COMPLETE_FILE: round_file(complete.round, complete.name),
        SPARSE_FILE: round_file(sparse.round, sparse.name),
    }
    for case in cases():
        name = f"secagg_bad_{case.id}.json"
        if name in found:
            raise AssertionError(f"two cases are called {case.id}")
        found[name] = case.document()
    return found


@cache
def files() -> dict[str, bytes]:
    """The bytes of every file, by its name."""
    return {
        name: json.dumps({"format": FORMAT, **document}, indent=1).encode("ascii") + b"\n"
        for name, document in documents().items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or say which ones differ. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="privfedrl.testing.vectors", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the directory of the vectors")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true", help="compare; exit 1 if a file differs")
    mode.add_argument("--write", action="store_true", help="write; remove what is no longer made")
    chosen = parser.parse_args(arguments)
    expected = files()
    present = {path.name for pattern in OWNED for path in chosen.out.glob(pattern)}
    if chosen.write:
        for name, data in expected.items():
            write_atomically(chosen.out / name, data, mode=0o644)
        for name in present - expected.keys():
            (chosen.out / name).unlink()
        return 0
    wrong = sorted(present ^ expected.keys())
    wrong += sorted(
        name
        for name in present & expected.keys()
        if (chosen.out / name).read_bytes() != expected[name]
    )
    for name in wrong:
        print(f"{name} is not what this code makes", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
