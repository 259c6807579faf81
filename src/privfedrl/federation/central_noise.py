"""Noise on an opened sum, by the one party that the plan trusts with it.

Guarantee: a plan with central noise releases no sum without a fresh share on every coordinate; any
other plan's sum is left as it is. Whoever calls this has seen the sum without noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from privfedrl.federation.setup import RoundSetup
from privfedrl.primitives.random import Entropy
from privfedrl.privacy import CentralDiscreteGaussian

__all__ = ["with_central_noise"]


def with_central_noise(
    setup: RoundSetup, ring_sum: NDArray[np.unsignedinteger], entropy: Entropy
) -> NDArray[np.unsignedinteger]:
    """The sum and, where the plan's mechanism is central, one noise share: modulo m, lane by lane.

    Args:
        ring_sum: uint32 or uint64 [words], an opened sum.
        entropy: for the noise, cryptographic.
    """
    if not isinstance(setup.mechanism, CentralDiscreteGaussian):
        return ring_sum
    noise = setup.codec.to_ring(setup.mechanism.sample_share(entropy))
    total: NDArray[np.unsignedinteger] = np.add(ring_sum, noise, dtype=noise.dtype)
    return total
