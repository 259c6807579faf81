"""What a masked sum costs: mask engine, CPU per client and server beside Flower, bytes sent.

Question: is pairwise masking ever a reason to send updates in the clear?

    python benchmarks/secagg.py [--json] [--quick]

Mask engine: 100 keystreams added to one uint32 vector, as a share of the raw AES-256-CTR keystream
in the same run. The raw rate at D = 1M is one cipher context that fills the best of five tiles (64
KB to 1 MB) over and over; at D = 10k it is a fresh context per 40 KB message, because a key is used
for one vector only. The share of the first, where key set-up counts as loss, is printed too.

Whole rounds: n = 100, complete graph, D = 1M, ten agents vanish after sharing keys. All of our
agents and the coordinator really run, on frames in memory, and the sum is checked. Flower's client
is its own four stage functions; its server is the work of its workflow, function by function. The
other Flower clients send one random vector of the same form, because no cost depends on it. CPU
time of the whole process, without quantisation on either side. Flower's transport and state
handling are left out; our framing, signatures and journal are in.

Bytes: what one agent's five frames add up to in a real round of 100, per parameter.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from privfedrl.encoding import FixedPoint
from privfedrl.encoding.lanes import Lanes
from privfedrl.parties import Identity, MemoryJournal, Registry
from privfedrl.primitives.stream import apply_keystreams
from privfedrl.secagg import SecAggClient, SecAggParameters, SecAggServer, ServerPhase
from privfedrl.secagg.edges import Edges, OwnEdges, SharedEdges

CLIENTS, COLLUDING, DROPPED = 100, 33, 10
LENGTH, SMALL = 1_000_000, 10_000
TURNS = 9  # of the mask engine, which takes half a second
TILES = (65_536, 131_072, 262_144, 524_288, 1_048_576)
MAX_BYTES = 2.7
_T = TypeVar("_T")


class Stopwatch:
    """CPU seconds of this process, all threads, by name of the stage."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}

    def __call__(self, stage: str, act: Callable[[], _T]) -> _T:
        started = time.process_time()
        result = act()
        self.stages[stage] = self.stages.get(stage, 0.0) + time.process_time() - started
        return result

    @property
    def total(self) -> float:
        return sum(self.stages.values())


# ---- mask engine -------------------------------------------------------------------------------


def context(key: bytes) -> Any:
    return Cipher(AES256(key), CTR(bytes(16))).encryptor()


def rate(size: int, act: Callable[[], Any]) -> float:
    """GB per CPU second of one call."""
    started = time.thread_time()
    act()
    return size / (time.thread_time() - started) / 1e9


def raw_rate(tile: int, size: int) -> float:
    """One context that fills one tile over and over."""
    stream, zeros, out = context(os.urandom(32)), memoryview(bytes(tile)), bytearray(tile + 16)

    def fill() -> None:
        for _ in range(size // tile):
            stream.update_into(zeros, out)

    return rate(size // tile * tile, fill)


def message_rate(keys: list[bytes], length: int) -> float:
    """A fresh context per message of ``length`` words."""
    zeros, out = memoryview(bytes(4 * length)), bytearray(4 * length + 16)

    def fill() -> None:
        for key in keys:
            context(key).update_into(zeros, out)

    return rate(len(keys) * 4 * length, fill)


def engine_rate(keys: list[bytes], length: int) -> float:
    acc = np.ones(length, np.uint32)  # written once: a fresh page would be charged to the engine
    return rate(len(keys) * acc.nbytes, lambda: apply_keystreams(acc, add=keys))


def threaded_rate(keys: list[bytes], threads: int) -> float:
    """GB per second of wall time: threads exist to shorten that."""
    acc = np.ones(LENGTH, np.uint32)
    started = time.perf_counter()
    apply_keystreams(acc, add=keys, threads=threads)
    return len(keys) * acc.nbytes / (time.perf_counter() - started) / 1e9


def mask_engine(repeats: int) -> dict[str, Any]:
    """Raw and engine take turns; a share is the median over the turns."""
    keys = [os.urandom(32) for _ in range(CLIENTS)]
    turns: list[dict[str, float]] = []
    for _ in range(repeats):
        turn = {f"raw, tiles of {tile // 1024} KB": raw_rate(tile, 10**8) for tile in TILES}
        turn["engine at D = 1M"] = engine_rate(keys, LENGTH)
        turn["raw, 40 KB messages"] = statistics.median(message_rate(keys, SMALL) for _ in range(9))
        turn["engine at D = 10k"] = statistics.median(engine_rate(keys, SMALL) for _ in range(9))
        turn["wall, one thread"] = threaded_rate(keys, 1)
        turn["wall, two threads"] = threaded_rate(keys, 2)
        turns.append(turn)
    medians = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    best = max((name for name in medians if "tiles" in name), key=medians.__getitem__)

    def share(part: str, whole: str) -> float:
        return statistics.median(turn[part] / turn[whole] for turn in turns)

    return {
        "gb_per_s": medians,
        "share_1m": share("engine at D = 1M", best),
        "share_10k_of_40_kb_messages": share("engine at D = 10k", "raw, 40 KB messages"),
        "share_10k_of_best_tile": share("engine at D = 10k", best),
    }


# ---- our rounds --------------------------------------------------------------------------------


@dataclass
class OurRound:
    """All ends of one round in memory; the first agent and the coordinator are on the clock."""

    vectors: list[Any]
    dropped: int = 0
    edges: Edges = field(default_factory=OwnEdges)

    def __post_init__(self) -> None:
        count, first = len(self.vectors), self.vectors[0]
        agents = [Identity.generate(f"agent-{k:03}") for k in range(count)]
        coordinator = Identity.generate("coordinator")
        entries = [*(agent.entry("agent") for agent in agents), coordinator.entry("coordinator")]
        pinned: dict[str, Any] = {
            "registry": Registry(entries),
            "parameters": SecAggParameters(
                num_clients=count,
                max_colluding=count // 3,
                vector_length=first.size,
                ring_bits=8 * first.itemsize,
            ),
            "plan_digest": bytes(32),
        }
        self.server = SecAggServer(identity=coordinator, **pinned)
        self.clients = {
            agent.name: SecAggClient(
                identity=agent, journal=MemoryJournal(), edges=self.edges, **pinned
            )
            for agent in agents
        }
        self.typical = agents[0].name
        self.late = {agent.name for agent in agents[count - self.dropped :]}
        self.client_watch, self.server_watch = Stopwatch(), Stopwatch()
        self.bytes_up = 0

    def run(self) -> Any:
        """Play the round to its end; returns the sum, checked."""
        out = self.server_watch("start", self._open)
        while not self.server.finished:
            phase = self.server.phase
            replies = [reply.data for item in out for reply in self._answer(item)]
            out = []
            for data in replies:
                out += self.server_watch(phase.value, lambda data=data: self.server.receive(data))
            if self.server.phase is phase:
                out += self.server_watch(phase.value, self.server.close_phase)
        total = self.server.result().vector
        here = [
            v for name, v in zip(self.clients, self.vectors, strict=True) if name not in self.late
        ]
        expected = np.zeros_like(total)
        for vector in here:
            expected += vector
        assert (total == expected).all(), "the sum is wrong"
        return total

    def _open(self) -> Any:
        return self.server.start(bytes(32), 0, 0, bytes(32), bytes(32))

    def _answer(self, item: Any) -> Any:
        name, phase = item.recipient, self.server.phase
        if name in self.late and phase is ServerPhase.COLLECT_MASKED:
            return []
        client = self.clients[name]

        def act() -> Any:
            if phase is ServerPhase.COLLECT_ADVERTS:
                vector = self.vectors[list(self.clients).index(name)]
                return client.start(item.data, vector, model_digest=bytes(32))
            return client.receive(item.data)

        if name != self.typical:
            return act()
        replies = self.client_watch(phase.value, act)
        self.bytes_up += sum(len(reply.data) for reply in replies)
        return replies


def our_round(repeats: int) -> dict[str, Any]:
    """Medians of CPU seconds by stage, for one agent and for the coordinator."""
    rng = np.random.default_rng(1)
    one = rng.integers(0, 2**32, LENGTH, dtype=np.uint32)
    rounds = []
    for _ in range(repeats):
        played = OurRound([one + np.uint32(k) for k in range(CLIENTS)], dropped=DROPPED)
        played.run()
        rounds.append(played)
    return {
        "client_cpu_s": statistics.median(one.client_watch.total for one in rounds),
        "server_cpu_s": statistics.median(one.server_watch.total for one in rounds),
        "client_stages": rounds[-1].client_watch.stages,
        "server_stages": rounds[-1].server_watch.stages,
    }


def bytes_per_parameter() -> dict[str, Any]:
    """A real round of 100 with packed lanes; shared edges change no byte and save a minute.

    16-bit values: 2^15 grid steps per clip norm and a sign. The rotation spreads a row, so a
    coordinate of the sum needs fewer bits than 100 * 2^15 would; padding to a power of two counts.
    """
    settings: dict[str, Any] = {
        "ring_bits": 64,
        "dimension": LENGTH,
        "resolution": 2**15,
        "clip_norm": 1.0,
        "max_units": CLIENTS,
        "noise_variance": 0,
        "headroom_rule": "rotated",
    }
    lane = FixedPoint(**settings).narrowest_lane_bits
    form = FixedPoint(**settings, lane_bits=lane)
    row = np.random.default_rng(2).standard_normal((1, LENGTH))
    encoded = form.encode_units(row / np.linalg.norm(row) * 0.999, rotation_seed=bytes(32))
    with SharedEdges() as edges:
        played = OurRound([form.to_ring(encoded)] * CLIENTS, edges=edges)
        total = played.run()
    lanes = Lanes(bits=lane, length=form.padded)
    assert (lanes.unpack(total) == CLIENTS * encoded).all(), "lanes ran into each other"
    return {
        "lane_bits": lane,
        "lane_bits_without_rotation": FixedPoint(
            **settings | {"headroom_rule": "worst-case"}
        ).narrowest_lane_bits,
        "bytes_up": played.bytes_up,
        "bytes_per_parameter": played.bytes_up / LENGTH,
    }


# ---- Flower ------------------------------------------------------------------------------------


class Flower:
    """SecAgg+ of the installed flwr, its own functions, with the thresholds of our round.

    Node 0 is the client on the clock. The last nodes share their keys and vanish.
    """

    CLIP, LEVELS, MODULUS, MAX_WEIGHT = 8.0, 2**22, 2**32, 1000.0  # its defaults
    EXAMPLES = 500

    def __init__(self) -> None:
        from flwr.common import ndarray_to_bytes
        from flwr.common.secure_aggregation import ndarrays_arithmetic
        from flwr.common.secure_aggregation.crypto import shamir, symmetric_encryption
        from flwr.supercore.primitives import asymmetric

        # the package exports a function of the same name as the module
        self.mod = import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
        self.arithmetic, self.asymmetric = ndarrays_arithmetic, asymmetric
        self.shamir, self.symmetric = shamir, symmetric_encryption
        self.threshold = (CLIENTS + COLLUDING) // 2 + 1
        self.alive = range(CLIENTS - DROPPED)
        self.gone = range(CLIENTS - DROPPED, CLIENTS)
        self.pairs = {
            nid: (asymmetric.generate_key_pairs(), asymmetric.generate_key_pairs())
            for nid in range(1, CLIENTS)
        }
        self.seeds = {nid: os.urandom(32) for nid in self.alive}
        rng = np.random.default_rng(3)
        self.update = rng.standard_normal(LENGTH).astype(np.float32)
        residues = rng.integers(0, self.MODULUS, LENGTH)
        self.upload = [ndarray_to_bytes(np.array([9])), ndarray_to_bytes(residues)]
        self.client_watch, self.server_watch = Stopwatch(), Stopwatch()

    def client(self) -> float:
        """CPU seconds of node 0 over its four stages, without quantisation."""
        from flwr.common import ndarrays_to_parameters

        mod, key, watch = self.mod, self.mod.Key, self.client_watch
        state = mod.SecAggPlusState()
        public = watch("setup", lambda: mod._setup(state, self._settings()))
        directory = {"0": [public[key.PUBLIC_KEY_1], public[key.PUBLIC_KEY_2]]}
        directory |= {str(nid): list(self._public(nid)) for nid in self.pairs}
        watch("share_keys", lambda: mod._share_keys(state, directory))
        own_share = state.rd_seed_share_dict[0], state.sk1_share_dict[0]
        boxes = [self._box(nid, state.pk2, *own_share) for nid in self.pairs]
        received = {key.CIPHERTEXT_LIST: boxes, key.SOURCE_LIST: list(self.pairs)}
        parameters = ndarrays_to_parameters([self.update])
        watch(
            "collect_masked_vectors",
            lambda: mod._collect_masked_vectors(state, received, self.EXAMPLES, parameters),
        )
        asked = {
            key.ACTIVE_NODE_ID_LIST: list(self.alive),
            key.DEAD_NODE_ID_LIST: list(self.gone),
        }
        watch("unmask", lambda: mod._unmask(state, asked))
        quantising = Stopwatch()
        quantising("quantise", lambda: mod.quantize([self.update * 0.5], self.CLIP, self.LEVELS))
        return watch.total - quantising.total

    def server(self) -> float:
        """CPU seconds of adding up the vectors and of the unmask stage, without dequantising."""
        collected = self._collected()
        total = self.server_watch("add_up", self._add_up)
        self.server_watch("unmask", lambda: self._unmask(total, collected))
        return self.server_watch.total

    def _settings(self) -> dict[str, Any]:
        key = self.mod.Key
        return {
            key.SAMPLE_NUMBER: CLIENTS,
            key.SHARE_NUMBER: CLIENTS,
            key.THRESHOLD: self.threshold,
            key.CLIPPING_RANGE: self.CLIP,
            key.TARGET_RANGE: self.LEVELS,
            key.MOD_RANGE: self.MODULUS,
            key.MAX_WEIGHT: self.MAX_WEIGHT,
        }

    def _public(self, nid: int) -> tuple[bytes, bytes]:
        (_, first), (_, second) = self.pairs[nid]
        encode = self.asymmetric.public_key_to_bytes
        return encode(first), encode(second)

    def _box(self, nid: int, public: bytes, seed_share: bytes, key_share: bytes) -> bytes:
        """What node ``nid`` encrypts for node 0; only the length of the shares matters there."""
        shared = self.symmetric.generate_shared_key(
            self.pairs[nid][1][0], self.asymmetric.bytes_to_public_key(public)
        )
        text = self.mod.share_keys_plaintext_concat(nid, 0, seed_share, key_share)
        return bytes(self.symmetric.encrypt(shared, text))

    def _collected(self) -> dict[int, list[bytes]]:
        """The shares that arrive in the unmask stage: one per owner from everybody alive."""
        secrets = self.seeds | {
            nid: self.asymmetric.private_key_to_bytes(self.pairs[nid][0][0]) for nid in self.gone
        }
        return {
            nid: self.shamir.create_shares(secret, self.threshold, CLIENTS)[: len(self.alive)]
            for nid, secret in secrets.items()
        }

    def _add_up(self) -> Any:
        """As in collect_masked_vectors_stage of secaggplus_workflow.py."""
        from flwr.common import bytes_to_ndarray

        total = None
        for _ in self.alive:
            vector = [bytes_to_ndarray(part) for part in self.upload]
            total = vector if total is None else self.arithmetic.parameters_addition(total, vector)
        return self.arithmetic.parameters_mod(total, self.MODULUS)

    def _unmask(self, total: Any, collected: dict[int, list[bytes]]) -> Any:
        """As in unmask_stage of secaggplus_workflow.py."""
        subtract, add = self.arithmetic.parameters_subtraction, self.arithmetic.parameters_addition
        generate, shapes = self.mod.pseudo_rand_gen, self.arithmetic.get_parameters_shape
        crypto, keys = self.symmetric, self.asymmetric
        for nid, shares in collected.items():
            secret = self.shamir.combine_shares(shares)
            if nid in self.alive:
                assert secret == self.seeds[nid]
                total = subtract(total, generate(secret, self.MODULUS, shapes(total)))
                continue
            for other in range(CLIENTS):
                if other == nid:
                    continue
                # node 0's key pair is not kept: any other peer's costs the same
                public = keys.public_key_to_bytes(self.pairs[other or 1][0][1])
                shared = crypto.generate_shared_key(
                    keys.bytes_to_private_key(secret), keys.bytes_to_public_key(public)
                )
                mask = generate(shared, self.MODULUS, shapes(total))
                total = add(total, mask) if nid > other else subtract(total, mask)
        return self.arithmetic.parameters_mod(total, self.MODULUS)


def beside_flower(ours: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Flower's CPU seconds in the same run, and how many of our rounds fit in them."""
    clients = [Flower().client() for _ in range(repeats)]
    flower = Flower()
    client, server = statistics.median([*clients, flower.client()]), flower.server()
    return {
        "client_cpu_s": client,
        "server_cpu_s": server,
        "client_stages": flower.client_watch.stages,
        "server_stages": flower.server_watch.stages,
        "client_ratio": client / ours["client_cpu_s"],
        "server_ratio": server / ours["server_cpu_s"],
    }


# ---- report ------------------------------------------------------------------------------------


def measure(repeats: int) -> dict[str, Any]:
    found: dict[str, Any] = {"mask_engine": mask_engine(TURNS), "ours": our_round(repeats)}
    found["flower"] = beside_flower(found["ours"], repeats)
    found["bytes_up"] = bytes_per_parameter()
    found["repeats"], found["clients"], found["dropped"] = repeats, CLIENTS, DROPPED
    engine, flower = found["mask_engine"], found["flower"]
    figures = (
        ("mask engine at D = 1M, share of the raw keystream", engine["share_1m"], 0.75),
        (
            "mask engine at D = 10k, share of the raw keystream of 40 KB messages",
            engine["share_10k_of_40_kb_messages"],
            0.6,
        ),
        ("client CPU, Flower / ours", flower["client_ratio"], 15.0),
        ("server CPU, Flower / ours", flower["server_ratio"], 50.0),
    )
    found["targets"] = [
        {"name": name, "target": target, "found": value, "met": value >= target}
        for name, value, target in figures
    ]
    packed = found["bytes_up"]["bytes_per_parameter"]
    found["targets"].append(
        {
            "name": "bytes up per parameter, 16-bit values, at most",
            "target": MAX_BYTES,
            "found": packed,
            "met": packed <= MAX_BYTES,
        }
    )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    parser.add_argument("--quick", action="store_true", help="each figure once, not the median")
    options = parser.parse_args()
    found = measure(1 if options.quick else 3)
    report = sys.stderr if options.json else sys.stdout
    engine = found["mask_engine"]
    for name, value in engine["gb_per_s"].items():
        print(f"{name:<24} {value:>8.2f} GB/s", file=report)
    print(f"D = 10k of the best tile {engine['share_10k_of_best_tile']:>8.2f}", file=report)
    for who in ("ours", "flower"):
        client, server = found[who]["client_cpu_s"], found[who]["server_cpu_s"]
        print(f"{who:<24} client {1000 * client:,.0f} ms, server {server:,.2f} s", file=report)
    for target in found["targets"]:
        verdict = "met" if target["met"] else "missed"
        wanted, value = target["target"], target["found"]
        print(f"target: {target['name']}: {wanted:g}, found {value:.2f}: {verdict}", file=report)
    if options.json:
        print(json.dumps(found, indent=2))
    return 0 if all(target["met"] for target in found["targets"]) else 1


if __name__ == "__main__":
    sys.exit(main())
