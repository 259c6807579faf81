"""The mechanisms: who adds how much integer noise, and what a release with it is charged as.

Guarantee: the event holds exactly the noise that the named adversary does not know, and a share is
drawn from the distribution that the event names, up to a total variation that is charged to delta.

| mechanism                    | noise is added by                          | the event holds      |
|------------------------------|--------------------------------------------|----------------------|
| DistributedSkellam           | every agent, to its vector                 | n honest shares      |
| DistributedDiscreteGaussian  | every agent, to its vector                 | n honest shares      |
| CentralDiscreteGaussian      | key authority or aggregator, to the sum    | its one share        |
| CorrelatedDiscreteGaussian   | aggregator, to a mixture of the last sums  | its one share        |
| LocalSkellam                 | every agent, to each of its own steps      | the agent's share    |

Sums of Skellams are Skellam: n shares give exactly Sk(n share_variance), also after dropouts. A sum
of discrete Gaussians is one only nearly, which its event accounts for.
Notation as in ``rdp``. Reference: audits/proofs/survivor_noise.md.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from privfedrl.errors import ConfigurationError, shown
from privfedrl.privacy.correlated import CorrelatedNoise
from privfedrl.privacy.events import MIN_SHARE_VARIANCE, DiscreteGaussianEvent, SkellamEvent
from privfedrl.privacy.samplers import (
    MAX_GAUSSIAN_VARIANCE,
    MAX_VARIANCE,
    DiscreteGaussianSampler,
    Entropy,
    IntArray,
    SkellamSampler,
    delta_of_sampler,
    discrete_gaussian_total_variation,
    skellam_total_variation,
)
from privfedrl.privacy.units import IntegerSensitivity

__all__ = [
    "CentralDiscreteGaussian",
    "CorrelatedDiscreteGaussian",
    "DistributedDiscreteGaussian",
    "DistributedSkellam",
    "LocalSkellam",
    "Mechanism",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism(ABC):
    """An integer vector with integer noise.

    Attributes:
        sensitivity: how far one unit can move the integer vector (add/remove).
        share_variance: variance parameter of one share per coordinate, squared grid units.
        num_coordinates: length of the released vector, after padding.
    """

    sensitivity: IntegerSensitivity
    share_variance: int
    num_coordinates: int

    least_variance: ClassVar[int] = 1
    most_variance: ClassVar[int] = MAX_VARIANCE

    def __post_init__(self) -> None:
        if not isinstance(self.sensitivity, IntegerSensitivity):
            raise ConfigurationError(
                f"sensitivity must be an IntegerSensitivity, got {type(self.sensitivity).__name__}"
            )
        for name in ("share_variance", "num_coordinates"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigurationError(f"{name} must be an integer >= 1, got {shown(value)}")
        if self.share_variance < self.least_variance:
            raise ConfigurationError(
                f"share_variance must be >= {self.least_variance} for {type(self).__name__}, got "
                f"{self.share_variance}; use a finer resolution"
            )
        if self.share_variance > self.most_variance:
            raise ConfigurationError(
                f"share_variance must be <= {self.most_variance}, got {self.share_variance}; "
                "use a coarser resolution"
            )

    @abstractmethod
    def event(self, honest_survivors: int) -> SkellamEvent | DiscreteGaussianEvent:
        """The event to charge when the sum holds the shares of that many honest agents.

        Args:
            honest_survivors: agents whose shares were summed, less the colluders assumed (who
                know their own noise); >= 1. To reserve before the survivors are known, pass the
                smallest number with which the round is allowed to finish. Where the noise is not
                the survivors', the event does not depend on them.
        Raises:
            ConfigurationError: fewer than one honest share would hide nothing.
        """

    @abstractmethod
    def sample_share(self, entropy: Entropy = os.urandom) -> IntArray:
        """One noise share, int64 [num_coordinates], fresh on every call."""

    @property
    @abstractmethod
    def total_variation(self) -> float:
        """Bound on the total variation between one sampled coordinate and its distribution."""

    def sampler_delta(self, *, epsilon: float, shares: int) -> float:
        """The delta to add because shares are table samples; ``samplers.delta_of_sampler``."""
        return delta_of_sampler(
            self.total_variation,
            coordinates=self.num_coordinates,
            epsilon=epsilon,
            shares=shares,
        )


class _Skellam(Mechanism):
    """Shares Sk(share_variance)."""

    __slots__ = ()

    def sample_share(self, entropy: Entropy = os.urandom) -> IntArray:
        return SkellamSampler(self.share_variance, entropy=entropy).sample(self.num_coordinates)

    @property
    def total_variation(self) -> float:
        return skellam_total_variation(self.share_variance)


class _DiscreteGaussian(Mechanism):
    """Shares N_Z(0, share_variance)."""

    __slots__ = ()
    most_variance: ClassVar[int] = MAX_GAUSSIAN_VARIANCE

    def sample_share(self, entropy: Entropy = os.urandom) -> IntArray:
        sampler = DiscreteGaussianSampler(self.share_variance, entropy=entropy)
        return sampler.sample(self.num_coordinates)

    @property
    def total_variation(self) -> float:
        return discrete_gaussian_total_variation(self.share_variance)

    def _event(self, shares: int) -> DiscreteGaussianEvent:
        return DiscreteGaussianEvent(
            sensitivity=self.sensitivity,
            variance=self.share_variance,
            shares=shares,
            coordinates=self.num_coordinates,
        )


class DistributedSkellam(_Skellam):
    """An integer sum over agents, each of which adds one Skellam share. The default."""

    __slots__ = ()

    def event(self, honest_survivors: int) -> SkellamEvent:
        count = _checked(honest_survivors)
        return SkellamEvent(sensitivity=self.sensitivity, variance=self.share_variance * count)


class DistributedDiscreteGaussian(_DiscreteGaussian):
    """An integer sum over agents, each of which adds one discrete Gaussian share."""

    __slots__ = ()
    least_variance: ClassVar[int] = MIN_SHARE_VARIANCE

    def event(self, honest_survivors: int) -> DiscreteGaussianEvent:
        return self._event(_checked(honest_survivors))


class CentralDiscreteGaussian(_DiscreteGaussian):
    """An integer sum to which one trusted party adds one discrete Gaussian share.

    That party sees the sum as it is: the event holds against everybody but it.
    """

    __slots__ = ()

    def event(self, honest_survivors: int) -> DiscreteGaussianEvent:
        _checked(honest_survivors)
        return self._event(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrelatedDiscreteGaussian(_DiscreteGaussian):
    """An integer mixture of the last sums to which one trusted party adds one share.

    That party sees and keeps the last sums as they are: the event holds against everybody but it.

    Attributes:
        sensitivity: of one round's sum, as elsewhere; the event holds that of the mixture.
        num_coordinates: of one round's vector; the event and the sampler's charge count those of
            all the rounds that a sum is in.
        noise: how sums are mixed.
    """

    noise: CorrelatedNoise

    def __post_init__(self) -> None:
        _DiscreteGaussian.__post_init__(self)  # super() does not see a class with slots
        if not isinstance(self.noise, CorrelatedNoise):
            raise ConfigurationError(
                f"noise must be a CorrelatedNoise, got {type(self.noise).__name__}"
            )

    def event(self, honest_survivors: int) -> DiscreteGaussianEvent:
        """One participation of a unit, for all the releases that it is in."""
        _checked(honest_survivors)
        return self.noise.event(
            self.sensitivity, variance=self.share_variance, coordinates=self.num_coordinates
        )

    def sampler_delta(self, *, epsilon: float, shares: int) -> float:
        return delta_of_sampler(
            self.total_variation,
            coordinates=self.num_coordinates * self.noise.bands,
            epsilon=epsilon,
            shares=shares,
        )


class LocalSkellam(_Skellam):
    """Local DP-SGD on integers: each local step of an agent carries a whole Skellam share.

    What the agent sends is a function of noised steps, so the event holds against everybody but the
    agent, whoever colludes and however many drop out.
    """

    __slots__ = ()

    def event(self, honest_survivors: int) -> SkellamEvent:
        _checked(honest_survivors)
        return SkellamEvent(sensitivity=self.sensitivity, variance=self.share_variance)


def _checked(honest_survivors: int) -> int:
    if (
        not isinstance(honest_survivors, int)
        or isinstance(honest_survivors, bool)
        or honest_survivors < 1
    ):
        raise ConfigurationError(
            f"honest_survivors must be an integer >= 1, got {shown(honest_survivors)}"
        )
    return honest_survivors
