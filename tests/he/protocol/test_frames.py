"""Frames: exact size limits, one typed error for every mutation, nobody in another's role."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc
from typing import Any

import msgspec
import pytest

from privfedrl.errors import (
    AuthenticationFailed,
    ConfigurationError,
    ProtocolError,
    RemoteProtocolError,
)
from privfedrl.he import ParameterSet
from privfedrl.he.frames import (
    SENDERS,
    SUITE,
    Attestation,
    Commit,
    Context,
    DecryptionReceipt,
    FrameReader,
    HEConfig,
    Kind,
    Opening,
    Proposal,
    Record,
    Roster,
    Sealed,
    Upload,
    config_digest,
    encode_frame,
    frame_limit,
    peek,
)
from privfedrl.he.lattice import public_key_bytes
from privfedrl.he.parameters import HEParameters
from privfedrl.parties import Identity, Wire
from privfedrl.parties import frames as envelope
from privfedrl.parties.binding import digest, label
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.primitives.signing import verify

ALL = frozenset(Kind)
D = b"d" * 32
HEADER, SIGNATURE = 12, 64
ATTACHED = (Kind.CONTEXT, Kind.UPLOAD, Kind.SEALED, Kind.OPENING)
SENDER_NAMES = {
    "agent": "agent-00",
    "coordinator": "coordinator",
    "key-authority": "key-authority",
    "auditor": "auditor",
}
MODES = ("key-authority", "auditor", "none")


def kind_of(data: bytes) -> Kind:
    return Kind(int.from_bytes(data[6:8], "big"))


def payload_of(data: bytes) -> bytes:
    return data[HEADER : HEADER + int.from_bytes(data[8:HEADER], "big")]


def largest(parameters: HEParameters) -> dict[Kind, bytes]:
    """The largest frame of each kind, written out: 64 agents, names of 64 characters."""
    signer = Identity.generate("n" * 64, DeterministicEntropy(b"largest"))
    head: dict[str, Any] = {"cfg": D, "key": D, "sender": signer.name}
    members, ciphertexts = bytes(8), bytes(parameters.ciphertext_bytes)
    about = head | {"roster": D, "contributors": members}
    words = parameters.vector_length * parameters.ring_bits // 8

    def signed(message: Any, attachment: bytes = b"") -> bytes:
        return bytes(encode_frame(message, signer, attachment))

    config = signed(
        HEConfig(
            suite=1,
            sender=signer.name,
            task_id=D,
            round=2**63 - 1,
            attempt=2**32 - 1,
            opened_at=2**53 - 1,
            plan_digest=D,
            model_digest=D,
            registry_digest=D,
            previous_transcript=D,
            parameters=parameters.canonical_bytes(),
            parameters_digest=D,
            round_seed=D,
        )
    )
    public_key = bytes(public_key_bytes(parameters.parameter_set))
    commit = signed(Commit(**head, commitment=D))
    roster = signed(Roster(**head, members=members, commitments=D * 64))
    attestation = signed(Attestation(**about, sealed=D))
    receipt = signed(
        DecryptionReceipt(
            **about, sealed=D, total=D, ledger_head=D, readding="r" * 16, seal="s" * 16
        )
    )
    record = Record(
        sender=signer.name,
        config=config,
        roster=roster,
        commits=(commit,) * 64,
        attestation=attestation,
        receipt=receipt,
        ledger_head=D,
    )
    others = (
        signed(Context(**head, not_after=2**53 - 1), public_key),
        signed(Proposal(**head, commits=(commit,) * 64)),
        signed(Upload(**head, roster=D, commitment=D), ciphertexts),
        signed(Sealed(**about, ledger_head=D, attestation=attestation, sealed=D), ciphertexts),
        signed(Opening(**head, receipt=receipt, total=D), bytes(words)),
        signed(record),
    )
    frames = (config, commit, roster, attestation, receipt, *others)
    return {kind_of(data): data for data in frames}


SIZES = [
    {},
    {"vector_length": 1},
    {"vector_length": 70_000, "ring_bits": 64},
    {"parameter_set": "bfv-4096-wide", "vector_length": 9000},
    {"parameter_set": "ckks-4096-add", "value_bits": 20},
]


def parameters_of(**changes: Any) -> HEParameters:
    if "parameter_set" in changes:
        changes["parameter_set"] = ParameterSet.named(changes["parameter_set"])
    given: dict[str, Any] = {
        "num_clients": 64,
        "max_colluding": 1,
        "vector_length": 5,
        "threshold": 33,
    }
    return HEParameters(**(given | changes))


@pytest.mark.parametrize("changes", SIZES)
def test_no_frame_is_larger_than_its_limit_and_the_largest_ones_reach_it(
    changes: dict[str, Any],
) -> None:
    parameters = parameters_of(**changes)
    frames = largest(parameters)
    assert set(frames) == set(Kind)
    slack = {kind: frame_limit(kind, parameters) - len(data) for kind, data in frames.items()}
    assert slack == dict.fromkeys(slack, 0)


@pytest.mark.parametrize("readding", MODES)
def test_every_frame_of_a_real_round_is_within_its_limit(make_world: Any, readding: str) -> None:
    world = make_world(readding=readding, name_chars=64)
    session = world.session().run()
    assert session.aggregator.result().survivors == world.names
    seen = set()
    for out in session.carried:
        kind = kind_of(out.data)
        seen.add(kind)
        assert len(out.data) <= frame_limit(kind, world.parameters)
    expected = set(Kind) - {Kind.RECORD} - ({Kind.ATTESTATION} if readding != "auditor" else set())
    assert seen == expected


@pytest.mark.parametrize("kind", list(Kind))
def test_a_frame_above_its_limit_is_refused_before_its_payload_is_looked_at(
    world: Any, kind: Kind
) -> None:
    limit = frame_limit(kind, world.parameters)
    reader = FrameReader(world.registry, world.parameters)
    room = limit + 1 - HEADER - SIGNATURE
    # a payload that no decoder could read: only its size can be what is refused
    data = struct.pack(">4sHHI", b"PFHE", 0x0101, kind, room) + b"\xc1" * room + bytes(SIGNATURE)
    with pytest.raises(RemoteProtocolError, match=f"must be <= {limit} bytes"):
        reader.read(data, ALL)
    just = data[: HEADER - 4] + (room - 1).to_bytes(4, "big") + data[HEADER:-1]
    with pytest.raises(RemoteProtocolError, match="malformed"):
        reader.read(just, ALL)


def test_a_large_frame_that_is_refused_costs_no_memory_of_its_size(world: Any) -> None:
    reader = FrameReader(world.registry, world.parameters)
    room = 64 * 2**20
    head = struct.pack(">4sHHI", b"PFHE", 0x0101, Kind.UPLOAD, room)
    data = head + bytes(room + SIGNATURE)
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError, match="must be <="):
            reader.read(data, ALL)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("kind", list(Kind))
def test_a_frame_of_a_kind_that_is_not_expected_is_refused(world: Any, kind: Kind) -> None:
    session = world.session()
    reader = FrameReader(world.registry, world.parameters)
    frame = session.frame(kind)
    assert reader.read(frame, frozenset({kind})).type is kind
    with pytest.raises(RemoteProtocolError, match="not expected here"):
        reader.read(frame, ALL - {kind})


@pytest.mark.parametrize("role", ["agent-01", "coordinator", "key-authority", "auditor"])
@pytest.mark.parametrize("kind", list(Kind))
def test_only_the_role_that_a_kind_belongs_to_can_sign_it(
    world: Any, kind: Kind, role: str
) -> None:
    reader = FrameReader(world.registry, world.parameters)
    frame = world.session().frame(kind, sender=role)
    if world.registry.role_of(role) == SENDERS[kind]:
        assert reader.read(frame, ALL).sender == role
        return
    with pytest.raises(RemoteProtocolError, match=f"registered {SENDERS[kind]}"):
        reader.read(frame, ALL)


@pytest.mark.parametrize("kind", list(Kind))
def test_a_stranger_and_a_stranger_under_a_known_name_are_refused(world: Any, kind: Kind) -> None:
    reader = FrameReader(world.registry, world.parameters)
    session = world.session()
    message, attached = session.message(kind), session.attached(kind)
    unknown = session.message(kind, sender="stranger")
    for impersonated in (unknown, message):
        impostor = Identity.generate(impersonated.sender, DeterministicEntropy(b"stranger"))
        with pytest.raises(AuthenticationFailed):
            reader.read(encode_frame(impersonated, impostor, attached), ALL)


@pytest.mark.parametrize("kind", list(Kind))
def test_every_changed_byte_of_envelope_signature_and_attachments_ends_is_noticed(
    world: Any, kind: Kind
) -> None:
    reader = FrameReader(world.registry, world.parameters)
    frame = world.session().frame(kind)
    signature = HEADER + len(payload_of(frame))
    places = {*range(HEADER + 8), *range(signature - 8, signature + SIGNATURE + 8)}
    places |= {*range(len(frame) - 8, len(frame))}
    for place in sorted(place for place in places if place < len(frame)):
        changed = bytearray(frame)
        changed[place] ^= 1
        with pytest.raises(ProtocolError):
            reader.read(bytes(changed), ALL)


@pytest.mark.parametrize("kind", list(Kind))
def test_a_frame_of_another_length_or_type_is_refused(world: Any, kind: Kind) -> None:
    reader = FrameReader(world.registry, world.parameters)
    frame = world.session().frame(kind)
    whole = frame[: HEADER + len(payload_of(frame)) + SIGNATURE]
    for other in (whole[:-1], frame[:75], frame[:HEADER], b"", b"\0" + frame):
        with pytest.raises(RemoteProtocolError):
            reader.read(other, ALL)
    others: tuple[Any, ...] = (bytearray(frame), memoryview(frame), None, "text")
    for wrong in others:
        with pytest.raises(RemoteProtocolError, match="must be bytes"):
            reader.read(wrong, ALL)


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ((b"PFSA", 0x0101), "must start with PFHE"),
        ((b"PFHE", 0x0201), "protocol version must be 1, got 2"),
        ((b"PFHE", 0x0001), "protocol version must be 1, got 0"),
        ((b"PFHE", 0x0102), "suite must be 1, got 2"),
        ((b"PFHE", 0x0100), "suite must be 1, got 0"),
    ],
)
def test_another_magic_version_or_suite_is_refused(world: Any, header: Any, match: str) -> None:
    reader = FrameReader(world.registry, world.parameters)
    frame = world.session().config
    other = struct.pack(">4sH", *header) + frame[6:]
    with pytest.raises(RemoteProtocolError, match=match):
        reader.read(other, ALL)


def test_no_frame_of_another_protocol_can_pass_for_one_of_this_one(world: Any) -> None:
    """The label that a signature covers names protocol and kind, so a signature fits only one."""
    frame = world.session().frame(Kind.COMMIT)
    key = world.registry.verify_key_of("agent-00")
    body, signature = frame[:-SIGNATURE], frame[-SIGNATURE:]
    signed = hashlib.sha256(body).digest()
    verify(key, signature, label("he-commit") + signed)
    for other in ("commit", "he-upload", "he-roster"):
        with pytest.raises(AuthenticationFailed):
            verify(key, signature, label(other) + signed)


BAD_FIELDS = [
    (Kind.CONFIG, "suite", 0),
    (Kind.CONFIG, "suite", 128),
    (Kind.CONFIG, "round", -1),
    (Kind.CONFIG, "round", 2**63),
    (Kind.CONFIG, "attempt", 2**32),
    (Kind.CONFIG, "opened_at", 2**53),
    (Kind.CONFIG, "opened_at", 1.5),
    (Kind.CONFIG, "task_id", b"d" * 31),
    (Kind.CONFIG, "round_seed", b"d" * 33),
    (Kind.CONFIG, "parameters", b""),
    (Kind.CONFIG, "parameters_digest", None),
    (Kind.CONTEXT, "cfg", b""),
    (Kind.CONTEXT, "not_after", -1),
    (Kind.CONTEXT, "key", b"d" * 31),
    (Kind.COMMIT, "commitment", b"d" * 31),
    (Kind.COMMIT, "key", b"d" * 33),
    (Kind.PROPOSAL, "commits", (b"x",) * 65),
    (Kind.PROPOSAL, "commits", (1,)),
    (Kind.ROSTER, "members", bytes(9)),
    (Kind.ROSTER, "commitments", bytes(32 * 64 + 1)),
    (Kind.UPLOAD, "roster", b""),
    (Kind.UPLOAD, "commitment", 7),
    (Kind.SEALED, "ledger_head", b"short"),
    (Kind.SEALED, "contributors", bytes(9)),
    (Kind.SEALED, "sealed", b"d" * 33),
    (Kind.ATTESTATION, "sealed", b""),
    (Kind.OPENING, "total", None),
    (Kind.RECEIPT, "total", b""),
    (Kind.RECEIPT, "readding", "r" * 17),
    (Kind.RECEIPT, "seal", "s" * 17),
    (Kind.RECORD, "commits", (b"x",) * 65),
    (Kind.RECORD, "ledger_head", None),
]


@pytest.mark.parametrize(("kind", "name", "value"), BAD_FIELDS)
def test_a_field_out_of_its_range_is_refused_although_signed(
    world: Any, kind: Kind, name: str, value: Any
) -> None:
    reader = FrameReader(world.registry, world.parameters)
    frame = world.session().frame(kind, **{name: value})
    with pytest.raises(RemoteProtocolError, match=f"malformed {kind.label}"):
        reader.read(frame, ALL)


@pytest.mark.parametrize("name", ["", "n" * 65, "a b", "agent-00\n", "ä"])
def test_a_sender_that_is_no_name_is_refused(world: Any, name: str) -> None:
    frame = world.session().frame(Kind.COMMIT)
    payload = msgspec.msgpack.decode(frame[HEADER:-SIGNATURE])
    payload[3] = name
    body = msgspec.msgpack.encode(payload)
    head = struct.pack(">4sHHI", b"PFHE", 0x0101, Kind.COMMIT, len(body))
    data = head + body + bytes(64)
    with pytest.raises(RemoteProtocolError):
        FrameReader(world.registry, world.parameters).read(data, ALL)
    with pytest.raises(RemoteProtocolError, match="malformed commit"):
        peek(data, Kind.COMMIT, limit=len(data))


@pytest.mark.parametrize("kind", list(Kind))
def test_a_missing_an_added_and_a_trailing_field_are_refused(world: Any, kind: Kind) -> None:
    frame = world.session().frame(kind)
    payload, attached = msgspec.msgpack.decode(payload_of(frame)), world.attachment(frame)
    encode = msgspec.msgpack.encode
    bodies = (
        encode(payload[:-1]),
        encode([*payload, 0]),
        encode(payload) + b"\0",
        encode({"0": payload}),
        encode([99, *payload[1:]]),
        b"",
    )
    signer = world.identities[SENDER_NAMES[SENDERS[kind]]]
    for body in bodies:
        head = struct.pack(">4sHHI", b"PFHE", 0x0101, kind, len(body))
        signed = hashlib.sha256(head + body).digest()
        data = head + body + signer.sign(label("he-" + kind.label) + signed) + attached
        with pytest.raises(RemoteProtocolError):
            FrameReader(world.registry, world.parameters).read(data, ALL)


def test_only_its_sender_can_encode_a_message(world: Any) -> None:
    message = world.session().message(Kind.COMMIT)
    with pytest.raises(ConfigurationError, match="sender must be agent-01, got agent-00"):
        encode_frame(message, world.identities["agent-01"])


def test_peek_reads_without_trust_but_within_a_limit(world: Any) -> None:
    frame = world.session().config
    unsigned = frame[:-SIGNATURE] + bytes(SIGNATURE)
    assert peek(unsigned, Kind.CONFIG, limit=len(frame)) == peek(
        frame, Kind.CONFIG, limit=len(frame)
    )
    with pytest.raises(RemoteProtocolError, match="must be <="):
        peek(frame, Kind.CONFIG, limit=len(frame) - 1)
    with pytest.raises(RemoteProtocolError, match="not expected"):
        peek(frame, Kind.RECORD, limit=len(frame))


def test_the_round_is_named_by_a_digest_of_its_whole_config(world: Any) -> None:
    session = world.session()
    payload = session.config[HEADER:-SIGNATURE]
    assert config_digest(payload) == digest("he-config", payload) == session.cfg
    other = bytearray(payload)
    other[-1] ^= 1
    assert config_digest(bytes(other)) != session.cfg


def test_a_reader_may_remember_small_frames_up_to_its_capacity(world: Any) -> None:
    """What it remembers it does not verify again, and it never stands in for another kind."""
    session = world.session()
    checked: list[bytes] = []

    def counting(number: int) -> Any:
        assert number == SUITE

        def check(key: bytes, signature: bytes, message: bytes) -> None:
            verify(key, signature, message)
            checked.append(message)

        return check

    rows = {Kind.COMMIT: envelope.Row(struct=Commit, role="agent")}
    wire = Wire(
        magic=b"PFHE",
        protocol=1,
        suite=SUITE,
        suite_verify=counting,
        prefix="he-",
        types=Kind,
        rows=rows,
    )
    shared: dict[bytes, Any] = {}
    limits = {Kind.COMMIT: 4096}
    reader = envelope.FrameReader(
        wire,
        world.registry,
        limits,
        shown=frozenset({Kind.COMMIT}),
        capacity=1,
        verified=shared,
    )
    first, second = (session.frame(Kind.COMMIT, commitment=x * 32) for x in (b"1", b"2"))
    for data in (first, first, second, second):
        assert reader.read(data, frozenset({Kind.COMMIT})).digest[-SIGNATURE:] == data[-SIGNATURE:]
    assert len(checked) == 3
    assert list(shared) == [first]
    with pytest.raises(RemoteProtocolError, match="not expected"):
        reader.read(first, frozenset({Kind.UPLOAD}))


# -- attachments


@pytest.mark.parametrize("kind", ATTACHED)
def test_a_frame_with_another_attachment_than_the_signed_one_is_not_authentic(
    world: Any, kind: Kind
) -> None:
    session = world.session()
    reader = FrameReader(world.registry, world.parameters)
    honest = bytes(place % 251 for place in range(len(session.attached(kind))))
    frame = session.frame(kind, attachment=honest)
    found = reader.read(frame, ALL)
    assert bytes(found.attachment) == honest
    assert bytes(found.payload) == payload_of(frame)
    signed = frame[: -len(honest)]
    assert signed[-SIGNATURE:] == found.digest[-SIGNATURE:]
    altered = [
        honest[:place] + bytes([honest[place] ^ 1]) + honest[place + 1 :]
        for place in (0, len(honest) // 2, len(honest) - 1)
    ]
    for other in (*altered, b"", honest[:1], honest[:-1], honest[1:], honest + b"\0", honest[::-1]):
        with pytest.raises(AuthenticationFailed):
            reader.read(signed + other, ALL)


PINS = {
    Kind.CONTEXT: "key",
    Kind.UPLOAD: "commitment",
    Kind.SEALED: "sealed",
    Kind.OPENING: "total",
}
BOUND = [
    *((kind, name) for kind, name in PINS.items()),
    *((kind, "cfg") for kind in PINS),
    (Kind.UPLOAD, "key"),
    (Kind.UPLOAD, "sender"),
    (Kind.SEALED, "key"),
]


@pytest.mark.parametrize(("kind", "name"), BOUND)
def test_an_attachment_is_pinned_to_its_round_key_and_sender(
    world: Any, kind: Kind, name: str
) -> None:
    """Signed by the right party, but pinned for another round, key or sender."""
    session = world.session()
    other = {"sender": "agent-01"}.get(name, D)
    message = msgspec.structs.replace(session.message(kind), **{name: other})
    attached = session.attached(kind)
    reader = FrameReader(world.registry, world.parameters)
    with pytest.raises(AuthenticationFailed):
        reader.read(world.sign(message, attached), ALL)
    assert reader.read(session.frame(kind), ALL).attachment == attached


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in ATTACHED])
def test_a_kind_that_pins_nothing_carries_nothing(world: Any, kind: Kind) -> None:
    session = world.session()
    frame = session.frame(kind)
    reader = FrameReader(world.registry, world.parameters)
    assert len(reader.read(frame, ALL).attachment) == 0
    for extra in (b"\0", b"extra", frame[-SIGNATURE:]):
        if len(frame + extra) <= frame_limit(kind, world.parameters):
            with pytest.raises(RemoteProtocolError, match=f"{kind.label} has another length"):
                reader.read(frame + extra, ALL)
        with pytest.raises(RemoteProtocolError):
            reader.read(frame + extra, ALL)
        with pytest.raises(ConfigurationError, match=f"{kind.label} has no attachment"):
            encode_frame(
                session.message(kind), world.identities[reader.read(frame, ALL).sender], extra
            )


class Watched:
    """A wire of one kind whose checks are noted in the order in which they are made."""

    def __init__(self, world: Any, limit: int) -> None:
        self.checks: list[str] = []
        self.wire = Wire(
            magic=b"PFHE",
            protocol=1,
            suite=SUITE,
            suite_verify=lambda number: self.verify,
            prefix="he-",
            types=Kind,
            rows={Kind.UPLOAD: envelope.Row(struct=Upload, role="agent", pins=self.pins)},
        )
        self.reader = envelope.FrameReader(self.wire, world.registry, {Kind.UPLOAD: limit})

    def verify(self, key: bytes, signature: bytes, message: bytes) -> None:
        self.checks.append("signature")
        verify(key, signature, message)

    def pins(self, message: Any, attachment: memoryview) -> bool:
        self.checks.append("attachment")
        return message.roster == hashlib.sha256(attachment).digest()

    def read(self, data: bytes) -> Any:
        self.checks.clear()
        return self.reader.read(data, frozenset({Kind.UPLOAD}))


def test_an_attachment_is_hashed_only_within_the_limit_and_after_the_signature(world: Any) -> None:
    """Nobody who cannot sign as a registered agent has anything long hashed."""
    attached = b"long" * 1000
    message = world.session().message(Kind.UPLOAD, roster=hashlib.sha256(attached).digest())
    frame = world.sign(message, attached)
    watched = Watched(world, len(frame))
    found = watched.read(frame)
    assert (bytes(found.attachment), watched.checks) == (attached, ["signature", "attachment"])
    with pytest.raises(AuthenticationFailed):
        watched.read(frame[:-1] + b"!")
    assert watched.checks == ["signature", "attachment"]
    for forged in (world.unsigned(frame), world.unsigned(frame)[:-1] + b"!"):
        with pytest.raises(AuthenticationFailed):
            watched.read(forged)
        assert watched.checks == ["signature"]
    with pytest.raises(RemoteProtocolError, match=f"must be <= {len(frame)} bytes"):
        watched.read(frame + b"!")
    assert watched.checks == []


@pytest.mark.parametrize("kind", ATTACHED)
def test_an_attachment_beyond_the_limit_is_refused_although_it_is_signed(
    world: Any, kind: Kind
) -> None:
    session = world.session()
    reader = FrameReader(world.registry, world.parameters)
    limit = frame_limit(kind, world.parameters)
    around = len(session.frame(kind)) - len(session.attached(kind))
    just = session.frame(kind, attachment=bytes(limit - around))
    assert len(just) == limit
    assert reader.read(just, ALL).type is kind
    with pytest.raises(RemoteProtocolError, match=f"must be <= {limit} bytes"):
        reader.read(session.frame(kind, attachment=bytes(limit - around + 1)), ALL)


def test_a_large_attachment_that_is_refused_costs_no_memory_of_its_size(world: Any) -> None:
    data = world.session().frame(Kind.UPLOAD, attachment=bytes(64 * 2**20))
    reader = FrameReader(world.registry, world.parameters)
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError, match="must be <="):
            reader.read(data, ALL)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("readding", MODES)
def test_whatever_is_attached_on_the_way_is_refused_and_does_no_harm(
    make_world: Any, readding: str
) -> None:
    """A network that alters every attachment once, and delivers the honest frame after it."""
    world = make_world(readding=readding)
    session = world.session()
    seen: set[Kind] = set()

    def wire(out: Any) -> list[Any]:
        kind = kind_of(out.data)
        if kind not in ATTACHED:
            return [out]
        part, attached = session.parts[out.recipient], world.attachment(out.data)
        bare = out.data[: -len(attached)]
        before = part.phase
        for other in (bytes(len(attached)), b"", attached[:-1], attached + b"\0"):
            with pytest.raises((AuthenticationFailed, RemoteProtocolError)):
                part.receive(bare + other)
            assert part.phase is before
        seen.add(kind)
        return [out]

    session.wire = wire
    session.run()
    assert (session.aggregator.result().vector == world.ideal(world.names)).all()
    assert seen == set(ATTACHED)
    assert {part.phase.name for part in session.parts.values()} == {"DONE"}
