"""The reference adapter tells the kit the truth about our own protocol."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from privfedrl.secagg import SparseGraph
from privfedrl.testing.adapter import Claim, RoundSpec
from privfedrl.testing.invariants import expected_sum, violations
from privfedrl.testing.network import Run, Schedule, SimulatedNetwork, play
from privfedrl.testing.pairwise import PairwiseAdapter
from privfedrl.testing.pairwise_guarded import GuardedPairwiseAdapter
from privfedrl.testing.replay import draw_vectors

ADAPTER = PairwiseAdapter()
SPEC = RoundSpec()
NAMES = ADAPTER.client_names(SPEC)
VECTORS = draw_vectors(ADAPTER, SPEC)


@pytest.fixture(scope="module")
def run() -> Run:
    return play(ADAPTER, SPEC, VECTORS, Schedule(kept=((NAMES[5], 2),)))


def test_the_adapter_is_at_most_a_hundred_lines() -> None:
    lines = inspect.getsource(PairwiseAdapter).splitlines()
    assert len([line for line in lines if line.strip()]) <= 100


@pytest.mark.parametrize("bits", [32, 64])
def test_sums_are_exact_in_both_rings(bits: int) -> None:
    spec = RoundSpec(modulus_bits=bits, vector_length=3)
    got = play(ADAPTER, spec, draw_vectors(ADAPTER, spec))
    assert got.aggregate is not None
    assert (got.aggregate.total == expected_sum(got, NAMES)).all()


def test_a_sparse_graph_gives_the_same_sum_and_reveals_no_share_to_its_owner() -> None:
    graph = SparseGraph(max_dropouts=1, security_bits=20, correctness_bits=20)
    adapter = PairwiseAdapter(graph)
    spec = RoundSpec(num_clients=40, max_colluding=2, min_clients=20, min_honest=8)
    schedule = Schedule(kept=(("client-007", 2),))
    got = play(adapter, spec, draw_vectors(adapter, spec), schedule)
    assert got.aggregate is not None, got.error
    assert (got.aggregate.total == expected_sum(got, got.aggregate.survivors)).all()
    assert not violations(adapter, [got])
    assert not [each for each in got.knowledge.reveals if each.owner == each.holder]
    kinds = {(reveal.owner, reveal.kind) for reveal in got.knowledge.reveals}
    assert {owner for owner, kind in kinds if kind == "pair"} == {"client-007"}


def test_residues_are_the_masked_vectors(run: Run) -> None:
    for packet in run.of_kind("masked"):
        residues = ADAPTER.residues(SPEC, packet)
        assert residues is not None
        assert residues.shape == (SPEC.vector_length,)
        assert not np.array_equal(residues, VECTORS[packet.sender])
    assert ADAPTER.residues(SPEC, run.of_kind("shares")[0]) is None


def test_reveals_follow_the_survivors(run: Run) -> None:
    kinds = {(reveal.owner, reveal.kind) for reveal in run.knowledge.reveals}
    assert kinds == {(name, "self") for name in NAMES[:5]} | {(NAMES[5], "pair")}
    assert {reveal.holder for reveal in run.knowledge.reveals} == set(NAMES[:5])


def test_a_forged_packet_verifies_and_says_something_else(run: Run) -> None:
    """Signed by its own sender, so it is refused for what it says, not for its signature."""
    adapter = GuardedPairwiseAdapter()
    network = SimulatedNetwork(adapter, SPEC, VECTORS)
    network.open()
    server = adapter.make_server(SPEC)
    adapter.start(server)
    for number in list(network.in_flight):
        network.deliver(number)
    advert = network.run.of_kind("advertise")[0]
    forged = adapter.forge(SPEC, advert, public_keys=lambda keys: (keys[0], keys[0]))
    assert forged.data != advert.data
    assert (forged.sender, forged.recipient) == (advert.sender, advert.recipient)
    with pytest.raises(adapter.errors, match="must differ"):
        adapter.deliver(server, forged)
    assert adapter.forge(SPEC, advert).data == advert.data
    assert adapter.forge(SPEC, advert, shares=lambda shares: shares) is None
    assert ADAPTER.forge(SPEC, advert) is None  # the short adapter leaves lies to the guarded one


@pytest.mark.parametrize("name", [NAMES[0], "server"])
def test_an_impostor_without_the_key_gets_nowhere(name: str) -> None:
    deceived = {name: RoundSpec(impostors=frozenset({name}))}
    got = play(ADAPTER, SPEC, VECTORS, specs=deceived)
    refused = {type(refusal.error).__name__ for refusal in got.refusals if refusal.packet}
    assert refused == {"AuthenticationFailed"}
    assert (got.aggregate is None) is (name == "server")


def test_an_outsiders_bytes_reach_the_server_and_are_refused() -> None:
    server = ADAPTER.make_server(SPEC)
    opening = ADAPTER.start(server)[0]
    outsider = ADAPTER.make_client(SPEC, "mallory", VECTORS[NAMES[0]], {})
    (advert,) = ADAPTER.deliver(outsider, opening)
    assert advert.sender == "mallory"
    with pytest.raises(ADAPTER.errors, match="authentication failed"):
        ADAPTER.deliver(server, advert)


def test_a_transcript_verifies_and_a_changed_one_does_not(run: Run) -> None:
    assert run.transcript is not None
    ADAPTER.verify_transcript(SPEC, run.transcript)
    with pytest.raises(ADAPTER.errors):
        ADAPTER.verify_transcript(SPEC, run.transcript[:-1] + b"\0")
    with pytest.raises(ADAPTER.errors):
        ADAPTER.verify_transcript(RoundSpec(previous=b"x" * 32), run.transcript)


def test_the_same_spec_gives_the_same_bytes_and_another_seed_other_masks() -> None:
    def masked(spec: RoundSpec) -> list[bytes]:
        return [packet.data for packet in play(ADAPTER, spec, VECTORS).of_kind("masked")]

    assert masked(SPEC) == masked(RoundSpec())
    assert not set(masked(SPEC)) & set(masked(RoundSpec(seed=b"other")))


def test_the_quorum_is_what_every_stage_needs() -> None:
    quorum = ADAPTER.quorum(SPEC)
    enough = play(ADAPTER, SPEC, VECTORS, Schedule(kept=tuple((n, 2) for n in NAMES[quorum:])))
    few = play(ADAPTER, SPEC, VECTORS, Schedule(kept=tuple((n, 2) for n in NAMES[quorum - 1 :])))
    assert enough.aggregate is not None
    assert few.aggregate is None


def test_the_reference_claims_what_the_design_promises() -> None:
    assert ADAPTER.claims >= {Claim.EXACT_SUM, Claim.AGREEMENT, Claim.SPENT_ROUNDS, Claim.DROPOUTS}


HEAVY = ("hypothesis", "pytest")
CASES: dict[str, Any] = {
    "the package": "import privfedrl.testing",
    "a round": "from privfedrl.testing import PairwiseAdapter, RoundSpec, draw_vectors, play\n"
    "adapter, spec = PairwiseAdapter(), RoundSpec()\n"
    "assert play(adapter, spec, draw_vectors(adapter, spec)).aggregate is not None",
}


@pytest.mark.parametrize("what", sorted(CASES))
def test_hypothesis_stays_unloaded_until_it_is_asked_for(what: str) -> None:
    code = f"{CASES[what]}\nimport sys\nprint([n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_without_hypothesis_the_install_line_is_printed() -> None:
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import privfedrl.testing as kit\n"
        "from privfedrl.errors import MissingExtraError\n"
        "try: kit.aggregation_machine\n"
        "except MissingExtraError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "privfedrl[testing]"' in done.stdout, done.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    import privfedrl.testing as kit

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kit.nothing
    assert set(kit.__all__) <= set(dir(kit))
    for name in kit.__all__:
        assert getattr(kit, name) is not None
