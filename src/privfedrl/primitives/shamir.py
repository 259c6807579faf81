"""Shamir secret sharing of 32-byte secrets over GF(65521), exact in float64 matrix products.

Guarantee: any ``threshold`` shares give the secret back; fewer are jointly uniform whatever the
secret is. Secrets and shares meet only additions, products, shifts and comparisons: no look-up
table is ever indexed by them.

Notation: p = 65521 (the largest 16-bit prime), t = threshold, N = number of shares, m = secrets or
owners handled at once, 18 limbs of 15 bits per secret. The share at x (1 <= x < p) is the value at
x of one random polynomial of degree t - 1 per limb. Products of residues are below 2^32, so sums of
t of them are below 2^48 (t <= 65520): exact in float64, and :func:`_reduce` is exact on them.
Reference: Shamir, How to share a secret, 1979.
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
    "combine_each",
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
_LIMB_MASK: Final = (1 << _LIMB_BITS) - 1
_WORDS: Final = SECRET_BYTES // 2
_INVERSE: Final = 1.0 / PRIME
_BLOCK: Final = 1 << 16
"""float64 values worked on at once: 512 KB, so that a block stays in the second level cache."""

Shares = NDArray[np.uint16]
Residues = NDArray[np.float64]


def split(
    secrets: Sequence[bytes],
    *,
    threshold: int,
    points: Sequence[int],
    entropy: Entropy,
) -> Shares:
    """Share m secrets with independent polynomials.

    Args:
        secrets: m byte strings of 32 bytes.
        threshold: t, 1 <= t <= N.
        points: the N public values of x, distinct and from 1 to 65520.
    Returns:
        uint16 [N, m, 18]; row i belongs to points[i].
    Raises:
        ConfigurationError: a length, a count or a point is out of range.
    """
    count = len(points)
    if not 1 <= threshold <= count <= MAX_SHARES:
        raise ConfigurationError(
            f"1 <= threshold <= number of shares <= {MAX_SHARES} must hold, "
            f"got threshold {threshold} and {count} shares"
        )
    if any(len(secret) != SECRET_BYTES for secret in secrets):
        raise ConfigurationError(f"every secret must be {SECRET_BYTES} bytes long")
    columns = len(secrets) * LIMBS
    coefficients = np.empty((threshold, columns))
    coefficients[0] = _to_limbs(b"".join(secrets)).ravel()
    coefficients[1:] = _uniform((threshold - 1) * columns, entropy).reshape(-1, columns)
    powers = _vandermonde(threshold, tuple(points))
    values = _reduce(powers @ coefficients)
    return values.astype(np.uint16).reshape(count, len(secrets), LIMBS)


def combine(shares: Shares, points: Sequence[int]) -> tuple[bytes | None, ...]:
    """Interpolate m secrets at 0 from t shares each, all at the same points.

    Args:
        shares: uint16 [t, m, 18], residues below p.
        points: t distinct values of x.
    Returns:
        m secrets; None where the values do not encode 32 bytes, which proves a wrong share. A wrong
        share can also give a wrong secret: check it against a commitment.
    Raises:
        ConfigurationError: the shapes do not fit, or a point is repeated or out of range.
    """
    return _from_limbs(extrapolate(shares, points, 0))


def combine_each(shares: Shares, points: NDArray[np.integer[Any]]) -> tuple[bytes | None, ...]:
    """Interpolate m secrets at 0, each from its own t shares at its own points.

    Args:
        shares: uint16 [m, t, 18], residues below p; m may be 0.
        points: integers [m, t]; row i holds the t distinct values of x of secret i.
    Returns, Raises:
        as :func:`combine`.
    """
    xs = np.asarray(points)
    if xs.ndim != 2 or xs.dtype.kind not in "iu" or shares.shape != (*xs.shape, LIMBS):
        raise ConfigurationError("shares must have shape [secrets, points, 18], points [m, t]")
    owners, count = xs.shape
    if owners and not count:
        raise ConfigurationError("points must be >= 1 per secret, got 0")
    limbs = np.empty((owners, LIMBS), dtype=np.int64)
    step = max(1, _BLOCK // max(1, count * count))
    for start in range(0, owners, step):
        block = slice(start, start + step)
        weights = _weights(xs[block].astype(np.float64), 0)
        values = weights[:, np.newaxis, :] @ shares[block].astype(np.float64)
        limbs[block] = _reduce(values[:, 0, :])
    return _from_limbs(limbs)


def extrapolate(shares: Shares, points: Sequence[int], x: int) -> NDArray[np.int64]:
    """The value at ``x`` of the polynomials through t shares: int64 [m, 18], below p."""
    if len(points) == 0 or shares.shape[0] != len(points) or shares.shape[2:] != (LIMBS,):
        raise ConfigurationError("shares must have shape [points, secrets, 18], points >= 1")
    weights = _lagrange(tuple(points), x)
    rows = shares.reshape(len(points), -1)
    values = np.empty(rows.shape[1])
    step = max(1, _BLOCK // len(points))
    for start in range(0, values.size, step):
        block = slice(start, start + step)
        np.matmul(weights, rows[:, block].astype(np.float64), out=values[block])
    return _reduce(values).astype(np.int64).reshape(-1, LIMBS)


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


def _reduce(values: Residues) -> Residues:
    """``values`` mod p, for integers of at most 2^50 in size, without a division.

    (v + 1/2) / p is at least 1 / 2p > 2^-17 away from every integer. The computed quotient q is
    below 2^35 and two roundings move it by less than q 2^-52 < 2^-17, so its floor is exact.
    """
    quotients = values + 0.5
    quotients *= _INVERSE
    np.floor(quotients, out=quotients)
    quotients *= PRIME
    result: Residues = np.subtract(values, quotients, out=quotients)
    return result


def _to_limbs(secrets: bytes) -> NDArray[np.int64]:
    """m secrets one after the other to int64 [m, 18]: limb k is bits 15 k to 15 k + 14."""
    words = np.frombuffer(secrets, dtype="<u2").reshape(-1, _WORDS).astype(np.int64)
    limbs = np.zeros((words.shape[0], LIMBS), dtype=np.int64)
    shift = np.arange(_WORDS)  # limb k starts k bits before the 16-bit word k
    limbs[:, :_WORDS] = words << shift
    limbs[:, 1 : _WORDS + 1] |= words >> (15 - shift)
    limbs[:, LIMBS - 1] = words[:, _WORDS - 1] >> _LIMB_BITS
    return limbs & _LIMB_MASK


def _from_limbs(limbs: NDArray[np.int64]) -> tuple[bytes | None, ...]:
    """Inverse of :func:`_to_limbs`; None where a limb or the whole number is too large."""
    shift = np.arange(_WORDS)
    words = limbs[:, :_WORDS] >> shift
    words |= limbs[:, 1 : _WORDS + 1] << (15 - shift)
    words |= limbs[:, 2:] << (30 - shift)  # reaches the last word only: limb 17 is one bit
    data = (words & 0xFFFF).astype("<u2").tobytes()
    valid = (limbs < 1 << _LIMB_BITS).all(axis=1) & (limbs[:, LIMBS - 1] < 2)
    return tuple(
        data[start : start + SECRET_BYTES] if fits else None
        for start, fits in zip(range(0, len(data), SECRET_BYTES), valid.tolist(), strict=True)
    )


def _uniform(count: int, entropy: Entropy) -> Residues:
    """``count`` uniform residues mod p, by rejection of the 15 values from 65521 to 65535."""
    kept: list[NDArray[Any]] = []
    missing = count
    while missing > 0:
        values = np.frombuffer(draw(entropy, 2 * missing), dtype="<u2")
        kept.append(values[values < PRIME])
        missing -= kept[-1].size
    return np.concatenate([*kept, np.empty(0, np.uint16)]).astype(np.float64)


@lru_cache(maxsize=16)
def _vandermonde(threshold: int, points: tuple[int, ...]) -> Residues:
    """float64 [N, t], entry (i, k) = points[i]^k mod p."""
    xs = np.array(points, dtype=np.float64)
    _check_points(xs)
    if len(set(points)) != len(points):
        raise ConfigurationError("points must be distinct")
    matrix = np.ones((xs.size, threshold))
    width = 1
    while width < threshold:
        step = min(width, threshold - width)
        factor = _reduce(matrix[:, width - 1] * xs)[:, np.newaxis]
        matrix[:, width : width + step] = _reduce(matrix[:, :step] * factor)
        width += step
    matrix.setflags(write=False)
    return matrix


@lru_cache(maxsize=1024)
def _lagrange(points: tuple[int, ...], x: int) -> Residues:
    """float64 [t]: the weights of the shares in the value at ``x``; points are public."""
    weights: Residues = _weights(np.array([points], dtype=np.float64), x)[0]
    weights.setflags(write=False)
    return weights


def _weights(xs: Residues, x: int) -> Residues:
    """float64 [m, t]: Lagrange weights at ``x`` of the m rows of public points in ``xs``.

    w_i = prod_{j != i} (x - x_j) / (x_i - x_j); where x is one of the points, that share alone.
    """
    _check_points(xs)
    count = xs.shape[1]
    offsets = x % PRIME - xs
    factors = np.empty((*xs.shape, count + 1))  # [m, j, i]: x_i - x_j, and x - x_j in the last i
    np.subtract(xs[:, np.newaxis, :], xs[:, :, np.newaxis], out=factors[:, :, :count])
    factors[:, :, count] = offsets
    factors.reshape(xs.shape[0], -1)[:, :: count + 2] = 1  # i = j
    products = _product(factors)
    denominators = products[:, :count]
    if not denominators.all():
        raise ConfigurationError("points must be distinct")
    divisors = _reduce(denominators * offsets)
    inverses: Residues = _inverses()[divisors.astype(np.intp)]  # 1 / 0 reads 0
    weights: Residues = _reduce(products[:, count:] * inverses) + (offsets == 0)
    return weights


def _product(factors: Residues) -> Residues:
    """The product mod p over axis 1 of integers below 2^16 in size: three fit below 2^48."""
    while factors.shape[1] > 1:
        third = -(-factors.shape[1] // 3)
        product = factors[:, :third] * factors[:, third : 2 * third]
        rest = factors[:, 2 * third :]
        product[:, : rest.shape[1]] *= rest
        factors = _reduce(product)
    result: Residues = factors[:, 0]
    return result


@lru_cache(maxsize=1)
def _inverses() -> Residues:
    """float64 [p]: entry v is 1 / v = v^(p - 2) mod p; entry 0 is 0. Indexed by public data."""
    base = np.arange(PRIME, dtype=np.float64)
    result = np.ones(PRIME)
    exponent = PRIME - 2
    while exponent:
        if exponent & 1:
            result = _reduce(result * base)
        base = _reduce(base * base)
        exponent >>= 1
    result.setflags(write=False)
    return result


def _check_points(xs: Residues) -> None:
    if xs.size and not ((xs >= 1) & (xs <= MAX_SHARES)).all():
        raise ConfigurationError(f"points must be from 1 to {MAX_SHARES}")
