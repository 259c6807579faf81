"""Every phase with every message: in the table, or refused, or the end of the round."""

from __future__ import annotations

from typing import Any

import pytest

from privfedrl.errors import LocalProtocolError, ProtocolError, RemoteProtocolError, RoundAborted
from privfedrl.secagg import ClientPhase, IdealRecord, ServerPhase, Transcript
from privfedrl.secagg.phases import CLIENT_TRANSITIONS, SERVER_COLLECTS, SERVER_NEXT
from privfedrl.secagg.sizes import CLIENT_TYPES, MessageType

SERVER_TYPES = [kind for kind in MessageType if kind not in CLIENT_TYPES]
NAME = "agent-00"
REACHED = [ClientPhase.ADVERTISED, ClientPhase.SHARED, ClientPhase.MASKED, ClientPhase.AGREED]


class _Forgetful:
    """A journal for the rehearsal whose frames the tests then play back."""

    def spend_masked(self, *spent: object) -> None:
        """Accept everything."""

    def spend_consistency(self, *spent: object, **how: object) -> None:
        """Accept everything."""


@pytest.fixture(scope="module")
def frames(make_world: Any) -> dict[MessageType, bytes]:
    """One honest frame of each type, to or from NAME; the world's entropy makes them repeat."""
    session = make_world().session(client_changes={"journal": _Forgetful()}).run()
    every = {MessageType(data[7]): data for data in (*session.shown[NAME], *session.sent[NAME])}
    transcript = Transcript.sign(
        session.server.result().record,
        identity=session.world.coordinator,
        ledger_head=bytes(32),
    )
    ideal = Transcript.sign(
        IdealRecord(
            task_id=b"t" * 32,
            round=1,
            attempt=0,
            plan_digest=b"p" * 32,
            model_digest=b"m" * 32,
            registry=session.world.registry,
            previous_transcript=bytes(32),
            survivors=session.world.names,
            vector=session.server.result().vector,
        ),
        identity=session.world.coordinator,
        ledger_head=bytes(32),
    )
    return {
        **every,
        MessageType.TRANSCRIPT: transcript.to_bytes(),
        MessageType.IDEAL: ideal.to_bytes(),
    }


def test_the_tables_lead_from_idle_to_done_without_a_fork() -> None:
    phase, seen = ClientPhase.IDLE, []
    while phase is not ClientPhase.DONE:
        ((kind, phase),) = [
            (kind, following)
            for (current, kind), following in CLIENT_TRANSITIONS.items()
            if current is phase
        ]
        seen.append(kind)
    assert seen == [kind for kind in MessageType if kind in SERVER_TYPES[:5]]
    assert set(SERVER_NEXT) == {phase for phase, _ in SERVER_COLLECTS}
    assert {kind for _, kind in SERVER_COLLECTS} == CLIENT_TYPES


@pytest.mark.parametrize("kind", list(MessageType))
@pytest.mark.parametrize("phase", [*REACHED, ClientPhase.DONE])
def test_a_client_accepts_what_its_table_names_and_nothing_else(
    world: Any, frames: dict[MessageType, bytes], phase: ClientPhase, kind: MessageType
) -> None:
    frame = frames[kind]
    session = world.session()
    client = session.clients[NAME]
    while client.phase is not phase:
        session.step()
    before = client.phase
    if (phase, kind) in CLIENT_TRANSITIONS:
        client.receive(frame)
        assert client.phase is CLIENT_TRANSITIONS[phase, kind]
        return
    if kind in SERVER_TYPES[:5] and list(ClientPhase).index(phase) > SERVER_TYPES.index(kind):
        assert client.receive(frame) == []  # a repeat of what it has taken already
        assert client.phase is before
        return
    with pytest.raises(ProtocolError):
        client.receive(frame)
    if kind in SERVER_TYPES[:5]:
        assert client.phase is ClientPhase.ABORTED
    else:
        assert client.phase is before  # not a message of the coordinator in this round


@pytest.mark.parametrize("kind", list(MessageType))
def test_an_idle_client_must_be_started(
    world: Any, frames: dict[MessageType, bytes], kind: MessageType
) -> None:
    with pytest.raises(LocalProtocolError, match="start"):
        world.client(NAME).receive(frames[kind])


@pytest.mark.parametrize("kind", list(MessageType))
def test_an_aborted_client_stays_aborted(
    world: Any, frames: dict[MessageType, bytes], kind: MessageType
) -> None:
    session = world.session()
    session.step()
    client = session.clients[NAME]
    assert client.close_phase() == []
    with pytest.raises(RoundAborted) as caught:
        client.receive(frames[kind])
    assert caught.value.code == "Deadline"
    assert client.close_phase() == []
    assert client.phase is ClientPhase.ABORTED
    assert client.finished


SERVER_PHASES = [phase for phase in ServerPhase if phase.value.startswith("collect")]


@pytest.mark.parametrize("kind", list(MessageType))
@pytest.mark.parametrize("phase", [*SERVER_PHASES, ServerPhase.DONE])
def test_a_server_accepts_what_its_table_names_and_nothing_else(
    world: Any, frames: dict[MessageType, bytes], phase: ServerPhase, kind: MessageType
) -> None:
    frame = frames[kind]
    session = world.session().run(until=phase)
    server = session.server
    own_index = SERVER_PHASES.index(phase) if phase in SERVER_PHASES else 5
    kinds = [collected for _, collected in SERVER_COLLECTS]
    if (phase, kind) in SERVER_COLLECTS:
        assert server.receive(frame) == []
        assert NAME not in server.waiting_for
    elif kind in kinds and kinds.index(kind) < own_index:
        assert server.receive(frame) == []  # a repeat
    else:
        waiting = server.waiting_for
        with pytest.raises(RemoteProtocolError):
            server.receive(frame)
        assert server.waiting_for == waiting
    assert server.phase is phase


def test_an_idle_server_must_be_started_and_a_finished_one_is_closed(world: Any) -> None:
    server = world.server()
    for call in (server.close_phase, server.result, lambda: server.receive(b"")):
        with pytest.raises(LocalProtocolError):
            call()
    assert server.waiting_for == ()
    assert server.survivors == ()
    session = world.session().run()
    with pytest.raises(LocalProtocolError):
        session.server.close_phase()
    assert session.server.waiting_for == ()
    session.server.abort()
    assert session.server.phase is ServerPhase.DONE


def test_an_aborted_server_answers_nothing(world: Any) -> None:
    session = world.session()
    session.server.abort()
    for call in (session.server.result, lambda: session.server.receive(b"x")):
        with pytest.raises(RoundAborted) as caught:
            call()
        assert caught.value.code == "Deadline"
    with pytest.raises(LocalProtocolError):
        session.server.close_phase()
