"""Epsilon against the noise in the released mean, one curve per fleet: the trade-off as a picture.

Guarantee: every point of a curve is calibrated as :func:`~privfedrl.federation.tradeoff.point` does
it; where the plan could not be run there is no line. Needs the extra ``report`` (matplotlib).
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

from privfedrl.durable_files import write_atomically
from privfedrl.errors import ConfigurationError, MissingExtraError
from privfedrl.federation.tradeoff import Point, fleets, point
from privfedrl.plan import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["write_picture"]

_OCTAVES = (-3, 4)  # epsilon from 1/8 to 16, further where the plan's own lies outside
_STEPS = 15  # points of a curve
_MOST_TICKS = 9
_SHADES = ("#7fb0de", "#4a86c5", "#1f5fa8", "#0d3361")  # light for few agents, dark for many
_ORANGE, _GREY = "#c25e10", "#5a6372"


def write_picture(plan: Plan, path: Path) -> None:
    """Draw the trade-off of ``plan`` into the PNG file ``path``, replacing what is there.

    Raises:
        ConfigurationError: the plan is infeasible, or the name does not end in ``.png``.
        MissingExtraError: matplotlib is not installed.
        StorageError: the file cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise ConfigurationError(f"the picture's name must end in .png, got {path.name!r}")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", extra="report") from error
    figure = Figure(figsize=(7.2, 4.5), dpi=150, layout="constrained")
    _draw(figure.add_subplot(), plan)
    figure.legend(loc="outside lower center", fontsize=8.5, frameon=False, ncols=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def _draw(axes: Axes, plan: Plan) -> None:
    here = point(plan)
    ticks, grid = _epsilons(here)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e8eb", linewidth=0.8)
    if here.is_plan and here.mean_noise_norm is not None:
        label = f"this plan: epsilon {here.epsilon:g}, noise {here.mean_noise_norm:.3g}"
        axes.plot(
            here.epsilon,
            here.mean_noise_norm,
            marker="o",
            linestyle="none",
            color=_ORANGE,
            markersize=8,
            zorder=3,
            label=label,
        )
    label = "noise as long as the mean of clipped updates can be"
    axes.axhline(1.0, color=_GREY, linewidth=1, linestyle=(0, (4, 3)), label=label)
    for agents, shade in zip(fleets(plan), _SHADES, strict=False):
        _curve(axes, [point(plan, agents=agents, epsilon=e) for e in grid], shade)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    # room for the names of the curves
    axes.set_xlim(ticks[0], grid[-1] * (grid[-1] / grid[0]) ** 0.13)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(f"epsilon of one {_unit(plan, here)}, at delta = {plan.privacy.delta:g}")
    axes.set_ylabel("noise in the released mean / clip norm\n(L2 over all parameters)")
    axes.set_title(f"{plan.name}: privacy against noise, by number of agents", fontsize=10)


def _epsilons(here: Point) -> tuple[list[float], list[float]]:
    """Powers of two for the axis, and the places of a curve's points."""
    own = math.log2(here.epsilon) if here.is_plan else 0.0
    low, high = min(_OCTAVES[0], math.floor(own) - 1), max(_OCTAVES[1], math.ceil(own) + 1)
    ticks = [2.0**octave for octave in range(low, high + 1, -(-(high - low) // _MOST_TICKS))]
    grid = [2.0 ** (low + (high - low) * step / (_STEPS - 1)) for step in range(_STEPS)]
    return ticks, grid


def _curve(axes: Axes, points: list[Point], color: str) -> None:
    """Draw what can be run, named at its end; say so where nothing can."""
    drawn = [(p.epsilon, p.mean_noise_norm) for p in points if p.mean_noise_norm is not None]
    name = f"{points[0].agents} agents"
    if not drawn:
        axes.plot([], [], linestyle="none", label=f"{name}: refused, the table says why")
        return
    axes.plot([x for x, _ in drawn], [y for _, y in drawn], color=color, linewidth=2)
    axes.annotate(name, drawn[-1], (5, -3), textcoords="offset points", fontsize=9, color=color)


def _unit(plan: Plan, here: Point) -> str:
    count = here.releases_per_unit
    return f"{plan.unit.value} over {count} releases" if count and count > 1 else plan.unit.value
