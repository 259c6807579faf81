"""Deep Q-learning inside one agent (Mnih et al. 2015; double: van Hasselt et al. 2016).

Guarantee: none by itself, as for ``ppo_learner``: replay uses every transition an unbounded number
of times, so only the clipped difference of the parameters may leave, under the agent's unit.
Data never raise: a trajectory that is not finite never enters the replay memory, and a minibatch
whose gradient is not finite is skipped.

Replay is uniform. There is no prioritised option: how often a transition is drawn would depend on
the errors of all others, which no bound on reuse survives, so a plan that later moves to a unit
smaller than the agent would have to be redone.

Notation: n transitions (o, a, r, o'), end True where nothing follows;
y = r + gamma (1 - end) Q'(o', argmax_a Q(o', a)), with Q' the target network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.training.dense_network import Adam, DenseNetwork, clip_norm_
from privfedrl.training.learner_state import LearnerState
from privfedrl.training.usable_rows import scheduled, usable_rows

__all__ = ["DqnLearner", "DqnSettings", "ReplayMemory", "Transitions", "transitions_of"]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

# where Huber's loss turns from square to linear: rewards were clipped to 1 in the original
_HUBER = np.float32(1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DqnSettings:
    """How an agent improves its Q values in one round.

    Attributes:
        gamma: discount in [0, 1].
        learning_rate: of Adam, > 0.
        batch_size: transitions per optimiser step, >= 1.
        updates_per_step: optimiser steps per new transition, > 0.
        replay_capacity: transitions kept; the oldest go first.
        target_interval: optimiser steps between two copies into the target network, >= 1.
        reset_optimiser: forget Adam's moments before every batch (see ``PpoSettings``).
        double: choose the next action by the network and value it by the target network.
        value_scale: the network predicts Q / value_scale; greedy actions do not depend on it.
        max_grad_norm: L2 norm to which the gradient of a minibatch is scaled down.
    """

    gamma: float
    learning_rate: float
    batch_size: int
    updates_per_step: float
    replay_capacity: int
    target_interval: int
    reset_optimiser: bool
    double: bool = True
    value_scale: float = 1.0
    max_grad_norm: float = 10.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0:  # False for NaN too
            raise ConfigurationError(f"gamma must be in [0, 1], got {self.gamma!r}")
        for name in ("batch_size", "replay_capacity", "target_interval"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigurationError(f"{name} must be an integer >= 1, got {value!r}")
        for name in ("learning_rate", "updates_per_step", "value_scale", "max_grad_norm"):
            value = getattr(self, name)
            if not 0.0 < value < math.inf:
                raise ConfigurationError(f"{name} must be finite and > 0, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Transitions:
    """n steps with what followed them."""

    observations: Float32  # [n, obs]
    actions: NDArray[np.int64]  # [n]
    rewards: Float32  # [n]
    following: Float32  # [n, obs], not read where the end is True
    ends: Bool  # [n]


def transitions_of(batch: TrajectoryBatch, rows: Bool) -> Transitions:
    """The transitions of the given rows [B], trajectory by trajectory.

    The last step of a trajectory that was cut is left out: what followed it was not recorded.
    """
    mask = batch.mask & rows[:, None]
    last = mask.copy()
    last[:, :-1] &= ~mask[:, 1:]
    known = mask & (~last | batch.terminated[:, None])
    following = np.zeros_like(batch.observations)
    following[:, :-1] = batch.observations[:, 1:]
    return Transitions(
        observations=batch.observations[known],
        actions=batch.actions[known].astype(np.int64),
        rewards=batch.rewards[known],
        following=following[known],
        ends=last[known],
    )


class ReplayMemory:
    """A ring of the newest transitions, drawn from uniformly and with replacement."""

    def __init__(self, capacity: int, observation_size: int) -> None:
        self._stored = Transitions(
            observations=np.zeros((capacity, observation_size), np.float32),
            actions=np.zeros(capacity, np.int64),
            rewards=np.zeros(capacity, np.float32),
            following=np.zeros((capacity, observation_size), np.float32),
            ends=np.zeros(capacity, np.bool_),
        )
        self._capacity = capacity
        self._written = 0

    def __len__(self) -> int:
        return min(self._written, self._capacity)

    def add(self, new: Transitions) -> None:
        """Append; of more transitions than fit, the last ones stay."""
        count = new.actions.shape[0]
        kept = slice(max(0, count - self._capacity), count)
        places = np.arange(self._written + kept.start, self._written + count) % self._capacity
        for name in Transitions.__slots__:
            getattr(self._stored, name)[places] = getattr(new, name)[kept]
        self._written += count

    def draw(self, count: int, rng: np.random.Generator) -> Transitions:
        """``count`` transitions, each of those in memory with the same probability."""
        chosen = rng.integers(0, len(self), count)
        return Transitions(**{n: getattr(self._stored, n)[chosen] for n in Transitions.__slots__})


class DqnLearner(LearnerState):
    """An agent's Q-learning; private to it: replay memory, target network, optimiser moments.

    Args:
        policy: of Q values, without a critic.
        settings: see :class:`DqnSettings`.
        rng: draws the minibatches.
    """

    survives = ("policy", "settings", "_rng", "_adam", "_memory", "_updates", "_remembered")

    def __init__(
        self, policy: MlpPolicy, settings: DqnSettings, *, rng: np.random.Generator
    ) -> None:
        if policy.action != "q-values" or policy.critic_hidden is not None:
            raise ConfigurationError(
                "policy must have action 'q-values' and no critic, "
                f"got {policy.action!r} and critic_hidden {policy.critic_hidden!r}"
            )
        self.policy, self.settings, self._rng = policy, settings, rng
        self._adam = Adam(policy.num_parameters)
        self._memory = ReplayMemory(settings.replay_capacity, policy.observation_size)
        self._updates = 0
        self._remembered: Float32 | None = None  # the target network, from the first round on
        self._build()

    def _build(self) -> None:
        """The networks: views of vectors."""
        size = self.policy.num_parameters
        self._vector, self._gradient, unused = (np.zeros(size, np.float32) for _ in range(3))
        self._target_vector = np.zeros(size, np.float32)
        layers = self.policy.layers
        self._network = DenseNetwork(layers, self._vector, self._gradient)
        self._target = DenseNetwork(layers, self._target_vector, unused)

    def __repr__(self) -> str:
        """The architecture only; the state is the agent's own."""
        return f"DqnLearner({self.policy})"

    def improve(
        self,
        parameters: NDArray[np.floating],
        batch: TrajectoryBatch,
        *,
        global_parameters: NDArray[np.floating] | None = None,
        learning_rate: float | None = None,
    ) -> Float64:
        """The parameters after remembering the batch and ``updates_per_step`` steps for each of

        its transitions.

        Args:
            parameters: float [policy.num_parameters].
            batch: whole trajectories, collected by any policy.
            global_parameters: not used; values have no distribution to stay near to.
            learning_rate: instead of the settings' (a public schedule).
        Returns:
            float64 [policy.num_parameters], finite; equal to ``parameters`` if nothing is learned.
        Raises:
            ConfigurationError: parameters or the shapes of the batch do not fit the policy.
        """
        start = np.asarray(parameters, dtype=np.float64)
        self._vector[:] = self.policy.checked(start)
        if self._remembered is None:
            self._remembered = self._vector.copy()
        self._target_vector[:] = self._remembered
        rate = scheduled("learning_rate", learning_rate, self.settings.learning_rate)
        new = transitions_of(batch, usable_rows(batch, self.policy))
        self._memory.add(new)
        if not len(self._memory):
            return start.copy()
        before = self._vector.copy()
        if self.settings.reset_optimiser:
            self._adam.reset()
        updates = math.ceil(new.actions.shape[0] * self.settings.updates_per_step)
        with np.errstate(all="ignore"):  # what is not finite is looked for, not warned of
            self._train(updates, rate)
        self._remembered = self._target_vector.copy()
        result = start + (self._vector.astype(np.float64) - before)
        try:
            self.policy.checked(result)
        except ConfigurationError:  # diverged: no policy would accept it
            return start.copy()
        return result

    def _train(self, updates: int, learning_rate: float) -> None:
        for _ in range(updates):
            drawn = self._memory.draw(self.settings.batch_size, self._rng)
            self._differentiate(drawn)
            if clip_norm_(self._gradient, self.settings.max_grad_norm):
                self._adam.step(self._vector, self._gradient, learning_rate)
            self._updates += 1
            if self._updates % self.settings.target_interval == 0:
                self._target_vector[:] = self._vector

    def _differentiate(self, drawn: Transitions) -> None:
        """Write the gradient of the mean Huber loss of a minibatch."""
        n = drawn.actions.shape[0]
        targets = self._targets(drawn)
        values = self._network.forward(drawn.observations)
        rows = np.arange(n)
        miss = values[rows, drawn.actions] - targets
        error = np.zeros_like(values)
        error[rows, drawn.actions] = np.clip(miss, -_HUBER, _HUBER) / np.float32(n)
        self._network.backward(error)

    def _targets(self, drawn: Transitions) -> Float32:
        """y / value_scale, float32 [n]."""
        settings = self.settings
        following = self._target.forward(drawn.following)
        if settings.double:
            best = self._network.forward(drawn.following).argmax(axis=1)
            value = following[np.arange(best.shape[0]), best]
        else:
            value = following.max(axis=1)
        later = np.where(drawn.ends, np.float32(0.0), value)
        targets = drawn.rewards / settings.value_scale + settings.gamma * later
        return targets.astype(np.float32, copy=False)
