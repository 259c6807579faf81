"""Policies with a memory, rolled out in numpy: torch's GRU, row by row, from a blank start."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from privfedrl.envs import EnvSpec, heterogeneous, make_vector_env
from privfedrl.errors import ConfigurationError
from privfedrl.rollout import MlpPolicy, collect, collect_fleet
from privfedrl.rollout.policies import BoundPolicy

POLICY = MlpPolicy(
    observation_size=4,
    hidden=(6,),
    action="categorical",
    action_size=2,
    critic_hidden=(3,),
    recurrent=5,
)
GAUSSIAN = MlpPolicy(
    observation_size=4, hidden=(), action="gaussian", action_size=2, recurrent=1, bounds=(-1.0, 1.0)
)


def parameters(policy: MlpPolicy, seed: int = 0, scale: float = 0.7) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=policy.num_parameters) * scale


def outputs(bound: BoundPolicy, observations: np.ndarray) -> np.ndarray:
    """[n, T, o] for observations [n, T, obs], from the start."""
    bound.begin(len(observations))
    steps = observations.shape[1]
    return np.stack([bound.forward(observations[:, t]).copy() for t in range(steps)], axis=1)


def torch_gru(policy: MlpPolicy, flat: np.ndarray) -> tuple[torch.nn.GRU, int]:
    """torch's own GRU with the first parameters of ``flat``, and how many it took."""
    gru = torch.nn.GRU(policy.observation_size, policy.recurrent, batch_first=True).double()
    names, start = ("weight_ih_l0", "bias_ih_l0", "weight_hh_l0", "bias_hh_l0"), 0
    for name in names:
        target = getattr(gru, name)
        values = flat[start : start + target.numel()].reshape(tuple(target.shape))
        target.data = torch.from_numpy(values)
        start += target.numel()
    return gru, start


@pytest.mark.parametrize("policy", [POLICY, GAUSSIAN])
def test_the_memory_is_torchs_gru_and_the_layers_follow_it(policy: MlpPolicy) -> None:
    flat = parameters(policy)
    seen = np.random.default_rng(1).normal(size=(7, 20, 4)).astype(np.float32)
    gru, start = torch_gru(policy, flat)
    with torch.no_grad():
        hidden = gru(torch.from_numpy(seen).double())[0].numpy()
    for index, (out, into) in enumerate(policy.layers):
        weights = flat[start : start + out * into].reshape(out, into)
        bias = flat[start + out * into : start + out * into + out]
        hidden = (np.tanh(hidden) if index else hidden) @ weights.T + bias
        start += out * into + out
    np.testing.assert_allclose(outputs(policy.bind(flat), seen), hidden, atol=1e-5)
    log_std = policy.action_size if policy.action == "gaussian" else 0
    assert start + log_std == policy.actor_parameters


def test_sizes_of_the_flat_vector() -> None:
    memory = 15 * 4 + 15 + 15 * 5 + 15
    actor = 6 * 5 + 6 + 2 * 6 + 2
    critic = 3 * 4 + 3 + 3 + 1  # on observations
    assert POLICY.actor_parameters == memory + actor
    assert POLICY.num_parameters == memory + actor + critic
    assert replace(POLICY, recurrent=0).num_parameters == 6 * 4 + 6 + 2 * 6 + 2 + critic
    first = POLICY.initial_parameters(np.random.default_rng(0))
    assert first.shape == (POLICY.num_parameters,)
    gate = first[:20].reshape(5, 4)
    np.testing.assert_allclose(gate.T @ gate, np.eye(4), atol=1e-12)
    assert not first[60:75].any()  # biases


def test_a_row_keeps_every_bit_whatever_else_is_in_the_block() -> None:
    bound = POLICY.bind(parameters(POLICY))
    seen = np.random.default_rng(2).normal(size=(33, 12, 4)).astype(np.float32)
    whole = outputs(bound, seen)
    for rows in ([4], [0, 32], list(range(17)), [31, 3, 8]):
        np.testing.assert_array_equal(outputs(bound, seen[rows]), whole[rows])
    poisoned = seen.copy()
    poisoned[1::2] = np.nan
    np.testing.assert_array_equal(outputs(bound, poisoned)[::2], whole[::2])


def test_selected_rows_go_on_with_their_own_memories() -> None:
    bound = POLICY.bind(parameters(POLICY))
    seen = np.random.default_rng(3).normal(size=(6, 9, 4)).astype(np.float32)
    whole = outputs(bound, seen)
    for kept in ([1, 4, 5], [2], [0, 1, 2, 3, 4]):
        bound.begin(6)
        for t in range(4):
            bound.forward(seen[:, t])
        bound.select(np.array(kept))
        for t in range(4, 9):
            np.testing.assert_array_equal(bound.forward(seen[kept, t]), whole[kept, t])


def test_a_trajectory_starts_without_memory() -> None:
    bound = POLICY.bind(parameters(POLICY))
    seen = np.random.default_rng(4).normal(size=(3, 5, 4)).astype(np.float32)
    once = outputs(bound, seen)
    np.testing.assert_array_equal(outputs(bound, seen), once)
    assert np.abs(once[:, 1:] - outputs(bound, seen[:, 1:])).max() > 1e-3  # it remembers step 0


def test_huge_observations_do_not_overflow() -> None:
    bound = POLICY.bind(np.full(POLICY.num_parameters, 1e9))
    bound.begin(2)
    with np.errstate(all="raise", under="ignore"):
        for _ in range(3):
            assert np.isfinite(bound.forward(np.full((2, 4), 1e20, dtype=np.float32))).all()


@pytest.mark.parametrize("begin", [None, 3])
def test_a_block_of_another_size_is_not_taken_for_a_new_start(begin: int | None) -> None:
    bound = POLICY.bind(parameters(POLICY))
    if begin is not None:
        bound.begin(begin)
    with pytest.raises(ConfigurationError, match="began with"):
        bound.forward(np.zeros((2, 4), dtype=np.float32))


@pytest.mark.parametrize("recurrent", [-1, 1.0, True])
def test_units_are_counted(recurrent: object) -> None:
    with pytest.raises(ConfigurationError, match="recurrent"):
        replace(POLICY, recurrent=recurrent)


def test_q_values_have_no_memory() -> None:
    with pytest.raises(ConfigurationError, match="recurrent must be 0 for action 'q-values'"):
        MlpPolicy(observation_size=4, hidden=(), action="q-values", action_size=2, recurrent=3)


# --- rollouts -----------------------------------------------------------------------------------


def test_collected_actions_are_those_of_each_row_alone() -> None:
    """Rows end at different steps and are dropped from the block; the memories of others stay."""
    flat = parameters(POLICY, 17, 1.0)
    env = make_vector_env(EnvSpec("CartPole-v1"), 40)
    batch = collect(POLICY, flat, env, horizon=100, rng=np.random.default_rng(0))
    assert batch.lengths.max() > 40  # beyond the first 32 steps, where rows are dropped
    assert len(np.unique(batch.lengths)) > 10
    bound = POLICY.bind(flat)
    rng = np.random.default_rng(0)
    make_vector_env(EnvSpec("CartPole-v1"), 40).reset(rng)
    draws = []
    while len(draws) < batch.lengths.max():
        draws += list(rng.random((min(32, 100 - len(draws)), 40), dtype=np.float32))
    for row in range(40):
        bound.begin(1)
        for t in range(batch.lengths[row]):
            logits = bound.forward(batch.observations[row : row + 1, t])
            assert bound.sample(logits, draws[t][row : row + 1])[0] == batch.actions[row, t]


def test_a_fleet_in_one_block_gives_what_each_agent_gives_alone() -> None:
    fleet = heterogeneous("CartPole-v1", level=0.5, agents=3, seed=0)
    flat = parameters(POLICY, 17, 1.0)
    together = collect_fleet(
        POLICY, flat, fleet, 8, horizon=70, rngs=[np.random.default_rng(k) for k in range(3)]
    )
    for k, spec in enumerate(fleet):
        env = make_vector_env(spec, 8)
        alone = collect(POLICY, flat, env, horizon=70, rng=np.random.default_rng(k))
        for name in ("observations", "actions", "rewards", "mask"):
            np.testing.assert_array_equal(getattr(together[k], name), getattr(alone, name))
