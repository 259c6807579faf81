"""Shared edges against edges of one's own: every byte that leaves a client is the same."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.errors import ConfigurationError, LocalProtocolError, RemoteProtocolError
from privfedrl.primitives.key_agreement import KeyPair
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.secagg.edges import Edges, OwnEdges, SharedEdges
from privfedrl.secagg.suite import DEFAULT_SUITE

ROSTER = b"r" * 32


class Fleet:
    """Clients of one round by name, each with a mask key pair and a plain vector."""

    def __init__(self, count: int, *, dtype: str, length: int, seed: bytes = b"fleet") -> None:
        entropy = DeterministicEntropy(seed)
        self.names = tuple(f"agent-{k:02}" for k in range(count))
        self.pairs = {name: KeyPair.generate(entropy) for name in self.names}
        self.seeds = {name: entropy(32) for name in self.names}
        self.plain = {
            name: np.frombuffer(entropy(length * 8), np.uint64).astype(dtype) for name in self.names
        }

    def masked(
        self, edges: Edges, name: str, peers: set[str], roster: bytes = ROSTER
    ) -> np.ndarray:
        """y_i as ``masks`` defines it, with peers of the client's own choice."""
        keys = {peer: self.key(edges, name, peer, roster) for peer in sorted(peers - {name})}
        vector = self.plain[name].copy()
        edges.mask(
            vector,
            suite=DEFAULT_SUITE,
            roster=roster,
            name=name,
            add={peer: key for peer, key in keys.items() if peer > name},
            subtract={peer: key for peer, key in keys.items() if peer < name},
            self_key=DEFAULT_SUITE.derive(self.seeds[name], salt=roster, info=b"self"),
        )
        return vector

    def key(self, edges: Edges, name: str, peer: str, roster: bytes) -> bytes:
        info = "/".join(sorted((name, peer))).encode()
        own, theirs = self.pairs[name], self.pairs[peer].public
        return edges.derive(DEFAULT_SUITE, own, theirs, salt=roster, info=info)


forms = st.tuples(st.sampled_from(["uint32", "uint64"]), st.sampled_from([1, 5, 400, 70_000]))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(2, 9), form=forms)
def test_shared_edges_give_the_same_bytes_in_any_order_with_any_dropouts(
    data: st.DataObject, count: int, form: tuple[str, int]
) -> None:
    """All of U2 mask against U2; some drop out before their vector is built."""
    fleet = Fleet(count, dtype=form[0], length=form[1])
    shared = SharedEdges()
    order = data.draw(st.permutations(fleet.names))
    for name in order[: data.draw(st.integers(1, count))]:
        expected = fleet.masked(OwnEdges(), name, set(fleet.names))
        assert fleet.masked(shared, name, set(fleet.names)).tobytes() == expected.tobytes()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(2, 7))
def test_shared_edges_give_the_same_bytes_when_views_differ(
    data: st.DataObject, count: int
) -> None:
    """A lying coordinator may show every client other peers, and a twin may mask twice."""
    fleet = Fleet(count, dtype="uint32", length=50)
    names = st.sampled_from(fleet.names)
    steps = data.draw(st.lists(st.tuples(names, st.sets(names)), max_size=12))
    shared = SharedEdges()
    for name, peers in steps:
        expected = fleet.masked(OwnEdges(), name, peers)
        assert (fleet.masked(shared, name, peers) == expected).all()


@settings(max_examples=30, deadline=None)
@given(data=st.data(), count=st.integers(2, 6))
def test_rounds_of_different_rosters_do_not_meet(data: st.DataObject, count: int) -> None:
    fleet = Fleet(count, dtype="uint64", length=30)
    steps = [(name, roster) for name in fleet.names for roster in (b"a" * 32, b"b" * 32)]
    shared = SharedEdges()
    for name, roster in data.draw(st.permutations(steps)):
        expected = fleet.masked(OwnEdges(), name, set(fleet.names), roster)
        assert (fleet.masked(shared, name, set(fleet.names), roster) == expected).all()


def test_vectors_of_another_form_do_not_meet() -> None:
    small, large = (Fleet(3, dtype="uint32", length=length) for length in (8, 9))
    shared = SharedEdges()
    for fleet in (small, large):
        for name in fleet.names:
            expected = fleet.masked(OwnEdges(), name, set(fleet.names))
            assert (fleet.masked(shared, name, set(fleet.names)) == expected).all()


def test_masks_of_everybody_cancel_up_to_the_self_masks() -> None:
    fleet = Fleet(6, dtype="uint32", length=100)
    shared = SharedEdges()
    total = sum(fleet.masked(shared, name, set(fleet.names)) for name in fleet.names)
    keys = [DEFAULT_SUITE.derive(seed, salt=ROSTER, info=b"self") for seed in fleet.seeds.values()]
    assert isinstance(total, np.ndarray)
    DEFAULT_SUITE.apply_keystreams(total, subtract=keys)
    assert (total == sum(fleet.plain.values())).all()


def test_an_edge_whose_ends_disagree_about_its_sign_is_still_right() -> None:
    """Two honest clients cannot do that; the bytes are those of OwnEdges all the same."""
    key, other = b"k" * 32, b"s" * 32
    for second in ({"add": {"a": key}, "subtract": {}}, {"add": {}, "subtract": {"c": key}}):
        shared, vectors = SharedEdges(), []
        for edges in (shared, OwnEdges()):
            first, vector = np.zeros(40, np.uint32), np.zeros(40, np.uint32)
            mask(edges, first, "a", add={"b": key}, subtract={}, self_key=other)
            mask(edges, vector, "b", self_key=b"t" * 32, **second)
            vectors.append((first.tobytes(), vector.tobytes()))
        assert vectors[0] == vectors[1]


def mask(
    edges: Edges,
    vector: np.ndarray,
    name: str,
    *,
    add: Mapping[str, bytes],
    subtract: Mapping[str, bytes],
    self_key: bytes,
) -> None:
    edges.mask(
        vector,
        suite=DEFAULT_SUITE,
        roster=ROSTER,
        name=name,
        add=add,
        subtract=subtract,
        self_key=self_key,
    )


def test_each_edge_is_agreed_and_expanded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(8, dtype="uint32", length=20)
    agreements: list[bytes] = []
    expansions: list[bytes] = []
    agree, apply = KeyPair.agree, DEFAULT_SUITE.apply_keystreams

    def counted_agree(pair: KeyPair, peer_public: bytes) -> bytes:
        agreements.append(peer_public)
        return agree(pair, peer_public)

    def counted_apply(vector: np.ndarray, **keys: object) -> None:
        expansions.extend([*keys["add"], *keys["subtract"]])
        apply(vector, **keys)

    monkeypatch.setattr(KeyPair, "agree", counted_agree)
    suite = copy.copy(DEFAULT_SUITE)
    object.__setattr__(suite, "apply_keystreams", counted_apply)
    monkeypatch.setattr(f"{__name__}.DEFAULT_SUITE", suite)
    with SharedEdges() as shared:
        for name in fleet.names:
            fleet.masked(shared, name, set(fleet.names))
    assert len(agreements) == 8 * 7 // 2
    assert len(expansions) == len(set(expansions)) == 8 * 7 // 2 + 8


def test_a_client_s_vector_is_released_when_it_has_masked() -> None:
    fleet = Fleet(5, dtype="uint32", length=20)
    shared = SharedEdges()
    left = [4, 3, 2, 1, 0]
    for name, waiting in zip(fleet.names, left, strict=True):
        fleet.masked(shared, name, set(fleet.names))
        assert len(shared._waiting) == waiting
    for name in fleet.names:  # a second time: nobody waits for anything any more
        fleet.masked(shared, name, set(fleet.names))
        assert not shared._waiting


def test_closing_forgets_and_wipes_everything() -> None:
    fleet = Fleet(3, dtype="uint32", length=20)
    with SharedEdges() as shared:
        fleet.masked(shared, fleet.names[0], set(fleet.names))
        shared.verified(b"registry")[b"frame"] = object()
        waiting = [entry.total for entry in shared._waiting.values()]
        assert all(total.any() for total in waiting)
    assert not any(total.any() for total in waiting)
    kept = (
        shared._waiting,
        shared._secrets,
        shared._derived,
        shared._done,
        shared._verified,
    )
    assert not any(kept)
    shared.close()
    for ask in (
        lambda: shared.agree(fleet.pairs[fleet.names[0]], fleet.pairs[fleet.names[1]].public),
        lambda: shared.verified(b"registry"),
        lambda: mask(shared, np.zeros(2, np.uint32), "a", add={}, subtract={}, self_key=bytes(32)),
    ):
        with pytest.raises(LocalProtocolError, match="closed"):
            ask()


def test_a_failure_in_the_middle_closes_the_shared_edges() -> None:
    shared = SharedEdges()
    with pytest.raises(ConfigurationError, match="32 bytes"):
        mask(
            shared,
            np.zeros(2, np.uint32),
            "a",
            add={"b": b"short"},
            subtract={},
            self_key=bytes(32),
        )
    with pytest.raises(LocalProtocolError, match="closed"):
        shared.verified(b"registry")


@pytest.mark.parametrize(
    ("add", "subtract", "self_key"),
    [
        ({"b": b"k" * 32, "c": b"k" * 32}, {}, b"s" * 32),
        ({"b": b"k" * 32}, {"c": b"k" * 32}, b"s" * 32),
        ({"b": b"k" * 32}, {}, b"k" * 32),
    ],
)
def test_one_key_for_two_masks_is_refused(
    add: dict[str, bytes], subtract: dict[str, bytes], self_key: bytes
) -> None:
    vector = np.zeros(2, np.uint32)
    with pytest.raises(LocalProtocolError, match="key of its own"):
        mask(SharedEdges(), vector, "a", add=add, subtract=subtract, self_key=self_key)
    assert not vector.any()


def test_low_order_keys_are_refused_by_both() -> None:
    pair = KeyPair.generate(DeterministicEntropy(b"pair"))
    for edges in (OwnEdges(), SharedEdges()):
        with pytest.raises(RemoteProtocolError, match="low order"):
            edges.agree(pair, bytes(32))


def test_both_ends_agree_on_what_a_key_pair_would_say() -> None:
    entropy = DeterministicEntropy(b"pairs")
    one, two = KeyPair.generate(entropy), KeyPair.generate(entropy)
    shared = SharedEdges()
    secrets = {
        shared.agree(one, two.public),
        shared.agree(two, one.public),
        OwnEdges().agree(two, one.public),
        one.agree(two.public),
    }
    assert len(secrets) == 1


def test_derived_keys_are_those_of_the_agreed_secret_for_every_purpose() -> None:
    entropy = DeterministicEntropy(b"pairs")
    one, two = KeyPair.generate(entropy), KeyPair.generate(entropy)
    shared = SharedEdges()
    for salt in (b"r" * 32, b"q" * 32):
        for info in (b"pair", b"share"):
            expected = DEFAULT_SUITE.derive(one.agree(two.public), salt=salt, info=info)
            for _ in range(2):  # a third and fourth time is derived anew
                for pair, peer in ((one, two), (two, one)):
                    for edges in (shared, OwnEdges()):
                        key = edges.derive(DEFAULT_SUITE, pair, peer.public, salt=salt, info=info)
                        assert key == expected


def test_threads_of_a_client_change_no_byte() -> None:
    vectors = []
    for edges in (OwnEdges(), OwnEdges(threads=2)):
        vector = np.zeros(300_000, np.uint32)
        mask(edges, vector, "a", add={"b": b"k" * 32}, subtract={}, self_key=b"s" * 32)
        vectors.append(vector)
    assert (vectors[0] == vectors[1]).all()
    with pytest.raises(ConfigurationError, match="threads"):
        OwnEdges(threads=0)


def test_verified_frames_are_shared_per_registry_only() -> None:
    shared = SharedEdges()
    shared.verified(b"one")[b"frame"] = object()
    assert b"frame" in shared.verified(b"one")
    assert b"frame" not in shared.verified(b"two")
    own = OwnEdges()
    own.verified(b"one")[b"frame"] = object()
    assert b"frame" not in own.verified(b"one")


def test_shared_edges_say_what_they_are_and_refuse_to_be_copied() -> None:
    shared = SharedEdges()
    pair = KeyPair.generate(DeterministicEntropy(b"pair"))
    secret = shared.agree(pair, KeyPair.generate(DeterministicEntropy(b"peer")).public)
    assert "SIMULATION ONLY" in repr(shared)
    assert secret.hex() not in repr(shared)
    for copier in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(LocalProtocolError, match="not copied"):
            copier(shared)
