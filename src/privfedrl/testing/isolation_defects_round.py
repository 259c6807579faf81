"""Pitfalls around the step (spec table 1.8): what an agent says, decides, skips and remembers.

Guarantee: every class differs from its sound parent in one part, and a docstring says which.
"""

from __future__ import annotations

import logging
import secrets

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import EnvironmentFault
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.testing.isolation_honest import Honest, Rows, finite_rewards
from privfedrl.training import LocalUpdate
from privfedrl.training.local_update import row_norms

__all__ = [
    "BestCheckpoint",
    "CheckpointedNoise",
    "EpisodeWeights",
    "LogsReturns",
    "NoiseFromTraining",
    "PlateauSchedule",
    "RaisesWhenEmpty",
    "SkipsWhenEmpty",
    "TakesPartWhenGood",
]

Float = NDArray[np.float64]
IntArray = NDArray[np.int64]


def _mean_return(batch: TrajectoryBatch) -> float:
    present = batch.mask.any(axis=1)
    returns = finite_rewards(batch).sum(axis=1)
    return float(returns[present].mean()) if present.any() else 0.0


class LogsReturns(Honest):
    """Row 9: mean return and largest gradient norm in the log."""

    def released(self, parameters: Float, batch: TrajectoryBatch) -> LocalUpdate:
        """As its parent, and says how it went."""
        update = self.update(self.clipped(parameters, batch), batch)
        largest = row_norms(update.rows).max()
        logging.getLogger("trainer").info("return %.6f norm %.6f", _mean_return(batch), largest)
        return update


class PlateauSchedule(Honest):
    """Row 10: the step is halved in the round after one that was no better than the best."""

    def __init__(self) -> None:
        super().__init__()
        self._best, self._scale = 0.0, 1.0

    def released(self, parameters: Float, batch: TrajectoryBatch) -> LocalUpdate:
        """Rows at the scale that earlier returns led to."""
        update = self.update(self._scale * self.clipped(parameters, batch), batch)
        mean = _mean_return(batch)
        if mean <= self._best:
            self._scale /= 2.0
        self._best = max(self._best, mean)
        return update


class BestCheckpoint(Honest):
    """Row 10: which policy is offered as the best so far depends on returns without noise."""

    def __init__(self) -> None:
        super().__init__()
        self._best, self.best_policy = 0.0, np.zeros(self.dimension)

    def released(self, parameters: Float, batch: TrajectoryBatch) -> LocalUpdate:
        """As its parent, and keeps the policy if it did better."""
        mean = _mean_return(batch)
        if mean > self._best:
            self._best, self.best_policy = mean, parameters
        return self.update(self.clipped(parameters, batch), batch)


class EpisodeWeights(Honest):
    """Row 18: the agent weighs in with the number of its episodes, and says so."""

    def released(self, parameters: Float, batch: TrajectoryBatch) -> Rows:
        """Rows times the share of episodes that there were."""
        weight = float(batch.mask.any(axis=1).mean())
        rows = weight * self.clipped(parameters, batch)
        return Rows(rows=rows, clip_norm=self.clip_norm, public=(("weight", weight),))


class TakesPartWhenGood(Honest):
    """Row 18: the agent takes part only if its mean return is positive."""

    def released(self, parameters: Float, batch: TrajectoryBatch) -> LocalUpdate:
        """Rows, or zeros."""
        rows = self.clipped(parameters, batch)
        return self.update(rows if _mean_return(batch) > 0.0 else 0.0 * rows, batch)


class SkipsWhenEmpty(Honest):
    """Row 19: a round without experience is left out."""

    def released(
        self, parameters: Float, batch: TrajectoryBatch
    ) -> LocalUpdate | tuple[LocalUpdate | Rows, ...]:
        """An update, or nothing at all."""
        if not batch.mask.any():
            return ()
        return self.update(self.clipped(parameters, batch), batch)


class RaisesWhenEmpty(Honest):
    """Row 19: too few episodes are an error, and everybody sees the agent fail."""

    def released(self, parameters: Float, batch: TrajectoryBatch) -> LocalUpdate:
        """An update, or an exception."""
        if batch.mask.any(axis=1).sum() < 2:
            raise EnvironmentFault("too few episodes")
        return self.update(self.clipped(parameters, batch), batch)


class NoiseFromTraining(Honest):
    """Row 20: noise from the generator that also trains, whose seed is in the configuration."""

    def __init__(self) -> None:
        super().__init__()
        self._rng = self.generator()

    def generator(self) -> np.random.Generator:
        """Seeded by the configuration."""
        return np.random.default_rng(12345)

    def noise_share(self, length: int) -> IntArray:
        """A difference of Poissons, the right law from the wrong source."""
        up, down = self._rng.poisson(512, length), self._rng.poisson(512, length)
        return np.asarray(up - down, dtype=np.int64)


class CheckpointedNoise(NoiseFromTraining):
    """Row 20: a secret seed, but the generator is saved and restored with the trainer."""

    def generator(self) -> np.random.Generator:
        """Seeded by the system, once."""
        return np.random.default_rng(secrets.randbits(128))
