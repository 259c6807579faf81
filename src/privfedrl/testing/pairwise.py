"""The reference adapter: pairwise masking of ``privfedrl.secagg`` as the kit sees it.

Guarantee: nothing is stubbed; parties are the library's own objects with test keys and seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import numpy as np

from privfedrl.errors import PrivfedrlError
from privfedrl.parties import Identity, MemoryJournal, Outgoing, Registry
from privfedrl.parties.identity import LAST_SECOND
from privfedrl.parties.members import Members
from privfedrl.primitives.random import Clock, DeterministicEntropy
from privfedrl.secagg import (
    ClientPhase,
    SecAggClient,
    SecAggParameters,
    SecAggServer,
    SparseGraph,
    Transcript,
)
from privfedrl.secagg.messages import peek
from privfedrl.secagg.sizes import MessageType
from privfedrl.testing.adapter import (
    Aggregate,
    AggregationAdapter,
    Claim,
    Packet,
    Reveal,
    RingVector,
    RoundSpec,
    Store,
)

__all__ = ["PairwiseAdapter"]

_SERVER: Final = "server"
_NOW: Final = 1_800_000_000
"""Every clock of the kit shows this time, in Unix seconds."""


@cache
def _identity(name: str, *, impostor: bool = False) -> Identity:
    label = b"kit impostor/" if impostor else b"kit identity/"
    return Identity.generate(name, DeterministicEntropy(label + name.encode()))


@cache
def _registry(
    names: tuple[str, ...], expired: frozenset[str] = frozenset(), impostor: str = ""
) -> Registry:
    """Of clients and server; ``impostor`` is one of them with another key than the true one."""
    entries = [
        _identity(name, impostor=name == impostor).entry(
            "coordinator" if name == _SERVER else "agent",
            not_after=_NOW - 1 if name in expired else LAST_SECOND,
        )
        for name in (*names, _SERVER)
    ]
    return Registry(entries)


def _believed(names: tuple[str, ...], name: str, spec: RoundSpec) -> Registry:
    """The true registry; who is not in it, or not with that key, believes in another one."""
    true, impostors = _registry(names, spec.expired), spec.impostors
    if name in (*names, _SERVER) and name not in impostors:
        return true
    members = names if name in (*names, _SERVER) else (*names[:-1], name)
    forged = Registry(_registry(members, spec.expired, name if name in impostors else "").entries)
    forged.digest = true.digest  # so that it goes on and its bytes reach the others
    return forged


def _clock(spec: RoundSpec) -> Clock:
    return lambda: _NOW + spec.clock_s


def _entropy(spec: RoundSpec, name: str) -> DeterministicEntropy:
    slot = f"/{spec.round}/{spec.attempt}/{name}".encode()
    return DeterministicEntropy(spec.seed).fork(slot)


@dataclass(slots=True)
class _Client:
    name: str
    party: SecAggClient
    vector: RingVector = field(repr=False)
    model: bytes


@dataclass(slots=True)
class _Server:
    party: SecAggServer
    spec: RoundSpec
    sharers: frozenset[str] = frozenset()
    held: dict[str, tuple[str, ...]] = field(default_factory=dict)


class PairwiseAdapter(AggregationAdapter):
    """Our own protocol; ``graph`` is None for the complete graph up to 256 clients."""

    name = "privfedrl pairwise masking"
    server = _SERVER
    claims = frozenset(Claim) - {Claim.DIFFERENCING}
    errors = (PrivfedrlError,)
    graph: SparseGraph | None = None

    def __init__(self, graph: SparseGraph | None = None) -> None:
        self.graph = graph

    def parameters(self, spec: RoundSpec) -> SecAggParameters:
        """What everybody has pinned."""
        return SecAggParameters(
            num_clients=spec.num_clients,
            max_colluding=spec.max_colluding,
            vector_length=spec.vector_length,
            ring_bits=spec.modulus_bits,
            threshold=spec.threshold,
            min_clients=spec.min_clients,
            min_honest=spec.min_honest,
            graph=self.graph,
        )

    def make_client(self, spec: RoundSpec, name: str, vector: RingVector, store: Store) -> _Client:
        party = SecAggClient(
            identity=_identity(name, impostor=name in spec.impostors),
            registry=_believed(self.client_names(spec), name, spec),
            parameters=self.parameters(spec),
            plan_digest=spec.plan,
            journal=store.setdefault("journal", MemoryJournal()),
            entropy=_entropy(spec, name),
            clock=_clock(spec),
        )
        return _Client(name, party, vector, spec.model)

    def make_server(self, spec: RoundSpec) -> _Server:
        party = SecAggServer(
            identity=_identity(_SERVER, impostor=_SERVER in spec.impostors),
            registry=_believed(self.client_names(spec), _SERVER, spec),
            parameters=self.parameters(spec),
            plan_digest=spec.plan,
            entropy=_entropy(spec, _SERVER),
            clock=_clock(spec),
        )
        return _Server(party, spec)

    def start(self, server: _Server) -> list[Packet]:
        spec = server.spec
        out = server.party.start(spec.task, spec.round, spec.attempt, spec.model, spec.previous)
        return _packets(_SERVER, out)

    def deliver(self, party: _Client | _Server, packet: Packet) -> list[Packet]:
        if isinstance(party, _Server):
            return self._from_server(party, party.party.receive(packet.data))
        if party.party.phase is ClientPhase.IDLE:
            out = party.party.start(packet.data, party.vector, model_digest=party.model)
        else:
            out = party.party.receive(packet.data)
        return _packets(party.name, out)

    def close_phase(self, server: _Server) -> list[Packet]:
        return self._from_server(server, server.party.close_phase())

    def finished(self, party: _Client | _Server) -> bool:
        return party.party.finished

    def result(self, server: _Server) -> Aggregate:
        total = server.party.result()
        return Aggregate(total=total.vector, survivors=total.survivors)

    def waiting_for(self, server: _Server) -> tuple[str, ...]:
        return server.party.waiting_for

    def quorum(self, spec: RoundSpec) -> int:
        return self.parameters(spec).floor

    def residues(self, spec: RoundSpec, packet: Packet) -> RingVector | None:
        if packet.kind != MessageType.MASKED.label:
            return None
        return np.frombuffer(_parse(packet).vector, dtype=f"<u{spec.modulus_bits // 8}")

    def reveals(self, spec: RoundSpec, server: _Server, packet: Packet) -> tuple[Reveal, ...]:
        if packet.kind != MessageType.UNMASK.label:
            return ()
        survivors = server.party.survivors
        return tuple(
            Reveal(owner, packet.sender, "self" if owner in survivors else "pair")
            for owner in server.held[packet.sender]
            if owner in server.sharers
        )

    def transcript(self, server: _Server) -> bytes:
        record = server.party.result().record
        return Transcript.sign(record, identity=_identity(_SERVER), ledger_head=bytes(32)).data

    def verify_transcript(self, spec: RoundSpec, transcript: bytes) -> None:
        Transcript.from_bytes(transcript).verify(
            _believed(self.client_names(spec), _SERVER, spec), previous=spec.previous
        )

    def _from_server(self, server: _Server, out: list[Outgoing]) -> list[Packet]:
        packets = _packets(_SERVER, out)
        for packet in packets:
            if packet.kind == MessageType.ROSTER.label:
                server.held[packet.recipient] = _owners(packet, sparse=self.graph is not None)
            if packet.kind == MessageType.DELIVERY.label:
                names = self.client_names(server.spec)
                there = Members.from_bytes(_parse(packet).members, len(names)).indices()
                server.sharers = frozenset(names[index] for index in there)
        return packets


def _kind(data: bytes) -> MessageType:
    return MessageType(int.from_bytes(data[6:8], "big"))


def _parse(packet: Packet) -> Any:
    """The message in a frame, unverified."""
    return peek(packet.data, _kind(packet.data), limit=len(packet.data))


def _packets(sender: str, out: list[Outgoing]) -> list[Packet]:
    return [Packet(sender, each.recipient, each.data, _kind(each.data).label) for each in out]


def _owners(roster: Packet, *, sparse: bool) -> tuple[str, ...]:
    """Whose shares the recipient will hold; on a sparse graph not its own."""
    adverts = _parse(roster).adverts
    names = (peek(each, MessageType.ADVERTISE, limit=len(each)).sender for each in adverts)
    return tuple(name for name in names if not sparse or name != roster.recipient)
