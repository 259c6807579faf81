"""The statistical suites: silent on what is sound, loud on each named defect.

Sound samplers are judged at 1e-9 per test with fixed seeds, so no test here flakes: the
false-positive rate of any one is below 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from privfedrl.testing.adapter import Packet, RingVector, RoundSpec
from privfedrl.testing.attacks import run_attack, run_attacks
from privfedrl.testing.known_answers import KNOWN_ANSWERS
from privfedrl.testing.pairwise_guarded import GuardedPairwiseAdapter
from privfedrl.testing.suites import (
    UNIFORMITY,
    NoiseClaim,
    check_noise,
    kat_suite,
    noise_suite,
    uniformity_suite,
)
from privfedrl.testing.verdict import Status

D = 20_000
MU = 30.0
CLAIM = NoiseClaim(
    variance=2 * MU, excess_kurtosis=1 / (2 * MU), pmf=lambda k: stats.skellam.pmf(k, MU, MU)
)


def rng_of(index: int) -> np.random.Generator:
    return np.random.default_rng([19, index])


def skellam(index: int) -> NDArray[np.int64]:
    rng = rng_of(index)
    return rng.poisson(MU, D) - rng.poisson(MU, D)


class TestKnownAnswers(kat_suite()):
    """Published vectors of every primitive."""


class TestUniformity(uniformity_suite(GuardedPairwiseAdapter())):
    """Masked vectors of our own protocol."""


class TestSkellam(noise_suite(skellam, CLAIM)):
    """A sound sampler passes every test of noise."""


def test_every_known_answer_has_a_source_and_a_name_of_its_own() -> None:
    assert all(row.source for row in KNOWN_ANSWERS)
    assert len({row.id for row in KNOWN_ANSWERS}) == len(KNOWN_ANSWERS)


# noise that is not what it claims


def scaled(index: int) -> NDArray[np.int64]:
    rng = rng_of(index)
    return rng.poisson(MU * 0.96, D) - rng.poisson(MU * 0.96, D)


def shifted(index: int) -> NDArray[np.int64]:
    return skellam(index) + (rng_of(100 + index).random(D) < 0.2)


def rounded_gaussian(index: int) -> NDArray[np.int64]:
    return np.rint(rng_of(index).normal(0, np.sqrt(2 * MU), D)).astype(np.int64)


def even_only(index: int) -> NDArray[np.int64]:
    return 2 * np.rint(rng_of(index).normal(0, np.sqrt(MU / 2), D)).astype(np.int64)


def cut_off(index: int) -> NDArray[np.int64]:
    edge = int(3 * np.sqrt(2 * MU))
    return np.clip(skellam(index), -edge, edge)


def missing_on_some(index: int) -> NDArray[np.int64]:
    return np.where(rng_of(200 + index).random(D) < 0.02, 0, skellam(index))


def missing_in_one_draw(index: int) -> NDArray[np.int64]:
    return np.zeros(D, dtype=np.int64) if index == 3 else skellam(index)


def reused(index: int) -> NDArray[np.int64]:
    return skellam(index % 7)


def partly_shared(index: int) -> NDArray[np.int64]:
    return np.where(np.arange(D) < D // 10, skellam(0), skellam(index))


def short_memory(index: int) -> NDArray[np.int64]:
    return np.tile(skellam(index)[: D // 4000], 4000)


def smoothed(index: int) -> NDArray[np.int64]:
    rng = rng_of(index)
    steps = rng.poisson(MU / 2, D + 1) - rng.poisson(MU / 2, D + 1)
    return steps[1:] + steps[:-1]


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("draw", "catches"),
    [
        (scaled, "variance"),
        (shifted, "mean"),
        (even_only, "shape"),
        (cut_off, "tails"),
        (missing_on_some, "zeros"),
        (missing_in_one_draw, "zeros"),
        (reused, "repeats"),
        (partly_shared, "repeats"),
        (partly_shared, "correlation"),
        (short_memory, "correlation"),
        (smoothed, "correlation"),
    ],
)
def test_a_defect_of_the_noise_is_caught_by_the_check_named_for_it(
    draw: Callable[[int], NDArray[np.int64]], catches: str
) -> None:
    """Defects show at p < 1e-9; the seed is fixed."""
    assert catches in check_noise(draw, CLAIM)


@pytest.mark.statistical
def test_sound_noise_gives_no_finding() -> None:
    """False-positive rate below 1e-7: seven checks, at most 1e-9 times their parts each."""
    assert check_noise(skellam, CLAIM) == {}


@pytest.mark.statistical
def test_without_a_pmf_the_moments_are_still_judged() -> None:
    """False-positive rate below 1e-7. A wide rounded Gaussian passes, a narrow one does not."""
    claim = NoiseClaim(variance=2 * MU + 1 / 12)
    assert check_noise(rounded_gaussian, claim) == {}
    assert "variance" in check_noise(rounded_gaussian, NoiseClaim(variance=2 * MU * 1.1))


@pytest.mark.parametrize(
    "draw",
    [
        lambda index: np.zeros(100, np.int64),
        lambda index: np.zeros(D),
        lambda index: np.zeros((D, 2), np.int64),
    ],
)
def test_samples_of_another_form_are_refused(draw: Callable[[int], Any]) -> None:
    with pytest.raises(AssertionError, match=r"noise must be|20,000"):
        check_noise(draw, CLAIM)
    with pytest.raises(AssertionError, match=r"noise must be|20,000"):
        noise_suite(draw, CLAIM)().test_variance()


def test_a_failing_check_fails_its_test() -> None:
    with pytest.raises(AssertionError, match="variance is"):
        noise_suite(scaled, CLAIM)().test_variance()


# masks that are not uniform


class Bent(GuardedPairwiseAdapter):
    """Shows the masked vectors through ``bend``: what a faulty mask would look like."""

    def __init__(self, bend: Callable[[RingVector], RingVector]) -> None:
        self.bend = bend

    def residues(self, spec: RoundSpec, packet: Packet) -> RingVector | None:
        masked = super().residues(spec, packet)
        return None if masked is None else self.bend(masked.copy())


def short_range(masked: RingVector) -> RingVector:
    return masked % np.uint32(2**32 // 1000 * 997)


def no_top_bit(masked: RingVector) -> RingVector:
    return masked & np.uint32(2**31 - 1)


def tiled(masked: RingVector) -> RingVector:
    return np.tile(masked[:1000], len(masked) // 1000 + 1)[: len(masked)]


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("bend", "row"),
    [
        (lambda masked: masked % np.uint32(255), "U1-residues"),
        (lambda masked: np.minimum(masked, 7), "U1-residues"),
        (short_range, "U2-edges"),
        (no_top_bit, "U2-edges"),
        (no_top_bit, "U3-bits"),
        (lambda masked: masked | np.uint32(1), "U3-bits"),
        (tiled, "U6-lags"),
        (lambda masked: np.full_like(masked, 5), "U4-input"),
        (lambda masked: np.zeros_like(masked), "U5-subsets"),
    ],
)
def test_a_faulty_mask_is_caught_by_the_statistic_named_for_it(
    bend: Callable[[RingVector], RingVector], row: str
) -> None:
    """Faults show at p < 1e-9 with fixed seeds."""
    (attack,) = (each for each in UNIFORMITY if each.id == row)
    outcome = run_attack(Bent(bend), attack, shrink_tries=0)
    assert outcome.status is Status.FAILED


def test_mask_statistics_are_unclaimed_without_the_claim() -> None:
    class Modest(GuardedPairwiseAdapter):
        claims = frozenset()

    verdict = run_attacks(Modest(), attacks=UNIFORMITY)
    assert {outcome.status for outcome in verdict.outcomes} == {Status.UNCLAIMED}
