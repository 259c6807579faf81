"""One round on the bench: parties that can be made, copied, lied to and replayed step by step.

Guarantee: everything that an attack does to the parties is recorded as plain steps, and
:func:`replay` of those steps does it again with the same adapter, so a finding is a script.

A *step* is a tuple of literals: what is done, to which party, and with what. A packet is named by
who sent it to whom and the how-manieth it was, or spelled out if no party emitted it. A *round key*
is (task, round, attempt).
"""

from __future__ import annotations

import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

__all__ = ["Charge", "Party", "RoundKey", "Scene", "Step", "replay", "shrink", "spec_changes"]

RoundKey = tuple[bytes, int, int]
Step = tuple[Any, ...]
Charge = Callable[[], None]


@dataclass(slots=True, eq=False)
class Party:
    """A client or server of the adapted library and what was seen of it.

    ``origin`` of a sent packet is the server whose packet it answers; None for a server's own.
    """

    number: int
    name: str
    spec: RoundSpec
    handle: Any = field(repr=False)
    server: bool = False
    honest: bool = True
    vector: NDArray[Any] | None = field(default=None, repr=False)
    store: str = ""
    refusals: list[str] = field(default_factory=list)
    sent: list[Packet] = field(default_factory=list, repr=False)

    @property
    def key(self) -> RoundKey:
        """The round that this party was built for."""
        return (self.spec.task, self.spec.round, self.spec.attempt)


@dataclass(slots=True, eq=False)
class Scene:
    """Parties of one or more rounds, all steps so far and every observation.

    Attributes:
        faults: what went wrong as it happened (an untyped error, a packet after the end).
        masked: (client, round key, masked vector as bytes). revealed: (client, round key, reveal).
        errors: texts of all refusals. tolerates: error types of the kit's own callbacks.
    """

    adapter: AggregationAdapter
    spec: RoundSpec
    steps: list[Step] = field(default_factory=list)
    parties: list[Party] = field(default_factory=list)
    stores: dict[str, Store] = field(default_factory=lambda: defaultdict(dict))
    faults: list[str] = field(default_factory=list)
    masked: list[tuple[Party, RoundKey, bytes]] = field(default_factory=list, repr=False)
    revealed: list[tuple[Party, RoundKey, Reveal]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    tolerates: tuple[type[Exception], ...] = ()
    _names: dict[Packet, tuple[int, str, int]] = field(default_factory=dict, repr=False)
    _makers: dict[Packet, Party] = field(default_factory=dict, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The registered clients of the scene's own spec."""
        return self.adapter.client_names(self.spec)

    def claims(self, *claims: Claim) -> bool:
        """Whether the adapter makes all of ``claims``."""
        return set(claims) <= self.adapter.claims

    def vector(self, name: str, salt: int = 0) -> RingVector:
        """The input of ``name``: fixed residues over the whole ring, [vector_length]."""
        text = f"{name}/{salt}".encode()
        rng = np.random.default_rng(list(text))
        bits = self.spec.modulus_bits
        return rng.integers(0, 2**bits, self.spec.vector_length, dtype=f"uint{bits}")

    # making parties

    def server(self, *, lax: bool = False, **changes: Any) -> Party:
        """A server of the scene's spec with ``changes``; ``lax``: without floors of its own.

        Raises:
            LookupError: the adapter has no lax server.
        """
        spec = replace(self.spec, **changes)
        make = self.adapter.make_lax_server if lax else self.adapter.make_server
        handle = make(spec)
        if handle is None:
            raise LookupError("the adapter has no lax server")
        name = self.adapter.server
        party = Party(len(self.parties), name, spec, handle, server=True, honest=not lax)
        return self._enter(party, ("server", spec_changes(spec), lax))

    def client(
        self,
        name: str,
        *,
        vector: NDArray[Any] | None = None,
        store: str | None = None,
        honest: bool = True,
        **changes: Any,
    ) -> Party:
        """A client of the scene's spec with ``changes``; ``store`` names its disk."""
        spec = replace(self.spec, **changes)
        own = self.vector(name) if vector is None else vector
        disk = name if store is None else store
        handle = self.adapter.make_client(spec, name, own, self.stores[disk])
        party = Party(len(self.parties), name, spec, handle, honest=honest, vector=own, store=disk)
        values = (name, spec_changes(spec), own.tolist(), str(own.dtype), disk, honest)
        return self._enter(party, ("client", *values))

    def charging_client(self, name: str, charge: Charge) -> Party | None:
        """An honest client that calls ``charge`` before its masked vector leaves.

        Not recorded as a step: a function has no literal. None if the protocol has no hook.
        """
        vector = self.vector(name)
        handle = self.adapter.make_charging_client(
            self.spec, name, vector, self.stores[name], charge
        )
        if handle is None:
            return None
        party = Party(len(self.parties), name, self.spec, handle, vector=vector, store=name)
        self.parties.append(party)
        return party

    def clients(self, names: Iterable[str] | None = None, **options: Any) -> dict[str, Party]:
        """One client per name, all registered ones by default."""
        return {name: self.client(name, **options) for name in names or self.names}

    def _enter(self, party: Party, step: Step) -> Party:
        self._record(step[0], party, step[1:])
        self.parties.append(party)
        return party

    def _record(self, verb: str, party: Party, values: Sequence[Any]) -> None:
        self.steps.append((verb, party.number, *values))

    # driving them

    def start(self, server: Party) -> list[Packet]:
        """Open the round of ``server``."""
        self._record("start", server, ())
        return self._act(server, lambda: self.adapter.start(server.handle), None)

    def close(self, server: Party) -> list[Packet]:
        """The deadline of the current phase has passed."""
        self._record("close", server, ())
        return self._act(server, lambda: self.adapter.close_phase(server.handle), None)

    def deliver(self, party: Party, packet: Packet) -> list[Packet]:
        """Hand over one packet; a refusal is noted and gives nothing."""
        name: Any = self._names.get(packet)
        if name is None:
            name = (packet.sender, packet.recipient, packet.data, packet.kind)
        self._record("deliver", party, (name,))
        act = lambda: self.adapter.deliver(party.handle, packet)  # noqa: E731 - two words, used once
        return self._act(party, act, packet)

    def derived(self, packet: Packet, source: Packet) -> Packet:
        """Note that ``packet`` was made from ``source``: it speaks for the same server."""
        maker = self._makers.get(source)
        if maker is not None:
            self._makers.setdefault(packet, maker)
        return packet

    def finished(self, party: Party) -> bool:
        """Whether ``party`` will send nothing more."""
        return self.adapter.finished(party.handle)

    def result(self, server: Party) -> Aggregate | None:
        """The sum of ``server``, or None where it has none."""
        try:
            return self.adapter.result(server.handle)
        except self.adapter.errors:
            return None
        except Exception as error:  # noqa: BLE001 - whatever escapes is the finding
            self._untyped(server, error)
            return None

    def _act(
        self, party: Party, act: Callable[[], list[Packet]], cause: Packet | None
    ) -> list[Packet]:
        ended = cause is not None and self.finished(party)
        try:
            packets = act()
        except (*self.adapter.errors, *self.tolerates) as error:
            party.refusals.append(type(error).__name__)
            self.errors.append(f"{error!r}")
            return []
        except Exception as error:  # noqa: BLE001 - whatever escapes is the finding
            self._untyped(party, error)
            return []
        earlier = {packet.data for packet in party.sent}
        if ended and any(packet.data not in earlier for packet in packets):
            self.faults.append(f"{party.name} sent something new after its end")
        for packet in packets:
            before = sum(sent.recipient == packet.recipient for sent in party.sent)
            self._names.setdefault(packet, (party.number, packet.recipient, before))
            party.sent.append(packet)
            if party.server:
                self._makers.setdefault(packet, party)
            elif cause is not None:
                self._observe(party, packet, self._makers.get(cause))
        return packets

    def _observe(self, client: Party, packet: Packet, origin: Party | None) -> None:
        if origin is None:
            return
        residues = self.adapter.residues(origin.spec, packet)
        if residues is not None:
            self.masked.append((client, origin.key, residues.tobytes()))
        for reveal in self.adapter.reveals(origin.spec, origin.handle, packet):
            self.revealed.append((client, origin.key, reveal))

    def _untyped(self, party: Party, error: Exception) -> None:
        party.refusals.append(type(error).__name__)
        lax = party.server and not party.honest
        if self.claims(Claim.TYPED_ERRORS) and not lax:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.faults.append(
                f"{party.name} raised {type(error).__name__}, which is none of the adapter's "
                f"errors (at {where.name})"
            )

    def run(
        self,
        server: Party,
        clients: Mapping[str, Party],
        *,
        drop: Mapping[str, int] | None = None,
        legs: int = 32,
        out: list[Packet] | None = None,
        before: Callable[[int, list[Packet]], None] | None = None,
        carry: Callable[[int, list[Packet]], list[Packet]] | None = None,
    ) -> list[Packet]:
        """Drive a round leg by leg: server packets out, answers in, the deadline if need be.

        Args:
            drop: {name: legs that it answers before it vanishes}.
            legs: stop after so many. out: the server's packets to go on from; starts it if None.
            before: called with the number of the leg and its packets, before they are delivered.
            carry: what arrives at the server of the answers of one leg; all of them by default.
        Returns:
            the server's packets that were not delivered yet.
        """
        gone = drop or {}
        waiting = self.start(server) if out is None else out
        for leg in range(legs):
            if before is not None:
                before(leg, waiting)
            answers = [
                answer
                for packet in waiting
                if packet.recipient in clients and leg < gone.get(packet.recipient, legs)
                for answer in self.deliver(clients[packet.recipient], packet)
            ]
            waiting = self.collect(server, answers if carry is None else carry(leg, answers))
            if self.finished(server) or not waiting:
                break
        return waiting

    def collect(self, server: Party, answers: Iterable[Packet]) -> list[Packet]:
        """Deliver ``answers`` and close the phase unless that completed it."""
        out = [packet for answer in answers for packet in self.deliver(server, answer)]
        if not out and not self.finished(server):
            out = self.close(server)
        return out


def spec_changes(spec: RoundSpec) -> dict[str, Any]:
    """The fields of ``spec`` that are not the defaults: all literals."""
    default = RoundSpec()
    pairs = ((each.name, getattr(spec, each.name)) for each in fields(RoundSpec))
    return {name: value for name, value in pairs if value != getattr(default, name)}


def replay(adapter: AggregationAdapter, spec: Mapping[str, Any], steps: Iterable[Step]) -> Scene:
    """Do ``steps`` again. A step whose party or packet no longer comes about is left out."""
    scene = Scene(adapter, RoundSpec(**spec))
    parties: dict[int, Party] = {}
    for verb, who, *values in steps:
        if verb == "server":
            parties[who] = scene.server(lax=values[1], **_full(values[0]))
        elif verb == "client":
            name, changes, vector, dtype, store, honest = values
            parties[who] = scene.client(
                name,
                vector=np.array(vector, dtype=dtype),
                store=store,
                honest=honest,
                **_full(changes),
            )
        elif who in parties:
            _again(scene, verb, parties[who], values, parties)
    return scene


def _full(changes: Mapping[str, Any]) -> dict[str, Any]:
    default = RoundSpec()
    return {each.name: getattr(default, each.name) for each in fields(RoundSpec)} | dict(changes)


def _again(
    scene: Scene, verb: str, party: Party, values: Sequence[Any], parties: Mapping[int, Party]
) -> None:
    if verb == "start":
        scene.start(party)
    elif verb == "close":
        scene.close(party)
    else:
        packet = _named(values[0], parties)
        if packet is not None:
            scene.deliver(party, packet)


def _named(name: tuple[Any, ...], parties: Mapping[int, Party]) -> Packet | None:
    if len(name) == 4:
        return Packet(*name)
    sender, recipient, place = name
    sent = parties[sender].sent if sender in parties else []
    return next(islice((p for p in sent if p.recipient == recipient), place, None), None)


def shrink(
    steps: Sequence[Step],
    still_fails: Callable[[Sequence[Step]], bool],
    *,
    tries: int = 80,
    seconds: float = 10.0,
) -> list[Step]:
    """Leave out what the finding does not need: halves first, single steps last.

    Args:
        still_fails: whether a list of steps shows the finding. tries: calls to it at most.
        seconds: no new try after so many.
    Returns:
        a list that still fails; ``steps`` itself if ``tries`` is 0.
    """
    kept, size = list(steps), max(1, len(steps) // 2)
    end = time.monotonic() + seconds
    while tries > 0:
        start = 0
        while start < len(kept) and tries > 0 and time.monotonic() < end:
            shorter = kept[:start] + kept[start + size :]
            tries -= 1
            if shorter and still_fails(shorter):
                kept = shorter
            else:
                start += size
        if size == 1 or time.monotonic() >= end:
            break
        size //= 2
    return kept
