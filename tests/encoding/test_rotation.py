"""The rotation is a public isometry that depends on nothing but its seed."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard

from privfedrl.encoding.rotation import Rotation, walsh_hadamard
from privfedrl.errors import ConfigurationError, EncodingError

SEED = bytes(range(32))


@pytest.mark.parametrize("bits", range(12))
def test_the_fast_transform_is_the_hadamard_matrix(bits: int) -> None:
    p = 2**bits
    matrix = hadamard(p) / math.sqrt(p)
    np.testing.assert_allclose(walsh_hadamard(np.eye(p)), matrix, atol=1e-14)


@given(st.integers(1, 600), st.binary(min_size=32, max_size=32), st.integers(0, 2**32))
@settings(deadline=None)
def test_rotation_keeps_norms_and_inner_products_and_inverts(
    dimension: int, seed: bytes, data: int
) -> None:
    x = np.random.default_rng(data).normal(size=(3, dimension))
    rotation = Rotation(dimension, seed)
    y = rotation.forward(x)
    assert y.shape == (3, rotation.padded)
    np.testing.assert_allclose(y @ y.T, x @ x.T, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(rotation.inverse(y), x, atol=1e-12)


def test_rows_are_rotated_one_by_one() -> None:
    x = np.random.default_rng(0).normal(size=(2, 4, 37))
    rotation = Rotation(37, SEED)
    whole = rotation.forward(x)
    for index in np.ndindex(2, 4):
        np.testing.assert_allclose(whole[index], rotation.forward(x[index]), atol=1e-14)


@pytest.mark.parametrize("dimension", [1, 2, 3, 4, 5, 1023, 1024, 1025])
def test_padding_is_the_least_power_of_two(dimension: int) -> None:
    padded = Rotation(dimension, SEED).padded
    assert padded >= dimension > padded // 2


def test_a_spike_is_spread_evenly() -> None:
    spike = np.zeros(1000)
    spike[17] = 1.0
    np.testing.assert_allclose(np.abs(Rotation(1000, SEED).forward(spike)), 1 / 32, rtol=1e-12)


def test_the_seed_decides_the_signs_for_good() -> None:
    signs = Rotation(20, SEED).signs()
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert np.array_equal(signs, Rotation(20, SEED).signs())
    assert not np.array_equal(signs, Rotation(20, bytes(32)).signs())
    # fixed for ever: agents and coordinator of different versions must agree
    assert "".join("-" if s < 0 else "+" for s in signs[:16]) == SIGNS


def test_an_empty_batch_stays_empty() -> None:
    assert Rotation(5, SEED).forward(np.zeros((0, 5))).shape == (0, 8)


def test_the_input_is_left_alone() -> None:
    x = np.ones((2, 8))
    Rotation(8, SEED).forward(x)
    Rotation(8, SEED).inverse(x)
    assert np.all(x == 1)


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, 2**31])
def test_a_dimension_out_of_range_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="dimension"):
        Rotation(bad, SEED)


@pytest.mark.parametrize("bad", [b"", bytes(31), bytes(33), "s" * 32, None])
def test_a_seed_that_is_not_32_bytes_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="seed"):
        Rotation(4, bad)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_vectors_of_another_length_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(EncodingError, match="dimension"):
        Rotation(4, SEED).forward(np.zeros(shape))
    with pytest.raises(EncodingError, match="padded"):
        Rotation(4, SEED).inverse(np.zeros(shape))


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 6)])
def test_the_transform_refuses_other_lengths_than_powers_of_two(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match="power of two"):
        walsh_hadamard(np.zeros(shape))


SIGNS = "+-+---+--+++---+"
