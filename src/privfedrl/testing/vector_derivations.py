"""Vectors of the single steps: labels, digests, trees, graphs, keys, shares, sizes.

Guarantee: each value stands beside everything that it was computed from, so that another
implementation can be compared step by step.

Notation: as in ``docs/protocol.md``; byte strings in hex.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Final

import numpy as np

from privfedrl.parties.binding import digest, join, label
from privfedrl.parties.members import Members
from privfedrl.primitives import shamir
from privfedrl.primitives.key_agreement import KeyPair, hkdf_sha256
from privfedrl.primitives.sealing import seal
from privfedrl.primitives.stream import add_keystream
from privfedrl.secagg.graph import ServerModel, circulant, graph_of
from privfedrl.secagg.graph_parameters import graph_parameters
from privfedrl.secagg.merkle import MerkleTree
from privfedrl.secagg.parameters import SecAggParameters, SparseGraph
from privfedrl.secagg.sizes import MessageType

__all__ = ["derivations", "graphs"]

LABELS: Final = (
    *("config", "registry", "parameters", "roster", "shared", "survivors", "vector", "sum"),
    *("ideal-sum", "b", "receipt", "self", "pair", "share", "graph", "offsets"),
)
ROSTER: Final = bytes(range(32))
CFG: Final = bytes(range(32, 64))

# n, gamma = corrupt fraction, delta = dropout fraction; sigma = eta = 40
FINDER: Final[tuple[tuple[int, float | Fraction, float], ...]] = (
    *((n, 0.05, 0.05) for n in (100, 1_000, 10_000)),
    *((n, 0.1, 0.1) for n in (100, 1_000, 10_000)),
    *((n, 0.2, 0.1) for n in (100, 1_000, 10_000)),
    *((n, Fraction(1, 3), 0.1) for n in (100, 1_000)),
)
# (n, corruption, dropout, server, published degree, published threshold); sigma = 40, eta = 20
PUBLISHED: Final[tuple[tuple[int, float, float, ServerModel, int, int], ...]] = (
    (100, 0.33, 0.33, "semi-honest", 68, 34),
    (10_000, 0.33, 0.33, "semi-honest", 422, 221),
    (100, 0.3, 0.3, "malicious", 92, 62),
)
PARAMETERS: Final = (
    SecAggParameters(num_clients=5, max_colluding=0, vector_length=1),
    SecAggParameters(
        num_clients=256, max_colluding=85, vector_length=20_000, ring_bits=64, differencing="task"
    ),
    SecAggParameters(
        num_clients=1000,
        max_colluding=100,
        vector_length=100_000,
        min_clients=800,
        graph=SparseGraph(max_dropouts=100),
        differencing="model",
    ),
)


def derivations() -> dict[str, Any]:
    """Labels, digests, sets, trees, keys, one masked vector, shares, parameters and sizes."""
    return {
        "labels": {name: label(name).hex() for name in LABELS},
        "join": [
            {"parts": [part.hex() for part in parts], "joined": join(*parts).hex()}
            for parts in ((), (b"",), (b"", b""), (b"ab", b"c"), (b"a", b"bc"))
        ],
        "digest": [
            {"label": "vector", "parts": ["", "6162"], "digest": digest("vector", b"", b"ab").hex()}
        ],
        "members": [
            {"num_agents": count, "indices": list(indices), "bytes": _members(indices, count)}
            for count, indices in (
                (1, (0,)),
                (8, (0, 7)),
                (9, (8,)),
                (10, (0, 2, 3, 9)),
                (20, tuple(range(0, 20, 3))),
            )
        ],
        "merkle": list(_trees()),
        "keys": _keys(),
        "shamir": list(_shares()),
        "parameters": [_sizes(parameters) for parameters in PARAMETERS],
    }


def _members(indices: tuple[int, ...], count: int) -> str:
    return Members.of(indices, count).to_bytes().hex()


def _trees() -> Iterator[dict[str, Any]]:
    for count in range(10):
        leaves = [bytes([index]) * index for index in range(count)]
        tree = MerkleTree(leaves)
        known = [[index] for index in range(count)]
        known += [[0, count - 1], list(range(count)), list(range(0, count, 3))] if count > 1 else []
        yield {
            "leaves": [leaf.hex() for leaf in leaves],
            "root": tree.root.hex(),
            "proofs": [{"known": at, "proof": tree.proof(at).hex()} for at in known],
        }


def _keys() -> dict[str, Any]:
    """Two clients, low < high by name: every intermediate value of their common keys."""
    low, high = b"agent-1", b"bank"
    secrets = {name: bytes([value]) * 32 for value, name in enumerate(("c", "s", "C", "S"), 1)}
    pairs = {name: KeyPair.from_secret_bytes(secret) for name, secret in secrets.items()}
    seed, words = bytes([9]) * 32, np.arange(6, dtype=np.uint32)
    share_secret = pairs["c"].agree(pairs["C"].public)
    share_info = label("share") + join(low, high)
    share_key = hkdf_sha256(share_secret, salt=ROSTER, info=share_info)
    point = (2).to_bytes(4, "big")
    context = label("share") + join(CFG, ROSTER, low, high, point)
    plaintext = bytes(range(72))
    pair_secret = pairs["s"].agree(pairs["S"].public)
    pair_info = label("pair") + join(low, high)
    pair_key = hkdf_sha256(pair_secret, salt=ROSTER, info=pair_info)
    self_info = label("self") + join(low)
    self_key = hkdf_sha256(seed, salt=ROSTER, info=self_info)
    streams = {name: np.zeros(6, np.uint32) for name in ("self", "pair")}
    add_keystream(streams["self"], self_key)
    add_keystream(streams["pair"], pair_key)
    masked = words + streams["self"] + streams["pair"]  # low adds what it shares with high
    return {
        "cfg": CFG.hex(),
        "roster": ROSTER.hex(),
        "low": low.decode(),
        "high": high.decode(),
        "low_secrets": {"share": secrets["c"].hex(), "mask": secrets["s"].hex()},
        "high_secrets": {"share": secrets["C"].hex(), "mask": secrets["S"].hex()},
        "high_public": {"share": pairs["C"].public.hex(), "mask": pairs["S"].public.hex()},
        "share": {
            "agreed": share_secret.hex(),
            "info": share_info.hex(),
            "key": share_key.hex(),
            "recipient_point": 2,
            "context": context.hex(),
            "plaintext": plaintext.hex(),
            "sealed": seal(share_key, plaintext, context=context).hex(),
        },
        "pair": {"agreed": pair_secret.hex(), "info": pair_info.hex(), "key": pair_key.hex()},
        "self": {"seed": seed.hex(), "info": self_info.hex(), "key": self_key.hex()},
        "commitment": digest("b", ROSTER, low, seed).hex(),
        "vector": words.tolist(),
        "keystreams": {name: stream.tolist() for name, stream in streams.items()},
        "masked": masked.tolist(),
        "vector_digest": digest("vector", ROSTER, low, masked.astype("<u4").tobytes()).hex(),
    }


def _shares() -> Iterator[dict[str, Any]]:
    """Random bytes in, shares out; the second stream holds words that must be drawn again."""
    for threshold, points, stream in (
        (1, (1, 65520), b""),
        (2, (1, 2, 5), bytes(range(72))),
        (2, (3, 4), b"\xf1\xff" + bytes(range(70)) + b"\xff\xff" + b"\x07\x00"),
    ):
        secrets = (bytes(range(32)), b"\xff" * 32)
        left = bytearray(stream)
        calls: list[int] = []

        def entropy(n: int, left: bytearray = left, calls: list[int] = calls) -> bytes:
            taken = bytes(left[:n])
            del left[:n]
            calls.append(n)
            return taken

        shares = shamir.split(secrets, threshold=threshold, points=points, entropy=entropy)
        yield {
            "secrets": [secret.hex() for secret in secrets],
            "threshold": threshold,
            "points": list(points),
            "entropy": stream.hex(),
            "draws": calls,
            "shares": [[shamir.encode_share(share).hex() for share in row] for row in shares],
        }


def _sizes(parameters: SecAggParameters) -> dict[str, Any]:
    limits = parameters.limits
    return {
        "bytes": parameters.canonical_bytes().hex(),
        "digest": parameters.digest.hex(),
        "num_clients": limits.num_clients,
        "neighbours": limits.neighbours,
        "vector_length": limits.vector_length,
        "ring_bits": limits.ring_bits,
        "limits": {kind.name: parameters.frame_limit(kind) for kind in MessageType},
    }


def graphs() -> dict[str, Any]:
    """Degrees and thresholds, offsets, permutations and neighbours."""
    servers: tuple[ServerModel, ...] = ("semi-honest", "malicious")
    return {
        "finder": [_found(row, server) for row in FINDER for server in servers],
        "published": [
            {
                **_found((n, gamma, delta), server, correctness_bits=20),
                "published": [degree, threshold],
            }
            for n, gamma, delta, server, degree, threshold in PUBLISHED
        ],
        "offsets": [
            {"num_clients": n, "degree": k, "offsets": list(circulant(n, k).offsets)}
            for n, k in ((7, 4), (12, 4), (20, 6), (100, 32), (1000, 128))
        ],
        "graphs": [
            _graph(n, k, server)
            for n, k in ((5, 4), (7, 4), (20, 6), (1000, 128))
            for server in servers
        ],
    }


def _found(
    row: tuple[int, float | Fraction, float], server: ServerModel, correctness_bits: int = 40
) -> dict[str, Any]:
    n, gamma, delta = row
    found = graph_parameters(
        num_clients=n,
        max_corrupt=gamma,
        max_dropout=delta,
        correctness_bits=correctness_bits,
        server=server,
    )
    return {
        "num_clients": n,
        "corrupt": found.max_corrupt,
        "dropouts": found.max_dropout,
        "security_bits": found.security_bits,
        "correctness_bits": correctness_bits,
        "server": server,
        "degree": found.degree,
        "threshold": found.threshold,
        "smallest_opened": found.smallest_opened,
    }


def _graph(n: int, k: int, server: ServerModel) -> dict[str, Any]:
    graph = graph_of(ROSTER, num_clients=n, degree=k, server=server)
    shown = range(n) if n <= 20 else (0, 1, n // 2, n - 1)
    return {
        "roster": ROSTER.hex(),
        "num_clients": n,
        "degree": k,
        "server": server,
        "neighbours": {str(rank): list(graph.neighbours(rank)) for rank in shown},
    }
