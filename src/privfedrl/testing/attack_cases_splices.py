"""Attacks by a server that signs packets which no honest server would make, by twins and by time.

A3 overlapping lists, A4 agreements that are not there, A5 and A7 expired clients and old rounds,
A14 one client twice, A17 boxes that were changed on the way. The server's key is the true one: what
protects the clients is that they look at what the packet holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from privfedrl.testing.adapter import Claim, Packet
from privfedrl.testing.adversaries import forge, record, reveal_leg, vector_leg
from privfedrl.testing.bench import Attack, Bench, NotApplicable, claims
from privfedrl.testing.scene import Party, Scene

__all__ = [
    "SPLICE_ATTACKS",
    "delivered_boxes",
    "expired_client",
    "false_consents",
    "few_answers",
    "foreign_set",
    "other_times",
    "overlapping_lists",
    "twins",
]

_Frames = tuple[bytes, ...]
_Lie = Callable[[Any], Any]


def _answered(scene: Scene, clients: dict[str, Party], shown: Iterable[Packet]) -> list[str]:
    """Who answers ``shown``: {names} of clients that did not refuse."""
    return [
        packet.recipient for packet in shown if scene.deliver(clients[packet.recipient], packet)
    ]


def _before(
    bench: Bench, leg: int, **options: Any
) -> tuple[Scene, Party, dict[str, Party], list[Packet]]:
    """An honest round up to ``leg``, whose packets of the server are not delivered yet."""
    scene = bench.scene()
    server, clients = scene.server(), scene.clients()
    return scene, server, clients, scene.run(server, clients, legs=leg, **options)


def _look(bench: Bench, scene: Scene, packet: Packet, name: str) -> Any:
    """The field ``name`` of ``packet``."""
    seen: list[Any] = []

    def look(value: Any) -> Any:
        seen.append(value)
        return value

    forge(bench, scene, packet, **{name: look})
    return seen[0]


# A4: agreements


def false_consents(bench: Bench) -> None:
    """Requests with too few agreements, one many times, forged ones or those of another round.

    Too few means that the others said nothing: a lax server asks all the same.
    """
    leg = reveal_leg(bench, record(bench.scene()))
    quorum = bench.adapter.quorum(bench.scene().spec) or bench.scene().spec.min_clients
    elsewhere = bench.scene(round=2)
    _, _, _, later = _elsewhere(elsewhere, leg)
    foreign = _look(bench, elsewhere, later[0], "consents")
    lies: tuple[tuple[str, Callable[[Scene], _Lie]], ...] = (
        ("none", lambda _: lambda frames: ()),
        ("one of them many times", lambda _: lambda frames: frames[:1] * quorum),
        ("of another round", lambda _: lambda frames: foreign),
        ("signed by others", lambda scene: lambda frames: _resigned(bench, scene, leg)),
    )
    for what, lie in lies:
        scene, _, clients, waiting = _before(bench, leg)
        shown = [forge(bench, scene, packet, consents=lie(scene)) for packet in waiting]
        told = _answered(scene, clients, shown)
        bench.judge(scene, f"agreements: {what}")
        bench.expect(not told, f"{len(told)} clients revealed shares, agreements: {what}", scene)

    _too_few_consents(bench, leg, quorum)


def _too_few_consents(bench: Bench, leg: int, quorum: int) -> None:
    for what, lie in (
        ("one too few", lambda frames: frames),
        ("one too few, one twice", lambda frames: (*frames, frames[0])),
    ):
        scene = bench.scene()
        try:
            server = scene.server(lax=True)
        except LookupError:
            return
        clients = scene.clients()
        gone = dict.fromkeys(scene.names[quorum - 1 :], leg - 1)
        waiting = scene.run(server, clients, legs=leg, drop=gone)
        shown = [forge(bench, scene, packet, consents=lie) for packet in waiting]
        told = _answered(scene, clients, shown)
        bench.expect(not told, f"{len(told)} clients revealed shares, agreements: {what}", scene)


def few_answers(bench: Bench) -> None:
    """Fewer than the quorum reveal their shares: a server that goes on all the same has no sum."""
    leg = reveal_leg(bench, record(bench.scene()))
    quorum = bench.adapter.quorum(bench.scene().spec)
    if quorum is None:
        raise NotApplicable("the adapter names no quorum")
    for present in range(1, quorum):
        scene = bench.scene()
        try:
            server = scene.server(lax=True)
        except LookupError as error:
            raise NotApplicable(str(error)) from error
        scene.run(server, scene.clients(), drop=dict.fromkeys(scene.names[present:], leg))
        bench.judge(scene, f"{present} clients reveal shares")
        opened = scene.result(server) is not None
        bench.expect(not opened, f"the answers of {present} clients open a sum", scene)


def _elsewhere(scene: Scene, leg: int) -> tuple[Scene, Party, dict[str, Party], list[Packet]]:
    server, clients = scene.server(), scene.clients()
    return scene, server, clients, scene.run(server, clients, legs=leg)


def _resigned(bench: Bench, scene: Scene, leg: int) -> _Frames:
    """The agreements of this round, all under keys that are not the registered ones."""
    answers = [
        packet
        for party in scene.parties
        if not party.server
        for packet in party.sent[leg - 1 : leg]
    ]
    false = replace(scene.spec, impostors=frozenset(scene.names))
    forged = [bench.adapter.forge(false, answer) for answer in answers]
    return tuple(packet.data for packet in forged if packet is not None)


def foreign_set(bench: Bench) -> None:
    """A client is asked to agree to survivors without itself, or to fewer than the floor."""
    leg = vector_leg(bench, record(bench.scene())) + 1
    if leg >= reveal_leg(bench, record(bench.scene())):
        raise NotApplicable("clients are not asked to agree")
    floor = max(bench.scene().spec.min_clients, bench.adapter.quorum(bench.scene().spec) or 0)
    for what, few in (("without itself", False), ("of too few", True)):
        scene, _, clients, waiting = _before(bench, leg)
        shown = [
            forge(bench, scene, packet, members=_shortened(packet.recipient, floor, few))
            for packet in waiting
        ]
        told = _answered(scene, clients, shown)
        bench.judge(scene, f"a survivor set {what}")
        bench.expect(not told, f"{len(told)} clients agreed to a set {what}", scene)


def _shortened(reader: str, floor: int, few: bool) -> _Lie:
    def lie(names: Any) -> Any:
        if not few:
            return tuple(name for name in names if name != reader)
        others = [name for name in names if name != reader]
        return tuple(sorted([reader, *others[: floor - 2]]))

    return lie


# A3: lists


def overlapping_lists(bench: Bench) -> None:
    """A request lists everybody as gone who is also listed as alive."""
    leg = reveal_leg(bench, record(bench.scene()))
    for everybody in (True, False):
        scene, _, clients, waiting = _before(bench, leg)
        names = scene.names if everybody else scene.names[:1]
        shown = [forge(bench, scene, packet, dropped=_always(names)) for packet in waiting]
        _answered(scene, clients, shown)
        bench.judge(scene, "a request that lists clients twice")


def _always(value: Any) -> _Lie:
    return lambda _: value


# A17: boxes


def delivered_boxes(bench: Bench) -> None:
    """The server changes, swaps or sends back encrypted shares: nobody goes on with them."""
    leg = vector_leg(bench, record(bench.scene()))
    sent = _dealt(bench, leg)
    lies: tuple[tuple[str, Callable[[str], _Lie]], ...] = (
        ("one bit changed", lambda _: lambda boxes: (_flipped(boxes[0]), *boxes[1:])),
        ("the last bit changed", lambda _: lambda boxes: (*boxes[:-1], _flipped(boxes[-1], -1))),
        ("two swapped", lambda _: lambda boxes: (boxes[1], boxes[0], *boxes[2:])),
        ("one twice", lambda _: lambda boxes: (boxes[0], boxes[0], *boxes[2:])),
        ("the reader's own", lambda name: lambda boxes: sent[name]),
        ("one of the reader's own", lambda name: lambda boxes: (sent[name][0], *boxes[1:])),
        ("one missing", lambda _: lambda boxes: boxes[:-1]),
    )
    for what, lie in lies:
        scene, _, clients, waiting = _before(bench, leg)
        shown = [forge(bench, scene, p, sealed=lie(p.recipient)) for p in waiting]
        told = _answered(scene, clients, shown)
        bench.judge(scene, f"boxes delivered: {what}")
        text = f"{len(told)} clients went on with boxes delivered: {what}"
        bench.expect(not told, text, scene)


def _dealt(bench: Bench, leg: int) -> dict[str, _Frames]:
    """The boxes that each client made in the leg before its vector."""
    scene, _, clients, _ = _before(bench, leg)
    return {
        name: _look(bench, scene, party.sent[leg - 1], "sealed") for name, party in clients.items()
    }


def _flipped(box: bytes, at: int = 0) -> bytes:
    changed = bytearray(box)
    changed[at] ^= 1
    return bytes(changed)


# A14: twins


def twins(bench: Bench) -> None:
    """One client takes part twice, with other entropy and another input; both answer each leg."""
    legs = len(record(bench.scene()).out)
    for first in range(legs):
        scene = bench.scene()
        server, clients = scene.server(), scene.clients(scene.names[1:])
        name = scene.names[0]
        one, two = (
            scene.client(
                name, honest=False, store=f"{name}/{seed}", vector=scene.vector(name, salt)
            )
            for salt, seed in ((0, "one"), (1, "two"))
        )
        _both_answer(scene, server, clients, (one, two), first)
        bench.judge(scene, f"one client answers twice from leg {first} on")


def _both_answer(
    scene: Scene, server: Party, clients: dict[str, Party], pair: tuple[Party, Party], first: int
) -> None:
    one, two = pair
    extra: list[Packet] = []

    def before(leg: int, waiting: list[Packet]) -> None:
        extra.clear()
        for packet in waiting:
            if packet.recipient == two.name:
                answers = scene.deliver(two, packet)
                extra.extend(answers if leg >= first else [])

    def carry(leg: int, answers: list[Packet]) -> list[Packet]:
        own = [answer for answer in answers if answer.sender == one.name]
        others = [answer for answer in answers if answer.sender != one.name]
        return [*own, *extra, *others]

    scene.run(server, clients | {one.name: one}, before=before, carry=carry)


# A5 and A7: time


def expired_client(bench: Bench) -> None:
    """A client whose registration has ended takes part all the same."""
    scene = bench.scene()
    gone = scene.names[:1]
    server = scene.server(expired=frozenset(gone))
    clients = scene.clients(expired=frozenset(gone))
    waiting = scene.start(server)
    extra = [replace(packet, recipient=gone[0]) for packet in waiting[:1]]
    scene.run(server, clients, out=[*extra, *waiting])
    bench.expect_sum(scene, server, scene.names[1:], "a client whose registration has ended")


def other_times(bench: Bench) -> None:
    """A round of yesterday, or of tomorrow, is offered to clients that know what time it is."""
    for offset in (-86_400, 86_400):
        scene = bench.scene()
        server = scene.server(clock_s=offset)
        clients = scene.clients()
        told = _answered(scene, clients, scene.start(server))
        text = f"{len(told)} clients joined a round that is {offset} s away"
        bench.expect(not told, text, scene)


_TIME: Final = claims(Claim.VALIDITY, Claim.EXACT_SUM)

SPLICE_ATTACKS: Final = (
    Attack(
        id="A5-expired",
        title="a client whose registration has ended is in the sum",
        needs=_TIME,
        run=expired_client,
    ),
    Attack(
        id="A7-times",
        title="clients join a round of another time",
        needs=_TIME,
        run=other_times,
    ),
    Attack(
        id="A3-overlap",
        title="who is listed as alive and as gone has both shares revealed",
        needs=claims(Claim.ONE_SHARE_KIND),
        run=overlapping_lists,
    ),
    Attack(
        id="A4-consents",
        title="shares are revealed without the agreement of enough others",
        needs=claims(Claim.AGREEMENT, Claim.AUTHENTICATED),
        run=false_consents,
    ),
    Attack(
        id="A17-few",
        title="fewer shares than the threshold open a sum",
        needs=claims(Claim.EXACT_SUM, Claim.COHORT_FLOOR),
        run=few_answers,
    ),
    Attack(
        id="A4-foreign-set",
        title="a client agrees to survivors that it is not among, or that are too few",
        needs=claims(Claim.AGREEMENT, Claim.COHORT_FLOOR),
        run=foreign_set,
    ),
    Attack(
        id="A14-twins",
        title="a client that answers twice is added twice",
        needs=claims(Claim.EXACT_SUM, Claim.IDEMPOTENT),
        run=twins,
    ),
    Attack(
        id="A17-delivered",
        title="encrypted shares that the server has changed are taken",
        needs=claims(Claim.BAD_SHARES, Claim.AUTHENTICATED),
        run=delivered_boxes,
    ),
)
