"""One agent: private experience in, protected bytes out.

Guarantee: the only data-dependent bytes that leave an agent are its masked or encrypted vector
(clipped, rotated, rounded, noised) and shares of one-time masks, and the agent's own ledger holds a
durable charge before the vector leaves. An environment that fails contributes zeros and a noise
share, so that nobody can tell; the fault stays in ``agent.fault``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from privfedrl.envs import EnvSpec, VectorEnv
from privfedrl.errors import (
    ConfigurationError,
    EnvironmentFault,
    LocalProtocolError,
    RemoteProtocolError,
)
from privfedrl.federation.backends import AnyConfig, Backend, RoundClient, Standing
from privfedrl.federation.broadcast import model_digest, unpack_broadcast
from privfedrl.federation.contribution import (
    Contribution,
    PublishedModel,
    contribute,
    local_trainer,
    published_model,
)
from privfedrl.federation.held_experience import HeldExperience
from privfedrl.federation.local_experience import LocalExperience
from privfedrl.federation.persons import admission, check_participation
from privfedrl.federation.setup import RoundSetup, round_setup
from privfedrl.parties import Identity, Journal, Outgoing, Registry
from privfedrl.plan import Plan
from privfedrl.primitives.random import Clock, Entropy, system_clock, system_entropy
from privfedrl.privacy import Ledger, ParticipationRegister
from privfedrl.rollout import TrajectoryBatch
from privfedrl.secagg import Edges, OwnEdges

__all__ = ["Agent", "Experience"]

# (parameters float64 [d], round, attempt, local step) -> fresh, whole trajectories
Experience = Callable[[NDArray[np.float64], int, int, int], TrajectoryBatch]


class Agent:
    """A participant that learns: start, receive, finished.

    One object takes part in any number of rounds, one after the other. It owns no socket, thread or
    clock. After ``ProtocolError`` from :meth:`receive` the object is either unchanged (the bytes
    were not from whom they claim) or finished (the round is over for it); :attr:`finished` tells.

    Args:
        plan: the agent's own copy; nothing in it is taken from the coordinator.
        identity: long-term signing key; its name must be in ``registry``.
        registry: who else takes part, distributed out of band.
        ledger: the agent's own; charged before anything leaves.
        environment: the agent's own, see :class:`LocalExperience`; or else
        experience: collects one fresh batch; see :data:`Experience`. Exactly one of the two.
        journal: durable record of single-use steps. It must outlive the process.
        participation: durable, private record of who took part how often; for unit "person" only,
            and then needed. It must outlive the process.
        entropy: source of keys, masks and noise; the system's unless a test says otherwise.
        clock: seconds since 1970-01-01 UTC, read once when a round is opened.
        edges: how masks are computed: ``OwnEdges(threads=...)`` for long vectors. A simulation
            shares work through it; a deployment must not.
        rng: of a learner inside the agent (unit "agent"), never of keys, masks or noise; seeded by
            the system unless given.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        identity: Identity,
        registry: Registry,
        ledger: Ledger,
        journal: Journal,
        participation: ParticipationRegister | None = None,
        environment: EnvSpec | VectorEnv | None = None,
        experience: Experience | None = None,
        entropy: Entropy = system_entropy,
        clock: Clock = system_clock,
        edges: Edges | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        if plan.protection.kind == "none":
            raise ConfigurationError(
                "protection.kind must be 'pairwise', 'bfv' or 'ckks' for an agent, got 'none': "
                "only the simulator runs unprotected plans, and no bytes of it leave a process"
            )
        check_participation(plan, participation)
        self._plan = plan
        self._setup = round_setup(plan)
        self._trainer = local_trainer(self._setup, rng=rng)
        self._held = HeldExperience(self._setup)
        self._participation = participation
        self._identity = identity
        self._registry = registry
        self._ledger = ledger
        self._experience = _experience(self._setup, environment, experience)
        self._journal = journal
        self._entropy = entropy
        self._clock = clock
        self._edges = OwnEdges() if edges is None else edges
        self._client: RoundClient | None = None
        self._reservations: tuple[int, ...] = ()
        self.fault: EnvironmentFault | None = None
        """Why the last contribution held no experience, if so. Never leaves the agent."""
        self.lost = 0
        """Trajectories of the last contribution that failed. Never leaves the agent."""

    def __repr__(self) -> str:
        phase = self._client.phase.name if self._client else "IDLE"
        return f"Agent({self.name!r}, phase={phase})"

    @property
    def name(self) -> str:
        """The name under which the registry knows this agent."""
        return self._identity.name

    @property
    def finished(self) -> bool:
        """True when no round is in progress."""
        return self._client is None or self._client.finished

    def start(self, broadcast: bytes) -> list[Outgoing]:
        """Verify the opening of a round, collect or take what may be used again, join the round.

        Raises:
            LocalProtocolError: a round is in progress.
            ProtocolError: the broadcast is not the coordinator's, or about another plan or policy.
            PrivacyError: the experience handed out a batch that was used before; nothing is sent.
        """
        if not self.finished:
            raise LocalProtocolError("start: a round is in progress; finish or drop it first")
        adapts = self._plan.privacy.adaptive_clip is not None
        signed, published = unpack_broadcast(
            broadcast, num_parameters=self._setup.policy.num_parameters + adapts
        )
        now = self._clock()
        config, model = self._verified(signed, published, now)
        contribution = self._contribution(config, model)
        self._reservations = ()
        self._client, first = self._backend.join(
            signed,
            contribution.vector,
            who=Standing(
                identity=self._identity,
                registry=self._registry,
                plan_digest=self._plan.digest,
                entropy=self._entropy,
                clock=self._clock,
            ),
            journal=self._journal,
            edges=self._edges,
            received_at=now,
            model_digest=config.model_digest,
            before_release=lambda: self._charge(config, contribution),
        )
        return first

    def receive(self, data: bytes) -> list[Outgoing]:
        """Take one message of the coordinator; returns what to send back."""
        if self._client is None:
            raise LocalProtocolError("receive: no round is in progress; call start first")
        outgoing = self._client.receive(data)
        if self._client.finished:
            self._settle(self._client)
        return outgoing

    def needs_experience(self, round_index: int) -> bool:
        """Whether the agent collects in that round, or uses trajectories again that it holds."""
        return self._held.needs_fresh(round_index)

    def abandon(self) -> None:
        """Forget the round in progress; a charge that was made stands."""
        self._client = None

    @property
    def _backend(self) -> Backend:
        if self._setup.backend is None:
            raise AssertionError("unreachable: refused in the constructor")
        return self._setup.backend

    def _verified(
        self, signed: bytes, published: NDArray[np.float64], now: int
    ) -> tuple[AnyConfig, PublishedModel]:
        config = self._backend.read_config(
            signed, registry=self._registry, plan_digest=self._plan.digest, now=now
        )
        if config.model_digest != model_digest(published):
            raise RemoteProtocolError("the parameters are not the ones in the signed configuration")
        try:
            return config, published_model(self._setup, published)
        except ConfigurationError as error:
            raise RemoteProtocolError(f"the parameters are no policy: {error}") from error

    def _contribution(self, config: AnyConfig, model: PublishedModel) -> Contribution:
        contribution = contribute(
            self._setup,
            self._trainer,
            model,
            admit=admission(self._setup, self._participation, _release_id(config)),
            experience=lambda theta, step: self._experience(
                theta, config.round, config.attempt, step
            ),
            held=self._held,
            round_index=config.round,
            rotation_seed=config.round_seed,
            entropy=self._entropy,
        )
        self.fault, self.lost = contribution.fault, contribution.lost
        return contribution

    def _charge(self, config: AnyConfig, contribution: Contribution) -> None:
        """One row for each private step: a batch that was in it is used up by one for ever."""
        name, spent = _release_id(config), contribution.spent
        names = [name] if len(spent) == 1 else [f"{name}/{step}" for step in range(len(spent))]
        charges = []
        for each, (newest, *older) in zip(names, spent, strict=True):
            replayed = tuple(batch_id.hex() for batch_id in older)
            charges.append(self._setup.charge(each, group=newest.hex(), replayed=replayed))
        self._reservations = tuple(self._ledger.reserve(charge) for charge in charges)

    def _settle(self, client: RoundClient) -> None:
        """Replace the worst case by what the signed survivor list proves, once, if it is known."""
        if not client.survivors:
            return
        for reservation in self._reservations:
            self._ledger.settle(reservation, self._setup.settled(len(client.survivors)))
        self._reservations = ()


def _release_id(config: AnyConfig) -> str:
    return f"{config.task_id.hex()}/{config.round}/{config.attempt}"


def _experience(
    setup: RoundSetup, environment: EnvSpec | VectorEnv | None, experience: Experience | None
) -> Experience:
    if experience is not None and environment is None:
        return experience
    if environment is not None and experience is None:
        return LocalExperience(setup, environment)
    raise ConfigurationError("an agent needs exactly one of environment and experience")
