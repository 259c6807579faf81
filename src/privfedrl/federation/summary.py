"""The figures of a run: one object for people, scripts and the report.

Guarantee: released figures come from ``metrics.jsonl`` and the ledger, oracle figures from the file
that says so; nothing is computed from anything else.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from privfedrl.federation.broadcast import parameter_bytes
from privfedrl.federation.coordinator import RoundResult
from privfedrl.federation.simulated_round import Traffic
from privfedrl.plan import Plan
from privfedrl.privacy import Ledger

__all__ = ["RunSummary", "released_row", "summarise"]


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What ``train --json`` prints last.

    ``mean_return_first``, ``mean_return_last`` and ``greedy_return`` are oracle values: means over
    the fleet's private environments and a greedy evaluation, known in a simulation only.
    ``epsilon`` is null where the run promises nothing.
    """

    plan_digest: str
    unit: str
    adversary: str
    epsilon: float | None
    delta: float
    rounds: int
    agents: int
    episodes_per_agent: int
    mean_return_first: float
    mean_return_last: float
    greedy_return: float
    env_steps: int
    bytes_up_per_agent_round: int
    wall_s: float
    protection: str
    ledger_head: str

    def to_json(self) -> bytes:
        """One JSON object."""
        return msgspec.json.encode(self)


def released_row(
    plan: Plan,
    result: RoundResult,
    traffic: Traffic,
    failures: Sequence[str],
    epsilon: float,
) -> dict[str, Any]:
    """One line of ``metrics.jsonl``: what a deployment would know about a round."""
    widens = plan.privacy.correlation_bands is not None  # elsewhere it follows from the survivors
    noise = {"released_noise_std": math.sqrt(result.released.noise_variance)} if widens else {}
    return {
        "round": result.round,
        "attempt": result.attempt,
        "aborted_before": list(failures),
        "survivors": list(result.survivors),
        "dropouts": plan.fleet.agents - len(result.survivors),
        "epsilon": epsilon if np.isfinite(epsilon) else None,
        "released_mean_return": result.released.mean_return,
        "released_mean_return_std": result.released.mean_return_std,
        "released_return_spread": result.released.return_spread,
        "next_clip": result.released.next_clip,
        "bytes_up_max": max(traffic.up.values(), default=0),
        "bytes_down_max": max(traffic.down.values(), default=0),
        "policy_sha256": hashlib.sha256(parameter_bytes(result.parameters)).hexdigest(),
        **noise,
    }


def summarise(
    plan: Plan,
    *,
    released: Sequence[Mapping[str, Any]],
    oracle: Sequence[Mapping[str, Any]],
    ledger: Ledger,
    sums: Mapping[str, float],
) -> RunSummary:
    """The figures of a complete run."""
    spent = ledger.spent()
    greedy = [row["greedy_return"] for row in oracle if row["greedy_return"] is not None]
    adversaries = {one.charge.adversary for one in ledger.reservations()}
    return RunSummary(
        plan_digest=plan.digest.hex(),
        unit=plan.unit.value,
        adversary=", ".join(sorted(adversaries)),
        epsilon=spent.epsilon if np.isfinite(spent.epsilon) else None,
        delta=plan.privacy.delta,
        rounds=plan.federation.rounds,
        agents=plan.fleet.agents,
        episodes_per_agent=plan.episodes_per_agent(plan.federation.rounds),
        mean_return_first=oracle[0]["mean_return"],
        mean_return_last=oracle[-1]["mean_return"],
        greedy_return=greedy[-1],
        env_steps=int(sums["env_steps"]),
        bytes_up_per_agent_round=max(row["bytes_up_max"] for row in released),
        wall_s=round(sums["wall_s"], 3),
        protection=plan.protection.kind,
        ledger_head=ledger.head,
    )
