"""Stage 1: environments. ``EnvSpec`` in, a block of environments out.

Guarantee: importing this package does not import Gymnasium; it is loaded by the first environment
that needs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from privfedrl.envs.acrobot import VectorAcrobot
from privfedrl.envs.cartpole import VectorCartPole
from privfedrl.envs.fleet import VARIES, heterogeneous, nominal
from privfedrl.envs.numpy_block import NumpyBlock
from privfedrl.envs.pendulum import VectorPendulum
from privfedrl.envs.perturbed import perturbed
from privfedrl.envs.repeated import repeated
from privfedrl.envs.spec import EnvSpec
from privfedrl.envs.vector_env import VectorEnv
from privfedrl.errors import ConfigurationError

if TYPE_CHECKING:
    import gymnasium

__all__ = [
    "BLOCKS",
    "VARIES",
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
    "render_env",
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
        block = perturbed(BLOCKS[spec.id](spec, num_envs), [spec])
        return repeated(block, spec.action_repeat)
    from privfedrl.envs.gymnasium_env import GymnasiumEnv

    return repeated(perturbed(GymnasiumEnv(spec, num_envs), [spec]), spec.action_repeat)


def render_env(spec: EnvSpec) -> gymnasium.Env:
    """A Gymnasium environment with the spec's physics to look at; see ``rendering.render_env``."""
    from privfedrl.envs import rendering

    return rendering.render_env(spec)


def fits_one_block(specs: Sequence[EnvSpec]) -> bool:
    """Whether ``make_fleet_env`` can put these agents into one numpy block."""
    ids = {spec.id for spec in specs}
    shared = {(spec.time_limit, spec.action_repeat) for spec in specs}
    return len(ids) == 1 and ids <= set(BLOCKS) and len(shared) == 1


def make_fleet_env(specs: Sequence[EnvSpec], num_envs_each: int) -> VectorEnv:
    """One block of ``len(specs) * num_envs_each`` rows; agent k owns the k-th share of rows.

    Raises:
        ConfigurationError: the families have no numpy environment in common, or time limits differ.
    """
    if not fits_one_block(specs):
        raise ConfigurationError(
            f"specs must be of one family of {', '.join(sorted(BLOCKS))} with one horizon and one "
            "action_repeat"
        )
    block = perturbed(BLOCKS[specs[0].id](specs, len(specs) * num_envs_each), specs)
    return repeated(block, specs[0].action_repeat)
