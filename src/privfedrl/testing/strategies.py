"""Hypothesis strategies: vectors, cohorts, dropout and delivery schedules, hostile bytes.

Guarantee: what is drawn is valid where its name says so (vectors, cohorts) and is otherwise
whatever an enemy could send; everything shrinks towards an honest round.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from privfedrl.testing.adapter import AggregationAdapter, Packet, RingVector, RoundSpec
from privfedrl.testing.network import Edit, EditKind, Event, Fault, Schedule

__all__ = [
    "cohorts",
    "delivery_schedules",
    "dropout_schedules",
    "edits",
    "hostile_frames",
    "updates",
]


@st.composite
def updates(draw: st.DrawFn, adapter: AggregationAdapter, spec: RoundSpec) -> dict[str, RingVector]:
    """One vector per client: residues mod 2^modulus_bits, uint32 or uint64 [D], extremes included.

    Half of them repeat one word, so that zeros, ones and the largest residue are common.
    """
    top = 2**spec.modulus_bits - 1
    dtype = np.dtype(f"uint{spec.modulus_bits}")
    word = st.one_of(st.sampled_from([0, 1, top // 2, top // 2 + 1, top]), st.integers(0, top))
    chosen: dict[str, RingVector] = {}
    for name in adapter.client_names(spec):
        if draw(st.booleans()):
            rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
            chosen[name] = rng.integers(0, top + 1, spec.vector_length, dtype=dtype)
        else:
            chosen[name] = np.full(spec.vector_length, draw(word), dtype=dtype)
    return chosen


@st.composite
def cohorts(draw: st.DrawFn, names: Sequence[str], *, at_least: int = 0) -> tuple[str, ...]:
    """A sorted subset of ``names`` with at least so many members; shrinks towards everybody."""
    absent = draw(st.sets(st.sampled_from(sorted(names)), max_size=len(names) - at_least))
    return tuple(name for name in sorted(names) if name not in absent)


@st.composite
def dropout_schedules(
    draw: st.DrawFn, names: Sequence[str], *, stages: int = 5, victims: int | None = None
) -> Schedule:
    """Clients that fall silent after so many of ``stages`` messages; shrinks towards nobody.

    Args:
        victims: at most so many; all if None.
    """
    limit = len(names) if victims is None else victims
    silent = draw(
        st.dictionaries(st.sampled_from(sorted(names)), st.integers(0, stages - 1), max_size=limit)
    )
    return Schedule(kept=tuple(sorted(silent.items())))


def edits() -> st.SearchStrategy[Edit]:
    """A change of bytes: one bit, one byte, a cut or an extension; never the identity."""
    return st.builds(
        Edit,
        kind=st.sampled_from(EditKind),
        position=st.integers(0, 2**16),
        value=st.integers(1, 255),
    )


@st.composite
def delivery_schedules(
    draw: st.DrawFn,
    names: Sequence[str],
    kinds: Sequence[str],
    *,
    faults: Sequence[Fault] = tuple(Fault),
    max_events: int = 4,
) -> Schedule:
    """Rules for packets of the given kinds, and the order in which clients' messages arrive."""
    event = st.builds(
        Event,
        fault=st.sampled_from(list(faults)),
        kind=st.sampled_from(list(kinds)),
        sender=st.sampled_from(["", *names]),
        argument=st.integers(0, 2),
        edit=edits(),
    )
    return Schedule(
        events=tuple(draw(st.lists(event, max_size=max_events))),
        order=tuple(draw(st.permutations(sorted(names)))),
    )


@st.composite
def hostile_frames(draw: st.DrawFn, honest: Sequence[Packet], *, max_size: int = 4096) -> bytes:
    """Bytes that no party made: noise, nothing, an edit, or two honest frames spliced.

    Where a splice or a draw happens to equal an honest frame, one bit of it is flipped.
    """
    genuine = {packet.data for packet in honest}
    how = draw(st.sampled_from(["noise", "edit", "splice"] if honest else ["noise"]))
    if how == "noise":
        data = draw(st.binary(max_size=max_size))
    else:
        data = draw(st.sampled_from(list(honest))).data
        if how == "edit":
            data = draw(edits()).apply(data)
        else:
            other = draw(st.sampled_from(list(honest))).data
            data = data[: draw(st.integers(0, len(data)))] + other[draw(st.integers(0, 512)) :]
    return Edit().apply(data) if data in genuine else data
