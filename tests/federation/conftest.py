"""A tiny fleet, its participants, and a wire between the real ends."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfedrl.envs import nominal
from privfedrl.federation.agent import Agent
from privfedrl.federation.coordinator import Coordinator, initial_federation_state
from privfedrl.federation.fleet_experience import FleetExperience
from privfedrl.federation.setup import round_setup
from privfedrl.parties import Identity, Outgoing, Registry, SqliteJournal
from privfedrl.plan import (
    EncodingPlan,
    FederationPlan,
    FleetPlan,
    Plan,
    PolicyPlan,
    PrivacyPlan,
    ProtectionPlan,
    SimulationPlan,
    TrainingPlan,
)
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.privacy import Ledger
from privfedrl.rollout import TrajectoryBatch

KINDS: dict[str, Any] = {
    "fleet": FleetPlan,
    "policy": PolicyPlan,
    "federation": FederationPlan,
    "privacy": PrivacyPlan,
    "training": TrainingPlan,
    "encoding": EncodingPlan,
    "protection": ProtectionPlan,
    "simulation": SimulationPlan,
}
TINY: dict[str, dict[str, Any]] = {
    "fleet": {"environment": "CartPole-v1", "agents": 6, "trajectories": 4, "horizon": 60},
    "policy": {"observations": 4, "actions": 2, "hidden": (8,)},
    "federation": {"rounds": 3},
    "privacy": {"unit": "trajectory", "max_colluding": 1, "epsilon": 5.0},
    "protection": {"min_clients": 4},
    "simulation": {"evaluation_episodes": 2},
}
AGENT_UNIT: dict[str, dict[str, Any]] = {
    "privacy": {"unit": "agent", "epsilon": 20.0},
    "federation": {"strategy": "fedavg"},
    "training": {"local_steps": 2, "local_learning_rate": 0.1},
}


def tiny_plan(*several: Mapping[str, Mapping[str, Any]], **sections: Mapping[str, Any]) -> Plan:
    """Six agents, four short trajectories each; ``sections`` override single values."""
    given = {name: dict(values) for name, values in TINY.items()}
    for layer in (*several, sections):
        for section, changes in layer.items():
            given[section] = given.get(section, {}) | dict(changes)
    return Plan(name="tiny", **{name: KINDS[name](**values) for name, values in given.items()})


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where the system allows it: these tests sync hundreds of small files to disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., Plan]:
    return tiny_plan


@pytest.fixture(scope="session")
def agent_unit() -> dict[str, dict[str, Any]]:
    """Sections that turn the tiny plan into one whose unit is the agent."""
    return AGENT_UNIT


class Killed(BaseException):
    """Stands for the end of the process: no handler of the library may swallow it."""


@pytest.fixture(scope="session")
def killed_at() -> Callable[..., contextlib.AbstractContextManager[None]]:
    """A block that dies at the ``call``-th use of a function, before or after it did its work."""

    @contextlib.contextmanager
    def killed(owner: Any, name: str, *, call: int, after: bool) -> Iterator[None]:
        original, count = getattr(owner, name), 0

        def dying(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == call and not after:
                raise Killed
            result = original(*args, **kwargs)
            if count == call:
                raise Killed
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, dying)
            with pytest.raises(Killed):
                yield

    return killed


@dataclass
class World:
    """A coordinator, its agents, their ledgers and journals; every message is recorded."""

    plan: Plan
    home: Path
    seed: bytes = b"world"
    experience: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.setup = round_setup(self.plan)
        self.entropy = DeterministicEntropy(self.seed)
        keys = self.entropy.fork(b"keys")
        self.names = tuple(f"agent-{index:03d}" for index in range(self.plan.fleet.agents))
        self.identities = {
            name: Identity.generate(name, keys) for name in (*self.names, "coordinator")
        }
        self.registry = Registry(
            one.entry("coordinator" if name == "coordinator" else "agent")
            for name, one in self.identities.items()
        )
        self.ledger = Ledger.open(self.home / "server.db")
        self.ledgers = {name: Ledger.open(self.home / f"{name}.db") for name in self.names}
        self.journals = {name: SqliteJournal(self.home / f"{name}.jnl") for name in self.names}
        rng = np.random.default_rng(3)
        self.parameters = np.asarray(self.setup.policy.initial_parameters(rng), dtype=np.float64)
        self.state = initial_federation_state(bytes(32), self.parameters)
        self.rollouts = FleetExperience(
            self.setup,
            [nominal(self.plan.fleet.environment)] * len(self.names),
            seed=1,
            workers=None,
        )
        self.calls: list[tuple[str, int, int, int]] = []
        self.agents = {name: self.agent(name) for name in self.names}
        self.sent: dict[str, list[bytes]] = {name: [] for name in self.names}

    def close(self) -> None:
        for one in (self.ledger, *self.ledgers.values(), *self.journals.values()):
            one.close()

    def batch(self, name: str, theta: Any, position: tuple[int, int, int]) -> TrajectoryBatch:
        """What the real environment of ``name`` gives."""
        self.calls.append((name, *position))
        return self.rollouts.of(self.names.index(name), theta, *position)

    def agent(self, name: str, **changes: Any) -> Agent:
        def experience(theta: Any, *position: int) -> Any:
            source = self.experience.get(name, self.batch)
            return source(name, theta, position)

        given: dict[str, Any] = {
            "identity": self.identities[name],
            "registry": self.registry,
            "ledger": self.ledgers[name],
            "journal": self.journals[name],
            "experience": experience,
            "entropy": self.entropy.fork(b"agent" + name.encode()),
        }
        plan = changes.pop("plan", self.plan)
        return Agent(plan, **(given | changes))

    def coordinator(self, **changes: Any) -> Coordinator:
        given: dict[str, Any] = {
            "identity": self.identities["coordinator"],
            "registry": self.registry,
            "ledger": self.ledger,
            "state": self.state,
            "entropy": self.entropy.fork(b"coordinator"),
        }
        plan = changes.pop("plan", self.plan)
        return Coordinator(plan, **(given | changes))

    def answer(self, message: Outgoing) -> list[bytes]:
        """Give one message to its agent; returns and records what it sends."""
        name = message.recipient
        agent = self.agents[name]
        replies = (agent.start if agent.finished else agent.receive)(message.data)
        self.sent[name] += [reply.data for reply in replies]
        return [reply.data for reply in replies]

    def exchange(
        self,
        coordinator: Coordinator,
        messages: list[Outgoing],
        absent: frozenset[str] = frozenset(),
    ) -> list[Outgoing]:
        """One phase: deliver, collect the answers, close the phase if somebody is missing."""
        following: list[Outgoing] = []
        for message in messages:
            if message.recipient not in absent:
                for data in self.answer(message):
                    following += coordinator.receive(data)
        return following if following or coordinator.finished else coordinator.close_phase()

    def run(self, **changes: Any) -> Coordinator:
        """A whole round; the coordinator keeps the result."""
        coordinator = self.coordinator(**changes)
        messages = coordinator.open_round()
        while not coordinator.finished:
            messages = self.exchange(coordinator, messages)
        return coordinator


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(plan: Plan | None = None, **changes: Any) -> World:
        home = tmp_path / f"world-{len(made)}"
        home.mkdir()
        made.append(World(plan or tiny_plan(), home, **changes))
        return made[-1]

    yield make
    for world in made:
        world.close()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()
