"""What code leaves behind besides its result: logs, output, warnings, exceptions, attributes.

Guarantee: while :func:`watched` is active nothing that Python code writes through ``logging``,
``sys.stdout``, ``sys.stderr`` or ``warnings`` goes unrecorded, and afterwards all of them, and the
process-wide random generators, are what they were. :func:`snapshot` reads and never changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import random
import sys
import warnings
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

__all__ = ["Watched", "snapshot", "watched"]

# deeper than any trainer; what lies below is named by its type
_MAX_DEPTH = 12
# arrays up to this size are shown by value in a report, larger ones by digest
_SHOWN = 4


@dataclass(slots=True)
class Watched:
    """What was written while a block ran.

    Attributes:
        records: "NAME LEVEL message" of every logging record that was made.
        output: what went to stdout and stderr, in this order.
        warned: "Category: message" of every warning, also repeated ones.
        raised: "Type: message" of the exception that ended the block, or "nothing".
        generators: digest of the states of the process-wide generators after the block.
    """

    records: list[str] = field(default_factory=list)
    output: tuple[str, str] = ("", "")
    warned: list[str] = field(default_factory=list)
    raised: str = "nothing"
    generators: str = ""


@contextlib.contextmanager
def watched() -> Iterator[Watched]:
    """Record what the block writes, warns and raises; an ``Exception`` ends the block quietly."""
    seen = Watched()
    out, err = io.StringIO(), io.StringIO()
    with (
        _generators_restored(seen),
        _records(seen.records),
        warnings.catch_warnings(record=True) as caught,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        warnings.simplefilter("always")
        try:
            yield seen
        except Exception as error:  # noqa: BLE001 - whatever it is, that it came is the observation
            seen.raised = f"{type(error).__name__}: {error}"
    seen.output = (out.getvalue(), err.getvalue())
    seen.warned = [f"{w.category.__name__}: {w.message}" for w in caught]


@contextlib.contextmanager
def _records(records: list[str]) -> Iterator[None]:
    """Every record of every logger that is not silenced by a level of its own."""
    factory, level, disabled = (
        logging.getLogRecordFactory(),
        logging.root.level,
        logging.root.manager.disable,
    )

    made: list[tuple[logging.LogRecord, str]] = []

    def collecting(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        made.append((record, record.getMessage()))  # now: its arguments may change
        return record

    logging.setLogRecordFactory(collecting)
    logging.root.setLevel(logging.DEBUG)
    if disabled:
        logging.disable(logging.NOTSET)
    try:
        yield
    finally:
        logging.setLogRecordFactory(factory)
        logging.root.setLevel(level)
        if disabled:
            logging.disable(disabled)
        records += [f"{r.name} {r.levelname} {text}{_extra(r)}" for r, text in made]


def _extra(record: logging.LogRecord) -> str:
    """What the caller added; it is on the record only after the factory has returned."""
    names = sorted(set(vars(record)) - _PLAIN)
    return "".join(f" {name}={vars(record)[name]!r}" for name in names)


# a handler that has seen the record leaves these there as well
_PLAIN = {*vars(logging.makeLogRecord({})), "message", "asctime"}


@contextlib.contextmanager
def _generators_restored(seen: Watched) -> Iterator[None]:
    """The global generators of random, numpy and, where loaded, torch; same start, then restored.

    A world that draws a data-dependent number of values from one of them leaves a trace there.
    """
    torch = sys.modules.get("torch")
    python, numpy = random.getstate(), np.random.get_state()
    state = None if torch is None else torch.get_rng_state()
    try:
        yield
    finally:
        words = np.random.get_state(legacy=False)
        after = [repr(random.getstate()).encode(), _text(words).encode()]
        if torch is not None:
            after.append(torch.get_rng_state().numpy().tobytes())
        seen.generators = _digest(b"".join(after))
        random.setstate(python)
        np.random.set_state(numpy)
        if torch is not None:
            torch.set_rng_state(state)


def snapshot(root: object, *, private: Set[str] = frozenset(), path: str = "") -> dict[str, str]:
    """Canonical text of everything reachable from ``root``: "path" -> "value".

    Args:
        root: any object; attributes, slots, containers and closures are followed.
        private: attribute names that are not looked at.
        path: prefix of the paths.
    Returns:
        equal dictionaries for objects in equal states. Values that cannot be read (a lock, an open
        file) are named by their type.
    """
    found: dict[str, str] = {}
    _walk(root, path, private, (), found)
    return found


def _walk(
    value: Any, path: str, private: Set[str], above: tuple[int, ...], found: dict[str, str]
) -> None:
    text = _leaf(value)
    if text is not None:
        found[path] = text
    elif id(value) in above or len(above) > _MAX_DEPTH:
        found[path] = f"<{type(value).__name__} again>"
    else:
        found[path] = f"<{type(value).__name__}>"
        for name, child in _children(value):
            if name not in private:
                below = f"{path}.{name}" if path else name
                _walk(child, below, private, (*above, id(value)), found)


def _leaf(value: Any) -> str | None:
    """Text of a value without parts that are worth following; None for the rest."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | Enum):
        return repr(value)
    if isinstance(value, np.ndarray | np.generic):
        return _array(np.asarray(value))
    if hasattr(value, "detach") and hasattr(value, "numpy"):  # a torch tensor, without torch
        return _array(value.detach().cpu().numpy())
    if isinstance(value, np.random.Generator):
        return _digest(repr(value.bit_generator.state).encode())
    if isinstance(value, random.Random):
        return _digest(repr(value.getstate()).encode())
    if isinstance(value, type | ModuleType | BuiltinFunctionType):
        return f"<{getattr(value, '__qualname__', value.__name__)}>"
    return None


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for index, (key, child) in enumerate(value.items()):  # the order is state as well
            yield (key if isinstance(key, str) else f"{index}:{_text(key)}"), child
    elif isinstance(value, Set):
        yield from ((str(k), text) for k, text in enumerate(sorted(map(_text, value))))
    elif isinstance(value, list | tuple):
        yield from ((str(k), child) for k, child in enumerate(value))
    elif isinstance(value, FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # a cell that is still empty
                yield name, cell.cell_contents
    elif isinstance(value, MethodType):
        yield "self", value.__self__
    else:
        for name in _slots(type(value)):
            if hasattr(value, name):
                yield name, getattr(value, name)
        for name, child in getattr(value, "__dict__", {}).items():
            if not _computed(type(value), name):
                yield name, child


def _computed(kind: type, name: str) -> bool:
    """Whether an attribute of a frozen value is computed from its fields when first asked for.

    Then it says no more than they do; of an object that can change it may be a memory.
    """
    frozen = getattr(getattr(kind, "__dataclass_params__", None), "frozen", False)
    return frozen and isinstance(getattr(kind, name, None), cached_property)


def _slots(kind: type) -> tuple[str, ...]:
    if kind not in _SLOTS:
        names = (name for parent in kind.__mro__ for name in _own_slots(parent))
        _SLOTS[kind] = tuple(dict.fromkeys(names))
    return _SLOTS[kind]


_SLOTS: dict[type, tuple[str, ...]] = {}  # looked up thousands of times in a run


def _own_slots(kind: type) -> tuple[str, ...]:
    found = vars(kind).get("__slots__", ())
    names = (found,) if isinstance(found, str) else tuple(found)
    return tuple(
        f"_{kind.__name__.lstrip('_')}{name}" if name.startswith("__") else name  # mangled
        for name in names
        if name not in ("__dict__", "__weakref__")
    )


def _text(value: object) -> str:
    return repr(sorted(snapshot(value).items()))


def _array(array: np.ndarray[Any, Any]) -> str:
    kind = f"{array.dtype}{list(array.shape)}"
    if array.size <= _SHOWN:
        return f"{kind} {array.tolist()}"
    if array.dtype.hasobject:
        return f"{kind} {_digest(_text(array.tolist()).encode())}"
    return f"{kind} #{_digest(np.ascontiguousarray(array).tobytes())}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
