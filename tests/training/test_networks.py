from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from privfedrl.errors import ConfigurationError
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.training.networks import (
    TorchMlp,
    divergences,
    entropies,
    log_probabilities,
    scores,
)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
@pytest.mark.parametrize("hidden", [(), (4,), (7, 6)])
def test_torch_and_numpy_policies_agree(kind, hidden, make_network):
    network = make_network(kind, hidden=hidden, seed=3)
    observations = np.random.default_rng(1).normal(size=(11, 5)).astype(np.float32)
    expected = network.policy.bind(network.flat()).forward(observations)
    outputs, log_std, _value = network(torch.from_numpy(observations))
    assert np.allclose(outputs.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    if log_std is not None:
        assert np.allclose(
            log_std.detach().numpy(),
            network.flat()[network.policy.actor_parameters - 3 : network.policy.actor_parameters],
            atol=1e-7,
        )


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_the_flat_vector_survives_a_round_trip(kind, make_network):
    network = make_network(kind, dtype=torch.float64)
    vector = np.random.default_rng(2).normal(size=network.num_parameters)
    network.load(vector)
    assert np.array_equal(network.flat(), vector)
    vector[:] = 0.0
    assert network.flat().any()


def test_log_probabilities_match_torch_distributions(make_network):
    rng = np.random.default_rng(0)
    observations = torch.from_numpy(rng.normal(size=(2, 4, 5)).astype(np.float32))
    outputs = make_network("categorical")(observations)
    reference = torch.distributions.Categorical(logits=outputs[0])
    actions = torch.from_numpy(rng.integers(0, 3, (2, 4)))
    log_p, entropy = log_probabilities(outputs, actions), entropies(outputs)
    assert torch.allclose(log_p, reference.log_prob(actions), atol=1e-6)
    assert torch.allclose(entropy, reference.entropy(), atol=1e-6)
    outputs = make_network("gaussian")(observations)
    normal = torch.distributions.Normal(outputs[0], outputs[1].exp())
    continuous = torch.from_numpy(rng.normal(size=(2, 4, 3)).astype(np.float32))
    log_p, entropy = log_probabilities(outputs, continuous), entropies(outputs)
    assert torch.allclose(log_p, normal.log_prob(continuous).sum(-1), atol=1e-5)
    assert torch.allclose(entropy, normal.entropy().sum(-1), atol=1e-5)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_divergences_match_torch_distributions(kind, make_network):
    observations = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 4, 5)))
    near, far = (make_network(kind, seed=seed, dtype=torch.float64) for seed in (1, 2))
    outputs, reference = near(observations), far(observations)
    if kind == "categorical":
        p, q = (torch.distributions.Categorical(logits=x.head) for x in (reference, outputs))
        expected = torch.distributions.kl_divergence(p, q)
    else:
        p, q = (torch.distributions.Normal(x.head, x.log_std.exp()) for x in (reference, outputs))
        expected = torch.distributions.kl_divergence(p, q).sum(-1)
    assert torch.allclose(divergences(reference, outputs), expected, atol=1e-12)
    assert torch.allclose(divergences(outputs, outputs), torch.zeros(2, 4).double(), atol=1e-12)


def test_the_score_of_a_q_head_is_the_value_of_the_action(make_network):
    outputs = make_network("q-values")(torch.ones(1, 2, 5))
    actions = torch.tensor([[2, 0]])
    expected = torch.stack([outputs.head[0, 0, 2], outputs.head[0, 1, 0]])[None]
    assert torch.equal(scores(outputs, actions, q_values=True), expected)


def test_the_critic_is_a_network_of_its_own_after_the_actor(make_network):
    network = make_network("gaussian", critic=(4,), dtype=torch.float64)
    policy, vector = network.policy, network.flat()
    assert policy.num_parameters == policy.actor_parameters + 4 * 5 + 4 + 4 + 1
    observations = np.random.default_rng(3).normal(size=(6, 5))
    weights = vector[policy.actor_parameters :]
    first, bias = weights[:20].reshape(4, 5), weights[20:24]
    expected = np.tanh(observations @ first.T + bias) @ weights[24:28] + weights[28]
    assert np.allclose(network(torch.from_numpy(observations)).value.detach().numpy(), expected)
    changed = vector.copy()
    changed[policy.actor_parameters :] += 1.0
    before = network(torch.from_numpy(observations)).head
    network.load(changed)
    assert torch.equal(network(torch.from_numpy(observations)).head, before)


@pytest.mark.parametrize("vector", [np.zeros(3), np.zeros((2, 2)), np.zeros(3, dtype=np.int64)])
def test_a_vector_of_another_shape_or_type_is_refused(vector):
    policy = MlpPolicy(observation_size=1, hidden=(), action="categorical", action_size=2)
    with pytest.raises(ConfigurationError, match="parameters"):
        TorchMlp(policy, vector)


def test_building_a_network_draws_nothing_from_torchs_global_generator(make_network):
    before = torch.random.get_rng_state()
    network = make_network()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(math.isfinite(x) for x in network.flat())
