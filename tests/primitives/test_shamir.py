"""Shamir sharing against big-integer arithmetic, and what it refuses."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.errors import ConfigurationError, RemoteProtocolError
from privfedrl.primitives import shamir
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.primitives.shamir import (
    LIMBS,
    MAX_SHARES,
    PRIME,
    combine,
    combine_each,
    decode_shares,
    encode_share,
    extrapolate,
    split,
)

ENTROPY = DeterministicEntropy(b"shamir")
VECTORS = Path(__file__).parents[1] / "vectors" / "shamir.json"


def interpolate(points: list[tuple[int, int]], at: int) -> int:
    total = 0
    for i, (xi, yi) in enumerate(points):
        top = bottom = 1
        for j, (xj, _) in enumerate(points):
            if i != j:
                top, bottom = top * (at - xj), bottom * (xi - xj)
        total += yi * top * pow(bottom, -1, PRIME)
    return total % PRIME


@settings(max_examples=60, deadline=None)
@given(data=st.data(), num_shares=st.integers(1, 40))
def test_any_threshold_shares_give_the_secrets_back(data: st.DataObject, num_shares: int) -> None:
    threshold = data.draw(st.integers(1, num_shares))
    secrets = tuple(
        data.draw(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=3))
    )
    chosen = data.draw(
        st.lists(st.sampled_from(range(num_shares)), min_size=threshold, unique=True)
    )
    shares = split(secrets, threshold=threshold, points=range(1, num_shares + 1), entropy=ENTROPY)
    assert shares.shape == (num_shares, len(secrets), LIMBS)
    assert combine(shares[chosen], [index + 1 for index in chosen]) == secrets


def test_shares_are_values_of_the_stated_polynomials() -> None:
    entropy = DeterministicEntropy(b"poly")
    secret = bytes(range(32))
    shares = split([secret], threshold=5, points=range(1, 10), entropy=entropy)
    for limb in range(LIMBS):
        points = [(x, int(shares[x - 1, 0, limb])) for x in range(1, 6)]
        number = int.from_bytes(secret, "little") >> 15 * limb & 0x7FFF
        assert interpolate(points, 0) == number
        for x in range(6, 10):
            assert interpolate(points, x) == int(shares[x - 1, 0, limb])


def test_products_stay_exact_at_the_largest_cohort() -> None:
    count = 256
    shares = split([b"\xff" * 32], threshold=count, points=range(1, count + 1), entropy=ENTROPY)
    points = [(x, int(shares[x - 1, 0, 0])) for x in range(1, count + 1)]
    assert interpolate(points, 0) == 0x7FFF
    assert combine(shares, range(1, count + 1)) == (b"\xff" * 32,)


def test_frozen_vectors_still_interpolate() -> None:
    for case in json.loads(VECTORS.read_text())["cases"]:
        seed = bytes.fromhex(case["entropy_seed"])
        secret = bytes.fromhex(case["secret"])
        shares = split(
            [secret],
            threshold=case["threshold"],
            points=range(1, case["num_shares"] + 1),
            entropy=DeterministicEntropy(seed),
        )
        encoded = [encode_share(share).hex() for share in shares]
        assert encoded == case["shares"]
        sparse = split(
            [secret],
            threshold=case["threshold"],
            points=case["points"],
            entropy=DeterministicEntropy(seed),
        )
        assert [encode_share(share).hex() for share in sparse] == case["shares_at_points"]
        for subset in combinations(range(case["num_shares"]), case["threshold"]):
            rows = np.stack(
                [decode_shares(bytes.fromhex(case["shares"][k]), count=1) for k in subset]
            )
            assert combine(rows, [k + 1 for k in subset]) == (secret,)
            at = [case["points"][k] for k in subset]
            assert combine(sparse[list(subset)], at) == (secret,)


@pytest.mark.statistical
def test_fewer_shares_are_uniform_whatever_the_secret() -> None:
    """Chi-square on 16 cells, 36,000 limbs per secret: false-positive rate 5e-7 for each of two."""
    critical = 58.3  # chi-square with 15 degrees of freedom exceeds it with probability 5e-7
    entropy = DeterministicEntropy(b"uniform")
    for secret in (bytes(32), b"\xff" * 32):
        limbs = np.concatenate(
            [
                split([secret], threshold=2, points=range(1, 4), entropy=entropy)[1].ravel()
                for _ in range(2000)
            ]
        )
        counts = np.histogram(limbs, bins=16, range=(0, PRIME))[0]
        widths = np.diff(np.ceil(np.linspace(0, PRIME, 17)))
        expected = limbs.size * widths / PRIME
        assert ((counts - expected) ** 2 / expected).sum() < critical


def test_a_wrong_share_changes_the_secret_or_is_noticed() -> None:
    secret = b"s" * 32
    shares = split([secret], threshold=3, points=range(1, 5), entropy=ENTROPY)
    for limb in range(LIMBS):
        forged = shares[:3].copy()
        forged[1, 0, limb] = (int(forged[1, 0, limb]) + 1) % PRIME
        assert combine(forged, [1, 2, 3]) != (secret,)


def test_values_that_are_no_secret_are_reported_as_none() -> None:
    too_large_limb = np.zeros((1, 1, LIMBS), np.uint16)
    too_large_limb[0, 0, 3] = 2**15
    assert combine(too_large_limb, [1]) == (None,)
    over_256_bits = np.zeros((1, 1, LIMBS), np.uint16)
    over_256_bits[0, 0, 17] = 2
    assert combine(over_256_bits, [1]) == (None,)


def test_rejection_draws_again_until_every_value_is_below_p() -> None:
    served: list[int] = []

    def entropy(n: int) -> bytes:
        served.append(n)
        return b"\xff" * n if len(served) == 1 else b"\x01" * n

    shares = split([bytes(32)], threshold=2, points=range(1, 3), entropy=entropy)
    assert served == [36, 36]
    assert (shares[0, 0] == 0x0101).all()


@pytest.mark.parametrize(
    ("threshold", "num_shares"), [(0, 3), (4, 3), (1, 0), (1, shamir.MAX_SHARES + 1)]
)
def test_impossible_thresholds_are_refused(threshold: int, num_shares: int) -> None:
    with pytest.raises(ConfigurationError, match="threshold"):
        split([bytes(32)], threshold=threshold, points=range(1, num_shares + 1), entropy=ENTROPY)


def test_secrets_of_another_length_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="32 bytes"):
        split([bytes(31)], threshold=1, points=range(1, 2), entropy=ENTROPY)


@pytest.mark.parametrize("points", [[1, 1], [0, 1], [1, PRIME], [-1, 1], [1, PRIME + 1]])
def test_repeated_or_forbidden_points_are_refused(points: list[int]) -> None:
    with pytest.raises(ConfigurationError, match="points"):
        combine(np.zeros((2, 1, LIMBS), np.uint16), points)
    with pytest.raises(ConfigurationError, match="points"):
        combine_each(np.zeros((1, 2, LIMBS), np.uint16), np.array([points]))
    with pytest.raises(ConfigurationError, match="points"):
        split([bytes(32)], threshold=2, points=points, entropy=ENTROPY)


def test_more_shares_than_points_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="threshold"):
        split([bytes(32)], threshold=3, points=[5, 6], entropy=ENTROPY)


def test_shares_are_values_at_the_stated_points() -> None:
    points = [MAX_SHARES, 9, 4_711, 1, 30_000, 65_000]
    secrets = [bytes(range(32)), b"\xff" * 32]
    shares = split(secrets, threshold=4, points=points, entropy=ENTROPY)
    for column, secret in enumerate(secrets):
        for limb in range(LIMBS):
            values = [(x, int(shares[row, column, limb])) for row, x in enumerate(points)]
            number = int.from_bytes(secret, "little") >> 15 * limb & 0x7FFF
            assert interpolate(values[:4], 0) == interpolate(values[2:], 0) == number
            for x, value in values[4:]:
                assert interpolate(values[:4], x) == value


point_sets = st.lists(st.integers(1, MAX_SHARES), min_size=1, max_size=30, unique=True)


@settings(max_examples=80, deadline=None)
@given(points=point_sets, x=st.integers(-PRIME, 2 * PRIME), data=st.data())
def test_extrapolation_is_exact_everywhere(points: list[int], x: int, data: st.DataObject) -> None:
    target = data.draw(st.sampled_from([x, points[0], points[-1], PRIME]))
    values = data.draw(
        st.lists(st.integers(0, PRIME - 1), min_size=len(points), max_size=len(points))
    )
    shares = np.array(values, np.uint16)[:, np.newaxis, np.newaxis].repeat(LIMBS, axis=2)
    expected = interpolate(list(zip(points, values, strict=True)), target)
    assert (extrapolate(shares, points, target) == expected).all()


@pytest.mark.parametrize("count", [67, 175, 318])
def test_lagrange_weights_are_exact_for_large_sets(count: int) -> None:
    rng = np.random.default_rng(count)
    points = (rng.choice(MAX_SHARES, count, replace=False) + 1).tolist()
    values = rng.integers(0, PRIME, count)
    shares = values.astype(np.uint16)[:, np.newaxis, np.newaxis].repeat(LIMBS, axis=2)
    expected = interpolate(list(zip(points, values.tolist(), strict=True)), 0)
    assert (extrapolate(shares, points, 0) == expected).all()


@settings(max_examples=40, deadline=None)
@given(data=st.data(), owners=st.integers(0, 9), threshold=st.integers(1, 12))
def test_owners_with_holders_of_their_own_are_combined_at_once(
    data: st.DataObject, owners: int, threshold: int
) -> None:
    secrets = data.draw(
        st.lists(st.binary(min_size=32, max_size=32), min_size=owners, max_size=owners)
    )
    points = [
        data.draw(
            st.lists(
                st.integers(1, MAX_SHARES), min_size=threshold, max_size=threshold, unique=True
            )
        )
        for _ in range(owners)
    ]
    shares = [
        split([secret], threshold=threshold, points=at, entropy=ENTROPY)[:, 0]
        for secret, at in zip(secrets, points, strict=True)
    ]
    matrix = np.array(shares, np.uint16).reshape(owners, threshold, LIMBS)
    at = np.array(points, np.int64).reshape(owners, threshold)
    assert combine_each(matrix, at) == tuple(secrets)


def test_blocks_of_owners_agree_with_one_owner_at_a_time() -> None:
    owners, threshold = 150, 30  # several blocks of 2^16 // 30^2 = 72 owners
    rng = np.random.default_rng(3)
    shares = rng.integers(0, PRIME, (owners, threshold, LIMBS)).astype(np.uint16)
    shares[7] = 0  # an owner whose secret is 32 zero bytes
    points = np.stack([rng.choice(9_999, threshold, replace=False) + 1 for _ in range(owners)])
    single = [combine(shares[k][:, np.newaxis], points[k].tolist())[0] for k in range(owners)]
    assert combine_each(shares, points) == tuple(single)
    assert single[7] == bytes(32)


def test_one_repeated_point_among_many_owners_is_noticed() -> None:
    points = np.tile(np.arange(1, 6), (200, 1))
    points[199, 4] = points[199, 0]
    with pytest.raises(ConfigurationError, match="distinct"):
        combine_each(np.zeros((200, 5, LIMBS), np.uint16), points)


@pytest.mark.parametrize("edge", [0, 1, 2, -1, -2, PRIME - 1])
def test_reduction_is_exact_next_to_every_multiple_of_the_modulus(edge: int) -> None:
    """Up to 2^50 in size, both signs, against Python's integers."""
    rng = np.random.default_rng(0)
    quotients = [0, 1, 2, 2**31, 2**34 - 1, *rng.integers(0, 2**34, 500).tolist()]
    for sign in (1, -1):
        numbers = [sign * quotient * PRIME + edge for quotient in quotients]
        kept = [number for number in numbers if abs(number) <= 2**50]
        reduced = shamir._reduce(np.array(kept, dtype=np.float64))
        assert reduced.astype(np.int64).tolist() == [number % PRIME for number in kept]


@settings(max_examples=100, deadline=None)
@given(secret=st.binary(min_size=32, max_size=32))
def test_limbs_are_the_fifteen_bit_digits_of_the_secret(secret: bytes) -> None:
    limbs = shamir._to_limbs(secret)[0].tolist()
    assert sum(limb << 15 * k for k, limb in enumerate(limbs)) == int.from_bytes(secret, "little")
    assert max(limbs) < 2**15
    assert shamir._from_limbs(np.array([limbs])) == (secret,)


@pytest.mark.parametrize("shape", [(0, 1, LIMBS), (1, 1, LIMBS), (2, 1, LIMBS - 1)])
def test_shares_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    points = [1, 2] if shape[0] else []
    with pytest.raises(ConfigurationError, match="shape"):
        combine(np.zeros(shape, np.uint16), points)


@pytest.mark.parametrize(
    "data", [b"", bytes(35), bytes(37), b"\xff\xff" * 18, (PRIME).to_bytes(2, "little") * 18]
)
def test_malformed_shares_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_shares(data, count=1)


def test_encoding_is_the_inverse_of_decoding() -> None:
    shares = split([b"x" * 32, b"y" * 32], threshold=2, points=range(1, 3), entropy=ENTROPY)
    assert (decode_shares(encode_share(shares[1]), count=2) == shares[1]).all()


@pytest.mark.parametrize(
    ("shares", "points"),
    [
        ((2, 3, LIMBS), (2, 2)),
        ((2, 3, LIMBS), (1, 3)),
        ((2, 3, LIMBS - 1), (2, 3)),
        ((2, 3), (2, 3)),
        ((2, 0, LIMBS), (2, 0)),
        ((3, LIMBS), (3,)),
    ],
)
def test_batches_of_another_shape_are_refused(
    shares: tuple[int, ...], points: tuple[int, ...]
) -> None:
    at = np.arange(1, 1 + int(np.prod(points))).reshape(points)
    with pytest.raises(ConfigurationError, match="points"):
        combine_each(np.zeros(shares, np.uint16), at)
    with pytest.raises(ConfigurationError, match="points"):
        combine_each(np.zeros(shares, np.uint16), at.astype(np.float64))
