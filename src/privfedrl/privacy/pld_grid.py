"""One Poisson-sampled Gaussian release as a privacy loss distribution on a grid, from above.

Guarantee: replacing the release by the returned masses raises delta(epsilon) at every epsilon, in
every composition (audits/proofs/privacy_loss_grid.md, steps 1 to 4).

Notation: a unit's output is x ~ N(0, sigma^2) without and (1-q) N(0, sigma^2) + q N(1, sigma^2)
with it, u = x / sigma; REMOVE compares with against without, ADD without against with. P is the
first law, Q the second, the loss is ln P/Q under P; step = distance of two grid losses.
Reference: Doroshenko, Ghazi, Kamath, Kumar and Manurangsi 2022 (arXiv 2207.04381).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

__all__ = ["Direction", "LossGrid", "discretise", "grid_points"]

FloatArray = npt.NDArray[np.float64]

# assumed relative error of ndtr(-|u|) is (2 + u^2) times this; measured: a quarter of it
_NDTR_ERROR = 2.0**-50
_LOSS_ERROR = 2.0**-50


class Direction(Enum):
    """Which of the two neighbouring data sets holds the unit."""

    REMOVE = "remove"
    ADD = "add"


@dataclass(frozen=True, slots=True)
class LossGrid:
    """Masses of P on multiples of the step.

    Attributes:
        start: the loss of masses[0] in steps.
        masses: float64 [k], >= the true mass; their sum may exceed 1 by rounding.
        infinite: >= the mass of P that was left out; its loss counts as infinite.
        offset: every true loss is at most this much above its place on the grid (rounding).
    """

    start: int
    masses: FloatArray
    infinite: float
    offset: float


def _range(sigma: float, rate: float, tail: float, direction: Direction) -> tuple[float, float]:
    """Losses that hold all of P but at most ``tail`` on either side; the low end may be -inf."""
    reach = math.sqrt(-2.0 * math.log(tail))
    if direction is Direction.REMOVE:
        return _loss(-reach, sigma, rate), _loss(reach + 1.0 / sigma, sigma, rate)
    return -_loss(reach, sigma, rate), -_loss(-reach, sigma, rate)


def _loss(u: float, sigma: float, rate: float) -> float:
    """ln(1 - q + q e^y), y = u/sigma - 1/(2 sigma^2)."""
    y = u / sigma - 0.5 / sigma / sigma
    if y > 30.0:
        return y + math.log(rate) + math.log1p((1.0 - rate) / rate * math.exp(-y))
    if rate == 1.0:
        return y
    return math.log1p(rate * math.expm1(y))


def grid_points(
    sigma: float, rate: float, *, step: float, tail: float, direction: Direction
) -> float:
    """How many points :func:`discretise` would need; inf if that cannot be said."""
    low, high = _range(sigma, rate, tail, direction)
    points = (high - low) / step + 3.0
    return points if math.isfinite(points) else math.inf


def discretise(
    sigma: float, rate: float, *, step: float, tail: float, direction: Direction
) -> LossGrid:
    """The loss of one release on a grid, each cell's mass spread to the ends of the cell.

    Args:
        sigma: noise multiplier; rate: sampling rate q, at most 1 - 10^-4 or exactly 1.
        step: > 0, for which :func:`grid_points` is of a size that the caller can afford.
        tail: mass of P that may be counted as infinite loss, in (0, 1).
    Guarantees:
        In every cell the masses of P and Q are those of the true pair, up to rounding, which is
        charged upwards; P's mass below the grid is counted at the lowest point.
    """
    low, high = _range(sigma, rate, tail, direction)
    start, stop = math.floor(low / step), math.ceil(high / step)
    losses: FloatArray = np.arange(start, stop + 1, dtype=np.float64) * step
    sign = 1.0 if direction is Direction.REMOVE else -1.0
    edges = sign * _points(sign * losses, sigma, rate)
    without, without_error = _normal(edges)
    shifted, shifted_error = _normal(edges - sign / sigma)
    mixed = (1.0 - rate) * without + rate * shifted
    mixed_error = (1.0 - rate) * without_error + rate * shifted_error
    # index 0: below the first edge; -1: above the last one; between: the cells
    if direction is Direction.REMOVE:
        first, first_error, second, second_error = mixed, mixed_error, without, without_error
    else:
        first, first_error, second, second_error = without, without_error, mixed, mixed_error
    offset = _LOSS_ERROR * (4.0 + float(np.max(np.abs(losses))))
    offset += 4.0 * _LOSS_ERROR * _placement(sigma, rate, tail)
    cells = slice(1, -1)
    up = _upper_share(
        losses[:-1], first[cells], first_error[cells], second[cells], second_error[cells], step
    )
    up = np.minimum(1.0, up + 2.0 * offset / -math.expm1(-step))
    ceiling = first + first_error
    masses = np.zeros(losses.size)
    masses[:-1] = ceiling[cells] * (1.0 - up)
    masses[1:] += ceiling[cells] * up
    masses[0] += ceiling[0]
    return LossGrid(start, masses, float(ceiling[-1]), offset)


def _placement(sigma: float, rate: float, tail: float) -> float:
    """Error of the loss at a computed edge, in units of the rounding error."""
    reach = math.sqrt(-2.0 * math.log(tail))
    absent = 0.0 if rate == 1.0 else 1.0 / (1.0 - rate)
    return (reach + 1.0 / sigma) / sigma + absent


def _points(losses: FloatArray, sigma: float, rate: float) -> FloatArray:
    """Where the loss of REMOVE takes the given values, in units of sigma; -inf below its range."""
    if rate == 1.0:
        return losses * sigma + 0.5 / sigma
    with np.errstate(divide="ignore", invalid="ignore"):
        small = np.log1p(np.maximum(np.expm1(np.minimum(losses, 30.0)) / rate, -1.0))
    large = np.maximum(losses, 30.0)
    large = large - math.log(rate) + np.log1p(-(1.0 - rate) * np.exp(-large))
    return np.where(losses < 30.0, small, large) * sigma + 0.5 / sigma


def _normal(edges: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Standard normal mass below, between and above increasing edges, and bounds on its error."""
    tails = ndtr(-np.abs(edges))
    negative = edges < 0.0
    below = np.where(negative, tails, 1.0 - tails)
    gaps = np.abs(np.diff(tails))
    straddling = negative[:-1] & ~negative[1:]
    gaps[straddling] = np.diff(below)[straddling]
    wrong = _NDTR_ERROR * tails * (2.0 + np.minimum(np.abs(edges), 1e3) ** 2)
    last = tails[-1] if not negative[-1] else 1.0 - tails[-1]
    masses = np.concatenate([below[:1], gaps, [last]])
    errors = np.concatenate([wrong[:1], wrong[:-1] + wrong[1:], wrong[-1:]]) + 2.0**-51 * masses
    return masses, errors


def _upper_share(
    losses: FloatArray,
    first: FloatArray,
    first_error: FloatArray,
    second: FloatArray,
    second_error: FloatArray,
    step: float,
) -> FloatArray:
    """Share of a cell's P mass that goes to its upper end, so that its Q mass is kept.

    P = (1-s) P + s P at the losses l and l + step has the Q mass (1-s) P e^-l + s P e^-(l+step).
    """
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        ratio = np.exp(losses) * second / first
        relative = first_error / first + second_error / second + 2.0**-50
        share = (1.0 - ratio * (1.0 - relative)) / -math.expm1(-step)
    # a cell without measurable mass goes up as a whole
    return np.where(share >= 0.0, np.minimum(share, 1.0), np.where(share < 0.0, 0.0, 1.0))
