"""From the ring sum of the survivors to the mean that everybody may see.

Guarantee: a pure function of the opened sum, the public survivor count and the plan. FedSGD and
FedAvg share it: both divide by survivors x units per agent, a public number. Trajectory rows are
gradients under both; FedAvg's single local step multiplies their mean by the public step size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError
from privfedrl.federation.metrics import clip_quantile, return_release
from privfedrl.federation.setup import RoundSetup
from privfedrl.privacy import Unit
from privfedrl.privacy.correlated import decode

__all__ = ["ReleasedMean", "released_mean"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReleasedMean:
    """What a round tells the world.

    Attributes:
        direction: float64 [d], noised mean of the clipped rows (gradient or model delta).
        mean_return: noised mean of the returns clipped to the plan's range, or None.
        noise_variance: per coordinate of ``direction``, in this round by itself.
        mean_return_std: standard deviation of the noise in ``mean_return``, or None.
        return_spread: standard deviation of the returns over units, from noised moments, or None.
        next_clip: clip norm of the next round, or None where it does not adapt.
        total: float64 [dimension], the decoded sum that all of this is computed from.
    """

    direction: NDArray[np.float64]
    noise_variance: float
    mean_return: float | None
    mean_return_std: float | None
    return_spread: float | None
    next_clip: float | None
    total: NDArray[np.float64]


def released_mean(
    setup: RoundSetup,
    ring_sum: NDArray[np.unsignedinteger],
    *,
    survivors: int,
    seed: bytes,
    clip: float | None = None,
    round_index: int = 0,
    past: Sequence[NDArray[np.float64]] = (),
) -> ReleasedMean:
    """Decode an opened sum, or a mixture of sums where noise is correlated over rounds.

    Args:
        ring_sum: uint32 or uint64 [words], sum of the survivors' vectors.
        survivors: how many vectors it holds; public.
        seed: the round's public rotation seed, 32 bytes.
        clip: the round's clip norm, where it adapts.
        round_index: matters to correlated noise only, which widens with it.
        past: ``total`` of the last rounds, newest first; for correlated noise only.
    """
    if survivors < 1:
        raise ConfigurationError(f"survivors must be >= 1, got {survivors}")
    plan, count = setup.plan, survivors * setup.rows_per_agent
    total = setup.codec.decode_sum(ring_sum, rotation_seed=seed)
    if setup.correlated is not None:
        total = decode(setup.correlated, total, past)
    mean = total / count
    std = setup.released_std(survivors, round_index)
    scale = _local_step(setup)
    if clip is not None:
        scale *= clip / plan.privacy.clip_norm  # rows were scaled to the plan's clip
    size = setup.policy.num_parameters
    metrics = list(mean[size:])
    release, quantile = return_release(plan), clip_quantile(plan)
    returns = None if release is None else metrics.pop(0)
    squares = metrics.pop(0) if release is not None and release.spread else None
    released = ReleasedMean(
        direction=scale * mean[:size],
        noise_variance=(scale * std) ** 2,
        mean_return=None,
        mean_return_std=None,
        return_spread=None,
        next_clip=None,
        total=total,
    )
    norm = plan.privacy.clip_norm
    if release is not None and returns is not None:
        released = replace(
            released,
            mean_return=release.mean_return(returns, clip_norm=norm, denominator=1),
            mean_return_std=std * release.half_width / (release.weight * norm),
            return_spread=None
            if squares is None
            else release.return_std(returns, squares, clip_norm=norm, denominator=1),
        )
    if quantile is not None and clip is not None:
        below = metrics.pop(0)
        released = replace(
            released,
            next_clip=quantile.next_clip(clip, below, clip_norm=norm, denominator=1),
        )
    return released


def _local_step(setup: RoundSetup) -> float:
    """What turns a row of gradients into a model delta; a delta is one already."""
    plan = setup.plan
    gradients = plan.unit is not Unit.AGENT and setup.step_codec is None
    if plan.federation.strategy == "fedavg" and gradients:
        return plan.training.local_learning_rate
    return 1.0
