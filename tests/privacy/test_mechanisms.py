"""The distributed mechanism charges exactly the noise that honest survivors added."""

from typing import Any

import numpy as np
import pytest

from privfedrl.errors import ConfigurationError
from privfedrl.privacy import accountant
from privfedrl.privacy.mechanisms import DistributedSkellam
from privfedrl.privacy.samplers import MAX_VARIANCE, delta_of_sampler, skellam_total_variation
from privfedrl.privacy.units import IntegerSensitivity, Unit

BOUND = IntegerSensitivity(l2_squared=10**4, l1=10**3, unit=Unit.PERSON)


def mechanism(**changes: Any) -> DistributedSkellam:
    values: dict[str, Any] = {
        "sensitivity": BOUND,
        "share_variance": 50,
        "num_coordinates": 8,
        **changes,
    }
    return DistributedSkellam(**values)


@pytest.mark.parametrize("honest", [1, 2, 17, 10**6])
def test_the_event_holds_the_noise_of_the_honest_survivors_only(honest: int) -> None:
    event = mechanism().event(honest)
    assert event.variance == 50 * honest
    assert event.sensitivity is BOUND


def test_fewer_survivors_cost_more() -> None:
    costs = [accountant.epsilon([mechanism().event(n)], 1e-5).epsilon for n in range(1, 20)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[-1]


@pytest.mark.parametrize("bad", [0, -3, 1.0, True, None])
def test_a_sum_without_an_honest_share_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="honest_survivors"):
        mechanism().event(bad)


def test_a_share_covers_every_coordinate_and_is_fresh() -> None:
    source = np.random.default_rng(2).bytes
    first = mechanism(share_variance=10**6).sample_share(source)
    second = mechanism(share_variance=10**6).sample_share(source)
    assert first.shape == (8,)
    assert first.dtype == np.int64
    assert not np.array_equal(first, second)
    assert mechanism().sample_share().shape == (8,)


def test_the_sampler_charge_counts_coordinates_and_shares() -> None:
    assert mechanism().sampler_delta(epsilon=1.0, shares=3) == delta_of_sampler(
        skellam_total_variation(50), coordinates=8, epsilon=1.0, shares=3
    )


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("sensitivity", 3.0),
        ("share_variance", 0),
        ("share_variance", 2.5),
        ("share_variance", True),
        ("share_variance", MAX_VARIANCE + 1),
        ("num_coordinates", 0),
        ("num_coordinates", "8"),
    ],
)
def test_a_mechanism_refuses_parameters_out_of_range(name: str, bad: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        mechanism(**{name: bad})
