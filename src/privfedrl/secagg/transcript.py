"""The public record of a round, for whoever audits it later.

Guarantee: a transcript that :meth:`Transcript.verify` accepts shows that the coordinator opened one
sum over exactly the named survivors, that at least ``threshold`` holders of every member signed
this set (with every commitment and every masked vector in it), that everybody was registered and
valid when the round was opened, and which plan, model, round, previous transcript and ledger head
that was about. It holds no secret. The record of an ideal sum says in every copy that nothing
protected it.

Notation: U1/U2/U3/U4 and holders as in ``agreement``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from privfedrl.errors import (
    AuthenticationFailed,
    ConfigurationError,
    RemoteProtocolError,
)
from privfedrl.parties.binding import DIGEST_BYTES, digest
from privfedrl.parties.frames import HEADER_BYTES
from privfedrl.parties.identity import Identity, Registry
from privfedrl.parties.members import Members
from privfedrl.primitives.signing import SIGNATURE_BYTES
from privfedrl.primitives.stream import RingVector
from privfedrl.secagg.agreement import (
    Cohort,
    SignedSet,
    check_advert,
    feasible,
    members_of,
    shared_digest,
    sum_digest,
    survivors_digest,
)
from privfedrl.secagg.merkle import merkle_root
from privfedrl.secagg.messages import (
    Advertise,
    Consistency,
    FrameReader,
    IdealBody,
    RoundConfig,
    TranscriptBody,
    config_digest,
    encode_frame,
    peek,
)
from privfedrl.secagg.parameters import MAX_CLIENTS, SecAggParameters
from privfedrl.secagg.phases import AbortCode
from privfedrl.secagg.sizes import Limits, MessageType, frame_limit
from privfedrl.secagg.suite import suite_of

__all__ = ["IDEAL", "PAIRWISE", "IdealRecord", "RoundRecord", "Transcript"]

PAIRWISE: Final = "pairwise masking"
IDEAL: Final = "no cryptographic protection"
_ANY: Final = Limits(
    num_clients=MAX_CLIENTS, neighbours=MAX_CLIENTS - 1, vector_length=1, ring_bits=32
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """What a finished round leaves for its transcript: signed frames and public sets.

    Attributes:
        config: the signed config frame. members: U1. adverts: its signed advert frames, in order.
        shared: U2. commitments: 32 bytes per member. survivors: U3. vectors: digests of its masked
        vectors. consents: the signed consistency frames of U4. sum_digest: pins the opened sum.
    """

    config: bytes
    members: Members
    adverts: tuple[bytes, ...]
    shared: Members
    commitments: tuple[bytes, ...]
    survivors: Members
    vectors: tuple[bytes, ...]
    consents: tuple[bytes, ...]
    sum_digest: bytes

    def body(self, sender: str, ledger_head: bytes) -> TranscriptBody:
        """The message that ``sender`` signs."""
        return TranscriptBody(
            sender=sender,
            config=self.config,
            members=self.members.to_bytes(),
            adverts=self.adverts,
            shared=self.shared.to_bytes(),
            commitments=b"".join(self.commitments),
            survivors=self.survivors.to_bytes(),
            vectors=b"".join(self.vectors),
            consents=self.consents,
            sum_digest=self.sum_digest,
            ledger_head=ledger_head,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IdealRecord:
    """What an ideal sum leaves: which one it was, and that nothing protected it.

    Attributes:
        task_id, plan_digest, model_digest, previous_transcript: 32 bytes each.
        round, attempt: as in a config. registry: who could take part.
        survivors: the names whose vectors are in the sum.
        vector: the sum, uint32 or uint64 [D].
    """

    task_id: bytes
    round: int
    attempt: int
    plan_digest: bytes
    model_digest: bytes
    registry: Registry
    previous_transcript: bytes
    survivors: Iterable[str]
    vector: RingVector = field(repr=False)

    def body(self, sender: str, ledger_head: bytes) -> IdealBody:
        """The message that ``sender`` signs."""
        indices = (self.registry.index_of(name) for name in self.survivors)
        return IdealBody(
            sender=sender,
            protection=IDEAL,
            task_id=self.task_id,
            round=self.round,
            attempt=self.attempt,
            plan_digest=self.plan_digest,
            model_digest=self.model_digest,
            registry_digest=self.registry.digest,
            previous_transcript=self.previous_transcript,
            survivors=Members.of(indices, len(self.registry.agents)).to_bytes(),
            sum_digest=_ideal_digest(self.task_id, self.round, self.attempt, self.vector),
            ledger_head=ledger_head,
        )


@dataclass(frozen=True, slots=True)
class Transcript:
    """One signed record. ``data`` is the whole frame, as stored and published."""

    data: bytes = field(repr=False)
    body: TranscriptBody | IdealBody = field(repr=False)

    @classmethod
    def sign(
        cls, record: RoundRecord | IdealRecord, *, identity: Identity, ledger_head: bytes
    ) -> Transcript:
        """The coordinator's signature on ``record`` and its ledger's head (32 opaque bytes)."""
        if len(ledger_head) != DIGEST_BYTES:
            raise ConfigurationError(f"ledger_head must be {DIGEST_BYTES} bytes")
        body = record.body(identity.name, ledger_head)
        return cls(encode_frame(body, identity), body)

    def to_bytes(self) -> bytes:
        """The signed frame."""
        return self.data

    @classmethod
    def from_bytes(cls, data: bytes) -> Transcript:
        """Parse, without trusting it: call :meth:`verify` next.

        Raises:
            RemoteProtocolError: not a transcript frame, or too long for any cohort.
        """
        number = int.from_bytes(data[6:8], "big") if isinstance(data, bytes) else 0
        kind = MessageType.IDEAL if number == MessageType.IDEAL else MessageType.TRANSCRIPT
        return cls(data, peek(data, kind, limit=frame_limit(kind, _ANY)))

    @property
    def digest(self) -> bytes:
        """SHA-256 of the frame: the ``previous_transcript`` of the next round."""
        return hashlib.sha256(self.data).digest()

    @property
    def protection(self) -> str:
        """ "pairwise masking" or "no cryptographic protection"."""
        return PAIRWISE if isinstance(self.body, TranscriptBody) else IDEAL

    @property
    def config(self) -> RoundConfig | IdealBody:
        """What names the round (task_id, round, attempt, the digests), as parsed.

        Only as trustworthy as :meth:`verify` says.
        """
        return self.body if isinstance(self.body, IdealBody) else _config(self.body)

    def survivors(self, registry: Registry) -> tuple[str, ...]:
        """U3, sorted."""
        members = Members.from_bytes(self.body.survivors, len(registry.agents))
        return tuple(registry.agents[index] for index in members.indices())

    @property
    def ledger_head(self) -> bytes:
        """The 32 bytes that the coordinator's caller supplied."""
        return self.body.ledger_head

    def verify(self, registry: Registry, *, previous: bytes | None = None) -> None:
        """Check every signature and every link.

        Args:
            registry: pinned out of band.
            previous: digest of the transcript before this one, if it is known.
        Raises:
            RemoteProtocolError, AuthenticationFailed, RoundAborted: the record does not hold up.
        """
        if self.config.registry_digest != registry.digest:
            raise RemoteProtocolError("the transcript is about another registry")
        if previous is not None and self.config.previous_transcript != previous:
            raise RemoteProtocolError("the transcript does not follow the given one")
        if isinstance(self.body, IdealBody):
            _verify_ideal(self.data, self.body, registry)
        else:
            _verify_round(self.data, self.body, registry)

    def verify_sum(self, vector: RingVector) -> None:
        """Check that ``vector`` is the sum that this transcript is about.

        Raises:
            AuthenticationFailed: it is another one, or of another type or shape.
            RemoteProtocolError: the record names unsound parameters.
        """
        body = self.body
        if isinstance(body, IdealBody):
            expected = _ideal_digest(body.task_id, body.round, body.attempt, vector)
        else:
            parameters = _parameters(_config(body))
            form = np.dtype(f"uint{parameters.ring_bits}"), (parameters.vector_length,)
            if (vector.dtype.newbyteorder("="), vector.shape) != form:
                raise AuthenticationFailed
            expected = sum_digest(_cfg(body), _little_endian(vector))
        if expected != body.sum_digest:
            raise AuthenticationFailed


def _config(body: TranscriptBody) -> RoundConfig:
    limit = frame_limit(MessageType.CONFIG, _ANY)
    config: RoundConfig = peek(body.config, MessageType.CONFIG, limit=limit)
    return config


def _cfg(body: TranscriptBody) -> bytes:
    return config_digest(body.config[HEADER_BYTES:-SIGNATURE_BYTES])


def _little_endian(vector: RingVector) -> bytes:
    return vector.astype(vector.dtype.newbyteorder("<"), copy=False).tobytes()


def _ideal_digest(task_id: bytes, round_index: int, attempt: int, vector: RingVector) -> bytes:
    point = round_index.to_bytes(8, "big") + attempt.to_bytes(8, "big")
    form = vector.dtype.newbyteorder("=").name.encode("ascii")
    return digest("ideal-sum", task_id, point, form, _little_endian(vector))


def _verify_ideal(data: bytes, body: IdealBody, registry: Registry) -> None:
    """The coordinator's signature on a well-formed record; there is nothing more to check."""
    members = Members.from_bytes(body.survivors, len(registry.agents))
    if not len(members):
        raise RemoteProtocolError("an ideal sum must be over somebody")
    limits = Limits(num_clients=len(registry.agents), neighbours=1, vector_length=1, ring_bits=32)
    FrameReader(registry, limits).read(data, frozenset({MessageType.IDEAL}))


def _verify_round(data: bytes, body: TranscriptBody, registry: Registry) -> None:
    config = _config(body)
    # before anything is computed from the record's own numbers
    if int.from_bytes(config.parameters[:8], "big") != len(registry.agents):
        raise RemoteProtocolError("num_clients is not the number of registered agents")
    signed = FrameReader(registry, _ANY)
    signed.read(data, frozenset({MessageType.TRANSCRIPT}))
    signed.read(body.config, frozenset({MessageType.CONFIG}))
    parameters = _parameters(config)
    reader = FrameReader(registry, parameters)
    _check_valid(registry, config.sender, config)
    cohort = _cohort(body, config, registry, parameters, reader)
    floor, within = parameters.stage_floor(len(cohort.members)), cohort.members
    shared = _signed_set(body.shared, body.commitments, registry, within, floor)
    survivors = _signed_set(body.survivors, body.vectors, registry, shared.members, floor)
    agreed = survivors_digest(cohort.roster, shared_digest(cohort.roster, shared), survivors)
    signers = _signers(body.consents, cohort, reader, agreed)
    alive = {registry.agents[index] for index in survivors.members.indices()}
    if signers != sorted(set(signers)) or not set(signers) <= alive:
        raise RemoteProtocolError("signers must be sorted, distinct and survivors")
    _check_quorums(cohort, shared.members, set(signers))


def _parameters(config: RoundConfig) -> SecAggParameters:
    try:
        return config.decoded_parameters()
    except ConfigurationError as error:
        raise RemoteProtocolError(f"the transcript's parameters are unsound: {error}") from error


def _check_valid(registry: Registry, name: str, config: RoundConfig) -> None:
    if not registry.valid_at(name, config.opened_at):
        raise RemoteProtocolError(f"{name} was not valid when the round was opened")


def _cohort(
    body: TranscriptBody,
    config: RoundConfig,
    registry: Registry,
    parameters: SecAggParameters,
    reader: FrameReader,
) -> Cohort:
    """U1 from its signed adverts, which must be exactly those of the named members."""
    members = members_of(
        body.members,
        registry=registry,
        within=None,
        floor=parameters.floor,
        code=AbortCode.ROSTER_MISMATCH,
    )
    cfg, suite = _cfg(body), suite_of(config.suite)
    adverts: list[Advertise] = []
    for frame in body.adverts:
        advert = reader.read(frame, frozenset({MessageType.ADVERTISE})).message
        check_advert(advert, cfg=cfg, suite=suite)
        _check_valid(registry, advert.sender, config)
        adverts.append(advert)
    names = [registry.agents[index] for index in members.indices()]
    if [advert.sender for advert in adverts] != names:
        raise RemoteProtocolError("the adverts are not those of the roster's members, in order")
    keys = {key for advert in adverts for key in (advert.share_key, advert.mask_key)}
    if len(keys) != 2 * len(adverts):
        raise RemoteProtocolError("two keys of the roster are equal")
    return Cohort.of(
        cfg=cfg,
        suite=suite,
        registry=registry,
        members=members,
        topology=feasible(parameters, len(members)),
        root=merkle_root(body.adverts),
        adverts=adverts,
    )


def _signed_set(
    encoded: bytes, digests: bytes, registry: Registry, within: Members, floor: int
) -> SignedSet:
    members = members_of(
        encoded,
        registry=registry,
        within=within,
        floor=floor,
        code=AbortCode.SURVIVOR_MISMATCH,
    )
    if len(digests) != DIGEST_BYTES * len(members):
        raise RemoteProtocolError(f"expected {len(members)} digests of {DIGEST_BYTES} bytes")
    leaves = [digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES)]
    return SignedSet(members=members, root=merkle_root(leaves))


def _signers(
    consents: Sequence[bytes], cohort: Cohort, reader: FrameReader, agreed: bytes
) -> list[str]:
    signers = []
    for data in consents:
        consent: Consistency = reader.read(data, frozenset({MessageType.CONSISTENCY})).message
        bound = (consent.cfg, consent.roster, consent.survivors)
        if bound != (cohort.cfg, cohort.roster, agreed):
            raise RemoteProtocolError(f"{consent.sender} signed another set than the recorded")
        signers.append(consent.sender)
    return signers


def _check_quorums(cohort: Cohort, shared: Members, signers: set[str]) -> None:
    """Whoever's mask was recovered, at least t of its holders must have signed."""
    for index in shared.indices():
        name = cohort.registry.agents[index]
        found = len(signers.intersection(cohort.holders(name)))
        if found < cohort.threshold:
            raise RemoteProtocolError(
                f"expected >= {cohort.threshold} signatures by holders of {name}, got {found}"
            )
