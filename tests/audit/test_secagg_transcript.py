"""The audit of signed records: honest chains pass, and every tampering is named."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedrl.audit import TranscriptReport, verify_transcripts
from privfedrl.errors import ConfigurationError
from privfedrl.parties import Registry
from privfedrl.secagg import Transcript

OTHER = b"o" * 32


def problems(report: TranscriptReport) -> list[tuple[str, ...]]:
    return [one.problems for one in report.rounds]


def test_an_honest_chain_is_verified_and_named(three_rounds: Any) -> None:
    made = three_rounds
    report = verify_transcripts(made.frames, made.registry, previous=bytes(32), sums=made.sums)
    assert report.ok
    assert [(one.round, one.attempt) for one in report.rounds] == [(0, 0), (1, 0), (2, 1)]
    everybody = tuple(made.agents)
    assert [one.survivors for one in report.rounds] == [everybody, everybody[:4], everybody]
    assert {one.protection for one in report.rounds} == {"pairwise masking"}
    assert [one.ledger_head for one in report.rounds] == [f"0{n}" * 32 for n in (1, 2, 3)]
    assert all(one.sum_checked for one in report.rounds)
    assert [one.name for one in report.rounds] == ["0", "1", "2"]
    assert report.head == made.head.hex()
    assert report.registry_digest == made.registry.digest.hex()
    assert json.loads(json.dumps(report.to_dict()))["rounds"][1]["survivors"] == list(everybody[:4])


def test_without_a_sum_nothing_is_said_about_it(three_rounds: Any) -> None:
    report = verify_transcripts(three_rounds.frames, three_rounds.registry)
    assert report.ok
    assert not any(one.sum_checked for one in report.rounds)


def test_another_sum_is_a_finding(three_rounds: Any) -> None:
    made = three_rounds
    wrong = made.sums | {1: made.sums[1] + np.uint32(1)}
    report = verify_transcripts(made.frames, made.registry, sums=wrong)
    assert problems(report) == [(), ("the given sum is not the recorded one",), ()]
    assert not report.rounds[1].sum_checked
    widened = {1: made.sums[1].astype(np.uint64)}
    assert not verify_transcripts(made.frames, made.registry, sums=widened).ok


def test_a_sum_without_a_record_is_a_finding(three_rounds: Any) -> None:
    made = three_rounds
    report = verify_transcripts(made.frames, made.registry, sums={9: made.sums[1]})
    assert report.problems == ("a sum was given for round 9, which has no record",)
    assert not report.ok


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 2], [1, 2], [0, 1, 1, 2]])
def test_a_record_left_out_repeated_or_moved_breaks_the_chain(
    three_rounds: Any, order: list[int]
) -> None:
    frames = [three_rounds.frames[index] for index in order]
    report = verify_transcripts(frames, three_rounds.registry)
    assert not report.ok
    assert any("must follow" in line for lines in problems(report) for line in lines)


def test_a_later_part_of_a_chain_needs_the_digest_before_it(three_rounds: Any) -> None:
    made = three_rounds
    first = Transcript.from_bytes(made.frames[0]).digest
    assert verify_transcripts(made.frames[1:], made.registry, previous=first).ok
    report = verify_transcripts(made.frames[1:], made.registry)
    assert "earlier records are missing" in report.rounds[0].problems[0]
    assert not report.rounds[1].problems


def test_a_chain_that_was_cut_misses_the_anchor(three_rounds: Any) -> None:
    made = three_rounds
    for frames in (made.frames, [*made.frames[:2], made.frames[2]]):
        assert verify_transcripts(frames, made.registry, anchor=made.head).ok
    report = verify_transcripts(made.frames[:2], made.registry, anchor=made.head)
    assert "anchor" in report.problems[0]
    assert not report.ok


def test_two_survivor_sets_for_one_round_are_a_finding(deployment: Any) -> None:
    """The second record is sound by itself and even follows the first."""
    made = deployment()
    made.protected(4)
    made.protected(4, attempt=1, absent=frozenset({"agent-0"}))
    first, second = problems(verify_transcripts(made.frames, made.registry))
    assert first == ()
    assert second == ("is a second survivor set for round 4, after 0",)


def test_rounds_and_times_run_forward(deployment: Any) -> None:
    made = deployment()
    made.protected(4)
    made.journals = deployment().journals  # agents that forgot, or other ones with the same keys
    made.now -= 1000
    made.protected(3)
    (line, times) = problems(verify_transcripts(made.frames, made.registry))[1]
    assert line == "round 3 comes after round 4"
    assert "was opened at" in times


def test_a_change_of_task_or_plan_is_a_finding(deployment: Any) -> None:
    made = deployment()
    made.protected(0)
    made.protected(1, task=OTHER)
    made.protected(2, task=OTHER, plan=OTHER)
    found = problems(verify_transcripts(made.frames, made.registry))
    assert found == [
        (),
        ("is about another task_id than 0",),
        ("is about another plan_digest than 1",),
    ]


def test_ledger_heads_are_there_from_first_to_last_and_move(deployment: Any) -> None:
    made = deployment()
    made.protected(0, ledger_head=bytes(32))
    made.protected(1, ledger_head=OTHER)
    made.protected(2, ledger_head=OTHER)
    made.protected(3, ledger_head=bytes(32))
    report = verify_transcripts(made.frames, made.registry)
    assert [one.ledger_head for one in report.rounds] == [None, OTHER.hex(), OTHER.hex(), None]
    assert problems(report) == [
        (),
        (),
        ("names the ledger head of 1: nothing was charged",),
        ("names no ledger head, though earlier records do",),
    ]


def test_an_ideal_record_fails_unless_it_is_allowed(deployment: Any) -> None:
    made = deployment()
    made.ideal(0)
    made.protected(1)
    report = verify_transcripts(made.frames, made.registry, sums=made.sums)
    assert not report.ok
    assert report.rounds[0].protection == "no cryptographic protection"
    assert problems(report) == [
        ("no cryptographic protection: the coordinator saw every input",),
        (),
    ]
    allowed = verify_transcripts(made.frames, made.registry, sums=made.sums, allow_ideal=True)
    assert allowed.ok
    assert allowed.rounds[0].survivors == tuple(made.agents)[1:]
    assert all(one.sum_checked for one in allowed.rounds)


def test_another_registry_does_not_verify(three_rounds: Any, deployment: Any) -> None:
    other = deployment(seed=b"other").registry
    fewer = Registry(entry for entry in three_rounds.registry.entries if entry.name != "agent-4")
    for registry in (other, fewer):
        report = verify_transcripts(three_rounds.frames, registry)
        assert all("registry" in lines[0] for lines in problems(report))


def test_an_identity_that_had_expired_is_a_finding(three_rounds: Any) -> None:
    """Validity is part of the registry's digest, so the auditor's own registry decides."""
    agent = three_rounds.agents["agent-0"]
    entries = [entry for entry in three_rounds.registry.entries if entry.name != "agent-0"]
    registry = Registry([*entries, agent.entry("agent", not_after=5)])
    assert not verify_transcripts(three_rounds.frames, registry).ok


@pytest.mark.parametrize(
    "change",
    [
        {"survivors": b"\x1e"},
        {"survivors": b"\xff"},
        {"survivors": b""},
        {"survivors": b"\x00"},
        {"members": b"\x00\x00"},
        {"shared": b"\xe0"},
        {"vectors": b""},
        {"commitments": b"x"},
        {"adverts": ()},
        {"adverts": (b"",) * 5},
        {"consents": ()},
        {"consents": (b"junk",) * 5},
        {"config": b""},
        {"config": b"PFRL" * 60},
    ],
)
def test_not_even_the_coordinator_can_rewrite_a_record_unnoticed(
    three_rounds: Any, change: dict[str, Any]
) -> None:
    frames = list(three_rounds.frames)
    frames[1] = three_rounds.forge(frames[1], **change)
    report = verify_transcripts(frames, three_rounds.registry)
    assert report.rounds[1].problems
    assert "must follow" in report.rounds[2].problems[0]  # the next record names the original


def test_bytes_that_are_no_record_are_a_finding_and_the_rest_is_still_checked(
    three_rounds: Any,
) -> None:
    made = three_rounds
    report = verify_transcripts([made.frames[0], b"", made.frames[1]], made.registry)
    assert problems(report)[0] == ()
    assert "cannot be read" in report.rounds[1].problems[0]
    assert report.rounds[1].round is None
    assert report.rounds[2].problems


def test_every_mutated_record_is_a_finding_and_never_a_traceback(three_rounds: Any) -> None:
    rng = random.Random(4)
    for _ in range(200):
        data = bytearray(rng.choice(three_rounds.frames))
        original = bytes(data)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if bytes(data) != original:
            assert not verify_transcripts([bytes(data)], three_rounds.registry).ok


@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_are_a_finding(data: bytes, three_rounds: Any) -> None:
    for frame in (data, b"PFRL" + data):
        report = verify_transcripts([frame], three_rounds.registry)
        assert not report.ok
        json.dumps(report.to_dict())


def test_nothing_to_check_is_refused(three_rounds: Any) -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        verify_transcripts([], three_rounds.registry)
    with pytest.raises(ConfigurationError, match="one per frame"):
        verify_transcripts(three_rounds.frames, three_rounds.registry, names=["one"])


def test_the_audit_runs_where_torch_is_not_installed(three_rounds: Any, tmp_path: Path) -> None:
    """Blocking the import stands for an installation with the base dependencies alone."""
    three_rounds.registry.save(tmp_path / "registry.json")
    (tmp_path / "transcript").mkdir()
    for index, frame in enumerate(three_rounds.frames):
        (tmp_path / "transcript" / f"{index:06d}.bin").write_bytes(frame)
    code = f"""
import sys
sys.modules.update(dict.fromkeys(
    ("torch", "opacus", "gymnasium", "tenseal", "hypothesis", "matplotlib", "flwr", "safetensors")
))
sys.argv[1:] = ["audit", "run", "secagg-transcript", {str(tmp_path)!r}, "--json"]
from privfedrl.cli.main import run
run()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is True


# --- homomorphic rounds -------------------------------------------------------------------------


def test_an_honest_homomorphic_chain_is_verified_and_named(encrypted_rounds: Any) -> None:
    made = encrypted_rounds
    report = verify_transcripts(made.frames, made.registry, previous=bytes(32), sums=made.sums)
    assert report.ok, report
    assert [(one.round, one.attempt) for one in report.rounds] == [(0, 0), (1, 0), (2, 1)]
    everybody = made.registry.agents
    assert [one.survivors for one in report.rounds] == [everybody, everybody[:4], everybody]
    expected = "homomorphic encryption with a key authority"
    assert {one.protection for one in report.rounds} == {expected}
    assert all(one.sum_checked for one in report.rounds)
    assert report.num_agents == 5  # neither the key authority nor the auditor is one
    json.dumps(report.to_dict())


def test_another_homomorphic_sum_is_a_finding(encrypted_rounds: Any) -> None:
    made = encrypted_rounds
    wrong = made.sums | {1: made.sums[1] + np.uint32(1)}
    report = verify_transcripts(made.frames, made.registry, sums=wrong)
    assert problems(report) == [(), ("the given sum is not the recorded one",), ()]


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 2], [1, 2], [0, 1, 1, 2]])
def test_a_homomorphic_record_left_out_repeated_or_moved_breaks_the_chain(
    encrypted_rounds: Any, order: list[int]
) -> None:
    frames = [encrypted_rounds.frames[index] for index in order]
    report = verify_transcripts(frames, encrypted_rounds.registry)
    assert any("must follow" in line for lines in problems(report) for line in lines)


def test_every_mutated_homomorphic_record_is_a_finding_and_never_a_traceback(
    encrypted_rounds: Any,
) -> None:
    rng = random.Random(5)
    for _ in range(200):
        data = bytearray(rng.choice(encrypted_rounds.frames))
        original = bytes(data)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if bytes(data) != original:
            assert not verify_transcripts([bytes(data)], encrypted_rounds.registry).ok


def test_a_registry_without_the_key_authority_verifies_no_homomorphic_record(
    encrypted_rounds: Any,
) -> None:
    made = encrypted_rounds
    entries = [one for one in made.registry.entries if one.role != "key-authority"]
    report = verify_transcripts(made.frames, Registry(entries))
    assert all(lines for lines in problems(report))


@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_after_the_other_magic_are_a_finding(
    data: bytes, encrypted_rounds: Any
) -> None:
    for start in (b"PFHE", encrypted_rounds.frames[0][:12]):
        report = verify_transcripts([start + data], encrypted_rounds.registry)
        assert not report.ok
        json.dumps(report.to_dict())
