"""X25519 and HKDF: RFC known answers, and keys that nobody honest can have sent."""

from __future__ import annotations

import copy
import pickle

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from privfedrl.errors import ConfigurationError, LocalProtocolError, RemoteProtocolError
from privfedrl.primitives.key_agreement import (
    LOW_ORDER_POINTS,
    KeyPair,
    check_public_key,
    hkdf_sha256,
)
from privfedrl.primitives.random import DeterministicEntropy

P = 2**255 - 19
hexes = bytes.fromhex


@pytest.mark.parametrize(
    ("scalar", "u", "expected"),
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ],
)
def test_rfc_7748_section_5_2(scalar: str, u: str, expected: str) -> None:
    assert KeyPair.from_secret_bytes(hexes(scalar)).agree(hexes(u)).hex() == expected


def test_rfc_7748_section_5_2_iterated() -> None:
    k = u = (9).to_bytes(32, "little")
    for iteration in range(1, 1001):
        k, u = KeyPair.from_secret_bytes(k).agree(u), k
        if iteration == 1:
            assert k.hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    assert k.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


def test_rfc_7748_section_6_1() -> None:
    alice = KeyPair.from_secret_bytes(
        hexes("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    )
    bob = KeyPair.from_secret_bytes(
        hexes("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    )
    assert alice.public.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert bob.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert alice.agree(bob.public).hex() == bob.agree(alice.public).hex() == shared


@pytest.mark.parametrize(
    ("ikm", "salt", "info", "okm"),
    [
        (
            b"\x0b" * 22,
            bytes(range(13)),
            bytes(range(0xF0, 0xFA)),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            bytes(range(0x50)),
            bytes(range(0x60, 0xB0)),
            bytes(range(0xB0, 0x100)),
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb"
            "41c65e590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
        ),
        (
            b"\x0b" * 22,
            b"",
            b"",
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
)
def test_rfc_5869_cases_1_to_3(ikm: bytes, salt: bytes, info: bytes, okm: str) -> None:
    assert hkdf_sha256(ikm, salt=salt, info=info, length=len(okm) // 2).hex() == okm


@given(
    secret=st.binary(max_size=80),
    salt=st.binary(max_size=80),
    info=st.binary(max_size=80),
    length=st.integers(1, 255 * 32),
)
def test_derived_keys_are_those_of_an_independent_library(
    secret: bytes, salt: bytes, info: bytes, length: int
) -> None:
    theirs = HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(secret)
    assert hkdf_sha256(secret, salt=salt, info=info, length=length) == theirs


@pytest.mark.parametrize("length", [0, -1, 255 * 32 + 1])
def test_a_length_that_hkdf_cannot_give_is_refused(length: int) -> None:
    with pytest.raises(ConfigurationError, match="length must be"):
        hkdf_sha256(b"secret", salt=b"", info=b"", length=length)


@pytest.mark.parametrize("u", [*sorted(LOW_ORDER_POINTS), P, P + 1])
@pytest.mark.parametrize("top_bit", [0, 1])
def test_low_order_points_are_refused(u: int, top_bit: int) -> None:
    point = (u | top_bit << 255).to_bytes(32, "little")
    with pytest.raises(RemoteProtocolError, match="low order"):
        KeyPair.generate(DeterministicEntropy(b"a")).agree(point)
    with pytest.raises(RemoteProtocolError, match="low order"):
        check_public_key(point)


def test_an_all_zero_secret_is_refused_even_past_the_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from privfedrl.primitives import key_agreement

    monkeypatch.setattr(key_agreement, "_LOW_ORDER_ENCODINGS", frozenset())
    with pytest.raises(RemoteProtocolError, match="all-zero"):
        KeyPair.generate(DeterministicEntropy(b"a")).agree(bytes(32))


@pytest.mark.parametrize("u", [P + 2, P + 9, 2**255 - 1, 9 | 2**255])
def test_non_canonical_public_keys_are_refused(u: int) -> None:
    with pytest.raises(RemoteProtocolError, match="canonical"):
        check_public_key(u.to_bytes(32, "little"))


def test_honest_public_keys_are_accepted() -> None:
    entropy = DeterministicEntropy(b"honest")
    for _ in range(32):
        check_public_key(KeyPair.generate(entropy).public)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_keys_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match="32 bytes"):
        check_public_key(bytes(length))
    with pytest.raises(ConfigurationError, match="32 bytes"):
        KeyPair.from_secret_bytes(bytes(length))


def test_a_key_pair_is_rebuilt_from_its_secret_bytes() -> None:
    pair = KeyPair.generate(DeterministicEntropy(b"pair"))
    assert KeyPair.from_secret_bytes(pair.secret_bytes()).public == pair.public


def test_a_key_pair_hides_its_key_and_stays_in_this_process() -> None:
    pair = KeyPair.from_secret_bytes(b"k" * 32)
    assert repr(pair) == "KeyPair(<secret>)"
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(LocalProtocolError):
            leave(pair)
