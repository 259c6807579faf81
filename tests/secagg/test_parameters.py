"""Parameters: what is unsound cannot be constructed, and sizes on the wire are exact."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedrl.errors import ConfigurationError
from privfedrl.secagg.parameters import MAX_CLIENTS, SecAggParameters


@given(n=st.integers(5, MAX_CLIENTS), data=st.data())
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
    base = {"num_clients": 20, "max_colluding": 2, "vector_length": 9}
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
