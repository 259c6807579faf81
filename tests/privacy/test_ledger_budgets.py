"""Lifetime budgets: declared before the first charge, kept across plans, runs and processes."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.errors import (
    BudgetExceeded,
    ConfigurationError,
    LedgerIntegrity,
    PrivacyError,
    StorageError,
    UnsupportedMechanism,
)
from privfedrl.privacy.accountant import compose, epsilon
from privfedrl.privacy.events import (
    DpEvent,
    GaussianEvent,
    NoReleaseEvent,
    SkellamEvent,
    UnboundedEvent,
)
from privfedrl.privacy.filters import Filter, fixed_order
from privfedrl.privacy.gdp import gaussian_epsilon
from privfedrl.privacy.ledger import Budget, Charge, Ledger
from privfedrl.privacy.ledger_chain import Chain
from privfedrl.privacy.ledger_rows import budget_from_dict, budget_to_dict
from privfedrl.privacy.units import Adjacency, IntegerSensitivity, Unit

A, B, C = bytes(32), bytes([1]) * 32, bytes([2]) * 32
DELTA = 1e-5
WHO = "coordinator+1"
AGENT, PERSON, TRAJECTORY = Unit.AGENT, Unit.PERSON, Unit.TRAJECTORY
EVERYTHING = Filter.declare("rdp", math.inf, DELTA)
_numbers = itertools.count()


def skellam(variance: int = 10**8, unit: Unit = AGENT, l1: int = 10**4) -> SkellamEvent:
    bound = IntegerSensitivity(l2_squared=10**6, l1=l1, unit=unit)
    return SkellamEvent(sensitivity=bound, variance=variance)


def gaussian(multiplier: float, unit: Unit = AGENT) -> GaussianEvent:
    return GaussianEvent(noise_multiplier=multiplier, unit=unit)


def charge(event: DpEvent | None = None, **changes: Any) -> Charge:
    """A charge of a fresh release and a fresh group."""
    number = next(_numbers)
    unit = changes.pop("unit", AGENT)
    values: dict[str, Any] = {
        "plan_digest": A,
        "release_id": f"release {number}",
        "group": f"group {number}",
        "unit": unit,
        "adversary": WHO,
        "event": skellam(unit=unit) if event is None else event,
        "epsilon": 100.0,
        "delta": DELTA,
    }
    return Charge(**{**values, **changes})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger.open(":memory:") as found:
        yield found


def fill(ledger: Ledger, **changes: Any) -> int:
    """Charge until the ledger refuses; how often it did not."""
    for number in itertools.count():
        before = ledger.head
        try:
            ledger.reserve(charge(**changes))
        except BudgetExceeded:
            assert ledger.head == before
            return number
    raise AssertionError("unreachable: the loop has no end")


# ---- declaring ----------------------------------------------------------------------------------


def test_a_budget_is_a_row_that_outlives_the_process(path: Path) -> None:
    with Ledger.open(path, clock=lambda: 77.0) as ledger:
        row = ledger.declare_budget(PERSON, WHO, 2.0, DELTA)
        (entry,) = ledger.entries()
        assert (entry.id, entry.kind, entry.unix_time) == (row, "budget", 77)
        assert entry.event == NoReleaseEvent(unit=PERSON)
    with Ledger.open(path) as ledger:
        kept = Filter(kind="rdp", epsilon=2.0, delta=DELTA, order=fixed_order(2.0, DELTA))
        found = ledger.account(PERSON, WHO)
        assert found.budget == Budget(unit=PERSON, adversary=WHO, filter=kept)
        assert (found.declared_in, found.releases, found.plans) == (row, 0, 0)
        assert (found.spent.epsilon, found.spent.delta) == (0.0, DELTA)
        assert ledger.spent().epsilon == 0.0
        (exported,) = ledger.export()
        assert exported["filter"] == "rdp"
        assert exported["order"] == kept.order
        json.dumps(exported, allow_nan=False)
        assert ledger.verify().entries == 1


def test_the_same_declaration_again_is_the_same_row_and_another_one_is_refused(path: Path) -> None:
    with Ledger.open(path) as ledger:
        row = ledger.declare_budget(AGENT, WHO, 2.0, DELTA)
        ledger.reserve(charge())
    with Ledger.open(path) as ledger:
        assert ledger.declare_budget(AGENT, WHO, 2.0, DELTA) == row
        others: list[tuple[float, float, Any]] = [
            (3.0, DELTA, "rdp"),
            (2.0, 1e-6, "rdp"),
            (2.0, DELTA, "gdp"),
        ]
        for most, delta, kind in others:
            with pytest.raises(PrivacyError, match=f"since row {row}.*new ledger"):
                ledger.declare_budget(AGENT, WHO, most, delta, kind=kind)
        assert len(ledger) == 2


def test_two_processes_that_declare_agree_on_one_row(path: Path) -> None:
    with Ledger.open(path) as one, Ledger.open(path) as other:
        assert one.declare_budget(AGENT, WHO, 2.0, DELTA) == 1
        assert other.declare_budget(AGENT, WHO, 2.0, DELTA) == 1
        with pytest.raises(PrivacyError, match="never changes"):
            other.declare_budget(AGENT, WHO, 9.0, DELTA)


def test_a_budget_after_the_first_charge_is_refused_also_for_a_settled_one(ledger: Ledger) -> None:
    row = ledger.reserve(charge())
    ledger.settle(row, NoReleaseEvent(unit=AGENT))
    with pytest.raises(PrivacyError, match=r"before the first one.*new ledger"):
        ledger.declare_budget(AGENT, WHO, 2.0, DELTA)
    ledger.declare_budget(AGENT, "public", 2.0, DELTA)
    ledger.declare_budget(PERSON, WHO, 2.0, DELTA)
    assert len(ledger.accounts()) == 3


@pytest.mark.parametrize(
    ("epsilon_", "delta"),
    [
        (0.0, DELTA),
        (-1.0, DELTA),
        (math.inf, DELTA),
        (math.nan, DELTA),
        (True, DELTA),
        ("1", DELTA),
        (10**400, DELTA),
        (1e-300, 1e-300),
        (1.0, 0.0),
        (1.0, 1.0),
        (1.0, -0.1),
        (1.0, math.nan),
        (1.0, None),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused_and_nothing_is_recorded(
    ledger: Ledger, epsilon_: Any, delta: Any
) -> None:
    with pytest.raises(ConfigurationError):
        ledger.declare_budget(AGENT, WHO, epsilon_, delta)
    assert len(ledger) == 0


def test_a_budget_needs_a_unit_an_adversary_a_kind_and_a_clock(ledger: Ledger) -> None:
    unit: Any = "agent"
    with pytest.raises(ConfigurationError, match="unit"):
        ledger.declare_budget(unit, WHO, 1.0, DELTA)
    with pytest.raises(ConfigurationError, match="adversary"):
        ledger.declare_budget(AGENT, "", 1.0, DELTA)
    kind: Any = "odometer"
    with pytest.raises(ConfigurationError, match="kind"):
        ledger.declare_budget(AGENT, WHO, 1.0, DELTA, kind=kind)
    wrong: Any = None
    with pytest.raises(ConfigurationError, match="filter"):
        Budget(unit=AGENT, adversary=WHO, filter=wrong)
    with (
        Ledger.open(":memory:", clock=lambda: math.nan) as broken,
        pytest.raises(ConfigurationError, match="clock"),
    ):
        broken.declare_budget(AGENT, WHO, 1.0, DELTA)
    assert len(ledger) == 0


def test_a_read_only_ledger_takes_no_budget(path: Path) -> None:
    Ledger.open(path).close()
    with (
        Ledger.open(path, read_only=True) as ledger,
        pytest.raises(StorageError, match="read-only"),
    ):
        ledger.declare_budget(AGENT, WHO, 1.0, DELTA)


@given(
    epsilon_=st.floats(1e-3, 1e3),
    delta=st.floats(1e-12, 0.5),
    kind=st.sampled_from(["gdp", "rdp"]),
    unit=st.sampled_from(list(Unit)),
)
@settings(max_examples=50, deadline=None)
def test_a_budget_survives_its_own_row(
    epsilon_: float, delta: float, kind: Any, unit: Unit
) -> None:
    budget = Budget.declare(unit, WHO, epsilon_, delta, kind=kind)
    assert budget_from_dict(json.loads(json.dumps(budget_to_dict(budget)))) == budget
    assert (budget.epsilon, budget.delta) == (epsilon_, delta)


def test_a_forged_budget_row_is_refused_even_with_a_right_hash() -> None:
    chain = Chain()
    chain.append(chain.genesis(bytes(16)))
    chain.append(chain.reserve(charge(), 1))
    good = {**budget_to_dict(Budget.declare(PERSON, WHO, 1.0, DELTA)), "kind": "budget", "time": 1}
    for changes in ({"unit": "agent"}, {"order": 1}, {"order": None}, {"epsilon": "inf"}, {"x": 1}):
        with pytest.raises(LedgerIntegrity):
            chain.append(chain._row({**good, **changes}))
    chain.append(chain._row(good))
    with pytest.raises(LedgerIntegrity, match="never changes"):
        chain.append(chain._row(good))


# ---- one plan: the committed regime -------------------------------------------------------------


@pytest.mark.parametrize("unit", list(Unit))
def test_a_budget_below_one_round_refuses_the_first_charge(ledger: Ledger, unit: Unit) -> None:
    alone = compose(unit, [("a", skellam(unit=unit))], DELTA).epsilon
    ledger.declare_budget(unit, WHO, 0.9 * alone, DELTA)
    with pytest.raises(BudgetExceeded, match=r"lifetime budget declared in row 1") as caught:
        ledger.reserve(charge(unit=unit))
    assert f"{alone:.6g}" in str(caught.value)
    assert f"{0.9 * alone:.6g}" in str(caught.value)
    assert "declare a larger budget" in str(caught.value)
    assert len(ledger) == 1


def test_one_plan_may_use_the_best_bound_up_to_the_whole_budget(ledger: Ledger) -> None:
    """Committed: the best Renyi order is picked afterwards, where a filter has fixed one."""
    budget = compose(AGENT, [(n, skellam()) for n in range(20)], DELTA).epsilon
    ledger.declare_budget(AGENT, WHO, budget, DELTA)
    assert fill(ledger) == 20
    found = ledger.account(AGENT, WHO)
    assert (found.regime, found.plans, found.releases) == ("committed", 1, 20)
    assert found.spent.epsilon == pytest.approx(budget)
    assert found.spent == ledger.spent()
    assert found.running.epsilon >= found.spent.epsilon
    assert ledger.verify().entries == 21


def test_the_plans_own_budget_holds_beside_a_larger_lifetime_budget(ledger: Ledger) -> None:
    ledger.declare_budget(AGENT, WHO, 50.0, DELTA)
    three = compose(AGENT, [(n, skellam()) for n in range(3)], DELTA).epsilon
    assert fill(ledger, epsilon=three) == 3


def test_trajectories_keep_the_maximum_over_groups_and_the_lifetime_epsilon(ledger: Ledger) -> None:
    event = skellam(unit=TRAJECTORY)
    one = compose(TRAJECTORY, [("a", event)], DELTA).epsilon
    ledger.declare_budget(TRAJECTORY, WHO, 1.5 * one, DELTA)
    for number in range(30):
        ledger.reserve(charge(unit=TRAJECTORY, plan_digest=bytes([number % 3]) * 32))
    found = ledger.account(TRAJECTORY, WHO)
    assert (found.regime, found.plans) == ("committed", 3)
    assert found.spent.epsilon == pytest.approx(one)
    with pytest.raises(BudgetExceeded, match="lifetime"):
        ledger.reserve(charge(skellam(10**7, TRAJECTORY), unit=TRAJECTORY))


def test_without_a_declaration_trajectories_have_no_lifetime_budget(ledger: Ledger) -> None:
    ledger.reserve(charge(unit=TRAJECTORY, epsilon=1.0))
    ledger.reserve(charge(skellam(10**7, TRAJECTORY), unit=TRAJECTORY, epsilon=50.0))
    assert ledger.account(TRAJECTORY, WHO).budget is None
    assert ledger.verify().reservations == 2


# ---- several plans: the adaptive regime ---------------------------------------------------------


def test_a_second_plan_turns_the_account_to_its_filter(ledger: Ledger) -> None:
    row = ledger.declare_budget(AGENT, WHO, 3.0, DELTA)
    kept = Filter.declare("rdp", 3.0, DELTA)
    fits = int(kept.allowed / kept.loss(skellam()))
    for _ in range(4):
        ledger.reserve(charge())
    assert ledger.account(AGENT, WHO).regime == "committed"
    assert fill(ledger, plan_digest=B) == fits - 4
    found = ledger.account(AGENT, WHO)
    assert (found.regime, found.plans, found.declared_in) == ("adaptive", 2, row)
    assert found.budget is not None
    assert found.budget.filter == kept
    # the first plan may not go on either, nor may a third
    for digest in (A, B, C):
        with pytest.raises(BudgetExceeded, match=f"rdp filter at order {kept.order:g}") as caught:
            ledger.reserve(charge(plan_digest=digest))
        assert "declared in row 1" in str(caught.value)
        assert "nothing was charged" in str(caught.value)
    assert ledger.verify().reservations == fits


def test_an_adaptive_account_states_its_budget_at_twice_its_delta_and_nothing_less(
    ledger: Ledger,
) -> None:
    ledger.declare_budget(AGENT, WHO, 3.0, DELTA)
    ledger.reserve(charge())
    ledger.reserve(charge(plan_digest=B))
    spent = ledger.spent()
    assert (spent.epsilon, spent.delta, spent.bound) == (3.0, 2 * DELTA, "rdp-filter")
    assert spent.order == fixed_order(3.0, DELTA)
    found = ledger.account(AGENT, WHO)
    assert found.spent == spent
    diagnostic = epsilon([skellam(), skellam()], DELTA).epsilon
    assert found.running.epsilon == pytest.approx(diagnostic, rel=0.05)
    assert found.running.epsilon < spent.epsilon
    assert ledger.spent(delta=1e-3).epsilon == 3.0
    with pytest.raises(PrivacyError, match="no smaller one"):
        ledger.spent(delta=1.9 * DELTA)
    replaced = ledger.spent(adjacency=Adjacency.REPLACE_ONE)
    assert replaced.epsilon == 6.0
    assert replaced.delta == pytest.approx(2 * DELTA * (1 + math.exp(3.0)))


def test_replacing_a_unit_is_unbounded_where_two_steps_use_up_all_of_delta(ledger: Ledger) -> None:
    ledger.declare_budget(AGENT, WHO, 20.0, DELTA)
    ledger.reserve(charge())
    ledger.reserve(charge(plan_digest=B))
    assert ledger.spent(adjacency=Adjacency.REPLACE_ONE).epsilon == math.inf
    assert ledger.spent().epsilon == 20.0


@pytest.mark.parametrize("unit", [AGENT, PERSON])
def test_without_a_declaration_the_first_charge_is_the_budget_of_all_plans(
    ledger: Ledger, unit: Unit
) -> None:
    ledger.reserve(charge(unit=unit, epsilon=2.0))
    kept = Filter.declare("rdp", 2.0, DELTA)
    fits = int(kept.allowed / kept.loss(skellam(unit=unit)))
    assert fill(ledger, unit=unit, epsilon=50.0, delta=1e-3, plan_digest=B) == fits - 1
    found = ledger.account(unit, WHO)
    assert found.budget == Budget(unit=unit, adversary=WHO, filter=kept)
    assert found.declared_in is None
    assert found.spent.epsilon == 2.0


def test_gaussian_releases_pass_the_exact_filter(ledger: Ledger) -> None:
    """A first charge that is Gaussian, or a budget declared so, is kept by the exact curve."""
    ledger.declare_budget(AGENT, "public", 2.0, DELTA, kind="gdp")
    for adversary in (WHO, "public"):
        more = {"adversary": adversary, "event": gaussian(20.0), "epsilon": 2.0}
        ledger.reserve(charge(**more))
        count = 1 + fill(ledger, plan_digest=B, **more)
        assert gaussian_epsilon(math.sqrt(count) / 20, DELTA) <= 2.0
        assert gaussian_epsilon(math.sqrt(count + 1) / 20, DELTA) > 2.0
        assert ledger.spent(adversary=adversary).bound == "gdp-filter"
        with pytest.raises(UnsupportedMechanism, match="kind 'rdp'"):
            ledger.reserve(charge(skellam(10**15), adversary=adversary, plan_digest=C))


def test_the_second_plan_keeps_its_own_promise_about_its_own_releases(ledger: Ledger) -> None:
    ledger.declare_budget(AGENT, WHO, 20.0, DELTA)
    for _ in range(10):
        ledger.reserve(charge())
    two = compose(AGENT, [(n, skellam()) for n in range(2)], DELTA).epsilon
    assert fill(ledger, plan_digest=B, epsilon=two) == 2
    assert fill(ledger, plan_digest=C, epsilon=two) == 2


def test_a_settlement_gives_budget_back_to_every_plan(ledger: Ledger) -> None:
    ledger.declare_budget(AGENT, WHO, 2.0, DELTA)
    row = ledger.reserve(charge())
    fill(ledger, plan_digest=B)
    assert fill(ledger, plan_digest=C) == 0
    ledger.settle(row, NoReleaseEvent(unit=AGENT))
    assert fill(ledger, plan_digest=C) == 1
    assert ledger.verify().settled == 1


def test_after_an_unprotected_release_no_plan_may_promise_anything(ledger: Ledger) -> None:
    ledger.reserve(charge(UnboundedEvent(unit=AGENT), epsilon=math.inf))
    with pytest.raises(BudgetExceeded, match=r"without noise.*new ledger"):
        ledger.reserve(charge(plan_digest=B))
    ledger.reserve(charge(UnboundedEvent(unit=AGENT), epsilon=math.inf, plan_digest=B))
    assert ledger.account(AGENT, WHO).budget is not None
    assert budget_to_dict(Budget(unit=AGENT, adversary=WHO, filter=EVERYTHING))["epsilon"] == "inf"
    assert ledger.spent().epsilon == math.inf
    assert ledger.spent().bound == "unbounded"
    assert ledger.account(AGENT, WHO).running.bound == "unbounded"
    assert ledger.verify().reservations == 2


def test_budgets_of_other_units_and_adversaries_are_not_touched(ledger: Ledger) -> None:
    ledger.declare_budget(AGENT, WHO, 1.0, DELTA)
    used = fill(ledger)
    assert used > 0
    for changes in ({"adversary": "public"}, {"unit": PERSON}, {"unit": TRAJECTORY}):
        ledger.reserve(charge(**changes))
    regimes = {(one.unit, one.adversary): one.releases for one in ledger.accounts()}
    assert regimes[AGENT, WHO] == used
    assert len(regimes) == 4


@given(
    offers=st.lists(
        st.tuples(st.sampled_from([A, B, C]), st.integers(6, 10), st.booleans()),
        min_size=1,
        max_size=25,
    ),
    budget=st.floats(0.2, 6.0),
    declared=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_whatever_plans_charge_in_whatever_order_the_lifetime_filter_holds(
    offers: list[tuple[bytes, int, bool]], budget: float, declared: bool
) -> None:
    """In every state that the ledger reaches: one plan keeps epsilon, several keep the filter."""
    kept = Filter.declare("rdp", budget, DELTA)
    held: Counter[DpEvent] = Counter()
    plans: set[bytes] = set()
    with Ledger.open(":memory:") as ledger:
        if declared:
            ledger.declare_budget(AGENT, WHO, budget, DELTA)
        for digest, power, settled in offers:
            event, limit = skellam(10**power), 100.0 if declared else budget
            try:
                row = ledger.reserve(charge(event, plan_digest=digest, epsilon=limit))
            except BudgetExceeded:
                continue
            plans.add(digest)
            if settled:
                event = skellam(2 * 10**power)
                ledger.settle(row, event)
            held[event] += 1
            if len(plans) == 1:
                assert epsilon(list(held.elements()), DELTA).epsilon <= budget
            else:
                assert kept.admits([(held, None)])
        ledger.verify()


# ---- persons who take part in at most K releases ------------------------------------------------


def test_a_person_pays_for_the_costliest_participations_only(ledger: Ledger) -> None:
    noisy, costly = skellam(10**9, PERSON), skellam(10**8, PERSON)
    for number in range(30):
        event = costly if number % 10 == 0 else noisy
        ledger.reserve(charge(event, unit=PERSON, max_participations=5))
    expected = epsilon([costly] * 3 + [noisy] * 2, DELTA).epsilon
    assert ledger.spent().epsilon == pytest.approx(expected)
    for adjacency in Adjacency:
        replaced = epsilon([costly] * 3 + [noisy] * 2, DELTA, adjacency=adjacency).epsilon
        assert ledger.spent(adjacency=adjacency).epsilon == pytest.approx(replaced)


def test_releases_that_cannot_be_compared_are_charged_by_the_costliest_at_each_order(
    ledger: Ledger,
) -> None:
    one = skellam(10**8, PERSON)
    other = skellam(10**8 + 1, PERSON, l1=10**6)
    for event in (one, other, one, other):
        ledger.reserve(charge(event, unit=PERSON, max_participations=2))
    spent = ledger.spent()
    assert spent.bound == "rdp"
    pairs = [[one, one], [one, other], [other, other]]
    assert spent.epsilon >= max(epsilon(pair, DELTA).epsilon for pair in pairs) * (1 - 1e-12)
    assert spent.epsilon < epsilon([one, one, other], DELTA).epsilon


def test_a_cap_admits_more_rounds_than_a_person_takes_part_in(ledger: Ledger) -> None:
    budget = epsilon([skellam(unit=PERSON)] * 4, DELTA).epsilon
    for _ in range(50):
        ledger.reserve(charge(unit=PERSON, epsilon=budget, max_participations=4))
    assert ledger.spent().epsilon == pytest.approx(budget)
    with pytest.raises(BudgetExceeded):
        ledger.reserve(
            charge(skellam(10**7, PERSON), unit=PERSON, epsilon=budget, max_participations=4)
        )


def test_each_plan_has_its_own_cap_and_the_filter_adds_the_plans(ledger: Ledger) -> None:
    ledger.declare_budget(PERSON, WHO, 3.0, DELTA)
    kept = Filter.declare("rdp", 3.0, DELTA)
    event = skellam(unit=PERSON)
    fits = int(kept.allowed / kept.loss(event))
    for digest, cap in ((A, fits - 2), (B, 2)):
        for _ in range(fits + 5):
            ledger.reserve(charge(unit=PERSON, plan_digest=digest, max_participations=cap))
    with pytest.raises(BudgetExceeded, match="rdp filter"):
        ledger.reserve(charge(unit=PERSON, plan_digest=C, max_participations=1))
    assert ledger.account(PERSON, WHO).running.epsilon < 3.0


def test_a_plan_never_changes_its_cap(ledger: Ledger) -> None:
    ledger.reserve(charge(unit=PERSON, max_participations=3))
    for cap in (2, 4, None):
        with pytest.raises(PrivacyError, match=r"max_participations.*say 3"):
            ledger.reserve(charge(unit=PERSON, max_participations=cap))
    ledger.reserve(charge(unit=PERSON, max_participations=4, plan_digest=B))
    ledger.reserve(charge(unit=PERSON, max_participations=None, adversary="public"))


def test_a_capped_list_of_gaussian_releases_is_exact(ledger: Ledger) -> None:
    for multiplier in (10.0, 5.0, 20.0):
        ledger.reserve(charge(gaussian(multiplier, PERSON), unit=PERSON, max_participations=2))
    for adjacency, factor in ((Adjacency.ADD_REMOVE, 1.0), (Adjacency.REPLACE_ONE, 2.0)):
        expected = gaussian_epsilon(factor * math.hypot(1 / 5, 1 / 10), DELTA)
        found = ledger.account(PERSON, WHO, adjacency=adjacency)
        assert found.spent.epsilon == pytest.approx(expected)
        assert found.running.epsilon == pytest.approx(expected)
        assert found.running.bound == "exact-gdp"


# ---- odometer, accounts, checks -----------------------------------------------------------------


def test_the_odometer_runs_beside_the_rows_of_one_account(ledger: Ledger) -> None:
    ledger.declare_budget(AGENT, WHO, 5.0, DELTA)
    first = ledger.reserve(charge(release_id="first"))
    ledger.reserve(charge(adversary="public"))
    ledger.settle(first, skellam(10**9))
    ledger.reserve(charge(plan_digest=B, release_id="second"))
    rows = ledger.odometer(AGENT, WHO)
    assert [(row.kind, row.release_id) for row in rows] == [
        ("reserve", "first"),
        ("settle", "first"),
        ("reserve", "second"),
    ]
    assert [row.entry for row in rows] == [2, 4, 5]
    assert rows[0].epsilon > rows[1].epsilon < rows[2].epsilon
    assert rows[-1].epsilon == ledger.account(AGENT, WHO).running.epsilon
    smaller = ledger.odometer(AGENT, WHO, delta=1e-9)
    assert all(a.epsilon > b.epsilon for a, b in zip(smaller, rows, strict=True))
    with pytest.raises(ConfigurationError, match="delta"):
        ledger.odometer(AGENT, WHO, delta=1.0)


def test_an_account_that_nobody_opened_is_refused(ledger: Ledger) -> None:
    for act in (ledger.account, ledger.odometer):
        with pytest.raises(PrivacyError, match="no charge and no budget"):
            act(PERSON, WHO)
    assert ledger.accounts() == ()


def test_accounts_are_those_of_another_process_too(path: Path) -> None:
    with Ledger.open(path) as one, Ledger.open(path) as other:
        one.declare_budget(AGENT, WHO, 1.0, DELTA)
        used = fill(one)
        with pytest.raises(BudgetExceeded):
            other.reserve(charge(plan_digest=B))
        assert other.accounts() == one.accounts()
        assert other.account(AGENT, WHO).unsettled == used


@pytest.mark.parametrize("plans", [(A, A, A, A), (A, B, A, B)])
def test_verifying_finds_a_lifetime_budget_that_somebody_else_exceeded(
    path: Path, plans: tuple[bytes, ...]
) -> None:
    """Rows with right hashes, written by a program that does not look at the budget."""
    with Ledger.open(path) as ledger:
        ledger.declare_budget(AGENT, WHO, 0.5, DELTA)
        for digest in plans:
            with ledger._store.writing():
                row = ledger._refreshed().reserve(charge(plan_digest=digest), 0)
                ledger._store.insert(row)
        with pytest.raises(LedgerIntegrity, match="lifetime budget of one agent"):
            ledger.verify()


def test_an_event_of_unknown_meaning_is_charged_nowhere(ledger: Ledger) -> None:
    special: Any = type("Special", (GaussianEvent,), {})
    with pytest.raises(UnsupportedMechanism):
        ledger.reserve(charge(special(noise_multiplier=9.0, unit=AGENT)))
    assert len(ledger) == 0


@pytest.mark.slow
def test_ten_thousand_charges_of_two_plans_cost_what_the_first_thousand_cost_each(
    ledger: Ledger,
) -> None:
    ledger.declare_budget(AGENT, WHO, 50.0, DELTA)
    spans = []
    for start in range(0, 10_000, 1000):
        before = time.process_time()
        for number in range(start, start + 1000):
            digest = (A, B)[number % 2]
            event = skellam(10**11 + 10**9 * (number % 10))
            ledger.reserve(charge(event, plan_digest=digest))
        spans.append(time.process_time() - before)
    assert min(spans[5:]) < 4 * min(spans[:5])
    assert ledger.account(AGENT, WHO).releases == 10_000
