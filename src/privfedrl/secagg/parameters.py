"""The public numbers of a round, checked once.

Guarantee: with n registered agents of which at most c collude with the coordinator, any two sets
of ``threshold`` agents share an honest one (2t > n + c), so no coordinator can have two different
survivor sets agreed, and every sum that is opened covers at least ``min_honest`` honest agents.

Notation: n = num_clients, c = max_colluding, t = threshold, D = vector_length.
Reference: Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning,
CCS 2017, section 6.2 (active adversaries).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from privfedrl.errors import ConfigurationError
from privfedrl.secagg.binding import digest
from privfedrl.secagg.sizes import CLIENT_TYPES, MessageType, frame_limit

__all__ = ["MAX_CLIENTS", "MAX_VECTOR_LENGTH", "SecAggParameters"]

MAX_CLIENTS: Final = 256
"""Everybody shares a mask with everybody up to here; the work per client grows with n."""

MAX_VECTOR_LENGTH: Final = 2**28
"""A masked vector of 64-bit words then still fits the 32-bit length field of a frame."""

_FORMAT: Final = struct.Struct(">7Q")
_FIELDS: Final = (
    "num_clients",
    "max_colluding",
    "vector_length",
    "ring_bits",
    "threshold",
    "min_clients",
    "min_honest",
)


@dataclass(frozen=True, slots=True, kw_only=True, init=False)
class SecAggParameters:
    """Parameters of the pairwise protocol on a complete graph.

    Attributes:
        num_clients: n, the registered agents (not those who show up), 2 to 256.
        max_colluding: c, how many of them may collude with the coordinator.
        vector_length: D, words per vector, 1 to 2^28.
        ring_bits: 32 or 64; sums are taken mod 2^ring_bits.
        threshold: t, how many agents must answer at every stage; floor((n + c) / 2) + 1 if absent.
        min_clients: smallest cohort that an agent takes part in, at least 2.
        min_honest: smallest number of honest inputs in an opened sum, at least 2: one would be
            an individual update.
    Raises:
        ConfigurationError: with one line per problem in ``problems``.
    """

    num_clients: int
    max_colluding: int
    vector_length: int
    ring_bits: int
    threshold: int
    min_clients: int
    min_honest: int

    def __init__(
        self,
        *,
        num_clients: int,
        max_colluding: int,
        vector_length: int,
        ring_bits: int = 32,
        threshold: int | None = None,
        min_clients: int = 5,
        min_honest: int = 3,
    ) -> None:
        values = (num_clients, max_colluding, vector_length, ring_bits, 0, min_clients, min_honest)
        problems = [
            f"{name} must be an integer, got {type(value).__name__}"
            for name, value in zip(_FIELDS, (*values[:4], threshold or 0, *values[5:]), strict=True)
            if not isinstance(value, int) or isinstance(value, bool)
        ]
        if problems:
            raise ConfigurationError("; ".join(problems), problems=tuple(problems))
        default = (num_clients + max_colluding) // 2 + 1
        chosen = default if threshold is None else threshold
        for name, value in zip(_FIELDS, (*values[:4], chosen, *values[5:]), strict=True):
            object.__setattr__(self, name, value)
        problems = self._problems()
        if problems:
            raise ConfigurationError("; ".join(problems), problems=tuple(problems))

    def _problems(self) -> list[str]:
        n, c, t = self.num_clients, self.max_colluding, self.threshold
        rules = (
            (2 <= n <= MAX_CLIENTS, f"num_clients must be from 2 to {MAX_CLIENTS}, got {n}"),
            (0 <= c < n, f"max_colluding must be from 0 to num_clients - 1, got {c} of {n}"),
            (
                1 <= self.vector_length <= MAX_VECTOR_LENGTH,
                f"vector_length must be from 1 to {MAX_VECTOR_LENGTH}, got {self.vector_length}",
            ),
            (self.ring_bits in (32, 64), f"ring_bits must be 32 or 64, got {self.ring_bits}"),
            (
                2 * t > n + c,
                f"threshold must be > (num_clients + max_colluding) / 2, got {t} of {n} with {c}",
            ),
            (t <= n, f"threshold must be <= num_clients, got {t} of {n}"),
            (
                2 <= self.min_clients <= n,
                f"min_clients must be from 2 to num_clients, got {self.min_clients} of {n}",
            ),
            (self.min_honest >= 2, f"min_honest must be >= 2, got {self.min_honest}"),
            (
                t - c >= self.min_honest,
                f"threshold - max_colluding must be >= min_honest = {self.min_honest}, "
                f"got {t} - {c}",
            ),
        )
        return [problem for holds, problem in rules if not holds]

    @property
    def floor(self) -> int:
        """The smallest set that may take part in any stage: max(threshold, min_clients)."""
        return max(self.threshold, self.min_clients)

    @property
    def vector_bytes(self) -> int:
        """Bytes of one ring vector."""
        return self.vector_length * self.ring_bits // 8

    def canonical_bytes(self) -> bytes:
        """56 bytes: the seven fields as big-endian 64-bit integers, in the order of the class."""
        return _FORMAT.pack(*(getattr(self, name) for name in _FIELDS))

    @classmethod
    def from_canonical_bytes(cls, data: bytes) -> SecAggParameters:
        """Inverse of :meth:`canonical_bytes`; what could not be constructed is refused."""
        if len(data) != _FORMAT.size:
            raise ConfigurationError(f"parameters must be {_FORMAT.size} bytes, got {len(data)}")
        return cls(**dict(zip(_FIELDS, _FORMAT.unpack(data), strict=True)))

    @property
    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes under their own label: 32 bytes."""
        return digest("parameters", self.canonical_bytes())

    def frame_limit(self, message_type: MessageType) -> int:
        """The largest frame of ``message_type`` in bytes."""
        return frame_limit(
            message_type,
            num_clients=self.num_clients,
            vector_length=self.vector_length,
            ring_bits=self.ring_bits,
        )

    def bytes_up_per_client(self) -> int:
        """What one client sends in a round, all five messages, at most.

        Exact for a full cohort whose names all have 64 characters.
        """
        return sum(self.frame_limit(message_type) for message_type in CLIENT_TYPES)
