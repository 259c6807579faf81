"""The report is drawn from files alone, and says what it lacks before anything else happens."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from privfedrl.envs.heterogeneity import Heterogeneity
from privfedrl.errors import MissingExtraError, StorageError
from privfedrl.federation.report import require_matplotlib, write_report
from privfedrl.federation.run_directory import HETEROGENEITY
from privfedrl.federation.simulate import Runtime, simulate


def test_a_missing_matplotlib_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"privfedrl\[report\]"):
        require_matplotlib()


def test_a_directory_without_a_run_gives_no_report(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"plan\.toml"):
        write_report(tmp_path)


def test_the_report_shows_how_different_the_environments_are(make_plan, tmp_path: Path) -> None:
    plan = make_plan(
        fleet={"level": 0.5, "varies": ("physics", "rewards")}, protection={"kind": "none"}
    )
    run = simulate(plan, out=tmp_path / "run", seed=3, runtime=Runtime(workers=1))
    path = run.path / HETEROGENEITY
    measured = Heterogeneity.from_json(path.read_bytes())
    assert Heterogeneity.from_json(measured.to_json()) == measured
    assert len(measured.agents) == plan.fleet.agents
    assert max(agent.state_mean or 0.0 for agent in measured.agents) > 0.0
    assert max(agent.reward_mean or 0.0 for agent in measured.agents) > 0.0
    page = write_report(run.path).read_text(encoding="utf-8")
    assert "<h2>Heterogeneity</h2>" in page
    assert str(measured).splitlines()[0] in page
    assert "oracle, simulation only" in page.split("<h2>Heterogeneity</h2>")[1]
    path.write_text("[]")
    with pytest.raises(StorageError, match="heterogeneity_simulation_only"):
        write_report(run.path)
    path.unlink()  # a run of before, or of environments that nobody could measure
    assert "<h2>Heterogeneity</h2>" not in write_report(run.path).read_text(encoding="utf-8")
