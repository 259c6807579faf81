"""RolloutWorkers: same results as in this process; faults stay with their agent."""

from __future__ import annotations

import numpy as np
import pytest

from privfedrl.envs import EnvSpec
from privfedrl.errors import ConfigurationError, EnvironmentFault, LocalProtocolError
from privfedrl.rollout.collect import collect_fleet
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.rollout.workers import RolloutWorkers

FIELDS = ("observations", "actions", "rewards", "mask", "terminated", "truncated")


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
        assert all(isinstance(fault, EnvironmentFault) for fault in faults)
        texts = [str(fault) for fault in faults]
        for text, kind in zip(texts, kinds, strict=True):
            assert f"Faulty{kind}-v0" in text
            assert "0.123" not in text
        assert "RuntimeError" in texts[0]
        assert "worker process ended" in texts[1]
        assert "longer than its time limit" in texts[2]
        good = EnvSpec("Pendulum-v1", horizon=4)
        gaussian = MlpPolicy(observation_size=3, hidden=(), action="gaussian", action_size=1)
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


def test_a_worker_that_died_between_rounds_is_replaced(acrobot_policy):
    parameters = np.zeros(acrobot_policy.num_parameters)
    arguments = {"horizon": 5, "rngs": generators(1)}
    with RolloutWorkers(1) as workers:
        for _ in range(2):
            (batch,) = collect_fleet(
                acrobot_policy,
                parameters,
                [EnvSpec("Acrobot-v1")],
                1,
                workers=workers,
                **arguments,
            )
            assert isinstance(batch, TrajectoryBatch)
            process = workers._workers[0].process
            process.kill()
            process.join()


def test_a_closed_pool_refuses_work(acrobot_policy):
    workers = RolloutWorkers(1)
    workers.close()
    with pytest.raises(LocalProtocolError, match="closed"):
        collect_fleet(
            acrobot_policy,
            np.zeros(acrobot_policy.num_parameters),
            [EnvSpec("Acrobot-v1")],
            1,
            horizon=5,
            rngs=generators(1),
            workers=workers,
        )


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
