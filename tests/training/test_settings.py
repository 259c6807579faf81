"""Settings that exist are sound; the others say what is wrong and what to do instead."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from privfedrl.errors import ConfigurationError, UnsupportedMechanism
from privfedrl.privacy.units import Unit
from privfedrl.training import algorithms, settings
from privfedrl.training.algorithms import ALGORITHMS, Objective
from privfedrl.training.dqn_learner import DqnSettings
from privfedrl.training.metric_coordinates import ClipQuantile, ReturnRelease
from privfedrl.training.ppo_learner import PpoSettings
from privfedrl.training.settings import TrainerSettings

RETURN = ReturnRelease(low=0.0, high=1.0, weight=0.5)
QUANTILE = ClipQuantile(quantile=0.5, learning_rate=0.2, low=0.01, high=4.0, weight=0.25)
PPO = PpoSettings(
    gamma=0.9,
    gae_lambda=0.9,
    epochs=2,
    minibatch_size=64,
    learning_rate=1e-2,
    entropy_weight=0.0,
    reset_optimiser=True,
)
DQN = DqnSettings(
    gamma=0.9,
    learning_rate=1e-2,
    batch_size=32,
    updates_per_step=0.5,
    replay_capacity=100,
    target_interval=1,
    reset_optimiser=True,
)
PERSON = {"unit": Unit.PERSON, "units": 3}
LEARNERS = {"reinforce": None, "a2c": PPO, "ppo": PPO, "dqn": DQN}


def made(algorithm: str = "reinforce", **changes) -> TrainerSettings:
    objective = Objective(algorithm=algorithm, gamma=0.9)
    return TrainerSettings(objective=objective, **({"clip_norm": 1.0} | changes))


@pytest.mark.parametrize("unit", list(Unit))
@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_every_algorithm_is_offered_for_every_unit(algorithm, unit):
    agent = {"unit": unit, "learner": LEARNERS[algorithm]}
    options = {Unit.TRAJECTORY: {"unit": unit}, Unit.PERSON: PERSON, Unit.AGENT: agent}
    assert made(algorithm, **options[unit]).unit is unit


@pytest.mark.parametrize(
    ("algorithm", "changes", "expected"),
    [
        ("a2c", {}, 1.0),  # the policy's own clip norm
        ("ppo", {"critic_clip_norm": 0.25}, 0.25),
        ("reinforce", {}, None),
        ("dqn", {}, None),
        ("a2c", {"unit": Unit.AGENT, "learner": PPO}, None),  # the delta is clipped as a whole
        ("a2c", {"clip_norm": None, "private": False}, None),
    ],
)
def test_the_critics_clip_is_its_own_or_that_of_the_policy(algorithm, changes, expected):
    assert made(algorithm, **changes).critic_clip == expected


ROWS = ({"unit": Unit.TRAJECTORY}, PERSON)


@pytest.mark.parametrize("unit", ROWS, ids=["trajectory", "person"])
def test_what_would_mix_units_without_noise_is_refused_with_the_sound_ways(unit):
    with pytest.raises(UnsupportedMechanism) as caught:
        made("ppo", learner=PPO, **unit)
    for word in ("minibatches", "normalisers", "replay", "stopping rules", "use unit AGENT"):
        assert word in str(caught.value)
    with pytest.raises(UnsupportedMechanism) as caught:
        made("ppo", local_steps=2, **unit)
    for word in ("got 2", "later iterates", "use unit AGENT", "local-skellam"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [{"return_release": RETURN}, {"clip_quantile": QUANTILE}, {"critic_clip_norm": 1.0}],
    ids=["return_release", "clip_quantile", "critic_clip_norm"],
)
def test_an_agent_releases_its_delta_and_nothing_else(changes):
    (name,) = changes
    with pytest.raises(UnsupportedMechanism, match=f"{name} is offered for units TRAJECTORY"):
        made("ppo", unit=Unit.AGENT, learner=PPO, **changes)


def test_an_agents_epochs_and_replay_belong_to_its_learner():
    with pytest.raises(UnsupportedMechanism, match="uses must be 1 for unit AGENT, got 3"):
        made("ppo", unit=Unit.AGENT, learner=PPO, uses=3)


@pytest.mark.parametrize(
    ("algorithm", "learner", "message"),
    [
        ("reinforce", PPO, "NoneType for 'reinforce' and unit AGENT, got PpoSettings"),
        ("reinforce", DQN, "NoneType for 'reinforce' and unit AGENT, got DqnSettings"),
        ("a2c", None, "PpoSettings for 'a2c' and unit AGENT, got NoneType"),
        ("ppo", DQN, "PpoSettings for 'ppo' and unit AGENT, got DqnSettings"),
        ("dqn", PPO, "DqnSettings for 'dqn' and unit AGENT, got PpoSettings"),
    ],
)
def test_a_learner_of_another_algorithm_is_refused(algorithm, learner, message):
    with pytest.raises(ConfigurationError, match=f"learner must be {message}"):
        made(algorithm, unit=Unit.AGENT, learner=learner)


@pytest.mark.parametrize("algorithm", ["reinforce", "dqn"])
def test_a_critics_clip_needs_a_critic(algorithm):
    with pytest.raises(ConfigurationError, match=f"None for '{algorithm}', which has no critic"):
        made(algorithm, critic_clip_norm=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uses": 0}, "uses must be an integer >= 1, got 0"),
        ({"uses": True}, "uses must be an integer >= 1, got True"),
        ({"uses": 1.5}, "uses must be an integer >= 1, got 1.5"),
        ({"local_steps": 0}, "local_steps must be an integer >= 1, got 0"),
        ({"learning_rate": math.nan}, "learning_rate must be finite and > 0, got nan"),
        ({"learning_rate": -1.0}, "learning_rate must be finite and > 0, got -1.0"),
        ({"clip_norm": 0.0}, "clip_norm must be in"),
        ({"clip_norm": None}, "clip_norm must be a number when private is True"),
        ({"critic_clip_norm": math.inf}, "critic_clip_norm must be in"),
        ({"private": False}, "must be None when private is False"),
        (
            {"private": False, "clip_norm": None, "return_release": RETURN},
            "must be None when private is False",
        ),
        ({"unit": Unit.PERSON}, "units must be the public number of persons .* got None"),
        ({"unit": Unit.PERSON, "units": 0}, "units must be the public number .* got 0"),
        ({"units": 3}, "units and max_trajectories_per_unit are for unit PERSON, got 3"),
        ({"max_trajectories_per_unit": 2}, "are for unit PERSON, got None and 2 for TRAJECTORY"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        made("ppo", **changes)


def test_settings_cannot_be_changed_after_the_check():
    with pytest.raises(AttributeError):
        made().uses = 2
    with pytest.raises(UnsupportedMechanism):
        replace(made("ppo"), local_steps=2)


def test_there_is_a_learner_rule_for_every_algorithm():
    assert set(settings._LEARNERS) == set(algorithms.ALGORITHMS)
