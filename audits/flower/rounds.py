"""One round of SecAgg+ with chosen parameters, losses and lies, for the direct observations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.server.workflow import SecAggPlusWorkflow
from seams import Node, RefusedReply, Server, config, decode, encode

__all__ = ["Round", "names", "play"]


@dataclass(slots=True)
class Round:
    """What came of it.

    Attributes:
        mean: float64, the aggregate, or None. averaged: whose. errors: by node, the type names.
        replies: by (stage, node), the decoded reply. sizes: by stage, bytes of one reply.
    """

    nodes: dict[str, Node]
    mean: Any = None
    averaged: tuple[str, ...] = ()
    server_error: Exception | None = None
    errors: dict[str, tuple[str, Exception]] = field(default_factory=dict)
    replies: dict[tuple[str, str], Message] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def raised(self) -> dict[str, int]:
        """How many nodes raised what at which stage."""
        counts: dict[str, int] = {}
        for stage, error in self.errors.values():
            key = f"{type(error).__name__} at {stage}"
            counts[key] = counts.get(key, 0) + 1
        return counts


def names(count: int) -> tuple[str, ...]:
    """Clients of a round."""
    return tuple(f"client-{index:04d}" for index in range(count))


def play(
    workflow: SecAggPlusWorkflow,
    nodes: dict[str, Node],
    shape: tuple[int, ...],
    *,
    lost: Mapping[str, str] | None = None,
    on_request: Callable[[str, str, Message], Message] | None = None,
) -> Round:
    """Run one round; every message crosses the wire as bytes.

    Args:
        lost: by node, the stage whose request it never gets.
        on_request: (stage, node, request) to what the node is given instead.
    """
    lost = lost or {}
    round_ = Round(nodes)
    server = Server(workflow, tuple(nodes), shape)
    requests = server.open()
    while not server.finished:
        stage, upcoming = server.stage, list[Message]()
        for request in requests:
            name = server.names[request.metadata.dst_node_id]
            if lost.get(name) == stage:
                continue
            given = decode(encode(request))
            if on_request is not None:
                given = on_request(stage, name, given)
            for data in _answers(round_, name, stage, given):
                upcoming = server.take(decode(data))
        requests = upcoming or ([] if server.finished else server.deadline())
    try:
        round_.mean, round_.averaged = server.outcome()
    except RefusedReply:
        round_.server_error = server.grid.error
    return round_


def _answers(round_: Round, name: str, stage: str, request: Message) -> list[bytes]:
    try:
        replies = [encode(reply) for reply in round_.nodes[name].take(request)]
    except Exception as error:  # noqa: BLE001 - the app's error is the observation
        round_.errors[name] = (stage, error)
        return []
    for data in replies:
        round_.replies[stage, name] = decode(data)
        round_.sizes[stage] = len(data)
    return replies


def edited(message: Message, **changes: Any) -> Message:
    """``message`` with entries of its SecAgg+ record replaced."""
    record = config(message)
    for key, value in changes.items():
        record[getattr(Key, key)] = value
    return message
