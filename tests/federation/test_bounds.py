"""The sampler's own deviation is paid at every delta of a curve, not only at the plan's."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable

import pytest

from privfedrl.errors import ConfigurationError
from privfedrl.federation.bounds import bounded_curve, bounded_epsilon, plan_cost
from privfedrl.federation.setup import RoundSetup, round_setup
from privfedrl.plan import Plan
from privfedrl.privacy import Adjacency, UnboundedEvent, compose
from privfedrl.privacy.accountant import epsilon_of_counts
from privfedrl.privacy.attack_bounds import bayes_accuracy, max_true_positive_rate


def own_share(setup: RoundSetup, epsilon: float) -> float:
    """What the sampler takes of delta in a whole run, written down here once more."""
    plan = setup.plan
    assert setup.mechanism is not None
    shares = plan.fleet.agents * plan.releases_per_unit
    return setup.mechanism.sampler_delta(epsilon=epsilon, shares=shares)


@pytest.mark.parametrize("adjacency", Adjacency)
@pytest.mark.parametrize("shares", [1, 3, 6])
def test_every_figure_is_proven_at_delta_less_the_samplers_share_at_that_figure(
    make_plan: Callable[..., Plan], shares: int, adjacency: Adjacency
) -> None:
    setup = round_setup(make_plan(privacy={"epsilon": 1.0}))
    events = [("round", setup.event(shares))]
    for delta in (1e-12, 1e-9, 1e-5, 1e-2, 0.5):
        found = bounded_epsilon(setup, events, adjacency=adjacency, delta=delta)
        paid = delta - own_share(setup, found)
        assert 0 < paid <= delta
        proven = compose(setup.plan.unit, events, paid, adjacency=adjacency).epsilon
        assert proven <= found <= proven * (1 + 1e-9)


def test_the_plans_delta_is_the_default_and_gives_the_figure_of_the_ledger(
    make_plan: Callable[..., Plan],
) -> None:
    setup = round_setup(make_plan())
    events = [("round", setup.worst_event)]
    found = bounded_epsilon(setup, events)
    assert found == bounded_epsilon(setup, events, delta=setup.plan.privacy.delta)
    assert found == compose(setup.plan.unit, events, setup.accounted_delta).epsilon


def test_a_delta_that_the_sampler_takes_whole_gives_no_figure(
    make_plan: Callable[..., Plan],
) -> None:
    """One share under a plan of large epsilon: e^epsilon times the deviation exceeds delta."""
    setup = round_setup(make_plan(privacy={"epsilon": 40.0}))
    events = [("round", setup.event(1))]
    assert math.isinf(bounded_epsilon(setup, events, delta=1e-300))
    figures = {
        delta: bounded_epsilon(setup, events, delta=delta) for delta in (1e-300, 1e-30, 1e-5, 0.1)
    }
    for delta, figure in figures.items():
        assert math.isinf(figure) or own_share(setup, figure) < delta


def test_a_delta_eaten_at_the_plans_epsilon_may_still_prove_a_smaller_one(
    make_plan: Callable[..., Plan],
) -> None:
    setup = round_setup(make_plan(privacy={"epsilon": 30.0}))
    events = [("round", setup.event(10**6))]  # a great deal of noise: epsilon is close to nothing
    delta = own_share(setup, 30.0) / 2
    found = bounded_epsilon(setup, events, delta=delta)
    assert found < 1.0
    assert own_share(setup, found) < delta


@pytest.mark.parametrize("delta", [0.0, -1.0, 1.0, math.nan, 2.0])
def test_a_delta_that_is_none_is_refused(make_plan: Callable[..., Plan], delta: float) -> None:
    setup = round_setup(make_plan())
    with pytest.raises(ConfigurationError, match="delta"):
        bounded_epsilon(setup, [("round", setup.worst_event)], delta=delta)


def test_a_curve_falls_holds_the_plans_pair_and_sharpens_what_attackers_may_reach(
    make_plan: Callable[..., Plan],
) -> None:
    plan = make_plan(privacy={"delta": 3e-6})
    setup = round_setup(plan)
    events = [("round", setup.worst_event)]
    curve = bounded_curve(setup, events)
    pair = plan.privacy.delta, bounded_epsilon(setup, events)
    assert pair in curve
    assert all(
        left[0] < right[0] and left[1] >= right[1] for left, right in itertools.pairwise(curve)
    )
    assert bayes_accuracy(curve) < bayes_accuracy([pair])
    assert max_true_positive_rate(curve, 0.1) < max_true_positive_rate([pair], 0.1)


def test_a_release_without_noise_has_an_empty_curve(make_plan: Callable[..., Plan]) -> None:
    setup = round_setup(make_plan())
    events = [("round", UnboundedEvent(unit=setup.plan.unit))]
    assert bounded_curve(setup, events) == ()
    quiet = round_setup(make_plan(privacy={"mechanism": "none"}))
    assert bounded_curve(quiet, events) == ()


@pytest.mark.parametrize("uses", [1, 2, 4])
def test_a_trajectory_that_is_used_again_is_promised_the_whole_bill(make_plan, uses: int) -> None:
    """Noise is sized for K releases, so a bill of fewer would come out far below the budget."""
    training = {"algorithm": "ppo", "advantages": "returns", "epochs": uses}
    plan = make_plan(training=training, federation={"rounds": 8})
    views = {view.adversary: view.epsilon for view in plan.check().views}
    found = views[round_setup(plan).adversary]
    assert found is not None
    assert 0.99 * plan.privacy.epsilon < found <= plan.privacy.epsilon
    event = round_setup(plan).worst_event
    delta = round_setup(plan).accounted_delta
    many = plan_cost(plan, [(index, event) for index in range(8)], delta).epsilon
    exact = epsilon_of_counts(Counter({event: uses}), delta).epsilon
    assert many == pytest.approx(exact, rel=1e-9)
