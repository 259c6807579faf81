"""Random batches and networks for the training tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.training.networks import TorchMlp


def _make_batch(
    lengths: list[int], *, kind: str = "categorical", horizon: int = 9, seed: int = 0
) -> TrajectoryBatch:
    rng = np.random.default_rng(seed)
    mask = np.arange(horizon) < np.array(lengths, dtype=np.int64)[:, None]
    shape = mask.shape
    actions = (
        rng.integers(0, 3, shape)
        if kind != "gaussian"
        else rng.normal(size=(*shape, 3)).astype(np.float32)
    )
    return TrajectoryBatch(
        observations=rng.normal(size=(*shape, 5)).astype(np.float32),
        actions=actions,
        rewards=rng.normal(size=shape).astype(np.float32),
        mask=mask,
        terminated=np.array([n < horizon for n in lengths], dtype=np.bool_),
        truncated=np.array([n == horizon for n in lengths], dtype=np.bool_),
    )


def _make_network(
    kind: str = "categorical",
    *,
    hidden: tuple[int, ...] = (7, 6),
    critic: tuple[int, ...] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> TorchMlp:
    policy = MlpPolicy(
        observation_size=5, hidden=hidden, action=kind, action_size=3, critic_hidden=critic
    )
    parameters = np.random.default_rng(seed).normal(size=policy.num_parameters) * 0.5
    return TorchMlp(policy, parameters, dtype=dtype)


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., TrajectoryBatch]:
    return _make_batch


@pytest.fixture(scope="session")
def make_network() -> Callable[..., TorchMlp]:
    return _make_network
