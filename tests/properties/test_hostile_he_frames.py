"""Hostile frames against every role of a homomorphic round: typed errors, bounded memory, no harm.

Two attackers. One without a key: mutations and splices of real frames, of this round and of another
one. One with the registered identity of an agent: whatever it likes under its own right signature.
Neither changes anybody's state; the round then ends with the right sum. What coordinator and
authority sign wrongly may end a round, but never gives a wrong sum.

Bound on memory: what a party allocates while it refuses a frame stays below MAX_PEAK, four times
the largest frame of these parameters plus the room that Python takes for an error's traceback.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any, Final

import msgspec
import numpy as np
import pytest

from privfedrl.errors import ConfigurationError, ProtocolError, RoundAborted
from privfedrl.he import (
    AggregatorPhase,
    ClientPhase,
    HEAggregator,
    HEAuditor,
    HEClient,
    HEParameters,
    HETranscript,
    KeyAuthority,
    LocalVault,
    read_config,
)
from privfedrl.he.digests import commitment, key_digest, sealed_digest, sum_digest
from privfedrl.he.frames import Kind, frame_limit, peek
from privfedrl.he.uploads import UploadSum
from privfedrl.parties import Identity, MemoryJournal, Outgoing, Registry
from privfedrl.parties.binding import label
from privfedrl.parties.identity import Role
from privfedrl.primitives.random import DeterministicEntropy

PLAN, MODEL, TASK, HEAD = b"p" * 32, b"m" * 32, b"t" * 32, b"h" * 32
NOW: Final = 1_800_000_000
KEYS: Final = DeterministicEntropy(b"hostile he frames")
NAMES: Final = ("a0", "a1", "a2", "a3")
LIAR: Final = "a3"
SERVICES: Final[dict[str, Role]] = {
    "hub": "coordinator",
    "authority": "key-authority",
    "auditor": "auditor",
}
WHO: Final = {name: Identity.generate(name, KEYS) for name in (*NAMES, *SERVICES)}
REGISTRY: Final = Registry([one.entry(SERVICES.get(name, "agent")) for name, one in WHO.items()])
P: Final = HEParameters(
    num_clients=4, max_colluding=1, vector_length=5, threshold=3, readding="auditor"
)
VECTORS: Final = {
    name: np.random.default_rng(index).integers(0, 2**32, 5, dtype=np.uint32)
    for index, name in enumerate(NAMES)
}
MAX_PEAK: Final = 4 * max(frame_limit(kind, P) for kind in Kind) + 64 * 1024

Party = HEClient | HEAggregator | HEAuditor | KeyAuthority


class Live:
    """One round, with a hook before every delivery."""

    def __init__(self, number: int = 1) -> None:
        common: dict[str, Any] = {
            "registry": REGISTRY,
            "parameters": P,
            "plan_digest": PLAN,
            "clock": lambda: NOW,
        }
        self.number = number
        self.hub = HEAggregator(identity=WHO["hub"], before_open=lambda names: HEAD, **common)
        self.vault = LocalVault()
        self.parties: dict[str, Any] = {
            "authority": KeyAuthority(
                identity=WHO["authority"],
                journal=MemoryJournal(),
                before_decrypt=lambda config, names: HEAD,
                vault=lambda: self.vault,
                **common,
            ),
            "auditor": HEAuditor(identity=WHO["auditor"], **common),
            "hub": self.hub,
        } | {
            name: HEClient(identity=WHO[name], journal=MemoryJournal(), **common) for name in NAMES
        }
        self.carried: list[Outgoing] = []
        self.refused: list[ProtocolError] = []

    def play(
        self,
        before: Callable[[Live, Outgoing], bytes] = lambda live, message: message.data,
        *,
        strict: bool = True,
    ) -> Live:
        waiting = self.hub.start(TASK, self.number, 0, MODEL, bytes(32), b"s" * 32)
        while not self.hub.finished:
            if not waiting:
                waiting = self.hub.close_phase()
                continue
            message = waiting.pop(0)
            data = before(self, message)
            self.carried.append(message)
            try:
                waiting += self.give(message.recipient, data)
            except ProtocolError as error:
                if strict:
                    raise
                self.refused.append(error)
        for message in waiting:
            before(self, message)
            self.carried.append(message)
            if strict:
                self.give(message.recipient, message.data)
        return self

    def give(self, who: str, data: bytes) -> list[Outgoing]:
        """Every party's way to take a frame, whatever it is waiting for."""
        party = self.parties[who]
        if who in NAMES and party.phase is ClientPhase.IDLE:
            return list(party.start(data, VECTORS[who], model_digest=MODEL))
        if who in ("authority", "auditor") and party.phase.value == "idle":
            return list(party.start(data))
        return list(party.receive(data))

    def frames(self) -> Iterator[bytes]:
        yield from (message.data for message in self.carried)

    def finished_exactly(self) -> None:
        result = self.hub.result()
        assert result.survivors == NAMES
        assert np.array_equal(result.vector, np.sum(list(VECTORS.values()), axis=0, dtype="u4"))
        assert all(party.phase.value == "done" for party in self.parties.values())


def snapshot(party: Party) -> dict[str, Any]:
    """Everything that a party remembers, comparable by value."""
    return {name: _frozen(value) for name, value in vars(party).items()}


def _frozen(value: Any) -> Any:
    if isinstance(value, bytes | str | int | None | Enum | tuple):
        return value
    if isinstance(value, dict):
        return tuple((key, _frozen(item)) for key, item in value.items())
    if isinstance(value, set):
        return frozenset(value)
    if isinstance(value, np.ndarray):
        return hashlib.sha256(value.tobytes()).digest()
    if isinstance(value, UploadSum):
        return value.names, _frozen(value._total)
    if isinstance(value, MemoryJournal):
        return repr((value._last, value._signed))
    if isinstance(value, LocalVault):
        return value.alive
    return id(value)


@pytest.fixture(scope="module")
def golden() -> Live:
    return Live().play()


@pytest.fixture(scope="module")
def corpus(golden: Live) -> tuple[bytes, ...]:
    """Every frame of this round, of another one under another key, and a transcript."""
    other = Live(2).play()
    record = HETranscript.sign(
        golden.hub.result().record, identity=WHO["hub"], ledger_head=HEAD
    ).to_bytes()
    return tuple(sorted({*golden.frames(), *other.frames(), record}))


def end_of(data: bytes | bytearray) -> int:
    """Where the signed part of a frame ends: 64 bytes of signature follow, then an attachment."""
    return 12 + int.from_bytes(data[8:12], "big")


def payload_of(data: bytes) -> bytes:
    return data[12 : end_of(data)]


def attached(data: bytes) -> bytes:
    return data[end_of(data) + 64 :]


# an attacker without a key: no signature survives


def _flip(rng: random.Random, data: bytearray) -> bytearray:
    for _ in range(rng.randint(1, 3)):
        position = int(rng.random() * 8 * len(data))
        data[position >> 3] ^= 1 << (position & 7)
    return data


def _edit_head(rng: random.Random, data: bytearray) -> bytearray:
    """Envelope, array header, tag, digests and sender: what a parser looks at first."""
    for _ in range(rng.randint(1, 4)):
        data[int(rng.random() * 100)] = int(rng.random() * 256)
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
    at = 12 + int(rng.random() * max(1, end_of(data) - 17))
    data[at : at + 5] = rng.choice((0xDD, 0xDF, 0xC6, 0xDB, 0xC9)).to_bytes(1, "big") + b"\xff" * 4
    return data


def _attachment(rng: random.Random, data: bytearray) -> bytearray:
    """Another attachment behind an honest signature: cut, longer, changed, or where none may be."""
    start = end_of(data) + 64
    attached = data[start:]
    if attached and rng.random() < 0.5:
        data[start + int(rng.random() * len(attached))] ^= 1 << rng.randrange(8)
        return data
    other = (b"", attached[:-1], attached + b"\0", attached * 2, bytes(len(attached) or 1))
    return data[:start] + rng.choice(other)


def _nest(rng: random.Random, data: bytearray) -> bytearray:
    depth = rng.randint(2, 600)
    nested = rng.choice((b"\x91", b"\x81\x01", b"\xdd\0\0\0\1")) * depth
    rest = data[end_of(data) :]
    return data[:8] + len(nested).to_bytes(4, "big") + nested + rest


def _noise(rng: random.Random, data: bytearray) -> bytearray:
    data[12:] = rng.randbytes(len(data) - 12)
    return data


_KINDS: Final = (
    *(_flip, _flip, _edit_head, _edit_head, _truncate, _extend, _type_field),
    *(_length_field, _declared, _nest, _noise, _attachment),
)


def _swap_fields(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A field of another frame, of another round, key or kind, under the old signature."""
    fields, foreign = (msgspec.msgpack.decode(payload_of(one)) for one in (data, other))
    fields[rng.randrange(len(fields))] = rng.choice(foreign)
    payload = msgspec.msgpack.encode(fields)
    return data[:8] + len(payload).to_bytes(4, "big") + payload + data[end_of(data) :]


def forgeries(
    corpus: tuple[bytes, ...], rng: random.Random, count: int, honest: frozenset[bytes]
) -> Iterator[bytes]:
    """``count`` byte strings near the frames of ``corpus``, none of them honest."""
    made = 0
    while made < count:
        one, other = (corpus[int(rng.random() * len(corpus))] for _ in range(2))
        choice = rng.randrange(len(_KINDS) + 4)
        if choice < len(_KINDS):
            forged = bytes(_KINDS[choice](rng, bytearray(one)))
        elif choice < len(_KINDS) + 2:
            forged = _swap_fields(rng, one, other)
        elif choice == len(_KINDS) + 2:  # head of one, signature of the other
            cut = int(rng.random() * len(one))
            forged = one[:cut] + other[min(cut, len(other) - 64) :]
        else:
            forged = rng.randbytes(int(rng.random() * 300))
        if forged not in honest:
            made += 1
            yield forged


# an attacker with an agent's key


def resigned(kind: int, payload: bytes, signer: str, attachment: bytes = b"") -> bytes:
    """Any payload of any kind under a right signature, before any attachment."""
    name = Kind(kind).label if kind in set(Kind) else "commit"
    head = b"PFHE\x01\x01" + kind.to_bytes(2, "big") + len(payload).to_bytes(4, "big")
    signed = label(f"he-{name}") + hashlib.sha256(head + payload).digest()
    return head + payload + WHO[signer].sign(signed) + attachment


def pins(kind: int, fields: list[Any], attachment: bytes) -> list[Any]:
    """The fields, one of them the digest of the attachment, as an honest signer's are."""
    at = {Kind.CONTEXT: 2, Kind.UPLOAD: 5, Kind.SEALED: 8, Kind.OPENING: 5}.get(Kind(kind))
    if at is None or len(fields) <= at:
        return fields
    cfg, key, sender = fields[1:4]
    # some fields are such that there is no digest of them
    with contextlib.suppress(TypeError, AttributeError, UnicodeError):
        fields[at] = {
            Kind.CONTEXT: lambda: key_digest(cfg, attachment),
            Kind.UPLOAD: lambda: commitment(cfg, key, sender, attachment),
            Kind.SEALED: lambda: sealed_digest(cfg, key, attachment),
            Kind.OPENING: lambda: sum_digest(cfg, attachment),
        }[Kind(kind)]()
    return fields


def _strange_bytes(rng: random.Random, value: bytes) -> bytes:
    changed = bytes(_flip(rng, bytearray(value or b"\0")))
    return rng.choice((changed, value[:-1], value + b"\0", bytes(len(value)), value[:1]))


def _strange(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """Another value for a field, often of the same type, or anything that msgpack can say."""
    if isinstance(value, bytes) and rng.random() < 0.7:
        return _strange_bytes(rng, value)
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        one = [*value[:at], _strange(rng, value[at], depth + 1), *value[at + 1 :]]
        return rng.choice((one, value[::-1], value[1:], value * 2, [*value, value[0]]))
    if isinstance(value, str) and rng.random() < 0.7:
        return rng.choice((*NAMES, *SERVICES, "nobody", "a b", "n" * 65, ""))
    if isinstance(value, int) and rng.random() < 0.5:
        return rng.choice((min(value + 1, 2**64 - 1), max(value - 1, -(2**63)), 0, 2**53))
    strange: tuple[Any, ...] = (
        *(None, True, False, -1, 0, 2**63, 2**64 - 1, 1.5, float("nan"), float("inf")),
        *("", b"", "x" * 300, [], {}, {"a": [1]}, [[]] * 5, msgspec.msgpack.Ext(5, b"ext")),
    )
    return rng.choice(strange)


def hostile(corpus: tuple[bytes, ...], rng: random.Random, count: int) -> Iterator[bytes]:
    """Frames signed by the agent LIAR: changed fields, other kinds, arbitrary payloads."""
    for _ in range(count):
        data = corpus[int(rng.random() * len(corpus))]
        kind, choice = int.from_bytes(data[6:8], "big"), rng.random()
        attachment = attached(data)
        if choice < 0.2:
            payload = rng.choice(
                (
                    b"\xdd\xff\xff\xff\xff",
                    b"\xc6\xff\xff\xff\xff",
                    b"\x95" * rng.randint(1, 500),
                    rng.randbytes(rng.randint(0, 300)),
                    bytes(_flip(rng, bytearray(payload_of(data)))),
                )
            )
        else:
            fields = msgspec.msgpack.decode(payload_of(data))
            if attachment and rng.random() < 0.5:
                attachment = _strange_bytes(rng, attachment)
            for _ in range(rng.randint(0 if attachment else 1, 2)):
                at = rng.randrange(len(fields))
                fields[at] = _strange(rng, fields[at])
            if rng.random() < 0.8:  # as far as the sender's field goes it is the signer's own
                at = 3 if len(fields) > 3 and isinstance(fields[3], str) else 2
                if len(fields) > at and isinstance(fields[at], str):
                    fields[at] = LIAR
            if rng.random() < 0.7:  # so that it is not refused for its attachment
                fields = pins(kind, fields, attachment)
            payload = msgspec.msgpack.encode(fields)
        if rng.random() < 0.1:
            kind = rng.randint(1, 12)
        yield resigned(kind, payload, LIAR, attachment)


def is_own_commit(live: Live, data: bytes) -> bool:
    """A well-formed promise of LIAR's under this key: it may make one, and is out with two."""
    try:
        commit = peek(data, Kind.COMMIT, limit=frame_limit(Kind.COMMIT, P))
    except ProtocolError:
        return False
    here = commit.cfg == live.hub._now.cfg and commit.key == live.hub._key
    return bool(here and commit.sender == LIAR)


# the attack


def refused(call: Callable[[bytes], Any], party: Party | None, frames: Iterable[bytes]) -> int:
    """How many frames were given; each must raise a ProtocolError that ends and changes nothing."""
    count, before = 0, None if party is None else snapshot(party)
    traced = 0
    if tracemalloc.is_tracing():
        frames = list(frames)  # what making them takes is the attacker's
        tracemalloc.reset_peak()
        traced, _ = tracemalloc.get_traced_memory()
    for data in frames:
        try:
            call(data)
        except RoundAborted as error:
            raise AssertionError(f"a hostile frame ended a round: {data[:300].hex()}") from error
        except ProtocolError:
            count += 1
            continue
        raise AssertionError(f"taken: {data[:300].hex()}")
    if tracemalloc.is_tracing():
        assert tracemalloc.get_traced_memory()[1] - traced < MAX_PEAK
    if party is not None:
        assert snapshot(party) == before
    return count


STATIONS: Final = 25
"""Client 5 phases, authority 4, auditor 4, aggregator 7; then readers of configs and records."""


def attack(corpus: tuple[bytes, ...], count: int, seed: int) -> int:
    """Every party in every phase, ``count`` frames at least; the round must end exactly."""
    rng, honest = random.Random(seed), frozenset(corpus)
    each, done, visited = -(-count // STATIONS), 0, set[tuple[str, Any]]()

    def batch(live: Live, who: str) -> Iterator[bytes]:
        waits = who == "hub" and live.hub.phase is AggregatorPhase.COLLECT_COMMITS
        yield from forgeries(corpus, rng, each // 2, honest)
        for data in hostile(corpus, rng, each - each // 2):
            if not (waits and is_own_commit(live, data)) and data not in honest:
                yield data

    def station(live: Live, who: str) -> None:
        nonlocal done
        party = live.parties[who]
        place = ("agent" if who in NAMES else who, party.phase)
        if place not in visited:
            visited.add(place)
            done += refused(lambda data: live.give(who, data), party, batch(live, who))

    def before(live: Live, message: Outgoing) -> bytes:
        station(live, message.recipient)
        return message.data

    live = Live().play(before)
    for who in ("authority", "auditor", "hub", NAMES[0]):
        station(live, who)

    def config(data: bytes) -> None:
        read_config(data, registry=REGISTRY, parameters=P, plan_digest=PLAN, now=NOW)

    def record(data: bytes) -> None:
        HETranscript.from_bytes(data).verify(REGISTRY)

    assert len(visited) == 20
    done += refused(config, None, batch(live, "nobody"))
    records = tuple(data for data in corpus if data[6:8] == b"\0\x0b")
    while done < count:
        done += refused(record, None, forgeries(records, rng, min(each, count - done), honest))
    live.finished_exactly()
    return done


def test_three_thousand_hostile_frames_change_nothing_and_take_bounded_memory(
    corpus: tuple[bytes, ...],
) -> None:
    attack(corpus, 100, seed=1)  # imports and caches
    tracemalloc.start()
    try:
        assert attack(corpus, 3000, seed=2) >= 3000
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_a_hundred_thousand_hostile_frames_change_nothing(corpus: tuple[bytes, ...]) -> None:
    assert sum(attack(corpus, 25_000, seed=seed) for seed in range(3, 7)) >= 100_000


def test_a_second_promise_of_an_agent_costs_nobody_but_itself_its_place(golden: Live) -> None:
    """The one frame of an agent that changes a state: its own, of which all others are free."""
    done: list[ProtocolError] = []

    def before(live: Live, message: Outgoing) -> bytes:
        if live.hub.phase is AggregatorPhase.COLLECT_COMMITS and LIAR in live.hub._commits:
            return message.data
        if message.recipient == "hub" and message.data[6:8] == b"\0\3" and not done:
            for promise in (b"x" * 32, b"y" * 32):
                fields = [int(Kind.COMMIT), live.hub._now.cfg, live.hub._key, LIAR, promise]
                data = resigned(Kind.COMMIT, msgspec.msgpack.encode(fields), LIAR)
                try:
                    live.give("hub", data)
                except ProtocolError as error:
                    done.append(error)
        return message.data

    live = Live().play(before, strict=False)
    assert len(done) == 1
    result = live.hub.result()
    assert result.survivors == NAMES[:-1]
    expected = np.sum([VECTORS[name] for name in NAMES[:-1]], axis=0, dtype="u4")
    assert np.array_equal(result.vector, expected)


# coordinator and authority may end a round, and no more


def _signed_anew(rng: random.Random, data: bytes) -> bytes:
    """One field or the attachment changed, under a right signature of the frame's own sender."""
    fields, attachment = msgspec.msgpack.decode(payload_of(data)), attached(data)
    sender = next(field for field in fields if isinstance(field, str))
    kind = int.from_bytes(data[6:8], "big")
    if attachment and rng.random() < 0.5:
        attachment = _strange_bytes(rng, attachment)
    else:
        at = rng.randrange(1, len(fields))
        fields[at] = _strange(rng, fields[at])
    if rng.random() < 0.7:
        fields = pins(kind, fields, attachment)
    return resigned(kind, msgspec.msgpack.encode(fields), sender, attachment)


def test_whatever_one_party_signs_wrongly_there_is_the_right_sum_or_none() -> None:
    rng, sums, aborts, refusals = random.Random(4), 0, 0, 0
    total = len(Live().play().carried)
    for _ in range(80):
        chosen = rng.randrange(total)

        def before(live: Live, message: Outgoing, chosen: int = chosen) -> bytes:
            if len(live.carried) == chosen:
                return _signed_anew(rng, message.data)
            return message.data

        live = Live()
        try:
            live.play(before, strict=False)
        except ProtocolError:
            aborts += 1
            continue
        refusals += len(live.refused)
        if live.hub.phase is not AggregatorPhase.DONE:
            aborts += 1
            if live.parties["authority"].finished:
                assert not live.vault.alive
            continue
        sums += 1
        result = live.hub.result()
        assert len(result.survivors) >= P.floor
        expected = np.sum([VECTORS[name] for name in result.survivors], axis=0, dtype="u4")
        assert np.array_equal(result.vector, expected)
    assert min(sums, aborts, refusals) > 5


@pytest.mark.parametrize("value", [0, 2**24, 2**52, 2**64 - 1])
@pytest.mark.parametrize("number", range(12))
def test_parameters_in_a_strangers_record_cost_little_whatever_they_say(
    number: int, value: int
) -> None:
    """They are read before any signature is: nothing is computed with a number out of bounds."""
    data = bytearray(P.canonical_bytes())
    data[32 + 8 * number : 40 + 8 * number] = value.to_bytes(8, "big")
    tracemalloc.start()
    try:
        with contextlib.suppress(ConfigurationError):
            HEParameters.from_canonical_bytes(bytes(data))
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [None, "PFHE", 7, bytearray(100), memoryview(bytes(100))],
    ids=lambda data: type(data).__name__,
)
def test_what_is_not_bytes_is_a_typed_error_for_every_role(golden: Live, data: Any) -> None:
    live = Live()
    for who, party in live.parties.items():
        fresh = snapshot(party)
        with pytest.raises(ProtocolError):
            live.give(who, data)
        assert snapshot(party) == fresh
    for who in live.parties:
        with pytest.raises(ProtocolError):
            golden.parties[who].receive(data)
