"""Sets of agents on the wire: one bit per registered agent.

Guarantee: a set has exactly one encoding, so equal sets give equal digests; any other bytes are
refused, and a set can name nobody twice and nobody who is not registered.

Notation: index = position among the registry's agents, which are sorted by name; rank = position
among the members of the set, from 0. Byte i // 8, bit i % 8 (lowest first) stands for index i.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from privfedrl.errors import RemoteProtocolError

__all__ = ["Members", "members_bytes"]


def members_bytes(num_agents: int) -> int:
    """Length of an encoded set over ``num_agents`` registered agents."""
    return (num_agents + 7) // 8


@dataclass(frozen=True, slots=True)
class Members:
    """A set of indices below ``num_agents``, as the integer whose bit i says that i is in it."""

    mask: int
    num_agents: int

    @classmethod
    def of(cls, indices: Iterable[int], num_agents: int) -> Members:
        """The set of ``indices``, each from 0 to num_agents - 1."""
        bits = np.zeros(num_agents, np.uint8)  # padded to whole bytes when packed
        bits[list(indices)] = 1
        packed = np.packbits(bits, bitorder="little").tobytes()
        return cls(int.from_bytes(packed, "little"), num_agents)

    @classmethod
    def from_bytes(cls, data: bytes, num_agents: int) -> Members:
        """Inverse of :meth:`to_bytes`.

        Raises:
            RemoteProtocolError: another length, or a bit beyond the last agent.
        """
        if len(data) != members_bytes(num_agents):
            raise RemoteProtocolError(
                f"a set of {num_agents} agents takes {members_bytes(num_agents)} bytes, "
                f"got {len(data)}"
            )
        mask = int.from_bytes(data, "little")
        if mask >> num_agents:
            raise RemoteProtocolError(f"the set names an agent beyond the {num_agents} registered")
        return cls(mask, num_agents)

    def to_bytes(self) -> bytes:
        """ceil(num_agents / 8) bytes."""
        return self.mask.to_bytes(members_bytes(self.num_agents), "little")

    def indices(self) -> tuple[int, ...]:
        """The members in ascending order."""
        return _indices(self.mask, self.num_agents)

    def rank(self, index: int) -> int:
        """How many members come before ``index``."""
        return (self.mask & ((1 << index) - 1)).bit_count()

    def __len__(self) -> int:
        return self.mask.bit_count()

    def __contains__(self, index: int) -> bool:
        return bool(self.mask >> index & 1)

    def __le__(self, other: Members) -> bool:
        """Whether every member is one of ``other`` too."""
        return self.num_agents == other.num_agents and not self.mask & ~other.mask


@lru_cache(maxsize=16)
def _indices(mask: int, num_agents: int) -> tuple[int, ...]:
    packed = mask.to_bytes(members_bytes(num_agents), "little")
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    return tuple(np.flatnonzero(bits).tolist())
