"""Whatever a unit holds, its rounded vector obeys the stated integer bound."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.encoding import rounding
from privfedrl.encoding.rounding import DEFAULT_BETA, round_units, rounding_bound
from privfedrl.errors import ConfigurationError, EncodingError

FloatArray = npt.NDArray[np.float64]


def stream(seed: int) -> Callable[[int], bytes]:
    return np.random.default_rng(seed).bytes


def constant(byte: int) -> Callable[[int], bytes]:
    return lambda size: bytes([byte]) * size


def exact_norms(row: npt.NDArray[np.int64]) -> tuple[int, int]:
    values = [int(k) for k in row]
    return sum(k * k for k in values), sum(abs(k) for k in values)


@st.composite
def unit_rows(draw: st.DrawFn) -> tuple[FloatArray, float]:
    """Rows of every size that a clipped unit can have, with the clip norm."""
    clip = draw(st.sampled_from([1e-300, 1e-9, 0.1, 1.0, 3.7, 1e9, 1e300]))
    p = draw(st.integers(1, 70))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = generator.normal(size=(draw(st.integers(0, 4)), p))
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    share = draw(st.sampled_from([0.0, 1e-310, 1e-12, 0.5, 1.0 - 1e-15, 1.0, 1.0 + 9e-10]))
    if draw(st.booleans()):  # one coordinate carries all
        rows[:] = 0.0
        rows[:, 0] = 1.0
    return rows * share * clip, clip


@given(
    unit_rows(),
    st.sampled_from([1, 2, 3, 17, 1000, 2**16, 2**24, 2**30]),
    st.sampled_from([0.0, 0.01, DEFAULT_BETA, 0.999]),
    st.integers(0, 2**32),
)
@settings(max_examples=300, deadline=None)
def test_every_rounded_unit_obeys_both_integer_bounds(
    case: tuple[FloatArray, float], resolution: int, beta: float, seed: int
) -> None:
    rows, clip = case
    squared, l1 = rounding_bound(
        clip_norm=clip, resolution=resolution, dimension=rows.shape[1], beta=beta
    )
    rounded = round_units(
        rows, resolution=resolution, clip_norm=clip, entropy=stream(seed), beta=beta
    )
    assert rounded.dtype == np.int64
    assert rounded.shape == rows.shape
    for row in rounded:
        l2_found, l1_found = exact_norms(row)
        assert l2_found <= squared
        assert l1_found <= l1
    scaled = rows / clip * resolution
    assert np.all(np.abs(rounded - scaled) <= 1 + 1e-8 * resolution)


@given(st.integers(1, 2**30), st.integers(1, 2**30), st.floats(0, 0.999))
@settings(deadline=None)
def test_the_bound_matches_its_formula_and_covers_the_clip(
    resolution: int, dimension: int, beta: float
) -> None:
    squared, l1 = rounding_bound(
        clip_norm=1.0, resolution=resolution, dimension=dimension, beta=beta
    )
    r, root = float(resolution), math.sqrt(dimension)
    formula = (r + root) ** 2
    if beta > 0:
        slope = math.sqrt(-2 * math.log(beta))
        formula = min(formula, r * r + dimension / 4 + slope * (r + root / 2))
    assert squared == pytest.approx(formula, rel=3e-6, abs=1.01)
    assert squared >= resolution**2
    assert l1 == min(math.isqrt(dimension * squared), squared)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.floats(0.01, 0.9))
@settings(deadline=None)
def test_the_bound_grows_with_dimension_and_falls_with_beta(
    resolution: int, dimension: int, beta: float
) -> None:
    def bound(**changes: Any) -> int:
        values = {"resolution": resolution, "dimension": dimension, "beta": beta, **changes}
        return rounding_bound(clip_norm=1.0, **values)[0]

    assert bound(dimension=dimension + 1) >= bound()
    assert bound(beta=beta + 0.09) <= bound()
    assert bound(beta=0.0) >= bound()
    # relative to the clip, a finer grid only helps
    assert bound(resolution=2 * resolution) <= 4 * bound() + 4


def test_the_default_bound_is_the_same_integer_on_every_machine() -> None:
    assert rounding_bound(clip_norm=0.3, resolution=2**14, dimension=8192) == (268453933, 1482961)
    assert rounding_bound(clip_norm=1.0, resolution=10, dimension=4, beta=0.0) == (144, 24)
    assert rounding_bound(clip_norm=1.0, resolution=1, dimension=1) == (2, 1)


def test_rounding_is_unbiased() -> None:
    """Mean of 40,000 roundings within 6 standard errors per coordinate.

    False-positive rate below 1e-6 over the 8 coordinates (2e-9 each).
    """
    row = np.array([0.31, -0.11, 0.0, 0.007, -0.5, 0.2, -0.29, 0.123])
    rows = np.tile(row, (40_000, 1))
    rounded = round_units(rows, resolution=101, clip_norm=1.0, entropy=stream(11))
    assert np.all(np.abs(rounded.mean(axis=0) - row * 101) <= 6 * 0.5 / math.sqrt(40_000))


def test_integers_are_kept_as_they_are() -> None:
    rows = np.array([[3.0, -4.0, 0.0, 0.0]])
    rounded = round_units(rows, resolution=5, clip_norm=5.0, entropy=stream(1))
    assert rounded.tolist() == [[3, -4, 0, 0]]


def test_rejected_rows_are_drawn_again_and_only_they() -> None:
    # worst case: many small fractions at full norm, so that rejections are frequent
    p = 4096
    rows = np.full((200, p), 1 / math.sqrt(p))
    calls: list[int] = []
    source = stream(7)

    def entropy(size: int) -> bytes:
        calls.append(size)
        return source(size)

    squared, l1 = rounding_bound(clip_norm=1.0, resolution=3, dimension=p, beta=0.999)
    rounded = round_units(rows, resolution=3, clip_norm=1.0, entropy=entropy, beta=0.999)
    assert calls[0] == 200 * p * 8
    assert calls[1:] == sorted(calls[1:], reverse=True)
    assert all(exact_norms(row)[0] <= squared and exact_norms(row)[1] <= l1 for row in rounded)


def test_a_row_that_is_always_rejected_is_truncated_towards_zero() -> None:
    # entropy of zeros rounds every fraction up, which exceeds the bound at any attempt
    p = 1024
    rows = np.full((2, p), 1 / math.sqrt(p))
    rounded = round_units(rows, resolution=40, clip_norm=1.0, entropy=constant(0))
    assert np.array_equal(rounded, np.full((2, p), 1))
    squared, _ = rounding_bound(clip_norm=1.0, resolution=40, dimension=p)
    assert 4 * p > squared >= exact_norms(rounded[0])[0]


def test_truncation_stays_inside_even_with_the_leeway_of_the_norm() -> None:
    rows = np.full((1, 4), 0.5 * (1 + 9e-10))
    scaled = rows * 2**30
    shrunk = np.trunc(scaled * rounding._SHRINK)
    assert exact_norms(shrunk.astype(np.int64)[0])[0] <= 2**60


def test_no_unit_depends_on_another() -> None:
    """Removing a row leaves the bounds and the law of the others: each is checked by itself."""
    rows = np.vstack([np.full(16, 0.25), np.zeros(16), np.eye(16)[3]])
    rounded = round_units(rows, resolution=8, clip_norm=1.0, entropy=stream(3))
    assert not rounded[1].any()
    assert np.array_equal(rounded[2], 8 * np.eye(16, dtype=np.int64)[3])


def test_no_rows_give_no_rows() -> None:
    assert round_units(np.zeros((0, 4)), resolution=5, clip_norm=1.0).shape == (0, 4)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e308, 1.1, -1.0000001])
def test_unclipped_or_non_finite_units_are_refused_not_clipped(poison: float) -> None:
    rows = np.zeros((3, 4))
    rows[1, 2] = poison
    with pytest.raises(EncodingError, match=r"finite|clipped") as caught:
        round_units(rows, resolution=5, clip_norm=1.0)
    assert not any(character.isdigit() for character in str(caught.value))


def test_a_tiny_clip_norm_does_not_let_a_large_unit_through() -> None:
    with pytest.raises(EncodingError, match="clipped"):
        round_units(np.full((1, 2), 1e10), resolution=5, clip_norm=1e-300)


@pytest.mark.parametrize("shape", [(4,), (1, 2, 3), ()])
def test_rows_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(EncodingError, match="shape"):
        round_units(np.zeros(shape), resolution=5, clip_norm=1.0)


def test_a_source_that_returns_too_little_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="entropy"):
        round_units(np.full((1, 2), 0.1), resolution=5, clip_norm=1.0, entropy=lambda _: b"")


@pytest.mark.parametrize(
    ("name", "bad"),
    [("clip_norm", v) for v in (0.0, -1.0, math.nan, math.inf, "1", True)]
    + [("resolution", v) for v in (0, 1.5, True, 2**30 + 1)]
    + [("dimension", v) for v in (0, 2.0, 2**31)]
    + [("beta", v) for v in (-0.1, 1.0, math.nan, "0", True)],
)
def test_parameters_out_of_range_are_refused(name: str, bad: Any) -> None:
    values: dict[str, Any] = {"clip_norm": 1.0, "resolution": 5, "dimension": 4, name: bad}
    with pytest.raises(ConfigurationError, match=name):
        rounding_bound(**values)
