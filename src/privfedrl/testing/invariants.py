"""What must hold of every run, whatever the network and the server did: I1 to I12.

Guarantee: each invariant is one function of what was seen from outside, it is applied only where
the adapter claims it, and its text names what is broken without a value of any vector.

    I1   the sum is exact over its survivors, and every client that was served honestly is in it
    I2   for each client at most one kind of share leaves, over all peers and server views
    I3   a round opens at most one sum            I4   no sum over fewer than the floor
    I5   no masked vector repeats, none leaves a client twice in one round
    I6   a failure is one of the declared errors and changes nothing; foreign bytes are refused
    I7   a sum that was opened has exactly one ledger entry
    I8   who has ended sends nothing more         I9   a masked vector is not the vector
    I10  sizes of a client's messages do not differ between clients
    I11  a round that keeps a quorum ends with a sum
    I12  the same schedule again gives the same bytes, and the transcript verifies
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from privfedrl.testing.adapter import Aggregate, AggregationAdapter, Claim, RingVector
from privfedrl.testing.run import Run

__all__ = ["Violation", "expected_sum", "violations"]

_UNMISTAKABLE_BITS: Final = 64
"""Shorter vectors may meet by chance: two uniform ones of b bits are equal with 2^-b."""


@dataclass(frozen=True, slots=True)
class Violation:
    """``invariant`` (I1 to I12) does not hold in round ``round``: ``what`` says how."""

    invariant: str
    round: int
    what: str

    def __str__(self) -> str:
        return f"{self.invariant} in round {self.round}: {self.what}"


def expected_sum(run: Run, survivors: Sequence[str]) -> RingVector:
    """The exact sum of the survivors' vectors mod 2^modulus_bits."""
    dtype = np.dtype(f"uint{run.spec.modulus_bits}")
    total = np.zeros(run.spec.vector_length, dtype)
    for name in survivors:
        total += run.vectors[name]
    return total


def violations(
    adapter: AggregationAdapter,
    runs: Sequence[Run],
    *,
    colluding: Sequence[str] = (),
    transcripts: bool = True,
) -> tuple[Violation, ...]:
    """What the adapter claims and ``runs``, rounds of one federation, refute.

    Args:
        colluding: clients whose own conduct nobody answers for.
        transcripts: whether to verify them, which is the slow part.
    """
    found = [
        Violation(name, run.spec.round, what)
        for run in runs
        for name, needed, rule in _RULES
        if needed <= adapter.claims and (transcripts or rule is not _record)
        for what in rule(adapter, run, colluding)
    ]
    if Claim.FRESH_MASKS in adapter.claims:
        found += _repeated_masks(runs)
    return tuple(found)


def _sums(adapter: AggregationAdapter, run: Run, colluding: Sequence[str]) -> Iterator[str]:
    if _is_spoilt(adapter, run):
        return
    for aggregate in run.aggregates.values():
        names = aggregate.survivors
        if list(names) != sorted(set(names)) or not set(names) <= set(run.vectors):
            yield "survivors must be distinct registered clients in sorted order"
        elif not _fits(aggregate, run):
            yield "the sum has another dtype or shape than the spec's"
        else:
            wrong = int((aggregate.total != expected_sum(run, names)).sum())
            if wrong:
                yield f"the sum is wrong in {wrong} of {run.spec.vector_length} places"


def _fits(aggregate: Aggregate, run: Run) -> bool:
    dtype = np.dtype(f"uint{run.spec.modulus_bits}")
    return aggregate.total.dtype == dtype and aggregate.total.shape == (run.spec.vector_length,)


def _is_spoilt(adapter: AggregationAdapter, run: Run) -> bool:
    """Foreign bytes went in, and the adapter does not say that they cannot matter."""
    return Claim.TAMPER_PROOF not in adapter.claims and any(hostile for _, hostile in run.accepted)


def _present(adapter: AggregationAdapter, run: Run, colluding: Sequence[str]) -> Iterator[str]:
    if run.aggregate is not None and not _is_spoilt(adapter, run):
        missing = set(run.vectors) - run.harmed - set(run.aggregate.survivors)
        if missing:
            yield f"{len(missing)} clients that were served honestly are not in the sum"


def _one_kind(adapter: AggregationAdapter, run: Run, colluding: Sequence[str]) -> Iterator[str]:
    kinds: dict[str, set[str]] = {}
    for reveal in run.knowledge.reveals:
        if reveal.holder not in colluding:
            kinds.setdefault(reveal.owner, set()).add(reveal.kind)
    for owner, seen in sorted(kinds.items()):
        if len(seen) > 1:
            yield f"both kinds of share of {owner} have left honest clients"


def _one_holder_one_kind(
    adapter: AggregationAdapter, run: Run, colluding: Sequence[str]
) -> Iterator[str]:
    kinds: dict[tuple[str, str], set[str]] = {}
    for reveal in run.knowledge.reveals:
        if reveal.holder not in colluding:
            kinds.setdefault((reveal.owner, reveal.holder), set()).add(reveal.kind)
    for (owner, holder), seen in sorted(kinds.items()):
        if len(seen) > 1:
            yield f"{holder} revealed both kinds of its share of {owner}"


def _live_keys(adapter: AggregationAdapter, run: Run, colluding: Sequence[str]) -> Iterator[str]:
    for aggregate in run.aggregates.values():
        live = set(aggregate.survivors)
        for reveal in run.knowledge.reveals:
            if reveal.kind == "pair" and reveal.owner in live and reveal.holder not in colluding:
                yield f"{reveal.holder} revealed a mask-key share of the survivor {reveal.owner}"


def _one_sum(adapter: AggregationAdapter, run: Run, colluding: Sequence[str]) -> Iterator[str]:
    if len({aggregate.survivors for aggregate in run.aggregates.values()}) > 1:
        yield "two server views opened sums over different survivors"


def _floor(adapter: AggregationAdapter, run: Run, colluding: Sequence[str]) -> Iterator[str]:
    for aggregate in run.aggregates.values():
        size, honest = len(aggregate.survivors), len(set(aggregate.survivors) - set(colluding))
        if size < run.spec.min_clients:
            yield f"a sum over {size} clients was opened, min_clients is {run.spec.min_clients}"
        if min(honest, size - run.spec.max_colluding) < run.spec.min_honest:
            yield f"a sum over too few honest clients was opened, {size} in all"


def _one_release(adapter: AggregationAdapter, run: Run, colluding: Sequence[str]) -> Iterator[str]:
    for name, vectors in sorted(run.knowledge.residues.items()):
        if name not in colluding and len({vector.tobytes() for vector in vectors}) > 1:
            yield f"{name} released two masked vectors"


def _typed(adapter: AggregationAdapter, run: Run, colluding: Sequence[str]) -> Iterator[str]:
    for finding in run.findings:
        if finding.error is not None or "nobody" in finding.what:
            kind = finding.packet.kind if finding.packet else "a deadline"
            yield f"{finding.party} {finding.what}, on {kind}"


def _unchanged(adapter: AggregationAdapter, run: Run, colluding: Sequence[str]) -> Iterator[str]:
    for refusal in run.refusals:
        if refusal.foreign and refusal.changed and refusal.packet is not None:
            yield f"{refusal.party} refused a foreign {refusal.packet.kind} and still changed"


def _foreign(adapter: AggregationAdapter, run: Run, colluding: Sequence[str]) -> Iterator[str]:
    openings = {sent.kind for sent in run.packets if sent.stage == 0} - {
        sent.kind for sent in run.packets if sent.packet.sender != adapter.server
    }
    for packet, hostile in run.accepted:
        # a client cannot know which round is the present one until it is told
        if hostile and not (packet.kind in openings and packet.recipient != adapter.server):
            yield f"{packet.recipient} took a foreign {packet.kind} for a genuine one"


def _ledger(adapter: AggregationAdapter, run: Run, colluding: Sequence[str]) -> Iterator[str]:
    if run.aggregate is not None and run.ledger_entries not in (None, 1):
        yield f"the opened sum has {run.ledger_entries} ledger entries"


def _silence(adapter: AggregationAdapter, run: Run, colluding: Sequence[str]) -> Iterator[str]:
    for finding in run.findings:
        if finding.error is None and "sent more" in finding.what:
            yield f"{finding.party} {finding.what}"


def _masked(adapter: AggregationAdapter, run: Run, colluding: Sequence[str]) -> Iterator[str]:
    if run.spec.vector_length * run.spec.modulus_bits < _UNMISTAKABLE_BITS:
        return
    for name, vectors in sorted(run.knowledge.residues.items()):
        if any(np.array_equal(vector, run.vectors[name]) for vector in vectors):
            yield f"{name} sent its vector without a mask"


def _sizes(adapter: AggregationAdapter, run: Run, colluding: Sequence[str]) -> Iterator[str]:
    if len({view for sent in run.packets for view in sent.views}) > 1:
        return  # clients of different views answer about different sets
    sizes: dict[tuple[int, str], set[int]] = {}
    for sent in run.packets:
        if sent.packet.sender != adapter.server and sent.packet.sender not in run.harmed:
            size = len(sent.packet.data) - len(sent.packet.sender)
            sizes.setdefault((sent.stage, sent.kind), set()).add(size)
    for (_, kind), seen in sorted(sizes.items()):
        if len(seen) > 1:
            yield f"{kind} has {len(seen)} different sizes among clients that were served alike"


def _liveness(adapter: AggregationAdapter, run: Run, colluding: Sequence[str]) -> Iterator[str]:
    if any("never ends" in finding.what for finding in run.findings):
        yield "the round never ends"
    if run.aggregate is not None or run.error is None or _is_spoilt(adapter, run):
        return
    if Claim.DIFFERENCING in adapter.claims:
        return  # a guard may refuse: all rounds of a schedule are on one model
    quorum = adapter.quorum(run.spec) if Claim.DROPOUTS in adapter.claims else None
    well = len(run.vectors) - len(run.harmed)
    if well >= (len(run.vectors) if quorum is None else quorum):
        yield f"no sum, though {well} of {len(run.vectors)} clients were served honestly"


def _record(adapter: AggregationAdapter, run: Run, colluding: Sequence[str]) -> Iterator[str]:
    if run.aggregate is None:
        return
    if run.transcript is None:
        yield "a finished round left no transcript"
        return
    try:
        adapter.verify_transcript(run.spec, run.transcript)
    except adapter.errors as error:
        yield f"the transcript of a finished round does not verify: {type(error).__name__}"


def _repeated_masks(runs: Sequence[Run]) -> Iterator[Violation]:
    seen: dict[bytes, tuple[str, int]] = {}
    for run in runs:
        if run.spec.vector_length * run.spec.modulus_bits < _UNMISTAKABLE_BITS:
            continue
        for name, vectors in run.knowledge.residues.items():
            for vector in vectors:
                owner = seen.setdefault(vector.tobytes(), (name, run.spec.round))
                if owner != (name, run.spec.round):
                    what = f"the masked vector of {name} repeats that of {owner[0]} in {owner[1]}"
                    yield Violation("I5", run.spec.round, what)


Rule = Callable[[AggregationAdapter, Run, Sequence[str]], Iterator[str]]
_RULES: Final[tuple[tuple[str, frozenset[Claim], Rule], ...]] = (
    ("I1", frozenset({Claim.EXACT_SUM}), _sums),
    ("I1", frozenset({Claim.DROPOUTS}), _present),
    ("I2", frozenset({Claim.ONE_SHARE_KIND}), _one_holder_one_kind),
    ("I2", frozenset({Claim.ONE_SHARE_KIND, Claim.AGREEMENT}), _one_kind),
    ("I2", frozenset({Claim.ONE_SHARE_KIND, Claim.AGREEMENT}), _live_keys),
    ("I3", frozenset({Claim.AGREEMENT}), _one_sum),
    ("I4", frozenset({Claim.COHORT_FLOOR}), _floor),
    ("I5", frozenset({Claim.SPENT_ROUNDS}), _one_release),
    ("I6", frozenset({Claim.TYPED_ERRORS}), _typed),
    ("I6", frozenset({Claim.TYPED_ERRORS, Claim.AUTHENTICATED}), _unchanged),
    ("I6", frozenset({Claim.AUTHENTICATED, Claim.REPLAY_PROOF}), _foreign),
    ("I7", frozenset(), _ledger),
    ("I8", frozenset(), _silence),
    ("I9", frozenset({Claim.UNIFORM_MASKS}), _masked),
    ("I10", frozenset({Claim.CONSTANT_SIZES}), _sizes),
    ("I11", frozenset({Claim.EXACT_SUM}), _liveness),
    ("I12", frozenset({Claim.TRANSCRIPT}), _record),
)
