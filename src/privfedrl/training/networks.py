"""The torch definition of a policy network, equal to the numpy one that collects experience.

Guarantee: ``TorchMlp(policy)`` with the same flat parameters computes the same outputs as the numpy
forward pass of ``policy``, up to float rounding.

Layout of the flat vector (d coordinates): of a recurrent policy first the two layers of its GRU;
for each layer of the actor the weights row-major [out, in], then the biases [out]; then, for
continuous actions, the log standard deviations [k]; then the critic's layers, if there is one.
Hidden activations are tanh. Outputs are logits [.., n] (categorical), Q values [.., n] or means
[.., k] (diagonal Gaussian), and a value [..].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privfedrl.errors import ConfigurationError, MissingExtraError
from privfedrl.rollout.policies import MlpPolicy

__all__ = [
    "LogStd",
    "Outputs",
    "TorchMlp",
    "divergences",
    "entropies",
    "log_probabilities",
    "scores",
]


_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class Outputs(NamedTuple):
    """What the networks say of each observation; None for what a policy does not have."""

    head: Tensor  # logits or Q values [.., n], or means [.., k]
    log_std: Tensor | None = None  # [.., k]
    value: Tensor | None = None  # [..], V of the critic


class LogStd(nn.Module):
    """A log standard deviation per action coordinate, the same for every observation."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(size))

    def forward(self, mean: Tensor) -> Tensor:
        """[.., k], the parameter repeated to the shape of ``mean``."""
        return torch.zeros_like(mean) + self.value


class TorchMlp(nn.Module):
    """A tanh multilayer perceptron with a head for actions, and perhaps a critic beside it.

    A recurrent policy has Opacus' DPGRU before the actor, whose state is zero at step 0.

    Args:
        policy: the architecture.
        parameters: float [d], the flat vector; zeros if omitted.
        dtype: torch.float32 (default) or torch.float64.
    Raises:
        ConfigurationError: the parameters do not fit the policy.
        MissingExtraError: the policy is recurrent and opacus is not installed.
    """

    def __init__(
        self,
        policy: MlpPolicy,
        parameters: NDArray[np.floating] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.discrete = policy.action != "gaussian"
        self.observation_size = policy.observation_size
        self.num_outputs = policy.action_size
        self.memory = _memory(policy, dtype) if policy.recurrent else None
        self.layers = _linear(policy.layers, dtype)
        self.log_std = None if self.discrete else LogStd(policy.action_size).to(dtype)
        has_critic = policy.critic_hidden is not None
        self.critic = _linear(policy.critic_layers, dtype) if has_critic else None
        self.num_parameters = sum(p.numel() for p in self.parameters())
        if self.num_parameters != policy.num_parameters:
            raise ConfigurationError(
                f"policy must have {self.num_parameters} parameters, got {policy.num_parameters}"
            )
        self.load(np.zeros(self.num_parameters) if parameters is None else parameters)

    @property
    def linear_layers(self) -> list[nn.Linear]:
        """The actor's layers from observation to output."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    @property
    def critic_layers(self) -> list[nn.Linear]:
        """The critic's layers from observation to value; none without a critic."""
        return [layer for layer in self.critic or () if isinstance(layer, nn.Linear)]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters, inputs and gradients."""
        return next(self.parameters()).dtype

    def forward(self, observations: Tensor) -> Outputs:
        """[.., obs] -> :class:`Outputs`; whole trajectories [B, T, obs] for a recurrent policy."""
        seen = observations
        if self.memory is not None:
            if observations.dim() != 3:
                raise ConfigurationError(
                    f"observations of a recurrent policy must be [B, T, {self.observation_size}], "
                    f"got {list(observations.shape)}"
                )
            seen, _last = self.memory(observations)
        head = _through(self.layers, seen)
        # detached: it gives the shape only, and a hook waits for ever on an input without gradient
        log_std = None if self.log_std is None else self.log_std(head.detach())
        value = None if self.critic is None else _through(self.critic, observations)[..., 0]
        return Outputs(head, log_std, value)

    @torch.no_grad()
    def load(self, parameters: NDArray[np.floating]) -> None:
        """Copy the flat vector [d] into the network; ConfigurationError for another shape."""
        vector = np.asarray(parameters)
        if vector.shape != (self.num_parameters,) or vector.dtype.kind != "f":
            raise ConfigurationError(
                f"parameters must be float [{self.num_parameters}], "
                f"got {vector.dtype} {list(vector.shape)}"
            )
        nn.utils.vector_to_parameters(
            torch.from_numpy(vector.astype(np.float64)).to(self.dtype), self.parameters()
        )

    def flat(self) -> NDArray[np.float64]:
        """A copy of the parameters as the flat vector, float64 [d]."""
        vector = nn.utils.parameters_to_vector(self.parameters()).detach()
        return vector.to(torch.float64).numpy().copy()


def scores(outputs: Outputs, actions: Tensor, *, q_values: bool) -> Tensor:
    """[..]: log pi(a|o), or Q(o, a) where the head holds Q values."""
    if not q_values:
        return log_probabilities(outputs, actions)
    return outputs.head.gather(-1, actions[..., None])[..., 0]


def log_probabilities(outputs: Outputs, actions: Tensor) -> Tensor:
    """log pi(a|o) [..].

    Args:
        actions: int64 [..] (categorical) or [.., k] (Gaussian; density in nats, before squashing).
    """
    if outputs.log_std is None:
        log_p = torch.log_softmax(outputs.head, dim=-1)
        return log_p.gather(-1, actions[..., None])[..., 0]
    z = (actions - outputs.head) * torch.exp(-outputs.log_std)
    return (-0.5 * z * z - outputs.log_std - _HALF_LOG_2PI).sum(dim=-1)


def entropies(outputs: Outputs) -> Tensor:
    """H(pi(.|o)) [..]; of a Gaussian before it is squashed."""
    if outputs.log_std is None:
        log_p = torch.log_softmax(outputs.head, dim=-1)
        return -(log_p.exp() * log_p).sum(dim=-1)
    return (outputs.log_std + (0.5 + _HALF_LOG_2PI)).sum(dim=-1)


def divergences(reference: Outputs, outputs: Outputs) -> Tensor:
    """KL(reference || outputs) [..], of policies with the same kind of head."""
    if outputs.log_std is None or reference.log_std is None:
        log_r = torch.log_softmax(reference.head, dim=-1)
        return (log_r.exp() * (log_r - torch.log_softmax(outputs.head, dim=-1))).sum(dim=-1)
    gap = (reference.head - outputs.head) * torch.exp(-outputs.log_std)
    ratio = torch.exp(2.0 * (reference.log_std - outputs.log_std))
    apart = outputs.log_std - reference.log_std
    return (apart + 0.5 * (ratio + gap * gap - 1.0)).sum(dim=-1)


def _memory(policy: MlpPolicy, dtype: torch.dtype) -> nn.Module:
    """Opacus' GRU of one layer over [B, T, obs]; its parameters come in the flat order."""
    try:
        from opacus.layers import DPGRU
    except ImportError as error:
        raise MissingExtraError("opacus", extra="rl") from error
    # its own initialisation draws from torch's global generator, for nothing
    with torch.random.fork_rng(devices=[]):
        memory: nn.Module = DPGRU(policy.observation_size, policy.recurrent, batch_first=True)
    return memory.to(dtype)


def _linear(layers: tuple[tuple[int, int], ...], dtype: torch.dtype) -> nn.ModuleList:
    return nn.ModuleList(
        # empty: torch's own initialisation would draw from its global generator for nothing
        nn.utils.skip_init(nn.Linear, inward, outward, dtype=dtype)
        for outward, inward in layers
    )


def _through(layers: nn.ModuleList, inputs: Tensor) -> Tensor:
    """tanh after every layer but the last."""
    hidden = inputs
    for layer in layers[:-1]:
        hidden = torch.tanh(layer(hidden))
    outputs: Tensor = layers[-1](hidden)
    return outputs
