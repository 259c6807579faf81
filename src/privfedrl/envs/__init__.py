"""Stage 1: environments. ``EnvSpec`` in, a block of environments out.

Guarantee: importing this package does not import Gymnasium; it is loaded by the first environment
that needs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from privfedrl.envs.acrobot import VectorAcrobot
from privfedrl.envs.cartpole import VectorCartPole
from privfedrl.envs.fleet import heterogeneous, nominal
from privfedrl.envs.numpy_block import NumpyBlock
from privfedrl.envs.pendulum import VectorPendulum
from privfedrl.envs.perturbed import perturbed
from privfedrl.envs.spec import EnvSpec
from privfedrl.envs.vector_env import VectorEnv
from privfedrl.errors import ConfigurationError

__all__ = [
    "EnvSpec",
    "VectorAcrobot",
    "VectorCartPole",
    "VectorEnv",
    "VectorPendulum",
    "fits_one_block",
    "heterogeneous",
    "make_fleet_env",
    "make_vector_env",
    "nominal",
]

#: the families with a numpy environment
BLOCKS: Mapping[str, type[NumpyBlock]] = MappingProxyType(
    {block.family: block for block in (VectorAcrobot, VectorCartPole, VectorPendulum)}
)


def make_vector_env(spec: EnvSpec, num_envs: int) -> VectorEnv:
    """``num_envs`` independent copies of one environment.

    Numpy for the families of ``BLOCKS``, Gymnasium (extra ``rl``) for every other id.

    Raises:
        ConfigurationError: unknown id, or spaces that no policy here can serve.
        MissingExtraError: Gymnasium is needed and absent.
    """
    if spec.id in BLOCKS:
        return perturbed(BLOCKS[spec.id](spec, num_envs), [spec])
    from privfedrl.envs.gymnasium_env import GymnasiumEnv

    return perturbed(GymnasiumEnv(spec, num_envs), [spec])


def fits_one_block(specs: Sequence[EnvSpec]) -> bool:
    """Whether ``make_fleet_env`` can put these agents into one numpy block."""
    ids = {spec.id for spec in specs}
    return len(ids) == 1 and ids <= set(BLOCKS) and len({spec.time_limit for spec in specs}) == 1


def make_fleet_env(specs: Sequence[EnvSpec], num_envs_each: int) -> VectorEnv:
    """One block of ``len(specs) * num_envs_each`` rows; agent k owns the k-th share of rows.

    Raises:
        ConfigurationError: the families have no numpy environment in common, or time limits differ.
    """
    if not fits_one_block(specs):
        raise ConfigurationError(
            f"specs must be of one family of {', '.join(sorted(BLOCKS))} with one horizon"
        )
    return perturbed(BLOCKS[specs[0].id](specs, len(specs) * num_envs_each), specs)
