"""Who may import whom, read from the syntax tree: every import counts, also inside functions.

The table is that of docs/adr/0009-federation-is-the-top-of-the-tree.md.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "privfedrl"
ROOT = "privfedrl"

# package -> packages of this library that it may import; itself is always allowed
ALLOWED = {
    "errors": set(),
    "durable_files": {"errors"},
    # protection: numpy, scipy, cryptography, msgspec; knows nothing of learning
    "primitives": {"errors"},
    "privacy": {"errors"},
    "encoding": {"errors", "privacy"},
    "parties": {"errors", "durable_files", "primitives"},
    # two ways to form a sum; they never import each other
    "secagg": {"errors", "primitives", "parties"},
    "he": {"errors", "primitives", "parties"},
    # learning: knows nothing of protection but the unit of privacy
    "envs": {"errors"},
    "rollout": {"errors", "envs"},
    "training": {"errors", "durable_files", "rollout", "privacy.units"},
    # a plan names the parameters of all of them
    "plan": {"errors", "privacy.units"},
    # where the two sides meet
    "federation": {
        "errors",
        "durable_files",
        "primitives.random",
        "privacy",
        "encoding",
        "parties",
        "secagg",
        "he",
        "envs",
        "rollout",
        "training",
        "plan",
    },
    # what verifies from outside: nothing below imports it, and it needs no secret and no torch
    "audit": {"errors", "parties", "secagg", "he"},
    "cli": {"errors", "durable_files", "privacy", "plan", "parties", "audit", "federation"},
    # the kit: only its own adapter, vectors and mutants know our protocol
    "testing": {"errors", "durable_files", "primitives", "parties", "secagg", "he"},
    "__main__": {"cli"},
    # the root re-exports lazily
    "__init__": {
        "errors",
        "envs",
        "federation",
        "plan",
        "parties",
        "privacy",
        "rollout",
        "training",
    },
}
# the leak linter lints trainers, through encoding, against what is charged
LINTER = {"encoding", "privacy", "rollout", "training"}
# the promise of a plan needs every lower layer; the import happens when check() is called
EXCEPTIONS = {("plan/plan.py", "federation.promise")}
THIRD_PARTY = {
    "primitives": {"numpy", "cryptography"},
    "encoding": {"numpy", "scipy"},
    "privacy": {"numpy", "scipy", "msgspec", "cryptography"},
    "parties": {"numpy", "msgspec"},
    "secagg": {"numpy", "msgspec"},
    "he": {"numpy", "msgspec", "tenseal", "zstandard"},
    "audit": set(),
    "testing": {"numpy", "scipy", "cryptography", "msgspec", "hypothesis"},
    "plan": set(),
    "errors": set(),
    "durable_files": set(),
}
FILES = sorted(SOURCE.rglob("*.py"))


def _package(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def _imports(path: Path) -> Iterator[str]:
    """Absolute names of everything that ``path`` imports, ``from m import n`` as m.n and m."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == ROOT:
                yield from (f"{ROOT}.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


def _own(path: Path) -> set[str]:
    return {name.removeprefix(f"{ROOT}.") for name in _imports(path) if name.startswith(f"{ROOT}.")}


def _is_allowed(name: str, path: Path) -> bool:
    package = _package(path)
    options = ALLOWED[package] | {package}
    if package == "testing" and path.stem.startswith("isolation"):
        options |= LINTER
    return any(name == option or name.startswith(f"{option}.") for option in options)


def test_every_package_has_a_row_in_the_table() -> None:
    assert {_package(path) for path in FILES} == set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_one_way(path: Path) -> None:
    relative = str(path.relative_to(SOURCE))
    wrong = {
        name
        for name in _own(path)
        if not _is_allowed(name, path) and (relative, name) not in EXCEPTIONS
    }
    assert not wrong, f"{relative} must not import {sorted(wrong)}"


def test_the_learning_and_the_protection_side_never_meet_below_federation() -> None:
    learning, protection = (
        {"envs", "rollout", "training"},
        {
            "primitives",
            "encoding",
            "parties",
            "secagg",
            "he",
        },
    )
    for path in FILES:
        tops = {name.split(".")[0] for name in _own(path)}
        if _package(path) in learning:
            assert not tops & (protection | {"federation", "plan"}), path
        if _package(path) in protection | {"privacy"}:
            assert not tops & (learning | {"federation", "plan"}), path


def test_plan_reaches_up_once_and_only_when_it_is_called() -> None:
    runtime = [
        node
        for path in sorted((SOURCE / "plan").glob("*.py"))
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(ROOT)
    ]
    assert [str(node.module) for node in runtime] == ["privfedrl.federation.promise"]


def test_nothing_imports_the_command_line() -> None:
    for path in FILES:
        if _package(path) not in ("cli", "__main__"):  # python -m privfedrl is the command line
            assert not {name for name in _own(path) if name.split(".")[0] == "cli"}, path


@pytest.mark.parametrize("package", sorted(THIRD_PARTY))
def test_protection_needs_only_the_named_libraries(package: str) -> None:
    import sys

    known = set(sys.stdlib_module_names) | {ROOT} | THIRD_PARTY[package]
    for path in FILES:
        if _package(path) == package:
            found = {name.split(".")[0] for name in _imports(path)}
            assert found <= known, f"{path}: {sorted(found - known)}"


def test_primitives_are_never_exported_further() -> None:
    """Hazardous building blocks are reached by their own module path, not through a package."""
    for path in FILES:
        if path.name == "__init__.py":
            assert not {n for n in _own(path) if n.split(".")[0] == "primitives"}, path
