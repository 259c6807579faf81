"""What each step of a trajectory weighs, by algorithm: REINFORCE, A2C, PPO and DQN as one table.

Guarantee: row i of the signals is a function of trajectory i and of published parameters alone:
the policy, the critic, the policy that collected and the target network were all released with
noise before. There is no batch statistic, no replay priority and no stopping rule.

Notation: B trajectories, T steps, l_i the length of trajectory i, V the critic's output times
value_scale, rho = pi(a|o) / pi_old(a|o), Q a network of action values.

    REINFORCE  w = whitened returns-to-go / sqrt(l), times pi / mixture where a guide acted as well
    A2C        w = A / (value_scale advantage_scale sqrt(l)),         v = A / (value_scale sqrt(l))
    PPO        as A2C, or without a critic as REINFORCE, with w times rho where the clipped
               surrogate has a gradient, else 0
    DQN        w = huber'(r + gamma Q_target(o', argmax_a' Q(o', a')) - Q(o, a)) / sqrt(l), all
               by value_scale; a' chosen by Q_target itself if not double

References: docs/algorithms/*.md give the update equations, the units and the costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.training.advantages import generalised_advantages, surrogate_weights
from privfedrl.training.networks import TorchMlp, log_probabilities
from privfedrl.training.reinforce import Truncation, check_discount, trajectory_weights

__all__ = ["ALGORITHMS", "Algorithm", "Models", "Objective", "Signals", "signals"]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Algorithm = Literal["reinforce", "a2c", "ppo", "dqn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What an algorithm maximises, of one trajectory at a time.

    Attributes:
        algorithm: see the table above.
        gamma: discount in [0, 1].
        truncation: what lies beyond a cut trajectory, see :class:`Truncation`.
        entropy_weight: factor of the entropy bonus, >= 0; 0 for DQN.
        gae_lambda: trace of A2C and PPO, in [0, 1].
        value_scale: public size of a return, > 0: critic and Q network learn value / value_scale.
        advantage_scale: public size of an advantage over value_scale, > 0: the policy's part of a
            row is divided by it before it is clipped. A2C, and PPO with a critic.
        clip_range: PPO's, > 0.
        advantages: PPO's: "gae" from a critic, or "returns" whitened within the trajectory, which
            needs none.
        guidance_weight: factor of KL(guide || pi), >= 0; the guide is the policy that collected.
        behaviour_mixture: p in [0, 1): the behaviour policy acted in a share p of the steps and the
            current one in the others; REINFORCE weighs each step by pi / mixture.
        double: DQN's next action is chosen by the current network, its value by the target's.
        reward_low, reward_high: public bounds to which every reward is clipped before anything else
            is computed from it; released returns are those of the environment.
        step_cost: subtracted from every clipped reward, a public constant.
    """

    algorithm: Algorithm = "reinforce"
    gamma: float = 1.0
    truncation: Truncation = Truncation.NONE
    entropy_weight: float = 0.0
    gae_lambda: float = 0.95
    value_scale: float = 1.0
    advantage_scale: float = 1.0
    clip_range: float = 0.2
    advantages: Literal["gae", "returns"] = "gae"
    guidance_weight: float = 0.0
    behaviour_mixture: float = 0.0
    double: bool = True
    reward_low: float = -math.inf
    reward_high: float = math.inf
    step_cost: float = 0.0

    def __post_init__(self) -> None:
        check_discount(self.gamma, self.truncation)
        if self.algorithm not in ALGORITHMS:
            raise ConfigurationError(
                f"algorithm must be one of {', '.join(ALGORITHMS)}, got {self.algorithm!r}"
            )
        limits = {
            "entropy_weight": (0.0, math.inf),
            "guidance_weight": (0.0, math.inf),
            "gae_lambda": (0.0, 1.0),
            "behaviour_mixture": (0.0, 0.99),
            "value_scale": (1e-100, 1e100),
            "advantage_scale": (1e-100, 1e100),
            "clip_range": (1e-6, 1e6),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise ConfigurationError(f"{name} must be in [{low}, {high}], got {value!r}")
        if not self.reward_low < self.reward_high:  # True for NaN too
            raise ConfigurationError(
                f"reward_low must be < reward_high, got {self.reward_low!r} and "
                f"{self.reward_high!r}"
            )
        if not abs(self.step_cost) <= 1e20:
            raise ConfigurationError(f"step_cost must be within +-1e20, got {self.step_cost!r}")
        if self.behaviour_mixture and self.algorithm != "reinforce":
            raise ConfigurationError(
                f"behaviour_mixture must be 0 for {self.algorithm!r}, got "
                f"{self.behaviour_mixture!r}: learners have their own, and other rows are computed "
                "from what the published policy collected"
            )
        self._check_truncation()

    def _check_truncation(self) -> None:
        if self.advantages not in ("gae", "returns"):
            raise ConfigurationError(
                f"advantages must be 'gae' or 'returns', got {self.advantages!r}"
            )
        if self.advantages == "returns" and self.algorithm != "ppo":
            raise ConfigurationError(
                f"advantages = 'returns' is for 'ppo', got it for {self.algorithm!r}"
            )
        allowed = ALGORITHMS[self.algorithm].truncations
        if self.advantages == "returns":
            allowed = ALGORITHMS["reinforce"].truncations
        if self.truncation not in allowed:
            raise ConfigurationError(
                f"truncation must be one of {[t.value for t in allowed]} for "
                f"{self.algorithm!r}, got {self.truncation.value!r}"
            )
        if self.algorithm == "dqn" and (self.entropy_weight or self.guidance_weight):
            raise ConfigurationError(
                "entropy_weight and guidance_weight must be 0 for 'dqn', whose network holds "
                f"values, got {self.entropy_weight!r} and {self.guidance_weight!r}"
            )

    def shaped(self, batch: TrajectoryBatch) -> TrajectoryBatch:
        """The batch with the rewards to learn from; one that is not finite stays what it is."""
        if (self.reward_low, self.reward_high, self.step_cost) == (-math.inf, math.inf, 0.0):
            return batch
        with np.errstate(invalid="ignore"):
            clipped = np.clip(batch.rewards, self.reward_low, self.reward_high) - self.step_cost
        usable = np.isfinite(batch.rewards) & batch.mask
        return replace(batch, rewards=np.where(usable, clipped, batch.rewards).astype(np.float32))

    @property
    def has_critic(self) -> bool:
        """Whether the policy needs a critic beside it."""
        return ALGORITHMS[self.algorithm].critic and self.advantages == "gae"


class Models(NamedTuple):
    """Published parameters as networks: all of them are outputs of noised releases.

    ``current`` is improved; ``behaviour`` collected the batch; ``target`` is DQN's. None stands
    for ``current``.
    """

    current: TorchMlp
    behaviour: TorchMlp | None = None
    target: TorchMlp | None = None


class Signals(NamedTuple):
    """float32 [B, T]: ``weights`` of scores and ``values`` of the critic, zero at masked steps."""

    weights: Float32
    values: Float32 | None = None


def signals(models: Models, batch: TrajectoryBatch, objective: Objective) -> Signals:
    """The signals of ``batch`` under ``objective``.

    A row whose rewards or observations are not finite is not finite at its own steps: the clipper
    drops that trajectory and no other.

    Raises:
        ConfigurationError: the algorithm needs a critic that the policy has not, or the other way
            round; a head of another kind; a batch that does not fit the network.
    """
    rule = ALGORITHMS[objective.algorithm]
    policy = models.current.policy
    if (policy.critic_hidden is not None) != objective.has_critic:
        wanted = "a critic" if objective.has_critic else "no critic"
        raise ConfigurationError(f"policy must have {wanted} for {objective.algorithm!r}")
    if (policy.action == "q-values") != rule.q_values:
        raise ConfigurationError(
            f"action must {'' if rule.q_values else 'not '}be 'q-values' for "
            f"{objective.algorithm!r}, got {policy.action!r}"
        )
    weights, values = rule.signals(models, objective.shaped(batch), objective)
    return Signals(_masked(weights, batch), None if values is None else _masked(values, batch))


def _masked(part: NDArray[np.floating], batch: TrajectoryBatch) -> Float32:
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is dropped by the clipper
        return np.where(batch.mask, part, 0.0).astype(np.float32)


def _reinforce(
    models: Models, batch: TrajectoryBatch, objective: Objective
) -> tuple[NDArray[np.floating], None]:
    weights = trajectory_weights(batch, gamma=objective.gamma, truncation=objective.truncation)
    share = objective.behaviour_mixture
    if not share or models.behaviour is None:
        return weights, None
    own, guide = _log_p(models.current, batch), _log_p(models.behaviour, batch)
    with np.errstate(over="ignore", invalid="ignore"):
        mixed = np.logaddexp(math.log1p(-share) + own, math.log(share) + guide)
        return weights * np.exp(own - mixed), None


def _a2c(models: Models, batch: TrajectoryBatch, objective: Objective) -> tuple[Float64, Float64]:
    advantages, errors, lengths = _advantages(models.current, batch, objective)
    return advantages / (objective.advantage_scale * lengths), errors / lengths


def _ppo(
    models: Models, batch: TrajectoryBatch, objective: Objective
) -> tuple[NDArray[np.floating], NDArray[np.floating] | None]:
    first = _a2c if objective.has_critic else _reinforce
    weights, errors = first(models, batch, objective)
    if models.behaviour is None:
        return weights, errors
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = np.exp(_log_p(models.current, batch) - _log_p(models.behaviour, batch))
        return surrogate_weights(ratio, weights, objective.clip_range), errors


def _advantages(
    network: TorchMlp, batch: TrajectoryBatch, objective: Objective
) -> tuple[Float64, Float64, Float64]:
    """A, the critic's errors (both over value_scale), and sqrt of the lengths, [B, 1]."""
    values = _values(network, batch)
    with np.errstate(over="ignore", invalid="ignore"):
        advantages, known = generalised_advantages(
            np.where(batch.mask, batch.rewards, 0.0).astype(np.float64) / objective.value_scale,
            values,
            batch.mask,
            _ended(batch, objective),
            gamma=objective.gamma,
            lam=objective.gae_lambda,
        )
    # the target A + V is a constant to the critic: its error is A itself
    errors = np.where(known, advantages, 0.0)
    return advantages, errors, np.sqrt(np.maximum(batch.lengths, 1))[:, None]


def _dqn(models: Models, batch: TrajectoryBatch, objective: Objective) -> tuple[Float64, None]:
    current = _head(models.current, batch)
    target = current if models.target is None else _head(models.target, batch)
    happened = batch.mask & (batch.actions >= 0) & (batch.actions < current.shape[-1])
    chosen = np.where(happened, batch.actions, 0)[..., None].astype(np.int64)
    taken = np.take_along_axis(current, chosen, axis=-1)[..., 0]
    ahead = (current if objective.double else target).argmax(axis=-1)[..., None]
    best = np.take_along_axis(target, ahead, axis=-1)[..., 0]
    rewards = np.where(batch.mask, batch.rewards, 0.0).astype(np.float64) / objective.value_scale
    with np.errstate(over="ignore", invalid="ignore"):
        # lambda = 0: the advantage of one step is r + gamma V(o') - V(o), with V(o') = best
        following = np.concatenate([best[:, 1:], np.zeros((len(best), 1))], axis=1)
        ended = _ended(batch, objective)
        last = batch.mask & ~np.concatenate(
            [batch.mask[:, 1:], np.zeros((len(best), 1), dtype=np.bool_)], axis=1
        )
        goes_on = batch.mask & ~last
        error = rewards + objective.gamma * np.where(goes_on, following, 0.0) - taken
        error = np.where(goes_on | (last & ended[:, None]), error, 0.0)
    lengths = np.sqrt(np.maximum(batch.lengths, 1))[:, None]
    # Huber: beyond an error of one the loss grows linearly
    return np.clip(error, -1.0, 1.0) / lengths, None


def _ended(batch: TrajectoryBatch, objective: Objective) -> NDArray[np.bool_]:
    """Rows beyond whose last step there is nothing: all of them unless cut ones go on."""
    if objective.truncation is Truncation.NONE:
        return np.ones(batch.num_trajectories, dtype=np.bool_)
    return batch.terminated


@torch.no_grad()
def _values(network: TorchMlp, batch: TrajectoryBatch) -> Float64:
    value = network(_observations(network, batch)).value
    if value is None:
        raise AssertionError("unreachable: checked by signals")
    return np.asarray(value.numpy(), dtype=np.float64)


@torch.no_grad()
def _head(network: TorchMlp, batch: TrajectoryBatch) -> Float64:
    return np.asarray(network(_observations(network, batch)).head.numpy(), dtype=np.float64)


@torch.no_grad()
def _log_p(network: TorchMlp, batch: TrajectoryBatch) -> Float64:
    actions = torch.from_numpy(batch.actions)
    if network.discrete:
        # an action that does not exist makes its row not finite in the gradient code; NaN is none
        exists = (actions >= 0) & (actions < network.num_outputs)
        actions = torch.where(exists, actions, 0).to(torch.int64)
    else:
        actions = actions.to(network.dtype)
    outputs = network(_observations(network, batch))
    return np.asarray(log_probabilities(outputs, actions).numpy(), dtype=np.float64)


def _observations(network: TorchMlp, batch: TrajectoryBatch) -> torch.Tensor:
    expected = (*batch.mask.shape, network.observation_size)
    if batch.observations.shape != expected:
        raise ConfigurationError(
            f"observations must have shape {expected}, got {batch.observations.shape}"
        )
    observations = torch.from_numpy(batch.observations).to(network.dtype)
    return torch.where(torch.from_numpy(batch.mask)[..., None], observations, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """One algorithm: its signals, and what it asks of the policy."""

    signals: Callable[
        [Models, TrajectoryBatch, Objective],
        tuple[NDArray[np.floating], NDArray[np.floating] | None],
    ]
    critic: bool = False
    q_values: bool = False
    truncations: tuple[Truncation, ...] = (Truncation.NONE, Truncation.BOOTSTRAP)


ALGORITHMS: Mapping[str, _Rule] = MappingProxyType(
    {
        "reinforce": _Rule(signals=_reinforce, truncations=(Truncation.NONE, Truncation.CONTINUE)),
        "a2c": _Rule(signals=_a2c, critic=True),
        "ppo": _Rule(signals=_ppo, critic=True),
        "dqn": _Rule(signals=_dqn, q_values=True),
    }
)
