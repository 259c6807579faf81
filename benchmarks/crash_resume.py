"""What does a crash cost? Kill `privfedrl train` at random instants, resume, compare the books.

Each trial starts a run of a small fleet in its own directory, sends SIGKILL at a random instant
and resumes it with --resume until it is complete. Instants are uniform over the stages of a run
(start-up, every round, the end), so that start-up, which is mostly imports, does not take them all.

Targets, for every trial:
  charges    the coordinator and every agent hold as many reservations as an undisturbed run, or
             exactly one more (the round that the crash interrupted, charged at its worst case)
  chains     every ledger verifies from the first byte, and no batch of trajectories is in it twice
  metrics    every round is in metrics.jsonl and in the oracle file exactly once, transcripts too
  epsilon    the run's total stays within the plan's budget

    python benchmarks/crash_resume.py [--trials 20] [--seed 1] [--json]

Exit status 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from privfedrl.plan import Plan
from privfedrl.privacy import Ledger

PLAN = Path(__file__).parents[1] / "examples" / "plans" / "cartpole_fleet.toml"
TARGETS = ("charges", "chains", "metrics", "epsilon")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run, killed once (or never) and completed."""

    killed_at_s: float | None
    rounds_before: int
    reservations: int
    agent_reservations_max: int
    epsilon: float
    missed: tuple[str, ...]


def reduced_plan() -> Plan:
    """The CartPole fleet with fewer agents and shorter, fewer trajectories."""
    plan = Plan.from_toml(PLAN)
    plan = plan.replace("fleet", agents=6, trajectories=4, horizon=60)
    plan = plan.replace("policy", hidden=(8,))
    plan = plan.replace("federation", rounds=12)
    plan = plan.replace("privacy", epsilon=5.0, max_colluding=1)
    plan = plan.replace("protection", min_clients=4)
    return plan.replace("simulation", dropouts_per_round=1, evaluation_interval=10)


def command(plan: Path, out: Path) -> list[str]:
    """The command line of a run; --resume starts a run where there is none."""
    options = ["--out", str(out), "--seed", "3", "--workers", "1", "--resume", "--json"]
    return [sys.executable, "-m", "privfedrl", "train", str(plan), *options]


def rows(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a .jsonl file; none if it is not there yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def wait_for_rows(process: subprocess.Popen[bytes], out: Path, count: int) -> None:
    """Until that many rounds are recorded or the process has ended."""
    while len(rows(out / "metrics.jsonl")) < count and process.poll() is None:
        time.sleep(0.002)


def start_and_kill(plan: Path, out: Path, stage: int, delay_s: float) -> tuple[float, int]:
    """Kill a run ``delay_s`` after round ``stage``; seconds it lived and rounds it had recorded."""
    with subprocess.Popen(
        command(plan, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        started = time.monotonic()
        wait_for_rows(process, out, stage)
        deadline = time.monotonic() + delay_s
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        lived = time.monotonic() - started
    return lived, len(rows(out / "metrics.jsonl"))


def stage_times(plan: Path, out: Path, rounds: int) -> list[float]:
    """Seconds of start-up with the first round, of every later round, and of the end."""
    with subprocess.Popen(
        command(plan, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        marks = [time.monotonic()]
        for count in range(1, rounds + 1):
            wait_for_rows(process, out, count)
            marks.append(time.monotonic())
        process.wait()
        marks.append(time.monotonic())
    return [later - earlier for earlier, later in itertools.pairwise(marks)]


def complete(plan: Path, out: Path) -> dict[str, Any]:
    """Run to the end; the summary that `train --json` prints."""
    done = subprocess.run(command(plan, out), capture_output=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr.decode(errors="replace"))
        raise SystemExit(1)
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def charged(path: Path) -> tuple[int, bool]:
    """Reservations in a ledger, and whether it is whole and holds no batch twice."""
    with Ledger.open(path, read_only=True) as ledger:
        found = ledger.verify()
        groups = Counter(one.charge.group for one in ledger.reservations())
    return found.reservations, max(groups.values(), default=1) == 1


def judged(plan: Plan, out: Path, summary: dict[str, Any], **facts: Any) -> Trial:
    """Compare a finished directory with what an undisturbed run leaves."""
    rounds, extra = plan.federation.rounds, int(facts["killed_at_s"] is not None)
    server, whole = charged(out / "ledger.db")
    agents = [charged(path) for path in sorted(out.glob("agents/*/ledger.db"))]
    counts = [count for count, _ in agents]
    # an agent that drops out before its masked vector leaves is not charged for that round
    charges = rounds <= server <= rounds + extra and max(counts) <= rounds + extra
    expected = list(range(rounds))
    recorded = all(
        [row["round"] for row in rows(out / name)] == expected
        for name in ("metrics.jsonl", "oracle_simulation_only.jsonl")
    )
    transcripts = [int(path.stem) for path in sorted((out / "transcript").glob("*.bin"))]
    kept = {
        "charges": charges,
        "chains": whole and all(sound for _, sound in agents) and len(agents) == plan.fleet.agents,
        "metrics": recorded and transcripts == expected,
        "epsilon": 0 < summary["epsilon"] <= plan.privacy.epsilon,
    }
    return Trial(
        reservations=server,
        agent_reservations_max=max(counts),
        epsilon=summary["epsilon"],
        missed=tuple(name for name in TARGETS if not kept[name]),
        **facts,
    )


def measure(trials: int, seed: int, folder: Path) -> tuple[float, list[Trial]]:
    """One undisturbed run, then ``trials`` disturbed ones; the first trial is the undisturbed."""
    plan, file = reduced_plan(), folder / "plan.toml"
    file.write_text(plan.to_toml(), encoding="utf-8")
    stages = stage_times(file, folder / "undisturbed", plan.federation.rounds)
    # resuming a complete run prints its summary and adds nothing
    summary = complete(file, folder / "undisturbed")
    found = [judged(plan, folder / "undisturbed", summary, killed_at_s=None, rounds_before=0)]
    chance = random.Random(seed)
    instants = [divmod(chance.uniform(0, len(stages)), 1) for _ in range(trials)]

    def trial(index: int) -> Trial:
        out, (stage, part) = folder / f"trial-{index}", instants[index]
        lived, before = start_and_kill(file, out, int(stage), part * stages[int(stage)])
        facts = {"killed_at_s": round(lived, 3), "rounds_before": before}
        return judged(plan, out, complete(file, out), **facts)

    with ThreadPoolExecutor(max_workers=2) as pool:
        found += pool.map(trial, range(trials))
    return sum(stages), found


def table(whole_s: float, found: list[Trial]) -> str:
    """For people."""
    lines = [
        f"an undisturbed run takes {whole_s:.1f} s",
        f"{'killed at':>10} {'rounds':>7} {'charges':>8} {'per agent':>10} {'epsilon':>9}  targets",
    ]
    for trial in found:
        when = "never" if trial.killed_at_s is None else f"{trial.killed_at_s:.2f} s"
        verdict = "met" if not trial.missed else "MISSED: " + ", ".join(trial.missed)
        lines.append(
            f"{when:>10} {trial.rounds_before:>7} {trial.reservations:>8} "
            f"{trial.agent_reservations_max:>10} {trial.epsilon:>9.4f}  {verdict}"
        )
    missed = sum(bool(trial.missed) for trial in found)
    lines.append(f"{len(found) - missed} of {len(found)} runs met every target")
    return "\n".join(lines)


def main() -> int:
    """Measure, print, and say by the exit status whether every target was met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1, help="of the instants of the kills")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="crash-resume-") as folder:
        whole_s, found = measure(options.trials, options.seed, Path(folder))
    met = not any(trial.missed for trial in found)
    if options.json:
        figures = {"undisturbed_s": whole_s, "trials": [asdict(one) for one in found], "met": met}
        print(json.dumps(figures, indent=2))
    else:
        print(table(whole_s, found))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
