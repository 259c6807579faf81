"""The audit "secagg-transcript": signed records of rounds, each by itself and as one chain.

Guarantee: a report without problems shows for every record that its signatures, sets and quorums
hold under the given registry, that all belong to one task and one plan, that no (task, round) has
two survivor sets, and that each record follows the one before by its digest. Arbitrary bytes give
a problem in the report, never an exception.

What it cannot show: that the newest records were not left out, unless ``anchor`` is among them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from privfedrl.errors import ConfigurationError, PrivfedrlError
from privfedrl.he import HETranscript
from privfedrl.parties import Registry
from privfedrl.secagg import Transcript
from privfedrl.secagg.transcript import IDEAL

__all__ = ["CheckedRound", "TranscriptReport", "verify_transcripts"]

_NONE: Final = bytes(32)  # stands for no transcript and for no ledger head


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRound:
    """What one record says, and what is wrong with it.

    Where ``problems`` is not empty the other fields are claims of the record, or None where it
    could not be read so far.

    Attributes:
        name: how the caller named the record. digest: SHA-256 of its bytes, hex.
        previous: digest of the record that this one follows, hex; zeros for the first of a task.
        opened_at: second at which the coordinator says it opened the round; None in ideal records.
        survivors: names whose vectors are in the sum, sorted.
        protection: "pairwise masking", "homomorphic encryption with a key authority" or "no
            cryptographic protection".
        ledger_head: hex; None if the coordinator supplied none (zeros).
        sum_checked: whether a sum was given and is the recorded one.
    """

    name: str
    digest: str
    task_id: str | None = None
    plan_digest: str | None = None
    previous: str | None = None
    opened_at: int | None = None
    round: int | None = None
    attempt: int | None = None
    survivors: tuple[str, ...] | None = None
    protection: str | None = None
    ledger_head: str | None = None
    sum_checked: bool = False
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptReport:
    """The outcome: ``rounds`` in the given order, ``problems`` of the chain as a whole.

    Attributes:
        registry_digest: hex, of the registry that was pinned. num_agents: how many it names.
        head: digest of the last record, hex: the anchor for the next audit.
    """

    registry_digest: str
    num_agents: int
    head: str
    rounds: tuple[CheckedRound, ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing at all was found."""
        return not self.problems and not any(one.problems for one in self.rounds)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: numbers, strings, lists and None only."""
        return {
            "claim": "secagg-transcript",
            "ok": self.ok,
            "registry_digest": self.registry_digest,
            "num_agents": self.num_agents,
            "head": self.head,
            "problems": list(self.problems),
            "rounds": [asdict(one) for one in self.rounds],
        }


def verify_transcripts(
    frames: Sequence[bytes],
    registry: Registry,
    *,
    names: Sequence[str] | None = None,
    previous: bytes | None = None,
    anchor: bytes | None = None,
    sums: Mapping[int, Any] | None = None,
    allow_ideal: bool = False,
) -> TranscriptReport:
    """Check the records of a task, in the order in which they were written.

    Args:
        registry: from a source that the audited party does not control.
        names: one per frame, for the report; positions if not given.
        previous: digest of the record before the first; by default the first must be the very
            first of its task.
        anchor: digest of a record that must be among these, as published or told by an agent.
        sums: round index -> the opened sum (uint32 or uint64 [D]), where it is known.
        allow_ideal: whether records of sums without cryptographic protection may pass.
    Raises:
        ConfigurationError: no frames, or not one name per frame.
    """
    if not frames:
        raise ConfigurationError("frames must hold at least one transcript")
    labels = [str(index) for index in range(len(frames))] if names is None else list(names)
    if len(labels) != len(frames):
        raise ConfigurationError(f"names must be one per frame, {len(frames)}, got {len(labels)}")
    known, chain = sums or {}, _Chain(_NONE if previous is None else previous)
    rounds = []
    for label, data in zip(labels, frames, strict=True):
        transcript, found = _read(label, data, registry)
        if transcript is not None:
            found = _and(_checked(found, transcript, registry, known), chain.problems(found))
            if found.protection == IDEAL and not allow_ideal:
                found = _and(found, [f"{IDEAL}: the coordinator saw every input"])
        chain.follows = found.digest
        rounds.append(found)
    return TranscriptReport(
        registry_digest=registry.digest.hex(),
        num_agents=len(registry.agents),
        head=rounds[-1].digest,
        rounds=tuple(rounds),
        problems=_open_ends(anchor, known, rounds),
    )


def _parse(data: bytes) -> Transcript | HETranscript:
    return HETranscript.from_bytes(data) if data[:4] == b"PFHE" else Transcript.from_bytes(data)


def _read(
    name: str, data: bytes, registry: Registry
) -> tuple[Transcript | HETranscript | None, CheckedRound]:
    """Whatever can be read of a record before anything is verified."""
    found = CheckedRound(name=name, digest=hashlib.sha256(data).hexdigest())
    try:
        transcript = _parse(data)
        config, head = transcript.config, transcript.ledger_head
        found = replace(
            found,
            task_id=config.task_id.hex(),
            plan_digest=config.plan_digest.hex(),
            previous=config.previous_transcript.hex(),
            opened_at=getattr(config, "opened_at", None),
            round=config.round,
            attempt=config.attempt,
            protection=transcript.protection,
            ledger_head=None if head == _NONE else head.hex(),
        )
        if config.registry_digest == registry.digest:  # the bitmap means something
            found = replace(found, survivors=transcript.survivors(registry))
        return transcript, found
    except PrivfedrlError as error:
        return None, _and(found, [f"cannot be read: {error}"])


def _and(found: CheckedRound, problems: list[str]) -> CheckedRound:
    return replace(found, problems=(*found.problems, *problems)) if problems else found


def _checked(
    found: CheckedRound,
    transcript: Transcript | HETranscript,
    registry: Registry,
    sums: Mapping[int, Any],
) -> CheckedRound:
    """Everything that a record shows by itself: signatures, sets, quorums, and the sum if given."""
    try:
        transcript.verify(registry)
    except PrivfedrlError as error:
        return _and(found, [f"does not hold up: {error}"])
    total = sums.get(transcript.config.round)
    if total is None:
        return found
    try:
        transcript.verify_sum(total)
    except PrivfedrlError:
        return _and(found, ["the given sum is not the recorded one"])
    return replace(found, sum_checked=True)


class _Chain:
    """What the records so far have claimed, and what a further one contradicts of it.

    Attributes:
        follows: digest of the record before, hex; whatever that was, its bytes have a digest.
    """

    __slots__ = ("_heads", "_last", "_rounds", "follows")

    def __init__(self, previous: bytes) -> None:
        self.follows = previous.hex()
        self._last: CheckedRound | None = None
        self._rounds: dict[tuple[str | None, int | None], str] = {}
        self._heads: dict[str, str] = {}

    def problems(self, found: CheckedRound) -> list[str]:
        """Add a record that could be read; the contradictions in the order of the checks."""
        problems = [*self._link(found), *self._order(found), *self._ledger(found)]
        self._rounds.setdefault((found.task_id, found.round), found.name)
        if found.ledger_head is not None:
            self._heads.setdefault(found.ledger_head, found.name)
        self._last = found
        return problems

    def _link(self, found: CheckedRound) -> list[str]:
        claimed = found.previous or ""
        if claimed == self.follows:
            return []
        expected = "nothing" if self.follows == _NONE.hex() else self.follows[:16]
        hint = "; earlier records are missing or were not named" if self._last is None else ""
        return [f"must follow {expected}, follows {claimed[:16]}{hint}"]

    def _order(self, found: CheckedRound) -> list[str]:
        last, problems = self._last, []
        if last is None or last.round is None or found.round is None:
            return []
        for field in ("task_id", "plan_digest"):
            if getattr(found, field) != getattr(last, field):
                problems.append(f"is about another {field} than {last.name}")
        twin = self._rounds.get((found.task_id, found.round))
        if twin is not None:
            problems.append(f"is a second survivor set for round {found.round}, after {twin}")
        elif found.round < last.round:
            problems.append(f"round {found.round} comes after round {last.round}")
        times = found.opened_at, last.opened_at
        if times[0] is not None and times[1] is not None and times[0] < times[1]:
            problems.append(f"was opened at {times[0]}, before {last.name} at {times[1]}")
        return problems

    def _ledger(self, found: CheckedRound) -> list[str]:
        if found.ledger_head is None:
            return ["names no ledger head, though earlier records do"] if self._heads else []
        twin = self._heads.get(found.ledger_head)
        return [] if twin is None else [f"names the ledger head of {twin}: nothing was charged"]


def _open_ends(
    anchor: bytes | None, sums: Mapping[int, Any], rounds: list[CheckedRound]
) -> tuple[str, ...]:
    """What was named by the caller and is not there."""
    problems = []
    if anchor is not None and anchor.hex() not in {one.digest for one in rounds}:
        problems.append(f"the anchor {anchor.hex()[:16]} is not among these records")
    if lost := sorted(set(sums) - {one.round for one in rounds}):
        problems.append(f"a sum was given for round {lost[0]}, which has no record")
    return tuple(problems)
