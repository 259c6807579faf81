"""Attacks by clients that lie in what they send: A15 masked vectors of another length, A17 shares.

A lie may stop a round; it never changes a sum, and one liar among enough honest clients is left
out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

from privfedrl.testing.adapter import Claim, Packet
from privfedrl.testing.adversaries import forge, record, reveal_leg, vector_leg
from privfedrl.testing.bench import Attack, Bench, NotApplicable, claims
from privfedrl.testing.scene import Scene

__all__ = [
    "SHARE_ATTACKS",
    "forged_vectors",
    "outvoted_liar",
    "wrong_boxes",
    "wrong_commitment",
    "wrong_shares",
]


def forged_vectors(bench: Bench) -> None:
    """A client sends a masked vector of another length."""
    lies: tuple[tuple[str, Callable[[Any], Any]], ...] = (
        ("too short", lambda v: v[:-1]),
        ("too long", lambda v: np.append(v, v[:1])),
        ("empty", lambda v: v[:0]),
    )
    for what, lie in lies:
        scene, liar = bench.scene(), bench.scene().names[0]
        server, clients = scene.server(), scene.clients()
        leg = vector_leg(bench, record(bench.scene()))
        scene.run(server, clients, carry=_lying(bench, scene, leg, {liar}, vector=lie))
        others = set(scene.names) - {liar}
        bench.expect_sum(scene, server, others, f"a masked vector that is {what}")


def _lying(
    bench: Bench, scene: Scene, leg: int, liars: set[str], **lies: Callable[[Any], Any]
) -> Callable[[int, list[Packet]], list[Packet]]:
    """What arrives if ``liars`` forge their answers of one leg; what cannot be written is lost."""

    def carry(number: int, answers: list[Packet]) -> list[Packet]:
        if number != leg:
            return answers
        return [packet for answer in answers for packet in maybe(answer)]

    def maybe(answer: Packet) -> Iterator[Packet]:
        if answer.sender not in liars:
            yield answer
            return
        try:
            yield forge(bench, scene, answer, **lies)
        except ValueError:
            return

    return carry


# A17: shares

_SHARE_LIES: Final[tuple[tuple[str, Callable[[Any], Any]], ...]] = (
    ("one bit wrong", lambda shares: (_flipped(shares[0]), *shares[1:])),
    ("wrong for the fourth", lambda shares: _wrong_at(shares, 3, 0)),
    ("wrong for the fourth, elsewhere", lambda shares: _wrong_at(shares, 3, 4)),
    ("all zero", lambda shares: tuple(bytes(len(share)) for share in shares)),
    ("all ones", lambda shares: tuple(b"\xff" * len(share) for share in shares)),
    ("one repeated", lambda shares: (shares[0],) * len(shares)),
    ("in another order", lambda shares: shares[::-1]),
    ("too few", lambda shares: shares[:-1]),
    ("too many", lambda shares: (*shares, shares[0])),
    ("none", lambda shares: ()),
    ("cut short", lambda shares: (shares[0][:-1], *shares[1:])),
)


def _flipped(share: bytes) -> bytes:
    return bytes([share[0] ^ 1]) + share[1:]


def _wrong_at(shares: tuple[bytes, ...], place: int, at: int) -> tuple[bytes, ...]:
    """One bit of one share: of a client that is gone where ``place`` is its."""
    changed = bytearray(shares[place])
    changed[at] ^= 1
    return (*shares[:place], bytes(changed), *shares[place + 1 :])


def wrong_shares(bench: Bench) -> None:
    """One or more clients reveal wrong shares, with and without dropped clients."""
    leg = reveal_leg(bench, record(bench.scene()))
    before = vector_leg(bench, record(bench.scene()))
    names = bench.scene().names
    for what, lie in _SHARE_LIES:
        for liars, gone in (
            ({names[0]}, 0),
            ({names[0]}, 1),
            ({names[-1]}, 1),
            (set(names[1:3]), 1),
            (set(names), 0),
        ):
            drop = dict.fromkeys(names[3 : 3 + gone], before)
            scene = bench.scene()
            server, clients = scene.server(), scene.clients()
            carry = _lying(bench, scene, leg, set(liars), shares=lie)
            scene.run(server, clients, drop=drop, carry=carry)
            bench.judge(scene, f"shares {what}, {len(liars)} liars")


def outvoted_liar(bench: Bench) -> None:
    """One wrong answer among six is noticed and left out; the sum is there all the same."""
    leg = reveal_leg(bench, record(bench.scene()))
    for liar in bench.sample(bench.scene().names, 2):
        for what, lie in _SHARE_LIES[:3]:
            scene = bench.scene()
            server, clients = scene.server(), scene.clients()
            scene.run(server, clients, carry=_lying(bench, scene, leg, {liar}, shares=lie))
            bench.expect_sum(scene, server, clients, f"one client's shares {what}")


def wrong_boxes(bench: Bench) -> None:
    """A client deals damaged, repeated or too few encrypted shares."""
    lies: tuple[tuple[str, Callable[[Any], Any]], ...] = (
        ("damaged", lambda boxes: tuple(_flipped(box) for box in boxes)),
        ("one damaged", lambda boxes: (_flipped(boxes[0]), *boxes[1:])),
        ("repeated", lambda boxes: (boxes[0],) * len(boxes)),
        ("in another order", lambda boxes: boxes[::-1]),
        ("too few", lambda boxes: boxes[:-1]),
        ("none", lambda boxes: ()),
        ("empty", lambda boxes: tuple(b"" for _ in boxes)),
    )
    leg, field = _dealing(bench), "sealed"
    for what, lie in lies:
        _dealt_wrong(bench, leg, what, **{field: lie})


def wrong_commitment(bench: Bench) -> None:
    """A client commits to another self mask than the one it uses."""
    leg = _dealing(bench)
    _dealt_wrong(bench, leg, "commitment wrong", commitment=lambda value: _flipped(value))
    _dealt_wrong(bench, leg, "commitment zero", commitment=lambda value: bytes(len(value)))


def _dealing(bench: Bench) -> int:
    """The leg whose answers hold encrypted shares."""
    recording = record(bench.scene())
    for leg, answers in enumerate(recording.answers):
        if bench.adapter.forge(recording.server.spec, answers[0], sealed=lambda boxes: boxes):
            return leg
    raise NotApplicable("the adapter cannot forge encrypted shares")


def _dealt_wrong(bench: Bench, leg: int, what: str, **lies: Callable[[Any], Any]) -> None:
    for drop_liar in (False, True):
        scene = bench.scene()
        liar = scene.names[2]
        server = scene.server()
        clients = scene.clients() | {liar: scene.client(liar, honest=False)}
        drop = {liar: leg + 1} if drop_liar else {}
        scene.run(server, clients, drop=drop, carry=_lying(bench, scene, leg, {liar}, **lies))
        bench.judge(scene, f"shares dealt: {what}")


_SHARES: Final = claims(Claim.EXACT_SUM, Claim.BAD_SHARES)

SHARE_ATTACKS: Final = (
    Attack(
        id="A15-lengths",
        title="a masked vector of another length spoils the sum",
        needs=claims(Claim.EXACT_SUM, Claim.TYPED_ERRORS, Claim.DROPOUTS),
        run=forged_vectors,
        cost=2,
    ),
    Attack(
        id="A17-shares",
        title="wrong, repeated, missing or misshapen shares change the sum",
        needs=_SHARES,
        run=wrong_shares,
        cost=6,
    ),
    Attack(
        id="A17-outvoted",
        title="one liar is enough to stop the round",
        needs=_SHARES,
        run=outvoted_liar,
        cost=2,
    ),
    Attack(
        id="A17-boxes",
        title="wrongly dealt shares change the sum",
        needs=_SHARES,
        run=wrong_boxes,
        cost=3,
    ),
    Attack(
        id="A17-commitment",
        title="a wrong commitment changes the sum",
        needs=_SHARES,
        run=wrong_commitment,
    ),
)
