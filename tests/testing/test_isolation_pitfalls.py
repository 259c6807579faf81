"""Every pitfall is caught through the channels that its row names; everything shipped is clean."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

from privfedrl.privacy.units import Unit
from privfedrl.testing import isolation, isolation_report
from privfedrl.testing.isolation import lint_trainer, main
from privfedrl.testing.isolation_covering import covering
from privfedrl.testing.isolation_pitfalls import PITFALLS
from privfedrl.testing.isolation_report import examine, judge_pitfall, judge_shipped
from privfedrl.testing.isolation_shipped import SHIPPED, axes
from privfedrl.testing.isolation_values import Channel, UnitLeak
from privfedrl.training import DqnSettings, LocalTrainer, PpoSettings, algorithms, private_step
from privfedrl.training.algorithms import ALGORITHMS
from privfedrl.training.clip_groups import ClippedGroups, total_clip
from privfedrl.training.local_update import clip_rows
from privfedrl.training.trajectory_gradients import fused, hooks

DOCUMENT = (Path(__file__).parents[2] / "docs" / "leak-linter.md").read_text(encoding="utf-8")
# the last row of every cell, and whatever releases a batch more than once in a telling way; all of
# them are in the slow test
TYPICAL = list({(row.algorithm, row.unit): row for row in SHIPPED}.values())
for words in ("guided epochs", "window of", "noised local steps", "some admitted", "mixture 0.2"):
    TYPICAL.append(next(row for row in SHIPPED if words in row.name and row not in TYPICAL))


def named(row) -> str:
    return f"{row.number}-{row.leak}".replace(" ", "-")


@pytest.mark.parametrize("pitfall", [row for row in PITFALLS if not row.sound], ids=named)
def test_a_pitfall_is_noticed_through_its_channels_and_no_other(pitfall):
    """The first telling pair; that all channels of a row show is in the slow test."""
    report = lint_trainer(pitfall.make(), effort="quick", all_pairs=False)
    assert not report.clean
    assert report.channels <= pitfall.channels


@pytest.mark.parametrize("sound", [row for row in PITFALLS if row.sound], ids=named)
def test_a_sound_counterpart_of_a_pitfall_is_clean(sound):
    verdict = judge_pitfall(sound, effort="quick")
    assert verdict.ok, verdict
    assert verdict.moved <= 1.0


def test_all_twenty_pitfalls_are_in_the_table_and_the_free_ones_in_both_forms():
    leaking = {row.number for row in PITFALLS if not row.sound}
    assert leaking == set(range(1, 21))
    assert {row.number for row in PITFALLS if row.sound} == {0, 16, 17}
    seen = frozenset[Channel]().union(*(row.channels for row in PITFALLS))
    assert Channel.SENSITIVITY in seen
    assert len(seen) >= 9


@pytest.mark.parametrize("shipped", TYPICAL, ids=lambda row: row.name.replace(" ", "-"))
def test_a_shipped_trainer_is_clean(shipped):
    verdict = judge_shipped(shipped, effort="quick")
    assert verdict.ok, verdict
    assert verdict.moved <= 1.0


@pytest.mark.parametrize("unit", list(Unit))
@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_every_two_values_of_two_options_of_a_cell_meet_in_some_row(algorithm, unit):
    cell = [row for row in SHIPPED if (row.algorithm, row.unit) == (algorithm, unit)]
    wanted = {
        frozenset((one.words, other.words))
        for table in axes(algorithm, unit)
        for first, second in combinations(table, 2)
        for one, other in product(first, second)
    }
    met = {
        frozenset(pair)
        for row in cell
        for pair in combinations([option.words for option in row.options], 2)
    }
    assert wanted <= met
    assert len({row.name for row in cell}) == len(cell)


def test_the_shipped_table_holds_every_value_that_settings_can_take():
    """From the settings that were built, not from the words of the options."""
    rows = [row for row in SHIPPED if row.unit is not Unit.AGENT]
    agents = [row.settings for row in SHIPPED if row.unit is Unit.AGENT]
    learners = [s.learner for s in agents if isinstance(s.learner, PpoSettings)]
    replays = [s.learner for s in agents if isinstance(s.learner, DqnSettings)]
    assert {row.policy.action for row in SHIPPED} == {"categorical", "gaussian", "q-values"}
    for algorithm, rule in ALGORITHMS.items():
        mine = [row.settings for row in rows if row.algorithm == algorithm]
        assert {s.objective.truncation for s in mine} >= set(rule.truncations)
    assert {row.settings.objective.advantages for row in rows} == {"gae", "returns"}
    assert {row.policy.recurrent for row in SHIPPED} == {0, 2}
    assert {np.isfinite(row.settings.objective.reward_high) for row in SHIPPED} == {True, False}
    assert {s.objective.guidance_weight > 0 for s in (row.settings for row in rows)} == {
        True,
        False,
    }
    assert {row.gradient for row in rows} == {fused, hooks}
    for name in ("return_release", "clip_quantile"):
        assert {getattr(row.settings, name) is None for row in rows} == {True, False}
    for name in ("target_kl", "private_critic_hidden"):
        assert {getattr(one, name) is None for one in learners} == {True, False}
    for name in ("normalise_observations", "normalise_advantages", "reset_optimiser"):
        assert {getattr(one, name) for one in learners} == {True, False}
    for name in ("double", "reset_optimiser"):
        assert {getattr(one, name) for one in replays} == {True, False}
    assert {s.local_steps for s in agents} == {1, 3}


def found_in(row) -> frozenset[Channel]:
    """Through what the first pair of worlds that can be told apart is."""
    return lint_trainer(row.make(), step=row.step, effort="quick", all_pairs=False).channels


@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
def test_advantages_normalised_over_the_batch_are_found_in_the_shipped_trainer(
    algorithm, monkeypatch
):
    exact = algorithms.generalised_advantages

    def normalised(*args, **kwargs):
        advantages, known = exact(*args, **kwargs)
        return (advantages - advantages[known].mean()) / (advantages[known].std() + 1e-8), known

    monkeypatch.setattr(algorithms, "generalised_advantages", normalised)
    row = next(row for row in SHIPPED if row.name.startswith(f"{algorithm}, trajectory"))
    assert Channel.SENSITIVITY in found_in(row)


@pytest.mark.parametrize("words", ["ppo, trajectory, categorical", "dqn, trajectory, q-values"])
def test_one_use_more_than_is_charged_is_found_in_the_shipped_trainer(words, monkeypatch):
    monkeypatch.setattr(LocalTrainer, "_spend", lambda self, batch: None)
    row = next(
        row
        for row in SHIPPED
        if words in row.name and row.settings.uses > 1 and row.step is not None
    )
    assert Channel.COMPOSITION in found_in(row)


def test_a_target_network_of_own_gradients_is_found_in_the_shipped_trainer(monkeypatch):
    """The trainer remembers where its own un-noised rows would lead, and bootstraps from there."""
    original = LocalTrainer.local_update

    def remembering(self, parameters, batch, **options):
        own = getattr(self, "_own", parameters)
        update = original(self, parameters, batch, **(options | {"target": own}))
        self._own = parameters + 10.0 * update.rows.sum(axis=0)[: len(parameters)]
        return update

    monkeypatch.setattr(LocalTrainer, "local_update", remembering)
    row = next(row for row in SHIPPED if row.algorithm == "dqn" and "bootstrap" in row.name)
    assert {Channel.LATER_ROUND, Channel.STATE} & found_in(row)


def test_a_critics_row_that_is_not_clipped_is_found_in_the_shipped_trainer(monkeypatch):
    """One clip for the actor, none for the critic, and the bound of the actor stated for both."""

    def actor_only(rows, groups):
        clipped, count = clip_rows(rows[:, : groups[0].size], groups[0].clip_norm)
        rest = np.nan_to_num(rows[:, groups[0].size :])
        bound = total_clip(groups)
        return ClippedGroups(np.concatenate([clipped, rest], axis=1), bound, (count,))

    monkeypatch.setattr(private_step, "clip_by_group", actor_only)
    monkeypatch.setattr(private_step, "LocalUpdate", _Unchecked)
    row = next(row for row in SHIPPED if row.name.startswith("a2c, trajectory"))
    assert Channel.SENSITIVITY in found_in(row)


@dataclass(frozen=True, kw_only=True)
class _Unchecked:
    """A ``LocalUpdate`` that believes its rows."""

    rows: np.ndarray
    clip_norm: float
    unit: Unit
    nonfinite_units: int
    batch_id: bytes


def test_a_covering_meets_every_pair_in_few_rows_and_is_the_same_every_time():
    table = [range(3), range(4), range(2), range(2), range(2)]
    rows = covering(table)
    assert rows == covering(table)
    for one, other in combinations(range(5), 2):
        met = {(row[one], row[other]) for row in rows}
        assert met == set(product(table[one], table[other]))
    assert 12 <= len(rows) <= 16  # the two longest axes alone need 12; the product has 96
    assert covering([range(3)]) == ((0,), (1,), (2,))


@pytest.mark.slow
def test_the_command_finds_all_pitfalls_and_every_shipped_combination_clean(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "26 of 26 seeded leaks caught" in printed
    assert f"{len(SHIPPED)} of {len(SHIPPED)} shipped combinations clean" in printed


@pytest.fixture(scope="module")
def small():
    """A control, a pitfall and a shipped trainer."""
    return examine(effort="quick", pitfalls=(PITFALLS[0], PITFALLS[3]), shipped=SHIPPED[:1])


def returning(monkeypatch, found) -> None:
    monkeypatch.setattr(isolation_report, "examine", lambda *, effort: found)


def test_the_command_prints_both_tables(small, monkeypatch, capsys):
    returning(monkeypatch, small)
    assert main(["--effort", "quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "#"
    assert any(line.startswith("1  REINFORCE: batch-mean baseline") for line in lines)
    assert any(line.startswith("reinforce, trajectory, categorical") for line in lines)
    assert lines[-1] == "1 of 1 seeded leaks caught, 1 of 1 shipped combinations clean"


def test_the_command_prints_one_json_object(small, monkeypatch, capsys):
    returning(monkeypatch, small)
    assert main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert [row["found"] for row in found["pitfalls"]] == [[], ["sensitivity"]]
    assert found["pitfalls"][1]["moved"] > 2.0
    assert found["shipped"][0]["ok"] is True


def test_a_missed_pitfall_and_an_unclean_trainer_are_failures(monkeypatch, capsys):
    missed = replace(PITFALLS[3], make=PITFALLS[0].make)
    leaking = replace(
        SHIPPED[0], step=lambda t, theta, collect: (t.local_update(theta, collect(theta)),) * 2
    )
    for wrong in ({"pitfalls": (missed,)}, {"shipped": (leaking,)}):
        chosen = {"pitfalls": (), "shipped": (), **wrong}
        returning(monkeypatch, examine(effort="quick", **chosen))
        assert main([]) == 1
        assert "NOT AS EXPECTED" in capsys.readouterr().out


def test_a_movement_that_cannot_be_measured_is_null(small):
    unmeasured = replace(small, pitfalls=(replace(small.pitfalls[0], moved=float("nan")),))
    assert unmeasured.to_dict()["pitfalls"][0]["moved"] is None


# --- the document --------------------------------------------------------------------------------


def test_the_document_lists_every_pitfall_with_its_channels():
    rows = dict(re.findall(r"^\| \d+ \| ([^|]+?) \| ([^|]+?) \|", DOCUMENT, flags=re.MULTILINE))
    for row in PITFALLS:
        channels = ", ".join(sorted(channel.value for channel in row.channels)) or "clean"
        assert rows[f"{row.where}: {row.leak}"] == channels


def test_the_example_of_the_document_is_caught_and_passes_when_it_is_repaired():
    (code,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
    (cure,) = re.findall(r"\(`(np\.stack.*?)`\)", DOCUMENT)
    assert len(code.splitlines()) <= 26
    wrong = "np.resize(seen, (len(seen), self.dimension))"
    assert wrong in code
    for text, leaks in ((code, True), (code.replace(wrong, cure), False)):
        scope: dict = {}
        exec(text, scope)
        if leaks:
            with pytest.raises(UnitLeak):
                scope["test_nobody_can_be_noticed"]()
        else:
            scope["test_nobody_can_be_noticed"]()


def test_every_channel_is_explained_in_the_document():
    for channel in Channel:
        assert channel.value in DOCUMENT
    assert "does not prove" in DOCUMENT
    assert isolation.__doc__ is not None
