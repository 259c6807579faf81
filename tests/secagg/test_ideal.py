"""The ideal sum: plain modular addition, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from privfedrl.errors import ConfigurationError
from privfedrl.secagg import ideal_sum


@pytest.mark.parametrize("bits", [32, 64])
def test_the_sum_wraps_at_the_ring(bits: int) -> None:
    dtype = f"uint{bits}"
    top = np.array([2**bits - 1, 5], dtype)
    vectors = {"a": top, "b": np.array([2, 6], dtype), "c": np.array([100, 100], dtype)}
    total = ideal_sum(vectors, ["a", "b"], ring_bits=bits)
    assert total.dtype == np.dtype(dtype)
    assert total.tolist() == [1, 11]
    assert top.tolist() == [2**bits - 1, 5]


@pytest.mark.parametrize("survivors", [[], ["x"], ["a", "a"]])
def test_odd_survivor_sets_are_refused(survivors: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="survivors"):
        ideal_sum({"a": np.zeros(2, np.uint32)}, survivors, ring_bits=32)


@pytest.mark.parametrize(
    "other", [np.zeros(3, np.uint32), np.zeros(2, np.uint64), np.zeros((2, 1), np.uint32)]
)
def test_unequal_vectors_are_refused(other: Any) -> None:
    vectors = {"a": np.zeros(2, np.uint32), "b": other}
    with pytest.raises(ConfigurationError, match="every vector"):
        ideal_sum(vectors, ["a", "b"], ring_bits=32)


def test_other_rings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="ring_bits"):
        ideal_sum({"a": np.zeros(2, np.uint32)}, ["a"], ring_bits=16)
