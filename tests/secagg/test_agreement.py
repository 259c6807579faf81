"""What pins a round: digests that agree on everything or differ, and rosters that keep promises."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedrl.errors import RemoteProtocolError, RoundAborted
from privfedrl.parties.members import Members
from privfedrl.parties.opening import CLOCK_TOLERANCE_S, check_time
from privfedrl.secagg import SecAggParameters, SparseGraph
from privfedrl.secagg.agreement import (
    SignedSet,
    check_subset,
    commitment,
    feasible,
    members_of,
    proved_root,
    roster_digest,
    shared_digest,
    sum_digest,
    survivors_digest,
    vector_digest,
)
from privfedrl.secagg.parameters import Topology
from privfedrl.secagg.phases import AbortCode, ServerPhase

A, B = b"a" * 32, b"b" * 32
CODE = AbortCode.ROSTER_MISMATCH


def test_every_digest_depends_on_every_part() -> None:
    one, other = Members.of([0, 1], 8), Members.of([0, 2], 8)
    digests = [
        *(roster_digest(c, m, r) for c in (A, B) for m in (one, other) for r in (A, B)),
        *(
            shared_digest(c, SignedSet(members=m, root=r))
            for c in (A, B)
            for m in (one, other)
            for r in (A, B)
        ),
        *(
            survivors_digest(c, s, SignedSet(members=m, root=r))
            for c in (A, B)
            for s in (A, B)
            for m in (one, other)
            for r in (A, B)
        ),
        *(commitment(c, name, s) for c in (A, B) for name in ("x", "y") for s in (A, B)),
        *(vector_digest(c, name, v) for c in (A, B) for name in ("x", "y") for v in (A, B)),
        *(sum_digest(c, v) for c in (A, B) for v in (A, B)),
    ]
    assert len(set(digests)) == len(digests)
    assert all(len(value) == 32 for value in digests)


def test_a_set_over_more_agents_has_another_digest() -> None:
    small, large = Members.of([0, 1], 8), Members.of([0, 1], 9)
    assert roster_digest(A, small, A) != roster_digest(A, large, A)


@given(
    first=st.frozensets(st.integers(0, 11)),
    second=st.frozensets(st.integers(0, 11)),
    floor=st.integers(0, 12),
)
def test_a_set_passes_if_it_is_within_the_earlier_one_and_large_enough(
    first: frozenset[int], second: frozenset[int], floor: int
) -> None:
    inner, outer = Members.of(first, 12), Members.of(second, 12)
    if first <= second and len(first) >= floor:
        check_subset(inner, within=outer, floor=floor, code=CODE)
        return
    with pytest.raises(RoundAborted) as caught:
        check_subset(inner, within=outer, floor=floor, code=CODE)
    too_small = first <= second
    assert caught.value.code == ("CohortTooSmall" if too_small else CODE.value)


def test_a_set_of_another_form_ends_the_round_with_the_given_code(world: Any) -> None:
    for data in (b"", b"\x00\x00", b"\x40"):
        with pytest.raises(RoundAborted) as caught:
            members_of(data, registry=world.registry, within=None, floor=0, code=CODE)
        assert caught.value.code == CODE.value
        assert isinstance(caught.value.__cause__, RemoteProtocolError)


def test_a_proof_of_another_form_ends_the_round_with_the_given_code() -> None:
    for leaves, count, proof in (({}, 3, b""), ({3: A}, 3, bytes(64)), ({0: A}, 3, bytes(32))):
        with pytest.raises(RoundAborted) as caught:
            proved_root(leaves, count, proof, code=CODE)
        assert caught.value.code == CODE.value


@pytest.mark.parametrize("off", [-CLOCK_TOLERANCE_S, 0, CLOCK_TOLERANCE_S])
def test_an_hour_either_way_is_allowed_and_no_second_more(world: Any, off: int) -> None:
    config = world.parse(world.session().out[0].data)
    check_time(config, registry=world.registry, now=config.opened_at + off)
    beyond = off + (1 if off >= 0 else -1)
    if off:
        with pytest.raises(RoundAborted, match="WrongTime"):
            check_time(config, registry=world.registry, now=config.opened_at + beyond)


# -- who masks with whom


def test_ranks_and_points_follow_the_roster_not_the_registry(make_world: Any) -> None:
    world = make_world(n=8)
    session = world.session(drop={"agent-00": 0, "agent-04": 0}).run()
    cohort = session.server._cohort
    assert [cohort.rank(name) for name in ("agent-01", "agent-03", "agent-05")] == [0, 2, 3]
    assert [cohort.points[name] for name in ("agent-01", "agent-07")] == [1, 6]
    others = ("agent-01", "agent-02", "agent-05", "agent-06", "agent-07")
    assert cohort.neighbours("agent-03") == others
    assert cohort.holders("agent-03") == tuple(sorted((*others, "agent-03")))


def test_neighbours_are_mutual_and_as_many_for_everybody(sparse_world: Any) -> None:
    session = sparse_world().session(drop={"agent-10": 0}).run(until=ServerPhase.COLLECT_SHARES)
    cohort = session.server._cohort
    names = [name for name in session.world.names if name != "agent-10"]
    near = {name: set(cohort.neighbours(name)) for name in names}
    assert {len(found) for found in near.values()} == {8}
    for one, other in combinations(names, 2):
        assert (one in near[other]) == (other in near[one])
    assert all(name not in near[name] and "agent-10" not in near[name] for name in names)


def test_client_and_coordinator_see_the_same_neighbourhoods(sparse_world: Any) -> None:
    session = sparse_world().session().run(until=ServerPhase.COLLECT_MASKED)
    server = session.server._cohort
    for name, client in session.clients.items():
        own = client._cohort
        assert own.roster == server.roster
        assert own.neighbours(name) == server.neighbours(name)
        assert set(own.share_keys) == set(own.points) == {name, *own.neighbours(name)}
        assert own.points.items() <= server.points.items()


def _sparse(kind: type[SecAggParameters]) -> SecAggParameters:
    graph = SparseGraph(max_dropouts=3, security_bits=8, correctness_bits=8)
    return kind(num_clients=40, max_colluding=1, vector_length=1, min_clients=30, graph=graph)


def test_a_roster_without_a_graph_is_refused() -> None:
    complete = SecAggParameters(num_clients=9, max_colluding=1, vector_length=1)
    assert feasible(complete, 7).degree == 6
    sparse = _sparse(SecAggParameters)
    for size in range(sparse.floor, 41):
        assert feasible(sparse, size) == sparse.topology(size)
    with pytest.raises(RoundAborted) as caught:
        feasible(sparse, 3)
    assert caught.value.code == "InfeasibleParameters"


class Narrow(SecAggParameters):
    """Frames have room for six neighbours."""

    max_neighbours = 6


class Loose(SecAggParameters):
    """The graph of 37 lets two be isolated."""

    def topology(self, roster_size: int) -> Topology:
        found = super().topology(roster_size)
        return replace(found, smallest_opened=2) if roster_size == 37 else found


def test_a_roster_that_takes_more_neighbours_than_frames_have_room_for_is_refused() -> None:
    with pytest.raises(RoundAborted, match="takes 8 neighbours, at most 6") as caught:
        feasible(_sparse(Narrow), 40)
    assert caught.value.code == "InfeasibleParameters"


def test_a_roster_that_lets_too_few_be_isolated_is_refused() -> None:
    assert feasible(_sparse(Loose), 38).smallest_opened >= 3
    with pytest.raises(RoundAborted, match="roster of 37 would let 2 honest clients") as caught:
        feasible(_sparse(Loose), 37)
    assert caught.value.code == "InfeasibleParameters"
