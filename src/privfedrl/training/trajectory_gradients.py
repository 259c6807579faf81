"""Gradients of a policy objective, one row per trajectory: a fast path, Opacus hooks and an oracle.

Guarantee: row i is the gradient of trajectory i's own objective

    L_i(theta) = sum_t w_it log pi(a_it | o_it) + entropy_weight sum_t e_it H(pi(. | o_it)),
    e_it = 1 / sqrt(length_i) for steps that happened,

in ascent direction, and nothing in it depends on another trajectory. Masked steps contribute
nothing; a trajectory without steps is a zero row. For a fixed batch shape the other rows keep every
bit when one trajectory is replaced by an absent one: no kernel is chosen, and no step is packed
away, by what the data are.

Notation: B trajectories, T steps, d parameters, delta = dL/d(pre-activation) of a layer.
The three paths share one signature and agree to float rounding. Layers contract to whole-trajectory
rows, so no per-step gradient is ever built; ghost clipping (a T x T Gram matrix per trajectory and
layer, and known to reuse stale norms) is deliberately absent.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privfedrl.errors import ConfigurationError, MissingExtraError
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.training.networks import LogStd, TorchMlp, log_probabilities

__all__ = ["Steps", "TrajectoryGradient", "fused", "hooks", "loop", "objective", "prepare"]

Weights = NDArray[np.float32]
TrajectoryGradient = Callable[[TorchMlp, TrajectoryBatch, Weights, float], Tensor]

# steps per tile of the fused path: the activations of a 64-wide net then stay in a 1-2 MiB cache.
# A tile depends on the shape of the batch alone.
TILE_STEPS = 3_200


class Steps(NamedTuple):
    """A batch as tensors of the network's type, masked steps zeroed."""

    observations: Tensor  # [B, T, obs]
    actions: Tensor  # int64 [B, T] or [B, T, act]
    weights: Tensor  # [B, T], w
    entropy: Tensor | None  # [B, T], entropy_weight * e; None when the bonus is off

    def map(self, change: Callable[[Tensor], Tensor]) -> Steps:
        """``change`` applied to every tensor that is there."""
        entropy = None if self.entropy is None else change(self.entropy)
        return Steps(change(self.observations), change(self.actions), change(self.weights), entropy)

    def rows(self, start: int, stop: int) -> Steps:
        """Trajectories start to stop - 1."""
        return self.map(lambda tensor: tensor[start:stop])


def fused(
    network: TorchMlp, batch: TrajectoryBatch, weights: Weights, entropy_weight: float = 0.0
) -> Tensor:
    """Per-trajectory gradients from closed-form deltas and one batched product per layer.

    Args:
        network: the policy at theta; its type (float32 or float64) is the type of the result.
        batch: B trajectories of at most T steps.
        weights: [B, T]; entries at masked steps are ignored.
        entropy_weight: factor of the entropy bonus, >= 0.
    Returns:
        [B, d] in the order of ``TorchMlp.flat``. No autograd graph is built or kept.
    Raises:
        ConfigurationError: the batch does not fit the network or the weights.
    """
    steps = prepare(network, batch, weights, entropy_weight)
    count, horizon = steps.weights.shape
    rows = steps.weights.new_zeros((count, network.num_parameters))
    tile = max(1, TILE_STEPS // max(horizon, 1))
    with torch.no_grad():
        for start in range(0, count if horizon else 0, tile):
            stop = min(start + tile, count)
            _fused_tile(network, steps.rows(start, stop), rows[start:stop])
    return rows


def hooks(
    network: TorchMlp, batch: TrajectoryBatch, weights: Weights, entropy_weight: float = 0.0
) -> Tensor:
    """The same rows as :func:`fused` from Opacus' ``GradSampleModule`` hooks on [B, T, obs].

    No data loader, no ``make_private``, no ghost clipping; ``loss_reduction="sum"`` leaves scaling
    to us. The network given is not modified.

    Raises:
        MissingExtraError: opacus is not installed.
        ConfigurationError: as for :func:`fused`.
    """
    steps = prepare(network, batch, weights, entropy_weight)
    if not steps.weights.numel():
        return steps.weights.new_zeros((len(steps.weights), network.num_parameters))
    sampled = _grad_sample_module(network)
    observations = steps.observations.detach().requires_grad_()
    # asking for these gradients alone fires every hook, and spares the summed parameter gradients
    # that an ordinary backward pass would compute beside the samples
    asked = [observations, *(m.value for m in sampled.modules() if isinstance(m, LogStd))]
    with warnings.catch_warnings():
        # torch notes that the log standard deviation has no input with a gradient: rightly
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        objective(sampled(observations), steps).backward(inputs=asked)
    # opacus hangs the samples on the parameters, under a name that torch's types do not know
    samples = [getattr(p, "grad_sample") for p in sampled.parameters()]  # noqa: B009
    return torch.cat([sample.flatten(1) for sample in samples], dim=1).detach()


def loop(
    network: TorchMlp, batch: TrajectoryBatch, weights: Weights, entropy_weight: float = 0.0
) -> Tensor:
    """The same rows as :func:`fused`, by one ordinary backward pass per trajectory: the oracle."""
    steps = prepare(network, batch, weights, entropy_weight)
    rows = []
    for i in range(len(steps.weights)):
        alone = steps.rows(i, i + 1)
        value = objective(network(alone.observations), alone)
        gradients = torch.autograd.grad(value, list(network.parameters()))
        rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows) if rows else steps.weights.new_zeros((0, network.num_parameters))


def objective(outputs: tuple[Tensor, Tensor | None], steps: Steps) -> Tensor:
    """Scalar sum_i L_i for the network's outputs: a sum over trajectories, never a mean."""
    log_p, entropy = log_probabilities(outputs, steps.actions)
    total = (log_p * steps.weights).sum()
    return total if steps.entropy is None else total + (entropy * steps.entropy).sum()


def prepare(
    network: TorchMlp, batch: TrajectoryBatch, weights: Weights, entropy_weight: float
) -> Steps:
    """Check ``batch`` against ``network`` and turn it into :class:`Steps`.

    An action outside the policy's range makes its own row not finite (the clipper then drops it)
    rather than raising: an agent must not stop visibly because of what its data are.
    """
    _check(network, batch, weights, entropy_weight)
    mask = torch.from_numpy(batch.mask)
    weight = torch.from_numpy(np.ascontiguousarray(weights)).to(network.dtype)
    weight = torch.where(mask, weight, 0.0)
    observations = torch.from_numpy(batch.observations).to(network.dtype)
    observations = torch.where(mask[..., None], observations, 0.0)
    actions = torch.from_numpy(batch.actions)
    if network.discrete:
        # not (< 0 or >= n): an action that is NaN compares as neither, and is impossible too
        impossible = mask & ~((actions >= 0) & (actions < network.num_outputs))
        weight = torch.where(impossible, math.nan, weight)
        actions = torch.where(mask & ~impossible, actions, 0).to(torch.int64)
    else:
        actions = torch.where(mask[..., None], actions.to(network.dtype), 0.0)
    entropy = None
    if entropy_weight:
        lengths = mask.sum(dim=1, keepdim=True).clamp(min=1).to(network.dtype)
        entropy = mask * (entropy_weight / lengths.sqrt())
    return Steps(observations, actions, weight, entropy)


def _check(
    network: TorchMlp, batch: TrajectoryBatch, weights: Weights, entropy_weight: float
) -> None:
    rows, horizon = batch.mask.shape
    expected = (rows, horizon, network.observation_size)
    if batch.observations.shape != expected:
        raise ConfigurationError(
            f"observations must have shape {expected}, got {batch.observations.shape}"
        )
    action = (rows, horizon) if network.discrete else (rows, horizon, network.num_outputs)
    if batch.actions.shape != action:
        raise ConfigurationError(f"actions must have shape {action}, got {batch.actions.shape}")
    if weights.shape != (rows, horizon):
        raise ConfigurationError(f"weights must have shape {(rows, horizon)}, got {weights.shape}")
    if not (math.isfinite(entropy_weight) and entropy_weight >= 0):
        raise ConfigurationError(f"entropy_weight must be finite and >= 0, got {entropy_weight!r}")


def _fused_tile(network: TorchMlp, steps: Steps, rows: Tensor) -> None:
    """Write the gradients of the trajectories in ``steps`` to ``rows`` [b, d]."""
    count, horizon = steps.weights.shape
    flat = steps.map(lambda tensor: tensor.flatten(0, 1))
    layers = network.linear_layers
    inputs = [flat.observations]
    for layer in layers[:-1]:
        inputs.append(torch.addmm(layer.bias, inputs[-1], layer.weight.t()).tanh_())
    head = layers[-1]
    outputs = torch.addmm(head.bias, inputs[-1], head.weight.t())
    end = network.num_parameters
    if network.log_std is None:
        delta = _categorical_delta(outputs, flat)
    else:
        delta, spread = _gaussian_delta(outputs, network.log_std.value, flat)
        begin = end - network.num_outputs
        torch.sum(spread.view(count, horizon, -1), 1, out=rows[:, begin:end])
        end = begin
    for index in range(len(layers) - 1, -1, -1):
        layer = layers[index]
        end = _layer_rows(layer, delta, inputs[index], rows, end)
        if index:
            delta = torch.mm(delta, layer.weight)
            # delta * (1 - tanh^2) in one pass over memory, in place
            torch.ops.aten.tanh_backward.grad_input(delta, inputs[index], grad_input=delta)


def _layer_rows(
    layer: torch.nn.Linear, delta: Tensor, inputs: Tensor, rows: Tensor, end: int
) -> int:
    """Write the rows of one linear layer before column ``end``; return where they begin."""
    count = len(rows)
    out, width = layer.weight.shape
    deltas = delta.view(count, -1, out)
    bias, weight = end - out, end - out - out * width
    torch.sum(deltas, 1, out=rows[:, bias:end])
    block = rows[:, weight:bias].unflatten(1, (out, width))
    torch.bmm(deltas.transpose(1, 2), inputs.view(count, -1, width), out=block)
    return weight


def _categorical_delta(logits: Tensor, flat: Steps) -> Tensor:
    """dL/dlogits [N, n]: w (onehot(a) - p) - entropy p (log p + H)."""
    weight = flat.weights[:, None]
    if flat.entropy is None:
        delta = torch.softmax(logits, -1).mul_(-weight)
    else:
        log_p = torch.log_softmax(logits, -1)
        p = log_p.exp()
        entropy = -(p * log_p).sum(-1, keepdim=True)
        delta = p * -(weight + flat.entropy[:, None] * (log_p + entropy))
    return delta.scatter_add_(1, flat.actions[:, None], weight)


def _gaussian_delta(mean: Tensor, log_std: Tensor, flat: Steps) -> tuple[Tensor, Tensor]:
    """dL/dmean and per-step dL/dlog_std, both [N, k]; z = (a - mean) / std."""
    weight = flat.weights[:, None]
    inverse = torch.exp(-log_std)
    z = (flat.actions - mean) * inverse
    spread = (z * z - 1.0) * weight
    if flat.entropy is not None:
        spread += flat.entropy[:, None]
    return z * inverse * weight, spread


def _grad_sample_module(network: TorchMlp) -> torch.nn.Module:
    """A copy of ``network`` whose backward pass leaves ``grad_sample`` [B, ...] on parameters."""
    try:
        from opacus import GradSampleModule
        from opacus.grad_sample import register_grad_sampler
    except ImportError as error:
        raise MissingExtraError("opacus", extra="rl") from error
    register_grad_sampler(LogStd)(_log_std_grad_sample)
    wrapped: torch.nn.Module = GradSampleModule(
        copy.deepcopy(network), batch_first=True, loss_reduction="sum"
    )
    return wrapped


def _log_std_grad_sample(
    layer: LogStd, activations: list[Tensor], backprops: Tensor
) -> dict[torch.nn.Parameter, Tensor]:
    """Opacus' sampler for the state-independent log standard deviation: a sum over steps."""
    return {layer.value: backprops.sum(dim=1)}
