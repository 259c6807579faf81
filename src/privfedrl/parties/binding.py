"""Domain separation: the one way in which this protocol labels, joins and hashes byte strings.

Guarantee: two calls of :func:`digest` agree only if label, number of parts and every part agree
(up to SHA-256 collisions), so no value computed for one purpose can stand in for another.

Notation: L(x) = the wire name, a slash and x, length-prefixed; || = concatenation.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final

__all__ = ["DIGEST_BYTES", "WIRE_NAME", "digest", "join", "label"]

WIRE_NAME: Final = b"pfrl-sa/1"
DIGEST_BYTES: Final = 32


@lru_cache(maxsize=64)
def label(name: str) -> bytes:
    """L(name): two length bytes, then ``pfrl-sa/1/name``."""
    text = WIRE_NAME + b"/" + name.encode("ascii")
    return len(text).to_bytes(2, "big") + text


def join(*parts: bytes) -> bytes:
    """An injective concatenation: each part after its length in eight bytes."""
    return b"".join([len(part).to_bytes(8, "big") + part for part in parts])


def digest(name: str, *parts: bytes | memoryview) -> bytes:
    """SHA-256 of L(name) || join(parts): 32 bytes. Long parts are not copied."""
    state = hashlib.sha256(label(name))
    for part in parts:
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.digest()
