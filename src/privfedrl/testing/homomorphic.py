"""The adapter of homomorphic aggregation: ``privfedrl.he`` as the kit sees it.

Guarantee: nothing is stubbed: real keys, ciphertexts and signatures. The server of the kit is the
aggregator together with the key authority, whose secret key is in this process (``LocalVault``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from privfedrl.errors import PrivfedrlError, RoundAborted
from privfedrl.he import (
    AuthorityPhase,
    ClientPhase,
    HEAggregator,
    HEClient,
    HEParameters,
    HETranscript,
    KeyAuthority,
    LocalVault,
)
from privfedrl.he.frames import Kind
from privfedrl.parties import Identity, MemoryJournal, Outgoing, Registry
from privfedrl.parties.identity import LAST_SECOND, Role
from privfedrl.primitives.random import Clock, DeterministicEntropy
from privfedrl.testing.adapter import (
    Aggregate,
    AggregationAdapter,
    Claim,
    Packet,
    RingVector,
    RoundSpec,
    Store,
)

__all__ = ["HomomorphicAdapter"]

_SERVER, _AUTHORITY = "server", "trustee"
_ROLES: Final[dict[str, Role]] = {_SERVER: "coordinator", _AUTHORITY: "key-authority"}
_NOW: Final = 1_800_000_000
_HEAD: Final = b"ledger".ljust(32, b".")
_OF_MASKS: Final = frozenset(
    {
        Claim.UNIFORM_MASKS,  # ciphertexts are not uniform on the ring of the vectors
        Claim.FRESH_MASKS,
        Claim.ONE_SHARE_KIND,
        Claim.BAD_SHARES,
        Claim.DETERMINISTIC,  # SEAL draws from the operating system
        # its attacks replay a recorded twin of the same slot: two keys for one attempt, which the
        # authority's journal rules out and two servers of the kit do not
        Claim.REPLAY_PROOF,
        Claim.DIFFERENCING,
    }
)


@cache
def _identity(name: str, *, impostor: bool = False) -> Identity:
    label = b"kit impostor/" if impostor else b"kit identity/"
    return Identity.generate(name, DeterministicEntropy(label + name.encode()))


@cache
def _registry(
    names: tuple[str, ...], expired: frozenset[str] = frozenset(), impostor: str = ""
) -> Registry:
    """Of clients, server and authority; ``impostor`` has another key than the true one."""
    return Registry(
        _identity(name, impostor=name == impostor).entry(
            _ROLES.get(name, "agent"), not_after=_NOW - 1 if name in expired else LAST_SECOND
        )
        for name in (*names, *_ROLES)
    )


def _believed(names: tuple[str, ...], name: str, spec: RoundSpec) -> Registry:
    """The true registry; who is not in it, or not with that key, believes in another one."""
    true = _registry(names, spec.expired)
    if name in (*names, *_ROLES) and name not in spec.impostors:
        return true
    members = names if name in (*names, *_ROLES) else (*names[:-1], name)
    impostor = name if name in spec.impostors else ""
    forged = Registry(_registry(members, spec.expired, impostor).entries)
    forged.digest = true.digest  # so that it goes on and its bytes reach the others
    return forged


@dataclass(slots=True)
class _Client:
    name: str
    party: HEClient
    vector: RingVector = field(repr=False)
    model: bytes
    early: list[bytes] = field(default_factory=list, repr=False)
    """What overtook the config, which a client does not answer: kept by its transport."""


@dataclass(slots=True)
class _Server:
    party: HEAggregator
    authority: KeyAuthority
    spec: RoundSpec


class HomomorphicAdapter(AggregationAdapter):
    """BFV with the default lattice; the authority re-adds what the aggregator says is the sum."""

    name = "privfedrl homomorphic aggregation"
    server = _SERVER
    claims = frozenset(Claim) - _OF_MASKS
    errors = (PrivfedrlError,)

    def parameters(self, spec: RoundSpec) -> HEParameters:
        """What everybody has pinned."""
        usual = (spec.num_clients + spec.max_colluding) // 2 + 1
        return HEParameters(
            num_clients=spec.num_clients,
            max_colluding=spec.max_colluding,
            vector_length=spec.vector_length,
            ring_bits=spec.modulus_bits,
            threshold=usual if spec.threshold is None else spec.threshold,
            min_clients=spec.min_clients,
            min_honest=spec.min_honest,
        )

    def make_client(self, spec: RoundSpec, name: str, vector: RingVector, store: Store) -> _Client:
        journal = store.setdefault("journal", MemoryJournal())
        party = HEClient(journal=journal, **self._pinned(spec, name))
        return _Client(name, party, vector, spec.model)

    def make_server(self, spec: RoundSpec) -> _Server:
        party = HEAggregator(before_open=lambda names: _HEAD, **self._pinned(spec, _SERVER))
        authority = KeyAuthority(
            journal=MemoryJournal(),
            before_decrypt=lambda config, names: _HEAD,
            vault=LocalVault,
            **self._pinned(spec, _AUTHORITY),
        )
        return _Server(party, authority, spec)

    def start(self, server: _Server) -> list[Packet]:
        spec = server.spec
        out = server.party.start(
            spec.task, spec.round, spec.attempt, spec.model, spec.previous, spec.seed.ljust(32)[:32]
        )
        return self._from_server(server, out)

    def deliver(self, party: _Client | _Server, packet: Packet) -> list[Packet]:
        if isinstance(party, _Server):
            return self._from_server(party, party.party.receive(packet.data))
        if party.party.phase is not ClientPhase.IDLE:
            return _packets(party.name, party.party.receive(packet.data))
        if packet.kind == Kind.CONTEXT.label:
            party.early.append(packet.data)
            return []
        party.party.start(packet.data, party.vector, model_digest=party.model)
        out = [answer for data in party.early for answer in party.party.receive(data)]
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

    def transcript(self, server: _Server) -> bytes:
        record = server.party.result().record
        return HETranscript.sign(record, identity=_identity(_SERVER), ledger_head=_HEAD).data

    def verify_transcript(self, spec: RoundSpec, transcript: bytes) -> None:
        registry = _believed(self.client_names(spec), _SERVER, spec)
        HETranscript.from_bytes(transcript).verify(registry, previous=spec.previous)

    def _pinned(self, spec: RoundSpec, name: str) -> dict[str, Any]:
        return {
            "identity": _identity(name, impostor=name in spec.impostors),
            "registry": _believed(self.client_names(spec), name, spec),
            "parameters": self.parameters(spec),
            "plan_digest": spec.plan,
            "clock": _clock(spec),
        }

    def _from_server(self, server: _Server, out: list[Outgoing]) -> list[Packet]:
        """What leaves for the clients, once the authority has had its say in between."""
        to_clients, waiting = [], list(out)
        while waiting:
            message = waiting.pop(0)
            if message.recipient != _AUTHORITY:
                to_clients.append(message)
                continue
            idle = server.authority.phase is AuthorityPhase.IDLE
            act = server.authority.start if idle else server.authority.receive
            try:
                answers = act(message.data)
            except RoundAborted:
                continue  # it is silent from now on, as a distant one would be
            for answer in answers:
                waiting += server.party.receive(answer.data)
        return _packets(_SERVER, to_clients)


def _clock(spec: RoundSpec) -> Clock:
    return lambda: _NOW + spec.clock_s


def _packets(sender: str, out: list[Outgoing]) -> list[Packet]:
    kinds = (Kind(int.from_bytes(each.data[6:8], "big")).label for each in out)
    return [
        Packet(sender, each.recipient, each.data, kind)
        for each, kind in zip(out, kinds, strict=True)
    ]
