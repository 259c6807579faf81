"""Known answers of the primitives: published vectors and the identities that pin the rest.

Guarantee: every vector names its source; a primitive that deviates in one bit fails the row that
names it. The primitives are those of ``privfedrl.primitives``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from privfedrl.errors import AuthenticationFailed, RemoteProtocolError
from privfedrl.primitives import shamir
from privfedrl.primitives.key_agreement import KeyPair, check_public_key, hkdf_sha256
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.primitives.sealing import open_sealed, seal
from privfedrl.primitives.signing import Ed25519Signer, verify
from privfedrl.primitives.stream import add_keystream
from privfedrl.testing.attack_cases_keys import LOW_ORDER_KEYS

__all__ = ["KNOWN_ANSWERS", "KnownAnswer"]

_hex = bytes.fromhex


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownAnswer:
    """One row: ``holds`` computes and compares; ``source`` is where the vector is published."""

    id: str
    source: str
    holds: Callable[[], bool] = field(repr=False)


def _agree(scalar: str, u: str) -> str:
    return KeyPair.from_secret_bytes(_hex(scalar)).agree(_hex(u)).hex()


def _iterated(times: int) -> str:
    """RFC 7748 section 5.2: k, u := X25519(k, u), k from the base point."""
    k = u = (9).to_bytes(32, "little")
    for _ in range(times):
        k, u = KeyPair.from_secret_bytes(k).agree(u), k
    return k.hex()


def _refused(public: bytes) -> bool:
    try:
        check_public_key(public)
    except RemoteProtocolError:
        return True
    return False


def _keystream(key: bytes, length: int) -> str:
    words = np.zeros(length // 4, np.uint32)
    add_keystream(words, key)
    return words.astype("<u4").tobytes().hex()


def _hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> str:
    return hkdf_sha256(secret, salt=salt, info=info, length=length).hex()


def _signature(seed: str, message: str, signature: str) -> bool:
    signer = Ed25519Signer(_hex(seed))
    made = signer.sign(_hex(message))
    verify(signer.verify_key, made, _hex(message))
    return made.hex() == signature


def _not_verified(message: bytes, signature: bytes) -> bool:
    try:
        verify(Ed25519Signer(bytes(32)).verify_key, signature, message)
    except AuthenticationFailed:
        return True
    return False


def _sealed_only_as_made() -> bool:
    sealed = seal(bytes(32), b"text", context=b"a")
    try:
        open_sealed(bytes(32), sealed, context=b"b")
    except AuthenticationFailed:
        return open_sealed(bytes(32), sealed, context=b"a") == b"text"
    return False


def _interpolates() -> bool:
    """A t-subset gives the secret, and every further share lies on the same polynomial."""
    secret = bytes(range(32))
    shares = shamir.split(
        [secret], threshold=3, points=range(1, 6), entropy=DeterministicEntropy(b"kat")
    )
    for subset in ((0, 1, 2), (2, 3, 4), (4, 0, 2)):
        at = [index + 1 for index in subset]
        rows = shares[list(subset)]
        if shamir.combine(rows, at) != (secret,):
            return False
        further = [shamir.extrapolate(rows, at, x + 1) for x in range(5)]
        if not all((further[x] == shares[x]).all() for x in range(5)):
            return False
    return True


_P: Final = 2**255 - 19
_LONG_SECRET, _LONG_SALT, _LONG_INFO = (
    bytes(range(start, start + 80)) for start in (0, 0x60, 0xB0)
)

KNOWN_ANSWERS: Final = (
    KnownAnswer(
        id="x25519-section-5-2",
        source="RFC 7748, section 5.2, first vector",
        holds=lambda: (
            _agree(
                "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
                "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            )
            == "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
        ),
    ),
    KnownAnswer(
        id="x25519-section-6-1",
        source="RFC 7748, section 6.1",
        holds=lambda: (
            _agree(
                "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
                "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
            )
            == "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
        ),
    ),
    KnownAnswer(
        id="x25519-iterated",
        source="RFC 7748, section 5.2, 1 and 1,000 iterations",
        holds=lambda: (
            (_iterated(1), _iterated(1000))
            == (
                "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079",
                "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51",
            )
        ),
    ),
    KnownAnswer(
        id="x25519-low-order",
        source="RFC 7748, section 6.1: all-zero secrets; u of 2^255 - 19 and above",
        holds=lambda: all(
            map(_refused, (*LOW_ORDER_KEYS, (_P + 2).to_bytes(32, "little"), b"\xff" * 32))
        ),
    ),
    KnownAnswer(
        id="hkdf-case-1",
        source="RFC 5869, appendix A.1",
        holds=lambda: (
            _hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
            == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
            "34007208d5b887185865"
        ),
    ),
    KnownAnswer(
        id="hkdf-case-2",
        source="RFC 5869, appendix A.2",
        holds=lambda: (
            _hkdf(_LONG_SECRET, _LONG_SALT, _LONG_INFO, 82)
            == "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"
            "59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71"
            "cc30c58179ec3e87c14c01d5c1f3434f1d87"
        ),
    ),
    KnownAnswer(
        id="hkdf-case-3",
        source="RFC 5869, appendix A.3",
        holds=lambda: (
            _hkdf(b"\x0b" * 22, b"", b"", 42)
            == "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
            "9d201395faa4b61a96c8"
        ),
    ),
    KnownAnswer(
        id="aes-ctr-stream",
        source="GCM specification, test cases 13 and 14: AES-256 of the counters 0, 1 and 2",
        holds=lambda: (
            _keystream(bytes(32), 48)
            == "dc95c078a2408989ad48a21492842087530f8afbc74536b9a963b4f1c4cb738b"
            "cea7403d4d606b6e074ec5d3baf39d18"
        ),
    ),
    KnownAnswer(
        id="aes-gcm-case-13",
        source="GCM specification, test case 13",
        holds=lambda: seal(bytes(32), b"", context=b"").hex() == "530f8afbc74536b9a963b4f1c4cb738b",
    ),
    KnownAnswer(
        id="aes-gcm-case-14",
        source="GCM specification, test case 14",
        holds=lambda: (
            seal(bytes(32), bytes(16), context=b"").hex()
            == "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"
        ),
    ),
    KnownAnswer(
        id="aes-gcm-context",
        source="the associated data of the GCM specification",
        holds=_sealed_only_as_made,
    ),
    KnownAnswer(
        id="ed25519-test-1",
        source="RFC 8032, section 7.1, test 1",
        holds=lambda: _signature(
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
    ),
    KnownAnswer(
        id="ed25519-test-2",
        source="RFC 8032, section 7.1, test 2",
        holds=lambda: _signature(
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
    ),
    KnownAnswer(
        id="ed25519-test-3",
        source="RFC 8032, section 7.1, test 3",
        holds=lambda: _signature(
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
            "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
    ),
    KnownAnswer(
        id="ed25519-refusals",
        source="RFC 8032, section 5.1.7: zero, short and foreign signatures",
        holds=lambda: all(
            _not_verified(b"message", signature)
            for signature in (bytes(64), b"", b"\xff" * 64, Ed25519Signer(b"\1" * 32).sign(b"x"))
        ),
    ),
    KnownAnswer(
        id="shamir-interpolation",
        source="Shamir, How to share a secret, 1979",
        holds=_interpolates,
    ),
)
"""All known answers."""
