"""Fleets in which agents mask with some others only: whose noise is counted, against whom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfedrl.errors import ConfigurationError
from privfedrl.federation.adversaries import adversaries
from privfedrl.federation.backends import Pairwise, check_rosters
from privfedrl.federation.guarantee import run_statement
from privfedrl.federation.run_directory import METRICS, RunDirectory
from privfedrl.federation.setup import RoundSetup, round_setup
from privfedrl.federation.simulate import Runtime, simulate
from privfedrl.plan import Plan
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.privacy import Ledger, Statement, compose
from privfedrl.secagg import SecAggParameters
from privfedrl.secagg.agreement import feasible

Make = Callable[..., Plan]
# without being asked, graphs of some rosters keep 96: agents must insist on the 100
AGENTS, COLLUDING, NEEDED, HONEST = 300, 2, 270, 100
SERVERS = ["malicious", "semi-honest"]
LARGE: dict[str, dict[str, Any]] = {
    "fleet": {"agents": AGENTS, "trajectories": 1, "horizon": 15},
    "policy": {"observations": 4, "actions": 2, "hidden": (4,)},
    "privacy": {"max_colluding": COLLUDING, "unit": "agent", "epsilon": 20.0},
    "federation": {"strategy": "fedavg", "rounds": 2},
    "protection": {"threshold": NEEDED, "min_honest": HONEST},
    "simulation": {"dropouts_per_round": 10, "evaluation_episodes": 1},
}


@pytest.fixture(scope="module")
def large(make_plan: Make) -> Make:
    return lambda **sections: make_plan(LARGE, **sections)


def parameters(plan: Plan) -> SecAggParameters:
    backend = round_setup(plan).backend
    assert isinstance(backend, Pairwise)
    return backend.parameters


def cost(setup: RoundSetup, shares: int) -> float:
    events = [(str(index), setup.event(shares)) for index in range(setup.plan.releases_per_unit)]
    return compose(setup.plan.unit, events, setup.accounted_delta).epsilon


# --- what can be opened -------------------------------------------------------------------------


@pytest.mark.parametrize("agents", [6, 256])
def test_up_to_256_agents_everybody_masks_with_everybody(make_plan: Make, agents: int) -> None:
    found = parameters(make_plan(fleet={"agents": agents}))
    assert found.graph is None
    assert found == SecAggParameters(
        num_clients=agents,
        max_colluding=1,
        vector_length=found.vector_length,
        threshold=(agents + 1) // 2 + 1,
        min_clients=4,
    )


@pytest.mark.parametrize("server", SERVERS)
def test_from_257_agents_on_the_graph_is_sparse(large: Make, server: str) -> None:
    changes = {"fleet": {"agents": 257}, "protection": {"threshold": 240, "server": server}}
    found = parameters(large(**changes | {"simulation": {"dropouts_per_round": 0}}))
    assert found.graph is not None
    assert (found.graph.server, found.graph.max_dropouts) == (server, 8)
    assert found.topology(257).degree < 64


@pytest.mark.parametrize("server", SERVERS)
def test_no_roster_that_agents_accept_lets_fewer_honest_vectors_be_opened_than_noise_counts(
    large: Make, server: str
) -> None:
    plan = large(protection={"server": server})
    found = parameters(plan)
    for size in range(found.floor, AGENTS + 1):
        survivors = found.stage_floor(size)
        assert survivors >= plan.threshold
        if server == "malicious":
            assert feasible(found, size).smallest_opened >= plan.honest_floor == HONEST
        else:
            assert survivors - COLLUDING >= plan.honest_floor == NEEDED - COLLUDING
    assert found.floor == NEEDED + plan.tolerated_dropouts


@pytest.mark.parametrize("server", SERVERS)
def test_tolerated_dropouts_may_vanish_before_or_after_the_roster(large: Make, server: str) -> None:
    plan = large(protection={"server": server})
    found, spare = parameters(plan), plan.tolerated_dropouts
    assert spare == (AGENTS - NEEDED) // 2
    assert AGENTS - spare >= found.floor
    assert found.stage_floor(AGENTS) == AGENTS - spare


# --- the noise ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("server", "shares"), [("malicious", 100), ("semi-honest", 268)])
def test_the_noise_is_that_of_the_smallest_sum_that_can_be_opened_and_of_no_share_more(
    large: Make, server: str, shares: int
) -> None:
    plan = large(protection={"server": server})
    setup = round_setup(plan)
    assert plan.noise_floor == shares
    assert setup.worst_event == setup.event(shares)
    assert 0.98 * plan.privacy.epsilon < cost(setup, shares) <= plan.privacy.epsilon
    assert cost(setup, shares - 1) > plan.privacy.epsilon


def test_survivors_beyond_the_smallest_sum_are_not_counted_where_it_can_be_opened(
    large: Make,
) -> None:
    """A malicious coordinator may have split the survivors: how many they are says nothing."""
    malicious = round_setup(large())
    following = round_setup(large(protection={"server": "semi-honest"}))
    for survivors in (NEEDED, 290, AGENTS):
        assert malicious.settled(survivors) == malicious.event(HONEST)
        assert following.settled(survivors) == following.event(survivors - COLLUDING)


# --- whom it is about ---------------------------------------------------------------------------

VIEWS = {
    "malicious": [
        ("coordinator+2", 100),
        ("coordinator", 100),
        ("one agent", 100),
        ("public", 100),
    ],
    "semi-honest": [
        ("coordinator+2, following the protocol", 268),
        ("coordinator that does not", 1),
        ("coordinator, following the protocol", 270),
        ("one agent", 269),
        ("public", 270),
    ],
}


@pytest.mark.parametrize("server", SERVERS)
def test_every_adversary_is_listed_with_the_shares_that_no_graph_lets_it_learn(
    large: Make, server: str
) -> None:
    plan = large(protection={"server": server})
    assert [(one.name, one.least(plan)) for one in adversaries(plan)] == VIEWS[server]
    assert round_setup(plan).adversary == VIEWS[server][0][0]


def test_an_agent_knows_its_own_share_in_a_part_of_the_survivors(large: Make) -> None:
    plan = large(privacy={"max_colluding": 0})
    found = {one.name: one.least(plan) for one in adversaries(plan)}
    assert found == {"coordinator+0": 100, "coordinator": 100, "one agent": 99, "public": 100}


@pytest.mark.parametrize("server", SERVERS)
def test_a_promise_names_the_graph_and_when_it_fails(large: Make, server: str) -> None:
    plan = large(protection={"server": server})
    found = plan.check()
    assert found.neighbours == parameters(plan).topology(AGENTS).degree
    assert found.isolation_fraction == plan.honest_floor / AGENTS
    text = str(found)
    expected = {
        "malicious": ["malicious coordinator", "at least 100 honest", "T 2^-81", "2^-41"],
        "semi-honest": ["follows the protocol", "at least 268 honest", "2^-80", "deviates"],
    }
    for words in (*expected[server], "not part of delta", f"{found.neighbours} neighbours"):
        assert words in text


def test_a_complete_graph_promises_no_isolation_fraction(make_plan: Make) -> None:
    found = make_plan().check()
    assert (found.neighbours, found.isolation_fraction, found.graph) == (None, None, None)
    assert "neighbours" not in str(found)


def stated(plan: Plan, folder: Path) -> Statement:
    setup = round_setup(plan)
    with Ledger.open(folder / "ledger.db") as ledger:
        row = ledger.reserve(setup.charge("task/0/0", group="task/0/0"))
        ledger.settle(row, setup.settled(AGENTS))
        return run_statement(setup, ledger, deterministic=False)


def test_a_statement_against_a_malicious_coordinator_says_that_it_may_open_parts(
    tmp_path: Path, large: Make
) -> None:
    found = stated(large(), tmp_path)
    field = found.secure_aggregation
    assert (field.threshold, field.floor, field.collusion_bound) == (270, 100, 2)
    assert "complete graph" not in field.protocol
    for words in ("malicious coordinator", "at least 100 honest", "alpha = 0.333", "T 2^-81"):
        assert words in field.threat_model
    sees, trusted = found.trust_model[0].sees, found.trust_model[0].trusted_for
    assert "disjoint and each with at least 100 honest agents" in sees
    assert "may deviate" in trusted
    assert any("sparse_graph.md" in item for item in found.caveats.items)
    claims = found.epsilon.claims
    assert not isinstance(claims, str)
    assert [one.adversary for one in claims] == [name for name, _ in VIEWS["malicious"]]
    # 300 survivors were settled, and still no claim counts more than the smallest sum
    assert len({one.epsilon for one in claims}) == 1


def test_a_statement_against_a_coordinator_that_follows_claims_nothing_against_another(
    tmp_path: Path, large: Make
) -> None:
    found = stated(large(protection={"server": "semi-honest"}), tmp_path)
    assert "coordinator that follows the protocol" in found.secure_aggregation.threat_model
    assert "malicious" not in found.secure_aggregation.threat_model
    assert "nothing of it holds against" in found.secure_aggregation.threat_model
    assert found.trust_model[0].trusted_for.startswith("following the protocol")
    claims = found.epsilon.claims
    assert not isinstance(claims, str)
    epsilon = {one.adversary: one.epsilon for one in claims}
    deviating = epsilon.pop("coordinator that does not", float("inf"))
    assert list(epsilon) == [name for name, shares in VIEWS["semi-honest"] if shares > 1]
    assert deviating > 10 * max(epsilon.values())


def test_central_noise_in_a_large_fleet_names_the_parts_that_are_seen_without_it(
    tmp_path: Path, large: Make
) -> None:
    central = {"mechanism": "central-discrete-gaussian"}
    parts = stated(large(privacy=central), tmp_path).trust_model[0]
    assert "disjoint and each with at least 100 honest agents" in parts.sees
    assert "may deviate from the protocol of summing" in parts.trusted_for
    plan = large(privacy=central, protection={"server": "semi-honest"})
    other = tmp_path / "other"
    other.mkdir()
    whole = stated(plan, other).trust_model[0]
    assert "disjoint" not in whole.sees
    assert "following the protocol of summing" in whole.trusted_for


# --- what is refused ----------------------------------------------------------------------------


def test_whom_a_plan_holds_against_is_pinned_by_its_digest(large: Make) -> None:
    plan = large()
    assert plan.digest != plan.replace("protection", server="semi-honest").digest


@pytest.mark.parametrize(
    "changes",
    [
        {"fleet": {"agents": 256}, "protection": {"threshold": 200}},
        {"protection": {"kind": "none"}},
    ],
)
def test_a_weaker_coordinator_is_refused_where_every_one_is_held_against(
    large: Make, changes: dict[str, dict[str, Any]]
) -> None:
    large(**changes)
    changed = changes | {"protection": changes["protection"] | {"server": "semi-honest"}}
    with pytest.raises(ConfigurationError, match=r"protection\.server is for kind 'pairwise'"):
        large(**changed)


@pytest.mark.parametrize("server", SERVERS)
def test_masks_alone_are_no_protection_of_several_sums(large: Make, server: str) -> None:
    with pytest.raises(ConfigurationError, match=r"without noise nothing covers"):
        large(privacy={"mechanism": "none"}, protection={"server": server})
    large(privacy={"mechanism": "none"}, protection={"kind": "none"})


@pytest.mark.parametrize(
    "protection",
    [
        {"min_honest": 200},  # more than any graph of so many neighbours keeps
        {"threshold": 152, "min_honest": 150},  # nor does the complete one, if half may vanish
    ],
)
def test_honest_vectors_that_no_graph_keeps_are_refused_by_name(
    large: Make, protection: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match=r"protection\.min_honest = .* takes a graph"):
        round_setup(large(protection=protection, simulation={"dropouts_per_round": 0}))


def test_a_plan_whose_agents_would_refuse_a_smaller_roster_is_refused(
    large: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least roster is the one with fewest honest vectors: a graph for it may not exist."""
    plan = large()
    check_rosters(plan, parameters(plan))
    asked: list[int] = []

    def one_fails(self: SecAggParameters, size: int) -> Any:
        asked.append(size)
        if size == AGENTS - 1:
            raise ConfigurationError("no graph for that size")
        return genuine(self, size)

    genuine = SecAggParameters.topology
    monkeypatch.setattr(SecAggParameters, "topology", one_fails)
    with pytest.raises(ConfigurationError, match="no graph for that size"):
        plan.check()
    assert asked[-1] == AGENTS - 1


def test_more_simulated_dropouts_than_agents_tolerate_are_refused(large: Make) -> None:
    large(simulation={"dropouts_per_round": 15}).check()
    with pytest.raises(ConfigurationError, match=r"half of fleet\.agents - max.* = 15, got 16"):
        large(simulation={"dropouts_per_round": 16}).check()


# --- a real round -------------------------------------------------------------------------------


def survivors(path: Path) -> list[int]:
    return [len(row["survivors"]) for row in RunDirectory(path).rows(METRICS)]


@pytest.mark.slow
def test_a_round_of_300_real_agents_gives_the_sum_of_those_that_stay(
    tmp_path: Path, large: Make
) -> None:
    """The same seeds with and without masks: equal policies, agents vanishing at every stage."""
    one = {"federation": {"rounds": 1}, "simulation": {"dropouts_per_round": 12}}
    masked = large(**one, protection={"server": "semi-honest"})
    clear = large(**one, protection={"kind": "none"})
    runs = [
        simulate(
            plan,
            out=tmp_path / plan.protection.kind,
            seed=3,
            runtime=Runtime(workers=1),
            entropy=DeterministicEntropy(b"a"),
        )
        for plan in (masked, clear)
    ]
    assert np.array_equal(runs[0].parameters, runs[1].parameters)
    found = [*survivors(runs[0].path), *survivors(runs[1].path)]
    assert found[0] == found[1] < AGENTS


@pytest.mark.slow
def test_every_agent_of_300_charges_the_smallest_part_that_could_be_opened(
    tmp_path: Path, large: Make
) -> None:
    plan = large(federation={"rounds": 1})
    run = simulate(plan, out=tmp_path / "run", seed=3, runtime=Runtime(workers=1))
    directory, setup = RunDirectory(run.path), round_setup(plan)
    assert survivors(run.path) >= [AGENTS - 10]
    for name in ("agent-000", "agent-150", "agent-299"):
        with Ledger.open(directory.agent(name) / "ledger.db", read_only=True) as ledger:
            held = ledger.reservations()
            assert [one.event for one in held] in ([], [setup.event(HONEST)])
            assert {one.charge.adversary for one in held} <= {"coordinator+2"}
    with run.ledger as ledger:
        assert [one.event for one in ledger.reservations()] == [setup.event(HONEST)]
    assert run.summary.adversary == "coordinator+2"
    assert run.summary.epsilon == cost_of_one(setup)


def cost_of_one(setup: RoundSetup) -> float:
    found = compose(setup.plan.unit, [("0", setup.event(HONEST))], setup.accounted_delta)
    return found.epsilon
