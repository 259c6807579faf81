"""A filter's budget holds against a chooser who has seen every earlier output."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, skellam

from privfedrl.errors import ConfigurationError, UnsupportedMechanism
from privfedrl.privacy.events import (
    DiscreteGaussianEvent,
    DpEvent,
    GaussianEvent,
    NoReleaseEvent,
    PoissonSampledEvent,
    SkellamEvent,
    UnboundedEvent,
)
from privfedrl.privacy.filters import Filter, fixed_order, sum_of_costliest
from privfedrl.privacy.gdp import gaussian_delta, gaussian_epsilon
from privfedrl.privacy.rdp import ORDERS, event_rdp, rdp_to_epsilon
from privfedrl.privacy.units import IntegerSensitivity, Unit

AGENT = Unit.AGENT
DELTA = 1e-5
SUBCLASS: Any = type("Special", (GaussianEvent,), {})


def gaussian(multiplier: float) -> GaussianEvent:
    return GaussianEvent(noise_multiplier=multiplier, unit=AGENT)


def integer(variance: int, squared: int = 1) -> SkellamEvent:
    bound = IntegerSensitivity(l2_squared=squared, l1=squared, unit=AGENT)
    return SkellamEvent(sensitivity=bound, variance=variance)


def all_of(events: Sequence[DpEvent]) -> list[tuple[Counter[DpEvent], None]]:
    return [(Counter(events), None)]


EVENTS = st.one_of(
    st.floats(0.3, 50).map(gaussian),
    st.integers(1, 10**6).map(integer),
    st.just(NoReleaseEvent(unit=AGENT)),
)


# ---- what the figures mean ----------------------------------------------------------------------


@given(
    epsilon=st.floats(1e-3, 50),
    delta=st.floats(1e-12, 0.4),
    offers=st.lists(EVENTS, min_size=1, max_size=40),
    kind=st.sampled_from(["gdp", "rdp"]),
)
@settings(max_examples=150, deadline=None)
def test_whatever_is_offered_what_is_admitted_keeps_the_budget(
    epsilon: float, delta: float, offers: list[DpEvent], kind: Any
) -> None:
    kept = Filter.declare(kind, epsilon, delta)
    taken: list[DpEvent] = []
    for event in offers:
        if kind == "gdp" and isinstance(event, SkellamEvent):
            continue
        if kept.admits(all_of([*taken, event])):
            taken.append(event)
    if kept.order is None:
        mu = math.hypot(*(1 / e.noise_multiplier for e in taken if isinstance(e, GaussianEvent)))
        assert gaussian_epsilon(mu, delta) <= epsilon
        assert gaussian_delta(mu, epsilon) <= delta * (1 + 1e-9)
    else:
        total = sum((event_rdp(event, orders=[kept.order]) for event in taken), np.zeros(1))
        assert rdp_to_epsilon(total, [kept.order], delta)[0] <= epsilon


@pytest.mark.parametrize("kind", ["gdp", "rdp"])
def test_the_budget_can_be_used_up_to_its_last_thousandth(kind: Any) -> None:
    """The other side: a filter that refuses everything would pass every other test."""
    kept = Filter.declare(kind, 2.0, DELTA)
    exact = Filter.declare("gdp", 2.0, DELTA)
    one = gaussian(100.0)
    count = 0
    while kept.admits([(Counter({one: count + 1}), None)]):
        count += 1
    assert kept.total([(Counter({one: count}), None)]) > 0.999 * kept.allowed
    # RDP at one order loses some ten per cent of epsilon against the exact Gaussian curve
    assert gaussian_epsilon(math.sqrt(count) / 100, DELTA) > 2.0 * (0.998 if kind == "gdp" else 0.8)
    assert count <= exact.allowed * 100**2 * (1 + 1e-9)


@given(epsilon=st.floats(1e-2, 30), delta=st.floats(1e-15, 0.1))
@settings(max_examples=60, deadline=None)
def test_the_fixed_order_admits_the_most_gaussian_noise(epsilon: float, delta: float) -> None:
    order = fixed_order(epsilon, delta)
    best = Filter(kind="rdp", epsilon=epsilon, delta=delta, order=order).allowed / order
    for other in (2.0, 3.0, 4.0, 8.0, 16.0, 32.0, 64.0, 256.0, 1024.0):
        allowed = Filter(kind="rdp", epsilon=epsilon, delta=delta, order=other).allowed
        assert allowed / other <= best * (1 + 1e-12)
    assert order == fixed_order(epsilon, delta)
    assert order in ORDERS
    assert order % 1 == 0


def test_a_million_rounds_of_one_event_are_judged_at_once() -> None:
    kept = Filter.declare("rdp", 1.0, DELTA)
    event = integer(10**9)
    assert kept.admits([({event: 10**6}, None)])
    assert not kept.admits([({event: 2**53}, None)])
    assert kept.total([({event: 10**6}, None)]) == pytest.approx(10**6 * kept.loss(event))


# ---- a chooser who has seen the outputs ---------------------------------------------------------

Kernel = tuple[np.ndarray, np.ndarray]  # law of a binned output with the unit, and without it


def binned_gaussian(multiplier: float) -> Kernel:
    """Post-processing of a Gaussian release to four bins: its loss is smaller, and exact."""
    cuts = np.concatenate([[-np.inf], 0.5 + multiplier * np.array([-1.5, 0.0, 1.5]), [np.inf]])
    return (
        np.diff(norm.cdf(cuts, loc=1.0, scale=multiplier)),
        np.diff(norm.cdf(cuts, loc=0.0, scale=multiplier)),
    )


def binned_skellam(variance: int) -> Kernel:
    scale = math.sqrt(variance)
    cuts = np.floor(np.array([-1.5 * scale, 0.0, 1.5 * scale]))
    without = np.concatenate([[0.0], skellam.cdf(cuts, variance / 2, variance / 2), [1.0]])
    present = np.concatenate([[0.0], skellam.cdf(cuts - 1, variance / 2, variance / 2), [1.0]])
    return np.diff(present), np.diff(without)


def transcripts(
    kept: Filter,
    choose: Callable[[tuple[int, ...]], DpEvent | None],
    kernels: dict[DpEvent, Kernel],
    *,
    depth: int,
    admits: Callable[[list[DpEvent]], bool],
) -> list[tuple[float, float]]:
    """Both probabilities of every transcript, by walking the whole tree of choices."""
    done: list[tuple[float, float]] = []
    open_ends: list[tuple[tuple[int, ...], tuple[DpEvent, ...], float, float]] = [
        ((), (), 1.0, 1.0)
    ]
    while open_ends:
        seen, used, present, absent = open_ends.pop()
        event = choose(seen) if len(seen) < depth else None
        if event is None or not admits([*used, event]):
            done.append((present, absent))
            continue
        for output, (p, q) in enumerate(zip(*kernels[event], strict=True)):
            open_ends.append(((*seen, output), (*used, event), present * p, absent * q))
    return done


def delta_at(epsilon: float, found: list[tuple[float, float]]) -> float:
    """The exact delta of a finite transcript at epsilon, the worse of both directions."""
    grown = math.exp(epsilon)
    return max(
        sum(max(0.0, p - grown * q) for p, q in found),
        sum(max(0.0, q - grown * p) for p, q in found),
    )


GAUSSIANS = [gaussian(z) for z in (1.2, 1.8, 2.5, 4.0)]
SKELLAMS = [integer(v) for v in (3, 5, 10, 20)]
KERNELS: dict[DpEvent, Kernel] = {
    **{event: binned_gaussian(event.noise_multiplier) for event in GAUSSIANS},
    **{event: binned_skellam(event.variance) for event in SKELLAMS},
}


@given(
    policy=st.lists(st.integers(0, 4), min_size=21, max_size=21),
    epsilon=st.floats(0.5, 8.0),
    delta=st.sampled_from([1e-3, 1e-2, 0.05]),
    kind=st.sampled_from(["gdp", "rdp"]),
)
@settings(max_examples=120, deadline=None)
def test_an_adversarial_chooser_never_overspends_the_exact_delta(
    policy: list[int], epsilon: float, delta: float, kind: Any
) -> None:
    """A policy is a table from everything seen so far to the next noise, or to stopping.

    The transcript is finite, so its delta at the budget's epsilon is computed, not estimated.
    """
    kept = Filter.declare(kind, epsilon, delta)
    choices = GAUSSIANS if kind == "gdp" else [*GAUSSIANS[:2], *SKELLAMS[:2]]
    nodes = [seen for n in range(3) for seen in itertools.product(range(4), repeat=n)]
    table = dict(zip(nodes, policy, strict=True))

    def choose(seen: tuple[int, ...]) -> DpEvent | None:
        return None if table[seen] == 4 else choices[table[seen]]

    found = transcripts(
        kept, choose, KERNELS, depth=3, admits=lambda used: kept.admits(all_of(used))
    )
    assert sum(p for p, _ in found) == pytest.approx(1.0)
    assert delta_at(epsilon, found) <= delta * (1 + 1e-9)


@pytest.mark.parametrize(("choices", "epsilon"), [(GAUSSIANS, 4.0), (SKELLAMS, 3.0)])
def test_the_exact_delta_shows_a_filter_that_admits_four_times_too_much(
    choices: list[DpEvent], epsilon: float
) -> None:
    """Control: the same walk finds the overspending of a wrong filter."""
    kept = Filter.declare("rdp", epsilon, 1e-3)

    def lax(used: list[DpEvent]) -> bool:
        return kept.total(all_of(used)) <= 4 * kept.allowed

    def greedy(seen: tuple[int, ...]) -> DpEvent:
        # bet on what leaks most while the loss is high, as an adversary would
        return choices[0] if sum(seen) >= 2 * len(seen) else choices[1]

    arguments: Any = {"choose": greedy, "kernels": KERNELS, "depth": 4}
    wrong = transcripts(kept, admits=lax, **arguments)
    right = transcripts(kept, admits=lambda used: kept.admits(all_of(used)), **arguments)
    assert len(right) > 1
    assert delta_at(epsilon, wrong) > 2e-3
    assert delta_at(epsilon, right) <= 1e-3


# ---- caps, kinds, bad input ---------------------------------------------------------------------


@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    cap=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_the_costliest_releases_bound_every_choice_of_as_many(
    counts: list[int], cap: int, seed: int
) -> None:
    losses = np.random.default_rng(seed).exponential(size=(len(counts), 3))
    pool = [row for row, count in enumerate(counts) for _ in range(count)]
    found = sum_of_costliest(losses, counts, cap)
    for chosen in itertools.islice(itertools.combinations(pool, min(cap, len(pool))), 500):
        assert np.all(losses[list(chosen)].sum(axis=0) <= found * (1 + 1e-12))
    for column in range(3):
        best = sorted((losses[row, column] for row in pool), reverse=True)[:cap]
        assert found[column] == pytest.approx(sum(best))
    everything = sum_of_costliest(losses, counts, None)
    assert np.all(found <= everything * (1 + 1e-12))


def test_a_cap_takes_infinite_losses_first_and_none_of_what_did_not_happen() -> None:
    losses = np.array([[math.inf], [2.0], [1.0]])
    assert sum_of_costliest(losses, [0, 3, 3], 4)[0] == 7.0
    assert sum_of_costliest(losses, [1, 3, 3], 4)[0] == math.inf
    assert sum_of_costliest(np.zeros((0, 2)), [], 3).tolist() == [0.0, 0.0]


def test_a_filter_with_a_cap_admits_what_one_person_can_take_part_in() -> None:
    kept = Filter.declare("rdp", 1.0, DELTA)
    event = integer(100)
    fits = int(kept.allowed / kept.loss(event))
    assert fits >= 1
    assert kept.admits([({event: 1000}, fits)])
    assert not kept.admits([({event: 1000}, fits + 1)])
    assert not kept.admits([({event: 1000}, None)])


def test_the_losses_of_the_two_kinds_are_those_of_the_accountant() -> None:
    gdp, rdp = Filter.declare("gdp", 2.0, DELTA), Filter.declare("rdp", 2.0, DELTA)
    order = rdp.order
    assert order is not None
    assert gdp.loss(gaussian(4.0)) == pytest.approx(1 / 16)
    assert gdp.loss(gaussian(1e-300)) == math.inf
    bound = IntegerSensitivity(l2_squared=4, l1=4, unit=AGENT)
    inner = DiscreteGaussianEvent(sensitivity=bound, variance=64, shares=3, coordinates=10)
    for event in (
        integer(9),
        gaussian(3.0),
        inner,
        PoissonSampledEvent(event=inner, sampling_rate=0.1),
    ):
        assert rdp.loss(event) == event_rdp(event, orders=[order])[0]
    for kept in (gdp, rdp):
        assert kept.loss(NoReleaseEvent(unit=AGENT)) == 0.0
        assert kept.loss(UnboundedEvent(unit=AGENT)) == math.inf
        assert kept.admits(all_of([NoReleaseEvent(unit=AGENT)] * 9))
        assert not kept.admits(all_of([UnboundedEvent(unit=AGENT)]))
        with pytest.raises(UnsupportedMechanism):
            kept.loss(SUBCLASS(noise_multiplier=9.0, unit=AGENT))
    with pytest.raises(UnsupportedMechanism, match="kind 'rdp'"):
        gdp.loss(integer(10**9))


@pytest.mark.parametrize("kind", ["gdp", "rdp"])
def test_budgets_at_the_ends_of_the_scale_refuse_or_admit_but_never_fail(kind: Any) -> None:
    noisy = [gaussian(1e6)]
    assert Filter.declare(kind, math.inf, DELTA).admits(all_of([UnboundedEvent(unit=AGENT)]))
    for epsilon in (0.0, 1e-300, 1e-13, 5, 1e15, 1e308):
        for delta in (5e-324, 1e-12, 0.999999):
            kept = Filter.declare(kind, epsilon, delta)
            assert 0.0 <= kept.allowed < math.inf
            assert kept.admits(all_of([]))
            if kept.admits(all_of(noisy)):
                assert gaussian_epsilon(1e-6, delta) <= epsilon * (1 + 1e-9)


BAD: list[dict[str, Any]] = [
    {"epsilon": math.nan},
    {"epsilon": -1.0},
    {"epsilon": True},
    {"epsilon": "1"},
    {"epsilon": 10**400},
    {"delta": 0.0},
    {"delta": 1.0},
    {"delta": math.nan},
    {"delta": None},
    {"order": None},
    {"order": 1.0},
    {"order": math.nan},
    {"order": math.inf},
    {"order": "8"},
    {"order": True},
    {"kind": "gdp"},
    {"kind": "zcdp"},
]


@pytest.mark.parametrize("changes", BAD, ids=str)
def test_a_filter_that_cannot_be_judged_is_refused(changes: dict[str, Any]) -> None:
    values: dict[str, Any] = {"kind": "rdp", "epsilon": 1.0, "delta": DELTA, "order": 8.0}
    with pytest.raises(ConfigurationError):
        Filter(**{**values, **changes})


@pytest.mark.parametrize("count", [-1, 2**53 + 1, 10**400])
def test_counts_that_are_none_are_refused(count: int) -> None:
    with pytest.raises(ConfigurationError, match="counts"):
        Filter.declare("rdp", 1.0, DELTA).admits([({gaussian(5.0): count}, None)])


def test_an_unknown_kind_of_budget_is_refused_before_an_order_is_chosen() -> None:
    kind: Any = "zcdp"
    with pytest.raises(ConfigurationError, match="kind"):
        Filter.declare(kind, 1.0, DELTA)
    with pytest.raises(ConfigurationError, match="epsilon"):
        fixed_order(math.nan, DELTA)
