"""The coordinator: reserve, invite, sum, charge, move the policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from privfedrl.errors import (
    BudgetExceeded,
    ConfigurationError,
    LocalProtocolError,
    PrivacyError,
    RoundAborted,
    StorageError,
)
from privfedrl.federation.contribution import contribute, local_trainer, published_model
from privfedrl.federation.coordinator import advance, next_attempt
from privfedrl.plan import Plan
from privfedrl.primitives.random import system_entropy
from privfedrl.privacy import Ledger
from privfedrl.secagg import Transcript, ideal_sum


def contributions(world: Any, seed: bytes) -> dict[str, Any]:
    """What every agent of ``world`` puts in, recomputed outside of the agents."""
    found = {}
    for name in world.names:
        found[name] = contribute(
            world.setup,
            local_trainer(world.setup),
            published_model(world.setup, world.parameters),
            experience=lambda theta, step, name=name: world.batch(name, theta, (0, 0, step)),
            rotation_seed=seed,
            entropy=world.entropy.fork(b"agent" + name.encode()),
        ).vector
    return found


@pytest.mark.parametrize("unit", ["trajectory", "agent"])
def test_the_protected_result_is_bit_for_bit_that_of_summing_in_the_clear(
    make_world: Callable[..., Any],
    make_plan: Callable[..., Plan],
    agent_unit: dict[str, dict[str, Any]],
    unit: str,
) -> None:
    """Ideal = real: an agent draws its contribution before its keys, so the fork gives both."""
    plan = make_plan() if unit == "trajectory" else make_plan(agent_unit)
    world = make_world(plan)
    coordinator = world.run()
    result = coordinator.result()
    opening = coordinator._opening
    vectors = contributions(world, opening.seed)
    total = ideal_sum(vectors, vectors, ring_bits=plan.encoding.ring_bits)
    state, ideal = advance(
        world.setup,
        world.state,
        opening,
        total,
        world.names,
        transcript=b"",
        transcript_digest=bytes(32),
    )
    assert np.array_equal(result.parameters, ideal.parameters)
    assert np.array_equal(result.released.direction, ideal.released.direction)
    assert not np.array_equal(result.parameters, world.parameters)
    assert state.round == coordinator.state.round == 1


def test_a_dropout_is_missing_from_the_sum_and_nobody_else(world: Any) -> None:
    gone = world.names[3]
    coordinator = world.coordinator()
    messages = coordinator.open_round()
    messages = world.exchange(coordinator, messages)
    messages = world.exchange(coordinator, messages)
    messages = world.exchange(coordinator, messages, absent=frozenset({gone}))
    while not coordinator.finished:
        messages = world.exchange(coordinator, messages)
    result = coordinator.result()
    assert result.survivors == tuple(name for name in world.names if name != gone)
    vectors = contributions(world, coordinator._opening.seed)
    total = ideal_sum(vectors, result.survivors, ring_bits=32)
    _, ideal = advance(
        world.setup,
        world.state,
        coordinator._opening,
        total,
        result.survivors,
        transcript=b"",
        transcript_digest=bytes(32),
    )
    assert np.array_equal(result.parameters, ideal.parameters)
    (held,) = world.ledger.reservations()
    assert held.realised == world.setup.event(len(world.names) - 2)


def test_the_worst_case_is_reserved_before_anybody_is_invited(world: Any) -> None:
    coordinator = world.coordinator()
    invitations = coordinator.open_round()
    assert len(invitations) == len(world.names)
    with Ledger.open(world.home / "server.db", read_only=True) as ledger:
        (held,) = ledger.reservations()
    assert held.event == world.setup.worst_event
    assert held.realised is None


def test_a_refused_reservation_invites_nobody(world: Any) -> None:
    world.ledger.close()
    coordinator = world.coordinator()
    with pytest.raises(LocalProtocolError, match="closed"):
        coordinator.open_round()
    assert coordinator.finished
    with pytest.raises(LocalProtocolError, match="no round was opened"):
        coordinator.close_phase()


def test_a_read_only_ledger_invites_nobody(world: Any) -> None:
    with Ledger.open(world.home / "server.db", read_only=True) as ledger:
        coordinator = world.coordinator(ledger=ledger)
        with pytest.raises(StorageError):
            coordinator.open_round()
    assert coordinator.finished


def test_the_agent_unit_stops_before_the_first_round_that_the_budget_does_not_cover(
    make_world: Callable[..., Any],
    make_plan: Callable[..., Plan],
    agent_unit: dict[str, dict[str, Any]],
) -> None:
    world = make_world(make_plan(agent_unit))
    for _ in range(world.plan.federation.rounds):  # aborted rounds cost their worst case
        assert world.coordinator().open_round()
    with pytest.raises(BudgetExceeded):
        world.coordinator().open_round()
    assert len(world.ledger.reservations()) == world.plan.federation.rounds
    assert world.ledger.spent().epsilon <= world.plan.privacy.epsilon


def test_an_aborted_round_keeps_its_reservation_and_its_retry_is_another_attempt(
    world: Any,
) -> None:
    coordinator = world.coordinator()
    messages = coordinator.open_round()
    absent = frozenset(world.names[:3])
    assert world.exchange(coordinator, messages, absent=absent) == []
    assert coordinator.finished
    with pytest.raises(RoundAborted, match="ThresholdNotMet"):
        coordinator.result()
    assert len(world.ledger.reservations()) == 1
    assert next_attempt(world.setup, world.ledger, world.state) == 1
    for agent in world.agents.values():
        agent.abandon()
    retry = world.run()
    assert retry.result().attempt == 1
    first, second = world.ledger.reservations()
    assert first.realised is None
    assert second.realised == world.setup.event(5)


def test_the_ledger_accepts_the_survivors_before_a_mask_is_removed(world: Any) -> None:
    coordinator = world.coordinator()
    messages = world.exchange(coordinator, coordinator.open_round())
    messages = world.exchange(coordinator, messages)
    world.ledger.close()
    with pytest.raises(LocalProtocolError, match="closed"):
        world.exchange(coordinator, messages)
    assert coordinator.finished
    with pytest.raises(RoundAborted, match="LocalFault"):
        coordinator.result()


def test_result_waits_for_the_end_and_is_then_stable(world: Any) -> None:
    coordinator = world.coordinator()
    with pytest.raises(LocalProtocolError, match="no round was opened"):
        coordinator.result()
    coordinator.open_round()
    with pytest.raises(LocalProtocolError, match="still open"):
        coordinator.result()
    with pytest.raises(LocalProtocolError, match="in progress"):
        coordinator.open_round()
    world_two = world.run()
    assert world_two.result() is world_two.result()
    assert world_two.state.round == 1


def test_the_transcript_binds_the_ledger_and_the_next_round(world: Any) -> None:
    coordinator = world.run()
    result = coordinator.result()
    transcript = Transcript.from_bytes(result.transcript)
    assert transcript.digest == coordinator.state.transcript
    assert transcript.ledger_head.hex() == world.ledger.head


def test_rounds_follow_each_other_on_one_set_of_agents(world: Any) -> None:
    for expected in range(3):
        coordinator = world.run()
        assert coordinator.result().round == expected
        world.state = coordinator.state
    assert len(world.ledger.reservations()) == 3
    assert all(len(ledger.reservations()) == 3 for ledger in world.ledgers.values())
    assert len(set(world.calls)) == 3 * len(world.names)


def test_other_parameters_can_be_given_and_nonsense_cannot(world: Any) -> None:
    coordinator = world.coordinator()
    for bad in (world.parameters[:-1], np.full_like(world.parameters, np.nan)):
        with pytest.raises(ConfigurationError, match="parameters must be"):
            coordinator.open_round(bad)
    assert world.ledger.reservations() == ()
    coordinator.open_round(world.parameters + 1.0)
    assert np.array_equal(coordinator.state.parameters, world.parameters + 1.0)


def test_a_state_of_another_policy_is_refused(world: Any) -> None:
    wrong = dataclasses.replace(world.state, parameters=np.zeros(3))
    with pytest.raises(ConfigurationError, match="shape"):
        world.coordinator(state=wrong)


def test_an_unprotected_plan_opens_no_round(world: Any, make_plan: Callable[..., Plan]) -> None:
    coordinator = world.coordinator(plan=make_plan(protection={"kind": "none"}))
    with pytest.raises(ConfigurationError, match="pairwise"):
        coordinator.open_round()


def test_two_rounds_with_system_entropy_never_release_the_same_sum(
    make_world: Callable[..., Any],
) -> None:
    found = []
    for _ in range(2):
        world = make_world()
        world.agents = {name: world.agent(name, entropy=system_entropy) for name in world.names}
        found.append(world.run(entropy=system_entropy).result().parameters)
    assert not np.array_equal(*found)


def test_a_settled_event_can_never_cost_more_than_the_reserved_one(world: Any) -> None:
    coordinator = world.coordinator()
    coordinator.open_round()
    reservation = coordinator._opening.reservation
    with pytest.raises(PrivacyError):
        world.ledger.settle(reservation, world.setup.event(world.plan.honest_floor - 1))
