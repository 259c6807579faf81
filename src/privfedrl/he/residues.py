"""Ciphertexts as what they are: residues modulo the primes of q, packed without a gap.

Guarantee: :func:`unpack` gives numbers that are all below their primes and of the exact count, or
RemoteProtocolError; there is no byte string of the right length and range that means anything but a
well-formed ciphertext. Adding residues is adding ciphertexts, and needs no lattice library.

Layout of one polynomial pair: for each of the two polynomials, for each prime of q, N residues in
``width`` bits each (the prime's bits rounded up to a multiple of four), little-endian.
Reference: addition of BFV and CKKS ciphertexts is coefficient-wise (eprint 2012/144, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import RemoteProtocolError

__all__ = ["Residues", "add_into", "pack", "packed_bytes", "unpack"]

Residues = NDArray[np.uint64]
"""uint64 [count, 2, primes, N]; every entry below its prime."""

_POLYNOMIALS: Final = 2


def packed_bytes(primes: Sequence[int], degree: int) -> int:
    """Bytes of one packed pair of polynomials."""
    return _POLYNOMIALS * sum(_row_bytes(prime, degree) for prime in primes)


def pack(residues: Residues, primes: Sequence[int]) -> bytes:
    """The bytes of ``residues``; :func:`unpack` is the inverse.

    Args:
        residues: uint64 [count, 2, len(primes), N], entries below their primes.
    """
    count, _, _, degree = residues.shape
    out = np.empty((count, packed_bytes(primes, degree)), dtype=np.uint8)
    at = 0
    for polynomial in range(_POLYNOMIALS):
        for index, prime in enumerate(primes):
            size = _row_bytes(prime, degree)
            out[:, at : at + size] = _narrow(residues[:, polynomial, index], _width(prime))
            at += size
    return out.tobytes()


def unpack(data: bytes | memoryview, primes: Sequence[int], degree: int, count: int) -> Residues:
    """The residues in ``data``.

    Raises:
        RemoteProtocolError: another length, or a residue that is not below its prime.
    """
    size = packed_bytes(primes, degree)
    if len(data) != count * size:
        raise RemoteProtocolError(f"ciphertexts must be {count * size} bytes, got {len(data)}")
    packed = np.frombuffer(data, dtype=np.uint8).reshape(count, size)
    residues = np.empty((count, _POLYNOMIALS, len(primes), degree), dtype=np.uint64)
    at = 0
    for polynomial in range(_POLYNOMIALS):
        for index, prime in enumerate(primes):
            row = _row_bytes(prime, degree)
            wide = _widen(packed[:, at : at + row], _width(prime))
            if wide.size and int(wide.max()) >= prime:
                raise RemoteProtocolError("a residue must be below its prime")
            residues[:, polynomial, index] = wide
            at += row
    return residues


def add_into(total: Residues, addend: Residues, primes: Sequence[int]) -> None:
    """total += addend modulo each prime, in place. Both hold residues of <= 60 bits."""
    np.add(total, addend, out=total)
    # below the prime, the subtraction wraps to a huge number and the minimum keeps the sum
    moduli = np.asarray(primes, dtype=np.uint64)[:, None]
    np.minimum(total, total - moduli, out=total)


def _width(prime: int) -> int:
    return -(-prime.bit_length() // 4) * 4


def _row_bytes(prime: int, degree: int) -> int:
    return degree * _width(prime) // 8


def _narrow(words: Residues, width: int) -> NDArray[np.uint8]:
    """uint64 [count, N] -> uint8 [count, N width / 8]: two words become width / 4 bytes."""
    low, high = words[:, 0::2], words[:, 1::2]
    pairs = np.empty((*low.shape, 2), dtype="<u8")
    if width > 32:
        pairs[..., 0] = low | (high << np.uint64(width))  # what is shifted out is in the next word
        pairs[..., 1] = high >> np.uint64(64 - width)
    else:
        pairs[..., 0] = low | (high << np.uint64(width))
    kept = pairs.view(np.uint8)[..., : width // 4]
    return kept.reshape(words.shape[0], -1)


def _widen(packed: NDArray[np.uint8], width: int) -> Residues:
    """Inverse of :func:`_narrow`."""
    count = packed.shape[0]
    groups = packed.reshape(count, -1, width // 4)
    pairs = np.zeros((*groups.shape[:2], 2), dtype="<u8")
    pairs.view(np.uint8)[..., : width // 4] = groups
    mask = np.uint64((1 << width) - 1)
    words = np.empty((count, 2 * groups.shape[1]), dtype=np.uint64)
    words[:, 0::2] = pairs[..., 0] & mask
    high = pairs[..., 0] >> np.uint64(width)
    if width > 32:
        high |= pairs[..., 1] << np.uint64(64 - width)
    words[:, 1::2] = high & mask
    return words
