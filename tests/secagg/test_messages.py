"""Frames: exact size limits, one typed error for every mutation, bounded memory."""

from __future__ import annotations

import random
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
from privfedrl.parties import Identity
from privfedrl.parties.binding import label
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.secagg import Transcript
from privfedrl.secagg.messages import (
    Advertise,
    Consistency,
    Delivery,
    FrameReader,
    IdealBody,
    Masked,
    Roster,
    RoundConfig,
    Shares,
    Survivors,
    TranscriptBody,
    Unmask,
    UnmaskRequest,
    encode_frame,
    peek,
)
from privfedrl.secagg.parameters import SecAggParameters
from privfedrl.secagg.sizes import CLIENT_TYPES, SEALED_BYTES, MessageType

ALL = frozenset(MessageType)
D = b"d" * 32


def largest(parameters: SecAggParameters) -> dict[MessageType, bytes]:
    """The largest frame of each type on a complete graph, written out."""
    n = parameters.num_clients
    signer = Identity.generate("n" * 64, DeterministicEntropy(b"largest"))
    name = signer.name
    head: dict[str, Any] = {"cfg": D, "sender": name}
    to_one = head | {"recipient": name}
    members = bytes((n + 7) // 8)
    path = bytes(32 * (n - 1).bit_length())
    sealed = (bytes(SEALED_BYTES),) * (n - 1)
    pins: dict[str, Any] = {
        "sender": name,
        "task_id": D,
        "round": 2**63 - 1,
        "attempt": 2**32 - 1,
        "plan_digest": D,
        "model_digest": D,
        "registry_digest": D,
        "previous_transcript": D,
    }
    config = RoundConfig(
        **pins,
        suite=1,
        opened_at=2**53 - 1,
        parameters=parameters.canonical_bytes(),
        round_seed=D,
    )
    advert = Advertise(**head, share_key=D, mask_key=D)
    consent = Consistency(**head, roster=D, survivors=D)
    frames = {
        MessageType.CONFIG: encode_frame(config, signer),
        MessageType.ADVERTISE: encode_frame(advert, signer),
        MessageType.CONSISTENCY: encode_frame(consent, signer),
    }
    adverts = (frames[MessageType.ADVERTISE],) * n
    consents = (frames[MessageType.CONSISTENCY],) * n
    a_set: dict[str, Any] = {"roster": D, "members": members, "root": D, "proof": path}
    others = [
        Roster(**to_one, members=members, adverts=adverts, proof=b""),
        Shares(**head, roster=D, commitment=D, sealed=sealed),
        Delivery(**to_one, **a_set, sealed=sealed),
        Masked(
            **head, roster=D, shared=D, receipt=bytes(64), vector=bytes(parameters.vector_bytes)
        ),
        Survivors(**to_one, **a_set),
        UnmaskRequest(**to_one, roster=D, consents=consents, receipts=()),
        Unmask(**head, roster=D, shares=bytes(36 * n)),
        TranscriptBody(
            sender=name,
            config=frames[MessageType.CONFIG],
            members=members,
            adverts=adverts,
            shared=members,
            commitments=bytes(32 * n),
            survivors=members,
            vectors=bytes(32 * n),
            consents=consents,
            sum_digest=D,
            ledger_head=D,
        ),
        IdealBody(
            **pins,
            protection="no cryptographic protection",
            survivors=members,
            sum_digest=D,
            ledger_head=D,
        ),
    ]
    for message in others:
        data = encode_frame(message, signer)
        frames[MessageType(int.from_bytes(data[6:8], "big"))] = data
    return frames


@pytest.mark.parametrize(
    ("n", "length", "bits"),
    [(5, 1, 32), (14, 60, 32), (15, 64, 32), (16, 64, 32), (17, 70, 64), (256, 20_000, 64)],
)
def test_size_limits_are_the_exact_largest_sizes(n: int, length: int, bits: int) -> None:
    parameters = SecAggParameters(
        num_clients=n, max_colluding=0, vector_length=length, ring_bits=bits
    )
    frames = largest(parameters)
    assert len(frames) == len(MessageType) == 12
    assert {kind: len(data) for kind, data in frames.items()} == {
        kind: parameters.frame_limit(kind) for kind in MessageType
    }
    up = sum(len(frames[kind]) for kind in CLIENT_TYPES)
    assert parameters.bytes_up_per_client() == up


def every_frame(session: Any) -> list[bytes]:
    """All frames of a finished session, both ways, and its transcript."""
    record = session.server.result().record
    transcript = Transcript.sign(
        record, identity=session.world.coordinator, ledger_head=D
    ).to_bytes()
    logs = (session.sent, session.shown)
    return [transcript, *(data for log in logs for name in log for data in log[name])]


@pytest.mark.parametrize("n", [5, 8, 17])
def test_the_frames_of_a_complete_round_reach_their_limits(make_world: Any, n: int) -> None:
    """Names of 64 characters, the largest numbers, and as many agents as are registered.

    Two types come in several sizes: the paths of a tree that is not full differ in length.
    """
    world = make_world(n=n, name_chars=64, now=2**53 - 1, length=70)
    session = world.session(round=2**63 - 1, attempt=2**32 - 1).run()
    sizes: dict[MessageType, set[int]] = {}
    for data in every_frame(session):
        sizes.setdefault(MessageType(data[7]), set()).add(len(data))
    for kind, found in sizes.items():
        assert max(found) == world.parameters.frame_limit(kind)
        if kind not in (MessageType.DELIVERY, MessageType.SURVIVORS):
            assert len(found) == 1
    assert set(sizes) == set(MessageType) - {MessageType.IDEAL}


@pytest.mark.parametrize("dropped", [0, 3])
def test_no_frame_of_a_sparse_round_is_above_its_limit(sparse_world: Any, dropped: int) -> None:
    world = sparse_world(name_chars=64, now=2**53 - 1)
    session = world.session(
        round=2**63 - 1, attempt=2**32 - 1, drop=dict.fromkeys(world.names[:dropped], 2)
    ).run()
    exact = {MessageType.CONFIG, MessageType.ADVERTISE, MessageType.MASKED, MessageType.CONSISTENCY}
    for data in every_frame(session):
        kind = MessageType(data[7])
        assert len(data) <= world.parameters.frame_limit(kind)
        if kind in exact:  # those that do not depend on the number of neighbours
            assert len(data) == world.parameters.frame_limit(kind)
    sent = sum(len(data) for data in session.sent[world.names[-1]])
    assert sent <= world.parameters.bytes_up_per_client()


def test_sizes_on_the_wire_depend_on_the_configuration_only(make_world: Any) -> None:
    sizes = []
    for seed in (b"one", b"two"):
        session = make_world(seed=seed).session().run()
        sizes.append({name: [len(data) for data in session.sent[name]] for name in session.sent})
    assert sizes[0] == sizes[1]
    assert all(
        sum(per_message) <= session.world.parameters.bytes_up_per_client()
        for per_message in sizes[0].values()
    )


@pytest.fixture
def frames(world: Any) -> list[bytes]:
    """Every distinct frame of one honest round, in both directions."""
    session = world.session().run()
    every = [data for log in (session.sent, session.shown) for name in log for data in log[name]]
    return sorted(set(every), key=lambda data: (data[6:8], data))


def test_every_honest_frame_is_read_and_remembered(world: Any, frames: list[bytes]) -> None:
    reader = FrameReader(world.registry, world.parameters)
    for data in frames:
        first, second = reader.read(data, ALL), reader.read(data, ALL)
        assert first == second
        assert data[12:-64] == first.payload
    assert {MessageType(int.from_bytes(data[6:8], "big")) for data in frames} == ALL - {
        MessageType.TRANSCRIPT,
        MessageType.IDEAL,
    }


@pytest.mark.parametrize(
    ("start", "value"),
    [(0, b"PFRM"), (4, b"\x02\x01"), (4, b"\x01\x02"), (6, b"\x00\x63"), (8, b"\xff" * 4)],
)
def test_a_changed_header_is_refused(
    world: Any, frames: list[bytes], start: int, value: bytes
) -> None:
    reader = FrameReader(world.registry, world.parameters)
    for data in frames:
        changed = data[:start] + value + data[start + len(value) :]
        with pytest.raises(RemoteProtocolError):
            reader.read(changed, ALL)


def test_trailing_missing_and_foreign_bytes_are_refused(world: Any, frames: list[bytes]) -> None:
    reader = FrameReader(world.registry, world.parameters)
    for data in frames:
        for changed in (data + b"\x00", data[:-1], data[:75], b"", bytearray(data)):
            with pytest.raises(RemoteProtocolError):
                reader.read(changed, ALL)  # type: ignore[arg-type]  # bytearray on purpose


def resign(world: Any, data: bytes, payload: bytes) -> bytes:
    """A frame of the same type and signer around another payload."""
    header = struct.pack(">4sHHI", b"PFRL", 0x0101, int.from_bytes(data[6:8], "big"), len(payload))
    kind = MessageType(int.from_bytes(data[6:8], "big"))
    signer = world.identity(world.parse(data).sender)
    return header + payload + signer.sign(label(kind.label) + header + payload)


def test_unknown_and_missing_fields_are_refused_although_signed(
    world: Any, frames: list[bytes]
) -> None:
    reader = FrameReader(world.registry, world.parameters)
    for data in frames:
        items = msgspec.msgpack.decode(data[12:-64])
        for changed in ([*items, 0], items[:-1], [99, *items[1:]], [], {}, 7, None):
            with pytest.raises(RemoteProtocolError):
                reader.read(resign(world, data, msgspec.msgpack.encode(changed)), ALL)
        with pytest.raises(RemoteProtocolError):
            reader.read(resign(world, data, data[12:-64] + b"\xc0"), ALL)


@pytest.mark.parametrize(
    ("field", "value"),
    [("round", 2**63), ("attempt", 2**32), ("round", -1), ("opened_at", 2**53), ("opened_at", -1)],
)
def test_integers_out_of_range_are_refused(
    world: Any, frames: list[bytes], field: str, value: int
) -> None:
    config = frames[0]
    changed = msgspec.structs.replace(world.parse(config), **{field: value})
    payload = msgspec.msgpack.encode(changed)
    with pytest.raises(RemoteProtocolError, match="malformed"):
        FrameReader(world.registry, world.parameters).read(resign(world, config, payload), ALL)


def test_a_frame_speaks_only_for_its_signer_and_role(world: Any, frames: list[bytes]) -> None:
    reader = FrameReader(world.registry, world.parameters)
    advert = next(data for data in frames if data[7] == MessageType.ADVERTISE)
    stranger = Identity.generate("stranger", DeterministicEntropy(b"stranger"))
    impostor = Identity.generate("agent-00", DeterministicEntropy(b"impostor"))
    message = world.parse(advert)
    for identity in (stranger, impostor):
        renamed = msgspec.structs.replace(message, sender=identity.name)
        with pytest.raises(AuthenticationFailed):
            reader.read(encode_frame(renamed, identity), ALL)
    as_coordinator = msgspec.structs.replace(message, sender="coordinator")
    with pytest.raises(RemoteProtocolError, match="registered agent"):
        reader.read(encode_frame(as_coordinator, world.coordinator), ALL)
    roster = next(data for data in frames if data[7] == MessageType.ROSTER)
    as_agent = msgspec.structs.replace(world.parse(roster), sender="agent-00")
    with pytest.raises(RemoteProtocolError, match="registered coordinator"):
        reader.read(encode_frame(as_agent, world.agents["agent-00"]), ALL)


def test_a_signature_of_one_type_does_not_serve_for_another(
    world: Any, frames: list[bytes]
) -> None:
    reader = FrameReader(world.registry, world.parameters)
    for data in frames:
        for kind in MessageType:
            if kind != data[7]:
                with pytest.raises(ProtocolError):
                    reader.read(data[:6] + kind.to_bytes(2, "big") + data[8:], ALL)


def test_only_the_sender_itself_can_write_a_frame(world: Any, frames: list[bytes]) -> None:
    with pytest.raises(ConfigurationError, match="sender"):
        encode_frame(world.parse(frames[0]), world.agents["agent-00"])


def test_types_that_are_not_expected_are_refused(world: Any, frames: list[bytes]) -> None:
    reader = FrameReader(world.registry, world.parameters)
    with pytest.raises(RemoteProtocolError, match="not expected"):
        reader.read(frames[0], CLIENT_TYPES)


def test_thousands_of_mutated_frames_give_only_protocol_errors_in_bounded_memory(
    world: Any, frames: list[bytes]
) -> None:
    rng = random.Random(20)
    reader = FrameReader(world.registry, world.parameters)
    tracemalloc.start()
    for _ in range(6000):
        with pytest.raises(ProtocolError):
            reader.read(mutate(rng, rng.choice(frames), rng.choice(frames)), ALL)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def mutate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed)) if changed else 0
        match rng.randrange(6):
            case 0 if changed:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at:at] = rng.randbytes(rng.randint(1, 40))
            case 2:
                del changed[at : at + rng.randint(1, 40)]
            case 3 if changed:
                changed[12:at] = b"\xdd\xff\xff\xff\xff" * 3  # msgpack: an array of 2^32 items
            case 4:
                changed[at:] = other[at:]
            case _:
                changed[8:12] = struct.pack(">I", max(0, len(changed) - 76))
    return bytes(changed) if bytes(changed) not in (data, other) else b""


def test_deeply_nested_and_oversized_payloads_are_refused(world: Any, frames: list[bytes]) -> None:
    reader = FrameReader(world.registry, world.parameters)
    roster = next(data for data in frames if data[7] == MessageType.ROSTER)
    with pytest.raises(RemoteProtocolError):
        reader.read(resign(world, roster, b"\x91" * 1000), ALL)
    limit = world.parameters.frame_limit(MessageType.ROSTER)
    with pytest.raises(RemoteProtocolError, match=f"<= {limit}"):
        reader.read(resign(world, roster, bytes(limit)), ALL)


def test_a_flood_of_signed_frames_is_not_remembered(world: Any, frames: list[bytes]) -> None:
    reader = FrameReader(world.registry, world.parameters)
    advert = next(data for data in frames if data[7] == MessageType.ADVERTISE)
    for count in range(100):
        reader.read(world.forge(advert, share_key=count.to_bytes(32, "big")), ALL)
    assert len(reader._verified) <= 8 * world.n + 8


def test_peeking_checks_the_form_and_nothing_else(world: Any, frames: list[bytes]) -> None:
    unsigned = frames[0][:-64] + bytes(64)
    assert peek(unsigned, MessageType.CONFIG, limit=len(unsigned)).round == 1
    with pytest.raises(RemoteProtocolError):
        peek(unsigned, MessageType.CONFIG, limit=len(unsigned) - 1)
    with pytest.raises(RemoteProtocolError):
        peek(unsigned, MessageType.ROSTER, limit=len(unsigned))


def test_labels_keep_purposes_apart() -> None:
    assert label("config") == b"\x00\x10pfrl-sa/1/config"
    assert len({label(kind.label) for kind in MessageType}) == len(MessageType)
