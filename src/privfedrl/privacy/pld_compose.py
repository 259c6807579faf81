"""The composed privacy loss of many releases by one FFT, and the epsilon that it proves.

Guarantee: ``composed_epsilon`` is never below the epsilon of the composition in its direction;
whatever is cut off, wraps around or is lost to rounding is charged to delta first
(audits/proofs/privacy_loss_grid.md, steps 5 to 9).

Notation: h = step of the grid, S = sum of the grid losses, lambda = tilt, Lambda = ln E[e^(lambda
S)], T = S under the tilted law, of which E[f(S)] = E[f(T) e^(Lambda - lambda T)].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.fft import irfft, next_fast_len, rfft

from privfedrl.privacy.pld_grid import Direction, discretise, grid_points

__all__ = ["SampledGaussian", "composed_epsilon"]

FloatArray = npt.NDArray[np.float64]
ComplexArray = npt.NDArray[np.complex128]

# mass that may be cut off at the top of the composed loss, and of all releases, as share of delta
_CUT = 1e-5
# all charges together may take this share of delta, else there is no figure
_MOST_CHARGED = 1e-3
_MOST_POINTS = 2**21
_MOST_STORED = 2**22
_MOST_WORK = 2**25
# standard deviations of the tilted loss that the window holds at least
_SPREAD = 10.0
_ROUNDING = 2.0**-50


@dataclass(frozen=True, slots=True)
class SampledGaussian:
    """``count`` Gaussian releases of one noise multiplier, each on a sample at ``rate``."""

    sigma: float
    rate: float
    count: int


@dataclass(frozen=True, slots=True)
class _Tilted:
    """The tilted loss of ``count`` equal releases, each with weights that sum to 1.

    Mean and variance are in steps; ``size`` bounds the numbers that were exponentiated, for the
    rounding charge; ``infinite`` and ``offset`` are those of the grid.
    """

    count: int
    start: int
    weights: FloatArray
    log_moment: float
    mean: float
    variance: float
    size: float
    infinite: float
    offset: float


@dataclass(frozen=True, slots=True)
class _Window:
    """The composed loss on a window of the grid, relative to delta.

    Attributes:
        bottom: loss of weights[0] in steps.
        weights: [k] mass at each point over delta.
        charged: share of delta for what was cut off and for relative rounding.
        noise, log_scale: the FFT's error costs at most noise e^(log_scale - lambda epsilon).
    """

    bottom: int
    weights: FloatArray
    charged: float
    noise: float
    log_scale: float


def composed_epsilon(
    releases: Sequence[SampledGaussian],
    direction: Direction,
    delta: float,
    *,
    tilt: float,
    target: float,
    step: float,
    floor: float = 0.0,
) -> float | None:
    """Epsilon >= floor of the composition in one direction; None if it is not to be had.

    Args:
        tilt: lambda > 0; target: roughly the epsilon; step: h. They decide how tight the figure
            is, never whether it is valid; the step is widened until the grid is affordable.
        floor: an epsilon below which no answer is of interest.
    """
    tail = _CUT * delta / sum(one.count for one in releases)
    if tail < 1e-290:
        return None
    while step < target:
        points = [
            grid_points(one.sigma, one.rate, step=step, tail=tail, direction=direction)
            for one in releases
        ]
        excess = max(math.fsum(points) / _MOST_STORED, max(points) / _MOST_POINTS)
        if excess <= 1.0:
            losses = [_tilt(one, direction, tilt, step, tail) for one in releases]
            bottom, size = _window(losses, tilt * step, delta, target / step)
            excess = size / min(_MOST_POINTS, _MOST_WORK / len(losses))
            if excess <= 1.0:
                window = _compose(losses, bottom, size, tilt * step, delta)
                found = _solve(window, tilt, step, floor)
                offset = math.fsum(one.count * one.offset for one in losses)
                return None if found is None else (found + offset) * (1.0 + 2.0**-44)
        step *= 1.1 * excess
    return None


def _tilt(
    release: SampledGaussian, direction: Direction, tilt: float, step: float, tail: float
) -> _Tilted:
    grid = discretise(release.sigma, release.rate, step=step, tail=tail, direction=direction)
    places = np.arange(grid.start, grid.start + grid.masses.size)
    exponent = tilt * step * places
    with np.errstate(divide="ignore"):
        top = float(np.max(exponent + np.log(grid.masses)))
    weights = grid.masses * np.exp(np.minimum(exponent - top, 700.0))
    total = float(weights.sum())
    weights /= total
    mean = float(weights @ places)
    return _Tilted(
        count=release.count,
        start=grid.start,
        weights=weights,
        log_moment=top + math.log(total),
        mean=mean,
        variance=float(weights @ (places - mean) ** 2),
        size=float(max(abs(exponent[0]), abs(exponent[-1]))),
        infinite=grid.infinite,
        offset=grid.offset,
    )


def _log_moment(losses: Sequence[_Tilted]) -> float:
    return math.fsum(one.count * one.log_moment for one in losses)


def _window(losses: Sequence[_Tilted], rate: float, delta: float, target: float) -> tuple[int, int]:
    """First point and number of points of the window, in steps; ``rate`` = lambda h.

    By Markov P(S >= s) <= e^(Lambda - lambda s), which the upper end makes a share _CUT of delta.
    Mass that wraps only adds to delta: from below at most e^(-lambda size), from above little if
    the window holds the tilted loss.
    """
    cut = -math.log(_CUT * delta)
    spread = math.sqrt(math.fsum(one.count * one.variance for one in losses))
    top = (_log_moment(losses) + cut) / rate + 8.0
    length = min(max(cut / rate, _SPREAD * spread, top - target / 2.0) + 8.0, 2.0**40)
    size = next_fast_len(math.ceil(length), real=True)
    return math.ceil(min(top, 2.0**60)) - size, size


def _compose(
    losses: Sequence[_Tilted], bottom: int, size: int, rate: float, delta: float
) -> _Window:
    """Law of T modulo the window, untilted, relative to delta; ``rate`` = lambda h."""
    spectrum = np.ones(size // 2 + 1, dtype=np.complex128)
    bound = np.ones(size // 2 + 1)
    origin = 0
    for one in losses:
        centre = round(one.mean)
        origin += one.count * centre
        factor = rfft(_wrapped(one.weights, one.start - centre, size))
        spectrum *= _power(factor, one.count)
        bound *= np.maximum(np.abs(factor), 0.5) ** one.count
    law = np.roll(irfft(spectrum, size), -((bottom - origin) % size))
    # each value of a transform is a sum of weights, rounded some log2(size) times (step 7)
    wrong = 2.0**-52 * (16.0 + 8.0 * math.log2(size))
    uses = sum(one.count for one in losses)
    noise = math.sqrt(2.0 * float(bound @ bound)) * math.expm1(min(2.0 * uses * wrong, 700.0))
    noise += 2.0 * wrong * float(np.abs(spectrum).sum())
    log_scale = _log_moment(losses) - math.log(delta)
    exponent = log_scale - rate * np.arange(bottom, bottom + size)
    numbers = math.fsum(one.count * (8.0 + 4.0 * one.size) for one in losses)
    numbers += 4.0 * max(abs(log_scale), abs(log_scale - exponent[0]), abs(exponent[-1]))
    charged = math.expm1(min(_ROUNDING * numbers, 700.0))
    # the mass above the window, by Markov at the same tilt, and the infinite losses
    charged += math.exp(min(float(exponent[-1]), 700.0))
    charged += math.fsum(one.count * one.infinite for one in losses) / delta
    weights = np.maximum(law, 0.0) * np.exp(np.minimum(exponent, 600.0))
    return _Window(bottom, weights, charged, noise, log_scale)


def _wrapped(weights: FloatArray, start: int, size: int) -> FloatArray:
    """``weights`` from index ``start`` on, added up modulo ``size``."""
    first = start % size
    rows = -(-(first + weights.size) // size)
    padded = np.zeros(rows * size)
    padded[first : first + weights.size] = weights
    return padded if rows == 1 else padded.reshape(rows, size).sum(axis=0)


def _power(base: ComplexArray, exponent: int) -> ComplexArray:
    """base^exponent by squaring: the relative error is at most 2^-51 exponent."""
    result = base if exponent & 1 else np.ones_like(base)
    exponent >>= 1
    while exponent:
        base = base * base
        if exponent & 1:
            result = result * base
        exponent >>= 1
    return result


def _solve(window: _Window, tilt: float, step: float, floor: float) -> float | None:
    """Least epsilon >= floor in the window with delta(epsilon) plus all charges <= delta.

    delta(epsilon) = sum over losses l > epsilon of mass (1 - e^(epsilon - l)). The FFT's error at
    loss l counts as e^(Lambda - lambda l) (1 - e^(epsilon - l)) times its size in the tilted law,
    which is at most e^(Lambda - lambda epsilon) lambda^lambda / (1 + lambda)^(1 + lambda).
    """
    peak = window.log_scale + tilt * math.log(tilt) - (1.0 + tilt) * math.log1p(tilt)
    first = max(0, math.floor(floor / step) - window.bottom)
    if first >= window.weights.size:  # nothing but charges lies above the floor
        return floor if window.charged <= _MOST_CHARGED else None
    kernel = -np.expm1(-step * np.arange(window.weights.size))

    def fixed(place: int) -> float:
        epsilon = step * (window.bottom + place)
        return window.charged + window.noise * math.exp(min(peak - tilt * epsilon, 600.0))

    def excess(place: int) -> float:
        above = window.weights[place:]
        found = float(above @ kernel[: above.size])
        return found * (1.0 + window.charged) + fixed(place) - 1.0

    fails, holds = first - 1, window.weights.size - 1
    if excess(holds) > 0.0:
        return None
    while holds - fails > 1:
        middle = (fails + holds) // 2
        fails, holds = (middle, holds) if excess(middle) > 0.0 else (fails, middle)
    if fixed(holds) > _MOST_CHARGED:
        return None
    loss = step * (window.bottom + holds)
    if holds == first:
        return max(loss, floor)
    # between two points delta is linear in e^epsilon
    above = window.weights[holds:]
    far = float(above @ (1.0 - kernel[: above.size]))
    rest = float(above.sum()) - (1.0 - fixed(holds - 1)) / (1.0 + window.charged)
    if not (far > 0.0 and rest > 0.0):
        return max(loss, floor)
    return max(loss - step, floor, min(loss, loss + math.log(rest / far)))
