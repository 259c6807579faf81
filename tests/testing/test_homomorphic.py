"""The kit's adapter of homomorphic aggregation, and what the kit has to say about it."""

from __future__ import annotations

import inspect
import unittest

import numpy as np
import pytest

from privfedrl.testing import (
    Claim,
    RoundSpec,
    aggregation_machine,
    draw_vectors,
    play,
    violations,
)
from privfedrl.testing.attacks import run_attacks
from privfedrl.testing.homomorphic import HomomorphicAdapter
from privfedrl.testing.verdict import Status

ADAPTER = HomomorphicAdapter()
PLACE = "privfedrl.testing.homomorphic:HomomorphicAdapter"


def test_the_adapter_is_at_most_a_hundred_lines() -> None:
    lines = inspect.getsource(HomomorphicAdapter).splitlines()
    assert len([line for line in lines if line.strip()]) <= 100


@pytest.mark.parametrize("bits", [32, 64])
def test_sums_are_those_of_the_vectors(bits: int) -> None:
    """In the 64-bit ring a slot holds fewer bits, and a sum beyond them would not be opened."""
    spec = RoundSpec(modulus_bits=bits)
    vectors = draw_vectors(ADAPTER, spec)
    if bits == 64:
        vectors = {name: vector >> np.uint64(40) for name, vector in vectors.items()}
    run = play(ADAPTER, spec, vectors)
    assert run.aggregate is not None
    assert run.aggregate.survivors == ADAPTER.client_names(spec)
    assert (run.aggregate.total == sum(vectors.values())).all()
    assert violations(ADAPTER, [run]) == ()


@pytest.mark.parametrize("profile", ["honest-but-curious", "coalition", "malicious-server"])
def test_the_state_machine_finds_nothing(profile: str) -> None:
    case = aggregation_machine(ADAPTER, profile, place=PLACE)
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert result.testsRun == 1
    assert result.failures == []
    assert result.errors == []


def test_no_attack_that_is_claimed_against_succeeds() -> None:
    verdict = run_attacks(ADAPTER)
    found = {outcome.id: outcome.status for outcome in verdict.outcomes}
    assert [name for name, status in found.items() if status is Status.FAILED] == []
    passed = [name for name, status in found.items() if status is Status.PASSED]
    assert len(passed) >= 20
    assert {"A16-damaged", "A16-transcript"} <= set(passed)


def test_a_transcript_that_verifies_does_not_once_it_is_changed() -> None:
    spec = RoundSpec()
    run = play(ADAPTER, spec, draw_vectors(ADAPTER, spec))
    assert run.transcript is not None
    ADAPTER.verify_transcript(spec, run.transcript)
    changed = bytearray(run.transcript)
    changed[len(changed) // 2] ^= 1
    with pytest.raises(ADAPTER.errors):
        ADAPTER.verify_transcript(spec, bytes(changed))


def test_the_claims_leave_out_what_only_masks_have() -> None:
    assert Claim.EXACT_SUM in ADAPTER.claims
    assert Claim.COHORT_FLOOR in ADAPTER.claims
    assert ADAPTER.claims.isdisjoint({Claim.UNIFORM_MASKS, Claim.ONE_SHARE_KIND})
