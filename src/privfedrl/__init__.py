"""privfedrl: privacy-focused secure aggregation for federated reinforcement learning.

    envs → rollout → training → encoding → secagg → federation → privacy ledger

Importing this package loads neither torch nor Gymnasium: every name below is resolved when it is
first used (PEP 562), so a coordinator or an auditor never needs what only agents need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from privfedrl.errors import (
    AuthenticationFailed,
    BudgetExceeded,
    ConfigurationError,
    EncodingError,
    EnvironmentFault,
    LedgerIntegrity,
    MissingExtraError,
    PrivacyError,
    PrivfedrlError,
    ProtocolError,
    RoundAborted,
    StorageError,
    UnsupportedMechanism,
)

if TYPE_CHECKING:
    from privfedrl.envs import EnvSpec, heterogeneous
    from privfedrl.federation.agent import Agent
    from privfedrl.federation.coordinator import (
        Coordinator,
        FederationState,
        initial_federation_state,
    )
    from privfedrl.federation.promise import Promise
    from privfedrl.federation.simulate import Run, simulate
    from privfedrl.parties import Identity, Outgoing, Registry
    from privfedrl.plan import Plan
    from privfedrl.privacy import Adjacency, Ledger, Statement, Unit
    from privfedrl.rollout import MlpPolicy, TrajectoryBatch
    from privfedrl.training import load_policy, save_policy

__version__ = "0.1.0"

__all__ = [
    "Adjacency",
    "Agent",
    "AuthenticationFailed",
    "BudgetExceeded",
    "ConfigurationError",
    "Coordinator",
    "EncodingError",
    "EnvSpec",
    "EnvironmentFault",
    "FederationState",
    "Identity",
    "Ledger",
    "LedgerIntegrity",
    "MissingExtraError",
    "MlpPolicy",
    "Outgoing",
    "Plan",
    "PrivacyError",
    "PrivfedrlError",
    "Promise",
    "ProtocolError",
    "Registry",
    "RoundAborted",
    "Run",
    "Statement",
    "StorageError",
    "TrajectoryBatch",
    "Unit",
    "UnsupportedMechanism",
    "heterogeneous",
    "initial_federation_state",
    "load_policy",
    "save_policy",
    "simulate",
]

_LAZY = {
    "Adjacency": "privacy",
    "Agent": "federation.agent",
    "Coordinator": "federation.coordinator",
    "EnvSpec": "envs",
    "FederationState": "federation.coordinator",
    "Identity": "parties",
    "Ledger": "privacy",
    "MlpPolicy": "rollout",
    "Outgoing": "parties",
    "Plan": "plan",
    "Promise": "federation.promise",
    "Registry": "parties",
    "Run": "federation.simulate",
    "Statement": "privacy",
    "TrajectoryBatch": "rollout",
    "Unit": "privacy",
    "heterogeneous": "envs",
    "initial_federation_state": "federation.coordinator",
    "load_policy": "training",
    "save_policy": "training",
    "simulate": "federation.simulate",
}


_PACKAGES = ("audit", "testing")


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value  # later look-ups skip this function
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY) | set(_PACKAGES))
