"""What code writes is recorded, what it leaves is put back, and equal states read the same."""

from __future__ import annotations

import logging
import random
import sys
import warnings
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from threading import Lock

import numpy as np
import pytest
import torch

from privfedrl.testing.isolation_watch import snapshot, watched


class Color(Enum):
    RED = 1


class Slotted:
    __slots__ = ("__hidden", "open", "unset")

    def __init__(self, value: int) -> None:
        self.open, self.__hidden = value, value


@dataclass
class Node:
    value: object
    next: object = None


def test_logs_output_and_warnings_are_recorded():
    with watched() as seen:
        logging.getLogger("deep.inside").debug("value %d", 7, extra={"batch": 3})
        print("to stdout")
        print("to stderr", file=sys.stderr)
        warnings.warn("careful", UserWarning, stacklevel=1)
        warnings.warn("careful", UserWarning, stacklevel=1)
    assert "deep.inside DEBUG value 7 batch=3" in seen.records
    assert seen.output == ("to stdout\n", "to stderr\n")
    assert seen.warned == ["UserWarning: careful"] * 2
    assert seen.raised == "nothing"


def test_loggers_that_do_not_propagate_are_recorded_too():
    logger = logging.getLogger("alone")
    logger.propagate = False
    try:
        with watched() as seen:
            logger.warning("still heard")
    finally:
        logger.propagate = True
    assert seen.records == ["alone WARNING still heard"]


def test_an_exception_ends_the_block_quietly_and_is_recorded():
    with watched() as seen:
        raise ValueError("of the data")
    assert seen.raised == "ValueError: of the data"


def test_an_interrupt_is_not_swallowed():
    with pytest.raises(KeyboardInterrupt), watched():
        raise KeyboardInterrupt


def test_logging_and_generators_are_put_back():
    level, factory, out = logging.root.level, logging.getLogRecordFactory(), sys.stdout
    logging.disable(logging.ERROR)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    try:
        with watched():
            random.random()
            np.random.random()
            torch.rand(1)
        assert logging.root.manager.disable == logging.ERROR
    finally:
        logging.disable(logging.NOTSET)
    assert (logging.root.level, logging.getLogRecordFactory(), sys.stdout) == (level, factory, out)
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize(
    "draw",
    [random.random, np.random.random, lambda: torch.rand(1)],
    ids=["random", "numpy", "torch"],
)
def test_drawing_from_a_process_wide_generator_leaves_a_trace(draw):
    with watched() as idle:
        pass
    with watched() as used:
        draw()
    assert idle.generators != used.generators


def test_watching_works_where_torch_is_not_loaded(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    with watched() as seen:
        pass
    assert seen.generators


def counting(start):
    count = start

    def step():
        nonlocal count
        count += 1
        return count

    return step


@pytest.mark.parametrize(
    "make",
    [
        lambda n: n,
        lambda n: float(n),
        lambda n: {"a": [n, (1, 2)], 3: {n}},
        lambda n: Slotted(n),
        lambda n: Node(Node(n)),
        lambda n: np.full(3, n),
        lambda n: np.full((9, 9), n, dtype=np.float32),
        lambda n: np.array([n] * 9, dtype=object),
        lambda n: np.float64(n),
        lambda n: torch.full((2, 5), float(n)),
        lambda n: np.random.default_rng(n),
        lambda n: random.Random(n),
        lambda n: torch.nn.BatchNorm1d(2, momentum=n / 8),
        lambda n: counting(n),
        lambda n: Node(n).__eq__,
        lambda n: bytes([n]),
    ],
)
def test_a_snapshot_tells_states_apart_and_nothing_else(make):
    assert snapshot(make(1)) == snapshot(make(1))
    assert snapshot(make(1)) != snapshot(make(2))


def test_the_order_of_a_mapping_is_state_and_that_of_a_set_is_not():
    assert list(snapshot({"a": 1, "b": 2})) != list(snapshot({"b": 2, "a": 1}))
    assert snapshot({(1, "a"): 1, (2, "b"): 2}) != snapshot({(2, "b"): 2, (1, "a"): 1})
    assert snapshot({"x", "y", "z"}) == snapshot({"z", "y", "x"})


def test_a_snapshot_ends_on_cycles_and_on_what_cannot_be_read():
    loop = Node(1)
    loop.next = loop
    assert snapshot(loop)["next"] == "<Node again>"
    deep: object = 0
    for _ in range(100):
        deep = [deep]
    assert "again" in list(snapshot(deep).values())[-1]
    found = snapshot([Lock(), Color.RED, Node, len, sys, None, iter(())])
    assert found["1"] == repr(Color.RED)
    assert found["2"] == "<Node>"
    assert {"0", "3", "4", "5", "6"} <= set(found)


def test_an_empty_closure_cell_is_no_error():
    def make():
        def inner():
            return later

        found = snapshot(inner)
        later = 1
        return found, snapshot(inner), later

    before, after, _ = make()
    assert "later" not in before
    assert after["later"] == "1"


def test_private_names_are_not_looked_at():
    assert snapshot(Node(1, next=2), private=frozenset({"value"})) == {"": "<Node>", "next": "2"}


def test_what_a_frozen_value_computes_from_its_fields_is_no_memory_of_what_asked_for_it():
    @dataclass(frozen=True)
    class Shape:
        size: int

        @cached_property
        def square(self) -> int:
            return self.size**2

    class Mean:
        def __init__(self) -> None:
            self.data = [1.0]

        @cached_property
        def mean(self) -> float:
            return sum(self.data) / len(self.data)

    fresh, asked = Shape(3), Shape(3)
    assert asked.square == 9
    assert snapshot(fresh) == snapshot(asked)
    assert snapshot(asked) != snapshot(Shape(4))
    # an object that changes may keep there what it has forgotten elsewhere
    remembers = Mean()
    assert remembers.mean == 1.0
    assert snapshot(remembers) != snapshot(Mean())
