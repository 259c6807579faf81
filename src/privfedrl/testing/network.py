"""Rounds over a simulated network, by rules: what is lost, repeated, late, changed or restarted.

Guarantee: whatever a rule does is a step of the network, so a run by rules can be replayed packet
by packet from what the network wrote down (``Run.schedule``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Final

from privfedrl.testing.adapter import AggregationAdapter, RingVector, RoundSpec, Store
from privfedrl.testing.run import Finding, Knowledge, Refusal, Run, Sent
from privfedrl.testing.schedule import Action, Edit, EditKind, Event, Fault, Schedule, Step
from privfedrl.testing.simulated import SimulatedNetwork

__all__ = [
    "Action",
    "Edit",
    "EditKind",
    "Event",
    "Fault",
    "Finding",
    "Knowledge",
    "Refusal",
    "Run",
    "Schedule",
    "Sent",
    "SimulatedNetwork",
    "Step",
    "play",
    "play_round",
]

_MAX_EXCHANGES: Final = 64
"""A protocol with more stages than this is taken for one that does not end."""


def play(
    adapter: AggregationAdapter,
    spec: RoundSpec,
    vectors: Mapping[str, RingVector],
    schedule: Schedule | None = None,
    stores: MutableMapping[str, Store] | None = None,
    *,
    specs: Mapping[str, RoundSpec] | None = None,
    earlier: Sequence[Run] = (),
) -> Run:
    """Play one round (or the rounds that ``schedule.steps`` opens) and return the last.

    Args:
        vectors: per client its input.
        schedule: nothing goes wrong if absent.
        stores: per client what it keeps on disk, for rounds that follow each other.
        specs: parties that are told another spec than ``spec``.
        earlier: runs whose packets REPLAY may use, the oldest first.
    """
    network = SimulatedNetwork(adapter, spec, vectors, stores=stores, specs=specs)
    for run in earlier:
        for sent in run.packets:
            network.sent.append(replace(sent, number=len(network.sent), views=frozenset({0})))
    return play_round(network, schedule or Schedule())


def play_round(network: SimulatedNetwork, schedule: Schedule) -> Run:
    """The same as :func:`play`, on a network that may have rounds behind it already."""
    if not schedule.steps or schedule.steps[0].action is not Action.OPEN:
        network.open()
    for step in schedule.steps:
        network.do(step)
    _Rules(network, schedule).run()
    run = network.finish()
    run.schedule = network.schedule()
    return run


class _Rules:
    """The events of a schedule, applied to each packet when its turn comes."""

    def __init__(self, network: SimulatedNetwork, schedule: Schedule) -> None:
        self._network = network
        self._schedule = schedule
        self._kept = dict(schedule.kept)
        self._rank = {name: rank for rank, name in enumerate(schedule.order)}
        self._arrived: Counter[str] = Counter()
        self._delay: dict[int, int] = {}
        self._judged: set[int] = set()
        self._again: list[int] = []

    def run(self) -> None:
        """Exchange after exchange, until the first server has ended."""
        network, server = self._network, self._network.adapter.server
        for _ in range(_MAX_EXCHANGES):
            if network.finished():
                return
            before = network.stage
            again, self._again = self._again, []
            for number in again:
                network.deliver(number)
            self._exchange(lambda recipient: recipient != server)
            self._exchange(lambda recipient: recipient == server)
            if network.stage == before:
                self._close()
            self._delay = {number: left - 1 for number, left in self._delay.items() if left > 1}

    def _close(self) -> None:
        for view in range(self._network.num_views):
            self._network.do(Step(action=Action.CLOSE, argument=view))

    def _exchange(self, wanted: Callable[[str], bool]) -> None:
        batch = [
            number
            for number in self._network.deliverable
            if wanted(self._network.sent[number].packet.recipient)
        ]
        last = len(self._rank)
        batch.sort(key=lambda n: self._rank.get(self._network.sent[n].packet.sender, last))
        batch.sort(key=lambda n: bool(self._matching(n, Fault.REORDER)))
        for number in batch:
            self._judge(number)

    def _judge(self, number: int) -> None:
        """Do to one packet what the rules say, once."""
        network = self._network
        if number in self._delay:
            return
        if number in self._judged:
            network.deliver(number)
            return
        self._judged.add(number)
        if self._is_lost(number):
            network.do(Step(action=Action.DROP, packet=number))
            return
        for event in self._matching(number, Fault.DELAY):
            self._delay[number] = max(1, event.argument)
            return
        for event in self._matching(number, Fault.REPLAY):
            self._replay(number, event.argument)
        tampering = self._matching(number, Fault.TAMPER)
        for event in tampering:
            network.do(Step(action=Action.TAMPER, packet=number, edit=event.edit))
        if tampering:
            network.do(Step(action=Action.DROP, packet=number))
            return
        self._restart(number, late=False)
        network.deliver(number)
        self._restart(number, late=True)
        for event in self._matching(number, Fault.DUPLICATE):
            for _ in range(max(1, event.argument)):
                network.deliver(number)

    def _is_lost(self, number: int) -> bool:
        sender = self._network.sent[number].packet.sender
        self._arrived[sender] += 1
        cut = sender in self._kept and self._arrived[sender] > self._kept[sender]
        return cut or bool(self._matching(number, Fault.DROP))

    def _restart(self, number: int, *, late: bool) -> None:
        name = self._network.sent[number].packet.recipient
        if any(bool(event.argument) is late for event in self._matching(number, Fault.RESTART)):
            self._network.do(Step(action=Action.RESTART, name=name))

    def _replay(self, number: int, rounds_back: int) -> None:
        if rounds_back == 0:
            self._again.append(number)
            return
        sent = self._network.sent[number]
        for old in self._network.sent:
            same = (old.packet.kind, old.packet.sender, old.packet.recipient) == (
                sent.packet.kind,
                sent.packet.sender,
                sent.packet.recipient,
            )
            if same and old.round == sent.round - rounds_back:
                self._network.deliver(old.number)

    def _matching(self, number: int, fault: Fault) -> list[Event]:
        packet = self._network.sent[number].packet
        return [
            event
            for event in self._schedule.events
            if event.fault is fault and event.matches(packet)
        ]
