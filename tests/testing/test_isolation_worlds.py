"""Pairs of worlds differ in one unit of the first round and in nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from privfedrl.errors import ConfigurationError
from privfedrl.privacy.units import Adjacency, Unit
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.testing.isolation_batches import BATCHES, draw_batch
from privfedrl.testing.isolation_watch import snapshot
from privfedrl.testing.isolation_worlds import EFFORTS, pairs

KINDS = ("categorical", "gaussian")
ARRAYS = ("observations", "actions", "rewards", "mask", "terminated", "truncated")


def policy(action: str = "categorical") -> MlpPolicy:
    return MlpPolicy(observation_size=3, hidden=(4,), action=action, action_size=2)


def all_pairs(unit: Unit, effort: str = "default", **options):
    shape = policy(options.pop("action", "categorical"))
    return list(pairs(shape, unit=unit, dimension=5, effort=effort, **options))


def changed_rows(before, after) -> set[int]:
    rows: set[int] = set()
    for name in ARRAYS:
        one, other = getattr(before, name), getattr(after, name)
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        rows |= {i for i in range(len(one)) if one[i].tobytes() != other[i].tobytes()}
    return rows


@pytest.mark.parametrize("action", KINDS)
@pytest.mark.parametrize("unit", [Unit.TRAJECTORY, Unit.PERSON])
def test_one_unit_of_the_first_round_differs_and_nothing_else(unit, action):
    for pair in all_pairs(unit, action=action, collects=2):
        (one, later), (other, also) = pair.before.rounds, pair.after.rounds
        assert later is also
        assert np.array_equal(one.parameters, other.parameters)
        assert np.array_equal(one.heard, other.heard)
        assert snapshot(one.batches[1:]) == snapshot(other.batches[1:])
        before, after = one.batches[0], other.batches[0]
        assert (before.batch_id, before.subjects) == (after.batch_id, after.subjects)
        rows = changed_rows(before, after)
        limit = 1 if unit is Unit.TRAJECTORY else before.num_trajectories
        assert len(rows) <= limit
        assert len({before.subjects[row] for row in rows}) <= 1
        if pair.adjacency is Adjacency.ADD_REMOVE:
            assert rows
            assert not after.mask[list(rows)].any()


@pytest.mark.parametrize("effort", sorted(EFFORTS))
def test_every_batch_loses_its_remarkable_unit_and_every_unit_is_removed_from_some(effort):
    found = {pair.name for pair in all_pairs(Unit.TRAJECTORY, effort)}
    for kind in set(BATCHES) - {"nobody"}:
        assert f"{kind}: trajectory 0 absent" in found
    for index in range(EFFORTS[effort].trajectories):
        assert any(f"trajectory {index} absent" in name for name in found)
    persons = {pair.name for pair in all_pairs(Unit.PERSON, effort)}
    for person in range(3):
        assert any(f"person r0-{person} absent" in name for name in persons)


def test_thorough_means_every_unit_of_every_batch_absent_and_replaced():
    found = {pair.name.split(" by one of")[0] for pair in all_pairs(Unit.TRAJECTORY, "thorough")}
    for index in range(16):
        assert {f"ordinary: trajectory {index} {what}" for what in ("absent", "replaced")} <= found


def test_an_agent_is_replaced_in_both_rounds_under_the_same_public_values():
    for pair in all_pairs(Unit.AGENT):
        assert pair.adjacency is Adjacency.REPLACE_ONE
        for one, other in zip(pair.before.rounds, pair.after.rounds, strict=True):
            assert np.array_equal(one.parameters, other.parameters)
            assert [b.batch_id for b in one.batches] == [b.batch_id for b in other.batches]
            assert changed_rows(one.batches[0], other.batches[0])


def test_batches_are_fresh_in_every_call_and_round():
    pair = all_pairs(Unit.TRAJECTORY, collects=3)[0]
    ids = [batch.batch_id for part in pair.before.rounds for batch in part.batches]
    assert len(set(ids)) == len(ids) == 6


@pytest.mark.parametrize("unit", list(Unit))
def test_the_same_arguments_give_the_same_worlds(unit):
    one, other = (all_pairs(unit, "quick") for _ in range(2))
    assert snapshot(one) == snapshot(other)
    assert snapshot(all_pairs(unit, "quick", seed=1)) != snapshot(one)


def test_more_effort_looks_at_more_and_larger_worlds():
    counts = [
        len(all_pairs(Unit.TRAJECTORY, effort)) for effort in ("quick", "default", "thorough")
    ]
    assert counts == sorted(counts)
    assert len(set(counts)) == 3


def test_an_unknown_effort_is_refused():
    with pytest.raises(ConfigurationError, match="effort must be one of quick, default, thorough"):
        all_pairs(Unit.AGENT, "heroic")


@pytest.mark.parametrize("action", KINDS)
@pytest.mark.parametrize("kind", sorted(BATCHES))
def test_steps_past_the_end_of_a_trajectory_are_zero(kind, action):
    batch = draw_batch(policy(action), trajectories=5, steps=7, seed=3, kind=kind)
    for name in ("observations", "actions", "rewards"):
        assert not getattr(batch, name)[~batch.mask].any()
    assert batch.mask.shape == (5, 7)


def test_the_batches_are_what_their_names_say():
    drawn = {k: draw_batch(policy(), trajectories=6, steps=8, seed=0, kind=k) for k in BATCHES}
    present = {k: int(batch.mask.any(axis=1).sum()) for k, batch in drawn.items()}
    assert (present["nobody"], present["one alone"], present["two alone"]) == (0, 1, 2)
    assert set(drawn["long and short"].lengths) == {0, 1, 8}
    assert len({row.tobytes() for row in drawn["duplicates"].observations}) == 1
    assert not drawn["all zero"].rewards.any()
    assert np.isnan(drawn["not numbers"].rewards[0]).all()
    against = drawn["one against all"].rewards
    assert np.array_equal(against[0], -against[1])
    returns = drawn["one dominates"].returns
    assert abs(returns[0]) > 10 * np.abs(returns[1:]).sum()
    assert np.sign(returns[0]) == -np.sign(returns[1:].sum())
