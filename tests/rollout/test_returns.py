"""Returns and whitening: closed forms, and no row touches another."""

from __future__ import annotations

import numpy as np
import pytest

from privfedrl.errors import ConfigurationError
from privfedrl.rollout.returns import returns_to_go, whiten_per_trajectory


def mask_of(lengths, steps):
    return np.arange(steps) < np.array(lengths)[:, None]


def test_unit_rewards_give_the_geometric_sum():
    mask = mask_of([4, 2, 0], 4)
    found = returns_to_go(np.ones((3, 4), np.float32), mask, gamma=0.5)
    np.testing.assert_array_equal(found, [[1.875, 1.75, 1.5, 1], [1.5, 1, 0, 0], [0] * 4])


def test_the_recursion_is_exact():
    rng = np.random.default_rng(0)
    rewards, mask = rng.normal(size=(6, 30)), mask_of([30, 1, 7, 29, 12, 2], 30)
    found = returns_to_go(rewards, mask, gamma=0.97)
    for i, length in enumerate(mask.sum(axis=1)):
        following = 0.0
        for t in range(length - 1, -1, -1):
            following = rewards[i, t] + 0.97 * following
            assert found[i, t] == following
        assert not found[i, length:].any()


def test_only_truncated_rows_continue_beyond_their_end():
    mask, rewards = mask_of([3, 2, 2], 3), np.ones((3, 3))
    truncated = np.array([True, True, False])
    constant = returns_to_go(rewards, mask, gamma=0.5, truncated=truncated, continuation=8.0)
    np.testing.assert_array_equal(constant, [[2.75, 3.5, 5], [3.5, 5, 0], [1.5, 1, 0]])
    own = returns_to_go(
        rewards, mask, gamma=0.5, truncated=truncated, continuation=np.array([8.0, 0.0, 99.0])
    )
    np.testing.assert_array_equal(own, [[2.75, 3.5, 5], [1.5, 1, 0], [1.5, 1, 0]])
    plain = returns_to_go(rewards, mask, gamma=0.5, truncated=truncated)
    np.testing.assert_array_equal(plain, returns_to_go(rewards, mask, gamma=0.5))


def test_entries_outside_the_mask_are_never_read():
    mask = mask_of([3, 1], 4)
    rewards = np.where(mask, 1.0, np.nan)
    assert np.isfinite(returns_to_go(rewards, mask, gamma=0.9)).all()
    assert np.isfinite(whiten_per_trajectory(rewards, mask)).all()


def test_whitened_rows_have_mean_zero_and_deviation_one():
    rng = np.random.default_rng(1)
    mask = mask_of([50, 20, 2], 50)
    white = whiten_per_trajectory(rng.normal(5, 3, size=(3, 50)) * 1e4, mask)
    for row, happened in zip(white, mask, strict=True):
        np.testing.assert_allclose(row[happened].mean(), 0, atol=1e-12)
        np.testing.assert_allclose(row[happened].std(), 1, rtol=1e-12)
        assert not row[~happened].any()


@pytest.mark.parametrize("value", [0.0, 0.1, -1e9, 1e-300, 1e15 / 3])
def test_constant_and_single_step_rows_become_zero(value):
    mask = mask_of([7, 1, 0], 7)
    assert not whiten_per_trajectory(np.full((3, 7), value), mask).any()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda r, m: returns_to_go(r[:1], m, gamma=1), "rewards"),
        (lambda r, m: returns_to_go(r, m.astype(int), gamma=1), "mask"),
        (lambda r, m: returns_to_go(r, m, gamma=1.1), "gamma"),
        (lambda r, m: returns_to_go(r, m, gamma=np.nan), "gamma"),
        (lambda r, m: returns_to_go(r, m, gamma=1, continuation=1.0), "truncated"),
        (lambda r, m: returns_to_go(r, m, gamma=1, continuation=np.ones(3)), "continuation"),
        (lambda r, m: returns_to_go(r, m, gamma=1, continuation=np.inf), "continuation"),
        (lambda r, m: returns_to_go(r, m, gamma=1, truncated=np.ones(3, bool)), "truncated"),
        (lambda r, m: whiten_per_trajectory(r, m[:, :1]), "weights"),
        (lambda r, m: whiten_per_trajectory(r, m, epsilon=0), "epsilon"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(call, named):
    with pytest.raises(ConfigurationError, match=named):
        call(np.ones((2, 3)), np.ones((2, 3), dtype=bool))


def test_a_batch_without_steps_gives_an_empty_result():
    empty, mask = np.zeros((2, 0)), np.zeros((2, 0), dtype=bool)
    assert returns_to_go(empty, mask, gamma=1).shape == (2, 0)
    assert whiten_per_trajectory(empty, mask).shape == (2, 0)
