"""What does a smaller epsilon cost in return? CartPole, a trajectory or a whole agent as the unit.

    python benchmarks/return_epsilon.py [--json] [--out FILE] [--picture FILE] [--quick]
                                        [--seeds 1 2 3] [--units agent] [--workers 2]
    python benchmarks/return_epsilon.py --from FILE ... [--out FILE] [--picture FILE]

Trajectory unit: ``cartpole_fleet.toml`` (ten unequal poles, 70 rounds) with only privacy.epsilon
changed. Agent unit: ``cartpole_agent_unit.toml`` (500 unequal poles, 12 rounds), likewise. Nothing
is tuned per epsilon or per seed; one more arm lowers the server's learning rate by a public rule,
0.04 sqrt(epsilon), where epsilon is below 1. The sums are formed in the clear (protection "none"):
masked vectors add up to the same integers, and one epsilon runs with pairwise masking beside it.

Every point is made of whole ``privfedrl.simulate`` runs with the system's entropy, so results vary
from run to run even for the same seed. Epsilon is what the run's ledger says was spent. Returns are
oracle values of the simulation: no deployment could see them. Greedy: 20 episodes of the final
policy on the nominal pole. Training: mean over the fleet's own poles in the last round.
``--from`` reads the runs of earlier results instead of running anything; the rest is as ever.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PLANS = Path(__file__).parent.parent / "examples" / "plans"
PLAN = {"trajectory": "cartpole_fleet.toml", "agent": "cartpole_agent_unit.toml"}
# the last two of the first row lie below any published use: they show where learning stops
EPSILONS = {
    "trajectory": (8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.0625),
    "agent": (8.0, 4.0, 2.0, 1.0, 0.5),
}
MASKED_EPSILON = 1.0
LOWERED_EPSILONS = (0.5, 0.25)
SOLVED = 475.0
# the agent unit must gain this much over the untrained policy, in every seed, at epsilon 8
AGENT_MARGIN = 300.0
# chance of a rank correlation as high as found if epsilon had no effect at all
SIGNIFICANCE = 0.01
# of 500: policies that all but solve the task differ by a few points in either direction
SATURATED = 10.0
MAIN, LOWERED = "plan", "lowered rate"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run. ``epsilon`` is the plan's; None is the control without noise."""

    unit: str
    epsilon: float | None
    seed: int
    protection: str = "none"
    arm: str = MAIN

    @property
    def point(self) -> tuple[Any, ...]:
        """What the runs of all seeds share."""
        return (self.unit, self.arm, self.protection, self.epsilon)


def jobs(seeds: Iterable[int]) -> list[Job]:
    """Everything, long runs first so that no worker is idle at the end."""
    found = []
    for seed in seeds:
        found += [
            Job(unit=unit, epsilon=epsilon, seed=seed)
            for unit in ("agent", "trajectory")
            for epsilon in (None, *EPSILONS[unit])
        ]
        found.append(
            Job(unit="trajectory", epsilon=MASKED_EPSILON, seed=seed, protection="pairwise")
        )
        found += [
            Job(unit="trajectory", epsilon=epsilon, seed=seed, arm=LOWERED)
            for epsilon in LOWERED_EPSILONS
        ]
    return sorted(found, key=lambda job: (job.unit != "agent", job.protection == "none"))


def quick_jobs() -> list[Job]:
    """One seed of what the headline rests on."""
    return [
        Job(unit="agent", epsilon=8.0, seed=1),
        Job(unit="trajectory", epsilon=1.0, seed=1),
        Job(unit="trajectory", epsilon=0.25, seed=1),
    ]


def job_plan(job: Job) -> Any:
    """The plan file with what the job changes, and nothing else."""
    from privfedrl import Plan

    plan = Plan.from_toml(PLANS / PLAN[job.unit]).replace("protection", kind=job.protection)
    if job.epsilon is None:
        return plan.replace("privacy", mechanism="none")
    plan = plan.replace("privacy", epsilon=job.epsilon)
    if job.arm == LOWERED:
        rate = plan.federation.learning_rate * math.sqrt(min(job.epsilon, 1.0))
        plan = plan.replace("federation", learning_rate=rate)
    return plan


def run(job: Job) -> dict[str, Any]:
    """One whole simulation in this process; its figures."""
    from privfedrl import simulate
    from privfedrl.federation.setup import round_setup

    plan = job_plan(job)
    began, used = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        finished = simulate(plan, out=Path(folder) / "run", seed=job.seed)
        with finished.ledger as ledger:
            spent = ledger.spent()
        rows = [
            json.loads(line)
            for line in (Path(folder) / "run" / "oracle_simulation_only.jsonl")
            .read_text()
            .splitlines()
        ]
    summary = finished.summary
    reached = (row["episodes_per_agent"] for row in rows if (row["greedy_return"] or 0.0) >= SOLVED)
    noiseless = job.epsilon is None
    return {
        **asdict(job),
        "adversary": summary.adversary,
        "epsilon_spent": None if noiseless else spent.epsilon,
        "delta": plan.privacy.delta,
        "noise_multiplier": 0.0 if noiseless else round_setup(plan).noise_multiplier,
        "learning_rate": plan.federation.learning_rate,
        "greedy_return": summary.greedy_return,
        "training_return": summary.mean_return_last,
        "untrained_return": summary.mean_return_first,
        "episodes_to_greedy_475": next(reached, None),
        "agents": summary.agents,
        "rounds": summary.rounds,
        "episodes_per_agent": summary.episodes_per_agent,
        "episodes": summary.episodes_per_agent * summary.agents,
        "env_steps": summary.env_steps,
        "bytes_up_per_agent_round": summary.bytes_up_per_agent_round,
        "bytes_up": summary.bytes_up_per_agent_round * summary.rounds * summary.agents,
        "wall_s": round(time.perf_counter() - began, 1),
        "cpu_s": round(time.process_time() - used, 1),
        "plan_digest": summary.plan_digest,
    }


def run_all(todo: list[Job], workers: int, report: Any) -> list[dict[str, Any]]:
    """Run the jobs in ``workers`` processes of one thread each; results in the order of jobs."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before the workers start: two pools fight for two cores
    context = multiprocessing.get_context("spawn")
    results: dict[Job, dict[str, Any]] = {}
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        pending = {pool.submit(run, job): job for job in todo}
        for future in as_completed(pending):
            job, found = pending[future], future.result()
            results[job] = found
            spent = "no noise" if job.epsilon is None else f"epsilon {found['epsilon_spent']:.4f}"
            print(
                f"{job.unit}, {spent}, {job.protection}, {job.arm}, seed {job.seed}: greedy "
                f"{found['greedy_return']:.1f}, training {found['training_return']:.1f}, "
                f"{found['wall_s']} s",
                file=report,
                flush=True,
            )
    return [results[job] for job in todo]


# --- points: the runs of all seeds together -----------------------------------------------------

SHARED = [
    *("unit", "arm", "protection", "epsilon", "adversary", "delta", "noise_multiplier"),
    *("learning_rate", "agents", "rounds", "episodes_per_agent", "episodes"),
    *("bytes_up_per_agent_round", "bytes_up"),
]


def points(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per plan: what its runs share, and median, least and most over seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for one in runs:
        groups[(one["unit"], one["arm"], one["protection"], one["epsilon"])].append(one)
    found = []
    for group in groups.values():
        spent = [one["epsilon_spent"] for one in group if one["epsilon_spent"] is not None]
        found.append(
            {
                **{key: group[0][key] for key in SHARED},
                "epsilon_spent": max(spent, default=None),
                "seeds": [one["seed"] for one in group],
                **{
                    key: spread([one[key] for one in group])
                    for key in (
                        "greedy_return",
                        "training_return",
                        "untrained_return",
                        "wall_s",
                        "cpu_s",
                    )
                },
            }
        )
    order = {"trajectory": 0, "agent": 1}
    return sorted(
        found,
        key=lambda row: (
            order[row["unit"]],
            row["arm"] != MAIN,
            row["protection"],
            -(row["epsilon"] or math.inf),
        ),
    )


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {
        "median": round(statistics.median(values), 1),
        "min": round(min(values), 1),
        "max": round(max(values), 1),
    }


def sweep(rows: list[dict[str, Any]], unit: str) -> list[dict[str, Any]]:
    """The noised points of the main arm in the clear, epsilon falling."""
    return [
        row
        for row in rows
        if (row["unit"], row["arm"], row["protection"]) == (unit, MAIN, "none") and row["epsilon"]
    ]


# --- targets ------------------------------------------------------------------------------------


def targets(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The claims and whether they held; those whose runs are missing (``--quick``) are left out."""
    rows = points(runs)
    found = [most("largest share of the plan's epsilon that a run spent", spent_share(runs), 1.0)]
    for unit, protection, epsilon in (
        ("trajectory", "none", 1.0),
        ("trajectory", "pairwise", 1.0),
        ("trajectory", "none", 0.25),
        ("agent", "none", 8.0),
        ("agent", "none", 4.0),
    ):
        here = [r for r in rows if point_of(r) == (unit, MAIN, protection, epsilon)]
        name = f"median greedy return, {unit} unit, epsilon {epsilon:g}, protection {protection}"
        found += [least(name, row["greedy_return"]["median"], SOLVED) for row in here]
    gains = [
        one["training_return"] - one["untrained_return"]
        for one in runs
        if point_of(one) == ("agent", MAIN, "none", 8.0)
    ]
    if gains:
        name = "agent unit, epsilon 8: least gain in training return over the untrained policy"
        found.append(least(name, round(min(gains), 1), AGENT_MARGIN))
    for unit in PLAN:
        if len(sweep(rows, unit)) > 2:
            found += monotone(runs, rows, unit)
    return found


def point_of(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["unit"], row["arm"], row["protection"], row["epsilon"])


def spent_share(runs: list[dict[str, Any]]) -> float:
    return max(
        one["epsilon_spent"] / one["epsilon"] for one in runs if one["epsilon_spent"] is not None
    )


def monotone(
    runs: list[dict[str, Any]], rows: list[dict[str, Any]], unit: str
) -> list[dict[str, Any]]:
    """Less epsilon, less return: no pair of points is reversed beyond its seeds, and a trend."""
    from scipy.stats import spearmanr

    falling = sweep(rows, unit)
    reversed_pairs = [
        (high["epsilon"], low["epsilon"])
        for index, high in enumerate(falling)
        for low in falling[index + 1 :]
        if low["training_return"]["min"] > high["training_return"]["max"] + SATURATED
    ]
    each = [r for r in runs if (r["unit"], r["arm"], r["protection"]) == (unit, MAIN, "none")]
    noised = [r for r in each if r["epsilon"]]
    trend = spearmanr(
        [r["epsilon"] for r in noised],
        [r["training_return"] for r in noised],
        alternative="greater",
    )
    return [
        most(
            f"{unit} unit: pairs of epsilons where every seed of the smaller one trains to a "
            f"return higher by more than {SATURATED:g} than every seed of the larger one",
            len(reversed_pairs),
            0,
        ),
        most(
            f"{unit} unit: p-value of the rank correlation {trend.statistic:.2f} of epsilon with "
            "training return, over all runs, against none or a negative one",
            float(f"{trend.pvalue:.1e}"),
            SIGNIFICANCE,
        ),
    ]


def least(name: str, found: float, bound: float) -> dict[str, Any]:
    return {"name": name, "target": f">= {bound:g}", "found": found, "met": found >= bound}


def most(name: str, found: float, bound: float) -> dict[str, Any]:
    return {"name": name, "target": f"<= {bound:g}", "found": found, "met": found <= bound}


# --- the picture --------------------------------------------------------------------------------

COLOURS = {"trajectory": "#1f5fa8", "agent": "#c25e10"}
NAMES = {
    "trajectory": "unit: one trajectory (10 agents, 70 rounds)",
    "agent": "unit: one agent (500 agents, 12 rounds)",
}
MEASURES = {
    "greedy_return": "greedy return of the final policy",
    "training_return": "training return, last round, whole fleet",
}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Both returns against epsilon: medians, bands from the least to the most over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.5), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, measure in ((left, "greedy_return"), (right, "training_return")):
        _frame(axes, rows, MEASURES[measure])
        for unit, colour in COLOURS.items():
            _curve(axes, rows, unit, measure, colour)
    left.set_ylabel("return (oracle, simulation only)")
    figure.suptitle(
        "CartPole: what privacy costs in return, at delta = 1e-5 for the whole run", fontsize=11
    )
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=8.5, frameon=False, ncols=2)
    figure.savefig(path, metadata={"Software": None})


def _frame(axes: Any, rows: list[dict[str, Any]], title: str) -> None:
    axes.set_title(title, fontsize=9.5)
    axes.set_xscale("log", base=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e8eb", linewidth=0.8)
    ticks = sorted({row["epsilon"] for row in rows if row["epsilon"]})
    axes.set_xticks(ticks, [_tick(tick) for tick in ticks], fontsize=8.5)
    axes.set_ylim(0, 520)
    axes.set_yticks(range(0, 501, 100))
    axes.set_xlabel("epsilon spent by one unit (less to the left, log scale)", fontsize=9)


def _tick(value: float) -> str:
    return f"{value:g}" if value >= 0.25 else f"1/{1 / value:.0f}"


def _curve(axes: Any, rows: list[dict[str, Any]], unit: str, measure: str, colour: str) -> None:
    falling = sweep(rows, unit)
    spent = [row["epsilon_spent"] for row in falling]
    low, middle, high = ([row[measure][key] for row in falling] for key in ("min", "median", "max"))
    axes.fill_between(spent, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(spent, middle, color=colour, linewidth=2, marker="o", markersize=4, label=NAMES[unit])
    for row in rows:
        if (row["unit"], row["arm"]) != (unit, MAIN):
            continue
        if row["epsilon"] is None:
            axes.axhline(
                row[measure]["median"],
                color=colour,
                linewidth=1.1,
                linestyle=(0, (5, 3)) if unit == "trajectory" else (0, (1.5, 2)),
                label=f"no noise, {unit} unit: median",
            )
        elif row["protection"] == "pairwise":
            axes.plot(
                row["epsilon_spent"],
                row[measure]["median"],
                marker="D",
                markersize=9,
                markerfacecolor="none",
                markeredgecolor="#111418",
                linestyle="none",
                label="one trajectory, pairwise masking: median",
            )


# --- the command --------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the wall times were taken on."""
    return {"cores": os.cpu_count(), "python": platform.python_version()}


def print_points(rows: list[dict[str, Any]], report: Any) -> None:
    for row in rows:
        spent = "no noise" if row["epsilon"] is None else f"epsilon {row['epsilon_spent']:.4f}"
        greedy, training = row["greedy_return"], row["training_return"]
        print(
            f"{row['unit']:>10} {row['protection']:>8} {row['arm']:>12} {spent:>15}: greedy "
            f"{greedy['median']:.0f} ({greedy['min']:.0f} to {greedy['max']:.0f}), training "
            f"{training['median']:.0f} ({training['min']:.0f} to {training['max']:.0f}), noise "
            f"multiplier {row['noise_multiplier']:.2f}, {len(row['seeds'])} seeds",
            file=report,
        )


def measured(options: argparse.Namespace, report: Any) -> dict[str, Any]:
    """The runs that are asked for, run now."""
    todo = quick_jobs() if options.quick else jobs(options.seeds)
    began = time.perf_counter()
    runs = run_all([job for job in todo if job.unit in options.units], options.workers, report)
    return {
        "machine": {**machine(), "workers": options.workers},
        "wall_s": round(time.perf_counter() - began, 1),
        "runs": runs,
    }


def read(sources: list[Path]) -> dict[str, Any]:
    """The runs of earlier results together."""
    parts = [json.loads(source.read_text(encoding="utf-8")) for source in sources]
    return {
        "machine": parts[0]["machine"],
        "wall_s": round(sum(part["wall_s"] for part in parts), 1),
        "runs": [one for part in parts for one in part["runs"]],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--picture", type=Path, help="also draw the PNG here")
    parser.add_argument("--quick", action="store_true", help="one seed of three points")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--units", nargs="+", choices=sorted(PLAN), default=sorted(PLAN))
    parser.add_argument(
        "--from", dest="sources", type=Path, nargs="+", help="read results, run nothing"
    )
    options = parser.parse_args()
    report = sys.stderr if options.json else sys.stdout
    found = read(options.sources) if options.sources else measured(options, report)
    runs = found.pop("runs")
    result = {**found, "points": points(runs), "targets": targets(runs), "runs": runs}
    print_points(result["points"], report)
    for target in result["targets"]:
        verdict = "met" if target["met"] else "MISSED"
        print(f"{target['name']}: {target['found']} ({target['target']}): {verdict}", file=report)
    text = json.dumps(result, indent=1, allow_nan=False)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    if options.picture is not None:
        draw(result["points"], options.picture)
    if options.json:
        print(text)
    return 0 if all(target["met"] for target in result["targets"]) else 1


if __name__ == "__main__":
    sys.exit(main())
