"""Statement texts: who sees what, who is trusted for what, and how the sum is protected.

Guarantee: every party that a plan has is named, with all that it sees and every duty that the
claims rest on; what protection a plan does not have is not mentioned as if it had.
"""

from __future__ import annotations

from privfedrl.federation.backends import Homomorphic, Pairwise
from privfedrl.federation.setup import RoundSetup
from privfedrl.he import HEParameters
from privfedrl.plan import Plan
from privfedrl.privacy.statement_fields import PartyView, SecureAggregationField
from privfedrl.secagg import SecAggParameters

__all__ = ["graph_text", "secure_aggregation", "trust_model"]

_WITHOUT_NOISE = "one sum per round without noise"
# confidentiality of single updates; by who re-adds what the aggregator says is the sum
_WHO_MUST_NOT = {
    "key-authority": "malicious coordinator; the key authority re-adds the uploads and is trusted "
    "not to decrypt them one by one",
    "auditor": "malicious coordinator; confidentiality of single updates holds unless two of "
    "coordinator, key authority and auditor collude",
    "none": "coordinator that adds honestly; confidentiality of single updates holds unless the "
    "key authority and the aggregator (or whoever holds the uploads) collude",
}


def trust_model(setup: RoundSetup) -> tuple[PartyView, ...]:
    """Field 9: what each party sees, and what it is trusted for."""
    plan = setup.plan
    c = plan.privacy.max_colluding
    services: tuple[PartyView, ...] = ()
    if plan.protection.homomorphic:
        coordinator, services = _homomorphic_trust(setup)
    elif plan.protection.kind == "none":
        coordinator = PartyView(
            party="coordinator",
            sees="every agent's noised vector in the clear"
            if setup.mechanism and plan.privacy.mechanism != "central-discrete-gaussian"
            else "every vector",
            trusted_for="everything: this is a control run inside one process",
        )
    elif plan.privacy.mechanism == "central-discrete-gaussian":
        bands = setup.correlated
        kept = "" if bands is None else f" and the last {bands.bands - 1} sums, which it keeps"
        coordinator = PartyView(
            party="coordinator",
            sees=f"{_WITHOUT_NOISE}{kept}, {_over(setup)}, their names, message sizes and times",
            trusted_for="adding noise"
            + ("" if bands is None else ", keeping past sums secret and never mixing one twice")
            + ", not publishing a sum without it; "
            + ("following the protocol" if plan.follows else "it may deviate from the protocol")
            + " of summing",
        )
    else:
        coordinator = PartyView(
            party=f"coordinator with up to {c} agents",
            sees=f"{_sum_after_noise(setup)} {_over(setup)}, their names, message sizes and times",
            trusted_for="following the protocol; availability"
            if plan.follows
            else "availability only; it may deviate from the protocol",
        )
    return (
        coordinator,
        *services,
        PartyView(party="one agent", sees="the policy of every round", trusted_for="nothing"),
        PartyView(party="the public", sees="the final policy", trusted_for="nothing"),
    )


def _homomorphic_trust(setup: RoundSetup) -> tuple[PartyView, tuple[PartyView, ...]]:
    plan = setup.plan
    readding = plan.protection.readding
    duties = ["not colluding with the key authority"]
    if readding == "auditor":
        duties[0] += " or the auditor"
    if readding == "none":
        duties.append("adding correctly")
    if plan.protection.kind == "ckks":
        duties.append("not colluding with an agent that uploads no real encryption")
    coordinator = PartyView(
        party=f"coordinator with up to {plan.privacy.max_colluding} agents",
        sees=f"ciphertexts, {_sum_after_noise(setup)} over at least "
        f"{plan.threshold} contributors, their names, message sizes and times",
        trusted_for="; ".join([*duties, "availability"]),
    )
    holds_uploads = readding == "key-authority"
    adds = plan.privacy.mechanism == "central-discrete-gaussian"
    what = _WITHOUT_NOISE if adds else _sum_after_noise(setup)
    duty = "adding noise before anybody sees a sum; " if adds else ""
    authority = PartyView(
        party="key authority",
        sees=f"{what}, and every upload, which it could decrypt one by one"
        if holds_uploads
        else what,
        trusted_for=f"{duty}decrypting sums only; availability"
        if holds_uploads
        else f"{duty}not colluding with whoever holds the uploads; decrypting once; availability",
    )
    auditor = PartyView(
        party="auditor",
        sees="ciphertexts",
        trusted_for="adding correctly; not colluding with the coordinator or the key authority; "
        "availability",
    )
    return coordinator, (authority, auditor) if readding == "auditor" else (authority,)


def _sum_after_noise(setup: RoundSetup) -> str:
    return "one noised sum per round" if setup.mechanism else _WITHOUT_NOISE


def _over(setup: RoundSetup) -> str:
    plan = setup.plan
    if plan.several_sums:
        return (
            f"over at least {plan.threshold} survivors, or several over parts of them, disjoint "
            f"and each with at least {plan.honest_floor} honest agents"
        )
    return f"over at least {plan.threshold} survivors"


def secure_aggregation(setup: RoundSetup) -> SecureAggregationField:
    """Field 15: how the sum is formed, and what keeps single updates secret."""
    plan = setup.plan
    if plan.protection.kind == "none":
        text = "not applicable: vectors are summed in the clear"
        return SecureAggregationField(
            protocol="none",
            cryptographic=False,
            threat_model=text,
            threshold=text,
            floor=text,
            collusion_bound=text,
        )
    if isinstance(setup.backend, Homomorphic):
        return _homomorphic_aggregation(plan, setup.backend.parameters)
    if plan.sparse and isinstance(setup.backend, Pairwise):
        return _sparse_aggregation(plan, setup.backend.parameters)
    return SecureAggregationField(
        protocol="pfrl-sa/1, double masking on the complete graph",
        cryptographic=True,
        threat_model="malicious coordinator and colluding agents up to the collusion bound",
        threshold=plan.threshold,
        floor=plan.honest_floor,
        collusion_bound=plan.privacy.max_colluding,
    )


def _sparse_aggregation(plan: Plan, parameters: SecAggParameters) -> SecureAggregationField:
    found = parameters.topology(plan.fleet.agents)
    return SecureAggregationField(
        protocol=f"pfrl-sa/1, double masking with {found.degree} neighbours each of a full roster",
        cryptographic=True,
        threat_model=f"{graph_text(plan, parameters)}; colluding agents up to the collusion bound, "
        "who are fixed before the graph is drawn",
        threshold=plan.threshold,
        floor=plan.honest_floor,
        collusion_bound=plan.privacy.max_colluding,
    )


def graph_text(plan: Plan, parameters: SecAggParameters) -> str:
    """Which coordinator a sparse graph holds against, what it can open and when the graph fails."""
    if parameters.graph is None:
        raise AssertionError("unreachable: asked for a sparse graph only")
    bits, alpha = parameters.graph.security_bits, plan.honest_floor / plan.fleet.agents
    if plan.follows:
        return (
            "coordinator that follows the protocol, and agents that vanish independently of the "
            f"graph: one sum, with at least {plan.honest_floor} honest agents (alpha = "
            f"{alpha:.3f}), except with probability 2^-{bits} for each roster, which is not part "
            "of delta; nothing of it holds against a coordinator that deviates"
        )
    return (
        f"malicious coordinator: every sum that it can open holds at least {plan.honest_floor} "
        f"honest agents (alpha = {alpha:.3f}) and no two share one, except with probability "
        f"T 2^-{bits + 1} if it tries T rosters, which is not part of delta (2^-{bits - 39} for "
        "T = 2^40)"
    )


def _homomorphic_aggregation(plan: Plan, parameters: HEParameters) -> SecureAggregationField:
    chosen = parameters.parameter_set
    level = chosen.security()
    quantum = level["post_quantum"] or "no"
    return SecureAggregationField(
        protocol=f"pfrl-he/1 with {chosen.name}: {chosen.kind.upper()}, N = {chosen.degree}, "
        f"{level['total_bits']} modulus bits, {level['classical']} bits of classical and {quantum} "
        f"of post-quantum security; sums modulo 2^{parameters.value_bits}; re-added by: "
        f"{parameters.readding}",
        cryptographic=True,
        threat_model=f"{_WHO_MUST_NOT[parameters.readding]}; colluding agents up to the collusion "
        f"bound{'' if chosen.exact else ', if they upload real encryptions,'} learn nothing beyond "
        "the sum",
        threshold=plan.threshold,
        floor=plan.honest_floor,
        collusion_bound=plan.privacy.max_colluding,
    )
