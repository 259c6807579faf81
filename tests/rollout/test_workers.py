"""RolloutWorkers: same results as in this process; faults stay with their agent."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest

from privfedrl.envs import EnvSpec, heterogeneous
from privfedrl.errors import ConfigurationError, EnvironmentFault, LocalProtocolError
from privfedrl.rollout import workers as workers_module
from privfedrl.rollout.collect import collect_fleet
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.rollout.workers import RolloutWorkers, _keep, in_process_of_its_own

FIELDS = ("observations", "actions", "rewards", "mask", "terminated", "truncated")
CAR = "MountainCar-v0"
CAR_POLICY = MlpPolicy(observation_size=2, hidden=(4,), action="categorical", action_size=3)


def generators(count):
    return [np.random.default_rng(k) for k in range(count)]


def test_workers_give_what_this_process_gives_round_after_round(acrobot_policy):
    parameters = acrobot_policy.initial_parameters(np.random.default_rng(0))
    fleet = [EnvSpec("Acrobot-v1", horizon=30 + k) for k in range(3)]
    here, there = generators(3), generators(3)
    with RolloutWorkers(2) as workers:
        for _ in range(2):
            expected = collect_fleet(acrobot_policy, parameters, fleet, 2, horizon=99, rngs=here)
            found = collect_fleet(
                acrobot_policy, parameters, fleet, 2, horizon=99, rngs=there, workers=workers
            )
            for left, right in zip(found, expected, strict=True):
                for name in FIELDS:
                    np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    for one, two in zip(here, there, strict=True):
        assert one.bit_generator.state == two.bit_generator.state


def test_raising_dying_and_hanging_agents_cost_the_others_nothing(faulty_module):
    policy = MlpPolicy(observation_size=3, hidden=(), action="categorical", action_size=2)
    parameters = np.zeros(policy.num_parameters)
    kinds = ("Raise", "Die", "Hang", "Raise", "Die")
    fleet = [EnvSpec(f"{faulty_module}{kind}-v0") for kind in kinds]
    with RolloutWorkers(2, timeout_s=4.0) as workers:
        faults = collect_fleet(
            policy, parameters, fleet, 2, horizon=5, rngs=generators(5), workers=workers
        )
        # rows that raise are absent one by one; a process that dies or hangs takes them all
        assert [isinstance(found, TrajectoryBatch) for found in faults] == [
            kind == "Raise" for kind in kinds
        ]
        texts = [str(getattr(found, "fault", found)) for found in faults]
        for text, kind in zip(texts, kinds, strict=True):
            assert f"Faulty{kind}-v0" in text
            assert "0.123" not in text
        assert "RuntimeError" in texts[0]
        assert "worker process ended" in texts[1]
        assert "longer than its time limit" in texts[2]
        good = EnvSpec("MountainCarContinuous-v0", horizon=4)
        gaussian = MlpPolicy(observation_size=2, hidden=(), action="gaussian", action_size=1)
        zeros = np.zeros(gaussian.num_parameters)
        (batch, other) = collect_fleet(
            gaussian, zeros, [good, good], 2, horizon=9, rngs=generators(2), workers=workers
        )
        assert isinstance(batch, TrajectoryBatch)
        assert isinstance(other, TrajectoryBatch)
        # a mistake of the caller is raised, and the pool goes on
        with pytest.raises(ConfigurationError, match="policy must have"):
            collect_fleet(
                policy, parameters, [good], 2, horizon=9, rngs=generators(1), workers=workers
            )
        with pytest.raises(ConfigurationError, match="registered"):
            collect_fleet(
                policy,
                parameters,
                [EnvSpec("No-v0")],
                2,
                horizon=9,
                rngs=generators(1),
                workers=workers,
            )


def test_a_worker_that_died_between_rounds_is_replaced():
    parameters = np.zeros(CAR_POLICY.num_parameters)
    arguments = {"horizon": 5, "rngs": generators(1)}
    with RolloutWorkers(1) as workers:
        for _ in range(2):
            (batch,) = collect_fleet(
                CAR_POLICY, parameters, [EnvSpec(CAR)], 1, workers=workers, **arguments
            )
            assert isinstance(batch, TrajectoryBatch)
            process = workers._workers[0].process
            process.kill()
            process.join()


def test_a_closed_pool_refuses_work():
    workers = RolloutWorkers(1)
    workers.close()
    with pytest.raises(LocalProtocolError, match="closed"):
        collect_fleet(
            CAR_POLICY,
            np.zeros(CAR_POLICY.num_parameters),
            [EnvSpec(CAR)],
            1,
            horizon=5,
            rngs=generators(1),
            workers=workers,
        )


@pytest.mark.parametrize(
    ("family", "action", "sizes"),
    [
        ("LunarLander-v3", "categorical", (8, 4)),
        ("HalfCheetah-v5", "gaussian", (17, 6)),
    ],
)
def test_perturbed_fleets_give_in_workers_what_they_give_here(family, action, sizes):
    policy = MlpPolicy(observation_size=sizes[0], hidden=(4,), action=action, action_size=sizes[1])
    parameters = policy.initial_parameters(np.random.default_rng(0))
    varies = ("physics", "rewards", "observations", "actions")
    fleet = heterogeneous(family, level=1, agents=3, seed=0, varies=varies)
    here, there = generators(3), generators(3)
    with RolloutWorkers(2) as workers:
        for _ in range(2):
            expected = collect_fleet(policy, parameters, fleet, 2, horizon=40, rngs=here)
            found = collect_fleet(
                policy, parameters, fleet, 2, horizon=40, rngs=there, workers=workers
            )
            for left, right in zip(found, expected, strict=True):
                for name in FIELDS:
                    np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    for one, two in zip(here, there, strict=True):
        assert one.bit_generator.state == two.bit_generator.state


def test_perturbations_do_not_hide_a_dying_or_hanging_environment(faulty_module):
    policy = MlpPolicy(observation_size=3, hidden=(), action="categorical", action_size=2)
    fleet = [
        EnvSpec(f"{faulty_module}{kind}-v0", observation_noise=0.1, action_delay=1)
        for kind in ("Die", "Hang", "Raise")
    ]
    with RolloutWorkers(1, timeout_s=3.0) as workers:
        faults = collect_fleet(
            policy,
            np.zeros(policy.num_parameters),
            fleet,
            2,
            horizon=5,
            rngs=generators(3),
            workers=workers,
        )
    for fault, text in zip(faults, ("process ended", "time limit", "RuntimeError"), strict=True):
        assert text in str(getattr(fault, "fault", fault))


def test_an_agent_returns_to_the_worker_that_keeps_its_environments():
    fleet = [EnvSpec(CAR, horizon=3 + k) for k in range(6)]
    parameters = np.zeros(CAR_POLICY.num_parameters)
    with RolloutWorkers(2) as workers:
        homes = []
        for _ in range(2):
            collect_fleet(
                CAR_POLICY, parameters, fleet, 1, horizon=5, rngs=generators(6), workers=workers
            )
            homes.append(dict(workers._homes))
        assert set(homes[0]) == set(fleet)
        jobs = [SimpleNamespace(spec=spec) for spec in fleet]
        for slot in (0, 1):
            waiting = deque(range(6))
            taken = [workers._next_job(slot, waiting, jobs) for _ in range(6)]
            mine = [k for k, spec in enumerate(fleet) if homes[1][spec] == slot]
            assert taken[: len(mine)] == mine
            assert sorted(taken) == list(range(6))
        workers._discard(0)
        assert 0 not in workers._homes.values()


def test_a_new_agent_goes_before_one_that_another_worker_keeps():
    workers = RolloutWorkers(2)
    jobs = [SimpleNamespace(spec=EnvSpec(CAR, horizon=3 + k)) for k in range(3)]
    workers._homes = {jobs[0].spec: 1}
    waiting = deque(range(3))
    assert [workers._next_job(0, waiting, jobs) for _ in range(3)] == [1, 2, 0]


def test_kept_environments_make_room_by_rows_and_are_closed():
    closed = []

    class Kept:
        def __init__(self, name):
            self.close = lambda: closed.append(name)

    envs = {}
    for k, rows in enumerate((200, 200, 100, 200, 600)):
        _keep(envs, (EnvSpec(CAR, horizon=k + 1), rows), Kept(k))
    assert closed == [0, 1, 2, 3]
    assert [rows for _spec, rows in envs] == [600]  # too large a block is kept alone
    envs = {}
    for k, rows in enumerate((200, 200, 100)):
        _keep(envs, (EnvSpec(CAR, horizon=k + 1), rows), Kept(k))
    assert len(envs) == 3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_workers": 0}, "num_workers"),
        ({"num_workers": True}, "num_workers"),
        ({"num_workers": 1, "timeout_s": 0.0}, "timeout_s"),
        ({"num_workers": 1, "timeout_s": float("nan")}, "timeout_s"),
    ],
)
def test_a_pool_of_nothing_is_refused(arguments, named):
    with pytest.raises(ConfigurationError, match=named):
        RolloutWorkers(**arguments)


def test_the_time_that_a_process_takes_to_start_is_not_the_environments():
    workers = RolloutWorkers(1, timeout_s=1.0)
    ours, theirs = multiprocessing.Pipe()
    process = SimpleNamespace(kill=lambda: None, join=lambda _timeout: None)
    workers._workers[0] = workers_module._Worker(process=process, connection=ours)
    now = time.monotonic()
    assert workers._deadline(0) > now + 60.0
    theirs.send(workers_module._STARTED)
    assert workers._ready({0: (0, now + 60.0)}) == [0]
    assert workers._receive(0) is None
    assert workers._deadline(0) <= time.monotonic() + 1.0
    workers.close()


def _exits(connection):
    """A process whose main module cannot be imported ends like this."""


def test_a_process_that_never_starts_is_a_mistake_of_the_callers(monkeypatch):
    monkeypatch.setattr(workers_module, "_serve", _exits)
    with RolloutWorkers(1) as workers, pytest.raises(ConfigurationError, match="__main__"):
        collect_fleet(
            CAR_POLICY,
            np.zeros(CAR_POLICY.num_parameters),
            [EnvSpec(CAR)],
            1,
            horizon=5,
            rngs=generators(1),
            workers=workers,
        )


def _die():
    os._exit(3)


def _fail():
    raise ValueError("0.123456")


def test_a_call_in_a_process_of_its_own_answers_or_is_a_fault():
    assert in_process_of_its_own(divmod, 7, 3, timeout_s=60.0) == (2, 1)
    for function, arguments, text in (
        (_die, (), "ended without an answer"),
        (_fail, (), "ValueError"),
        (time.sleep, (600,), "no answer within"),
    ):
        limit = 20.0 if function is not time.sleep else 8.0
        with pytest.raises(EnvironmentFault, match=text) as caught:
            in_process_of_its_own(function, *arguments, timeout_s=limit)
        assert "0.123" not in str(caught.value)
