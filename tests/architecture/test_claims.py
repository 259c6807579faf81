"""A claim without a test is a wish: every test that a document names must exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "audits" / "claims.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "audits" / "proofs").glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
# `tests/a/test_b.py::test_c`, `::test_c` (same file as the last one named), `::TestX::test_c`
REFERENCE = re.compile(r"(tests/[\w/]+\.py)?((?:::\w+)+)")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@cache
def _tests(path: Path) -> frozenset[str]:
    """Names of the tests in a file: functions, ``Class::method``, state machines' ``TestCase``."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}::{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {ast.unparse(target) for target in node.targets}
    return frozenset(name for name in found if name.lower().startswith("test"))


def _references(document: Path) -> list[tuple[str, str]]:
    found, last = [], ""
    for file, name in REFERENCE.findall(document.read_text(encoding="utf-8")):
        last = file or last
        assert last, f"{document.name}: {name} names no file"
        found.append((last, name.removeprefix("::")))
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_that_a_document_names_exists(document: Path) -> None:
    missing = [
        f"{file}::{name}"
        for file, name in _references(document)
        if not (ROOT / file).is_file() or name not in _tests(ROOT / file)
    ]
    assert not missing


def test_every_row_of_the_claims_names_a_module_and_a_test() -> None:
    rows = [
        line
        for line in (ROOT / "audits" / "claims.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith(("| claim", "|---"))
    ]
    assert len(rows) >= 30
    for row in rows:
        claim, modules, tests, proof = _cells(row)
        assert claim, row
        assert proof, row
        assert "::test" in tests.lower(), row
        named = re.findall(r"`([\w/]+\.py)`", modules)
        assert named, row
        for module in named:
            assert (ROOT / "src" / "privfedrl" / module).is_file(), module


def _cells(row: str) -> list[str]:
    cells = [cell.strip() for cell in row.strip().strip("|").split(" | ")]
    assert len(cells) == 4, row
    return cells


def test_every_proof_is_used_by_a_claim() -> None:
    text = (ROOT / "audits" / "claims.md").read_text(encoding="utf-8")
    for proof in (ROOT / "audits" / "proofs").glob("*.md"):
        assert f"proofs/{proof.name}" in text, proof.name


@pytest.mark.parametrize(
    "document",
    [*DOCUMENTS, ROOT / "README.md", ROOT / "CHANGELOG.md"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    for target in LINK.findall(document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} -> {target}"
