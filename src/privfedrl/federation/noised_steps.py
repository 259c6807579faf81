"""Local DP-SGD on integers: every local step of a silo carries the whole noise.

Guarantee: a trajectory enters one step only, as a clipped row that is rounded to integers of a
checked norm; a whole Skellam share is added before anything is computed from the sum. What the
agent sends afterwards is a function of noised steps, so it needs no further noise, whoever colludes
and however many agents drop out. Proof: audits/proofs/local_steps.md.

Notation: C the clip norm, B trajectories of a step, eta the local step size.

    theta <- theta + eta / B * (noised integer sum of the clipped rows, in real units)
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from privfedrl.encoding import FixedPoint
from privfedrl.errors import ConfigurationError, EnvironmentFault, PrivacyError
from privfedrl.federation.setup import RoundSetup
from privfedrl.primitives.random import Entropy
from privfedrl.privacy import Mechanism
from privfedrl.rollout import TrajectoryBatch
from privfedrl.training import LocalUpdate, clip_rows

__all__ = ["NoisedDelta", "NoisedSteps", "as_faults"]

if TYPE_CHECKING:
    from privfedrl.training import LocalTrainer

Vector = NDArray[np.float64]
_LABEL = b"pfrl-local-step/1\x00"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NoisedDelta:
    """One row, the batches whose trajectories are in it, one per step, and the first fault if any.

    Each batch must be spent durably before the row leaves: a trajectory is in one step only.
    """

    update: LocalUpdate
    batch_ids: tuple[bytes, ...]
    fault: EnvironmentFault | None


class NoisedSteps:
    """The local steps of one agent in one round.

    Args:
        setup: of a plan with mechanism "local-skellam".
        rotation_seed: 32 public bytes of the round; each step derives its own.
        entropy: for rounding and noise.
    """

    def __init__(self, setup: RoundSetup, *, rotation_seed: bytes, entropy: Entropy) -> None:
        self._setup, self._seed, self._entropy = setup, rotation_seed, entropy
        self._codec, self._mechanism = _parts(setup)

    def run(
        self,
        trainer: LocalTrainer,
        parameters: Vector,
        collect: Callable[[Vector], TrajectoryBatch],
    ) -> NoisedDelta:
        """The model delta after the plan's local steps.

        A step whose experience failed has zero rows and its noise all the same.
        """
        plan = self._setup.plan
        start = parameters.astype(np.float64)
        theta, used, first_fault = start, [], None
        for step in range(plan.training.local_steps):
            update, fault = self._step(trainer, theta, collect)
            first_fault = first_fault or fault
            used.append(update.batch_id)
            direction = self._noised_sum(update, step) / plan.units_per_agent
            theta = theta + plan.training.local_learning_rate * direction
        rows, dropped = clip_rows((theta - start)[None, :], self._setup.codec.clip_norm)
        delta = LocalUpdate(
            rows=rows,
            clip_norm=self._setup.codec.clip_norm,
            unit=plan.unit,
            nonfinite_units=dropped,
            batch_id=used[-1],
        )
        return NoisedDelta(update=delta, batch_ids=tuple(used), fault=first_fault)

    def _step(
        self, trainer: LocalTrainer, theta: Vector, collect: Callable[[Vector], TrajectoryBatch]
    ) -> tuple[LocalUpdate, EnvironmentFault | None]:
        try:
            with as_faults():
                return trainer.local_update(theta, collect(theta.copy())), None
        except EnvironmentFault as fault:
            zeros = LocalUpdate.zeros(
                num_units=self._setup.plan.units_per_agent,
                dimension=self._setup.dimension,
                clip_norm=self._setup.total_clip,
                unit=self._setup.plan.unit,
            )
            return zeros, fault

    def _noised_sum(self, update: LocalUpdate, step: int) -> Vector:
        seed = hashlib.sha256(_LABEL + self._seed + step.to_bytes(8, "big")).digest()
        integers = self._codec.encode_units(update.rows, rotation_seed=seed, entropy=self._entropy)
        noised = integers + self._mechanism.sample_share(self._entropy)
        return self._codec.decode_sum(self._codec.to_ring(noised), rotation_seed=seed)


def _parts(setup: RoundSetup) -> tuple[FixedPoint, Mechanism]:
    if setup.step_codec is None or setup.mechanism is None:
        raise ConfigurationError(
            "privacy.mechanism must be 'local-skellam' for noised local steps, got "
            f"{setup.plan.privacy.mechanism!r}"
        )
    return setup.step_codec, setup.mechanism


@contextlib.contextmanager
def as_faults() -> Iterator[None]:
    """Any error that data could cause becomes a fault: escaping, it would show that it was caused.

    A PrivacyError is about the caller (the same batch twice), not about what is in the batch. What
    overflows or underflows in one row must not raise, whatever numpy was told to do about it by the
    caller: an error would take all rows with it.
    """
    try:
        with np.errstate(all="ignore"):
            yield
    except (EnvironmentFault, PrivacyError):
        raise
    except Exception as error:
        raise EnvironmentFault(f"the experience cannot be used: {type(error).__name__}") from error
