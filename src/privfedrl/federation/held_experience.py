"""The trajectories that an agent keeps for further rounds, and the target network it heard of.

Guarantee: a batch is handed out at most K times, K the plan's uses of a trajectory, and with the
parameters that collected it; what is handed out has the plan's public shape. Everything kept is
private to the agent, but for published parameters. Each use is a release that the ledger charges
(audits/proofs/parallel_composition.md).

Notation: K uses, r the round, W the replay window of DQN (W = K there, else 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import EnvironmentFault
from privfedrl.federation.setup import RoundSetup
from privfedrl.privacy import Unit
from privfedrl.rollout import TrajectoryBatch

__all__ = ["HeldExperience", "TakenExperience"]

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class TakenExperience:
    """What one round trains on.

    Attributes:
        batches: W of them, oldest first; of those that never were, absent ones.
        identities: of the batches that are there; each is spent once more by this round.
        behaviour: published parameters that collected the only batch, or None where they are those
            of this round, or where there are several.
        target: published parameters of DQN's target network, or None for those of this round.
        fault: why there is no fresh experience where there should be; an absent batch is in its
            place, so that nothing else of this or a later round depends on the fault.
    """

    batches: tuple[TrajectoryBatch, ...]
    identities: tuple[bytes, ...]
    behaviour: Vector | None
    target: Vector | None
    fault: EnvironmentFault | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Held:
    batch: TrajectoryBatch
    behaviour: Vector
    uses: int


class HeldExperience:
    """One agent's trajectories that may be used again. Not durable: after a restart it is empty."""

    def __init__(self, setup: RoundSetup) -> None:
        self._plan, self._policy = setup.plan, setup.policy
        self._most = setup.plan.releases_per_unit
        if setup.plan.unit is not Unit.TRAJECTORY:
            self._most = setup.plan.uses_per_trajectory
        self._held: tuple[_Held, ...] = ()
        self._target: tuple[int, Vector] | None = None

    def __repr__(self) -> str:
        return f"HeldExperience(uses={self._most})"

    def needs_fresh(self, round_index: int) -> bool:
        """Whether :meth:`take` will collect in that round."""
        return self._plan.collects(round_index) or not self._usable()

    def take(
        self, parameters: Vector, round_index: int, collect: Callable[[Vector], TrajectoryBatch]
    ) -> TakenExperience:
        """The round's experience; collects if there is none that may be used again."""
        target = self._heard(parameters, round_index)
        usable, fault = self._usable(), None
        if self.needs_fresh(round_index):
            batch, fault = self._collected(parameters, collect)
            usable = (*usable, _Held(batch=batch, behaviour=parameters.copy(), uses=0))
        window = self._plan.training.replay_rounds
        chosen = usable[-window:]
        self._held = tuple(replace(held, uses=held.uses + 1) for held in chosen)
        missing = (self._absent() for _ in range(window - len(chosen)))
        single = window == 1 and not np.array_equal(chosen[-1].behaviour, parameters)
        return TakenExperience(
            batches=(*missing, *(held.batch for held in chosen)),
            identities=tuple(held.batch.batch_id for held in chosen),
            behaviour=chosen[-1].behaviour if single else None,
            target=target,
            fault=fault,
        )

    def _usable(self) -> tuple[_Held, ...]:
        return tuple(held for held in self._held if held.uses < self._most)

    def _collected(
        self, parameters: Vector, collect: Callable[[Vector], TrajectoryBatch]
    ) -> tuple[TrajectoryBatch, EnvironmentFault | None]:
        try:
            return collect(parameters), None
        except EnvironmentFault as fault:
            return self._absent(), fault

    def _absent(self) -> TrajectoryBatch:
        """A batch of the plan's shape in which nothing happened; an identity of its own."""
        fleet, policy = self._plan.fleet, self._policy
        shape = (fleet.trajectories, fleet.horizon)
        discrete = policy.action != "gaussian"
        return TrajectoryBatch(
            observations=np.zeros((*shape, policy.observation_size), dtype=np.float32),
            actions=np.zeros(shape, dtype=np.int64)
            if discrete
            else np.zeros((*shape, policy.action_size), dtype=np.float32),
            rewards=np.zeros(shape, dtype=np.float32),
            mask=np.zeros(shape, dtype=np.bool_),
            terminated=np.zeros(shape[0], dtype=np.bool_),
            truncated=np.ones(shape[0], dtype=np.bool_),
        )

    def _heard(self, parameters: Vector, round_index: int) -> Vector | None:
        """The policy of the last round that the target network is copied in, as far as heard."""
        if self._plan.training.algorithm != "dqn":
            return None
        turn = round_index // self._plan.training.target_rounds
        if self._target is None or self._target[0] != turn:
            self._target = (turn, parameters.copy())
        return self._target[1]
