from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from privfedrl.errors import ConfigurationError
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.training.networks import TorchMlp, log_probabilities


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
@pytest.mark.parametrize("hidden", [(), (4,), (7, 6)])
def test_torch_and_numpy_policies_agree(kind, hidden, make_network):
    network = make_network(kind, hidden=hidden, seed=3)
    observations = np.random.default_rng(1).normal(size=(11, 5)).astype(np.float32)
    expected = network.policy.bind(network.flat()).forward(observations)
    outputs, log_std = network(torch.from_numpy(observations))
    assert np.allclose(outputs.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    if log_std is not None:
        assert np.allclose(log_std.detach().numpy(), network.flat()[-3:], atol=1e-7)


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
    log_p, entropy = log_probabilities(outputs, actions)
    assert torch.allclose(log_p, reference.log_prob(actions), atol=1e-6)
    assert torch.allclose(entropy, reference.entropy(), atol=1e-6)
    outputs = make_network("gaussian")(observations)
    normal = torch.distributions.Normal(outputs[0], outputs[1].exp())
    continuous = torch.from_numpy(rng.normal(size=(2, 4, 3)).astype(np.float32))
    log_p, entropy = log_probabilities(outputs, continuous)
    assert torch.allclose(log_p, normal.log_prob(continuous).sum(-1), atol=1e-5)
    assert torch.allclose(entropy, normal.entropy().sum(-1), atol=1e-5)


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
