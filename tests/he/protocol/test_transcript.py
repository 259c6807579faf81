"""Transcripts: they verify, they link, and nothing in them can be changed."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from privfedrl.errors import (
    AuthenticationFailed,
    ConfigurationError,
    ProtocolError,
    RemoteProtocolError,
)
from privfedrl.he import HEParameters, HETranscript, ParameterSet
from privfedrl.he.frames import Kind, encode_frame
from privfedrl.he.parameters import PARAMETER_BYTES
from privfedrl.parties import Identity, Outgoing, Registry
from privfedrl.parties.binding import digest
from privfedrl.primitives.random import DeterministicEntropy

HEAD = b"h" * 32
MODES = ("key-authority", "auditor", "none")


def transcript_of(session: Any) -> HETranscript:
    record = session.run().aggregator.result().record
    signer = session.world.identities["coordinator"]
    return HETranscript.sign(record, identity=signer, ledger_head=HEAD)


def changed(world: Any, transcript: HETranscript, **changes: Any) -> HETranscript:
    """The coordinator itself signs another body."""
    body = msgspec.structs.replace(transcript.body, **changes)
    return HETranscript.from_bytes(encode_frame(body, world.identities["coordinator"]))


@pytest.fixture(scope="module")
def rounds(make_world: Any) -> dict[str, Any]:
    """One finished round of each kind of re-adding; agent-01 is in the roster, not in the sum."""

    def play(readding: str, number: int) -> Any:
        world = make_world(readding=readding)

        def wire(out: Outgoing) -> list[Outgoing]:
            lost = out.data[7] == Kind.UPLOAD and world.parse(out.data).sender == "agent-01"
            return [] if lost else [out]

        session = world.session(wire=wire, round=number)
        return session, transcript_of(session)

    return {readding: (play(readding, 1), play(readding, 2)) for readding in MODES}


@pytest.mark.parametrize("readding", MODES)
def test_an_honest_transcript_verifies_and_names_what_happened(
    rounds: dict[str, Any], readding: str
) -> None:
    session, signed = rounds[readding][0]
    transcript = HETranscript.from_bytes(signed.to_bytes())
    assert transcript == signed
    registry, result = session.world.registry, session.aggregator.result()
    transcript.verify(registry)
    transcript.verify(registry, previous=bytes(32))
    transcript.verify_sum(result.vector)
    assert transcript.survivors(registry) == result.survivors
    assert "agent-01" not in result.survivors
    assert transcript.protection == "homomorphic encryption with a key authority"
    assert transcript.ledger_head == HEAD
    assert (transcript.config, transcript.receipt) == (result.config, result.receipt)
    assert bool(transcript.body.attestation) is (readding == "auditor")
    assert len(transcript.digest) == 32
    assert repr(transcript) == "HETranscript()"


def test_a_transcript_holds_no_ciphertext_and_no_sum(rounds: dict[str, Any]) -> None:
    for readding in MODES:
        session, transcript = rounds[readding][0]
        assert len(transcript.data) < 4096
        words = session.aggregator.result().vector.astype("<u4").tobytes()
        assert words not in transcript.data
        for out in session.carried:
            if out.data[7] == Kind.UPLOAD:
                attached = session.world.attachment(out.data)
                assert len(attached) == session.world.parameters.ciphertext_bytes
                assert attached[:64] not in transcript.data


def test_transcripts_link_into_a_chain(make_world: Any) -> None:
    world = make_world()
    first = transcript_of(world.session())
    second = transcript_of(world.session(round=2, previous=first.digest))
    second.verify(world.registry, previous=first.digest)
    with pytest.raises(RemoteProtocolError, match="does not follow"):
        second.verify(world.registry, previous=bytes(32))


def test_another_sum_is_noticed(rounds: dict[str, Any]) -> None:
    session, transcript = rounds["key-authority"][0]
    right = session.aggregator.result().vector
    wrong = right.copy()
    wrong[0] += 1
    padded = np.append(right, np.uint32(0))
    others = (wrong, right[:-1], right[::-1], right.view(np.int32), padded.view(np.uint64))
    for other in (*others, right[None], right.astype(np.uint64), np.zeros_like(right)):
        with pytest.raises(AuthenticationFailed):
            transcript.verify_sum(other)
    transcript.verify_sum(right.astype(">u4"))


def test_the_sum_of_one_round_is_not_that_of_another_even_if_equal(make_world: Any) -> None:
    world = make_world()
    first, second = world.session(), world.session(round=2)
    one, two = transcript_of(first), transcript_of(second)
    assert (first.aggregator.result().vector == second.aggregator.result().vector).all()
    assert one.receipt.total != two.receipt.total


def _cut(frame: bytes) -> bytes:
    return frame[:-64] + bytes(64)


CHANGES: list[Callable[[Any, Any, Any], dict[str, Any]]] = [
    # config
    lambda w, b, o: {"config": b"junk"},
    lambda w, b, o: {"config": b""},
    lambda w, b, o: {"config": _cut(b.config)},
    lambda w, b, o: {"config": b.roster},
    lambda w, b, o: {"config": o.config},
    lambda w, b, o: {"config": w.forge(b.config, plan_digest=HEAD)},
    lambda w, b, o: {"config": w.forge(b.config, model_digest=HEAD)},
    lambda w, b, o: {"config": w.forge(b.config, registry_digest=HEAD)},
    lambda w, b, o: {"config": w.forge(b.config, task_id=HEAD)},
    lambda w, b, o: {"config": w.forge(b.config, round=9)},
    lambda w, b, o: {"config": w.forge(b.config, attempt=9)},
    lambda w, b, o: {"config": w.forge(b.config, opened_at=w.now + 1)},
    lambda w, b, o: {"config": w.forge(b.config, previous_transcript=HEAD)},
    lambda w, b, o: {"config": w.forge(b.config, round_seed=HEAD)},
    lambda w, b, o: {"config": w.forge(b.config, parameters=bytes(len(_canonical(w))))},
    lambda w, b, o: {"config": w.forge(b.config, parameters_digest=HEAD)},
    lambda w, b, o: {"config": w.forge(b.config, **_parameters(w, num_clients=6))},
    lambda w, b, o: {"config": w.forge(b.config, **_parameters(w, threshold=5))},
    lambda w, b, o: {"config": w.forge(b.config, **_parameters(w, readding="none"))},
    # roster
    lambda w, b, o: {"roster": b"junk"},
    lambda w, b, o: {"roster": _cut(b.roster)},
    lambda w, b, o: {"roster": b.receipt},
    lambda w, b, o: {"roster": o.roster},
    lambda w, b, o: {"roster": w.forge(b.roster, cfg=HEAD)},
    lambda w, b, o: {"roster": w.forge(b.roster, key=HEAD)},
    lambda w, b, o: {"roster": w.forge(b.roster, commitments=HEAD * w.n)},
    lambda w, b, o: {"roster": w.forge(b.roster, members=b"\x3f")},
    lambda w, b, o: {"roster": w.forge(b.roster, members=b"\x0f")},
    lambda w, b, o: {"roster": w.forge(b.roster, **_less(w, b.roster))},
    lambda w, b, o: {"roster": w.forge(b.roster, **_less(w, b.roster)), "commits": b.commits[:-1]},
    # commits
    lambda w, b, o: {"commits": ()},
    lambda w, b, o: {"commits": b.commits[1:]},
    lambda w, b, o: {"commits": b.commits[:-1]},
    lambda w, b, o: {"commits": (*b.commits, b.commits[-1])},
    lambda w, b, o: {"commits": (b.commits[0], *b.commits[:-1])},
    lambda w, b, o: {"commits": o.commits},
    lambda w, b, o: {"commits": (*b.commits[:-1], o.commits[-1])},
    lambda w, b, o: {"commits": (*b.commits[:-1], _cut(b.commits[-1]))},
    lambda w, b, o: {"commits": (*b.commits[:-1], b"junk")},
    lambda w, b, o: {"commits": (*b.commits[:-1], w.forge(b.commits[-1], commitment=HEAD))},
    lambda w, b, o: {"commits": (*b.commits[:-1], w.forge(b.commits[-1], cfg=HEAD))},
    lambda w, b, o: {"commits": (*b.commits[:-1], w.forge(b.commits[-1], key=HEAD))},
    lambda w, b, o: {"commits": (*b.commits, b.receipt)},
    # receipt
    lambda w, b, o: {"receipt": b""},
    lambda w, b, o: {"receipt": _cut(b.receipt)},
    lambda w, b, o: {"receipt": b.roster},
    lambda w, b, o: {"receipt": o.receipt},
    lambda w, b, o: {"receipt": w.forge(b.receipt, cfg=HEAD)},
    lambda w, b, o: {"receipt": w.forge(b.receipt, key=HEAD)},
    lambda w, b, o: {"receipt": w.forge(b.receipt, roster=HEAD)},
    lambda w, b, o: {"receipt": w.forge(b.receipt, contributors=b"\x03")},
    lambda w, b, o: {"receipt": w.forge(b.receipt, contributors=b"\x3f")},
    lambda w, b, o: {"receipt": w.forge(b.receipt, contributors=b"")},
    lambda w, b, o: {"receipt": w.forge(b.receipt, readding="nobody")},
    # everything of the other round but one piece
    lambda w, b, o: {"config": o.config, "roster": o.roster, "commits": o.commits},
    lambda w, b, o: {"roster": o.roster, "commits": o.commits, "receipt": o.receipt},
    lambda w, b, o: {"config": o.config, "receipt": o.receipt},
]


def _canonical(world: Any) -> bytes:
    return bytes(world.parameters.canonical_bytes())


def _parameters(world: Any, **changes: Any) -> dict[str, bytes]:
    given = {
        name: getattr(world.parameters, name) for name in world.parameters.__dataclass_fields__
    }
    chosen = HEParameters(**(given | changes))
    return {"parameters": chosen.canonical_bytes(), "parameters_digest": chosen.digest}


def _less(world: Any, roster: bytes) -> dict[str, bytes]:
    """The roster without its last member."""
    message = world.parse(roster)
    return {
        "members": world.members(world.names[:-1]),
        "commitments": message.commitments[:-32],
    }


@pytest.mark.parametrize("readding", MODES)
@pytest.mark.parametrize("index", range(len(CHANGES)))
def test_not_even_the_coordinator_can_rewrite_a_transcript(
    rounds: dict[str, Any], readding: str, index: int
) -> None:
    (session, transcript), (_, other) = rounds[readding]
    changes = CHANGES[index](session.world, transcript.body, other.body)
    forged = changed(session.world, transcript, **changes)
    if forged.data == transcript.data:
        # the one change that is none in this mode
        assert readding == "none"
        assert changes["config"] == transcript.body.config
        return
    with pytest.raises(ProtocolError):
        forged.verify(session.world.registry)


ATTESTATIONS: list[Callable[[Any, Any, Any], bytes]] = [
    lambda w, b, o: b"",
    lambda w, b, o: b"junk",
    lambda w, b, o: _cut(b.attestation),
    lambda w, b, o: b.roster,
    lambda w, b, o: o.attestation,
    lambda w, b, o: w.forge(b.attestation, cfg=HEAD),
    lambda w, b, o: w.forge(b.attestation, key=HEAD),
    lambda w, b, o: w.forge(b.attestation, roster=HEAD),
    lambda w, b, o: w.forge(b.attestation, contributors=b"\x1f"),
    lambda w, b, o: w.forge(b.attestation, sealed=HEAD),
    lambda w, b, o: w.forge(b.attestation, sender="key-authority"),
    lambda w, b, o: w.forge(b.attestation, sender="coordinator"),
]


@pytest.mark.parametrize("index", range(len(ATTESTATIONS)))
def test_an_attestation_for_another_sum_is_noticed(rounds: dict[str, Any], index: int) -> None:
    (session, transcript), (_, other) = rounds["auditor"]
    attestation = ATTESTATIONS[index](session.world, transcript.body, other.body)
    forged = changed(session.world, transcript, attestation=attestation)
    with pytest.raises(ProtocolError):
        forged.verify(session.world.registry)


@pytest.mark.parametrize("name", ["sealed", "contributors"])
def test_with_an_auditor_not_even_the_authority_can_change_what_was_opened(
    rounds: dict[str, Any], name: str
) -> None:
    session, transcript = rounds["auditor"][0]
    world = session.world
    value = {"sealed": HEAD, "contributors": world.members(world.names)}[name]
    receipt = world.forge(transcript.body.receipt, **{name: value})
    with pytest.raises(RemoteProtocolError, match="another sum"):
        changed(world, transcript, receipt=receipt).verify(world.registry)


@pytest.mark.parametrize("readding", ["key-authority", "none"])
def test_an_attestation_that_nobody_asked_for_is_refused(
    rounds: dict[str, Any], readding: str
) -> None:
    session, transcript = rounds[readding][0]
    other = rounds["auditor"][0][1].body.attestation
    for attestation in (other, b"junk", b"\0"):
        forged = changed(session.world, transcript, attestation=attestation)
        with pytest.raises(RemoteProtocolError, match="nobody asked for"):
            forged.verify(session.world.registry)


@pytest.mark.parametrize("readding", MODES)
def test_every_changed_byte_is_noticed(rounds: dict[str, Any], readding: str) -> None:
    """Every seventh, and each of the parameters' own, which are read before any signature."""
    session, transcript = rounds[readding][0]
    first = transcript.data.index(_canonical(session.world))
    places = {*range(0, len(transcript.data), 7), *range(first, first + PARAMETER_BYTES)}
    for place in sorted(places):
        for flip in (1, 0x80):
            data = bytearray(transcript.data)
            data[place] ^= flip
            with pytest.raises(ProtocolError):
                HETranscript.from_bytes(bytes(data)).verify(session.world.registry)


@pytest.mark.parametrize("number", [2**27, 2**53 - 1, 2**64 - 1])
@pytest.mark.parametrize("field", range((PARAMETER_BYTES - 32) // 8))
def test_absurd_numbers_in_unsigned_parameters_cost_no_memory(
    rounds: dict[str, Any], field: int, number: int
) -> None:
    """They are read before any signature is checked, so they are bounded before they are used."""
    session, transcript = rounds["none"][0]
    world = session.world
    parameters = bytearray(_canonical(world))
    at = 32 + 8 * field
    parameters[at : at + 8] = number.to_bytes(8, "big")
    config = world.forge(transcript.body.config, parameters=bytes(parameters))
    forged = changed(world, transcript, config=_cut(config))
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            forged.verify(world.registry)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_only_the_coordinator_can_sign_one(rounds: dict[str, Any]) -> None:
    session, transcript = rounds["none"][0]
    record = session.aggregator.result().record
    impostor = Identity.generate("coordinator", DeterministicEntropy(b"other"))
    for name in ("agent-00", "key-authority", "auditor"):
        signed = HETranscript.sign(
            record, identity=session.world.identities[name], ledger_head=HEAD
        )
        with pytest.raises(RemoteProtocolError, match="registered coordinator"):
            signed.verify(session.world.registry)
    signed = HETranscript.sign(record, identity=impostor, ledger_head=HEAD)
    assert signed.body == transcript.body
    with pytest.raises(AuthenticationFailed):
        signed.verify(session.world.registry)


@pytest.mark.parametrize("head", [b"", b"h" * 31, b"h" * 33])
def test_a_ledger_head_of_another_length_is_not_signed(rounds: dict[str, Any], head: bytes) -> None:
    session, _ = rounds["none"][0]
    with pytest.raises(ConfigurationError, match="ledger_head must be 32 bytes"):
        HETranscript.sign(
            session.aggregator.result().record,
            identity=session.world.identities["coordinator"],
            ledger_head=head,
        )


def test_a_transcript_is_about_one_registry(rounds: dict[str, Any]) -> None:
    session, transcript = rounds["key-authority"][0]
    entries = session.world.registry.entries
    newcomer = Identity.generate("agent-99", DeterministicEntropy(b"new")).entry("agent")
    for registry in (
        Registry([*entries, newcomer]),
        Registry(entry for entry in entries if entry.name != "agent-04"),
        Registry(entry for entry in entries if entry.name != "auditor"),
    ):
        with pytest.raises(RemoteProtocolError, match="another registry"):
            transcript.verify(registry)


def test_parameters_for_another_number_of_agents_are_noticed(rounds: dict[str, Any]) -> None:
    session, transcript = rounds["none"][0]
    world = session.world
    config = world.forge(transcript.body.config, **_parameters(world, num_clients=6))
    with pytest.raises(RemoteProtocolError, match="num_clients is not the number"):
        changed(world, transcript, config=config).verify(world.registry)


def test_unsound_parameters_and_other_moduli_are_noticed(rounds: dict[str, Any]) -> None:
    session, transcript = rounds["none"][0]
    world = session.world
    zeros = bytes(len(_canonical(world)))
    vector = session.aggregator.result().vector
    for change, match in (
        ({"parameters": zeros}, "unsound"),
        ({"parameters_digest": HEAD}, "stand for other numbers"),
    ):
        forged = changed(world, transcript, config=world.forge(transcript.body.config, **change))
        with pytest.raises(RemoteProtocolError, match=match):
            forged.verify(world.registry)
        with pytest.raises(RemoteProtocolError, match=match):
            forged.verify_sum(vector)
        with pytest.raises(RemoteProtocolError, match=match):
            forged.survivors(world.registry)


@pytest.mark.parametrize("name", ["coordinator", "key-authority", "auditor"])
def test_a_service_that_was_not_valid_then_is_noticed(make_world: Any, name: str) -> None:
    """All services collude: they sign a round of a time at which one of them was not valid."""
    world = make_world(readding="auditor")
    session = world.session()
    session.run()
    record = session.aggregator.result().record
    late = make_world(readding="auditor", validity={name: (0, world.now - 1)})
    config = late.forge(record.config, registry_digest=late.registry.digest)
    session.config = config
    frames = record.roster, *record.commits, record.attestation, record.receipt
    fields = {"cfg": session.cfg}
    roster, *commits, attestation, receipt = (late.forge(frame, **fields) for frame in frames)
    message = late.parse(roster)
    parts = message.cfg, message.key, message.members, message.commitments
    pin = {"roster": digest("he-roster", *parts)}
    body = {
        "config": config,
        "roster": roster,
        "commits": tuple(commits),
        "attestation": late.forge(attestation, **pin),
        "receipt": late.forge(receipt, **pin),
    }
    signed = HETranscript.sign(record, identity=late.identities["coordinator"], ledger_head=HEAD)
    forged = changed(late, signed, **body)
    with pytest.raises(RemoteProtocolError, match=f"{name} was not valid"):
        forged.verify(late.registry)
    # the oracle: the same forgery is accepted where everybody was valid
    config = world.forge(config, registry_digest=world.registry.digest)
    assert config == record.config
    HETranscript.sign(record, identity=world.identities["coordinator"], ledger_head=HEAD).verify(
        world.registry
    )


def test_bytes_that_are_no_record_are_refused(rounds: dict[str, Any]) -> None:
    session, transcript = rounds["none"][0]
    others: list[Any] = [b"", b"junk", transcript.data + b"\0", transcript.data[:-1]]
    others += [session.config, transcript.data.replace(b"PFHE", b"PFSA", 1)]
    others += [bytes(2**20), bytearray(transcript.data), None]
    for data in others:
        with pytest.raises(RemoteProtocolError):
            HETranscript.from_bytes(data)


def test_the_largest_transcript_of_any_cohort_can_be_read(make_world: Any) -> None:
    """64 agents, all names of 64 characters."""
    world = make_world(
        n=64,
        name_chars=64,
        readding="auditor",
        settings={"value_bits": 16},
    )
    transcript = transcript_of(world.session())
    again = HETranscript.from_bytes(transcript.to_bytes())
    again.verify(world.registry)
    assert again.survivors(world.registry) == world.names


@pytest.mark.parametrize("name", ["bfv-4096-wide", "ckks-4096-add"])
def test_a_transcript_names_the_parameter_set(make_world: Any, name: str) -> None:
    chosen = ParameterSet.named(name)
    world = make_world(settings={"parameter_set": chosen, "value_bits": 16})
    session = world.session()
    transcript = transcript_of(session)
    transcript.verify(world.registry)
    transcript.verify_sum(session.aggregator.result().vector)
    assert transcript.config.parameters_digest == world.parameters.digest
    assert name.encode() in transcript.config.parameters


def test_a_receipt_without_a_ledger_entry_of_the_authority_is_refused(
    rounds: dict[str, Any],
) -> None:
    """A head of zeros stands for no entry: the opening would have been charged to nobody."""
    session, transcript = rounds["key-authority"][0]
    receipt = session.world.forge(transcript.body.receipt, ledger_head=bytes(32))
    with pytest.raises(RemoteProtocolError, match="charged no ledger"):
        changed(session.world, transcript, receipt=receipt).verify(session.world.registry)
