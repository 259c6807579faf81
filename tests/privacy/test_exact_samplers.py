"""The oracle's decisions give exactly the stated laws, shown by adding up the decisions."""

import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedrl.errors import ConfigurationError
from privfedrl.privacy import exact_samplers
from privfedrl.privacy.exact_samplers import (
    MAX_EXACT_SIZE,
    MAX_EXACT_SKELLAM,
    exact_discrete_gaussian,
    exact_discrete_laplace,
    exact_poisson,
    exact_skellam,
)

SAMPLERS = [exact_discrete_gaussian, exact_discrete_laplace, exact_poisson, exact_skellam]
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)
Law = dict[Any, float]


def stream(seed: int) -> Callable[[int], bytes]:
    return np.random.default_rng(seed).bytes


class Fork(Exception):
    """The program asked for a decision that the script does not hold yet."""

    def __init__(self, chances: Sequence[float]) -> None:
        super().__init__()
        self.chances = chances


class Scripted(exact_samplers._Dice):
    """Dice whose decisions are given; the next open one is reported with its probabilities."""

    def __init__(self, script: Sequence[int]) -> None:
        super().__init__(lambda size: bytes(size))
        self.script = list(script)

    def choose(self, chances: Sequence[float]) -> int:
        if not self.script:
            raise Fork(chances)
        return self.script.pop(0)

    def below(self, n: int) -> int:
        return self.choose([1 / n] * n)

    def bernoulli(self, p: int, q: int) -> bool:
        assert 0 <= p <= q
        return self.choose([1 - p / q, p / q]) == 1


class ScriptedExp(Scripted):
    """The same, with Bernoulli(exp(-x)) as one decision: its own law is shown by itself."""

    def bernoulli_exp(self, p: int, q: int) -> bool:
        chance = math.exp(-p / q)
        return self.choose([1 - chance, chance]) == 1


@lru_cache
def laplace_law(t: int, s: int) -> list[float]:
    reach = 40 * t // s
    weights = [math.exp(-abs(y) * s / t) for y in range(-reach, reach + 1)]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


class ScriptedLaplace(ScriptedExp):
    """The same, with a discrete Laplace as one decision."""

    def laplace(self, t: int, s: int) -> int:
        law = laplace_law(t, s)
        return self.choose(law) - len(law) // 2


def law_of(program: Callable[[Any], Any], dice: type[Scripted]) -> Law:
    """Probability of each result, over all scripts more likely than 1e-17."""
    law: Law = {}
    open_: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    while open_:
        script, chance = open_.pop()
        try:
            result = program(dice(script))
        except Fork as fork:
            branches = ((i, chance * c) for i, c in enumerate(fork.chances))
            open_ += [((*script, i), c) for i, c in branches if c > 1e-17]
        else:
            law[result] = law.get(result, 0.0) + chance
    return law


def accepted(law: Law) -> Law:
    kept = {value: chance for value, chance in law.items() if value is not None}
    total = math.fsum(kept.values())
    return {value: chance / total for value, chance in kept.items()}


def assert_same(law: Law, weight: Callable[[int], float], reach: int) -> None:
    exact = {k: weight(k) for k in range(-reach, reach + 1)}
    total = math.fsum(exact.values())
    for k in set(exact) | set(law):
        assert law.get(k, 0.0) == pytest.approx(exact.get(k, 0.0) / total, abs=1e-13), k


@pytest.mark.parametrize("n", [1, 2, 3, 7, 128, 200, 255, 256, 257, 700])
def test_below_gives_every_number_for_equally_many_of_all_byte_strings(n: int) -> None:
    bits = (n - 1).bit_length()
    size = (bits + 7) // 8
    counts = [0] * n
    for word in range(256**size if n > 1 else 1):
        answers = iter([word.to_bytes(size, "little")])
        try:
            counts[exact_samplers._Dice(lambda _, a=answers: next(a)).below(n)] += 1
        except StopIteration:
            continue  # rejected: the next read starts afresh
    assert len(set(counts)) == 1
    assert n == 1 or n * counts[0] * 2 > 256**size  # accepted more often than not


@pytest.mark.parametrize(("p", "q"), [(0, 1), (1, 3), (1, 2), (1, 1)])
def test_the_loop_of_algorithm_1_ends_late_with_the_probability_of_the_series(
    p: int, q: int
) -> None:
    law = law_of(lambda dice: dice.exp_turns(p, q), Scripted)
    for k in range(12):
        later = sum(chance for turns, chance in law.items() if turns > k)
        assert later == pytest.approx((p / q) ** k / math.factorial(k), abs=1e-15)


@pytest.mark.parametrize(("p", "q"), [(0, 1), (1, 3), (1, 1), (5, 2), (3, 1)])
def test_algorithm_1_says_yes_with_probability_exp_of_minus_gamma(p: int, q: int) -> None:
    law = law_of(lambda dice: dice.bernoulli_exp(p, q), Scripted)
    assert law[True] == pytest.approx(math.exp(-p / q), abs=1e-13)
    assert law[True] + law.get(False, 0.0) == pytest.approx(1.0, abs=1e-13)


@pytest.mark.parametrize(("t", "s"), [(1, 1), (3, 1), (1, 2), (7, 3)])
def test_algorithm_2_gives_the_discrete_laplace(t: int, s: int) -> None:
    law = law_of(lambda dice: dice.laplace_turn(t, s), ScriptedExp)
    assert 1 - law.get(None, 0.0) >= 0.316  # what the bound on the tries counts with
    assert_same(accepted(law), lambda y: math.exp(-abs(y) * s / t), 40 * t // s)


@pytest.mark.parametrize(("a", "b"), [(1, 100), (1, 4), (1, 1), (9, 1), (100, 7), (400, 1)])
def test_algorithm_3_gives_the_discrete_gaussian(a: int, b: int) -> None:
    law = law_of(lambda dice: dice.gaussian_turn(a, b), ScriptedLaplace)
    assert 1 - law.get(None, 0.0) >= 0.28  # what the bound on the tries counts with
    assert_same(accepted(law), lambda y: math.exp(-y * y * b / (2 * a)), 30 + 10 * a // b)


@pytest.mark.parametrize(("p", "q"), [(1, 1000), (1, 7), (1, 3), (1, 2)])
def test_the_poisson_turn_gives_the_poisson(p: int, q: int) -> None:
    law = law_of(lambda dice: dice.poisson_turn(p, q), Scripted)
    assert 1 - law.get(None, 0.0) >= 0.82
    assert_same(accepted(law), lambda m: (p / q) ** m / math.factorial(m) if m >= 0 else 0.0, 30)


@given(st.fractions(min_value=Fraction(1, 1000), max_value=50))
def test_a_poisson_is_split_into_parts_that_add_up(mean: Fraction) -> None:
    count, p, q = exact_samplers._split(mean)
    assert count * Fraction(p, q) == mean
    assert Fraction(p, q) <= Fraction(1, 2)
    assert (count - 1) * Fraction(1, 2) < mean


@every_sampler
@pytest.mark.parametrize("parameter", [Fraction(1, 4), 1, Fraction(22, 7), 9])
def test_samples_are_integers_and_follow_the_source(
    sampler: Callable[..., list[int]], parameter: int | Fraction
) -> None:
    first, second = (sampler(parameter, 20, entropy=stream(3)) for _ in range(2))
    assert first == second
    assert all(type(value) is int for value in first)
    assert sampler(parameter, 0) == []
    assert len(sampler(parameter, 3)) == 3


@pytest.mark.parametrize("variance", [Fraction(1, 10**100), 10**60, Fraction(10**300, 3)])
def test_tiny_and_astronomical_variances_are_exact_too(variance: int | Fraction) -> None:
    drawn = exact_discrete_gaussian(variance, 50, entropy=stream(1))
    scale = math.isqrt(int(variance)) + 1
    assert max(map(abs, drawn)) <= 10 * scale
    assert (len(set(drawn)) == 1) == (variance < 1)


@every_sampler
@pytest.mark.parametrize("fill", [0x00, 0x55, 0xFE, 0xFF])
@pytest.mark.parametrize("parameter", [1, 900])
def test_constant_bytes_end_in_a_sample_or_in_an_error(
    sampler: Callable[..., list[int]], fill: int, parameter: int
) -> None:
    reads = 0

    def constant(size: int) -> bytes:
        nonlocal reads
        reads += 1
        return bytes([fill]) * size

    def one() -> str:
        try:
            return str(sampler(parameter, 1, entropy=constant)[0])
        except ConfigurationError as error:
            return str(error)

    assert re.fullmatch(r"-?\d+|entropy must return random bytes: .*", one())
    assert reads <= 2**17 + 2**12  # one part fails at its limit; those before it took a few each


def test_a_source_that_is_stuck_is_named_after_a_number_of_reads_that_chance_never_takes() -> None:
    """2^17 reads at expected 400 per sample: 163 failures of Markov's inequality at 1/2."""
    reads = 0

    def stuck(size: int) -> bytes:
        nonlocal reads
        reads += 1
        return bytes(size)

    with pytest.raises(ConfigurationError, match=r"entropy .* 131072 reads"):
        exact_discrete_gaussian(900, 1, entropy=stuck)
    assert reads == 2**17
    assert 2.0 ** -(reads // 800) < 2.0**-128


@every_sampler
@pytest.mark.parametrize("size", [1, 2, 40])
def test_a_source_of_wrong_lengths_is_refused(sampler: Callable[..., list[int]], size: int) -> None:
    for wrong in (lambda n: b"", lambda n: bytes(n + 1), lambda n: "x" * n, lambda n: None):
        with pytest.raises(ConfigurationError, match="entropy must return"):
            sampler(3, size, entropy=wrong)


HUGE = [10**2000, Fraction(1, 10**2000), -(10**5000)]


@every_sampler
@pytest.mark.parametrize(
    "bad",
    [0, -1, Fraction(-1, 2), 1.0, math.nan, math.inf, True, "1", None, *HUGE],
    ids=[f"bad{i}" for i in range(12)],
)
def test_a_parameter_that_is_not_positive_exact_and_moderate_is_refused(
    sampler: Callable[..., list[int]], bad: Any
) -> None:
    with pytest.raises(ConfigurationError, match=r"(variance|scale|mean) must"):
        sampler(bad, 1)


@every_sampler
@pytest.mark.parametrize("bad", [-1, 1.0, True, None, MAX_EXACT_SIZE + 1, 10**30])
def test_a_size_out_of_range_is_refused(sampler: Callable[..., list[int]], bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="size"):
        sampler(1, bad)


def test_poisson_and_skellam_refuse_work_without_end() -> None:
    with pytest.raises(ConfigurationError, match=r"variance must be <= 4096.*work"):
        exact_skellam(MAX_EXACT_SKELLAM + 1, 1)
    with pytest.raises(ConfigurationError, match=r"mean must be <= 2048.*work"):
        exact_poisson(Fraction(MAX_EXACT_SKELLAM + 1, 2), 1)
