"""Packed vectors add like the integers in them; what fits in its lane comes back exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.encoding.lanes import (
    MAX_LANE_BITS,
    MIN_LANE_BITS,
    Lanes,
    narrowest_lane,
)
from privfedrl.errors import ConfigurationError, EncodingError

WIDTHS = range(MIN_LANE_BITS, MAX_LANE_BITS + 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
SHAPES = st.builds(Lanes, bits=st.sampled_from(WIDTHS), length=st.integers(1, 70))


def ints(values: list[int]) -> npt.NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def packed_by_hand(lanes: Lanes, values: list[int]) -> list[int]:
    """The formula of the module header over Python integers, which never wrap."""
    words = [0] * lanes.words
    for index, value in enumerate(values):
        lane, word = divmod(index, lanes.words)
        words[word] += value * 2 ** (lanes.bits * lane)
    return [word % 2**64 for word in words]


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[Lanes, list[list[int]]]:
    """A shape and up to six vectors of any 64-bit integers."""
    lanes = draw(SHAPES)
    vector = st.lists(INT64, min_size=lanes.length, max_size=lanes.length)
    return lanes, draw(st.lists(vector, min_size=1, max_size=6))


@given(cohorts())
@settings(max_examples=200, deadline=None)
def test_adding_packed_vectors_is_packing_the_exact_sum_whatever_overflows(
    cohort: tuple[Lanes, list[list[int]]],
) -> None:
    lanes, vectors = cohort
    total: Any = np.zeros(lanes.words, dtype=np.uint64)
    for vector in vectors:
        total = total + lanes.pack(ints(vector))
    exact = [sum(column) for column in zip(*vectors, strict=True)]  # not reduced: may need 67 bits
    assert total.tolist() == packed_by_hand(lanes, exact)


@given(SHAPES, st.data())
@settings(max_examples=200, deadline=None)
def test_every_sum_that_fits_its_lanes_comes_back_exactly(
    lanes: Lanes, data: st.DataObject
) -> None:
    half = 2 ** (lanes.bits - 1)
    extreme = st.sampled_from([-half, half - 1, -1, 0, 1])
    values = data.draw(
        st.lists(
            extreme | st.integers(-half, half - 1), min_size=lanes.length, max_size=lanes.length
        )
    )
    # parts that do not fit: only the sum has to
    far = data.draw(st.lists(INT64, min_size=lanes.length, max_size=lanes.length))
    rest = [(a - b + 2**63) % 2**64 - 2**63 for a, b in zip(values, far, strict=True)]
    if all(a == b + c for a, b, c in zip(values, far, rest, strict=True)):
        assert lanes.unpack(lanes.pack(ints(far)) + lanes.pack(ints(rest))).tolist() == values
    assert lanes.unpack(lanes.pack(ints(values))).tolist() == values


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("pattern", ["low", "high", "alternating", "one"])
def test_extremes_in_every_lane_do_not_touch_their_neighbours(bits: int, pattern: str) -> None:
    lanes = Lanes(bits=bits, length=2 * (64 // bits) + 1)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    rows = {
        "low": [[low] * lanes.length],
        "high": [[high] * lanes.length],
        "alternating": [[(low, high)[(i // lanes.words) % 2] for i in range(lanes.length)]],
        "one": [
            [value if i == hot else 0 for i in range(lanes.length)]
            for hot in range(lanes.length)
            for value in (low, high)
        ],
    }
    for row in rows[pattern]:
        assert lanes.unpack(lanes.pack(ints(row))).tolist() == row


@pytest.mark.parametrize("bits", WIDTHS)
def test_one_beyond_the_lane_wraps_there_and_moves_the_next_lane_by_one(bits: int) -> None:
    lanes = Lanes(bits=bits, length=64 // bits)
    half = 2 ** (bits - 1)
    for hot in range(lanes.length):
        for value, carry in ((half, 1), (-half - 1, -1)):
            row = [0] * lanes.length
            row[hot] = value
            expected = list(row)
            expected[hot] = value - carry * 2**bits
            if hot + 1 < lanes.length:
                expected[hot + 1] = carry
            assert lanes.unpack(lanes.pack(ints(row))).tolist() == expected


def test_reducing_each_agent_first_would_leak_into_the_next_lane() -> None:
    """The tempting alternative: equal sums, different words. Ours depends on the sum alone."""
    lanes = Lanes(bits=8, length=8)
    pairs = [([3] + [0] * 7, [-1] + [0] * 7), ([1] + [0] * 7, [1] + [0] * 7)]
    ours = [lanes.pack(ints(a)) + lanes.pack(ints(b)) for a, b in pairs]
    reduced = [lanes.pack(ints(a) % 256) + lanes.pack(ints(b) % 256) for a, b in pairs]
    assert ours[0].tolist() == ours[1].tolist()
    assert reduced[0].tolist() != reduced[1].tolist()


@given(SHAPES)
@settings(max_examples=60, deadline=None)
def test_the_words_are_as_few_as_the_lanes_allow(lanes: Lanes) -> None:
    assert lanes.per_word * lanes.bits <= 64 < (lanes.per_word + 1) * lanes.bits
    assert (lanes.words - 1) * lanes.per_word < lanes.length <= lanes.words * lanes.per_word


@given(st.integers(0, 2**80))
def test_the_narrowest_lane_holds_the_magnitude_and_one_bit_less_does_not(magnitude: int) -> None:
    bits = narrowest_lane(magnitude)
    assert bits >= 2
    assert magnitude < 2 ** (bits - 1)
    assert bits == 2 or magnitude >= 2 ** (bits - 2)


def test_packing_leaves_its_input_alone_and_reads_any_stride() -> None:
    lanes = Lanes(bits=21, length=50)
    wide = np.arange(-50, 50, dtype=np.int64)
    before = wide.copy()
    packed = lanes.pack(wide[::2])
    assert packed.tolist() == lanes.pack(wide[::2].copy()).tolist()
    frozen = packed.copy()
    Lanes(bits=21, length=100).pack(wide)
    spread: Any = np.repeat(packed, 2)[::2]
    assert lanes.unpack(spread).tolist() == lanes.unpack(packed).tolist() == wide[::2].tolist()
    assert wide.tolist() == before.tolist()
    assert packed.tolist() == frozen.tolist()


@pytest.mark.parametrize(
    ("bits", "length"), [(1, 5), (33, 5), (0, 5), (True, 5), (8.0, 5), (8, 0), (8, True), (8, -1)]
)
def test_shapes_out_of_range_are_refused(bits: Any, length: Any) -> None:
    with pytest.raises(ConfigurationError, match="of lanes must be"):
        Lanes(bits=bits, length=length)


def test_vectors_of_another_type_or_length_are_refused() -> None:
    lanes = Lanes(bits=21, length=6)
    for vector in (np.zeros(6, np.uint64), np.zeros(5, np.int64), np.zeros((6, 1), np.int64)):
        with pytest.raises(EncodingError, match=r"vector must be int64 \[6\]"):
            lanes.pack(vector)  # type: ignore[arg-type]  # wrong types on purpose
    for total in (np.zeros(2, np.int64), np.zeros(3, np.uint64), np.zeros(2, np.uint32)):
        with pytest.raises(EncodingError, match=r"total must be uint64 \[2\]"):
            lanes.unpack(total)  # type: ignore[arg-type]  # wrong types on purpose
