"""Heterogeneous fleets: one level, centred on nominal, always valid."""

from __future__ import annotations

import numpy as np
import pytest

from privfedrl.envs import VARIES, EnvSpec, heterogeneous, nominal
from privfedrl.envs.spec import FAMILIES
from privfedrl.errors import ConfigurationError


def column(fleet, name):
    return np.array([spec.parameters()[name] for spec in fleet])


@pytest.mark.parametrize("family", ["CartPole-v1", "LunarLander-v3", "Acrobot-v1"])
def test_level_zero_gives_identical_nominal_mdps(family):
    assert heterogeneous(family, level=0, agents=4, seed=1) == (EnvSpec(family),) * 4
    assert nominal(family) == EnvSpec(family)


def test_cartpole_at_level_one_half_spans_half_the_length_and_fifteen_percent_gravity():
    fleet = heterogeneous("CartPole-v1", level=0.5, agents=10, seed=3)
    length, gravity = column(fleet, "length") / 0.5, column(fleet, "gravity") / 9.8
    np.testing.assert_allclose([length.min(), length.max(), length.mean()], [0.5, 1.5, 1.0])
    np.testing.assert_allclose([gravity.min(), gravity.max(), gravity.mean()], [0.85, 1.15, 1.0])
    np.testing.assert_allclose(np.diff(np.sort(length)), 1 / 9)
    assert (column(fleet, "force_mag") == 10.0).all()
    assert (column(fleet, "masspole") == 0.1).all()


def test_lunar_lander_turns_gravity_both_ways_and_wind_up():
    fleet = heterogeneous("LunarLander-v3", level=0.8, agents=5, seed=3)
    gravity, wind = column(fleet, "gravity"), column(fleet, "wind_power")
    np.testing.assert_allclose([gravity.min(), gravity.max(), gravity.mean()], [-10.8, -9.2, -10])
    np.testing.assert_allclose([wind.min(), wind.max()], [0.0, 8.0], atol=1e-12)
    np.testing.assert_allclose(column(fleet, "turbulence_power").max(), 0.8)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("agents", [1, 2, 7])
@pytest.mark.parametrize("level", [1e-9, 0.3, 1.0, 1])
def test_every_level_gives_valid_specs(family, agents, level):
    fleet = heterogeneous(family, level=level, agents=agents, seed=0)
    assert len(fleet) == agents
    for name, row in FAMILIES[family].parameters.items():
        values = column(fleet, name)
        assert (values >= row.low).all()
        assert (values <= row.high).all()
        if not row.one_sided:
            np.testing.assert_allclose(values.mean(), row.nominal)


def test_pole_length_stays_above_a_tenth_at_level_one():
    length = column(heterogeneous("CartPole-v1", level=1, agents=20, seed=5), "length")
    np.testing.assert_allclose([length.min() / 0.5, length.max() / 0.5], [0.1, 1.9])


def test_one_cartpole_agent_is_nominal_at_every_level():
    assert heterogeneous("CartPole-v1", level=1, agents=1, seed=9) == (nominal("CartPole-v1"),)


def test_the_seed_deals_the_same_values_to_other_agents():
    first, again, other = (
        heterogeneous("CartPole-v1", level=0.5, agents=10, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    np.testing.assert_array_equal(
        np.sort(column(first, "length")), np.sort(column(other, "length"))
    )


def test_a_family_without_a_table_has_level_zero_only():
    with pytest.raises(ConfigurationError, match="CartPole-v1, HalfCheetah-v5"):
        heterogeneous("MountainCar-v0", level=0.1, agents=2, seed=0)


@pytest.mark.parametrize(
    "change",
    [
        {"level": -0.1},
        {"level": 1.1},
        {"level": float("nan")},
        {"level": True},
        {"agents": 0},
        {"agents": 2.0},
        {"seed": -1},
        {"seed": None},
    ],
)
def test_arguments_out_of_range_are_refused(change):
    arguments = {"level": 0.5, "agents": 3, "seed": 0} | change
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        heterogeneous("CartPole-v1", **arguments)


PINNED = [
    '{"horizon": null, "id": "CartPole-v1", "params": {"gravity": 8.33, "length": 0.75}}',
    '{"horizon": null, "id": "CartPole-v1", "params": {"length": 0.25}}',
    '{"horizon": null, "id": "CartPole-v1", "params": {"gravity": 11.270000000000001}}',
]
OTHERS = ("rewards", "initial-states", "observations", "actions")


def test_what_varies_besides_the_physics_spreads_evenly_and_leaves_the_physics_alone():
    bare = heterogeneous("CartPole-v1", level=0.8, agents=5, seed=4)
    fleet = heterogeneous("CartPole-v1", level=0.8, agents=5, seed=4, varies=("physics", *OTHERS))
    assert [spec.params for spec in fleet] == [spec.params for spec in bare]
    for name, values in (
        ("reward_scale", [0.6, 0.8, 1.0, 1.2, 1.4]),
        ("initial_noise", [0.0, 0.02, 0.04, 0.06, 0.08]),
        ("observation_noise", [0.0, 0.01, 0.02, 0.03, 0.04]),
        ("action_delay", [0, 0, 1, 2, 2]),
    ):
        found = sorted(getattr(spec, name) for spec in fleet)
        np.testing.assert_allclose(found, values, atol=1e-12)
        assert type(found[0]) is type(values[0])
    assert [
        spec.params
        for spec in heterogeneous("CartPole-v1", level=0.8, agents=5, seed=4, varies=OTHERS)
    ] == [()] * 5


def test_perturbations_are_dealt_independently():
    fleet = heterogeneous("CartPole-v1", level=1, agents=30, seed=0, varies=VARIES)
    columns = [
        np.argsort([getattr(spec, name) for spec in fleet])
        for name in ("reward_scale", "initial_noise", "observation_noise")
    ]
    columns.append(np.argsort(column(fleet, "length")))
    for k, left in enumerate(columns):
        for right in columns[:k]:
            assert (left != right).any()


@pytest.mark.parametrize("varies", [(one,) for one in VARIES] + [VARIES])
def test_level_zero_is_nominal_whatever_varies(varies):
    assert (
        heterogeneous("Hopper-v5", level=0, agents=3, seed=0, varies=varies)
        == (nominal("Hopper-v5"),) * 3
    )


def test_the_longest_delay_is_three_steps_times_the_level():
    for level, most in ((0.1, 0), (0.34, 1), (0.5, 2), (1.0, 3)):
        fleet = heterogeneous("LunarLander-v3", level=level, agents=7, seed=0, varies=("actions",))
        assert {spec.action_delay for spec in fleet} == set(range(most + 1))


def test_any_id_can_vary_what_needs_no_knowledge_of_its_state():
    fleet = heterogeneous(
        "MountainCar-v0", level=1, agents=3, seed=0, varies=("rewards", "observations", "actions")
    )
    assert len(set(fleet)) == 3
    for family in ("MountainCar-v0", "LunarLander-v3"):
        with pytest.raises(ConfigurationError, match=f"initial-states for {family}"):
            heterogeneous(family, level=0.5, agents=3, seed=0, varies=("initial-states",))


@pytest.mark.parametrize("varies", [(), ("weather",), ("physics", "physics"), "physics", None])
def test_an_unknown_or_repeated_thing_to_vary_is_refused(varies):
    with pytest.raises(ConfigurationError, match="varies"):
        heterogeneous("CartPole-v1", level=0.5, agents=3, seed=0, varies=varies)


def test_the_fleets_of_shipped_plans_are_what_they_were():
    """Pinned before other things could vary: the runs of published plans depend on these values."""
    fleet = heterogeneous("CartPole-v1", level=0.5, agents=3, seed=1)
    assert [spec.to_json() for spec in fleet] == PINNED
