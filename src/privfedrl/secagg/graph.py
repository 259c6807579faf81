"""The sparse graph of a round: who shares masks, shares and signatures with whom.

Guarantee: every participant computes the same simple, symmetric, k-regular graph from the roster
digest alone, and on it a malicious coordinator can open no sum over fewer than
:func:`smallest_opened_set` honest clients (``audits/proofs/sparse_graph.md``).

Notation: n = num_clients (members of the roster), k = degree, t = threshold, c = corrupt clients,
lambda = second eigenvalue: the largest absolute value of a non-trivial eigenvalue of the graph,
rank = position of a client in the roster, place = its position on the circle after shuffling.
References: Bell et al., Secure Single-Server Aggregation with (Poly)Logarithmic Overhead, CCS 2020
(ring); Alon and Chung, Explicit construction of linear sized tolerant networks, 1988 (mixing).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError
from privfedrl.parties.binding import DIGEST_BYTES, label

__all__ = [
    "MAX_NODES",
    "Circulant",
    "Graph",
    "ServerModel",
    "circulant",
    "graph_of",
    "smallest_opened_set",
]

MAX_NODES: Final = 1 << 17
"""Beyond this the search for offsets takes seconds; the shares of one owner end earlier."""

_PROPOSALS: Final = 4096
"""Exchanges of one offset that are tried: lambda then is 0.8 to 1.7 times the 2 sqrt(k - 1) of a
random regular graph for n up to 100,000. The search costs 0.1 s for n = 10,000."""

_UNIT: Final = 1 << 30
"""Cosines are rounded to this grid and summed as integers: the search then takes the same path on
every machine, ties included, and the error of lambda is below k / 2^30."""

_PRECISION: Final = 192
"""Bits after the point while cosines are computed."""

_SLACK: Final = 1e-9
"""Relative slack of the two isolation inequalities: rounding may only make the bound smaller."""

_KEY_BYTES: Final = 16
"""Sort keys of 128 bits: two of n are equal with probability below n^2 / 2^129."""

ServerModel = Literal["semi-honest", "malicious"]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Circulant:
    """Public offsets of a circulant graph: place p is joined to p + o and p - o (mod n).

    Attributes:
        num_clients: n.
        degree: k, even; there are k/2 offsets, distinct, from 1 to (n - 1) // 2.
        offsets: sorted.
        second_eigenvalue: lambda, rounded up.
    """

    num_clients: int
    degree: int
    offsets: tuple[int, ...]
    second_eigenvalue: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graph:
    """The graph of one roster: k-regular, symmetric, without loops or double edges.

    Attributes:
        num_clients: n.
        degree: k; n - 1 is the complete graph.
    """

    num_clients: int
    degree: int
    _rank_at: Indices = field(repr=False)
    _place_of: Indices = field(repr=False)
    _steps: Indices = field(repr=False)

    def neighbours(self, rank: int) -> tuple[int, ...]:
        """The ``degree`` neighbours of ``rank`` in increasing order, never ``rank`` itself.

        Raises:
            ConfigurationError: ``rank`` is not from 0 to num_clients - 1.
        """
        if not 0 <= rank < self.num_clients:
            raise ConfigurationError(
                f"rank must be from 0 to num_clients - 1 = {self.num_clients - 1}, got {rank}"
            )
        if self.degree == self.num_clients - 1:
            return (*range(rank), *range(rank + 1, self.num_clients))
        ranks = self._rank_at[(self._place_of[rank] + self._steps) % self.num_clients]
        ranks.sort()
        return tuple(ranks.tolist())


@lru_cache(maxsize=16)
def graph_of(roster: bytes, *, num_clients: int, degree: int, server: ServerModel) -> Graph:
    """The graph that belongs to a roster digest.

    A permutation of the ranks from SHAKE-256(L("graph") || roster). For the semi-honest server
    then the ring in which places at distance 1 to k/2 are joined: the graph for which connectedness
    is proved. For the malicious server the public :func:`circulant`: the second eigenvalue of a
    ring is nearly k, so nothing could be proved of it. Cached: O(n log n) once, O(k) per client.

    Args:
        roster: 32 bytes, the digest that every member signed.
        degree: even, 2 to n - 2, or n - 1 for the complete graph.
    Raises:
        ConfigurationError: an argument is out of range.
    """
    _check_nodes(num_clients)
    if len(roster) != DIGEST_BYTES:
        raise ConfigurationError(f"roster must be {DIGEST_BYTES} bytes, got {len(roster)}")
    if server not in ("semi-honest", "malicious"):
        raise ConfigurationError(f'server must be "semi-honest" or "malicious", got {server!r}')
    if degree == num_clients - 1:
        offsets = np.empty(0, dtype=np.int64)
    else:
        _check_degree(num_clients, degree)
        offsets = np.array(_offsets(num_clients, degree, server), dtype=np.int64)
    rank_at = _permutation(roster, num_clients)
    place_of = np.empty_like(rank_at)
    place_of[rank_at] = np.arange(num_clients)
    return Graph(
        num_clients=num_clients,
        degree=degree,
        _rank_at=_frozen(rank_at),
        _place_of=_frozen(place_of),
        _steps=_frozen(np.concatenate([offsets, -offsets])),
    )


@lru_cache(maxsize=64)
def circulant(num_clients: int, degree: int) -> Circulant:
    """The public offsets for (n, k): a good expander, the same on every machine, without secrets.

    Starts at the k/2 smallest of (n - 1) // 2 keys from SHAKE-256(L("offsets") || n || k) and
    exchanges single offsets while that lowers lambda; the exchanges that are tried come from the
    same stream. Eigenvalue m is the sum of 2 cos(2 pi m o / n) over the offsets o, so lambda is
    computed, not estimated.

    Args:
        num_clients: n, 3 to MAX_NODES.
        degree: k, even, 2 to n - 1.
    Raises:
        ConfigurationError: no such graph exists.
    """
    _check_nodes(num_clients)
    _check_degree(num_clients, degree)
    half = (num_clients - 1) // 2
    name = label("offsets") + b"".join(value.to_bytes(8, "big") for value in (num_clients, degree))
    words = np.frombuffer(hashlib.shake_256(name).digest(8 * (half + 2 * _PROPOSALS)), dtype="<u8")
    start = (np.argsort(words[:half], kind="stable")[: degree // 2] + 1).tolist()
    offsets, least = _improve(num_clients, start, words[half:])
    return Circulant(
        num_clients=num_clients,
        degree=degree,
        offsets=tuple(sorted(offsets)),
        second_eigenvalue=(least + degree) / _UNIT,
    )


def smallest_opened_set(graph: Circulant, *, threshold: int, corrupt: int) -> int:
    """A lower bound on the honest clients in any sum that a malicious server can open.

    Every member of an opened set S has t neighbours in S and the corrupt set C (proof, step 2),
    and k - t + 1 in S alone, because fewer than 2t - k of its neighbours are corrupt (event E1).
    With s = |S|/n and w = s + c/n the mixing lemma turns this into

        k - t + 1 <= k s + lambda (1 - s)
        t         <= k w + lambda sqrt(w (1 - w) (1 - s) / s)

    The first rules out small S, the second middling ones. The answer is the least |S| with both;
    at most n - c, at least min(n - c, k - t + 2). It holds for the graph at hand: no independence
    of dropouts and no luck is assumed beyond E1.

    Args:
        threshold: t, k/2 < t <= k.
        corrupt: c, at most this many members of the roster collude with the server.
    """
    n, k, t = graph.num_clients, graph.degree, threshold
    if not 0 <= corrupt < n:
        raise ConfigurationError(f"corrupt must be from 0 to num_clients - 1, got {corrupt} of {n}")
    if not k < 2 * t <= 2 * k:
        raise ConfigurationError(f"threshold must be > degree / 2 and <= degree, got {t} of {k}")
    sizes = np.arange(min(k - t + 2, n - corrupt), n - corrupt + 1, dtype=np.float64)
    s, w = sizes / n, (sizes + corrupt) / n
    mixing = graph.second_eigenvalue
    inside = k * s + mixing * (1 - s)
    reached = k * w + mixing * np.sqrt(w * (1 - w) * (1 - s) / s)
    possible = (inside * (1 + _SLACK) >= k - t + 1) & (reached * (1 + _SLACK) >= t)
    return int(sizes[possible].min(initial=n - corrupt))


def _offsets(num_clients: int, degree: int, server: ServerModel) -> tuple[int, ...]:
    if server == "malicious":
        return circulant(num_clients, degree).offsets
    return tuple(range(1, degree // 2 + 1))


def _permutation(roster: bytes, num_clients: int) -> Indices:
    """The rank at each place.

    Sorting independent uniform keys gives every order the same probability when no two keys are
    equal, by symmetry; so the permutation is uniform up to n^2 / 2^129 (2^-102 for n = 10,000).
    Unlike Fisher-Yates with rejection it needs no loop in Python.
    """
    stream = hashlib.shake_256(label("graph") + roster).digest(_KEY_BYTES * num_clients)
    keys = np.frombuffer(stream, dtype="<u8").reshape(num_clients, 2)
    return np.lexsort((keys[:, 1], keys[:, 0])).astype(np.int64, copy=False)


def _improve(
    num_clients: int, start: list[int], words: NDArray[np.uint64]
) -> tuple[list[int], int]:
    """Exchange offsets while the largest |eigenvalue| falls; it is returned in units of 1/_UNIT.

    An exchange is computed in full only if it takes at least half a unit off the eigenvalue that
    is worst now.
    """
    offsets, used = list(start), set(start)
    places = (words[::2] % np.uint64(len(start))).tolist()
    entrants = (words[1::2] % np.uint64((num_clients - 1) // 2) + np.uint64(1)).tolist()
    cosines = _cosines(num_clients)
    frequencies = np.arange(1, num_clients // 2 + 1)
    values = np.zeros(len(frequencies), dtype=np.int64)
    for offset in offsets:
        values += cosines[frequencies * offset % num_clients]
    worst = int(np.abs(values).argmax())
    for place, entrant in zip(places, entrants, strict=True):
        leaver = offsets[place]
        change = int(
            cosines[(worst + 1) * entrant % num_clients]
            - cosines[(worst + 1) * leaver % num_clients]
        )
        if entrant in used or change * (1 if values[worst] > 0 else -1) > -_UNIT // 2:
            continue
        moved = values + cosines[frequencies * entrant % num_clients]
        moved -= cosines[frequencies * leaver % num_clients]
        peak = int(np.abs(moved).argmax())
        if abs(moved[peak]) < abs(values[worst]):
            values, worst, offsets[place] = moved, peak, entrant
            used.remove(leaver)
            used.add(entrant)
    return offsets, abs(int(values[worst]))


def _cosines(num_clients: int) -> Indices:
    """2 cos(2 pi j / n) to the nearest 1/_UNIT, j = 0 .. n - 1.

    In integers, because a cosine in floating point may differ in its last bit between machines.
    With c_j = 2 cos(j theta): c_{j+1} = c_1 c_j - c_{j-1}. An error of one unit in the last of
    _PRECISION bits grows to at most n^2 of them, so that 150 bits are right.
    """
    one = 1 << _PRECISION
    first = 2 * _cosine(2 * _pi() // num_clients)
    values = [2 * one, first]
    for _ in range(num_clients // 2 - 1):
        values.append((first * values[-1] >> _PRECISION) - values[-2])
    shift = _PRECISION - _UNIT.bit_length() + 1
    half = [(value + (1 << (shift - 1))) >> shift for value in values[: num_clients // 2 + 1]]
    return np.array(half + half[(num_clients - 1) // 2 : 0 : -1], dtype=np.int64)


def _pi() -> int:
    """pi with _PRECISION bits after the point: 16 arctan(1/5) - 4 arctan(1/239) (Machin)."""
    total, one = 0, 1 << (_PRECISION + 16)
    for factor, inverse in ((16, 5), (-4, 239)):
        power, index = one // inverse, 0
        while power:
            total += (-1) ** index * factor * (power // (2 * index + 1))
            power, index = power // inverse**2, index + 1
    return total >> 16


def _cosine(angle: int) -> int:
    """cos of 0 to pi, by its series; _PRECISION bits after the point."""
    square, total, term, index = angle * angle >> _PRECISION, 0, 1 << _PRECISION, 0
    while term:
        total += term
        index += 2
        term = -(term * square >> _PRECISION) // (index * (index - 1))
    return total


def _check_nodes(num_clients: int) -> None:
    if not 2 <= num_clients <= MAX_NODES:
        raise ConfigurationError(f"num_clients must be from 2 to {MAX_NODES}, got {num_clients}")


def _check_degree(num_clients: int, degree: int) -> None:
    if degree % 2 or not 2 <= degree < num_clients:
        raise ConfigurationError(
            f"degree must be even and from 2 to num_clients - 1, got {degree} of {num_clients}"
        )


def _frozen(values: Indices) -> Indices:
    values.flags.writeable = False
    return values
