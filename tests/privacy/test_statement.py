"""A statement prints no epsilon unless all 18 fields are known and agree with each other."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.errors import AuthenticationFailed, ConfigurationError, PrivacyError
from privfedrl.federation.coordinator import (
    initial_federation_state,
    reserve_round,
    settle_round,
)
from privfedrl.federation.guarantee import run_statement
from privfedrl.federation.setup import round_setup
from privfedrl.plan import Plan
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.privacy import Ledger
from privfedrl.privacy import statement_fields as fields
from privfedrl.privacy.attack_bounds import (
    bayes_accuracy,
    max_true_positive_rate,
    reconstruction_ceiling,
)
from privfedrl.privacy.claims import (
    NO_FILTER,
    NO_ORDER,
    NO_REPLACE_BOUND,
    PRIORS,
    check_claim,
    claim,
)
from privfedrl.privacy.statement import UNSIGNED, Statement, generated_schema, schema

FIELDS = Statement.__struct_fields__
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PARTS: dict[str, Any] = {
    "adversary": "coordinator + 1 agent",
    "epsilon": 0.99996,
    "delta": 1e-5,
    "bound": "parallel rdp",
    "curve_kind": "rdp, best order per delta",
    "curve": [(1e-5, 0.99996), (1e-6, 1.2), (0.01, 0.4)],
    "replace_one": 2.25,
    "regime": "committed",
}


def a_claim(**changes: Any) -> fields.Claim:
    return claim(**{**PARTS, **changes})


def example() -> Statement:
    """A complete statement: the shape that a run fills in."""
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
        epsilon=fields.EpsilonField(claims=(a_claim(),)),
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


def claiming(*claims: fields.Claim) -> Statement:
    return changed("epsilon", claims=claims)


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
    draft = claiming(msgspec.structs.replace(a_claim(), epsilon=epsilon))
    for act in (draft.epsilon_text, draft.to_json, draft.canonical_bytes):
        with pytest.raises(ConfigurationError):
            act()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("unit", {"unit": "person"}, "accountant.rule"),
        ("epsilon", {"claims": "not applicable: no idea"}, "claims"),
        ("ledger", {"head": "not applicable: lost"}, "ledger.head"),
        ("identity", {"date": "last week"}, "identity.date"),
        ("identity", {"signature": "signed by the ministry"}, "identity.signature"),
        ("identity", {"signature": "ed25519:" + "AB" * 64}, "identity.signature"),
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


def test_huge_figures_are_printed_in_exponent_form() -> None:
    huge = a_claim(epsilon=1.23456e9, curve=[(1e-6, 1.3e9)], replace_one=None)
    assert "epsilon = 1.235e+9 " in claiming(huge).epsilon_text()


# --- claims -------------------------------------------------------------------------------------


def test_a_claim_carries_what_its_curve_means_for_an_attacker() -> None:
    found = a_claim()
    curve = [*found.curve, (found.delta, found.epsilon)]
    assert found.attacks.tpr_at_fpr_0_1_percent == max_true_positive_rate(curve, 0.001)
    assert found.attacks.tpr_at_fpr_1_percent == max_true_positive_rate(curve, 0.01)
    assert found.attacks.bayes_accuracy == bayes_accuracy(curve)
    assert found.attacks.reconstruction == tuple(
        (prior, reconstruction_ceiling(curve, prior)) for prior in (0.001, 0.01, 0.1)
    )
    assert PRIORS == (0.001, 0.01, 0.1)
    assert found.curve == tuple(sorted(found.curve))
    assert (found.epsilon_replace, found.filter_order) == (2.25, NO_FILTER)


def test_the_attack_figures_use_the_pair_and_the_curve_whichever_is_lower() -> None:
    alone, more = a_claim(curve=[(1e-5, 0.99996)]), a_claim()
    for part in ("tpr_at_fpr_0_1_percent", "bayes_accuracy"):
        assert getattr(more.attacks, part) <= getattr(alone.attacks, part)
    assert more.attacks.bayes_accuracy < alone.attacks.bayes_accuracy
    beside = a_claim(curve=[(1e-9, 30.0)])
    assert beside.attacks == alone.attacks  # the claim's own pair is part of the curve


def lowered(found: fields.Claim, part: str, factor: float) -> fields.Claim:
    attacks = found.attacks
    if part == "reconstruction":
        pairs = tuple((prior, ceiling * factor) for prior, ceiling in attacks.reconstruction)
        attacks = msgspec.structs.replace(attacks, reconstruction=pairs)
    else:
        attacks = msgspec.structs.replace(attacks, **{part: getattr(attacks, part) * factor})
    return msgspec.structs.replace(found, attacks=attacks)


@pytest.mark.parametrize("part", fields.AttackBounds.__struct_fields__)
def test_an_attack_figure_below_what_the_curve_implies_is_refused(part: str) -> None:
    for factor in (0.0, 0.9, 1 - 1e-6):
        draft = claiming(a_claim(), lowered(a_claim(), part, factor))
        for act in (draft.epsilon_text, draft.render, draft.check, lambda d=draft: d.sign(bytes)):
            with pytest.raises(PrivacyError, match=rf"epsilon\.claims\[1\]\.attacks\.{part}"):
                act()


@pytest.mark.parametrize("part", fields.AttackBounds.__struct_fields__)
def test_an_attack_figure_that_was_rounded_up_is_accepted(part: str) -> None:
    claiming(lowered(a_claim(), part, 1.001)).check()


def test_other_priors_are_checked_as_well() -> None:
    attacks = msgspec.structs.replace(a_claim().attacks, reconstruction=((0.5, 0.5),))
    with pytest.raises(PrivacyError, match=r"reconstruction\[0\]"):
        claiming(msgspec.structs.replace(a_claim(), attacks=attacks)).check()
    attacks = msgspec.structs.replace(a_claim().attacks, reconstruction=((0.5, 1.0),))
    claiming(msgspec.structs.replace(a_claim(), attacks=attacks)).check()


def test_a_smaller_epsilon_needs_no_smaller_attack_figures_but_a_larger_one_larger_ones() -> None:
    claiming(msgspec.structs.replace(a_claim(), epsilon=0.9)).check()
    with pytest.raises(PrivacyError, match="attacks"):
        claiming(msgspec.structs.replace(a_claim(), epsilon=1.5, curve=((1e-6, 3.0),))).check()


def test_a_curve_that_promises_more_than_the_claim_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"curve promises epsilon 0\.5 at delta 1e-06"):
        a_claim(curve=[(1e-6, 0.5)])
    with pytest.raises(PrivacyError, match="curve promises"):
        a_claim(curve=[(1e-5, 0.99)])


@pytest.mark.parametrize("absent", [None, math.inf])
def test_where_no_replace_one_bound_is_proven_the_claim_says_so(absent: float | None) -> None:
    found = a_claim(replace_one=absent)
    assert found.epsilon_replace == NO_REPLACE_BOUND
    assert NO_REPLACE_BOUND in " ".join(claiming(found).render().split())
    assert "epsilon 2.25 at the same delta" in claiming(a_claim()).render()


@pytest.mark.parametrize("replaced", [0.0, 0.5, -1.0, math.nan])
def test_replacing_a_unit_is_never_claimed_to_cost_less_than_removing_it(replaced: float) -> None:
    with pytest.raises((PrivacyError, ConfigurationError), match=r"epsilon_replace|replace_one"):
        a_claim(replace_one=replaced)


def test_under_the_replace_one_relation_there_is_one_epsilon() -> None:
    relation = fields.AdjacencyField(relation="replace-one", population_is_public=True)
    same = msgspec.structs.replace(claiming(a_claim(replace_one=0.99996)), adjacency=relation)
    same.check()
    other = msgspec.structs.replace(claiming(a_claim()), adjacency=relation)
    with pytest.raises(PrivacyError, match="epsilon_replace must be epsilon itself"):
        other.check()


ADAPTIVE: dict[str, Any] = {"regime": "adaptive", "bound": "rdp-filter", "filter_order": 12}


def test_an_adaptive_claim_names_its_filter_and_says_that_the_budget_is_quoted() -> None:
    rendered = " ".join(claiming(a_claim(**ADAPTIVE)).render().split())
    assert "budget of a filter declared beforehand, not what was spent; order: 12" in rendered
    gaussian = a_claim(regime="adaptive", bound="gdp-filter")
    assert gaussian.filter_order == NO_ORDER
    assert "committed" not in claiming(gaussian).render()
    assert "what was spent under a schedule pinned beforehand" in example().render()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regime": "adaptive"}, "must name the filter"),
        ({"regime": "adaptive", "bound": "pld", "filter_order": 12.0}, "must name the filter"),
        ({"regime": "adaptive", "bound": "rdp-filter"}, "filter_order must be"),
        ({"bound": "rdp-filter"}, "must not name a filter"),
        ({"filter_order": 12.0}, "must not name a filter"),
        ({**ADAPTIVE, "curve": [(1e-5, 0.3)]}, "curve promises"),  # what was spent, not the budget
    ],
)
def test_what_was_spent_is_never_quoted_where_only_a_budget_is_proven(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(PrivacyError, match=message):
        a_claim(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"adversary": ""},
        {"adversary": 7},
        {"bound": ""},
        {"curve_kind": None},
        {"curve": []},
        {"curve": None},
        {"curve": [(1e-5, math.inf)]},
        {"epsilon": math.inf},
        {"epsilon": math.nan},
        {"epsilon": -1.0},
        {"epsilon": "1"},
        {"epsilon": 10**400},
        {"delta": 1.5},
        {"delta": math.nan},
        {"replace_one": "much"},
        {"replace_one": True},
        {**ADAPTIVE, "filter_order": "twelve"},
        {"regime": "adaptative"},
        {**ADAPTIVE, "filter_order": 1.0},
        {**ADAPTIVE, "filter_order": math.nan},
        {**ADAPTIVE, "filter_order": math.inf},
    ],
    ids=repr,
)
def test_figures_that_are_none_make_no_claim(changes: dict[str, Any]) -> None:
    with pytest.raises((ConfigurationError, PrivacyError)):
        a_claim(**changes)


@given(
    points=st.lists(
        st.tuples(st.floats(1e-12, 1), st.floats(0, 40)), min_size=1, max_size=6
    ).filter(lambda points: points[0][0] < 1)
)
def test_every_claim_that_the_constructor_makes_passes_the_check(
    points: list[tuple[float, float]],
) -> None:
    delta, epsilon = min(points)[0], max(one[1] for one in points)
    others = [(max(d, delta), e) for d, e in points if d > delta]
    found = a_claim(delta=delta, epsilon=epsilon, curve=[(delta, epsilon), *others], replace_one=90)
    check_claim(found)
    claiming(found).check()


# --- dates --------------------------------------------------------------------------------------


def test_an_expired_statement_says_so_first() -> None:
    first, last, after = date(2030, 1, 31), date(2031, 1, 31), date(2031, 2, 1)
    assert example().lapse(first) is None
    assert example().lapse(last) is None
    assert example().render(on=last) == example().render()
    late = example().render(on=after)
    assert late.startswith("*** EXPIRED: valid until 2031-01-31, read on 2031-02-01 ***\n")
    assert late.endswith(example().render())
    early = example().render(on=date(2030, 1, 30))
    assert early.startswith("*** NOT YET VALID: dated 2030-01-31, read on 2030-01-30 ***\n")


def test_a_statement_that_ends_before_it_begins_is_refused() -> None:
    draft = changed("identity", valid_until="2030-01-30")
    with pytest.raises(PrivacyError, match="valid_until must not be before"):
        draft.render()
    with pytest.raises(PrivacyError, match="valid_until must be a date"):
        changed("identity", valid_until="never").lapse(date(2030, 1, 1))


# --- signatures ---------------------------------------------------------------------------------


def signed() -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(claiming(a_claim(), a_claim()).sign(KEY.sign).to_json())
    return whole


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a JSON document, whole lists and objects included."""
    if path:
        yield path
    if isinstance(value, (dict, list)):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(child, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def edited(whole: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    result = copy.deepcopy(whole)
    at(result, path[:-1])[path[-1]] = value
    return result


SIGNED = signed()
PLACES = list(paths(SIGNED))
LEAVES = [path for path in PLACES if not isinstance(at(SIGNED, path), (dict, list))]
anything = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.lists(st.text(max_size=5), max_size=3)
)


def same(one: Any, other: Any) -> bool:
    """Equal as a statement: 1 and 1.0 are one number, but True is not 1."""
    numbers = {type(one), type(other)} == {int, float}
    return one == other and (numbers or type(one) is type(other))


def refused(document: dict[str, Any]) -> bool:
    """Whether whoever verifies ``document`` is told that something is wrong."""
    try:
        Statement.from_json(json.dumps(document)).verify(KEY.public_key().verify)
    except (ConfigurationError, AuthenticationFailed):
        return True
    return False


def test_a_signed_statement_verifies_and_is_printed_with_its_signature() -> None:
    found = Statement.from_json(json.dumps(SIGNED))
    found.verify(KEY.public_key().verify)
    assert found.signed
    assert not example().signed
    assert "ed25519:" in found.render()
    assert {path[0] for path in PLACES} == set(FIELDS)
    assert len(LEAVES) > 80


@settings(max_examples=400, deadline=None)
@given(path=st.sampled_from(PLACES), value=anything)
def test_an_edit_of_any_place_of_a_signed_statement_is_detected(
    path: tuple[Any, ...], value: Any
) -> None:
    if not same(at(SIGNED, path), value):
        assert refused(edited(SIGNED, path, value))


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: ".".join(map(str, path)))
def test_the_smallest_edit_of_every_leaf_is_detected(path: tuple[Any, ...]) -> None:
    value = at(SIGNED, path)
    if isinstance(value, bool):
        other: Any = not value
    elif isinstance(value, str):
        other = value[:-1] + ("0" if value[-1] != "0" else "1")
    elif isinstance(value, int):
        other = value + 1
    else:
        other = math.nextafter(value, 0.0)
    assert refused(edited(SIGNED, path, other))


def test_claims_cannot_be_dropped_repeated_or_reordered_under_a_signature() -> None:
    first, second = (dict(one) for one in SIGNED["epsilon"]["claims"])
    second["adversary"] = first["adversary"]
    for claims in ([first], [first, second, second], []):
        assert refused(edited(SIGNED, ("epsilon", "claims"), claims))
    views = SIGNED["trust_model"]
    assert refused(edited(SIGNED, ("trust_model",), [*views, *views]))
    curve = SIGNED["epsilon"]["claims"][0]["curve"]
    assert refused(edited(SIGNED, ("epsilon", "claims", 0, "curve"), curve[::-1]))


@pytest.mark.parametrize(
    "change",
    [
        str.upper,
        lambda text: text.replace("ed25519:", "ed25519: "),
        lambda text: text + " ",
        lambda text: text + "00",
        lambda text: text[:-2],
        lambda text: text.removeprefix("ed25519:"),
        lambda text: "ed25519:" + text[-128:].upper(),
        lambda text: "ed25519:zz",
        lambda text: UNSIGNED,
    ],
)
def test_a_signature_has_one_spelling(change: Any) -> None:
    text = SIGNED["identity"]["signature"]
    assert refused(edited(SIGNED, ("identity", "signature"), change(text)))


def test_a_foreign_key_and_a_verifier_that_says_no_are_refused() -> None:
    found = Statement.from_json(json.dumps(SIGNED))
    other = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
    for verifier in (other.verify, lambda signature, message: False):
        with pytest.raises(AuthenticationFailed):
            found.verify(verifier)


def test_whole_numbers_and_floats_of_one_value_have_one_signature() -> None:
    """A file says 12.0 where the program said 12; both are the same statement."""
    whole = a_claim(**ADAPTIVE, epsilon=1, curve=[(1, 0)], replace_one=3)
    found = claiming(whole).sign(KEY.sign)
    loaded = Statement.from_json(found.to_json())
    loaded.verify(KEY.public_key().verify)
    assert loaded == found
    assert loaded.to_json() == found.to_json()


def test_signing_again_replaces_the_signature_and_nothing_else() -> None:
    once = example().sign(KEY.sign)
    assert once.sign(KEY.sign) == once
    assert once.canonical_bytes() == example().canonical_bytes()
    unsigned = msgspec.structs.replace(once.identity, signature=UNSIGNED)
    assert msgspec.structs.replace(once, identity=unsigned) == example()


def test_text_that_is_no_unicode_is_refused_before_it_is_written() -> None:
    draft = changed("sampling", assumption="lone surrogate \ud800")
    for act in (draft.to_json, draft.check, draft.canonical_bytes):
        with pytest.raises(ConfigurationError):
            act()


# --- the schema, by a reader of its own ---------------------------------------------------------

WORDS = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
}
KNOWN_WORDS = {
    *("$ref", "$schema", "$defs", "title", "description", "type", "properties", "required"),
    *("additionalProperties", "items", "prefixItems", "minItems", "maxItems", "anyOf", "enum"),
    *("minLength", "minimum", "maximum", "exclusiveMinimum"),
}


def is_of_type(word: str, value: Any) -> bool:
    if word == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if word == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, WORDS[word])


def problems(rule: Any, value: Any, root: dict[str, Any], path: str = "") -> Iterator[str]:
    """A strict walk of the words of JSON Schema 2020-12 that the schema uses, and of no others."""
    if isinstance(rule, bool):
        if not rule:
            yield f"{path}: not allowed"
        return
    assert set(rule) <= KNOWN_WORDS, f"a word that this reader does not know: {set(rule)}"
    if "$ref" in rule:
        name = rule["$ref"].removeprefix("#/$defs/")
        yield from problems(root["$defs"][name], value, root, path)
        return
    if "anyOf" in rule and all([*problems(one, value, root, path)] for one in rule["anyOf"]):
        yield f"{path}: none of {len(rule['anyOf'])} forms"
    if "enum" in rule and value not in rule["enum"]:
        yield f"{path}: not in {rule['enum']}"
    if "type" in rule and not is_of_type(rule["type"], value):
        yield f"{path}: not {rule['type']}"
        return
    if isinstance(value, str) and len(value) < rule.get("minLength", 0):
        yield f"{path}: too short"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        inside = rule.get("minimum", -math.inf) <= value <= rule.get("maximum", math.inf)
        if not (inside and value > rule.get("exclusiveMinimum", -math.inf)):
            yield f"{path}: out of range"
    if isinstance(value, list):
        if not rule.get("minItems", 0) <= len(value) <= rule.get("maxItems", math.inf):
            yield f"{path}: {len(value)} items"
        first = rule.get("prefixItems", [])
        for index, item in enumerate(value):
            inner = first[index] if index < len(first) else rule.get("items", True)
            yield from problems(inner, item, root, f"{path}[{index}]")
    if isinstance(value, dict):
        known = rule.get("properties", {})
        yield from (
            f"{path}.{name}: missing" for name in rule.get("required", ()) if name not in value
        )
        for name, item in value.items():
            inner = known.get(name, rule.get("additionalProperties", True))
            yield from problems(inner, item, root, f"{path}.{name}")


def valid(document: Any) -> bool:
    return not list(problems(schema(), document, schema()))


PLAN = """
name = "tiny"
[fleet]
environment = "CartPole-v1"
agents = 5
trajectories = 4
horizon = 60
[policy]
observations = 4
actions = 2
hidden = [8]
[federation]
rounds = 2
[privacy]
unit = "trajectory"
max_colluding = 1
epsilon = 5.0
[protection]
min_clients = 4
"""


def real(
    path: Path, *, kind: str = "pairwise", noise: bool = True, test: bool = False
) -> Statement:
    """The statement of a run as far as its ledger and plan go."""
    plan = Plan.from_text(PLAN).replace("protection", kind=kind)
    if not noise:
        plan = plan.replace("privacy", mechanism="none")
    setup = round_setup(plan)
    with Ledger.open(path / "ledger.db") as ledger:
        for index in range(plan.federation.rounds):
            state = initial_federation_state(
                bytes([index]) * 32, np.zeros(setup.policy.num_parameters)
            )
            opening = reserve_round(setup, ledger, state, DeterministicEntropy(b""))
            settle_round(setup, ledger, opening, 5)
        return run_statement(setup, ledger, deterministic=test)


REAL = [
    *({"kind": kind} for kind in ("pairwise", "bfv", "ckks", "none")),
    {"noise": False},
    {"test": True},
]


@pytest.mark.parametrize("options", REAL, ids=repr)
def test_the_statement_of_a_run_is_valid_under_the_schema(
    options: dict[str, Any], tmp_path: Path
) -> None:
    found = real(tmp_path, **options)
    document = json.loads(found.to_json())
    assert list(problems(schema(), document, schema())) == []
    assert Statement.from_json(found.to_json()) == found
    found.check()


@pytest.mark.parametrize("kind", ["pairwise", "bfv"])
def test_the_claims_of_a_run_say_what_replacing_costs_and_what_an_attacker_can_do(
    kind: str, tmp_path: Path
) -> None:
    found = real(tmp_path, kind=kind)
    assert not isinstance(found.epsilon.claims, str)
    for one in found.epsilon.claims:
        assert one.regime == "committed"
        assert not isinstance(one.epsilon_replace, str)
        assert one.epsilon < one.epsilon_replace
        assert (one.delta, one.epsilon) in one.curve
        epsilons = [epsilon for _, epsilon in one.curve]
        assert epsilons == sorted(epsilons, reverse=True)
        assert one.attacks.tpr_at_fpr_1_percent < 1
        assert one.attacks.bayes_accuracy < 1
    ranked = sorted(found.epsilon.claims, key=lambda one: one.epsilon)
    figures = [one.attacks.tpr_at_fpr_1_percent for one in ranked]
    assert figures == sorted(figures)


def test_every_part_of_the_schema_is_closed_and_complete() -> None:
    for name, rule in schema()["$defs"].items():
        assert rule["type"] == "object", name
        assert rule["additionalProperties"] is False, name
        assert set(rule["required"]) == set(rule["properties"]), name
    assert schema() == generated_schema()


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from(PLACES), value=anything)
def test_the_schema_and_the_decoder_agree_on_every_edit(path: tuple[Any, ...], value: Any) -> None:
    document = edited(SIGNED, path, value)
    try:
        Statement.from_json(json.dumps(document))
        decodes = True
    except ConfigurationError:
        decodes = False
    assert valid(document) is decodes


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_a_name_that_is_missing_or_too_many_fails_under_the_schema_and_in_the_decoder(
    path: tuple[Any, ...],
) -> None:
    for change in ("missing", "extra"):
        document = copy.deepcopy(SIGNED)
        holder, last = at(document, path[:-1]), path[-1]
        if isinstance(holder, dict) and change == "missing":
            del holder[last]
        elif isinstance(holder, dict):
            holder["surplus"] = 1
        else:
            holder[last] = None
        assert not valid(document)
        with pytest.raises(ConfigurationError):
            Statement.from_json(json.dumps(document))
