"""MlpPolicy: layout, forward pass, sampling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedrl.errors import ConfigurationError
from privfedrl.rollout.policies import MlpPolicy

SHAPES = [
    MlpPolicy(observation_size=4, hidden=(32,), action="categorical", action_size=2),
    MlpPolicy(observation_size=8, hidden=(16, 16), action="categorical", action_size=4),
    MlpPolicy(observation_size=3, hidden=(), action="categorical", action_size=3),
    MlpPolicy(observation_size=3, hidden=(8,), action="gaussian", action_size=2),
]


def parameters_of(policy, seed=0):
    vector = np.random.default_rng(seed).normal(size=policy.num_parameters) * 0.7
    return vector.astype(np.float32)


def reference_forward(policy, flat, observations):
    """The documented layout, read in float64."""
    x, start = observations.astype(np.float64), 0
    for index, (out, into) in enumerate(policy.layers):
        weights = flat[start : start + out * into].reshape(out, into).astype(np.float64)
        bias = flat[start + out * into : start + out * into + out]
        start += out * into + out
        x = x @ weights.T + bias
        if index < len(policy.layers) - 1:
            x = np.tanh(x)
    return x


@pytest.mark.parametrize("policy", SHAPES)
@pytest.mark.parametrize("rows", [1, 2, 33])
def test_forward_follows_the_documented_layout(policy, rows):
    flat = parameters_of(policy)
    observations = np.random.default_rng(1).normal(size=(rows, policy.observation_size))
    outputs = policy.bind(flat).forward(observations.astype(np.float32))
    expected = reference_forward(policy, flat, observations.astype(np.float32))
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("policy", SHAPES)
def test_a_row_gets_the_same_bits_in_every_block(policy):
    observations = np.random.default_rng(1).normal(size=(300, policy.observation_size))
    observations = observations.astype(np.float32)
    bound = policy.bind(parameters_of(policy))
    whole = bound.forward(observations).copy()
    for start, rows in ((0, 1), (7, 1), (3, 2), (5, 3), (0, 16), (11, 32), (250, 50), (1, 299)):
        part = bound.forward(observations[start : start + rows])
        np.testing.assert_array_equal(part, whole[start : start + rows])


def test_number_of_parameters_counts_weights_biases_and_log_std():
    assert [policy.num_parameters for policy in SHAPES] == [226, 484, 12, 52]


@pytest.mark.parametrize("policy", SHAPES)
def test_initial_weights_are_orthogonal_and_the_last_layer_small(policy):
    flat, start = policy.initial_parameters(np.random.default_rng(0)), 0
    assert flat.dtype == np.float64
    for index, (out, into) in enumerate(policy.layers):
        weights = flat[start : start + out * into].reshape(out, into)
        gain = 0.01 if index == len(policy.layers) - 1 else np.sqrt(2)
        small = weights @ weights.T if out <= into else weights.T @ weights
        np.testing.assert_allclose(small, gain**2 * np.eye(min(out, into)), atol=1e-12)
        assert not flat[start + out * into : start + out * into + out].any()
        start += out * into + out
    assert not flat[start:].any()
    again = policy.initial_parameters(np.random.default_rng(0))
    np.testing.assert_array_equal(flat, again)


@pytest.mark.parametrize("policy", SHAPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e10])
def test_parameters_that_are_not_finite_are_refused_at_every_place(policy, bad):
    for place in (0, policy.num_parameters // 2, policy.num_parameters - 1):
        flat = parameters_of(policy).astype(np.float64)
        flat[place] = bad
        with pytest.raises(ConfigurationError, match="parameters must be finite"):
            policy.bind(flat)


@pytest.mark.parametrize(
    "flat", [np.zeros(225), np.zeros((226, 1)), np.zeros(226, np.int64), np.zeros(0), 3.0]
)
def test_parameters_of_another_shape_or_type_are_refused(cartpole_policy, flat):
    with pytest.raises(ConfigurationError, match=r"shape \(226,\)"):
        cartpole_policy.bind(flat)


def test_a_log_std_that_overflows_is_refused():
    flat = np.zeros(52)
    flat[-1] = 81.0
    with pytest.raises(ConfigurationError, match="log_std"):
        SHAPES[3].bind(flat)


@pytest.mark.parametrize(
    "change",
    [
        {"observation_size": 0},
        {"hidden": (0,)},
        {"hidden": (4.0,)},
        {"action_size": 1},
        {"action": "beta"},
        {"action_size": True},
    ],
)
def test_impossible_shapes_are_refused(change):
    shape = {"observation_size": 4, "hidden": (8,), "action": "categorical", "action_size": 2}
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        MlpPolicy(**(shape | change))


@pytest.mark.parametrize("actions", [2, 3, 5])
def test_sampling_inverts_the_cumulative_distribution(actions):
    policy = MlpPolicy(observation_size=1, hidden=(), action="categorical", action_size=actions)
    bound = policy.bind(np.zeros(policy.num_parameters))
    logits = np.random.default_rng(0).normal(size=actions).astype(np.float32)
    odds = np.exp(logits.astype(np.float64))
    boundaries = np.cumsum(odds / odds.sum())[:-1]
    uniforms = np.linspace(0, 1, 2001, endpoint=False, dtype=np.float32)
    clear = np.abs(uniforms[:, None] - boundaries).min(axis=1) > 1e-6
    sampled = bound.sample(np.tile(logits, (2001, 1)), uniforms).astype(np.int64)
    expected = (uniforms[:, None] >= boundaries).sum(axis=1)
    np.testing.assert_array_equal(sampled[clear], expected[clear])
    assert set(sampled) == set(range(actions))


@pytest.mark.parametrize("actions", [2, 4])
def test_sampling_is_safe_for_extreme_logits_and_uniforms(actions):
    policy = MlpPolicy(observation_size=1, hidden=(), action="categorical", action_size=actions)
    bound = policy.bind(np.zeros(policy.num_parameters))
    uniforms = np.float32([0.0, 0.5, 1 - 2**-24])
    for sure in range(actions):
        logits = np.full((3, actions), -3e37, dtype=np.float32)
        logits[:, sure] = 3e37
        sampled = bound.sample(logits, uniforms).astype(np.int64)
        # u = 0 belongs to the first action, whose share e^-80 no float32 uniform but 0 can hit
        assert (sampled[1:] == sure).all()
        assert (sampled < actions).all()


@pytest.mark.statistical
def test_sampled_frequencies_are_the_softmax():
    """False-positive rate <= 1e-6: four frequencies, each within 5.3 standard deviations (normal
    tail 1.2e-7 two-sided, 4.7e-7 for all four); the seed is fixed."""
    policy = MlpPolicy(observation_size=1, hidden=(), action="categorical", action_size=4)
    bound = policy.bind(np.zeros(policy.num_parameters))
    logits = np.float32([0.0, 1.0, -1.0, 0.5])
    count = 200_000
    draws = policy.draws(np.random.default_rng(3), 1, count)[0]
    sampled = bound.sample(np.tile(logits, (count, 1)), draws)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    found = np.bincount(sampled, minlength=4) / count
    deviation = np.sqrt(probabilities * (1 - probabilities) / count)
    assert (np.abs(found - probabilities) < 5.3 * deviation).all()


def test_gaussian_actions_are_mean_plus_scaled_normals():
    policy = SHAPES[3]
    flat = parameters_of(policy)
    bound = policy.bind(flat)
    means = bound.forward(np.ones((5, 3), np.float32)).copy()
    draws = policy.draws(np.random.default_rng(2), 3, 5)
    assert draws.shape == (3, 5, 2)
    actions = bound.sample(means, draws[1])
    np.testing.assert_allclose(actions, means + np.exp(flat[-2:]) * draws[1], rtol=1e-6)
    assert actions.dtype == np.float32
    greedy = bound.greedy(means)
    np.testing.assert_array_equal(greedy, means)
    assert not np.shares_memory(greedy, means)


def test_greedy_takes_the_first_of_the_largest_logits():
    bound = SHAPES[1].bind(np.zeros(SHAPES[1].num_parameters))
    outputs = np.float32([[0, 1, 2, 1], [3, 3, 1, 0], [0, 0, 0, 0]])
    assert bound.greedy(outputs).tolist() == [2, 0, 0]


# --- Q values ------------------------------------------------------------------------------------

Q_VALUES = MlpPolicy(observation_size=3, hidden=(4,), action="q-values", action_size=4)


def explorer(exploration):
    return Q_VALUES.bind(parameters_of(Q_VALUES), exploration=exploration)


def test_without_exploration_a_policy_of_q_values_takes_the_first_of_the_best():
    outputs = np.float32([[0, 1, 2, 1], [3, 3, 1, 0], [0, 0, 0, 0]])
    draws = np.float32([0.0, 0.5, 1 - 2**-24])
    bound = explorer(0.0)
    assert bound.sample(outputs, draws).tolist() == [2, 0, 0]
    assert bound.sample(outputs, draws).tolist() == bound.greedy(outputs).tolist()


def test_one_draw_decides_whether_and_which_random_action_is_taken():
    outputs = np.tile(np.float32([0, 0, 0, 9]), (9, 1))
    # below exploration = 1/2 each quarter of the draws is one action; above it, the best
    draws = np.float32([0.0, 0.12, 0.13, 0.24, 0.26, 0.37, 0.38, 0.49, 0.5])
    assert explorer(0.5).sample(outputs, draws).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("exploration", [1e-6, 0.3, 1.0])
def test_a_random_action_always_exists(exploration):
    edge = np.float32(exploration)
    draws = np.array([0.0, np.nextafter(edge, np.float32(0)), edge, 1 - 2**-24], dtype=np.float32)
    sampled = explorer(exploration).sample(np.zeros((4, 4), np.float32), draws)
    assert sampled.dtype == np.int64
    assert ((sampled >= 0) & (sampled < 4)).all()


@pytest.mark.statistical
def test_explored_frequencies_are_uniform_on_top_of_the_best():
    """False-positive rate <= 1e-6: four frequencies, each within 5.3 standard deviations (normal
    tail 1.2e-7 two-sided, 4.7e-7 for all four); the seed is fixed."""
    count, exploration = 200_000, 0.4
    draws = Q_VALUES.draws(np.random.default_rng(3), 1, count)[0]
    outputs = np.tile(np.float32([0, 5, 1, 2]), (count, 1))
    found = np.bincount(explorer(exploration).sample(outputs, draws), minlength=4) / count
    expected = exploration / 4 + (1 - exploration) * np.array([0, 1, 0, 0])
    deviation = np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(found - expected) < 5.3 * deviation).all()


@pytest.mark.parametrize("exploration", [-0.1, 1.1, np.nan])
def test_an_impossible_exploration_is_refused(exploration):
    with pytest.raises(ConfigurationError, match=r"exploration must be in \[0, 1\]"):
        explorer(exploration)


@pytest.mark.parametrize("policy", SHAPES)
def test_only_q_values_explore_by_probability(policy):
    with pytest.raises(ConfigurationError, match=r"for action 'q-values', got 0\.1"):
        policy.bind(parameters_of(policy), exploration=0.1)


# --- a critic beside the actor -------------------------------------------------------------------


@pytest.mark.parametrize("policy", SHAPES)
def test_a_critic_comes_after_the_actor_and_changes_no_action(policy):
    with_critic = replace(policy, critic_hidden=(5, 4))
    o = policy.observation_size
    extra = 5 * o + 5 + 4 * 5 + 4 + 4 + 1
    assert with_critic.actor_parameters == policy.num_parameters == policy.actor_parameters
    assert with_critic.num_parameters == policy.num_parameters + extra
    assert with_critic.critic_layers == ((5, o), (4, 5), (1, 4))
    assert policy.critic_layers == ()
    flat = parameters_of(with_critic)
    observations = np.random.default_rng(1).normal(size=(7, o)).astype(np.float32)
    outputs = with_critic.bind(flat).forward(observations).copy()
    alone = policy.bind(flat[: policy.num_parameters]).forward(observations)
    np.testing.assert_array_equal(outputs, alone)
    # what the critic holds is checked all the same: it leaves with the policy
    flat[-1] = np.nan
    with pytest.raises(ConfigurationError, match="parameters must be finite"):
        with_critic.bind(flat)


def test_a_critic_without_hidden_layers_is_linear():
    policy = replace(SHAPES[0], critic_hidden=())
    assert policy.critic_layers == ((1, 4),)
    assert policy.num_parameters == SHAPES[0].num_parameters + 5


@pytest.mark.parametrize("policy", SHAPES)
def test_an_actor_begins_the_same_with_and_without_a_critic(policy):
    with_critic = replace(policy, critic_hidden=(5,))
    flat = with_critic.initial_parameters(np.random.default_rng(0))
    alone = policy.initial_parameters(np.random.default_rng(0))
    np.testing.assert_array_equal(flat[: policy.num_parameters], alone)
    first = flat[policy.num_parameters :][: 5 * policy.observation_size]
    assert first.any()
    assert np.abs(flat[-6:-1]).max() <= 0.01  # the last layer is small: values begin near zero


@pytest.mark.parametrize("hidden", [(0,), (4.0,), (True,)])
def test_an_impossible_critic_is_refused(hidden):
    with pytest.raises(ConfigurationError, match="critic_hidden must be an integer >= 1"):
        replace(SHAPES[0], critic_hidden=hidden)


# --- public bounds of actions --------------------------------------------------------------------


def test_actions_are_squashed_into_the_bounds_and_half_way_is_the_middle():
    bound = replace(SHAPES[3], bounds=(-1.0, 3.0)).bind(parameters_of(SHAPES[3]))
    actions = np.float32([[0.0, 100.0], [-100.0, 0.5]])
    outward = bound.to_environment(actions)
    np.testing.assert_allclose(outward, [[1.0, 3.0], [-1.0, 1 + 2 * np.tanh(0.5)]], rtol=1e-6)
    assert outward.dtype == np.float32
    np.testing.assert_array_equal(actions, np.float32([[0.0, 100.0], [-100.0, 0.5]]))


@given(
    low=st.floats(-1e6, 1e6, allow_nan=False),
    span=st.floats(1e-3, 1e6),
    action=st.floats(width=32, allow_nan=False),
)
def test_no_action_ever_leaves_the_bounds(low, span, action):
    high = min(low + span, 1e6)
    if not low < high:
        return
    bound = replace(SHAPES[3], bounds=(low, high)).bind(parameters_of(SHAPES[3]))
    outward = bound.to_environment(np.full((1, 2), action, dtype=np.float32))
    assert (outward >= np.float32(low)).all()
    assert (outward <= np.float32(high)).all()


@pytest.mark.parametrize("policy", [*SHAPES, Q_VALUES])
def test_without_bounds_actions_go_out_as_they_are(policy):
    bound = policy.bind(parameters_of(policy))
    actions = np.zeros((3, 2), np.float32)
    assert bound.to_environment(actions) is actions


@pytest.mark.parametrize(
    ("policy", "bounds", "message"),
    [
        (SHAPES[0], (-1.0, 1.0), "bounds are for action 'gaussian'"),
        (Q_VALUES, (-1.0, 1.0), "bounds are for action 'gaussian'"),
        (SHAPES[3], (1.0, 1.0), "low < high"),
        (SHAPES[3], (1.0, -1.0), "low < high"),
        (SHAPES[3], (-1.0, np.nan), r"within \+-1e\+06"),
        (SHAPES[3], (-1e7, 0.0), r"within \+-1e\+06"),
        (SHAPES[3], (False, True), r"within \+-1e\+06"),
        (SHAPES[3], (-1.0,), r"bounds must be \(low, high\)"),
        (SHAPES[3], [-1.0, 1.0], r"bounds must be \(low, high\)"),
    ],
)
def test_impossible_bounds_are_refused(policy, bounds, message):
    with pytest.raises(ConfigurationError, match=message):
        replace(policy, bounds=bounds)
