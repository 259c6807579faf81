"""From the ring sum of the survivors to the mean that everybody may see.

Guarantee: a pure function of the opened sum, the public survivor count and the plan. FedSGD and
FedAvg share it: both divide by survivors x units per agent, a public number. Trajectory rows are
gradients under both; FedAvg's single local step multiplies their mean by the public step size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError
from privfedrl.federation.setup import RoundSetup
from privfedrl.plan import Plan
from privfedrl.privacy import Unit

__all__ = ["ReleasedMean", "released_mean"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReleasedMean:
    """What a round tells the world.

    Attributes:
        direction: float64 [d], noised mean of the clipped rows (gradient or model delta).
        mean_return: noised mean of the returns clipped to the plan's range, or None.
        noise_variance: per coordinate of ``direction``.
        mean_return_std: standard deviation of the noise in ``mean_return``, or None.
    """

    direction: NDArray[np.float64]
    noise_variance: float
    mean_return: float | None
    mean_return_std: float | None


def released_mean(
    setup: RoundSetup, ring_sum: NDArray[np.unsignedinteger], *, survivors: int, seed: bytes
) -> ReleasedMean:
    """Decode an opened sum.

    Args:
        ring_sum: uint32 or uint64 [words], sum of the survivors' vectors.
        survivors: how many vectors it holds; public.
        seed: the round's public rotation seed, 32 bytes.
    """
    if survivors < 1:
        raise ConfigurationError(f"survivors must be >= 1, got {survivors}")
    count = survivors * setup.plan.units_per_agent
    mean = setup.codec.decode_sum(ring_sum, rotation_seed=seed) / count
    std = setup.noise_std * survivors**0.5 / count
    step = _local_step(setup.plan)
    release = setup.plan.privacy.mean_return
    if release is None:
        return ReleasedMean(
            direction=step * mean,
            noise_variance=(step * std) ** 2,
            mean_return=None,
            mean_return_std=None,
        )
    middle, half = (release.high + release.low) / 2, (release.high - release.low) / 2
    unit = half / (release.weight * setup.plan.privacy.clip_norm)
    return ReleasedMean(
        direction=step * mean[:-1],
        noise_variance=(step * std) ** 2,
        mean_return=float(middle + mean[-1] * unit),
        mean_return_std=float(std * unit),
    )


def _local_step(plan: Plan) -> float:
    """What turns a trajectory row into a model delta; a delta (unit AGENT) is one already."""
    if plan.federation.strategy == "fedavg" and plan.unit is Unit.TRAJECTORY:
        return plan.training.local_learning_rate
    return 1.0
