"""What a newcomer reads runs, and the repository is in the shape that it says."""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import privfedrl
from privfedrl import Plan
from privfedrl.plan import AdaptiveClip

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "privfedrl"
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
PLANS = sorted((ROOT / "examples" / "plans").glob("*.toml"))
# the two protocol participants are one state machine each, and the longest
MAX_LINES = 560
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md", "audits/claims.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
# what a run leaves in its directory, and what a reader writes
RUN_FILES = {"plan.toml"}


def _run(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error::ResourceWarning"},
    )


def test_the_readme_has_code_to_run() -> None:
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_every_code_block_of_the_readme_runs(block: str, tmp_path: Path) -> None:
    done = _run(["-c", block], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ResourceWarning" not in done.stderr
    assert done.stdout.strip()


def test_the_figures_of_the_readme_are_those_of_the_demo_plan() -> None:
    for view in Plan.from_toml(ROOT / "examples" / "plans" / "cartpole_fleet.toml").check().views:
        assert f"| {view.epsilon:.4f} | {view.epsilon_replace:.4f} |" in README, view.adversary


def test_the_rounds_that_documents_name_are_those_of_the_demo_plan() -> None:
    rounds = Plan.from_toml(ROOT / "examples" / "plans" / "cartpole_fleet.toml").federation.rounds
    for path in (ROOT / "README.md", ROOT / "docs" / "quickstart.md"):
        named = re.findall(r"(\d+) rounds", path.read_text(encoding="utf-8"))
        assert named, path.name
        assert {int(number) for number in named} == {rounds}, path.name


def test_the_embedding_example_trains_and_leaves_evidence(tmp_path: Path) -> None:
    done = _run([str(ROOT / "examples" / "embedding.py"), str(tmp_path / "run")], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ResourceWarning" not in done.stderr
    assert "refuses" not in done.stdout
    assert len(list((tmp_path / "run").glob("transcript-*.bin"))) == 3
    assert (tmp_path / "run" / "policy.safetensors").stat().st_size > 0
    assert done.stdout.count("ledger of") == 2


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_and_file_that_a_document_mentions_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for dotted in set(re.findall(r"\b(?:pf|privfedrl)\.([A-Za-z_][\w.]*\w)", text)):
        assert _resolves(dotted), dotted
    for file in set(re.findall(r"`([\w/]+\.(?:py|toml|md|txt))`", text)):
        assert any((base / file).exists() for base in (ROOT, SOURCE)) or file in RUN_FILES, file


def _resolves(dotted: str) -> bool:
    value: object = privfedrl
    for index, name in enumerate(dotted.split(".")):
        if not hasattr(value, name):
            with contextlib.suppress(ImportError):
                importlib.import_module(f"privfedrl.{'.'.join(dotted.split('.')[: index + 1])}")
        if not hasattr(value, name):
            return False
        value = getattr(value, name)
    return True


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.name)
def test_an_example_plan_is_the_template_and_keeps_its_promise(path: Path) -> None:
    assert path.is_symlink()
    assert path.resolve() == SOURCE / "plans" / path.name
    promised = Plan.from_toml(path).check()
    assert promised.views
    assert json.dumps(promised.to_dict(), allow_nan=False)


def test_every_template_is_an_example() -> None:
    assert {path.name for path in PLANS} == {
        path.name for path in (SOURCE / "plans").glob("*.toml")
    }


def test_every_key_of_a_plan_is_documented() -> None:
    text = (ROOT / "docs" / "plans.md").read_text(encoding="utf-8")
    plan = Plan.from_toml(ROOT / "examples" / "plans" / "cartpole_fleet.toml")
    plan = plan.replace("privacy", adaptive_clip=AdaptiveClip(low=0.5, high=2.0))
    named = set(re.findall(r"^\| `([\w.]+)` \|", text, flags=re.MULTILINE))
    assert named == {"name", *_keys(tomllib.loads(plan.to_toml())), "protection.threshold"}


def _keys(table: dict[str, object], path: str = "") -> set[str]:
    found: set[str] = set()
    for name, value in table.items():
        if isinstance(value, dict):
            found |= _keys(value, f"{path}{name}.")
        else:
            found.add(f"{path}{name}")
    return found


def test_no_test_is_skipped_or_expected_to_fail() -> None:
    forbidden = {"skip", "skipif", "xfail", "SkipTest", "expectedFailure"}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute | ast.Name):
                name = node.attr if isinstance(node, ast.Attribute) else node.id
                assert name not in forbidden, f"{path.relative_to(ROOT)}:{node.lineno} uses {name}"


def test_every_library_that_a_test_imports_or_skips_is_pinned() -> None:
    """So that nothing is skipped in the environment that ``make test`` builds."""
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    }
    for path in sorted((ROOT / "tests").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"importorskip\(\s*\"([\w.]+)\"", text):
            assert name.split(".")[0].replace("_", "-") in pinned, f"{path.name}: {name}"


def test_no_source_file_is_too_long_to_read() -> None:
    long = {
        str(path.relative_to(SOURCE)): lines
        for path in SOURCE.rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert not long, f"over {MAX_LINES} lines: {long}"


def test_constraints_pin_exactly_and_name_no_machine() -> None:
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    assert "torch==2.13.0" in lines
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.]+", line), line


def test_the_version_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert privfedrl.__version__ == project["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version: {project['version']}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
