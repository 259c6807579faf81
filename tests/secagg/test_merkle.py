"""Merkle trees against the recursive definition of RFC 9162, and what a proof cannot prove."""

from __future__ import annotations

import time
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.errors import ConfigurationError, RemoteProtocolError
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.secagg.merkle import (
    DIGEST_BYTES,
    merkle_proof,
    merkle_root,
    merkle_tree,
    root_from_proof,
)

# leaves and roots of the certificate-transparency project (merkletree test data, sizes 1 to 8)
CT_LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def definition(leaves: list[bytes]) -> bytes:
    """MTH of RFC 9162, section 2.1.1, word by word."""
    if not leaves:
        return sha256().digest()
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    split = split_of(leaves)
    return sha256(b"\x01" + definition(leaves[:split]) + definition(leaves[split:])).digest()


def split_of(leaves: list[bytes]) -> int:
    split = 1
    while 2 * split < len(leaves):
        split *= 2
    return split


def pre_order(leaves: list[bytes], known: set[int], start: int = 0) -> bytes:
    """The proof by recursion: the digest of every largest range without a known leaf."""
    if not any(start <= index < start + len(leaves) for index in known):
        return definition(leaves)
    if len(leaves) == 1:
        return b""
    split = split_of(leaves)
    left, right = leaves[:split], leaves[split:]
    return pre_order(left, known, start) + pre_order(right, known, start + split)


@pytest.mark.parametrize("count", range(1, 9))
def test_roots_are_those_of_certificate_transparency(count: int) -> None:
    assert merkle_root(CT_LEAVES[:count]).hex() == CT_ROOTS[count - 1]


def test_the_root_of_no_leaves_is_the_hash_of_nothing() -> None:
    assert merkle_root([]) == sha256().digest()


def test_single_paths_are_those_of_rfc_9162_section_2_1_5() -> None:
    """Seven leaves d0 to d6: the audit paths that the RFC spells out, from left to right."""
    d = CT_LEAVES[:7]
    a, b, c, g = (sha256(b"\x00" + d[k]).digest() for k in (0, 1, 2, 4))
    assert merkle_proof(d, [0]) == b + definition(d[2:4]) + definition(d[4:7])
    assert merkle_proof(d, [3]) == definition(d[0:2]) + c + definition(d[4:7])
    assert merkle_proof(d, [6]) == definition(d[0:4]) + definition(d[4:6])
    assert merkle_proof(d, [5, 1]) == a + definition(d[2:4]) + g + definition(d[6:7])


trees = st.integers(1, 40).flatmap(
    lambda count: st.tuples(
        st.just([bytes([k]) * (k % 5 + 1) for k in range(count)]),
        st.sets(st.integers(0, count - 1), min_size=1),
    )
)


@settings(max_examples=100, deadline=None)
@given(case=trees)
def test_trees_and_proofs_follow_the_recursive_definition(
    case: tuple[list[bytes], set[int]],
) -> None:
    leaves, known = case
    proof = merkle_proof(leaves, known)
    assert merkle_root(leaves) == definition(leaves)
    assert proof == pre_order(leaves, known)
    held = {index: leaves[index] for index in known}
    assert root_from_proof(held, len(leaves), proof) == merkle_root(leaves)


def test_who_holds_every_leaf_needs_no_proof() -> None:
    for count in range(1, 20):
        leaves = [bytes([k]) for k in range(count)]
        assert merkle_proof(leaves, range(count)) == b""
        assert root_from_proof(dict(enumerate(leaves)), count, b"") == merkle_root(leaves)


def root_or_none(known: dict[int, bytes], count: int, proof: bytes) -> bytes | None:
    try:
        return root_from_proof(known, count, proof)
    except RemoteProtocolError:
        return None


@settings(max_examples=80, deadline=None)
@given(case=trees, data=st.data())
def test_a_changed_leaf_gives_another_root(
    case: tuple[list[bytes], set[int]], data: st.DataObject
) -> None:
    leaves, known = case
    held = {index: leaves[index] for index in known}
    spoiled = data.draw(st.sampled_from(sorted(known)))
    held[spoiled] = data.draw(st.binary(max_size=80).filter(lambda leaf: leaf != leaves[spoiled]))
    found = root_from_proof(held, len(leaves), merkle_proof(leaves, known))
    assert found != merkle_root(leaves)


@settings(max_examples=80, deadline=None)
@given(case=trees, data=st.data())
def test_a_changed_index_gives_another_root_or_an_error(
    case: tuple[list[bytes], set[int]], data: st.DataObject
) -> None:
    leaves, known = case
    moved = data.draw(st.sampled_from(sorted(known)))
    elsewhere = data.draw(st.integers(-2, len(leaves) + 2).filter(lambda k: k not in known))
    held = {(elsewhere if index == moved else index): leaves[index] for index in known}
    assert root_or_none(held, len(leaves), merkle_proof(leaves, known)) != merkle_root(leaves)


@settings(max_examples=80, deadline=None)
@given(case=trees, data=st.data())
def test_a_changed_proof_gives_another_root_or_an_error(
    case: tuple[list[bytes], set[int]], data: st.DataObject
) -> None:
    leaves, known = case
    proof = merkle_proof(leaves, known)
    held = {index: leaves[index] for index in known}
    changed = data.draw(
        st.one_of(
            st.integers(0, max(0, len(proof) - 1)).map(
                lambda k: proof[:k] + bytes(byte ^ 1 for byte in proof[k : k + 1]) + proof[k + 1 :]
            ),
            st.integers(0, len(proof)).map(lambda k: proof[:k]),
            st.binary(min_size=1, max_size=65).map(lambda more: proof + more),
            st.binary(min_size=1, max_size=65).map(lambda more: more + proof),
        ).filter(lambda other: other != proof)
    )
    assert root_or_none(held, len(leaves), changed) != merkle_root(leaves)


@settings(max_examples=60, deadline=None)
@given(case=trees, data=st.data())
def test_no_leaf_outside_the_tree_is_accepted_under_another_count(
    case: tuple[list[bytes], set[int]], data: st.DataObject
) -> None:
    """A wrong count may be overlooked, but never makes a foreign leaf fit."""
    leaves, known = case
    count = data.draw(st.integers(max(known) + 1, 2 * len(leaves) + 2))
    held = {index: b"foreign" + bytes([index]) for index in known}
    assert root_or_none(held, count, merkle_proof(leaves, known)) != merkle_root(leaves)


def test_a_path_can_fit_two_counts_so_the_count_must_be_known() -> None:
    """Leaf 0 of 3 and of 4 has two digests above it: why callers bind n beside the root."""
    leaves = [b"a", b"b", b"c"]
    proof = merkle_proof(leaves, [0])
    assert root_from_proof({0: b"a"}, 4, proof) == merkle_root(leaves)
    assert root_or_none({0: b"a"}, 5, proof) is None


def test_a_node_is_never_taken_for_a_leaf() -> None:
    leaves = [b"a", b"b", b"c", b"d"]
    left, right = (
        sha256(b"\x00" + leaves[k]).digest() + sha256(b"\x00" + leaves[k + 1]).digest()
        for k in (0, 2)
    )
    assert merkle_root([left, right]) != merkle_root(leaves)


@pytest.mark.parametrize(
    ("known", "count"),
    [({}, 3), ({0: b""}, 0), ({0: b""}, -1), ({-1: b""}, 3), ({3: b""}, 3), ({0: b"", 9: b""}, 3)],
)
def test_impossible_claims_are_refused(known: dict[int, bytes], count: int) -> None:
    for proof in (b"", bytes(32), bytes(64)):
        with pytest.raises(RemoteProtocolError, match="indices"):
            root_from_proof(known, count, proof)


@pytest.mark.parametrize("indices", [[], [-1], [3], [0, 3]])
def test_proofs_of_absent_leaves_are_refused(indices: list[int]) -> None:
    with pytest.raises(ConfigurationError, match="indices"):
        merkle_proof([b"a", b"b", b"c"], indices)
    with pytest.raises(ConfigurationError, match="indices"):
        merkle_proof([], indices)


def test_a_claimed_astronomical_count_costs_nothing() -> None:
    with pytest.raises(RemoteProtocolError, match="proof must be"):
        root_from_proof({5: b"leaf"}, 2**4000, bytes(32))


def test_a_tree_serves_many_proofs_and_shows_its_size() -> None:
    entropy = DeterministicEntropy(b"tree")
    leaves = [entropy(32) for _ in range(10_000)]
    tree = merkle_tree(leaves)
    assert len(tree) == 10_000
    assert repr(tree).startswith("MerkleTree(10000 leaves, root=")
    chosen = [int.from_bytes(entropy(4), "big") % 10_000 for _ in range(70)]
    proof = tree.proof(chosen)
    assert len(proof) < 70 * 14 * DIGEST_BYTES
    held = {index: leaves[index] for index in chosen}
    started = time.thread_time()
    assert root_from_proof(held, 10_000, proof) == tree.root
    assert time.thread_time() - started < 0.05  # measured 0.0007; a lost algorithm would show
