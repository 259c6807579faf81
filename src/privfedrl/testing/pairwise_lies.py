"""Lies in the words of the pairwise protocol, and a coordinator that enforces nothing.

Guarantee: a lie changes the named field and nothing else; whoever signs the changed message decides
whether it is authentic. Field names are those of ``AggregationAdapter.forge``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np

from privfedrl.primitives.shamir import SHARE_BYTES
from privfedrl.secagg.members import Members
from privfedrl.secagg.messages import Unmask
from privfedrl.secagg.server import SecAggServer
from privfedrl.secagg.sizes import MessageType

__all__ = ["LaxServer", "Lie", "lie_about"]

Lie = Callable[[Any], Any]
"""The present value of a field -> the false one."""


class LaxServer(SecAggServer):
    """A coordinator with the true key that goes on however few have answered."""

    def _answered(self, kind: MessageType, floor: int) -> tuple[str, ...]:
        names = tuple(sorted(self._answers[kind]))
        self._await(names)
        return names


@dataclass(frozen=True, slots=True)
class _Words:
    """How a named field is spelled: which fields of the message, read and written how."""

    fields: tuple[str, ...]
    read: Callable[[Sequence[Any], Sequence[str]], Any] = field(
        default=lambda values, agents: values[0]
    )
    write: Callable[[Any, Sequence[str]], Sequence[Any]] = field(
        default=lambda value, agents: (value,)
    )


def _names(values: Sequence[Any], agents: Sequence[str]) -> tuple[str, ...]:
    mask = int.from_bytes(values[0], "little")
    return tuple(name for index, name in enumerate(agents) if mask >> index & 1)


def _set(names: Sequence[str], agents: Sequence[str]) -> tuple[bytes]:
    return (Members.of([agents.index(name) for name in names], len(agents)).to_bytes(),)


def _shares(values: Sequence[Any], _: Sequence[str]) -> tuple[bytes, ...]:
    data = values[0]
    return tuple(data[at : at + SHARE_BYTES] for at in range(0, len(data), SHARE_BYTES))


_VOCABULARY: Final[dict[str, _Words]] = {
    "public_keys": _Words(
        ("share_key", "mask_key"), lambda values, _: tuple(values), lambda value, _: value
    ),
    "commitment": _Words(("commitment",)),
    "sealed": _Words(("sealed",)),
    "shares": _Words(("shares",), _shares, lambda value, _: (b"".join(value),)),
    "members": _Words(("members",), _names, _set),
    "adverts": _Words(("adverts",)),
    "consents": _Words(("consents",)),
}


def lie_about(
    message: Any, lies: Mapping[str, Lie], *, agents: Sequence[str], modulus_bits: int
) -> Any:
    """``message`` with ``lies`` told in it; None if it has no such field.

    Args:
        message: a struct of ``privfedrl.secagg.messages``. agents: all registered ones, sorted.
    Raises:
        ValueError: a lie that the format cannot carry.
    """
    changes: dict[str, Any] = {}
    for name, lie in lies.items():
        words = _vector_words(modulus_bits) if name == "vector" else _VOCABULARY.get(name)
        present = words is not None and all(hasattr(message, each) for each in words.fields)
        if words is None or not present or (name == "shares" and not isinstance(message, Unmask)):
            return None
        false = lie(words.read([getattr(message, each) for each in words.fields], agents))
        changes |= dict(zip(words.fields, words.write(false, agents), strict=True))
    return msgspec.structs.replace(message, **changes)


def _vector_words(modulus_bits: int) -> _Words:
    dtype = np.dtype(f"<u{modulus_bits // 8}")
    return _Words(
        ("vector",),
        lambda values, _: np.frombuffer(values[0], dtype),
        lambda value, _: (np.asarray(value, dtype).tobytes(),),
    )
