"""Roll a policy out: parameters and environments in, whole trajectories out.

Guarantee: one trajectory per row, from its reset to its own end or the horizon; agent k's batch
depends on the parameters, its own environment and its own generator only, so rolling K agents in
one block gives bit for bit what rolling each alone gives.

Notation: B trajectories per agent, K agents, T steps, n rows that still run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from privfedrl.envs import EnvSpec, VectorEnv, fits_one_block, make_fleet_env, make_vector_env
from privfedrl.errors import ConfigurationError, EnvironmentFault
from privfedrl.rollout.mixture import BoundMixture, Guide
from privfedrl.rollout.policies import BoundPolicy, MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch

if TYPE_CHECKING:
    from privfedrl.rollout.workers import RolloutWorkers

__all__ = ["check_policy_fits", "collect", "collect_fleet", "roll_block"]

# steps between two looks at which rows ended: long enough that bookkeeping and random numbers
# cost little, short enough that few steps are spent on rows that have ended
_CHUNK = 32

Actions = NDArray[np.int64] | NDArray[np.float32]
Generators = Sequence[np.random.Generator]


def collect(
    policy: MlpPolicy,
    parameters: NDArray[np.floating],
    env: VectorEnv,
    *,
    horizon: int,
    rng: np.random.Generator,
    exploration: float = 0.0,
    guide: Guide | None = None,
) -> TrajectoryBatch:
    """One trajectory per row of ``env``.

    Args:
        parameters: float [policy.num_parameters].
        horizon: most steps of a trajectory; a row cut here counts as truncated.
        rng: the agent's generator; first the resets, then the draws of 32 steps at a time.
        exploration: probability of a random action of a policy of Q values; a public number.
        guide: a policy of the same shape that acts in some steps, see ``mixture``; None = never.
    Returns:
        B = env.num_envs trajectories; one whose environment failed is absent, the others are not
        touched by that. T is the longest trajectory of the batch, not the horizon:
        this saves work inside the agent and never leaves it.
    Raises:
        ConfigurationError: parameters or spaces do not fit the policy, horizon below 1.
        EnvironmentFault: there is no block to speak of: it raised, and not row by row.
    """
    return roll_block(
        policy, parameters, env, horizon=horizon, rngs=[rng], exploration=exploration, guide=guide
    )[0]


def collect_fleet(
    policy: MlpPolicy,
    parameters: NDArray[np.floating],
    specs: Sequence[EnvSpec],
    num_trajectories_each: int,
    *,
    horizon: int,
    rngs: Generators,
    workers: RolloutWorkers | None = None,
    exploration: float = 0.0,
    guide: Guide | None = None,
) -> list[TrajectoryBatch | EnvironmentFault]:
    """B trajectories of every agent, with the same policy; entry k belongs to agent k.

    A fleet of one numpy family with one time limit is rolled as one block of K * B rows. Other
    agents are rolled one by one: by ``workers`` (one agent's batch per process at a time), or in
    this process without them. All ways give the same trajectories and leave the generators in the
    same state.

    Args:
        specs: K environments.
        rngs: K generators, agent k's randomness.
    Returns:
        Per agent its batch, or the EnvironmentFault that stopped it (the others are unharmed; the
        position of that agent's generator is then unspecified).
    Raises:
        ConfigurationError: counts below 1 or unequal, policy and environment do not fit.
    """
    if len(specs) == 0 or len(specs) != len(rngs) or len({id(rng) for rng in rngs}) != len(rngs):
        raise ConfigurationError(
            f"rngs must hold one generator of its own per spec (at least one), "
            f"got {len(rngs)} for {len(specs)} specs"
        )
    if fits_one_block(specs):
        env = make_fleet_env(specs, num_trajectories_each)
        return list(
            roll_block(
                policy,
                parameters,
                env,
                horizon=horizon,
                rngs=rngs,
                exploration=exploration,
                guide=guide,
            )
        )
    if workers is not None:
        return workers.collect(
            policy,
            parameters,
            specs,
            num_trajectories_each,
            horizon=horizon,
            rngs=rngs,
            exploration=exploration,
            guide=guide,
        )
    return [
        _collect_alone(
            policy,
            parameters,
            spec,
            num_trajectories_each,
            horizon=horizon,
            rng=rng,
            exploration=exploration,
            guide=guide,
        )
        for spec, rng in zip(specs, rngs, strict=True)
    ]


def _collect_alone(
    policy: MlpPolicy,
    parameters: NDArray[np.floating],
    spec: EnvSpec,
    num_trajectories: int,
    *,
    horizon: int,
    rng: np.random.Generator,
    exploration: float,
    guide: Guide | None,
) -> TrajectoryBatch | EnvironmentFault:
    """One agent in this process; a fault of its environment becomes the result."""
    try:
        env = make_vector_env(spec, num_trajectories)
        try:
            return collect(
                policy,
                parameters,
                env,
                horizon=horizon,
                rng=rng,
                exploration=exploration,
                guide=guide,
            )
        finally:
            env.close()
    except EnvironmentFault as fault:
        return fault


def roll_block(
    policy: MlpPolicy,
    parameters: NDArray[np.floating],
    env: VectorEnv,
    *,
    horizon: int,
    rngs: Generators,
    greedy: bool = False,
    exploration: float = 0.0,
    guide: Guide | None = None,
) -> list[TrajectoryBatch]:
    """Roll all rows of ``env``; agent k owns the k-th of ``len(rngs)`` equal shares of rows.

    Args, Raises: as ``collect``. ``greedy`` takes the most likely action and draws nothing.
    """
    check_policy_fits(policy, env)
    if not isinstance(horizon, int) or isinstance(horizon, bool) or horizon < 1:
        raise ConfigurationError(f"horizon must be an integer >= 1, got {horizon!r}")
    bound = _bound(policy, parameters, exploration, guide)
    progress = _Progress(env.num_envs, len(rngs))
    chunks: list[_Chunk] = []
    try:
        _roll(bound, env, policy, rngs, progress, chunks, horizon=horizon, greedy=greedy)
    except EnvironmentFault:
        if len(env.failures) < env.num_envs:
            raise
        # each row failed by itself: all are absent, as each of them would be beside others
        chunks = chunks or [_Chunk.empty(progress, 0, env, policy)]
    progress.forget(env.failures)
    return [_assemble(chunks, progress, agent) for agent in range(len(rngs))]


def _roll(
    bound: BoundPolicy | BoundMixture,
    env: VectorEnv,
    policy: MlpPolicy,
    rngs: Generators,
    progress: _Progress,
    chunks: list[_Chunk],
    *,
    horizon: int,
    greedy: bool,
) -> None:
    """Append chunks until every row has ended or the horizon is reached."""
    observations = env.reset(rngs)
    bound.begin(env.num_envs)
    while progress.running.size and progress.steps < horizon:
        length = min(_CHUNK, horizon - progress.steps)
        draws = None if greedy else _draws(bound, rngs, progress, length)
        chunk = _Chunk.empty(progress, length, env, policy)
        observations = _roll_chunk(bound, env, observations, chunk, draws)
        chunks.append(chunk)
        kept = progress.advance(chunk)
        if 0 < kept.size < chunk.rows.size:
            env.select(kept)
            bound.select(kept)
            observations = observations[kept]


def _bound(
    policy: MlpPolicy,
    parameters: NDArray[np.floating],
    exploration: float,
    guide: Guide | None,
) -> BoundPolicy | BoundMixture:
    own = policy.bind(parameters, exploration=exploration)
    if guide is None:
        return own
    other = policy.bind(guide.parameters, exploration=exploration)
    return BoundMixture(policy, own, other, guide.probability)


def check_policy_fits(policy: MlpPolicy, env: VectorEnv) -> None:
    """Raise ConfigurationError unless the policy can see and act in the environment."""
    discrete = env.action_kind == "discrete"
    kind = "discrete" if policy.action != "gaussian" else "continuous"
    found = (policy.observation_size, kind, policy.action_size)
    expected = (
        env.observation_size,
        env.action_kind,
        env.num_actions if discrete else env.action_size,
    )
    if found != expected:
        raise ConfigurationError(
            f"policy must have (observation_size, kind of action, action_size) = {expected}, "
            f"got {found}"
        )


class _Progress:
    """Which rows still run, and how long each trajectory got."""

    def __init__(self, rows: int, agents: int) -> None:
        self.share = rows // agents
        self.agents = agents
        self.steps = 0
        self.running = np.arange(rows)
        self.lengths = np.zeros(rows, dtype=np.int64)
        self.terminated = np.zeros(rows, dtype=np.bool_)
        self.failures: Mapping[int, EnvironmentFault] = {}

    def forget(self, failures: Mapping[int, EnvironmentFault]) -> None:
        """Make the trajectories of failed rows absent."""
        self.failures = dict(failures)
        rows = sorted(failures)
        self.lengths[rows] = 0
        self.terminated[rows] = False

    def advance(self, chunk: _Chunk) -> NDArray[np.intp]:
        """Take note of a chunk; returns positions, within its rows, of those that go on."""
        ended = chunk.terminated | chunk.truncated
        over = ended[-1]
        steps = np.where(over, ended.argmax(axis=0) + 1, chunk.used)
        self.lengths[chunk.rows] += steps
        self.terminated[chunk.rows] = chunk.terminated[-1]
        self.running = chunk.rows[~over]
        self.steps += chunk.used
        return np.flatnonzero(~over)


@dataclass(slots=True)
class _Chunk:
    """Up to 32 consecutive steps of the rows that ran at their start; rows last, as computed."""

    rows: NDArray[np.intp]
    start: int
    observations: NDArray[np.float32]  # [steps, obs, n]
    actions: Actions  # [steps, n] or [steps, n, act]
    rewards: NDArray[np.float32]  # [steps, n]
    terminated: NDArray[np.bool_]  # [steps, n]
    truncated: NDArray[np.bool_]  # [steps, n]
    used: int = 0

    @classmethod
    def empty(cls, progress: _Progress, length: int, env: VectorEnv, policy: MlpPolicy) -> _Chunk:
        """Room for ``length`` steps of the running rows."""
        n = progress.running.size
        return cls(
            rows=progress.running,
            start=progress.steps,
            observations=np.empty((length, env.observation_size, n), dtype=np.float32),
            actions=_empty_actions(policy, (length, n)),
            rewards=np.empty((length, n), dtype=np.float32),
            terminated=np.empty((length, n), dtype=np.bool_),
            truncated=np.empty((length, n), dtype=np.bool_),
        )

    def trim(self, used: int) -> None:
        """Forget the steps that were not taken."""
        self.used = used
        self.terminated, self.truncated = self.terminated[:used], self.truncated[:used]


def _empty_actions(policy: MlpPolicy, shape: tuple[int, int]) -> Actions:
    if policy.action != "gaussian":
        return np.zeros(shape, dtype=np.int64)
    return np.zeros((*shape, policy.action_size), dtype=np.float32)


def _draws(
    bound: BoundPolicy | BoundMixture, rngs: Generators, progress: _Progress, length: int
) -> NDArray[np.float32]:
    """Random numbers [length, n, ...]; an agent draws, for all its rows, while any of them runs."""
    agents = progress.running // progress.share
    blocks = []
    for agent, rng in enumerate(rngs):
        rows = progress.running[agents == agent] - agent * progress.share
        if rows.size:
            block = bound.draws(rng, length, progress.share)
            blocks.append(block if rows.size == progress.share else block[:, rows])
    return np.ascontiguousarray(np.concatenate(blocks, axis=1))


def _roll_chunk(
    bound: BoundPolicy | BoundMixture,
    env: VectorEnv,
    observations: NDArray[np.float32],
    chunk: _Chunk,
    draws: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """Step all rows until the chunk is full or every row has ended; returns what they see last."""
    acting: Any = bound  # what forward gives goes to sample or greedy of the same object only
    forward, sample, greedy, step = acting.forward, acting.sample, acting.greedy, env.step
    outward = acting.to_environment
    count, n = np.count_nonzero, chunk.rows.size
    used = 0
    for used in range(1, chunk.rewards.shape[0] + 1):
        t = used - 1
        chunk.observations[t] = observations.T
        outputs = forward(observations)
        actions = chunk.actions[t]
        actions[...] = greedy(outputs) if draws is None else sample(outputs, draws[t])
        observations, chunk.rewards[t], terminated, truncated = step(outward(actions))
        chunk.terminated[t], chunk.truncated[t] = terminated, truncated
        if count(terminated) + count(truncated) == n:
            break
    chunk.trim(used)
    return observations


def _assemble(chunks: list[_Chunk], progress: _Progress, agent: int) -> TrajectoryBatch:
    """One agent's trajectories, zero and masked out past their ends."""
    first, last = agent * progress.share, (agent + 1) * progress.share
    lengths = progress.lengths[first:last]
    terminated = progress.terminated[first:last].copy()
    steps = max(int(lengths.max()), 1)
    observations = np.zeros((progress.share, steps, chunks[0].observations.shape[1]), np.float32)
    actions = np.zeros(
        (progress.share, steps, *chunks[0].actions.shape[2:]), chunks[0].actions.dtype
    )
    rewards = np.zeros((progress.share, steps), dtype=np.float32)
    for chunk in chunks:
        low, high = np.searchsorted(chunk.rows, [first, last])
        used = min(chunk.used, steps - chunk.start)
        if low == high or used <= 0:
            continue
        where = (chunk.rows[low:high] - first, slice(chunk.start, chunk.start + used))
        observations[where] = chunk.observations[:used, :, low:high].transpose(2, 0, 1)
        actions[where] = chunk.actions[:used, low:high].swapaxes(0, 1)
        rewards[where] = chunk.rewards[:used, low:high].T
    failed = [row for row in range(first, last) if row in progress.failures]
    mask = np.arange(steps) < lengths[:, None]
    for values in (observations, actions, rewards):
        values[~mask] = 0
    return TrajectoryBatch(
        observations=observations,
        actions=actions,
        rewards=rewards,
        mask=mask,
        terminated=terminated,
        truncated=~terminated,
        lost=len(failed),
        fault=progress.failures[failed[0]] if failed else None,
    )
