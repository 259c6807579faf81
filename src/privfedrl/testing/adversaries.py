"""Malicious servers built by fork and splice, twins, impostors and forged packets.

Guarantee: nothing here needs to know the protocol. A malicious server has the server's true key: it
is two honest servers of one identity that were shown different things, and whatever they sign is
delivered to whom the adversary likes.

A *leg* is one exchange: packets of the server out, answers back. Leg 0 opens the round.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from privfedrl.testing.adapter import Packet
from privfedrl.testing.bench import Bench, NotApplicable
from privfedrl.testing.scene import Party, Scene

__all__ = [
    "Recording",
    "ToClients",
    "ToServer",
    "Track",
    "equivocate",
    "forge",
    "legs_of",
    "poke",
    "record",
    "reveal_leg",
    "undisturbed",
    "vector_leg",
]

ToClients = Callable[[int, Packet], list[Packet]]
"""(leg, honest packet) -> what its recipient gets first."""

ToServer = Callable[[int, list[Packet]], list[Packet]]
"""(leg, honest answers) -> what the server gets first."""


@dataclass(slots=True, eq=False)
class Recording:
    """An honest round, leg by leg: what the server sent and what came back."""

    server: Party
    clients: Mapping[str, Party]
    out: list[list[Packet]] = field(default_factory=list, repr=False)
    answers: list[list[Packet]] = field(default_factory=list, repr=False)

    @property
    def packets(self) -> list[Packet]:
        """Every packet, in the order in which it was sent."""
        legs = zip(self.out, self.answers, strict=True)
        return [packet for out, answers in legs for packet in (*out, *answers)]


@dataclass(slots=True, eq=False)
class Track:
    """One server of the adversary, who follows it and what it wants delivered."""

    server: Party
    members: dict[str, Party]
    waiting: list[Packet] = field(default_factory=list, repr=False)


def record(scene: Scene, *, drop: Mapping[str, int] | None = None, **changes: Any) -> Recording:
    """Run an honest round in ``scene`` and keep its packets."""
    server, clients = scene.server(**changes), scene.clients(**changes)
    recording = Recording(server, clients)

    def before(_: int, waiting: list[Packet]) -> None:
        recording.out.append(list(waiting))

    def carry(_: int, answers: list[Packet]) -> list[Packet]:
        recording.answers.append(list(answers))
        return answers

    scene.run(server, clients, drop=drop, before=before, carry=carry)
    return recording


def legs_of(bench: Bench, **changes: Any) -> int:
    """How many legs an honest round has."""
    return len(record(bench.scene(**changes)).out)


def vector_leg(bench: Bench, recording: Recording) -> int:
    """The leg whose answers are the masked vectors."""
    spec = recording.server.spec
    for leg, answers in enumerate(recording.answers):
        if any(bench.adapter.residues(spec, answer) is not None for answer in answers):
            return leg
    raise NotApplicable("the adapter shows no masked vectors")


def reveal_leg(bench: Bench, recording: Recording) -> int:
    """The leg whose answers reveal shares."""
    server = recording.server
    for leg, answers in enumerate(recording.answers):
        for answer in answers:
            if bench.adapter.reveals(server.spec, server.handle, answer):
                return leg
    raise NotApplicable("the adapter shows no revealed shares")


def forge(bench: Bench, scene: Scene, packet: Packet, **lies: Callable[[Any], Any]) -> Packet:
    """``packet`` with ``lies``, signed by its own sender.

    Raises:
        NotApplicable: the adapter cannot forge this.
    """
    forged = bench.adapter.forge(scene.spec, packet, **lies)
    if forged is None:
        raise NotApplicable(f"the adapter cannot forge {', '.join(lies) or 'packets'}")
    return scene.derived(forged, packet)


def poke(
    scene: Scene,
    server: Party,
    clients: Mapping[str, Party],
    *,
    to_clients: ToClients | None = None,
    to_server: ToServer | None = None,
) -> None:
    """Run an honest round in which hostile packets arrive just before each honest one.

    An answer to a hostile packet counts like any other: a party that took one for the honest one
    has to end up with the same sum.
    """
    early: list[Packet] = []

    def before(leg: int, waiting: list[Packet]) -> None:
        early.clear()
        for packet in waiting:
            for hostile in [] if to_clients is None else to_clients(leg, packet):
                client = clients.get(packet.recipient)
                early.extend([] if client is None else scene.deliver(client, hostile))

    def carry(leg: int, answers: list[Packet]) -> list[Packet]:
        known = {answer.data for answer in answers}
        honest = [*(packet for packet in early if packet.data not in known), *answers]
        hostile = [] if to_server is None else to_server(leg, honest)
        return [*hostile, *honest]

    scene.run(server, clients, before=before, carry=carry)


def equivocate(
    scene: Scene,
    *,
    leg: int = -1,
    hidden: Collection[str] = (),
    followers: Collection[str] = (),
    colluders: Collection[str] = (),
    changes: Mapping[str, Any] | None = None,
    ask_both: bool = False,
    cross: bool = False,
    lax: bool = False,
    further: int = 16,
) -> tuple[Track, Track]:
    """A server that shows one part of the clients another round than the other part.

    Two servers of one key see the same until leg ``leg``; of that leg's answers the second one
    does not get those of ``hidden``. From then on ``followers`` are shown what the second server
    says, the rest what the first says. ``colluders`` follow both. Judge the scene afterwards.

    Args:
        leg: -1 splits them from the start. changes: the second server's spec, and for leg -1 its
            followers', who have been told so too.
        ask_both: everybody also gets the other server's packets, after those of its own.
        cross: each server also gets the answers that were meant for the other one.
        lax: servers that go on below every floor and threshold.
        further: legs with two views; what was not delivered yet is ``waiting`` in the tracks.
    """
    other = dict(changes or {})
    split = leg < 0
    first = Track(scene.server(lax=lax), {})
    second = Track(scene.server(lax=lax, **other), {})
    for name in scene.names:
        given = other if split and name in followers else {}
        honest = name not in colluders
        client = scene.client(name, honest=honest, **given)
        (second if name in followers else first).members[name] = client
        if not honest:
            told = other if split else {}
            clone = scene.client(name, honest=False, store=f"{name}/clone", **told)
            (first if name in followers else second).members.setdefault(name, clone)
    first.waiting, second.waiting = scene.start(first.server), scene.start(second.server)
    for number in range(leg + 1):
        _same_view(scene, first, second, hidden if number == leg else ())
    for _ in range(further):
        if not (first.waiting or second.waiting):
            break
        _two_views(scene, (first, second), ask_both=ask_both, cross=cross)
    return first, second


def _same_view(scene: Scene, first: Track, second: Track, hidden: Collection[str]) -> None:
    """One leg in which everybody gets the first server's packets."""
    answers: list[Packet] = []
    for packet in first.waiting:
        parties = [track.members.get(packet.recipient) for track in (first, second)]
        for party in (party for party in parties if party is not None):
            fresh = scene.deliver(party, packet)
            answers += [answer for answer in fresh if answer not in answers]
    shown = [answer for answer in answers if answer.sender not in hidden]
    first.waiting = scene.collect(first.server, answers)
    second.waiting = scene.collect(second.server, shown)


def _two_views(scene: Scene, tracks: tuple[Track, Track], *, ask_both: bool, cross: bool) -> None:
    """One leg in which each server speaks to its own followers."""
    answers: list[list[Packet]] = [[], []]
    for own in (True, False) if ask_both else (True,):
        for place, track in enumerate(tracks):
            members = track.members if own else tracks[1 - place].members
            for packet in track.waiting:
                party = members.get(packet.recipient)
                if party is not None:
                    answers[place] += scene.deliver(party, packet)
    for place, track in enumerate(tracks):
        extra = answers[1 - place] if cross else []
        ended = scene.finished(track.server)
        track.waiting = [] if ended else scene.collect(track.server, [*answers[place], *extra])


def undisturbed(
    bench: Bench,
    what: str,
    *,
    to_clients: ToClients | None = None,
    to_server: ToServer | None = None,
    scene: Scene | None = None,
    **changes: Any,
) -> Scene:
    """An honest round with hostile bytes before each packet has to give the sum over all."""
    stage = bench.scene() if scene is None else scene
    server, clients = stage.server(**changes), stage.clients(**changes)
    poke(stage, server, clients, to_clients=to_clients, to_server=to_server)
    bench.expect_sum(stage, server, stage.names, what)
    return stage
