"""EnvSpec: only valid, canonical environments exist."""

from __future__ import annotations

import math

import pytest

from privfedrl.envs.spec import FAMILIES, EnvSpec
from privfedrl.errors import ConfigurationError


def test_specs_of_the_same_mdp_are_equal_and_hash_alike():
    explicit = EnvSpec("CartPole-v1", params=(("length", 0.5), ("gravity", 9.8)), horizon=500)
    assert explicit == EnvSpec("CartPole-v1")
    assert hash(explicit) == hash(EnvSpec("CartPole-v1"))
    assert explicit.time_limit == 500


def test_order_of_parameters_does_not_matter():
    one = EnvSpec("CartPole-v1", params=(("length", 0.7), ("gravity", 9)))
    two = EnvSpec("CartPole-v1", params=(("gravity", 9.0), ("length", 0.7)))
    assert one == two
    assert one.parameters()["gravity"] == 9.0
    assert one.parameters()["masscart"] == 1.0


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_bound_is_valid_and_every_value_beyond_it_is_refused(family):
    for name, row in FAMILIES[family].parameters.items():
        assert row.low <= row.nominal <= row.high
        for value in (row.low, row.high):
            assert EnvSpec(family, params=((name, value),)).parameters()[name] == value
        for value in (math.nextafter(row.low, -math.inf), math.nextafter(row.high, math.inf)):
            with pytest.raises(ConfigurationError, match=name):
                EnvSpec(family, params=((name, value),))


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "0.5", None])
def test_a_parameter_that_is_not_a_finite_number_is_refused(value):
    with pytest.raises(ConfigurationError, match="length"):
        EnvSpec("CartPole-v1", params=(("length", value),))


def test_unknown_or_repeated_parameters_are_refused():
    with pytest.raises(ConfigurationError, match="known parameters: force_mag, gravity"):
        EnvSpec("CartPole-v1", params=(("friction", 1.0),))
    with pytest.raises(ConfigurationError, match="known parameters: none"):
        EnvSpec("MountainCar-v0", params=(("gravity", 1.0),))
    with pytest.raises(ConfigurationError, match="once"):
        EnvSpec("CartPole-v1", params=(("length", 0.6), ("length", 0.7)))


@pytest.mark.parametrize("horizon", [0, -1, 1.5, True])
def test_a_horizon_below_one_step_is_refused(horizon):
    with pytest.raises(ConfigurationError, match="horizon"):
        EnvSpec("CartPole-v1", horizon=horizon)


@pytest.mark.parametrize("env_id", ["", 3])
def test_an_empty_id_is_refused(env_id):
    with pytest.raises(ConfigurationError, match="id"):
        EnvSpec(env_id)


@pytest.mark.parametrize(
    "spec",
    [
        EnvSpec("CartPole-v1"),
        EnvSpec("CartPole-v1", params=(("length", 0.1 + 0.2), ("tau", 0.03)), horizon=77),
        EnvSpec("Acrobot-v1", horizon=5),
        EnvSpec("MountainCar-v0", observation_noise=0.1, action_delay=2),
        EnvSpec("Hopper-v5", initial_noise=0.05, reward_scale=0.5, reward_offset=-1),
    ],
)
def test_json_round_trip_gives_an_equal_spec(spec):
    again = EnvSpec.from_json(spec.to_json())
    assert again == spec
    assert hash(again) == hash(spec)


def test_json_of_a_spec_without_perturbations_names_none():
    assert (
        EnvSpec("CartPole-v1").to_json() == '{"horizon": null, "id": "CartPole-v1", "params": {}}'
    )


@pytest.mark.parametrize(
    "change",
    [
        {"reward_scale": 0.5},
        {"reward_offset": 0.5},
        {"initial_noise": 0.05},
        {"observation_noise": 0.5},
        {"action_delay": 1},
    ],
)
def test_a_perturbation_makes_another_spec_and_its_absence_does_not(change):
    bare = EnvSpec("CartPole-v1")
    assert EnvSpec("CartPole-v1", **change) != bare
    (name,) = change
    absent = 1.0 if name == "reward_scale" else 0 if name == "action_delay" else -0.0
    assert EnvSpec("CartPole-v1", **{name: absent}) == bare
    assert EnvSpec("CartPole-v1", **{name: absent}).to_json() == bare.to_json()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("reward_scale", [0.0, -1.0, 101.0, math.nan, True, "1"]),
        ("reward_offset", [-101.0, math.inf, None]),
        ("initial_noise", [-0.1, 0.16, math.nan, "0"]),
        ("observation_noise", [-0.1, 10.1, math.inf, False]),
        ("action_delay", [-1, 33, 1.0, True, None, 10**400]),
    ],
)
def test_a_perturbation_out_of_range_is_refused_by_name(name, values):
    for value in values:
        with pytest.raises(ConfigurationError, match=name):
            EnvSpec("CartPole-v1", **{name: value})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"id": "CartPole-v1"}',
        '{"id": "CartPole-v1", "params": [], "horizon": null}',
        '{"id": "CartPole-v1", "params": {}, "horizon": null, "more": 1}',
        '{"id": "CartPole-v1", "params": {"length": NaN}, "horizon": null}',
        '{"id": "CartPole-v1", "params": {}, "horizon": null, "action_delay": "1"}',
        '{"id": "CartPole-v1", "params": {}, "horizon": null, "_": 1}',
        "[" * 100000,
    ],
)
def test_json_of_another_form_is_refused(text):
    with pytest.raises(ConfigurationError):
        EnvSpec.from_json(text)


@pytest.mark.parametrize("params", [{"length": 0.4}, 5, (("length",),), ["length", 0.4]])
def test_parameters_that_are_no_pairs_are_refused(params):
    with pytest.raises(ConfigurationError, match="params must be a tuple of"):
        EnvSpec("CartPole-v1", params=params)
