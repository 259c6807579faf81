"""What a round does with an opened sum: charge, noise, signed record, memory, next state.

Guarantee: a round's worst case is durably reserved before anybody is asked, and where noise is
correlated over rounds no mixture leaves before the memory that it must not be made from twice is
durable. The coordinator and a simulation without protection share every step.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError, LedgerIntegrity
from privfedrl.federation.broadcast import model_digest
from privfedrl.federation.central_noise import mixed_release, with_central_noise
from privfedrl.federation.setup import RoundSetup
from privfedrl.federation.strategies import (
    OptimizerState,
    ReleasedMean,
    initial_state,
    released_mean,
    server_step,
)
from privfedrl.federation.sum_memory import (
    AdderMemory,
    MixedRelease,
    SumMemory,
    pack_memory,
    unpack_memory,
)
from privfedrl.primitives.random import Entropy
from privfedrl.privacy import Ledger
from privfedrl.privacy.correlated import SumHistory

__all__ = [
    "FederationState",
    "OpenRound",
    "RoundResult",
    "SignedRecord",
    "advance",
    "initial_federation_state",
    "next_attempt",
    "published",
    "recovered",
    "release_round",
    "reserve_round",
    "settle_round",
    "with_clip",
]

Vector = NDArray[np.float64]
RingVector = NDArray[np.unsignedinteger]


class SignedRecord(Protocol):
    """A transcript of either backend."""

    @property
    def digest(self) -> bytes:
        """32 bytes that the next round is signed over."""

    def to_bytes(self) -> bytes:
        """The whole record."""


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
        past: decoded sums of the last rounds, newest first, float64 [dimension] each; public. As
            many as correlated noise needs for decoding the next one, else none.
        average: mean of the policies since averaging began; None before, or without it.
    """

    task_id: bytes
    round: int
    parameters: Vector
    optimizer: OptimizerState
    transcript: bytes
    clip: float | None = None
    past: tuple[Vector, ...] = ()
    average: Vector | None = None

    @property
    def final(self) -> Vector:
        """The policy that a run which ends here ends with: post-processing of released ones."""
        return self.parameters if self.average is None else self.average


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoundResult:
    """What a completed round released, and to whom it is owed.

    Attributes:
        round: its index, from 0.
        attempt: how many tries of this round came before.
        parameters: float64 [d], the new policy.
        survivors: names of the agents in the sum; public.
        released: the decoded, noised mean, with the variance of the noise in it.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRound:
    """What a reserved attempt is known by; ``seed`` is public, 32 bytes."""

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
) -> OpenRound:
    """Charge the costliest outcome of the next attempt, durably, before anybody is asked."""
    attempt = next_attempt(setup, ledger, state)
    release_id = f"{_prefix(state)}{attempt}"
    reservation = ledger.reserve(setup.charge(release_id, group=release_id))
    seed = entropy(32) if setup.correlated is None else _run_seed(state)
    return OpenRound(reservation=reservation, attempt=attempt, seed=seed)


def _run_seed(state: FederationState) -> bytes:
    """One rotation for the whole run, so that noise of different rounds cancels; public."""
    return hashlib.sha256(b"pfrl-run-rotation\x00" + state.task_id).digest()


def settle_round(setup: RoundSetup, ledger: Ledger, opening: OpenRound, survivors: int) -> None:
    """Replace the reserved worst case by the shares of the survivors less the colluders."""
    ledger.settle(opening.reservation, setup.settled(survivors), note=f"survivors={survivors}")


def release_round(
    setup: RoundSetup,
    state: FederationState,
    opening: OpenRound,
    ring_sum: RingVector,
    survivors: tuple[str, ...],
    *,
    entropy: Entropy,
    sign: Callable[[RingVector], SignedRecord],
    ledger: Ledger,
    memory: SumMemory | None = None,
) -> tuple[FederationState, RoundResult]:
    """From an opened sum to the next state: central noise, signed record, memory, policy.

    Args:
        ring_sum: uint32 or uint64 [words]; under encryption noised already.
        sign: the record of what is released, given that.
        memory: of past sums, where the plan has correlated noise. It is durable when this returns;
            where it shows that the round was released before (another process, or an error after
            the write), that release is the result and nothing is noised again.
    """
    if memory is None or setup.correlated is None:
        central = not setup.plan.protection.homomorphic
        vector = with_central_noise(setup, ring_sum, entropy) if central else ring_sum
        signed = sign(vector)
        return advance(
            setup,
            state,
            opening,
            vector,
            survivors,
            transcript=signed.to_bytes(),
            transcript_digest=signed.digest,
        )
    held = _recalled(setup, memory, ledger, state)
    if held.last is not None and held.last.round == state.round:
        return _replayed(setup, state, held.last)
    vector, history = mixed_release(
        setup,
        held.history,
        ring_sum,
        release_id=f"{_prefix(state)}{opening.attempt}",
        entropy=entropy,
    )
    signed = sign(vector)
    last = MixedRelease(
        round=state.round,
        attempt=opening.attempt,
        model_digest=model_digest(published(state)),
        survivors=survivors,
        vector=vector,
        transcript=signed.to_bytes(),
        transcript_digest=signed.digest,
    )
    following = AdderMemory(rounds=held.rounds + 1, history=history, last=last)
    memory.save(pack_memory(setup, state.task_id, following))
    return _replayed(setup, state, last)


def recovered(
    setup: RoundSetup, memory: SumMemory | None, ledger: Ledger, state: FederationState
) -> tuple[FederationState, RoundResult] | None:
    """The round that was released from ``memory`` after ``state`` was saved; None if there is none.

    Raises:
        LedgerIntegrity: memory, state and ledger are not of one moment, see ``_recalled``.
        StorageError: the memory is damaged.
        ConfigurationError: the round was opened with another policy than the state's, or the state
            lacks decoded sums.
    """
    if memory is None or setup.correlated is None:
        return None
    needed = min(state.round, setup.correlated.bands - 1)
    if [x.shape for x in state.past] != [(setup.dimension,)] * needed:
        raise ConfigurationError(
            f"state.past must hold the {needed} last decoded sums of {setup.dimension} coordinates "
            f"at round {state.round}, got {[x.shape for x in state.past]}"
        )
    last = _recalled(setup, memory, ledger, state).last
    return None if last is None or last.round < state.round else _replayed(setup, state, last)


def _recalled(
    setup: RoundSetup, memory: SumMemory, ledger: Ledger, state: FederationState
) -> AdderMemory:
    """The memory, which must be of the state's round, or one release ahead of it.

    An older copy would be mixed a second time. It shows by the state's round, and by a reservation
    of a round that can only be opened after a release which the memory does not have. Two things do
    not show (ADR 24): memory and state put back together by the last release look like a crash
    before it, and its sums would be mixed a second time; an older copy of everything, ledger
    included, is refused by the agents only, for their journals have spent the (round, attempt).
    """
    data = memory.load()
    held = AdderMemory(history=SumHistory())
    if data is not None:
        held = unpack_memory(setup, state.task_id, data)
    if held.rounds not in (state.round, state.round + 1):
        raise LedgerIntegrity(
            f"the memory of past sums must hold {state.round} rounds, or one more, as the state "
            f"says; it holds {held.rounds}"
        )
    task = f"{state.task_id.hex()}/"
    newest = max(
        (
            int(one.charge.release_id.removeprefix(task).split("/")[0])
            for one in ledger.reservations(plan_digest=setup.plan.digest, prefix=task)
        ),
        default=0,
    )
    if newest > held.rounds:
        raise LedgerIntegrity(
            f"the memory of past sums holds {held.rounds} rounds, but round {newest} is in the "
            "ledger: the memory was lost or replaced by an older copy"
        )
    return held


def _replayed(
    setup: RoundSetup, state: FederationState, last: MixedRelease
) -> tuple[FederationState, RoundResult]:
    """The state after a release that is in the memory: post-processing, as often as one likes."""
    if last.model_digest != model_digest(published(state)):
        raise ConfigurationError(
            f"state.parameters must be those that round {last.round} was opened with: its noised "
            "sum may have left and counts as a round"
        )
    opening = OpenRound(reservation=0, attempt=last.attempt, seed=_run_seed(state))
    return advance(
        setup,
        state,
        opening,
        last.vector,
        last.survivors,
        transcript=last.transcript,
        transcript_digest=last.transcript_digest,
    )


def advance(
    setup: RoundSetup,
    state: FederationState,
    opening: OpenRound,
    ring_sum: RingVector,
    survivors: tuple[str, ...],
    *,
    transcript: bytes,
    transcript_digest: bytes,
) -> tuple[FederationState, RoundResult]:
    """Post-process an opened sum into the next state. Pure."""
    released = released_mean(
        setup,
        ring_sum,
        survivors=len(survivors),
        seed=opening.seed,
        clip=state.clip,
        round_index=state.round,
        past=state.past,
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
        past=_decoded(setup, released.total, state.past),
        average=_averaged(setup, state, parameters),
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


def _averaged(setup: RoundSetup, state: FederationState, newest: Vector) -> Vector | None:
    """The running mean over the plan's last rounds, in the order that they came."""
    federation = setup.plan.federation
    # a share of 0.7 of ten rounds is 7 of them, whatever 10 * 0.7 is in floating point
    first = federation.rounds - math.floor(federation.averaging * federation.rounds + 1e-9)
    count = state.round - first + 1
    if count < 1:
        return None
    mean = newest if state.average is None else state.average
    return mean + (newest - mean) / count


def _decoded(setup: RoundSetup, newest: Vector, past: tuple[Vector, ...]) -> tuple[Vector, ...]:
    """What decoding the next mixture needs; nothing where rounds do not mix."""
    bands = 1 if setup.correlated is None else setup.correlated.bands
    return (newest, *past)[: bands - 1]


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
