"""Properties of whole rounds: the exact sum over the agreed survivors, or a typed abort."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from privfedrl.errors import ProtocolError, RoundAborted
from privfedrl.parties import Identity, MemoryJournal, Registry
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.secagg import (
    ClientPhase,
    SecAggClient,
    SecAggParameters,
    SecAggServer,
    ServerPhase,
    SparseGraph,
    Transcript,
    ideal_sum,
)
from privfedrl.secagg.messages import encode_frame, peek
from privfedrl.secagg.sizes import MessageType

PLAN, MODEL, TASK = b"p" * 32, b"m" * 32, b"t" * 32
NOW = 1_800_000_000
KEYS = DeterministicEntropy(b"property identities")
COORDINATOR = Identity.generate("coordinator", KEYS)
EVERY = {name: Identity.generate(name, KEYS) for name in (f"a{index:02d}" for index in range(20))}
STAGES = 5
EXAMPLES = settings.default.max_examples  # of the profile, see tests/conftest.py


@dataclass(frozen=True)
class Fleet:
    """The first n agents, on the complete graph or on a sparse one."""

    n: int
    graph: SparseGraph | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(EVERY)[: self.n]

    @property
    def registry(self) -> Registry:
        agents = (EVERY[name].entry("agent") for name in self.names)
        return Registry([*agents, COORDINATOR.entry("coordinator")])

    def parameters(self, length: int = 3, ring_bits: int = 32) -> SecAggParameters:
        return SecAggParameters(
            num_clients=self.n,
            max_colluding=1,
            vector_length=length,
            ring_bits=ring_bits,
            min_clients=4 if self.graph is None else 14,
            min_honest=3,
            graph=self.graph,
        )

    def vectors(self, length: int, ring_bits: int, seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        dtype = f"uint{ring_bits}"
        return {name: rng.integers(0, 2**ring_bits, length, dtype=dtype) for name in self.names}


COMPLETE = Fleet(6)
SPARSE = Fleet(20, SparseGraph(max_dropouts=3, security_bits=8, correctness_bits=8))
N, NAMES = COMPLETE.n, COMPLETE.names


@dataclass
class Wire:
    """What the network does: who is cut after how many messages, in which order replies arrive,
    which bit of which message is flipped, and what a client signs instead of the honest frame."""

    kept: dict[str, int] = field(default_factory=dict)
    order: tuple[int, ...] = tuple(range(20))
    flip: tuple[str, int, int, bool] | None = None  # name, stage, position, towards the client
    flipped: bool = False
    lie: Callable[[str, int, bytes], bytes] = lambda name, stage, data: data  # of a client

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
    """What is left after a round: the frames from and to each client, the shares it held."""

    server: SecAggServer
    clients: dict[str, SecAggClient]
    arrived: list[set[str]]
    frames: dict[str, list[bytes]]
    shown: dict[str, list[bytes]]
    held: dict[str, dict[str, tuple[bytes, bytes]]]


def new_client(
    fleet: Fleet, parameters: SecAggParameters, name: str, seed: bytes = b"s"
) -> SecAggClient:
    """The client that draws the same keys whenever it is made anew."""
    return SecAggClient(
        identity=EVERY[name],
        registry=fleet.registry,
        parameters=parameters,
        plan_digest=PLAN,
        journal=MemoryJournal(),
        entropy=DeterministicEntropy(seed).fork(name.encode()),
        clock=lambda: NOW,
    )


def play(
    fleet: Fleet,
    parameters: SecAggParameters,
    vectors: dict[str, Any],
    wire: Wire,
    seed: bytes = b"s",
) -> Outcome:
    server = SecAggServer(
        identity=COORDINATOR,
        registry=fleet.registry,
        parameters=parameters,
        plan_digest=PLAN,
        clock=lambda: NOW,
    )
    clients = {name: new_client(fleet, parameters, name, seed) for name in fleet.names}
    frames: dict[str, list[bytes]] = {name: [] for name in fleet.names}
    shown: dict[str, list[bytes]] = {name: [] for name in fleet.names}
    held: dict[str, dict[str, tuple[bytes, bytes]]] = {}
    out = server.start(TASK, 1, 0, MODEL, bytes(32), b"r" * 32)
    arrived: list[set[str]] = []
    stage = 0
    while not server.finished:
        phase, replies = server.phase, []
        for message in out:
            name, client = message.recipient, clients[message.recipient]
            data = wire.carry(name, stage, message.data, down=True)
            if client.phase is ClientPhase.AGREED:
                held[name] = dict(client._held_shares)
            try:
                if client.phase is ClientPhase.IDLE:
                    given = client.start(data, vectors[name], model_digest=MODEL)
                else:
                    given = client.receive(data)
            except ProtocolError:
                continue
            shown[name].append(data)
            frames[name] += [reply.data for reply in given]
            if stage < wire.kept.get(name, STAGES):
                replies += [(name, wire.lie(name, stage, reply.data)) for reply in given]
        replies.sort(key=lambda item: wire.order[fleet.names.index(item[0])])
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
    return Outcome(server, clients, arrived, frames, shown, held)


@settings(max_examples=EXAMPLES * 6 // 5)
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
    chosen = COMPLETE.parameters(length, ring_bits)
    vectors = COMPLETE.vectors(length, ring_bits, seed)
    outcome = play(COMPLETE, chosen, vectors, Wire(kept=kept, order=tuple(order)))
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


@settings(max_examples=EXAMPLES // 4)
@given(
    kept=st.dictionaries(st.sampled_from(SPARSE.names), st.integers(0, STAGES - 1), max_size=7),
    order=st.permutations(range(SPARSE.n)),
    ring_bits=st.sampled_from([32, 64]),
    seed=st.integers(0, 1000),
)
def test_a_sparse_sum_is_exact_for_every_dropout_schedule_or_there_is_none(
    kept: dict[str, int], order: list[int], ring_bits: int, seed: int
) -> None:
    """At most three of a roster may leave before the sum: then it is always opened, for a
    neighbourhood that has lost three still has its threshold."""
    chosen = SPARSE.parameters(3, ring_bits)
    vectors = SPARSE.vectors(3, ring_bits, seed)
    outcome = play(SPARSE, chosen, vectors, Wire(kept=kept, order=tuple(order)))
    roster = [name for name in SPARSE.names if kept.get(name, STAGES) > 0]
    lost = sum(name in kept for name in roster)
    survivors = tuple(name for name in roster if kept.get(name, STAGES) > 2)
    if outcome.server.phase is ServerPhase.DONE:
        result = outcome.server.result()
        assert result.survivors == survivors
        assert len(survivors) >= len(roster) - 3 >= chosen.min_clients
        assert (result.vector == ideal_sum(vectors, survivors, ring_bits=ring_bits)).all()
        return
    with pytest.raises(RoundAborted) as caught:
        outcome.server.result()
    assert caught.value.code in ("ThresholdNotMet", "CohortTooSmall")
    assert lost > 3 or len(roster) < chosen.floor


FLIPS = st.tuples(
    st.integers(0, 99), st.integers(0, STAGES - 1), st.integers(0, 8 * 8192), st.booleans()
)


@pytest.mark.parametrize(("fleet", "share"), [(COMPLETE, 1.5), (SPARSE, 0.2)])
def test_one_flipped_bit_anywhere_never_gives_a_wrong_sum(fleet: Fleet, share: float) -> None:
    chosen, vectors = fleet.parameters(), fleet.vectors(3, 32, 5)

    @settings(max_examples=int(EXAMPLES * share))
    @given(flip=FLIPS)
    def holds(flip: tuple[int, int, int, bool]) -> None:
        name, stage = fleet.names[flip[0] % fleet.n], flip[1]
        wire = Wire(flip=(name, *flip[1:]))
        outcome = play(fleet, chosen, vectors, wire)
        assert wire.flipped
        result = outcome.server.result()  # one client lost is within the threshold
        assert (result.vector == ideal_sum(vectors, result.survivors, ring_bits=32)).all()
        assert len(result.survivors) >= fleet.n - 1
        assert name not in outcome.arrived[stage]

    holds()


@pytest.mark.parametrize(("fleet", "share"), [(COMPLETE, 0.25), (SPARSE, 0.05)])
def test_the_order_of_arrival_does_not_change_the_transcript(fleet: Fleet, share: float) -> None:
    vectors, chosen = fleet.vectors(3, 32, 1), fleet.parameters()

    def transcript(late: str, order: tuple[int, ...]) -> bytes:
        outcome = play(fleet, chosen, vectors, Wire(kept={late: 2}, order=order))
        record = outcome.server.result().record
        signed = Transcript.sign(record, identity=COORDINATOR, ledger_head=bytes(32))
        signed.verify(fleet.registry)
        return signed.to_bytes()

    @settings(max_examples=int(EXAMPLES * share))
    @given(order=st.permutations(range(fleet.n)), late=st.sampled_from(fleet.names))
    def holds(order: list[int], late: str) -> None:
        assert transcript(late, tuple(range(fleet.n))) == transcript(late, tuple(order))

    holds()


@pytest.mark.parametrize(("fleet", "share"), [(COMPLETE, 0.4), (SPARSE, 0.1)])
def test_both_shares_of_a_peer_never_leave_one_client(fleet: Fleet, share: float) -> None:
    """Whoever drops out, whenever: each share that leaves is the one that U3 names."""
    chosen, vectors = fleet.parameters(), fleet.vectors(3, 32, 2)

    @settings(max_examples=int(EXAMPLES * share))
    @given(
        kept=st.dictionaries(st.sampled_from(fleet.names), st.integers(0, STAGES - 1), max_size=2)
    )
    def holds(kept: dict[str, int]) -> None:
        outcome = play(fleet, chosen, vectors, Wire(kept=kept))
        survivors = outcome.server.survivors
        for name, held in outcome.held.items():
            left = b"".join(outcome.frames[name])
            sent = len(outcome.frames[name]) == STAGES
            assert held
            for peer, (share_b, share_s) in held.items():
                assert (share_b in left) == (sent and peer in survivors)
                assert (share_s in left) == (sent and peer not in survivors)

    holds()


@pytest.mark.parametrize(("fleet", "share"), [(COMPLETE, 0.3), (SPARSE, 0.1)])
def test_the_real_protocol_gives_what_the_ideal_sum_gives(fleet: Fleet, share: float) -> None:
    """For any vectors at all, the largest words included: bit-identical."""

    @settings(max_examples=int(EXAMPLES * share))
    @given(data=st.data(), ring_bits=st.sampled_from([32, 64]), length=st.integers(1, 6))
    def holds(data: st.DataObject, ring_bits: int, length: int) -> None:
        top = 2**ring_bits - 1
        word = st.one_of(st.sampled_from([0, 1, top]), st.integers(0, top))
        dtype = f"uint{ring_bits}"
        row = st.lists(word, min_size=length, max_size=length)
        vectors = {name: np.array(data.draw(row), dtype) for name in fleet.names}
        gone = data.draw(st.sampled_from(fleet.names))
        outcome = play(fleet, fleet.parameters(length, ring_bits), vectors, Wire(kept={gone: 2}))
        result = outcome.server.result()
        rest = [name for name in fleet.names if name != gone]
        ideal = ideal_sum(vectors, rest, ring_bits=ring_bits)
        assert result.vector.tobytes() == ideal.tobytes()
        assert result.vector.dtype == ideal.dtype

    holds()


@pytest.mark.statistical
@pytest.mark.parametrize("fleet", [COMPLETE, SPARSE])
@pytest.mark.parametrize(
    ("modulus", "critical"),
    # quantiles of chi-square with modulus - 1 degrees of freedom at 1 - 1e-8
    [(8, 50.8), (17, 70.5), (256, 402.3)],
)
def test_masked_residues_are_uniform_on_small_moduli(
    fleet: Fleet, modulus: int, critical: float
) -> None:
    """All-zero inputs, 20,000 words per agent. False-positive rate: 2e-7 for at most twenty agents
    at 1e-8 each, seeds fixed."""
    length = 20_000
    vectors = {name: np.zeros(length, np.uint32) for name in fleet.names}
    outcome = play(fleet, fleet.parameters(length), vectors, Wire())
    for name in fleet.names:
        data = next(frame for frame in outcome.frames[name] if frame[7] == MessageType.MASKED)
        vector = np.frombuffer(data[-64 - 4 * length : -64], "<u4")
        counts = np.bincount((vector % modulus).astype(int), minlength=modulus)
        expected = length / modulus
        assert float(((counts - expected) ** 2 / expected).sum()) < critical


def test_same_seeds_give_the_same_transcript_and_other_seeds_another() -> None:
    vectors = COMPLETE.vectors(3, 32, 1)
    records = [
        play(COMPLETE, COMPLETE.parameters(), vectors, Wire(), seed).server.result().record
        for seed in (b"one", b"one", b"two")
    ]
    assert records[0] == records[1]
    assert records[0] != records[2]
    assert records[0].sum_digest == records[2].sum_digest  # the same config and the same sum


# -- signed lies: whoever signs may write anything into its own messages


@st.composite
def changes(draw: st.DrawFn) -> Callable[[Any], Any]:
    """A function that changes one field of a message in place of another: never the names."""
    which, how, at = draw(st.integers(0, 20)), draw(st.integers(0, 5)), draw(st.integers(0, 5000))

    def change(message: Any) -> Any:
        fields = [name for name in message.__struct_fields__ if name not in ("sender", "recipient")]
        field_name = fields[which % len(fields)]
        changed = altered(getattr(message, field_name), how, at)
        return msgspec.structs.replace(message, **{field_name: changed})

    return change


def altered(value: Any, how: int, at: int) -> Any:
    """Another value of about the same form: bytes, or a tuple of such."""
    if isinstance(value, bytes | memoryview):
        value = bytes(value)
        if not value or how == 0:
            return value + b"\0"
        if how == 1:
            return value[:-1]
        place = at % (8 * len(value))
        flipped = bytearray(value)
        flipped[place // 8] ^= 1 << place % 8
        return bytes(flipped)
    if isinstance(value, str):
        return value + "x"
    if not value:
        return (b"",)
    place = at % len(value)
    match how:
        case 0:
            return value[:place] + value[place + 1 :]
        case 1:
            return (*value, value[place])
        case 2:
            return (*value[place + 1 :], *value[: place + 1])
        case _:
            return (*value[:place], altered(value[place], how - 1, at // 7), *value[place + 1 :])


def resigned(data: bytes, change: Callable[[Any], Any], identity: Identity) -> bytes:
    kind = MessageType(data[7])
    return encode_frame(change(peek(data, kind, limit=len(data))), identity)


def proved(data: bytes) -> set[str]:
    """Whom an unmask request shows a signature of."""
    request = peek(data, MessageType.UNMASK_REQUEST, limit=len(data))
    signers = {
        peek(consent, MessageType.CONSISTENCY, limit=len(consent)).sender
        for consent in request.consents
    }
    return signers | {name for name, _ in request.receipts}


@pytest.mark.parametrize(("fleet", "share"), [(COMPLETE, 4), (SPARSE, 2)])
def test_nothing_else_that_a_coordinator_signs_gets_the_honest_answer(
    fleet: Fleet, share: float
) -> None:
    """One field of one message is another: the client leaves the round, or its answer is bound to
    what it was shown and fits nobody else's."""
    chosen, vectors, name = fleet.parameters(), fleet.vectors(3, 32, 4), fleet.names[2]
    honest = play(fleet, chosen, vectors, Wire(kept={fleet.names[0]: 3}))
    shown, sent = honest.shown[name], honest.frames[name]
    assert len(shown) == len(sent) == STAGES

    @settings(max_examples=int(EXAMPLES * share))
    @given(stage=st.integers(1, STAGES - 1), change=changes())
    def holds(stage: int, change: Callable[[Any], Any]) -> None:
        forged = resigned(shown[stage], change, COORDINATOR)
        assume(forged != shown[stage])  # a tuple turned all the way round is the same tuple
        client = new_client(fleet, chosen, name)
        client.start(shown[0], vectors[name], model_digest=MODEL)
        for data in shown[1:stage]:
            client.receive(data)
        try:
            (answer,) = client.receive(forged)
        except RoundAborted:
            assert client.phase is ClientPhase.ABORTED
        except ProtocolError:  # not about this round at all: nothing changed
            assert [reply.data for reply in client.receive(shown[stage])] == [sent[stage]]
        else:
            same = answer.data == sent[stage]
            assert not same or stage == STAGES - 1
            if same:  # the same survivors are proved, in another order or more than once
                assert proved(forged) | {name} == proved(shown[stage]) | {name}

    holds()


@pytest.mark.parametrize(("fleet", "share"), [(COMPLETE, 2), (SPARSE, 0.5)])
def test_a_client_that_lies_changes_the_sum_by_its_own_vector_at_most(
    fleet: Fleet, share: float
) -> None:
    chosen, vectors = fleet.parameters(), fleet.vectors(3, 32, 6)

    @settings(max_examples=int(EXAMPLES * share))
    @given(liar=st.sampled_from(fleet.names), when=st.integers(0, STAGES - 1), change=changes())
    def holds(liar: str, when: int, change: Callable[[Any], Any]) -> None:
        told: dict[str, np.ndarray] = {}

        def lie(name: str, stage: int, data: bytes) -> bytes:
            if (name, stage) != (liar, when):
                return data
            if data[7] == MessageType.MASKED:
                honest = peek(data, MessageType.MASKED, limit=len(data))
                other = change(honest)
                if len(other.vector) == len(honest.vector):
                    told["difference"] = np.frombuffer(other.vector, "<u4") - np.frombuffer(
                        honest.vector, "<u4"
                    )
            return resigned(data, change, EVERY[name])

        outcome = play(fleet, chosen, vectors, Wire(lie=lie))
        if outcome.server.phase is ServerPhase.ABORTED:
            with pytest.raises(RoundAborted) as caught:
                outcome.server.result()
            assert caught.value.code != "LocalFault"
            return
        result = outcome.server.result()
        ideal = ideal_sum(vectors, result.survivors, ring_bits=32)
        if liar in result.survivors and liar in outcome.arrived[when] and "difference" in told:
            ideal += told["difference"]
        assert (result.vector == ideal).all()
        assert len(result.survivors) >= chosen.stage_floor(fleet.n)

    holds()
