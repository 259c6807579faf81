"""The least noise that keeps a promise: found by bisection on integers, verified after rounding.

The promise is about ``min_honest`` shares: noise of colluders is known to the adversary and noise
of agents that may drop out is not there. More survivors only lower the loss.
"""

from __future__ import annotations

import math

from privfedrl.errors import ConfigurationError
from privfedrl.privacy.gdp import check_delta
from privfedrl.privacy.mechanisms import DistributedSkellam
from privfedrl.privacy.rdp import ORDERS, rdp_to_epsilon, skellam_rdp
from privfedrl.privacy.samplers import MAX_VARIANCE
from privfedrl.privacy.units import Adjacency, IntegerSensitivity

__all__ = ["calibrate_skellam", "mechanism_epsilon"]


def mechanism_epsilon(
    mechanism: DistributedSkellam,
    *,
    min_honest: int,
    epsilon: float,
    delta: float,
    participations: int = 1,
    adjacency: Adjacency = Adjacency.ADD_REMOVE,
) -> float:
    """Epsilon of ``participations`` releases with ``min_honest`` shares each, at ``delta``.

    The sampler's own delta, for a promise of ``epsilon``, is taken off ``delta`` first; inf if
    nothing remains. Equal to the accountant's figure for the same events at that reduced delta.
    """
    charge = mechanism.sampler_delta(epsilon=epsilon, shares=min_honest * participations)
    remaining = delta - charge
    if remaining <= 0.0:
        return math.inf
    event = mechanism.event(min_honest)
    bound = event.sensitivity.for_adjacency(adjacency)
    curve = skellam_rdp(type(event)(sensitivity=bound, variance=event.variance))
    return rdp_to_epsilon(float(participations) * curve, ORDERS, remaining)[0]


def calibrate_skellam(
    *,
    sensitivity: IntegerSensitivity,
    min_honest: int,
    epsilon: float,
    delta: float,
    num_coordinates: int,
    participations: int = 1,
    adjacency: Adjacency = Adjacency.ADD_REMOVE,
) -> DistributedSkellam:
    """Smallest integer share variance with which the promise holds.

    Args:
        sensitivity: how far one unit moves the integer sum (add/remove).
        min_honest: fewest honest shares that a released sum can hold, >= 1: threshold less
            colluders.
        epsilon, delta: the promise for all participations together; epsilon finite and > 0.
        num_coordinates: length of the released vector.
        participations: releases that one unit takes part in, composed sequentially. For fresh
            trajectories this is the releases within one round, usually 1.
        adjacency: the relation that the promise is about.
    Guarantees:
        the result keeps the promise with exactly ``min_honest`` shares, the sampler's own delta
        included; with a share variance one smaller it does not (or the variance is already 1).
    Raises:
        ConfigurationError: a target is NaN, infinite or out of range, or no share variance up to
            ``samplers.MAX_VARIANCE`` is enough.
    """
    _check_targets(min_honest, epsilon, delta, participations)

    def mechanism(variance: int) -> DistributedSkellam:
        return DistributedSkellam(
            sensitivity=sensitivity, share_variance=variance, num_coordinates=num_coordinates
        )

    def kept(variance: int) -> bool:
        spent = mechanism_epsilon(
            mechanism(variance),
            min_honest=min_honest,
            epsilon=epsilon,
            delta=delta,
            participations=participations,
            adjacency=adjacency,
        )
        return spent <= epsilon

    charge = mechanism(1).sampler_delta(epsilon=epsilon, shares=min_honest * participations)
    if charge >= delta:
        raise ConfigurationError(
            f"delta = {delta!r} is below the charge of the noise sampler, {charge:.3g} at "
            f"epsilon = {epsilon!r}: ask for a larger delta, or an epsilon below 60"
        )
    if not kept(MAX_VARIANCE):
        raise ConfigurationError(
            f"epsilon = {epsilon!r}, delta = {delta!r} need a share variance above {MAX_VARIANCE} "
            f"with min_honest = {min_honest}, participations = {participations}; use a coarser "
            "resolution, more honest agents or a weaker target"
        )
    fails, holds = 0, MAX_VARIANCE
    while holds - fails > 1:
        middle = (fails + holds) // 2
        fails, holds = (fails, middle) if kept(middle) else (middle, holds)
    return mechanism(holds)


def _check_targets(min_honest: int, epsilon: float, delta: float, participations: int) -> None:
    check_delta(delta)
    number = isinstance(epsilon, (int, float)) and not isinstance(epsilon, bool)
    if not (number and 0.0 < epsilon < math.inf):
        raise ConfigurationError(f"epsilon must be finite and > 0, got {epsilon!r}")
    for name, value in (("min_honest", min_honest), ("participations", participations)):
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 2**53:
            raise ConfigurationError(f"{name} must be an integer in 1 .. 2^53, got {value!r}")
