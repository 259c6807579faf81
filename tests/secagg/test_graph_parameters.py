"""The finder against a slow computation with fractions, and against published values."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from privfedrl.errors import ConfigurationError
from privfedrl.secagg.graph import MAX_NODES, ServerModel, circulant, smallest_opened_set
from privfedrl.secagg.graph_parameters import GraphParameters, find_graph, graph_parameters

THIRD = Fraction(1, 3)
FRACTIONS = ((0.05, 0.05), (0.1, 0.1), (0.2, 0.1), (THIRD, 0.1))
TABLE: dict[int, tuple[tuple[tuple[int, int], tuple[int, int]], ...]] = {
    100: (((12, 6), (16, 11)), ((22, 11), (32, 22)), ((32, 21), (42, 32)), ((42, 32), (54, 44))),
    1_000: (
        ((36, 19), (68, 46)),
        ((58, 30), (128, 86)),
        ((84, 49), (178, 128)),
        ((126, 84), (272, 209)),
    ),
    10_000: (
        ((42, 22), (86, 58)),
        ((68, 35), (166, 111)),
        ((100, 59), (244, 175)),
        ((156, 103), (416, 318)),
    ),
    100_000: (
        ((46, 23), (92, 62)),
        ((74, 37), (182, 122)),
        ((106, 62), (268, 192)),
        ((168, 111), (464, 355)),
    ),
}
SEMI, MALICIOUS = "semi-honest", "malicious"


def tail(population: int, marked: int, draws: int, least: int) -> Fraction:
    """P[HG >= least], term by term from binomials."""
    hits = range(max(least, 0), draws + 1)
    favourable = sum(math.comb(marked, x) * math.comb(population - marked, draws - x) for x in hits)
    return Fraction(favourable, math.comb(population, draws))


def events(n: int, c: int, d: int, k: int, t: int, server: str) -> tuple[Fraction, ...]:
    """The left sides of E1, E2 and E3."""
    count = 2 * t - k if server == MALICIOUS else t
    runs = Fraction(n * (n - 1), 2)
    for i in range(k):
        runs *= Fraction(max(c + d - i, 0), n - i)
    return _privacy(n, c, k, count), runs, n * tail(n - 1, d, k, k - t + 1)


def _privacy(n: int, c: int, k: int, count: int) -> Fraction:
    return Fraction(n) if count <= 0 else n * tail(n - 1, c, k, count)


def holds(n: int, c: int, d: int, k: int, t: int, server: str, sigma: int, eta: int) -> bool:
    limits = (Fraction(1, 2 ** (sigma + 1)), Fraction(1, 2 ** (sigma + 1)), Fraction(1, 2**eta))
    found = events(n, c, d, k, t, server)
    return all(value <= limit for value, limit in zip(found, limits, strict=True))


@pytest.mark.parametrize("num_clients", [100, 1_000, 10_000])
def test_the_published_table_is_reproduced(num_clients: int) -> None:
    for (corrupt, dropout), row in zip(FRACTIONS, TABLE[num_clients], strict=True):
        for server, expected in ((SEMI, row[0]), (MALICIOUS, row[1])):
            found = graph_parameters(
                num_clients=num_clients,
                max_corrupt=corrupt,
                max_dropout=dropout,
                server=server,  # type: ignore[arg-type]  # a literal, lost by the loop
            )
            assert (found.degree, found.threshold) == expected
            assert not found.complete


def test_the_published_table_is_reproduced_for_a_hundred_thousand() -> None:
    for (corrupt, dropout), row in zip(FRACTIONS, TABLE[100_000], strict=True):
        found = graph_parameters(
            num_clients=100_000, max_corrupt=corrupt, max_dropout=dropout, server=SEMI
        )
        assert (found.degree, found.threshold) == row[0]
    found = graph_parameters(num_clients=100_000, max_corrupt=0.05, max_dropout=0.05)
    assert (found.degree, found.threshold) == TABLE[100_000][0][1]


@pytest.mark.parametrize(
    ("num_clients", "fraction", "server", "expected"),
    [
        (100, 0.33, SEMI, (68, 34)),
        (10_000, 0.33, SEMI, (422, 221)),
        (100, 0.3, MALICIOUS, (92, 62)),
    ],
)
def test_the_vectors_of_googles_finder_are_reproduced(
    num_clients: int, fraction: float, server: ServerModel, expected: tuple[int, int]
) -> None:
    """federated-compute, graph_parameter_finder_test.cc: sigma = 40, eta = 20."""
    found = graph_parameters(
        num_clients=num_clients,
        max_corrupt=fraction,
        max_dropout=fraction,
        correctness_bits=20,
        server=server,
    )
    assert (found.degree, found.threshold) == expected


@given(
    n=st.integers(6, 48),
    shares=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    sigma=st.integers(1, 30),
    eta=st.integers(1, 30),
    server=st.sampled_from([SEMI, MALICIOUS]),
)
@example(n=48, shares=(0, 0), sigma=1, eta=1, server=MALICIOUS)
@settings(max_examples=50, deadline=None)
def test_what_is_found_is_the_smallest_that_meets_all_three_bounds(
    n: int, shares: tuple[int, int], sigma: int, eta: int, server: ServerModel
) -> None:
    c, d = n * shares[0] // 100, n * shares[1] // 100
    feasible = [
        (k, thresholds[0])
        for k in range(4, n - 1, 2)
        if (thresholds := [t for t in range(1, k + 1) if _private(n, c, k, t, server, sigma)])
        and holds(n, c, d, k, thresholds[0], server, sigma, eta)
    ]
    try:
        found = find_graph(
            n, corrupt=c, dropouts=d, security_bits=sigma, correctness_bits=eta, server=server
        )
    except ConfigurationError:
        assert not feasible
        assert n - d < (n + c) // 2 + 1
        return
    if found.complete:
        assert not feasible
        assert found.degree == n - 1
        assert found.threshold == (n + c) // 2 + 1 <= n - d
        assert found.smallest_opened == found.threshold - c
    else:
        assert (found.degree, found.threshold) == feasible[0]
        _logs_are_right(found)


def _private(n: int, c: int, k: int, t: int, server: str, sigma: int) -> bool:
    count = 2 * t - k if server == MALICIOUS else t
    return _privacy(n, c, k, count) <= Fraction(1, 2 ** (sigma + 1))


def _logs_are_right(found: GraphParameters) -> None:
    n, c, d = found.num_clients, found.max_corrupt, found.max_dropout
    values = events(n, c, d, found.degree, found.threshold, found.server)
    logs = (found.log2_privacy, found.log2_connected, found.log2_correct)
    for value, log in zip(values, logs, strict=True):
        if value == 0:
            assert log == -math.inf
        else:
            exact = math.log2(value.numerator) - math.log2(value.denominator)
            assert exact <= log <= exact + 1e-6


@pytest.mark.parametrize("server", [SEMI, MALICIOUS])
def test_large_cohorts_meet_the_bounds_and_two_neighbours_fewer_do_not(server: ServerModel) -> None:
    n, c, d = 2_000, 300, 200
    found = find_graph(n, corrupt=c, dropouts=d, server=server)
    k, t = found.degree, found.threshold
    assert holds(n, c, d, k, t, server, 40, 40)
    assert not _private(n, c, k, t - 1, server, 40)
    assert not any(holds(n, c, d, k - 2, other, server, 40, 40) for other in range(1, k - 1))
    _logs_are_right(found)


@given(
    n=st.integers(30, 400),
    c=st.integers(0, 20),
    d=st.integers(0, 20),
    sigma=st.integers(5, 60),
    eta=st.integers(5, 60),
)
@settings(max_examples=60, deadline=None)
def test_asking_for_more_never_gives_a_smaller_degree(
    n: int, c: int, d: int, sigma: int, eta: int
) -> None:
    """Each bound is monotone in its demand for every k, so the smallest k is; t need not be."""

    def degree(*, c: int, d: int, sigma: int, eta: int, server: ServerModel) -> float:
        try:
            return find_graph(
                n, corrupt=c, dropouts=d, security_bits=sigma, correctness_bits=eta, server=server
            ).degree
        except ConfigurationError:
            return math.inf

    base = degree(c=c, d=d, sigma=sigma, eta=eta, server=SEMI)
    assert base <= degree(c=c, d=d, sigma=sigma, eta=eta, server=MALICIOUS)
    assert base <= degree(c=c + 1, d=d, sigma=sigma, eta=eta, server=SEMI)
    assert base <= degree(c=c, d=d + 1, sigma=sigma, eta=eta, server=SEMI)
    assert base <= degree(c=c, d=d, sigma=sigma + 1, eta=eta, server=SEMI)
    assert base <= degree(c=c, d=d, sigma=sigma, eta=eta + 1, server=SEMI)


def test_the_isolation_fraction_is_that_of_the_graph_that_is_used() -> None:
    found = graph_parameters(num_clients=1_000, max_corrupt=0.1, max_dropout=0.1)
    graph = circulant(1_000, found.degree)
    least = smallest_opened_set(graph, threshold=found.threshold, corrupt=found.max_corrupt)
    assert found.smallest_opened == least
    assert found.isolation_fraction == least / 1_000
    assert found.isolation_fraction > 0.45


def test_a_semi_honest_server_opens_everybody_who_is_honest_and_stays() -> None:
    found = find_graph(1_000, corrupt=100, dropouts=50, server=SEMI)
    assert found.smallest_opened == 850


def test_min_opened_buys_a_denser_graph() -> None:
    least = find_graph(10_000, corrupt=100, dropouts=500)
    more = find_graph(10_000, corrupt=100, dropouts=500, min_opened=4_000)
    assert least.smallest_opened < 4_000 <= more.smallest_opened
    assert least.degree < more.degree <= 2 * least.degree + 2
    bits = (more.log2_privacy, more.log2_connected, more.log2_correct)
    assert all(value <= limit for value, limit in zip(bits, (-41, -41, -40), strict=True))


def test_min_opened_falls_back_to_the_complete_graph_or_is_refused() -> None:
    sparse = find_graph(1_000, corrupt=0, dropouts=50)
    assert sparse.smallest_opened < 501
    complete = find_graph(1_000, corrupt=0, dropouts=50, min_opened=501)
    assert (complete.complete, complete.threshold, complete.smallest_opened) == (True, 501, 501)
    with pytest.raises(ConfigurationError, match="min_opened is infeasible"):
        find_graph(1_000, corrupt=0, dropouts=50, min_opened=502)
    with pytest.raises(ConfigurationError, match="min_opened is infeasible"):
        find_graph(1_000, corrupt=100, dropouts=50, min_opened=851, server=SEMI)


def test_tiny_cohorts_get_the_complete_graph() -> None:
    for n in range(2, 6):
        found = find_graph(n, corrupt=0, dropouts=0)
        assert (found.complete, found.degree, found.threshold) == (True, n - 1, n // 2 + 1)
    assert found.log2_privacy == found.log2_connected == found.log2_correct == -math.inf


def test_an_impossible_cohort_is_refused_with_its_numbers() -> None:
    with pytest.raises(ConfigurationError, match=r"infeasible.*10 with 4 corrupt at least 8"):
        find_graph(10, corrupt=4, dropouts=3)


def test_a_fraction_means_the_decimal_that_it_prints_as() -> None:
    assert int(0.29 * 100) == 28
    found = graph_parameters(num_clients=100, max_corrupt=0.29, max_dropout=0)
    assert (found.max_corrupt, found.max_dropout) == (29, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_clients": 1},
        {"num_clients": MAX_NODES + 1},
        {"num_clients": 10.0},
        {"num_clients": True},
        {"max_corrupt": -0.1},
        {"max_corrupt": 1.0},
        {"max_corrupt": math.nan},
        {"max_corrupt": math.inf},
        {"max_dropout": True},
        {"max_dropout": "0.1"},
        {"security_bits": 0},
        {"security_bits": 257},
        {"correctness_bits": 0},
        {"server": "honest"},
        {"min_opened": -1},
        {"min_opened": 101},
    ],
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    arguments: dict[str, object] = {"num_clients": 100, "max_corrupt": 0.1, "max_dropout": 0.1}
    with pytest.raises(ConfigurationError, match=next(iter(wrong)).removeprefix("max_")):
        graph_parameters(**{**arguments, **wrong})  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("wrong", [{"corrupt": 10}, {"corrupt": -1}, {"dropouts": 10}])
def test_counts_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        find_graph(10, **{"corrupt": 0, "dropouts": 0, **wrong})


def test_the_graph_of_a_roster_has_the_degree_that_was_found() -> None:
    for server in (SEMI, MALICIOUS):
        found = find_graph(300, corrupt=30, dropouts=30, server=server)  # type: ignore[arg-type]  # a literal, lost by the loop
        graph = found.graph(b"r" * 32)
        assert graph.num_clients == 300
        assert len(graph.neighbours(7)) == graph.degree == found.degree
    assert len(find_graph(5, corrupt=0, dropouts=0).graph(b"r" * 32).neighbours(0)) == 4
