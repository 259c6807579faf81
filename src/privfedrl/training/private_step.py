"""The private step: trajectories in, one clipped row per unit out, for every algorithm.

Guarantee: row i of the update is a function of the policy and of unit i alone (one trajectory, or
the trajectories of one person) and has L2 norm at most the update's ``clip_norm``; the update is a
sum, never divided by anything private. Proofs: audits/proofs/clipped_gradient.md, person_unit.md,
adaptive_clip.md.

Notation: B trajectories, d parameters, n rows (B, or the public number P of persons), C the clip
norm of the policy's gradient, C_c that of the critic's, C_r the current clip.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfedrl.privacy.units import Unit
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.training.algorithms import Models, Objective, signals
from privfedrl.training.clip_groups import clip_by_group
from privfedrl.training.local_update import LocalUpdate, check_clip_norm, row_norms
from privfedrl.training.metric_coordinates import (
    ClipQuantile,
    ReturnRelease,
    count_coordinate,
    return_coordinate,
    row_groups,
    spread_coordinate,
)
from privfedrl.training.subjects import Grouping, kept, sum_by_person
from privfedrl.training.trajectory_gradients import Guidance, Terms, TrajectoryGradient, fused

__all__ = ["ReturnRelease", "UnitRows", "private_rows", "return_coordinate", "unit_rows"]

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class UnitRows:
    """What each unit's trajectories amount to before any clipping. Private throughout.

    Attributes:
        gradients: [n, d], any values.
        returns: float64 [n], mean undiscounted return of the unit's trajectories.
        present: bool [n], whether the unit has a step at all.
    """

    gradients: NDArray[np.floating]
    returns: Float
    present: NDArray[np.bool_]


def unit_rows(
    models: Models,
    batch: TrajectoryBatch,
    objective: Objective,
    *,
    grouping: Grouping | None = None,
    gradient: TrajectoryGradient = fused,
) -> UnitRows:
    """Gradients of the objective per trajectory, or per person their sum; nothing is clipped.

    Args:
        models: the published policy, and where the algorithm asks for them the policy that
            collected ``batch`` and the target network.
        grouping: of ``batch``; None makes every trajectory a unit. Trajectories that do not count
            are zeroed and masked out before anything else looks at the batch.
    """
    if grouping is not None:
        batch = kept(batch, grouping)
    found = signals(models, batch, objective)
    guidance = None
    if objective.guidance_weight and models.behaviour is not None:
        guidance = Guidance(models.behaviour, objective.guidance_weight)
    terms = Terms(objective.entropy_weight, found.values, guidance)
    gradients = gradient(models.current, batch, found.weights, terms).numpy()
    with np.errstate(invalid="ignore"):  # infinities of both signs make NaN: no return is released
        returns = batch.returns
    present = np.asarray(batch.mask.any(axis=1))
    if grouping is None:
        return UnitRows(gradients=gradients, returns=returns, present=present)
    count = sum_by_person(present.astype(np.float64), grouping)
    return UnitRows(
        gradients=sum_by_person(gradients, grouping),
        # the person's own number of trajectories: a mean within the unit
        returns=sum_by_person(returns, grouping) / np.maximum(count, 1.0),
        present=count > 0,
    )


@np.errstate(all="ignore")  # a row that overflows is dropped; an error would drop all of them
def private_rows(
    models: Models,
    batch: TrajectoryBatch,
    objective: Objective,
    *,
    clip_norm: float,
    critic_clip_norm: float | None = None,
    return_release: ReturnRelease | None = None,
    clip_quantile: ClipQuantile | None = None,
    current_clip: float | None = None,
    grouping: Grouping | None = None,
    gradient: TrajectoryGradient = fused,
) -> LocalUpdate:
    """Gradients of ``batch``, summed within each unit, then clipped unit by unit.

    Args:
        models: see :func:`unit_rows`.
        batch: B trajectories; an absent one is a row whose mask is False throughout.
        objective: the algorithm and its constants.
        clip_norm: C, L2 bound of the policy part of a row.
        critic_clip_norm: C_c, of the critic's part; needed with a critic, None without.
        return_release: append the unit's clamped mean return, and its spread if asked. An absent
            unit and a return that is not finite give zero there.
        clip_quantile: append whether the policy's gradient is within the current clip (+1) or not
            (-1, also if it is not finite), times weight C; zero for an absent unit.
        current_clip: C_r, a public number; a gradient part of clip C_g is clip(g, C_g C_r / C)
            times C / C_r, which is within C_g whatever C_r is. None = C.
        grouping: of the trajectories into persons, see :func:`grouped`; None = unit TRAJECTORY.
        gradient: how the rows are computed; all paths agree to float rounding.
    Returns:
        LocalUpdate with rows [n, d + metrics] in the order of :func:`row_groups`, ascent direction,
        unit TRAJECTORY or PERSON. A gradient that is not finite is zero and counted.
    Raises:
        ConfigurationError: ``current_clip`` is outside ``clip_quantile``, or an argument is bad.
    """
    bound = check_clip_norm(clip_norm)
    current = _current_clip(current_clip, bound, clip_quantile)
    units = unit_rows(models, batch, objective, grouping=grouping, gradient=gradient)
    policy = models.current.policy
    scaled = _at_scale(units.gradients, current, bound)
    actor = units.gradients[:, : policy.actor_parameters]
    columns = _metric_columns(units, actor, bound, current, return_release, clip_quantile)
    groups = row_groups(
        policy.actor_parameters,
        clip_norm=bound,
        critic=(policy.num_parameters - policy.actor_parameters, critic_clip_norm),
        return_release=return_release,
        clip_quantile=clip_quantile,
    )
    rows = np.concatenate([scaled, *columns], axis=1) if columns else scaled
    clipped = clip_by_group(rows, groups)
    return LocalUpdate(
        rows=clipped.rows,
        clip_norm=clipped.clip_norm,
        unit=Unit.TRAJECTORY if grouping is None else Unit.PERSON,
        nonfinite_units=clipped.nonfinite[0],
        batch_id=batch.batch_id,
    )


def _current_clip(current: float | None, bound: float, quantile: ClipQuantile | None) -> float:
    chosen = bound if current is None else check_clip_norm(current, name="current_clip")
    return chosen if quantile is None else quantile.checked(chosen)


def _at_scale(
    gradients: NDArray[np.floating], current: float, bound: float
) -> NDArray[np.floating]:
    """g C / C_r, whose clip to C is clip(g, C_r) C / C_r: one clip, and its bound never moves."""
    if current == bound:
        return gradients
    with np.errstate(over="ignore"):  # beyond the largest float64: dropped as not finite
        return gradients.astype(np.float64) * (bound / current)


def _metric_columns(
    units: UnitRows,
    actor: NDArray[np.floating],
    bound: float,
    current: float,
    release: ReturnRelease | None,
    quantile: ClipQuantile | None,
) -> list[Float]:
    """Columns [n, 1] in the order of ``row_groups``; zero for absent units."""
    columns: list[Float] = []
    if release is not None:
        columns.append(return_coordinate(units.returns, release, clip_norm=bound))
        if release.spread:
            columns.append(spread_coordinate(units.returns, release, clip_norm=bound))
    if quantile is not None:
        finite = np.isfinite(actor).all(axis=1)
        norms = row_norms(np.where(finite[:, None], actor, 0.0).astype(np.float64))
        norms = np.where(finite, norms, np.inf)
        columns.append(count_coordinate(norms, quantile, current_clip=current, clip_norm=bound))
    return [np.where(units.present, column, 0.0)[:, None] for column in columns]
