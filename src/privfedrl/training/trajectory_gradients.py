"""Gradients of a policy objective, one row per trajectory: a fast path, Opacus hooks and an oracle.

Guarantee: row i is the gradient of trajectory i's own objective, in ascent direction,

    L_i(theta) = sum_t w_it score(a_it | o_it) + v_it V(o_it)
                 + entropy_weight e_it H(pi(. | o_it))
                 - guidance e_it KL(ref(. | o_it) || pi(. | o_it)),
    e_it = 1 / sqrt(length_i) for steps that happened,

where score is log pi, or Q for a head of Q values, and w and v are constants that the algorithm
computed (``signals``). Nothing in it depends on another trajectory. Masked steps contribute
nothing; a trajectory without steps is a zero row. For a fixed batch shape the other rows keep every
bit when one trajectory is replaced by an absent one: no kernel is chosen, and no step is packed
away, by what the data are. The memory of a recurrent network runs from step to step within a row;
it is never packed by lengths, and masked steps come after all others.

Notation: B trajectories, T steps, d parameters, delta = dL/d(pre-activation) of a layer.
The three paths share one signature and agree to float rounding; recurrent networks have the last
two only. Layers contract to whole-trajectory
rows, so no per-step gradient is ever built; ghost clipping (a T x T Gram matrix per trajectory and
layer, and known to reuse stale norms) is deliberately absent.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privfedrl.errors import ConfigurationError, MissingExtraError
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.training.networks import (
    LogStd,
    Outputs,
    TorchMlp,
    divergences,
    entropies,
    scores,
)

__all__ = [
    "Guidance",
    "Steps",
    "Terms",
    "TrajectoryGradient",
    "fused",
    "hooks",
    "loop",
    "objective",
    "prepare",
]

Weights = NDArray[np.float32]


class Guidance(NamedTuple):
    """A policy to stay near to, and how strongly: weight >= 0 of KL(reference || pi)."""

    reference: TorchMlp
    weight: float


class Terms(NamedTuple):
    """What an objective holds beside the weighted scores of actions.

    ``entropy_weight`` >= 0; ``values`` [B, T] the weights v of the critic, which must then exist.
    """

    entropy_weight: float = 0.0
    values: Weights | None = None
    guidance: Guidance | None = None


TrajectoryGradient = Callable[[TorchMlp, TrajectoryBatch, Weights, Terms], Tensor]
NO_TERMS = Terms()

# steps per tile of the fused path: the activations of a 64-wide net then stay in a 1-2 MiB cache.
# A tile depends on the shape of the batch alone.
TILE_STEPS = 3_200


class Steps(NamedTuple):
    """A batch as tensors of the network's type, masked steps zeroed."""

    observations: Tensor  # [B, T, obs]
    actions: Tensor  # int64 [B, T] or [B, T, act]
    weights: Tensor  # [B, T], w
    values: Tensor | None  # [B, T], v; None without a critic
    entropy: Tensor | None  # [B, T], entropy_weight * e; None when the bonus is off
    guidance: Tensor | None  # [B, T], guidance weight * e; None when there is none
    reference: Tensor | None  # [B, T, n or k], the head of the policy to stay near to
    reference_log_std: Tensor | None  # the same shape, for a Gaussian one

    def map(self, change: Callable[[Tensor], Tensor]) -> Steps:
        """``change`` applied to every tensor that is there."""
        changed: list[Any] = [None if tensor is None else change(tensor) for tensor in self]
        return Steps(*changed)

    def rows(self, start: int, stop: int) -> Steps:
        """Trajectories start to stop - 1."""
        return self.map(lambda tensor: tensor[start:stop])

    @property
    def referred(self) -> Outputs:
        """The reference as outputs of a network."""
        if self.reference is None:
            raise AssertionError("unreachable: asked for only where there is one")
        return Outputs(self.reference, self.reference_log_std)


def fused(
    network: TorchMlp, batch: TrajectoryBatch, weights: Weights, terms: Terms = NO_TERMS
) -> Tensor:
    """Per-trajectory gradients from closed-form deltas and one batched product per layer.

    Args:
        network: the policy at theta; its type (float32 or float64) is the type of the result.
        batch: B trajectories of at most T steps.
        weights: [B, T], w; entries at masked steps are ignored.
        terms: see :class:`Terms`.
    Returns:
        [B, d] in the order of ``TorchMlp.flat``. No autograd graph is built or kept.
    Raises:
        ConfigurationError: the batch does not fit the network or the weights, or the network is
            recurrent (its steps depend on each other: use :func:`hooks`).
    """
    if network.memory is not None:
        raise ConfigurationError(
            f"recurrent must be 0 for fused gradients, got {network.policy.recurrent}: use hooks"
        )
    steps = prepare(network, batch, weights, terms)
    count, horizon = steps.weights.shape
    rows = steps.weights.new_zeros((count, network.num_parameters))
    tile = max(1, TILE_STEPS // max(horizon, 1))
    with torch.no_grad():
        for start in range(0, count if horizon else 0, tile):
            stop = min(start + tile, count)
            _fused_tile(network, steps.rows(start, stop), rows[start:stop])
    return rows


def hooks(
    network: TorchMlp, batch: TrajectoryBatch, weights: Weights, terms: Terms = NO_TERMS
) -> Tensor:
    """The same rows as :func:`fused` from Opacus' ``GradSampleModule`` hooks on [B, T, obs].

    No data loader, no ``make_private``, no ghost clipping; ``loss_reduction="sum"`` leaves scaling
    to us. The network given is not modified.

    Raises:
        MissingExtraError: opacus is not installed.
        ConfigurationError: as for :func:`fused`.
    """
    steps = prepare(network, batch, weights, terms)
    if not steps.weights.numel():
        return steps.weights.new_zeros((len(steps.weights), network.num_parameters))
    sampled = _grad_sample_module(network)
    observations = steps.observations.detach().requires_grad_()
    # asking for these gradients alone fires every hook, and spares the summed parameter gradients
    # that an ordinary backward pass would compute beside the samples
    asked = [observations, *_beside_observations(sampled)]
    with warnings.catch_warnings():
        # torch notes modules that have no input with a gradient: rightly
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        value = objective(sampled(observations), steps, network.policy.action)
        value.backward(inputs=asked)
    # opacus hangs the samples on the parameters, under a name that torch's types do not know
    samples = [getattr(p, "grad_sample") for p in sampled.parameters()]  # noqa: B009
    return torch.cat([sample.flatten(1) for sample in samples], dim=1).detach()


def loop(
    network: TorchMlp, batch: TrajectoryBatch, weights: Weights, terms: Terms = NO_TERMS
) -> Tensor:
    """The same rows as :func:`fused`, by one ordinary backward pass per trajectory: the oracle."""
    steps = prepare(network, batch, weights, terms)
    rows = []
    for i in range(len(steps.weights)):
        alone = steps.rows(i, i + 1)
        value = objective(network(alone.observations), alone, network.policy.action)
        gradients = torch.autograd.grad(value, list(network.parameters()))
        rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows) if rows else steps.weights.new_zeros((0, network.num_parameters))


def objective(outputs: Outputs, steps: Steps, action: str) -> Tensor:
    """Scalar sum_i L_i for the network's outputs: a sum over trajectories, never a mean."""
    score = scores(outputs, steps.actions, q_values=action == "q-values")
    total = (score * steps.weights).sum()
    if steps.values is not None and outputs.value is not None:
        total = total + (outputs.value * steps.values).sum()
    if steps.entropy is not None:
        total = total + (entropies(outputs) * steps.entropy).sum()
    if steps.guidance is not None:
        total = total - (divergences(steps.referred, outputs) * steps.guidance).sum()
    return total


def prepare(network: TorchMlp, batch: TrajectoryBatch, weights: Weights, terms: Terms) -> Steps:
    """Check ``batch`` against ``network`` and turn it into :class:`Steps`.

    An action outside the policy's range makes its own row not finite (the clipper then drops it)
    rather than raising: an agent must not stop visibly because of what its data are.
    """
    _check(network, batch, weights, terms)
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
    share = mask / mask.sum(dim=1, keepdim=True).clamp(min=1).to(network.dtype).sqrt()
    entropy = terms.entropy_weight * share if terms.entropy_weight else None
    values = None
    if network.critic is not None:
        values = torch.zeros_like(weight)
        if terms.values is not None:
            given = torch.from_numpy(np.ascontiguousarray(terms.values)).to(network.dtype)
            values = torch.where(mask, given, 0.0)
    guidance, reference = None, Outputs(weight)
    if terms.guidance is not None and terms.guidance.weight:
        guidance = terms.guidance.weight * share
        with torch.no_grad():
            reference = terms.guidance.reference(observations)
    return Steps(
        observations,
        actions,
        weight,
        values,
        entropy,
        guidance,
        None if guidance is None else reference.head,
        None if guidance is None else reference.log_std,
    )


def _check(network: TorchMlp, batch: TrajectoryBatch, weights: Weights, terms: Terms) -> None:
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
    if terms.values is not None and terms.values.shape != (rows, horizon):
        raise ConfigurationError(
            f"values must have shape {(rows, horizon)}, got {terms.values.shape}"
        )
    if terms.values is not None and network.critic is None:
        raise ConfigurationError("values need a policy with a critic, got one without")
    guided = terms.guidance.weight if terms.guidance is not None else 0.0
    for name, value in (("entropy_weight", terms.entropy_weight), ("guidance weight", guided)):
        if not (math.isfinite(value) and value >= 0):
            raise ConfigurationError(f"{name} must be finite and >= 0, got {value!r}")
        if value and network.policy.action == "q-values":
            raise ConfigurationError(f"{name} must be 0 for Q values, got {value!r}")


def _fused_tile(network: TorchMlp, steps: Steps, rows: Tensor) -> None:
    """Write the gradients of the trajectories in ``steps`` to ``rows`` [b, d]."""
    count, horizon = steps.weights.shape
    flat = steps.map(lambda tensor: tensor.flatten(0, 1))
    end = network.policy.actor_parameters
    inputs, head = _forward(network.linear_layers, flat.observations)
    if network.log_std is None:
        q_values = network.policy.action == "q-values"
        delta = _value_delta(head, flat) if q_values else _categorical_delta(head, flat)
    else:
        delta, spread = _gaussian_delta(head, network.log_std.value, flat)
        begin = end - network.num_outputs
        torch.sum(spread.view(count, horizon, -1), 1, out=rows[:, begin:end])
        end = begin
    _backward(network.linear_layers, delta, inputs, rows, end)
    if network.critic is not None and flat.values is not None:
        inputs, _value = _forward(network.critic_layers, flat.observations)
        delta = flat.values[:, None].clone()
        _backward(network.critic_layers, delta, inputs, rows, network.num_parameters)


def _forward(layers: list[torch.nn.Linear], observations: Tensor) -> tuple[list[Tensor], Tensor]:
    """The input of every layer, and the output of the last."""
    inputs = [observations]
    for layer in layers[:-1]:
        inputs.append(torch.addmm(layer.bias, inputs[-1], layer.weight.t()).tanh_())
    head = layers[-1]
    return inputs, torch.addmm(head.bias, inputs[-1], head.weight.t())


def _backward(
    layers: list[torch.nn.Linear], delta: Tensor, inputs: list[Tensor], rows: Tensor, end: int
) -> None:
    """Write the rows of a network whose parameters end before column ``end``; uses up delta."""
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
    """dL/dlogits [N, n]: w (onehot(a) - p) - entropy p (log p + H) + guidance (ref - p)."""
    weight = flat.weights[:, None]
    if flat.entropy is None:
        delta = torch.softmax(logits, -1).mul_(-weight)
    else:
        log_p = torch.log_softmax(logits, -1)
        p = log_p.exp()
        entropy = -(p * log_p).sum(-1, keepdim=True)
        delta = p * -(weight + flat.entropy[:, None] * (log_p + entropy))
    if flat.guidance is not None:
        apart = torch.softmax(flat.referred.head, -1) - torch.softmax(logits, -1)
        delta += flat.guidance[:, None] * apart
    return delta.scatter_add_(1, flat.actions[:, None], weight)


def _value_delta(values: Tensor, flat: Steps) -> Tensor:
    """dL/dQ [N, n]: w at the action that was taken."""
    return torch.zeros_like(values).scatter_(1, flat.actions[:, None], flat.weights[:, None])


def _gaussian_delta(mean: Tensor, log_std: Tensor, flat: Steps) -> tuple[Tensor, Tensor]:
    """dL/dmean and per-step dL/dlog_std, both [N, k]; z = (a - mean) / std."""
    weight = flat.weights[:, None]
    inverse = torch.exp(-log_std)
    z = (flat.actions - mean) * inverse
    spread = (z * z - 1.0) * weight
    delta = z * inverse * weight
    if flat.entropy is not None:
        spread += flat.entropy[:, None]
    if flat.guidance is not None and flat.referred.log_std is not None:
        # KL = log(s / s_ref) + (s_ref^2 + gap^2) / (2 s^2) - 1/2 per coordinate
        gap = (flat.referred.head - mean) * inverse
        ratio = torch.exp(2.0 * (flat.referred.log_std - log_std))
        delta += flat.guidance[:, None] * gap * inverse
        spread += flat.guidance[:, None] * (ratio + gap * gap - 1.0)
    return delta, spread


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


def _beside_observations(network: torch.nn.Module) -> list[Tensor]:
    """Parameters of modules that are not, at every call, on a path from the observations.

    The log standard deviation, and what a GRU makes of its state, which is a constant at step 0:
    asked for with the observations, all their hooks fire.
    """
    from opacus.layers.dp_rnn import DPGRUCell

    log_std = [module.value for module in network.modules() if isinstance(module, LogStd)]
    cells = [module.hh.bias for module in network.modules() if isinstance(module, DPGRUCell)]
    return [*log_std, *cells]


def _log_std_grad_sample(
    layer: LogStd, activations: list[Tensor], backprops: Tensor
) -> dict[torch.nn.Parameter, Tensor]:
    """Opacus' sampler for the state-independent log standard deviation: a sum over steps."""
    return {layer.value: backprops.sum(dim=1)}
