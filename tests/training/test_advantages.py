"""Advantages against a table made by hand, against their definition, and row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from privfedrl.training.advantages import generalised_advantages, surrogate_weights

# gamma 1/2, lambda 1/2, so gamma lambda = 1/4
REWARDS = np.array([[1.0, 2.0, 4.0]] * 5)
VALUES = np.array([[8.0, 4.0, 2.0]] * 5)
MASK = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=np.bool_)


def table(ended: list[bool], *, gamma: float = 0.5, lam: float = 0.5):
    return generalised_advantages(
        REWARDS, VALUES, MASK, np.array(ended, dtype=np.bool_), gamma=gamma, lam=lam
    )


def test_trajectories_that_end_by_themselves_match_the_table():
    # delta_t = r_t + V_{t+1} / 2 - V_t: 1 + 2 - 8 = -5, 2 + 1 - 4 = -1, 4 - 2 = 2;
    # cut short by their mask they end earlier: 2 - 4 = -2, 1 - 8 = -7
    found, known = table([True] * 5)
    assert known.tolist() == MASK.tolist()
    expected = [
        [-5 + (-1 + 2 / 4) / 4, -1 + 2 / 4, 2],
        [-5 + (-1 + 2 / 4) / 4, -1 + 2 / 4, 2],
        [-5 - 2 / 4, -2, 0],
        [-7, 0, 0],
        [0, 0, 0],
    ]
    np.testing.assert_array_equal(found, expected)


def test_cut_trajectories_bootstrap_from_the_last_state_that_was_seen():
    """Its value stands for all that follows; it has no advantage itself, nor has its reward."""
    found, known = table([True, False, False, False, False])
    assert known[1:].tolist() == [[True, True, False], [True, False, False], *[[False] * 3] * 2]
    expected = [[-5 + (-1 + 2 / 4) / 4, -1 + 2 / 4, 2], [-5 - 1 / 4, -1, 0], [-5, 0, 0]]
    np.testing.assert_array_equal(found, [*expected, [0, 0, 0], [0, 0, 0]])


def test_without_a_trace_the_advantage_is_the_one_step_error():
    found, _ = table([True] * 5, lam=0.0)
    np.testing.assert_array_equal(found[:3], [[-5, -1, 2], [-5, -1, 2], [-5, -2, 0]])


def test_no_steps_give_no_advantages():
    empty = np.zeros((2, 0))
    found, known = generalised_advantages(
        empty, empty, np.zeros((2, 0), dtype=np.bool_), np.zeros(2, dtype=np.bool_), gamma=1, lam=1
    )
    assert found.shape == known.shape == (2, 0)


@st.composite
def worlds(draw):
    steps = draw(st.integers(1, 6))
    lengths = np.array(draw(st.lists(st.integers(0, steps), min_size=1, max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mask = np.arange(steps) < lengths[:, None]
    rewards, values = rng.normal(size=(2, *mask.shape)) * 10.0 ** rng.integers(-3, 4)
    return rewards, values, mask, rng.random(len(mask)) < 0.5


@given(world=worlds(), gamma=st.floats(0, 1), lam=st.floats(0, 1))
def test_the_recursion_is_the_sum_of_its_definition(world, gamma, lam):
    """A_t = sum_k (gamma lambda)^k delta_{t+k}, term by term for every trajectory and step."""
    rewards, values, mask, terminated = world
    found, known = generalised_advantages(rewards, values, mask, terminated, gamma=gamma, lam=lam)
    for i, length in enumerate(mask.sum(axis=1)):
        last = length if terminated[i] else length - 1
        value = [*values[i, :length], 0.0]
        deltas = [rewards[i, t] + gamma * value[t + 1] - value[t] for t in range(max(last, 0))]
        sums = [
            sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:]))
            for t in range(len(deltas))
        ]
        assert known[i].sum() == len(sums)
        np.testing.assert_allclose(found[i, : len(sums)], sums, rtol=1e-9, atol=1e-9)
        assert not found[i, len(sums) :].any()


@given(world=worlds(), data=st.data())
def test_a_row_depends_on_its_own_trajectory_and_not_on_padding(world, data):
    rewards, values, mask, terminated = world
    i = data.draw(st.integers(0, len(mask) - 1))
    pad = data.draw(st.integers(0, 3))
    together, _ = generalised_advantages(rewards, values, mask, terminated, gamma=0.9, lam=0.8)

    def padded(array):
        return np.pad(array[i : i + 1], ((0, 0), (0, pad)))

    # what is masked is not read, whatever stands there
    nonsense = np.where(mask, rewards, np.nan), np.where(mask, values, np.inf)
    alone, _ = generalised_advantages(
        *(padded(part) for part in nonsense),
        padded(mask),
        terminated[i : i + 1],
        gamma=0.9,
        lam=0.8,
    )
    assert together[i].tobytes() == alone[0, : mask.shape[1]].tobytes()
    assert not alone[0, mask.shape[1] :].any()


@given(
    ratio=st.floats(0.01, 5.0), advantage=st.floats(-10, 10), clip_range=st.sampled_from([0.1, 0.2])
)
def test_the_weight_is_the_derivative_of_the_clipped_surrogate(ratio, advantage, clip_range):
    """By autograd of min(rho A, clip(rho) A) through log pi, where rho = pi / pi_old."""
    log_p = torch.tensor(np.log(ratio), dtype=torch.float64, requires_grad=True)
    rho = log_p.exp()
    # at a kink either slope is a derivative
    if min(abs(ratio - 1 + clip_range), abs(ratio - 1 - clip_range)) < 1e-9:
        return
    low, high = 1.0 - clip_range, 1.0 + clip_range
    torch.minimum(rho * advantage, rho.clamp(low, high) * advantage).backward()
    found = surrogate_weights(np.array([rho.item()]), np.array([advantage]), clip_range)
    # torch splits the slope where both terms are equal, which is everywhere for no advantage
    expected = float(log_p.grad)
    assert found[0] == pytest.approx(expected, rel=1e-12, abs=1e-12)
