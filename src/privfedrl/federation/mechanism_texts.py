"""What a statement says of each mechanism: name, where noise is added, what carries the claim.

Guarantee: pure functions of the plan; a party that sees or keeps sums without noise is named.
"""

from __future__ import annotations

from privfedrl.federation.setup import RoundSetup

__all__ = ["NO_NOISE", "bound_text", "mechanism_text"]

NO_NOISE = "not applicable: this run adds no noise and promises nothing"
# name, where noise is added, what carries the claim
_MECHANISM_TEXT = {
    "skellam": (
        "distributed Skellam",
        "a share at every agent, before its vector is protected",
        "sized so that {floor} honest survivors carry the claim",
    ),
    "discrete-gaussian": (
        "distributed discrete Gaussian",
        "a share at every agent, before its vector is protected",
        "sized so that {floor} honest survivors carry the claim",
    ),
    "central-discrete-gaussian": (
        "central discrete Gaussian",
        "one share on the sum, by {centre}, which sees the sum without it",
        "one, whoever survives",
    ),
    "local-skellam": (
        "local DP-SGD with Skellam noise",
        "a whole share in every local step of every agent",
        "one in each step, whoever survives or colludes",
    ),
}
_CORRELATED_TEXT = (
    "discrete Gaussian correlated over {bands} rounds",
    "one share on an integer mixture of the last {bands} sums, by {centre}, which sees the sums "
    "without it and keeps the last {kept}: seizing its memory tells them",
    "one, whoever survives; a trajectory is in {bands} releases",
)


def mechanism_text(setup: RoundSetup) -> tuple[str, str, str]:
    """Name, where noise is added, what carries the claim."""
    plan = setup.plan
    texts = _MECHANISM_TEXT.get(plan.privacy.mechanism, ("none", NO_NOISE, NO_NOISE))
    if setup.correlated is not None:
        texts = _CORRELATED_TEXT
    bands = 1 if setup.correlated is None else setup.correlated.bands
    centre = "the key authority" if plan.protection.homomorphic else "the coordinator"
    name, location, shares = (
        text.format(floor=plan.honest_floor, centre=centre, bands=bands, kept=bands - 1)
        for text in texts
    )
    return name, location, shares


def bound_text(setup: RoundSetup, bound: str) -> str:
    """Rounds that mix sums do not compose in parallel: the figure is one event's, of any round."""
    return bound if setup.correlated is None else bound.removeprefix("parallel ")
