"""One derivation for everybody: clip, sensitivity, noise and threshold cannot disagree."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from privfedrl.errors import ConfigurationError
from privfedrl.federation.setup import round_setup
from privfedrl.plan import MeanReturnRelease, Plan
from privfedrl.privacy import Adjacency, UnboundedEvent, Unit, compose


@pytest.mark.parametrize("weight", [None, 0.1, 2.0])
def test_codec_and_mechanism_rest_on_the_same_bound(
    make_plan: Callable[..., Plan], weight: float | None
) -> None:
    release = None if weight is None else MeanReturnRelease(low=0, high=60, weight=weight)
    setup = round_setup(make_plan(privacy={"mean_return": release}))
    assert setup.mechanism is not None
    assert setup.mechanism.sensitivity == setup.sensitivity
    assert setup.codec.sensitivity(Unit.TRAJECTORY) == setup.sensitivity
    assert setup.mechanism.num_coordinates == setup.codec.padded
    assert setup.total_clip == pytest.approx(math.sqrt(1 + (weight or 0) ** 2))
    assert setup.dimension == setup.policy.num_parameters + (weight is not None)


@pytest.mark.parametrize("agents", [5, 6, 7, 9])
@pytest.mark.parametrize("unit", ["trajectory", "agent"])
def test_the_shares_of_the_honest_floor_keep_the_promise_for_the_whole_run(
    make_plan: Callable[..., Plan],
    agent_unit: dict[str, dict[str, Any]],
    unit: str,
    agents: int,
) -> None:
    layers = [agent_unit] if unit == "agent" else []
    plan = make_plan(*layers, fleet={"agents": agents}, protection={"min_honest": 2})
    setup = round_setup(plan)
    events = [(str(index), setup.worst_event) for index in range(plan.federation.rounds)]
    spent = compose(plan.unit, events, setup.accounted_delta)
    assert 0.98 * plan.privacy.epsilon < spent.epsilon <= plan.privacy.epsilon
    assert 0 <= plan.privacy.delta - setup.accounted_delta < 1e-9
    fewer = [(str(i), setup.event(plan.honest_floor - 1)) for i in range(3)]
    assert compose(plan.unit, fewer, setup.accounted_delta).epsilon > plan.privacy.epsilon


@pytest.mark.parametrize("epsilon", [50.0, 52.0, 54.0, 55.0, 64.0, 80.0])
def test_where_the_samplers_own_delta_matters_a_plan_is_kept_or_refused(
    make_plan: Callable[..., Plan], epsilon: float
) -> None:
    plan = make_plan(privacy={"epsilon": epsilon})
    if epsilon > 60.0:
        with pytest.raises(ConfigurationError, match="epsilon"):
            plan.check()
        return
    plan.check()
    setup = round_setup(plan)
    assert setup.accounted_delta < plan.privacy.delta
    events = [("g", setup.worst_event)]
    assert compose(plan.unit, events, setup.accounted_delta).epsilon <= epsilon


def test_replacing_a_unit_costs_more_than_adding_one(make_plan: Callable[..., Plan]) -> None:
    setup = round_setup(make_plan())
    events = [("g", setup.worst_event)]
    add = compose(Unit.TRAJECTORY, events, 1e-5)
    replace = compose(Unit.TRAJECTORY, events, 1e-5, adjacency=Adjacency.REPLACE_ONE)
    assert replace.epsilon > add.epsilon


def test_the_agent_unit_grows_with_rounds_and_needs_more_noise(
    make_plan: Callable[..., Plan], agent_unit: dict[str, dict[str, Any]]
) -> None:
    variances = []
    for rounds in (1, 4, 16):
        plan = make_plan(agent_unit, federation={"strategy": "fedavg", "rounds": rounds})
        mechanism = round_setup(plan).mechanism
        assert mechanism is not None
        variances.append(mechanism.share_variance)
    assert variances == sorted(set(variances))
    assert 10 < variances[2] / variances[0] < 22


def test_the_trajectory_unit_needs_no_more_noise_for_more_rounds(
    make_plan: Callable[..., Plan],
) -> None:
    found = {round_setup(make_plan(federation={"rounds": r})).noise_multiplier for r in (1, 50)}
    assert len(found) == 1


def test_a_plan_without_noise_is_charged_as_unbounded(make_plan: Callable[..., Plan]) -> None:
    setup = round_setup(make_plan(privacy={"mechanism": "none"}))
    assert setup.worst_event == UnboundedEvent(unit=Unit.TRAJECTORY)
    assert setup.budget == math.inf
    assert setup.adversary == "nobody"
    assert (setup.share_std, setup.noise_multiplier) == (0.0, 0.0)
    assert round_setup(make_plan(protection={"kind": "none"})).adversary == "public"


def test_a_ring_that_is_too_narrow_is_a_configuration_error(make_plan: Callable[..., Plan]) -> None:
    wide = {"fleet": {"trajectories": 65_536}, "encoding": {"resolution": 2**15}}
    with pytest.raises(ConfigurationError, match="too narrow"):
        round_setup(make_plan(wide))
    wide["encoding"]["ring_bits"] = 64
    assert round_setup(make_plan(wide)).codec.ring_bits == 64


def test_the_noise_of_all_agents_has_the_stated_size(make_plan: Callable[..., Plan]) -> None:
    """Empirical standard deviation of a share against share_std; 64 x 300 draws, fixed seed.

    The relative error of the estimate is about 1 / sqrt(2 x 19200) = 0.5 %; 4 % is 8 sigma, so the
    false-positive rate is below 1e-6.
    """
    from privfedrl.primitives.random import DeterministicEntropy

    setup = round_setup(make_plan())
    assert setup.mechanism is not None
    entropy = DeterministicEntropy(b"noise")
    shares = np.stack([setup.mechanism.sample_share(entropy) for _ in range(300)])
    real = shares * setup.total_clip / setup.codec.resolution
    assert real.std() == pytest.approx(setup.share_std, rel=0.04)


# --- homomorphic plans --------------------------------------------------------------------------


@pytest.mark.parametrize("readding", ["key-authority", "auditor", "none"])
@pytest.mark.parametrize("kind", ["bfv", "ckks"])
def test_encryption_changes_nothing_but_how_the_sum_is_formed(
    make_plan: Callable[..., Plan], kind: str, readding: str
) -> None:
    masked = round_setup(make_plan())
    found = round_setup(make_plan(protection={"kind": kind, "readding": readding}))
    for name in ("policy", "dimension", "total_clip", "sensitivity", "mechanism", "share_std"):
        assert getattr(found, name) == getattr(masked, name), name
    assert (found.budget, found.accounted_delta) == (masked.budget, masked.accounted_delta)
    assert found.worst_event == masked.worst_event
    assert found.codec == masked.codec


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kind": "pairwise"}, "coordinator+1"),
        ({"kind": "bfv"}, "coordinator+1"),
        ({"kind": "bfv", "readding": "auditor"}, "coordinator+1"),
        ({"kind": "bfv", "readding": "none"}, "coordinator+1, adding honestly"),
        ({"kind": "ckks"}, "coordinator+1, encrypting honestly"),
        ({"kind": "ckks", "readding": "none"}, "coordinator+1, adding and encrypting honestly"),
        ({"kind": "none"}, "public"),
    ],
)
def test_the_adversary_that_ledgers_name_is_as_strong_as_the_protection(
    make_plan: Callable[..., Plan], changes: dict[str, Any], expected: str
) -> None:
    assert round_setup(make_plan(protection=changes)).adversary == expected


def test_the_set_of_a_round_is_that_of_the_plan_and_nothing_in_it_is_free(
    make_plan: Callable[..., Plan],
) -> None:
    """Two plans that differ in any number of the protection have different round parameters."""
    from privfedrl.federation.backends import Homomorphic

    changes: list[dict[str, Any]] = [
        {},
        {"kind": "ckks"},
        {"readding": "auditor"},
        {"readding": "none"},
        {"parameter_set": "bfv-4096-wide"},
        {"threshold": 5},
        {"min_clients": 5},
        {"min_honest": 2},
    ]
    digests = set()
    for change in changes:
        backend = round_setup(make_plan(protection={"kind": "bfv"} | change)).backend
        assert isinstance(backend, Homomorphic)
        digests.add(backend.parameters.digest)
    assert len(digests) == len(changes)
