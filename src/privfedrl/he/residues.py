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
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import RemoteProtocolError

__all__ = ["Residues", "add_into", "pack", "packed_bytes", "unpack"]

Residues = NDArray[np.uint64]
"""uint64 [count, 2, primes, N]; every entry below its prime."""

_POLYNOMIALS: Final = 2
_HALF: Final = 32
"""From this width on, a pair takes at least the eight bytes of a word."""
_BLOCK: Final = 8
"""Ciphertexts that are added at a time: few enough to stay in a cache of a megabyte."""


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
            _narrow(residues[:, polynomial, index], out[:, at : at + size], _width(prime))
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
            wide = residues[:, polynomial, index]
            _widen(packed[:, at : at + row], wide, _width(prime))
            if wide.size and int(wide.max()) >= prime:
                raise RemoteProtocolError("a residue must be below its prime")
            at += row
    return residues


def add_into(total: Residues, addend: Residues, primes: Sequence[int]) -> None:
    """total += addend modulo each prime, in place. Both hold residues of <= 60 bits."""
    moduli = np.asarray(primes, dtype=np.uint64)[:, None]
    for at in range(0, len(total), _BLOCK):
        part = total[at : at + _BLOCK]
        part += addend[at : at + _BLOCK]
        # below the prime, the subtraction wraps to a huge number and the minimum keeps the sum
        np.minimum(part, part - moduli, out=part)


def _width(prime: int) -> int:
    return -(-prime.bit_length() // 4) * 4


def _row_bytes(prime: int, degree: int) -> int:
    return degree * _width(prime) // 8


def _narrow(words: Residues, out: NDArray[np.uint8], width: int) -> None:
    """Write uint64 [count, N] to uint8 [count, N width / 8]: a pair becomes width / 4 bytes."""
    low, high = words[:, 0::2], words[:, 1::2]
    if width < _HALF:
        pair = (low | (high << np.uint64(width))).astype("<u8")
        kept = pair.view(np.uint8).reshape(*pair.shape, 8)[..., : width // 4]
        out[:] = kept.reshape(out.shape)
        return
    # the second eight bytes first: the first eight then put right what both cover
    _view(out, width, width // 4 - 8)[:] = high << np.uint64(64 - width)
    _view(out, width, 0)[:] = low | (high << np.uint64(width))


def _widen(packed: NDArray[np.uint8], out: Residues, width: int) -> None:
    """Inverse of :func:`_narrow`."""
    mask = np.uint64((1 << width) - 1)
    if width < _HALF:
        groups = packed.reshape(*out[:, 0::2].shape, width // 4)
        pair = np.zeros((*groups.shape[:2], 8), dtype=np.uint8)
        pair[..., : width // 4] = groups
        both = pair.view("<u8")[..., 0]
        out[:, 0::2] = both & mask
        out[:, 1::2] = (both >> np.uint64(width)) & mask
        return
    out[:, 0::2] = _view(packed, width, 0) & mask
    out[:, 1::2] = _view(packed, width, width // 4 - 8) >> np.uint64(64 - width)


def _view(rows: NDArray[np.uint8], width: int, offset: int) -> NDArray[Any]:
    """Eight bytes of every pair, from ``offset`` on, as little-endian words without a copy."""
    pairs = rows.shape[1] // (width // 4)
    return np.lib.stride_tricks.as_strided(
        rows[:, offset:].view(), (rows.shape[0], pairs, 8), (rows.strides[0], width // 4, 1)
    ).view("<u8")[..., 0]
