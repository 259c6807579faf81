"""The public record of a round, for whoever audits it later.

Guarantee: a transcript that :meth:`Transcript.verify` accepts shows that the coordinator opened one
sum over exactly the named survivors, that at least ``threshold`` registered clients signed this set
(with every commitment and every masked vector in it), and which plan, model, round, previous
transcript and ledger head that was about. It holds no secret.

Notation: U1/U2/U3/U4 as in ``server``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from privfedrl.errors import (
    AuthenticationFailed,
    ConfigurationError,
    RemoteProtocolError,
)
from privfedrl.primitives.signing import SIGNATURE_BYTES
from privfedrl.primitives.stream import RingVector
from privfedrl.secagg.agreement import (
    Cohort,
    Pairs,
    check_pairs,
    read_roster,
    shared_digest,
    sum_digest,
    survivors_digest,
)
from privfedrl.secagg.binding import DIGEST_BYTES
from privfedrl.secagg.identity import Identity, Registry
from privfedrl.secagg.messages import (
    FrameReader,
    RoundConfig,
    TranscriptBody,
    config_digest,
    encode_frame,
    peek,
)
from privfedrl.secagg.parameters import MAX_CLIENTS, SecAggParameters
from privfedrl.secagg.phases import AbortCode
from privfedrl.secagg.sizes import HEADER_BYTES, MessageType, frame_limit
from privfedrl.secagg.suite import suite_of

__all__ = ["RoundRecord", "Transcript"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """What a finished round leaves for its transcript: signed frames and public sets.

    Attributes:
        config: the signed config frame. adverts: the signed advert frames of U1, sorted.
        shared: U2 with commitments. survivors: U3 with digests of the masked vectors.
        consents: the signed consistency frames of U4. sum_digest: pins the opened sum.
    """

    config: bytes
    adverts: tuple[bytes, ...]
    shared: Pairs
    survivors: Pairs
    consents: tuple[bytes, ...]
    sum_digest: bytes


@dataclass(frozen=True, slots=True)
class Transcript:
    """One signed record. ``data`` is the whole frame, as stored and published."""

    data: bytes = field(repr=False)
    body: TranscriptBody = field(repr=False)

    @classmethod
    def sign(cls, record: RoundRecord, *, identity: Identity, ledger_head: bytes) -> Transcript:
        """The coordinator's signature on ``record`` and its ledger's head (32 opaque bytes)."""
        if len(ledger_head) != DIGEST_BYTES:
            raise ConfigurationError(f"ledger_head must be {DIGEST_BYTES} bytes")
        body = TranscriptBody(
            sender=identity.name,
            config=record.config,
            adverts=record.adverts,
            shared=record.shared,
            survivors=record.survivors,
            consents=record.consents,
            sum_digest=record.sum_digest,
            ledger_head=ledger_head,
        )
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
        limit = frame_limit(
            MessageType.TRANSCRIPT, num_clients=MAX_CLIENTS, vector_length=1, ring_bits=32
        )
        return cls(data, peek(data, MessageType.TRANSCRIPT, limit=limit))

    @property
    def digest(self) -> bytes:
        """SHA-256 of the frame: the ``previous_transcript`` of the next round."""
        return hashlib.sha256(self.data).digest()

    @property
    def config(self) -> RoundConfig:
        """The round's config as parsed; only as trustworthy as :meth:`verify` says."""
        limit = frame_limit(MessageType.CONFIG, num_clients=2, vector_length=1, ring_bits=32)
        config: RoundConfig = peek(self.body.config, MessageType.CONFIG, limit=limit)
        return config

    @property
    def survivors(self) -> tuple[str, ...]:
        """U3, sorted."""
        return tuple(name for name, _ in self.body.survivors)

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
        parameters = self._parameters()
        reader = FrameReader(registry, parameters)
        reader.read(self.data, frozenset({MessageType.TRANSCRIPT}))
        frame = reader.read(self.body.config, frozenset({MessageType.CONFIG}))
        config: RoundConfig = frame.message
        if config.registry_digest != registry.digest:
            raise RemoteProtocolError("the transcript is about another registry")
        if len(registry.agents) != parameters.num_clients:
            raise RemoteProtocolError("num_clients is not the number of registered agents")
        if previous is not None and config.previous_transcript != previous:
            raise RemoteProtocolError("the transcript does not follow the given one")
        cohort = read_roster(
            self.body.adverts,
            cfg=config_digest(frame.payload),
            suite=suite_of(config.suite),
            reader=reader,
            parameters=parameters,
        )
        self._verify_sets(cohort, reader, parameters)

    def verify_sum(self, vector: RingVector) -> None:
        """Check that ``vector`` is the sum that this transcript is about.

        Raises:
            AuthenticationFailed: it is another one.
        """
        data = vector.astype(vector.dtype.newbyteorder("<"), copy=False).tobytes()
        if sum_digest(self._cfg(), data) != self.body.sum_digest:
            raise AuthenticationFailed

    def _cfg(self) -> bytes:
        return config_digest(self.body.config[HEADER_BYTES:-SIGNATURE_BYTES])

    def _parameters(self) -> SecAggParameters:
        try:
            return self.config.decoded_parameters()
        except ConfigurationError as error:
            raise RemoteProtocolError(
                f"the transcript's parameters are unsound: {error}"
            ) from error

    def _verify_sets(
        self, cohort: Cohort, reader: FrameReader, parameters: SecAggParameters
    ) -> None:
        body = self.body
        shared = check_pairs(
            body.shared, within=cohort.names, code=AbortCode.ROSTER_MISMATCH, parameters=parameters
        )
        survivors = check_pairs(
            body.survivors, within=shared, code=AbortCode.SURVIVOR_MISMATCH, parameters=parameters
        )
        agreed = survivors_digest(
            cohort.roster, shared_digest(cohort.roster, body.shared), body.survivors
        )
        signers = []
        for data in body.consents:
            consent = reader.read(data, frozenset({MessageType.CONSISTENCY})).message
            bound = (consent.cfg, consent.roster, consent.survivors)
            if bound != (cohort.cfg, cohort.roster, agreed):
                raise RemoteProtocolError(f"{consent.sender} signed another set than the recorded")
            signers.append(consent.sender)
        if signers != sorted(set(signers)) or not set(signers) <= set(survivors):
            raise RemoteProtocolError("signers must be sorted, distinct and survivors")
        if len(signers) < parameters.threshold:
            raise RemoteProtocolError(
                f"expected >= {parameters.threshold} signatures, got {len(signers)}"
            )
