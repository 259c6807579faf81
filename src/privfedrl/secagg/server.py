"""The coordinator of a round: bytes in, bytes out.

Guarantee: a result is the exact sum over the survivors that at least ``threshold`` clients have
signed, or there is none. The coordinator keeps one accumulator and digests, never two masked
vectors, and a bad frame from one client changes nothing for the others.

A client that signs two different messages for one slot is refused from then on, and both frames
are kept as evidence. A masked vector that is in the accumulator by then stays: it is in U3 and its
self mask is recovered from the others, as for any client that drops out after M3.
Notation: U1 advertised, U2 shared keys, U3 sent a masked vector, U4 signed U3; holders as in
``agreement``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from privfedrl.errors import LocalProtocolError, RemoteProtocolError, RoundAborted
from privfedrl.parties.binding import DIGEST_BYTES
from privfedrl.parties.frames import Frame, Outgoing
from privfedrl.parties.identity import Identity, Registry
from privfedrl.parties.members import Members
from privfedrl.parties.opening import check_arguments, check_pinned
from privfedrl.primitives import shamir
from privfedrl.primitives.random import Clock, Entropy, draw, system_clock, system_entropy
from privfedrl.primitives.stream import RingVector
from privfedrl.secagg.agreement import (
    Cohort,
    abort,
    check_advert,
    feasible,
    receipt_text,
    shared_digest,
    sum_digest,
    survivors_digest,
    too_small,
    vector_digest,
)
from privfedrl.secagg.announcements import (
    SetTree,
    deliveries,
    rosters,
    survivor_lists,
    unmask_requests,
)
from privfedrl.secagg.edges import Edges, OwnEdges
from privfedrl.secagg.merkle import MerkleTree
from privfedrl.secagg.messages import (
    Advertise,
    Consistency,
    FrameReader,
    Masked,
    Message,
    RoundConfig,
    Shares,
    Unmask,
    config_digest,
    encode_frame,
)
from privfedrl.secagg.parameters import SecAggParameters
from privfedrl.secagg.phases import SERVER_COLLECTS, SERVER_NEXT, AbortCode, ServerPhase
from privfedrl.secagg.result import Equivocation, SecureSum
from privfedrl.secagg.sizes import CLIENT_TYPES, MessageType
from privfedrl.secagg.suite import DEFAULT_SUITE
from privfedrl.secagg.transcript import RoundRecord
from privfedrl.secagg.unmasking import recover, strip_masks

__all__ = ["SecAggServer"]


_OWN: Final = OwnEdges()


@dataclass(frozen=True, slots=True)
class _Answer:
    """An accepted message: digest of its frame, the frame (not of vectors), what was taken."""

    digest: bytes
    frame: bytes
    value: Any


class SecAggServer:
    """The coordinator of one round. Make a new one for each round.

    Args:
        identity: signs every message; must be the coordinator of ``registry``.
        registry, parameters, plan_digest: as the agents have pinned them.
        entropy: draws the round seed when the caller gives none.
        before_unmask: called once with U3, sorted, before any client is asked about it; the caller
            settles its ledger here. If it raises, the round is aborted and its error propagates.
        clock: gives the config its ``opened_at``; agents that are not valid then are left out.
        edges: only a simulation gives anything here: its memory of verified frames.
    Raises:
        ConfigurationError: these do not fit together.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        registry: Registry,
        parameters: SecAggParameters,
        plan_digest: bytes,
        entropy: Entropy = system_entropy,
        before_unmask: Callable[[tuple[str, ...]], None] = lambda survivors: None,
        clock: Clock = system_clock,
        edges: Edges = _OWN,
    ) -> None:
        check_pinned(identity, registry, parameters, plan_digest, role="coordinator")
        self._identity = identity
        self._registry = registry
        self._parameters = parameters
        self._plan_digest = plan_digest
        self._entropy = entropy
        self._before_unmask = before_unmask
        self._clock = clock
        self._reader = FrameReader(registry, parameters, verified=edges.verified(registry.digest))
        self._phase = ServerPhase.IDLE
        self._abort: RoundAborted | None = None
        self._answers: dict[MessageType, dict[str, _Answer]] = {kind: {} for kind in CLIENT_TYPES}
        self._total: RingVector = np.zeros(0, np.uint32)
        self._round: _Round | None = None
        self._expected: frozenset[str] = frozenset()
        self._awaited: set[str] = set()
        self._refused: set[str] = set()
        self._keys: set[bytes] = set()
        self._result: SecureSum | None = None
        self.evidence: list[Equivocation] = []
        """One entry per client that contradicted itself."""

    @property
    def phase(self) -> ServerPhase:
        """What this coordinator waits for; DONE and ABORTED are final."""
        return self._phase

    @property
    def finished(self) -> bool:
        """Whether nothing more will be sent or accepted."""
        return self._phase in (ServerPhase.DONE, ServerPhase.ABORTED)

    @property
    def survivors(self) -> tuple[str, ...]:
        """U3, sorted, once it is fixed; empty before."""
        return () if self._round is None else self._round.survivors

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Whose answer would complete this phase, sorted; the others have given theirs."""
        return () if self.finished else tuple(sorted(self._awaited))

    def start(
        self,
        task_id: bytes,
        round: int,  # noqa: A002 - the protocol's own word
        attempt: int,
        model_digest: bytes,
        previous_transcript: bytes,
        round_seed: bytes | None = None,
    ) -> list[Outgoing]:
        """Open the round. Returns the signed config, once per registered agent.

        Args:
            task_id, model_digest, previous_transcript: 32 bytes each.
            round, attempt: 0 <= round < 2^63, 0 <= attempt < 2^32; a retry is a new attempt.
            round_seed: 32 public bytes for what all agents draw alike; drawn if absent.
        Raises:
            LocalProtocolError: called twice, or an argument is out of range; nothing changes.
        """
        if self._phase is not ServerPhase.IDLE:
            raise LocalProtocolError(f"start must come first, this round is {self._phase.value}")
        seed = draw(self._entropy, DIGEST_BYTES) if round_seed is None else round_seed
        config = RoundConfig(
            suite=DEFAULT_SUITE.suite_id,
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
            round_seed=seed,
        )
        check_arguments(config)
        data = encode_frame(config, self._identity)
        if not self._registry.valid_at(self._identity.name, config.opened_at):
            raise LocalProtocolError(f"{self._identity.name} is not valid at this time")
        # read back: what the agents will see is what this coordinator goes by
        frame = self._reader.read(data, frozenset({MessageType.CONFIG}))
        self._round = _Round(frame=data, config=config, cfg=config_digest(frame.payload))
        self._total = np.zeros(
            self._parameters.vector_length, np.dtype(f"uint{self._parameters.ring_bits}")
        )
        valid = [
            name
            for name in self._registry.agents
            if self._registry.valid_at(name, config.opened_at)
        ]
        self._await(valid)
        self._phase = ServerPhase.COLLECT_ADVERTS
        return [Outgoing(name, data) for name in valid]

    def receive(self, data: bytes) -> list[Outgoing]:
        """Take one frame. Returns the next messages if it completed the phase, else nothing.

        Raises:
            LocalProtocolError: not started.
            RoundAborted: the round was aborted before.
            RemoteProtocolError, AuthenticationFailed: the frame is refused and nothing changes,
                except that a client whose signed frames contradict each other is out. If it was
                the last that :attr:`waiting_for` named, close the phase.
        """
        if self._phase is ServerPhase.IDLE:
            raise LocalProtocolError("start must be called before receive")
        if self._abort is not None:
            raise RoundAborted(self._abort.code, "this round has been aborted")
        frame = self._reader.read(data, CLIENT_TYPES)
        if frame.message.cfg != self._now.cfg:
            raise RemoteProtocolError(f"{frame.type.label} belongs to another round")
        earlier = self._answers[frame.type].get(frame.sender)
        if earlier is not None and earlier.digest == frame.digest:
            return []
        if frame.sender in self._refused:
            raise RemoteProtocolError(f"{frame.sender} has contradicted itself and is out")
        if earlier is not None:
            self._refuse(frame, earlier, data)
        if (self._phase, frame.type) not in SERVER_COLLECTS:
            raise RemoteProtocolError(
                f"{frame.type.label} is not accepted during {self._phase.value}"
            )
        if frame.sender not in self._expected:
            raise RemoteProtocolError(f"{frame.sender} is not expected in {self._phase.value}")
        value = _TAKERS[frame.type](self, frame)
        kept = b"" if frame.type is MessageType.MASKED else data
        self._answers[frame.type][frame.sender] = _Answer(frame.digest, kept, value)
        self._awaited.discard(frame.sender)
        return [] if self._awaited else self._advance()

    def close_phase(self) -> list[Outgoing]:
        """The caller's deadline: go on with those who answered, or abort if they are too few.

        Returns:
            the next messages; nothing if the round is done or aborted (see :attr:`phase`).
        Raises:
            LocalProtocolError: not started, or finished already.
        """
        if self._phase is ServerPhase.IDLE or self.finished:
            raise LocalProtocolError(f"no phase is open, this round is {self._phase.value}")
        return self._advance()

    def result(self) -> SecureSum:
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

    def _advance(self) -> list[Outgoing]:
        """Close the phase. The round's own abort is kept for :meth:`result` and sends nothing."""
        closing = self._phase
        try:
            messages = _CLOSERS[closing](self)
        except RoundAborted as error:
            if self._abort is not None:  # the caller's before_unmask raised it
                raise
            self._give_up(error)
            return []
        except BaseException:
            if self._abort is None:
                self._give_up(abort(AbortCode.LOCAL_FAULT, "the coordinator's own step failed"))
            raise
        self._phase = SERVER_NEXT[closing]
        return messages

    def _give_up(self, error: RoundAborted) -> None:
        self._abort, self._phase = error, ServerPhase.ABORTED
        self._forget()

    def _forget(self) -> None:
        self._total = np.zeros(0, np.uint32)
        shares = self._answers[MessageType.UNMASK]
        for name, answer in shares.items():
            shares[name] = _Answer(answer.digest, b"", None)

    def _refuse(self, frame: Frame, earlier: _Answer, data: bytes) -> None:
        """Shut out a client that contradicted itself; withdraw what can still be withdrawn."""
        self._refused.add(frame.sender)
        self._awaited.discard(frame.sender)
        self.evidence.append(
            Equivocation(sender=frame.sender, type=frame.type, first=earlier.frame, second=data)
        )
        still_open = (self._phase, frame.type) in SERVER_COLLECTS
        if still_open and frame.type is not MessageType.MASKED:
            del self._answers[frame.type][frame.sender]
        raise RemoteProtocolError(f"{frame.sender} sent two different {frame.type.label} messages")

    # M1 to M5: what is taken from a verified frame; RemoteProtocolError refuses it

    def _take_advert(self, frame: Frame) -> Advertise:
        message: Advertise = frame.message
        check_advert(message, cfg=self._now.cfg, suite=DEFAULT_SUITE)
        keys = {message.share_key, message.mask_key}
        if keys & self._keys:
            raise RemoteProtocolError(f"{message.sender} advertises somebody else's key")
        self._keys |= keys
        return message

    def _take_shares(self, frame: Frame) -> Shares:
        message: Shares = frame.message
        self._require_roster(message.roster)
        others = self._cohort.topology.degree
        if len(message.sealed) != others:
            raise RemoteProtocolError(
                f"shares must hold {others} sealed pairs, got {len(message.sealed)}"
            )
        return message

    def _take_masked(self, frame: Frame) -> bytes:
        message: Masked = frame.message
        self._require_roster(message.roster)
        if message.shared != self._now.shared_digest:
            raise RemoteProtocolError(f"{message.sender} masked for another set than U2")
        if len(message.vector) != self._parameters.vector_bytes:
            raise RemoteProtocolError(
                f"vector must be {self._parameters.vector_bytes} bytes, got {len(message.vector)}"
            )
        DEFAULT_SUITE.verify(
            self._registry.verify_key_of(message.sender),
            message.receipt,
            receipt_text(self._now.cfg, message.roster, message.shared),
        )
        words = np.frombuffer(message.vector, dtype=self._total.dtype.newbyteorder("<"))
        np.add(self._total, words, out=self._total)
        self._now.receipts[message.sender] = message.receipt
        return vector_digest(self._cohort.roster, message.sender, message.vector)

    def _take_consistency(self, frame: Frame) -> None:
        message: Consistency = frame.message
        self._require_roster(message.roster)
        if message.survivors != self._now.survivors_digest:
            raise RemoteProtocolError(f"{message.sender} signed another survivor set")

    def _take_unmask(self, frame: Frame) -> Any:
        message: Unmask = frame.message
        self._require_roster(message.roster)
        return shamir.decode_shares(message.shares, count=len(self._owners(message.sender)))

    def _owners(self, holder: str) -> list[str]:
        """The members of U2 whose shares ``holder`` has, in order."""
        shared = self._now.commitments
        return [name for name in self._cohort.holders(holder) if name in shared]

    def _require_roster(self, roster: bytes) -> None:
        if roster != self._cohort.roster:
            raise RemoteProtocolError("the message names another roster")

    # what follows when a phase is complete or closed

    def _close_adverts(self) -> list[Outgoing]:
        names = self._answered(MessageType.ADVERTISE, self._parameters.floor)
        answers = self._answers[MessageType.ADVERTISE]
        now, members = self._now, self._members(names)
        frames = {name: answers[name].frame for name in names}
        now.adverts = tuple(frames.values())
        tree = MerkleTree(now.adverts)
        now.cohort = Cohort.of(
            cfg=now.cfg,
            suite=DEFAULT_SUITE,
            registry=self._registry,
            members=members,
            topology=feasible(self._parameters, len(members)),
            root=tree.root,
            adverts=[answers[name].value for name in names],
        )
        now.floor = self._parameters.stage_floor(len(members))
        return self._to_each(
            rosters(now.cohort, sender=self._identity.name, frames=frames, tree=tree)
        )

    def _close_shares(self) -> list[Outgoing]:
        names = self._answered(MessageType.SHARES, self._now.floor)
        shares = {name: self._answers[MessageType.SHARES][name].value for name in names}
        now, cohort = self._now, self._cohort
        now.commitments = {name: shares[name].commitment for name in names}
        shared = SetTree(self._members(names), names, tuple(now.commitments.values()))
        now.shared_digest = shared_digest(cohort.roster, shared.signed)
        return self._to_each(
            deliveries(cohort, sender=self._identity.name, shares=shares, shared=shared)
        )

    def _close_masked(self) -> list[Outgoing]:
        names = self._answered(MessageType.MASKED, self._now.floor)
        answers = self._answers[MessageType.MASKED]
        now, cohort = self._now, self._cohort
        now.survivors = names
        now.vectors = tuple(answers[name].value for name in names)
        survivors = SetTree(self._members(names), names, now.vectors)
        now.survivors_digest = survivors_digest(cohort.roster, now.shared_digest, survivors.signed)
        try:
            self._before_unmask(names)
        except BaseException as error:
            self._give_up(abort(AbortCode.LOCAL_FAULT, f"before_unmask: {type(error).__name__}"))
            raise
        return self._to_each(
            survivor_lists(cohort, sender=self._identity.name, survivors=survivors)
        )

    def _close_consistency(self) -> list[Outgoing]:
        names = self._answered(MessageType.CONSISTENCY, self._cohort.threshold)
        frames = {name: self._answers[MessageType.CONSISTENCY][name].frame for name in names}
        now = self._now
        now.consents = tuple(frames.values())
        return self._to_each(
            unmask_requests(
                self._cohort,
                sender=self._identity.name,
                survivors=frozenset(now.survivors),
                consents=frames,
                receipts=now.receipts,
            )
        )

    def _close_unmask(self) -> list[Outgoing]:
        names = self._answered(MessageType.UNMASK, self._cohort.threshold)
        now, cohort, total = self._now, self._cohort, self._total
        shares: dict[str, dict[str, Any]] = {}
        for holder in names:
            rows = self._answers[MessageType.UNMASK][holder].value
            for owner, share in zip(self._owners(holder), rows, strict=True):
                shares.setdefault(owner, {})[holder] = share
        recovered = recover(
            shares, cohort=cohort, commitments=now.commitments, survivors=frozenset(now.survivors)
        )
        strip_masks(total, recovered, cohort=cohort, survivors=now.survivors)
        total.setflags(write=False)
        self._forget()
        data = total.astype(total.dtype.newbyteorder("<"), copy=False).tobytes()
        record = RoundRecord(
            config=now.frame,
            members=cohort.members,
            adverts=now.adverts,
            shared=self._members(now.commitments),
            commitments=tuple(now.commitments.values()),
            survivors=self._members(now.survivors),
            vectors=now.vectors,
            consents=now.consents,
            sum_digest=sum_digest(now.cfg, data),
        )
        self._result = SecureSum(
            vector=total,
            survivors=now.survivors,
            config=now.config,
            record=record,
            suspects=recovered.suspects,
        )
        return []

    def _answered(self, kind: MessageType, floor: int) -> tuple[str, ...]:
        """Who answered, sorted, and from now on expected; too few of them end the round."""
        names = tuple(sorted(self._answers[kind]))
        cohort = self._now.cohort
        threshold = min(floor, self._parameters.threshold) if cohort is None else cohort.threshold
        if len(names) < threshold:
            raise abort(
                AbortCode.THRESHOLD_NOT_MET,
                f"{kind.label}: expected >= {threshold} answers, got {len(names)}",
            )
        if len(names) < floor:
            raise too_small(kind.label, len(names), floor)
        self._await(names)
        return names

    def _await(self, names: Iterable[str]) -> None:
        self._expected = frozenset(names)
        self._awaited = set(self._expected - self._refused)

    def _members(self, names: Iterable[str]) -> Members:
        indices = (self._registry.index_of(name) for name in names)
        return Members.of(indices, len(self._registry.agents))

    def _to_each(self, message_for: Callable[[str], Message]) -> list[Outgoing]:
        """One signed message for everybody who is still expected, in order."""
        return [
            Outgoing(name, encode_frame(message_for(name), self._identity))
            for name in sorted(self._awaited)
        ]

    @property
    def _now(self) -> _Round:
        if self._round is None:
            raise LocalProtocolError("the round has not been started")
        return self._round

    @property
    def _cohort(self) -> Cohort:
        if self._now.cohort is None:
            raise LocalProtocolError("the roster is not fixed yet")
        return self._now.cohort

    def __repr__(self) -> str:
        return f"SecAggServer({self._identity.name}, {self._phase.value})"


@dataclass(slots=True, kw_only=True)
class _Round:
    """What the round has fixed so far; every field is public."""

    frame: bytes
    config: RoundConfig
    cfg: bytes
    cohort: Cohort | None = None
    floor: int = 0
    adverts: tuple[bytes, ...] = ()
    commitments: dict[str, bytes] = field(default_factory=dict)
    shared_digest: bytes = b""
    receipts: dict[str, bytes] = field(default_factory=dict)
    survivors: tuple[str, ...] = ()
    vectors: tuple[bytes, ...] = ()
    survivors_digest: bytes = b""
    consents: tuple[bytes, ...] = ()


_TAKERS: Final[dict[MessageType, Callable[[SecAggServer, Frame], Any]]] = {
    MessageType.ADVERTISE: SecAggServer._take_advert,
    MessageType.SHARES: SecAggServer._take_shares,
    MessageType.MASKED: SecAggServer._take_masked,
    MessageType.CONSISTENCY: SecAggServer._take_consistency,
    MessageType.UNMASK: SecAggServer._take_unmask,
}

_CLOSERS: Final[dict[ServerPhase, Callable[[SecAggServer], list[Outgoing]]]] = {
    ServerPhase.COLLECT_ADVERTS: SecAggServer._close_adverts,
    ServerPhase.COLLECT_SHARES: SecAggServer._close_shares,
    ServerPhase.COLLECT_MASKED: SecAggServer._close_masked,
    ServerPhase.COLLECT_CONSISTENCY: SecAggServer._close_consistency,
    ServerPhase.COLLECT_UNMASK: SecAggServer._close_unmask,
}
