from __future__ import annotations

import numpy as np
import pytest
import torch

from privfedrl.errors import ConfigurationError
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.training.dense_network import (
    Adam,
    DenseNetwork,
    RunningScale,
    clip_norm_,
    layer_sizes,
    num_weights,
)
from privfedrl.training.networks import Outputs, TorchMlp, divergences, entropies, log_probabilities
from privfedrl.training.policy_heads import CategoricalHead, GaussianHead


def _network(hidden, seed=0):
    layers = layer_sizes(5, hidden, 3)
    vector = np.random.default_rng(seed).normal(size=num_weights(layers)).astype(np.float32) * 0.5
    gradient = np.full_like(vector, np.nan)
    return DenseNetwork(layers, vector, gradient), vector, gradient


@pytest.mark.parametrize("hidden", [(), (4,), (7, 6), (3, 8, 5)])
def test_the_gradient_is_that_of_torch(hidden):
    network, vector, gradient = _network(hidden)
    policy = MlpPolicy(observation_size=5, hidden=hidden, action="categorical", action_size=3)
    twin = TorchMlp(policy, vector, dtype=torch.float64)
    rng = np.random.default_rng(1)
    for rows in (11, 4, 17):  # buffers shrink and grow
        inputs = rng.normal(size=(rows, 5)).astype(np.float32)
        error = rng.normal(size=(rows, 3)).astype(np.float32)
        outputs = network.forward(inputs)
        expected = twin(torch.from_numpy(inputs).double()).head
        np.testing.assert_allclose(outputs, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
        twin.zero_grad()
        (expected * torch.from_numpy(error)).sum().backward()
        network.backward(error)
        wanted = torch.cat([p.grad.ravel() for p in twin.parameters()]).numpy()
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-5)


def test_a_network_is_a_view_of_the_flat_vector():
    network, vector, _ = _network((4,))
    inputs = np.ones((2, 5), np.float32)
    before = network.forward(inputs).copy()
    vector *= 2.0
    assert not np.allclose(before, network.forward(inputs))


def test_a_vector_of_another_length_or_type_is_refused():
    layers = layer_sizes(5, (4,), 3)
    right = np.zeros(num_weights(layers), np.float32)
    with pytest.raises(ConfigurationError, match="vector"):
        DenseNetwork(layers, right[1:], right)
    with pytest.raises(ConfigurationError, match="gradient"):
        DenseNetwork(layers, right, right.astype(np.float64))


def test_adam_takes_the_steps_of_torch():
    rng = np.random.default_rng(0)
    start = rng.normal(size=20).astype(np.float32)
    twin = torch.nn.Parameter(torch.from_numpy(start.astype(np.float64)))
    reference = torch.optim.Adam([twin], lr=0.03, eps=1e-5)
    vector, adam = start.copy(), Adam(20, epsilon=1e-5)
    for _ in range(30):
        gradient = rng.normal(size=20).astype(np.float32)
        twin.grad = torch.from_numpy(gradient.astype(np.float64))
        reference.step()
        adam.step(vector, gradient, 0.03)
    np.testing.assert_allclose(vector, twin.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_adam_after_a_reset_is_a_new_one():
    rng = np.random.default_rng(0)
    used, gradients = Adam(4), rng.normal(size=(3, 4)).astype(np.float32)
    used.step(np.zeros(4, np.float32), gradients[0], 0.1)
    used.reset()
    results = []
    for adam in (used, Adam(4)):
        vector = np.zeros(4, np.float32)
        adam.step(vector, gradients[1], 0.1)
        adam.step(vector, gradients[2], 0.1)
        results.append(vector)
    assert np.array_equal(*results)


def test_a_gradient_is_scaled_down_to_the_largest_norm_and_never_up():
    gradient = np.array([3.0, 4.0], np.float32)
    assert clip_norm_(gradient, 10.0)
    assert gradient.tolist() == [3.0, 4.0]
    assert clip_norm_(gradient, 1.0)
    np.testing.assert_allclose(gradient, [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])
def test_a_gradient_without_a_finite_norm_is_refused_and_left_alone(poison):
    gradient = np.array([1.0, poison], np.float32)
    with np.errstate(over="ignore"):
        assert not clip_norm_(gradient, 1.0)
    assert gradient[0] == 1.0


def test_running_statistics_are_those_of_all_inputs_together():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(50, 3)) * [1.0, 20.0, 0.3] + [5.0, -3.0, 100.0]
    scale = RunningScale(3)
    assert scale.std.tolist() == [1.0, 1.0, 1.0]
    for low, high in ((0, 1), (1, 20), (20, 20), (20, 50)):
        scale.update(inputs[low:high])
    np.testing.assert_allclose(scale.mean, inputs.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(scale.std, inputs.std(axis=0), rtol=1e-12)


def test_a_coordinate_that_hardly_varies_is_not_blown_up():
    scale = RunningScale(2, min_std=0.01)
    scale.update(np.array([[1.0, 7.0], [1.0, 7.0 + 1e-6]]))
    assert scale.std.tolist() == [0.01, 0.01]


def test_normalising_is_a_change_of_coordinates_and_nothing_else():
    rng = np.random.default_rng(0)
    layers = layer_sizes(5, (6,), 3)
    raw = rng.normal(size=num_weights(layers)) * 0.5
    inputs = (rng.normal(size=(40, 5)) * [1, 9, 0.2, 3, 1] + 2.0).astype(np.float32)
    scale = RunningScale(5)
    scale.update(inputs)
    moved = raw.copy()
    scale.to_normalised(layers, moved)

    def outputs(vector, x):
        flat = vector.astype(np.float32)
        return DenseNetwork(layers, flat, np.zeros_like(flat)).forward(x).copy()

    normalised = scale.normalised(inputs)
    np.testing.assert_allclose(normalised.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(outputs(moved, normalised), outputs(raw, inputs), atol=1e-4)
    assert np.abs(moved - raw).max() > 0.1
    scale.to_raw(layers, moved)
    np.testing.assert_allclose(moved, raw, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
@pytest.mark.parametrize("guided", [False, True])
def test_the_heads_differentiate_as_torch_does(kind, guided):
    rng = np.random.default_rng(3)
    raw, other = rng.normal(size=(2, 9, 3)).astype(np.float32)
    weights = rng.normal(size=9).astype(np.float32)
    log_std, other_std = (rng.normal(size=(2, 3)) * 0.3).astype(np.float32)
    entropy, guidance = 0.7, 1.3 if guided else 0.0
    gradient = np.full(3, np.nan, np.float32)
    if kind == "categorical":
        head, actions = CategoricalHead(), rng.integers(0, 3, 9)
        guide = head.describe(other)
        stds = (None, None)
    else:
        head, actions = GaussianHead(log_std, gradient), rng.normal(size=(9, 3)).astype(np.float32)
        guide = GaussianHead(other_std, gradient).describe(other)
        stds = tuple(torch.tensor(s, dtype=torch.float64) for s in (log_std, other_std))
        stds[0].requires_grad_()
    outputs = torch.tensor(raw, dtype=torch.float64, requires_grad=True)
    repeated = [None if s is None else s.expand(9, 3) for s in stds]
    policy = Outputs(outputs, repeated[0])
    log_p = log_probabilities(policy, torch.from_numpy(actions))
    loss = (torch.from_numpy(weights) * log_p).sum() - entropy * entropies(policy).sum()
    reference = Outputs(torch.tensor(other, dtype=torch.float64), repeated[1])
    loss = loss + guidance * divergences(reference, policy).sum()
    loss.backward()

    found = head.log_probabilities(raw, actions)
    np.testing.assert_allclose(found, log_p.detach().numpy(), rtol=1e-5, atol=1e-5)
    error = head.error(weights, entropy=entropy, guide=guide if guided else None, guidance=guidance)
    np.testing.assert_allclose(error, outputs.grad.numpy(), rtol=1e-4, atol=1e-5)
    if kind == "gaussian":
        np.testing.assert_allclose(gradient, stds[0].grad.numpy(), rtol=1e-4, atol=1e-5)


def test_logits_far_apart_stay_finite():
    head = CategoricalHead()
    outputs = np.array([[1e30, -1e30], [0.0, 1e4]], np.float32)
    log_p = head.log_probabilities(outputs, np.array([0, 0]))
    assert log_p[0] == 0.0
    assert log_p[1] == -1e4
    error = head.error(np.ones(2, np.float32), entropy=0.0, guide=None, guidance=0.0)
    np.testing.assert_array_equal(error, [[0.0, 0.0], [1.0, -1.0]])
