"""The example with three processes: what it prints is what its participants' files hold."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from privfedrl import Ledger
from privfedrl.he import HETranscript

SCRIPT = Path(__file__).parents[2] / "examples" / "homomorphic_three_processes.py"
PARTIES = ("agents/site-0", "coordinator", "key-authority")
AGENTS = tuple(f"site-{index}" for index in range(5))


def _start(home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error::ResourceWarning"},
    )


def test_the_example_trains_over_tcp_and_leaves_three_ledgers_that_agree(tmp_path: Path) -> None:
    running = _start(tmp_path / "run")
    # the pipes end when no process that the example has started holds them any more
    out, err = running.communicate(timeout=180)
    assert running.returncode == 0, out + err
    assert err == ""
    assert out.count("opened one sum") == out.count("has its receipt") == 3
    assert out.count(f"sum of {', '.join(AGENTS)}") == 3
    assert "loaded of torch and tenseal: neither" in out
    assert "3 transcripts verify" in out
    heads = set()
    for party in PARTIES:
        with Ledger.open(tmp_path / "run" / party / "ledger.db", read_only=True) as ledger:
            assert len(ledger.reservations()) == 3
            assert out.count(f"epsilon {ledger.spent().epsilon:.4f}") == 9
            heads.add(ledger.head)
    assert len(heads) == len(PARTIES)  # each has an account of its own
    records = sorted((tmp_path / "run" / "coordinator").glob("transcript-*.bin"))
    receipts = [HETranscript.from_bytes(record.read_bytes()).receipt for record in records]
    assert [receipt.readding for receipt in receipts] == ["key-authority"] * 3
    assert len({receipt.key for receipt in receipts}) == 3  # a key for each round


@pytest.mark.slow
@pytest.mark.parametrize("lost", range(3))
def test_the_loss_of_any_process_fails_the_example_and_ends_the_others(
    tmp_path: Path, lost: int
) -> None:
    running = _start(tmp_path / "run")
    assert running.stdout is not None
    for line in running.stdout:
        if "opened one sum" in line:  # in the first of three rounds
            break
    os.kill(_roles(running.pid)[lost], signal.SIGKILL)
    out, err = running.communicate(timeout=180)
    assert running.returncode == 1
    assert "a process failed" in err
    assert "transcripts verify" not in out


def _roles(parent: int) -> list[int]:
    """The three processes that play a role; the interpreter starts one more, for itself."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            status = (process / "stat").read_text(encoding="utf-8")
            arguments = (process / "cmdline").read_bytes()
        except OSError:  # ended meanwhile
            continue
        is_child = int(status.rpartition(")")[2].split()[1]) == parent
        if is_child and b"spawn_main" in arguments:
            found.append(int(process.name))
    assert len(found) == 3
    return sorted(found)
