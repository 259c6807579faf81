"""``privfedrl keys new|show``: signing keys, made on the machine that uses them.

Guarantee: no secret byte is printed, and no file that exists is replaced.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from privfedrl.cli.output import console, emit, reported_errors
from privfedrl.durable_files import write_atomically
from privfedrl.errors import ConfigurationError, StorageError
from privfedrl.parties.identity import LAST_SECOND, Identity, RegistryEntry

__all__ = ["PUBLIC_SUFFIX", "RoleName", "app", "claim_new_file", "seconds_of"]

app = typer.Typer(help="Make or show a signing key.", no_args_is_help=True)

PUBLIC_SUFFIX = ".pub.json"


class RoleName(StrEnum):
    """The roles of a registry, as the command line takes them."""

    AGENT = "agent"
    COORDINATOR = "coordinator"
    KEY_AUTHORITY = "key-authority"
    AUDITOR = "auditor"


Role = Annotated[RoleName, typer.Option("--role", help="role in the registry")]
NotBefore = Annotated[
    str | None, typer.Option("--not-before", help="ISO 8601 date or time, UTC; from this on")
]
NotAfter = Annotated[
    str | None, typer.Option("--not-after", help="ISO 8601 date or time, UTC; up to and with this")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output")]


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="the participant's name in the registry")],
    out: Annotated[
        Path | None, typer.Option("--out", help="secret key file; default NAME.key")
    ] = None,
    role: Role = RoleName.AGENT,
    not_before: NotBefore = None,
    not_after: NotAfter = None,
    as_json: AsJson = False,
) -> None:
    """Draw a key; write it (mode 0600) and, beside it, the public entry to hand on."""
    with reported_errors(as_json=as_json):
        identity = Identity.generate(name)
        entry = _entry(identity, role, not_before, not_after)
        secret = Path(f"{name}.key") if out is None else out
        public = _public_path(secret)
        with claim_new_file(public), claim_new_file(secret):
            identity.save(secret)
            write_atomically(public, entry.to_json().encode())
    _print(entry, {"key": str(secret), "public": str(public)}, as_json=as_json)


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="secret key file")],
    public: Annotated[
        bool, typer.Option("--public", help="print the public entry as one line of JSON")
    ] = False,
    role: Role = RoleName.AGENT,
    not_before: NotBefore = None,
    not_after: NotAfter = None,
    as_json: AsJson = False,
) -> None:
    """Show whose key FILE holds; --public gives its entry anew, also with another validity."""
    with reported_errors(as_json=as_json or public):
        identity = Identity.load(path)
        entry = _entry(identity, role, not_before, not_after)
    if public:
        typer.echo(entry.to_json(), nl=False)
    elif as_json:
        emit({"name": identity.name, "verify_key": identity.verify_key.hex()})
    else:
        console.print(f"{identity.name}  {identity.verify_key.hex()}", markup=False, soft_wrap=True)


def seconds_of(text: str, *, end_of_day: bool = False) -> int:
    """Seconds since 1970 of an ISO 8601 date or time.

    A date alone is its first second in UTC, or its last with ``end_of_day``. A time must say its
    zone (``2027-01-31T12:00:00Z``) and be whole seconds.

    Raises:
        ConfigurationError: anything else, or before 1970.
    """
    try:
        moment = _moment(text, end_of_day)
    except ValueError as error:
        raise ConfigurationError(
            f"expected a date (2027-01-31) or a time with zone (2027-01-31T12:00:00Z), got {text!r}"
        ) from error
    if moment.tzinfo is None or moment.microsecond:
        raise ConfigurationError(f"a time must be whole seconds and name its zone, got {text!r}")
    found = int(moment.timestamp())
    if found < 0:
        raise ConfigurationError(f"a time must not be before 1970, got {text!r}")
    return found


def _moment(text: str, end_of_day: bool) -> datetime:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return datetime.fromisoformat(text)
    midnight = datetime.combine(day, time.min, tzinfo=UTC)
    return midnight + timedelta(days=1, seconds=-1) if end_of_day else midnight


@contextlib.contextmanager
def claim_new_file(path: Path) -> Iterator[None]:
    """Create ``path`` empty and private, to be replaced inside the block; gone if that fails.

    Raises:
        StorageError: it exists already, and is left alone; or it cannot be created.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError as error:
        raise StorageError(f"{str(path)!r} exists already; nothing was written") from error
    except OSError as error:
        raise StorageError(f"{str(path)!r} cannot be written: {error.strerror}") from error
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _public_path(secret: Path) -> Path:
    return secret.with_name(secret.name.removesuffix(".key") + PUBLIC_SUFFIX)


def _entry(
    identity: Identity, role: RoleName, not_before: str | None, not_after: str | None
) -> RegistryEntry:
    return identity.entry(
        role.value,
        not_before=0 if not_before is None else seconds_of(not_before),
        not_after=LAST_SECOND if not_after is None else seconds_of(not_after, end_of_day=True),
    )


def _print(entry: RegistryEntry, files: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        emit(
            {"name": entry.name, "verify_key": entry.verify_key.hex(), "role": entry.role, **files}
        )
        return
    lines = (
        f"{entry.role} {entry.name}  {entry.verify_key.hex()}",
        f"secret {files['key']} (keep it on this machine, and make no copy)",
        f"public {files['public']} (for whoever builds the registry)",
    )
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
