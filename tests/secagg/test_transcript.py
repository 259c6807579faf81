"""Transcripts: they verify, they link, and nothing in them can be changed."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from privfedrl.errors import AuthenticationFailed, ConfigurationError, ProtocolError
from privfedrl.parties import Registry
from privfedrl.secagg import IdealRecord, SecAggParameters, Transcript
from privfedrl.secagg.messages import encode_frame
from privfedrl.secagg.sizes import MessageType

HEAD = b"h" * 32


def transcript_of(session: Any) -> Transcript:
    record = session.run().server.result().record
    return Transcript.sign(record, identity=session.world.coordinator, ledger_head=HEAD)


def changed(world: Any, transcript: Transcript, **changes: Any) -> Transcript:
    """The coordinator itself signs another body."""
    body = msgspec.structs.replace(transcript.body, **changes)
    return Transcript.from_bytes(encode_frame(body, world.coordinator))


@pytest.mark.parametrize("drop", [{}, {"agent-01": 0}, {"agent-06": 2}, {"agent-06": 3}])
def test_an_honest_transcript_verifies_and_names_what_happened(
    make_world: Any, drop: dict[str, int]
) -> None:
    world = make_world(n=8)
    session = world.session(drop=drop)
    transcript = Transcript.from_bytes(transcript_of(session).to_bytes())
    transcript.verify(world.registry)
    transcript.verify(world.registry, previous=bytes(32))
    result = session.server.result()
    transcript.verify_sum(result.vector)
    assert transcript.survivors(world.registry) == result.survivors
    assert transcript.protection == "pairwise masking"
    assert transcript.ledger_head == HEAD
    assert transcript.config == result.config
    assert str(transcript.data[:8]) not in repr(transcript)


def test_transcripts_link_into_a_chain(world: Any) -> None:
    first = transcript_of(world.session())
    follower = world.session(round=2)
    follower.server = world.server()
    follower.out = follower.server.start(b"t" * 32, 2, 0, b"m" * 32, first.digest)
    second = transcript_of(follower)
    second.verify(world.registry, previous=first.digest)
    with pytest.raises(ProtocolError, match="does not follow"):
        second.verify(world.registry, previous=bytes(32))


def test_another_sum_is_noticed(world: Any) -> None:
    session = world.session()
    transcript = transcript_of(session)
    wrong = np.array(session.server.result().vector)
    wrong[0] += 1
    right = session.server.result().vector
    padded = np.append(right, np.uint32(0))
    for other in (wrong, right[:-1], right.view(np.int32), padded.view(np.uint64), right[None]):
        with pytest.raises(AuthenticationFailed):
            transcript.verify_sum(other)
    transcript.verify_sum(right.astype(">u4"))


@pytest.mark.parametrize(
    "change",
    [
        lambda w, b: {"survivors": _less(b.survivors)},
        lambda w, b: {"survivors": _less(b.survivors), "vectors": b.vectors[:-32]},
        lambda w, b: {"survivors": bytes([b.survivors[0] | 0x40])},  # a padding bit
        lambda w, b: {"survivors": b.survivors + b"\0"},
        lambda w, b: {"vectors": HEAD + b.vectors[32:]},
        lambda w, b: {"vectors": b.vectors[32:] + b.vectors[:32]},
        lambda w, b: {"vectors": b.vectors[:-1]},
        lambda w, b: {"shared": _less(b.shared)},
        lambda w, b: {"shared": _less(b.shared), "commitments": b.commitments[:-32]},
        lambda w, b: {"commitments": HEAD + b.commitments[32:]},
        lambda w, b: {"commitments": b.commitments + HEAD},
        lambda w, b: {"members": _less(b.members)},
        lambda w, b: {"members": _less(b.members), "adverts": b.adverts[:-1]},
        lambda w, b: {"members": b""},
        lambda w, b: {"consents": ()},
        lambda w, b: {"adverts": b.adverts[1:]},
        lambda w, b: {"adverts": b.adverts[::-1]},
        lambda w, b: {"adverts": (b"junk", *b.adverts[1:])},
        lambda w, b: {"consents": b.consents[:3]},
        lambda w, b: {"consents": b.consents[::-1]},
        lambda w, b: {"consents": (*b.consents[:-1], b.consents[-1][:-64] + bytes(64))},
        lambda w, b: {"consents": (*b.consents[:-1], w.forge(b.consents[-1], survivors=HEAD))},
        lambda w, b: {"consents": (b.consents[0], *b.consents[:-1])},
        lambda w, b: {"config": w.forge(b.config, plan_digest=HEAD)},
        lambda w, b: {"config": w.forge(b.config, registry_digest=HEAD)},
        lambda w, b: {"config": w.forge(b.config, parameters=bytes(96))},
        lambda w, b: {"config": w.forge(b.config, opened_at=w.now + 1)},
        lambda w, b: {"config": w.forge(b.config, parameters=_parameters(7))},
        lambda w, b: {"config": b.config[:-64] + bytes(64)},
        lambda w, b: {"config": b"junk"},
    ],
)
def test_not_even_the_coordinator_can_rewrite_a_transcript(world: Any, change: Any) -> None:
    transcript = transcript_of(world.session())
    forged = changed(world, transcript, **change(world, transcript.body))
    with pytest.raises(ProtocolError):
        forged.verify(world.registry)


def _less(encoded: bytes) -> bytes:
    """The set without agent-05, the last of six."""
    assert encoded == b"\x3f"
    return b"\x1f"


def _parameters(n: int) -> bytes:
    return SecAggParameters(num_clients=n, max_colluding=1, vector_length=5).canonical_bytes()


def test_another_registry_does_not_verify(world: Any, make_world: Any) -> None:
    transcript = transcript_of(world.session())
    with pytest.raises(ProtocolError):
        transcript.verify(make_world(seed=b"other").registry)
    smaller = Registry(entry for entry in world.registry.entries if entry.name != "agent-05")
    with pytest.raises(ProtocolError, match="another registry"):
        transcript.verify(smaller)


def test_every_mutated_byte_string_is_a_typed_error(world: Any) -> None:
    data = transcript_of(world.session()).to_bytes()
    rng = random.Random(3)
    for _ in range(300):
        mutated = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            mutated[rng.randrange(len(mutated))] ^= 1 << rng.randrange(8)
        if bytes(mutated) != data:
            with pytest.raises(ProtocolError):
                _verify(bytes(mutated), world.registry)
    for cut in (data[:-1], data + b"\x00", b"", data[:100]):
        with pytest.raises(ProtocolError):
            Transcript.from_bytes(cut)


def _verify(data: bytes, registry: Registry) -> None:
    Transcript.from_bytes(data).verify(registry)


def test_a_ledger_head_has_32_bytes(world: Any) -> None:
    record = world.session().run().server.result().record
    with pytest.raises(ConfigurationError, match="ledger_head"):
        Transcript.sign(record, identity=world.coordinator, ledger_head=b"short")
    with pytest.raises(AttributeError):
        replace(record, sum_digest=HEAD).config = b""  # type: ignore[misc]  # frozen


# -- validity


class _Redated(Registry):
    """Other dates under the digest that a transcript names: then only the dates are at fault."""


@pytest.mark.parametrize("who", ["agent-03", "coordinator"])
def test_a_record_of_somebody_who_was_not_valid_is_refused(make_world: Any, who: str) -> None:
    world = make_world()
    transcript = transcript_of(world.session())
    later = _Redated(make_world(validity={who: (0, world.now - 1)}).registry.entries)
    with pytest.raises(ProtocolError, match="another registry"):
        transcript.verify(later)
    later.digest = transcript.config.registry_digest
    with pytest.raises(ProtocolError, match=f"{who} was not valid"):
        transcript.verify(later)


# -- sparse


def test_a_sparse_transcript_verifies(sparse_world: Any) -> None:
    world = sparse_world()
    drop = {"agent-01": 0, "agent-17": 2, "agent-30": 3, "agent-31": 4}
    session = world.session(drop=drop)
    transcript = Transcript.from_bytes(transcript_of(session).to_bytes())
    transcript.verify(world.registry)
    transcript.verify_sum(session.server.result().vector)
    gone = ("agent-01", "agent-17")
    assert transcript.survivors(world.registry) == tuple(n for n in world.names if n not in gone)


@pytest.fixture(scope="module")
def sparse_record(sparse_world: Any) -> tuple[Any, Transcript]:
    world = sparse_world()
    return world, transcript_of(world.session(drop={"agent-17": 2}))


@pytest.mark.parametrize(
    "change",
    [
        lambda w, b: {"survivors": _drop(w, b.survivors, "agent-00"), "vectors": b.vectors[32:]},
        lambda w, b: {"vectors": HEAD + b.vectors[32:]},
        lambda w, b: {"shared": _drop(w, b.shared, "agent-17")},
        lambda w, b: {"commitments": b.commitments[:-32] + HEAD},
        lambda w, b: {"members": _drop(w, b.members, "agent-00"), "adverts": b.adverts[1:]},
        lambda w, b: {"adverts": (*b.adverts[:-1], b.adverts[0])},
        lambda w, b: {"consents": b.consents[::-1]},
        lambda w, b: {"config": w.forge(b.config, parameters=w.parameters.canonical_bytes()[::-1])},
    ],
)
def test_not_even_the_coordinator_can_rewrite_a_sparse_transcript(
    sparse_record: tuple[Any, Transcript], change: Any
) -> None:
    world, transcript = sparse_record
    forged = changed(world, transcript, **change(world, transcript.body))
    with pytest.raises(ProtocolError):
        forged.verify(world.registry)


def _drop(world: Any, encoded: bytes, name: str) -> bytes:
    left = [other for other in world.names_in(encoded) if other != name]
    assert len(left) == len(world.names_in(encoded)) - 1
    return bytes(world.members(left).to_bytes())


def test_every_member_of_u2_needs_a_quorum_of_its_own_holders(
    sparse_record: tuple[Any, Transcript],
) -> None:
    """Also the one that dropped out: its mask was opened too."""
    world, transcript = sparse_record
    body = transcript.body
    cohort = world.cohort_of({world.parse(advert).sender: advert for advert in body.adverts})
    signed = {world.parse(frame).sender: frame for frame in body.consents}
    for owner in ("agent-05", "agent-17"):
        near = [name for name in cohort.holders(owner) if name in signed]
        spare = len(near) - cohort.threshold
        assert spare >= 0
        missing = near[: spare + 1]
        kept = [frame for name, frame in signed.items() if name not in missing]
        assert len(kept) > 4 * cohort.threshold  # plenty, but too few of them are its holders
        with pytest.raises(ProtocolError, match="signatures by holders of"):
            changed(world, transcript, consents=tuple(kept)).verify(world.registry)


# -- the record of an ideal sum


def ideal_record(world: Any, **changes: Any) -> IdealRecord:
    given: dict[str, Any] = {
        "task_id": b"t" * 32,
        "round": 1,
        "attempt": 0,
        "plan_digest": b"p" * 32,
        "model_digest": b"m" * 32,
        "registry": world.registry,
        "previous_transcript": bytes(32),
        "survivors": world.names[1:],
        "vector": world.ideal(world.names[1:]),
    }
    return IdealRecord(**(given | changes))


def test_an_ideal_record_says_that_nothing_protected_it(world: Any) -> None:
    record = ideal_record(world)
    signed = Transcript.sign(record, identity=world.coordinator, ledger_head=HEAD)
    transcript = Transcript.from_bytes(signed.to_bytes())
    transcript.verify(world.registry, previous=bytes(32))
    assert transcript.protection == "no cryptographic protection"
    assert b"no cryptographic protection" in transcript.data
    assert transcript.survivors(world.registry) == world.names[1:]
    assert transcript.ledger_head == HEAD
    assert (transcript.config.round, transcript.config.model_digest) == (1, b"m" * 32)
    transcript.verify_sum(record.vector)
    for other in (record.vector + np.uint32(1), record.vector.view(np.int32), record.vector[:-1]):
        with pytest.raises(AuthenticationFailed):
            transcript.verify_sum(other)
    with pytest.raises(ProtocolError, match="does not follow"):
        transcript.verify(world.registry, previous=HEAD)


def test_an_ideal_record_cannot_be_passed_off_as_a_protected_one(world: Any) -> None:
    record = ideal_record(world)
    ideal = Transcript.sign(record, identity=world.coordinator, ledger_head=HEAD)
    retyped = ideal.data[:6] + MessageType.TRANSCRIPT.to_bytes(2, "big") + ideal.data[8:]
    with pytest.raises(ProtocolError):
        Transcript.from_bytes(retyped)
    with pytest.raises(ProtocolError):
        Transcript.from_bytes(
            encode_frame(
                msgspec.structs.replace(ideal.body, protection="pairwise masking"),
                world.coordinator,
            )
        )
    protected = transcript_of(world.session())
    mixed = protected.data[:6] + MessageType.IDEAL.to_bytes(2, "big") + protected.data[8:]
    with pytest.raises(ProtocolError):
        Transcript.from_bytes(mixed)


@pytest.mark.parametrize(
    "change",
    [
        {"survivors": b"\x00"},  # over nobody
        {"survivors": b"\x7f"},  # a padding bit
        {"survivors": b""},
        {"registry_digest": HEAD},
    ],
)
def test_an_odd_ideal_record_does_not_verify(world: Any, change: dict[str, Any]) -> None:
    transcript = Transcript.sign(ideal_record(world), identity=world.coordinator, ledger_head=HEAD)
    with pytest.raises(ProtocolError):
        changed(world, transcript, **change).verify(world.registry)


def test_only_the_coordinator_signs_ideal_records(world: Any) -> None:
    signed = Transcript.sign(
        ideal_record(world), identity=world.agents["agent-00"], ledger_head=HEAD
    )
    with pytest.raises(ProtocolError, match="registered coordinator"):
        signed.verify(world.registry)
    honest = Transcript.sign(ideal_record(world), identity=world.coordinator, ledger_head=HEAD)
    with pytest.raises(AuthenticationFailed):
        Transcript.from_bytes(honest.data[:-1] + bytes([honest.data[-1] ^ 1])).verify(
            world.registry
        )
