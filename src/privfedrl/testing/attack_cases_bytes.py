"""Attacks with bytes: other people's, changed, repeated, from elsewhere or made up.

A7 replay, A16 damaged and hostile frames. Unless the server's own key was used, the rule is the
strict one: hostile bytes are refused with a typed error, or taken for the honest ones, and the
round ends with the exact sum over all.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import cycle, islice
from typing import Any, Final

import numpy as np

from privfedrl.testing.adapter import Claim, Packet
from privfedrl.testing.adversaries import Recording, poke, record, undisturbed
from privfedrl.testing.bench import Attack, Bench, Finding, NotApplicable, claims
from privfedrl.testing.oracle import expected_sum
from privfedrl.testing.scene import Party, Scene

__all__ = [
    "BYTE_ATTACKS",
    "damaged_frames",
    "damaged_transcript",
    "duplicates",
    "garbage",
    "hostile_frames",
    "hungry_frames",
    "mutations",
    "old_opening",
    "other_recipients",
    "other_rounds",
    "other_stages",
]

_MEMORY_SLACK: Final = 1 << 20
_MEMORY_FACTOR: Final = 16
_QUICK_FRAMES: Final = 2_000
_THOROUGH_FRAMES: Final = 50_000

# A7: replay


def duplicates(bench: Bench) -> None:
    """Every packet arrives twice at once, and all of a leg's again after the next one."""
    scene = bench.scene()
    past: list[Packet] = []

    def to_server(leg: int, answers: list[Packet]) -> list[Packet]:
        old = list(past)
        past[:] = answers
        return [*old, *(answer for answer in answers for _ in range(2))]

    undisturbed(
        bench,
        "every packet twice",
        scene=scene,
        to_clients=lambda leg, packet: [packet],
        to_server=to_server,
    )
    for party in scene.parties:
        fresh = {packet.data for packet in party.sent}
        more = not party.server and len(fresh) > _round_length(bench)
        bench.expect(not more, f"{party.name} answered a repeated packet anew", scene)


def _round_length(bench: Bench) -> int:
    return len(record(bench.scene()).out)


def other_rounds(bench: Bench) -> None:
    """All packets of another round, attempt or task, before each honest packet."""
    for what, other, own in (
        ("an earlier round", {"round": 1}, {"round": 2}),
        ("an earlier attempt", {"attempt": 0}, {"attempt": 1}),
        ("another task", {"task": b"u" * 32}, {}),
        ("a run with other keys", {"round": 3, "seed": b"other"}, {"round": 4}),
    ):
        scene = bench.scene()
        old = record(scene, **other)
        bench.expect_sum(scene, old.server, scene.names, f"the round before {what}")
        _replayed(bench, scene, old, f"packets of {what}", own)


def _replayed(
    bench: Bench, scene: Scene, old: Recording, what: str, own: Mapping[str, Any]
) -> None:
    shown = _by_recipient(old)
    answers = [packet for leg in old.answers for packet in leg]
    server = scene.server(**own)
    # other inputs than before, or an old round played again as a whole would give the right sum
    fresh = {name: scene.vector(name, 1) for name in scene.names}
    clients = {name: scene.client(name, vector=fresh[name], **own) for name in scene.names}
    poke(
        scene,
        server,
        clients,
        to_clients=lambda leg, packet: shown[packet.recipient] if leg else [],
        to_server=lambda leg, _: answers,
    )
    total = bench.expect_sum(scene, server, scene.names, what).total
    wanted = expected_sum(list(fresh.values()), scene.spec.modulus_bits)
    bench.expect(total.tolist() == wanted.tolist(), f"{what}: an old sum for a new round", scene)


def _by_recipient(recording: Recording) -> dict[str, list[Packet]]:
    return {
        name: [p for out in recording.out for p in out if p.recipient == name]
        for name in recording.clients
    }


def old_opening(bench: Bench) -> None:
    """One client of a new round is led into an old one, packet by packet."""
    scene = bench.scene()
    old = record(scene, round=1)
    target = scene.names[0]
    server, clients = scene.server(round=2), scene.clients(round=2)
    for packet in _by_recipient(old)[target]:
        for answer in scene.deliver(clients[target], packet):
            scene.deliver(server, answer)
    scene.run(server, clients)
    bench.judge(scene, "a client led into an old round")


def other_stages(bench: Bench) -> None:
    """The server gets answers of other stages, clients get packets of earlier ones."""
    recording = record(bench.scene())
    every = [answer for answers in recording.answers for answer in answers[:2]]

    def to_clients(leg: int, packet: Packet) -> list[Packet]:
        past = [shown for out in recording.out[:leg] for shown in out]
        return [shown for shown in past if shown.recipient == packet.recipient]

    def to_server(leg: int, answers: list[Packet]) -> list[Packet]:
        return [answer for answer in every if answer not in recording.answers[leg]]

    scene = undisturbed(
        bench, "packets of other stages", to_clients=to_clients, to_server=to_server
    )
    for party in list(scene.parties):
        for packet in recording.packets:
            scene.deliver(party, replace(packet, recipient=party.name))
    bench.judge(scene, "everybody's packets after the end")


def other_recipients(bench: Bench) -> None:
    """Each client first gets what was meant for the others."""
    recording = record(bench.scene())

    def to_clients(leg: int, packet: Packet) -> list[Packet]:
        meant = [other for other in recording.out[leg] if other.recipient != packet.recipient]
        return [replace(other, recipient=packet.recipient) for other in meant]

    undisturbed(bench, "packets for other clients", to_clients=to_clients)


# A16: damaged and hostile frames


def mutations(data: bytes, rng: np.random.Generator) -> Iterator[bytes]:
    """Endless damaged copies of ``data``: bits, lengths, types, cuts, extensions, repeats."""
    size = max(1, len(data))
    for kind in cycle(_DAMAGES):
        changed = kind(bytearray(data), rng, int(rng.integers(size)))
        if changed != data:
            yield bytes(changed)


def _flip(data: bytearray, rng: np.random.Generator, at: int) -> bytearray:
    for place in (at, *rng.integers(len(data), size=int(rng.integers(3))).tolist()):
        data[place] ^= 1 << int(rng.integers(8))
    return data


def _retype(data: bytearray, rng: np.random.Generator, at: int) -> bytearray:
    """Another tag or length marker, of MessagePack, CBOR, JSON or pickle, near the front or not."""
    data[at % 48 if rng.integers(2) else at] = int(
        rng.choice(list(b"\x80\xc0\xc6\xdb\xdd\xdf\x9f{["))
    )
    return data


_DAMAGES: Final[tuple[Callable[[bytearray, np.random.Generator, int], bytearray], ...]] = (
    _flip,
    lambda data, rng, at: data[:at],
    lambda data, rng, at: data + rng.bytes(1 + at % 64),
    _retype,
    lambda data, rng, at: data[:at] + rng.bytes(4) + data[at + 4 :],
    lambda data, rng, at: data[: at % 16] + b"\xff" * 4 + data[at % 16 + 4 :],
    lambda data, rng, at: data[:at] + bytes(8) + data[at + 8 :],
    lambda data, rng, at: data[:at] + data[at : at + 32] * 2 + data[at + 32 :],
    lambda data, rng, at: data[:at] + data[at + 1 + at % 8 :],
    lambda data, rng, at: data[at:] + data[:at],
)


def garbage(data: bytes) -> list[bytes]:
    """Frames that were never honest: empty, deeply nested, with huge lengths, of other formats.

    Args:
        data: an honest frame, whose first bytes some of them borrow.
    """
    cores = (
        b"",
        b"\0",
        b"\xff" * 65536,
        b"\x91" * 100_000,
        b"\x81\x00" * 50_000,
        b"[" * 100_000,
        b'{"a":' * 20_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\x7f\xff\xff\xff",
        b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x7f.",
        b'{"type": 1, "sender": null}',
        b"\x00" * 1_000_000,
    )
    return [
        data[:keep] + core for core in cores for keep in (0, 4, 8, 12, 16) if data[:keep] + core
    ]


def _bounded(scene: Scene, party: Party, packet: Packet) -> list[Packet]:
    """Deliver and compare the peak of traced memory with what the frame measures."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    answers = scene.deliver(party, packet)
    used = tracemalloc.get_traced_memory()[1] - before
    if used > _MEMORY_SLACK + _MEMORY_FACTOR * len(packet.data):
        text = f"a frame of {len(packet.data)} bytes made {party.name} allocate {used} bytes"
        raise Finding(text, scene=scene)
    return answers


def _hostile_round(
    bench: Bench, make: Callable[[Packet], Iterator[bytes]], what: str, *, trace: bool
) -> None:
    """Every honest packet to two clients and to the server comes after hostile ones."""
    scene = bench.scene()
    server, clients = scene.server(), scene.clients()
    hand = _bounded if trace else Scene.deliver
    targets = {scene.names[0], scene.names[-1]}
    early: list[Packet] = []

    def attack(party: Party, packet: Packet) -> list[Packet]:
        frames = (replace(packet, data=data) for data in make(packet))
        return [answer for frame in frames for answer in hand(scene, party, frame)]

    def before(leg: int, waiting: list[Packet]) -> None:
        early.clear()
        for packet in waiting:
            if packet.recipient in targets:
                early.extend(attack(clients[packet.recipient], packet))

    def carry(leg: int, answers: list[Packet]) -> list[Packet]:
        known = {answer.data for answer in answers}
        for answer in [answer for answer in answers if answer.sender in targets]:
            attack(server, answer)
        return [*(packet for packet in early if packet.data not in known), *answers]

    started = trace and not tracemalloc.is_tracing()
    if started:
        tracemalloc.start()
    try:
        scene.run(server, clients, before=before, carry=carry)
    finally:
        if started:
            tracemalloc.stop()
    bench.expect_sum(scene, server, scene.names, what)


def damaged_frames(bench: Bench) -> None:
    """Thousands of damaged copies of honest frames at every stage."""
    _hostile_round(bench, _damaged(bench), "after damaged frames", trace=False)


def _damaged(bench: Bench) -> Callable[[Packet], Iterator[bytes]]:
    rng = np.random.default_rng(16)
    frames = _THOROUGH_FRAMES if bench.thorough else _QUICK_FRAMES
    each = -(-frames // (4 * _round_length(bench)))  # two clients and their two answers, each leg
    return lambda packet: islice(mutations(packet.data, rng), each)


def hostile_frames(bench: Bench) -> None:
    """Frames that were never honest, at every stage."""
    _hostile_round(bench, lambda p: iter(garbage(p.data)), "after hostile frames", trace=False)


def hungry_frames(bench: Bench) -> None:
    """The same with memory traced: no frame makes a party allocate far more than it measures."""
    _hostile_round(bench, lambda p: iter(garbage(p.data)), "after hungry frames", trace=True)


def damaged_transcript(bench: Bench) -> None:
    """A transcript with one changed byte is refused."""
    scene = bench.scene()
    server, _ = bench.honest_round(scene)
    transcript = bench.adapter.transcript(server.handle)
    if transcript is None:
        raise NotApplicable("the adapter keeps no transcript")
    bench.adapter.verify_transcript(scene.spec, transcript)
    rng = np.random.default_rng(17)
    places = bench.sample(range(len(transcript)), 150)
    damaged = [
        transcript[:at] + bytes([transcript[at] ^ 1]) + transcript[at + 1 :] for at in places
    ]
    for data in [*damaged, *islice(mutations(transcript, rng), 100), b""]:
        try:
            bench.adapter.verify_transcript(scene.spec, data)
        except bench.adapter.errors:
            continue
        raise Finding("a changed transcript was accepted", scene=scene)


_REPLAY: Final = claims(Claim.EXACT_SUM, Claim.REPLAY_PROOF)

BYTE_ATTACKS: Final = (
    Attack(
        id="A7-duplicates",
        title="a repeated packet changes something",
        needs=claims(Claim.EXACT_SUM, Claim.IDEMPOTENT),
        run=duplicates,
        cost=2,
    ),
    Attack(
        id="A7-other-rounds",
        title="packets of another round, attempt or task are taken",
        needs=_REPLAY,
        run=other_rounds,
        cost=3,
    ),
    Attack(
        id="A7-old-opening",
        title="a client led into an old round repeats it or spoils the new one",
        needs=_REPLAY,
        run=old_opening,
    ),
    Attack(
        id="A7-stages",
        title="packets of other stages are taken",
        needs=_REPLAY,
        run=other_stages,
    ),
    Attack(
        id="A7-recipients",
        title="packets for other clients are taken",
        needs=_REPLAY,
        run=other_recipients,
    ),
    Attack(
        id="A16-damaged",
        title="damaged frames raise untyped errors, change state or the sum",
        needs=claims(Claim.TYPED_ERRORS, Claim.TAMPER_PROOF, Claim.EXACT_SUM),
        run=damaged_frames,
        cost=2,
    ),
    Attack(
        id="A16-hostile",
        title="nested, huge or foreign frames raise untyped errors or change state",
        needs=claims(Claim.TYPED_ERRORS),
        run=hostile_frames,
        cost=2,
    ),
    Attack(
        id="A16-memory",
        title="a small frame makes a party allocate much",
        needs=claims(Claim.BOUNDED_MEMORY, Claim.TYPED_ERRORS),
        run=hungry_frames,
        cost=2,
    ),
    Attack(
        id="A16-transcript",
        title="a changed transcript verifies",
        needs=claims(Claim.TRANSCRIPT, Claim.TAMPER_PROOF),
        run=damaged_transcript,
    ),
)
