"""How good a policy is: whole episodes with it, nothing learnt.

Guarantee: deterministic given the parameters, the spec and the seed. The numbers are computed from
trajectories: they are private to whoever owns the environment.

Notation: n episodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfedrl.envs import EnvSpec, VectorEnv, make_vector_env
from privfedrl.errors import ConfigurationError
from privfedrl.rollout.collect import roll_block
from privfedrl.rollout.policies import MlpPolicy

__all__ = ["Evaluation", "evaluate", "evaluate_in", "greedy_return"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """What n episodes gave; not private to release.

    Attributes:
        returns: float64 [n], undiscounted.
        lengths: int64 [n], steps.
        terminated: bool [n], the environment's own end; the others were cut by a time limit.
        lost: episodes beside these whose environment failed.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    terminated: NDArray[np.bool_]
    lost: int


def evaluate(
    policy: MlpPolicy,
    parameters: NDArray[np.floating],
    spec: EnvSpec,
    *,
    episodes: int,
    rng: np.random.Generator | int,
    horizon: int,
    sampled: bool = False,
) -> Evaluation:
    """``episodes`` trajectories of at most ``horizon`` steps.

    Args:
        rng: the generator of the start states and actions, or a seed for one.
        sampled: draw the actions as in training; otherwise the most likely one is taken.
    Raises:
        ConfigurationError: episodes or horizon below 1, policy and environment do not fit, actions
            of a policy of Q values sampled (it has no distribution to draw from).
        EnvironmentFault: every episode's environment failed.
    """
    if not isinstance(episodes, int) or isinstance(episodes, bool) or episodes < 1:
        raise ConfigurationError(f"episodes must be an integer >= 1, got {episodes!r}")
    env = make_vector_env(spec, episodes)
    try:
        return evaluate_in(env, policy, parameters, rng=rng, horizon=horizon, sampled=sampled)
    finally:
        env.close()


def evaluate_in(
    env: VectorEnv,
    policy: MlpPolicy,
    parameters: NDArray[np.floating],
    *,
    rng: np.random.Generator | int,
    horizon: int,
    sampled: bool = False,
) -> Evaluation:
    """One trajectory per row of an environment that exists. Args, Raises: as :func:`evaluate`."""
    if sampled and policy.action == "q-values":
        raise ConfigurationError(
            "sampled must be False for a policy of Q values: it has no distribution of actions"
        )
    (batch,) = roll_block(
        policy,
        parameters,
        env,
        horizon=horizon,
        rngs=[np.random.default_rng(rng)],
        greedy=not sampled,
    )
    if batch.fault is not None and batch.lost == batch.num_trajectories:
        raise batch.fault
    whole = batch.mask.any(axis=1)  # an episode whose environment failed has no steps
    return Evaluation(
        returns=batch.returns[whole].astype(np.float64),
        lengths=batch.mask.sum(axis=1, dtype=np.int64)[whole],
        terminated=batch.terminated[whole],
        lost=batch.lost,
    )


def greedy_return(
    policy: MlpPolicy,
    parameters: NDArray[np.floating],
    spec: EnvSpec,
    *,
    episodes: int,
    rng: np.random.Generator | int,
    horizon: int,
) -> float:
    """Mean undiscounted return of greedy trajectories. Args, Raises: as :func:`evaluate`."""
    found = evaluate(policy, parameters, spec, episodes=episodes, rng=rng, horizon=horizon)
    return float(found.returns.mean())
