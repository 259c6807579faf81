"""``privfedrl registry build|show``: who may take part, put together from public entries."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from privfedrl.cli.keys import claim_new_file, seconds_of
from privfedrl.cli.output import console, emit, reported_errors
from privfedrl.errors import ConfigurationError, StorageError
from privfedrl.parties.identity import LAST_SECOND, Registry, RegistryEntry

__all__ = ["app"]

app = typer.Typer(help="Build or show a registry.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output")]


@app.command()
def build(
    entries: Annotated[
        list[Path], typer.Argument(help="public entries, as `keys new` writes them")
    ],
    out: Annotated[Path, typer.Option("--out", help="registry file to write")],
    as_json: AsJson = False,
) -> None:
    """Join the public entries of all agents, one coordinator and any other role into a registry."""
    with reported_errors(as_json=as_json):
        registry = Registry([_read_entry(path) for path in entries])
        with claim_new_file(out):
            registry.save(out)
    if as_json:
        found = {"digest": registry.digest.hex(), "agents": len(registry.agents)}
        emit({**found, **_others(registry), "file": str(out)})
        return
    named = [f", {role.replace('_', ' ')} {name}" for role, name in _others(registry).items()]
    text = f"{out}: {len(registry.agents)} agents{''.join(named)}"
    console.print(text, markup=False, soft_wrap=True)
    console.print(f"digest {registry.digest.hex()}", soft_wrap=True)


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="registry file")],
    at: Annotated[
        str | None, typer.Option("--at", help="ISO 8601 date or time, UTC; default now")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List everybody, and who may take part in a round opened at the given time."""
    with reported_errors(as_json=as_json):
        when = int(datetime.now(UTC).timestamp()) if at is None else seconds_of(at)
        registry = Registry.load(path)
    rows = [_row(registry, entry, when) for entry in registry.entries]
    if as_json:
        emit({"digest": registry.digest.hex(), "at": _date(when), "entries": rows})
        return
    valid = sum(row["valid"] for row in rows)
    table = Table(title=f"{valid} of {len(rows)} valid at {_date(when)}")
    for column in ("name", "role", "valid", "from", "to"):
        table.add_column(column)
    for row in rows:
        span = row["not_before"] or "always", row["not_after"] or "no end"
        table.add_row(row["name"], row["role"], "yes" if row["valid"] else "no", *span)
    console.print(table)
    console.print(f"digest {registry.digest.hex()}", soft_wrap=True)


def _read_entry(path: Path) -> RegistryEntry:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {str(path)!r}: {error.strerror}") from error
    try:
        return RegistryEntry.from_json(data)
    except ConfigurationError as error:
        raise ConfigurationError(f"{str(path)!r}: {error}") from error


def _others(registry: Registry) -> dict[str, str]:
    """Who holds the roles of which there is at most one; a role that nobody holds is left out."""
    holders = {
        "coordinator": registry.coordinator,
        "key_authority": registry.key_authority,
        "auditor": registry.auditor,
    }
    return {role: name for role, name in holders.items() if name is not None}


def _row(registry: Registry, entry: RegistryEntry, when: int) -> dict[str, Any]:
    return {
        "name": entry.name,
        "role": entry.role,
        "verify_key": entry.verify_key.hex(),
        "not_before": None if entry.not_before == 0 else _date(entry.not_before),
        "not_after": None if entry.not_after == LAST_SECOND else _date(entry.not_after),
        "valid": registry.valid_at(entry.name, when),
    }


def _date(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):  # beyond the year 9999
        return f"{seconds} s after 1970"
