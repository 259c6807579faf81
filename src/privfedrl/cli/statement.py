"""``privfedrl statement``: the guarantee of a run, or a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from privfedrl.cli.output import reported_errors
from privfedrl.errors import StorageError
from privfedrl.federation.run_directory import RunDirectory
from privfedrl.privacy import Statement

__all__ = ["statement"]


def statement(
    directory: Annotated[Path, typer.Argument(help="run directory")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output")] = False,
) -> None:
    """Print the 18-field guarantee of a run; refuses epsilon if any field is unknown."""
    with reported_errors(as_json=as_json):
        path = RunDirectory(directory).statement
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"{str(path)!r} cannot be read: {error}") from error
        found = Statement.from_json(text)
        rendered = found.render()
    typer.echo(text if as_json else rendered)
