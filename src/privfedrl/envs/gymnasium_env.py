"""Any registered Gymnasium environment as a block of rows.

Guarantee: what reaches the rollout has the declared shape and is finite; an environment that
raises or lies becomes an ``EnvironmentFault`` that names the id and the rule, never a value seen.

Gymnasium's own vector environments are not used: without autoreset they refuse to step a block in
which one row has ended, and with it they would start a second trajectory in that row. Here only
rows that still run are stepped.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from privfedrl.envs.spec import EnvSpec
from privfedrl.envs.vector_env import Step, row_shares
from privfedrl.errors import ConfigurationError, EnvironmentFault, MissingExtraError

if TYPE_CHECKING:
    import gymnasium

__all__ = ["MAX_OBSERVATION", "GymnasiumEnv"]

#: beyond this a float32 forward pass may overflow; no working environment comes near it
MAX_OBSERVATION = 1e20
_MAX_SEED = 2**31

Result = TypeVar("Result")
Params = Mapping[str, float]


def _lunar_lander_kwargs(params: Params) -> dict[str, Any]:
    windy = params["wind_power"] > 0 or params["turbulence_power"] > 0
    return {"gravity": params["gravity"], "enable_wind": windy} | (
        {"wind_power": params["wind_power"], "turbulence_power": params["turbulence_power"]}
        if windy
        else {}
    )


def _cartpole_attributes(params: Params) -> dict[str, float]:
    # Gymnasium caches these two at construction; changed masses would silently not count
    return dict(params) | {
        "total_mass": params["masspole"] + params["masscart"],
        "polemass_length": params["masspole"] * params["length"],
    }


def _nothing(_params: Params) -> dict[str, Any]:
    return {}


# id -> (constructor arguments, attributes set afterwards)
_PARAMETER_RULES: Mapping[
    str, tuple[Callable[[Params], dict[str, Any]], Callable[[Params], dict[str, Any]]]
] = MappingProxyType(
    {
        "CartPole-v1": (_nothing, _cartpole_attributes),
        "LunarLander-v3": (_lunar_lander_kwargs, _nothing),
        "LunarLanderContinuous-v3": (_lunar_lander_kwargs, _nothing),
        "Pendulum-v1": (lambda params: {"g": params["g"]}, dict),
    }
)


class GymnasiumEnv:
    """``num_envs`` copies of one registered environment; satisfies ``VectorEnv``.

    Observations of any flattenable space become flat float32. Actions: Discrete (also with a start
    other than 0), or Box, clipped to its bounds.

    Raises:
        ConfigurationError: id unknown, num_envs below 1, action space neither Discrete nor Box,
            observation space that cannot be flattened.
        MissingExtraError: Gymnasium, or what the environment needs, is not installed.
        EnvironmentFault: the constructor raised.
    """

    def __init__(self, spec: EnvSpec, num_envs: int) -> None:
        if isinstance(num_envs, bool) or num_envs < 1:
            raise ConfigurationError(f"num_envs must be an integer >= 1, got {num_envs!r}")
        self.num_envs = num_envs
        self._id = spec.id
        self._envs = [_make(spec) for _ in range(num_envs)]
        self._observation_space = self._envs[0].observation_space
        self._action_space = self._envs[0].action_space
        self.observation_size, self._flatten = _observation_reader(spec.id, self._observation_space)
        self._read_action_space()
        self.failures: dict[int, EnvironmentFault] = {}
        self._allocate(list(range(num_envs)))

    def _read_action_space(self) -> None:
        """Kind, size and public bounds of actions."""
        from gymnasium import spaces

        space = self._action_space
        self.action_kind: Literal["discrete", "continuous"] = "discrete"
        self.num_actions, self.action_size, self._first_action = 0, 0, 0
        self.action_low = self.action_high = np.zeros(0, dtype=np.float32)
        if isinstance(space, spaces.Discrete):
            self.num_actions, self._first_action = int(space.n), int(space.start)
        elif isinstance(space, spaces.Box) and space.dtype.kind == "f":
            self.action_kind = "continuous"
            self.action_size = int(np.prod(space.shape))
            self.action_low = space.low.astype(np.float32).ravel()
            self.action_high = space.high.astype(np.float32).ravel()
        else:
            raise ConfigurationError(
                f"action space of {self._id} must be Discrete or a float Box, "
                f"got {type(space).__name__}"
            )

    def _allocate(self, numbers: list[int]) -> None:
        """Room for the rows with these numbers, as counted at the reset."""
        n = len(numbers)
        self._numbers = numbers
        self._observations = np.zeros((n, self.observation_size), dtype=np.float32)
        self._rewards = np.zeros(n, dtype=np.float32)
        self._terminated = np.zeros(n, dtype=np.bool_)
        self._truncated = np.zeros(n, dtype=np.bool_)

    def reset(
        self, rng: np.random.Generator | Sequence[np.random.Generator]
    ) -> NDArray[np.float32]:
        """Reset every environment with a seed drawn from its share's generator."""
        seeds = [
            int(seed)
            for one, rows in row_shares(rng, self.num_envs)
            for seed in one.integers(_MAX_SEED, size=rows)
        ]
        self.failures.clear()
        self._allocate(list(range(self.num_envs)))
        for row, seed in enumerate(seeds):
            with self._row_alone(row):
                self._reset_row(row, seed)
        self._refuse_if_none_is_left()
        return self._observations

    def step(self, actions: NDArray[np.int64] | NDArray[np.float32]) -> Step:
        """Step the rows that have not ended. See ``VectorEnv.step``."""
        prepared = self._prepare(actions)
        for row in np.flatnonzero(~(self._terminated | self._truncated)).tolist():
            with self._row_alone(row):
                self._step_row(row, prepared[row])
        self._refuse_if_none_is_left()
        return self._observations, self._rewards, self._terminated, self._truncated

    def _reset_row(self, row: int, seed: int) -> None:
        env = self._envs[self._numbers[row]]
        observation, _info = self._call("reset", env.reset, seed=seed)
        if (
            env.observation_space != self._observation_space
            or env.action_space != self._action_space
        ):
            raise EnvironmentFault(f"{self._id}: spaces changed after construction")
        self._read(row, observation)

    def _step_row(self, row: int, action: Any) -> None:
        result = self._call("step", self._envs[self._numbers[row]].step, action)
        if not isinstance(result, tuple) or len(result) != 5:
            raise EnvironmentFault(f"{self._id}: step must return five values")
        observation, reward, terminated, truncated, _info = result
        self._read(row, observation)
        self._rewards[row] = self._checked_reward(reward)
        self._terminated[row] = bool(terminated)
        self._truncated[row] = bool(truncated) and not terminated

    @contextlib.contextmanager
    def _row_alone(self, row: int) -> Iterator[None]:
        """A fault ends its own row and leaves what the policy sees of it finite."""
        try:
            yield
            return
        except EnvironmentFault as error:
            fault = error
        except Exception as error:  # noqa: BLE001 - foreign values may raise when they are used
            kind = type(error).__name__
            fault = EnvironmentFault(f"{self._id}: what step or reset returned raised {kind}")
        self.failures[self._numbers[row]] = fault
        self._terminated[row], self._truncated[row] = False, True

    def _refuse_if_none_is_left(self) -> None:
        if len(self.failures) == self.num_envs:
            raise next(iter(self.failures.values()))

    def select(self, rows: NDArray[np.intp]) -> None:
        """Keep only these rows until the next reset."""
        ended = self._terminated[rows], self._truncated[rows]
        observations = self._observations[rows]
        self._allocate([self._numbers[row] for row in rows])
        self._terminated[:], self._truncated[:] = ended
        self._observations[...] = observations

    def close(self) -> None:
        """Close every environment; what one raises by then is too late to matter, and dropped."""
        for env in self._envs:
            with contextlib.suppress(EnvironmentFault):
                self._call("close", env.close)

    def _prepare(self, actions: NDArray[np.int64] | NDArray[np.float32]) -> Sequence[Any]:
        """Actions as the environment wants them, inside the public bounds."""
        if self.action_kind == "discrete":
            return (np.asarray(actions, dtype=np.int64) + self._first_action).tolist()
        clipped = np.clip(actions, self.action_low, self.action_high)
        shaped = clipped.reshape(-1, *(self._action_space.shape or ()))
        return list(shaped.astype(self._action_space.dtype))

    def _call(
        self, verb: str, function: Callable[..., Result], *args: Any, **kwargs: Any
    ) -> Result:
        """Run the environment's code; whatever it raises becomes a fault without its message."""
        try:
            return function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - foreign code may raise anything
            kind = type(error).__name__
        # raised outside the handler: the original may quote an observation, and must not be chained
        raise EnvironmentFault(f"{self._id}: {verb} raised {kind}")

    def _read(self, row: int, observation: Any) -> None:
        flat = self._call("observation", self._flatten, observation)
        if flat.shape != (self.observation_size,):
            raise EnvironmentFault(
                f"{self._id}: observation must have the declared size {self.observation_size}, "
                f"got {flat.size}"
            )
        if not (np.abs(flat) <= MAX_OBSERVATION).all():  # False for NaN too
            raise EnvironmentFault(f"{self._id}: observation is not finite (or beyond 1e20)")
        self._observations[row] = flat

    def _checked_reward(self, reward: Any) -> float:
        value = self._call("reward", float, reward)
        if not abs(value) <= MAX_OBSERVATION:
            raise EnvironmentFault(f"{self._id}: reward is not finite (or beyond 1e20)")
        return value


def _observation_reader(
    env_id: str, space: gymnasium.Space
) -> tuple[int, Callable[[Any], NDArray[np.floating]]]:
    """(size, function to a flat array) of an observation space."""
    from gymnasium import spaces

    if isinstance(space, spaces.Box):
        shape = space.shape

        def flatten_box(observation: Any) -> NDArray[np.floating]:
            array = np.asarray(observation)
            if array.shape != shape or array.dtype.kind not in "fiub":
                raise TypeError("not in the declared space")
            return array.ravel()

        return int(np.prod(shape)), flatten_box
    if not space.is_np_flattenable:
        raise ConfigurationError(
            f"observation space of {env_id} must be flattenable, got {type(space).__name__}"
        )
    return spaces.flatdim(space), lambda value: np.asarray(spaces.flatten(space, value))


def _make(spec: EnvSpec) -> gymnasium.Env:
    """One environment with the spec's parameters and time limit."""
    try:
        import gymnasium
    except ImportError:
        raise MissingExtraError("gymnasium", extra="rl") from None
    arguments, attributes = _PARAMETER_RULES.get(spec.id, (_nothing, _nothing))
    params = spec.parameters()
    options = {} if spec.time_limit is None else {"max_episode_steps": spec.time_limit}
    try:
        with warnings.catch_warnings():
            # SWIG modules (Box2D) warn on import and crash the process if that is made an error
            warnings.filterwarnings("ignore", "builtin type [Ss]wig", DeprecationWarning)
            env = gymnasium.make(spec.id, disable_env_checker=True, **options, **arguments(params))
    except gymnasium.error.DependencyNotInstalled:
        raise MissingExtraError(f"a dependency of {spec.id}", extra="rl") from None
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv, ModuleNotFoundError):
        raise ConfigurationError(f"id must be a registered environment, got {spec.id!r}") from None
    except Exception as error:  # noqa: BLE001 - foreign code may raise anything
        raise EnvironmentFault(f"{spec.id}: constructor raised {type(error).__name__}") from None
    for name, value in attributes(params).items():
        setattr(env.unwrapped, name, value)
    return env
