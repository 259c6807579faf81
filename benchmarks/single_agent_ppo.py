"""How good is the PPO inside an agent by itself? Beside Stable-Baselines3 PPO, in the same run.

Question: does an agent's local learner waste episodes or time before privacy costs anything?

    python benchmarks/single_agent_ppo.py [--json] [--quick] [--seeds 1 2 3]

One process, one thread, no federation and no noise. The peer has RL-Zoo's presets (its linear
schedules for CartPole run over the preset's 100,000 steps). Both learners are judged by the same
code: the peer's networks are the same tanh networks, so they are copied into a flat vector, and
greedy returns come from the same start states. Time counts collecting and learning, not judging;
speeds are compared in processor seconds, because wall time also measures the neighbours.
A greedy CartPole policy can be good by luck after few steps, so the first of three good judgements
in a row is reported too (ours after every 8 trajectories, the peer's after every 256 steps).
LunarLander's training return is the mean over the episodes that ended in the last fifth of the
steps; the peer stops at a multiple of 16,384 steps, and ours learns from no more than that.
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
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from privfedrl.envs import EnvSpec, make_vector_env
from privfedrl.rollout import collect
from privfedrl.rollout.evaluate import greedy_return
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.training.ppo_learner import PpoLearner, PpoSettings

NEVER = 10**9
SOLVED = 475.0
IN_A_ROW = 3
CARTPOLE_STEPS, CARTPOLE_SECONDS = 27_000, 6.0
LUNAR_RETURN, LUNAR_SPEED = 0.9, 2.0
JUDGED_EPISODES = {"CartPole-v1": 20, "LunarLander-v3": 50}
JUDGING_SEED = 20_000
LAST_SHARE = 0.2
# the peer learns from 16 environments times 1,024 steps at a time, and stops at a multiple of that
PEER_BATCH = 16_384


@dataclass(frozen=True, kw_only=True)
class Task:
    """An environment and how each learner goes about it."""

    environment: str
    horizon: int
    policy: MlpPolicy
    trajectories: int
    settings: PpoSettings
    final_rate: float  # learning rate at the end, as a share of the first
    peer_envs: int
    peer: dict[str, Any]


def _policy(observations: int, actions: int) -> MlpPolicy:
    """The architecture of the peer: separate 64-64 tanh networks."""
    return MlpPolicy(
        observation_size=observations,
        hidden=(64, 64),
        action="categorical",
        action_size=actions,
        critic_hidden=(64, 64),
    )


CARTPOLE = Task(
    environment="CartPole-v1",
    horizon=500,
    policy=_policy(4, 2),
    trajectories=8,
    settings=PpoSettings(
        gamma=0.99,
        gae_lambda=0.95,
        epochs=20,
        minibatch_size=256,
        learning_rate=1e-3,
        entropy_weight=0.0,
        reset_optimiser=False,
        normalise_observations=True,
        value_scale=10.0,
    ),
    final_rate=1.0,
    peer_envs=8,
    peer={
        "n_steps": 32,
        "batch_size": 256,
        "gae_lambda": 0.8,
        "gamma": 0.98,
        "n_epochs": 20,
        "ent_coef": 0.0,
        "learning_rate": lambda left: 1e-3 * left,
        "clip_range": lambda left: 0.2 * left,
    },
)
LUNAR_LANDER = Task(
    environment="LunarLander-v3",
    horizon=1000,
    policy=_policy(8, 4),
    trajectories=8,
    settings=PpoSettings(
        gamma=0.99,
        gae_lambda=0.95,
        epochs=8,
        minibatch_size=128,
        learning_rate=1e-3,
        entropy_weight=0.01,
        reset_optimiser=False,
        normalise_observations=True,
        value_scale=10.0,
    ),
    final_rate=0.05,
    peer_envs=16,
    peer={
        "n_steps": 1024,
        "batch_size": 64,
        "gae_lambda": 0.98,
        "gamma": 0.999,
        "n_epochs": 4,
        "ent_coef": 0.01,
    },
)
# the peer's schedule for CartPole is over the preset's 1e5 steps, wherever the run is stopped
PEER_SCHEDULE = {"CartPole-v1": 100_000}


class Stopwatch:
    """Wall and processor seconds of collecting and learning; processor time ignores neighbours."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def start(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.wall += time.perf_counter() - self._wall
        self.cpu += time.process_time() - self._cpu


class Course:
    """What a learner did; stops the run when told to."""

    def __init__(self, task: Task, *, until_solved: bool) -> None:
        self.task, self.until_solved = task, until_solved
        self.judged: list[dict[str, float]] = []
        self.episodes: list[tuple[int, float]] = []
        self.watch = Stopwatch()
        self.parameters = np.zeros(task.policy.num_parameters)

    def judge(self, parameters: np.ndarray, steps: int) -> bool:
        """Note the greedy return after ``steps``; True when the run may stop."""
        now = {"steps": steps, "wall_s": self.watch.wall, "cpu_s": self.watch.cpu}
        self.judged.append({**now, "greedy": greedy(self.task, parameters)})
        return self.until_solved and self.reached(IN_A_ROW)["steps"] < NEVER

    def reached(self, in_a_row: int) -> dict[str, float]:
        """The first of ``in_a_row`` judgements of 475 or more."""
        for first in range(len(self.judged) - in_a_row + 1):
            if all(one["greedy"] >= SOLVED for one in self.judged[first : first + in_a_row]):
                return self.judged[first]
        return {**self.judged[-1], "steps": NEVER, "wall_s": float(NEVER), "cpu_s": float(NEVER)}

    def speed(self, steps: int) -> dict[str, float]:
        """Environment steps per second, collecting and learning."""
        return {
            "steps_per_s": steps / self.watch.wall,
            "steps_per_cpu_s": steps / self.watch.cpu,
        }

    def training_return(self, total: int) -> float:
        """Mean over the episodes that ended in the last fifth of the steps."""
        late = [value for step, value in self.episodes if step > (1.0 - LAST_SHARE) * total]
        return float(np.mean(late)) if late else float("nan")


def greedy(task: Task, parameters: np.ndarray) -> float:
    """Mean greedy return from start states that are the same for everybody."""
    return greedy_return(
        task.policy,
        parameters,
        EnvSpec(task.environment),
        episodes=JUDGED_EPISODES[task.environment],
        rng=JUDGING_SEED,
        horizon=task.horizon,
    )


def ours(task: Task, seed: int, limit: int, course: Course) -> int:
    """Whole trajectories, then PPO, until ``limit`` steps or the course is over."""
    rng = np.random.default_rng(seed)
    parameters = task.policy.initial_parameters(rng)
    learner = PpoLearner(task.policy, task.settings, rng=rng)
    env = make_vector_env(EnvSpec(task.environment), task.trajectories)
    steps = 0
    while steps < limit:
        course.watch.start()
        batch = collect(task.policy, parameters, env, horizon=task.horizon, rng=rng)
        new = int(batch.mask.sum())
        if steps + new > limit:
            break  # the peer has not seen more either
        rate = task.settings.learning_rate * (1.0 - (1.0 - task.final_rate) * steps / limit)
        steps += new
        parameters = learner.improve(parameters, batch, learning_rate=rate)
        course.watch.stop()
        course.episodes += [(steps, float(value)) for value in batch.returns]
        if course.until_solved and course.judge(parameters, steps):
            break
    env.close()
    course.parameters = parameters
    return steps


def peers(task: Task, seed: int, limit: int, course: Course) -> int:
    """Stable-Baselines3 PPO with RL-Zoo's preset."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from stable_baselines3 import PPO
        from stable_baselines3.common.callbacks import BaseCallback
        from stable_baselines3.common.env_util import make_vec_env

        model = PPO(
            "MlpPolicy",
            make_vec_env(task.environment, n_envs=task.peer_envs, seed=seed),
            seed=seed,
            device="cpu",
            verbose=0,
            **task.peer,
        )

    class Watch(BaseCallback):
        """Notes ended episodes; judges before each new collection, that is after each update."""

        def _on_step(self) -> bool:
            for info in self.locals["infos"]:
                if "episode" in info:
                    course.episodes.append((self.num_timesteps, float(info["episode"]["r"])))
            return not self.over

        def _on_training_start(self) -> None:
            self.over = False

        def _on_rollout_start(self) -> None:
            if course.until_solved and self.num_timesteps:
                course.watch.stop()
                self.over = course.judge(flat(task, self.model), self.num_timesteps)
                course.watch.start()

    schedule = PEER_SCHEDULE.get(task.environment, limit)
    course.watch.start()
    model.learn(min(limit, schedule), callback=Watch())
    course.watch.stop()
    course.parameters = flat(task, model)
    return int(model.num_timesteps)


def flat(task: Task, model: Any) -> np.ndarray:
    """The peer's networks as a flat vector of the same architecture."""
    state = model.policy.state_dict()
    names = [
        f"{part}.{kind}"
        for parts in (
            ("mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net"),
            ("mlp_extractor.value_net.0", "mlp_extractor.value_net.2", "value_net"),
        )
        for part in parts
        for kind in ("weight", "bias")
    ]
    vector = torch.cat([state[name].ravel() for name in names]).double().numpy()
    assert vector.shape == (task.policy.num_parameters,)
    return vector


def cartpole(seed: int, limit: int) -> dict[str, Any]:
    """Steps and seconds to a greedy 475, of both."""
    found: dict[str, Any] = {"seed": seed}
    for name, learn in (("ours", ours), ("stable_baselines3", peers)):
        course = Course(CARTPOLE, until_solved=True)
        steps = learn(CARTPOLE, seed, limit, course)
        found[name] = {
            "first": course.reached(1),
            "first_of_three": course.reached(IN_A_ROW),
            **course.speed(steps),
        }
    return found


def lunar_lander(seed: int, limit: int) -> dict[str, Any]:
    """Returns after ``limit`` steps and steps per second, of both."""
    found: dict[str, Any] = {"seed": seed}
    for name, learn in (("ours", ours), ("stable_baselines3", peers)):
        course = Course(LUNAR_LANDER, until_solved=False)
        steps = learn(LUNAR_LANDER, seed, limit, course)
        found[name] = {
            "steps": steps,
            "greedy": greedy(LUNAR_LANDER, course.parameters),
            "training": course.training_return(steps),
            **course.speed(steps),
        }
    return found


def median(runs: list[dict[str, Any]], *path: str) -> float:
    """The median over seeds of a figure at ``path``."""
    values = []
    for run in runs:
        value: Any = run
        for key in path:
            value = value[key]
        values.append(float(value))
    return statistics.median(values)


def targets(cart: list[dict[str, Any]], lunar: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The claims, and whether they held."""
    steps, seconds = (median(cart, "ours", "first", key) for key in ("steps", "wall_s"))
    rows = [
        ("CartPole, median env steps to greedy 475", "<=", CARTPOLE_STEPS, steps),
        ("CartPole, median seconds to greedy 475", "<=", CARTPOLE_SECONDS, seconds),
    ]
    for kind in ("training", "greedy"):
        peer, mine = (median(lunar, who, kind) for who in ("stable_baselines3", "ours"))
        # within 10 %: the peer's return can be negative
        floor = peer - (1.0 - LUNAR_RETURN) * abs(peer)
        rows.append((f"LunarLander, median {kind} return at equal steps", ">=", floor, mine))
    speeds = statistics.median(
        run["ours"]["steps_per_cpu_s"] / run["stable_baselines3"]["steps_per_cpu_s"]
        for run in lunar
    )
    rows.append(
        ("LunarLander, median ratio of env steps per processor second", ">=", LUNAR_SPEED, speeds)
    )
    return [
        {
            "name": name,
            "target": f"{sign} {limit:.6g}",
            "found": found,
            "met": found <= limit if sign == "<=" else found >= limit,
        }
        for name, sign, limit, found in rows
    ]


def ratios(cart: list[dict[str, Any]], lunar: list[dict[str, Any]]) -> dict[str, float]:
    """Ours over the peer's, of medians; below 1 is better for steps and seconds."""

    def ratio(runs: list[dict[str, Any]], *path: str) -> float:
        return median(runs, "ours", *path) / median(runs, "stable_baselines3", *path)

    return {
        "cartpole_steps_to_475": ratio(cart, "first", "steps"),
        "cartpole_cpu_s_to_475": ratio(cart, "first", "cpu_s"),
        "cartpole_steps_to_475_three_in_a_row": ratio(cart, "first_of_three", "steps"),
        "cartpole_steps_per_cpu_s": ratio(cart, "steps_per_cpu_s"),
        "lunar_lander_steps_per_s": ratio(lunar, "steps_per_s"),
        "lunar_lander_steps_per_cpu_s": ratio(lunar, "steps_per_cpu_s"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    parser.add_argument(
        "--quick", action="store_true", help="LunarLander for 49,152 steps, not 196,608"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--lunar-steps", type=int, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = sys.stderr if options.json else sys.stdout
    lunar_steps = options.lunar_steps or (3 if options.quick else 12) * PEER_BATCH
    cart, lunar = [], []
    for seed in options.seeds:
        run = cartpole(seed, limit=100_000)
        cart.append(run)
        for who in ("ours", "stable_baselines3"):
            first, three = run[who]["first"], run[who]["first_of_three"]
            print(
                f"CartPole seed {seed}, {who}: greedy 475 after {first['steps']:,} steps, "
                f"{first['wall_s']:.2f} s ({first['cpu_s']:.2f} s of processor); three in a row "
                f"from {three['steps']:,} steps; {run[who]['steps_per_cpu_s']:,.0f} steps/cpu s",
                file=report,
                flush=True,
            )
    for seed in options.seeds:
        run = lunar_lander(seed, lunar_steps)
        lunar.append(run)
        for who in ("ours", "stable_baselines3"):
            one = run[who]
            print(
                f"LunarLander seed {seed}, {who}: {one['steps']:,} steps, training "
                f"{one['training']:.1f}, greedy {one['greedy']:.1f}, "
                f"{one['steps_per_cpu_s']:,.0f} steps/cpu s",
                file=report,
                flush=True,
            )
    found, compared = targets(cart, lunar), ratios(cart, lunar)
    for name, value in compared.items():
        print(f"{name}: {value:.3f} x Stable-Baselines3 PPO", file=report)
    for target in found:
        verdict = "met" if target["met"] else "MISSED"
        print(
            f"{target['name']}: {target['found']:.6g} (target {target['target']}): {verdict}",
            file=report,
        )
    if options.json:
        result = {
            "cartpole": cart,
            "lunar_lander": lunar,
            "lunar_lander_steps": lunar_steps,
            "ratios": compared,
            "targets": found,
            "threads": 1,
        }
        print(json.dumps(result, indent=2))
    return 0 if all(target["met"] for target in found) else 1


if __name__ == "__main__":
    sys.exit(main())
