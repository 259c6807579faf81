"""Parameters: what is unsound cannot be constructed, and sizes on the wire are exact."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedrl.errors import ConfigurationError
from privfedrl.secagg.parameters import (
    MAX_CLIENTS,
    MAX_COMPLETE,
    SecAggParameters,
    SparseGraph,
)


@given(n=st.integers(5, MAX_COMPLETE), data=st.data())
def test_the_default_threshold_makes_any_two_quorums_share_an_honest_client(
    n: int, data: st.DataObject
) -> None:
    c = data.draw(st.integers(0, n - 1))
    try:
        parameters = SecAggParameters(num_clients=n, max_colluding=c, vector_length=1)
    except ConfigurationError:
        assert (n + c) // 2 + 1 - c < 3 or (n + c) // 2 + 1 > n
        return
    t = parameters.threshold
    assert 2 * t - n > c
    assert 2 * (t - 1) - n <= c  # and no smaller one does
    assert t - c >= parameters.min_honest


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_clients": 1}, "num_clients must be from 2"),
        ({"num_clients": 257}, "num_clients must be from 2"),
        ({"max_colluding": -1}, "max_colluding must be"),
        ({"max_colluding": 10}, "max_colluding must be"),
        ({"vector_length": 0}, "vector_length must be"),
        ({"vector_length": 2**28 + 1}, "vector_length must be"),
        ({"ring_bits": 16}, "ring_bits must be 32 or 64"),
        ({"threshold": 5}, "threshold must be > "),
        ({"threshold": 11}, "threshold must be <= "),
        ({"min_clients": 1}, "min_clients must be"),
        ({"min_clients": 11}, "min_clients must be"),
        ({"min_honest": 1}, "min_honest must be"),
        ({"min_honest": 8}, "threshold - max_colluding must be >= min_honest"),
        ({"num_clients": 10.0}, "num_clients must be an integer"),
        ({"min_honest": True}, "min_honest must be an integer"),
        ({"threshold": "7"}, "threshold must be an integer"),
        ({"differencing": "always"}, "differencing must be one of"),
    ],
)
def test_unsound_parameters_are_refused(changes: dict[str, object], problem: str) -> None:
    given_values: dict[str, object] = {"num_clients": 10, "max_colluding": 1, "vector_length": 4}
    with pytest.raises(ConfigurationError) as caught:
        SecAggParameters(**(given_values | changes))  # type: ignore[arg-type]  # wrong on purpose
    assert any(line.startswith(problem) for line in caught.value.problems)


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        SecAggParameters(num_clients=10, max_colluding=-1, vector_length=0, ring_bits=8)
    assert len(caught.value.problems) == 3


def test_canonical_bytes_come_back_and_pin_every_field() -> None:
    base: dict[str, Any] = {"num_clients": 20, "max_colluding": 2, "vector_length": 9}
    parameters = SecAggParameters(**base)
    assert SecAggParameters.from_canonical_bytes(parameters.canonical_bytes()) == parameters
    variants = [
        {"num_clients": 19},
        {"max_colluding": 3},
        {"vector_length": 8},
        {"ring_bits": 64},
        {"threshold": 13},
        {"min_clients": 6},
        {"min_honest": 4},
        {"differencing": "model"},
        {"differencing": "task"},
    ]
    digests = {SecAggParameters(**(base | change)).digest for change in variants}
    assert len(digests | {parameters.digest}) == len(variants) + 1


@pytest.mark.parametrize("data", [b"", bytes(95), bytes(96), bytes(97), b"\xff" * 96])
def test_other_bytes_are_no_parameters(data: bytes) -> None:
    with pytest.raises(ConfigurationError):
        SecAggParameters.from_canonical_bytes(data)


def test_parameters_are_frozen() -> None:
    parameters = SecAggParameters(num_clients=5, max_colluding=0, vector_length=1)
    with pytest.raises(AttributeError):
        parameters.threshold = 1  # type: ignore[misc]  # the point of the test
    assert parameters.floor == 5
    assert parameters.vector_bytes == 4


# -- the sparse graph

SPARSE: dict[str, Any] = {
    "num_clients": 40,
    "max_colluding": 1,
    "vector_length": 4,
    "min_clients": 30,
    "graph": SparseGraph(max_dropouts=3, security_bits=8, correctness_bits=8),
}


def sparse(**changes: Any) -> SecAggParameters:
    return SecAggParameters(**(SPARSE | changes))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_clients": MAX_CLIENTS + 1}, "num_clients must be from 2 to 65520"),
        ({"threshold": 20}, "threshold must not be given"),
        ({"min_honest": 30}, "min_clients - max_colluding must be >= min_honest"),
        ({"min_clients": 38}, "max_dropouts must be <= num_clients - min_clients = 2"),
        ({"min_honest": 29}, "min_opened is infeasible"),
        ({"max_colluding": 27}, "graph parameters are infeasible"),
    ],
)
def test_unsound_sparse_parameters_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        sparse(**changes)
    assert any(line.startswith(problem) for line in caught.value.problems)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_dropouts": -1},
        {"max_dropouts": 65_521},
        {"max_dropouts": True},
        {"security_bits": 0},
        {"security_bits": 129},
        {"correctness_bits": 0},
        {"correctness_bits": 40.0},
        {"server": "honest"},
    ],
)
def test_a_sparse_graph_of_another_form_is_refused(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(ConfigurationError, match=name):
        SparseGraph(**({"max_dropouts": 3} | changes))


def test_above_256_agents_a_sparse_graph_is_needed() -> None:
    with pytest.raises(ConfigurationError, match="SparseGraph"):
        SecAggParameters(num_clients=257, max_colluding=0, vector_length=1)
    graph = SparseGraph(max_dropouts=20)
    large = SecAggParameters(
        num_clients=257, max_colluding=0, vector_length=1, min_clients=200, graph=graph
    )
    assert large.max_neighbours < 256
    assert large.floor == 220
    assert large.stage_floor(257) == 237


def test_sparse_canonical_bytes_come_back_and_pin_every_field() -> None:
    parameters = sparse()
    assert SecAggParameters.from_canonical_bytes(parameters.canonical_bytes()) == parameters
    graph = {"max_dropouts": 3, "security_bits": 8, "correctness_bits": 8}
    other_graphs = (
        {"max_dropouts": 2},
        {"security_bits": 9},
        {"correctness_bits": 9},
        {"server": "semi-honest"},
    )
    variants: list[dict[str, Any]] = [
        {"graph": SparseGraph(**(graph | change))}  # type: ignore[arg-type]  # mixed values
        for change in other_graphs
    ]
    variants += [{"differencing": "model"}, {"min_clients": 31}, {"graph": None}]
    found = [sparse(**change) for change in variants]
    assert len({one.digest for one in (parameters, *found)}) == len(variants) + 1
    for one in found:
        assert SecAggParameters.from_canonical_bytes(one.canonical_bytes()) == one


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (4, 6),  # a threshold of the sender's choice
        (4, 0),
        (10, 3),  # an unknown kind of server
        (11, 3),  # an unknown scope
        (10, 0),  # no graph, but its numbers are there
        (8, 0),
        (9, 129),
        (3, 16),
        (0, 2**64 - 1),
        (6, 2**64 - 1),
    ],
)
def test_sparse_parameters_that_are_not_canonical_are_refused(place: int, value: int) -> None:
    numbers = list(struct.unpack(">12Q", sparse().canonical_bytes()))
    numbers[place] = value
    with pytest.raises(ConfigurationError):
        SecAggParameters.from_canonical_bytes(struct.pack(">12Q", *numbers))


@pytest.mark.parametrize("place", range(7, 11))
def test_complete_parameters_hold_no_numbers_of_a_graph(place: int) -> None:
    complete = SecAggParameters(num_clients=20, max_colluding=2, vector_length=9)
    numbers = list(struct.unpack(">12Q", complete.canonical_bytes()))
    numbers[place] = 1
    with pytest.raises(ConfigurationError):
        SecAggParameters.from_canonical_bytes(struct.pack(">12Q", *numbers))


@given(size=st.integers(33, 40))
def test_degree_and_threshold_follow_from_the_size_of_the_roster(size: int) -> None:
    parameters = sparse()
    topology = parameters.topology(size)
    assert topology == SecAggParameters(**SPARSE).topology(size)
    assert topology.degree <= parameters.max_neighbours
    assert topology.degree < 2 * topology.threshold <= 2 * topology.degree
    assert topology.smallest_opened >= parameters.min_honest
    assert parameters.stage_floor(size) == size - 3 >= parameters.min_clients
