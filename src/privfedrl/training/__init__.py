"""Stage 3: a trajectory batch becomes a clipped local update.

Importing this package loads numpy only. A name that needs torch loads it on first use, and raises
MissingExtraError (extra "rl") if it is absent.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from privfedrl.errors import MissingExtraError
from privfedrl.training.clip_groups import ClipGroup, clip_by_group, total_clip
from privfedrl.training.local_update import LocalUpdate, clip_rows
from privfedrl.training.metric_coordinates import ClipQuantile, ReturnRelease, row_groups
from privfedrl.training.subjects import Grouping, distinct_subjects, grouped

if TYPE_CHECKING:
    from privfedrl.training.algorithms import Models, Objective
    from privfedrl.training.dqn_learner import DqnLearner, DqnSettings
    from privfedrl.training.local_trainer import LocalTrainer
    from privfedrl.training.networks import TorchMlp
    from privfedrl.training.policy_file import load_policy, save_policy
    from privfedrl.training.ppo_learner import PpoLearner, PpoSettings
    from privfedrl.training.private_step import private_rows
    from privfedrl.training.reinforce import Truncation, trajectory_weights
    from privfedrl.training.settings import TrainerSettings

__all__ = [
    "ClipGroup",
    "ClipQuantile",
    "DqnLearner",
    "DqnSettings",
    "Grouping",
    "LocalTrainer",
    "LocalUpdate",
    "Models",
    "Objective",
    "PpoLearner",
    "PpoSettings",
    "ReturnRelease",
    "TorchMlp",
    "TrainerSettings",
    "Truncation",
    "clip_by_group",
    "clip_rows",
    "distinct_subjects",
    "grouped",
    "load_policy",
    "private_rows",
    "row_groups",
    "save_policy",
    "total_clip",
    "trajectory_weights",
]

_LAZY = {
    "DqnLearner": "dqn_learner",
    "DqnSettings": "dqn_learner",
    "LocalTrainer": "local_trainer",
    "Models": "algorithms",
    "Objective": "algorithms",
    "PpoLearner": "ppo_learner",
    "PpoSettings": "ppo_learner",
    "TorchMlp": "networks",
    "TrainerSettings": "settings",
    "Truncation": "reinforce",
    "load_policy": "policy_file",
    "private_rows": "private_step",
    "save_policy": "policy_file",
    "trajectory_weights": "reinforce",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_LAZY[name]}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "torch":
            raise
        raise MissingExtraError("torch", extra="rl") from error
    value = getattr(module, name)
    globals()[name] = value  # later look-ups skip this function
    return value
