"""Real rounds of a small federation, as signed records, and records of ideal sums."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest

from privfedrl.he import (
    HEAggregator,
    HEAuditor,
    HEClient,
    HEParameters,
    HETranscript,
    KeyAuthority,
    LocalVault,
)
from privfedrl.he.frames import Kind
from privfedrl.parties import Identity, MemoryJournal, Registry
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.secagg import (
    ClientPhase,
    IdealRecord,
    SecAggClient,
    SecAggParameters,
    SecAggServer,
    Transcript,
)
from privfedrl.secagg.messages import encode_frame

TASK, PLAN = b"t" * 32, b"p" * 32
START = 1_800_000_000  # seconds; any time will do


@dataclass
class Deployment:
    """Five agents; each call of a method is one round that leaves one record."""

    seed: bytes = b"audit"
    clients: int = 5
    now: int = START
    frames: list[bytes] = field(default_factory=list)
    sums: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.entropy = DeterministicEntropy(self.seed)
        names = [f"agent-{index}" for index in range(self.clients)]
        self.agents = {name: Identity.generate(name, self.entropy) for name in names}
        self.coordinator = Identity.generate("coordinator", self.entropy)
        entries = [agent.entry("agent") for agent in self.agents.values()]
        self.registry = Registry([*entries, self.coordinator.entry("coordinator")])
        self.parameters = SecAggParameters(
            num_clients=self.clients, max_colluding=1, vector_length=3, min_clients=4
        )
        self.journals = {name: MemoryJournal() for name in names}

    @property
    def head(self) -> bytes:
        return Transcript.from_bytes(self.frames[-1]).digest if self.frames else bytes(32)

    def protected(
        self,
        number: int,
        *,
        attempt: int = 0,
        absent: frozenset[str] = frozenset(),
        task: bytes = TASK,
        plan: bytes = PLAN,
        previous: bytes | None = None,
        ledger_head: bytes | None = None,
    ) -> None:
        """A whole round over a wire that loses what the absent agents send."""
        self.now += 60
        model = number.to_bytes(32, "big")
        pinned: dict[str, Any] = {
            "registry": self.registry,
            "parameters": self.parameters,
            "plan_digest": plan,
            "clock": lambda: self.now,
            "entropy": self.entropy.fork(b"%d.%d" % (number, attempt)),
        }
        server = SecAggServer(identity=self.coordinator, **pinned)
        clients = {
            name: SecAggClient(identity=agent, journal=self.journals[name], **pinned)
            for name, agent in self.agents.items()
        }
        follows = self.head if previous is None else previous
        out = server.start(task, number, attempt, model, follows)
        vector = np.arange(3, dtype=np.uint32)
        while not server.finished:
            replies = []
            for one in out:
                client = clients[one.recipient]
                if client.phase is ClientPhase.IDLE:
                    replies += client.start(one.data, vector, model_digest=model)
                elif one.recipient not in absent:
                    replies += client.receive(one.data)
            before = server.phase
            out = [new for reply in replies for new in server.receive(reply.data)]
            if server.phase is before:
                out = server.close_phase()
        result = server.result()
        self._sign(result.record, ledger_head)
        self.sums[number] = result.vector

    def ideal(self, number: int) -> None:
        """The record of a sum without protection."""
        total = np.arange(3, dtype=np.uint32)
        record = IdealRecord(
            task_id=TASK,
            round=number,
            attempt=0,
            plan_digest=PLAN,
            model_digest=bytes(32),
            registry=self.registry,
            previous_transcript=self.head,
            survivors=tuple(self.agents)[1:],
            vector=total,
        )
        self._sign(record, None)
        self.sums[number] = total

    def _sign(self, record: Any, ledger_head: bytes | None) -> None:
        head = bytes([1 + len(self.frames)]) * 32 if ledger_head is None else ledger_head
        signed = Transcript.sign(record, identity=self.coordinator, ledger_head=head)
        self.frames.append(signed.to_bytes())

    def forge(self, frame: bytes, **changes: Any) -> bytes:
        """The record with another body, signed by the coordinator itself."""
        body = msgspec.structs.replace(Transcript.from_bytes(frame).body, **changes)
        return encode_frame(body, self.coordinator)


@pytest.fixture(scope="session")
def deployment() -> type[Deployment]:
    return Deployment


@pytest.fixture(scope="session")
def three_rounds() -> Deployment:
    """Rounds 0 to 2; in round 1 agent-4 drops out; round 2 took a second attempt."""
    made = Deployment()
    made.protected(0)
    made.protected(1, absent=frozenset({"agent-4"}))
    made.protected(2, attempt=1)
    return made


@dataclass
class EncryptedDeployment:
    """The same federation with a key authority and an auditor."""

    now: int = START
    frames: list[bytes] = field(default_factory=list)
    sums: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        keys = DeterministicEntropy(b"encrypted audit")
        roles: dict[str, Any] = {f"agent-{index}": "agent" for index in range(5)}
        roles |= {"server": "coordinator", "trustee": "key-authority", "office": "auditor"}
        self.identities = {name: Identity.generate(name, keys) for name in roles}
        self.registry = Registry(one.entry(roles[name]) for name, one in self.identities.items())
        self.parameters = HEParameters(
            num_clients=5,
            max_colluding=1,
            vector_length=3,
            threshold=4,
            min_clients=4,
            readding="auditor",
        )
        self.journals = {name: MemoryJournal() for name in roles}
        self.uploads: dict[int, list[bytes]] = {}

    def protected(self, number: int, *, attempt: int = 0, absent: str = "") -> None:
        """A whole round; ``absent`` commits and never uploads."""
        self.now += 60
        model = number.to_bytes(32, "big")
        pinned: dict[str, Any] = {
            "registry": self.registry,
            "parameters": self.parameters,
            "plan_digest": PLAN,
            "clock": lambda: self.now,
        }
        head = bytes([1 + len(self.frames)]) * 32
        server = HEAggregator(
            identity=self.identities["server"], before_open=lambda _: head, **pinned
        )
        parties: dict[str, Any] = {
            name: HEClient(identity=self.identities[name], journal=self.journals[name], **pinned)
            for name in self.registry.agents
        }
        parties["trustee"] = KeyAuthority(
            identity=self.identities["trustee"],
            journal=self.journals["trustee"],
            before_decrypt=lambda *_: head,
            vault=LocalVault,
            **pinned,
        )
        parties["office"] = HEAuditor(identity=self.identities["office"], **pinned)
        previous = HETranscript.from_bytes(self.frames[-1]).digest if self.frames else bytes(32)
        waiting = deque(server.start(TASK, number, attempt, model, previous))
        while not server.finished:
            if not waiting:
                waiting += server.close_phase()
                continue
            one = waiting.popleft()
            party, phase = parties[one.recipient], parties[one.recipient].phase.name
            if one.recipient == absent and phase == "COMMITTED":
                continue
            if phase != "IDLE":
                replies = party.receive(one.data)
            elif isinstance(party, HEClient):
                vector = np.arange(3, dtype=np.uint32)
                replies = party.start(one.data, vector, model_digest=model)
            else:
                replies = party.start(one.data)
            for reply in replies:
                if reply.data[7] == Kind.UPLOAD:
                    self.uploads.setdefault(number, []).append(reply.data)
                waiting += server.receive(reply.data)
        result = server.result()
        signed = HETranscript.sign(
            result.record, identity=self.identities["server"], ledger_head=head
        )
        self.frames.append(signed.to_bytes())
        self.sums[number] = result.vector


@pytest.fixture(scope="session")
def encrypted_rounds() -> EncryptedDeployment:
    """As ``three_rounds``, under encryption."""
    made = EncryptedDeployment()
    made.protected(0)
    made.protected(1, absent="agent-4")
    made.protected(2, attempt=1)
    return made
