"""Units, adjacency and integer sensitivity are values that refuse nonsense."""

import dataclasses

import pytest

from privfedrl.errors import ConfigurationError
from privfedrl.privacy.units import Adjacency, IntegerSensitivity, Unit


def test_transition_level_is_not_a_unit() -> None:
    assert {unit.name for unit in Unit} == {"TRAJECTORY", "PERSON", "AGENT"}


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "3", None, float("nan")])
@pytest.mark.parametrize("name", ["l2_squared", "l1"])
def test_a_sensitivity_must_be_a_positive_integer(name: str, bad: object) -> None:
    values: dict[str, object] = {"l2_squared": 9, "l1": 3, "unit": Unit.AGENT, name: bad}
    with pytest.raises(ConfigurationError, match=name):
        IntegerSensitivity(**values)  # type: ignore[arg-type]  # wrong types on purpose


def test_l1_above_squared_l2_is_refused_for_integers() -> None:
    with pytest.raises(ConfigurationError, match="l1 must be <= l2_squared"):
        IntegerSensitivity(l2_squared=4, l1=5, unit=Unit.AGENT)


def test_the_unit_must_be_a_unit() -> None:
    with pytest.raises(ConfigurationError, match="unit"):
        IntegerSensitivity(l2_squared=4, l1=2, unit="agent")  # type: ignore[arg-type]  # on purpose


def test_replacing_a_unit_moves_the_sum_twice_as_far() -> None:
    bound = IntegerSensitivity(l2_squared=9, l1=4, unit=Unit.PERSON)
    assert bound.for_adjacency(Adjacency.ADD_REMOVE) == bound
    doubled = bound.for_adjacency(Adjacency.REPLACE_ONE)
    assert (doubled.l2_squared, doubled.l1, doubled.unit) == (36, 8, Unit.PERSON)


def test_a_sensitivity_cannot_be_changed_after_it_was_stated() -> None:
    bound = IntegerSensitivity(l2_squared=9, l1=4, unit=Unit.PERSON)
    with pytest.raises(dataclasses.FrozenInstanceError):
        bound.l1 = 1  # type: ignore[misc]  # frozen on purpose
