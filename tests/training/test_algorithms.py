"""Every algorithm against a closed form, or against autograd of the objective it stands for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from privfedrl.errors import ConfigurationError
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.training.algorithms import ALGORITHMS, Models, Objective, signals
from privfedrl.training.networks import TorchMlp, divergences, entropies, log_probabilities
from privfedrl.training.private_step import private_rows, unit_rows
from privfedrl.training.reinforce import Truncation
from privfedrl.training.trajectory_gradients import fused, hooks, loop

STATES = 2
PATHS = [fused, hooks, loop]


def chain(
    states: list[list[int]], actions: list[list[int]], rewards: list[list[float]], ends: list[bool]
) -> TrajectoryBatch:
    """Trajectories through two states, one-hot, padded to the longest."""
    steps = max(map(len, states))
    lengths = np.array([len(row) for row in states])
    mask = np.arange(steps) < lengths[:, None]
    observations = np.zeros((*mask.shape, STATES), dtype=np.float32)
    observations[mask] = np.eye(STATES, dtype=np.float32)[np.concatenate(states)]
    filled = [np.zeros(mask.shape, dtype=kind) for kind in (np.int64, np.float32)]
    for target, values in zip(filled, (actions, rewards), strict=True):
        target[mask] = np.concatenate(values)
    ended = np.array(ends, dtype=np.bool_)
    return TrajectoryBatch(
        observations=observations,
        actions=filled[0],
        rewards=filled[1],
        mask=mask,
        terminated=ended,
        truncated=~ended,
    )


def constant_critic(value: float, actions: int = 2) -> TorchMlp:
    """Uniform policy; V = value everywhere, by its bias."""
    policy = MlpPolicy(
        observation_size=STATES,
        hidden=(),
        action="categorical",
        action_size=actions,
        critic_hidden=(),
    )
    parameters = np.zeros(policy.num_parameters)
    parameters[-1] = value
    return TorchMlp(policy, parameters, dtype=torch.float64)


def q_network(table: list[list[float]]) -> TorchMlp:
    """Q[state][action], linear in one-hot states."""
    policy = MlpPolicy(observation_size=STATES, hidden=(), action="q-values", action_size=2)
    weights = np.array(table).T  # [actions, states]
    return TorchMlp(policy, np.concatenate([weights.ravel(), [0.0, 0.0]]), dtype=torch.float64)


# --- REINFORCE and A2C ---------------------------------------------------------------------------


def test_a_constant_critic_leaves_the_return_to_go_less_the_constant():
    """lambda = 1: A_t = G_t - c, and the critic's error is the same number."""
    batch = chain([[0, 1, 0], [1]], [[0, 1, 1], [0]], [[1.0, 2.0, 3.0], [5.0]], [True, True])
    objective = Objective(algorithm="a2c", gamma=0.5, gae_lambda=1.0)
    found = signals(Models(constant_critic(2.0)), batch, objective)
    to_go = np.array([[1 + 1 + 0.75, 2 + 1.5, 3.0], [5.0, 0.0, 0.0]])
    expected = np.where(batch.mask, to_go - 2.0, 0.0) / np.sqrt([[3.0], [1.0]])
    np.testing.assert_allclose(found.weights, expected, rtol=1e-6)
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)


def test_a_single_reward_at_the_end_reaches_every_step_by_its_discount():
    batch = chain([[0, 1, 0, 1]], [[0, 0, 1, 1]], [[0.0, 0.0, 0.0, 8.0]], [True])
    objective = Objective(algorithm="a2c", gamma=0.5, gae_lambda=1.0)
    found = signals(Models(constant_critic(0.0)), batch, objective).weights
    np.testing.assert_allclose(found, [np.array([1.0, 2.0, 4.0, 8.0]) / 2.0], rtol=1e-6)
    # with lambda = 0 only the last step hears of it, until the critic has learned
    last_only = signals(Models(constant_critic(0.0)), batch, replace(objective, gae_lambda=0.0))
    np.testing.assert_allclose(last_only.weights, [[0.0, 0.0, 0.0, 4.0]], rtol=1e-6)


def test_an_undiscounted_single_reward_tells_reinforce_nothing_about_steps():
    """Every step has the same return-to-go, and whitening within the trajectory removes it."""
    batch = chain([[0, 1, 0]], [[0, 1, 1]], [[0.0, 0.0, 8.0]], [True])
    policy = MlpPolicy(observation_size=STATES, hidden=(), action="categorical", action_size=2)
    models = Models(TorchMlp(policy))
    assert not signals(models, batch, Objective(gamma=1.0)).weights.any()
    assert signals(models, batch, Objective(gamma=0.5)).weights.any()


def test_a_cut_trajectory_is_worth_what_the_critic_says_or_what_it_collected():
    batch = chain([[0, 1]], [[0, 1]], [[1.0, 4.0]], [False])
    objective = Objective(algorithm="a2c", gamma=0.5, gae_lambda=1.0)
    models, root = Models(constant_critic(10.0)), np.sqrt(2.0)
    none = signals(models, batch, objective)
    np.testing.assert_allclose(none.weights, [[(3.0 - 10.0) / root, -6.0 / root]], rtol=1e-6)
    cut = signals(models, batch, replace(objective, truncation=Truncation.BOOTSTRAP))
    # the state before the last action is the last that is known: 1 + 10 / 2 - 10
    np.testing.assert_allclose(cut.weights, [[-4.0 / root, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(cut.values, cut.weights)


@pytest.mark.parametrize("gradient", PATHS)
def test_the_row_of_a_uniform_policy_is_known(gradient):
    """grad log pi = onehot(a) - 1/2 at the biases; the critic's bias gets the error itself."""
    batch = chain([[0], [1]], [[0], [1]], [[4.0], [0.0]], [True, True])
    network = constant_critic(1.0)
    rows = unit_rows(Models(network), batch, Objective(algorithm="a2c"), gradient=gradient)
    # actor W [2, 2] by rows of actions, b [2]; critic W [1, 2], b [1]; advantages 3 and -1
    expected = [[1.5, 0, -1.5, 0, 1.5, -1.5, 3, 0, 3], [0, 0.5, 0, -0.5, 0.5, -0.5, 0, -1, -1]]
    np.testing.assert_allclose(rows.gradients, expected, rtol=1e-6)


# --- PPO -----------------------------------------------------------------------------------------


def old_and_new(kind: str, apart: float = 0.4):
    policy = MlpPolicy(
        observation_size=5, hidden=(6,), action=kind, action_size=3, critic_hidden=(4,)
    )
    rng = np.random.default_rng(1)
    old = rng.normal(size=policy.num_parameters) * 0.5
    new = old + apart * rng.normal(size=policy.num_parameters)
    return tuple(TorchMlp(policy, theta, dtype=torch.float64) for theta in (new, old))


def ppo_objective(current, behaviour, batch, objective, advantages, targets, i):
    """What PPO's row i is the gradient of, written as in the paper, in torch."""
    length = int(batch.lengths[i])
    observations = torch.from_numpy(batch.observations[i, :length]).double()
    actions = torch.from_numpy(batch.actions[i, :length])
    actions = actions if actions.dtype == torch.int64 else actions.double()
    outputs = current(observations)
    with torch.no_grad():
        before = behaviour(observations)
        old = log_probabilities(before, actions)
    ratio = torch.exp(log_probabilities(outputs, actions) - old)
    low, high = 1 - objective.clip_range, 1 + objective.clip_range
    gains = torch.from_numpy(advantages[i, :length])
    surrogate = torch.minimum(ratio * gains, ratio.clamp(low, high) * gains)
    miss = torch.from_numpy(targets[i, :length]) - outputs.value
    value = surrogate - 0.5 * miss**2 + objective.entropy_weight * entropies(outputs)
    value = value - objective.guidance_weight * divergences(before, outputs)
    pushed = (gains > 0) & (ratio > high), (gains < 0) & (ratio < low)
    return value.sum() / np.sqrt(length), [int(side.sum()) for side in pushed]


@pytest.mark.parametrize("gradient", PATHS)
@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_a_later_epochs_row_is_the_gradient_of_the_clipped_objective(kind, gradient, make_batch):
    """Surrogate, critic, entropy and guidance together; both clipping sides occur."""
    current, behaviour = old_and_new(kind)
    batch = make_batch([9, 4, 7, 1, 9, 9], kind=kind)
    objective = Objective(
        algorithm="ppo", gamma=0.9, gae_lambda=0.8, entropy_weight=0.1, guidance_weight=0.3
    )
    with torch.no_grad():
        values = current(torch.from_numpy(batch.observations).double()).value.numpy()
    plain = signals(Models(current), batch, objective).weights.astype(np.float64)
    advantages = plain * np.sqrt(batch.lengths)[:, None]
    found = unit_rows(Models(current, behaviour), batch, objective, gradient=gradient).gradients
    above = below = 0
    for i in range(len(batch.mask)):
        value, (high, low) = ppo_objective(
            current, behaviour, batch, objective, advantages, advantages + values, i
        )
        gradients = torch.autograd.grad(value, list(current.parameters()))
        expected = torch.cat([g.flatten() for g in gradients]).numpy()
        np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-5)
        above, below = above + high, below + low
    assert above > 0
    assert below > 0


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_the_first_use_of_a_batch_is_a2c_bit_for_bit(kind, make_batch):
    current, _ = old_and_new(kind)
    batch = make_batch([9, 4, 0], kind=kind)
    rows = [
        unit_rows(Models(current), batch, Objective(algorithm=name, gamma=0.9)).gradients
        for name in ("ppo", "a2c")
    ]
    assert rows[0].tobytes() == rows[1].tobytes()


@pytest.mark.parametrize("gradient", PATHS)
@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_guidance_by_the_policy_itself_pulls_nowhere(kind, gradient, make_batch):
    current, other = old_and_new(kind)
    batch = make_batch([9, 4], kind=kind)
    objective = Objective(algorithm="ppo", gamma=0.9)
    guided = replace(objective, guidance_weight=10.0)

    def rows(behaviour, chosen):
        found = unit_rows(Models(current, behaviour), batch, chosen, gradient=gradient)
        return found.gradients

    np.testing.assert_allclose(rows(current, guided), rows(current, objective), atol=1e-9)
    assert np.abs(rows(other, guided) - rows(other, objective)).max() > 0.1


def test_guidance_pulls_towards_the_policy_that_collected(make_batch):
    current, behaviour = old_and_new("categorical")
    batch = make_batch([9, 9])
    objective = Objective(algorithm="ppo", gamma=0.9)
    pull = unit_rows(
        Models(current, behaviour), batch, replace(objective, guidance_weight=1.0)
    ).gradients.sum(axis=0) - unit_rows(Models(current, behaviour), batch, objective).gradients.sum(
        axis=0
    )
    observations = torch.from_numpy(batch.observations).double()

    def divergence(step: float) -> float:
        moved = TorchMlp(current.policy, current.flat() + step * pull, dtype=torch.float64)
        with torch.no_grad():
            return float(divergences(behaviour(observations), moved(observations)).sum())

    assert divergence(1e-3) < divergence(0.0) < divergence(-1e-3)


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_actions_of_a_narrower_kind_mean_the_same(kind, make_batch):
    current, behaviour = old_and_new("categorical")
    batch, objective = make_batch([9, 4]), Objective(algorithm="ppo", guidance_weight=0.1)
    models = Models(current, behaviour)
    narrow = replace(batch, actions=batch.actions.astype(kind))
    rows = [unit_rows(models, one, objective).gradients for one in (batch, narrow)]
    assert rows[0].tobytes() == rows[1].tobytes()


# --- DQN -----------------------------------------------------------------------------------------

# Q[state][action]; the current network prefers action 1 in state 1, the target network action 0
CURRENT = [[0.0, 0.125], [0.25, 0.5]]
TARGET = [[0.0, 0.0], [0.75, 0.25]]


@pytest.mark.parametrize(
    ("target", "double", "following"),
    [
        (None, True, 0.5),  # both networks are one: max of the current
        (None, False, 0.5),
        (TARGET, True, 0.25),  # chosen by the current network, valued by the target
        (TARGET, False, 0.75),  # the target's own maximum
    ],
)
def test_the_temporal_difference_on_a_chain_of_two_states(target, double, following):
    """State 0, action 1, reward 1/4; then state 1, action 0, reward 1/2; the end."""
    batch = chain([[0, 1]], [[1, 0]], [[0.25, 0.5]], [True])
    models = Models(q_network(CURRENT), target=None if target is None else q_network(target))
    objective = Objective(algorithm="dqn", gamma=0.5, double=double)
    found = signals(models, batch, objective)
    expected = np.array([0.25 + 0.5 * following - 0.125, 0.5 - 0.25]) / np.sqrt(2.0)
    np.testing.assert_allclose(found.weights, [expected], rtol=1e-6)
    assert found.values is None


@pytest.mark.parametrize(("reward", "weight"), [(0.5, 0.5), (1.0, 1.0), (40.0, 1.0), (-7.0, -1.0)])
def test_beyond_an_error_of_one_the_loss_grows_linearly(reward, weight):
    batch = chain([[0]], [[0]], [[reward]], [True])
    found = signals(Models(q_network([[0.0, 0.0]] * 2)), batch, Objective(algorithm="dqn"))
    np.testing.assert_allclose(found.weights, [[weight]])


def test_the_last_step_of_a_cut_trajectory_ends_or_has_no_error():
    batch = chain([[0, 1]], [[1, 0]], [[0.25, 0.5]], [False])
    models, root = Models(q_network(CURRENT)), np.sqrt(2.0)
    ends = signals(models, batch, Objective(algorithm="dqn", gamma=0.5))
    np.testing.assert_allclose(ends.weights, [[0.375 / root, 0.25 / root]], rtol=1e-6)
    goes_on = Objective(algorithm="dqn", gamma=0.5, truncation=Truncation.BOOTSTRAP)
    found = signals(models, batch, goes_on)
    np.testing.assert_allclose(found.weights, [[0.375 / root, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("gradient", PATHS)
def test_the_row_of_a_q_network_moves_the_action_that_was_taken(gradient):
    batch = chain([[0, 1]], [[1, 0]], [[0.25, 0.5]], [True])
    models = Models(q_network(CURRENT), target=q_network(TARGET))
    objective = Objective(algorithm="dqn", gamma=0.5)
    first, second = signals(models, batch, objective).weights[0]
    row = unit_rows(models, batch, objective, gradient=gradient).gradients[0]
    # W [action, state], then b [action]
    np.testing.assert_allclose(row, [0, second, first, 0, second, first], rtol=1e-6)


def test_the_targets_are_constants(make_batch):
    """Semi-gradient: rows follow the network that is improved, not what it is compared with."""
    policy = MlpPolicy(observation_size=5, hidden=(6,), action="q-values", action_size=3)
    rng = np.random.default_rng(2)
    current, target = (
        TorchMlp(policy, rng.normal(size=policy.num_parameters), dtype=torch.float64)
        for _ in range(2)
    )
    batch = make_batch([9, 4])
    objective = Objective(algorithm="dqn", gamma=0.9)
    weights = torch.from_numpy(signals(Models(current, target=target), batch, objective).weights)
    observations = torch.from_numpy(batch.observations).double()
    values = current(observations).head.gather(-1, torch.from_numpy(batch.actions)[..., None])
    gradients = torch.autograd.grad(
        (values[0, :, 0] * weights[0]).sum(), list(current.parameters())
    )
    expected = torch.cat([g.flatten() for g in gradients]).numpy()
    found = unit_rows(Models(current, target=target), batch, objective).gradients[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


# --- what holds for several ----------------------------------------------------------------------


def models_for(algorithm: str, kind: str = "categorical") -> Models:
    rule = ALGORITHMS[algorithm]
    policy = MlpPolicy(
        observation_size=5,
        hidden=(6,),
        action="q-values" if rule.q_values else kind,
        action_size=3,
        critic_hidden=(4,) if rule.critic else None,
    )
    rng = np.random.default_rng(4)
    return Models(
        *(TorchMlp(policy, rng.normal(size=policy.num_parameters) * 0.5) for _ in range(3))
    )


@pytest.mark.parametrize("algorithm", ["a2c", "ppo", "dqn"])
def test_rewards_and_their_public_size_scaled_together_change_nothing(algorithm, make_batch):
    batch, models = make_batch([9, 4, 0]), models_for(algorithm)
    objective = Objective(algorithm=algorithm, gamma=0.9)
    scaled = replace(batch, rewards=batch.rewards * np.float32(64.0))  # a power of two is exact
    one = signals(models, batch, objective)
    other = signals(models, scaled, replace(objective, value_scale=64.0))
    assert one.weights.tobytes() == other.weights.tobytes()
    assert (one.values is None) == (other.values is None)
    if one.values is not None:
        assert one.values.tobytes() == other.values.tobytes()
    assert one.weights.tobytes() != signals(models, scaled, objective).weights.tobytes()


@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
def test_the_size_of_an_advantage_scales_the_policys_part_and_not_the_critics(
    algorithm, make_batch
):
    batch, models = make_batch([9, 4, 0]), models_for(algorithm)
    objective = Objective(algorithm=algorithm, gamma=0.9)
    one = signals(models, batch, objective)
    other = signals(models, batch, replace(objective, advantage_scale=0.25))
    np.testing.assert_array_equal(other.weights, 4.0 * one.weights)  # a power of two is exact
    assert one.values.tobytes() == other.values.tobytes()


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_a_mixture_of_behaviour_weighs_steps_by_what_acted(kind, make_batch):
    """w pi / ((1 - p) pi + p guide); nobody else acted: w, whatever the share."""
    policy = MlpPolicy(observation_size=5, hidden=(6,), action=kind, action_size=3)
    rng = np.random.default_rng(1)
    own, guide = (
        TorchMlp(policy, rng.normal(size=policy.num_parameters) * 0.5, dtype=torch.float64)
        for _ in range(2)
    )
    batch, mixed = make_batch([9, 4], kind=kind), Objective(gamma=0.9, behaviour_mixture=0.25)
    plain = signals(Models(own), batch, Objective(gamma=0.9)).weights
    observations = torch.from_numpy(batch.observations).double()
    actions = torch.from_numpy(batch.actions)
    actions = actions if kind == "categorical" else actions.double()
    with torch.no_grad():
        p, q = (log_probabilities(net(observations), actions).exp().numpy() for net in (own, guide))
    expected = np.where(batch.mask, plain * p / (0.75 * p + 0.25 * q), 0.0)
    found = signals(Models(own, guide), batch, mixed).weights
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(signals(Models(own, own), batch, mixed).weights, plain, rtol=1e-5)


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_what_is_masked_is_never_read(algorithm, make_batch):
    batch, models = make_batch([9, 4, 0]), models_for(algorithm)
    gone = ~batch.mask
    nonsense = replace(
        batch,
        observations=np.where(gone[..., None], np.float32(np.nan), batch.observations),
        rewards=np.where(gone, np.float32(np.inf), batch.rewards),
        actions=np.where(gone, 99, batch.actions),
    )
    objective = Objective(algorithm=algorithm, gamma=0.9)
    for one, other in zip(
        signals(models, batch, objective), signals(models, nonsense, objective), strict=True
    ):
        assert (one is None) == (other is None)
        assert one is None or one.tobytes() == other.tobytes()


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_spoils_its_own_row_only(algorithm, bad, make_batch):
    batch, models = make_batch([8, 4, 7]), models_for(algorithm)
    rewards = batch.rewards.copy()
    rewards[1, 2] = bad
    objective = Objective(algorithm=algorithm, gamma=0.9)
    options = {"clip_norm": 0.5, "critic_clip_norm": 0.5 if objective.has_critic else None}
    clean = private_rows(models, batch, objective, **options).rows
    found = private_rows(models, replace(batch, rewards=rewards), objective, **options).rows
    assert clean[[0, 2]].tobytes() == found[[0, 2]].tobytes()
    if not (algorithm == "dqn" and np.isinf(bad)):  # Huber bounds an infinite error to one
        assert not found[1, : models.current.policy.actor_parameters].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "sarsa"}, "algorithm must be one of reinforce, a2c, ppo, dqn, got 'sarsa'"),
        ({"entropy_weight": -1.0}, r"entropy_weight must be in \[0.0, inf\], got -1.0"),
        ({"guidance_weight": float("nan")}, "guidance_weight must be in .* got nan"),
        ({"guidance_weight": float("inf")}, "guidance_weight must be in .* got inf"),
        ({"gae_lambda": 1.5}, "gae_lambda must be in"),
        ({"value_scale": 0.0}, "value_scale must be in"),
        ({"clip_range": 0.0}, "clip_range must be in"),
        ({"gamma": 1.01}, "gamma must be in"),
        ({"truncation": "none"}, "truncation must be a Truncation"),
        ({"truncation": Truncation.BOOTSTRAP}, r"one of \['none', 'continue'\] for 'reinforce'"),
        (
            {"algorithm": "ppo", "truncation": Truncation.CONTINUE, "gamma": 0.9},
            r"one of \['none', 'bootstrap'\] for 'ppo', got 'continue'",
        ),
        ({"advantages": "returns"}, "'returns' is for 'ppo', got it for 'reinforce'"),
        ({"algorithm": "ppo", "advantages": "td"}, "must be 'gae' or 'returns', got 'td'"),
        (
            {"algorithm": "ppo", "advantages": "returns", "truncation": Truncation.BOOTSTRAP},
            r"one of \['none', 'continue'\] for 'ppo', got 'bootstrap'",
        ),
        ({"reward_low": 1.0, "reward_high": 1.0}, "reward_low must be < reward_high, got 1.0"),
        ({"reward_low": float("nan")}, "reward_low must be < reward_high, got nan"),
        ({"step_cost": float("nan")}, "step_cost must be within"),
        ({"algorithm": "dqn", "entropy_weight": 0.1}, "must be 0 for 'dqn'"),
        ({"algorithm": "dqn", "guidance_weight": 0.1}, "must be 0 for 'dqn'"),
    ],
)
def test_impossible_objectives_are_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        Objective(**changes)


@pytest.mark.parametrize(
    ("algorithm", "network", "message"),
    [
        ("a2c", "reinforce", "policy must have a critic for 'a2c'"),
        ("reinforce", "ppo", "policy must have no critic for 'reinforce'"),
        ("reinforce", "dqn", "action must not be 'q-values' for 'reinforce', got 'q-values'"),
        ("dqn", "reinforce", "action must be 'q-values' for 'dqn', got 'categorical'"),
    ],
)
def test_a_policy_of_another_kind_is_refused(algorithm, network, message, make_batch):
    with pytest.raises(ConfigurationError, match=message):
        signals(models_for(network), make_batch([4]), Objective(algorithm=algorithm))


@pytest.mark.parametrize("algorithm", ["a2c", "ppo", "dqn"])
def test_a_batch_of_another_environment_is_refused(algorithm, make_batch):
    batch = make_batch([4])
    narrow = replace(batch, observations=batch.observations[..., :4])
    with pytest.raises(ConfigurationError, match=r"observations must have shape \(1, 9, 5\)"):
        signals(models_for(algorithm), narrow, Objective(algorithm=algorithm))


# --- rewards and returns -------------------------------------------------------------------------


def test_ppo_on_whitened_returns_begins_as_reinforce_bit_for_bit(make_batch):
    batch, models = make_batch([9, 4, 0]), Models(models_for("reinforce").current)
    for truncation in ALGORITHMS["reinforce"].truncations:
        shared = {"gamma": 0.9, "truncation": truncation}
        one = signals(models, batch, Objective(**shared))
        other = signals(models, batch, Objective(algorithm="ppo", advantages="returns", **shared))
        assert one.weights.tobytes() == other.weights.tobytes()
        assert one.values is None
        assert other.values is None


def test_rewards_are_clipped_before_the_public_cost_is_subtracted():
    batch = chain([[0, 1, 0]], [[0, 1, 1]], [[-9.0, 0.25, 9.0]], [True])
    objective = Objective(reward_low=-1.0, reward_high=2.0, step_cost=0.5)
    np.testing.assert_array_equal(objective.shaped(batch).rewards, [[-1.5, -0.25, 1.5]])
    assert Objective().shaped(batch) is batch
    np.testing.assert_array_equal(batch.rewards, [[-9.0, 0.25, 9.0]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_clipping_does_not_make_a_usable_reward_of_one_that_is_not_finite(bad):
    """Nor of a masked step a reward."""
    batch = chain([[0, 1], [0]], [[0, 1], [0]], [[bad, 9.0], [9.0]], [True, True])
    found = Objective(reward_low=-1.0, reward_high=2.0, step_cost=0.5).shaped(batch).rewards
    np.testing.assert_array_equal(found, [[bad, 1.5], [1.5, 0.0]])


def test_what_is_learned_from_clipped_rewards_is_not_what_is_reported():
    batch = chain([[0, 1]], [[0, 1]], [[9.0, 9.0]], [True])
    objective = Objective(algorithm="a2c", gae_lambda=1.0, reward_high=1.0)
    found = unit_rows(Models(constant_critic(0.0)), batch, objective)
    np.testing.assert_array_equal(found.returns, [18.0])
    weights = signals(Models(constant_critic(0.0)), batch, objective).weights
    np.testing.assert_allclose(weights, np.array([[2.0, 1.0]]) / np.sqrt(2.0), rtol=1e-6)
