from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from privfedrl.errors import (
    ConfigurationError,
    EnvironmentFault,
    PrivacyError,
    UnsupportedMechanism,
)
from privfedrl.privacy.units import Unit
from privfedrl.training.algorithms import Objective
from privfedrl.training.local_trainer import LocalTrainer
from privfedrl.training.local_update import row_norms
from privfedrl.training.metric_coordinates import ClipQuantile
from privfedrl.training.ppo_learner import PpoSettings
from privfedrl.training.private_step import ReturnRelease
from privfedrl.training.reinforce import Truncation, trajectory_weights
from privfedrl.training.settings import TrainerSettings
from privfedrl.training.trajectory_gradients import Terms, loop


def settings(*, gamma=0.9, truncation=Truncation.NONE, entropy_weight=0.0, **changes):
    """REINFORCE with these changes."""
    objective = Objective(gamma=gamma, truncation=truncation, entropy_weight=entropy_weight)
    return TrainerSettings(objective=objective, **changes)


SETTINGS = settings(clip_norm=0.2)
RELEASE = ReturnRelease(low=0.0, high=1.0, weight=1.0)
QUANTILE = ClipQuantile(quantile=0.5, learning_rate=0.2, low=0.01, high=4.0, weight=0.25)
PERSON = replace(SETTINGS, unit=Unit.PERSON, max_trajectories_per_unit=2, units=3)


def agent(**changes) -> TrainerSettings:
    return settings(**({"clip_norm": 5.0, "unit": Unit.AGENT} | changes))


def test_an_update_has_the_announced_size_and_bound(make_batch, make_network):
    network = make_network()
    for chosen in (
        SETTINGS,
        replace(SETTINGS, return_release=RELEASE),
        replace(SETTINGS, return_release=replace(RELEASE, spread=True), clip_quantile=QUANTILE),
    ):
        trainer = LocalTrainer(network.policy, chosen)
        update = trainer.local_update(network.flat(), make_batch([4, 9]))
        assert update.rows.shape == (2, trainer.dimension)
        assert update.clip_norm == trainer.clip_norm


def test_a_batch_feeds_one_update_only(make_batch, make_network):
    network, batch = make_network(), make_batch([4, 9])
    trainer = LocalTrainer(network.policy, SETTINGS)
    trainer.local_update(network.flat(), batch)
    with pytest.raises(PrivacyError, match="fresh"):
        trainer.local_update(network.flat(), batch)


def test_a_batch_is_spent_even_if_the_update_fails(make_batch, make_network):
    network, batch = make_network(), make_batch([4])
    trainer = LocalTrainer(network.policy, SETTINGS)
    with pytest.raises(ConfigurationError):
        trainer.local_update(np.zeros(3), batch)
    with pytest.raises(PrivacyError, match="fresh"):
        trainer.local_update(network.flat(), batch)


def test_agent_delta_is_plain_gradient_ascent(make_batch, make_network):
    network = make_network()
    theta = network.flat()
    batches = [make_batch([4, 9], seed=s) for s in (1, 2)]
    source = iter(batches)
    trainer = LocalTrainer(network.policy, agent(local_steps=2, learning_rate=0.1))
    update = trainer.local_steps(theta, lambda _: next(source))
    moved = theta.copy()
    for batch in batches:
        network.load(moved)
        rows = loop(network, batch, trajectory_weights(batch, gamma=0.9), Terms())
        moved = moved + 0.1 * rows.numpy().sum(axis=0) / 2
    assert update.unit is Unit.AGENT
    assert update.rows.shape == (1, len(theta))
    assert np.allclose(update.rows[0], moved - theta, atol=1e-6)


def test_agent_delta_is_clipped_as_one_row(make_batch, make_network):
    network = make_network()
    trainer = LocalTrainer(network.policy, agent(clip_norm=1e-3, learning_rate=100.0))
    update = trainer.local_steps(network.flat(), lambda _: make_batch([4, 9]))
    assert np.linalg.norm(update.rows) == pytest.approx(1e-3)


def test_iterates_that_leave_the_policys_range_send_a_zero_row(make_batch, make_network):
    network = make_network()
    huge = agent(local_steps=3, learning_rate=1e30)
    update = LocalTrainer(network.policy, huge).local_steps(
        network.flat(), lambda _: make_batch([4, 9])
    )
    assert not update.rows.any()
    assert update.nonfinite_units == 1


def test_local_steps_refuse_a_stale_batch(make_batch, make_network):
    network, batch = make_network(), make_batch([4, 9])
    trainer = LocalTrainer(network.policy, agent(local_steps=2))
    with pytest.raises(PrivacyError, match="fresh"):
        trainer.local_steps(network.flat(), lambda _: batch)


def test_the_control_arm_must_say_that_it_is_not_private(make_batch, make_network):
    with pytest.raises(ConfigurationError, match="private=False"):
        settings(clip_norm=None)
    with pytest.raises(ConfigurationError, match="private is False"):
        settings(clip_norm=1.0, private=False)
    network, batch = make_network(), make_batch([4, 0, 9])
    control = settings(clip_norm=None, private=False)
    update = LocalTrainer(network.policy, control).local_update(network.flat(), batch)
    rows = loop(network, batch, trajectory_weights(batch, gamma=0.9), Terms()).numpy()
    assert (update.private, update.clip_norm) == (False, math.inf)
    assert np.allclose(update.rows, rows, atol=1e-5)
    delta = LocalTrainer(network.policy, replace(control, unit=Unit.AGENT)).local_steps(
        network.flat(), lambda _: make_batch([4])
    )
    assert not delta.private
    with pytest.raises(ConfigurationError, match="current_clip"):
        LocalTrainer(network.policy, control).local_update(
            network.flat(), make_batch([4]), current_clip=1.0
        )
    with pytest.raises(ConfigurationError, match="clip_quantile"):
        replace(control, clip_quantile=QUANTILE)
    persons = replace(control, unit=Unit.PERSON, units=2, max_trajectories_per_unit=3)
    summed = LocalTrainer(network.policy, persons).local_update(
        network.flat(), people(batch, "aaa")
    )
    assert (summed.unit, summed.private, summed.num_units) == (Unit.PERSON, False, 2)
    assert np.allclose(summed.rows, np.stack([rows.sum(axis=0), 0 * rows[0]]), atol=1e-5)


def test_several_local_steps_are_refused_for_the_trajectory_unit():
    with pytest.raises(UnsupportedMechanism, match="later iterates"):
        settings(clip_norm=1.0, local_steps=2)


def test_several_local_steps_are_refused_for_the_person_unit_and_the_sound_ways_named():
    with pytest.raises(UnsupportedMechanism, match="later iterates") as caught:
        replace(PERSON, local_steps=2)
    assert "unit AGENT" in str(caught.value)
    assert "local-skellam" in str(caught.value)


@pytest.mark.parametrize("truncation", [Truncation.NONE, Truncation.BOOTSTRAP])
def test_a_learner_takes_a_cut_for_an_end_only_if_the_objective_does(
    make_batch, make_network, truncation
):
    network = make_network(critic=(4,))
    learner = PpoSettings(
        gamma=0.9,
        gae_lambda=0.9,
        epochs=1,
        minibatch_size=64,
        learning_rate=0.01,
        entropy_weight=0.0,
        reset_optimiser=True,
    )

    def delta(truncation, batch):
        chosen = TrainerSettings(
            objective=Objective(algorithm="ppo", gamma=0.9, truncation=truncation),
            clip_norm=100.0,
            unit=Unit.AGENT,
            learner=learner,
        )
        trainer = LocalTrainer(network.policy, chosen, rng=np.random.default_rng(0))
        return trainer.local_steps(network.flat(), lambda _: batch).rows[0]

    cut, ended = make_batch([9, 9]), make_batch([9, 9])
    ended = replace(ended, terminated=np.ones(2, dtype=bool), truncated=np.zeros(2, dtype=bool))
    alike = np.array_equal(delta(truncation, cut), delta(Truncation.BOOTSTRAP, ended))
    assert alike == (truncation is Truncation.NONE)


def people(batch, subjects):
    return replace(batch, subjects=tuple(subjects))


@pytest.mark.parametrize(
    ("lengths", "subjects", "filled"),
    [
        ([4, 9, 3], "aba", [True, True, False]),
        ([4, 9, 3], "aaa", [True, False, False]),
        ([4, 9, 3, 5], "abcd", [True, True, True]),
        ([0, 0], "ab", [False, False, False]),
        ([], "", [False, False, False]),
    ],
)
def test_a_person_update_has_the_announced_rows_whatever_the_data(
    make_batch, make_network, lengths, subjects, filled
):
    network = make_network()
    for chosen in (PERSON, replace(PERSON, return_release=RELEASE, clip_quantile=QUANTILE)):
        trainer = LocalTrainer(network.policy, chosen)
        update = trainer.local_update(network.flat(), people(make_batch(lengths), subjects))
        assert update.rows.shape == (3, trainer.dimension)
        assert (update.unit, update.clip_norm) == (Unit.PERSON, trainer.clip_norm)
        assert update.rows.any(axis=1).tolist() == filled
        assert (row_norms(update.rows) <= trainer.clip_norm).all()


def test_only_admitted_persons_enter_a_person_update(make_batch, make_network):
    network, batch = make_network(), people(make_batch([4, 9, 3, 7]), "abac")
    rows = LocalTrainer(network.policy, PERSON).local_update(network.flat(), batch).rows
    fresh = replace(batch, batch_id=b"again")
    trainer = LocalTrainer(network.policy, PERSON)
    admitted = trainer.local_update(network.flat(), fresh, admitted={"c", "b"}).rows
    assert np.array_equal(admitted[:2], rows[1:])
    assert not admitted[2].any()
    fresh = replace(batch, batch_id=b"nobody")
    assert not trainer.local_update(network.flat(), fresh, admitted=frozenset()).rows.any()


def test_a_person_batch_must_name_its_persons_and_is_spent_all_the_same(make_batch, make_network):
    network, batch = make_network(), make_batch([4])
    trainer = LocalTrainer(network.policy, PERSON)
    with pytest.raises(EnvironmentFault, match="subjects"):
        trainer.local_update(network.flat(), batch)
    with pytest.raises(PrivacyError, match="fresh"):
        trainer.local_update(network.flat(), people(batch, "a"))


def test_an_adaptive_clip_is_passed_on_and_checked(make_batch, make_network):
    network = make_network()
    trainer = LocalTrainer(network.policy, replace(SETTINGS, clip_quantile=QUANTILE))
    tight = trainer.local_update(network.flat(), make_batch([4, 9]), current_clip=0.01)
    assert row_norms(tight.rows[:, :-1]) == pytest.approx([0.2, 0.2])
    assert tight.rows[:, -1] == pytest.approx([-0.05, -0.05])
    with pytest.raises(ConfigurationError, match="current_clip"):
        trainer.local_update(network.flat(), make_batch([4, 9]), current_clip=5.0)


def test_arguments_of_another_unit_are_refused_not_ignored(make_batch, make_network):
    network = make_network()
    with pytest.raises(ConfigurationError, match="admitted"):
        LocalTrainer(network.policy, SETTINGS).local_update(
            network.flat(), make_batch([3]), admitted={"a"}
        )
    for unit in (Unit.TRAJECTORY, Unit.AGENT):
        for changes in ({"units": 3}, {"max_trajectories_per_unit": 2}):
            with pytest.raises(ConfigurationError, match="PERSON"):
                replace(SETTINGS, unit=unit, **changes)
    for units in (None, 0, -1, True, 1.5):
        with pytest.raises(ConfigurationError, match="units"):
            replace(PERSON, units=units)


def test_units_and_calls_that_do_not_fit_are_refused(make_batch, make_network):
    network = make_network()
    with pytest.raises(UnsupportedMechanism, match="return_release"):
        agent(return_release=RELEASE)
    with pytest.raises(UnsupportedMechanism, match="clip_quantile"):
        agent(clip_quantile=QUANTILE)
    with pytest.raises(UnsupportedMechanism, match="use local_steps"):
        LocalTrainer(network.policy, agent()).local_update(network.flat(), make_batch([3]))
    with pytest.raises(UnsupportedMechanism, match="use local_update"):
        LocalTrainer(network.policy, SETTINGS).local_steps(
            network.flat(), lambda _: make_batch([3])
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"gamma": 1.5},
        {"gamma": 1.0, "truncation": Truncation.CONTINUE},
        {"clip_norm": 0.0},
        {"entropy_weight": -1.0},
        {"entropy_weight": math.nan},
        {"learning_rate": 0.0},
        {"learning_rate": math.inf},
        {"local_steps": 0},
        {"local_steps": True},
        {"local_steps": 1.5},
        {"max_trajectories_per_unit": 0},
        {"max_trajectories_per_unit": True},
    ],
)
def test_impossible_settings_are_refused(changes):
    with pytest.raises(ConfigurationError):
        settings(**({"clip_norm": 1.0} | changes))
