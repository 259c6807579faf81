"""What a trainer hands on: published policies, targets, guides and shaped rewards arrive."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from privfedrl.privacy.units import Unit
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.training import DqnSettings, LocalTrainer, Objective, PpoSettings, TrainerSettings
from privfedrl.training.algorithms import Models
from privfedrl.training.dqn_learner import DqnLearner
from privfedrl.training.networks import TorchMlp
from privfedrl.training.ppo_learner import PpoLearner
from privfedrl.training.private_step import private_rows, unit_rows
from privfedrl.training.reinforce import Truncation

PLAIN = MlpPolicy(observation_size=5, hidden=(4,), action="categorical", action_size=3)
CRITIC = replace(PLAIN, critic_hidden=(3,))
VALUES = replace(PLAIN, action="q-values")
PPO = PpoSettings(
    gamma=0.9,
    gae_lambda=0.9,
    epochs=2,
    minibatch_size=8,
    learning_rate=0.01,
    entropy_weight=0.0,
    reset_optimiser=True,
)
DQN = DqnSettings(
    gamma=0.9,
    learning_rate=0.01,
    batch_size=8,
    updates_per_step=0.5,
    replay_capacity=100,
    target_interval=5,
    reset_optimiser=True,
)


def parameters(policy: MlpPolicy, seed: int) -> np.ndarray:
    return 0.5 * np.random.default_rng(seed).normal(size=policy.num_parameters)


ROWS = {
    "ppo": (CRITIC, Objective(algorithm="ppo", gamma=0.9, guidance_weight=0.2)),
    "dqn": (VALUES, Objective(algorithm="dqn", gamma=0.9)),
}


@pytest.mark.parametrize("algorithm", ROWS)
def test_rows_are_those_of_the_published_policies_that_are_named(algorithm, make_batch):
    policy, objective = ROWS[algorithm]
    batch = make_batch([9, 4, 7], kind=policy.action)
    theta, behaviour, target = (parameters(policy, seed) for seed in (0, 1, 2))
    trainer = LocalTrainer(policy, TrainerSettings(objective=objective, clip_norm=1.0, uses=1))
    found = trainer.local_update(theta, batch, behaviour=behaviour, target=target)
    networks = [TorchMlp(policy, each) for each in (theta, behaviour, target)]
    expected = private_rows(
        Models(*networks),
        batch,
        objective,
        clip_norm=1.0,
        critic_clip_norm=None if algorithm == "dqn" else 1.0,
    )
    np.testing.assert_array_equal(found.rows, expected.rows)
    # each of them matters here
    needed = 1 if algorithm == "ppo" else 2
    without = [*networks[:needed], None, *networks[needed + 1 :]]
    other = private_rows(
        Models(*without),
        batch,
        objective,
        clip_norm=1.0,
        critic_clip_norm=None if algorithm == "dqn" else 1.0,
    )
    assert not np.allclose(found.rows, other.rows)


def agent(objective: Objective, **more: object) -> TrainerSettings:
    return TrainerSettings(objective=objective, clip_norm=1e6, unit=Unit.AGENT, **more)


def test_later_local_steps_of_reinforce_are_guided_and_weighed_by_the_published_policy(make_batch):
    objective = Objective(gamma=0.9, guidance_weight=0.7, behaviour_mixture=0.4)
    published = parameters(PLAIN, 0)
    batches = [make_batch([9, 4, 7], seed=seed) for seed in (1, 2)]
    trainer = LocalTrainer(PLAIN, agent(objective, local_steps=2, learning_rate=0.3))
    left = iter(batches)
    found = trainer.local_steps(published, lambda _theta: next(left)).rows[0]

    theta = published.copy()
    guide = TorchMlp(PLAIN, published)
    for batch in batches:
        rows = unit_rows(Models(TorchMlp(PLAIN, theta), guide), batch, objective).gradients
        theta = theta + 0.3 * rows.astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(found, theta - published, rtol=1e-5, atol=1e-7)
    # the second step alone tells the difference
    alone = published.copy()
    for batch in batches:
        rows = unit_rows(Models(TorchMlp(PLAIN, alone)), batch, objective).gradients
        alone = alone + 0.3 * rows.astype(np.float64).mean(axis=0)
    assert not np.allclose(theta, alone, atol=1e-4)


LEARNERS = {
    "ppo": (CRITIC, PpoLearner, replace(PPO, guidance_weight=0.5, behaviour_mixture=0.3)),
    "dqn": (VALUES, DqnLearner, DQN),
}


@pytest.mark.parametrize("algorithm", LEARNERS)
@pytest.mark.parametrize("truncation", [Truncation.NONE, Truncation.BOOTSTRAP])
def test_learners_get_shaped_rewards_and_the_published_policy(algorithm, truncation, make_batch):
    policy, kind, settings = LEARNERS[algorithm]
    objective = Objective(
        algorithm=algorithm,
        gamma=0.9,
        truncation=truncation,
        reward_low=-1.0,
        reward_high=0.5,
        step_cost=0.25,
    )
    published = parameters(policy, 0)
    batches = [make_batch([9, 4, 7], kind=policy.action, seed=seed) for seed in (1, 2)]
    batches = [replace(one, rewards=5.0 * one.rewards) for one in batches]
    trainer = LocalTrainer(
        policy,
        agent(objective, local_steps=2, learner=settings),
        rng=np.random.default_rng(3),
    )
    left = iter(batches)
    found = trainer.local_steps(published, lambda _theta: next(left)).rows[0]

    learner = kind(policy, settings, rng=np.random.default_rng(3))
    theta = published.copy()
    for batch in batches:
        paid = np.where(batch.mask, np.clip(batch.rewards, -1.0, 0.5) - 0.25, batch.rewards)
        ended = batch.terminated | (truncation is Truncation.NONE)
        shaped = replace(batch, rewards=paid.astype(np.float32), terminated=ended)
        theta = learner.improve(theta, shaped, global_parameters=published)
    np.testing.assert_allclose(found, theta - published, rtol=1e-6, atol=1e-9)
    raw = kind(policy, settings, rng=np.random.default_rng(3))
    assert not np.allclose(raw.improve(published, batches[0]), learner.improve(published, shaped))
