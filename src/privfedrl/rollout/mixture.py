"""Acting step by step now by one policy, now by another: exploring with the published policy.

Guarantee: which of the two acts depends on the step's own random numbers alone, so an action is
taken with the probability of the mixture mu = (1 - p) pi + p guide, and pi / mu <= 1 / (1 - p).
What a row gets depends on the parameters and that row alone, as for one policy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from privfedrl.errors import ConfigurationError
from privfedrl.rollout.policies import BoundPolicy, MlpPolicy

__all__ = ["BoundMixture", "Guide"]

Float32 = NDArray[np.float32]
Actions = NDArray[np.int64] | NDArray[np.bool_] | Float32


class Guide(NamedTuple):
    """Flat parameters of the policy that sometimes acts, and how often: probability in [0, 1)."""

    parameters: NDArray[np.floating]
    probability: float


class BoundMixture:
    """Two bound policies of one shape; acts like a ``BoundPolicy``."""

    def __init__(self, policy: MlpPolicy, own: BoundPolicy, guide: BoundPolicy, share: float):
        if not 0.0 <= share < 1.0:
            raise ConfigurationError(f"probability must be in [0, 1), got {share!r}")
        self.policy, self._own, self._guide = policy, own, guide
        # the first draw of a step decides: uniform, or standard normal for Gaussian policies
        self._below = np.float32(ndtri(share) if policy.action == "gaussian" else share)

    def begin(self, rows: int) -> None:
        """See ``BoundPolicy.begin``."""
        self._own.begin(rows)
        self._guide.begin(rows)

    def select(self, kept: NDArray[np.intp]) -> None:
        """See ``BoundPolicy.select``."""
        self._own.select(kept)
        self._guide.select(kept)

    def draws(self, rng: np.random.Generator, steps: int, rows: int) -> Float32:
        """As ``BoundPolicy.draws`` with one more number per row: [steps, rows, 1 + size]."""
        if self.policy.action == "gaussian":
            size = 1 + self.policy.action_size
            return rng.standard_normal((steps, rows, size), dtype=np.float32)
        return rng.random((steps, rows, 2), dtype=np.float32)

    def forward(self, observations: Float32) -> tuple[Float32, Float32]:
        """What both say, each float32 [n, o]."""
        return self._own.forward(observations), self._guide.forward(observations)

    def sample(self, outputs: tuple[Float32, Float32], draws: Float32) -> Actions:
        """Actions for one step of :meth:`draws`."""
        guided = draws[:, 0] < self._below
        rest = draws[:, 1:] if self.policy.action == "gaussian" else draws[:, 1]
        own, guide = self._own.sample(outputs[0], rest), self._guide.sample(outputs[1], rest)
        chosen = guided[:, None] if own.ndim == 2 else guided
        mixed: Actions = np.where(chosen, guide, own)
        return mixed

    def greedy(self, outputs: tuple[Float32, Float32]) -> NDArray[np.int64] | Float32:
        """The own policy's most likely action: who is guided is still judged alone."""
        return self._own.greedy(outputs[0])

    def to_environment(self, actions: NDArray[np.int64] | Float32) -> NDArray[np.int64] | Float32:
        """See ``BoundPolicy.to_environment``."""
        return self._own.to_environment(actions)
