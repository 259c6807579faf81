"""How many episodes does a fleet need, and what does privacy cost it, beside published figures?

    python benchmarks/federated_pg.py [--json] [--arms NAME ...] [--seeds 1 2 3] [--save FOLDER]
    python benchmarks/federated_pg.py --list

Question: FedPG-BR (Fan et al. 2021, figure 1) is the published federated policy gradient on
CartPole, LunarLander and HalfCheetah; it has no privacy, and its server has an environment of its
own. What do our trainers reach with the same number of episodes per agent, without a server
environment, without and with differential privacy per trajectory?

Each run is one real ``privfedrl train`` process on a plan of ``benchmarks/plans``, with the
system's entropy where there is noise: figures vary a little from run to run even for one seed.
Returns are oracle values of the simulation on the nominal environment. Figures of FedPG-BR were
read off its plots (+-20, +-60 and +-60), for gymnasium's v0/v2 versions of the environments.
With ``--save`` every run is kept as FOLDER/plan.json as soon as it is done, and is not run again as
long as the text of the plan is the same: all arms take some hours. Exit status 1 when a target is
missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLANS = Path(__file__).parent / "plans"
NEVER = 10**9
Run = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One plan, and the figure of it that has a target.

    ``solved``: greedy return whose first reaching counts episodes; None where the last counts.
    ``at_most`` / ``at_least``: the target of the median over seeds; None = reported beside others.
    """

    group: str
    plan: str
    solved: float | None = None
    at_most: float | None = None
    at_least: float | None = None

    @property
    def figure(self) -> str:
        if self.solved is None:
            return "greedy return at the end"
        return f"episodes per agent to greedy {self.solved:g}"

    def value(self, run: Run) -> float:
        return run["greedy_return"] if self.solved is None else run["episodes_to_solved"]


ARMS = (
    Arm(group="cartpole", plan="fedpg_cartpole_k1", solved=475.0),
    Arm(group="cartpole", plan="fedpg_cartpole_k3", solved=475.0),
    Arm(group="cartpole", plan="fedpg_cartpole_k10", solved=475.0, at_most=1_000),
    Arm(group="cartpole", plan="cartpole_private", solved=475.0, at_most=300),
    Arm(group="lunarlander", plan="lunarlander", at_least=144.0),
    Arm(group="lunarlander", plan="lunarlander_private", at_least=144.0),
    Arm(group="halfcheetah", plan="halfcheetah_k3", at_least=1_091.0),
    Arm(group="halfcheetah", plan="halfcheetah_k10", at_least=1_233.0),
    Arm(group="halfcheetah", plan="halfcheetah_k3_private"),
    Arm(group="halfcheetah", plan="halfcheetah_k10_private"),
    Arm(group="agent-unit", plan="cartpole_agents_epsilon8"),
    Arm(group="agent-unit", plan="cartpole_agents_epsilon4"),
)


def train(arm: Arm, seed: int, out: Path) -> Run:
    """One run, and what has to be reported about it."""
    started = time.perf_counter()
    plan = PLANS / f"{arm.plan}.toml"
    command = [sys.executable, "-m", "privfedrl", "train", str(plan), "--out", str(out)]
    finished = subprocess.run(
        [*command, "--seed", str(seed), "--json"], check=True, capture_output=True, text=True
    )
    summary = json.loads(finished.stdout)
    rows = [
        json.loads(line) for line in (out / "oracle_simulation_only.jsonl").read_text().splitlines()
    ]
    level = NEVER if arm.solved is None else arm.solved
    reached = (row["episodes_per_agent"] for row in rows if (row["greedy_return"] or 0.0) >= level)
    return {
        "seed": seed,
        "agents": summary["agents"],
        "agent_episodes": summary["episodes_per_agent"],
        "total_episodes": summary["episodes_per_agent"] * summary["agents"],
        "rounds": summary["rounds"],
        "optimiser_steps": summary["rounds"],
        "bytes_up_per_agent": summary["bytes_up_per_agent_round"] * summary["rounds"],
        "unit": summary["unit"],
        "adversary": summary["adversary"],
        "epsilon": summary["epsilon"],
        "protection": summary["protection"],
        "greedy_return": summary["greedy_return"],
        "training_return": summary["mean_return_last"],
        "episodes_to_solved": next(reached, NEVER),
        "env_steps": summary["env_steps"],
        "wall_s": round(time.perf_counter() - started, 1),
        "curve": _curve(rows),
    }


def _curve(rows: Sequence[dict[str, Any]], points: int = 12) -> list[list[float | None]]:
    """[episodes per agent, training return, greedy return] at about ``points`` rounds."""
    every = max(1, len(rows) // points)
    chosen = [*rows[::every], rows[-1]]
    return [
        [row["episodes_per_agent"], _short(row["mean_return"]), _short(row["greedy_return"])]
        for row in chosen
    ]


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def kept(arm: Arm, folder: Path | None) -> dict[int, Run]:
    """Runs of the same plan that an earlier call saved, by seed."""
    path = None if folder is None else folder / f"{arm.plan}.json"
    if path is None or not path.exists():
        return {}
    saved = json.loads(path.read_text())
    same = saved["toml"] == (PLANS / f"{arm.plan}.toml").read_text()
    return {run["seed"]: run for run in saved["runs"]} if same else {}


def measure(
    arm: Arm, seeds: Sequence[int], folder: Path | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """All seeds of one arm, and its target."""
    runs, saved = [], kept(arm, folder)
    with tempfile.TemporaryDirectory() as scratch:
        for seed in seeds:
            run = saved.get(seed) or train(arm, seed, Path(scratch) / str(seed))
            runs.append(run)
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                every = {**saved, **{one["seed"]: one for one in runs}}
                text = json.dumps(judged(arm, [every[key] for key in sorted(every)]), indent=2)
                (folder / f"{arm.plan}.json").write_text(text + "\n")
            say(
                f"{arm.plan} seed {seed}: {arm.figure} {_shown(arm.value(run))}; at the end greedy "
                f"{run['greedy_return']:.0f}, training {run['training_return']:.0f} after "
                f"{run['agent_episodes']} episodes per agent, epsilon {run['epsilon']}, "
                f"{run['wall_s']:.0f} s"
            )
    return judged(arm, runs)


def judged(arm: Arm, runs: Sequence[Run]) -> dict[str, Any]:
    """The median of the runs against the arm's target."""
    median = statistics.median(arm.value(run) for run in runs)
    target = None
    if arm.at_most is not None:
        target = {"target": f"<= {arm.at_most:g}", "met": median <= arm.at_most}
    if arm.at_least is not None:
        target = {"target": f">= {arm.at_least:g}", "met": median >= arm.at_least}
    return {
        "plan": arm.plan,
        "figure": arm.figure,
        "median": median,
        "target": target,
        "toml": (PLANS / f"{arm.plan}.toml").read_text(),
        "runs": runs,
    }


def _shown(value: float) -> str:
    return "not reached" if value == NEVER else f"{value:.0f}"


def speed_up(results: Sequence[dict[str, Any]]) -> float | None:
    """Episodes per agent that one agent needs over those that ten need."""
    medians = {result["plan"]: result["median"] for result in results}
    one, ten = medians.get("fedpg_cartpole_k1"), medians.get("fedpg_cartpole_k10")
    return None if not one or not ten or NEVER in (one, ten) else round(one / ten, 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    parser.add_argument("--arms", nargs="+", default=[], help="plans or groups; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--save", type=Path, help="folder of finished runs, which are not run again"
    )
    parser.add_argument("--list", action="store_true", help="name the arms and stop")
    options = parser.parse_args()
    known = {arm.plan for arm in ARMS} | {arm.group for arm in ARMS}
    if options.list:
        print("\n".join(f"{arm.group}: {arm.plan}" for arm in ARMS))
        return 0
    if unknown := set(options.arms) - known:
        parser.error(f"unknown arms {sorted(unknown)}; one of {sorted(known)}")
    report = sys.stderr if options.json else sys.stdout

    def say(line: str) -> None:
        print(line, file=report, flush=True)

    chosen = [a for a in ARMS if not options.arms or {a.plan, a.group} & set(options.arms)]
    results = [measure(arm, options.seeds, options.save, say) for arm in chosen]
    for result in results:
        verdict = "reported"
        if result["target"]:
            verdict = f"target {result['target']['target']}: " + (
                "met" if result["target"]["met"] else "MISSED"
            )
        say(f"{result['plan']}: median {result['figure']} {_shown(result['median'])} ({verdict})")
    ratio = speed_up(results)
    if ratio is not None:
        say(f"episodes per agent, one agent over ten: {ratio}x")
    if options.json:
        print(json.dumps({"results": results, "speed_up_k1_over_k10": ratio}, indent=2))
    return 0 if all(r["target"] is None or r["target"]["met"] for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
