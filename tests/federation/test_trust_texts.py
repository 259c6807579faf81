"""A statement names every party, all that it sees, and each duty that its claims rest on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privfedrl.federation.guarantee import _releases, _side_releases, run_statement
from privfedrl.federation.setup import round_setup
from privfedrl.federation.trust_texts import secure_aggregation, trust_model
from privfedrl.plan import AgentLearner, Plan
from privfedrl.privacy import Ledger, Statement

Make = Callable[..., Plan]
CENTRAL = {"privacy": {"mechanism": "central-discrete-gaussian"}}


def views(plan: Plan) -> dict[str, tuple[str, str]]:
    return {view.party: (view.sees, view.trusted_for) for view in trust_model(round_setup(plan))}


@pytest.mark.parametrize(
    ("protection", "services"),
    [
        ({"kind": "pairwise"}, []),
        ({"kind": "none"}, []),
        ({"kind": "bfv", "readding": "key-authority"}, ["key authority"]),
        ({"kind": "bfv", "readding": "auditor"}, ["key authority", "auditor"]),
        ({"kind": "ckks", "readding": "none"}, ["key authority"]),
    ],
)
def test_every_party_of_a_plan_is_named_once(
    make_plan: Make, protection: dict[str, Any], services: list[str]
) -> None:
    plan = make_plan(protection=protection)
    named = [view.party for view in trust_model(round_setup(plan))]
    assert named[0].startswith("coordinator")
    assert named[1:] == [*services, "one agent", "the public"]


def test_whoever_adds_the_noise_is_said_to_see_sums_without_it(make_plan: Make) -> None:
    masked = views(make_plan(CENTRAL))["coordinator"]
    assert "without noise" in masked[0]
    assert "adding noise" in masked[1]
    encrypted = views(make_plan(CENTRAL, protection={"kind": "bfv"}))
    assert "without noise" in encrypted["key authority"][0]
    assert "adding noise before anybody sees a sum" in encrypted["key authority"][1]
    assert "without noise" not in encrypted["coordinator with up to 1 agents"][0]
    for mechanism in ("skellam", "discrete-gaussian"):
        others = views(make_plan(privacy={"mechanism": mechanism}))
        assert not any("without noise" in sees for sees, _ in others.values())


def test_who_holds_uploads_is_said_to_be_able_to_read_them(make_plan: Make) -> None:
    for readding in ("key-authority", "auditor", "none"):
        found = views(make_plan(protection={"kind": "bfv", "readding": readding}))
        can_read = "decrypt one by one" in found["key authority"][0]
        assert can_read == (readding == "key-authority")
        coordinator = found["coordinator with up to 1 agents"][1]
        assert "not colluding with the key authority" in coordinator
        assert ("adding correctly" in coordinator) == (readding == "none")


def test_a_sum_in_the_clear_is_not_called_protected(make_plan: Make) -> None:
    plain = secure_aggregation(round_setup(make_plan(protection={"kind": "none"})))
    assert (plain.protocol, plain.cryptographic) == ("none", False)
    for kind in ("pairwise", "bfv", "ckks"):
        assert secure_aggregation(round_setup(make_plan(protection={"kind": kind}))).cryptographic
    ckks = secure_aggregation(round_setup(make_plan(protection={"kind": "ckks"})))
    assert "if they upload real encryptions" in ckks.threat_model


def stated(plan: Plan, folder: Path) -> Statement:
    setup = round_setup(plan)
    with Ledger.open(folder / "ledger.db") as ledger:
        row = ledger.reserve(setup.charge("task/0/0", group="task/0/0"))
        ledger.settle(row, setup.settled(plan.fleet.agents))
        return run_statement(setup, ledger, deterministic=False)


def test_without_colluders_an_agent_that_knows_its_share_is_claimed_against(
    tmp_path: Path, make_plan: Make
) -> None:
    claims = stated(make_plan(privacy={"max_colluding": 0}), tmp_path).epsilon.claims
    assert not isinstance(claims, str)
    epsilon = {claim.adversary: claim.epsilon for claim in claims}
    assert epsilon["one agent"] > epsilon["coordinator+0"]


def test_a_run_without_noise_is_nowhere_said_to_be_noised(
    tmp_path: Path, make_plan: Make, agent_unit: dict[str, Any]
) -> None:
    for number, unit in enumerate(({}, agent_unit)):
        for kind in ("pairwise", "bfv", "none"):
            plan = make_plan(unit, protection={"kind": kind})
            control = plan.replace("privacy", mechanism="none")
            folder = tmp_path / f"{number}-{kind}"
            folder.mkdir()
            found = stated(control, folder)
            fields = (found.trust_model, found.releases, found.side_releases, found.randomness)
            assert "noised" not in repr(fields)
            assert "plus integer noise" not in repr(fields)
            assert found.accountant.lifetime_budget.startswith("not applicable")


def test_a_sum_of_locally_noised_deltas_is_not_said_to_get_noise(
    tmp_path: Path, make_plan: Make
) -> None:
    local = make_plan(
        privacy={"mechanism": "local-skellam"},
        federation={"strategy": "fedavg"},
        training={"local_steps": 2, "local_learning_rate": 0.1},
        protection={"kind": "none"},
    )
    found = stated(local, tmp_path)
    assert "after local steps with noise of their own" in found.releases[0].what
    assert not any("public only" in item for item in found.caveats.items)


def test_what_an_agent_keeps_between_rounds_is_stated(
    make_plan: Callable[..., Plan], agent_unit: dict[str, Any]
) -> None:
    def side(*sections: dict[str, Any]) -> Any:
        return _side_releases(round_setup(make_plan(*sections)))

    assert side().normaliser_state == "none is kept"
    assert side(agent_unit).normaliser_state == "none is kept"
    ppo = {"algorithm": "ppo", "local_learning_rate": 0.01}
    kept = AgentLearner(
        private_critic=(4,), normalise_observations=True, target_kl=0.02, reset_optimiser=False
    )
    found = side(agent_unit, {"training": ppo | {"learner": kept}})
    for words in ("running means", "private critic", "optimiser's state", "not released"):
        assert words in found.normaliser_state
    assert "stop on its own data" in found.early_stopping
    assert "stop on its own data" not in side(agent_unit).early_stopping
    dqn = {"algorithm": "dqn", "local_learning_rate": 0.01, "target_rounds": 100}
    kept_by_dqn = side(agent_unit, {"training": dqn}).normaliser_state
    assert "a replay memory and a target network" in kept_by_dqn


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({}, "policy gradients, as a new policy"),
        (
            {"training": {"algorithm": "a2c"}, "policy": {"critic_hidden": (4,)}},
            "policy gradients and of a critic's",
        ),
        ({"training": {"algorithm": "dqn"}}, "gradients of action values"),
    ],
)
def test_what_is_released_names_every_part_of_the_vector(
    make_plan: Callable[..., Plan], sections: dict[str, Any], words: str
) -> None:
    assert words in _releases(round_setup(make_plan(sections)))[0].what
