"""True of every contribution and every round: bounded sensitivity, exact sums, budget kept."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.envs import nominal
from privfedrl.federation.fleet_experience import FleetExperience
from privfedrl.federation.setup import RoundSetup, round_setup
from privfedrl.federation.simulated_round import DROPOUT_STAGES, dropout_schedule
from privfedrl.federation.strategies import initial_state, released_mean, server_step
from privfedrl.plan import (
    FederationPlan,
    FleetPlan,
    MeanReturnRelease,
    Plan,
    PolicyPlan,
    PrivacyPlan,
    ProtectionPlan,
    TrainingPlan,
)
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.privacy import compose
from privfedrl.training import LocalTrainer, LocalUpdate, TrainerSettings, clip_rows


@cache
def setup_of(hidden: int = 8, weight: float | None = None, resolution_bits: int = 10) -> RoundSetup:
    release = None if weight is None else MeanReturnRelease(low=0.0, high=60.0, weight=weight)
    plan = Plan(
        name="property",
        fleet=FleetPlan(environment="CartPole-v1", agents=6, trajectories=4, horizon=60),
        policy=PolicyPlan(observations=4, actions=2, hidden=(hidden,)),
        federation=FederationPlan(rounds=2),
        privacy=PrivacyPlan(unit="trajectory", max_colluding=1, epsilon=5.0, mean_return=release),
    )
    return round_setup(plan.replace("encoding", resolution=2**resolution_bits))


@cache
def real_rows(seed: int) -> np.ndarray:
    """Clipped gradients of four real CartPole trajectories: float64 [4, d]."""
    setup = setup_of()
    theta = np.asarray(
        setup.policy.initial_parameters(np.random.default_rng(seed)), dtype=np.float64
    )
    source = FleetExperience(setup, [nominal("CartPole-v1")], seed=seed, workers=None)
    source.prepare(theta, 0, 0, [0])
    trainer = LocalTrainer(setup.policy, TrainerSettings(clip_norm=1.0))
    rows: np.ndarray = trainer.local_update(theta, source.of(0, theta, 0, 0, 0)).rows
    return rows


def encode(setup: RoundSetup, rows: np.ndarray, seed: bytes, noise: bytes) -> np.ndarray:
    found: np.ndarray = setup.codec.encode_units(
        rows, rotation_seed=seed, entropy=DeterministicEntropy(noise)
    )
    return found


SEEDS = st.binary(min_size=32, max_size=32)


@settings(deadline=None, max_examples=60)
@given(
    experience=st.integers(0, 5),
    seed=SEEDS,
    noise=st.binary(min_size=1, max_size=8),
    scale=st.sampled_from([1.0, 1e-9, 1e9, 1e200]),
)
def test_one_real_trajectory_moves_the_integer_sum_within_the_sensitivity(
    experience: int, seed: bytes, noise: bytes, scale: float
) -> None:
    """End to end: real gradients, clipped, rotated, rounded; a unit is absent or present.

    Rows are rounded independently, so a unit's own integers are what its absence removes.
    """
    setup = setup_of()
    rows, _ = clip_rows(real_rows(experience) * scale, setup.total_clip)
    for index in range(rows.shape[0]):
        moved = encode(setup, rows[index : index + 1], seed, noise).astype(object)
        assert sum(int(k) ** 2 for k in moved) <= setup.sensitivity.l2_squared
        assert sum(abs(int(k)) for k in moved) <= setup.sensitivity.l1


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(
        st.floats(-1e300, 1e300) | st.sampled_from([0.0, float("nan"), float("inf")]),
        min_size=1,
        max_size=12,
    ),
    position=st.integers(0, 40),
    seed=SEEDS,
    weight=st.sampled_from([None, 0.1, 3.0]),
)
def test_no_adversarial_row_moves_the_sum_beyond_the_sensitivity(
    values: list[float], position: int, seed: bytes, weight: float | None
) -> None:
    setup = setup_of(weight=weight)
    row = np.zeros((1, setup.dimension))
    row[0, position : position + len(values)] = values
    clipped, _ = clip_rows(row, setup.total_clip)
    moved = encode(setup, clipped, seed, b"x").astype(object)
    assert sum(int(k) ** 2 for k in moved) <= setup.sensitivity.l2_squared
    assert sum(abs(int(k)) for k in moved) <= setup.sensitivity.l1


@settings(deadline=None, max_examples=40)
@given(experience=st.integers(0, 5), present=st.sets(st.integers(0, 3)), seed=SEEDS)
def test_the_ring_sum_of_agents_is_the_integer_sum_of_their_units(
    experience: int, present: set[int], seed: bytes
) -> None:
    setup = setup_of()
    rows = real_rows(experience)
    absent = [index for index in range(4) if index not in present]
    kept = rows.copy()
    kept[absent] = 0.0
    parts = [encode(setup, kept, seed, bytes([agent])) for agent in range(3)]
    ring = sum((setup.codec.to_ring(part) for part in parts[1:]), setup.codec.to_ring(parts[0]))
    decoded = setup.codec.decode_sum(ring, rotation_seed=seed)
    # rounding moves each of the 12 units by at most sqrt(p) grid steps in L2
    error = 12 * np.sqrt(setup.codec.padded) * setup.total_clip / setup.codec.resolution
    assert np.linalg.norm(decoded - 3 * kept.sum(axis=0)) <= error


@settings(deadline=None, max_examples=60)
@given(
    agents=st.integers(5, 40),
    colluding=st.integers(0, 6),
    epsilon=st.floats(0.2, 30.0),
    rounds=st.integers(1, 50),
    unit=st.sampled_from(["trajectory", "agent"]),
    dropouts=st.integers(0, 40),
)
def test_every_feasible_plan_keeps_its_budget_whoever_survives(
    agents: int, colluding: int, epsilon: float, rounds: int, unit: str, dropouts: int
) -> None:
    fields: dict[str, Any] = {"unit": unit, "max_colluding": colluding, "epsilon": epsilon}
    try:
        plan = Plan(
            name="property",
            fleet=FleetPlan(environment="CartPole-v1", agents=agents, trajectories=2, horizon=9),
            policy=PolicyPlan(observations=4, actions=2, hidden=()),
            federation=FederationPlan(
                rounds=rounds, strategy="fedsgd" if unit == "trajectory" else "fedavg"
            ),
            privacy=PrivacyPlan(**fields),
            training=TrainingPlan(),
            protection=ProtectionPlan(min_clients=3, min_honest=2),
        )
    except ValueError:
        return
    setup = round_setup(plan)
    survivors = max(plan.threshold, agents - dropouts)
    events = [(str(k), setup.event(survivors - colluding)) for k in range(rounds)]
    assert compose(plan.unit, events, setup.accounted_delta).epsilon <= epsilon
    assert plan.honest_floor >= 2
    assert 2 * plan.threshold > agents + colluding
    assert plan.tolerated_dropouts >= 0


@settings(deadline=None, max_examples=50)
@given(
    raw=st.lists(st.integers(0, 2**32 - 1), min_size=64, max_size=64),
    survivors=st.integers(1, 6),
    seed=SEEDS,
    optimizer=st.sampled_from(["sgd", "adam"]),
)
def test_any_ring_sum_gives_a_finite_policy(
    raw: list[int], survivors: int, seed: bytes, optimizer: Any
) -> None:
    setup = setup_of()
    total = np.array(raw, dtype=np.uint32)
    mean = released_mean(setup, total, survivors=survivors, seed=seed)
    theta = np.zeros(setup.policy.num_parameters)
    plan = FederationPlan(rounds=2, server_optimizer=optimizer)
    moved, state = server_step(
        plan,
        theta,
        initial_state(theta.shape[0]),
        mean.direction,
        noise_variance=mean.noise_variance,
    )
    assert np.isfinite(moved).all()
    assert state.step == 1


@given(
    count=st.integers(1, 30),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31),
    index=st.integers(0, 1000),
    attempt=st.integers(0, 9),
)
def test_the_dropout_schedule_is_a_function_of_public_numbers(
    count: int, share: float, seed: int, index: int, attempt: int
) -> None:
    names = [f"agent-{k:03d}" for k in range(count)]
    given_: dict[str, int] = {
        "dropouts": int(share * count),
        "seed": seed,
        "round_index": index,
        "attempt": attempt,
    }
    first = dropout_schedule(names, **given_)
    assert first == dropout_schedule(names, **given_)
    assert len(first) == given_["dropouts"]
    assert set(first) <= set(names)
    assert set(first.values()) <= set(range(len(DROPOUT_STAGES)))


def test_an_update_of_zeros_has_the_shape_of_a_real_one() -> None:
    setup = setup_of()
    zeros = LocalUpdate.zeros(
        num_units=4, dimension=setup.dimension, clip_norm=setup.total_clip, unit=setup.plan.unit
    )
    assert zeros.rows.shape == real_rows(0).shape
