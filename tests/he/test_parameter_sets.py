"""Frozen lattices: the numbers themselves, and every limit with one step beyond it refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import tenseal.sealapi as seal

from privfedrl.errors import ConfigurationError
from privfedrl.he.parameter_sets import FAILURE_BITS, PARAMETER_SETS, ParameterSet, _is_prime

FROZEN: dict[str, dict[str, Any]] = {
    "bfv-4096-std": {
        "kind": "bfv",
        "primes": (1152921504606830593, 1032193),
        "plain_modulus": 17592186175489,
        "scale_bits": None,
        "max_clients": 64,
        "security": {"classical": 128, "post_quantum": 128, "total_bits": 80},
        "plain_bits": 44,
        "slots": 4096,
    },
    "bfv-4096-compact": {
        "kind": "bfv",
        "primes": (1152921504606830593, 1032193),
        "plain_modulus": 35184372121601,
        "scale_bits": None,
        "max_clients": 32,
        "security": {"classical": 128, "post_quantum": 128, "total_bits": 80},
        "plain_bits": 45,
        "slots": 4096,
    },
    "bfv-4096-wide": {
        "kind": "bfv",
        "primes": (1099511390209, 1099511480321, 536813569),
        "plain_modulus": 576460752303439873,
        "scale_bits": None,
        "max_clients": 64,
        "security": {"classical": 128, "post_quantum": 0, "total_bits": 109},
        "plain_bits": 59,
        "slots": 4096,
    },
    "bfv-4096-192": {
        "kind": "bfv",
        "primes": (18014398509309953, 2056193),
        "plain_modulus": 274878062593,
        "scale_bits": None,
        "max_clients": 64,
        "security": {"classical": 192, "post_quantum": 128, "total_bits": 75},
        "plain_bits": 38,
        "slots": 4096,
    },
    "ckks-4096-add": {
        "kind": "ckks",
        "primes": (281474976694273, 1032193),
        "plain_modulus": None,
        "scale_bits": 36,
        "max_clients": 64,
        "security": {"classical": 128, "post_quantum": 128, "total_bits": 68},
        "plain_bits": 28,
        "slots": 2048,
    },
}
BITS = {
    "bfv-4096-std": [60, 20],
    "bfv-4096-compact": [60, 20],
    "bfv-4096-wide": [40, 40, 29],
    "bfv-4096-192": [54, 21],
    "ckks-4096-add": [48, 20],
}
SMALL_T = {2048: 12289, 4096: 40961, 8192: 65537, 16384: 65537}  # primes = 1 mod 2N


def _primes(degree: int, bits: list[int]) -> tuple[int, ...]:
    """SEAL's own choice of primes."""
    return tuple(modulus.value() for modulus in seal.CoeffModulus.Create(degree, bits))


def _small(**numbers: Any) -> ParameterSet:
    """A set with a small plain modulus, so that the failure bound is far away."""
    degree = numbers.pop("degree", 4096)
    bits = numbers.pop("bits", [54, 20])
    defaults: dict[str, Any] = {
        "name": "test",
        "kind": "bfv",
        "degree": degree,
        "primes": _primes(degree, bits),
        "plain_modulus": SMALL_T[degree],
        "scale_bits": None,
        "max_clients": 64,
        "classical": 128,
        "post_quantum": 0,
    }
    return ParameterSet(**(defaults | numbers))


def _seal_accepts(parameters: ParameterSet, level: Any) -> bool:
    exact = parameters.exact
    chosen = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV if exact else seal.SCHEME_TYPE.CKKS)
    chosen.set_poly_modulus_degree(parameters.degree)
    chosen.set_coeff_modulus([seal.Modulus(prime) for prime in parameters.primes])
    if exact:
        chosen.set_plain_modulus(seal.Modulus(parameters.plain_modulus))
    return bool(seal.SEALContext(chosen, True, level).parameters_set())


# --- the frozen numbers -------------------------------------------------------------------------


def test_there_are_five_sets_and_their_numbers_never_change() -> None:
    assert sorted(PARAMETER_SETS) == sorted(FROZEN)
    for name, expected in FROZEN.items():
        found = ParameterSet.named(name)
        assert found is PARAMETER_SETS[name]
        assert (found.name, found.degree) == (name, 4096)
        values = {key: getattr(found, key) for key in expected if key != "security"}
        assert values | {"security": found.security()} == expected
        assert found.sent_primes == found.primes[:-1]
        assert found.exact == (found.kind == "bfv")


def test_a_set_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ParameterSet.named("bfv-4096-std").max_clients = 65  # type: ignore[misc]  # on purpose


@pytest.mark.parametrize("name", ["", "bfv-4096", "BFV-4096-STD", "nvflare-compat"])
def test_other_names_are_refused_with_the_list_of_those_there_are(name: str) -> None:
    with pytest.raises(ConfigurationError, match="bfv-4096-compact"):
        ParameterSet.named(name)


@pytest.mark.parametrize("name", FROZEN)
def test_every_plain_modulus_is_the_smallest_above_its_power_of_two(name: str) -> None:
    parameters = ParameterSet.named(name)
    if parameters.plain_modulus is None:
        assert not parameters.exact
        return
    step = 2 * parameters.degree
    candidates = range(2**parameters.plain_bits + 1, parameters.plain_modulus, step)
    assert not any(_is_prime(number) for number in candidates)


@pytest.mark.parametrize("name", FROZEN)
def test_the_moduli_are_those_that_seal_chooses_for_their_sizes(name: str) -> None:
    found = ParameterSet.named(name).primes
    assert _primes(4096, BITS[name]) == found
    assert [prime.bit_length() for prime in found] == BITS[name]


@pytest.mark.parametrize("name", FROZEN)
def test_seal_accepts_every_set_at_its_declared_level(name: str) -> None:
    parameters = ParameterSet.named(name)
    level = {128: seal.SEC_LEVEL_TYPE.TC128, 192: seal.SEC_LEVEL_TYPE.TC192}[parameters.classical]
    assert _seal_accepts(parameters, level)


def test_seals_own_check_would_notice_a_level_too_high() -> None:
    """The control of the test above."""
    assert not _seal_accepts(ParameterSet.named("bfv-4096-std"), seal.SEC_LEVEL_TYPE.TC192)


# --- levels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classical", "post_quantum", "degree", "bits"),
    [
        (128, 0, 2048, [30, 24]),
        (128, 0, 4096, [60, 49]),
        (128, 0, 8192, [60, 60, 60, 38]),
        (128, 0, 16384, [60, 60, 60, 60, 60, 60, 39, 39]),
        (192, 0, 4096, [54, 21]),
        (256, 0, 4096, [37, 21]),
        (128, 128, 4096, [60, 41]),
    ],
)
def test_each_limit_is_accepted_and_one_bit_more_of_the_special_prime_is_not(
    classical: int, post_quantum: int, degree: int, bits: list[int]
) -> None:
    levels = {"classical": classical, "post_quantum": post_quantum}
    accepted = _small(degree=degree, bits=bits, **levels)
    assert accepted.total_bits == sum(bits)
    with pytest.raises(ConfigurationError, match=f"allows {sum(bits)} modulus bits") as caught:
        _small(degree=degree, bits=[*bits[:-1], bits[-1] + 1], **levels)
    assert f"got {sum(bits) + 1}, special prime included" in str(caught.value)
    assert len(caught.value.problems) == 1


def test_109_bits_are_within_the_classical_limit_and_not_the_post_quantum_one() -> None:
    assert _small(bits=[60, 49]).total_bits == 109
    with pytest.raises(ConfigurationError, match="post_quantum level 128 allows 101"):
        _small(bits=[60, 49], post_quantum=128)


@pytest.mark.parametrize(
    "levels",
    [
        {"classical": 0},
        {"classical": 100},
        {"post_quantum": 192},
        {"classical": 192, "degree": 8192, "bits": [40, 20]},
        {"post_quantum": 128, "degree": 2048, "bits": [30, 20]},
    ],
)
def test_a_level_without_a_known_limit_is_refused(levels: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="is not known for degree"):
        _small(**levels)


# --- moduli -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "t",
    [
        40961 + 2,  # odd, not = 1 mod 8192
        65537 - 8192,  # 57345 = 1 mod 8192, and 5 divides it
        32771,  # prime, not = 1 mod 8192
        1152921504606846976 + 40961,  # 61 bits
        2305843009213693951,  # prime of 61 bits
        1,
        0,
        -8191,
    ],
)
def test_a_plain_modulus_that_is_no_prime_of_the_right_form_and_size_is_refused(t: int) -> None:
    with pytest.raises(ConfigurationError, match="plain_modulus must be a prime = 1 mod 8192"):
        _small(plain_modulus=t)


@pytest.mark.parametrize(
    "prime",
    [
        1032193 + 8192 * 2,  # 1048577 = 17 * 61681, = 1 mod 8192
        1032193 + 2,
        1048573,  # prime, not = 1 mod 8192
        1152921504606846976 + 8192 * 3 + 1,  # 61 bits
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_modulus_that_is_no_prime_of_the_right_form_and_size_is_refused(
    prime: int, place: int
) -> None:
    primes = list(ParameterSet.named("bfv-4096-std").primes)
    primes[place] = prime
    with pytest.raises(ConfigurationError, match="a modulus must be a prime = 1 mod 8192"):
        _small(primes=tuple(primes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"primes": ()}, "at least two"),
        ({"primes": (1152921504606830593,)}, "at least two"),
        ({"primes": (1032193, 1032193)}, "all different"),
        ({"degree": 4095, "plain_modulus": 8191, "primes": (1, 2)}, "power of two"),
        ({"degree": 1024, "plain_modulus": 12289, "primes": (12289, 18433)}, "power of two"),
        ({"plain_modulus": None}, "BFV has a plain modulus"),
        ({"scale_bits": 36}, "BFV has a plain modulus"),
        ({"kind": "ckks"}, "CKKS a scale"),
        ({"kind": "ckks", "plain_modulus": None}, "CKKS a scale"),
        ({"max_clients": 1}, "max_clients must be an integer from 2 to 64"),
        ({"max_clients": 65}, "max_clients must be an integer from 2 to 64"),
        ({"max_clients": 8.0}, "max_clients must be an integer from 2 to 64"),
        ({"max_clients": True}, "max_clients must be an integer from 2 to 64"),
        ({"kind": "bgv"}, "kind must be 'bfv' or 'ckks', got 'bgv'"),
    ],
)
def test_other_shapes_are_refused(change: dict[str, Any], message: str) -> None:
    base = _small()
    numbers = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    with pytest.raises(ConfigurationError, match=message):
        ParameterSet(**(numbers | change))


def test_a_ckks_scale_at_which_a_sum_overflows_q_is_refused() -> None:
    """q of 48 bits, sums below 2^10: the scale is 2^37 at most."""
    base = ParameterSet.named("ckks-4096-add")
    assert dataclasses.replace(base, scale_bits=37).scale_bits == 37
    for scale_bits in (38, 40):
        with pytest.raises(ConfigurationError, match=f"scale_bits = {scale_bits} leaves no room"):
            dataclasses.replace(base, scale_bits=scale_bits)


def test_every_problem_is_reported_with_the_name_of_the_set() -> None:
    with pytest.raises(ConfigurationError) as caught:
        _small(name="mine", plain_modulus=9, max_clients=0, classical=1)
    assert len(caught.value.problems) == 3
    assert str(caught.value).count("mine: ") == 3


# --- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FROZEN)
def test_no_frozen_set_fails_more_often_than_once_in_2_to_the_128(name: str) -> None:
    parameters = ParameterSet.named(name)
    found = [parameters.failure_bits(clients) for clients in range(1, parameters.max_clients + 1)]
    assert min(found) == found[-1] > FAILURE_BITS == 128
    assert found == sorted(found, reverse=True)


def test_more_additions_than_the_failure_bound_allows_are_refused() -> None:
    """t of 49 bits leaves q/(2t) = 1024: four ciphertexts are within the bound, five are not."""
    t = seal.PlainModulus.Batching(4096, 49).value()
    numbers = {"bits": [60, 20], "plain_modulus": t}
    assert _small(**numbers, max_clients=4).failure_bits(4) >= 128
    with pytest.raises(ConfigurationError, match="max_clients = 5 additions could decrypt wrongly"):
        _small(**numbers, max_clients=5)


def test_the_failure_bound_is_hoeffdings_with_numbers_written_out() -> None:
    """bfv-4096-std, 64 clients: independent arithmetic of audits/proofs/bfv_sums.md."""
    error = 21 * 8193 / 1032193
    room = 1152921504606830593 / (2 * 17592186175489) - 64 * (error + 1)
    log2_failure = 1 + 40 - 2 * room**2 / (64 * 4097) * math.log2(math.e)
    found = ParameterSet.named("bfv-4096-std").failure_bits(64)
    assert found == pytest.approx(-log2_failure, rel=1e-9)
    assert found > 11_000


def test_a_plain_modulus_as_large_as_q_leaves_no_room_at_all() -> None:
    with pytest.raises(ConfigurationError, match="could decrypt wrongly"):
        _small(bits=[60, 20], plain_modulus=576460752303439873, max_clients=2)


def test_a_ckks_scale_that_drowns_the_grid_in_noise_is_refused() -> None:
    numbers = {"kind": "ckks", "plain_modulus": None, "bits": [48, 20]}
    assert _small(**numbers, scale_bits=36).failure_bits(64) > 128
    with pytest.raises(ConfigurationError, match="could decrypt wrongly"):
        _small(**numbers, scale_bits=30)


# --- primes -------------------------------------------------------------------------------------


def test_primes_are_told_from_composites_up_to_200000_as_a_sieve_does() -> None:
    sieve = np.ones(200_000, dtype=bool)
    sieve[:2] = False
    for number in range(2, 448):
        if sieve[number]:
            sieve[number * number :: number] = False
    found = [number for number in range(200_000) if _is_prime(number)]
    assert found == np.flatnonzero(sieve).tolist()


@pytest.mark.parametrize(
    "composite",
    [
        *(561, 1105, 1729, 2465, 2821, 6601, 8911, 825265, 321197185),  # Carmichael
        *(2047, 1373653, 25326001, 3215031751, 2152302898747, 3474749660383, 341550071728321),
        3825123056546413051,  # strong pseudoprime to the first nine primes
        1152921504606830593 * 3,
        1032193**2,
        (2**31 - 1) * (2**29 - 3),
        18446744073709551556,
        -7,
    ],
)
def test_pseudoprimes_are_composite(composite: int) -> None:
    """psi_1 to psi_9 of Jaeschke 1993 and Jiang, Deng 2014, and Carmichael numbers."""
    assert not _is_prime(composite)


@pytest.mark.parametrize("prime", [2, 37, 41, 2**31 - 1, 2**61 - 1, 2**64 - 59])
def test_known_large_primes_are_prime(prime: int) -> None:
    assert _is_prime(prime)
