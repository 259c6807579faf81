"""The plan: every parameter that privacy or safety depends on, frozen, with one digest.

Guarantee: two plans with equal digests promise the same thing. Each agent pins its own copy; the
digest enters every key derivation, signature and ledger entry, so a coordinator with another plan
gets no sum. ``[simulation]`` is outside the digest: it exists only where no real agent takes part.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privfedrl.errors import ConfigurationError, StorageError
from privfedrl.plan.rules import MAX_COMPLETE_AGENTS, RULES
from privfedrl.plan.sections import (
    EncodingPlan,
    FederationPlan,
    FleetPlan,
    PolicyPlan,
    PrivacyPlan,
    ProtectionPlan,
    SimulationPlan,
    TrainingPlan,
)
from privfedrl.plan.values import canonical, read_section, type_problems, write_section
from privfedrl.privacy.units import Unit

if typing.TYPE_CHECKING:
    from privfedrl.federation.promise import Promise

__all__ = ["Plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything an agent pins before it takes part. See :meth:`check` for what it promises."""

    name: str
    fleet: FleetPlan
    policy: PolicyPlan
    federation: FederationPlan
    privacy: PrivacyPlan
    training: TrainingPlan = field(default_factory=TrainingPlan)
    encoding: EncodingPlan = field(default_factory=EncodingPlan)
    protection: ProtectionPlan = field(default_factory=ProtectionPlan)
    simulation: SimulationPlan = field(default_factory=SimulationPlan)

    def __post_init__(self) -> None:
        # rules compare numbers, so a value of another type must be found first
        problems = list(type_problems(self, "")) or [text for rule in RULES for text in rule(self)]
        if problems:
            raise _all_at_once(f"plan {self.name!r}", problems)

    @classmethod
    def from_toml(cls, path: str | Path) -> Plan:
        """Read a plan file.

        Raises:
            StorageError: the file cannot be read.
            ConfigurationError: not TOML, unknown or missing keys, wrong types, impossible values;
                ``problems`` lists all of them.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"plan file {str(path)!r} cannot be read: {error}") from error
        return cls.from_text(text, source=str(path))

    @classmethod
    def from_text(cls, text: str, *, source: str = "plan") -> Plan:
        """Parse TOML text; see :meth:`from_toml`."""
        try:
            data = tomllib.loads(text)
        # beside TOMLDecodeError: integers of thousands of digits, thousands of nested brackets
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"{source} is not valid TOML: {error}") from error
        problems: list[str] = []
        arguments = read_section(cls, data, "", problems)
        if problems or arguments is None:
            raise _all_at_once(source, problems)
        plan: Plan = cls(**arguments)
        return plan

    def to_toml(self) -> str:
        """TOML text; ``Plan.from_text(plan.to_toml()) == plan``."""
        return "\n".join(write_section(self, "")) + "\n"

    @property
    def digest(self) -> bytes:
        """SHA-256 of the canonical form of everything but ``name`` and ``[simulation]``."""
        pinned = canonical(self)
        del pinned["name"], pinned["simulation"]
        text = json.dumps(pinned, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(b"pfrl-plan/4\x00" + text.encode()).digest()

    @property
    def unit(self) -> Unit:
        """The unit of privacy as a type."""
        return Unit(self.privacy.unit)

    @property
    def threshold(self) -> int:
        """Survivors needed to open a sum, t."""
        default = (self.fleet.agents + self.privacy.max_colluding) // 2 + 1
        return default if self.protection.threshold is None else self.protection.threshold

    @property
    def sparse(self) -> bool:
        """Whether agents mask with some of the others only: pairwise masking of a large fleet."""
        return self.protection.kind == "pairwise" and self.fleet.agents > MAX_COMPLETE_AGENTS

    @property
    def several_sums(self) -> bool:
        """Whether the coordinator that the plan names can open disjoint parts of the survivors."""
        return self.sparse and self.protection.server == "malicious"

    @property
    def follows(self) -> bool:
        """Whether the coordinator is trusted to follow the protocol of masking."""
        return self.sparse and self.protection.server == "semi-honest"

    def honest_in_sum(self, survivors: int) -> int:
        """Honest vectors in the smallest sum that a round with so many survivors may open."""
        if self.several_sums:
            return self.protection.min_honest
        return survivors - self.privacy.max_colluding

    @property
    def honest_floor(self) -> int:
        """Honest survivors in every opened sum: their shares carry the noise.

        t - max_colluding; min_honest where the coordinator could open several sums.
        """
        return self.honest_in_sum(self.threshold)

    @property
    def sum_floor(self) -> int:
        """Vectors in every opened sum if nobody colludes: t, or as many as must be honest."""
        return self.honest_floor if self.several_sums else self.threshold

    @property
    def tolerated_dropouts(self) -> int:
        """Agents that may vanish in any stage of a round without ending it.

        Half of those that are not needed where the graph is sparse: agents accept a roster that
        lacks so many, and that as many of it are gone from the sum, and still t must be in it.
        """
        spare = self.fleet.agents - max(self.threshold, self.protection.min_clients)
        return spare // 2 if self.sparse else spare

    @property
    def noise_floor(self) -> int:
        """Noise shares that the promise rests on: of the honest floor, or the one that is there."""
        return self.honest_floor if self.privacy.distributed else 1

    @property
    def units_per_agent(self) -> int:
        """Separately clipped rows in one agent's contribution; public and fixed."""
        if self.unit is Unit.AGENT:
            return 1
        window = self.training.replay_rounds * self.fleet.trajectories
        return window // self.privacy.max_trajectories_per_unit

    @property
    def releases_per_unit(self) -> int:
        """Releases of a run that one unit takes part in: a trajectory is in as many as use it."""
        if self.unit is Unit.TRAJECTORY:
            return min(self.uses_per_trajectory, self.federation.rounds)
        cap = self.privacy.max_rounds_per_unit
        return self.federation.rounds if cap is None else min(cap, self.federation.rounds)

    @property
    def uses_per_trajectory(self) -> int:
        """Rounds that a trajectory is used in, K: epochs of PPO, or the replay window of DQN.

        1 for unit "agent", whose epochs and replay are inside the delta.
        """
        if self.unit is Unit.AGENT:
            return 1
        return max(self.training.epochs, self.training.replay_rounds)

    def collects(self, round_index: int) -> bool:
        """Whether agents are to collect in that round; else they use what they have again."""
        return self.unit is Unit.AGENT or round_index % self.training.epochs == 0

    def episodes_per_agent(self, rounds: int) -> int:
        """Trajectories that an agent which never drops out collects in so many rounds."""
        collecting = sum(self.collects(index) for index in range(rounds))
        return collecting * self.fleet.trajectories * self.training.local_steps

    def exploration(self, round_index: int) -> float:
        """Probability of a random action in that round: a public schedule; 0 but for DQN."""
        training = self.training
        if training.algorithm != "dqn":
            return 0.0
        span = training.exploration_fraction * self.federation.rounds
        done = min(round_index / span, 1.0) if span > 0 else 1.0
        return training.exploration_start + done * (
            training.exploration_end - training.exploration_start
        )

    @property
    def public_denominator(self) -> int:
        """Divisor of the sum when every registered agent survives; never data-dependent."""
        return self.fleet.agents * self.units_per_agent

    def replace(self, section: str, **changes: Any) -> Plan:
        """A copy with one section changed: ``plan.replace("privacy", epsilon=2.0)``."""
        changed = dataclasses.replace(getattr(self, section), **changes)
        plan: Plan = dataclasses.replace(self, **{section: changed})
        return plan

    def check(self) -> Promise:
        """What the plan promises and costs; raises with every infeasibility at once."""
        from privfedrl.federation.promise import promise  # the promise needs every lower layer

        return promise(self)


def _all_at_once(source: str, problems: list[str]) -> ConfigurationError:
    lines = "".join(f"\n  - {line}" for line in problems)
    noun = "problem" if len(problems) == 1 else "problems"
    return ConfigurationError(
        f"{source} has {len(problems)} {noun}:{lines}", problems=tuple(problems)
    )
