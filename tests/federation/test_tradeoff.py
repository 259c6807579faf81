"""The trade-off table holds the figures of plans that were really changed, and refusals."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from privfedrl.errors import ConfigurationError, MissingExtraError, StorageError
from privfedrl.federation.setup import round_setup
from privfedrl.federation.tradeoff import EPSILONS, fleets, point, tradeoff
from privfedrl.federation.tradeoff_picture import write_picture
from privfedrl.plan import Plan
from privfedrl.privacy import epsilon as accounted
from privfedrl.privacy.calibration import Target, mechanism_epsilon

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "src" / "privfedrl" / "plans").glob("*.toml"))
CARTPOLE = Plan.from_toml(ROOT / "examples" / "plans" / "cartpole_fleet.toml")
LANDER = Plan.from_toml(ROOT / "examples" / "plans" / "lunarlander_fleet.toml")
NOISELESS = Plan.from_toml(ROOT / "examples" / "plans" / "cartpole_fleet_nonprivate.toml")
AGENTS = dataclasses.replace(
    CARTPOLE,
    privacy=dataclasses.replace(CARTPOLE.privacy, unit="agent", epsilon=5.0, mean_return=None),
    federation=dataclasses.replace(CARTPOLE.federation, strategy="fedavg"),
)


def _with_privacy(**changes: Any) -> Plan:
    return CARTPOLE.replace("privacy", **changes)


MECHANISMS = {
    "cartpole": CARTPOLE,
    "lander": LANDER,
    "agents": AGENTS,
    "persons": _with_privacy(unit="person", max_rounds_per_unit=10, max_trajectories_per_unit=4),
    "discrete gaussian": _with_privacy(mechanism="discrete-gaussian"),
    "central": _with_privacy(mechanism="central-discrete-gaussian"),
    "local": dataclasses.replace(
        CARTPOLE,
        privacy=dataclasses.replace(CARTPOLE.privacy, mechanism="local-skellam", mean_return=None),
        federation=dataclasses.replace(CARTPOLE.federation, strategy="fedavg"),
    ),
}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_plan_has_a_table_of_at_most_fourteen_choices(path: Path) -> None:
    plan = Plan.from_toml(path)
    found = tradeoff(plan)
    assert {point.epsilon for point in found.by_epsilon} == {*EPSILONS, plan.privacy.epsilon}
    assert [point.agents for point in found.by_agents] == list(fleets(plan))
    assert len(found.by_rounds) == 3
    assert len(found.by_epsilon) + len(found.by_agents) <= 11
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == json.loads(
        json.dumps(dataclasses.asdict(found))
    )
    assert len(found.summary().splitlines()) <= 8
    assert all(len(line) <= 100 for line in found.summary().splitlines())


@pytest.mark.parametrize("plan", MECHANISMS.values(), ids=MECHANISMS)
def test_every_row_is_the_least_noise_that_keeps_its_epsilon(plan: Plan) -> None:
    """Asked of the accountant again, with the events that a run of the changed plan charges."""
    found = tradeoff(plan)
    for row in (*found.by_epsilon, *found.by_agents, *found.by_rounds):
        if row.problem is not None:
            continue
        own = round_setup(plan).mechanism
        assert own is not None
        assert row.share_variance is not None
        assert row.noise_shares is not None
        assert row.releases_per_unit is not None
        for variance, kept in ((row.share_variance, True), (row.share_variance - 1, False)):
            mechanism = dataclasses.replace(own, share_variance=variance)
            spent = mechanism_epsilon(
                mechanism,
                min_honest=row.noise_shares,
                epsilon=row.epsilon,
                delta=plan.privacy.delta,
                participations=row.releases_per_unit,
            )
            assert (spent <= row.epsilon) is kept, row


def test_the_plans_own_row_is_what_its_promise_says() -> None:
    for plan in (CARTPOLE, LANDER, AGENTS):
        found, promised = tradeoff(plan), plan.check()
        for block in (found.by_epsilon, found.by_agents, found.by_rounds):
            (own,) = [row for row in block if row.is_plan]
            assert own.noise_multiplier == promised.noise_multiplier
            assert own.noise_shares == promised.honest_floor
            assert own.releases_per_unit == promised.releases_per_unit


def test_the_noise_of_the_mean_is_that_of_all_survivors_over_the_public_number_of_units() -> None:
    setup = round_setup(CARTPOLE)
    assert setup.mechanism is not None
    grid = setup.total_clip / CARTPOLE.encoding.resolution
    expected = math.sqrt(10 * setup.mechanism.share_variance) * grid / (10 * 32)
    found = point(CARTPOLE)
    assert found.mean_noise_std == pytest.approx(expected / CARTPOLE.privacy.clip_norm)
    assert found.mean_noise_norm == pytest.approx(expected * math.sqrt(226))
    wider = point(CARTPOLE.replace("privacy", clip_norm=7.0))
    assert wider.mean_noise_norm == pytest.approx(found.mean_noise_norm)


def test_more_epsilon_more_agents_and_fewer_rounds_need_less_noise() -> None:
    found = tradeoff(AGENTS)
    for block, order in ((found.by_epsilon, 1), (found.by_agents, 1), (found.by_rounds, -1)):
        noise = [row.mean_noise_norm for row in block if row.mean_noise_norm is not None]
        assert len(noise) >= 3
        assert noise[::order] == sorted(noise, reverse=True)


def test_fresh_trajectories_cost_the_same_however_many_rounds() -> None:
    rows = tradeoff(CARTPOLE).by_rounds
    assert [row.rounds for row in rows] == [35, 70, 140]
    assert len({row.share_variance for row in rows}) == 1
    assert all(row.most_releases is None for row in rows)
    assert "most" not in str(tradeoff(CARTPOLE))
    assert "affordable" not in tradeoff(CARTPOLE).summary()


def test_the_plans_noise_affords_its_own_rounds_and_not_one_more() -> None:
    found = tradeoff(AGENTS)
    own = next(row for row in found.by_epsilon if row.is_plan)
    assert own.most_releases == AGENTS.federation.rounds
    assert "affordable" in found.summary()
    counts = [row.most_releases for row in found.by_epsilon]
    assert counts == sorted(counts, key=lambda n: -1 if n is None else n)
    assert counts[0] == 0  # a quarter does not pay for one release of this noise
    setup = round_setup(AGENTS)
    assert setup.mechanism is not None
    for row in found.by_epsilon[1:]:
        target = Target(epsilon=row.epsilon, delta=AGENTS.privacy.delta)
        event = setup.mechanism.event(AGENTS.noise_floor)
        for extra, kept in ((0, True), (1, False)):
            releases = [event] * ((row.most_releases or 0) + extra)
            spent = accounted(releases, target.delta - 1e-20).epsilon
            assert (spent <= target.epsilon) is kept, row


def test_a_stated_threshold_stays_the_same_share_of_the_fleet() -> None:
    assert LANDER.protection.threshold == 9
    floors = {row.agents: row.noise_shares for row in tradeoff(LANDER).by_agents}
    assert floors == {5: 5 - 2, 10: 9 - 2, 20: 18 - 2, 40: 36 - 2}


def test_what_the_rules_refuse_is_a_row_with_the_reason() -> None:
    found = tradeoff(CARTPOLE)  # half the fleet leaves two honest survivors of three
    small = found.by_agents[0]
    assert (small.agents, small.mean_noise_norm, small.is_plan) == (5, None, False)
    assert small.problem is not None
    assert "protection.min_honest" in small.problem
    printed = str(found).splitlines()
    assert printed[-1] == f"[1] {small.problem}"
    assert any(line.endswith("[1]") for line in printed)


def test_what_the_ring_refuses_is_a_row_with_the_reason() -> None:
    lanes = dataclasses.replace(
        LANDER, encoding=dataclasses.replace(LANDER.encoding, ring_bits=64, lane_bits=21)
    )
    problems = [row.problem for row in tradeoff(lanes).by_agents if row.problem is not None]
    assert problems
    assert all("lane_bits" in text for text in problems)


def test_an_unreachable_epsilon_is_a_row_with_the_reason() -> None:
    row = point(AGENTS, epsilon=1e-9)
    assert row.problem is not None
    assert "share variance above" in row.problem
    assert row.share_variance is None


def test_a_plan_that_is_infeasible_itself_has_no_table() -> None:
    with pytest.raises(ConfigurationError, match="share variance above"):
        tradeoff(AGENTS.replace("privacy", epsilon=1e-9))


def test_a_plan_without_noise_is_told_what_noise_would_take() -> None:
    found, noised = tradeoff(NOISELESS), tradeoff(CARTPOLE)
    assert found.noiseless
    assert not any(row.is_plan for row in found.by_epsilon)
    assert "if skellam noise were added" in found.summary()
    assert "*" not in found.summary()
    assert [row.share_variance for row in found.by_epsilon] != []
    assert found.by_epsilon[2].epsilon == noised.by_epsilon[2].epsilon == 1.0
    assert found.by_epsilon[2].noise_multiplier == pytest.approx(
        noised.by_epsilon[2].noise_multiplier, rel=1e-2
    )


@pytest.mark.parametrize(
    ("plan", "columns"), [(CARTPOLE, 8), (AGENTS, 9), (NOISELESS, 8)], ids=["own", "agents", "none"]
)
def test_every_cell_ends_under_the_name_of_its_column(plan: Plan, columns: int) -> None:
    lines = str(tradeoff(plan)).splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith(" epsilon "))
    ends = [match.end() for match in re.finditer(r"\S+", lines[start])]
    assert len(ends) == columns
    rows = [line for line in lines[start + 1 :] if not line.startswith(("--", "["))]
    assert len(rows) == 6 + 4 + 3 + (plan is AGENTS)  # its epsilon, 5, is none of the usual six
    for line in rows:
        found = [match.end() for match in re.finditer(r"\S+", line[: ends[-1]])]
        assert found == ends, line


# --- the picture --------------------------------------------------------------------------------

PNG = b"\x89PNG\r\n\x1a\n"


def _size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(PNG)
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


@pytest.mark.parametrize(
    "plan",
    [CARTPOLE, LANDER, NOISELESS, AGENTS.replace("privacy", epsilon=40.0)],
    ids=["a fleet refused", "all fleets", "no noise", "an epsilon beyond the usual"],
)
def test_a_picture_is_drawn_for_every_kind_of_plan(plan: Plan, tmp_path: Path) -> None:
    target = tmp_path / "tradeoff.png"
    target.write_bytes(b"old")
    write_picture(plan, target)
    assert _size(target) == (1080, 675)


def test_a_picture_needs_a_name_that_says_png(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"must end in \.png, got 'plan\.toml'"):
        write_picture(CARTPOLE, tmp_path / "plan.toml")
    assert not list(tmp_path.iterdir())


def test_a_picture_in_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        write_picture(CARTPOLE, tmp_path / "absent" / "tradeoff.png")


def test_a_missing_matplotlib_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"privfedrl\[report\]"):
        write_picture(CARTPOLE, tmp_path / "tradeoff.png")


# --- the document -------------------------------------------------------------------------------

DOCUMENT = (ROOT / "docs" / "calibration.md").read_text(encoding="utf-8")


def test_the_document_shows_the_table_of_the_demo_plan() -> None:
    printed = "\n".join(f"    {line}" for line in tradeoff(CARTPOLE).summary().splitlines())
    assert printed in DOCUMENT


def test_the_code_of_the_document_gives_the_numbers_beside_it() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    checked = re.sub(r"^(\w+\(.*\))  # (\d+)$", r"assert \1 == \2", block, flags=re.MULTILINE)
    assert checked.count("assert ") == 2
    exec(checked, names)
