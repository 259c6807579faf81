"""The sum that the protocol computes, without the protocol.

Guarantee: bit-identical to the protected result for the same vectors and survivors. It protects
nothing: whoever calls it sees every vector. For training studies and as the tests' oracle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from privfedrl.errors import ConfigurationError
from privfedrl.primitives.stream import RingVector

__all__ = ["ideal_sum"]


def ideal_sum(
    vectors: Mapping[str, RingVector], survivors: Iterable[str], *, ring_bits: int
) -> RingVector:
    """The sum over ``survivors``, mod 2^ring_bits.

    Args:
        vectors: per name one uint32 [D] (ring_bits 32) or uint64 [D] (ring_bits 64).
        survivors: at least one name, each once.
    Returns:
        a new array of the same dtype, [D].
    Raises:
        ConfigurationError: no survivor, an unknown or repeated one, or unequal shapes or dtypes.
    """
    if ring_bits not in (32, 64):
        raise ConfigurationError(f"ring_bits must be 32 or 64, got {ring_bits}")
    dtype = np.dtype(f"uint{ring_bits}")
    names = tuple(survivors)
    if not names or len(set(names)) != len(names) or not set(names) <= set(vectors):
        raise ConfigurationError("survivors must be known names, at least one, each once")
    total: RingVector = np.zeros(np.shape(vectors[names[0]]), dtype=dtype)
    for name in names:
        vector = vectors[name]
        if vector.dtype != dtype or vector.shape != total.shape or vector.ndim != 1:
            raise ConfigurationError(f"every vector must be {dtype} of one length, {name}'s is not")
        np.add(total, vector, out=total)
    return total
