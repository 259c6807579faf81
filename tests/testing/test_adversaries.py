"""The bench itself: scenes replay, the oracle sees, forks and lies are what they claim to be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from privfedrl.testing.adapter import Aggregate, Claim, Packet, RoundSpec
from privfedrl.testing.adversaries import (
    equivocate,
    forge,
    legs_of,
    poke,
    record,
    reveal_leg,
    undisturbed,
    vector_leg,
)
from privfedrl.testing.attack_cases_bytes import garbage, mutations
from privfedrl.testing.bench import Bench, Finding, NotApplicable
from privfedrl.testing.oracle import expected_sum, judge, outputs
from privfedrl.testing.pairwise_guarded import GuardedPairwiseAdapter
from privfedrl.testing.scene import Scene, replay, shrink, spec_changes


@pytest.fixture
def bench() -> Bench:
    return Bench(GuardedPairwiseAdapter())


def test_an_honest_round_gives_the_sum_and_no_violation(bench: Bench) -> None:
    scene = bench.scene()
    server, clients = bench.honest_round(scene)
    (output,) = outputs(scene)
    wanted = expected_sum([party.vector for party in clients.values()], 32)
    assert output.aggregate.total.tolist() == wanted.tolist()
    assert output.survivors == scene.names
    assert len(scene.masked) == len(scene.names)
    assert {reveal.kind for _, _, reveal in scene.revealed} == {"self"}
    assert scene.finished(server)


def test_the_steps_of_a_scene_do_the_same_again(bench: Bench) -> None:
    scene = bench.scene(round=4)
    equivocate(scene, leg=2, hidden={scene.names[0]}, followers=scene.names[3:], ask_both=True)
    again = replay(bench.adapter, spec_changes(scene.spec), scene.steps)
    assert again.steps == scene.steps
    assert [party.refusals for party in again.parties] == [p.refusals for p in scene.parties]
    assert judge(again) == judge(scene) == []


def test_a_replay_leaves_out_what_no_longer_comes_about(bench: Bench) -> None:
    scene = bench.scene()
    bench.honest_round(scene)
    rest = [step for step in scene.steps if step[:2] != ("start", 0)]
    assert outputs(replay(bench.adapter, {}, rest)) == []
    no_server = [step for step in scene.steps if step[1] != 0]
    assert outputs(replay(bench.adapter, {}, no_server)) == []


def test_shrinking_keeps_what_the_finding_needs() -> None:
    steps = [("step", number) for number in range(40)]
    needed = {("step", 7), ("step", 31)}
    tried: list[int] = []

    def still_fails(shorter: Any) -> bool:
        tried.append(len(shorter))
        return needed <= set(shorter)

    assert shrink(steps, still_fails, tries=200) == sorted(needed)
    assert shrink(steps, still_fails, tries=0) == steps
    assert shrink(steps, still_fails, seconds=0.0) == steps
    assert max(tried) < len(steps)


# forks and splices


def test_two_servers_of_one_key_open_with_the_same_bytes(bench: Bench) -> None:
    scene = bench.scene()
    one, two = scene.server(), scene.server()
    first, second = scene.start(one), scene.start(two)
    assert [packet.data for packet in first] == [packet.data for packet in second]


def test_a_fork_shows_two_survivor_sets_that_clients_take_for_their_own(bench: Bench) -> None:
    leg = vector_leg(bench, record(bench.scene()))
    scene = bench.scene()
    hidden, followers = scene.names[0], scene.names[4:]
    first, second = equivocate(scene, leg=leg, hidden={hidden}, followers=followers)
    assert judge(scene) == []
    shown = [{packet.data for packet in track.server.sent} for track in (first, second)]
    assert shown[0] & shown[1]  # the common part
    assert shown[0] - shown[1]
    assert shown[1] - shown[0]
    answered = [
        sum(map(len, (p.sent for p in track.members.values()))) for track in (first, second)
    ]
    assert all(answered)


def test_the_larger_part_of_a_split_still_gets_its_sum(bench: Bench) -> None:
    """So the equivocation attacks reach the end and do not fail for another reason."""
    leg = vector_leg(bench, record(bench.scene()))
    scene = bench.scene()
    equivocate(scene, leg=leg, hidden={scene.names[0]}, followers=scene.names[-1:])
    assert [output.survivors for output in outputs(scene)] == [scene.names]


def test_a_colluder_follows_both_views(bench: Bench) -> None:
    leg = vector_leg(bench, record(bench.scene()))
    scene = bench.scene()
    liar = scene.names[1]
    first, second = equivocate(
        scene, leg=leg, hidden={scene.names[0]}, followers=scene.names[4:], colluders=[liar]
    )
    pair = first.members[liar], second.members[liar]
    assert pair[0] is not pair[1]
    assert not any(party.honest for party in pair)
    assert pair[0].sent[: leg + 1] == pair[1].sent[: leg + 1]
    assert pair[0].sent[leg + 1] != pair[1].sent[leg + 1]


def test_a_lax_server_goes_on_where_an_honest_one_stops(bench: Bench) -> None:
    sent = []
    for lax in (False, True):
        scene = bench.scene()
        server = scene.server(lax=lax)
        scene.run(server, scene.clients(scene.names[:2]), legs=1)
        sent.append(len(server.sent))
        assert judge(scene) == []
    assert sent[1] > sent[0]


def test_forged_packets_carry_a_true_signature(bench: Bench) -> None:
    scene = bench.scene()
    recording = record(scene)
    leg = vector_leg(bench, recording)
    honest = recording.answers[leg][0]
    assert forge(bench, scene, honest) == honest
    forged = forge(bench, scene, honest, vector=lambda vector: vector + np.uint32(1))
    assert forged != honest
    again = bench.scene()
    server, clients = again.server(), again.clients()

    def carry(number: int, answers: list[Packet]) -> list[Packet]:
        return [forged if answer == honest else answer for answer in answers]

    again.run(server, clients, carry=carry)
    assert server.refusals == []


def test_every_lie_of_the_vocabulary_reaches_some_packet(bench: Bench) -> None:
    packets = record(bench.scene()).packets
    for name in (
        "public_keys", "commitment", "sealed", "vector", "shares", "members", "adverts", "consents"
    ):  # fmt: skip
        made = [bench.adapter.forge(RoundSpec(), p, **{name: lambda value: value}) for p in packets]
        assert any(made), name
        assert not all(made), name


def test_a_poked_round_counts_answers_to_hostile_packets(bench: Bench) -> None:
    scene = bench.scene()
    server, clients = scene.server(), scene.clients()
    poke(scene, server, clients, to_clients=lambda leg, packet: [packet])
    assert bench.expect_sum(scene, server, scene.names, "duplicates").survivors == scene.names
    undisturbed(bench, "nothing hostile at all")


def test_legs_are_found_without_knowing_the_protocol(bench: Bench) -> None:
    recording = record(bench.scene())
    assert 0 < vector_leg(bench, recording) < reveal_leg(bench, recording) < legs_of(bench)


def test_an_adapter_that_shows_nothing_cannot_be_looked_into(bench: Bench) -> None:
    class Opaque(GuardedPairwiseAdapter):
        def residues(self, spec: RoundSpec, packet: Packet) -> None:
            return None

        def reveals(self, *_: Any) -> tuple[()]:
            return ()

    opaque = Bench(Opaque())
    recording = record(opaque.scene())
    with pytest.raises(NotApplicable, match="masked vectors"):
        vector_leg(opaque, recording)
    with pytest.raises(NotApplicable, match="shares"):
        reveal_leg(opaque, recording)


# the oracle


class Chosen(GuardedPairwiseAdapter):
    """The server says what the test wants it to say."""

    said: tuple[str, ...] | None = None

    def result(self, server: Any) -> Aggregate:
        right = super().result(server)
        return right if self.said is None else replace_survivors(right, self.said)


def replace_survivors(right: Aggregate, names: tuple[str, ...]) -> Aggregate:
    return Aggregate(total=right.total, survivors=names)


def judged(said: tuple[str, ...], **changes: Any) -> list[str]:
    adapter = Chosen()
    bench = Bench(adapter)
    scene = bench.scene(**changes)
    bench.honest_round(scene)
    adapter.said = said
    return judge(scene)


NAMES = GuardedPairwiseAdapter().client_names(RoundSpec())


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (NAMES[:5], "not the sum"),
        (NAMES[::-1], "not sorted"),
        ((*NAMES[:1], *NAMES), "not sorted"),
        (("nobody",), "never took part"),
        ((), "never took part"),
        ((*NAMES, "outsider"), "never took part"),
        (NAMES[:3], "below the floor"),
    ],
)
def test_the_oracle_sees_wrong_outputs(said: tuple[str, ...], problem: str) -> None:
    assert any(problem in found for found in judged(said))


def test_the_oracle_sees_two_sums_of_one_round(bench: Bench) -> None:
    scene = bench.scene()
    for names in (scene.names, scene.names[1:]):
        scene.stores.clear()  # every disk is lost: what the clients remember is gone
        scene.run(scene.server(), scene.clients(names))
    assert any("2 survivor sets" in found for found in judge(scene))


def test_the_oracle_sees_sums_that_are_too_close(bench: Bench) -> None:
    scene = bench.scene()
    for number, names in ((1, scene.names), (2, scene.names[1:])):
        server = scene.server(round=number)
        scene.stores.clear()
        scene.run(server, scene.clients(names, round=number))
    assert any("differ by 1" in found for found in judge(scene))


def test_the_oracle_sees_a_second_masked_vector_for_a_round(bench: Bench) -> None:
    scene = bench.scene()
    for seed in (b"one", b"two"):
        scene.stores.clear()
        scene.run(scene.server(), scene.clients(seed=seed))
    assert any("2 masked vectors" in found for found in judge(scene))


def test_rules_apply_only_where_they_are_claimed() -> None:
    class Modest(GuardedPairwiseAdapter):
        claims = frozenset({Claim.EXACT_SUM})

    scene = Bench(Modest()).scene()
    for seed in (b"one", b"two"):
        scene.stores.clear()
        scene.run(scene.server(), scene.clients(seed=seed))
    assert judge(scene) == []


def test_the_right_errors_are_refusals_and_others_are_faults(bench: Bench) -> None:
    class Odd(GuardedPairwiseAdapter):
        def deliver(self, party: Any, packet: Packet) -> list[Packet]:
            if packet.data == b"odd":
                raise ZeroDivisionError
            return super().deliver(party, packet)

    scene = Scene(Odd(), RoundSpec())
    client = scene.client(scene.names[0])
    assert scene.deliver(client, Packet("server", client.name, b"bad")) == []
    assert client.refusals
    assert scene.faults == []
    scene.deliver(client, Packet("server", client.name, b"odd"))
    assert "ZeroDivisionError" in scene.faults[0]


def test_a_finding_names_what_is_missing(bench: Bench) -> None:
    scene = bench.scene()
    server = scene.server()
    with pytest.raises(Finding, match="there is no sum"):
        bench.expect_sum(scene, server, scene.names, "nothing ran")
    scene.run(server, scene.clients(scene.names[1:]))
    with pytest.raises(Finding, match=scene.names[0]):
        bench.expect_sum(scene, server, scene.names, "one was away")


# hostile bytes


def test_mutations_differ_from_the_original_and_repeat_with_the_seed() -> None:
    frame = bytes(range(200))
    seen = []
    for _ in range(2):
        stream = mutations(frame, np.random.default_rng(3))
        seen.append([next(stream) for _ in range(300)])
    assert seen[0] == seen[1]
    assert frame not in seen[0]
    assert len({len(each) for each in seen[0]}) > 20
    assert next(mutations(b"x", np.random.default_rng(0))) != b"x"


def test_garbage_is_empty_nested_long_and_foreign() -> None:
    made = garbage(b"PFRL" + bytes(60))
    assert {0, 1} <= {len(each) for each in made} or b"\0" in made
    assert max(map(len, made)) >= 1_000_000
    assert any(each.startswith(b"PFRL") for each in made)
    assert replace(Packet("a", "b", b""), data=made[0]).data == made[0]


def test_sampling_is_even_and_whole_in_the_thorough_profile() -> None:
    adapter = GuardedPairwiseAdapter()
    assert Bench(adapter).sample(range(10), 4) == [0, 3, 6, 9]
    assert Bench(adapter).sample(range(3), 4) == [0, 1, 2]
    assert Bench(adapter, thorough=True).sample(range(10), 4) == list(range(10))
