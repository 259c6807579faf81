"""``privfedrl statement``: the guarantee of a run, or a refusal.

Guarantee: nothing is printed on standard output where a field is unknown, two fields contradict
each other, or a signature that is present, or was asked for, does not verify.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from privfedrl.cli.keys import seconds_of
from privfedrl.cli.output import FINDING, console, reported_errors
from privfedrl.errors import AuthenticationFailed, ConfigurationError, StorageError
from privfedrl.federation.run_directory import RunDirectory
from privfedrl.parties.identity import Registry, RegistryEntry
from privfedrl.privacy import Statement

__all__ = ["statement"]

_DAY = 24 * 60 * 60


def statement(
    directory: Annotated[Path, typer.Argument(help="run directory")],
    registry: Annotated[
        Path | None,
        typer.Option("--registry", help="registry whose coordinator must have signed it"),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="Ed25519 public key that must have signed it, hex")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--at", help="ISO 8601 date or time, UTC, at which it is read; default now"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output")] = False,
) -> None:
    """Print the 18-field guarantee of a run; refuses epsilon if any field is unknown.

    A signature is verified against --key, --registry or the directory's own registry. Exit 1 also
    where the statement is printed but has expired.
    """
    with reported_errors(as_json=as_json):
        day = _day(at)
        found = _read(RunDirectory(directory).statement)
        rendered = found.render(on=day)
        verdict = _signature(found, RunDirectory(directory).registry, registry, key)
        lapse = found.lapse(day)
    typer.echo(found.to_json() if as_json else rendered, nl=False)
    for line in (verdict, lapse):
        if line is not None:
            console.print(line, markup=False, soft_wrap=True)
    if lapse is not None:
        raise typer.Exit(FINDING)


def _read(path: Path) -> Statement:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{str(path)!r} cannot be read: {error}") from error
    return Statement.from_json(text)


def _day(at: str | None) -> date:
    when = datetime.now(UTC) if at is None else datetime.fromtimestamp(seconds_of(at), UTC)
    return when.date()


def _signature(found: Statement, own: Path, registry: Path | None, key: str | None) -> str:
    """Who signed, in one line.

    Raises:
        AuthenticationFailed: a signature is wrong, or one was asked for and there is none.
        ConfigurationError, StorageError: the key or the registry is none.
    """
    if key is not None and registry is not None:
        raise ConfigurationError("give --key or --registry, not both")
    if key is not None:
        _verify(found, _key(key), "the key given")
        return f"signature: verified under the key {key.lower()}"
    if registry is not None:
        return f"signature: {_by_coordinator(found, Registry.load(registry))}"
    if not found.signed:
        return "signature: none; anybody could have written this statement"
    if not own.exists():
        return "signature: NOT VERIFIED, no registry beside it; give --registry or --key"
    return (
        f"signature: {_by_coordinator(found, Registry.load(own))}, in the registry of the same "
        "directory (who could write the one could write the other: prefer --registry or --key)"
    )


def _by_coordinator(found: Statement, registry: Registry) -> str:
    (entry,) = (one for one in registry.entries if one.name == registry.coordinator)
    _verify(found, entry, f"the coordinator {entry.name!r}")
    start = int(
        datetime.combine(date.fromisoformat(found.identity.date), time.min, tzinfo=UTC).timestamp()
    )
    if not (entry.not_before < start + _DAY and start <= entry.not_after):
        raise AuthenticationFailed(
            f"statement: the key of the coordinator {entry.name!r} was not valid on "
            f"{found.identity.date}"
        )
    return f"verified, by the coordinator {entry.name!r}, key {entry.verify_key.hex()}"


def _verify(found: Statement, entry: RegistryEntry, whose: str) -> None:
    if not found.signed:
        raise AuthenticationFailed(f"statement: it is not signed, and not by {whose}")
    try:
        found.verify(Ed25519PublicKey.from_public_bytes(entry.verify_key).verify)
    except AuthenticationFailed as error:
        raise AuthenticationFailed(
            f"statement: the signature is not that of {whose} over these fields"
        ) from error


def _key(text: str) -> RegistryEntry:
    """The key as an entry, which refuses keys under which a signature would mean nothing."""
    try:
        raw = bytes.fromhex(text)
    except ValueError as error:
        raise ConfigurationError(f"key must be 64 hex digits, got {text!r}") from error
    try:
        return RegistryEntry(name="key", verify_key=raw, role="coordinator")
    except ConfigurationError as error:
        raise ConfigurationError(f"key must be an Ed25519 public key: {error}") from error
