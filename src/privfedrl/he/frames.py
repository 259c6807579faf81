"""The messages of a homomorphic round, and how many bytes each may have.

Guarantee: as for every :class:`~privfedrl.parties.frames.Wire`: a message is returned only if its
size, form, sender, role and signature are right. Ciphertexts are residues (``residues``): there is
no field in which a peer could state a size, a count, a scale or a level of its own.

Magic "PFHE", protocol 1, suite 1 (Ed25519, SHA-256). Every frame after the first names ``cfg``, the
digest of the round's config, and all after the second name ``key``, the digest of the round's
public key, so nothing fits another round, plan or key. What is long is attached, pinned by a digest
that the protocol needs anyway.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, get_args

from msgspec import Meta

from privfedrl.errors import RemoteProtocolError
from privfedrl.he.digests import commitment, key_digest, sealed_digest, sum_digest
from privfedrl.he.lattice import public_key_bytes
from privfedrl.he.parameters import PARAMETER_BYTES, HEParameters
from privfedrl.parties import frames
from privfedrl.parties.binding import digest
from privfedrl.parties.frames import (
    HEADER_BYTES,
    MAX_NAME_CHARS,
    Attempt,
    Digest,
    FrameType,
    Name,
    Payload,
    Round,
    Row,
    Seconds,
    Wire,
    bin_size,
)
from privfedrl.parties.identity import Registry, Role
from privfedrl.parties.members import members_bytes
from privfedrl.primitives.signing import SIGNATURE_BYTES, verify

__all__ = [
    "Attestation",
    "Commit",
    "Context",
    "DecryptionReceipt",
    "FrameReader",
    "HEConfig",
    "Kind",
    "Opening",
    "Proposal",
    "Record",
    "Roster",
    "Sealed",
    "Upload",
    "config_digest",
    "encode_frame",
    "frame_limit",
    "peek",
]

MAX_CLIENTS: Final = 64
"""The largest max_clients of any parameter set."""

Digests = Annotated[bytes, Meta(max_length=32 * MAX_CLIENTS)]
Set = Annotated[bytes, Meta(max_length=members_bytes(MAX_CLIENTS))]
Frames = Annotated[tuple[bytes, ...], Meta(max_length=MAX_CLIENTS)]


class Kind(FrameType):
    """The type field of a frame."""

    CONFIG = 1
    CONTEXT = 2
    COMMIT = 3
    PROPOSAL = 4
    ROSTER = 5
    UPLOAD = 6
    SEALED = 7
    ATTESTATION = 8
    OPENING = 9
    RECEIPT = 10
    RECORD = 11


class HEConfig(Payload, frozen=True, tag=int(Kind.CONFIG)):
    """What all participants of one round must agree on, signed by the coordinator.

    Fields as in the pairwise protocol's RoundConfig; ``parameters`` are the canonical bytes of
    :class:`HEParameters`, ``parameters_digest`` also covers the moduli behind the set's name.
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
    parameters_digest: Digest
    round_seed: Digest


class Context(Payload, frozen=True, tag=int(Kind.CONTEXT)):
    """The public key of this round alone; attached: its packed residues. ``key`` is its digest."""

    cfg: Digest
    key: Digest
    sender: Name
    not_after: Seconds


class Commit(Payload, frozen=True, tag=int(Kind.COMMIT)):
    """An agent's promise of one set of ciphertexts, before it has seen anybody else's."""

    cfg: Digest
    key: Digest
    sender: Name
    commitment: Digest


class Proposal(Payload, frozen=True, tag=int(Kind.PROPOSAL)):
    """All signed commit frames that came in time, in order of the agents' names."""

    cfg: Digest
    key: Digest
    sender: Name
    commits: Frames


class Roster(Payload, frozen=True, tag=int(Kind.ROSTER)):
    """Who may contribute and what; the key authority signs one of a round. 32 bytes per member."""

    cfg: Digest
    key: Digest
    sender: Name
    members: Set
    commitments: Digests


class Upload(Payload, frozen=True, tag=int(Kind.UPLOAD)):
    """What a commitment promised; attached: the ciphertexts, packed."""

    cfg: Digest
    key: Digest
    sender: Name
    roster: Digest
    commitment: Digest


class Sealed(Payload, frozen=True, tag=int(Kind.SEALED)):
    """The contributors' summed ciphertexts (attached), and the head of a ledger that charged it.

    ``attestation`` is the auditor's frame where the parameters ask for one, else empty.
    """

    cfg: Digest
    key: Digest
    sender: Name
    roster: Digest
    contributors: Set
    ledger_head: Digest
    attestation: bytes
    sealed: Digest


class Attestation(Payload, frozen=True, tag=int(Kind.ATTESTATION)):
    """The auditor's word that this sum is that of these contributors' committed ciphertexts."""

    cfg: Digest
    key: Digest
    sender: Name
    roster: Digest
    contributors: Set
    sealed: Digest


class Opening(Payload, frozen=True, tag=int(Kind.OPENING)):
    """The sum (attached, little-endian words) and the receipt; to the coordinator alone."""

    cfg: Digest
    key: Digest
    sender: Name
    receipt: bytes
    total: Digest


class DecryptionReceipt(Payload, frozen=True, tag=int(Kind.RECEIPT)):
    """That the key authority has opened one sum of this round, charged it and ended the key.

    ``sealed`` and ``total`` are digests of the summed ciphertexts and of the sum. ``readding`` says
    who re-added; ``seal`` is the wire version of SEAL.
    """

    cfg: Digest
    key: Digest
    sender: Name
    roster: Digest
    contributors: Set
    sealed: Digest
    total: Digest
    ledger_head: Digest
    readding: Annotated[str, Meta(max_length=16)]
    seal: Annotated[str, Meta(max_length=16)]


class Record(Payload, frozen=True, tag=int(Kind.RECORD)):
    """The public record of a finished round, signed by the coordinator. See ``transcript``."""

    sender: Name
    config: bytes
    roster: bytes
    commits: Frames
    attestation: bytes
    receipt: bytes
    ledger_head: Digest


_ROWS: Final[dict[Kind, Row]] = {
    Kind.CONFIG: Row(struct=HEConfig, role="coordinator"),
    Kind.CONTEXT: Row(
        struct=Context,
        role="key-authority",
        pins=lambda message, key: message.key == key_digest(message.cfg, key),
    ),
    Kind.COMMIT: Row(struct=Commit, role="agent"),
    Kind.PROPOSAL: Row(struct=Proposal, role="coordinator"),
    Kind.ROSTER: Row(struct=Roster, role="key-authority"),
    Kind.UPLOAD: Row(
        struct=Upload,
        role="agent",
        pins=lambda message, data: (
            message.commitment == commitment(message.cfg, message.key, message.sender, data)
        ),
    ),
    Kind.SEALED: Row(
        struct=Sealed,
        role="coordinator",
        pins=lambda message, data: message.sealed == sealed_digest(message.cfg, message.key, data),
    ),
    Kind.ATTESTATION: Row(struct=Attestation, role="auditor"),
    Kind.OPENING: Row(
        struct=Opening,
        role="key-authority",
        pins=lambda message, words: message.total == sum_digest(message.cfg, words),
    ),
    Kind.RECEIPT: Row(struct=DecryptionReceipt, role="key-authority"),
    Kind.RECORD: Row(struct=Record, role="coordinator"),
}
SUITE: Final = 1


def _suite_verify(number: int) -> Any:
    if number != SUITE:
        raise RemoteProtocolError(f"suite must be {SUITE}, got {number}")
    return verify


_WIRE: Final = Wire(
    magic=b"PFHE",
    protocol=1,
    suite=SUITE,
    suite_verify=_suite_verify,
    prefix="he-",
    types=Kind,
    rows=_ROWS,
)
encode_frame = _WIRE.encode
peek = _WIRE.peek


def config_digest(payload: bytes | memoryview) -> bytes:
    """cfg: the digest of the received config payload, bound into every later message."""
    return digest("he-config", payload)


_NAME: Final = 2 + MAX_NAME_CHARS
_DIGEST: Final = bin_size(32)
_AROUND: Final = HEADER_BYTES + SIGNATURE_BYTES
_HEAD: Final = 1 + 1 + 2 * _DIGEST + _NAME  # array header, tag, cfg, key, sender
_SET: Final = bin_size(members_bytes(MAX_CLIENTS))
_CONFIG: Final = _AROUND + 3 + _NAME + 9 + 5 + 9 + 7 * _DIGEST + bin_size(PARAMETER_BYTES)
_COMMIT: Final = _AROUND + _HEAD + _DIGEST
_COMMITS: Final = 3 + MAX_CLIENTS * bin_size(_COMMIT)
_ROSTER: Final = _AROUND + _HEAD + _SET + bin_size(32 * MAX_CLIENTS)
_ATTESTATION: Final = _AROUND + _HEAD + 2 * _DIGEST + _SET
_RECEIPT: Final = _AROUND + _HEAD + 4 * _DIGEST + _SET + 2 * 17
_RECORD: Final = (
    _AROUND + 2 + _NAME + bin_size(_CONFIG) + bin_size(_ROSTER) + _COMMITS + bin_size(_ATTESTATION)
    + bin_size(_RECEIPT) + _DIGEST
)  # fmt: skip
_SMALL: Final = {
    Kind.CONFIG: _CONFIG,
    Kind.COMMIT: _COMMIT,
    Kind.PROPOSAL: _AROUND + _HEAD + _COMMITS,
    Kind.ROSTER: _ROSTER,
    Kind.ATTESTATION: _ATTESTATION,
    Kind.RECEIPT: _RECEIPT,
    Kind.RECORD: _RECORD,
}


def frame_limit(kind: Kind, parameters: HEParameters) -> int:
    """The largest frame of ``kind`` in bytes, header and signature included."""
    if kind in _SMALL:
        return _SMALL[kind]
    if kind is Kind.CONTEXT:
        return _AROUND + _HEAD + 9 + public_key_bytes(parameters.parameter_set)
    if kind is Kind.UPLOAD:
        return _AROUND + _HEAD + 2 * _DIGEST + parameters.ciphertext_bytes
    if kind is Kind.SEALED:
        around = _AROUND + _HEAD + 3 * _DIGEST + _SET + bin_size(_ATTESTATION)
        return around + parameters.ciphertext_bytes
    words = parameters.vector_length * parameters.ring_bits // 8
    return _AROUND + _HEAD + bin_size(_RECEIPT) + _DIGEST + words


class FrameReader(frames.FrameReader):
    """Reads frames of one round; see :class:`privfedrl.parties.frames.FrameReader`."""

    __slots__ = ()

    def __init__(self, registry: Registry, parameters: HEParameters) -> None:
        limits = {kind: frame_limit(kind, parameters) for kind in Kind}
        super().__init__(_WIRE, registry, limits)


SENDERS: Final[dict[Kind, Role]] = {kind: row.role for kind, row in _ROWS.items()}
"""Who may sign each kind."""
assert set(SENDERS.values()) == set(get_args(Role))
