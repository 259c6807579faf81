"""Homomorphic aggregation over TCP: agents, coordinator and key authority, a process each.

    python examples/homomorphic_three_processes.py [DIRECTORY]

Reads top to bottom. Each process draws its own keys and keeps its own ledger and journal; what
passes between them is public entries (once, through the parent process) and signed frames with a
length in front. The line itself authenticates and hides nothing: in a deployment it is mutual TLS.
The secret key of a round lives in a fourth process that the key authority starts and ends.
Takes about ten seconds; DIRECTORY keeps ledgers, journals and transcripts.
"""

from __future__ import annotations

import multiprocessing
import secrets
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np

import privfedrl as pf
from privfedrl.audit import verify_transcripts
from privfedrl.federation.trustee import Trustee
from privfedrl.parties import RegistryEntry, SqliteJournal
from privfedrl.parties.identity import Role

PLAN = """
name = "three-processes"

[fleet]
environment = "CartPole-v1"
agents = 5
trajectories = 8
horizon = 200

[policy]
observations = 4
actions = 2
hidden = [16]

[federation]
rounds = 3

[privacy]
unit = "trajectory"
max_colluding = 1
epsilon = 4.0

[protection]
kind = "bfv"
min_clients = 3
"""

PHASE_S = 20.0  # the coordinator's deadline for each phase
RUN_S = 120.0  # the parent's deadline for everything


# --- 1. The line: a recipient's name and a frame, each with its length in front -------------------


class Line:
    """One TCP connection that carries (name, bytes); a process may speak for several names."""

    _LENGTHS = struct.Struct(">BI")

    def __init__(self, peer: socket.socket) -> None:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peer, self._stream = peer, peer.makefile("rb")

    @classmethod
    def to(cls, port: int, names: Sequence[str]) -> Line:
        """Connect to the coordinator, and say for whom this process listens."""
        line = cls(socket.create_connection(("127.0.0.1", port)))
        for name in names:
            line.send(name, b"")
        line.send("", b"")
        return line

    def send(self, name: str, data: bytes) -> None:
        self._peer.sendall(self._LENGTHS.pack(len(name), len(data)) + name.encode() + data)

    def receive(self) -> tuple[str, bytes] | None:
        """The next frame, or None when the other end has closed the line."""
        head = self._stream.read(self._LENGTHS.size)
        if len(head) < self._LENGTHS.size:
            return None
        # a deployment bounds the length before it reads; participants check it after
        name_length, length = self._LENGTHS.unpack(head)
        return self._stream.read(name_length).decode(), self._stream.read(length)

    def close(self) -> None:
        self._peer.shutdown(socket.SHUT_RDWR)
        self._stream.close()
        self._peer.close()


# --- 2. Enrolment: public entries go to the parent, the registry comes back -----------------------


def enrol(desk: Connection, identity: pf.Identity, role: Role) -> None:
    """Hand in a public entry; the key that it belongs to never leaves this process."""
    desk.send_bytes(identity.entry(role).to_json().encode())


def registry_from(desk: Connection) -> pf.Registry:
    return pf.Registry.from_json(desk.recv_bytes())


def say(who: str, text: str) -> None:
    print(f"{who:14} {text}", flush=True)


# --- 3. The agents: torch, environments, encryption; no secret key of the scheme ------------------


def agents_process(home: Path, desk: Connection, names: Sequence[str]) -> None:
    """All five agents, to start torch once. In a deployment each is a machine of its own."""
    plan = pf.Plan.from_text(PLAN)  # every process reads its own copy
    identities = {name: pf.Identity.generate(name) for name in names}
    for identity in identities.values():
        enrol(desk, identity, "agent")
    registry, port = registry_from(desk), int(desk.recv_bytes())
    fleet = pf.heterogeneous(plan.fleet.environment, level=0.5, agents=len(names), seed=0)

    with ExitStack() as files:
        agents = {}
        ledgers = {}
        for name, environment in zip(names, fleet, strict=True):
            (home / name).mkdir()
            ledgers[name] = files.enter_context(pf.Ledger.open(home / name / "ledger.db"))
            agents[name] = pf.Agent(
                plan,
                identity=identities[name],
                registry=registry,
                ledger=ledgers[name],
                journal=files.enter_context(closing(SqliteJournal(home / name / "journal.db"))),
                environment=environment,
            )
        line = files.enter_context(closing(Line.to(port, names)))
        while (frame := line.receive()) is not None:
            name, data = frame
            agent = agents[name]
            # start trains, and sends nothing: there is no key yet. What follows is the round's
            # context (answer: a commitment), the roster (answer: the ciphertexts) and the receipt
            act = agent.start if agent.finished else agent.receive
            for message in act(data):
                line.send(message.recipient, message.data)
            if agent.finished and name == names[0]:
                say(name, f"has its receipt; {spent(ledgers[name])}")


# --- 4. The key authority: one key per round, one decryption, its own ledger ----------------------


def authority_process(home: Path, desk: Connection) -> None:
    """Needs no torch. Its journal and ledger must never be restored from a backup."""
    identity = pf.Identity.generate("key-authority")
    enrol(desk, identity, "key-authority")
    registry, port = registry_from(desk), int(desk.recv_bytes())

    with ExitStack() as files:
        ledger = files.enter_context(pf.Ledger.open(home / "ledger.db"))
        trustee = files.enter_context(
            Trustee(
                pf.Plan.from_text(PLAN),
                identity=identity,
                registry=registry,
                ledger=ledger,
                journal=files.enter_context(closing(SqliteJournal(home / "journal.db"))),
            )
        )
        line = files.enter_context(closing(Line.to(port, [identity.name])))
        while (frame := line.receive()) is not None:
            answers = trustee.receive(frame[1])  # re-adds every upload before it opens the sum
            if trustee.finished:
                say(identity.name, f"opened one sum; {spent(ledger)}")
            for message in answers:
                line.send(message.recipient, message.data)


# --- 5. The coordinator: adds ciphertexts; needs neither torch nor TenSEAL ------------------------


def coordinator_process(home: Path, desk: Connection) -> None:
    """Opens the rounds and carries everybody's messages."""
    plan = pf.Plan.from_text(PLAN)
    identity = pf.Identity.generate("coordinator")
    enrol(desk, identity, "coordinator")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(RUN_S)
        desk.send_bytes(str(listener.getsockname()[1]).encode())
        registry = registry_from(desk)
        lines = [Line(listener.accept()[0]) for _ in range(2)]

    inbox: SimpleQueue[bytes | None] = SimpleQueue()
    routes = {name: line for line in lines for name in announced(line)}
    for line in lines:
        threading.Thread(target=read_all, args=(line, inbox), daemon=True).start()

    def deliver(messages: list[pf.Outgoing]) -> None:
        for message in messages:
            routes[message.recipient].send(message.recipient, message.data)

    policy = pf.MlpPolicy(
        observation_size=plan.policy.observations,
        hidden=plan.policy.hidden,
        action="categorical",
        action_size=plan.policy.actions,
    )
    with pf.Ledger.open(home / "ledger.db") as ledger:
        initial = policy.initial_parameters(np.random.default_rng())
        coordinator = pf.Coordinator(
            plan,
            identity=identity,
            registry=registry,
            ledger=ledger,
            state=pf.initial_federation_state(secrets.token_bytes(32), initial),
        )
        for _ in range(plan.federation.rounds):
            waiting = coordinator.open_round()  # reserved in the ledger before this returns
            while not coordinator.finished:
                deliver(waiting)
                waiting = one_step(coordinator, inbox)
            result = coordinator.result()  # without a sum RoundAborted, and exit status 1
            (home / f"transcript-{result.round}.bin").write_bytes(result.transcript)
            who = ", ".join(result.survivors)
            say(identity.name, f"round {result.round}: sum of {who}; {spent(ledger)}")
            deliver(waiting)  # the receipts
    for line in lines:
        line.close()
    loaded = [name for name in ("torch", "tenseal") if name in sys.modules]
    say(identity.name, f"is done; loaded of torch and tenseal: {', '.join(loaded) or 'neither'}")


def one_step(coordinator: pf.Coordinator, inbox: SimpleQueue[bytes | None]) -> list[pf.Outgoing]:
    try:
        data = inbox.get(timeout=PHASE_S)
    except Empty:
        return coordinator.close_phase()  # goes on without whoever is silent: nothing to recover
    if data is None:
        raise ConnectionError("a participant's line was closed during a round")
    try:
        return coordinator.receive(data)
    except pf.RoundAborted:
        raise
    except pf.ProtocolError as refused:  # one bad message changes nothing for the others
        say("coordinator", f"refuses a message: {refused}")
        return []


def announced(line: Line) -> list[str]:
    names = []
    while (frame := line.receive()) is not None and frame[0]:
        names.append(frame[0])
    return names


def read_all(line: Line, inbox: SimpleQueue[bytes | None]) -> None:
    """From a socket to the one queue; what a frame means is the coordinator's business."""
    try:
        while (frame := line.receive()) is not None:
            inbox.put(frame[1])
    except (OSError, ValueError):  # closed by this side, at the end
        pass
    inbox.put(None)


def spent(ledger: pf.Ledger) -> str:
    """The costliest round so far: each trajectory is in one round only, so rounds do not add up."""
    return f"own ledger: epsilon {ledger.spent().epsilon:.4f}"


# --- 6. The parent: starts three processes, passes public entries, then audits --------------------


def start(role: Callable[..., None], *arguments: object) -> tuple[BaseProcess, Connection]:
    """A process that has inherited nothing, and the desk that it enrols at."""
    fresh = multiprocessing.get_context("spawn")
    home, *others = arguments
    here, there = fresh.Pipe()
    process = fresh.Process(target=role, args=(home, there, *others), daemon=True)
    process.start()
    there.close()  # so that a process that dies is noticed here
    return process, here


def all_succeed(processes: Sequence[BaseProcess]) -> bool:
    """Wait until everybody is done; False as soon as one fails or time is over."""
    until = time.monotonic() + RUN_S
    while time.monotonic() < until:
        statuses = [process.exitcode for process in processes]
        if any(statuses):
            print(f"a process failed; statuses: {statuses}", file=sys.stderr)
            return False
        if None not in statuses:
            return True
        time.sleep(0.05)
    print(f"not done after {RUN_S:.0f} s", file=sys.stderr)
    return False


def main(home: Path) -> int:
    """0 if every round was opened and the record of all of them verifies."""
    plan = pf.Plan.from_text(PLAN)
    print(plan.check(), end="\n\n", flush=True)
    names = [f"site-{index}" for index in range(plan.fleet.agents)]
    for name in ("agents", "coordinator", "key-authority"):
        (home / name).mkdir(parents=True)
    processes: list[BaseProcess] = []
    desks: list[Connection] = []
    try:
        for role, *arguments in (
            (coordinator_process, home / "coordinator"),
            (authority_process, home / "key-authority"),
            (agents_process, home / "agents", names),
        ):
            process, desk = start(role, *arguments)
            processes.append(process)
            desks.append(desk)
        at_coordinator, at_authority, at_agents = desks
        arriving = [at_coordinator, at_authority, *[at_agents for _ in names]]
        registry = pf.Registry([RegistryEntry.from_json(desk.recv_bytes()) for desk in arriving])
        port = at_coordinator.recv_bytes()
        for desk in desks:
            desk.send_bytes(registry.to_json().encode())
        for desk in (at_authority, at_agents):
            desk.send_bytes(port)
        if not all_succeed(processes):
            return 1
    finally:
        for process in processes:
            process.terminate()
            process.join()

    # what an auditor does: signed records and a registry, no secret, no torch, no TenSEAL
    records = sorted((home / "coordinator").glob("transcript-*.bin"))
    report = verify_transcripts([record.read_bytes() for record in records], registry)
    for one in report.rounds:
        for problem in one.problems:
            say("auditor", f"round {one.round}: {problem}")
    verdict = "verify" if report.ok else "do NOT verify"
    say("auditor", f"{len(report.rounds)} transcripts {verdict}, head {report.head[:16]}…")
    return 0 if report.ok and len(report.rounds) == plan.federation.rounds else 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory() as directory:
        sys.exit(main(Path(directory)))
