"""From a plan to the objects that carry it out: policy shape, codec, noise, protocol parameters.

Guarantee: agent, coordinator, promise and statement derive the clip, the sensitivity, the noise
share and the threshold from the same pure function of the plan, so they cannot disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from privfedrl.encoding import FixedPoint, rounding_bound
from privfedrl.errors import ConfigurationError
from privfedrl.federation.adversaries import main_adversary
from privfedrl.federation.backends import Backend, Homomorphic, Pairwise
from privfedrl.he import HEParameters, ParameterSet
from privfedrl.he.parameters import MIN_GUARD_BITS
from privfedrl.plan import Plan
from privfedrl.privacy import (
    DistributedSkellam,
    DpEvent,
    IntegerSensitivity,
    UnboundedEvent,
    calibrate_skellam,
)
from privfedrl.rollout import MlpPolicy
from privfedrl.secagg import SecAggParameters

__all__ = ["RoundSetup", "round_setup"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSetup:
    """What every round of a plan uses.

    Attributes:
        plan: the plan that all of this follows from.
        policy: shape of the policy; its parameters are the first coordinates of a contribution.
        dimension: coordinates of a contribution before padding (parameters and released metrics).
        total_clip: L2 norm that bounds one unit's whole row, metrics included.
        sensitivity: how far one unit can move the integer sum.
        codec: clipped rows to ring vectors and back.
        mechanism: the noise share of each agent, or None in a control run without noise.
        backend: how the sum is formed; None where the plan has no protection.
        adversary: whom the plan's epsilon is about.
    """

    plan: Plan
    policy: MlpPolicy
    dimension: int
    total_clip: float
    sensitivity: IntegerSensitivity
    codec: FixedPoint
    mechanism: DistributedSkellam | None
    backend: Backend | None
    adversary: str

    def event(self, honest_survivors: int) -> DpEvent:
        """One round's release when ``honest_survivors`` shares are unknown to the adversary."""
        if self.mechanism is None:
            return UnboundedEvent(unit=self.plan.unit)
        return self.mechanism.event(honest_survivors)

    @property
    def worst_event(self) -> DpEvent:
        """The costliest release that the protocol allows: exactly the threshold survives."""
        return self.event(self.plan.honest_floor)

    @property
    def budget(self) -> float:
        """Epsilon that a ledger must not let a run exceed; infinite where nothing is promised."""
        return math.inf if self.mechanism is None else self.plan.privacy.epsilon

    @property
    def accounted_delta(self) -> float:
        """The plan's delta less what the noise sampler may deviate from its exact distribution."""
        if self.mechanism is None:
            return self.plan.privacy.delta
        charged = self.mechanism.sampler_delta(
            epsilon=self.plan.privacy.epsilon,
            shares=self.plan.fleet.agents * self.plan.releases_per_unit,
        )
        return self.plan.privacy.delta - charged

    @property
    def noise_std(self) -> float:
        """Standard deviation of one agent's share in real units, per coordinate."""
        if self.mechanism is None:
            return 0.0
        return math.sqrt(self.mechanism.share_variance) * self.total_clip / self.codec.resolution

    @property
    def noise_multiplier(self) -> float:
        """sigma / clip of the noise that the honest survivors carry at the threshold."""
        return self.noise_std * math.sqrt(self.plan.honest_floor) / self.total_clip


def round_setup(plan: Plan) -> RoundSetup:
    """Derive everything from ``plan``.

    Raises:
        ConfigurationError: the ring is too narrow, the noise cannot be calibrated, the protocol
            parameters are infeasible.
    """
    return _cached(plan)


@lru_cache(maxsize=16)
def _cached(plan: Plan) -> RoundSetup:
    policy = MlpPolicy(
        observation_size=plan.policy.observations,
        hidden=plan.policy.hidden,
        action="categorical" if plan.policy.action_kind == "discrete" else "gaussian",
        action_size=plan.policy.actions,
    )
    privacy = plan.privacy
    release = privacy.mean_return
    dimension = policy.num_parameters + (0 if release is None else 1)
    total_clip = privacy.clip_norm * math.sqrt(1 + (0 if release is None else release.weight**2))
    padded = 1 << (dimension - 1).bit_length()
    l2_squared, l1 = rounding_bound(
        clip_norm=total_clip, resolution=plan.encoding.resolution, dimension=padded
    )
    bound = IntegerSensitivity(l2_squared=l2_squared, l1=l1, unit=plan.unit)
    mechanism = _mechanism(plan, bound, padded)
    share = 0 if mechanism is None else mechanism.share_variance
    codec = FixedPoint(
        ring_bits=plan.encoding.ring_bits,
        dimension=dimension,
        resolution=plan.encoding.resolution,
        clip_norm=total_clip,
        max_units=plan.public_denominator,
        noise_variance=share * plan.fleet.agents,
        lane_bits=plan.encoding.lane_bits,
        headroom_rule=plan.encoding.headroom,
    )
    if codec.sensitivity(plan.unit) != bound or codec.padded != padded:
        raise AssertionError("unreachable: codec and noise must rest on the same bound")
    return RoundSetup(
        plan=plan,
        policy=policy,
        dimension=dimension,
        total_clip=total_clip,
        sensitivity=bound,
        codec=codec,
        mechanism=mechanism,
        backend=_backend(plan, codec),
        adversary=main_adversary(plan),
    )


def _mechanism(plan: Plan, bound: IntegerSensitivity, padded: int) -> DistributedSkellam | None:
    if plan.privacy.mechanism == "none":
        return None
    return calibrate_skellam(
        sensitivity=bound,
        min_honest=plan.honest_floor,
        epsilon=plan.privacy.epsilon,
        delta=plan.privacy.delta,
        num_coordinates=padded,
        participations=plan.releases_per_unit,
    )


def _backend(plan: Plan, codec: FixedPoint) -> Backend | None:
    protection = plan.protection
    if protection.kind == "none":
        return None
    # noise covers what two sums tell together, and the ledger charges both; without it nothing
    differencing: Literal["model", "off"] = "model" if plan.privacy.mechanism == "none" else "off"
    if protection.homomorphic:
        return Homomorphic(_he_parameters(plan, codec, differencing))
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
