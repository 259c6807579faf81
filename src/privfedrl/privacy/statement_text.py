"""How the parts of a statement are printed for people.

Guarantee: a printed bound is never below the proven one, and no text of a statement can forge lines
or steer a terminal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from decimal import ROUND_CEILING, Context, Decimal

from privfedrl.privacy.statement_fields import Claim

__all__ = ["claim_lines", "epsilon_line", "printable", "rounded_up", "rows"]


def rounded_up(value: float) -> str:
    """Four significant digits, rounded up."""
    rounded = Context(prec=4, rounding=ROUND_CEILING).create_decimal(Decimal(value))
    return f"{rounded:g}" if rounded < 10**6 else f"{rounded:.3e}"


def printable(text: str) -> str:
    """Text on one line, without control characters."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def epsilon_line(claim: Claim, protected: str) -> str:
    """The sentence that is quoted; ``protected`` names the unit and the relation."""
    return (
        f"epsilon = {rounded_up(claim.epsilon)} at delta = {claim.delta:g} for {protected} against "
        f"{printable(claim.adversary)} [{printable(claim.bound)}]"
    )


def claim_lines(claim: Claim, protected: str) -> Iterator[str]:
    """One claim: the sentence, and below it what it means."""
    yield f"   {epsilon_line(claim, protected)}"
    attacks = claim.attacks
    points = ", ".join(f"({delta:g}, {rounded_up(epsilon)})" for delta, epsilon in claim.curve)
    ceilings = ", ".join(
        f"<= {rounded_up(ceiling)} at prior {prior:g}" for prior, ceiling in attacks.reconstruction
    )
    for text in (
        f"replaced by another unit: {_replaced(claim)}",
        _regime(claim),
        f"curve [{printable(claim.curve_kind)}] of (delta, epsilon): {points}",
        f"membership attacks: TPR <= {rounded_up(attacks.tpr_at_fpr_0_1_percent)} at FPR 0.1 %, "
        f"TPR <= {rounded_up(attacks.tpr_at_fpr_1_percent)} at FPR 1 %, "
        f"right guesses <= {rounded_up(attacks.bayes_accuracy)} at even odds",
        f"reconstruction attacks: success {ceilings}",
    ):
        yield from _wrap(text, indent=5)


def _replaced(claim: Claim) -> str:
    if isinstance(claim.epsilon_replace, str):
        return printable(claim.epsilon_replace)
    return f"epsilon {rounded_up(claim.epsilon_replace)} at the same delta"


def _regime(claim: Claim) -> str:
    if claim.regime == "committed":
        return "committed regime: epsilon is what was spent under a schedule pinned beforehand"
    return (
        "adaptive regime: epsilon is the budget of a filter declared beforehand, not what was "
        f"spent; order: {_text(claim.filter_order)}"
    )


def rows(value: Mapping[str, object] | Sequence[Mapping[str, object]]) -> Iterator[str]:
    """A field other than epsilon, as ``to_builtins`` gives it."""
    for row in [value] if isinstance(value, Mapping) else value:
        yield from _wrap(
            "; ".join(f"{name.replace('_', ' ')}: {_text(part)}" for name, part in row.items())
        )


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    return printable(str(value))


def _wrap(text: str, *, indent: int = 3) -> list[str]:
    return textwrap.wrap(
        text, 100, initial_indent=" " * indent, subsequent_indent=" " * (indent + 2)
    )
