"""Two plans on one ledger: the lifetime budget decides, and is what a statement quotes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privfedrl.errors import BudgetExceeded
from privfedrl.federation.guarantee import run_statement
from privfedrl.federation.setup import RoundSetup, round_setup
from privfedrl.plan import Plan
from privfedrl.privacy import Ledger, Unit

Make = Callable[..., Plan]


def charge(ledger: Ledger, setup: RoundSetup, rounds: int, name: str) -> None:
    for index in range(rounds):
        row = ledger.reserve(setup.charge(f"{name}/{index}/0", group=f"{name}{index}"))
        ledger.settle(row, setup.settled(setup.plan.fleet.agents))


@pytest.fixture
def setups(make_plan: Make, agent_unit: dict[str, Any]) -> tuple[RoundSetup, RoundSetup]:
    first = make_plan(agent_unit, privacy={"unit": "agent", "epsilon": 2.0})
    return round_setup(first), round_setup(first.replace("federation", learning_rate=0.01))


def test_a_second_plan_on_a_ledger_is_held_to_the_budget_of_the_first(
    tmp_path: Path, setups: tuple[RoundSetup, RoundSetup]
) -> None:
    first, second = setups
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        charge(ledger, first, 3, "first")
        with pytest.raises(BudgetExceeded, match="lifetime budget"):
            charge(ledger, second, 3, "second")


def test_a_statement_quotes_the_lifetime_budget_once_two_plans_were_charged(
    tmp_path: Path, setups: tuple[RoundSetup, RoundSetup]
) -> None:
    first, second = setups
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.declare_budget(Unit.AGENT, first.adversary, epsilon=9.0, delta=1e-5)
        charge(ledger, first, 3, "first")
        alone = run_statement(first, ledger, deterministic=False)
        charge(ledger, second, 3, "second")
        both = run_statement(second, ledger, deterministic=False)
    for statement, regime in ((alone, "committed"), (both, "adaptive")):
        claims = statement.epsilon.claims
        assert not isinstance(claims, str)
        assert {claim.regime for claim in claims} == {regime}
        assert statement.epsilon_text()
    assert not isinstance(alone.epsilon.claims, str)
    assert not isinstance(both.epsilon.claims, str)
    assert alone.epsilon.claims[0].epsilon < 2.0
    assert both.epsilon.claims[0].epsilon == 9.0
    assert both.epsilon.claims[0].delta >= 2e-5
    assert any("Several plans charged" in item for item in both.caveats.items)
    assert "epsilon 9 " in both.accountant.lifetime_budget


def test_whoever_knows_fewer_shares_than_the_budget_is_about_has_no_claim(
    tmp_path: Path, setups: tuple[RoundSetup, RoundSetup]
) -> None:
    first, second = setups
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.declare_budget(Unit.AGENT, first.adversary, epsilon=9.0, delta=1e-5)
        charge(ledger, first, 2, "first")
        charge(ledger, second, 2, "second")
        claims = run_statement(second, ledger, deterministic=False).epsilon.claims
    assert not isinstance(claims, str)
    assert [claim.adversary for claim in claims] == [
        "coordinator+1",
        "coordinator",
        "one agent",
        "public",
    ]
