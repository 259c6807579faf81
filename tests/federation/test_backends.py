"""The seam between the ways to form a sum: alike to the caller, and honest about the difference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from privfedrl.errors import ConfigurationError, LocalProtocolError, RoundAborted
from privfedrl.federation.backends import Capabilities, Homomorphic, Opening, Pairwise, Standing
from privfedrl.federation.broadcast import unpack_broadcast
from privfedrl.federation.setup import round_setup
from privfedrl.he import HEAggregator, HEClient, HEConfig
from privfedrl.parties import Identity, MemoryJournal, Registry
from privfedrl.parties.identity import Role
from privfedrl.plan import Plan
from privfedrl.primitives.random import DeterministicEntropy, system_clock
from privfedrl.secagg import OwnEdges, RoundConfig, SecAggClient, SecAggServer, Transcript

SERVICES: tuple[Role, ...] = ("key-authority", "auditor")
OPENING = Opening(
    task_id=b"t" * 32,
    round=0,
    attempt=0,
    model_digest=b"m" * 32,
    previous_transcript=bytes(32),
    round_seed=b"s" * 32,
)


class Parties:
    """Identities and a registry for a plan; ``services`` are the roles that it names."""

    def __init__(self, plan: Plan, services: tuple[Role, ...] = SERVICES) -> None:
        keys = DeterministicEntropy(b"backends")
        names = [f"agent-{index:03d}" for index in range(plan.fleet.agents)]
        self.identities = {
            name: Identity.generate(name, keys) for name in (*names, "coordinator", *services)
        }
        roles: dict[str, Role] = {"coordinator": "coordinator"} | {one: one for one in services}
        self.registry = Registry(
            one.entry(roles.get(name, "agent")) for name, one in self.identities.items()
        )
        self.digest = plan.digest
        self.common: dict[str, Any] = {"registry": self.registry, "plan_digest": plan.digest}

    def standing(self, name: str, seed: bytes) -> Standing:
        return Standing(
            identity=self.identities[name],
            registry=self.registry,
            plan_digest=self.digest,
            entropy=DeterministicEntropy(seed),
            clock=system_clock,
        )

    def open(self, backend: Any, *, settle: Callable[[int], bytes] = lambda _: b"h" * 32) -> Any:
        return backend.open(OPENING, who=self.standing("coordinator", b"seed"), settle=settle)

    def join(self, backend: Any, config: bytes, vector: Any, **changes: Any) -> Any:
        given = {
            "who": self.standing("agent-000", b"agent"),
            "journal": MemoryJournal(),
            "edges": OwnEdges(),
            "received_at": system_clock(),
            "model_digest": OPENING.model_digest,
            "before_release": lambda: None,
        }
        return backend.join(config, vector, **(given | changes))


def backend_of(plan: Plan) -> Any:
    backend = round_setup(plan).backend
    assert backend is not None
    return backend


# --- what a caller may rely on ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "exact", "tolerant", "single"),
    [
        ("pairwise", True, False, False),
        ("bfv", True, True, True),
        ("ckks", False, True, True),
    ],
)
def test_the_capabilities_say_how_the_kinds_differ(
    make_plan: Callable[..., Plan], kind: str, exact: bool, tolerant: bool, single: bool
) -> None:
    plan = make_plan(protection={"kind": kind})
    found = backend_of(plan).capabilities
    assert found == Capabilities(
        exact=exact,
        dropout_tolerant=tolerant,
        single_trusted_decryptor=single,
        max_colluding=plan.privacy.max_colluding,
        bytes_up_per_agent=plan.check().bytes_up_per_agent_round,
    )


def test_a_plan_without_protection_has_no_backend(make_plan: Callable[..., Plan]) -> None:
    assert round_setup(make_plan(protection={"kind": "none"})).backend is None
    assert isinstance(backend_of(make_plan()), Pairwise)
    assert isinstance(backend_of(make_plan(protection={"kind": "bfv"})), Homomorphic)


@pytest.mark.parametrize(
    ("kind", "config_type", "client_type", "server_type"),
    [
        ("pairwise", RoundConfig, SecAggClient, SecAggServer),
        ("bfv", HEConfig, HEClient, HEAggregator),
        ("ckks", HEConfig, HEClient, HEAggregator),
    ],
)
def test_both_kinds_of_backend_open_read_and_join_alike(
    make_plan: Callable[..., Plan],
    kind: str,
    config_type: type[Any],
    client_type: type[Any],
    server_type: type[Any],
) -> None:
    plan = make_plan(protection={"kind": kind})
    backend, parties = backend_of(plan), Parties(plan)
    server, messages = parties.open(backend)
    assert isinstance(server, server_type)
    assert not server.finished
    data = messages[-1].data
    config = backend.read_config(data, now=system_clock(), **parties.common)
    assert isinstance(config, config_type)
    for name in Opening.__slots__:
        assert getattr(config, name) == getattr(OPENING, name)
    assert config.plan_digest == plan.digest
    assert config.registry_digest == parties.registry.digest
    vector = np.arange(round_setup(plan).codec.words, dtype=np.uint32)
    client, first = parties.join(backend, data, vector)
    assert isinstance(client, client_type)
    assert not client.finished
    assert client.survivors == ()
    # a pairwise agent advertises its keys at once, an encrypting one waits for the round's key
    assert len(first) == (kind == "pairwise")


@pytest.mark.parametrize("kind", ["pairwise", "bfv"])
def test_a_config_is_read_for_one_plan_registry_and_time_only(
    make_plan: Callable[..., Plan], kind: str
) -> None:
    plan = make_plan(protection={"kind": kind})
    backend, parties = backend_of(plan), Parties(plan)
    data = parties.open(backend)[1][-1].data
    now = system_clock()
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("PlanMismatch", {"plan_digest": b"other" + bytes(27)}),
        ("RegistryMismatch", {"registry": Registry([*parties.registry.entries, _stranger()])}),
        ("WrongTime", {"now": now + 86_400}),
    ]
    for code, changes in wrong:
        with pytest.raises(RoundAborted, match=code):
            backend.read_config(data, **({"now": now} | parties.common | changes))


def _stranger() -> Any:
    return Identity.generate("agent-999", DeterministicEntropy(b"stranger")).entry("agent")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("bfv", {"parameter_set": "bfv-4096-wide"}),
        ("bfv", {"readding": "none"}),
        ("ckks", {}),
    ],
)
def test_a_config_for_another_way_to_encrypt_is_refused(
    make_plan: Callable[..., Plan], kind: str, changes: dict[str, Any]
) -> None:
    """Even under one plan digest: every number of a round is compared, not only the plan's hash."""
    plan = make_plan(protection={"kind": "bfv"})
    other = make_plan(protection={"kind": kind} | changes)
    parties = Parties(plan)
    data = parties.open(backend_of(other))[1][-1].data
    with pytest.raises(RoundAborted, match="InfeasibleParameters"):
        backend_of(plan).read_config(data, now=system_clock(), **parties.common)


@pytest.mark.parametrize("kind", ["pairwise", "bfv", "ckks"])
def test_a_vector_of_another_form_joins_nothing(make_plan: Callable[..., Plan], kind: str) -> None:
    plan = make_plan(protection={"kind": kind})
    backend, parties = backend_of(plan), Parties(plan)
    data = parties.open(backend)[1][-1].data
    words = round_setup(plan).codec.words
    for wrong in (np.zeros(words - 1, dtype=np.uint32), np.zeros(words, dtype=np.uint64)):
        with pytest.raises(LocalProtocolError, match="vector"):
            parties.join(backend, data, wrong)


# --- the numbers of a round ---------------------------------------------------------------------


@pytest.mark.parametrize("agents", [5, 6, 17, 32])
@pytest.mark.parametrize("mechanism", ["skellam", "none"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bfv", None),
        ("bfv", "bfv-4096-std"),
        ("bfv", "bfv-4096-wide"),
        ("bfv", "bfv-4096-192"),
        ("bfv", "bfv-4096-compact"),
        ("ckks", None),
        ("ckks", "ckks-4096-add"),
    ],
)
def test_every_sum_that_the_codec_allows_fits_its_lane_and_every_lane_its_slot(
    make_plan: Callable[..., Plan], kind: str, name: str | None, mechanism: str, agents: int
) -> None:
    plan = make_plan(
        protection={"kind": kind, "parameter_set": name},
        fleet={"agents": agents},
        privacy={"mechanism": mechanism},
    )
    setup, parameters = round_setup(plan), backend_of(plan).parameters
    chosen, bits, needed = parameters.parameter_set, parameters.value_bits, parameters.sum_bits
    assert parameters.num_clients == agents
    assert parameters.vector_length == setup.codec.words
    assert needed == setup.codec.narrowest_lane_bits <= bits <= plan.encoding.ring_bits
    assert setup.codec.headroom < 2 ** (needed - 1)  # what may be negative needs a sign
    assert agents * (2**bits - 1) < 2**parameters.lane_bits
    assert parameters.lanes * parameters.lane_bits <= chosen.plain_bits
    if kind == "bfv":  # a slot can hold 8 times what honest agents can make of it, or more
        honest = min(agents * (2**bits - 1) + 1, (agents + 1) * 2**needed)
        assert 8 * honest**parameters.lanes <= chosen.plain_modulus
        # and as many lanes share it as that allows
        carry = math.ceil(math.log2(agents))
        assert parameters.lanes == (chosen.plain_bits - 3) // (needed + carry)
    else:
        assert parameters.lanes == 1


@pytest.mark.parametrize(("mechanism", "expected"), [("skellam", "off"), ("none", "model")])
def test_sums_are_compared_by_the_journal_only_where_no_noise_covers_their_difference(
    make_plan: Callable[..., Plan], mechanism: str, expected: str
) -> None:
    for kind in ("pairwise", "bfv", "ckks"):
        plan = make_plan(privacy={"mechanism": mechanism}, protection={"kind": kind})
        assert backend_of(plan).parameters.differencing == expected


# --- the coordinator ----------------------------------------------------------------------------


def world_with(make_world: Callable[..., Any], plan: Plan, services: tuple[Role, ...]) -> Any:
    world, parties = make_world(plan), Parties(plan, services)
    world.identities, world.registry = parties.identities, parties.registry
    return world


@pytest.mark.parametrize("kind", ["bfv", "ckks"])
@pytest.mark.parametrize(
    ("readding", "services", "missing"),
    [
        ("key-authority", (), "key-authority"),
        ("none", ("auditor",), "key-authority"),
        ("auditor", ("key-authority",), "auditor"),
        ("auditor", (), "key-authority"),
    ],
)
def test_a_registry_without_a_needed_role_opens_no_round(
    make_world: Callable[..., Any],
    make_plan: Callable[..., Plan],
    kind: str,
    readding: str,
    services: tuple[Role, ...],
    missing: str,
) -> None:
    plan = make_plan(protection={"kind": kind, "readding": readding})
    world = world_with(make_world, plan, services)
    with pytest.raises(ConfigurationError, match=f"registry must name one {missing} "):
        world.coordinator()


@pytest.mark.parametrize("readding", ["key-authority", "auditor", "none"])
def test_agents_are_invited_with_the_policy_and_services_with_the_signed_config_alone(
    make_world: Callable[..., Any], make_plan: Callable[..., Plan], readding: str
) -> None:
    plan = make_plan(protection={"kind": "bfv", "readding": readding})
    world = world_with(make_world, plan, SERVICES)
    invitations = world.coordinator().open_round()
    expected = ["key-authority", *(["auditor"] if readding == "auditor" else []), *world.names]
    assert [one.recipient for one in invitations] == expected  # each once, the key's owner first
    by_name = {one.recipient: one.data for one in invitations}
    signed = by_name["key-authority"]
    for name in world.names:
        config, parameters = unpack_broadcast(
            by_name[name], num_parameters=world.parameters.shape[0]
        )
        assert config == signed
        assert np.array_equal(parameters, world.parameters)
    policy = world.parameters.astype("<f8").tobytes()
    for name in set(expected) - set(world.names):
        assert by_name[name] == signed
        assert policy[:64] not in by_name[name]
        assert len(by_name[name]) < 1_000


def test_a_plan_that_does_not_encrypt_leaves_registered_services_alone(
    make_world: Callable[..., Any], make_plan: Callable[..., Plan]
) -> None:
    world = world_with(make_world, make_plan(), SERVICES)
    invitations = world.coordinator().open_round()
    assert {one.recipient for one in invitations} == set(world.names)


def test_a_pairwise_round_through_the_seam_is_charged_and_signed_as_before(
    make_world: Callable[..., Any], make_plan: Callable[..., Plan]
) -> None:
    world = world_with(make_world, make_plan(), SERVICES)
    world.agents = {name: world.agent(name) for name in world.names}
    transcript = Transcript.from_bytes(world.run().result().transcript)
    transcript.verify(world.registry)
    assert transcript.ledger_head.hex() == world.ledger.head
    (held,) = world.ledger.reservations()
    assert held.realised == world.setup.event(world.plan.fleet.agents - 1)
