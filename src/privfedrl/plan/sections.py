"""The sections of a plan: frozen values, each field with its meaning and unit.

Guarantee: every field but those of :class:`SimulationPlan` enters the plan's digest. What must hold
between fields is in ``rules`` and ``training_rules``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "AdaptiveClip",
    "AgentLearner",
    "EncodingPlan",
    "FederationPlan",
    "FleetPlan",
    "MeanReturnRelease",
    "PolicyPlan",
    "PrivacyPlan",
    "ProtectionPlan",
    "SimulationPlan",
    "TrainingPlan",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """Who takes part and how much experience each agent collects in a round.

    Attributes:
        environment: Gymnasium id, e.g. "CartPole-v1".
        agents: number of registered agents, n.
        trajectories: trajectories per agent and round, B; public and fixed.
        horizon: steps after which a trajectory is cut; public.
        level: heterogeneity of the simulated fleet in [0, 1]; 0 = identical environments.
        action_repeat: steps of the environment for which each action is held; horizon counts
            actions. Public, and part of what the policy means.
        varies: what differs between its environments, out of "physics", "rewards",
            "initial-states", "observations" and "actions".
    """

    environment: str
    agents: int
    trajectories: int
    horizon: int
    level: float = 0.0
    action_repeat: int = 1
    varies: tuple[str, ...] = ("physics",)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyPlan:
    """The shape of the policy network, stated so that nobody needs the environment to check it.

    Attributes:
        observations: length of a flat observation.
        actions: number of discrete actions, or dimension of a continuous one.
        hidden: tanh layers of the policy, or of the Q network of "dqn".
        critic_hidden: tanh layers of the critic of "a2c" and "ppo". It is published and noised with
            the policy; None = no critic, or one that stays inside the agent (unit "agent").
        initial_log_std: of a continuous policy before the first round; -1 or -2 where full-range
            noise drowns what actions do.
        action_low, action_high: public bounds into which tanh squashes every coordinate of a
            continuous action; None = actions are clipped by the environment.
        recurrent: units of a GRU between the observation and the policy's layers, which gives it a
            memory within a trajectory; 0 = none. Its weights are published and noised like the
            others; the critic has no memory.
    """

    observations: int
    actions: int
    action_kind: Literal["discrete", "continuous"] = "discrete"
    hidden: tuple[int, ...] = (32,)
    critic_hidden: tuple[int, ...] | None = None
    initial_log_std: float = 0.0
    action_low: float | None = None
    action_high: float | None = None
    recurrent: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLearner:
    """How an agent improves the policy inside itself, for unit "agent": only the delta leaves.

    Attributes:
        minibatch: samples of an optimiser step.
        normalise_advantages: "a2c" and "ppo": to mean 0 and deviation 1 over the batch.
        normalise_observations: "a2c" and "ppo": train in coordinates of running mean and deviation.
        target_kl: "a2c" and "ppo": leave the rest of a batch when a minibatch's mean KL from the
            policy before it exceeds 1.5 times this.
        private_critic: tanh layers of a critic that never leaves the agent.
        updates_per_step: "dqn": optimiser steps per new transition.
        replay_capacity: "dqn": transitions kept, sampled uniformly.
        reset_optimiser: forget the moments of the local Adam before every batch.
    """

    minibatch: int = 256
    normalise_advantages: bool = True
    normalise_observations: bool = False
    target_kl: float | None = None
    private_critic: tuple[int, ...] | None = None
    updates_per_step: float = 0.25
    replay_capacity: int = 50_000
    reset_optimiser: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What an agent computes from its trajectories.

    Attributes:
        algorithm: "reinforce": policy gradient, returns whitened within the trajectory; "a2c" and
            "ppo": advantages from a critic; "dqn": Q values. See docs/algorithms/.
        gamma: discount in (0, 1].
        entropy_weight: weight of the entropy bonus, >= 0.
        truncation: what lies beyond a cut trajectory: "none" (nothing), "continue" ("reinforce":
            its own mean reward for ever; needs gamma < 1) or "bootstrap" (the other algorithms:
            what critic or Q network say of the last state seen).
        reward_low, reward_high: public bounds to which each reward is clipped before anything is
            computed from it; None = none. Returns that are released or shown are not touched.
        step_cost: public constant, subtracted from every clipped reward.
        gae_lambda: "a2c" and "ppo": trace of the advantages, in [0, 1].
        value_scale: public size of a return: critic and Q network learn value / value_scale.
        advantage_scale: "a2c" and "ppo": public size of an advantage over value_scale; the policy's
            part of a row is divided by it before it is clipped.
        clip_range: "ppo": the ratio counts up to 1 +- clip_range.
        advantages: "ppo": "gae" from a critic, or "returns": whitened within the trajectory as by
            "reinforce", without a critic (units "trajectory" and "person").
        epochs: "ppo": how often a batch is used. Units "trajectory" and "person": in so many
            rounds, each a release that is charged. Unit "agent": passes inside the agent.
        replay_rounds: "dqn" with unit "trajectory": a round uses the trajectories of so many
            rounds, so each is in so many releases, and all of them are charged.
        target_rounds: "dqn": rounds between two updates of the target network (post-processing);
            unit "agent": optimiser steps.
        exploration_start, exploration_end, exploration_fraction: "dqn": probability of a random
            action, falling linearly over that fraction of the rounds; a public schedule.
        guidance_weight: weight of KL(published policy || policy), which keeps later epochs and
            local steps near the policy that collected; >= 0, not for "dqn".
        behaviour_mixture: in [0, 1): in so many steps of the later local batches the published
            policy acts instead of the agent's own; ratios are those to the mixture. Unit "agent"
            with local_steps > 1.
        local_steps: batches an agent learns from before it sends; more needs unit "agent",
            or mechanism "local-skellam".
        local_learning_rate: step size of local steps (strategy "fedavg"); of Adam where a learner
            takes them.
        learner: unit "agent": how "a2c", "ppo" and "dqn" learn inside the agent.
    """

    algorithm: Literal["reinforce", "a2c", "ppo", "dqn"] = "reinforce"
    gamma: float = 1.0
    entropy_weight: float = 0.0
    truncation: Literal["none", "continue", "bootstrap"] = "none"
    reward_low: float | None = None
    reward_high: float | None = None
    step_cost: float = 0.0
    gae_lambda: float = 0.95
    value_scale: float = 1.0
    advantage_scale: float = 1.0
    clip_range: float = 0.2
    advantages: Literal["gae", "returns"] = "gae"
    epochs: int = 1
    replay_rounds: int = 1
    target_rounds: int = 1
    exploration_start: float = 1.0
    exploration_end: float = 0.05
    exploration_fraction: float = 0.5
    guidance_weight: float = 0.0
    behaviour_mixture: float = 0.0
    local_steps: int = 1
    local_learning_rate: float = 1.0
    learner: AgentLearner | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationPlan:
    """How released sums become policies. All of it is post-processing of released values.

    Attributes:
        rounds: completed rounds in a run.
        strategy: "fedsgd" (agents send gradients) or "fedavg" (agents send model deltas).
        server_optimizer: "sgd" or "adam".
        learning_rate: server step size at round 0.
        learning_rate_decay: in [0, 1]; the step size falls linearly to (1 - decay) of its start.
        beta1, beta2, tau: Adam's constants (Reddi et al. 2021, Adaptive Federated Optimization).
        bias_correction: subtract the known noise variance from Adam's second moment.
        averaging: in [0, 1); share of the rounds, the last ones, whose policies are averaged into
            the one that the run ends with. Agents always collect with the last one.
    """

    rounds: int
    strategy: Literal["fedsgd", "fedavg"] = "fedsgd"
    server_optimizer: Literal["sgd", "adam"] = "adam"
    learning_rate: float = 0.02
    learning_rate_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    bias_correction: bool = True
    averaging: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanReturnRelease:
    """One more coordinate of the protected vector: each unit's return, clipped to [low, high].

    ``weight`` is its share of the clip norm: the total clip is clip_norm * sqrt(1 + weight^2).
    ``spread`` adds a coordinate of the same weight, for the standard deviation of the returns.
    """

    low: float
    high: float
    weight: float = 0.1
    spread: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveClip:
    """One more coordinate of the protected vector: how many units were not clipped, centred.

    The clip of the next round moves towards the norm that ``quantile`` of the units stay below.
    Rows are scaled to privacy.clip_norm before they are rounded, so sensitivity, noise and cost do
    not depend on the current clip. Reference: Andrew et al. 2021 (arXiv 1905.03871).

    Attributes:
        quantile: share of units that shall not be clipped, in (0, 1).
        learning_rate: factor of the exponential step per round.
        low, high: public bounds of the clip; privacy.clip_norm, its start, lies between them.
        weight: share of the clip norm, as in :class:`MeanReturnRelease`.
    """

    low: float
    high: float
    quantile: float = 0.5
    learning_rate: float = 0.2
    weight: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyPlan:
    """The promise: whose presence is hidden, from whom, how well.

    Attributes:
        mechanism: "skellam" or "discrete-gaussian" (a noise share at every agent),
            "central-discrete-gaussian" (one share, by the key authority or, without encryption, the
            coordinator), "local-skellam" (local DP-SGD: a whole share in each local step), or
            "none" for a control run that promises nothing.
        unit: "trajectory", "person" or "agent".
        max_colluding: agents that may pool what they know with the coordinator. No default.
        epsilon, delta: the promise for a whole run, against whom the mechanism names
            (docs/plans.md).
        clip_norm: L2 norm to which every unit's contribution is clipped; with a critic, that of the
            policy's part.
        critic_clip_norm: L2 norm of the critic's part; None = clip_norm. The bound of both is the
            root of the sum of their squares, so one release costs the same at the same noise
            multiplier.
        max_trajectories_per_unit: trajectories of a unit in a round that count; more are dropped
            before anything is computed. 1 for unit "trajectory".
        max_rounds_per_unit: rounds of a run that a person may take part in, enforced by the agent;
            None = all. For unit "person" only.
        correlation_bands: rounds over which the coordinator's central noise cancels, 2 .. 64, see
            ``privacy.correlated``; None = fresh noise in every round.
        mean_return: release the noised, clipped mean return, or nothing.
        adaptive_clip: let the clip follow a noised quantile, or keep it.
    """

    unit: Literal["trajectory", "person", "agent"]
    max_colluding: int
    mechanism: Literal[
        "skellam", "discrete-gaussian", "central-discrete-gaussian", "local-skellam", "none"
    ] = "skellam"
    epsilon: float = 1.0
    delta: float = 1e-5
    clip_norm: float = 1.0
    critic_clip_norm: float | None = None
    max_trajectories_per_unit: int = 1
    max_rounds_per_unit: int | None = None
    correlation_bands: int | None = None
    mean_return: MeanReturnRelease | None = None
    adaptive_clip: AdaptiveClip | None = None

    @property
    def distributed(self) -> bool:
        """Whether the noise of a sum is that of its survivors."""
        return self.mechanism in ("skellam", "discrete-gaussian")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingPlan:
    """The ring and the grid.

    Attributes:
        ring_bits: 32 or 64; residues are summed modulo 2^ring_bits.
        resolution: grid steps per clip norm.
        lane_bits: bits of a coordinate when several share a 64-bit word; None = a word each.
        headroom: what a coordinate of the sum is taken to reach: "worst-case" holds for every
            input; "rotated" trusts the public rotation to spread inputs that do not know its seed.
            A sum that goes beyond wraps, or under encryption is not opened; that costs accuracy or
            the round, never privacy.
    """

    ring_bits: int = 32
    resolution: int = 1024
    lane_bits: int | None = None
    headroom: Literal["worst-case", "rotated"] = "worst-case"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectionPlan:
    """How the sum is formed so that nobody sees a single contribution.

    Attributes:
        kind: "pairwise" (double-masking secure aggregation; above 256 agents each masks with some
            of the others), "bfv" (homomorphic encryption with a key authority), "ckks" (the same
            with approximate numbers, rounded when opened) or "none" (simulation only).
        threshold: survivors needed; None = floor((agents + max_colluding) / 2) + 1.
        min_clients: smallest cohort an agent takes part in.
        min_honest: honest survivors that every opened sum must hold. Above 256 agents against a
            malicious server the noise is sized for these: agents refuse a graph that keeps fewer.
        server: the coordinator that "pairwise" holds against above 256 agents: "malicious" (it may
            open several sums, each over part of the survivors) or "semi-honest" (it follows the
            protocol). Up to 256 agents it is always a malicious one.
        parameter_set: lattice of "bfv" and "ckks" by name, see docs/homomorphic.md; None =
            "bfv-4096-std" and "ckks-4096-add".
        readding: who adds the uploads of "bfv" and "ckks" again before one sum is decrypted:
            "key-authority", "auditor" or "none"; each trusts somebody else.
    """

    kind: Literal["pairwise", "bfv", "ckks", "none"] = "pairwise"
    threshold: int | None = None
    min_clients: int = 5
    min_honest: int = 3
    server: Literal["malicious", "semi-honest"] = "malicious"
    parameter_set: str | None = None
    readding: Literal["key-authority", "auditor", "none"] = "key-authority"

    @property
    def homomorphic(self) -> bool:
        """Whether sums are formed under encryption."""
        return self.kind in ("bfv", "ckks")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationPlan:
    """What only the simulator does: scheduled dropouts and oracle evaluation.

    Attributes:
        dropouts_per_round: agents that vanish in a random stage of each round.
        evaluation_interval: rounds between greedy evaluations on the nominal environment.
        evaluation_episodes: episodes of each evaluation.
        persons_per_agent: subjects that an agent's trajectories come from, in turn; for unit
            "person", where a deployment's own experience names them.
    """

    dropouts_per_round: int = 0
    evaluation_interval: int = 1
    evaluation_episodes: int = 10
    persons_per_agent: int = 0
