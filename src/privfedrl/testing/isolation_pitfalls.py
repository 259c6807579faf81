"""The pitfalls that the leak linter must find, and their sound counterparts, as one table.

Guarantee: every row is a small trainer from our own pipeline in which exactly that leak is present;
``channels`` is everything through which it shows, so a linter that looks at less misses it. Rows
without channels are sound and must be found clean.
Source: the table of leaks in docs/leak-linter.md, rows 1 to 20.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from privfedrl.testing import isolation_defects_policy as policy
from privfedrl.testing import isolation_defects_round as around
from privfedrl.testing import isolation_defects_value as value
from privfedrl.testing import isolation_honest as honest
from privfedrl.testing.isolation_values import Channel

__all__ = ["PITFALLS", "Pitfall"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pitfall:
    """One row.

    Attributes:
        number: row of the table; 0 for controls that are nobody's pitfall.
        where: algorithm. leak: what it does. make: a fresh trainer.
        channels: through what it is noticed; empty for a sound trainer.
    """

    number: int
    where: str
    leak: str
    make: Callable[[], honest.Honest] = field(repr=False)
    channels: frozenset[Channel] = frozenset()

    @property
    def sound(self) -> bool:
        """Nothing may be found."""
        return not self.channels


def _row(
    number: int,
    where: str,
    leak: str,
    make: Callable[[], honest.Honest],
    *channels: Channel,
) -> Pitfall:
    return Pitfall(number=number, where=where, leak=leak, make=make, channels=frozenset(channels))


_SUM, _LATER, _STATE = Channel.SENSITIVITY, Channel.LATER_ROUND, Channel.STATE
_CALLS = Channel.CALLS

PITFALLS = (
    _row(0, "REINFORCE", "none: one clipped row per trajectory", honest.Honest),
    _row(0, "PPO", "none: K epochs, K releases, K charges", honest.Epochs),
    _row(0, "DQN", "none: clipped per trajectory, public target", honest.QLearning),
    _row(1, "REINFORCE", "batch-mean baseline", policy.BatchMeanBaseline, _SUM),
    _row(1, "REINFORCE", "return standardisation", policy.ReturnStandardisation, _SUM),
    _row(2, "REINFORCE", "division by the actual count", policy.DividesByCount, _SUM),
    _row(3, "A2C/PPO", "batch advantage normalisation", policy.BatchAdvantages, _SUM),
    _row(4, "A2C/PPO", "GAE with an un-noised critic", policy.PrivateCritic, _LATER, _STATE),
    _row(5, "PPO", "KL early stop", policy.KlEarlyStop, _CALLS),
    _row(6, "PPO", "K epochs charged as one", policy.EpochsChargedAsOne, Channel.COMPOSITION),
    _row(6, "PPO", "K clipped epochs in one sum", policy.EpochsInOneSum, _SUM),
    _row(7, "PPO/A2C", "fixed step budget", policy.StepBudget, _SUM, _LATER, _STATE),
    _row(
        8,
        "all",
        "running normaliser of observations",
        policy.RunningNormaliser,
        _SUM,
        _LATER,
        _STATE,
    ),
    _row(9, "all", "returns and norms in the log", around.LogsReturns, Channel.LOG),
    _row(10, "all", "learning rate on plateau", around.PlateauSchedule, _LATER, _STATE),
    _row(10, "all", "best checkpoint", around.BestCheckpoint, _STATE),
    _row(11, "all", "clip from raw quantiles", policy.RawQuantileClip, _SUM),
    _row(12, "all", "batch normalisation layer", policy.BatchNorm, _SUM, _STATE),
    _row(13, "DQN", "clipping per transition", value.TransitionClip, _SUM),
    _row(14, "DQN", "prioritised replay", value.PrioritisedReplay, _SUM),
    _row(15, "DQN", "buffer reuse charged as fresh", value.ReplayBuffer, _LATER, _STATE),
    _row(16, "DQN", "none: target network of noised policy", value.TargetOfHeard),
    _row(16, "DQN", "target of own gradients", value.TargetOfOwnGradients, _LATER, _STATE),
    _row(17, "all", "none: Adam moments of noised gradients", value.AdamOfHeard),
    _row(17, "all", "Adam moments of own gradients", value.AdamOfOwnGradients, _LATER, _STATE),
    _row(18, "federated", "weight by episode count", around.EpisodeWeights, _SUM, Channel.FIELD),
    _row(18, "federated", "data-driven participation", around.TakesPartWhenGood, _SUM),
    _row(19, "federated", "empty round skipped", around.SkipsWhenEmpty, _CALLS),
    _row(19, "federated", "empty round raises", around.RaisesWhenEmpty, Channel.EXCEPTION, _CALLS),
    _row(20, "all", "noise from the training generator", around.NoiseFromTraining, Channel.NOISE),
    _row(20, "all", "noise generator in the checkpoint", around.CheckpointedNoise, Channel.NOISE),
)
