"""The ten messages of a round and the signed frame around each.

Guarantee: :meth:`FrameReader.read` returns a message only if its size is allowed by the
parameters, it decodes without remainder, its sender is registered in the right role and the
signature covers the very bytes that were received. Everything else is a typed error, in memory
bounded by the size limit.

Frame: magic "PFRL" | version u16 | type u16 | payload length u32 | payload | signature (64 bytes).
The version's high byte is the protocol, its low byte the suite. The signature covers
L(type) || SHA-256(header || payload).

Notation: cfg = digest of the round's config, roster = digest of the set U1 of members with their
adverts, U2/U3/U4 = who shared keys / sent a masked vector / signed the survivor set. Sets are
encoded as in ``members``, Merkle roots and proofs as in ``merkle``.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from privfedrl.errors import AuthenticationFailed, ConfigurationError, RemoteProtocolError
from privfedrl.primitives.shamir import SHARE_BYTES
from privfedrl.primitives.signing import SIGNATURE_BYTES
from privfedrl.secagg.binding import digest, label
from privfedrl.secagg.identity import NAME_PATTERN, Identity, Registry
from privfedrl.secagg.members import members_bytes
from privfedrl.secagg.parameters import MAX_CLIENTS, SecAggParameters
from privfedrl.secagg.sizes import (
    CLIENT_TYPES,
    HEADER_BYTES,
    PARAMETER_BYTES,
    SEALED_BYTES,
    Limits,
    MessageType,
    frame_limit,
)
from privfedrl.secagg.suite import DEFAULT_SUITE, Suite, suite_of

__all__ = [
    "Advertise",
    "Consistency",
    "Delivery",
    "Frame",
    "FrameReader",
    "IdealBody",
    "Masked",
    "Message",
    "Outgoing",
    "Roster",
    "RoundConfig",
    "Shares",
    "Survivors",
    "TranscriptBody",
    "Unmask",
    "UnmaskRequest",
    "config_digest",
    "encode_frame",
    "peek",
]

_MAGIC: Final = b"PFRL"
_PROTOCOL: Final = 1
_HEADER: Final = struct.Struct(">4sHHI")

Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Sealed = Annotated[bytes, Meta(min_length=SEALED_BYTES, max_length=SEALED_BYTES)]
Signature = Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
Receipts = Annotated[tuple[tuple[Name, Signature], ...], Meta(max_length=MAX_CLIENTS)]
Set = Annotated[bytes, Meta(max_length=members_bytes(MAX_CLIENTS))]
Proof = Annotated[bytes, Meta(max_length=32 * 16 * MAX_CLIENTS)]
Digests = Annotated[bytes, Meta(max_length=32 * MAX_CLIENTS)]
Frames = Annotated[tuple[bytes, ...], Meta(max_length=MAX_CLIENTS)]
# SQLite keeps signed 64-bit integers, so the journal's range is the wire's range
Round = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Attempt = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Seconds = Annotated[int, Meta(ge=0, le=2**53 - 1)]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Bytes that the caller must carry to the participant named ``recipient``."""

    recipient: str
    data: bytes


class _Wire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all payloads: a msgpack array that starts with the type number."""


class RoundConfig(_Wire, frozen=True, tag=int(MessageType.CONFIG)):
    """Everything that the participants of one round must agree on, signed by the coordinator.

    ``opened_at`` is the coordinator's time, in seconds since 1970-01-01 UTC: identities must be
    valid then. ``round_seed`` is 32 public bytes for anything that all agents draw alike;
    ``parameters`` are the canonical bytes of :class:`SecAggParameters`.
    """

    suite: Annotated[int, Meta(ge=1, le=127)]
    sender: Name
    task_id: Digest
    round: Round
    attempt: Attempt
    opened_at: Seconds
    plan_digest: Digest
    model_digest: Digest
    registry_digest: Digest
    previous_transcript: Digest
    parameters: Annotated[bytes, Meta(min_length=PARAMETER_BYTES, max_length=PARAMETER_BYTES)]
    round_seed: Digest

    def decoded_parameters(self) -> SecAggParameters:
        """The parameters as a value; raises ConfigurationError if they are unsound."""
        return SecAggParameters.from_canonical_bytes(self.parameters)


class Advertise(_Wire, frozen=True, tag=int(MessageType.ADVERTISE)):
    """M1: the client's two one-round public keys, for shares and for masks."""

    cfg: Digest
    sender: Name
    share_key: Key
    mask_key: Key


class Roster(_Wire, frozen=True, tag=int(MessageType.ROSTER)):
    """Answer to M1: U1, and the signed adverts of ``recipient`` and its neighbours in order.

    ``proof`` leads from these adverts to the Merkle root over all adverts of U1; it is empty where
    everybody is a neighbour.
    """

    cfg: Digest
    sender: Name
    recipient: Name
    members: Set
    adverts: Frames
    proof: Proof


class Shares(_Wire, frozen=True, tag=int(MessageType.SHARES)):
    """M2: the commitment to the self mask, and one sealed pair of shares per neighbour in order."""

    cfg: Digest
    sender: Name
    roster: Digest
    commitment: Digest
    sealed: Annotated[tuple[Sealed, ...], Meta(max_length=MAX_CLIENTS)]


class Delivery(_Wire, frozen=True, tag=int(MessageType.DELIVERY)):
    """Answer to M2: U2, the root over its commitments, and what the neighbours in it sealed.

    ``proof`` leads from the recipient's own commitment to ``root``.
    """

    cfg: Digest
    sender: Name
    recipient: Name
    roster: Digest
    members: Set
    root: Digest
    proof: Proof
    sealed: Annotated[tuple[Sealed, ...], Meta(max_length=MAX_CLIENTS)]


class Masked(_Wire, frozen=True, tag=int(MessageType.MASKED)):
    """M3: the masked vector, little-endian words, and the digest of U2 that the masks assume.

    ``receipt`` is the sender's signature on that digest alone, for others to see without the vector
    (``agreement.receipt_text``).
    """

    cfg: Digest
    sender: Name
    roster: Digest
    shared: Digest
    receipt: Signature
    vector: memoryview


class Survivors(_Wire, frozen=True, tag=int(MessageType.SURVIVORS)):
    """Answer to M3: U3 and the root over the digests of its masked vectors.

    ``proof`` leads from the digest of the recipient's own vector to ``root``.
    """

    cfg: Digest
    sender: Name
    recipient: Name
    roster: Digest
    members: Set
    root: Digest
    proof: Proof


class Consistency(_Wire, frozen=True, tag=int(MessageType.CONSISTENCY)):
    """M4: the client's signature on one survivor set, given once per round."""

    cfg: Digest
    sender: Name
    roster: Digest
    survivors: Digest


class UnmaskRequest(_Wire, frozen=True, tag=int(MessageType.UNMASK_REQUEST)):
    """Answer to M4: who of U3 among the recipient's holders assumes the same U2 as it does.

    ``consents`` are the signed consistency frames of those in U4, ``receipts`` what the others sent
    with their vectors.
    """

    cfg: Digest
    sender: Name
    recipient: Name
    roster: Digest
    consents: Frames
    receipts: Receipts


class Unmask(_Wire, frozen=True, tag=int(MessageType.UNMASK)):
    """M5: one share per member of U2 whose shares the sender holds, in order.

    The kind follows from U3 alone. There is one place per member, so a frame that holds both shares
    of somebody cannot be written.
    """

    cfg: Digest
    sender: Name
    roster: Digest
    shares: Annotated[bytes, Meta(max_length=MAX_CLIENTS * SHARE_BYTES)]


class TranscriptBody(_Wire, frozen=True, tag=int(MessageType.TRANSCRIPT)):
    """The public record of a finished round, signed by the coordinator. See ``transcript``.

    ``commitments`` and ``vectors`` hold 32 bytes per member of ``shared`` and of ``survivors``.
    """

    sender: Name
    config: bytes
    members: Set
    adverts: Frames
    shared: Set
    commitments: Digests
    survivors: Set
    vectors: Digests
    consents: Frames
    sum_digest: Digest
    ledger_head: Digest


class IdealBody(_Wire, frozen=True, tag=int(MessageType.IDEAL)):
    """The record of a sum that nothing protected; ``protection`` says so in every copy."""

    sender: Name
    protection: Literal["no cryptographic protection"]
    task_id: Digest
    round: Round
    attempt: Attempt
    plan_digest: Digest
    model_digest: Digest
    registry_digest: Digest
    previous_transcript: Digest
    survivors: Set
    sum_digest: Digest
    ledger_head: Digest


Message = (
    RoundConfig
    | Advertise
    | Roster
    | Shares
    | Delivery
    | Masked
    | Survivors
    | Consistency
    | UnmaskRequest
    | Unmask
    | TranscriptBody
    | IdealBody
)

_STRUCTS: Final[dict[MessageType, type[Any]]] = {
    MessageType.CONFIG: RoundConfig,
    MessageType.ADVERTISE: Advertise,
    MessageType.ROSTER: Roster,
    MessageType.SHARES: Shares,
    MessageType.DELIVERY: Delivery,
    MessageType.MASKED: Masked,
    MessageType.SURVIVORS: Survivors,
    MessageType.CONSISTENCY: Consistency,
    MessageType.UNMASK_REQUEST: UnmaskRequest,
    MessageType.UNMASK: Unmask,
    MessageType.TRANSCRIPT: TranscriptBody,
    MessageType.IDEAL: IdealBody,
}
_SHOWN: Final = frozenset({MessageType.CONFIG, MessageType.ADVERTISE, MessageType.CONSISTENCY})
"""Small frames that many see: read more than once."""
_SHOWN_BYTES: Final = 1024
_TYPES: Final = {struct_type: kind for kind, struct_type in _STRUCTS.items()}
_DECODERS: Final = {kind: msgspec.msgpack.Decoder(row) for kind, row in _STRUCTS.items()}
_ENCODER: Final = msgspec.msgpack.Encoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A frame that was read and verified.

    ``digest`` is what was signed and its signature, 96 bytes: it tells any two frames apart.
    """

    type: MessageType
    message: Any  # the struct of ``type``; handlers state which one they take
    payload: memoryview
    digest: bytes

    @property
    def sender(self) -> str:
        """The registered name whose signature was verified."""
        return str(self.message.sender)


def config_digest(payload: bytes | memoryview) -> bytes:
    """cfg: the digest of the received config payload, bound into every key and message."""
    return digest("config", payload)


def encode_frame(message: Message, identity: Identity) -> bytes:
    """The signed frame of ``message``; ``identity`` must be its sender."""
    if message.sender != identity.name:
        raise ConfigurationError(f"sender must be {identity.name}, got {message.sender}")
    kind = _TYPES[type(message)]
    version = _PROTOCOL << 8 | DEFAULT_SUITE.suite_id
    frame = bytearray(HEADER_BYTES)
    _ENCODER.encode_into(message, frame, HEADER_BYTES)
    _HEADER.pack_into(frame, 0, _MAGIC, version, kind, len(frame) - HEADER_BYTES)
    frame += identity.sign(label(kind.label) + hashlib.sha256(frame).digest())
    return bytes(frame)


def peek(data: bytes, kind: MessageType, *, limit: int) -> Any:
    """The struct of ``kind`` in ``data``, without looking at its sender or signature.

    Raises:
        RemoteProtocolError: malformed, of another type or longer than ``limit``.
    """
    return _decode(kind, _split(data, frozenset({kind}), lambda _: limit).payload)


@dataclass(frozen=True, slots=True)
class _Parts:
    kind: MessageType
    suite: Suite
    payload: memoryview


def _split(
    data: bytes, expected: frozenset[MessageType], limit_of: Callable[[MessageType], int]
) -> _Parts:
    """Check the envelope; nothing of the payload is looked at before its size is allowed."""
    if not isinstance(data, bytes) or len(data) < HEADER_BYTES + SIGNATURE_BYTES:
        raise RemoteProtocolError("a frame must be bytes, at least header and signature")
    magic, version, number, length = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise RemoteProtocolError("a frame must start with PFRL")
    if version >> 8 != _PROTOCOL:
        raise RemoteProtocolError(f"protocol version must be {_PROTOCOL}, got {version >> 8}")
    if number not in expected:
        raise RemoteProtocolError(f"message type {number} is not expected here")
    kind = MessageType(number)
    if len(data) > limit_of(kind):
        raise RemoteProtocolError(f"{kind.label} must be <= {limit_of(kind)} bytes")
    if len(data) != HEADER_BYTES + length + SIGNATURE_BYTES:
        raise RemoteProtocolError(f"{kind.label} has another length than its header says")
    payload = memoryview(data)[HEADER_BYTES : HEADER_BYTES + length]
    return _Parts(kind, suite_of(version & 0xFF), payload)


def _decode(kind: MessageType, payload: memoryview) -> Any:
    try:
        return _DECODERS[kind].decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        # only the kind of failure: the decoder's text may quote what the peer sent
        raise RemoteProtocolError(f"malformed {kind.label}: {type(error).__name__}") from None


class FrameReader:
    """Reads frames of one round and remembers which ones it has verified already.

    Args:
        registry: who may speak, in which role.
        parameters: give the size limit of each type; so do bare limits.
        verified: the adverts and signatures that were read already, by their bytes; a simulation
            gives all its participants the same memory, so that each is verified once.
    """

    __slots__ = ("_capacity", "_limits", "_registry", "_verified")

    def __init__(
        self,
        registry: Registry,
        parameters: SecAggParameters | Limits,
        *,
        verified: dict[bytes, Frame] | None = None,
    ) -> None:
        self._registry = registry
        limits = parameters.limits if isinstance(parameters, SecAggParameters) else parameters
        self._limits = {kind: frame_limit(kind, limits) for kind in MessageType}
        self._verified = {} if verified is None else verified
        # a full round has at most n adverts and n consents; a signer who floods gains no memory
        self._capacity = 4 * limits.num_clients + 8

    def read(self, data: bytes, expected: frozenset[MessageType]) -> Frame:
        """Parse and verify one frame of a type in ``expected``.

        Raises:
            RemoteProtocolError: malformed, oversized, of another version or type, or from somebody
                who may not send it.
            AuthenticationFailed: unknown sender or wrong signature.
        """
        known = self._remembered(data)
        if known is not None and known.type in expected:
            return known
        parts = _split(data, expected, self._limits.__getitem__)
        kind, message = parts.kind, _decode(parts.kind, parts.payload)
        self._check_sender(kind, message.sender)
        signature = data[-SIGNATURE_BYTES:]
        signed = hashlib.sha256(memoryview(data)[:-SIGNATURE_BYTES]).digest()
        key = self._registry.verify_key_of(message.sender)
        parts.suite.verify(key, signature, label(kind.label) + signed)
        frame = Frame(type=kind, message=message, payload=parts.payload, digest=signed + signature)
        if kind in _SHOWN and len(self._verified) < self._capacity:
            self._verified[data] = frame
        return frame

    def _remembered(self, data: object) -> Frame | None:
        """The frame of these bytes, if it is small and was verified before."""
        if not isinstance(data, bytes) or len(data) > _SHOWN_BYTES:
            return None  # looking a long vector up would cost more than it saves
        return self._verified.get(data)

    def _check_sender(self, kind: MessageType, sender: str) -> None:
        if sender not in self._registry:
            raise AuthenticationFailed
        role = "agent" if kind in CLIENT_TYPES else "coordinator"
        if self._registry.role_of(sender) != role:
            raise RemoteProtocolError(f"{kind.label} must come from a registered {role}")
