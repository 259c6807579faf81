"""An agent's own environment as a source of experience.

Guarantee: every call resets the environments and returns whole, fresh trajectories, as many as the
plan says; nothing is carried over from one call to the next.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from privfedrl.envs import EnvSpec, VectorEnv, make_vector_env
from privfedrl.envs.repeated import repeated
from privfedrl.errors import ConfigurationError
from privfedrl.federation.setup import RoundSetup
from privfedrl.plan import Plan
from privfedrl.rollout import Guide, TrajectoryBatch, collect

__all__ = ["LocalExperience", "guide_of"]


def guide_of(plan: Plan, published: NDArray[np.float64] | None, step: int) -> Guide | None:
    """The round's published policy, which acts in some of the later local steps; else None."""
    share = plan.training.behaviour_mixture
    return Guide(published, share) if share and step and published is not None else None


class LocalExperience:
    """Calls of the form (parameters, round, attempt, local step) -> TrajectoryBatch.

    Args:
        setup: of the plan; gives policy, horizon and number of trajectories.
        environment: a specification, or an own object with the ``VectorEnv`` protocol whose
            ``num_envs`` is the plan's number of trajectories. Either gets the plan's action repeat.
        rng: of the environment and the actions; seeded by the system unless given. Noise and keys
            never come from it.
    Raises:
        ConfigurationError: the environment does not fit the plan.
    """

    def __init__(
        self,
        setup: RoundSetup,
        environment: EnvSpec | VectorEnv,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        fleet = setup.plan.fleet
        if not isinstance(environment, EnvSpec) and environment.num_envs != fleet.trajectories:
            raise ConfigurationError(
                f"environment.num_envs must be the plan's {fleet.trajectories} trajectories, "
                f"got {environment.num_envs}"
            )
        self._setup = setup
        repeat = fleet.action_repeat
        self._environment = (
            replace(environment, action_repeat=repeat)
            if isinstance(environment, EnvSpec)
            else repeated(environment, repeat)
        )
        self._rng = np.random.default_rng() if rng is None else rng
        self._published: NDArray[np.float64] | None = None

    def __call__(
        self, parameters: NDArray[np.float64], round_index: int, attempt: int, step: int
    ) -> TrajectoryBatch:
        """Fresh trajectories under ``parameters``; only a public schedule looks at the round."""
        plan = self._setup.plan
        exploration = plan.exploration(round_index)
        if step == 0:
            self._published = parameters.copy()
        guide = guide_of(plan, self._published, step)
        fleet = self._setup.plan.fleet
        if not isinstance(self._environment, EnvSpec):
            return self._collect(self._environment, parameters, exploration, guide)
        env = make_vector_env(self._environment, fleet.trajectories)
        try:
            return self._collect(env, parameters, exploration, guide)
        finally:
            env.close()

    def _collect(
        self,
        env: VectorEnv,
        parameters: NDArray[np.float64],
        exploration: float,
        guide: Guide | None,
    ) -> TrajectoryBatch:
        return collect(
            self._setup.policy,
            parameters,
            env,
            horizon=self._setup.plan.fleet.horizon,
            rng=self._rng,
            exploration=exploration,
            guide=guide,
        )
