"""``train``: one JSON object, files that say what they are, exit codes that can be trusted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from privfedrl.errors import StorageError
from privfedrl.federation.report import ORACLE_LABEL, write_report
from privfedrl.plan import Plan
from privfedrl.privacy import Ledger

KEYS = (
    "plan_digest unit adversary epsilon delta rounds agents episodes_per_agent mean_return_first "
    "mean_return_last greedy_return env_steps bytes_up_per_agent_round wall_s protection "
    "ledger_head"
)


def test_json_is_one_object_with_exactly_the_documented_keys_and_nothing_else(trained: Any) -> None:
    plan, out, result = trained
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert list(summary) == KEYS.split()
    assert summary["plan_digest"] == Plan.from_toml(plan).digest.hex()
    assert (summary["unit"], summary["adversary"]) == ("trajectory", "coordinator+1")
    assert 0 < summary["epsilon"] <= 5.0
    assert (summary["rounds"], summary["agents"], summary["episodes_per_agent"]) == (2, 5, 8)
    assert summary["protection"] == "pairwise"
    with Ledger.open(out / "ledger.db", read_only=True) as ledger:
        assert summary["ledger_head"] == ledger.head
    assert str(out) in result.stderr  # the report's path goes to people


def test_the_directory_holds_what_was_promised(trained: Any) -> None:
    _, out, _ = trained
    expected = "policy.safetensors ledger.db metrics.jsonl statement.json transcript report.html"
    for name in expected.split():
        assert (out / name).exists(), name
    keys = list((out / "keys").iterdir())
    assert len(keys) == 6
    assert all(path.stat().st_mode & 0o077 == 0 for path in keys)
    assert (out / "keys").stat().st_mode & 0o077 == 0


def test_people_get_a_table_on_standard_error_and_nothing_on_standard_output(
    trained: Any, call: Callable[..., Any]
) -> None:
    plan, out, _ = trained
    result = call("train", plan, "--out", out, "--resume")
    assert result.exit_code == 0
    assert result.stdout == ""
    for expected in ("epsilon spent", "oracle: mean training return", "ledger head", "report:"):
        assert expected in result.stderr


def test_a_finished_run_is_not_overwritten(trained: Any, call: Callable[..., Any]) -> None:
    plan, out, _ = trained
    before = (out / "metrics.jsonl").read_bytes()
    result = call("train", plan, "--out", out, "--json")
    assert result.exit_code == 2
    error = json.loads(result.stdout)
    assert error["error"] == "StorageError"
    assert "holds a run already" in error["message"]
    assert "holds a run already" in result.stderr.replace("\n", " ")
    assert (out / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("agents = 5", "agents = 0", "fleet.agents"),
        ("agents = 5", "agent = 5", "fleet.agent "),
        ("hidden = [8]", "hidden = 8", "policy.hidden"),
        ("observations = 4", "observations = 5", "observation"),
        ("max_colluding = 1", "max_colluding = 4", "privacy.max_colluding"),
    ],
)
def test_bad_plans_exit_with_2_and_name_the_parameter(
    tmp_path: Path, call: Callable[..., Any], plan_text: str, old: str, new: str, word: str
) -> None:
    (tmp_path / "plan.toml").write_text(plan_text.replace(old, new))
    result = call("train", tmp_path / "plan.toml", "--out", tmp_path / "run", "--workers", 1)
    if word == "privacy.max_colluding":
        word = "max_colluding"
    assert result.exit_code == 2
    assert word in result.stderr
    assert not (tmp_path / "run" / "policy.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(("--seed", -1), "seed"), (("--workers", -1), "workers")],
)
def test_bad_options_exit_with_2_and_name_the_parameter(
    tmp_path: Path,
    call: Callable[..., Any],
    plan_text: str,
    arguments: tuple[object, ...],
    word: str,
) -> None:
    (tmp_path / "plan.toml").write_text(plan_text)
    result = call("train", tmp_path / "plan.toml", "--out", tmp_path / "run", *arguments)
    assert result.exit_code == 2
    assert word in result.stderr


def test_missing_arguments_and_files_exit_with_2(tmp_path: Path, call: Callable[..., Any]) -> None:
    assert call("train").exit_code == 2
    assert call("train", tmp_path / "absent.toml", "--out", tmp_path / "run").exit_code == 2
    assert call("nonsense").exit_code == 2


def test_an_exhausted_budget_exits_with_1_and_keeps_earlier_rounds(
    tmp_path: Path,
    call: Callable[..., Any],
    plan_text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import privfedrl.federation.simulation as simulation

    def abort_later(names: Any, *, round_index: int, attempt: int, **_: Any) -> dict[str, int]:
        return dict.fromkeys(names[:3], 2) if round_index == 2 else {}

    monkeypatch.setattr(simulation, "dropout_schedule", abort_later)
    text = plan_text.replace('unit = "trajectory"', 'unit = "agent"').replace(
        "rounds = 2", 'rounds = 4\nstrategy = "fedavg"'
    )
    text = text.replace("[privacy.mean_return]\nlow = 0.0\nhigh = 60.0\n", "")
    (tmp_path / "plan.toml").write_text(text)
    arguments = (tmp_path / "plan.toml", "--out", tmp_path / "run", "--workers", 1, "--json")
    result = call("train", *arguments)
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"] == "BudgetExceeded"
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["round"] for row in rows] == [0, 1]
    again = call("train", *arguments, "--resume")
    assert (again.exit_code, json.loads(again.stdout)["error"]) == (1, "BudgetExceeded")


def test_an_edited_ledger_exits_with_1(
    tmp_path: Path, call: Callable[..., Any], plan_text: str
) -> None:
    (tmp_path / "plan.toml").write_text(plan_text.replace("rounds = 2", "rounds = 1"))
    arguments = (tmp_path / "plan.toml", "--out", tmp_path / "run", "--workers", 1, "--json")
    assert call("train", *arguments).exit_code == 0
    for path in (tmp_path / "run").glob("ledger.db*"):
        path.unlink()
    result = call("train", *arguments, "--resume")
    assert (result.exit_code, json.loads(result.stdout)["error"]) == (1, "LedgerIntegrity")


# --- the report ---------------------------------------------------------------------------------


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]


def test_the_report_is_self_contained_and_labels_what_only_a_simulation_knows(
    trained: Any,
) -> None:
    _, out, _ = trained
    text = (out / "report.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?://|@import|url\(", text)
    assert text.count(ORACLE_LABEL) >= 3
    assert "GUARANTEE STATEMENT" in text
    for row in re.findall(r"<tr>.*?</tr>", text):
        if "return" in row:
            assert ORACLE_LABEL in row


def test_the_pictures_are_pictures(trained: Any) -> None:
    _, out, _ = trained
    pictures = sorted(path.name for path in out.glob("*.png"))
    assert pictures == ["bytes.png", "epsilon.png", "return.png", "time.png"]
    for name in pictures:
        data = (out / name).read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        assert len(data) > 5_000


def test_the_report_of_a_control_run_says_that_nothing_is_promised(
    tmp_path: Path, call: Callable[..., Any], plan_text: str
) -> None:
    text = plan_text.replace('unit = "traj', 'mechanism = "none"\nunit = "traj')
    text = text.replace("rounds = 2", "rounds = 1").replace('"tiny"', '"<script>x</script>"')
    (tmp_path / "plan.toml").write_text(text)
    arguments = (tmp_path / "plan.toml", "--out", tmp_path / "run", "--workers", 1, "--json")
    result = call("train", *arguments)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["epsilon"] is None
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "no promise" in page
    assert "NO DIFFERENTIAL PRIVACY" in page
    assert "<script" not in page
    assert "epsilon =" not in page


def test_a_directory_without_a_complete_run_has_no_report(tmp_path: Path, trained: Any) -> None:
    with pytest.raises(StorageError):
        write_report(tmp_path)
    (tmp_path / "plan.toml").write_bytes((trained[1] / "plan.toml").read_bytes())
    with pytest.raises(StorageError, match="no complete run"):
        write_report(tmp_path)


# --- homomorphic runs ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encrypted(
    tmp_path_factory: pytest.TempPathFactory, call: Callable[..., Any], plan_text: str
) -> tuple[Path, Path, Any]:
    """The plan file of ``trained``, run with --protection bfv."""
    folder = tmp_path_factory.mktemp("encrypted")
    (folder / "plan.toml").write_text(plan_text)
    arguments = ("--out", folder / "run", "--seed", 7, "--workers", 1, "--json")
    result = call("train", folder / "plan.toml", "--protection", "bfv", *arguments)
    return folder / "plan.toml", folder / "run", result


def test_a_plan_is_trained_under_encryption_by_one_option(encrypted: Any, trained: Any) -> None:
    plan, out, result = encrypted
    assert result.exit_code == 0, result.stderr
    summary, masked = json.loads(result.stdout), json.loads(trained[2].stdout)
    assert list(summary) == KEYS.split()
    assert summary["protection"] == "bfv"
    assert summary["adversary"] == "coordinator+1"
    wanted = Plan.from_toml(plan).replace("protection", kind="bfv")
    assert summary["plan_digest"] == wanted.digest.hex() != masked["plan_digest"]
    assert Plan.from_toml(out / "plan.toml") == wanted
    assert summary["epsilon"] == masked["epsilon"]
    # the same seed: the first round's experience does not depend on how sums are formed
    assert summary["mean_return_first"] == masked["mean_return_first"]
    assert summary["bytes_up_per_agent_round"] > masked["bytes_up_per_agent_round"]
    for path in (out / "ledger.db", out / "agents" / "key-authority" / "ledger.db"):
        with Ledger.open(path, read_only=True) as ledger:
            assert ledger.verify().settled == 2


def test_an_encrypted_run_goes_on_only_under_its_own_protection(
    encrypted: Any, call: Callable[..., Any]
) -> None:
    plan, out, _ = encrypted
    refused = call("train", plan, "--out", out, "--resume", "--json")
    assert refused.exit_code == 2
    assert "cannot change its plan" in json.loads(refused.stdout)["message"]
    again = call("train", plan, "--out", out, "--resume", "--protection", "bfv")
    assert again.exit_code == 0
    assert "bfv" in again.stderr


def test_the_report_and_statement_of_an_encrypted_run_name_the_protection(
    encrypted: Any, call: Callable[..., Any]
) -> None:
    _, out, _ = encrypted
    page = " ".join((out / "report.html").read_text(encoding="utf-8").split())
    assert "bfv, threshold 4 of 5" in page
    assert "pfrl-he/1 with bfv-4096-std" in page
    shown = call("statement", out)
    assert shown.exit_code == 0
    assert "re-added by: key-authority" in " ".join(shown.stdout.split())


def test_the_records_of_an_encrypted_run_pass_the_audit_and_altered_ones_do_not(
    encrypted: Any, call: Callable[..., Any], tmp_path: Path
) -> None:
    _, out, _ = encrypted
    done = call("audit", "run", "secagg-transcript", out, "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is True
    expected = "homomorphic encryption with a key authority"
    assert [one["protection"] for one in report["rounds"]] == [expected] * 2
    for index, path in enumerate(sorted((out / "transcript").glob("*.bin"))):
        data = bytearray(path.read_bytes())
        if index == 0:
            data[len(data) // 2] ^= 1
        (tmp_path / path.name).write_bytes(bytes(data))
    pinned = ("--registry", out / "registry.json", "--json")
    altered = call("audit", "run", "secagg-transcript", tmp_path, *pinned)
    assert altered.exit_code == 1
    problems = [one["problems"] for one in json.loads(altered.stdout)["rounds"]]
    assert problems[0]
    assert any("must follow" in line for line in problems[1])


@pytest.mark.parametrize("command", [("train",), ("plan", "check")])
def test_an_unknown_protection_exits_with_2_and_lists_the_known_ones(
    tmp_path: Path, call: Callable[..., Any], plan_text: str, command: tuple[str, ...]
) -> None:
    (tmp_path / "plan.toml").write_text(plan_text)
    out = ("--out", tmp_path / "run") if command == ("train",) else ()
    result = call(*command, tmp_path / "plan.toml", *out, "--protection", "paillier")
    assert result.exit_code == 2
    assert result.stdout == ""
    for word in ("paillier", "pairwise", "bfv", "ckks", "none"):
        assert word in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_plan_that_encryption_does_not_fit_exits_with_2_and_names_the_parameter(
    tmp_path: Path, call: Callable[..., Any], plan_text: str
) -> None:
    (tmp_path / "plan.toml").write_text(f"{plan_text}[encoding]\nring_bits = 64\nlane_bits = 21\n")
    arguments = (tmp_path / "plan.toml", "--out", tmp_path / "run", "--protection", "bfv", "--json")
    result = call("train", *arguments)
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"] == "ConfigurationError"
    assert "encoding.lane_bits must be absent" in json.loads(result.stdout)["message"]
    assert not (tmp_path / "run").exists()
