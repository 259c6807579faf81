"""A transport under test: every packet of a round goes through it, the kit's faults around it.

Guarantee: a packet that was sent once is handed over unchanged to the party that it names, or its
loss is reported; what the kit itself lost, changed or repeated is never blamed on the transport.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from privfedrl.testing.adapter import (
    AggregationAdapter,
    Packet,
    RingVector,
    RoundSpec,
    Store,
    TransportAdapter,
)
from privfedrl.testing.network import (
    Action,
    Edit,
    Event,
    Fault,
    Finding,
    Run,
    Schedule,
    SimulatedNetwork,
    Step,
)

__all__ = ["over_transport", "play_over"]

_MAX_EXCHANGES = 64


def over_transport(
    adapter: AggregationAdapter, transport: TransportAdapter, *, timeout_s: float = 1.0
) -> AggregationAdapter:
    """``adapter`` with a wire: machines, attacks and suites then run over ``transport``.

    One packet is under way at a time. A packet that does not arrive within ``timeout_s`` is lost,
    which breaks I1 or I11, since the network had not lost it.
    """

    class Carried(type(adapter)):  # type: ignore[misc] # the class is known only here
        name = f"{adapter.name} over {transport.name}"

        def __init__(self) -> None:
            self.__dict__.update(vars(adapter))

        def deliver(self, party: Any, packet: Packet) -> list[Packet]:
            transport.send(packet)
            out: list[Packet] = []
            wait = timeout_s
            while (arrived := transport.receive(packet.recipient, wait)) is not None:
                out += adapter.deliver(party, arrived)
                wait = 0.0
            return out

    carried: AggregationAdapter = Carried()
    return carried


def play_over(
    adapter: AggregationAdapter,
    transport: TransportAdapter,
    spec: RoundSpec,
    vectors: Mapping[str, RingVector],
    schedule: Schedule | None = None,
    stores: MutableMapping[str, Store] | None = None,
    *,
    timeout_s: float = 1.0,
) -> Run:
    """One round in which all packets of an exchange are under way at once.

    Args:
        schedule: its events DROP, DUPLICATE, REORDER, DELAY, TAMPER and RESTART are done to what
            the transport is given; RESTART restarts the transport, which may then lose what it
            holds but must work again.
        timeout_s: how long to wait for a packet that must arrive.
    Returns:
        The run. Its findings name every packet that the transport lost, changed or invented.
    """
    network = SimulatedNetwork(adapter, spec, vectors, stores=stores)
    network.open()
    carrier = _Carrier(network, transport, (schedule or Schedule()).events, timeout_s)
    for _ in range(_MAX_EXCHANGES):
        if network.finished():
            break
        stage = network.stage
        carrier.exchange(to_server=False)
        carrier.exchange(to_server=True)
        if network.stage == stage:
            network.do(Step(action=Action.CLOSE))
    run = network.finish()
    run.schedule = network.schedule()
    return run


class _Carrier:
    """Puts packets into the transport and hands over what comes out."""

    def __init__(
        self,
        network: SimulatedNetwork,
        transport: TransportAdapter,
        events: tuple[Event, ...],
        timeout_s: float,
    ) -> None:
        self._network = network
        self._transport = transport
        self._events = events
        self._timeout_s = timeout_s
        self._delay: dict[int, int] = {}
        self._seen: set[int] = set()
        # what was given to the transport: copies still to come, by content
        self._owed: dict[Packet, list[tuple[int, Edit | None]]] = {}
        self._forgiven = False

    def exchange(self, *, to_server: bool) -> None:
        """Send everything that goes one way, then receive it."""
        server, network = self._network.adapter.server, self._network
        batch = [n for n in network.deliverable if self._to(n) == server] if to_server else []
        batch = batch or [n for n in network.deliverable if self._to(n) != server and not to_server]
        batch.sort(key=lambda number: bool(self._matching(number, Fault.REORDER)))
        for number in batch:
            self._send(number)
        for recipient in dict.fromkeys(self._to(number) for number in batch):
            self._receive(recipient)
        self._settle()

    def _to(self, number: int) -> str:
        return self._network.sent[number].packet.recipient

    def _send(self, number: int) -> None:
        if self._is_held_back(number):
            return
        self._seen.add(number)
        if self._matching(number, Fault.DROP):
            self._network.do(Step(action=Action.DROP, packet=number))
            return
        if self._matching(number, Fault.RESTART):
            self._transport.restart()
            self._forgiven = True
        tampering = self._matching(number, Fault.TAMPER)
        for event in tampering[:1]:
            self._put(number, event.edit)
        if not tampering:
            copies = 1 + sum(max(1, e.argument) for e in self._matching(number, Fault.DUPLICATE))
            for _ in range(copies):
                self._put(number, None)

    def _is_held_back(self, number: int) -> bool:
        if number not in self._seen:
            for event in self._matching(number, Fault.DELAY):
                self._seen.add(number)
                self._delay[number] = max(1, event.argument)
        left = self._delay.pop(number, 0)
        if left:
            self._delay[number] = left - 1
        return left > 0

    def _put(self, number: int, edit: Edit | None) -> None:
        packet = self._network.sent[number].packet
        if edit is not None:
            packet = Packet(packet.sender, packet.recipient, edit.apply(packet.data), packet.kind)
        self._owed.setdefault(packet, []).append((number, edit))
        self._transport.send(packet)

    def _receive(self, recipient: str) -> None:
        while True:
            awaited = any(packet.recipient == recipient for packet in self._owed)
            wait = self._timeout_s if awaited and not self._forgiven else 0.05 * awaited
            packet = self._transport.receive(recipient, wait)
            if packet is None:
                return
            self._hand_over(recipient, packet)

    def _hand_over(self, recipient: str, packet: Packet) -> None:
        owed = self._owed.get(packet, [])
        if packet.recipient != recipient or not owed:
            what = "gave a packet to another party" if owed else "gave bytes that nobody sent"
            self._blame(what, packet)
            return
        number, edit = owed.pop(0)
        if not owed:
            del self._owed[packet]
        if edit is None:
            self._network.deliver(number)
        else:
            self._network.do(Step(action=Action.TAMPER, packet=number, edit=edit))
            self._network.do(Step(action=Action.DROP, packet=number))

    def _settle(self) -> None:
        """What did not come out is lost."""
        for packet, owed in self._owed.items():
            if not self._forgiven:
                self._blame(f"lost {len(owed)} copies", packet)
            for number, _ in owed:
                if number in self._network.in_flight:
                    self._network.do(Step(action=Action.DROP, packet=number))
        self._owed.clear()
        self._forgiven = False

    def _blame(self, what: str, packet: Packet) -> None:
        self._network.run.findings.append(
            Finding(party=self._transport.name, what=f"the transport {what}", packet=packet)
        )

    def _matching(self, number: int, fault: Fault) -> list[Event]:
        packet = self._network.sent[number].packet
        return [event for event in self._events if event.fault is fault and event.matches(packet)]
