"""One coordinator and five agents in one process, as an embedding would build them.

    python examples/embedding.py [DIRECTORY]

Reads top to bottom. Everything that crosses between two participants is bytes in a queue; replace
the queues with your transport, the empty queue with your clock, and the directory with each
machine's own disk. Takes a few seconds.
"""

from __future__ import annotations

import secrets
import sys
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np

import privfedrl as pf
from privfedrl.parties import SqliteJournal

PLAN = """
name = "embedding-example"

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

[privacy.mean_return]
low = 0.0
high = 200.0

[protection]
min_clients = 3
"""


# --- 1. One plan, pinned by everybody -------------------------------------------------------------


def pinned_plan() -> pf.Plan:
    """Every participant holds its own copy; a copy that differs in one value gives no sum."""
    plan = pf.Plan.from_text(PLAN)
    print(plan.check())  # raises if the plan cannot keep its promise
    return plan


# --- 2. Keys and the registry, distributed out of band --------------------------------------------


def enrol(home: Path, names: list[str]) -> pf.Registry:
    """Each machine makes its own key; only public entries travel."""
    entries = []
    for name in [*names, "coordinator"]:
        (home / name).mkdir(parents=True)
        identity = pf.Identity.generate(name)
        identity.save(home / name / "identity.json")  # mode 0600, never leaves the machine
        entries.append(identity.entry("coordinator" if name == "coordinator" else "agent"))
    registry = pf.Registry(entries)
    registry.save(home / "registry.json")
    return registry


# --- 3. An agent: a private environment, a ledger and a journal of its own ------------------------


def new_agent(home: Path, plan: pf.Plan, environment: pf.EnvSpec, files: ExitStack) -> pf.Agent:
    """Ledger and journal are files of this agent alone; neither may be restored from a backup."""
    return pf.Agent(
        plan,
        identity=pf.Identity.load(home / "identity.json"),
        registry=pf.Registry.load(home.parent / "registry.json"),
        ledger=files.enter_context(pf.Ledger.open(home / "ledger.db")),
        journal=files.enter_context(closing(SqliteJournal(home / "journal.db"))),
        environment=environment,  # or experience=..., a function over your own source of episodes
    )


# --- 4. The coordinator: no environment, no torch -------------------------------------------------


def new_coordinator(
    home: Path, plan: pf.Plan, policy: pf.MlpPolicy, files: ExitStack
) -> pf.Coordinator:
    """Starts from an untrained policy; a later process would go on from a saved state."""
    initial = policy.initial_parameters(np.random.default_rng())
    return pf.Coordinator(
        plan,
        identity=pf.Identity.load(home / "identity.json"),
        registry=pf.Registry.load(home.parent / "registry.json"),
        ledger=files.enter_context(pf.Ledger.open(home / "ledger.db")),
        state=pf.initial_federation_state(secrets.token_bytes(32), initial),
    )


# --- 5. The transport: queues here, yours in a deployment -----------------------------------------


def train_one_round(coordinator: pf.Coordinator, agents: dict[str, pf.Agent]) -> None:
    """open_round, then receive until finished; an empty queue is the deadline of a phase."""
    to_coordinator: SimpleQueue[bytes] = SimpleQueue()

    def deliver(messages: list[pf.Outgoing]) -> None:
        for message in messages:
            agent = agents[message.recipient]
            act = agent.start if agent.finished else agent.receive
            try:
                answers = act(message.data)
            except pf.ProtocolError as refused:  # this agent is a dropout from here on
                print(f"{agent.name} refuses: {refused}")
                agent.abandon()
                continue
            for answer in answers:
                to_coordinator.put(answer.data)

    deliver(coordinator.open_round())  # the round's worst case is in the ledger before this returns
    while not coordinator.finished:
        try:
            data = to_coordinator.get(block=False)
        except Empty:
            deliver(coordinator.close_phase())
            continue
        try:
            deliver(coordinator.receive(data))
        except pf.RoundAborted:
            raise
        except pf.ProtocolError as refused:  # one bad message changes nothing for the others
            print(f"coordinator refuses a message: {refused}")


def main(home: Path) -> None:
    """Enrol everybody, train, keep what an auditor will ask for."""
    plan = pinned_plan()
    policy = pf.MlpPolicy(
        observation_size=plan.policy.observations,
        hidden=plan.policy.hidden,
        action="categorical",
        action_size=plan.policy.actions,
    )
    names = [f"site-{index}" for index in range(plan.fleet.agents)]
    enrol(home, names)
    fleet = pf.heterogeneous("CartPole-v1", level=0.5, agents=len(names), seed=0)

    with ExitStack() as files:
        agents = {
            name: new_agent(home / name, plan, spec, files)
            for name, spec in zip(names, fleet, strict=True)
        }
        coordinator = new_coordinator(home / "coordinator", plan, policy, files)
        for _ in range(plan.federation.rounds):
            train_one_round(coordinator, agents)
            result = coordinator.result()  # decodes the sum, signs the transcript, moves on
            (home / f"transcript-{result.round}.bin").write_bytes(result.transcript)
            print(
                f"round {result.round}: {len(result.survivors)} agents in the sum, released mean "
                f"return {result.released.mean_return:.0f} +- {result.released.mean_return_std:.0f}"
            )

    parameters = coordinator.state.parameters
    pf.save_policy(home / "policy.safetensors", policy, parameters, plan_digest=plan.digest)
    for name in ("coordinator", names[0]):
        with pf.Ledger.open(home / name / "ledger.db", read_only=True) as ledger:
            spent = ledger.spent()
            print(f"ledger of {name}: epsilon {spent.epsilon:.4f}, head {ledger.head[:16]}…")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as directory:
            main(Path(directory))
