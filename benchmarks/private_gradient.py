"""What does a per-trajectory gradient cost, next to the same gradient without privacy?

    python benchmarks/private_gradient.py [--json] [--rounds 60]

64 trajectories of 200 steps, tanh network 8-64-64-4, one thread. Each arm runs once per round, in
turn, so that a slow moment of the machine hits all arms alike; the result is the ratio of medians
to an ordinary backward pass of the same loss (forward and backward, same network, same
preparation). Exit status 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.training.local_update import clip_rows
from privfedrl.training.networks import TorchMlp
from privfedrl.training.trajectory_gradients import Terms, fused, hooks, loop, objective, prepare

TRAJECTORIES, STEPS, OBSERVATION, ACTIONS, HIDDEN = 64, 200, 8, 4, (64, 64)
TARGETS = {"fused": 1.25, "fused + clip": None, "hooks": 1.6, "loop": None}
BASELINE = "non-private"


def make_inputs(seed: int) -> tuple[TorchMlp, TrajectoryBatch, np.ndarray]:
    rng = np.random.default_rng(seed)
    policy = MlpPolicy(
        observation_size=OBSERVATION, hidden=HIDDEN, action="categorical", action_size=ACTIONS
    )
    shape = (TRAJECTORIES, STEPS)
    batch = TrajectoryBatch(
        observations=rng.normal(size=(*shape, OBSERVATION)).astype(np.float32),
        actions=rng.integers(0, ACTIONS, shape),
        rewards=np.ones(shape, dtype=np.float32),
        mask=np.ones(shape, dtype=np.bool_),
        terminated=np.zeros(TRAJECTORIES, dtype=np.bool_),
        truncated=np.ones(TRAJECTORIES, dtype=np.bool_),
    )
    weights = rng.normal(size=shape).astype(np.float32)
    return TorchMlp(policy, policy.initial_parameters(rng)), batch, weights


def arms(
    network: TorchMlp, batch: TrajectoryBatch, weights: np.ndarray
) -> dict[str, Callable[[], object]]:
    def non_private() -> object:
        steps = prepare(network, batch, weights, Terms(0.0))
        return torch.autograd.grad(
            objective(network(steps.observations), steps, network.policy.action),
            list(network.parameters()),
        )

    return {
        BASELINE: non_private,
        "fused": lambda: fused(network, batch, weights, Terms(0.0)),
        "fused + clip": lambda: clip_rows(fused(network, batch, weights, Terms(0.0)).numpy(), 1.0),
        "hooks": lambda: hooks(network, batch, weights, Terms(0.0)),
        "loop": lambda: loop(network, batch, weights, Terms(0.0)),
    }


def measure(rounds: int) -> dict[str, float]:
    """Median milliseconds of each arm over interleaved rounds."""
    functions = arms(*make_inputs(seed=0))
    for function in functions.values():  # first calls load kernels
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def report(rounds: int) -> dict[str, object]:
    milliseconds = measure(rounds)
    results = []
    for name, target in TARGETS.items():
        ratio = milliseconds[name] / milliseconds[BASELINE]
        met = None if target is None else ratio <= target
        results.append({"arm": name, "ratio": round(ratio, 3), "target": target, "met": met})
    return {
        "benchmark": "private_gradient",
        "trajectories": TRAJECTORIES,
        "steps": STEPS,
        "network": [OBSERVATION, *HIDDEN, ACTIONS],
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "median_ms": {name: round(value, 3) for name, value in milliseconds.items()},
        "results": results,
        "all_met": all(result["met"] is not False for result in results),
    }


def table(outcome: dict) -> str:
    lines = [f"{'arm':<14}{'median ms':>10}{'ratio':>8}{'target':>8}  verdict"]
    lines.append(f"{BASELINE:<14}{outcome['median_ms'][BASELINE]:>10.2f}{1.0:>8.2f}")
    words = {True: "met", False: "MISSED", None: "for scale"}
    for row in outcome["results"]:
        target = "-" if row["target"] is None else f"{row['target']:.2f}"
        lines.append(
            f"{row['arm']:<14}{outcome['median_ms'][row['arm']]:>10.2f}{row['ratio']:>8.2f}"
            f"{target:>8}  {words[row['met']]}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--rounds", type=int, default=60, help="repetitions of every arm")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds must be >= 1, got {options.rounds}")
    torch.set_num_threads(1)
    outcome = report(options.rounds)
    print(table(outcome), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps(outcome))
    return 0 if outcome["all_met"] else 1


if __name__ == "__main__":
    sys.exit(main())
