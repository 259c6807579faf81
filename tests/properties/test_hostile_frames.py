"""Bytes from a hostile network or a hostile participant: typed errors, bounded memory, no harm.

Bound on memory: while parties refuse mutated frames, what they have allocated at any moment stays
below MAX_PEAK, four times the largest frame that the parameters of this round allow plus the room
that Python takes for one error with its traceback.
"""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np
import pytest

from privfedrl.errors import (
    ConfigurationError,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    RoundAborted,
)
from privfedrl.parties import Identity, MemoryJournal, Outgoing, Registry
from privfedrl.parties.binding import label
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.secagg import (
    ClientPhase,
    SecAggClient,
    SecAggParameters,
    SecAggServer,
    ServerPhase,
    Transcript,
    ideal_sum,
    read_config,
)
from privfedrl.secagg.sizes import MessageType

PLAN, MODEL, TASK = b"p" * 32, b"m" * 32, b"t" * 32
N, LENGTH, NOW = 6, 5, 1_800_000_000
NAMES: Final = tuple(f"agent-{index}" for index in range(N))
KEYS: Final = DeterministicEntropy(b"hostile frames")
AGENTS: Final = {name: Identity.generate(name, KEYS) for name in NAMES}
HUB: Final = Identity.generate("hub", KEYS)
REGISTRY: Final = Registry(
    [*(agent.entry("agent") for agent in AGENTS.values()), HUB.entry("coordinator")]
)
PARAMETERS: Final = SecAggParameters(num_clients=N, max_colluding=1, vector_length=LENGTH)
VECTORS: Final = {
    name: np.random.default_rng(index).integers(0, 2**32, LENGTH, dtype=np.uint32)
    for index, name in enumerate(NAMES)
}
MAX_PEAK: Final = 4 * max(PARAMETERS.frame_limit(kind) for kind in MessageType) + 64 * 1024


def new_client(name: str) -> SecAggClient:
    return SecAggClient(
        identity=AGENTS[name],
        registry=REGISTRY,
        parameters=PARAMETERS,
        plan_digest=PLAN,
        journal=MemoryJournal(),
        entropy=KEYS.fork(name.encode()),
        clock=lambda: NOW,
    )


def new_server() -> SecAggServer:
    return SecAggServer(
        identity=HUB,
        registry=REGISTRY,
        parameters=PARAMETERS,
        plan_digest=PLAN,
        clock=lambda: NOW,
    )


@dataclass
class Stage:
    """One exchange of a round: what the coordinator sends, and what comes back."""

    out: list[Outgoing] = field(default_factory=list)
    back: list[tuple[str, bytes]] = field(default_factory=list)


@dataclass
class Live:
    """A round in progress, one exchange at a time, with hooks for an attacker in between."""

    round: int = 1
    clients: dict[str, SecAggClient] = field(init=False)
    stages: list[Stage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server = new_server()
        self.clients = {name: new_client(name) for name in NAMES}

    def play(
        self,
        *,
        before_clients: Callable[[Live], None] = lambda live: None,
        before_server: Callable[[Live], None] = lambda live: None,
    ) -> Live:
        out = self.server.start(TASK, self.round, 0, MODEL, bytes(32), b"s" * 32)
        while not self.server.finished:
            self.stages.append(Stage(out=out))
            before_clients(self)
            self.stages[-1].back = [
                (item.recipient, reply.data)
                for item in out
                for reply in give(self.clients[item.recipient], item.recipient, item.data)
            ]
            before_server(self)
            out = [
                message for _, data in self.stages[-1].back for message in self.server.receive(data)
            ]
        return self

    def frames(self) -> Iterator[bytes]:
        for stage in self.stages:
            yield from (item.data for item in stage.out)
            yield from (data for _, data in stage.back)


def give(client: SecAggClient, name: str, data: bytes) -> list[Outgoing]:
    if client.phase is ClientPhase.IDLE:
        return client.start(data, VECTORS[name], model_digest=MODEL)
    return client.receive(data)


def record(live: Live) -> Transcript:
    return Transcript.sign(live.server.result().record, identity=HUB, ledger_head=b"h" * 32)


@pytest.fixture(scope="module")
def golden() -> Live:
    return Live().play()


@pytest.fixture(scope="module")
def corpus(golden: Live) -> tuple[bytes, ...]:
    """Every frame of this round, of another one, and a transcript."""
    other = Live(round=2).play()
    frames = {*golden.frames(), *other.frames(), record(golden).to_bytes()}
    return tuple(sorted(frames))


# mutations of the bytes: no signature survives them


def _flip(rng: random.Random, data: bytearray) -> bytearray:
    for _ in range(rng.randint(1, 3)):
        position = int(rng.random() * 8 * len(data))
        data[position >> 3] ^= 1 << (position & 7)
    return data


def _edit_head(rng: random.Random, data: bytearray) -> bytearray:
    """Envelope, array header, tag, digest header and sender: what a parser looks at first."""
    for _ in range(rng.randint(1, 4)):
        data[rng.choice(_HEAD)] = int(rng.random() * 256)
    return data


_HEAD: Final = (*range(16), *range(46, 60))


def _edit(rng: random.Random, data: bytearray) -> bytearray:
    for _ in range(rng.randint(1, 6)):
        data[int(rng.random() * len(data))] = int(rng.random() * 256)
    return data


def _truncate(rng: random.Random, data: bytearray) -> bytearray:
    del data[int(rng.random() * len(data)) :]
    return data


def _extend(rng: random.Random, data: bytearray) -> bytearray:
    return data + rng.randbytes(rng.randint(1, 64))


def _type_field(rng: random.Random, data: bytearray) -> bytearray:
    data[6:8] = rng.choice((rng.randint(1, 12), rng.randint(0, 65535))).to_bytes(2, "big")
    return data


def _length_field(rng: random.Random, data: bytearray) -> bytearray:
    data[8:12] = rng.choice((0, 1, len(data), 2**31, 2**32 - 1)).to_bytes(4, "big")
    return data


def _declared(rng: random.Random, data: bytearray) -> bytearray:
    """A msgpack header that promises up to 2^32 - 1 elements or bytes."""
    at = 12 + int(rng.random() * max(1, len(data) - 12))
    data[at : at + 5] = rng.choice((0xDD, 0xDF, 0xC6, 0xDB, 0xC9)).to_bytes(1, "big") + b"\xff" * 4
    return _sized(data)


def _nest(rng: random.Random, data: bytearray) -> bytearray:
    depth = rng.randint(2, 600)
    data[12 : len(data) - 64] = rng.choice((b"\x91", b"\x81\x01", b"\xdd\0\0\0\1")) * depth
    return _sized(data)


def _noise(rng: random.Random, data: bytearray) -> bytearray:
    data[12:] = rng.randbytes(len(data) - 12)
    return data


def _sized(data: bytearray) -> bytearray:
    """The length field made right, so that the decoder is reached."""
    data[8:12] = max(0, len(data) - 76).to_bytes(4, "big")
    return data


_KINDS: Final = (
    *(_flip, _flip, _edit_head, _edit_head, _edit, _truncate, _extend, _type_field),
    *(_length_field, _declared, _nest, _noise),
)


def mutants(
    corpus: tuple[bytes, ...], rng: random.Random, count: int, honest: frozenset[bytes]
) -> Iterator[bytes]:
    """``count`` byte strings near the frames of ``corpus``, none of them honest."""
    made = 0
    while made < count:
        data = bytearray(corpus[int(rng.random() * len(corpus))])
        choice = int(rng.random() * (len(_KINDS) + 2))
        if choice < len(_KINDS):
            mutated = bytes(_KINDS[choice](rng, data))
        elif choice == len(_KINDS):  # a splice of two frames
            other = corpus[int(rng.random() * len(corpus))]
            mutated = (
                bytes(data[: int(rng.random() * len(data))])
                + other[int(rng.random() * len(other)) :]
            )
        else:
            mutated = rng.randbytes(int(rng.random() * 300))
        if mutated not in honest:
            made += 1
            yield mutated


def refused(call: Callable[[bytes], Any], frames: Iterator[bytes]) -> int:
    """How many frames were given; each must raise a ProtocolError that ends nothing."""
    count, before = 0, 0
    if tracemalloc.is_tracing():
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
    for data in frames:
        try:
            call(data)
        except RoundAborted as error:
            raise AssertionError("a frame without a right signature ended a round") from error
        except ProtocolError:
            count += 1
            continue
        raise AssertionError(f"taken: {data.hex()}")
    if tracemalloc.is_tracing():
        assert tracemalloc.get_traced_memory()[1] - before < MAX_PEAK
    return count


def attack(corpus: tuple[bytes, ...], count: int, seed: int) -> int:
    """Attack every party in every phase, ``count`` frames in all; the round must end exactly."""
    rng, honest = random.Random(seed), frozenset(corpus)
    each = count // 14  # clients in 5 phases, the coordinator in 5, then 4 shares for readers
    done = 0

    def at_client(live: Live) -> None:
        nonlocal done
        name = rng.choice(NAMES)
        client = live.clients[name]
        if client.phase is ClientPhase.IDLE:
            # a client that has not started takes a config only
            done += refused(
                lambda data: client.start(data, VECTORS[name], model_digest=MODEL),
                mutants(corpus, rng, each, honest),
            )
            assert client.phase is ClientPhase.IDLE
            return
        phase = client.phase
        done += refused(client.receive, mutants(corpus, rng, each, honest))
        assert client.phase is phase

    def at_server(live: Live) -> None:
        nonlocal done
        phase, waiting = live.server.phase, live.server.waiting_for
        done += refused(live.server.receive, mutants(corpus, rng, each, honest))
        assert (live.server.phase, live.server.waiting_for) == (phase, waiting)

    def config(data: bytes) -> None:
        read_config(data, registry=REGISTRY, parameters=PARAMETERS, plan_digest=PLAN, now=NOW)

    def transcript(data: bytes) -> None:
        Transcript.from_bytes(data).verify(REGISTRY)

    live = Live().play(before_clients=at_client, before_server=at_server)
    finished = live.clients[NAMES[0]]
    assert finished.phase is ClientPhase.DONE
    done += refused(finished.receive, mutants(corpus, rng, each, honest))
    done += refused(config, mutants(corpus, rng, each, honest))
    done += refused(transcript, mutants(corpus, rng, each, honest))
    long = tuple(data for data in corpus if len(data) > 3000)
    done += refused(transcript, mutants(long, rng, count - done, honest))
    _finished_exactly(live)
    return done


def _finished_exactly(live: Live) -> None:
    assert live.server.phase is ServerPhase.DONE
    result = live.server.result()
    assert result.survivors == NAMES
    assert np.array_equal(result.vector, ideal_sum(VECTORS, NAMES, ring_bits=32))
    assert live.server.evidence == []
    assert all(client.phase is ClientPhase.DONE for client in live.clients.values())


def test_twenty_thousand_mutated_frames_change_nothing_and_take_bounded_memory(
    corpus: tuple[bytes, ...],
) -> None:
    attack(corpus, 1400, seed=1)  # imports and caches
    tracemalloc.start()
    try:
        assert attack(corpus, 20_000, seed=2) == 20_000
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_a_million_mutated_frames_change_nothing(corpus: tuple[bytes, ...]) -> None:
    assert sum(attack(corpus, 200_000, seed=seed) for seed in range(3, 8)) == 1_000_000


# mutations that are signed anew: a hostile coordinator, a hostile agent


def _signed_anew(rng: random.Random, data: bytes) -> bytes:
    """One field or byte of the payload changed, under a right signature of its sender."""
    kind = MessageType(int.from_bytes(data[6:8], "big"))
    fields = msgspec.msgpack.decode(data[12:-64])
    sender = fields[2]
    if rng.random() < 0.5:
        payload = bytes(_edit(rng, bytearray(data[12:-64])))
    else:
        at = rng.randrange(1, len(fields))
        fields[at] = _other(rng, fields[at])
        payload = msgspec.msgpack.encode(fields)
    head = b"PFRL\x01\x01" + kind.to_bytes(2, "big") + len(payload).to_bytes(4, "big")
    signer = HUB if sender == HUB.name else AGENTS[sender]
    signed = head + payload
    return signed + signer.sign(label(kind.label) + hashlib.sha256(signed).digest())


def _other(rng: random.Random, value: Any) -> Any:
    """Another value for a field, often of the same type."""
    if isinstance(value, bytes) and rng.random() < 0.7:
        changed = bytes(_flip(rng, bytearray(value or b"\0")))
        return rng.choice((changed, value[:-1], value + b"\0", bytes(len(value))))
    if isinstance(value, list) and value and rng.random() < 0.7:
        index = rng.randrange(len(value))
        one = [*value[:index], _other(rng, value[index]), *value[index + 1 :]]
        return rng.choice((one, value[::-1], value[1:], value * 2, [*value, value[0]]))
    if isinstance(value, str) and rng.random() < 0.7:
        return rng.choice((*NAMES, "hub", "nobody", "a b", "n" * 65, ""))
    strange: tuple[Any, ...] = (
        None,
        True,
        -1,
        0,
        2**63,
        2**64 - 1,
        1.5,
        float("nan"),
        "",
        b"",
        [],
        {},
    )
    return rng.choice(strange)


def _client_after(golden: Live, name: str, stages: int) -> SecAggClient:
    client = new_client(name)
    for stage in golden.stages[:stages]:
        (data,) = (item.data for item in stage.out if item.recipient == name)
        give(client, name, data)
    return client


def test_authentic_nonsense_ends_a_clients_round_or_changes_nothing(golden: Live) -> None:
    rng, ended, ignored, taken = random.Random(11), 0, 0, 0
    for _ in range(400):
        name, at = rng.choice(NAMES), rng.randrange(5)
        (good,) = (item.data for item in golden.stages[at].out if item.recipient == name)
        mutated, client = _signed_anew(rng, good), _client_after(golden, name, at)
        before = client.phase
        try:
            give(client, name, mutated)
            taken += 1
        except RoundAborted:
            ended += 1
            assert client.phase is ClientPhase.ABORTED
            with pytest.raises(RoundAborted):
                client.receive(good)
        except ProtocolError:
            ignored += 1
            assert client.phase is before
            (honest,) = (data for who, data in golden.stages[at].back if who == name)
            assert [message.data for message in give(client, name, good)] == [honest]
    # taken are other values of what the coordinator may choose, such as the round's seed
    assert ended > 100
    assert ignored > 100
    assert taken < 60


def test_authentic_nonsense_of_one_agent_never_gives_a_wrong_sum(golden: Live) -> None:
    """A round that ends with a sum ends with that of what its survivors sent, the liar included."""
    rng, liar, refusals, sums = random.Random(12), NAMES[2], 0, 0
    for _ in range(60):
        at, live, inputs = rng.randrange(5), Live(), dict(VECTORS)
        taken: list[bytes] = []

        def lie(live: Live, at: int = at, taken: list[bytes] = taken) -> None:
            nonlocal refusals
            if len(live.stages) != at + 1:
                return
            good = dict(live.stages[-1].back)[liar]
            for _ in range(6):
                data = _signed_anew(rng, good)
                try:
                    live.server.receive(data)
                except ProtocolError:
                    refusals += 1
                else:
                    taken.append(data)
                    return

        try:
            live.play(before_server=lie)
        except ProtocolError:
            continue  # a client or the coordinator has ended the round
        if live.server.phase is not ServerPhase.DONE:
            continue
        if at == 2 and taken:  # another masked vector is another input
            inputs[liar] = (
                VECTORS[liar] + _vector(taken[0]) - _vector(dict(live.stages[2].back)[liar])
            )
        result = live.server.result()
        assert np.array_equal(result.vector, ideal_sum(inputs, result.survivors, ring_bits=32))
        sums += 1
    assert refusals > 100
    assert sums > 5


def _vector(masked: bytes) -> Any:
    return np.frombuffer(msgspec.msgpack.decode(masked[12:-64])[-1], "<u4").astype(np.uint32)


# the callers' side


@pytest.mark.parametrize(
    "vector",
    [
        np.full(LENGTH, np.nan),
        np.full(LENGTH, np.inf, dtype=np.float32),
        np.full(LENGTH, -1, dtype=np.int64),
        np.full(LENGTH, 2**32, dtype=np.uint64),
        np.zeros(LENGTH, dtype=">u4"),
        np.zeros(LENGTH, dtype=object),
        np.zeros(LENGTH, dtype=bool),
        np.zeros(0, dtype=np.uint32),
        np.zeros(LENGTH + 1, dtype=np.uint32),
        np.zeros((LENGTH, 1), dtype=np.uint32),
        np.uint32(3),
        [0] * LENGTH,
        None,
    ],
    ids=repr,
)
def test_a_vector_that_is_no_ring_vector_is_a_typed_error_and_changes_nothing(
    golden: Live, vector: Any
) -> None:
    name, client = NAMES[1], new_client(NAMES[1])
    config = golden.stages[0].out[0].data
    with pytest.raises(LocalProtocolError):
        client.start(config, vector, model_digest=MODEL)
    assert client.phase is ClientPhase.IDLE
    sent = [m.data for stage in golden.stages for item in stage.out if item.recipient == name
            for m in give(client, name, item.data)]  # fmt: skip
    assert sent == [data for stage in golden.stages for who, data in stage.back if who == name]


def test_a_cohort_above_capacity_is_refused_when_it_is_built() -> None:
    with pytest.raises(ConfigurationError, match="num_clients"):
        SecAggParameters(num_clients=257, max_colluding=1, vector_length=1)
    with pytest.raises(ConfigurationError, match="registered agents"):
        SecAggServer(
            identity=HUB,
            registry=REGISTRY,
            parameters=SecAggParameters(num_clients=N - 1, max_colluding=0, vector_length=1),
            plan_digest=PLAN,
        )


@pytest.mark.parametrize(
    "data", [None, "PFRL", 7, bytearray(100), memoryview(bytes(100))], ids=repr
)
def test_what_is_not_bytes_is_a_typed_error(golden: Live, data: Any) -> None:
    client = _client_after(golden, NAMES[0], 1)
    server = new_server()
    server.start(TASK, 1, 0, MODEL, bytes(32))
    for call in (client.receive, server.receive, Transcript.from_bytes):
        with pytest.raises(RemoteProtocolError):
            call(data)
