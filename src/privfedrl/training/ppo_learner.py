"""Proximal policy optimisation inside one agent (Schulman et al. 2017), for the agent's unit.

Guarantee: none by itself. Minibatches, normalised advantages, running statistics and stopping by
KL let every trajectory move everything; what leaves the agent is the clipped difference of the
parameters and nothing else of this module. With any other unit of privacy it must not be used.
Data never raise: a trajectory that is not finite is dropped before anything is computed, and a
minibatch whose gradient is not finite is skipped, so the parameters stay finite.

Notation: B trajectories, T steps, N samples, d parameters; r_t rewards, V_t values; advantages
A_t = sum_k (gamma lambda)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - V_t; ratio the probability
of an action under the new policy over that under the old one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.training.advantages import generalised_advantages, surrogate_weights
from privfedrl.training.dense_network import (
    Adam,
    DenseNetwork,
    RunningScale,
    clip_norm_,
    layer_sizes,
    num_weights,
)
from privfedrl.training.learner_state import LearnerState
from privfedrl.training.policy_heads import CategoricalHead, GaussianHead, PolicyHead
from privfedrl.training.usable_rows import scheduled, usable_rows

__all__ = ["PpoLearner", "PpoSettings"]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

# rows of one forward pass over a whole batch: its hidden values stay in the second-level cache
_BLOCK = 1024
# a constant advantage is left at zero instead of its rounding errors being blown up
_MIN_DEVIATION = 1e-8
# Stable-Baselines3 and the reference implementation stop at 1.5 times the target as well
_KL_MARGIN = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class PpoSettings:
    """How an agent improves its policy in one round.

    Attributes:
        gamma: discount in [0, 1].
        gae_lambda: in [0, 1].
        epochs: passes over the batch, >= 1.
        minibatch_size: samples per optimiser step; a batch is split into parts of about this size.
        learning_rate: of Adam, > 0.
        entropy_weight: weight of the entropy in the objective, >= 0.
        reset_optimiser: forget Adam's moments before every batch. They belong to the path of this
            agent; in a federation the published parameters jump between rounds.
        clip_range: the ratio counts up to 1 +- clip_range.
        value_weight: weight of the mean squared error of the critic.
        value_scale: the critic predicts value / value_scale, so that its targets are of order 1.
        max_grad_norm: L2 norm to which the gradient of a minibatch is scaled down.
        normalise_advantages: to mean 0 and deviation 1 over the batch.
        normalise_observations: train in coordinates of running mean and deviation; what leaves is
            still a network on raw observations.
        target_kl: leave the rest of a batch when the mean KL from the policy before it, estimated
            on a minibatch, exceeds 1.5 times this; None: never.
        guidance_weight: weight of the mean KL(published policy || policy) on local states.
        behaviour_mixture: p in [0, 1): the published policy acted in a share p of the steps; each
            sample is weighed by the probability of its action before the batch over that under
            the mixture, and clipped by the ratio to the former (Hilton et al. 2022, decoupled
            objective). 0: the policy that is improved acted alone.
        private_critic_hidden: tanh layers of a critic that stays inside the agent, for a policy
            that has none: half the coordinates to be noised, and no clip norm spent on values.
    """

    gamma: float
    gae_lambda: float
    epochs: int
    minibatch_size: int
    learning_rate: float
    entropy_weight: float
    reset_optimiser: bool
    clip_range: float = 0.2
    value_weight: float = 0.5
    value_scale: float = 1.0
    max_grad_norm: float = 0.5
    normalise_advantages: bool = True
    normalise_observations: bool = False
    target_kl: float | None = None
    guidance_weight: float = 0.0
    behaviour_mixture: float = 0.0
    private_critic_hidden: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("gamma", "gae_lambda"):
            if not 0.0 <= getattr(self, name) <= 1.0:  # False for NaN too
                raise ConfigurationError(f"{name} must be in [0, 1], got {getattr(self, name)!r}")
        if not 0.0 <= self.behaviour_mixture < 1.0:
            raise ConfigurationError(
                f"behaviour_mixture must be in [0, 1), got {self.behaviour_mixture!r}"
            )
        for name in ("epochs", "minibatch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigurationError(f"{name} must be an integer >= 1, got {value!r}")
        for name in ("learning_rate", "clip_range", "value_scale", "max_grad_norm"):
            _check_positive(name, getattr(self, name))
        if self.target_kl is not None:
            _check_positive("target_kl", self.target_kl)
        for name in ("entropy_weight", "value_weight", "guidance_weight"):
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise ConfigurationError(f"{name} must be finite and >= 0, got {value!r}")


def _check_positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise ConfigurationError(f"{name} must be finite and > 0, got {value!r}")


@dataclass(slots=True, eq=False, repr=False)
class _Samples:
    """N samples of one round, in the coordinates that are trained in."""

    inputs: Float32  # [N, obs]
    actions: NDArray  # int64 [N] or float32 [N, act]
    old: Float32  # [N], log-probability of the action before the batch
    weights: Float32 | None  # [N], that probability over the mixture's; None without a mixture
    advantages: Float32  # [N]
    targets: Float32  # [N], value / value_scale
    guide: Float32 | None  # [N, columns], see PolicyHead.describe

    def at(self, chosen: NDArray[np.intp] | slice) -> _Samples:
        """Some of the samples, or all in another order."""
        return _Samples(
            inputs=self.inputs[chosen],
            actions=self.actions[chosen],
            old=self.old[chosen],
            weights=None if self.weights is None else self.weights[chosen],
            advantages=self.advantages[chosen],
            targets=self.targets[chosen],
            guide=None if self.guide is None else self.guide[chosen],
        )

    def parts(self, size: int) -> Iterator[_Samples]:
        """Parts of equal size but for one sample, about ``size`` each."""
        total = self.old.shape[0]
        bounds = np.linspace(0, total, max(1, round(total / size)) + 1).astype(int).tolist()
        return (self.at(slice(low, high)) for low, high in pairwise(bounds))


class PpoLearner(LearnerState):
    """An agent's PPO; private to it: optimiser moments, running statistics, perhaps a critic.

    Args:
        policy: categorical or Gaussian; with a critic unless the settings have a private one.
        settings: see :class:`PpoSettings`.
        rng: draws the order of the samples, and a private critic's first parameters.
    Raises:
        ConfigurationError: no critic, two critics, a policy of Q values or a recurrent one.
    """

    survives = (
        "policy",
        "settings",
        "_rng",
        "_private_critic",
        "_critic_layers",
        "_adam",
        "_scale",
    )

    def __init__(
        self, policy: MlpPolicy, settings: PpoSettings, *, rng: np.random.Generator
    ) -> None:
        if policy.action == "q-values":
            raise ConfigurationError("policy must be 'categorical' or 'gaussian', got 'q-values'")
        if policy.recurrent:
            raise ConfigurationError(
                f"recurrent must be 0 for a learner, got {policy.recurrent}: its minibatches tear "
                "trajectories apart"
            )
        private = settings.private_critic_hidden
        if (policy.critic_hidden is None) == (private is None):
            raise ConfigurationError(
                "exactly one of policy.critic_hidden and settings.private_critic_hidden must be "
                f"given, got {policy.critic_hidden!r} and {private!r}"
            )
        self.policy, self.settings, self._rng = policy, settings, rng
        self._private_critic: Float64 | None = None
        self._critic_layers = policy.critic_layers
        if private is not None:
            self._critic_layers = layer_sizes(policy.observation_size, private, 1)
            self._private_critic = _first_critic(policy, private, rng)
        self._adam = Adam(policy.actor_parameters + num_weights(self._critic_layers))
        self._scale = (
            RunningScale(policy.observation_size) if settings.normalise_observations else None
        )
        self._build()

    def _build(self) -> None:
        """The networks: views of one vector and of one gradient."""
        policy, split = self.policy, self.policy.actor_parameters
        size = split + num_weights(self._critic_layers)
        self._vector = np.zeros(size, np.float32)
        self._gradient = np.zeros(size, np.float32)
        weights = num_weights(policy.layers)
        self._actor = DenseNetwork(policy.layers, self._vector[:weights], self._gradient[:weights])
        self._log_std = self._vector[weights:split]
        self._head: PolicyHead = (
            CategoricalHead()
            if policy.action == "categorical"
            else GaussianHead(self._log_std, self._gradient[weights:split])
        )
        self._critic = DenseNetwork(
            self._critic_layers, self._vector[split:], self._gradient[split:]
        )

    def __repr__(self) -> str:
        """The architecture only; the state is the agent's own."""
        return f"PpoLearner({self.policy})"

    def improve(
        self,
        parameters: NDArray[np.floating],
        batch: TrajectoryBatch,
        *,
        global_parameters: NDArray[np.floating] | None = None,
        learning_rate: float | None = None,
    ) -> Float64:
        """The parameters after PPO on the batch.

        Args:
            parameters: float [policy.num_parameters] that collected the batch.
            batch: whole trajectories; see ``generalised_advantages`` for those that were cut.
            global_parameters: the published parameters for the guidance; None: ``parameters``.
            learning_rate: instead of the settings' (a public schedule).
        Returns:
            float64 [policy.num_parameters], finite; equal to ``parameters`` if the batch holds
            nothing to learn from.
        Raises:
            ConfigurationError: parameters or the shapes of the batch do not fit the policy, or a
                scheduled value is negative or not finite.
        """
        start = np.asarray(parameters, dtype=np.float64)
        self.policy.checked(start)
        guide = start if global_parameters is None else np.asarray(global_parameters, np.float64)
        self.policy.checked(guide)
        rows = usable_rows(batch, self.policy)
        with np.errstate(all="ignore"):  # what is not finite is looked for, not warned of
            return self._improve(
                start,
                guide,
                batch,
                rows,
                scheduled("learning_rate", learning_rate, self.settings.learning_rate),
            )

    def _improve(
        self,
        start: Float64,
        guide: Float64,
        batch: TrajectoryBatch,
        rows: Bool,
        learning_rate: float,
    ) -> Float64:
        mask = batch.mask & rows[:, None]
        if self._scale is not None:
            self._scale.update(batch.observations[mask])
        before = self._load(self._whole(start))
        samples = self._samples(batch, mask, guide)
        if samples.old.shape[0] == 0:
            return start.copy()
        if self.settings.reset_optimiser:
            self._adam.reset()
        self._train(samples, learning_rate)
        return self._finish(start, before)

    def _whole(self, parameters: Float64) -> Float64:
        """Actor and critic as one vector, wherever the critic lives."""
        if self._private_critic is None:
            return parameters
        return np.concatenate([parameters, self._private_critic])

    def _load(self, whole: Float64) -> Float32:
        """Set the networks to a vector on raw observations; returns a copy of what is trained."""
        vector = whole.copy()
        if self._scale is not None:
            split = self.policy.actor_parameters
            self._scale.to_normalised(self.policy.layers, vector[:split])
            self._scale.to_normalised(self._critic_layers, vector[split:])
        self._vector[:] = vector
        return self._vector.copy()

    def _finish(self, start: Float64, before: Float32) -> Float64:
        """``start`` plus what was learned, on raw observations.

        Only the difference is converted, so rounding to float32 never enters the result.
        """
        change = self._vector.astype(np.float64) - before
        split = self.policy.actor_parameters
        if self._scale is not None:
            # differences change coordinates as parameters do: the map is linear
            self._scale.to_raw(self.policy.layers, change[:split])
            self._scale.to_raw(self._critic_layers, change[split:])
        result = self._whole(start) + change
        try:
            self.policy.checked(result[: start.shape[0]])
        except ConfigurationError:  # diverged: no policy would accept it
            return start.copy()
        if self._private_critic is None:
            return result
        self._private_critic = result[split:]
        return result[:split]

    def _samples(self, batch: TrajectoryBatch, mask: Bool, guide: Float64) -> _Samples:
        """All that stays fixed while the batch is trained on."""
        settings = self.settings
        raw = batch.observations[mask]
        inputs = raw if self._scale is None else self._scale.normalised(raw)
        values = np.zeros(mask.shape)
        values[mask] = settings.value_scale * _outputs(self._critic, inputs)[:, 0]
        rewards = np.where(mask, batch.rewards, 0.0).astype(np.float64)
        advantages, known = generalised_advantages(
            rewards,
            values,
            mask,
            batch.terminated,
            gamma=settings.gamma,
            lam=settings.gae_lambda,
        )
        targets = (advantages + values)[known] / settings.value_scale
        gains = advantages[known]
        inputs, actions = inputs[known[mask]], batch.actions[known]
        old, weights = self._log_probabilities(inputs, actions), None
        if share := settings.behaviour_mixture:
            guided = self._under(guide, lambda: self._log_probabilities(inputs, actions))
            mixed = np.logaddexp(math.log1p(-share) + old, math.log(share) + guided)
            weights = np.exp(old - mixed).astype(np.float32)  # at most 1 / (1 - share)
        return _Samples(
            inputs=inputs,
            actions=actions,
            old=old,
            weights=weights,
            advantages=_standardised(gains, settings.normalise_advantages),
            targets=targets.astype(np.float32),
            guide=None
            if not settings.guidance_weight
            else self._under(guide, lambda: self._head.describe(_outputs(self._actor, inputs))),
        )

    def _log_probabilities(self, inputs: Float32, actions: NDArray) -> Float32:
        """Of the actions under the policy that is loaded, float32 [n]."""
        parts = [
            self._head.log_probabilities(self._actor.forward(part), actions[low:high])
            for low, high, part in _blocks(inputs)
        ]
        return np.concatenate(parts or [np.zeros(0, np.float32)])

    def _under(self, guide: Float64, say: Callable[[], Float32]) -> Float32:
        """What ``say`` gives while the published policy is loaded."""
        now = self._vector.copy()
        self._load(self._whole(guide))
        said = say()
        self._vector[:] = now
        return said

    def _train(self, samples: _Samples, learning_rate: float) -> None:
        """Epochs of minibatches; ends early by KL, and skips steps that are not finite."""
        for _ in range(self.settings.epochs):
            shuffled = samples.at(self._rng.permutation(samples.old.shape[0]))
            for part in shuffled.parts(self.settings.minibatch_size):
                if not self._differentiate(part):
                    return
                if clip_norm_(self._gradient, self.settings.max_grad_norm):
                    self._adam.step(self._vector, self._gradient, learning_rate)

    def _differentiate(self, part: _Samples) -> bool:
        """Write the gradient of the loss of one minibatch; False if KL says to stop."""
        settings, n = self.settings, part.old.shape[0]
        outputs = self._actor.forward(part.inputs)
        gap = self._head.log_probabilities(outputs, part.actions) - part.old
        ratio = np.exp(gap)
        counted = np.float32(1.0) if part.weights is None else part.weights
        # an estimate of KL(old || new) that is never negative
        moved = float((counted * (ratio - 1.0 - gap)).mean())
        if settings.target_kl is not None and moved > _KL_MARGIN * settings.target_kl:
            return False
        weights = counted * surrogate_weights(ratio, part.advantages, settings.clip_range)
        error = self._head.error(
            weights.astype(np.float32) * np.float32(-1.0 / n),
            entropy=settings.entropy_weight / n,
            guide=part.guide,
            guidance=settings.guidance_weight / n,
        )
        self._actor.backward(error)
        difference = self._critic.forward(part.inputs) - part.targets[:, None]
        difference *= np.float32(2.0 * settings.value_weight / n)
        self._critic.backward(difference)
        return True


def _first_critic(policy: MlpPolicy, hidden: tuple[int, ...], rng: np.random.Generator) -> Float64:
    """First parameters of a critic, as a policy with one would draw them."""
    twin = MlpPolicy(
        observation_size=policy.observation_size,
        hidden=(),
        action=policy.action,
        action_size=policy.action_size,
        critic_hidden=hidden,
    )
    return twin.initial_parameters(rng)[twin.actor_parameters :]


def _blocks(inputs: Float32) -> Iterator[tuple[int, int, Float32]]:
    for low in range(0, inputs.shape[0], _BLOCK):
        yield low, low + _BLOCK, inputs[low : low + _BLOCK]


def _outputs(network: DenseNetwork, inputs: Float32) -> Float32:
    """A network's outputs for any number of rows, [N, out]."""
    parts = [network.forward(part).copy() for _, _, part in _blocks(inputs)]
    return np.concatenate(parts) if parts else network.forward(inputs).copy()


def _standardised(values: Float64, wanted: bool) -> Float32:
    """float32; mean 0 and deviation 1 if wanted and there is any deviation."""
    if wanted and values.size:
        values = values - values.mean()
        deviation = values.std()
        values = values / deviation if deviation > _MIN_DEVIATION else np.zeros_like(values)
    return values.astype(np.float32)
