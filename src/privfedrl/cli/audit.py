"""``privfedrl audit list|run``: refute a claim with public records and your own registry.

Guarantee: reads only, needs no secret and no torch. Exit 0 verified, 1 a finding, 2 bad input;
whatever the records hold, also arbitrary bytes, is a finding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from rich.table import Table
from rich.text import Text

from privfedrl.audit import CLAIMS, TranscriptReport, verify_transcripts
from privfedrl.cli.output import FINDING, console, emit, reported_errors
from privfedrl.errors import ConfigurationError, StorageError
from privfedrl.federation.run_directory import RunDirectory
from privfedrl.parties import Registry

__all__ = ["app"]

app = typer.Typer(help="Try to refute a claim from public records.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output")]
# a record of the largest cohort that the protocol knows is smaller; a file beyond it is not read on
_MAX_BYTES: Final = 2**28


@app.command("list")
def list_claims(as_json: AsJson = False) -> None:
    """What can be audited, what a pass shows and what it does not."""
    if as_json:
        emit(
            [
                {"name": one.name, "shows": one.shows, "needs": one.needs, "limits": one.limits}
                for one in CLAIMS.values()
            ]
        )
        return
    for one in CLAIMS.values():
        typer.echo(one.name)
        for what in ("shows", "needs", "limits"):
            typer.echo(f"  {what:<6}  {getattr(one, what)}")


@app.command()
def run(
    claim: Annotated[str, typer.Argument(help="a name from `audit list`")],
    paths: Annotated[
        list[Path],
        typer.Argument(help="a run directory, a directory of *.bin records, or records in order"),
    ],
    registry: Annotated[
        Path | None,
        typer.Option("--registry", help="your copy; default: that of the run directory"),
    ] = None,
    previous: Annotated[
        str | None, typer.Option("--previous", help="digest of the record before the first, hex")
    ] = None,
    anchor: Annotated[
        str | None, typer.Option("--anchor", help="digest of a record that must be there, hex")
    ] = None,
    sums: Annotated[
        Path | None, typer.Option("--sums", help="directory of ROUND.npy with opened sums")
    ] = None,
    allow_ideal: Annotated[
        bool, typer.Option("--allow-ideal", help="let rounds without cryptographic protection pass")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check the records against the claim."""
    with reported_errors(as_json=as_json):
        if claim not in CLAIMS:
            raise ConfigurationError(f"claim must be one of {', '.join(CLAIMS)}, got {claim!r}")
        pinned, own = _registry(registry, paths)
        files = [file for path in paths for file in _records(path)]
        report = verify_transcripts(
            [_bytes(file) for file in files],
            pinned,
            names=[file.name for file in files],
            previous=_digest("--previous", previous),
            anchor=_digest("--anchor", anchor),
            sums=None if sums is None else _sums(sums),
            allow_ideal=allow_ideal,
        )
    if as_json:
        emit(report.to_dict() | {"registry_is_own": own})
    else:
        _print(report, own=own)
    if not report.ok:
        raise typer.Exit(FINDING)


def _registry(given: Path | None, paths: list[Path]) -> tuple[Registry, bool]:
    """The pinned registry, and whether it is the auditor's own copy."""
    if given is not None:
        return Registry.load(given), True
    beside = RunDirectory(paths[0]).registry
    if len(paths) != 1 or not beside.is_file():
        raise ConfigurationError("--registry must be given unless PATHS is one run directory")
    return Registry.load(beside), False


def _records(path: Path) -> list[Path]:
    """The record files that ``path`` stands for, in order."""
    if not path.is_dir():
        return [path]
    folder = path / "transcript" if (path / "transcript").is_dir() else path
    found = sorted(file for file in folder.glob("*.bin") if not file.name.startswith("."))
    if not found:
        raise StorageError(f"{str(folder)!r} holds no transcript (*.bin)")
    return found


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES)
    except OSError as error:
        raise StorageError(f"cannot read {str(path)!r}: {error.strerror}") from error


def _digest(option: str, text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != 32:
        raise ConfigurationError(f"{option} must be 64 hexadecimal digits")
    return found


def _sums(folder: Path) -> dict[int, Any]:
    found = {}
    for path in sorted(folder.glob("*.npy")):
        try:
            total = np.load(path, allow_pickle=False)
            found[int(path.stem)] = total
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"--sums: {path.name} is not ROUND.npy: {error}") from error
        if total.dtype not in (np.uint32, np.uint64) or total.ndim != 1:
            raise ConfigurationError(f"--sums: {path.name} must be uint32 or uint64 [D]")
    if not found:
        raise ConfigurationError(f"--sums: {str(folder)!r} holds no ROUND.npy")
    return found


def _print(report: TranscriptReport, *, own: bool) -> None:
    table = Table(title="secagg-transcript")
    for column in ("record", "round", "attempt", "survivors", "protection", "verdict"):
        table.add_column(column)
    for one in report.rounds:
        survivors = "" if one.survivors is None else f"{len(one.survivors)} of {report.num_agents}"
        verdict = "; ".join(one.problems) or ("ok, sum" if one.sum_checked else "ok")
        cells = (one.name, _or_dash(one.round), _or_dash(one.attempt), survivors)
        # Text: a file name or a message is not markup, and control characters are dropped
        table.add_row(*(Text(cell) for cell in (*cells, one.protection or "-", verdict)))
    console.print(table)
    for problem in report.problems:
        console.print(problem, markup=False)
    source = "" if own else " (from the audited directory itself: compare it with your own)"
    console.print(f"registry {report.registry_digest}{source}", soft_wrap=True)
    console.print(f"head {report.head} (an anchor for later audits)", soft_wrap=True)
    found = "verified" if report.ok else "NOT verified"
    console.print(f"{found}: {len(report.rounds)} records")


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)
