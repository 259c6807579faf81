"""Schedules, what they do to a round, and what the network remembers of it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from privfedrl.errors import ConfigurationError
from privfedrl.testing.adapter import Packet, Reveal, RoundSpec
from privfedrl.testing.network import (
    Action,
    Edit,
    EditKind,
    Event,
    Fault,
    Run,
    Schedule,
    SimulatedNetwork,
    Step,
    play,
)
from privfedrl.testing.pairwise import PairwiseAdapter
from privfedrl.testing.replay import draw_vectors, judge, load_adapter, replay
from privfedrl.testing.schedule import shrink

ADAPTER = PairwiseAdapter()
SPEC = RoundSpec()
NAMES = ADAPTER.client_names(SPEC)
VECTORS = draw_vectors(ADAPTER, SPEC)
PLACE = "privfedrl.testing.pairwise:PairwiseAdapter"


def survivors(run: Run) -> tuple[str, ...]:
    assert run.aggregate is not None, run.error
    return run.aggregate.survivors


def with_event(fault: Fault, **given: Any) -> Run:
    return play(ADAPTER, SPEC, VECTORS, Schedule(events=(Event(fault=fault, **given),)))


def test_an_honest_round_is_the_exact_sum_of_everybody() -> None:
    run = play(ADAPTER, SPEC, VECTORS)
    assert survivors(run) == NAMES
    assert run.aggregate is not None
    expected = sum(vector.astype(object) for vector in VECTORS.values()) % 2**32
    assert (run.aggregate.total == expected.astype(np.uint32)).all()
    assert not run.refusals
    assert not run.findings
    assert run.transcript is not None


def test_a_run_keeps_every_packet_with_its_stage() -> None:
    run = play(ADAPTER, SPEC, VECTORS)
    assert [sent.number for sent in run.packets] == list(range(60))
    kinds = [{sent.kind for sent in run.packets if sent.stage == stage} for stage in range(5)]
    assert kinds == [
        {"config", "advertise"},
        {"roster", "shares"},
        {"delivery", "masked"},
        {"survivors", "consistency"},
        {"unmask-request", "unmask"},
    ]


def test_the_network_knows_what_the_server_side_has_seen() -> None:
    run = play(ADAPTER, SPEC, VECTORS, Schedule(kept=((NAMES[0], 2),)))
    assert set(run.knowledge.residues) == set(NAMES)  # lost on the way, but it had left
    assert Reveal(NAMES[0], NAMES[1], "pair") in run.knowledge.reveals
    assert Reveal(NAMES[1], NAMES[1], "self") in run.knowledge.reveals
    assert not [each for each in run.knowledge.reveals if each.holder == NAMES[0]]


@pytest.mark.parametrize(("kept", "stage"), [(0, 0), (1, 1), (2, 2)])
def test_a_client_that_falls_silent_before_its_vector_is_not_in_the_sum(
    kept: int, stage: int
) -> None:
    run = play(ADAPTER, SPEC, VECTORS, Schedule(kept=((NAMES[3], kept),)))
    assert survivors(run) == tuple(name for name in NAMES if name != NAMES[3])
    assert run.harmed == {NAMES[3]}


def test_a_dropped_packet_takes_its_sender_out() -> None:
    run = with_event(Fault.DROP, kind="masked", sender=NAMES[1])
    assert NAMES[1] not in survivors(run)


def test_too_many_dropouts_are_a_typed_error_and_no_sum() -> None:
    run = play(ADAPTER, SPEC, VECTORS, Schedule(kept=tuple((name, 2) for name in NAMES[:3])))
    assert run.aggregate is None
    assert isinstance(run.error, ADAPTER.errors)


def test_repeated_and_reordered_packets_change_nothing() -> None:
    honest = play(ADAPTER, SPEC, VECTORS)
    events = (Event(fault=Fault.DUPLICATE), Event(fault=Fault.REORDER, sender=NAMES[0]))
    run = play(ADAPTER, SPEC, VECTORS, Schedule(events=events, order=NAMES[::-1]))
    assert run.transcript == honest.transcript
    accepted = [packet.sender for packet, _ in run.accepted if packet.kind == "advertise"]
    assert accepted[:2] == [NAMES[5]] * 2
    assert accepted[-2:] == [NAMES[0]] * 2


def test_a_late_packet_is_refused_and_its_sender_is_out() -> None:
    run = with_event(Fault.DELAY, kind="masked", sender=NAMES[2])
    assert NAMES[2] not in survivors(run)
    assert [refusal.packet.kind for refusal in run.refusals if refusal.packet] == ["masked"]


def test_a_changed_packet_is_refused_as_foreign() -> None:
    edit = Edit(kind=EditKind.BYTE, position=40, value=7)
    run = with_event(Fault.TAMPER, kind="shares", sender=NAMES[1], edit=edit)
    (refusal,) = run.refusals
    assert (refusal.party, refusal.hostile, refusal.foreign) == ("server", True, True)
    assert not refusal.changed
    assert NAMES[1] not in survivors(run)


def test_a_packet_of_this_round_can_come_back_one_exchange_later() -> None:
    run = with_event(Fault.REPLAY, kind="advertise", sender=NAMES[0])
    taken = [packet for packet, _ in run.accepted if packet.sender == NAMES[0]]
    assert [packet.kind for packet in taken].count("advertise") == 2
    assert survivors(run) == NAMES


def test_packets_of_an_earlier_round_come_back_and_are_refused() -> None:
    first = play(ADAPTER, SPEC, VECTORS)
    event = Event(fault=Fault.REPLAY, kind="masked", argument=1)
    run = play(ADAPTER, RoundSpec(round=2), VECTORS, Schedule(events=(event,)), earlier=(first,))
    assert len([refusal for refusal in run.refusals if refusal.foreign]) == len(NAMES)
    assert survivors(run) == NAMES


@pytest.mark.parametrize(("late", "replies"), [(0, 0), (1, 1)])
def test_a_restarted_client_has_lost_its_round(late: int, replies: int) -> None:
    run = with_event(Fault.RESTART, kind="survivors", recipient=NAMES[1], argument=late)
    signed = [packet.sender for packet in run.of_kind("consistency")]
    assert signed.count(NAMES[1]) == replies
    assert survivors(run) == NAMES  # its vector was in the sum by then


def test_a_restarted_client_keeps_its_store() -> None:
    stores: dict[str, Any] = {}
    play(ADAPTER, SPEC, VECTORS, stores=stores)
    kept = {name: store["journal"] for name, store in stores.items()}
    again = play(ADAPTER, SPEC, VECTORS, stores=stores)
    assert again.aggregate is None  # the round is spent
    assert {name: store["journal"] for name, store in stores.items()} == kept
    assert len(again.refusals) >= len(NAMES)


def test_a_party_with_another_spec_is_a_deceived_one() -> None:
    specs = {NAMES[0]: RoundSpec(model=b"x" * 32)}
    run = play(ADAPTER, SPEC, VECTORS, specs=specs)
    assert survivors(run) == NAMES[1:]
    assert [refusal.party for refusal in run.refusals] == [NAMES[0]]


def test_an_unexpected_exception_is_a_finding_and_never_swallowed() -> None:
    class Crashing(PairwiseAdapter):
        def deliver(self, party: Any, packet: Packet) -> list[Packet]:
            if packet.kind == "masked" and packet.sender == NAMES[0]:
                raise KeyError("boom")
            return super().deliver(party, packet)

    run = play(Crashing(), SPEC, VECTORS)
    (finding,) = run.findings
    assert isinstance(finding.error, KeyError)
    assert "KeyError" in finding.what


def test_a_packet_to_nobody_is_a_finding() -> None:
    class Astray(PairwiseAdapter):
        def start(self, server: Any) -> list[Packet]:
            out = super().start(server)
            return [*out, Packet("server", "nobody", out[0].data, "config")]

    (finding,) = play(Astray(), SPEC, VECTORS).findings
    assert finding.party == "nobody"


def test_a_round_without_end_is_a_finding() -> None:
    class Endless(PairwiseAdapter):
        def close_phase(self, server: Any) -> list[Packet]:
            return []

    run = play(Endless(), SPEC, VECTORS, Schedule(kept=((NAMES[0], 0),)))
    assert "never ends" in run.findings[-1].what
    assert run.aggregate is None
    assert run.error is None


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(),
        Schedule(kept=((NAMES[0], 2),), order=NAMES[::-1]),
        Schedule(events=(Event(fault=Fault.DUPLICATE), Event(fault=Fault.DELAY, kind="masked"))),
        Schedule(events=(Event(fault=Fault.RESTART, kind="roster", recipient=NAMES[4]),)),
        Schedule(events=(Event(fault=Fault.TAMPER, kind="unmask", sender=NAMES[4]),)),
    ],
)
def test_what_the_network_wrote_down_replays_the_same_bytes(schedule: Schedule) -> None:
    first = play(ADAPTER, SPEC, VECTORS, schedule)
    second = play(ADAPTER, SPEC, VECTORS, first.schedule)
    assert [sent.packet for sent in first.packets] == [sent.packet for sent in second.packets]
    assert first.transcript == second.transcript
    assert first.harmed == second.harmed


def test_a_schedule_survives_json() -> None:
    schedule = Schedule(
        events=(Event(fault=Fault.TAMPER, kind="masked", edit=Edit(kind=EditKind.EXTEND)),),
        kept=((NAMES[0], 3),),
        order=NAMES[::-1],
        steps=(
            Step(action=Action.OPEN),
            Step(action=Action.FORK, name=NAMES[1], argument=2, audience=NAMES[:2]),
        ),
    )
    assert Schedule.from_json(schedule.to_json()) == schedule
    assert Schedule().to_json() == "{}"


@pytest.mark.parametrize("text", ["", "[]", '{"events": [{}]}', '{"events": [{"fault": "x"}]}'])
def test_what_is_not_a_schedule_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="not a schedule"):
        Schedule.from_json(text)


@pytest.mark.parametrize("kind", list(EditKind))
@pytest.mark.parametrize("data", [b"", b"x", bytes(100)])
def test_an_edit_never_leaves_the_bytes_as_they_were(kind: EditKind, data: bytes) -> None:
    for position in (0, 1, 99, 10**6):
        for value in (0, 1, 255, 256):
            changed = Edit(kind=kind, position=position, value=value).apply(data)
            assert changed != data


def test_the_script_of_a_schedule_is_a_program_that_replays_it() -> None:
    schedule = Schedule(kept=((NAMES[0], 2),), steps=(Step(action=Action.OPEN),))
    script = schedule.script(PLACE, spec=RoundSpec(vector_length=2))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "0 violations by privfedrl pairwise masking" in done.stderr


def test_a_replay_prints_each_violation_and_says_so_in_its_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = Schedule(kept=((NAMES[0], 2),)).to_json()
    assert replay(PLACE, spec="{}", schedule=schedule) == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(PairwiseAdapter, "ledger_entries", lambda self, server: 2)
    assert replay(PLACE, spec="{}", schedule=schedule) == 1
    assert capsys.readouterr().out == "I7 in round 1: the opened sum has 2 ledger entries\n"


def test_shrinking_keeps_only_what_makes_it_fail() -> None:
    guilty = Event(fault=Fault.DROP, kind="masked", sender=NAMES[1])
    events = (Event(fault=Fault.DUPLICATE), guilty, Event(fault=Fault.REORDER))
    schedule = Schedule(events=events, kept=((NAMES[0], 2), (NAMES[2], 4)), order=NAMES)
    smallest = shrink(schedule, lambda each: guilty in each.events)
    assert smallest == Schedule(events=(guilty,))


def test_steps_that_make_no_sense_are_skipped() -> None:
    network = SimulatedNetwork(ADAPTER, SPEC, VECTORS)
    network.do(Step(action=Action.DELIVER, packet=0))
    assert network.steps == []
    network.open()
    for step in (
        Step(action=Action.DELIVER, packet=999),
        Step(action=Action.REDIRECT, packet=0, name="nobody"),
        Step(action=Action.SUBSTITUTE, packet=0, argument=999),
        Step(action=Action.RESTART, name="nobody"),
        Step(action=Action.CLOSE, argument=7),
    ):
        network.do(step)
    assert survivors(network.finish()) == NAMES


def test_a_fork_shows_its_audience_another_course_and_opens_nothing_twice() -> None:
    network = SimulatedNetwork(ADAPTER, SPEC, VECTORS)
    network.open()
    network.finish()
    network.do(Step(action=Action.FORK, name=NAMES[0], argument=2, audience=NAMES))
    run = network.finish()
    assert network.num_views == 2
    assert set(run.aggregates) == {0}
    assert {sent.kind for sent in run.packets if sent.views == {1}} >= {"survivors"}
    assert not judge(ADAPTER, SPEC, network.schedule())


def test_an_adapter_is_found_by_its_place() -> None:
    assert isinstance(load_adapter(PLACE), PairwiseAdapter)
    with pytest.raises(ConfigurationError, match="must give an AggregationAdapter"):
        load_adapter("privfedrl.testing.adapter:RoundSpec")


@pytest.mark.parametrize("place", ["nowhere:Nothing", "privfedrl.testing.pairwise:Nothing", ""])
def test_a_place_without_adapter_is_refused(place: str) -> None:
    with pytest.raises(ConfigurationError, match="no adapter"):
        load_adapter(place)
