"""What one agent adds to the sum: experience, clipped rows, integers, noise, ring vector.

Guarantee: whatever the environment does (raise, NaN, nothing), the result has the same shape and the
same noise share; each unit's integer row is within the declared sensitivity (checked on integers).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import EnvironmentFault
from privfedrl.federation.setup import RoundSetup
from privfedrl.primitives.random import Entropy
from privfedrl.rollout import TrajectoryBatch
from privfedrl.training import LocalTrainer, LocalUpdate, ReinforceSettings

__all__ = ["Contribution", "contribute", "local_trainer"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contribution:
    """A vector that is ready to be masked.

    Attributes:
        vector: uint32 or uint64 [padded]; sum of the units' integers and one noise share, mod m.
        batch_id: identity of the trajectories in it; spent when the vector leaves.
        fault: why the experience is missing (the rows are then zero). Stays in the agent.
    """

    vector: NDArray[np.unsignedinteger]
    batch_id: bytes
    fault: EnvironmentFault | None

    def __repr__(self) -> str:
        return f"Contribution(length={self.vector.shape[0]})"
