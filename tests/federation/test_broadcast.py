"""The opening message: exact bytes in, exact values out, and nothing else gets through."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from privfedrl.errors import RemoteProtocolError
from privfedrl.federation.broadcast import (
    model_digest,
    pack_broadcast,
    parameter_bytes,
    unpack_broadcast,
)

FINITE = arrays.arrays(
    np.float64, st.integers(1, 20), elements=st.floats(allow_nan=False, allow_infinity=False)
)


@given(config=st.binary(max_size=300), parameters=FINITE)
def test_unpack_inverts_pack_bit_for_bit(config: bytes, parameters: np.ndarray) -> None:
    data = pack_broadcast(config, parameters)
    found, values = unpack_broadcast(data, num_parameters=parameters.shape[0])
    assert found == config
    assert parameter_bytes(values) == parameter_bytes(parameters)
    values[0] = 1.0  # a copy, not a view of the wire


@given(data=st.binary(max_size=200), size=st.integers(0, 20))
def test_hostile_bytes_raise_the_remote_error_only(data: bytes, size: int) -> None:
    with pytest.raises(RemoteProtocolError):
        unpack_broadcast(data, num_parameters=size)


@given(
    position=st.integers(0, 9),
    value=st.integers(0, 255),
    cut=st.integers(0, 60),
    extra=st.binary(max_size=3),
)
def test_a_damaged_header_never_gives_other_parameters(
    position: int, value: int, cut: int, extra: bytes
) -> None:
    parameters = np.arange(4.0)
    good = pack_broadcast(b"config", parameters)
    bad = bytearray(good)
    bad[position] = value
    data = bytes(bad)[: len(bad) - cut] + extra
    try:
        config, found = unpack_broadcast(data, num_parameters=4)
    except RemoteProtocolError:
        return
    assert (config, data) == (b"config", good)
    assert np.array_equal(found, parameters)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_parameters_that_are_not_finite_are_refused(value: float) -> None:
    data = pack_broadcast(b"c", np.array([0.0, value]))
    with pytest.raises(RemoteProtocolError, match="finite"):
        unpack_broadcast(data, num_parameters=2)


def test_a_huge_declared_length_is_refused_without_being_read() -> None:
    data = bytearray(pack_broadcast(b"c" * 20_000, np.zeros(2)))
    with pytest.raises(RemoteProtocolError, match=r"has .* bytes"):
        unpack_broadcast(bytes(data), num_parameters=2)


def test_the_digest_depends_on_every_bit_of_every_parameter() -> None:
    parameters = np.linspace(-1, 1, 5)
    digests = {model_digest(parameters)}
    for index in range(5):
        changed = parameters.copy()
        changed[index] = np.nextafter(changed[index], 2)
        digests.add(model_digest(changed))
    assert len(digests) == 6
    assert model_digest(np.array([0.0])) != model_digest(np.array([-0.0]))
    assert model_digest(parameters) == model_digest(parameters.astype(">f8"))


def test_the_digest_is_fixed_for_ever() -> None:
    expected = "848b7197f8452e1dc8e0b0b991b261237a069c7c3f71517c5c1e0973816fddcc"
    assert model_digest(np.array([1.0, 2.0])).hex() == expected
