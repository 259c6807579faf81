"""A share of a self mask leaves only for a survivor that masked for the same U2.

On a sparse graph a coordinator could otherwise hide from one client some of its neighbours in U2:
they would hold its shares and give them away although it never masked towards them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from privfedrl.errors import AuthenticationFailed, RoundAborted
from privfedrl.secagg import ClientPhase, SparseGraph
from privfedrl.secagg.agreement import receipt_text
from privfedrl.secagg.sizes import MessageType

NAME = "agent-02"
GONE = "agent-01"  # sends its vector and vanishes before it signs U3
SPARSE = SparseGraph(max_dropouts=3, security_bits=8, correctness_bits=8)


@pytest.fixture(params=["complete", "sparse"])
def waiting(request: Any, make_world: Any) -> Any:
    """A round in which NAME is about to be asked to unmask, GONE is among its holders."""
    if request.param == "complete":
        world, gone = make_world(n=7), GONE
        session = world.session(drop={gone: 3})
    else:
        world = make_world(n=40, graph=SPARSE, settings={"min_clients": 30})
        # who is a neighbour is known when the roster is: a first round with the same entropy tells
        rehearsal = world.session()
        while NAME not in rehearsal.clients or not rehearsal.sent[NAME][1:]:
            rehearsal.step()
        gone = rehearsal.clients[NAME]._cohort.neighbours(NAME)[0]
        session = world.session(drop={gone: 3})
    request_frame = b""
    while not request_frame:
        session.step()
        due = {out.recipient: out.data for out in session.out}
        if due[NAME][7] == MessageType.UNMASK_REQUEST:
            request_frame = due[NAME]
    return world, session, request_frame, gone


def code_of(client: Any, data: bytes) -> str:
    with pytest.raises(RoundAborted) as caught:
        client.receive(data)
    assert client.phase is ClientPhase.ABORTED
    assert not client._held_shares
    return str(caught.value.code)


def test_a_survivor_that_vanished_before_signing_is_covered_by_its_receipt(waiting: Any) -> None:
    world, session, frame, gone = waiting
    assert [name for name, _ in world.parse(frame).receipts] == [gone]
    session.run()
    result = session.server.result()
    assert gone in result.survivors
    assert (result.vector == world.ideal(result.survivors)).all()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda receipts: (), "SurvivorMismatch"),
        (lambda receipts: ((receipts[0][0], bytes(64)),), "BadSignature"),
        (lambda receipts: (*receipts, ("stranger", receipts[0][1])), "BadSignature"),
    ],
)
def test_without_a_receipt_no_share_leaves(
    waiting: Any, change: Callable[[Any], Any], code: str
) -> None:
    world, session, frame, _ = waiting
    forged = world.forge(frame, receipts=change(world.parse(frame).receipts))
    assert code_of(session.clients[NAME], forged) == code


def test_a_receipt_for_another_set_counts_for_nothing(waiting: Any) -> None:
    """What a client that was shown another U2 has signed: genuine, and about that other set."""
    world, session, frame, gone = waiting
    cohort = session.clients[NAME]._cohort
    other = world.agents[gone].sign(receipt_text(cohort.cfg, cohort.roster, b"o" * 32))
    forged = world.forge(frame, receipts=((gone, other),))
    assert code_of(session.clients[NAME], forged) == "BadSignature"


def test_a_coordinator_refuses_a_vector_without_its_receipt(make_world: Any) -> None:
    session = make_world().session()
    while session.out[0].data[7] != MessageType.DELIVERY:
        session.step()
    world = session.world
    frames = [data for out in session.out for data in session.answer(out)]
    before = session.server._total.copy()
    with pytest.raises(AuthenticationFailed):
        session.server.receive(world.forge(frames[0], receipt=bytes(64)))
    assert (session.server._total == before).all()
    for data in frames:
        session.out = session.server.receive(data)
    session.run()
    assert (session.server.result().vector == world.ideal(world.names)).all()
