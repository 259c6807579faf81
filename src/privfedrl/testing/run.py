"""What happened in a round, as the kit saw it from outside.

Guarantee: a value of these types is a record, not a judgement; ``invariants`` judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from privfedrl.testing.adapter import Aggregate, Packet, Reveal, RingVector, RoundSpec
from privfedrl.testing.schedule import Schedule

__all__ = ["Finding", "Knowledge", "Refusal", "Run", "Sent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A packet that was made: ``number`` counts them over all rounds of a network.

    ``views`` are the servers that made it, or that it is meant for.
    """

    number: int
    round: int
    stage: int
    views: frozenset[int]
    packet: Packet

    @property
    def kind(self) -> str:
        """The packet's kind."""
        return self.packet.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """``party`` raised one of the adapter's errors on ``packet`` (None: on closing a phase).

    Attributes:
        hostile: no party of this round made these bytes for this recipient.
        foreign: no party of this round made them for anybody.
        changed: whether ``finished`` or ``waiting_for`` of the party changed all the same.
    """

    party: str
    packet: Packet | None
    error: Exception
    view: int = 0
    hostile: bool = False
    foreign: bool = False
    changed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What no adapter may do: raise another type, answer after the end, never end."""

    party: str
    what: str
    packet: Packet | None = None
    error: Exception | None = None


@dataclass(slots=True)
class Knowledge:
    """What the server side has seen: shares, and masked vectors by client."""

    reveals: list[Reveal] = field(default_factory=list)
    residues: dict[str, list[RingVector]] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, eq=False)
class Run:
    """What happened in one round.

    Attributes:
        packets: all that were made, in order. accepted: (packet, hostile) taken without error.
        aggregate, error: of view 0; both None while the round is open.
        aggregates: of all views that have one, with their number.
        harmed: clients that the network did not serve honestly; the others must be in the sum.
        schedule: replays this run; set when it has ended.
    """

    spec: RoundSpec
    vectors: Mapping[str, RingVector]
    packets: list[Sent] = field(default_factory=list)
    accepted: list[tuple[Packet, bool]] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    knowledge: Knowledge = field(default_factory=Knowledge)
    aggregates: dict[int, Aggregate] = field(default_factory=dict)
    error: Exception | None = None
    transcript: bytes | None = None
    ledger_entries: int | None = None
    harmed: set[str] = field(default_factory=set)
    schedule: Schedule = field(default_factory=Schedule)

    @property
    def aggregate(self) -> Aggregate | None:
        """What the first server opened."""
        return self.aggregates.get(0)

    def of_kind(self, kind: str) -> list[Packet]:
        """The packets of one kind, in order."""
        return [sent.packet for sent in self.packets if sent.kind == kind]
