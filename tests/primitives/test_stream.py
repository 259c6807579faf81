"""The mask engine against an independent construction: AES-256-ECB of the counters."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR, ECB

from privfedrl.errors import ConfigurationError
from privfedrl.primitives.stream import (
    MIN_THREAD_BYTES,
    TILE_BYTES,
    add_keystream,
    apply_keystreams,
    subtract_keystream,
)

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
@pytest.mark.parametrize(
    "length",
    [0, 1, 3, 5, 32767, 32768, 32769, TILE_BYTES // 4, TILE_BYTES // 4 + 1, TILE_BYTES // 2 + 3],
)
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
    assert peak < 2 * TILE_BYTES


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


def test_an_unknown_number_of_threads_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="threads"):
        apply_keystreams(np.zeros(4, np.uint32), add=[KEY], threads=0)


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
def test_threads_change_nothing_but_the_time(dtype: str, threads: int) -> None:
    """Lengths around whole tiles per slice; slices in the middle seek to their own counter."""
    words = MIN_THREAD_BYTES // np.dtype(dtype).itemsize
    keys = [bytes([k]) * 32 for k in range(4)]
    for length in (words - 1, 2 * words, 2 * words + 1, 3 * words - 1, 3 * words + 5):
        alone = np.arange(length).astype(dtype)
        many = alone.copy()
        mirror_alone, mirror_many = np.zeros_like(alone), np.zeros_like(alone)
        for acc, mirror, count in ((alone, mirror_alone, 1), (many, mirror_many, threads)):
            apply_keystreams(
                acc, add=keys[:2], subtract=keys[2:], mirrors={keys[3]: mirror}, threads=count
            )
        assert (alone == many).all()
        assert (mirror_alone == mirror_many).all()


def test_the_counter_of_a_middle_slice_is_that_of_its_block() -> None:
    acc = np.zeros(2 * MIN_THREAD_BYTES // 4, np.uint32)
    apply_keystreams(acc, add=[KEY], threads=2)
    assert acc.tobytes() == keystream(KEY, acc.nbytes)


def test_a_mirror_takes_the_opposite_of_what_the_vector_takes() -> None:
    keys = [bytes([k]) * 32 for k in range(4)]
    length = TILE_BYTES // 4 + 17
    acc = np.full(length, 5, np.uint32)
    mirrors = {keys[0]: np.full(length, 9, np.uint32), keys[2]: np.zeros(length, np.uint32)}
    apply_keystreams(acc, add=keys[:2], subtract=keys[2:], mirrors=mirrors)
    expected = {key: np.full(length, 0, np.uint32) for key in keys}
    for key, stream in expected.items():
        add_keystream(stream, key)
    g = [expected[key] for key in keys]
    assert (acc == 5 + g[0] + g[1] - g[2] - g[3]).all()
    assert (mirrors[keys[0]] == 9 - g[0]).all()
    assert (mirrors[keys[2]] == g[2]).all()


@pytest.mark.parametrize(
    "mirror",
    [
        np.zeros(5, np.uint32),
        np.zeros(4, np.uint64),
        np.zeros(4, np.int32),
        np.zeros(8, np.uint32)[::2],
        np.frombuffer(bytes(16), np.uint32),
    ],
)
def test_a_mirror_of_another_form_is_refused_and_nothing_changes(mirror: np.ndarray) -> None:
    acc = np.zeros(4, np.uint32)
    with pytest.raises(ConfigurationError, match="mirror"):
        apply_keystreams(acc, add=[KEY], mirrors={KEY: mirror})
    assert not acc.any()


def test_a_vector_is_never_its_own_mirror_and_mirrors_belong_to_keys() -> None:
    acc = np.zeros(8, np.uint32)
    with pytest.raises(ConfigurationError, match="another array"):
        apply_keystreams(acc, add=[KEY], mirrors={KEY: acc})
    with pytest.raises(ConfigurationError, match="another array"):
        apply_keystreams(acc[:4], add=[KEY], mirrors={KEY: acc[2:6]})
    with pytest.raises(ConfigurationError, match="belong to a key"):
        apply_keystreams(acc, add=[KEY], mirrors={bytes(32): np.zeros(8, np.uint32)})
    assert not acc.any()
