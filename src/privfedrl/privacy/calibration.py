"""Noise, rounds and cohort for a promise: any two of the three give the third, exactly.

Guarantee: what is returned keeps the promise, the sampler's own delta included, and its neighbour
(one unit of variance less, one release more, one honest share less) does not. Both were evaluated
with the accountant, so the figure is right whether or not the bound is monotone.

The promise is about ``min_honest`` shares: noise of colluders is known to the adversary and noise
of agents that may drop out is not there. More survivors only lower the loss.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from privfedrl.errors import ConfigurationError, shown
from privfedrl.privacy.accountant import epsilon_of_counts
from privfedrl.privacy.events import DpEvent
from privfedrl.privacy.gdp import check_delta
from privfedrl.privacy.mechanisms import DistributedSkellam, Mechanism
from privfedrl.privacy.samplers import MAX_VARIANCE
from privfedrl.privacy.units import Adjacency, IntegerSensitivity

__all__ = [
    "MAX_COHORT",
    "MAX_PARTICIPATIONS",
    "Target",
    "calibrate_skellam",
    "least_noise",
    "mechanism_epsilon",
    "most_rounds",
    "smallest_cohort",
    "variance_of_multiplier",
]

MAX_COHORT = 2**24  # no fleet is larger; a search must end
MAX_PARTICIPATIONS = 2**53  # counts beyond it are no longer exact as floats


M = TypeVar("M", bound=Mechanism)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is to be kept over all releases that a unit takes part in.

    Attributes:
        epsilon: finite and > 0.
        delta: strictly between 0 and 1; the sampler's deviation is paid from it.
        adjacency: the neighbouring relation that the promise is about.
    """

    epsilon: float
    delta: float
    adjacency: Adjacency = Adjacency.ADD_REMOVE

    def __post_init__(self) -> None:
        number = isinstance(self.epsilon, (int, float)) and not isinstance(self.epsilon, bool)
        if not (number and 0.0 < self.epsilon <= sys.float_info.max):
            raise ConfigurationError(f"epsilon must be finite and > 0, got {shown(self.epsilon)}")
        check_delta(self.delta)
        if not isinstance(self.adjacency, Adjacency):
            raise ConfigurationError(f"adjacency must be an Adjacency, got {shown(self.adjacency)}")

    def __str__(self) -> str:
        return f"epsilon = {self.epsilon!r}, delta = {self.delta!r}"


def mechanism_epsilon(
    mechanism: Mechanism,
    *,
    min_honest: int,
    epsilon: float,
    delta: float,
    participations: int = 1,
    adjacency: Adjacency = Adjacency.ADD_REMOVE,
) -> float:
    """Epsilon of ``participations`` releases with ``min_honest`` shares each, at ``delta``.

    The sampler's own delta, for a promise of ``epsilon``, is taken off ``delta`` first; inf if
    nothing remains. The accountant's figure for the same events at that reduced delta.
    """
    charge = mechanism.sampler_delta(epsilon=epsilon, shares=min_honest * participations)
    # the difference is rounded to nearest; one step down keeps the sum of both at most delta
    remaining = math.nextafter(delta - charge, -math.inf)
    if remaining <= 0.0:
        return math.inf
    events: dict[DpEvent, int] = {mechanism.event(min_honest): participations}
    return epsilon_of_counts(events, remaining, adjacency=adjacency).epsilon


def least_noise(
    mechanism_of: Callable[[int], M],
    target: Target,
    *,
    min_honest: int,
    participations: int = 1,
    low: int = 1,
    high: int = MAX_VARIANCE,
) -> M:
    """The mechanism with the smallest integer share variance that keeps ``target``.

    Args:
        mechanism_of: the family, by share variance in squared grid units.
        min_honest: fewest honest shares that a released sum can hold, >= 1: threshold less
            colluders.
        participations: releases that one unit takes part in, composed sequentially. For fresh
            trajectories this is the releases within one round, usually 1.
        low, high: the share variances that the family allows.
    Guarantees:
        the result keeps the target with exactly ``min_honest`` shares; with a share variance one
        smaller it does not, or the variance is already ``low``.
    Raises:
        ConfigurationError: an argument is out of range, or no variance was found (``low`` times
            every power of two is tried, and ``high``).
    """
    _check_counts(min_honest=min_honest, participations=participations)
    if not 1 <= low <= high:
        raise ConfigurationError(f"low must lie in 1 .. high = {high}, got {shown(low)}")
    _check_charge(mechanism_of(low), target, min_honest * participations)

    def kept(variance: int) -> bool:
        return _keeps(mechanism_of(variance), target, min_honest, participations)

    found = _least(kept, low, high)
    if found > high:
        noisiest = mechanism_of(high)
        spent = _cost(noisiest, target, min_honest, participations)
        raise ConfigurationError(
            f"{target} need a share variance above {high} with min_honest = {min_honest}, "
            f"participations = {participations}: at {high} the cost is epsilon = {spent:.4g}. "
            f"Ways out: a coarser resolution, {_cohort_text(noisiest, target, participations)}, "
            f"{_rounds_text(noisiest, target, min_honest)}, or a weaker target"
        )
    return mechanism_of(found)


def most_rounds(mechanism: Mechanism, target: Target, *, min_honest: int) -> int:
    """The largest number of releases of one unit that keeps ``target``.

    Args:
        mechanism: how a sum is noised.
        min_honest: fewest honest shares that a released sum can hold, >= 1.
    Guarantees:
        so many releases keep the target; with one more they do not, or the result is
        ``MAX_PARTICIPATIONS``.
    Raises:
        ConfigurationError: an argument is out of range, or not even one release is affordable.
    """
    _check_counts(min_honest=min_honest)
    _check_charge(mechanism, target, min_honest)
    found = _most_rounds(mechanism, target, min_honest)
    if found == 0:
        spent = _cost(mechanism, target, min_honest, 1)
        raise ConfigurationError(
            f"{target} do not pay for one release with min_honest = {min_honest} shares of "
            f"variance {mechanism.share_variance}: it costs epsilon = {spent:.4g}. Ways out: more "
            f"noise (least_noise), {_cohort_text(mechanism, target, 1)}, or a weaker target"
        )
    return found


def smallest_cohort(mechanism: Mechanism, target: Target, *, participations: int = 1) -> int:
    """The fewest honest shares in a released sum that keep ``target``.

    Args:
        mechanism: how a sum is noised.
        participations: releases that one unit takes part in.
    Guarantees:
        so many honest shares keep the target; one fewer does not, or the result is 1.
    Raises:
        ConfigurationError: an argument is out of range, or no cohort was found (every power of two
            up to ``MAX_COHORT`` is tried).
    """
    _check_counts(participations=participations)
    _check_charge(mechanism, target, participations)
    found = _least_cohort(mechanism, target, participations)
    if found > MAX_COHORT:
        spent = _cost(mechanism, target, MAX_COHORT, participations)
        why = (
            "the noise that counts does not grow with it, and the releases "
            if mechanism.event(1) == mechanism.event(2)
            else f"even {MAX_COHORT} honest shares of variance {mechanism.share_variance} "
        )
        raise ConfigurationError(
            f"{target} cannot be kept over participations = {participations} by a larger cohort: "
            f"{why}cost epsilon = {spent:.4g}. Ways out: more noise (least_noise), "
            f"{_rounds_text(mechanism, target, MAX_COHORT)}, or a weaker target"
        )
    return found


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
    """:func:`least_noise` of Skellam shares, for a target in its parts."""
    return least_noise(
        lambda variance: DistributedSkellam(
            sensitivity=sensitivity, share_variance=variance, num_coordinates=num_coordinates
        ),
        Target(epsilon=epsilon, delta=delta, adjacency=adjacency),
        min_honest=min_honest,
        participations=participations,
    )


def variance_of_multiplier(noise_multiplier: float, sensitivity: IntegerSensitivity) -> int:
    """Smallest integer variance whose standard deviation is that multiple of the L2 sensitivity.

    Raises:
        ConfigurationError: the multiplier is not finite and > 0.
    """
    number = isinstance(noise_multiplier, (int, float)) and not isinstance(noise_multiplier, bool)
    if not (number and 0.0 < noise_multiplier <= sys.float_info.max):
        raise ConfigurationError(
            f"noise_multiplier must be finite and > 0, got {shown(noise_multiplier)}"
        )
    return math.ceil(Fraction(noise_multiplier) ** 2 * sensitivity.l2_squared)


# --- the search ---------------------------------------------------------------------------------


def _least(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Some n with holds(n), and not holds(n - 1) unless n = low; high + 1 if no probe held.

    Doubles from ``low``, then bisects: at most 2 log2(high / low) + 3 calls. The least such n
    where ``holds`` is monotone.
    """
    fails, probe = low - 1, low
    while not holds(probe):
        if probe == high:
            return high + 1
        fails, probe = probe, min(2 * probe, high)
    while probe - fails > 1:
        middle = (fails + probe) // 2
        fails, probe = (fails, middle) if holds(middle) else (middle, probe)
    return probe


def _most_rounds(mechanism: Mechanism, target: Target, min_honest: int) -> int:
    """0 where not even one release is affordable."""

    def broken(rounds: int) -> bool:
        return not _keeps(mechanism, target, min_honest, rounds)

    return _least(broken, 1, MAX_PARTICIPATIONS) - 1


def _least_cohort(mechanism: Mechanism, target: Target, participations: int) -> int:
    """MAX_COHORT + 1 where none is large enough."""
    return _least(lambda n: _keeps(mechanism, target, n, participations), 1, MAX_COHORT)


def _keeps(mechanism: Mechanism, target: Target, min_honest: int, participations: int) -> bool:
    return _cost(mechanism, target, min_honest, participations) <= target.epsilon


def _cost(mechanism: Mechanism, target: Target, min_honest: int, participations: int) -> float:
    return mechanism_epsilon(
        mechanism,
        min_honest=min_honest,
        epsilon=target.epsilon,
        delta=target.delta,
        participations=participations,
        adjacency=target.adjacency,
    )


# --- what is wrong, and the way out -------------------------------------------------------------


def _check_counts(**counts: int) -> None:
    limits = {"min_honest": MAX_COHORT, "participations": MAX_PARTICIPATIONS}
    for name, value in counts.items():
        top = limits[name]
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= top:
            raise ConfigurationError(f"{name} must be an integer in 1 .. {top}, got {shown(value)}")


def _check_charge(mechanism: Mechanism, target: Target, shares: int) -> None:
    charge = mechanism.sampler_delta(epsilon=target.epsilon, shares=shares)
    if charge < target.delta:
        return
    # the charge is (1 + e^epsilon) / 2 times this one
    least = mechanism.sampler_delta(epsilon=0.0, shares=shares)
    way_out = (
        f"ask for a delta above {least:.3g}"
        if least >= target.delta
        else f"ask for epsilon below {math.log(2.0 * target.delta / least - 1.0):.4g}"
    )
    raise ConfigurationError(
        f"delta = {target.delta!r} is below the charge of the noise sampler, {charge:.3g} at "
        f"epsilon = {target.epsilon!r}: {way_out}"
    )


def _cohort_text(mechanism: Mechanism, target: Target, participations: int) -> str:
    enough = _least_cohort(mechanism, target, participations)
    return f"{enough} honest shares" if enough <= MAX_COHORT else "(no cohort is large enough)"


def _rounds_text(mechanism: Mechanism, target: Target, min_honest: int) -> str:
    most = _most_rounds(mechanism, target, min_honest)
    return f"at most {most} releases" if most else "(not even one release is affordable)"
