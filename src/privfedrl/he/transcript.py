"""The public record of a homomorphic round, for whoever audits it later.

Guarantee: a transcript that :meth:`HETranscript.verify` accepts shows that the key authority fixed
one roster of signed commitments, opened one sum of named contributors among them, charged it to a
ledger of its own, and who re-added; and which plan, model, round, previous transcript and ledger
head of the coordinator that was about. It holds no secret. Whether the sum was one, it shows only
where somebody re-added.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from privfedrl.errors import AuthenticationFailed, ConfigurationError, RemoteProtocolError
from privfedrl.he.agreement import (
    NO_HEAD,
    FixedRoster,
    check_contributors,
    little_endian,
    names_of,
    read_roster,
)
from privfedrl.he.digests import sum_digest
from privfedrl.he.frames import (
    Attestation,
    Commit,
    DecryptionReceipt,
    FrameReader,
    HEConfig,
    Kind,
    Record,
    Roster,
    config_digest,
    encode_frame,
    frame_limit,
    peek,
)
from privfedrl.he.parameters import HEParameters, RingVector
from privfedrl.parties.binding import DIGEST_BYTES
from privfedrl.parties.frames import HEADER_BYTES
from privfedrl.parties.identity import Identity, Registry
from privfedrl.primitives.signing import SIGNATURE_BYTES

__all__ = ["HOMOMORPHIC", "HERecord", "HETranscript"]

HOMOMORPHIC: Final = "homomorphic encryption with a key authority"
_ANY: Final = HEParameters(num_clients=2, max_colluding=0, vector_length=1, threshold=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class HERecord:
    """What a finished round leaves for its transcript: the signed frames themselves.

    Attributes:
        config, roster, receipt: frames. commits: the roster's members' frames, in order.
        attestation: the auditor's frame, or empty.
    """

    config: bytes
    roster: bytes
    commits: tuple[bytes, ...]
    attestation: bytes
    receipt: bytes

    def body(self, sender: str, ledger_head: bytes) -> Record:
        """The message that ``sender`` signs."""
        return Record(
            sender=sender,
            config=self.config,
            roster=self.roster,
            commits=self.commits,
            attestation=self.attestation,
            receipt=self.receipt,
            ledger_head=ledger_head,
        )


@dataclass(frozen=True, slots=True)
class HETranscript:
    """One signed record. ``data`` is the whole frame, as stored and published."""

    data: bytes = field(repr=False)
    body: Record = field(repr=False)

    @classmethod
    def sign(cls, record: HERecord, *, identity: Identity, ledger_head: bytes) -> HETranscript:
        """The coordinator's signature on ``record`` and its ledger's head (32 opaque bytes)."""
        if len(ledger_head) != DIGEST_BYTES:
            raise ConfigurationError(f"ledger_head must be {DIGEST_BYTES} bytes")
        body = record.body(identity.name, ledger_head)
        return cls(encode_frame(body, identity), body)

    def to_bytes(self) -> bytes:
        """The signed frame."""
        return self.data

    @classmethod
    def from_bytes(cls, data: bytes) -> HETranscript:
        """Parse, without trusting it: call :meth:`verify` next.

        Raises:
            RemoteProtocolError: not a record frame, or too long for any cohort.
        """
        return cls(data, peek(data, Kind.RECORD, limit=frame_limit(Kind.RECORD, _ANY)))

    @property
    def digest(self) -> bytes:
        """SHA-256 of the frame: the ``previous_transcript`` of the next round."""
        return hashlib.sha256(self.data).digest()

    @property
    def protection(self) -> str:
        """What formed the sum."""
        return HOMOMORPHIC

    @property
    def config(self) -> HEConfig:
        """What names the round, as parsed; only as trustworthy as :meth:`verify` says."""
        found: HEConfig = peek(self.body.config, Kind.CONFIG, limit=frame_limit(Kind.CONFIG, _ANY))
        return found

    @property
    def receipt(self) -> DecryptionReceipt:
        """The key authority's word, as parsed."""
        found: DecryptionReceipt = peek(
            self.body.receipt, Kind.RECEIPT, limit=frame_limit(Kind.RECEIPT, _ANY)
        )
        return found

    @property
    def ledger_head(self) -> bytes:
        """The 32 bytes that the coordinator's caller supplied."""
        return self.body.ledger_head

    @property
    def parameters(self) -> HEParameters:
        """Of the round; RemoteProtocolError if they are unsound."""
        return _parameters(self.config)

    def roster(self, registry: Registry) -> FixedRoster:
        """Who could contribute what; only as trustworthy as :meth:`verify` says."""
        return _roster(self, registry, self.parameters)

    def survivors(self, registry: Registry) -> tuple[str, ...]:
        """Whose vectors are in the sum, sorted."""
        roster = self.roster(registry)
        members = check_contributors(self.receipt.contributors, roster, registry, floor=0)
        return names_of(members, registry)

    def verify(self, registry: Registry, *, previous: bytes | None = None) -> None:
        """Check every signature and every link.

        Args:
            registry: pinned out of band.
            previous: digest of the transcript before this one, if it is known.
        Raises:
            RemoteProtocolError, AuthenticationFailed, RoundAborted: the record does not hold up.
        """
        config = self.config
        if config.registry_digest != registry.digest:
            raise RemoteProtocolError("the transcript is about another registry")
        if previous is not None and config.previous_transcript != previous:
            raise RemoteProtocolError("the transcript does not follow the given one")
        parameters = _parameters(config)
        if parameters.num_clients != len(registry.agents):
            raise RemoteProtocolError("num_clients is not the number of registered agents")
        reader = FrameReader(registry, parameters)
        reader.read(self.data, frozenset({Kind.RECORD}))
        reader.read(self.body.config, frozenset({Kind.CONFIG}))
        reader.read(self.body.roster, frozenset({Kind.ROSTER}))
        reader.read(self.body.receipt, frozenset({Kind.RECEIPT}))
        roster = _roster(self, registry, parameters)
        _check_commits(self, roster, reader, registry)
        _check_receipt(self, roster, registry, parameters)
        _check_attestation(self, reader, registry, parameters)

    def verify_sum(self, vector: RingVector) -> None:
        """Check that ``vector`` is the sum that this transcript is about.

        Raises:
            AuthenticationFailed: it is another one, or of another type or shape.
            RemoteProtocolError: the record names unsound parameters.
        """
        parameters = _parameters(self.config)
        form = np.dtype(f"uint{parameters.ring_bits}"), (parameters.vector_length,)
        if (vector.dtype.newbyteorder("="), vector.shape) != form:
            raise AuthenticationFailed
        if sum_digest(_cfg(self), little_endian(vector)) != self.receipt.total:
            raise AuthenticationFailed


def _cfg(transcript: HETranscript) -> bytes:
    return config_digest(transcript.body.config[HEADER_BYTES:-SIGNATURE_BYTES])


def _parameters(config: HEConfig) -> HEParameters:
    try:
        found = HEParameters.from_canonical_bytes(config.parameters)
    except ConfigurationError as error:
        raise RemoteProtocolError(f"the transcript's parameters are unsound: {error}") from error
    if found.digest != config.parameters_digest:
        raise RemoteProtocolError("the parameters' names stand for other numbers here")
    return found


def _message(transcript: HETranscript) -> Roster:
    found: Roster = peek(transcript.body.roster, Kind.ROSTER, limit=frame_limit(Kind.ROSTER, _ANY))
    if found.cfg != _cfg(transcript):
        raise RemoteProtocolError("the roster is of another round")
    return found


def _roster(transcript: HETranscript, registry: Registry, parameters: HEParameters) -> FixedRoster:
    return read_roster(
        _message(transcript), config=transcript.config, registry=registry, parameters=parameters
    )


def _check_commits(
    transcript: HETranscript, roster: FixedRoster, reader: FrameReader, registry: Registry
) -> None:
    key, found = _message(transcript).key, {}
    for data in transcript.body.commits:
        commit: Commit = reader.read(data, frozenset({Kind.COMMIT})).message
        if (commit.cfg, commit.key) != (_cfg(transcript), key):
            raise RemoteProtocolError(f"{commit.sender}'s commit is of another round or key")
        found[commit.sender] = commit.commitment
    promised = dict(roster.commitments)
    if found != promised or len(transcript.body.commits) != len(promised):
        raise RemoteProtocolError("the commits are not those of the roster")


def _check_receipt(
    transcript: HETranscript,
    roster: FixedRoster,
    registry: Registry,
    parameters: HEParameters,
) -> None:
    config, receipt = transcript.config, transcript.receipt
    named = receipt.cfg, receipt.key, receipt.roster, receipt.readding
    expected = _cfg(transcript), _message(transcript).key, roster.digest, parameters.readding
    if named != expected:
        raise RemoteProtocolError("the receipt is about another round, key, roster or policy")
    if receipt.ledger_head == NO_HEAD:
        raise RemoteProtocolError("the key authority charged no ledger")
    check_contributors(receipt.contributors, roster, registry, parameters.floor)
    for name in (config.sender, receipt.sender):
        if not registry.valid_at(name, config.opened_at):
            raise RemoteProtocolError(f"{name} was not valid when the round was opened")


def _check_attestation(
    transcript: HETranscript, reader: FrameReader, registry: Registry, parameters: HEParameters
) -> None:
    data, receipt = transcript.body.attestation, transcript.receipt
    if parameters.readding != "auditor":
        if data:
            raise RemoteProtocolError("there is an attestation that nobody asked for")
        return
    word: Attestation = reader.read(data, frozenset({Kind.ATTESTATION})).message
    fields: tuple[Any, ...] = (word.cfg, word.key, word.roster, word.contributors, word.sealed)
    if fields != (
        receipt.cfg,
        receipt.key,
        receipt.roster,
        receipt.contributors,
        receipt.sealed,
    ):
        raise RemoteProtocolError("the auditor attested to another sum")
    if not registry.valid_at(word.sender, transcript.config.opened_at):
        raise RemoteProtocolError(f"{word.sender} was not valid when the round was opened")
