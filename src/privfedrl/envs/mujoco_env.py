"""MuJoCo environments of Gymnasium: changed physics, starts, and less work per step.

Guarantee: at nominal parameters every observation, reward and end equals Gymnasium's bit for bit.
A simulation that diverges raises; MuJoCo itself would reset the state, say so in a file of the
working directory, and let the trajectory go on as if nothing had happened.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import mujoco
import numpy as np
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv
from gymnasium.envs.mujoco.swimmer_v5 import SwimmerEnv
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv
from numpy.typing import NDArray

__all__ = ["change_physics", "keep_quiet", "make_mujoco", "perturb_start"]


class _Lean:
    """Mixed into an environment class: one call of the engine per step, and a look at its health.

    Left out are the check of the action's shape, the computed time step, and accelerations and
    contact forces that none of these environments shows (``mj_rnePostConstraint``).
    """

    model: Any
    data: Any
    frame_skip: int
    fullpath: str

    def _initialize_simulation(self) -> tuple[Any, Any]:
        """A model of its own, copied from the one that was read from the file once."""
        model = copy.copy(_model(self.fullpath))
        return model, mujoco.MjData(model)

    @property
    def dt(self) -> float:
        """Simulated seconds per step."""
        step: float = self.__dict__.get("_dt") or self.model.opt.timestep * self.frame_skip
        self.__dict__["_dt"] = step
        return step

    def do_simulation(self, ctrl: NDArray[np.floating], n_frames: int) -> None:
        """Advance ``n_frames`` time steps of the engine."""
        data = self.data
        data.ctrl[:] = ctrl
        mujoco.mj_step(self.model, data, nstep=n_frames)
        if any(data.warning.number.tolist()[_DIVERGED]):
            raise FloatingPointError("the simulation diverged")


@functools.cache
def _model(path: str) -> Any:
    return mujoco.MjModel.from_xml_path(path)


# counters of positions, velocities and accelerations that were not finite, or huge
_DIVERGED = slice(int(mujoco.mjtWarning.mjWARN_BADQPOS), int(mujoco.mjtWarning.mjWARN_BADQACC) + 1)
_CLASSES: Mapping[str, type] = MappingProxyType(
    {
        name: type(parent.__name__, (_Lean, parent), {"__module__": __name__})
        for name, parent in (
            ("HalfCheetah-v5", HalfCheetahEnv),
            ("Hopper-v5", HopperEnv),
            ("InvertedPendulum-v5", InvertedPendulumEnv),
            ("Swimmer-v5", SwimmerEnv),
            ("Walker2d-v5", Walker2dEnv),
        )
    }
)


def keep_quiet() -> None:
    """Keep MuJoCo's warnings off standard error and out of a file in the working directory.

    A warning may tell of an agent's states. A handler that the caller has set stays.
    """
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(lambda _message: None)


def make_mujoco(env_id: str, **arguments: Any) -> Any:
    """The environment of a family, without Gymnasium's wrappers."""
    keep_quiet()
    return _CLASSES[env_id](**arguments)


def _scale_mass(model: Any, factor: float) -> None:
    model.body_mass *= factor
    model.body_inertia *= factor


def _scale_friction(model: Any, factor: float) -> None:
    model.geom_friction *= factor


def _scale_damping(model: Any, factor: float) -> None:
    model.dof_damping *= factor


def _scale_gear(model: Any, factor: float) -> None:
    model.actuator_gear *= factor


def _set_gravity(model: Any, value: float) -> None:
    model.opt.gravity[2] = value


def _set_viscosity(model: Any, value: float) -> None:
    model.opt.viscosity = value


_CHANGES: Mapping[str, Callable[[Any, float], None]] = MappingProxyType(
    {
        "damping_factor": _scale_damping,
        "friction_factor": _scale_friction,
        "gear_factor": _scale_gear,
        "gravity": _set_gravity,
        "mass_factor": _scale_mass,
        "viscosity": _set_viscosity,
    }
)


def change_physics(raw: Any, changed: Mapping[str, float]) -> None:
    """Apply the parameters that differ from nominal; what MuJoCo derives from them follows."""
    changes = [(_CHANGES[name], value) for name, value in changed.items() if name in _CHANGES]
    for change, value in changes:
        change(raw.model, value)
    if changes:
        mujoco.mj_setConst(raw.model, raw.data)  # inverse weights that the contact solver uses


def perturb_start(raw: Any, width: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Shift positions and velocities uniformly by up to ``width``; returns what is seen then."""
    shift = rng.uniform(-width, width, size=raw.model.nq + raw.model.nv)
    raw.set_state(raw.data.qpos + shift[: raw.model.nq], raw.data.qvel + shift[raw.model.nq :])
    seen: NDArray[np.float64] = raw._get_obs()
    return seen
