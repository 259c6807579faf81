"""The mask engine against an independent construction: AES-256-ECB of the counters."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR, ECB

from privfedrl.errors import ConfigurationError
from privfedrl.primitives.stream import add_keystream, apply_keystreams, subtract_keystream

KEY = bytes(range(32))


def keystream(key: bytes, size: int) -> bytes:
    counters = b"".join(k.to_bytes(16, "big") for k in range(size // 16 + 1))
    return Cipher(AES256(key), ECB()).encryptor().update(counters)[:size]


def test_sp_800_38a_f_5_5_first_block() -> None:
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172a")
    cipher = Cipher(AES256(key), CTR(counter)).encryptor()
    assert cipher.update(plain).hex() == "601ec313775789a5b7a7f504bbf3d228"


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
@pytest.mark.parametrize("length", [0, 1, 3, 5, 16383, 16384, 16385, 32768, 32769, 100_003])
def test_the_mask_is_the_counter_mode_keystream(dtype: str, length: int) -> None:
    acc = np.zeros(length, dtype)
    add_keystream(acc, KEY)
    assert acc.tobytes() == keystream(KEY, acc.nbytes)


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
def test_adding_then_subtracting_is_the_identity(dtype: str) -> None:
    before = np.random.default_rng(0).integers(0, 2**32, 70_001).astype(dtype)
    acc = before.copy()
    add_keystream(acc, KEY)
    assert (acc != before).any()
    subtract_keystream(acc, KEY)
    assert (acc == before).all()


def test_many_keys_at_once_equal_one_after_the_other() -> None:
    keys = [bytes([k]) * 32 for k in range(5)]
    together = np.full(40_000, 7, np.uint32)
    single = together.copy()
    apply_keystreams(together, add=keys[:3], subtract=keys[3:])
    for key in keys[:3]:
        add_keystream(single, key)
    for key in keys[3:]:
        subtract_keystream(single, key)
    assert (together == single).all()


def test_memory_does_not_grow_with_the_vector() -> None:
    acc = np.zeros(2_000_000, np.uint32)
    tracemalloc.start()
    add_keystream(acc, KEY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(
    "acc",
    [
        [1, 2],
        np.zeros(4, np.int32),
        np.zeros(4),
        np.zeros((2, 2), np.uint32),
        np.zeros(8, np.uint32)[::2],
        np.frombuffer(bytes(8), np.uint32),
    ],
)
def test_other_arrays_are_refused(acc: np.ndarray) -> None:
    with pytest.raises(ConfigurationError, match="acc must"):
        add_keystream(acc, KEY)


def test_a_short_key_is_refused_and_nothing_changes() -> None:
    acc = np.zeros(4, np.uint32)
    with pytest.raises(ConfigurationError, match="32 bytes"):
        apply_keystreams(acc, add=[KEY, bytes(16)])
    assert not acc.any()
