"""GymnasiumEnv: registered environments pass through unchanged; faulty ones are named."""

from __future__ import annotations

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from privfedrl.envs import EnvSpec, VectorCartPole, gymnasium_env, heterogeneous, make_vector_env
from privfedrl.envs.gymnasium_env import GymnasiumEnv
from privfedrl.errors import ConfigurationError, EnvironmentFault, MissingExtraError
from privfedrl.rollout import MlpPolicy, collect


def run(env_id, steps=3):
    env = GymnasiumEnv(EnvSpec(env_id), 2)
    env.reset(np.random.default_rng(0))
    for _ in range(steps):
        env.step(np.zeros(2, dtype=np.int64))
    env.close()


@pytest.mark.parametrize(
    "fault",
    [
        "constructor",
        "reset raises",
        "spaces change",
        "spaces change later",
        "step raises",
        "step exits",
        "step returns four",
        "NaN reward",
        "text reward",
        *(
            f"{when} observation {kind}"
            for when in ("reset", "step")
            for kind in ("NaN", "infinite", "huge", "shape", "text", "nothing")
        ),
    ],
)
def test_a_faulty_environment_is_named_without_what_it_showed(misbehaving, fault):
    env_id = misbehaving(fault)
    with pytest.raises(EnvironmentFault, match=env_id) as caught:
        run(env_id)
    assert "0.123" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_sound_environment_passes_and_rows_step_only_while_they_run(misbehaving):
    env = GymnasiumEnv(EnvSpec(misbehaving("")), 2)
    observations = env.reset(np.random.default_rng(0))
    np.testing.assert_array_equal(observations, np.float32([[0.25, 0.0]] * 2))
    for _ in range(5):
        _, _, terminated, truncated = env.step(np.array([0, 2]))
    assert terminated.all()
    assert not truncated.any()  # the environment said both; its own end counts
    assert [inner.unwrapped.actions for inner in env._envs] == [[5] * 3, [7] * 3]


def test_rows_follow_scalar_gymnasium_with_the_drawn_seeds():
    spec = EnvSpec("Acrobot-v1", horizon=7)
    env = GymnasiumEnv(spec, 3)
    found = env.reset(np.random.default_rng(4)).copy()
    seeds = np.random.default_rng(4).integers(2**31, size=3)
    scalars = [gymnasium.make("Acrobot-v1", max_episode_steps=7) for _ in range(3)]
    for row, scalar in enumerate(scalars):
        np.testing.assert_array_equal(found[row], scalar.reset(seed=int(seeds[row]))[0])
    for t in range(7):
        actions = np.array([t % 3, 1, 2])
        observations, rewards, terminated, truncated = env.step(actions)
        for row, scalar in enumerate(scalars):
            seen, reward, over, cut, _ = scalar.step(int(actions[row]))
            np.testing.assert_array_equal(observations[row], seen.astype(np.float32))
            assert (rewards[row], terminated[row], truncated[row]) == (reward, over, cut)
    assert truncated.all()


def test_cartpole_through_gymnasium_uses_the_changed_masses():
    spec = EnvSpec("CartPole-v1", params=(("masspole", 1.0), ("length", 0.9), ("masscart", 2.0)))
    slow, fast = GymnasiumEnv(spec, 1), VectorCartPole(spec, 1)
    slow.reset(np.random.default_rng(0))
    fast.set_state(slow._envs[0].unwrapped.state[None])
    for t in range(8):
        expected, found = slow.step(np.array([t % 2])), fast.step(np.array([t % 2]))
        for left, right in zip(expected, found, strict=True):
            np.testing.assert_array_equal(left, right)


def test_lunar_lander_gets_its_gravity_and_wind():
    fleet = heterogeneous("LunarLander-v3", level=1, agents=3, seed=0)
    for spec in (*fleet, EnvSpec("LunarLander-v3")):
        raw = make_vector_env(spec, 1)._envs[0].unwrapped
        params = spec.parameters()
        assert raw.gravity == params["gravity"]
        assert raw.enable_wind == (params["wind_power"] > 0 or params["turbulence_power"] > 0)
        if raw.enable_wind:
            assert raw.wind_power == params["wind_power"]
            assert raw.turbulence_power == params["turbulence_power"]


def test_continuous_actions_are_clipped_to_the_public_bounds():
    loose, tight = (GymnasiumEnv(EnvSpec("Pendulum-v1"), 1) for _ in range(2))
    assert (loose.action_kind, loose.action_size, loose.num_actions) == ("continuous", 1, 0)
    assert (loose.action_low.tolist(), loose.action_high.tolist()) == ([-2.0], [2.0])
    loose.reset(np.random.default_rng(0))
    tight.reset(np.random.default_rng(0))
    for action, clipped in ((50.0, 2.0), (-50.0, -2.0), (0.5, 0.5)):
        left = loose.step(np.float32([[action]]))
        right = tight.step(np.float32([[clipped]]))
        np.testing.assert_array_equal(left[0], right[0])
        np.testing.assert_array_equal(left[1], right[1])


def test_pendulum_gets_its_parameters():
    spec = EnvSpec("Pendulum-v1", params=(("g", 5.0), ("m", 2.0), ("l", 0.5)))
    raw = GymnasiumEnv(spec, 1)._envs[0].unwrapped
    assert (raw.g, raw.m, raw.l) == (5.0, 2.0, 0.5)


def test_select_keeps_the_chosen_rows_until_the_next_reset():
    env, other = (GymnasiumEnv(EnvSpec("Acrobot-v1"), 4) for _ in range(2))
    env.reset(np.random.default_rng(0))
    other.reset(np.random.default_rng(0))
    env.select(np.array([1, 3]))
    for t in range(5):
        found = env.step(np.full(2, t % 3))
        expected = other.step(np.full(4, t % 3))
        for left, right in zip(found, expected, strict=True):
            np.testing.assert_array_equal(left, right[[1, 3]])
    assert env.reset(np.random.default_rng(0)).shape == (4, 6)


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (spaces.Discrete(6), 6),
        (spaces.MultiBinary(4), 4),
        (spaces.Box(0, 255, (3, 2), np.uint8), 6),
        (spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(3)}), 5),
    ],
)
def test_flattenable_observations_become_flat_floats(weird, space, size):
    env = GymnasiumEnv(EnvSpec(weird(observation_space=space)), 2)
    observations = env.reset(np.random.default_rng(0))
    assert observations.shape == (2, size)
    assert observations.dtype == np.float32
    assert env.observation_size == size


def test_a_shaped_action_reaches_the_environment_in_its_shape_and_type(weird):
    space = spaces.Box(-1.0, 1.0, (2, 2), np.float64)
    env = GymnasiumEnv(EnvSpec(weird(action_space=space)), 1)
    env.reset(np.random.default_rng(0))
    env.step(np.float32([[0.5, -3.0, 3.0, 0.25]]))
    (action,) = env._envs[0].unwrapped.actions
    assert action.dtype == np.float64
    np.testing.assert_array_equal(action, [[0.5, -1.0], [1.0, 0.25]])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"action_space": spaces.MultiDiscrete([2, 2])}, "action space"),
        ({"action_space": spaces.Box(0, 3, (1,), np.int64)}, "action space"),
        ({"observation_space": spaces.Sequence(spaces.Discrete(2))}, "observation space"),
    ],
)
def test_spaces_that_no_policy_can_serve_are_refused(weird, given, named):
    with pytest.raises(ConfigurationError, match=named):
        GymnasiumEnv(EnvSpec(weird(**given)), 1)


@pytest.mark.parametrize(
    ("env_id", "text"),
    [
        ("NoSuchEnv-v0", "registered"),
        ("LunarLander-v99", "registered"),
        ("no id at all!", "registered"),
        ("no_such_module:Env-v0", "PYTHONPATH"),
    ],
)
def test_an_unknown_id_is_a_configuration_error(env_id, text):
    with pytest.raises(ConfigurationError, match=text):
        make_vector_env(EnvSpec(env_id), 1)


def test_what_a_module_lacks_is_named(tmp_path, monkeypatch):
    (tmp_path / "privfedrl_lacking.py").write_text("import privfedrl_not_there")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigurationError, match="privfedrl_not_there"):
        make_vector_env(EnvSpec("privfedrl_lacking:Env-v0"), 1)


def test_an_engine_that_is_not_installed_prints_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    for name in ("privfedrl.envs.mujoco_env", "gymnasium.envs.mujoco.mujoco_env"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(MissingExtraError, match=r"privfedrl\[rl\]"):
        make_vector_env(EnvSpec("Hopper-v5"), 1)


def test_environments_that_were_made_are_closed_when_the_next_cannot_be(monkeypatch):
    closed = []
    made = iter([True, True, False])
    original = gymnasium_env.make_scalar

    def scarce(spec):
        if not next(made):
            raise EnvironmentFault("no more")
        env, limit = original(spec)
        monkeypatch.setattr(env, "close", lambda: closed.append(env))
        return env, limit

    monkeypatch.setattr(gymnasium_env, "make_scalar", scarce)
    with pytest.raises(EnvironmentFault, match="no more"):
        GymnasiumEnv(EnvSpec("MountainCar-v0"), 3)
    assert len(closed) == 2


def test_an_index_outside_the_declared_space_is_no_observation(register):
    """-1 would be read as the last of five."""

    class Below(gymnasium.Env):
        action_space = spaces.Discrete(2)
        observation_space = spaces.Discrete(5)

        def reset(self, *, seed=None, options=None):
            return -1, {}

    env = GymnasiumEnv(EnvSpec(register(Below)), 1)
    with pytest.raises(EnvironmentFault, match="TypeError"):
        env.reset(np.random.default_rng(0))


@pytest.mark.parametrize("count", [0, -1, True])
def test_a_block_needs_at_least_one_row(count):
    with pytest.raises(ConfigurationError, match="num_envs"):
        GymnasiumEnv(EnvSpec("Acrobot-v1"), count)


def test_missing_gymnasium_prints_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(MissingExtraError, match=r"privfedrl\[rl\]"):
        make_vector_env(EnvSpec("MountainCar-v0"), 1)


def test_a_missing_dependency_of_an_environment_prints_the_install_line(register):
    def broken():
        raise gymnasium.error.DependencyNotInstalled("box")

    with pytest.raises(MissingExtraError, match=r"privfedrl\[rl\]"):
        make_vector_env(EnvSpec(register(broken)), 1)


@pytest.mark.parametrize(
    "fault",
    [
        "reset raises",
        "step raises",
        "step exits",
        "NaN reward",
        "step observation NaN",
        "spaces change",
        "spaces change later",
    ],
)
def test_one_failing_row_is_absent_and_leaves_every_bit_of_the_others(misbehaving, fault):
    """Otherwise one trajectory would decide about the others, and clipping would bound nothing."""
    policy = MlpPolicy(observation_size=2, hidden=(4,), action="categorical", action_size=3)
    parameters = policy.initial_parameters(np.random.default_rng(1))

    def batch_of(broken):
        env = GymnasiumEnv(EnvSpec(misbehaving("")), 4)
        if broken:
            env._envs[2].unwrapped.fault = fault
        return collect(policy, parameters, env, horizon=5, rng=np.random.default_rng(0))

    sound, broken = batch_of(False), batch_of(True)
    others = [0, 1, 3]
    assert (sound.lost, broken.lost) == (0, 1)
    assert not broken.mask[2].any()
    assert not broken.observations[2].any()
    for name in ("observations", "actions", "rewards", "mask", "terminated"):
        assert getattr(sound, name)[others].tobytes() == getattr(broken, name)[others].tobytes()


def test_an_environment_that_fails_to_close_loses_nothing(misbehaving):
    run(misbehaving("close raises"))


def test_the_registrys_time_limit_holds_and_wrappers_of_the_environment_stay(register):
    import gymnasium.wrappers as wrappers

    def wrapped():
        inner = gymnasium.make("MountainCar-v0", max_episode_steps=50)
        return wrappers.TransformReward(inner, lambda reward: reward * 3)

    name = register(wrapped)
    for env_id, limit, reward in (("MountainCar-v0", 200, -1.0), (name, 50, -3.0)):
        env = GymnasiumEnv(EnvSpec(env_id), 2)
        env.reset(np.random.default_rng(0))
        for step in range(1, limit + 1):
            _, rewards, terminated, truncated = env.step(np.ones(2, dtype=np.int64))
            assert rewards.tolist() == [reward, reward]
            assert not terminated.any()
            assert truncated.tolist() == [step == limit] * 2
        short = GymnasiumEnv(EnvSpec(env_id, horizon=3), 1)
        short.reset(np.random.default_rng(0))
        assert [bool(short.step(np.ones(1, dtype=np.int64))[3][0]) for _ in range(3)] == [
            False,
            False,
            True,
        ]


def test_rows_that_ended_before_a_select_are_not_stepped_after_it(misbehaving):
    env = GymnasiumEnv(EnvSpec(misbehaving("")), 3)
    env.reset(np.random.default_rng(0))
    for _ in range(3):
        env.step(np.zeros(3, dtype=np.int64))
    env.select(np.array([0, 2]))
    *_, terminated, _ = env.step(np.zeros(2, dtype=np.int64))
    assert terminated.all()
    assert [len(inner.unwrapped.actions) for inner in env._envs] == [3, 3, 3]


@pytest.mark.parametrize("fault", ["step observation NaN", "step observation huge", "NaN reward"])
def test_a_failed_row_shows_what_it_showed_last(misbehaving, fault):
    env = GymnasiumEnv(EnvSpec(misbehaving("")), 2)
    before = env.reset(np.random.default_rng(0)).copy()
    env._envs[1].unwrapped.fault = fault
    for _ in range(2):
        observations, rewards, _, truncated = env.step(np.zeros(2, dtype=np.int64))
        np.testing.assert_array_equal(observations[1], before[1])
        assert rewards[1] == 0.0
        assert truncated.tolist() == [False, True]
    assert list(env.failures) == [1]
