"""measure: known distances are found, equal environments are at distance zero."""

from __future__ import annotations

import json

import numpy as np
import pytest

from privfedrl.envs import BLOCKS, EnvSpec, heterogeneous
from privfedrl.envs.heterogeneity import AgentDistance, measure
from privfedrl.errors import ConfigurationError, EnvironmentFault

ZERO = AgentDistance(
    state_mean=0.0,
    state_max=0.0,
    reward_mean=0.0,
    reward_max=0.0,
    return_difference=0.0,
    return_error=0.0,
)


@pytest.mark.parametrize("family", sorted(BLOCKS))
def test_level_zero_is_at_distance_zero(family):
    found = measure([EnvSpec(family)] * 2, seed=1, states=20, episodes=3, horizon=20)
    assert found.agents == (ZERO, ZERO)


@pytest.mark.parametrize("family", sorted(BLOCKS))
def test_distances_grow_with_the_level(family):
    means = [
        np.mean([
            agent.state_mean
            for agent in measure(
                heterogeneous(family, level=level, agents=4, seed=0),
                seed=2, states=64, episodes=2, horizon=5,
            ).agents
        ])
        for level in (0.2, 0.5, 1.0)
    ]  # fmt: skip
    assert 0 < means[0] < means[1] < means[2]


def test_the_distance_of_a_pendulum_in_stronger_gravity_is_the_closed_form():
    """Without torque the rate changes by 3 g / (2 l) sin(theta) dt, the angle by that times dt."""
    spec = EnvSpec("Pendulum-v1", params=(("g", 15.0),))
    found = measure([spec], seed=3, states=2000, episodes=2, horizon=1).agents[0]
    from privfedrl.envs.heterogeneity import _common, _stepped

    states, actions = _common(EnvSpec("Pendulum-v1"), 2000, 3)
    after, _ = _stepped(EnvSpec("Pendulum-v1"), states, actions)
    sigma = np.sqrt(((after - states) ** 2).mean(axis=0))
    turned = states[:, 1] + 0.05 * (22.5 * np.sin(states[:, 0]) + 3 * np.clip(actions[:, 0], -2, 2))
    change = np.clip(turned, -8, 8) - after[:, 1]
    expected = np.sqrt(((change / sigma[1]) ** 2 + (0.05 * change / sigma[0]) ** 2) / 2)
    assert found.state_mean == pytest.approx(expected.mean(), rel=1e-6)
    assert found.state_max == pytest.approx(expected.max(), rel=1e-6)
    assert found.reward_max == 0.0


def test_whole_turns_are_no_distance():
    from privfedrl.envs.heterogeneity import _difference

    left, right = np.array([[3.1, 1.0]]), np.array([[-3.1, 0.5]])
    np.testing.assert_allclose(_difference(left, right, [0]), [[6.2 - 2 * np.pi, 0.5]])


def test_other_rewards_show_in_rewards_and_returns():
    spec = EnvSpec("CartPole-v1", reward_scale=2.0)
    found = measure([spec], seed=0, states=10, episodes=8, horizon=200)
    agent = found.agents[0]
    assert (agent.state_max, agent.reward_mean, agent.reward_max) == (0.0, 1.0, 1.0)
    assert agent.return_difference == found.nominal_return
    assert agent.return_error == pytest.approx(found.nominal_error)


def test_reward_distances_are_in_units_of_the_nominal_rewards():
    from privfedrl.envs.heterogeneity import _common, _stepped

    nominal = EnvSpec("Pendulum-v1")
    _, paid = _stepped(nominal, *_common(nominal, 50, 6))
    spec = EnvSpec("Pendulum-v1", reward_scale=3.0)
    agent = measure([spec], seed=6, states=50, episodes=2, horizon=1).agents[0]
    unit = np.sqrt((paid**2).mean())
    assert agent.reward_mean == pytest.approx(2 * np.abs(paid).mean() / unit)
    assert agent.reward_max == pytest.approx(2 * np.abs(paid).max() / unit)


def test_delay_and_starts_show_in_returns_only():
    for change in ({"action_delay": 3}, {"initial_noise": 0.1}):
        agent = measure([EnvSpec("CartPole-v1", **change)], seed=0, states=10, episodes=16).agents[
            0
        ]
        assert agent.state_max == 0.0
        assert agent.return_error > 0


def test_an_agents_figures_do_not_depend_on_the_fleet():
    fleet = heterogeneous("CartPole-v1", level=0.5, agents=3, seed=0)
    arguments = {"seed": 4, "states": 16, "episodes": 4, "horizon": 30}
    whole = measure(fleet, **arguments)
    assert measure(fleet, **arguments) == whole
    for k, spec in enumerate(fleet):
        assert measure([spec], **arguments).agents[0] == whole.agents[k]


def test_other_ids_have_returns_only():
    fleet = heterogeneous("LunarLander-v3", level=1, agents=2, seed=0)
    found = measure(fleet, seed=0, episodes=4, horizon=60)
    for agent in found.agents:
        assert (agent.state_mean, agent.reward_mean) == (None, None)
        assert agent.return_difference != 0
        assert agent.return_error > 0
    text = str(found)
    assert "LunarLander-v3: 2 agents" in text
    assert len(text.splitlines()) == 4
    data = json.loads(found.to_json())
    assert data["agents"][0]["return_difference"] == found.agents[0].return_difference
    assert data["agents"][0]["state_mean"] is None


def test_an_agent_whose_environment_fails_is_lost_and_no_other(misbehaving, monkeypatch):
    env_id = misbehaving("")
    from privfedrl.envs import heterogeneity

    make = heterogeneity.make_vector_env

    def broken(spec, rows):
        env = make(spec, rows)
        inner = getattr(env, "env", env)
        for k in {0.5: [1], 0.25: range(rows)}.get(spec.reward_scale, []):
            inner._envs[k].unwrapped.fault = "step raises"
        return env

    monkeypatch.setattr(heterogeneity, "make_vector_env", broken)
    fleet = [EnvSpec(env_id, reward_scale=scale) for scale in (2.0, 0.5, 0.25)]
    found = measure(fleet, seed=0, episodes=4, horizon=5).agents
    assert [agent.lost for agent in found] == [0, 1, 4]
    assert [agent.return_difference for agent in found] == [3.0, -1.5, None]
    with pytest.raises(EnvironmentFault):
        measure([EnvSpec(misbehaving("step raises"))], seed=0, episodes=2)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"specs": []}, "specs"),
        ({"specs": [EnvSpec("CartPole-v1"), EnvSpec("Acrobot-v1")]}, "specs"),
        ({"specs": [EnvSpec("CartPole-v1"), EnvSpec("CartPole-v1", horizon=3)]}, "specs"),
        ({"specs": [EnvSpec("CartPole-v1"), EnvSpec("CartPole-v1", action_repeat=2)]}, "specs"),
        ({"seed": -1}, "seed"),
        ({"states": 0}, "states"),
        ({"episodes": 1}, "episodes"),
        ({"horizon": True}, "horizon"),
    ],
)
def test_arguments_out_of_range_are_refused(change, named):
    arguments = {"specs": [EnvSpec("CartPole-v1")], "seed": 0} | change
    with pytest.raises(ConfigurationError, match=named):
        measure(arguments.pop("specs"), **arguments)
