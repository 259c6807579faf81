"""What an observation is, and the small rounds that observations are made with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_STATE
from flwr.server.workflow import SecAggPlusWorkflow
from rounds import Round, names, play
from seams import Node, node_id

__all__ = [
    "ISSUE",
    "OBSERVATIONS",
    "Observation",
    "draw",
    "id_of",
    "kept_by",
    "logged",
    "nodes_with",
    "observation",
    "small_round",
]

ISSUE = "https://github.com/flwrlabs/flower/issues/7522"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One thing that was seen.

    Attributes:
        kind: "strength"; "finding": differs from the documentation; "unclaimed": beyond what the
            documentation claims; "limit": documented, or a cost.
        documented: what the documentation says of it. comment: what follows, what might help.
    """

    name: str
    kind: str
    title: str
    documented: str
    comment: str
    observed: dict[str, Any]
    reference: str = ""


OBSERVATIONS: dict[str, Callable[[], Observation]] = {}
"""By name, in the order of the report."""


def observation(
    kind: str, title: str, *, documented: str = "not mentioned", reference: str = ""
) -> Callable[[Callable[[], dict[str, Any]]], Callable[[], Observation]]:
    """Put a measurement on the list."""

    def add(measure: Callable[[], dict[str, Any]]) -> Callable[[], Observation]:
        def run() -> Observation:
            return Observation(
                name=measure.__name__,
                kind=kind,
                title=title,
                documented=documented,
                comment=" ".join((measure.__doc__ or "").split()),
                observed=_rounded(measure()),
                reference=reference,
            )

        OBSERVATIONS[measure.__name__] = run
        return run

    return add


def _rounded(value: Any) -> Any:
    """Floats to three digits: more would be noise."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return float(f"{value:.3g}") if isinstance(value, float) else value


@contextmanager
def logged() -> Iterator[list[str]]:
    """What Flower logs at WARNING or above meanwhile."""
    seen: list[str] = []
    handler = logging.Handler(logging.WARNING)

    def keep(record: logging.LogRecord) -> None:
        if "fit_metrics_aggregation_fn" not in record.getMessage():  # no matter of SecAgg+
            seen.append(record.getMessage())

    handler.emit = keep  # type: ignore[method-assign]  # the smallest handler
    logger = logging.getLogger("flwr")
    logger.addHandler(handler)
    try:
        yield seen
    finally:
        logger.removeHandler(handler)


def draw(count: int, length: int, scale: float = 0.05) -> Any:
    """float64 [count, length], the same every time."""
    return np.random.default_rng(1).normal(0.0, scale, (count, length))


def nodes_with(values: Any, weight: int = 1000, **options: Any) -> dict[str, Node]:
    """A node per row."""
    return {
        name: Node(name, row, weight=weight, **options)
        for name, row in zip(names(len(values)), values, strict=True)
    }


def kept_by(done: Round, name: str) -> Any:
    """What the mod left in that node's context."""
    return done.nodes[name].context.state.config_records[RECORD_KEY_STATE]


def small_round(count: int = 6, length: int = 8, **options: Any) -> Round:
    """All nodes neighbours, a majority as the threshold."""
    workflow = SecAggPlusWorkflow(1.0, count // 2 + 1)
    return play(workflow, nodes_with(draw(count, length)), (length,), **options)


def id_of(index: int) -> int:
    """Of the client with that index in a round."""
    return node_id(names(index + 1)[index])
