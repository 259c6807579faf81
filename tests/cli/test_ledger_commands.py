"""``ledger budget|checkpoint|odometer`` and ``verify --checkpoint``, as an operator runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from privfedrl.parties.identity import Identity, Registry
from privfedrl.privacy import Charge, GaussianEvent, Ledger, UnboundedEvent, Unit

WHO = "coordinator+1"
BUDGET = ("--unit", "person", "--adversary", WHO, "--epsilon", "3", "--delta", "1e-5")


def reserve(ledger: Ledger, number: int, *, plan: int = 0) -> int:
    return ledger.reserve(
        Charge(
            plan_digest=bytes([plan]) * 32,
            release_id=f"task/{number}/0",
            group=f"batch {number}",
            unit=Unit.PERSON,
            adversary=WHO,
            event=GaussianEvent(noise_multiplier=20.0, unit=Unit.PERSON),
            epsilon=3.0,
            delta=1e-5,
        )
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger of one plan and three charges, one of them settled."""
    path = tmp_path / "ledger.db"
    with Ledger.open(path) as ledger:
        for number in range(3):
            row = reserve(ledger, number)
        ledger.settle(row, GaussianEvent(noise_multiplier=25.0, unit=Unit.PERSON))
    return path


@pytest.fixture
def two_plans(path: Path) -> Path:
    with Ledger.open(path) as ledger:
        reserve(ledger, 7, plan=1)
    return path


@pytest.fixture
def key(tmp_path: Path, call: Any) -> Path:
    assert call("keys", "new", "auditor-1", "--out", tmp_path / "auditor-1.key").exit_code == 0
    return tmp_path / "auditor-1.key"


# ---- budget -------------------------------------------------------------------------------------


def test_a_declared_budget_is_listed_and_kept(tmp_path: Path, call: Any) -> None:
    path = tmp_path / "new.db"
    made = call("ledger", "budget", path, *BUDGET, "--filter", "gdp", "--json")
    assert made.exit_code == 0
    listed = call("ledger", "budget", path, "--json")
    assert json.loads(listed.stdout) == json.loads(made.stdout)
    (row,) = json.loads(listed.stdout)["budgets"]
    assert (row["unit"], row["adversary"], row["epsilon"]) == ("person", WHO, 3.0)
    assert (row["filter"], row["order"], row["declared_in"]) == ("gdp", None, 1)
    with Ledger.open(path) as ledger:
        reserve(ledger, 1)
        budget = ledger.account(Unit.PERSON, WHO).budget
        assert budget is not None
        assert budget.epsilon == 3.0
    text = call("ledger", "budget", path).stderr
    assert "row 1" in text
    assert "committed" in text


def test_a_budget_with_a_fixed_order_shows_it(tmp_path: Path, call: Any) -> None:
    path = tmp_path / "new.db"
    assert "order" in call("ledger", "budget", path, *BUDGET).stderr
    (row,) = json.loads(call("ledger", "budget", path, "--json").stdout)["budgets"]
    assert row["order"] > 1


def test_the_budget_of_a_first_charge_is_listed_as_such(path: Path, call: Any) -> None:
    (row,) = json.loads(call("ledger", "budget", path, "--json").stdout)["budgets"]
    assert row["declared_in"] is None
    assert "first charge" in call("ledger", "budget", path).stderr


def test_a_budget_after_the_first_charge_is_a_finding(path: Path, call: Any) -> None:
    before = path.read_bytes()
    result = call("ledger", "budget", path, *BUDGET, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"] == "PrivacyError"
    assert "new ledger" in result.stderr.replace("\n", " ")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [
        BUDGET[:6],
        BUDGET[2:],
        (*BUDGET[:6], "--delta", "1.5"),
        (*BUDGET[:4], "--epsilon", "-1", *BUDGET[6:]),
        (*BUDGET[:4], "--epsilon", "nan", *BUDGET[6:]),
        (*BUDGET[:2], "--adversary", "", *BUDGET[4:]),
        ("--unit", "transition", *BUDGET[2:]),
        (*BUDGET, "--filter", "pld"),
    ],
    ids=" ".join,
)
def test_an_impossible_budget_is_bad_input_and_leaves_no_ledger(
    tmp_path: Path, call: Any, options: tuple[str, ...]
) -> None:
    assert call("ledger", "budget", tmp_path / "new.db", *options).exit_code == 2
    assert list(tmp_path.iterdir()) == []


# ---- show and odometer --------------------------------------------------------------------------


def test_show_says_when_the_figure_is_the_budget(two_plans: Path, call: Any) -> None:
    (row,) = json.loads(call("ledger", "show", two_plans, "--json").stdout)["accounts"]
    assert (row["regime"], row["plans"], row["bound"]) == ("adaptive", 2, "gdp-filter")
    assert (row["epsilon"], row["delta"]) == (3.0, 2e-5)
    assert 0 < row["epsilon_running"] < 3.0
    assert (row["epsilon_replace"], row["releases"], row["unsettled"]) == (6.0, 4, 3)
    assert "so epsilon is the lifetime budget" in call("ledger", "show", two_plans).stderr


def test_the_odometer_shows_every_row_of_the_chosen_account(path: Path, call: Any) -> None:
    found = json.loads(call("ledger", "odometer", path, "--json").stdout)["accounts"]
    (account,) = found
    assert (account["unit"], account["adversary"], account["regime"]) == (
        "person",
        WHO,
        "committed",
    )
    assert [row["kind"] for row in account["rows"]] == ["reserve"] * 3 + ["settle"]
    assert [row["release_id"] for row in account["rows"]][-1] == "task/2/0"
    figures = [row["epsilon"] for row in account["rows"]]
    assert figures[0] < figures[1] < figures[2] > figures[3]
    assert "task/1/0" in call("ledger", "odometer", path, "--unit", "person").stderr
    chosen = call("ledger", "odometer", path, "--adversary", "public", "--json")
    assert json.loads(chosen.stdout) == {"accounts": []}


def test_an_unprotected_release_has_no_figure(tmp_path: Path, call: Any) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.open(path) as ledger:
        ledger.reserve(
            Charge(
                plan_digest=bytes(32),
                release_id="r",
                group="g",
                unit=Unit.AGENT,
                adversary="public",
                event=UnboundedEvent(unit=Unit.AGENT),
                epsilon=float("inf"),
                delta=1e-5,
            )
        )
    for command in ("show", "odometer", "budget"):
        assert "unbounded" in call("ledger", command, path).stderr
        assert "null" in call("ledger", command, path, "--json").stdout


def test_export_takes_json_like_every_other_command(path: Path, call: Any) -> None:
    plain, asked = call("ledger", "export", path), call("ledger", "export", path, "--json")
    assert plain.stdout == asked.stdout
    assert len(json.loads(plain.stdout)) == 4


# ---- checkpoint ---------------------------------------------------------------------------------


def test_a_checkpoint_verifies_by_key_and_by_registry(
    path: Path, key: Path, tmp_path: Path, call: Any
) -> None:
    out = tmp_path / "checkpoint.json"
    made = call("ledger", "checkpoint", path, "--key", key, "--out", out, "--json")
    assert made.exit_code == 0
    assert json.loads(made.stdout)["entries"] == 4
    auditor = Identity.load(key)
    entries = [Identity.generate("c").entry("coordinator"), auditor.entry("auditor")]
    Registry(entries).save(tmp_path / "registry.json")
    for option in (("--key", auditor.verify_key.hex()), ("--registry", tmp_path / "registry.json")):
        result = call("ledger", "verify", path, "--checkpoint", out, *option, "--json")
        assert result.exit_code == 0
        found = json.loads(result.stdout)
        assert (found["ok"], found["anchored"], found["checkpoint"]) == (True, True, "auditor-1")
        text = call("ledger", "verify", path, "--checkpoint", out, *option).stderr
        assert "checkpoint of auditor-1: its 4 entries are unchanged" in text
    with Ledger.open(path) as ledger:
        reserve(ledger, 9)
    again = call("ledger", "verify", path, "--checkpoint", out, "--key", auditor.verify_key.hex())
    assert again.exit_code == 0


def test_a_checkpoint_without_a_file_goes_to_standard_output(
    path: Path, key: Path, call: Any
) -> None:
    result = call("ledger", "checkpoint", path, "--key", key)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["name"] == "auditor-1"


def test_a_checkpoint_replaces_no_file(path: Path, key: Path, tmp_path: Path, call: Any) -> None:
    out = tmp_path / "checkpoint.json"
    assert "4 entries" in call("ledger", "checkpoint", path, "--key", key, "--out", out).stderr
    before = out.read_bytes()
    assert call("ledger", "checkpoint", path, "--key", key, "--out", out).exit_code == 2
    assert out.read_bytes() == before


def test_an_older_copy_is_a_finding_with_the_checkpoint_only(
    path: Path, key: Path, tmp_path: Path, call: Any
) -> None:
    old, out = tmp_path / "old.db", tmp_path / "checkpoint.json"
    shutil.copy(path, old)
    with Ledger.open(path) as ledger:
        reserve(ledger, 9)
    call("ledger", "checkpoint", path, "--key", key, "--out", out)
    assert call("ledger", "verify", old).exit_code == 0
    verify_key = Identity.load(key).verify_key.hex()
    result = call("ledger", "verify", old, "--checkpoint", out, "--key", verify_key, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"] == "LedgerIntegrity"


@pytest.mark.parametrize("case", ["other key", "not registered", "expired", "edited"])
def test_a_checkpoint_that_nobody_trusted_signed_is_a_finding(
    path: Path, key: Path, tmp_path: Path, call: Any, case: str
) -> None:
    out, auditor = tmp_path / "checkpoint.json", Identity.load(key)
    call("ledger", "checkpoint", path, "--key", key, "--out", out)
    coordinator = Identity.generate("c").entry("coordinator")
    registry = tmp_path / "registry.json"
    options: tuple[Any, ...] = ("--registry", registry)
    if case == "other key":
        options = ("--key", Identity.generate("x").verify_key.hex())
    elif case == "not registered":
        Registry([coordinator]).save(registry)
    elif case == "expired":
        Registry([coordinator, auditor.entry("auditor", not_after=1000)]).save(registry)
    else:
        Registry([coordinator, auditor.entry("auditor")]).save(registry)
        out.write_text(out.read_text().replace('"entries":4', '"entries":3'))
    result = call("ledger", "verify", path, "--checkpoint", out, *options, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"] == "AuthenticationFailed"


def test_a_checkpoint_that_cannot_be_checked_is_bad_input(
    path: Path, key: Path, tmp_path: Path, call: Any
) -> None:
    out, good = tmp_path / "checkpoint.json", Identity.load(key).verify_key.hex()
    call("ledger", "checkpoint", path, "--key", key, "--out", out)
    (tmp_path / "no").write_text("{}")
    verify = ("ledger", "verify", path)
    cases: list[tuple[Any, ...]] = [
        ("--checkpoint", out),
        ("--checkpoint", out, "--key", good, "--registry", tmp_path / "no"),
        ("--key", good),
        ("--registry", tmp_path / "no"),
        ("--checkpoint", tmp_path / "absent", "--key", good),
        ("--checkpoint", tmp_path / "no", "--key", good),
        ("--checkpoint", out, "--key", "xyz"),
        ("--checkpoint", out, "--key", "ab"),
        ("--checkpoint", out, "--key", "00" * 32),
        ("--checkpoint", out, "--registry", tmp_path / "no"),
    ]
    for options in cases:
        assert call(*verify, *options).exit_code == 2, options
    for secret in (tmp_path / "absent.key", tmp_path / "no"):
        assert call("ledger", "checkpoint", path, "--key", secret).exit_code == 2


def test_the_new_commands_need_a_ledger(tmp_path: Path, key: Path, call: Any) -> None:
    (tmp_path / "text").write_text("no ledger " * 500)
    for command in (("budget",), ("odometer",), ("checkpoint", "--key", key)):
        assert call("ledger", *command, tmp_path / "absent.db").exit_code == 2
        assert call("ledger", *command, tmp_path / "text").exit_code == 1
    assert not (tmp_path / "absent.db").exists()
