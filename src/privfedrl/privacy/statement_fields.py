"""The 18 fields of a guarantee statement, as types; the committed JSON schema is made from them.

Guarantee: decoding refuses a missing field, an unknown name, null, empty text and empty lists.
``Known`` is text that says something: a fact, or "not applicable: <reason>". The literal text
"unknown" is representable, so that a draft can be stored, but no epsilon is printed beside it
(see ``statement``).
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

__all__ = [
    "AccountantField",
    "AdjacencyField",
    "AttackBounds",
    "AuditEvidenceField",
    "CaveatsField",
    "Claim",
    "DeltaContextField",
    "EpsilonField",
    "IdentityField",
    "ImplementationField",
    "Known",
    "LedgerField",
    "MechanismField",
    "NotCoveredField",
    "PartyView",
    "RandomnessField",
    "Release",
    "SamplingField",
    "SecureAggregationField",
    "SideReleasesField",
    "UnitField",
]

Known = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Order = Annotated[float, Meta(gt=1)]


class _Field(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all fields: immutable, by name, no extra names."""


class IdentityField(_Field, frozen=True, kw_only=True):
    """1. ``date`` and ``valid_until`` are ISO dates; ``signature`` is set by ``Statement.sign``."""

    statement_id: Known
    version: Known
    date: Known
    valid_until: Known
    issuer: Known
    signature: Known


class UnitField(_Field, frozen=True, kw_only=True):
    """2. What is protected, how much of it a unit may contribute, and which code enforces that."""

    unit: Literal["trajectory", "person", "agent"]
    max_contributions: Known
    enforced_by: Known


class AdjacencyField(_Field, frozen=True, kw_only=True):
    """3. The neighbouring relation, and whether the number of units is public."""

    relation: Literal["add-remove", "replace-one"]
    population_is_public: bool


class AttackBounds(_Field, frozen=True, kw_only=True):
    """What a claim means for an attacker; ``attack_bounds`` has the meaning of each figure.

    ``tpr_at_fpr_...``: highest true positive rate of a membership attack at a false positive rate.
    ``bayes_accuracy``: highest share of right membership guesses at even odds.
    ``reconstruction``: (prior, ceiling) pairs: whoever would guess a unit with probability at most
    ``prior`` without the release does so with probability at most ``ceiling`` with it.
    """

    tpr_at_fpr_0_1_percent: Probability
    tpr_at_fpr_1_percent: Probability
    bayes_accuracy: Probability
    reconstruction: Annotated[tuple[tuple[Probability, Probability], ...], Meta(min_length=1)]


class Claim(_Field, frozen=True, kw_only=True):
    """One (epsilon, delta) against one adversary; ``claims.claim`` makes it.

    ``epsilon_replace``: epsilon at the same delta when a unit is replaced by another, or why there
    is none. ``regime``: "committed", epsilon is what was spent under a schedule pinned beforehand;
    "adaptive", it is the budget of the filter that ``bound`` names, at the one ``filter_order``
    that was fixed beforehand. ``curve``: further (delta, epsilon) pairs of the same claim;
    ``curve_kind`` names the parameter or accountant that they come from, e.g. "gdp, mu = 0.27".
    """

    adversary: Known
    epsilon: NonNegative
    delta: Probability
    bound: Known
    epsilon_replace: NonNegative | Known
    regime: Literal["committed", "adaptive"]
    filter_order: Order | Known
    curve_kind: Known
    curve: Annotated[tuple[tuple[Probability, NonNegative], ...], Meta(min_length=1)]
    attacks: AttackBounds


class EpsilonField(_Field, frozen=True, kw_only=True):
    """4. One claim per adversary, or "not applicable: <reason>" for a run without privacy."""

    claims: Annotated[tuple[Claim, ...], Meta(min_length=1)] | Known


class DeltaContextField(_Field, frozen=True, kw_only=True):
    """5. How small delta is against the number of units."""

    population: Count | Known
    comparison: Known


class MechanismField(_Field, frozen=True, kw_only=True):
    """6. The mechanism; ``noise_added`` False means that nothing bounds the leak."""

    name: Known
    noise_added: bool
    clip_norm: NonNegative | Known
    noise_multiplier: NonNegative | Known
    noise_location: Known
    noise_shares: Known
    dropout_tolerance: Known


class SamplingField(_Field, frozen=True, kw_only=True):
    """7. The sampling assumption and the code that implements it."""

    assumption: Known
    implemented_by: Known


class AccountantField(_Field, frozen=True, kw_only=True):
    """8. How the releases were added up; the rule must fit the unit."""

    name: Known
    version: Known
    numeric_error: Known
    rule: Literal["maximum over rounds", "sum over participations"]
    composed: Annotated[tuple[Known, ...], Meta(min_length=1)]
    prior_spend: Known
    lifetime_budget: Known


class PartyView(_Field, frozen=True, kw_only=True):
    """9. What one party sees, and what it is trusted for ("nothing" is an answer)."""

    party: Known
    sees: Known
    trusted_for: Known


class Release(_Field, frozen=True, kw_only=True):
    """10. One thing that leaves."""

    what: Known
    to_whom: Known
    how_often: Known


class SideReleasesField(_Field, frozen=True, kw_only=True):
    """11. What else could leave, one answer each ("not released" is an answer)."""

    counts: Known
    norms: Known
    rewards: Known
    losses: Known
    survivor_sets: Known
    timing: Known
    hyper_parameter_search: Known
    early_stopping: Known
    normaliser_state: Known


class NotCoveredField(_Field, frozen=True, kw_only=True):
    """12. What the guarantee does not say."""

    correlated_data: Known
    group_privacy: Known
    population_inference: Known
    poisoning: Known
    endpoint_compromise: Known


class RandomnessField(_Field, frozen=True, kw_only=True):
    """13. Where noise bits come from; ``deterministic`` voids the statement."""

    source: Known
    deterministic: bool
    secure_sampler: bool
    floating_point: Known


class ImplementationField(_Field, frozen=True, kw_only=True):
    """14. Which code ran."""

    version: Known
    commit: Known
    lock_hash: Known
    sbom_id: Known


class SecureAggregationField(_Field, frozen=True, kw_only=True):
    """15. The protocol's own assumptions; ``cryptographic`` False means vectors in the clear."""

    protocol: Known
    cryptographic: bool
    threat_model: Known
    threshold: Count | Known
    floor: Count | Known
    collusion_bound: Count | Known


class AuditEvidenceField(_Field, frozen=True, kw_only=True):
    """16. What was tried to refute the claim; ``level`` may be "none yet", never blank."""

    level: Known
    views: Known
    canaries: Known
    epsilon_lower: NonNegative | Known
    confidence: Known
    power: Known
    date: Known


class CaveatsField(_Field, frozen=True, kw_only=True):
    """17. What a reader must know before relying on it, and until when it may be relied on."""

    items: Annotated[tuple[Known, ...], Meta(min_length=1)]
    expiry: Known


class LedgerField(_Field, frozen=True, kw_only=True):
    """18. The head of the ledger (64 hex digits): the anchor for ``Ledger.verify``."""

    head: Known
    entries: Count
