"""The leak linter finds what is there, says nothing where nothing is, and can fail both ways."""

from __future__ import annotations

import logging
import math
import sys
import threading
import warnings
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pytest

import privfedrl.testing as kit
from privfedrl.errors import ConfigurationError
from privfedrl.privacy.units import Adjacency, Unit
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.testing import isolation, isolation_rounds, isolation_values, isolation_watch
from privfedrl.testing.isolation import assert_unit_isolated, lint, lint_trainer
from privfedrl.testing.isolation_defects_policy import (
    BatchAdvantages,
    BatchMeanBaseline,
    BatchNorm,
    DividesByCount,
    EpochsChargedAsOne,
    RawQuantileClip,
    RunningNormaliser,
)
from privfedrl.testing.isolation_defects_round import (
    BestCheckpoint,
    LogsReturns,
    NoiseFromTraining,
    SkipsWhenEmpty,
)
from privfedrl.testing.isolation_defects_value import ReplayBuffer, TransitionClip
from privfedrl.testing.isolation_honest import Honest, QLearning, Rows
from privfedrl.testing.isolation_rounds import TrainerRounds
from privfedrl.testing.isolation_values import Channel, Observation, RoundSeen, UnitLeak
from privfedrl.testing.isolation_worlds import Pair, pairs
from privfedrl.training import LocalTrainer, LocalUpdate, Objective, TrainerSettings

POLICY = MlpPolicy(observation_size=3, hidden=(4,), action="categorical", action_size=2)


def shipped(**changes) -> LocalTrainer:
    objective = Objective(gamma=0.9)
    chosen = TrainerSettings(objective=objective, **({"clip_norm": 0.5} | changes))
    return LocalTrainer(POLICY, chosen)


class Saying(Honest):
    """Does one more thing with a number that depends on everybody."""

    def __init__(self, act) -> None:
        super().__init__()
        self._act = act

    def released(self, parameters, batch):
        self._act(float(np.nan_to_num(batch.returns).sum()))
        return self.update(self.clipped(parameters, batch), batch)


# --- findings ------------------------------------------------------------------------------------


def test_a_leaking_trainer_raises_with_the_two_worlds_and_a_table():
    with pytest.raises(UnitLeak, match=r"BatchMeanBaseline: one unit can be noticed") as caught:
        assert_unit_isolated(BatchMeanBaseline())
    assert {leak.kind for leak in caught.value.leaks} == {Channel.SENSITIVITY}
    assert "trajectory 0" in str(caught.value)
    assert "times what is charged" in str(caught.value)


def test_a_sound_trainer_passes_and_is_not_changed():
    trainer = shipped()
    before = isolation_watch.snapshot(trainer)
    assert assert_unit_isolated(trainer, effort="quick") is None
    assert isolation_watch.snapshot(trainer) == before


def test_the_public_names_are_offered_by_the_kit():
    assert kit.assert_unit_isolated is assert_unit_isolated
    assert kit.UnitLeak is UnitLeak


@pytest.mark.parametrize(
    ("act", "channel"),
    [
        (lambda number: logging.getLogger("a.b").debug("sum %r", number), Channel.LOG),
        (lambda number: print(number), Channel.OUTPUT),
        (lambda number: print(number, file=sys.stderr), Channel.OUTPUT),
        (lambda number: warnings.warn(str(number), stacklevel=1), Channel.WARNING),
        (lambda number: np.random.random(int(abs(number)) % 5), Channel.STATE),
        (lambda number: number > 0 and 1 / 0, Channel.EXCEPTION),
    ],
    ids=["log", "stdout", "stderr", "warning", "global generator", "exception"],
)
def test_whatever_a_trainer_says_or_draws_is_heard(act, channel):
    assert channel in lint_trainer(Saying(act), effort="quick").channels


def test_charges_message_sizes_and_public_fields_that_follow_the_data_are_found():
    class Charges(Honest):
        def released(self, parameters, batch):
            self.charged_releases = 1 + int(batch.mask.any(axis=1).sum())
            return self.update(self.clipped(parameters, batch), batch)

    class Sizes(Honest):
        def released(self, parameters, batch):
            rows = self.clipped(parameters, batch)
            return Rows(rows=rows[batch.mask.any(axis=1)], clip_norm=self.clip_norm)

    class Clips(Honest):
        def released(self, parameters, batch):
            rows = self.clipped(parameters, batch)
            return Rows(rows=rows, clip_norm=float(np.abs(rows).max()))

    assert lint_trainer(Charges(), effort="quick").channels == {Channel.EVENT, Channel.STATE}
    assert lint_trainer(Sizes(), effort="quick").channels == {Channel.SHAPE}
    assert lint_trainer(Clips(), effort="quick").channels == {Channel.FIELD}


def test_asking_for_experience_as_the_data_suggest_is_found():
    def again_if_poor(trainer, parameters, collect):
        batch = collect(parameters)
        if np.nan_to_num(batch.returns).sum() < 0:
            batch = collect(parameters + 1.0)
        return trainer.local_update(parameters, batch)

    found = lint_trainer(Honest(), step=again_if_poor, effort="quick").channels
    assert Channel.CALLS in found


def test_asking_without_end_ends_in_the_same_error_in_every_world():
    def forever(trainer, parameters, collect):
        while True:
            collect(parameters)

    report = lint_trainer(Honest(), step=forever, effort="quick")
    assert report.clean
    assert report.moved == 0.0


def test_what_is_heard_is_free_and_what_is_said_about_it_is_not():
    class Hears(Honest):
        def receive(self, heard):
            self._heard = heard
            logging.getLogger("trainer").info("heard %r", float(heard.sum()))

    class Tells(Hears):
        def released(self, parameters, batch):
            self._own = float(np.nan_to_num(batch.returns).sum())
            return self.update(self.clipped(parameters, batch), batch)

        def receive(self, heard):
            logging.getLogger("trainer").info("heard %r", float(heard.sum()) + self._own)

    assert lint_trainer(Hears(), effort="quick").clean
    assert Channel.LOG in lint_trainer(Tells(), effort="quick", private=("_own",)).channels


def test_an_attribute_may_be_private_if_it_is_named():
    assert lint_trainer(BestCheckpoint(), effort="quick").channels == {Channel.STATE}
    assert lint_trainer(BestCheckpoint(), effort="quick", private=("_best", "best_policy")).clean


def test_rows_that_are_no_numbers_or_far_too_long_are_found_all_the_same():
    class Unclipped(Honest):
        factor = 1.0

        def released(self, parameters, batch):
            rows = self.factor * self.gradients(parameters, batch)
            return Rows(rows=rows, clip_norm=self.clip_norm)

    class Enormous(Unclipped):
        factor = 1e30

    found = lint_trainer(Unclipped(), effort="quick")
    assert {Channel.SENSITIVITY, Channel.EXCEPTION} <= found.channels  # NaN is refused, visibly
    huge = lint_trainer(Enormous(), effort="quick")
    assert Channel.SENSITIVITY in huge.channels
    assert huge.moved > 1e4


def test_a_trainer_that_is_not_reproducible_cannot_be_compared():
    class Wandering(Honest):
        def weights(self, batch):
            shift = np.frombuffer(__import__("os").urandom(2), dtype=np.uint16)[0]
            return super().weights(batch) + shift * batch.mask

    assert Channel.REPEAT in lint_trainer(Wandering(), effort="quick").channels


# --- units ---------------------------------------------------------------------------------------


def test_clipping_trajectories_does_not_protect_a_person():
    report = lint_trainer(shipped(), unit=Unit.PERSON)
    assert report.channels == {Channel.SENSITIVITY}
    assert 1.5 < report.moved <= 3.0  # a person of the batches has up to three trajectories


def test_clipping_the_delta_of_an_agent_does_not_protect_a_trajectory():
    trainer = shipped(unit=Unit.AGENT, local_steps=3, learning_rate=3.0)
    report = lint_trainer(
        trainer, unit=Unit.TRAJECTORY, step=lambda t, theta, collect: t.local_steps(theta, collect)
    )
    assert Channel.SENSITIVITY in report.channels
    assert Channel.CALLS in report.channels  # later batches are collected with later iterates


def test_the_state_of_an_agent_is_inside_its_unit_but_its_public_fields_are_not():
    class Agent(Honest):
        unit = Unit.AGENT

        def local_steps(self, parameters, collect):
            batch = collect(parameters)
            self._seen = batch.returns
            row = self.clipped(parameters, batch).sum(axis=0, keepdims=True)
            row /= max(1.0, np.linalg.norm(row) / self.clip_norm)
            return LocalUpdate(
                rows=row,
                clip_norm=self.clip_norm,
                unit=self.unit,
                nonfinite_units=0,
                batch_id=batch.batch_id,
            )

    class Open(Agent):
        def local_steps(self, parameters, collect):
            update = super().local_steps(parameters, collect)
            self.length = float(np.linalg.norm(update.rows))
            return update

    class Long(Agent):
        def local_steps(self, parameters, collect):
            rows = self.clipped(parameters, collect(parameters)).sum(axis=0, keepdims=True)
            return Rows(rows=rows, clip_norm=self.clip_norm)

    assert lint_trainer(Agent(), effort="quick").clean
    assert lint_trainer(Open(), effort="quick").channels == {Channel.STATE}
    assert lint_trainer(Long(), effort="quick").channels == {Channel.SENSITIVITY}


# --- the figures of the specification ------------------------------------------------------------


TELLING = ("one dominates: trajectory 0 absent", "one against all: trajectory 0 absent")


def moved_by_the_unusual_one(trainer) -> float:
    """In clip norms, among 16 trajectories, when the remarkable one is absent."""
    rounds = TrainerRounds(trainer=trainer, unit=Unit.TRAJECTORY)
    everything = pairs(
        trainer.policy, unit=Unit.TRAJECTORY, dimension=trainer.dimension, effort="thorough"
    )
    wanted = (pair for pair in everything if pair.name in TELLING)
    return lint(rounds, islice(wanted, len(TELLING))).moved


def test_one_of_sixteen_trajectories_moves_a_sound_sum_by_at_most_one_clip_norm():
    assert 0.9 < moved_by_the_unusual_one(Honest()) <= 1.0
    assert 0.9 < moved_by_the_unusual_one(QLearning()) <= 1.0


@pytest.mark.parametrize(
    ("make", "least"),
    [
        (BatchMeanBaseline, 4.0),
        (BatchAdvantages, 4.0),
        (RunningNormaliser, 1.2),
        (BatchNorm, 1.2),
        (DividesByCount, 1.1),
    ],
)
def test_one_of_sixteen_trajectories_moves_an_unsound_sum_by_more(make, least):
    assert moved_by_the_unusual_one(make()) > least


def test_clipping_transitions_lets_a_trajectory_of_t_steps_move_the_sum_by_t_clip_norms():
    assert lint_trainer(TransitionClip(), effort="quick").moved == pytest.approx(6.0, rel=1e-3)


# --- linters that are wrong ----------------------------------------------------------------------


def deaf(monkeypatch):
    monkeypatch.setattr(isolation_watch, "_extra", lambda record: "")
    monkeypatch.setattr(logging, "setLogRecordFactory", lambda factory: None)


def doubled_bound(monkeypatch):
    exact = isolation_values._norms
    monkeypatch.setattr(isolation_values, "_norms", lambda x, y: tuple(n // 4 for n in exact(x, y)))


def no_composition(monkeypatch):
    # charges are stretched to as many as there are releases
    original = isolation_rounds.TrainerRounds.play

    def play(self, world):
        seen = original(self, world)
        rounds = [replace(r, charges=r.charges[:1] * len(r.vectors)) for r in seen.rounds]
        return Observation(rounds=tuple(rounds))

    monkeypatch.setattr(isolation_rounds.TrainerRounds, "play", play)


def one_run(monkeypatch):
    monkeypatch.setattr(isolation, "compare_repeats", lambda *args, **kwargs: ())


def one_round(monkeypatch):
    original = isolation_rounds.TrainerRounds.play

    def play(self, world):
        return original(self, replace(world, rounds=world.rounds[:1]))

    monkeypatch.setattr(isolation_rounds.TrainerRounds, "play", play)


def no_state(monkeypatch):
    monkeypatch.setattr(isolation_rounds.TrainerRounds, "_state", lambda self, trainer: {})


def no_adversary(monkeypatch):
    found = isolation.pairs
    monkeypatch.setattr(
        isolation,
        "pairs",
        lambda *args, **kwargs: [
            p for p in found(*args, **kwargs) if p.name.startswith("ordinary")
        ],
    )


@pytest.mark.parametrize(
    ("mutate", "make", "missed"),
    [
        (deaf, LogsReturns, Channel.LOG),
        (doubled_bound, RawQuantileClip, Channel.SENSITIVITY),
        (no_composition, EpochsChargedAsOne, Channel.COMPOSITION),
        (one_run, NoiseFromTraining, Channel.NOISE),
        (one_round, ReplayBuffer, Channel.LATER_ROUND),
        (no_state, BestCheckpoint, Channel.STATE),
        (no_adversary, SkipsWhenEmpty, Channel.CALLS),
    ],
)
def test_a_linter_with_a_defect_misses_a_pitfall(mutate, make, missed, monkeypatch):
    assert missed in lint_trainer(make(), effort="quick").channels
    mutate(monkeypatch)
    assert missed not in lint_trainer(make(), effort="quick").channels


def test_a_linter_that_watches_less_misses_what_shows_only_there():
    everything = frozenset(Channel)
    assert lint_trainer(LogsReturns(), effort="quick", channels=everything - {Channel.LOG}).clean
    found = lint_trainer(NoiseFromTraining(), effort="quick", channels=everything - {Channel.NOISE})
    assert found.clean


def test_a_linter_with_half_the_bound_finds_leaks_in_a_sound_trainer(monkeypatch):
    exact = isolation_values._norms
    monkeypatch.setattr(isolation_values, "_norms", lambda x, y: tuple(4 * n for n in exact(x, y)))
    assert not lint_trainer(Honest(), effort="quick").clean


def test_a_linter_that_rounds_every_row_anew_blames_the_innocent(monkeypatch):
    original = isolation_rounds._Encoder._row
    calls = iter(range(10**9))

    def fresh(self, row, key, number):
        return original(self, row, key, next(calls))

    monkeypatch.setattr(isolation_rounds._Encoder, "_row", fresh)
    assert Channel.REPEAT in lint_trainer(Honest(), effort="quick").channels


# --- the seam ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Any function of the world can be linted."""

    observations: dict
    name: str = "table"
    unit: Unit = Unit.TRAJECTORY

    def play(self, world):
        return self.observations[world]


def test_anything_that_plays_a_world_can_be_linted():
    def seen(text):
        part = RoundSeen(vectors=(), charges=(), seen={(Channel.LOG, "x"): text})
        return Observation(rounds=(part,))

    table = Table({"one": seen("1"), "two": seen("2")})
    pair = Pair(name="p", before="one", after="two", adjacency=Adjacency.ADD_REMOVE)
    report = lint(table, [replace(pair, after="one"), pair, pair])
    assert (report.worlds, len(report.leaks), report.clean) == (3, 2, False)
    assert math.isnan(report.moved)
    assert lint(table, [pair, pair], all_pairs=False).worlds == 1
    with pytest.raises(UnitLeak, match=r"table: one unit can be noticed \(p\)"):
        report.check()
    with pytest.raises(ConfigurationError, match="at least one pair"):
        lint(table, [])


def test_several_updates_of_a_round_are_several_releases():
    def twice(trainer, parameters, collect):
        update = trainer.local_update(parameters, collect(parameters))
        return [update, update]

    found = lint_trainer(Honest(), step=twice, effort="quick").channels
    assert found == {Channel.COMPOSITION}


def test_a_trainer_must_state_its_unit_and_a_finite_clip_and_be_copyable():
    class Nameless(Honest):
        unit = None

    class Locked(Honest):
        def __init__(self):
            super().__init__()
            self._lock = threading.Lock()

    with pytest.raises(ConfigurationError, match="unit must be given"):
        assert_unit_isolated(Nameless())
    with pytest.raises(ConfigurationError, match="trainer must be copyable"):
        assert_unit_isolated(Locked())
    with pytest.raises(ConfigurationError, match="clip_norm"):
        assert_unit_isolated(shipped(clip_norm=None, private=False))
