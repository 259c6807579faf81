"""A statement prints no epsilon unless all 18 fields are known."""

from __future__ import annotations

import json
import math

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privfedrl.errors import AuthenticationFailed, ConfigurationError, PrivacyError
from privfedrl.privacy import statement_fields as fields
from privfedrl.privacy.gdp import gaussian_delta
from privfedrl.privacy.statement import (
    Statement,
    bayes_accuracy,
    generated_schema,
    max_true_positive_rate,
    schema,
)

FIELDS = Statement.__struct_fields__


def example() -> Statement:
    """A complete statement: the shape that a run fills in."""
    claim = fields.Claim(
        adversary="coordinator + 1 agent",
        epsilon=0.99996,
        delta=1e-5,
        bound="parallel rdp",
        curve_kind="rdp, best order per delta",
        curve=((1e-6, 1.2), (1e-5, 0.99996)),
    )
    return Statement(
        identity=fields.IdentityField(
            statement_id="cartpole-1",
            version="1",
            date="2030-01-31",
            valid_until="2031-01-31",
            issuer="Example hospital group",
            signature="not applicable: not signed",
        ),
        unit=fields.UnitField(
            unit="trajectory", max_contributions="1 in the run", enforced_by="the ledger's groups"
        ),
        adjacency=fields.AdjacencyField(relation="add-remove", population_is_public=True),
        epsilon=fields.EpsilonField(claims=(claim,)),
        delta_context=fields.DeltaContextField(population=10_000, comparison="delta * N = 0.1"),
        mechanism=fields.MechanismField(
            name="distributed Skellam",
            noise_added=True,
            clip_norm=1.0,
            noise_multiplier=3.7306,
            noise_location="one integer share per agent, before masking",
            noise_shares="sized for 4 honest survivors of 8",
            dropout_tolerance="3 of 8",
        ),
        sampling=fields.SamplingField(
            assumption="every agent in every round (q = 1)", implemented_by="the coordinator"
        ),
        accountant=fields.AccountantField(
            name="privfedrl compose",
            version="0.1.0",
            numeric_error="upper bound, rounded up",
            rule="maximum over rounds",
            composed=("100 Skellam releases",),
            prior_spend="0",
            lifetime_budget="epsilon 1 at delta 1e-5",
        ),
        trust_model=(
            fields.PartyView(party="coordinator", sees="noised sums", trusted_for="nothing"),
        ),
        releases=(
            fields.Release(what="policy parameters", to_whom="agents", how_often="each round"),
        ),
        side_releases=fields.SideReleasesField(
            counts="public constants",
            norms="not released",
            rewards="noised, in the vector",
            losses="not released",
            survivor_sets="seen by the coordinator",
            timing="seen by the network",
            hyper_parameter_search="none",
            early_stopping="none",
            normaliser_state="none",
        ),
        not_covered=fields.NotCoveredField(
            correlated_data="a person with several trajectories",
            group_privacy="k units cost about k times epsilon",
            population_inference="not hidden",
            poisoning="clipping only",
            endpoint_compromise="not covered",
        ),
        randomness=fields.RandomnessField(
            source="operating system",
            deterministic=False,
            secure_sampler=True,
            floating_point="never released",
        ),
        implementation=fields.ImplementationField(
            version="0.1.0", commit="0" * 40, lock_hash="1" * 64, sbom_id="not applicable: none yet"
        ),
        secure_aggregation=fields.SecureAggregationField(
            protocol="pairwise masking",
            cryptographic=True,
            threat_model="malicious coordinator",
            threshold=5,
            floor=4,
            collusion_bound=1,
        ),
        audit_evidence=fields.AuditEvidenceField(
            level="none yet",
            views="not applicable: no audit yet",
            canaries="not applicable: no audit yet",
            epsilon_lower="not applicable: no audit yet",
            confidence="not applicable: no audit yet",
            power="not applicable: no audit yet",
            date="not applicable: no audit yet",
        ),
        caveats=fields.CaveatsField(items=("not audited",), expiry="2031-01-31"),
        ledger=fields.LedgerField(head="ab" * 32, entries=200),
    )


def changed(name: str, /, **values: object) -> Statement:
    whole = example()
    return msgspec.structs.replace(
        whole, **{name: msgspec.structs.replace(getattr(whole, name), **values)}
    )


def leaves() -> list[tuple[str, str]]:
    """Every text leaf of every struct field."""
    found = []
    for name in FIELDS:
        value = getattr(example(), name)
        if isinstance(value, msgspec.Struct):
            found += [
                (name, leaf)
                for leaf in value.__struct_fields__
                if isinstance(getattr(value, leaf), str)
            ]
    return found


def test_a_statement_has_the_eighteen_fields_in_order() -> None:
    assert len(FIELDS) == 18
    assert FIELDS[0] == "identity"
    assert FIELDS[-1] == "ledger"


def test_a_complete_statement_prints_epsilon_rounded_up_with_unit_and_adversary() -> None:
    text = example().epsilon_text()
    assert text == (
        "epsilon = 1.000 at delta = 1e-05 for one trajectory (add-remove) against "
        "coordinator + 1 agent [parallel rdp]"
    )
    rendered = example().render()
    assert text in rendered
    assert "TPR <= " in rendered
    assert "alone" in rendered
    assert "***" not in rendered
    assert 40 <= len(rendered.splitlines()) <= 90


@pytest.mark.parametrize("name", FIELDS)
def test_a_removed_field_is_an_error(name: str) -> None:
    data = json.loads(example().to_json())
    del data[name]
    with pytest.raises(ConfigurationError, match=name):
        Statement.from_json(json.dumps(data))
    parts = {key: getattr(example(), key) for key in FIELDS if key != name}
    with pytest.raises(TypeError, match=name):
        Statement(**parts)


@pytest.mark.parametrize("nothing", [None, "", "unknown", "Unknown.", "  ", (), float("nan")])
@pytest.mark.parametrize("name", FIELDS)
def test_an_unknown_field_refuses_epsilon(name: str, nothing: object) -> None:
    draft = msgspec.structs.replace(example(), **{name: nothing})
    assert draft.unknown_fields() == (name,)
    for act in (draft.epsilon_text, draft.render, draft.check, lambda: draft.sign(bytes)):
        with pytest.raises(PrivacyError, match=name):
            act()


@pytest.mark.parametrize("name", FIELDS)
def test_a_null_field_does_not_decode(name: str) -> None:
    data = json.loads(example().to_json())
    data[name] = None
    with pytest.raises(ConfigurationError):
        Statement.from_json(json.dumps(data))


@pytest.mark.parametrize(("name", "leaf"), leaves())
def test_an_unknown_part_of_a_field_refuses_epsilon(name: str, leaf: str) -> None:
    draft = changed(name, **{leaf: "unknown: nobody asked"})
    with pytest.raises(PrivacyError, match=rf"{name}\.{leaf}"):
        draft.epsilon_text()
    with pytest.raises(PrivacyError, match=rf"{name}\.{leaf}"):
        draft.render()


def test_a_draft_with_an_unknown_part_can_be_stored_and_still_refuses_epsilon() -> None:
    draft = changed("sampling", assumption="unknown")
    loaded = Statement.from_json(draft.to_json())
    assert loaded == draft
    with pytest.raises(PrivacyError, match=r"sampling\.assumption"):
        loaded.epsilon_text()


@pytest.mark.parametrize("text", ["not applicable", "not applicable:", "n/a", "TBD"])
def test_not_applicable_needs_a_reason(text: str) -> None:
    with pytest.raises(PrivacyError, match="views"):
        changed("audit_evidence", views=text).check()


def test_unknown_inside_a_list_is_found() -> None:
    draft = changed("caveats", items=("fine", "unknown"))
    assert draft.unknown_fields() == ("caveats.items[1]",)


def test_an_extra_name_is_refused() -> None:
    data = json.loads(example().to_json())
    data["mechanism"]["epsilon"] = 0.1
    with pytest.raises(ConfigurationError, match="epsilon"):
        Statement.from_json(json.dumps(data))


@pytest.mark.parametrize("data", ["", "{", "[]", b"\xff", "[" * 100_000])
def test_bytes_that_are_no_statement_are_refused(data: str | bytes) -> None:
    with pytest.raises(ConfigurationError):
        Statement.from_json(data)


@pytest.mark.parametrize("epsilon", [-1.0, math.inf])
def test_an_epsilon_that_is_no_bound_is_refused(epsilon: float) -> None:
    claim = msgspec.structs.replace(example().epsilon.claims[0], epsilon=epsilon)
    draft = changed("epsilon", claims=(claim,))
    for act in (draft.epsilon_text, draft.to_json, draft.canonical_bytes):
        with pytest.raises(ConfigurationError):
            act()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("unit", {"unit": "person"}, "accountant.rule"),
        ("accountant", {"rule": "sum over participations"}, "accountant.rule"),
        ("epsilon", {"claims": "not applicable: no idea"}, "claims"),
        ("ledger", {"head": "not applicable: lost"}, "ledger.head"),
        ("identity", {"date": "last week"}, "identity.date"),
    ],
)
def test_fields_that_contradict_each_other_refuse_epsilon(
    name: str, values: dict[str, object], message: str
) -> None:
    with pytest.raises(PrivacyError, match=message):
        changed(name, **values).render()


@pytest.mark.parametrize(
    ("name", "values", "stamp"),
    [
        ("randomness", {"deterministic": True}, "NO PRIVACY: deterministic generator"),
        ("mechanism", {"noise_added": False}, "NO DIFFERENTIAL PRIVACY"),
    ],
)
def test_a_voided_run_prints_its_stamp_first_and_no_epsilon(
    name: str, values: dict[str, object], stamp: str
) -> None:
    voided = changed(name, **values)
    rendered = voided.render()
    assert rendered.startswith(f"*** {stamp} ***")
    assert "1.000" not in rendered
    assert "epsilon =" not in rendered
    assert "lifetime budget" not in rendered
    assert "TPR" not in rendered
    with pytest.raises(PrivacyError, match=stamp):
        voided.epsilon_text()


def test_a_voided_run_may_say_that_no_claim_applies() -> None:
    draft = msgspec.structs.replace(
        changed("mechanism", noise_added=False, noise_multiplier="not applicable: no noise"),
        epsilon=fields.EpsilonField(claims="not applicable: no noise"),
        ledger=fields.LedgerField(head="not applicable: nothing charged", entries=0),
    )
    assert "not stated" in draft.render()


def test_a_run_in_the_clear_is_stamped_first() -> None:
    rendered = changed("secure_aggregation", cryptographic=False).render()
    assert rendered.startswith("*** NO CRYPTOGRAPHIC PROTECTION ***")
    assert "sees each agent's vector" in rendered


def test_rendered_text_cannot_forge_lines() -> None:
    rendered = changed("sampling", assumption="q\n 4 EPSILON\x1b[2J").render()
    assert "\x1b" not in rendered
    assert "\n 4 EPSILON\\" not in rendered


def test_json_round_trips_and_is_deterministic() -> None:
    once = example().to_json()
    assert Statement.from_json(once) == example()
    assert Statement.from_json(once).to_json() == once


def test_the_committed_schema_is_the_one_of_the_types() -> None:
    committed = schema()
    assert committed == generated_schema()
    assert committed["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(committed["$defs"]["Statement"]["required"]) == set(FIELDS)


def test_a_signature_covers_every_field_and_only_a_signed_statement_verifies() -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    signed = Statement.from_json(example().sign(key.sign).to_json())
    signed.verify(key.public_key().verify)
    assert "ed25519:" in signed.render()
    edited = msgspec.structs.replace(signed, ledger=fields.LedgerField(head="cd" * 32, entries=1))
    other = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
    for statement, verifier in (
        (edited, key.public_key().verify),
        (signed, other.verify),
        (example(), key.public_key().verify),
        (signed, lambda signature, message: False),
        (
            msgspec.structs.replace(
                signed, identity=msgspec.structs.replace(signed.identity, signature="ed25519:zz")
            ),
            key.public_key().verify,
        ),
    ):
        with pytest.raises(AuthenticationFailed):
            statement.verify(verifier)


def test_an_edit_of_any_field_breaks_the_signature() -> None:
    message = example().canonical_bytes()
    for name, leaf in leaves():
        if (name, leaf) == ("identity", "signature"):
            continue
        value = getattr(getattr(example(), name), leaf)
        try:
            edited = changed(name, **{leaf: value + "!"}).canonical_bytes()
        except ConfigurationError:
            continue  # a fixed vocabulary refuses the edit outright
        assert edited != message


@pytest.mark.parametrize("mu", [0.1, 0.27, 1.0, 3.0])
@pytest.mark.parametrize("epsilon", [0.05, 0.5, 1.0, 4.0])
def test_attack_rates_bound_the_best_attack_on_a_gaussian_mechanism(
    mu: float, epsilon: float
) -> None:
    """The likelihood-ratio attack on N(0,1) against N(mu,1) is the optimum: it must stay below."""
    from scipy.special import ndtr, ndtri

    delta = gaussian_delta(mu, epsilon)
    for rate in (0.001, 0.01, 0.3, 0.9):
        assert ndtr(ndtri(rate) + mu) <= max_true_positive_rate(epsilon, delta, rate) + 1e-12
    assert ndtr(mu / 2) <= bayes_accuracy(epsilon, delta) + 1e-12


def test_attack_rates_at_the_extremes() -> None:
    assert max_true_positive_rate(0.0, 0.0, 0.01) == pytest.approx(0.01)
    assert bayes_accuracy(0.0, 0.0) == 0.5
    assert max_true_positive_rate(math.inf, 0.0, 0.01) == 1.0
    assert bayes_accuracy(math.inf, 0.0) == 1.0
    assert bayes_accuracy(0.0, 1.0) == 1.0
    # the two lines meet where the accuracy is attained
    a = (1 - 1e-5) / (1 + math.e)
    assert (1 + max_true_positive_rate(1, 1e-5, a) - a) / 2 == pytest.approx(
        bayes_accuracy(1, 1e-5)
    )


@pytest.mark.parametrize(
    "arguments", [(-1.0, 0.1, 0.1), (math.nan, 0.1, 0.1), (1.0, 1.1, 0.1), (1.0, 0.1, math.nan)]
)
def test_attack_rates_refuse_impossible_arguments(arguments: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigurationError):
        max_true_positive_rate(*arguments)


def test_huge_figures_are_printed_in_exponent_form() -> None:
    claim = msgspec.structs.replace(example().epsilon.claims[0], epsilon=1.23456e9)
    assert "epsilon = 1.235e+9 " in changed("epsilon", claims=(claim,)).epsilon_text()
