"""Packed residues: one byte string per ciphertext, one ciphertext per byte string, exact sums."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedrl.errors import RemoteProtocolError
from privfedrl.he.parameter_sets import PARAMETER_SETS
from privfedrl.he.residues import Residues, add_into, pack, packed_bytes, unpack

CHAINS = sorted(
    {chain for row in PARAMETER_SETS.values() for chain in (row.primes, row.sent_primes)}
)
chains = st.sampled_from(CHAINS)
STD = PARAMETER_SETS["bfv-4096-std"].sent_primes


def _residues(primes: tuple[int, ...], degree: int, count: int, seed: int) -> Residues:
    """Uniform residues, with 0 and the largest one among them in every row."""
    rng = np.random.default_rng(seed)
    out = np.empty((count, 2, len(primes), degree), dtype=np.uint64)
    for index, prime in enumerate(primes):
        out[:, :, index] = rng.integers(0, prime, size=(count, 2, degree), dtype=np.uint64)
        out[:, :, index, rng.integers(degree)] = 0
        out[:, :, index, rng.integers(degree)] = prime - 1
    return out


@given(chains, st.sampled_from([2, 4, 64, 4096]), st.integers(0, 3), st.integers(0, 2**32))
def test_what_was_packed_is_unpacked(
    primes: tuple[int, ...], degree: int, count: int, seed: int
) -> None:
    residues = _residues(primes, degree, count, seed)
    before = residues.copy()
    data = pack(residues, primes)
    assert len(data) == count * packed_bytes(primes, degree)
    forms: tuple[Any, ...] = (data, memoryview(data), bytearray(data))
    for given_as in forms:
        found = unpack(given_as, primes, degree, count)
        assert found.dtype == np.uint64
        assert np.array_equal(found, residues)
    assert np.array_equal(residues, before)


@given(chains, st.data())
def test_every_byte_string_is_refused_or_is_the_packing_of_its_residues(
    primes: tuple[int, ...], data: st.DataObject
) -> None:
    """Canonical: no ciphertext has two encodings."""
    size = packed_bytes(primes, 2)
    text = data.draw(st.binary(min_size=size, max_size=size))
    try:
        residues = unpack(text, primes, 2, 1)
    except RemoteProtocolError:
        return
    assert pack(residues, primes) == text


@pytest.mark.parametrize("primes", CHAINS)
def test_flipping_any_bit_gives_another_ciphertext_or_a_refusal(primes: tuple[int, ...]) -> None:
    residues = _residues(primes, 4, 1, seed=1)
    data = pack(residues, primes)
    changed = refused = 0
    for place in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        try:
            found = unpack(bytes(flipped), primes, 4, 1)
        except RemoteProtocolError:
            refused += 1
        else:
            changed += 1
            # exactly one residue changes, by a power of two
            distance = np.abs(found.astype(object) - residues.astype(object)).ravel()
            (only,) = distance[distance != 0]
            assert only & (only - 1) == 0
            assert pack(found, primes) == bytes(flipped)
    assert refused > 0  # the rows hold prime - 1
    assert changed > refused


@given(chains, st.integers(0, 3), st.integers(-40, 40), st.integers(0, 3))
def test_every_length_but_the_exact_one_is_refused(
    primes: tuple[int, ...], count: int, difference: int, claimed: int
) -> None:
    size = packed_bytes(primes, 4)
    length = max(0, count * size + difference)
    if length == claimed * size:
        assert unpack(bytes(length), primes, 4, claimed).shape == (claimed, 2, len(primes), 4)
        return
    with pytest.raises(RemoteProtocolError, match=f"must be {claimed * size} bytes, got {length}"):
        unpack(bytes(length), primes, 4, claimed)


@given(chains, st.data())
def test_a_residue_that_is_not_below_its_prime_is_refused_wherever_it_is(
    primes: tuple[int, ...], data: st.DataObject
) -> None:
    residues = _residues(primes, 8, 2, seed=2)
    index = data.draw(st.integers(0, len(primes) - 1))
    width = -(-primes[index].bit_length() // 4) * 4
    place = [data.draw(st.integers(0, most)) for most in (1, 1, 7)]
    value = data.draw(st.integers(primes[index], 2**width - 1) | st.just(primes[index]))
    residues[place[0], place[1], index, place[2]] = value
    with pytest.raises(RemoteProtocolError, match="below its prime"):
        unpack(pack(residues, primes), primes, 8, 2)


def test_packed_sizes_have_no_gap_for_primes_of_20_24_40_and_60_bits() -> None:
    sizes = {
        name: packed_bytes(row.sent_primes, row.degree) for name, row in PARAMETER_SETS.items()
    }
    assert sizes == {
        "bfv-4096-std": 2 * 4096 * 60 // 8,
        "bfv-4096-compact": 2 * 4096 * 60 // 8,
        "bfv-4096-wide": 2 * 4096 * 80 // 8,
        "bfv-4096-192": 2 * 4096 * 56 // 8,
        "ckks-4096-add": 2 * 4096 * 48 // 8,
    }


def test_the_layout_is_low_word_first_without_a_gap() -> None:
    """Frozen: 20-bit residues 1 and 0xABCDE make five bytes; the 60-bit rows come before them."""
    primes = PARAMETER_SETS["bfv-4096-std"].primes
    residues = np.zeros((1, 2, 2, 2), dtype=np.uint64)
    residues[0, 0, 1] = [1, 0xABCDE]
    residues[0, 1, 0] = [2, 0x0FED_CBA9_8765_4321]
    data = pack(residues, primes)
    first, second = data[:20], data[20:]
    assert first == bytes(15) + bytes.fromhex("0100e0cdab")
    assert second == bytes.fromhex("0200000000000010325476" + "98badcfe") + bytes(5)


@given(chains, st.integers(0, 3), st.integers(0, 2**32), st.integers(1, 5))
def test_sums_are_exact_modulo_every_prime(
    primes: tuple[int, ...], count: int, seed: int, addends: int
) -> None:
    """Against Python's integers; the largest residues are among the addends."""
    total = _residues(primes, 16, count, seed)
    expected = total.astype(object)
    for index in range(addends):
        addend = _residues(primes, 16, count, seed + index + 1)
        kept = addend.copy()
        add_into(total, addend, primes)
        assert np.array_equal(addend, kept)
        expected = (expected + addend) % np.array(primes, dtype=object)[:, None]
    assert np.array_equal(total, expected.astype(np.uint64))


@pytest.mark.parametrize("primes", CHAINS)
def test_the_edges_of_a_sum_are_reduced(primes: tuple[int, ...]) -> None:
    for left, right in ((1, 1), (1, 2), (0, 1), (2, 0)):  # p - left + p - right, p = 0
        values = np.array(primes, dtype=np.uint64)[:, None]
        total = np.empty((1, 2, len(primes), 4), dtype=np.uint64)
        total[:] = values - np.uint64(left) if left else 0
        addend = np.empty_like(total)
        addend[:] = values - np.uint64(right) if right else 0
        add_into(total, addend, primes)
        expected = [(-left - right) % prime for prime in primes]
        assert total[0, 1, :, 3].tolist() == expected


def test_adding_a_ciphertext_to_itself_doubles_it() -> None:
    total = _residues(STD, 64, 2, seed=3)
    expected = total.astype(object) * 2 % STD[0]
    add_into(total, total, STD)
    assert np.array_equal(total, expected.astype(np.uint64))


def test_unpacked_residues_are_a_copy_that_may_be_written() -> None:
    data = bytearray(pack(_residues(STD, 4, 1, seed=4), STD))
    residues = unpack(memoryview(data), STD, 4, 1)
    kept = residues.copy()
    data[:] = bytes(len(data))
    assert np.array_equal(residues, kept)
    residues += np.uint64(1)


def _peak(work: object) -> int:
    assert callable(work)
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_bounded_by_the_residues_themselves() -> None:
    """A wrong length allocates nothing, whatever count is claimed; a right one a small multiple."""
    residues = _residues(STD, 4096, 32, seed=5)
    data = pack(residues, STD)

    def hostile() -> None:
        for count in (10**12, 33, 31):
            with pytest.raises(RemoteProtocolError):
                unpack(data, STD, 4096, count)

    assert _peak(hostile) < 2**20
    assert _peak(lambda: unpack(data, STD, 4096, 32)) < 4 * residues.nbytes
    assert _peak(lambda: pack(residues, STD)) < 4 * residues.nbytes
    assert _peak(lambda: add_into(residues, residues, STD)) < 1.1 * residues.nbytes
