"""The agent of a homomorphic round: bytes in, bytes out.

Guarantee: the vector leaves once, encrypted under a key that the registered key authority signed
for this very round, and only after the agent has seen its own commitment in the authority's roster,
so that nobody else's ciphertexts can have been made from its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from privfedrl.errors import LocalProtocolError, RemoteProtocolError
from privfedrl.he.agreement import (
    FixedRoster,
    abort,
    check_context,
    check_contributors,
    names_of,
    read_roster,
)
from privfedrl.he.digests import commitment
from privfedrl.he.frames import (
    Commit,
    Context,
    DecryptionReceipt,
    Kind,
    Roster,
    Upload,
)
from privfedrl.he.lattice import Encryptor
from privfedrl.he.parameters import HEParameters, RingVector
from privfedrl.he.participant import Participant, present
from privfedrl.he.phases import CLIENT_TRANSITIONS, AbortCode, ClientPhase
from privfedrl.parties.frames import Frame, Outgoing
from privfedrl.parties.identity import Identity, Registry
from privfedrl.parties.journal import Journal
from privfedrl.primitives.random import Clock, system_clock

__all__ = ["HEClient"]


def _do_nothing() -> None:
    """The default of ``before_release``."""


class HEClient(Participant):
    """One agent in one round. Make a new one for each round.

    Args:
        identity: signs every message; must be an agent of ``registry``.
        registry: names and keys of everybody; pinned, never taken from the coordinator.
        parameters: pinned likewise; its num_clients is the number of registered agents.
        plan_digest: 32 bytes that pin everything else that the agent insists on.
        journal: durable memory of what has left; one per agent, shared by all its rounds.
        clock: the agent's own time; a round that claims another, or that is over, is refused.
    Raises:
        ConfigurationError: these do not fit together.
    """

    role = "agent"
    phases = ClientPhase
    transitions = CLIENT_TRANSITIONS

    def __init__(
        self,
        *,
        identity: Identity,
        registry: Registry,
        parameters: HEParameters,
        plan_digest: bytes,
        journal: Journal,
        clock: Clock = system_clock,
    ) -> None:
        super().__init__(
            identity=identity,
            registry=registry,
            parameters=parameters,
            plan_digest=plan_digest,
            clock=clock,
        )
        self._journal = journal
        self._before_release: Callable[[], None] = _do_nothing
        self._vector: RingVector | None = None
        self._ciphertexts: bytes | None = None
        self._roster: FixedRoster | None = None
        self._promised = b""
        self._survivors: tuple[str, ...] = ()

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose vectors are in the sum, sorted, as the authority's receipt says; empty before."""
        return self._survivors

    def start(
        self,
        config: bytes,
        vector: RingVector,
        *,
        model_digest: bytes,
        before_release: Callable[[], None] = _do_nothing,
        received_at: int | None = None,
    ) -> list[Outgoing]:
        """Join the round that ``config`` opens. Sends nothing yet.

        Args:
            config: the coordinator's signed config frame.
            vector: uint32 or uint64 [D] by ring_bits; copied.
            model_digest: 32 bytes, of the model that this agent trained from.
            before_release: called once, after every check and before the ciphertexts leave; if it
                raises, the client aborts, nothing leaves and its error propagates.
            received_at: when the config came, if the agent has trained since; now if absent.
        Raises:
            LocalProtocolError: called twice, or the vector has another form; nothing changes.
            RemoteProtocolError, AuthenticationFailed: not a config of the coordinator; nothing
                changes.
            RoundAborted: an authentic config for another plan, model, registry or parameters.
        """
        self._require_idle()
        own = self._checked_copy(vector)
        now = self._clock() if received_at is None else received_at
        found, cfg = self._join(config, now)
        with self._fail_closed():
            if found.model_digest != model_digest:
                raise abort(AbortCode.MODEL_MISMATCH, "the config names another model")
            self._vector, self._before_release = own, before_release
            self._opened(found, cfg, config)
        return []

    def _on_context(self, frame: Frame) -> list[Outgoing]:
        """Encrypt under the round's key, and commit to the ciphertexts."""
        message: Context = frame.message
        check_context(
            message,
            config=present(self._config),
            registry=self._registry,
            parameters=self._parameters,
            now=self._clock(),
        )
        try:
            encryptor = Encryptor(self._parameters.parameter_set, frame.attachment)
        except RemoteProtocolError as error:
            raise abort(AbortCode.MALFORMED, f"the public key: {error}") from error
        slots = self._parameters.to_slots(present(self._vector))
        self._ciphertexts = encryptor.encrypt(slots)
        self._vector = None
        self._key = message.key
        name = self._identity.name
        self._promised = commitment(self._cfg, self._key, name, self._ciphertexts)
        return self._answer(
            Commit(cfg=self._cfg, key=self._key, sender=name, commitment=self._promised)
        )

    def _on_roster(self, frame: Frame) -> list[Outgoing]:
        """Upload, if what this agent committed to is in the roster and its journal allows it."""
        message: Roster = frame.message
        config, name = present(self._config), self._identity.name
        roster = read_roster(
            message, config=config, registry=self._registry, parameters=self._parameters
        )
        ciphertexts = present(self._ciphertexts)
        if roster.commitments.get(name) != self._promised:
            raise abort(AbortCode.ROSTER_MISMATCH, "the roster does not hold this agent's promise")
        answer = self._answer(
            Upload(
                cfg=self._cfg,
                key=self._key,
                sender=name,
                roster=roster.digest,
                commitment=self._promised,
            ),
            ciphertexts,
        )
        self._journal.spend_masked(config.task_id, config.round, config.attempt)
        self._before_release()
        self._ciphertexts, self._roster = None, roster
        return answer

    def _on_receipt(self, frame: Frame) -> list[Outgoing]:
        message: DecryptionReceipt = frame.message
        roster = present(self._roster)
        if message.roster != roster.digest:
            raise abort(AbortCode.ROSTER_MISMATCH, "the receipt is about another roster")
        contributors = check_contributors(
            message.contributors, roster, self._registry, self._parameters.floor
        )
        self._survivors = names_of(contributors, self._registry)
        return []

    def _checked_copy(self, vector: RingVector) -> RingVector:
        dtype = np.dtype(f"uint{self._parameters.ring_bits}")
        shape = (self._parameters.vector_length,)
        if not isinstance(vector, np.ndarray) or vector.dtype != dtype or vector.shape != shape:
            raise LocalProtocolError(f"vector must be {dtype} of shape {shape}")
        return np.array(vector, dtype=dtype, order="C")

    def _forget(self) -> None:
        self._vector = self._ciphertexts = None
        self._before_release = _do_nothing

    handlers: ClassVar = {
        Kind.CONTEXT: _on_context,
        Kind.ROSTER: _on_roster,
        Kind.RECEIPT: _on_receipt,
    }
