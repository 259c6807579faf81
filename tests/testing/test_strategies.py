"""What is drawn is what the name promises, over the whole range that it promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from privfedrl.testing.adapter import Packet, RoundSpec
from privfedrl.testing.network import EditKind, Fault, Schedule, play
from privfedrl.testing.pairwise import PairwiseAdapter
from privfedrl.testing.strategies import (
    cohorts,
    delivery_schedules,
    dropout_schedules,
    edits,
    hostile_frames,
    updates,
)

ADAPTER = PairwiseAdapter()
NAMES = ADAPTER.client_names(RoundSpec())
HONEST = (Packet("a", "b", b"first frame", "x"), Packet("b", "a", b"second", "y"))
FAST = settings(max_examples=50, deadline=None, database=None, derandomize=True)
KINDS = ("config", "advertise", "shares", "masked", "survivors", "consistency", "unmask")


@FAST
@given(data=st.data(), bits=st.sampled_from([32, 64]), length=st.integers(1, 9))
def test_updates_are_residues_of_the_right_form(
    data: st.DataObject, bits: int, length: int
) -> None:
    spec = RoundSpec(modulus_bits=bits, vector_length=length)
    vectors = data.draw(updates(ADAPTER, spec))
    assert tuple(vectors) == NAMES
    for vector in vectors.values():
        assert vector.dtype == np.dtype(f"uint{bits}")
        assert vector.shape == (length,)


def test_updates_reach_the_largest_residue_everywhere_at_once() -> None:
    found = find(
        updates(ADAPTER, RoundSpec(num_clients=2)),
        lambda vectors: all((vector == 2**32 - 1).all() for vector in vectors.values()),
        settings=settings(max_examples=5000, database=None, derandomize=True),
    )
    assert len(found) == 2


@FAST
@given(cohort=cohorts(NAMES, at_least=4))
def test_cohorts_are_sorted_subsets_that_are_large_enough(cohort: tuple[str, ...]) -> None:
    assert list(cohort) == sorted(set(cohort))
    assert set(cohort) <= set(NAMES)
    assert len(cohort) >= 4


def test_schedules_shrink_towards_an_honest_round() -> None:
    given_settings = settings(max_examples=100, database=None, derandomize=True)
    assert find(dropout_schedules(NAMES), lambda _: True, settings=given_settings) == Schedule()
    found = find(delivery_schedules(NAMES, KINDS), lambda _: True, settings=given_settings)
    assert found == Schedule(order=NAMES)


@FAST
@given(schedule=dropout_schedules(NAMES, victims=2))
def test_two_victims_are_within_the_threshold(schedule: Schedule) -> None:
    spec = RoundSpec()
    run = play(ADAPTER, spec, {name: np.ones(4, np.uint32) for name in NAMES}, schedule)
    assert run.aggregate is not None
    assert set(NAMES) - set(run.aggregate.survivors) <= set(dict(schedule.kept))
    assert (run.aggregate.total == len(run.aggregate.survivors)).all()


@FAST
@given(schedule=delivery_schedules(NAMES, KINDS))
def test_any_delivery_ends_in_an_exact_sum_or_a_typed_abort(schedule: Schedule) -> None:
    run = play(ADAPTER, RoundSpec(), {name: np.ones(4, np.uint32) for name in NAMES}, schedule)
    assert not run.findings
    if run.aggregate is None:
        assert isinstance(run.error, ADAPTER.errors)
    else:
        assert (run.aggregate.total == len(run.aggregate.survivors)).all()


def test_faults_can_be_chosen() -> None:
    strategy = delivery_schedules(NAMES, KINDS, faults=[Fault.DROP])

    @FAST
    @given(schedule=strategy)
    def only_drops(schedule: Schedule) -> None:
        assert {event.fault for event in schedule.events} <= {Fault.DROP}

    only_drops()


@pytest.mark.parametrize("kind", list(EditKind))
def test_every_kind_of_edit_is_drawn(kind: EditKind) -> None:
    chosen = settings(max_examples=100, database=None, derandomize=True)
    found = find(edits(), lambda edit: edit.kind is kind, settings=chosen)
    assert found.apply(b"data") != b"data"


@FAST
@given(data=hostile_frames(HONEST))
def test_hostile_frames_are_never_genuine(data: bytes) -> None:
    assert data not in {packet.data for packet in HONEST}


@FAST
@given(data=hostile_frames((), max_size=8))
def test_without_honest_frames_hostile_ones_are_noise(data: bytes) -> None:
    assert len(data) <= 8
