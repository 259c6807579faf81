"""Property tests, attacks and suites for any aggregation protocol, ours or another's.

    adapter (what the kit asks of a protocol) -> schedule (what goes wrong) -> simulated, network
    (rounds) -> invariants (what must hold) -> machine, attacks, suites -> verdict

Write an :class:`AggregationAdapter` of at most a hundred lines; the rest is here. Importing this
package loads neither hypothesis nor pytest: a name that needs one loads it when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from privfedrl.errors import MissingExtraError
from privfedrl.testing.adapter import (
    Aggregate,
    AggregationAdapter,
    Claim,
    Packet,
    Reveal,
    RoundSpec,
    TransportAdapter,
)

if TYPE_CHECKING:
    from privfedrl.testing.attacks import attack_suite, run_attacks
    from privfedrl.testing.invariants import Violation, violations
    from privfedrl.testing.isolation import assert_unit_isolated
    from privfedrl.testing.isolation_values import UnitLeak
    from privfedrl.testing.machine import aggregation_machine
    from privfedrl.testing.network import (
        Edit,
        EditKind,
        Event,
        Fault,
        Run,
        Schedule,
        SimulatedNetwork,
        play,
    )
    from privfedrl.testing.pairwise import PairwiseAdapter
    from privfedrl.testing.replay import draw_vectors, judge
    from privfedrl.testing.strategies import (
        cohorts,
        delivery_schedules,
        dropout_schedules,
        edits,
        hostile_frames,
        updates,
    )
    from privfedrl.testing.suites import kat_suite, noise_suite, uniformity_suite
    from privfedrl.testing.transport import over_transport, play_over
    from privfedrl.testing.verdict import Verdict

__all__ = [
    "Aggregate",
    "AggregationAdapter",
    "Claim",
    "Edit",
    "EditKind",
    "Event",
    "Fault",
    "Packet",
    "PairwiseAdapter",
    "Reveal",
    "RoundSpec",
    "Run",
    "Schedule",
    "SimulatedNetwork",
    "TransportAdapter",
    "UnitLeak",
    "Verdict",
    "Violation",
    "aggregation_machine",
    "assert_unit_isolated",
    "attack_suite",
    "cohorts",
    "delivery_schedules",
    "draw_vectors",
    "dropout_schedules",
    "edits",
    "hostile_frames",
    "judge",
    "kat_suite",
    "noise_suite",
    "over_transport",
    "play",
    "play_over",
    "run_attacks",
    "uniformity_suite",
    "updates",
    "violations",
]

_LAZY = {
    "Edit": "network",
    "EditKind": "network",
    "Event": "network",
    "Fault": "network",
    "PairwiseAdapter": "pairwise",
    "Run": "network",
    "Schedule": "network",
    "SimulatedNetwork": "network",
    "UnitLeak": "isolation_values",
    "Verdict": "verdict",
    "Violation": "invariants",
    "aggregation_machine": "machine",
    "assert_unit_isolated": "isolation",
    "attack_suite": "attacks",
    "cohorts": "strategies",
    "delivery_schedules": "strategies",
    "draw_vectors": "replay",
    "dropout_schedules": "strategies",
    "edits": "strategies",
    "hostile_frames": "strategies",
    "judge": "replay",
    "kat_suite": "suites",
    "noise_suite": "suites",
    "over_transport": "transport",
    "play": "network",
    "play_over": "transport",
    "run_attacks": "attacks",
    "uniformity_suite": "suites",
    "updates": "strategies",
    "violations": "invariants",
}
_EXTRA = "hypothesis"


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != _EXTRA:
            raise
        raise MissingExtraError(_EXTRA, extra="testing") from error
    globals()[name] = value  # later look-ups skip this function
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))
