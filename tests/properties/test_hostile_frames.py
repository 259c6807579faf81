"""Bytes from a hostile network or a hostile participant: typed errors, bounded memory, no harm.

Bound on memory: while parties refuse mutated frames, what they have allocated at any moment stays
below MAX_PEAK, four times the largest frame that the parameters of this round allow plus the room
that Python takes for one error with its traceback.
"""

from __future__ import annotations

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
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.secagg import (
    ClientPhase,
    Identity,
    MemoryJournal,
    Outgoing,
    Registry,
    SecAggClient,
    SecAggParameters,
    SecAggServer,
    ServerPhase,
    Transcript,
    ideal_sum,
    read_config,
)
from privfedrl.secagg.binding import label
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
    *(_flip, _edit_head, _edit_head, _edit_head, _edit, _truncate, _extend, _type_field),
    *(_type_field, _length_field, _declared, _declared, _nest, _noise),
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
    """How many frames ``call`` took; each must raise a ProtocolError that ends nothing."""
    count = 0
    for data in frames:
        try:
            call(data)
        except RoundAborted as error:
            raise AssertionError("a frame without a right signature ended a round") from error
        except ProtocolError:
            count += 1
            continue
        raise AssertionError(f"taken: {data.hex()}")
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
        before, _ = tracemalloc.get_traced_memory()
        assert attack(corpus, 20_000, seed=2) == 20_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < MAX_PEAK


@pytest.mark.slow
def test_a_million_mutated_frames_change_nothing(corpus: tuple[bytes, ...]) -> None:
    assert sum(attack(corpus, 200_000, seed=seed) for seed in range(3, 8)) == 1_000_000
