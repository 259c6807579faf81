"""Entropy sources: replayable where asked, recognisable, and never short."""

from __future__ import annotations

import pytest

from privfedrl.errors import ConfigurationError, LocalProtocolError
from privfedrl.primitives.random import (
    DeterministicEntropy,
    draw,
    is_deterministic,
    system_entropy,
)


def test_one_seed_gives_one_stream_however_it_is_cut() -> None:
    whole = DeterministicEntropy(b"seed")(100)
    cut = DeterministicEntropy(b"seed")
    assert cut(1) + cut(0) + cut(99) == whole


def test_seeds_and_forks_give_unrelated_streams() -> None:
    parent = DeterministicEntropy(b"seed")
    streams = [
        DeterministicEntropy(b"seed")(32),
        DeterministicEntropy(b"other")(32),
        parent.fork(b"a")(32),
        parent.fork(b"b")(32),
        parent.fork(b"a").fork(b"b")(32),
    ]
    assert len(set(streams)) == len(streams)


def test_a_fork_does_not_depend_on_what_was_drawn() -> None:
    early = DeterministicEntropy(b"seed").fork(b"x")
    parent = DeterministicEntropy(b"seed")
    parent(1000)
    assert parent.fork(b"x")(64) == early(64)


def test_a_replayable_source_is_recognised() -> None:
    assert is_deterministic(DeterministicEntropy(b""))
    assert not is_deterministic(system_entropy)


def test_the_repr_hides_the_seed() -> None:
    assert "secret-seed" not in repr(DeterministicEntropy(b"secret-seed"))


def test_system_entropy_is_fresh() -> None:
    assert system_entropy(32) != system_entropy(32)
    assert len(system_entropy(7)) == 7


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="n must be"):
        DeterministicEntropy(b"")(-1)


@pytest.mark.parametrize("source", [lambda n: bytes(n - 1), lambda n: bytearray(n), lambda n: None])
def test_a_source_that_returns_less_than_asked_is_refused(source: object) -> None:
    with pytest.raises(LocalProtocolError, match="entropy"):
        draw(source, 32)  # type: ignore[arg-type]  # the point of the test
