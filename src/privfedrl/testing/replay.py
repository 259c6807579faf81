"""Replaying a schedule against an adapter that can be imported.

Guarantee: the same schedule, spec and seed judge the same way here and in the state machine.
"""

from __future__ import annotations

import sys
from importlib import import_module

import msgspec
import numpy as np

from privfedrl.errors import ConfigurationError
from privfedrl.testing.adapter import AggregationAdapter, RingVector, RoundSpec
from privfedrl.testing.invariants import Violation, violations
from privfedrl.testing.network import Schedule, SimulatedNetwork, play_round

__all__ = ["colluders", "draw_vectors", "judge", "load_adapter", "replay"]


def draw_vectors(
    adapter: AggregationAdapter, spec: RoundSpec, seed: int = 0
) -> dict[str, RingVector]:
    """Uniform vectors for all clients, the same for the same seed."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(f"uint{spec.modulus_bits}")
    return {
        name: rng.integers(0, 2**spec.modulus_bits, spec.vector_length, dtype=dtype)
        for name in adapter.client_names(spec)
    }


def colluders(adapter: AggregationAdapter, spec: RoundSpec) -> tuple[str, ...]:
    """The clients that collude where the profile is "coalition": the first ``max_colluding``."""
    return adapter.client_names(spec)[: spec.max_colluding]


def judge(
    adapter: AggregationAdapter,
    spec: RoundSpec,
    schedule: Schedule,
    *,
    seed: int = 0,
    coalition: bool = False,
) -> tuple[Violation, ...]:
    """Play ``schedule`` and say what it breaks."""
    allies = colluders(adapter, spec) if coalition else ()
    network = SimulatedNetwork(adapter, spec, draw_vectors(adapter, spec, seed), colluding=allies)
    play_round(network, schedule)
    return violations(adapter, network.runs, colluding=allies)


def load_adapter(place: str) -> AggregationAdapter:
    """The adapter at "module:name": an adapter, its class or a function that makes it.

    Raises:
        ConfigurationError: there is none.
    """
    module, _, name = place.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"no adapter at {place!r}: {error}") from error
    made = found if isinstance(found, AggregationAdapter) else found()
    if not isinstance(made, AggregationAdapter):
        raise ConfigurationError(f"{place!r} must give an AggregationAdapter")
    return made


def replay(place: str, *, spec: str, schedule: str, seed: int = 0, coalition: bool = False) -> int:
    """Judge a schedule written by :meth:`Schedule.script`; print each violation.

    Returns:
        1 if anything broke, else 0.
    """
    adapter = load_adapter(place)
    found = judge(
        adapter,
        msgspec.json.decode(spec, type=RoundSpec),
        Schedule.from_json(schedule),
        seed=seed,
        coalition=coalition,
    )
    for violation in found:
        print(violation)  # a script's output
    print(f"{len(found)} violations by {adapter.name}", file=sys.stderr)
    return 1 if found else 0
