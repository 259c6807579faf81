"""Groups are clipped by themselves; together they stay within the root of the sum of squares."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from privfedrl.errors import ConfigurationError
from privfedrl.training.clip_groups import ClipGroup, clip_by_group, total_clip
from privfedrl.training.local_update import clip_rows, row_norms

THREE = (
    ClipGroup(name="actor", size=3, clip_norm=1.0),
    ClipGroup(name="critic", size=2, clip_norm=2.0),
    ClipGroup(name="metrics", size=1, clip_norm=0.5),
)


def test_three_groups_are_clipped_by_themselves_in_one_row():
    rows = np.array([[3.0, 0.0, 4.0, 0.6, 0.8, -9.0], [0.1, 0.2, 0.2, 30.0, 40.0, 0.25]])
    clipped = clip_by_group(rows, THREE)
    assert clipped.rows[0] == pytest.approx([0.6, 0.0, 0.8, 0.6, 0.8, -0.5])
    assert clipped.rows[1] == pytest.approx([0.1, 0.2, 0.2, 1.2, 1.6, 0.25])
    assert clipped.clip_norm == pytest.approx(math.sqrt(1 + 4 + 0.25))
    assert clipped.nonfinite == (0, 0, 0)


finite_or_not = st.floats(width=64) | st.sampled_from([math.nan, math.inf, 1e308, 1e-310])


@given(arrays(np.float64, st.tuples(st.integers(0, 5), st.just(6)), elements=finite_or_not))
def test_every_group_and_every_row_stays_within_its_bound_whatever_the_values(rows):
    clipped = clip_by_group(rows, THREE)
    start = 0
    for group in THREE:
        part = clipped.rows[:, start : start + group.size]
        assert (row_norms(part) <= group.clip_norm).all()
        start += group.size
    assert (row_norms(clipped.rows) <= clipped.clip_norm).all()
    assert clipped.clip_norm == total_clip(THREE)


@given(arrays(np.float64, (4, 6), elements=finite_or_not), st.integers(0, 3))
def test_a_row_depends_on_itself_alone(rows, index):
    together = clip_by_group(rows, THREE).rows[index]
    assert np.array_equal(together, clip_by_group(rows[index : index + 1], THREE).rows[0])


def test_nonsense_in_one_group_zeroes_that_group_of_that_row_only():
    rows = np.full((2, 6), 0.1)
    rows[0, 4] = math.nan
    clipped = clip_by_group(rows, THREE)
    assert clipped.rows[0].tolist() == [0.1, 0.1, 0.1, 0.0, 0.0, 0.1]
    assert clipped.rows[1].tolist() == [0.1] * 6
    assert clipped.nonfinite == (0, 1, 0)


def test_one_group_is_an_ordinary_clip():
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    clipped = clip_by_group(rows, [ClipGroup(name="policy", size=4, clip_norm=0.3)])
    assert np.array_equal(clipped.rows, clip_rows(rows, 0.3)[0])
    assert clipped.clip_norm == 0.3


@pytest.mark.parametrize("shape", [(2, 5), (2, 7), (6,), (1, 6, 1)])
def test_rows_of_another_width_are_refused(shape):
    with pytest.raises(ConfigurationError, match="rows"):
        clip_by_group(np.zeros(shape), THREE)


def test_groups_must_exist_and_have_names_of_their_own():
    with pytest.raises(ConfigurationError, match="at least one"):
        clip_by_group(np.zeros((1, 0)), [])
    with pytest.raises(ConfigurationError, match="differently"):
        total_clip([THREE[0], THREE[0]])


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": None},
        {"size": 0},
        {"size": True},
        {"size": 1.5},
        {"clip_norm": 0.0},
        {"clip_norm": math.nan},
        {"clip_norm": -1.0},
        {"clip_norm": "1"},
    ],
)
def test_impossible_groups_are_refused(changes):
    with pytest.raises(ConfigurationError):
        ClipGroup(**({"name": "policy", "size": 1, "clip_norm": 1.0} | changes))


def test_a_total_beyond_every_clip_is_refused():
    groups = [ClipGroup(name=name, size=1, clip_norm=1e100) for name in "ab"]
    with pytest.raises(ConfigurationError, match="total clip_norm"):
        total_clip(groups)
