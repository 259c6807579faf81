"""The audit "secagg-transcript": signed records of rounds, each by itself and as one chain.

Guarantee: a report without problems shows for every record that its signatures, sets and quorums
hold under the given registry, that all belong to one task and one plan, that no (task, round) has
two survivor sets, and that each record follows the one before by its digest. Arbitrary bytes give
a problem in the report, never an exception.

What it cannot show: that the newest records were not left out, unless ``anchor`` is among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from privfedrl.errors import ConfigurationError, PrivfedrlError
from privfedrl.secagg import Registry, Transcript
from privfedrl.secagg.transcript import IDEAL

__all__ = ["CheckedRound", "TranscriptReport", "verify_transcripts"]

_NO_DIGEST: Final = bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRound:
    """What one record says, and what is wrong with it.

    Where ``problems`` is not empty the other fields are claims of the record, or None where it
    could not be read so far.

    Attributes:
        name: how the caller named the record. digest: SHA-256 of its bytes, hex.
        survivors: names whose vectors are in the sum, sorted.
        protection: "pairwise masking" or "no cryptographic protection".
        ledger_head: hex; None if the coordinator supplied none (zeros).
        sum_checked: whether a sum was given and is the recorded one.
    """

    name: str
    digest: str
    task_id: str | None = None
    plan_digest: str | None = None
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
        names = CheckedRound.__dataclass_fields__
        rounds = [{name: getattr(one, name) for name in names} for one in self.rounds]
        return {
            "claim": "secagg-transcript",
            "ok": self.ok,
            "registry_digest": self.registry_digest,
            "num_agents": self.num_agents,
            "head": self.head,
            "problems": list(self.problems),
            "rounds": [
                {name: list(value) if isinstance(value, tuple) else value for name, value in row}
                for row in (one.items() for one in rounds)
            ],
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
        raise ConfigurationError(f"names must be one per frame, got {len(labels)}")
    rounds, follows = [], _NO_DIGEST if previous is None else previous
    for label, data in zip(labels, frames, strict=True):
        transcript, checked = _read(label, data, registry)
        if transcript is not None:
            checked = _checked_by_itself(
                checked, transcript, registry, follows, sums or {}, allow_ideal
            )
            follows = transcript.digest
        rounds.append(checked)
    linked = _check_neighbours(rounds)
    known = {one.digest for one in linked}
    absent = anchor is not None and anchor.hex() not in known
    return TranscriptReport(
        registry_digest=registry.digest.hex(),
        num_agents=len(registry.agents),
        head=linked[-1].digest,
        rounds=linked,
        problems=(f"the anchor {anchor.hex()} is not among these records",)
        if anchor is not None and absent
        else (),
    )


def _read(name: str, data: bytes, registry: Registry) -> tuple[Transcript | None, CheckedRound]:
    """Whatever can be read of a record before anything is verified."""
    blank = CheckedRound(name=name, digest=_sha256(data))
    try:
        transcript = Transcript.from_bytes(data)
        config = transcript.config
        found = replace(
            blank,
            task_id=config.task_id.hex(),
            plan_digest=config.plan_digest.hex(),
            round=config.round,
            attempt=config.attempt,
            protection=transcript.protection,
            ledger_head=None
            if transcript.ledger_head == _NO_DIGEST
            else transcript.ledger_head.hex(),
        )
    except PrivfedrlError as error:
        return None, replace(blank, problems=(f"not a transcript: {error}",))
    try:
        return transcript, replace(found, survivors=transcript.survivors(registry))
    except PrivfedrlError as error:
        return transcript, replace(found, problems=(f"survivors cannot be read: {error}",))
