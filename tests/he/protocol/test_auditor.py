"""The auditor says of one sum that it is one, and of no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from privfedrl.errors import (
    ConfigurationError,
    ProtocolError,
    RemoteProtocolError,
    RoundAborted,
)
from privfedrl.he import AuditorPhase
from privfedrl.he.digests import sealed_digest
from privfedrl.he.frames import Kind
from privfedrl.parties import Identity, Outgoing, Registry
from privfedrl.primitives.random import DeterministicEntropy

NAME = "agent-02"
LIFETIME = 6 * 3600


@pytest.fixture
def session(make_world: Any) -> Any:
    return make_world(readding="auditor").session()


def meets(session: Any, kind: Kind, forge: Callable[[bytes], bytes]) -> str:
    """Show the auditor the forged frame in place of the honest one; its abort code."""
    frame = session.intercept("auditor", kind)
    with pytest.raises(RoundAborted) as caught:
        session.auditor.receive(forge(frame))
    assert session.auditor.phase is AuditorPhase.ABORTED
    assert session.auditor._uploads is None
    with pytest.raises(RoundAborted):
        session.auditor.receive(frame)
    return str(caught.value.code)


def is_from(session: Any, out: Outgoing, kind: Kind, name: str) -> bool:
    return out.data[7] == kind and session.world.parse(out.data).sender == name


def test_pieces_that_do_not_fit_build_no_auditor(make_world: Any) -> None:
    world = make_world(readding="auditor")
    other = Identity.generate("auditor", DeterministicEntropy(b"other"))
    for change in (
        {"identity": other},
        {"identity": world.identities["key-authority"]},
        {"plan_digest": b""},
        {"registry": Registry(e for e in world.registry.entries if e.name != NAME)},
    ):
        with pytest.raises(ConfigurationError):
            world.auditor(**change)


@pytest.mark.parametrize("readding", ["key-authority", "none"])
def test_there_is_no_auditor_where_the_parameters_ask_for_none(
    make_world: Any, readding: str
) -> None:
    world = make_world(readding=readding)
    with pytest.raises(ConfigurationError, match="readding must be 'auditor' for an auditor"):
        world.auditor()


def test_it_attests_once_to_the_sum_that_it_has_formed_itself(session: Any) -> None:
    sealed = session.intercept("auditor", Kind.SEALED)
    (answer,) = session.auditor.receive(sealed)
    message, asked = session.world.parse(answer.data), session.world.parse(sealed)
    attached = session.world.attachment(sealed)
    assert answer.recipient == "coordinator"
    assert message.sealed == sealed_digest(session.cfg, session.key, attached)
    assert (message.roster, message.contributors) == (asked.roster, asked.contributors)
    assert session.auditor.phase is AuditorPhase.DONE
    assert session.auditor._uploads is None
    assert session.auditor.receive(sealed) == []
    other = session.world.forge(sealed, ledger_head=b"q" * 32)
    with pytest.raises(RemoteProtocolError, match="after the end"):
        session.auditor.receive(other)


def _one_upload(session: Any) -> dict[str, Any]:
    upload = session.shown("auditor", Kind.UPLOAD)
    return {"attachment": session.world.attachment(upload)}


BAD_SEALED: list[Callable[[Any], dict[str, Any]]] = [
    lambda s: {"roster": b"q" * 32},
    lambda s: {"contributors": s.world.members(s.world.names[:4])},
    lambda s: {"contributors": b""},
    lambda s: {"attachment": bytes(s.world.parameters.ciphertext_bytes)},
    lambda s: {"attachment": b""},
    _one_upload,
]


@pytest.mark.parametrize("index", range(len(BAD_SEALED)))
def test_it_attests_to_no_other_sum(session: Any, index: int) -> None:
    def forge(data: bytes) -> bytes:
        return bytes(session.world.forge(data, **BAD_SEALED[index](session)))

    assert meets(session, Kind.SEALED, forge) == "SumMismatch"


def test_it_attests_to_no_sum_of_uploads_that_it_has_not_seen(session: Any) -> None:
    def wire(out: Outgoing) -> list[Outgoing]:
        lost = out.recipient == "auditor" and is_from(session, out, Kind.UPLOAD, NAME)
        return [] if lost else [out]

    session.wire = wire
    assert meets(session, Kind.SEALED, lambda data: data) == "SumMismatch"


def test_it_attests_to_no_sum_of_too_few_even_if_they_are_those(session: Any) -> None:
    """Coordinator and auditor agree on two contributors; the floor is three."""
    world = session.world

    def wire(out: Outgoing) -> list[Outgoing]:
        kept = (*world.names[:2], "coordinator", "key-authority")
        return [out] if out.data[7] != Kind.UPLOAD or world.parse(out.data).sender in kept else []

    session.wire = wire
    session.run(lambda: session.aggregator.phase.value == "collect-uploads")
    while session.queue:
        session.step()
    assert session.aggregator._uploads.names == set(world.names[:2])
    frame = session.frame(
        Kind.SEALED,
        roster=session.authority._roster.digest,
        contributors=world.members(world.names[:2]),
        attachment=session.aggregator._uploads.ciphertexts(),
    )
    with pytest.raises(RoundAborted, match="CohortTooSmall"):
        session.auditor.receive(frame)
    assert session.auditor.phase is AuditorPhase.ABORTED


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda w, m: {"members": w.members(w.names[:2]), "commitments": bytes(64)}, "CohortToo"),
        (lambda w, m: {"members": b"\x3f"}, "RosterMismatch"),
        (lambda w, m: {"members": b""}, "RosterMismatch"),
        (lambda w, m: {"commitments": m.commitments[:-1]}, "RosterMismatch"),
        (lambda w, m: {"commitments": m.commitments + bytes(32)}, "RosterMismatch"),
    ],
)
def test_a_roster_of_another_form_ends_the_round(session: Any, change: Any, code: str) -> None:
    def forge(data: bytes) -> bytes:
        world = session.world
        return bytes(world.forge(data, **change(world, world.parse(data))))

    assert meets(session, Kind.ROSTER, forge).startswith(code)


def test_two_rosters_are_evidence_against_the_authority(session: Any) -> None:
    first = session.intercept("auditor", Kind.ROSTER)
    session.auditor.receive(first)
    second = session.world.forge(first, commitments=bytes(32 * session.world.n))
    with pytest.raises(RoundAborted) as caught:
        session.auditor.receive(second)
    assert (caught.value.code, caught.value.evidence) == ("Equivocation", (first, second))


def test_an_upload_before_the_roster_is_refused_without_harm(session: Any) -> None:
    session.reach("auditor", AuditorPhase.WAITING)
    with pytest.raises(RemoteProtocolError, match="before the roster"):
        session.auditor.receive(session.frame(Kind.UPLOAD))
    session.run()
    assert session.aggregator.result().survivors == session.world.names


def test_a_bad_upload_is_refused_without_harm(session: Any) -> None:
    honest = session.intercept("auditor", Kind.UPLOAD)
    changed = bytearray(session.world.attachment(honest))
    changed[-1] ^= 1
    world = session.world
    for data in (
        world.forge(honest, attachment=bytes(changed)),
        world.forge(honest, attachment=b""),
        world.forge(honest, roster=b"q" * 32),
        world.forge(honest, sender="agent-04"),
        world.forge(honest, cfg=b"q" * 32),
        world.forge(honest, key=b"q" * 32),
        world.unsigned(honest),
    ):
        with pytest.raises(ProtocolError) as caught:
            session.auditor.receive(data)
        assert not isinstance(caught.value, RoundAborted)
        assert session.auditor._uploads.names == frozenset()
    session.queue.insert(0, Outgoing("auditor", honest))
    session.run()
    assert session.aggregator.result().survivors == world.names


@pytest.mark.parametrize("kind", [Kind.ROSTER, Kind.SEALED])
def test_one_second_after_a_rounds_time_it_attests_to_nothing(session: Any, kind: Kind) -> None:
    def forge(data: bytes) -> bytes:
        session.world.now += LIFETIME + 1
        return data

    assert meets(session, kind, forge) == "ContextExpired"


def test_it_is_not_asked_and_sees_nothing_where_the_authority_readds(world: Any) -> None:
    session = world.session().run()
    assert "auditor" not in {out.recipient for out in session.carried}
