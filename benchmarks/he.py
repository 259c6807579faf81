"""What homomorphic aggregation costs beside NVFlare's default configuration, in the same run.

Question: what do exact sums, one key per round, signatures and commitments cost on top of TenSEAL?

    python benchmarks/he.py [--json] [--quick]

Baseline: what NVFlare 2.9 (development line, August 2026) does, written with TenSEAL alone. CKKS,
N = 8192, [60, 40, 40], scale 2^40, symmetric, one key for everybody. A client weighs in clear,
makes one vector of the flat update and serialises it; the server deserialises, adds up, multiplies
by 1 / total weight and serialises; a client deserialises and decrypts. In its favour: one context
is shared (NVFlare sends one with each vector and parses it), the sum is made in place, transport
and file formats are left out, and one client decrypts, not ten. It authenticates nothing.

Ours, core: slots and encryption under a key that is loaded already; unpacking, the check of every
residue, addition and packing; decryption. As run: all that an HEClient, HEAggregator, KeyAuthority
(who adds everything again) and its Vault do with real frames: rounding to the grid, key loading,
encryption, commitment, signatures and hashes. Only the journal is in memory. The vault's child
counts with its start. Targets are judged on the figures as run: the client's whole CPU against
weighing, encrypting and serialising; the aggregator's CPU for ten uploads (frame hash, signature,
commitment, unpacking, adding) against deserialising and adding. "Whole server" has the outputs too.

Ten agents, one thread, CPU time of whole processes. Each case has a process of its own; the cases
of one length take turns. Ratios are medians over turns. Wall time of a round: all parties one after
another, and along the path of one client, the server and one decryption. Peak memory: of a process
that plays all parties, vault not included; agents of ours keep what they committed to, so ten sets
of ciphertexts are alive at once.

The bits of a case are those of the sum: with room for ten values at the clip norm, 16 bits leave
each agent 3,276 steps up to it. The row of 20 bits leaves 52,428. All sums are checked exactly.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

AGENTS = 10
LENGTHS = (10_000, 100_000, 1_000_000)
LONGEST = LENGTHS[-1]
CLIP = 4.0
STEPS_PER_AGENT = 20  # an agent's weight in the baseline, as its number of local iterations
BASELINE, STANDARD, COMPACT = (
    "nvflare-default",
    "bfv-4096-std, 16 bits",
    "bfv-4096-compact, 10 bits",
)
CASES: dict[str, tuple[str, int]] = {
    STANDARD: ("bfv-4096-std", 16),
    COMPACT: ("bfv-4096-compact", 10),
    "bfv-4096-wide, 20 bits": ("bfv-4096-wide", 20),
    "ckks-4096-add, 24 bits": ("ckks-4096-add", 24),
}
QUICK = (STANDARD, COMPACT)
# a policy and a value head for 8 observations and 4 actions: 8 tensors, 5,061 numbers
POLICY = (8 * 64, 64, 64 * 64, 64, 64 * 4, 4, 64, 1)
TASK, PLAN, MODEL, HEAD = b"t" * 32, b"p" * 32, b"m" * 32, b"h" * 32
Array = NDArray[Any]
_T = TypeVar("_T")


def update(agent: int, length: int) -> Array:
    """What an agent has learnt: float32 [length] within +-CLIP, the same at each call."""
    drawn = np.random.default_rng(agent).standard_normal(length, dtype=np.float32)
    return drawn.clip(-CLIP, CLIP)


class Stopwatch:
    """CPU seconds of this process and wall seconds, by role and stage."""

    def __init__(self) -> None:
        self.cpu: dict[str, dict[str, float]] = {}
        self.wall: dict[str, float] = {}

    def __call__(self, role: str, stage: str, act: Callable[[], _T]) -> _T:
        cpu, wall = time.process_time(), time.perf_counter()
        result = act()
        took = time.process_time() - cpu
        self.wall[role] = self.wall.get(role, 0.0) + time.perf_counter() - wall
        stages = self.cpu.setdefault(role, {})
        stages[stage] = stages.get(stage, 0.0) + took
        return result

    def total(self, role: str, *stages: str) -> float:
        """CPU seconds of a role, in the given stages or in all."""
        found = self.cpu[role]
        return sum(found[stage] for stage in stages or found)


def agent_name(agent: int) -> str:
    return f"agent-{agent:02}"


NAMES = [agent_name(agent) for agent in range(AGENTS)]


def typical(figure: Callable[[str], float]) -> float:
    """The median over the agents."""
    return statistics.median(figure(name) for name in NAMES)


# ---- ours --------------------------------------------------------------------------------------


class Ours:
    """All parties of a homomorphic round in this process; the vault's child is real."""

    def __init__(self, name: str, length: int) -> None:
        from privfedrl.he import HEParameters, ParameterSet
        from privfedrl.parties import Identity, Registry

        parameter_set, value_bits = CASES[name]
        self.length = length
        self.parameters = HEParameters(
            num_clients=AGENTS,
            max_colluding=3,
            vector_length=length,
            threshold=7,
            parameter_set=ParameterSet.named(parameter_set),
            value_bits=value_bits,
        )
        # a sum of AGENTS values at the clip norm is below half the ring
        self.steps = ((1 << (value_bits - 1)) - 1) // AGENTS / CLIP
        roles: dict[str, Any] = {"coordinator": "coordinator", "authority": "key-authority"}
        self.identities = {name: Identity.generate(name) for name in (*roles, *NAMES)}
        self.pinned: dict[str, Any] = {
            "registry": Registry(
                [own.entry(roles.get(name, "agent")) for name, own in self.identities.items()]
            ),
            "parameters": self.parameters,
            "plan_digest": PLAN,
        }

    def facts(self) -> dict[str, Any]:
        """What does not depend on time."""
        found = self.parameters
        return {
            "lanes": found.lanes,
            "lane_bits": found.lane_bits,
            "ciphertexts": found.ciphertexts,
            "ciphertext_bytes_per_parameter": found.ciphertext_bytes / self.length,
        }

    def turn(self) -> dict[str, Any]:
        return {**self._round(), "core": self._core()}

    def quantise(self, vector: Array) -> Array:
        """Grid integers as residues of the ring, by plain rounding."""
        return np.rint(vector * self.steps).astype(np.int32).view(np.uint32)

    def _round(self) -> dict[str, Any]:
        """One round to its end, as run, with the sum checked."""
        import resource

        watch, before = Stopwatch(), resource.getrusage(resource.RUSAGE_CHILDREN)
        sent, result = self._play(watch)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        children = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        path = typical(watch.wall.__getitem__) + watch.wall["coordinator"] + watch.wall["authority"]
        return {
            "client_cpu_s": typical(watch.total),
            # the last upload is sealed at once; what it took to add it is that of the others
            "aggregation_cpu_s": watch.total("coordinator", "upload") * AGENTS / (AGENTS - 1),
            "server_cpu_s": watch.total("coordinator"),
            "authority_cpu_s": watch.total("authority"),
            "vault_cpu_s": children,
            "opening_cpu_s": watch.total("authority", "sealed"),
            "readding_cpu_s": watch.total("authority", "upload"),
            "round_wall_s": sum(watch.wall.values()),
            "path_wall_s": path,
            "upload_bytes": sent,
            "bytes_per_parameter": sent / self.length,
            "max_error_of_mean": self._check(result),
            "stages_cpu_s": {
                role: watch.cpu[role] for role in (NAMES[0], "coordinator", "authority")
            },
        }

    def _play(self, watch: Stopwatch) -> tuple[int, Array]:
        """Returns the size of an upload and the opened sum."""
        from privfedrl.he import HEAggregator, HEClient, KeyAuthority
        from privfedrl.he.frames import Kind
        from privfedrl.parties import MemoryJournal

        own, uploads = self.identities, set()
        aggregator = HEAggregator(
            identity=own["coordinator"], before_open=lambda _: HEAD, **self.pinned
        )
        authority = KeyAuthority(
            identity=own["authority"],
            journal=MemoryJournal(),
            before_decrypt=lambda *_: HEAD,
            **self.pinned,
        )
        parties: dict[str, Any] = {"coordinator": aggregator, "authority": authority}
        for name in NAMES:
            parties[name] = HEClient(identity=own[name], journal=MemoryJournal(), **self.pinned)

        def one_left(aggregator: HEAggregator) -> bool:
            return len(aggregator.waiting_for) == 1

        def act(name: str, kind: Kind, data: bytes) -> Any:
            if kind is not Kind.CONFIG:
                return parties[name].receive(data)
            if name == "authority":
                return authority.start(data)
            vector = self.quantise(updates.pop())
            return parties[name].start(data, vector, model_digest=MODEL)

        updates: list[Array] = []
        queue = deque(
            watch("coordinator", "start", lambda: aggregator.start(TASK, 1, 0, MODEL, bytes(32)))
        )
        while queue:
            message = queue.popleft()
            name, kind = message.recipient, Kind(int.from_bytes(message.data[6:8], "big"))
            stage = kind.label
            if kind is Kind.UPLOAD:
                uploads.add(len(message.data))
                stage += " and seal" if name == "coordinator" and one_left(aggregator) else ""
            if kind is Kind.CONFIG and name in NAMES:
                updates.append(update(NAMES.index(name), self.length))
            replies = watch(name, stage, partial(act, name, kind, message.data))
            # to agents in turn, to the others at once: an upload is used up before the next is made
            queue.extendleft(r for r in reversed(replies) if r.recipient not in NAMES)
            queue.extend(r for r in replies if r.recipient in NAMES)
        (size,) = uploads
        return size, aggregator.result().vector

    def _check(self, found: Array) -> float:
        """Compare the opened sum with the plain one; the largest error of the mean in floats."""
        expected, exact = np.zeros(self.length, np.uint32), np.zeros(self.length)
        for agent in range(AGENTS):
            vector = update(agent, self.length)
            expected += self.quantise(vector)
            exact += vector
        mask = np.uint32((1 << self.parameters.value_bits) - 1)
        assert not np.any((found ^ expected) & mask), "the sum is wrong"
        mean = found.view(np.int32) / self.steps / AGENTS
        return float(np.abs(mean - exact / AGENTS).max())

    def _core(self) -> dict[str, float]:
        """CPU seconds of the cryptography alone. One client's ciphertexts serve for all ten."""
        from privfedrl.he.lattice import Decryptor, Encryptor
        from privfedrl.he.residues import add_into, pack, unpack

        parameters, chosen = self.parameters, self.parameters.parameter_set
        primes, count = chosen.sent_primes, parameters.ciphertexts
        decryptor = Decryptor(chosen)
        encryptor = Encryptor(chosen, decryptor.public_key)
        vector, watch = self.quantise(update(0, self.length)), Stopwatch()
        slots = watch("client", "slots", lambda: parameters.to_slots(vector))
        data = watch("client", "encrypt", lambda: encryptor.encrypt(slots))
        total = np.zeros((count, 2, len(primes), chosen.degree), np.uint64)
        for _ in range(AGENTS):
            residues = watch("server", "unpack", lambda: unpack(data, primes, chosen.degree, count))
            watch("server", "add", partial(add_into, total, residues, primes))
            del residues
        summed = watch("server", "pack", lambda: pack(total, primes))
        opened = watch("client", "decrypt", lambda: decryptor.decrypt(summed, count))
        mask = np.uint32((1 << parameters.value_bits) - 1)
        wrong = (parameters.from_slots(opened, AGENTS) ^ vector * np.uint32(AGENTS)) & mask
        assert not wrong.any(), "the sum is wrong"
        return {
            "client_cpu_s": watch.total("client", "slots", "encrypt"),
            "aggregation_cpu_s": watch.total("server"),
            "decrypt_cpu_s": watch.total("client", "decrypt"),
        }


# ---- NVFlare's default configuration -----------------------------------------------------------


class Baseline:
    """Client filter, aggregator and decryptor of NVFlare, reduced to their TenSEAL calls.

    Source: nvflare/lighter/impl/he.py and nvflare/app_opt/he (model_encryptor, decomposers,
    intime_accumulate_model_aggregator, model_decryptor), Apache License 2.0; nothing is copied.
    """

    def __init__(self, length: int) -> None:
        import tenseal as ts

        self.ts, self.length = ts, length
        self.context = ts.context(
            ts.SCHEME_TYPE.CKKS,
            poly_modulus_degree=8192,
            coeff_mod_bit_sizes=[60, 40, 40],
            encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
            n_threads=1,
        )
        self.context.generate_relin_keys()
        self.context.global_scale = 2**40
        self.shipped = self.context.serialize()  # as the decomposer does: without the secret key
        self.server_context = ts.context_from(self.shipped, n_threads=1)

    def facts(self) -> dict[str, Any]:
        """Bytes of a small policy, tensor by tensor, and of the context beside each vector."""
        vectors = [
            len(self.ts.ckks_vector(self.context, np.ones(size)).serialize()) for size in POLICY
        ]
        return {
            "context_bytes": len(self.shipped),
            "policy_vectors_bytes": sum(vectors),
            "policy_upload_bytes": sum(vectors) + len(POLICY) * len(self.shipped),
        }

    def turn(self) -> dict[str, Any]:
        read, watch = self.ts.ckks_vector_from, Stopwatch()
        total, sent, exact = None, 0, np.zeros(self.length)
        for agent, name in enumerate(NAMES):
            vector = update(agent, self.length)
            exact += vector
            data = self._upload(watch, name, vector)
            sent = len(data)
            found = watch("server", "deserialise", partial(read, self.server_context, data))
            if total is None:
                total = found
            else:
                watch("server", "add", partial(total.add_, found))
            del data, found
        assert total is not None
        mean = watch("server", "scale", lambda: total * (1.0 / (AGENTS * STEPS_PER_AGENT)))
        answer = watch("server", "serialise", lambda: mean.serialize())
        opened = watch("opening", "decrypt", lambda: read(self.context, answer).decrypt())
        aggregation = watch.total("server", "deserialise", "add")
        path = typical(watch.wall.__getitem__) + watch.wall["server"] + watch.wall["opening"]
        return {
            "client_cpu_s": typical(watch.total),
            "aggregation_cpu_s": aggregation,
            "server_cpu_s": watch.total("server"),
            "opening_cpu_s": watch.total("opening"),
            "round_wall_s": sum(watch.wall.values()),
            "path_wall_s": path,
            "upload_bytes": sent,
            "bytes_per_parameter": sent / self.length,
            "download_bytes": len(answer),
            "max_error_of_mean": float(np.abs(np.array(opened) - exact / AGENTS).max()),
            "stages_cpu_s": {role: watch.cpu[role] for role in (NAMES[0], "server", "opening")},
            "core": {
                "client_cpu_s": typical(lambda name: watch.total(name, "encrypt", "serialise")),
                "aggregation_cpu_s": aggregation,
                "decrypt_cpu_s": watch.total("opening"),
            },
        }

    def _upload(self, watch: Stopwatch, name: str, vector: Array) -> bytes:
        weighed = watch(name, "weigh", lambda: vector * np.float64(STEPS_PER_AGENT))
        encrypted = watch(name, "encrypt", lambda: self.ts.ckks_vector(self.context, weighed))
        data: bytes = watch(name, "serialise", lambda: encrypted.serialize())
        return data


# ---- one process per case ----------------------------------------------------------------------


def memory_mb(field: str) -> float:
    """VmHWM or VmRSS of this process; getrusage would count the process that started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    line = next(row for row in status.read_text().splitlines() if row.startswith(field))
    return int(line.split()[1]) / 1024


def serve(name: str, length: int) -> None:
    """Facts at once, then one turn for each line of standard input, as lines of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # TenSEAL prints warnings about long vectors

    def make(size: int) -> Any:
        return Baseline(size) if name == BASELINE else Ours(name, size)

    def answer(found: dict[str, Any]) -> None:
        print(json.dumps(found), file=answers, flush=True)

    policy = make(sum(POLICY)).turn()  # imports, caches and thread pools are not what is measured
    case = make(length)
    facts = {"policy_upload_bytes": policy["upload_bytes"], **case.facts()}
    answer({**facts, "idle_mb": memory_mb("VmRSS")})
    for _ in sys.stdin:
        answer({**case.turn(), "peak_mb": memory_mb("VmHWM")})


class Worker:
    """A process that plays one case when asked."""

    def __init__(self, name: str, length: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", name, str(length)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = self._read()

    def turn(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        print("turn", file=self.process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a case ended early, exit status {self.process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def medians(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Median of each number over the turns, in dictionaries within dictionaries too."""
    return {
        key: medians([turn[key] for turn in turns])
        if isinstance(first, dict)
        else statistics.median(turn[key] for turn in turns)
        for key, first in turns[0].items()
    }


RATIOS: dict[str, Callable[[dict[str, Any]], float]] = {
    "client, as run": lambda turn: turn["client_cpu_s"],
    "client, core": lambda turn: turn["core"]["client_cpu_s"],
    "aggregation, as run": lambda turn: turn["aggregation_cpu_s"],
    "aggregation, core": lambda turn: turn["core"]["aggregation_cpu_s"],
    "whole server": lambda turn: turn["server_cpu_s"],
    "decryption, core": lambda turn: turn["core"]["decrypt_cpu_s"],
    "round, wall": lambda turn: turn["round_wall_s"],
    "path of one client, wall": lambda turn: turn["path_wall_s"],
    "upload bytes": lambda turn: turn["upload_bytes"],
}
"""How many of ours fit in one of theirs."""


def compare(length: int, names: tuple[str, ...], turns: int) -> dict[str, Any]:
    """All cases of one length, in turns."""
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name in (BASELINE, *names):
            workers[name] = Worker(name, length)
            stack.callback(workers[name].close)
        taken: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
        for _ in range(turns):
            for name, worker in workers.items():
                taken[name].append(worker.turn())
        rows = {name: {**workers[name].facts, **medians(taken[name])} for name in workers}
    for name in names:
        pairs = list(zip(taken[BASELINE], taken[name], strict=True))
        rows[name]["ratios"] = {
            what: statistics.median(of(theirs) / of(ours) for theirs, ours in pairs)
            for what, of in RATIOS.items()
        }
    return rows


# ---- report ------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    versions = {name: version(name) for name in ("numpy", "tenseal", "cryptography")}
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
    }


def measure(quick: bool) -> dict[str, Any]:
    names = QUICK if quick else tuple(CASES)
    rows = {}
    for length in LENGTHS:
        print(f"D = {length:,} ...", file=sys.stderr)
        turns = 1 if quick else 3 if length == LONGEST else 5
        rows[str(length)] = compare(length, names, turns)
    longest = rows[str(LONGEST)]
    standard, compact = longest[STANDARD], longest[COMPACT]
    figures = (
        ("bytes up per parameter, std, at most", standard["bytes_per_parameter"], 8.2, False),
        ("bytes up per parameter, compact, at most", compact["bytes_per_parameter"], 5.5, False),
        ("client CPU, NVFlare / std as run", standard["ratios"]["client, as run"], 2.5, True),
        (
            "aggregation CPU, NVFlare / std as run",
            standard["ratios"]["aggregation, as run"],
            10.0,
            True,
        ),
    )
    return {
        "machine": machine(),
        "agents": AGENTS,
        "quick": quick,
        "lengths": rows,
        "targets": [
            {
                "name": f"{name}, D = 1M",
                "target": target,
                "found": value,
                "met": value >= target if least else value <= target,
            }
            for name, value, target, least in figures
        ],
    }


def show(found: dict[str, Any], report: Any) -> None:
    """Tables for people."""
    print(", ".join(f"{name}: {fact}" for name, fact in found["machine"].items()), file=report)
    for length, rows in found["lengths"].items():
        print(f"\nD = {int(length):,}; CPU ms as run (core)", file=report)
        print(
            f"{'':<26} {'B/param':>7} {'client':>13} {'aggregation':>13} {'decryption':>12} "
            f"{'round ms':>8} {'path ms':>7} {'peak MB':>7} {'mean +-':>8}",
            file=report,
        )
        for name, row in rows.items():
            core = row["core"]
            # ours: the authority without its re-adding, and the vault's child
            opening = row["opening_cpu_s"] + row.get("vault_cpu_s", 0.0)
            pairs = (
                (row["client_cpu_s"], core["client_cpu_s"], 13),
                (row["aggregation_cpu_s"], core["aggregation_cpu_s"], 13),
                (opening, core["decrypt_cpu_s"], 12),
            )
            cells = " ".join(f"{f'{1e3 * a:.0f} ({1e3 * b:.0f})':>{w}}" for a, b, w in pairs)
            print(
                f"{name:<26} {row['bytes_per_parameter']:>7.2f} {cells} "
                f"{1e3 * row['round_wall_s']:>8,.0f} {1e3 * row['path_wall_s']:>7,.0f} "
                f"{row['peak_mb']:>7,.0f} {row['max_error_of_mean']:>8.1e}",
                file=report,
            )
        for name, row in rows.items():
            if name != BASELINE:
                ratios = ", ".join(f"{what} {value:.1f}" for what, value in row["ratios"].items())
                print(f"  NVFlare / {name}: {ratios}", file=report)
    shortest = next(iter(found["lengths"].values()))
    theirs, ours = shortest[BASELINE], shortest[STANDARD]
    print(
        f"\npolicy of {len(POLICY)} tensors, {sum(POLICY):,} numbers: NVFlare "
        f"{theirs['policy_upload_bytes']:,} bytes up ({theirs['policy_vectors_bytes']:,} without "
        f"the contexts), ours {ours['policy_upload_bytes']:,}",
        file=report,
    )
    for target in found["targets"]:
        verdict = "met" if target["met"] else "missed"
        wanted, value = target["target"], target["found"]
        print(f"target: {target['name']}: {wanted:g}, found {value:.2f}: {verdict}", file=report)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    parser.add_argument("--quick", action="store_true", help="each figure once, fewer sets")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(options.worker[0], int(options.worker[1]))
        return 0
    found = measure(options.quick)
    show(found, sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps(found, indent=2))
    return 0 if all(target["met"] for target in found["targets"]) else 1


if __name__ == "__main__":
    sys.exit(main())
