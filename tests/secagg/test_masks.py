"""Masks: they cancel exactly, look uniform, and never repeat from one round to the next."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from privfedrl.errors import AuthenticationFailed
from privfedrl.secagg import ServerPhase
from privfedrl.secagg.masks import open_shares, pair_key, seal_shares, self_key
from privfedrl.secagg.sizes import MessageType


def masked(session: Any) -> dict[str, Any]:
    """The masked vectors of a finished session, by sender."""
    world = session.world
    dtype = f"<u{world.ring_bits // 8}"
    return {
        name: np.frombuffer(world.parse(data).vector, dtype)
        for name, frames in session.sent.items()
        for data in frames
        if data[7] == MessageType.MASKED
    }


def chi_square(counts: Any) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("modulus", "critical"),
    # quantiles of chi-square with modulus - 1 degrees of freedom at 1 - 1e-7
    [(8, 45.8), (17, 64.3), (256, 390.3)],
)
@pytest.mark.parametrize("ring_bits", [32, 64])
def test_masked_residues_are_uniform_whatever_the_vector(
    make_world: Any, modulus: int, critical: float, ring_bits: int
) -> None:
    """Chi-square of 1e5 words per agent, agents all-zero or all-one; false-positive rate 6e-7
    (six agents at 1e-7 each). Residues of 2^32 mod 17 deviate by 2^-28, far below notice."""
    world = make_world(length=100_000, ring_bits=ring_bits)
    for index, name in enumerate(world.names):
        world.vectors[name][:] = 0 if index % 2 else 2**ring_bits - 1
    session = world.session().run()
    for vector in masked(session).values():
        low = np.bincount((vector % modulus).astype(int), minlength=modulus)
        assert chi_square(low) < critical
    high_bits = np.bincount(
        (masked(session)["agent-00"] >> (ring_bits - 3)).astype(int), minlength=8
    )
    assert chi_square(high_bits) < 45.8


@pytest.mark.statistical
def test_two_rounds_with_the_same_inputs_give_unrelated_vectors(make_world: Any) -> None:
    """Differences of 20,000 words mod 8, chi-square at 1e-7 for each of six agents."""
    world = make_world(length=20_000)
    rounds = [masked(world.session(round=number).run()) for number in (1, 2)]
    for name in world.names:
        difference = rounds[0][name] - rounds[1][name]
        assert chi_square(np.bincount((difference % 8).astype(int), minlength=8)) < 45.8


@pytest.mark.statistical
def test_all_but_one_masked_vector_say_nothing_about_the_sum(make_world: Any) -> None:
    """The sum of five of six masked vectors, chi-square mod 8 on 1e5 words at 1e-7."""
    world = make_world(length=100_000)
    for name in world.names:
        world.vectors[name][:] = 1
    vectors = masked(world.session().run())
    partial = sum((vectors[name] for name in world.names[1:]), np.zeros(world.length, np.uint32))
    assert chi_square(np.bincount((partial % 8).astype(int), minlength=8)) < 45.8


def test_masks_change_with_round_attempt_model_and_entropy(make_world: Any) -> None:
    def first(world: Any, **changes: Any) -> bytes:
        return bytes(masked(world.session(**changes).run())["agent-00"].tobytes())

    results = [
        first(make_world()),
        first(make_world(), round=2),
        first(make_world(), attempt=1),
        first(make_world(), model=b"n" * 32),
        first(make_world(seed=b"other")),
    ]
    assert len(set(results)) == len(results)
    assert first(make_world()) == results[0]


def test_agents_with_two_models_cannot_be_summed(world: Any) -> None:
    """The coordinator gives one agent another model, hence another config: the roster fails."""
    session = world.session()
    other = world.session(model=b"n" * 32)
    odd = next(out for out in other.out if out.recipient == "agent-00")
    reply = session.clients["agent-00"].start(
        odd.data, world.vectors["agent-00"], model_digest=b"n" * 32
    )
    with pytest.raises(Exception, match="another round"):
        session.server.receive(reply[0].data)


def test_keys_are_bound_to_names_purpose_and_roster(world: Any) -> None:
    session = world.session().run(until=ServerPhase.COLLECT_MASKED)
    clients = session.clients
    cohort = clients["agent-00"]._cohort
    pairs = {name: client._keys.mask_pair for name, client in clients.items()}
    for one, other in pairwise(world.names):
        key = pair_key(cohort, pairs[one], one, other)
        assert key == pair_key(cohort, pairs[other], other, one)
    keys = [pair_key(cohort, pairs["agent-00"], "agent-00", peer) for peer in world.names[1:]] + [
        self_key(cohort, name, b"b" * 32) for name in world.names
    ]
    assert len(set(keys)) == len(keys)


def test_a_box_opens_for_its_recipient_only(world: Any) -> None:
    session = world.session().run(until=ServerPhase.COLLECT_MASKED)
    pairs = {name: client._keys.share_pair for name, client in session.clients.items()}
    cohort = session.clients["agent-00"]._cohort
    sealed = seal_shares(
        b"x" * 72,
        cohort=cohort,
        pair=pairs["agent-00"],
        sender="agent-00",
        recipient="agent-01",
    )
    opened = open_shares(
        sealed, cohort=cohort, pair=pairs["agent-01"], sender="agent-00", recipient="agent-01"
    )
    assert opened == (b"x" * 36, b"x" * 36)
    for pair, sender, recipient in (
        ("agent-02", "agent-00", "agent-02"),
        ("agent-01", "agent-02", "agent-01"),
        ("agent-00", "agent-01", "agent-00"),  # reflected to its sender
    ):
        with pytest.raises(AuthenticationFailed):
            open_shares(sealed, cohort=cohort, pair=pairs[pair], sender=sender, recipient=recipient)
