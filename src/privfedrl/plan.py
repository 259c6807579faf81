"""The plan: every parameter that privacy or safety depends on, frozen, with one digest.

Guarantee: two plans with equal digests promise the same thing. Each agent pins its own copy; the
digest enters every key derivation, signature and ledger entry, so a coordinator with another plan
gets no sum. ``[simulation]`` is outside the digest: it exists only where no real agent takes part.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from privfedrl.errors import ConfigurationError, StorageError
from privfedrl.plan_rules import MAX_COMPLETE_AGENTS, RULES
from privfedrl.plan_values import canonical, read_section, type_problems, write_section
from privfedrl.privacy.units import Unit

if typing.TYPE_CHECKING:
    from privfedrl.federation.promise import Promise

__all__ = [
    "AdaptiveClip",
    "AgentLearner",
    "EncodingPlan",
    "FederationPlan",
    "FleetPlan",
    "MeanReturnRelease",
    "Plan",
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
        varies: what differs between its environments, out of "physics", "rewards",
            "initial-states", "observations" and "actions".
    """

    environment: str
    agents: int
    trajectories: int
    horizon: int
    level: float = 0.0
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
        action_low, action_high: public bounds into which tanh squashes every coordinate of a
            continuous action; None = actions are clipped by the environment.
    """

    observations: int
    actions: int
    action_kind: Literal["discrete", "continuous"] = "discrete"
    hidden: tuple[int, ...] = (32,)
    critic_hidden: tuple[int, ...] | None = None
    action_low: float | None = None
    action_high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLearner:
    """How an agent improves the policy inside itself, for unit "agent": only the delta leaves.

    Attributes:
        minibatch: samples of an optimiser step.
        normalise_advantages: "a2c" and "ppo": to mean 0 and deviation 1 over the batch.
        normalise_observations: "a2c" and "ppo": train in coordinates of running mean and deviation.
        target_kl: "ppo": stop the epochs of a batch when the mean KL is above it.
        private_critic: tanh layers of a critic that never leaves the agent.
        updates_per_step: "dqn": optimiser steps per new transition.
        replay_capacity: "dqn": transitions kept, sampled uniformly.
        reset_optimiser: forget the moments of the local Adam before every round.
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
        gae_lambda: "a2c" and "ppo": trace of the advantages, in [0, 1].
        value_scale: public size of a return: critic and Q network learn value / value_scale.
        clip_range: "ppo": the ratio counts up to 1 +- clip_range.
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
    gae_lambda: float = 0.95
    value_scale: float = 1.0
    clip_range: float = 0.2
    epochs: int = 1
    replay_rounds: int = 1
    target_rounds: int = 1
    exploration_start: float = 1.0
    exploration_end: float = 0.05
    exploration_fraction: float = 0.5
    guidance_weight: float = 0.0
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
        learning_rate_decay: in [0, 1); the step size falls linearly to (1 - decay) of its start.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything an agent pins before it takes part. See :meth:`check` for what it promises."""

    name: str
    fleet: FleetPlan
    policy: PolicyPlan
    federation: FederationPlan
    privacy: PrivacyPlan
    training: TrainingPlan = field(default_factory=TrainingPlan)
    encoding: EncodingPlan = field(default_factory=EncodingPlan)
    protection: ProtectionPlan = field(default_factory=ProtectionPlan)
    simulation: SimulationPlan = field(default_factory=SimulationPlan)

    def __post_init__(self) -> None:
        # rules compare numbers, so a value of another type must be found first
        problems = list(type_problems(self, "")) or [text for rule in RULES for text in rule(self)]
        if problems:
            raise _all_at_once(f"plan {self.name!r}", problems)

    @classmethod
    def from_toml(cls, path: str | Path) -> Plan:
        """Read a plan file.

        Raises:
            StorageError: the file cannot be read.
            ConfigurationError: not TOML, unknown or missing keys, wrong types, impossible values;
                ``problems`` lists all of them.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"plan file {str(path)!r} cannot be read: {error}") from error
        return cls.from_text(text, source=str(path))

    @classmethod
    def from_text(cls, text: str, *, source: str = "plan") -> Plan:
        """Parse TOML text; see :meth:`from_toml`."""
        try:
            data = tomllib.loads(text)
        # beside TOMLDecodeError: integers of thousands of digits, thousands of nested brackets
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"{source} is not valid TOML: {error}") from error
        problems: list[str] = []
        arguments = read_section(cls, data, "", problems)
        if problems or arguments is None:
            raise _all_at_once(source, problems)
        plan: Plan = cls(**arguments)
        return plan

    def to_toml(self) -> str:
        """TOML text; ``Plan.from_text(plan.to_toml()) == plan``."""
        return "\n".join(write_section(self, "")) + "\n"

    @property
    def digest(self) -> bytes:
        """SHA-256 of the canonical form of everything but ``name`` and ``[simulation]``."""
        pinned = canonical(self)
        del pinned["name"], pinned["simulation"]
        text = json.dumps(pinned, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(b"pfrl-plan/4\x00" + text.encode()).digest()

    @property
    def unit(self) -> Unit:
        """The unit of privacy as a type."""
        return Unit(self.privacy.unit)

    @property
    def threshold(self) -> int:
        """Survivors needed to open a sum, t."""
        default = (self.fleet.agents + self.privacy.max_colluding) // 2 + 1
        return default if self.protection.threshold is None else self.protection.threshold

    @property
    def sparse(self) -> bool:
        """Whether agents mask with some of the others only: pairwise masking of a large fleet."""
        return self.protection.kind == "pairwise" and self.fleet.agents > MAX_COMPLETE_AGENTS

    @property
    def several_sums(self) -> bool:
        """Whether the coordinator that the plan names can open disjoint parts of the survivors."""
        return self.sparse and self.protection.server == "malicious"

    @property
    def follows(self) -> bool:
        """Whether the coordinator is trusted to follow the protocol of masking."""
        return self.sparse and self.protection.server == "semi-honest"

    def honest_in_sum(self, survivors: int) -> int:
        """Honest vectors in the smallest sum that a round with so many survivors may open."""
        if self.several_sums:
            return self.protection.min_honest
        return survivors - self.privacy.max_colluding

    @property
    def honest_floor(self) -> int:
        """Honest survivors in every opened sum: their shares carry the noise.

        t - max_colluding; min_honest where the coordinator could open several sums.
        """
        return self.honest_in_sum(self.threshold)

    @property
    def sum_floor(self) -> int:
        """Vectors in every opened sum if nobody colludes: t, or as many as must be honest."""
        return self.honest_floor if self.several_sums else self.threshold

    @property
    def tolerated_dropouts(self) -> int:
        """Agents that may vanish in any stage of a round without ending it.

        Half of those that are not needed where the graph is sparse: agents accept a roster that
        lacks so many, and that as many of it are gone from the sum, and still t must be in it.
        """
        spare = self.fleet.agents - max(self.threshold, self.protection.min_clients)
        return spare // 2 if self.sparse else spare

    @property
    def noise_floor(self) -> int:
        """Noise shares that the promise rests on: of the honest floor, or the one that is there."""
        return self.honest_floor if self.privacy.distributed else 1

    @property
    def units_per_agent(self) -> int:
        """Separately clipped rows in one agent's contribution; public and fixed."""
        if self.unit is Unit.AGENT:
            return 1
        window = self.training.replay_rounds * self.fleet.trajectories
        return window // self.privacy.max_trajectories_per_unit

    @property
    def releases_per_unit(self) -> int:
        """Releases of a run that one unit takes part in: a trajectory is in as many as use it."""
        if self.unit is Unit.TRAJECTORY:
            return min(self.uses_per_trajectory, self.federation.rounds)
        cap = self.privacy.max_rounds_per_unit
        return self.federation.rounds if cap is None else min(cap, self.federation.rounds)

    @property
    def uses_per_trajectory(self) -> int:
        """Rounds that a trajectory is used in, K: epochs of PPO, or the replay window of DQN.

        1 for unit "agent", whose epochs and replay are inside the delta.
        """
        if self.unit is Unit.AGENT:
            return 1
        return max(self.training.epochs, self.training.replay_rounds)

    def collects(self, round_index: int) -> bool:
        """Whether agents are to collect in that round; else they use what they have again."""
        return self.unit is Unit.AGENT or round_index % self.training.epochs == 0

    def episodes_per_agent(self, rounds: int) -> int:
        """Trajectories that an agent which never drops out collects in so many rounds."""
        collecting = sum(self.collects(index) for index in range(rounds))
        return collecting * self.fleet.trajectories * self.training.local_steps

    def exploration(self, round_index: int) -> float:
        """Probability of a random action in that round: a public schedule; 0 but for DQN."""
        training = self.training
        if training.algorithm != "dqn":
            return 0.0
        span = training.exploration_fraction * self.federation.rounds
        done = min(round_index / span, 1.0) if span > 0 else 1.0
        return training.exploration_start + done * (
            training.exploration_end - training.exploration_start
        )

    @property
    def public_denominator(self) -> int:
        """Divisor of the sum when every registered agent survives; never data-dependent."""
        return self.fleet.agents * self.units_per_agent

    def replace(self, section: str, **changes: Any) -> Plan:
        """A copy with one section changed: ``plan.replace("privacy", epsilon=2.0)``."""
        changed = dataclasses.replace(getattr(self, section), **changes)
        plan: Plan = dataclasses.replace(self, **{section: changed})
        return plan

    def check(self) -> Promise:
        """What the plan promises and costs; raises with every infeasibility at once."""
        from privfedrl.federation.promise import promise  # the promise needs every lower layer

        return promise(self)


def _all_at_once(source: str, problems: list[str]) -> ConfigurationError:
    lines = "".join(f"\n  - {line}" for line in problems)
    noun = "problem" if len(problems) == 1 else "problems"
    return ConfigurationError(
        f"{source} has {len(problems)} {noun}:{lines}", problems=tuple(problems)
    )
