"""Every phase with every message: in the table, or refused, or the end of the round."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import pytest

from privfedrl.errors import (
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    RoundAborted,
)
from privfedrl.he import AggregatorPhase, AuditorPhase, AuthorityPhase, ClientPhase
from privfedrl.he.frames import SENDERS, Kind
from privfedrl.he.lattice import Decryptor, Encryptor
from privfedrl.he.phases import (
    AGGREGATOR_COLLECTS,
    AUDITOR_TRANSITIONS,
    AUTHORITY_TRANSITIONS,
    CLIENT_TRANSITIONS,
)

NAME = "agent-00"
TABLES: dict[str, tuple[Any, dict[Any, Any]]] = {
    NAME: (ClientPhase, CLIENT_TRANSITIONS),
    "key-authority": (AuthorityPhase, AUTHORITY_TRANSITIONS),
    "auditor": (AuditorPhase, AUDITOR_TRANSITIONS),
}
CELLS = [
    pytest.param(name, phase, kind, id=f"{name}-{phase.value}-{kind.label}")
    for name, (phases, _) in TABLES.items()
    for phase in phases
    for kind in Kind
    if phase.name not in ("IDLE", "ABORTED")
]
REACHED = [
    pytest.param(name, phase, id=f"{name}-{phase.value}")
    for name, (phases, _) in TABLES.items()
    for phase in phases
    if phase.name not in ("IDLE", "ABORTED")
]
UNSTAGED = Kind.UPLOAD


@pytest.fixture
def session(make_world: Any) -> Any:
    return make_world(readding="auditor").session()


def session_for(make_world: Any, name: str) -> Any:
    """A round in which ``name`` gets every kind that its table has."""
    readding = "auditor" if name == "auditor" else "key-authority"
    return make_world(readding=readding).session()


def secrets_of(part: Any) -> dict[str, Any]:
    """What of its attributes is, or was computed from, something secret."""
    names = ("_vector", "_ciphertexts", "_vault", "_uploads")
    return {name: getattr(part, name) for name in names if getattr(part, name, None) is not None}


def test_each_table_is_one_line_from_idle_to_done() -> None:
    for phases, table in TABLES.values():
        phase, seen = phases["IDLE"], []
        while phase is not phases["DONE"]:
            seen.append(phase)
            ((_, phase),) = [
                (kind, following)
                for (current, kind), following in table.items()
                if current is phase and following is not phase
            ]
        assert {*seen, phases["DONE"], phases["ABORTED"]} == set(phases)
        loops = [kind for (current, kind), following in table.items() if current is following]
        assert loops in ([], [UNSTAGED])


def test_every_collecting_phase_collects_one_kind_and_each_kind_once() -> None:
    collecting = {phase for phase in AggregatorPhase if phase.value.startswith("collect")}
    assert set(AGGREGATOR_COLLECTS) == collecting
    kinds = list(AGGREGATOR_COLLECTS.values())
    assert len(set(kinds)) == len(kinds)
    assert set(kinds) == {
        Kind.CONTEXT,
        Kind.COMMIT,
        Kind.ROSTER,
        Kind.UPLOAD,
        Kind.ATTESTATION,
        Kind.OPENING,
    }
    assert set(SENDERS) == set(Kind)


@pytest.mark.parametrize(("name", "phase", "kind"), CELLS)
def test_a_participant_takes_what_its_table_names_and_nothing_else(
    make_world: Any, name: str, phase: Any, kind: Kind
) -> None:
    session = session_for(make_world, name).reach(name, phase)
    part, (phases, table) = session.parts[name], TABLES[name]
    own_kinds = {kind for _, kind in table}
    if (phase, kind) in table:
        part.receive(session.intercept(name, kind))
        assert part.phase is table[phase, kind]
        return
    frame = session.frame(kind)
    with pytest.raises(ProtocolError) as caught:
        part.receive(frame)
    if kind not in own_kinds or phase is phases["DONE"] or kind is UNSTAGED:
        # nobody's message to this one, too late, or an agent's: no reason to end anything
        assert isinstance(caught.value, RemoteProtocolError)
        assert part.phase is phase
        return
    assert isinstance(caught.value, RoundAborted)
    assert part.phase is phases["ABORTED"]
    assert not secrets_of(part)
    if any(out.recipient == name and out.data[7] == kind for out in session.carried):
        assert caught.value.code == "Equivocation"
        assert caught.value.evidence == (session.shown(name, kind), frame)
    else:
        assert caught.value.code == "UnexpectedMessage"
        assert caught.value.evidence == ()


@pytest.mark.parametrize(("name", "phase"), REACHED)
def test_what_was_taken_once_may_come_again_and_again(
    make_world: Any, name: str, phase: Any
) -> None:
    session = session_for(make_world, name).reach(name, phase)
    part = session.parts[name]
    taken = [out.data for out in session.carried if out.recipient == name]
    staged = [data for data in taken if data[7] != UNSTAGED]
    assert staged
    for data in staged * 2:
        assert part.receive(data) == []
        assert part.phase is phase
    for data in taken:
        if data[7] == UNSTAGED:
            with pytest.raises(RemoteProtocolError):
                part.receive(data)
            assert part.phase is phase
    session.run()
    assert part.phase.name == "DONE"
    assert session.aggregator.result().survivors == session.world.names


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("name", list(TABLES))
def test_a_participant_must_be_started_first(make_world: Any, name: str, kind: Kind) -> None:
    session = session_for(make_world, name)
    part = session.parts[name]
    with pytest.raises(LocalProtocolError, match="start"):
        part.receive(session.frame(kind))
    assert part.phase.name == "IDLE"
    assert not part.finished


@pytest.mark.parametrize(("name", "phase"), REACHED)
def test_a_participant_is_started_once(make_world: Any, name: str, phase: Any) -> None:
    session = session_for(make_world, name).reach(name, phase)
    part = session.parts[name]
    with pytest.raises(LocalProtocolError, match="start must come first"):
        session.begin(name, session.config)
    assert part.phase is phase


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize(("name", "phase"), REACHED)
def test_a_participant_that_left_stays_away_and_holds_nothing(
    make_world: Any, name: str, phase: Any, kind: Kind
) -> None:
    session = session_for(make_world, name).reach(name, phase)
    part = session.parts[name]
    done = phase.name == "DONE"
    assert part.close_phase() == []
    assert part.finished
    assert part.phase.name == ("DONE" if done else "ABORTED")
    assert not secrets_of(part)
    for data in (session.frame(kind), b"", b"junk"):
        with pytest.raises(ProtocolError) as caught:
            part.receive(data)
        if not done:
            assert isinstance(caught.value, RoundAborted)
            assert caught.value.code == "Deadline"
    assert part.close_phase() == []
    assert part.phase.name == ("DONE" if done else "ABORTED")
    if name == "key-authority":
        assert [vault.alive for vault in session.world.vaults] == [False]


@pytest.mark.parametrize("name", list(TABLES))
def test_an_idle_participant_that_is_closed_can_no_longer_start(make_world: Any, name: str) -> None:
    session = session_for(make_world, name)
    part = session.parts[name]
    assert part.close_phase() == []
    assert part.phase.name == "ABORTED"
    with pytest.raises(LocalProtocolError):
        session.begin(name, session.config)
    assert session.world.vaults == []


# -- the aggregator


def state_of(aggregator: Any) -> tuple[Any, ...]:
    """Everything that a message could have changed."""
    uploads, sealed = aggregator._uploads, aggregator._sealed
    return (
        aggregator.phase,
        aggregator.waiting_for,
        aggregator.survivors,
        sorted(aggregator._commits),
        sorted(aggregator._refused),
        dict(aggregator._frames),
        aggregator._key,
        None if uploads is None else (uploads.names, uploads.ciphertexts()),
        None if sealed is None else (sealed.ledger_head, sealed.attestation),
    )


OPEN = [phase for phase in AggregatorPhase if phase.value.startswith("collect")]


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("phase", [*OPEN, AggregatorPhase.DONE])
def test_an_aggregator_takes_what_its_table_names_and_refuses_the_rest_without_change(
    session: Any, phase: AggregatorPhase, kind: Kind
) -> None:
    session.reach("coordinator", phase)
    aggregator = session.aggregator
    if AGGREGATOR_COLLECTS.get(phase) is kind:
        before = state_of(aggregator)
        aggregator.receive(session.intercept("coordinator", kind))
        assert state_of(aggregator) != before
        return
    before = state_of(aggregator)
    with pytest.raises(RemoteProtocolError):
        aggregator.receive(session.frame(kind))
    assert state_of(aggregator) == before
    assert aggregator.phase is phase
    session.run()
    assert aggregator.result().survivors == session.world.names


@pytest.mark.parametrize("phase", [*OPEN, AggregatorPhase.DONE])
def test_a_repeat_to_the_aggregator_changes_nothing(session: Any, phase: AggregatorPhase) -> None:
    session.reach("coordinator", phase)
    before = state_of(session.aggregator)
    for data in [out.data for out in session.carried if out.recipient == "coordinator"]:
        if data[7] == Kind.UPLOAD:
            with pytest.raises(RemoteProtocolError):
                session.aggregator.receive(data)
        else:
            assert session.aggregator.receive(data) == []
        assert state_of(session.aggregator) == before
    session.run()
    assert session.aggregator.result().survivors == session.world.names


def test_an_idle_aggregator_must_be_started(world: Any) -> None:
    aggregator = world.aggregator()
    for call in (aggregator.close_phase, aggregator.result, lambda: aggregator.receive(b"")):
        with pytest.raises(LocalProtocolError):
            call()
    assert (aggregator.phase, aggregator.finished) == (AggregatorPhase.IDLE, False)
    assert (aggregator.waiting_for, aggregator.survivors) == ((), ())


@pytest.mark.parametrize("phase", OPEN)
def test_an_aggregator_that_gave_up_answers_nothing(session: Any, phase: AggregatorPhase) -> None:
    session.reach("coordinator", phase)
    aggregator = session.aggregator
    aggregator.abort()
    aggregator.abort()
    assert (aggregator.phase, aggregator.finished) == (AggregatorPhase.ABORTED, True)
    assert (aggregator.waiting_for, aggregator.survivors) == ((), ())
    assert aggregator._uploads is None
    assert aggregator._sealed is None
    for call in (aggregator.result, lambda: aggregator.receive(session.config)):
        with pytest.raises(RoundAborted) as caught:
            call()
        assert caught.value.code == "Deadline"
    with pytest.raises(RoundAborted, match=r"^Deadline: given up by the caller$"):
        aggregator.result()
    with pytest.raises(LocalProtocolError):
        aggregator.close_phase()
    with pytest.raises(LocalProtocolError):
        aggregator.start(b"t" * 32, 2, 0, b"m" * 32, bytes(32))


def test_a_finished_aggregator_cannot_be_closed_started_or_given_up(session: Any) -> None:
    aggregator = session.run().aggregator
    assert (aggregator.phase, aggregator.waiting_for) == (AggregatorPhase.DONE, ())
    with pytest.raises(LocalProtocolError):
        aggregator.close_phase()
    with pytest.raises(LocalProtocolError):
        aggregator.start(b"t" * 32, 2, 0, b"m" * 32, bytes(32))
    aggregator.abort()
    assert aggregator.phase is AggregatorPhase.DONE
    assert aggregator.result().survivors == session.world.names


# -- where secrets are


def reachable(root: Any) -> list[Any]:
    """Every object that can be reached from ``root`` through its attributes and containers."""
    seen: dict[int, Any] = {}
    waiting = [root]
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, type):
            continue
        seen[id(found)] = found
        if type(found).__module__ == "builtins" and not isinstance(
            found, (dict, list, tuple, set, frozenset)
        ):
            if hasattr(found, "__self__"):  # a bound method keeps its object
                waiting.append(found.__self__)
            waiting += [cell.cell_contents for cell in getattr(found, "__closure__", None) or ()]
            continue
        waiting += gc.get_referents(found)
    return list(seen.values())


def test_the_walk_finds_a_key_where_there_is_one(session: Any) -> None:
    session.reach("key-authority", AuthorityPhase.KEYED)
    assert any(isinstance(found, Decryptor) for found in reachable(session.authority))
    session.run()
    assert not any(isinstance(found, Decryptor) for found in reachable(session.authority))


@pytest.mark.parametrize("phase", OPEN)
def test_nobody_but_the_key_authority_can_reach_a_secret_key(
    session: Any, phase: AggregatorPhase
) -> None:
    session.reach("coordinator", phase)
    for name, part in session.parts.items():
        if name == "key-authority":
            continue
        for attribute, value in vars(part).items():
            if attribute in ("_clock", "_before_open", "_before_decrypt"):
                continue  # the tests' own functions, which know the whole world
            found = [type(x) for x in reachable(value) if isinstance(x, (Decryptor, Encryptor))]
            assert found == []


@pytest.mark.parametrize("phase", OPEN)
def test_no_participant_can_be_pickled_or_copied(session: Any, phase: AggregatorPhase) -> None:
    session.reach("coordinator", phase)
    for part in session.parts.values():
        for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(LocalProtocolError, match="refuses to be pickled"):
                duplicate(part)


@pytest.mark.parametrize("phase", [*OPEN, AggregatorPhase.DONE])
def test_a_repr_shows_name_and_phase_only(session: Any, phase: AggregatorPhase) -> None:
    session.reach("coordinator", phase)
    for name, part in session.parts.items():
        assert repr(part) == f"{type(part).__name__}({name}, {part.phase.value})"


def test_the_repr_of_a_sum_does_not_show_the_sum(session: Any) -> None:
    result = session.run().aggregator.result()
    text = repr(result)
    assert "vector" not in text
    assert "record" not in text
    assert all(str(int(number)) not in text for number in result.vector)
