"""The frozen lattice parameters: what may be encrypted, how many times added, how hard to break.

Guarantee: a :class:`ParameterSet` that can be constructed has at most as many modulus bits as its
declared levels allow, and a sum of ``max_clients`` fresh BFV ciphertexts decrypts to another
integer with probability at most 2^-128 (audits/proofs/bfv_sums.md). Sets are frozen: another number
is another name.

Notation: N = ring degree, q = product of the primes that are sent, p = the special prime, which is
only in public keys, t = plain modulus, Q = q p.
References: Fan and Vercauteren, eprint 2012/144 (BFV); Albrecht et al., Homomorphic Encryption
Security Standard, 2018, tables 1 and 2 (limits of log2 Q for ternary secrets); SEAL 4.3,
util/hestdparms.h (the same limits in code).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

from privfedrl.errors import ConfigurationError

__all__ = ["PARAMETER_SETS", "ParameterSet"]

LIMITS: Final = {
    "classical": {
        128: {2048: 54, 4096: 109, 8192: 218, 16384: 438},
        192: {4096: 75},
        256: {4096: 58},
    },
    "post_quantum": {128: {4096: 101}},
}
"""Most bits of Q, special prime included, for a ternary secret: {kind: {level: {N: bits}}}."""

MAX_ERROR: Final = 21
"""Largest coefficient of SEAL's error polynomials: centred binomial, 42 bits (util/rlwe.cpp)."""

CKKS_GRID_BITS: Final = 17
"""A CKKS slot holds integers times 2^-17 and must stay below 2^10 in magnitude."""

CKKS_SUM_BITS: Final = 10
"""log2 of the bound on the magnitude of a CKKS slot."""

CKKS_PLAIN_BITS: Final = CKKS_SUM_BITS + CKKS_GRID_BITS + 1
"""Bits of a signed integer in a CKKS slot: 10 + 17 and the sign."""

FAILURE_BITS: Final = 128
_MAX_COEFFICIENTS: Final = 2**40  # of everything that one sum may hold


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterSet:
    """One named choice of a scheme and its moduli.

    Attributes:
        name: stands for all the other numbers, in plans and digests.
        kind: "bfv" (exact integers) or "ckks" (approximate; rounded to the grid when opened).
        degree: N, a power of two.
        primes: the coefficient moduli, each = 1 mod 2N and at most 60 bits; the last is special.
        plain_modulus: t, prime, = 1 mod 2N, at most 60 bits; None for CKKS.
        scale_bits: log2 of the CKKS scale; None for BFV.
        max_clients: most ciphertexts in a sum.
        classical, post_quantum: declared bits of security; 0 = none declared.
    Raises:
        ConfigurationError: a number is outside what the declared levels or exactness allow.
    """

    name: str
    kind: Literal["bfv", "ckks"]
    degree: int
    primes: tuple[int, ...]
    plain_modulus: int | None
    scale_bits: int | None
    max_clients: int
    classical: int
    post_quantum: int

    def __post_init__(self) -> None:
        problems = [*self._modulus_problems(), *self._level_problems()]
        if not problems and self.failure_bits(self.max_clients) < FAILURE_BITS:
            problems.append(
                f"max_clients = {self.max_clients} additions could decrypt wrongly with "
                f"probability above 2^-{FAILURE_BITS}"
            )
        if problems:
            text = "; ".join(f"{self.name}: {problem}" for problem in problems)
            raise ConfigurationError(text, problems=tuple(problems))

    @classmethod
    def named(cls, name: str) -> ParameterSet:
        """The frozen set of that name; ConfigurationError if there is none."""
        if name not in PARAMETER_SETS:
            raise ConfigurationError(
                f"parameter set must be one of {sorted(PARAMETER_SETS)}, got {name!r}"
            )
        return PARAMETER_SETS[name]

    @property
    def exact(self) -> bool:
        """Whether decryption gives the very integers that were added (BFV)."""
        return self.kind == "bfv"

    @property
    def total_bits(self) -> int:
        """Bits of Q, the special prime included."""
        return sum(prime.bit_length() for prime in self.primes)

    @property
    def sent_primes(self) -> tuple[int, ...]:
        """The factors of q, whose residues a ciphertext holds."""
        return self.primes[:-1]

    @property
    def slots(self) -> int:
        """Numbers in one ciphertext."""
        return self.degree if self.exact else self.degree // 2

    @property
    def plain_bits(self) -> int:
        """Bits of a slot that lanes may fill: floor(log2 t)."""
        if self.plain_modulus is None:
            return CKKS_PLAIN_BITS
        return self.plain_modulus.bit_length() - 1

    def security(self) -> dict[str, int]:
        """Declared levels in bits and the size of Q; what LIMITS was checked for."""
        return {
            "classical": self.classical,
            "post_quantum": self.post_quantum,
            "total_bits": self.total_bits,
        }

    def failure_bits(self, clients: int) -> float:
        """-log2 of the chance that a sum of ``clients`` fresh ciphertexts opens to a wrong number.

        BFV: Hoeffding's bound over the rounding of the special prime. CKKS: an estimate from the
        same variance, not a bound.
        """
        if self.plain_modulus is None:
            return self._ckks_failure_bits(clients)
        product = math.prod(self.sent_primes)
        error = MAX_ERROR * (2 * self.degree + 1) / self.primes[-1]
        room = product / (2 * self.plain_modulus) - clients * (error + 1)
        if room <= 0:
            return 0.0
        exponent = 2 * room**2 / (clients * (self.degree + 1)) / math.log(2)
        return max(0.0, exponent - 1 - math.log2(_MAX_COEFFICIENTS))

    def _ckks_failure_bits(self, clients: int) -> float:
        # a slot is the error polynomial at a root of unity: N terms of variance N (2/3) / 12 each
        deviation = math.sqrt(clients * self.degree / 2 * self.degree * 2 / 3 / 12)
        room = 2.0 ** ((self.scale_bits or 0) - CKKS_GRID_BITS - 1)
        exponent = (room / deviation) ** 2 / 2 / math.log(2)
        return max(0.0, exponent - 1 - math.log2(_MAX_COEFFICIENTS))

    def _modulus_problems(self) -> list[str]:
        problems, step = [], 2 * self.degree
        if self.kind not in ("bfv", "ckks"):
            problems.append(f"kind must be 'bfv' or 'ckks', got {self.kind!r}")
        if self.degree not in LIMITS["classical"][128]:
            problems.append(f"degree must be a power of two from 2048 to 16384, got {self.degree}")
        if len(self.primes) < 2 or len(set(self.primes)) != len(self.primes):
            problems.append("primes must be at least two, all different")
        for prime in self.primes:
            if prime.bit_length() > 60 or prime % step != 1 or not _is_prime(prime):
                problems.append(f"a modulus must be a prime = 1 mod {step} of <= 60 bits: {prime}")
        t = self.plain_modulus
        if (t is None) != (self.kind == "ckks") or (self.scale_bits is None) != (t is not None):
            problems.append("BFV has a plain modulus and no scale, CKKS a scale and none")
        if t is not None and (t.bit_length() > 60 or t % step != 1 or not _is_prime(t)):
            problems.append(f"plain_modulus must be a prime = 1 mod {step} of <= 60 bits, got {t}")
        if self.scale_bits is not None and self.scale_bits + CKKS_SUM_BITS >= sum(
            prime.bit_length() for prime in self.sent_primes
        ):
            problems.append(f"scale_bits = {self.scale_bits} leaves no room for sums below 2^10")
        if type(self.max_clients) is not int or not 2 <= self.max_clients <= 64:
            problems.append(f"max_clients must be an integer from 2 to 64, got {self.max_clients}")
        return problems

    def _level_problems(self) -> list[str]:
        problems = []
        for kind, level in (("classical", self.classical), ("post_quantum", self.post_quantum)):
            if level == 0 and kind == "post_quantum":
                continue
            limit = LIMITS[kind].get(level, {}).get(self.degree)
            if limit is None:
                problems.append(f"{kind} level {level} is not known for degree {self.degree}")
            elif self.total_bits > limit:
                problems.append(
                    f"{kind} level {level} allows {limit} modulus bits at degree {self.degree}, "
                    f"got {self.total_bits}, special prime included"
                )
        return problems


def _is_prime(number: int) -> bool:
    """Miller and Rabin with the first twelve primes: exact below 2^64 (Sorenson, Webster 2015)."""
    if number < 2 or number % 2 == 0:
        return number == 2
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        if number % base == 0:
            return number == base
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


def _set(name: str, **numbers: Any) -> ParameterSet:
    defaults: dict[str, Any] = {
        "kind": "bfv",
        "degree": 4096,
        "scale_bits": None,
        "max_clients": 64,
        "classical": 128,
        "post_quantum": 128,
    }
    return ParameterSet(name=name, **(defaults | numbers))


_60, _20 = 1152921504606830593, 1032193  # the largest primes = 1 mod 8192 of 60 and 20 bits
PARAMETER_SETS: Final = {
    row.name: row
    for row in (
        # t: the smallest prime = 1 mod 8192 above 2^44
        _set("bfv-4096-std", primes=(_60, _20), plain_modulus=17592186175489),
        # above 2^45: three lanes of 15 bits
        _set("bfv-4096-compact", primes=(_60, _20), plain_modulus=35184372121601, max_clients=32),
        # above 2^59; 109 bits are within the classical limit only
        _set(
            "bfv-4096-wide",
            primes=(1099511390209, 1099511480321, 536813569),
            plain_modulus=576460752303439873,
            post_quantum=0,
        ),
        # above 2^38
        _set(
            "bfv-4096-192",
            primes=(18014398509309953, 2056193),
            plain_modulus=274878062593,
            classical=192,
        ),
        _set(
            "ckks-4096-add",
            kind="ckks",
            primes=(281474976694273, _20),
            plain_modulus=None,
            scale_bits=36,
        ),
    )
}
"""Every set that a plan may name. ``bfv-4096-std`` is the default."""
