"""Environments that misbehave in one way each, registered for these tests only."""

from __future__ import annotations

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

SECRET = 0.123456789


class Misbehaving(gymnasium.Env):
    """A three-step environment; ``fault`` names what goes wrong and when."""

    action_space = spaces.Discrete(3, start=5)
    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, fault=""):
        if fault == "constructor":
            raise RuntimeError(SECRET)
        self.fault = fault
        self.actions = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        if self.fault == "spaces change later":
            self.observe = lambda when: np.zeros(2 if when == "reset" else 3)
        if self.fault == "reset raises":
            raise ValueError(SECRET)
        if self.fault == "spaces change":
            self.action_space = spaces.Discrete(4)
        return self.observe("reset"), {}

    def observe(self, when):
        wrong = {
            "NaN": np.array([SECRET, np.nan]),
            "infinite": np.array([SECRET, np.inf]),
            "huge": np.array([SECRET, 1e30]),
            "shape": np.full((1, 2), SECRET),
            "text": np.array(["a", "b"]),
            "nothing": None,
        }
        place, _, kind = self.fault.partition(" observation ")
        if kind and place == when:
            return wrong[kind]
        return np.array([0.25, self.time / 10], dtype=np.float32)

    def step(self, action):
        assert self.action_space.contains(action)
        self.actions.append(action)
        self.time += 1
        if self.fault == "step exits":
            sys.exit(SECRET)
        if self.fault == "step raises":
            raise ZeroDivisionError(SECRET)
        if self.fault == "step returns four":
            return self.observe("step"), 1.0, False, {}
        reward = {"NaN reward": np.nan, "text reward": "x"}.get(self.fault, 1.0)
        return self.observe("step"), reward, self.time == 3, self.time == 3, {}

    def close(self):
        if self.fault == "close raises":
            raise OSError(SECRET)


class Weird(Misbehaving):
    """Spaces chosen by the caller."""

    def __init__(self, action_space=None, observation_space=None):
        super().__init__()
        self.action_space = action_space or self.action_space
        self.observation_space = observation_space or self.observation_space

    def observe(self, when):
        return self.observation_space.sample()

    def step(self, action):
        self.actions.append(action)
        return self.observe("step"), 0.0, False, False, {}


@pytest.fixture
def register():
    """Register an environment under an id of its own; returns the id."""
    names = []

    def add(entry_point, **kwargs):
        name = f"PrivfedrlTest{len(names)}-v0"
        gymnasium.register(name, entry_point=entry_point, kwargs=kwargs)
        names.append(name)
        return name

    yield add
    for name in names:
        del gymnasium.registry[name]


@pytest.fixture
def misbehaving(register):
    """id of an environment with one fault."""
    return lambda fault: register(Misbehaving, fault=fault)


@pytest.fixture
def weird(register):
    """id of an environment with the given spaces."""
    return lambda **spaces_given: register(Weird, **spaces_given)
