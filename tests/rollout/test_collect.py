"""collect and collect_fleet: whole trajectories, the right physics, independent agents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from privfedrl.envs import (
    EnvSpec,
    VectorCartPole,
    fits_one_block,
    heterogeneous,
    make_vector_env,
)
from privfedrl.errors import ConfigurationError, EnvironmentFault
from privfedrl.rollout.collect import collect, collect_fleet
from privfedrl.rollout.evaluate import evaluate
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch

FIELDS = ("observations", "actions", "rewards", "mask", "terminated", "truncated")


def assert_same(left, right):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


def test_replaying_the_actions_gives_the_collected_trajectories(cartpole_policy):
    parameters = cartpole_policy.initial_parameters(np.random.default_rng(0)) * 30
    spec = EnvSpec("CartPole-v1", params=(("length", 0.8),))
    batch = collect(
        cartpole_policy,
        parameters,
        make_vector_env(spec, 40),
        horizon=500,
        rng=np.random.default_rng(1),
    )
    assert len(set(batch.lengths.tolist())) > 5  # rows end at many different steps
    env = VectorCartPole(spec, 40)
    seen = env.reset(np.random.default_rng(1))
    for t in range(batch.mask.shape[1]):
        live = batch.mask[:, t]
        np.testing.assert_array_equal(batch.observations[live, t], seen[live])
        seen, rewards, terminated, _ = env.step(batch.actions[:, t])
        np.testing.assert_array_equal(batch.rewards[live, t], rewards[live])
        last = live & (batch.lengths == t + 1)
        np.testing.assert_array_equal(batch.terminated[last], terminated[last])


def test_actions_follow_the_policy_at_what_it_saw(cartpole_policy):
    """A policy whose logits are certain leaves nothing to chance."""
    first, last = np.zeros((32, 4)), np.zeros((2, 32))
    first[0] = [0.0, 0.0, 1e6, 0.0]
    last[:, 0] = [-1e4, 1e4]
    parameters = np.concatenate([first.ravel(), np.zeros(32), last.ravel(), np.zeros(2)])
    env = make_vector_env(EnvSpec("CartPole-v1"), 8)
    batch = collect(cartpole_policy, parameters, env, horizon=60, rng=np.random.default_rng(2))
    expected = batch.observations[..., 2] > 0
    np.testing.assert_array_equal(batch.actions[batch.mask], expected[batch.mask])


def test_the_horizon_truncates_and_the_environment_terminates(
    cartpole_policy, balancing_parameters, falling_parameters
):
    env = make_vector_env(EnvSpec("CartPole-v1"), 6)
    rng = np.random.default_rng(0)
    cut = collect(cartpole_policy, balancing_parameters, env, horizon=45, rng=rng)
    assert cut.truncated.all()
    assert not cut.terminated.any()
    assert cut.mask.shape == (6, 45)
    fallen = collect(cartpole_policy, falling_parameters, env, horizon=500, rng=rng)
    assert fallen.terminated.all()
    assert not fallen.truncated.any()
    assert fallen.mask.shape[1] == fallen.lengths.max() < 45
    whole = collect(cartpole_policy, balancing_parameters, env, horizon=10_000, rng=rng)
    assert whole.mask.shape[1] == 500
    assert whole.truncated.any()


def test_nothing_is_carried_over_between_calls(cartpole_policy, balancing_parameters):
    env = make_vector_env(EnvSpec("CartPole-v1"), 5)
    collect(cartpole_policy, balancing_parameters, env, horizon=33, rng=np.random.default_rng(9))
    found = collect(
        cartpole_policy, balancing_parameters, env, horizon=60, rng=np.random.default_rng(1)
    )
    fresh = make_vector_env(EnvSpec("CartPole-v1"), 5)
    expected = collect(
        cartpole_policy, balancing_parameters, fresh, horizon=60, rng=np.random.default_rng(1)
    )
    assert_same(found, expected)
    assert found.batch_id != expected.batch_id


def test_a_fleet_in_one_block_equals_each_agent_alone(cartpole_policy, balancing_parameters):
    fleet = heterogeneous("CartPole-v1", level=0.5, agents=10, seed=0)
    noisy = balancing_parameters * 0.2
    rngs = [np.random.default_rng(k) for k in range(10)]
    block = collect_fleet(cartpole_policy, noisy, fleet, 32, horizon=500, rngs=rngs)
    for k, (spec, batch) in enumerate(zip(fleet, block, strict=True)):
        env = make_vector_env(spec, 32)
        rng = np.random.default_rng(k)
        assert_same(batch, collect(cartpole_policy, noisy, env, horizon=500, rng=rng))
        assert rng.random() == rngs[k].random()


def test_another_agents_environment_changes_nothing(cartpole_policy, balancing_parameters):
    fleets = [
        [EnvSpec("CartPole-v1"), EnvSpec("CartPole-v1", params=(("length", length),))]
        for length in (0.2, 2.0)
    ]
    one, two = (
        collect_fleet(
            cartpole_policy,
            balancing_parameters,
            fleet,
            4,
            horizon=100,
            rngs=[np.random.default_rng(k) for k in range(2)],
        )
        for fleet in fleets
    )
    assert_same(one[0], two[0])
    assert one[1].returns.tolist() != two[1].returns.tolist()


def test_agents_of_other_families_are_rolled_one_by_one():
    policy = MlpPolicy(observation_size=2, hidden=(8,), action="categorical", action_size=3)
    parameters = policy.initial_parameters(np.random.default_rng(0))
    fleet = [EnvSpec("MountainCar-v0", horizon=limit) for limit in (20, 40)]
    assert not fits_one_block(fleet)
    rngs = [np.random.default_rng(k) for k in range(2)]
    batches = collect_fleet(policy, parameters, fleet, 2, horizon=35, rngs=rngs)
    assert [batch.mask.shape for batch in batches] == [(2, 20), (2, 35)]
    assert all(batch.truncated.all() for batch in batches)
    env = make_vector_env(fleet[1], 2)
    rng = np.random.default_rng(1)
    assert_same(batches[1], collect(policy, parameters, env, horizon=35, rng=rng))


def test_continuous_actions_are_collected_as_the_policy_drew_them():
    policy = MlpPolicy(observation_size=3, hidden=(4,), action="gaussian", action_size=1)
    parameters = policy.initial_parameters(np.random.default_rng(0))
    env = make_vector_env(EnvSpec("Pendulum-v1"), 3)
    batch = collect(policy, parameters, env, horizon=40, rng=np.random.default_rng(0))
    assert batch.actions.shape == (3, 40, 1)
    assert batch.actions.dtype == np.float32
    assert np.abs(batch.actions).max() > 2.0  # clipped by the environment, not in the record
    assert batch.truncated.all()


def pendulum(**changes):
    shape = {"observation_size": 3, "hidden": (4,), "action": "gaussian", "action_size": 1}
    return MlpPolicy(**(shape | changes))


def test_the_environment_gets_squashed_actions_and_the_record_what_was_drawn():
    """Replayed by hand: the same rewards follow from the squashed actions and from no others."""
    policy = pendulum(bounds=(-0.5, 1.0))
    parameters = policy.initial_parameters(np.random.default_rng(0))
    spec = EnvSpec("Pendulum-v1")
    env = make_vector_env(spec, 3)
    batch = collect(policy, parameters, env, horizon=10, rng=np.random.default_rng(0))
    free = collect(pendulum(), parameters, env, horizon=10, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(batch.actions[:, 0], free.actions[:, 0])
    assert np.abs(batch.actions).max() > 1.0
    again = make_vector_env(spec, 3)
    again.reset([np.random.default_rng(0)])
    bound = policy.bind(parameters)
    for t in range(10):
        outward = bound.to_environment(batch.actions[:, t])
        assert -0.5 <= outward.min() <= outward.max() <= 1.0
        _, rewards, _, _ = again.step(outward)
        np.testing.assert_array_equal(batch.rewards[:, t], rewards)


def test_a_critic_beside_the_policy_changes_no_trajectory(cartpole_policy):
    parameters = cartpole_policy.initial_parameters(np.random.default_rng(0)) * 30
    with_critic = replace(cartpole_policy, critic_hidden=(5,))
    extended = np.concatenate([parameters, np.ones(with_critic.num_parameters - len(parameters))])
    batches = [
        collect(
            policy,
            vector,
            make_vector_env(EnvSpec("CartPole-v1"), 5),
            horizon=60,
            rng=np.random.default_rng(1),
        )
        for policy, vector in ((cartpole_policy, parameters), (with_critic, extended))
    ]
    assert_same(*batches)


Q_VALUES = MlpPolicy(observation_size=4, hidden=(8,), action="q-values", action_size=2)


def q_batch(exploration, *, rows=40, seed=1):
    parameters = Q_VALUES.initial_parameters(np.random.default_rng(0)) * 30
    env = make_vector_env(EnvSpec("CartPole-v1"), rows)
    return parameters, collect(
        Q_VALUES,
        parameters,
        env,
        horizon=60,
        rng=np.random.default_rng(seed),
        exploration=exploration,
    )


def test_a_policy_of_q_values_acts_greedily_unless_it_explores():
    parameters, batch = q_batch(0.0)
    outputs = Q_VALUES.bind(parameters).forward(batch.observations[batch.mask])
    np.testing.assert_array_equal(batch.actions[batch.mask], outputs.argmax(axis=1))
    assert batch.actions.dtype == np.int64


@pytest.mark.statistical
def test_exploration_takes_the_other_action_half_as_often():
    """False-positive rate <= 1e-6: one frequency of at least 500 draws, which are independent of
    what was seen, within 5 standard deviations (two-sided normal tail 5.7e-7); the seed is fixed.
    """
    parameters, batch = q_batch(0.4, rows=100)
    best = Q_VALUES.bind(parameters).forward(batch.observations[batch.mask]).argmax(axis=1)
    other = batch.actions[batch.mask] != best
    assert len(other) >= 500
    assert abs(other.mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / len(other))


def test_exploration_reaches_every_agent_of_a_fleet_alike():
    parameters, alone = q_batch(0.3, rows=4, seed=7)
    fleet = [EnvSpec("CartPole-v1")] * 2
    both = collect_fleet(
        Q_VALUES,
        parameters,
        fleet,
        4,
        horizon=60,
        rngs=[np.random.default_rng(7), np.random.default_rng(8)],
        exploration=0.3,
    )
    assert_same(both[0], alone)
    assert both[1].observations.tobytes() != both[0].observations.tobytes()


def test_exploration_is_refused_for_policies_that_draw_their_actions(cartpole_policy):
    env = make_vector_env(EnvSpec("CartPole-v1"), 2)
    parameters = np.zeros(cartpole_policy.num_parameters)
    with pytest.raises(ConfigurationError, match="exploration is for action 'q-values'"):
        collect(
            cartpole_policy,
            parameters,
            env,
            horizon=5,
            rng=np.random.default_rng(0),
            exploration=0.1,
        )


def test_an_environment_of_which_every_row_fails_leaves_absent_rows(faulty_module):
    policy = MlpPolicy(observation_size=3, hidden=(), action="categorical", action_size=2)
    pendulum_like = EnvSpec(f"{faulty_module}Raise-v0")
    (batch,) = collect_fleet(
        policy,
        np.zeros(policy.num_parameters),
        [pendulum_like],
        2,
        horizon=5,
        rngs=[np.random.default_rng(0)],
    )
    # rows that failed one by one are absent one by one, also when they are all
    assert isinstance(batch, TrajectoryBatch)
    assert batch.lost == 2
    assert not batch.mask.any()
    assert "step raised RuntimeError" in str(batch.fault)
    assert "0.123" not in str(batch.fault)
    with pytest.raises(EnvironmentFault, match="step raised RuntimeError"):
        evaluate(
            policy, np.zeros(policy.num_parameters), pendulum_like, episodes=2, rng=0, horizon=5
        )


@pytest.mark.parametrize("horizon", [0, -1, 2.5, True])
def test_a_horizon_below_one_step_is_refused(cartpole_policy, balancing_parameters, horizon):
    env = make_vector_env(EnvSpec("CartPole-v1"), 2)
    with pytest.raises(ConfigurationError, match="horizon"):
        collect(
            cartpole_policy,
            balancing_parameters,
            env,
            horizon=horizon,
            rng=np.random.default_rng(0),
        )


@pytest.mark.parametrize(
    "policy",
    [
        MlpPolicy(observation_size=3, hidden=(), action="categorical", action_size=2),
        MlpPolicy(observation_size=4, hidden=(), action="categorical", action_size=3),
        MlpPolicy(observation_size=4, hidden=(), action="gaussian", action_size=2),
    ],
)
def test_a_policy_for_other_spaces_is_refused(policy):
    env = make_vector_env(EnvSpec("CartPole-v1"), 2)
    with pytest.raises(ConfigurationError, match="policy must have"):
        collect(
            policy,
            np.zeros(policy.num_parameters),
            env,
            horizon=5,
            rng=np.random.default_rng(0),
        )


def test_every_agent_needs_a_generator_of_its_own(cartpole_policy, balancing_parameters):
    rng = np.random.default_rng(0)
    for fleet, rngs in (([], []), (["a"], []), (["a", "b"], [rng, rng])):
        with pytest.raises(ConfigurationError, match="rngs"):
            collect_fleet(
                cartpole_policy,
                balancing_parameters,
                [EnvSpec("CartPole-v1") for _ in fleet],
                2,
                horizon=5,
                rngs=rngs,
            )
