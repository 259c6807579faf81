"""One unit moves the clipped sum by at most the clip norm, whatever its trajectories contain.

The checks are run on sound rows, which must pass, and on well-known unsound variants, which must
fail: so the checks can fail. Unit TRAJECTORY first, then unit PERSON, both with REINFORCE; then
every algorithm, on the integers that are summed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.encoding import FixedPoint
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.privacy.units import Adjacency, Unit
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.training import algorithms
from privfedrl.training.algorithms import ALGORITHMS, Models, Objective
from privfedrl.training.clip_groups import total_clip
from privfedrl.training.local_update import clip_rows, row_norms
from privfedrl.training.metric_coordinates import ClipQuantile, row_groups
from privfedrl.training.networks import TorchMlp
from privfedrl.training.private_step import ReturnRelease, private_rows
from privfedrl.training.reinforce import Truncation, trajectory_weights
from privfedrl.training.subjects import Grouping, grouped
from privfedrl.training.trajectory_gradients import fused

CLIP, HORIZON = 0.5, 8
ARRAYS = ("observations", "actions", "rewards", "mask", "terminated", "truncated")
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


def without(batch: TrajectoryBatch, rows: int | list[int]) -> TrajectoryBatch:
    """The same batch with trajectories ``rows`` absent; the public shape stays."""
    mask = batch.mask.copy()
    mask[rows] = False
    return replace(batch, mask=mask)


def alone(batch: TrajectoryBatch, index: int) -> TrajectoryBatch:
    return replace(batch, **{name: getattr(batch, name)[index : index + 1] for name in ARRAYS})


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
    return without(batch, [k for k, name in enumerate(batch.subjects) if name == subject])


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


# --- every algorithm -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """One algorithm in one of the ways in which a release uses it."""

    objective: Objective
    action: str = "categorical"
    critic: tuple[int, ...] | None = None
    behaviour: bool = False
    target: bool = False
    options: dict = field(default_factory=dict)

    def network(self, seed: int) -> TorchMlp:
        shape = MlpPolicy(
            observation_size=3,
            hidden=(5,),
            action=self.action,
            action_size=2,
            critic_hidden=self.critic,
        )
        vector = np.random.default_rng(seed).normal(size=shape.num_parameters) * 0.5
        return TorchMlp(shape, vector)

    def rows(self, batch: TrajectoryBatch, person: bool) -> np.ndarray:
        grouping = grouping_of(batch) if person else None
        models = Models(
            self.network(0),
            self.network(1) if self.behaviour else None,
            self.network(2) if self.target else None,
        )
        critic = None if self.critic is None else {"critic_clip_norm": 0.2}
        options = METRICS | self.options | (critic or {})
        return private_rows(
            models, batch, self.objective, clip_norm=CLIP, grouping=grouping, **options
        ).rows


def objective(algorithm: str, **changes) -> Objective:
    return Objective(algorithm=algorithm, **({"gamma": 0.97, "gae_lambda": 0.9} | changes))


BOOTSTRAP, LATER = Truncation.BOOTSTRAP, {"guidance_weight": 0.5, "clip_range": 0.05}
METRICS = {"return_release": RELEASE, "clip_quantile": QUANTILE}
ARMS = {
    "reinforce": Arm(objective("reinforce", entropy_weight=0.01)),
    "reinforce, gaussian": Arm(
        objective("reinforce", truncation=Truncation.CONTINUE), action="gaussian"
    ),
    "a2c": Arm(objective("a2c", truncation=BOOTSTRAP, entropy_weight=0.1), critic=(4,)),
    "a2c, gaussian": Arm(objective("a2c", value_scale=10.0), action="gaussian", critic=()),
    "ppo": Arm(objective("ppo", truncation=BOOTSTRAP), critic=(4,), options={"current_clip": 0.1}),
    "ppo, later epoch": Arm(objective("ppo", **LATER), critic=(4,), behaviour=True),
    "ppo, later epoch, gaussian": Arm(
        objective("ppo", truncation=BOOTSTRAP, **LATER),
        action="gaussian",
        critic=(4,),
        behaviour=True,
    ),
    "dqn": Arm(objective("dqn"), action="q-values", target=True),
    "dqn, not double": Arm(
        objective("dqn", double=False, truncation=BOOTSTRAP, value_scale=0.1), action="q-values"
    ),
}
UNITS = {"trajectory": False, "person": True}
# 9 arms and 2 units share what one property may cost
EXAMPLES = max(settings.default.max_examples // 10, 1)


@st.composite
def arm_batches(draw, arm: Arm) -> TrajectoryBatch:
    """Hostile rewards and observations, and actions that nobody could have taken."""
    batch = draw(batches("gaussian" if arm.action == "gaussian" else "categorical"))
    actions = batch.actions.copy()
    bad = [np.nan, np.inf, 1e30] if arm.action == "gaussian" else [-1, 2, 2**62]
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, actions.size - 1))
        actions.flat[place] = draw(st.sampled_from(bad))
    names = draw(st.lists(st.sampled_from("abcde"), min_size=len(actions), max_size=len(actions)))
    return replace(batch, actions=actions, subjects=tuple(names))


def codec(arm: Arm, width: int) -> FixedPoint:
    policy = arm.network(0).policy
    critic = (policy.num_parameters - policy.actor_parameters, 0.2)
    groups = row_groups(policy.actor_parameters, clip_norm=CLIP, critic=critic, **METRICS)
    return FixedPoint(
        ring_bits=64,
        dimension=width,
        resolution=1024,
        clip_norm=total_clip(groups),
        max_units=64,
        noise_variance=0,
    )


def integer_sum(encoder: FixedPoint, rows: np.ndarray) -> np.ndarray:
    """The integers of all rows; equal rows in equal places are rounded by equal random numbers."""
    total = np.zeros(encoder.padded, dtype=np.int64)
    for index, row in enumerate(rows):
        entropy = DeterministicEntropy(index.to_bytes(2, "big") + row.tobytes())
        total += encoder.encode_units(row[None], rotation_seed=bytes(32), entropy=entropy)
    return total


def trajectories_of_unit(batch: TrajectoryBatch, person: bool, index: int) -> list[int]:
    """All trajectories of the unit that has trajectory ``index``."""
    same = [name == batch.subjects[index] for name in batch.subjects]
    return [int(k) for k in np.flatnonzero(same)] if person else [index]


def rows_of_unit(batch: TrajectoryBatch, person: bool, mine: list[int]) -> np.ndarray:
    """bool [rows of the update], those that its trajectories go to."""
    count = PERSONS if person else batch.num_trajectories
    return np.isin(np.arange(count), grouping_of(batch).rows[mine] if person else mine)


def replaced(batch: TrajectoryBatch, rows: list[int], donor: TrajectoryBatch) -> TrajectoryBatch:
    """``rows`` with what the first trajectory of ``donor`` holds; the names stay."""
    changed = {name: getattr(batch, name).copy() for name in ARRAYS}
    for name, array in changed.items():
        array[rows] = getattr(donor, name)[0]
    return replace(batch, **changed)


def is_isolated_in_integers(rows_of, encoder, worlds, own, unit, adjacency) -> bool:
    """No bit of another row moves, and the integer sum by no more than is declared."""
    before, after = (rows_of(world) for world in worlds)
    if before[~own].tobytes() != after[~own].tobytes():
        return False
    moved = integer_sum(encoder, before) - integer_sum(encoder, after)
    bound = encoder.sensitivity(unit).for_adjacency(adjacency)
    return bool((moved * moved).sum() <= bound.l2_squared and np.abs(moved).sum() <= bound.l1)


def test_every_algorithm_has_an_arm():
    assert {arm.objective.algorithm for arm in ARMS.values()} == set(ALGORITHMS)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", ARMS)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_a_unit_that_is_absent_or_another_moves_the_integers_by_what_is_declared(name, unit, data):
    arm, person = ARMS[name], UNITS[unit]
    batch = data.draw(arm_batches(arm))
    index = data.draw(st.integers(0, batch.num_trajectories - 1))
    mine = trajectories_of_unit(batch, person, index)
    own = rows_of_unit(batch, person, mine)
    kind = Unit.PERSON if person else Unit.TRAJECTORY

    encoder = codec(arm, arm.rows(batch, person).shape[1])
    rows_of = partial(arm.rows, person=person)
    gone = without(batch, mine)
    other = replaced(batch, mine, data.draw(arm_batches(arm)))
    remove, swap = Adjacency.ADD_REMOVE, Adjacency.REPLACE_ONE
    assert is_isolated_in_integers(rows_of, encoder, (batch, gone), own, kind, remove)
    assert is_isolated_in_integers(rows_of, encoder, (batch, other), own, kind, swap)
    assert not rows_of(gone)[own].any()


@pytest.mark.parametrize("name", ARMS)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_an_impossible_action_zeroes_the_policys_part_of_its_own_row(name, data):
    arm = ARMS[name]
    kind = "gaussian" if arm.action == "gaussian" else "categorical"
    batch = data.draw(batches(kind, nonsense=False).filter(lambda b: b.mask.any()))
    row, step = data.draw(st.sampled_from(np.argwhere(batch.mask).tolist()))
    actions = batch.actions.copy()
    actions[row, step] = np.nan if kind == "gaussian" else -1
    before, after = arm.rows(batch, False), arm.rows(replace(batch, actions=actions), False)
    spoilt = np.arange(len(before)) == row
    assert before[~spoilt].tobytes() == after[~spoilt].tobytes()
    assert not after[spoilt, : arm.network(0).policy.actor_parameters].any()


@pytest.mark.parametrize("name", ["a2c", "ppo, later epoch"])
def test_advantages_normalised_over_the_batch_fail_the_check_on_integers(name, monkeypatch):
    arm, batch = ARMS[name], replace(telling_batch(), subjects=tuple("abcdefghijklmnop"))
    exact = algorithms.generalised_advantages
    own = np.arange(16) == 0

    def isolated() -> bool:
        return is_isolated_in_integers(
            partial(arm.rows, person=False),
            codec(arm, arm.rows(batch, False).shape[1]),
            (batch, without(batch, 0)),
            own,
            Unit.TRAJECTORY,
            Adjacency.ADD_REMOVE,
        )

    def normalised(*args, **kwargs):
        advantages, known = exact(*args, **kwargs)
        return (advantages - advantages[known].mean()) / advantages[known].std(), known

    assert isolated()
    monkeypatch.setattr(algorithms, "generalised_advantages", normalised)
    assert not isolated()
