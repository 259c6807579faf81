"""Crypto suites: every algorithm that a round uses, as one row of a table.

Guarantee: the protocol code reaches its algorithms through the row that the round's config names,
so a second suite is a second row; every frame carries the suite number in its version field.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from privfedrl.errors import RemoteProtocolError
from privfedrl.primitives import key_agreement, sealing, signing, stream
from privfedrl.primitives.key_agreement import KeyPair
from privfedrl.primitives.random import Entropy

__all__ = ["DEFAULT_SUITE", "SUITES", "Suite", "suite_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """One combination of algorithms; ``suite_id`` is its number on the wire (1 to 255)."""

    suite_id: int
    name: str
    generate: Callable[[Entropy], KeyPair]
    restore: Callable[[bytes], KeyPair]
    check_public_key: Callable[[bytes], None]
    derive: Callable[..., bytes]
    seal: Callable[..., bytes]
    open_sealed: Callable[..., bytes]
    apply_keystreams: Callable[..., None]
    verify: Callable[[bytes, bytes, bytes], None]
    public_key_bytes: int
    signature_bytes: int
    tag_bytes: int


_X25519_AES256: Final = Suite(
    suite_id=1,
    name="x25519-ed25519-aes256-sha256",
    generate=KeyPair.generate,
    restore=KeyPair.from_secret_bytes,
    check_public_key=key_agreement.check_public_key,
    derive=key_agreement.hkdf_sha256,
    seal=sealing.seal,
    open_sealed=sealing.open_sealed,
    apply_keystreams=stream.apply_keystreams,
    verify=signing.verify,
    public_key_bytes=key_agreement.KEY_BYTES,
    signature_bytes=signing.SIGNATURE_BYTES,
    tag_bytes=sealing.TAG_BYTES,
)

SUITES: Final = {suite.suite_id: suite for suite in (_X25519_AES256,)}
DEFAULT_SUITE: Final = _X25519_AES256


def suite_of(suite_id: int) -> Suite:
    """The row of ``suite_id``.

    Raises:
        RemoteProtocolError: there is no such row.
    """
    if suite_id not in SUITES:
        raise RemoteProtocolError(f"suite must be one of {sorted(SUITES)}, got {suite_id}")
    return SUITES[suite_id]
