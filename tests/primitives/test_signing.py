"""Ed25519: known answer, opaque failure, and verify keys that would accept anything."""

from __future__ import annotations

import copy
import pickle

import pytest

from privfedrl.errors import AuthenticationFailed, ConfigurationError, LocalProtocolError
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.primitives.signing import Ed25519Signer, check_verify_key, verify

P = 2**255 - 19
ORDER_EIGHT_Y = (
    0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
    0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
)


def test_rfc_8032_test_1() -> None:
    signer = Ed25519Signer(
        bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    )
    assert (
        signer.verify_key.hex()
        == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    )
    signature = signer.sign(b"")
    assert signature.hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )
    verify(signer.verify_key, signature, b"")


def test_every_failure_looks_the_same() -> None:
    signer = Ed25519Signer.generate(DeterministicEntropy(b"s"))
    other = Ed25519Signer.generate(DeterministicEntropy(b"o"))
    signature = signer.sign(b"message")
    cases = [
        (signer.verify_key, signature, b"massage"),
        (signer.verify_key, bytes(64), b"message"),
        (signer.verify_key, signature[:-1], b"message"),
        (other.verify_key, signature, b"message"),
        (b"short", signature, b"message"),
    ]
    for case in cases:
        with pytest.raises(AuthenticationFailed) as caught:
            verify(*case)
        assert str(caught.value) == "authentication failed"


@pytest.mark.parametrize("y", [0, 1, P - 1, *ORDER_EIGHT_Y])
@pytest.mark.parametrize("sign_bit", [0, 1])
def test_small_order_verify_keys_are_refused(y: int, sign_bit: int) -> None:
    key = (y | sign_bit << 255).to_bytes(32, "little")
    with pytest.raises(ConfigurationError, match="small order"):
        check_verify_key(key)


def test_unusable_verify_keys_are_refused() -> None:
    off_curve = next(y for y in range(2, 50) if _refused(y, "not a point"))
    assert off_curve
    assert _refused(P, "not canonical")
    assert _refused(P + 1, "not canonical")
    with pytest.raises(ConfigurationError, match="32 bytes"):
        check_verify_key(bytes(31))


def test_honest_verify_keys_are_accepted() -> None:
    entropy = DeterministicEntropy(b"honest")
    for _ in range(64):
        check_verify_key(Ed25519Signer.generate(entropy).verify_key)


def test_a_signer_hides_its_key_and_stays_in_this_process() -> None:
    signer = Ed25519Signer(b"k" * 32)
    assert signer.secret_bytes() == b"k" * 32
    assert "6b6b" not in repr(signer)
    assert "kkk" not in repr(signer)
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(LocalProtocolError):
            leave(signer)
    with pytest.raises(ConfigurationError, match="seed"):
        Ed25519Signer(b"short")


def _refused(y: int, reason: str) -> bool:
    try:
        check_verify_key(y.to_bytes(32, "little"))
    except ConfigurationError as error:
        return reason in str(error)
    return False
