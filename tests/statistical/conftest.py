"""Exact laws of integers and goodness-of-fit tests against them, shared by the sampler tests.

Chi-square cells hold at least 100 expected counts each (neighbours are joined, tails included), so
that the chi-square law is a good approximation far into its own tail. Distances between
distribution functions use the inequality of Dvoretzky, Kiefer, Wolfowitz and Massart,
P(sup |F_n - F| > e) <= 2 exp(-2 n e^2), which holds for every law and every n.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import ive
from scipy.stats import chi2, poisson

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

LEAST = 100  # expected counts of a cell


def weights(family: str, parameter: float, k: Integers) -> Floats:
    """Proportional to the probabilities of the integers ``k``."""
    if family == "poisson":
        return np.asarray(poisson.pmf(k, parameter), dtype=np.float64)
    size = np.abs(k).astype(np.float64)
    if family == "skellam":
        return np.asarray(ive(size, parameter), dtype=np.float64)
    if family == "laplace":
        return np.exp(-size / parameter)
    return np.exp(-size * size / (2.0 * parameter))


def joined(expected: Floats, *observed: Integers) -> tuple[Floats, list[Integers]]:
    """Neighbouring cells added up until each holds LEAST expected counts."""
    step = max(LEAST, expected.sum() / 300)  # and at most about 300 cells, for power
    group = np.floor(np.cumsum(expected) / step)
    edges = np.concatenate([[0], np.flatnonzero(np.diff(group)) + 1])
    cells = np.add.reduceat(expected, edges)
    while (small := np.flatnonzero(cells < LEAST)).size:
        edges = np.delete(
            edges, max(1, small[0])
        )  # joins it to its left neighbour, the first right
        cells = np.add.reduceat(expected, edges)
    return cells, [np.add.reduceat(counts, edges) for counts in observed]


@dataclass(frozen=True, slots=True)
class Law:
    """The law of one integer: probabilities ``pmf`` of -reach..reach, all that matters."""

    reach: int
    pmf: Floats

    def counts(self, samples: Integers) -> Integers:
        assert np.abs(samples).max() <= self.reach
        return np.bincount(samples + self.reach, minlength=self.pmf.size)

    def p_value(self, samples: Integers) -> float:
        """Chi-square of the samples against the law."""
        cells, (found,) = joined(samples.size * self.pmf, self.counts(samples))
        assert cells.size > 1
        return float(chi2.sf(((found - cells) ** 2 / cells).sum(), cells.size - 1))

    def p_value_of_two(self, first: Integers, second: Integers) -> float:
        """Chi-square of two sets of samples against each other; the law only forms the cells."""
        size = min(first.size, second.size)
        cells, (a, b) = joined(size * self.pmf, self.counts(first), self.counts(second))
        share = first.size / (first.size + second.size)
        both = a + b
        statistic = ((a - share * both) ** 2 / (share * (1 - share) * both)).sum()
        return float(chi2.sf(statistic, cells.size - 1))

    def cdf_distance(self, samples: Integers) -> float:
        """sup |F_n - F|."""
        return float(np.abs(np.cumsum(self.counts(samples) / samples.size - self.pmf)).max())

    def moment(self, order: int) -> float:
        k = np.arange(-self.reach, self.reach + 1, dtype=np.float64)
        return math.fsum(k**order * self.pmf)

    def bins(self, number: int) -> Integers:
        """For each integer of the support one of ``number`` bins of about equal probability."""
        middle = np.cumsum(self.pmf) - self.pmf / 2
        return np.minimum((middle * number).astype(np.int64), number - 1)


def law(family: str, parameter: float) -> Law:
    """Exact law of "gaussian", "skellam", "poisson" or "laplace" with that parameter."""
    spread = parameter if family == "laplace" else math.sqrt(parameter)
    reach = int((60 if family == "laplace" else 14) * spread + parameter * (family == "poisson"))
    k = np.arange(-reach - 40, reach + 41)
    chances = weights(family, parameter, k)
    return Law(reach=reach + 40, pmf=chances / chances.sum())


@pytest.fixture
def law_of() -> Callable[[str, float], Law]:
    """The constructor of exact laws, for the tests of this folder."""
    return law


@pytest.fixture
def dkw() -> Callable[[int, float], float]:
    """The distance that an empirical distribution function exceeds with at most that chance."""
    return lambda size, rate: math.sqrt(math.log(2.0 / rate) / (2.0 * size))
