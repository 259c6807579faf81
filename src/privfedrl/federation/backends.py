"""The two ways to form a sum, behind one seam: pairwise masking and homomorphic encryption.

Guarantee: agent and coordinator drive both alike, and both give the same integers; what differs
between them is in :class:`Capabilities` and in the statement, not in the training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError, RoundAborted
from privfedrl.he import HEAggregator, HEClient, HEConfig, HEParameters, HETranscript
from privfedrl.he import read_config as read_he_config
from privfedrl.he.agreement import check_roles
from privfedrl.he.frames import Kind, frame_limit
from privfedrl.parties import Identity, Journal, Outgoing, Registry
from privfedrl.plan import Plan
from privfedrl.primitives.random import Clock, Entropy
from privfedrl.secagg import (
    Edges,
    RoundConfig,
    SecAggClient,
    SecAggParameters,
    SecAggServer,
    SparseGraph,
    Transcript,
    read_config,
)
from privfedrl.secagg.agreement import feasible

__all__ = [
    "AnyConfig",
    "Backend",
    "Capabilities",
    "Homomorphic",
    "Opening",
    "Pairwise",
    "RoundClient",
    "RoundServer",
    "Standing",
    "check_rosters",
    "sparse_parameters",
]

# sizes of rosters that a plan is tried with, where there are more: each takes a search for a graph
_ROSTERS = 33

RingVector = NDArray[np.unsignedinteger]
AnyConfig = RoundConfig | HEConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a caller may rely on.

    Attributes:
        exact: the sum is the sum modulo the ring, whatever the vectors are.
        dropout_tolerant: agents may vanish without anybody having to recover anything for them.
        single_trusted_decryptor: one party must not collude with whoever holds the uploads.
        max_colluding: agents that may collude with the coordinator.
        bytes_up_per_agent: most that an agent sends in a round.
    """

    exact: bool
    dropout_tolerant: bool
    single_trusted_decryptor: bool
    max_colluding: int
    bytes_up_per_agent: int


class RoundClient(Protocol):
    """An agent's part in one round."""

    @property
    def phase(self) -> Any:
        """A member of the protocol's own enumeration."""

    @property
    def finished(self) -> bool:
        """Whether nothing more will be sent."""

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose vectors are in the sum, once that is known."""

    def receive(self, data: bytes) -> list[Outgoing]:
        """Take one frame."""


class RoundServer(Protocol):
    """The coordinator's part in one round."""

    @property
    def finished(self) -> bool:
        """Whether nothing more will be sent or accepted."""

    def receive(self, data: bytes) -> list[Outgoing]:
        """Take one frame."""

    def close_phase(self) -> list[Outgoing]:
        """The caller's deadline."""

    def result(self) -> Any:
        """With ``vector``, ``survivors`` and ``record``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a coordinator opens a round with; each field 32 bytes where it is bytes."""

    task_id: bytes
    round: int
    attempt: int
    model_digest: bytes
    previous_transcript: bytes
    round_seed: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Who somebody is in every round: own key, registry, plan, source of randomness and clock."""

    identity: Identity
    registry: Registry
    plan_digest: bytes
    entropy: Entropy
    clock: Clock


class Backend(Protocol):
    """How a plan's vectors are summed."""

    @property
    def capabilities(self) -> Capabilities:
        """What a caller may rely on."""

    def check_registry(self, registry: Registry) -> None:
        """Refuse a registry without a party that a round needs (ConfigurationError)."""

    def read_config(
        self, data: bytes, *, registry: Registry, plan_digest: bytes, now: int
    ) -> AnyConfig:
        """The verified opening of a round; ProtocolError for anything else."""

    def join(
        self,
        config: bytes,
        vector: RingVector,
        *,
        who: Standing,
        journal: Journal,
        edges: Edges,
        received_at: int,
        model_digest: bytes,
        before_release: Callable[[], None],
    ) -> tuple[RoundClient, list[Outgoing]]:
        """A client that has taken the config, and its first messages."""

    def open(
        self,
        opening: Opening,
        *,
        who: Standing,
        settle: Callable[[int], bytes],
    ) -> tuple[RoundServer, list[Outgoing]]:
        """A server that has opened a round, and its first messages.

        ``settle`` gets the number of survivors before their sum can be known, and gives the head
        of the ledger that has charged it.
        """

    def sign(self, record: Any, *, identity: Identity, ledger_head: bytes) -> Any:
        """The transcript, with ``to_bytes`` and ``digest``."""


@dataclass(frozen=True, slots=True)
class Pairwise:
    """Double masking; nobody holds a key to anything but its own masks."""

    parameters: SecAggParameters

    @property
    def capabilities(self) -> Capabilities:
        """See :class:`Capabilities`."""
        return Capabilities(
            exact=True,
            dropout_tolerant=False,
            single_trusted_decryptor=False,
            max_colluding=self.parameters.max_colluding,
            bytes_up_per_agent=self.parameters.bytes_up_per_client(),
        )

    def check_registry(self, registry: Registry) -> None:
        """Masking needs agents and a coordinator, which every registry has."""

    def read_config(
        self, data: bytes, *, registry: Registry, plan_digest: bytes, now: int
    ) -> RoundConfig:
        """See :class:`Backend`."""
        return read_config(
            data,
            registry=registry,
            parameters=self.parameters,
            plan_digest=plan_digest,
            now=now,
        )

    def join(
        self,
        config: bytes,
        vector: RingVector,
        *,
        who: Standing,
        journal: Journal,
        edges: Edges,
        received_at: int,
        model_digest: bytes,
        before_release: Callable[[], None],
    ) -> tuple[SecAggClient, list[Outgoing]]:
        """See :class:`Backend`."""
        client = SecAggClient(
            identity=who.identity,
            registry=who.registry,
            parameters=self.parameters,
            plan_digest=who.plan_digest,
            journal=journal,
            entropy=who.entropy,
            # training may take longer than clocks may differ: the round is judged by its opening
            clock=lambda: received_at,
            edges=edges,
        )
        first = client.start(
            config, vector, model_digest=model_digest, before_release=before_release
        )
        return client, first

    def open(
        self,
        opening: Opening,
        *,
        who: Standing,
        settle: Callable[[int], bytes],
    ) -> tuple[SecAggServer, list[Outgoing]]:
        """See :class:`Backend`."""

        def before_unmask(survivors: tuple[str, ...]) -> None:
            settle(len(survivors))

        server = SecAggServer(
            identity=who.identity,
            registry=who.registry,
            parameters=self.parameters,
            plan_digest=who.plan_digest,
            entropy=who.entropy,
            clock=who.clock,
            before_unmask=before_unmask,
        )
        return server, server.start(**_fields(opening))

    def sign(self, record: Any, *, identity: Identity, ledger_head: bytes) -> Transcript:
        """See :class:`Backend`."""
        return Transcript.sign(record, identity=identity, ledger_head=ledger_head)


@dataclass(frozen=True, slots=True)
class Homomorphic:
    """Encryption under the one-round key of a key authority."""

    parameters: HEParameters

    @property
    def capabilities(self) -> Capabilities:
        """See :class:`Capabilities`."""
        return Capabilities(
            exact=self.parameters.parameter_set.exact,
            dropout_tolerant=True,
            single_trusted_decryptor=True,
            max_colluding=self.parameters.max_colluding,
            bytes_up_per_agent=sum(
                frame_limit(kind, self.parameters) for kind in (Kind.COMMIT, Kind.UPLOAD)
            ),
        )

    def check_registry(self, registry: Registry) -> None:
        """See :class:`Backend`."""
        check_roles(registry, self.parameters)

    def read_config(
        self, data: bytes, *, registry: Registry, plan_digest: bytes, now: int
    ) -> HEConfig:
        """See :class:`Backend`."""
        config, _ = read_he_config(
            data,
            registry=registry,
            parameters=self.parameters,
            plan_digest=plan_digest,
            now=now,
        )
        return config

    def join(
        self,
        config: bytes,
        vector: RingVector,
        *,
        who: Standing,
        journal: Journal,
        edges: Edges,
        received_at: int,
        model_digest: bytes,
        before_release: Callable[[], None],
    ) -> tuple[HEClient, list[Outgoing]]:
        """See :class:`Backend`."""
        client = HEClient(
            identity=who.identity,
            registry=who.registry,
            parameters=self.parameters,
            plan_digest=who.plan_digest,
            journal=journal,
            clock=who.clock,
        )
        first = client.start(
            config,
            vector,
            model_digest=model_digest,
            before_release=before_release,
            received_at=received_at,
        )
        return client, first

    def open(
        self,
        opening: Opening,
        *,
        who: Standing,
        settle: Callable[[int], bytes],
    ) -> tuple[HEAggregator, list[Outgoing]]:
        """See :class:`Backend`."""
        server = HEAggregator(
            identity=who.identity,
            registry=who.registry,
            parameters=self.parameters,
            plan_digest=who.plan_digest,
            entropy=who.entropy,
            clock=who.clock,
            before_open=lambda survivors: settle(len(survivors)),
        )
        return server, server.start(**_fields(opening))

    def sign(self, record: Any, *, identity: Identity, ledger_head: bytes) -> HETranscript:
        """See :class:`Backend`."""
        return HETranscript.sign(record, identity=identity, ledger_head=ledger_head)


def _fields(opening: Opening) -> dict[str, Any]:
    return {
        "task_id": opening.task_id,
        "round": opening.round,
        "attempt": opening.attempt,
        "model_digest": opening.model_digest,
        "previous_transcript": opening.previous_transcript,
        "round_seed": opening.round_seed,
    }


def sparse_parameters(plan: Plan, words: int) -> SecAggParameters:
    """Of pairwise masking in a fleet in which agents mask with some of the others only.

    Every agent insists on a roster that lacks at most ``tolerated_dropouts``, on a survivor set
    that lacks at most as many of it, hence on ``threshold`` survivors, and on a graph in which
    every sum that can be opened holds ``min_honest`` honest vectors.

    Args:
        words: length of a ring vector.
    Raises:
        ConfigurationError: no graph keeps that.
    """
    protection = plan.protection
    try:
        return SecAggParameters(
            num_clients=plan.fleet.agents,
            max_colluding=plan.privacy.max_colluding,
            vector_length=words,
            ring_bits=plan.encoding.ring_bits,
            min_clients=max(plan.threshold, protection.min_clients),
            min_honest=protection.min_honest,
            graph=SparseGraph(max_dropouts=plan.tolerated_dropouts, server=protection.server),
        )
    except ConfigurationError as error:
        raise _no_graph(plan, str(error)) from error


def check_rosters(plan: Plan, parameters: SecAggParameters) -> None:
    """Refuse a plan whose agents would refuse a roster that lacks tolerated dropouts.

    All sizes if they are few, else evenly spaced ones: this is about availability, and every agent
    decides for itself about the roster that it is shown.

    Raises:
        ConfigurationError: it names the size.
    """
    least, most = parameters.floor, parameters.num_clients
    step = max(1, -(-(most - least) // (_ROSTERS - 1)))
    for size in (*range(least, most, step), most):
        try:
            feasible(parameters, size)
        except RoundAborted as error:
            raise _no_graph(plan, str(error)) from error


def _no_graph(plan: Plan, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"protection.min_honest = {plan.protection.min_honest} honest vectors in every sum, with "
        f"protection.threshold = {plan.threshold} of {plan.fleet.agents} agents and "
        f"protection.server = {plan.protection.server!r}, takes a graph that does not exist for "
        f"every roster: {reason}; ask for fewer, or for fewer colluders"
    )
