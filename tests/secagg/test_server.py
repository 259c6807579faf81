"""The coordinator: exact sums through every dropout, and clients that misbehave."""

from __future__ import annotations

import time
from itertools import product
from typing import Any

import numpy as np
import pytest

from privfedrl.errors import (
    BudgetExceeded,
    ConfigurationError,
    LocalProtocolError,
    RemoteProtocolError,
    RoundAborted,
)
from privfedrl.primitives import shamir
from privfedrl.secagg import ServerPhase
from privfedrl.secagg.messages import Advertise, config_digest, encode_frame
from privfedrl.secagg.sizes import MessageType

NAME = "agent-02"
NOW = 1_800_000_000


@pytest.mark.parametrize("ring_bits", [32, 64])
@pytest.mark.parametrize(("first", "second"), list(product(range(5), range(5))))
def test_the_sum_is_exact_when_agents_leave_at_any_stage(
    make_world: Any, first: int, second: int, ring_bits: int
) -> None:
    world = make_world(n=8, ring_bits=ring_bits, settings={"min_clients": 5})
    session = world.session(drop={"agent-00": first, "agent-05": second}).run()
    result = session.server.result()
    gone = {name for name, kept in session.drop.items() if kept < 3}
    assert result.survivors == tuple(name for name in world.names if name not in gone)
    assert result.vector.dtype == np.dtype(f"uint{ring_bits}")
    assert (result.vector == world.ideal(result.survivors)).all()
    assert not result.vector.flags.writeable
    assert result.suspects == ()


@pytest.mark.parametrize("stage", range(5))
def test_below_the_threshold_there_is_no_output(world: Any, stage: int) -> None:
    gone = world.names[: world.n - world.parameters.threshold + 1]
    session = world.session(drop=dict.fromkeys(gone, stage)).run()
    assert session.server.phase is ServerPhase.ABORTED
    with pytest.raises(RoundAborted) as caught:
        session.server.result()
    assert caught.value.code == "ThresholdNotMet"
    assert not session.server._total.any()


def test_a_cohort_below_the_floor_is_refused_although_the_threshold_is_met(
    make_world: Any,
) -> None:
    world = make_world(n=7, settings={"min_clients": 7, "threshold": 5})
    session = world.session(drop={"agent-00": 0}).run()
    with pytest.raises(RoundAborted) as caught:
        session.server.result()
    assert caught.value.code == "CohortTooSmall"


def test_a_full_round_of_ten_is_fast(make_world: Any) -> None:
    world = make_world(n=10, length=256)
    best = 1e9
    for attempt in range(5):
        start = time.perf_counter()
        world.session(attempt=attempt).run().server.result()
        best = min(best, time.perf_counter() - start)
    assert best < 0.4  # about 0.07 s alone on one core; the margin is for a loaded machine


def test_one_config_goes_to_each_agent(world: Any) -> None:
    session = world.session()
    assert tuple(out.recipient for out in session.out) == world.names
    assert len({out.data for out in session.out}) == 1
    config = world.parse(session.out[0].data)
    assert config.round_seed not in (bytes(32), b"")
    with pytest.raises(LocalProtocolError, match="start"):
        session.server.start(b"t" * 32, 1, 0, b"m" * 32, bytes(32))


def test_a_clock_out_of_range_opens_no_round(world: Any) -> None:
    for odd in (-1, 2**53, 1.5e9, True):
        server = world.server(clock=lambda odd=odd: odd)
        with pytest.raises(LocalProtocolError, match="opened_at"):
            server.start(b"t" * 32, 1, 0, b"m" * 32, bytes(32))
        assert server.phase is ServerPhase.IDLE


def test_agents_that_are_not_valid_are_not_invited(make_world: Any) -> None:
    past, future = (0, NOW - 1), (NOW + 1, 2 * NOW)
    world = make_world(n=8, validity={NAME: past, "agent-05": future, "agent-06": (NOW, NOW)})
    session = world.session()
    invited = tuple(name for name in world.names if name not in (NAME, "agent-05"))
    assert tuple(out.recipient for out in session.out) == invited
    assert session.server.waiting_for == invited
    stray = Advertise(
        cfg=config_digest(session.out[0].data[12:-64]),
        sender=NAME,
        share_key=b"\x09" * 32,
        mask_key=b"\x0a" * 32,
    )
    with pytest.raises(RemoteProtocolError, match="not expected"):
        session.server.receive(encode_frame(stray, world.agents[NAME]))
    result = session.run().server.result()
    assert result.survivors == invited
    assert (result.vector == world.ideal(invited)).all()


def test_a_round_to_which_nobody_is_valid_ends_when_it_is_closed(make_world: Any) -> None:
    names = make_world().names
    session = make_world(validity=dict.fromkeys(names, (0, 1))).session()
    assert session.out == []
    assert session.server.waiting_for == ()
    assert session.server.close_phase() == []
    with pytest.raises(RoundAborted, match="ThresholdNotMet"):
        session.server.result()


def test_waiting_for_names_exactly_those_whose_answer_is_missing(make_world: Any) -> None:
    """Through every phase: answers, refused frames, contradictions and dropouts."""
    world = make_world(n=9)
    session = world.session()
    server, out_of_it = session.server, set()
    while not server.finished:
        phase, replies = server.phase, session.exchange()
        missing = [world.parse(data).sender for data in replies]
        assert server.waiting_for == tuple(sorted(missing))
        session.out = []
        for data in replies:
            with pytest.raises(RemoteProtocolError):
                server.receive(world.forge(data, cfg=b"z" * 32))
            assert server.waiting_for == tuple(sorted(missing))
            session.out += server.receive(data)
            missing.remove(world.parse(data).sender)
            if missing:
                assert server.waiting_for == tuple(sorted(missing))
                assert server.receive(data) == []  # a repeat is not an answer of somebody else
                assert server.waiting_for == tuple(sorted(missing))
            if phase is ServerPhase.COLLECT_CONSISTENCY and len(missing) == 3:
                liar = missing.pop()
                out_of_it.add(liar)
                with pytest.raises(RemoteProtocolError, match="two different"):
                    server.receive(world.forge(session.sent[liar][1], commitment=b"z" * 32))
                assert server.waiting_for == tuple(sorted(missing))
                replies[:] = [item for item in replies if world.parse(item).sender != liar]
    result = server.result()
    assert result.survivors == world.names  # its vector was in before it contradicted itself
    assert (result.vector == world.ideal(world.names)).all()
    assert not out_of_it & {out.recipient for out in session.out}


@pytest.mark.parametrize(
    "change",
    [
        {"task_id": b"short"},
        {"model_digest": "text"},
        {"previous_transcript": bytes(33)},
        {"round_seed": b""},
        {"round": -1},
        {"round": 2**63},
        {"round": True},
        {"attempt": 2**32},
        {"attempt": 1.0},
    ],
)
def test_arguments_out_of_range_change_nothing(world: Any, change: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "task_id": b"t" * 32,
        "round": 1,
        "attempt": 0,
        "model_digest": b"m" * 32,
        "previous_transcript": bytes(32),
    }
    server = world.server()
    with pytest.raises(LocalProtocolError):
        server.start(**(good | change))
    assert server.phase is ServerPhase.IDLE
    assert len(server.start(**good)) == world.n


def test_only_the_registered_coordinator_coordinates(world: Any) -> None:
    with pytest.raises(ConfigurationError, match="registered as coordinator"):
        world.server(identity=world.agents[NAME])


# -- the caller's ledger


def test_the_caller_learns_the_survivors_before_anybody_is_asked(make_world: Any) -> None:
    world = make_world(n=8)
    calls: list[tuple[str, ...]] = []
    session = world.session(drop={"agent-03": 2}, server_changes={"before_unmask": calls.append})
    session.run(until=ServerPhase.COLLECT_MASKED)
    assert calls == []
    session.run()
    survivors = tuple(name for name in world.names if name != "agent-03")
    assert calls == [survivors]
    assert session.server.survivors == survivors


@pytest.mark.parametrize("error", [BudgetExceeded("spent"), RoundAborted("Mine", "x"), KeyError(1)])
def test_nobody_is_asked_to_unmask_when_the_caller_refuses(world: Any, error: Exception) -> None:
    def refuse(survivors: tuple[str, ...]) -> None:
        raise error

    session = world.session(server_changes={"before_unmask": refuse})
    session.run(until=ServerPhase.COLLECT_MASKED)
    *most, last = session.exchange()
    for data in most:
        session.server.receive(data)
    with pytest.raises(type(error)):
        session.server.receive(last)
    assert session.server.phase is ServerPhase.ABORTED
    with pytest.raises(RoundAborted, match="LocalFault"):
        session.server.result()


# -- clients that misbehave


def collect(world: Any, phase: ServerPhase) -> tuple[Any, dict[str, bytes]]:
    """A session in ``phase`` with everybody's answer in hand, none delivered."""
    session = world.session().run(until=phase)
    replies = session.exchange()
    return session, {world.parse(data).sender: data for data in replies}


@pytest.mark.parametrize(
    ("phase", "change"),
    [
        (ServerPhase.COLLECT_ADVERTS, {"share_key": bytes(32)}),
        (ServerPhase.COLLECT_ADVERTS, {"mask_key": b"\xff" * 32}),
        (ServerPhase.COLLECT_ADVERTS, {"cfg": b"z" * 32}),
        (ServerPhase.COLLECT_SHARES, {"roster": b"z" * 32}),
        (ServerPhase.COLLECT_SHARES, {"sealed": ()}),
        (ServerPhase.COLLECT_MASKED, {"roster": b"z" * 32}),
        (ServerPhase.COLLECT_MASKED, {"shared": b"z" * 32}),
        (ServerPhase.COLLECT_MASKED, {"vector": bytes(19)}),
        (ServerPhase.COLLECT_CONSISTENCY, {"roster": b"z" * 32}),
        (ServerPhase.COLLECT_CONSISTENCY, {"survivors": b"z" * 32}),
        (ServerPhase.COLLECT_UNMASK, {"roster": b"z" * 32}),
        (ServerPhase.COLLECT_UNMASK, {"shares": bytes(35)}),
        (ServerPhase.COLLECT_UNMASK, {"shares": b"\xff" * 36 * 6}),
    ],
)
def test_a_bad_message_is_refused_and_the_good_one_still_counts(
    world: Any, phase: ServerPhase, change: dict[str, Any]
) -> None:
    session, replies = collect(world, phase)
    with pytest.raises(RemoteProtocolError):
        session.server.receive(world.forge(replies[NAME], **change))
    assert NAME in session.server.waiting_for
    session.out = [out for data in replies.values() for out in session.server.receive(data)]
    result = session.run().server.result()
    assert result.survivors == world.names
    assert (result.vector == world.ideal(world.names)).all()


def test_somebody_elses_key_is_refused(world: Any) -> None:
    session, replies = collect(world, ServerPhase.COLLECT_ADVERTS)
    session.server.receive(replies["agent-00"])
    stolen = world.parse(replies["agent-00"]).mask_key
    with pytest.raises(RemoteProtocolError, match="somebody else"):
        session.server.receive(world.forge(replies[NAME], mask_key=stolen))


CHANGES: dict[ServerPhase, dict[str, Any]] = {
    ServerPhase.COLLECT_ADVERTS: {"share_key": b"\x09" + bytes(31)},
    ServerPhase.COLLECT_SHARES: {"commitment": b"z" * 32},
    ServerPhase.COLLECT_MASKED: {"vector": bytes(20)},
    ServerPhase.COLLECT_CONSISTENCY: {"survivors": b"z" * 32},
    ServerPhase.COLLECT_UNMASK: {"shares": bytes(36 * 6)},
}


@pytest.mark.parametrize("phase", list(CHANGES))
def test_a_client_that_contradicts_itself_is_out_with_evidence(
    world: Any, phase: ServerPhase
) -> None:
    session, replies = collect(world, phase)
    server = session.server
    server.receive(replies[NAME])
    assert server.receive(replies[NAME]) == []
    second = world.forge(replies[NAME], **CHANGES[phase])
    with pytest.raises(RemoteProtocolError, match="two different"):
        server.receive(second)
    masked = phase is ServerPhase.COLLECT_MASKED
    (found,) = server.evidence
    assert (found.sender, found.second) == (NAME, second)
    assert found.first == (b"" if masked else replies[NAME])
    with pytest.raises(RemoteProtocolError):
        server.receive(replies[NAME]) if not masked else server.receive(
            world.forge(second, shared=b"z" * 32)
        )
    assert len(server.evidence) == 1
    session.out = []
    for name, data in replies.items():
        if name != NAME:
            session.out += server.receive(data)
    result = session.run().server.result()
    assert (result.vector == world.ideal(result.survivors)).all()
    early = phase in (ServerPhase.COLLECT_ADVERTS, ServerPhase.COLLECT_SHARES)
    assert (NAME in result.survivors) == (not early)


def test_a_contradiction_about_an_earlier_phase_shuts_the_client_out(world: Any) -> None:
    session = world.session().run(until=ServerPhase.COLLECT_SHARES)
    second = world.forge(session.sent[NAME][0], share_key=b"\x09" + bytes(31))
    with pytest.raises(RemoteProtocolError, match="two different"):
        session.server.receive(second)
    replies = session.exchange()
    session.out = []
    for data in replies:
        if world.parse(data).sender == NAME:
            with pytest.raises(RemoteProtocolError, match="contradicted"):
                session.server.receive(data)
        else:
            session.out += session.server.receive(data)
    result = session.run().server.result()
    assert NAME not in result.survivors
    assert (result.vector == world.ideal(result.survivors)).all()


def test_a_contradiction_after_key_sharing_leaves_a_dropped_client(world: Any) -> None:
    session, replies = collect(world, ServerPhase.COLLECT_SHARES)
    server = session.server
    server.receive(replies[NAME])
    with pytest.raises(RemoteProtocolError):
        server.receive(world.forge(session.sent[NAME][0], share_key=b"\x09" + bytes(31)))
    session.out = [
        out for name, data in replies.items() if name != NAME for out in server.receive(data)
    ]
    assert NAME not in {out.recipient for out in session.out}
    result = session.run().server.result()
    assert NAME not in result.survivors
    assert (result.vector == world.ideal(result.survivors)).all()


def test_a_late_vector_is_never_added(world: Any) -> None:
    session, replies = collect(world, ServerPhase.COLLECT_MASKED)
    late = replies.pop(NAME)
    for data in replies.values():
        session.server.receive(data)
    session.out = session.server.close_phase()
    with pytest.raises(RemoteProtocolError, match="not accepted"):
        session.server.receive(late)
    result = session.run().server.result()
    assert NAME not in result.survivors
    assert (result.vector == world.ideal(result.survivors)).all()
    with pytest.raises(RemoteProtocolError):
        session.server.receive(late)


def test_an_agent_that_is_not_expected_is_refused(world: Any) -> None:
    session = world.session(drop={NAME: 0}).run(until=ServerPhase.COLLECT_SHARES)
    others = world.session(round=2).run(until=ServerPhase.COLLECT_SHARES)
    others.step()
    foreign = others.sent[NAME][1]
    cohort = session.server._cohort
    mine = world.forge(foreign, cfg=cohort.cfg, roster=cohort.roster)
    with pytest.raises(RemoteProtocolError, match="not expected"):
        session.server.receive(mine)


# -- wrong shares


def wrong_shares(world: Any, liars: tuple[str, ...], **session_changes: Any) -> Any:
    session = world.session(**session_changes).run(until=ServerPhase.COLLECT_UNMASK)
    session.out = [
        out
        for data in session.exchange()
        for out in session.server.receive(
            _spoil(world, data) if world.parse(data).sender in liars else data
        )
    ]
    if not session.server.finished:
        session.server.close_phase()
    return session.server


def _spoil(world: Any, data: bytes) -> bytes:
    shares = shamir.decode_shares(
        world.parse(data).shares, count=len(world.parse(data).shares) // shamir.SHARE_BYTES
    )
    # unrelated offsets: equal ones at x = 1 and x = 6 of seven shares would cancel at 0
    offsets = np.random.default_rng(int(world.parse(data).sender[-2:])).integers(
        1, shamir.PRIME, 18
    )
    changed = (shares.astype(np.int64) + offsets) % shamir.PRIME
    spoiled: bytes = world.forge(data, shares=shamir.encode_share(changed.astype(np.uint16)))
    return spoiled


@pytest.mark.parametrize(
    ("liar", "drop"),
    [
        *((liar, {}) for liar in range(8)),
        *((liar, {"agent-03": 2}) for liar in range(8) if liar != 3),
    ],
)
def test_one_liar_is_outvoted_whoever_it_is(
    make_world: Any, liar: int, drop: dict[str, int]
) -> None:
    world = make_world(n=8)
    name = world.names[liar]
    server = wrong_shares(world, (name,), drop=drop)
    result = server.result()
    assert (result.vector == world.ideal(result.survivors)).all()
    assert set(result.suspects) <= {name}
    if liar == 0:
        assert result.suspects == (name,)


def test_two_liars_among_ten_are_outvoted(make_world: Any) -> None:
    world = make_world(n=10, max_colluding=2, settings={"threshold": 7})
    result = wrong_shares(world, ("agent-00", "agent-05")).result()
    assert (result.vector == world.ideal(world.names)).all()
    assert result.suspects == ("agent-00", "agent-05")


def test_too_many_liars_end_the_round_without_a_sum(world: Any) -> None:
    server = wrong_shares(world, world.names[:3])
    with pytest.raises(RoundAborted) as caught:
        server.result()
    assert caught.value.code == "ShareInconsistent"
    assert "agent-00" in str(server._abort)


def test_an_unexpected_failure_inside_ends_the_round(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from privfedrl.secagg import server as module

    def broken(*args: Any, **kwargs: Any) -> None:
        raise MemoryError

    session, replies = collect(world, ServerPhase.COLLECT_UNMASK)
    monkeypatch.setattr(module, "strip_masks", broken)
    *most, last = replies.values()
    for data in most:
        session.server.receive(data)
    with pytest.raises(MemoryError):
        session.server.receive(last)
    with pytest.raises(RoundAborted, match="LocalFault"):
        session.server.result()


# -- secrecy


def test_the_server_keeps_one_accumulator_and_no_masked_vector(world: Any) -> None:
    session, replies = collect(world, ServerPhase.COLLECT_MASKED)
    for data in list(replies.values())[:-1]:
        session.server.receive(data)
    kept = session.server._answers[MessageType.MASKED]
    assert all(answer.frame == b"" and len(answer.value) == 32 for answer in kept.values())
    assert session.server._total.shape == (world.length,)


def test_shares_are_forgotten_at_the_end(world: Any) -> None:
    session = world.session().run()
    kept = session.server._answers[MessageType.UNMASK]
    assert all(answer.frame == b"" and answer.value is None for answer in kept.values())
    last = session.sent[NAME][-1]
    assert session.server.receive(last) == []


def test_a_server_shows_its_phase_and_no_vector(world: Any) -> None:
    session = world.session().run()
    assert repr(session.server) == "SecAggServer(coordinator, done)"
    assert "vector" not in repr(session.server.result())
    with pytest.raises(LocalProtocolError):
        world.server()._now  # noqa: B018 - reading is the test
    with pytest.raises(LocalProtocolError):
        world.session(round=2).server._cohort  # noqa: B018 - as above
