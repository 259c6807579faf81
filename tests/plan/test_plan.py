"""A plan pins everything, says everything that is wrong with it, and survives the file format."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.encoding.lanes import MAX_LANE_BITS, MIN_LANE_BITS
from privfedrl.errors import ConfigurationError, StorageError
from privfedrl.federation.setup import round_setup
from privfedrl.he.parameter_sets import PARAMETER_SETS
from privfedrl.plan import (
    AdaptiveClip,
    AgentLearner,
    EncodingPlan,
    FederationPlan,
    FleetPlan,
    MeanReturnRelease,
    Plan,
    PolicyPlan,
    PrivacyPlan,
    ProtectionPlan,
    SimulationPlan,
    TrainingPlan,
)
from privfedrl.plan.rules import (
    HE_AGENTS,
    MAX_COMPLETE_AGENTS,
    MAX_CORRELATED_ROUNDS,
    MAX_PAIRWISE_AGENTS,
)
from privfedrl.privacy.correlated import CorrelatedNoise
from privfedrl.secagg.parameters import MAX_CLIENTS, MAX_COMPLETE

EXAMPLES = Path(__file__).parents[2] / "examples" / "plans"
TOML = """
name = "tiny"
[fleet]
environment = "CartPole-v1"
agents = 6
trajectories = 4
horizon = 60
[policy]
observations = 4
actions = 2
hidden = [8]
[federation]
rounds = 3
[privacy]
unit = "trajectory"
max_colluding = 1
epsilon = 5.0
"""


def tiny(**sections: dict[str, Any]) -> Plan:
    """The plan of TOML with some values changed, built without a file."""
    given = {
        "fleet": {
            "environment": "CartPole-v1",
            "agents": 6,
            "trajectories": 4,
            "horizon": 60,
        },
        "policy": {"observations": 4, "actions": 2, "hidden": (8,)},
        "federation": {"rounds": 3},
        "privacy": {"unit": "trajectory", "max_colluding": 1, "epsilon": 5.0},
    }
    kinds = {
        "fleet": FleetPlan,
        "policy": PolicyPlan,
        "federation": FederationPlan,
        "privacy": PrivacyPlan,
        "training": TrainingPlan,
        "encoding": EncodingPlan,
        "protection": ProtectionPlan,
        "simulation": SimulationPlan,
    }
    for section, changes in sections.items():
        given[section] = given.get(section, {}) | changes
    return Plan(name="tiny", **{name: kinds[name](**values) for name, values in given.items()})


# --- the file ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_round_trips_and_keeps_its_promise(path: Path) -> None:
    plan = Plan.from_toml(path)
    again = Plan.from_text(plan.to_toml())
    assert again == plan
    assert again.digest == plan.digest
    assert plan.check().plan_digest == plan.digest.hex()


def test_a_file_and_the_same_values_in_code_are_one_plan() -> None:
    assert Plan.from_text(TOML) == tiny()
    assert Plan.from_text(TOML).digest == tiny().digest


def test_integers_where_a_number_is_meant_do_not_change_the_digest() -> None:
    whole = tiny().replace("privacy", epsilon=5, clip_norm=1)
    assert whole == tiny()
    assert whole.digest == tiny().digest
    assert Plan.from_text(whole.to_toml()).digest == whole.digest


def _finite(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, exclude_min=True)


PRINTABLE = st.text(max_size=20).filter(str.isprintable)


@settings(deadline=None, max_examples=60)
@given(
    name=PRINTABLE,
    environment=PRINTABLE.filter(bool),
    gamma=_finite(0.0, 1.0),
    rate=_finite(0.0, 1e6),
    delta=_finite(0.0, 0.1),
    hidden=st.lists(st.integers(1, 65_536), max_size=4).map(tuple),
    release=st.none()
    | st.builds(
        MeanReturnRelease,
        low=st.floats(-1e9, -1.0),
        high=st.floats(0.0, 1e9),
        weight=st.floats(1e-6, 9.0),
    ),
)
def test_every_valid_plan_survives_being_written_and_read(
    name: str,
    environment: str,
    gamma: float,
    rate: float,
    delta: float,
    hidden: tuple[int, ...],
    release: MeanReturnRelease | None,
) -> None:
    plan = tiny(
        fleet={"environment": environment},
        policy={"hidden": hidden},
        training={"gamma": gamma},
        federation={"learning_rate": rate},
        privacy={"delta": delta, "mean_return": release},
    )
    plan = dataclasses.replace(plan, name=name)
    again = Plan.from_text(plan.to_toml())
    assert again == plan
    assert again.digest == plan.digest


@settings(deadline=None, max_examples=150)
@given(
    st.text(max_size=60) | st.sampled_from(TOML.split("\n")).map(lambda line: line + "\n" + TOML)
)
def test_no_text_raises_anything_but_the_librarys_own_error(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        assert isinstance(Plan.from_text(text), Plan)


@pytest.mark.parametrize(
    "text",
    [
        TOML.replace("agents = 6", "agents = 1" + "0" * 400),
        TOML.replace("agents = 6", "agents = 1" + "0" * 5000),
        TOML.replace("epsilon = 5.0", "epsilon = 1" + "0" * 400),
        TOML.replace("hidden = [8]", "hidden = " + "[" * 100_000),
        TOML.replace("hidden = [8]", "hidden = [9" + "0" * 400 + "]"),
        TOML.replace("epsilon = 5.0", "epsilon = 1979-05-27"),
    ],
    ids=["big-int", "huge-int", "big-float", "deep", "big-width", "date"],
)
def test_absurd_values_are_refused_with_a_message(text: str) -> None:
    with pytest.raises(ConfigurationError):
        Plan.from_text(text)


def test_a_missing_or_binary_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        Plan.from_toml(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StorageError, match="cannot be read"):
        Plan.from_toml(tmp_path / "binary.toml")


def test_all_problems_of_a_file_are_reported_at_once() -> None:
    text = TOML.replace("agents = 6", 'agents = "six"\ncolour = 1').replace("rounds = 3", "")
    with pytest.raises(ConfigurationError) as caught:
        Plan.from_text(text, source="my.toml")
    assert len(caught.value.problems) == 3
    for expected in ("fleet.agents must be int", "fleet.colour is not known", "federation.rounds"):
        assert any(expected in line for line in caught.value.problems)
    assert "my.toml has 3 problems" in str(caught.value)


def test_all_broken_rules_are_reported_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        tiny(
            fleet={"agents": 0},
            training={"gamma": float("nan")},
            privacy={"epsilon": -1.0},
            encoding={"ring_bits": 16},
        )
    for expected in ("fleet.agents", "training.gamma", "privacy.epsilon", "encoding.ring_bits"):
        assert any(line.startswith(expected) for line in caught.value.problems)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('unit = "trajectory"\n', "", "privacy.unit is required and missing"),
        ("max_colluding = 1\n", "", "privacy.max_colluding is required and missing"),
        ('unit = "trajectory"', 'unit = "transition"', "privacy.unit must be one of"),
        ("[policy]", "[polly]", "polly is not known here"),
        ("hidden = [8]", "hidden = [8.5]", "policy.hidden must be a list of integers"),
        ("hidden = [8]", "hidden = 8", "policy.hidden must be a list of integers"),
        ("agents = 6", "agents = true", "fleet.agents must be int"),
        ("agents = 6", "agents = 6.0", "fleet.agents must be int"),
        ("epsilon = 5.0", 'epsilon = "5"', "privacy.epsilon must be float"),
        ("epsilon = 5.0", "mean_return = 3", "privacy.mean_return must be a table"),
        ("epsilon = 5.0", "mean_return = {low = 0}", "privacy.mean_return.high is required"),
        ('name = "tiny"', "name = 3", "name must be str"),
        ('name = "tiny"', 'name = "a"\nname = "b"', "not valid TOML"),
    ],
)
def test_a_malformed_file_names_the_parameter(old: str, new: str, expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Plan.from_text(TOML.replace(old, new))
    assert any(expected in line for line in caught.value.problems)


# --- the rules ---------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("fleet", {"environment": ""}, "fleet.environment"),
    ("fleet", {"environment": "a\x7f"}, "fleet.environment must be printable"),
    ("fleet", {"environment": "\ud800"}, "fleet.environment must be printable"),
    ("fleet", {"agents": 70_000}, "fleet.agents"),
    ("fleet", {"trajectories": 0}, "fleet.trajectories"),
    ("fleet", {"horizon": 0}, "fleet.horizon"),
    ("fleet", {"level": 1.5}, "fleet.level"),
    ("fleet", {"level": NAN}, "fleet.level"),
    ("policy", {"observations": 0}, "policy.observations"),
    ("policy", {"actions": 1}, "policy.actions"),
    ("policy", {"hidden": (8, 0)}, "policy.hidden[1]"),
    ("training", {"gamma": 0.0}, "training.gamma"),
    ("training", {"gamma": INF}, "training.gamma"),
    ("training", {"entropy_weight": -0.1}, "training.entropy_weight"),
    ("training", {"local_steps": 0}, "training.local_steps"),
    ("training", {"local_learning_rate": NAN}, "training.local_learning_rate"),
    ("training", {"truncation": "continue"}, "training.truncation"),
    ("federation", {"rounds": 0}, "federation.rounds"),
    ("federation", {"learning_rate": INF}, "federation.learning_rate"),
    ("federation", {"learning_rate_decay": 1.1}, "federation.learning_rate_decay"),
    ("federation", {"beta1": 1.0}, "federation.beta1"),
    ("federation", {"beta2": NAN}, "federation.beta2"),
    ("federation", {"tau": 0.0}, "federation.tau"),
    ("privacy", {"epsilon": 0.0}, "privacy.epsilon"),
    ("privacy", {"epsilon": NAN}, "privacy.epsilon"),
    ("privacy", {"epsilon": INF}, "privacy.epsilon"),
    ("privacy", {"delta": 0.0}, "privacy.delta"),
    ("privacy", {"delta": 0.5}, "privacy.delta"),
    ("privacy", {"clip_norm": INF}, "privacy.clip_norm"),
    ("privacy", {"clip_norm": 0.0}, "privacy.clip_norm"),
    ("privacy", {"max_colluding": -1}, "privacy.max_colluding"),
    ("privacy", {"max_colluding": 6}, "privacy.max_colluding must be < fleet.agents = 6"),
    ("privacy", {"max_colluding": 3}, "threshold - max_colluding must be >= protection.min_honest"),
    ("privacy", {"max_trajectories_per_unit": 2}, "privacy.max_trajectories_per_unit must be 1"),
    ("privacy", {"unit": "person", "max_trajectories_per_unit": 3}, "must be a multiple"),
    ("privacy", {"unit": "person", "max_trajectories_per_unit": 8}, "must be a multiple"),
    ("privacy", {"unit": "person", "max_trajectories_per_unit": 0}, "max_trajectories_per_unit"),
    ("privacy", {"unit": "person", "max_rounds_per_unit": 0}, "privacy.max_rounds_per_unit"),
    ("privacy", {"max_rounds_per_unit": 2}, "max_rounds_per_unit is for unit 'person'"),
    ("privacy", {"mechanism": "local-skellam"}, "use federation.strategy = 'fedavg'"),
    (
        "privacy",
        {"mechanism": "local-skellam", "unit": "person"},
        "only for them is one step the whole bill",
    ),
    (
        "privacy",
        {"mechanism": "local-skellam", "mean_return": MeanReturnRelease(low=0, high=1)},
        "is not offered with mechanism 'local-skellam'",
    ),
    ("privacy", {"adaptive_clip": AdaptiveClip(low=2.0, high=3.0)}, "low <= privacy.clip_norm"),
    ("privacy", {"adaptive_clip": AdaptiveClip(low=0.0, high=3.0)}, "needs 1e-12 <= low"),
    ("privacy", {"adaptive_clip": AdaptiveClip(low=NAN, high=3.0)}, "needs 1e-12 <= low"),
    ("privacy", {"adaptive_clip": AdaptiveClip(low=0.5, high=INF)}, "needs 1e-12 <= low"),
    (
        "privacy",
        {"adaptive_clip": AdaptiveClip(low=0.5, high=2.0, quantile=1.0)},
        "adaptive_clip.quantile",
    ),
    (
        "privacy",
        {"adaptive_clip": AdaptiveClip(low=0.5, high=2.0, learning_rate=0.0)},
        "adaptive_clip.learning_rate",
    ),
    (
        "privacy",
        {"adaptive_clip": AdaptiveClip(low=0.5, high=2.0, weight=NAN)},
        "adaptive_clip.weight",
    ),
    (
        "privacy",
        {"unit": "agent", "adaptive_clip": AdaptiveClip(low=0.5, high=2.0)},
        "adaptive_clip needs unit 'trajectory' or 'person'",
    ),
    ("privacy", {"clip_norm": 1e-300}, "privacy.clip_norm"),
    ("privacy", {"mean_return": MeanReturnRelease(low=-1e300, high=1.0)}, "at most 1e100"),
    ("simulation", {"persons_per_agent": 3}, "persons_per_agent is for unit 'person'"),
    ("privacy", {"unit": "agent"}, "use federation.strategy = 'fedavg'"),
    ("training", {"local_steps": 2}, "later local iterates depend on earlier trajectories"),
    ("training", {"local_steps": 2}, "federation.strategy = 'fedsgd' sends one gradient"),
    ("privacy", {"mean_return": MeanReturnRelease(low=1.0, high=1.0)}, "low must be < high"),
    ("privacy", {"mean_return": MeanReturnRelease(low=NAN, high=1.0)}, "must be finite"),
    ("privacy", {"mean_return": MeanReturnRelease(low=0, high=1, weight=0)}, "mean_return.weight"),
    ("protection", {"threshold": 3}, "protection.threshold must be >"),
    ("protection", {"threshold": 7}, "protection.threshold must be >"),
    ("protection", {"kind": "none", "threshold": 0}, "protection.threshold"),
    ("protection", {"kind": "none", "threshold": 7}, "protection.threshold"),
    ("protection", {"min_clients": 7}, "protection.min_clients must be <= fleet.agents"),
    ("protection", {"min_honest": 0}, "protection.min_honest"),
    ("protection", {"min_honest": 1}, "protection.min_honest must be >= 2"),
    ("protection", {"min_clients": 1}, "protection.min_clients must be >= 2"),
    ("fleet", {"agents": 1}, "fleet.agents must lie in [2, 65520]"),
    ("protection", {"server": "semi-honest"}, "protection.server is for kind 'pairwise' with more"),
    ("encoding", {"ring_bits": 48}, "encoding.ring_bits"),
    ("encoding", {"resolution": 0}, "encoding.resolution"),
    ("encoding", {"ring_bits": 64, "lane_bits": MIN_LANE_BITS - 1}, "encoding.lane_bits"),
    ("encoding", {"ring_bits": 64, "lane_bits": MAX_LANE_BITS + 1}, "encoding.lane_bits"),
    ("encoding", {"lane_bits": 21}, "encoding.lane_bits packs coordinates into 64-bit words"),
    ("simulation", {"dropouts_per_round": 7}, "simulation.dropouts_per_round"),
    ("simulation", {"evaluation_interval": 0}, "simulation.evaluation_interval"),
    ("simulation", {"evaluation_episodes": 0}, "simulation.evaluation_episodes"),
]


@pytest.mark.parametrize(("section", "changes", "expected"), BROKEN)
def test_a_broken_rule_names_the_parameter(
    section: str, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        tiny(**{section: changes})
    assert any(expected in line for line in caught.value.problems)


@pytest.mark.parametrize(
    ("section", "changes", "expected"),
    [
        ("fleet", {"agents": 6.0}, "fleet.agents must be int"),
        ("fleet", {"agents": "6"}, "fleet.agents must be int"),
        ("fleet", {"agents": True}, "fleet.agents must be int"),
        ("privacy", {"epsilon": "1"}, "privacy.epsilon must be float"),
        ("privacy", {"unit": None}, "privacy.unit must be one of"),
        ("policy", {"hidden": [8]}, "policy.hidden must be a tuple of integers"),
        ("policy", {"hidden": (8.0,)}, "policy.hidden must be a tuple of integers"),
        ("privacy", {"mean_return": 3}, "privacy.mean_return must be MeanReturnRelease"),
        ("federation", {"server_optimizer": "lion"}, "federation.server_optimizer must be one of"),
        ("encoding", {"lane_bits": "auto"}, "encoding.lane_bits must be int"),
        ("encoding", {"lane_bits": 21.0}, "encoding.lane_bits must be int"),
        ("encoding", {"headroom": "best-case"}, "encoding.headroom must be one of"),
    ],
)
def test_a_wrong_type_in_code_is_refused_like_one_in_a_file(
    section: str, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        tiny(**{section: changes})
    assert any(expected in line for line in caught.value.problems)


def test_numpy_floats_are_numbers() -> None:
    assert tiny().replace("privacy", epsilon=np.float64(5.0)).digest == tiny().digest


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"encoding": {"resolution": 2**30}}, "resolution|ring_bits"),
        ({"encoding": {"resolution": 2**15}, "fleet": {"trajectories": 65_536}}, "too narrow"),
        ({"encoding": {"ring_bits": 64, "lane_bits": 16}}, "lane_bits = 16 .* fits has 17 bits"),
        ({"privacy": {"epsilon": 1e-9}}, "epsilon"),
        ({"simulation": {"dropouts_per_round": 3}}, "dropouts_per_round must be <="),
    ],
)
def test_check_refuses_what_cannot_be_kept(changes: dict[str, Any], expected: str) -> None:
    plan = tiny(**changes)
    with pytest.raises(ConfigurationError, match=expected):
        plan.check()


# --- noise that is correlated over rounds -------------------------------------------------------


def correlated(**sections: dict[str, Any]) -> Plan:
    central = {"mechanism": "central-discrete-gaussian", "correlation_bands": 3}
    return tiny(**(sections | {"privacy": central | sections.get("privacy", {})}))


@pytest.mark.parametrize("kind", ["pairwise", "none"])
@pytest.mark.parametrize("bands", [2, 3])
def test_a_plan_may_ask_a_coordinator_that_adds_noise_to_correlate_it(
    bands: int, kind: str
) -> None:
    plan = correlated(privacy={"correlation_bands": bands}, protection={"kind": kind})
    assert Plan.from_text(plan.to_toml()) == plan
    assert plan.check().correlation_bands == bands


def test_fresh_noise_is_the_default_and_leaves_the_digest_as_it_was() -> None:
    assert tiny().privacy.correlation_bands is None
    assert "correlation_bands" not in tiny().to_toml()
    assert tiny().check().correlation_bands is None


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"privacy": {"correlation_bands": 1}}, r"must lie in \[2, 64\], got 1"),
        (
            {"privacy": {"correlation_bands": 65}, "federation": {"rounds": 99}},
            r"must lie in \[2, 64\], got 65",
        ),
        ({"privacy": {"correlation_bands": 4}}, r"must be <= federation\.rounds = 3, got 4"),
        ({"federation": {"rounds": 65_537}}, r"needs federation\.rounds <= 65536"),
        ({"privacy": {"mechanism": "skellam"}}, "agents' shares are fresh; leave it out, or"),
        ({"privacy": {"mechanism": "discrete-gaussian"}}, "needs mechanism 'central-discrete"),
        ({"privacy": {"mechanism": "none"}}, "needs mechanism 'central-discrete-gaussian'"),
        (
            {"privacy": {"unit": "person", "max_trajectories_per_unit": 2}},
            r"needs unit 'trajectory', got 'person'.*\(agents in turn, without it",
        ),
        (
            {"privacy": {"unit": "agent"}, "federation": {"strategy": "fedavg"}},
            "needs unit 'trajectory', got 'agent'",
        ),
        ({"encoding": {"headroom": "rotated"}}, r"needs encoding\.headroom = 'worst-case'"),
        ({"protection": {"kind": "bfv"}}, "key authority keeps nothing.*or use kind 'pairwise'"),
        ({"protection": {"kind": "ckks"}}, "is not offered with"),
    ],
)
def test_correlated_noise_is_refused_where_it_is_unsound_with_what_to_do_instead(
    sections: dict[str, dict[str, Any]], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        correlated(**sections)


def test_rounds_of_a_correlated_run_are_those_that_have_decoder_weights() -> None:
    noise = CorrelatedNoise(bands=2)
    assert noise.decoder_weights(MAX_CORRELATED_ROUNDS).shape == (MAX_CORRELATED_ROUNDS,)
    with pytest.raises(ConfigurationError):
        noise.decoder_weights(MAX_CORRELATED_ROUNDS + 1)
    assert CorrelatedNoise(bands=64).coefficients[-1] > 0


# --- the digest --------------------------------------------------------------------------------

CHANGED: dict[str, dict[str, Any]] = {
    "fleet": {
        "environment": "LunarLander-v3",
        "agents": 7,
        "trajectories": 5,
        "horizon": 61,
        "level": 0.25,
        "varies": ("physics", "rewards"),
        "action_repeat": 2,
    },
    "policy": {
        "observations": 5,
        "actions": 3,
        "action_kind": "continuous",
        "hidden": (8, 8),
        "recurrent": 4,
    },
    "training": {
        "gamma": 0.5,
        "entropy_weight": 0.1,
        "reward_low": -1.0,
        "reward_high": 1.0,
        "step_cost": 0.1,
        "gae_lambda": 0.5,
        "advantage_scale": 0.1,
        "value_scale": 10.0,
        "clip_range": 0.1,
        "target_rounds": 2,
        "exploration_start": 0.5,
        "exploration_end": 0.1,
        "exploration_fraction": 0.25,
        "local_learning_rate": 0.5,
    },
    "federation": {
        "rounds": 4,
        "strategy": "fedavg",
        "server_optimizer": "sgd",
        "learning_rate": 0.5,
        "learning_rate_decay": 0.5,
        "beta1": 0.5,
        "beta2": 0.5,
        "tau": 0.5,
        "bias_correction": False,
        "averaging": 0.5,
    },
    "privacy": {
        "max_colluding": 0,
        "mechanism": "none",
        "epsilon": 4.0,
        "delta": 1e-6,
        "clip_norm": 2.0,
        "mean_return": MeanReturnRelease(low=0.0, high=1.0),
        "adaptive_clip": AdaptiveClip(low=0.5, high=2.0),
    },
    "encoding": {"ring_bits": 64, "resolution": 512, "headroom": "rotated"},
    "protection": {
        "kind": "none",
        "threshold": 5,
        "min_clients": 4,
        "min_honest": 2,
    },
}
ALL_CHANGES = [
    (section, key, value) for section, keys in CHANGED.items() for key, value in keys.items()
]


@pytest.mark.parametrize(("section", "key", "value"), ALL_CHANGES)
def test_the_digest_covers_every_pinned_value(section: str, key: str, value: object) -> None:
    assert tiny().replace(section, **{key: value}).digest != tiny().digest


CRITIC: dict[str, dict[str, Any]] = {
    "training": {"algorithm": "ppo"},
    "policy": {"critic_hidden": (4,)},
}
PPO_INSIDE = {"algorithm": "ppo", "local_learning_rate": 0.01}
LEARNING: dict[str, dict[str, Any]] = CRITIC | {
    "training": PPO_INSIDE,
    "privacy": {"unit": "agent"},
    "federation": {"strategy": "fedavg"},
}
EXPLORING = LEARNING | {"training": PPO_INSIDE | {"local_steps": 2}}
BOUNDED: dict[str, Any] = {"action_kind": "continuous", "action_low": -1.0, "action_high": 1.0}
# what can only be changed where something else is as well
ELSEWHERE: list[tuple[dict[str, dict[str, Any]], str, str, object]] = [
    (CRITIC, "policy", "critic_hidden", (4, 4)),
    ({"policy": BOUNDED}, "policy", "action_low", -2.0),
    ({"policy": BOUNDED}, "policy", "action_high", 2.0),
    ({"policy": BOUNDED}, "policy", "initial_log_std", -1.0),
    (CRITIC, "training", "algorithm", "a2c"),
    (CRITIC, "training", "truncation", "bootstrap"),
    ({"training": {"gamma": 0.5}}, "training", "truncation", "continue"),
    ({"training": {"algorithm": "ppo", "advantages": "returns"}}, "training", "epochs", 3),
    (CRITIC, "training", "epochs", 3),
    ({"training": {"algorithm": "dqn"}}, "training", "replay_rounds", 3),
    (LEARNING, "training", "guidance_weight", 0.1),
    (LEARNING, "training", "local_steps", 2),
    (EXPLORING, "training", "behaviour_mixture", 0.2),
    (LEARNING, "training", "learner", AgentLearner()),
    (CRITIC, "privacy", "critic_clip_norm", 0.5),
]


@pytest.mark.parametrize(("base", "section", "key", "value"), ELSEWHERE)
def test_the_digest_covers_what_needs_another_plan_around_it(
    base: dict[str, dict[str, Any]], section: str, key: str, value: object
) -> None:
    plan = tiny(**base)
    assert plan.replace(section, **{key: value}).digest != plan.digest


LEARNED: dict[str, object] = {
    "minibatch": 64,
    "normalise_advantages": False,
    "normalise_observations": True,
    "target_kl": 0.01,
    "updates_per_step": 0.5,
    "replay_capacity": 1_000,
    "reset_optimiser": False,
}


def test_the_digest_covers_everything_about_a_learner() -> None:
    plan = tiny(**LEARNING).replace("training", learner=AgentLearner())
    found = {
        plan.replace("training", learner=AgentLearner(**{key: value})).digest
        for key, value in LEARNED.items()
    }
    assert len(found | {plan.digest}) == len(LEARNED) + 1
    hidden = [
        tiny(
            **(LEARNING | {"policy": {}})
            | {"training": PPO_INSIDE | {"learner": AgentLearner(private_critic=sizes)}}
        )
        for sizes in ((4,), (5,))
    ]
    assert hidden[0].digest != hidden[1].digest
    names = {field.name for field in dataclasses.fields(AgentLearner)}
    assert names == set(LEARNED) | {"private_critic"}


def test_how_a_critics_advantages_are_found_is_in_the_digest() -> None:
    critic = tiny(**CRITIC)
    returns = tiny(training={"algorithm": "ppo", "advantages": "returns"})
    assert len({critic.digest, returns.digest, tiny().digest}) == 3


def test_the_digest_leaves_out_the_name_and_the_simulation_only() -> None:
    plan = tiny()
    other = dataclasses.replace(plan, name="other").replace(
        "simulation", dropouts_per_round=1, evaluation_interval=7, evaluation_episodes=3
    )
    assert other.digest == plan.digest
    agent = tiny(
        privacy={"unit": "agent"}, federation={"strategy": "fedavg"}, training={"local_steps": 2}
    )
    assert agent.digest not in {
        agent.replace("training", local_steps=3).digest,
        agent.replace("privacy", max_trajectories_per_unit=9).digest,
    }


def test_the_list_of_digest_tests_forgets_no_field() -> None:
    tested = {section: set(keys) for section, keys in CHANGED.items()}
    for _, section, key, _ in ELSEWHERE:
        tested[section].add(key)
    tested["training"] |= {"advantages"}  # comes with or without a critic: a test of its own
    tested["privacy"] |= {"unit", "max_trajectories_per_unit", "max_rounds_per_unit"}
    tested["privacy"] |= {"correlation_bands"}  # central noise only
    tested["encoding"] |= {"lane_bits"}  # needs 64-bit words
    tested["protection"] |= {"parameter_set", "readding"}  # need encryption
    tested["protection"] |= {"server"}  # needs a large fleet: federation/test_sparse_fleets.py
    for section in dataclasses.fields(Plan):
        value = getattr(tiny(), section.name)
        if section.name not in ("name", "simulation"):
            assert {f.name for f in dataclasses.fields(value)} == tested[section.name]
    sets = (None, "bfv-4096-std", "bfv-4096-wide", "bfv-4096-192")
    encrypted = {tiny(protection={"kind": "bfv", "parameter_set": name}).digest for name in sets}
    assert len(encrypted) == len(sets)
    ways = ("key-authority", "auditor", "none")
    read = {tiny(protection={"kind": "bfv", "readding": way}).digest for way in ways}
    assert len(read) == len(ways)
    person = tiny(privacy={"unit": "person", "max_trajectories_per_unit": 2})
    capped = {person.replace("privacy", max_rounds_per_unit=cap).digest for cap in (None, 1, 2)}
    assert len(capped) == 3
    bands = (None, 2, 3)
    mixed = {correlated(privacy={"correlation_bands": count}).digest for count in bands}
    assert len(mixed) == 3
    widths = (None, *range(MIN_LANE_BITS, MAX_LANE_BITS + 1))
    packed = {tiny(encoding={"ring_bits": 64, "lane_bits": bits}).digest for bits in widths}
    assert len(packed) == len(widths)


def test_the_digest_never_changes_between_releases_by_accident() -> None:
    assert tiny().digest.hex().startswith(DIGEST_OF_TINY)


# a change of this value breaks every deployed registry of digests: bump "pfrl-plan/4" with it
DIGEST_OF_TINY = "aa30acb316131143"


# --- the promise -------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["trajectory", "agent"])
@pytest.mark.parametrize("colluding", [1, 2])
def test_every_view_keeps_the_target_and_weaker_adversaries_see_less(
    unit: str, colluding: int
) -> None:
    strategy = "fedsgd" if unit == "trajectory" else "fedavg"
    plan = tiny(
        fleet={"agents": 7},
        privacy={"unit": unit, "max_colluding": colluding},
        federation={"strategy": strategy},
    )
    promise = plan.check()
    views = {view.adversary: view for view in promise.views}
    figures = [view.epsilon for view in promise.views if view.epsilon is not None]
    assert len(figures) == len(views)
    assert 0 < max(figures) <= plan.privacy.epsilon
    strongest = views[f"coordinator+{colluding}"]
    assert strongest.epsilon == max(figures)
    assert strongest.epsilon > 0.99 * plan.privacy.epsilon  # noise is not wasted
    assert strongest.honest_shares == plan.honest_floor == plan.threshold - colluding
    ordered = sorted(views.values(), key=lambda view: view.honest_shares)
    for less, more in itertools.pairwise(ordered):
        assert (less.epsilon or 0) >= (more.epsilon or 0)
    for view in views.values():
        assert (view.epsilon_replace or 0) > (view.epsilon or 0)


def test_without_colluders_an_agent_that_knows_its_own_noise_is_shown_above_the_target() -> None:
    plan = tiny(privacy={"max_colluding": 0})
    views = {view.adversary: view for view in plan.check().views}
    assert (views["coordinator+0"].epsilon or 0) <= plan.privacy.epsilon
    assert views["one agent"].honest_shares == plan.honest_floor - 1
    assert (views["one agent"].epsilon or 0) > plan.privacy.epsilon


def test_an_unprotected_plan_shows_that_the_coordinator_sees_one_share() -> None:
    promise = tiny(protection={"kind": "none"}).check()
    views = {view.adversary: view for view in promise.views}
    assert views["coordinator"].honest_shares == 1
    assert (views["coordinator"].epsilon or 0) > 5.0 >= (views["public"].epsilon or INF)


def test_a_plan_without_noise_promises_nothing() -> None:
    promise = tiny(privacy={"mechanism": "none"}).check()
    assert {view.epsilon for view in promise.views} == {None}
    assert promise.noise_multiplier == 0.0
    assert "none" in str(promise)


def test_the_text_of_a_promise_names_unit_threshold_and_adversaries() -> None:
    text = str(tiny().check())
    for expected in ("trajectory", "threshold 4", "honest floor 3", "coordinator+1", "headroom"):
        assert expected in text


def _fields(plan: Plan) -> dict[str, Any]:
    return plan.check().to_dict()


def test_the_plan_and_the_protocol_agree_on_the_largest_cohort() -> None:
    assert (MAX_COMPLETE_AGENTS, MAX_PAIRWISE_AGENTS) == (MAX_COMPLETE, MAX_CLIENTS)
    assert tiny(fleet={"agents": MAX_COMPLETE}).check().threshold == 129


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("threshold", lambda plan: (plan.fleet.agents + plan.privacy.max_colluding) // 2 + 1),
        ("tolerated_dropouts", lambda plan: 6 - max(plan.threshold, 5)),
        ("releases_per_unit", lambda plan: 1),
        ("num_parameters", lambda plan: 4 * 8 + 8 + 8 * 2 + 2),
        ("vector_length", lambda plan: 64),
        ("episodes_per_agent", lambda plan: 12),
    ],
)
def test_check_states_the_public_figures(key: str, expected: Callable[[Plan], Any]) -> None:
    assert _fields(tiny())[key] == expected(tiny())


def test_the_headroom_is_positive_and_shrinks_by_a_bit_per_doubled_resolution() -> None:
    first = tiny().check().headroom_bits
    second = tiny(encoding={"resolution": 2048}).check().headroom_bits
    assert first > second > 0
    assert 0.8 < first - second < 1.2


LANES = {"ring_bits": 64, "lane_bits": 21}


def test_lanes_shrink_the_vector_and_change_nothing_that_is_promised() -> None:
    plain, packed = tiny().check(), tiny(encoding=LANES).check()
    assert (plain.vector_length, packed.vector_length) == (64, 22)  # 3 coordinates in 8 bytes
    assert plain.num_coordinates == packed.num_coordinates == 64
    saved = plain.bytes_up_per_agent_round - packed.bytes_up_per_agent_round
    assert 0 <= saved - (64 * 4 - 22 * 8) <= 2  # a shorter vector has a shorter length field
    assert packed.views == plain.views
    assert packed.noise_multiplier == plain.noise_multiplier
    assert packed.headroom_bits == pytest.approx(plain.headroom_bits - 11)
    assert "21-bit lanes, 17 would fit" in str(packed)
    assert "lanes" not in str(plain)


def test_the_narrowest_width_that_check_names_is_accepted_and_one_less_is_not() -> None:
    fits = tiny().check().narrowest_lane_bits
    assert tiny(encoding=LANES | {"lane_bits": fits}).check().headroom_bits >= 0
    with pytest.raises(ConfigurationError, match=f"fits has {fits} bits"):
        tiny(encoding=LANES | {"lane_bits": fits - 1}).check()


def test_the_rotated_headroom_is_asked_for_by_name_and_printed() -> None:
    wide = {"policy": {"hidden": (512,)}, "fleet": {"trajectories": 100}}
    counted = tiny(**wide).check()
    rotated = tiny(**wide, encoding={"headroom": "rotated"}).check()
    assert (counted.headroom_rule, rotated.headroom_rule) == ("worst-case", "rotated")
    assert rotated.narrowest_lane_bits < counted.narrowest_lane_bits
    assert rotated.views == counted.views
    assert "bits of rotated headroom" in str(rotated)
    assert "bits of worst-case headroom" in str(counted)


def test_an_unprotected_plan_counts_the_bytes_of_its_words() -> None:
    promise = tiny(protection={"kind": "none"}, encoding=LANES).check()
    assert promise.bytes_up_per_agent_round == 22 * 8


def test_checking_a_plan_loads_neither_torch_nor_gymnasium() -> None:
    code = (
        "import sys; from privfedrl.plan import Plan; "
        f"Plan.from_toml({str(EXAMPLES / 'cartpole_fleet.toml')!r}).check(); "
        "assert not {'torch', 'gymnasium', 'opacus', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- homomorphic plans --------------------------------------------------------------------------


def test_under_encryption_central_noise_needs_room_for_every_input() -> None:
    central = {"mechanism": "central-discrete-gaussian"}
    with pytest.raises(ConfigurationError, match="about the sum without noise"):
        tiny(privacy=central, encoding={"headroom": "rotated"}, protection={"kind": "bfv"})
    tiny(privacy=central, encoding={"headroom": "rotated"})


def test_the_plan_and_the_lattices_agree_on_the_sets_and_their_largest_cohorts() -> None:
    expected: dict[str, dict[str, int]] = {"bfv": {}, "ckks": {}}
    for name, chosen in PARAMETER_SETS.items():
        expected[chosen.kind][name] = chosen.max_clients
    assert expected == HE_AGENTS


def test_the_set_that_a_plan_leaves_open_is_the_first_of_its_kind() -> None:
    """The rules count agents by the first; the round is set up with the default."""
    for kind, sets in HE_AGENTS.items():
        open_plan = tiny(protection={"kind": kind})
        named = tiny(protection={"kind": kind, "parameter_set": next(iter(sets))})
        found = [round_setup(plan).backend for plan in (open_plan, named)]
        assert found[0] == found[1]
        assert open_plan.digest != named.digest


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, sets in HE_AGENTS.items() for name in sets]
)
def test_every_set_takes_its_largest_cohort_and_not_one_agent_more(kind: str, name: str) -> None:
    most = HE_AGENTS[kind][name]
    chosen = {"kind": kind, "parameter_set": name}
    promise = tiny(fleet={"agents": most}, protection=chosen).check()
    assert promise.threshold == (most + 1) // 2 + 1
    with pytest.raises(ConfigurationError, match=rf"fleet\.agents must lie in \[2, {most}\]"):
        tiny(fleet={"agents": most + 1}, protection=chosen)


@pytest.mark.parametrize("kind", ["bfv", "ckks"])
@pytest.mark.parametrize("readding", ["key-authority", "auditor", "none"])
def test_a_homomorphic_plan_survives_being_written_and_read(kind: str, readding: str) -> None:
    plan = tiny(protection={"kind": kind, "readding": readding})
    assert plan.protection.homomorphic
    again = Plan.from_text(plan.to_toml())
    assert again == plan
    assert again.digest == plan.digest


def test_every_way_to_sum_and_to_re_add_has_a_digest_of_its_own() -> None:
    encrypted = {
        tiny(protection={"kind": kind, "readding": readding}).digest
        for kind in ("bfv", "ckks")
        for readding in ("key-authority", "auditor", "none")
    }
    others = {tiny(protection={"kind": kind}).digest for kind in ("pairwise", "none")}
    assert len(encrypted | others) == 8


@pytest.mark.parametrize("kind", ["pairwise", "none"])
def test_an_option_of_encryption_is_refused_where_it_would_do_nothing(kind: str) -> None:
    for name, value in (("readding", "auditor"), ("parameter_set", "bfv-4096-std")):
        with pytest.raises(ConfigurationError, match=rf"protection\.{name} is for kinds 'bfv'"):
            tiny(protection={"kind": kind, name: value})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"protection": {"kind": "bfv"}, "fleet": {"agents": 65}}, r"fleet\.agents .* \[2, 64\]"),
        (
            {"protection": {"kind": "bfv", "parameter_set": "ckks-4096-add"}},
            r"protection\.parameter_set must be one of .*'bfv-4096-std'.* for kind 'bfv'",
        ),
        (
            {"protection": {"kind": "ckks", "parameter_set": "bfv-4096-std"}},
            r"protection\.parameter_set must be one of \['ckks-4096-add'\] for kind 'ckks'",
        ),
        (
            {"protection": {"kind": "bfv", "parameter_set": "bfv-8192"}},
            r"protection\.parameter_set must be one of .* got 'bfv-8192'",
        ),
        (
            {"protection": {"parameter_set": "bfv-4096-std"}},
            r"protection\.parameter_set is for kinds 'bfv' and 'ckks', got .* kind 'pairwise'",
        ),
        (
            {"protection": {"kind": "bfv"}, "encoding": {"ring_bits": 64, "lane_bits": 21}},
            r"encoding\.lane_bits must be absent with kind 'bfv'",
        ),
        (
            {"protection": {"kind": "bfv", "threshold": 1, "min_honest": 2}},
            r"protection\.threshold must be > privacy\.max_colluding = 1 and <= 6, got 1",
        ),
        (
            {"protection": {"kind": "ckks", "threshold": 7}},
            r"protection\.threshold must be > privacy\.max_colluding = 1 and <= 6, got 7",
        ),
        ({"protection": {"kind": "bfv", "readding": "somebody"}}, r"protection\.readding"),
        ({"protection": {"kind": "paillier"}}, r"protection\.kind"),
        (
            {"protection": {"kind": "bfv", "min_clients": 1}},
            r"protection\.min_clients must be >= 2",
        ),
        (
            {"protection": {"kind": "bfv"}, "privacy": {"max_colluding": 6}},
            r"privacy\.max_colluding must be < fleet\.agents = 6",
        ),
    ],
)
def test_what_does_not_fit_encryption_is_named(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        tiny(**changes)


def test_everything_that_does_not_fit_encryption_is_named_at_once() -> None:
    with pytest.raises(ConfigurationError) as found:
        tiny(
            fleet={"agents": 65},
            privacy={"max_colluding": 3},
            encoding={"ring_bits": 64, "lane_bits": 21},
            protection={"kind": "bfv", "threshold": 3, "min_clients": 66},
        )
    expected = (
        "fleet.agents must lie in [2, 64], got 65",
        "encoding.lane_bits must be absent with kind 'bfv'",
        "protection.threshold must be > privacy.max_colluding = 3",
        "threshold - max_colluding must be >= protection.min_honest = 3",
        "protection.min_clients must be <= fleet.agents = 65",
    )
    assert len(found.value.problems) == len(expected)
    for problem, words in zip(found.value.problems, expected, strict=True):
        assert problem.startswith(words)
        assert problem in str(found.value)


def test_encryption_allows_a_threshold_at_which_masking_would_not_hold() -> None:
    """No half of the agents is needed: nobody's masks are recovered."""
    low = {"threshold": 4, "min_honest": 3, "min_clients": 4}
    assert tiny(fleet={"agents": 12}, protection=low | {"kind": "bfv"}).check().threshold == 4
    with pytest.raises(ConfigurationError, match=r"\(fleet\.agents \+ privacy\.max_colluding\)"):
        tiny(fleet={"agents": 12}, protection=low)


@pytest.mark.parametrize("name", ["bfv-4096-192", "bfv-4096-std", "ckks-4096-add"])
def test_a_resolution_that_is_too_fine_for_a_set_is_refused_with_a_remedy(name: str) -> None:
    """And the remedy helps: a coarser grid, or where there is one, a wider set."""
    kind = name.partition("-")[0]
    given: dict[str, Any] = {
        "fleet": {"trajectories": 256},
        "privacy": {"mechanism": "none"},
        "protection": {"kind": kind, "parameter_set": name},
        "encoding": {"ring_bits": 64, "resolution": 2**30},
    }
    with pytest.raises(ConfigurationError) as found:
        tiny(**given).check()
    text = str(found.value)
    assert f"protection.parameter_set = {name!r} has " in text
    assert "choose a smaller encoding.resolution, or a wider set (bfv-4096-wide" in text
    assert tiny(**given | {"encoding": {"ring_bits": 64, "resolution": 1024}}).check()
    if kind == "bfv":
        wide = {"kind": "bfv", "parameter_set": "bfv-4096-wide"}
        assert tiny(**given | {"protection": wide}).check()


def test_checking_an_encrypted_plan_loads_neither_torch_nor_tenseal(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(tiny(protection={"kind": "bfv"}).to_toml())
    code = (
        "import sys; from privfedrl.plan import Plan; "
        f"Plan.from_toml({str(tmp_path / 'plan.toml')!r}).check(); "
        "assert not {'torch', 'gymnasium', 'opacus', 'tenseal'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
