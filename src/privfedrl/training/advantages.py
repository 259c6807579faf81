"""How much better an action was than a critic expected, one trajectory at a time.

Guarantee: row i of every result depends on row i of the inputs alone, bit for bit.

Notation: [B, T] rewards r, values V(o_t); delta_t = r_t + gamma V(o_{t+1}) - V(o_t);
A_t = delta_t + gamma lambda A_{t+1} within one trajectory.
References: Schulman et al. 2016, High-dimensional continuous control using generalized advantage
estimation, equation 16; Schulman et al. 2017, Proximal policy optimization, equation 7.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["generalised_advantages", "surrogate_weights"]

Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]


def generalised_advantages(
    rewards: Float64, values: Float64, mask: Bool, terminated: Bool, *, gamma: float, lam: float
) -> tuple[Float64, Bool]:
    """Advantages of the steps whose successor is known.

    A trajectory that was cut ends with the state seen before its last action: that state is worth
    what the critic says and is not trained on. Nothing is invented for the state after it, at the
    price of one step (and its reward) per cut trajectory.

    Args:
        rewards, values: float64 [B, T]; entries outside the mask are not read.
        mask: bool [B, T], every row True then False.
        terminated: bool [B]; all other rows count as cut.
        gamma, lam: discount and trace, in [0, 1].
    Returns:
        float64 [B, T], 0 at steps without an advantage; bool [B, T], the steps that have one.
    """
    rows, steps = mask.shape
    known = mask.copy()
    known[:, :-1] &= mask[:, 1:] | terminated[:, None]
    if steps:
        known[:, -1] &= terminated
    # time first: one contiguous row per step of the recursion
    value = np.zeros((steps + 1, rows))
    value[:-1] = np.where(mask, values, 0.0).T
    delta = np.where(known, rewards, 0.0).T + gamma * value[1:] - value[:-1]
    delta[~known.T] = 0.0
    for t in range(steps - 2, -1, -1):
        delta[t] += (gamma * lam) * delta[t + 1]
    return np.where(known, delta.T, 0.0), known


def surrogate_weights(
    ratio: NDArray[np.floating], advantages: NDArray[np.floating], clip_range: float
) -> NDArray[np.floating]:
    """Derivative of min(ratio A, clip(ratio) A) by log pi(action), of the shape of ``ratio``.

    Zero where the clipped term is the smaller one: the ratio is outside 1 +- clip_range on the
    side to which the advantage pushes it.
    """
    gain = ratio * advantages
    clipped = np.clip(ratio, 1.0 - clip_range, 1.0 + clip_range) * advantages
    return np.where(gain > clipped, 0.0, gain)
