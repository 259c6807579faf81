"""Closed forms first, then the gradient against torch, then bad data."""

from __future__ import annotations

import copy
import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from privfedrl.errors import ConfigurationError
from privfedrl.rollout import TrajectoryBatch
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.training.dense_network import Adam
from privfedrl.training.dqn_learner import (
    DqnLearner,
    DqnSettings,
    ReplayMemory,
    Transitions,
    transitions_of,
)
from privfedrl.training.networks import TorchMlp

SETTINGS = DqnSettings(
    gamma=0.9,
    learning_rate=1e-2,
    batch_size=16,
    updates_per_step=1.0,
    replay_capacity=500,
    target_interval=20,
    reset_optimiser=False,
)
POLICY = MlpPolicy(observation_size=5, hidden=(7, 6), action="q-values", action_size=3)


def _parameters(policy=POLICY, seed=0):
    return np.random.default_rng(seed).normal(size=policy.num_parameters) * 0.5


def _learner(policy=POLICY, **changes):
    return DqnLearner(policy, replace(SETTINGS, **changes), rng=np.random.default_rng(5))


@pytest.fixture
def batch(make_batch):
    return make_batch([9, 4, 7], kind="q-values")


def _two_state_walks(walks, steps, seed=0):
    """Random walks of a deterministic process with two states and two actions.

    Action 1 changes the state. Leaving state 0 pays 0 and leaving state 1 pays 1; staying in 0
    pays 0.2 and staying in 1 ends the episode with 0.5.
    """
    rng = np.random.default_rng(seed)
    states = np.zeros((walks, steps), dtype=np.int64)
    actions = rng.integers(0, 2, (walks, steps))
    rewards, mask = np.zeros((walks, steps), np.float32), np.zeros((walks, steps), dtype=bool)
    terminated = np.zeros(walks, dtype=bool)
    for row in range(walks):
        state = int(rng.integers(2))
        for t in range(steps):
            states[row, t], mask[row, t] = state, True
            rewards[row, t] = [[0.2, 0.0], [0.5, 1.0]][state][actions[row, t]]
            if state == 1 and actions[row, t] == 0:
                terminated[row] = True
                break
            state = state ^ int(actions[row, t])
    return TrajectoryBatch(
        observations=np.eye(2, dtype=np.float32)[states] * mask[..., None],
        actions=actions * mask,
        rewards=rewards,
        mask=mask,
        terminated=terminated,
        truncated=~terminated,
    )


def _exact_q(gamma=0.9):
    """Q* [state, action] of ``_two_state_walks`` by value iteration."""
    q = np.zeros((2, 2))
    for _ in range(2000):
        v = q.max(axis=1)
        q = np.array([[0.2 + gamma * v[0], gamma * v[1]], [0.5, 1.0 + gamma * v[0]]])
    return q


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("value_scale", [1.0, 4.0])
def test_the_exact_values_of_a_deterministic_process_are_reached(double, value_scale):
    policy = MlpPolicy(observation_size=2, hidden=(), action="q-values", action_size=2)
    learner = _learner(policy, double=double, value_scale=value_scale)
    parameters = np.zeros(policy.num_parameters)
    for round_ in range(30):
        # Adam with a constant step keeps circling the solution
        rate = 0.02 * (1.0 - 0.95 * round_ / 30)
        batch = _two_state_walks(20, 10, seed=round_)
        parameters = learner.improve(parameters, batch, learning_rate=rate)
    weights, bias = parameters[:4].reshape(2, 2), parameters[4:]
    found = value_scale * (weights + bias[:, None]).T  # [state, action]
    np.testing.assert_allclose(found, _exact_q(), atol=1e-3)


def test_transitions_stop_where_nothing_is_known_to_follow(make_batch):
    batch = make_batch([3, 9, 1], kind="q-values")  # 3 and 1 ended; 9 was cut by the horizon
    found = transitions_of(batch, np.array([True, True, True]))
    assert found.actions.shape[0] == 3 + 8 + 1
    assert found.ends.tolist() == [False, False, True] + [False] * 8 + [True]
    seen = batch.observations
    expected = np.concatenate([seen[0, 1:3], [seen[0, 3]], seen[1, 1:9]])
    np.testing.assert_array_equal(
        found.following[:11][~found.ends[:11]], expected[[0, 1, *range(3, 11)]]
    )
    np.testing.assert_array_equal(found.observations[3:11], seen[1, :8])
    np.testing.assert_array_equal(found.rewards[:3], batch.rewards[0, :3])
    assert transitions_of(batch, np.array([False, True, False])).actions.shape[0] == 8


def _numbered(first, count):
    numbers = np.arange(first, first + count)
    return Transitions(
        observations=numbers[:, None].astype(np.float32),
        actions=numbers,
        rewards=numbers.astype(np.float32),
        following=numbers[:, None].astype(np.float32),
        ends=numbers % 2 == 0,
    )


@pytest.mark.parametrize("parts", [(3, 3, 3, 1), (10,), (4, 6), (1,) * 10])
def test_the_memory_keeps_the_newest_transitions_however_they_came(parts):
    memory, first = ReplayMemory(4, 1), 0
    for count in parts:
        memory.add(_numbered(first, count))
        first += count
    drawn = memory.draw(1000, np.random.default_rng(0))
    assert len(memory) == 4
    assert set(drawn.actions.tolist()) == {6, 7, 8, 9}
    for field in fields(Transitions):
        whole = getattr(_numbered(0, 10), field.name)
        np.testing.assert_array_equal(getattr(drawn, field.name), whole[drawn.actions])


@pytest.mark.statistical
def test_replay_is_uniform():
    """Each count is binomial(40000, 1/8), deviation 66: +-400 is six deviations (< 1e-8 each)."""
    memory = ReplayMemory(8, 1)
    memory.add(_numbered(0, 8))
    drawn = memory.draw(40_000, np.random.default_rng(1))
    assert np.abs(np.bincount(drawn.actions, minlength=8) - 5_000).max() < 400


@pytest.mark.parametrize("double", [False, True])
def test_the_gradient_of_the_loss_is_that_of_torch(double, batch):
    learner = _learner(double=double, value_scale=2.0)
    now, target = (_parameters(seed=s) for s in (1, 0))
    learner.improve(target, replace(batch, mask=np.zeros_like(batch.mask)))  # fixes the target
    learner._vector[:] = now
    drawn = transitions_of(batch, np.ones(3, dtype=bool))
    learner._differentiate(drawn)

    nets = [TorchMlp(POLICY, p, dtype=torch.float64) for p in (now, target)]
    seen, after = (torch.from_numpy(a).double() for a in (drawn.observations, drawn.following))
    values = nets[0](seen).head
    with torch.no_grad():
        later = nets[1](after).head
        best = (nets[0](after).head if double else later).argmax(dim=1)
        later = later.gather(1, best[:, None])[:, 0] * torch.from_numpy(~drawn.ends)
        wanted = torch.from_numpy(drawn.rewards).double() / 2.0 + 0.9 * later
    chosen = values.gather(1, torch.from_numpy(drawn.actions)[:, None])[:, 0]
    misses = (chosen - wanted).abs()
    assert 0.1 < (misses > 1.0).double().mean() < 0.9  # both branches of Huber's loss
    loss = torch.nn.functional.huber_loss(chosen, wanted)
    loss.backward()
    expected = torch.cat([p.grad.ravel() for p in nets[0].parameters()]).numpy()
    np.testing.assert_allclose(learner._gradient, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("per_step", "steps"), [(0.25, 5), (1.0, 19), (2.0, 38), (0.01, 1)])
def test_as_many_optimiser_steps_are_taken_as_there_are_new_transitions_for(
    per_step, steps, batch, monkeypatch
):
    norms = []
    original = Adam.step

    def watched(self, vector, gradient, rate):
        norms.append(float(np.linalg.norm(gradient)))
        original(self, vector, gradient, rate)

    monkeypatch.setattr(Adam, "step", watched)
    learner = _learner(updates_per_step=per_step, max_grad_norm=1e-3)
    learner.improve(_parameters(), batch)  # 19 transitions
    assert len(norms) == learner._updates == steps
    assert max(norms) == pytest.approx(1e-3, rel=1e-4)  # no step takes a longer gradient


def test_memory_and_target_survive_rounds(batch):
    learner = _learner(target_interval=30)  # 19 transitions, so 19 steps, a round
    first = learner.improve(_parameters(), batch)
    assert len(learner._memory) == 19
    np.testing.assert_array_equal(learner._target_vector, _parameters().astype(np.float32))
    second = learner.improve(first, batch)
    assert len(learner._memory) == 38
    assert not np.array_equal(learner._target_vector, _parameters().astype(np.float32))
    assert not np.array_equal(learner._target_vector, second.astype(np.float32))


def test_a_copied_learner_goes_on_as_the_original_would(batch):
    learner = _learner()
    first = learner.improve(_parameters(), batch)
    copies = [copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))]
    second = learner.improve(first, batch)
    assert not np.array_equal(first, second)
    for twin in copies:
        assert np.array_equal(twin.improve(first, batch), second)


def test_the_learning_rate_of_a_call_wins(batch):
    parameters = _parameters()
    moved = [
        np.abs(_learner().improve(parameters, batch, learning_rate=rate) - parameters).max()
        for rate in (1e-5, 1e-2)
    ]
    assert 0.0 < moved[0] < 19 * 1.1e-5 < moved[1]


@pytest.mark.parametrize("where", ["rewards", "observations", "actions"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_trajectory_that_is_not_finite_counts_for_nothing(where, poison, batch):
    values = getattr(batch, where).copy()
    values[1, 2] = -1 if where == "actions" else poison
    without = replace(batch, mask=batch.mask & np.array([[True], [False], [True]]))
    results = [
        _learner().improve(_parameters(), given)
        for given in (replace(batch, **{where: values}), without, batch)
    ]
    assert np.isfinite(results[0]).all()
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


@pytest.mark.parametrize("where", ["rewards", "observations"])
@pytest.mark.parametrize("huge", [1e20, 3e38])
def test_huge_but_finite_values_never_give_parameters_that_are_not_finite(where, huge, batch):
    values = getattr(batch, where).copy()
    values[1, :2], values[1, 2] = huge, -huge
    learner, parameters = _learner(), _parameters()
    for given in (replace(batch, **{where: values}), batch, batch):
        parameters = learner.improve(parameters, given)
        POLICY.checked(parameters)


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_an_empty_batch_changes_nothing(lengths, make_batch):
    parameters = _parameters()
    result = _learner().improve(parameters, make_batch(lengths, kind="q-values"))
    assert np.array_equal(result, parameters)
    assert result is not parameters


@pytest.mark.parametrize(
    "change",
    [
        {"gamma": -0.1},
        {"batch_size": 0},
        {"updates_per_step": 0.0},
        {"replay_capacity": 1.5},
        {"target_interval": True},
        {"learning_rate": float("nan")},
        {"value_scale": 0.0},
        {"max_grad_norm": float("inf")},
    ],
)
def test_settings_outside_their_range_are_refused(change):
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        replace(SETTINGS, **change)


def test_only_a_policy_of_q_values_without_a_critic_is_accepted(make_batch):
    for changes in ({"action": "categorical"}, {"critic_hidden": (3,)}):
        with pytest.raises(ConfigurationError, match="q-values"):
            _learner(replace(POLICY, **changes))
    with pytest.raises(ConfigurationError, match="batch"):
        _learner().improve(_parameters(), make_batch([9], kind="gaussian"))
