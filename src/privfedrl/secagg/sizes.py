"""How many bytes a frame may have: a function of the public parameters alone.

Guarantee: :func:`frame_limit` is at least the size of the largest frame of its type that the
parameters allow (exactly that on a complete graph), so a longer one is refused before a byte of it
is decoded, and no size on the wire depends on private data.

Notation: n = registered clients, k = most neighbours of one client, D = vector length. Sizes follow
the msgpack specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from privfedrl.parties.frames import HEADER_BYTES, MAX_NAME_CHARS, FrameType, bin_size
from privfedrl.primitives.sealing import TAG_BYTES
from privfedrl.primitives.shamir import SHARE_BYTES
from privfedrl.primitives.signing import SIGNATURE_BYTES

__all__ = [
    "CLIENT_TYPES",
    "PARAMETER_BYTES",
    "SEALED_BYTES",
    "Limits",
    "MessageType",
    "frame_limit",
]

PARAMETER_BYTES: Final = 12 * 8
SEALED_BYTES: Final = 2 * SHARE_BYTES + TAG_BYTES
"""One share of a self mask and one of a mask key, with the tag: 88 bytes."""


class MessageType(FrameType):
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
    IDEAL = 12


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


def _array(count: int) -> int:
    return 1 if count < 16 else 3 if count < 2**16 else 5


_NAME: Final = 2 + MAX_NAME_CHARS
_DIGEST: Final = bin_size(32)
_HEAD: Final = 1 + 1 + _DIGEST + _NAME  # array header, tag, cfg, sender
_AROUND: Final = HEADER_BYTES + SIGNATURE_BYTES
_ADVERT: Final = _AROUND + _HEAD + 2 * _DIGEST
_CONSENT: Final = _ADVERT
_CONFIG: Final = _AROUND + 3 + _NAME + 9 + 5 + 9 + 6 * _DIGEST + bin_size(PARAMETER_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The public numbers that sizes depend on. ``neighbours`` is k, at most ``num_clients`` - 1."""

    num_clients: int
    neighbours: int
    vector_length: int
    ring_bits: int

    @property
    def members(self) -> int:
        """Bytes of an encoded set, with its header."""
        return bin_size((self.num_clients + 7) // 8)

    @property
    def levels(self) -> int:
        """Height of a Merkle tree over everybody."""
        return (self.num_clients - 1).bit_length()

    @property
    def roster_proof(self) -> int:
        """Digests beside k + 1 known leaves: none if everybody is known."""
        known = self.neighbours + 1
        return 0 if known >= self.num_clients else 32 * known * self.levels


def frame_limit(message_type: MessageType, limits: Limits) -> int:
    """The largest frame of ``message_type`` in bytes, header and signature included."""
    n, k, members = limits.num_clients, limits.neighbours, limits.members
    path = bin_size(32 * limits.levels)
    to_one = _AROUND + _HEAD + _NAME  # what the coordinator addresses to one client
    match message_type:
        case MessageType.CONFIG:
            return _CONFIG
        case MessageType.ADVERTISE:
            return _ADVERT
        case MessageType.ROSTER:
            adverts = _array(k + 1) + (k + 1) * bin_size(_ADVERT)
            return to_one + members + adverts + bin_size(limits.roster_proof)
        case MessageType.SHARES:
            return _AROUND + _HEAD + 2 * _DIGEST + _array(k) + k * bin_size(SEALED_BYTES)
        case MessageType.DELIVERY:
            sealed = _array(k) + k * bin_size(SEALED_BYTES)
            return to_one + 2 * _DIGEST + members + path + sealed
        case MessageType.MASKED:
            vector = bin_size(limits.vector_length * limits.ring_bits // 8)
            return _AROUND + _HEAD + 2 * _DIGEST + bin_size(SIGNATURE_BYTES) + vector
        case MessageType.SURVIVORS:
            return to_one + 2 * _DIGEST + members + path
        case MessageType.CONSISTENCY:
            return _CONSENT
        case MessageType.UNMASK_REQUEST:
            # a receipt is shorter than a consent and nobody is in both lists: most if none is there
            return to_one + _DIGEST + _array(k + 1) + (k + 1) * bin_size(_CONSENT) + _array(0)
        case MessageType.UNMASK:
            return _AROUND + _HEAD + _DIGEST + bin_size((k + 1) * SHARE_BYTES)
        case MessageType.TRANSCRIPT:
            frames = 2 * _array(n) + n * (bin_size(_ADVERT) + bin_size(_CONSENT))
            sets = 3 * members + 2 * bin_size(32 * n)
            return _AROUND + 2 + _NAME + bin_size(_CONFIG) + frames + sets + 2 * _DIGEST
        case MessageType.IDEAL:
            # task, round, attempt, four pins, sum and head; a literal of 27 characters
            return _AROUND + 2 + _NAME + 7 * _DIGEST + 9 + 5 + members + 1 + 27
    raise AssertionError("unreachable")
