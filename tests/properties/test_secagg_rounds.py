"""Properties of whole rounds: the exact sum over the agreed survivors, or a typed abort."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.errors import ProtocolError, RoundAborted
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.secagg import (
    ClientPhase,
    Identity,
    MemoryJournal,
    Registry,
    SecAggClient,
    SecAggParameters,
    SecAggServer,
    ServerPhase,
    Transcript,
    ideal_sum,
)

PLAN, MODEL, TASK = b"p" * 32, b"m" * 32, b"t" * 32
N = 6
NAMES = tuple(f"a{index}" for index in range(N))
KEYS = DeterministicEntropy(b"property identities")
AGENTS = {name: Identity.generate(name, KEYS) for name in NAMES}
COORDINATOR = Identity.generate("coordinator", KEYS)
REGISTRY = Registry(
    [*(agent.entry("agent") for agent in AGENTS.values()), COORDINATOR.entry("coordinator")]
)
STAGES = 5


@dataclass
class Wire:
    """What the network does: who is cut after how many messages, in which order replies arrive,
    and which bit of which message is flipped."""

    kept: dict[str, int] = field(default_factory=dict)
    order: tuple[int, ...] = tuple(range(N))
    flip: tuple[str, int, int, bool] | None = None  # name, stage, position, towards the client
    flipped: bool = False

    def carry(self, name: str, stage: int, data: bytes, *, down: bool) -> bytes:
        if self.flip is None or (name, stage, down) != (self.flip[0], self.flip[1], self.flip[3]):
            return data
        self.flipped = True
        position = self.flip[2] % (8 * len(data))
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        return bytes(changed)


@dataclass
class Outcome:
    server: SecAggServer
    clients: dict[str, SecAggClient]
    arrived: list[set[str]]


def play(
    parameters: SecAggParameters, vectors: dict[str, Any], wire: Wire, seed: bytes = b"s"
) -> Outcome:
    entropy = DeterministicEntropy(seed)
    server = SecAggServer(
        identity=COORDINATOR, registry=REGISTRY, parameters=parameters, plan_digest=PLAN
    )
    clients = {
        name: SecAggClient(
            identity=AGENTS[name],
            registry=REGISTRY,
            parameters=parameters,
            plan_digest=PLAN,
            journal=MemoryJournal(),
            entropy=entropy.fork(name.encode()),
        )
        for name in NAMES
    }
    out = server.start(TASK, 1, 0, MODEL, bytes(32), b"r" * 32)
    arrived: list[set[str]] = []
    stage = 0
    while not server.finished:
        phase, replies = server.phase, []
        for message in out:
            name, client = message.recipient, clients[message.recipient]
            data = wire.carry(name, stage, message.data, down=True)
            try:
                if client.phase is ClientPhase.IDLE:
                    given = client.start(data, vectors[name], model_digest=MODEL)
                else:
                    given = client.receive(data)
            except ProtocolError:
                continue
            if stage < wire.kept.get(name, STAGES):
                replies += [(name, reply.data) for reply in given]
        replies.sort(key=lambda item: wire.order[NAMES.index(item[0])])
        out, accepted = [], set()
        for name, data in replies:
            try:
                out += server.receive(wire.carry(name, stage, data, down=False))
                accepted.add(name)
            except ProtocolError:
                continue
        arrived.append(accepted)
        if server.phase is phase:
            out = server.close_phase()
        stage += 1
    return Outcome(server, clients, arrived)


def parameters(length: int = 3, ring_bits: int = 32) -> SecAggParameters:
    return SecAggParameters(
        num_clients=N,
        max_colluding=1,
        vector_length=length,
        ring_bits=ring_bits,
        min_clients=4,
        min_honest=3,
    )


def draw_vectors(length: int, ring_bits: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    dtype = f"uint{ring_bits}"
    return {name: rng.integers(0, 2**ring_bits, length, dtype=dtype) for name in NAMES}


@settings(max_examples=120, deadline=None)
@given(
    kept=st.fixed_dictionaries({name: st.integers(0, STAGES + 3) for name in NAMES}),
    order=st.permutations(range(N)),
    length=st.integers(1, 20),
    ring_bits=st.sampled_from([32, 64]),
    seed=st.integers(0, 1000),
)
def test_the_sum_is_exact_for_every_dropout_schedule_or_there_is_none(
    kept: dict[str, int], order: list[int], length: int, ring_bits: int, seed: int
) -> None:
    chosen = parameters(length, ring_bits)
    vectors = draw_vectors(length, ring_bits, seed)
    outcome = play(chosen, vectors, Wire(kept=kept, order=tuple(order)))
    answered = [sum(kept[name] > stage for name in NAMES) for stage in range(STAGES)]
    if min(answered) >= chosen.threshold:
        result = outcome.server.result()
        survivors = tuple(name for name in NAMES if kept[name] > 2)
        assert result.survivors == survivors
        assert (result.vector == ideal_sum(vectors, survivors, ring_bits=ring_bits)).all()
    else:
        assert outcome.server.phase is ServerPhase.ABORTED
        with pytest.raises(RoundAborted) as caught:
            outcome.server.result()
        assert caught.value.code in ("ThresholdNotMet", "CohortTooSmall")


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    stage=st.integers(0, STAGES - 1),
    position=st.integers(0, 8 * 4096),
    down=st.booleans(),
)
def test_one_flipped_bit_anywhere_never_gives_a_wrong_sum(
    name: str, stage: int, position: int, down: bool
) -> None:
    chosen = parameters()
    vectors = draw_vectors(3, 32, 5)
    wire = Wire(flip=(name, stage, position, down))
    outcome = play(chosen, vectors, wire)
    assert wire.flipped
    result = outcome.server.result()  # one client lost is within the threshold
    assert (result.vector == ideal_sum(vectors, result.survivors, ring_bits=32)).all()
    assert len(result.survivors) >= N - 1
    assert name not in outcome.arrived[stage]


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(N)), late=st.sampled_from(NAMES))
def test_the_order_of_arrival_does_not_change_the_transcript(order: list[int], late: str) -> None:
    vectors = draw_vectors(3, 32, 1)
    transcripts = [
        Transcript.sign(
            play(parameters(), vectors, Wire(kept={late: 2}, order=arrival)).server.result().record,
            identity=COORDINATOR,
            ledger_head=bytes(32),
        ).to_bytes()
        for arrival in (tuple(range(N)), tuple(order))
    ]
    assert transcripts[0] == transcripts[1]


def test_same_seeds_give_the_same_transcript_and_other_seeds_another() -> None:
    vectors = draw_vectors(3, 32, 1)
    records = [
        play(parameters(), vectors, Wire(), seed).server.result().record
        for seed in (b"one", b"one", b"two")
    ]
    assert records[0] == records[1]
    assert records[0] != records[2]
    assert records[0].sum_digest == records[2].sum_digest  # the same config and the same sum
