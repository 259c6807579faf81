"""The clipped sum of a local step is that of Opacus' own optimiser, noise apart."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from opacus.grad_sample import register_grad_sampler
from opacus.optimizers import DPOptimizer

from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.training.algorithms import Objective
from privfedrl.training.local_trainer import LocalTrainer
from privfedrl.training.networks import LogStd, TorchMlp
from privfedrl.training.reinforce import trajectory_weights
from privfedrl.training.settings import TrainerSettings
from privfedrl.training.trajectory_gradients import (
    Terms,
    _log_std_grad_sample,
    fused,
    hooks,
    objective,
    prepare,
)

CLIP, COUNT, HORIZON = 0.3, 12, 9


def batch(kind: str, seed: int = 0) -> TrajectoryBatch:
    rng = np.random.default_rng(seed)
    mask = np.arange(HORIZON) < rng.integers(1, HORIZON + 1, COUNT)[:, None]
    actions = rng.integers(0, 2, mask.shape)
    if kind == "gaussian":
        actions = rng.normal(size=(*mask.shape, 2)).astype(np.float32)
    return TrajectoryBatch(
        observations=rng.normal(size=(*mask.shape, 3)).astype(np.float32),
        actions=actions,
        rewards=rng.normal(size=mask.shape).astype(np.float32),
        mask=mask,
        terminated=np.ones(COUNT, dtype=np.bool_),
        truncated=np.zeros(COUNT, dtype=np.bool_),
    )


def opacus_sum(policy: MlpPolicy, theta: np.ndarray, data: TrajectoryBatch) -> np.ndarray:
    """What DPOptimizer leaves in ``p.grad``, with no noise and a divisor of one."""
    network = TorchMlp(policy, theta, dtype=torch.float64)
    register_grad_sampler(LogStd)(_log_std_grad_sample)
    module = GradSampleModule(copy.deepcopy(network), batch_first=True, loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(module.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=CLIP,
        expected_batch_size=1,
        loss_reduction="sum",
    )
    steps = prepare(network, data, trajectory_weights(data, gamma=0.99), Terms(0.0))
    observations = steps.observations.detach().requires_grad_()
    objective(module(observations), steps, network.policy.action).backward()
    optimizer.pre_step()
    return torch.cat([p.grad.flatten() for p in module.parameters()]).numpy()


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
@pytest.mark.parametrize("gradient", [fused, hooks])
def test_the_clipped_sum_of_a_step_is_the_one_of_opacus(kind: str, gradient: object) -> None:
    policy = MlpPolicy(observation_size=3, hidden=(6,), action=kind, action_size=2)
    theta = np.random.default_rng(1).normal(size=policy.num_parameters)
    settings = TrainerSettings(objective=Objective(gamma=0.99), clip_norm=CLIP)
    trainer = LocalTrainer(policy, settings, dtype=torch.float64, gradient=gradient)
    data = batch(kind)
    ours = trainer.local_update(theta, data).rows.sum(axis=0)
    theirs = opacus_sum(policy, theta, data)
    # Opacus divides by (norm + 1e-6), so its rows are a little shorter than the clip norm
    assert np.abs(ours - theirs).max() < 1e-5 * COUNT
    assert np.linalg.norm(ours) > CLIP
