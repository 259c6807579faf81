"""The kit on a transport of your own: queues in memory.

    python examples/kit_in_memory_queue.py

Reads top to bottom: the transport, a round over it, rounds in which the kit breaks the wire on
purpose, and the state machine. Replace QueueTransport with yours; and where the protocol is not
ours either, PairwiseAdapter with an AggregationAdapter of yours. Takes a few seconds.
"""

from __future__ import annotations

import sys
import unittest
from collections import defaultdict
from queue import Empty, Queue

from privfedrl.testing import (
    Edit,
    Event,
    Fault,
    Packet,
    PairwiseAdapter,
    RoundSpec,
    Schedule,
    TransportAdapter,
    aggregation_machine,
    draw_vectors,
    over_transport,
    play_over,
)

# --- 1. The transport: four methods ---------------------------------------------------------------


class QueueTransport(TransportAdapter):
    """One queue per recipient; everything is lost with the process."""

    name = "in-memory queue"

    def __init__(self) -> None:
        self._queues: defaultdict[str, Queue[Packet]] = defaultdict(Queue)

    def send(self, packet: Packet) -> None:
        self._queues[packet.recipient].put(packet)

    def receive(self, recipient: str, timeout_s: float) -> Packet | None:
        try:
            return self._queues[recipient].get(block=timeout_s > 0, timeout=timeout_s or None)
        except Empty:
            return None

    def close(self) -> None:
        self._queues.clear()

    def restart(self) -> None:
        self._queues.clear()


# --- 2. What the kit does to the wire -------------------------------------------------------------

FAULTS = {
    "nothing": Schedule(),
    "everything arrives twice": Schedule(events=(Event(fault=Fault.DUPLICATE),)),
    "one client is late": Schedule(
        events=(Event(fault=Fault.DELAY, kind="masked", sender="client-002"),)
    ),
    "one vector is changed": Schedule(
        events=(Event(fault=Fault.TAMPER, kind="masked", sender="client-003", edit=Edit()),)
    ),
    "the transport restarts": Schedule(
        events=(Event(fault=Fault.RESTART, kind="shares", sender="client-002"),)
    ),
}


def play_all(spec: RoundSpec) -> bool:
    """One round per row; either an exact sum or a typed abort, and nothing lost on the way."""
    adapter, transport = PairwiseAdapter(), QueueTransport()
    vectors = draw_vectors(adapter, spec)
    well = True
    for title, schedule in FAULTS.items():
        run = play_over(adapter, transport, spec, vectors, schedule)
        outcome = f"{len(run.aggregate.survivors)} in the sum" if run.aggregate else str(run.error)
        print(f"{title:26} {outcome}")
        for finding in run.findings:
            print(f"    {finding.party}: {finding.what}")
        well = well and not run.findings and (run.aggregate is not None or run.error is not None)
    transport.close()
    return well


# --- 3. The same transport under the state machine ------------------------------------------------


class TestQueueTransport(
    aggregation_machine(  # type: ignore[misc] # a class made for this adapter
        over_transport(PairwiseAdapter(), QueueTransport()), "transport-only"
    )
):
    """pytest and unittest collect this class; thorough=True makes it minutes instead of seconds."""


def main() -> int:
    """0 if nothing broke."""
    well = play_all(RoundSpec(num_clients=6, vector_length=8))
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(TestQueueTransport)
    verdict = unittest.TextTestRunner(stream=sys.stderr).run(suite)
    return 0 if well and verdict.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
