"""``privfedrl ledger``: read a privacy ledger, declare its budgets, sign its head.

Only ``budget`` with all four of --unit, --adversary, --epsilon and --delta writes into the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from privfedrl.cli.keys import claim_new_file
from privfedrl.cli.output import console, emit, reported_errors
from privfedrl.durable_files import write_atomically
from privfedrl.errors import AuthenticationFailed, ConfigurationError, StorageError
from privfedrl.parties.identity import Identity, Registry, RegistryEntry
from privfedrl.privacy.ledger import Account, Budget, Ledger, OdometerRow
from privfedrl.privacy.ledger_checkpoint import Checkpoint, ed25519_verifier
from privfedrl.privacy.units import Adjacency, Unit

__all__ = ["app"]

app = typer.Typer(
    help="Read a privacy ledger, declare its budgets, sign its head.", no_args_is_help=True
)


class _UnitName(StrEnum):
    """The units of privacy, as the command line takes them."""

    TRAJECTORY = "trajectory"
    PERSON = "person"
    AGENT = "agent"


class _FilterName(StrEnum):
    """The filters of a budget, as the command line takes them."""

    RDP = "rdp"
    GDP = "gdp"


LedgerPath = Annotated[Path, typer.Argument(help="ledger file (ledger.db)")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output")]
UnitOption = Annotated[_UnitName | None, typer.Option("--unit", help="unit of privacy")]
Adversary = Annotated[
    str | None, typer.Option("--adversary", help="who sees the releases, e.g. coordinator+1")
]


@app.command()
def show(path: LedgerPath, as_json: AsJson = False) -> None:
    """What one unit has lost so far, per unit and adversary."""
    with reported_errors(as_json=as_json), Ledger.open(path, read_only=True) as ledger:
        accounts = ledger.accounts()
        replaced = ledger.accounts(adjacency=Adjacency.REPLACE_ONE)
        head, length = ledger.head, len(ledger)
    rows = [_row(one, other) for one, other in zip(accounts, replaced, strict=True)]
    if as_json:
        emit({"head": head, "entries": length, "accounts": rows})
        return
    table = Table(title=f"{path}  ({length} entries)")
    for column in ("unit", "against", "releases", "unsettled", "epsilon", "replace-one", "delta"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row["unit"],
            row["adversary"],
            str(row["releases"]),
            str(row["unsettled"]),
            _figure(row["epsilon"]),
            _figure(row["epsilon_replace"]),
            f"{row['delta']:g}",
        )
    console.print(table)
    for one in accounts:
        if one.regime == "adaptive":
            about = f"{one.unit.value} against {one.adversary}: {one.plans} plans"
            console.print(f"{about}, so epsilon is the lifetime budget", markup=False)
    console.print(f"head {head}")


@app.command()
def verify(
    path: LedgerPath,
    anchor: Annotated[
        str | None, typer.Option("--anchor", help="an earlier head, kept elsewhere")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="a signed head, with --key or --registry")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="the signer's public key, 64 hex digits")
    ] = None,
    registry: Annotated[
        Path | None, typer.Option("--registry", help="the registry that names the signer")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Re-check every row, hash and budget.

    Truncation, forks and old copies are found only with --anchor or --checkpoint.
    """
    with reported_errors(as_json=as_json):
        signed = _signed_checkpoint(checkpoint, key, registry)
        with Ledger.open(path, read_only=True) as ledger:
            found = ledger.verify(anchor=anchor, checkpoint=signed)
    if as_json:
        emit(
            {
                "ok": True,
                "entries": found.entries,
                "head": found.head,
                "reservations": found.reservations,
                "settled": found.settled,
                "anchored": anchor is not None or signed is not None,
                "checkpoint": None if signed is None else signed.name,
            }
        )
        return
    lines = [
        f"ok: {found.entries} entries, {found.settled} of {found.reservations} reservations settled"
    ]
    if signed is not None:
        lines.append(f"checkpoint of {signed.name}: its {signed.entries} entries are unchanged")
    for line in (*lines, f"head {found.head}"):
        console.print(line, markup=False, soft_wrap=True)


@app.command()
def export(path: LedgerPath, as_json: AsJson = True) -> None:
    """All entries as JSON on standard output, with or without --json."""
    with reported_errors(as_json=as_json), Ledger.open(path, read_only=True) as ledger:
        entries = ledger.export()
    emit(entries)


@app.command()
def budget(
    path: LedgerPath,
    unit: UnitOption = None,
    adversary: Adversary = None,
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", help="the most that one unit may lose")
    ] = None,
    delta: Annotated[float | None, typer.Option("--delta", help="the delta of each check")] = None,
    kind: Annotated[
        _FilterName, typer.Option("--filter", help="what several plans must pass")
    ] = _FilterName.RDP,
    as_json: AsJson = False,
) -> None:
    """List the lifetime budgets; with all four options, declare one (creates the ledger).

    A budget must be declared before the first charge of its account, and never changes.
    """
    with reported_errors(as_json=as_json):
        match unit, adversary, epsilon, delta:
            case None, None, None, None:
                pass
            case _UnitName() as whose, str() as whom, float() as most, float() as at:
                # a bad figure must not leave a new ledger behind
                Budget.declare(Unit(whose.value), whom, most, at, kind=kind.value)
                with Ledger.open(path) as ledger:
                    ledger.declare_budget(Unit(whose.value), whom, most, at, kind=kind.value)
            case _:
                raise ConfigurationError(
                    "a budget needs all of --unit, --adversary, --epsilon and --delta; without any "
                    "of them the budgets are listed"
                )
        with Ledger.open(path, read_only=True) as ledger:
            rows = [
                _budget_row(one, one.budget) for one in ledger.accounts() if one.budget is not None
            ]
    if as_json:
        emit({"budgets": rows})
        return
    table = Table(title=str(path))
    for column in ("unit", "against", "epsilon", "delta", "filter", "declared in", "regime"):
        table.add_column(column)
    for row in rows:
        declared = "first charge" if row["declared_in"] is None else f"row {row['declared_in']}"
        order = "" if row["order"] is None else f" at order {row['order']:g}"
        table.add_row(
            row["unit"],
            row["adversary"],
            _figure(row["epsilon"]),
            f"{row['delta']:g}",
            row["filter"] + order,
            declared,
            row["regime"],
        )
    console.print(table)


@app.command()
def odometer(
    path: LedgerPath, unit: UnitOption = None, adversary: Adversary = None, as_json: AsJson = False
) -> None:
    """The running epsilon after each row: for display, no guarantee where several plans charge."""
    with reported_errors(as_json=as_json), Ledger.open(path, read_only=True) as ledger:
        wanted = [
            one
            for one in ledger.accounts()
            if unit in (None, one.unit.value) and adversary in (None, one.adversary)
        ]
        shown = [(one, ledger.odometer(one.unit, one.adversary)) for one in wanted]
    if as_json:
        emit({"accounts": [{**_account(one), "rows": _odometer(rows)} for one, rows in shown]})
        return
    for one, rows in shown:
        table = Table(
            title=f"{one.unit.value} against {one.adversary}, delta {one.running.delta:g}"
        )
        for column in ("entry", "kind", "release", "epsilon"):
            table.add_column(column)
        for row in rows:
            figure = _figure(_finite(row.epsilon))
            table.add_row(str(row.entry), row.kind, row.release_id, figure)
        console.print(table)


@app.command("checkpoint")
def sign_checkpoint(
    path: LedgerPath,
    key: Annotated[Path, typer.Option("--key", help="secret key file of the signer")],
    out: Annotated[
        Path | None, typer.Option("--out", help="file to write; default standard output")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Sign the head of the ledger, for somebody else to keep."""
    with reported_errors(as_json=as_json or out is None):
        identity = Identity.load(key)
        with Ledger.open(path, read_only=True) as ledger:
            ledger.verify()
            made = ledger.checkpoint(identity.name, identity.sign)
        if out is not None:
            with claim_new_file(out):
                write_atomically(out, made.to_json().encode())
    if out is None:
        typer.echo(made.to_json(), nl=False)
    elif as_json:
        emit({"file": str(out), "name": made.name, "entries": made.entries, "head": made.head})
    else:
        console.print(f"{out}: {made.entries} entries", markup=False, soft_wrap=True)
        console.print(f"head {made.head}", soft_wrap=True)


def _signed_checkpoint(
    path: Path | None, key: str | None, registry: Path | None
) -> Checkpoint | None:
    """The checkpoint in ``path`` after its signature was checked; None without one."""
    if path is None:
        if key is not None or registry is not None:
            raise ConfigurationError("--key and --registry are for --checkpoint, which is missing")
        return None
    if (key is None) == (registry is None):
        raise ConfigurationError("--checkpoint needs --key or --registry, and one of them only")
    try:
        checkpoint = Checkpoint.from_json(path.read_bytes())
    except OSError as error:
        raise StorageError(f"cannot read {str(path)!r}: {error.strerror}") from error
    checkpoint.verify(ed25519_verifier(_verify_key(checkpoint, key, registry)))
    return checkpoint


def _verify_key(checkpoint: Checkpoint, key: str | None, registry: Path | None) -> bytes:
    if registry is not None:
        known = Registry.load(registry)
        name, when = checkpoint.name, checkpoint.unix_time
        if name not in known or not known.valid_at(name, when):
            raise AuthenticationFailed(
                f"the registry names no {name!r} whose key was valid when the checkpoint was made"
            )
        return known.verify_key_of(name)
    try:
        raw = bytes.fromhex(key or "")
    except ValueError:
        raw = b""
    # the registry's own test of a key: right length, on the curve, not of small order
    return RegistryEntry(name=checkpoint.name, verify_key=raw, role="auditor").verify_key


def _account(account: Account) -> dict[str, Any]:
    return {
        "unit": account.unit.value,
        "adversary": account.adversary,
        "regime": account.regime,
        "delta": account.running.delta,
    }


def _row(account: Account, replaced: Account) -> dict[str, Any]:
    return {
        **_account(account),
        "plans": account.plans,
        "releases": account.releases,
        "unsettled": account.unsettled,
        "epsilon": _finite(account.spent.epsilon),
        "epsilon_replace": _finite(replaced.spent.epsilon),
        "delta_replace": replaced.spent.delta,
        "delta": account.spent.delta,
        "bound": account.spent.bound,
        "epsilon_running": _finite(account.running.epsilon),
    }


def _budget_row(account: Account, held: Budget) -> dict[str, Any]:
    return {
        **_account(account),
        "epsilon": _finite(held.epsilon),
        "delta": held.delta,
        "filter": held.filter.kind,
        "order": held.filter.order,
        "declared_in": account.declared_in,
    }


def _odometer(rows: Iterable[OdometerRow]) -> list[dict[str, Any]]:
    return [
        {
            "entry": row.entry,
            "kind": row.kind,
            "release_id": row.release_id,
            "epsilon": _finite(row.epsilon),
        }
        for row in rows
    ]


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _figure(epsilon: float | None) -> str:
    return "unbounded" if epsilon is None else f"{epsilon:.4f}"
