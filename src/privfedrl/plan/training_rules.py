"""What must hold between algorithm, unit and policy of a plan. Lists every problem that it finds.

Guarantee: a combination whose rows could not be clipped per unit, or whose private state would
survive a release uncharged, is refused with the reason and the sound alternative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from privfedrl.plan.numbers import number

if TYPE_CHECKING:
    from privfedrl.plan.plan import Plan

__all__ = ["ALGORITHM_TRAITS", "TRAINING_RULES", "VARIATIONS", "Traits"]

# beyond it Adam moves every weight of a small network by a tenth of its size in a step
_MOST_ADAM_STEP = 0.1

#: what can differ between the environments of a simulated fleet; a test keeps it equal to the fleet
VARIATIONS = ("physics", "rewards", "initial-states", "observations", "actions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What an algorithm asks for; a test keeps these equal to ``training.algorithms``."""

    critic: bool
    truncations: tuple[str, ...]
    epochs: bool = False
    replay: bool = False


ALGORITHM_TRAITS: Mapping[str, Traits] = MappingProxyType(
    {
        "reinforce": Traits(critic=False, truncations=("none", "continue")),
        "a2c": Traits(critic=True, truncations=("none", "bootstrap")),
        "ppo": Traits(critic=True, truncations=("none", "bootstrap"), epochs=True),
        "dqn": Traits(critic=False, truncations=("none", "bootstrap"), replay=True),
    }
)


def _value_rules(plan: Plan) -> list[str]:
    training = plan.training
    name = "training."
    unit_interval = ("gae_lambda", "exploration_start", "exploration_end", "exploration_fraction")
    problems = [
        *number("training.gamma", training.gamma, low=0.0, high=1.0, open_low=True),
        *number("training.entropy_weight", training.entropy_weight, low=0.0, high=1e3),
        *number("training.guidance_weight", training.guidance_weight, low=0.0, high=1e3),
        *number("training.behaviour_mixture", training.behaviour_mixture, low=0.0, high=0.99),
        *number("training.value_scale", training.value_scale, low=1e-9, high=1e9),
        *number("training.advantage_scale", training.advantage_scale, low=1e-9, high=1e9),
        *number("training.clip_range", training.clip_range, low=1e-3, high=1e3),
        *number("training.local_steps", training.local_steps, low=1, high=10_000),
        *number("training.epochs", training.epochs, low=1, high=1_000),
        *number("training.replay_rounds", training.replay_rounds, low=1, high=1_000),
        *number("training.target_rounds", training.target_rounds, low=1, high=1_000_000),
        *number(
            "training.local_learning_rate",
            training.local_learning_rate,
            low=0.0,
            high=1e6,
            open_low=True,
        ),
    ]
    problems += number("training.step_cost", training.step_cost, low=-1e9, high=1e9)
    problems += _reward_bounds(plan)
    for field in unit_interval:
        problems += number(name + field, getattr(training, field), low=0.0, high=1.0)
    return problems + _learner_values(plan)


def _reward_bounds(plan: Plan) -> list[str]:
    low, high = plan.training.reward_low, plan.training.reward_high
    problems = []
    for name, value in (("reward_low", low), ("reward_high", high)):
        if value is not None:
            problems += number(f"training.{name}", value, low=-1e9, high=1e9)
    if low is not None and high is not None and not low < high:
        problems.append(f"training.reward_low must be < reward_high, got {low!r} and {high!r}")
    return problems


def _learner_values(plan: Plan) -> list[str]:
    learner, path = plan.training.learner, "training.learner."
    if learner is None:
        return []
    problems = [
        *number(f"{path}minibatch", learner.minibatch, low=1, high=1_000_000),
        *number(f"{path}replay_capacity", learner.replay_capacity, low=1, high=10_000_000),
        *number(f"{path}updates_per_step", learner.updates_per_step, low=1e-6, high=1e3),
    ]
    if learner.target_kl is not None:
        problems += number(f"{path}target_kl", learner.target_kl, low=1e-9, high=1e3)
    for index, width in enumerate(learner.private_critic or ()):
        problems += number(f"{path}private_critic[{index}]", width, low=1, high=65_536)
    return problems


def _algorithm_rules(plan: Plan) -> list[str]:
    training = plan.training
    traits = ALGORITHM_TRAITS[training.algorithm]
    returns = training.advantages == "returns"
    problems = []
    if returns and (training.algorithm != "ppo" or plan.privacy.unit == "agent"):
        problems.append(
            "training.advantages = 'returns' is for algorithm 'ppo' with unit 'trajectory' or "
            f"'person', got it with {training.algorithm!r} and {plan.privacy.unit!r}; leave it out"
        )
    allowed = ALGORITHM_TRAITS["reinforce"].truncations if returns else traits.truncations
    if training.truncation not in allowed:
        problems.append(
            f"training.truncation must be one of {', '.join(allowed)} for algorithm "
            f"{training.algorithm!r}{' without a critic' * returns}, got {training.truncation!r}"
        )
    if training.truncation == "continue" and training.gamma >= 1.0:
        problems.append(
            "training.truncation = 'continue' needs training.gamma < 1, "
            f"got {training.gamma!r} (the continued return would be infinite)"
        )
    if training.epochs > 1 and not traits.epochs:
        problems.append(
            f"training.epochs is for algorithm 'ppo', whose clipped ratio corrects for the policy "
            f"that collected; it must be 1 for {training.algorithm!r}, got {training.epochs}"
        )
    if training.replay_rounds > 1 and not traits.replay:
        problems.append(
            f"training.replay_rounds is for algorithm 'dqn', which learns off policy; it must be 1 "
            f"for {training.algorithm!r}, got {training.replay_rounds}; use 'ppo' with "
            "training.epochs to use trajectories several times"
        )
    if training.algorithm == "dqn":
        problems += _dqn_rules(plan)
    return problems


def _dqn_rules(plan: Plan) -> list[str]:
    problems = []
    if plan.policy.action_kind != "discrete":
        problems.append(
            "training.algorithm = 'dqn' needs policy.action_kind 'discrete', got 'continuous': it "
            "takes the best of finitely many actions; use 'ppo'"
        )
    for name in ("entropy_weight", "guidance_weight"):
        if getattr(plan.training, name):
            problems.append(
                f"training.{name} must be 0 for algorithm 'dqn', whose network holds values and no "
                f"distribution, got {getattr(plan.training, name)!r}"
            )
    return problems


def _critic_rules(plan: Plan) -> list[str]:
    policy, training, agent = plan.policy, plan.training, plan.privacy.unit == "agent"
    wanted = ALGORITHM_TRAITS[training.algorithm].critic and training.advantages == "gae"
    problems = []
    for index, width in enumerate(policy.critic_hidden or ()):
        problems += number(f"policy.critic_hidden[{index}]", width, low=1, high=65_536)
    hidden = None if training.learner is None else training.learner.private_critic
    if not wanted and policy.critic_hidden is not None:
        problems.append(
            f"policy.critic_hidden must be absent for algorithm {training.algorithm!r}"
            f"{_without(plan)}, which has no critic, got {list(policy.critic_hidden)}"
        )
    if not wanted and hidden is not None:
        problems.append(
            f"training.learner.private_critic must be absent for algorithm "
            f"{training.algorithm!r}{_without(plan)}, which has no critic, got {list(hidden)}"
        )
    if wanted and policy.critic_hidden is None and not agent:
        problems.append(
            f"policy.critic_hidden must be given for algorithm {training.algorithm!r} and unit "
            f"{plan.privacy.unit!r}: a critic that is trained without noise on the same "
            "trajectories would carry them into every later release; published with the policy it "
            "is noised in the same step (or use 'reinforce', 'ppo' with training.advantages = "
            "'returns', or unit 'agent')"
        )
    if wanted and agent and (policy.critic_hidden is None) == (hidden is None):
        problems.append(
            f"algorithm {training.algorithm!r} with unit 'agent' needs either policy.critic_hidden "
            "(published with the policy) or training.learner.private_critic (stays inside the "
            f"agent), got {'neither' if hidden is None else 'both'}"
        )
    return problems + _critic_clip_rules(plan)


def _without(plan: Plan) -> str:
    return " with advantages 'returns'" if plan.training.advantages == "returns" else ""


def _critic_clip_rules(plan: Plan) -> list[str]:
    clip = plan.privacy.critic_clip_norm
    if clip is None:
        return []
    problems = number("privacy.critic_clip_norm", clip, low=1e-12, high=1e9)
    if plan.policy.critic_hidden is None or plan.privacy.unit == "agent":
        problems.append(
            "privacy.critic_clip_norm is for a published critic (policy.critic_hidden) with unit "
            f"'trajectory' or 'person', got {clip!r}; unit 'agent' clips the delta as a whole"
        )
    return problems


def _unit_rules(plan: Plan) -> list[str]:
    """What one unit's rows may be computed from."""
    training, privacy = plan.training, plan.privacy
    problems = []
    if training.learner is not None and privacy.unit != "agent":
        problems.append(
            f"training.learner is for unit 'agent', got it with unit {privacy.unit!r}: minibatches "
            "across trajectories, batch normalisation of advantages, running normalisers of "
            "observations and stopping on a KL let one trajectory move the others' rows or survive "
            "the round; drop it (rows are then clipped one by one), or use unit 'agent'"
        )
    if training.learner is not None and training.algorithm == "reinforce":
        problems.append(
            "training.learner is for algorithms 'a2c', 'ppo' and 'dqn'; 'reinforce' takes plain "
            "gradient steps: drop it"
        )
    if training.replay_rounds > 1 and privacy.unit != "trajectory":
        problems.append(
            f"training.replay_rounds must be 1 for unit {privacy.unit!r}, got "
            f"{training.replay_rounds}: "
            + (
                "the agent's own replay memory is inside its delta "
                "(training.learner.replay_capacity)"
                if privacy.unit == "agent"
                else "a person would be in a sum with trajectories of several rounds; use unit "
                "'trajectory' or 'agent'"
            )
        )
    uses = max(training.epochs, training.replay_rounds)
    if uses > 1 and privacy.mechanism == "local-skellam":
        problems.append(
            f"training.epochs and training.replay_rounds must be 1 with mechanism 'local-skellam', "
            f"got {uses}: every local step takes fresh trajectories; use mechanism 'skellam'"
        )
    if training.target_rounds > 1 and privacy.mechanism == "local-skellam":
        problems.append(
            "training.target_rounds must be 1 with mechanism 'local-skellam', got "
            f"{training.target_rounds}: every local step takes its targets from the network that "
            "it improves; use mechanism 'skellam'"
        )
    if uses > 1 and privacy.unit != "agent" and privacy.correlation_bands is not None:
        problems.append(
            f"privacy.correlation_bands needs trajectories that are used once, got {uses} uses: a "
            "unit in several neighbouring releases would meet noise that cancels; leave one out"
        )
    if training.advantage_scale != 1.0 and privacy.unit == "agent":
        problems.append(
            "training.advantage_scale is for units 'trajectory' and 'person', got "
            f"{training.advantage_scale!r}: a learner has training.learner.normalise_advantages"
        )
    cap = privacy.max_rounds_per_unit
    if privacy.unit == "person" and cap is not None and cap < training.epochs:
        problems.append(
            f"privacy.max_rounds_per_unit must be >= training.epochs = {training.epochs}, got "
            f"{cap}: a person's trajectories are used in so many rounds, and each counts"
        )
    if training.behaviour_mixture and (privacy.unit != "agent" or training.local_steps == 1):
        problems.append(
            "training.behaviour_mixture needs unit 'agent' and training.local_steps > 1, got "
            f"{training.behaviour_mixture!r} with unit {privacy.unit!r} and "
            f"{training.local_steps} local steps: elsewhere the policy that collects is the "
            "published one"
        )
    if training.guidance_weight and _never_moves(plan):
        problems.append(
            "training.guidance_weight does nothing where the policy that is improved is the one "
            "that collected; it needs training.epochs or training.local_steps > 1, or a learner, "
            f"got {training.guidance_weight!r}"
        )
    return problems


def _learner_rules(plan: Plan) -> list[str]:
    """What has a default for one kind of learning that is none for a learner inside an agent."""
    training = plan.training
    if plan.privacy.unit != "agent" or training.algorithm == "reinforce":
        return []
    problems = []
    if training.local_learning_rate > _MOST_ADAM_STEP:
        problems.append(
            f"training.local_learning_rate must be at most {_MOST_ADAM_STEP:g} for "
            f"{training.algorithm!r} inside an agent, got {training.local_learning_rate!r}: it is "
            "the step size of Adam; 0.001 is usual"
        )
    if training.algorithm == "dqn" and training.target_rounds < 2:
        problems.append(
            "training.target_rounds must be at least 2 for 'dqn' inside an agent, got "
            f"{training.target_rounds}: it counts optimiser steps there, and a target that is "
            "copied after each of them is none; 100 to 1,000 are usual"
        )
    return problems


def _never_moves(plan: Plan) -> bool:
    training = plan.training
    if plan.privacy.mechanism == "local-skellam":
        return True  # every noised step collects with the policy that it improves
    learns_inside = plan.privacy.unit == "agent" and training.algorithm != "reinforce"
    return training.epochs == 1 and training.local_steps == 1 and not learns_inside


def _bounds_rules(plan: Plan) -> list[str]:
    policy = plan.policy
    given = (policy.action_low, policy.action_high)
    problems = number("policy.initial_log_std", policy.initial_log_std, low=-10.0, high=5.0)
    if problems:
        return problems
    if policy.initial_log_std and policy.action_kind != "continuous":
        return [
            "policy.initial_log_std is for continuous actions, got "
            f"{policy.initial_log_std!r} with {policy.action_kind!r}"
        ]
    if given == (None, None):
        return []
    if policy.action_low is None or policy.action_high is None:
        return [f"policy.action_low and policy.action_high must be given together, got {given}"]
    if policy.action_kind != "continuous":
        return [f"policy.action_low and action_high are for continuous actions, got {given}"]
    low, high = policy.action_low, policy.action_high
    if not (abs(low) <= 1e6 and abs(high) <= 1e6 and low < high):
        return [
            f"policy.action_low must be < action_high, both within +-1e6, got {low!r} and {high!r}"
        ]
    return []


def _recurrent_rules(plan: Plan) -> list[str]:
    units = plan.policy.recurrent
    problems = number("policy.recurrent", units, low=0, high=65_536)
    if problems or not units:
        return problems
    if plan.training.algorithm == "dqn":
        problems.append(
            "policy.recurrent must be 0 for algorithm 'dqn', which replays single transitions "
            f"without what came before them, got {units}; use 'reinforce', 'a2c' or 'ppo'"
        )
    elif plan.privacy.unit == "agent" and plan.training.algorithm != "reinforce":
        problems.append(
            f"policy.recurrent must be 0 for algorithm {plan.training.algorithm!r} with unit "
            "'agent', whose minibatches tear trajectories apart, got "
            f"{units}; use unit 'trajectory' or 'person', or 'reinforce'"
        )
    return problems


def _variation_rules(plan: Plan) -> list[str]:
    varies = plan.fleet.varies
    if set(varies) <= set(VARIATIONS) and len(set(varies)) == len(varies) and varies:
        return []
    return [
        f"fleet.varies must name different ones out of {', '.join(VARIATIONS)}, got {list(varies)}"
    ]


TRAINING_RULES = (
    _value_rules,
    _algorithm_rules,
    _critic_rules,
    _unit_rules,
    _learner_rules,
    _bounds_rules,
    _recurrent_rules,
    _variation_rules,
)
