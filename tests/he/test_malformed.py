"""Malformed ciphertexts, class by class, as somebody with a registered key would send them.

The classes are those that TenSEAL's own format lets through (silent garbage, reads past a buffer,
hangs, crashes). Here each one is either a typed error that changes nothing, or has no words: a
frame has no field for it. The last tests show two of the classes against TenSEAL itself, in a
process of their own: they are why none of its bytes is ever taken from a peer.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np
import pytest
import tenseal

from privfedrl.errors import (
    AuthenticationFailed,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    RoundAborted,
)
from privfedrl.he import (
    AggregatorPhase,
    AuthorityPhase,
    ClientPhase,
    HEAggregator,
    HEClient,
    HEParameters,
    KeyAuthority,
    LocalVault,
    ParameterSet,
)
from privfedrl.he.digests import commitment, key_digest, sealed_digest
from privfedrl.he.frames import (
    Attestation,
    Context,
    Kind,
    Opening,
    Sealed,
    Upload,
    encode_frame,
    frame_limit,
    peek,
)
from privfedrl.he.lattice import Decryptor, Encryptor, _Scheme
from privfedrl.he.residues import pack, packed_bytes, unpack
from privfedrl.parties import Identity, MemoryJournal, Outgoing, Registry
from privfedrl.parties.binding import label
from privfedrl.parties.identity import Role
from privfedrl.primitives.random import DeterministicEntropy

PLAN, MODEL, TASK, HEAD = b"p" * 32, b"m" * 32, b"t" * 32, b"h" * 32
NOW: Final = 1_800_000_000
KEYS: Final = DeterministicEntropy(b"he malformed")
ROLES: Final[dict[str, Role]] = {
    "hub": "coordinator",
    "authority": "key-authority",
    "auditor": "auditor",
}
NAMES: Final = ("a0", "a1", "a2", "a3", "a4")
LIAR: Final = "a4"
WHO: Final = {name: Identity.generate(name, KEYS) for name in (*NAMES, *ROLES)}
REGISTRY: Final = Registry(
    [identity.entry(ROLES.get(name, "agent")) for name, identity in WHO.items()]
)
P: Final = HEParameters(num_clients=5, max_colluding=1, vector_length=5000, threshold=3)
SET: Final = P.parameter_set
SIZE: Final = P.ciphertext_bytes // P.ciphertexts
VECTORS: Final = {
    name: np.random.default_rng(index).integers(0, 2**32, P.vector_length, dtype=np.uint32)
    for index, name in enumerate(NAMES)
}


class Round:
    """One round in which everybody is honest but the agent LIAR, who sends what it is told to.

    ``swap`` replaces the ciphertexts that LIAR commits to and uploads; ``edit`` replaces whole
    frames, of anybody, on their way.
    """

    def __init__(
        self,
        swap: Callable[[bytes], bytes] = lambda good: good,
        edit: Callable[[Round, str, bytes], bytes] = lambda live, recipient, data: data,
        parameters: HEParameters = P,
    ) -> None:
        common: dict[str, Any] = {
            "registry": REGISTRY,
            "parameters": parameters,
            "plan_digest": PLAN,
            "clock": lambda: NOW,
        }
        self.swap, self.edit, self.parameters = swap, edit, parameters
        self.vault = LocalVault()
        self.hub = HEAggregator(identity=WHO["hub"], before_open=lambda names: HEAD, **common)
        self.authority = KeyAuthority(
            identity=WHO["authority"],
            journal=MemoryJournal(),
            before_decrypt=lambda config, names: HEAD,
            vault=lambda: self.vault,
            **common,
        )
        self.clients = {
            name: HEClient(identity=WHO[name], journal=MemoryJournal(), **common) for name in NAMES
        }
        self.refused: list[tuple[str, ProtocolError]] = []
        self.lie = b""

    def play(self) -> Round:
        waiting = self.hub.start(TASK, 1, 0, MODEL, bytes(32), b"s" * 32)
        while True:
            while waiting:
                message = waiting.pop(0)
                data = self.edit(self, message.recipient, message.data)
                try:
                    waiting += self.give(message.recipient, data)
                except ProtocolError as error:
                    self.refused.append((message.recipient, error))
            if self.hub.finished:
                return self
            waiting += self.hub.close_phase()

    def give(self, who: str, data: bytes) -> list[Outgoing]:
        if who == "hub":
            return self.hub.receive(data)
        if who in NAMES:
            return self.give_client(who, data)
        if self.authority.phase is AuthorityPhase.IDLE:
            return self.authority.start(data)
        return self.authority.receive(data)

    def give_client(self, who: str, data: bytes) -> list[Outgoing]:
        client = self.clients[who]
        if client.phase is ClientPhase.IDLE:
            return client.start(data, VECTORS[who][: self.length], model_digest=MODEL)
        if who == LIAR and kind_of(data) in (Kind.ROSTER, Kind.RECEIPT):
            return self.lied(data) if kind_of(data) is Kind.ROSTER else []
        answer = client.receive(data)
        return [self.promised(out) for out in answer] if who == LIAR else answer

    @property
    def length(self) -> int:
        return self.parameters.vector_length

    def promised(self, out: Outgoing) -> Outgoing:
        """The liar's promise of what it makes of its ciphertexts."""
        good = self.clients[LIAR]._ciphertexts
        assert good is not None
        self.lie = self.swap(good)
        promise = commitment(self.hub._now.cfg, self.hub._key, LIAR, self.lie)
        return Outgoing("hub", changed(out.data, LIAR, commitment=promise))

    def lied(self, roster: bytes) -> list[Outgoing]:
        """The liar's upload of what it has promised."""
        message = read(roster)
        upload = Upload(
            cfg=message.cfg,
            key=message.key,
            sender=LIAR,
            roster=self.hub._fixed.digest,
            commitment=commitment(message.cfg, message.key, LIAR, self.lie),
        )
        return [Outgoing("hub", encode_frame(upload, WHO[LIAR], self.lie))]

    def opens(self, names: tuple[str, ...]) -> None:
        result = self.hub.result()
        assert result.survivors == names
        expected = np.sum([VECTORS[name][: self.length] for name in names], axis=0, dtype="u4")
        assert np.array_equal(result.vector, expected)


def kind_of(data: bytes) -> Kind:
    return Kind(int.from_bytes(data[6:8], "big"))


def read(data: bytes) -> Any:
    kind = kind_of(data)
    return peek(data, kind, limit=2 * frame_limit(kind, P))


def end_of(data: bytes) -> int:
    """Where the signed part of a frame ends: 64 bytes of signature follow, then the attachment."""
    return 12 + int.from_bytes(data[8:12], "big")


def payload_of(data: bytes) -> bytes:
    return data[12 : end_of(data)]


def attached(data: bytes) -> bytes:
    return data[end_of(data) + 64 :]


def pinned(message: Any, attachment: bytes) -> dict[str, bytes]:
    """The field in which a message of this kind must name this attachment."""
    cfg = message.cfg
    if isinstance(message, Context):
        return {"key": key_digest(cfg, attachment)}
    if isinstance(message, Upload):
        return {"commitment": commitment(cfg, message.key, message.sender, attachment)}
    assert isinstance(message, Sealed)
    return {"sealed": sealed_digest(cfg, message.key, attachment)}


def changed(data: bytes, signer: str, **fields: Any) -> bytes:
    """Other fields under a right signature, around the same attachment."""
    message = msgspec.structs.replace(read(data), **({"sender": signer} | fields))
    return encode_frame(message, WHO[signer], attached(data))


def carrying(data: bytes, signer: str, attachment: bytes, **fields: Any) -> bytes:
    """Another attachment, pinned and signed as it must be."""
    message = msgspec.structs.replace(read(data), **fields)
    message = msgspec.structs.replace(message, **pinned(message, attachment))
    return encode_frame(message, WHO[signer], attachment)


def resealed(data: bytes, signer: str, payload: bytes, attachment: bytes | None = None) -> bytes:
    """Any payload, under a right signature."""
    head = data[:8] + len(payload).to_bytes(4, "big")
    signed = label("he-" + kind_of(data).label) + hashlib.sha256(head + payload).digest()
    rest = attached(data) if attachment is None else attachment
    return head + payload + WHO[signer].sign(signed) + rest


# what there is no word for


@pytest.mark.parametrize(
    ("struct_", "fields"),
    [
        (Upload, ("cfg", "key", "sender", "roster", "commitment")),
        (Context, ("cfg", "key", "sender", "not_after")),
        (
            Sealed,
            (
                *("cfg", "key", "sender", "roster", "contributors"),
                *("ledger_head", "attestation", "sealed"),
            ),
        ),
        (Opening, ("cfg", "key", "sender", "receipt", "total")),
        (Attestation, ("cfg", "key", "sender", "roster", "contributors", "sealed")),
    ],
)
def test_no_frame_has_a_field_for_a_scale_a_size_a_count_a_level_or_a_form(
    struct_: Any, fields: tuple[str, ...]
) -> None:
    assert struct_.__struct_fields__ == fields


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0, 0.0, 2.0**40])
def test_a_scale_in_the_frame_is_one_field_too_many(scale: float) -> None:
    """NaN, negative or any other: the frame that would carry it does not decode."""

    def edit(live: Round, recipient: str, data: bytes) -> bytes:
        if recipient == "hub" and kind_of(data) is Kind.UPLOAD and read(data).sender == LIAR:
            fields = msgspec.msgpack.decode(payload_of(data))
            return resealed(data, LIAR, msgspec.msgpack.encode([*fields, scale]))
        return data

    live = Round(edit=edit).play()
    assert [(who, type(error)) for who, error in live.refused] == [("hub", RemoteProtocolError)]
    live.opens(NAMES[:-1])


@pytest.mark.parametrize("name", ["ckks-4096-add", "bfv-4096-std"])
def test_what_seal_reads_besides_residues_is_written_here(name: str) -> None:
    """Whatever a peer's bytes say: scale, size, level and form are the parameter set's."""
    chosen = ParameterSet.named(name)
    scheme = _Scheme(chosen)
    hostile = struct.pack("<dd", float("nan"), -1.0) * (
        packed_bytes(chosen.sent_primes, 4096) // 16
    )
    # NaN and -1 in 60-bit places are below the prime with their top bits cut
    data = np.frombuffer(hostile, np.uint8) & 0x77
    (residues,) = unpack(data.tobytes(), chosen.sent_primes, chosen.degree, 1)
    loaded = scheme.ciphertext(residues)
    assert loaded.scale == (1.0 if chosen.exact else 2.0**36)
    assert (loaded.size(), loaded.poly_modulus_degree()) == (2, 4096)
    assert loaded.coeff_modulus_size() == len(chosen.sent_primes)
    assert loaded.parms_id() == scheme.context.first_parms_id()
    assert loaded.is_ntt_form() == (not chosen.exact)


# sizes and counts: an agent commits to them, so the roster does not stop it

WRONG_SIZES: Final = {
    "one byte short": lambda good: good[:-1],
    "one byte long": lambda good: good + b"\0",
    "one ciphertext short": lambda good: good[:-SIZE],
    "one ciphertext long": lambda good: good + good[:SIZE],
    "one polynomial of the last is missing": lambda good: good[: -SIZE // 2],
    "nothing": lambda good: b"",
    "one byte": lambda good: b"\0",
    "a seeded ciphertext, half as long": lambda good: good[: len(good) // 2],
    "of twice the degree": lambda good: good + good,
}


@pytest.mark.parametrize("swap", WRONG_SIZES.values(), ids=WRONG_SIZES)
def test_ciphertexts_of_a_wrong_size_are_refused_and_the_others_are_summed(
    swap: Callable[[bytes], bytes],
) -> None:
    live = Round(swap=swap).play()
    assert [(who, type(error)) for who, error in live.refused] == [("hub", RemoteProtocolError)]
    live.opens(NAMES[:-1])


def _with_residue(value: int) -> Callable[[bytes], bytes]:
    """The first residue of the first ciphertext, which takes 60 bits, replaced."""

    def swap(good: bytes) -> bytes:
        first = int.from_bytes(good[:8], "little")
        return ((first >> 60 << 60) | value).to_bytes(8, "little") + good[8:]

    return swap


@pytest.mark.parametrize("above", [0, 1, 2**20])
def test_a_residue_that_is_not_below_its_prime_is_refused(above: int) -> None:
    (prime,) = SET.sent_primes
    value = min(prime + above, 2**60 - 1)
    live = Round(swap=_with_residue(value)).play()
    assert [type(error) for _, error in live.refused] == [RemoteProtocolError]
    assert "below its prime" in str(live.refused[0][1])
    live.opens(NAMES[:-1])


def test_a_ciphertext_of_another_level_has_another_size() -> None:
    """With the special prime still in it, or under a set with more primes."""
    wide = ParameterSet.named("bfv-4096-wide")
    other = Decryptor(wide)
    slots = np.zeros((2, wide.slots), dtype=np.uint64)
    swaps = (
        lambda good: good[:SIZE] + bytes(SET.degree * 2 * 20 // 8) + good[SIZE:],
        lambda good: Encryptor(wide, other.public_key).encrypt(slots),
    )
    for swap in swaps:
        live = Round(swap=swap).play()
        assert [type(error) for _, error in live.refused] == [RemoteProtocolError]
        live.opens(NAMES[:-1])


def _instead(data: bytes, _good: bytes) -> bytes:
    return data


def test_a_serialised_seal_or_tenseal_object_is_no_ciphertext_here() -> None:
    context = tenseal.context(tenseal.SCHEME_TYPE.BFV, 4096, plain_modulus=1032193)
    foreign = tenseal.bfv_vector(context, [1, 2, 3]).serialize()
    for data in (foreign, b"\x5e\xa1\x10\x04\x03\x02" + bytes(10) + foreign):
        live = Round(swap=functools.partial(_instead, data)).play()
        assert [type(error) for _, error in live.refused] == [RemoteProtocolError]
        live.opens(NAMES[:-1])


# keys


def test_an_upload_that_names_another_key_is_refused() -> None:
    def edit(live: Round, recipient: str, data: bytes) -> bytes:
        if recipient == "hub" and kind_of(data) is Kind.UPLOAD and read(data).sender == LIAR:
            other = key_digest(live.hub._now.cfg, Decryptor(SET).public_key)
            return carrying(data, LIAR, attached(data), key=other)
        return data

    live = Round(edit=edit).play()
    assert "another key" in str(live.refused[0][1])
    live.opens(NAMES[:-1])


def test_a_ciphertext_under_a_key_that_the_frame_does_not_name_gives_no_sum() -> None:
    """It is residues like any other, but what it opens to fills no lane as a sum would."""
    foreign = Encryptor(SET, Decryptor(SET).public_key)
    slots = np.ones((P.ciphertexts, SET.slots), dtype=np.uint64)
    live = Round(swap=lambda good: foreign.encrypt(slots)).play()
    ((who, error),) = live.refused
    assert who == "authority"
    assert isinstance(error, RoundAborted)
    assert error.code == "SumMismatch"
    assert not live.vault.alive


# the envelope of an upload, with and without a right signature

ENVELOPE: Final = {
    "trailing byte": lambda data: data + b"\0",
    "truncated by one": lambda data: data[:-1],
    "truncated to a header": lambda data: data[:12],
    "nothing": lambda data: b"",
    "other magic": lambda data: b"PFRL" + data[4:],
    "other protocol": lambda data: data[:4] + b"\x02" + data[5:],
    "other suite": lambda data: data[:5] + b"\x02" + data[6:],
    "unknown type": lambda data: data[:6] + b"\x00\xff" + data[8:],
    "length 0": lambda data: data[:8] + bytes(4) + data[12:],
    "length 2^32 - 1": lambda data: data[:8] + b"\xff" * 4 + data[12:],
    "other bit in the attachment": lambda data: flipped(data, -9000),
    "last bit of the attachment": lambda data: flipped(data, -1),
    "other bit in the signature": lambda data: flipped(data, end_of(data) + 63),
    "no attachment": lambda data: data[: end_of(data) + 64],
    "attachment twice": lambda data: data + attached(data),
    "attachment before the signature": lambda data: (
        data[: end_of(data)] + attached(data) + data[end_of(data) : end_of(data) + 64]
    ),
    "attachment of zeros": lambda data: data[: end_of(data) + 64] + bytes(len(attached(data))),
    "attachment as payload": lambda data: (
        data[:8] + (len(data) - 76).to_bytes(4, "big") + data[12:]
    ),
}


def flipped(data: bytes, at: int) -> bytes:
    out = bytearray(data)
    out[at] ^= 1
    return bytes(out)


@pytest.mark.parametrize("damage", ENVELOPE.values(), ids=ENVELOPE)
@pytest.mark.parametrize("kind", [Kind.CONTEXT, Kind.UPLOAD, Kind.SEALED])
def test_a_damaged_frame_is_refused_and_the_true_one_is_still_welcome(
    kind: Kind, damage: Callable[[bytes], bytes]
) -> None:
    errors: list[ProtocolError] = []

    def edit(live: Round, recipient: str, data: bytes) -> bytes:
        if kind_of(data) is kind and recipient != LIAR:
            with pytest.raises((RemoteProtocolError, AuthenticationFailed)) as caught:
                live.give(recipient, damage(data))
            errors.append(caught.value)
        return data

    live = Round(edit=edit).play()
    assert errors
    assert not any(isinstance(error, RoundAborted) for error in errors)
    assert live.refused == []
    live.opens(NAMES)


PAYLOADS: Final = {
    "trailing bytes after the array": lambda payload: payload + b"\0",
    "a field more": lambda payload: bytes([payload[0] + 1]) + payload[1:] + b"\xc0",
    "a field less": lambda payload: bytes([payload[0] - 1]) + payload[1:],
    "a map": lambda payload: b"\x80",
    "nothing": lambda payload: b"",
    "an array of 2^32 - 1": lambda payload: b"\xdd\xff\xff\xff\xff",
    "bytes of 2^32 - 1": lambda payload: b"\x91\xc6\xff\xff\xff\xff",
    "deeply nested": lambda payload: b"\x91" * 5000,
    "last field as text": lambda payload: _last_as(payload, "x" * 32),
    "last field as a list": lambda payload: _last_as(payload, [1, 2, 3]),
    "last field absent": lambda payload: _last_as(payload, None),
    "last field a byte longer": lambda payload: _last_as(payload, bytes(33)),
    "the attachment's place taken by a field": lambda payload: _last_as(payload, bytes(SIZE)),
}


def _last_as(payload: bytes, value: Any) -> bytes:
    fields = msgspec.msgpack.decode(payload)
    return msgspec.msgpack.encode([*fields[:-1], value])


@pytest.mark.parametrize("damage", PAYLOADS.values(), ids=PAYLOADS)
@pytest.mark.parametrize(
    ("kind", "signer"),
    [(Kind.CONTEXT, "authority"), (Kind.UPLOAD, LIAR), (Kind.SEALED, "hub")],
)
def test_a_malformed_payload_under_a_right_signature_is_refused_likewise(
    kind: Kind, signer: str, damage: Callable[[bytes], bytes]
) -> None:
    errors: list[ProtocolError] = []

    def edit(live: Round, recipient: str, data: bytes) -> bytes:
        if kind_of(data) is kind and read(data).sender == signer:
            with pytest.raises(RemoteProtocolError) as caught:
                live.give(recipient, resealed(data, signer, damage(payload_of(data))))
            errors.append(caught.value)
        return data

    live = Round(edit=edit).play()
    assert errors
    assert live.refused == []
    live.opens(NAMES)


def test_an_upload_above_the_frame_limit_is_refused_before_it_is_decoded() -> None:
    limit = frame_limit(Kind.UPLOAD, P)

    def edit(live: Round, recipient: str, data: bytes) -> bytes:
        if recipient == "hub" and kind_of(data) is Kind.UPLOAD and read(data).sender == LIAR:
            return resealed(data, LIAR, b"\xc1" * limit, b"")  # 0xc1 is no msgpack at all
        return data

    live = Round(edit=edit).play()
    assert f"<= {limit} bytes" in str(live.refused[0][1])
    live.opens(NAMES[:-1])


# who may speak


@pytest.mark.parametrize(
    ("kind", "needed"),
    [
        (Kind.CONTEXT, "key-authority"),
        (Kind.ROSTER, "key-authority"),
        (Kind.SEALED, "coordinator"),
        (Kind.OPENING, "key-authority"),
        (Kind.RECEIPT, "key-authority"),
    ],
)
def test_a_registered_agent_cannot_speak_for_another_role(kind: Kind, needed: str) -> None:
    errors: list[str] = []

    def edit(live: Round, recipient: str, data: bytes) -> bytes:
        if kind_of(data) is kind and recipient != LIAR:
            with pytest.raises(RemoteProtocolError) as caught:
                live.give(recipient, changed(data, LIAR))
            errors.append(str(caught.value))
        return data

    live = Round(edit=edit).play()
    assert errors
    assert all(f"must come from a registered {needed}" in error for error in errors)
    live.opens(NAMES)


def test_an_agent_cannot_upload_in_anothers_name() -> None:
    errors = 0

    def edit(live: Round, recipient: str, data: bytes) -> bytes:
        nonlocal errors
        if recipient == "hub" and kind_of(data) is Kind.UPLOAD and read(data).sender != LIAR:
            with pytest.raises(AuthenticationFailed):
                live.give(recipient, resealed(data, LIAR, payload_of(data)))
            errors += 1
        return data

    live = Round(edit=edit).play()
    assert errors == 4
    live.opens(NAMES)


# malformed sums and public keys, from those who may sign them

SUMS: Final = WRONG_SIZES | {"a residue above its prime": _with_residue(2**60 - 1)}


@pytest.mark.parametrize("swap", SUMS.values(), ids=SUMS)
@pytest.mark.parametrize("readding", ["key-authority", "none"])
def test_a_malformed_sum_ends_the_key_and_opens_nothing(
    readding: Any, swap: Callable[[bytes], bytes]
) -> None:
    def edit(live: Round, recipient: str, data: bytes) -> bytes:
        if kind_of(data) is Kind.SEALED:
            return carrying(data, "hub", swap(attached(data)))
        return data

    parameters = dataclasses.replace(P, readding=readding)
    live = Round(edit=edit, parameters=parameters).play()
    ((who, error),) = [item for item in live.refused if item[0] == "authority"]
    assert isinstance(error, RoundAborted | RemoteProtocolError), who
    assert live.hub.phase is AggregatorPhase.ABORTED
    if isinstance(error, RoundAborted):
        assert error.code == ("SumMismatch" if readding == "key-authority" else "Malformed")
        assert live.authority.phase is AuthorityPhase.ABORTED
        assert not live.vault.alive
    else:  # longer than any frame of this kind: not even decoded
        assert "bytes" in str(error)
        assert live.authority.phase is AuthorityPhase.FIXED


KEYS_OF: Final = {
    "one byte short": lambda good: good[:-1],
    "one byte long": lambda good: good + b"\0",
    "one polynomial": lambda good: good[: len(good) // 2],
    "nothing": lambda good: b"",
    "without the special prime": lambda good: good[: SET.degree * 15],
    "a residue above its prime": _with_residue(2**60 - 1),
}


@pytest.mark.parametrize("swap", KEYS_OF.values(), ids=KEYS_OF)
def test_nothing_is_encrypted_under_a_malformed_public_key(
    swap: Callable[[bytes], bytes],
) -> None:
    def edit(live: Round, recipient: str, data: bytes) -> bytes:
        if recipient in NAMES and kind_of(data) is Kind.CONTEXT:
            return carrying(data, "authority", swap(attached(data)))
        return data

    live = Round(edit=edit).play()
    of_agents = [error for who, error in live.refused if who in NAMES]
    assert len(of_agents) == 5
    for error in of_agents:
        assert isinstance(error, RoundAborted | RemoteProtocolError)
        if isinstance(error, RoundAborted):
            assert error.code == "Malformed"
    assert all(client._ciphertexts is None for client in live.clients.values())
    assert live.hub.phase is AggregatorPhase.ABORTED


def test_every_string_of_the_right_size_with_residues_in_range_is_a_ciphertext() -> None:
    """Nothing else is needed to be well-formed: reading it back is the identity."""
    rng = np.random.default_rng(3)
    (prime,) = SET.sent_primes
    for _ in range(20):
        residues = rng.integers(0, prime, (1, 2, 1, SET.degree), dtype=np.uint64)
        data = pack(residues, (prime,))
        assert len(data) == SIZE
        assert np.array_equal(unpack(data, (prime,), SET.degree, 1), residues)


@pytest.mark.parametrize("count", [0, -1, 2**40, True, 1.0, None])
def test_a_vault_takes_no_count_that_its_bytes_do_not_have(count: Any) -> None:
    vault = LocalVault()
    vault.open(SET)
    with pytest.raises((LocalProtocolError, RemoteProtocolError)):
        vault.decrypt(bytes(2 * SIZE), count)
    assert not vault.alive


# TenSEAL itself, for contrast. Only what is certain is asserted.

RAW: Final = """
    import tenseal as ts

    def context():
        return ts.context(ts.SCHEME_TYPE.BFV, 4096, plain_modulus=1032193)

    def number(value):
        out = b""
        while value > 127:
            out, value = out + bytes([value & 127 | 128]), value >> 7
        return out + bytes([value])

    def chunk(field, data):
        return bytes([field << 3 | 2]) + number(len(data)) + data

    own, other = context(), context()
"""


def in_tenseal(script: str) -> str:
    """What a script prints, in a process of its own: TenSEAL may crash on such bytes."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RAW) + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


def test_tenseal_itself_adds_ciphertexts_of_different_keys_without_a_word() -> None:
    script = """
        foreign = ts.bfv_vector(other, [1, 2, 3, 4, 5]).serialize()
        total = ts.bfv_vector_from(own, foreign) + ts.bfv_vector(own, [1, 1, 1, 1, 1])
        print(total.decrypt() == [2, 3, 4, 5, 6], len(total.decrypt()))
    """
    assert in_tenseal(script) == "False 5"


def test_tenseal_itself_believes_the_size_that_a_peer_states() -> None:
    """A vector of 2 numbers that claims 3, and one that claims more than its slots can hold."""
    script = """
        good = ts.bfv_vector(own, [7, 8]).serialize()
        ciphertext = good[3:]
        assert good[:3] == chunk(1, number(2)) and ciphertext[0] == 2 << 3 | 2
        claimed = [ts.bfv_vector_from(own, chunk(1, number(n)) + ciphertext) for n in (3, 5000)]
        print(claimed[0].decrypt()[:2], len(claimed[0].decrypt()), claimed[1].size())
    """
    assert in_tenseal(script) == "[7, 8] 3 5000"


def test_tenseal_itself_takes_a_scale_that_is_no_number() -> None:
    script = """
        import struct
        ckks = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 40, 60])
        ckks.global_scale = 2**40
        good = ts.ckks_vector(ckks, [1.0, 2.0]).serialize()
        scale = good[-8:]
        assert struct.unpack("<d", scale) == (2.0**40,)
        taken = [
            ts.ckks_vector_from(ckks, good[:-8] + struct.pack("<d", bad))
            for bad in (float("nan"), -1.0)
        ]
        print([vector.size() for vector in taken])
    """
    assert in_tenseal(script) == "[2, 2]"
