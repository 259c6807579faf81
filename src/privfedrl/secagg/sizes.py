"""How many bytes a frame may have: a function of the public parameters alone.

Guarantee: :func:`frame_limit` is the exact size of the largest frame of its type that the
parameters allow, so a longer one is refused before a byte of it is decoded, and no size on the
wire depends on private data.

Notation: n = clients, D = vector length. Sizes follow the msgpack specification.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from privfedrl.primitives.sealing import TAG_BYTES
from privfedrl.primitives.shamir import SHARE_BYTES
from privfedrl.primitives.signing import SIGNATURE_BYTES

__all__ = [
    "CLIENT_TYPES",
    "HEADER_BYTES",
    "MAX_NAME_CHARS",
    "PARAMETER_BYTES",
    "SEALED_BYTES",
    "MessageType",
    "frame_limit",
]

HEADER_BYTES: Final = 12
"""Magic 4, version 2, type 2, payload length 4."""

MAX_NAME_CHARS: Final = 64
PARAMETER_BYTES: Final = 7 * 8
SEALED_BYTES: Final = 2 * SHARE_BYTES + TAG_BYTES
"""One share of a self mask and one of a mask key, with the tag: 88 bytes."""


class MessageType(IntEnum):
    """The type field of a frame; odd numbers of the round's ten messages come from the server."""

    CONFIG = 1
    ADVERTISE = 2
    ROSTER = 3
    SHARES = 4
    DELIVERY = 5
    MASKED = 6
    SURVIVORS = 7
    CONSISTENCY = 8
    UNMASK_REQUEST = 9
    UNMASK = 10
    TRANSCRIPT = 11

    @property
    def label(self) -> str:
        """The name under which frames of this type are signed."""
        return self.name.lower().replace("_", "-")


CLIENT_TYPES: Final = frozenset(
    {
        MessageType.ADVERTISE,
        MessageType.SHARES,
        MessageType.MASKED,
        MessageType.CONSISTENCY,
        MessageType.UNMASK,
    }
)
"""The five messages of a client; every other type is signed by the coordinator."""


def _bin(size: int) -> int:
    return size + (2 if size < 2**8 else 3 if size < 2**16 else 5)


def _array(count: int) -> int:
    return 1 if count < 16 else 3 if count < 2**16 else 5


_NAME: Final = 2 + MAX_NAME_CHARS
_DIGEST: Final = _bin(32)
_HEAD: Final = 1 + 1 + _DIGEST + _NAME  # array header, tag, cfg, sender


def frame_limit(
    message_type: MessageType, *, num_clients: int, vector_length: int, ring_bits: int
) -> int:
    """The largest frame of ``message_type`` in bytes, header and signature included."""
    n = num_clients
    around = HEADER_BYTES + SIGNATURE_BYTES
    advert = around + _HEAD + 2 * _DIGEST
    consent = around + _HEAD + 2 * _DIGEST
    config = around + 3 + _NAME + 9 + 5 + 6 * _DIGEST + _bin(PARAMETER_BYTES)
    pairs = _array(n) + n * (1 + _NAME + _DIGEST)
    match message_type:
        case MessageType.CONFIG:
            return config
        case MessageType.ADVERTISE:
            return advert
        case MessageType.ROSTER:
            return around + _HEAD + _array(n) + n * _bin(advert)
        case MessageType.SHARES:
            return around + _HEAD + 2 * _DIGEST + _array(n - 1) + (n - 1) * _bin(SEALED_BYTES)
        case MessageType.DELIVERY:
            sealed = _array(n - 1) + (n - 1) * _bin(SEALED_BYTES)
            return around + _HEAD + _DIGEST + _NAME + pairs + sealed
        case MessageType.MASKED:
            return around + _HEAD + 2 * _DIGEST + _bin(vector_length * ring_bits // 8)
        case MessageType.SURVIVORS:
            return around + _HEAD + _DIGEST + pairs
        case MessageType.CONSISTENCY:
            return consent
        case MessageType.UNMASK_REQUEST:
            return around + _HEAD + _DIGEST + _array(n) + n * _bin(consent)
        case MessageType.UNMASK:
            return around + _HEAD + _DIGEST + _bin(n * SHARE_BYTES)
        case MessageType.TRANSCRIPT:
            frames = 2 * _array(n) + n * (_bin(advert) + _bin(consent))
            return around + 2 + _NAME + _bin(config) + frames + 2 * pairs + 2 * _DIGEST
    raise AssertionError("unreachable")
