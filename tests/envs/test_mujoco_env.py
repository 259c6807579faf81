"""MuJoCo families: nominal is Gymnasium bit for bit, changed physics is the engine's own."""

from __future__ import annotations

import gymnasium
import mujoco
import numpy as np
import pytest

from privfedrl.envs import EnvSpec, heterogeneous, make_vector_env
from privfedrl.envs.gymnasium_env import GymnasiumEnv
from privfedrl.envs.mujoco_env import keep_quiet
from privfedrl.envs.spec import FAMILIES
from privfedrl.errors import EnvironmentFault
from privfedrl.rollout import MlpPolicy, collect

MUJOCO = sorted(name for name in FAMILIES if name.endswith("-v5"))


@pytest.fixture(autouse=True)
def _quiet():
    keep_quiet()


def seed_of(k):
    return int(np.random.default_rng(k).integers(2**31, size=1)[0])


def test_the_families_are_the_ones_with_a_twin():
    assert MUJOCO == [
        "HalfCheetah-v5", "Hopper-v5", "InvertedPendulum-v5", "Swimmer-v5", "Walker2d-v5",
    ]  # fmt: skip


@pytest.mark.parametrize("env_id", MUJOCO)
def test_nominal_equals_gymnasium_bit_for_bit_over_episodes(env_id):
    env, oracle = GymnasiumEnv(EnvSpec(env_id, horizon=60), 1), gymnasium.make(env_id)
    ends = 0
    for k in range(4):
        found = env.reset(np.random.default_rng(k))
        seen, _ = oracle.reset(seed=seed_of(k))
        np.testing.assert_array_equal(found[0], seen.astype(np.float32))
        rng = np.random.default_rng(k)
        for step in range(60):
            action = rng.uniform(-1, 1, (1, env.action_size)).astype(np.float32)
            seen, reward, terminated, _, _ = oracle.step(action[0])
            found = env.step(action)
            np.testing.assert_array_equal(env._seen[0, :-1], seen)  # float64
            assert env._seen[0, -1] == reward
            assert (found[2][0], found[3][0]) == (terminated, step == 59 and not terminated)
            if terminated:
                ends += 1
                break
    assert (ends > 0) == (env_id not in ("HalfCheetah-v5", "Swimmer-v5"))


def oracle_with(env_id, change):
    """Gymnasium's environment whose model is changed, by its documented fields, and settled."""
    oracle = gymnasium.make(env_id)
    change(oracle.unwrapped.model)
    mujoco.mj_setConst(oracle.unwrapped.model, oracle.unwrapped.data)
    return oracle


def _gravity(model):
    model.opt.gravity[:] = [0, 0, -5.0]


def _viscosity(model):
    model.opt.viscosity = 0.3


def _scaled(*names):
    def change(model):
        for name in names:
            getattr(model, name)[...] = np.array(getattr(model, name)) * 1.7

    return change


@pytest.mark.parametrize(
    ("env_id", "param", "change"),
    [
        ("HalfCheetah-v5", ("gravity", -5.0), _gravity),
        ("HalfCheetah-v5", ("mass_factor", 1.7), _scaled("body_mass", "body_inertia")),
        ("HalfCheetah-v5", ("friction_factor", 1.7), _scaled("geom_friction")),
        ("HalfCheetah-v5", ("damping_factor", 1.7), _scaled("dof_damping")),
        ("Hopper-v5", ("gear_factor", 1.7), _scaled("actuator_gear")),
        ("Swimmer-v5", ("viscosity", 0.3), _viscosity),
    ],
)
def test_changed_physics_equals_the_engine_with_a_changed_model(env_id, param, change):
    env = GymnasiumEnv(EnvSpec(env_id, params=(param,)), 1)
    bare = GymnasiumEnv(EnvSpec(env_id), 1)
    oracle = oracle_with(env_id, change)
    oracle.reset(seed=seed_of(1))
    env.reset(np.random.default_rng(1))
    bare.reset(np.random.default_rng(1))
    rng, differs = np.random.default_rng(0), False
    for _ in range(30):
        action = rng.uniform(-1, 1, (1, env.action_size)).astype(np.float32)
        seen, reward, terminated, _, _ = oracle.step(action[0])
        env.step(action)
        np.testing.assert_array_equal(env._seen[0], np.append(seen, reward))
        differs |= bool((bare.step(action)[0] != env._observations).any())
        if terminated:
            break
    assert differs


def test_heavier_bodies_are_heavier_to_the_contact_solver_too():
    raw, heavy = (
        GymnasiumEnv(EnvSpec("Hopper-v5", params=params), 1)._envs[0].model
        for params in ((), (("mass_factor", 2.0),))
    )
    assert heavy.body_subtreemass[0] == pytest.approx(2 * raw.body_subtreemass[0])
    assert (heavy.dof_invweight0 < raw.dof_invweight0).all()


def test_instances_share_nothing_that_changes():
    heavy = EnvSpec("Hopper-v5", params=(("mass_factor", 2.0),))
    first = GymnasiumEnv(EnvSpec("Hopper-v5"), 1)
    mass = first._envs[0].model.body_mass.copy()
    GymnasiumEnv(heavy, 1)
    np.testing.assert_array_equal(first._envs[0].model.body_mass, mass)
    np.testing.assert_array_equal(
        GymnasiumEnv(EnvSpec("Hopper-v5"), 1)._envs[0].model.body_mass, mass
    )


@pytest.mark.parametrize("env_id", MUJOCO)
@pytest.mark.parametrize("level", [0.5, 1.0])
def test_a_fleet_at_every_level_runs(env_id, level):
    for spec in heterogeneous(
        env_id, level=level, agents=3, seed=0, varies=("physics", "initial-states")
    ):
        env = make_vector_env(spec, 2)
        env.reset(np.random.default_rng(0))
        rng = np.random.default_rng(1)
        for _ in range(10):
            env.step(rng.uniform(-1, 1, (2, env.action_size)).astype(np.float32))
        assert not env.failures


@pytest.mark.parametrize("size", [1e12, np.nan])
def test_a_simulation_that_diverges_is_lost_alone_and_says_nothing(
    size, tmp_path, monkeypatch, capfd
):
    """MuJoCo would start that row afresh in the middle of its trajectory and write a log file."""
    monkeypatch.chdir(tmp_path)
    policy = MlpPolicy(observation_size=17, hidden=(), action="gaussian", action_size=6)
    parameters = policy.initial_parameters(np.random.default_rng(0))

    def batch_of(broken):
        env = GymnasiumEnv(EnvSpec("HalfCheetah-v5"), 3)
        if broken:
            raw = env._envs[1]
            step = raw.step

            def explode(action):
                if raw.data.time > 0.2:
                    raw.data.qvel[0] = size
                return step(action)

            raw.step = explode
        return env, collect(policy, parameters, env, horizon=12, rng=np.random.default_rng(0))

    _, sound = batch_of(False)
    env, broken = batch_of(True)
    assert list(env.failures) == [1]
    assert str(env.failures[1]) == "HalfCheetah-v5: step raised FloatingPointError"
    assert (sound.lost, broken.lost) == (0, 1)
    for name in ("observations", "actions", "rewards", "mask"):
        assert getattr(sound, name)[[0, 2]].tobytes() == getattr(broken, name)[[0, 2]].tobytes()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""
    del env._envs[1].step
    env.reset(np.random.default_rng(0))
    env.step(np.zeros((3, 6), dtype=np.float32))
    assert not env.failures  # the next trajectory of that row is sound


def test_an_environment_whose_file_is_missing_is_a_fault(monkeypatch):
    from privfedrl.envs import mujoco_env

    monkeypatch.setattr(mujoco_env, "_model", lambda path: open(path + ".missing"))  # noqa: SIM115
    with pytest.raises(EnvironmentFault, match="constructor raised FileNotFoundError"):
        GymnasiumEnv(EnvSpec("Hopper-v5"), 1)
