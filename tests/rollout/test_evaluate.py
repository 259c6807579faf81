"""greedy_return: deterministic, greedy, undiscounted."""

from __future__ import annotations

import numpy as np
import pytest

from privfedrl.envs import EnvSpec, make_vector_env
from privfedrl.errors import ConfigurationError
from privfedrl.rollout.evaluate import evaluate, greedy_return
from privfedrl.rollout.policies import MlpPolicy


def test_a_balancing_policy_scores_the_time_limit(
    cartpole_policy, balancing_parameters, falling_parameters
):
    arguments = {"episodes": 10, "rng": 0, "horizon": 500}
    spec = EnvSpec("CartPole-v1")
    assert greedy_return(cartpole_policy, balancing_parameters, spec, **arguments) == 500.0
    assert greedy_return(cartpole_policy, falling_parameters, spec, **arguments) < 30


def test_it_equals_stepping_the_most_likely_action(cartpole_policy):
    parameters = cartpole_policy.initial_parameters(np.random.default_rng(0))
    spec = EnvSpec("CartPole-v1")
    env, bound = make_vector_env(spec, 7), cartpole_policy.bind(parameters)
    seen, total = env.reset(np.random.default_rng(5)), np.zeros(7)
    running = np.ones(7, dtype=bool)
    for _ in range(90):
        seen, rewards, terminated, truncated = env.step(bound.greedy(bound.forward(seen)))
        total += rewards * running
        running &= ~(terminated | truncated)
    found = greedy_return(cartpole_policy, parameters, spec, episodes=7, rng=5, horizon=90)
    assert found == total.mean()


def test_a_generator_gives_what_its_seed_gives(cartpole_policy, balancing_parameters):
    weak = balancing_parameters * 0.01
    spec = EnvSpec("Acrobot-v1", horizon=5)
    with pytest.raises(ConfigurationError, match="policy must have"):
        greedy_return(cartpole_policy, weak, spec, episodes=1, rng=0, horizon=5)
    one, two = (
        greedy_return(
            cartpole_policy, weak, EnvSpec("CartPole-v1"), episodes=3, rng=rng, horizon=500
        )
        for rng in (4, np.random.default_rng(4))
    )
    assert one == two


@pytest.mark.parametrize("episodes", [0, True, 1.0])
def test_it_needs_at_least_one_episode(cartpole_policy, balancing_parameters, episodes):
    with pytest.raises(ConfigurationError, match="episodes"):
        greedy_return(
            cartpole_policy,
            balancing_parameters,
            EnvSpec("CartPole-v1"),
            episodes=episodes,
            rng=0,
            horizon=5,
        )


def test_lengths_and_ends_are_told_apart(cartpole_policy, balancing_parameters, falling_parameters):
    spec = EnvSpec("CartPole-v1")
    held = evaluate(cartpole_policy, balancing_parameters, spec, episodes=3, rng=0, horizon=40)
    np.testing.assert_array_equal(held.returns, [40.0] * 3)
    np.testing.assert_array_equal(held.lengths, [40] * 3)
    assert not held.terminated.any()
    fell = evaluate(cartpole_policy, falling_parameters, spec, episodes=3, rng=0, horizon=40)
    assert fell.terminated.all()
    assert (fell.lengths < 40).all()
    np.testing.assert_array_equal(fell.returns, fell.lengths)


def test_sampling_draws_the_actions(cartpole_policy, balancing_parameters):
    spec = EnvSpec("CartPole-v1")
    arguments = {"episodes": 20, "rng": 0, "horizon": 500}
    weak = balancing_parameters * 0.01  # its most likely action balances, the draws do not
    greedy = evaluate(cartpole_policy, weak, spec, **arguments)
    sampled = evaluate(cartpole_policy, weak, spec, sampled=True, **arguments)
    assert greedy.returns.mean() == 500.0
    assert sampled.returns.mean() < 100.0


def test_q_values_have_no_distribution_to_sample_from():
    policy = MlpPolicy(observation_size=4, hidden=(), action="q-values", action_size=2)
    with pytest.raises(ConfigurationError, match="sampled"):
        evaluate(
            policy,
            np.zeros(policy.num_parameters),
            EnvSpec("CartPole-v1"),
            episodes=1,
            rng=0,
            horizon=5,
            sampled=True,
        )
