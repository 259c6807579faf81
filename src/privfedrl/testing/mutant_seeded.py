"""How a defect is put into our own protocol without touching its files.

Guarantee: a defect acts only while a method of its own adapter runs; before and after, every
patched name is what it was, so other adapters of the same process never meet it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from privfedrl.testing.adapter import (
    Aggregate,
    Packet,
    RingVector,
    RoundSpec,
    Store,
)
from privfedrl.testing.mutant import Mutant
from privfedrl.testing.pairwise_guarded import GuardedPairwiseAdapter

__all__ = ["Patch", "Seeded", "always", "seeded", "substituted"]


@dataclass(frozen=True, slots=True)
class Patch:
    """``owner`` (module, class, dictionary or frozen value) gets ``make(original)`` as ``name``."""

    owner: Any
    name: Any
    make: Callable[[Any], Any]


def always(value: Any) -> Callable[[Any], Any]:
    """A ``make`` that does not look at the original."""
    return lambda _: value


def _get(owner: Any, name: Any) -> Any:
    if isinstance(owner, dict):
        return owner[name]
    if isinstance(owner, (type, ModuleType)):
        return vars(owner)[name]  # a property or static method as it is, not bound
    return getattr(owner, name)


def _set(owner: Any, name: Any, value: Any) -> None:
    if isinstance(owner, dict):
        owner[name] = value
    elif isinstance(owner, (type, ModuleType)):
        setattr(owner, name, value)
    else:
        object.__setattr__(owner, name, value)  # a frozen dataclass


@contextmanager
def substituted(owner: Any, name: Any, value: Any) -> Iterator[None]:
    """``value`` instead of what is there, for as long as the block lasts."""
    before = _get(owner, name)
    _set(owner, name, value)
    try:
        yield
    finally:
        _set(owner, name, before)


class Seeded(GuardedPairwiseAdapter):
    """The reference adapter, with patches that act while its parties act."""

    patches: tuple[Patch, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self._rows = [
            (patch.owner, patch.name, patch.make(_get(patch.owner, patch.name)))
            for patch in self.patches
        ]
        self._depth = 0

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The defect is there inside the block; blocks may be nested."""
        if self._depth:
            yield
            return
        before = [_get(owner, name) for owner, name, _ in self._rows]
        self._depth += 1
        try:
            for owner, name, value in self._rows:
                _set(owner, name, value)
            yield
        finally:
            for (owner, name, _), value in reversed(list(zip(self._rows, before, strict=True))):
                _set(owner, name, value)
            self._depth -= 1

    def make_client(self, spec: RoundSpec, name: str, vector: RingVector, store: Store) -> Any:
        with self.applied():
            return super().make_client(spec, name, vector, store)

    def make_server(self, spec: RoundSpec) -> Any:
        with self.applied():
            return super().make_server(spec)

    def make_lax_server(self, spec: RoundSpec) -> Any:
        with self.applied():
            return super().make_lax_server(spec)

    def make_charging_client(
        self,
        spec: RoundSpec,
        name: str,
        vector: RingVector,
        store: Store,
        charge: Callable[[], None],
    ) -> Any:
        with self.applied():
            return super().make_charging_client(spec, name, vector, store, charge)

    def start(self, server: Any) -> list[Packet]:
        with self.applied():
            return super().start(server)

    def deliver(self, party: Any, packet: Packet) -> list[Packet]:
        with self.applied():
            return super().deliver(party, packet)

    def close_phase(self, server: Any) -> list[Packet]:
        with self.applied():
            return super().close_phase(server)

    def result(self, server: Any) -> Aggregate:
        with self.applied():
            return super().result(server)

    def transcript(self, server: Any) -> bytes:
        with self.applied():
            return super().transcript(server)

    def verify_transcript(self, spec: RoundSpec, transcript: bytes) -> None:
        with self.applied():
            super().verify_transcript(spec, transcript)


def seeded(
    id: str,  # noqa: A002 - the field's own name
    title: str,
    fault: str,
    expected: tuple[str, ...],
    *patches: Patch,
    base: type[Seeded] = Seeded,
    thorough: bool = False,
) -> Mutant:
    """A row about our own protocol with ``patches``; ``base`` has what is no patch."""
    made = type(
        f"mutant_{id.replace('-', '_')}",
        (base,),
        {
            "patches": patches,
            "name": f"mutant {id}",
            # where a printed script finds it again
            "__module__": "privfedrl.testing.mutants",
        },
    )
    return Mutant(id=id, title=title, fault=fault, expected=expected, make=made, thorough=thorough)
