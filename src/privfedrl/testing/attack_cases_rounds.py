"""Attacks on masks, inputs, shares, stragglers and on what a round gives away beside its sum.

A8 mask reuse, A11 restart and rewind, A13 the server's view, A15 inputs that overflow or are no
residues, A17 wrong shares, A18 dropouts, A20 side releases, A22 release without reservation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from privfedrl.errors import BudgetExceeded
from privfedrl.testing.adapter import Claim, Packet, RingVector
from privfedrl.testing.adversaries import record, vector_leg
from privfedrl.testing.bench import Attack, Bench, Finding, NotApplicable, claims
from privfedrl.testing.scene import Party, Scene

__all__ = [
    "ROUND_ATTACKS",
    "any_order",
    "constant_sizes",
    "dropouts",
    "mixed_dropouts",
    "odd_inputs",
    "restart",
    "reused_masks",
    "rewind",
    "same_view",
    "shared_masks",
    "telling_errors",
    "uncharged_release",
    "wrapping_inputs",
]

_ALPHA: Final = 1e-9
_LONG: Final = 4096
_SENTINEL: Final = 0x5EC12E75


# A8: masks


def _masked_vectors(scene: Scene, **changes: Any) -> list[RingVector]:
    """The masked vectors of one honest round, in the order of the names."""
    server, clients = scene.server(**changes), scene.clients(**changes)
    start = len(scene.masked)
    scene.run(server, clients)
    dtype = f"uint{scene.spec.modulus_bits}"
    found = {client.name: np.frombuffer(data, dtype) for client, _, data in scene.masked[start:]}
    if len(found) < len(clients):
        raise NotApplicable("the adapter shows no masked vectors")
    return [found[name] for name in sorted(found)]


def reused_masks(bench: Bench) -> None:
    """Rounds with the same inputs and the same entropy give unrelated masked vectors."""
    scene = bench.scene(vector_length=_LONG)
    rounds = [
        ("round 1", _masked_vectors(scene, round=1)),
        ("round 2", _masked_vectors(scene, round=2, model=b"2" * 32)),
        ("attempt 1", _masked_vectors(scene, round=2, attempt=1, model=b"3" * 32)),
        ("other entropy", _masked_vectors(scene, round=3, model=b"4" * 32, seed=b"other")),
    ]
    other = bench.scene(vector_length=_LONG)
    rounds.append(("another model", _masked_vectors(other, round=1, model=b"5" * 32)))
    other = bench.scene(vector_length=_LONG)
    rounds.append(("another task", _masked_vectors(other, round=1, task=b"6" * 32)))
    bench.judge(scene, "rounds with the same inputs")
    for (one, first), (two, second) in combinations(rounds, 2):
        for name, left, right in zip(scene.names, first, second, strict=True):
            _unrelated(bench, left, right, f"{name} in {one} and {two}")


def shared_masks(bench: Bench) -> None:
    """Clients with equal inputs, and both halves of one vector, are masked differently."""
    scene = bench.scene(vector_length=_LONG)
    server = scene.server()
    equal = np.full(_LONG, 7, dtype=np.uint32)
    scene.run(server, scene.clients(vector=equal))
    bench.judge(scene, "equal inputs")
    vectors = [np.frombuffer(data, np.uint32) for _, _, data in scene.masked]
    if len(vectors) < 2:
        raise NotApplicable("the adapter shows no masked vectors")
    for left, right in combinations(vectors, 2):
        _unrelated(bench, left, right, "two clients with equal inputs")
    for vector in vectors:
        half = len(vector) // 2
        _unrelated(bench, vector[:half], vector[half:], "two halves of one vector")


def _unrelated(bench: Bench, left: RingVector, right: RingVector, what: str) -> None:
    """Differences and sums mod 2^k are uniform mod 17; false alarms: 1e-9 per call and sign."""
    for combined in (left - right, left + right):
        counts = np.bincount(combined % 17, minlength=17)
        holds = stats.chisquare(counts).pvalue > _ALPHA
        bench.expect(bool(holds), f"masked vectors are related: {what}")


# A11: restart and rewind


def restart(bench: Bench) -> None:
    """Clients restarted from their disks are led through the round again, with new inputs too."""
    legs = len(record(bench.scene()).out)
    for stop in range(1, legs + 1):
        for salt, seed in ((0, b"seed"), (1, b"fresh entropy")):
            scene = bench.scene()
            first, second = scene.server(), scene.server(seed=seed)
            scene.run(first, scene.clients(), legs=stop)
            restarted = {
                name: scene.client(name, vector=scene.vector(name, salt), seed=seed)
                for name in scene.names
            }
            scene.run(second, restarted)
            bench.judge(scene, f"all clients restarted after {stop} of {legs} legs")


_REWINDS: Final[tuple[tuple[dict[str, Any], dict[str, Any]], ...]] = (
    ({"round": 2}, {"round": 1}),
    ({"round": 2}, {"round": 2}),
    ({"round": 2, "attempt": 1}, {"round": 2, "attempt": 0}),
    ({"round": 2, "attempt": 1}, {"round": 1, "attempt": 2}),
)


def rewind(bench: Bench) -> None:
    """After a later round the server asks for an earlier round or attempt again."""
    for done, asked in _REWINDS:
        scene = bench.scene()
        old = record(scene, **done)
        bench.expect_sum(scene, old.server, scene.names, "an honest round")
        released = len(scene.masked)
        server = scene.server(**asked)
        scene.run(server, scene.clients(**asked, seed=b"after the restart"))
        bench.judge(scene, f"{asked} after {done}")
        more = len(scene.masked) - released
        bench.expect(not more, f"{more} masked vectors left for {asked} after {done}", scene)


# A13: what the server sees


def same_view(bench: Bench) -> None:
    """Two sets of inputs with one sum: before the masked vectors and after, nothing differs."""
    one, two = bench.scene(), bench.scene()
    leg = vector_leg(bench, record(bench.scene()))
    shift = np.arange(1, 1 + one.spec.vector_length, dtype=np.uint32)
    moved = dict(zip(one.names, (shift, -shift), strict=False))
    nothing = np.zeros_like(shift)
    views = []
    for scene in (one, two):
        server = scene.server()
        shifts = moved if scene is two else {}
        clients = {
            name: scene.client(name, vector=scene.vector(name) + shifts.get(name, nothing))
            for name in scene.names
        }
        scene.run(server, clients)
        total = bench.expect_sum(scene, server, scene.names, "inputs with the same sum").total
        kinds = sorted(f"{reveal}" for _, _, reveal in scene.revealed)
        early = [packet.data for party in clients.values() for packet in party.sent[:leg]]
        views.append((total.tolist(), kinds, early))
    bench.expect(views[0] == views[1], "the server's view depends on more than the sum", two)


# A15: inputs


def odd_inputs(bench: Bench) -> None:
    """Vectors that are no residues are refused before anything is masked."""
    length = bench.scene().spec.vector_length
    refused: tuple[type[Exception], ...] = (*bench.adapter.errors, ValueError, TypeError)
    odd_ones: tuple[NDArray[Any], ...] = (
        np.full(length, np.nan),
        np.full(length, np.inf),
        np.full(length, 1e300),
        np.full(length, -1, dtype=np.int64),
        np.zeros(length + 1, dtype=np.uint32),
        np.zeros(length - 1, dtype=np.uint32),
        np.zeros((length, 1), dtype=np.uint32),
        np.zeros(0, dtype=np.uint32),
        np.full(length, 2**40, dtype=np.uint64),
    )
    for odd in odd_ones:
        scene = bench.scene()
        what = f"an input of {odd.dtype} {odd.shape}"
        clients = scene.clients(scene.names[1:])
        try:
            clients[scene.names[0]] = scene.client(scene.names[0], vector=odd, honest=False)
        except refused:
            continue
        server = scene.server()
        scene.run(server, clients)
        bench.expect_sum(scene, server, scene.names[1:], what)


def wrapping_inputs(bench: Bench) -> None:
    """Sums that wrap many times are exact mod 2^k, for both widths and extreme residues."""
    for bits in (32, 64):
        for value in (0, 1, 2 ** (bits - 1), 2**bits - 1):
            scene = bench.scene(modulus_bits=bits)
            vector = np.full(scene.spec.vector_length, value, dtype=f"uint{bits}")
            server, clients = scene.server(), scene.clients(vector=vector)
            scene.run(server, clients)
            bench.expect_sum(scene, server, clients, f"all inputs 2^{bits} - {2**bits - value}")


# A18: dropouts


def dropouts(bench: Bench) -> None:
    """Every number of clients leaves before each leg: exact sum over the rest, or none."""
    legs = len(record(bench.scene()).out)
    names = bench.scene().names
    quorum = bench.adapter.quorum(bench.scene().spec) or bench.scene().spec.min_clients
    for leg in range(legs):
        for count in range(1, len(names)):
            gone = names[:count] if leg % 2 else names[-count:]
            _drop(bench, dict.fromkeys(gone, leg), enough=len(names) - count >= quorum)


def mixed_dropouts(bench: Bench) -> None:
    """Clients leave at different legs, answers of the last leg in any order."""
    legs = len(record(bench.scene()).out)
    names = bench.scene().names
    quorum = bench.adapter.quorum(bench.scene().spec) or bench.scene().spec.min_clients
    spare = len(names) - quorum
    rng = np.random.default_rng(18)
    for _ in range(60 if bench.thorough else 12):
        count = int(rng.integers(1, spare + 2))
        gone = rng.choice(len(names), size=count, replace=False)
        when = {names[index]: int(rng.integers(legs)) for index in gone}
        _drop(bench, when, enough=count <= spare)


def _drop(bench: Bench, when: Mapping[str, int], *, enough: bool) -> None:
    scene = bench.scene()
    server = scene.server()
    scene.run(server, scene.clients(), drop=when)
    what = f"{len(when)} clients leave before legs {sorted(when.values())}"
    bench.judge(scene, what)
    bench.expect(scene.finished(server), f"{what}: the server never ends", scene)
    if enough:
        bench.expect(scene.result(server) is not None, f"{what}: enough stay, no sum", scene)


def any_order(bench: Bench) -> None:
    """The order in which answers arrive changes no byte that the server sends, nor the record."""
    seen = []
    for order in (1, -1):
        scene = bench.scene()
        server, clients = scene.server(), scene.clients()
        scene.run(server, clients, carry=_in_order(order))
        total = bench.expect_sum(scene, server, clients, "answers in another order").total
        sent = sorted((packet.recipient, packet.data) for packet in server.sent)
        seen.append((total.tolist(), sent, bench.adapter.transcript(server.handle)))
    bench.expect(seen[0] == seen[1], "the order of arrival changes what the server says")


def _in_order(step: int) -> Callable[[int, list[Packet]], list[Packet]]:
    return lambda _, answers: answers[::step]


# A20 and A22: side releases


def constant_sizes(bench: Bench) -> None:
    """Sizes of all packets are the same for all inputs and all entropy."""
    length = bench.scene().spec.vector_length
    seen = []
    for vector, seed in (
        (np.zeros(length, np.uint32), b"a"),
        (np.full(length, 2**32 - 1, np.uint32), b"b"),
        (None, b"c"),
    ):
        scene = bench.scene(seed=seed)
        server, clients = scene.server(), scene.clients(vector=vector)
        scene.run(server, clients, drop={scene.names[0]: 3})
        bench.judge(scene, "sizes")
        packets = [packet for party in scene.parties for packet in party.sent]
        seen.append([(p.sender, p.recipient, p.kind, len(p.data)) for p in packets])
    bench.expect(seen[0] == seen[1] == seen[2], "sizes depend on inputs or entropy")


def telling_errors(bench: Bench) -> None:
    """No error text and no repr holds an input value."""
    scene = bench.scene()
    vector = np.full(scene.spec.vector_length, _SENTINEL, dtype=np.uint32)
    server, clients = scene.server(), scene.clients(vector=vector)
    packets: list[Packet] = []
    shown: list[str] = []

    def carry(leg: int, answers: list[Packet]) -> list[Packet]:
        packets.extend(answers)
        shown.extend(repr(party.handle) for party in scene.parties)
        return [replace(answer, data=answer.data[:-1] + b"\0") for answer in answers] + answers

    scene.run(server, clients, carry=carry)
    for client in clients.values():
        for packet in packets[:3]:
            scene.deliver(client, packet)
    texts = [*scene.errors, *shown, *(repr(party.handle) for party in scene.parties)]
    raw = _SENTINEL.to_bytes(4, "little")
    forms = (str(_SENTINEL), f"{_SENTINEL:x}", raw.hex(), repr(raw)[2:-1])
    told = [form for form in forms for text in texts if form in text]
    bench.expect(not told, "an error or a repr shows an input value", scene)


def uncharged_release(bench: Bench) -> None:
    """The ledger refuses one client: nothing masked leaves it. The others are charged once."""
    for refusing in (0, 1, 3):
        scene = bench.scene()
        scene.tolerates = (BudgetExceeded,)
        charges: dict[str, int] = dict.fromkeys(scene.names, 0)
        refused = scene.names[:refusing]
        clients = {
            name: _charging(scene, name, charges, refuse=name in refused) for name in scene.names
        }
        server = scene.server()
        scene.run(server, clients)
        released = {client.name for client, _, _ in scene.masked}
        told = released & set(refused)
        bench.expect(not told, f"{len(told)} clients released without a reservation", scene)
        once = all(charges[name] == 1 for name in scene.names)
        bench.expect(once, "a release was not charged exactly once", scene)
        bench.judge(scene, f"{refusing} clients without budget")


def _charging(scene: Scene, name: str, charges: dict[str, int], *, refuse: bool) -> Party:
    def charge() -> None:
        charges[name] += 1
        if any(client.name == name for client, _, _ in scene.masked):
            raise Finding(f"{name} was charged after its vector had left", scene=scene)
        if refuse:
            raise BudgetExceeded("the kit's ledger is exhausted")

    party = scene.charging_client(name, charge)
    if party is None:
        raise NotApplicable("the protocol has no hook before the release")
    return party


_SUM: Final = claims(Claim.EXACT_SUM)
_DROPOUTS: Final = claims(Claim.EXACT_SUM, Claim.DROPOUTS)

ROUND_ATTACKS: Final = (
    Attack(
        id="A8-rounds",
        title="masks of two rounds are related",
        needs=claims(Claim.FRESH_MASKS, Claim.UNIFORM_MASKS),
        run=reused_masks,
        cost=3,
    ),
    Attack(
        id="A8-clients",
        title="masks of two clients, or of two parts of a vector, are related",
        needs=claims(Claim.FRESH_MASKS, Claim.UNIFORM_MASKS),
        run=shared_masks,
    ),
    Attack(
        id="A11-restart",
        title="a restarted client releases a second masked vector",
        needs=claims(Claim.SPENT_ROUNDS),
        run=restart,
        cost=4,
    ),
    Attack(
        id="A11-rewind",
        title="a client takes part in a round that is over",
        needs=claims(Claim.SPENT_ROUNDS, Claim.EXACT_SUM),
        run=rewind,
        cost=3,
    ),
    Attack(
        id="A13-view",
        title="the server's view tells more of the inputs than their sum",
        needs=claims(Claim.EXACT_SUM, Claim.DETERMINISTIC),
        run=same_view,
    ),
    Attack(
        id="A15-inputs",
        title="inputs that are no residues, or not finite, are masked",
        needs=claims(Claim.EXACT_SUM, Claim.TYPED_ERRORS, Claim.DROPOUTS),
        run=odd_inputs,
        cost=3,
    ),
    Attack(
        id="A15-wrap",
        title="large residues spoil the sum",
        needs=_SUM,
        run=wrapping_inputs,
        cost=2,
    ),
    Attack(
        id="A18-dropouts",
        title="clients that vanish at one stage spoil the sum",
        needs=_DROPOUTS,
        run=dropouts,
        cost=4,
    ),
    Attack(
        id="A18-mixed",
        title="clients that vanish at several stages spoil the sum",
        needs=_DROPOUTS,
        run=mixed_dropouts,
        cost=2,
    ),
    Attack(
        id="A18-order",
        title="the order of arrival matters",
        needs=claims(Claim.EXACT_SUM, Claim.DETERMINISTIC),
        run=any_order,
    ),
    Attack(
        id="A20-sizes",
        title="sizes of messages depend on inputs",
        needs=claims(Claim.CONSTANT_SIZES),
        run=constant_sizes,
    ),
    Attack(
        id="A20-errors",
        title="error texts or reprs show inputs",
        needs=claims(Claim.TYPED_ERRORS),
        run=telling_errors,
    ),
    Attack(
        id="A22-uncharged",
        title="a vector leaves without a reservation",
        needs=claims(Claim.EXACT_SUM),
        run=uncharged_release,
    ),
)
