"""The coordinator: opens rounds, forms the sum of the survivors, charges it, moves the policy.

Guarantee: nothing is asked of an agent before the round's worst case is durably reserved, and no
mask is removed before the ledger has accepted the survivors. A coordinator sees one sum a round.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError, LocalProtocolError
from privfedrl.federation.backends import Backend, Opening, RoundServer, Standing
from privfedrl.federation.broadcast import model_digest, pack_broadcast
from privfedrl.federation.central_noise import about_the_release
from privfedrl.federation.releases import (
    FederationState,
    OpenRound,
    RoundResult,
    SignedRecord,
    advance,
    initial_federation_state,
    next_attempt,
    published,
    recovered,
    release_round,
    reserve_round,
    settle_round,
    with_clip,
)
from privfedrl.federation.setup import RoundSetup, round_setup
from privfedrl.federation.sum_memory import SumMemory, check_memory
from privfedrl.parties import Identity, Outgoing, Registry
from privfedrl.plan import Plan
from privfedrl.primitives.random import Clock, Entropy, system_clock, system_entropy
from privfedrl.privacy import Ledger
from privfedrl.secagg import RoundRecord

__all__ = [
    "Coordinator",
    "FederationState",
    "RoundResult",
    "advance",
    "initial_federation_state",
    "next_attempt",
    "published",
    "reserve_round",
    "settle_round",
    "with_clip",
]

Vector = NDArray[np.float64]
RingVector = NDArray[np.unsignedinteger]


class Coordinator:
    """The four verbs of a round: open_round, receive, close_phase, result.

    It owns no socket, thread or clock: the caller decides when a phase is over.

    Args:
        plan: the coordinator's copy; agents with another one refuse the round.
        identity: signing key, role "coordinator" in ``registry``.
        registry: the agents that may take part.
        ledger: charged before agents are asked for anything.
        state: where to go on from; a fresh run starts with :func:`initial_federation_state`.
        entropy: cryptographic; for rotation seeds, for the backend and, where the coordinator adds
            the noise, for that noise.
        clock: seconds since 1970-01-01 UTC; read once when a round is opened.
        history: where past sums are kept, secret and durable; required exactly where the plan has
            privacy.correlation_bands. If the last process died between a release and the saving of
            its state, the constructor finishes that round: ``state`` is then the one after it, and
            :meth:`result` gives what was released.
    Raises:
        LedgerIntegrity, StorageError: the history is older than state or ledger, or damaged.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        identity: Identity,
        registry: Registry,
        ledger: Ledger,
        state: FederationState,
        entropy: Entropy = system_entropy,
        clock: Clock = system_clock,
        history: SumMemory | None = None,
    ) -> None:
        self._plan = plan
        self._setup = round_setup(plan)
        check_memory(self._setup, history)
        self._memory = history
        expected = self._setup.policy.num_parameters
        if state.parameters.shape != (expected,):
            raise ConfigurationError(
                f"parameters must have shape ({expected},) for the plan's policy, "
                f"got {state.parameters.shape}"
            )
        if self._setup.backend is not None:
            self._setup.backend.check_registry(registry)
        self._identity = identity
        self._registry = registry
        self._ledger = ledger
        self._entropy = entropy
        self._clock = clock
        self._state = with_clip(self._setup, state)
        self._server: RoundServer | None = None
        self._opening: OpenRound | None = None
        self._result: RoundResult | None = None
        found = recovered(self._setup, history, ledger, self._state)
        if found is not None:
            self._state, self._result = found

    @property
    def state(self) -> FederationState:
        """The state after the last completed round."""
        return self._state

    @property
    def setup(self) -> RoundSetup:
        """What the plan means in numbers."""
        return self._setup

    @property
    def attempt(self) -> int:
        """Which try of its round was opened last, from 0."""
        if self._opening is not None:
            return self._opening.attempt
        return 0 if self._result is None else self._result.attempt

    @property
    def finished(self) -> bool:
        """True when no round is in progress: it has a result or was aborted."""
        return self._server is None or self._server.finished

    def open_round(self, parameters: Vector | None = None) -> list[Outgoing]:
        """Reserve the round's worst case, then invite every registered agent.

        Under encryption the key authority (and the auditor) is invited too, with the signed
        configuration alone: it has no use for the policy.

        Args:
            parameters: float64 [d], to train another policy than the last result; None = go on.
        Raises:
            BudgetExceeded: the ledger refuses; nothing was sent.
            LocalProtocolError: a round is in progress.
        """
        if not self.finished:
            raise LocalProtocolError("open_round: a round is in progress")
        if parameters is not None:
            self._state = _with_parameters(self._state, parameters)
        opening = reserve_round(self._setup, self._ledger, self._state, self._entropy)
        server, invitations = self._backend.open(
            Opening(
                task_id=self._state.task_id,
                round=self._state.round,
                attempt=opening.attempt,
                model_digest=model_digest(published(self._state)),
                previous_transcript=self._state.transcript,
                round_seed=opening.seed,
            ),
            who=Standing(
                identity=self._identity,
                registry=self._registry,
                plan_digest=self._plan.digest,
                entropy=self._entropy,
                clock=self._clock,
            ),
            settle=lambda survivors: self._settle(opening, survivors),
        )
        self._server, self._opening, self._result = server, opening, None
        return [self._with_policy(invitation) for invitation in invitations]

    def receive(self, data: bytes) -> list[Outgoing]:
        """Take one message of an agent. Raises ProtocolError with the state unchanged."""
        return self._running().receive(data)

    def close_phase(self) -> list[Outgoing]:
        """The caller's deadline: go on with the agents that answered, or abort."""
        return self._running().close_phase()

    def result(self) -> RoundResult:
        """The new policy.

        Raises:
            LocalProtocolError: the round is still open.
            RoundAborted: there is no sum; the reservation stands.
        """
        if self._result is None:
            server, opening = self._running(), self._opening
            if opening is None or not server.finished:
                raise LocalProtocolError("result: the round is still open")
            total = server.result()
            self._state, self._result = release_round(
                self._setup,
                self._state,
                opening,
                total.vector,
                total.survivors,
                entropy=self._entropy,
                sign=lambda released: self._signed(total.record, released),
                ledger=self._ledger,
                memory=self._memory,
            )
        return self._result

    def _signed(self, record: Any, released: RingVector) -> SignedRecord:
        if isinstance(record, RoundRecord) and not self._plan.privacy.distributed:
            record = about_the_release(record, released)
        signed: SignedRecord = self._backend.sign(
            record, identity=self._identity, ledger_head=bytes.fromhex(self._ledger.head)
        )
        return signed

    def _running(self) -> RoundServer:
        if self._server is None:
            raise LocalProtocolError("no round was opened; call open_round first")
        return self._server

    def _with_policy(self, invitation: Outgoing) -> Outgoing:
        if self._registry.role_of(invitation.recipient) != "agent":
            return invitation
        data = pack_broadcast(invitation.data, published(self._state))
        return Outgoing(recipient=invitation.recipient, data=data)

    def _settle(self, opening: OpenRound, survivors: int) -> bytes:
        settle_round(self._setup, self._ledger, opening, survivors)
        return bytes.fromhex(self._ledger.head)

    @property
    def _backend(self) -> Backend:
        if self._setup.backend is None:
            raise ConfigurationError(
                "protection.kind must be 'pairwise', 'bfv' or 'ckks' for a coordinator, got "
                "'none': only the simulator runs unprotected plans"
            )
        return self._setup.backend


def _with_parameters(state: FederationState, parameters: Vector) -> FederationState:
    if parameters.shape != state.parameters.shape or not np.isfinite(parameters).all():
        raise ConfigurationError(
            f"parameters must be finite with shape {state.parameters.shape}, got {parameters.shape}"
        )
    return replace(state, parameters=parameters.astype(np.float64))
