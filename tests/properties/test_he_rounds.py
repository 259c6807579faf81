"""Properties of whole homomorphic rounds: the same integers as masking, or a typed abort.

The oracle for the sum is numpy with Python's integers; the masked sum is that of the library's own
pairwise protocol over the same agents, of whom the same ones drop out.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from privfedrl.errors import ProtocolError, RoundAborted
from privfedrl.he import (
    PARAMETER_SETS,
    AggregatorPhase,
    AuthorityPhase,
    ClientPhase,
    HEAggregator,
    HEAuditor,
    HEClient,
    HEParameters,
    HETranscript,
    KeyAuthority,
    LocalVault,
    ParameterSet,
)
from privfedrl.he.frames import Kind, frame_limit, peek
from privfedrl.parties import Identity, MemoryJournal, Outgoing, Registry
from privfedrl.parties.identity import Role
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.secagg import ClientPhase as MaskPhase
from privfedrl.secagg import SecAggClient, SecAggParameters, SecAggServer

PLAN, MODEL, TASK, HEAD = b"p" * 32, b"m" * 32, b"t" * 32, b"h" * 32
NOW: Final = 1_800_000_000
KEYS: Final = DeterministicEntropy(b"he property identities")
SERVICES: Final[dict[str, Role]] = {
    "hub": "coordinator",
    "authority": "key-authority",
    "auditor": "auditor",
}
WHO: Final = {
    name: Identity.generate(name, KEYS) for name in (*SERVICES, *(f"a{i:02d}" for i in range(64)))
}
AGENTS: Final = tuple(name for name in WHO if name not in SERVICES)
EXAMPLES: Final = settings().max_examples  # of the profile, see tests/conftest.py

Vectors = dict[str, NDArray[Any]]


class CountingVault(LocalVault):
    """A vault that remembers how often it was asked to decrypt, and what came out."""

    decryptions = 0
    slots: NDArray[Any]

    def decrypt(self, ciphertexts: bytes, count: int) -> NDArray[Any]:
        self.decryptions += 1
        self.slots = super().decrypt(ciphertexts, count)
        return self.slots


def registry_for(n: int) -> Registry:
    entries = [WHO[name].entry("agent") for name in AGENTS[:n]]
    return Registry([*entries, *(WHO[name].entry(role) for name, role in SERVICES.items())])


@dataclass
class Round:
    """One round in one process; the caller decides which frame goes where, and when."""

    parameters: HEParameters
    vectors: Vectors
    charged: list[tuple[str, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = self.parameters.num_clients
        self.names, self.registry = AGENTS[:n], registry_for(n)
        common: dict[str, Any] = {
            "registry": self.registry,
            "parameters": self.parameters,
            "plan_digest": PLAN,
            "clock": lambda: NOW,
        }
        self.vault = CountingVault()
        self.hub = HEAggregator(identity=WHO["hub"], before_open=lambda names: HEAD, **common)
        self.authority = KeyAuthority(
            identity=WHO["authority"],
            journal=MemoryJournal(),
            before_decrypt=self._charge,
            vault=lambda: self.vault,
            **common,
        )
        self.services: dict[str, KeyAuthority | HEAuditor] = {"authority": self.authority}
        if self.parameters.readding == "auditor":
            self.services["auditor"] = HEAuditor(identity=WHO["auditor"], **common)
        self.clients = {
            name: HEClient(identity=WHO[name], journal=MemoryJournal(), **common)
            for name in self.names
        }

    def _charge(self, config: object, names: tuple[str, ...]) -> bytes:
        assert self.vault.decryptions == 0
        self.charged.append(names)
        return HEAD

    def open(self) -> list[Outgoing]:
        return self.hub.start(TASK, 1, 0, MODEL, bytes(32), b"s" * 32)

    def give(self, message: Outgoing) -> list[Outgoing]:
        who, data = message.recipient, message.data
        if who == "hub":
            return self.hub.receive(data)
        if who in self.clients:
            client = self.clients[who]
            if client.phase is ClientPhase.IDLE:
                return client.start(data, self.vectors[who], model_digest=MODEL)
            return client.receive(data)
        party = self.services[who]
        return party.start(data) if party.phase.value == "idle" else party.receive(data)

    def play(self, lost: Callable[[Outgoing], bool] = lambda message: False) -> Round:
        """Everything in order, but for what is lost."""
        waiting = self.open()
        while True:
            while waiting:
                message = waiting.pop(0)
                if not lost(message):
                    waiting += self.give(message)
            if self.hub.finished:
                return self
            waiting += self.hub.close_phase()

    def check(self) -> bool:
        """Exactly one right sum, charged before it was opened, or a typed abort and no sum."""
        p = self.parameters
        assert self.vault.decryptions <= 1
        assert len(self.charged) >= self.vault.decryptions
        if self.hub.phase is not AggregatorPhase.DONE:
            with pytest.raises(RoundAborted):
                self.hub.result()
            return False
        result = self.hub.result()
        assert self.vault.decryptions == 1
        assert not self.vault.alive
        assert self.charged == [result.survivors]
        assert len(result.survivors) >= p.floor
        assert result.vector.dtype == np.dtype(f"uint{p.ring_bits}")
        expected = plain_sum(self.vectors, result.survivors, p.value_bits)
        assert np.array_equal(result.vector, at_home(expected, p))
        for client in self.clients.values():
            assert client.survivors in ((), result.survivors)
        transcript = HETranscript.sign(result.record, identity=WHO["hub"], ledger_head=HEAD)
        transcript.verify(self.registry)
        transcript.verify_sum(result.vector)
        assert transcript.survivors(self.registry) == result.survivors
        return True


def kind_of(message: Outgoing) -> Kind:
    return Kind(int.from_bytes(message.data[6:8], "big"))


def plain_sum(vectors: Vectors, names: tuple[str, ...], bits: int) -> NDArray[Any]:
    """Python's integers, modulo 2^bits."""
    total = sum(vectors[name].astype(object) for name in names)
    return np.asarray(total, dtype=object) % (1 << bits)


def at_home(values: NDArray[Any], parameters: HEParameters) -> NDArray[Any]:
    """The centred residues of integers below 2^value_bits, modulo 2^ring_bits."""
    half, whole = 1 << (parameters.value_bits - 1), 1 << parameters.value_bits
    centred = (values + half) % whole - half
    return (centred % (1 << parameters.ring_bits)).astype(np.dtype(f"uint{parameters.ring_bits}"))


def masked_sum(parameters: HEParameters, vectors: Vectors, sent: dict[str, int]) -> Any:
    """The result of the pairwise protocol; agents in ``sent`` send so many messages only."""
    n = parameters.num_clients
    chosen, registry = masking_for(parameters), registry_for(n)
    common: dict[str, Any] = {
        "registry": registry,
        "parameters": chosen,
        "plan_digest": PLAN,
        "clock": lambda: NOW,
    }
    server = SecAggServer(identity=WHO["hub"], **common)
    clients = {
        name: SecAggClient(
            identity=WHO[name],
            journal=MemoryJournal(),
            entropy=KEYS.fork(name.encode()),
            **common,
        )
        for name in AGENTS[:n]
    }
    out, stage = server.start(TASK, 1, 0, MODEL, bytes(32), b"r" * 32), 0
    while not server.finished:
        phase, replies = server.phase, list[bytes]()
        for message in out:
            name, client = message.recipient, clients[message.recipient]
            if stage >= sent.get(name, 9):
                continue
            if client.phase is MaskPhase.IDLE:
                given = client.start(message.data, vectors[name], model_digest=MODEL)
            else:
                given = client.receive(message.data)
            replies += [reply.data for reply in given]
        out = [message for data in replies for message in server.receive(data)]
        if server.phase is phase:
            out = server.close_phase()
        stage += 1
    return server.result()


def masking_for(parameters: HEParameters) -> SecAggParameters:
    return SecAggParameters(
        num_clients=parameters.num_clients,
        max_colluding=parameters.max_colluding,
        vector_length=parameters.vector_length,
        ring_bits=parameters.ring_bits,
        threshold=parameters.threshold,
        min_clients=2,
        min_honest=2,
    )


# strategies


@st.composite
def cohorts(draw: st.DrawFn) -> HEParameters:
    """Any parameters with few agents and at most two ciphertexts, whatever the lanes."""
    n, ring = draw(st.integers(3, 7)), draw(st.sampled_from([32, 64]))
    colluding = draw(st.integers(0, (n - 3) // 2))
    chosen = draw(st.sampled_from(sorted(PARAMETER_SETS)))
    numbers: dict[str, Any] = {
        "num_clients": n,
        "max_colluding": colluding,
        "ring_bits": ring,
        "parameter_set": ParameterSet.named(chosen),
        "readding": draw(st.sampled_from(["key-authority", "auditor", "none"])),
    }
    # what masking needs as well: two sets of so many agents share an honest one
    least = max((n + colluding) // 2 + 1, colluding + 2)
    numbers["threshold"] = draw(st.integers(least, n))
    most = HEParameters(vector_length=1, **numbers).value_bits
    bits = draw(st.one_of(st.just(most), st.integers(1, most)))
    one = HEParameters(vector_length=1, value_bits=bits, **numbers)
    slots, lanes = one.slots_per_ciphertext, one.lanes
    around = (1, lanes, slots, lanes * slots)
    length = draw(st.sampled_from(around)) + draw(st.integers(-1, 2))
    return HEParameters(vector_length=max(1, length), value_bits=bits, **numbers)


PATTERNS: Final = ("zero", "full", "empty", "minus", "one", "ring", "stripes", "mixed", "random")


def vector_of(pattern: str, parameters: HEParameters, rng: np.random.Generator) -> NDArray[Any]:
    """Every lane at an extreme, or anything; the offset makes -2^(value_bits - 1) a lane of 0."""
    bits, length = parameters.value_bits, parameters.vector_length
    dtype = np.dtype(f"uint{parameters.ring_bits}")
    top = np.iinfo(dtype).max
    minus, empty = (1 << bits) - 1, 1 << (bits - 1)
    full = empty - 1
    plain = {"zero": 0, "full": full, "empty": empty, "minus": minus, "one": 1, "ring": int(top)}
    if pattern in plain:
        return np.full(length, plain[pattern], dtype=dtype)
    if pattern == "stripes":  # neighbours in a slot at opposite ends
        lane = np.arange(length) // max(1, parameters.slots)
        striped: NDArray[Any] = np.where(lane % 2 == 0, full, empty).astype(dtype)
        return striped
    if pattern == "mixed":
        chosen: NDArray[Any] = rng.choice(np.array([0, minus, empty, full], dtype), length)
        return chosen
    anything: NDArray[Any] = rng.integers(0, top, length, dtype=dtype, endpoint=True)
    return anything


@settings(max_examples=EXAMPLES * 3 // 10)
@given(data=st.data(), parameters=cohorts(), seed=st.integers(0, 2**32))
def test_the_opened_sum_is_the_masked_sum_is_the_plain_sum(
    data: st.DataObject, parameters: HEParameters, seed: int
) -> None:
    """Modulo 2^value_bits, over the same survivors, or none of the two opens anything."""
    rng, names = np.random.default_rng(seed), AGENTS[: parameters.num_clients]
    patterns = data.draw(
        st.one_of(
            st.sampled_from(PATTERNS).map(lambda one: [one] * len(names)),
            st.lists(st.sampled_from(PATTERNS), min_size=len(names), max_size=len(names)),
        )
    )
    vectors = {
        name: vector_of(pattern, parameters, rng)
        for name, pattern in zip(names, patterns, strict=True)
    }
    # before it has committed, before its ciphertexts have left, or after
    leaves = data.draw(st.dictionaries(st.sampled_from(names), st.integers(0, 2), max_size=3))
    last = {0: Kind.COMMIT, 1: Kind.UPLOAD, 2: Kind.RECEIPT}

    def lost(message: Outgoing) -> bool:
        kind = kind_of(message)
        if kind is Kind.RECEIPT:
            return leaves.get(message.recipient) is not None
        if kind is Kind.ROSTER:
            return leaves.get(message.recipient) == 0
        if message.recipient != "hub":
            return False
        stage = leaves.get(sender_of(message, parameters))
        return stage is not None and kind is last[stage]

    live = Round(parameters, vectors).play(lost)
    stayed = tuple(name for name in names if leaves.get(name, 2) == 2)
    masked_leaves = {name: 2 * stage for name, stage in leaves.items() if stage < 2}
    if len(stayed) < parameters.threshold:
        assert not live.check()
        with pytest.raises(RoundAborted):
            masked_sum(parameters, vectors, masked_leaves)
        return
    assert live.check()
    opened = live.hub.result()
    masked = masked_sum(parameters, vectors, masked_leaves)
    assert opened.survivors == masked.survivors == stayed
    modulus = 1 << parameters.value_bits
    residues = opened.vector.astype(object) % modulus
    assert np.array_equal(residues, masked.vector.astype(object) % modulus)
    assert np.array_equal(residues, plain_sum(vectors, stayed, parameters.value_bits))
    if parameters.value_bits == parameters.ring_bits:
        assert np.array_equal(opened.vector, masked.vector)


@settings(max_examples=EXAMPLES // 10)
@given(data=st.data(), parameters=cohorts(), seed=st.integers(0, 2**32))
def test_who_decrypts_sees_the_same_for_all_uploads_with_equal_sums(
    data: st.DataObject, parameters: HEParameters, seed: int
) -> None:
    """Two whole rounds, the same survivors with other values of equal sums: all slots are equal.

    Single values are within the range of a lane, and so are those of who leaves; those differ.
    """
    rng, names = np.random.default_rng(seed), AGENTS[: parameters.num_clients]
    stay = data.draw(st.integers(parameters.floor, len(names)))
    last = data.draw(st.sampled_from([Kind.COMMIT, Kind.UPLOAD]))
    half, shape = 1 << (parameters.value_bits - 1), (len(names), parameters.vector_length)
    one = rng.integers(-half, half, shape, dtype=np.int64)
    one[rng.random(shape) < 0.3] = data.draw(st.sampled_from([-half, 0, half - 1]))
    other = rng.integers(-half, half, shape, dtype=np.int64)
    other[:stay] = evened_out(one[:stay])

    def lost(message: Outgoing) -> bool:
        return kind_of(message) is last and sender_of(message, parameters) in names[stay:]

    dtype, seen = np.dtype(f"uint{parameters.ring_bits}"), []
    for values in (one, other):
        vectors = {name: row.astype(dtype) for name, row in zip(names, values, strict=True)}
        live = Round(parameters, vectors).play(lost)
        assert live.check()
        assert live.hub.result().survivors == names[:stay]
        seen.append(live.vault.slots)
    assert np.array_equal(*seen)


def evened_out(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows that differ by 1 at most and have the same sum."""
    count = len(values)
    even, rest = np.divmod(values.sum(axis=0), count)
    rows: NDArray[np.int64] = even + (np.arange(count)[:, None] < rest)
    return rows


def sender_of(message: Outgoing, parameters: HEParameters) -> str:
    kind = kind_of(message)
    return str(peek(message.data, kind, limit=frame_limit(kind, parameters)).sender)


@pytest.mark.parametrize("name", sorted(PARAMETER_SETS))
@pytest.mark.parametrize("pattern", ["full", "stripes"])
def test_the_largest_cohort_of_a_set_sums_exactly_with_every_lane_full(
    name: str, pattern: str
) -> None:
    chosen = ParameterSet.named(name)
    parameters = HEParameters(
        num_clients=chosen.max_clients,
        max_colluding=1,
        vector_length=50,
        threshold=chosen.max_clients,
        parameter_set=chosen,
        value_bits=8,
        readding="none",
    )
    rng = np.random.default_rng(0)
    vectors = {agent: vector_of(pattern, parameters, rng) for agent in AGENTS[: chosen.max_clients]}
    assert Round(parameters, vectors).play().check()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["give", "give", "give", "repeat", "drop", "echo", "close"]),
        st.integers(0, 10**6),
    ),
    max_size=60,
)


@pytest.mark.parametrize("readding", ["key-authority", "auditor", "none"])
def test_any_schedule_of_loss_repetition_and_disorder_ends_in_one_sum_or_none(
    readding: Any,
) -> None:
    parameters = HEParameters(
        num_clients=4, max_colluding=1, vector_length=9, threshold=3, readding=readding
    )
    rng = np.random.default_rng(1)
    vectors = {name: vector_of("random", parameters, rng) for name in AGENTS[:4]}
    outcomes: set[bool] = set()

    @settings(max_examples=EXAMPLES // 5)
    @given(steps=STEPS)
    def holds(steps: list[tuple[str, int]]) -> None:
        outcomes.add(_in_disorder(Round(parameters, vectors), steps))

    holds()
    assert outcomes == {True, False}


def _in_disorder(live: Round, steps: list[tuple[str, int]]) -> bool:
    """Follow ``steps``, then carry on in order; whether there was a sum."""
    waiting, carried = live.open(), list[Outgoing]()

    def give(message: Outgoing) -> None:
        carried.append(message)
        try:
            waiting.extend(live.give(message))
        except ProtocolError:
            return  # a typed refusal or abort; anything else fails the test

    for action, number in steps:
        if action == "close" and not live.hub.finished and number % 5 == 0:
            waiting += live.hub.close_phase()
        elif action == "echo" and carried:  # an old frame to anybody
            old = carried[number % len(carried)]
            everybody = (*live.clients, "hub", *live.services)
            give(Outgoing(everybody[number % len(everybody)], old.data))
        elif waiting and action == "drop" and number % 3 == 0:
            waiting.pop(number % len(waiting))
        elif waiting:
            at = number % min(3, len(waiting))
            give(waiting[at] if action == "repeat" else waiting.pop(at))
    while waiting or not live.hub.finished:
        if waiting:
            give(waiting.pop(0))
        else:
            waiting += live.hub.close_phase()
    assert live.authority.phase in (
        *(AuthorityPhase.DONE, AuthorityPhase.ABORTED, AuthorityPhase.KEYED),
        *(AuthorityPhase.FIXED, AuthorityPhase.IDLE),
    )
    return live.check()


def test_the_sum_does_not_depend_on_the_order_in_which_uploads_come() -> None:
    parameters = HEParameters(num_clients=5, max_colluding=1, vector_length=20, threshold=3)
    rng = np.random.default_rng(2)
    vectors = {name: vector_of("random", parameters, rng) for name in AGENTS[:5]}
    for seed in range(3):
        live, order = Round(parameters, vectors), random.Random(seed)
        waiting = live.open()
        while waiting:
            same = [message for message in waiting if kind_of(message) is kind_of(waiting[0])]
            message = order.choice(same)
            waiting.remove(message)
            waiting += live.give(message)
        assert live.check()
        assert live.hub.result().survivors == AGENTS[:5]
