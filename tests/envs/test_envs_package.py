"""The package: what it loads, and which environment it picks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from privfedrl.envs import EnvSpec, VectorCartPole, fits_one_block, make_fleet_env, make_vector_env
from privfedrl.envs.gymnasium_env import GymnasiumEnv
from privfedrl.errors import ConfigurationError


def test_importing_envs_and_rollout_loads_neither_gymnasium_nor_torch():
    code = (
        "import sys, privfedrl.envs, privfedrl.rollout;"
        "privfedrl.envs.make_vector_env(privfedrl.envs.EnvSpec('CartPole-v1'), 2);"
        "sys.exit(bool({'gymnasium', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_cartpole_is_numpy_and_everything_else_gymnasium():
    assert isinstance(make_vector_env(EnvSpec("CartPole-v1"), 2), VectorCartPole)
    assert isinstance(make_vector_env(EnvSpec("Acrobot-v1"), 2), GymnasiumEnv)


def test_only_cartpoles_with_one_time_limit_share_a_block():
    cart, short = EnvSpec("CartPole-v1"), EnvSpec("CartPole-v1", horizon=9)
    assert fits_one_block([cart, EnvSpec("CartPole-v1", horizon=500)])
    for fleet in ([cart, short], [cart, EnvSpec("Acrobot-v1")], [EnvSpec("Acrobot-v1")], []):
        assert not fits_one_block(fleet)
        with pytest.raises(ConfigurationError):
            make_fleet_env(fleet, 2)
    assert make_fleet_env([cart, cart], 3).num_envs == 6
