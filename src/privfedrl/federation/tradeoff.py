"""What a plan would cost in noise under another epsilon, fleet or schedule.

Guarantee: every figure is that of the changed plan, worked out as a run of it would: least integer
share variance, the rules of plans, the width of the ring. Nothing is extrapolated; a choice that
would be refused says why.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from privfedrl.errors import ConfigurationError
from privfedrl.federation.setup import RoundSetup, round_setup
from privfedrl.plan import Plan
from privfedrl.privacy import Unit
from privfedrl.privacy.calibration import Target, most_rounds

__all__ = ["EPSILONS", "Point", "TradeOff", "fleets", "point", "tradeoff"]

EPSILONS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One choice of epsilon, agents and rounds, and the noise that it takes.

    Attributes:
        is_plan: whether the choice is that of the plan.
        epsilon: the promise at the plan's delta, for all releases of a unit together.
        agents, rounds: of the fleet and the run.
        noise_shares: shares that the promise rests on; releases_per_unit: how many releases of a
            run one unit takes part in.
        share_variance: least variance of one share, squared grid units.
        noise_multiplier: noise of those shares over the L2 clip of a unit's whole row.
        mean_noise_std: standard deviation of the noise in a coordinate of the released mean when
            everybody survives, over the clip norm. Where agents noise their own steps: of the mean
            model delta, with its steps and learning rate.
        mean_noise_norm: root mean square L2 norm of that noise over all policy parameters, over the
            clip norm. At 1 it is as long as the mean of clipped updates can be.
        most_releases: releases of one unit that the plan's own noise affords at this epsilon with
            this fleet, 0 for none. None where fresh trajectories do not compose, or the plan adds
            no noise.
        problem: why the plan cannot be run like this, or None. Figures that follow from the
            refused plan are then None.
    """

    is_plan: bool
    epsilon: float
    agents: int
    rounds: int
    noise_shares: int | None = None
    releases_per_unit: int | None = None
    share_variance: int | None = None
    noise_multiplier: float | None = None
    mean_noise_std: float | None = None
    mean_noise_norm: float | None = None
    most_releases: int | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeOff:
    """Three cuts through one surface; ``str()`` of it is what people read.

    Attributes:
        mechanism: whose noise the figures are about.
        noiseless: the plan itself adds no noise: the figures say what Skellam noise would take.
        by_epsilon: with the plan's fleet and rounds; by_agents, by_rounds: at the plan's epsilon.
    """

    plan_name: str
    plan_digest: str
    unit: str
    mechanism: str
    noiseless: bool
    delta: float
    by_epsilon: tuple[Point, ...]
    by_agents: tuple[Point, ...]
    by_rounds: tuple[Point, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def summary(self) -> str:
        """The first two blocks sideways, in at most seven lines."""
        noise = "  noise in mean / clip"
        rows: list[tuple[str, Sequence[Point], Callable[[Point], str]]] = [
            ("  epsilon", self.by_epsilon, lambda p: f"{p.epsilon:g}{_mark(p)}"),
            ("  noise multiplier", self.by_epsilon, lambda p: _figure(p.noise_multiplier)),
            (noise, self.by_epsilon, lambda p: _figure(p.mean_noise_norm)),
            ("  affordable releases", self.by_epsilon, lambda p: _count(p.most_releases)),
            ("  agents", self.by_agents, lambda p: f"{p.agents}{_mark(p)}"),
            (noise, self.by_agents, lambda p: _figure(p.mean_noise_norm)),
        ]
        if not self._composes:
            del rows[3]
        lines = [
            f"{label:<21}" + "".join(f"{cell(point):>8} " for point in points).rstrip()
            for label, points, cell in rows
        ]
        return "\n".join([self._title, *lines])

    @property
    def _composes(self) -> bool:
        return any(point.most_releases is not None for point in self.by_epsilon)

    @property
    def _title(self) -> str:
        if self.noiseless:
            return f"trade-off at delta {self.delta:g}, if {self.mechanism} noise were added:"
        legend = "* = the plan, - = refused"
        return f"trade-off at delta {self.delta:g}, {self.mechanism} noise ({legend}):"

    def __str__(self) -> str:
        columns = _COLUMNS if self._composes else _COLUMNS[:-1]
        blocks = (self.by_epsilon, self.by_agents, self.by_rounds)
        problems = [point.problem for block in blocks for point in block if point.problem]
        notes = {text: f"[{index}]" for index, text in enumerate(dict.fromkeys(problems), 1)}
        lines = [self._title, *_LEGEND[: len(columns) - 5]]
        lines += ["".join(f"{name:>{width}}" for name, width, _ in columns)]
        for name, block in zip(("epsilon", "agents", "rounds"), blocks, strict=True):
            lines.append(f"-- by {name}")
            for each in block:
                cells = "".join(f"{cell(each):>{width}}" for _, width, cell in columns)
                lines.append(f"{cells}  {notes.get(each.problem or '', _mark(each))}".rstrip())
        return "\n".join(lines + [f"{number} {text}" for text, number in notes.items()])


def tradeoff(plan: Plan) -> TradeOff:
    """Work out the neighbourhood of ``plan``.

    Raises:
        ConfigurationError: the plan itself is infeasible.
    """
    setup = round_setup(plan)
    noiseless = setup.mechanism is None
    own, rounds = plan.privacy.epsilon, plan.federation.rounds
    return TradeOff(
        plan_name=plan.name,
        plan_digest=plan.digest.hex(),
        unit=plan.unit.value,
        mechanism="skellam" if noiseless else plan.privacy.mechanism,
        noiseless=noiseless,
        delta=plan.privacy.delta,
        by_epsilon=tuple(
            point(plan, epsilon=e) for e in (EPSILONS if noiseless else sorted({*EPSILONS, own}))
        ),
        by_agents=tuple(point(plan, agents=n) for n in fleets(plan)),
        by_rounds=tuple(
            point(plan, rounds=k) for k in sorted({max(1, rounds // 2), rounds, 2 * rounds})
        ),
    )


def fleets(plan: Plan) -> tuple[int, ...]:
    """Fleet sizes to compare: half, as it is, twice and four times."""
    n = plan.fleet.agents
    return tuple(sorted({max(1, n // 2), n, 2 * n, 4 * n}))


def point(
    plan: Plan,
    *,
    epsilon: float | None = None,
    agents: int | None = None,
    rounds: int | None = None,
) -> Point:
    """What ``plan`` would take with these values instead of its own.

    A threshold that the plan states stays the same share of the fleet; max_colluding stays as it
    is. A plan without noise is given Skellam noise.

    Raises:
        ConfigurationError: ``plan`` itself is infeasible; a change that is shows as ``problem``.
    """
    setup = round_setup(plan)
    bare = Point(
        is_plan=False,
        epsilon=plan.privacy.epsilon if epsilon is None else epsilon,
        agents=plan.fleet.agents if agents is None else agents,
        rounds=plan.federation.rounds if rounds is None else rounds,
    )
    try:
        other = round_setup(_varied(plan, bare))
    except ConfigurationError as error:
        return dataclasses.replace(bare, problem="; ".join(error.problems))
    return _measured(bare, setup, other)


def _varied(plan: Plan, choice: Point) -> Plan:
    own = plan.protection.threshold
    threshold = None if own is None else -(-own * choice.agents // plan.fleet.agents)
    mechanism = "skellam" if plan.privacy.mechanism == "none" else plan.privacy.mechanism
    return dataclasses.replace(
        plan,
        fleet=dataclasses.replace(plan.fleet, agents=choice.agents),
        federation=dataclasses.replace(plan.federation, rounds=choice.rounds),
        privacy=dataclasses.replace(plan.privacy, epsilon=choice.epsilon, mechanism=mechanism),
        protection=dataclasses.replace(plan.protection, threshold=threshold),
    )


def _measured(bare: Point, setup: RoundSetup, other: RoundSetup) -> Point:
    plan, mechanism = other.plan, other.mechanism
    if mechanism is None:
        raise AssertionError("unreachable: a varied plan has noise")
    std = other.released_std(plan.fleet.agents) / plan.privacy.clip_norm
    return dataclasses.replace(
        bare,
        is_plan=plan == setup.plan,
        noise_shares=plan.noise_floor,
        releases_per_unit=plan.releases_per_unit,
        share_variance=mechanism.share_variance,
        noise_multiplier=other.noise_multiplier,
        mean_noise_std=std,
        mean_noise_norm=std * math.sqrt(other.policy.num_parameters),
        most_releases=_most_releases(setup, plan),
    )


def _most_releases(setup: RoundSetup, other: Plan) -> int | None:
    """With the noise of ``setup`` at the epsilon and the fleet of ``other``."""
    if setup.mechanism is None or other.unit is Unit.TRAJECTORY:
        return None
    target = Target(epsilon=other.privacy.epsilon, delta=other.privacy.delta)
    try:
        return most_rounds(setup.mechanism, target, min_honest=other.noise_floor)
    except ConfigurationError:  # not even one
        return 0


# --- the table ----------------------------------------------------------------------------------


def _figure(value: float | None) -> str:
    """Four digits, whatever the size; "-" where there is none."""
    return "-" if value is None else f"{value:.4g}"


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def _mark(point: Point) -> str:
    return "*" if point.is_plan else ""


_COLUMNS: tuple[tuple[str, int, Callable[[Point], str]], ...] = (
    ("epsilon", 8, lambda p: f"{p.epsilon:g}"),
    ("agents", 8, lambda p: str(p.agents)),
    ("rounds", 8, lambda p: str(p.rounds)),
    ("shares", 8, lambda p: _count(p.noise_shares)),
    ("releases", 10, lambda p: _count(p.releases_per_unit)),
    ("multiplier", 12, lambda p: _figure(p.noise_multiplier)),
    ("std/clip", 11, lambda p: _figure(p.mean_noise_std)),
    ("norm/clip", 11, lambda p: _figure(p.mean_noise_norm)),
    ("most", 10, lambda p: _count(p.most_releases)),
)
_LEGEND = (
    "  shares, releases  noise shares that the promise rests on; releases that one unit is in",
    "  multiplier        noise of those shares / L2 clip of a unit's row",
    "  std, norm / clip  noise in the released mean: one coordinate, and all parameters together",
    "  most              releases of one unit that the plan's own noise would afford",
)
