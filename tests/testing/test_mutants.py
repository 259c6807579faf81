"""The kit is tested itself: every seeded defect is noticed, and nothing that is right."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from privfedrl.errors import ConfigurationError
from privfedrl.secagg import SecAggClient
from privfedrl.testing import mutants, simulacra, simulacra_parties, simulacra_rules
from privfedrl.testing.adapter import RoundSpec
from privfedrl.testing.attacks import ATTACKS, run_attack
from privfedrl.testing.bench import Bench
from privfedrl.testing.known_answers import KNOWN_ANSWERS
from privfedrl.testing.mutant_seeded import Patch, Seeded
from privfedrl.testing.mutants import CORRECT, MUTANTS, check_mutants, examine, main
from privfedrl.testing.replay import load_adapter
from privfedrl.testing.scene import Scene
from privfedrl.testing.suites import UNIFORMITY
from privfedrl.testing.verdict import Status, reference_of

TYPICAL = (
    "no-agreement",
    "no-journal",
    "unbound-masks",
    "late-vector",
    "keys-of-32-bits",
    "toy-twister",
    "toy-overlap",
    "toy-lost-at-setup",
)
ROWS = {mutant.id: mutant for mutant in MUTANTS}
ORIGINALS = {
    (id(patch.owner), patch.name): vars(patch.owner).get(patch.name)
    for patch in (
        patch
        for mutant in MUTANTS
        for patch in getattr(mutant.make, "patches", ())
        if hasattr(patch.owner, "__dict__")
    )
}


def test_the_table_holds_both_families_and_every_id_once() -> None:
    seeded = [mutant for mutant in MUTANTS if not mutant.id.startswith("toy-")]
    assert len(seeded) >= 34
    assert len(MUTANTS) - len(seeded) >= 10
    assert len(ROWS) == len(MUTANTS)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in ROWS)


def test_every_row_names_who_should_notice_it() -> None:
    known = {attack.id for attack in (*ATTACKS, *UNIFORMITY)}
    known |= {answer.id for answer in KNOWN_ANSWERS} | {f"I{number}" for number in range(1, 13)}
    for mutant in MUTANTS:
        assert mutant.expected, mutant.id
        assert set(mutant.expected) <= known, mutant.id
        assert mutant.title, mutant.id
        assert mutant.fault, mutant.id


@pytest.mark.parametrize("name", ROWS)
def test_a_row_acts_only_while_its_own_adapter_does(name: str) -> None:
    adapter = ROWS[name].make()
    bench = Bench(adapter)
    scene = bench.scene()
    server = scene.server()
    scene.run(server, scene.clients())
    if isinstance(adapter, Seeded):
        with adapter.applied():
            inside = [_present(patch) for patch in adapter.patches]
        after = [_present(patch) for patch in adapter.patches]
        assert all(one is not two for one, two in zip(inside, after, strict=True))
    for patch in getattr(adapter, "patches", ()):
        if (id(patch.owner), patch.name) in ORIGINALS:
            assert vars(patch.owner)[patch.name] is ORIGINALS[id(patch.owner), patch.name]
    Bench(CORRECT["reference"]()).honest_round(Scene(CORRECT["reference"](), RoundSpec()))


def _present(patch: Patch) -> Any:
    if isinstance(patch.owner, dict):
        return patch.owner[patch.name]
    return (
        vars(patch.owner)[patch.name]
        if hasattr(patch.owner, "__dict__")
        else getattr(patch.owner, patch.name)
    )


def test_a_patch_is_undone_when_the_party_raises() -> None:
    adapter = ROWS["any-address"].make()
    before = SecAggClient._check_address
    spec = RoundSpec()
    client = adapter.make_client(spec, "client-000", np.zeros(4, np.uint32), {})
    packet = adapter.start(adapter.make_server(spec))[0]
    adapter.deliver(client, packet)
    with pytest.raises(adapter.errors):
        adapter.deliver(client, type(packet)("server", "client-000", b"junk"))
    assert SecAggClient._check_address is before


def test_typical_mutants_are_killed_by_what_should_notice_them() -> None:
    report = check_mutants(TYPICAL, jobs=2)
    assert report.ok, report.to_text()
    assert not report.surprises
    assert {each.id for each in report.killed} == set(TYPICAL)
    assert json.loads(report.to_json())["ok"] is True
    assert all(name in report.to_text() for name in TYPICAL)


def test_the_correct_toy_passes_the_attacks_that_its_variants_fail() -> None:
    expected = {
        name for mutant in MUTANTS if mutant.id.startswith("toy-") for name in mutant.expected
    }
    toy = CORRECT["correct toy"]()
    for attack in ATTACKS:
        if attack.id in expected:
            assert run_attack(toy, attack).status is Status.PASSED, attack.id


def test_the_reference_passes_the_attacks_that_the_typical_mutants_fail() -> None:
    wanted = {name for mutant in TYPICAL for name in ROWS[mutant].expected}
    reference = CORRECT["reference"]()
    for attack in (*ATTACKS, *UNIFORMITY):
        if attack.id in wanted:
            status = run_attack(reference, attack).status
            assert status in (Status.PASSED, Status.NOT_APPLICABLE), attack.id


def test_a_protocol_without_a_fault_survives_the_examination(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mutants, "_EVERY", mutants._EVERY[::9])
    found = examine("nothing", CORRECT["correct toy"](), expected=("A13-view",), profiles=())
    assert not found.by, found.detail


def test_a_mutant_that_hangs_is_ended_and_one_that_dies_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hang(name: str) -> None:
        while True:
            pass

    monkeypatch.setattr(mutants, "_examine_named", hang)
    report = check_mutants(["late-vector"], limit_s=0.3)
    assert [each.by for each in report.killed] == ["timeout"]
    monkeypatch.setattr(mutants, "_examine_named", lambda name: exit(3))
    report = check_mutants(["late-vector"], limit_s=30)
    assert [each.by for each in report.survived] == ["crash"]
    assert not report.ok


def test_a_survivor_gives_exit_code_1_and_an_unknown_id_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mutants, "_examine_named", lambda name: mutants.Examined(id=name))
    assert main(["--only", "late-vector"]) == 1
    assert "survived" in capsys.readouterr().out
    assert main(["--only", "no-such-mutant"]) == 2
    with pytest.raises(ConfigurationError, match="no-such-mutant"):
        check_mutants(["no-such-mutant"])


def test_scripts_of_a_mutant_find_its_adapter_again() -> None:
    for mutant in MUTANTS:
        adapter = mutant.make()
        assert load_adapter(reference_of(adapter)).name == adapter.name


@pytest.mark.parametrize("module", [simulacra, simulacra_parties, simulacra_rules])
def test_simulacra_import_nothing_of_the_protocol_under_test(module: ModuleType) -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    imported = {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [
        name for name in imported if name.startswith(("privfedrl.secagg", "privfedrl.primitives"))
    ]


@pytest.mark.slow
def test_every_mutant_is_killed_and_nothing_correct_is_alarming() -> None:
    report = check_mutants(jobs=2)
    assert report.ok, report.to_text()
    assert not report.surprises, report.to_text()
