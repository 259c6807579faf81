"""Attacks by a server that shows different things to different clients or wants weaker rules.

A1 inconsistent models, A2 crafted models, A3 both shares, A4 equivocation, A9 small cohorts, A10
server-chosen parameters, A12 and A14 differencing. Reference for A1: Pasquini et al., Eluding
Secure Aggregation in Federated Learning via Model Inconsistency, CCS 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, Final

from privfedrl.testing.adapter import Claim, Packet
from privfedrl.testing.adversaries import equivocate, forge, record, reveal_leg, vector_leg
from privfedrl.testing.bench import Attack, Bench, NotApplicable, claims
from privfedrl.testing.scene import Party, Scene

__all__ = [
    "VIEW_ATTACKS",
    "below_the_floor",
    "borrowed_consents",
    "both_shares",
    "crafted_model",
    "differing_attempts",
    "differing_rounds",
    "equivocal_stages",
    "equivocal_survivors",
    "late_survivor",
    "late_vector",
    "lax_both_shares",
    "lax_server",
    "lax_views",
    "next_model",
    "split_models",
    "sybils",
    "weaker_rules",
]

_ELSEWHERE: Final[tuple[dict[str, Any], ...]] = ({"model": b"n" * 32}, {"plan": b"q" * 32})
_STRICT: Final = {"num_clients": 7, "min_clients": 6, "min_honest": 4}
"""A round with room below its floors, so that a weaker server could open something."""
_WEAKER: Final[tuple[dict[str, Any], ...]] = (
    {"min_clients": 2},
    {"min_clients": 5},
    {"min_honest": 2},
    {"max_colluding": 0},
    {"threshold": 3},
    {"threshold": 7},
    {"min_clients": 2, "min_honest": 2, "max_colluding": 0, "threshold": 4},
    {"modulus_bits": 64},
    {"vector_length": 3},
    {"vector_length": 5},
    {"num_clients": 6},
    {"num_clients": 8},
)


def _server(scene: Scene, **changes: Any) -> Party | None:
    """A server of a spec that the adapter may already refuse to build."""
    refused: tuple[type[Exception], ...] = (*scene.adapter.errors, ValueError)
    try:
        return scene.server(**changes)
    except refused:
        return None


def _sides(bench: Bench, names: Sequence[str]) -> list[tuple[str, ...]]:
    sizes = bench.sample(range(1, len(names)), 5)
    return [tuple(names[-size:]) for size in sizes]


def split_models(bench: Bench) -> None:
    """Some clients are given another model or plan; all answers go into both sums."""
    for changes in _ELSEWHERE:
        for ask_both in (False, True):
            for side in _sides(bench, bench.scene().names):
                scene = bench.scene()
                equivocate(scene, followers=side, changes=changes, cross=True, ask_both=ask_both)
                bench.judge(scene, f"{len(side)} clients with another {next(iter(changes))}")


def crafted_model(bench: Bench) -> None:
    """Clients that hold one model are sent a round for another one."""
    for changes in _ELSEWHERE:
        scene = bench.scene()
        server = scene.server(**changes)
        scene.run(server, scene.clients())
        bench.judge(scene, f"a {next(iter(changes))} that no client holds")
        bench.expect(scene.result(server) is None, "a sum for a model that nobody holds", scene)


def both_shares(bench: Bench) -> None:
    """Everybody is shown a survivor set with and one without some client, in both orders."""
    recording = record(bench.scene())
    reveal_leg(bench, recording)
    leg, names = vector_leg(bench, recording), bench.scene().names
    for hidden in bench.sample(names, 2):
        for followers in ((), names, names[::2]):
            scene = bench.scene()
            equivocate(scene, leg=leg, hidden={hidden}, followers=followers, ask_both=True)
            bench.judge(scene, f"both views of the survivors, without {hidden} in one")


def late_survivor(bench: Bench) -> None:
    """A client counted as dropped, whose pairwise shares are out, turns up with its vector."""
    recording = record(bench.scene())
    legs = vector_leg(bench, recording), reveal_leg(bench, recording)
    for hidden in bench.sample(bench.scene().names, 2):
        _dropped_then_alive(bench, hidden, *legs)


def _dropped_then_alive(bench: Bench, hidden: str, leg: int, last: int) -> None:
    scene = bench.scene()
    one, two, clients = scene.server(), scene.server(), scene.clients()
    held: list[Packet] = []

    def carry(number: int, answers: list[Packet]) -> list[Packet]:
        if number <= leg:
            held[:] = scene.collect(two, answers)
        return [a for a in answers if a.sender != hidden] if number == leg else answers

    scene.start(two)
    scene.run(one, clients, carry=carry, legs=last + 1)
    scene.run(two, clients, out=held)
    bench.judge(scene, f"{hidden} dropped, then alive")


def _equivocate_at(bench: Bench, legs: Sequence[int], colluding: int) -> None:
    names = bench.scene().names
    for leg in legs:
        for side in _sides(bench, names):
            for hidden in bench.sample([names[0], names[-1]], 2):
                scene = bench.scene()
                colluders = [name for name in names[1:] if name != hidden][:colluding]
                equivocate(scene, leg=leg, hidden={hidden}, followers=side, colluders=colluders)
                bench.judge(scene, f"two views after leg {leg}, {len(side)} see the second")


def equivocal_survivors(bench: Bench) -> None:
    """Two survivor sets, every split of the clients; then with one client that signs both."""
    leg = vector_leg(bench, record(bench.scene()))
    for colluding in (0, bench.scene().spec.max_colluding):
        _equivocate_at(bench, [leg], colluding)


def equivocal_stages(bench: Bench) -> None:
    """Two views of the cohort, of who shared keys, of who agreed."""
    recording = record(bench.scene())
    last = vector_leg(bench, recording)
    _equivocate_at(bench, [leg for leg in range(len(recording.out) - 1) if leg != last], 1)


def below_the_floor(bench: Bench) -> None:
    """So few take part that the floors forbid a sum, whoever closes the phases."""
    names = bench.scene(**_STRICT).names
    for present in bench.sample(range(1, len(names)), 6):
        for changes in ({}, {"min_clients": 2, "min_honest": 2, "max_colluding": 0}):
            scene = bench.scene(**_STRICT)
            server = _server(scene, **changes)
            if server is not None:
                scene.run(server, scene.clients(names[:present]))
                bench.judge(scene, f"{present} of {len(names)} clients")


def lax_server(bench: Bench) -> None:
    """A server that goes on below every floor; clients leave before each leg until few are left."""
    legs = len(record(bench.scene()).out)
    rounds: tuple[dict[str, Any], ...] = ({}, _STRICT)
    for leg, changes in product(range(legs), rounds):
        names = bench.scene(**changes).names
        for present in bench.sample(range(1, len(names)), 5):
            scene = bench.scene(**changes)
            server = _lax_server(scene)
            gone = dict.fromkeys(names[present:], leg)
            scene.run(server, scene.clients(), drop=gone)
            bench.judge(scene, f"{present} stay after leg {leg}, and the server goes on")


def _lax_server(scene: Scene) -> Party:
    try:
        return scene.server(lax=True)
    except LookupError as error:
        raise NotApplicable(str(error)) from error


def lax_views(bench: Bench) -> None:
    """Two views after each leg by servers that go on below every threshold."""
    recording = record(bench.scene())
    _lax_server(bench.scene())
    names = bench.scene().names
    for leg in range(vector_leg(bench, recording), len(recording.out) - 1):
        for side in (names[-3:], names[-1:]):
            for colluding in (0, 1):
                scene = bench.scene()
                colluders = names[1 : 1 + colluding]
                equivocate(
                    scene,
                    leg=leg,
                    hidden=set(names[:1]),
                    followers=side,
                    colluders=colluders,
                    lax=True,
                )
                bench.judge(scene, f"two views after leg {leg}, {len(side)} see the second")


def borrowed_consents(bench: Bench) -> None:
    """Clients of one view are shown the agreement of those of the other."""
    leg = vector_leg(bench, record(bench.scene()))
    _lax_server(bench.scene())
    names = bench.scene().names
    for size in (4, 3, 5):
        scene = bench.scene()
        first, second = equivocate(
            scene, leg=leg, hidden=set(names[:1]), followers=names[-size:], lax=True, further=1
        )
        agreed = _consents(bench, scene, second.waiting[:1])
        for packet in first.waiting:
            shown = forge(bench, scene, packet, consents=_always(agreed))
            scene.deliver(first.members[packet.recipient], shown)
        for packet in second.waiting:
            scene.deliver(second.members[packet.recipient], packet)
        bench.judge(scene, f"the agreement of {size} clients shown to the others")


def _always(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


def _consents(bench: Bench, scene: Scene, packets: list[Packet]) -> tuple[bytes, ...]:
    seen: list[tuple[bytes, ...]] = []

    def look(consents: Any) -> Any:
        seen.append(consents)
        return consents

    for packet in packets:
        forge(bench, scene, packet, consents=look)
    return seen[0] if seen else ()


def lax_both_shares(bench: Bench) -> None:
    """Everybody is shown both views by servers that go on without agreement."""
    recording = record(bench.scene())
    reveal_leg(bench, recording)
    _lax_server(bench.scene())
    leg, names = vector_leg(bench, recording), bench.scene().names
    for followers in ((), names, names[::2]):
        scene = bench.scene()
        hidden = set(names[-1:])
        equivocate(scene, leg=leg, hidden=hidden, followers=followers, ask_both=True, lax=True)
        bench.judge(scene, "both views of the survivors, without agreement")


def sybils(bench: Bench) -> None:
    """One honest client among outsiders and impostors."""
    for outsiders in (0, 2, 5):
        _one_among_sybils(bench, outsiders)


def _one_among_sybils(bench: Bench, outsiders: int) -> None:
    scene = bench.scene()
    target, *others = scene.names
    false = frozenset(others)
    clients = scene.clients([target]) | scene.clients(others, honest=False, impostors=false)
    server = scene.server()
    opening = scene.start(server)
    extra = [
        answer
        for index in range(outsiders)
        for answer in scene.deliver(
            scene.client(f"outsider-{index}", honest=False),
            replace(opening[0], recipient=f"outsider-{index}"),
        )
    ]

    def carry(leg: int, answers: list[Packet]) -> list[Packet]:
        return [*answers, *extra] if leg == 0 else answers

    scene.run(server, clients, out=opening, carry=carry)
    bench.judge(scene, f"one honest client, {outsiders} outsiders, the rest impostors")
    bench.expect(scene.result(server) is None, "a sum over one honest client", scene)


def weaker_rules(bench: Bench) -> None:
    """The server's round has other thresholds, floors, moduli or sizes than the clients'."""
    built = 0
    for changes in _WEAKER:
        for present in (4, 5, 7):
            scene = bench.scene(**_STRICT)
            server = _server(scene, **changes)
            if server is not None:
                built += 1
                scene.run(server, scene.clients(scene.names[:present]))
                bench.judge(scene, f"a server with {changes}, {present} clients")
    if not built:
        raise NotApplicable("the adapter builds no server with other rules")


def differing_rounds(bench: Bench) -> None:
    """Two rounds on one model, the second without one of the clients."""
    leg = vector_leg(bench, record(bench.scene()))
    for dropped_at in range(leg + 1):
        for first_misses in (False, True):
            scene = bench.scene()
            missing = {scene.names[0]: dropped_at}
            for number, drop in ((1, {}), (2, missing)):
                gone = drop if not first_misses else ({} if drop else missing)
                server = scene.server(round=number)
                scene.run(server, scene.clients(round=number), drop=gone)
            bench.judge(
                scene, f"two rounds on one model, one client leaves before leg {dropped_at}"
            )


def differing_attempts(bench: Bench) -> None:
    """Two attempts of one round whose survivors differ by one client."""
    scene = bench.scene()
    for attempt, drop in ((0, {}), (1, {scene.names[-1]: 0})):
        server = scene.server(attempt=attempt)
        scene.run(server, scene.clients(attempt=attempt), drop=drop)
    bench.judge(scene, "two attempts of one round")


def next_model(bench: Bench) -> None:
    """The rule against differencing does not stop a round on the next model."""
    scene = bench.scene()
    for number, missing in ((1, ()), (2, scene.names[:1])):
        model = bytes([number]) * 32
        server = scene.server(round=number, model=model)
        clients = scene.clients(round=number, model=model)
        scene.run(server, clients, drop=dict.fromkeys(missing, 0))
        names = set(scene.names) - set(missing)
        bench.expect_sum(scene, server, names, f"round {number} on a new model")


def late_vector(bench: Bench) -> None:
    """A masked vector that arrives after its phase or after the end is never added."""
    recording = record(bench.scene())
    leg = vector_leg(bench, recording)
    for delay in range(1, len(recording.out) - leg + 1):
        _late_by(bench, leg, delay)


def _late_by(bench: Bench, leg: int, delay: int) -> None:
    scene = bench.scene()
    server, clients, late = scene.server(), scene.clients(), scene.names[0]
    held: list[Packet] = []

    def carry(number: int, answers: list[Packet]) -> list[Packet]:
        if number == leg:
            held.extend(answer for answer in answers if answer.sender == late)
            return [answer for answer in answers if answer not in held]
        return [*held, *answers] if number == leg + delay else answers

    scene.run(server, clients, carry=carry)
    others = set(scene.names) - {late}
    before = bench.expect_sum(scene, server, others, f"a vector came {delay} legs late")
    for packet in held:
        scene.deliver(server, packet)
    scene.close(server)
    after = bench.expect_sum(scene, server, others, "the late vector came after the end")
    same = before.total.tolist() == after.total.tolist()
    bench.expect(same, "the sum changed after the end", scene)


_AGREEMENT: Final = claims(Claim.EXACT_SUM, Claim.AGREEMENT)
_FLOOR: Final = claims(Claim.COHORT_FLOOR)

VIEW_ATTACKS: Final = (
    Attack(
        id="A1-split-model",
        title="clients with two models or plans share a sum",
        needs=claims(Claim.MODEL_BINDING),
        run=split_models,
        cost=2,
    ),
    Attack(
        id="A2-crafted-model",
        title="clients contribute to a model that they do not hold",
        needs=claims(Claim.MODEL_BINDING),
        run=crafted_model,
    ),
    Attack(
        id="A3-both-shares",
        title="two survivor sets make a client reveal both shares of one peer",
        needs=claims(Claim.ONE_SHARE_KIND),
        run=both_shares,
        cost=2,
    ),
    Attack(
        id="A3-late-survivor",
        title="a dropped client returns after its pairwise shares were revealed",
        needs=claims(Claim.ONE_SHARE_KIND),
        run=late_survivor,
    ),
    Attack(
        id="A4-survivors",
        title="two survivor sets of one round are both opened",
        needs=_AGREEMENT,
        run=equivocal_survivors,
        cost=4,
    ),
    Attack(
        id="A4-stages",
        title="two views of an earlier or later stage give two sums or a wrong one",
        needs=_AGREEMENT,
        run=equivocal_stages,
        cost=6,
    ),
    Attack(
        id="A9-floor",
        title="a sum over fewer clients than the floor is opened",
        needs=_FLOOR,
        run=below_the_floor,
    ),
    Attack(
        id="A3-lax",
        title="without agreement, a client reveals both shares of one peer",
        needs=claims(Claim.ONE_SHARE_KIND),
        run=lax_both_shares,
    ),
    Attack(
        id="A4-lax",
        title="a server that ignores thresholds opens two survivor sets",
        needs=_AGREEMENT,
        run=lax_views,
        cost=3,
    ),
    Attack(
        id="A4-borrowed",
        title="clients reveal shares although others agreed on another survivor set",
        needs=_AGREEMENT,
        run=borrowed_consents,
    ),
    Attack(
        id="A9-lax",
        title="a server that ignores floors opens a small sum",
        needs=_FLOOR,
        run=lax_server,
        cost=5,
    ),
    Attack(
        id="A9-sybil",
        title="one honest client is surrounded by outsiders and impostors",
        needs=claims(Claim.COHORT_FLOOR, Claim.AUTHENTICATED),
        run=sybils,
    ),
    Attack(
        id="A10-parameters",
        title="the server chooses thresholds, floors, moduli or sizes",
        needs=claims(Claim.CLIENT_POLICY, Claim.COHORT_FLOOR),
        run=weaker_rules,
    ),
    Attack(
        id="A12-rounds",
        title="two rounds on one model differ by one client",
        needs=claims(Claim.DIFFERENCING),
        run=differing_rounds,
        cost=4,
    ),
    Attack(
        id="A12-next-model",
        title="the rule against differencing leaves honest rounds alone",
        needs=claims(Claim.EXACT_SUM, Claim.DROPOUTS, Claim.DIFFERENCING),
        run=next_model,
    ),
    Attack(
        id="A14-attempts",
        title="two attempts of one round differ by one client",
        needs=claims(Claim.DIFFERENCING),
        run=differing_attempts,
    ),
    Attack(
        id="A14-late-vector",
        title="a vector that comes too late is added to the sum",
        needs=claims(Claim.EXACT_SUM, Claim.DROPOUTS),
        run=late_vector,
    ),
)
