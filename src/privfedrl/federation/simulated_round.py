"""One round in one process: real agents, real bytes, scheduled dropouts, no network.

Guarantee: the agents and the coordinator here are the ones that a deployment embeds; this module
only carries their bytes and drops those of agents that the public schedule takes away.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from privfedrl.errors import ProtocolError
from privfedrl.federation.agent import Agent
from privfedrl.federation.coordinator import Coordinator
from privfedrl.federation.fleet_experience import generator
from privfedrl.federation.trustee import SumAuditor, Trustee
from privfedrl.parties import Outgoing
from privfedrl.primitives.random import DeterministicEntropy, Entropy

__all__ = [
    "DROPOUT_STAGES",
    "ReplayedEntropy",
    "Service",
    "StageClock",
    "Traffic",
    "dropout_schedule",
    "run_round",
]

# an agent that drops at stage i never handles the i-th message that reaches it, nor any later one;
# under encryption it gets four (config, context, roster, receipt): its vector leaves at the third
# as well, so the same schedule leaves the same survivors
DROPOUT_STAGES = ("advertise", "shares", "masked", "consistency", "unmask")


class ReplayedEntropy:
    """Entropy of an agent in a test: a stream of its own for every attempt. Never for real noise.

    Without this, a resumed run or one without protection would draw other bytes than the run that
    it is compared with.
    """

    is_deterministic = True

    def __init__(self) -> None:
        self.stream: Entropy = DeterministicEntropy(b"")

    def __call__(self, n: int) -> bytes:
        return self.stream(n)


Service = Trustee | SumAuditor


@dataclass(slots=True)
class Traffic:
    """Bytes that each agent sent and received in one round; sizes are public."""

    up: dict[str, int] = field(default_factory=dict)
    down: dict[str, int] = field(default_factory=dict)


class StageClock:
    """Wall seconds of a round by stage; stages do not nest."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to ``name``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def total(self) -> float:
        """Seconds of all stages together."""
        return sum(self.seconds.values())


def dropout_schedule(
    names: Sequence[str], *, dropouts: int, seed: int, round_index: int, attempt: int
) -> dict[str, int]:
    """Which agents vanish in which stage: a public function of the seed, never of data.

    Returns:
        name -> index into DROPOUT_STAGES, for ``dropouts`` distinct agents.
    """
    rng = generator(seed, "dropouts", round_index, attempt)
    chosen = rng.choice(len(names), size=dropouts, replace=False)
    stages = rng.integers(len(DROPOUT_STAGES), size=dropouts)
    return {names[int(k)]: int(stage) for k, stage in zip(chosen, stages, strict=True)}


def run_round(
    coordinator: Coordinator,
    agents: Mapping[str, Agent],
    services: Mapping[str, Service],
    invitations: Sequence[Outgoing],
    dropouts: Mapping[str, int],
    clock: StageClock,
) -> Traffic:
    """Carry messages until the coordinator is finished: with a result, or aborted.

    An agent that refuses what it receives is a dropout from then on, as it would be on a network;
    so is a key authority or an auditor, and then the coordinator gives the round up.
    """
    traffic = Traffic()
    handled = dict.fromkeys(agents, 0)
    gone: set[str] = set()
    inbox: deque[bytes] = deque()

    def serve(name: str, data: bytes) -> None:
        with clock.stage("secure aggregation"), contextlib.suppress(ProtocolError):
            inbox.extend(answer.data for answer in services[name].receive(data))

    def deliver(messages: Sequence[Outgoing], *, opening: bool = False) -> None:
        for message in messages:
            name = message.recipient
            if name in services:
                serve(name, message.data)
                continue
            traffic.down[name] = traffic.down.get(name, 0) + len(message.data)
            if name in gone or dropouts.get(name) == handled[name]:
                gone.add(name)
                continue
            handled[name] += 1
            act = agents[name].start if opening else agents[name].receive
            try:
                with clock.stage("training and encoding" if opening else "secure aggregation"):
                    answers = act(message.data)
            except ProtocolError:
                gone.add(name)
                continue
            for answer in answers:
                traffic.up[name] = traffic.up.get(name, 0) + len(answer.data)
                inbox.append(answer.data)

    try:
        deliver(invitations, opening=True)
        while not coordinator.finished:
            with clock.stage("secure aggregation"):
                step = coordinator.receive(inbox.popleft()) if inbox else coordinator.close_phase()
            deliver(step)
    finally:
        for participant in (*agents.values(), *services.values()):
            participant.abandon()  # whoever still waits would refuse the next attempt
    return traffic
