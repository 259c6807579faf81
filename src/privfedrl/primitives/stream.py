"""Mask engine: AES-256-CTR keystreams added to, or subtracted from, a ring vector in place.

Guarantee: ``acc`` changes by exactly the keystreams read as little-endian words, mod 2^32 or 2^64,
and nothing larger than one tile is allocated.

Notation: D = vector length, k = number of keys. A key is used for one vector only; the counter
starts at 0. Tiles of 128 KB keep the accumulator slice, the zeros and the keystream in the second
level cache; the loop over tiles is outside the loop over keys for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError

__all__ = ["KEY_BYTES", "RingVector", "add_keystream", "apply_keystreams", "subtract_keystream"]

RingVector = NDArray[np.unsignedinteger[Any]]
"""uint32 [D] or uint64 [D]: one residue mod 2^32 or 2^64 per coordinate."""

KEY_BYTES: Final = 32
_TILE_BYTES: Final = 128 * 1024
_BLOCK_BYTES: Final = 16  # update_into asks for one spare block
_ZEROS: Final = memoryview(bytes(_TILE_BYTES))


def add_keystream(acc: RingVector, key: bytes) -> None:
    """acc += keystream(key), in place. See :func:`apply_keystreams`."""
    apply_keystreams(acc, add=(key,))


def subtract_keystream(acc: RingVector, key: bytes) -> None:
    """acc -= keystream(key), in place. See :func:`apply_keystreams`."""
    apply_keystreams(acc, subtract=(key,))


def apply_keystreams(
    acc: RingVector, *, add: Sequence[bytes] = (), subtract: Sequence[bytes] = ()
) -> None:
    """acc += sum of the keystreams of ``add`` - sum of those of ``subtract``, in place.

    Args:
        acc: uint32 [D] or uint64 [D], C-contiguous and writeable; D may be 0.
        add, subtract: 32-byte keys, k in all, each meant for one vector only.
    Raises:
        ConfigurationError: ``acc`` or a key has another form; ``acc`` is then unchanged.
    Reference: NIST SP 800-38A, section 6.5; initial counter block zero.
    """
    _check(acc, (*add, *subtract))
    streams: list[tuple[np.ufunc, CipherContext]] = [(np.add, _keystream(key)) for key in add]
    streams += [(np.subtract, _keystream(key)) for key in subtract]
    words = _TILE_BYTES // acc.itemsize
    tile = bytearray(min(acc.nbytes, _TILE_BYTES) + _BLOCK_BYTES)
    wire = acc.dtype.newbyteorder("<")
    for start in range(0, acc.size, words):
        part = acc[start : start + words]
        mask = np.frombuffer(tile, dtype=wire, count=part.size)
        for combine, stream in streams:
            stream.update_into(_ZEROS[: part.nbytes], tile)
            combine(part, mask, out=part)
    tile[:] = bytes(len(tile))  # the last mask tile does not outlive the call


def _keystream(key: bytes) -> CipherContext:
    return Cipher(AES256(key), CTR(bytes(_BLOCK_BYTES))).encryptor()


def _check(acc: RingVector, keys: Sequence[bytes]) -> None:
    if not isinstance(acc, np.ndarray) or acc.dtype not in (np.uint32, np.uint64):
        raise ConfigurationError("acc must be an array of uint32 or uint64")
    if acc.ndim != 1 or not acc.flags.c_contiguous or not acc.flags.writeable:
        raise ConfigurationError("acc must be one-dimensional, contiguous and writeable")
    if any(len(key) != KEY_BYTES for key in keys):
        raise ConfigurationError(f"every mask key must be {KEY_BYTES} bytes long")
