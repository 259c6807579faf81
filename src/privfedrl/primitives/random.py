"""Where random bytes and the time come from: injected functions, the system's by default.

Guarantee: no participant reads a global generator or a clock of its own; whoever builds a
participant decides, and a deterministic source can always be recognised (:func:`is_deterministic`)
and refused.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from privfedrl.errors import ConfigurationError, LocalProtocolError

__all__ = [
    "Clock",
    "DeterministicEntropy",
    "Entropy",
    "draw",
    "is_deterministic",
    "system_clock",
    "system_entropy",
]

Entropy = Callable[[int], bytes]
"""``entropy(n)`` returns n fresh uniform bytes."""


Clock = Callable[[], int]
"""``clock()`` returns whole seconds since 1970-01-01 UTC."""


def system_clock() -> int:
    """The system's time, in whole seconds since 1970-01-01 UTC."""
    return int(time.time())


def system_entropy(n: int) -> bytes:
    """n bytes from the operating system's generator (``os.urandom``)."""
    return os.urandom(n)


class DeterministicEntropy:
    """An AES-256-CTR generator with a fixed seed. FOR TESTS AND REPLAYS ONLY.

    Two instances with one seed give the same bytes, so anything drawn from it is public to whoever
    knows the seed.

    Args:
        seed: any byte string; hashed with SHA-256 to the key.
    Reference: NIST SP 800-38A, section 6.5 (counter mode).
    """

    __slots__ = ("_context", "_key")

    is_deterministic: Final = True

    def __init__(self, seed: bytes) -> None:
        self._key = hashlib.sha256(b"pfrl-test-entropy/seed" + seed).digest()
        self._context: CipherContext = Cipher(AES256(self._key), CTR(bytes(16))).encryptor()

    def __call__(self, n: int) -> bytes:
        if n < 0:
            raise ConfigurationError(f"n must be >= 0, got {n}")
        return self._context.update(bytes(n))

    def fork(self, label: bytes) -> DeterministicEntropy:
        """An independent stream named ``label``; does not depend on what was drawn so far."""
        return DeterministicEntropy(b"fork" + self._key + label)

    def __repr__(self) -> str:
        return "DeterministicEntropy(<seed hidden>)"


def is_deterministic(entropy: Entropy) -> bool:
    """Whether ``entropy`` declares itself replayable, and so unfit for a real round."""
    return bool(getattr(entropy, "is_deterministic", False))


def draw(entropy: Entropy, n: int) -> bytes:
    """n bytes of ``entropy``, refusing a source that returns anything else.

    Raises:
        LocalProtocolError: the source returned another type or another length.
    """
    data = entropy(n)
    if not isinstance(data, bytes) or len(data) != n:
        raise LocalProtocolError(f"entropy must return {n} bytes, got something else")
    return data
