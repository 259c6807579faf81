"""Rounds on the sparse graph: exact sums, and what a client of a neighbourhood refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from privfedrl.errors import ConfigurationError, RemoteProtocolError, RoundAborted
from privfedrl.primitives import shamir
from privfedrl.secagg import ClientPhase, SecAggParameters, ServerPhase, SparseGraph
from privfedrl.secagg.merkle import MerkleTree
from privfedrl.secagg.messages import Consistency, UnmaskRequest, encode_frame
from privfedrl.secagg.parameters import Topology
from privfedrl.secagg.sizes import MessageType

NAME = "agent-02"
FEW = SparseGraph(max_dropouts=3, security_bits=8, correctness_bits=8)


def waiting(session: Any, kind: MessageType, name: str = NAME) -> bytes:
    """Play on until the server is about to show ``name`` a frame of ``kind``."""
    while True:
        honest = next(out.data for out in session.out if out.recipient == name)
        if honest[7] == kind:
            return bytes(honest)
        session.step()


def refuses(client: Any, data: bytes) -> str:
    """The abort code with which the client answers ``data``; its keys are gone after that."""
    with pytest.raises(RoundAborted) as caught:
        client.receive(data)
    assert client.phase is ClientPhase.ABORTED
    assert client._round_keys is None
    assert not client._held_shares
    return str(caught.value.code)


# -- exact sums


@pytest.mark.parametrize(
    "drop",
    [
        {},
        *({"agent-03": stage, "agent-20": stage, "agent-39": stage} for stage in range(5)),
        {f"agent-{index:02d}": 0 for index in range(7)},  # a roster of 33, the smallest
        {"agent-00": 0, "agent-01": 1, "agent-02": 2, "agent-03": 2, "agent-04": 3, "agent-05": 4},
    ],
)
def test_the_sum_is_exact_when_agents_leave_at_any_stage(
    sparse_world: Any, drop: dict[str, int]
) -> None:
    world = sparse_world()
    session = world.session(drop=drop).run()
    result = session.server.result()
    assert result.survivors == tuple(name for name in world.names if drop.get(name, 9) > 2)
    assert (result.vector == world.ideal(result.survivors)).all()
    assert result.suspects == ()
    assert session.server._cohort.topology.degree == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"ring_bits": 64},
        {"max_colluding": 3},
        {
            "graph": SparseGraph(
                max_dropouts=3, security_bits=8, correctness_bits=8, server="semi-honest"
            )
        },
    ],
)
def test_other_rings_and_adversaries_give_exact_sums_too(
    sparse_world: Any, changes: dict[str, Any]
) -> None:
    world = sparse_world(**changes)
    result = world.session(drop={"agent-07": 2, "agent-11": 1}).run().server.result()
    assert len(result.survivors) == 38
    assert (result.vector == world.ideal(result.survivors)).all()


@pytest.mark.parametrize("stage", [1, 2])
def test_more_dropouts_than_allowed_end_the_round(sparse_world: Any, stage: int) -> None:
    world = sparse_world()
    server = world.session(drop=dict.fromkeys(world.names[:4], stage)).run().server
    with pytest.raises(RoundAborted) as caught:
        server.result()
    assert caught.value.code == "CohortTooSmall"


def test_an_owner_with_too_few_shares_ends_the_round_by_name(sparse_world: Any) -> None:
    """Four of the eight neighbours of NAME never answer the unmask request; t is five."""
    world = sparse_world()
    session = world.session().run(until=ServerPhase.COLLECT_UNMASK)
    silent = session.server._cohort.holders(NAME)[:4]
    session.drop = dict.fromkeys(silent, 4)
    with pytest.raises(RoundAborted, match=f"fewer than 5 shares came for .*{NAME}") as caught:
        session.run().server.result()
    assert caught.value.code == "ThresholdNotMet"


def test_a_small_roster_falls_back_to_all_with_all(make_world: Any) -> None:
    """Where no sparse graph fits; the threshold is then the roster's, not the full cohort's."""
    world = make_world(n=12, max_colluding=2, graph=FEW, settings={"min_clients": 6})
    assert world.parameters.threshold == 7
    drop = dict.fromkeys(world.names[:3], 0) | dict.fromkeys(world.names[3:6], 2)
    session = world.session(drop=drop).run()
    cohort = session.server._cohort
    assert (cohort.topology.degree, cohort.threshold, cohort.topology.server) == (8, 6, None)
    assert cohort.holders("agent-11") == world.names[3:]  # its own share counts again
    result = session.server.result()
    assert result.survivors == world.names[6:]
    assert (result.vector == world.ideal(result.survivors)).all()


class Gap(SecAggParameters):
    """No graph fits a roster of 37."""

    def topology(self, roster_size: int) -> Topology:
        if roster_size == 37:
            raise ConfigurationError("no graph for 37")
        return super().topology(roster_size)


def test_a_roster_of_infeasible_size_ends_the_round_at_both_ends(sparse_world: Any) -> None:
    world = sparse_world()
    plain = world.parameters
    world.parameters = Gap(
        num_clients=40, max_colluding=1, vector_length=5, min_clients=30, graph=world.graph
    )
    assert world.parameters.digest == plain.digest
    session = world.session(drop=dict.fromkeys(world.names[:3], 0))
    session.step()
    assert session.server.phase is ServerPhase.ABORTED
    with pytest.raises(RoundAborted, match="no graph for 37") as caught:
        session.server.result()
    assert caught.value.code == "InfeasibleParameters"
    again = world.session(round=3)
    honest = waiting(again, MessageType.ROSTER)
    few = dict(list(again.adverts().items())[:37])
    world.parameters = plain  # what the coordinator goes by
    forged = world.forge_roster(honest, few)
    assert refuses(again.clients[NAME], forged) == "InfeasibleParameters"


def test_other_vectors_do_not_change_who_masks_with_whom(sparse_world: Any) -> None:
    worlds = sparse_world(), sparse_world()
    for vector in worlds[1].vectors.values():
        vector[:] = 0
    cohorts = [world.session().run().server._cohort for world in worlds]
    assert cohorts[0].roster == cohorts[1].roster
    other = sparse_world().session(round=2).run().server._cohort
    near = [[cohort.neighbours(name) for name in worlds[0].names] for cohort in (*cohorts, other)]
    assert near[0] == near[1]
    assert near[0] != near[2]  # drawn anew with every roster


# -- the roster


def test_the_recipient_sees_its_neighbours_and_nobody_else(sparse_world: Any) -> None:
    world = sparse_world()
    session = world.session()
    roster = world.parse(waiting(session, MessageType.ROSTER))
    shown = [world.parse(advert).sender for advert in roster.adverts]
    assert len(shown) == 9
    assert NAME in shown
    assert world.names_in(roster.members) == world.names


def _swap_one(world: Any, session: Any, data: bytes) -> bytes:
    """One neighbour is replaced by somebody else, rightly proved."""
    shown = [world.parse(advert).sender for advert in world.parse(data).adverts]
    victim = next(name for name in shown if name != NAME)
    stranger = next(name for name in world.names if name not in shown)
    return bytes(
        world.forge_roster(
            data, session.adverts(), shown=[stranger, *(n for n in shown if n != victim)]
        )
    )


def _one_less(world: Any, session: Any, data: bytes) -> bytes:
    shown = [world.parse(advert).sender for advert in world.parse(data).adverts]
    victim = next(name for name in shown if name != NAME)
    rest = [name for name in shown if name != victim]
    return bytes(world.forge_roster(data, session.adverts(), shown=rest))


def _wrong_sibling(world: Any, session: Any, data: bytes) -> bytes:
    proof = world.parse(data).proof
    return bytes(world.forge(data, proof=b"z" * 32 + proof[32:]))


def _one_member_less(world: Any, session: Any, data: bytes) -> bytes:
    """The set is made smaller, what is shown stays."""
    shown = [world.parse(advert).sender for advert in world.parse(data).adverts]
    gone = next(name for name in world.names if name not in shown)
    rest = world.members(name for name in world.names if name != gone)
    return bytes(world.forge(data, members=rest.to_bytes()))


def _somebody_elses(world: Any, session: Any, data: bytes) -> bytes:
    """The roster that a neighbour should see, addressed to NAME: it holds NAME's advert too."""
    shown = [world.parse(advert).sender for advert in world.parse(data).adverts]
    neighbour = next(name for name in shown if name != NAME)
    other = next(out.data for out in session.out if out.recipient == neighbour)
    return bytes(world.forge(other, recipient=NAME))


def _a_strangers(world: Any, session: Any, data: bytes) -> bytes:
    shown = [world.parse(advert).sender for advert in world.parse(data).adverts]
    stranger = next(name for name in world.names if name not in shown)
    other = next(out.data for out in session.out if out.recipient == stranger)
    return bytes(world.forge(other, recipient=NAME))


@pytest.mark.parametrize(
    "forge",
    [_swap_one, _one_less, _wrong_sibling, _one_member_less, _somebody_elses, _a_strangers],
)
def test_a_roster_with_another_neighbourhood_is_refused(
    sparse_world: Any, forge: Callable[[Any, Any, bytes], bytes]
) -> None:
    world = sparse_world()
    session = world.session()
    honest = waiting(session, MessageType.ROSTER)
    forged = forge(world, session, honest)
    assert forged != honest
    assert refuses(session.clients[NAME], forged) == "RosterMismatch"


def test_the_factories_make_honest_rosters_anew(sparse_world: Any) -> None:
    """Otherwise the refusals above could have another reason than the forged part."""
    world = sparse_world()
    session = world.session()
    honest = waiting(session, MessageType.ROSTER)
    assert world.forge_roster(honest, session.adverts()) == honest
    delivery = waiting(session, MessageType.DELIVERY)
    assert world.forge_set(delivery, session.commitments()) == delivery
    survivors = waiting(session, MessageType.SURVIVORS)
    assert world.forge_set(survivors, session.vector_digests()) == survivors


# -- U2 and U3


def test_boxes_come_from_the_neighbours_in_u2_only(sparse_world: Any) -> None:
    world = sparse_world()
    session = world.session().run(until=ServerPhase.COLLECT_SHARES)
    near = session.server._cohort.neighbours(NAME)
    session.drop = {near[0]: 1, near[-1]: 1}
    delivery = world.parse(waiting(session, MessageType.DELIVERY))
    assert len(delivery.sealed) == 6
    assert not {near[0], near[-1]} & set(world.names_in(delivery.members))
    session.run()
    assert (session.server.result().vector == world.ideal(session.server.survivors)).all()


def test_a_u2_that_leaves_fewer_than_t_holders_is_refused(sparse_world: Any) -> None:
    """The coordinator hides the neighbours of NAME from it, as far as max_dropouts lets it."""
    world = sparse_world(
        graph=SparseGraph(max_dropouts=4, security_bits=8, correctness_bits=1),
        settings={"min_clients": 30},
    )
    session = world.session()
    honest = waiting(session, MessageType.DELIVERY)
    cohort = session.clients[NAME]._cohort
    near = cohort.neighbours(NAME)
    hidden = near[: len(near) - cohort.threshold + 1]
    assert len(hidden) <= 4
    leaves = {n: leaf for n, leaf in session.commitments().items() if n not in hidden}
    boxes = dict(zip(near, world.parse(honest).sealed, strict=True))
    kept = tuple(box for name, box in boxes.items() if name not in hidden)
    forged = world.forge_set(honest, leaves, sealed=kept)
    assert refuses(session.clients[NAME], forged) == "CohortTooSmall"


@pytest.mark.parametrize("kind", [MessageType.DELIVERY, MessageType.SURVIVORS])
def test_a_set_below_the_roster_less_its_dropouts_is_refused(
    sparse_world: Any, kind: MessageType
) -> None:
    """Thirty-six of forty are far above min_clients, but four have vanished, not three."""
    world = sparse_world()
    session = world.session()
    honest = waiting(session, kind)
    made = session.commitments() if kind is MessageType.DELIVERY else session.vector_digests()
    near = session.clients[NAME]._cohort.neighbours(NAME)
    far = [name for name in world.names if name not in (*near, NAME)]
    for gone, expected in ((4, "CohortTooSmall"), (3, None)):
        leaves = {name: leaf for name, leaf in made.items() if name not in far[:gone]}
        client = session.clients[NAME] if expected else _twin(world, session, kind)
        if expected:
            assert refuses(client, world.forge_set(honest, leaves)) == expected
        else:
            assert client.receive(world.forge_set(honest, leaves))


def _twin(world: Any, session: Any, kind: MessageType) -> Any:
    """NAME once more, from the same entropy and with an empty journal, up to ``kind``."""
    journal = type(world.journals[NAME])()
    twin = world.client(NAME, journal=journal)
    before = [data for data in session.shown[NAME] if data[7] < kind]
    twin.start(before[0], world.vectors[NAME], model_digest=b"m" * 32)
    for data in before[1:]:
        twin.receive(data)
    return twin


@pytest.mark.parametrize("kind", [MessageType.DELIVERY, MessageType.SURVIVORS])
def test_a_set_without_what_this_client_sent_is_refused(
    sparse_world: Any, kind: MessageType
) -> None:
    world = sparse_world()
    session = world.session()
    honest = waiting(session, kind)
    made = session.commitments() if kind is MessageType.DELIVERY else session.vector_digests()
    forged = world.forge_set(honest, made | {NAME: b"z" * 32})
    expected = "RosterMismatch" if kind is MessageType.DELIVERY else "SurvivorMismatch"
    assert refuses(session.clients[NAME], forged) == expected


def test_another_roots_path_is_refused(sparse_world: Any) -> None:
    """The root is exchanged and the path is not."""
    world = sparse_world()
    session = world.session()
    honest = waiting(session, MessageType.SURVIVORS)
    leaves = list((session.vector_digests() | {"agent-30": b"z" * 32}).values())
    forged = world.forge(honest, root=MerkleTree(leaves).root)
    assert refuses(session.clients[NAME], forged) == "SurvivorMismatch"


# -- shares


def test_nobody_holds_a_share_of_its_own(sparse_world: Any, make_world: Any) -> None:
    session = sparse_world().session().run(until=ServerPhase.COLLECT_CONSISTENCY)
    for name, client in session.clients.items():
        held = client._held_shares
        assert (
            tuple(sorted(held)) == client._cohort.neighbours(name) == client._cohort.holders(name)
        )
        assert len(held) == 8
    complete = make_world().session().run(until=ServerPhase.COLLECT_CONSISTENCY)
    assert all(name in client._held_shares for name, client in complete.clients.items())


def test_never_both_shares_of_a_neighbour_leave_a_client(sparse_world: Any) -> None:
    world = sparse_world()
    gone = {"agent-05", "agent-06", "agent-33"}
    session = world.session(drop=dict.fromkeys(gone, 2)).run(until=ServerPhase.COLLECT_UNMASK)
    held = {name: dict(client._held_shares) for name, client in session.clients.items()}
    session.run()
    for name in set(world.names) - gone:
        left = b"".join(session.sent[name])
        assert len(world.parse(session.sent[name][4]).shares) == 36 * len(held[name])
        for peer, (share_b, share_s) in held[name].items():
            assert (share_b in left) == (peer not in gone)
            assert (share_s in left) == (peer in gone)


def _consent_of(world: Any, session: Any, name: str) -> bytes:
    frames: dict[str, bytes] = {n: sent[3] for n, sent in session.sent.items()}
    return frames[name]


@pytest.mark.parametrize("count", [0, 4])
def test_fewer_than_t_neighbours_consents_reveal_nothing(sparse_world: Any, count: int) -> None:
    world = sparse_world()
    session = world.session()
    honest = waiting(session, MessageType.UNMASK_REQUEST)
    consents = world.parse(honest).consents
    assert len(consents) == 8
    forged = world.forge(honest, consents=consents[:count])
    assert refuses(session.clients[NAME], forged) == "ThresholdNotMet"
    assert len(session.sent[NAME]) == 4  # no unmask message


def test_t_neighbours_consents_and_the_receipts_of_the_others_are_enough(
    sparse_world: Any,
) -> None:
    world = sparse_world()
    session = world.session()
    honest = waiting(session, MessageType.UNMASK_REQUEST)
    near = session.clients[NAME]._cohort.holders(NAME)
    receipts = tuple((name, world.parse(session.sent[name][2]).receipt) for name in near[5:])
    consents = world.parse(honest).consents[:5]
    assert session.clients[NAME].receive(world.forge(honest, consents=consents, receipts=receipts))
    fewer = _twin(world, session, MessageType.UNMASK_REQUEST)
    forged = world.forge(honest, consents=consents, receipts=receipts[1:])
    assert refuses(fewer, forged) == "SurvivorMismatch"


@pytest.mark.parametrize("whose", ["own", "stranger"])
def test_consents_of_others_than_neighbours_do_not_count(sparse_world: Any, whose: str) -> None:
    """Four neighbours and everybody else: thirty-five signatures, and four that count."""
    world = sparse_world()
    session = world.session()
    honest = waiting(session, MessageType.UNMASK_REQUEST)
    near = session.clients[NAME]._cohort.neighbours(NAME)
    strangers = [name for name in world.names if name not in (*near, NAME)]
    extra = [NAME] if whose == "own" else strangers[:4]
    chosen = sorted((*near[:4], *extra))
    consents = tuple(_consent_of(world, session, name) for name in chosen)
    forged = world.forge(honest, consents=consents)
    assert refuses(session.clients[NAME], forged) == "SurvivorMismatch"


def test_the_consent_of_a_neighbour_that_dropped_out_does_not_count(sparse_world: Any) -> None:
    world = sparse_world()
    session = world.session().run(until=ServerPhase.COLLECT_MASKED)
    gone = session.server._cohort.neighbours(NAME)[0]
    session.drop = {gone: 2}
    honest = waiting(session, MessageType.UNMASK_REQUEST)
    consents = world.parse(honest).consents
    model = world.parse(consents[0])
    stray = Consistency(cfg=model.cfg, sender=gone, roster=model.roster, survivors=model.survivors)
    extra = encode_frame(stray, world.agents[gone])
    forged = world.forge(honest, consents=(extra, *consents))
    assert refuses(session.clients[NAME], forged) == "SurvivorMismatch"


def test_two_survivor_sets_are_noticed_within_a_neighbourhood(sparse_world: Any) -> None:
    world = sparse_world()
    session = world.session()
    honest = waiting(session, MessageType.SURVIVORS)
    near = session.clients[NAME]._cohort.neighbours(NAME)
    odd = near[3]
    theirs = session.shown_to(odd, MessageType.SURVIVORS)
    far = next(name for name in world.names if name not in (*near, NAME, odd))
    fewer = {n: leaf for n, leaf in session.vector_digests().items() if n != far}
    split = session.clients[odd].receive(world.forge_set(theirs, fewer))[0].data
    consents = [
        split
        if name == odd
        else session.clients[name].receive(session.shown_to(name, MessageType.SURVIVORS))[0].data
        for name in near
    ]
    session.clients[NAME].receive(honest)
    request = world.forge(_request(world, session, consents[0]), consents=tuple(consents))
    with pytest.raises(RoundAborted) as caught:
        session.clients[NAME].receive(request)
    assert caught.value.code == "Equivocation"
    assert caught.value.evidence == (honest, split, request)


def _request(world: Any, session: Any, consent: bytes) -> bytes:
    model = world.parse(consent)
    message = UnmaskRequest(
        cfg=model.cfg,
        sender="coordinator",
        recipient=NAME,
        roster=model.roster,
        consents=(),
        receipts=(),
    )
    return encode_frame(message, world.coordinator)


# -- the server


def test_shares_for_another_number_of_neighbours_are_refused(sparse_world: Any) -> None:
    world = sparse_world()
    session = world.session().run(until=ServerPhase.COLLECT_SHARES)
    replies = session.exchange()
    mine = next(data for data in replies if world.parse(data).sender == NAME)
    sealed = world.parse(mine).sealed
    for other in (sealed[1:], (*sealed, sealed[0]), sealed * 4):
        with pytest.raises(RemoteProtocolError):
            session.server.receive(world.forge(mine, sealed=other))
    assert session.server.waiting_for == world.names
    session.out = [out for data in replies for out in session.server.receive(data)]
    assert session.run().server.result().survivors == world.names


@pytest.mark.parametrize("liars", [("agent-00",), ("agent-02", "agent-31")])
def test_liars_are_outvoted_in_every_neighbourhood_and_named_if_noticed(
    sparse_world: Any, liars: tuple[str, ...]
) -> None:
    world = sparse_world()
    session = world.session(drop={"agent-09": 2}).run(until=ServerPhase.COLLECT_UNMASK)
    session.out = [
        out
        for data in session.exchange()
        for out in session.server.receive(
            _spoil(world, data) if world.parse(data).sender in liars else data
        )
    ]
    if not session.server.finished:
        session.server.close_phase()
    result = session.server.result()
    assert (result.vector == world.ideal(result.survivors)).all()
    assert set(result.suspects) <= set(liars)
    assert "agent-09" not in result.survivors


def _spoil(world: Any, data: bytes) -> bytes:
    encoded = world.parse(data).shares
    shares = shamir.decode_shares(encoded, count=len(encoded) // shamir.SHARE_BYTES)
    offsets = np.random.default_rng(5).integers(1, shamir.PRIME, 18)
    changed = (shares.astype(np.int64) + offsets) % shamir.PRIME
    spoiled: bytes = world.forge(data, shares=shamir.encode_share(changed.astype(np.uint16)))
    return spoiled


def test_unmask_answers_of_another_length_are_refused(sparse_world: Any) -> None:
    world = sparse_world()
    session = world.session().run(until=ServerPhase.COLLECT_UNMASK)
    replies = session.exchange()
    mine = next(data for data in replies if world.parse(data).sender == NAME)
    shares = world.parse(mine).shares
    for other in (b"", shares[:-36], shares[:-1], shares + shares[:36]):
        with pytest.raises(RemoteProtocolError):
            session.server.receive(world.forge(mine, shares=other))
    for data in replies:
        session.server.receive(data)
    assert session.server.result().survivors == world.names
