"""Any registered Gymnasium environment as a block of rows.

Guarantee: what reaches the rollout has the declared shape and is finite; an environment that
raises or lies becomes an ``EnvironmentFault`` that names the id and the rule, never a value seen.

Gymnasium's own vector environments are not used: without autoreset they refuse to step a block in
which one row has ended, and with it they would start a second trajectory in that row. Here only
rows that still run are stepped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from privfedrl.envs.gymnasium_make import make_scalar, start_shift
from privfedrl.envs.spec import EnvSpec
from privfedrl.envs.vector_env import Step, row_shares
from privfedrl.errors import ConfigurationError, EnvironmentFault

if TYPE_CHECKING:
    import gymnasium

__all__ = ["MAX_OBSERVATION", "GymnasiumEnv"]

#: beyond this a float32 forward pass may overflow; no working environment comes near it
MAX_OBSERVATION = 1e20
_MAX_SEED = 2**31
#: what foreign code may raise without ending this process; an interrupt is not the environment's
_FOREIGN = (Exception, SystemExit)


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
        self._envs: list[gymnasium.Env] = []
        try:
            for _ in range(num_envs):
                env, self._limit = make_scalar(spec)
                self._envs.append(env)
            self._start_shift = start_shift(spec)
            self._observation_space = self._envs[0].observation_space
            self._action_space = self._envs[0].action_space
            self.observation_size, self._flatten = _observation_reader(
                spec.id, self._observation_space
            )
            self._read_action_space()
        except BaseException:
            self.close()
            raise
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
        # observation and reward as returned, not yet looked at
        self._seen = np.zeros((n, self.observation_size + 1))
        self._live, self._some_ended = list(range(n)), False
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
        self._steps = 0
        self._allocate(list(range(self.num_envs)))
        for row, seed in enumerate(seeds):
            self._row_alone("reset", self._reset_row, row, seed)
        self._take()
        return self._observations

    def step(self, actions: NDArray[np.int64] | NDArray[np.float32]) -> Step:
        """Step the rows that have not ended. See ``VectorEnv.step``."""
        prepared = self._prepare(actions)
        self._steps += 1
        for row in self._live:
            self._row_alone("step", self._step_row, row, prepared[row])
        self._take()
        if self._limit is not None and self._steps >= self._limit:
            np.logical_not(self._terminated, out=self._truncated)
            self._live = []
        return self._observations, self._rewards, self._terminated, self._truncated

    def _reset_row(self, row: int, seed: int) -> None:
        env = self._envs[self._numbers[row]]
        observation, _info = env.reset(seed=seed)
        if (
            env.observation_space != self._observation_space
            or env.action_space != self._action_space
        ):
            raise EnvironmentFault(f"{self._id}: spaces changed after construction")
        if self._start_shift is not None:
            observation = self._start_shift(env, np.random.default_rng([seed, 1]))
        self._seen[row, :-1] = self._flat(observation)

    def _step_row(self, row: int, action: Any) -> None:
        result = self._envs[self._numbers[row]].step(action)
        if not isinstance(result, tuple) or len(result) != 5:
            raise EnvironmentFault(f"{self._id}: step must return five values")
        observation, reward, terminated, truncated, _info = result
        seen = self._seen[row]
        seen[:-1], seen[-1] = self._flat(observation), float(reward)
        if terminated or truncated:
            self._terminated[row], self._truncated[row] = bool(terminated), not terminated
            self._some_ended = True

    def _row_alone(self, verb: str, act: Callable[[int, Any], None], row: int, value: Any) -> None:
        """Run foreign code for one row; whatever it raises ends that row, without its message."""
        try:
            act(row, value)
            return
        except EnvironmentFault as error:
            fault = error
        except _FOREIGN as error:
            fault = EnvironmentFault(f"{self._id}: {verb} raised {type(error).__name__}")
        self._fail(row, fault)

    def _fail(self, row: int, fault: EnvironmentFault) -> None:
        self.failures[self._numbers[row]] = fault
        self._terminated[row], self._truncated[row] = False, True
        self._some_ended = True

    def _take(self) -> None:
        """Show what was returned, where it is finite; other rows end and show nothing new."""
        # one look at all of it: NaN makes both comparisons false
        if not (self._seen.max() <= MAX_OBSERVATION and self._seen.min() >= -MAX_OBSERVATION):
            for row in np.flatnonzero(
                ~(np.abs(self._seen) <= MAX_OBSERVATION).all(axis=1)
            ).tolist():
                shown, paid = self._seen[row, :-1], self._seen[row, -1:]
                what = "reward" if (np.abs(shown) <= MAX_OBSERVATION).all() else "observation"
                text = f"{self._id}: {what} is not finite (or beyond 1e20)"
                shown[:], paid[:] = self._observations[row], 0.0
                self._fail(row, EnvironmentFault(text))
        self._observations[...], self._rewards[:] = self._seen[:, :-1], self._seen[:, -1]
        if self._some_ended:
            self._live = np.flatnonzero(~(self._terminated | self._truncated)).tolist()
            self._some_ended = False
        self._refuse_if_none_is_left()

    def _refuse_if_none_is_left(self) -> None:
        if len(self.failures) == self.num_envs:
            raise next(iter(self.failures.values()))

    def select(self, rows: NDArray[np.intp]) -> None:
        """Keep only these rows until the next reset."""
        ended = self._terminated[rows], self._truncated[rows]
        observations = self._observations[rows]
        self._allocate([self._numbers[row] for row in rows])
        self._terminated[:], self._truncated[:] = ended
        self._observations[...] = self._seen[:, :-1] = observations
        self._live = np.flatnonzero(~(self._terminated | self._truncated)).tolist()

    def close(self) -> None:
        """Close every environment; what one raises by then is too late to matter, and dropped."""
        for env in self._envs:
            with contextlib.suppress(*_FOREIGN):
                env.close()

    def _prepare(self, actions: NDArray[np.int64] | NDArray[np.float32]) -> Sequence[Any]:
        """Actions as the environment wants them, inside the public bounds."""
        if self.action_kind == "discrete":
            return (np.asarray(actions, dtype=np.int64) + self._first_action).tolist()
        clipped = np.clip(actions, self.action_low, self.action_high)
        shaped = clipped.reshape(-1, *(self._action_space.shape or ()))
        return list(shaped.astype(self._action_space.dtype))

    def _flat(self, observation: Any) -> NDArray[np.floating]:
        flat = self._flatten(observation)
        if flat.shape != (self.observation_size,):
            raise EnvironmentFault(
                f"{self._id}: observation must have the declared size {self.observation_size}, "
                f"got {flat.size}"
            )
        return flat


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

    def flatten(observation: Any) -> NDArray[np.floating]:
        if not space.contains(observation):  # an index of -1 would be read as the last one
            raise TypeError("not in the declared space")
        return np.asarray(spaces.flatten(space, observation))

    return spaces.flatdim(space), flatten
