"""Every combination of algorithm, unit and policy that is refused, with its reason and its cure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from privfedrl.envs import VARIES, heterogeneous
from privfedrl.errors import ConfigurationError
from privfedrl.federation.contribution import local_trainer
from privfedrl.federation.setup import round_setup
from privfedrl.plan import (
    AgentLearner,
    FederationPlan,
    FleetPlan,
    Plan,
    PolicyPlan,
    PrivacyPlan,
    ProtectionPlan,
    TrainingPlan,
)
from privfedrl.plan.training_rules import ALGORITHM_TRAITS, TRAINING_RULES, VARIATIONS
from privfedrl.training.algorithms import ALGORITHMS

Sections = Mapping[str, Mapping[str, Any]]
GIVEN: Sections = {
    "fleet": {"environment": "CartPole-v1", "agents": 6, "trajectories": 4, "horizon": 60},
    "policy": {"observations": 4, "actions": 2, "hidden": (8,)},
    "federation": {"rounds": 3},
    "privacy": {"unit": "trajectory", "max_colluding": 1, "epsilon": 5.0},
    "training": {},
    "protection": {"min_clients": 4},
}
KINDS: Mapping[str, Any] = {
    "fleet": FleetPlan,
    "policy": PolicyPlan,
    "federation": FederationPlan,
    "privacy": PrivacyPlan,
    "training": TrainingPlan,
    "protection": ProtectionPlan,
}


def made(*layers: Sections) -> Plan:
    """The plan above with these layers of changes on it."""
    sections = {name: dict(values) for name, values in GIVEN.items()}
    for layer in layers:
        for name, changes in layer.items():
            sections[name] |= changes
    return Plan(name="tiny", **{name: KINDS[name](**values) for name, values in sections.items()})


def training(**changes: Any) -> Sections:
    return {"training": changes}


def learner(**changes: Any) -> Sections:
    return {"training": {"learner": AgentLearner(**changes)}}


CRITIC: Sections = {"policy": {"critic_hidden": (4,)}}
CONTINUOUS: Sections = {"policy": {"action_kind": "continuous"}}
A2C: Sections = {"training": {"algorithm": "a2c"}} | CRITIC
PPO: Sections = {"training": {"algorithm": "ppo"}} | CRITIC
DQN = training(algorithm="dqn")
RETURNS = training(algorithm="ppo", advantages="returns")
AGENT: Sections = {"privacy": {"unit": "agent"}, "federation": {"strategy": "fedavg"}}
PERSON: Sections = {"privacy": {"unit": "person", "max_trajectories_per_unit": 2}}
LOCAL: Sections = {
    "privacy": {"mechanism": "local-skellam"},
    "federation": {"strategy": "fedavg"},
    "training": {"local_steps": 2},
}
BANDS: Sections = {"privacy": {"mechanism": "central-discrete-gaussian", "correlation_bands": 2}}

REFUSED: Mapping[str, tuple[tuple[Sections, ...], str]] = {
    # values out of range
    "gamma": ((training(gamma=0.0),), r"training\.gamma must lie in \(0, 1\], got 0.0"),
    "entropy": ((training(entropy_weight=-1.0),), r"entropy_weight must lie in \[0, 1000\]"),
    "guidance": ((PPO, training(guidance_weight=math.inf)), r"guidance_weight must lie in"),
    "value scale": ((training(value_scale=0.0),), r"value_scale must lie in \[1e-09, 1e\+09\]"),
    "advantage scale": ((training(advantage_scale=0.0),), r"advantage_scale must lie in \[1e-09"),
    "clip range": ((training(clip_range=0.0),), r"clip_range must lie in \[0.001, 1000\]"),
    "local steps": ((AGENT, training(local_steps=0)), r"local_steps must lie in \[1, 10000\]"),
    "epochs": ((training(epochs=0),), r"training\.epochs must lie in \[1, 1000\], got 0"),
    "replay": ((training(replay_rounds=0),), r"replay_rounds must lie in \[1, 1000\], got 0"),
    "target": ((training(target_rounds=0),), r"target_rounds must lie in \[1, 1e\+06\], got 0"),
    "step size": ((training(local_learning_rate=0.0),), r"local_learning_rate must lie in \(0"),
    "trace": ((training(gae_lambda=1.5),), r"training\.gae_lambda must lie in \[0, 1\], got 1.5"),
    "exploration start": ((training(exploration_start=-0.1),), r"exploration_start must lie in"),
    "exploration end": ((training(exploration_end=1.1),), r"exploration_end must lie in \[0, 1\]"),
    "exploration span": ((training(exploration_fraction=2.0),), r"exploration_fraction must lie"),
    "not a number": ((training(gae_lambda=math.nan),), r"gae_lambda must lie in .*, got nan"),
    "step cost": ((training(step_cost=math.inf),), r"training\.step_cost must lie in"),
    "reward low": ((training(reward_low=-math.inf),), r"training\.reward_low must lie in"),
    "reward high": ((training(reward_high=1e10),), r"training\.reward_high must lie in"),
    "reward bounds": (
        (training(reward_low=1.0, reward_high=1.0),),
        r"reward_low must be < reward_high, got 1.0 and 1.0",
    ),
    "learner minibatch": ((PPO, AGENT, learner(minibatch=0)), r"learner\.minibatch must lie in"),
    "learner replay": ((DQN, AGENT, learner(replay_capacity=0)), r"replay_capacity must lie in"),
    "learner steps": ((DQN, AGENT, learner(updates_per_step=0.0)), r"updates_per_step must lie in"),
    "learner KL": ((PPO, AGENT, learner(target_kl=0.0)), r"target_kl must lie in"),
    "learner critic": (
        (training(algorithm="ppo"), AGENT, learner(private_critic=(4, 0))),
        r"learner\.private_critic\[1\] must lie in \[1, 65536\], got 0",
    ),
    "critic width": (
        (PPO, {"policy": {"critic_hidden": (0,)}}),
        r"policy\.critic_hidden\[0\] must lie in \[1, 65536\], got 0",
    ),
    "critic clip": (
        (PPO, {"privacy": {"critic_clip_norm": 0.0}}),
        r"privacy\.critic_clip_norm must lie in \[1e-12, 1e\+09\], got 0.0",
    ),
    # what is a default elsewhere and none for a learner
    "step size of a learner": (
        (training(algorithm="ppo", local_learning_rate=1.0), AGENT, learner(private_critic=())),
        r"local_learning_rate must be at most 0.1 for 'ppo' inside an agent, got 1.0: .* 0.001",
    ),
    "no target network": (
        (DQN, AGENT, training(local_learning_rate=0.001, target_rounds=1)),
        r"target_rounds must be at least 2 for 'dqn' inside an agent, got 1: .* 100 to 1,000",
    ),
    # what local noised steps cannot use
    "guided local noise": (
        (LOCAL, training(guidance_weight=0.5)),
        r"guidance_weight does nothing where the policy that is improved is the one that collected",
    ),
    "targets of local noise": (
        (DQN, LOCAL, training(target_rounds=3, local_steps=2)),
        r"target_rounds must be 1 with mechanism 'local-skellam', got 3: .* 'skellam'",
    ),
    # what an algorithm can and cannot do
    "bootstrap without critic": (
        (training(truncation="bootstrap"),),
        "truncation must be one of none, continue for algorithm 'reinforce', got 'bootstrap'",
    ),
    "continue with critic": (
        (A2C, training(truncation="continue", gamma=0.9)),
        "truncation must be one of none, bootstrap for algorithm 'a2c', got 'continue'",
    ),
    "bootstrap of returns": (
        (RETURNS, training(truncation="bootstrap")),
        "one of none, continue for algorithm 'ppo' without a critic, got 'bootstrap'",
    ),
    "endless": (
        (training(truncation="continue"),),
        r"'continue' needs training\.gamma < 1, got 1.0 \(the continued return would be infinite\)",
    ),
    "returns of another": (
        (A2C, training(advantages="returns")),
        "'returns' is for algorithm 'ppo' with unit 'trajectory' or 'person', got it with 'a2c'",
    ),
    "returns of an agent": (
        (RETURNS, AGENT),
        "'returns' is for algorithm 'ppo' .*, got it with 'ppo' and 'agent'; leave it out",
    ),
    "epochs of another": (
        (A2C, training(epochs=2)),
        "epochs is for algorithm 'ppo', whose clipped ratio .* must be 1 for 'a2c', got 2",
    ),
    "replay of another": (
        (PPO, training(replay_rounds=2)),
        "replay_rounds is for algorithm 'dqn', .* must be 1 for 'ppo', got 2; use 'ppo' with "
        r"training\.epochs",
    ),
    "continuous q": (
        (DQN, CONTINUOUS),
        "'dqn' needs policy.action_kind 'discrete', got 'continuous': .*; use 'ppo'",
    ),
    "entropy of q": (
        (DQN, training(entropy_weight=0.1)),
        "entropy_weight must be 0 for algorithm 'dqn', .* no distribution, got 0.1",
    ),
    "guidance of q": (
        (DQN, training(guidance_weight=0.1)),
        "guidance_weight must be 0 for algorithm 'dqn', .* no distribution, got 0.1",
    ),
    # critics
    "critic of another": (
        (CRITIC,),
        r"critic_hidden must be absent for algorithm 'reinforce', which has no critic, got \[4\]",
    ),
    "critic of returns": (
        (RETURNS, CRITIC),
        r"absent for algorithm 'ppo' with advantages 'returns', which has no critic, got \[4\]",
    ),
    "private critic of another": (
        (DQN, AGENT, learner(private_critic=(4,))),
        r"private_critic must be absent for algorithm 'dqn', which has no critic, got \[4\]",
    ),
    "critic without noise": (
        (training(algorithm="ppo"),),
        "critic_hidden must be given for algorithm 'ppo' and unit 'trajectory': a critic that is "
        "trained without noise on the same trajectories would carry them into every later release; "
        r".*\(or use 'reinforce', 'ppo' with training\.advantages = 'returns', or unit 'agent'\)",
    ),
    "critic of a person": (
        (training(algorithm="a2c"), PERSON),
        "critic_hidden must be given for algorithm 'a2c' and unit 'person'",
    ),
    "no critic at all": (
        (training(algorithm="ppo"), AGENT),
        r"needs either policy\.critic_hidden .* or training\.learner\.private_critic .*got neither",
    ),
    "two critics": (
        (PPO, AGENT, learner(private_critic=(4,))),
        r"needs either policy\.critic_hidden .* or training\.learner\.private_critic .* got both",
    ),
    "clip of no critic": (
        ({"privacy": {"critic_clip_norm": 0.5}},),
        r"critic_clip_norm is for a published critic .* got 0.5; unit 'agent' clips the delta",
    ),
    "clip of an agent": (
        (PPO, AGENT, {"privacy": {"critic_clip_norm": 0.5}}),
        r"critic_clip_norm is for a published critic .* unit 'agent' clips the delta as a whole",
    ),
    # units
    "learner of rows": (
        (PPO, learner()),
        "learner is for unit 'agent', got it with unit 'trajectory': minibatches across "
        "trajectories, .* or use unit 'agent'",
    ),
    "learner of a person": ((PPO, PERSON, learner()), "learner is for unit 'agent', .* 'person'"),
    "learner of gradients": (
        (AGENT, learner()),
        "'reinforce' takes plain gradient steps: drop it",
    ),
    "replay of an agent": (
        (DQN, AGENT, training(replay_rounds=2)),
        r"replay_rounds must be 1 for unit 'agent', got 2: .*training\.learner\.replay_capacity",
    ),
    "replay of a person": (
        (DQN, PERSON, training(replay_rounds=2)),
        "replay_rounds must be 1 for unit 'person', got 2: a person would be in a sum with "
        "trajectories of several rounds; use unit 'trajectory' or 'agent'",
    ),
    "epochs of local steps": (
        (PPO, LOCAL, training(epochs=3)),
        "must be 1 with mechanism 'local-skellam', got 3: .*; use mechanism 'skellam'",
    ),
    "epochs and cancelling noise": (
        (PPO, BANDS, training(epochs=3)),
        "correlation_bands needs trajectories that are used once, got 3 uses: .* leave one out",
    ),
    "guidance by itself": (
        (PPO, training(guidance_weight=0.1)),
        "guidance_weight does nothing where .* that collected; it needs .* or a learner, got 0.1",
    ),
    "fewer rounds than epochs": (
        (PPO, PERSON, training(epochs=3), {"privacy": {"max_rounds_per_unit": 2}}),
        r"max_rounds_per_unit must be >= training\.epochs = 3, got 2: a person's trajectories",
    ),
    "mixture too large": (
        (AGENT, training(local_steps=2, behaviour_mixture=1.0)),
        r"behaviour_mixture must lie in \[0, 0.99\], got 1.0",
    ),
    "mixture of rows": (
        (training(behaviour_mixture=0.1),),
        r"behaviour_mixture needs unit 'agent' and .*, got 0.1 with unit 'trajectory' and 1 local",
    ),
    "mixture of one step": (
        (AGENT, training(behaviour_mixture=0.1)),
        r"behaviour_mixture needs .*, got 0.1 with unit 'agent' and 1 local steps: elsewhere",
    ),
    # actions, memory, fleets
    "spread of choices": (
        ({"policy": {"initial_log_std": -1.0}},),
        "initial_log_std is for continuous actions, got -1.0 with 'discrete'",
    ),
    "spread out of range": (
        (CONTINUOUS, {"policy": {"initial_log_std": 6.0}}),
        r"policy\.initial_log_std must lie in \[-10, 5\], got 6.0",
    ),
    "one bound": (
        (CONTINUOUS, {"policy": {"action_low": -1.0}}),
        r"action_low and policy\.action_high must be given together, got \(-1.0, None\)",
    ),
    "bounds of choices": (
        ({"policy": {"action_low": -1.0, "action_high": 1.0}},),
        r"are for continuous actions, got \(-1.0, 1.0\)",
    ),
    "bounds in reverse": (
        (CONTINUOUS, {"policy": {"action_low": 1.0, "action_high": -1.0}}),
        r"action_low must be < action_high, both within \+-1e6, got 1.0 and -1.0",
    ),
    "bounds without end": (
        (CONTINUOUS, {"policy": {"action_low": -1.0, "action_high": 1e7}}),
        r"both within \+-1e6, got -1.0 and 10000000.0",
    ),
    "memory size": (({"policy": {"recurrent": -1}},), r"policy\.recurrent must lie in"),
    "memory of q": (
        (DQN, {"policy": {"recurrent": 4}}),
        "recurrent must be 0 for algorithm 'dqn', which replays .* use 'reinforce', 'a2c' or 'ppo'",
    ),
    "memory of minibatches": (
        (PPO, AGENT, {"policy": {"recurrent": 4}}),
        "recurrent must be 0 for algorithm 'ppo' with unit 'agent', .* or 'reinforce'",
    ),
    "nothing varies": (({"fleet": {"varies": ()}},), r"fleet\.varies must name different ones"),
    "twice the same": (({"fleet": {"varies": ("rewards",) * 2}},), "must name different ones out"),
    "something else varies": (
        ({"fleet": {"varies": ("weather",)}},),
        r"out of physics, rewards, initial-states, observations, actions, got \['weather'\]",
    ),
}


@pytest.mark.parametrize(("layers", "message"), list(REFUSED.values()), ids=list(REFUSED))
def test_a_combination_that_is_unsound_or_senseless_is_refused(
    layers: tuple[Sections, ...], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        made(*layers)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        made(DQN, CONTINUOUS, training(epochs=2, truncation="continue", gae_lambda=2.0))
    found = "\n".join(caught.value.problems)
    for word in ("gae_lambda", "truncation", "gamma < 1", "epochs", "action_kind"):
        assert word in found


SOUND: Mapping[str, tuple[Sections, ...]] = {
    "reinforce": (training(truncation="continue", gamma=0.9, entropy_weight=0.1),),
    "reinforce, person": (PERSON,),
    "reinforce, agent": (AGENT, training(local_steps=3, guidance_weight=0.1)),
    "reinforce, mixture": (AGENT, training(local_steps=2, behaviour_mixture=0.2)),
    "reinforce, memory": ({"policy": {"recurrent": 4}},),
    "a2c": (A2C, training(truncation="bootstrap"), {"privacy": {"critic_clip_norm": 0.1}}),
    "a2c, person": (A2C, PERSON),
    "a2c, agent": (
        training(algorithm="a2c", local_learning_rate=0.01),
        AGENT,
        learner(private_critic=()),
    ),
    "a2c, local steps": (A2C, LOCAL),
    "ppo": (PPO, training(epochs=3, guidance_weight=0.1)),
    "ppo, person": (PPO, PERSON, training(epochs=2)),
    "ppo, returns": (RETURNS, training(epochs=3, truncation="continue", gamma=0.9)),
    "ppo, agent": (
        PPO,
        AGENT,
        training(epochs=3, guidance_weight=0.1, local_learning_rate=0.01),
        learner(target_kl=0.01),
    ),
    "ppo, bounds": (PPO, CONTINUOUS, {"policy": {"action_low": -2.0, "action_high": 2.0}}),
    "dqn": (DQN, training(replay_rounds=3, target_rounds=2, truncation="bootstrap")),
    "dqn, person": (DQN, PERSON),
    "dqn, agent": (
        DQN,
        AGENT,
        training(local_learning_rate=0.01, target_rounds=100),
        learner(replay_capacity=100),
    ),
}


@pytest.mark.parametrize("layers", list(SOUND.values()), ids=list(SOUND))
def test_a_plan_that_is_accepted_has_a_trainer_with_its_algorithm_unit_and_clip(
    layers: tuple[Sections, ...],
) -> None:
    """What the rules let through, the settings of the trainer let through as well."""
    plan = made(*layers)
    setup = round_setup(plan)
    trainer = local_trainer(setup)
    assert trainer.settings.unit is plan.unit
    assert trainer.settings.objective.algorithm == plan.training.algorithm
    assert trainer.dimension == setup.dimension
    assert trainer.clip_norm == pytest.approx(setup.total_clip, rel=1e-12)
    assert plan.check().plan_digest == plan.digest.hex()


def test_the_traits_are_those_of_the_algorithms() -> None:
    """The rules cannot import what needs torch, so they hold a copy."""
    assert set(ALGORITHM_TRAITS) == set(ALGORITHMS)
    for name, rule in ALGORITHMS.items():
        traits = ALGORITHM_TRAITS[name]
        assert traits.critic == rule.critic
        assert traits.truncations == tuple(truncation.value for truncation in rule.truncations)
    assert [name for name, traits in ALGORITHM_TRAITS.items() if traits.epochs] == ["ppo"]
    assert [name for name, traits in ALGORITHM_TRAITS.items() if traits.replay] == ["dqn"]


def test_what_a_plan_can_vary_is_what_a_fleet_can_vary() -> None:
    assert tuple(VARIES) == VARIATIONS
    for name in VARIATIONS:
        specs = heterogeneous("CartPole-v1", level=0.5, agents=3, seed=0, varies=(name,))
        assert len(set(specs)) > 1
    with pytest.raises(ConfigurationError, match="weather"):
        heterogeneous("CartPole-v1", level=0.5, agents=3, seed=0, varies=("weather",))


def test_every_rule_has_a_refusal_of_its_own() -> None:
    """A rule that found nothing wrong with any of the plans above would not be tested."""
    for rule in TRAINING_RULES:
        others = [other for other in TRAINING_RULES if other is not rule]
        refused_without = 0
        for layers, _ in REFUSED.values():
            plan = unchecked(*layers)
            found, elsewhere = rule(plan), [text for other in others for text in other(plan)]
            refused_without += bool(found) and not elsewhere
        assert refused_without


def unchecked(*layers: Sections) -> Plan:
    """A plan that nobody looked at."""
    good, bad = made(), {name: dict(values) for name, values in GIVEN.items()}
    for layer in layers:
        for name, changes in layer.items():
            bad[name] |= changes
    for name, values in bad.items():
        object.__setattr__(good, name, KINDS[name](**values))
    return good


def test_prioritised_replay_cannot_be_asked_for() -> None:
    """Not even by name: how often a transition is drawn would depend on the errors of others."""
    text = made(
        DQN,
        AGENT,
        training(local_learning_rate=0.01, target_rounds=100),
        learner(replay_capacity=100),
    ).to_toml()
    assert Plan.from_text(text).training.learner is not None
    asked = text.replace("replay_capacity = 100", "replay_capacity = 100\nprioritised = true")
    with pytest.raises(ConfigurationError, match=r"learner\.prioritised is not known here"):
        Plan.from_text(asked)
