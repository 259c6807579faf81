"""Experience of an agent's own making: one trajectory decides about its own row and no other.

Every test plays rounds of one agent in two worlds that differ in one trajectory of one batch, and
compares all rows of all rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from privfedrl.errors import EnvironmentFault
from privfedrl.federation.contribution import contribute, local_trainer, published_model
from privfedrl.federation.held_experience import HeldExperience
from privfedrl.federation.setup import RoundSetup, round_setup
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.rollout import TrajectoryBatch

ROUNDS, COUNT, HORIZON = 6, 4, 12
FLEET = {"trajectories": COUNT, "horizon": HORIZON}
KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "reinforce": {"fleet": FLEET, "training": {"truncation": "continue", "gamma": 0.9}},
    "ppo": {
        "fleet": FLEET,
        "training": {"algorithm": "ppo", "epochs": 3, "guidance_weight": 0.1},
        "policy": {"critic_hidden": (4,)},
    },
    "dqn": {
        "fleet": FLEET,
        "training": {"algorithm": "dqn", "replay_rounds": 3, "target_rounds": 2},
    },
}


def setup_of(make_plan: Any, kind: str) -> RoundSetup:
    return round_setup(make_plan(KINDS[kind], federation={"rounds": ROUNDS}))


def whole(number: int) -> dict[str, Any]:
    """The arrays of one round's batch, as an agent might keep them."""
    rng = np.random.default_rng(number)
    lengths = rng.integers(3, HORIZON + 1, size=COUNT)
    mask = np.arange(HORIZON) < lengths[:, None]
    return {
        "observations": rng.normal(size=(COUNT, HORIZON, 4)),
        "actions": rng.integers(0, 2, size=(COUNT, HORIZON)).astype(np.float64),
        "rewards": rng.normal(size=(COUNT, HORIZON)),
        "mask": mask,
        "terminated": np.ones(COUNT, dtype=np.bool_),
        "truncated": np.zeros(COUNT, dtype=np.bool_),
    }


def absent(arrays: dict[str, Any], row: int) -> dict[str, Any]:
    mask = arrays["mask"].copy()
    mask[row] = False
    return arrays | {"mask": mask}


def rows_of(
    setup: RoundSetup,
    batches: Callable[[int], TrajectoryBatch],
    monkeypatch: pytest.MonkeyPatch,
) -> list[np.ndarray]:
    """The clipped rows of every round, before rounding and noise."""
    seen: list[np.ndarray] = []
    original = type(setup.codec).encode_units

    def spy(codec: Any, rows: np.ndarray, **options: Any) -> np.ndarray:
        seen.append(np.array(rows))
        return original(codec, rows, **options)

    held, trainer = HeldExperience(setup), local_trainer(setup)
    with monkeypatch.context() as patch:
        patch.setattr(type(setup.codec), "encode_units", spy)
        for index in range(ROUNDS):
            theta = 0.3 * np.random.default_rng(50 + index).normal(size=setup.policy.num_parameters)
            contribute(
                setup,
                trainer,
                published_model(setup, theta),
                experience=lambda _theta, _step, index=index: batches(index),
                held=held,
                round_index=index,
                rotation_seed=bytes(32),
                entropy=DeterministicEntropy(b"rows"),
            )
    return seen


def differing(one: list[np.ndarray], two: list[np.ndarray]) -> list[int]:
    """In how many rows each round of two worlds differs."""
    return [
        sum(a.tobytes() != b.tobytes() for a, b in zip(left, right, strict=True))
        for left, right in zip(one, two, strict=True)
    ]


SPOILT: dict[str, Callable[[dict[str, Any]], None]] = {
    "an action that is NaN": lambda a: a["actions"].__setitem__((1, 1), np.nan),
    "an action between two": lambda a: a["actions"].__setitem__((1, 1), 0.5),
    "an action that is too large": lambda a: a["actions"].__setitem__((1, 1), 1e30),
    "an action that is no index": lambda a: a["actions"].__setitem__((1, 1), 2.0),
    "rewards beyond float32": lambda a: a["rewards"].__setitem__(1, 1.7e308),
    "a reward that is infinite": lambda a: a["rewards"].__setitem__((1, 0), -np.inf),
    "an observation beyond float32": lambda a: a["observations"].__setitem__((1, 2), 1e300),
    "observations that underflow": lambda a: a["observations"].__setitem__(1, 1e-310),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spoilt", SPOILT)
@pytest.mark.parametrize("errors", ["warn", "raise"])
def test_what_one_trajectory_holds_changes_no_other_row_of_any_round(
    make_plan: Any, kind: str, spoilt: str, errors: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the caller has told numpy to raise."""
    setup = setup_of(make_plan, kind)

    def world(change: Callable[[dict[str, Any]], dict[str, Any]]) -> list[np.ndarray]:
        def batches(index: int) -> TrajectoryBatch:
            arrays = whole(index)
            return TrajectoryBatch(**(change(arrays) if index == 0 else arrays))

        return rows_of(setup, batches, monkeypatch)

    def spoil(arrays: dict[str, Any]) -> dict[str, Any]:
        SPOILT[spoilt](arrays)
        return arrays

    with np.errstate(all=errors):
        with_it = world(spoil)
        without = world(lambda arrays: absent(arrays, 1))
    uses = setup.plan.uses_per_trajectory
    found = differing(with_it, without)
    assert all(count <= 1 for count in found[:uses])
    assert not any(found[uses:])
    assert any(rows.any() for rows in with_it)  # there was something to spoil


@pytest.mark.parametrize("kind", KINDS)
def test_a_buffer_that_is_filled_again_and_again_is_copied(
    make_plan: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = setup_of(make_plan, kind)
    buffer = whole(0)

    def shared(index: int) -> TrajectoryBatch:
        for name, values in whole(index).items():
            buffer[name][...] = values
        return TrajectoryBatch(**buffer)

    again = rows_of(setup, shared, monkeypatch)
    fresh = rows_of(setup, lambda index: TrajectoryBatch(**whole(index)), monkeypatch)
    assert differing(again, fresh) == [0] * ROUNDS


BROKEN: dict[str, dict[str, Any]] = {
    "objects": {"actions": np.full((COUNT, HORIZON), None)},
    "words": {"rewards": np.full((COUNT, HORIZON), "1.0")},
    "complex numbers": {"observations": np.zeros((COUNT, HORIZON, 4), complex)},
    "observations of another size": {"observations": np.zeros((COUNT, HORIZON, 5))},
    "continuous actions": {"actions": np.zeros((COUNT, HORIZON, 1))},
    "a mask of integers": {"mask": np.ones((COUNT, HORIZON), dtype=np.int64)},
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_batch_of_another_kind_costs_its_own_batch_and_no_other(
    make_plan: Any, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window of three batches goes on with the two that are sound."""
    setup = setup_of(make_plan, "dqn")

    def nothing() -> TrajectoryBatch:
        raise EnvironmentFault("the sensor is broken")

    def world(second: Callable[[], TrajectoryBatch]) -> list[np.ndarray]:
        return rows_of(
            setup,
            lambda index: second() if index == 1 else TrajectoryBatch(**whole(index)),
            monkeypatch,
        )

    found = world(lambda: TrajectoryBatch(**(whole(1) | BROKEN[broken])))
    assert differing(found, world(nothing)) == [0] * ROUNDS
    assert all(rows.any() for rows in found)


def test_types_of_its_own_are_those_of_the_plan_before_they_are_kept(
    make_plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """int32 actions beside the absent batches of a window that is not full yet."""
    setup = setup_of(make_plan, "dqn")

    def batches(index: int, kind: type) -> TrajectoryBatch:
        arrays = whole(index)
        return TrajectoryBatch(**(arrays | {"actions": arrays["actions"].astype(kind)}))

    wide = rows_of(setup, lambda index: batches(index, np.int64), monkeypatch)
    for kind in (np.int32, np.uint8, np.float32, np.bool_):
        narrow = rows_of(setup, lambda index, kind=kind: batches(index, kind), monkeypatch)
        assert differing(narrow, wide) == [0] * ROUNDS
    assert all(rows.any() for rows in wide)


def test_where_every_trajectory_failed_by_itself_the_agent_learns_why(make_plan: Any) -> None:
    setup = setup_of(make_plan, "reinforce")
    arrays = whole(0)
    for row in range(COUNT):
        arrays = absent(arrays, row)
    batch = replace(TrajectoryBatch(**arrays), lost=COUNT, fault=EnvironmentFault("the valve"))
    found = contribute(
        setup,
        local_trainer(setup),
        published_model(setup, np.zeros(setup.policy.num_parameters)),
        experience=lambda _theta, _step: batch,
        rotation_seed=bytes(32),
        entropy=DeterministicEntropy(b"lost"),
    )
    assert str(found.fault) == "the valve"
    assert found.lost == COUNT
