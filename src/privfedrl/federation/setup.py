"""From a plan to the objects that carry it out: policy shape, codec, noise, protocol parameters.

Guarantee: agent, coordinator, promise and statement derive the clip, the sensitivity, the noise
share and the threshold from the same pure function of the plan, so they cannot disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from privfedrl.encoding import FixedPoint, rounding_bound
from privfedrl.errors import ConfigurationError, PrivacyError
from privfedrl.federation.adversaries import main_adversary
from privfedrl.federation.backends import Backend, Homomorphic, Pairwise, sparse_parameters
from privfedrl.he import HEParameters, ParameterSet
from privfedrl.he.parameters import MIN_GUARD_BITS
from privfedrl.plan import Plan
from privfedrl.privacy import (
    CentralDiscreteGaussian,
    Charge,
    DiscreteGaussianEvent,
    DistributedDiscreteGaussian,
    DistributedSkellam,
    DpEvent,
    IntegerSensitivity,
    LocalSkellam,
    Mechanism,
    SkellamEvent,
    Target,
    UnboundedEvent,
    Unit,
    least_noise,
)
from privfedrl.privacy.correlated import CorrelatedNoise
from privfedrl.privacy.mechanisms import CorrelatedDiscreteGaussian
from privfedrl.rollout import MlpPolicy
from privfedrl.secagg import SecAggParameters

__all__ = ["MECHANISMS", "RoundSetup", "policy_of", "round_setup"]

MECHANISMS: dict[str, type[Mechanism]] = {
    "skellam": DistributedSkellam,
    "discrete-gaussian": DistributedDiscreteGaussian,
    "central-discrete-gaussian": CentralDiscreteGaussian,
    "local-skellam": LocalSkellam,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSetup:
    """What every round of a plan uses.

    Attributes:
        plan: the plan that all of this follows from.
        policy: shape of the policy; its parameters are the first coordinates of a contribution.
        dimension: coordinates of a contribution before padding (parameters and released metrics).
        total_clip: L2 norm that bounds one unit's whole row, metrics included.
        sensitivity: how far one unit can move the integers that noise is added to.
        codec: clipped rows to ring vectors and back; where noise is correlated over rounds, its
            headroom is that of the mixture of their sums.
        step_codec: the same for one local step, where each step has noise of its own; else None.
        mechanism: the noise, or None in a control run without.
        backend: how the sum is formed; None where the plan has no protection.
        adversary: whom the plan's epsilon is about.
    """

    plan: Plan
    policy: MlpPolicy
    dimension: int
    total_clip: float
    sensitivity: IntegerSensitivity
    codec: FixedPoint
    step_codec: FixedPoint | None
    mechanism: Mechanism | None
    backend: Backend | None
    adversary: str

    @property
    def correlated(self) -> CorrelatedNoise | None:
        """How noise of different rounds cancels; None where every round's is fresh."""
        mechanism = self.mechanism
        return mechanism.noise if isinstance(mechanism, CorrelatedDiscreteGaussian) else None

    def event(self, shares: int) -> DpEvent:
        """One round's release when ``shares`` noise shares in it are unknown to the adversary."""
        if self.mechanism is None or shares == 0:
            return UnboundedEvent(unit=self.plan.unit)
        return self.mechanism.event(shares)

    def settled(self, survivors: int) -> DpEvent:
        """One round's release to the main adversary when that many agents' vectors are in it."""
        if not self.plan.privacy.distributed:
            return self.event(1)
        return self.event(self.plan.honest_in_sum(survivors))

    def shares_in(self, event: DpEvent) -> int:
        """How many of the mechanism's shares ``event`` holds; the inverse of :meth:`event`."""
        match event, self.mechanism:
            case DiscreteGaussianEvent(shares=shares), Mechanism():
                return shares
            case SkellamEvent(variance=variance), Mechanism(share_variance=share):
                return variance // share
        raise PrivacyError("every release of a plan with noise must be an event of its mechanism")

    @property
    def worst_event(self) -> DpEvent:
        """The costliest release that the protocol allows: exactly the threshold survives."""
        return self.event(self.plan.noise_floor)

    @property
    def budget(self) -> float:
        """Epsilon that a ledger must not let a run exceed; infinite where nothing is promised."""
        return math.inf if self.mechanism is None else self.plan.privacy.epsilon

    def charge(self, release_id: str, *, group: str, replayed: tuple[str, ...] = ()) -> Charge:
        """What a ledger must hold before the release leaves: the costliest that may come of it.

        Args:
            release_id: names the attempt, "task/round/attempt".
            group: identity of the trajectories in it. An agent knows it; whoever does not names
                the release, and agents vouch in their own ledgers for how often they use one.
            replayed: identities of older trajectories that are in it as well.
        """
        reused = self.plan.unit is Unit.TRAJECTORY and self.plan.uses_per_trajectory > 1
        capped = reused or self.plan.unit is Unit.PERSON
        return Charge(
            plan_digest=self.plan.digest,
            release_id=release_id,
            group=group,
            unit=self.plan.unit,
            adversary=self.adversary,
            event=self.worst_event,
            epsilon=self.budget,
            delta=self.accounted_delta,
            max_participations=self.plan.releases_per_unit if capped else None,
            replayed=replayed,
        )

    @property
    def shares_per_run(self) -> int:
        """Noise shares in everything that one unit is part of: what the sampler is charged for."""
        agents = self.plan.fleet.agents if self.plan.privacy.distributed else 1
        return agents * self.plan.releases_per_unit

    @property
    def accounted_delta(self) -> float:
        """The plan's delta less what the noise sampler may deviate from its exact distribution."""
        if self.mechanism is None:
            return self.plan.privacy.delta
        charged = self.mechanism.sampler_delta(
            epsilon=self.plan.privacy.epsilon, shares=self.shares_per_run
        )
        return self.plan.privacy.delta - charged

    @property
    def share_std(self) -> float:
        """Standard deviation of one noise share in real units, per coordinate.

        Of a mixture's share: what it adds to the sum of its own round.
        """
        if self.mechanism is None:
            return 0.0
        step = self.total_clip / self.plan.encoding.resolution
        if self.correlated is not None:
            step /= self.correlated.scale
        return math.sqrt(self.mechanism.share_variance) * step

    @property
    def noise_multiplier(self) -> float:
        """sigma / clip of the noise that the promise rests on.

        Of correlated noise: over what one unit can change in all releases together.
        """
        sigma = self.share_std * math.sqrt(self.plan.noise_floor) / self.total_clip
        if self.correlated is None:
            return sigma
        return sigma * self.correlated.scale / math.hypot(*self.correlated.coefficients)

    @property
    def rows_per_agent(self) -> int:
        """Rows in one agent's vector: its units, or the one model delta that it sends."""
        return 1 if self.step_codec is not None else self.plan.units_per_agent

    def released_std(self, survivors: int, round_index: int | None = None) -> float:
        """Standard deviation of the noise in a released mean, per coordinate, before the clip.

        Args:
            round_index: matters to correlated noise, which widens with it; None = the last round.
        """
        if self.step_codec is not None:
            # steps add up; that a step changes the gradient of the next is left out
            steps, each = self.plan.training.local_steps, self.share_std / self.plan.units_per_agent
            return self.plan.training.local_learning_rate * each * math.sqrt(steps / survivors)
        shares = survivors if self.plan.privacy.distributed else 1
        std = self.share_std * math.sqrt(shares) / (survivors * self.rows_per_agent)
        return std * self._widening(round_index)

    def _widening(self, round_index: int | None) -> float:
        """Standard deviation of a decoded round over that of its own share."""
        if self.correlated is None:
            return 1.0
        rounds = self.plan.federation.rounds
        # one table for the run; what lies beyond its end no longer matters
        weights = self.correlated.decoder_weights(rounds)[
            : rounds if round_index is None else round_index + 1
        ]
        return self.correlated.scale * math.sqrt(float(weights @ weights))


def round_setup(plan: Plan) -> RoundSetup:
    """Derive everything from ``plan``.

    Raises:
        ConfigurationError: the ring is too narrow, the noise cannot be calibrated, the protocol
            parameters are infeasible.
    """
    return _cached(plan)


@lru_cache(maxsize=16)
def _cached(plan: Plan) -> RoundSetup:
    policy = policy_of(plan)
    metrics = _metric_weights(plan)
    dimension = policy.num_parameters + len(metrics)
    total_clip = _total_clip(plan, metrics)
    padded = 1 << (dimension - 1).bit_length()
    l2_squared, l1 = rounding_bound(
        clip_norm=total_clip, resolution=plan.encoding.resolution, dimension=padded
    )
    bound = IntegerSensitivity(l2_squared=l2_squared, l1=l1, unit=plan.unit)
    mechanism = _mechanism(plan, bound, padded)
    mixture = 1
    if isinstance(mechanism, CorrelatedDiscreteGaussian):
        mixture = sum(mechanism.noise.coefficients)
    share = 0 if mechanism is None else mechanism.share_variance
    local = plan.privacy.mechanism == "local-skellam"
    try:
        noised = FixedPoint(
            ring_bits=64 if local else plan.encoding.ring_bits,
            dimension=dimension,
            resolution=plan.encoding.resolution,
            clip_norm=total_clip,
            # a mixture reaches what so many times the units would
            max_units=mixture * (plan.units_per_agent if local else plan.public_denominator),
            noise_variance=share * (plan.fleet.agents if plan.privacy.distributed else 1),
            lane_bits=None if local else plan.encoding.lane_bits,
            headroom_rule="worst-case" if local else plan.encoding.headroom,
        )
    except ConfigurationError as error:
        if mixture == 1:
            raise
        raise ConfigurationError(
            f"privacy.correlation_bands = {plan.privacy.correlation_bands} mixes sums with "
            f"coefficients that add up to {mixture}, as if there were so many times the units: "
            f"{error}; use a coarser encoding.resolution, encoding.ring_bits = 64, or fewer bands"
        ) from error
    if noised.sensitivity(plan.unit) != bound or noised.padded != padded:
        raise AssertionError("unreachable: codec and noise must rest on the same bound")
    codec = _delta_codec(plan, noised) if local else noised
    return RoundSetup(
        plan=plan,
        policy=policy,
        dimension=dimension,
        total_clip=total_clip,
        sensitivity=bound,
        codec=codec,
        step_codec=noised if local else None,
        mechanism=mechanism,
        backend=_backend(plan, codec),
        adversary=main_adversary(plan),
    )


def policy_of(plan: Plan) -> MlpPolicy:
    """The shape of the published policy."""
    policy = plan.policy
    action: Literal["categorical", "gaussian", "q-values"] = "gaussian"
    if policy.action_kind == "discrete":
        action = "q-values" if plan.training.algorithm == "dqn" else "categorical"
    bounds = None
    if policy.action_low is not None and policy.action_high is not None:
        bounds = (policy.action_low, policy.action_high)
    return MlpPolicy(
        observation_size=policy.observations,
        hidden=policy.hidden,
        action=action,
        action_size=policy.actions,
        critic_hidden=policy.critic_hidden,
        bounds=bounds,
        recurrent=policy.recurrent,
    )


def _total_clip(plan: Plan, metrics: list[float]) -> float:
    """Root of the sum of squares of the clips of all parts of a row."""
    privacy = plan.privacy
    scale = 1 + sum(weight**2 for weight in metrics)
    if plan.policy.critic_hidden is None or plan.unit is Unit.AGENT:
        return privacy.clip_norm * math.sqrt(scale)
    critic = privacy.clip_norm if privacy.critic_clip_norm is None else privacy.critic_clip_norm
    return privacy.clip_norm * math.sqrt(scale + (critic / privacy.clip_norm) ** 2)


def _metric_weights(plan: Plan) -> list[float]:
    """One weight for each coordinate beside the policy's."""
    release, clip = plan.privacy.mean_return, plan.privacy.adaptive_clip
    weights = [] if release is None else [release.weight] * (1 + release.spread)
    return weights if clip is None else [*weights, clip.weight]


def _delta_codec(plan: Plan, step: FixedPoint) -> FixedPoint:
    """For the model delta of noised local steps: its clip is a range, not a sensitivity."""
    noise = math.sqrt(step.noise_variance * step.padded) * step.clip_norm / step.resolution
    # twice the root mean square of the noise: longer ones occur with negligible probability
    per_step = step.clip_norm + 2.0 * noise / plan.units_per_agent
    reach = plan.training.local_steps * plan.training.local_learning_rate * per_step
    return FixedPoint(
        ring_bits=plan.encoding.ring_bits,
        dimension=step.dimension,
        resolution=plan.encoding.resolution,
        clip_norm=min(max(reach, 1e-100), 1e100),
        max_units=plan.fleet.agents,
        noise_variance=0,
        lane_bits=plan.encoding.lane_bits,
        headroom_rule=plan.encoding.headroom,
    )


def _mechanism(plan: Plan, bound: IntegerSensitivity, padded: int) -> Mechanism | None:
    if plan.privacy.mechanism == "none":
        return None
    kind, more = MECHANISMS[plan.privacy.mechanism], dict[str, Any]()
    if plan.privacy.correlation_bands is not None:
        kind = CorrelatedDiscreteGaussian
        more["noise"] = CorrelatedNoise(bands=plan.privacy.correlation_bands)
    return least_noise(
        lambda variance: kind(
            sensitivity=bound, share_variance=variance, num_coordinates=padded, **more
        ),
        Target(epsilon=plan.privacy.epsilon, delta=plan.privacy.delta),
        min_honest=plan.noise_floor,
        participations=plan.releases_per_unit,
        low=kind.least_variance,
        high=kind.most_variance,
    )


def _backend(plan: Plan, codec: FixedPoint) -> Backend | None:
    protection = plan.protection
    if protection.kind == "none":
        return None
    # noise covers what two sums tell together, and the ledger charges both; without it nothing
    differencing: Literal["model", "off"] = "model" if plan.privacy.mechanism == "none" else "off"
    if protection.homomorphic:
        return Homomorphic(_he_parameters(plan, codec, differencing))
    if plan.sparse:
        return Pairwise(sparse_parameters(plan, codec.words))
    return Pairwise(
        SecAggParameters(
            num_clients=plan.fleet.agents,
            max_colluding=plan.privacy.max_colluding,
            vector_length=codec.words,
            ring_bits=plan.encoding.ring_bits,
            threshold=plan.threshold,
            min_clients=protection.min_clients,
            min_honest=protection.min_honest,
            differencing=differencing,
        )
    )


def _he_parameters(
    plan: Plan, codec: FixedPoint, differencing: Literal["model", "off"]
) -> HEParameters:
    """As few bits per value as hold the sum, or more where they cost nothing."""
    default = "ckks-4096-add" if plan.protection.kind == "ckks" else "bfv-4096-std"
    chosen = ParameterSet.named(plan.protection.parameter_set or default)
    carry = (plan.fleet.agents - 1).bit_length()
    needed = codec.narrowest_lane_bits
    takes = needed + carry + (MIN_GUARD_BITS if chosen.exact else 0)
    if takes > chosen.plain_bits:
        raise ConfigurationError(
            f"protection.parameter_set = {chosen.name!r} has {chosen.plain_bits} bits per slot; "
            f"the sum of {plan.fleet.agents} agents, {needed} bits, takes {takes} of them: choose "
            "a smaller encoding.resolution, or a wider set (bfv-4096-wide is the widest)"
        )
    lanes = (chosen.plain_bits - MIN_GUARD_BITS) // (needed + carry) if chosen.exact else 1
    return HEParameters(
        num_clients=plan.fleet.agents,
        max_colluding=plan.privacy.max_colluding,
        vector_length=codec.words,
        ring_bits=plan.encoding.ring_bits,
        parameter_set=chosen,
        value_bits=min(plan.encoding.ring_bits, chosen.plain_bits // lanes - carry),
        sum_bits=needed,
        threshold=plan.threshold,
        min_clients=plan.protection.min_clients,
        min_honest=plan.protection.min_honest,
        readding=plan.protection.readding,
        differencing=differencing,
    )
