"""``privfedrl``: one command per thing a user does, each in a module beside this one."""

from __future__ import annotations

import typer

from privfedrl.cli import audit, keys, ledger, plan, play, registry, statement, train, version

__all__ = ["app", "run"]

app = typer.Typer(
    name="privfedrl",
    help="Federated reinforcement learning with secure aggregation and a privacy ledger.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("train")(train.train)
app.command("play")(play.play)
app.add_typer(plan.app, name="plan")
app.add_typer(ledger.app, name="ledger")
app.add_typer(keys.app, name="keys")
app.add_typer(registry.app, name="registry")
app.add_typer(audit.app, name="audit")
app.command("statement")(statement.statement)
app.command("version")(version.version)


def run() -> None:
    """Entry point of the console script."""
    app()
