"""Noise on an opened sum, by the one party that the plan trusts with it.

Guarantee: a plan with central noise releases no sum without a fresh share on every coordinate, and
no digest of one; any other plan's sum is left as it is. Whoever calls this has seen the sum without
noise.

Where noise is correlated over rounds, residues are mixed, never centred sums: a mixture modulo m is
a function of the integer mixture, so a sum that wraps (an agent may send what it likes) costs
accuracy as ever. A centred sum would jump by m there, and sixteen times m would stand out of any
noise.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import PrivacyError
from privfedrl.federation.setup import RoundSetup
from privfedrl.parties.frames import HEADER_BYTES
from privfedrl.primitives.random import Entropy
from privfedrl.privacy import CentralDiscreteGaussian
from privfedrl.privacy.correlated import SumHistory, release
from privfedrl.privacy.mechanisms import CorrelatedDiscreteGaussian
from privfedrl.secagg.agreement import sum_digest
from privfedrl.secagg.messages import config_digest
from privfedrl.secagg.transcript import RoundRecord

__all__ = ["about_the_release", "mixed_release", "with_central_noise"]

RingVector = NDArray[np.unsignedinteger]


def with_central_noise(setup: RoundSetup, ring_sum: RingVector, entropy: Entropy) -> RingVector:
    """The sum and, where the plan's mechanism is central, one noise share: modulo m, lane by lane.

    Args:
        ring_sum: uint32 or uint64 [words], an opened sum.
        entropy: for the noise, cryptographic.
    Raises:
        PrivacyError: the plan's noise is correlated over rounds, see :func:`mixed_release`.
    """
    if setup.correlated is not None:
        raise PrivacyError("noise that is correlated over rounds needs the history of sums")
    if not isinstance(setup.mechanism, CentralDiscreteGaussian):
        return ring_sum
    noise = setup.codec.to_ring(setup.mechanism.sample_share(entropy))
    total: RingVector = np.add(ring_sum, noise, dtype=noise.dtype)
    return total


def mixed_release(
    setup: RoundSetup,
    history: SumHistory,
    ring_sum: RingVector,
    *,
    release_id: str,
    entropy: Entropy,
) -> tuple[RingVector, SumHistory]:
    """The mixture of this sum and the last ones with one fresh share: modulo m, lane by lane.

    Args:
        history: residues of the last sums, int64 [words].
        ring_sum: uint32 or uint64 [words], an opened sum.
        release_id: "task/round/attempt". It stands for the trajectories in the sum: each is in one
            batch, and its agent's ledger refuses to release a batch twice, so another id means
            other trajectories.
        entropy: for the noise, cryptographic.
    Returns:
        What may leave once the history for the next round is durable, and that history.
    Raises:
        PrivacyError: a release of that id is in the history, or the plan does not mix.
    """
    mechanism = setup.mechanism
    if not isinstance(mechanism, CorrelatedDiscreteGaussian):
        raise PrivacyError("a history of sums is for plans with privacy.correlation_bands")

    def share(words: int) -> NDArray[np.int64]:
        return setup.codec.to_ring(mechanism.sample_share(entropy)).astype(np.int64)

    # packing into words modulo m is linear, so integer multiples of words are those of coordinates
    mixed, following = release(
        mechanism.noise, history, ring_sum.astype(np.int64), units=(release_id,), sample=share
    )
    return mixed.astype(ring_sum.dtype), following


def about_the_release(record: RoundRecord, released: RingVector) -> RoundRecord:
    """A masked round's record with the digest of what was released in place of the exact sum's.

    Records are published and later rounds are signed over them: a digest of the exact sum would
    tell whoever can guess that sum.
    """
    size = int.from_bytes(record.config[HEADER_BYTES - 4 : HEADER_BYTES], "big")
    config = config_digest(record.config[HEADER_BYTES : HEADER_BYTES + size])
    data = released.astype(released.dtype.newbyteorder("<"), copy=False).tobytes()
    return replace(record, sum_digest=sum_digest(config, data))
