"""What must hold between the values of a plan. Each rule lists every problem that it finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privfedrl.plan.numbers import number
from privfedrl.plan.training_rules import TRAINING_RULES

if TYPE_CHECKING:
    from privfedrl.plan.plan import Plan

__all__ = [
    "HE_AGENTS",
    "MAX_COMPLETE_AGENTS",
    "MAX_CORRELATED_ROUNDS",
    "MAX_PAIRWISE_AGENTS",
    "RULES",
]

# secagg.parameters.MAX_COMPLETE and MAX_CLIENTS: everybody masks with everybody up to the first,
# with some of the others up to the second; a test keeps them equal
MAX_COMPLETE_AGENTS = 256
MAX_PAIRWISE_AGENTS = 65_520

# privacy.correlated: rounds for which decoder weights are computed
MAX_CORRELATED_ROUNDS = 65_536

# he.parameter_sets: the sets of each kind and how many agents each allows; a test keeps them equal
HE_AGENTS = {
    "bfv": {
        "bfv-4096-std": 64,
        "bfv-4096-compact": 32,
        "bfv-4096-wide": 64,
        "bfv-4096-192": 64,
    },
    "ckks": {"ckks-4096-add": 64},
}


def _text_rules(plan: Plan) -> list[str]:
    texts = {"name": plan.name, "fleet.environment": plan.fleet.environment}
    return [
        f"{path} must be printable text of at most 200 characters, got {text[:200]!r}"
        for path, text in texts.items()
        if len(text) > 200 or not text.isprintable()
    ]


def _fleet_rules(plan: Plan) -> list[str]:
    fleet = plan.fleet
    return [
        *([] if fleet.environment else ["fleet.environment must be a Gymnasium id, got ''"]),
        *number("fleet.agents", fleet.agents, low=1, high=65_520),
        *number("fleet.trajectories", fleet.trajectories, low=1, high=1_000_000),
        *number("fleet.horizon", fleet.horizon, low=1, high=1_000_000),
        *number("fleet.level", fleet.level, low=0.0, high=1.0),
        *number("fleet.action_repeat", fleet.action_repeat, low=1, high=64),
    ]


def _policy_rules(plan: Plan) -> list[str]:
    policy = plan.policy
    problems = [
        *number("policy.observations", policy.observations, low=1, high=1_000_000),
        *number("policy.actions", policy.actions, low=1, high=1_000_000),
    ]
    for index, width in enumerate(policy.hidden):
        problems += number(f"policy.hidden[{index}]", width, low=1, high=65_536)
    if policy.action_kind == "discrete" and policy.actions < 2:
        problems.append(f"policy.actions must be >= 2 when discrete, got {policy.actions}")
    return problems


def _federation_rules(plan: Plan) -> list[str]:
    federation = plan.federation
    return [
        *number("federation.rounds", federation.rounds, low=1, high=1_000_000),
        *number(
            "federation.learning_rate", federation.learning_rate, low=0.0, high=1e6, open_low=True
        ),
        *number(
            "federation.learning_rate_decay", federation.learning_rate_decay, low=0.0, high=1.0
        ),
        *number("federation.beta1", federation.beta1, low=0.0, high=0.999_999),
        *number("federation.beta2", federation.beta2, low=0.0, high=0.999_999),
        *number("federation.tau", federation.tau, low=0.0, high=1e3, open_low=True),
        *number("federation.averaging", federation.averaging, low=0.0, high=0.999),
    ]


def _privacy_rules(plan: Plan) -> list[str]:
    privacy = plan.privacy
    problems = [
        *number("privacy.epsilon", privacy.epsilon, low=0.0, high=1_000.0, open_low=True),
        *number("privacy.delta", privacy.delta, low=0.0, high=0.1, open_low=True),
        *number("privacy.clip_norm", privacy.clip_norm, low=1e-12, high=1e9),
        *number("privacy.max_colluding", privacy.max_colluding, low=0, high=65_520),
        *number(
            "privacy.max_trajectories_per_unit",
            privacy.max_trajectories_per_unit,
            low=1,
            high=10**9,
        ),
    ]
    if privacy.max_rounds_per_unit is not None:
        problems += number(
            "privacy.max_rounds_per_unit", privacy.max_rounds_per_unit, low=1, high=1_000_000
        )
    return [
        *problems,
        *_mean_return_rules(plan),
        *_adaptive_clip_rules(plan),
        *_correlation_rules(plan),
    ]


def _correlation_rules(plan: Plan) -> list[str]:
    """Noise that cancels over rounds: whose bill it does not raise, and who can mix the sums."""
    privacy, name = plan.privacy, "privacy.correlation_bands"
    bands, problems = privacy.correlation_bands, []
    if bands is None:
        return []
    problems += number(name, bands, low=2, high=64)
    if bands > plan.federation.rounds:
        problems.append(
            f"{name} must be <= federation.rounds = {plan.federation.rounds}, got {bands}: a unit "
            "pays for every band, and later ones would never come; use fewer, or leave it out"
        )
    if plan.federation.rounds > MAX_CORRELATED_ROUNDS:
        problems.append(
            f"{name} needs federation.rounds <= {MAX_CORRELATED_ROUNDS}, got "
            f"{plan.federation.rounds}; leave it out"
        )
    if privacy.mechanism != "central-discrete-gaussian":
        problems.append(
            f"{name} needs mechanism 'central-discrete-gaussian', got {privacy.mechanism!r}: "
            "whoever takes back noise must hold past sums, and agents' shares are fresh; leave it "
            "out, or let the coordinator add the noise"
        )
    if privacy.unit != "trajectory":
        problems.append(
            f"{name} needs unit 'trajectory', got {privacy.unit!r}: who is back within that many "
            "rounds would be in one release twice; leave it out (agents in turn, without it, gain "
            "as much)"
        )
    if plan.encoding.headroom != "worst-case":
        problems.append(
            f"{name} needs encoding.headroom = 'worst-case', got {plan.encoding.headroom!r}: one "
            "rotation serves the whole run, so later rows depend on its seed and need not spread"
        )
    if plan.protection.homomorphic:
        problems.append(
            f"{name} is not offered with protection.kind = {plan.protection.kind!r}: its key "
            "authority keeps nothing from round to round; leave it out, or use kind 'pairwise', "
            "where the coordinator adds the noise"
        )
    return problems


def _mean_return_rules(plan: Plan) -> list[str]:
    release = plan.privacy.mean_return
    if release is None:
        return []
    problems = number("privacy.mean_return.weight", release.weight, low=1e-6, high=10)
    if not max(abs(release.low), abs(release.high)) <= 1e100:
        problems.append("privacy.mean_return.low and high must be finite, at most 1e100 in size")
    elif not release.low < release.high:
        problems.append(
            f"privacy.mean_return.low must be < high, got {release.low!r} and {release.high!r}"
        )
    return problems + _for_rows("mean_return", plan)


def _adaptive_clip_rules(plan: Plan) -> list[str]:
    clip = plan.privacy.adaptive_clip
    if clip is None:
        return []
    path = "privacy.adaptive_clip"
    problems = [
        *number(f"{path}.quantile", clip.quantile, low=0.001, high=0.999),
        *number(f"{path}.learning_rate", clip.learning_rate, low=1e-6, high=10.0),
        *number(f"{path}.weight", clip.weight, low=1e-6, high=10),
    ]
    if not 1e-12 <= clip.low <= plan.privacy.clip_norm <= clip.high <= 1e9:
        problems.append(
            f"{path} needs 1e-12 <= low <= privacy.clip_norm <= high <= 1e9, got low = "
            f"{clip.low!r}, clip_norm = {plan.privacy.clip_norm!r}, high = {clip.high!r}"
        )
    return problems + _for_rows("adaptive_clip", plan)


def _for_rows(name: str, plan: Plan) -> list[str]:
    """Coordinates beside a gradient need rows of gradients that are summed with fresh noise."""
    problems = []
    if plan.privacy.unit == "agent":
        problems.append(
            f"privacy.{name} needs unit 'trajectory' or 'person'; drop it for unit 'agent'"
        )
    if plan.privacy.mechanism == "local-skellam":
        problems.append(
            f"privacy.{name} is not offered with mechanism 'local-skellam', whose agents send what "
            "became of their noised steps; drop it, or use mechanism 'skellam'"
        )
    return problems


def _unit_rules(plan: Plan) -> list[str]:
    privacy, problems = plan.privacy, []
    local = privacy.mechanism == "local-skellam"
    if privacy.unit == "trajectory" and privacy.max_trajectories_per_unit != 1:
        problems.append(
            "privacy.max_trajectories_per_unit must be 1 for unit 'trajectory', got "
            f"{privacy.max_trajectories_per_unit}: a second trajectory of the same subject "
            "would not compose in parallel; use unit 'person'"
        )
    if privacy.unit == "person":
        problems += _person_rules(plan)
    elif privacy.max_rounds_per_unit is not None:
        problems.append(
            "privacy.max_rounds_per_unit is for unit 'person', got "
            f"{privacy.max_rounds_per_unit} with unit {privacy.unit!r}"
        )
    if privacy.unit != "agent" and plan.training.local_steps != 1 and not local:
        problems.append(
            f"training.local_steps must be 1 for unit {privacy.unit!r}, got "
            f"{plan.training.local_steps}: later local iterates depend on earlier trajectories "
            "without noise; use unit 'agent', or mechanism 'local-skellam'"
        )
    if plan.federation.strategy == "fedsgd" and plan.training.local_steps != 1:
        problems.append(
            f"federation.strategy = 'fedsgd' sends one gradient, but training.local_steps is "
            f"{plan.training.local_steps}; use 'fedavg'"
        )
    if privacy.unit == "agent" and plan.federation.strategy != "fedavg":
        problems.append(
            "privacy.unit = 'agent' clips the model delta: use federation.strategy = 'fedavg'"
        )
    return problems + (_local_rules(plan) if local else [])


def _person_rules(plan: Plan) -> list[str]:
    most, count = plan.privacy.max_trajectories_per_unit, plan.fleet.trajectories
    problems = []
    if most >= 1 and (count < most or count % most):
        problems.append(
            f"fleet.trajectories = {count} must be a multiple of "
            f"privacy.max_trajectories_per_unit = {most} for unit 'person': their ratio is the "
            "public number of persons in a sum"
        )
    return problems


def _local_rules(plan: Plan) -> list[str]:
    """Every local step has noise of its own, so what is sent is the model delta."""
    problems = []
    if plan.privacy.unit != "trajectory":
        problems.append(
            "privacy.mechanism = 'local-skellam' needs unit 'trajectory', got "
            f"{plan.privacy.unit!r}: every local step takes fresh trajectories, and only for them "
            "is one step the whole bill"
        )
    if plan.federation.strategy != "fedavg":
        problems.append(
            "privacy.mechanism = 'local-skellam' sends a model delta: use federation.strategy = "
            "'fedavg'"
        )
    return problems


def _protection_rules(plan: Plan) -> list[str]:
    protection, n, c = plan.protection, plan.fleet.agents, plan.privacy.max_colluding
    problems = [
        *number("protection.min_clients", protection.min_clients, low=1, high=65_520),
        *number("protection.min_honest", protection.min_honest, low=1, high=65_520),
    ]
    problems += _homomorphic_only(plan)
    problems += _sparse_rules(plan)
    if (
        plan.privacy.mechanism == "central-discrete-gaussian"
        and protection.homomorphic
        and plan.encoding.headroom == "rotated"
    ):
        problems.append(
            "encoding.headroom must be 'worst-case' for mechanism 'central-discrete-gaussian' "
            "under encryption, got 'rotated': a sum out of range is not opened, which would tell "
            "something about the sum without noise"
        )
    if protection.kind == "none":
        if plan.honest_floor < 1 or plan.threshold > n:
            problems.append(
                "protection.threshold must be > privacy.max_colluding and <= fleet.agents = "
                f"{n}, got {plan.threshold} with max_colluding = {c}"
            )
        return problems
    problems += _set_rules(plan)
    for name in ("min_clients", "min_honest"):
        if getattr(protection, name) < 2:
            problems.append(
                f"protection.{name} must be >= 2, got {getattr(protection, name)}: "
                "a sum over one agent is that agent's vector"
            )
    if c >= n:
        return [*problems, f"privacy.max_colluding must be < fleet.agents = {n}, got {c}"]
    if protection.homomorphic and not c < plan.threshold <= n:
        problems.append(
            f"protection.threshold must be > privacy.max_colluding = {c} and <= {n}, "
            f"got {plan.threshold}"
        )
    if not protection.homomorphic and not (n + c) / 2 < plan.threshold <= n:
        problems.append(
            f"protection.threshold must be > (fleet.agents + privacy.max_colluding) / 2 = "
            f"{(n + c) / 2:g} and <= {n}, got {plan.threshold}"
        )
    if plan.threshold - c < protection.min_honest:
        problems.append(
            "threshold - max_colluding must be >= protection.min_honest = "
            f"{protection.min_honest}, got {plan.threshold} - {c}: more agents or fewer colluders"
        )
    if protection.min_clients > n:
        problems.append(
            f"protection.min_clients must be <= fleet.agents = {n}, got {protection.min_clients}"
        )
    return problems


def _homomorphic_only(plan: Plan) -> list[str]:
    """An option that would do nothing must not look as if it did something."""
    protection = plan.protection
    given = {"parameter_set": None, "readding": "key-authority"}
    return [
        f"protection.{name} is for kinds 'bfv' and 'ckks', got {getattr(protection, name)!r} with "
        f"kind {protection.kind!r}"
        for name, default in given.items()
        if not protection.homomorphic and getattr(protection, name) != default
    ]


def _sparse_rules(plan: Plan) -> list[str]:
    """What only a graph in which agents mask with some of the others has, or does not have."""
    server, problems = plan.protection.server, []
    if server != "malicious" and not plan.sparse:
        problems.append(
            "protection.server is for kind 'pairwise' with more than "
            f"{MAX_COMPLETE_AGENTS} agents, got {server!r} with kind {plan.protection.kind!r} and "
            f"{plan.fleet.agents} agents: drop it"
        )
    if plan.sparse and plan.privacy.mechanism == "none":
        problems.append(
            f"privacy.mechanism = 'none' with protection.kind = 'pairwise' needs at most "
            f"{MAX_COMPLETE_AGENTS} agents, got {plan.fleet.agents}: without noise nothing covers "
            "what parts of several sums tell together; use kind 'none' for a control run, or noise"
        )
    return problems


def _set_rules(plan: Plan) -> list[str]:
    """How many agents the way of summing allows, and that its options fit it."""
    protection, n = plan.protection, plan.fleet.agents
    if not protection.homomorphic:
        return number("fleet.agents", n, low=2, high=MAX_PAIRWISE_AGENTS)
    sets, problems = HE_AGENTS[protection.kind], []
    name = protection.parameter_set or next(iter(sets))
    if name not in sets:
        problems.append(
            f"protection.parameter_set must be one of {sorted(sets)} for kind "
            f"{protection.kind!r}, got {name!r}"
        )
    else:
        problems += number("fleet.agents", n, low=2, high=sets[name])
    if plan.encoding.lane_bits is not None:
        problems.append(
            f"encoding.lane_bits must be absent with kind {protection.kind!r}, which packs lanes "
            f"of its own, got {plan.encoding.lane_bits}"
        )
    return problems


def _encoding_rules(plan: Plan) -> list[str]:
    encoding, problems = plan.encoding, []
    if encoding.ring_bits not in (32, 64):
        problems.append(f"encoding.ring_bits must be 32 or 64, got {encoding.ring_bits}")
    problems += number("encoding.resolution", encoding.resolution, low=1, high=2**30)
    if encoding.lane_bits is not None:
        # 32: encoding.lanes.MAX_LANE_BITS, a test keeps them equal; wider lanes would pack nothing
        problems += number("encoding.lane_bits", encoding.lane_bits, low=2, high=32)
        if encoding.ring_bits != 64:
            problems.append(
                "encoding.lane_bits packs coordinates into 64-bit words: it needs "
                f"encoding.ring_bits = 64, got {encoding.ring_bits}"
            )
    return problems


def _simulation_rules(plan: Plan) -> list[str]:
    simulation = plan.simulation
    return [
        *number(
            "simulation.dropouts_per_round",
            simulation.dropouts_per_round,
            low=0,
            high=plan.fleet.agents,
        ),
        *number("simulation.evaluation_interval", simulation.evaluation_interval, low=1, high=1e9),
        *number("simulation.evaluation_episodes", simulation.evaluation_episodes, low=1, high=1e6),
        *number("simulation.persons_per_agent", simulation.persons_per_agent, low=0, high=1e9),
        *_simulated_persons(plan),
    ]


def _simulated_persons(plan: Plan) -> list[str]:
    given, person = plan.simulation.persons_per_agent, plan.privacy.unit == "person"
    if given and not person:
        return [f"simulation.persons_per_agent is for unit 'person', got {given}"]
    if given and given * plan.privacy.max_trajectories_per_unit < plan.fleet.trajectories:
        return [
            "simulation.persons_per_agent must be >= fleet.trajectories / "
            f"privacy.max_trajectories_per_unit, got {given}: a person would be in a round twice"
        ]
    return []


RULES = (
    _text_rules,
    _fleet_rules,
    _policy_rules,
    *TRAINING_RULES,
    _federation_rules,
    _privacy_rules,
    _unit_rules,
    _protection_rules,
    _encoding_rules,
    _simulation_rules,
)
