"""Transcripts: they verify, they link, and nothing in them can be changed."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from privfedrl.errors import AuthenticationFailed, ConfigurationError, ProtocolError
from privfedrl.secagg import Registry, SecAggParameters, Transcript
from privfedrl.secagg.messages import encode_frame

HEAD = b"h" * 32
VECTORS = Path(__file__).parents[1] / "vectors" / "secagg_transcript.json"


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
    assert transcript.survivors == result.survivors
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
    with pytest.raises(AuthenticationFailed):
        transcript.verify_sum(wrong)


@pytest.mark.parametrize(
    "change",
    [
        lambda w, b: {"survivors": b.survivors[:-1]},
        lambda w, b: {"survivors": b.survivors[::-1]},
        lambda w, b: {"survivors": (*b.survivors, ("zoe", HEAD))},
        lambda w, b: {"survivors": ((b.survivors[0][0], HEAD), *b.survivors[1:])},
        lambda w, b: {"shared": ((b.shared[0][0], HEAD), *b.shared[1:])},
        lambda w, b: {"shared": b.shared[1:]},
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
        lambda w, b: {"config": w.forge(b.config, parameters=bytes(56))},
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


def test_the_golden_transcript_has_not_changed(make_world: Any) -> None:
    """A change of the wire format, of any derivation or of any label shows up here."""
    golden = json.loads(VECTORS.read_text())
    world = make_world(n=7)
    session = world.session(drop={"agent-06": 2})
    transcript = transcript_of(session)
    assert transcript.digest.hex() == golden["transcript_digest"]
    assert session.server.result().vector.tolist() == golden["sum"]
    masked = session.sent["agent-00"][2]
    assert world.parse(masked).vector.hex() == golden["masked_vector_of_agent_00"]
