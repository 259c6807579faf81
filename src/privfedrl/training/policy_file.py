"""Policy parameters on disk: one safetensors file, bound to the plan that trained it.

Guarantee: a file is replaced whole or not at all, and loads only for the plan digest and the
architecture that it was saved for. safetensors holds numbers only; loading runs no code.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from privfedrl.durable_files import write_atomically
from privfedrl.errors import ConfigurationError, MissingExtraError, StorageError
from privfedrl.rollout.policies import MlpPolicy

__all__ = ["load_policy", "save_policy"]

FORMAT = "privfedrl-policy-1"
TENSOR = "parameters"


def save_policy(
    path: str | os.PathLike[str],
    policy: MlpPolicy,
    parameters: NDArray[np.float64],
    *,
    plan_digest: bytes,
) -> None:
    """Write ``parameters`` float64 [d] to ``path``, atomically and durably.

    Raises:
        ConfigurationError: parameters are not finite floats [d].
        StorageError: the file cannot be written; an older file at ``path`` is left as it was.
    """
    policy.checked(parameters)
    metadata = {"format": FORMAT, "plan_digest": plan_digest.hex(), "policy": _describe(policy)}
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise MissingExtraError("safetensors", extra="rl") from error
    tensor = np.ascontiguousarray(parameters, dtype=np.float64)
    write_atomically(Path(path), save({TENSOR: tensor}, metadata=metadata))


def load_policy(
    path: str | os.PathLike[str], policy: MlpPolicy, *, plan_digest: bytes
) -> NDArray[np.float64]:
    """The parameters float64 [d] saved by :func:`save_policy` for the same policy and plan.

    Raises:
        StorageError: the file is missing, unreadable or not a policy file.
        ConfigurationError: it belongs to another plan or another architecture.
    """
    metadata, tensor = _read(Path(path))
    if metadata.get("format") != FORMAT or tensor.dtype != np.float64:
        raise StorageError(f"{path} is not a {FORMAT} file")
    expected = {"plan_digest": plan_digest.hex(), "policy": _describe(policy)}
    for name, value in expected.items():
        if metadata.get(name) != value:
            raise ConfigurationError(
                f"{name} of {path} must be {value}, got {metadata.get(name, 'nothing')}"
            )
    policy.checked(tensor)
    return tensor


def _describe(policy: MlpPolicy) -> str:
    hidden = ",".join(map(str, policy.hidden))
    memory = f" gru {policy.recurrent}" if policy.recurrent else ""
    actor = (
        f"mlp tanh {policy.observation_size}{memory} [{hidden}] {policy.action} "
        f"{policy.action_size}"
    )
    if policy.bounds is not None:
        actor += f" squashed into [{policy.bounds[0]!r}, {policy.bounds[1]!r}]"
    if policy.critic_hidden is None:
        return actor
    return f"{actor}; critic [{','.join(map(str, policy.critic_hidden))}]"


def _read(path: Path) -> tuple[dict[str, str], NDArray[np.float64]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtraError("safetensors", extra="rl") from error
    try:
        with safe_open(str(path), framework="numpy") as file:
            return dict(file.metadata() or {}), file.get_tensor(TENSOR)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot read policy file {path}: {error}") from error
