"""The digests that pin the long pieces of a round: public key, ciphertexts, sums.

Guarantee: equal digests mean equal pieces of the same round under the same key (up to SHA-256
collisions); a frame whose attachment is not the one that its signed payload pins is refused.
"""

from __future__ import annotations

from privfedrl.parties.binding import digest

__all__ = ["commitment", "key_digest", "sealed_digest", "sum_digest"]

Bytes = bytes | memoryview


def key_digest(cfg: bytes, public_key: Bytes) -> bytes:
    """Names a public key in one round: equal only for the same key in the same round."""
    return digest("he-key", cfg, public_key)


def commitment(cfg: bytes, key: bytes, name: str, ciphertexts: Bytes) -> bytes:
    """Pins ciphertexts to their sender, round and key; hiding, as fresh ciphertexts are random."""
    return digest("he-commitment", cfg, key, name.encode("ascii"), ciphertexts)


def sealed_digest(cfg: bytes, key: bytes, ciphertexts: Bytes) -> bytes:
    """Pins summed ciphertexts to their round and key."""
    return digest("he-sealed", cfg, key, ciphertexts)


def sum_digest(cfg: bytes, vector: Bytes) -> bytes:
    """Pins the opened sum (little-endian words) to its round."""
    return digest("he-sum", cfg, vector)
