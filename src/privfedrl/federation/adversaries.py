"""Whom a plan's figures are about, and how much of the noise each of them does not know.

Guarantee: promise and statement list the same adversaries (a run that sums noised vectors in the
clear states its claim against the public alone); :func:`main_adversary` is the one that the noise
was calibrated for. Whoever can have or read a single upload is listed with the single share in it,
and whoever sees a sum before noise is added to it is listed without a figure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from privfedrl.plan import Plan

__all__ = ["Adversary", "adversaries", "main_adversary"]

_FOLLOWING = "following the protocol"
Shares = Literal["honest", "all", "all but one", "one", "no"]


@dataclass(frozen=True, slots=True)
class Adversary:
    """One row.

    Attributes:
        name: as it is printed.
        shares: noise shares in a release that it does not know: those of the survivors less the
            colluders ("honest"), of all survivors, of all but its own, of the victim alone, or no
            noise at all. Noise that is not the survivors' is one share, whoever asks.
    """

    name: str
    shares: Shares

    def least(self, plan: Plan) -> int:
        """How many these are when as few survive as the protocol allows."""
        return {
            "honest": plan.honest_floor,
            "all": plan.sum_floor,
            "all but one": _but_one(plan),
            "one": 1,
            "no": 0,
        }[self.shares]


def _but_one(plan: Plan) -> int:
    """Shares that are not the own one, or that coordinator and this agent together do not know."""
    together = plan.honest_floor if plan.privacy.max_colluding else 0
    return max(plan.sum_floor - 1, together)


def main_adversary(plan: Plan) -> str:
    """Against whom the plan's epsilon holds."""
    if plan.privacy.mechanism == "none":
        return "nobody"
    if plan.privacy.mechanism == "local-skellam":
        return "everybody but the agent itself"
    if plan.privacy.mechanism == "central-discrete-gaussian" and not plan.protection.homomorphic:
        keeping = "" if plan.privacy.correlation_bands is None else " and keeping past sums secret"
        # more agents could open a single upload, which holds no noise
        agents = f"up to {plan.privacy.max_colluding}"
        agents = "all" if plan.protection.kind == "none" else agents
        return f"{agents} agents and the public, coordinator adding noise honestly{keeping}"
    if plan.protection.kind == "none":
        return "public"
    coordinator = f"coordinator+{plan.privacy.max_colluding}"
    if plan.follows:
        return f"{coordinator}, {_FOLLOWING}"
    duties = _duties(plan)
    return f"{coordinator}, {' and '.join(duties)} honestly" if duties else coordinator


def adversaries(plan: Plan) -> tuple[Adversary, ...]:
    """Everybody whom the figures are about."""
    if not plan.privacy.distributed and plan.privacy.mechanism != "none":
        return _of_one_share(plan)
    public = Adversary("public", "all")
    if plan.protection.kind == "none":
        return (Adversary("coordinator", "one"), public)
    alone = "coordinator, adding honestly" if "adding" in _duties(plan) else "coordinator"
    if plan.follows:
        alone = f"coordinator, {_FOLLOWING}"
    rest = (Adversary(alone, "all"), Adversary("one agent", "all but one"), public)
    return (Adversary(main_adversary(plan), "honest"), *_key_holders(plan), *rest)


def _of_one_share(plan: Plan) -> tuple[Adversary, ...]:
    """Central noise, or local steps with noise of their own: how many survive plays no part."""
    main, public = Adversary(main_adversary(plan), "one"), Adversary("public", "one")
    if plan.privacy.mechanism == "local-skellam":
        return (main, public)
    if not plan.protection.homomorphic:
        thief = Adversary("who seizes the coordinator's memory", "no")
        seized = () if plan.privacy.correlation_bands is None else (thief,)
        return (main, Adversary("coordinator", "no"), *seized, public)
    found = [Adversary("coordinator that does not", "no"), Adversary("key authority", "no")]
    if plan.protection.readding == "auditor":
        # copies of one upload, vouched for as a sum, outweigh one share of noise
        found.append(Adversary("coordinator with the auditor", "no"))
    return (main, *found, public)


def _duties(plan: Plan) -> list[str]:
    """What the coordinator and its colluding agents must do right for the figure to hold."""
    duties = []
    if plan.privacy.mechanism == "central-discrete-gaussian":
        duties.append("key authority adding noise")
        # whether a sum is in range, and so opened, is told without noise to whoever plants values
        duties.append("agents encrypting within range")
    if plan.protection.homomorphic and plan.protection.readding == "none":
        duties.append("adding")
    if plan.protection.kind == "ckks":
        duties.append("encrypting")  # a malformed upload makes the sum tell the round's key
    return duties


def _key_holders(plan: Plan) -> tuple[Adversary, ...]:
    if plan.follows:  # one that shows agents different survivors may open single vectors
        return (Adversary("coordinator that does not", "one"),)
    if not plan.protection.homomorphic:
        return ()
    found = []
    if _duties(plan):
        found.append(Adversary("coordinator that does not", "one"))
    if plan.protection.readding == "key-authority":
        return (*found, Adversary("key authority", "one"))
    if plan.protection.readding == "auditor":  # who can vouch for a sum that is none
        found.append(Adversary("coordinator with the auditor", "one"))
    return (
        *found,
        Adversary("key authority", "all"),
        Adversary("key authority with uploads", "one"),
    )
