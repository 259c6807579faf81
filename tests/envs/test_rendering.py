"""render_env: pictures of the spec's physics, or a typed refusal."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from privfedrl.envs import EnvSpec, render_env
from privfedrl.errors import ConfigurationError, EnvironmentFault

MUJOCO_PICTURE = """
from privfedrl.envs import EnvSpec, render_env
from privfedrl.errors import ConfigurationError
try:
    env = render_env(EnvSpec("Hopper-v5", params=(("gravity", -5.0),)))
except ConfigurationError as error:
    print("refused", error)
else:
    assert env.unwrapped.model.opt.gravity[2] == -5.0
    first = env.render()
    for _ in range(20):
        env.step([1.0, -1.0, 1.0])
    assert first.dtype == "uint8" and first.shape[2] == 3
    assert first.min() < first.max()
    assert (env.render() != first).any()
    env.close()
    print("drawn")
"""


@pytest.mark.parametrize(
    ("spec", "name", "value"),
    [
        (EnvSpec("CartPole-v1", params=(("length", 0.9),)), "length", 0.9),
        (EnvSpec("Acrobot-v1", params=(("LINK_LENGTH_1", 0.7),)), "LINK_LENGTH_1", 0.7),
        (EnvSpec("Pendulum-v1", params=(("m", 2.0),)), "m", 2.0),
        (EnvSpec("LunarLander-v3", params=(("gravity", -5.0),)), "gravity", -5.0),
        (EnvSpec("LunarLanderContinuous-v3", params=(("wind_power", 5.0),)), "wind_power", 5.0),
        (EnvSpec("MountainCar-v0", horizon=9), "goal_position", 0.5),
    ],
)
def test_a_picture_of_the_specs_physics(spec, name, value):
    env = render_env(spec)
    assert getattr(env.unwrapped, name) == value
    first = env.render()
    assert first.dtype == np.uint8
    assert first.ndim == 3
    env.action_space.seed(0)  # a few random actions may cancel each other to the pixel
    for _ in range(8):
        env.step(env.action_space.sample())
    assert (env.render() != first).any()
    env.close()


@pytest.mark.slow
def test_mujoco_draws_or_is_refused_and_never_ends_the_process():
    surroundings = {name: value for name, value in os.environ.items() if name != "MUJOCO_GL"}
    for backend in ({}, {"MUJOCO_GL": "no such library"}):
        done = subprocess.run(
            [sys.executable, "-c", MUJOCO_PICTURE],
            capture_output=True,
            text=True,
            check=False,
            env=surroundings | backend,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("refused Hopper-v5" if backend else ("drawn", "refused"))


@pytest.mark.parametrize("fault", ["", "reset raises", "constructor"])
def test_what_cannot_render_is_refused(misbehaving, fault):
    env_id = misbehaving(fault)
    with pytest.raises(ConfigurationError, match=f"{env_id} cannot render") as caught:
        render_env(EnvSpec(env_id))
    assert "0.123" not in str(caught.value)
    assert not isinstance(caught.value, EnvironmentFault)


def test_an_unknown_id_is_refused():
    with pytest.raises(ConfigurationError, match="registered"):
        render_env(EnvSpec("NoSuchEnv-v0"))
