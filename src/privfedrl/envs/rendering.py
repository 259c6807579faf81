"""Pictures of an environment: a Gymnasium instance with the spec's physics that renders to arrays.

Guarantee: an environment that is returned has shown a picture; nothing here ends the process, also
where a graphics driver would.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING

import numpy as np

from privfedrl.envs.gymnasium_make import MUJOCO, make_rendering
from privfedrl.envs.spec import EnvSpec
from privfedrl.errors import ConfigurationError, EnvironmentFault, MissingExtraError

if TYPE_CHECKING:
    import gymnasium

__all__ = ["render_env"]

_BACKENDS = ("egl", "osmesa", "glfw")
_PROBE = """
import mujoco
from gymnasium import make
mujoco.set_mju_user_warning(lambda message: None)
env = make("InvertedPendulum-v5", render_mode="rgb_array")
env.reset()
frame = env.render()
raise SystemExit(int(frame.min() == frame.max()))
"""
_PROBE_TIMEOUT_S = 60.0


def render_env(spec: EnvSpec) -> gymnasium.Env:
    """Gymnasium's environment with the spec's physics, reset, whose ``render()`` gives a picture.

    Pictures are uint8 [height, width, 3]. It is the bare environment: rewards, observations,
    delays and starts are not perturbed. For MuJoCo the first graphics library that works is
    chosen, in processes of their own, and named in the environment variable ``MUJOCO_GL``, unless
    that is set. Close and delete one MuJoCo environment before making the next: when the first is
    collected, the second may lose its pictures.

    Raises:
        ConfigurationError: id unknown, or it cannot render to an array on this machine.
        MissingExtraError: Gymnasium, or what the environment needs, is not installed.
        EnvironmentFault: the constructor raised.
    """
    if spec.id in MUJOCO:
        _choose_backend(spec.id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium warns of modes that it then lacks
        try:
            env = make_rendering(spec)
        except EnvironmentFault as fault:
            raise ConfigurationError(f"{spec.id} cannot render to an array here: {fault}") from None
        try:
            env.reset(seed=0)
            frame = env.render()
        except MissingExtraError:
            raise
        except Exception as error:  # noqa: BLE001 - drivers and foreign code may raise anything
            if type(error).__name__ == "DependencyNotInstalled":
                raise MissingExtraError(f"what draws {spec.id}", extra="rl") from None
            frame = type(error).__name__
    if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.dtype != np.uint8:
        raise ConfigurationError(
            f"{spec.id} cannot render to an array here, it gave {_named(frame)}"
        )
    if frame.min() == frame.max():
        raise ConfigurationError(f"{spec.id} cannot render to an array here, it gave one colour")
    return env


def _choose_backend(env_id: str) -> None:
    if "MUJOCO_GL" not in os.environ:
        backend = _mujoco_backend()
        if backend is None:
            raise ConfigurationError(
                f"{env_id} cannot render to an array here: none of {', '.join(_BACKENDS)} works"
            )
        os.environ["MUJOCO_GL"] = backend


def _named(frame: object) -> str:
    return frame if isinstance(frame, str) else type(frame).__name__


@functools.cache
def _mujoco_backend() -> str | None:
    """The first graphics library that draws; a probe that crashes takes only itself down."""
    for backend in _BACKENDS:
        probe = [sys.executable, "-c", _PROBE]
        surroundings = os.environ | {"MUJOCO_GL": backend}
        try:
            done = subprocess.run(  # noqa: S603 - this interpreter, a constant program
                probe, env=surroundings, capture_output=True, timeout=_PROBE_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return backend
    return None
