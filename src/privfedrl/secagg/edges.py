"""What the two ends of an edge compute alike: computed twice in reality, once in a simulation.

Guarantee: a vector that :class:`SharedEdges` has masked is, byte for byte, what :class:`OwnEdges`
makes of it, whichever clients mask, drop out or disagree about their peers, in whatever order.

An edge is a pair of clients. Its ends agree on a secret (X25519 of either private key with the
other public key is the same) and expand the same keystream G(key), which one end adds and the other
subtracts. In a real deployment every client has its own :class:`OwnEdges`, which remembers nothing.
A simulation of many clients in one process may give them one :class:`SharedEdges`: the first end
of an edge leaves the opposite of its mask in an accumulator that waits for the other end.

Notation: n = clients, D = vector length, ``roster`` = the digest that separates rounds, attempts
and cohorts from each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NoReturn, Protocol

import numpy as np

from privfedrl.errors import ConfigurationError, LocalProtocolError
from privfedrl.primitives.key_agreement import KeyPair
from privfedrl.primitives.stream import RingVector
from privfedrl.secagg.suite import Suite

__all__ = ["Edges", "OwnEdges", "SharedEdges"]


class Edges(Protocol):
    """The seam: what a client asks for when it deals with the clients on its other ends."""

    def agree(self, pair: KeyPair, peer_public: bytes) -> bytes:
        """The secret that ``pair`` has in common with the owner of ``peer_public``: 32 bytes.

        Raises:
            RemoteProtocolError: as :meth:`KeyPair.agree` does.
        """

    def derive(
        self, suite: Suite, pair: KeyPair, peer_public: bytes, *, salt: bytes, info: bytes
    ) -> bytes:
        """The 32-byte key for ``info`` that ``pair`` has in common with the owner of the other."""

    def mask(
        self,
        vector: RingVector,
        *,
        suite: Suite,
        roster: bytes,
        name: str,
        add: Mapping[str, bytes],
        subtract: Mapping[str, bytes],
        self_key: bytes,
    ) -> None:
        """vector += G(self_key) + the sum of G over ``add`` - that over ``subtract``, in place.

        Args:
            vector: uint32 or uint64 [D], of the client called ``name``.
            add, subtract: by peer, the 32-byte key of the edge to it; no peer is in both.
        """

    def verified(self, registry_digest: bytes) -> dict[bytes, Any]:
        """Where to remember the frames whose signatures fit that registry."""


class OwnEdges:
    """The edges of one client that trusts nobody: every end computes everything itself.

    Args:
        threads: at most so many slices of a vector are masked at once; pays from about 250,000
            words. The result is the same.
    """

    __slots__ = ("_threads",)

    def __init__(self, *, threads: int = 1) -> None:
        if threads < 1:
            raise ConfigurationError(f"threads must be >= 1, got {threads}")
        self._threads = threads

    def agree(self, pair: KeyPair, peer_public: bytes) -> bytes:
        return pair.agree(peer_public)

    def derive(
        self, suite: Suite, pair: KeyPair, peer_public: bytes, *, salt: bytes, info: bytes
    ) -> bytes:
        return suite.derive(self.agree(pair, peer_public), salt=salt, info=info)

    def mask(
        self,
        vector: RingVector,
        *,
        suite: Suite,
        roster: bytes,
        name: str,
        add: Mapping[str, bytes],
        subtract: Mapping[str, bytes],
        self_key: bytes,
    ) -> None:
        keys = (*add.values(), self_key)
        suite.apply_keystreams(
            vector, add=keys, subtract=tuple(subtract.values()), threads=self._threads
        )

    def verified(self, registry_digest: bytes) -> dict[bytes, Any]:
        return {}


_Place = tuple[bytes, str, str, int]
"""Whose vector: roster, name, dtype and D."""


@dataclass(slots=True)
class _Waiting:
    """What others have left for one client: ``total`` = sum of sign * G(key) over ``signs``."""

    total: RingVector
    signs: dict[bytes, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Edge:
    """One end's view of an edge: the key to ``peer``, added (+1) or subtracted (-1)."""

    peer: str
    key: bytes = field(repr=False)
    sign: int


class SharedEdges:
    """SIMULATION ONLY: holds what many clients know, so that each edge is computed once.

    Whoever can read this object can unmask every client in it. Its repr says what it is, and it
    refuses to be pickled or copied. Memory: one secret per edge and purpose until :meth:`close`,
    and at most one vector per client that others have masked against and that has not masked yet
    (n * D * itemsize in all); a vector is released when its client masks. Not thread-safe.
    """

    __slots__ = ("_closed", "_derived", "_done", "_secrets", "_verified", "_waiting")

    def __init__(self) -> None:
        self._secrets: dict[bytes, bytes] = {}
        self._derived: dict[tuple[bytes, bytes, bytes, bytes], bytes] = {}
        self._waiting: dict[_Place, _Waiting] = {}
        self._done: set[_Place] = set()
        self._verified: dict[bytes, dict[bytes, Any]] = {}
        self._closed = False

    def agree(self, pair: KeyPair, peer_public: bytes) -> bytes:
        """As :meth:`Edges.agree`; the second end gets what the first has computed."""
        self._require_open()
        ends = min(pair.public, peer_public) + max(pair.public, peer_public)
        secret = self._secrets.get(ends)
        if secret is None:
            secret = self._secrets[ends] = pair.agree(peer_public)
        return secret

    def derive(
        self, suite: Suite, pair: KeyPair, peer_public: bytes, *, salt: bytes, info: bytes
    ) -> bytes:
        """As :meth:`Edges.derive`; the second end gets what the first has computed."""
        self._require_open()
        mine, theirs = pair.public, peer_public
        place = (salt, info, mine, theirs) if mine < theirs else (salt, info, theirs, mine)
        key = self._derived.pop(place, None)  # there is no third end
        if key is None:
            key = suite.derive(self.agree(pair, peer_public), salt=salt, info=info)
            self._derived[place] = key
        return key

    def mask(
        self,
        vector: RingVector,
        *,
        suite: Suite,
        roster: bytes,
        name: str,
        add: Mapping[str, bytes],
        subtract: Mapping[str, bytes],
        self_key: bytes,
    ) -> None:
        """As :meth:`Edges.mask`. Peers that have not masked yet find their part waiting.

        What waits is only used as far as it fits: an edge that the other end saw and this one does
        not (another view of the cohort) is taken back out.

        Raises:
            LocalProtocolError: closed, or two masks have the same key.
        Guarantees:
            After any other error everything is closed: nothing half done is ever used.
        """
        self._require_open()
        edges = [_Edge(peer, key, 1) for peer, key in add.items()]
        edges += [_Edge(peer, key, -1) for peer, key in subtract.items()]
        if len({self_key, *(edge.key for edge in edges)}) != 1 + len(edges):
            raise LocalProtocolError("every mask of a client must have a key of its own")
        try:
            self._mask(vector, suite, (roster, name), edges, self_key)
        except BaseException:
            self.close()
            raise

    def _mask(
        self,
        vector: RingVector,
        suite: Suite,
        owner: tuple[bytes, str],
        edges: Sequence[_Edge],
        self_key: bytes,
    ) -> None:
        place = (*owner, vector.dtype.str, vector.size)
        self._done.add(place)
        waiting = self._waiting.pop(place, None)
        found = waiting.signs if waiting else {}
        own = {edge.key: edge.sign for edge in edges}
        undo = [(key, -sign) for key, sign in found.items() if own.get(key) != sign]
        fresh = [edge for edge in edges if found.get(edge.key) != edge.sign]
        mirrors = self._mirrors(owner[0], [edge for edge in fresh if edge.key not in found], vector)
        changes = [*undo, *((edge.key, edge.sign) for edge in fresh), (self_key, 1)]
        if waiting:
            np.add(vector, waiting.total, out=vector)
        suite.apply_keystreams(
            vector,
            add=[key for key, sign in changes if sign > 0],
            subtract=[key for key, sign in changes if sign < 0],
            mirrors=mirrors,
        )

    def _mirrors(
        self, roster: bytes, fresh: Sequence[_Edge], like: RingVector
    ) -> dict[bytes, RingVector]:
        """By key, the waiting vectors of those peers that can still make use of it."""
        mirrors = {}
        for edge in fresh:
            place = (roster, edge.peer, like.dtype.str, like.size)
            if place in self._done:
                continue
            if place not in self._waiting:
                self._waiting[place] = _Waiting(np.zeros_like(like))
            other = self._waiting[place]
            if edge.key not in other.signs:
                other.signs[edge.key] = -edge.sign
                mirrors[edge.key] = other.total
        return mirrors

    def verified(self, registry_digest: bytes) -> dict[bytes, Any]:
        """One memory for all readers of one registry: a frame's signature is verified once."""
        self._require_open()
        return self._verified.setdefault(registry_digest, {})

    def forget(self) -> None:
        """Forget every secret and vector: between rounds."""
        for waiting in self._waiting.values():
            waiting.total[:] = 0
        for kept in (self._secrets, self._derived, self._waiting, self._done, self._verified):
            kept.clear()

    def close(self) -> None:
        """Forget everything; nothing can be asked after that. May be repeated."""
        self.forget()
        self._closed = True

    def _require_open(self) -> None:
        if self._closed:
            raise LocalProtocolError("these shared edges have been closed")

    def __enter__(self) -> SharedEdges:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SharedEdges(SIMULATION ONLY, {len(self._secrets)} edges, <secret>)"

    def __reduce__(self) -> NoReturn:
        raise LocalProtocolError("shared edges hold the keys of many clients; they are not copied")
