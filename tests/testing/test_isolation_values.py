"""The comparison of two worlds: exact, complete and silent about what is equal."""

from __future__ import annotations

import math

import numpy as np
import pytest

from privfedrl.errors import ConfigurationError
from privfedrl.privacy.units import Adjacency, IntegerSensitivity, Unit
from privfedrl.testing.isolation_values import (
    Channel,
    Leak,
    Observation,
    RoundSeen,
    UnitLeak,
    compare,
    compare_repeats,
    movement,
)

REMOVE, REPLACE = Adjacency.ADD_REMOVE, Adjacency.REPLACE_ONE
CHARGE = IntegerSensitivity(l2_squared=25, l1=9, unit=Unit.TRAJECTORY)


def vector(*values):
    return np.array(values, dtype=np.int64)


def world(*vectors, charges=(CHARGE,), later=(), seen=None, noise=None):
    first = RoundSeen(vectors=vectors, charges=charges, seen=seen or {}, noise=noise)
    second = RoundSeen(vectors=later or (vector(7, 7),), charges=(CHARGE,))
    return Observation(rounds=(first, second))


def kinds(before, after, unit=Unit.TRAJECTORY, adjacency=REMOVE):
    return [leak.kind for leak in compare(before, after, unit=unit, adjacency=adjacency)]


def test_equal_worlds_have_no_leak():
    assert (
        compare(world(vector(1, 2)), world(vector(1, 2)), unit=Unit.TRAJECTORY, adjacency=REMOVE)
        == ()
    )


@pytest.mark.parametrize(
    ("moved", "adjacency", "leaks"),
    [
        ((3, 4), REMOVE, 0),
        ((3, -4), REMOVE, 0),
        ((4, 4), REMOVE, 1),
        ((6, 8), REPLACE, 0),
        ((6, 9), REPLACE, 1),
    ],
)
def test_integers_may_move_by_exactly_the_bound_and_no_further(moved, adjacency, leaks):
    found = kinds(world(vector(0, 0)), world(vector(*moved)), adjacency=adjacency)
    assert found == [Channel.SENSITIVITY] * leaks


def test_the_l1_bound_counts_by_itself():
    small = IntegerSensitivity(l2_squared=25, l1=5, unit=Unit.TRAJECTORY)
    found = compare(
        world(vector(0, 0), charges=(small,)),
        world(vector(3, 3), charges=(small,)),
        unit=Unit.TRAJECTORY,
        adjacency=REMOVE,
    )
    assert [leak.name for leak in found] == ["round 0, release 0: L1"]
    assert (found[0].expected, found[0].found) == ("<= 5", "6")


def test_movements_beyond_64_bits_are_exact():
    low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    (leak, _) = compare(
        world(vector(low, 0)), world(vector(high, 0)), unit=Unit.TRAJECTORY, adjacency=REMOVE
    )
    assert leak.found == str((2**64 - 1) ** 2)


def test_a_release_without_a_charge_may_not_move_at_all():
    still, moved = (vector(0, 0), vector(5, 5)), (vector(0, 0), vector(5, 6))
    assert kinds(world(*still), world(*still)) == []
    assert kinds(world(*still), world(*moved)) == [Channel.COMPOSITION]


def test_a_later_round_may_move_for_an_agent_only():
    one, other = world(vector(0, 0)), world(vector(0, 0), later=(vector(7, 8),))
    assert kinds(one, other) == [Channel.LATER_ROUND]
    small = world(vector(0, 0), later=(vector(1, 2),))
    assert kinds(small, world(vector(0, 0), later=(vector(1, 3),)), Unit.AGENT) == []


def test_an_agents_own_vector_is_within_the_bound_even_if_it_does_not_move():
    long = world(vector(9, 9), later=(vector(0, 0),))
    found = compare(long, long, unit=Unit.AGENT, adjacency=REPLACE)
    assert {leak.kind for leak in found} == {Channel.SENSITIVITY}
    assert all("by itself" in leak.name for leak in found)


def test_shapes_counts_charges_and_rounds_are_compared():
    one = world(vector(0, 0))
    assert kinds(one, world(vector(0, 0, 0))) == [Channel.SHAPE]
    assert kinds(one, world(np.zeros(2, dtype=np.int32))) == [Channel.SHAPE]
    assert kinds(one, world()) == [Channel.CALLS]
    assert kinds(one, world(vector(0, 0), charges=())) == [Channel.EVENT]
    assert kinds(one, Observation(rounds=one.rounds[:1])) == [Channel.CALLS]


def test_everything_seen_is_compared_in_both_directions():
    plain = world(vector(0, 0), seen={(Channel.LOG, "a"): "1"})
    for other in (
        {},
        {(Channel.LOG, "a"): "2"},
        {(Channel.LOG, "a"): "1", (Channel.LOG, "b"): "1"},
    ):
        seen = world(vector(0, 0), seen=other)
        assert kinds(plain, seen) == kinds(seen, plain) == [Channel.LOG]


def test_what_a_missing_release_does_not_have_is_not_reported_again():
    one = world(vector(0, 0), seen={(Channel.FIELD, "update 0: x"): "1", (Channel.LOG, "a"): "1"})
    assert kinds(one, world()) == [Channel.CALLS, Channel.LOG]


def test_a_linter_sees_the_channels_that_it_is_given():
    one, other = world(vector(0, 0)), world(vector(9, 9), seen={(Channel.LOG, "a"): "1"})
    found = compare(
        one, other, unit=Unit.TRAJECTORY, adjacency=REMOVE, channels=frozenset({Channel.LOG})
    )
    assert [leak.kind for leak in found] == [Channel.LOG]


def test_one_world_twice_must_be_the_same_but_for_the_noise():
    one = world(vector(1, 1), noise=vector(1, 0))
    assert compare_repeats(one, world(vector(1, 1), noise=vector(0, 1))) == ()
    repeated = compare_repeats(one, world(vector(1, 1), noise=vector(1, 0)))
    assert [leak.kind for leak in repeated] == [Channel.NOISE]
    for other in (
        world(vector(1, 2)),
        world(vector(1, 1), seen={(Channel.LOG, "a"): "1"}),
        world(),
    ):
        assert {leak.kind for leak in compare_repeats(one, other)} == {Channel.REPEAT}


def test_movement_is_in_units_of_the_charge():
    one, other = world(vector(0, 0)), world(vector(6, 8))
    assert movement(one, other, unit=Unit.TRAJECTORY, adjacency=REMOVE) == 2.0
    assert movement(one, other, unit=Unit.TRAJECTORY, adjacency=REPLACE) == 1.0
    assert movement(one, other, unit=Unit.AGENT, adjacency=REMOVE) == math.sqrt(2.0)


def test_movement_is_not_a_number_where_nothing_can_be_measured():
    one = world(vector(0, 0), charges=())
    assert math.isnan(movement(one, one, unit=Unit.TRAJECTORY, adjacency=REMOVE))
    assert math.isnan(
        movement(world(vector(0)), world(vector(0, 0)), unit=Unit.AGENT, adjacency=REMOVE)
    )


def test_only_integers_before_noise_can_be_observed():
    with pytest.raises(ConfigurationError, match="integer arrays before noise, got float64"):
        RoundSeen(vectors=(np.zeros(2),), charges=())
    with pytest.raises(ConfigurationError, match="got list"):
        RoundSeen(vectors=([1],), charges=())


def test_a_finding_is_an_assertion_error_with_a_readable_table():
    leak = Leak(
        kind=Channel.LOG, name="record 0", expected="a" * 100, found="b\nb", message="it is logged"
    )
    error = UnitLeak("MyTrainer", "duplicates: trajectory 2 absent", [leak])
    assert isinstance(error, AssertionError)
    assert error.leaks == (leak,)
    lines = str(error).splitlines()
    assert lines[0] == "MyTrainer: one unit can be noticed (duplicates: trajectory 2 absent)"
    assert lines[1].split() == ["channel", "what", "expected", "found"]
    assert "..." in lines[2]
    assert lines[2].endswith("b b     ") or lines[2].rstrip().endswith("b b")
    assert lines[-1] == "  - it is logged"
    assert max(map(len, lines)) < 160
