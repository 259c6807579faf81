"""The ten messages of a round, each in a signed frame as in ``parties.frames``.

Guarantee: :meth:`FrameReader.read` returns a message only if its size is allowed by the
parameters, it decodes without remainder, its sender is registered in the right role and the
signature covers the very bytes that were received. Everything else is a typed error, in memory
bounded by the size limit.

Magic "PFRL", protocol 1, the suite as in ``suite``.

Notation: cfg = digest of the round's config, roster = digest of the set U1 of members with their
adverts, U2/U3/U4 = who shared keys / sent a masked vector / signed the survivor set. Sets are
encoded as in ``members``, Merkle roots and proofs as in ``merkle``.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import Meta

from privfedrl.parties import frames
from privfedrl.parties.binding import digest
from privfedrl.parties.frames import (
    Attempt,
    Digest,
    Frame,
    Name,
    Payload,
    Round,
    Row,
    Seconds,
    Wire,
)
from privfedrl.parties.identity import Registry
from privfedrl.parties.members import members_bytes
from privfedrl.primitives.shamir import SHARE_BYTES
from privfedrl.primitives.signing import SIGNATURE_BYTES
from privfedrl.secagg.parameters import MAX_CLIENTS, SecAggParameters
from privfedrl.secagg.sizes import (
    CLIENT_TYPES,
    PARAMETER_BYTES,
    SEALED_BYTES,
    Limits,
    MessageType,
    frame_limit,
)
from privfedrl.secagg.suite import DEFAULT_SUITE, suite_of

__all__ = [
    "Advertise",
    "Consistency",
    "Delivery",
    "FrameReader",
    "IdealBody",
    "Masked",
    "Message",
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

Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Sealed = Annotated[bytes, Meta(min_length=SEALED_BYTES, max_length=SEALED_BYTES)]
Signature = Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
Receipts = Annotated[tuple[tuple[Name, Signature], ...], Meta(max_length=MAX_CLIENTS)]
Set = Annotated[bytes, Meta(max_length=members_bytes(MAX_CLIENTS))]
Proof = Annotated[bytes, Meta(max_length=32 * 16 * MAX_CLIENTS)]
Digests = Annotated[bytes, Meta(max_length=32 * MAX_CLIENTS)]
Frames = Annotated[tuple[bytes, ...], Meta(max_length=MAX_CLIENTS)]


class RoundConfig(Payload, frozen=True, tag=int(MessageType.CONFIG)):
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


class Advertise(Payload, frozen=True, tag=int(MessageType.ADVERTISE)):
    """M1: the client's two one-round public keys, for shares and for masks."""

    cfg: Digest
    sender: Name
    share_key: Key
    mask_key: Key


class Roster(Payload, frozen=True, tag=int(MessageType.ROSTER)):
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


class Shares(Payload, frozen=True, tag=int(MessageType.SHARES)):
    """M2: the commitment to the self mask, and one sealed pair of shares per neighbour in order."""

    cfg: Digest
    sender: Name
    roster: Digest
    commitment: Digest
    sealed: Annotated[tuple[Sealed, ...], Meta(max_length=MAX_CLIENTS)]


class Delivery(Payload, frozen=True, tag=int(MessageType.DELIVERY)):
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


class Masked(Payload, frozen=True, tag=int(MessageType.MASKED)):
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


class Survivors(Payload, frozen=True, tag=int(MessageType.SURVIVORS)):
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


class Consistency(Payload, frozen=True, tag=int(MessageType.CONSISTENCY)):
    """M4: the client's signature on one survivor set, given once per round."""

    cfg: Digest
    sender: Name
    roster: Digest
    survivors: Digest


class UnmaskRequest(Payload, frozen=True, tag=int(MessageType.UNMASK_REQUEST)):
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


class Unmask(Payload, frozen=True, tag=int(MessageType.UNMASK)):
    """M5: one share per member of U2 whose shares the sender holds, in order.

    The kind follows from U3 alone. There is one place per member, so a frame that holds both shares
    of somebody cannot be written.
    """

    cfg: Digest
    sender: Name
    roster: Digest
    shares: Annotated[bytes, Meta(max_length=MAX_CLIENTS * SHARE_BYTES)]


class TranscriptBody(Payload, frozen=True, tag=int(MessageType.TRANSCRIPT)):
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


class IdealBody(Payload, frozen=True, tag=int(MessageType.IDEAL)):
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
_WIRE: Final = Wire(
    magic=b"PFRL",
    protocol=1,
    suite=DEFAULT_SUITE.suite_id,
    suite_verify=lambda number: suite_of(number).verify,
    types=MessageType,
    rows={
        kind: Row(struct=struct, role="agent" if kind in CLIENT_TYPES else "coordinator")
        for kind, struct in _STRUCTS.items()
    },
)
_SHOWN: Final = frozenset({MessageType.CONFIG, MessageType.ADVERTISE, MessageType.CONSISTENCY})
"""Small frames that many see: read more than once."""

encode_frame = _WIRE.encode
peek = _WIRE.peek


def config_digest(payload: bytes | memoryview) -> bytes:
    """cfg: the digest of the received config payload, bound into every key and message."""
    return digest("config", payload)


class FrameReader(frames.FrameReader):
    """Reads frames of one round; see :class:`privfedrl.parties.frames.FrameReader`.

    Args:
        registry: who may speak, in which role.
        parameters: give the size limit of each type; so do bare limits.
        verified: the adverts and signatures that were read already, by their bytes.
    """

    __slots__ = ()

    def __init__(
        self,
        registry: Registry,
        parameters: SecAggParameters | Limits,
        *,
        verified: dict[bytes, Frame] | None = None,
    ) -> None:
        limits = parameters.limits if isinstance(parameters, SecAggParameters) else parameters
        super().__init__(
            _WIRE,
            registry,
            {kind: frame_limit(kind, limits) for kind in MessageType},
            shown=_SHOWN,
            # a full round has at most n adverts and n consents
            capacity=4 * limits.num_clients + 8,
            verified=verified,
        )
