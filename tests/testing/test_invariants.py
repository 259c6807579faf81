"""Each invariant holds of an honest run and is broken by one change to what was seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from privfedrl.errors import RemoteProtocolError
from privfedrl.testing.adapter import Claim, Packet, Reveal, RoundSpec
from privfedrl.testing.invariants import violations
from privfedrl.testing.network import Finding, Refusal, Run, play
from privfedrl.testing.pairwise import PairwiseAdapter
from privfedrl.testing.replay import draw_vectors

ADAPTER = PairwiseAdapter()
SPEC = RoundSpec()
NAMES = ADAPTER.client_names(SPEC)
VECTORS = draw_vectors(ADAPTER, SPEC)


def total(run: Run, **changes: object) -> None:
    run.aggregates[0] = replace(run.aggregates[0], **changes)


def other_sum(run: Run) -> None:
    run.aggregates[1] = replace(run.aggregates[0], survivors=NAMES[:5])


def longer(run: Run) -> None:
    last = run.packets[-1]
    packet = replace(last.packet, data=last.packet.data + b"x")
    run.packets[-1] = replace(last, packet=packet)


def refused(run: Run) -> None:
    error = RemoteProtocolError("no")
    packet = Packet("a", "server", b"x", "masked")
    run.refusals.append(
        Refusal(
            party="server", packet=packet, error=error, hostile=True, foreign=True, changed=True
        )
    )


def second_vector(run: Run) -> None:
    run.knowledge.residues[NAMES[0]].append(np.ones(4, np.uint32))


BREAKS: list[tuple[str, str, Callable[[Run], object]]] = [
    ("I1", "sorted order", lambda run: total(run, survivors=NAMES[::-1])),
    ("I1", "dtype or shape", lambda run: total(run, total=np.zeros(3, np.uint32))),
    ("I1", "in 4 of 4 places", lambda run: total(run, total=run.aggregates[0].total + 1)),
    ("I1", "1 clients that were served", lambda run: total(run, survivors=NAMES[1:])),
    ("I2", "both kinds", lambda run: run.knowledge.reveals.append(Reveal(*NAMES[:2], "pair"))),
    ("I2", "the survivor", lambda run: run.knowledge.reveals.append(Reveal(*NAMES[:2], "pair"))),
    ("I3", "different survivors", other_sum),
    ("I4", "min_clients is 4", lambda run: total(run, survivors=NAMES[:3])),
    ("I4", "too few honest", lambda run: total(run, survivors=NAMES[:3])),
    ("I5", "two masked vectors", second_vector),
    ("I6", "still changed", refused),
    ("I6", "genuine one", lambda run: run.accepted.append((run.of_kind("masked")[0], True))),
    (
        "I6",
        "raised",
        lambda run: run.findings.append(Finding(party="a", what="raised", error=KeyError())),
    ),
    ("I7", "2 ledger entries", lambda run: setattr(run, "ledger_entries", 2)),
    (
        "I8",
        "sent more",
        lambda run: run.findings.append(Finding(party="a", what="sent more after the end")),
    ),
    (
        "I9",
        "without a mask",
        lambda run: run.knowledge.residues.update({NAMES[0]: [VECTORS[NAMES[0]]]}),
    ),
    ("I10", "unmask has 2 different sizes", longer),
    (
        "I11",
        "never ends",
        lambda run: run.findings.append(Finding(party="server", what="the round never ends")),
    ),
    ("I12", "left no transcript", lambda run: setattr(run, "transcript", None)),
    ("I12", "does not verify", lambda run: setattr(run, "transcript", b"x")),
]


@pytest.mark.parametrize(("invariant", "text", "change"), BREAKS)
def test_one_change_breaks_the_invariant(
    invariant: str, text: str, change: Callable[[Run], object]
) -> None:
    run = play(ADAPTER, SPEC, VECTORS)
    assert not violations(ADAPTER, [run])
    change(run)
    found = [str(each) for each in violations(ADAPTER, [run])]
    assert [each for each in found if each.startswith(f"{invariant} in round 1") and text in each]


def test_a_mask_that_repeats_in_another_round_is_found() -> None:
    first, second = play(ADAPTER, SPEC, VECTORS), play(ADAPTER, RoundSpec(round=2), VECTORS)
    assert not violations(ADAPTER, [first, second])
    second.knowledge.residues[NAMES[3]] = first.knowledge.residues[NAMES[2]]
    (found,) = violations(ADAPTER, [first, second])
    assert str(found) == (
        "I5 in round 2: the masked vector of client-003 repeats that of client-002 in 1"
    )


def test_a_lost_quorum_is_no_violation_and_a_kept_one_without_a_sum_is() -> None:
    run = play(ADAPTER, SPEC, VECTORS)
    run.aggregates.clear()
    run.error = RemoteProtocolError("no")
    run.harmed.update(NAMES[:2])
    (found,) = violations(ADAPTER, [run])
    assert found.invariant == "I11"
    run.harmed.update(NAMES[:3])
    assert not violations(ADAPTER, [run])


def test_colluders_answer_for_nothing_and_do_not_count_as_honest() -> None:
    run = play(ADAPTER, SPEC, VECTORS)
    run.knowledge.reveals.append(Reveal(NAMES[1], NAMES[0], "pair"))
    assert violations(ADAPTER, [run])
    assert not violations(ADAPTER, [run], colluding=NAMES[:1])


def test_vectors_too_short_to_tell_apart_are_not_judged() -> None:
    spec = RoundSpec(vector_length=1)
    run = play(ADAPTER, spec, draw_vectors(ADAPTER, spec))
    run.knowledge.residues[NAMES[0]] = [run.vectors[NAMES[0]]]
    assert not violations(ADAPTER, [run, run])


def test_without_a_claim_against_tampering_a_spoilt_sum_is_not_judged() -> None:
    class Plain(PairwiseAdapter):
        claims = frozenset({Claim.EXACT_SUM})

    run = play(Plain(), SPEC, VECTORS)
    total(run, total=run.aggregates[0].total + 1)
    assert violations(Plain(), [run])
    run.accepted.append((run.of_kind("masked")[0], True))
    assert not violations(Plain(), [run])
