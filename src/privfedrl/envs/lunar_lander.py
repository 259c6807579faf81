"""Gymnasium's LunarLander with the same numbers and less work around them.

Guarantee: seeded alike and given the same actions, every observation, reward and end equals
Gymnasium's bit for bit. Only ``step`` differs: bodies are read once, scalars are Python floats,
random numbers come without their wrapper, engine particles (a decoration) are never made.

Source: gymnasium.envs.box2d.lunar_lander, whose order of operations is kept; numbers without a
name there have none here.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

with warnings.catch_warnings():
    # Box2D warns on import, and crashes the process if that is made an error
    warnings.filterwarnings("ignore", "builtin type [Ss]wig", DeprecationWarning)
    from gymnasium.envs.box2d import lunar_lander
    from gymnasium.envs.box2d.lunar_lander import (
        FPS,
        LEG_DOWN,
        MAIN_ENGINE_POWER,
        MAIN_ENGINE_Y_LOCATION,
        SCALE,
        SIDE_ENGINE_AWAY,
        SIDE_ENGINE_HEIGHT,
        SIDE_ENGINE_POWER,
        VIEWPORT_H,
        VIEWPORT_W,
    )

__all__ = ["LunarLander"]

_HALF_WIDTH = VIEWPORT_W / SCALE / 2
_HALF_HEIGHT = VIEWPORT_H / SCALE / 2


class LunarLander(lunar_lander.LunarLander):
    """LunarLander-v3 and LunarLanderContinuous-v3 without rendering."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One fiftieth of a second."""
        lander: Any = self.lander
        if self.enable_wind and not (self.legs[0].ground_contact or self.legs[1].ground_contact):
            self._blow(lander)
        main, side, direction = self._throttle(action)
        angle, position = lander.angle, lander.position
        tip = (math.sin(angle), math.cos(angle))
        draw = self.np_random.random
        noise = ((-1.0 + 2.0 * draw()) / SCALE, (-1.0 + 2.0 * draw()) / SCALE)
        if main:
            _push_main(lander, position, tip, noise, main)
        if side:
            _push_side(lander, position, tip, noise, side, direction)
        self.world.Step(1.0 / FPS, 6 * 30, 2 * 30)
        return self._result(lander, main, side)

    def _blow(self, lander: Any) -> None:
        """Wind and turbulence, two never periodic functions of their own clocks."""
        wind, turbulence = _gust(self.wind_idx), _gust(self.torque_idx)
        self.wind_idx += 1
        self.torque_idx += 1
        lander.ApplyForceToCenter((wind * self.wind_power, 0.0), True)
        lander.ApplyTorque(turbulence * self.turbulence_power, True)

    def _throttle(self, action: Any) -> tuple[float, float, float]:
        """Power of the main and of the side engine, and the side's direction; 0 is off."""
        if not self.continuous:
            if action not in (0, 1, 2, 3):
                raise ValueError("action is not in the declared space")
            return float(action == 2), float(action in (1, 3)), action - 2
        main, side = (min(max(float(value), -1.0), 1.0) for value in action)
        main_power = (main + 1.0) * 0.5 if main > 0.0 else 0.0
        side_power = abs(side) if abs(side) > 0.5 else 0.0
        return main_power, side_power, math.copysign(1.0, side)

    def _result(
        self, lander: Any, main: float, side: float
    ) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Observation, reward and end, once the world has moved."""
        position, velocity, angle = lander.position, lander.linearVelocity, lander.angle
        x = (position.x - _HALF_WIDTH) / _HALF_WIDTH
        y = (position.y - (self.helipad_y + LEG_DOWN / SCALE)) / _HALF_HEIGHT
        rate_x, rate_y = velocity.x * _HALF_WIDTH / FPS, velocity.y * _HALF_HEIGHT / FPS
        left, right = (1.0 if leg.ground_contact else 0.0 for leg in self.legs)
        shaping = (
            -100 * math.sqrt(x * x + y * y)
            - 100 * math.sqrt(rate_x * rate_x + rate_y * rate_y)
            - 100 * abs(angle)
            + 10 * left
            + 10 * right
        )
        reward = 0.0 if self.prev_shaping is None else shaping - self.prev_shaping
        self.prev_shaping = shaping
        reward -= main * 0.30
        reward -= side * 0.03
        terminated = False
        if self.game_over or abs(x) >= 1.0:
            terminated, reward = True, -100.0
        if not lander.awake:
            terminated, reward = True, +100.0
        state = (x, y, rate_x, rate_y, angle, 20.0 * lander.angularVelocity / FPS, left, right)
        return np.array(state, dtype=np.float32), reward, terminated, False, {}


def _gust(clock: Any) -> float:
    return math.tanh(math.sin(0.02 * clock) + (math.sin(math.pi * 0.01 * clock)))


def _push_main(
    lander: Any, position: Any, tip: tuple[float, float], noise: tuple[float, float], power: float
) -> None:
    reach = MAIN_ENGINE_Y_LOCATION / SCALE + 2 * noise[0]
    ox = tip[0] * reach + -tip[1] * noise[1]
    oy = -tip[1] * reach - tip[0] * noise[1]
    lander.ApplyLinearImpulse(
        (-ox * MAIN_ENGINE_POWER * power, -oy * MAIN_ENGINE_POWER * power),
        (position[0] + ox, position[1] + oy),
        True,
    )


def _push_side(
    lander: Any,
    position: Any,
    tip: tuple[float, float],
    noise: tuple[float, float],
    power: float,
    direction: float,
) -> None:
    reach = 3 * noise[1] + direction * SIDE_ENGINE_AWAY / SCALE
    ox = tip[0] * noise[0] + -tip[1] * reach
    oy = -tip[1] * noise[0] - tip[0] * reach
    lander.ApplyLinearImpulse(
        (-ox * SIDE_ENGINE_POWER * power, -oy * SIDE_ENGINE_POWER * power),
        (
            position[0] + ox - tip[0] * 17 / SCALE,  # 17 as in Gymnasium, which says why
            position[1] + oy + tip[1] * SIDE_ENGINE_HEIGHT / SCALE,
        ),
        True,
    )
