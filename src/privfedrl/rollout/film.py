"""One episode, seen: frames of an environment while a policy acts in it.

Guarantee: the episode has the physics, rewards, observation noise, action delay and action repeat
of its spec (with a frame of every step that an action is held for), and is deterministic given the
parameters, the spec and the seed. Starts are those of the unperturbed
environment (a frame cannot be drawn from a start that was shifted behind the environment's back).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from privfedrl.envs import EnvSpec
from privfedrl.envs.perturbed import perturbed
from privfedrl.envs.repeated import repeated
from privfedrl.envs.vector_env import Step, row_shares
from privfedrl.errors import ConfigurationError, EnvironmentFault
from privfedrl.rollout.evaluate import Evaluation, evaluate_in
from privfedrl.rollout.policies import MlpPolicy

if TYPE_CHECKING:
    import gymnasium

__all__ = ["Frame", "film"]

Frame = NDArray[np.uint8]  # [height, width, 3]

# pygame draws to memory; its driver for a screen must not be looked for where there is none
_DRIVER = "SDL_VIDEODRIVER"
_SCREENS = (_DRIVER, "DISPLAY", "WAYLAND_DISPLAY")
_MAX_SEED = 2**31


def film(
    policy: MlpPolicy,
    parameters: NDArray[np.floating],
    spec: EnvSpec,
    show: Callable[[Frame, float], None],
    *,
    rng: np.random.Generator | int,
    horizon: int,
    sampled: bool = False,
) -> Evaluation:
    """Roll one episode and hand ``show`` what can be seen at its start and after every step.

    Args:
        show: gets a frame and the frames per second that the environment is meant to be seen at.
        rng, horizon, sampled: as ``evaluate``.
    Raises:
        ConfigurationError: as ``evaluate``; also where the environment cannot be drawn here.
        MissingExtraError: what draws it is not installed.
        EnvironmentFault: the environment failed.
    """
    with _headless(), contextlib.ExitStack() as stack:
        block = repeated(perturbed(_Filmed(spec, show), [spec]), spec.action_repeat)
        stack.callback(block.close)
        return evaluate_in(block, policy, parameters, rng=rng, horizon=horizon, sampled=sampled)


@contextlib.contextmanager
def _headless() -> Iterator[None]:
    """Where there is no screen, pygame gets the driver that needs none while the block lasts."""
    if sys.platform != "linux" or any(name in os.environ for name in _SCREENS):
        yield
        return
    os.environ[_DRIVER] = "dummy"
    try:
        yield
    finally:
        os.environ.pop(_DRIVER, None)


class _Filmed:
    """One row that shows a frame of every state it is in; satisfies ``VectorEnv``."""

    num_envs = 1

    def __init__(self, spec: EnvSpec, show: Callable[[Frame, float], None]) -> None:
        from privfedrl.envs.rendering import render_env

        self.failures: dict[int, EnvironmentFault] = {}
        self._env: gymnasium.Env = render_env(spec)
        from gymnasium import spaces  # after render_env, which says what to install without it

        self._id, self._show = spec.id, show
        self._rate = float(self._env.metadata.get("render_fps") or 30)
        seen, space = self._env.observation_space, self._env.action_space
        self.observation_size = spaces.flatdim(seen)
        self._flatten = lambda observation: spaces.flatten(seen, observation)
        self.action_kind: Literal["discrete", "continuous"] = "discrete"
        self.num_actions, self.action_size = 0, 0
        self.action_low = self.action_high = np.zeros(0, dtype=np.float32)
        if isinstance(space, spaces.Discrete):
            self.num_actions, self._first = int(space.n), int(space.start)
        elif isinstance(space, spaces.Box):
            self.action_kind, self.action_size = "continuous", int(np.prod(space.shape))
            self.action_low = space.low.astype(np.float32).ravel()
            self.action_high = space.high.astype(np.float32).ravel()
        else:
            raise ConfigurationError(f"action space of {spec.id} must be Discrete or Box")

    def reset(
        self, rng: np.random.Generator | Sequence[np.random.Generator]
    ) -> NDArray[np.float32]:
        """Start the episode with a seed drawn as ``GymnasiumEnv`` draws the first row's."""
        ((generator, _rows),) = row_shares(rng, 1)
        self.failures.clear()
        self._ended = np.zeros((2, 1), dtype=np.bool_)
        seed = int(generator.integers(_MAX_SEED, size=1)[0])
        observation, _info = self._foreign(lambda: self._env.reset(seed=seed))
        return self._seen(observation)

    def step(self, actions: NDArray[np.int64] | NDArray[np.float32]) -> Step:
        """Let the row act; see ``VectorEnv.step``."""
        observation, reward, terminated, truncated, _info = self._foreign(
            lambda: self._env.step(self._prepared(actions[0]))
        )
        self._ended = np.array([[bool(terminated)], [bool(truncated) and not terminated]])
        rewards = np.array([reward], dtype=np.float32)
        return self._seen(observation), rewards, self._ended[0], self._ended[1]

    def select(self, rows: NDArray[np.intp]) -> None:
        """There is one row; nobody asks for none."""

    def close(self) -> None:
        """Close the environment; what it raises by then is too late to matter."""
        with contextlib.suppress(Exception):
            self._env.close()

    def _prepared(self, action: Any) -> Any:
        space = self._env.action_space
        if self.action_kind == "discrete":
            return self._first + int(action)
        clipped = np.clip(action, self.action_low, self.action_high)
        return clipped.reshape(space.shape or ()).astype(space.dtype)

    def _seen(self, observation: Any) -> NDArray[np.float32]:
        """Show the frame of now, and return what the policy sees."""
        self._show(self._foreign(self._env.render), self._rate)
        flat = np.asarray(self._flatten(observation), dtype=np.float32).reshape(1, -1)
        if flat.shape != (1, self.observation_size) or not np.isfinite(flat).all():
            raise EnvironmentFault(f"{self._id}: observation must be finite, of its declared size")
        return flat

    def _foreign(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:  # noqa: BLE001 - foreign code may raise anything
            name = type(error).__name__
            raise EnvironmentFault(f"{self._id}: the environment raised {name}") from None
