"""``privfedrl ledger show|verify|export``: read a privacy ledger; never changes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from privfedrl.cli.output import console, emit, reported_errors
from privfedrl.privacy import Adjacency, Ledger, Unit

__all__ = ["app"]

app = typer.Typer(help="Read a privacy ledger.", no_args_is_help=True)

LedgerPath = Annotated[Path, typer.Argument(help="ledger file (ledger.db)")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output")]


@app.command()
def show(path: LedgerPath, as_json: AsJson = False) -> None:
    """What one unit has lost so far, per unit and adversary."""
    with reported_errors(as_json=as_json), Ledger.open(path, read_only=True) as ledger:
        rows = _accounts(ledger)
        head, length = ledger.head, len(ledger)
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
    console.print(f"head {head}")


@app.command()
def verify(
    path: LedgerPath,
    anchor: Annotated[
        str | None, typer.Option("--anchor", help="an earlier head, kept elsewhere")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Re-check every row and hash; with --anchor also truncation, forks and old copies."""
    with reported_errors(as_json=as_json), Ledger.open(path, read_only=True) as ledger:
        found = ledger.verify(anchor=anchor)
    if as_json:
        emit(
            {
                "ok": True,
                "entries": found.entries,
                "head": found.head,
                "reservations": found.reservations,
                "settled": found.settled,
                "anchored": anchor is not None,
            }
        )
    else:
        console.print(
            f"ok: {found.entries} entries, {found.settled} of {found.reservations} reservations "
            f"settled\nhead {found.head}"
        )


@app.command()
def export(path: LedgerPath) -> None:
    """All entries as JSON on standard output."""
    with reported_errors(as_json=True), Ledger.open(path, read_only=True) as ledger:
        entries = ledger.export()
    emit(entries)


def _accounts(ledger: Ledger) -> list[dict[str, Any]]:
    held = ledger.reservations()
    settled = {entry.reservation for entry in ledger.entries() if entry.reservation is not None}
    rows = []
    for unit, adversary in sorted({(one.charge.unit.value, one.charge.adversary) for one in held}):
        mine = [
            one
            for one in held
            if (one.charge.unit.value, one.charge.adversary) == (unit, adversary)
        ]
        cost = ledger.spent(unit=Unit(unit), adversary=adversary)
        replaced = ledger.spent(
            unit=Unit(unit), adversary=adversary, adjacency=Adjacency.REPLACE_ONE
        )
        rows.append(
            {
                "unit": unit,
                "adversary": adversary,
                "releases": len(mine),
                "unsettled": sum(one.id not in settled for one in mine),
                "epsilon": _finite(cost.epsilon),
                "epsilon_replace": _finite(replaced.epsilon),
                "delta": cost.delta,
                "bound": cost.bound,
            }
        )
    return rows


def _finite(epsilon: float) -> float | None:
    return epsilon if epsilon < float("inf") else None


def _figure(epsilon: float | None) -> str:
    return "unbounded" if epsilon is None else f"{epsilon:.4f}"
