"""The option ``--protection``: the same plan, its sums formed another way."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from privfedrl.plan import Plan

__all__ = ["Protection", "ProtectionName", "protected_by"]


class ProtectionName(StrEnum):
    """``protection.kind``, as the command line takes it."""

    PAIRWISE = "pairwise"
    BFV = "bfv"
    CKKS = "ckks"
    NONE = "none"


Protection = Annotated[
    ProtectionName | None,
    typer.Option("--protection", help="form sums this way instead of the plan's; another digest"),
]


def protected_by(plan: Plan, kind: ProtectionName | None) -> Plan:
    """``plan``, with its ``protection.kind`` replaced if one is given.

    What only the plan's own kind has (its lattice, who re-adds, the coordinator that a sparse graph
    holds against) goes with it.

    Raises:
        ConfigurationError: the rest of the plan does not allow it.
    """
    if kind is None or kind.value == plan.protection.kind:
        return plan
    changes = {"kind": kind.value, "parameter_set": None, "server": "malicious"}
    if kind in (ProtectionName.PAIRWISE, ProtectionName.NONE):
        changes["readding"] = "key-authority"  # the default, which says nothing there
    return plan.replace("protection", **changes)
