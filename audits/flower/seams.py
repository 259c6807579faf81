"""Both ends of Flower's wire without a wire: a node that answers and a round that is pushed.

Guarantee: what Flower's SuperLink and SuperNode do for SecAgg+ is kept, and nothing more: a reply
counts once, only for the message it names, only from the node that was asked, only within its run;
each message is run once by its node, restarted or not; one ``Context`` is kept for the run.
"""

from __future__ import annotations

import hashlib
import math
import threading
import weakref
from collections.abc import MutableMapping
from queue import SimpleQueue
from typing import Any
from uuid import uuid4

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.server import LegacyContext, ServerConfig, SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["Node", "RefusedReply", "Server", "config", "decode", "encode", "node_id"]

RUN, SUPERLINK = 1, 1
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, SUPERLINK, 1


def node_id(name: str) -> int:
    """What a SuperLink would have drawn at random for the node of this name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little")


def encode(message: Message) -> bytes:
    """Flower's wire form of ``message``."""
    return bytes(message_to_proto(message).SerializeToString(deterministic=True))


def decode(data: bytes) -> Message:
    """The message in ``data``; raises what protobuf and Flower raise."""
    return message_from_proto(ProtoMessage.FromString(data))


def config(message: Message) -> Any:
    """The record through which SecAgg+ speaks; Any, because its values are a union of ten types."""
    return message.content.config_records[RECORD_KEY_CONFIGS]


class RefusedReply(Exception):
    """The SuperLink would not have stored this reply, or the round ended without a sum."""


class Learner(NumPyClient):
    """The user's client: its training returns the parameters that it was made with."""

    def __init__(self, parameters: Any, weight: int, metrics: dict[str, Any]) -> None:
        self.fitted = [parameters], weight, metrics

    def fit(self, parameters: Any, config: Any) -> Any:
        """Ignore the model; the audit chooses the update."""
        return self.fitted


class Node:
    """One SuperNode in one run; ``store`` keeps its context over a restart."""

    def __init__(
        self,
        name: str,
        parameters: Any,
        *,
        weight: int,
        metrics: dict[str, Any] | None = None,
        store: MutableMapping[str, Any] | None = None,
    ) -> None:
        store = {} if store is None else store
        self.name, self.stage = name, ""
        self.seen: set[str] = store.setdefault("seen", set())
        self.context = store.setdefault("ctxt", Context(RUN, node_id(name), {}, RecordDict(), {}))
        learner = Learner(parameters, weight, metrics or {})
        self.app = ClientApp(lambda context: learner.to_client(), mods=[secaggplus_mod])

    @property
    def finished(self) -> bool:
        """Whether this node has given its shares away."""
        return self.stage == Stage.UNMASK

    def take(self, message: Message) -> list[Message]:
        """The app's reply; what the app raises passes through and the stage stays."""
        if message.metadata.message_id in self.seen:
            return []
        self.seen.add(message.metadata.message_id)
        stage = str(config(message)[Key.STAGE])
        reply = self.app(message, self.context)
        self.stage = stage
        return [reply]


class NamingFedAvg(FedAvg):
    """FedAvg that remembers whose results it averaged: the workflow itself does not say."""

    averaged: tuple[int, ...] = ()

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        """As FedAvg."""
        self.averaged = tuple(proxy.node_id for proxy, _ in results)
        return super().aggregate_fit(server_round, results, failures)


class HandedGrid:
    """The grid in the workflow's thread: each call waits for what the other side lets through."""

    def __init__(self) -> None:
        self.asked: SimpleQueue[list[Message] | None] = SimpleQueue()
        self.answered: SimpleQueue[list[Message] | None] = SimpleQueue()
        self.error: Exception | None = None

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        """The only method of a grid that the workflow uses."""
        self.asked.put(list(messages))
        replies = self.answered.get()
        if replies is None:
            raise RefusedReply("the round was abandoned")
        return replies

    def run(self, workflow: SecAggPlusWorkflow, context: LegacyContext) -> None:
        """The body of the thread."""
        try:
            workflow(self, context)  # type: ignore[arg-type]  # a duck of Flower's Grid
        except Exception as error:  # noqa: BLE001 - whatever ends the round is its outcome
            self.error = error
        self.asked.put(None)


class Server:
    """One round of the workflow, pushed from outside."""

    def __init__(
        self,
        workflow: SecAggPlusWorkflow,
        clients: tuple[str, ...],
        shape: tuple[int, ...],
        *,
        round: int = 1,  # noqa: A002 - Flower's own word
    ) -> None:
        self.shape = shape
        self.grid, self.names = HandedGrid(), {node_id(name): name for name in clients}
        manager = SimpleClientManager()
        for node in self.names:
            manager.register(GridClientProxy(node, self.grid, RUN))  # type: ignore[arg-type]  # duck
        self.strategy = NamingFedAvg(
            min_fit_clients=len(clients), min_available_clients=len(clients)
        )
        records = {
            "config": ConfigRecord({"current_round": round}),
            "parameters": ArrayRecord([np.zeros(math.prod(shape))]),
        }
        context = Context(RUN, SUPERLINK, {}, RecordDict(records), {})  # type: ignore[arg-type]
        self.context = LegacyContext(context, ServerConfig(), self.strategy, manager)
        self.thread = threading.Thread(
            target=self.grid.run, args=(workflow, self.context), daemon=True
        )
        self.stage, self.finished = "", False
        self.waiting: dict[str, int] = {}
        self.replies: list[Message] = []
        weakref.finalize(self, self.grid.answered.put, None)  # a forsaken round frees its thread

    def open(self) -> list[Message]:
        """Begin; the first messages."""
        self.thread.start()
        return self._asked()

    def take(self, message: Message) -> list[Message]:
        """Store one reply by the SuperLink's rules; the next messages if it was the last."""
        node = self.waiting.get(message.metadata.reply_to_message_id)
        if node is None or node != message.metadata.src_node_id or message.metadata.run_id != RUN:
            raise RefusedReply("not the awaited reply of that node in this run")
        del self.waiting[message.metadata.reply_to_message_id]
        self.replies.append(message)
        return [] if self.waiting else self.deadline()

    def deadline(self) -> list[Message]:
        """Let the workflow go on with the replies that there are."""
        if self.finished:
            return []
        self.grid.answered.put(self.replies)
        return self._asked()

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Names of the nodes that have not answered."""
        return tuple(sorted(self.names[node] for node in self.waiting.values()))

    def outcome(self) -> tuple[Any, tuple[str, ...]]:
        """float64 [length], the weighted mean, and whose it is; RefusedReply if there is none."""
        if not self.strategy.averaged:
            raise RefusedReply("the workflow ended without a sum") from self.grid.error
        mean = self.context.state.array_records["parameters"].to_numpy_ndarrays()[0]
        return mean, tuple(sorted(self.names[node] for node in self.strategy.averaged))

    def _asked(self) -> list[Message]:
        messages, self.replies = self.grid.asked.get() or [], []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())  # as Flower's own grid does
        self.stage = str(config(messages[0])[Key.STAGE]) if messages else ""
        self.finished = not messages
        self.waiting = {each.metadata.message_id: each.metadata.dst_node_id for each in messages}
        return messages
