"""A coordinate of the sum exceeds the stated headroom with at most the stated probability."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.encoding.headroom import headroom
from privfedrl.encoding.lanes import narrowest_lane
from privfedrl.encoding.rotation import Rotation
from privfedrl.encoding.rounding import round_units, rounding_bound
from privfedrl.privacy.samplers import tail_radius


def reach(
    rule: str, *, units: int = 100, resolution: int = 2**15, log_p: int, variance: int
) -> int:
    padded = 2**log_p
    bound = rounding_bound(clip_norm=1.0, resolution=resolution, dimension=padded)
    return headroom(
        rule,  # type: ignore[arg-type]  # parametrised text
        max_units=units,
        resolution=resolution,
        padded=padded,
        l2_squared=bound[0],
        noise_variance=variance,
    )


@given(
    st.integers(1, 10**6), st.integers(1, 2**30), st.integers(0, 30), st.sampled_from([0, 1, 10**9])
)
@settings(max_examples=100, deadline=None)
def test_the_rotated_headroom_is_hoeffdings_and_never_above_the_counted_one(
    units: int, resolution: int, log_p: int, variance: int
) -> None:
    counted = reach(
        "worst-case", units=units, resolution=resolution, log_p=log_p, variance=variance
    )
    rotated = reach("rotated", units=units, resolution=resolution, log_p=log_p, variance=variance)
    assert rotated <= counted
    noise = tail_radius(variance, 42 + log_p) if variance else 0
    tau = rotated - noise - units  # what is left for the signal once rounding is paid for
    if rotated < counted:
        exponent = tau**2 * 2**log_p / (2 * (units * resolution) ** 2)
        assert math.log2(2.0) + log_p - exponent / math.log(2) <= -41


@pytest.mark.parametrize(("noise_multiplier", "bits"), [(0, 16), (1, 20), (3, 21)])
def test_sixteen_bit_values_of_a_hundred_units_fit_three_lanes_when_rotated(
    noise_multiplier: int, bits: int
) -> None:
    variance = (noise_multiplier * 2**15) ** 2
    rotated = narrowest_lane(reach("rotated", log_p=20, variance=variance))
    counted = narrowest_lane(reach("worst-case", log_p=20, variance=variance))
    assert rotated == bits <= 21  # 3 lanes, 2.67 bytes each
    assert counted == 23  # 2 lanes, 4 bytes each


@pytest.mark.statistical
def test_a_spike_that_all_units_share_stays_within_the_rotated_headroom() -> None:
    """Adversarial inputs that do not know the seed: equal units, sparse to dense, 64 fresh seeds.

    By the bound itself a single excess has probability at most 2^-41 per seed and input, so the
    false-positive rate is below 5 x 64 x 2^-41 < 1e-6. The seeds are fixed.
    """
    units, resolution, dimension = 50, 2**12, 2**10
    limit = reach("rotated", units=units, resolution=resolution, log_p=10, variance=0)
    counted = reach("worst-case", units=units, resolution=resolution, log_p=10, variance=0)
    assert limit < counted / 3
    largest = 0
    for trial in range(64):
        rotation = Rotation(dimension, trial.to_bytes(32, "big"))
        for support in (1, 2, 16, 100, dimension):
            row = np.zeros(dimension)
            row[:support] = 1 / math.sqrt(support)
            drawn = np.random.default_rng([trial, support])
            rounded = round_units(
                np.repeat(rotation.forward(row)[None], units, axis=0),
                resolution=resolution,
                clip_norm=1.0,
                entropy=drawn.bytes,
            )
            largest = max(largest, int(np.abs(rounded.sum(axis=0)).max()))
    assert largest <= limit
    assert largest > limit / 3  # the bound is not idle


def test_whoever_knows_the_seed_can_exceed_the_rotated_headroom() -> None:
    dimension, units = 2**10, 50
    aimed = Rotation(dimension, bytes(32)).inverse(np.eye(1, dimension)[0])
    rotated = Rotation(dimension, bytes(32)).forward(aimed)
    rounded = round_units(
        np.repeat(rotated[None], units, axis=0) * (1 - 1e-12), resolution=2**12, clip_norm=1.0
    )
    largest = int(np.abs(rounded.sum(axis=0)).max())
    assert largest > reach("rotated", units=units, resolution=2**12, log_p=10, variance=0)
    assert largest <= reach("worst-case", units=units, resolution=2**12, log_p=10, variance=0)


@pytest.mark.parametrize("rule", ["worst-case", "rotated"])
def test_absurdly_many_units_overflow_nothing(rule: str) -> None:
    assert reach(rule, units=10**400, log_p=20, variance=0) > 10**400
