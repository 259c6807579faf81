"""Epsilon of composed Poisson-sampled Gaussians by privacy loss distributions and FFT.

Guarantee: the returned value is never below the true epsilon of the composition, for releases
that were fixed in advance (a committed schedule); audits/proofs/privacy_loss_grid.md says what
that rests on. Where the arithmetic could not support it, there is no value: None.

The composed loss is tilted by e^(lambda loss) before it is transformed, with lambda near the best
Renyi order less one: what the FFT gets wrong is then small beside delta, however small delta is.
Notation: Lambda = ln E[e^(lambda S)], S = the composed loss on the grid, h = the step of the grid.
References: Zhu, Dong and Wang 2022 (arXiv 2106.08567) on dominating pairs; Koskela, Jalko and
Honkela 2020 (arXiv 1906.03049) on the FFT.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from privfedrl.errors import ConfigurationError, shown
from privfedrl.privacy.events import (
    DpEvent,
    GaussianEvent,
    NoReleaseEvent,
    PoissonSampledEvent,
    UnboundedEvent,
    check_one_unit,
    unit_of,
)
from privfedrl.privacy.gdp import check_delta, gaussian_epsilon
from privfedrl.privacy.pld_compose import SampledGaussian, composed_epsilon
from privfedrl.privacy.pld_grid import Direction
from privfedrl.privacy.rdp import ORDERS, event_rdp, rdp_to_epsilon
from privfedrl.privacy.units import Adjacency

__all__ = ["pld_epsilon"]

FloatArray = npt.NDArray[np.float64]

# the grid may raise epsilon by this share of it (second order in the step)
_TOLERANCE = 4e-5
_MOST_DISTINCT = 2048
_MOST_RELEASES = 2**40
# above this rate a release is charged as if it were not sampled: the loss has no digits left
_ALMOST_ALWAYS = 1.0 - 1e-4


def pld_epsilon(
    counts: Mapping[DpEvent, int],
    delta: float,
    *,
    adjacency: Adjacency = Adjacency.ADD_REMOVE,
) -> float | None:
    """Epsilon of a multiset of releases, from above, usually within 0.02 % of the truth.

    Args:
        counts: how often each event happened, >= 0; one unit of privacy.
        delta: strictly between 0 and 1.
    Returns:
        epsilon >= 0, or None: an event has no privacy loss distribution here (only Gaussians and
        Poisson-sampled Gaussians have one, sampled ones only for add/remove), or the grid would
        need more than 2^21 points, or rounding could take more than a thousandth of delta.
    Guarantees:
        memory and time are bounded for every input: some 500 MB, a few seconds.
    Raises:
        ConfigurationError: delta or a count is out of range.
        UnsupportedMechanism: an event is of an unknown kind, or two events name different units.
    """
    delta = check_delta(delta)
    present = _checked(counts)
    if any(isinstance(event, UnboundedEvent) for event in present):
        return math.inf
    releases = _releases(present, adjacency)
    if releases is None:
        return None
    if all(release.rate == 1.0 for release in releases):
        factor = 2.0 if adjacency is Adjacency.REPLACE_ONE else 1.0
        return gaussian_epsilon(factor * math.fsum(1.0 / one.sigma for one in releases), delta)
    total = np.zeros_like(ORDERS)
    with np.errstate(over="ignore"):
        for event, count in present.items():
            total += count * event_rdp(event)
    return _search(releases, total, delta)


def _checked(counts: Mapping[DpEvent, int]) -> dict[DpEvent, int]:
    check_one_unit({unit_of(event) for event in counts})
    for count in counts.values():
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ConfigurationError(f"counts must be integers >= 0, got {shown(count)}")
    return {event: count for event, count in counts.items() if count}


def _releases(counts: Mapping[DpEvent, int], adjacency: Adjacency) -> list[SampledGaussian] | None:
    """Distinct releases, all unsampled Gaussians as one (exact); None if one has no PLD here."""
    precision, sampled = 0.0, list[SampledGaussian]()
    for event, count in counts.items():
        rate = 1.0
        match event:
            case NoReleaseEvent():
                continue
            case PoissonSampledEvent(event=GaussianEvent(noise_multiplier=sigma)):
                rate = event.sampling_rate
            case GaussianEvent(noise_multiplier=sigma):
                pass
            case _:
                return None
        if count > _MOST_RELEASES:
            return None
        if rate < 1.0 and adjacency is Adjacency.REPLACE_ONE:
            return None
        if rate > _ALMOST_ALWAYS:
            precision += count * (1.0 / sigma) * (1.0 / sigma)
        else:
            sampled.append(SampledGaussian(sigma, rate, count))
    if len(sampled) > _MOST_DISTINCT or not math.isfinite(precision):
        return None
    if precision > 0.0:
        sampled.append(SampledGaussian(1.0 / math.sqrt(precision * (1.0 + 2.0**-40)), 1.0, 1))
    return sampled


def _search(releases: Sequence[SampledGaussian], total: FloatArray, delta: float) -> float | None:
    """The PLD figure; refined while it is far below the one that its grid was made for."""
    target, _ = rdp_to_epsilon(total, ORDERS, delta)
    if target == 0.0:
        return 0.0
    if not target < 1e6:
        return None
    best: float | None = None
    for _ in range(4):
        found = _bound(releases, _best_tilt(total, target), target, delta)
        if found is None:
            break
        best = found if best is None else min(best, found)
        if best > 0.6 * target or best < 1e-9:
            break
        target = best
    return best


def _best_tilt(total: FloatArray, epsilon: float) -> float:
    """The order, less one, at which the RDP curve proves the least delta for ``epsilon``."""
    gap = ORDERS - 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        log_delta = gap * (total - epsilon + np.log1p(-1.0 / ORDERS)) - np.log(ORDERS)
    return float(gap[int(np.nanargmin(log_delta))])


def _bound(
    releases: Sequence[SampledGaussian], tilt: float, target: float, delta: float
) -> float | None:
    """The larger figure of the two directions, on a grid that suits an epsilon of ``target``."""
    uses = sum(release.count for release in releases)
    # the spread to grid points adds at most uses (1 + tilt) h^2 / 8 to epsilon, see the proof
    step = math.sqrt(8.0 * _TOLERANCE * target / (uses * (1.0 + tilt)))
    worst = 0.0
    for direction in Direction:
        found = composed_epsilon(
            releases,
            direction,
            delta,
            tilt=tilt,
            target=target,
            step=min(step, target / 64.0),
            floor=worst,
        )
        if found is None:
            return None
        worst = max(worst, found)
    return worst
