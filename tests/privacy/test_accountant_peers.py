"""Independent accountants bracket ours: never below a certified lower bound, never looser.

Opacus' Gaussian (GDP) accountant is left out on purpose: under sampling it reports less than the
lower bound that prv-accountant certifies.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from opacus.accountants import PRVAccountant as OpacusPrv
from opacus.accountants import RDPAccountant as OpacusRdp
from prv_accountant import GaussianMechanism, PoissonSubsampledGaussianMechanism, PRVAccountant

from privfedrl.privacy.composition import Composition
from privfedrl.privacy.events import DpEvent, GaussianEvent, PoissonSampledEvent
from privfedrl.privacy.gdp import gaussian_epsilon
from privfedrl.privacy.pld import pld_epsilon
from privfedrl.privacy.units import Unit

# (noise multiplier, sampling rate): number of releases
Schedule = Mapping[tuple[float, float], int]

TABLE: dict[str, tuple[Schedule, float]] = {
    "sampled x1000": ({(1.0, 0.01): 1000}, 1e-5),
    "sampled x10000": ({(1.0, 0.01): 10_000}, 1e-5),
    "gaussian x100": ({(5.0, 1.0): 100}, 1e-5),
    "gaussian x2000": ({(10.0, 1.0): 2000}, 1e-5),
    "one gaussian, small delta": ({(1.0, 1.0): 1}, 1e-9),
    "heterogeneous gaussian x50": ({(12.0 + 0.2 * i, 1.0): 1 for i in range(50)}, 1e-5),
    "heterogeneous sampled": ({(1.0, 0.01): 500, (2.0, 0.05): 300, (5.0, 0.3): 20}, 1e-6),
    "sampled, then everybody": ({(0.8, 0.002): 400, (8.0, 1.0): 10}, 1e-5),
}


def events(schedule: Schedule) -> dict[DpEvent, int]:
    counts: dict[DpEvent, int] = {}
    for (sigma, rate), count in schedule.items():
        inner = GaussianEvent(noise_multiplier=sigma, unit=Unit.AGENT)
        sampled = PoissonSampledEvent(event=inner, sampling_rate=rate)
        counts[sampled if rate < 1.0 else inner] = count
    return counts


def dp_accounting_event(schedule: Schedule) -> dp_accounting.DpEvent:
    builder = dp_accounting.DpEventBuilder()
    for (sigma, rate), count in schedule.items():
        inner = dp_accounting.GaussianDpEvent(sigma)
        sampled = dp_accounting.PoissonSampledDpEvent(rate, inner)
        builder.compose(sampled if rate < 1.0 else inner, count)
    return builder.build()


def upper_bounds(schedule: Schedule, delta: float) -> dict[str, float]:
    event = dp_accounting_event(schedule)
    found = {
        "dp-accounting PLD": PLDAccountant(value_discretization_interval=1e-3)
        .compose(event)
        .get_epsilon(delta),
        "dp-accounting RDP": RdpAccountant().compose(event).get_epsilon(delta),
    }
    for name, accountant in (("Opacus PRV", OpacusPrv()), ("Opacus RDP", OpacusRdp())):
        accountant.history = [(sigma, rate, n) for (sigma, rate), n in schedule.items()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that its best order is the last one
            found[name] = accountant.get_epsilon(delta)
    return found


def certified(schedule: Schedule, delta: float) -> tuple[float, float]:
    """Lower and upper bound of prv-accountant."""
    variables = [
        GaussianMechanism(sigma)
        if rate == 1.0
        else PoissonSubsampledGaussianMechanism(noise_multiplier=sigma, sampling_probability=rate)
        for sigma, rate in schedule
    ]
    counts = list(schedule.values())
    accountant = PRVAccountant(
        prvs=variables, max_self_compositions=counts, eps_error=0.02, delta_error=delta / 1000
    )
    lower, _, upper = accountant.compute_epsilon(delta, counts)
    return float(lower), float(upper)


@pytest.mark.parametrize("case", TABLE)
def test_ours_lies_between_the_certified_lower_bound_and_the_tightest_peer(case: str) -> None:
    schedule, delta = TABLE[case]
    ours = pld_epsilon(events(schedule), delta)
    assert ours is not None
    lower, upper = certified(schedule, delta)
    assert lower <= ours
    for name, theirs in {**upper_bounds(schedule, delta), "prv-accountant": upper}.items():
        assert ours <= theirs * 1.001, name
    if all(rate == 1.0 for _, rate in schedule):
        mu = math.sqrt(math.fsum(n / sigma**2 for (sigma, _), n in schedule.items()))
        assert ours == pytest.approx(gaussian_epsilon(mu, delta), rel=1e-9)


@pytest.mark.parametrize("case", TABLE)
def test_our_renyi_figure_is_above_the_certified_lower_bound_and_no_looser_than_its_peers(
    case: str,
) -> None:
    schedule, delta = TABLE[case]
    bill = Composition()
    for event, count in events(schedule).items():
        bill = bill.add(event, count)
    ours = bill.epsilon(delta)
    assert certified(schedule, delta)[0] <= ours
    theirs = RdpAccountant().compose(dp_accounting_event(schedule)).get_epsilon(delta)
    assert ours <= theirs * 1.001


def test_at_high_noise_ours_needs_no_order_that_the_peers_lack() -> None:
    schedule = {(1000.0, 0.5): 10}
    ours = pld_epsilon(events(schedule), 1e-5)
    assert ours is not None
    found = upper_bounds(schedule, 1e-5)
    assert 20 * ours < found["Opacus RDP"]
    assert ours <= found["dp-accounting PLD"] * 1.001
