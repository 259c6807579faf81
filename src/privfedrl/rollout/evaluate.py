"""How good a policy is when it always takes its most likely action.

Guarantee: deterministic given the parameters, the spec and the seed. The number is computed from
trajectories: it is private to the agent that owns the environment.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from privfedrl.envs import EnvSpec, make_vector_env
from privfedrl.errors import ConfigurationError
from privfedrl.rollout.collect import roll_block
from privfedrl.rollout.policies import MlpPolicy

__all__ = ["greedy_return"]


def greedy_return(
    policy: MlpPolicy,
    parameters: NDArray[np.floating],
    spec: EnvSpec,
    *,
    episodes: int,
    rng: np.random.Generator | int,
    horizon: int,
) -> float:
    """Mean undiscounted return of ``episodes`` greedy trajectories of at most ``horizon`` steps.

    Args:
        rng: the generator of the start states, or a seed for one.
    Raises:
        ConfigurationError: episodes or horizon below 1, policy and environment do not fit.
        EnvironmentFault: the environment failed.
    """
    if not isinstance(episodes, int) or isinstance(episodes, bool) or episodes < 1:
        raise ConfigurationError(f"episodes must be an integer >= 1, got {episodes!r}")
    generator = np.random.default_rng(rng)
    env = make_vector_env(spec, episodes)
    try:
        (batch,) = roll_block(
            policy, parameters, env, horizon=horizon, rngs=[generator], greedy=True
        )
    finally:
        env.close()
    return float(batch.returns[batch.mask.any(axis=1)].mean())
