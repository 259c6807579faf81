"""``privfedrl train``: run a plan in one process, with a progress bar and a report at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBar
from rich.table import Table

from privfedrl.cli.output import console, emit, reported_errors
from privfedrl.cli.protection import Protection, protected_by
from privfedrl.errors import MissingExtraError
from privfedrl.plan import Plan

if TYPE_CHECKING:
    from privfedrl.federation.simulate import Progress, Run

__all__ = ["train"]


def train(
    plan: Annotated[Path, typer.Argument(help="plan file (TOML)")],
    out: Annotated[Path, typer.Option("--out", help="run directory")],
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="environments and policy only; never noise or keys"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on after the last round")] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", help="processes for slow environments")
    ] = None,
    rollout_timeout: Annotated[
        float | None,
        typer.Option("--rollout-timeout", help="seconds for one agent's batch in such a process"),
    ] = None,
    protection: Protection = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output")] = False,
) -> None:
    """Train the fleet of PLAN and leave policy, ledger, statement and report in --out."""
    with reported_errors(as_json=as_json):
        wanted = protected_by(Plan.from_toml(plan), protection)
        run, report = _run(wanted, out, seed, resume, workers, rollout_timeout)
    if as_json:
        emit(msgspec.to_builtins(run.summary))
    else:
        console.print(_table(run))
    console.print(f"report: {report}", markup=False, soft_wrap=True)


def _run(
    plan: Plan,
    out: Path,
    seed: int | None,
    resume: bool,
    workers: int | None,
    rollout_timeout: float | None,
) -> tuple[Run, Path]:
    try:  # here, so that checking a plan or a ledger needs no torch
        from privfedrl.federation.report import require_matplotlib, write_report
        from privfedrl.federation.simulate import Runtime, simulate
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "a dependency", extra="rl") from error
    require_matplotlib()
    with _progress(plan) as show:
        run = simulate(
            plan,
            out=out,
            seed=seed,
            resume=resume,
            progress=show,
            runtime=Runtime(workers=workers, rollout_timeout_s=rollout_timeout),
        )
    return run, write_report(run.path)


@contextlib.contextmanager
def _progress(plan: Plan) -> Iterator[Callable[[Progress], None]]:
    columns = (
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
    )
    with ProgressBar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=plan.federation.rounds)

        def show(now: Progress) -> None:
            released = "" if now.released_return is None else f"released {now.released_return:.0f} "
            greedy = "" if now.greedy_return is None else f", greedy {now.greedy_return:.0f}"
            bar.update(
                task,
                completed=now.round,
                description=(
                    f"{released}(oracle: return {now.mean_return:.0f}{greedy})  "
                    f"epsilon {now.epsilon:.3f}  dropouts {now.dropouts}"
                ),
            )

        yield show


def _table(run: Run) -> Table:
    summary = run.summary
    epsilon = "no promise" if summary.epsilon is None else f"{summary.epsilon:.4f}"
    rows = {
        "unit of privacy": summary.unit,
        "adversary": summary.adversary,
        "epsilon spent": f"{epsilon} at delta {summary.delta:g}",
        "protection": summary.protection,
        "agents, rounds": f"{summary.agents}, {summary.rounds}",
        "episodes per agent": f"{summary.episodes_per_agent:,}",
        "upload per agent and round": f"{summary.bytes_up_per_agent_round:,} bytes",
        "wall time": f"{summary.wall_s:.1f} s for {summary.env_steps:,} environment steps",
        "oracle: mean training return": (
            f"{summary.mean_return_first:.1f} -> {summary.mean_return_last:.1f}"
        ),
        "oracle: greedy return": f"{summary.greedy_return:.1f} (nominal environment)",
        "ledger head": summary.ledger_head[:32] + "…",
    }
    table = Table(title=run.plan.name, show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table
