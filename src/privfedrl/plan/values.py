"""Dataclasses of a plan to TOML, from TOML and to the canonical form under the digest.

Guarantee: what is written reads back as the same value; every wrong type is reported with its path,
for files and for plans built in code alike; equal numbers (1 and 1.0) have one canonical form.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

__all__ = ["canonical", "read_section", "type_problems", "write_section"]


def read_section(
    kind: type[Any], data: dict[str, Any], path: str, problems: list[str]
) -> dict[str, Any] | None:
    """Constructor arguments of ``kind`` from a TOML table, or None; appends to ``problems``."""
    hints = _hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    before = len(problems)
    for key in sorted(set(data) - set(fields)):
        problems.append(f"{path}{key} is not known here; expected one of {', '.join(fields)}")
    arguments: dict[str, Any] = {}
    for name, spec in fields.items():
        if name in data:
            arguments[name] = _read_value(hints[name], data[name], f"{path}{name}", problems)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            problems.append(f"{path}{name} is required and missing")
    return arguments if len(problems) == before else None


def _read_value(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (option for option in options if option is not type(None))
        return _read_value(inner, value, path, problems)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            problems.append(f"{path} must be a table, got {value!r}")
            return None
        arguments = read_section(hint, value, f"{path}.", problems)
        return None if arguments is None else hint(**arguments)
    if origin is Literal:
        if value not in options:
            problems.append(f"{path} must be one of {', '.join(map(repr, options))}, got {value!r}")
        return value
    if origin is tuple:
        kind = options[0]
        if not isinstance(value, list) or not all(_is_item(kind, item) for item in value):
            problems.append(f"{path} must be a list of {_ITEMS[kind]}, got {value!r}")
            return ()
        return tuple(value)
    if hint is float and _is_integer(value):
        return float(value)
    if not (_is_integer(value) if hint is int else type(value) is hint):
        problems.append(f"{path} must be {hint.__name__}, got {_shown(value)}")
    return value


def write_section(value: Any, path: str) -> list[str]:
    """Lines of TOML: plain values first, then one table per nested dataclass."""
    lines, tables = [], []
    for spec in dataclasses.fields(value):
        item = getattr(value, spec.name)
        if item is None:
            continue
        if dataclasses.is_dataclass(item):
            tables += ["", f"[{path}{spec.name}]", *write_section(item, f"{path}{spec.name}.")]
        else:
            plain = list(item) if isinstance(item, tuple) else item
            is_float = isinstance(item, float)
            text = repr(float(item)) if is_float else json.dumps(plain, ensure_ascii=False)
            lines.append(f"{spec.name} = {text}")
    return lines + tables


# --- values of the declared types, for plans built in code -------------------------------------


def type_problems(value: Any, path: str) -> Iterator[str]:
    """What the file reader would have refused."""
    for name, hint in _hints(type(value)).items():
        yield from _type_problem(hint, getattr(value, name), f"{path}{name}")


def _type_problem(hint: Any, value: Any, path: str) -> Iterator[str]:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is not None:
            yield from _type_problem(options[0], value, path)
    elif dataclasses.is_dataclass(hint):
        if type(value) is hint:
            yield from type_problems(value, f"{path}.")
        else:
            yield f"{path} must be {_name(hint)}, got {_shown(value)}"
    elif origin is Literal:
        if type(value) is not str or value not in options:
            yield f"{path} must be one of {', '.join(map(repr, options))}, got {_shown(value)}"
    elif origin is tuple:
        kind = options[0]
        if type(value) is not tuple or not all(_is_item(kind, item) for item in value):
            yield f"{path} must be a tuple of {_ITEMS[kind]}, got {_shown(value)}"
    elif not _fits(hint, value):
        yield f"{path} must be {_name(hint)}, got {_shown(value)}"


def _fits(hint: Any, value: Any) -> bool:
    if hint is float:
        return isinstance(value, float) or _is_integer(value)
    return _is_integer(value) if hint is int else type(value) is hint


def _is_integer(value: Any) -> bool:
    """An int of at most 64 bits: nothing here is larger, and larger ones overflow a float."""
    return type(value) is int and value.bit_length() < 64


_ITEMS = {int: "integers", str: "texts"}


def _is_item(kind: type[Any], value: Any) -> bool:
    return _is_integer(value) if kind is int else type(value) is kind


def _shown(value: Any) -> str:
    if type(value) is int and value.bit_length() >= 64:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)


def _name(hint: Any) -> str:
    return str(hint.__name__)


def _hints(kind: Any) -> dict[str, Any]:
    if kind not in _KNOWN_HINTS:
        _KNOWN_HINTS[kind] = typing.get_type_hints(kind)
    return _KNOWN_HINTS[kind]


_KNOWN_HINTS: dict[type[Any], dict[str, Any]] = {}  # resolving them costs more than a digest


def canonical(value: Any) -> dict[str, Any]:
    """Fields as JSON values; 1 and 1.0, 0.0 and -0.0 are the same number in a float field."""
    found: dict[str, Any] = {}
    for name, hint in _hints(type(value)).items():
        item = getattr(value, name)
        if dataclasses.is_dataclass(item):
            found[name] = canonical(item)
        else:
            found[name] = float(item) + 0.0 if hint is float else item
    return found
