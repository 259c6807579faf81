"""Verdicts: three formats of one truth, and an exit code that CI can trust."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from privfedrl.testing.__main__ import main
from privfedrl.testing.pairwise_guarded import GuardedPairwiseAdapter
from privfedrl.testing.verdict import (
    Outcome,
    Status,
    Verdict,
    attack_script,
    reference_of,
    steps_script,
)

HOSTILE = 'quote " and """ and \\ and \x00 and <tag> & \ud800'


@pytest.fixture
def verdict() -> Verdict:
    outcomes = (
        Outcome(id="A1-x", title="one", status=Status.PASSED, seconds=0.25),
        Outcome(id="A2-x", title="two", status=Status.FAILED, detail=HOSTILE, script="print(1)"),
        Outcome(id="A3-x", title="three", status=Status.UNCLAIMED, detail="AGREEMENT"),
        Outcome(id="A4-x", title="four", status=Status.NOT_APPLICABLE, detail="no forging"),
    )
    return Verdict(
        adapter="mine <1>",
        reference="my.module:Mine",
        profile="quick",
        claims=("EXACT_SUM",),
        outcomes=outcomes,
    )


def test_junit_parses_and_counts_what_happened(verdict: Verdict) -> None:
    suite = ET.fromstring(verdict.to_junit())
    assert suite.tag == "testsuite"
    counts = {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "4", "failures": "1", "errors": "0", "skipped": "2"}
    cases = suite.findall("testcase")
    assert [len(case) for case in cases] == [0, 1, 1, 1]
    assert cases[1].findtext("failure") == "print(1)"
    skipped = [case.find("skipped") for case in cases[2:]]
    reasons = [each.get("message") for each in skipped if each is not None]
    assert reasons == ["unclaimed: AGREEMENT", "not-applicable: no forging"]


def test_json_holds_every_documented_field(verdict: Verdict) -> None:
    said = json.loads(verdict.to_json())
    assert said["schema"] == "privfedrl.testing/verdict-1"
    assert said["ok"] is False
    assert said["counts"] == {"passed": 1, "failed": 1, "unclaimed": 1, "not-applicable": 1}
    assert {*said} == {
        "schema", "adapter", "reference", "profile", "ok", "claims", "counts", "seconds", "outcomes"
    }  # fmt: skip
    assert {*said["outcomes"][0]} == {
        "id", "title", "status", "needs", "detail", "seconds", "script"
    }  # fmt: skip
    assert [each["status"] for each in said["outcomes"]] == [
        "passed",
        "failed",
        "unclaimed",
        "not-applicable",
    ]


def test_the_table_names_every_attack_and_the_counts(verdict: Verdict) -> None:
    lines = verdict.to_text().splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["passed", "A1-x"],
        ["failed", "A2-x"],
        ["unclaimed", "A3-x"],
        ["not-applicable", "A4-x"],
    ]
    assert lines[-1] == "1 passed, 1 failed, 1 unclaimed, 1 not-applicable"


def test_an_empty_verdict_does_not_look_like_a_pass() -> None:
    empty = Verdict(adapter="a", reference="r", profile="quick", claims=(), outcomes=())
    assert empty.to_text().endswith("nothing ran")
    assert ET.fromstring(empty.to_junit()).get("tests") == "0"


def test_scripts_compile_whatever_the_texts_hold() -> None:
    adapter = GuardedPairwiseAdapter()
    outcome = Outcome(id="A2-x", title="two", status=Status.FAILED, detail=HOSTILE[:-1])
    steps = [("deliver", 1, ("a", "b", b"\x00'\"", "kind"))]
    assert compile(steps_script(outcome, adapter, {"round": 2}, steps), "s", "exec")
    assert compile(attack_script(outcome, adapter, thorough=True), "s", "exec")
    assert reference_of(adapter) == "privfedrl.testing.pairwise_guarded:GuardedPairwiseAdapter"


def test_the_command_exits_0_without_and_1_with_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter_of_mine.py").write_text(
        "from privfedrl.testing.pairwise_guarded import GuardedPairwiseAdapter\n"
        "class Mine(GuardedPairwiseAdapter):\n"
        "    def verify_transcript(self, spec, transcript):\n"
        "        return None\n"
    )
    monkeypatch.chdir(tmp_path)
    report = tmp_path / "verdict.xml"
    assert main(["--only", "A2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    found = main(
        ["adapter_of_mine:Mine", "--only", "A16-transcript", "--only", "A2", "--junit", str(report)]
    )
    assert found == 1
    said = capsys.readouterr()
    assert "1 passed, 1 failed" in said.out
    assert "run_attacks" in said.err
    assert ET.fromstring(report.read_text(encoding="utf-8")).get("failures") == "1"


@pytest.mark.parametrize(
    "arguments",
    [
        ["no_such_module_here:Mine"],
        ["privfedrl.testing.pairwise_guarded:Nobody"],
        ["nonsense"],
        ["--only", "A99"],
        ["--only", "A2", "--junit", "missing/directory/file.xml"],
    ],
)
def test_the_command_exits_2_when_it_cannot_be_asked_that(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
