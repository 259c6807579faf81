"""Coalitions with real keys: what the protocol stops, and what its statement says it does not.

The coordinator (= aggregator) is hostile throughout and may hold one agent's identity. Honest
parties are the shipped classes; the attacker only signs with identities that it owns. A test whose
name begins with ``test_limit`` shows an attack that works: it is there so that the documented limit
stays true in both directions.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterable, Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, Final

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from privfedrl.errors import LocalProtocolError, ProtocolError, RemoteProtocolError, RoundAborted
from privfedrl.he import (
    AggregatorPhase,
    AuthorityPhase,
    ClientPhase,
    HEAggregator,
    HEAuditor,
    HEClient,
    HEParameters,
    KeyAuthority,
    LocalVault,
    ParameterSet,
)
from privfedrl.he.digests import commitment, sealed_digest
from privfedrl.he.frames import Commit, Context, Kind, Upload, encode_frame, frame_limit, peek
from privfedrl.he.lattice import Decryptor, Encryptor, _Scheme, public_key_bytes
from privfedrl.he.residues import Residues, add_into, pack, unpack
from privfedrl.parties import Identity, Journal, MemoryJournal, Outgoing, Registry
from privfedrl.primitives.random import DeterministicEntropy

PLAN, MODEL, TASK = b"p" * 32, b"m" * 32, b"t" * 32
HEAD, OWN_HEAD = b"h" * 32, b"k" * 32
NOW: Final = 1_800_000_000
KEYS: Final = DeterministicEntropy(b"he attacks")
HUB, AUTHORITY, AUDITOR = (
    Identity.generate(name, KEYS) for name in ("coordinator", "authority", "auditor")
)
AGENTS: Final = {name: Identity.generate(name, KEYS) for name in (f"a{i}" for i in range(6))}
VICTIM, LIAR = "a0", "a3"
READDING: Final = ("key-authority", "auditor")

Intercept = Callable[["Round", Outgoing], Iterable[Outgoing]]


class CountingVault(LocalVault):
    """A vault that remembers how often it was asked to decrypt."""

    decryptions = 0

    def decrypt(self, ciphertexts: bytes, count: int) -> NDArray[Any]:
        self.decryptions += 1
        return super().decrypt(ciphertexts, count)


class Round:
    """One round; the attacker sees and may replace every message before it is delivered.

    Who is in ``liars`` has no honest object: the interceptor speaks for it.
    """

    def __init__(
        self,
        parameters: HEParameters,
        *,
        number: int = 1,
        attempt: int = 0,
        liars: tuple[str, ...] = (),
        journals: dict[str, Journal] | None = None,
    ) -> None:
        self.parameters = parameters
        self.names = tuple(AGENTS)[: parameters.num_clients]
        self.registry = registry_of(self.names)
        self.journals = {} if journals is None else journals
        common: dict[str, Any] = {
            "registry": self.registry,
            "parameters": parameters,
            "plan_digest": PLAN,
            "clock": lambda: NOW,
        }
        self.aggregator = HEAggregator(identity=HUB, before_open=lambda names: HEAD, **common)
        self.vault = CountingVault()
        self.charged: list[tuple[str, ...]] = []
        self.authority = KeyAuthority(
            identity=AUTHORITY,
            journal=self._journal("authority"),
            before_decrypt=self._charge,
            vault=lambda: self.vault,
            **common,
        )
        self.auditor = HEAuditor(identity=AUDITOR, **common) if self.audited else None
        self.clients = {
            name: HEClient(identity=AGENTS[name], journal=self._journal(name), **common)
            for name in self.names
            if name not in liars
        }
        self.vectors = {
            name: small_vector(parameters, seed=index) for index, name in enumerate(self.clients)
        }
        self.frames: dict[Kind, list[bytes]] = {kind: [] for kind in Kind}
        self.refused: list[tuple[str, ProtocolError]] = []
        self.start: Any = (TASK, number, attempt, MODEL, bytes(32), b"s" * 32)

    @property
    def audited(self) -> bool:
        return self.parameters.readding == "auditor"

    def _journal(self, name: str) -> Journal:
        return self.journals.setdefault(name, MemoryJournal())

    def _charge(self, config: object, names: tuple[str, ...]) -> bytes:
        assert self.vault.decryptions == 0
        self.charged.append(names)
        return OWN_HEAD

    def play(self, intercept: Intercept = lambda live, message: [message]) -> Round:
        """Deliver everything until nothing is left, closing phases that stall."""
        waiting = self.aggregator.start(*self.start)
        while True:
            while waiting:
                message = waiting.pop(0)
                for given in intercept(self, message):
                    waiting += self.deliver(given)
            if self.aggregator.finished:
                return self
            waiting += self.aggregator.close_phase()

    def deliver(self, message: Outgoing) -> list[Outgoing]:
        self.frames[kind_of(message.data)].append(message.data)
        try:
            return give(self, message)
        except ProtocolError as error:
            self.refused.append((message.recipient, error))
            return []

    def one(self, kind: Kind) -> bytes:
        """The last frame of a kind that was carried."""
        return self.frames[kind][-1]

    def upload_of(self, name: str) -> bytes:
        return next(
            data
            for data in self.frames[Kind.UPLOAD]
            if opened(data, self.parameters).sender == name
        )

    def sum_of(self, names: Iterable[str]) -> NDArray[Any]:
        dtype = np.dtype(f"uint{self.parameters.ring_bits}")
        total: NDArray[Any] = np.sum([self.vectors[name] for name in names], axis=0, dtype=dtype)
        return total

    def codes(self, recipient: str) -> list[str]:
        return [
            error.code
            for name, error in self.refused
            if name == recipient and isinstance(error, RoundAborted)
        ]


def registry_of(names: Iterable[str]) -> Registry:
    return Registry(
        [
            *(AGENTS[name].entry("agent") for name in names),
            HUB.entry("coordinator"),
            AUTHORITY.entry("key-authority"),
            AUDITOR.entry("auditor"),
        ]
    )


def parameters_for(n: int = 5, **numbers: Any) -> HEParameters:
    defaults = {"max_colluding": 1, "vector_length": 40, "threshold": 3}
    return HEParameters(num_clients=n, **(defaults | numbers))


def small_vector(parameters: HEParameters, seed: int) -> NDArray[Any]:
    """Signed numbers below 2^15, as clipped and noised updates are, as residues."""
    numbers = np.random.default_rng(seed).integers(-(2**15), 2**15, parameters.vector_length)
    wide: NDArray[Any] = numbers.astype(np.int64).view(np.uint64)
    return wide.astype(np.dtype(f"uint{parameters.ring_bits}"))


def kind_of(data: bytes) -> Kind:
    return Kind(int.from_bytes(data[6:8], "big"))


def opened(data: bytes, parameters: HEParameters) -> Any:
    kind = kind_of(data)
    return peek(data, kind, limit=frame_limit(kind, parameters))


def give(live: Round, message: Outgoing) -> list[Outgoing]:
    who, data = message.recipient, message.data
    if who == HUB.name:
        return live.aggregator.receive(data)
    if who == AUDITOR.name:
        assert live.auditor is not None
        idle = live.auditor.phase.value == "idle"
        return live.auditor.start(data) if idle else live.auditor.receive(data)
    if who == AUTHORITY.name:
        idle = live.authority.phase is AuthorityPhase.IDLE
        return live.authority.start(data) if idle else live.authority.receive(data)
    client = live.clients.get(who)
    if client is None:
        return []
    if client.phase is ClientPhase.IDLE:
        return client.start(data, live.vectors[who], model_digest=MODEL)
    return client.receive(data)


def attached(data: bytes) -> bytes:
    """What follows the signature of a frame."""
    return data[12 + int.from_bytes(data[8:12], "big") + 64 :]


def changed(data: bytes, signer: Identity, parameters: HEParameters, **fields: Any) -> bytes:
    """The frame with other values for some fields, signed anew by somebody who owns ``signer``."""
    message = msgspec.structs.replace(opened(data, parameters), **fields)
    return encode_frame(message, signer, attached(data))


def sealed_anew(data: bytes, total: bytes, parameters: HEParameters, **fields: Any) -> bytes:
    """A SEALED frame of the coordinator's about other ciphertexts, pinned as they must be."""
    message = opened(data, parameters)
    pin = sealed_digest(message.cfg, message.key, total)
    return encode_frame(msgspec.structs.replace(message, sealed=pin, **fields), HUB, total)


def residues_of(data: bytes, parameters: HEParameters) -> Residues:
    chosen = parameters.parameter_set
    return unpack(attached(data), chosen.sent_primes, chosen.degree, parameters.ciphertexts)


def added(parameters: HEParameters, *parts: Residues) -> bytes:
    primes = parameters.parameter_set.sent_primes
    total = np.zeros_like(parts[0])
    for part in parts:
        add_into(total, part, primes)
    return pack(total, primes)


def times(factor: int, residues: Residues, prime: int) -> Residues:
    """factor * residues modulo one prime; a negative factor negates."""
    return np.array(residues.astype(object) * factor % prime, dtype=np.uint64)


def as_liar(made: bytes | Callable[[Round], bytes], *, uploads: bool = True) -> Intercept:
    """An agent that commits to the ciphertexts ``made``, whatever they are, and uploads them."""
    ciphertexts = b""

    def intercept(live: Round, message: Outgoing) -> Iterator[Outgoing]:
        nonlocal ciphertexts
        if message.recipient != LIAR:
            yield message
            return
        kind, p = kind_of(message.data), live.parameters
        if kind is Kind.CONTEXT:
            cfg, key = round_and_key(message.data, p)
            ciphertexts = made if isinstance(made, bytes) else made(live)
            promise = commitment(cfg, key, LIAR, ciphertexts)
            commit = Commit(cfg=cfg, key=key, sender=LIAR, commitment=promise)
            yield Outgoing(HUB.name, encode_frame(commit, AGENTS[LIAR]))
        elif kind is Kind.ROSTER and uploads:
            yield Outgoing(HUB.name, liars_upload(live, ciphertexts))

    return intercept


def round_and_key(context: bytes, parameters: HEParameters) -> tuple[bytes, bytes]:
    found: Context = opened(context, parameters)
    return found.cfg, found.key


def liars_upload(live: Round, ciphertexts: bytes) -> bytes:
    cfg, key = round_and_key(live.one(Kind.CONTEXT), live.parameters)
    upload = Upload(
        cfg=cfg,
        key=key,
        sender=LIAR,
        roster=live.aggregator._fixed.digest,
        commitment=commitment(cfg, key, LIAR, ciphertexts),
    )
    return encode_frame(upload, AGENTS[LIAR], ciphertexts)


# malleability


def test_without_commitments_a_multiple_of_a_victims_ciphertext_gives_its_vector_away(
    pair: Callable[[str], tuple[Decryptor, Encryptor]],
) -> None:
    """BFV itself: the coalition scales what it cannot read, and reads it out of the sum."""
    decryptor, encryptor = pair("bfv-4096-std")
    chosen = ParameterSet.named("bfv-4096-std")
    (prime,), rng = chosen.sent_primes, np.random.default_rng(1)
    slots = rng.integers(0, 32, (3, 1, chosen.slots), dtype=np.uint64)
    honest = [unpack(encryptor.encrypt(row), (prime,), chosen.degree, 1) for row in slots]
    total = np.zeros_like(honest[0])
    for ciphertext in (*honest, times(256, honest[0], prime)):
        add_into(total, ciphertext, (prime,))
    opened_sum = decryptor.decrypt(pack(total, (prime,)), 1)
    # three numbers below 32 stay below 256, so the multiple stands alone above them
    assert np.array_equal(opened_sum >> np.uint64(8), slots[0])


@pytest.mark.parametrize("factor", [2, -1, 256])
def test_a_colluder_cannot_upload_a_multiple_of_what_was_uploaded(factor: int) -> None:
    """It committed before any honest ciphertext had left, so it holds nothing to multiply."""
    p = parameters_for()
    seen: list[int] = []
    live = Round(p, liars=(LIAR,))
    honest = as_liar(bytes(p.ciphertext_bytes), uploads=False)
    forged: list[bytes] = []

    def intercept(live: Round, message: Outgoing) -> Iterator[Outgoing]:
        if message.recipient == AUTHORITY.name and kind_of(message.data) is Kind.PROPOSAL:
            seen.append(len(live.frames[Kind.UPLOAD]))
        if message.recipient == HUB.name and kind_of(message.data) is Kind.UPLOAD and not forged:
            residues = residues_of(message.data, p)
            (prime,) = p.parameter_set.sent_primes
            forged.append(liars_upload(live, pack(times(factor, residues, prime), (prime,))))
            # the coordinator helps: it gives the forgery to itself and to the authority
            yield Outgoing(HUB.name, forged[0])
            yield Outgoing(AUTHORITY.name, forged[0])
        yield from honest(live, message)

    live.play(intercept)
    assert seen == [0]
    assert [name for name, _ in live.refused] == [HUB.name, AUTHORITY.name]
    assert all("committed to" in str(error) for _, error in live.refused)
    result = live.aggregator.result()
    assert LIAR not in result.survivors
    assert np.array_equal(result.vector, live.sum_of(live.clients))


@pytest.mark.parametrize("after", [Kind.ROSTER, Kind.UPLOAD])
def test_a_second_roster_ends_the_key(after: Kind) -> None:
    """Also one in which the colluder has promised a multiple of the victim's ciphertext."""
    p = parameters_for()
    live = Round(p, liars=(LIAR,))
    liar = as_liar(bytes(p.ciphertext_bytes))
    done: list[bytes] = []

    def intercept(live: Round, message: Outgoing) -> Iterator[Outgoing]:
        yield from liar(live, message)
        if kind_of(message.data) is after and live.frames[Kind.ROSTER] and not done:
            cfg, key = round_and_key(live.one(Kind.CONTEXT), p)
            other = Commit(cfg=cfg, key=key, sender=LIAR, commitment=b"x" * 32)
            commits = [
                data
                for data in dict.fromkeys(live.frames[Kind.COMMIT])
                if opened(data, p).sender != LIAR
            ]
            commits = sorted(
                [*commits, encode_frame(other, AGENTS[LIAR])],
                key=lambda data: str(opened(data, p).sender),
            )
            done.append(changed(live.one(Kind.PROPOSAL), HUB, p, commits=tuple(commits)))
            yield Outgoing(AUTHORITY.name, done[0])

    live.play(intercept)
    assert live.codes(AUTHORITY.name)[0] == "Equivocation"
    assert live.authority.phase is AuthorityPhase.ABORTED
    assert not live.vault.alive
    assert live.vault.decryptions == 0
    assert live.aggregator.phase is AggregatorPhase.ABORTED


# an aggregator that lies about the sum


def lying(form: Callable[[Round], bytes]) -> Intercept:
    """The coordinator replaces the sum in every SEALED frame, and signs that."""

    def intercept(live: Round, message: Outgoing) -> Iterator[Outgoing]:
        if kind_of(message.data) is Kind.SEALED:
            data = sealed_anew(message.data, form(live), live.parameters)
            yield Outgoing(message.recipient, data)
        else:
            yield message

    return intercept


def uploads_of(live: Round) -> list[Residues]:
    return [residues_of(live.upload_of(name), live.parameters) for name in live.clients]


def single(live: Round) -> bytes:
    return attached(live.upload_of(VICTIM))


def twice(live: Round) -> bytes:
    parts = uploads_of(live)
    return added(live.parameters, *parts, parts[0])


def one_left_out(live: Round) -> bytes:
    return added(live.parameters, *uploads_of(live)[1:])


def known_offset(live: Round) -> bytes:
    p = live.parameters
    encryptor = Encryptor(p.parameter_set, attached(live.one(Kind.CONTEXT)))
    marker = np.full(p.vector_length, 1, dtype=np.dtype(f"uint{p.ring_bits}"))
    extra = encryptor.encrypt(p.to_slots(marker))
    chosen = p.parameter_set
    residues = unpack(extra, chosen.sent_primes, chosen.degree, p.ciphertexts)
    return added(p, *uploads_of(live), residues)


LIES: Final = (single, twice, one_left_out, known_offset)


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("readding", READDING)
def test_whoever_re_adds_refuses_a_sum_that_is_not_that_of_the_uploads(
    readding: Any, lie: Callable[[Round], bytes]
) -> None:
    live = Round(parameters_for(readding=readding)).play(lying(lie))
    refuser = AUTHORITY.name if readding == "key-authority" else AUDITOR.name
    assert live.codes(refuser) == ["SumMismatch"]
    assert live.vault.decryptions == 0
    assert live.charged == []
    assert live.aggregator.phase is AggregatorPhase.ABORTED


@pytest.mark.parametrize("lie", LIES)
def test_an_authority_that_waits_for_the_auditor_opens_nothing_else(
    lie: Callable[[Round], bytes],
) -> None:
    """The coordinator shows the true sum to the auditor and another one to the authority."""

    def intercept(live: Round, message: Outgoing) -> Iterable[Outgoing]:
        return [message] if message.recipient == AUDITOR.name else lying(lie)(live, message)

    live = Round(parameters_for(readding="auditor")).play(intercept)
    assert live.frames[Kind.ATTESTATION]
    assert live.codes(AUTHORITY.name) == ["SumMismatch"]
    assert not live.vault.alive
    assert live.vault.decryptions == 0


def test_an_authority_that_waits_for_the_auditor_needs_its_word() -> None:
    p = parameters_for(readding="auditor")

    def intercept(live: Round, message: Outgoing) -> Iterator[Outgoing]:
        if message.recipient == AUDITOR.name and kind_of(message.data) is Kind.SEALED:
            yield Outgoing(AUTHORITY.name, message.data)  # no attestation inside
        else:
            yield message

    live = Round(p).play(intercept)
    assert live.codes(AUTHORITY.name) == ["BadSignature"]
    assert live.vault.decryptions == 0


def test_limit_without_re_adding_a_lying_aggregator_has_a_single_upload_opened() -> None:
    live = Round(parameters_for(readding="none")).play(lying(single))
    assert live.vault.decryptions == 1
    opening = opened(live.one(Kind.OPENING), live.parameters)
    assert opened(opening.receipt, live.parameters).contributors == b"\x1f"
    vector = np.frombuffer(attached(live.one(Kind.OPENING)), "<u4")
    assert np.array_equal(vector, live.vectors[VICTIM])


def test_limit_an_authority_that_re_adds_could_open_single_uploads() -> None:
    """Confidentiality from the authority rests on its not doing this."""
    p = parameters_for(readding="key-authority")
    stolen: list[NDArray[Any]] = []

    def intercept(live: Round, message: Outgoing) -> Iterator[Outgoing]:
        yield message
        if message.recipient != AUTHORITY.name or kind_of(message.data) is not Kind.UPLOAD:
            return
        if opened(message.data, p).sender == VICTIM:
            decryptor = live.vault._decryptor
            assert decryptor is not None
            slots = decryptor.decrypt(attached(message.data), p.ciphertexts)
            stolen.append(p.from_slots(slots, 1))

    live = Round(p).play(intercept)
    assert np.array_equal(stolen[0], live.vectors[VICTIM])


@pytest.mark.parametrize("readding", READDING)
def test_an_upload_of_another_round_is_not_added_by_anybody(readding: Any) -> None:
    p, journals = parameters_for(readding=readding), dict[str, Journal]()
    old = Round(p, number=1, journals=journals).play().upload_of(VICTIM)
    re_adder = AUTHORITY.name if readding == "key-authority" else AUDITOR.name

    def intercept(live: Round, message: Outgoing) -> Iterator[Outgoing]:
        if message.recipient == HUB.name and kind_of(message.data) is Kind.UPLOAD:
            yield Outgoing(HUB.name, old)
            yield Outgoing(re_adder, old)
        yield message

    live = Round(p, number=2, journals=journals).play(intercept)
    assert {name for name, _ in live.refused} == {HUB.name, re_adder}
    assert all(isinstance(error, RemoteProtocolError) for _, error in live.refused)
    assert np.array_equal(live.aggregator.result().vector, live.sum_of(live.names))


@pytest.mark.parametrize("named", [0b11, 0b111, 0b1111, 0b111111])
def test_a_sum_under_another_set_of_names_is_refused(named: int) -> None:
    """Fewer than the floor, fewer than were added, and one who is not registered."""

    def intercept(live: Round, message: Outgoing) -> Iterator[Outgoing]:
        if kind_of(message.data) is Kind.SEALED:
            data = changed(message.data, HUB, live.parameters, contributors=bytes([named]))
            yield Outgoing(message.recipient, data)
        else:
            yield message

    live = Round(parameters_for()).play(intercept)
    assert live.codes(AUTHORITY.name)[0] in ("CohortTooSmall", "SumMismatch", "RosterMismatch")
    assert live.vault.decryptions == 0


# split views


def test_a_round_has_one_key_and_the_authority_makes_no_second() -> None:
    p, journals = parameters_for(), dict[str, Journal]()
    Round(p, journals=journals).play()
    again = Round(p, journals=journals)
    config = again.aggregator.start(*again.start)[0].data
    with pytest.raises(LocalProtocolError, match="not newer"):
        again.authority.start(config)
    assert again.authority.phase is AuthorityPhase.ABORTED
    with pytest.raises(RoundAborted):
        again.authority.receive(config)


def test_agents_of_another_config_do_not_encrypt_under_this_key() -> None:
    """The coordinator shows half of the agents another config of the same round."""
    p, half = parameters_for(), ("a0", "a1")

    def intercept(live: Round, message: Outgoing) -> Iterator[Outgoing]:
        if message.recipient in half and kind_of(message.data) is Kind.CONFIG:
            message = Outgoing(
                message.recipient, changed(message.data, HUB, p, round_seed=b"z" * 32)
            )
        yield message

    live = Round(p).play(intercept)
    assert [name for name, _ in live.refused] == list(half)
    assert live.aggregator.result().survivors == ("a2", "a3", "a4")
    assert all(live.clients[name].phase is ClientPhase.JOINED for name in half)


def test_a_cohort_that_is_split_below_the_floor_is_not_opened_at_all() -> None:
    """Two attempts, two keys, and every agent in one of them only: neither has enough."""
    p = parameters_for()
    for attempt, shown in enumerate((("a0", "a1"), ("a2", "a3"))):
        live = Round(p, attempt=attempt)

        def intercept(
            live: Round, message: Outgoing, shown: tuple[str, ...] = shown
        ) -> Iterator[Outgoing]:
            if message.recipient not in live.names or message.recipient in shown:
                yield message
            if message.recipient == HUB.name and len(live.aggregator._commits) == len(shown):
                # the hostile coordinator does not stop where the honest object would
                yield from live.aggregator._propose()

        live.play(intercept)
        assert live.codes(AUTHORITY.name)[0] == "CohortTooSmall"
        assert not live.vault.alive
        assert live.vault.decryptions == 0
        assert live.frames[Kind.UPLOAD] == []


def test_agents_take_the_one_roster_that_the_authority_signed() -> None:
    """The coordinator signs a roster of its own for one agent: it is not the coordinator's to."""
    p = parameters_for()

    def intercept(live: Round, message: Outgoing) -> Iterator[Outgoing]:
        if message.recipient == VICTIM and kind_of(message.data) is Kind.ROSTER:
            mine = changed(message.data, HUB, p, sender=HUB.name)
            yield Outgoing(VICTIM, mine)
        else:
            yield message

    live = Round(p).play(intercept)
    assert isinstance(live.refused[0][1], RemoteProtocolError)
    assert VICTIM not in {opened(data, p).sender for data in live.frames[Kind.UPLOAD]}
    assert VICTIM not in live.aggregator.result().survivors


# a second opening


def test_a_second_request_is_refused_and_finds_no_key() -> None:
    p = parameters_for()
    live = Round(p).play()
    sealed = live.one(Kind.SEALED)
    for second in (
        changed(sealed, HUB, p, ledger_head=b"z" * 32),
        sealed_anew(sealed, one_left_out(live), p, contributors=b"\x0f"),
        sealed_anew(sealed, single(live), p),
    ):
        with pytest.raises(RemoteProtocolError, match="after the end"):
            live.authority.receive(second)
    assert live.authority.receive(sealed) == []
    assert live.vault.decryptions == 1
    assert not live.vault.alive
    with pytest.raises(LocalProtocolError):
        live.vault.decrypt(single(live), p.ciphertexts)


def test_a_retry_on_the_same_model_that_singles_an_agent_out_is_refused() -> None:
    """differencing="model": the sum of all but one, after the sum of all, is never opened."""
    p, journals = parameters_for(differencing="model"), dict[str, Journal]()
    assert Round(p, attempt=0, journals=journals).play().vault.decryptions == 1

    def intercept(live: Round, message: Outgoing) -> Iterator[Outgoing]:
        if message.recipient != VICTIM:
            yield message

    live = Round(p, attempt=1, journals=journals).play(intercept)
    assert live.codes(AUTHORITY.name)[0] == "Differencing"
    assert live.vault.decryptions == 0
    assert not live.vault.alive


def test_limit_without_the_guard_a_retry_on_the_same_model_is_opened() -> None:
    p, journals = parameters_for(differencing="off"), dict[str, Journal]()
    Round(p, attempt=0, journals=journals).play()

    def intercept(live: Round, message: Outgoing) -> Iterator[Outgoing]:
        if message.recipient != VICTIM:
            yield message

    live = Round(p, attempt=1, journals=journals).play(intercept)
    assert live.vault.decryptions == 1


def test_the_authority_charges_before_it_decrypts_and_not_at_all_for_what_it_refuses() -> None:
    live = Round(parameters_for()).play()
    assert live.charged == [live.names]
    assert live.aggregator.result().receipt.ledger_head == OWN_HEAD


# ciphertexts that are none: chosen to carry the secret key out

MULTIPLIERS: Final = (1, 2**20, 3 * 2**30 + 1)


def key_carriers(parameters: HEParameters) -> bytes:
    """(x, round(q M / t)) for each M: adds M s, s the secret key, to the opened polynomial.

    And x takes the offsets of all others off every slot, so that what they add is small.
    """
    chosen, half = parameters.parameter_set, 1 << (parameters.value_bits - 1)
    lanes = range(parameters.lanes)
    offsets = sum(half << (lane * parameters.lane_bits) for lane in lanes)
    others = (parameters.num_clients - 1) * offsets
    (prime,), t = chosen.sent_primes, chosen.plain_modulus or 0
    residues = np.zeros((parameters.ciphertexts, 2, 1, chosen.degree), dtype=np.uint64)
    for index, factor in enumerate(MULTIPLIERS):
        residues[index, 0, 0, 0] = (prime * (-others % t) + t // 2) // t
        residues[index, 1, 0, 0] = (prime * factor + t // 2) // t
    return pack(residues, (prime,))


def key_from_sum(total: NDArray[Any], parameters: HEParameters) -> NDArray[Any]:
    """The ternary key from the opened sum, whose honest part is only known to be small.

    Slot i holds, modulo 2^w0, M s(r_i) mod t plus a number below 2^18 in magnitude. The slot that
    stays empty is not sent: that the first coefficient is -1, 0 or 1 leaves three candidates.
    """
    chosen = parameters.parameter_set
    t, w = chosen.plain_modulus or 0, 1 << parameters.value_bits
    first, *others = total.astype(object).reshape(3, parameters.slots_per_ciphertext) % w
    found = [
        next(value for value in candidates(values, t, w))
        for values in zip(first, *others, strict=True)
    ]
    known = coefficients([*found, 0], chosen)
    unit = coefficients([0] * len(found) + [1], chosen)
    for guess in (-1, 0, 1):
        missing = (guess - known[0]) * pow(int(unit[0]), -1, t)
        key: NDArray[Any] = (known + missing * unit + 1) % t - 1
        if set(key.tolist()) == {-1, 0, 1}:
            return key
    pytest.fail("no ternary polynomial has these slots")


def candidates(values: tuple[int, ...], t: int, w: int) -> Iterator[int]:
    """Slots s(r_i) that explain what was seen of their multiples, up to small errors."""

    def off(value: int) -> int:
        return (value + w // 2) % w - w // 2

    first, *others = values
    for guess in range(first, t, w):
        error = round(off(MULTIPLIERS[1] * guess % t - others[0]) / MULTIPLIERS[1])
        value = (guess - error) % t
        if all(
            abs(off(seen - factor * value % t)) < 2**19
            for seen, factor in zip(others, MULTIPLIERS[1:], strict=True)
        ):
            yield value


def coefficients(slots: list[int], chosen: ParameterSet) -> NDArray[Any]:
    """The polynomial with these slots, as Python's integers below t."""
    plain = _Scheme(chosen).encode(np.array(slots, dtype=np.uint64))
    out = np.zeros(chosen.degree, dtype=object)
    for at in range(plain.coeff_count()):
        out[at] = plain.data(at)
    return out


def decrypted_by_hand(residues: Residues, key: NDArray[Any], parameters: HEParameters) -> Any:
    """The vector inside an upload: round(t (c0 + c1 s) / q), with Python's integers."""
    chosen = parameters.parameter_set
    (q,), t, n = chosen.sent_primes, chosen.plain_modulus or 0, chosen.degree
    scheme, rows = _Scheme(chosen), []
    for c0, c1 in residues[:, :, 0].tolist():
        product = _times_ternary(c1, key, n)
        phases = [(a + b) % q for a, b in zip(c0, product, strict=True)]
        numbers = [(2 * t * phase + q) // (2 * q) % t for phase in phases]
        rows.append(scheme.decode(scheme.seal.Plaintext(polynomial(numbers))))
    return parameters.from_slots(np.array(rows), 1)


def _times_ternary(numbers: list[int], key: NDArray[Any], n: int) -> list[int]:
    """Product modulo X^n + 1, by packing polynomials into integers of 80 bits a place."""
    size = 10

    def packed(values: Iterable[int]) -> int:
        return int.from_bytes(b"".join(int(v).to_bytes(size, "little") for v in values), "little")

    def places(value: int) -> list[int]:
        data = value.to_bytes(2 * n * size, "little")
        return [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]

    whole = packed(numbers)
    plus, minus = (places(whole * packed(key == sign)) for sign in (1, -1))
    return [plus[at] - plus[at + n] - minus[at] + minus[at + n] for at in range(n)]


@pytest.mark.parametrize(("ring_bits", "value_bits"), [(32, 0), (64, 0), (32, 18), (32, 8)])
def test_an_agents_made_up_ciphertexts_do_not_carry_the_key_out(
    ring_bits: int, value_bits: int
) -> None:
    """Coordinator and one agent: no commitment, roster or re-adding stands in the way of this.

    What does is the authority's look at the slots: a key's slots are random numbers modulo t, of
    which one in 2^guard_bits or fewer is in the range of an honest sum, and 4096 of them never are.
    """
    p = parameters_for(4, vector_length=1, ring_bits=ring_bits, value_bits=value_bits)
    p = dataclasses.replace(p, vector_length=3 * p.slots_per_ciphertext * p.lanes)
    live = Round(p, liars=(LIAR,)).play(as_liar(key_carriers(p)))
    assert live.codes(AUTHORITY.name)[0] == "SumMismatch"
    assert not live.frames[Kind.OPENING]
    assert not live.vault.alive
    assert live.aggregator.phase is AggregatorPhase.ABORTED


def test_without_a_look_at_the_slots_the_same_ciphertexts_would_give_every_upload_away() -> None:
    """The sum of such a round, decrypted here as an authority would that checks nothing."""
    p = parameters_for(4, vector_length=1, ring_bits=64)
    p = dataclasses.replace(p, vector_length=3 * p.slots_per_ciphertext)
    opened_sums: list[NDArray[Any]] = []
    liar = as_liar(key_carriers(p))

    def intercept(live: Round, message: Outgoing) -> Iterator[Outgoing]:
        if kind_of(message.data) is Kind.SEALED:
            decryptor = live.vault._decryptor
            assert decryptor is not None
            opened_sums.append(
                p.from_slots(
                    decryptor.decrypt(attached(message.data), p.ciphertexts), p.num_clients
                )
            )
        yield from liar(live, message)

    live = Round(p, liars=(LIAR,)).play(intercept)
    key = key_from_sum(opened_sums[0], p)
    stolen = decrypted_by_hand(residues_of(live.upload_of(VICTIM), p), key, p)
    assert np.array_equal(stolen, live.vectors[VICTIM])


def bit_carriers(parameters: HEParameters, guesses: Iterable[tuple[int, int]], place: int) -> bytes:
    """A ciphertext for each (j, guess): adds ([s_j = 1] - guess) X^place to the polynomial.

    (0.3 X^place, 0.4 X^(place - j)) in units of q / t, less the guess: at ``place`` the phase is
    0.3 + 0.4 s_j, which rounds to 1 if s_j is 1 and to 0 otherwise; elsewhere it rounds to 0.
    All that beside what an honest upload of zeros opens to.
    """
    chosen = parameters.parameter_set
    (prime,), t, n = chosen.sent_primes, chosen.plain_modulus or 0, chosen.degree
    residues = np.zeros((parameters.ciphertexts, 2, 1, n), dtype=np.uint64)
    zeros = np.zeros(parameters.vector_length, dtype=np.dtype(f"uint{parameters.ring_bits}"))
    honest = coefficients(parameters.to_slots(zeros)[0].tolist(), chosen)
    for index, (j, guess) in enumerate(guesses):
        residues[index, 0, 0] = (prime * honest + t // 2) // t % prime
        first = int(residues[index, 0, 0, place]) + (3 - 10 * guess) * prime // (10 * t)
        residues[index, 0, 0, place] = first % prime
        power = (place - j) % (2 * n)
        sign = 1 if power < n else -1  # X^N = -1
        residues[index, 1, 0, power % n] = sign * (4 * prime // (10 * t)) % prime
    return pack(residues, (prime,))


@pytest.mark.parametrize("wrong", [None, 0, 7], ids=["all right", "a 1 as 0", "a 0 as 1"])
@pytest.mark.parametrize("place", [0, 1, 2048])
def test_bits_of_the_key_are_told_only_by_whether_all_of_them_were_guessed_right(
    place: int, wrong: int | None
) -> None:
    """A polynomial's constant adds the same small number to every slot: in range but in one.

    The slot that stays empty must be 0, so a round is refused whichever way a bit falls, unless
    it was guessed; then the honest sum is opened and says no more. That is one bit in all, however
    many ciphertexts and coefficients of the key take part. At other places than the constant's,
    the slots that are filled give it away as well.
    """
    p = parameters_for(4, vector_length=1)
    p = dataclasses.replace(p, vector_length=8 * p.slots_per_ciphertext)

    def made(live: Round) -> bytes:
        """No attacker knows the key; the test tries every outcome of its guesses."""
        assert live.vault._decryptor is not None
        is_one = secret_key(live.vault._decryptor, p.parameter_set) == 1
        guesses = [(int(j), 1) for j in np.flatnonzero(is_one)[:4]]
        guesses += [(int(j), 0) for j in np.flatnonzero(~is_one)[:4]]
        if wrong is not None:
            guesses[wrong] = guesses[wrong][0], 1 - guesses[wrong][1]
        return bit_carriers(p, guesses, place)

    live = Round(p, liars=(LIAR,)).play(as_liar(made))
    if wrong is None:
        result = live.aggregator.result()
        assert LIAR in result.survivors
        assert np.array_equal(result.vector, live.sum_of(live.clients))
        return
    assert live.codes(AUTHORITY.name)[0] == "SumMismatch"
    assert not live.frames[Kind.OPENING]
    assert not live.vault.alive
    assert live.aggregator.phase is AggregatorPhase.ABORTED


def test_limit_under_ckks_an_agents_made_up_ciphertexts_carry_half_of_the_key_out() -> None:
    """Small multiples of the key look like small sums, so no range check can see them.

    One ciphertext opens Re s(r) at all roots r, that is s_j - s_{N-j} for every j; a second one,
    times X, would open the other half. Do not use CKKS where an agent may be hostile.
    """
    chosen = ParameterSet.named("ckks-4096-add")
    p = parameters_for(4, vector_length=chosen.slots, parameter_set=chosen)
    (prime,) = chosen.sent_primes
    made_up = np.zeros((1, 2, 1, chosen.degree), dtype=np.uint64)
    made_up[0, 1] = 2**36  # a constant polynomial, in the form of evaluations
    live = Round(p, liars=(LIAR,)).play(as_liar(pack(made_up, (prime,))))
    opened_sum = live.aggregator.result().vector.view(np.int32).astype(np.float64) / 2**17
    degree = chosen.degree
    values = np.zeros(2 * degree)
    for slot, value in enumerate(opened_sum):
        exponent = pow(3, slot, 2 * degree)
        values[exponent] = values[2 * degree - exponent] = value
    halves = np.fft.fft(values).real / degree  # (s_j - s_{N-j}) / 2, but for the honest sum's part
    twice_these = 2 * halves[1:degree]
    nearest = np.rint(twice_these)
    assert np.abs(twice_these - nearest).max() < 0.25
    assert set(nearest.tolist()) == {-2, -1, 0, 1, 2}


# where the key is


def secret_key(decryptor: Decryptor, chosen: ParameterSet) -> NDArray[np.int64]:
    """The coefficients of the secret key, got out of the key's own holder as above."""
    (prime,), t = chosen.sent_primes, chosen.plain_modulus or 0
    residues = np.zeros((1, 2, 1, chosen.degree), dtype=np.uint64)
    residues[0, 1, 0, 0] = (prime + t // 2) // t
    slots = decryptor.decrypt(pack(residues, (prime,)), 1)
    plain = _Scheme(chosen).encode(slots[0])
    key = np.array([plain.data(at) for at in range(chosen.degree)], dtype=np.uint64)
    return np.where(key > t // 2, key.astype(np.int64) - t, key.astype(np.int64))


def forms_of(key: NDArray[np.int64], chosen: ParameterSet) -> list[bytes]:
    """16 coefficients of the key in every form in which software keeps one."""
    (prime,) = chosen.sent_primes
    ntt = evaluations(key, _Scheme(chosen))
    part = slice(64, 80)
    pairs = np.stack([key % prime, ntt.astype(np.int64)])[None, :, None].astype(np.uint64)
    packed = pack(pairs, (prime,))
    size, at = chosen.degree * 60 // 8, 64 * 60 // 8
    return [
        key[part].astype("i1").tobytes(),
        key[part].astype("<i4").tobytes(),
        key[part].astype("<i8").tobytes(),
        (key % prime)[part].astype("<u8").tobytes(),
        ntt[part].tobytes(),
        packed[at : at + 120],
        packed[size + at : size + at + 120],
    ]


def evaluations(key: NDArray[np.int64], scheme: _Scheme) -> NDArray[np.uint64]:
    """The key at the roots, modulo the first prime: SEAL's own form of it."""
    text = polynomial((key % (scheme.parameters.plain_modulus or 1)).tolist())
    plain = scheme.seal.Plaintext(text)
    evaluator = scheme.seal.Evaluator(scheme.context)
    evaluator.transform_to_ntt_inplace(plain, scheme.context.first_parms_id())
    return np.array([plain.data(at) for at in range(len(key))], dtype="<u8")


def polynomial(numbers: list[int]) -> str:
    """SEAL's notation: coefficients in hexadecimal, highest power first."""
    return " + ".join(f"{v:X}x^{at}" for at, v in reversed([*enumerate(numbers)]) if v)


def buffers_of(root: object) -> list[bytes]:
    """Every byte string and array that can be reached from ``root``, code excepted."""
    code = (ModuleType, type, FunctionType, BuiltinFunctionType, MethodType)
    seen: set[int] = set()
    found: list[bytes] = []
    waiting: list[object] = [root]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, code):
            continue
        seen.add(id(one))
        if isinstance(one, bytes | bytearray):
            found.append(bytes(one))
        elif isinstance(one, memoryview | np.ndarray):
            found.append(one.tobytes())
        waiting += gc.get_referents(one)
    return found


@pytest.mark.parametrize("readding", READDING)
def test_no_key_is_in_anybodys_memory_or_frames_but_the_authoritys(readding: Any) -> None:
    p = parameters_for(readding=readding)
    forms: list[bytes] = []

    def search(live: Round, message: Outgoing) -> Iterator[Outgoing]:
        yield message
        decryptor = live.vault._decryptor
        if decryptor is None:
            return
        if not forms:
            forms.extend(forms_of(secret_key(decryptor, p.parameter_set), p.parameter_set))
        views = (*live.clients.values(), live.aggregator, live.auditor)
        for buffer in (*buffers_of(views), message.data):
            assert not any(form in buffer for form in forms)

    live = Round(p).play(search)
    assert live.aggregator.phase is AggregatorPhase.DONE
    assert all(form not in data for sent in live.frames.values() for data in sent for form in forms)
    planted = {"deep": [(1, bytearray(b"..." + forms[4] + b"..."))]}  # the search does find it
    assert any(forms[4] in buffer for buffer in buffers_of(planted))


def test_the_form_in_which_the_search_looks_for_the_key_is_the_one_seal_uses(
    pair: Callable[[str], tuple[Decryptor, Encryptor]],
) -> None:
    """b = -(a s + e) in the public key: with the right s, what is left of it is small."""
    decryptor, _ = pair("bfv-4096-std")
    chosen = ParameterSet.named("bfv-4096-std")
    key = secret_key(decryptor, chosen)
    assert set(key.tolist()) == {-1, 0, 1}
    (public,) = unpack(decryptor.public_key, chosen.primes, chosen.degree, 1)
    (prime,), scheme = chosen.sent_primes, _Scheme(chosen)
    form = evaluations(key, scheme).astype(object)
    left = np.zeros((2, 1, chosen.degree), dtype=np.uint64)
    left[0, 0] = (public[0, 0].astype(object) + public[1, 0].astype(object) * form) % prime
    left[1, 0] = 1  # SEAL refuses a ciphertext whose second polynomial is zero
    members = scheme._members(scheme.context.first_parms_id(), left, ntt=True, scale=1.0)
    ciphertext = scheme._load(scheme.seal.Ciphertext(), members, left)
    scheme.seal.Evaluator(scheme.context).transform_from_ntt_inplace(ciphertext)
    error = scheme.residues(ciphertext, 1)[0, 0].astype(np.int64)
    assert np.abs(np.where(error > prime // 2, error - prime, error)).max() <= 21
    assert np.any(error)


def test_a_public_key_opens_nothing() -> None:
    """What the context frame holds, and what SEAL makes of it."""
    assert Context.__struct_fields__ == ("cfg", "key", "sender", "not_after")
    p = parameters_for()
    live = Round(p).play()
    public_key = attached(live.one(Kind.CONTEXT))
    assert len(public_key) == public_key_bytes(p.parameter_set)
    encryptor = Encryptor(p.parameter_set, public_key)
    assert not any("decrypt" in name or "secret" in name for name in dir(encryptor))
    scheme = encryptor._scheme
    chosen = p.parameter_set
    (residues,) = unpack(public_key, chosen.primes, chosen.degree, 1)
    with pytest.raises(TypeError):
        scheme.seal.Decryptor(scheme.context, scheme.public_key(residues))
