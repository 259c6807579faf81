"""Environment steps a second: fleet rollout and whole training, beside Stable-Baselines3 PPO.

Question: is collecting and learning from trajectories ever the bottleneck of a private fleet?

    python benchmarks/rollout.py [--json]

One process, one thread. The rollout arm rolls the CartPole fleet with a policy that balances; the
training arm runs whole rounds (rollout, per-trajectory gradients, clipping, rotation, rounding,
Skellam noise, ring sum, server step) from that policy. The peer is Stable-Baselines3 PPO with the
RL-Zoo preset for CartPole-v1 (eight environments, 32 steps, 20 epochs, batch 256). All arms take
turns in one run; ratios are more trustworthy than absolute figures.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from privfedrl.envs import heterogeneous
from privfedrl.federation.contribution import contribute, local_trainer, published_model
from privfedrl.federation.setup import RoundSetup, round_setup
from privfedrl.federation.strategies import initial_state, released_mean, server_step
from privfedrl.plan import Plan
from privfedrl.rollout import TrajectoryBatch, collect_fleet
from privfedrl.secagg import ideal_sum

PLAN = Path(__file__).parent.parent / "examples" / "plans" / "cartpole_fleet.toml"
TARGET_TRAINING = 300_000.0
WARM_UP_ROUNDS = 45


class Trainer:
    """Rounds of the fleet in the clear: every computation of a run but keys and ledgers."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.setup: RoundSetup = round_setup(plan)
        fleet = plan.fleet
        self.specs = heterogeneous(
            fleet.environment, level=fleet.level, agents=fleet.agents, seed=1
        )
        self.rngs = [np.random.default_rng([1, k]) for k in range(fleet.agents)]
        self.trainers = [local_trainer(self.setup) for _ in self.specs]
        rng = np.random.default_rng(1)
        self.parameters = np.asarray(self.setup.policy.initial_parameters(rng), dtype=np.float64)
        self.optimizer = initial_state(self.parameters.shape[0])

    def rollout(self) -> list[TrajectoryBatch]:
        """One batch of every agent."""
        batches = collect_fleet(
            self.setup.policy,
            self.parameters,
            self.specs,
            self.plan.fleet.trajectories,
            horizon=self.plan.fleet.horizon,
            rngs=self.rngs,
        )
        return [batch for batch in batches if isinstance(batch, TrajectoryBatch)]

    def round(self) -> int:
        """One whole round; returns its environment steps."""
        batches, seed = self.rollout(), os.urandom(32)
        vectors = {
            str(k): contribute(
                self.setup,
                self.trainers[k],
                published_model(self.setup, self.parameters),
                experience=lambda theta, step, batch=batch: batch,
                rotation_seed=seed,
                entropy=os.urandom,
            ).vector
            for k, batch in enumerate(batches)
        }
        total = ideal_sum(vectors, vectors, ring_bits=self.plan.encoding.ring_bits)
        released = released_mean(self.setup, total, survivors=len(vectors), seed=seed)
        self.parameters, self.optimizer = server_step(
            self.plan.federation,
            self.parameters,
            self.optimizer,
            released.direction,
            noise_variance=released.noise_variance,
        )
        return steps_of(batches)


def steps_of(batches: list[TrajectoryBatch]) -> int:
    """Environment steps in the batches."""
    return sum(int(batch.lengths.sum()) for batch in batches)


def timed(act: Any) -> float:
    """Environment steps per second of one call."""
    started = time.perf_counter()
    steps = act()
    return float(steps / (time.perf_counter() - started))


def stable_baselines() -> Any:
    """PPO with the RL-Zoo preset for CartPole-v1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from stable_baselines3 import PPO
        from stable_baselines3.common.env_util import make_vec_env

        return PPO(
            "MlpPolicy",
            make_vec_env("CartPole-v1", n_envs=8, seed=1),
            n_steps=32,
            batch_size=256,
            gae_lambda=0.8,
            gamma=0.98,
            n_epochs=20,
            ent_coef=0.0,
            learning_rate=1e-3,
            clip_range=0.2,
            seed=1,
            device="cpu",
            verbose=0,
        )


def measure(repeats: int) -> dict[str, Any]:
    """All arms in turn, ``repeats`` times; medians and ratios."""
    torch.set_num_threads(1)
    fleet, peer = Trainer(Plan.from_toml(PLAN)), stable_baselines()
    started, learned = time.perf_counter(), 0
    for _ in range(WARM_UP_ROUNDS):
        learned += fleet.round()
    from_scratch = learned / (time.perf_counter() - started)

    def peer_steps() -> int:
        peer.learn(4096, reset_num_timesteps=False)
        return 4096

    arms = {
        "rollout": lambda: steps_of(fleet.rollout()),
        "training": fleet.round,
        "stable_baselines3_ppo": peer_steps,
    }
    figures: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, act in arms.items():
            figures[name].append(timed(act))
    medians = {name: statistics.median(values) for name, values in figures.items()}
    return {
        "env_steps_per_s": medians | {"training_from_scratch": from_scratch},
        "ratio_to_stable_baselines3": {
            name: medians[name] / medians["stable_baselines3_ppo"]
            for name in ("rollout", "training")
        },
        "repeats": repeats,
        "threads": 1,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    found = measure(options.repeats)
    rates = found["env_steps_per_s"]
    met = rates["training"] >= TARGET_TRAINING
    found["targets"] = [
        {
            "name": "whole training loop, env steps/s on one core",
            "target": TARGET_TRAINING,
            "found": rates["training"],
            "met": met,
        }
    ]
    report = sys.stderr if options.json else sys.stdout
    for name, rate in rates.items():
        print(f"{name:<24} {rate:>12,.0f} env steps/s", file=report)
    for name, ratio in found["ratio_to_stable_baselines3"].items():
        print(f"{name:<24} {ratio:>12.1f} x Stable-Baselines3 PPO", file=report)
    verdict = "met" if met else "missed"
    print(
        f"target: training >= {TARGET_TRAINING:,.0f} env steps/s on one core: {verdict}",
        file=report,
    )
    if options.json:
        print(json.dumps(found, indent=2))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
