"""``__all__`` is the public face of a module: sorted, complete, and nothing in it is missing."""

from __future__ import annotations

import ast
import importlib
import warnings
from pathlib import Path

import pytest

import privfedrl

SOURCE = Path(__file__).parents[2] / "src" / "privfedrl"
# a typer command is reached through its app, not imported by name
COMMANDS = {
    "cli/audit.py",
    "cli/keys.py",
    "cli/ledger.py",
    "cli/plan.py",
    "cli/registry.py",
}


def _declares(path: Path) -> list[str] | None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


def _dotted(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = sorted(path for path in SOURCE.rglob("*.py") if _declares(path) is not None)
IDS = [str(path.relative_to(SOURCE)) for path in MODULES]


def test_every_module_with_code_says_what_is_public() -> None:
    for path in SOURCE.rglob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        if any(isinstance(node, ast.ClassDef | ast.FunctionDef) for node in body):
            assert _declares(path) is not None, path


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_public_names_are_sorted_and_exist(path: Path) -> None:
    names = _declares(path)
    assert names is not None
    # the order of isort and ruff (RUF022): constants, then classes, then the rest
    assert names == sorted(names, key=_order), f"{path}: {names}"
    assert len(names) == len(set(names))
    with warnings.catch_warnings():
        # typer re-exports names that click has deprecated; nothing here uses them
        warnings.filterwarnings("ignore", "'click", DeprecationWarning)
        module = importlib.import_module(_dotted(path))
    missing = [name for name in names if not hasattr(module, name)]
    assert not missing, f"{path}: {missing}"


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_a_public_class_or_function_without_underscore_is_in_all(path: Path) -> None:
    names = _declares(path)
    assert names is not None
    relative = str(path.relative_to(SOURCE))
    defined = {
        node.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
        and not node.name.startswith("_")
        and not (relative in COMMANDS and node.decorator_list)
    }
    assert defined <= set(names), f"{relative}: {sorted(defined - set(names))} not in __all__"


def test_the_public_face_is_about_thirty_names_and_all_resolve() -> None:
    assert 25 <= len(privfedrl.__all__) <= 40
    for name in privfedrl.__all__:
        assert getattr(privfedrl, name) is not None
    assert set(privfedrl.__all__) <= set(dir(privfedrl))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = privfedrl.nothing


def _order(name: str) -> tuple[int, str]:
    if name.isupper():
        return 0, name
    return (1 if name[0].isupper() else 2), name
