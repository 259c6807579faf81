"""A ring sum decodes to the sum of the units, and one unit moves it by a bounded integer vector."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.encoding.fixed_point import FixedPoint
from privfedrl.encoding.rotation import Rotation
from privfedrl.encoding.rounding import round_units
from privfedrl.errors import ConfigurationError, EncodingError
from privfedrl.privacy.samplers import SkellamSampler
from privfedrl.privacy.units import Unit

SEED = bytes(range(32))


def stream(seed: int) -> Callable[[int], bytes]:
    return np.random.default_rng(seed).bytes


def codec(**changes: Any) -> FixedPoint:
    values: dict[str, Any] = {
        "ring_bits": 32,
        "dimension": 10,
        "resolution": 1000,
        "clip_norm": 2.0,
        "max_units": 100,
        "noise_variance": 10**6,
        **changes,
    }
    return FixedPoint(**values)


def clipped(count: int, dimension: int, clip: float, seed: int) -> npt.NDArray[np.float64]:
    rows = np.random.default_rng(seed).normal(size=(count, dimension))
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: npt.NDArray[np.float64] = rows * np.minimum(1, clip / np.maximum(norms, 1e-9))
    return scaled


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 2**32), st.sampled_from([32, 64]))
@settings(max_examples=60, deadline=None)
def test_the_ring_sum_is_the_integer_sum_and_decodes_to_the_real_one(
    dimension: int, agents: int, seed: int, bits: int
) -> None:
    fixed = codec(dimension=dimension, ring_bits=bits)
    cohorts = [clipped(3, dimension, 2.0, seed + a) for a in range(agents)]
    entropy = stream(seed)
    vectors = [fixed.encode_units(rows, rotation_seed=SEED, entropy=entropy) for rows in cohorts]
    ring = [fixed.to_ring(vector) for vector in vectors]
    total: Any = np.sum(ring, axis=0, dtype=ring[0].dtype)
    assert np.array_equal(total, fixed.to_ring(np.sum(vectors, axis=0)))
    decoded = fixed.decode_sum(total, rotation_seed=SEED)
    assert decoded.shape == (dimension,)
    error = np.linalg.norm(decoded - sum(rows.sum(axis=0) for rows in cohorts))
    assert error <= 3 * agents * math.sqrt(fixed.padded) * 2.0 / 1000


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_removing_one_unit_removes_exactly_its_own_vector_within_the_sensitivity(
    dimension: int, count: int, seed: int
) -> None:
    fixed = codec(dimension=dimension)
    rows = clipped(count, dimension, 2.0, seed)
    rotated = Rotation(dimension, SEED).forward(rows)
    alone = round_units(rotated, resolution=1000, clip_norm=2.0, entropy=stream(seed))
    whole = fixed.encode_units(rows, rotation_seed=SEED, entropy=stream(seed))
    assert np.array_equal(whole, alone.sum(axis=0))
    bound = fixed.sensitivity(Unit.TRAJECTORY)
    for unit in range(count):
        moved = [int(k) for k in whole - np.delete(alone, unit, axis=0).sum(axis=0)]
        assert moved == alone[unit].tolist()
        assert sum(k * k for k in moved) <= bound.l2_squared
        assert sum(abs(k) for k in moved) <= bound.l1


@pytest.mark.parametrize("unit", list(Unit))
def test_the_sensitivity_is_that_of_the_padded_rounded_vector(unit: Unit) -> None:
    fixed = codec()
    bound = fixed.sensitivity(unit)
    assert (bound.l2_squared, bound.l1) == fixed.bound
    assert bound.unit is unit
    assert fixed.padded == 16
    assert bound.l2_squared == 1000**2 + 4 + 1000 + 2


def test_an_agent_without_units_encodes_zero() -> None:
    fixed = codec()
    empty = fixed.encode_units(np.zeros((0, 10)), rotation_seed=SEED)
    zeros = fixed.encode_units(np.zeros((3, 10)), rotation_seed=SEED)
    assert empty.dtype == zeros.dtype == np.int64
    assert empty.shape == zeros.shape == (16,)
    assert not empty.any()
    assert not zeros.any()


def test_encoding_is_unbiased() -> None:
    """Mean of 400 encodings of 50 equal units within 6 standard errors per coordinate.

    Rounding adds a variance of at most 1/4 per coordinate and unit, in grid units, and the
    rotation keeps it; false-positive rate below 1e-6 over the 10 coordinates (2e-9 each).
    """
    fixed = codec(resolution=20)
    row = clipped(1, 10, 2.0, 5)
    source = stream(6)
    total = np.zeros(10)
    for _ in range(400):
        vector = fixed.encode_units(np.repeat(row, 50, axis=0), rotation_seed=SEED, entropy=source)
        total += fixed.decode_sum(fixed.to_ring(vector), rotation_seed=SEED)
    deviation = 6 * 0.5 * (2.0 / 20) / math.sqrt(400 * 50)
    assert np.all(np.abs(total / (400 * 50) - row[0]) <= deviation)


def test_noise_and_units_at_their_worst_do_not_wrap() -> None:
    fixed = codec(dimension=8, resolution=2**20, max_units=1000, noise_variance=2**40)
    assert fixed.headroom < 2**31
    spike = np.zeros((1000, 8))
    spike[:, 0] = 2.0
    flat = Rotation(8, SEED).inverse(spike)  # rotates onto one coordinate
    vector = fixed.encode_units(flat, rotation_seed=SEED, entropy=stream(1))
    assert abs(int(vector[0])) >= 1000 * (2**20 - 1)
    noise = SkellamSampler(2**34, entropy=stream(2)).sample(8)
    decoded = fixed.decode_sum(fixed.to_ring(vector + noise), rotation_seed=SEED)
    np.testing.assert_allclose(decoded, flat.sum(axis=0), atol=10 * 2.0**17 * 2 / 2**20)


@pytest.mark.parametrize("bits", [32, 64])
def test_centring_covers_the_whole_ring(bits: int) -> None:
    fixed = codec(dimension=4, ring_bits=bits, resolution=1, clip_norm=1.0)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    vector = np.array([low, high, -1, 0], dtype=np.int64)
    ring = fixed.to_ring(vector)
    assert ring.dtype == np.dtype(f"uint{bits}")
    assert [int(k) for k in ring] == [k % 2**bits for k in (low, high, -1, 0)]
    decoded = fixed.decode_sum(ring, rotation_seed=SEED)
    expected = Rotation(4, SEED).inverse(vector.astype(np.float64))
    np.testing.assert_allclose(decoded, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_units": 3 * 10**6},
        {"noise_variance": 2**60},
        {"resolution": 2**30, "max_units": 2},
    ],
)
def test_a_ring_that_could_wrap_is_refused_at_construction(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="ring_bits = 32 is too narrow"):
        codec(**changes)
    assert codec(**{"ring_bits": 64, **changes}).headroom < 2**63


@given(st.integers(1, 10**6), st.integers(0, 10**12), st.integers(1, 10**6))
@settings(deadline=None)
def test_headroom_counts_every_unit_and_the_tail_of_the_noise(
    units: int, variance: int, dimension: int
) -> None:
    fixed = codec(
        ring_bits=64, max_units=units, noise_variance=variance, dimension=dimension, resolution=50
    )
    assert fixed.headroom >= units * math.isqrt(fixed.bound[0]) + 7 * math.isqrt(variance)
    assert fixed.headroom <= units * (math.sqrt(fixed.bound[0]) + 1) + 60 + 15 * math.sqrt(variance)


@pytest.mark.parametrize("poison", [np.nan, np.inf, 5.0, 1e308])
def test_bad_units_are_refused_before_anything_is_encoded(poison: float) -> None:
    rows = np.zeros((2, 10))
    rows[0] = poison
    with pytest.raises(EncodingError, match=r"finite|clipped"):
        codec().encode_units(rows, rotation_seed=SEED)


def test_units_of_another_shape_or_number_are_refused() -> None:
    with pytest.raises(EncodingError, match="dimension = 10"):
        codec().encode_units(np.zeros((2, 11)), rotation_seed=SEED)
    with pytest.raises(EncodingError, match="max_units"):
        codec(max_units=1).encode_units(np.zeros((2, 10)), rotation_seed=SEED)
    with pytest.raises(EncodingError, match="shape"):
        codec().encode_units(np.zeros(10), rotation_seed=SEED)


def test_ring_vectors_of_another_type_or_length_are_refused() -> None:
    fixed = codec()
    for vector in (np.zeros(16, dtype=np.int32), np.zeros(15, dtype=np.int64)):
        with pytest.raises(EncodingError, match="int64"):
            fixed.to_ring(vector)  # type: ignore[arg-type]  # wrong types on purpose
    for total in (np.zeros(16, dtype=np.uint64), np.zeros(15, dtype=np.uint32)):
        with pytest.raises(EncodingError, match="uint32"):
            fixed.decode_sum(total, rotation_seed=SEED)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("ring_bits", 16),
        ("ring_bits", 33),
        ("dimension", 0),
        ("dimension", 2.0),
        ("resolution", 0),
        ("clip_norm", math.nan),
        ("max_units", 0),
        ("max_units", True),
        ("noise_variance", -1),
        ("noise_variance", 1.5),
        ("headroom_rule", "best-case"),
        ("headroom_rule", None),
    ],
)
def test_parameters_out_of_range_are_refused(name: str, bad: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        codec(**{name: bad})


# --- several coordinates in a word --------------------------------------------------------------


def packed(**changes: Any) -> FixedPoint:
    """The codec of ``codec`` in 64-bit words with the narrowest lanes that hold its sum."""
    plain = codec(**{"ring_bits": 64, **changes})
    return dataclasses.replace(plain, lane_bits=plain.narrowest_lane_bits)


@given(
    st.integers(1, 70),
    st.integers(1, 6),
    st.integers(0, 2**32),
    st.sampled_from([0, 9, 10**6]),
    st.sampled_from([1, 40, 1000]),
    st.sampled_from(["worst-case", "rotated"]),
)
@settings(max_examples=60, deadline=None)
def test_lanes_change_no_bit_of_a_decoded_sum(
    dimension: int, agents: int, seed: int, variance: int, resolution: int, rule: str
) -> None:
    shape = {"dimension": dimension, "noise_variance": agents * variance, "resolution": resolution}
    lanes = packed(**shape, headroom_rule=rule)
    entropy = stream(seed)
    vectors = []
    for agent in range(agents):
        rows = clipped(3, dimension, 2.0, seed + agent)
        vector = lanes.encode_units(rows, rotation_seed=SEED, entropy=entropy)
        if variance:
            vector = vector + SkellamSampler(variance, entropy=entropy).sample(lanes.padded)
        vectors.append(vector)
    assert np.abs(np.sum(vectors, axis=0)).max() <= lanes.headroom
    found = []
    for one in (lanes, codec(**shape), codec(**shape, ring_bits=64)):
        ring = [one.to_ring(vector) for vector in vectors]
        assert all(vector.shape == (one.words,) for vector in ring)
        total: Any = np.sum(ring, axis=0, dtype=ring[0].dtype)
        found.append(one.decode_sum(total, rotation_seed=SEED).tobytes())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("resolution", [1, 50, 1000, 10**5])
def test_a_sum_at_the_headroom_in_every_lane_is_decoded_exactly(resolution: int, sign: int) -> None:
    lanes = packed(resolution=resolution)
    plain = codec(ring_bits=64, resolution=resolution)
    total = np.full(lanes.padded, sign * lanes.headroom, dtype=np.int64)
    total[::3] *= -1
    # summands that fit nowhere: only what they add up to has to
    far = np.arange(lanes.padded, dtype=np.int64) * 2**57
    parts: Any = [lanes.to_ring(far), lanes.to_ring(total - far)]
    decoded = lanes.decode_sum(parts[0] + parts[1], rotation_seed=SEED)
    expected = plain.decode_sum(plain.to_ring(total), rotation_seed=SEED)
    assert np.array_equal(decoded, expected)


@given(
    st.integers(1, 2000), st.integers(0, 10**6), st.integers(1, 10**5), st.sampled_from([1, 300])
)
@settings(max_examples=60, deadline=None)
def test_lanes_narrower_than_the_headroom_are_refused_and_the_message_says_what_fits(
    units: int, variance: int, resolution: int, dimension: int
) -> None:
    shape = {
        "ring_bits": 64,
        "max_units": units,
        "noise_variance": variance,
        "resolution": resolution,
        "dimension": dimension,
    }
    fits = codec(**shape).narrowest_lane_bits
    if fits <= 32:
        assert codec(**shape, lane_bits=fits).headroom < 2 ** (fits - 1)
    if 3 <= fits <= 33:
        with pytest.raises(ConfigurationError, match=f"lane_bits = {fits - 1} is too narrow") as no:
            codec(**shape, lane_bits=fits - 1)
        advice = f"fits has {fits} bits" if fits <= 32 else "leave lane_bits out"
        assert advice in str(no.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lane_bits": 21}, "lane_bits needs ring_bits = 64, got 32"),
        ({"ring_bits": 64, "lane_bits": 1}, "lane_bits must be an integer in 2 .. 32"),
        ({"ring_bits": 64, "lane_bits": 33}, "lane_bits must be an integer in 2 .. 32"),
        ({"ring_bits": 64, "lane_bits": 21.0}, "lane_bits must be an integer in 2 .. 32"),
        ({"ring_bits": 64, "lane_bits": True}, "lane_bits must be an integer in 2 .. 32"),
        ({"ring_bits": 64, "lane_bits": 16, "max_units": 10**9}, "leave lane_bits out"),
    ],
)
def test_lanes_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        codec(**changes)


@pytest.mark.parametrize(
    ("rule", "noise_multiplier", "bytes_each"),
    [("worst-case", 0, 4.0), ("worst-case", 3, 4.0), ("rotated", 0, 2.0), ("rotated", 3, 2.67)],
)
def test_bytes_of_a_million_sixteen_bit_values_of_a_hundred_agents(
    rule: str, noise_multiplier: int, bytes_each: float
) -> None:
    one = packed(
        dimension=2**20,
        resolution=2**15,
        noise_variance=(noise_multiplier * 2**15) ** 2,
        headroom_rule=rule,
    )
    assert 8 * one.words / one.dimension == pytest.approx(bytes_each, abs=0.005)


@pytest.mark.statistical
def test_a_million_sixteen_bit_values_of_a_hundred_agents_pass_through_lanes_of_21_bits() -> None:
    """A hundred agents that all send one spike, and noise as large as the clip (multiplier 1).

    The sum leaves its lanes with probability at most 2^-40 < 1e-6 over seed and noise, both fixed.
    """
    size, noise = 2**20, 2**30
    shape: dict[str, Any] = {"dimension": size, "resolution": 2**15, "noise_variance": noise}
    lanes = codec(**shape, ring_bits=64, lane_bits=21, headroom_rule="rotated")
    plain = codec(**shape, ring_bits=64)
    spike = np.zeros((1, size))
    spike[0, 5] = 2.0
    total: Any = lanes.to_ring(SkellamSampler(noise, entropy=stream(1)).sample(size))
    direct: Any = plain.to_ring(SkellamSampler(noise, entropy=stream(1)).sample(size))
    for agent in range(4):
        vector = lanes.encode_units(spike, rotation_seed=SEED, entropy=stream(2 + agent))
        for _ in range(25):
            total = total + lanes.to_ring(vector)
            direct = direct + plain.to_ring(vector)
    assert 8 * total.size <= 2.7 * size
    found = lanes.decode_sum(total, rotation_seed=SEED)
    assert np.array_equal(found, plain.decode_sum(direct, rotation_seed=SEED))
    with pytest.raises(ConfigurationError, match="narrowest lane that fits has 23 bits"):
        codec(**shape, ring_bits=64, lane_bits=21)


def test_packed_vectors_of_another_type_or_length_are_refused() -> None:
    fixed = codec(ring_bits=64, lane_bits=21)
    assert fixed.words == 6  # 16 coordinates, 3 to a word
    for total in (np.zeros(16, dtype=np.uint64), np.zeros(6, dtype=np.uint32)):
        with pytest.raises(EncodingError, match=r"total must be uint64 \[6\]"):
            fixed.decode_sum(total, rotation_seed=SEED)
    with pytest.raises(EncodingError, match=r"vector must be int64 \[16\]"):
        fixed.to_ring(np.zeros(6, dtype=np.int64))
