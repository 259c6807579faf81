"""The simulator's source of experience: all agents of a round rolled out together.

Guarantee: the batch an agent gets is the one it would have collected alone, because each agent has
a generator of its own, derived from (seed, agent, round, attempt, local step). Rolling them as one
block only saves time; no agent object sees another agent's batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from privfedrl.envs import BLOCKS, EnvSpec, heterogeneous, nominal
from privfedrl.envs.heterogeneity import Heterogeneity, measure
from privfedrl.errors import ConfigurationError, EnvironmentFault
from privfedrl.federation.local_experience import guide_of
from privfedrl.federation.setup import RoundSetup
from privfedrl.plan import Plan
from privfedrl.privacy import Unit
from privfedrl.rollout import RolloutWorkers, TrajectoryBatch, collect_fleet
from privfedrl.rollout.workers import in_process_of_its_own

__all__ = [
    "FleetExperience",
    "fleet_environments",
    "fleet_heterogeneity",
    "generator",
    "nominal_environment",
]

# a table that a person can read, in seconds also where the environment is slow
_MEASURED_AGENTS, _MEASURED_EPISODES, _MEASURED_HORIZON = 20, 8, 200
_MEASURED_SECONDS = 120.0

# one stream per purpose, so that no two draws of a run share a generator
STREAMS = {
    "rollout": 0,
    "initial policy": 1,
    "dropouts": 2,
    "evaluation": 3,
    "fleet": 4,
    "learning": 5,
}


def generator(seed: int, stream: str, *indices: int) -> np.random.Generator:
    """The generator of one purpose and position; never used for noise or keys."""
    return np.random.default_rng([seed, STREAMS[stream], *indices])


def nominal_environment(plan: Plan) -> EnvSpec:
    """The unmodified environment, with the plan's action repeat."""
    return replace(nominal(plan.fleet.environment), action_repeat=plan.fleet.action_repeat)


def fleet_environments(plan: Plan, *, seed: int, level: float | None = None) -> tuple[EnvSpec, ...]:
    """One environment per agent of a simulated fleet; ``level`` stands in for the plan's."""
    fleet = plan.fleet
    specs = heterogeneous(
        fleet.environment,
        level=fleet.level if level is None else level,
        agents=fleet.agents,
        seed=seed,
        varies=fleet.varies,
    )
    return tuple(replace(spec, action_repeat=fleet.action_repeat) for spec in specs)


def fleet_heterogeneity(plan: Plan, *, seed: int) -> Heterogeneity:
    """Oracle, simulation only: how far the fleet's environments are from the nominal one.

    Of a large fleet as many agents as a table can show, evenly spaced in the order of the fleet.

    Raises:
        EnvironmentFault: an environment failed, crashed its process or took too long.
    """
    if plan.fleet.environment in BLOCKS:  # no foreign code
        return _measured(plan, seed)
    found: Heterogeneity = in_process_of_its_own(_measured, plan, seed, timeout_s=_MEASURED_SECONDS)
    return found


def _measured(plan: Plan, seed: int) -> Heterogeneity:
    specs = fleet_environments(plan, seed=seed)
    every = -(-len(specs) // _MEASURED_AGENTS)
    return measure(
        specs[::every],
        seed=seed,
        episodes=_MEASURED_EPISODES,
        horizon=min(plan.fleet.horizon, _MEASURED_HORIZON),
    )


class FleetExperience:
    """Batches of a fleet, collected when :meth:`prepare` is called and handed out once each."""

    def __init__(
        self,
        setup: RoundSetup,
        specs: Sequence[EnvSpec],
        *,
        seed: int,
        workers: RolloutWorkers | None,
    ) -> None:
        plan = setup.plan
        if plan.unit is Unit.PERSON and not plan.simulation.persons_per_agent:
            raise ConfigurationError(
                "simulation.persons_per_agent must be at least "
                f"{plan.units_per_agent} to simulate unit 'person', got 0"
            )
        self._setup = setup
        self._specs = tuple(specs)
        self._seed = seed
        self._workers = workers
        self._published: NDArray[np.float64] | None = None
        self._ready: dict[int, TrajectoryBatch | EnvironmentFault] = {}
        self.collected: dict[int, TrajectoryBatch | EnvironmentFault] = {}
        """Oracle, simulation only: what each agent collected last, as a round's first batch."""
        self.steps = 0
        """Oracle, simulation only: environment steps of all agents in the last attempt."""

    def prepare(
        self, parameters: NDArray[np.float64], round_index: int, attempt: int, agents: Sequence[int]
    ) -> None:
        """Collect the first batch of ``agents``, those that take part and need a fresh one."""
        self.steps = 0
        self._published = parameters.copy()
        batches = self._collect(parameters, agents, round_index, attempt, 0)
        self._ready = dict(zip(agents, batches, strict=True))
        if self._setup.plan.collects(round_index):
            self.collected = {}
        self.collected |= self._ready

    def of(
        self, agent: int, parameters: NDArray[np.float64], round_index: int, attempt: int, step: int
    ) -> TrajectoryBatch:
        """One fresh batch for ``agent``; raises the EnvironmentFault that its environment had."""
        if step == 0 and agent in self._ready:
            batch = self._ready.pop(agent)
        else:
            (batch,) = self._collect(parameters, [agent], round_index, attempt, step)
        if isinstance(batch, EnvironmentFault):
            raise batch
        return batch

    def _collect(
        self,
        parameters: NDArray[np.float64],
        agents: Sequence[int],
        round_index: int,
        attempt: int,
        step: int,
    ) -> list[TrajectoryBatch | EnvironmentFault]:
        if not agents:
            return []
        fleet = self._setup.plan.fleet
        found = collect_fleet(
            self._setup.policy,
            parameters,
            [self._specs[agent] for agent in agents],
            fleet.trajectories,
            horizon=fleet.horizon,
            rngs=[
                generator(self._seed, "rollout", agent, round_index, attempt, step)
                for agent in agents
            ],
            workers=self._workers,
            exploration=self._setup.plan.exploration(round_index),
            guide=guide_of(self._setup.plan, self._published, step),
        )
        self.steps += sum(
            int(batch.lengths.sum()) for batch in found if isinstance(batch, TrajectoryBatch)
        )
        persons = self._setup.plan.simulation.persons_per_agent
        if self._setup.plan.unit is not Unit.PERSON:
            return found
        return [
            replace(batch, subjects=_subjects(self._setup.plan, persons, round_index))
            if isinstance(batch, TrajectoryBatch)
            else batch
            for batch in found
        ]


def _subjects(plan: Plan, persons: int, round_index: int) -> tuple[str, ...]:
    """Simulated persons take turns, each with as many trajectories as count."""
    first = round_index * plan.units_per_agent
    return tuple(
        f"person-{(first + index // plan.privacy.max_trajectories_per_unit) % persons}"
        for index in range(plan.fleet.trajectories)
    )
