"""The seam between environments and rollout.

Guarantee: a row lives from ``reset`` to its own end; nothing resets itself and nothing survives
the next ``reset``.

Notation: n rows that are still stepped (``num_envs`` after a reset, fewer after ``select``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError, EnvironmentFault

__all__ = ["Step", "VectorEnv", "row_shares"]

Step = tuple[
    NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]
]  # observations [n, obs], rewards [n], terminated [n], truncated [n]


class VectorEnv(Protocol):
    """A block of independent environments with one observation and action shape.

    Attributes:
        num_envs: rows after a reset.
        observation_size: length of a flat observation.
        action_kind: ``discrete`` or ``continuous``.
        num_actions: number of discrete actions (0 when continuous).
        action_size: dimension of a continuous action (0 when discrete).
        action_low, action_high: float32 [action_size], public bounds; actions are clipped to them.
        failures: what went wrong since the last reset, by row as numbered at the reset. A failed
            row has ended; its trajectory counts as absent. One row's failure must not end another
            row: that would let one trajectory decide about the others.
    """

    num_envs: int
    observation_size: int
    action_kind: Literal["discrete", "continuous"]
    num_actions: int
    action_size: int
    action_low: NDArray[np.float32]
    action_high: NDArray[np.float32]
    failures: dict[int, EnvironmentFault]

    def reset(
        self, rng: np.random.Generator | Sequence[np.random.Generator]
    ) -> NDArray[np.float32]:
        """Start all rows afresh; returns observations float32 [num_envs, obs].

        Args:
            rng: one generator for all rows, or one per equal share of consecutive rows; a share
                depends on its own generator only.
        """
        ...

    def step(self, actions: NDArray[np.int64] | NDArray[np.float32]) -> Step:
        """Advance every row that has not ended.

        Args:
            actions: int64 [n] in 0..num_actions-1, or float32 [n, action_size].
        Returns:
            Arrays that stay valid until the next call. ``terminated`` and ``truncated`` exclude
            each other and stay set once a row has ended; the other values of such a row are
            meaningless.
        Raises:
            EnvironmentFault: every row has failed.
        """
        ...

    def select(self, rows: NDArray[np.intp]) -> None:
        """Keep only these rows (indices into the current n, ascending) until the next reset."""
        ...

    def close(self) -> None:
        """Free what the environments hold; the object is unusable afterwards."""
        ...


def row_shares(
    rng: np.random.Generator | Sequence[np.random.Generator], num_envs: int
) -> list[tuple[np.random.Generator, int]]:
    """(generator, number of rows) per equal share of ``num_envs`` rows."""
    if isinstance(rng, np.random.Generator):
        return [(rng, num_envs)]
    if len(rng) == 0 or num_envs % len(rng):
        raise ConfigurationError(
            f"rng must hold a number of generators that divides {num_envs} rows, got {len(rng)}"
        )
    return [(one, num_envs // len(rng)) for one in rng]
