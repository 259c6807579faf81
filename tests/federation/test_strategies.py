"""Server steps against closed forms; the decoded mean against numbers put in by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from privfedrl.envs import nominal
from privfedrl.errors import ConfigurationError
from privfedrl.federation.contribution import contribute, local_trainer, published_model
from privfedrl.federation.coordinator import initial_federation_state
from privfedrl.federation.fleet_experience import FleetExperience
from privfedrl.federation.releases import _averaged
from privfedrl.federation.setup import round_setup
from privfedrl.federation.strategies import (
    initial_state,
    learning_rate,
    released_mean,
    server_step,
)
from privfedrl.federation.strategies.server_optimizer import SIGNAL_FLOOR
from privfedrl.plan import FederationPlan, MeanReturnRelease, Plan
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.secagg import ideal_sum

G = np.array([3.0, -0.5, 0.0])
SEED = bytes(range(32))


def step(plan: FederationPlan, g: np.ndarray = G, *, variance: float = 0.0, times: int = 1) -> Any:
    parameters, state = np.zeros(3), initial_state(3)
    for _ in range(times):
        parameters, state = server_step(plan, parameters, state, g, noise_variance=variance)
    return parameters, state


def test_sgd_moves_by_the_learning_rate_times_the_mean() -> None:
    parameters, state = step(FederationPlan(rounds=9, server_optimizer="sgd", learning_rate=0.1))
    assert parameters == pytest.approx(0.1 * G)
    assert state.step == 1


def test_the_first_adam_step_is_the_sign_of_the_gradient_times_the_learning_rate() -> None:
    plan = FederationPlan(rounds=9, learning_rate=0.1, tau=1e-9, bias_correction=False)
    parameters, state = step(plan)
    assert parameters == pytest.approx(0.1 * np.sign(G), abs=1e-8)
    assert state.first == pytest.approx((1 - plan.beta1) * G)
    assert state.second == pytest.approx((1 - plan.beta2) * G**2)


def test_two_adam_steps_match_the_paper_by_hand() -> None:
    plan = FederationPlan(rounds=9, learning_rate=0.1, tau=0.01, bias_correction=False)
    theta, m, v = np.zeros(3), np.zeros(3), np.zeros(3)
    state = initial_state(3)
    found = theta
    for t, g in enumerate([G, np.array([-1.0, 2.0, 0.25])], start=1):
        found, state = server_step(plan, found, state, g, noise_variance=0.0)
        m = plan.beta1 * m + (1 - plan.beta1) * g
        v = plan.beta2 * v + (1 - plan.beta2) * g**2
        update = (m / (1 - plan.beta1**t)) / (np.sqrt(v / (1 - plan.beta2**t)) + plan.tau)
        theta = theta + 0.1 * update
    assert found == pytest.approx(theta)


def test_bias_correction_subtracts_the_known_noise_variance_and_keeps_a_floor() -> None:
    plan = FederationPlan(rounds=9, learning_rate=1.0, tau=1e-6)
    variance = 4.0
    parameters, _ = step(plan, variance=variance)
    signal = np.maximum(G**2 - variance, SIGNAL_FLOOR * variance)
    assert parameters == pytest.approx(G / (np.sqrt(signal) + plan.tau))
    # a coordinate that is all noise moves less than it would without the floor
    assert abs(parameters[1]) < abs(G[1]) / (np.sqrt(plan.tau) + plan.tau)


def test_without_noise_the_correction_changes_nothing_but_tiny_gradients() -> None:
    corrected, _ = step(FederationPlan(rounds=9))
    plain, _ = step(FederationPlan(rounds=9, bias_correction=False))
    assert corrected == pytest.approx(plain)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_the_schedule_falls_linearly_and_never_below_its_end(decay: float) -> None:
    plan = FederationPlan(rounds=10, learning_rate=0.4, learning_rate_decay=decay)
    rates = [learning_rate(plan, index) for index in range(11)]
    assert rates[0] == 0.4
    assert rates[10] == pytest.approx(0.4 * (1 - decay))
    assert np.diff(rates) == pytest.approx(-0.04 * decay)
    assert learning_rate(plan, 99) == rates[10]


def test_the_arguments_of_a_step_are_left_alone() -> None:
    parameters, state = np.ones(3), initial_state(3)
    server_step(FederationPlan(rounds=2), parameters, state, G, noise_variance=1.0)
    assert np.array_equal(parameters, np.ones(3))
    assert not state.first.any()
    assert state.step == 0


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_directions_that_do_not_fit_or_are_not_finite_are_refused(optimizer: str) -> None:
    plan = FederationPlan(rounds=2, server_optimizer=optimizer)  # type: ignore[arg-type]  # parametrised
    for bad in (np.zeros(2), np.array([0.0, np.nan, 0.0]), np.array([np.inf, 0.0, 0.0])):
        with pytest.raises(ConfigurationError):
            step(plan, bad)


def encoded(setup: Any, rows: np.ndarray) -> np.ndarray:
    integers = setup.codec.encode_units(
        rows, rotation_seed=SEED, entropy=DeterministicEntropy(b"rounding")
    )
    return setup.codec.to_ring(integers)


def quiet(make_plan: Callable[..., Plan], **privacy: Any) -> Any:
    """No noise and a fine grid, so that decoding can be compared with what was put in."""
    return round_setup(
        make_plan(
            privacy={"mechanism": "none", **privacy},
            encoding={"resolution": 2**20, "ring_bits": 64},
        )
    )


def test_the_released_mean_is_the_mean_over_all_units_of_the_survivors(
    make_plan: Callable[..., Plan],
) -> None:
    setup = quiet(make_plan)
    rng = np.random.default_rng(0)
    rows = [rng.uniform(-0.1, 0.1, (4, setup.dimension)) for _ in range(5)]
    total = sum(encoded(setup, each) for each in rows)
    found = released_mean(setup, total, survivors=5, seed=SEED)
    assert found.direction == pytest.approx(np.concatenate(rows).mean(axis=0), abs=1e-5)
    assert found.mean_return is None
    assert found.mean_return_std is None


def test_the_mean_return_comes_back_in_its_own_range(make_plan: Callable[..., Plan]) -> None:
    release = MeanReturnRelease(low=-20.0, high=60.0, weight=0.5)
    setup = quiet(make_plan, mean_return=release)
    returns = np.array([-20.0, 60.0, 20.0, 0.0])
    rows = np.zeros((4, setup.dimension))
    rows[:, 0] = 0.25
    rows[:, -1] = 0.5 * (returns - 20.0) / 40.0
    found = released_mean(setup, encoded(setup, rows), survivors=1, seed=SEED)
    assert found.mean_return == pytest.approx(returns.mean(), abs=1e-3)
    assert found.direction.shape == (setup.policy.num_parameters,)
    assert found.direction[0] == pytest.approx(0.25, abs=1e-5)


def test_the_stated_noise_of_the_mean_is_that_of_the_survivors_shares(
    make_plan: Callable[..., Plan],
) -> None:
    release = MeanReturnRelease(low=0.0, high=60.0, weight=0.1)
    setup = round_setup(make_plan(privacy={"mean_return": release}))
    zero = np.zeros(setup.codec.padded, dtype=np.uint32)
    found = released_mean(setup, zero, survivors=4, seed=SEED)
    assert found.noise_variance == pytest.approx(setup.share_std**2 * 4 / 16**2)
    assert found.mean_return == pytest.approx(30.0)
    assert found.mean_return_std == pytest.approx(found.noise_variance**0.5 * 30 / 0.1)


@pytest.mark.parametrize("survivors", [0, -1])
def test_a_sum_of_nobody_is_refused(make_plan: Callable[..., Plan], survivors: int) -> None:
    setup = round_setup(make_plan())
    zero = np.zeros(setup.codec.padded, dtype=np.uint32)
    with pytest.raises(ConfigurationError, match="survivors"):
        released_mean(setup, zero, survivors=survivors, seed=SEED)


def test_fedavg_with_one_local_step_is_fedsgd_when_agents_are_alike(
    make_plan: Callable[..., Plan],
) -> None:
    """K identical agents, no clipping in effect: server rate 1 on deltas = local rate on gradients.

    FedAvg: delta = eta * mean gradient, server moves by 1 * delta.
    FedSGD: server moves by eta * mean gradient.
    """
    eta, loose = 0.25, {"mechanism": "none", "clip_norm": 100.0}
    fine = {"resolution": 2**20, "ring_bits": 64}
    sgd = {"server_optimizer": "sgd"}
    plans = {
        "fedsgd": make_plan(privacy=loose, encoding=fine, federation={**sgd, "learning_rate": eta}),
        "fedavg": make_plan(
            privacy={**loose, "unit": "agent"},
            encoding=fine,
            federation={**sgd, "learning_rate": 1.0, "strategy": "fedavg"},
            training={"local_learning_rate": eta},
        ),
    }
    found = {}
    for name, plan in plans.items():
        setup = round_setup(plan)
        theta = np.asarray(
            setup.policy.initial_parameters(np.random.default_rng(5)), dtype=np.float64
        )
        vectors = {}
        for agent in range(3):
            # the same generator for every agent: identical experience
            source = FleetExperience(setup, [nominal("CartPole-v1")], seed=9, workers=None)
            vectors[str(agent)] = contribute(
                setup,
                local_trainer(setup),
                published_model(setup, theta),
                experience=lambda x, k, source=source: source.of(0, x, 0, 0, k),
                rotation_seed=SEED,
                entropy=DeterministicEntropy(b"rounding"),
            ).vector
        total = ideal_sum(vectors, vectors, ring_bits=64)
        mean = released_mean(setup, total, survivors=3, seed=SEED)
        found[name], _ = server_step(
            plan.federation,
            theta,
            initial_state(theta.shape[0]),
            mean.direction,
            noise_variance=mean.noise_variance,
        )
        assert np.abs(found[name] - theta).max() > 1e-3
    assert found["fedavg"] == pytest.approx(found["fedsgd"], abs=2e-4)


@pytest.mark.parametrize(
    ("share", "rounds", "last"),
    [(0.0, 10, 0), (0.5, 10, 5), (0.7, 10, 7), (0.7, 100, 70), (0.25, 10, 2), (0.29, 100, 29)],
)
def test_a_run_ends_with_the_mean_of_that_share_of_its_policies(
    make_plan: Any, share: float, rounds: int, last: int
) -> None:
    setup = round_setup(make_plan(federation={"rounds": rounds, "averaging": share}))
    rng = np.random.default_rng(0)
    state = initial_federation_state(bytes(32), np.zeros(setup.policy.num_parameters))
    policies = []
    for index in range(rounds):
        policies.append(rng.normal(size=setup.policy.num_parameters))
        average = _averaged(setup, state, policies[-1])
        state = replace(state, round=index + 1, parameters=policies[-1], average=average)
    expected = np.mean(policies[-last:], axis=0) if last else policies[-1]
    np.testing.assert_allclose(state.final, expected, rtol=1e-12, atol=1e-15)
