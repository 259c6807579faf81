"""One whole round with fixed keys, clock and randomness, and everything that went over the wire.

Guarantee: two runs give the same bytes, and the parties are the library's own; only where random
bytes and the time come from is replaced, and what was drawn is written down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec
import numpy as np

from privfedrl.parties import Identity, MemoryJournal, Outgoing, Registry, RegistryEntry
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.primitives.signing import Ed25519Signer
from privfedrl.primitives.stream import RingVector
from privfedrl.secagg import (
    ClientPhase,
    SecAggClient,
    SecAggParameters,
    SecAggServer,
    SparseGraph,
    Transcript,
)
from privfedrl.secagg.messages import encode_frame, peek
from privfedrl.secagg.sizes import MessageType

__all__ = [
    "COMPLETE",
    "COMPLETE_CLIENT",
    "COMPLETE_KEEP",
    "NOW",
    "SPARSE",
    "SPARSE_CLIENT",
    "SPARSE_KEEP",
    "Federation",
    "Recorder",
    "Round",
    "opened",
    "parse",
    "play",
    "round_file",
    "world_of",
]

ROOT: Final = DeterministicEntropy(b"pfrl-sa/1 test vectors")
NOW: Final = 1_800_000_000
ALL: Final = 99
KINDS: Final = {kind.value: kind.label for kind in MessageType}


class Recorder:
    """A deterministic source that keeps what was drawn from it, in order."""

    is_deterministic: Final = True

    def __init__(self, entropy: DeterministicEntropy) -> None:
        self._entropy = entropy
        self.drawn: list[bytes] = []

    def __call__(self, n: int) -> bytes:
        self.drawn.append(self._entropy(n))
        return self.drawn[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """Who takes part and with which parameters; ``validity`` overrides spans by name."""

    title: str
    names: tuple[str, ...]
    parameters: SecAggParameters
    coordinator: str = "hub"
    validity: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    round: int = 7
    attempt: int = 2

    def identity(self, name: str) -> Identity:
        """The signing identity of ``name``, registered or not."""
        return Identity(name, Ed25519Signer(self.signing_seed(name)))

    def signing_seed(self, name: str) -> bytes:
        """32 bytes: the Ed25519 seed of ``name``."""
        return ROOT.fork(b"identity/" + name.encode())(32)

    @property
    def registry(self) -> Registry:
        """Everybody."""
        return Registry(self._entry(name) for name in (*self.names, self.coordinator))

    def _entry(self, name: str) -> RegistryEntry:
        first, last = self.validity.get(name, (NOW - 10**6, NOW + 10**6))
        role: Any = "coordinator" if name == self.coordinator else "agent"
        return self.identity(name).entry(role, not_before=first, not_after=last)

    def pinned(self, what: str) -> bytes:
        """32 public bytes: plan, model, task, previous, seed or head."""
        return ROOT.fork(b"pinned/" + what.encode())(32)

    def vector(self, name: str) -> RingVector:
        """The input of ``name``: uniform words."""
        word = np.dtype(f"<u{self.parameters.ring_bits // 8}")
        data = ROOT.fork(f"vector/{self.title}/{name}".encode())(self.parameters.vector_bytes)
        return np.frombuffer(data, word).astype(word.newbyteorder("="))

    def entropy(self, name: str) -> Recorder:
        """The round's randomness of ``name``."""
        return Recorder(ROOT.fork(f"round/{self.title}/{name}".encode()))

    def client(self, name: str, **changes: Any) -> SecAggClient:
        """The client of ``name``, new."""
        given: dict[str, Any] = {
            "identity": self.identity(name),
            "registry": self.registry,
            "parameters": self.parameters,
            "plan_digest": self.pinned("plan"),
            "journal": MemoryJournal(),
            "entropy": self.entropy(name),
            "clock": lambda: NOW,
        }
        return SecAggClient(**(given | changes))

    def server(self) -> SecAggServer:
        """The coordinator, new."""
        return SecAggServer(
            identity=self.identity(self.coordinator),
            registry=self.registry,
            parameters=self.parameters,
            plan_digest=self.pinned("plan"),
            clock=lambda: NOW,
        )

    def open(self, server: SecAggServer) -> list[Outgoing]:
        """Start ``server`` with the pinned digests."""
        return server.start(
            self.pinned("task"),
            self.round,
            self.attempt,
            self.pinned("model"),
            self.pinned("previous"),
            self.pinned("seed"),
        )

    def forge(self, data: bytes, *, by: str | None = None, **changes: Any) -> bytes:
        """The frame with some fields changed, signed anew by its sender (or by ``by``)."""
        message = msgspec.structs.replace(parse(data), **changes)
        if by is not None:
            message = msgspec.structs.replace(message, sender=by)
        return encode_frame(message, self.identity(message.sender))


def parse(data: bytes) -> Any:
    """The message in a frame, unverified."""
    return peek(data, MessageType(int.from_bytes(data[6:8], "big")), limit=len(data))


@dataclass(slots=True)
class Round:
    """What went over the wire. ``events`` is what the coordinator saw: a frame, or None: closed."""

    federation: Federation
    events: list[tuple[str, bytes] | None] = field(default_factory=list)
    shown: dict[str, list[bytes]] = field(default_factory=dict)
    sent: dict[str, list[bytes]] = field(default_factory=dict)
    entropies: dict[str, Recorder] = field(default_factory=dict)
    outgoing: list[Outgoing] = field(default_factory=list)
    server: SecAggServer = field(init=False)

    def transcript(self) -> Transcript:
        """The signed record."""
        return Transcript.sign(
            self.server.result().record,
            identity=self.federation.identity(self.federation.coordinator),
            ledger_head=self.federation.pinned("head"),
        )


def play(federation: Federation, keep: Mapping[str, int]) -> Round:
    """A round in which only the first ``keep[name]`` messages of a client arrive."""
    done = Round(federation)
    done.server = server = federation.server()
    clients = {}
    for name in federation.names:
        done.entropies[name] = federation.entropy(name)
        clients[name] = federation.client(name, entropy=done.entropies[name])
        done.shown[name], done.sent[name] = [], []
    out = federation.open(server)
    while not server.finished:
        done.outgoing += out
        before, following = server.phase, []
        for message in out:
            name, client = message.recipient, clients[message.recipient]
            if client.phase is ClientPhase.IDLE:
                answer = client.start(
                    message.data,
                    federation.vector(name),
                    model_digest=federation.pinned("model"),
                )
            else:
                answer = client.receive(message.data)
            done.shown[name].append(message.data)
            for reply in answer:
                done.sent[name].append(reply.data)
                if len(done.sent[name]) <= keep.get(name, ALL):
                    done.events.append((name, reply.data))
                    following += server.receive(reply.data)
        if server.phase is before:
            done.events.append(None)
            following = server.close_phase()
        out = following
    return done


def world_of(done: Round, *, names: tuple[str, ...]) -> dict[str, Any]:
    """What a reader needs to rebuild the parties of ``done``; draws of ``names`` only."""
    federation = done.federation
    parameters = federation.parameters
    return {
        "registry": msgspec.json.decode(federation.registry.to_json()),
        "registry_digest": federation.registry.digest.hex(),
        "parameters": parameters.canonical_bytes().hex(),
        "plan_digest": federation.pinned("plan").hex(),
        "model_digest": federation.pinned("model").hex(),
        "clock": NOW,
        "signing_seeds": {
            name: federation.signing_seed(name).hex()
            for name in sorted((*federation.names, federation.coordinator))
        },
        "drawn": {name: [data.hex() for data in done.entropies[name].drawn] for name in names},
        "vectors": {name: _words(federation.vector(name)) for name in names},
    }


def round_file(done: Round, client: str) -> dict[str, Any]:
    """The golden transcript of ``done``: all frames of the coordinator and of ``client``."""
    federation, result = done.federation, done.server.result()
    topology = federation.parameters.topology(len(result.record.members))
    return {
        "title": federation.title,
        "world": world_of(done, names=federation.names),
        "config": _config_fields(done),
        "degree": topology.degree,
        "threshold": topology.threshold,
        "coordinator": {
            "sent": [_frame(out.recipient, out.data) for out in done.outgoing],
            "events": [
                {"close": True} if event is None else _frame(*event) for event in done.events
            ],
        },
        "client": {
            "name": client,
            "received": [data.hex() for data in done.shown[client]],
            "sent": [data.hex() for data in done.sent[client]],
        },
        "survivors": list(result.survivors),
        "sum": _words(result.vector),
        "ledger_head": federation.pinned("head").hex(),
        "transcript": done.transcript().to_bytes().hex(),
    }


def _config_fields(done: Round) -> dict[str, Any]:
    """The fields of the round's config, byte strings in hex."""
    config = done.server.result().config
    fields = {name: getattr(config, name) for name in config.__struct_fields__}
    return {
        name: value.hex() if isinstance(value, bytes) else value for name, value in fields.items()
    }


def _frame(peer: str, data: bytes) -> dict[str, Any]:
    kind = KINDS[int.from_bytes(data[6:8], "big")]
    return {"peer": peer, "type": kind, "frame": data.hex()}


def _words(vector: RingVector) -> str:
    return vector.astype(vector.dtype.newbyteorder("<"), copy=False).tobytes().hex()


COMPLETE: Final = Federation(
    title="complete graph, dropouts at every stage",
    # bytewise order: upper case first, "10" before "2"
    names=(
        *("Clinic.1", "Clinic.10", "Clinic.2", "agent-0", "agent-1"),
        *("agent_2", "b", "bank", "z-9", "z-9.x"),
    ),
    parameters=SecAggParameters(
        num_clients=10, max_colluding=1, vector_length=5, min_clients=5, min_honest=3
    ),
)
COMPLETE_KEEP: Final = {"Clinic.10": 0, "agent-0": 1, "agent_2": 2, "z-9": 3}
COMPLETE_CLIENT: Final = "bank"

SPARSE: Final = Federation(
    title="sparse graph, dropouts before the roster, before M3 and before M4",
    names=tuple(f"robot-{index:02d}" for index in range(20)),
    parameters=SecAggParameters(
        num_clients=20,
        max_colluding=1,
        vector_length=3,
        ring_bits=64,
        min_clients=16,
        min_honest=3,
        graph=SparseGraph(max_dropouts=2, security_bits=4, correctness_bits=4),
    ),
)
# two at most after the roster: no client then lacks more than k - t = 2 of its neighbours
SPARSE_KEEP: Final = {"robot-03": 0, "robot-11": 2, "robot-15": 3}
SPARSE_CLIENT: Final = "robot-07"


def opened(federation: Federation, name: str) -> Round:
    """A round of which only the config exists, as the client called ``name`` would get it.

    It is what a coordinator signs that does not care whether it is valid itself.
    """
    valid = replace(federation, validity={})
    config = valid.open(valid.server())[0].data
    config = federation.forge(config, registry_digest=federation.registry.digest)
    return Round(federation, shown={name: [config]}, entropies={name: federation.entropy(name)})
