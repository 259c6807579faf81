"""What an attack gets to work with and how it says what it found.

Guarantee: an attack passes only by running to its end; a finding, a crash of the attack and an
attack that does not apply are three different outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from privfedrl.testing.adapter import Aggregate, AggregationAdapter, Claim, RoundSpec
from privfedrl.testing.oracle import judge
from privfedrl.testing.scene import Party, Scene

__all__ = ["Attack", "Bench", "Finding", "NotApplicable", "claims"]


class Finding(Exception):
    """The adapter broke a claim. ``problem`` is the oracle's sentence, or empty."""

    def __init__(self, text: str, *, scene: Scene | None = None, problem: str = "") -> None:
        super().__init__(text)
        self.scene = scene
        self.problem = problem


class NotApplicable(Exception):
    """The attack needs something that this adapter or protocol does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One row of the table: ``run`` raises :class:`Finding` if the attack works.

    ``id`` starts with the number of the attack it belongs to; ``needs`` are the claims without
    which there is nothing to refute; ``cost`` is relative, cheap ones are tried first.
    """

    id: str
    title: str
    needs: frozenset[Claim]
    run: Callable[[Bench], None] = field(repr=False)
    cost: float = 1.0


def claims(*needed: Claim) -> frozenset[Claim]:
    """The claims as a set."""
    return frozenset(needed)


@dataclass(slots=True)
class Bench:
    """The adapter under test and how thorough to be."""

    adapter: AggregationAdapter
    thorough: bool = False

    def scene(self, **changes: Any) -> Scene:
        """An empty scene for the default round with ``changes``."""
        return Scene(self.adapter, replace(RoundSpec(), **changes))

    def judge(self, scene: Scene, what: str) -> None:
        """Raise unless the oracle is content with ``scene``."""
        problems = judge(scene)
        if problems:
            raise Finding(f"{what}: {problems[0]}", scene=scene, problem=problems[0])

    def expect(self, holds: bool, text: str, scene: Scene | None = None) -> None:
        """Raise unless ``holds``."""
        if not holds:
            raise Finding(text, scene=scene)

    def expect_sum(self, scene: Scene, server: Party, names: Iterable[str], what: str) -> Aggregate:
        """Raise unless ``server`` opened the exact sum over exactly ``names``."""
        self.judge(scene, what)
        result = scene.result(server)
        if result is None:
            raise Finding(f"{what}: there is no sum", scene=scene)
        wanted = tuple(sorted(names))
        if result.survivors != wanted:
            lost = ", ".join(sorted(set(wanted) ^ set(result.survivors)))
            raise Finding(f"{what}: the sum differs in {lost}", scene=scene)
        return result

    def honest_round(self, scene: Scene, **changes: Any) -> tuple[Party, dict[str, Party]]:
        """A server and all clients of one honest round that has been run and opened.

        Raises:
            Finding: even an honest round does not give its sum.
        """
        server, clients = scene.server(**changes), scene.clients(**changes)
        scene.run(server, clients)
        self.expect_sum(scene, server, clients, "an honest round")
        return server, clients

    def sample(self, values: Iterable[Any], count: int) -> list[Any]:
        """All ``values`` in the thorough profile, else ``count`` of them, evenly spread."""
        listed = list(values)
        if self.thorough or len(listed) <= count:
            return listed
        places = np.linspace(0, len(listed) - 1, count).round().astype(int)
        return [listed[place] for place in places]
