"""The bill of a run follows the unit, never shrinks by bookkeeping, and is quick."""

import math
import random
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from privfedrl.errors import ConfigurationError, UnsupportedMechanism
from privfedrl.privacy.accountant import Spent, compose, epsilon, epsilon_of_counts, parallel
from privfedrl.privacy.events import (
    DiscreteGaussianEvent,
    DpEvent,
    GaussianEvent,
    NoReleaseEvent,
    PoissonSampledEvent,
    SkellamEvent,
    UnboundedEvent,
)
from privfedrl.privacy.gdp import gaussian_epsilon
from privfedrl.privacy.units import Adjacency, IntegerSensitivity, Unit

DELTA = 1e-5


def skellam(variance: int = 10**7, unit: Unit = Unit.AGENT, squared: int = 10**6) -> SkellamEvent:
    bound = IntegerSensitivity(l2_squared=squared, l1=min(squared, 10**4), unit=unit)
    return SkellamEvent(sensitivity=bound, variance=variance)


def gaussian(multiplier: float, unit: Unit = Unit.AGENT) -> GaussianEvent:
    return GaussianEvent(noise_multiplier=multiplier, unit=unit)


events = st.one_of(
    st.builds(skellam, variance=st.integers(10**4, 10**10), squared=st.integers(1, 10**7)),
    st.builds(gaussian, st.floats(0.1, 1000)),
    st.just(NoReleaseEvent(unit=Unit.AGENT)),
)
lists = st.lists(events, max_size=6)


def test_one_trajectory_release_is_the_whole_bill_however_many_rounds_run() -> None:
    event = skellam(unit=Unit.TRAJECTORY)
    one = compose(Unit.TRAJECTORY, [("round 0", event)], DELTA)
    many = compose(Unit.TRAJECTORY, [(f"round {r}", event) for r in range(1000)], DELTA)
    assert many.epsilon == one.epsilon
    assert many.order == one.order
    assert (one.bound, many.bound) == ("rdp", "parallel rdp")


def test_two_releases_from_the_same_trajectories_cost_more_than_one() -> None:
    event = skellam(unit=Unit.TRAJECTORY)
    one = compose(Unit.TRAJECTORY, [(0, event)], DELTA)
    two = compose(Unit.TRAJECTORY, [(0, event), (0, event)], DELTA)
    assert two.epsilon > one.epsilon
    assert two.epsilon == epsilon([event, event], DELTA).epsilon


def test_a_trajectory_bill_is_that_of_the_worst_round() -> None:
    good = skellam(unit=Unit.TRAJECTORY)
    bad = skellam(unit=Unit.TRAJECTORY, variance=10**6)
    spent = compose(Unit.TRAJECTORY, [(0, good), (1, bad), (2, good)], DELTA)
    assert spent.epsilon == epsilon([bad], DELTA).epsilon


def test_overlapping_sets_of_trajectories_are_refused() -> None:
    event = skellam(unit=Unit.TRAJECTORY)
    overlap = [(frozenset({"a", "b"}), event), (frozenset({"b", "c"}), event)]
    with pytest.raises(UnsupportedMechanism, match="overlap"):
        compose(Unit.TRAJECTORY, overlap, DELTA)
    disjoint = [(frozenset({"a"}), event), (frozenset({"c"}), event)]
    assert compose(Unit.TRAJECTORY, disjoint, DELTA).epsilon == epsilon([event], DELTA).epsilon


@pytest.mark.parametrize("unit", [Unit.PERSON, Unit.AGENT])
def test_people_and_agents_pay_for_every_participation(unit: Unit) -> None:
    event = skellam(unit=unit)
    releases = [(r, event) for r in range(10)]
    spent = compose(unit, releases, DELTA)
    assert spent == epsilon([event] * 10, DELTA)
    assert spent.epsilon > epsilon([event], DELTA).epsilon


@pytest.mark.parametrize("k", [1, 4, 25, 100])
def test_agent_cost_grows_as_the_square_root_of_the_participations_in_mu(k: int) -> None:
    sigma = 10.0
    spent = compose(Unit.AGENT, [(r, gaussian(sigma)) for r in range(k)], DELTA)
    assert spent.bound == "exact-gdp"
    assert spent.epsilon == pytest.approx(gaussian_epsilon(math.sqrt(k) / sigma, DELTA), rel=1e-9)


def test_a_hundred_agent_rounds_at_epsilon_one_need_the_published_noise() -> None:
    assert epsilon([gaussian(37.306)] * 100, DELTA).epsilon == pytest.approx(1.0, abs=1e-4)


def test_an_event_about_another_unit_is_refused() -> None:
    with pytest.raises(UnsupportedMechanism, match="unit"):
        compose(Unit.TRAJECTORY, [(0, skellam(unit=Unit.AGENT))], DELTA)
    mixed: list[DpEvent] = [skellam(unit=Unit.AGENT), gaussian(1.0, Unit.PERSON)]
    with pytest.raises(UnsupportedMechanism, match="agent, person"):
        epsilon(mixed, DELTA)
    with pytest.raises(UnsupportedMechanism, match="agent, person"):
        parallel([[event] for event in mixed], DELTA)


def test_unknown_events_are_refused_wherever_they_stand() -> None:
    stranger: Any = object()
    with pytest.raises(UnsupportedMechanism, match="unknown event"):
        epsilon([skellam(), stranger], DELTA)
    with pytest.raises(UnsupportedMechanism, match="unknown event"):
        parallel([[stranger]], DELTA)
    with pytest.raises(UnsupportedMechanism, match="unknown event"):
        compose(Unit.AGENT, [(0, stranger)], DELTA)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, 2.0, math.nan])
def test_delta_outside_the_open_unit_interval_is_refused(delta: float) -> None:
    with pytest.raises(ConfigurationError, match="delta"):
        epsilon([], delta)
    with pytest.raises(ConfigurationError, match="delta"):
        parallel([], delta)
    for unit in Unit:
        with pytest.raises(ConfigurationError, match="delta"):
            compose(unit, [], delta)


def test_nothing_released_costs_nothing_and_no_noise_costs_everything() -> None:
    nothing = Spent(epsilon=0.0, delta=DELTA, bound="no-release")
    silent = NoReleaseEvent(unit=Unit.AGENT)
    assert epsilon([], DELTA) == nothing
    assert parallel([], DELTA) == nothing
    assert parallel([[], [silent]], DELTA) == nothing
    assert epsilon([silent] * 5, DELTA) == nothing
    assert epsilon([silent, skellam()], DELTA) == epsilon([skellam()], DELTA)
    spent = epsilon([skellam(), UnboundedEvent(unit=Unit.AGENT)], DELTA)
    assert (spent.epsilon, spent.bound) == (math.inf, "unbounded")
    assert parallel([[skellam()], [UnboundedEvent(unit=Unit.AGENT)]], DELTA).epsilon == math.inf


@given(lists)
@settings(deadline=None, max_examples=60)
def test_the_order_of_releases_does_not_matter(releases: list[DpEvent]) -> None:
    shuffled = random.Random(1).sample(releases, len(releases))
    assert epsilon(releases, DELTA) == epsilon(shuffled, DELTA)


@given(lists, lists, lists, st.sampled_from(list(Adjacency)))
@settings(deadline=None, max_examples=60)
def test_more_releases_never_cost_less(
    first: list[DpEvent], second: list[DpEvent], third: list[DpEvent], adjacency: Adjacency
) -> None:
    part = epsilon(first + second, DELTA, adjacency=adjacency)
    whole = epsilon(first + second + third, DELTA, adjacency=adjacency)
    assert 0 <= part.epsilon <= whole.epsilon * (1 + 1e-9) + 1e-9 or not third
    together = parallel([first, second + third], DELTA, adjacency=adjacency)
    assert together.epsilon <= whole.epsilon * (1 + 1e-9) + 1e-9
    assert together.epsilon == max(
        epsilon(first, DELTA, adjacency=adjacency).epsilon,
        epsilon(second + third, DELTA, adjacency=adjacency).epsilon,
    )


@given(st.integers(10**4, 10**9), st.integers(2, 100))
@settings(deadline=None)
def test_more_noise_or_a_larger_delta_never_costs_more(variance: int, factor: int) -> None:
    base = epsilon([skellam(variance)] * 3, DELTA).epsilon
    assert epsilon([skellam(variance * factor)] * 3, DELTA).epsilon <= base
    assert epsilon([skellam(variance)] * 3, DELTA * factor).epsilon <= base


@pytest.mark.parametrize("mixture", [[skellam()], [gaussian(3.0)], [skellam(), gaussian(3.0)]])
def test_replacing_a_unit_costs_like_twice_the_sensitivity(mixture: list[DpEvent]) -> None:
    removed = epsilon(mixture, DELTA)
    replaced = epsilon(mixture, DELTA, adjacency=Adjacency.REPLACE_ONE)
    assert replaced.epsilon > removed.epsilon
    wide = IntegerSensitivity(l2_squared=4 * 10**6, l1=2 * 10**4, unit=Unit.AGENT)
    doubled: list[DpEvent] = [
        gaussian(1.5)
        if isinstance(event, GaussianEvent)
        else SkellamEvent(sensitivity=wide, variance=10**7)
        for event in mixture
    ]
    assert replaced.epsilon == epsilon(doubled, DELTA).epsilon


def test_gaussian_and_skellam_releases_compose_through_their_curves() -> None:
    spent = epsilon([skellam(), gaussian(3.0)], DELTA)
    assert spent.bound == "rdp"
    assert spent.epsilon > epsilon([skellam()], DELTA).epsilon
    assert spent.epsilon > epsilon([gaussian(3.0)], DELTA).epsilon
    assert epsilon([gaussian(1e-200), skellam()], DELTA).epsilon == math.inf


def test_exact_gaussian_figure_is_within_dp_accounting_rdp_and_pld() -> None:
    pld = pytest.importorskip("dp_accounting.pld")
    rdp = pytest.importorskip("dp_accounting.rdp")
    accounting = pytest.importorskip("dp_accounting")
    event = accounting.SelfComposedDpEvent(accounting.GaussianDpEvent(5.0), 100)
    ours = epsilon([gaussian(5.0)] * 100, DELTA).epsilon
    tight = pld.PLDAccountant(value_discretization_interval=1e-3)
    tight.compose(event)
    loose = rdp.RdpAccountant()
    loose.compose(event)
    assert ours == pytest.approx(tight.get_epsilon(DELTA), abs=1e-3)
    assert ours <= loose.get_epsilon(DELTA)


def test_a_million_equal_releases_are_counted_at_once() -> None:
    event = skellam(10**13)
    started = time.perf_counter()
    spent = epsilon([event] * 10**6, DELTA)
    rounds = parallel([[event]] * 10**5, DELTA)
    assert time.perf_counter() - started < 10  # seconds; about 0.4 on two busy cores
    assert 0 < rounds.epsilon < spent.epsilon < math.inf


def test_equal_events_count_alike_whether_they_are_one_object_or_many() -> None:
    assert epsilon([skellam() for _ in range(50)], DELTA) == epsilon([skellam()] * 50, DELTA)


@given(lists)
@settings(deadline=None, max_examples=40)
def test_a_multiset_costs_what_its_list_costs(releases: list[DpEvent]) -> None:
    assert epsilon_of_counts(Counter(releases), DELTA) == epsilon(releases, DELTA)


def test_a_multiset_refuses_what_a_list_refuses() -> None:
    stranger: Any = object()
    with pytest.raises(UnsupportedMechanism, match="unknown event"):
        epsilon_of_counts({stranger: 1}, DELTA)
    with pytest.raises(UnsupportedMechanism, match="agent, person"):
        epsilon_of_counts({skellam(): 1, skellam(unit=Unit.PERSON): 1}, DELTA)
    for bad in (-1, 1.5):
        count: Any = bad
        with pytest.raises(ConfigurationError, match="counts"):
            epsilon_of_counts({skellam(): count}, DELTA)
    with pytest.raises(ConfigurationError, match="delta"):
        epsilon_of_counts({}, 0.0)
    assert epsilon_of_counts({skellam(): 0}, DELTA).epsilon == 0.0


# --- the least of the valid bounds ---------------------------------------------------------------


def sampled(sigma: float, rate: float) -> PoissonSampledEvent:
    event = GaussianEvent(noise_multiplier=sigma, unit=Unit.AGENT)
    return PoissonSampledEvent(event=event, sampling_rate=rate)


def replaced_delta(sigma: float, rate: float, eps: float) -> float:
    """Hockey-stick divergence of (1-q) N(0) + q N(1) from (1-q) N(0) + q N(-1), by summation."""
    x = np.linspace(-12 * sigma, 12 * sigma, 400_001)
    rest = (1 - rate) * norm.pdf(x / sigma)
    one, other = (rest + rate * norm.pdf((x - shift) / sigma) for shift in (1, -1))
    return float(np.maximum(one - math.exp(eps) * other, 0).sum() * (x[1] - x[0]) / sigma)


def test_sampled_gaussians_are_charged_by_their_privacy_loss_distribution() -> None:
    found = epsilon([sampled(1.0, 0.01)] * 1000, 1e-5)
    assert found.bound == "pld"
    # certified lower bound of an independent accountant, and its upper one
    assert 1.8181 <= found.epsilon <= 1.8384


@pytest.mark.parametrize(("sigma", "rate"), [(1.0, 0.1), (2.0, 0.01), (0.7, 0.5)])
def test_replacing_a_sampled_unit_never_costs_less_than_the_exact_pair(
    sigma: float, rate: float
) -> None:
    found = epsilon([sampled(sigma, rate)], 1e-5, adjacency=Adjacency.REPLACE_ONE)
    assert replaced_delta(sigma, rate, found.epsilon) <= 1e-5
    assert found.epsilon >= epsilon([sampled(sigma, rate)], 1e-5).epsilon


def test_replacing_takes_whichever_of_two_bounds_is_smaller() -> None:
    often = epsilon([sampled(1.0, 0.01)] * 1000, 1e-5, adjacency=Adjacency.REPLACE_ONE)
    assert often.bound == "two-steps"
    always = epsilon([sampled(1.0, 0.9)], 1e-5, adjacency=Adjacency.REPLACE_ONE)
    assert always.bound == "rdp"


def test_two_steps_are_two_removals_at_the_delta_that_they_leave() -> None:
    found = epsilon([sampled(1.0, 0.01)] * 100, 1e-6, adjacency=Adjacency.REPLACE_ONE)
    step = found.epsilon / 2
    share = 1e-6 / (1 + math.exp(step))
    assert epsilon([sampled(1.0, 0.01)] * 100, share).epsilon <= step * (1 + 1e-9)


@pytest.mark.parametrize("sigma", [1e-9, 1e-3, 1e9])
def test_replacing_sampled_units_ends_for_every_noise(sigma: float) -> None:
    found = epsilon([sampled(sigma, 0.5)] * 3, 1e-5, adjacency=Adjacency.REPLACE_ONE)
    assert found.epsilon >= 0.0


def test_discrete_gaussian_releases_are_not_free() -> None:
    event = DiscreteGaussianEvent(
        sensitivity=IntegerSensitivity(l2_squared=100, l1=30, unit=Unit.AGENT),
        variance=900,
        shares=3,
        coordinates=64,
    )
    assert epsilon([event], 1e-5).epsilon > 0.5
    assert epsilon([event, event], 1e-5).epsilon > epsilon([event], 1e-5).epsilon
