"""Every pitfall is caught through the channels that its row names; everything shipped is clean."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from privfedrl.privacy.units import Unit
from privfedrl.testing import isolation, isolation_report
from privfedrl.testing.isolation import lint_trainer, main
from privfedrl.testing.isolation_pitfalls import PITFALLS
from privfedrl.testing.isolation_report import examine, judge_pitfall, judge_shipped
from privfedrl.testing.isolation_shipped import SHIPPED
from privfedrl.testing.isolation_values import Channel, UnitLeak

DOCUMENT = (Path(__file__).parents[2] / "docs" / "leak-linter.md").read_text(encoding="utf-8")
# every unit and policy; all of them are in the slow test
TYPICAL = [
    row
    for row in SHIPPED
    if "continue, entropy 0.05" in row.options or "some admitted" in row.options
][::5]


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


def test_the_shipped_table_is_a_product_of_all_options():
    assert len({row.name for row in SHIPPED}) == len(SHIPPED)
    assert {row.unit for row in SHIPPED} == set(Unit)
    settings = [row.settings for row in SHIPPED]
    for values in (
        {s.truncation.value for s in settings},
        {s.entropy_weight for s in settings},
        {s.return_release is None for s in settings},
        {s.clip_quantile is None for s in settings},
        {s.local_steps for s in settings if s.unit is Unit.AGENT},
        {s.max_trajectories_per_unit for s in settings if s.unit is Unit.PERSON} - {2},
        {row.action for row in SHIPPED},
    ):
        assert len(values) == 2


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
    assert any(line.startswith("trajectory, categorical") for line in lines)
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
