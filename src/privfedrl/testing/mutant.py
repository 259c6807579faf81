"""What a mutant is: a row of the table that the kit itself is tested with.

Guarantee: imports no protocol, so simulacra can use it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from privfedrl.testing.adapter import AggregationAdapter

__all__ = ["Mutant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One protocol that is wrong in one way.

    Attributes:
        id: short and unique. title: what is wrong. fault: what it stands for in the field or in the
            threat model. expected: ids of attacks, known answers or invariants ("I5") that should
            notice, the quickest first; the runner tries them in this order.
        make: a fresh adapter with the defect. thorough: only the long profile sees it.
    """

    id: str
    title: str
    fault: str
    expected: tuple[str, ...]
    make: Callable[[], AggregationAdapter] = field(repr=False)
    thorough: bool = False
