"""The client of a round: bytes in, bytes out.

Guarantee: after one masked vector has left, it is the only one for its (task, round, attempt); one
survivor set at most is ever signed; and for each peer at most one of its two shares leaves, chosen
by the survivor set that at least ``threshold`` clients signed.

Bytes that do not authenticate raise and change nothing. A message that the coordinator did sign and
that breaks the protocol ends the round for this client: keys forgotten, nothing more is sent.
Notation: as in ``masks`` and ``agreement``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn, TypeVar

import numpy as np

from privfedrl.errors import (
    AuthenticationFailed,
    LocalProtocolError,
    RemoteProtocolError,
)
from privfedrl.parties.frames import Frame, Outgoing
from privfedrl.parties.identity import Identity, Registry
from privfedrl.parties.journal import Journal
from privfedrl.parties.members import Members
from privfedrl.parties.opening import check_pinned, check_time
from privfedrl.parties.participation import Participation
from privfedrl.primitives import shamir
from privfedrl.primitives.random import Clock, Entropy, draw, system_clock, system_entropy
from privfedrl.primitives.stream import RingVector
from privfedrl.secagg.agreement import (
    Cohort,
    SignedSet,
    abort,
    check_config,
    commitment,
    members_of,
    proved_root,
    read_roster,
    receipt_text,
    shared_digest,
    survivors_digest,
    too_small,
    vector_digest,
)
from privfedrl.secagg.edges import Edges, OwnEdges
from privfedrl.secagg.masks import apply_own_masks
from privfedrl.secagg.messages import (
    Advertise,
    Consistency,
    Delivery,
    FrameReader,
    Masked,
    Message,
    Roster,
    RoundConfig,
    Shares,
    Survivors,
    Unmask,
    UnmaskRequest,
    config_digest,
    encode_frame,
)
from privfedrl.secagg.parameters import SecAggParameters
from privfedrl.secagg.phases import CLIENT_TRANSITIONS, AbortCode, ClientPhase
from privfedrl.secagg.sharing import RoundKeys, SharePair, open_all, share_out
from privfedrl.secagg.sizes import MessageType
from privfedrl.secagg.suite import suite_of

__all__ = ["SecAggClient"]

_T = TypeVar("_T")
_OWN: Final = OwnEdges()
_CODES: Final[dict[object, AbortCode]] = {code.value: code for code in AbortCode}
_RECEIVED: Final = frozenset(kind for _, kind in CLIENT_TRANSITIONS)


def _do_nothing() -> None:
    """The default of ``before_release``."""


def _present(value: _T | None) -> _T:
    if value is None:
        raise LocalProtocolError("this is not known yet, or has been forgotten")
    return value


class SecAggClient:
    """One agent in one round. Make a new one for each round.

    Args:
        identity: signs every message; must be an agent of ``registry``.
        registry: names and keys of everybody; pinned, never taken from the coordinator.
        parameters: pinned likewise; its num_clients is the number of registered agents.
        plan_digest: 32 bytes that pin everything else that the agent insists on.
        journal: durable memory of what has left; one per agent, shared by all its rounds.
        entropy: source of the round's keys.
        clock: the agent's own time; a round that claims another is refused.
        edges: only a simulation of many clients in one process gives anything here.
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
        journal: Journal,
        entropy: Entropy = system_entropy,
        clock: Clock = system_clock,
        edges: Edges = _OWN,
    ) -> None:
        check_pinned(identity, registry, parameters, plan_digest, role="agent")
        self._identity = identity
        self._registry = registry
        self._parameters = parameters
        self._plan_digest = plan_digest
        self._journal = journal
        self._entropy = entropy
        self._clock = clock
        self._edges = edges
        self._reader = FrameReader(registry, parameters, verified=edges.verified(registry.digest))
        self._phase = ClientPhase.IDLE
        self._abort_code = AbortCode.LOCAL_FAULT
        self._slots: dict[MessageType, bytes] = {}
        self._round_keys: RoundKeys | None = None
        self._round_cohort: Cohort | None = None
        self._round_config: RoundConfig | None = None
        self._held_shares: dict[str, SharePair] = {}
        self._before_release: Callable[[], None] = _do_nothing
        self._received = self._advert = self._cfg = self._commitment = self._vector_digest = b""
        self._shared = self._survivors = b""
        self._sharers: Members | None = None
        self._survivor_set: Members | None = None

    @property
    def phase(self) -> ClientPhase:
        """Where this client is; DONE and ABORTED are final."""
        return self._phase

    @property
    def finished(self) -> bool:
        """Whether nothing more will be sent."""
        return self._phase in (ClientPhase.DONE, ClientPhase.ABORTED)

    @property
    def survivors(self) -> tuple[str, ...]:
        """U3 as this client signed it, sorted; empty before that. Their vectors are in the sum."""
        if self._survivor_set is None:
            return ()
        return tuple(self._registry.agents[index] for index in self._survivor_set.indices())

    def start(
        self,
        config: bytes,
        vector: RingVector,
        *,
        model_digest: bytes,
        before_release: Callable[[], None] = _do_nothing,
    ) -> list[Outgoing]:
        """Join the round that ``config`` opens. Returns M1.

        Args:
            config: the coordinator's signed config frame.
            vector: uint32 or uint64 [D] by ring_bits; copied.
            model_digest: 32 bytes, of the model that this agent trained from.
            before_release: called once, after every check and before the masked vector leaves;
                if it raises, the client aborts, nothing leaves and its error propagates.
        Raises:
            LocalProtocolError: called twice, or the vector has another form; nothing changes.
            RemoteProtocolError, AuthenticationFailed: not a config of the coordinator; nothing
                changes.
            RoundAborted: an authentic config for another plan, model, registry or parameters.
        """
        if self._phase is not ClientPhase.IDLE:
            raise LocalProtocolError(f"start must come first, this client is {self._phase.value}")
        own = self._checked_copy(vector)
        frame = self._reader.read(config, frozenset({MessageType.CONFIG}))
        with self._fail_closed():
            answer = self._join(frame, own, model_digest)
            self._before_release = before_release
            self._slots[MessageType.CONFIG] = config
            self._phase = CLIENT_TRANSITIONS[ClientPhase.IDLE, MessageType.CONFIG]
            return answer

    def receive(self, data: bytes) -> list[Outgoing]:
        """Take one frame of the coordinator. Returns the answer, or nothing for a repeat.

        Raises:
            LocalProtocolError: not started; or the journal knows this round already (final).
            RemoteProtocolError, AuthenticationFailed: not a frame of this coordinator for this
                client and round; nothing changes.
            RoundAborted: an authentic message broke the protocol; final.
        """
        if self._phase is ClientPhase.IDLE:
            raise LocalProtocolError("start must be called before receive")
        if self._phase is ClientPhase.ABORTED:
            raise abort(self._abort_code, "this client has left the round")
        if isinstance(data, bytes) and data in self._slots.values():
            return []
        frame = self._reader.read(data, _RECEIVED)
        self._check_address(frame)
        if self._phase is ClientPhase.DONE:
            raise RemoteProtocolError(f"{frame.type.label} came after the end of the round")
        with self._fail_closed():
            return self._step(frame, data)

    def close_phase(self) -> list[Outgoing]:
        """The caller's deadline has passed: leave the round and forget its keys. Sends nothing."""
        if not self.finished:
            self._end(ClientPhase.ABORTED, AbortCode.DEADLINE)
        return []

    def _step(self, frame: Frame, data: bytes) -> list[Outgoing]:
        if frame.type in self._slots:
            raise abort(
                AbortCode.EQUIVOCATION,
                f"two different {frame.type.label} messages",
                evidence=(self._slots[frame.type], data),
            )
        following = CLIENT_TRANSITIONS.get((self._phase, frame.type))
        if following is None:
            raise abort(
                AbortCode.UNEXPECTED_MESSAGE,
                f"{frame.type.label} is not allowed while {self._phase.value}",
            )
        self._received = data
        answer = _HANDLERS[frame.type](self, frame.message)
        if self._phase is ClientPhase.ABORTED:  # a hook of the caller's closed the round meanwhile
            raise abort(self._abort_code, "this client has left the round")
        self._slots[frame.type] = data
        if following is ClientPhase.DONE:
            self._end(following, AbortCode.LOCAL_FAULT)
        self._phase = following
        return answer

    def _join(self, frame: Frame, vector: RingVector, model_digest: bytes) -> list[Outgoing]:
        """M1: check the config, draw the round's keys and advertise the public ones."""
        config: RoundConfig = frame.message
        check_config(
            config,
            registry=self._registry,
            parameters=self._parameters,
            plan_digest=self._plan_digest,
        )
        check_time(config, registry=self._registry, now=self._clock())
        if not self._registry.valid_at(self._identity.name, config.opened_at):
            raise abort(AbortCode.UNKNOWN_IDENTITY, "this client's own identity is not valid now")
        if config.model_digest != model_digest:
            raise abort(AbortCode.MODEL_MISMATCH, "the config names another model than the agent's")
        suite = suite_of(config.suite)
        keys = RoundKeys(
            share_pair=suite.generate(self._entropy),
            mask_pair=suite.generate(self._entropy),
            seed=draw(self._entropy, shamir.SECRET_BYTES),
            vector=vector,
        )
        self._round_keys, self._round_config = keys, config
        self._cfg = config_digest(frame.payload)
        answer = self._answer(
            Advertise(
                cfg=self._cfg,
                sender=self._identity.name,
                share_key=keys.share_pair.public,
                mask_key=keys.mask_pair.public,
            )
        )
        self._advert = answer[0].data
        return answer

    def _on_roster(self, message: Roster) -> list[Outgoing]:
        """M2: share b_i and s_i among the holders, commit to b_i."""
        if self._advert not in message.adverts:
            raise abort(AbortCode.ROSTER_MISMATCH, "the roster does not hold this client's advert")
        cohort = read_roster(
            message,
            cfg=self._cfg,
            config=self._config,
            reader=self._reader,
            registry=self._registry,
            parameters=self._parameters,
        )
        keys, name = self._keys, self._identity.name
        own, sealed = share_out(
            (keys.seed, keys.mask_pair.secret_bytes()),
            cohort=cohort,
            name=name,
            pair=keys.share_pair,
            entropy=self._entropy,
            edges=self._edges,
        )
        if own is not None:
            self._held_shares[name] = own
        self._commitment = commitment(cohort.roster, name, keys.seed)
        self._round_cohort = cohort
        return self._answer(
            Shares(
                cfg=self._cfg,
                sender=name,
                roster=cohort.roster,
                commitment=self._commitment,
                sealed=sealed,
            )
        )

    def _on_delivery(self, message: Delivery) -> list[Outgoing]:
        """M3: open the shares, mask the vector for exactly U2, record it as spent, let it go."""
        cohort, name = self._cohort, self._identity.name
        self._require_roster(message.roster)
        sharers = self._read_set(
            message,
            within=cohort.members,
            own=self._commitment,
            code=AbortCode.ROSTER_MISMATCH,
        )
        self._sharers = sharers.members
        self._shared = shared_digest(cohort.roster, sharers)
        peers = self._within(cohort.neighbours(name), sharers.members)
        holders = self._within(cohort.holders(name), sharers.members)
        if len(holders) < cohort.threshold:
            raise too_small("U2 among the holders", len(holders), cohort.threshold)
        if len(message.sealed) != len(peers):
            raise abort(AbortCode.MALFORMED, f"expected {len(peers)} sealed pairs of shares")
        self._held_shares |= open_all(
            dict(zip(peers, message.sealed, strict=True)),
            cohort=cohort,
            name=name,
            pair=self._keys.share_pair,
            edges=self._edges,
        )
        answer = self._answer(self._masked(peers))
        self._journal.spend_masked(self._config.task_id, self._config.round, self._config.attempt)
        self._before_release()
        return answer

    def _masked(self, peers: tuple[str, ...]) -> Masked:
        cohort, keys, name = self._cohort, self._keys, self._identity.name
        try:
            apply_own_masks(
                keys.vector,
                cohort=cohort,
                name=name,
                pair=keys.mask_pair,
                seed=keys.seed,
                peers=peers,
                edges=self._edges,
            )
        finally:
            self._round_keys = None  # the vector is spent, whatever happens next
        wire = keys.vector.astype(keys.vector.dtype.newbyteorder("<"), copy=False)
        data = wire.view(np.uint8).data  # encoded from here without another copy
        self._vector_digest = vector_digest(cohort.roster, name, data)
        return Masked(
            cfg=self._cfg,
            sender=name,
            roster=cohort.roster,
            shared=self._shared,
            receipt=self._identity.sign(receipt_text(self._cfg, cohort.roster, self._shared)),
            vector=data,
        )

    def _on_survivors(self, message: Survivors) -> list[Outgoing]:
        """M4: sign the survivor set, once in the life of this round."""
        cohort, name = self._cohort, self._identity.name
        self._require_roster(message.roster)
        survivors = self._read_set(
            message,
            within=self._sharers,
            own=self._vector_digest,
            code=AbortCode.SURVIVOR_MISMATCH,
        )
        self._survivors = survivors_digest(cohort.roster, self._shared, survivors)
        self._spend_consistency(survivors.members)
        self._survivor_set = survivors.members
        return self._answer(
            Consistency(cfg=self._cfg, sender=name, roster=cohort.roster, survivors=self._survivors)
        )

    def _spend_consistency(self, survivors: Members) -> None:
        """Refuse U3 if it isolates somebody, given earlier ones; then record it durably."""
        config, scope = self._config, self._parameters.differencing
        self._journal.spend_consistency(
            config.task_id,
            Participation(
                round=config.round,
                attempt=config.attempt,
                model_digest=config.model_digest,
                members=survivors.to_bytes(),
            ),
            # colluding clients can be subtracted from a group, so they do not count
            floor=0
            if scope == "off"
            else self._parameters.min_honest + self._parameters.max_colluding,
            scope="model" if scope == "off" else scope,
        )

    def _on_unmask_request(self, message: UnmaskRequest) -> list[Outgoing]:
        """M5: given enough signatures on the same U3, one share per owner in U2."""
        cohort, survivors = self._cohort, _present(self._survivor_set)
        self._require_roster(message.roster)
        signers = {self._read_consent(frame) for frame in message.consents}
        asked = self._within(cohort.holders(self._identity.name), survivors)
        if len(signers) != len(message.consents) or not signers <= set(asked):
            raise abort(
                AbortCode.SURVIVOR_MISMATCH,
                "signers must be distinct survivors among this client's holders",
            )
        if len(signers) < cohort.threshold:
            raise abort(
                AbortCode.THRESHOLD_NOT_MET,
                f"expected >= {cohort.threshold} signatures, got {len(signers)}",
            )
        alive = set(self._within(self._held_shares, survivors))
        received = self._read_receipts(message)
        if not alive <= signers | received | {self._identity.name}:
            raise abort(
                AbortCode.SURVIVOR_MISMATCH,
                "a survivor has not been shown to have masked for the same U2",
            )
        chosen = [
            self._held_shares[owner][0 if owner in alive else 1]
            for owner in sorted(self._held_shares)
        ]
        return self._answer(
            Unmask(
                cfg=self._cfg,
                sender=self._identity.name,
                roster=cohort.roster,
                shares=b"".join(chosen),
            )
        )

    def _read_consent(self, data: bytes) -> str:
        try:
            consent: Consistency = self._reader.read(
                data, frozenset({MessageType.CONSISTENCY})
            ).message
        except (RemoteProtocolError, AuthenticationFailed) as error:
            raise abort(AbortCode.BAD_SIGNATURE, "a consistency signature was refused") from error
        if consent.cfg != self._cfg or consent.roster != self._cohort.roster:
            raise abort(AbortCode.REPLAY, f"{consent.sender}'s signature is of another round")
        if consent.survivors != self._survivors:
            raise abort(
                AbortCode.EQUIVOCATION,
                f"{consent.sender} was shown another survivor set",
                # all three signed by the coordinator or by the other: nobody can be framed
                evidence=(self._slots[MessageType.SURVIVORS], data, self._received),
            )
        return consent.sender

    def _read_receipts(self, message: UnmaskRequest) -> set[str]:
        """Who, by its own signature, masked for the same U2 as this client."""
        text = receipt_text(self._cfg, self._cohort.roster, self._shared)
        for name, signature in message.receipts:
            try:
                if name not in self._cohort.mask_keys:
                    raise AuthenticationFailed
                self._cohort.suite.verify(self._registry.verify_key_of(name), signature, text)
            except AuthenticationFailed as error:
                raise abort(AbortCode.BAD_SIGNATURE, "a receipt was refused") from error
        return {name for name, _ in message.receipts}

    def _read_set(
        self, message: Delivery | Survivors, *, within: Members | None, own: bytes, code: AbortCode
    ) -> SignedSet:
        """U2 or U3: a large enough subset that holds this client with its own digest."""
        members = members_of(
            message.members,
            registry=self._registry,
            within=within,
            floor=self._parameters.stage_floor(len(self._cohort.members)),
            code=code,
        )
        index = self._registry.index_of(self._identity.name)
        if index not in members:
            raise abort(code, "the set does not hold this client")
        leaf = {members.rank(index): own}
        if proved_root(leaf, len(members), message.proof, code=code) != message.root:
            raise abort(code, "the set does not hold what this client sent")
        return SignedSet(members=members, root=message.root)

    def _within(self, names: Iterable[str], members: Members) -> tuple[str, ...]:
        return tuple(name for name in names if self._registry.index_of(name) in members)

    def _require_roster(self, roster: bytes) -> None:
        if roster != self._cohort.roster:
            raise abort(AbortCode.ROSTER_MISMATCH, "the message names another roster")

    def _check_address(self, frame: Frame) -> None:
        """Refuse, without harm, an authentic frame that is not about this round or client."""
        if frame.type is MessageType.CONFIG:
            other, own = frame.message, self._config
            here = (own.task_id, own.round, own.attempt)
            if (other.task_id, other.round, other.attempt) != here:
                raise RemoteProtocolError("config belongs to another round")
        elif frame.message.cfg != self._cfg:
            raise RemoteProtocolError(f"{frame.type.label} belongs to another round")
        elif frame.message.recipient != self._identity.name:
            raise RemoteProtocolError(f"{frame.type.label} is addressed to another client")

    def _checked_copy(self, vector: RingVector) -> RingVector:
        dtype = np.dtype(f"uint{self._parameters.ring_bits}")
        shape = (self._parameters.vector_length,)
        if not isinstance(vector, np.ndarray) or vector.dtype != dtype or vector.shape != shape:
            raise LocalProtocolError(f"vector must be {dtype} of shape {shape}")
        return np.array(vector, dtype=dtype, order="C")

    def _answer(self, message: Message) -> list[Outgoing]:
        return [Outgoing(self._registry.coordinator, encode_frame(message, self._identity))]

    @contextmanager
    def _fail_closed(self) -> Iterator[None]:
        """Whatever goes wrong inside ends the round for this client, before the error is seen."""
        try:
            yield
        except BaseException as error:
            code = getattr(error, "code", None)  # anything, if the error is a caller's own
            known = _CODES.get(code if isinstance(code, str) else "", AbortCode.LOCAL_FAULT)
            self._end(ClientPhase.ABORTED, known)
            raise

    def _end(self, phase: ClientPhase, code: AbortCode) -> None:
        self._phase, self._abort_code = phase, code
        self._round_keys = None
        self._held_shares.clear()
        self._before_release = _do_nothing

    @property
    def _keys(self) -> RoundKeys:
        return _present(self._round_keys)

    @property
    def _cohort(self) -> Cohort:
        return _present(self._round_cohort)

    @property
    def _config(self) -> RoundConfig:
        return _present(self._round_config)

    def __repr__(self) -> str:
        return f"SecAggClient({self._identity.name}, {self._phase.value})"

    def __reduce__(self) -> NoReturn:
        raise LocalProtocolError("a client holds one-time keys and refuses to be pickled or copied")


_HANDLERS: Final[dict[MessageType, Callable[[SecAggClient, Any], list[Outgoing]]]] = {
    MessageType.ROSTER: SecAggClient._on_roster,
    MessageType.DELIVERY: SecAggClient._on_delivery,
    MessageType.SURVIVORS: SecAggClient._on_survivors,
    MessageType.UNMASK_REQUEST: SecAggClient._on_unmask_request,
}
