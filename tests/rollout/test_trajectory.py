"""TrajectoryBatch: shapes agree; private summaries read the mask."""

from __future__ import annotations

import numpy as np
import pytest

from privfedrl.errors import EnvironmentFault
from privfedrl.rollout.trajectory import TrajectoryBatch


def fields():
    return {
        "observations": np.zeros((2, 3, 4), np.float32),
        "actions": np.zeros((2, 3), np.int64),
        "rewards": np.float32([[1, 2, 4], [8, 16, 32]]),
        "mask": np.array([[True, True, False], [True, True, True]]),
        "terminated": np.array([True, False]),
        "truncated": np.array([False, True]),
    }


def test_lengths_and_returns_count_masked_steps_only():
    batch = TrajectoryBatch(**fields())
    assert batch.num_trajectories == 2
    assert batch.lengths.tolist() == [2, 3]
    assert batch.returns.tolist() == [3.0, 56.0]


def test_every_batch_has_an_identity_of_its_own():
    one, two = TrajectoryBatch(**fields()), TrajectoryBatch(**fields())
    assert len(one.batch_id) == 16
    assert one.batch_id != two.batch_id


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "terminated", "truncated"])
def test_a_field_of_another_shape_is_refused(name):
    values = fields()
    values[name] = values[name][:1]
    with pytest.raises(EnvironmentFault, match=name):
        TrajectoryBatch(**values)


def test_subjects_stay_with_their_rows_when_a_batch_is_padded():
    batch = TrajectoryBatch(**fields(), subjects=("ann", "bob"))
    assert batch.padded(5).subjects == ("ann", "bob")
    assert TrajectoryBatch(**fields()).padded(5).subjects is None


@pytest.mark.parametrize(
    "subjects",
    [
        ("ann",),
        ("ann", "bob", "carl"),
        ["ann", "bob"],
        "ab",
        ("ann", ""),
        ("ann", "b" * 201),
        ("ann", "bob\n"),
        ("ann", "\ud800"),
        ("ann", None),
        ("ann", b"bob"),
    ],
)
def test_a_subject_that_is_no_identifier_is_refused_without_naming_anybody(subjects):
    with pytest.raises(EnvironmentFault, match="subject") as caught:
        TrajectoryBatch(**fields(), subjects=subjects)
    assert "ann" not in str(caught.value)
    assert "bob" not in str(caught.value)


def test_repr_shows_the_public_number_of_trajectories_and_nothing_else():
    batch = TrajectoryBatch(**fields(), subjects=("ann", "bob"))
    assert repr(batch) == "TrajectoryBatch(B=2)"


def test_padding_adds_masked_zeros_and_never_cuts():
    batch = TrajectoryBatch(**fields())
    assert batch.padded(3) is batch
    longer = batch.padded(5)
    assert longer.observations.shape == (2, 5, 4)
    assert longer.batch_id == batch.batch_id
    assert longer.returns.tolist() == batch.returns.tolist()
    assert not longer.mask[:, 3:].any()
    with pytest.raises(EnvironmentFault, match="at most 2 steps"):
        batch.padded(2)
