"""Correlated noise: exact integers, the stated sensitivity, and noise that cancels over rounds."""

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.errors import ConfigurationError, PrivacyError
from privfedrl.privacy.correlated import (
    MAX_BANDS,
    CorrelatedNoise,
    SumHistory,
    decode,
    release,
)
from privfedrl.privacy.units import Adjacency, IntegerSensitivity, Unit

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BOUND = IntegerSensitivity(l2_squared=100, l1=20, unit=Unit.TRAJECTORY)


def silent(size: int) -> IntArray:
    return np.zeros(size, dtype=np.int64)


def mixing_matrix(noise: CorrelatedNoise, rounds: int) -> list[list[int]]:
    """The strategy matrix, written out: M[t][s] = m_{t-s}."""
    m = noise.coefficients
    return [[m[t - s] if 0 <= t - s < len(m) else 0 for s in range(rounds)] for t in range(rounds)]


def stream(noise: CorrelatedNoise, sums: IntArray, *, drawn: IntArray | None = None) -> IntArray:
    """Releases of all rounds, nobody twice in a window; ``drawn`` is the noise, or none."""
    noises = iter(np.zeros_like(sums) if drawn is None else drawn)
    history, released = SumHistory(), []
    for total in sums:
        y, history = release(noise, history, total, units=(), sample=lambda _: next(noises))
        released.append(y)
    return np.array(released)


def decoded(noise: CorrelatedNoise, released: IntArray) -> FloatArray:
    past: list[FloatArray] = []
    for y in released:
        past.insert(0, decode(noise, y, past))
    return np.array(past[::-1])


configurations = st.builds(
    CorrelatedNoise, bands=st.integers(2, 12), scale=st.sampled_from([4, 5, 8, 16, 64, 4096])
)


def integer_rounds(rounds: int, width: int, size: int = 10**6) -> st.SearchStrategy[IntArray]:
    """int64 [rounds, width] from a seed: drawing each entry would take most of the time."""

    def table(seed: int) -> IntArray:
        rng = np.random.default_rng(seed)
        return rng.integers(-size, size, (rounds, width), endpoint=True)

    return st.integers(0, 2**32).map(table)


@pytest.mark.parametrize(("bands", "scale"), [(2, 2), (5, 3), (40, 16), (200, 64), (1024, 4096)])
def test_coefficients_are_rounded_binomials_and_never_increase(bands: int, scale: int) -> None:
    m = CorrelatedNoise(bands=bands, scale=scale).coefficients
    exact = [Fraction(scale * math.comb(2 * k, k), 4**k) for k in range(bands)]
    assert m == tuple(math.floor(value + Fraction(1, 2)) for value in exact)
    assert m[0] == scale > m[1]
    assert all(a >= b >= 1 for a, b in itertools.pairwise(m))


def test_the_coefficients_are_the_square_root_of_the_prefix_sums() -> None:
    scale = 4096
    m = np.array(CorrelatedNoise(bands=64, scale=scale).coefficients)
    squared = np.convolve(m, m)[:64] / scale**2
    assert np.allclose(squared, 1.0, atol=64 / scale)


@given(configurations, integer_rounds(9, 3), integer_rounds(9, 3))
def test_a_release_is_the_integer_mixture_plus_the_noise_drawn(
    noise: CorrelatedNoise, sums: IntArray, drawn: IntArray
) -> None:
    matrix = mixing_matrix(noise, 9)
    expected = [
        [sum(matrix[t][s] * int(sums[s][i]) for s in range(9)) + int(drawn[t][i]) for i in range(3)]
        for t in range(9)
    ]
    assert stream(noise, sums, drawn=drawn).tolist() == expected


@given(configurations, integer_rounds(15, 2))
def test_without_noise_everybody_decodes_the_exact_sums(
    noise: CorrelatedNoise, sums: IntArray
) -> None:
    assert np.allclose(decoded(noise, stream(noise, sums)), sums, rtol=0, atol=1e-4)


@given(configurations, integer_rounds(12, 2), integer_rounds(12, 2, 1000))
def test_a_decoded_round_holds_its_sum_and_the_weighted_noise_of_all_rounds_so_far(
    noise: CorrelatedNoise, sums: IntArray, drawn: IntArray
) -> None:
    w = noise.decoder_weights(12)
    found = decoded(noise, stream(noise, sums, drawn=drawn)) - sums
    expected = [sum(w[j] * drawn[t - j] for j in range(t + 1)) for t in range(12)]
    assert np.allclose(found, expected, rtol=0, atol=1e-4)


@given(configurations, integer_rounds(14, 3), st.integers(0, 13), st.data())
def test_a_unit_moves_all_releases_together_by_at_most_the_stated_sensitivity(
    noise: CorrelatedNoise, sums: IntArray, when: int, data: st.DataObject
) -> None:
    row = np.array(data.draw(st.lists(st.integers(-50, 50), min_size=3, max_size=3)))
    l2_squared, l1 = int(row @ row), int(np.abs(row).sum())
    if l1 == 0:
        row, l2_squared, l1 = np.array([1, 0, 0]), 1, 1
    bound = noise.sensitivity(
        IntegerSensitivity(l2_squared=l2_squared, l1=min(l1, l2_squared), unit=Unit.TRAJECTORY)
    )
    without = sums.copy()
    without[when] -= row
    moved = stream(noise, sums) - stream(noise, without)
    assert int((moved**2).sum()) <= bound.l2_squared
    assert int(np.abs(moved).sum()) <= bound.l1
    assert not moved[:when].any()
    assert not moved[when + noise.bands :].any()
    if when + noise.bands <= len(sums):  # whole band inside the run: the bound is attained
        assert int((moved**2).sum()) == bound.l2_squared


@given(configurations, st.integers(0, 5))
def test_participations_that_keep_apart_never_meet_in_one_release(
    noise: CorrelatedNoise, extra: int
) -> None:
    gap = noise.bands + extra
    rounds = gap + noise.bands
    sums = np.zeros((rounds, 2), dtype=np.int64)
    sums[0], sums[gap] = (3, 4), (-5, 0)
    moved = stream(noise, sums)
    first, second = moved[: noise.bands], moved[gap:]
    assert not moved[noise.bands : gap].any()
    # two events of one participation each are the whole of it
    assert int((first**2).sum()) == 25 * sum(m * m for m in noise.coefficients)
    assert int((second**2).sum()) == 25 * sum(m * m for m in noise.coefficients)


@pytest.mark.parametrize("bands", [2, 3, 8])
def test_a_unit_that_is_back_before_the_band_has_passed_is_refused(bands: int) -> None:
    noise = CorrelatedNoise(bands=bands)
    drawn: list[int] = []

    def counting(size: int) -> IntArray:
        drawn.append(size)
        return silent(size)

    history = SumHistory()
    q = np.ones(2, dtype=np.int64)
    _, history = release(noise, history, q, units=["a", "b"], sample=counting)
    for age in range(1, bands):
        with pytest.raises(PrivacyError, match=f"bands = {bands} rounds, one is back after {age}"):
            release(noise, history, q, units=["c", "b"], sample=counting)
        assert len(drawn) == age  # the refused round drew nothing
        _, history = release(noise, history, q, units=[f"other {age}"], sample=counting)
    release(noise, history, q, units=["a", "b"], sample=counting)


def test_cohorts_in_turn_are_accepted_for_ever_and_the_history_stays_short() -> None:
    noise = CorrelatedNoise(bands=4)
    history = SumHistory()
    for t in range(50):
        q = np.full(3, t, dtype=np.int64)
        _, history = release(noise, history, q, units=[f"cohort {t % 4}"], sample=silent)
        assert len(history.sums) == len(history.units) == min(t + 1, 3)
    assert [int(q[0]) for q in history.sums] == [49, 48, 47]


def test_the_history_keeps_its_own_copy_and_never_shows_a_sum() -> None:
    noise = CorrelatedNoise(bands=3)
    q = np.array([271828, 5], dtype=np.int64)
    _, history = release(noise, SumHistory(), q, units=["a"], sample=silent)
    q[:] = 0
    assert history.sums[0].tolist() == [271828, 5]
    assert repr(history) == "SumHistory(rounds=1)"


# the gains of the specification: 200 rounds, by participations and separation, band = separation
@pytest.mark.parametrize(("bands", "gain"), [(137, 3.9), (20, 3.1), (10, 2.5), (5, 2.0), (2, 1.3)])
def test_prefix_sums_gain_what_the_matrix_mechanism_promises(bands: int, gain: float) -> None:
    fine = CorrelatedNoise(bands=bands, scale=1024).prefix_gain(200)
    assert fine == pytest.approx(gain, abs=0.1)
    # the default scale loses at most 4 % to the rounding of coefficients
    assert CorrelatedNoise(bands=bands).prefix_gain(200) >= 0.96 * fine


def test_the_gain_agrees_with_dense_matrices() -> None:
    noise, rounds = CorrelatedNoise(bands=7, scale=32), 30
    strategy = np.array(mixing_matrix(noise, rounds), dtype=np.float64)
    workload = np.tri(rounds)
    column = np.linalg.norm(strategy[:, 0])
    mechanism = np.linalg.norm(workload @ np.linalg.inv(strategy)) * column
    assert noise.prefix_gain(rounds) == pytest.approx(np.linalg.norm(workload) / mechanism)


@pytest.mark.parametrize(("bands", "scale"), [(2, 2), (3, 3), (10, 16), (40, 16), (200, 4096)])
def test_decoding_is_stable_over_many_rounds(bands: int, scale: int) -> None:
    noise = CorrelatedNoise(bands=bands, scale=scale)
    weights = np.abs(scale * noise.decoder_weights(8000))
    assert weights.sum() < 3.0  # an error in one release is never amplified beyond this
    assert weights[4000:].sum() < 1e-3


def test_the_variance_of_a_decoded_round_grows_to_a_limit() -> None:
    noise = CorrelatedNoise(bands=10)
    found = [noise.decoded_variance(256.0, t) for t in range(100)]
    assert found[0] == pytest.approx(1.0)
    assert found == sorted(found)
    assert found[-1] < 4 / math.pi + 0.2  # sum of squared weights of the whole root: 4/pi


@pytest.mark.statistical
def test_noise_in_a_long_sum_is_smaller_than_independent_noise_of_equal_privacy() -> None:
    """Ratio of chi-squares with 4000 degrees of freedom each; the true ratio is 0.19.

    False-positive rate below 1e-6: the bound 0.5 is 2.6 times away, over 40 standard deviations.
    """
    noise, rounds, width, std = CorrelatedNoise(bands=10), 80, 4000, 1000.0
    rng = np.random.default_rng(11)
    norm = math.sqrt(sum(m * m for m in noise.coefficients))
    drawn = np.rint(rng.normal(0, std * norm, (rounds, width))).astype(np.int64)
    zeros = np.zeros((rounds, width), dtype=np.int64)
    correlated = decoded(noise, stream(noise, zeros, drawn=drawn)).sum(axis=0)
    independent = rng.normal(0, std, (rounds, width)).sum(axis=0)
    assert float(correlated @ correlated) < 0.5 * float(independent @ independent)


def _discrete_gaussian(variance: int, radius: int) -> FloatArray:
    k = np.arange(-radius, radius + 1)
    weights = np.exp(-(k**2) / (2.0 * variance))
    law: FloatArray = weights / weights.sum()
    return law


@pytest.mark.parametrize("order", [2.0, 5.0])
@pytest.mark.parametrize("unit", [1, 2])
def test_the_bound_holds_when_the_other_units_react_to_earlier_releases(
    order: float, unit: int
) -> None:
    """Two rounds, one coordinate, the joint law of both releases by direct summation.

    The others contribute a secret coin in both rounds, and in the second what the first release
    tells them; the unit of interest is in the first round only.
    """
    noise, variance, radius = CorrelatedNoise(bands=2, scale=2), 12, 60
    m0, m1 = noise.coefficients
    law = _discrete_gaussian(variance, radius)
    size = 2 * radius + 1

    def joint(contribution: int) -> FloatArray:
        total = np.zeros((3 * size, 3 * size))
        for coin in (-2, 3):
            for i, p in enumerate(law):
                q0 = coin + contribution
                y0 = m0 * q0 + i - radius
                reaction = coin + (3 if y0 % 3 == 0 else -1)  # adaptive, in a crooked way
                start = m0 * reaction + m1 * q0 + size
                total[y0 + size + radius, start : start + size] += 0.5 * p * law
        return total

    with_unit, without = joint(unit), joint(0)
    seen = (with_unit > 1e-30) & (without > 1e-30)
    bound = noise.sensitivity(IntegerSensitivity(l2_squared=unit**2, l1=unit, unit=Unit.AGENT))
    allowed = order * bound.l2_squared / (2 * variance)
    for p, q in ((with_unit, without), (without, with_unit)):
        divergence = math.log(float((p[seen] ** order * q[seen] ** (1 - order)).sum())) / (
            order - 1
        )
        assert 0 < divergence <= allowed + 1e-9


def test_the_event_is_one_central_release_of_the_whole_band() -> None:
    noise = CorrelatedNoise(bands=3, scale=8)
    assert noise.coefficients == (8, 4, 3)
    event = noise.event(BOUND, variance=10**6, coordinates=64)
    assert event.sensitivity == IntegerSensitivity(
        l2_squared=100 * (64 + 16 + 9), l1=20 * (8 + 4 + 3), unit=Unit.TRAJECTORY
    )
    assert (event.variance, event.shares, event.coordinates) == (10**6, 1, 3 * 64)
    doubled = event.sensitivity.for_adjacency(Adjacency.REPLACE_ONE)
    assert doubled.l2_squared == 4 * event.sensitivity.l2_squared


@given(configurations, integer_rounds(10, 2), integer_rounds(10, 2))
def test_no_release_exceeds_the_headroom(
    noise: CorrelatedNoise, sums: IntArray, drawn: IntArray
) -> None:
    largest = int(np.abs(sums).max()), int(np.abs(drawn).max())
    assert np.abs(stream(noise, sums, drawn=drawn)).max() <= noise.headroom(*largest)


def test_values_beyond_the_word_wrap_without_an_error_that_depends_on_data() -> None:
    noise = CorrelatedNoise(bands=2, scale=4)
    q = np.array([2**62], dtype=np.int64)
    y, _ = release(noise, SumHistory(), q, units=[], sample=silent)
    assert y.tolist() == [0]  # 4 * 2^62 modulo 2^64


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("bands", {"bands": 1}),
        ("bands", {"bands": 0}),
        ("bands", {"bands": True}),
        ("bands", {"bands": 4.0}),
        ("bands", {"bands": MAX_BANDS + 1}),
        ("scale", {"bands": 2, "scale": 1}),
        ("scale", {"bands": 2, "scale": math.nan}),
        ("scale", {"bands": 2, "scale": 2**20}),
        ("scale = 2 rounds the last", {"bands": 40, "scale": 2}),
    ],
)
def test_parameters_out_of_range_are_refused(name: str, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=name):
        CorrelatedNoise(**values)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_a_variance_that_is_not_one_is_refused(bad: float) -> None:
    with pytest.raises(ConfigurationError, match="variance"):
        CorrelatedNoise(bands=2).decoded_variance(bad, 0)


@pytest.mark.parametrize("bad", [0, -1, 2.0, 2**17, True])
def test_a_number_of_rounds_out_of_range_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="rounds"):
        CorrelatedNoise(bands=2).decoder_weights(bad)


def test_a_loose_float_is_no_sensitivity() -> None:
    loose: Any = 3.0
    with pytest.raises(ConfigurationError, match="IntegerSensitivity"):
        CorrelatedNoise(bands=2).sensitivity(loose)
    with pytest.raises(ConfigurationError, match="coordinates"):
        CorrelatedNoise(bands=2).event(BOUND, variance=5, coordinates=0)


def test_arrays_that_do_not_fit_are_refused() -> None:
    noise, q = CorrelatedNoise(bands=2), np.zeros(3, dtype=np.int64)
    floats: Any = np.zeros(3)

    def attempt(
        total: IntArray, history: SumHistory | None = None, length: int | None = None
    ) -> None:
        release(
            noise,
            SumHistory() if history is None else history,
            total,
            units=[],
            sample=lambda size: silent(size if length is None else length),
        )

    with pytest.raises(ConfigurationError, match="total must be int64"):
        attempt(floats)
    with pytest.raises(ConfigurationError, match="total must be int64"):
        attempt(np.zeros((3, 1), dtype=np.int64))
    with pytest.raises(ConfigurationError, match="sample must be int64"):
        attempt(q, length=2)
    with pytest.raises(ConfigurationError, match="history must be int64"):
        attempt(q, SumHistory(sums=(q[:2],), units=(frozenset(),)))
    with pytest.raises(ConfigurationError, match="fewer than bands = 2"):
        attempt(q, SumHistory(sums=(q, q), units=(frozenset(), frozenset())))
    with pytest.raises(ConfigurationError, match="one length, got 1 and 0"):
        SumHistory(sums=(q,))
    for released in (np.zeros(3, dtype=np.uint32), np.zeros((3, 1)), q.reshape(1, 3)):
        wrong: Any = released
        with pytest.raises(ConfigurationError, match="released must be int64 or float64"):
            decode(noise, wrong, [])
    with pytest.raises(ConfigurationError, match="past must have shape"):
        decode(noise, q, [np.zeros(2)])


@settings(max_examples=20)
@given(configurations, integer_rounds(30, 3))
def test_decoding_commutes_with_a_rotation_that_is_the_same_in_all_rounds(
    noise: CorrelatedNoise, sums: IntArray
) -> None:
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    released, past = stream(noise, sums), []
    for y in released:
        past.insert(0, decode(noise, y @ rotation, past))
    np.testing.assert_allclose(
        past[::-1], np.array(decoded(noise, released)) @ rotation, rtol=1e-9, atol=1e-3
    )


@pytest.mark.parametrize("bits", [8, 32])
def test_residues_mixed_and_reduced_are_the_reduced_mixture(bits: int) -> None:
    """Whoever knows sums modulo a power of two only may mix those and reduce afterwards."""
    noise, rng = CorrelatedNoise(bands=4), np.random.default_rng(9)
    exact, residues = SumHistory(), SumHistory()
    for index in range(6):
        total, share = rng.integers(-(2**50), 2**50, (2, 5))
        mixed, exact = release(
            noise, exact, total, units=[str(index)], sample=lambda size, z=share: z
        )
        reduced, residues = release(
            noise, residues, total % 2**bits, units=[str(index)], sample=lambda size, z=share: z
        )
        assert np.array_equal(reduced % 2**bits, mixed % 2**bits)


@settings(max_examples=20)
@given(configurations, integer_rounds(30, 1))
def test_decoding_needs_the_last_rounds_only(noise: CorrelatedNoise, sums: IntArray) -> None:
    released = stream(noise, sums)
    full = decoded(noise, released)
    window = [full[t] for t in range(28, 28 - noise.bands + 1, -1)]
    assert np.array_equal(decode(noise, released[29], window), full[29])
