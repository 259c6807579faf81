"""What a round leaves at its coordinator: the sum, or proof of who contradicted itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from privfedrl.primitives.stream import RingVector
from privfedrl.secagg.messages import RoundConfig
from privfedrl.secagg.sizes import MessageType
from privfedrl.secagg.transcript import RoundRecord

__all__ = ["Equivocation", "SecureSum"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureSum:
    """What a round gives: ``vector`` is uint32 or uint64 [D], the sum over ``survivors``."""

    vector: RingVector = field(repr=False)
    survivors: tuple[str, ...]
    config: RoundConfig
    record: RoundRecord = field(repr=False)
    suspects: tuple[str, ...] = ()
    """Clients whose shares were wrong, where that was noticed; the sum is right all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Equivocation:
    """Two signed frames of ``sender`` for one slot; ``first`` is empty for a masked vector."""

    sender: str
    type: MessageType
    first: bytes = field(repr=False)
    second: bytes = field(repr=False)
