"""The coordinates beside the policy's, as the plan asks for them.

Guarantee: agents that encode them and the coordinator that reads them use the same values.
"""

from __future__ import annotations

from privfedrl.plan import Plan
from privfedrl.training import ClipQuantile, ReturnRelease

__all__ = ["clip_quantile", "return_release"]


def return_release(plan: Plan) -> ReturnRelease | None:
    """Mean return and perhaps its spread."""
    release = plan.privacy.mean_return
    if release is None:
        return None
    return ReturnRelease(
        low=release.low, high=release.high, weight=release.weight, spread=release.spread
    )


def clip_quantile(plan: Plan) -> ClipQuantile | None:
    """How many units were not clipped."""
    clip = plan.privacy.adaptive_clip
    if clip is None:
        return None
    return ClipQuantile(
        quantile=clip.quantile,
        learning_rate=clip.learning_rate,
        low=clip.low,
        high=clip.high,
        weight=clip.weight,
    )
