"""A filmed episode is the episode that would have been evaluated."""

from __future__ import annotations

import os

import numpy as np
import pytest

from privfedrl.envs import EnvSpec
from privfedrl.errors import ConfigurationError
from privfedrl.rollout import MlpPolicy
from privfedrl.rollout.evaluate import evaluate
from privfedrl.rollout.film import film

LANDER = MlpPolicy(observation_size=8, hidden=(4,), action="categorical", action_size=4)
SHAPED = MlpPolicy(observation_size=8, hidden=(4,), action="gaussian", action_size=2)


@pytest.mark.parametrize(
    ("env_id", "policy"), [("LunarLander-v3", LANDER), ("LunarLanderContinuous-v3", SHAPED)]
)
@pytest.mark.parametrize("repeat", [1, 4])
@pytest.mark.parametrize("sampled", [False, True])
def test_a_film_shows_the_episode_of_an_evaluation_with_its_perturbations(
    env_id: str, policy: MlpPolicy, sampled: bool, repeat: int
) -> None:
    spec = EnvSpec(
        env_id,
        params=(("gravity", -9.0), ("wind_power", 5.0)),
        reward_scale=2.0,
        observation_noise=0.1,
        action_delay=2,
        action_repeat=repeat,
    )
    parameters = 3.0 * np.random.default_rng(1).standard_normal(policy.num_parameters)
    arguments = {"rng": 4, "horizon": 70, "sampled": sampled}
    frames: list[np.ndarray] = []
    shown = film(policy, parameters, spec, lambda frame, _: frames.append(frame), **arguments)
    found = evaluate(policy, parameters, spec, episodes=1, **arguments)
    np.testing.assert_array_equal(shown.returns, found.returns)
    np.testing.assert_array_equal(shown.lengths, found.lengths)
    assert shown.terminated == found.terminated
    actions = int(shown.lengths[0])
    assert repeat * (actions - 1) + 1 < len(frames) <= repeat * actions + 1  # one per step
    assert {frame.shape for frame in frames} == {(400, 600, 3)}
    assert len({frame.tobytes() for frame in frames}) == len(frames)  # something moves


def test_the_process_keeps_its_surroundings() -> None:
    before = dict(os.environ)
    policy = MlpPolicy(observation_size=4, hidden=(), action="categorical", action_size=2)
    rates = []
    film(
        policy,
        np.zeros(policy.num_parameters),
        EnvSpec("CartPole-v1"),
        lambda _, rate: rates.append(rate),
        rng=0,
        horizon=3,
    )
    assert rates == [50.0] * 4
    assert dict(os.environ) == before


def test_a_policy_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="policy must have"):
        film(
            LANDER,
            np.zeros(LANDER.num_parameters),
            EnvSpec("CartPole-v1"),
            lambda *_: None,
            rng=0,
            horizon=3,
        )
