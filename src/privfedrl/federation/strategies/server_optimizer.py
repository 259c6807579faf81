"""Server optimisers: pure functions from (parameters, state, released mean) to the next ones.

Guarantee: only released sums and public constants enter, so every step is post-processing and
costs no epsilon. The state is a value; resuming from a saved one continues bit for bit.

Notation: g = released mean direction (ascent), nu = known noise variance of g per coordinate.
Reference: Reddi et al. 2021, Adaptive Federated Optimization, Algorithm 2; the correction of the
second moment follows Tang et al. 2024, DP-AdamBC.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError
from privfedrl.plan import FederationPlan

__all__ = ["SERVER_OPTIMIZERS", "OptimizerState", "initial_state", "learning_rate", "server_step"]

Vector = NDArray[np.float64]
# a signal below half the noise is not told from chance: without this floor Adam would amplify noise
SIGNAL_FLOOR = 0.25


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OptimizerState:
    """Steps taken and the two moments (zeros for SGD), each float64 [d]."""

    step: int
    first: Vector
    second: Vector


def initial_state(dimension: int) -> OptimizerState:
    """No step taken, both moments zero."""
    return OptimizerState(step=0, first=np.zeros(dimension), second=np.zeros(dimension))


def learning_rate(plan: FederationPlan, step: int) -> float:
    """The public schedule: linear from learning_rate to (1 - decay) of it over the run."""
    progress = min(step / plan.rounds, 1.0)
    return plan.learning_rate * (1.0 - plan.learning_rate_decay * progress)


def server_step(
    plan: FederationPlan,
    parameters: Vector,
    state: OptimizerState,
    direction: Vector,
    *,
    noise_variance: float,
) -> tuple[Vector, OptimizerState]:
    """One ascent step along a released mean.

    Args:
        parameters: float64 [d].
        direction: float64 [d], released sum divided by the public count.
        noise_variance: variance of the noise in each coordinate of ``direction``, known to all.
    Returns:
        new parameters and state; the arguments are unchanged.
    Raises:
        ConfigurationError: shapes differ or a value is not finite.
    """
    if direction.shape != parameters.shape or state.first.shape != parameters.shape:
        raise ConfigurationError(
            f"direction must have shape {parameters.shape}, got {direction.shape}"
        )
    if not np.isfinite(direction).all():
        raise ConfigurationError("direction must be finite")
    step = SERVER_OPTIMIZERS[plan.server_optimizer]
    return step(plan, parameters, state, direction, noise_variance)


def _sgd(
    plan: FederationPlan, parameters: Vector, state: OptimizerState, g: Vector, nu: float
) -> tuple[Vector, OptimizerState]:
    moved = parameters + learning_rate(plan, state.step) * g
    return moved, OptimizerState(step=state.step + 1, first=state.first, second=state.second)


def _adam(
    plan: FederationPlan, parameters: Vector, state: OptimizerState, g: Vector, nu: float
) -> tuple[Vector, OptimizerState]:
    step = state.step + 1
    first = plan.beta1 * state.first + (1 - plan.beta1) * g
    second = plan.beta2 * state.second + (1 - plan.beta2) * g * g
    mean = first / (1 - plan.beta1**step)
    scale = second / (1 - plan.beta2**step)
    if plan.bias_correction:
        # E[second] holds nu on top of the signal; what is left may be negative by chance
        scale = np.maximum(scale - nu, max(SIGNAL_FLOOR * nu, plan.tau**2))
    moved = parameters + learning_rate(plan, state.step) * mean / (np.sqrt(scale) + plan.tau)
    return moved, OptimizerState(step=step, first=first, second=second)


_Step = Callable[
    [FederationPlan, Vector, OptimizerState, Vector, float], tuple[Vector, OptimizerState]
]
SERVER_OPTIMIZERS: dict[str, _Step] = {"adam": _adam, "sgd": _sgd}
