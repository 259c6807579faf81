"""Where output goes, and what an exit code means.

Guarantee: JSON and nothing else on standard output under ``--json``; everything for people on
standard error. Exit 0 ok, 1 a finding or a failed run, 2 bad input.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import typer
from rich.console import Console

from privfedrl.errors import (
    ConfigurationError,
    LedgerIntegrity,
    MissingExtraError,
    PrivfedrlError,
    StorageError,
)

__all__ = ["BAD_INPUT", "FINDING", "console", "emit", "reported_errors"]

FINDING, BAD_INPUT = 1, 2
# errors that the caller can mend by calling differently; the rest are failed runs or findings
_BAD_INPUT = (ConfigurationError, StorageError, MissingExtraError)

console = Console(stderr=True, highlight=False)


def emit(value: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


@contextlib.contextmanager
def reported_errors(*, as_json: bool) -> Iterator[None]:
    """Turn the library's own errors into a message and an exit code; bugs keep their traceback."""
    try:
        yield
    except PrivfedrlError as error:
        code = BAD_INPUT if isinstance(error, _BAD_INPUT) else FINDING
        if as_json:
            emit({"error": type(error).__name__, "message": str(error)})
        prefix = "ledger: " if isinstance(error, LedgerIntegrity) else ""
        console.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        console.print(f"{prefix}{error}", markup=False)
        raise typer.Exit(code) from error
