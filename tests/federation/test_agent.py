"""What leaves an agent, when, and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from privfedrl.errors import (
    AuthenticationFailed,
    BudgetExceeded,
    ConfigurationError,
    EnvironmentFault,
    LocalProtocolError,
    PrivacyError,
    ProtocolError,
    RemoteProtocolError,
    RoundAborted,
)
from privfedrl.federation.broadcast import pack_broadcast, unpack_broadcast
from privfedrl.parties import MemoryJournal
from privfedrl.plan import Plan
from privfedrl.privacy import Charge, Ledger, Unit
from privfedrl.rollout import TrajectoryBatch

VICTIM = "agent-002"


def to_masked(world: Any) -> tuple[Any, list[Any]]:
    """A round in which every agent but the victim has sent its masked vector."""
    coordinator = world.coordinator()
    messages = coordinator.open_round()
    messages = world.exchange(coordinator, messages)  # roster
    return coordinator, world.exchange(coordinator, messages)  # deliveries


def delivery(messages: list[Any], name: str = VICTIM) -> Any:
    return next(message for message in messages if message.recipient == name)


# --- charge before release ----------------------------------------------------------------------


def test_the_charge_is_durable_before_the_masked_vector_leaves(world: Any) -> None:
    _, deliveries = to_masked(world)
    path = world.home / f"{VICTIM}.db"
    with Ledger.open(path, read_only=True) as before:
        assert before.verify().reservations == 0
    world.answer(delivery(deliveries))
    # another connection sees it: committed, not only in this object's memory
    with Ledger.open(path, read_only=True) as after:
        assert after.verify().reservations == 1
        (held,) = after.reservations()
    assert held.charge.event == world.setup.worst_event
    assert held.charge.plan_digest == world.plan.digest
    assert held.charge.adversary == "coordinator+1"


def test_a_ledger_that_refuses_lets_nothing_leave(world: Any) -> None:
    worst = world.setup.worst_event
    world.ledgers[VICTIM].reserve(
        Charge(
            plan_digest=bytes(32),
            release_id="an earlier study",
            group="an earlier batch",
            unit=Unit.TRAJECTORY,
            adversary=world.setup.adversary,
            event=type(worst)(sensitivity=worst.sensitivity, variance=worst.variance // 4),
            epsilon=1e6,
            delta=world.setup.accounted_delta,
        )
    )
    _, deliveries = to_masked(world)
    before = len(world.sent[VICTIM])
    with pytest.raises(BudgetExceeded):
        world.answer(delivery(deliveries))
    assert len(world.sent[VICTIM]) == before
    assert world.agents[VICTIM].finished
    assert len(world.ledgers[VICTIM].reservations()) == 1
    with pytest.raises(ProtocolError):
        world.agents[VICTIM].receive(delivery(deliveries).data)


def test_a_closed_ledger_lets_nothing_leave(world: Any) -> None:
    _, deliveries = to_masked(world)
    world.ledgers[VICTIM].close()
    with pytest.raises(LocalProtocolError, match="closed"):
        world.answer(delivery(deliveries))
    assert world.agents[VICTIM].finished


def test_a_complete_round_settles_what_survived_less_the_colluders(world: Any) -> None:
    world.run()
    for name in world.names:
        (held,) = world.ledgers[name].reservations()
        assert held.realised == world.setup.event(len(world.names) - 1)
        assert world.ledgers[name].spent().epsilon < world.plan.privacy.epsilon


def test_a_round_that_breaks_off_leaves_the_worst_case_charged(world: Any) -> None:
    _, deliveries = to_masked(world)
    world.answer(delivery(deliveries))
    world.agents[VICTIM].abandon()
    assert world.agents[VICTIM].finished
    (held,) = world.ledgers[VICTIM].reservations()
    assert held.realised is None
    assert held.event == world.setup.worst_event


def test_an_agent_that_never_released_is_not_charged(world: Any) -> None:
    to_masked(world)
    world.agents[VICTIM].abandon()
    assert world.ledgers[VICTIM].reservations() == ()


# --- what an agent refuses ----------------------------------------------------------------------


def invitation(coordinator: Any, name: str = VICTIM) -> bytes:
    return next(one.data for one in coordinator.open_round() if one.recipient == name)


def test_another_plan_is_refused_without_training(
    world: Any, make_plan: Callable[..., Plan]
) -> None:
    other = make_plan(privacy={"epsilon": 6.0})
    data = invitation(world.coordinator(plan=other))
    with pytest.raises(RoundAborted, match="PlanMismatch"):
        world.agents[VICTIM].start(data)
    assert world.calls == []


def test_another_policy_shape_is_refused_without_training(
    world: Any, make_world: Callable[..., Any], make_plan: Callable[..., Plan]
) -> None:
    other = make_world(make_plan(policy={"hidden": (9,)}))
    with pytest.raises(RemoteProtocolError, match="parameters has"):
        world.agents[VICTIM].start(invitation(other.coordinator()))
    assert world.calls == []


def test_parameters_that_are_not_the_signed_ones_are_refused_without_training(world: Any) -> None:
    data = invitation(world.coordinator())
    config, parameters = unpack_broadcast(data, num_parameters=world.parameters.shape[0])
    parameters[0] += 1e-12
    with pytest.raises(RemoteProtocolError, match="not the ones in the signed configuration"):
        world.agents[VICTIM].start(pack_broadcast(config, parameters))
    assert world.calls == []


@pytest.mark.parametrize("value", [1e12, -1e300])
def test_signed_parameters_outside_the_policys_range_are_refused_without_training(
    world: Any, value: float
) -> None:
    coordinator = world.coordinator()
    wild = world.parameters.copy()
    wild[3] = value
    data = next(one.data for one in coordinator.open_round(wild) if one.recipient == VICTIM)
    with pytest.raises(RemoteProtocolError, match="no policy"):
        world.agents[VICTIM].start(data)
    assert world.calls == []
    assert world.agents[VICTIM].finished


def test_a_stranger_who_signs_as_coordinator_is_refused(
    world: Any, make_world: Callable[..., Any]
) -> None:
    stranger = make_world(seed=b"somebody else")
    with pytest.raises((AuthenticationFailed, RoundAborted)):
        world.agents[VICTIM].start(invitation(stranger.coordinator()))
    assert world.calls == []


def test_one_changed_byte_of_an_invitation_is_refused_without_training(world: Any) -> None:
    data = bytearray(invitation(world.coordinator()))
    agent = world.agents[VICTIM]
    for position in range(0, len(data), 7):
        data[position] ^= 1
        with pytest.raises(ProtocolError):
            agent.start(bytes(data))
        data[position] ^= 1
    assert world.calls == []
    assert agent.start(bytes(data))  # the untouched bytes are welcome


def test_a_round_cannot_be_started_twice(world: Any) -> None:
    data = invitation(world.coordinator())
    world.agents[VICTIM].start(data)
    with pytest.raises(LocalProtocolError, match="in progress"):
        world.agents[VICTIM].start(data)
    assert len(world.calls) == 1


def test_receive_needs_a_round(world: Any) -> None:
    with pytest.raises(LocalProtocolError, match="call start first"):
        world.agents[VICTIM].receive(b"")


def test_a_replayed_round_gets_no_second_vector_even_after_a_restart(world: Any) -> None:
    world.run()
    before = {name: len(sent) for name, sent in world.sent.items()}
    # the same coordinator state, a lost ledger: it opens round 0, attempt 0 once more
    world.ledger.close()
    (world.home / "server.db").unlink()
    world.ledger = Ledger.open(world.home / "server.db")
    world.agents = {name: world.agent(name) for name in world.names}
    _, deliveries = to_masked(world)
    for message in deliveries:
        with pytest.raises(LocalProtocolError, match="not newer"):
            world.answer(message)
    assert all(len(world.sent[name]) == before[name] + 2 for name in world.names)
    assert all(len(ledger.reservations()) == 1 for ledger in world.ledgers.values())


def test_an_unprotected_plan_makes_no_agent(world: Any, make_plan: Callable[..., Plan]) -> None:
    with pytest.raises(ConfigurationError, match="pairwise"):
        world.agent(VICTIM, plan=make_plan(protection={"kind": "none"}))


# --- what an environment does -------------------------------------------------------------------


def broken(kind: str) -> Callable[..., Any]:
    """An environment that misbehaves; where a batch is needed it starts from a real one."""

    def raising(name: str, theta: Any, position: Any) -> Any:
        raise ValueError("pole caught fire")

    def faulty(name: str, theta: Any, position: Any) -> Any:
        raise EnvironmentFault("worker died")

    def nothing(name: str, theta: Any, position: Any) -> Any:
        return None

    return {"raises": raising, "fault": faulty, "none": nothing}[kind]


def changed(world: Any, **arrays: Callable[[Any], Any]) -> Callable[..., TrajectoryBatch]:
    fields = ("observations", "actions", "rewards", "mask", "terminated", "truncated")

    def source(name: str, theta: Any, position: Any) -> TrajectoryBatch:
        batch = world.batch(name, theta, position)
        values = {key: getattr(batch, key) for key in fields}
        return TrajectoryBatch(**(values | {key: f(values[key]) for key, f in arrays.items()}))

    return source


def filled(value: float) -> Callable[[Any], Any]:
    return lambda array: np.full_like(array, value)


BROKEN = {
    "raises": lambda world: broken("raises"),
    "fault": lambda world: broken("fault"),
    "returns None": lambda world: broken("none"),
    "too few": lambda world: changed(
        world,
        **dict.fromkeys(
            ("observations", "actions", "rewards", "mask", "terminated", "truncated"),
            lambda array: array[:-1],
        ),
    ),
    "other observations": lambda world: changed(
        world, observations=lambda array: np.concatenate([array, array], axis=2)
    ),
}


def sizes(world: Any) -> dict[str, list[int]]:
    return {name: [len(data) for data in sent] for name, sent in world.sent.items()}


@pytest.mark.parametrize("kind", sorted(BROKEN))
def test_a_broken_environment_changes_no_message_size_and_is_told_to_its_owner_only(
    make_world: Callable[..., Any], kind: str
) -> None:
    whole, world = make_world(), make_world()
    whole.run()
    world.experience[VICTIM] = BROKEN[kind](world)
    coordinator = world.run()
    assert sizes(world) == sizes(whole)
    assert coordinator.result().survivors == world.names
    assert isinstance(world.agents[VICTIM].fault, EnvironmentFault)
    assert {name for name, agent in world.agents.items() if agent.fault} == {VICTIM}
    assert all(len(ledger.reservations()) == 1 for ledger in world.ledgers.values())
    sent = b"".join(data for messages in world.sent.values() for data in messages)
    assert b"fault" not in sent
    assert b"fire" not in sent


def test_actions_that_do_not_exist_change_no_message_size(make_world: Callable[..., Any]) -> None:
    whole, world = make_world(), make_world()
    whole.run()
    world.experience[VICTIM] = changed(world, actions=lambda array: array + 7)
    world.run()
    assert sizes(world) == sizes(whole)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("key", ["rewards", "observations"])
def test_values_that_are_not_numbers_contribute_zero_rows_of_the_same_size(
    make_world: Callable[..., Any], key: str, value: float
) -> None:
    whole, world = make_world(), make_world()
    whole.run()
    for name in world.names:
        world.experience[name] = changed(world, **{key: filled(value)})
    result = world.run().result()
    assert sizes(world) == sizes(whole)
    assert np.isfinite(result.parameters).all()


def test_a_fault_is_forgotten_when_the_environment_works_again(world: Any) -> None:
    world.experience[VICTIM] = broken("raises")
    world.state = world.run().state
    assert world.agents[VICTIM].fault is not None
    del world.experience[VICTIM]
    world.run()
    assert world.agents[VICTIM].fault is None


def test_a_batch_that_was_used_before_is_refused_before_anything_leaves(world: Any) -> None:
    kept: list[TrajectoryBatch] = []

    def same(name: str, theta: Any, position: Any) -> TrajectoryBatch:
        kept.append(world.batch(name, theta, position))
        return kept[0]

    world.experience[VICTIM] = same
    world.state = world.run().state
    before = len(world.sent[VICTIM])
    with pytest.raises(PrivacyError, match="fresh"):
        world.agents[VICTIM].start(invitation(world.coordinator()))
    # a restarted agent has forgotten the batch; its ledger has not
    world.agents[VICTIM] = world.agent(VICTIM, journal=MemoryJournal())
    _, deliveries = to_masked(world)
    with pytest.raises(PrivacyError):
        world.answer(delivery(deliveries))
    assert len(world.sent[VICTIM]) == before + 2
    assert len(world.ledgers[VICTIM].reservations()) == 1


def test_message_sizes_do_not_depend_on_the_data(make_world: Callable[..., Any]) -> None:
    first, second = make_world(), make_world(seed=b"another")
    for name in second.names:
        second.experience[name] = changed(
            second, rewards=lambda array: np.zeros_like(array), observations=filled(0.0)
        )
    first.run()
    second.run()
    assert sizes(first) == sizes(second)
    for messages in sizes(first).values():
        assert len(messages) == 5


def test_no_repr_shows_more_than_name_and_phase(world: Any) -> None:
    agent = world.agents[VICTIM]
    assert repr(agent) == f"Agent({VICTIM!r}, phase=IDLE)"
    agent.start(invitation(world.coordinator()))
    assert repr(agent) == f"Agent({VICTIM!r}, phase=ADVERTISED)"


def test_hostile_bytes_in_the_middle_of_a_round_change_nothing(world: Any) -> None:
    """Noise, cut and changed messages raise ProtocolError only; the round goes on."""
    rng = np.random.default_rng(8)
    coordinator = world.coordinator()
    messages = coordinator.open_round()
    while not coordinator.finished:
        if len(world.sent[VICTIM]) > 0:
            good = delivery(messages).data
            mutated = bytearray(good)
            mutated[int(rng.integers(len(good)))] ^= 1 << int(rng.integers(8))
            for data in (b"", rng.bytes(90), good[:-1], good + b"\x00", bytes(mutated)):
                with pytest.raises(ProtocolError):
                    world.agents[VICTIM].receive(data)
                with pytest.raises(ProtocolError):
                    coordinator.receive(data)
            assert not world.agents[VICTIM].finished
        messages = world.exchange(coordinator, messages)
    assert coordinator.result().survivors == world.names


LOCAL_STEPS = {
    "privacy": {"mechanism": "local-skellam"},
    "federation": {"strategy": "fedavg"},
    "training": {"local_steps": 2, "local_learning_rate": 0.1},
}


def test_a_batch_of_any_local_step_is_spent_for_ever_also_across_a_restart(
    make_world: Any, make_plan: Any
) -> None:
    world = make_world(make_plan(LOCAL_STEPS))
    used: list[Any] = []

    def remember(name: str, theta: Any, position: Any) -> Any:
        used.append(world.batch(name, theta, position))
        return used[-1]

    world.experience[VICTIM] = remember
    world.run()
    ledger = world.ledgers[VICTIM]
    groups = [one.charge.group for one in ledger.reservations()]
    assert groups == [batch.batch_id.hex() for batch in used]
    assert all(one.realised is not None for one in ledger.reservations())
    assert ledger.spent().epsilon <= world.plan.privacy.epsilon

    def again(name: str, theta: Any, position: Any) -> Any:
        return used[1] if position[2] == 0 else world.batch(name, theta, position)

    world.experience[VICTIM] = again
    world.agents[VICTIM] = world.agent(VICTIM)  # a new process remembers no batch
    world.state = dataclasses.replace(world.state, task_id=bytes([1]) * 32)
    with pytest.raises(PrivacyError, match="reserved already"):
        world.run()
    assert len(ledger.reservations()) == len(groups)
