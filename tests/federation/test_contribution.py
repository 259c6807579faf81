"""What one agent adds to the sum depends on its units one by one, bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from privfedrl.envs import EnvSpec, make_vector_env
from privfedrl.federation.contribution import contribute, local_trainer, published_model
from privfedrl.federation.setup import RoundSetup, round_setup
from privfedrl.plan import Plan
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.privacy import DistributedSkellam
from privfedrl.rollout import TrajectoryBatch, collect
from privfedrl.training import LocalTrainer, LocalUpdate

PLAN = """
name = "one-agent"
[fleet]
environment = "CartPole-v1"
agents = 5
trajectories = 12
horizon = 90
[policy]
observations = 4
actions = 2
hidden = [16]
[federation]
rounds = 2
[privacy]
unit = "trajectory"
max_colluding = 1
epsilon = 4.0
[protection]
min_clients = 3
"""


@pytest.fixture
def setup() -> RoundSetup:
    return round_setup(Plan.from_text(PLAN))


@pytest.fixture
def batch(setup: RoundSetup) -> TrajectoryBatch:
    rng = np.random.default_rng(3)
    env = make_vector_env(EnvSpec("CartPole-v1"), setup.plan.fleet.trajectories)
    parameters = np.zeros(setup.policy.num_parameters)
    return collect(setup.policy, parameters, env, horizon=setup.plan.fleet.horizon, rng=rng)


def without(batch: TrajectoryBatch, index: int) -> TrajectoryBatch:
    """The world in which trajectory ``index`` never happened, as a rollout would return it."""
    mask = batch.mask.copy()
    mask[index] = False
    steps = int(mask.any(axis=0).sum())
    gone = ~mask[..., None]
    return TrajectoryBatch(
        observations=np.where(gone, 0, batch.observations)[:, :steps].astype(np.float32),
        actions=np.where(mask, batch.actions, 0)[:, :steps],
        rewards=np.where(mask, batch.rewards, 0)[:, :steps].astype(np.float32),
        mask=mask[:, :steps],
        terminated=batch.terminated,
        truncated=batch.truncated,
    )


def test_removing_the_longest_trajectory_leaves_every_bit_of_the_other_rows(
    setup: RoundSetup, batch: TrajectoryBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest one sets the width of a rollout's arrays; training must not notice."""
    longest = int(np.argmax(batch.lengths))
    absent = without(batch, longest)
    assert absent.mask.shape[1] < batch.mask.shape[1]
    rows = [_rows_of(setup, world, monkeypatch) for world in (batch, absent)]
    others = [index for index in range(len(rows[0])) if index != longest]
    assert rows[0][others].tobytes() == rows[1][others].tobytes()
    assert not rows[1][longest].any()


@pytest.mark.parametrize("longest", [1, 17, 90])
def test_training_sees_the_public_horizon_however_long_the_trajectories_are(
    setup: RoundSetup, batch: TrajectoryBatch, longest: int
) -> None:
    """Kernels may sum in another order when the shape changes, so the shape must not tell."""
    mask = batch.mask & (np.arange(batch.mask.shape[1]) < longest)
    steps = int(mask.any(axis=0).sum())
    cut = TrajectoryBatch(
        observations=batch.observations[:, :steps],
        actions=batch.actions[:, :steps],
        rewards=batch.rewards[:, :steps],
        mask=mask[:, :steps],
        terminated=batch.terminated,
        truncated=batch.truncated,
    )
    seen: list[tuple[int, ...]] = []

    class Watched(LocalTrainer):
        def local_update(self, parameters: np.ndarray, batch: Any, **options: Any) -> LocalUpdate:
            seen.extend(one.observations.shape[:2] for one in batch)
            return super().local_update(parameters, batch, **options)

    contribute(
        setup,
        Watched(setup.policy, local_trainer(setup).settings),
        published_model(setup, np.zeros(setup.policy.num_parameters)),
        experience=lambda theta, step: cut,
        rotation_seed=bytes(32),
        entropy=DeterministicEntropy(b"shape"),
    )
    assert seen == [(setup.plan.fleet.trajectories, setup.plan.fleet.horizon)]


def _rows_of(
    setup: RoundSetup, batch: TrajectoryBatch, monkeypatch: pytest.MonkeyPatch
) -> np.ndarray:
    seen: list[np.ndarray] = []
    original = type(setup.codec).encode_units

    def spy(codec: object, rows: np.ndarray, **options: object) -> np.ndarray:
        seen.append(np.array(rows))
        return original(codec, rows, **options)  # type: ignore[arg-type]  # an unbound method

    monkeypatch.setattr(type(setup.codec), "encode_units", spy)
    rng = np.random.default_rng(8)
    contribute(
        setup,
        local_trainer(setup),
        published_model(setup, rng.normal(size=setup.policy.num_parameters)),
        experience=lambda theta, step: dataclasses.replace(batch, batch_id=rng.bytes(16)),
        rotation_seed=bytes(32),
        entropy=DeterministicEntropy(b"rows"),
    )
    monkeypatch.setattr(type(setup.codec), "encode_units", original)
    return seen[0]


def test_a_contribution_without_its_noise_share_is_caught(
    setup: RoundSetup, batch: TrajectoryBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vector of an agent with nothing to say is its noise share, of the calibrated variance.

    False-positive rate below 1e-6: the sample variance of 128 coordinates of a distribution close
    to a Gaussian stays within a factor 2.2 of its mean (5 standard deviations are a factor 1.63).
    """

    def nothing(theta: np.ndarray, step: int) -> TrajectoryBatch:
        raise ValueError("the sensor is broken")

    shares = _centred(setup, nothing)
    assert setup.mechanism is not None
    expected = setup.mechanism.share_variance
    assert expected / 2.2 < float(np.mean(shares.astype(float) ** 2)) < 2.2 * expected
    monkeypatch.setattr(
        DistributedSkellam,
        "sample_share",
        lambda self, entropy: np.zeros(self.num_coordinates, int),
    )
    assert not _centred(setup, nothing).any()


def _centred(
    setup: RoundSetup, experience: Callable[[np.ndarray, int], TrajectoryBatch]
) -> np.ndarray:
    contribution = contribute(
        setup,
        local_trainer(setup),
        published_model(setup, np.zeros(setup.policy.num_parameters)),
        experience=experience,
        rotation_seed=bytes(32),
        entropy=DeterministicEntropy(b"noise"),
    )
    assert contribution.fault is not None
    return contribution.vector.view(np.int32).astype(np.int64)


def test_a_trajectory_that_is_too_long_is_cut_and_changes_no_other_row(
    make_plan: Callable[..., Plan],
) -> None:
    setup = round_setup(make_plan())
    horizon, count = setup.plan.fleet.horizon, setup.plan.fleet.trajectories
    rng = np.random.default_rng(11)
    lengths = np.array([5, horizon + 30, 20, 60])[:count]
    mask = np.arange(horizon + 30) < lengths[:, None]
    whole = TrajectoryBatch(
        observations=rng.normal(size=(*mask.shape, 4)).astype(np.float32),
        actions=rng.integers(0, 2, mask.shape),
        rewards=rng.normal(size=mask.shape).astype(np.float32),
        mask=mask,
        terminated=np.ones(count, dtype=np.bool_),
        truncated=np.zeros(count, dtype=np.bool_),
    )
    cut = whole.within(horizon)
    assert list(cut.lengths) == [5, horizon, 20, 60]
    assert list(cut.truncated) == [False, True, False, False]
    assert list(cut.terminated) == [True, False, True, True]
    assert cut.within(horizon) is cut
    short = dataclasses.replace(whole, mask=mask & (np.arange(horizon + 30) < 7)).within(horizon)
    theta = rng.normal(size=setup.policy.num_parameters)
    rows = [
        local_trainer(setup).local_update(theta, batch.padded(horizon)).rows
        for batch in (cut, short)
    ]
    np.testing.assert_array_equal(rows[0][0], rows[1][0])
    found = contribute(
        setup,
        local_trainer(setup),
        published_model(setup, theta),
        experience=lambda x, step: whole,
        rotation_seed=bytes(32),
        entropy=DeterministicEntropy(b"long"),
    )
    assert found.fault is None
