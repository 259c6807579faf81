from __future__ import annotations

import math

import numpy as np
import pytest

from privfedrl.errors import ConfigurationError, EncodingError
from privfedrl.privacy.units import Unit
from privfedrl.training.local_update import LocalUpdate, clip_rows, row_norms


def make(rows, **changes) -> LocalUpdate:
    values = {"clip_norm": 1.0, "unit": Unit.TRAJECTORY, "nonfinite_units": 0, "batch_id": b"b"}
    return LocalUpdate(rows=np.asarray(rows, dtype=float), **(values | changes))


def test_a_row_within_the_clip_norm_is_unchanged():
    rows = np.array([[0.3, -0.4], [0.6, 0.8], [0.0, 0.0]])
    clipped, dropped = clip_rows(rows, 1.0)
    assert np.array_equal(clipped, rows)
    assert dropped == 0


@pytest.mark.parametrize("size", [1e300, 1e308, 1e150, 3.0, 1e-200])
def test_a_longer_row_keeps_its_direction_whatever_its_size(size):
    bound = 2.0 if size > 1 else 1e-99
    clipped, _ = clip_rows(np.array([[3.0, 4.0]]) / 3.0 * size, bound)
    if size > 1:
        assert clipped[0] == pytest.approx([1.2, 1.6], rel=1e-11)
    else:
        assert clipped[0] == pytest.approx([1e-200, 4e-200 / 3], rel=1e-12)
    assert row_norms(clipped)[0] <= bound


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_becomes_zero_and_is_counted(bad):
    clipped, dropped = clip_rows(np.array([[1.0, bad], [0.1, 0.2]]), 1.0)
    assert np.array_equal(clipped, [[0.0, 0.0], [0.1, 0.2]])
    assert dropped == 1


def test_clipped_norms_never_exceed_the_bound_by_a_single_bit():
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(2000, 37)) * 10.0 ** rng.integers(-3, 200, (2000, 1))
    clipped, _ = clip_rows(rows, 0.7)
    assert (row_norms(clipped) <= 0.7).all()


def test_row_norms_do_not_overflow_or_vanish():
    assert row_norms(np.array([[3e200, 4e200]]))[0] == pytest.approx(5e200)
    assert row_norms(np.array([[3e-200, 4e-200]]))[0] == pytest.approx(5e-200)
    assert row_norms(np.array([[1.7e308, 1.7e308]]))[0] == math.inf


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf, 1e101, True, "1", None])
def test_an_impossible_clip_norm_is_refused(bound):
    with pytest.raises(ConfigurationError, match="clip_norm"):
        clip_rows(np.ones((1, 2)), bound)


@pytest.mark.parametrize(
    "rows", [np.ones(3), np.ones((2, 0)), np.array([["a"]]), np.ones((1, 1)) * 1j]
)
def test_rows_must_be_a_real_matrix(rows):
    with pytest.raises(ConfigurationError, match="rows"):
        clip_rows(rows, 1.0)


@pytest.mark.parametrize(
    "rows", [[[1.0, 0.01]], [[math.nan, 0.0]], [[math.inf, 0.0]], [[1e308, 1e308]]]
)
def test_an_update_beyond_its_own_bound_cannot_be_built(rows):
    with pytest.raises(EncodingError):
        make(rows)


@pytest.mark.parametrize(
    "changes",
    [
        {"clip_norm": 0.0},
        {"clip_norm": math.inf},
        {"unit": "trajectory"},
        {"batch_id": b""},
        {"batch_id": "text"},
        {"nonfinite_units": -1},
        {"nonfinite_units": 2},
    ],
)
def test_an_update_with_impossible_attributes_is_refused(changes):
    with pytest.raises(ConfigurationError):
        make([[0.1]], **changes)


def test_an_infinite_bound_exists_only_for_the_control_that_says_it_is_not_private():
    assert make([[1e9]], clip_norm=math.inf, private=False).clip_norm == math.inf
    with pytest.raises(ConfigurationError):
        make([[1e9]], clip_norm=math.nan, private=False)


def test_rows_cannot_change_after_the_check():
    source = np.array([[0.5]])
    update = make(source)
    source[0] = 9.0
    assert update.rows[0, 0] == 0.5
    with pytest.raises(ValueError, match="read-only"):
        update.rows[0] = 9.0


def test_an_empty_round_has_the_same_shape_and_nothing_in_it():
    update = LocalUpdate.zeros(num_units=4, dimension=3, clip_norm=1.0, unit=Unit.TRAJECTORY)
    assert (update.num_units, update.dimension) == (4, 3)
    assert not update.rows.any()
    other = LocalUpdate.zeros(num_units=4, dimension=3, clip_norm=1.0, unit=Unit.TRAJECTORY)
    assert update.batch_id != other.batch_id


def test_repr_shows_shape_but_no_value_and_no_private_count():
    text = repr(make([[0.123456789, 0.0]], nonfinite_units=1))
    assert "0.123" not in text
    assert "nonfinite" not in text
    assert "d=2" in text
