"""One small federation with a key authority and an auditor, and the wire between its real ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest

from privfedrl.errors import ProtocolError
from privfedrl.he import HEAggregator, HEAuditor, HEClient, HEParameters, KeyAuthority, LocalVault
from privfedrl.he.digests import commitment, key_digest, sealed_digest, sum_digest
from privfedrl.he.frames import (
    Attestation,
    Commit,
    Context,
    DecryptionReceipt,
    Kind,
    Opening,
    Proposal,
    Record,
    Roster,
    Sealed,
    Upload,
    config_digest,
    encode_frame,
    peek,
)
from privfedrl.he.lattice import public_key_bytes
from privfedrl.parties import Identity, MemoryJournal, Outgoing, Registry
from privfedrl.parties.frames import HEADER_BYTES
from privfedrl.parties.members import Members
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.primitives.signing import SIGNATURE_BYTES

PLAN = b"p" * 32
MODEL = b"m" * 32
TASK = b"t" * 32
NOW = 1_800_000_000
COORDINATOR_HEAD = b"h" * 32
AUTHORITY_HEAD = b"a" * 32
ROLES = {"coordinator": "coordinator", "key-authority": "key-authority", "auditor": "auditor"}
PINS: dict[type[Any], tuple[str, Callable[[Any, Any], bytes]]] = {
    Context: ("key", lambda m, data: key_digest(m.cfg, data)),
    Upload: ("commitment", lambda m, data: commitment(m.cfg, m.key, m.sender, data)),
    Sealed: ("sealed", lambda m, data: sealed_digest(m.cfg, m.key, data)),
    Opening: ("total", lambda m, data: sum_digest(m.cfg, data)),
}
"""The field by which a message pins its attachment, and what an honest sender puts there."""


class LoggedVault(LocalVault):
    """A real vault that notes when it is used."""

    def __init__(self, log: list[Any]) -> None:
        super().__init__()
        self._log = log

    def open(self, parameters: Any) -> bytes:
        self._log.append("open")
        return super().open(parameters)

    def decrypt(self, ciphertexts: bytes, count: int) -> Any:
        self._log.append("decrypt")
        return super().decrypt(ciphertexts, count)

    def destroy(self) -> None:
        if self._decryptor is not None:
            self._log.append("destroy")
        super().destroy()


class LoggedJournal(MemoryJournal):
    """A real journal that notes what it has recorded."""

    def __init__(self, log: list[Any]) -> None:
        super().__init__()
        self._log = log

    def spend_masked(self, task_id: bytes, round: int, attempt: int) -> None:  # noqa: A002 - as in the protocol
        super().spend_masked(task_id, round, attempt)
        self._log.append("masked")

    def spend_consistency(self, task_id: bytes, participation: Any, **how: Any) -> None:
        super().spend_consistency(task_id, participation, **how)
        self._log.append("recorded")


@dataclass
class World:
    """n agents and the three services, all from one seed; time stands still at ``now``.

    ``validity[name]`` are the first and last second of an identity; ``name_chars`` pads names.
    ``log`` is what the key authority's vaults, journal and ledger did, in order.
    """

    n: int = 5
    length: int = 5
    readding: Any = "key-authority"
    seed: bytes = b"world"
    settings: dict[str, Any] = field(default_factory=dict)
    validity: dict[str, tuple[int, int]] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    now: int = NOW
    name_chars: int = 0

    def __post_init__(self) -> None:
        keys = DeterministicEntropy(self.seed).fork(b"identities")
        self.names = tuple(f"agent-{i:02d}".ljust(self.name_chars, "x") for i in range(self.n))
        self.identities = {name: Identity.generate(name, keys) for name in (*self.names, *ROLES)}
        self.registry = Registry(
            self.entry(name) for name in self.identities if name not in self.without
        )
        given: dict[str, Any] = {
            "num_clients": self.n,
            "max_colluding": 1,
            "vector_length": self.length,
            "threshold": self.n // 2 + 1,
            "readding": self.readding,
        }
        self.parameters = HEParameters(**(given | self.settings))
        rng = np.random.default_rng(7)
        dtype = np.dtype(f"uint{self.parameters.ring_bits}")
        top = 2**self.parameters.ring_bits
        self.vectors: dict[str, Any] = {
            name: rng.integers(0, top, self.length, dtype=dtype) for name in self.names
        }
        self.log: list[Any] = []
        self.vaults: list[LocalVault] = []
        self.journals: dict[str, Any] = {name: MemoryJournal() for name in self.names}
        self.journals["key-authority"] = LoggedJournal(self.log)

    def entry(self, name: str) -> Any:
        first, last = self.validity.get(name, (0, 2**53 - 1))
        role: Any = ROLES.get(name, "agent")
        return self.identities[name].entry(role, not_before=first, not_after=last)

    def clock(self) -> int:
        return self.now

    def vault(self) -> LocalVault:
        self.vaults.append(LoggedVault(self.log))
        return self.vaults[-1]

    def charge(self, config: Any, names: tuple[str, ...]) -> bytes:
        self.log.append(("charge", config.round, names))
        return AUTHORITY_HEAD

    def permit(self, names: tuple[str, ...]) -> bytes:
        """The coordinator's own ledger; the tests that watch it give another."""
        return COORDINATOR_HEAD

    def pinned(self, name: str) -> dict[str, Any]:
        return {
            "identity": self.identities[name],
            "registry": self.registry,
            "parameters": self.parameters,
            "plan_digest": PLAN,
            "clock": self.clock,
        }

    def client(self, name: str, **changes: Any) -> HEClient:
        given = self.pinned(name) | {"journal": self.journals[name]}
        return HEClient(**(given | changes))

    def authority(self, **changes: Any) -> KeyAuthority:
        given = self.pinned("key-authority") | {
            "journal": self.journals["key-authority"],
            "before_decrypt": self.charge,
            "vault": self.vault,
        }
        return KeyAuthority(**(given | changes))

    def auditor(self, **changes: Any) -> HEAuditor:
        return HEAuditor(**(self.pinned("auditor") | changes))

    def aggregator(self, **changes: Any) -> HEAggregator:
        given = self.pinned("coordinator") | {
            "before_open": self.permit,
            "entropy": DeterministicEntropy(self.seed).fork(b"aggregator"),
        }
        return HEAggregator(**(given | changes))

    def parse(self, data: bytes) -> Any:
        """The message in a frame, unverified."""
        return peek(data, kind_of(data), limit=len(data))

    def attachment(self, data: bytes) -> bytes:
        """What follows the signature of a frame."""
        return data[signature_of(data).stop :]

    def forge(self, data: bytes, *, attachment: Any = None, **changes: Any) -> bytes:
        """The frame with some fields, or its attachment, changed; signed anew by its own sender.

        The sender pins the attachment as an honest one would, unless the pin is among ``changes``.
        """
        attached = self.attachment(data) if attachment is None else attachment
        message = msgspec.structs.replace(self.parse(data), **changes)
        return self.sign(pinned(message, attached, changes), attached)

    def unsigned(self, data: bytes) -> bytes:
        """The frame with zeros in place of its signature, and nothing else changed."""
        at = signature_of(data)
        return data[: at.start] + bytes(SIGNATURE_BYTES) + data[at.stop :]

    def sign(self, message: Any, attachment: Any = b"") -> bytes:
        return bytes(encode_frame(message, self.identities[message.sender], attachment))

    def members(self, names: Iterable[str]) -> bytes:
        return Members.of((self.registry.index_of(name) for name in names), self.n).to_bytes()

    def session(self, **changes: Any) -> Session:
        return Session(self, **changes)

    def ideal(self, names: Iterable[str]) -> Any:
        """The sum modulo 2^value_bits, centred, as residues modulo 2^ring_bits; plain integers."""
        bits, ring = self.parameters.value_bits, self.parameters.ring_bits
        total = sum(self.vectors[name].astype(object) for name in names) % 2**bits
        centred = [int(x) - (2**bits if int(x) >= 2 ** (bits - 1) else 0) for x in total]
        return np.array([x % 2**ring for x in centred], dtype=np.dtype(f"uint{ring}"))


def kind_of(data: bytes) -> Kind:
    return Kind(int.from_bytes(data[6:8], "big"))


def signature_of(data: bytes) -> slice:
    """Where the signature of a frame is; before it the payload, after it the attachment."""
    end = HEADER_BYTES + int.from_bytes(data[8:HEADER_BYTES], "big")
    return slice(end, end + SIGNATURE_BYTES)


def pinned(message: Any, attachment: Any, given: Iterable[str] = ()) -> Any:
    """The message with its pin set to the digest of ``attachment``, unless that was ``given``."""
    name, made_of = PINS.get(type(message), ("", None))
    if made_of is None or name in given:
        return message
    return msgspec.structs.replace(message, **{name: made_of(message, attachment)})


def honest(out: Outgoing) -> list[Outgoing]:
    return [out]


@dataclass
class Session:
    """One round over a wire that the test can cut, repeat, reorder and rewrite.

    ``wire`` sees each message before it is delivered and says what is delivered in its place.
    ``order`` permutes what waits. What a participant refuses is noted in ``errors`` if
    ``tolerant``, else raised. ``carried`` holds all that was sent; an agent that left is deaf.
    """

    world: World
    wire: Callable[[Outgoing], list[Outgoing]] = honest
    order: Callable[[list[Outgoing]], list[Outgoing]] = list
    round: int = 1
    attempt: int = 0
    task: bytes = TASK
    model: bytes = MODEL
    previous: bytes = bytes(32)
    tolerant: bool = False
    client_changes: dict[str, Any] = field(default_factory=dict)
    aggregator_changes: dict[str, Any] = field(default_factory=dict)
    authority_changes: dict[str, Any] = field(default_factory=dict)
    auditor_changes: dict[str, Any] = field(default_factory=dict)
    start_changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        world = self.world
        self.aggregator = world.aggregator(**self.aggregator_changes)
        self.authority = world.authority(**self.authority_changes)
        self.parts: dict[str, Any] = {
            name: world.client(name, **self.client_changes) for name in world.names
        }
        self.parts |= {"coordinator": self.aggregator, "key-authority": self.authority}
        if world.readding == "auditor":
            self.parts["auditor"] = world.auditor(**self.auditor_changes)
        self.carried: list[Outgoing] = []
        self.errors: list[tuple[str, ProtocolError]] = []
        self.queue = self.aggregator.start(
            self.task, self.round, self.attempt, self.model, self.previous
        )
        self.config = self.queue[0].data

    @property
    def auditor(self) -> Any:
        return self.parts["auditor"]

    @property
    def cfg(self) -> bytes:
        return bytes(config_digest(self.config[HEADER_BYTES:-SIGNATURE_BYTES]))

    @property
    def key(self) -> bytes:
        return bytes(self.authority._key) or b"k" * 32

    def give(self, out: Outgoing) -> list[Outgoing]:
        """Deliver one message now; the answer is not queued."""
        self.carried.append(out)
        part = self.parts[out.recipient]
        if part.phase.name != "IDLE":
            return list(part.receive(out.data))
        return self.begin(out.recipient, out.data)

    def begin(self, name: str, config: bytes, **changes: Any) -> list[Outgoing]:
        """Start a participant with a config frame."""
        if name not in self.world.names:
            return list(self.parts[name].start(config, **changes))
        given = {"vector": self.world.vectors[name], "model_digest": self.model}
        return list(self.parts[name].start(config, **(given | self.start_changes | changes)))

    def step(self) -> None:
        """Deliver one message, or let the deadline pass where none is under way."""
        if not self.queue:
            self.queue += self.aggregator.close_phase()
            return
        self.queue = self.order(self.queue)
        for out in self.wire(self.queue.pop(0)):
            try:
                self.queue += self.give(out)
            except ProtocolError as error:
                if not self.tolerant:
                    raise
                self.errors.append((out.recipient, error))

    def run(self, until: Callable[[], bool] = bool) -> Session:
        while not until() and (self.queue or not self.aggregator.finished):
            self.step()
        return self

    def reach(self, name: str, phase: Any) -> Session:
        return self.run(lambda: self.parts[name].phase is phase)

    def intercept(self, recipient: str, kind: Kind) -> bytes:
        """Go on until ``recipient``'s next message is an honest one of ``kind``; take it away."""
        while True:
            waiting = [out for out in self.queue if out.recipient == recipient]
            if waiting and kind_of(waiting[0].data) is kind:
                self.queue.remove(waiting[0])
                return waiting[0].data
            self.step()

    def shown(self, recipient: str, kind: Kind) -> bytes:
        """What was delivered to ``recipient`` as ``kind``, the last of it."""
        return [
            out.data
            for out in self.carried
            if out.recipient == recipient and kind_of(out.data) is kind
        ][-1]

    def message(self, kind: Kind, **changes: Any) -> Any:
        """A well-formed message of this round and key, honest in form only; see attached()."""
        world, given = self.world, {"cfg": self.cfg, "key": self.key}
        everybody, zero = world.members(world.names), bytes(32)
        ends = world.parse(self.config).opened_at + world.parameters.lifetime_s
        about = given | {"roster": zero, "contributors": everybody}
        makers: dict[Kind, Callable[[], Any]] = {
            Kind.CONFIG: lambda: msgspec.structs.replace(
                world.parse(self.config), round_seed=b"z" * 32
            ),
            Kind.CONTEXT: lambda: Context(sender="key-authority", not_after=ends, **given),
            Kind.COMMIT: lambda: Commit(sender=world.names[0], commitment=zero, **given),
            Kind.PROPOSAL: lambda: Proposal(sender="coordinator", commits=(), **given),
            Kind.ROSTER: lambda: Roster(
                sender="key-authority", members=everybody, commitments=zero * world.n, **given
            ),
            Kind.UPLOAD: lambda: Upload(
                sender=world.names[0], roster=zero, commitment=zero, **given
            ),
            Kind.SEALED: lambda: Sealed(
                sender="coordinator",
                ledger_head=COORDINATOR_HEAD,
                attestation=b"",
                sealed=zero,
                **about,
            ),
            Kind.ATTESTATION: lambda: Attestation(sender="auditor", sealed=zero, **about),
            Kind.OPENING: lambda: Opening(
                sender="key-authority",
                receipt=self.frame(Kind.RECEIPT),
                total=zero,
                **given,
            ),
            Kind.RECEIPT: lambda: DecryptionReceipt(
                sender="key-authority",
                sealed=zero,
                total=zero,
                ledger_head=AUTHORITY_HEAD,
                readding=world.parameters.readding,
                seal="4.3",
                **about,
            ),
            Kind.RECORD: lambda: Record(
                sender="coordinator",
                config=self.config,
                roster=b"",
                commits=(),
                attestation=b"",
                receipt=b"",
                ledger_head=zero,
            ),
        }
        message = msgspec.structs.replace(makers[kind](), **changes)
        return pinned(message, self.attached(kind), changes)

    def attached(self, kind: Kind) -> bytes:
        """What message() pins: zeros of the right length where its kind has an attachment."""
        parameters = self.world.parameters
        sizes = {
            Kind.CONTEXT: public_key_bytes(parameters.parameter_set),
            Kind.UPLOAD: parameters.ciphertext_bytes,
            Kind.SEALED: parameters.ciphertext_bytes,
            Kind.OPENING: self.world.length * parameters.ring_bits // 8,
        }
        return bytes(sizes.get(kind, 0))

    def frame(self, kind: Kind, *, attachment: Any = None, **changes: Any) -> bytes:
        """The same, signed by its sender, and pinned to another attachment if one is given."""
        attached = self.attached(kind) if attachment is None else attachment
        message = pinned(self.message(kind, **changes), attached, changes)
        return self.world.sign(message, attached)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(scope="session")
def make_world() -> type[World]:
    return World
