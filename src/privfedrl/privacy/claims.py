"""How a claim is made, and what in it must agree: attack figures, replace-one epsilon, regime.

Guarantee: a claim made by :func:`claim` passes :func:`check_claim`; one whose attack figures are
lower than its own curve implies, or that quotes what was spent where only a filter's budget is
proven, does not.

Regimes: *committed*, the whole schedule was pinned before the first release, so epsilon is what was
spent, by any valid bound; *adaptive*, releases were chosen after others had been seen, so epsilon
is the budget of the filter that was declared before the first release (Rogers et al. 2016; Feldman
and Zrnic 2021), and every figure derives from that budget.
"""

from __future__ import annotations

import json
import math
from typing import Literal

import msgspec

from privfedrl.errors import ConfigurationError, PrivacyError, shown
from privfedrl.privacy.attack_bounds import (
    Curve,
    bayes_accuracy,
    check_curve,
    max_true_positive_rate,
    reconstruction_ceiling,
)
from privfedrl.privacy.statement_fields import AttackBounds, Claim

__all__ = ["NO_FILTER", "NO_ORDER", "NO_REPLACE_BOUND", "PRIORS", "check_claim", "claim"]

PRIORS = (0.001, 0.01, 0.1)
NO_REPLACE_BOUND = "not applicable: no finite bound is proven when a unit is replaced"
NO_FILTER = "not applicable: the schedule was pinned before the first release"
NO_ORDER = "not applicable: this filter has no order"
# libraries of exponentials differ in the last digits; a lie of this size helps nobody
_SLACK = 1e-9


def claim(
    *,
    adversary: str,
    epsilon: float,
    delta: float,
    bound: str,
    curve_kind: str,
    curve: Curve,
    replace_one: float | None,
    regime: Literal["committed", "adaptive"],
    filter_order: float | None = None,
) -> Claim:
    """A claim with its attack figures worked out from the pair and the curve together.

    Args:
        epsilon, delta: what is quoted: the amount spent, or the budget in the adaptive regime.
        bound: name of the bound; names a filter in the adaptive regime, e.g. "rdp-filter".
        curve: further (delta, epsilon) pairs that hold at the same time; of the budget, too.
        replace_one: epsilon at the same delta when a unit is replaced; None or inf: no bound.
        filter_order: order of a Renyi filter; None without one.
    Raises:
        ConfigurationError: a figure is out of range, not finite or no number.
        PrivacyError: as :func:`check_claim`.
    """
    points = check_curve(curve)
    attacks = _attacks((*points, (delta, epsilon)), PRIORS)
    no_order = NO_FILTER if regime == "committed" else NO_ORDER
    found = _typed(
        Claim(
            adversary=adversary,
            epsilon=epsilon,
            delta=delta,
            bound=bound,
            epsilon_replace=_number("replace_one", replace_one, otherwise=NO_REPLACE_BOUND),
            regime=regime,
            filter_order=_number("filter_order", filter_order, otherwise=no_order),
            curve_kind=curve_kind,
            curve=tuple(sorted(points)),
            attacks=attacks,
        )
    )
    check_claim(found)
    return found


def check_claim(found: Claim, *, name: str = "claim") -> None:
    """Raise unless the parts of a claim agree with each other.

    Args:
        name: what to call it in messages, e.g. "epsilon.claims[0]".
    Raises:
        PrivacyError: an attack figure is below what the curve implies; the curve or the
            replace-one figure promises more than the claim; regime, bound and order disagree.
        ConfigurationError: a figure is out of range.
    """
    _check_attacks(found, name)
    for delta, epsilon in found.curve:
        if delta <= found.delta and epsilon < found.epsilon * (1.0 - _SLACK):
            raise PrivacyError(
                f"{name}.curve promises epsilon {epsilon:g} at delta {delta:g}, which is more than "
                f"the claim itself: epsilon {found.epsilon:g} at delta {found.delta:g}"
            )
    replaced = found.epsilon_replace
    # a unit may be replaced by one that contributes nothing, so replacing hides no better
    if not isinstance(replaced, str) and not replaced >= found.epsilon * (1.0 - _SLACK):
        raise PrivacyError(
            f"{name}.epsilon_replace must be >= epsilon = {found.epsilon:g}, got {replaced:g}"
        )
    _check_regime(found, name)


def _number(name: str, value: float | None, *, otherwise: str) -> float | str:
    if value is None or value == math.inf:
        return otherwise
    if not isinstance(value, (int, float)) or isinstance(value, bool) or math.isnan(value):
        raise ConfigurationError(f"{name} must be a number or None, got {shown(value)}")
    return value


def _typed(found: Claim) -> Claim:
    """``found`` as decoding would give it: constructing a struct checks no type."""
    builtins = msgspec.to_builtins(found)
    try:
        json.dumps(builtins, allow_nan=False)
        return msgspec.convert(builtins, Claim)
    except (msgspec.ValidationError, ValueError, TypeError, OverflowError) as error:
        raise ConfigurationError(f"claim: {error}") from error


def _attacks(curve: Curve, priors: tuple[float, ...]) -> AttackBounds:
    return AttackBounds(
        tpr_at_fpr_0_1_percent=max_true_positive_rate(curve, 0.001),
        tpr_at_fpr_1_percent=max_true_positive_rate(curve, 0.01),
        bayes_accuracy=bayes_accuracy(curve),
        reconstruction=tuple((prior, reconstruction_ceiling(curve, prior)) for prior in priors),
    )


def _check_attacks(found: Claim, name: str) -> None:
    """Higher than implied is rounding or caution; lower is false."""
    stated = found.attacks
    implied = _attacks(
        ((found.delta, found.epsilon), *found.curve),
        tuple(prior for prior, _ in stated.reconstruction),
    )
    figures = {
        part: (getattr(stated, part), getattr(implied, part))
        for part in ("tpr_at_fpr_0_1_percent", "tpr_at_fpr_1_percent", "bayes_accuracy")
    }
    for index, (ours, true) in enumerate(
        zip(stated.reconstruction, implied.reconstruction, strict=True)
    ):
        figures[f"reconstruction[{index}]"] = ours[1], true[1]
    for part, (ours, true) in figures.items():
        if not ours >= true * (1.0 - _SLACK):
            raise PrivacyError(
                f"{name}.attacks.{part} must be >= {true:.6g}, which the claim's own curve "
                f"implies, got {ours:.6g}"
            )


def _check_regime(found: Claim, name: str) -> None:
    filtered, ordered = "filter" in found.bound, not isinstance(found.filter_order, str)
    if found.regime == "committed" and (filtered or ordered):
        raise PrivacyError(
            f"{name}.bound must not name a filter, and filter_order no order, in the committed "
            f"regime, got {shown(found.bound)} and {found.filter_order!r}"
        )
    if found.regime == "adaptive" and not filtered:
        raise PrivacyError(
            f"{name}.bound must name the filter whose budget is quoted in the adaptive regime, "
            f"got {shown(found.bound)}"
        )
    if found.regime == "adaptive" and "rdp" in found.bound and not ordered:
        raise PrivacyError(
            f"{name}.filter_order must be the one order that was fixed beforehand for "
            f"{found.bound!r}, got {shown(found.filter_order)}"
        )
