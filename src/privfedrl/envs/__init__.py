"""Stage 1: environments. ``EnvSpec`` in, a block of environments out.

Guarantee: importing this package does not import Gymnasium; it is loaded by the first environment
that needs it.
"""

from __future__ import annotations

from collections.abc import Sequence

from privfedrl.envs import cartpole
from privfedrl.envs.cartpole import VectorCartPole
from privfedrl.envs.fleet import heterogeneous, nominal
from privfedrl.envs.spec import EnvSpec
from privfedrl.envs.vector_env import VectorEnv

__all__ = [
    "EnvSpec",
    "VectorCartPole",
    "VectorEnv",
    "fits_one_block",
    "heterogeneous",
    "make_fleet_env",
    "make_vector_env",
    "nominal",
]


def make_vector_env(spec: EnvSpec, num_envs: int) -> VectorEnv:
    """``num_envs`` independent copies of one environment.

    Numpy for CartPole-v1, Gymnasium (extra ``rl``) for every other id.

    Raises:
        ConfigurationError: unknown id, or spaces that no policy here can serve.
        MissingExtraError: Gymnasium is needed and absent.
    """
    if spec.id == cartpole.FAMILY:
        return VectorCartPole(spec, num_envs)
    from privfedrl.envs.gymnasium_env import GymnasiumEnv

    return GymnasiumEnv(spec, num_envs)


def fits_one_block(specs: Sequence[EnvSpec]) -> bool:
    """Whether ``make_fleet_env`` can put these agents into one numpy block."""
    return {spec.id for spec in specs} == {cartpole.FAMILY} and (
        len({spec.time_limit for spec in specs}) == 1
    )


def make_fleet_env(specs: Sequence[EnvSpec], num_envs_each: int) -> VectorEnv:
    """One block of ``len(specs) * num_envs_each`` rows; agent k owns the k-th share of rows.

    Raises:
        ConfigurationError: the family has no numpy environment, or time limits differ.
    """
    return VectorCartPole(specs, len(specs) * num_envs_each)
