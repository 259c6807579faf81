"""The loop of a simulated run: rounds, their records, and what stands at the end.

Guarantee: a round counts as done when its checkpoint is written, after its rows and ledgers; what a
deployment could not see (returns, episode lengths) goes to the oracle file only.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from privfedrl.durable_files import write_atomically
from privfedrl.errors import EnvironmentFault, RoundAborted
from privfedrl.federation.agent import Agent
from privfedrl.federation.broadcast import model_digest
from privfedrl.federation.contribution import contribute, local_trainer, published_model
from privfedrl.federation.coordinator import (
    Coordinator,
    FederationState,
    RoundResult,
    initial_federation_state,
    next_attempt,
    published,
    reserve_round,
    settle_round,
    with_clip,
)
from privfedrl.federation.fleet_experience import (
    FleetExperience,
    fleet_environments,
    fleet_heterogeneity,
    generator,
    nominal_environment,
)
from privfedrl.federation.guarantee import run_statement
from privfedrl.federation.held_experience import HeldExperience
from privfedrl.federation.participants import AUDITOR, COORDINATOR, KEY_AUTHORITY, Participants
from privfedrl.federation.persons import admission
from privfedrl.federation.releases import recovered, release_round
from privfedrl.federation.run_directory import (
    HETEROGENEITY,
    METRICS,
    ORACLE,
    RunDirectory,
    RunHeader,
)
from privfedrl.federation.setup import RoundSetup, round_setup
from privfedrl.federation.simulated_round import (
    DROPOUT_STAGES,
    ReplayedEntropy,
    Service,
    StageClock,
    Traffic,
    dropout_schedule,
    run_round,
)
from privfedrl.federation.sum_memory import SumFile
from privfedrl.federation.summary import RunSummary, released_row, summarise
from privfedrl.federation.trustee import SumAuditor, Trustee
from privfedrl.plan import Plan
from privfedrl.primitives.random import (
    DeterministicEntropy,
    Entropy,
)
from privfedrl.privacy import Ledger, Statement
from privfedrl.rollout import RolloutWorkers, TrajectoryBatch, greedy_return
from privfedrl.secagg import AbortCode, IdealRecord, SharedEdges, Transcript, ideal_sum
from privfedrl.training import save_policy

__all__ = ["Attempted", "Progress", "Run", "Simulation"]

# an aborted round is tried again with fresh trajectories; more failures than this are no accident
MAX_ATTEMPTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a progress display may show after a round.

    ``mean_return`` and ``greedy_return`` are oracle values of the simulation, not releases.
    """

    round: int
    rounds: int
    epsilon: float
    survivors: int
    dropouts: int
    mean_return: float
    greedy_return: float | None
    released_return: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished simulation.

    Attributes:
        path: its directory.
        parameters: float64 [d], the released policy.
        summary: the figures of ``train --json``.
        statement: the guarantee.
    """

    path: Path
    plan: Plan
    parameters: NDArray[np.float64]
    summary: RunSummary
    statement: Statement

    @property
    def mean_return(self) -> float:
        """Oracle, simulation only: mean training return over the fleet in the last round."""
        return self.summary.mean_return_last

    @property
    def ledger(self) -> Ledger:
        """The coordinator's ledger, opened for reading."""
        return Ledger.open(RunDirectory(self.path).ledger, read_only=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempted:
    """A completed round and the abort codes of the attempts before it."""

    state: FederationState
    result: RoundResult
    traffic: Traffic
    failures: list[str]


class Simulation:
    """The loop over rounds. Everything durable is in the directory and the ledgers.

    ``simulate`` makes one per run, inside the lock of its directory.
    """

    def __init__(
        self,
        directory: RunDirectory,
        plan: Plan,
        header: RunHeader,
        participants: Participants,
        workers: RolloutWorkers,
        entropy: Entropy,
        stack: contextlib.ExitStack,
    ) -> None:
        self.stack = stack
        self.directory, self.plan, self.header = directory, plan, header
        self.participants, self.entropy = participants, entropy
        self.setup: RoundSetup = round_setup(plan)
        specs = fleet_environments(plan, seed=header.seed)
        self.experience = FleetExperience(self.setup, specs, seed=header.seed, workers=workers)
        self.nominal = nominal_environment(plan)
        saved = directory.restore()
        participants.verify(directory.anchors())
        if saved is None:
            rng = generator(header.seed, "initial policy")
            self.state = initial_federation_state(
                bytes.fromhex(header.task_id),
                self.setup.policy.initial_parameters(rng, log_std=plan.policy.initial_log_std),
            )
            self.sums = {"wall_s": 0.0, "env_steps": 0.0}
        else:
            self.state, self.sums = saved
        self.state = with_clip(self.setup, self.state)
        mixes = self.setup.correlated is not None
        self.memory = SumFile(directory.past_sums) if mixes else None
        directory.cut()
        protected = plan.protection.kind != "none"
        self.run_one = self._protected if protected else self._clear
        self.replays: dict[str, ReplayedEntropy] = {}
        self.edges = SharedEdges()  # all agents are in this process: each edge is computed once
        self.agents = self._agents() if protected else {}
        self.services = self._services()
        self.trainers = {
            name: local_trainer(self.setup, rng=generator(header.seed, "learning", index))
            for index, name in enumerate(participants.agents)
        }
        self.held = {name: HeldExperience(self.setup) for name in participants.agents}

    def train(self, progress: Callable[[Progress], None]) -> None:
        """Rounds from the state until the plan's last one."""
        while self.state.round < self.plan.federation.rounds:
            clock = StageClock()
            attempted = self._released_before(clock) or self._attempts(clock)
            greedy = self._evaluate(attempted.state, clock)
            progress(self._record(attempted, greedy, clock))

    def finish(self) -> Run:
        """Policy, statement and summary of a complete run."""
        path = self.directory.policy
        save_policy(path, self.setup.policy, self.state.final, plan_digest=self.plan.digest)
        statement = run_statement(
            self.setup, self.participants.ledger, deterministic=self.header.deterministic
        ).sign(self.participants.identities[COORDINATOR].sign)
        write_atomically(self.directory.statement, statement.to_json().encode())
        summary = summarise(
            self.plan,
            released=self.directory.rows(METRICS),
            oracle=self.directory.rows(ORACLE),
            ledger=self.participants.ledger,
            sums=self.sums,
        )
        write_atomically(self.directory.path / "summary.json", summary.to_json())
        with contextlib.suppress(EnvironmentFault):  # who is that broken has lost rounds already
            found = fleet_heterogeneity(self.plan, seed=self.header.seed)
            write_atomically(self.directory.path / HETEROGENEITY, found.to_json().encode())
        return Run(
            path=self.directory.path,
            plan=self.plan,
            parameters=self.state.final,
            summary=summary,
            statement=statement,
        )

    def _agents(self) -> dict[str, Agent]:
        return {
            name: Agent(
                self.plan,
                identity=self.participants.identities[name],
                registry=self.participants.registry,
                ledger=self.participants.ledgers[name],
                journal=self.participants.journals[name],
                participation=self.participants.participation.get(name),
                experience=self._experience_of(index),
                entropy=self._agent_entropy(name),
                edges=self.edges,
                rng=generator(self.header.seed, "learning", index),
            )
            for index, name in enumerate(self.participants.agents)
        }

    def _services(self) -> dict[str, Service]:
        """The key authority, and the auditor, as the plan asks for them."""
        people, found = self.participants, dict[str, Service]()
        if KEY_AUTHORITY in people.services:
            found[KEY_AUTHORITY] = self.stack.enter_context(
                Trustee(
                    self.plan,
                    identity=people.identities[KEY_AUTHORITY],
                    registry=people.registry,
                    ledger=people.ledgers[KEY_AUTHORITY],
                    journal=people.journals[KEY_AUTHORITY],
                    entropy=self._agent_entropy(KEY_AUTHORITY),
                )
            )
        if AUDITOR in people.services:
            found[AUDITOR] = SumAuditor(
                self.plan, identity=people.identities[AUDITOR], registry=people.registry
            )
        return found

    def _experience_of(
        self, index: int
    ) -> Callable[[NDArray[np.float64], int, int, int], TrajectoryBatch]:
        return lambda theta, round_index, attempt, step: self.experience.of(
            index, theta, round_index, attempt, step
        )

    def _entropy_of(self, name: str) -> Entropy:
        """In a test: a stream for this participant, round and attempt; else the system's."""
        if isinstance(self.entropy, DeterministicEntropy):
            attempt = next_attempt(self.setup, self.participants.ledger, self.state)
            return self.entropy.fork(f"{name}/{self.state.round}/{attempt}".encode())
        return self.entropy

    def _agent_entropy(self, name: str) -> Entropy:
        """The same for an agent object, which outlives the round."""
        if not isinstance(self.entropy, DeterministicEntropy):
            return self.entropy
        source = self.replays[name] = ReplayedEntropy()
        return source

    def _attempts(self, clock: StageClock) -> Attempted:
        """Try the next round until it has a result; a try spends one use of what it trains on."""
        failures: list[str] = []
        while True:
            try:
                state, result, traffic = self.run_one(clock)
            except RoundAborted as aborted:
                failures.append(aborted.code)
                if len(failures) >= MAX_ATTEMPTS:
                    raise
                continue
            return Attempted(state=state, result=result, traffic=traffic, failures=failures)

    def _released_before(self, clock: StageClock) -> Attempted | None:
        """The round that the last process released without a checkpoint, from the adder's memory.

        Its bytes and failed attempts were not kept; oracle figures are worked out once more.
        """
        found = recovered(self.setup, self.memory, self.participants.ledger, self.state)
        if found is None:
            return None
        state, result = found
        self._collect(result.attempt, self._dropouts(result.attempt), clock)
        return Attempted(state=state, result=result, traffic=Traffic(), failures=[])

    def _protected(self, clock: StageClock) -> tuple[FederationState, RoundResult, Traffic]:
        coordinator = Coordinator(
            self.plan,
            identity=self.participants.identities["coordinator"],
            registry=self.participants.registry,
            ledger=self.participants.ledger,
            state=self.state,
            entropy=self._entropy_of("coordinator"),
            history=self.memory,
        )
        for name, source in self.replays.items():
            source.stream = self._entropy_of(name)
        with clock.stage("secure aggregation"):
            invitations = coordinator.open_round()
        attempt = coordinator.attempt
        dropouts = self._dropouts(attempt)
        self._collect(attempt, dropouts, clock)
        try:
            traffic = run_round(
                coordinator, self.agents, self.services, invitations, dropouts, clock
            )
        finally:
            self.edges.forget()
        with clock.stage("secure aggregation"):
            result = coordinator.result()
        self._refuse_if_all_failed(
            [agent.fault for name, agent in self.agents.items() if dropouts.get(name) != 0]
        )
        return coordinator.state, result, traffic

    def _clear(self, clock: StageClock) -> tuple[FederationState, RoundResult, Traffic]:
        """The control without protection: the same vectors, summed in the clear in this process."""
        streams = {name: self._entropy_of(name) for name in self.participants.agents}
        with clock.stage("secure aggregation"):
            ledger, entropy = self.participants.ledger, self._entropy_of("coordinator")
            opening = reserve_round(self.setup, ledger, self.state, entropy)
        dropouts = self._dropouts(opening.attempt)
        self._collect(opening.attempt, dropouts, clock)
        in_sum = DROPOUT_STAGES.index("consistency")
        vectors, faults = {}, []
        with clock.stage("training and encoding"):
            for index, name in enumerate(self.participants.agents):
                if dropouts.get(name, in_sum) < in_sum:
                    continue
                contribution = contribute(
                    self.setup,
                    self.trainers[name],
                    published_model(self.setup, published(self.state)),
                    experience=self._clear_experience(index, opening.attempt),
                    held=self.held[name],
                    round_index=self.state.round,
                    admit=admission(
                        self.setup,
                        self.participants.participation.get(name),
                        f"{self.state.task_id.hex()}/{self.state.round}/{opening.attempt}",
                    ),
                    rotation_seed=opening.seed,
                    entropy=streams[name],
                )
                vectors[name] = contribution.vector
                faults.append(contribution.fault)
        needed = self.plan.fleet.agents - self.plan.tolerated_dropouts
        if len(vectors) < needed:
            raise RoundAborted(
                AbortCode.THRESHOLD_NOT_MET.value, f"{len(vectors)} survivors of {needed} needed"
            )
        self._refuse_if_all_failed(faults)
        with clock.stage("secure aggregation"):
            settle_round(self.setup, ledger, opening, len(vectors))
            state, result = release_round(
                self.setup,
                self.state,
                opening,
                ideal_sum(vectors, vectors, ring_bits=self.plan.encoding.ring_bits),
                tuple(sorted(vectors)),
                entropy=entropy,
                sign=lambda released: self._ideal_transcript(opening.attempt, vectors, released),
                ledger=ledger,
                memory=self.memory,
            )
        size = self.setup.codec.words * self.plan.encoding.ring_bits // 8
        return state, result, Traffic(up=dict.fromkeys(vectors, size))

    def _ideal_transcript(
        self, attempt: int, survivors: Iterable[str], total: NDArray[np.unsignedinteger]
    ) -> Transcript:
        """The signed record that says that nothing protected this sum."""
        record = IdealRecord(
            task_id=self.state.task_id,
            round=self.state.round,
            attempt=attempt,
            plan_digest=self.plan.digest,
            model_digest=model_digest(published(self.state)),
            registry=self.participants.registry,
            previous_transcript=self.state.transcript,
            survivors=survivors,
            vector=total,
        )
        return Transcript.sign(
            record,
            identity=self.participants.identities["coordinator"],
            ledger_head=bytes.fromhex(self.participants.ledger.head),
        )

    def _clear_experience(
        self, index: int, attempt: int
    ) -> Callable[[NDArray[np.float64], int], TrajectoryBatch]:
        source = self._experience_of(index)
        return lambda theta, step: source(theta, self.state.round, attempt, step)

    def _dropouts(self, attempt: int) -> dict[str, int]:
        return dropout_schedule(
            self.participants.agents,
            dropouts=self.plan.simulation.dropouts_per_round,
            seed=self.header.seed,
            round_index=self.state.round,
            attempt=attempt,
        )

    def _collect(self, attempt: int, dropouts: Mapping[str, int], clock: StageClock) -> None:
        names = self.participants.agents
        present = [
            k
            for k, name in enumerate(names)
            if dropouts.get(name) != 0 and self._needs_experience(name)
        ]
        with clock.stage("rollout"):
            self.experience.prepare(self.state.parameters, self.state.round, attempt, present)

    def _needs_experience(self, name: str) -> bool:
        round_index = self.state.round
        if name in self.agents:
            return self.agents[name].needs_experience(round_index)
        return self.held[name].needs_fresh(round_index)

    def _refuse_if_all_failed(self, faults: Sequence[EnvironmentFault | None]) -> None:
        found = [fault for fault in faults if fault is not None]
        if found and len(found) == len(faults):
            raise EnvironmentFault(f"no agent's environment works: {found[0]}") from found[0]

    def _evaluate(self, state: FederationState, clock: StageClock) -> float | None:
        """Oracle, simulation only: greedy return on the nominal environment."""
        simulation = self.plan.simulation
        last = state.round == self.plan.federation.rounds
        if state.round % simulation.evaluation_interval and not last:
            return None
        with clock.stage("oracle evaluation"):
            return greedy_return(
                self.setup.policy,
                state.final,
                self.nominal,
                episodes=simulation.evaluation_episodes,
                rng=generator(self.header.seed, "evaluation", state.round),
                horizon=self.plan.fleet.horizon,
            )

    def _record(
        self,
        attempted: Attempted,
        greedy: float | None,
        clock: StageClock,
    ) -> Progress:
        """Rows first, then the checkpoint that makes the round count."""
        result, state = attempted.result, attempted.state
        batches = {
            k: batch
            for k, batch in self.experience.collected.items()
            if isinstance(batch, TrajectoryBatch) and batch.mask.any()
        }
        returns = {  # of the trajectories that there are
            self.participants.agents[k]: float(b.returns[b.mask.any(axis=1)].mean())
            for k, b in batches.items()
        }
        steps = self.experience.steps
        spent = self.participants.ledger.spent().epsilon
        released = released_row(self.plan, result, attempted.traffic, attempted.failures, spent)
        mean_return = float(np.mean(list(returns.values()))) if returns else math.nan
        self.directory.append(METRICS, released)
        self.directory.append(
            ORACLE,
            {
                "round": result.round,
                "episodes_per_agent": self.plan.episodes_per_agent(result.round + 1),
                "mean_return": mean_return if returns else None,
                "agent_returns": returns,
                "greedy_return": greedy,
                "env_steps": steps,
                "failed_environments": len(self.experience.collected) - len(batches),
                "stage_s": clock.seconds,
            },
        )
        if result.transcript:
            self.directory.save_transcript(result.round, result.transcript)
        self.sums["wall_s"] += clock.total()
        self.sums["env_steps"] += steps
        self.directory.save(state, self.sums, anchors=self.participants.heads())
        self.state = state
        return Progress(
            round=state.round,
            rounds=self.plan.federation.rounds,
            epsilon=spent,
            survivors=len(result.survivors),
            dropouts=self.plan.fleet.agents - len(result.survivors),
            mean_return=mean_return,
            greedy_return=greedy,
            released_return=result.released.mean_return,
        )
