"""The torch definition of a policy network, equal to the numpy one that collects experience.

Guarantee: ``TorchMlp(policy)`` with the same flat parameters computes the same outputs as the numpy
forward pass of ``policy``, up to float rounding.

Layout of the flat vector (d coordinates): for each layer the weights row-major [out, in], then the
biases [out]; for continuous actions the log standard deviations [k] come last. Hidden activations
are tanh. Outputs are logits [.., n] (categorical) or means [.., k] (diagonal Gaussian).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privfedrl.errors import ConfigurationError
from privfedrl.rollout.policies import MlpPolicy

__all__ = ["LogStd", "TorchMlp", "log_probabilities"]

Outputs = tuple[Tensor, Tensor | None]


class LogStd(nn.Module):
    """A log standard deviation per action coordinate, the same for every observation."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(size))

    def forward(self, mean: Tensor) -> Tensor:
        """[.., k], the parameter repeated to the shape of ``mean``."""
        return torch.zeros_like(mean) + self.value


class TorchMlp(nn.Module):
    """A tanh multilayer perceptron with a categorical or diagonal Gaussian head.

    Args:
        policy: the architecture.
        parameters: float [d], the flat vector; zeros if omitted.
        dtype: torch.float32 (default) or torch.float64.
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
        self.discrete = policy.action == "categorical"
        self.observation_size = policy.observation_size
        self.num_outputs = policy.action_size
        self.layers = nn.ModuleList(
            # empty: torch's own initialisation would draw from its global generator for nothing
            nn.utils.skip_init(nn.Linear, inward, outward, dtype=dtype)
            for outward, inward in policy.layers
        )
        self.log_std = None if self.discrete else LogStd(policy.action_size).to(dtype)
        self.num_parameters = sum(p.numel() for p in self.parameters())
        if self.num_parameters != policy.num_parameters:
            raise ConfigurationError(
                f"policy must have {self.num_parameters} parameters, got {policy.num_parameters}"
            )
        self.load(np.zeros(self.num_parameters) if parameters is None else parameters)

    @property
    def linear_layers(self) -> list[nn.Linear]:
        """The layers from observation to output."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters, inputs and gradients."""
        return next(self.parameters()).dtype

    def forward(self, observations: Tensor) -> Outputs:
        """[.., obs] -> logits [.., n] and None, or means and log standard deviations [.., k]."""
        hidden = observations
        for layer in self.layers[:-1]:
            hidden = torch.tanh(layer(hidden))
        outputs = self.layers[-1](hidden)
        # detached: it gives the shape only, and a hook waits for ever on an input without gradient
        return outputs, None if self.log_std is None else self.log_std(outputs.detach())

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


def log_probabilities(outputs: Outputs, actions: Tensor) -> tuple[Tensor, Tensor]:
    """log pi(a|o) and the entropy H(pi(.|o)), both [..], for the outputs of :class:`TorchMlp`.

    Args:
        actions: int64 [..] (categorical) or [.., k] (Gaussian; density in nats).
    """
    head, log_std = outputs
    if log_std is None:
        log_p = torch.log_softmax(head, dim=-1)
        chosen = log_p.gather(-1, actions[..., None])[..., 0]
        return chosen, -(log_p.exp() * log_p).sum(dim=-1)
    z = (actions - head) * torch.exp(-log_std)
    half_log_2pi = 0.5 * math.log(2.0 * math.pi)
    density = (-0.5 * z * z - log_std - half_log_2pi).sum(dim=-1)
    return density, (log_std + (0.5 + half_log_2pi)).sum(dim=-1)
