"""The graph itself, and a malicious server that tries to isolate few clients on it.

The attack tests replay only who learns which share: ``opened_sets`` is the server's whole knowledge
after it has shown every honest client sets of its choice, written from the rules of the protocol
and independent of the bound that it is compared with.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.errors import ConfigurationError
from privfedrl.secagg.graph import (
    MAX_NODES,
    Graph,
    ServerModel,
    circulant,
    graph_of,
    smallest_opened_set,
)
from privfedrl.secagg.graph_parameters import find_graph

Neighbours = list[frozenset[int]]


def roster(name: object) -> bytes:
    return hashlib.sha256(str(name).encode()).digest()


def adjacency(graph: Graph) -> Neighbours:
    return [frozenset(graph.neighbours(rank)) for rank in range(graph.num_clients)]


sizes = st.integers(3, 60).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(1, (n - 1) // 2).map(lambda half: 2 * half))
)


@given(size=sizes, seed=st.integers(0, 10**6), server=st.sampled_from(["semi-honest", "malicious"]))
@settings(max_examples=80, deadline=None)
def test_the_graph_is_simple_symmetric_and_regular(
    size: tuple[int, int], seed: int, server: ServerModel
) -> None:
    n, k = size
    graph = graph_of(roster(seed), num_clients=n, degree=k, server=server)
    near = adjacency(graph)
    for rank in range(n):
        listed = graph.neighbours(rank)
        assert list(listed) == sorted(set(listed))
        assert len(listed) == k
        assert rank not in listed
        assert all(rank in near[other] for other in listed)
        assert all(type(other) is int for other in listed)


def test_in_the_complete_graph_everybody_else_is_a_neighbour() -> None:
    for n in (2, 3, 6):
        graph = graph_of(roster(0), num_clients=n, degree=n - 1, server="malicious")
        for rank in range(n):
            assert set(graph.neighbours(rank)) == set(range(n)) - {rank}


def test_the_semi_honest_graph_is_the_ring_of_the_proof() -> None:
    graph = graph_of(roster(1), num_clients=20, degree=6, server="semi-honest")
    near = adjacency(graph)
    common = {
        rank: Counter(len(near[rank] & near[other]) for other in near[rank]) for rank in near[0]
    }
    # at distance 1, 2, 3 on a ring of reach 3, two places share 4, 3 and 2 neighbours
    assert all(found == {4: 2, 3: 2, 2: 2} for found in common.values())


def test_the_same_roster_gives_the_same_graph_and_another_roster_another() -> None:
    first = graph_of(roster(1), num_clients=500, degree=40, server="malicious")
    assert first is graph_of(roster(1), num_clients=500, degree=40, server="malicious")
    other = graph_of(roster(2), num_clients=500, degree=40, server="malicious")
    kept = np.mean([len(a & b) for a, b in zip(adjacency(first), adjacency(other), strict=True)])
    assert kept < 6  # 40 * 40 / 499 = 3.2 expected


def test_the_graph_is_frozen_in_vectors() -> None:
    """Every implementation must compute these: a change here is a change of the protocol."""
    wide = graph_of(bytes(32), num_clients=12, degree=4, server="malicious")
    ring = graph_of(bytes(32), num_clients=12, degree=4, server="semi-honest")
    assert circulant(12, 4).offsets == (1, 4)
    assert wide.neighbours(0) == (5, 6, 7, 9)
    assert ring.neighbours(0) == (4, 6, 9, 10)
    digest = hashlib.sha256(str(circulant(1_000, 128).offsets).encode()).hexdigest()
    assert digest == "6fbb18ffb4e954f19491ab91049445e50df07e127af1341a6b0685e2bede2336"


@pytest.mark.statistical
def test_every_order_of_four_is_equally_likely() -> None:
    """Chi-square over the 24 orders, 4,800 rosters, seed fixed; false positives below 1e-6.

    The 1 - 1e-6 quantile of chi-square with 23 degrees of freedom is 74.2.
    """
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(4_800):
        graph = graph_of(roster(seed), num_clients=4, degree=2, server="semi-honest")
        counts[tuple(graph._rank_at.tolist())] += 1
    assert len(counts) == 24
    assert sum((found - 200) ** 2 / 200 for found in counts.values()) < 74.2


@given(size=sizes)
@settings(max_examples=60, deadline=None)
def test_the_second_eigenvalue_is_that_of_the_adjacency_matrix(size: tuple[int, int]) -> None:
    n, k = size
    graph = graph_of(roster(0), num_clients=n, degree=k, server="malicious")
    matrix = np.zeros((n, n))
    for rank, near in enumerate(adjacency(graph)):
        matrix[rank, list(near)] = 1.0
    spectrum = np.linalg.eigvalsh(matrix)
    assert spectrum[-1] == pytest.approx(k)
    exact = np.abs(spectrum[:-1]).max()
    assert exact - 1e-9 <= circulant(n, k).second_eigenvalue <= exact + 1e-6


@pytest.mark.parametrize(("n", "k", "ratio"), [(1_000, 128, 0.20), (10_000, 86, 0.337)])
def test_large_circulants_are_good_expanders(n: int, k: int, ratio: float) -> None:
    chosen = circulant(n, k)
    row = np.zeros(n)
    offsets = np.array(chosen.offsets)
    row[offsets] = row[n - offsets] = 1.0
    assert row.sum() == k
    exact = float(np.abs(np.fft.rfft(row).real[1:]).max())
    assert exact <= chosen.second_eigenvalue <= exact + 1e-5
    assert chosen.second_eigenvalue < ratio * k


def test_ten_thousand_clients_are_served_in_time() -> None:
    """Budgets of the design, times three for a busy machine."""
    start = time.process_time()
    circulant.__wrapped__(10_000, 416)
    assert time.process_time() - start < 1.5
    graph = graph_of(roster("speed"), num_clients=10_000, degree=100, server="semi-honest")
    start = time.process_time()
    for rank in range(10_000):
        graph.neighbours(rank)
    assert time.process_time() - start < 1.5


@pytest.mark.parametrize(
    ("name", "digest", "n", "k", "server"),
    [
        ("num_clients", roster(0), 1, 1, "malicious"),
        ("num_clients", roster(0), MAX_NODES + 1, 4, "malicious"),
        ("roster", b"short", 10, 4, "malicious"),
        ("degree", roster(0), 10, 3, "malicious"),
        ("degree", roster(0), 10, 0, "semi-honest"),
        ("degree", roster(0), 10, 10, "semi-honest"),
        ("server", roster(0), 10, 4, "honest"),
    ],
)
def test_impossible_graphs_are_refused(
    name: str, digest: bytes, n: int, k: int, server: str
) -> None:
    with pytest.raises(ConfigurationError, match=name):
        graph_of(digest, num_clients=n, degree=k, server=server)  # type: ignore[arg-type]  # wrong on purpose


def test_a_rank_outside_the_roster_is_refused() -> None:
    graph = graph_of(roster(0), num_clients=10, degree=4, server="malicious")
    for rank in (-1, 10):
        with pytest.raises(ConfigurationError, match="rank"):
            graph.neighbours(rank)


@pytest.mark.parametrize(("threshold", "corrupt"), [(4, 0), (9, 0), (6, -1), (6, 20)])
def test_isolation_asks_for_a_split_safe_threshold(threshold: int, corrupt: int) -> None:
    with pytest.raises(ConfigurationError):
        smallest_opened_set(circulant(20, 8), threshold=threshold, corrupt=corrupt)


# ---- brute force over all subsets ------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "k", "t"),
    [(n, k, t) for n in (9, 12, 14) for k in (4, 6, 8) for t in range(k // 2 + 1, k + 1) if k < n],
)
def test_no_subset_of_a_small_graph_beats_the_bound(n: int, k: int, t: int) -> None:
    """All S, all C of up to three: t neighbours in S and C, fewer than 2t - k of them in C."""
    graph = graph_of(roster((n, k)), num_clients=n, degree=k, server="malicious")
    masks = np.array([sum(1 << other for other in graph.neighbours(i)) for i in range(n)])
    sets = np.arange(1, 1 << n)
    members = (sets[:, None] >> np.arange(n)) & 1 == 1
    inside = np.bitwise_count(sets[:, None] & masks[None, :]).astype(np.int64)
    for corrupt in range(4):
        bound = smallest_opened_set(circulant(n, k), threshold=t, corrupt=corrupt)
        # the circle looks the same from everywhere, so one corrupt client may be fixed
        for rest in itertools.combinations(range(1, n), max(corrupt - 1, 0)):
            bad = ({0} if corrupt else set()) | set(rest)
            word = sum(1 << i for i in bad)
            near = np.bitwise_count(masks & word).astype(np.int64)
            fine = ~members | ((inside + near >= t) & (near < 2 * t - k))
            opened = sets[fine.all(axis=1) & (sets & word == 0)]
            assert all(int(opened_set).bit_count() >= bound for opened_set in opened)


# ---- the malicious server --------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """What the server tells one client: who shared keys (U2) and who survived (U3)."""

    shared: frozenset[int]
    survivors: frozenset[int]


def opened_sets(
    near: Neighbours,
    corrupt: frozenset[int],
    threshold: int,
    views: Mapping[int, View],
    *,
    check_shared: bool = True,
) -> list[frozenset[int]]:
    """Every minimal set of honest clients whose sum the server can compute.

    A vector counts if its self mask is known and every pair mask in it that is not known stands,
    with the other sign, in another vector that counts.

    Args:
        near: neighbours of each client.
        views: of the honest clients that go on; who has no view dropped out after M2.
        check_shared: clients give away b of a neighbour only if it masked under their own U2.
    """
    honest = frozenset(range(len(near))) - corrupt
    legal = {i: v for i, v in views.items() if i in v.survivors <= v.shared}
    reveals = {
        i: v
        for i, v in legal.items()
        if sum(j in corrupt or legal.get(j) == v for j in near[i]) >= threshold
    }
    self_shares = Counter({i: len(near[i] & corrupt) for i in honest})
    pair_shares = Counter(self_shares)
    for helper, view in reveals.items():
        for owner in (near[helper] & view.shared) - corrupt:
            if owner not in view.survivors:
                pair_shares[owner] += 1
            elif not check_shared or (owner in views and views[owner].shared == view.shared):
                self_shares[owner] += 1
    unmasked = {i for i in honest & views.keys() if self_shares[i] >= threshold}
    exposed = {i for i in honest if pair_shares[i] >= threshold}
    hidden = honest - exposed
    masked = {
        i: frozenset(j for j in near[i] & hidden if j in views[i].shared)
        for i in hidden & views.keys()
    }
    good = {i for i in masked if i in unmasked and all(i in masked.get(j, ()) for j in masked[i])}
    while worse := {i for i in good if not masked[i] <= good}:
        good -= worse
    sets = [frozenset({i}) for i in sorted(unmasked & exposed)]
    while good:
        component = reach = {min(good)}
        while reach:
            reach = frozenset().union(*(masked[i] for i in reach)) - component
            component = component | reach
        sets.append(frozenset(component))
        good -= component
    return sets


def split_safe(near: Neighbours, corrupt: Iterable[int], threshold: int) -> bool:
    bad, honest = set(corrupt), set(range(len(near))) - set(corrupt)
    return all(len(near[i] & bad) < 2 * threshold - len(near[i]) for i in honest)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_no_choice_of_views_opens_a_set_below_the_bound(data: st.DataObject) -> None:
    n = data.draw(st.integers(8, 14))
    k = data.draw(st.sampled_from([k for k in (4, 6, 8) if k < n - 1]))
    t = data.draw(st.integers(k // 2 + 1, k))
    graph = graph_of(roster((n, k)), num_clients=n, degree=k, server="malicious")
    near = adjacency(graph)
    corrupt = data.draw(st.frozensets(st.integers(0, n - 1), max_size=3))
    if not split_safe(near, corrupt, t):
        return
    everybody = frozenset(range(n))
    subsets = st.frozensets(st.integers(0, n - 1), max_size=n // 2).map(lambda out: everybody - out)
    menu = data.draw(st.lists(st.builds(View, shared=subsets, survivors=subsets), max_size=3))
    menu += [
        View(everybody, everybody),
        View(everybody, everybody - {data.draw(st.integers(0, n - 1))}),
    ]
    menu = [View(v.shared, v.survivors & v.shared) for v in menu]
    views = {
        i: data.draw(st.sampled_from(menu), label=f"view of {i}")
        for i in sorted(everybody - corrupt)
        if data.draw(st.booleans()) or i % 2
    }
    bound = smallest_opened_set(circulant(n, k), threshold=t, corrupt=len(corrupt))
    found = opened_sets(near, corrupt, t, views)
    assert all(len(opened) >= bound for opened in found)
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(found, 2))


def core(near: Neighbours, chosen: set[int], corrupt: frozenset[int], threshold: int) -> set[int]:
    """The largest part of ``chosen`` whose members have ``threshold`` neighbours in it and C."""
    kept = set(chosen)
    while weak := {i for i in kept if len(near[i] & kept) + len(near[i] & corrupt) < threshold}:
        kept -= weak
    return kept


def smallest_cores(
    graph: Graph, near: Neighbours, corrupt: frozenset[int], threshold: int, rng: random.Random
) -> set[int]:
    """A small locally consistent set: sweeps along eigenvectors and greedy balls, then peeled."""
    n, k = graph.num_clients, graph.degree
    offsets = np.array(circulant(n, k).offsets)
    values = np.cos(2 * np.pi * np.outer(np.arange(n), offsets) / n).sum(axis=1)
    best: set[int] = set(range(n)) - corrupt
    orders = []
    for frequency in np.argsort(values)[::-1][1:7]:
        for phase in rng.sample(range(n), 2):
            score = np.cos(2 * np.pi * frequency * (graph._place_of - phase) / n)
            orders.append(np.argsort(-score).tolist())
    for start in rng.sample(sorted(best), 4):
        inside, degree = [start], Counter(near[start])
        while len(inside) < n:
            taken = set(inside)
            following = max((i for i in range(n) if i not in taken), key=lambda i: degree[i])
            inside.append(following)
            degree.update(near[following])
        orders.append(inside)
    for order in orders:
        low, high = 1, n
        while low < high:  # a longer prefix has the larger core
            middle = (low + high) // 2
            if core(near, set(order[:middle]) - corrupt, corrupt, threshold):
                high = middle
            else:
                low = middle + 1
        kept = core(near, set(order[:low]) - corrupt, corrupt, threshold)
        if 0 < len(kept) < len(best):
            best = kept
    return best


@pytest.mark.parametrize(("gamma", "delta"), [(0.0, 0.1), (0.1, 0.1), (0.2, 0.05)])
def test_a_greedy_server_never_isolates_fewer_than_the_bound(gamma: float, delta: float) -> None:
    """Isolate S: its members see everybody but the rest of their neighbourhood survive, and the
    rest see S survive but not that neighbourhood, which has dropped out."""
    n, rng = 200, random.Random(7)
    corrupt = frozenset(rng.sample(range(n), int(gamma * n)))
    found = find_graph(
        n, corrupt=len(corrupt), dropouts=int(delta * n), security_bits=20, correctness_bits=20
    )
    graph, t = found.graph(roster("greedy")), found.threshold
    near = adjacency(graph)
    assert not found.complete
    assert split_safe(near, corrupt, t)
    everybody = frozenset(range(n))
    target = smallest_cores(graph, near, corrupt, t, rng)
    assert len(target) >= found.smallest_opened
    for members in (target, set(rng.sample(sorted(target), len(target) * 2 // 3))):
        fringe = {j for i in members for j in near[i]} - members - corrupt
        inner = View(everybody, everybody - fringe)
        for silent in (fringe, set()):
            views = dict.fromkeys(everybody - corrupt - silent, inner)
            views |= {i: View(everybody, everybody - members) for i in fringe - silent}
            opened = opened_sets(near, corrupt, t, views)
            assert all(len(one) >= found.smallest_opened for one in opened)
    honest_run = opened_sets(
        near, corrupt, t, dict.fromkeys(everybody - corrupt, View(everybody, everybody))
    )
    assert honest_run == [everybody - corrupt]


def split_attacks(
    near: Neighbours, members: frozenset[int], threshold: int
) -> list[dict[int, View]]:
    """Views that hide most neighbours of ``members`` from them and then drop the visible ones."""
    everybody, rng = frozenset(range(len(near))), random.Random(3)
    around = frozenset().union(*(near[i] for i in members)) - members
    attacks = []
    for _ in range(100):
        picks = [rng.sample(sorted(near[i] - members), threshold - 2) for i in sorted(members)]
        dropped = frozenset(itertools.chain(*picks))
        visible = members | dropped
        if all(len(near[i] & visible) == threshold for i in members):
            seen = everybody - (around - dropped)
            inner = View(seen, seen)
            outer = View(everybody, everybody - dropped)
            views = dict.fromkeys(everybody - visible, outer) | dict.fromkeys(visible, inner)
            attacks.append(views)
    return attacks


def test_without_the_check_of_the_key_sharing_set_four_clients_can_be_isolated() -> None:
    """The control of the tests above, and the reason for rule R5 of the proof.

    Four clients on a square are told that most of their other neighbours never shared keys. They
    mask towards few; those few are declared dropped; everybody else helps to open the four.
    """
    n, k, t = 200, 8, 5
    graph = graph_of(roster("split"), num_clients=n, degree=k, server="malicious")
    near = adjacency(graph)
    first, second = circulant(n, k).offsets[:2]
    square = frozenset(int(graph._rank_at[p]) for p in (0, first, second, first + second))
    assert len(square) < smallest_opened_set(circulant(n, k), threshold=t, corrupt=0)
    attacks = split_attacks(near, square, t)
    shown = [view.survivors for views in attacks for view in views.values()]
    assert min(map(len, shown)) >= n * 9 // 10  # a floor on the survivors does not help
    weak = [opened_sets(near, frozenset(), t, views, check_shared=False) for views in attacks]
    strong = [opened_sets(near, frozenset(), t, views) for views in attacks]
    assert any(square in found for found in weak)
    assert not any(square in found for found in strong)
