"""greedy_return: deterministic, greedy, undiscounted."""

from __future__ import annotations

import numpy as np
import pytest

from privfedrl.envs import EnvSpec, make_vector_env
from privfedrl.errors import ConfigurationError
from privfedrl.rollout.evaluate import greedy_return


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
