"""What must be true of every scene, whatever the attack was.

Guarantee: :func:`judge` looks at outputs and observations alone; each rule applies only where the
adapter claims what it tests. Rules: exact sums over registered inputs, one survivor set per round
in outputs and in what clients reveal, floors, one model per sum, one kind of share per peer, one
masked vector per round and disk, no two sums that differ by too few.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any, Final

import numpy as np

from privfedrl.testing.adapter import Aggregate, Claim, RoundSpec
from privfedrl.testing.scene import Party, RoundKey, Scene

__all__ = ["PINNED", "Output", "expected_sum", "judge", "outputs"]

PINNED: Final = (
    "num_clients",
    "max_colluding",
    "min_clients",
    "min_honest",
    "vector_length",
    "modulus_bits",
    "threshold",
    "model",
    "plan",
)
"""What a client holds fixed itself; the rest of a spec comes from the server."""

_MAX_COMBINATIONS: Final = 256


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """A sum that some server has opened."""

    server: Party
    aggregate: Aggregate = field(repr=False)

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose inputs the server says are in it."""
        return self.aggregate.survivors


def outputs(scene: Scene) -> list[Output]:
    """Every sum of the scene."""
    found = ((party, scene.result(party)) for party in scene.parties if party.server)
    return [Output(party, aggregate) for party, aggregate in found if aggregate is not None]


def expected_sum(vectors: list[Any], bits: int) -> Any:
    """The sum mod 2^bits of integer vectors [D]."""
    total = np.zeros(len(vectors[0]), dtype=np.uint64)
    for vector in vectors:
        total = total + np.asarray(vector).astype(np.uint64)
    return total & np.uint64(2**bits - 1)


def judge(scene: Scene) -> list[str]:
    """All violations, in plain words; empty if there is none."""
    opened = outputs(scene)
    found = list(scene.faults)
    for claim, rule in _OUTPUT_RULES:
        if scene.claims(claim):
            found += [problem for output in opened for problem in rule(scene, output)]
    for claim, judgement in _SCENE_RULES:
        if scene.claims(claim):
            found += judgement(scene, opened)
    return found


def _instances(scene: Scene, name: str) -> list[Party]:
    return [party for party in scene.parties if party.name == name and not party.server]


def _exact(scene: Scene, output: Output) -> Iterator[str]:
    """The total is the sum of one input of each survivor."""
    names, spec = output.survivors, output.server.spec
    if list(names) != sorted(set(names)):
        yield "the survivors are not sorted and distinct"
        return
    inputs = [[party.vector for party in _instances(scene, name)] for name in names]
    if not names or not all(inputs):
        yield "the sum names survivors that never took part"
        return
    total = np.asarray(output.aggregate.total).astype(np.uint64)
    for chosen in islice(product(*inputs), _MAX_COMBINATIONS):
        if any(len(vector) != len(total) for vector in chosen if vector is not None):
            continue
        if np.array_equal(expected_sum(list(chosen), spec.modulus_bits), total):
            return
    yield f"the sum over {len(names)} survivors is not the sum of their inputs"


def _authentic(scene: Scene, output: Output) -> Iterator[str]:
    """Only registered clients with their registered key are in a sum."""
    registered = set(scene.adapter.client_names(output.server.spec))
    for name in output.survivors:
        if name not in registered:
            yield f"{name} is not registered and is in the sum"
        instances = _instances(scene, name)
        if instances and all(name in party.spec.impostors for party in instances):
            yield f"{name} used a key that is not the registered one and is in the sum"


def _one_model(scene: Scene, output: Output) -> Iterator[str]:
    """Every honest survivor holds the same model, plan and settings as the server."""
    for name in output.survivors:
        instances = _instances(scene, name)
        honest = [party for party in instances if party.honest]
        if honest and len(honest) == len(instances):
            fits = [_pinned(party.spec) == _pinned(output.server.spec) for party in honest]
            if not any(fits):
                yield f"{name} is in a sum for another model, plan or settings than its own"


def _pinned(spec: RoundSpec) -> tuple[Any, ...]:
    return tuple(getattr(spec, name) for name in PINNED)


def _floor(scene: Scene, output: Output) -> Iterator[str]:
    """Every sum covers as many as its honest members insist on."""
    size = len(output.survivors)
    for name in output.survivors:
        for party in _instances(scene, name):
            own = party.spec
            small = size < own.min_clients or size - own.max_colluding < own.min_honest
            if party.honest and small:
                yield f"a sum over {size} was opened, below the floor of {name}"
                return


def _one_set(_: Scene, opened: list[Output]) -> list[str]:
    """No two survivor sets of one round."""
    sets: dict[RoundKey, set[tuple[str, ...]]] = defaultdict(set)
    for output in opened:
        sets[output.server.key].add(output.survivors)
    return [
        f"round {key[1]} attempt {key[2]} was opened for {len(found)} survivor sets"
        for key, found in sets.items()
        if len(found) > 1
    ]


def _one_kind(scene: Scene, _: list[Output]) -> list[str]:
    """No honest client reveals both shares of one peer."""
    kinds: dict[tuple[str, str, RoundKey], set[str]] = defaultdict(set)
    for client, key, reveal in scene.revealed:
        if client.honest:
            kinds[client.store, reveal.owner, key].add(reveal.kind)
    return [
        f"{holder} revealed both shares of {owner}"
        for (holder, owner, _), found in kinds.items()
        if len(found) > 1
    ]


def _one_view(scene: Scene, _: list[Output]) -> list[str]:
    """Honest clients that reveal shares of one peer agree whether it survived."""
    kinds: dict[tuple[str, RoundKey], set[str]] = defaultdict(set)
    for client, key, reveal in scene.revealed:
        if client.honest:
            kinds[reveal.owner, key].add(reveal.kind)
    return [
        f"honest clients revealed shares for two survivor sets, with and without {owner}"
        for (owner, _), found in kinds.items()
        if len(found) > 1
    ]


def _spent(scene: Scene, _: list[Output]) -> list[str]:
    """One masked vector per disk and round."""
    released: dict[tuple[str, RoundKey], set[bytes]] = defaultdict(set)
    for client, key, vector in scene.masked:
        if client.honest:
            released[client.store, key].add(vector)
    return [
        f"{store} released {len(found)} masked vectors for round {key[1]} attempt {key[2]}"
        for (store, key), found in released.items()
        if len(found) > 1
    ]


def _fresh(scene: Scene, _: list[Output]) -> list[str]:
    """No masked vector of two rounds is the same."""
    seen: dict[tuple[str, bytes], set[RoundKey]] = defaultdict(set)
    for client, key, vector in scene.masked:
        seen[client.name, vector].add(key)
    return [
        f"{name} sent the same masked vector in two rounds"
        for (name, _), keys in seen.items()
        if len(keys) > 1
    ]


def _no_differencing(scene: Scene, opened: list[Output]) -> list[str]:
    """Two sums on one model differ by nobody or by at least the floor."""
    found = []
    for index, one in enumerate(opened):
        for two in opened[:index]:
            if one.server.spec.model != two.server.spec.model:
                continue
            distance = len(set(one.survivors) ^ set(two.survivors))
            if 0 < distance < scene.spec.min_honest:
                found.append(f"two sums on one model differ by {distance} clients")
    return found


_OutputRule = Callable[[Scene, Output], Iterator[str]]
_SceneRule = Callable[[Scene, list[Output]], list[str]]

_OUTPUT_RULES: Final[tuple[tuple[Claim, _OutputRule], ...]] = (
    (Claim.EXACT_SUM, _exact),
    (Claim.AUTHENTICATED, _authentic),
    (Claim.MODEL_BINDING, _one_model),
    (Claim.COHORT_FLOOR, _floor),
)
_SCENE_RULES: Final[tuple[tuple[Claim, _SceneRule], ...]] = (
    (Claim.AGREEMENT, _one_set),
    (Claim.AGREEMENT, _one_view),
    (Claim.ONE_SHARE_KIND, _one_kind),
    (Claim.SPENT_ROUNDS, _spent),
    (Claim.FRESH_MASKS, _fresh),
    (Claim.DIFFERENCING, _no_differencing),
)
