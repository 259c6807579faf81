"""The distributed Skellam mechanism: what is charged is what the honest survivors really added.

Each agent adds an independent Sk(share_variance) integer to each coordinate. Sums of Skellams are
Skellam, so n shares give exactly Sk(n share_variance): no correction term, exact under dropouts.
Notation as in ``rdp``. Reference: audits/proofs/survivor_noise.md.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from privfedrl.errors import ConfigurationError
from privfedrl.privacy.events import SkellamEvent
from privfedrl.privacy.samplers import (
    MAX_VARIANCE,
    Entropy,
    IntArray,
    SkellamSampler,
    delta_of_sampler,
    skellam_total_variation,
)
from privfedrl.privacy.units import IntegerSensitivity

__all__ = ["DistributedSkellam"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributedSkellam:
    """An integer sum over agents, each of which adds one Skellam share.

    Attributes:
        sensitivity: how far one unit can move the integer sum (add/remove).
        share_variance: variance of one agent's share per coordinate, squared grid units.
        num_coordinates: length of the released vector, after padding.
    """

    sensitivity: IntegerSensitivity
    share_variance: int
    num_coordinates: int

    def __post_init__(self) -> None:
        if not isinstance(self.sensitivity, IntegerSensitivity):
            raise ConfigurationError(
                f"sensitivity must be an IntegerSensitivity, got {type(self.sensitivity).__name__}"
            )
        for name in ("share_variance", "num_coordinates"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigurationError(f"{name} must be an integer >= 1, got {value!r}")
        if self.share_variance > MAX_VARIANCE:
            raise ConfigurationError(
                f"share_variance must be <= {MAX_VARIANCE}, got {self.share_variance}; "
                "use a coarser resolution"
            )

    def event(self, honest_survivors: int) -> SkellamEvent:
        """The event to charge when the sum holds the shares of that many honest agents.

        Args:
            honest_survivors: agents whose shares were summed, less the colluders assumed (who
                know their own noise); >= 1. To reserve before the survivors are known, pass the
                smallest number with which the round is allowed to finish.
        Raises:
            ConfigurationError: fewer than one honest share would hide nothing.
        """
        if (
            not isinstance(honest_survivors, int)
            or isinstance(honest_survivors, bool)
            or honest_survivors < 1
        ):
            raise ConfigurationError(
                f"honest_survivors must be an integer >= 1, got {honest_survivors!r}"
            )
        return SkellamEvent(
            sensitivity=self.sensitivity, variance=self.share_variance * honest_survivors
        )

    def sample_share(self, entropy: Entropy = os.urandom) -> IntArray:
        """One agent's noise share, int64 [num_coordinates], fresh on every call."""
        return SkellamSampler(self.share_variance, entropy=entropy).sample(self.num_coordinates)

    def sampler_delta(self, *, epsilon: float, shares: int) -> float:
        """The delta to add because shares are table samples; ``samplers.delta_of_sampler``."""
        return delta_of_sampler(
            skellam_total_variation(self.share_variance),
            coordinates=self.num_coordinates,
            epsilon=epsilon,
            shares=shares,
        )
