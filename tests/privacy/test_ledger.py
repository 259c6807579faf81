"""Every release is charged before it happens, and every attack on the file is found."""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from privfedrl.errors import (
    BudgetExceeded,
    ConfigurationError,
    LedgerIntegrity,
    LocalProtocolError,
    PrivacyError,
    StorageError,
)
from privfedrl.privacy.accountant import compose
from privfedrl.privacy.events import (
    DiscreteGaussianEvent,
    DpEvent,
    GaussianEvent,
    NoReleaseEvent,
    PoissonSampledEvent,
    SkellamEvent,
    UnboundedEvent,
)
from privfedrl.privacy.ledger import Charge, Ledger
from privfedrl.privacy.ledger_chain import Chain, link
from privfedrl.privacy.ledger_rows import Row
from privfedrl.privacy.units import Adjacency, IntegerSensitivity, Unit

PLAN = bytes(range(32))
DELTA = 1e-5


def skellam(variance: int = 10**8, unit: Unit = Unit.AGENT) -> SkellamEvent:
    bound = IntegerSensitivity(l2_squared=10**6, l1=10**4, unit=unit)
    return SkellamEvent(sensitivity=bound, variance=variance)


def charge(number: int, *, event: DpEvent | None = None, **changes: object) -> Charge:
    unit = changes.pop("unit", Unit.AGENT)
    assert isinstance(unit, Unit)
    values: dict[str, object] = {
        "plan_digest": PLAN,
        "release_id": f"task/{number}/0",
        "group": f"batch-{number}",
        "unit": unit,
        "adversary": "coordinator+1",
        "event": event or skellam(unit=unit),
        "epsilon": 1e6,
        "delta": DELTA,
    }
    return Charge(**{**values, **changes})  # type: ignore[arg-type]  # a table of test values


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def filled(path: Path) -> Path:
    """A closed ledger of five reservations, two of them settled (rows 1 to 7)."""
    with Ledger.open(path) as ledger:
        for number in range(5):
            row = ledger.reserve(charge(number))
            if number < 2:
                ledger.settle(row, skellam(2 * 10**8), note="all survived")
    return path


@pytest.fixture
def raw(filled: Path) -> Iterator[sqlite3.Connection]:
    """An attacker's connection: triggers dropped on use, put back by ``restore``."""
    connection = sqlite3.connect(filled, isolation_level=None)
    yield connection
    connection.close()


def tamper(connection: sqlite3.Connection, *statements: str) -> None:
    """Run ``statements`` around the triggers and restore these, so that only the chain can tell."""
    triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
    saved = triggers.fetchall()
    for name, _ in saved:
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement)
    for _, sql in saved:
        connection.execute(sql)


# ---- budget -------------------------------------------------------------------------------------


def test_a_charge_within_the_budget_is_recorded(path: Path) -> None:
    with Ledger.open(path, clock=lambda: 1234.9) as ledger:
        assert len(ledger) == 0
        assert ledger.spent().epsilon == 0
        row = ledger.reserve(charge(0))
        (entry,) = ledger.entries()
        assert (entry.id, entry.kind, entry.unix_time) == (row, "reserve", 1234)
        assert entry.charge == charge(0)
        assert ledger.spent() == compose(Unit.AGENT, [("batch-0", skellam())], DELTA)


def test_a_charge_beyond_the_budget_is_refused_and_leaves_no_trace(path: Path) -> None:
    one = compose(Unit.AGENT, [("a", skellam())], DELTA).epsilon
    two = compose(Unit.AGENT, [("a", skellam()), ("b", skellam())], DELTA).epsilon
    budget = (one + two) / 2
    with Ledger.open(path) as ledger:
        ledger.reserve(charge(0, epsilon=budget))
        head = ledger.head
        with pytest.raises(BudgetExceeded) as caught:
            ledger.reserve(charge(1, epsilon=budget))
        for figure in (budget, one, two):
            assert f"{figure:.6g}" in str(caught.value)
        assert ledger.head == head


@pytest.mark.parametrize("unit", [Unit.PERSON, Unit.AGENT])
def test_a_later_charge_does_not_raise_the_budget_of_the_first(path: Path, unit: Unit) -> None:
    event = skellam(unit=unit)
    one = compose(unit, [("a", event)], DELTA).epsilon
    with Ledger.open(path) as ledger:
        ledger.reserve(charge(0, unit=unit, epsilon=1.1 * one))
        with pytest.raises(
            BudgetExceeded, match=r"lifetime budget of its first charge.*new ledger"
        ):
            ledger.reserve(charge(1, unit=unit, epsilon=100 * one))
        assert len(ledger) == 1


def test_a_settled_round_gives_back_what_it_did_not_use(path: Path) -> None:
    two = compose(Unit.AGENT, [("a", skellam()), ("b", skellam())], DELTA).epsilon
    with Ledger.open(path) as ledger:
        row = ledger.reserve(charge(0, epsilon=two))
        ledger.reserve(charge(1, epsilon=two))
        with pytest.raises(BudgetExceeded):
            ledger.reserve(charge(2, epsilon=two))
        ledger.settle(row, NoReleaseEvent(unit=Unit.AGENT), note="stopped before sending")
        ledger.reserve(charge(2, epsilon=two))
        assert ledger.spent().epsilon == pytest.approx(two)


def test_an_unsettled_reservation_counts_after_reopening(path: Path) -> None:
    one = compose(Unit.AGENT, [("a", skellam())], DELTA).epsilon
    with Ledger.open(path) as ledger:
        ledger.reserve(charge(0, epsilon=one))
    with Ledger.open(path) as ledger, pytest.raises(BudgetExceeded):
        ledger.reserve(charge(1, epsilon=one))


def test_an_infinite_budget_admits_an_unprotected_control_and_nothing_else_does(path: Path) -> None:
    control = UnboundedEvent(unit=Unit.AGENT)
    with Ledger.open(path) as ledger:
        with pytest.raises(BudgetExceeded):
            ledger.reserve(charge(0, event=control))
        ledger.reserve(charge(0, event=control, epsilon=math.inf))
        assert ledger.spent().epsilon == math.inf
    with Ledger.open(path) as ledger:
        assert ledger.entries()[0].charge == charge(0, event=control, epsilon=math.inf)
        assert ledger.export()[0]["epsilon"] == "inf"
        json.dumps(ledger.export(), allow_nan=False)


def test_trajectories_cost_the_maximum_and_agents_the_sum(path: Path) -> None:
    with Ledger.open(path) as ledger:
        for number in range(20):
            ledger.reserve(charge(number, unit=Unit.TRAJECTORY))
            ledger.reserve(charge(100 + number, unit=Unit.AGENT))
        once = compose(Unit.TRAJECTORY, [("a", skellam(unit=Unit.TRAJECTORY))], DELTA)
        agent = compose(Unit.AGENT, [(n, skellam()) for n in range(20)], DELTA)
        assert ledger.spent(unit=Unit.TRAJECTORY).epsilon == once.epsilon
        assert ledger.spent(unit=Unit.AGENT) == agent
        assert agent.epsilon > 3 * once.epsilon


@pytest.mark.parametrize("unit", list(Unit))
@pytest.mark.parametrize("adjacency", list(Adjacency))
def test_the_running_account_equals_the_composition_of_all_entries(
    unit: Unit, adjacency: Adjacency
) -> None:
    charged: list[tuple[str, DpEvent]] = []
    with Ledger.open(":memory:") as ledger:
        for number in range(60):
            row = ledger.reserve(charge(number, unit=unit, event=skellam(10**8, unit)))
            event = skellam(10**8 + 10**7 * (number % 7), unit)
            if number % 3:
                ledger.settle(row, event)
            charged.append((f"batch-{number}", event if number % 3 else skellam(10**8, unit)))
            expected = compose(unit, charged, 1e-6, adjacency=adjacency)
            found = ledger.spent(delta=1e-6, adjacency=adjacency)
            assert found.epsilon == pytest.approx(expected.epsilon, rel=1e-12)
            assert (found.bound, found.order) == (expected.bound, expected.order)


def test_an_epsilon_over_several_adversaries_is_refused_with_the_choices(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.reserve(charge(0))
        ledger.reserve(charge(1, adversary="public", event=skellam(10**9)))
        with pytest.raises(PrivacyError, match=r"AGENT.*coordinator\+1.*AGENT.*public"):
            ledger.spent()
        assert (
            ledger.spent(adversary="public").epsilon
            < ledger.spent(adversary="coordinator+1").epsilon
        )
        assert ledger.spent(adversary="nobody").epsilon == 0
        with pytest.raises(ConfigurationError, match="delta"):
            ledger.spent(adversary="nobody", delta=2.0)
        with pytest.raises(ConfigurationError, match="delta"):
            ledger.spent(adversary="public", delta=math.nan)


def test_the_default_delta_is_the_smallest_that_was_charged(path: Path) -> None:
    with Ledger.open(path) as ledger:
        for number, delta in enumerate((1e-5, 1e-7, 1e-6)):
            ledger.reserve(charge(number, delta=delta))
        assert ledger.spent().delta == 1e-7


# ---- what may be reserved and settled -----------------------------------------------------------


def test_a_release_is_reserved_once(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.reserve(charge(0))
        with pytest.raises(PrivacyError, match="release_id"):
            ledger.reserve(charge(0, group="other"))
        assert len(ledger) == 1


@pytest.mark.parametrize("settled", [False, True])
def test_a_trajectory_set_feeds_one_release_even_after_an_abort(path: Path, settled: bool) -> None:
    with Ledger.open(path) as ledger:
        row = ledger.reserve(charge(0, unit=Unit.TRAJECTORY))
        if settled:
            ledger.settle(row, NoReleaseEvent(unit=Unit.TRAJECTORY))
    with Ledger.open(path) as ledger:
        with pytest.raises(PrivacyError, match="batch-0"):
            ledger.reserve(charge(1, unit=Unit.TRAJECTORY, group="batch-0"))
        assert len(ledger) == 1 + settled


@pytest.mark.parametrize("unit", [Unit.PERSON, Unit.AGENT])
def test_persons_and_agents_may_take_part_again(path: Path, unit: Unit) -> None:
    with Ledger.open(path) as ledger:
        ledger.reserve(charge(0, unit=unit))
        ledger.reserve(charge(1, unit=unit, group="batch-0"))
        assert len(ledger) == 2


AGENT = Unit.AGENT
OTHER = IntegerSensitivity(l2_squared=4, l1=4, unit=AGENT)


def shares(count: int, variance: int = 64, coordinates: int = 10) -> DiscreteGaussianEvent:
    return DiscreteGaussianEvent(
        sensitivity=OTHER, variance=variance, shares=count, coordinates=coordinates
    )


def sampled(event: SkellamEvent, rate: float) -> PoissonSampledEvent:
    return PoissonSampledEvent(event=event, sampling_rate=rate)


@pytest.mark.parametrize(
    ("reserved", "realised", "allowed"),
    [
        (skellam(100), skellam(100), True),
        (skellam(100), skellam(101), True),
        (skellam(100), skellam(99), False),
        (skellam(100), SkellamEvent(sensitivity=OTHER, variance=10**9), False),
        (skellam(100), skellam(100, Unit.PERSON), False),
        (skellam(100), GaussianEvent(noise_multiplier=1e9, unit=AGENT), False),
        (skellam(100), UnboundedEvent(unit=AGENT), False),
        (skellam(100), NoReleaseEvent(unit=AGENT), True),
        (skellam(100), NoReleaseEvent(unit=Unit.PERSON), False),
        (GaussianEvent(noise_multiplier=2, unit=AGENT), skellam(10**12), False),
        (
            GaussianEvent(noise_multiplier=2.0, unit=AGENT),
            GaussianEvent(noise_multiplier=2.5, unit=AGENT),
            True,
        ),
        (
            GaussianEvent(noise_multiplier=2.0, unit=AGENT),
            GaussianEvent(noise_multiplier=1.9, unit=AGENT),
            False,
        ),
        (UnboundedEvent(unit=AGENT), skellam(1), True),
        (UnboundedEvent(unit=AGENT), UnboundedEvent(unit=AGENT), True),
        (NoReleaseEvent(unit=AGENT), skellam(10**12), False),
        (shares(5), shares(5), True),
        (shares(5), shares(9), True),
        (shares(5), shares(4), False),
        (shares(5), shares(5, variance=65), False),
        (shares(5), shares(5, coordinates=11), False),
        (shares(5), skellam(10**9), False),
        # one share is exact, the sum of two is not quite: absurdly many coordinates show it
        (
            shares(1, variance=4, coordinates=10**40),
            shares(2, variance=4, coordinates=10**40),
            False,
        ),
        (sampled(skellam(100), 0.1), sampled(skellam(100), 0.1), True),
        (sampled(skellam(100), 0.1), sampled(skellam(120), 0.05), True),
        (sampled(skellam(100), 0.1), sampled(skellam(100), 0.2), False),
        (sampled(skellam(100), 0.1), sampled(skellam(90), 0.1), False),
        (sampled(skellam(100), 0.1), skellam(10**9), False),
        (NoReleaseEvent(unit=AGENT), NoReleaseEvent(unit=AGENT), True),
    ],
)
def test_a_settlement_never_costs_more_than_was_reserved(
    reserved: DpEvent, realised: DpEvent, allowed: bool
) -> None:
    with Ledger.open(":memory:") as ledger:
        row = ledger.reserve(charge(0, event=reserved, epsilon=math.inf))
        before = ledger.spent().epsilon
        if allowed:
            ledger.settle(row, realised)
            assert ledger.spent().epsilon <= before
            assert ledger.reservations()[0].event == realised
        else:
            with pytest.raises(PrivacyError, match="cost no more"):
                ledger.settle(row, realised)
            assert len(ledger) == 1
            assert ledger.reservations()[0].realised is None


def test_a_reservation_is_settled_once(path: Path) -> None:
    with Ledger.open(path) as ledger:
        row = ledger.reserve(charge(0))
        settlement = ledger.settle(row, skellam())
        for target, message in ((row, "settled already"), (settlement, "must be"), (99, "must be")):
            with pytest.raises(PrivacyError, match=message):
                ledger.settle(target, skellam())


@pytest.mark.parametrize("note", ["x" * 513, "\ud800", 7])
def test_a_note_that_cannot_be_stored_is_refused(note: object) -> None:
    with Ledger.open(":memory:") as ledger:
        row = ledger.reserve(charge(0))
        with pytest.raises(ConfigurationError, match="note"):
            ledger.settle(row, skellam(), note=note)  # type: ignore[arg-type]  # the point
        ledger.settle(row, skellam(), note="ümlaut \x00 \n")
        assert ledger.verify().settled == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"plan_digest": b"short"},
        {"release_id": ""},
        {"release_id": "x" * 513},
        {"group": "\udfff"},
        {"adversary": 3},
        {"unit": "agent"},
        {"event": skellam(unit=Unit.PERSON)},
        {"epsilon": math.nan},
        {"epsilon": -0.1},
        {"epsilon": "1"},
        {"epsilon": True},
        {"epsilon": 10**400},
        {"delta": 0.0},
        {"delta": 1.0},
        {"delta": math.nan},
        {"max_participations": 3},
        {"unit": Unit.TRAJECTORY, "event": skellam(unit=Unit.TRAJECTORY), "max_participations": 0},
        {"replayed": ["batch-1"]},
        {"replayed": "batch-1"},
        {"replayed": ("",)},
        {"replayed": (1,)},
        {"replayed": ("batch-0",)},
        {"replayed": ("batch-1", "batch-1")},
        {"replayed": tuple(f"batch-{number}" for number in range(1, 1026))},
        {"unit": Unit.PERSON, "event": skellam(unit=Unit.PERSON), "max_participations": 0},
        {"unit": Unit.PERSON, "event": skellam(unit=Unit.PERSON), "max_participations": 2**53 + 1},
        {"unit": Unit.PERSON, "event": skellam(unit=Unit.PERSON), "max_participations": True},
        {"unit": Unit.PERSON, "event": skellam(unit=Unit.PERSON), "max_participations": 1.5},
    ],
)
def test_a_charge_that_cannot_be_judged_is_refused(changes: dict[str, object]) -> None:
    values = {name: getattr(charge(0), name) for name in Charge.__dataclass_fields__}
    with pytest.raises(ConfigurationError):
        Charge(**{**values, **changes})  # type: ignore[arg-type]  # wrong types are the point


def test_reservations_are_counted_by_plan_and_prefix(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.reserve(charge(1))
        ledger.reserve(charge(2, release_id="task/1/1"))
        ledger.reserve(charge(3, release_id="task/1/2", plan_digest=bytes(32)))
        assert len(ledger.reservations(prefix="task/1/")) == 3
        assert len(ledger.reservations(PLAN, "task/1/")) == 2
        assert len(ledger.reservations(PLAN, "task/2/")) == 0


def test_a_clock_that_runs_backwards_changes_no_decision(path: Path) -> None:
    times = iter([100.0, -5.5, 50.0])
    with Ledger.open(path, clock=lambda: next(times)) as ledger:
        for number in range(3):
            ledger.reserve(charge(number))
        assert [entry.unix_time for entry in ledger.entries()] == [100, -6, 50]
        assert ledger.verify().entries == 3


def test_a_clock_without_a_time_stops_the_charge() -> None:
    with (
        Ledger.open(":memory:", clock=lambda: math.nan) as ledger,
        pytest.raises(ConfigurationError, match="clock"),
    ):
        ledger.reserve(charge(0))


# ---- attacks on the file ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET record = '{}' WHERE id = 1",
        "DELETE FROM entries WHERE id = 7",
        "INSERT OR REPLACE INTO entries SELECT id, record, settles, hash FROM entries WHERE id = 3",
        "INSERT INTO entries SELECT 99, record, NULL, hash FROM entries WHERE id = 3",
    ],
)
def test_the_file_itself_refuses_changes(raw: sqlite3.Connection, statement: str) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="ledger rows"):
        raw.execute(statement)


EDIT = "UPDATE entries SET record = replace(record, '{}', '{}') WHERE id = {}"
RAISE_BUDGET = EDIT.format('"epsilon":1000000.0', '"epsilon":2000000.0', 5)


@pytest.mark.parametrize(
    "statements",
    [
        pytest.param([RAISE_BUDGET], id="edit"),
        pytest.param(["UPDATE entries SET hash = zeroblob(32) WHERE id = 7"], id="edit-last-hash"),
        pytest.param(["DELETE FROM entries WHERE id = 4"], id="delete-inside"),
        pytest.param(["DELETE FROM entries WHERE id = 0"], id="delete-genesis"),
        pytest.param(["DELETE FROM entries"], id="delete-all"),
        pytest.param(
            [
                "UPDATE entries SET id = 1000 WHERE id = 6",
                "UPDATE entries SET id = 6 WHERE id = 7",
                "UPDATE entries SET id = 7 WHERE id = 1000",
            ],
            id="reorder",
        ),
        pytest.param(
            [
                "DELETE FROM entries WHERE id = 5",
                "UPDATE entries SET id = id - 1 WHERE id > 5",
            ],
            id="delete-and-close-the-gap",
        ),
        pytest.param(["UPDATE entries SET settles = 5 WHERE id = 2"], id="settle-another"),
        pytest.param(["UPDATE entries SET settles = 5 WHERE id = 7"], id="settle-unmarked"),
        pytest.param(
            [
                "INSERT INTO entries SELECT 8, replace(record, '/4/0', '/9/0'), NULL, hash "
                "FROM entries WHERE id = 7"
            ],
            id="append-without-hash",
        ),
        pytest.param(["UPDATE entries SET record = record || ' ' WHERE id = 7"], id="whitespace"),
    ],
)
def test_an_edited_ledger_does_not_open(
    filled: Path, raw: sqlite3.Connection, statements: list[str]
) -> None:
    tamper(raw, *statements)
    for read_only in (False, True):
        with pytest.raises(LedgerIntegrity):
            Ledger.open(filled, read_only=read_only)


def test_an_edit_is_found_by_a_process_that_has_the_ledger_open(
    filled: Path, raw: sqlite3.Connection
) -> None:
    with Ledger.open(filled) as ledger:
        tamper(raw, RAISE_BUDGET)
        with pytest.raises(LedgerIntegrity):
            ledger.verify()


@pytest.mark.parametrize("count", [1, 3])
def test_cutting_rows_under_an_open_ledger_stops_it(
    filled: Path, raw: sqlite3.Connection, count: int
) -> None:
    with Ledger.open(filled) as ledger:
        tamper(raw, f"DELETE FROM entries WHERE id > {7 - count}")
        for act in (lambda: ledger.reserve(charge(9)), ledger.spent, ledger.verify):
            with pytest.raises(LedgerIntegrity, match=r"rolled back|rewritten"):
                act()


def test_truncation_of_the_newest_rows_needs_the_anchor(
    filled: Path, raw: sqlite3.Connection
) -> None:
    with Ledger.open(filled) as ledger:
        early, anchor = ledger.entries()[2].hash, ledger.head
    tamper(raw, "DELETE FROM entries WHERE id > 5")
    with Ledger.open(filled) as ledger:
        assert ledger.verify().entries == 5
        assert ledger.verify(anchor=early).entries == 5
        with pytest.raises(LedgerIntegrity, match="anchor"):
            ledger.verify(anchor=anchor)


def test_replay_of_an_older_copy_needs_the_anchor(filled: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.db"
    shutil.copy(filled, old)
    with Ledger.open(filled) as ledger:
        ledger.reserve(charge(9))
        anchor = ledger.head
    shutil.copy(old, filled)
    with Ledger.open(filled) as ledger:
        ledger.verify()
        with pytest.raises(LedgerIntegrity, match="anchor"):
            ledger.verify(anchor=anchor)


def test_a_fork_needs_the_anchor(filled: Path, tmp_path: Path) -> None:
    fork = tmp_path / "fork.db"
    shutil.copy(filled, fork)
    with Ledger.open(filled) as left, Ledger.open(fork) as right:
        shared = left.head
        left.reserve(charge(8))
        right.reserve(charge(9))
        right.verify(anchor=shared)
        with pytest.raises(LedgerIntegrity, match="anchor"):
            right.verify(anchor=left.head)


def test_two_new_ledgers_share_no_head(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "a") as one, Ledger.open(tmp_path / "b") as two:
        assert one.head != two.head
        with pytest.raises(LedgerIntegrity, match="anchor"):
            two.verify(anchor=one.head)
        assert one.verify(anchor=one.head).entries == 0


@pytest.mark.parametrize("anchor", ["", "ab", "zz" * 32, None])
def test_an_anchor_that_is_no_head_is_refused(path: Path, anchor: str | None) -> None:
    with Ledger.open(path) as ledger:
        if anchor is None:
            assert ledger.verify(anchor=None).entries == 0
            return
        with pytest.raises(ConfigurationError, match="anchor"):
            ledger.verify(anchor=anchor)


def test_a_file_swapped_under_an_open_ledger_stops_it(filled: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    shutil.copy(filled, copy)
    with Ledger.open(filled) as ledger:
        os.replace(copy, filled)
        with pytest.raises(LedgerIntegrity, match="replaced"):
            ledger.reserve(charge(9))
        filled.unlink()
        with pytest.raises(LedgerIntegrity, match="removed"):
            ledger.spent()


@pytest.mark.parametrize("keep", [0, 1, 99, 4096, 9000])
def test_a_truncated_file_does_not_open(filled: Path, keep: int) -> None:
    os.truncate(filled, keep)
    with pytest.raises(LedgerIntegrity):
        Ledger.open(filled)


def test_any_overwritten_page_is_found(filled: Path) -> None:
    size = filled.stat().st_size
    whole = filled.read_bytes()
    for start in range(0, size, 512):
        damaged = whole[:start] + bytes(b ^ 0x55 for b in whole[start : start + 64])
        damaged += whole[start + 64 :]
        if damaged == whole:
            continue
        filled.write_bytes(damaged)
        try:
            with Ledger.open(filled) as ledger:
                # free space inside a page may differ: the account must not
                assert ledger.verify().entries == 7
                assert ledger.export()[0]["release_id"] == "task/0/0"
        except (LedgerIntegrity, StorageError):
            continue


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TRIGGER entries_refuse_update",
        "CREATE TRIGGER more AFTER INSERT ON entries BEGIN SELECT 1; END",
        "CREATE TABLE other (x)",
        "PRAGMA user_version = 1",
        "PRAGMA application_id = 7",
    ],
)
def test_an_edited_schema_does_not_open(
    filled: Path, raw: sqlite3.Connection, statement: str
) -> None:
    raw.execute(statement)
    with pytest.raises(LedgerIntegrity):
        Ledger.open(filled)


def test_a_foreign_file_does_not_open_and_is_left_as_it_was(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("this is not a database" * 100)
    database = tmp_path / "other.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE entries (id)")
    connection.close()
    for foreign in (text, database):
        before = foreign.read_bytes()
        with pytest.raises(LedgerIntegrity):
            Ledger.open(foreign, read_only=True)
        with pytest.raises(LedgerIntegrity):
            Ledger.open(foreign)
        assert foreign.read_bytes() == before


# ---- rows that a forger with fresh hashes would write -------------------------------------------


def forged(chain: Chain, body: dict[str, object], *, settles: int | None = None) -> Row:
    return chain._row(dict(body), settles)


@pytest.mark.parametrize(
    ("body", "settles"),
    [
        ({"kind": "genesis", "format": 3, "ledger_id": "00"}, None),
        ({"kind": "other"}, None),
        ({"kind": ["reserve"]}, None),
        ({"kind": "settle", "time": 1, "reservation": 9, "event": {}, "note": ""}, 9),
        (
            {
                "kind": "settle",
                "time": 1,
                "reservation": 1,
                "event": {"kind": "unbounded", "unit": "agent"},
                "note": "",
            },
            1,
        ),
        ({"kind": "settle", "time": 1.5, "reservation": 1, "event": {}, "note": ""}, 1),
        ({"kind": "settle", "time": 1, "reservation": 1, "event": [], "note": ""}, 1),
    ],
)
def test_rows_that_break_a_rule_are_refused_even_with_a_right_hash(
    body: dict[str, object], settles: int | None
) -> None:
    chain = Chain()
    chain.append(chain.genesis(bytes(16)))
    chain.append(chain.reserve(charge(0), 1))
    head = chain.head
    with pytest.raises(LedgerIntegrity):
        chain.append(forged(chain, body, settles=settles))
    assert (chain.head, chain.length) == (head, 2)


def test_a_second_reservation_of_one_release_is_refused_even_with_a_right_hash() -> None:
    chain, other = Chain(), Chain()
    for one in (chain, other):
        one.append(one.genesis(bytes(16)))
    first = chain.reserve(charge(0), 1)
    chain.append(first)
    other.length, other.head = chain.length, chain.head
    with pytest.raises(LedgerIntegrity, match="release_id"):
        chain.append(other.reserve(charge(0), 2))


def test_records_that_are_not_canonical_json_are_refused() -> None:
    chain = Chain()
    chain.append(chain.genesis(bytes(16)))
    good = chain.reserve(charge(0), 1).record
    for record in (good + " ", "{", "[1]", "NaN", good.replace('"id":1', '"id":2'), "[" * 10**5):
        hashed = link(chain.head, record)
        with pytest.raises(LedgerIntegrity):
            chain.append(Row(1, record, None, hashed))


def test_another_format_version_is_named() -> None:
    chain = Chain()
    with pytest.raises(LedgerIntegrity, match="format"):
        chain.append(forged(chain, {"kind": "genesis", "format": 2, "ledger_id": "00" * 16}))
    with pytest.raises(LedgerIntegrity, match="identity"):
        chain.append(forged(chain, {"kind": "genesis", "format": 3, "ledger_id": "00"}))


# ---- files, modes, limits -----------------------------------------------------------------------


def test_a_read_only_ledger_shows_everything_and_charges_nothing(filled: Path) -> None:
    with Ledger.open(filled, read_only=True) as ledger:
        assert ledger.verify(anchor=ledger.head).reservations == 5
        assert ledger.verify().settled == 2
        for act in (lambda: ledger.reserve(charge(9)), lambda: ledger.settle(5, skellam())):
            with pytest.raises(StorageError, match="read-only"):
                act()
        assert len(ledger) == 7


def test_a_read_only_ledger_sees_rows_that_are_still_in_the_log(path: Path) -> None:
    with Ledger.open(path) as writer, Ledger.open(path, read_only=True) as reader:
        writer.reserve(charge(0))
        assert len(reader) == 1
        assert reader.head == writer.head


@pytest.mark.parametrize("where", ["missing.db", "no/such/folder.db", "."])
def test_what_cannot_be_opened_is_a_storage_error(tmp_path: Path, where: str) -> None:
    with pytest.raises(StorageError):
        Ledger.open(tmp_path / where, read_only=True)
    if where != "missing.db":
        with pytest.raises(StorageError):
            Ledger.open(tmp_path / where)
    assert list(tmp_path.iterdir()) == []


def as_nobody(path: Path) -> int:
    """Exit status of a child without write permission: rows seen, or 100 + what was raised."""
    child = os.fork()
    if child == 0:
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            with Ledger.open(path, read_only=True) as ledger:
                os._exit(ledger.verify().entries)
        except StorageError:
            os._exit(100)
        except BaseException:  # noqa: BLE001 - a child must never run the parent's test session
            os._exit(101)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_an_archived_copy_in_a_read_only_folder_opens_unless_newer_rows_are_in_the_log(
    filled: Path,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "ledger.db")
        shutil.copy(filled, archive)
        log = Path(folder, "ledger.db-wal")
        try:
            archive.chmod(0o444)
            Path(folder).chmod(0o555)
            assert as_nobody(archive) == 7
            Path(folder).chmod(0o755)
            log.write_bytes(b"not empty")
            Path(folder).chmod(0o555)
            assert as_nobody(archive) == 100
        finally:
            Path(folder).chmod(0o755)


def test_a_ledger_in_memory_cannot_be_read_only() -> None:
    with pytest.raises(StorageError):
        Ledger.open(":memory:", read_only=True)


def test_creation_leaves_no_other_file_behind(path: Path) -> None:
    Ledger.open(path).close()
    assert [found.name for found in path.parent.iterdir()] == ["ledger.db"]


def test_a_closed_ledger_says_so(path: Path) -> None:
    ledger = Ledger.open(path)
    assert "rows=0" in repr(ledger)
    ledger.close()
    ledger.close()
    with pytest.raises(LocalProtocolError, match="closed"):
        ledger.spent()


def test_a_locked_ledger_is_a_storage_error_and_charges_nothing(filled: Path) -> None:
    blocker = sqlite3.connect(filled, isolation_level=None)
    with Ledger.open(filled, timeout_s=0.05) as ledger:
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match=r"locked.*0\.05 s"):
            ledger.reserve(charge(9))
        blocker.execute("ROLLBACK")
        assert len(ledger) == 7
        ledger.reserve(charge(9))
    blocker.close()


FULL_DISK = """
import resource, sys
from pathlib import Path
from privfedrl.errors import StorageError
from privfedrl.privacy.events import GaussianEvent
from privfedrl.privacy.ledger import Charge, Ledger
from privfedrl.privacy.units import Unit
ledger = Ledger.open(sys.argv[1])
limit = 120_000
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
done = 0
try:
    while done < 10_000:
        ledger.reserve(Charge(plan_digest=bytes(32), release_id=f"r{done}", group="g",
            unit=Unit.AGENT, adversary="a", event=GaussianEvent(noise_multiplier=9.0,
            unit=Unit.AGENT), epsilon=1e9, delta=1e-5))
        done += 1
except StorageError:
    assert len(ledger) == done, (len(ledger), done)
    print(done)
"""


def test_a_full_disk_stops_the_charge_and_loses_nothing(path: Path) -> None:
    script = [sys.executable, "-c", FULL_DISK, os.fspath(path)]
    result = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    done = int(result.stdout)
    assert 0 < done < 10_000
    with Ledger.open(path) as ledger:
        assert ledger.verify().reservations == done
        ledger.reserve(charge(0))


def fill(ledger: Ledger, count: int) -> None:
    for number in range(count):
        ledger.reserve(charge(number))


def test_a_page_limit_stops_the_charge_and_loses_nothing() -> None:
    with Ledger.open(":memory:") as ledger:
        ledger._store._live().execute("PRAGMA max_page_count = 8")
        with pytest.raises(StorageError, match="full"):
            fill(ledger, 1000)
        assert 0 < len(ledger) < 1000
        assert ledger.verify().reservations == len(ledger.reservations()) == len(ledger)


def test_a_charge_costs_the_same_after_many_rounds() -> None:
    """No absolute time: a charge that recomputed the past would make the last ones far slower."""
    spans = []
    with Ledger.open(":memory:") as ledger:
        for start in range(0, 2000, 200):
            before = time.process_time()
            for number in range(start, start + 200):
                ledger.reserve(charge(number, epsilon=math.inf))
            spans.append(time.process_time() - before)
        assert min(spans[5:]) < 4 * min(spans[:5])
        assert ledger.spent().epsilon == pytest.approx(
            compose(Unit.AGENT, [("g", skellam())] * 2000, DELTA).epsilon
        )
