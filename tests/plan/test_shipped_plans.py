"""The plans that are shipped, and the controls that are compared with them."""

from __future__ import annotations

import dataclasses
from importlib import resources

import pytest

from privfedrl.plan import Plan


def _shipped(name: str) -> Plan:
    text = resources.files("privfedrl").joinpath("plans", f"{name}.toml").read_text("utf-8")
    return Plan.from_text(text)


@pytest.mark.parametrize("fleet", ["cartpole_fleet", "lunarlander_fleet"])
def test_a_control_differs_from_its_plan_in_what_its_name_says_and_nothing_else(fleet: str) -> None:
    plan = _shipped(fleet)
    unprotected = plan.replace("protection", kind="none")
    nonprivate = unprotected.replace("privacy", mechanism="none")
    for suffix, expected in (("unprotected", unprotected), ("nonprivate", nonprivate)):
        control = _shipped(f"{fleet}_{suffix}")
        assert dataclasses.replace(control, name=plan.name) == expected


@pytest.mark.parametrize("fleet", ["cartpole_fleet", "lunarlander_fleet"])
def test_a_shipped_plan_promises_epsilon_one_against_the_coordinator_and_two_agents(
    fleet: str,
) -> None:
    plan = _shipped(fleet)
    first = plan.check().views[0]
    assert first.adversary == "coordinator+2"
    assert first.epsilon is not None
    assert 0.999 < first.epsilon <= 1.0
    assert (plan.privacy.delta, plan.privacy.unit) == (1e-5, "trajectory")
