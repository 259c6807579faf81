"""Whoever adds noise adds it to every coordinate, as wide as charged, and nobody else can tell it.

Each place is given a contribution, or a sum, that holds nothing: what comes out is its noise. And
what the noise sampler may deviate by is charged for as many shares as one unit ever meets.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from privfedrl.encoding import FixedPoint
from privfedrl.federation.contribution import contribute, local_trainer, published_model
from privfedrl.federation.coordinator import initial_federation_state
from privfedrl.federation.releases import OpenRound, release_round
from privfedrl.federation.setup import RoundSetup, round_setup
from privfedrl.federation.trustee import Trustee
from privfedrl.parties import Identity, Registry, SqliteJournal
from privfedrl.plan import Plan
from privfedrl.primitives.random import DeterministicEntropy, Entropy
from privfedrl.privacy import Ledger

Ints = NDArray[np.int64]
Draw = Callable[[Entropy], Ints]
AUTHORITY = "key-authority"
SEED = bytes(range(32))
Sections = dict[str, dict[str, Any]]
CENTRAL: Sections = {"privacy": {"mechanism": "central-discrete-gaussian"}}
LOCAL: Sections = {
    "privacy": {"mechanism": "local-skellam"},
    "federation": {"strategy": "fedavg"},
    "training": {"local_steps": 1, "local_learning_rate": 0.1},
}
PLACES: dict[str, Sections] = {
    "agent": {},
    "agent, discrete Gaussian": {"privacy": {"mechanism": "discrete-gaussian"}},
    "local step": LOCAL,
    "coordinator": CENTRAL,
    "coordinator, correlated": {"privacy": CENTRAL["privacy"] | {"correlation_bands": 3}},
}


def nothing(*_: Any) -> Any:
    raise ValueError("the sensor is broken")


class Forgetful:
    """A memory of past sums in which every round is the first one."""

    def load(self) -> None: ...

    def save(self, data: bytes) -> None: ...


class Signed:
    digest = bytes(32)

    def to_bytes(self) -> bytes:
        return b""


def by_agent(setup: RoundSetup) -> Draw:
    """What leaves an agent whose environment failed."""
    trainer = local_trainer(setup)
    model = published_model(setup, np.zeros(setup.policy.num_parameters))

    def draw(entropy: Entropy) -> Ints:
        found = contribute(
            setup,
            trainer,
            model,
            experience=nothing,
            rotation_seed=SEED,
            entropy=entropy,
        )
        return found.vector.view(np.int32).astype(np.int64)

    return draw


def by_step(setup: RoundSetup, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """The sum of a local step whose environment failed, as it is when it is read."""
    seen: list[Ints] = []
    decode = FixedPoint.decode_sum

    def spy(codec: FixedPoint, total: Any, **options: Any) -> Any:
        seen.append(total.view(np.int64).copy())
        return decode(codec, total, **options)

    monkeypatch.setattr(FixedPoint, "decode_sum", spy)
    send = by_agent(setup)

    def draw(entropy: Entropy) -> Ints:
        seen.clear()
        send(entropy)
        (total,) = seen
        return total

    return draw


def by_coordinator(setup: RoundSetup, ledger: Ledger) -> Draw:
    """What is signed and released of a sum of zeros."""
    state = initial_federation_state(bytes(32), np.zeros(setup.policy.num_parameters))
    names = tuple(f"agent-{index:03d}" for index in range(setup.plan.fleet.agents))
    zero = setup.codec.to_ring(np.zeros(setup.codec.padded, dtype=np.int64))

    def draw(entropy: Entropy) -> Ints:
        seen: list[Any] = []

        def sign(vector: Any) -> Signed:
            seen.append(vector.copy())
            return Signed()

        release_round(
            setup,
            state,
            OpenRound(reservation=0, attempt=0, seed=SEED),
            zero,
            names,
            entropy=entropy,
            sign=sign,
            ledger=ledger,
            memory=None if setup.correlated is None else Forgetful(),
        )
        (released,) = seen
        return np.asarray(released.view(np.int32).astype(np.int64))

    return draw


@pytest.fixture(params=PLACES)
def place(
    request: pytest.FixtureRequest,
    make_plan: Callable[..., Plan],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[tuple[RoundSetup, Draw]]:
    setup = round_setup(make_plan(PLACES[request.param]))
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        if request.param.startswith("coordinator"):
            yield setup, by_coordinator(setup, ledger)
        elif setup.step_codec is not None:
            yield setup, by_step(setup, monkeypatch)
        else:
            yield setup, by_agent(setup)


@pytest.mark.statistical
def test_every_coordinate_carries_noise_as_wide_as_charged(place: tuple[RoundSetup, Draw]) -> None:
    """Mean square of 200 shares, one coordinate at a time.

    By Chernoff it is below 0.4 or above 2 times its mean with probability below 1e-13; for 64
    coordinates and five places, the false-positive rate is below 1e-10.
    """
    setup, draw = place
    entropy = DeterministicEntropy(b"width")
    noise = np.array([draw(entropy) for _ in range(200)], dtype=np.float64)
    assert setup.mechanism is not None
    widths = np.mean(noise**2, axis=0) / setup.mechanism.share_variance
    assert widths.shape == (setup.mechanism.num_coordinates,)
    assert 0.4 < widths.min() <= widths.max() < 2.0


def test_noise_follows_from_the_secret_entropy_and_from_nothing_public(
    place: tuple[RoundSetup, Draw],
) -> None:
    """Everything public is the same in both draws; coordinates agree by chance only."""
    _, draw = place
    shares = [draw(DeterministicEntropy(secret)) for secret in (b"one", b"one", b"two")]
    np.testing.assert_array_equal(shares[0], shares[1])
    assert np.mean(shares[0] == shares[2]) < 0.2


def test_an_agent_draws_its_noise_from_its_own_entropy(make_world: Callable[..., Any]) -> None:
    """Same keys of the coordinator, same public seeds; only one agent's entropy is another."""
    sums = []
    for secret in (b"one", b"one", b"two"):
        world = make_world()
        world.experience = dict.fromkeys(world.names, nothing)
        world.agents["agent-000"] = world.agent("agent-000", entropy=DeterministicEntropy(secret))
        sums.append(world.run().result().released.total)
    np.testing.assert_array_equal(sums[0], sums[1])
    assert np.all(sums[0] != sums[2])


def test_a_coordinator_draws_central_noise_from_what_it_does_not_publish(
    make_world: Callable[..., Any], make_plan: Callable[..., Plan]
) -> None:
    """Rotation seeds are published; the first 32 bytes are one, and the same in every run here."""
    totals = []
    for secret in (b"one", b"one", b"two"):
        world = make_world(make_plan(CENTRAL))
        world.experience = dict.fromkeys(world.names, nothing)
        given = itertools.chain(
            [lambda n: SEED[:n]], itertools.repeat(DeterministicEntropy(secret))
        )
        coordinator = world.run(entropy=lambda n, given=given: next(given)(n))
        totals.append(coordinator.result().released.total)
    np.testing.assert_array_equal(totals[0], totals[1])
    assert np.all(totals[0] != totals[2])


def test_an_opened_sum_of_nothing_is_the_key_authoritys_noise(
    make_world: Callable[..., Any], make_plan: Callable[..., Plan]
) -> None:
    """58 coordinates; false-positive rate below 1e-7 by Chernoff. Other entropy, other noise."""
    totals = []
    for secret in (b"one", b"two"):
        world = make_world(make_plan(CENTRAL, protection={"kind": "bfv"}))
        world.experience = dict.fromkeys(world.names, nothing)
        totals.append(opened(world, DeterministicEntropy(secret)))
        setup = world.setup
        grid = setup.total_clip / setup.plan.encoding.resolution
        width = np.mean((totals[-1] / grid) ** 2) / setup.mechanism.share_variance
        assert 0.25 < width < 3.0
    assert np.all(totals[0] != totals[1])


def opened(world: Any, entropy: Entropy) -> NDArray[np.float64]:
    """The decoded sum of one encrypted round whose key authority draws noise from ``entropy``."""
    world.identities[AUTHORITY] = Identity.generate(AUTHORITY, world.entropy.fork(b"authority"))
    roles = {"coordinator": "coordinator", AUTHORITY: "key-authority"}
    world.registry = Registry(
        one.entry(roles.get(name, "agent")) for name, one in world.identities.items()
    )
    world.agents = {name: world.agent(name) for name in world.names}
    coordinator = world.coordinator()
    with (
        Ledger.open(world.home / "authority.db") as ledger,
        contextlib.closing(SqliteJournal(world.home / "authority.jnl")) as journal,
        Trustee(
            world.plan,
            identity=world.identities[AUTHORITY],
            registry=world.registry,
            ledger=ledger,
            journal=journal,
            entropy=entropy,
        ) as trustee,
    ):
        waiting = coordinator.open_round()
        while not coordinator.finished:
            message = waiting.pop(0)
            answers = (
                [one.data for one in trustee.receive(message.data)]
                if message.recipient == AUTHORITY
                else world.answer(message)
            )
            waiting += itertools.chain.from_iterable(map(coordinator.receive, answers))
    total: NDArray[np.float64] = coordinator.result().released.total
    return total


@pytest.mark.parametrize(
    ("mechanism", "per_round"), [("skellam", 6), ("central-discrete-gaussian", 1)]
)
def test_the_samplers_own_delta_is_charged_for_every_round_that_a_unit_is_in(
    make_plan: Callable[..., Plan],
    agent_unit: dict[str, Any],
    mechanism: str,
    per_round: int,
) -> None:
    plan = make_plan(agent_unit, privacy={"mechanism": mechanism, "epsilon": 50.0})
    setup = round_setup(plan)
    assert setup.mechanism is not None
    shares = per_round * plan.federation.rounds
    needed = setup.mechanism.sampler_delta(epsilon=plan.privacy.epsilon, shares=shares)
    charge = setup.charge("task/0/0", group="task/0/0")
    assert needed > 1e-12  # large enough to show in a double
    assert plan.privacy.delta - charge.delta == pytest.approx(needed, rel=1e-3)
