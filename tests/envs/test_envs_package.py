"""The package: what it loads, and which environment it picks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from privfedrl.envs import (
    BLOCKS,
    EnvSpec,
    VectorCartPole,
    fits_one_block,
    make_fleet_env,
    make_vector_env,
)
from privfedrl.envs.gymnasium_env import GymnasiumEnv
from privfedrl.errors import ConfigurationError


def test_importing_envs_and_rollout_loads_neither_gymnasium_nor_torch():
    code = (
        "import sys, privfedrl.envs, privfedrl.rollout;"
        "import privfedrl.envs.heterogeneity as h;"
        "[privfedrl.envs.make_vector_env(privfedrl.envs.EnvSpec(i, action_delay=1), 2)"
        " for i in privfedrl.envs.BLOCKS];"
        "h.measure(privfedrl.envs.heterogeneous('CartPole-v1', level=1, agents=2, seed=0), seed=0);"
        "sys.exit(bool({'gymnasium', 'torch', 'mujoco'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_three_families_are_numpy_and_everything_else_gymnasium():
    assert sorted(BLOCKS) == ["Acrobot-v1", "CartPole-v1", "Pendulum-v1"]
    for family, block in BLOCKS.items():
        assert type(make_vector_env(EnvSpec(family), 2)) is block
    assert isinstance(make_vector_env(EnvSpec("CartPole-v1"), 2), VectorCartPole)
    assert isinstance(make_vector_env(EnvSpec("MountainCar-v0"), 2), GymnasiumEnv)


def test_only_one_family_with_one_time_limit_shares_a_block():
    cart, short = EnvSpec("CartPole-v1"), EnvSpec("CartPole-v1", horizon=9)
    mountain = EnvSpec("MountainCar-v0")
    assert fits_one_block([EnvSpec("Acrobot-v1")] * 2)
    assert fits_one_block([cart, EnvSpec("CartPole-v1", observation_noise=0.1)])
    assert fits_one_block([cart, EnvSpec("CartPole-v1", horizon=500)])
    for fleet in ([cart, short], [cart, EnvSpec("Acrobot-v1")], [mountain], []):
        assert not fits_one_block(fleet)
        with pytest.raises(ConfigurationError):
            make_fleet_env(fleet, 2)
    assert make_fleet_env([cart, cart], 3).num_envs == 6
