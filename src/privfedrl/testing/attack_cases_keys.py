"""Attacks with other keys and other names: A5 substitution and identity swaps, A6 low order.

The rule is strict where the server's own key was not used: hostile bytes are refused with a typed
error and the round ends with the exact sum over everybody else. Keys of low order: RFC 7748,
section 6.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from privfedrl.testing.adapter import Claim, Packet
from privfedrl.testing.adversaries import forge, record, undisturbed
from privfedrl.testing.bench import Attack, Bench, claims
from privfedrl.testing.scene import Party, Scene

__all__ = [
    "KEY_ATTACKS",
    "LOW_ORDER_KEYS",
    "borrowed_keys",
    "equal_keys",
    "impostor_client",
    "impostor_server",
    "left_out",
    "low_order",
    "outsider",
    "reflection",
    "relabelled",
    "substituted_keys",
]

_P: Final = 2**255 - 19
LOW_ORDER_KEYS: Final = tuple(
    u.to_bytes(32, "little")
    for u in (
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _P - 1,
        _P,
        _P + 1,
    )
)
"""X25519 u-coordinates with an all-zero shared secret: RFC 7748, section 6.1."""


def impostor_client(bench: Bench) -> None:
    """A client with another key than the registered one takes part."""
    scene = bench.scene()
    false = scene.names[-1]
    others = scene.clients(scene.names[:-1])
    impostor = scene.client(false, honest=False, impostors=frozenset({false}))
    server = scene.server()
    scene.run(server, others | {false: impostor})
    bench.expect_sum(scene, server, others, "a client with a key that is not registered")


def impostor_server(bench: Bench) -> None:
    """Somebody without the server's key sends what the server would send."""
    scene = bench.scene()
    false = frozenset({bench.adapter.server})
    forged: list[Packet] = []

    def to_clients(leg: int, packet: Packet) -> list[Packet]:
        own = bench.adapter.forge(replace(scene.spec, impostors=false), packet)
        forged.extend([] if own is None else [own])
        return [] if own is None else [own]

    undisturbed(
        bench, "the server's packets, signed by another", scene=scene, to_clients=to_clients
    )
    if not forged:
        alone = bench.scene()
        server = alone.server(impostors=false)
        alone.run(server, alone.clients())
        bench.judge(alone, "a server with a key that is not registered")
        bench.expect(alone.result(server) is None, "an impostor got a sum", alone)


def outsider(bench: Bench) -> None:
    """Somebody whom nobody registered takes part, under its own name and under others'."""
    scene = bench.scene()
    stranger = scene.client("outsider-0", honest=False)
    server, clients = scene.server(), scene.clients()
    early: list[Packet] = []

    def before(leg: int, waiting: list[Packet]) -> None:
        early.clear()
        for packet in waiting[:1]:
            early.extend(scene.deliver(stranger, replace(packet, recipient="outsider-0")))

    def carry(leg: int, answers: list[Packet]) -> list[Packet]:
        renamed = [replace(packet, sender=scene.names[0]) for packet in early]
        return [*early, *renamed, *answers]

    scene.run(server, clients, before=before, carry=carry)
    bench.expect_sum(scene, server, clients, "an outsider sends its own messages")


def reflection(bench: Bench) -> None:
    """Clients get clients' messages, their own among them; the server gets its own."""
    recording = record(bench.scene())

    def to_clients(leg: int, packet: Packet) -> list[Packet]:
        past = [answer for answers in recording.answers[:leg] for answer in answers]
        return [replace(answer, recipient=packet.recipient) for answer in past]

    def to_server(leg: int, answers: list[Packet]) -> list[Packet]:
        server = bench.adapter.server
        return [replace(p, sender=p.recipient, recipient=server) for p in recording.out[leg]]

    undisturbed(bench, "clients get clients' messages", to_clients=to_clients)
    undisturbed(bench, "the server gets its own messages", to_server=to_server)


def relabelled(bench: Bench) -> None:
    """The envelope names another sender than the bytes do."""

    def to_server(leg: int, answers: list[Packet]) -> list[Packet]:
        names = [answer.sender for answer in answers]
        others = [*names[1:], *names[:1]]
        return [replace(a, sender=other) for a, other in zip(answers, others, strict=True)]

    undisturbed(bench, "answers under each other's names", to_server=to_server)


def _forged_keys(bench: Bench, lies: Sequence[tuple[str, Callable[[Any], Any]]]) -> None:
    """A registered client advertises bad keys: the server refuses it, the others go on."""
    for what, lie in lies:
        scene = bench.scene()
        liar = scene.names[-1]
        clients = scene.clients(scene.names[:-1])
        cheat = scene.client(liar, honest=False)
        server = scene.server()
        _run_with_lie(bench, scene, server, clients | {liar: cheat}, liar, lie)
        bench.expect_sum(scene, server, clients, what)
        _shown_to_clients(bench, what, liar, lie)


def _run_with_lie(
    bench: Bench,
    scene: Scene,
    server: Party,
    clients: dict[str, Party],
    liar: str,
    lie: Callable[[Any], Any],
) -> None:
    def carry(leg: int, answers: list[Packet]) -> list[Packet]:
        if leg:
            return [answer for answer in answers if answer.sender != liar]
        return [
            forge(bench, scene, answer, public_keys=lie) if answer.sender == liar else answer
            for answer in answers
        ]

    scene.run(server, clients, carry=carry)


def _shown_to_clients(bench: Bench, what: str, liar: str, lie: Callable[[Any], Any]) -> None:
    """The same bad keys in the roster of a server that does not mind."""
    scene = bench.scene()
    server, clients = scene.server(), scene.clients()
    adverts: dict[bytes, bytes] = {}

    def carry(leg: int, answers: list[Packet]) -> list[Packet]:
        for answer in answers if leg == 0 else ():
            if answer.sender == liar:
                adverts[answer.data] = forge(bench, scene, answer, public_keys=lie).data
        return answers

    opened = scene.run(server, clients, carry=carry, legs=1)
    out = [forge(bench, scene, packet, adverts=_replacing(adverts)) for packet in opened]
    scene.run(server, clients, out=out)
    bench.judge(scene, f"{what}, shown by the server")
    honest = [party for name, party in clients.items() if name != liar]
    took = [party.name for party in honest if len(party.sent) > 1]
    bench.expect(not took, f"{what}: {len(took)} clients went on with them", scene)


def _replacing(swap: Mapping[bytes, bytes]) -> Callable[[Any], Any]:
    return lambda frames: tuple(swap.get(frame, frame) for frame in frames)


def equal_keys(bench: Bench) -> None:
    """A registered client uses one key for both purposes."""
    _forged_keys(bench, [("two equal keys", lambda keys: (keys[0],) * len(keys))])


def substituted_keys(bench: Bench) -> None:
    """The server puts another client's, or its own, keys or adverts into the roster."""
    recording = record(bench.scene())
    names = bench.scene().names
    first = {answer.sender: answer.data for answer in recording.answers[0]}
    stranger = record(bench.scene(seed=b"another seed"))
    others = {answer.sender: answer.data for answer in stranger.answers[0]}
    lies: tuple[tuple[str, dict[bytes, bytes]], ...] = (
        ("one advert twice", {first[names[0]]: first[names[1]]}),
        ("an advert with other keys", {first[names[0]]: others[names[0]]}),
        ("damaged adverts", {data: data[:-1] + bytes([data[-1] ^ 1]) for data in first.values()}),
    )
    for what, swap in lies:
        scene = bench.scene()
        server, clients = scene.server(), scene.clients()
        opened = scene.run(server, clients, legs=1)
        out = [forge(bench, scene, packet, adverts=_replacing(swap)) for packet in opened]
        scene.run(server, clients, out=out)
        bench.judge(scene, what)
        bench.expect(scene.result(server) is None, f"{what}: there is a sum", scene)


def left_out(bench: Bench) -> None:
    """A client is shown a roster without itself, and asked to go on."""
    scene = bench.scene()
    target = scene.names[0]
    server, clients = scene.server(), scene.clients()
    opened = scene.run(server, clients, legs=1)
    own = {packet.data for packet in clients[target].sent}
    out = [
        forge(
            bench,
            scene,
            packet,
            adverts=lambda frames: tuple(frame for frame in frames if frame not in own),
            members=lambda names: tuple(name for name in names if name != target),
        )
        if packet.recipient == target
        else packet
        for packet in opened
    ]
    scene.run(server, clients, out=out)
    bench.judge(scene, "a roster without its reader")
    bench.expect(len(clients[target].sent) == 1, "a client went on without itself", scene)


def low_order(bench: Bench) -> None:
    """A registered client advertises X25519 points of low order, as either key."""
    for index, key in enumerate(LOW_ORDER_KEYS):
        _forged_keys(bench, [(f"low-order key {index}", lie) for lie in _placing(key)])


def _placing(key: bytes) -> list[Callable[[Any], Any]]:
    return [lambda keys: (key, *keys[1:]), lambda keys: (*keys[:-1], key)]


def borrowed_keys(bench: Bench) -> None:
    """A registered client advertises the public keys of another one."""
    advert = record(bench.scene()).answers[0][0]
    stolen: list[tuple[bytes, ...]] = []

    def look(keys: Any) -> Any:
        stolen.append(keys)
        return keys

    forge(bench, bench.scene(), advert, public_keys=look)
    _forged_keys(bench, [("another client's keys", lambda _: stolen[0])])


_STRICT: Final = claims(Claim.EXACT_SUM, Claim.AUTHENTICATED, Claim.TYPED_ERRORS)

KEY_ATTACKS: Final = (
    Attack(
        id="A5-impostor-client",
        title="a client with another key than the registered one is in the sum",
        needs=_STRICT,
        run=impostor_client,
    ),
    Attack(
        id="A5-impostor-server",
        title="clients obey somebody without the server's key",
        needs=_STRICT,
        run=impostor_server,
    ),
    Attack(
        id="A5-outsider",
        title="somebody whom nobody registered is in the sum",
        needs=_STRICT,
        run=outsider,
    ),
    Attack(
        id="A5-reflection",
        title="messages sent back to their own side are taken",
        needs=_STRICT,
        run=reflection,
    ),
    Attack(
        id="A5-relabelled",
        title="the name on the envelope counts for more than the signature",
        needs=_STRICT,
        run=relabelled,
    ),
    Attack(
        id="A5-equal-keys",
        title="one key serves for two purposes",
        needs=_STRICT,
        run=equal_keys,
    ),
    Attack(
        id="A5-borrowed-keys",
        title="a client advertises another client's keys",
        needs=_STRICT,
        run=borrowed_keys,
    ),
    Attack(
        id="A5-substituted-keys",
        title="the server swaps adverts inside the roster",
        needs=_STRICT,
        run=substituted_keys,
    ),
    Attack(
        id="A5-left-out",
        title="a client goes on with a roster that it is not in",
        needs=_STRICT,
        run=left_out,
    ),
    Attack(
        id="A6-low-order",
        title="public keys of low order are accepted",
        needs=_STRICT,
        run=low_order,
        cost=4,
    ),
)
