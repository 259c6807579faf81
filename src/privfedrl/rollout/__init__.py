"""Stage 2: rollout. Policy parameters and environments in, whole trajectories out.

Guarantee: everything made here is private to the agent; nothing here sends anything.
"""

from __future__ import annotations

from privfedrl.rollout.collect import collect, collect_fleet
from privfedrl.rollout.evaluate import greedy_return
from privfedrl.rollout.mixture import Guide
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.returns import returns_to_go, whiten_per_trajectory
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.rollout.workers import RolloutWorkers

__all__ = [
    "Guide",
    "MlpPolicy",
    "RolloutWorkers",
    "TrajectoryBatch",
    "collect",
    "collect_fleet",
    "greedy_return",
    "returns_to_go",
    "whiten_per_trajectory",
]
