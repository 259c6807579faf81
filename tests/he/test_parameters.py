"""Parameters of a round: every limit and one beyond it, lanes that never carry, one encoding."""

from __future__ import annotations

import dataclasses
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedrl.errors import ConfigurationError, LocalProtocolError
from privfedrl.he.parameter_sets import PARAMETER_SETS, ParameterSet
from privfedrl.he.parameters import (
    MAX_LIFETIME_S,
    MAX_VECTOR_LENGTH,
    MIN_GUARD_BITS,
    PARAMETER_BYTES,
    HEParameters,
)

NAMES = sorted(PARAMETER_SETS)
BASE: dict[str, Any] = {
    "num_clients": 5,
    "max_colluding": 1,
    "vector_length": 100,
    "threshold": 4,
}
NUMBERS = (
    *("num_clients", "max_colluding", "vector_length", "ring_bits", "value_bits", "sum_bits"),
    *("threshold", "min_clients", "min_honest", "lifetime_s"),
)


def _made(name: str = "bfv-4096-std", **numbers: Any) -> HEParameters:
    return HEParameters(**(BASE | {"parameter_set": ParameterSet.named(name)} | numbers))


# --- limits -------------------------------------------------------------------------------------


def test_the_defaults_are_the_default_set_and_as_many_bits_as_the_ring_has() -> None:
    found = HEParameters(**BASE)
    assert found.parameter_set.name == "bfv-4096-std"
    assert (found.ring_bits, found.value_bits, found.lane_bits, found.lanes) == (32, 32, 35, 1)
    assert found.sum_bits == 32
    assert (found.readding, found.differencing) == ("key-authority", "off")
    assert (found.min_clients, found.min_honest, found.lifetime_s) == (2, 2, 21600)


@pytest.mark.parametrize(
    ("name", "ring_bits", "clients", "expected"),
    [
        ("bfv-4096-std", 64, 64, 35),
        ("bfv-4096-std", 64, 5, 38),
        ("bfv-4096-wide", 64, 2, 55),
        ("bfv-4096-wide", 32, 64, 32),
        ("ckks-4096-add", 32, 64, 22),
    ],
)
def test_without_value_bits_one_lane_is_filled_up_to_the_ring_or_to_the_guard(
    name: str, ring_bits: int, clients: int, expected: int
) -> None:
    found = _made(
        name, ring_bits=ring_bits, num_clients=clients, threshold=clients, max_colluding=0
    )
    assert (found.value_bits, found.lanes) == (expected, 1)


@pytest.mark.parametrize(
    ("accepted", "refused", "message"),
    [
        ({"num_clients": 64}, {"num_clients": 65}, "num_clients must be an integer in 2 .. 64"),
        ({"num_clients": 4}, {"num_clients": 3}, "threshold must be <= num_clients = 3, got 4"),
        (
            {"num_clients": 2, "threshold": 2, "max_colluding": 0},
            {"num_clients": 1, "threshold": 1, "max_colluding": 0},
            "num_clients must be an integer in 2 .. 64, got 1",
        ),
        ({"max_colluding": 0}, {"max_colluding": -1}, "max_colluding must be an integer in 0"),
        ({"max_colluding": 2}, {"max_colluding": 3}, "threshold - max_colluding must be >= min_h"),
        ({"vector_length": 1}, {"vector_length": 0}, "vector_length must be an integer in 1"),
        (
            {"vector_length": MAX_VECTOR_LENGTH},
            {"vector_length": MAX_VECTOR_LENGTH + 1},
            "vector_length must be an integer in 1 .. 67108864, got 67108865",
        ),
        ({"ring_bits": 64}, {"ring_bits": 63}, "ring_bits must be 32 or 64, got 63"),
        ({"value_bits": 32}, {"value_bits": 33}, "value_bits must be <= ring_bits = 32, got 33"),
        ({"value_bits": 1}, {"value_bits": -1}, "value_bits must be an integer in 0 .. 64"),
        (
            {"value_bits": 41, "ring_bits": 64, "sum_bits": 38},
            {"value_bits": 42, "ring_bits": 64, "sum_bits": 38},
            "at most 44 bits, a sum of 5 values of 42 bits takes 45",
        ),
        (
            {"value_bits": 41, "ring_bits": 64, "sum_bits": 38},
            {"value_bits": 41, "ring_bits": 64, "sum_bits": 39},
            "no 3 bits to spare beside a sum of 5 values of 41 bits",
        ),
        (
            {"value_bits": 38, "ring_bits": 64},
            {"value_bits": 39, "ring_bits": 64},
            "no 3 bits to spare beside a sum of 5 values of 39 bits",
        ),
        (
            {"value_bits": 8, "sum_bits": 8},
            {"value_bits": 8, "sum_bits": 9},
            "sum_bits must be <= value_bits = 8, got 9",
        ),
        ({"sum_bits": 1}, {"sum_bits": -1}, "sum_bits must be an integer in 0 .. 64, got -1"),
        ({"threshold": 5}, {"threshold": 6}, "threshold must be <= num_clients = 5, got 6"),
        ({"threshold": 3}, {"threshold": 2}, "must be >= min_honest = 2, got 2 - 1"),
        ({"min_clients": 5}, {"min_clients": 6}, "min_clients <= num_clients = 5, got 1 and 6"),
        ({"min_clients": 2}, {"min_clients": 1}, "min_clients must be an integer in 2"),
        ({"min_honest": 3}, {"min_honest": 4}, "must be >= min_honest = 4, got 4 - 1"),
        ({"min_honest": 2}, {"min_honest": 1}, "min_honest must be an integer in 2"),
        ({"lifetime_s": 1}, {"lifetime_s": 0}, "lifetime_s must be an integer in 1"),
        (
            {"lifetime_s": MAX_LIFETIME_S},
            {"lifetime_s": MAX_LIFETIME_S + 1},
            "lifetime_s must be an integer in 1 .. 31622400, got 31622401",
        ),
        ({"readding": "auditor"}, {"readding": "aggregator"}, "readding must be one of"),
        ({"readding": "none"}, {"readding": None}, "readding must be one of"),
        ({"differencing": "model"}, {"differencing": "round"}, "differencing must be one of"),
        ({"differencing": "task"}, {"differencing": ""}, "differencing must be one of"),
    ],
)
def test_each_limit_is_accepted_and_one_step_beyond_it_is_refused(
    accepted: dict[str, Any], refused: dict[str, Any], message: str
) -> None:
    made = _made(**accepted)
    assert {name: getattr(made, name) for name in accepted} == accepted
    with pytest.raises(ConfigurationError, match=message) as caught:
        _made(**refused)
    assert caught.value.problems


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [True, 4.0, "4", None])
def test_a_number_is_an_integer_and_nothing_else(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} must be an integer"):
        _made(**({"value_bits": 8} | {name: value}))


def test_all_agents_but_one_may_collude_only_if_somebody_honest_is_left() -> None:
    with pytest.raises(ConfigurationError, match="max_colluding must be < num_clients"):
        _made(max_colluding=5, threshold=5)


def test_every_problem_has_its_line() -> None:
    """Of each step: one computes with numbers only once they are in their ranges."""
    with pytest.raises(ConfigurationError) as caught:
        _made(vector_length=2**27, ring_bits=48, readding="x", differencing="y", threshold=9)
    assert len(caught.value.problems) == 4
    with pytest.raises(ConfigurationError) as caught:
        _made(threshold=9, min_clients=6, value_bits=60, sum_bits=61)
    assert len(caught.value.problems) == 4


def test_the_floor_is_the_larger_of_threshold_and_min_clients() -> None:
    assert _made(threshold=3, min_clients=5).floor == 5
    assert _made(threshold=4, min_clients=2).floor == 4


@pytest.mark.parametrize("name", NAMES)
def test_no_more_clients_than_the_set_can_add(name: str) -> None:
    most = ParameterSet.named(name).max_clients
    _made(name, num_clients=most, value_bits=8)
    refusal = f"num_clients must be (<= {most} with {name}|an integer in 2 .. {most}), got"
    with pytest.raises(ConfigurationError, match=refusal):
        _made(name, num_clients=most + 1, value_bits=8)


def test_far_too_many_clients_are_named_as_the_problem() -> None:
    with pytest.raises(ConfigurationError, match=r"num_clients must be an integer in 2 \.\. 64"):
        _made(num_clients=2**50)


@pytest.mark.parametrize("change", [{"max_clients": 8}, {"post_quantum": 0}, {"name": "mine"}])
def test_a_set_that_is_not_in_the_table_is_refused(change: dict[str, Any]) -> None:
    """Its name stands for it on the wire, where it would be read as the set of the table."""
    other = dataclasses.replace(ParameterSet.named("bfv-4096-std"), **change)
    with pytest.raises(ConfigurationError, match="parameter_set must be one of the named sets"):
        HEParameters(**BASE, parameter_set=other)


@pytest.mark.parametrize(
    "change", [{"ring_bits": "32"}, {"parameter_set": None}, {"parameter_set": "bfv-4096-std"}]
)
def test_other_types_are_configuration_errors(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        HEParameters(**(BASE | change))


# --- lanes and sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "clients", "value_bits", "sum_bits", "lanes", "lane_bits"),
    [
        ("bfv-4096-std", 64, 16, 14, 2, 22),
        ("bfv-4096-std", 64, 16, 15, 1, 22),
        ("bfv-4096-std", 64, 17, 14, 1, 23),
        ("bfv-4096-std", 64, 38, 34, 1, 44),
        ("bfv-4096-std", 24, 16, 16, 1, 21),
        ("bfv-4096-std", 22, 16, 16, 2, 21),
        ("bfv-4096-compact", 32, 10, 8, 3, 15),
        ("bfv-4096-compact", 32, 10, 9, 2, 15),
        ("bfv-4096-wide", 64, 22, 22, 2, 28),
        ("bfv-4096-wide", 64, 23, 21, 2, 29),
        ("bfv-4096-wide", 64, 24, 20, 1, 30),
        ("bfv-4096-192", 64, 32, 28, 1, 38),
        ("bfv-4096-192", 64, 13, 11, 2, 19),
        ("bfv-4096-192", 16, 15, 13, 2, 19),
        ("ckks-4096-add", 64, 22, 22, 1, 28),
        ("ckks-4096-add", 64, 4, 2, 1, 10),
    ],
)
def test_lanes_are_those_of_the_table_where_the_guard_allows_them(
    name: str, clients: int, value_bits: int, sum_bits: int, lanes: int, lane_bits: int
) -> None:
    found = _made(name, num_clients=clients, value_bits=value_bits, sum_bits=sum_bits, ring_bits=64)
    assert (found.lanes, found.lane_bits) == (lanes, lane_bits)


@given(st.data())
def test_honest_sums_are_at_most_an_eighth_of_what_a_slot_can_hold(data: st.DataObject) -> None:
    """Counted in integers: slots that honest contributors can make, times 8, are at most t.

    A lane holds the sum of n residues mod 2^w0: at most n (2^w0 - 1), and congruent to one of the
    2^sum_bits centred sums, which leaves n + 1 intervals of them.
    """
    name = data.draw(st.sampled_from([name for name in NAMES if PARAMETER_SETS[name].exact]))
    chosen = ParameterSet.named(name)
    clients = data.draw(st.integers(2, chosen.max_clients))
    value_bits = data.draw(st.integers(1, chosen.plain_bits - (clients - 1).bit_length()))
    sum_bits = data.draw(st.integers(1, value_bits))
    numbers = {"num_clients": clients, "threshold": 2, "max_colluding": 0, "ring_bits": 64}
    lane = min(clients * (2**value_bits - 1) + 1, (clients + 1) * 2**sum_bits)
    lanes = chosen.plain_bits // (value_bits + (clients - 1).bit_length())
    while lanes and lane**lanes * 2**MIN_GUARD_BITS > (chosen.plain_modulus or 0):
        lanes -= 1
    if lanes == 0:
        with pytest.raises(ConfigurationError, match="3 bits to spare"):
            _made(name, value_bits=value_bits, sum_bits=sum_bits, **numbers)
        return
    found = _made(name, value_bits=value_bits, sum_bits=sum_bits, **numbers)
    assert found.lanes == lanes
    assert found.guard_bits >= MIN_GUARD_BITS


def test_ckks_has_no_guard() -> None:
    assert _made("ckks-4096-add", value_bits=8, sum_bits=4).guard_bits == 0


@pytest.mark.parametrize(
    ("name", "clients", "value_bits", "sum_bits", "ciphertexts", "bytes_per_parameter"),
    [
        ("bfv-4096-std", 64, 16, 14, 123, 7.56),
        ("bfv-4096-std", 64, 16, 16, 245, 15.05),
        ("bfv-4096-compact", 32, 10, 8, 82, 5.04),
        ("bfv-4096-wide", 64, 22, 22, 123, 10.08),
        ("bfv-4096-192", 64, 13, 11, 123, 7.05),
        ("bfv-4096-192", 64, 32, 28, 245, 14.05),
        ("ckks-4096-add", 64, 22, 22, 489, 24.04),
    ],
)
def test_a_million_parameters_cost_what_the_table_says(
    name: str,
    clients: int,
    value_bits: int,
    sum_bits: int,
    ciphertexts: int,
    bytes_per_parameter: float,
) -> None:
    numbers = {"num_clients": clients, "value_bits": value_bits, "sum_bits": sum_bits}
    found = _made(name, vector_length=10**6, **numbers)
    assert found.ciphertexts == ciphertexts
    assert found.ciphertext_bytes / 10**6 == pytest.approx(bytes_per_parameter, abs=0.005)


def test_the_longest_vector_of_the_widest_set_fits_a_32_bit_length() -> None:
    sizes = [
        _made(name, num_clients=2, threshold=2, max_colluding=0, vector_length=MAX_VECTOR_LENGTH)
        for name in NAMES
    ]
    assert max(found.ciphertext_bytes for found in sizes) < 2**32


# --- slots --------------------------------------------------------------------------------------


@st.composite
def _rounds(draw: st.DrawFn) -> tuple[HEParameters, list[Any]]:
    """Parameters with 1 to num_clients vectors of extremes and random words of the whole ring."""
    name = draw(st.sampled_from(NAMES))
    chosen = ParameterSet.named(name)
    clients = draw(st.integers(2, chosen.max_clients))
    ring_bits = draw(st.sampled_from([32, 64]))
    one_lane = chosen.plain_bits - (clients - 1).bit_length()
    if chosen.exact:
        one_lane -= MIN_GUARD_BITS
    value_bits = draw(st.integers(1, min(ring_bits, one_lane)))
    parameters = _made(
        name,
        num_clients=clients,
        threshold=2,
        max_colluding=0,
        ring_bits=ring_bits,
        value_bits=value_bits,
        sum_bits=draw(st.integers(1, value_bits)),
        vector_length=draw(st.integers(1, 40) | st.sampled_from([2047, 2049, 4095, 4096, 8191])),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    w0 = parameters.value_bits
    dtype = np.dtype(f"uint{ring_bits}")
    extremes = [0, 1, 2**w0 - 1, 2 ** (w0 - 1), 2 ** (w0 - 1) - 1, 2**ring_bits - 1]
    vectors = []
    for _ in range(draw(st.integers(1, clients) | st.just(clients))):
        vector = rng.integers(0, 2**ring_bits, size=parameters.vector_length, dtype=dtype)
        if draw(st.booleans()):
            vector[:] = draw(st.sampled_from(extremes))
        vectors.append(vector)
    return parameters, vectors


@given(_rounds())
def test_the_sum_of_slots_opens_to_the_centred_sum_modulo_2_to_the_value_bits(
    case: tuple[HEParameters, list[Any]],
) -> None:
    """Any vectors, any number of them, added as the lattice adds them; Python's integers judge."""
    parameters, vectors = case
    chosen, w0 = parameters.parameter_set, parameters.value_bits
    slots = [parameters.to_slots(vector) for vector in vectors]
    dtype = np.uint64 if chosen.exact else np.int64
    for one in slots:
        assert one.dtype == dtype
        assert one.shape == (parameters.ciphertexts, chosen.slots)
        if chosen.exact:
            assert int(one.max()) < (chosen.plain_modulus or 0)
        else:
            assert int(np.abs(one).max()) <= 2**27 // len(vectors)
    exact = np.add.reduce([one.astype(object) for one in slots])
    if chosen.exact:
        assert exact.max() < chosen.plain_modulus  # nothing wraps, so adding mod t is adding
    opened = parameters.from_slots(exact.astype(dtype), len(vectors))
    total = sum(vector.astype(object) for vector in vectors) % 2**w0
    centred = np.array([value - (value >> w0 - 1 << w0) for value in total], dtype=object)
    assert opened.dtype == np.dtype(f"uint{parameters.ring_bits}")
    assert np.array_equal(opened.astype(object), centred % 2**parameters.ring_bits)


@pytest.mark.parametrize("name", NAMES)
def test_the_last_slot_of_every_bfv_ciphertext_stays_empty_and_is_ignored_when_opened(
    name: str,
) -> None:
    """A vector that fills all other slots of two ciphertexts; one coordinate more takes a third."""
    chosen = ParameterSet.named(name)
    per = chosen.slots - 1 if chosen.exact else chosen.slots
    parameters = _made(name, vector_length=1, value_bits=20)
    parameters = dataclasses.replace(parameters, vector_length=2 * per * parameters.lanes)
    assert (parameters.slots_per_ciphertext, parameters.ciphertexts) == (per, 2)
    assert (
        dataclasses.replace(parameters, vector_length=2 * per * parameters.lanes + 1).ciphertexts
        == 3
    )
    vector = np.full(parameters.vector_length, 2**19 - 1, dtype=np.uint32)
    slots = parameters.to_slots(vector)
    assert slots[:, :per].all()
    assert not slots[:, per:].any()
    slots[:, per:] = 7
    assert np.array_equal(parameters.from_slots(slots, 1), vector)


def test_what_is_beyond_the_vector_is_zero_in_the_slots_and_ignored_when_opened() -> None:
    parameters = _made(vector_length=3, value_bits=16)
    slots = parameters.to_slots(np.array([1, 2, 3], dtype=np.uint32))
    assert parameters.lanes == 2
    half = 2**15
    assert slots[0, :2].tolist() == [half + 1 | half + 3 << 19, half + 2]
    assert not slots[0, 2:].any()
    slots[0, 2:] = 7
    assert parameters.from_slots(slots, 1).tolist() == [1, 2, 3]


def test_plain_residues_would_have_told_the_number_of_negative_values() -> None:
    """(5, -3, -2) and (0, 0, 0) in one lane: equal sums, and 2^17 apart as plain residues."""
    parameters = _made(vector_length=1, value_bits=16)

    def lane(*values: int) -> int:
        vectors = [np.array([value], dtype=np.int64).astype(np.uint32) for value in values]
        return sum(int(parameters.to_slots(vector)[0, 0]) for vector in vectors)

    assert sum(value % 2**16 for value in (5, -3, -2)) == 2 * 2**16
    assert lane(5, -3, -2) == lane(0, 0, 0) == 3 * 2**15


@given(st.data())
def test_uploads_with_equal_sums_and_numbers_have_equal_lanes(data: st.DataObject) -> None:
    """All sets, any survivors, extremes of the range included; the lane is sum + number * 2^(w0-1).

    ``there`` is a cohort's values within the range of a lane, ``here`` others with the same sums:
    single steps are moved between two agents for as long as both stay within range.
    """
    parameters, _ = data.draw(_rounds())
    half, length = 1 << (parameters.value_bits - 1), parameters.vector_length
    number = data.draw(st.integers(1, parameters.num_clients))  # the others have dropped out
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    there = rng.integers(-half, half, (number, length), dtype=np.int64)
    there[rng.random((number, length)) < 0.3] = data.draw(st.sampled_from([-half, half - 1, 0]))
    here = rng.permuted(there, axis=0)
    for _ in range(4):
        giver, taker = rng.integers(0, number, 2)
        most = np.minimum(here[giver] + half, half - 1 - here[taker])
        moved = rng.integers(0, most, endpoint=True) if giver != taker else 0
        here[giver] -= moved
        here[taker] += moved
    assert np.array_equal(here.sum(axis=0), there.sum(axis=0))
    sums = [_added_slots(parameters, vectors) for vectors in (here, there)]
    assert np.array_equal(*sums)
    opened = parameters.from_slots(sums[0], number)
    if parameters.parameter_set.exact:
        total = there.sum(axis=0).astype(object) + number * half
    else:
        total = there.sum(axis=0).astype(object)
    assert np.array_equal(_read(parameters, sums[0]), total)
    centred = (there.sum(axis=0) + half) % (2 * half) - half
    assert np.array_equal(opened, centred.astype(opened.dtype))


def _added_slots(parameters: HEParameters, vectors: Any) -> Any:
    """Slots of signed values, added up."""
    dtype = np.dtype(f"uint{parameters.ring_bits}")
    return np.add.reduce([parameters.to_slots(vector.astype(dtype)) for vector in vectors])


def _read(parameters: HEParameters, slots: Any) -> Any:
    """Every coordinate's lane as a Python integer, by the definition in the module's docstring."""
    flat = slots[:, : parameters.slots_per_ciphertext].reshape(-1).astype(object)
    if not parameters.parameter_set.exact:
        return flat[: parameters.vector_length]
    places = (divmod(at, parameters.slots) for at in range(parameters.vector_length))
    mask = (1 << parameters.lane_bits) - 1
    return np.array([flat[k] >> lane * parameters.lane_bits & mask for lane, k in places])


@pytest.mark.parametrize("name", [name for name in NAMES if PARAMETER_SETS[name].exact])
@pytest.mark.parametrize("clients", [2, 3, 32])
@pytest.mark.parametrize("top", [True, False])
def test_the_extremes_of_the_value_range_fill_and_empty_a_lane(
    name: str, clients: int, top: bool
) -> None:
    """2^(w0-1) - 1 from everybody is the fullest lane, -2^(w0-1) from everybody is 0."""
    numbers = {"num_clients": clients, "max_colluding": 0, "threshold": 2}
    parameters = _made(name, vector_length=9, value_bits=8, **numbers)
    vectors = np.full((clients, 9), 127 if top else -128)
    slots = _added_slots(parameters, vectors)
    assert set(_read(parameters, slots).tolist()) == {clients * 255 if top else 0}
    wrapped = (clients * vectors[0, 0] + 128) % 256 - 128
    assert parameters.from_slots(slots, clients).view(np.int32).tolist() == [wrapped] * 9


@given(st.data())
def test_what_belongs_to_no_coordinate_gets_no_offset(data: st.DataObject) -> None:
    """Lanes behind the vector's end, slots behind it and the empty slot: zero in every sum."""
    parameters, vectors = data.draw(_rounds())
    w, per = parameters.lane_bits, parameters.slots_per_ciphertext
    slots = np.add.reduce([parameters.to_slots(vector) for vector in vectors])
    flat = slots[:, :per].reshape(-1)
    assert not slots[:, per:].any()
    assert not flat[parameters.slots :].any()
    for at in range(parameters.vector_length, parameters.lanes * parameters.slots):
        lane, slot = divmod(at, parameters.slots)
        assert int(flat[slot]) >> lane * w == 0


@pytest.mark.parametrize("contributors", [0, -1, 11, True, 2.0, None])
@pytest.mark.parametrize("name", NAMES)
def test_slots_are_read_as_a_sum_of_one_to_all_agents_only(name: str, contributors: Any) -> None:
    parameters = _made(name, num_clients=10, value_bits=8)
    slots = parameters.to_slots(np.zeros(100, dtype=np.uint32))
    with pytest.raises(LocalProtocolError, match=r"contributors must be an integer in 1 \.\. 10"):
        parameters.from_slots(slots, contributors)


def test_to_slots_leaves_its_vector_alone() -> None:
    for name in NAMES:
        vector = np.arange(100, dtype=np.uint32) + np.uint32(2**31)
        kept = vector.copy()
        _made(name, value_bits=8).to_slots(vector)
        assert np.array_equal(vector, kept)


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(100, dtype=np.uint64),
        np.zeros(100, dtype=np.int32),
        np.zeros(100),
        np.zeros(99, dtype=np.uint32),
        np.zeros(101, dtype=np.uint32),
        np.zeros((100, 1), dtype=np.uint32),
        np.zeros(0, dtype=np.uint32),
    ],
)
def test_a_vector_of_another_type_or_length_is_refused(vector: Any) -> None:
    with pytest.raises(LocalProtocolError, match=r"vector must be uint32 \[100\]"):
        _made().to_slots(vector)


# --- one encoding -------------------------------------------------------------------------------

CHANGES: dict[str, Any] = {
    "num_clients": 6,
    "max_colluding": 0,
    "vector_length": 101,
    "ring_bits": 64,
    "value_bits": 17,
    "sum_bits": 15,
    "threshold": 5,
    "min_clients": 3,
    "min_honest": 3,
    "lifetime_s": 7,
    "readding": "auditor",
    "differencing": "task",
    "parameter_set": ParameterSet.named("bfv-4096-compact"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("readding", ["key-authority", "auditor", "none"])
@pytest.mark.parametrize("differencing", ["off", "model", "task"])
def test_canonical_bytes_are_read_back(name: str, readding: str, differencing: str) -> None:
    made = _made(name, value_bits=8, readding=readding, differencing=differencing)
    data = made.canonical_bytes()
    assert len(data) == PARAMETER_BYTES == 128
    assert HEParameters.from_canonical_bytes(data) == made
    assert HEParameters.from_canonical_bytes(data).digest == made.digest


def test_every_field_is_part_of_the_bytes_and_of_the_digest() -> None:
    base = _made(value_bits=16)
    assert sorted(CHANGES) == sorted(field.name for field in dataclasses.fields(HEParameters))
    others = [dataclasses.replace(base, **{name: value}) for name, value in CHANGES.items()]
    assert len({one.canonical_bytes() for one in (base, *others)}) == len(CHANGES) + 1
    assert len({one.digest for one in (base, *others)}) == len(CHANGES) + 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("primes", (1152921504606830593, 1073479681)), ("plain_modulus", 40961)],
)
def test_the_digest_covers_the_moduli_behind_the_name(
    field: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two builds that mean different numbers by one name do not agree on a digest."""
    base = _made(value_bits=8)
    changed = dataclasses.replace(base.parameter_set, **{field: value})
    monkeypatch.setitem(PARAMETER_SETS, changed.name, changed)  # the table of the other build
    other = dataclasses.replace(base, parameter_set=changed)
    assert other.canonical_bytes() == base.canonical_bytes()
    assert other.digest != base.digest


def _with(data: bytes, at: int, piece: bytes) -> bytes:
    return data[:at] + piece + data[at + len(piece) :]


GOOD = _made(value_bits=16).canonical_bytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:-1],
        GOOD + b"\x00",
        bytes(len(GOOD)),
        _with(GOOD, 0, b"BFV"),
        _with(GOOD, 0, b"\xff"),
        _with(GOOD, 31, b"x"),  # after the name's end
        _with(GOOD, 20, b"\x00x"),
        _with(GOOD, 32, b"\xff"),  # num_clients
        _with(GOOD, 32 + 3 * 8, (16).to_bytes(8, "big")),
        _with(GOOD, 32 + 4 * 8, bytes(8)),  # value_bits 0 would be filled in
        _with(GOOD, 32 + 5 * 8, bytes(8)),  # and sum_bits 0
        _with(GOOD, 32 + 6 * 8, (6).to_bytes(8, "big")),
        _with(GOOD, 32 + 10 * 8, (3).to_bytes(8, "big")),
        _with(GOOD, 32 + 11 * 8, b"\xff" * 8),
    ],
)
def test_bytes_that_no_parameters_have_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigurationError):
        HEParameters.from_canonical_bytes(data)


@given(st.data())
def test_bytes_are_refused_or_are_those_of_what_they_read_as(data: st.DataObject) -> None:
    """Any few bytes changed: never two encodings of one round, never another error."""
    places = data.draw(st.lists(st.integers(0, len(GOOD) - 1), min_size=1, max_size=3))
    changed = reduce(
        lambda text, at: _with(text, at, bytes([data.draw(st.integers(0, 255))])), places, GOOD
    )
    try:
        found = HEParameters.from_canonical_bytes(changed)
    except ConfigurationError:
        return
    assert found.canonical_bytes() == changed
