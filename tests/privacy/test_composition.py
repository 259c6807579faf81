"""A running bill equals the bill of the whole list, in any order, and takes no history with it."""

import math
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.errors import ConfigurationError, UnsupportedMechanism
from privfedrl.privacy.composition import Composition
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
from privfedrl.privacy.rdp import ORDERS, event_rdp, rdp_to_epsilon
from privfedrl.privacy.units import Adjacency, IntegerSensitivity, Unit

DELTA = 1e-5


def bound(squared: int = 10**6) -> IntegerSensitivity:
    return IntegerSensitivity(l2_squared=squared, l1=min(squared, 10**4), unit=Unit.AGENT)


def skellam(variance: int) -> SkellamEvent:
    return SkellamEvent(sensitivity=bound(), variance=variance)


def discrete(variance: int, shares: int) -> DiscreteGaussianEvent:
    return DiscreteGaussianEvent(
        sensitivity=bound(), variance=variance, shares=shares, coordinates=100
    )


def gaussian(sigma: float, unit: Unit = Unit.AGENT) -> GaussianEvent:
    return GaussianEvent(noise_multiplier=sigma, unit=unit)


def sampled(sigma: float, rate: float) -> PoissonSampledEvent:
    return PoissonSampledEvent(event=gaussian(sigma), sampling_rate=rate)


events = st.one_of(
    st.builds(skellam, st.integers(10**5, 10**9)),
    st.builds(discrete, st.integers(10**5, 10**9), st.integers(1, 9)),
    st.builds(gaussian, st.floats(0.5, 100)),
    st.builds(sampled, st.floats(0.5, 100), st.floats(1e-4, 1)),
    st.just(NoReleaseEvent(unit=Unit.AGENT)),
)
pairs = st.tuples(events, st.integers(0, 50))


def of(releases: list[tuple[DpEvent, int]], adjacency: Adjacency) -> Composition:
    start = Composition(adjacency=adjacency)
    return reduce(lambda bill, release: bill.add(*release), releases, start)


def batch(releases: list[tuple[DpEvent, int]], adjacency: Adjacency) -> float:
    """The figure of the whole list at once."""
    costly = [(e, n) for e, n in releases if n and not isinstance(e, NoReleaseEvent)]
    if not costly:
        return 0.0
    if all(isinstance(event, GaussianEvent) for event, _ in costly):
        factor = 2.0 if adjacency is Adjacency.REPLACE_ONE else 1.0
        precisions = [n / e.noise_multiplier**2 for e, n in costly if isinstance(e, GaussianEvent)]
        return gaussian_epsilon(factor * math.sqrt(math.fsum(precisions)), DELTA)
    total = sum(n * event_rdp(event, adjacency=adjacency) for event, n in costly)
    return rdp_to_epsilon(total, ORDERS, DELTA)[0]


@given(st.lists(pairs, max_size=8), st.sampled_from(list(Adjacency)))
@settings(deadline=None)
def test_a_running_bill_is_that_of_the_whole_list_and_never_below_it(
    releases: list[tuple[DpEvent, int]], adjacency: Adjacency
) -> None:
    running = of(releases, adjacency).epsilon(DELTA)
    whole = batch(releases, adjacency)
    assert running >= whole * (1 - 1e-13)
    assert running <= whole * (1 + 1e-11) + 1e-13
    assert of(releases, adjacency).releases == sum(count for _, count in releases)


@given(st.lists(pairs, max_size=5), st.lists(pairs, max_size=5), st.lists(pairs, max_size=5))
@settings(deadline=None)
def test_composition_is_associative_and_commutative_up_to_rounding(
    first: list[tuple[DpEvent, int]],
    second: list[tuple[DpEvent, int]],
    third: list[tuple[DpEvent, int]],
) -> None:
    a, b, c = (of(part, Adjacency.ADD_REMOVE) for part in (first, second, third))
    ways = [a.merge(b).merge(c), a.merge(b.merge(c)), c.merge(a).merge(b)]
    for way in ways[1:]:
        np.testing.assert_allclose(way.rdp, ways[0].rdp, rtol=1e-13)
        assert way.precision == pytest.approx(ways[0].precision, rel=1e-13)
        assert (way.bound, way.unit, way.releases) == (
            ways[0].bound,
            ways[0].unit,
            ways[0].releases,
        )
        assert way.epsilon(DELTA) == pytest.approx(ways[0].epsilon(DELTA), rel=1e-10, abs=1e-12)


def test_equal_releases_cost_the_same_one_by_one_and_at_once() -> None:
    one_by_one = reduce(lambda bill, _: bill.add(sampled(1.0, 0.01)), range(500), Composition())
    at_once = Composition().add(sampled(1.0, 0.01), 500)
    assert one_by_one.epsilon(DELTA) == pytest.approx(at_once.epsilon(DELTA), rel=1e-12)
    assert one_by_one.epsilon(DELTA) >= at_once.epsilon(DELTA) * (1 - 1e-14)


def test_adding_does_not_depend_on_what_was_added_before() -> None:
    bill = Composition().add(skellam(10**8))
    longer = reduce(lambda b, i: b.add(skellam(10**8 + i)), range(1000), bill)
    assert longer.rdp.nbytes == bill.rdp.nbytes == ORDERS.nbytes
    assert longer.releases == 1001
    assert set(type(longer).__slots__) == {
        "adjacency",
        "unit",
        "releases",
        "rdp",
        "precision",
        "bound",
    }


def test_a_bill_is_a_value_that_later_releases_do_not_change() -> None:
    bill = Composition().add(skellam(10**8))
    before = bill.epsilon(DELTA)
    bill.add(skellam(10**5))
    assert bill.epsilon(DELTA) == before
    with pytest.raises(ValueError, match="read-only"):
        bill.rdp[0] = 0.0


def test_the_bound_is_named_after_the_weakest_release() -> None:
    nothing = Composition()
    assert (nothing.bound, nothing.epsilon(DELTA), nothing.unit) == ("no-release", 0.0, None)
    silent = nothing.add(NoReleaseEvent(unit=Unit.AGENT)).add(skellam(1), 0)
    assert (silent.bound, silent.epsilon(DELTA), silent.unit) == ("no-release", 0.0, Unit.AGENT)
    exact = silent.add(gaussian(5.0), 100)
    assert exact.bound == "exact-gdp"
    assert exact.epsilon(DELTA) == pytest.approx(gaussian_epsilon(2.0, DELTA), rel=1e-9)
    renyi = exact.add(sampled(5.0, 0.1))
    assert renyi.bound == "rdp"
    assert renyi.epsilon(DELTA) > exact.epsilon(DELTA)
    unbounded = renyi.add(UnboundedEvent(unit=Unit.AGENT))
    assert (unbounded.bound, unbounded.epsilon(DELTA)) == ("unbounded", math.inf)


@pytest.mark.parametrize("sigma", [1e-300, 1e-9, 1e300])
def test_extreme_noise_overflows_to_infinity_or_vanishes(sigma: float) -> None:
    found = Composition().add(gaussian(sigma), 2**53).epsilon(DELTA)
    assert found == math.inf if sigma < 1e-9 else found >= 0.0
    assert Composition().add(sampled(sigma, 0.5), 2**53).epsilon(DELTA) >= 0.0


def test_unknown_events_other_units_and_other_adjacencies_are_refused() -> None:
    bill = Composition().add(gaussian(1.0))
    stranger: Any = object()
    with pytest.raises(UnsupportedMechanism, match="unknown event"):
        bill.add(stranger)
    with pytest.raises(UnsupportedMechanism, match="agent, person"):
        bill.add(gaussian(1.0, Unit.PERSON))
    with pytest.raises(ConfigurationError, match="adjacency"):
        bill.merge(Composition(adjacency=Adjacency.REPLACE_ONE))
    for bad in (-1, 1.0, True, 2**53 + 1):
        count: Any = bad
        with pytest.raises(ConfigurationError, match="count"):
            bill.add(gaussian(1.0), count)
    with pytest.raises(ConfigurationError, match="delta"):
        bill.epsilon(0.0)
