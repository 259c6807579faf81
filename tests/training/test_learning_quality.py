"""Every algorithm finds optima that are known in closed form, with noise and without it.

Each test fixes its seed; how often it would fail for another seed is argued where it is stated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from privfedrl.federation.strategies.server_optimizer import initial_state, server_step
from privfedrl.plan import FederationPlan
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.training.algorithms import ALGORITHMS, Objective
from privfedrl.training.local_trainer import LocalTrainer
from privfedrl.training.networks import TorchMlp
from privfedrl.training.reinforce import Truncation
from privfedrl.training.settings import TrainerSettings

# of the sum, at trajectory epsilon 1 and delta 1e-5 for one use of a trajectory
NOISE_MULTIPLIER = 3.73
CLIP = 1.0


@dataclass(frozen=True)
class Problem:
    """States in a row; what an action pays and where it leads.

    ``step(states, actions, rng)`` -> rewards, next states, ended.
    """

    states: int
    steps: int
    step: Callable


def bandit(states, actions, rng):
    """Two arms, of mean 0 and 1, deviation 1/2; a trajectory is eight pulls."""
    rewards = actions + 0.5 * rng.normal(size=len(actions))
    return rewards, states, np.zeros(len(states), dtype=bool)


def chain(states, actions, rng):
    """Four states: the one action goes on, the other ends; only the very end pays."""
    done = states == 3
    return (done & (actions == 1)).astype(float), np.minimum(states + 1, 3), done | (actions == 0)


BANDIT, CHAIN = Problem(1, 8, bandit), Problem(4, 4, chain)


def rolled(problem, policy, theta, count, rng, exploration) -> TrajectoryBatch:
    bound = policy.bind(theta, exploration=exploration)
    seen = np.zeros((count, problem.steps, problem.states), dtype=np.float32)
    actions = np.zeros((count, problem.steps), dtype=np.int64)
    rewards = np.zeros((count, problem.steps), dtype=np.float32)
    mask = np.zeros((count, problem.steps), dtype=np.bool_)
    states, alive = np.zeros(count, dtype=int), np.ones(count, dtype=bool)
    for t in range(problem.steps):
        now = np.eye(problem.states, dtype=np.float32)[states]
        drawn = policy.draws(rng, 1, count)[0]
        chosen = np.asarray(bound.sample(bound.forward(now), drawn)).astype(np.int64)
        paid, states, ended = problem.step(states, chosen, rng)
        seen[alive, t], actions[alive, t], rewards[alive, t] = now[alive], chosen[alive], paid[alive]
        mask[:, t] = alive
        alive = alive & ~ended
    return TrajectoryBatch(
        observations=seen,
        actions=actions,
        rewards=rewards,
        mask=mask,
        terminated=np.ones(count, dtype=np.bool_),
        truncated=np.zeros(count, dtype=np.bool_),
    )


@dataclass(frozen=True)
class Arm:
    """An algorithm as it is run on these problems: K epochs, or a window of K batches."""

    objective: Objective
    uses: int = 1
    exploration: float = 0.0
    options: dict = field(default_factory=dict)

    def policy(self, problem: Problem) -> MlpPolicy:
        rule = ALGORITHMS[self.objective.algorithm]
        return MlpPolicy(
            observation_size=problem.states,
            hidden=(),
            action="q-values" if rule.q_values else "categorical",
            action_size=2,
            critic_hidden=() if self.objective.has_critic else None,
        )


ARMS = {
    "reinforce": Arm(Objective(gamma=0.0)),
    "a2c": Arm(Objective(algorithm="a2c", gamma=0.0)),
    "ppo": Arm(Objective(algorithm="ppo", gamma=0.0), uses=3),
    "ppo, returns": Arm(Objective(algorithm="ppo", gamma=0.0, advantages="returns"), uses=3),
    "dqn": Arm(Objective(algorithm="dqn", gamma=0.0), uses=3, exploration=0.5),
}


def learned(
    arm: Arm,
    problem: Problem,
    *,
    seed: int,
    noise: float = 0.0,
    rounds: int = 60,
    count: int = 64,
    clip: float = CLIP,
    rate: float = 0.1,
    average: float = 0.0,
) -> tuple[MlpPolicy, np.ndarray]:
    """Rows of ``LocalTrainer``, noise on their sum, ``server_step``; as a federation does it."""
    rng = np.random.default_rng(seed)
    policy = arm.policy(problem)
    settings = TrainerSettings(objective=arm.objective, clip_norm=clip, uses=arm.uses)
    trainer = LocalTrainer(policy, settings)
    plan = FederationPlan(rounds=rounds, learning_rate=rate, **arm.options)
    theta, state = np.zeros(policy.num_parameters), initial_state(policy.num_parameters)
    held: list[TrajectoryBatch] = []
    tail, collected = [], theta
    replays = arm.objective.algorithm == "dqn"
    for index in range(rounds):
        if replays or index % arm.uses == 0:
            held.append(rolled(problem, policy, theta, count, rng, arm.exploration))
            collected = theta
        chosen = held[-arm.uses :] if replays else held[-1:]
        behaviour = None if replays or collected is theta else collected
        rows = trainer.local_update(theta, chosen, behaviour=behaviour).rows
        sigma = noise * trainer.clip_norm
        total = rows.sum(axis=0) + sigma * rng.normal(size=rows.shape[1])
        units = count * len(chosen)
        theta, state = server_step(
            plan, theta, state, total / units, noise_variance=(sigma / units) ** 2
        )
        tail.append(theta)
    if average:
        theta = np.mean(tail[int((1 - average) * rounds) :], axis=0)
    return policy, theta


def chance(policy: MlpPolicy, theta: np.ndarray, state: int = 0) -> float:
    """Probability of action 1 in a state."""
    seen = np.eye(policy.observation_size, dtype=np.float32)[[state]]
    logits = policy.bind(theta).forward(seen)[0].astype(float)
    return float(1 / (1 + np.exp(logits[0] - logits[1])))


def values(policy: MlpPolicy, theta: np.ndarray) -> np.ndarray:
    """Q [states, actions]."""
    seen = np.eye(policy.observation_size, dtype=np.float32)
    return policy.bind(theta).forward(seen).astype(float).copy()
