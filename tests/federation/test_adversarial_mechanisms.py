"""Attempts to refute what units and mechanisms claim: from one unit's data to what everybody sees.

The first part looks at the integers that noise is added to, the second at everything else that an
observer has: sizes, ledgers, calls, files. The third runs every combination that a plan may name.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import shake_256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import privfedrl.federation.central_noise as central_noise
import privfedrl.federation.releases as releases
import privfedrl.federation.simulation as simulation
import privfedrl.federation.trustee as trustee
from privfedrl.encoding import FixedPoint
from privfedrl.errors import (
    AuthenticationFailed,
    ConfigurationError,
    LedgerIntegrity,
    PrivacyError,
)
from privfedrl.federation.contribution import contribute, local_trainer, published_model
from privfedrl.federation.coordinator import initial_federation_state, published, with_clip
from privfedrl.federation.participants import KEY_AUTHORITY
from privfedrl.federation.persons import admission
from privfedrl.federation.setup import RoundSetup, round_setup
from privfedrl.federation.simulate import Runtime, simulate
from privfedrl.federation.trustee import Trustee
from privfedrl.he import HETranscript, LocalVault
from privfedrl.plan import AdaptiveClip, MeanReturnRelease, Plan
from privfedrl.primitives.random import system_entropy
from privfedrl.privacy import (
    Adjacency,
    DiscreteGaussianEvent,
    Ledger,
    LocalSkellam,
    ParticipationRegister,
    SkellamEvent,
    Unit,
)
from privfedrl.privacy.accountant import epsilon_of_counts
from privfedrl.rollout import TrajectoryBatch
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.secagg import Transcript
from privfedrl.training import LocalUpdate
from privfedrl.training.algorithms import Models, Objective
from privfedrl.training.clip_groups import clip_by_group
from privfedrl.training.metric_coordinates import row_groups
from privfedrl.training.networks import TorchMlp
from privfedrl.training.private_step import private_rows
from privfedrl.training.trajectory_gradients import TrajectoryGradient, fused, hooks

Make = Callable[..., Plan]
Change = Callable[[TrajectoryBatch, Any], TrajectoryBatch]
ONE = Runtime(workers=1)

LOCAL: dict[str, Any] = {
    "privacy": {"mechanism": "local-skellam"},
    "federation": {"strategy": "fedavg"},
    "training": {"local_steps": 2, "local_learning_rate": 0.1},
}
PERSON: dict[str, Any] = {
    "privacy": {"unit": "person", "max_trajectories_per_unit": 2, "max_rounds_per_unit": 2},
    "simulation": {"persons_per_agent": 3},
}
AGENT: dict[str, Any] = {
    "privacy": {"unit": "agent", "epsilon": 20.0},
    "federation": {"strategy": "fedavg"},
    "training": {"local_steps": 2, "local_learning_rate": 0.1},
}
UNITS: dict[str, dict[str, Any]] = {"trajectory": {}, "person": PERSON, "agent": AGENT}
METRICS: dict[str, dict[str, Any]] = {
    "no metrics": {},
    "returns": {"privacy": {"mean_return": MeanReturnRelease(low=0.0, high=60.0)}},
    "everything": {
        "privacy": {
            "mean_return": MeanReturnRelease(low=0.0, high=60.0, weight=2.0, spread=True),
            "adaptive_clip": AdaptiveClip(low=1e-3, high=1e3, weight=1.0),
        }
    },
}


def plans() -> Iterator[tuple[str, tuple[dict[str, Any], ...]]]:
    """Every mechanism with every unit and metric that it may have."""
    shares = ("skellam", "discrete-gaussian", "central-discrete-gaussian")
    for mechanism, unit in itertools.product(shares, UNITS):
        for metrics in METRICS if unit != "agent" else ("no metrics",):
            layers = (UNITS[unit], METRICS[metrics], {"privacy": {"mechanism": mechanism}})
            yield f"{mechanism}, {unit}, {metrics}", layers
    yield "local-skellam, trajectory, no metrics", (LOCAL,)


PLANS = dict(plans())
FOUR: dict[str, dict[str, Any]] = {"protection": {"min_clients": 3, "min_honest": 2}}


# --- the integers that noise is added to ----------------------------------------------------------


class SameForEveryUnit:
    """The k-th attempt to round a row gets the same bytes in every row and in every world.

    A row that waits for its k-th attempt does so in the k-th call, whatever became of the others:
    so "the same randomness for each unit" holds, however often one of them is rejected.
    """

    def __init__(self, padded: int) -> None:
        self._size, self.calls = 8 * padded, 0

    def __call__(self, n: int) -> bytes:
        self.calls += 1
        rows, rest = divmod(n, self._size)
        assert rest == 0
        return shake_256(self.calls.to_bytes(8, "big")).digest(self._size) * rows


class Watched(FixedPoint):
    """A codec that keeps the integers which would become residues."""

    seen: list[Any] = []  # noqa: RUF012 - the dataclass is frozen and slotted

    def to_ring(self, vector: Any) -> Any:
        Watched.seen.append(np.array(vector))
        return super().to_ring(vector)


class Silent(LocalSkellam):
    """Shares of no noise, so that what is watched is the sum alone."""

    def sample_share(self, entropy: Any = None) -> Any:
        return np.zeros(self.num_coordinates, dtype=np.int64)


def watched(codec: FixedPoint) -> Watched:
    return Watched(**{name: getattr(codec, name) for name in FixedPoint.__dataclass_fields__})


def without_noise(setup: RoundSetup) -> RoundSetup:
    """The same plan with silent noise and codecs that tell."""
    if setup.step_codec is None or setup.mechanism is None:
        return replace(setup, codec=watched(setup.codec), mechanism=None)
    mechanism = setup.mechanism
    silent = Silent(
        sensitivity=mechanism.sensitivity,
        share_variance=mechanism.share_variance,
        num_coordinates=mechanism.num_coordinates,
    )
    return replace(setup, step_codec=watched(setup.step_codec), mechanism=silent)


def integers(setup: RoundSetup, batches: list[TrajectoryBatch]) -> Any:
    """What the first release of one agent is, before noise."""
    state = with_clip(setup, initial_federation_state(bytes(32), theta(setup)))
    if state.clip is not None:
        state = replace(state, clip=0.02)  # far from the plan's: rows are scaled up
    Watched.seen.clear()
    found = contribute(
        without_noise(setup),
        local_trainer(setup),
        published_model(setup, published(state)),
        experience=lambda parameters, step: batches[step],
        admit=frozenset if setup.plan.unit is Unit.PERSON else None,
        rotation_seed=bytes(32),
        entropy=SameForEveryUnit(setup.codec.padded),
    )
    assert found.fault is None
    return Watched.seen[0]


def theta(setup: RoundSetup) -> Any:
    return np.random.default_rng(5).normal(size=setup.policy.num_parameters)


def batch_of(setup: RoundSetup, seed: int = 0) -> TrajectoryBatch:
    """Steps that differ in length; person: three names, one of them three times."""
    rng = np.random.default_rng(seed)
    count, horizon = setup.plan.fleet.trajectories, setup.plan.fleet.horizon
    mask = np.arange(horizon) < rng.integers(5, horizon + 1, count)[:, None]
    return TrajectoryBatch(
        observations=rng.normal(size=(count, horizon, 4)).astype(np.float32),
        actions=rng.integers(0, 2, (count, horizon)),
        rewards=rng.normal(1.0, 3.0, size=(count, horizon)).astype(np.float32),
        mask=mask,
        terminated=np.zeros(count, dtype=np.bool_),
        truncated=np.ones(count, dtype=np.bool_),
        subjects=("a", "b", "a", "a") if setup.plan.unit is Unit.PERSON else None,
    )


def filled(field: str, value: float, *, whole: bool = True) -> Change:
    def change(batch: TrajectoryBatch, rows: Any) -> TrajectoryBatch:
        array = np.array(getattr(batch, field))
        array[(rows,) if whole else (rows, 0)] = value
        return replace(batch, **{field: array})

    return change


def with_actions(value: float) -> Change:
    """Actions that a foreign environment gives as real numbers, some of them impossible."""

    def change(batch: TrajectoryBatch, rows: Any) -> TrajectoryBatch:
        actions = batch.actions.astype(np.float64)
        actions[rows, 0] = value
        return replace(batch, actions=actions)

    return change


CHANGES: dict[str, Change] = {
    "absent": filled("mask", False),
    "another": lambda batch, rows: filled("rewards", -9.0)(
        filled("observations", 2.0)(batch, rows), rows
    ),
    "rewards without a number": filled("rewards", np.nan),
    "infinite reward": filled("rewards", np.inf, whole=False),
    "huge rewards": filled("rewards", 3e38),
    "tiny rewards": filled("rewards", 1e-45),
    "infinite observations": filled("observations", -np.inf),
    "an observation without a number": filled("observations", np.nan, whole=False),
    "huge observations": filled("observations", 3e38),
    "actions out of range": filled("actions", -(2**63), whole=False),
    "an action without a number": with_actions(np.nan),
    "an infinite action": with_actions(np.inf),
}


def rows_of_one_unit(setup: RoundSetup) -> Any:
    if setup.plan.unit is Unit.AGENT:
        return slice(None)
    return [0, 2, 3] if setup.plan.unit is Unit.PERSON else [0]


@pytest.mark.parametrize("name", PLANS)
def test_one_unit_moves_the_integers_by_at_most_what_every_ledger_is_charged_for(
    make_plan: Make, name: str
) -> None:
    setup = round_setup(make_plan(*PLANS[name], policy={"hidden": ()}))
    event = setup.charge("task/0/0", group="g").event
    assert isinstance(event, SkellamEvent | DiscreteGaussianEvent)
    bound = event.sensitivity
    assert bound.unit is setup.plan.unit
    twice = bound.for_adjacency(Adjacency.REPLACE_ONE)
    rows, every = rows_of_one_unit(setup), np.arange(setup.plan.fleet.trajectories)
    absent = CHANGES["absent"]

    def sums(change: Change, *, alone: bool = False) -> Any:
        """An agent is a unit with all its batches, others are in the first one."""
        batches = [batch_of(setup), batch_of(setup, 1)]
        for index in (0, 1) if setup.plan.unit is Unit.AGENT else (0,):
            batches[index] = change(batches[index], rows)
            if alone:
                batches[index] = absent(batches[index], np.setdiff1d(every, every[rows]))
        return integers(setup, batches)

    changes = CHANGES | {"as it was": lambda batch, rows: batch}
    gone = sums(absent)
    worlds = {key: sums(change) for key, change in changes.items()}
    assert np.abs(worlds["as it was"] - gone).any()
    for key, found in worlds.items():
        moved = found - gone
        # exactly its own integers: nobody else's row moved by a bit
        own = sums(changes[key], alone=True)
        np.testing.assert_array_equal(moved, own, err_msg=key)
        assert (moved**2).sum() <= bound.l2_squared, key
        assert np.abs(moved).sum() <= bound.l1, key
        replaced = found - worlds["as it was"]
        assert (replaced**2).sum() <= twice.l2_squared, key
        assert np.abs(replaced).sum() <= twice.l1, key


def test_a_trajectory_of_one_step_leaves_the_sums_of_all_others_as_they_are(
    make_plan: Make,
) -> None:
    setup = round_setup(make_plan(LOCAL))
    first = [batch_of(setup), batch_of(setup, 1)]
    second = [first[0], filled("rewards", 3e38)(first[1], [0])]
    seen = []
    for batches in (first, second):
        integers(setup, batches)
        seen.append([sums.tobytes() for sums in Watched.seen])
    assert len(seen[0]) == len(seen[1]) == setup.plan.training.local_steps
    assert seen[0][0] == seen[1][0]


GROUPS = {
    "gradient": (None, None),
    "returns": (MeanReturnRelease(low=-1.0, high=1.0, weight=10.0, spread=True), None),
    "clip": (None, AdaptiveClip(low=1e-3, high=1e3, weight=1e-3)),
}


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(GROUPS)),
    exponents=st.lists(st.floats(-308.0, 308.0), min_size=1, max_size=6),
    clip=st.sampled_from([1e-11, 1e-3, 1.0, 0.3, 1e9]),
    seed=st.integers(0, 2**32),
)
def test_no_row_that_training_makes_is_refused_by_the_encoder(
    make_plan: Make, name: str, exponents: list[float], clip: float, seed: int
) -> None:
    """A refusal would end an agent visibly, and what it refuses is data."""
    returns, adaptive = GROUPS[name]
    if adaptive is not None:
        adaptive = replace(adaptive, low=clip / 10.0, high=max(clip, 1.0))
    setup = _encoder(make_plan, clip, returns, adaptive)
    trainer = local_trainer(setup).settings
    groups = row_groups(
        setup.policy.num_parameters,
        clip_norm=clip,
        return_release=trainer.return_release,
        clip_quantile=trainer.clip_quantile,
    )
    rng = np.random.default_rng(seed)
    with np.errstate(over="ignore"):
        scales = 10.0 ** np.array(exponents)[:, None]
        rows = rng.normal(size=(len(exponents), setup.dimension)) * scales
    found = clip_by_group(rows, groups)
    update = LocalUpdate(
        rows=found.rows,
        clip_norm=found.clip_norm,
        unit=setup.plan.unit,
        nonfinite_units=0,
        batch_id=b"rows",
    )
    units = setup.codec.encode_units(update.rows, rotation_seed=seed.to_bytes(32, "big"))
    assert units.shape == (setup.codec.padded,)


def _encoder(
    make_plan: Make, clip: float, returns: MeanReturnRelease | None, adaptive: AdaptiveClip | None
) -> RoundSetup:
    privacy = {"clip_norm": clip, "mean_return": returns, "adaptive_clip": adaptive}
    return round_setup(make_plan(privacy=privacy, fleet={"trajectories": 6}))


@pytest.mark.parametrize("gradient", [fused, hooks])
@pytest.mark.parametrize("name", sorted(CHANGES))
def test_no_path_to_gradients_lets_one_trajectory_change_a_bit_of_the_others(
    make_plan: Make, gradient: TrajectoryGradient, name: str
) -> None:
    """Bit for bit, as rounding to the grid turns a last bit into a whole step."""
    setup = round_setup(make_plan())
    policy = MlpPolicy(observation_size=4, hidden=(8,), action="categorical", action_size=2)
    network = TorchMlp(policy, theta(setup))
    batch = with_actions(0.0)(batch_of(setup), [0])
    changed = CHANGES[name](batch, [0])
    before, after = (
        private_rows(
            Models(network), one, Objective(gamma=0.99), clip_norm=1.0, gradient=gradient
        ).rows
        for one in (batch, changed)
    )
    assert before[1:].tobytes() == after[1:].tobytes()
    # nonsense is zero on either path
    if name in {key for key in CHANGES if "number" in key or "nfinite" in key or "range" in key}:
        assert not after[0].any()


# --- what else anybody could see ------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What a round shows of one agent, but for the bytes of its vector."""

    sizes: tuple[int, ...]
    charges: tuple[Any, ...]
    calls: int
    journal: tuple[tuple[str, int], ...]


def seen_of(world: Any, name: str) -> Seen:
    world.run()
    ledger: Ledger = world.ledgers[name]
    journal = sqlite3.connect(world.home / f"{name}.jnl")
    tables = [
        row[0] for row in journal.execute("SELECT name FROM sqlite_master WHERE type='table'")
    ]
    counts = tuple(
        (table, journal.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
        for table in sorted(tables)
    )
    journal.close()
    return Seen(
        sizes=tuple(len(data) for data in world.sent[name]),
        charges=tuple(
            (one.charge.release_id, one.charge.event, one.event, one.charge.max_participations)
            for one in ledger.reservations()
        ),
        calls=sum(call[0] == name for call in world.calls),
        journal=counts,
    )


@pytest.mark.parametrize("name", sorted({"agent", "local", "central", "gaussian", "adaptive"}))
def test_what_a_unit_contains_shows_in_no_size_ledger_journal_or_number_of_calls(
    make_plan: Make, make_world: Any, name: str
) -> None:
    layers: dict[str, dict[str, Any]] = {
        "agent": AGENT,
        "local": LOCAL,
        "central": {"privacy": {"mechanism": "central-discrete-gaussian"}},
        "gaussian": {"privacy": {"mechanism": "discrete-gaussian"}},
        "adaptive": METRICS["everything"],
    }
    plan = make_plan(layers[name], fleet={"agents": 4, "horizon": 20}, **FOUR)
    everything = slice(None)
    found = []
    for change, rows in (
        (None, None),
        (CHANGES["absent"], [0]),
        (CHANGES["absent"], everything),
        (CHANGES["rewards without a number"], [0]),
        (CHANGES["huge observations"], [0]),
    ):
        world = make_world(plan)
        if change is not None:
            world.experience["agent-000"] = _changed(world, change, rows)
        found.append(seen_of(world, "agent-000"))
        assert world.agents["agent-000"].fault is None
    assert found[0].charges
    assert all(one == found[0] for one in found)


def _changed(world: Any, change: Change, rows: Any) -> Any:
    def experience(name: str, parameters: Any, position: Any) -> TrajectoryBatch:
        found: TrajectoryBatch = change(world.batch(name, parameters, position), rows)
        return found

    return experience


@pytest.mark.parametrize("kind", ["pairwise", "bfv"])
@pytest.mark.parametrize("name", ["skellam", "gaussian", "central", "local", "person", "agent"])
def test_every_ledger_holds_the_coordinators_event_or_a_costlier_one(
    tmp_path: Path, make_plan: Make, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    """Agents that vanish keep the worst case; nobody is charged for noise that is not there."""
    layers: dict[str, dict[str, Any]] = {
        "skellam": {},
        "gaussian": {"privacy": {"mechanism": "discrete-gaussian"}},
        "central": {"privacy": {"mechanism": "central-discrete-gaussian"}},
        "local": LOCAL,
        "person": PERSON,
        "agent": AGENT,
    }
    _vaults_in_process(monkeypatch)
    plan = make_plan(
        layers[name],
        federation={"rounds": 2},
        protection={"kind": kind},
        simulation={"dropouts_per_round": 2},
    )
    setup = round_setup(plan)
    simulate(plan, out=tmp_path / "run", seed=5, runtime=ONE)
    rows = simulation.RunDirectory(tmp_path / "run").rows("metrics.jsonl")
    main = _events(tmp_path / "run" / "ledger.db")
    for index, row in enumerate(rows):
        (event,) = [one for key, one in main.items() if f"/{index}/" in key]
        assert event == setup.settled(len(row["survivors"]))
        assert len(row["survivors"]) - plan.privacy.max_colluding >= plan.honest_floor
    people = [f"agent-{k:03d}" for k in range(plan.fleet.agents)]
    for one in [*people, *([KEY_AUTHORITY] if kind == "bfv" else [])]:
        held = _events(tmp_path / "run" / "agents" / one / "ledger.db")
        # a row for each private step of an agent, all about the one release of its round
        release = {key: key if key in main else key.rpartition("/")[0] for key in held}
        assert set(release.values()) <= set(main)
        assert all(event in (main[release[key]], setup.worst_event) for key, event in held.items())
    if kind == "bfv":
        assert held == main


def _events(path: Path) -> dict[str, Any]:
    with Ledger.open(path, read_only=True) as ledger:
        return {one.charge.release_id: one.event for one in ledger.reservations()}


def _vaults_in_process(patch: pytest.MonkeyPatch) -> None:
    """Each process of a vault costs 0.3 s, and is not the point here."""
    patch.setattr(
        simulation, "Trustee", lambda *args, **more: Trustee(*args, vault=LocalVault, **more)
    )


@pytest.mark.parametrize(
    "mechanism", ["skellam", "discrete-gaussian", "central-discrete-gaussian", "local-skellam"]
)
def test_replace_one_figures_are_those_of_twice_the_sensitivity(
    make_plan: Make, mechanism: str
) -> None:
    """Never below the ideal mechanism's, above it only by what the sampler's deviation costs."""
    layer = LOCAL if mechanism == "local-skellam" else {"privacy": {"mechanism": mechanism}}
    setup = round_setup(make_plan(layer))
    delta = setup.plan.privacy.delta
    for view in setup.plan.check().views:
        if view.epsilon is None or view.epsilon_replace is None:
            continue
        event: Any = setup.event(view.honest_shares)
        double = replace(event, sensitivity=event.sensitivity.for_adjacency(Adjacency.REPLACE_ONE))
        for figure, charged in ((view.epsilon, event), (view.epsilon_replace, double)):
            ideal = epsilon_of_counts({charged: 1}, delta).epsilon
            assert ideal * (1 - 1e-12) <= figure <= ideal * (1 + 1e-6)
        assert view.epsilon_replace > view.epsilon


@pytest.mark.parametrize("kind", ["pairwise", "bfv", "none"])
def test_no_file_of_a_run_holds_or_pins_a_sum_before_its_central_noise(
    tmp_path: Path, make_plan: Make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The record of a round pins the noised sum, so a guess at the exact one cannot be checked."""
    _vaults_in_process(monkeypatch)
    sums: list[tuple[Any, Any]] = []
    noised = central_noise.with_central_noise

    def watching(setup: RoundSetup, total: Any, entropy: Any) -> Any:
        sums.append((np.array(total), noised(setup, total, entropy)))
        return sums[-1][1]

    for place in (releases, trustee):
        monkeypatch.setattr(place, "with_central_noise", watching)
    plan = make_plan(
        privacy={"mechanism": "central-discrete-gaussian"},
        federation={"rounds": 2},
        protection={"kind": kind},
    )
    simulate(plan, out=tmp_path / "run", seed=3, runtime=ONE)
    records = sorted((tmp_path / "run" / "transcript").glob("*.bin"))
    assert len(records) == len(sums) == 2
    for record, (exact, shown) in zip(records, sums, strict=True):
        form: Any = HETranscript if kind == "bfv" else Transcript
        transcript = form.from_bytes(record.read_bytes())
        transcript.verify_sum(shown)
        with pytest.raises(AuthenticationFailed):
            transcript.verify_sum(exact)
    written = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(exact.tobytes() in data for exact, _ in sums for data in written)


# --- units over a run -----------------------------------------------------------------------------


def test_a_batch_that_comes_back_in_a_later_step_ends_the_agent_before_anything_is_sent(
    make_plan: Make, make_world: Any
) -> None:
    world = make_world(make_plan(LOCAL))
    kept: list[TrajectoryBatch] = []

    def again(name: str, parameters: Any, position: Any) -> TrajectoryBatch:
        kept.append(kept[0] if kept else world.batch(name, parameters, position))
        return kept[-1]

    world.experience["agent-000"] = again
    (mine,) = [each for each in world.coordinator().open_round() if each.recipient == "agent-000"]
    with pytest.raises(PrivacyError, match="batch must be fresh"):
        world.agents["agent-000"].start(mine.data)
    assert world.agents["agent-000"].finished
    assert len(world.ledgers["agent-000"]) == 0


def person_setup(make_plan: Make, **privacy: Any) -> RoundSetup:
    return round_setup(make_plan(PERSON, privacy=privacy))


def person_round(
    setup: RoundSetup, register: ParticipationRegister, index: int, **more: Any
) -> Any:
    given: dict[str, Any] = {"subjects": ("a", "b", "a", "c")} | more
    batch = replace(batch_of(setup, index), **given)
    return contribute(
        setup,
        local_trainer(setup),
        published_model(setup, theta(setup)),
        experience=lambda parameters, step: batch,
        admit=admission(setup, register, f"task/{index}/0"),
        rotation_seed=bytes(32),
        entropy=system_entropy,
    )


def test_a_person_without_a_row_is_counted_and_duplicates_are_counted_once(
    make_plan: Make,
) -> None:
    setup = person_setup(make_plan)
    with ParticipationRegister(":memory:") as register:
        person_round(setup, register, 0)
        counts = [register.participations(setup.plan.digest, name) for name in "abc"]
    # two rows for three names: who got one must not show in later rounds
    assert setup.plan.units_per_agent == 2
    assert counts == [1, 1, 1]


def test_when_everybody_has_reached_the_cap_the_integers_are_zero_and_the_noise_is_there(
    make_plan: Make,
) -> None:
    setup = person_setup(make_plan, max_rounds_per_unit=1)
    quiet = without_noise(setup)
    with ParticipationRegister(":memory:") as register:
        Watched.seen.clear()
        for index in range(2):
            assert person_round(quiet, register, index).fault is None
        first, second = Watched.seen
        vector = person_round(setup, register, 2).vector
    assert first.any()
    assert not second.any()
    assert vector.any()


def test_one_attempt_cannot_be_admitted_twice_nor_by_a_register_that_was_taken_away(
    tmp_path: Path, make_plan: Make
) -> None:
    setup = person_setup(make_plan)
    with ParticipationRegister(tmp_path / "participation.db") as register:
        person_round(setup, register, 0)
        with pytest.raises(PrivacyError, match="release_id must be new"):
            person_round(setup, register, 0)
        (tmp_path / "participation.db").unlink()
        with pytest.raises(LedgerIntegrity, match="replaced or removed"):
            person_round(setup, register, 1)


def test_a_batch_that_names_nobody_counts_nobody_and_holds_nothing_of_anybody(
    make_plan: Make,
) -> None:
    setup = person_setup(make_plan)
    quiet = without_noise(setup)
    Watched.seen.clear()
    with ParticipationRegister(":memory:") as register:
        found = person_round(quiet, register, 0, subjects=None)
        assert register.participations(setup.plan.digest, "a") == 0
    assert found.fault is not None
    assert not Watched.seen[0].any()


# --- every combination ----------------------------------------------------------------------------

MECHANISMS = (
    "skellam",
    "discrete-gaussian",
    "central-discrete-gaussian",
    "local-skellam",
    "none",
)


@pytest.mark.parametrize(
    "kind", ["pairwise", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("bfv", "none"))]
)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_whatever_a_plan_combines_it_is_refused_or_runs_and_keeps_its_figure(
    tmp_path: Path,
    make_plan: Make,
    monkeypatch: pytest.MonkeyPatch,
    mechanism: str,
    kind: str,
) -> None:
    _vaults_in_process(monkeypatch)
    ran = 0
    for unit, strategy, metrics in itertools.product(UNITS, ("fedsgd", "fedavg"), METRICS):
        layers = (UNITS[unit], METRICS[metrics], {"privacy": {"mechanism": mechanism}})
        try:
            plan = make_plan(
                *layers,
                fleet={"horizon": 5, "agents": 4},
                federation={"rounds": 1, "strategy": strategy},
                protection={"kind": kind, **FOUR["protection"]},
                simulation={"evaluation_episodes": 1},
            )
            plan.check()
        except ConfigurationError:
            continue
        done = simulate(plan, out=tmp_path / f"{ran}", seed=1, runtime=ONE)
        ran += 1
        claims = done.statement.epsilon.claims
        if mechanism == "none":
            assert isinstance(claims, str)
        else:
            assert not isinstance(claims, str)
            assert claims[0].epsilon <= plan.privacy.epsilon
    assert ran >= 1
