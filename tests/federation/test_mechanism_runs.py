"""Whole runs under every mechanism, unit and clip: what is charged is what was added."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfedrl.envs import nominal
from privfedrl.errors import ConfigurationError, PrivacyError, RemoteProtocolError, StorageError
from privfedrl.federation.adversaries import adversaries, main_adversary
from privfedrl.federation.agent import Agent
from privfedrl.federation.central_noise import with_central_noise
from privfedrl.federation.contribution import contribute, local_trainer, published_model
from privfedrl.federation.coordinator import initial_federation_state, published, with_clip
from privfedrl.federation.fleet_experience import FleetExperience
from privfedrl.federation.noised_steps import NoisedSteps
from privfedrl.federation.participants import KEY_AUTHORITY
from privfedrl.federation.persons import check_participation
from privfedrl.federation.run_directory import METRICS, RunDirectory
from privfedrl.federation.setup import round_setup
from privfedrl.federation.simulate import Run, Runtime, simulate
from privfedrl.plan import AdaptiveClip, MeanReturnRelease, Plan
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.privacy import (
    DiscreteGaussianEvent,
    Ledger,
    NoReleaseEvent,
    ParticipationRegister,
    SkellamEvent,
    UnboundedEvent,
)

ONE = Runtime(workers=1)
Make = Callable[..., Plan]
LOCAL = {
    "privacy": {"mechanism": "local-skellam"},
    "federation": {"strategy": "fedavg", "rounds": 2},
    "training": {"local_steps": 3, "local_learning_rate": 0.1},
}
PERSON = {
    "privacy": {
        "unit": "person",
        "max_trajectories_per_unit": 2,
        "max_rounds_per_unit": 2,
        "mean_return": MeanReturnRelease(low=0.0, high=60.0, spread=True),
    },
    "simulation": {"persons_per_agent": 3},
}
CENTRAL = {"privacy": {"mechanism": "central-discrete-gaussian"}}
GAUSSIAN = {"privacy": {"mechanism": "discrete-gaussian"}}
ADAPTIVE = {"privacy": {"adaptive_clip": AdaptiveClip(low=0.2, high=5.0, quantile=0.25)}}
VARIANTS: dict[str, dict[str, Any]] = {
    "local": LOCAL,
    "person": PERSON,
    "central": CENTRAL,
    "gaussian": GAUSSIAN,
    "adaptive": ADAPTIVE,
}


def run(plan: Plan, out: Path, **changes: Any) -> Run:
    return simulate(plan, **({"out": out, "seed": 3, "runtime": ONE} | changes))


def events(path: Path, name: str = "ledger.db") -> list[Any]:
    with Ledger.open(path / name, read_only=True) as ledger:
        return [one.event for one in ledger.reservations()]


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_variant_gives_the_same_policy_masked_and_in_the_clear(
    tmp_path: Path, make_plan: Make, variant: str
) -> None:
    plan = make_plan(VARIANTS[variant])
    found = [
        run(
            plan.replace("protection", kind=kind),
            tmp_path / kind,
            entropy=DeterministicEntropy(b"same"),
        )
        for kind in ("pairwise", "none")
    ]
    np.testing.assert_array_equal(found[0].parameters, found[1].parameters)
    assert events(tmp_path / "pairwise") == events(tmp_path / "none")


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_a_run_spends_at_most_its_plan_and_states_every_adversary(
    tmp_path: Path, make_plan: Make, variant: str
) -> None:
    plan = make_plan(VARIANTS[variant])
    done = run(plan, tmp_path / "run")
    statement = done.statement
    claims = statement.epsilon.claims
    assert not isinstance(claims, str)
    assert claims[0].adversary == main_adversary(plan)
    assert claims[0].epsilon <= plan.privacy.epsilon
    bounded = [one.name for one in adversaries(plan) if one.shares != "no"]
    assert [claim.adversary for claim in claims] == bounded
    assert statement.epsilon_text()
    assert all(math.isfinite(view.epsilon or 0.0) for view in plan.check().views)


def test_central_noise_is_charged_as_one_share_whoever_survives(
    tmp_path: Path, make_plan: Make
) -> None:
    plan = make_plan(CENTRAL, simulation={"dropouts_per_round": 1})
    run(plan, tmp_path / "run")
    mechanism = round_setup(plan).mechanism
    assert mechanism is not None
    assert set(events(tmp_path / "run")) == {mechanism.event(1)}
    shares = {event.shares for event in events(tmp_path / "run")}
    assert shares == {1}


def test_the_party_that_adds_central_noise_is_shown_without_a_bound(make_plan: Make) -> None:
    for kind, who in (("pairwise", "coordinator"), ("bfv", "key authority")):
        plan = make_plan(CENTRAL, protection={"kind": kind})
        views = {view.adversary: view.epsilon for view in plan.check().views}
        assert views[who] is None
        assert views["public"] is not None
        assert who in main_adversary(plan)


def test_central_noise_names_what_its_figure_needs(make_plan: Make) -> None:
    bfv = make_plan(CENTRAL, protection={"kind": "bfv"})
    assert "agents encrypting within range" in main_adversary(bfv)
    names = {one.name: one.shares for one in adversaries(bfv)}
    assert names["coordinator that does not"] == "no"
    audited = make_plan(CENTRAL, protection={"kind": "bfv", "readding": "auditor"})
    assert {one.name: one.shares for one in adversaries(audited)}[
        "coordinator with the auditor"
    ] == "no"
    # more agents than that could open a single upload, which holds no noise
    assert main_adversary(make_plan(CENTRAL)).startswith("up to 1 agents and the public")
    assert main_adversary(make_plan(CENTRAL, protection={"kind": "none"})).startswith("all agents")


def test_central_noise_is_as_wide_as_it_is_charged(make_plan: Make) -> None:
    """Sample variance of 200 x 64 coordinates; relative error has standard deviation 1.3 %.

    Eight standard deviations: false-positive rate below 1e-14.
    """
    setup = round_setup(make_plan(CENTRAL))
    zero = setup.codec.to_ring(np.zeros(setup.codec.padded, dtype=np.int64))
    entropy = DeterministicEntropy(b"central")
    noise = [
        with_central_noise(setup, zero, entropy).view(np.int32).astype(float) for _ in range(200)
    ]
    assert setup.mechanism is not None
    ratio = np.var(noise) / setup.mechanism.share_variance
    assert ratio == pytest.approx(1.0, abs=0.1)
    other = round_setup(make_plan())
    assert with_central_noise(other, zero, entropy) is zero


def test_the_key_authority_adds_the_noise_before_anybody_else_sees_the_sum(
    tmp_path: Path, make_plan: Make
) -> None:
    plan = make_plan(CENTRAL, protection={"kind": "bfv"}, federation={"rounds": 1})
    runs = [
        run(
            plan,
            tmp_path / str(k),
            entropy=DeterministicEntropy(b"authority" if k < 2 else b"another"),
        ).parameters
        for k in range(3)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.abs(runs[0] - runs[2]).max() > 0
    authority = tmp_path / "0" / "agents" / KEY_AUTHORITY
    (event,) = events(authority)
    assert isinstance(event, DiscreteGaussianEvent)
    assert event.shares == 1


def test_shares_of_discrete_gaussian_noise_are_counted(tmp_path: Path, make_plan: Make) -> None:
    plan = make_plan(GAUSSIAN, simulation={"dropouts_per_round": 1})
    run(plan, tmp_path / "run")
    for event in events(tmp_path / "run"):
        assert isinstance(event, DiscreteGaussianEvent)
        assert event.shares >= plan.honest_floor


def test_a_local_step_carries_the_whole_noise_and_the_upload_none(make_plan: Make) -> None:
    plan = make_plan(LOCAL)
    setup = round_setup(plan)
    assert setup.mechanism is not None
    assert setup.step_codec is not None
    assert setup.codec.noise_variance == 0
    assert setup.step_codec.noise_variance == setup.mechanism.share_variance
    event = setup.event(1)
    assert isinstance(event, SkellamEvent)
    assert event.variance == setup.mechanism.share_variance
    assert setup.settled(4) == setup.settled(6) == event


def test_local_steps_use_fresh_noise_in_every_step_and_every_round(make_plan: Make) -> None:
    """With experience that is always missing, what is sent is noise alone, as wide as charged.

    58 coordinates, three steps, 60 rounds: relative error of the variance 1.4 %; ten of its
    standard deviations, so the false-positive rate is below 1e-20.
    """
    plan = make_plan(LOCAL)
    setup = round_setup(plan)
    trainer, zero = local_trainer(setup), np.zeros(setup.policy.num_parameters)
    entropy = DeterministicEntropy(b"steps")

    def nothing(theta: Any) -> Any:
        raise ValueError("no experience")

    deltas = []
    for round_index in range(60):
        seed = round_index.to_bytes(32, "big")
        delta = NoisedSteps(setup, rotation_seed=seed, entropy=entropy).run(trainer, zero, nothing)
        assert delta.fault is not None
        assert len(set(delta.batch_ids)) == 3
        deltas.append(delta.update.rows[0])
    assert len({delta.tobytes() for delta in deltas}) == len(deltas)
    expected = setup.released_std(1)
    assert np.std(deltas) == pytest.approx(expected, rel=0.07)


def test_noised_steps_are_refused_where_the_plan_has_none(make_plan: Make) -> None:
    with pytest.raises(ConfigurationError, match="must be 'local-skellam'"):
        NoisedSteps(
            round_setup(make_plan()), rotation_seed=bytes(32), entropy=DeterministicEntropy(b"")
        )


def test_a_person_is_counted_before_its_trajectories_are_read(
    tmp_path: Path, make_plan: Make
) -> None:
    plan = make_plan(PERSON)
    run(plan, tmp_path / "run")
    with ParticipationRegister(
        tmp_path / "run" / "agents" / "agent-000" / "participation.db"
    ) as register:
        counts = [register.participations(plan.digest, f"person-{k}") for k in range(3)]
    # three rounds of two persons each, nobody more than twice
    assert counts == [2, 2, 2]


def test_persons_beyond_their_cap_contribute_nothing_and_nobody_sees_it(
    tmp_path: Path, make_plan: Make
) -> None:
    capped = make_plan(PERSON, privacy={"max_rounds_per_unit": 1}, federation={"rounds": 4})
    run(capped, tmp_path / "run")
    sizes = {row["bytes_up_max"] for row in RunDirectory(tmp_path / "run").rows(METRICS)}
    assert len(sizes) == 1
    register = ParticipationRegister(tmp_path / "run" / "agents" / "agent-000" / "participation.db")
    with register:
        assert all(register.participations(capped.digest, f"person-{k}") == 1 for k in range(3))


def test_a_person_pays_for_its_own_rounds_only(tmp_path: Path, make_plan: Make) -> None:
    plan = make_plan(PERSON, federation={"rounds": 6})
    done = run(plan, tmp_path / "run")
    assert len(events(tmp_path / "run")) == 6
    claims = done.statement.epsilon.claims
    assert not isinstance(claims, str)
    assert claims[0].epsilon <= plan.privacy.epsilon
    assert done.statement.unit.unit == "person"


def test_a_person_needs_a_register_and_nobody_else_may_have_one(make_plan: Make) -> None:
    with pytest.raises(ConfigurationError, match="participation must be a ParticipationRegister"):
        check_participation(make_plan(PERSON), None)
    with ParticipationRegister(":memory:") as register:
        with pytest.raises(ConfigurationError, match="participation must be None"):
            check_participation(make_plan(), register)
        check_participation(make_plan(PERSON), register)


def test_simulated_persons_must_be_as_many_as_take_part(tmp_path: Path, make_plan: Make) -> None:
    plan = make_plan(PERSON, simulation={"persons_per_agent": 0})
    with pytest.raises(ConfigurationError, match="persons_per_agent must be at least 2"):
        run(plan, tmp_path / "run")
    with pytest.raises(ConfigurationError, match="a person would be in a round twice"):
        make_plan(PERSON, simulation={"persons_per_agent": 1})


def test_the_spread_of_returns_is_released_beside_their_mean(
    tmp_path: Path, make_plan: Make
) -> None:
    run(make_plan(PERSON), tmp_path / "run")
    for row in RunDirectory(tmp_path / "run").rows(METRICS):
        assert row["released_return_spread"] >= 0.0
        assert row["released_mean_return_std"] > 0.0


def test_an_adaptive_clip_moves_within_its_bounds_and_changes_no_charge(
    tmp_path: Path, make_plan: Make
) -> None:
    plan = make_plan(ADAPTIVE, federation={"rounds": 4})
    run(plan, tmp_path / "run")
    clips = [row["next_clip"] for row in RunDirectory(tmp_path / "run").rows(METRICS)]
    assert len(set(clips)) == 4
    assert all(0.2 <= clip <= 5.0 for clip in clips)
    setup = round_setup(plan)
    other = round_setup(
        plan.replace("privacy", adaptive_clip=AdaptiveClip(low=0.5, high=1.0, weight=0.1))
    )
    assert setup.worst_event == other.worst_event


def test_an_adaptive_run_goes_on_with_its_clip(tmp_path: Path, make_plan: Make) -> None:
    class Stop(Exception):
        pass

    def stop(progress: Any) -> None:
        if progress.round == 1:
            raise Stop

    plan, entropy = make_plan(ADAPTIVE), DeterministicEntropy(b"resume")
    whole = run(plan, tmp_path / "whole", entropy=entropy)
    with pytest.raises(Stop):
        run(plan, tmp_path / "cut", entropy=entropy, progress=stop)
    resumed = run(plan, tmp_path / "cut", entropy=entropy, resume=True)
    np.testing.assert_array_equal(whole.parameters, resumed.parameters)
    last = [RunDirectory(tmp_path / name).rows(METRICS)[-1] for name in ("whole", "cut")]
    assert last[0]["next_clip"] == last[1]["next_clip"]


def test_a_clip_is_part_of_what_is_signed_and_stays_within_the_plans_bounds(
    make_plan: Make,
) -> None:
    setup = round_setup(make_plan(ADAPTIVE))
    theta = np.zeros(setup.policy.num_parameters)
    state = with_clip(setup, initial_federation_state(bytes(32), theta))
    assert state.clip == setup.plan.privacy.clip_norm
    wire = published(state)
    assert wire.shape == (theta.shape[0] + 1,)
    assert published_model(setup, wire).clip == state.clip
    for clip in (0.1, 6.0):
        with pytest.raises(ConfigurationError, match="clip must lie in"):
            published_model(setup, np.append(theta, clip))
    fixed = round_setup(make_plan())
    with pytest.raises(ConfigurationError, match="the plan's clip does not adapt"):
        with_clip(fixed, state)
    assert published(initial_federation_state(bytes(32), theta)) is theta


def test_rows_under_another_clip_keep_the_sensitivity_of_the_plan(make_plan: Make) -> None:
    plan = make_plan(ADAPTIVE)
    setup = round_setup(plan)
    rng = np.random.default_rng(4)
    source = FleetExperience(setup, [nominal("CartPole-v1")], seed=1, workers=None)
    theta = np.asarray(setup.policy.initial_parameters(rng), dtype=np.float64)
    for step, clip in enumerate((0.2, 1.0, 5.0)):
        batch = source.of(0, theta, 0, 0, step)
        rows = local_trainer(setup).local_update(theta, batch, current_clip=clip).rows
        assert np.linalg.norm(rows, axis=1).max() <= setup.total_clip * (1 + 1e-9)


def test_events_that_are_not_of_the_mechanism_are_not_counted_as_shares(make_plan: Make) -> None:
    setup = round_setup(make_plan())
    for event in (NoReleaseEvent(unit=setup.plan.unit), UnboundedEvent(unit=setup.plan.unit)):
        with pytest.raises(PrivacyError, match="must be an event of its mechanism"):
            setup.shares_in(event)
    for mechanism in (GAUSSIAN, CENTRAL, LOCAL, {}):
        one = round_setup(make_plan(mechanism))
        assert one.shares_in(one.settled(5)) == (4 if one.plan.privacy.distributed else 1)


def test_an_agent_refuses_a_clip_that_its_plan_does_not_allow(
    tmp_path: Path, make_plan: Make, make_world: Any
) -> None:
    world = make_world(make_plan(ADAPTIVE))
    coordinator = world.coordinator()
    invitations = coordinator.open_round()
    name = world.names[0]
    (mine,) = [each.data for each in invitations if each.recipient == name]
    outside = mine[:-8] + np.array([99.0], dtype="<f8").tobytes()
    agent: Agent = world.agents[name]
    with pytest.raises(RemoteProtocolError):
        agent.start(outside)
    assert agent.finished
    assert agent.start(mine)


def test_a_bad_experience_of_a_person_sends_zeros_and_noise(make_plan: Make) -> None:
    plan = make_plan(PERSON)
    setup = round_setup(plan)

    def unnamed(theta: Any, step: int) -> Any:
        source = FleetExperience(
            round_setup(make_plan()), [nominal("CartPole-v1")], seed=1, workers=None
        )
        return source.of(0, theta, 0, 0, step)

    found = contribute(
        setup,
        local_trainer(setup),
        published_model(setup, np.zeros(setup.policy.num_parameters)),
        experience=unnamed,
        admit=lambda names: frozenset(names),
        rotation_seed=bytes(32),
        entropy=DeterministicEntropy(b"unnamed"),
    )
    assert found.fault is not None
    assert found.vector.shape == (setup.codec.words,)


def test_a_register_that_cannot_be_written_stops_the_agent_before_anything_is_computed(
    make_plan: Make,
) -> None:
    setup = round_setup(make_plan(PERSON))
    source = FleetExperience(setup, [nominal("CartPole-v1")], seed=1, workers=None)

    def full(names: Any) -> frozenset[str]:
        raise StorageError("the register is full")

    with pytest.raises(StorageError, match="full"):
        contribute(
            setup,
            local_trainer(setup),
            published_model(setup, np.zeros(setup.policy.num_parameters)),
            experience=lambda theta, step: source.of(0, theta, 0, 0, step),
            admit=full,
            rotation_seed=bytes(32),
            entropy=DeterministicEntropy(b"full"),
        )


def test_the_report_and_the_rows_of_a_run_are_json(tmp_path: Path, make_plan: Make) -> None:
    run(make_plan(ADAPTIVE), tmp_path / "run")
    for line in (tmp_path / "run" / METRICS).read_text().splitlines():
        assert isinstance(json.loads(line), dict)
