"""Who counts is read from the subjects alone; what does not count reaches nothing later."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedrl.errors import ConfigurationError, EnvironmentFault
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.training.subjects import Grouping, distinct_subjects, grouped, kept, sum_by_person


def named(subjects: str | list[str], *, seed: int = 0) -> TrajectoryBatch:
    rng = np.random.default_rng(seed)
    shape = (len(subjects), 3)
    return TrajectoryBatch(
        observations=rng.normal(size=(*shape, 2)).astype(np.float32),
        actions=rng.integers(1, 3, shape),
        rewards=rng.normal(size=shape).astype(np.float32),
        mask=np.ones(shape, dtype=np.bool_),
        terminated=np.ones(shape[0], dtype=np.bool_),
        truncated=np.zeros(shape[0], dtype=np.bool_),
        subjects=tuple(subjects),
    )


def rows(subjects: str, **options) -> list[int]:
    chosen = {"max_trajectories": 2, "max_subjects": 2} | options
    return grouped(named(subjects), **chosen).rows.tolist()


@pytest.mark.parametrize(
    ("subjects", "options", "expected"),
    [
        ("aabb", {}, [0, 0, 1, 1]),
        ("abab", {}, [0, 1, 0, 1]),
        ("aaab", {}, [0, 0, -1, 1]),  # a's third is surplus
        ("abca", {}, [0, 1, -1, 0]),  # c is the third person
        ("abca", {"max_trajectories": 1}, [0, 1, -1, -1]),
        ("abca", {"admitted": {"c", "b"}}, [-1, 0, 1, -1]),  # the places of those not admitted
        ("abca", {"admitted": frozenset()}, [-1, -1, -1, -1]),
        ("abca", {"admitted": {"z"}}, [-1, -1, -1, -1]),
        ("aaaa", {"max_subjects": 9}, [0, 0, -1, -1]),
        ("", {}, []),
    ],
)
def test_the_first_trajectories_of_the_first_admitted_subjects_count(subjects, options, expected):
    assert rows(subjects, **options) == expected


@given(
    st.lists(st.sampled_from("abcde"), max_size=12),
    st.integers(1, 3),
    st.integers(1, 4),
    st.none() | st.frozensets(st.sampled_from("abcde")),
)
def test_a_grouping_obeys_both_limits_and_mixes_no_two_persons(subjects, most, limit, admitted):
    batch = named(subjects)
    grouping = grouped(batch, max_trajectories=most, max_subjects=limit, admitted=admitted)
    assert grouping.num_rows == limit
    assert len(grouping.rows) == len(subjects)
    used = [row for row in grouping.rows if row >= 0]
    assert all(used.count(row) <= most for row in used)
    owners = {row: subjects[i] for i, row in enumerate(grouping.rows) if row >= 0}
    assert len(set(owners.values())) == len(owners) <= limit
    for subject, row in zip(subjects, grouping.rows, strict=True):
        assert row < 0 or owners[row] == subject
        assert row < 0 or admitted is None or subject in admitted
    # nobody is dropped without a reason
    for subject in set(subjects) & set(subjects if admitted is None else admitted):
        if subject in owners.values():
            row = next(r for r, owner in owners.items() if owner == subject)
            assert used.count(row) == min(most, subjects.count(subject))
        else:
            assert len(owners) == limit


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_what_trajectories_contain_never_decides_who_counts(subjects, seed):
    """Masks included: an absent trajectory keeps its place and its person's."""
    batch, other = named(subjects), named(subjects, seed=seed)
    rng = np.random.default_rng(seed)
    other = replace(
        other,
        mask=rng.random(other.mask.shape) < 0.5,
        rewards=np.full_like(other.rewards, np.nan),
    )
    options = {"max_trajectories": 2, "max_subjects": 2}
    assert np.array_equal(grouped(batch, **options).rows, grouped(other, **options).rows)


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12), st.data())
def test_a_person_who_never_came_changes_no_other_persons_row_where_there_is_room(subjects, data):
    """The names are gone, too; room for everybody means that nobody moves up into a free place."""
    gone = data.draw(st.sampled_from(subjects))
    left = [subject for subject in subjects if subject != gone]
    options = {"max_trajectories": 2, "max_subjects": 6}
    before = grouped(named(subjects), **options).rows
    after = grouped(named(left), **options).rows
    stay = [row for subject, row in zip(subjects, before, strict=True) if subject != gone]
    counts = [row >= 0 for row in stay]
    assert counts == [row >= 0 for row in after]


def test_without_room_a_person_who_leaves_lets_at_most_one_other_in():
    """So a removal is a replacement there: audits/proofs/person_unit.md, not claimed as removal."""
    batch = named("abc")
    before = grouped(batch, max_trajectories=1, max_subjects=2)
    after = grouped(named("bc"), max_trajectories=1, max_subjects=2)
    assert before.rows.tolist() == [0, 1, -1]
    assert after.rows.tolist() == [0, 1]


def test_dropped_trajectories_are_absent_and_zero_and_the_shape_stays():
    batch = named("abca")
    batch.observations[2] = np.nan
    batch.rewards[2] = np.inf
    clean = kept(batch, grouped(batch, max_trajectories=1, max_subjects=2))
    for name in ("observations", "actions", "rewards", "mask", "terminated", "truncated"):
        found, given_ = getattr(clean, name), getattr(batch, name)
        assert (found.shape, found.dtype) == (given_.shape, given_.dtype), name
        assert not found[2:].any(), name
        assert np.array_equal(found[:2], given_[:2]), name
    assert clean.batch_id == batch.batch_id
    assert clean.subjects == batch.subjects


def test_sums_run_within_a_person_and_skip_what_does_not_count():
    batch = named("aba")
    grouping = grouped(batch, max_trajectories=2, max_subjects=3)
    values = np.array([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]], dtype=np.float32)
    found = sum_by_person(values, grouping)
    assert found.tolist() == [[101.0, 202.0], [10.0, 20.0], [0.0, 0.0]]
    grouping = grouped(batch, max_trajectories=1, max_subjects=2)
    values[2] = np.nan
    assert sum_by_person(values, grouping).tolist() == [[1.0, 2.0], [10.0, 20.0]]


def test_a_sum_that_overflows_is_not_finite_and_warns_nobody():
    grouping = Grouping(rows=np.array([0, 0, 1, 1]), num_rows=2)
    found = sum_by_person(np.array([[1.7e308], [1.7e308], [np.inf], [-np.inf]]), grouping)
    assert np.isposinf(found[0, 0])
    assert np.isnan(found[1, 0])


def test_distinct_subjects_are_in_order_of_first_appearance():
    assert distinct_subjects(named("bcabba")) == ("b", "c", "a")


def test_a_batch_that_names_nobody_cannot_be_grouped():
    batch = replace(named("ab"), subjects=None)
    for call in (
        distinct_subjects,
        lambda b: grouped(b, max_trajectories=1, max_subjects=1),
    ):
        with pytest.raises(EnvironmentFault, match="subjects"):
            call(batch)


@pytest.mark.parametrize("bad", [0, -1, True, 1.0, None, 2**24 + 1])
def test_impossible_counts_are_refused(bad):
    with pytest.raises(ConfigurationError, match="max_trajectories"):
        grouped(named("a"), max_trajectories=bad, max_subjects=1)
    with pytest.raises(ConfigurationError, match="max_subjects"):
        grouped(named("a"), max_trajectories=1, max_subjects=bad)
    with pytest.raises(ConfigurationError, match="num_rows"):
        Grouping(rows=np.array([0]), num_rows=bad)


@pytest.mark.parametrize("bad", [[2], [-2], [[0]]])
def test_rows_that_do_not_exist_are_refused(bad):
    with pytest.raises(ConfigurationError, match="rows"):
        Grouping(rows=np.array(bad), num_rows=2)


def test_a_grouping_of_another_batch_is_refused():
    grouping = Grouping(rows=np.array([0, 0]), num_rows=1)
    with pytest.raises(ConfigurationError, match="trajectories"):
        kept(named("abc"), grouping)
    with pytest.raises(ConfigurationError, match="trajectories"):
        sum_by_person(np.zeros((3, 1)), grouping)


def test_a_grouping_is_frozen_and_shows_no_assignment():
    source = np.array([0, 1, 0])
    grouping = Grouping(rows=source, num_rows=2)
    source[0] = 1
    assert grouping.rows.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="read-only"):
        grouping.rows[0] = 1
    assert repr(grouping) == "Grouping(B=3, num_rows=2)"
