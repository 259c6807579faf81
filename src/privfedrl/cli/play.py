"""``privfedrl play``: how good the policy of a run is, in figures and to look at.

Guarantee: nothing in the run directory is changed, and no ledger is charged: what is printed and
drawn is computed from episodes without noise, and every output says that it is not private.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from rich.markup import escape
from rich.table import Table

from privfedrl.cli.output import console, emit, reported_errors
from privfedrl.durable_files import write_atomically
from privfedrl.errors import ConfigurationError, MissingExtraError, StorageError

if TYPE_CHECKING:
    from privfedrl.federation.trained_policy import Evaluation, Frame

__all__ = ["WARNING", "play"]

WARNING = (
    "oracle values of a simulation, or of whoever owns the environment: not private to release"
)
# players show GIF frames for 20 ms at least, and store delays in units of 10 ms
_GIF_RATE, _GIF_WIDTH = 25.0, 480


def play(
    run: Annotated[Path, typer.Argument(help="run directory of a finished run")],
    episodes: Annotated[int, typer.Option("--episodes", help="episodes to evaluate")] = 20,
    seed: Annotated[
        int, typer.Option("--seed", help="start states, sampled actions, and the fleet of --level")
    ] = 0,
    agent: Annotated[
        int | None,
        typer.Option("--agent", help="environment of this agent (0, 1, ...) instead of nominal"),
    ] = None,
    level: Annotated[
        float | None,
        typer.Option("--level", help="a fleet of this heterogeneity, dealt anew by --seed"),
    ] = None,
    sampled: Annotated[
        bool, typer.Option("--sampled", help="draw the actions instead of the most likely one")
    ] = False,
    gif: Annotated[Path | None, typer.Option("--gif", help="film one more episode here")] = None,
    frames: Annotated[
        Path | None, typer.Option("--frames", help="its frames as PNG, in a new or empty folder")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output")] = False,
) -> None:
    """Play episodes with the policy of RUN; print returns, lengths and ends.

    The figures, and what --gif and --frames show, are oracle values of a simulation, or of whoever
    owns the environment: they are computed without noise and are NOT private to release.

    The environment is the nominal one; with --agent K that of the K-th agent of the run's own
    fleet; with --level H that of the K-th agent (K = 0 unless --agent is given) of a fleet as large
    as the run's with heterogeneity H.
    """
    with reported_errors(as_json=as_json):
        found = _played(run, _Wanted(episodes, seed, agent, level, sampled, gif, frames))
    if as_json:
        emit(found)
    else:
        console.print(_table(found))
        for file in (found["film"] or {}).get("files", ()):
            console.print(f"film: {file}", markup=False, soft_wrap=True)
        console.print(WARNING, markup=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The options of a call."""

    episodes: int
    seed: int
    agent: int | None
    level: float | None
    sampled: bool
    gif: Path | None
    frames: Path | None


def _played(run: Path, wanted: _Wanted) -> dict[str, Any]:
    """Every figure of the call, by name."""
    from privfedrl.federation.trained_policy import TrainedPolicy

    if wanted.seed < 0:
        raise ConfigurationError(f"seed must be >= 0, got {wanted.seed}")
    trained = TrainedPolicy.load(run)
    spec = trained.environment(agent=wanted.agent, level=wanted.level, seed=wanted.seed)
    reels = _reels(run, wanted)
    found = trained.evaluate(
        spec, episodes=wanted.episodes, seed=wanted.seed, sampled=wanted.sampled
    )
    film = None
    if reels:
        shot = trained.film(spec, _past(reels), seed=wanted.seed, sampled=wanted.sampled)
        film = _described_film(shot, reels)
    return {
        "warning": WARNING,
        "plan": trained.plan.name,
        "plan_digest": trained.plan.digest.hex(),
        "environment": json.loads(spec.to_json()),
        "actions": "sampled" if wanted.sampled else "greedy",
        "seed": wanted.seed,
        "horizon": trained.plan.fleet.horizon,
        **_figures(found),
        "film": film,
    }


def _figures(found: Evaluation) -> dict[str, Any]:
    returns, lengths = found.returns, found.lengths
    return {
        "episodes": len(returns),
        "lost_episodes": found.lost,
        "mean_return": float(returns.mean()),
        "std_return": float(returns.std(ddof=1)) if len(returns) > 1 else None,
        "min_return": float(returns.min()),
        "max_return": float(returns.max()),
        "mean_length": float(lengths.mean()),
        "min_length": int(lengths.min()),
        "max_length": int(lengths.max()),
        "share_terminated": float(found.terminated.mean()),
    }


def _past(reels: Sequence[_Reel]) -> Callable[[Frame, float], None]:
    def show(frame: Frame, rate: float) -> None:
        for reel in reels:
            reel.add(frame, rate)

    return show


def _described_film(episode: Evaluation, reels: Sequence[_Reel]) -> dict[str, Any]:
    """The filmed episode in figures, and where it can be seen."""
    return {
        "return": float(episode.returns[0]),
        "length": int(episode.lengths[0]),
        "terminated": bool(episode.terminated[0]),
        "files": [reel.finish() for reel in reels],
    }


def _reels(run: Path, wanted: _Wanted) -> list[_Reel]:
    """Where frames go, checked before anything is computed."""
    for name, path in (("--gif", wanted.gif), ("--frames", wanted.frames)):
        if path is not None and path.resolve().is_relative_to(run.resolve()):
            raise ConfigurationError(
                f"{name} must lie outside the run directory, which is evidence, got {str(path)!r}"
            )
    reels: list[_Reel] = []
    if wanted.gif is not None:
        reels.append(_Gif(wanted.gif))
    if wanted.frames is not None:
        reels.append(_Folder(wanted.frames))
    return reels


class _Reel(Protocol):
    def add(self, frame: Frame, rate: float) -> None:
        """Take the next frame of an episode of ``rate`` frames per second."""

    def finish(self) -> str:
        """Write what is left to write; returns where it is."""


class _Gif:
    """Frames as one animation at the environment's own speed, at most 25 frames per second."""

    def __init__(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise StorageError(f"folder of --gif {str(path)!r} does not exist")
        if path.exists() and not _is_gif(path):
            raise ConfigurationError(
                f"--gif must be a new file or a GIF to replace, got {str(path)!r}"
            )
        self._image = _pillow()
        self._path, self._seen, self._delay = path, 0, 0.0
        self._pictures: list[Any] = []

    def add(self, frame: Frame, rate: float) -> None:
        stride = math.ceil(rate / _GIF_RATE)
        self._delay = 1000.0 * stride / rate
        if self._seen % stride == 0:
            picture = self._image.fromarray(frame)
            picture.thumbnail((_GIF_WIDTH, _GIF_WIDTH))
            self._pictures.append(picture.quantize(colors=64))
        self._seen += 1

    def finish(self) -> str:
        data = io.BytesIO()
        first, *rest = self._pictures
        first.save(
            data,
            format="GIF",
            save_all=True,
            append_images=rest,
            duration=round(self._delay / 10) * 10,
            loop=0,
        )
        write_atomically(self._path, data.getvalue())
        return str(self._path)


class _Folder:
    """Every frame as a PNG of its own, numbered from 0 (the start)."""

    def __init__(self, path: Path) -> None:
        self._image = _pillow()
        try:
            path.mkdir(exist_ok=True)
            occupied = any(path.iterdir())
        except OSError as error:
            raise StorageError(f"--frames {str(path)!r}: {error.strerror}") from error
        if occupied:
            raise ConfigurationError(f"--frames must be a new or empty folder, got {str(path)!r}")
        self._path, self._seen = path, 0

    def add(self, frame: Frame, rate: float) -> None:
        try:
            self._image.fromarray(frame).save(self._path / f"frame_{self._seen:05d}.png")
        except OSError as error:
            raise StorageError(f"--frames {str(self._path)!r}: {error.strerror}") from error
        self._seen += 1

    def finish(self) -> str:
        return str(self._path)


def _is_gif(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GIF8"
    except OSError:
        return False


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", extra="report") from error
    return Image


def _table(found: dict[str, Any]) -> Table:
    spread = "" if found["std_return"] is None else f" +- {found['std_return']:.1f} (std)"
    rows = {
        "environment": _described(found["environment"]),
        "episodes": f"{found['episodes']}, {found['actions']} actions, seed {found['seed']}",
        "return": f"{found['mean_return']:.1f}{spread}",
        "worst, best": f"{found['min_return']:.1f}, {found['max_return']:.1f}",
        "length": f"{found['mean_length']:.1f} ({found['min_length']} to {found['max_length']})",
        "ended by itself": f"{found['share_terminated']:.0%}",
    }
    if found["lost_episodes"]:
        rows["lost to failures"] = str(found["lost_episodes"])
    if found["film"] is not None:
        rows["film"] = f"return {found['film']['return']:.1f}, {found['film']['length']} steps"
    table = Table(title=found["plan"], show_header=False)
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def _described(environment: dict[str, Any]) -> str:
    """An environment's id and what is not nominal about it."""
    others = {k: v for k, v in environment.items() if k not in ("id", "params") and v is not None}
    changed = environment["params"] | others
    values = ", ".join(f"{name} {value:.4g}" for name, value in changed.items())
    return f"{environment['id']} ({values or 'nominal'})"
