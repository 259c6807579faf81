"""What plans and runs under encryption say: who sees what, and at which epsilon."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfedrl.federation.adversaries import adversaries, main_adversary
from privfedrl.federation.backends import Homomorphic
from privfedrl.federation.coordinator import (
    initial_federation_state,
    reserve_round,
    settle_round,
)
from privfedrl.federation.guarantee import run_statement
from privfedrl.federation.setup import round_setup
from privfedrl.plan import Plan
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.privacy import Ledger, Statement, compose

READDINGS = ["key-authority", "auditor", "none"]
KINDS = ["bfv", "ckks"]


@contextmanager
def charged(plan: Plan, path: Path, *, survivors: int = 5) -> Iterator[Ledger]:
    """The coordinator's ledger after all rounds of ``plan``, with as many survivors in each."""
    setup = round_setup(plan)
    parameters = np.zeros(setup.policy.num_parameters)
    with Ledger.open(path / "ledger.db") as ledger:
        for index in range(plan.federation.rounds):
            task = bytes([index]) * 32
            state = initial_federation_state(task, parameters)
            opening = reserve_round(setup, ledger, state, DeterministicEntropy(b""))
            settle_round(setup, ledger, opening, survivors)
        yield ledger


def statement(plan: Plan, path: Path, *, survivors: int = 5) -> Statement:
    with charged(plan, path, survivors=survivors) as ledger:
        return run_statement(round_setup(plan), ledger, deterministic=False)


def rows(plan: Plan) -> list[tuple[str, int]]:
    return [(view.adversary, view.honest_shares) for view in plan.check().views]


# --- the promise --------------------------------------------------------------------------------

# six agents, one colludes, threshold 4: a minimal sum has 4 shares of noise
PROMISED: dict[tuple[str, str], list[tuple[str, int]]] = {
    ("bfv", "key-authority"): [
        ("coordinator+1", 3),
        ("key authority", 1),
        ("coordinator", 4),
        ("one agent", 3),
        ("public", 4),
    ],
    ("bfv", "auditor"): [
        ("coordinator+1", 3),
        ("coordinator with the auditor", 1),
        ("key authority", 4),
        ("key authority with uploads", 1),
        ("coordinator", 4),
        ("one agent", 3),
        ("public", 4),
    ],
    ("ckks", "key-authority"): [
        ("coordinator+1, encrypting honestly", 3),
        ("coordinator that does not", 1),
        ("key authority", 1),
        ("coordinator", 4),
        ("one agent", 3),
        ("public", 4),
    ],
    ("ckks", "auditor"): [
        ("coordinator+1, encrypting honestly", 3),
        ("coordinator that does not", 1),
        ("coordinator with the auditor", 1),
        ("key authority", 4),
        ("key authority with uploads", 1),
        ("coordinator", 4),
        ("one agent", 3),
        ("public", 4),
    ],
}


@pytest.mark.parametrize(("kind", "readding"), PROMISED)
def test_a_promise_lists_exactly_these_adversaries(
    make_plan: Callable[..., Plan], kind: str, readding: str
) -> None:
    plan = make_plan(protection={"kind": kind, "readding": readding})
    assert rows(plan) == PROMISED[kind, readding]
    text = str(plan.check())
    for name, shares in PROMISED[kind, readding]:
        assert f"  {name} " in text
        assert f"({shares} unknown noise shares)" in text


@pytest.mark.parametrize("kind", KINDS)
def test_where_nobody_re_adds_a_promise_says_what_the_coordinator_must_do(
    make_plan: Callable[..., Plan], kind: str
) -> None:
    plan = make_plan(protection={"kind": kind, "readding": "none"})
    duty = "adding" if kind == "bfv" else "adding and encrypting"
    assert rows(plan)[:4] == [
        (f"coordinator+1, {duty} honestly", 3),
        ("coordinator that does not", 1),
        ("key authority", 4),
        ("key authority with uploads", 1),
    ]
    assert rows(plan)[-2:] == [("one agent", 3), ("public", 4)]


@pytest.mark.parametrize("readding", READDINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_plans_epsilon_is_about_the_first_row_and_the_ledger_is_charged_for_it(
    make_plan: Callable[..., Plan], kind: str, readding: str
) -> None:
    plan = make_plan(protection={"kind": kind, "readding": readding})
    setup, first = round_setup(plan), plan.check().views[0]
    assert first.adversary == setup.adversary == main_adversary(plan)
    assert first.honest_shares == plan.honest_floor
    assert first.epsilon is not None
    assert 0.98 * plan.privacy.epsilon < first.epsilon <= plan.privacy.epsilon
    assert [view.adversary for view in plan.check().views] == [
        each.name for each in adversaries(plan)
    ]
    assert len({view.adversary for view in plan.check().views}) == len(plan.check().views)


@pytest.mark.parametrize("unit", ["trajectory", "agent"])
def test_whoever_can_open_a_single_upload_faces_one_noise_share(
    make_plan: Callable[..., Plan], agent_unit: dict[str, dict[str, Any]], unit: str
) -> None:
    plan = make_plan(*([agent_unit] if unit == "agent" else []), protection={"kind": "bfv"})
    setup = round_setup(plan)
    (view,) = (one for one in plan.check().views if one.adversary == "key authority")
    events = [(index, setup.event(1)) for index in range(plan.releases_per_unit)]
    spent = compose(plan.unit, events, setup.accounted_delta)
    assert view.epsilon is not None
    # beyond the plan's epsilon the sampler's deviation is paid for anew, so a trace more
    assert spent.epsilon <= view.epsilon <= spent.epsilon * (1 + 1e-6)
    assert view.epsilon > plan.privacy.epsilon


def test_encrypting_costs_the_agents_no_more_noise_and_other_rows_no_more_epsilon(
    make_plan: Callable[..., Plan],
) -> None:
    masked = make_plan().check()
    for readding in READDINGS:
        found = make_plan(protection={"kind": "bfv", "readding": readding}).check()
        assert found.noise_multiplier == masked.noise_multiplier
        same = {view.adversary: view.epsilon for view in masked.views}
        for view in found.views:
            if view.adversary in same:
                assert view.epsilon == same[view.adversary]


def test_a_control_run_under_encryption_promises_nothing(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(privacy={"mechanism": "none"}, protection={"kind": "bfv"})
    assert round_setup(plan).adversary == "nobody"
    assert {view.epsilon for view in plan.check().views} == {None}


@pytest.mark.parametrize("kind", ["pairwise", "bfv", "ckks"])
def test_the_headroom_that_a_promise_prints_is_that_of_the_sums_that_are_opened(
    make_plan: Callable[..., Plan], kind: str
) -> None:
    """Under encryption a sum beyond ``sum_bits`` is refused; the ring's other bits are no room."""
    plan = make_plan(protection={"kind": kind})
    setup = round_setup(plan)
    bits = plan.encoding.ring_bits
    if isinstance(setup.backend, Homomorphic):
        bits = setup.backend.parameters.sum_bits
    assert plan.check().headroom_bits == pytest.approx(bits - 1 - math.log2(setup.codec.headroom))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("epsilon", "agents"), [(5.0, 6), (8.0, 64), (30.0, 6)])
def test_every_epsilon_of_a_promise_covers_the_samplers_own_delta(
    make_plan: Callable[..., Plan], kind: str, epsilon: float, agents: int
) -> None:
    """What the table sampler may deviate grows with e^epsilon: at 60 it is more than delta.

    A figure that does not leave room for it must not be printed (None: no bound).
    """
    plan = make_plan(
        protection={"kind": kind}, privacy={"epsilon": epsilon}, fleet={"agents": agents}
    )
    setup = round_setup(plan)
    assert setup.mechanism is not None
    shares = agents * plan.releases_per_unit
    for view in plan.check().views:
        if view.epsilon is not None:
            own = setup.mechanism.sampler_delta(epsilon=view.epsilon, shares=shares)
            assert own < plan.privacy.delta, view
            events = [(0, setup.event(view.honest_shares))]
            proven = compose(plan.unit, events, plan.privacy.delta - own).epsilon
            # the accountant's own rounding of delta is far below this
            assert view.epsilon >= proven - 1e-6, view.adversary


# --- the statement ------------------------------------------------------------------------------


@pytest.mark.parametrize("readding", READDINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_statement_is_complete_and_survives_its_format(
    make_plan: Callable[..., Plan], tmp_path: Path, kind: str, readding: str
) -> None:
    found = statement(make_plan(protection={"kind": kind, "readding": readding}), tmp_path)
    found.check()
    assert found.unknown_fields() == ()
    assert Statement.from_json(found.to_json()) == found
    assert found.stamps == ()
    assert "coordinator+1" in found.render()
    assert found.secure_aggregation.cryptographic
    assert found.secure_aggregation.floor == 3
    assert found.secure_aggregation.threshold == 4


@pytest.mark.parametrize("readding", READDINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_claims_are_those_of_the_promise_at_the_shares_that_took_part(
    make_plan: Callable[..., Plan], tmp_path: Path, kind: str, readding: str
) -> None:
    """Five survived: main adversary and one agent do not know 4 shares, public 5, key holder 1."""
    plan = make_plan(protection={"kind": kind, "readding": readding})
    setup = round_setup(plan)
    claims = statement(plan, tmp_path).epsilon.claims
    assert not isinstance(claims, str)
    unknown = {"honest": 4, "all": 5, "all but one": 4, "one": 1}
    expected = {
        each.name: compose(
            plan.unit, [("one release", setup.event(unknown[each.shares]))], setup.accounted_delta
        ).epsilon
        for each in adversaries(plan)
        if each.shares in unknown
    }
    assert {claim.adversary: claim.epsilon for claim in claims} == pytest.approx(expected)
    assert claims[0].adversary == main_adversary(plan)
    assert {claim.delta for claim in claims} == {plan.privacy.delta}


SEEN: dict[str, list[tuple[str, str, str]]] = {
    "key-authority": [
        (
            "coordinator with up to 1 agents",
            "ciphertexts, one noised sum per round over at least 4 contributors, their names, "
            "message sizes and times",
            "not colluding with the key authority; availability",
        ),
        (
            "key authority",
            "one noised sum per round, and every upload, which it could decrypt one by one",
            "decrypting sums only; availability",
        ),
    ],
    "auditor": [
        (
            "coordinator with up to 1 agents",
            "ciphertexts, one noised sum per round over at least 4 contributors, their names, "
            "message sizes and times",
            "not colluding with the key authority or the auditor; availability",
        ),
        (
            "key authority",
            "one noised sum per round",
            "not colluding with whoever holds the uploads; decrypting once; availability",
        ),
        (
            "auditor",
            "ciphertexts",
            "adding correctly; not colluding with the coordinator or the key authority; "
            "availability",
        ),
    ],
    "none": [
        (
            "coordinator with up to 1 agents",
            "ciphertexts, one noised sum per round over at least 4 contributors, their names, "
            "message sizes and times",
            "not colluding with the key authority; adding correctly; availability",
        ),
        (
            "key authority",
            "one noised sum per round",
            "not colluding with whoever holds the uploads; decrypting once; availability",
        ),
    ],
}


@pytest.mark.parametrize("readding", READDINGS)
def test_a_statement_says_exactly_who_sees_what(
    make_plan: Callable[..., Plan], tmp_path: Path, readding: str
) -> None:
    found = statement(make_plan(protection={"kind": "bfv", "readding": readding}), tmp_path)
    views = [(one.party, one.sees, one.trusted_for) for one in found.trust_model]
    assert views == [
        *SEEN[readding],
        ("one agent", "the policy of every round", "nothing"),
        ("the public", "the final policy", "nothing"),
    ]


@pytest.mark.parametrize(
    ("readding", "words"),
    [
        ("key-authority", ("malicious coordinator", "not to decrypt them one by one")),
        ("auditor", ("malicious coordinator", "two of coordinator, key authority and auditor")),
        ("none", ("coordinator that adds honestly", "collude")),
    ],
)
def test_the_threat_model_names_who_must_not_collude(
    make_plan: Callable[..., Plan], tmp_path: Path, readding: str, words: tuple[str, ...]
) -> None:
    found = statement(make_plan(protection={"kind": "bfv", "readding": readding}), tmp_path)
    text = found.secure_aggregation.threat_model
    assert all(word in text for word in words)
    assert ("malicious coordinator" in text) == (readding != "none")
    assert f"re-added by: {readding}" in found.secure_aggregation.protocol


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("bfv", None, ("bfv-4096-std: BFV, N = 4096", "128 bits of classical and 128 of post-")),
        ("bfv", "bfv-4096-wide", ("bfv-4096-wide: BFV", "109 modulus bits", "and no of post-")),
        ("bfv", "bfv-4096-192", ("bfv-4096-192: BFV", "192 bits of classical")),
        ("ckks", None, ("ckks-4096-add: CKKS, N = 4096",)),
    ],
)
def test_a_statement_names_the_lattice_and_its_level(
    make_plan: Callable[..., Plan],
    tmp_path: Path,
    kind: str,
    name: str | None,
    expected: tuple[str, ...],
) -> None:
    found = statement(make_plan(protection={"kind": kind, "parameter_set": name}), tmp_path)
    for words in ("pfrl-he/1 with", *expected):
        assert words in found.secure_aggregation.protocol


@pytest.mark.parametrize("readding", READDINGS)
@pytest.mark.parametrize("kind", ["pairwise", "bfv", "ckks"])
def test_the_caveats_are_those_of_the_kind_and_of_the_re_adding(
    make_plan: Callable[..., Plan], tmp_path: Path, kind: str, readding: str
) -> None:
    options = {} if kind == "pairwise" else {"readding": readding}
    found = statement(make_plan(protection={"kind": kind, **options}), tmp_path)
    text = " ".join(found.caveats.items)
    assert ("ranges are not proved under encryption" in text) == (kind != "pairwise")
    assert ("Nobody re-adds" in text) == (kind != "pairwise" and readding == "none")
    assert ("IND-CPA-D" in text) == (kind == "ckks")
    assert ("malformed ciphertext" in text) == (kind == "ckks")


@pytest.mark.parametrize("readding", READDINGS)
def test_the_threat_model_of_ckks_does_not_deny_what_its_caveat_says(
    make_plan: Callable[..., Plan], tmp_path: Path, readding: str
) -> None:
    """A colluding agent that uploads a malformed ciphertext learns the key of the round."""
    found = statement(make_plan(protection={"kind": "ckks", "readding": readding}), tmp_path)
    text = found.secure_aggregation.threat_model
    assert "if they upload real encryptions, learn nothing beyond the sum" in text
    (coordinator,) = (one for one in found.trust_model if one.party.startswith("coordinator"))
    assert "an agent that uploads no real encryption" in coordinator.trusted_for


@pytest.mark.parametrize("kind", KINDS)
def test_where_nobody_re_adds_no_claim_is_about_a_coordinator_that_may_lie(
    make_plan: Callable[..., Plan], tmp_path: Path, kind: str
) -> None:
    """Alone, without colluders, it can have one update decrypted: the row would be wrong."""
    plan = make_plan(protection={"kind": kind, "readding": "none"})
    claims = statement(plan, tmp_path).epsilon.claims
    assert not isinstance(claims, str)
    for name in (*(claim.adversary for claim in claims), *(name for name, _ in rows(plan))):
        assert name != "coordinator"


def test_a_statement_of_a_control_run_under_encryption_states_no_epsilon(
    make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    plan = make_plan(privacy={"mechanism": "none"}, protection={"kind": "bfv"})
    found = statement(plan, tmp_path)
    assert found.voided
    assert isinstance(found.epsilon.claims, str)
    assert any("nothing is promised" in item for item in found.caveats.items)
    assert "epsilon =" not in found.render()
