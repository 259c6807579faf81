"""Shamir secret sharing of 32-byte secrets over GF(65521), exact in float64 matrix products.

Guarantee: any ``threshold`` shares give the secret back; fewer are jointly uniform whatever the
secret is.

Notation: p = 65521 (the largest 16-bit prime), t = threshold, N = number of shares, m = secrets
shared at once, 18 limbs of 15 bits per secret. Share x (1 <= x <= N) is the value at x of one
random polynomial of degree t - 1 per limb. Products of residues are below 2^32, so sums of t of
them are exact in float64 while t * 65520^2 < 2^53. Reference: Shamir, How to share a secret, 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError, RemoteProtocolError
from privfedrl.primitives.random import Entropy, draw

__all__ = [
    "LIMBS",
    "MAX_SHARES",
    "PRIME",
    "SECRET_BYTES",
    "SHARE_BYTES",
    "combine",
    "decode_shares",
    "encode_share",
    "extrapolate",
    "split",
]

PRIME: Final = 65521
MAX_SHARES: Final = PRIME - 1
SECRET_BYTES: Final = 32
LIMBS: Final = 18
SHARE_BYTES: Final = 2 * LIMBS
_LIMB_BITS: Final = 15

Shares = NDArray[np.uint16]


def split(secrets: Sequence[bytes], *, threshold: int, num_shares: int, entropy: Entropy) -> Shares:
    """Share m secrets with independent polynomials.

    Args:
        secrets: m byte strings of 32 bytes.
        threshold: t, 1 <= t <= num_shares.
        num_shares: N, at most 65520.
    Returns:
        uint16 [N, m, 18]; row i belongs to x = i + 1.
    Raises:
        ConfigurationError: a length or a count is out of range.
    """
    if not 1 <= threshold <= num_shares <= MAX_SHARES:
        raise ConfigurationError(
            f"1 <= threshold <= num_shares <= {MAX_SHARES} must hold, "
            f"got threshold {threshold} and num_shares {num_shares}"
        )
    if any(len(secret) != SECRET_BYTES for secret in secrets):
        raise ConfigurationError(f"every secret must be {SECRET_BYTES} bytes long")
    columns = len(secrets) * LIMBS
    coefficients = np.empty((threshold, columns))
    coefficients[0] = np.concatenate([_to_limbs(secret) for secret in secrets])
    coefficients[1:] = _uniform((threshold - 1) * columns, entropy).reshape(-1, columns)
    values = np.mod(_vandermonde(threshold, num_shares) @ coefficients, PRIME)
    return values.astype(np.uint16).reshape(num_shares, len(secrets), LIMBS)


def combine(shares: Shares, points: Sequence[int]) -> tuple[bytes | None, ...]:
    """Interpolate m secrets at 0 from t shares each, all at the same points.

    Args:
        shares: uint16 [t, m, 18], residues below p.
        points: t distinct values of x.
    Returns:
        m secrets; None where the values do not encode 32 bytes, which proves a wrong share. A wrong
        share can also give a wrong secret: check it against a commitment.
    """
    limbs = extrapolate(shares, points, 0)
    return tuple(_from_limbs(row) for row in limbs)


def extrapolate(shares: Shares, points: Sequence[int], x: int) -> NDArray[np.int64]:
    """The value at ``x`` of the polynomials through t shares: int64 [m, 18], below p."""
    if len(points) == 0 or shares.shape[0] != len(points) or shares.shape[2:] != (LIMBS,):
        raise ConfigurationError("shares must have shape [points, secrets, 18], points >= 1")
    weights = _lagrange(tuple(points), x)
    values = weights @ shares.reshape(len(points), -1).astype(np.float64)
    limbs: NDArray[np.int64] = np.mod(values, PRIME).astype(np.int64).reshape(-1, LIMBS)
    return limbs


def encode_share(share: Shares) -> bytes:
    """uint16 [..., 18] to 36 bytes per share, little-endian limbs."""
    return share.astype("<u2").tobytes()


def decode_shares(data: bytes, *, count: int) -> Shares:
    """Inverse of :func:`encode_share` for ``count`` shares: uint16 [count, 18].

    Raises:
        RemoteProtocolError: wrong length, or a limb that is not a residue below p.
    """
    if len(data) != count * SHARE_BYTES:
        raise RemoteProtocolError(
            f"{count} shares must be {count * SHARE_BYTES} bytes, got {len(data)}"
        )
    shares = np.frombuffer(data, dtype="<u2").astype(np.uint16)
    if (shares >= PRIME).any():
        raise RemoteProtocolError("a share has a limb that is not below 65521")
    return shares.reshape(count, LIMBS)


def _to_limbs(secret: bytes) -> NDArray[np.float64]:
    number = int.from_bytes(secret, "little")
    mask = (1 << _LIMB_BITS) - 1
    return np.array([(number >> (_LIMB_BITS * k)) & mask for k in range(LIMBS)], dtype=np.float64)


def _from_limbs(limbs: NDArray[np.int64]) -> bytes | None:
    values = limbs.tolist()
    if max(values) >> _LIMB_BITS:
        return None
    number = sum(value << (_LIMB_BITS * k) for k, value in enumerate(values))
    return None if number >> (8 * SECRET_BYTES) else number.to_bytes(SECRET_BYTES, "little")


def _uniform(count: int, entropy: Entropy) -> NDArray[np.float64]:
    """``count`` uniform residues mod p, by rejection of the 15 values from 65521 to 65535."""
    kept: list[NDArray[Any]] = []
    missing = count
    while missing > 0:
        values = np.frombuffer(draw(entropy, 2 * missing), dtype="<u2")
        kept.append(values[values < PRIME])
        missing -= kept[-1].size
    return np.concatenate([*kept, np.empty(0, np.uint16)]).astype(np.float64)


@lru_cache(maxsize=16)
def _vandermonde(threshold: int, num_shares: int) -> NDArray[np.float64]:
    """float64 [N, t], entry (i, k) = (i + 1)^k mod p."""
    points = np.arange(1, num_shares + 1, dtype=np.int64)
    powers = np.ones((num_shares, threshold), dtype=np.int64)
    for k in range(1, threshold):
        powers[:, k] = powers[:, k - 1] * points % PRIME
    matrix = powers.astype(np.float64)
    matrix.setflags(write=False)
    return matrix


@lru_cache(maxsize=1024)
def _lagrange(points: tuple[int, ...], x: int) -> NDArray[np.float64]:
    """float64 [t]: the weights of the shares in the value at ``x``; points are public."""
    if len(set(points)) != len(points) or not all(1 <= point <= MAX_SHARES for point in points):
        raise ConfigurationError(f"points must be distinct and from 1 to {MAX_SHARES}")
    xs = np.array(points, dtype=np.int64)
    numerators = np.ones_like(xs)
    denominators = np.ones_like(xs)
    for k, point in enumerate(points):
        others = np.arange(xs.size) != k
        numerators[others] = numerators[others] * (x - point) % PRIME
        denominators[others] = denominators[others] * (xs[others] - point) % PRIME
    inverses = np.array([pow(int(value), -1, PRIME) for value in denominators], dtype=np.int64)
    weights = (numerators * inverses % PRIME).astype(np.float64)
    weights.setflags(write=False)
    return weights
