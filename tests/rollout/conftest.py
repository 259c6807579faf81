"""Policies and environments shared by the rollout tests."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from privfedrl.rollout.policies import MlpPolicy

FAULTY_MODULE = """
import os, time
import gymnasium, numpy as np

class Faulty(gymnasium.Env):
    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    def __init__(self, fault):
        self.fault = fault
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}
    def step(self, action):
        if self.fault == "raise":
            raise RuntimeError("0.123456")
        if self.fault == "die":
            os._exit(3)
        if self.fault == "hang":
            time.sleep(600)

for fault in ("raise", "die", "hang"):
    gymnasium.register(f"Faulty{fault.title()}-v0", entry_point=Faulty, kwargs={"fault": fault})
"""


@pytest.fixture
def cartpole_policy():
    """4-32-2, the recipe's shape."""
    return MlpPolicy(observation_size=4, hidden=(32,), action="categorical", action_size=2)


@pytest.fixture
def balancing_parameters(cartpole_policy):
    """A policy that keeps the nominal pole up for 500 steps, most of the time."""
    first, last = np.zeros((32, 4)), np.zeros((2, 32))
    first[0] = [0.05, 0.1, 1.0, 0.3]
    last[:, 0] = [-20.0, 20.0]
    return np.concatenate([first.ravel(), np.zeros(32), last.ravel(), np.zeros(2)])


@pytest.fixture
def falling_parameters(balancing_parameters):
    """The balancing policy with its logits swapped: pushes the pole over."""
    flat = balancing_parameters.copy()
    flat[-66:] *= -1  # the last layer only; tanh is odd, so negating both would change nothing
    return flat


@pytest.fixture
def acrobot_policy():
    return MlpPolicy(observation_size=6, hidden=(8,), action="categorical", action_size=3)


@pytest.fixture
def faulty_module(tmp_path, monkeypatch):
    """Prefix of ids of environments that raise, die or hang, importable by worker processes."""
    name = "privfedrl_faulty_envs"
    (tmp_path / f"{name}.py").write_text(FAULTY_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield f"{name}:Faulty"
    sys.modules.pop(name, None)
