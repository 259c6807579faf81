"""X25519 key agreement and HKDF-SHA256 key derivation.

Guarantee: :meth:`KeyPair.agree` never returns the all-zero secret that a low-order point would
force on both sides, whoever chose the point.

Notation: p = 2^255 - 19, u = the Montgomery coordinate that a public key encodes.
"""

from __future__ import annotations

import hmac
from functools import lru_cache
from typing import Final, NoReturn

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from privfedrl.errors import ConfigurationError, LocalProtocolError, RemoteProtocolError
from privfedrl.primitives.random import Entropy, draw

__all__ = ["KEY_BYTES", "LOW_ORDER_POINTS", "KeyPair", "check_public_key", "hkdf_sha256"]

KEY_BYTES: Final = 32
_HASH_BYTES: Final = 32
_P: Final = 2**255 - 19

LOW_ORDER_POINTS: Final = frozenset(
    {
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _P - 1,
    }
)
"""Every u mod p whose order divides 8 on the curve or its twist (RFC 7748, section 6.1)."""

_LOW_ORDER_ENCODINGS: Final = frozenset(
    (u + wrap + top).to_bytes(KEY_BYTES, "little")
    for u in LOW_ORDER_POINTS
    for wrap in (0, _P)
    for top in (0, 2**255)
    if u + wrap < 2**255
)
"""The same as bytes: X25519 takes u mod p and ignores the top bit."""


class KeyPair:
    """One X25519 key pair. Its repr shows no key, and it refuses to be pickled or copied."""

    __slots__ = ("_private", "public")

    def __init__(self, private: X25519PrivateKey) -> None:
        self._private = private
        self.public: bytes = private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, entropy: Entropy) -> KeyPair:
        """A fresh pair from 32 bytes of ``entropy``."""
        return cls.from_secret_bytes(draw(entropy, KEY_BYTES))

    @classmethod
    def from_secret_bytes(cls, secret: bytes) -> KeyPair:
        """The pair of a 32-byte secret scalar (clamped as in RFC 7748, section 5)."""
        if len(secret) != KEY_BYTES:
            raise ConfigurationError(f"secret must be {KEY_BYTES} bytes, got {len(secret)}")
        return cls(X25519PrivateKey.from_private_bytes(secret))

    def secret_bytes(self) -> bytes:
        """The 32 secret bytes, for secret sharing only."""
        return self._private.private_bytes_raw()

    def agree(self, peer_public: bytes) -> bytes:
        """The raw 32-byte shared secret with the owner of ``peer_public``.

        Raises:
            RemoteProtocolError: the key has the wrong length or low order.
        Reference: RFC 7748, sections 5 and 6.1.
        """
        _refuse_low_order(peer_public)
        try:
            return self._private.exchange(_public_key(peer_public))
        except ValueError as error:
            raise RemoteProtocolError("public key gives an all-zero secret") from error

    def __repr__(self) -> str:
        return "KeyPair(<secret>)"

    def __reduce__(self) -> NoReturn:
        raise LocalProtocolError("a key pair refuses to be pickled or copied")


@lru_cache(maxsize=1 << 15)
def _public_key(public: bytes) -> X25519PublicKey:
    """Public data: the same few keys are met by many ends in one process."""
    return X25519PublicKey.from_public_bytes(public)


def hkdf_sha256(secret: bytes, *, salt: bytes, info: bytes, length: int = KEY_BYTES) -> bytes:
    """HKDF-SHA256, extract then expand (RFC 5869).

    Written out as its two lines of HMAC, which takes a third of the time of a library object; a
    client of a large cohort derives hundreds of keys a round.
    """
    if not 0 < length <= 255 * _HASH_BYTES:
        raise ConfigurationError(f"length must be from 1 to {255 * _HASH_BYTES}, got {length}")
    pseudorandom = hmac.digest(salt or bytes(_HASH_BYTES), secret, "sha256")
    block = output = hmac.digest(pseudorandom, info + b"\x01", "sha256")
    for counter in range(2, -(-length // _HASH_BYTES) + 1):
        block = hmac.digest(pseudorandom, block + info + bytes([counter]), "sha256")
        output += block
    return output[:length]


@lru_cache(maxsize=1 << 15)
def check_public_key(public: bytes) -> None:
    """Refuse a public key that an honest peer cannot have sent.

    Raises:
        RemoteProtocolError: wrong length, non-canonical (u >= p or top bit set) or low order.
    """
    _refuse_low_order(public)
    if int.from_bytes(public, "little") >= _P:
        raise RemoteProtocolError("public key is not canonical")


def _refuse_low_order(public: bytes) -> None:
    if len(public) != KEY_BYTES:
        raise RemoteProtocolError(f"public key must be {KEY_BYTES} bytes, got {len(public)}")
    if public in _LOW_ORDER_ENCODINGS:
        raise RemoteProtocolError("public key has low order")
