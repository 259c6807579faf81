"""``plan``, ``ledger``, ``statement`` and ``version``: what they print and how they exit."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from privfedrl.cli.plan import template_names
from privfedrl.plan import Plan
from privfedrl.privacy import Ledger

EXAMPLES = Path(__file__).parents[2] / "examples" / "plans"


# --- plan ---------------------------------------------------------------------------------------


def test_plan_check_prints_the_promise(tmp_path: Path, call: Any, plan_text: str) -> None:
    (tmp_path / "plan.toml").write_text(plan_text)
    result = call("plan", "check", tmp_path / "plan.toml")
    assert result.exit_code == 0
    assert "coordinator+1" in result.stdout
    as_json = call("plan", "check", tmp_path / "plan.toml", "--json")
    found = json.loads(as_json.stdout)
    assert found["ok"] is True
    assert found["plan_digest"] == Plan.from_text(plan_text).digest.hex()
    assert {view["adversary"] for view in found["views"]} >= {"public", "one agent"}


def test_plan_check_lists_every_problem(tmp_path: Path, call: Any, plan_text: str) -> None:
    text = plan_text.replace("agents = 5", "agents = 0").replace("epsilon = 5.0", "epsilon = -1.0")
    (tmp_path / "plan.toml").write_text(text)
    result = call("plan", "check", tmp_path / "plan.toml", "--json")
    assert result.exit_code == 2
    found = json.loads(result.stdout)
    assert found["ok"] is False
    assert any("fleet.agents" in line for line in found["problems"])
    assert any("privacy.epsilon" in line for line in found["problems"])
    assert "fleet.agents" in call("plan", "check", tmp_path / "plan.toml").stderr


def test_plan_check_answers_in_json_when_there_is_no_file(tmp_path: Path, call: Any) -> None:
    result = call("plan", "check", tmp_path / "absent.toml", "--json")
    assert result.exit_code == 2
    found = json.loads(result.stdout)
    assert found["ok"] is False
    assert "cannot be read" in found["problems"][0]


@pytest.mark.parametrize("name", template_names())
def test_every_template_is_a_plan_that_keeps_its_promise(
    name: str, tmp_path: Path, call: Any
) -> None:
    printed = call("plan", "new", name)
    assert printed.exit_code == 0
    plan = Plan.from_text(printed.stdout)
    assert Plan.from_text(plan.to_toml()) == plan
    out = tmp_path / "plan.toml"
    assert call("plan", "new", name, "--out", out).exit_code == 0
    assert out.read_text() == printed.stdout
    assert call("plan", "check", out).exit_code == 0
    refused = call("plan", "new", name, "--out", out)
    assert refused.exit_code == 2
    assert "exists already" in refused.stderr


def test_the_templates_are_the_examples() -> None:
    assert template_names() == sorted(path.stem for path in EXAMPLES.glob("*.toml"))


def test_a_template_that_cannot_be_written_exits_with_2(tmp_path: Path, call: Any) -> None:
    result = call("plan", "new", template_names()[0], "--out", tmp_path / "absent" / "plan.toml")
    assert result.exit_code == 2
    assert "plan.toml" in result.stderr


def test_an_unknown_template_names_the_known_ones(call: Any) -> None:
    for name in ("nothing", "../cartpole_fleet", ""):
        result = call("plan", "new", name)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert all(known in result.stderr for known in template_names())


# --- ledger -------------------------------------------------------------------------------------


def test_ledger_show_gives_epsilon_per_unit_and_adversary(trained: Any, call: Any) -> None:
    _, out, result = trained
    found = json.loads(call("ledger", "show", out / "ledger.db", "--json").stdout)
    (account,) = found["accounts"]
    assert account["epsilon"] == json.loads(result.stdout)["epsilon"]
    assert account["epsilon_replace"] > account["epsilon"]
    assert (account["releases"], account["unsettled"]) == (2, 0)
    text = call("ledger", "show", out / "ledger.db").stderr
    assert "trajectory" in text
    assert found["head"] in text


def test_ledger_verify_accepts_every_earlier_head_as_anchor(trained: Any, call: Any) -> None:
    _, out, _ = trained
    with Ledger.open(out / "ledger.db", read_only=True) as ledger:
        heads = [entry.hash for entry in ledger.entries()]
    for head in heads:
        result = call("ledger", "verify", out / "ledger.db", "--anchor", head, "--json")
        assert result.exit_code == 0
        assert json.loads(result.stdout) == {
            "ok": True,
            "entries": 4,
            "head": heads[-1],
            "reservations": 2,
            "settled": 2,
            "anchored": True,
            "checkpoint": None,
        }
    assert call("ledger", "verify", out / "ledger.db").exit_code == 0


def test_ledger_verify_refuses_a_foreign_anchor_and_a_malformed_one(
    trained: Any, call: Any
) -> None:
    _, out, _ = trained
    foreign = call("ledger", "verify", out / "ledger.db", "--anchor", "00" * 32, "--json")
    assert foreign.exit_code == 1
    assert json.loads(foreign.stdout)["error"] == "LedgerIntegrity"
    malformed = call("ledger", "verify", out / "ledger.db", "--anchor", "xyz")
    assert malformed.exit_code == 2
    assert "anchor" in malformed.stderr


def test_ledger_verify_finds_a_changed_byte(trained: Any, call: Any, tmp_path: Path) -> None:
    _, out, _ = trained
    with closing(sqlite3.connect(out / "ledger.db")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    copy = tmp_path / "ledger.db"
    shutil.copy(out / "ledger.db", copy)
    data = copy.read_bytes()
    where = data.index(b"coordinator+1")
    copy.write_bytes(data[:where] + b"C" + data[where + 1 :])
    result = call("ledger", "verify", copy)
    assert result.exit_code == 1
    assert "LedgerIntegrity" in result.stderr


def test_ledger_commands_need_a_ledger(tmp_path: Path, call: Any) -> None:
    (tmp_path / "text").write_text("not a ledger at all, only some text " * 50)
    for command in ("show", "verify", "export"):
        missing = call("ledger", command, tmp_path / "absent.db")
        assert (missing.exit_code, "does not exist" in missing.stderr) == (2, True)
        assert not (tmp_path / "absent.db").exists()
        assert call("ledger", command, tmp_path / "text").exit_code == 1


def test_ledger_export_is_every_entry_as_json(trained: Any, call: Any) -> None:
    _, out, _ = trained
    entries = json.loads(call("ledger", "export", out / "ledger.db").stdout)
    assert [entry["kind"] for entry in entries] == ["reserve", "settle"] * 2
    agent = json.loads(call("ledger", "export", out / "agents/agent-000/ledger.db").stdout)
    assert len(agent) == 4


def test_an_unbounded_ledger_is_shown_as_such(tmp_path: Path, call: Any, plan_text: str) -> None:
    text = plan_text.replace('unit = "traj', 'mechanism = "none"\nunit = "traj')
    text = text.replace("rounds = 2", "rounds = 1")
    (tmp_path / "plan.toml").write_text(text)
    out = tmp_path / "run"
    assert call("train", tmp_path / "plan.toml", "--out", out, "--workers", 1).exit_code == 0
    found = json.loads(call("ledger", "show", out / "ledger.db", "--json").stdout)
    assert found["accounts"][0]["epsilon"] is None
    assert "unbounded" in call("ledger", "show", out / "ledger.db").stderr
    json.loads(call("ledger", "export", out / "ledger.db").stdout)


# --- statement, version -------------------------------------------------------------------------


def test_the_statement_of_a_run_has_18_fields_and_its_epsilon(trained: Any, call: Any) -> None:
    _, out, _ = trained
    text = call("statement", out)
    assert text.exit_code == 0
    assert "GUARANTEE STATEMENT" in text.stdout
    assert "epsilon = " in text.stdout
    assert len(json.loads(call("statement", out, "--json").stdout)) == 18


def test_a_statement_with_an_unknown_field_is_refused(
    trained: Any, call: Any, tmp_path: Path
) -> None:
    data = json.loads((trained[1] / "statement.json").read_text())
    data["mechanism"]["noise_location"] = "unknown"
    (tmp_path / "statement.json").write_text(json.dumps(data))
    result = call("statement", tmp_path)
    assert result.exit_code == 1
    assert "epsilon =" not in result.stdout
    assert "noise" in result.stderr


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", b"[]", b"{}"])
def test_a_directory_without_a_sound_statement_is_refused(
    tmp_path: Path, call: Any, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "statement.json").write_bytes(content)
    result = call("statement", tmp_path)
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    assert result.stderr


def test_version_names_the_crypto(call: Any) -> None:
    found = json.loads(call("version", "--crypto", "--json").stdout)
    for name in ("openssl", "aes instructions", "entropy source", "cryptography", "numpy", "suite"):
        assert found[name]
    assert list(json.loads(call("version", "--json").stdout)) == ["privfedrl"]
    assert "cryptography" in call("version", "--crypto").stdout


def test_reading_commands_load_no_torch(trained: Any) -> None:
    """One process that does what an auditor does, without the learning side."""
    plan, out, _ = trained
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom privfedrl.cli.main import app\n"
        f"for args in (['plan', 'check', {str(plan)!r}], ['statement', {str(out)!r}],\n"
        f"             ['ledger', 'verify', {str(out / 'ledger.db')!r}]):\n"
        "    assert CliRunner().invoke(app, args).exit_code == 0, args\n"
        "assert not {'torch', 'gymnasium', 'opacus', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_names_every_command(call: Callable[..., Any]) -> None:
    text = call("--help").stdout
    for command in ("train", "plan", "ledger", "statement", "version"):
        assert command in text


# --- plan check --protection --------------------------------------------------------------------


def test_plan_check_says_what_the_same_plan_promises_under_encryption(
    tmp_path: Path, call: Any, plan_text: str
) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(plan_text)
    found = {
        kind: json.loads(call("plan", "check", path, "--protection", kind, "--json").stdout)
        for kind in ("pairwise", "bfv", "ckks", "none")
    }
    assert all(one["ok"] is True for one in found.values())
    assert {kind: one["protection"] for kind, one in found.items()} == {
        kind: kind for kind in found
    }
    assert len({one["plan_digest"] for one in found.values()}) == 4
    assert found["pairwise"]["plan_digest"] == Plan.from_text(plan_text).digest.hex()
    wanted = Plan.from_text(plan_text).replace("protection", kind="bfv")
    assert found["bfv"]["plan_digest"] == wanted.digest.hex()
    assert len({one["noise_multiplier"] for one in found.values()}) == 1
    views = {view["adversary"]: view for view in found["bfv"]["views"]}
    assert views["key authority"]["honest_shares"] == 1
    assert views["key authority"]["epsilon"] > views["coordinator+1"]["epsilon"]
    sizes = [found[kind]["bytes_up_per_agent_round"] for kind in ("none", "pairwise", "bfv")]
    assert sizes == sorted(sizes)
    assert "key authority" in call("plan", "check", path, "--protection", "bfv").stdout
    assert path.read_text() == plan_text  # the option changes no file


def test_plan_check_lists_every_problem_of_the_protection_that_was_asked_for(
    tmp_path: Path, call: Any, plan_text: str
) -> None:
    text = plan_text.replace("agents = 5", "agents = 65")
    text = text.replace("min_clients = 4", "min_clients = 4\nthreshold = 65")
    (tmp_path / "plan.toml").write_text(f"{text}[encoding]\nring_bits = 64\nlane_bits = 21\n")
    assert call("plan", "check", tmp_path / "plan.toml").exit_code == 0
    result = call("plan", "check", tmp_path / "plan.toml", "--protection", "bfv", "--json")
    assert result.exit_code == 2
    found = json.loads(result.stdout)
    assert found["ok"] is False
    assert [line.split(" must")[0] for line in found["problems"]] == [
        "fleet.agents",
        "encoding.lane_bits",
    ]
