"""The privacy loss figure is never below the truth, is close to it, and never runs away."""

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.signal import fftconvolve
from scipy.special import ndtr

from privfedrl.errors import ConfigurationError, UnsupportedMechanism
from privfedrl.privacy.events import (
    DpEvent,
    GaussianEvent,
    NoReleaseEvent,
    PoissonSampledEvent,
    SkellamEvent,
    UnboundedEvent,
)
from privfedrl.privacy.gdp import gaussian_delta, gaussian_epsilon
from privfedrl.privacy.pld import pld_epsilon
from privfedrl.privacy.pld_compose import SampledGaussian, composed_epsilon
from privfedrl.privacy.pld_compose import _solve as solve
from privfedrl.privacy.pld_compose import _Window as Window
from privfedrl.privacy.pld_grid import Direction, discretise, grid_points
from privfedrl.privacy.rdp import ORDERS, event_rdp, rdp_to_epsilon
from privfedrl.privacy.units import Adjacency, IntegerSensitivity, Unit

DELTA = 1e-5


def gaussian(sigma: float) -> GaussianEvent:
    return GaussianEvent(noise_multiplier=sigma, unit=Unit.AGENT)


def sampled(sigma: float, rate: float) -> PoissonSampledEvent:
    return PoissonSampledEvent(event=gaussian(sigma), sampling_rate=rate)


def skellam() -> SkellamEvent:
    bound = IntegerSensitivity(l2_squared=9, l1=9, unit=Unit.AGENT)
    return SkellamEvent(sensitivity=bound, variance=100)


def needed(counts: dict[Any, int], delta: float = DELTA) -> float:
    found = pld_epsilon(counts, delta)
    assert found is not None
    return found


def exact_delta(sigma: float, rate: float, epsilon: float, direction: Direction) -> float:
    """Closed form of one release: the loss is monotone in the output."""
    reached = math.expm1(epsilon if direction is Direction.REMOVE else -epsilon) / rate
    if reached <= -1.0:
        return 0.0
    u = sigma * math.log1p(reached) + 0.5 / sigma
    without, present = float(ndtr(-u)), float(ndtr(1 / sigma - u))
    if direction is Direction.REMOVE:
        return (1 - rate) * without + rate * present - math.exp(epsilon) * without
    low, low_present = float(ndtr(u)), float(ndtr(u - 1 / sigma))
    return low - math.exp(epsilon) * ((1 - rate) * low + rate * low_present)


# --- one release on the grid --------------------------------------------------------------------

RELEASES = [(1.0, 0.01), (0.5, 0.3), (4.0, 0.9), (20.0, 0.001), (0.1, 0.5), (2.0, 1.0)]


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize(("sigma", "rate"), RELEASES)
@pytest.mark.parametrize("step", [1e-3, 0.1, 3.0])
def test_the_grid_raises_delta_everywhere_and_meets_it_on_grid_points(
    sigma: float, rate: float, step: float, direction: Direction
) -> None:
    grid = discretise(sigma, rate, step=step, tail=1e-14, direction=direction)
    losses = step * (grid.start + np.arange(grid.masses.size))
    assert grid.masses.size <= grid_points(sigma, rate, step=step, tail=1e-14, direction=direction)
    for place in range(12):
        for epsilon in (place * step, (place + 0.4) * step):
            if epsilon > 40:
                continue
            found = float(grid.masses @ np.maximum(-np.expm1(epsilon - losses), 0.0))
            found += grid.infinite
            exact = exact_delta(sigma, rate, epsilon, direction)
            assert found >= exact * (1 - 1e-9) - 1e-15
            if epsilon == place * step:
                assert found == pytest.approx(exact, rel=1e-6, abs=1e-11)


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize(("sigma", "rate"), RELEASES)
def test_the_grid_holds_all_mass_of_both_laws(
    sigma: float, rate: float, direction: Direction
) -> None:
    grid = discretise(sigma, rate, step=1e-3, tail=1e-14, direction=direction)
    losses = 1e-3 * (grid.start + np.arange(grid.masses.size))
    assert grid.masses.sum() + grid.infinite == pytest.approx(1.0, abs=1e-10)
    assert grid.masses.sum() + grid.infinite >= 1.0 - 1e-14
    second = float(grid.masses @ np.exp(-losses))
    assert second <= 1.0 + 1e-12
    assert second >= 1.0 - 1e-6 or sigma < 0.5  # there Q's mass lies where P has none


# --- the composition ----------------------------------------------------------------------------


@pytest.mark.parametrize(("sigma", "rate"), RELEASES[:-1])
@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-12])
def test_one_release_costs_its_closed_form(sigma: float, rate: float, delta: float) -> None:
    def excess(epsilon: float) -> float:
        return max(exact_delta(sigma, rate, epsilon, d) for d in Direction) / delta - 1.0

    exact = 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, 200.0, xtol=1e-13))
    found = needed({sampled(sigma, rate): 1}, delta)
    assert found >= exact * (1 - 1e-9)
    assert found <= exact * 1.0005 + 1e-9


@pytest.mark.parametrize(
    ("sigma", "count", "delta"),
    [(5.0, 100, 1e-5), (1.0, 1, 1e-9), (10.0, 2000, 1e-5), (30.0, 100, 1e-30)],
)
def test_the_transform_reproduces_the_exact_figure_of_unsampled_gaussians(
    sigma: float, count: int, delta: float
) -> None:
    exact = gaussian_epsilon(math.sqrt(count) / sigma, delta)
    curve = count * event_rdp(gaussian(sigma))
    estimate, order = rdp_to_epsilon(curve, ORDERS, delta)
    assert order is not None
    for direction in Direction:
        found = composed_epsilon(
            [SampledGaussian(sigma, 1.0, count)],
            direction,
            delta,
            tilt=order - 1,
            target=estimate,
            step=0.05 / sigma,
        )
        assert found is not None
        assert exact <= found <= exact * 1.001


def test_unsampled_gaussians_alone_are_exact() -> None:
    mu = math.hypot(math.sqrt(7) / 3, 1 / 2)
    counts: dict[DpEvent, int] = {
        gaussian(3): 7,
        gaussian(2): 1,
        NoReleaseEvent(unit=Unit.AGENT): 4,
    }
    assert needed(counts) == pytest.approx(gaussian_epsilon(mu, DELTA), rel=1e-9)
    assert gaussian_delta(mu, needed(counts)) <= DELTA
    replaced = pld_epsilon(counts, DELTA, adjacency=Adjacency.REPLACE_ONE)
    assert replaced == pytest.approx(gaussian_epsilon(2 * mu, DELTA), rel=1e-9)


def rounded_down(sigma: float, rate: float, count: int, delta: float, step: float) -> float:
    """A lower bound: every loss is rounded down to a grid, and the masses convolved directly."""
    worst = 0.0
    u = np.linspace(-9 - 1 / sigma, 9 + 1 / sigma, 100_001)
    without, present = np.diff(ndtr(u)), np.diff(ndtr(u - 1 / sigma))
    loss = np.logaddexp(math.log1p(-rate), math.log(rate) + u / sigma - 0.5 / sigma**2)
    for sign in (1, -1):
        mass = (1 - rate) * without + rate * present if sign == 1 else without
        place = np.floor(np.minimum(sign * loss[1:], sign * loss[:-1]) / step).astype(int)
        one = np.bincount(place - place.min(), weights=mass)
        law = one
        for _ in range(count - 1):
            law = fftconvolve(law, one)
        losses = step * (count * place.min() + np.arange(law.size))

        def excess(epsilon: float, law: Any = law, losses: Any = losses) -> float:
            found = np.maximum(law, 0.0) @ np.maximum(-np.expm1(epsilon - losses), 0.0)
            return float(found) - delta

        worst = max(worst, 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, 100.0)))
    return worst


@pytest.mark.parametrize(
    ("sigma", "rate", "count", "delta"),
    [(1.0, 0.1, 2, 1e-5), (0.6, 0.3, 3, 1e-4), (2.0, 0.5, 5, 1e-6), (0.5, 0.01, 2, 1e-5)],
)
def test_a_few_sampled_releases_lie_just_above_a_direct_lower_bound(
    sigma: float, rate: float, count: int, delta: float
) -> None:
    lower = rounded_down(sigma, rate, count, delta, step=1e-4)
    assert lower <= needed({sampled(sigma, rate): count}, delta) <= lower * 1.0005


@pytest.mark.parametrize(
    "counts",
    [
        {sampled(1.0, 0.01): 1000},
        {sampled(0.7, 0.003): 100},
        {sampled(2.0, 0.5): 30, gaussian(10.0): 5},
        {sampled(3.0, 0.1): 100, sampled(0.8, 0.001): 300, sampled(50.0, 0.9): 1000},
    ],
)
def test_a_wider_window_a_finer_grid_and_another_tilt_change_next_to_nothing(
    counts: dict[DpEvent, int],
) -> None:
    found = needed(counts)
    releases = []
    for event, count in counts.items():
        inner = event.event if isinstance(event, PoissonSampledEvent) else event
        assert isinstance(inner, GaussianEvent)
        rate = event.sampling_rate if isinstance(event, PoissonSampledEvent) else 1.0
        releases.append(SampledGaussian(inner.noise_multiplier, rate, count))
    total = sum(n * event_rdp(event) for event, n in counts.items())
    _, order = rdp_to_epsilon(total, ORDERS, DELTA)
    assert order is not None
    uses = sum(counts.values())
    step = math.sqrt(8e-6 * found / (uses * order))
    for factor in (0.7, 1.0):
        fine = composed_epsilon(
            releases,
            Direction.REMOVE,
            DELTA,
            tilt=factor * (order - 1),
            target=found,
            step=step,
        )
        assert fine is not None
        assert fine <= found * (1 + 1e-9)
        assert found <= fine * (1 + 1e-4)


def test_the_figure_is_well_below_that_of_renyi() -> None:
    counts: dict[DpEvent, int] = {sampled(1.0, 0.02): 200}
    found = needed(counts)
    renyi, _ = rdp_to_epsilon(200 * event_rdp(sampled(1.0, 0.02)), ORDERS, DELTA)
    assert 0.8 * renyi < found < renyi


@given(
    st.floats(0.4, 20),
    st.floats(1e-3, 0.9),
    st.integers(1, 300),
    st.floats(1e-9, 1e-2),
    st.floats(1.02, 3),
)
@settings(deadline=None)
def test_more_steps_rate_or_certainty_never_cost_less_and_more_noise_never_more(
    sigma: float, rate: float, count: int, delta: float, factor: float
) -> None:
    base = needed({sampled(sigma, rate): count}, delta)
    slack = 2e-4 * base + 1e-9
    assert base >= 0
    assert needed({sampled(sigma, rate): count + 7}, delta) >= base - slack
    assert needed({sampled(sigma, rate / factor): count}, delta) <= base + slack
    assert needed({sampled(sigma * factor, rate): count}, delta) <= base + slack
    assert needed({sampled(sigma, rate): count}, delta / factor) >= base - slack


@pytest.mark.parametrize("sigma", [0.6, 2.0, 15.0])
def test_the_cost_is_continuous_as_the_rate_goes_to_one(sigma: float) -> None:
    whole = needed({gaussian(sigma): 20})
    for rate in (1 - 1e-3, 1 - 2e-4, 1 - 1e-4, 1 - 1e-5, 1 - 2**-53, 1.0):
        found = needed({sampled(sigma, rate): 20})
        assert whole * (1 - 2 * (1 - rate) - 1e-9) <= found
        assert found <= whole * (1 + 2e-4)


def test_equal_releases_cost_the_same_alone_and_in_parts() -> None:
    together = needed({sampled(1.0, 0.05): 50, sampled(2.0, 0.05): 50})
    nearly = needed(
        {
            sampled(1.0, 0.05): 20,
            sampled(1.0 + 1e-12, 0.05): 30,
            sampled(2.0, 0.05): 49,
            sampled(2.0 + 1e-12, 0.05): 1,
        }
    )
    assert nearly == pytest.approx(together, rel=1e-6)


# --- what it refuses, and what it survives ------------------------------------------------------


def test_what_has_no_privacy_loss_distribution_here_has_no_figure() -> None:
    assert pld_epsilon({skellam(): 1}, DELTA) is None
    assert pld_epsilon({PoissonSampledEvent(event=skellam(), sampling_rate=0.1): 1}, DELTA) is None
    one: dict[DpEvent, int] = {sampled(1.0, 0.1): 1}
    assert pld_epsilon(one, DELTA, adjacency=Adjacency.REPLACE_ONE) is None
    assert pld_epsilon({**one, skellam(): 0}, DELTA) is not None


def test_nothing_costs_nothing_and_no_noise_costs_everything() -> None:
    assert pld_epsilon({}, DELTA) == 0.0
    assert pld_epsilon({NoReleaseEvent(unit=Unit.AGENT): 3}, DELTA) == 0.0
    assert pld_epsilon({sampled(1.0, 0.1): 0}, DELTA) == 0.0
    assert needed({sampled(1.0, 0.1): 1000}, 0.999999) < 1e-9  # rounding is charged upwards
    unbounded: dict[DpEvent, int] = {UnboundedEvent(unit=Unit.AGENT): 1, skellam(): 1}
    assert pld_epsilon(unbounded, DELTA) == math.inf


def test_bad_input_is_refused() -> None:
    stranger: Any = object()
    with pytest.raises(UnsupportedMechanism, match="unknown event"):
        pld_epsilon({stranger: 1}, DELTA)
    person = GaussianEvent(noise_multiplier=1.0, unit=Unit.PERSON)
    with pytest.raises(UnsupportedMechanism, match="agent, person"):
        pld_epsilon({person: 1, gaussian(1.0): 1}, DELTA)
    for bad in (-1, 1.0, True):
        count: Any = bad
        with pytest.raises(ConfigurationError, match="counts"):
            pld_epsilon({gaussian(1.0): count}, DELTA)
    for delta in (0.0, 1.0, math.nan):
        with pytest.raises(ConfigurationError, match="delta"):
            pld_epsilon({sampled(1.0, 0.1): 1}, delta)


def test_a_composition_that_cannot_be_afforded_has_no_figure() -> None:
    assert pld_epsilon({sampled(1e-9, 0.5): 1}, DELTA) is None  # epsilon of 10^17
    assert pld_epsilon({sampled(1e-200, 0.5): 1, gaussian(1e-200): 1}, DELTA) is None
    assert pld_epsilon({sampled(1.0, 0.01): 10**30}, DELTA) is None
    assert pld_epsilon({sampled(1.0, 0.01): 1000}, 1e-300) is None
    many: dict[DpEvent, int] = {sampled(1.0 + i / 10**6, 0.01): 1 for i in range(2049)}
    assert pld_epsilon(many, DELTA) is None
    assert (
        composed_epsilon(
            [SampledGaussian(1.0, 0.5, 1), SampledGaussian(1e-3, 0.5, 1)],
            Direction.ADD,
            DELTA,
            tilt=1.0,
            target=1e-9,
            step=1e-10,
        )
        is None
    )


@pytest.mark.parametrize("tilt", [20.0, 100.0, 500.0])
def test_a_tilt_that_drowns_delta_in_rounding_gives_no_figure(tilt: float) -> None:
    found = composed_epsilon(
        [SampledGaussian(1.0, 0.5, 100)], Direction.REMOVE, DELTA, tilt=tilt, target=5.0, step=0.01
    )
    assert found is None


@pytest.mark.parametrize("tilt", [0.001, 0.1, 0.5, 2.0])
def test_a_poor_tilt_never_gives_less_than_the_right_one(tilt: float) -> None:
    best = needed({sampled(1.0, 0.5): 100})
    found = composed_epsilon(
        [SampledGaussian(1.0, 0.5, 100)], Direction.REMOVE, DELTA, tilt=tilt, target=40.0, step=0.01
    )
    assert found is not None
    assert found >= best * (1 - 1e-4)


def test_where_only_charges_are_left_the_first_point_that_carries_them_is_the_figure() -> None:
    silent = Window(bottom=0, weights=np.zeros(50), charged=1e-6, noise=1.0, log_scale=190.0)
    assert solve(silent, 100.0, 1.0, 0.0) == 2.0  # e^84 delta at 1, e^-15 at 2
    heavy = Window(bottom=0, weights=np.ones(50), charged=2.0, noise=0.0, log_scale=0.0)
    assert solve(heavy, 1.0, 1.0, 0.0) is None
    assert solve(heavy, 1.0, 1.0, 100.0) is None
    assert solve(silent, 100.0, 1.0, 100.0) == 100.0


NASTY: list[tuple[dict[DpEvent, int], float]] = [
    ({sampled(1.0, 0.01): 10**6}, 1e-5),
    ({sampled(0.3, 0.9): 500}, 1e-5),
    ({sampled(1.0, 1.0): 10**5}, 1e-5),
    ({sampled(1.0, 1e-12): 10**4}, 1e-5),
    ({sampled(1e9, 0.5): 10**9}, 1e-5),
    ({sampled(1e3, 0.01): 10**4}, 1e-5),
    ({sampled(0.03, 1e-12): 1}, 1e-5),
    ({sampled(10.0, 0.9): 10**9}, 1e-5),
    ({sampled(1.0, 0.01): 1000}, 0.9),
    ({sampled(1.0, 0.01): 1000}, 1e-100),
    ({sampled(1.0, 0.01): 1}, 1e-280),
    ({sampled(1.0, 0.5): 10, sampled(1e-3, 0.5): 1, sampled(1e6, 1e-6): 10**8}, 1e-5),
]


@pytest.mark.parametrize(("counts", "delta"), NASTY)
def test_what_makes_other_accountants_hang_or_fail_ends_here(
    counts: dict[DpEvent, int], delta: float
) -> None:
    tracemalloc.start()
    found = pld_epsilon(counts, delta)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 600e6  # bytes
    total = sum(n * event_rdp(event) for event, n in counts.items())
    renyi, _ = rdp_to_epsilon(total, ORDERS, delta)
    assert found is None or 0 <= found <= 2 * renyi + 1e-3


def test_high_noise_is_not_overcharged() -> None:
    # the orders of common Renyi accountants end at 63, more than 20 times too early here
    counts: dict[DpEvent, int] = {sampled(1000.0, 0.5): 1}
    orders = np.arange(2.0, 64.0)
    curve = event_rdp(sampled(1000.0, 0.5), orders=orders)
    assert 20 * needed(counts) < rdp_to_epsilon(curve, orders, DELTA)[0]
