"""Suites beside the attacks: known answers, uniform masks, and noise that is what it claims.

Guarantee: every single statistical comparison has a false-alarm rate of at most ``ALPHA`` = 1e-9,
where the approximation behind it holds; a suite makes fewer than 200 of them, so it raises a false
alarm less often than once in five million runs. Docstrings say which deviation a test is there for.

Notation: D = vector length, n = number of draws, p = a p-value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from privfedrl.testing.adapter import AggregationAdapter, Claim, RingVector
from privfedrl.testing.attacks import attack_suite, suite_of
from privfedrl.testing.bench import Attack, Bench, NotApplicable, claims
from privfedrl.testing.known_answers import KNOWN_ANSWERS, KnownAnswer
from privfedrl.testing.scene import Scene

__all__ = [
    "ALPHA",
    "UNIFORMITY",
    "NoiseClaim",
    "balanced_bits",
    "check_noise",
    "independent_of_input",
    "kat_suite",
    "noise_suite",
    "partial_sums",
    "ring_edges",
    "serial_correlation",
    "uniform_residues",
    "uniformity_suite",
]

ALPHA: Final = 1e-9
_MODULI: Final = (8, 17, 256)
_DRAWS: Final = 120_000
_LAGS: Final = 12


def kat_suite() -> type[Any]:
    """A class that pytest collects: one test per published vector of the primitives."""
    return suite_of(
        "KnownAnswerSuite",
        "Known answers of privfedrl.primitives.",
        {f"test_{row.id}": _known(row) for row in KNOWN_ANSWERS},
    )


def _known(row: KnownAnswer) -> Callable[[Any], None]:
    def test(_: Any) -> None:
        if not row.holds():
            raise AssertionError(f"{row.id} deviates from {row.source}")

    test.__doc__ = row.source
    return test


# uniform masks


def _draws(bench: Bench, vectors: Callable[[Scene, str], RingVector]) -> dict[str, RingVector]:
    """The masked vectors of one real round, about 120,000 residues; raises if there are none."""
    count = bench.scene().spec.num_clients
    scene = bench.scene(vector_length=(10 if bench.thorough else 1) * _DRAWS // count)
    server = scene.server()
    clients = {name: scene.client(name, vector=vectors(scene, name)) for name in scene.names}
    scene.run(server, clients)
    bench.expect_sum(scene, server, clients, "a round with long vectors")
    dtype = np.dtype(f"uint{scene.spec.modulus_bits}")
    found = {client.name: np.frombuffer(data, dtype) for client, _, data in scene.masked}
    if not found:
        raise NotApplicable("the adapter shows no masked vectors")
    return found


def _constant(value: int) -> Callable[[Scene, str], RingVector]:
    return lambda scene, _: np.full(scene.spec.vector_length, value, dtype=np.uint32)


def _uniform(bench: Bench, counts: NDArray[np.int64], what: str) -> None:
    p = stats.chisquare(counts).pvalue
    bench.expect(bool(p > ALPHA), f"{what} are not uniform, p = {p:.3g}")


def uniform_residues(bench: Bench) -> None:
    """Masked zeros and masked largest residues mod 8, 17 and 256, one chi-square each.

    Catches masks of another range or width. For 2^k with k >= 20 an off-by-one range cannot show
    here; see ``ring_edges``.
    """
    for value in (0, 2**32 - 1):
        pooled = np.concatenate(list(_draws(bench, _constant(value)).values()))
        for modulus in _MODULI:
            counts = np.bincount(pooled % modulus, minlength=modulus)
            _uniform(bench, counts, f"masked residues of {value} mod {modulus}")


def ring_edges(bench: Bench) -> None:
    """The highest and lowest bytes of a residue take all 256 values equally often.

    Catches masks below 2^31 and ranges that stop short by 0.3 % or more.
    """
    pooled = np.concatenate(list(_draws(bench, _constant(0)).values()))
    for shift in (0, 8, 16, 24):
        counts = np.bincount(pooled >> np.uint32(shift) & np.uint32(255), minlength=256)
        _uniform(bench, counts, f"bits {shift} to {shift + 7} of masked zeros")


def balanced_bits(bench: Bench) -> None:
    """Each of the 32 bits is set half of the time, by a binomial test at ALPHA / 32 each.

    Catches seeds with too few bits that a generator spreads unevenly, and stuck bits.
    """
    pooled = np.concatenate(list(_draws(bench, _constant(0)).values()))
    for bit in range(32):
        ones = int(np.count_nonzero(pooled >> np.uint32(bit) & np.uint32(1)))
        p = stats.binomtest(ones, len(pooled)).pvalue
        bench.expect(bool(p > ALPHA / 32), f"bit {bit} of masked zeros is set {ones} times")


def independent_of_input(bench: Bench) -> None:
    """Contingency of a random input bit with the masked residue mod 8 and 17.

    Catches a mask that leaves something of the input, on average over coordinates.
    """
    rng = np.random.default_rng(1)
    bits: dict[str, NDArray[np.uint32]] = {}

    def draw(scene: Scene, name: str) -> RingVector:
        bits[name] = rng.integers(0, 2, scene.spec.vector_length, dtype=np.uint32)
        return bits[name]

    found = _draws(bench, draw)
    inputs = np.concatenate([bits[name] for name in found])
    masked = np.concatenate(list(found.values()))
    for modulus in (8, 17):
        table = np.zeros((2, modulus), dtype=np.int64)
        np.add.at(table, (inputs, masked % modulus), 1)
        p = stats.chi2_contingency(table).pvalue
        bench.expect(bool(p > ALPHA), f"the input bit shows mod {modulus}, p = {p:.3g}")


def partial_sums(bench: Bench) -> None:
    """Sums of all masked vectors but one mod 17: pairwise masks alone must not cancel in them.

    Catches missing self masks and masks shared by too few.
    """
    found = _draws(bench, _constant(1))
    for left_out in found:
        others = [vector for name, vector in found.items() if name != left_out]
        total = np.sum(others, axis=0, dtype=np.uint32)
        _uniform(bench, np.bincount(total % 17, minlength=17), f"sums without {left_out}")
    total = np.sum(list(found.values()), axis=0, dtype=np.uint32)
    _uniform(bench, np.bincount(total % 17, minlength=17), "sums of all masked vectors")


def serial_correlation(bench: Bench) -> None:
    """Differences of residues 1 to 4 apart, and half a vector apart, mod 17.

    Catches a mask that repeats with a short period or over tiles.
    """
    for name, vector in _draws(bench, _constant(0)).items():
        for lag in (1, 2, 3, 4, len(vector) // 2):
            counts = np.bincount((vector[lag:] - vector[:-lag]) % 17, minlength=17)
            _uniform(bench, counts, f"residues {lag} apart in {name}")


_MASKS: Final = claims(Claim.UNIFORM_MASKS, Claim.EXACT_SUM)

UNIFORMITY: Final = tuple(
    Attack(id=f"U{number}-{name}", title=title, needs=_MASKS, run=run)
    for number, (name, title, run) in enumerate(
        (
            ("residues", "masked residues are not uniform mod 8, 17 or 256", uniform_residues),
            ("edges", "some byte of the masked residues is not uniform", ring_edges),
            ("bits", "some bit of the masked residues is biased", balanced_bits),
            ("input", "masked residues depend on the input", independent_of_input),
            ("subsets", "masks cancel without a survivor set being opened", partial_sums),
            ("lags", "masks repeat along the vector", serial_correlation),
        ),
        start=1,
    )
)
"""Statistics of masked vectors, as attacks on the claim UNIFORM_MASKS."""


def uniformity_suite(adapter: AggregationAdapter, *, thorough: bool = False) -> type[Any]:
    """A class that pytest collects: one test per row of ``UNIFORMITY``."""
    return attack_suite(adapter, thorough=thorough, attacks=UNIFORMITY)


# noise


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseClaim:
    """What a sampler says of its integer noise, per coordinate, independent, mean 0.

    Attributes:
        variance: positive. excess_kurtosis: 0 for a Gaussian, 1 / variance for Skellam.
        pmf: int64 [m] -> float64 [m], probabilities of these values; None if there is no exact one.
    """

    variance: float
    excess_kurtosis: float = 0.0
    pmf: Callable[[NDArray[np.int64]], NDArray[np.float64]] | None = field(default=None, repr=False)

    @property
    def reach(self) -> int:
        """An integer that |noise| exceeds with probability below 1e-30: 13 deviations and 30."""
        return int(13 * np.sqrt(self.variance)) + 30


Draw = Callable[[int], NDArray[np.integer[Any]]]
"""draw(k): the k-th noise vector, int [D]; k = 0, 1, ... are independent draws."""


def noise_suite(draw: Draw, claim: NoiseClaim) -> type[Any]:
    """A class that pytest collects: one test per property of integer noise, ALPHA each.

    Args:
        draw: gives vectors with D >= 20,000 in all for 8 draws, or the suite says so.
    """
    return suite_of(
        "NoiseSuite",
        "Integer noise against its claim.",
        {f"test_{name}": _noise_test(check, draw, claim) for name, check in _NOISE_CHECKS.items()},
    )


def check_noise(draw: Draw, claim: NoiseClaim) -> dict[str, str]:
    """The same without pytest: {name of a check: what it found} for those that fail."""
    sample = _sample(draw)
    said = {name: check(sample, claim) for name, check in _NOISE_CHECKS.items()}
    return {name: problem for name, problem in said.items() if problem}


Sample = list[NDArray[np.int64]]
_Check = Callable[[Sample, NoiseClaim], str]


def _sample(draw: Draw) -> Sample:
    vectors = [np.asarray(draw(index)) for index in range(8)]
    if any(v.ndim != 1 or not np.issubdtype(v.dtype, np.integer) for v in vectors):
        raise AssertionError("noise must be one-dimensional integer vectors")
    if sum(len(vector) for vector in vectors) < 20_000:
        raise AssertionError("eight draws must hold at least 20,000 values")
    return [vector.astype(np.int64) for vector in vectors]


def _noise_test(check: _Check, draw: Draw, claim: NoiseClaim) -> Callable[[Any], None]:
    def test(_: Any) -> None:
        problem = check(_sample(draw), claim)
        if problem:
            raise AssertionError(problem)

    test.__doc__ = check.__doc__
    return test


def _two_sided(tail: float) -> float:
    return 2 * min(tail, 1 - tail)


def _variance(sample: Sample, claim: NoiseClaim) -> str:
    """Chi-square on the sum of squares, its degrees of freedom corrected for the kurtosis.

    Catches noise that is too small or too large: 1.5 % at n = 160,000. KS needs far more.
    """
    values = np.concatenate(sample)
    freedom = 2 * len(values) / (2 + claim.excess_kurtosis)
    ratio = float(np.mean(np.square(values, dtype=np.float64))) / claim.variance
    p = _two_sided(float(stats.chi2.cdf(freedom * ratio, freedom)))
    return "" if p > ALPHA else f"variance is {ratio:.4f} of the claim, p = {p:.3g}"


def _mean(sample: Sample, claim: NoiseClaim) -> str:
    """A z-test of the mean. Catches rounding towards one side and one-sided tails."""
    values = np.concatenate(sample)
    z = float(values.mean()) / np.sqrt(claim.variance / len(values))
    p = _two_sided(float(stats.norm.cdf(z)))
    return "" if p > ALPHA else f"the mean is {z:.1f} standard errors from 0"


def _shape(sample: Sample, claim: NoiseClaim) -> str:
    """Chi-square against the exact pmf, tails pooled to an expectation of at least 10.

    Catches another distribution of the right variance, rounding of a continuous one, parity.
    """
    if claim.pmf is None:
        return ""
    values = np.concatenate(sample)
    reach = claim.reach
    support = np.arange(-reach, reach + 1)
    expected = claim.pmf(support) * len(values)
    observed = np.bincount(np.clip(values, -reach, reach) + reach, minlength=2 * reach + 1)
    inner = np.flatnonzero(expected >= 10)
    if len(inner) < 2:
        return "the claim spreads too thin for this many draws"
    low, high = inner[0], inner[-1]
    pooled = [
        np.concatenate([[counts[:low].sum()], counts[low : high + 1], [counts[high + 1 :].sum()]])
        for counts in (observed, expected)
    ]
    keep = pooled[1] > 0
    p = stats.chisquare(
        pooled[0][keep], pooled[1][keep] * pooled[0][keep].sum() / pooled[1][keep].sum()
    ).pvalue
    return "" if p > ALPHA else f"the distribution is not the claimed one, p = {p:.3g}"


def _tails(sample: Sample, claim: NoiseClaim) -> str:
    """Counts beyond 3, 4 and 5 deviations, either side, against the pmf. Catches cut-off tails."""
    if claim.pmf is None:
        return ""
    values = np.concatenate(sample)
    support = np.arange(-claim.reach, claim.reach + 1)
    pmf = claim.pmf(support)
    for deviations in (3, 4, 5):
        edge = int(np.ceil(deviations * np.sqrt(claim.variance)))
        for side in (1, -1):
            chance = min(1.0, float(pmf[side * support >= edge].sum()))
            count = int(np.count_nonzero(side * values >= edge))
            if stats.binomtest(count, len(values), chance).pvalue <= ALPHA / 6:
                return f"{count} values beyond {side * edge}, expected {chance * len(values):.1f}"
    return ""


def _zeros(sample: Sample, claim: NoiseClaim) -> str:
    """Exact zeros in each draw, at ALPHA / 8 each. Catches noise missing on some coordinates."""
    chance = _chance_of_zero(claim)
    for index, vector in enumerate(sample):
        count = int(np.count_nonzero(vector == 0))
        if stats.binomtest(count, len(vector), chance).pvalue <= ALPHA / len(sample):
            return f"draw {index} has {count} zeros, expected {chance * len(vector):.1f}"
    return ""


def _chance_of_zero(claim: NoiseClaim) -> float:
    if claim.pmf is not None:
        return float(claim.pmf(np.zeros(1, dtype=np.int64))[0])
    half = 0.5 / np.sqrt(claim.variance)
    return float(stats.norm.cdf(half) - stats.norm.cdf(-half))


def _repeats(sample: Sample, claim: NoiseClaim) -> str:
    """Coordinates that two draws share, at ALPHA / 28 each pair. Catches noise that is reused.

    The chance of a coincidence is bounded by that of the likeliest value, so the test is one-sided.
    """
    support = np.arange(-claim.reach, claim.reach + 1)
    chance = _chance_of_zero(claim)
    if claim.pmf is not None:
        chance = float(np.square(claim.pmf(support)).sum())
    for one, left in enumerate(sample):
        for two, right in enumerate(sample[:one]):
            size = min(len(left), len(right))
            count = int(np.count_nonzero(left[:size] == right[:size]))
            p = stats.binomtest(count, size, min(1.0, chance), alternative="greater").pvalue
            if p <= ALPHA / 28:
                return f"draws {two} and {one} share {count} of {size} coordinates"
    return ""


def _correlation(sample: Sample, claim: NoiseClaim) -> str:
    """Correlation along each draw at lags 1 to 12, and between draws: |r| sqrt(n) < 6.8.

    6.8 deviations have a chance of 1e-11; about 124 of them are looked at. Catches generators with
    short memory and noise shared between agents or rounds, from 4 % at n = 20,000.
    """
    pairs = [
        (f"lag {lag} of draw {index}", vector[lag:], vector[:-lag])
        for index, vector in enumerate(sample)
        for lag in range(1, _LAGS + 1)
    ]
    pairs += [
        (f"draws {two} and {one}", left, right)
        for one, left in enumerate(sample)
        for two, right in enumerate(sample[:one])
    ]
    for what, left, right in pairs:
        size = min(len(left), len(right))
        product = float(np.dot(left[:size].astype(float), right[:size].astype(float)))
        z = product / (claim.variance * np.sqrt(size))
        if abs(z) >= 6.8:
            return f"{what}: correlation {z / np.sqrt(size):.3f}, {abs(z):.1f} deviations"
    return ""


_NOISE_CHECKS: Final[dict[str, _Check]] = {
    "variance": _variance,
    "mean": _mean,
    "shape": _shape,
    "tails": _tails,
    "zeros": _zeros,
    "repeats": _repeats,
    "correlation": _correlation,
}
