"""What a plan promises and costs, worked out before anything runs.

Guarantee: the figures come from the same derivation that agents and coordinator use; a plan that
cannot keep its promise raises instead of returning one.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from privfedrl.envs import heterogeneous
from privfedrl.errors import ConfigurationError
from privfedrl.federation.adversaries import adversaries
from privfedrl.federation.backends import Homomorphic, Pairwise, check_rosters
from privfedrl.federation.bounds import bounded_epsilon
from privfedrl.federation.setup import RoundSetup, round_setup
from privfedrl.federation.trust_texts import graph_text
from privfedrl.plan import Plan
from privfedrl.privacy import Adjacency, DpEvent

__all__ = ["Promise", "View", "promise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Epsilon at the plan's delta for one adversary, when as few survive as the protocol allows.

    Attributes:
        adversary: whom the figures are about.
        honest_shares: noise shares in a released sum that this adversary does not know.
        epsilon: one unit absent or present; None where nothing is promised or no bound is proven.
        epsilon_replace: one unit replaced by another.
    """

    adversary: str
    honest_shares: int
    epsilon: float | None
    epsilon_replace: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """The answer of ``plan check``; ``str()`` of it is what people read.

    Attributes:
        views: epsilon per adversary.
        noise_multiplier: total noise of the honest floor over the clip norm of a unit's row.
        threshold, honest_floor: survivors needed, and honest ones among them.
        tolerated_dropouts: agents that may vanish in any stage of a round.
        headroom_bits: unused bits of a coordinate above the largest sum.
        headroom_rule: what that sum is, "worst-case" or "rotated"; see the plan.
        bytes_up_per_agent_round: upper bound of what an agent sends in a round.
        num_coordinates: parameters and released metrics, padded.
        lane_bits: bits of a coordinate where several share a word, or None.
        narrowest_lane_bits: what lane_bits could be at least; above 32 lanes do not fit.
        vector_length: words on the wire.
        correlation_bands: rounds over which noise cancels, or None.
        neighbours: how many agents each masks with in a full roster, or None: with all.
        isolation_fraction: honest floor over agents, where each masks with some only; else None.
        graph: against which coordinator that holds and when it fails, or None.
    """

    plan_name: str
    plan_digest: str
    unit: str
    mechanism: str
    protection: str
    delta: float
    releases_per_unit: int
    views: tuple[View, ...]
    noise_multiplier: float
    threshold: int
    honest_floor: int
    tolerated_dropouts: int
    headroom_bits: float
    headroom_rule: str
    bytes_up_per_agent_round: int
    num_coordinates: int
    lane_bits: int | None
    narrowest_lane_bits: int
    vector_length: int
    num_parameters: int
    episodes_per_agent: int
    correlation_bands: int | None = None
    neighbours: int | None = None
    isolation_fraction: float | None = None
    graph: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def _mechanism_text(self) -> str:
        if self.mechanism == "none":
            return "none: no noise is added and nothing is promised"
        carrier = {
            "central-discrete-gaussian": "one share on the sum",
            "local-skellam": "every local step of every agent",
        }.get(self.mechanism, "the honest floor alone")
        if self.correlation_bands is not None:
            carrier = f"one share on a mixture of the last {self.correlation_bands} sums"
        return (
            f"{self.mechanism}, noise multiplier {self.noise_multiplier:.3f} carried by {carrier}"
        )

    def _wire_text(self) -> str:
        if self.lane_bits is None:
            return f"{self.num_coordinates} coordinates on the wire"
        return (
            f"{self.num_coordinates} coordinates in {self.vector_length} words on the wire "
            f"({self.lane_bits}-bit lanes, {self.narrowest_lane_bits} would fit)"
        )

    def _graph_lines(self) -> list[str]:
        if self.graph is None:
            return []
        return [f"graph        {self.neighbours} neighbours for each agent; {self.graph}"]

    def __str__(self) -> str:
        lines = [
            f"plan         {self.plan_name}  (digest {self.plan_digest[:16]}…)",
            f"unit         {self.unit}, {_times(self.releases_per_unit)} charged in a run",
            f"mechanism    {self._mechanism_text()}",
            f"protection   {self.protection}, threshold {self.threshold}, honest floor "
            f"{self.honest_floor}, {self.tolerated_dropouts} dropouts tolerated per round",
            *self._graph_lines(),
            f"vector       {self.num_parameters} parameters, {self._wire_text()}, "
            f"{self.headroom_bits:.1f} bits of {self.headroom_rule} headroom",
            f"upload       at most {self.bytes_up_per_agent_round:,} bytes per agent and round",
            f"experience   {self.episodes_per_agent:,} episodes per agent in a run",
            f"epsilon at delta {self.delta:g}, worst case of the protocol:",
        ]
        width = max(24, *(len(view.adversary) for view in self.views))
        lines += [
            f"  {view.adversary:<{width}} {_figure(view.epsilon):>8}   replace-one "
            f"{_figure(view.epsilon_replace):>8}   ({view.honest_shares} unknown noise shares)"
            for view in self.views
        ]
        return "\n".join(lines)


def promise(plan: Plan) -> Promise:
    """Work out what ``plan`` promises.

    Raises:
        ConfigurationError: the plan is infeasible; ``problems`` says why.
    """
    setup = round_setup(plan)
    _check_schedule(plan)
    _check_fleet(plan)
    _check_budget(setup)
    if plan.sparse and isinstance(setup.backend, Pairwise):
        check_rosters(plan, setup.backend.parameters)
    largest = setup.codec.headroom
    size = (
        setup.codec.words * plan.encoding.ring_bits // 8
        if setup.backend is None
        else setup.backend.capabilities.bytes_up_per_agent
    )
    return Promise(
        plan_name=plan.name,
        plan_digest=plan.digest.hex(),
        unit=plan.unit.value,
        mechanism=plan.privacy.mechanism,
        protection=plan.protection.kind,
        delta=plan.privacy.delta,
        releases_per_unit=plan.releases_per_unit,
        views=tuple(_view(setup, each.name, each.least(plan)) for each in adversaries(plan)),
        noise_multiplier=setup.noise_multiplier,
        threshold=plan.threshold,
        honest_floor=plan.honest_floor,
        tolerated_dropouts=plan.tolerated_dropouts,
        headroom_bits=_sum_bits(setup) - 1 - math.log2(largest),
        headroom_rule=plan.encoding.headroom,
        bytes_up_per_agent_round=size,
        num_coordinates=setup.codec.padded,
        lane_bits=plan.encoding.lane_bits,
        narrowest_lane_bits=setup.codec.narrowest_lane_bits,
        vector_length=setup.codec.words,
        num_parameters=setup.policy.num_parameters,
        episodes_per_agent=plan.episodes_per_agent(plan.federation.rounds),
        correlation_bands=plan.privacy.correlation_bands,
        **_graph(setup),
    )


def _check_fleet(plan: Plan) -> None:
    """What is known about the environment without making it: whether it can vary as it should."""
    fleet = plan.fleet
    try:
        heterogeneous(
            fleet.environment, level=fleet.level, agents=fleet.agents, seed=0, varies=fleet.varies
        )
    except ConfigurationError as error:
        raise ConfigurationError(f"fleet.{error}") from error


def _graph(setup: RoundSetup) -> dict[str, Any]:
    """What a graph of some neighbours adds to a promise."""
    plan = setup.plan
    if not plan.sparse or not isinstance(setup.backend, Pairwise):
        return {}
    parameters = setup.backend.parameters
    return {
        "neighbours": parameters.topology(plan.fleet.agents).degree,
        "isolation_fraction": plan.honest_floor / plan.fleet.agents,
        "graph": graph_text(plan, parameters),
    }


def _sum_bits(setup: RoundSetup) -> int:
    """Bits of a coordinate's sum: beyond them it wraps, or under encryption is not opened."""
    if isinstance(setup.backend, Homomorphic):
        return setup.backend.parameters.sum_bits
    return setup.codec.coordinate_bits


def _view(setup: RoundSetup, adversary: str, shares: int) -> View:
    if setup.mechanism is None:
        return View(adversary=adversary, honest_shares=0, epsilon=None, epsilon_replace=None)
    event = setup.event(shares)
    return View(
        adversary=adversary,
        honest_shares=shares,
        epsilon=_finite(_epsilon(setup, event, Adjacency.ADD_REMOVE)),
        epsilon_replace=_finite(_epsilon(setup, event, Adjacency.REPLACE_ONE)),
    )


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _epsilon(setup: RoundSetup, event: DpEvent, adjacency: Adjacency) -> float:
    releases = [(index, event) for index in range(setup.plan.releases_per_unit)]
    return bounded_epsilon(setup, releases, adjacency=adjacency)


def _check_schedule(plan: Plan) -> None:
    spare, drop = plan.tolerated_dropouts, plan.simulation.dropouts_per_round
    if drop > spare:
        raise ConfigurationError(
            f"simulation.dropouts_per_round must be <= {'half of ' * plan.sparse}fleet.agents - "
            f"max(threshold, protection.min_clients) = {spare}, got {drop}: rounds would abort"
        )


def _check_budget(setup: RoundSetup) -> None:
    """A ledger would refuse the last round: only for an epsilon so large that e^epsilon matters."""
    if setup.mechanism is None:
        return
    if not setup.accounted_delta > 0.0:
        raise ConfigurationError(
            f"privacy.epsilon = {setup.budget:g} cannot be kept: at that epsilon the noise "
            f"sampler's share of delta is above {setup.plan.privacy.delta:g}; ask for a smaller one"
        )
    worst = _epsilon(setup, setup.worst_event, Adjacency.ADD_REMOVE)
    if not worst <= setup.budget:
        raise ConfigurationError(
            f"privacy.epsilon = {setup.budget:g} cannot be kept: with the noise sampler's share of "
            f"delta, a run costs {worst:.6g}; ask for a smaller epsilon"
        )


def _times(count: int) -> str:
    return "1 release" if count == 1 else f"{count} releases"


def _figure(epsilon: float | None) -> str:
    return "no bound" if epsilon is None else f"{epsilon:.4f}"
