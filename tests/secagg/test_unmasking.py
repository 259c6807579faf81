"""Which subsets of shares are tried, and what is never accepted."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedrl.errors import RoundAborted
from privfedrl.primitives.key_agreement import KeyPair
from privfedrl.secagg import ServerPhase
from privfedrl.secagg.unmasking import MAX_TRIES, Recovered, _subsets

NAME = "agent-02"


@given(count=st.integers(1, 60), data=st.data())
def test_subsets_are_bounded_distinct_and_of_the_right_size(
    count: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, count))
    subsets = list(_subsets(count, size))
    assert 1 <= len(subsets) <= MAX_TRIES
    assert len(set(subsets)) == len(subsets)
    assert all(len(set(subset)) == size for subset in subsets)
    assert subsets[0] == tuple(range(size))


@pytest.mark.parametrize("size", range(1, 12))
def test_every_single_liar_is_left_out_by_an_early_subset(size: int) -> None:
    for count in range(size + 1, 16):
        runs = -(-count // (count - size))
        early = list(islice(_subsets(count, size), runs))
        for liar in range(count):
            assert any(liar not in subset for subset in early)


def test_small_cases_are_searched_exhaustively() -> None:
    assert len(list(_subsets(6, 4))) == 15
    assert list(_subsets(4, 4)) == [(0, 1, 2, 3)]


def test_a_mask_key_that_was_not_advertised_is_never_used(make_world: Any) -> None:
    """A dealer shares another key than its advert's and drops out after M2."""
    world = make_world(n=8)
    session = world.session(drop={NAME: 2})
    session.step()
    session.clients[NAME]._keys.mask_pair = KeyPair.from_secret_bytes(b"k" * 32)
    session.run()
    with pytest.raises(RoundAborted, match=NAME):
        session.server.result()
    assert session.server._abort.code == "ShareInconsistent"


def test_a_seed_that_was_not_committed_to_is_never_used(make_world: Any) -> None:
    """A dealer commits to another seed than the one it shares."""
    world = make_world(n=8)
    session = world.session().run(until=ServerPhase.COLLECT_SHARES)
    replies = session.exchange()
    session.clients[NAME]._commitment = b"z" * 32
    session.out = []
    for data in replies:
        lying = world.parse(data).sender == NAME
        frame = world.forge(data, commitment=b"z" * 32) if lying else data
        session.out += session.server.receive(frame)
    session.run()
    with pytest.raises(RoundAborted, match=NAME):
        session.server.result()
    assert session.server._abort.code == "ShareInconsistent"


def test_what_was_recovered_is_not_shown() -> None:
    recovered = Recovered()
    recovered.seeds["agent"] = b"secret seed"
    assert "secret" not in repr(recovered)
