"""Sets on the wire: one encoding each, the algebra of sets, and speed at 10,000 agents."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedrl.errors import RemoteProtocolError
from privfedrl.parties.members import Members, members_bytes


@st.composite
def sets(draw: st.DrawFn) -> tuple[int, frozenset[int], frozenset[int]]:
    """A number of agents and two sets of their indices."""
    n = draw(st.integers(1, 300))
    subset = st.frozensets(st.integers(0, n - 1))
    return n, draw(subset), draw(subset)


@given(sets())
def test_a_set_comes_back_from_its_only_encoding(
    drawn: tuple[int, frozenset[int], frozenset[int]],
) -> None:
    n, one, other = drawn
    members = Members.of(one, n)
    data = members.to_bytes()
    assert len(data) == members_bytes(n) == -(-n // 8)
    assert Members.from_bytes(data, n) == members
    assert (data == Members.of(other, n).to_bytes()) == (one == other)
    assert [index for index in range(n) if data[index // 8] >> index % 8 & 1] == sorted(one)


@given(sets())
def test_members_behave_as_a_set_of_indices(
    drawn: tuple[int, frozenset[int], frozenset[int]],
) -> None:
    n, one, other = drawn
    members = Members.of(one, n)
    assert members.indices() == tuple(sorted(one))
    assert len(members) == len(one)
    assert [index in members for index in range(n)] == [index in one for index in range(n)]
    assert (members <= Members.of(other, n)) == (one <= other)
    assert members <= members
    assert [members.rank(index) for index in members.indices()] == list(range(len(one)))
    for index in range(n):
        assert members.rank(index) == sum(1 for member in one if member < index)


@given(sets())
def test_order_and_repeats_do_not_matter(
    drawn: tuple[int, frozenset[int], frozenset[int]],
) -> None:
    n, one, _ = drawn
    ordered = sorted(one)
    assert Members.of([*ordered[::-1], *ordered], n) == Members.of(iter(ordered), n)


@given(n=st.integers(1, 200), data=st.data())
def test_a_padding_bit_or_another_length_is_refused(n: int, data: st.DataObject) -> None:
    encoded = Members.of(data.draw(st.frozensets(st.integers(0, n - 1))), n).to_bytes()
    for other in (encoded + b"\0", encoded[:-1], b"\0" + encoded):
        with pytest.raises(RemoteProtocolError, match="bytes"):
            Members.from_bytes(other, n)
    for bit in range(n, 8 * len(encoded)):
        padded = bytearray(encoded)
        padded[bit // 8] |= 1 << bit % 8
        with pytest.raises(RemoteProtocolError, match="beyond"):
            Members.from_bytes(bytes(padded), n)


@pytest.mark.parametrize("index", [6, 7, 8, 100])
def test_nobody_beyond_the_registry_can_be_named(index: int) -> None:
    with pytest.raises(IndexError):
        Members.of([0, index], 6)


def test_sets_over_different_registries_are_never_subsets() -> None:
    assert not Members.of([0], 8) <= Members.of([0], 9)
    assert Members.of([], 8) <= Members.of([7], 8)
    assert Members.of([], 8).indices() == ()


def test_ten_thousand_agents_are_fast() -> None:
    """A client reads three such sets a round; together they must not be noticed."""
    n = 10_000
    everybody_but_some = [index for index in range(n) if index % 7]
    best = 1e9
    for _ in range(5):
        start = time.perf_counter()
        members = Members.of(everybody_but_some, n)
        again = Members.from_bytes(members.to_bytes(), n)
        assert len(again.indices()) == len(again) == len(everybody_but_some)
        assert again <= members
        assert again.rank(n - 1) == len(again) - (n - 1 in again)
        best = min(best, time.perf_counter() - start)
    assert len(members.to_bytes()) == 1250
    assert best < 0.05  # about 1 ms alone; the margin is for a loaded machine
