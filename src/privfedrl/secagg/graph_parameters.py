"""Degree and threshold of the sparse graph: the smallest that meet three exact tail bounds.

Guarantee: whatever :func:`find_graph` returns for fewer than all neighbours satisfies, in integer
arithmetic, with HG(N, m, k) the number of marked among k drawn of N of which m are marked,

    E1 privacy    n P[HG(n-1, c, k) >= a] <= 2^-(sigma+1), a = t (semi-honest) or 2t - k (malicious)
    E2 connected  n(n-1)/2 prod_{i<k} (c+d-i)/(n-i) <= 2^-(sigma+1)
    E3 correct    n P[HG(n-1, d, k) >= k - t + 1] <= 2^-eta

Floating-point logarithms only discard degrees that miss a bound by far; nothing is accepted by
them.

Notation: n = num_clients, c = corrupt, d = dropouts, k = degree, t = threshold,
sigma = security_bits, eta = correctness_bits.
References: Bell et al., CCS 2020, section 3 (E1 to E3); ``audits/proofs/sparse_graph.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Final

from privfedrl.errors import ConfigurationError
from privfedrl.secagg.graph import (
    MAX_NODES,
    Graph,
    ServerModel,
    circulant,
    graph_of,
    smallest_opened_set,
)

__all__ = ["GraphParameters", "find_graph", "graph_parameters"]

_FIRST_DEGREE: Final = 4
_MAX_BITS: Final = 256
_MARGIN: Final = 1e-6
"""Nats. Nine log-gammas of arguments up to 2^17 are together wrong by less than 1e-8."""

_TERMS: Final = 128
_NEGLIGIBLE: Final = 1e-7
"""The tail beyond its mode falls faster than geometrically; what is cut off only costs a few exact
comparisons more."""

_WIDER: Final = 16
"""Degrees tried for ``min_opened``: the smallest that fits, then up to twice that in 16 steps."""

_ROUNDING: Final = 1e-9
"""Bits, added to every reported logarithm: its rounding may only make a claim weaker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphParameters:
    """What a cohort of n needs so that at most c corrupt and d dropped clients do no harm.

    Attributes:
        num_clients: n, the members of the roster.
        max_corrupt: c, a count.
        max_dropout: d, a count.
        degree: k. In the complete graph n - 1.
        threshold: t: shares that open a secret, and signatures that a client demands. In the sparse
            graph of the k neighbours, without the owner; in the complete graph of all n.
        security_bits: sigma, before what the server gains by trying rosters: with T tries
            (T evaluations of the permutation) sigma - log2(T) remain.
        correctness_bits: eta.
        server: the adversary that E1 was computed for.
        complete: no sparse graph fits; everybody is a neighbour of everybody.
        smallest_opened: honest clients in the smallest sum that the server can open. Complete
            graph: t - c. Malicious: see :func:`smallest_opened_set`; several disjoint sets of that
            size may be opened. Semi-honest: n - c - d, for one sum, if at most d drop out and do so
            independently of the graph.
        log2_privacy: log2 of the left side of E1, rounded up; -inf if it cannot happen.
        log2_connected: the same for E2.
        log2_correct: the same for E3.
    """

    num_clients: int
    max_corrupt: int
    max_dropout: int
    degree: int
    threshold: int
    security_bits: int
    correctness_bits: int
    server: ServerModel
    complete: bool
    smallest_opened: int
    log2_privacy: float
    log2_connected: float
    log2_correct: float

    @property
    def isolation_fraction(self) -> float:
        """alpha = smallest_opened / n: no smaller part of the cohort can be isolated."""
        return self.smallest_opened / self.num_clients

    def graph(self, roster: bytes) -> Graph:
        """The graph of a roster digest (32 bytes) of ``num_clients`` members."""
        return graph_of(
            roster, num_clients=self.num_clients, degree=self.degree, server=self.server
        )


def graph_parameters(
    *,
    num_clients: int,
    max_corrupt: float | Fraction,
    max_dropout: float | Fraction,
    security_bits: int = 40,
    correctness_bits: int = 40,
    server: ServerModel = "malicious",
    min_opened: int = 0,
) -> GraphParameters:
    """:func:`find_graph` for fractions of the cohort: c = floor(gamma n), d = floor(delta n).

    A float stands for the decimal that it prints as: 0.29 of 100 is 29, although the nearest
    double is smaller.

    Raises:
        ConfigurationError: an argument is out of range, or no graph fits.
    """
    _check_integers(num_clients=num_clients)
    return find_graph(
        num_clients,
        corrupt=_count("max_corrupt", max_corrupt, num_clients),
        dropouts=_count("max_dropout", max_dropout, num_clients),
        security_bits=security_bits,
        correctness_bits=correctness_bits,
        server=server,
        min_opened=min_opened,
    )


def find_graph(
    num_clients: int,
    *,
    corrupt: int,
    dropouts: int,
    security_bits: int = 40,
    correctness_bits: int = 40,
    server: ServerModel = "malicious",
    min_opened: int = 0,
) -> GraphParameters:
    """The smallest even degree k, 4 <= k < n - 1, with a threshold that meets E1, E2 and E3.

    The threshold is the smallest that meets E1. If no degree fits: the complete graph with
    t = floor((n + c) / 2) + 1, if n - d >= t. Pure and cached: every participant computes the same.

    ``min_opened`` asks that ``smallest_opened`` is at least that. Where the smallest degree
    promises less, some larger ones are tried, up to about twice it: a denser graph is a better
    expander, and beyond a certain density small sets cannot be isolated at all.

    Args:
        num_clients: n, 2 to MAX_NODES.
        corrupt: c, 0 to n - 1.
        dropouts: d, 0 to n - 1.
        security_bits: sigma, 1 to 256.
        correctness_bits: eta, 1 to 256.
        min_opened: 0 to n; 0 asks for nothing.
    Raises:
        ConfigurationError: an argument is out of range, or not even the complete graph fits.
    """
    _check_integers(
        num_clients=num_clients,
        corrupt=corrupt,
        dropouts=dropouts,
        security_bits=security_bits,
        correctness_bits=correctness_bits,
        min_opened=min_opened,
    )
    bounds = _Bounds(num_clients, corrupt, dropouts, security_bits, correctness_bits, server)
    bounds.check()
    if not 0 <= min_opened <= num_clients:
        raise ConfigurationError(f"min_opened must be from 0 to num_clients, got {min_opened}")
    return _find(bounds, min_opened)


@lru_cache(maxsize=256)
def _find(bounds: _Bounds, min_opened: int) -> GraphParameters:
    for degree, threshold in bounds.choices():
        opened = bounds.opened(degree, threshold)
        if opened >= min_opened:
            return _sparse(bounds, degree, threshold, opened)
    return _complete(bounds, min_opened)


def _sparse(bounds: _Bounds, k: int, t: int, opened: int) -> GraphParameters:
    n, c, d = bounds.n, bounds.c, bounds.d
    ways = math.comb(n - 1, k)
    return GraphParameters(
        num_clients=n,
        max_corrupt=c,
        max_dropout=d,
        degree=k,
        threshold=t,
        security_bits=bounds.sigma,
        correctness_bits=bounds.eta,
        server=bounds.server,
        complete=False,
        smallest_opened=opened,
        log2_privacy=_log2(n * _tail(n - 1, c, k, 2 * t - k if bounds.malicious else t), ways),
        log2_connected=_log2(n * (n - 1) * math.perm(c + d, k), 2 * math.perm(n, k)),
        log2_correct=_log2(n * _tail(n - 1, d, k, k - t + 1), ways),
    )


def _complete(bounds: _Bounds, min_opened: int) -> GraphParameters:
    n, c, d = bounds.n, bounds.c, bounds.d
    threshold = (n + c) // 2 + 1
    if n - d < threshold:
        raise ConfigurationError(
            f"graph parameters are infeasible: of num_clients = {n} with {c} corrupt at least "
            f"{threshold} must answer, but {d} may drop out; expected at most {n - threshold}"
        )
    if threshold - c < min_opened:
        raise ConfigurationError(
            f"min_opened is infeasible for num_clients = {n} with {c} corrupt: expected at most "
            f"{threshold - c}, got {min_opened}"
        )
    return GraphParameters(
        num_clients=n,
        max_corrupt=c,
        max_dropout=d,
        degree=n - 1,
        threshold=threshold,
        security_bits=bounds.sigma,
        correctness_bits=bounds.eta,
        server=bounds.server,
        complete=True,
        smallest_opened=threshold - c,
        log2_privacy=-math.inf,
        log2_connected=-math.inf,
        log2_correct=-math.inf,
    )


@dataclass(frozen=True, slots=True)
class _Bounds:
    """E1, E2, E3 for one cohort: exact decisions, and cheap necessary conditions."""

    n: int
    c: int
    d: int
    sigma: int
    eta: int
    server: ServerModel

    @property
    def malicious(self) -> bool:
        return self.server == "malicious"

    def check(self) -> None:
        n, c, d, sigma, eta = self.n, self.c, self.d, self.sigma, self.eta
        rules = (
            (2 <= n <= MAX_NODES, f"num_clients must be from 2 to {MAX_NODES}, got {n}"),
            (0 <= c < n, f"corrupt must be from 0 to num_clients - 1, got {c} of {n}"),
            (0 <= d < n, f"dropouts must be from 0 to num_clients - 1, got {d} of {n}"),
            (1 <= sigma <= _MAX_BITS, f"security_bits must be from 1 to {_MAX_BITS}, got {sigma}"),
            (1 <= eta <= _MAX_BITS, f"correctness_bits must be from 1 to {_MAX_BITS}, got {eta}"),
            (
                self.server in ("semi-honest", "malicious"),
                f'server must be "semi-honest" or "malicious", got {self.server!r}',
            ),
        )
        problems = tuple(problem for holds, problem in rules if not holds)
        if problems:
            raise ConfigurationError("; ".join(problems), problems=problems)

    def opened(self, degree: int, threshold: int) -> int:
        if not self.malicious:
            return self.n - self.c - self.d
        graph = circulant(self.n, degree)
        return smallest_opened_set(graph, threshold=threshold, corrupt=self.c)

    def choices(self) -> Iterator[tuple[int, int]]:
        """The smallest feasible (k, t), then a few larger ones."""
        first = choice = self.search(_FIRST_DEGREE)
        step = 0
        while first is not None and choice is not None and step <= _WIDER:
            yield choice
            step += 1
            larger = first[0] + 2 * -(-step * first[0] // (2 * _WIDER))
            choice = self.search(max(larger, choice[0] + 2))

    def search(self, start: int) -> tuple[int, int] | None:
        """The smallest feasible (k, t) with k >= start.

        ``least`` is a lower bound on a; HG grows with the number of draws, so it never falls.
        """
        least = 1
        for degree in range(start, self.n - 1, 2):
            least = self._screen_privacy(degree, least)
            if self._hopeless(degree, self._threshold(degree, least)):
                continue
            threshold = self._threshold(degree, self._exact_privacy(degree, least))
            if threshold <= degree and self._connected(degree) and self._correct(degree, threshold):
                return degree, threshold
        return None

    def _threshold(self, degree: int, count: int) -> int:
        """The smallest t with a >= count."""
        return (degree + count + 1) // 2 if self.malicious else count

    def _screen_privacy(self, degree: int, least: int) -> int:
        """Some a' <= a: steps over counts whose tail is plainly too likely."""
        log_limit = -math.log(self.n) - (self.sigma + 1) * math.log(2) + _MARGIN
        least = max(least, (degree + 1) * (self.c + 1) // (self.n + 1))
        while _too_likely(self.n - 1, self.c, degree, least, log_limit):
            least += 1
        return least

    def _hopeless(self, degree: int, threshold: int) -> bool:
        """Whether E2 or E3 is missed by far at this or any larger threshold."""
        n, marked = self.n, self.c + self.d
        if threshold > degree:
            return True
        log_limit = -math.log(n) - self.eta * math.log(2) + _MARGIN
        if _too_likely(n - 1, self.d, degree, degree - threshold + 1, log_limit):
            return True
        if marked < degree:
            return False
        log_pairs = math.log(n) + math.log(n - 1) + self.sigma * math.log(2)
        log_runs = _log_falling(marked, degree) - _log_falling(n, degree)
        return log_pairs + log_runs > _MARGIN

    def _exact_privacy(self, degree: int, least: int) -> int:
        """a: the smallest count >= least with n P[HG >= a] <= 2^-(sigma+1)."""
        ways = math.comb(self.n - 1, degree)
        while self.n * _tail(self.n - 1, self.c, degree, least) << (self.sigma + 1) > ways:
            least += 1
        return least

    def _connected(self, degree: int) -> bool:
        n = self.n
        runs = math.perm(self.c + self.d, degree)
        return (n * (n - 1) * runs) << self.sigma <= math.perm(n, degree)

    def _correct(self, degree: int, threshold: int) -> bool:
        failing = self.n * _tail(self.n - 1, self.d, degree, degree - threshold + 1)
        return failing << self.eta <= math.comb(self.n - 1, degree)


def _tail(population: int, marked: int, draws: int, least: int) -> int:
    """C(population, draws) * P[HG(population, marked, draws) >= least], an integer."""
    unmarked = population - marked
    low, high = max(least, draws - unmarked, 0), min(marked, draws)
    if low > high:
        return 0
    term = math.comb(marked, low) * math.comb(unmarked, draws - low)
    total = term
    for hits in range(low, high):
        term = term * (marked - hits) * (draws - hits)
        term //= (hits + 1) * (unmarked - draws + hits + 1)
        total += term
    return total


def _too_likely(population: int, marked: int, draws: int, count: int, log_limit: float) -> bool:
    """Whether plainly P[HG >= count] > exp(log_limit).

    Up to the mode the tail holds the likeliest of at most draws + 1 values; above it, a lower bound
    decides, first by one term and then by more.
    """
    if count <= (draws + 1) * (marked + 1) // (population + 2):
        return True
    if _log_probability(population, marked, draws, count) > log_limit:
        return True
    return _log_tail(population, marked, draws, count) > log_limit


def _log_tail(population: int, marked: int, draws: int, least: int) -> float:
    """A lower bound on ln P[HG >= least]: the first terms, relative to the first."""
    first = _log_probability(population, marked, draws, least)
    if first == -math.inf:
        return first
    unmarked, term, total = population - marked, 1.0, 1.0
    for hits in range(least, min(least + _TERMS, marked, draws)):
        term *= (marked - hits) * (draws - hits)
        term /= (hits + 1) * (unmarked - draws + hits + 1)
        total += term
        if term < _NEGLIGIBLE * total:
            break
    return first + math.log(total)


def _log_probability(population: int, marked: int, draws: int, hits: int) -> float:
    if hits > min(marked, draws) or draws - hits > population - marked:
        return -math.inf
    inside = _log_comb(marked, hits) + _log_comb(population - marked, draws - hits)
    return inside - _log_comb(population, draws)


def _log_comb(total: int, chosen: int) -> float:
    return _log_falling(total, chosen) - math.lgamma(chosen + 1)


def _log_falling(total: int, factors: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(total - factors + 1)


def _log2(numerator: int, denominator: int) -> float:
    if numerator == 0:
        return -math.inf
    return math.log2(numerator) - math.log2(denominator) + _ROUNDING


def _count(name: str, fraction: float | Fraction, num_clients: int) -> int:
    exact = fraction
    if isinstance(fraction, float) and math.isfinite(fraction):
        exact = Fraction(repr(fraction))
    if isinstance(exact, bool) or not isinstance(exact, int | Fraction) or not 0 <= exact < 1:
        raise ConfigurationError(f"{name} must be a fraction from 0 to below 1, got {fraction!r}")
    return math.floor(exact * num_clients)


def _check_integers(**values: int) -> None:
    problems = tuple(
        f"{name} must be an integer, got {type(value).__name__}"
        for name, value in values.items()
        if not isinstance(value, int) or isinstance(value, bool)
    )
    if problems:
        raise ConfigurationError("; ".join(problems), problems=problems)
