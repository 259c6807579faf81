"""One small federation and a wire between its real ends, for all tests of ``secagg``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest

from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.secagg import (
    ClientPhase,
    Identity,
    MemoryJournal,
    Outgoing,
    Registry,
    SecAggClient,
    SecAggParameters,
    SecAggServer,
    ServerPhase,
    ideal_sum,
)
from privfedrl.secagg.messages import encode_frame, peek
from privfedrl.secagg.sizes import MessageType

PLAN = b"p" * 32
MODEL = b"m" * 32
TASK = b"t" * 32
EVERYTHING = 99


@dataclass
class World:
    """n agents, a coordinator and their vectors, all from one seed."""

    n: int = 6
    length: int = 5
    ring_bits: int = 32
    max_colluding: int = 1
    seed: bytes = b"world"
    settings: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.entropy = DeterministicEntropy(self.seed)
        keys = self.entropy.fork(b"identities")
        self.names = tuple(f"agent-{index:02d}" for index in range(self.n))
        self.agents = {name: Identity.generate(name, keys) for name in self.names}
        self.coordinator = Identity.generate("coordinator", keys)
        self.registry = Registry(
            [
                *(agent.entry("agent") for agent in self.agents.values()),
                self.coordinator.entry("coordinator"),
            ]
        )
        self.parameters = SecAggParameters(
            num_clients=self.n,
            max_colluding=self.max_colluding,
            vector_length=self.length,
            ring_bits=self.ring_bits,
            **self.settings,
        )
        rng = np.random.default_rng(7)
        self.vectors: dict[str, Any] = {
            name: rng.integers(0, 2**self.ring_bits, self.length, dtype=f"uint{self.ring_bits}")
            for name in self.names
        }
        self.journals = {name: MemoryJournal() for name in self.names}

    def client(self, name: str, **changes: Any) -> SecAggClient:
        given: dict[str, Any] = {
            "identity": self.agents[name],
            "registry": self.registry,
            "parameters": self.parameters,
            "plan_digest": PLAN,
            "journal": self.journals[name],
            "entropy": self.entropy.fork(b"round" + name.encode()),
        }
        return SecAggClient(**(given | changes))

    def server(self, **changes: Any) -> SecAggServer:
        given: dict[str, Any] = {
            "identity": self.coordinator,
            "registry": self.registry,
            "parameters": self.parameters,
            "plan_digest": PLAN,
            "entropy": self.entropy.fork(b"server"),
        }
        return SecAggServer(**(given | changes))

    def parse(self, data: bytes) -> Any:
        """The message in a frame, unverified."""
        kind = MessageType(int.from_bytes(data[6:8], "big"))
        return peek(data, kind, limit=len(data))

    def forge(self, data: bytes, **changes: Any) -> bytes:
        """The frame with some fields changed, signed anew by its own sender."""
        message = msgspec.structs.replace(self.parse(data), **changes)
        return encode_frame(message, self.identity(message.sender))

    def identity(self, name: str) -> Identity:
        return self.coordinator if name == self.coordinator.name else self.agents[name]

    def session(self, **changes: Any) -> Session:
        return Session(self, **changes)

    def ideal(self, survivors: Iterable[str]) -> Any:
        return ideal_sum(self.vectors, survivors, ring_bits=self.ring_bits)


@dataclass
class Session:
    """One round over a wire that the test can cut, reorder and listen to.

    ``drop[name] = k``: only the first k messages of that client arrive. ``order`` permutes the
    replies of one exchange. ``sent`` and ``shown`` hold every frame from and to each client.
    """

    world: World
    drop: Mapping[str, int] = field(default_factory=dict)
    order: Callable[[list[Outgoing]], list[Outgoing]] = list
    round: int = 1
    attempt: int = 0
    model: bytes = MODEL
    server_changes: dict[str, Any] = field(default_factory=dict)
    client_changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.server = self.world.server(**self.server_changes)
        self.clients = {
            name: self.world.client(name, **self.client_changes) for name in self.world.names
        }
        self.sent: dict[str, list[bytes]] = {name: [] for name in self.world.names}
        self.shown: dict[str, list[bytes]] = {name: [] for name in self.world.names}
        self.out = self.server.start(TASK, self.round, self.attempt, self.model, bytes(32))

    def answer(self, outgoing: Outgoing) -> list[bytes]:
        name, client = outgoing.recipient, self.clients[outgoing.recipient]
        self.shown[name].append(outgoing.data)
        if client.phase is ClientPhase.IDLE:
            vector = self.world.vectors[name]
            replies = client.start(outgoing.data, vector, model_digest=self.model)
        else:
            replies = client.receive(outgoing.data)
        self.sent[name] += [reply.data for reply in replies]
        return [reply.data for reply in replies]

    def exchange(self) -> list[bytes]:
        """Deliver what the server sent; return what arrives back, in order."""
        arriving = [
            Outgoing(out.recipient, data)
            for out in self.out
            for data in self.answer(out)
            if len(self.sent[out.recipient]) <= self.drop.get(out.recipient, EVERYTHING)
        ]
        return [item.data for item in self.order(arriving)]

    def step(self) -> None:
        """One exchange, then the deadline if somebody is missing."""
        before = self.server.phase
        arriving = self.exchange()
        self.out = [message for data in arriving for message in self.server.receive(data)]
        if self.server.phase is before:
            self.out = self.server.close_phase()

    def run(self, *, until: ServerPhase | None = None) -> Session:
        while not self.server.finished and self.server.phase is not until:
            self.step()
        return self


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(scope="session")
def make_world() -> type[World]:
    return World
