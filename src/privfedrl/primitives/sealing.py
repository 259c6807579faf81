"""AES-256-GCM for keys that seal exactly one message.

Guarantee: :func:`open_sealed` returns the plaintext only if key, context and ciphertext all match;
the nonce is zero because every key here is derived for one message between one pair of peers.

Reference: NIST SP 800-38D.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from privfedrl.errors import AuthenticationFailed

__all__ = ["TAG_BYTES", "open_sealed", "seal"]

TAG_BYTES: Final = 16
_NONCE: Final = bytes(12)


def seal(key: bytes, plaintext: bytes, *, context: bytes) -> bytes:
    """Encrypt and authenticate ``plaintext`` with a 32-byte single-use ``key``.

    Returns:
        len(plaintext) + 16 bytes. ``context`` is authenticated and not transmitted.
    """
    return AESGCM(key).encrypt(_NONCE, plaintext, context)


def open_sealed(key: bytes, ciphertext: bytes, *, context: bytes) -> bytes:
    """The plaintext of :func:`seal`.

    Raises:
        AuthenticationFailed: any bit of key, context or ciphertext differs.
    """
    try:
        return AESGCM(key).decrypt(_NONCE, ciphertext, context)
    except (InvalidTag, ValueError):
        raise AuthenticationFailed from None
