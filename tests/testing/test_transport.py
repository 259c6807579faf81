"""A transport that keeps its promise passes; one that loses, mixes up or invents is named."""

from __future__ import annotations

import subprocess
import sys
import unittest
from collections import defaultdict, deque
from pathlib import Path

import pytest

from privfedrl.testing.adapter import Packet, RoundSpec, TransportAdapter
from privfedrl.testing.machine import aggregation_machine
from privfedrl.testing.network import Edit, Event, Fault, Run, Schedule
from privfedrl.testing.pairwise import PairwiseAdapter
from privfedrl.testing.replay import draw_vectors
from privfedrl.testing.transport import over_transport, play_over

EXAMPLES = Path(__file__).parents[2] / "examples"
ADAPTER = PairwiseAdapter()
SPEC = RoundSpec()
NAMES = ADAPTER.client_names(SPEC)


class Mailboxes(TransportAdapter):
    name = "mailboxes"

    def __init__(self) -> None:
        self.boxes: defaultdict[str, deque[Packet]] = defaultdict(deque)

    def send(self, packet: Packet) -> None:
        self.boxes[packet.recipient].append(packet)

    def receive(self, recipient: str, timeout_s: float) -> Packet | None:
        box = self.boxes[recipient]
        return box.popleft() if box else None

    def close(self) -> None:
        self.boxes.clear()

    def restart(self) -> None:
        self.boxes.clear()


class Lossy(Mailboxes):
    """Room for three packets, and nobody is told."""

    def send(self, packet: Packet) -> None:
        if len(self.boxes[packet.recipient]) < 3:
            super().send(packet)


class Corrupting(Mailboxes):
    def send(self, packet: Packet) -> None:
        data = Edit().apply(packet.data) if packet.kind == "masked" else packet.data
        super().send(Packet(packet.sender, packet.recipient, data, packet.kind))


class MixedUp(Mailboxes):
    """Everybody's mail in one box."""

    def receive(self, recipient: str, timeout_s: float) -> Packet | None:
        return next((box.popleft() for box in self.boxes.values() if box), None)


def carry(transport: TransportAdapter, *events: Event) -> Run:
    schedule = Schedule(events=events)
    vectors = draw_vectors(ADAPTER, SPEC)
    return play_over(ADAPTER, transport, SPEC, vectors, schedule, timeout_s=0.0)


@pytest.mark.parametrize(
    ("event", "lost"),
    [
        (Event(fault=Fault.DUPLICATE), 0),
        (Event(fault=Fault.REORDER, sender=NAMES[0]), 0),
        (Event(fault=Fault.DROP, kind="masked", sender=NAMES[0]), 1),
        (Event(fault=Fault.DELAY, kind="masked", sender=NAMES[0], argument=2), 1),
        (Event(fault=Fault.TAMPER, kind="masked", sender=NAMES[0]), 1),
        (Event(fault=Fault.RESTART, kind="shares", sender=NAMES[1]), 1),
    ],
)
def test_the_kits_own_faults_are_not_blamed_on_the_transport(event: Event, lost: int) -> None:
    run = carry(Mailboxes(), event)
    assert not run.findings
    assert run.aggregate is not None
    assert len(run.aggregate.survivors) == len(NAMES) - lost
    assert NAMES[0] in run.harmed or not lost


@pytest.mark.parametrize(
    ("transport", "what"),
    [
        (Lossy(), "the transport lost 1 copies"),
        (Corrupting(), "the transport gave bytes that nobody sent"),
        (MixedUp(), "the transport gave a packet to another party"),
    ],
)
def test_a_bad_transport_is_named(transport: TransportAdapter, what: str) -> None:
    run = carry(transport)
    assert what in {finding.what for finding in run.findings}
    assert {finding.party for finding in run.findings} == {"mailboxes"}


@pytest.mark.parametrize(("transport", "holds"), [(Mailboxes(), True), (Corrupting(), False)])
def test_the_machine_runs_over_a_transport(transport: TransportAdapter, holds: bool) -> None:
    carried = over_transport(ADAPTER, transport, timeout_s=0.0)
    assert carried.name == "privfedrl pairwise masking over mailboxes"
    case = aggregation_machine(carried, "transport-only", shrinking=False)
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert result.wasSuccessful() is holds


@pytest.mark.parametrize(
    "script",
    [
        "kit_in_memory_queue.py",
        pytest.param("kit_http_transport.py", marks=pytest.mark.slow),
    ],
)
def test_the_worked_examples_run(script: str) -> None:
    command = [sys.executable, str(EXAMPLES / script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 in the sum" in done.stdout
