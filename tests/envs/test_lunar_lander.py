"""Our LunarLander against Gymnasium's, bit for bit: observations, rewards, ends."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from privfedrl.envs import EnvSpec, heterogeneous
from privfedrl.envs.gymnasium_env import GymnasiumEnv
from privfedrl.errors import EnvironmentFault

SEEDS = range(24)


def spec_of(env_id, seed):
    """Calm for a third of the seeds, wind of every strength for the others."""
    wind = () if seed % 3 == 0 else (("wind_power", 20.0 * seed / 24), ("turbulence_power", 1.7))
    return EnvSpec(env_id, params=(("gravity", -11.9 + 0.3 * seed), *wind), horizon=400)


def oracle_of(spec):
    params = spec.parameters()
    windy = params["wind_power"] > 0
    wind = {name: params[name] for name in ("wind_power", "turbulence_power")} if windy else {}
    return gymnasium.make(
        spec.id, gravity=params["gravity"], enable_wind=windy, max_episode_steps=400, **wind
    )


def action_of(kind, oracle, seen, rng):
    """A pilot that lands (its continuous commands partly out of bounds), or a random one."""
    # Box2D crashes when its import warns as an error; by now it is imported
    from gymnasium.envs.box2d.lunar_lander import heuristic

    continuous = oracle.unwrapped.continuous
    if kind == "pilot":
        action = heuristic(oracle.unwrapped, seen)
        return np.float32(action) if continuous else int(action)
    return rng.uniform(-1.6, 1.6, 2).astype(np.float32) if continuous else int(rng.integers(4))


@pytest.mark.parametrize("kind", ["pilot", "random"])
@pytest.mark.parametrize("env_id", ["LunarLander-v3", "LunarLanderContinuous-v3"])
def test_every_step_equals_gymnasium_in_wind_and_calm_to_the_landing(env_id, kind):
    ends = []
    for seed in SEEDS:
        spec = spec_of(env_id, seed)
        env, oracle, rng = GymnasiumEnv(spec, 1), oracle_of(spec), np.random.default_rng(seed)
        found = env.reset(np.random.default_rng(seed))
        drawn = int(np.random.default_rng(seed).integers(2**31, size=1)[0])
        seen, _ = oracle.reset(seed=drawn)
        np.testing.assert_array_equal(found[0], seen)
        ended = False
        while not ended:
            action = action_of(kind, oracle, seen, rng)
            clipped = np.clip(action, -1, 1) if env.action_size else action
            seen, reward, terminated, truncated, _ = oracle.step(clipped)
            found = env.step(np.array([action]))
            assert found[0][0].tobytes() == seen.tobytes()
            assert env._seen[0, -1] == reward  # float64, before it is stored in float32
            assert (found[2][0], found[3][0]) == (terminated, truncated and not terminated)
            ended = terminated or truncated
        ends.append(reward if terminated else 0.0)
    assert -100.0 in ends
    assert kind == "random" or 100.0 in ends


def test_a_second_episode_in_the_same_instance_equals_gymnasium():
    spec = spec_of("LunarLander-v3", 5)
    env, oracle = GymnasiumEnv(spec, 1), oracle_of(spec)
    for seed in (3, 4):
        env.reset(np.random.default_rng(seed))
        oracle.reset(seed=int(np.random.default_rng(seed).integers(2**31, size=1)[0]))
        for step in range(60):
            seen, *_ = oracle.step(step % 4)
            np.testing.assert_array_equal(env.step(np.array([step % 4]))[0][0], seen)


def test_an_action_outside_the_space_is_a_fault_as_it_is_there():
    env = GymnasiumEnv(EnvSpec("LunarLander-v3"), 1)
    env.reset(np.random.default_rng(0))
    with pytest.raises(EnvironmentFault, match="step raised ValueError"):
        env.step(np.array([4]))


def test_a_fleet_flies_in_its_own_wind():
    for spec in heterogeneous("LunarLander-v3", level=1, agents=3, seed=0):
        raw = GymnasiumEnv(spec, 1)._envs[0]
        assert type(raw).__module__ == "privfedrl.envs.lunar_lander"
        assert raw.gravity == spec.parameters()["gravity"]
