"""The coordinator: opens rounds, forms the sum of the survivors, charges it, moves the policy.

Guarantee: nothing is asked of an agent before the round's worst case is durably reserved, and no
mask is removed before the ledger has accepted the survivors. A coordinator sees one sum a round.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError, LocalProtocolError
from privfedrl.federation.backends import Backend, Opening, RoundServer, Standing
from privfedrl.federation.broadcast import model_digest, pack_broadcast
from privfedrl.federation.central_noise import with_central_noise
from privfedrl.federation.setup import RoundSetup, round_setup
from privfedrl.federation.strategies import (
    OptimizerState,
    ReleasedMean,
    initial_state,
    released_mean,
    server_step,
)
from privfedrl.parties import Identity, Outgoing, Registry
from privfedrl.plan import Plan
from privfedrl.primitives.random import Clock, Entropy, system_clock, system_entropy
from privfedrl.privacy import Ledger

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FederationState:
    """Everything a coordinator needs to open the next round; a value that can be saved.

    Attributes:
        task_id: random identity of the run, 32 bytes.
        round: completed rounds = index of the next one.
        parameters: float64 [d], the released policy.
        optimizer: of the server.
        transcript: digest of the last round's transcript, 32 bytes; zeros before the first.
        clip: the current clip norm, where it adapts; None = the plan's.
    """

    task_id: bytes
    round: int
    parameters: Vector
    optimizer: OptimizerState
    transcript: bytes
    clip: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoundResult:
    """What a completed round released, and to whom it is owed.

    Attributes:
        round: its index, from 0.
        attempt: how many tries of this round came before.
        parameters: float64 [d], the new policy.
        survivors: names of the agents in the sum; public.
        released: the decoded, noised mean.
        transcript: the signed record, bytes; without protection one that says so.
    """

    round: int
    attempt: int
    parameters: Vector
    survivors: tuple[str, ...]
    released: ReleasedMean
    transcript: bytes


def initial_federation_state(task_id: bytes, parameters: Vector) -> FederationState:
    """State before the first round."""
    return FederationState(
        task_id=task_id,
        round=0,
        parameters=parameters,
        optimizer=initial_state(parameters.shape[0]),
        transcript=bytes(32),
    )


class Coordinator:
    """The four verbs of a round: open_round, receive, close_phase, result.

    It owns no socket, thread or clock: the caller decides when a phase is over.

    Args:
        plan: the coordinator's copy; agents with another one refuse the round.
        identity: signing key, role "coordinator" in ``registry``.
        registry: the agents that may take part.
        ledger: charged before agents are asked for anything.
        state: where to go on from; a fresh run starts with :func:`initial_federation_state`.
        entropy: source of the public rotation seeds.
        clock: seconds since 1970-01-01 UTC; read once when a round is opened.
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
    ) -> None:
        self._plan = plan
        self._setup = round_setup(plan)
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
        self._opening: _Opening | None = None
        self._result: RoundResult | None = None

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
        return 0 if self._opening is None else self._opening.attempt

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
            vector = self._noised(total.vector)
            transcript = self._backend.sign(
                total.record,
                identity=self._identity,
                ledger_head=bytes.fromhex(self._ledger.head),
            )
            self._state, self._result = advance(
                self._setup,
                self._state,
                opening,
                vector,
                total.survivors,
                transcript=transcript.to_bytes(),
                transcript_digest=transcript.digest,
            )
        return self._result

    def _noised(self, vector: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
        """The sum with central noise, where the coordinator is the one to add it."""
        if self._plan.protection.homomorphic:
            return vector
        return with_central_noise(self._setup, vector, self._entropy)

    def _running(self) -> RoundServer:
        if self._server is None:
            raise LocalProtocolError("no round was opened; call open_round first")
        return self._server

    def _with_policy(self, invitation: Outgoing) -> Outgoing:
        if self._registry.role_of(invitation.recipient) != "agent":
            return invitation
        data = pack_broadcast(invitation.data, published(self._state))
        return Outgoing(recipient=invitation.recipient, data=data)

    def _settle(self, opening: _Opening, survivors: int) -> bytes:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opening:
    reservation: int
    attempt: int
    seed: bytes


def next_attempt(setup: RoundSetup, ledger: Ledger, state: FederationState) -> int:
    """How often the state's round has been reserved so far."""
    return len(ledger.reservations(plan_digest=setup.plan.digest, prefix=_prefix(state)))


def _prefix(state: FederationState) -> str:
    return f"{state.task_id.hex()}/{state.round}/"


def reserve_round(
    setup: RoundSetup, ledger: Ledger, state: FederationState, entropy: Entropy
) -> _Opening:
    """Charge the costliest outcome of the next attempt, durably, before anybody is asked."""
    attempt = next_attempt(setup, ledger, state)
    release_id = f"{_prefix(state)}{attempt}"
    reservation = ledger.reserve(setup.charge(release_id, group=release_id))
    return _Opening(reservation=reservation, attempt=attempt, seed=entropy(32))


def settle_round(setup: RoundSetup, ledger: Ledger, opening: _Opening, survivors: int) -> None:
    """Replace the reserved worst case by the shares of the survivors less the colluders."""
    ledger.settle(opening.reservation, setup.settled(survivors), note=f"survivors={survivors}")


def advance(
    setup: RoundSetup,
    state: FederationState,
    opening: _Opening,
    ring_sum: NDArray[np.unsignedinteger],
    survivors: tuple[str, ...],
    *,
    transcript: bytes,
    transcript_digest: bytes,
) -> tuple[FederationState, RoundResult]:
    """Post-process an opened sum into the next state. Pure."""
    released = released_mean(
        setup, ring_sum, survivors=len(survivors), seed=opening.seed, clip=state.clip
    )
    parameters, optimizer = server_step(
        setup.plan.federation,
        state.parameters,
        state.optimizer,
        released.direction,
        noise_variance=released.noise_variance,
    )
    following = FederationState(
        task_id=state.task_id,
        round=state.round + 1,
        parameters=parameters,
        optimizer=optimizer,
        transcript=transcript_digest,
        clip=released.next_clip,
    )
    result = RoundResult(
        round=state.round,
        attempt=opening.attempt,
        parameters=parameters,
        survivors=survivors,
        released=released,
        transcript=transcript,
    )
    return following, result


def _with_parameters(state: FederationState, parameters: Vector) -> FederationState:
    if parameters.shape != state.parameters.shape or not np.isfinite(parameters).all():
        raise ConfigurationError(
            f"parameters must be finite with shape {state.parameters.shape}, got {parameters.shape}"
        )
    return replace(state, parameters=parameters.astype(np.float64))


def with_clip(setup: RoundSetup, state: FederationState) -> FederationState:
    """A fresh run under an adaptive clip starts with the plan's."""
    adapts = setup.plan.privacy.adaptive_clip is not None
    if adapts and state.clip is None:
        return replace(state, clip=setup.plan.privacy.clip_norm)
    if not adapts and state.clip is not None:
        raise ConfigurationError(
            f"clip must be None, the plan's clip does not adapt, got {state.clip!r}"
        )
    return state


def published(state: FederationState) -> Vector:
    """What agents are told and sign for: float64 [d], and the current clip where it adapts."""
    return state.parameters if state.clip is None else np.append(state.parameters, state.clip)
