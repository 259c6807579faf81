"""The policy that a run left behind, ready to act in an environment of its fleet.

Guarantee: parameters are acted with only under the plan and the architecture that they were trained
for; nothing in the run directory is changed. What comes out is computed from episodes without
noise: it is private to whoever owns the environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from privfedrl.envs import EnvSpec
from privfedrl.errors import ConfigurationError, StorageError
from privfedrl.federation.fleet_experience import fleet_environments, nominal_environment
from privfedrl.federation.run_directory import RunDirectory, check_same_run
from privfedrl.federation.setup import policy_of
from privfedrl.plan import Plan
from privfedrl.rollout.evaluate import Evaluation, evaluate
from privfedrl.rollout.film import Frame, film
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.training.policy_file import load_policy

__all__ = ["Evaluation", "Frame", "TrainedPolicy"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedPolicy:
    """A finished run as far as acting needs it.

    Attributes:
        plan: of the run.
        seed: of the run; its fleet's environments follow from it.
        policy: architecture.
        parameters: float64 [d], as released.
    """

    plan: Plan
    seed: int
    policy: MlpPolicy
    parameters: NDArray[np.float64]

    @classmethod
    def load(cls, run: str | os.PathLike[str]) -> TrainedPolicy:
        """The policy of a run directory.

        Raises:
            StorageError: it holds no run, an unfinished one, or damaged files.
            ConfigurationError: plan or policy are not those of the run.
        """
        directory = RunDirectory(Path(run))
        header = directory.header()
        if header is None:
            raise StorageError(f"{str(directory.path)!r} holds no run")
        plan = directory.plan()
        check_same_run(header, plan, seed=None)
        if not directory.policy.exists():
            raise StorageError(
                f"{str(directory.path)!r} has no {directory.policy.name} yet: "
                "its run is not finished"
            )
        policy = policy_of(plan)
        parameters = load_policy(directory.policy, policy, plan_digest=plan.digest)
        return cls(plan=plan, seed=header.seed, policy=policy, parameters=parameters)

    def environment(
        self, *, agent: int | None = None, level: float | None = None, seed: int = 0
    ) -> EnvSpec:
        """The nominal environment, or that of one agent.

        Args:
            agent: whose environment; None = nominal, or agent 0 where ``level`` is given.
            level: of a fleet as large as the run's, dealt anew by ``seed``; None = the run's fleet.
        Raises:
            ConfigurationError: the fleet has no such agent, or its environment no such level.
        """
        fleet = self.plan.fleet
        if agent is None and level is None:
            return nominal_environment(self.plan)
        chosen = 0 if agent is None else agent
        if not 0 <= chosen < fleet.agents:
            raise ConfigurationError(f"agent must be in 0..{fleet.agents - 1}, got {chosen}")
        specs = fleet_environments(
            self.plan, seed=self.seed if level is None else seed, level=level
        )
        return specs[chosen]

    def evaluate(
        self, spec: EnvSpec, *, episodes: int, seed: int, sampled: bool = False
    ) -> Evaluation:
        """Episodes of at most the plan's horizon; see ``rollout.evaluate``."""
        return evaluate(
            self.policy,
            self.parameters,
            spec,
            episodes=episodes,
            rng=seed,
            horizon=self.plan.fleet.horizon,
            sampled=sampled,
        )

    def film(
        self,
        spec: EnvSpec,
        show: Callable[[Frame, float], None],
        *,
        seed: int,
        sampled: bool = False,
    ) -> Evaluation:
        """One episode past ``show``; see ``rollout.film``."""
        return film(
            self.policy,
            self.parameters,
            spec,
            show,
            rng=seed,
            horizon=self.plan.fleet.horizon,
            sampled=sampled,
        )
