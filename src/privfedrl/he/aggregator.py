"""The aggregator of a homomorphic round: it adds what it cannot read.

Guarantee: it holds public keys and residues only; a sum is sent to the key authority after its
contributors were charged to the caller's ledger, covers at least ``floor`` of them, and the opened
vector is the one that the authority's signed receipt pins.

Each upload is added when it comes and then dropped: one accumulator, however many agents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import numpy as np

from privfedrl.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    RoundAborted,
)
from privfedrl.he.agreement import (
    FixedRoster,
    abort,
    check_context,
    check_roles,
    checked_head,
    names_of,
    read_members,
    read_roster,
)
from privfedrl.he.digests import sealed_digest
from privfedrl.he.frames import (
    SUITE,
    Attestation,
    Commit,
    Context,
    DecryptionReceipt,
    FrameReader,
    HEConfig,
    Kind,
    Opening,
    Proposal,
    Roster,
    Sealed,
    config_digest,
    encode_frame,
)
from privfedrl.he.parameters import HEParameters, RingVector
from privfedrl.he.participant import present
from privfedrl.he.phases import AGGREGATOR_COLLECTS, AbortCode, AggregatorPhase
from privfedrl.he.residues import unpack
from privfedrl.he.transcript import HERecord
from privfedrl.he.uploads import UploadSum
from privfedrl.parties.binding import DIGEST_BYTES
from privfedrl.parties.frames import Frame, Outgoing
from privfedrl.parties.identity import Identity, Registry
from privfedrl.parties.opening import check_arguments, check_pinned
from privfedrl.primitives.random import Clock, Entropy, draw, system_clock, system_entropy

__all__ = ["HEAggregator", "HESum"]

_ACCEPTED: Final = frozenset(AGGREGATOR_COLLECTS.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class HESum:
    """What a round gives.

    Attributes:
        vector: uint32 or uint64 [D]: the centred sum mod 2^value_bits, as residues mod 2^ring_bits.
        survivors: whose vectors are in it, sorted.
        receipt: the key authority's word, verified.
        record: what the transcript is signed from.
    """

    vector: RingVector = field(repr=False)
    survivors: tuple[str, ...]
    config: HEConfig
    receipt: DecryptionReceipt
    record: HERecord = field(repr=False)


class HEAggregator:
    """The coordinator of one homomorphic round. Make a new one for each round.

    Args:
        identity: signs every message; must be the coordinator of ``registry``.
        registry, parameters, plan_digest: as everybody has pinned them.
        before_open: contributors, sorted -> head of the caller's ledger, 32 bytes, in which the
            opening has been charged. Called once, before anything is asked of the authority. If it
            raises, the round is aborted and its error propagates.
        entropy: draws the round seed when the caller gives none.
        clock: gives the config its ``opened_at``.
    Raises:
        ConfigurationError: these do not fit together, or the registry lacks a needed role.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        registry: Registry,
        parameters: HEParameters,
        plan_digest: bytes,
        before_open: Callable[[tuple[str, ...]], bytes],
        entropy: Entropy = system_entropy,
        clock: Clock = system_clock,
    ) -> None:
        check_pinned(identity, registry, parameters, plan_digest, role="coordinator")
        self._identity = identity
        self._registry = registry
        self._parameters = parameters
        self._plan_digest = plan_digest
        self._before_open = before_open
        self._entropy = entropy
        self._clock = clock
        check_roles(registry, parameters)
        self._authority = present(registry.key_authority)
        self._auditor = registry.auditor if parameters.readding == "auditor" else None
        self._reader = FrameReader(registry, parameters)
        self._phase = AggregatorPhase.IDLE
        self._abort: RoundAborted | None = None
        self._round: _Round | None = None
        self._commits: dict[str, tuple[Frame, bytes]] = {}
        self._refused: set[str] = set()
        self._awaited: set[str] = set()
        self._roster: FixedRoster | None = None
        self._uploads: UploadSum | None = None
        self._sealed: Sealed | None = None
        self._frames: dict[Kind, bytes] = {}
        self._key = self._total = b""
        self._result: HESum | None = None

    @property
    def phase(self) -> AggregatorPhase:
        """What this aggregator waits for; DONE and ABORTED are final."""
        return self._phase

    @property
    def finished(self) -> bool:
        """Whether nothing more will be sent or accepted."""
        return self._phase in (AggregatorPhase.DONE, AggregatorPhase.ABORTED)

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Whose answer would complete this phase, sorted."""
        return () if self.finished else tuple(sorted(self._awaited))

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose ciphertexts are in the sum, sorted, once it is sealed; empty before."""
        if self._sealed is None:
            return ()
        members = read_members(self._sealed.contributors, self._registry, floor=0)
        return names_of(members, self._registry)

    def start(
        self,
        task_id: bytes,
        round: int,  # noqa: A002 - the protocol's own word
        attempt: int,
        model_digest: bytes,
        previous_transcript: bytes,
        round_seed: bytes | None = None,
    ) -> list[Outgoing]:
        """Open the round. Returns the signed config for everybody, the key authority first.

        Arguments and errors as for the pairwise protocol's server.
        """
        if self._phase is not AggregatorPhase.IDLE:
            raise LocalProtocolError(f"start must come first, this round is {self._phase.value}")
        seed = draw(self._entropy, DIGEST_BYTES) if round_seed is None else round_seed
        config = HEConfig(
            suite=SUITE,
            sender=self._identity.name,
            task_id=task_id,
            round=round,
            attempt=attempt,
            opened_at=self._clock(),
            plan_digest=self._plan_digest,
            model_digest=model_digest,
            registry_digest=self._registry.digest,
            previous_transcript=previous_transcript,
            parameters=self._parameters.canonical_bytes(),
            parameters_digest=self._parameters.digest,
            round_seed=seed,
        )
        check_arguments(config)
        data = encode_frame(config, self._identity)
        valid = [name for name in self._registry.agents if self._valid(name, config)]
        for name in filter(None, (self._identity.name, self._authority, self._auditor)):
            if not self._valid(name, config):
                raise LocalProtocolError(f"{name} is not valid at this time")
        # read back: what the others will see is what this aggregator goes by
        frame = self._reader.read(data, frozenset({Kind.CONFIG}))
        self._round = _Round(config=config, cfg=config_digest(frame.payload), agents=tuple(valid))
        self._frames[Kind.CONFIG] = data
        self._await(AggregatorPhase.COLLECT_CONTEXT, [self._authority])
        services = [self._authority, *([self._auditor] if self._auditor else [])]
        return [Outgoing(name, data) for name in (*services, *valid)]

    def receive(self, data: bytes) -> list[Outgoing]:
        """Take one frame. Returns the next messages, if it gives rise to any.

        Raises:
            LocalProtocolError: not started.
            RoundAborted: the round was aborted before.
            RemoteProtocolError, AuthenticationFailed: the frame is refused and nothing changes,
                except that an agent that commits twice to different things is out.
        """
        if self._phase is AggregatorPhase.IDLE:
            raise LocalProtocolError("start must be called before receive")
        if self._abort is not None:
            raise RoundAborted(self._abort.code, "this round has been aborted")
        frame = self._reader.read(data, _ACCEPTED)
        if frame.message.cfg != self._now.cfg:
            raise RemoteProtocolError(f"{frame.type.label} belongs to another round")
        if frame.type is not Kind.CONTEXT and frame.message.key != self._key:
            raise RemoteProtocolError(f"{frame.type.label} belongs to another key")
        if self._frames.get(frame.type) == data or self._is_repeated_commit(frame):
            return []
        kind: Kind = frame.type
        if AGGREGATOR_COLLECTS.get(self._phase) is not kind:
            raise RemoteProtocolError(f"{kind.label} is not accepted during {self._phase.value}")
        return _HANDLERS[kind](self, frame, data)

    def close_phase(self) -> list[Outgoing]:
        """The caller's deadline: go on with those who answered, or abort if they are too few.

        Raises:
            LocalProtocolError: not started, or finished already.
        """
        if self._phase is AggregatorPhase.IDLE or self.finished:
            raise LocalProtocolError(f"no phase is open, this round is {self._phase.value}")
        if self._phase is AggregatorPhase.COLLECT_COMMITS:
            return self._go_on(len(self._commits), self._propose)
        if self._phase is AggregatorPhase.COLLECT_UPLOADS:
            return self._go_on(len(self._adding.names), self._seal)
        waited = ", ".join(self.waiting_for)
        return self._give_up(abort(AbortCode.DEADLINE, f"{waited} did not answer in time"))

    def _go_on(self, answered: int, close: Callable[[], list[Outgoing]]) -> list[Outgoing]:
        if answered >= self._parameters.floor:
            return close()
        return self._give_up(
            abort(
                AbortCode.THRESHOLD_NOT_MET,
                f"{answered} answers in {self._phase.value}, {self._parameters.floor} needed",
            )
        )

    def result(self) -> HESum:
        """The sum.

        Raises:
            RoundAborted: the round ended without one.
            LocalProtocolError: the round has not ended.
        """
        if self._abort is not None:
            code = self._abort.code
            raise RoundAborted(code, str(self._abort).removeprefix(f"{code}: ")) from self._abort
        if self._result is None:
            raise LocalProtocolError(f"there is no result yet, the round is {self._phase.value}")
        return self._result

    def abort(self, code: AbortCode = AbortCode.DEADLINE) -> None:
        """Give the round up. Sends nothing; the accumulator is forgotten."""
        if not self.finished:
            self._give_up(abort(code, "given up by the caller"))

    def _take_context(self, frame: Frame, data: bytes) -> list[Outgoing]:
        message: Context = frame.message
        self._refusing(
            lambda: check_context(
                message,
                config=self._now.config,
                registry=self._registry,
                parameters=self._parameters,
                now=self._clock(),
            )
        )
        chosen = self._parameters.parameter_set
        unpack(frame.attachment, chosen.primes, chosen.degree, 1)  # spare every agent a bad key
        self._key = message.key
        self._frames[Kind.CONTEXT] = data
        self._await(AggregatorPhase.COLLECT_COMMITS, self._now.agents)
        return [Outgoing(name, data) for name in self._now.agents]

    def _take_commit(self, frame: Frame, data: bytes) -> list[Outgoing]:
        message: Commit = frame.message
        name = message.sender
        if name in self._refused or name not in self._now.agents:
            raise RemoteProtocolError(f"{name} is not expected in this round")
        if name in self._commits:
            self._refused.add(name)
            self._awaited.discard(name)
            del self._commits[name]
            raise RemoteProtocolError(f"{name} committed to two different things and is out")
        self._commits[name] = (frame, data)
        self._awaited.discard(name)
        return [] if self._awaited else self._propose()

    def _propose(self) -> list[Outgoing]:
        proposal = Proposal(
            cfg=self._now.cfg,
            key=self._key,
            sender=self._identity.name,
            commits=tuple(self._commits[name][1] for name in sorted(self._commits)),
        )
        self._await(AggregatorPhase.COLLECT_ROSTER, [self._authority])
        return [Outgoing(self._authority, encode_frame(proposal, self._identity))]

    def _take_roster(self, frame: Frame, data: bytes) -> list[Outgoing]:
        message: Roster = frame.message
        promised = {
            name: given.message.commitment for name, (given, _) in sorted(self._commits.items())
        }
        roster = self._refusing(
            lambda: read_roster(
                message,
                config=self._now.config,
                registry=self._registry,
                parameters=self._parameters,
            )
        )
        if roster.commitments != promised:
            raise RemoteProtocolError("the roster is not the proposed one")
        self._roster = roster
        self._uploads = UploadSum(self._parameters, roster, self._registry)
        self._frames[Kind.ROSTER] = data
        self._await(AggregatorPhase.COLLECT_UPLOADS, promised)
        names = [*promised, *([self._auditor] if self._auditor else [])]
        return [Outgoing(name, data) for name in names]

    def _take_upload(self, frame: Frame, data: bytes) -> list[Outgoing]:
        self._adding.take(frame)
        self._awaited.discard(frame.sender)
        readers = {"key-authority": self._authority, "auditor": self._auditor, "none": None}
        reader = readers[self._parameters.readding]
        forwarded = [] if reader is None else [Outgoing(reader, data)]
        return forwarded if self._awaited else forwarded + self._seal()

    def _seal(self) -> list[Outgoing]:
        """Charge, then ask for the opening."""
        contributors = self._adding.contributors
        try:
            names = names_of(contributors, self._registry)
            head = checked_head("before_open", self._before_open(names))
            self._total = self._adding.ciphertexts()
            sealed = Sealed(
                cfg=self._now.cfg,
                key=self._key,
                sender=self._identity.name,
                roster=self._fixed.digest,
                contributors=contributors.to_bytes(),
                ledger_head=head,
                attestation=b"",
                sealed=sealed_digest(self._now.cfg, self._key, self._total),
            )
        except BaseException:
            self._give_up(abort(AbortCode.LOCAL_FAULT, "the coordinator's own step failed"))
            raise
        self._uploads, self._sealed = None, sealed
        if self._auditor:
            return self._ask(AggregatorPhase.COLLECT_ATTESTATION, self._auditor, sealed)
        return self._ask(AggregatorPhase.COLLECT_OPENING, self._authority, sealed)

    def _ask(self, phase: AggregatorPhase, name: str, sealed: Sealed) -> list[Outgoing]:
        self._await(phase, [name])
        return [Outgoing(name, encode_frame(sealed, self._identity, self._total))]

    def _take_attestation(self, frame: Frame, data: bytes) -> list[Outgoing]:
        message: Attestation = frame.message
        sealed = self._asked
        expected = sealed.roster, sealed.contributors, sealed.sealed
        if (message.roster, message.contributors, message.sealed) != expected:
            raise RemoteProtocolError("the attestation is for another sum")
        self._frames[Kind.ATTESTATION] = data
        fields = {name: getattr(sealed, name) for name in sealed.__struct_fields__}
        self._sealed = Sealed(**(fields | {"attestation": data}))
        return self._ask(AggregatorPhase.COLLECT_OPENING, self._authority, self._sealed)

    def _take_opening(self, frame: Frame, data: bytes) -> list[Outgoing]:
        message: Opening = frame.message
        receipt = self._read_receipt(message, len(frame.attachment))
        words = np.frombuffer(frame.attachment, dtype=f"<u{self._parameters.ring_bits // 8}")
        vector = words.astype(np.dtype(f"uint{self._parameters.ring_bits}"))
        roster = [self._commits[name][1] for name in sorted(self._commits)]
        self._result = HESum(
            vector=vector,
            survivors=self.survivors,
            config=self._now.config,
            receipt=receipt,
            record=HERecord(
                config=self._frames[Kind.CONFIG],
                roster=self._frames[Kind.ROSTER],
                commits=tuple(roster),
                attestation=self._frames.get(Kind.ATTESTATION, b""),
                receipt=message.receipt,
            ),
        )
        self._frames[Kind.OPENING] = data
        self._awaited.clear()
        self._total = b""
        self._phase = AggregatorPhase.DONE
        return [Outgoing(name, message.receipt) for name in self._fixed.commitments]

    def _read_receipt(self, message: Opening, size: int) -> DecryptionReceipt:
        """The receipt inside an opening, which must be about what was asked, and pin the sum."""
        sealed, parameters = self._asked, self._parameters
        receipt: DecryptionReceipt = self._reader.read(
            message.receipt, frozenset({Kind.RECEIPT})
        ).message
        expected = (
            self._now.cfg,
            self._key,
            sealed.roster,
            sealed.contributors,
            sealed.sealed,
            message.total,
            parameters.readding,
        )
        found = (
            receipt.cfg,
            receipt.key,
            receipt.roster,
            receipt.contributors,
            receipt.sealed,
            receipt.total,
            receipt.readding,
        )
        if found != expected:
            raise RemoteProtocolError("the receipt is for another sum")
        if size != parameters.vector_length * parameters.ring_bits // 8:
            raise RemoteProtocolError("the opened sum has another length")
        return receipt

    def _is_repeated_commit(self, frame: Frame) -> bool:
        earlier = self._commits.get(frame.sender) if frame.type is Kind.COMMIT else None
        return earlier is not None and earlier[0].digest == frame.digest

    def _refusing(self, read: Callable[[], Any]) -> Any:
        """What a peer signed wrongly is refused; it does not end the round here."""
        try:
            return read()
        except RoundAborted as error:
            raise RemoteProtocolError(str(error)) from error

    def _await(self, phase: AggregatorPhase, names: Any) -> None:
        self._phase, self._awaited = phase, set(names)

    def _give_up(self, error: RoundAborted) -> list[Outgoing]:
        self._abort, self._phase = error, AggregatorPhase.ABORTED
        self._uploads = self._sealed = None
        self._total = b""
        return []

    def _valid(self, name: str, config: HEConfig) -> bool:
        return self._registry.valid_at(name, config.opened_at)

    @property
    def _now(self) -> _Round:
        return present(self._round)

    @property
    def _fixed(self) -> FixedRoster:
        return present(self._roster)

    @property
    def _adding(self) -> UploadSum:
        return present(self._uploads)

    @property
    def _asked(self) -> Sealed:
        return present(self._sealed)

    def __repr__(self) -> str:
        return f"HEAggregator({self._identity.name}, {self._phase.value})"

    def __reduce__(self) -> NoReturn:
        raise LocalProtocolError("an aggregator of a round refuses to be pickled or copied")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    config: HEConfig
    cfg: bytes
    agents: tuple[str, ...]


_HANDLERS: Final[dict[Kind, Callable[[HEAggregator, Frame, bytes], list[Outgoing]]]] = {
    Kind.CONTEXT: HEAggregator._take_context,
    Kind.COMMIT: HEAggregator._take_commit,
    Kind.ROSTER: HEAggregator._take_roster,
    Kind.UPLOAD: HEAggregator._take_upload,
    Kind.ATTESTATION: HEAggregator._take_attestation,
    Kind.OPENING: HEAggregator._take_opening,
}
