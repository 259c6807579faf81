"""Discrete Gaussian, Laplace, Poisson and Skellam integers without any error: the slow oracle.

Guarantee: given an entropy source of independent uniform bytes, a sample has exactly the stated
law, for every rational parameter: only integers are computed with, no table, no float. A call
fails instead of looping: after 2^17 reads for one sample, whose chance is below 2^-128.

Method: Canonne, Kamath and Steinke 2020, "The Discrete Gaussian for Differential Privacy"
(arXiv 2004.00010), Algorithms 1 to 3. Poisson from the same Bernoulli(exp(-x)) loop, see
``poisson_turn``. Running time depends on the sample, so these are for tests and audits of the
table samplers, not for releases: some 0.03 ms a sample and, for Skellam, per unit of variance.

Why it ends. Call one masked read a try. From any state of the program below the expected number of
tries still needed for the sample is at most 400: uniform 2, Bernoulli(exp(-x)) 6 for x <= 1 and 16
otherwise, Laplace turn 20 with acceptance >= 0.31, Gaussian turn 80 with acceptance >= 0.28. By
Markov's inequality any 800 tries end it with probability 1/2, hence 2^17 tries fail with
probability below 2^-163. Details: audits/proofs/table_sampler.md, "The oracle".
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from fractions import Fraction

from privfedrl.errors import ConfigurationError, shown
from privfedrl.privacy.table_sampler import Entropy, check_integer, read_entropy

__all__ = [
    "MAX_EXACT_SIZE",
    "MAX_EXACT_SKELLAM",
    "exact_discrete_gaussian",
    "exact_discrete_laplace",
    "exact_poisson",
    "exact_skellam",
]

Rational = int | Fraction

MAX_EXACT_SIZE = 2**20  # samples per call
MAX_EXACT_SKELLAM = 2**12  # variance: the work per sample grows with it
_MAX_BITS = 2**12  # of numerator and denominator together: keeps the integers small
_TRIES = 2**17


def _accepted(turn: Callable[[], int | None]) -> int:
    """The first result that is not None: rejection sampling, every turn from the start."""
    while (value := turn()) is None:
        pass
    return value


class _Dice:
    """Random decisions for one sample out of a byte source, with a limited number of reads."""

    __slots__ = ("_entropy", "_left")

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self._left = _TRIES

    def below(self, n: int) -> int:
        """Uniform in 0..n-1 by rejection from the next power of two; n = 1 reads nothing."""
        bits = (n - 1).bit_length()
        if bits == 0:
            return 0
        while self._left:
            self._left -= 1
            data = read_entropy(self._entropy, (bits + 7) // 8)
            value = int.from_bytes(data, "little") & ((1 << bits) - 1)
            if value < n:
                return value
        raise ConfigurationError(
            f"entropy must return random bytes: no sample after {_TRIES} reads, "
            "which has a chance below 2^-128"
        )

    def bernoulli(self, p: int, q: int) -> bool:
        """True with probability p/q, for integers 0 <= p <= q, q >= 1."""
        return self.below(q) < p

    def exp_turns(self, p: int, q: int) -> int:
        """K >= 1 with P(K > k) = (p/q)^k / k!, for 0 <= p <= q: the loop of Algorithm 1."""
        k = 1
        while self.bernoulli(p, q * k):
            k += 1
        return k

    def bernoulli_exp(self, p: int, q: int) -> bool:
        """True with probability exp(-p/q), for p >= 0, q >= 1 (Algorithm 1)."""
        whole, rest = divmod(p, q)
        for _ in range(whole):
            if self.exp_turns(1, 1) % 2 == 0:
                return False
        return self.exp_turns(rest, q) % 2 == 1

    def laplace_turn(self, t: int, s: int) -> int | None:
        """One turn of Algorithm 2: y with weight exp(-|y| s/t), or rejected."""
        u = self.below(t)
        if not self.bernoulli_exp(u, t):
            return None
        v = 0
        while self.bernoulli_exp(1, 1):
            v += 1
        magnitude = (u + t * v) // s
        if self.bernoulli(1, 2):
            return -magnitude if magnitude else None  # zero would count twice
        return magnitude

    def laplace(self, t: int, s: int) -> int:
        """P(y) proportional to exp(-|y| s/t)."""
        return _accepted(lambda: self.laplace_turn(t, s))

    def gaussian_turn(self, a: int, b: int) -> int | None:
        """One turn of Algorithm 3: y with weight exp(-y^2 / (2 v)), v = a/b, or rejected."""
        t = math.isqrt(a // b) + 1
        y = self.laplace(t, 1)
        distance = abs(y) * t * b - a  # (|y| - v/t)^2 / (2 v) over one denominator
        return y if self.bernoulli_exp(distance * distance, 2 * a * b * t * t) else None

    def gaussian(self, a: int, b: int) -> int:
        """P(y) proportional to exp(-y^2 / (2 a/b))."""
        return _accepted(lambda: self.gaussian_turn(a, b))

    def poisson_turn(self, p: int, q: int) -> int | None:
        """One turn for Poisson(x), x = p/q in (0, 1/2]: m with weight x^m/m!, or rejected.

        M = exp_turns - 1 has P(M = m) = x^m/m! (1 - x/(m+1)); accepting it with probability
        (1-x) / (1 - x/(m+1)) leaves (1-x) x^m/m!, in all (1-x) e^x >= 0.82.
        """
        m = self.exp_turns(p, q) - 1
        return m if self.bernoulli((m + 1) * (q - p), (m + 1) * q - p) else None

    def poisson(self, p: int, q: int) -> int:
        """Poisson(p/q) for 0 < p/q <= 1/2."""
        return _accepted(lambda: self.poisson_turn(p, q))


def _rational(name: str, value: object) -> tuple[int, int]:
    """Numerator and denominator of a positive int or Fraction of moderate length."""
    if not isinstance(value, (int, Fraction)) or isinstance(value, bool):
        found = type(value).__name__
        raise ConfigurationError(f"{name} must be an int or Fraction (exact), got {found}")
    a, b = value.numerator, value.denominator
    if a.bit_length() + b.bit_length() > _MAX_BITS:
        raise ConfigurationError(
            f"{name} must have at most {_MAX_BITS} bits in all, "
            f"got {a.bit_length()} / {b.bit_length()}"
        )
    if a <= 0:
        raise ConfigurationError(f"{name} must be > 0, got {shown(value)}")
    return a, b


def _repeat(size: int, entropy: Entropy, draw: Callable[[_Dice], int]) -> list[int]:
    check_integer("size", size, low=0, high=MAX_EXACT_SIZE, remedy="; draw in several calls")
    return [draw(_Dice(entropy)) for _ in range(size)]


def exact_discrete_gaussian(
    variance: Rational, size: int, *, entropy: Entropy = os.urandom
) -> list[int]:
    """``size`` independent integers with P(y) proportional to exp(-y^2 / (2 variance)), exactly.

    Raises:
        ConfigurationError: variance is no positive int or Fraction of at most 2^12 bits, size is
            not in 0 .. MAX_EXACT_SIZE, or the source of bytes is faulty.
    """
    a, b = _rational("variance", variance)
    return _repeat(size, entropy, lambda dice: dice.gaussian(a, b))


def exact_discrete_laplace(
    scale: Rational, size: int, *, entropy: Entropy = os.urandom
) -> list[int]:
    """``size`` independent integers with P(y) proportional to exp(-|y| / scale), exactly.

    Raises:
        ConfigurationError: as for :func:`exact_discrete_gaussian`.
    """
    t, s = _rational("scale", scale)
    return _repeat(size, entropy, lambda dice: dice.laplace(t, s))


def _split(mean: Rational) -> tuple[int, int, int]:
    """(count, p, q): mean = count p/q with p/q <= 1/2, at the least count."""
    count = math.ceil(2 * mean)
    part = Fraction(mean) / count
    return count, part.numerator, part.denominator


def _check_means(name: str, value: Rational, limit: int) -> None:
    _rational(name, value)
    if value > limit:
        raise ConfigurationError(
            f"{name} must be <= {limit}, got {shown(value)}; the work grows with it"
        )


def exact_poisson(mean: Rational, size: int, *, entropy: Entropy = os.urandom) -> list[int]:
    """``size`` independent Poisson(mean) integers, exactly, as sums of Poisson(<= 1/2) parts.

    Raises:
        ConfigurationError: mean is no positive int or Fraction, or above MAX_EXACT_SKELLAM / 2,
            size is not in 0 .. MAX_EXACT_SIZE, or the source of bytes is faulty.
    """
    _check_means("mean", mean, MAX_EXACT_SKELLAM // 2)
    count, p, q = _split(mean)

    def draw(_: _Dice) -> int:  # the limit of tries is for one part, so each has its own dice
        return sum(_Dice(entropy).poisson(p, q) for _ in range(count))

    return _repeat(size, entropy, draw)


def exact_skellam(variance: Rational, size: int, *, entropy: Entropy = os.urandom) -> list[int]:
    """``size`` independent Poisson(variance/2) - Poisson(variance/2) integers, exactly.

    Raises:
        ConfigurationError: variance is no positive int or Fraction, or above MAX_EXACT_SKELLAM,
            size is not in 0 .. MAX_EXACT_SIZE, or the source of bytes is faulty.
    """
    _check_means("variance", variance, MAX_EXACT_SKELLAM)
    half = Fraction(variance) / 2
    plus = exact_poisson(half, size, entropy=entropy)
    return [p - m for p, m in zip(plus, exact_poisson(half, size, entropy=entropy), strict=True)]
