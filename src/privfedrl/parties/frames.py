"""Signed frames of bounded size: the envelope around every message of every protocol.

Guarantee: :meth:`FrameReader.read` returns a message only if its size is allowed, it decodes
without remainder, its sender is registered in the right role and the signature covers the very
bytes that were received. Everything else is a typed error, in memory bounded by the size limit.

Frame: magic, 4 bytes | version u16 | type u16 | payload length u32 | payload | signature (64
bytes) | attachment. The version's high byte is the protocol, its low byte the suite. The payload is
a msgpack array that starts with the type number. The signature covers
L(type) || SHA-256(header || payload). An attachment is something long that a field of the payload
pins by digest, so that it is hashed once; most types have none, and end with the signature.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from privfedrl.errors import AuthenticationFailed, ConfigurationError, RemoteProtocolError
from privfedrl.parties.binding import label
from privfedrl.parties.identity import NAME_PATTERN, Identity, Registry, Role
from privfedrl.primitives.signing import SIGNATURE_BYTES

__all__ = [
    "HEADER_BYTES",
    "MAX_NAME_CHARS",
    "Attempt",
    "Digest",
    "Frame",
    "FrameReader",
    "FrameType",
    "Name",
    "Outgoing",
    "Payload",
    "Round",
    "Row",
    "Seconds",
    "Wire",
    "bin_size",
]

HEADER_BYTES: Final = 12
"""Magic 4, version 2, type 2, payload length 4."""

_HEADER: Final = struct.Struct(">4sHHI")
_SHOWN_BYTES: Final = 1024
_ENCODER: Final = msgspec.msgpack.Encoder()

Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
# SQLite keeps signed 64-bit integers, so the journal's range is the wire's range
Round = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Attempt = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Seconds = Annotated[int, Meta(ge=0, le=2**53 - 1)]

MAX_NAME_CHARS: Final = 64

Verify = Callable[[bytes, bytes, bytes], None]
"""(public key, signature, message) -> None, or AuthenticationFailed."""


def bin_size(size: int) -> int:
    """Bytes that ``size`` bytes take in msgpack, with their header."""
    return size + (2 if size < 2**8 else 3 if size < 2**16 else 5)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Bytes that the caller must carry to the participant named ``recipient``."""

    recipient: str
    data: bytes


class FrameType(IntEnum):
    """Base of a protocol's message types: numbers on the wire, each with a name."""

    @property
    def label(self) -> str:
        """The name under which frames of this type are signed."""
        return self.name.lower().replace("_", "-")


class Payload(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True
):
    """Base of all payloads; each names its ``sender``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A frame that was read and verified.

    ``digest`` is what was signed and its signature, 96 bytes: it tells any two frames apart.
    ``attachment`` is what the payload pins, empty for most types.
    """

    type: Any  # a member of the protocol's own FrameType
    message: Any  # the struct of that type; handlers state which one they take
    payload: memoryview
    digest: bytes
    attachment: memoryview = field(default_factory=lambda: memoryview(b""))

    @property
    def sender(self) -> str:
        """The registered name whose signature was verified."""
        return str(self.message.sender)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one message type is.

    Attributes:
        struct: of its payload. role: of its sender.
        pins: (message, attachment) -> whether the message names that attachment by its digest;
            None for a type that has none.
    """

    struct: type[Any]
    role: Role
    pins: Callable[[Any, memoryview], bool] | None = None


@dataclass(frozen=True, slots=True)
class _Parts:
    kind: FrameType
    verify: Verify
    signed: memoryview
    payload: memoryview
    signature: memoryview
    attachment: memoryview


class Wire:
    """The messages of one protocol, as a table.

    Args:
        magic: 4 bytes that start every frame.
        protocol: version of the protocol, 1 .. 255.
        suite: number of the suite that frames are written in.
        suite_verify: suite number -> its signature check, or RemoteProtocolError.
        prefix: before every label, so that no two protocols sign alike.
        types: the type numbers.
        rows: what each type is.
    """

    def __init__(
        self,
        *,
        magic: bytes,
        protocol: int,
        suite: int,
        suite_verify: Callable[[int], Verify],
        prefix: str = "",
        types: type[FrameType],
        rows: Mapping[Any, Row],
    ) -> None:
        self.rows = dict(rows)
        self._magic, self._protocol, self._prefix = magic, protocol, prefix
        self._version = protocol << 8 | suite
        self._suite_verify = suite_verify
        self._kinds = types
        self._numbers = {row.struct: kind for kind, row in rows.items()}
        self._decoders = {kind: msgspec.msgpack.Decoder(row.struct) for kind, row in rows.items()}

    def label(self, kind: FrameType) -> bytes:
        """L(type): what the signature covers first."""
        return label(self._prefix + kind.label)

    def encode(
        self, message: Any, identity: Identity, attachment: bytes | memoryview = b""
    ) -> bytes:
        """The signed frame of ``message``; ``identity`` must be its sender."""
        if message.sender != identity.name:
            raise ConfigurationError(f"sender must be {identity.name}, got {message.sender}")
        kind = self._numbers[type(message)]
        frame = bytearray(HEADER_BYTES)
        _ENCODER.encode_into(message, frame, HEADER_BYTES)
        length = len(frame) - HEADER_BYTES
        _HEADER.pack_into(frame, 0, self._magic, self._version, kind, length)
        frame += identity.sign(self.label(kind) + hashlib.sha256(frame).digest())
        if self.rows[kind].pins is None and len(attachment):
            raise ConfigurationError(f"{kind.label} has no attachment")
        return b"".join((frame, attachment))

    def peek(self, data: bytes, kind: FrameType, *, limit: int) -> Any:
        """The struct of ``kind`` in ``data``, without looking at its sender or signature.

        Raises:
            RemoteProtocolError: malformed, of another type or longer than ``limit``.
        """
        parts = self.split(data, frozenset({kind}), lambda _: limit)
        return self.decode(kind, parts.payload)

    def split(
        self, data: bytes, expected: frozenset[Any], limit_of: Callable[[Any], int]
    ) -> _Parts:
        """Check the envelope; nothing of the payload is looked at before its size is allowed."""
        if not isinstance(data, bytes) or len(data) < HEADER_BYTES + SIGNATURE_BYTES:
            raise RemoteProtocolError("a frame must be bytes, at least header and signature")
        magic, version, number, length = _HEADER.unpack_from(data)
        if magic != self._magic:
            raise RemoteProtocolError(f"a frame must start with {self._magic.decode()}")
        if version >> 8 != self._protocol:
            raise RemoteProtocolError(
                f"protocol version must be {self._protocol}, got {version >> 8}"
            )
        if number not in expected:
            raise RemoteProtocolError(f"message type {number} is not expected here")
        kind = self._kinds(number)
        if len(data) > limit_of(kind):
            raise RemoteProtocolError(f"{kind.label} must be <= {limit_of(kind)} bytes")
        rest = len(data) - HEADER_BYTES - length - SIGNATURE_BYTES
        if rest < 0 or (rest and self.rows[kind].pins is None):
            raise RemoteProtocolError(f"{kind.label} has another length than its header says")
        view, end = memoryview(data), HEADER_BYTES + length
        return _Parts(
            kind,
            self._suite_verify(version & 0xFF),
            signed=view[:end],
            payload=view[HEADER_BYTES:end],
            signature=view[end : end + SIGNATURE_BYTES],
            attachment=view[end + SIGNATURE_BYTES :],
        )

    def decode(self, kind: FrameType, payload: bytes | memoryview) -> Any:
        """The struct in a payload whose size was checked."""
        try:
            return self._decoders[kind].decode(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            # only the kind of failure: the decoder's text may quote what the peer sent
            raise RemoteProtocolError(f"malformed {kind.label}: {type(error).__name__}") from None


class FrameReader:
    """Reads frames of one round and remembers which ones it has verified already.

    Args:
        wire: the protocol. registry: who may speak, in which role.
        limits: largest frame of each type, bytes.
        shown: types of small frames that many see: read more than once, so remembered.
        capacity: how many are remembered at most; a signer who floods gains no memory.
        verified: the frames of such types that were read already, by their bytes; a simulation
            gives all its participants the same memory, so that each is verified once.
    """

    __slots__ = ("_capacity", "_limits", "_registry", "_shown", "_verified", "_wire")

    def __init__(
        self,
        wire: Wire,
        registry: Registry,
        limits: Mapping[Any, int],
        *,
        shown: frozenset[Any] = frozenset(),
        capacity: int = 0,
        verified: dict[bytes, Frame] | None = None,
    ) -> None:
        self._wire = wire
        self._registry = registry
        self._limits = limits
        self._shown = shown
        self._capacity = capacity
        self._verified = {} if verified is None else verified

    def read(self, data: bytes, expected: frozenset[Any]) -> Frame:
        """Parse and verify one frame of a type in ``expected``.

        Raises:
            RemoteProtocolError: malformed, oversized, of another version or type, or from somebody
                who may not send it.
            AuthenticationFailed: unknown sender, wrong signature or another attachment.
        """
        known = self._remembered(data)
        if known is not None and known.type in expected:
            return known
        parts = self._wire.split(data, expected, self._limits.__getitem__)
        kind, message = parts.kind, self._wire.decode(parts.kind, parts.payload)
        self._check_sender(kind, message.sender)
        signature, signed = bytes(parts.signature), hashlib.sha256(parts.signed).digest()
        key = self._registry.verify_key_of(message.sender)
        parts.verify(key, signature, self._wire.label(kind) + signed)
        pins = self._wire.rows[kind].pins
        if pins is not None and not pins(message, parts.attachment):
            raise AuthenticationFailed
        frame = Frame(
            type=kind,
            message=message,
            payload=parts.payload,
            digest=signed + signature,
            attachment=parts.attachment,
        )
        if kind in self._shown and len(self._verified) < self._capacity:
            self._verified[data] = frame
        return frame

    def _remembered(self, data: object) -> Frame | None:
        """The frame of these bytes, if it is small and was verified before."""
        if not isinstance(data, bytes) or len(data) > _SHOWN_BYTES:
            return None  # looking a long vector up would cost more than it saves
        return self._verified.get(data)

    def _check_sender(self, kind: FrameType, sender: str) -> None:
        if sender not in self._registry:
            raise AuthenticationFailed
        role = self._wire.rows[kind].role
        if self._registry.role_of(sender) != role:
            raise RemoteProtocolError(f"{kind.label} must come from a registered {role}")
