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
from privfedrl.primitives.shamir import LIMBS, PRIME, combine, decode_shares, encode_share, split

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
    shares = split(secrets, threshold=threshold, num_shares=num_shares, entropy=ENTROPY)
    assert shares.shape == (num_shares, len(secrets), LIMBS)
    assert combine(shares[chosen], [index + 1 for index in chosen]) == secrets


def test_shares_are_values_of_the_stated_polynomials() -> None:
    entropy = DeterministicEntropy(b"poly")
    secret = bytes(range(32))
    shares = split([secret], threshold=5, num_shares=9, entropy=entropy)
    for limb in range(LIMBS):
        points = [(x, int(shares[x - 1, 0, limb])) for x in range(1, 6)]
        number = int.from_bytes(secret, "little") >> 15 * limb & 0x7FFF
        assert interpolate(points, 0) == number
        for x in range(6, 10):
            assert interpolate(points, x) == int(shares[x - 1, 0, limb])


def test_products_stay_exact_at_the_largest_cohort() -> None:
    count = 256
    shares = split([b"\xff" * 32], threshold=count, num_shares=count, entropy=ENTROPY)
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
            num_shares=case["num_shares"],
            entropy=DeterministicEntropy(seed),
        )
        encoded = [encode_share(share).hex() for share in shares]
        assert encoded == case["shares"]
        for subset in combinations(range(case["num_shares"]), case["threshold"]):
            rows = np.stack(
                [decode_shares(bytes.fromhex(case["shares"][k]), count=1) for k in subset]
            )
            assert combine(rows, [k + 1 for k in subset]) == (secret,)


@pytest.mark.statistical
def test_fewer_shares_are_uniform_whatever_the_secret() -> None:
    """Chi-square on 16 cells, 36,000 limbs per secret: false-positive rate 5e-7 for each of two."""
    critical = 58.3  # chi-square with 15 degrees of freedom exceeds it with probability 5e-7
    entropy = DeterministicEntropy(b"uniform")
    for secret in (bytes(32), b"\xff" * 32):
        limbs = np.concatenate(
            [
                split([secret], threshold=2, num_shares=3, entropy=entropy)[1].ravel()
                for _ in range(2000)
            ]
        )
        counts = np.histogram(limbs, bins=16, range=(0, PRIME))[0]
        widths = np.diff(np.ceil(np.linspace(0, PRIME, 17)))
        expected = limbs.size * widths / PRIME
        assert ((counts - expected) ** 2 / expected).sum() < critical


def test_a_wrong_share_changes_the_secret_or_is_noticed() -> None:
    secret = b"s" * 32
    shares = split([secret], threshold=3, num_shares=4, entropy=ENTROPY)
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

    shares = split([bytes(32)], threshold=2, num_shares=2, entropy=entropy)
    assert served == [36, 36]
    assert (shares[0, 0] == 0x0101).all()


@pytest.mark.parametrize(
    ("threshold", "num_shares"), [(0, 3), (4, 3), (1, 0), (1, shamir.MAX_SHARES + 1)]
)
def test_impossible_thresholds_are_refused(threshold: int, num_shares: int) -> None:
    with pytest.raises(ConfigurationError, match="threshold"):
        split([bytes(32)], threshold=threshold, num_shares=num_shares, entropy=ENTROPY)


def test_secrets_of_another_length_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="32 bytes"):
        split([bytes(31)], threshold=1, num_shares=1, entropy=ENTROPY)


@pytest.mark.parametrize("points", [[1, 1], [0, 1], [1, PRIME]])
def test_repeated_or_forbidden_points_are_refused(points: list[int]) -> None:
    with pytest.raises(ConfigurationError, match="points"):
        combine(np.zeros((2, 1, LIMBS), np.uint16), points)


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
    shares = split([b"x" * 32, b"y" * 32], threshold=2, num_shares=2, entropy=ENTROPY)
    assert (decode_shares(encode_share(shares[1]), count=2) == shares[1]).all()
