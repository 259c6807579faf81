"""Mask engine: AES-256-CTR keystreams added to, or subtracted from, a ring vector in place.

Guarantee: ``acc`` changes by exactly the keystreams read as little-endian words, mod 2^32 or 2^64,
whatever the number of threads, and nothing larger than one tile per thread is allocated.

Notation: D = vector length, k = number of keys, G(key) = the keystream of a key. A key is used for
one vector only (and for its mirror, below); the counter starts at 0. Tiles of 256 KB keep the
accumulator slice, the zeros and the keystream together in a second level cache of 1 MB, which was
the fastest of the sizes from 8 KB to 1 MB; the loop over tiles is outside the loop over keys for
the same reason. A slice in the middle of a vector starts its counter at its own block, so slices
are independent and threads need nothing from each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError

__all__ = [
    "KEY_BYTES",
    "MIN_THREAD_BYTES",
    "TILE_BYTES",
    "RingVector",
    "add_keystream",
    "apply_keystreams",
    "subtract_keystream",
]

RingVector = NDArray[np.unsignedinteger[Any]]
"""uint32 [D] or uint64 [D]: one residue mod 2^32 or 2^64 per coordinate."""

KEY_BYTES: Final = 32
TILE_BYTES: Final = 256 * 1024
MIN_THREAD_BYTES: Final = 2 * TILE_BYTES
"""A thread that had less than this of a vector would cost more than it saves."""

_BLOCK_BYTES: Final = 16  # of AES; update_into asks for one spare block
_ZEROS: Final = memoryview(bytes(TILE_BYTES))
_START: Final = CTR(bytes(_BLOCK_BYTES))
_NO_MIRRORS: Final[Mapping[bytes, RingVector]] = MappingProxyType({})
_ADD: Final[tuple[np.ufunc, np.ufunc]] = (np.add, np.subtract)
_SUBTRACT: Final[tuple[np.ufunc, np.ufunc]] = (np.subtract, np.add)
"""What is done to ``acc`` and what to a mirror."""


def add_keystream(acc: RingVector, key: bytes) -> None:
    """acc += G(key), in place. See :func:`apply_keystreams`."""
    apply_keystreams(acc, add=(key,))


def subtract_keystream(acc: RingVector, key: bytes) -> None:
    """acc -= G(key), in place. See :func:`apply_keystreams`."""
    apply_keystreams(acc, subtract=(key,))


def apply_keystreams(
    acc: RingVector,
    *,
    add: Sequence[bytes] = (),
    subtract: Sequence[bytes] = (),
    mirrors: Mapping[bytes, RingVector] = _NO_MIRRORS,
    threads: int = 1,
) -> None:
    """acc += the sum of G(key) over ``add`` - that over ``subtract``, in place.

    Args:
        acc: uint32 [D] or uint64 [D], C-contiguous and writeable; D may be 0.
        add, subtract: 32-byte keys, k in all, each meant for one vector only.
        mirrors: for keys of ``add`` and ``subtract``, another vector of the form of ``acc`` that
            takes the opposite of what ``acc`` takes. This is how a simulation expands the common
            keystream of two clients once; a real client has no mirrors.
        threads: at most this many slices of ``acc`` are worked on at once. Pays from about a
            million bytes per thread; shorter vectors use fewer threads than allowed.
    Raises:
        ConfigurationError: ``acc``, a key, a mirror or ``threads`` has another form; all vectors
            are then unchanged.
    Reference: NIST SP 800-38A, section 6.5; initial counter block zero.
    """
    _check_vector(acc, "acc")
    _check_keys((*add, *subtract))
    for mirror in mirrors.values():
        _check_mirror(acc, mirror)
    if not mirrors.keys() <= {*add, *subtract}:
        raise ConfigurationError("every mirror must belong to a key of add or subtract")
    if threads < 1:
        raise ConfigurationError(f"threads must be >= 1, got {threads}")
    rows: list[_Row] = [(_ADD, key, mirrors.get(key)) for key in add]
    rows += [(_SUBTRACT, key, mirrors.get(key)) for key in subtract]
    slices = _slices(acc, threads)
    if len(slices) == 1:
        _apply(acc, rows, slices[0])
        return
    with ThreadPoolExecutor(len(slices)) as pool:
        for done in [pool.submit(_apply, acc, rows, part) for part in slices]:
            done.result()


_Row = tuple[tuple[np.ufunc, np.ufunc], bytes, RingVector | None]


@dataclass(frozen=True, slots=True)
class _Stream:
    """One keystream on its way into a slice: ``update_into`` is bound to its cipher context."""

    combine: np.ufunc
    opposite: np.ufunc
    update_into: Callable[[memoryview, bytearray], int]
    mirror: RingVector | None


def _apply(acc: RingVector, rows: Sequence[_Row], part: slice) -> None:
    """All keystreams on ``acc[part]``, whose first word starts a cipher block."""
    mode = _mode_from(part.start * acc.itemsize // _BLOCK_BYTES)
    streams = [
        _Stream(*operations, Cipher(AES256(key), mode).encryptor().update_into, mirror)
        for operations, key, mirror in rows
    ]
    words = TILE_BYTES // acc.itemsize
    tile = bytearray(min((part.stop - part.start) * acc.itemsize, TILE_BYTES) + _BLOCK_BYTES)
    wire = acc.dtype.newbyteorder("<")
    for start in range(part.start, part.stop, words):
        here = slice(start, min(start + words, part.stop))
        target = acc[here]
        zeros, mask = _ZEROS[: target.nbytes], np.frombuffer(tile, dtype=wire, count=target.size)
        for stream in streams:
            stream.update_into(zeros, tile)
            stream.combine(target, mask, out=target)
            if stream.mirror is not None:
                other = stream.mirror[here]
                stream.opposite(other, mask, out=other)
    np.frombuffer(tile, dtype=np.uint8)[:] = 0  # the last mask tile does not outlive the call


def _mode_from(block: int) -> CTR:
    return CTR(block.to_bytes(_BLOCK_BYTES, "big")) if block else _START


def _slices(acc: RingVector, threads: int) -> list[slice]:
    """Near-equal slices that start on whole tiles, hence on whole cipher blocks."""
    words = TILE_BYTES // acc.itemsize
    count = max(1, min(threads, acc.nbytes // MIN_THREAD_BYTES))
    tiles = -(-acc.size // words)
    edges = [min(acc.size, words * (tiles * k // count)) for k in range(count)]
    return [slice(*pair) for pair in zip(edges, [*edges[1:], acc.size], strict=True)]


def _check_vector(acc: RingVector, name: str) -> None:
    if not isinstance(acc, np.ndarray) or acc.dtype not in (np.uint32, np.uint64):
        raise ConfigurationError(f"{name} must be an array of uint32 or uint64")
    if acc.ndim != 1 or not acc.flags.c_contiguous or not acc.flags.writeable:
        raise ConfigurationError(f"{name} must be one-dimensional, contiguous and writeable")


def _check_keys(keys: Sequence[bytes]) -> None:
    if any(len(key) != KEY_BYTES for key in keys):
        raise ConfigurationError(f"every mask key must be {KEY_BYTES} bytes long")


def _check_mirror(acc: RingVector, mirror: RingVector) -> None:
    _check_vector(mirror, "mirror")
    if mirror.dtype != acc.dtype or mirror.size != acc.size or np.may_share_memory(acc, mirror):
        raise ConfigurationError("mirror must be another array of the form of acc")
