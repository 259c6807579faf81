"""The message that opens a round: the signed protocol configuration and the policy it is about.

Guarantee: an agent trains only on parameters whose SHA-256 is in the coordinator's signed
configuration; anything else is a ProtocolError before a single step is taken.

Layout: magic "PFRB" | version u16 | config length u32 | config | parameters float64 little-endian.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import RemoteProtocolError

__all__ = ["model_digest", "pack_broadcast", "parameter_bytes", "unpack_broadcast"]

_HEADER = struct.Struct(">4sHI")
_MAGIC, _VERSION = b"PFRB", 1
# a signed RoundConfig is a few hundred bytes; sixteen times that is room without being a risk
_MAX_CONFIG = 16_384


def parameter_bytes(parameters: NDArray[np.float64]) -> bytes:
    """The one encoding of policy parameters on the wire and under digests."""
    return np.ascontiguousarray(parameters, dtype="<f8").tobytes()


def model_digest(parameters: NDArray[np.float64]) -> bytes:
    """SHA-256 over the wire encoding, 32 bytes."""
    return hashlib.sha256(b"pfrl-model/1\x00" + parameter_bytes(parameters)).digest()


def pack_broadcast(config: bytes, parameters: NDArray[np.float64]) -> bytes:
    """Frame a signed configuration with the parameters it commits to."""
    return _HEADER.pack(_MAGIC, _VERSION, len(config)) + config + parameter_bytes(parameters)


def unpack_broadcast(data: bytes, *, num_parameters: int) -> tuple[bytes, NDArray[np.float64]]:
    """Split a broadcast into the still unverified config and the parameters.

    Raises:
        RemoteProtocolError: wrong magic, version or length, or a parameter that is not finite.
    """
    if len(data) < _HEADER.size:
        raise RemoteProtocolError(f"a broadcast has at least {_HEADER.size} bytes, got {len(data)}")
    magic, version, length = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        raise RemoteProtocolError(f"expected a broadcast of version {_VERSION}")
    expected = _HEADER.size + length + 8 * num_parameters
    if length > _MAX_CONFIG or len(data) != expected:
        raise RemoteProtocolError(
            f"a broadcast for {num_parameters} parameters has {expected} bytes, got {len(data)}"
        )
    parameters = np.frombuffer(data, dtype="<f8", offset=_HEADER.size + length).astype(np.float64)
    if not np.isfinite(parameters).all():
        raise RemoteProtocolError("the parameters of a broadcast must be finite")
    return data[_HEADER.size : _HEADER.size + length], parameters
