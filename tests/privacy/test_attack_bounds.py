"""Attack figures are above every attack that can be tried, and no higher than they need to be."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri

from privfedrl.errors import ConfigurationError
from privfedrl.privacy.attack_bounds import (
    Curve,
    bayes_accuracy,
    check_curve,
    max_true_positive_rate,
    reconstruction_ceiling,
)
from privfedrl.privacy.gdp import gaussian_delta

EPSILONS = (0.0, 0.1, 0.3, 0.7, 1.0, 1.7, 2.5, 4.0, 7.0)
RATES = (0.0, 1e-6, 0.001, 0.01, 0.1, 0.3, 0.5, 0.77, 0.99, 1.0)
TINY = 1e-14  # what rounding up may add, and more

Law = Sequence[float] | npt.NDArray[np.float64]
pairs = st.tuples(
    st.floats(0, 1) | st.sampled_from([0.0, 1e-300, 1e-9, 1.0]),
    st.floats(0, 50) | st.sampled_from([0.0, 5e-324, 699.0, 701.0, 1e300, math.inf]),
)
curves = st.lists(pairs, min_size=1, max_size=5)
rates = st.floats(0, 1) | st.sampled_from([0.0, 5e-324, 1e-310, 0.5, 1.0])


def weights(count: int) -> st.SearchStrategy[tuple[float, ...]]:
    """A law on ``count`` outcomes, some of them perhaps impossible."""
    positive = st.lists(st.integers(0, 20), min_size=count, max_size=count).filter(any)
    return positive.map(lambda found: tuple(value / sum(found) for value in found))


def hockey_stick(p: Law, q: Law, epsilon: float) -> float:
    """The smallest delta with P(E) <= e^epsilon Q(E) + delta for all E."""
    return sum(max(0.0, a - math.exp(epsilon) * b) for a, b in zip(p, q, strict=True))


def curve_of(couples: Sequence[tuple[Law, Law]]) -> list[tuple[float, float]]:
    """What holds for all couples in both directions; rounded up, as an accountant would."""
    found = []
    for epsilon in EPSILONS:
        both = [hockey_stick(*one, epsilon) for p, q in couples for one in ((p, q), (q, p))]
        found.append((min(1.0, max(both) * (1 + 1e-12) + 1e-15), epsilon))
    return found


def events(p: Law, q: Law) -> list[tuple[float, float]]:
    """(false positive rate, true positive rate) of every deterministic attack."""
    chosen = itertools.product((0, 1), repeat=len(p))
    return [(float(np.dot(row, q)), float(np.dot(row, p))) for row in chosen]


def best_attack(p: Law, q: Law, rate: float) -> float:
    """Neyman and Pearson by brute force: the upper hull of all attacks, at ``rate``."""
    found = events(p, q)
    reached = [true for false, true in found if false <= rate]
    for (f1, t1), (f2, t2) in itertools.combinations(found, 2):
        low, high = sorted(((f1, t1), (f2, t2)))
        if low[0] < rate < high[0]:
            share = (rate - low[0]) / (high[0] - low[0])
            reached.append((1 - share) * low[1] + share * high[1])
    return max(reached)


# --- membership ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(p=weights(4), q=weights(4), rate=rates)
def test_no_attack_on_a_finite_mechanism_beats_the_bounds_of_its_curve(
    p: Law, q: Law, rate: float
) -> None:
    curve = curve_of([(p, q)])
    assert best_attack(p, q, rate) <= max_true_positive_rate(curve, rate) + 1e-12
    assert best_attack(q, p, rate) <= max_true_positive_rate(curve, rate) + 1e-12
    accuracy = max((true + 1 - false) / 2 for false, true in events(p, q))
    assert accuracy <= bayes_accuracy(curve) + 1e-12


def randomised_response(delta: float, epsilon: float) -> tuple[Law, Law]:
    """The mechanism that attains (epsilon, delta) everywhere (Kairouz, Oh and Viswanath 2015)."""
    truth = (1 - delta) * math.exp(epsilon) / (1 + math.exp(epsilon))
    p = (delta, truth, 1 - delta - truth, 0.0)
    return p, p[::-1]


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 0.1, 1.0])
def test_randomised_response_attains_the_bounds_of_a_single_pair(
    delta: float, epsilon: float
) -> None:
    p, q = randomised_response(delta, epsilon)
    for rate in RATES:
        bound = max_true_positive_rate([(delta, epsilon)], rate)
        assert best_attack(p, q, rate) == pytest.approx(bound, abs=1e-12)
    accuracy = max((true + 1 - false) / 2 for false, true in events(p, q))
    assert accuracy == pytest.approx(bayes_accuracy([(delta, epsilon)]), abs=1e-12)
    assert bayes_accuracy([(delta, epsilon)]) == pytest.approx(
        (math.exp(epsilon) + delta) / (1 + math.exp(epsilon))
    )


def test_each_pair_of_a_curve_counts_where_it_is_the_lower_one() -> None:
    curve = [(0.0, 2.0), (0.2, 0.0)]
    wins = [
        [max_true_positive_rate([pair], rate) for pair in curve] for rate in (0.001, 0.1, 0.3, 0.5)
    ]
    assert {row.index(min(row)) for row in wins} == {0, 1}
    for row, rate in zip(wins, (0.001, 0.1, 0.3, 0.5), strict=True):
        assert max_true_positive_rate(curve, rate) == min(row)


@given(curve=curves, first=rates, second=rates)
def test_the_membership_bound_is_a_rate_that_grows_with_the_false_positives(
    curve: list[tuple[float, float]], first: float, second: float
) -> None:
    low, high = sorted((first, second))
    below, above = max_true_positive_rate(curve, low), max_true_positive_rate(curve, high)
    assert low <= below <= above <= 1
    assert 0.5 <= bayes_accuracy(curve) <= 1
    assert max_true_positive_rate(curve, 1.0) == 1.0


@given(curve=curves, more=pairs, rate=rates)
def test_one_more_proven_pair_never_weakens_a_bound(
    curve: list[tuple[float, float]], more: tuple[float, float], rate: float
) -> None:
    assert max_true_positive_rate([*curve, more], rate) <= max_true_positive_rate(curve, rate)
    assert bayes_accuracy([*curve, more]) <= bayes_accuracy(curve)


@given(pair=pairs, worse=pairs, rate=rates)
def test_the_bounds_grow_with_epsilon_and_with_delta(
    pair: tuple[float, float], worse: tuple[float, float], rate: float
) -> None:
    above = max(pair[0], worse[0]), max(pair[1], worse[1])
    assert max_true_positive_rate([pair], rate) <= max_true_positive_rate([above], rate) + TINY
    assert bayes_accuracy([pair]) <= bayes_accuracy([above]) + TINY


@given(curve=curves, rate=rates, share=st.floats(0, 1), other=rates)
def test_the_membership_bound_is_concave_so_that_averaging_over_targets_changes_nothing(
    curve: list[tuple[float, float]], rate: float, share: float, other: float
) -> None:
    mixed = share * rate + (1 - share) * other
    mean = share * max_true_positive_rate(curve, rate) + (1 - share) * max_true_positive_rate(
        curve, other
    )
    # TINY, and a rate that rounding moved where the bound is steep
    assert max_true_positive_rate(curve, mixed) >= mean * (1 - 1e-12) - TINY


def test_a_perfect_mechanism_leaves_a_guess_and_a_useless_one_leaves_nothing() -> None:
    assert max_true_positive_rate([(0.0, 0.0)], 0.01) == pytest.approx(0.01, abs=TINY)
    assert bayes_accuracy([(0.0, 0.0)]) == pytest.approx(0.5, abs=TINY)
    assert max_true_positive_rate([(0.3, 2.0)], 0.0) == 0.3
    for broken in ([(0.0, math.inf)], [(1.0, 0.0)], [(0.0, 701.0)]):
        assert max_true_positive_rate(broken, 1e-300) == 1.0
        assert bayes_accuracy(broken) == pytest.approx(1.0)


def test_a_rate_below_every_exponential_is_not_rounded_to_a_low_bound() -> None:
    """e^epsilon overflows long before e^epsilon * rate has any meaning; the answer stays 1."""
    assert max_true_positive_rate([(0.0, 740.0)], 1e-310) == 1.0
    assert max_true_positive_rate([(0.0, 690.0)], 1e-310) == pytest.approx(
        math.exp(690 + math.log(1e-310)), rel=1e-6
    )


# --- Gaussian mechanisms ------------------------------------------------------------------------


def dense(mu: float) -> Curve:
    grid = np.concatenate([np.linspace(0, 1, 200), np.linspace(1, 12, 400)])
    return [(gaussian_delta(mu, float(epsilon)), float(epsilon)) for epsilon in grid]


@pytest.mark.parametrize("mu", [0.1, 0.27, 1.0, 3.0])
def test_the_bound_of_a_dense_curve_is_just_above_the_exact_gaussian_attack(mu: float) -> None:
    """The likelihood ratio attack on N(0, 1) against N(mu, 1) is the best there is."""
    curve = dense(mu)
    for rate in (1e-4, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9):
        exact = float(ndtr(ndtri(rate) + mu))
        assert exact <= max_true_positive_rate(curve, rate) <= exact * 1.001 + 1e-6
    exact = float(ndtr(mu / 2))
    assert exact <= bayes_accuracy(curve) <= exact * (1 + 1e-9)


@pytest.mark.parametrize("mu", [0.1, 0.27, 1.0, 3.0])
@pytest.mark.parametrize("epsilon", [0.05, 0.5, 1.0, 4.0])
def test_a_single_pair_is_never_below_the_exact_gaussian_attack(mu: float, epsilon: float) -> None:
    curve = [(gaussian_delta(mu, epsilon), epsilon)]
    for rate in (0.001, 0.01, 0.3, 0.9):
        assert ndtr(ndtri(rate) + mu) <= max_true_positive_rate(curve, rate)
        assert ndtr(ndtri(rate) + mu) <= reconstruction_ceiling(curve, rate)
    assert ndtr(mu / 2) <= bayes_accuracy(curve)


# --- reconstruction -----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    absent=weights(4),
    present=st.lists(weights(4), min_size=3, max_size=3),
    prior=weights(3),
    hits=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_no_reconstruction_of_a_random_target_beats_the_ceiling(
    absent: Law, present: list[Law], prior: Law, hits: list[bool]
) -> None:
    """Three targets, four guesses, any criterion: the best guess per outcome, by brute force."""
    success = np.asarray(hits, dtype=np.float64).reshape(3, 4)
    without = float(np.max(np.asarray(prior) @ success))
    joint = np.asarray(prior)[:, None] * np.asarray(present)  # [target, outcome]
    best = float(np.max(success.T @ joint, axis=0).sum())  # max over guesses, sum over outcomes
    curve = curve_of([(one, absent) for one in present])
    assert best <= reconstruction_ceiling(curve, min(1.0, without)) + 1e-12


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("targets", [2, 10, 100])
def test_some_mechanism_lets_an_attacker_reach_the_ceiling(epsilon: float, targets: int) -> None:
    """Absent: a uniform name. Present: one's own name more often, as far as epsilon allows."""
    ceiling = reconstruction_ceiling([(0.0, epsilon)], 1 / targets)
    absent = np.full(targets, 1 / targets)
    present = np.full((targets, targets), (1 - ceiling) / (targets - 1))
    np.fill_diagonal(present, ceiling)
    for own in present:
        assert hockey_stick(own, absent, epsilon) <= 1e-12
        assert hockey_stick(absent, own, epsilon) <= 1e-12
    believing_it = float(np.diag(present).mean())
    assert believing_it == pytest.approx(ceiling)
    assert believing_it >= 1 / targets


@given(curve=curves, prior=rates)
def test_a_release_helps_reconstruction_and_helps_less_the_less_it_tells(
    curve: list[tuple[float, float]], prior: float
) -> None:
    ceiling = reconstruction_ceiling(curve, prior)
    assert prior <= ceiling <= 1
    assert ceiling == max_true_positive_rate(curve, prior)
    halved = [(delta / 2, epsilon / 2) for delta, epsilon in curve]
    assert reconstruction_ceiling(halved, prior) <= ceiling + TINY


# --- refusals -----------------------------------------------------------------------------------

NO_CURVES: list[object] = [
    [],
    (),
    "",
    "ab",
    b"ab",
    None,
    7,
    {(0.1, 1.0)},
    [(0.1,)],
    [(0.1, 1.0, 1.0)],
    ["ab"],
    [0.1],
    [(0.1, -1.0)],
    [(0.1, math.nan)],
    [(math.nan, 1.0)],
    [(-0.1, 1.0)],
    [(1.1, 1.0)],
    [(math.inf, 1.0)],
    [(0.1, "1")],
    [(True, 1.0)],
    [(0.1, None)],
    [(0.1, 10**400)],
    [(0.1, 1.0), (0.1, -1.0)],
]
FUNCTIONS: list[Callable[..., object]] = [
    check_curve,
    bayes_accuracy,
    lambda curve: max_true_positive_rate(curve, 0.1),
    lambda curve: reconstruction_ceiling(curve, 0.1),
]


@pytest.mark.parametrize("curve", NO_CURVES, ids=repr)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_no_curve_is_refused(function: Callable[..., object], curve: object) -> None:
    with pytest.raises(ConfigurationError, match=r"curve|epsilon|delta"):
        function(curve)


@pytest.mark.parametrize("rate", [-1e-9, 1.0000001, math.nan, math.inf, "0.1", None, True, 10**400])
def test_what_is_no_rate_is_refused_by_its_name(rate: object) -> None:
    functions: list[Callable[..., float]] = [max_true_positive_rate, reconstruction_ceiling]
    for function, name in zip(functions, ("false_positive_rate", "prior"), strict=True):
        with pytest.raises(ConfigurationError, match=name):
            function([(1e-5, 1.0)], rate)


def test_a_checked_curve_is_the_same_pairs_as_floats() -> None:
    assert check_curve([(0, 1), [1e-5, 0.5]]) == ((0.0, 1.0), (1e-5, 0.5))
