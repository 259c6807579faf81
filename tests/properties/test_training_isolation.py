"""One unit moves the clipped sum by at most the clip norm, whatever its trajectories contain.

The checks are run on sound rows, which must pass, and on well-known unsound variants, which must
fail: so the checks can fail. Unit TRAJECTORY first, then unit PERSON.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.training.clip_groups import total_clip
from privfedrl.training.local_update import clip_rows, row_norms
from privfedrl.training.metric_coordinates import ClipQuantile, row_groups
from privfedrl.training.networks import TorchMlp
from privfedrl.training.algorithms import Models, Objective
from privfedrl.training.private_step import ReturnRelease, private_rows
from privfedrl.training.reinforce import Truncation, trajectory_weights
from privfedrl.training.subjects import Grouping, grouped
from privfedrl.training.trajectory_gradients import fused

CLIP, HORIZON = 0.5, 8
NONSENSE = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40]


def policy(kind: str) -> MlpPolicy:
    return MlpPolicy(observation_size=3, hidden=(5, 4), action=kind, action_size=2)


def network(kind: str, dtype: torch.dtype) -> TorchMlp:
    shape = policy(kind)
    vector = np.random.default_rng(0).normal(size=shape.num_parameters) * 0.5
    return TorchMlp(shape, vector, dtype=dtype)


@st.composite
def batches(draw, kind: str, nonsense: bool = True) -> TrajectoryBatch:
    lengths = draw(st.lists(st.integers(0, HORIZON), min_size=1, max_size=6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mask = np.arange(HORIZON) < np.array(lengths)[:, None]
    observations = rng.normal(size=(*mask.shape, 3)).astype(np.float32)
    rewards = (rng.normal(size=mask.shape) * 10.0 ** rng.integers(-3, 6)).astype(np.float32)
    for target in (observations, rewards) if nonsense else ():
        for _ in range(draw(st.integers(0, 3))):
            target.flat[rng.integers(target.size)] = draw(st.sampled_from(NONSENSE))
    actions = rng.integers(0, 2, mask.shape)
    if kind == "gaussian":
        actions = rng.normal(size=(*mask.shape, 2)).astype(np.float32)
    ended = np.array([draw(st.booleans()) for _ in lengths], dtype=np.bool_)
    return TrajectoryBatch(
        observations=observations,
        actions=actions,
        rewards=rewards,
        mask=mask,
        terminated=ended,
        truncated=~ended,
    )


def sound(batch: TrajectoryBatch, dtype: torch.dtype = torch.float64, **options) -> np.ndarray:
    kind = "categorical" if batch.actions.ndim == 2 else "gaussian"
    objective = Objective(gamma=0.97, truncation=Truncation.CONTINUE, entropy_weight=0.01)
    models = Models(network(kind, dtype))
    return private_rows(models, batch, objective, clip_norm=CLIP, **options).rows


def without(batch: TrajectoryBatch, index: int) -> TrajectoryBatch:
    """The same batch with trajectory ``index`` absent; the public shape stays."""
    mask = batch.mask.copy()
    mask[index] = False
    return replace(batch, mask=mask)


def alone(batch: TrajectoryBatch, index: int) -> TrajectoryBatch:
    fields = ("observations", "actions", "rewards", "mask", "terminated", "truncated")
    return replace(batch, **{name: getattr(batch, name)[index : index + 1] for name in fields})


def is_isolated(rows_of, batch: TrajectoryBatch) -> bool:
    """Every row is within the clip norm, equals the one computed alone, and removal moves <= C."""
    rows = rows_of(batch)
    if (row_norms(rows) > CLIP).any():
        return False
    for i in range(len(rows)):
        if np.abs(rows[i] - rows_of(alone(batch, i))[0]).max() > 1e-6:
            return False
        moved = rows.sum(axis=0) - rows_of(without(batch, i)).sum(axis=0)
        if row_norms(moved[None])[0] > CLIP * (1 + 1e-9):
            return False
    return True


def unsound(weights_of):
    def rows_of(batch: TrajectoryBatch) -> np.ndarray:
        weights = np.where(batch.mask, weights_of(batch), 0.0).astype(np.float32)
        return clip_rows(
            fused(network("categorical", torch.float64), batch, weights).numpy(), CLIP
        )[0]

    return rows_of


def batch_normalised(batch: TrajectoryBatch) -> np.ndarray:
    """Advantages standardised over the whole batch, as in most PPO code."""
    values = np.where(batch.mask, batch.rewards, 0.0).astype(np.float64)
    chosen = values[batch.mask]
    return (values - chosen.mean()) / (chosen.std() + 1e-8) if chosen.size else values


def batch_mean_baseline(batch: TrajectoryBatch) -> np.ndarray:
    """Return minus the mean return of the batch, the textbook REINFORCE baseline."""
    returns = batch.returns / np.sqrt(np.maximum(batch.lengths, 1))
    present = batch.mask.any(axis=1)
    return np.repeat((returns - returns[present].mean())[:, None], HORIZON, axis=1)


def telling_batch() -> TrajectoryBatch:
    rng = np.random.default_rng(3)
    shape = (16, HORIZON)
    rewards = rng.normal(size=shape).astype(np.float32)
    rewards[0] = 500.0  # one unusual patient
    return TrajectoryBatch(
        observations=rng.normal(size=(*shape, 3)).astype(np.float32),
        actions=rng.integers(0, 2, shape),
        rewards=rewards,
        mask=np.ones(shape, dtype=np.bool_),
        terminated=np.zeros(16, dtype=np.bool_),
        truncated=np.ones(16, dtype=np.bool_),
    )


@settings(max_examples=60, deadline=None)
@given(batch=st.one_of(batches("categorical"), batches("gaussian")))
def test_a_trajectory_moves_the_sum_by_at_most_the_clip_norm(batch):
    assert is_isolated(sound, batch)


def test_the_sound_rows_pass_on_the_batch_that_catches_the_unsound_ones():
    assert is_isolated(sound, telling_batch())


def test_batch_normalised_advantages_fail_the_isolation_check():
    assert not is_isolated(unsound(batch_normalised), telling_batch())


def test_a_batch_mean_baseline_fails_the_isolation_check():
    assert not is_isolated(unsound(batch_mean_baseline), telling_batch())


def test_the_unsound_variants_move_the_sum_by_several_clip_norms():
    batch = telling_batch()
    for variant in (batch_normalised, batch_mean_baseline):
        rows_of = unsound(variant)
        moved = rows_of(batch).sum(axis=0) - rows_of(without(batch, 0)).sum(axis=0)
        assert np.linalg.norm(moved) > 2 * CLIP


@settings(max_examples=60, deadline=None)
@given(batch=st.one_of(batches("categorical"), batches("gaussian")), data=st.data())
def test_removing_a_trajectory_changes_no_bit_of_the_other_rows(batch, data):
    """In float32 too: sensitivity is exact, not up to rounding that later stages could amplify."""
    index = data.draw(st.integers(0, batch.num_trajectories - 1))
    before, after = sound(batch, torch.float32), sound(without(batch, index), torch.float32)
    others = np.arange(batch.num_trajectories) != index
    assert before[others].tobytes() == after[others].tobytes()
    assert not after[index].any()


@settings(max_examples=40, deadline=None)
@given(batch=batches("categorical"), weight=st.floats(0.01, 3.0))
def test_a_released_return_stays_within_the_joint_bound(batch, weight):
    release = ReturnRelease(low=-5.0, high=20.0, weight=weight)
    rows = sound(batch, return_release=release)
    assert (row_norms(rows) <= release.total_clip(CLIP)).all()
    assert (np.abs(rows[:, -1]) <= weight * CLIP * (1 + 1e-12)).all()
    assert (row_norms(rows[:, :-1]) <= CLIP).all()
    assert not rows[~batch.mask.any(axis=1)].any()


@settings(max_examples=40, deadline=None)
@given(batch=batches("categorical", nonsense=False), data=st.data())
def test_weights_of_a_trajectory_do_not_depend_on_the_others(batch, data):
    index = data.draw(st.integers(0, batch.num_trajectories - 1))
    together = trajectory_weights(batch, gamma=0.9)[index]
    assert np.array_equal(together, trajectory_weights(alone(batch, index), gamma=0.9)[0])
    assert not together[~batch.mask[index]].any()


PERSONS, TRAJECTORIES_EACH = 3, 2
RELEASE = ReturnRelease(low=-5.0, high=20.0, weight=0.7, spread=True)
QUANTILE = ClipQuantile(quantile=0.5, learning_rate=0.2, low=1e-6, high=1e6, weight=0.4)
JOINT = total_clip(row_groups(1, clip_norm=CLIP, return_release=RELEASE, clip_quantile=QUANTILE))


@st.composite
def named_batches(draw) -> TrajectoryBatch:
    batch = draw(st.one_of(batches("categorical"), batches("gaussian")))
    count = batch.num_trajectories
    names = draw(st.lists(st.sampled_from("abcde"), min_size=count, max_size=count))
    return replace(batch, subjects=tuple(names))


def grouping_of(batch: TrajectoryBatch, admitted: frozenset[str] | None = None) -> Grouping:
    return grouped(
        batch,
        max_trajectories=TRAJECTORIES_EACH,
        max_subjects=PERSONS,
        admitted=admitted,
    )


def sound_persons(
    batch: TrajectoryBatch, current_clip: float | None = None, dtype: torch.dtype = torch.float64
) -> np.ndarray:
    """All metrics on, so that the joint bound is what is checked."""
    return sound(
        batch,
        dtype,
        grouping=grouping_of(batch),
        return_release=RELEASE,
        clip_quantile=QUANTILE,
        current_clip=current_clip,
    )


def clip_each_then_sum(batch: TrajectoryBatch) -> np.ndarray:
    """The tempting wrong order: every trajectory within C, so a person with two moves 2C."""
    rows = np.zeros((PERSONS, network("categorical", torch.float64).num_parameters))
    clipped = sound(batch)
    for index, row in enumerate(grouping_of(batch).rows):
        if row >= 0:
            rows[row] += clipped[index]
    return rows


def clip_in_order_of_data(batch: TrajectoryBatch) -> np.ndarray:
    """Persons without a step give up their place: who counts then depends on what others hold."""
    present = frozenset(
        name for name, there in zip(batch.subjects, batch.mask.any(axis=1), strict=True) if there
    )
    return sound(batch, grouping=grouping_of(batch, present))


def without_person(batch: TrajectoryBatch, subject: str) -> TrajectoryBatch:
    """The same batch with everything that ``subject`` did absent; names and shape stay."""
    mask = batch.mask.copy()
    mask[[name == subject for name in batch.subjects]] = False
    return replace(batch, mask=mask)


def is_isolated_by_person(rows_of, batch: TrajectoryBatch, bound: float) -> bool:
    """Removing what any one person did moves the sum by at most ``bound``."""
    total = rows_of(batch).sum(axis=0)
    for subject in sorted(set(batch.subjects)):
        moved = total - rows_of(without_person(batch, subject)).sum(axis=0)
        if row_norms(moved[None])[0] > bound * (1 + 1e-9):
            return False
    return True


def telling_persons(names: str, signs: list[int]) -> TrajectoryBatch:
    """One long gradient, once per trajectory, forwards or backwards."""
    rng = np.random.default_rng(4)
    shape = (len(names), HORIZON)
    rewards = np.tile(rng.normal(size=HORIZON), (len(names), 1)) * np.array(signs)[:, None]
    return TrajectoryBatch(
        observations=np.tile(rng.normal(size=(HORIZON, 3)) * 3, (len(names), 1, 1)).astype("f4"),
        actions=np.tile(rng.integers(0, 2, HORIZON), (len(names), 1)),
        rewards=rewards.astype(np.float32),
        mask=np.ones(shape, dtype=np.bool_),
        terminated=np.ones(len(names), dtype=np.bool_),
        truncated=np.zeros(len(names), dtype=np.bool_),
        subjects=tuple(names),
    )


@settings(max_examples=settings.default.max_examples // 2)
@given(
    batch=named_batches(),
    current_clip=st.none() | st.sampled_from([1e-6, 0.1, CLIP, 3.0, 1e6]),
)
def test_a_person_moves_the_sum_by_at_most_the_total_clip(batch, current_clip):
    rows = sound_persons(batch, current_clip)
    assert rows.shape[0] == PERSONS
    assert (row_norms(rows) <= JOINT).all()
    assert (row_norms(rows[:, :-3]) <= CLIP).all()
    assert is_isolated_by_person(lambda b: sound_persons(b, current_clip), batch, JOINT)


@settings(max_examples=settings.default.max_examples // 2)
@given(batch=named_batches(), data=st.data())
def test_removing_a_person_changes_no_bit_of_the_other_rows(batch, data):
    subject = data.draw(st.sampled_from(batch.subjects))
    before = sound_persons(batch, 0.1, torch.float32)
    after = sound_persons(without_person(batch, subject), 0.1, torch.float32)
    own = {
        row
        for row, name in zip(grouping_of(batch).rows, batch.subjects, strict=True)
        if name == subject
    }
    others = [row not in own for row in range(PERSONS)]
    assert before[others].tobytes() == after[others].tobytes()
    assert not after[np.logical_not(others)].any()


@settings(max_examples=settings.default.max_examples // 2)
@given(batch=named_batches(), seed=st.integers(0, 2**32 - 1))
def test_what_dropped_trajectories_contain_changes_no_bit(batch, seed):
    """Nonsense in surplus trajectories, in those of surplus persons and of those not admitted."""
    admitted = frozenset("abc")
    grouping = grouping_of(batch, admitted)
    dropped = grouping.rows < 0
    rng = np.random.default_rng(seed)
    observations, rewards = batch.observations.copy(), batch.rewards.copy()
    for target in (observations, rewards):
        target[dropped] = rng.choice(NONSENSE, size=target[dropped].shape)
    mask = np.where(dropped[:, None], rng.random(batch.mask.shape) < 0.5, batch.mask)
    other = replace(batch, observations=observations, rewards=rewards, mask=mask)
    options = {"grouping": grouping, "return_release": RELEASE, "clip_quantile": QUANTILE}
    before = sound(batch, torch.float32, **options)
    assert before.tobytes() == sound(other, torch.float32, **options).tobytes()


def test_two_trajectories_of_one_person_do_not_move_the_sum_by_two_clips():
    batch = telling_persons("aab", [1, 1, -1])
    moved = (sound_persons(batch) - sound_persons(without_person(batch, "a"))).sum(axis=0)
    assert np.linalg.norm(moved[:-3]) == pytest.approx(CLIP)
    assert is_isolated_by_person(sound_persons, batch, JOINT)


def test_clipping_each_trajectory_then_summing_fails_the_person_check():
    batch = telling_persons("aab", [1, 1, -1])
    moved = clip_each_then_sum(batch) - clip_each_then_sum(without_person(batch, "a"))
    assert np.linalg.norm(moved.sum(axis=0)) == pytest.approx(2 * CLIP)
    assert not is_isolated_by_person(clip_each_then_sum, batch, CLIP)


def test_giving_the_place_of_an_absent_person_to_another_fails_the_person_check():
    batch = telling_persons("aabcd", [1, 1, 1, 1, -1])  # d would move up, and pulls the other way
    assert is_isolated_by_person(lambda b: sound(b, grouping=grouping_of(b)), batch, CLIP)
    assert not is_isolated_by_person(clip_in_order_of_data, batch, CLIP)
