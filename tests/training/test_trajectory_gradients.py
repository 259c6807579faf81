from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from privfedrl.errors import ConfigurationError
from privfedrl.training import trajectory_gradients
from privfedrl.training.trajectory_gradients import (
    Guidance,
    Terms,
    fused,
    hooks,
    loop,
    objective,
    prepare,
)

KINDS = ["categorical", "gaussian"]


def relative_error(found, expected) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", [(), (4,), (7, 6), (3, 8, 5)])
@pytest.mark.parametrize("entropy_weight", [0.0, 0.3])
@pytest.mark.parametrize("lengths", [[9, 3, 0, 1, 5, 9], [4], [9] * 3])
def test_all_three_paths_agree(kind, hidden, entropy_weight, lengths, make_batch, make_network):
    network, batch = make_network(kind, hidden=hidden), make_batch(lengths, kind=kind)
    weights = np.random.default_rng(4).normal(size=batch.mask.shape).astype(np.float32)
    oracle = loop(network, batch, weights, Terms(entropy_weight))
    assert oracle.shape == (len(lengths), network.num_parameters)
    assert relative_error(fused(network, batch, weights, Terms(entropy_weight)), oracle) < 1e-5
    assert relative_error(hooks(network, batch, weights, Terms(entropy_weight)), oracle) < 1e-5


def every_term(network, batch, make_network, *, reference_seed=9) -> Terms:
    """Everything that an objective may hold, for this head."""
    values = None
    if network.critic is not None:
        values = np.random.default_rng(5).normal(size=batch.mask.shape).astype(np.float32)
    if network.policy.action == "q-values":
        return Terms(values=values)
    hidden = network.policy.hidden
    other = make_network(network.policy.action, hidden=hidden, seed=reference_seed)
    return Terms(entropy_weight=0.2, values=values, guidance=Guidance(other, 0.4))


@pytest.mark.parametrize("kind", [*KINDS, "q-values"])
@pytest.mark.parametrize("critic", [None, (), (4,), (3, 6)])
def test_all_three_paths_agree_on_critics_guidance_and_q_values(
    kind, critic, make_batch, make_network
):
    network, batch = make_network(kind, critic=critic), make_batch([9, 3, 0, 5], kind=kind)
    weights = np.random.default_rng(4).normal(size=batch.mask.shape).astype(np.float32)
    terms = every_term(network, batch, make_network)
    oracle = loop(network, batch, weights, terms)
    assert relative_error(fused(network, batch, weights, terms), oracle) < 1e-5
    assert relative_error(hooks(network, batch, weights, terms), oracle) < 1e-5
    assert not oracle[2].any()
    actor = network.policy.actor_parameters
    assert oracle[0, actor:].any() if critic is not None else oracle.shape[1] == actor
    assert not fused(network, batch, 0 * weights, Terms(values=terms.values))[:, :actor].any()


def test_terms_that_do_not_fit_are_refused(make_batch, make_network):
    batch, network = make_batch([4, 9]), make_network()
    weights = np.ones(batch.mask.shape, dtype=np.float32)
    with pytest.raises(ConfigurationError, match="need a policy with a critic"):
        fused(network, batch, weights, Terms(values=weights))
    with pytest.raises(ConfigurationError, match="values must have shape"):
        fused(make_network(critic=()), batch, weights, Terms(values=weights[:1]))
    with pytest.raises(ConfigurationError, match="entropy_weight must be 0 for Q values"):
        fused(make_network("q-values"), batch, weights, Terms(entropy_weight=0.1))
    with pytest.raises(ConfigurationError, match="guidance weight must be finite"):
        fused(network, batch, weights, Terms(guidance=Guidance(network, float("nan"))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile_steps", [1, 20, 10_000])
def test_tiling_does_not_change_the_rows(kind, tile_steps, make_batch, make_network, monkeypatch):
    network, batch = make_network(kind), make_batch([9, 2, 7, 0, 4], kind=kind)
    weights = np.ones(batch.mask.shape, dtype=np.float32)
    monkeypatch.setattr(trajectory_gradients, "TILE_STEPS", tile_steps)
    found = fused(network, batch, weights, Terms(0.1))
    assert relative_error(found, loop(network, batch, weights, Terms(0.1))) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_derivative_of_the_objective(kind, make_batch, make_network):
    """Central differences of L_i itself, in float64, independent of autograd."""
    network = make_network(kind, hidden=(3,), dtype=torch.float64)
    batch = make_batch([5, 2], kind=kind)
    weights = np.random.default_rng(1).normal(size=batch.mask.shape).astype(np.float32)
    steps = prepare(network, batch, weights, Terms(0.2))
    rows = fused(network, batch, weights, Terms(0.2))
    theta, h = network.flat(), 1e-6
    for j in range(network.num_parameters):
        values = []
        for sign in (1.0, -1.0):
            network.load(theta + sign * h * np.eye(len(theta))[j])
            with torch.no_grad():
                values.append(
                    float(objective(network(steps.observations), steps, network.policy.action))
                )
        network.load(theta)
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(float(rows[:, j].sum()), abs=1e-7)


@pytest.mark.parametrize("gradient", [fused, hooks, loop])
@pytest.mark.parametrize("kind", KINDS)
def test_masked_steps_contribute_nothing_even_if_they_hold_nonsense(
    gradient, kind, make_batch, make_network
):
    network, batch = make_network(kind), make_batch([4, 0, 9], kind=kind)
    weights = np.ones(batch.mask.shape, dtype=np.float32)
    expected = gradient(network, batch, weights, Terms(0.1))
    beyond = ~batch.mask
    observations, actions = batch.observations.copy(), batch.actions.copy()
    observations[beyond] = np.nan
    actions[beyond] = 99 if kind == "categorical" else np.inf
    weights[beyond] = np.inf
    found = gradient(
        network,
        replace(batch, observations=observations, actions=actions),
        weights,
        Terms(0.1),
    )
    assert torch.equal(found, expected)
    assert not expected[1].any()


@pytest.mark.parametrize("gradient", [fused, hooks, loop])
@pytest.mark.parametrize(("lengths", "horizon"), [([], 9), ([0, 0], 1)])
def test_an_empty_batch_gives_zero_rows(gradient, lengths, horizon, make_batch, make_network):
    network, batch = make_network(), make_batch(lengths, horizon=horizon)
    rows = gradient(network, batch, np.zeros(batch.mask.shape, dtype=np.float32), Terms(0.1))
    assert rows.shape == (len(lengths), network.num_parameters)
    assert not rows.any()


@pytest.mark.parametrize("gradient", [fused, hooks])
def test_a_horizon_of_zero_steps_gives_zero_rows(gradient, make_batch, make_network):
    network, batch = make_network(), make_batch([0, 0], horizon=0)
    rows = gradient(network, batch, np.zeros((2, 0), dtype=np.float32), Terms())
    assert rows.shape == (2, network.num_parameters)
    assert not rows.any()


@pytest.mark.parametrize("bad", [-1, 3, 2**40])
def test_an_action_that_does_not_exist_spoils_its_own_row_only(bad, make_batch, make_network):
    network, batch = make_network(), make_batch([4, 5])
    actions = batch.actions.copy()
    actions[0, 1] = bad
    weights = np.ones(batch.mask.shape, dtype=np.float32)
    rows = fused(network, replace(batch, actions=actions), weights, Terms(0.0))
    assert rows[0].isnan().any()
    assert torch.equal(rows[1], fused(network, batch, weights, Terms(0.0))[1])


def test_hooks_leave_the_network_as_it_was(make_batch, make_network):
    network, batch = make_network("gaussian"), make_batch([4, 5], kind="gaussian")
    before = network.flat()
    hooks(network, batch, np.ones(batch.mask.shape, dtype=np.float32), Terms(0.0))
    assert np.array_equal(network.flat(), before)
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in network.parameters())


def test_a_batch_that_does_not_fit_the_network_is_refused(make_batch, make_network):
    batch = make_batch([4, 5])
    weights = np.ones(batch.mask.shape, dtype=np.float32)
    with pytest.raises(ConfigurationError, match="actions"):
        fused(make_network("gaussian"), batch, weights, Terms(0.0))
    with pytest.raises(ConfigurationError, match="weights"):
        fused(make_network(), batch, weights[:1], Terms(0.0))
    with pytest.raises(ConfigurationError, match="observations"):
        fused(
            make_network(), replace(batch, observations=batch.observations[..., :4]), weights, 0.0
        )
    for entropy_weight in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="entropy_weight"):
            fused(make_network(), batch, weights, Terms(entropy_weight))
