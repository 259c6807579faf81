"""A set of trajectories feeds at most K releases of one plan, and the K costliest are the bill."""

from __future__ import annotations

import contextlib
import itertools
import math
import multiprocessing
import os
import random
import secrets
import signal
import sqlite3
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfedrl.errors import BudgetExceeded, ConfigurationError, LedgerIntegrity, PrivacyError
from privfedrl.privacy.accountant import compose, epsilon
from privfedrl.privacy.calibration import Target, least_noise
from privfedrl.privacy.events import DpEvent, GaussianEvent, NoReleaseEvent, SkellamEvent
from privfedrl.privacy.ledger import Charge, Ledger
from privfedrl.privacy.ledger_chain import Chain
from privfedrl.privacy.ledger_costs import committed_cost
from privfedrl.privacy.ledger_rows import charge_from_dict, charge_to_dict
from privfedrl.privacy.mechanisms import DistributedSkellam
from privfedrl.privacy.units import Adjacency, IntegerSensitivity, Unit

# fork: a child starts in milliseconds, so that many can be killed within a second
FORK = multiprocessing.get_context("fork")
A, B = bytes(32), bytes([1]) * 32
AGENT, PERSON, TRAJECTORY = Unit.AGENT, Unit.PERSON, Unit.TRAJECTORY
BOUND = IntegerSensitivity(l2_squared=10**6, l1=10**4, unit=TRAJECTORY)
WHO, DELTA = "coordinator+1", 1e-5


def skellam(variance: int = 10**8) -> SkellamEvent:
    return SkellamEvent(sensitivity=BOUND, variance=variance)


def charge(batch: str, k: int | None = None, **changes: Any) -> Charge:
    """A fresh release that uses ``batch`` under the cap ``k``."""
    values: dict[str, Any] = {
        "plan_digest": A,
        "release_id": f"release {secrets.token_hex(16)}",  # processes share no counter
        "group": batch,
        "unit": TRAJECTORY,
        "adversary": WHO,
        "event": skellam(),
        "epsilon": 1e6,
        "delta": DELTA,
        "max_participations": k,
    }
    return Charge(**{**values, **changes})


def window(batches: list[str], k: int, **changes: Any) -> Charge:
    """A release of a replay window: the newest batch and those before it, the oldest last."""
    return charge(batches[-1], k, replayed=tuple(batches[-2 : -k - 1 : -1]), **changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger.open(":memory:") as found:
        yield found


# ---- how often a set may be used ----------------------------------------------------------------


@pytest.mark.parametrize("k", [None, 1, 2, 5])
@pytest.mark.parametrize("settled", [False, True])
def test_a_batch_feeds_at_most_k_releases(path: Path, k: int | None, settled: bool) -> None:
    most = k or 1
    for use in range(most):
        with Ledger.open(path) as ledger:
            assert ledger.uses("batch") == use
            row = ledger.reserve(charge("batch", k))
            if settled:  # a release that never happened has still used the batch
                ledger.settle(row, NoReleaseEvent(unit=TRAJECTORY))
    with Ledger.open(path) as ledger:
        head = ledger.head
        message = "one release" if most == 1 else f"{most} releases"
        with pytest.raises(PrivacyError, match=f"'batch' was reserved already.*{message}"):
            ledger.reserve(charge("batch", k))
        assert (ledger.head, ledger.uses("batch"), ledger.uses("other")) == (head, most, 0)
        ledger.reserve(charge("other", k))
        assert ledger.verify().reservations == most + 1


@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_window_uses_each_of_its_batches_k_times_and_no_more(ledger: Ledger, k: int) -> None:
    batches: list[str] = []
    for number in range(10):
        batches.append(f"batch {number}")
        ledger.reserve(window(batches, k))
    assert [ledger.uses(batch) for batch in batches[: 10 - k + 1]] == [k] * (10 - k + 1)
    assert [ledger.uses(batch) for batch in batches[10 - k :]] == list(range(k, 0, -1))
    used_up = batches[10 - k]
    # neither as the newest batch of a release, nor anywhere behind it
    for bad in (charge(used_up, k), charge("fresh", k, replayed=("fresher", used_up))):
        with pytest.raises(PrivacyError, match=f"{used_up!r} was reserved already"):
            ledger.reserve(bad)
    # a refused release has used none of its batches
    assert (ledger.uses("fresh"), ledger.uses("fresher"), ledger.uses(used_up)) == (0, 0, k)


@pytest.mark.parametrize(
    "changes", [{"plan_digest": B}, {"adversary": "public"}, {"plan_digest": B, "k": 9}]
)
def test_a_set_of_trajectories_belongs_to_one_plan_and_one_adversary(
    ledger: Ledger, changes: dict[str, Any]
) -> None:
    """Plans do not add up, so a trajectory in two of them would be charged for one only."""
    ledger.reserve(charge("batch", 3))
    k = changes.pop("k", 3)
    for bad in (charge("batch", k, **changes), charge("fresh", k, replayed=("batch",), **changes)):
        with pytest.raises(PrivacyError, match=r"another plan or adversary.*collect fresh"):
            ledger.reserve(bad)
    ledger.reserve(charge("fresh", k, **changes))
    assert ledger.uses("batch") == 1


def test_a_plan_never_changes_how_often_its_trajectories_may_be_used(ledger: Ledger) -> None:
    ledger.reserve(charge("batch", 2))
    for k in (1, 3, None):
        with pytest.raises(PrivacyError, match=r"max_participations.*say 2"):
            ledger.reserve(charge("batch", k))


def test_other_units_may_name_the_same_sets_without_limit(ledger: Ledger) -> None:
    for unit in (AGENT, PERSON):
        event = GaussianEvent(noise_multiplier=9.0, unit=unit)
        for _ in range(3):
            ledger.reserve(charge("batch", unit=unit, event=event, replayed=("old",)))
    assert ledger.uses("batch") == 0
    with pytest.raises(ConfigurationError, match="max_participations is about"):
        charge("batch", 2, unit=AGENT, event=GaussianEvent(noise_multiplier=9.0, unit=AGENT))


def test_a_forged_further_use_is_refused_even_with_a_right_hash() -> None:
    chain, other = Chain(), Chain()
    for one in (chain, other):
        one.append(one.genesis(bytes(16)))
    for use in range(2):
        row = chain.reserve(charge("batch", 2), 1)
        chain.append(row)
        other.length, other.head = chain.length, chain.head
        assert chain.uses("batch") == use + 1
    for bad in (charge("batch", 2), charge("fresh", 2, replayed=("batch",))):
        with pytest.raises(LedgerIntegrity, match="2 releases"):
            chain.append(other.reserve(bad, 2))
    body = {"kind": "reserve", "time": 1, **charge_to_dict(charge("fresh", 2))}
    for forged in ("batch", None, {"a": 1}, ["batch", "batch"]):
        with pytest.raises(LedgerIntegrity, match="replayed"):
            chain.append(chain._row({**body, "replayed": forged}))
    assert chain.uses("fresh") == 0


def test_every_group_of_a_charge_survives_its_row(path: Path) -> None:
    made = charge("c", 3, replayed=("b", "a"))
    assert charge_from_dict(charge_to_dict(made)) == made
    assert made.groups == ("c", "b", "a")
    with Ledger.open(path) as ledger:
        ledger.reserve(made)
        (exported,) = ledger.export()
        assert (exported["group"], exported["replayed"]) == ("c", ["b", "a"])
    with Ledger.open(path) as ledger:
        assert ledger.entries()[0].charge == made
        assert [ledger.uses(batch) for batch in "abc"] == [1, 1, 1]


def test_a_file_that_counted_no_uses_does_not_open(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.reserve(charge("batch"))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(LedgerIntegrity, match=r"must be 3, found 2.*another version of privfedrl"):
        Ledger.open(path)


# ---- processes that race, and that die ----------------------------------------------------------


def use_up(path: Path, batches: int, k: int, pipe: int) -> None:
    """Use every batch until the ledger refuses; report each use after it was charged."""
    with Ledger.open(path, timeout_s=30) as ledger:
        for batch in range(batches):
            while True:
                try:
                    ledger.reserve(charge(f"batch {batch}", k))
                except PrivacyError:
                    break
                os.write(pipe, struct.pack("<q", batch))
    os._exit(0)


def released(reader: int) -> Counter[int]:
    data = b""
    while chunk := os.read(reader, 1 << 16):
        data += chunk
    return Counter(batch for (batch,) in struct.iter_unpack("<q", data))


def run_until(path: Path, batches: int, k: int, *, kill_after: float | None) -> Counter[int]:
    reader, writer = os.pipe()
    workers = [FORK.Process(target=use_up, args=(path, batches, k, writer)) for _ in range(2)]
    for worker in workers:
        worker.start()
    os.close(writer)
    if kill_after is not None:
        time.sleep(kill_after)
        for worker in workers:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
    for worker in workers:
        worker.join(60)
    found = released(reader)
    os.close(reader)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_a_crash_between_uses_never_allows_one_more(path: Path, seed: int) -> None:
    """Two writers at once are killed at random instants; others go on with the same batches."""
    rng, batches, k, left = random.Random(seed), 8, 3, Counter[int]()
    lives = 6
    for _ in range(lives):
        left += run_until(path, batches, k, kill_after=rng.uniform(0.0, 0.06))
    left += run_until(path, batches, k, kill_after=None)
    with Ledger.open(path) as ledger:
        ledger.verify()
        charged = Counter(one.charge.group for one in ledger.reservations())
        assert charged == {f"batch {number}": k for number in range(batches)}
        assert [ledger.uses(f"batch {number}") for number in range(batches)] == [k] * batches
    assert max(left.values()) <= k
    # what was charged and not released is what the killed writers held: one each
    assert batches * k - left.total() <= 2 * lives


def test_two_processes_never_use_a_batch_more_than_k_times(path: Path) -> None:
    assert run_until(path, 12, 4, kill_after=None) == dict.fromkeys(range(12), 4)


# ---- what it costs ------------------------------------------------------------------------------


@pytest.mark.parametrize("adjacency", list(Adjacency))
def test_k_epochs_cost_k_compositions(adjacency: Adjacency) -> None:
    """Whatever the number of rounds: one, or a thousand."""
    k = 3
    expected = epsilon([skellam()] * k, DELTA, adjacency=adjacency).epsilon
    for rounds in (1, 1000):
        with Ledger.open(":memory:") as ledger:
            for batch in range(rounds):
                for _ in range(k):
                    ledger.reserve(charge(f"batch {batch}", k))
            spent = ledger.spent(adjacency=adjacency)
            assert spent.epsilon == expected
            assert spent.bound == ("rdp" if rounds == 1 else "parallel rdp")
            assert ledger.account(TRAJECTORY, WHO).regime == "committed"
    once = epsilon([skellam()], DELTA, adjacency=adjacency).epsilon
    assert expected > 1.2 * once


def test_a_replay_window_costs_k_compositions_however_long_the_run(ledger: Ledger) -> None:
    k, batches = 4, list[str]()
    for number in range(100):
        batches.append(f"batch {number}")
        ledger.reserve(window(batches, k))
        expected = epsilon([skellam()] * min(number + 1, k), DELTA).epsilon
        assert ledger.spent().epsilon == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("k", [None, 1])
@pytest.mark.parametrize("adjacency", list(Adjacency))
def test_k_equal_one_is_the_maximum_over_rounds(k: int | None, adjacency: Adjacency) -> None:
    """Also for releases of which none is known to be costlier than the other."""
    events: list[DpEvent] = [skellam(10**8), skellam(3 * 10**7)]
    events += [GaussianEvent(noise_multiplier=z, unit=TRAJECTORY) for z in (2.0, 3.0)]
    held: list[tuple[str, DpEvent]] = []
    with Ledger.open(":memory:") as ledger:
        for number in range(20):
            event = events[number % 3 if number < 10 else 3]
            ledger.reserve(charge(f"batch {number}", k, event=event))
            held.append((f"batch {number}", event))
            expected = compose(TRAJECTORY, held, DELTA, adjacency=adjacency)
            assert ledger.spent(adjacency=adjacency) == expected


def test_the_costliest_k_releases_of_the_costliest_plan_are_the_bill(ledger: Ledger) -> None:
    for number, variance in enumerate([10**9, 10**8, 10**9, 10**8, 10**8]):
        ledger.reserve(charge(f"a {number}", 2, event=skellam(variance)))
    for number in range(9):
        ledger.reserve(charge(f"b {number}", 3, event=skellam(4 * 10**8), plan_digest=B))
    two = epsilon([skellam(10**8)] * 2, DELTA).epsilon
    three = epsilon([skellam(4 * 10**8)] * 3, DELTA).epsilon
    spent = ledger.spent()
    assert spent.epsilon == two > three
    assert spent.bound == "parallel rdp"
    assert ledger.account(TRAJECTORY, WHO).running == spent


def test_settling_a_use_gives_back_what_it_did_not_cost(ledger: Ledger) -> None:
    rows = [ledger.reserve(charge("batch", 2)) for _ in range(2)]
    ledger.settle(rows[0], skellam(2 * 10**8))
    expected = epsilon([skellam(), skellam(2 * 10**8)], DELTA).epsilon
    assert ledger.spent().epsilon == pytest.approx(expected, rel=1e-12)
    with pytest.raises(PrivacyError, match="cost no more"):
        ledger.settle(rows[1], skellam(10**7))


def test_releases_that_cannot_be_compared_are_charged_order_by_order(ledger: Ledger) -> None:
    other = SkellamEvent(
        sensitivity=IntegerSensitivity(l2_squared=10**6, l1=10**6, unit=TRAJECTORY),
        variance=10**8 + 1,
    )
    for number, event in enumerate((skellam(), other, skellam(), other)):
        ledger.reserve(charge(f"batch {number}", 2, event=event))
    pairs = itertools.combinations_with_replacement((skellam(), other), 2)
    most = max(epsilon(pair, DELTA).epsilon for pair in pairs)
    assert most * (1 - 1e-12) <= ledger.spent().epsilon
    assert ledger.spent().epsilon < epsilon([skellam(), skellam(), other], DELTA).epsilon


# ---- budgets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [False, True])
def test_a_use_that_the_budget_does_not_pay_for_is_refused_and_uses_nothing(
    path: Path, declared: bool
) -> None:
    """The cap alone would allow a third use: the budget of two compositions does not."""
    budget = epsilon([skellam()] * 2, DELTA).epsilon
    own = 1e6 if declared else budget
    with Ledger.open(path) as ledger:
        if declared:
            ledger.declare_budget(TRAJECTORY, WHO, budget, DELTA)
        ledger.reserve(charge("batch", 3, epsilon=own))
        ledger.reserve(charge("batch", 3, epsilon=own))
    with Ledger.open(path) as ledger:
        head = ledger.head
        # any third release is refused, for it may be of the same trajectories
        for batch in ("batch", "other"):
            with pytest.raises(BudgetExceeded, match=f"{budget:.6g}.*nothing was charged"):
                ledger.reserve(charge(batch, 3, epsilon=own))
        assert (ledger.head, ledger.uses("batch"), ledger.uses("other")) == (head, 2, 0)
        assert ledger.spent().epsilon == budget
        assert ledger.verify().reservations == 2


def test_a_budget_of_k_compositions_pays_for_any_number_of_rounds(ledger: Ledger) -> None:
    budget = epsilon([skellam()] * 3, DELTA).epsilon
    ledger.declare_budget(TRAJECTORY, WHO, budget, DELTA)
    for batch in range(40):
        for _ in range(3):
            ledger.reserve(charge(f"batch {batch}", 3, epsilon=budget))
    with pytest.raises(BudgetExceeded):
        ledger.reserve(charge("costly", 3, epsilon=budget, event=skellam(10**8 - 10**6)))
    ledger.verify()


def test_noise_calibrated_for_k_participations_fills_a_run_and_less_does_not() -> None:
    """What a plan must ask of ``least_noise``, against what the ledger then admits."""

    def mechanism(variance: int) -> DistributedSkellam:
        return DistributedSkellam(sensitivity=BOUND, share_variance=variance, num_coordinates=64)

    target = Target(epsilon=2.0, delta=DELTA)
    found = {k: least_noise(mechanism, target, min_honest=5, participations=k) for k in (1, 4)}
    for k, admitted in ((4, True), (1, False)):
        with Ledger.open(":memory:") as ledger:
            uses = iter(charge("batch", 4, epsilon=2.0, event=found[k].event(5)) for _ in range(4))
            ledger.reserve(next(uses))
            if admitted:
                assert [ledger.reserve(use) for use in uses] == [2, 3, 4]
            else:
                with pytest.raises(BudgetExceeded):
                    ledger.reserve(next(uses))


def test_verifying_finds_uses_that_another_program_charged_beyond_the_budget(path: Path) -> None:
    """Rows with right hashes, written by a program that does not look at the budget."""
    with Ledger.open(path) as ledger:
        ledger.declare_budget(TRAJECTORY, WHO, epsilon([skellam()] * 2, DELTA).epsilon, DELTA)
        for use in range(3):
            ledger.verify()
            with ledger._store.writing():
                ledger._store.insert(ledger._refreshed().reserve(charge("batch", 3), 0))
            assert len(ledger) == 2 + use
        with pytest.raises(LedgerIntegrity, match="lifetime budget of one trajectory"):
            ledger.verify()


EVENTS: list[DpEvent] = [
    *(skellam(variance) for variance in (10**7, 3 * 10**7, 10**8)),
    *(GaussianEvent(noise_multiplier=z, unit=TRAJECTORY) for z in (1.0, 3.0)),
    NoReleaseEvent(unit=TRAJECTORY),
]
OFFERS = st.lists(
    st.tuples(
        st.integers(0, 1),  # plan
        st.sets(st.integers(0, 4), min_size=1, max_size=3),  # batches
        st.integers(0, len(EVENTS) - 1),
        st.sampled_from([None, None, "same", "nothing"]),  # how it is settled
    ),
    max_size=25,
)


@given(caps=st.tuples(*[st.sampled_from([1, 2, 3])] * 2), budget=st.floats(0.5, 30), offers=OFFERS)
@settings(max_examples=80, deadline=None)
def test_an_adaptive_chooser_never_takes_a_trajectory_beyond_what_is_stated(
    caps: tuple[int, int], budget: float, offers: list[tuple[int, set[int], int, str | None]]
) -> None:
    """Whatever is offered: each batch's own list of releases, composed, is what it lost."""
    lost: dict[str, list[DpEvent]] = {}
    with Ledger.open(":memory:") as ledger:
        for plan, batches, kind, settled in offers:
            first, *others = (f"batch {number}" for number in sorted(batches))
            event = EVENTS[kind]
            one = charge(
                first,
                caps[plan],
                replayed=tuple(others),
                event=event,
                epsilon=budget,
                plan_digest=(A, B)[plan],
            )
            try:
                row = ledger.reserve(one)
            except PrivacyError:  # no use left, another plan's batch, or no budget
                continue
            for batch in one.groups:
                lost.setdefault(batch, []).append(event)
            if settled == "nothing":
                event = NoReleaseEvent(unit=TRAJECTORY)
                for batch in one.groups:
                    lost[batch][-1] = event
            if settled is not None:
                ledger.settle(row, event)
            stated = ledger.spent().epsilon
            assert stated <= budget
            for batch, events in lost.items():
                assert len(events) == ledger.uses(batch) <= max(caps)
                assert epsilon(events, DELTA).epsilon <= stated * (1 + 1e-9)
        ledger.verify()


@given(
    counts=st.dictionaries(st.sampled_from(EVENTS), st.integers(1, 4), min_size=1),
    k=st.integers(1, 4),
)
@settings(max_examples=100, deadline=None)
def test_no_choice_of_k_releases_costs_more_than_the_bill(
    counts: dict[DpEvent, int], k: int
) -> None:
    for adjacency in Adjacency:
        bill = committed_cost(TRAJECTORY, [(counts, k)], DELTA, adjacency).epsilon
        chosen = itertools.combinations(Counter(counts).elements(), min(k, sum(counts.values())))
        most = max(epsilon(list(one), DELTA, adjacency=adjacency).epsilon for one in set(chosen))
        assert bill >= most * (1 - 1e-12)


# ---- the argument itself, on a system small enough to enumerate ---------------------------------

# audits/proofs/parallel_composition.md: releases on Z_4 with noise p(z) ~ exp(-STEP |z|), so that
# one unit's row, 0 or 1, changes log-probabilities by at most STEP in a release
STEP, RING, ROUNDS, K = 0.8, 4, 4, 2
_WEIGHTS = [math.exp(-STEP * min(z, RING - z)) for z in range(RING)]
NOISE = [weight / sum(_WEIGHTS) for weight in _WEIGHTS]
Transcript = tuple[int, ...]


def answer(seen: Transcript, tape: int) -> int:
    """A responder: what a trajectory holds follows from what was published and its own coins."""
    return (sum(seen) + 3 * len(seen) + tape) % 2


def queries(
    transcript: Transcript, tapes: tuple[int, ...], *, present: bool, defect: str
) -> list[int]:
    """The un-noised sums of all rounds, given what the earlier ones released.

    In every round two trajectories are made, the first one of round 0 is the unit. A release mixes
    the batches of K rounds, each row by what was published since.
    """
    made: list[list[int]] = []
    sums, state = [], 0
    reach = K + 1 if defect == "one use more" else K
    for now in range(ROUNDS):
        fresh = [answer(transcript[:now], tape) for tape in tapes[2 * now : 2 * now + 2]]
        made.append(fresh if present or now else fresh[1:])
        total = 0
        for then in range(max(0, now - reach + 1), now + 1):
            published = sum(transcript[then:now])
            baseline = sum(made[then]) if defect == "batch baseline" else 0
            total += sum((held + published + state + baseline) % 2 for held in made[then])
        if defect == "private state":
            state += total  # e.g. a critic that saw the sum before it was noised
        sums.append(total)
    return sums


def likelihood(transcript: Transcript, *, present: bool, defect: str) -> float:
    total = 0.0
    for coins in itertools.product((0, 1), repeat=4):
        tapes = (1, 1, 0, 1, *coins)  # of rounds 2 and 3 the coins are summed out
        found = queries(transcript, tapes, present=present, defect=defect)
        total += math.prod(NOISE[(y - q) % RING] for y, q in zip(transcript, found, strict=True))
    return total / 16


def worst_loss(defect: str) -> float:
    """The exact epsilon, at delta 0, of the whole transcript."""
    return max(
        abs(
            math.log(likelihood(transcript, present=True, defect=defect))
            - math.log(likelihood(transcript, present=False, defect=defect))
        )
        for transcript in itertools.product(range(RING), repeat=ROUNDS)
    )


def test_a_window_of_k_rounds_loses_k_releases_in_an_enumerated_run() -> None:
    """No more, and no less: the maximum over rounds would be an under-statement."""
    assert worst_loss("none") == pytest.approx(K * STEP, rel=1e-9)


@pytest.mark.parametrize("defect", ["private state", "one use more", "batch baseline"])
def test_what_the_argument_forbids_loses_more_in_the_enumerated_run(defect: str) -> None:
    assert worst_loss(defect) > 1.1 * K * STEP
