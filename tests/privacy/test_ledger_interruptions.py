"""Whatever happens to the process that holds a ledger, no object under-states what was charged."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedrl.errors import (
    ConfigurationError,
    LedgerIntegrity,
    LocalProtocolError,
    PrivacyError,
    PrivfedrlError,
    StorageError,
)
from privfedrl.privacy.events import (
    DiscreteGaussianEvent,
    DpEvent,
    GaussianEvent,
    NoReleaseEvent,
    PoissonSampledEvent,
    SkellamEvent,
)
from privfedrl.privacy.ledger import Charge, Ledger
from privfedrl.privacy.participation import ParticipationRegister
from privfedrl.privacy.units import IntegerSensitivity, Unit

PLAN = bytes(range(32))
AGENT, PERSON, TRAJECTORY = Unit.AGENT, Unit.PERSON, Unit.TRAJECTORY
WHO, DELTA = "coordinator+1", 1e-5


def skellam(variance: int = 10**8, unit: Unit = AGENT) -> SkellamEvent:
    bound = IntegerSensitivity(l2_squared=10**6, l1=10**4, unit=unit)
    return SkellamEvent(sensitivity=bound, variance=variance)


def charge(number: int, **changes: Any) -> Charge:
    unit = changes.get("unit", AGENT)
    values = {
        "plan_digest": PLAN,
        "release_id": f"task/{number}/0",
        "group": f"batch-{number}",
        "unit": unit,
        "adversary": WHO,
        "event": skellam(unit=unit),
        "epsilon": 1e6,
        "delta": DELTA,
    }
    return Charge(**{**values, **changes})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def in_a_child(act: Callable[[], object], *, seconds: int = 5) -> int:
    """In a forked child: 0 if ``act`` raised LocalProtocolError, 1 if nothing, 2 if another error.

    And -SIGALRM if it hung.
    """
    child = os.fork()
    if child == 0:
        status = 2
        try:
            signal.alarm(seconds)
            act()
            status = 1
        except LocalProtocolError:
            status = 0
        except Exception:
            traceback.print_exc()
            raise
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# ---- an interrupt between any two statements ----------------------------------------------------


@contextlib.contextmanager
def interrupted_at(stop: int) -> Iterator[None]:
    """KeyboardInterrupt before the ``stop``-th line that the ledger's modules run.

    It takes the place of a coverage tool's tracer: use it in a process of its own.
    """
    seen = 0

    def count(frame: FrameType, event: str, _: object) -> Any:
        nonlocal seen
        if event == "line":
            seen += 1
            if seen == stop:
                raise KeyboardInterrupt
        return count

    def enter(frame: FrameType, event: str, _: object) -> Any:
        name = Path(frame.f_code.co_filename).name
        return count if "ledger" in name or name == "sqlite_files.py" else None

    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(None)


ACTIONS: dict[str, Callable[[Ledger, int], object]] = {
    "reserve": lambda ledger, row: ledger.reserve(charge(1)),
    "settle": lambda ledger, row: ledger.settle(row, skellam(2 * 10**8)),
    "declare": lambda ledger, row: ledger.declare_budget(Unit.PERSON, "x", 1.0, DELTA),
}


def interrupted(path: Path, action: str, stop: int) -> bool:
    """Whether the interrupt came before ``action`` was done; checks what is left behind."""
    with Ledger.open(path, timeout_s=0.2) as ledger:
        row = ledger.reserve(charge(0))
        try:
            with interrupted_at(stop):
                ACTIONS[action](ledger, row)
        except KeyboardInterrupt:
            pass
        else:
            return False
        with Ledger.open(path, read_only=True) as other:
            truth = other.spent(unit=AGENT).epsilon
        # the object either tells the truth or says nothing
        with contextlib.suppress(LocalProtocolError):
            assert ledger.spent(unit=AGENT).epsilon == truth
        # and never keeps others from charging
        with Ledger.open(path, timeout_s=0.2) as other:
            other.reserve(charge(7))
            truth = other.spent(unit=AGENT).epsilon
        with contextlib.suppress(LocalProtocolError):
            assert ledger.spent(unit=AGENT).epsilon == truth
    return True


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_an_interrupt_between_any_two_lines_leaves_the_truth_or_silence(
    tmp_path: Path, action: str
) -> None:
    def sweep() -> None:
        points = 0
        while interrupted(tmp_path / f"{points}.db", action, points + 1):
            points += 1
        assert points > 50

    assert in_a_child(sweep, seconds=120) == 1


def test_an_object_that_was_interrupted_over_a_row_says_that_it_must_be_opened_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with Ledger.open(path) as ledger:
        monkeypatch.setattr("privfedrl.privacy.ledger.absorb_entry", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ledger.reserve(charge(0))
        monkeypatch.undo()
        for act in (ledger.spent, ledger.accounts, ledger.verify, ledger.entries):
            with pytest.raises(LocalProtocolError, match="open the ledger again"):
                act()
        with pytest.raises(LocalProtocolError, match="open the ledger again"):
            ledger.reserve(charge(1))
    with Ledger.open(path) as ledger:
        assert len(ledger) == 1  # it had become durable


# ---- forks, folders and files that vanish -------------------------------------------------------


def test_a_child_forked_while_a_thread_holds_the_lock_does_not_hang(path: Path) -> None:
    with Ledger.open(path, timeout_s=2.0) as ledger:
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        refused: list[str] = []

        def wait() -> None:
            try:
                ledger.reserve(charge(0))
            except StorageError as error:
                refused.append(str(error))

        thread = threading.Thread(target=wait)
        thread.start()
        while ledger._lock.acquire(blocking=False):  # until the thread has it
            ledger._lock.release()
        assert in_a_child(lambda: ledger.reserve(charge(1))) == 0
        assert in_a_child(ledger.spent) == 0

        def close_and_ask() -> None:
            ledger.close()
            ledger.spent()

        assert in_a_child(close_and_ask) == 0
        thread.join()
        blocker.close()
        assert len(refused) == 1
        ledger.reserve(charge(2))  # the children took nothing away
        assert ledger.verify().entries == 1


def test_a_ledger_is_the_file_that_was_opened_wherever_the_process_goes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    (path.parent / "elsewhere").mkdir()
    with Ledger.open(path.name) as ledger, ParticipationRegister("register.db") as register:
        monkeypatch.chdir("elsewhere")
        ledger.reserve(charge(0))
        register.admit(PLAN, "r0", ["ann"], cap=2)
        assert list(Path.cwd().iterdir()) == []
    with Ledger.open(path) as ledger:
        assert len(ledger) == 1


@pytest.mark.parametrize("then", ["gone", "another"])
def test_rows_in_a_log_that_lost_its_name_stop_every_further_charge(path: Path, then: str) -> None:
    with Ledger.open(path) as ledger:
        ledger.reserve(charge(0))
        log = path.with_name(path.name + "-wal")
        log.unlink()
        if then == "another":
            log.write_bytes(b"")
        for act in (ledger.spent, lambda: ledger.reserve(charge(1))):
            with pytest.raises(LedgerIntegrity, match="write-ahead log"):
                act()


@pytest.mark.parametrize("then", ["gone", "another"])
def test_counts_in_a_log_that_lost_its_name_stop_every_further_admission(
    path: Path, then: str
) -> None:
    with ParticipationRegister(path) as register:
        register.admit(PLAN, "r0", ["ann"], cap=2)
        log = path.with_name(path.name + "-wal")
        log.unlink()
        if then == "another":
            log.write_bytes(b"")
        with pytest.raises(LedgerIntegrity, match="write-ahead log"):
            register.admit(PLAN, "r1", ["ann"], cap=2)


# ---- values that are no values ------------------------------------------------------------------

HUGE = 10**5000  # more digits than Python prints
TIMES = {"huge": HUGE, "minus huge": -HUGE}


@pytest.mark.parametrize("where", [None, b"x.db", 3, "a\0b", ""])
@pytest.mark.parametrize("opened", [Ledger.open, ParticipationRegister])
def test_what_is_no_path_is_refused_by_name(opened: Any, where: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"path of the (ledger|register)"):
        opened(where)


@pytest.mark.parametrize("wait", [float("nan"), float("inf"), -1, 1e300, "x", None, "huge"])
@pytest.mark.parametrize("opened", [Ledger.open, ParticipationRegister])
def test_a_wait_that_is_no_time_is_refused_by_name(path: Path, opened: Any, wait: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout_s"):
        opened(path, timeout_s=TIMES.get(wait, wait))
    assert not path.exists()


@pytest.mark.parametrize("time", [None, "x", "huge", "minus huge", 1e308, float("-inf")])
def test_a_clock_that_returns_no_time_stops_the_charge(time: Any) -> None:
    with Ledger.open(":memory:", clock=lambda: TIMES.get(time, time)) as ledger:
        with pytest.raises(ConfigurationError, match="clock"):
            ledger.reserve(charge(0))
        assert len(ledger) == 0


@pytest.mark.parametrize("row", [True, 1.0, "1", None, "huge"])
def test_a_row_is_settled_by_its_integer_only(row: Any) -> None:
    with Ledger.open(":memory:") as ledger:
        assert ledger.reserve(charge(0)) == 1
        with pytest.raises(PrivacyError, match="row_id"):
            ledger.settle(TIMES.get(row, row), skellam(2 * 10**8))
        assert ledger.verify().entries == 1


SENSITIVITY = IntegerSensitivity(l2_squared=1, l1=1, unit=AGENT)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GaussianEvent(noise_multiplier=HUGE, unit=AGENT),
        lambda: SkellamEvent(sensitivity=SENSITIVITY, variance=HUGE),
        lambda: SkellamEvent(
            sensitivity=IntegerSensitivity(l2_squared=HUGE, l1=1, unit=AGENT), variance=1
        ),
        lambda: DiscreteGaussianEvent(
            sensitivity=SENSITIVITY, variance=4, shares=HUGE, coordinates=1
        ),
        lambda: charge(0, epsilon=HUGE),
        lambda: charge(0, delta=HUGE),
    ],
)
def test_numbers_beyond_any_use_are_refused_and_not_printed(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigurationError, match=r"got an integer of [0-9]+ bits"):
        make()


# ---- settlements and the running account --------------------------------------------------------


def events_of(unit: Unit) -> list[DpEvent]:
    bound = IntegerSensitivity(l2_squared=9, l1=9, unit=unit)
    return [
        *(skellam(variance, unit) for variance in (10**7, 10**8, 10**10)),
        *(GaussianEvent(noise_multiplier=z, unit=unit) for z in (0.5, 3.0, 40.0)),
        DiscreteGaussianEvent(sensitivity=bound, variance=400, shares=3, coordinates=100),
        NoReleaseEvent(unit=unit),
    ]


@given(
    st.sampled_from(
        [
            *((PERSON, cap) for cap in (None, 1, 3)),
            (AGENT, None),
            *((TRAJECTORY, cap) for cap in (None, 1, 2, 3)),
        ]
    ),
    st.lists(
        st.tuples(
            st.integers(0, 7), st.integers(0, 2), st.none() | st.sampled_from(["same", "none"])
        ),
        max_size=12,
    ),
)
def test_every_row_of_the_odometer_is_the_running_account_at_that_row(
    account: tuple[Unit, int | None], rounds: list[tuple[int, int, str | None]]
) -> None:
    unit, cap = account
    with Ledger.open(":memory:") as ledger:
        ledger.declare_budget(unit, WHO, 1e9, DELTA)  # for any mixture of plans
        expected = []

        def note() -> None:
            (found,) = ledger.accounts()
            expected.append(found.running.epsilon)

        for number, (kind, plan, settled) in enumerate(rounds):
            event = events_of(unit)[kind]
            row = ledger.reserve(
                charge(
                    number,
                    unit=unit,
                    event=event,
                    plan_digest=bytes([plan]) * 32,
                    max_participations=cap,
                    epsilon=1e9,
                )
            )
            note()
            if settled is not None:
                ledger.settle(row, event if settled == "same" else NoReleaseEvent(unit=unit))
                note()
        rows = ledger.odometer(unit, WHO)
        assert [row.epsilon for row in rows] == pytest.approx(expected, rel=1e-9, abs=1e-300)
        assert ledger.verify().entries == len(ledger)


def test_a_settlement_at_which_a_bound_rises_never_makes_an_honest_ledger_invalid(
    path: Path,
) -> None:
    """The bound for a sample has another form at rate 1: the same release may be bounded worse."""

    def sampled(rate: float, noise: float) -> PoissonSampledEvent:
        event = GaussianEvent(noise_multiplier=noise, unit=AGENT)
        return PoissonSampledEvent(event=event, sampling_rate=rate)

    reserved, realised = sampled(1.0, 0.28702), sampled(0.999999, 0.28705)
    with Ledger.open(":memory:") as ledger:
        ledger.reserve(charge(0, event=reserved, delta=0.9))
        most = ledger.spent(delta=0.9).epsilon
    with Ledger.open(path) as ledger:
        row = ledger.reserve(charge(0, event=reserved, delta=0.9, epsilon=most * 1.0001))
        with contextlib.suppress(PrivfedrlError):
            ledger.settle(row, realised)
        assert ledger.verify().entries == len(ledger)
    with Ledger.open(path) as ledger:
        assert len(ledger) >= 1
