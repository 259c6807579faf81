from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from privfedrl.errors import ConfigurationError, PrivacyError, UnsupportedMechanism
from privfedrl.privacy.units import Unit
from privfedrl.training.local_trainer import LocalTrainer, ReinforceSettings
from privfedrl.training.private_step import ReturnRelease
from privfedrl.training.reinforce import Truncation, trajectory_weights
from privfedrl.training.trajectory_gradients import loop

SETTINGS = ReinforceSettings(gamma=0.9, clip_norm=0.2)
RELEASE = ReturnRelease(low=0.0, high=1.0, weight=1.0)


def agent(**changes) -> ReinforceSettings:
    return ReinforceSettings(gamma=0.9, **({"clip_norm": 5.0, "unit": Unit.AGENT} | changes))


def test_an_update_has_the_announced_size_and_bound(make_batch, make_network):
    network = make_network()
    for settings in (SETTINGS, replace(SETTINGS, return_release=RELEASE)):
        trainer = LocalTrainer(network.policy, settings)
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
        rows = loop(network, batch, trajectory_weights(batch, gamma=0.9), 0.0)
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
    settings = agent(local_steps=3, learning_rate=1e30)
    update = LocalTrainer(network.policy, settings).local_steps(
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
        ReinforceSettings(gamma=0.9, clip_norm=None)
    with pytest.raises(ConfigurationError, match="private is False"):
        ReinforceSettings(gamma=0.9, clip_norm=1.0, private=False)
    network, batch = make_network(), make_batch([4, 0, 9])
    control = ReinforceSettings(gamma=0.9, clip_norm=None, private=False)
    update = LocalTrainer(network.policy, control).local_update(network.flat(), batch)
    rows = loop(network, batch, trajectory_weights(batch, gamma=0.9), 0.0).numpy()
    assert (update.private, update.clip_norm) == (False, math.inf)
    assert np.allclose(update.rows, rows, atol=1e-5)
    delta = LocalTrainer(network.policy, replace(control, unit=Unit.AGENT)).local_steps(
        network.flat(), lambda _: make_batch([4])
    )
    assert not delta.private


def test_several_local_steps_are_refused_for_the_trajectory_unit():
    with pytest.raises(UnsupportedMechanism, match="later iterates"):
        ReinforceSettings(gamma=0.9, clip_norm=1.0, local_steps=2)


def test_units_and_calls_that_do_not_fit_are_refused(make_batch, make_network):
    network = make_network()
    with pytest.raises(UnsupportedMechanism, match="PERSON"):
        agent(unit=Unit.PERSON)
    with pytest.raises(UnsupportedMechanism, match="return_release"):
        agent(return_release=RELEASE)
    with pytest.raises(UnsupportedMechanism, match="local_update"):
        LocalTrainer(network.policy, agent()).local_update(network.flat(), make_batch([3]))
    with pytest.raises(UnsupportedMechanism, match="local_steps"):
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
    ],
)
def test_impossible_settings_are_refused(changes):
    with pytest.raises(ConfigurationError):
        ReinforceSettings(**({"gamma": 0.9, "clip_norm": 1.0} | changes))
