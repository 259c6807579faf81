"""How many episodes does the private fleet need? Seeds 1 to 5 of the CartPole fleet plan.

Question: does trajectory-level epsilon = 1 under secure aggregation still learn faster than a
published federated policy gradient without privacy, which needs about 1,000 episodes per agent to
a greedy return of 475 (FedPG-BR with ten agents, Fan et al. 2021, figure 1)?

    python benchmarks/cartpole_epsilon.py [--json] [--seeds 1 2 3 4 5]

Each seed is one real ``privfedrl train`` process with the system's entropy, so results vary a
little from run to run even for the same seed. Returns are oracle values of the simulation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PLAN = Path(__file__).parent.parent / "examples" / "plans" / "cartpole_fleet.toml"
SOLVED = 475.0
MEDIAN_EPISODES = 500
EPSILON = 1.0
NEVER = 10**9


def train(seed: int, out: Path) -> dict[str, Any]:
    """One run; its summary and the episodes per agent to the first greedy return of 475."""
    command = [sys.executable, "-m", "privfedrl", "train", str(PLAN), "--out", str(out)]
    finished = subprocess.run(
        [*command, "--seed", str(seed), "--json"], check=True, capture_output=True, text=True
    )
    summary = json.loads(finished.stdout)
    rows = [
        json.loads(line) for line in (out / "oracle_simulation_only.jsonl").read_text().splitlines()
    ]
    reached = (row["episodes_per_agent"] for row in rows if (row["greedy_return"] or 0.0) >= SOLVED)
    keys = ("epsilon", "delta", "mean_return_last", "greedy_return", "wall_s", "env_steps")
    return {
        "seed": seed,
        "episodes_to_greedy_475": next(reached, NEVER),
        **{key: summary[key] for key in keys},
    }


def targets(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The claims and whether they held."""
    median = statistics.median(run["episodes_to_greedy_475"] for run in runs)
    epsilon = max(run["epsilon"] for run in runs)
    return [
        {
            "name": "median episodes per agent to greedy 475",
            "target": f"<= {MEDIAN_EPISODES}",
            "found": median,
            "met": median <= MEDIAN_EPISODES,
        },
        {
            "name": "largest epsilon spent by a trajectory",
            "target": f"<= {EPSILON}",
            "found": epsilon,
            "met": epsilon <= EPSILON,
        },
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    options = parser.parse_args()
    report = sys.stderr if options.json else sys.stdout
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            run = train(seed, Path(folder) / str(seed))
            runs.append(run)
            print(
                f"seed {seed}: greedy 475 after {run['episodes_to_greedy_475']} episodes per "
                f"agent; at the end training {run['mean_return_last']:.1f}, greedy "
                f"{run['greedy_return']:.1f}, epsilon {run['epsilon']:.4f}, {run['wall_s']:.1f} s",
                file=report,
                flush=True,
            )
    found = targets(runs)
    for target in found:
        verdict = "met" if target["met"] else "MISSED"
        print(
            f"{target['name']}: {target['found']} (target {target['target']}): {verdict}",
            file=report,
        )
    if options.json:
        print(json.dumps({"runs": runs, "targets": found}, indent=2))
    return 0 if all(target["met"] for target in found) else 1


if __name__ == "__main__":
    sys.exit(main())
