"""What a privacy curve means for an attacker: membership and reconstruction, bounded from above.

Guarantee: no figure here is below what the curve implies; rounding goes up.

Notation: a curve is a non-empty sequence of (delta, epsilon) pairs that all hold at once, for the
law P of what is released with a unit and Q without it, in both directions. a = an attacker's false
positive rate Q(E), TPR(a) = sup {P(E) : Q(E) <= a}. One pair implies

    TPR(a) <= min( e^eps a + delta,  1 - e^-eps (1 - delta - a) ),

and the minimum over the pairs bounds TPR again. Exchanging P and Q gives the same bound.
Reference: Kairouz, Oh and Viswanath 2015; Dong, Roth and Su 2019 (trade-off functions); Hayes,
Mahloujifar and Balle 2023 (reconstruction). Proof in audits/proofs/attack_bounds.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import starmap

from privfedrl.errors import ConfigurationError, shown

__all__ = [
    "Curve",
    "bayes_accuracy",
    "check_curve",
    "max_true_positive_rate",
    "reconstruction_ceiling",
]

Curve = Sequence[tuple[float, float]]
# each figure takes at most five roundings of 2^-53 and an exponential that is good to 1 ulp
_ROUNDING = 2.0**-50
# e^700 is near the largest float; beyond it a bound of 1 is given instead
_LARGEST_EXPONENT = 700.0


def max_true_positive_rate(curve: Curve, false_positive_rate: float) -> float:
    """Highest true positive rate of any membership attack at a false positive rate.

    Args:
        curve: (delta, epsilon) pairs; 0 <= delta <= 1, epsilon >= 0 or infinite.
        false_positive_rate: in [0, 1].
    Returns:
        in [false_positive_rate, 1]; non-decreasing in the rate, in every epsilon and every delta.
    Raises:
        ConfigurationError: an argument is out of range, NaN, empty or no number.
    """
    pairs = check_curve(curve)
    rate = _unit_interval("false_positive_rate", false_positive_rate)
    return min(_true_positive_rate(delta, epsilon, rate) for delta, epsilon in pairs)


def bayes_accuracy(curve: Curve) -> float:
    """Highest share of right membership guesses at even prior odds, min (e^eps+delta)/(1+e^eps).

    Returns:
        in [1/2, 1]. With a pair (TV, 0), TV the total variation, it is the exact (1 + TV)/2.
    Raises:
        ConfigurationError: as for :func:`max_true_positive_rate`.
    """
    return min(starmap(_even_odds, check_curve(curve)))


def reconstruction_ceiling(curve: Curve, prior: float) -> float:
    """Highest probability of reconstructing a unit, by any fixed criterion of success.

    The world without the unit is the reference: whoever sees that world's release succeeds with
    probability at most ``prior``, which includes all that the attacker knows besides.

    Args:
        curve: as for :func:`max_true_positive_rate`.
        prior: in [0, 1].
    Returns:
        in [prior, 1]: TPR at a false positive rate of ``prior``.
    Raises:
        ConfigurationError: as for :func:`max_true_positive_rate`.
    """
    return max_true_positive_rate(check_curve(curve), _unit_interval("prior", prior))


def check_curve(curve: object) -> tuple[tuple[float, float], ...]:
    """The pairs of ``curve`` as floats, in the order given.

    Raises:
        ConfigurationError: empty, no sequence of pairs, or a delta or epsilon out of range or NaN.
    """
    if not isinstance(curve, Sequence) or isinstance(curve, str | bytes) or not curve:
        raise ConfigurationError(
            f"curve must be a non-empty sequence of (delta, epsilon) pairs, got {shown(curve)}"
        )
    return tuple(_pair(point) for point in curve)


def _true_positive_rate(delta: float, epsilon: float, rate: float) -> float:
    if rate == 0.0:
        first = delta
    elif epsilon > _LARGEST_EXPONENT:
        first = 1.0
    else:
        first = (math.exp(epsilon) * rate + delta) * (1.0 + _ROUNDING)
    second = 1.0 - math.exp(-epsilon) * (1.0 - delta - rate) + _ROUNDING
    return min(1.0, first, second)


def _even_odds(delta: float, epsilon: float) -> float:
    wrong = (1.0 - delta) * math.exp(-epsilon) / (1.0 + math.exp(-epsilon))
    return min(1.0, 1.0 - wrong + _ROUNDING)


def _pair(point: object) -> tuple[float, float]:
    if not isinstance(point, Sequence) or isinstance(point, str | bytes) or len(point) != 2:
        raise ConfigurationError(f"curve must hold (delta, epsilon) pairs, got {shown(point)}")
    epsilon = _number("epsilon", point[1])
    if not epsilon >= 0.0:
        raise ConfigurationError(f"epsilon must be >= 0, got {shown(point[1])}")
    return _unit_interval("delta", point[0]), epsilon


def _unit_interval(name: str, value: object) -> float:
    number = _number(name, value)
    if not 0.0 <= number <= 1.0:
        raise ConfigurationError(f"{name} must lie in [0, 1], got {shown(value)}")
    return number


def _number(name: str, value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigurationError(f"{name} must be a number, got {shown(value)}")
    try:
        return float(value)
    except OverflowError as error:
        raise ConfigurationError(f"{name} must be a float, got an integer beyond it") from error
