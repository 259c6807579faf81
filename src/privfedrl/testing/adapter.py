"""What the kit needs to know of an aggregation protocol: one adapter, at most 100 lines.

Guarantee: everything that the kit does to a protocol goes through :class:`AggregationAdapter`, so a
verdict is about the adapted code and no other, and whatever an adapter does not claim is reported
as unclaimed, never as passed.

A *party* is any object of the adapted library that stands for one client or the server in one
round; the kit never looks inside. A *packet* is opaque bytes with two names on it.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ProtocolError

__all__ = [
    "Aggregate",
    "AggregationAdapter",
    "Claim",
    "Packet",
    "Reveal",
    "RingVector",
    "RoundSpec",
    "Store",
    "TransportAdapter",
]

RingVector = NDArray[np.unsignedinteger[Any]]
"""uint32 or uint64 [D], residues mod 2^modulus_bits."""

Store = MutableMapping[str, Any]
"""What one client keeps on disk: the kit hands the same one to its restarted successor."""


class Claim(Enum):
    """What an implementation says it guarantees; an attack on anything else is unclaimed."""

    EXACT_SUM = "the sum over the named survivors is exact"
    DROPOUTS = "a client may vanish at any stage while enough others stay"
    TYPED_ERRORS = "bad input raises the adapter's error types and changes nothing"
    BOUNDED_MEMORY = "hostile bytes cannot make a party allocate much more than they measure"
    UNIFORM_MASKS = "a masked vector is uniform on the ring"
    FRESH_MASKS = "no masked vector repeats, not even for the same input"
    AUTHENTICATED = "bytes that no registered party made for this slot are refused"
    TAMPER_PROOF = "changed bytes give a refusal or the same sum, never another sum"
    REPLAY_PROOF = "bytes of another round, stage or recipient are refused"
    IDEMPOTENT = "the same bytes again change nothing"
    MODEL_BINDING = "clients with different models, plans or settings never share a sum"
    CLIENT_POLICY = "the server cannot choose thresholds, moduli or sizes"
    COHORT_FLOOR = "no sum over fewer honest clients than the floor is opened"
    ONE_SHARE_KIND = "no client reveals both kinds of share of one peer"
    AGREEMENT = "a malicious server cannot open two survivor sets of one round"
    SPENT_ROUNDS = "a restarted client never releases a second masked vector for a round"
    DIFFERENCING = "two sums that differ by fewer clients than the floor are not both opened"
    BAD_SHARES = "wrong shares are noticed; they never change the sum"
    CONSTANT_SIZES = "sizes of messages depend on the configuration alone"
    DETERMINISTIC = "same inputs and seeds give the same bytes, whatever the order of arrival"
    VALIDITY = "who has expired, and a round of another time, are refused"
    TRANSCRIPT = "a finished round leaves a record that an outsider can verify"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSpec:
    """One round as every party is told it; a party given another spec is a deceived one.

    Attributes:
        num_clients: registered clients. max_colluding: of them with the server.
        min_clients: smallest cohort. min_honest: smallest number of honest inputs in a sum.
        vector_length: D. modulus_bits: residues are mod 2^modulus_bits, 32 or 64.
        threshold: of the protocol's own kind; None for its default.
        round, attempt: counters. task, model, plan, previous: 32 bytes each.
        seed: of every party's test entropy; parties with one spec and name draw the same bytes.
        impostors: names whose key is not the registered one.
        expired: clients whose registration has ended, and everybody knows.
        clock_s: how far the clock of this party is ahead of the others', in seconds.
    """

    num_clients: int = 6
    max_colluding: int = 1
    min_clients: int = 4
    min_honest: int = 3
    vector_length: int = 4
    modulus_bits: int = 32
    threshold: int | None = None
    round: int = 1
    attempt: int = 0
    task: bytes = b"t" * 32
    model: bytes = b"m" * 32
    plan: bytes = b"p" * 32
    previous: bytes = bytes(32)
    seed: bytes = b"seed"
    impostors: frozenset[str] = frozenset()
    expired: frozenset[str] = frozenset()
    clock_s: int = 0


@dataclass(frozen=True, slots=True)
class Packet:
    """Bytes on their way; ``kind`` names the message for schedules and reports."""

    sender: str
    recipient: str
    data: bytes = field(repr=False)
    kind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Aggregate:
    """What a server made of a round: ``total`` is the ring sum over ``survivors`` (sorted)."""

    total: RingVector
    survivors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reveal:
    """One share that left a client: the share of ``owner`` held by ``holder``, "self" or "pair"."""

    owner: str
    holder: str
    kind: str


class AggregationAdapter:
    """Base of all adapters: override the methods that raise; the rest have honest defaults.

    Attributes:
        name: of the implementation, with its version. server: the server's name in packets.
        claims: what it guarantees. errors: the types that it raises on purpose.
    """

    name: str = "unnamed"
    server: str = "server"
    claims: frozenset[Claim] = frozenset()
    errors: tuple[type[Exception], ...] = (ProtocolError,)

    def client_names(self, spec: RoundSpec) -> tuple[str, ...]:
        """The registered clients, sorted."""
        return tuple(f"client-{index:03d}" for index in range(spec.num_clients))

    def make_client(self, spec: RoundSpec, name: str, vector: RingVector, store: Store) -> Any:
        """A client that will contribute ``vector``; an unregistered ``name`` is an outsider."""
        raise NotImplementedError

    def make_server(self, spec: RoundSpec) -> Any:
        """The server of one round."""
        raise NotImplementedError

    def start(self, server: Any) -> list[Packet]:
        """Open the round: the first packets to the clients."""
        raise NotImplementedError

    def deliver(self, party: Any, packet: Packet) -> list[Packet]:
        """Hand ``packet`` to ``party``; its answers. Refusals raise one of ``errors``."""
        raise NotImplementedError

    def close_phase(self, server: Any) -> list[Packet]:
        """The deadline of the server's current phase has passed."""
        raise NotImplementedError

    def finished(self, party: Any) -> bool:
        """Whether ``party`` will send nothing more."""
        raise NotImplementedError

    def result(self, server: Any) -> Aggregate:
        """The sum; raises one of ``errors`` where there is none."""
        raise NotImplementedError

    # optional: what lets the kit look further

    def waiting_for(self, server: Any) -> tuple[str, ...] | None:
        """Whose answer the server still awaits; None if it does not say."""
        return None

    def quorum(self, spec: RoundSpec) -> int | None:
        """How many clients must answer at every stage for a sum; None if it does not say."""
        return None

    def ledger_entries(self, server: Any) -> int | None:
        """Entries in the server's ledger that stand for a release; None without a ledger."""
        return None

    def residues(self, spec: RoundSpec, packet: Packet) -> RingVector | None:
        """The masked vector in ``packet``, if it carries one."""
        return None

    def reveals(self, spec: RoundSpec, server: Any, packet: Packet) -> tuple[Reveal, ...]:
        """The shares that ``packet`` reveals to the server that will receive it."""
        return ()

    def transcript(self, server: Any) -> bytes | None:
        """The public record of a finished round."""
        return None

    def verify_transcript(self, spec: RoundSpec, transcript: bytes) -> None:
        """Raise one of ``errors`` unless the record holds up."""

    def forge(self, spec: RoundSpec, packet: Packet, **changes: Any) -> Packet | None:
        """``packet`` with fields changed and signed anew by its own sender; None if unsupported.

        Each change is a function from the field's present value to the lie. None for a field that
        this packet does not have; an adapter that cannot forge has those attacks reported as not
        applicable. A value that the format cannot carry may raise ValueError.

        Args:
            public_keys: tuple[bytes, ...], the sender's own one-round keys.
            commitment: bytes, what binds the sender to its self mask.
            sealed: tuple[bytes, ...], the encrypted shares, in their order on the wire.
            vector: RingVector, the masked vector.
            shares: tuple[bytes, ...], the revealed shares, in their order on the wire.
            members: tuple[str, ...], the set that a server's packet names (cohort, sharers or
                survivors), sorted; digests and proofs beside it stay as they are.
            dropped: tuple[str, ...], whom a request lists as gone, beside ``members`` or alone.
            adverts: tuple[bytes, ...], the clients' first messages inside a server's packet.
            consents: tuple[bytes, ...], the clients' agreements inside a server's packet.
        """
        return None

    def make_lax_server(self, spec: RoundSpec) -> Any:
        """As :meth:`make_server`, with the true key and config, but it goes on below every floor
        and threshold: what then protects the clients is their own checks. None if unsupported.
        """
        return None

    def make_charging_client(
        self,
        spec: RoundSpec,
        name: str,
        vector: RingVector,
        store: Store,
        charge: Callable[[], None],
    ) -> Any:
        """As :meth:`make_client`; calls ``charge`` once before the masked vector leaves, and lets
        its error end the round for this client. None if the protocol has no such hook.
        """
        return None


class TransportAdapter:
    """A way to carry packets between parties, wrapped by the kit's faults."""

    name: str = "unnamed"

    def send(self, packet: Packet) -> None:
        """Take ``packet`` for delivery."""
        raise NotImplementedError

    def receive(self, recipient: str, timeout_s: float) -> Packet | None:
        """The next packet for ``recipient``, or None after ``timeout_s`` seconds."""
        raise NotImplementedError

    def close(self) -> None:
        """Free sockets and threads."""
        raise NotImplementedError

    def restart(self) -> None:
        """Lose what a crash would lose, then work again."""
        raise NotImplementedError
