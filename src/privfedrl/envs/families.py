"""The families of environments: parameters, nominal values, ranges, spreads.

Guarantee: the tables are the one place where these numbers are written; every nominal value lies
in its range, and every value of a range gives a working environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["FAMILIES", "Family", "Parameter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One physical parameter of a family.

    Attributes:
        nominal: the value of the unmodified environment.
        low, high: closed range of valid values.
        spread: half-range of a heterogeneous fleet at level 1, in the parameter's own unit.
        one_sided: the fleet covers [nominal, nominal + spread] instead of nominal +- spread.
    """

    nominal: float
    low: float
    high: float
    spread: float = 0.0
    one_sided: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What is known of one environment id.

    Attributes:
        parameters: its physical parameters by name.
        horizon: its own time limit in steps.
        start_limit: widest ``initial_noise``, chosen so that no start is beyond an end; 0 where
            starts cannot be shifted.
        start_spread, observation_spread: most ``initial_noise`` and ``observation_noise`` of a
            heterogeneous fleet at level 1.
    """

    parameters: Mapping[str, Parameter]
    horizon: int
    start_limit: float = 0.0
    start_spread: float = 0.0
    observation_spread: float = 0.05


_LUNAR_LANDER = Family(
    parameters=MappingProxyType(
        {
            # Box2D asserts -12 < gravity < 0
            "gravity": Parameter(nominal=-10.0, low=-11.99, high=-0.01, spread=1.0),
            # 0 means no wind; at level 1 half of the maxima (20, 2) that Gymnasium recommends
            "turbulence_power": Parameter(
                nominal=0.0, low=0.0, high=2.0, spread=1.0, one_sided=True
            ),
            "wind_power": Parameter(nominal=0.0, low=0.0, high=20.0, spread=10.0, one_sided=True),
        }
    ),
    horizon=1000,
)


def _factor(spread: float) -> Parameter:
    """A multiple of what the model's file says."""
    return Parameter(nominal=1.0, low=0.2, high=5.0, spread=spread)


def _mujoco(
    *, reset_noise: float, start_limit: float = 0.1, **parameters: Parameter | None
) -> Family:
    """A family whose model is changed after it is read; None takes a common parameter out."""
    common: dict[str, Parameter | None] = {
        "damping_factor": _factor(0.5),
        "friction_factor": _factor(0.5),
        "gear_factor": _factor(0.2),
        "gravity": Parameter(nominal=-9.81, low=-30.0, high=-0.1, spread=0.2 * 9.81),
        "mass_factor": _factor(0.3),
        "reset_noise_scale": Parameter(nominal=reset_noise, low=0.0, high=0.2),
    }
    rows = {name: row for name, row in (common | parameters).items() if row is not None}
    return Family(
        parameters=MappingProxyType(dict(sorted(rows.items()))),
        horizon=1000,
        start_limit=start_limit,
        start_spread=start_limit / 2,
    )


_MUJOCO: dict[str, Family] = {
    "HalfCheetah-v5": _mujoco(reset_noise=0.1, start_limit=0.5),
    "Hopper-v5": _mujoco(reset_noise=5e-3),
    # nothing touches the ground here
    "InvertedPendulum-v5": _mujoco(reset_noise=0.01, friction_factor=None),
    # swims in a plane: no weight, no joint damping, no contacts
    "Swimmer-v5": _mujoco(
        reset_noise=0.1,
        start_limit=0.5,
        damping_factor=None,
        friction_factor=None,
        gravity=None,
        viscosity=Parameter(nominal=0.1, low=0.02, high=0.5, spread=0.05),
    ),
    "Walker2d-v5": _mujoco(reset_noise=5e-3),
}

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "CartPole-v1": Family(
            parameters=MappingProxyType(
                {
                    "force_mag": Parameter(nominal=10.0, low=0.1, high=100.0),
                    "gravity": Parameter(nominal=9.8, low=0.1, high=50.0, spread=0.3 * 9.8),
                    # half the pole's length; factor 0.1 .. 1.9 at level 1
                    "length": Parameter(nominal=0.5, low=0.05, high=10.0, spread=0.5),
                    "masscart": Parameter(nominal=1.0, low=0.01, high=100.0),
                    "masspole": Parameter(nominal=0.1, low=0.001, high=100.0),
                    "tau": Parameter(nominal=0.02, low=0.001, high=0.1),
                }
            ),
            horizon=500,
            start_limit=0.15,
            start_spread=0.1,
        ),
        "Acrobot-v1": Family(
            # LINK_LENGTH_2 is absent: Gymnasium draws it and computes nothing with it. Ranges are
            # narrow because a Runge-Kutta step of 0.2 s explodes beyond them: an angle then leaves
            # [-pi, pi] by millions of turns, which Gymnasium takes off one by one
            parameters=MappingProxyType(
                {
                    "LINK_COM_POS_1": Parameter(nominal=0.5, low=0.3, high=0.75),
                    "LINK_COM_POS_2": Parameter(nominal=0.5, low=0.3, high=0.75),
                    "LINK_LENGTH_1": Parameter(nominal=1.0, low=0.6, high=1.5, spread=0.3),
                    "LINK_MASS_1": Parameter(nominal=1.0, low=0.6, high=1.5, spread=0.3),
                    "LINK_MASS_2": Parameter(nominal=1.0, low=0.6, high=1.5, spread=0.3),
                    "LINK_MOI": Parameter(nominal=1.0, low=0.8, high=2.0),
                    "dt": Parameter(nominal=0.2, low=0.01, high=0.2),
                    "max_torque": Parameter(nominal=1.0, low=0.1, high=10.0),
                }
            ),
            horizon=500,
            start_limit=1.0,
            start_spread=0.5,
        ),
        "LunarLander-v3": _LUNAR_LANDER,
        "LunarLanderContinuous-v3": _LUNAR_LANDER,
        "Pendulum-v1": Family(
            parameters=MappingProxyType(
                {
                    "g": Parameter(nominal=10.0, low=0.1, high=50.0, spread=3.0),
                    "l": Parameter(nominal=1.0, low=0.1, high=10.0, spread=0.5),
                    "m": Parameter(nominal=1.0, low=0.1, high=10.0),
                }
            ),
            horizon=200,
            start_limit=1.0,
            start_spread=0.5,
        ),
    }
    | _MUJOCO
)
