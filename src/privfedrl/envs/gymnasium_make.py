"""From a spec to one Gymnasium environment with the spec's physics.

Guarantee: what Gymnasium caches at construction is recomputed, so that a changed parameter counts
everywhere or nowhere; at nominal parameters the numbers are those of ``gymnasium.make``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from privfedrl.envs.spec import EnvSpec
from privfedrl.errors import (
    ConfigurationError,
    EnvironmentFault,
    MissingExtraError,
    PrivfedrlError,
)

if TYPE_CHECKING:
    import gymnasium

__all__ = ["MUJOCO", "make_rendering", "make_scalar", "start_shift"]

Params = Mapping[str, float]
_EXTRA_MODULES = frozenset({"Box2D", "gymnasium", "mujoco", "pygame"})
MUJOCO = frozenset(
    {"HalfCheetah-v5", "Hopper-v5", "InvertedPendulum-v5", "Swimmer-v5", "Walker2d-v5"}
)


def _lunar_lander_kwargs(params: Params) -> dict[str, Any]:
    windy = params["wind_power"] > 0 or params["turbulence_power"] > 0
    return {"gravity": params["gravity"], "enable_wind": windy} | (
        {"wind_power": params["wind_power"], "turbulence_power": params["turbulence_power"]}
        if windy
        else {}
    )


def _reset_noise(params: Params) -> dict[str, Any]:
    return {"reset_noise_scale": params["reset_noise_scale"]}


def _acrobot_attributes(params: Params) -> dict[str, Any]:
    torque = params["max_torque"]
    links = {name: value for name, value in params.items() if name != "max_torque"}
    return links | {"AVAIL_TORQUE": [-torque, 0.0, torque]}


def _cartpole_attributes(params: Params) -> dict[str, Any]:
    # Gymnasium caches these two at construction; changed masses would silently not count
    return dict(params) | {
        "total_mass": params["masspole"] + params["masscart"],
        "polemass_length": params["masspole"] * params["length"],
    }


def _nothing(_params: Params) -> dict[str, Any]:
    return {}


Rule = Callable[[Params], dict[str, Any]]

# id -> (constructor arguments, attributes set afterwards); MuJoCo's models change in mujoco_env
_PARAMETER_RULES: Mapping[str, tuple[Rule, Rule]] = MappingProxyType(
    {
        "Acrobot-v1": (_nothing, _acrobot_attributes),
        "CartPole-v1": (_nothing, _cartpole_attributes),
        "LunarLander-v3": (_lunar_lander_kwargs, _nothing),
        "LunarLanderContinuous-v3": (_lunar_lander_kwargs, _nothing),
        "Pendulum-v1": (lambda params: {"g": params["g"]}, dict),
    }
    | dict.fromkeys(MUJOCO, (_reset_noise, _nothing))
)


def make_scalar(spec: EnvSpec) -> tuple[gymnasium.Env, int | None]:
    """One environment, and its time limit in steps if its caller has to keep it.

    Raises:
        ConfigurationError: id unknown.
        MissingExtraError: Gymnasium, or what the environment needs, is not installed.
        EnvironmentFault: the constructor raised.
    """
    if spec.id in _TWINS:
        return _construct(spec, _TWINS[spec.id]), spec.time_limit
    limit = {} if spec.time_limit is None else {"max_episode_steps": spec.time_limit}
    return _without_bookkeeping(_construct(spec, _registered, **limit))


def make_rendering(spec: EnvSpec) -> gymnasium.Env:
    """Gymnasium's environment with the spec's physics, asked for ``rgb_array`` rendering."""
    limit = {} if spec.time_limit is None else {"max_episode_steps": spec.time_limit}
    return _construct(spec, _registered, render_mode="rgb_array", **limit)


def start_shift(spec: EnvSpec) -> Callable[[Any, np.random.Generator], Any] | None:
    """What moves a fresh start by the spec's ``initial_noise`` and shows it, None without noise."""
    if not spec.initial_noise:
        return None
    from privfedrl.envs.mujoco_env import perturb_start

    return lambda env, rng: perturb_start(env.unwrapped, spec.initial_noise, rng)


def _lander_twin(env_id: str, **arguments: Any) -> Any:
    from privfedrl.envs.lunar_lander import LunarLander

    return LunarLander(continuous="Continuous" in env_id, **arguments)


def _mujoco_twin(env_id: str, **arguments: Any) -> Any:
    from privfedrl.envs.mujoco_env import make_mujoco

    return make_mujoco(env_id, **arguments)


# id -> our faster twin of a registered environment
_TWINS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "LunarLander-v3": _lander_twin,
        "LunarLanderContinuous-v3": _lander_twin,
    }
    | dict.fromkeys(MUJOCO, _mujoco_twin)
)


def _registered(env_id: str, **arguments: Any) -> Any:
    import gymnasium

    if env_id in MUJOCO:
        from privfedrl.envs.mujoco_env import keep_quiet

        keep_quiet()
    return gymnasium.make(env_id, disable_env_checker=True, **arguments)


def _without_bookkeeping(env: Any) -> tuple[Any, int | None]:
    """Peel off Gymnasium's step counter and its guard of call order: our rows do both."""
    from gymnasium.wrappers import OrderEnforcing, TimeLimit

    limit = None
    if type(env) is TimeLimit:
        limit, env = int(env._max_episode_steps), env.env
    return (env.env if type(env) is OrderEnforcing else env), limit


def _construct(spec: EnvSpec, maker: Callable[..., Any], **options: Any) -> Any:
    """Make the environment, set its attributes and change its model, errors typed."""
    try:
        import gymnasium
    except ImportError:
        raise MissingExtraError("gymnasium", extra="rl") from None
    arguments, attributes = _PARAMETER_RULES.get(spec.id, (_nothing, _nothing))
    params = spec.parameters()
    try:
        with warnings.catch_warnings():
            # SWIG modules (Box2D) warn on import and crash the process if that is made an error
            warnings.filterwarnings("ignore", "builtin type [Ss]wig", DeprecationWarning)
            env = maker(spec.id, **options, **arguments(params))
    except gymnasium.error.DependencyNotInstalled:
        raise MissingExtraError(f"a dependency of {spec.id}", extra="rl") from None
    except ModuleNotFoundError as error:
        raise _missing(spec.id, error) from None
    except PrivfedrlError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code may raise anything
        unknown = (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv)
        # an id that is none at all is a bare Error
        if isinstance(error, unknown) or type(error) is gymnasium.error.Error:
            raise ConfigurationError(
                f"id must be a registered environment, got {spec.id!r}"
            ) from None
        raise EnvironmentFault(f"{spec.id}: constructor raised {type(error).__name__}") from None
    for name, value in attributes(params).items():
        setattr(env.unwrapped, name, value)
    if spec.id in MUJOCO:
        from privfedrl.envs.mujoco_env import change_physics

        change_physics(env.unwrapped, dict(spec.params))
    return env


def _missing(env_id: str, error: ModuleNotFoundError) -> PrivfedrlError:
    """What to do about a module that cannot be imported: install it, or put it on the path."""
    # Gymnasium hides the name of a module that it was asked to import in the cause
    module = error.name or getattr(error.__cause__, "name", None) or "a module"
    if module.partition(".")[0] in _EXTRA_MODULES:
        return MissingExtraError(f"{module}, which {env_id} needs", extra="rl")
    named = env_id.partition(":")[0] if ":" in env_id else None
    if module == named:
        return ConfigurationError(
            f"id must name a module on the path (PYTHONPATH) before the colon, got {env_id!r}"
        )
    return ConfigurationError(
        f"id must be an environment whose modules are installed, got {env_id!r}, which needs "
        f"{module!r}"
    )
