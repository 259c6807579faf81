"""One small federation and a wire between its real ends, for all tests of ``secagg``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest

from privfedrl.parties import Identity, MemoryJournal, Outgoing, Registry
from privfedrl.parties.members import Members
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.secagg import (
    ClientPhase,
    SecAggClient,
    SecAggParameters,
    SecAggServer,
    ServerPhase,
    SparseGraph,
    ideal_sum,
)
from privfedrl.secagg.agreement import Cohort, vector_digest
from privfedrl.secagg.merkle import MerkleTree
from privfedrl.secagg.messages import encode_frame, peek
from privfedrl.secagg.sizes import MessageType
from privfedrl.secagg.suite import DEFAULT_SUITE

PLAN = b"p" * 32
MODEL = b"m" * 32
TASK = b"t" * 32
NOW = 1_800_000_000
EVERYTHING = 99


@dataclass
class World:
    """n agents, a coordinator and their vectors, all from one seed; time stands still at ``now``.

    ``validity[name]`` are the first and last second of an identity, coordinator included;
    ``name_chars`` pads all names to that length.
    """

    n: int = 6
    length: int = 5
    ring_bits: int = 32
    max_colluding: int = 1
    seed: bytes = b"world"
    settings: dict[str, Any] = field(default_factory=dict)
    graph: SparseGraph | None = None
    validity: dict[str, tuple[int, int]] = field(default_factory=dict)
    now: int = NOW
    name_chars: int = 0

    def __post_init__(self) -> None:
        self.entropy = DeterministicEntropy(self.seed)
        keys = self.entropy.fork(b"identities")
        digits = max(2, len(str(self.n - 1)))
        self.names = tuple(
            f"agent-{index:0{digits}d}".ljust(self.name_chars, "x") for index in range(self.n)
        )
        self.agents = {name: Identity.generate(name, keys) for name in self.names}
        self.coordinator = Identity.generate("coordinator".ljust(self.name_chars, "x"), keys)
        self.registry = Registry(
            [
                *(self.entry(agent, "agent") for agent in self.agents.values()),
                self.entry(self.coordinator, "coordinator"),
            ]
        )
        self.parameters = SecAggParameters(
            num_clients=self.n,
            max_colluding=self.max_colluding,
            vector_length=self.length,
            ring_bits=self.ring_bits,
            graph=self.graph,
            **self.settings,
        )
        rng = np.random.default_rng(7)
        self.vectors: dict[str, Any] = {
            name: rng.integers(0, 2**self.ring_bits, self.length, dtype=f"uint{self.ring_bits}")
            for name in self.names
        }
        self.journals = {name: MemoryJournal() for name in self.names}

    def entry(self, identity: Identity, role: Any) -> Any:
        dates = self.validity.get(identity.name)
        if dates is None:
            return identity.entry(role)
        return identity.entry(role, not_before=dates[0], not_after=dates[1])

    def clock(self) -> int:
        return self.now

    def client(self, name: str, **changes: Any) -> SecAggClient:
        given: dict[str, Any] = {
            "identity": self.agents[name],
            "registry": self.registry,
            "parameters": self.parameters,
            "plan_digest": PLAN,
            "journal": self.journals[name],
            "entropy": self.entropy.fork(b"round" + name.encode()),
            "clock": self.clock,
        }
        return SecAggClient(**(given | changes))

    def server(self, **changes: Any) -> SecAggServer:
        given: dict[str, Any] = {
            "identity": self.coordinator,
            "registry": self.registry,
            "parameters": self.parameters,
            "plan_digest": PLAN,
            "entropy": self.entropy.fork(b"server"),
            "clock": self.clock,
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

    def members(self, names: Iterable[str]) -> Members:
        return Members.of((self.registry.index_of(name) for name in names), self.n)

    def names_in(self, encoded: bytes) -> tuple[str, ...]:
        """The agents that a bitmap names."""
        indices = Members.from_bytes(encoded, self.n).indices()
        return tuple(self.names[index] for index in indices)

    def cohort_of(self, adverts: Mapping[str, bytes]) -> Cohort:
        """The cohort whose members have these advert frames."""
        names = sorted(adverts)
        parsed = [self.parse(adverts[name]) for name in names]
        return Cohort.of(
            cfg=parsed[0].cfg,
            suite=DEFAULT_SUITE,
            registry=self.registry,
            members=self.members(names),
            topology=self.parameters.topology(len(names)),
            root=MerkleTree([adverts[name] for name in names]).root,
            adverts=parsed,
        )

    def forge_roster(
        self, data: bytes, adverts: Mapping[str, bytes], *, shown: Iterable[str] = ()
    ) -> bytes:
        """The roster frame made anew for these members: bitmap, adverts and proof fit together.

        ``shown`` replaces the neighbours whose adverts the recipient gets to see.
        """
        names, recipient = sorted(adverts), self.parse(data).recipient
        near = sorted(shown)
        if not near:
            near = sorted((*self.cohort_of(adverts).neighbours(recipient), recipient))
        return self.forge(
            data,
            members=self.members(names).to_bytes(),
            adverts=tuple(adverts[name] for name in near),
            proof=MerkleTree([adverts[name] for name in names]).proof(map(names.index, near)),
        )

    def forge_set(self, data: bytes, leaves: Mapping[str, bytes], **changes: Any) -> bytes:
        """The delivery or survivors frame made anew for these leaves: bitmap, root, own path."""
        names, recipient = sorted(leaves), self.parse(data).recipient
        tree = MerkleTree([leaves[name] for name in names])
        path = tree.proof([names.index(recipient)]) if recipient in leaves else b""
        fitting = {"members": self.members(names).to_bytes(), "root": tree.root, "proof": path}
        return self.forge(data, **(fitting | changes))

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

    def adverts(self) -> dict[str, bytes]:
        """The advert frame of everybody who has sent one."""
        return {name: frames[0] for name, frames in self.sent.items() if frames}

    def commitments(self) -> dict[str, bytes]:
        """What U2 is a tree of, by everybody who has sent shares."""
        parse = self.world.parse
        return {n: parse(f[1]).commitment for n, f in self.sent.items() if len(f) > 1}

    def vector_digests(self) -> dict[str, bytes]:
        """What U3 is a tree of, by everybody who has sent a masked vector."""
        found = {}
        for name, frames in self.sent.items():
            if len(frames) > 2:
                message = self.world.parse(frames[2])
                found[name] = vector_digest(message.roster, name, message.vector)
        return found

    def shown_to(self, name: str, kind: MessageType) -> bytes:
        """What the server has sent, or is about to send, to ``name`` in that slot."""
        waiting = [out.data for out in self.out if out.recipient == name]
        return next(data for data in (*self.shown[name], *waiting) if data[7] == kind)

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


@pytest.fixture(scope="session")
def sparse_world() -> Callable[..., World]:
    """Forty agents of whom each masks with eight; up to three of a roster may drop out."""

    def build(**changes: Any) -> World:
        given: dict[str, Any] = {
            "n": 40,
            "settings": {"min_clients": 30},
            "graph": SparseGraph(max_dropouts=3, security_bits=8, correctness_bits=8),
        }
        return World(**(given | changes))

    return build
