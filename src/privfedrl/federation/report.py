"""``report.html`` and its pictures: what a run released, what only a simulation could know, apart.

Guarantee: self-contained (pictures are embedded), and every oracle figure carries the words
*oracle, simulation only*. Needs the extra ``report`` (matplotlib).
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from privfedrl.durable_files import write_atomically
from privfedrl.envs.heterogeneity import Heterogeneity
from privfedrl.errors import ConfigurationError, MissingExtraError, PrivacyError, StorageError
from privfedrl.federation.run_directory import HETEROGENEITY, METRICS, ORACLE, RunDirectory
from privfedrl.federation.summary import RunSummary
from privfedrl.plan import Plan
from privfedrl.privacy import Statement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["require_matplotlib", "write_report"]

Rows = Sequence[Mapping[str, Any]]
ORACLE_LABEL = "oracle, simulation only"
_BLUE, _ORANGE, _GREEN, _GREY = "#1f5fa8", "#d1701f", "#2d7d46", "#8a8f98"
_STAGES = {
    "rollout": _BLUE,
    "training and encoding": _GREEN,
    "secure aggregation": _ORANGE,
    "oracle evaluation": _GREY,
}


def write_report(path: str | Path) -> Path:
    """Draw the pictures and the page of a complete run; returns the page's path.

    Raises:
        MissingExtraError: matplotlib is not installed.
        StorageError: the directory holds no complete run.
    """
    require_matplotlib()
    directory = RunDirectory(Path(path))
    plan = directory.plan()
    released, oracle = directory.rows(METRICS), directory.rows(ORACLE)
    try:
        statement = Statement.from_json(directory.statement.read_text(encoding="utf-8"))
        summary = msgspec.json.decode(
            (directory.path / "summary.json").read_bytes(), type=RunSummary
        )
    except (OSError, msgspec.MsgspecError) as error:
        raise StorageError(f"{str(path)!r} holds no complete run: {error}") from error
    pictures = {
        "return.png": lambda axes: _draw_return(axes, plan, released, oracle),
        "epsilon.png": lambda axes: _draw_epsilon(axes, plan, released),
        "time.png": lambda axes: _draw_time(axes, oracle),
        "bytes.png": lambda axes: _draw_bytes(axes, released),
    }
    images = {name: _picture(draw) for name, draw in pictures.items()}
    for name, data in images.items():
        write_atomically(directory.path / name, data)
    page = _page(plan, summary, statement, images, _heterogeneity(directory))
    write_atomically(directory.report, page.encode())
    return directory.report


def require_matplotlib() -> None:
    """Raise MissingExtraError now rather than after an hour of training."""
    try:
        import matplotlib.figure  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise MissingExtraError("matplotlib", extra="report") from error


def _picture(draw: Callable[[Axes], None]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e8eb")
    axes.set_axisbelow(True)
    draw(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_return(axes: Axes, plan: Plan, released: Rows, oracle: Rows) -> None:
    known = [row for row in oracle if row["mean_return"] is not None]
    episodes = [row["episodes_per_agent"] for row in known]
    spread = [list(row["agent_returns"].values()) for row in known]
    axes.fill_between(
        episodes,
        [min(values) for values in spread],
        [max(values) for values in spread],
        color=_BLUE,
        alpha=0.15,
        linewidth=0,
        label=f"training return, worst to best agent ({ORACLE_LABEL})",
    )
    axes.plot(
        episodes,
        [row["mean_return"] for row in known],
        color=_BLUE,
        label=f"training return, fleet mean ({ORACLE_LABEL})",
    )
    greedy = [row for row in oracle if row["greedy_return"] is not None]
    axes.plot(
        [row["episodes_per_agent"] for row in greedy],
        [row["greedy_return"] for row in greedy],
        color=_GREEN,
        linestyle="--",
        label=f"greedy return, nominal environment ({ORACLE_LABEL})",
    )
    if plan.privacy.mean_return is not None:
        _draw_released(axes, plan, released)
    axes.set_xlabel("episodes per agent")
    axes.set_ylabel("return")
    axes.legend(fontsize=7, frameon=False, loc="lower right")


def _draw_released(axes: Axes, plan: Plan, released: Rows) -> None:
    axes.errorbar(
        [plan.episodes_per_agent(row["round"] + 1) for row in released],
        [row["released_mean_return"] for row in released],
        yerr=[row["released_mean_return_std"] for row in released],
        color=_ORANGE,
        fmt=".",
        markersize=4,
        elinewidth=0.7,
        label="mean return as released: noised, clipped, charged (+- 1 std of the noise)",
    )


def _draw_epsilon(axes: Axes, plan: Plan, released: Rows) -> None:
    known = [row for row in released if row["epsilon"] is not None]
    if not known:
        axes.text(0.5, 0.5, "no noise: nothing is promised", ha="center", transform=axes.transAxes)
        return
    axes.step(
        [row["round"] + 1 for row in known],
        [row["epsilon"] for row in known],
        where="post",
        color=_BLUE,
        label=f"spent by one {plan.privacy.unit}, delta {plan.privacy.delta:g}",
    )
    axes.axhline(plan.privacy.epsilon, color=_ORANGE, linestyle="--", label="budget of the plan")
    axes.set_ylim(0, 1.15 * plan.privacy.epsilon)
    axes.set_xlabel("round")
    axes.set_ylabel("epsilon")
    axes.set_xlim(0, None)
    axes.legend(fontsize=8, frameon=False, loc="lower right")


def _draw_time(axes: Axes, oracle: Rows) -> None:
    rounds = [row["round"] + 1 for row in oracle]
    series = [[row["stage_s"].get(stage, 0.0) for row in oracle] for stage in _STAGES]
    axes.stackplot(
        rounds, *series, labels=list(_STAGES), colors=list(_STAGES.values()), linewidth=0
    )
    axes.set_xlabel("round")
    axes.set_ylabel("seconds, whole fleet in one process")
    axes.set_ylim(top=1.2 * max(sum(row["stage_s"].values()) for row in oracle))
    axes.legend(fontsize=8, frameon=False, loc="upper center", ncols=4)


def _draw_bytes(axes: Axes, released: Rows) -> None:
    rounds = [row["round"] + 1 for row in released]
    for key, label, color in (
        ("bytes_up_max", "sent by an agent", _BLUE),
        ("bytes_down_max", "received by an agent", _ORANGE),
    ):
        axes.plot(rounds, [row[key] / 1000 for row in released], label=label, color=color)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("round")
    axes.set_ylabel("kilobytes in a round (largest agent)")
    axes.legend(fontsize=8, frameon=False)


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1d2430;max-width:56rem;margin:2.5rem auto;
padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2.2rem}
table{border-collapse:collapse}td{padding:.2rem 1rem .2rem 0;vertical-align:top}
td:first-child{color:#5a6372}img{max-width:100%;height:auto}
pre{background:#f5f6f8;padding:1rem;overflow-x:auto;font-size:12px;line-height:1.45}
.stamp{background:#b3261e;color:#fff;padding:.6rem 1rem;font-weight:600}
.note{color:#5a6372}
"""


def _heterogeneity(directory: RunDirectory) -> str:
    """The table of a simulation; empty where nothing was measured."""
    path = directory.path / HETEROGENEITY
    if not path.exists():
        return ""
    try:
        return str(Heterogeneity.from_json(path.read_bytes()))
    except (OSError, ConfigurationError) as error:
        raise StorageError(f"{str(path)!r} is damaged: {error}") from error


def _page(
    plan: Plan,
    summary: RunSummary,
    statement: Statement,
    images: Mapping[str, bytes],
    heterogeneity: str,
) -> str:
    different = ""
    if heterogeneity:
        different = f"""<h2>Heterogeneity</h2>
<p class="note">How far environments are from the nominal one at level {plan.fleet.level:g}
({ORACLE_LABEL}): next states and rewards from common states and actions, where they can be set, and
returns of a random policy.</p>
<pre>{html.escape(heterogeneity)}</pre>"""
    stamps = "".join(f'<p class="stamp">{html.escape(stamp)}</p>' for stamp in statement.stamps)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(plan.name)}: run report</title><style>{_STYLE}</style>
<h1>{html.escape(plan.name)}</h1>
<p class="note">plan {summary.plan_digest[:16]}… · ledger head {summary.ledger_head[:16]}…</p>
{stamps}
{_table(plan, summary)}
<h2>Return</h2>
<p class="note">Lines and band are {ORACLE_LABEL}: they need the agents' private returns. Dots are
what the plan releases, if it releases the mean return.</p>
{_image("return against episodes per agent", images["return.png"])}
<h2>Epsilon</h2>
{_image("epsilon against rounds", images["epsilon.png"])}
<h2>Time by stage</h2>
{_image("seconds per round by stage", images["time.png"])}
<h2>Traffic</h2>
{_image("bytes per round", images["bytes.png"])}
{different}
<h2>Guarantee statement</h2>
<pre>{html.escape(_rendered(statement))}</pre>
</html>
"""


def _rendered(statement: Statement) -> str:
    try:
        return statement.render()
    except PrivacyError as error:
        return f"refused: {error}"


def _table(plan: Plan, summary: RunSummary) -> str:
    epsilon = "no promise" if summary.epsilon is None else f"{summary.epsilon:.4f}"
    rows = {
        "unit of privacy": summary.unit,
        "epsilon spent": f"{epsilon} at delta {summary.delta:g}, against {summary.adversary}",
        "protection": f"{summary.protection}, threshold {plan.threshold} of {summary.agents}",
        "experience": f"{summary.rounds} rounds, {summary.episodes_per_agent:,} episodes per agent",
        "upload": f"{summary.bytes_up_per_agent_round:,} bytes per agent and round",
        "wall time": f"{summary.wall_s:.1f} s, {summary.env_steps:,} environment steps",
        f"mean training return ({ORACLE_LABEL})": (
            f"{summary.mean_return_first:.1f} → {summary.mean_return_last:.1f}"
        ),
        f"greedy return ({ORACLE_LABEL})": f"{summary.greedy_return:.1f}",
    }
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table>{cells}</table>"


def _image(alt: str, data: bytes) -> str:
    encoded = base64.b64encode(data).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{encoded}">'
