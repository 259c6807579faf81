"""Every value of a plan that training needs arrives there, each under its own name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from privfedrl.envs import EnvSpec, make_vector_env
from privfedrl.federation.contribution import contribute, local_trainer, published_model
from privfedrl.federation.setup import round_setup
from privfedrl.plan import AgentLearner, Plan
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.rollout import collect
from privfedrl.training import DqnSettings, Objective, PpoSettings, Truncation

ROWS = {
    "algorithm": "ppo",
    "gamma": 0.91,
    "truncation": "bootstrap",
    "entropy_weight": 0.02,
    "gae_lambda": 0.83,
    "value_scale": 7.0,
    "advantage_scale": 0.6,
    "clip_range": 0.17,
    "guidance_weight": 0.3,
    "reward_low": -3.0,
    "reward_high": 4.0,
    "step_cost": 0.05,
    "epochs": 2,
}
LEARNER = AgentLearner(
    minibatch=33,
    normalise_advantages=False,
    normalise_observations=True,
    target_kl=0.04,
    private_critic=(5,),
    updates_per_step=0.125,
    replay_capacity=777,
    reset_optimiser=False,
)
AGENT = {
    "gamma": 0.92,
    "gae_lambda": 0.84,
    "entropy_weight": 0.03,
    "value_scale": 8.0,
    "clip_range": 0.18,
    "epochs": 4,
    "local_steps": 3,
    "local_learning_rate": 0.002,
    "learner": LEARNER,
}
# values that a plan does not set, with what they then are
FIXED_PPO = {"value_weight", "max_grad_norm"}
FIXED_DQN = {"double", "max_grad_norm"}


def settings_of(make_plan: Callable[..., Plan], *sections: dict[str, Any]) -> Any:
    return local_trainer(round_setup(make_plan(*sections))).settings


def assert_every_field(value: Any, expected: dict[str, Any], fixed: set[str]) -> None:
    """``value`` holds ``expected``; every other field is one of ``fixed``, at its default."""
    fields = {field.name: field for field in dataclasses.fields(value)}
    assert set(fields) == set(expected) | fixed
    for name, wanted in expected.items():
        assert getattr(value, name) == wanted, name
        assert wanted != fields[name].default, f"{name}: a default shows nothing"
    for name in fixed:
        assert getattr(value, name) == fields[name].default, name


def test_every_value_reaches_the_objective_of_clipped_rows(make_plan: Callable[..., Plan]) -> None:
    found = settings_of(make_plan, {"training": ROWS, "policy": {"critic_hidden": (4,)}})
    expected = {name: value for name, value in ROWS.items() if name != "epochs"}
    expected["truncation"] = Truncation.BOOTSTRAP
    assert_every_field(found.objective, expected, {"advantages", "behaviour_mixture", "double"})
    assert found.uses == 2
    assert Objective().advantages == "gae"


@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
def test_every_value_reaches_the_ppo_inside_an_agent(
    make_plan: Callable[..., Plan], agent_unit: dict[str, Any], algorithm: str
) -> None:
    training = AGENT | {
        "algorithm": algorithm,
        "guidance_weight": 0.4,
        "behaviour_mixture": 0.2,
    }
    if algorithm == "a2c":
        training |= {"epochs": 1}
        del training["clip_range"]
    learner = settings_of(make_plan, agent_unit, {"training": training}).learner
    assert isinstance(learner, PpoSettings)
    expected = {
        "gamma": 0.92,
        "gae_lambda": 0.84,
        "epochs": training["epochs"],
        "minibatch_size": 33,
        "learning_rate": 0.002,
        "entropy_weight": 0.03,
        "reset_optimiser": False,
        "clip_range": 1e30 if algorithm == "a2c" else 0.18,
        "value_scale": 8.0,
        "normalise_advantages": False,
        "normalise_observations": True,
        "target_kl": 0.04,
        "guidance_weight": 0.4,
        "behaviour_mixture": 0.2,
        "private_critic_hidden": (5,),
    }
    assert_every_field(learner, expected, FIXED_PPO)


def test_every_value_reaches_the_dqn_inside_an_agent(
    make_plan: Callable[..., Plan], agent_unit: dict[str, Any]
) -> None:
    given = dataclasses.replace(LEARNER, private_critic=None, target_kl=None)
    training = {
        "algorithm": "dqn",
        "gamma": 0.92,
        "value_scale": 8.0,
        "target_rounds": 55,
        "local_learning_rate": 0.002,
        "learner": dataclasses.replace(
            given, normalise_advantages=True, normalise_observations=False
        ),
    }
    learner = settings_of(make_plan, agent_unit, {"training": training}).learner
    assert isinstance(learner, DqnSettings)
    expected = {
        "gamma": 0.92,
        "learning_rate": 0.002,
        "batch_size": 33,
        "updates_per_step": 0.125,
        "replay_capacity": 777,
        "target_interval": 55,
        "reset_optimiser": False,
        "value_scale": 8.0,
    }
    assert_every_field(learner, expected, FIXED_DQN)


def test_reinforce_inside_an_agent_weighs_by_the_mixture_and_is_guided(
    make_plan: Callable[..., Plan], agent_unit: dict[str, Any]
) -> None:
    training = {"behaviour_mixture": 0.2, "guidance_weight": 0.4, "local_steps": 3}
    found = settings_of(make_plan, agent_unit, {"training": training})
    assert found.objective.behaviour_mixture == 0.2
    assert found.objective.guidance_weight == 0.4
    assert (found.local_steps, found.learner) == (3, None)


def test_local_steps_are_told_apart(
    make_plan: Callable[..., Plan], agent_unit: dict[str, Any]
) -> None:
    """The step names the generator of a batch: the same one twice would repeat its episodes."""
    setup = round_setup(make_plan(agent_unit, training={"local_steps": 3}))
    steps: list[int] = []

    def experience(theta: np.ndarray, step: int) -> Any:
        steps.append(step)
        env = make_vector_env(EnvSpec("CartPole-v1"), setup.plan.fleet.trajectories)
        rng = np.random.default_rng(step)
        return collect(setup.policy, theta, env, horizon=setup.plan.fleet.horizon, rng=rng)

    contribute(
        setup,
        local_trainer(setup),
        published_model(setup, np.zeros(setup.policy.num_parameters)),
        experience=experience,
        rotation_seed=bytes(32),
        entropy=DeterministicEntropy(b"steps"),
    )
    assert steps == [0, 1, 2]
