"""The client of a round: bytes in, bytes out.

Guarantee: after one masked vector has left, it is the only one for its (task, round, attempt); one
survivor set at most is ever signed; and for each peer at most one of its two shares leaves, chosen
by the survivor set that at least ``threshold`` clients signed.

Bytes that do not authenticate raise and change nothing. A message that the coordinator did sign and
that breaks the protocol ends the round for this client: keys forgotten, nothing more is sent.
Notation: as in ``masks`` and ``agreement``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import numpy as np

from privfedrl.errors import (
    AuthenticationFailed,
    ConfigurationError,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    RoundAborted,
)
from privfedrl.primitives import shamir
from privfedrl.primitives.key_agreement import KeyPair
from privfedrl.primitives.random import Entropy, draw, system_entropy
from privfedrl.primitives.stream import RingVector
from privfedrl.secagg.agreement import (
    Cohort,
    abort,
    check_config,
    check_pairs,
    commitment,
    read_roster,
    shared_digest,
    survivors_digest,
    vector_digest,
)
from privfedrl.secagg.identity import Identity, Registry
from privfedrl.secagg.journal import Journal
from privfedrl.secagg.masks import apply_own_masks, open_shares, seal_shares
from privfedrl.secagg.messages import (
    Advertise,
    Consistency,
    Delivery,
    Frame,
    FrameReader,
    Masked,
    Message,
    Outgoing,
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
from privfedrl.secagg.sizes import MessageType
from privfedrl.secagg.suite import suite_of

__all__ = ["SecAggClient"]

_RECEIVED: Final = frozenset(kind for _, kind in CLIENT_TRANSITIONS)


class _Secrets:
    """What must not outlive the round. Dropped field by field as soon as it has been used."""

    __slots__ = ("held", "mask_pair", "seed", "share_pair", "vector")

    def __init__(
        self, *, share_pair: KeyPair, mask_pair: KeyPair, seed: bytes, vector: RingVector
    ) -> None:
        self.share_pair: KeyPair | None = share_pair
        self.mask_pair: KeyPair | None = mask_pair
        self.seed: bytes | None = seed
        self.vector: RingVector | None = vector
        self.held: dict[str, tuple[bytes, bytes]] = {}

    def forget_masks(self) -> None:
        """Keep only the shares of the members: all that the last message needs."""
        self.share_pair = self.mask_pair = self.seed = self.vector = None

    def __repr__(self) -> str:
        return "_Secrets(<hidden>)"


class SecAggClient:
    """One agent in one round. Make a new one for each round.

    Args:
        identity: signs every message; must be an agent of ``registry``.
        registry: names and keys of everybody; pinned, never taken from the coordinator.
        parameters: pinned likewise; its num_clients is the number of registered agents.
        plan_digest: 32 bytes that pin everything else that the agent insists on.
        journal: durable memory of what has left; one per agent, shared by all its rounds.
        entropy: source of the round's keys.
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
    ) -> None:
        check_pinned(identity, registry, parameters, plan_digest, role="agent")
        self._identity = identity
        self._registry = registry
        self._parameters = parameters
        self._plan_digest = plan_digest
        self._journal = journal
        self._entropy = entropy
        self._reader = FrameReader(registry, parameters)
        self._phase = ClientPhase.IDLE
        self._abort_code = AbortCode.LOCAL_FAULT
        self._slots: dict[MessageType, bytes] = {}
        self._secrets: _Secrets | None = None
        self._before_release: Callable[[], None] | None = None
        self._config: RoundConfig | None = None
        self._cohort: Cohort | None = None
        self._advert = b""
        self._cfg = self._commitment = self._vector_digest = b""
        self._shared = self._survivors = b""
        self._sharers: tuple[str, ...] = ()
        self._survivor_names: tuple[str, ...] = ()
        self.evidence: tuple[bytes, ...] = ()
        """The two signed frames with which the coordinator contradicted itself, if it did."""

    @property
    def phase(self) -> ClientPhase:
        """Where this client is; DONE and ABORTED are final."""
        return self._phase

    @property
    def finished(self) -> bool:
        """Whether nothing more will be sent."""
        return self._phase in (ClientPhase.DONE, ClientPhase.ABORTED)

    def start(
        self,
        config: bytes,
        vector: RingVector,
        *,
        model_digest: bytes,
        before_release: Callable[[], None] = lambda: None,
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
            return self._join(frame, config, own, model_digest, before_release)

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
        if data in self._slots.values():
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
            self.evidence = (self._slots[frame.type], data)
            raise abort(AbortCode.EQUIVOCATION, f"two different {frame.type.label} messages")
        following = CLIENT_TRANSITIONS.get((self._phase, frame.type))
        if following is None:
            raise abort(
                AbortCode.UNEXPECTED_MESSAGE,
                f"{frame.type.label} is not allowed while {self._phase.value}",
            )
        answer = _HANDLERS[frame.type](self, frame.message)
        self._slots[frame.type] = data
        if following is ClientPhase.DONE:
            self._end(following, AbortCode.LOCAL_FAULT)
        self._phase = following
        return answer

    def _join(
        self,
        frame: Frame,
        data: bytes,
        vector: RingVector,
        model_digest: bytes,
        before_release: Callable[[], None],
    ) -> list[Outgoing]:
        config: RoundConfig = frame.message
        check_config(
            config,
            registry=self._registry,
            parameters=self._parameters,
            plan_digest=self._plan_digest,
        )
        if config.model_digest != model_digest:
            raise abort(AbortCode.MODEL_MISMATCH, "the config names another model than the agent's")
        suite = suite_of(config.suite)
        secrets = _Secrets(
            share_pair=suite.generate(self._entropy),
            mask_pair=suite.generate(self._entropy),
            seed=draw(self._entropy, shamir.SECRET_BYTES),
            vector=vector,
        )
        self._secrets, self._config, self._before_release = secrets, config, before_release
        self._cfg = config_digest(frame.payload)
        answer = self._advertise(secrets)
        self._slots[MessageType.CONFIG] = data
        self._phase = CLIENT_TRANSITIONS[ClientPhase.IDLE, MessageType.CONFIG]
        return answer

    def _advertise(self, secrets: _Secrets) -> list[Outgoing]:
        assert secrets.share_pair is not None  # noqa: S101 - narrows the type, set just before
        assert secrets.mask_pair is not None  # noqa: S101 - as above
        message = Advertise(
            cfg=self._cfg,
            sender=self._identity.name,
            share_key=secrets.share_pair.public,
            mask_key=secrets.mask_pair.public,
        )
        answer = self._answer(message)
        self._advert = answer[0].data
        self._reader.trust(self._advert)
        return answer
