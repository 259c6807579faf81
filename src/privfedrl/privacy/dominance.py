"""Which release provably costs no more than another one.

Guarantee: ``is_no_costlier(a, b)`` only if a is b followed by a randomised map that does not look
at private data, so that a costs at most b at every delta, alone and in any composition
(audits/proofs/charge_before_release.md, lemma). False means "not proven", not "costlier".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from privfedrl.privacy.events import (
    DiscreteGaussianEvent,
    DpEvent,
    GaussianEvent,
    NoReleaseEvent,
    PoissonSampledEvent,
    SkellamEvent,
    UnboundedEvent,
    unit_of,
)
from privfedrl.privacy.rdp import ORDERS, event_rdp
from privfedrl.privacy.units import Adjacency

__all__ = ["is_no_costlier"]

# the accountant's own, and the integers that the bound for Poisson samples sums over
_EVERY_ORDER = np.union1d(ORDERS, np.arange(2.0, 4097.0))


def is_no_costlier(realised: DpEvent, reserved: DpEvent) -> bool:
    """Whether ``realised`` provably costs at most what ``reserved`` costs, at every delta.

    | reserved          | realised may be, for the same unit                                       |
    |-------------------|--------------------------------------------------------------------------|
    | anything          | no release                                                               |
    | unbounded         | anything                                                                 |
    | Gaussian          | Gaussian, noise multiplier >= the reserved one                           |
    | Skellam           | Skellam, the same sensitivity, variance >= the reserved one              |
    | discrete Gaussian | the same with as many shares or more, if its RDP bound is nowhere above  |
    | Poisson sampled   | Poisson sampled, rate <= the reserved one, what is sampled by this table |

    More discrete Gaussian shares are more noise, but the bound for their sum also grows with their
    number: where the bound would rise, at any order that an accountant uses and for either
    adjacency, the settlement is refused rather than believed.
    """
    if unit_of(realised) is not unit_of(reserved):
        return False
    match realised, reserved:
        case (NoReleaseEvent(), _) | (_, UnboundedEvent()):
            return True
        case GaussianEvent(noise_multiplier=now), GaussianEvent(noise_multiplier=planned):
            return now >= planned
        case SkellamEvent(), SkellamEvent():
            same = realised.sensitivity == reserved.sensitivity
            return same and realised.variance >= reserved.variance
        case DiscreteGaussianEvent(), DiscreteGaussianEvent():
            return _has_more_shares(realised, reserved)
        case PoissonSampledEvent(), PoissonSampledEvent():
            rarer = realised.sampling_rate <= reserved.sampling_rate
            return rarer and is_no_costlier(realised.event, reserved.event)
    return False


def _has_more_shares(realised: DiscreteGaussianEvent, reserved: DiscreteGaussianEvent) -> bool:
    same = (
        realised.sensitivity == reserved.sensitivity
        and realised.variance == reserved.variance
        and realised.coordinates == reserved.coordinates
    )
    if not same or realised.shares < reserved.shares:
        return False
    return realised == reserved or all(
        bool(np.all(_bound(realised, relation) <= _bound(reserved, relation)))
        for relation in Adjacency
    )


def _bound(event: DiscreteGaussianEvent, relation: Adjacency) -> npt.NDArray[np.float64]:
    return event_rdp(event, adjacency=relation, orders=_EVERY_ORDER)
