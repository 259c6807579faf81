"""``privfedrl plan check|new``: what a plan promises, and where to start."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from privfedrl.cli.output import BAD_INPUT, console, emit, reported_errors
from privfedrl.cli.protection import Protection, protected_by
from privfedrl.errors import ConfigurationError, StorageError
from privfedrl.federation.tradeoff import tradeoff
from privfedrl.federation.tradeoff_picture import write_picture
from privfedrl.plan import Plan

__all__ = ["app", "template_names"]

app = typer.Typer(help="Check a plan, or start one from a template.", no_args_is_help=True)


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="plan file (TOML)")],
    protection: Protection = None,
    full: Annotated[
        bool, typer.Option("--tradeoff", help="noise under other epsilons, fleets and rounds")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="draw epsilon against noise into this PNG file")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output")] = False,
) -> None:
    """Print what PLAN promises and costs, or everything that is wrong with it."""
    try:
        with reported_errors(as_json=False):
            plan = protected_by(Plan.from_toml(path), protection)
            promised = plan.check()
            around = tradeoff(plan) if full else None
            short = "" if full or as_json else tradeoff(plan).summary()
            if plot is not None:
                write_picture(plan, plot)
    except typer.Exit as stop:
        if as_json:
            cause = stop.__cause__
            known = cause.problems if isinstance(cause, ConfigurationError) else (str(cause),)
            emit({"ok": False, "problems": list(known)})
        raise
    if as_json:
        asked = {} if around is None else {"tradeoff": around.to_dict()}
        emit({"ok": True, **promised.to_dict(), **asked})
    else:
        typer.echo(f"{promised}\n{around or short}")


@app.command()
def new(
    template: Annotated[str, typer.Argument(help="template name, see the error for a list")],
    out: Annotated[Path | None, typer.Option("--out", help="write here instead of stdout")] = None,
) -> None:
    """Print a commented plan to start from."""
    names = template_names()
    if template not in names:
        console.print(f"template must be one of {', '.join(names)}, got {template!r}", markup=False)
        raise typer.Exit(BAD_INPUT)
    text = _templates().joinpath(f"{template}.toml").read_text(encoding="utf-8")
    if out is None:
        typer.echo(text, nl=False)
        return
    with reported_errors(as_json=False):
        _write_new(out, text)


def _write_new(out: Path, text: str) -> None:
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise StorageError(f"--out {str(out)!r} exists already; nothing was written") from error
    except OSError as error:
        raise StorageError(f"--out {str(out)!r} cannot be written: {error.strerror}") from error


def template_names() -> list[str]:
    """Names that ``plan new`` takes."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in _templates().iterdir()
        if entry.name.endswith(".toml")
    )


def _templates() -> resources.abc.Traversable:
    return resources.files("privfedrl").joinpath("plans")
