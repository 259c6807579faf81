"""``plan check`` shows the neighbourhood of a plan: short, in full, as JSON and as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from privfedrl.federation.tradeoff import tradeoff
from privfedrl.plan import Plan


@pytest.fixture
def plan_file(tmp_path: Path, plan_text: str) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(plan_text)
    return path


def test_plan_check_always_ends_with_a_short_trade_off(
    plan_file: Path, plan_text: str, call: Any
) -> None:
    result = call("plan", "check", plan_file)
    assert result.exit_code == 0
    short = tradeoff(Plan.from_text(plan_text)).summary()
    assert result.stdout.endswith(f"{short}\n")
    assert len(short.splitlines()) <= 8


def test_the_full_table_replaces_the_short_one(plan_file: Path, plan_text: str, call: Any) -> None:
    found = tradeoff(Plan.from_text(plan_text))
    result = call("plan", "check", plan_file, "--tradeoff")
    assert result.stdout.endswith(f"{found}\n")
    assert found.summary() not in result.stdout
    for block in ("-- by epsilon", "-- by agents", "-- by rounds"):
        assert block in result.stdout


def test_json_holds_the_table_when_it_is_asked_for(
    plan_file: Path, plan_text: str, call: Any
) -> None:
    plain = json.loads(call("plan", "check", plan_file, "--json").stdout)
    assert "tradeoff" not in plain
    full = json.loads(call("plan", "check", plan_file, "--json", "--tradeoff").stdout)
    table = full.pop("tradeoff")
    assert full == plain
    assert table == json.loads(json.dumps(tradeoff(Plan.from_text(plan_text)).to_dict()))
    assert table["plan_digest"] == plain["plan_digest"]


def test_the_table_is_about_the_protection_that_was_asked_for(plan_file: Path, call: Any) -> None:
    asked = ("plan", "check", plan_file, "--json", "--tradeoff", "--protection", "bfv")
    found = json.loads(call(*asked).stdout)
    assert found["tradeoff"]["plan_digest"] == found["plan_digest"]


def test_plot_writes_a_picture_and_says_nothing_more(plan_file: Path, call: Any) -> None:
    picture = plan_file.with_name("tradeoff.png")
    plain = call("plan", "check", plan_file)
    drawn = call("plan", "check", plan_file, "--plot", picture)
    assert (drawn.exit_code, drawn.stdout) == (0, plain.stdout)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_exits_with_2(plan_file: Path, call: Any) -> None:
    for name in ("tradeoff.pdf", "absent/tradeoff.png"):
        result = call("plan", "check", plan_file, "--plot", plan_file.parent / name, "--json")
        assert result.exit_code == 2
        assert json.loads(result.stdout)["ok"] is False
    wrong = call("plan", "check", plan_file, "--plot", plan_file)
    assert wrong.exit_code == 2
    assert "must end in .png" in wrong.stderr
    assert Plan.from_toml(plan_file)  # a plan is not overwritten by its picture
