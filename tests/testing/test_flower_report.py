"""The committed report on Flower's SecAgg+ speaks about today's attack suite (no flwr needed)."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from privfedrl.testing.adapter import Claim
from privfedrl.testing.attacks import ATTACKS, Attack
from privfedrl.testing.suites import UNIFORMITY
from privfedrl.testing.verdict import Outcome, Status, Verdict

_AUDITS = Path(__file__).parents[2] / "audits"
_SUITE: tuple[Attack, ...] = (*ATTACKS, *UNIFORMITY)


def _newest(suffix: str) -> Path:
    """Dates in the names sort."""
    found = (_AUDITS / "reports").glob(f"*-flower-secaggplus-*[0-9]{suffix}")
    return sorted(found)[-1]


@pytest.fixture(scope="module")
def verdict() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(_newest(".json").read_text())
    return loaded


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(_newest(".observations.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def report() -> str:
    return _newest(".md").read_text()


def test_verdict_has_the_schema_of_a_verdict(verdict: dict[str, Any]) -> None:
    outcomes = tuple(
        Outcome(**{**row, "status": Status(row["status"]), "needs": tuple(row["needs"])})
        for row in verdict["outcomes"]
    )
    rebuilt = Verdict(
        adapter=verdict["adapter"],
        reference=verdict["reference"],
        profile=verdict["profile"],
        claims=tuple(verdict["claims"]),
        outcomes=outcomes,
    )
    assert json.loads(rebuilt.to_json()) == verdict
    assert set(verdict["claims"]) <= set(Claim.__members__)


def test_verdict_names_every_attack_of_the_suite(verdict: dict[str, Any]) -> None:
    rows = {row["id"]: (row["title"], set(row["needs"])) for row in verdict["outcomes"]}
    wanted = {each.id: (each.title, {claim.name for claim in each.needs}) for each in _SUITE}
    assert rows == wanted, "the suite has changed: make the report again (make kit-flower)"


def test_what_is_not_claimed_was_neither_run_nor_passed(verdict: dict[str, Any]) -> None:
    for row in verdict["outcomes"]:
        unclaimed = not set(row["needs"]) <= set(verdict["claims"])
        assert (row["status"] == Status.UNCLAIMED.value) == unclaimed, row["id"]
    assert 0 < verdict["counts"][Status.UNCLAIMED.value] < len(_SUITE)


def test_every_failure_carries_a_script_that_compiles(verdict: dict[str, Any]) -> None:
    failures = [row for row in verdict["outcomes"] if row["status"] == Status.FAILED.value]
    assert failures
    assert verdict["ok"] is False
    for row in failures:
        assert verdict["reference"] in row["script"]
        ast.parse(row["script"])


def test_report_names_every_attack_and_every_observation(
    report: str, verdict: dict[str, Any], seen: dict[str, Any]
) -> None:
    missing = [each.id for each in _SUITE if f" {each.id} " not in report.replace(",", " ")]
    assert not missing
    for each in seen["observations"]:
        assert f"`{each['name']}`" in report
        assert json.dumps(each["observed"], indent=1) in report
    assert verdict["adapter"].split()[1] in report


def test_every_observation_of_the_report_has_its_function(seen: dict[str, Any]) -> None:
    measured = [
        node.name
        for path in sorted((_AUDITS / "flower").glob("observed_*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
        and any("observation" in ast.dump(each) for each in node.decorator_list)
    ]
    assert [each["name"] for each in seen["observations"]] == measured


def test_version_is_the_same_in_name_pin_and_verdict(verdict: dict[str, Any]) -> None:
    pin = re.search(r"^flwr==(\S+)$", (_AUDITS / "flower/requirements.txt").read_text(), re.M)
    assert pin is not None
    assert verdict["adapter"] == f"flwr {pin[1]} SecAgg+"
    assert _newest(".json").name.endswith(f"-flower-secaggplus-{pin[1]}.json")


def test_adapter_is_at_most_a_hundred_lines() -> None:
    tree = ast.parse((_AUDITS / "flower" / "secaggplus_adapter.py").read_text())
    (adapter,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert adapter.end_lineno is not None
    assert adapter.end_lineno - adapter.lineno < 100


def test_report_tells_nothing_of_the_machine_but_its_class(report: str) -> None:
    texts = [report, _newest(".json").read_text(), _newest(".observations.json").read_text()]
    for text in texts:
        assert not re.search(r"(?<![\w.`/])/(?:work|home|root|tmp|Users)/", text)
