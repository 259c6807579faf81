"""Closed forms first, then the gradient against torch, then bad data, then learning."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from privfedrl.envs import EnvSpec, make_vector_env
from privfedrl.errors import ConfigurationError
from privfedrl.rollout import TrajectoryBatch, collect
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.training.dense_network import Adam, RunningScale
from privfedrl.training.networks import TorchMlp, divergences, entropies, log_probabilities
from privfedrl.training.ppo_learner import PpoLearner, PpoSettings, _standardised

SETTINGS = PpoSettings(
    gamma=0.9,
    gae_lambda=0.8,
    epochs=3,
    minibatch_size=8,
    learning_rate=1e-2,
    entropy_weight=0.01,
    reset_optimiser=False,
)


def _policy(kind="categorical", *, hidden=(7, 6), critic=(4, 3)):
    return MlpPolicy(
        observation_size=5, hidden=hidden, action=kind, action_size=3, critic_hidden=critic
    )


def _parameters(policy, seed=0):
    return np.random.default_rng(seed).normal(size=policy.num_parameters) * 0.5


def _learner(policy=None, **changes):
    return PpoLearner(
        policy or _policy(), replace(SETTINGS, **changes), rng=np.random.default_rng(5)
    )


def _torch_gradient(learner, parameters, part, guide):
    """The gradient of the whole PPO loss by autograd, float64."""
    settings = learner.settings
    twin = TorchMlp(learner.policy, parameters, dtype=torch.float64)
    outputs = twin(torch.from_numpy(part.inputs).double())
    log_p = log_probabilities(outputs, torch.from_numpy(part.actions))
    ratio = torch.exp(log_p - torch.from_numpy(part.old).double())
    counted = 1.0 if part.weights is None else torch.from_numpy(part.weights).double()
    gains = torch.from_numpy(part.advantages).double()
    low, high = 1.0 - settings.clip_range, 1.0 + settings.clip_range
    surrogate = torch.minimum(ratio * gains, ratio.clamp(low, high) * gains)
    reference = TorchMlp(learner.policy, guide, dtype=torch.float64)
    with torch.no_grad():
        published = reference(torch.from_numpy(part.inputs).double())
    misses = outputs.value - torch.from_numpy(part.targets).double()
    loss = -counted * surrogate - settings.entropy_weight * entropies(outputs)
    loss = loss + settings.value_weight * misses**2
    loss = loss + settings.guidance_weight * divergences(published, outputs)
    loss.mean().backward()
    inside = ((ratio > low) & (ratio < high)).double().mean()
    assert 0.1 < inside < 0.9  # the case is not trivial: some are clipped, some are not
    # order of the flat vector: actor, log_std, critic
    parts = [*twin.layers.parameters()]
    parts += [] if twin.log_std is None else [twin.log_std.value]
    parts += [*twin.critic.parameters()]
    return torch.cat([p.grad.ravel() for p in parts]).numpy()


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_the_gradient_of_the_loss_is_that_of_torch(kind, share, make_batch):
    policy = _policy(kind)
    learner = _learner(
        policy,
        guidance_weight=0.3,
        entropy_weight=0.05,
        value_scale=3.0,
        behaviour_mixture=share,
    )
    old, new, guide = (_parameters(policy, seed) for seed in (0, 1, 2))
    new = old + 0.3 * new
    batch = make_batch([9, 4, 7], kind=kind)
    learner._load(old)
    samples = learner._samples(batch, batch.mask, guide)
    learner._load(new)
    assert learner._differentiate(samples)
    expected = _torch_gradient(learner, new, samples, guide)
    np.testing.assert_allclose(learner._gradient, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_a_mixture_weighs_samples_and_leaves_the_ratio_alone(share, make_batch):
    """log pi before the batch is what ratios are to; pi over (1 - p) pi + p guide is the weight."""
    policy, batch = _policy(), make_batch([9, 4, 7])
    now, guide = _parameters(policy), _parameters(policy, 9)
    learner = _learner(policy, behaviour_mixture=share)
    learner._load(now)
    samples = learner._samples(batch, batch.mask, guide)
    seen, done = torch.from_numpy(samples.inputs).double(), torch.from_numpy(samples.actions)
    with torch.no_grad():
        own, other = (
            log_probabilities(TorchMlp(policy, theta, dtype=torch.float64)(seen), done).numpy()
            for theta in (now, guide)
        )
    np.testing.assert_allclose(samples.old, own, atol=1e-5)
    expected = np.exp(own) / ((1 - share) * np.exp(own) + share * np.exp(other))
    np.testing.assert_allclose(samples.weights, expected, rtol=1e-4)
    assert samples.weights.max() <= 1 / (1 - share) + 1e-5
    assert np.ptp(samples.weights) > 0.1


def test_a_mixture_does_not_use_up_the_target_kl_before_the_first_step(make_batch):
    policy, batch = _policy(), make_batch([9, 4, 7])
    parameters = _parameters(policy)
    learner = _learner(policy, behaviour_mixture=0.5, target_kl=0.01)
    moved = learner.improve(parameters, batch, global_parameters=_parameters(policy, 9))
    assert not np.array_equal(moved, parameters)


def test_the_rest_of_a_batch_is_left_at_one_and_a_half_times_the_target_kl(make_batch):
    policy, batch = _policy(), make_batch([9, 4, 7])
    old = _parameters(policy)
    new = old + 0.1 * _parameters(policy, 1)
    learner = _learner(policy)
    learner._load(old)
    samples = learner._samples(batch, batch.mask, old)
    learner._load(new)
    seen, done = torch.from_numpy(samples.inputs).double(), torch.from_numpy(samples.actions)
    with torch.no_grad():
        after = TorchMlp(policy, new, dtype=torch.float64)(seen)
        gap = log_probabilities(after, done).numpy() - samples.old
    moved = float((np.exp(gap) - 1.0 - gap).mean())
    assert moved > 1e-4
    for factor, goes_on in ((1.01, True), (0.99, False)):
        learner.settings = replace(SETTINGS, target_kl=factor * moved / 1.5)
        assert learner._differentiate(samples) == goes_on


def test_advantages_are_standardised_over_the_batch_or_left_alone():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=50)
    expected = (values - values.mean()) / values.std()
    np.testing.assert_allclose(_standardised(values, True), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(_standardised(values, False), values.astype(np.float32))
    assert not _standardised(np.full(5, 7.0), True).any()


def test_no_optimiser_step_takes_a_longer_gradient_than_it_may(make_batch, monkeypatch):
    policy, batch = _policy(), make_batch([9, 4, 7])
    huge = replace(batch, rewards=1e3 * batch.rewards)
    norms = []
    original = Adam.step

    def watched(self, vector, gradient, rate):
        norms.append(float(np.linalg.norm(gradient)))
        original(self, vector, gradient, rate)

    monkeypatch.setattr(Adam, "step", watched)
    _learner(policy, max_grad_norm=0.25).improve(_parameters(policy), huge)
    assert len(norms) > 3
    assert max(norms) <= 0.25 * (1 + 1e-5)
    assert max(norms) > 0.2


def test_every_epoch_sees_all_samples_in_an_order_of_its_own(make_batch, monkeypatch):
    policy, batch = _policy(), make_batch([9, 4, 7])
    orders = []
    original = PpoLearner._differentiate

    def watched(self, part):
        orders.append(part.inputs[:, 0].copy())
        return original(self, part)

    monkeypatch.setattr(PpoLearner, "_differentiate", watched)
    learner = _learner(policy, epochs=3, minibatch_size=1000)
    learner.improve(_parameters(policy), batch)
    assert len(orders) == 3
    assert all(np.array_equal(np.sort(one), np.sort(orders[0])) for one in orders)
    assert len({one.tobytes() for one in orders}) == 3


def test_the_critic_learns_the_values_of_a_chain_of_two_states():
    # state 0 pays 1 and leads to state 1, which pays 2 and ends: V = (1 + 2 gamma, 2), whatever
    # the policy does
    policy = MlpPolicy(
        observation_size=2, hidden=(), action="categorical", action_size=2, critic_hidden=()
    )
    states = np.tile(np.eye(2, dtype=np.float32), (4, 1, 1))
    batch = TrajectoryBatch(
        observations=states,
        actions=np.array([[0, 1], [1, 0], [0, 0], [1, 1]]),
        rewards=np.tile(np.float32([1.0, 2.0]), (4, 1)),
        mask=np.ones((4, 2), dtype=bool),
        terminated=np.ones(4, dtype=bool),
        truncated=np.zeros(4, dtype=bool),
    )
    learner = _learner(policy, learning_rate=0.02, epochs=10, value_scale=10.0, max_grad_norm=10.0)
    parameters = np.zeros(policy.num_parameters)
    for _ in range(60):
        parameters = learner.improve(parameters, batch)
    critic = parameters[policy.actor_parameters :]
    values = 10.0 * (critic[:2] + critic[2])
    np.testing.assert_allclose(values, [1.0 + 0.9 * 2.0, 2.0], atol=0.01)


def test_the_better_of_two_arms_is_found():
    policy = MlpPolicy(
        observation_size=1, hidden=(), action="categorical", action_size=2, critic_hidden=()
    )
    learner = _learner(policy, learning_rate=0.05, entropy_weight=0.0)
    parameters, rng = np.zeros(policy.num_parameters), np.random.default_rng(0)
    for _ in range(40):
        p = 1.0 / (1.0 + np.exp(-np.diff(parameters[:2] + parameters[2:4])[0]))
        actions = (rng.random((32, 1)) < p).astype(np.int64)
        batch = TrajectoryBatch(
            observations=np.ones((32, 1, 1), np.float32),
            actions=actions,
            rewards=actions.astype(np.float32),
            mask=np.ones((32, 1), dtype=bool),
            terminated=np.ones(32, dtype=bool),
            truncated=np.zeros(32, dtype=bool),
        )
        parameters = learner.improve(parameters, batch)
    assert p > 0.95


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
@pytest.mark.parametrize("private", [False, True])
def test_training_on_normalised_observations_is_a_change_of_coordinates(kind, private, make_batch):
    """The same as normalising the batch beforehand, in both networks and over two rounds."""
    critic = (4, 3)
    policy = _policy(kind, critic=None if private else critic)
    settings = {"private_critic_hidden": critic if private else None}
    parameters = _parameters(policy)
    batch = make_batch([9, 4, 7], kind=kind)
    raw = (batch.observations * 20.0 + 7.0) * batch.mask[..., None]
    scale = RunningScale(5)
    scale.update(raw[batch.mask])
    normalised = scale.normalised(raw) * batch.mask[..., None]
    learner = _learner(policy, normalise_observations=True, **settings)
    twin = _learner(policy, **settings)

    def moved(vector, layers):
        vector = vector.copy()
        scale.to_normalised(layers, vector)
        return vector

    def in_z(result, learner):
        split = policy.actor_parameters
        critic = result[split:] if learner._private_critic is None else learner._private_critic
        return np.concatenate(
            [moved(result[:split], policy.layers), moved(critic, learner._critic_layers)]
        )

    start = in_z(parameters, learner)
    if private:
        twin._private_critic = start[policy.actor_parameters :]
    found, expected = parameters, start[: policy.num_parameters]
    for _ in range(2):
        found = learner.improve(found, replace(batch, observations=raw))
        expected = twin.improve(expected, replace(batch, observations=normalised))
    whole = expected if not private else np.concatenate([expected, twin._private_critic])
    np.testing.assert_allclose(in_z(found, learner), whole, atol=2e-4)
    assert np.abs(whole - start).max() > 0.02


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("where", ["rewards", "observations", "actions"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_trajectory_that_is_not_finite_counts_for_nothing(
    kind, normalise, where, poison, make_batch
):
    if kind == "categorical" and where == "actions":
        poison = 3  # there are only three actions: 0, 1 and 2
    policy = _policy(kind)
    parameters = _parameters(policy)
    clean = make_batch([9, 4, 7], kind=kind)
    values = getattr(clean, where).copy()
    values[1, 2] = poison
    without = replace(clean, mask=clean.mask & np.array([[True], [False], [True]]))
    results = [
        _learner(policy, normalise_observations=normalise).improve(parameters, batch)
        for batch in (replace(clean, **{where: values}), without, clean)
    ]
    assert np.isfinite(results[0]).all()
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


@pytest.mark.parametrize("where", ["rewards", "observations"])
@pytest.mark.parametrize("huge", [1e20, 3e38])
@pytest.mark.parametrize("normalise", [False, True])
def test_huge_but_finite_values_never_give_parameters_that_are_not_finite(
    where, huge, normalise, make_batch
):
    policy = _policy()
    batch = make_batch([9, 4, 7])
    values = getattr(batch, where).copy()
    values[1, :2] = huge
    values[1, 2] = -huge
    learner = _learner(policy, normalise_observations=normalise)
    parameters = _parameters(policy)
    for _ in range(3):
        parameters = learner.improve(parameters, replace(batch, **{where: values}))
        policy.checked(parameters)
    learned = learner.improve(parameters, batch)
    assert np.isfinite(learned).all()


@pytest.mark.parametrize("lengths", [[], [0, 0], [1]])
def test_a_batch_without_a_step_to_learn_from_changes_nothing(lengths, make_batch):
    policy = _policy()
    parameters = _parameters(policy)
    batch = make_batch(lengths, horizon=1) if lengths == [1] else make_batch(lengths)
    result = _learner(policy).improve(parameters, batch)
    assert np.array_equal(result, parameters)
    assert result is not parameters


def test_kl_stops_the_round(make_batch):
    policy = _policy()
    parameters, batch = _parameters(policy), make_batch([9, 4, 7])
    free = _learner(policy, epochs=30).improve(parameters, batch)
    held = _learner(policy, epochs=30, target_kl=1e-3).improve(parameters, batch)
    observations = torch.from_numpy(batch.observations[batch.mask]).double()

    def moved(result):
        networks = [TorchMlp(policy, p, dtype=torch.float64) for p in (parameters, result)]
        with torch.no_grad():
            return float(divergences(*(net(observations) for net in networks)).mean())

    assert 0.0 < moved(held) < 0.01 < moved(free)


def test_guidance_keeps_the_policy_near_the_published_one(make_batch):
    policy = _policy()
    parameters, published = _parameters(policy), _parameters(policy, 9)
    batch = make_batch([9, 4, 7])
    observations = torch.from_numpy(batch.observations[batch.mask]).double()
    apart = []
    for weight in (0.0, 10.0):
        learner, result = _learner(policy, guidance_weight=weight, epochs=30), parameters
        for _ in range(5):
            result = learner.improve(result, batch, global_parameters=published)
        networks = [TorchMlp(policy, p, dtype=torch.float64) for p in (published, result)]
        with torch.no_grad():
            apart.append(float(divergences(*(net(observations) for net in networks)).mean()))
    with torch.no_grad():
        before = TorchMlp(policy, parameters, dtype=torch.float64)(observations)
        at_first = float(divergences(networks[0](observations), before).mean())
    assert apart[1] < 0.3 * at_first < apart[0]


def test_moments_survive_a_round_unless_they_are_reset(make_batch):
    policy, batch = _policy(), make_batch([9, 4, 7])
    parameters = _parameters(policy)
    for reset in (False, True):
        # one step on all samples: their order does not matter but for rounding
        learner = _learner(policy, reset_optimiser=reset, epochs=1, minibatch_size=1000)
        first = learner.improve(parameters, batch)
        second = learner.improve(parameters, replace(batch, rewards=-batch.rewards))
        fresh = _learner(policy, reset_optimiser=reset, epochs=1, minibatch_size=1000).improve(
            parameters, replace(batch, rewards=-batch.rewards)
        )
        assert np.allclose(second, fresh, atol=1e-4) == reset
        assert not np.array_equal(first, parameters)


@pytest.mark.parametrize("critic", [None, (4,)])
def test_a_copied_learner_goes_on_as_the_original_would(critic, make_batch):
    policy, batch = _policy("gaussian", critic=critic), make_batch([9, 4, 7], kind="gaussian")
    private = (4,) if critic is None else None
    learner = _learner(policy, normalise_observations=True, private_critic_hidden=private)
    first = learner.improve(_parameters(policy), batch)
    copies = [copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))]
    second = learner.improve(first, batch)
    assert not np.array_equal(first, second)
    for twin in copies:
        assert np.array_equal(twin.improve(first, batch), second)


def test_scheduled_values_are_taken_as_they_are(make_batch):
    policy, batch = _policy(), make_batch([9, 4, 7])
    parameters = _parameters(policy)
    assert np.array_equal(_learner().improve(parameters, batch, learning_rate=0.0), parameters)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="learning_rate"):
            _learner().improve(parameters, batch, learning_rate=bad)


def test_a_private_critic_never_leaves(make_batch):
    policy = _policy(critic=None)
    learner = _learner(policy, private_critic_hidden=(4,))
    parameters, batch = _parameters(policy), make_batch([9, 4, 7])
    before = learner._private_critic.copy()
    result = learner.improve(parameters, batch)
    assert result.shape == (policy.num_parameters,) == (policy.actor_parameters,)
    assert not np.array_equal(before, learner._private_critic)
    assert "0." not in repr(learner)


def test_a_private_critic_gives_the_same_actor_as_a_published_one(make_batch):
    """Where the critic lives is bookkeeping: with equal parameters the actor learns the same."""
    shared, bare = _policy(critic=(4,)), _policy(critic=None)
    parameters, batch = _parameters(shared), make_batch([9, 4, 7])
    split = shared.actor_parameters
    learner = _learner(bare, private_critic_hidden=(4,))
    learner._private_critic = parameters[split:].copy()
    learner._rng = np.random.default_rng(5)
    result = learner.improve(parameters[:split], batch)
    expected = _learner(shared).improve(parameters, batch)
    np.testing.assert_array_equal(result, expected[:split])
    np.testing.assert_array_equal(learner._private_critic, expected[split:])


def test_one_critic_is_needed_and_only_one():
    with pytest.raises(ConfigurationError, match="exactly one"):
        _learner(_policy(critic=None))
    with pytest.raises(ConfigurationError, match="exactly one"):
        _learner(_policy(), private_critic_hidden=(4,))
    with pytest.raises(ConfigurationError, match="q-values"):
        _learner(_policy("q-values", critic=None), private_critic_hidden=(4,))


def test_a_recurrent_policy_is_refused():
    policy = replace(_policy(critic=None), recurrent=4)
    with pytest.raises(ConfigurationError, match="recurrent"):
        _learner(policy, private_critic_hidden=(4,))


@pytest.mark.parametrize(
    "change",
    [
        {"gamma": 1.1},
        {"gamma": float("nan")},
        {"gae_lambda": -0.1},
        {"epochs": 0},
        {"minibatch_size": 2.0},
        {"learning_rate": 0.0},
        {"clip_range": float("inf")},
        {"value_scale": -1.0},
        {"max_grad_norm": 0.0},
        {"target_kl": 0.0},
        {"entropy_weight": -0.1},
        {"value_weight": float("nan")},
        {"guidance_weight": -1.0},
    ],
)
def test_settings_outside_their_range_are_refused(change):
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        replace(SETTINGS, **change)


def test_a_batch_of_another_shape_is_refused(make_batch):
    policy = _policy()
    with pytest.raises(ConfigurationError, match="batch"):
        _learner(policy).improve(_parameters(policy), make_batch([9], kind="gaussian"))
    with pytest.raises(ConfigurationError, match="parameters"):
        _learner(policy).improve(_parameters(policy)[1:], make_batch([9]))


def test_a_gaussian_policy_moves_to_the_best_action():
    """Reward 1 - (a - 0.7)^2, one step: the mean goes to 0.7 and the deviation shrinks."""
    policy = MlpPolicy(
        observation_size=1, hidden=(), action="gaussian", action_size=1, critic_hidden=()
    )
    learner = _learner(policy, learning_rate=0.02, entropy_weight=0.0, minibatch_size=32)
    parameters, rng = np.zeros(policy.num_parameters), np.random.default_rng(0)
    for _ in range(60):
        mean, std = parameters[0] + parameters[1], np.exp(parameters[2])
        actions = (mean + std * rng.standard_normal((64, 1, 1))).astype(np.float32)
        batch = TrajectoryBatch(
            observations=np.ones((64, 1, 1), np.float32),
            actions=actions,
            rewards=1.0 - (actions[..., 0] - np.float32(0.7)) ** 2,
            mask=np.ones((64, 1), dtype=bool),
            terminated=np.ones(64, dtype=bool),
            truncated=np.zeros(64, dtype=bool),
        )
        parameters = learner.improve(parameters, batch)
    assert abs(mean - 0.7) < 0.1
    assert std < 0.5


def _best_training_return(seed):
    """Largest mean of 8 episodes of PPO on CartPole within 15,000 steps; ends above 150."""
    policy = MlpPolicy(
        observation_size=4,
        hidden=(32, 32),
        action="categorical",
        action_size=2,
        critic_hidden=(32, 32),
    )
    settings = replace(
        SETTINGS,
        gamma=0.99,
        gae_lambda=0.95,
        epochs=10,
        minibatch_size=128,
        learning_rate=1e-3,
        entropy_weight=0.0,
        normalise_observations=True,
        value_scale=10.0,
    )
    rng, spec, steps, best = np.random.default_rng(seed), EnvSpec("CartPole-v1"), 0, 0.0
    parameters = policy.initial_parameters(rng)
    learner = PpoLearner(policy, settings, rng=rng)
    while steps < 15_000 and best < 150.0:
        batch = collect(policy, parameters, make_vector_env(spec, 8), horizon=500, rng=rng)
        steps += int(batch.mask.sum())
        parameters = learner.improve(parameters, batch)
        best = max(best, float(batch.returns.mean()))
    return best


@pytest.mark.statistical
def test_cartpole_is_learned_within_fifteen_thousand_steps():
    """Fails only if four seeds do. None of 150 other seeds did: with 95 % confidence one fails

    with probability below 2 %, so four fail together with less than 1e-6. Seeds are fixed, but
    the last bits differ between machines. A random policy holds the pole for 22 steps.
    """
    assert any(_best_training_return(seed) >= 150.0 for seed in (1, 2, 3, 4))
