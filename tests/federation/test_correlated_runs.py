"""Runs whose noise cancels over rounds: what leaves, what is kept, and what a crash does to it."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import privfedrl.federation.simulation as simulation
from privfedrl.errors import (
    AuthenticationFailed,
    ConfigurationError,
    LedgerIntegrity,
    PrivacyError,
    PrivfedrlError,
    RoundAborted,
    StorageError,
)
from privfedrl.federation.adversaries import main_adversary
from privfedrl.federation.central_noise import mixed_release, with_central_noise
from privfedrl.federation.releases import FederationState
from privfedrl.federation.run_directory import METRICS, RunDirectory
from privfedrl.federation.setup import RoundSetup, round_setup
from privfedrl.federation.simulate import Run, Runtime, simulate
from privfedrl.federation.strategies import released_mean
from privfedrl.federation.sum_memory import (
    AdderMemory,
    SumFile,
    pack_memory,
    unpack_memory,
)
from privfedrl.plan import AdaptiveClip, Plan
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.privacy import Ledger
from privfedrl.privacy.correlated import SumHistory
from privfedrl.privacy.mechanisms import CorrelatedDiscreteGaussian
from privfedrl.secagg import Transcript

ONE = Runtime(workers=1)
Make = Callable[..., Plan]
BANDS = {
    "privacy": {"mechanism": "central-discrete-gaussian", "correlation_bands": 3},
    "federation": {"rounds": 5},
}
LANES = {"encoding": {"ring_bits": 64, "lane_bits": 24}}
WIDE = {"encoding": {"ring_bits": 64}}
SEED = bytes(range(32))


def run(plan: Plan, out: Path, **changes: Any) -> Run:
    given_: dict[str, Any] = {"out": out, "seed": 3, "runtime": ONE}
    return simulate(plan, **(given_ | {"entropy": DeterministicEntropy(b"same")} | changes))


def reservations(path: Path) -> tuple[Any, ...]:
    with Ledger.open(path / "ledger.db", read_only=True) as ledger:
        return ledger.reservations()


def mechanism(setup: RoundSetup) -> CorrelatedDiscreteGaussian:
    assert isinstance(setup.mechanism, CorrelatedDiscreteGaussian)
    return setup.mechanism


def modulus(setup: RoundSetup) -> int:
    return 1 << setup.codec.ring_bits


# --- the sum -------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"encoding": {"ring_bits": 64, "lane_bits": 24}}])
def test_a_correlated_run_gives_the_same_policy_masked_and_in_the_clear(
    tmp_path: Path, make_plan: Make, more: dict[str, Any]
) -> None:
    plan = make_plan(BANDS, more, simulation={"dropouts_per_round": 1})
    found = [
        run(plan.replace("protection", kind=kind), tmp_path / kind) for kind in ("pairwise", "none")
    ]
    rows = [RunDirectory(tmp_path / kind).rows(METRICS) for kind in ("pairwise", "none")]
    assert [one["survivors"] for one in rows[0]] == [one["survivors"] for one in rows[1]]
    events = [[one.event for one in reservations(tmp_path / k)] for k in ("pairwise", "none")]
    assert events[0] == events[1]
    np.testing.assert_array_equal(found[0].parameters, found[1].parameters)


def test_lanes_change_no_bit_of_a_correlated_run(tmp_path: Path, make_plan: Make) -> None:
    plans = {name: make_plan(BANDS, more) for name, more in (("wide", WIDE), ("lanes", LANES))}
    setups = {name: round_setup(plan) for name, plan in plans.items()}
    past: dict[str, tuple[Any, ...]] = dict.fromkeys(setups, ())
    histories = {name: SumHistory() for name in setups}
    streams = {name: DeterministicEntropy(b"lanes") for name in setups}
    rng = np.random.default_rng(5)
    for index in range(5):
        sums = rng.integers(-20_000, 20_000, setups["wide"].codec.padded)
        for name, setup in setups.items():
            vector, histories[name] = mixed_release(
                setup,
                histories[name],
                setup.codec.to_ring(sums),
                release_id=str(index),
                entropy=streams[name],
            )
            total = released_mean(setup, vector, survivors=6, seed=SEED, past=past[name]).total
            past[name] = (total, *past[name])
        np.testing.assert_array_equal(past["wide"][0], past["lanes"][0])


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_leaves_is_the_integer_mixture_and_noise_reduced_whatever_wraps(
    make_plan: Make, data: st.DataObject
) -> None:
    """Any integers, as if agents sent what they liked: no sum is centred before noise is added."""
    more = data.draw(st.sampled_from([{}, WIDE, LANES]))
    setup = round_setup(make_plan(BANDS, more))
    noise, codec = mechanism(setup).noise, setup.codec
    seed = data.draw(st.integers(0, 2**63 - 1))
    rng = np.random.default_rng(seed)
    history, exact = SumHistory(), []
    for index in range(4):
        sums = rng.integers(-(2**62), 2**62, codec.padded)
        exact.insert(0, [int(value) for value in sums])
        vector, history = mixed_release(
            setup,
            history,
            codec.to_ring(sums),
            release_id=str(index),
            entropy=DeterministicEntropy(bytes([index])),
        )
        share = mechanism(setup).sample_share(DeterministicEntropy(bytes([index])))
        mixture = [
            sum(m * past[k] for m, past in zip(noise.coefficients, exact, strict=False)) + int(z)
            for k, z in enumerate(share)
        ]
        # modulo 2^64 loses nothing: every modulus here divides it
        wrapped = np.array([value % 2**64 for value in mixture], dtype=np.uint64).view(np.int64)
        np.testing.assert_array_equal(vector, codec.to_ring(wrapped))


def test_a_unit_at_the_edge_of_the_ring_moves_the_release_by_its_own_row_only(
    make_plan: Make,
) -> None:
    """A hostile agent parks the sum where the victim's row makes it wrap; nothing jumps."""
    setup = round_setup(make_plan(BANDS))
    edge = np.full(setup.codec.padded, 2**31 - 1, dtype=np.int64)
    row = np.ones(setup.codec.padded, dtype=np.int64)
    released = [
        mixed_release(
            setup,
            SumHistory(),
            setup.codec.to_ring(total),
            release_id="0",
            entropy=DeterministicEntropy(b"edge"),
        )[0]
        for total in (edge, edge + row)
    ]
    moved = (released[1] - released[0]).view(np.int32)
    assert set(moved) == {mechanism(setup).noise.scale}


@pytest.mark.statistical
def test_noise_of_later_rounds_takes_back_that_of_earlier_ones(make_plan: Make) -> None:
    """Sums of 40 released means of nothing: 64 padded coordinates, 60 runs, 3,480 independent sums.

    The relative error of a variance of 3,480 normal values has standard deviation 2.4 %; bounds at
    six of them, two-sided: false-positive rate below 1e-8.
    """
    plan = make_plan(BANDS, privacy={"correlation_bands": 8}, federation={"rounds": 40})
    setup = round_setup(plan)
    zero = setup.codec.to_ring(np.zeros(setup.codec.padded, dtype=np.int64))
    entropy, ends, single = DeterministicEntropy(b"cancel"), [], []
    for _ in range(60):
        past: tuple[Any, ...] = ()
        history = SumHistory()
        for index in range(40):
            vector, history = mixed_release(
                setup, history, zero, release_id=str(index), entropy=entropy
            )
            found = released_mean(
                setup, vector, survivors=6, seed=SEED, round_index=index, past=past
            )
            past = (found.total, *past)
        ends.append(np.sum(past, axis=0) / (6 * setup.rows_per_agent))
        single.append(found.direction)
    weights = np.cumsum(mechanism(setup).noise.decoder_weights(40))
    expected = setup.share_std * mechanism(setup).noise.scale * np.linalg.norm(weights) / 24
    assert np.std(ends) == pytest.approx(expected, rel=0.075)
    # a round by itself carries what is stated for it, and the sum less than with fresh noise
    assert np.std(single) == pytest.approx(setup.released_std(6, 39), rel=0.075)
    fresh = round_setup(plan.replace("privacy", correlation_bands=None))
    assert np.std(ends) < 0.6 * fresh.released_std(6) * math.sqrt(40)


def test_a_run_costs_at_most_its_plan_and_each_round_one_event_of_the_mixture(
    tmp_path: Path, make_plan: Make
) -> None:
    plan = make_plan(BANDS, simulation={"dropouts_per_round": 1})
    done = run(plan, tmp_path / "run", entropy=DeterministicEntropy(b"cost"))
    setup = round_setup(plan)
    held = reservations(tmp_path / "run")
    coefficients = mechanism(setup).noise.coefficients
    assert {one.charge.event for one in held} == {one.event for one in held}
    (event,) = {one.event for one in held}
    assert event.sensitivity.l2_squared == setup.sensitivity.l2_squared * sum(
        m * m for m in coefficients
    )
    assert event.coordinates == 3 * setup.codec.padded
    claims = done.statement.epsilon.claims
    assert not isinstance(claims, str)
    assert [one.adversary for one in claims] == [main_adversary(plan), "public"]
    assert 0.99 * plan.privacy.epsilon < claims[0].epsilon <= plan.privacy.epsilon
    assert "parallel" not in claims[0].bound + claims[0].curve_kind
    for agent in sorted((tmp_path / "run" / "agents").iterdir()):
        assert {one.event for one in reservations(agent)} == {event}


def test_more_rounds_of_fresh_trajectories_cost_no_more(make_plan: Make) -> None:
    setups = [round_setup(make_plan(BANDS, federation={"rounds": r})) for r in (5, 500)]
    assert setups[0].worst_event == setups[1].worst_event


def test_the_promise_and_the_statement_say_what_is_kept(tmp_path: Path, make_plan: Make) -> None:
    plan = make_plan(BANDS)
    text = str(plan.check())
    assert "one share on a mixture of the last 3 sums" in text
    views = {view.adversary: view.epsilon for view in plan.check().views}
    assert views["who seizes the coordinator's memory"] is None
    assert "keeping past sums secret" in main_adversary(plan)
    done = run(plan.replace("federation", rounds=3), tmp_path / "run")
    assert "correlated over 3 rounds" in done.statement.mechanism.name
    assert "keeps the last 2: seizing its memory tells them" in (
        done.statement.mechanism.noise_location
    )
    assert "not in parallel" in done.statement.accountant.composed[0]
    coordinator = done.statement.trust_model[0]
    assert "the last 2 sums, which it keeps" in coordinator.sees
    assert any("no forward secrecy" in item for item in done.statement.caveats.items)
    rows = RunDirectory(tmp_path / "run").rows(METRICS)
    stated = [row["released_noise_std"] for row in rows]
    expected = [round_setup(done.plan).released_std(6, k) for k in range(3)]
    assert stated == pytest.approx(expected)
    assert stated == sorted(stated)


def test_the_noise_multiplier_is_that_of_the_whole_band(make_plan: Make) -> None:
    plan = make_plan(BANDS)
    fresh = round_setup(plan.replace("privacy", correlation_bands=None))
    assert round_setup(plan).noise_multiplier == pytest.approx(fresh.noise_multiplier, rel=1e-3)
    assert round_setup(plan).released_std(6) > fresh.released_std(6)


def test_a_ring_that_the_mixture_would_overflow_is_refused_with_the_way_out(
    make_plan: Make,
) -> None:
    large = make_plan(BANDS, fleet={"trajectories": 20_000}, privacy={"correlation_bands": None})
    large.check()
    with pytest.raises(ConfigurationError, match=r"add up to 30.*coarser encoding\.resolution"):
        large.replace("privacy", correlation_bands=3).check()


def test_a_clip_that_adapts_goes_on_under_correlated_noise(tmp_path: Path, make_plan: Make) -> None:
    clip = AdaptiveClip(low=0.2, high=5.0, quantile=0.25)
    done = run(make_plan(BANDS, privacy={"adaptive_clip": clip}), tmp_path / "run")
    clips = {row["next_clip"] for row in RunDirectory(tmp_path / "run").rows(METRICS)}
    assert len(clips) == 5
    assert done.summary.rounds == 5


# --- the adder -----------------------------------------------------------------------------------


def test_fresh_noise_on_a_plan_that_mixes_and_mixing_on_another_are_refused(
    make_plan: Make,
) -> None:
    setup, other = round_setup(make_plan(BANDS)), round_setup(make_plan())
    zero = setup.codec.to_ring(np.zeros(setup.codec.padded, dtype=np.int64))
    entropy = DeterministicEntropy(b"")
    with pytest.raises(PrivacyError, match="needs the history"):
        with_central_noise(setup, zero, entropy)
    with pytest.raises(PrivacyError, match=r"for plans with privacy\.correlation_bands"):
        mixed_release(other, SumHistory(), zero, release_id="0", entropy=entropy)


def test_one_release_id_is_never_mixed_twice(make_plan: Make) -> None:
    setup = round_setup(make_plan(BANDS))
    zero = setup.codec.to_ring(np.zeros(setup.codec.padded, dtype=np.int64))
    entropy = DeterministicEntropy(b"")
    _, history = mixed_release(setup, SumHistory(), zero, release_id="0", entropy=entropy)
    with pytest.raises(PrivacyError, match="one is back after 1"):
        mixed_release(setup, history, zero, release_id="0", entropy=entropy)


# --- crashes of a run ----------------------------------------------------------------------------


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every memory that became durable, in order."""
    original, found = SumFile.save, list[bytes]()

    def recording(self: SumFile, data: bytes) -> None:
        original(self, data)
        found.append(data)

    monkeypatch.setattr(SumFile, "save", recording)
    return found


def check_releases(setup: RoundSetup, task_id: bytes, saved: list[bytes]) -> None:
    """Each round mixed once, each with noise of its own that is not zero."""
    memories = [unpack_memory(setup, task_id, data) for data in saved]
    assert [one.rounds for one in memories] == list(range(1, len(saved) + 1))
    shares, noise, sums = set(), mechanism(setup).noise, list[Any]()
    for one in memories:
        assert one.last is not None
        sums.insert(0, one.history.sums[0])
        mixture = np.zeros_like(sums[0])
        for m, past in zip(noise.coefficients, sums, strict=False):
            mixture += m * past
        shares.add((one.last.vector.astype(np.int64) - mixture).tobytes())
        names = [name for names in one.history.units for name in names]
        assert len(set(names)) == len(names)
    assert len(shares) == len(memories)


# call: in the second of three rounds of a run in the clear, whose agents keep no ledger; whether
# the round was released by then
POINTS: dict[str, tuple[Any, str, int, bool, bool]] = {
    "reserved": (Ledger, "reserve", 2, True, False),
    "settling": (Ledger, "settle", 2, False, False),
    "saving the memory": (SumFile, "save", 2, False, False),
    "the memory is saved": (SumFile, "save", 2, True, True),
    "a row": (RunDirectory, "append", 3, True, True),
    "a transcript": (RunDirectory, "save_transcript", 2, True, True),
    "saving the checkpoint": (RunDirectory, "save", 2, False, True),
    "the checkpoint is saved": (RunDirectory, "save", 2, True, True),
    "the policy": (simulation, "save_policy", 1, False, True),
}


MASKED = ("saving the memory", "the memory is saved", "saving the checkpoint")


@pytest.mark.parametrize(
    ("point", "kind"),
    [*((point, "none") for point in POINTS), *((point, "pairwise") for point in MASKED)],
)
def test_a_run_that_died_mixes_no_round_twice_and_reuses_no_noise(
    tmp_path: Path, make_plan: Make, killed_at: Any, saved: list[bytes], point: str, kind: str
) -> None:
    protection = {"min_clients": 3, "kind": kind}
    plan = make_plan(BANDS, federation={"rounds": 3}, fleet={"agents": 5}, protection=protection)
    whole = run(plan, tmp_path / "whole")
    expected = list(saved)
    saved.clear()
    owner, name, call, after, released = POINTS[point]
    with killed_at(owner, name, call=call, after=after):
        run(plan, tmp_path / "cut")
    resumed = run(plan, tmp_path / "cut", resume=True)
    header = RunDirectory(tmp_path / "cut").header()
    assert header is not None
    check_releases(round_setup(plan), bytes.fromhex(header.task_id), saved)
    assert len(saved) == 3
    assert len(reservations(tmp_path / "cut")) == (3 if released else 4)
    rows = RunDirectory(tmp_path / "cut").rows(METRICS)
    assert [row["round"] for row in rows] == [0, 1, 2]
    if released:
        np.testing.assert_array_equal(whole.parameters, resumed.parameters)
        assert kept(round_setup(plan), header.task_id, saved) == kept(
            round_setup(plan), header.task_id, expected
        )


def kept(setup: RoundSetup, task_id: str, saved: list[bytes]) -> list[Any]:
    """All of the memories but the records, which hold the time of day."""
    memories = [unpack_memory(setup, bytes.fromhex(task_id), data) for data in saved]
    return [
        (one.last.vector.tobytes(), [past.tobytes() for past in one.history.sums])
        for one in memories
        if one.last is not None
    ]


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, make_plan: Make) -> None:
    class Stop(Exception):
        pass

    def stop_at(last: int) -> Callable[[Any], None]:
        def progress(now: Any) -> None:
            if now.round == last:
                raise Stop

        return progress

    plan = make_plan(BANDS, protection={"kind": "none"})
    whole = run(plan, tmp_path / "whole")
    for last in (1, 2, 4):
        with pytest.raises(Stop):
            run(plan, tmp_path / "cut", resume=True, progress=stop_at(last))
    resumed = run(plan, tmp_path / "cut", resume=True)
    np.testing.assert_array_equal(whole.parameters, resumed.parameters)
    rows = [RunDirectory(tmp_path / name).rows(METRICS) for name in ("whole", "cut")]
    assert rows[0] == rows[1]


def test_the_file_is_for_its_owner_alone_and_gone_or_damaged_it_stops_the_run(
    tmp_path: Path, make_plan: Make, killed_at: Any
) -> None:
    plan = make_plan(BANDS, federation={"rounds": 3}, protection={"kind": "none"})
    with killed_at(RunDirectory, "save", call=2, after=True):
        run(plan, tmp_path / "run")
    path = RunDirectory(tmp_path / "run").past_sums
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(StorageError, match="its digest does not match"):
        run(plan, tmp_path / "run", resume=True)
    path.unlink()
    with pytest.raises(LedgerIntegrity, match="must hold 2 rounds, or one more"):
        run(plan, tmp_path / "run", resume=True)
    path.write_bytes(whole)
    assert run(plan, tmp_path / "run", resume=True).summary.rounds == 3


# --- a coordinator that somebody embeds ----------------------------------------------------------


class Kept:
    """A memory in memory, with the accidents of a disk."""

    def __init__(self) -> None:
        self.versions: list[bytes] = []
        self.fail: str = ""

    def load(self) -> bytes | None:
        return self.versions[-1] if self.versions else None

    def save(self, data: bytes) -> None:
        if self.fail != "before":
            self.versions.append(data)
        if self.fail:
            raise StorageError("disk")


class Rounds:
    """A world whose coordinator is made anew for each round, from what was saved."""

    def __init__(self, world: Any) -> None:
        self.world, self.memory = world, Kept()
        self.states: list[FederationState] = [world.state]

    def coordinator(self, **changes: Any) -> Any:
        given_ = {"history": self.memory, "state": self.states[-1]}
        return self.world.coordinator(**(given_ | changes))

    def opened(self, coordinator: Any) -> Any:
        messages = coordinator.open_round()
        while not coordinator.finished:
            messages = self.world.exchange(coordinator, messages)
        return coordinator

    def run(self) -> Any:
        coordinator = self.opened(self.coordinator())
        coordinator.result()
        self.states.append(coordinator.state)
        return coordinator


@pytest.fixture
def rounds(make_plan: Make, make_world: Any) -> Rounds:
    return Rounds(make_world(make_plan(BANDS)))


def test_a_coordinator_needs_a_history_exactly_where_its_plan_mixes(
    make_plan: Make, make_world: Any
) -> None:
    with pytest.raises(ConfigurationError, match="history must be a SumMemory"):
        make_world(make_plan(BANDS)).coordinator()
    with pytest.raises(ConfigurationError, match="history must be None"):
        make_world(make_plan()).coordinator(history=Kept())


def test_a_release_whose_state_was_lost_is_the_rounds_result(rounds: Rounds) -> None:
    rounds.run()
    lost = rounds.opened(rounds.coordinator())
    result = lost.result()
    again = rounds.coordinator()  # from the state before the round
    assert again.finished
    assert again.state.round == 2
    assert again.attempt == result.attempt
    np.testing.assert_array_equal(again.state.parameters, lost.state.parameters)
    assert again.state.transcript == lost.state.transcript
    assert again.result().transcript == result.transcript
    assert len(rounds.memory.versions) == 2
    rounds.states.append(again.state)
    assert rounds.run().state.round == 3


def test_a_memory_that_cannot_be_saved_lets_nothing_leave(rounds: Rounds) -> None:
    coordinator = rounds.opened(rounds.coordinator())
    rounds.memory.fail = "before"
    with pytest.raises(StorageError):
        coordinator.result()
    assert coordinator.state.round == 0
    rounds.memory.fail = ""
    assert coordinator.result().round == 0
    assert len(rounds.memory.versions) == 1


def test_an_error_after_the_write_draws_no_second_noise(rounds: Rounds) -> None:
    coordinator = rounds.opened(rounds.coordinator())
    rounds.memory.fail = "after"
    with pytest.raises(StorageError):
        coordinator.result()
    rounds.memory.fail = ""
    result = coordinator.result()
    assert len(rounds.memory.versions) == 1
    held = unpack_memory(rounds.world.setup, bytes(32), rounds.memory.versions[0])
    assert held.last is not None
    assert held.last.transcript == result.transcript


def test_an_older_copy_of_the_memory_is_refused_by_state_or_ledger(rounds: Rounds) -> None:
    for _ in range(3):
        rounds.run()
    versions = list(rounds.memory.versions)
    for kept in (versions[:2], versions[:1], []):
        rounds.memory.versions = kept
        with pytest.raises(LedgerIntegrity, match="must hold 3 rounds, or one more"):
            rounds.coordinator()
    # state and memory together, but not the ledger: round 2 is in it
    rounds.memory.versions = versions[:1]
    with pytest.raises(LedgerIntegrity, match="round 2 is in the ledger"):
        rounds.coordinator(state=rounds.states[1])
    # a state too old for its memory
    rounds.memory.versions = versions
    with pytest.raises(LedgerIntegrity, match="must hold 1 rounds, or one more"):
        rounds.coordinator(state=rounds.states[1])


def test_an_older_copy_of_everything_but_the_agents_opens_no_second_sum(
    rounds: Rounds, tmp_path: Path
) -> None:
    """What the coordinator cannot see: the agents' journals have spent the round and attempt."""
    rounds.run()
    world, before = rounds.world, list(rounds.memory.versions)
    with Ledger.open(tmp_path / "older.db") as older:
        for one in world.ledger.reservations():
            older.reserve(one.charge)
        rounds.run()
        rounds.memory.versions = before
        restored = rounds.coordinator(state=rounds.states[1], ledger=older)
        messages, refused = restored.open_round(), set()
        while not restored.finished:
            following = []
            for message in messages:
                try:
                    for data in world.answer(message):
                        following += restored.receive(data)
                except PrivfedrlError:
                    refused.add(message.recipient)
            messages = following or ([] if restored.finished else restored.close_phase())
        assert refused == set(world.names)
        with pytest.raises(RoundAborted):
            restored.result()


def test_a_memory_of_another_run_or_another_policy_is_refused(rounds: Rounds) -> None:
    rounds.run()
    other = dataclasses.replace(rounds.states[1], task_id=b"\x01" * 32)
    with pytest.raises(LedgerIntegrity, match="another plan or another run"):
        rounds.coordinator(state=other)
    first = rounds.states[0]
    moved = dataclasses.replace(first, parameters=first.parameters + 1.0)
    with pytest.raises(ConfigurationError, match="those that round 0 was opened with"):
        rounds.coordinator(state=moved)
    with pytest.raises(ConfigurationError, match="must hold the 1 last decoded sums"):
        rounds.coordinator(state=dataclasses.replace(rounds.states[1], past=()))


@pytest.mark.parametrize("central", ["fresh", "correlated"])
def test_the_published_record_pins_what_was_released_and_not_the_exact_sum(
    make_plan: Make, make_world: Any, monkeypatch: pytest.MonkeyPatch, central: str
) -> None:
    plan = make_plan(BANDS, privacy={} if central == "correlated" else {"correlation_bands": None})
    world = make_world(plan)
    seen: dict[str, Any] = {}
    module = "privfedrl.federation.releases"
    for name in ("with_central_noise", "mixed_release"):
        original = getattr(__import__(module, fromlist=[name]), name)

        def watched(*args: Any, _original: Any = original, **kwargs: Any) -> Any:
            found = _original(*args, **kwargs)
            seen["exact"] = next(one for one in args if isinstance(one, np.ndarray))
            seen["released"] = found[0] if isinstance(found, tuple) else found
            return found

        monkeypatch.setattr(f"{module}.{name}", watched)
    history = {"history": Kept()} if central == "correlated" else {}
    transcript = Transcript.from_bytes(world.run(**history).result().transcript)
    transcript.verify(world.registry)
    transcript.verify_sum(seen["released"])
    with pytest.raises(AuthenticationFailed):
        transcript.verify_sum(seen["exact"])


def test_all_rounds_of_a_run_share_one_rotation_and_runs_do_not(rounds: Rounds) -> None:
    seeds = []
    for _ in range(2):
        coordinator = rounds.run()
        seeds.append(Transcript.from_bytes(coordinator.result().transcript).config.round_seed)
    assert seeds[0] == seeds[1]
    other = rounds.coordinator(
        history=Kept(), state=dataclasses.replace(rounds.states[0], task_id=b"\x01" * 32)
    )
    rounds.opened(other)
    assert Transcript.from_bytes(other.result().transcript).config.round_seed != seeds[0]


# --- the bytes that are kept ---------------------------------------------------------------------


def repacked(data: bytes, **changes: Any) -> bytes:
    body = msgspec.msgpack.encode(msgspec.msgpack.decode(data[32:]) | changes)
    return hashlib.sha256(body).digest() + body


def test_a_memory_survives_packing_and_shows_no_sum(make_plan: Make) -> None:
    setup = round_setup(make_plan(BANDS))
    empty = unpack_memory(setup, SEED, pack_memory(setup, SEED, AdderMemory(history=SumHistory())))
    assert (empty.rounds, empty.last, empty.history.sums) == (0, None, ())
    assert "rounds=0" in repr(empty)
    sums = np.arange(setup.codec.padded)
    _, history = mixed_release(
        setup,
        SumHistory(),
        setup.codec.to_ring(-sums),
        release_id="a/0/0",
        entropy=DeterministicEntropy(b""),
    )
    assert "array" not in repr(AdderMemory(rounds=1, history=history))


def test_every_single_damaged_byte_is_found(rounds: Rounds) -> None:
    rounds.run()
    (data,), setup = rounds.memory.versions, rounds.world.setup
    unpack_memory(setup, bytes(32), data)
    for index in (0, 31, 32, len(data) // 2, len(data) - 1):
        broken = bytearray(data)
        broken[index] ^= 1
        with pytest.raises(StorageError, match="damaged"):
            unpack_memory(setup, bytes(32), bytes(broken))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "privfedrl-sums/0"}, "must have format"),
        ({"more": 1}, "not one of this version"),
        ({"rounds": 2}, "must hold 2 sums"),
        ({"rounds": -1}, "must hold"),
        ({"sums": []}, "must hold 1 sums"),
        ({"sums": [b"short"]}, "vectors of 64 words"),
        ({"last": None}, "the release of round 0"),
    ],
)
def test_a_memory_that_does_not_fit_together_is_refused(
    rounds: Rounds, changes: dict[str, Any], message: str
) -> None:
    rounds.run()
    (data,) = rounds.memory.versions
    with pytest.raises(StorageError, match=message):
        unpack_memory(rounds.world.setup, bytes(32), repacked(data, **changes))


def test_a_file_that_cannot_be_read_is_a_storage_error(tmp_path: Path) -> None:
    assert SumFile(tmp_path / "none").load() is None
    with pytest.raises(StorageError, match="cannot be read"):
        SumFile(tmp_path).load()
