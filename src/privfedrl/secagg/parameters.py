"""The public numbers of a round, checked once.

Guarantee, complete graph: with n registered agents of which at most c collude with the coordinator,
any two sets of ``threshold`` agents share an honest one (2t > n + c), so no coordinator can have
two different survivor sets agreed, and every opened sum covers at least ``min_honest`` honest
agents. Sparse graph: audits/proofs/sparse_graph.md.

Notation: n = num_clients, c = max_colluding, t = threshold, D = vector_length, k = degree.
Reference: Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning,
CCS 2017, section 6.2 (active adversaries); Bell et al., Secure Single-Server Aggregation with
(Poly)Logarithmic Overhead, CCS 2020.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final, Literal

from privfedrl.errors import ConfigurationError
from privfedrl.parties.binding import digest
from privfedrl.secagg.graph import Graph, graph_of
from privfedrl.secagg.graph_parameters import find_graph
from privfedrl.secagg.sizes import CLIENT_TYPES, Limits, MessageType, frame_limit

__all__ = [
    "MAX_CLIENTS",
    "MAX_COMPLETE",
    "MAX_VECTOR_LENGTH",
    "SecAggParameters",
    "SparseGraph",
    "Topology",
]

MAX_COMPLETE: Final = 256
"""Everybody shares a mask with everybody up to here; the work per client grows with n."""

MAX_CLIENTS: Final = 65_520
"""Shamir points are ranks plus one, below the prime 65521."""

MAX_VECTOR_LENGTH: Final = 2**28
"""A masked vector of 64-bit words then still fits the 32-bit length field of a frame."""

Differencing = Literal["off", "model", "task"]
_SERVERS: Final = ("semi-honest", "malicious")
_SCOPES: Final = ("off", "model", "task")
_FORMAT: Final = struct.Struct(">12Q")
_NUMBERS: Final = (
    "num_clients",
    "max_colluding",
    "vector_length",
    "ring_bits",
    "threshold",
    "min_clients",
    "min_honest",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseGraph:
    """That clients mask with k neighbours only; k and t follow from the size of the roster.

    Attributes:
        max_dropouts: how many members of a roster may vanish before its sum is opened.
        security_bits, correctness_bits: failure probabilities are at most 2^-bits, 1 to 128. A
            server that tries 2^40 rosters (one colluding client's fresh keys are enough) takes 40
            of the security bits; the default leaves 40.
        server: "malicious" also keeps shares from being split between two survivor sets.
    """

    max_dropouts: int
    security_bits: int = 80
    correctness_bits: int = 40
    server: Literal["semi-honest", "malicious"] = "malicious"

    def __post_init__(self) -> None:
        rules = (
            (
                _is_integer(self.max_dropouts, 0, MAX_CLIENTS),
                "max_dropouts must be an integer >= 0",
            ),
            (_is_integer(self.security_bits, 1, 128), "security_bits must be from 1 to 128"),
            (_is_integer(self.correctness_bits, 1, 128), "correctness_bits must be from 1 to 128"),
            (self.server in _SERVERS, f"server must be one of {_SERVERS}, got {self.server!r}"),
        )
        _raise(problem for holds, problem in rules if not holds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Who masks with whom in a roster of ``num_clients``: ``server`` is None if all with all.

    ``smallest_opened`` is the fewest honest clients in any sum that the server can open.
    """

    num_clients: int
    degree: int
    threshold: int
    smallest_opened: int
    server: Literal["semi-honest", "malicious"] | None

    def graph(self, roster: bytes) -> Graph:
        """The graph of a roster with that digest."""
        return graph_of(
            roster,
            num_clients=self.num_clients,
            degree=self.degree,
            server=self.server or "malicious",  # a complete graph is the same for both
        )


@dataclass(frozen=True, slots=True, kw_only=True, init=False)
class SecAggParameters:
    """Parameters of the pairwise protocol.

    Attributes:
        num_clients: n, the registered agents (not those who show up), 2 to 256, or to 65,520 with
            a sparse graph.
        max_colluding: c, how many of them may collude with the coordinator.
        vector_length: D, words per vector, 1 to 2^28.
        ring_bits: 32 or 64; sums are taken mod 2^ring_bits.
        threshold: t. Complete graph: how many agents must answer at every stage, by default
            floor((n + c) / 2) + 1. Sparse graph: how many of a client's k neighbours, found from
            the size of the roster and never given; here for a full roster.
        min_clients: smallest cohort that an agent takes part in, at least 2.
        min_honest: smallest number of honest inputs in an opened sum, at least 2: one would be
            an individual update.
        graph: None for the complete graph.
        differencing: whether a client refuses a survivor set that, with earlier ones, isolates
            fewer than min_honest + max_colluding clients: over the rounds of one "model", of the
            whole "task", or "off" where noise covers it (see ``participation``).
    Raises:
        ConfigurationError: with one line per problem in ``problems``.
    """

    num_clients: int
    max_colluding: int
    vector_length: int
    ring_bits: int
    threshold: int
    min_clients: int
    min_honest: int
    graph: SparseGraph | None
    differencing: Differencing

    def __init__(
        self,
        *,
        num_clients: int,
        max_colluding: int,
        vector_length: int,
        ring_bits: int = 32,
        threshold: int | None = None,
        min_clients: int = 5,
        min_honest: int = 3,
        graph: SparseGraph | None = None,
        differencing: Differencing = "off",
    ) -> None:
        values = (num_clients, max_colluding, vector_length, ring_bits, 0, min_clients, min_honest)
        _raise(
            f"{name} must be an integer, got {type(value).__name__}"
            for name, value in zip(
                _NUMBERS, (*values[:4], threshold or 0, *values[5:]), strict=True
            )
            if not isinstance(value, int) or isinstance(value, bool)
        )
        if differencing not in _SCOPES:
            raise ConfigurationError(f"differencing must be one of {_SCOPES}, got {differencing!r}")
        for name, value in zip(_NUMBERS, (*values[:4], threshold or 0, *values[5:]), strict=True):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "graph", graph)
        object.__setattr__(self, "differencing", differencing)
        _raise(self._shared_problems())
        if graph is None:
            default = (num_clients + max_colluding) // 2 + 1
            object.__setattr__(self, "threshold", default if threshold is None else threshold)
            _raise(self._complete_problems())
        else:
            _raise(self._sparse_problems(threshold))
            object.__setattr__(self, "threshold", self.topology(num_clients).threshold)
            self.topology(self.floor)  # the smallest roster must be feasible too

    def _shared_problems(self) -> list[str]:
        n, c = self.num_clients, self.max_colluding
        most = MAX_COMPLETE if self.graph is None else MAX_CLIENTS
        hint = "" if self.graph or n <= MAX_COMPLETE else "; more need graph=SparseGraph(...)"
        rules = (
            (2 <= n <= most, f"num_clients must be from 2 to {most}, got {n}{hint}"),
            (0 <= c < n, f"max_colluding must be from 0 to num_clients - 1, got {c} of {n}"),
            (
                1 <= self.vector_length <= MAX_VECTOR_LENGTH,
                f"vector_length must be from 1 to {MAX_VECTOR_LENGTH}, got {self.vector_length}",
            ),
            (self.ring_bits in (32, 64), f"ring_bits must be 32 or 64, got {self.ring_bits}"),
            (
                2 <= self.min_clients <= n,
                f"min_clients must be from 2 to num_clients, got {self.min_clients} of {n}",
            ),
            (self.min_honest >= 2, f"min_honest must be >= 2, got {self.min_honest}"),
        )
        return [problem for holds, problem in rules if not holds]

    def _complete_problems(self) -> list[str]:
        n, c, t = self.num_clients, self.max_colluding, self.threshold
        rules = (
            (
                2 * t > n + c,
                f"threshold must be > (num_clients + max_colluding) / 2, got {t} of {n} with {c}",
            ),
            (t <= n, f"threshold must be <= num_clients, got {t} of {n}"),
            (
                t - c >= self.min_honest,
                f"threshold - max_colluding must be >= min_honest = {self.min_honest}, "
                f"got {t} - {c}",
            ),
        )
        return [problem for holds, problem in rules if not holds]

    def _sparse_problems(self, threshold: int | None) -> list[str]:
        n, c = self.num_clients, self.max_colluding
        rules = (
            (
                threshold is None,
                "threshold must not be given with a sparse graph: it follows from the roster",
            ),
            (
                self.min_clients - c >= self.min_honest,
                f"min_clients - max_colluding must be >= min_honest = {self.min_honest}, "
                f"got {self.min_clients} - {c}",
            ),
            (
                self.graph is None or self.graph.max_dropouts <= n - self.min_clients,
                f"max_dropouts must be <= num_clients - min_clients = {n - self.min_clients}",
            ),
        )
        return [problem for holds, problem in rules if not holds]

    @property
    def floor(self) -> int:
        """The smallest roster: max(threshold, min_clients) on a complete graph.

        On a sparse one min_clients + max_dropouts, so that min_clients are left when it has lost
        all that it may lose.
        """
        if self.graph is None:
            return max(self.threshold, self.min_clients)
        return self.min_clients + self.graph.max_dropouts

    def stage_floor(self, roster_size: int) -> int:
        """The smallest U2 and U3 of a roster of that size."""
        return self.floor if self.graph is None else roster_size - self.graph.max_dropouts

    def topology(self, roster_size: int) -> Topology:
        """Degree and threshold for a roster of that size; everybody computes it for themselves.

        Raises:
            ConfigurationError: no graph meets the bounds.
        """
        if self.graph is None:
            return Topology(
                num_clients=roster_size,
                degree=roster_size - 1,
                threshold=self.threshold,
                smallest_opened=self.threshold - self.max_colluding,
                server=None,
            )
        found = find_graph(
            roster_size,
            corrupt=self.max_colluding,
            dropouts=self.graph.max_dropouts,
            security_bits=self.graph.security_bits,
            correctness_bits=self.graph.correctness_bits,
            server=self.graph.server,
            min_opened=self.min_honest,
        )
        return Topology(
            num_clients=roster_size,
            degree=found.degree,
            threshold=found.threshold,
            smallest_opened=found.smallest_opened,
            server=None if found.complete else self.graph.server,
        )

    @property
    def max_neighbours(self) -> int:
        """The most neighbours that a client may have; a roster that would give more is refused."""
        if self.graph is None:
            return self.num_clients - 1
        ends = (self.topology(size).degree for size in (self.floor, self.num_clients))
        # between the ends a degree may be a step or two higher
        return min(max(ends) + 8, self.num_clients - 1)

    @property
    def vector_bytes(self) -> int:
        """Bytes of one ring vector."""
        return self.vector_length * self.ring_bits // 8

    def canonical_bytes(self) -> bytes:
        """96 bytes: twelve big-endian 64-bit integers.

        The seven numbers in the order of the class; then max_dropouts, security_bits,
        correctness_bits and server (1 semi-honest, 2 malicious), all 0 on a complete graph; then
        differencing (0 off, 1 model, 2 task).
        """
        graph = self.graph
        sparse = (
            (0, 0, 0, 0)
            if graph is None
            else (
                graph.max_dropouts,
                graph.security_bits,
                graph.correctness_bits,
                1 + _SERVERS.index(graph.server),
            )
        )
        numbers = (getattr(self, name) for name in _NUMBERS)
        return _FORMAT.pack(*numbers, *sparse, _SCOPES.index(self.differencing))

    @classmethod
    def from_canonical_bytes(cls, data: bytes) -> SecAggParameters:
        """Inverse of :meth:`canonical_bytes`; what could not be constructed is refused."""
        if len(data) != _FORMAT.size:
            raise ConfigurationError(f"parameters must be {_FORMAT.size} bytes, got {len(data)}")
        values = _FORMAT.unpack(data)
        numbers: dict[str, Any] = dict(zip(_NUMBERS, values[:7], strict=True))
        dropouts, security, correctness, server, scope = values[7:]
        if server > len(_SERVERS) or scope >= len(_SCOPES):
            raise ConfigurationError("parameters name an unknown kind of server or differencing")
        graph = None
        if server:
            del numbers["threshold"]
            graph = SparseGraph(
                max_dropouts=dropouts,
                security_bits=security,
                correctness_bits=correctness,
                server=_SERVERS[server - 1],
            )
        found = cls(**numbers, graph=graph, differencing=_SCOPES[scope])
        if found.canonical_bytes() != data:
            raise ConfigurationError("parameters are not in their canonical form")
        return found

    @property
    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes under their own label: 32 bytes."""
        return digest("parameters", self.canonical_bytes())

    @property
    def limits(self) -> Limits:
        """What the sizes of messages depend on."""
        return Limits(
            num_clients=self.num_clients,
            neighbours=self.max_neighbours,
            vector_length=self.vector_length,
            ring_bits=self.ring_bits,
        )

    def frame_limit(self, message_type: MessageType) -> int:
        """The largest frame of ``message_type`` in bytes."""
        return frame_limit(message_type, self.limits)

    def bytes_up_per_client(self) -> int:
        """What one client sends in a round, all five messages, at most.

        Exact for a full cohort whose names all have 64 characters.
        """
        return sum(self.frame_limit(message_type) for message_type in CLIENT_TYPES)


def _is_integer(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _raise(problems: Any) -> None:
    found = tuple(problems)
    if found:
        raise ConfigurationError("; ".join(found), problems=found)
