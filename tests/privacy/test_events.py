"""Events state one release each, survive serialisation exactly, and unknown ones are refused."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.errors import ConfigurationError, UnsupportedMechanism
from privfedrl.privacy.events import (
    DpEvent,
    GaussianEvent,
    NoReleaseEvent,
    SkellamEvent,
    UnboundedEvent,
    event_from_dict,
    event_to_dict,
    unit_of,
)
from privfedrl.privacy.units import IntegerSensitivity, Unit

BOUND = IntegerSensitivity(l2_squared=9, l1=4, unit=Unit.PERSON)
units = st.sampled_from(list(Unit))


@st.composite
def skellam_events(draw: st.DrawFn) -> SkellamEvent:
    squared = draw(st.integers(1, 10**40))
    bound = IntegerSensitivity(
        l2_squared=squared, l1=draw(st.integers(1, squared)), unit=draw(units)
    )
    return SkellamEvent(sensitivity=bound, variance=draw(st.integers(1, 10**40)))


events = st.one_of(
    skellam_events(),
    st.builds(
        GaussianEvent,
        noise_multiplier=st.floats(0, 1e300, exclude_min=True),
        unit=units,
    ),
    st.builds(NoReleaseEvent, unit=units),
    st.builds(UnboundedEvent, unit=units),
)


@given(events)
@settings(deadline=None)
def test_serialisation_round_trips_through_json_exactly(event: DpEvent) -> None:
    restored = event_from_dict(json.loads(json.dumps(event_to_dict(event))))
    assert restored == event
    assert unit_of(restored) is unit_of(event)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"kind": "magic", "unit": "agent"},
        {"kind": ["skellam"], "unit": "agent"},
        {"kind": None},
        {"kind": "no-release"},
        {"kind": "no-release", "unit": "agent", "extra": 1},
        {"kind": "gaussian", "unit": "agent"},
        {"kind": "unbounded", "unit": "transition"},
    ],
)
def test_unknown_missing_or_extra_fields_are_refused(data: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedMechanism):
        event_from_dict(data)


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "gaussian", "unit": "agent", "noise_multiplier": "1"},
        {"kind": "gaussian", "unit": "agent", "noise_multiplier": True},
        {"kind": "skellam", "unit": "agent", "l2_squared": 1, "l1": 1, "variance": 1.5},
        {"kind": "skellam", "unit": "agent", "l2_squared": 0, "l1": 1, "variance": 1},
    ],
)
def test_values_of_the_wrong_type_are_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        event_from_dict(data)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), "1", True])
def test_a_gaussian_without_finite_noise_is_not_an_event(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="noise_multiplier"):
        GaussianEvent(noise_multiplier=bad, unit=Unit.AGENT)


@pytest.mark.parametrize("bad", [0, -1, 2.0, True])
def test_a_skellam_variance_is_a_positive_integer(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="variance"):
        SkellamEvent(sensitivity=BOUND, variance=bad)


def test_noise_cannot_be_sized_from_a_loose_number() -> None:
    loose: Any = 3.0
    with pytest.raises(ConfigurationError, match="IntegerSensitivity"):
        SkellamEvent(sensitivity=loose, variance=4)


@pytest.mark.parametrize("kind", [NoReleaseEvent, UnboundedEvent])
def test_every_event_names_a_unit(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="unit"):
        kind(unit="agent")


def test_objects_that_only_look_like_events_are_refused() -> None:
    class Cheaper(NoReleaseEvent):
        """A subclass could mean anything."""

    for impostor in (Cheaper(unit=Unit.AGENT), object(), None):
        fake: Any = impostor
        with pytest.raises(UnsupportedMechanism):
            unit_of(fake)
    stranger: Any = object()
    with pytest.raises(UnsupportedMechanism):
        event_to_dict(stranger)
