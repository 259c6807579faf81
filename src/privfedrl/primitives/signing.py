"""Ed25519 signatures behind a small interface, so that a key can live in a file or in hardware.

Guarantee: :func:`verify` returns only if the signature is right; every failure raises one opaque
:class:`~privfedrl.errors.AuthenticationFailed`.

Notation: p = 2^255 - 19, (x, y) = a point of the Edwards curve, d = its constant.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NoReturn, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privfedrl.errors import AuthenticationFailed, ConfigurationError, LocalProtocolError
from privfedrl.primitives.random import Entropy, draw

__all__ = ["KEY_BYTES", "SIGNATURE_BYTES", "Ed25519Signer", "Signer", "check_verify_key", "verify"]

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
_P: Final = 2**255 - 19
_D: Final = -121665 * pow(121666, -1, _P) % _P


class Signer(Protocol):
    """Whatever holds a long-term signing key: a file, a hardware module, a service."""

    @property
    def verify_key(self) -> bytes:
        """The 32-byte Ed25519 public key."""

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature of ``message`` (RFC 8032, no context, no pre-hash)."""


class Ed25519Signer:
    """A signing key in memory. Its repr shows no key, and it refuses to be pickled or copied."""

    __slots__ = ("_private", "_verify_key")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != KEY_BYTES:
            raise ConfigurationError(f"seed must be {KEY_BYTES} bytes, got {len(seed)}")
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self._verify_key = self._private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, entropy: Entropy) -> Ed25519Signer:
        """A fresh key from 32 bytes of ``entropy``."""
        return cls(draw(entropy, KEY_BYTES))

    @property
    def verify_key(self) -> bytes:
        return self._verify_key

    def sign(self, message: bytes) -> bytes:
        return self._private.sign(message)

    def secret_bytes(self) -> bytes:
        """The 32-byte seed, for writing a key file only."""
        return self._private.private_bytes_raw()

    def __repr__(self) -> str:
        return "Ed25519Signer(<secret>)"

    def __reduce__(self) -> NoReturn:
        raise LocalProtocolError("a signing key refuses to be pickled or copied")


def verify(verify_key: bytes, signature: bytes, message: bytes) -> None:
    """Return if ``signature`` is that of ``message`` under ``verify_key``.

    Raises:
        AuthenticationFailed: anything is wrong, lengths included.
    Reference: RFC 8032, section 5.1.7.
    """
    try:
        Ed25519PublicKey.from_public_bytes(verify_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise AuthenticationFailed from None


@lru_cache(maxsize=4096)
def check_verify_key(verify_key: bytes) -> None:
    """Refuse a verify key under which signatures would mean nothing.

    A key of small order accepts one signature for many messages; a key off the curve accepts none.

    Raises:
        ConfigurationError: wrong length, not canonical, not on the curve or of small order.
    """
    if len(verify_key) != KEY_BYTES:
        raise ConfigurationError(f"verify key must be {KEY_BYTES} bytes, got {len(verify_key)}")
    y = int.from_bytes(verify_key, "little") & (2**255 - 1)
    if y >= _P:
        raise ConfigurationError("verify key is not canonical")
    numerator, denominator = (y * y - 1) % _P, (_D * y * y + 1) % _P
    x_squared = numerator * pow(denominator, -1, _P) % _P
    if x_squared != 0 and pow(x_squared, (_P - 1) // 2, _P) != 1:
        raise ConfigurationError("verify key is not a point of the curve")
    if _has_small_order(x_squared, y):
        raise ConfigurationError("verify key has small order")


def _has_small_order(x_squared: int, y: int) -> bool:
    """Whether 8 * (x, y) is neutral, without the sign of x.

    Doubling: y' = (y^2 + x^2) / (1 - d x^2 y^2) and x'^2 = 4 x^2 y^2 / (1 + d x^2 y^2)^2.
    """
    for _ in range(3):
        product = x_squared * y * y % _P
        y = (y * y + x_squared) * pow(1 - _D * product, -1, _P) % _P
        x_squared = 4 * product * pow(1 + _D * product, -2, _P) % _P
    return x_squared == 0 and y == 1
