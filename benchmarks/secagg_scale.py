"""Full real rounds of the pairwise protocol on sparse graphs, in one process and on one core.

Every client is a real SecAggClient with its own keys, shares, boxes, signatures and masks; every
frame is encoded, signed, read and verified. 10 % of the roster drops out: a third each before M2,
before M3 and before M4. The simulation's only short cut is SharedEdges (one key agreement and one
keystream per edge instead of two, one check per signature), which leaves every byte that is sent
identical. The sum is compared with the ideal one.

Targets: n = 1,000, D = 100,000 in < 20 s; n = 10,000, D = 10,000 in < 120 s, of one core.

    python benchmarks/secagg_scale.py [--json] [--quick] [--server semi-honest|malicious]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from privfedrl.parties import Identity, MemoryJournal, Registry
from privfedrl.secagg import (
    SecAggClient,
    SecAggParameters,
    SecAggServer,
    SharedEdges,
    SparseGraph,
    Transcript,
    ideal_sum,
)

CASES = (
    {"clients": 1_000, "length": 100_000, "limit_s": 20},
    {"clients": 10_000, "length": 10_000, "limit_s": 120},
)
QUICK = ({"clients": 300, "length": 10_000, "limit_s": 20},)
FRACTION = 0.1  # of corrupt and of dropped clients
PLAN, TASK, MODEL = b"p" * 32, b"t" * 32, b"m" * 32


class Federation:
    """Identities, registry and parameters of n clients."""

    def __init__(self, clients: int, length: int, server: str) -> None:
        self.names = tuple(f"agent-{index:05d}" for index in range(clients))
        self.agents = {name: Identity.generate(name) for name in self.names}
        self.coordinator = Identity.generate("coordinator")
        self.registry = Registry(
            [
                *(agent.entry("agent") for agent in self.agents.values()),
                self.coordinator.entry("coordinator"),
            ]
        )
        dropouts = int(FRACTION * clients)
        self.parameters = SecAggParameters(
            num_clients=clients,
            max_colluding=dropouts,
            vector_length=length,
            min_clients=clients - dropouts,
            graph=SparseGraph(max_dropouts=dropouts, security_bits=40, server=server),
        )
        rng = np.random.default_rng(1)
        self.vectors = {
            name: rng.integers(0, 2**32, length, dtype=np.uint32) for name in self.names
        }
        dropped = rng.permutation(clients)[:dropouts]
        self.leaves = {self.names[index]: 1 + at % 3 for at, index in enumerate(dropped)}


def play(world: Federation) -> dict[str, Any]:
    """One round; CPU seconds by stage, bytes and the check of the sum."""
    stages: dict[str, float] = {}
    sent, received = 0, 0
    clock = time.process_time
    started = clock()
    with SharedEdges() as edges:
        clients = {
            name: SecAggClient(
                identity=world.agents[name],
                registry=world.registry,
                parameters=world.parameters,
                plan_digest=PLAN,
                journal=MemoryJournal(),
                edges=edges,
            )
            for name in world.names
        }
        server = SecAggServer(
            identity=world.coordinator,
            registry=world.registry,
            parameters=world.parameters,
            plan_digest=PLAN,
            edges=edges,
        )
        out = server.start(TASK, 1, 0, MODEL, bytes(32))
        for stage, label in enumerate(("advertise", "shares", "masked", "consistency", "unmask")):
            begun, phase, following = clock(), server.phase, []
            for message in out:
                received += len(message.data)
                name = message.recipient
                if world.leaves.get(name, 9) <= stage:
                    continue
                client = clients[name]
                if stage:
                    answers = client.receive(message.data)
                else:
                    answers = client.start(message.data, world.vectors[name], model_digest=MODEL)
                for answer in answers:
                    sent += len(answer.data)
                    following += server.receive(answer.data)
            out = server.close_phase() if server.phase is phase else following
            stages[label] = round(clock() - begun, 2)
    elapsed = clock() - started
    result = server.result()
    expected = ideal_sum(world.vectors, result.survivors, ring_bits=32)
    transcript = Transcript.sign(result.record, identity=world.coordinator, ledger_head=bytes(32))
    begun = clock()
    Transcript.from_bytes(transcript.to_bytes()).verify(world.registry)
    return {
        "cpu_s": round(elapsed, 2),
        "stages_cpu_s": stages,
        "exact": bool((result.vector == expected).all()),
        "survivors": len(result.survivors),
        "bytes_up_per_client": sent // len(world.names),
        "bytes_down_per_client": received // len(world.names),
        "transcript_bytes": len(transcript.to_bytes()),
        "transcript_verify_cpu_s": round(clock() - begun, 2),
    }


def measure(case: dict[str, int], server: str) -> dict[str, Any]:
    """One case, with the graph that the finder chose and the peak memory of the process."""
    gc.disable()  # ten million objects live to the end of the round; looking for cycles is wasted
    world = Federation(case["clients"], case["length"], server)
    topology = world.parameters.topology(case["clients"])
    row = {
        "clients": case["clients"],
        "length": case["length"],
        "server": server,
        "degree": topology.degree,
        "threshold": topology.threshold,
        "smallest_opened": topology.smallest_opened,
        **play(world),
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row["peak_memory_mb"] = round(peak / (2**20 if sys.platform == "darwin" else 2**10))
    row["target_s"] = case["limit_s"]
    row["met"] = row["exact"] and row["cpu_s"] < case["limit_s"]
    return row


def measure_apart(case: dict[str, int], server: str) -> dict[str, Any]:
    """The same in a process of its own, with large pages for its heap where glibc offers them.

    Two gigabytes of small objects in small pages cost some 15 % in look-ups of addresses.
    """
    print(f"{server} server, n = {case['clients']:,}, D = {case['length']:,} ...", file=sys.stderr)
    done = subprocess.run(
        [sys.executable, __file__, "--server", server, "--case", json.dumps(case)],
        env={**os.environ, "PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="a small round only")
    parser.add_argument("--server", choices=("semi-honest", "malicious"), default="semi-honest")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options.server)))
        return 0
    found = [measure_apart(case, options.server) for case in (QUICK if options.quick else CASES)]
    if options.json:
        print(json.dumps({"benchmark": "secagg_scale", "rows": found}, indent=2))
    else:
        for row in found:
            verdict = "met" if row["met"] else "missed"
            print(
                f"n={row['clients']:>6,} D={row['length']:>7,} k={row['degree']} "
                f"t={row['threshold']} {row['cpu_s']:>7.2f} s CPU "
                f"(target < {row['target_s']} s: {verdict}), {row['peak_memory_mb']} MB, "
                f"{row['stages_cpu_s']}"
            )
    return 0 if all(row["met"] for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
