"""The coordinator: it adds what was promised, asks once, and believes only what adds up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from privfedrl.errors import (
    AuthenticationFailed,
    BudgetExceeded,
    ConfigurationError,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    RoundAborted,
)
from privfedrl.he import AggregatorPhase, HEParameters, ParameterSet
from privfedrl.he.agreement import check_roles
from privfedrl.he.digests import commitment, sealed_digest, sum_digest
from privfedrl.he.frames import Kind, encode_frame
from privfedrl.he.residues import pack, unpack
from privfedrl.parties import Identity, Outgoing, Registry
from privfedrl.primitives.random import DeterministicEntropy

NAME = "agent-02"
LIFETIME = 6 * 3600
MODES = ("key-authority", "auditor", "none")
START = (b"t" * 32, 1, 0, b"m" * 32, bytes(32))


def is_from(world: Any, out: Outgoing, kind: Kind, *names: str) -> bool:
    return out.data[7] == kind and world.parse(out.data).sender in names


def lossy(world: Any, kind: Kind, *names: str) -> Any:
    """A wire that loses what these send of ``kind``."""
    return lambda out: [] if is_from(world, out, kind, *names) else [out]


# -- construction and start


def test_pieces_that_do_not_fit_build_no_aggregator(world: Any) -> None:
    other = Identity.generate("coordinator", DeterministicEntropy(b"other"))
    for change in (
        {"identity": other},
        {"identity": world.identities[NAME]},
        {"identity": world.identities["key-authority"]},
        {"plan_digest": b""},
        {"registry": Registry(e for e in world.registry.entries if e.name != NAME)},
    ):
        with pytest.raises(ConfigurationError):
            world.aggregator(**change)


@pytest.mark.parametrize(
    ("role", "readding", "needed"),
    [
        ("key-authority", "key-authority", True),
        ("key-authority", "none", True),
        ("auditor", "auditor", True),
        ("auditor", "key-authority", False),
        ("auditor", "none", False),
    ],
)
def test_a_registry_without_a_needed_role_builds_no_aggregator(
    make_world: Any, role: str, readding: str, needed: bool
) -> None:
    world = make_world(readding=readding, without=(role,))
    if needed:
        with pytest.raises(ConfigurationError, match=f"must name one {role}") as caught:
            world.aggregator()
        assert len(caught.value.problems) == 1
    else:
        assert world.session().run().aggregator.result().survivors == world.names


def test_every_role_that_is_missing_is_named(make_world: Any) -> None:
    """Parameters ask for roles; a registry that has them all passes, whatever else it has."""
    whole, bare = make_world(), make_world(without=("key-authority", "auditor"))
    needed = {
        "key-authority": ["key-authority"],
        "auditor": ["key-authority", "auditor"],
        "none": ["key-authority"],
    }
    for readding, roles in needed.items():
        parameters = make_world(readding=readding).parameters
        check_roles(whole.registry, parameters)
        with pytest.raises(ConfigurationError) as caught:
            check_roles(bare.registry, parameters)
        assert [role for text in caught.value.problems for role in roles if role in text] == roles
        assert all(text in str(caught.value) for text in caught.value.problems)


@pytest.mark.parametrize("extra", [1, 2])
def test_more_agents_than_parameters_build_nobody(make_world: Any, extra: int) -> None:
    world = make_world()
    more = [
        Identity.generate(f"more-{i}", DeterministicEntropy(bytes([i]))).entry("agent")
        for i in range(extra)
    ]
    registry = Registry([*world.registry.entries, *more])
    for build in (world.aggregator, world.authority, lambda **k: world.client(NAME, **k)):
        with pytest.raises(ConfigurationError, match="num_clients must be the number"):
            build(registry=registry)


def test_one_more_client_than_the_set_allows_is_no_set_of_parameters() -> None:
    for name in ("bfv-4096-std", "bfv-4096-compact"):
        chosen = ParameterSet.named(name)
        given: dict[str, Any] = {
            "max_colluding": 1,
            "vector_length": 1,
            "value_bits": 8,
            "parameter_set": chosen,
        }
        most = chosen.max_clients
        assert HEParameters(num_clients=most, threshold=most, **given).num_clients == most
        with pytest.raises(ConfigurationError, match="num_clients must be"):
            HEParameters(num_clients=most + 1, threshold=most, **given)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, b"t" * 31),
        (0, "t" * 32),
        (1, -1),
        (1, 2**63),
        (1, True),
        (2, 2**32),
        (2, 1.0),
        (3, b""),
        (4, None),
    ],
)
def test_a_round_with_an_argument_out_of_range_is_not_opened(
    world: Any, place: int, value: Any
) -> None:
    aggregator = world.aggregator()
    arguments: list[Any] = list(START)
    arguments[place] = value
    with pytest.raises(LocalProtocolError):
        aggregator.start(*arguments)
    assert aggregator.phase is AggregatorPhase.IDLE
    assert len(aggregator.start(*START)) == world.n + 1


def test_the_config_says_what_everybody_pinned_and_goes_to_all_services_first(
    make_world: Any,
) -> None:
    world = make_world(readding="auditor")
    out = world.aggregator().start(*START, b"s" * 32)
    assert [item.recipient for item in out] == ["key-authority", "auditor", *world.names]
    assert len({item.data for item in out}) == 1
    config = world.parse(out[0].data)
    assert (config.task_id, config.round, config.attempt) == START[:3]
    assert (config.model_digest, config.previous_transcript) == START[3:]
    assert (config.plan_digest, config.registry_digest) == (b"p" * 32, world.registry.digest)
    assert config.parameters == world.parameters.canonical_bytes()
    assert config.parameters_digest == world.parameters.digest
    assert (config.opened_at, config.round_seed, config.suite) == (world.now, b"s" * 32, 1)


def test_every_round_draws_another_seed(world: Any) -> None:
    aggregators = [world.aggregator(entropy=DeterministicEntropy(bytes([i]))) for i in range(3)]
    seeds = {world.parse(aggregator.start(*START)[0].data).round_seed for aggregator in aggregators}
    assert len(seeds) == 3


@pytest.mark.parametrize("name", ["coordinator", "key-authority", "auditor"])
def test_no_round_is_opened_by_or_with_an_expired_service(make_world: Any, name: str) -> None:
    world = make_world(readding="auditor", validity={name: (0, 1)})
    aggregator = world.aggregator()
    with pytest.raises(LocalProtocolError, match=f"{name} is not valid"):
        aggregator.start(*START)
    assert aggregator.phase is AggregatorPhase.IDLE


def test_an_expired_agent_is_neither_asked_nor_waited_for(make_world: Any) -> None:
    world = make_world(validity={"agent-04": (0, 1)})
    session = world.session().run()
    assert "agent-04" not in {out.recipient for out in session.carried}
    assert session.aggregator.result().survivors == world.names[:4]


def test_a_commitment_of_an_expired_agent_is_refused(make_world: Any) -> None:
    world = make_world(validity={"agent-04": (0, 1)})
    session = world.session().reach("coordinator", AggregatorPhase.COLLECT_COMMITS)
    with pytest.raises(RemoteProtocolError, match="not expected in this round"):
        session.aggregator.receive(session.frame(Kind.COMMIT, sender="agent-04"))


# -- the honest round


@pytest.mark.parametrize("readding", MODES)
@pytest.mark.parametrize("ring_bits", [32, 64])
@pytest.mark.parametrize("length", [1, 5, 4099])
def test_the_sum_is_the_integer_sum_of_the_survivors(
    make_world: Any, readding: str, ring_bits: int, length: int
) -> None:
    world = make_world(readding=readding, length=length, settings={"ring_bits": ring_bits})
    session = world.session(wire=lossy(world, Kind.UPLOAD, "agent-01")).run()
    result = session.aggregator.result()
    left = tuple(name for name in world.names if name != "agent-01")
    assert result.survivors == session.aggregator.survivors == left
    assert result.vector.dtype == np.dtype(f"uint{ring_bits}")
    assert (result.vector == world.ideal(left)).all()


@pytest.mark.parametrize("readding", MODES)
def test_repeats_and_reversed_order_change_no_sum(make_world: Any, readding: str) -> None:
    world = make_world(readding=readding)

    def twice(out: Outgoing) -> list[Outgoing]:
        return [out, out] if session.parts[out.recipient].phase.name != "IDLE" else [out]

    def services_first(waiting: list[Outgoing]) -> list[Outgoing]:
        """Agents in reverse; what goes to one recipient stays in order, as on a stream."""
        names = sorted({out.recipient for out in waiting}, reverse=True)
        return [out for name in names for out in waiting if out.recipient == name]

    session = world.session(wire=twice, order=services_first, tolerant=True)
    session.run()
    assert (session.aggregator.result().vector == world.ideal(world.names)).all()
    assert all(isinstance(error, RemoteProtocolError) for _, error in session.errors)
    assert {part.phase.name for part in session.parts.values()} == {"DONE"}
    assert world.log.count("decrypt") == 1


@pytest.mark.parametrize("readding", MODES)
def test_uploads_go_to_whoever_readds_and_to_nobody_else(make_world: Any, readding: str) -> None:
    session = make_world(readding=readding).session().run()
    readers = {out.recipient for out in session.carried if out.data[7] == Kind.UPLOAD}
    assert readers == {"coordinator", *({readding} - {"none"})}


def test_only_the_coordinator_gets_the_sum_and_every_roster_member_the_receipt(
    world: Any,
) -> None:
    session = world.session(wire=lossy(world, Kind.UPLOAD, "agent-01")).run()
    openings = [out.recipient for out in session.carried if out.data[7] == Kind.OPENING]
    receipts = [out.recipient for out in session.carried if out.data[7] == Kind.RECEIPT]
    assert openings == ["coordinator"]
    assert receipts == list(world.names)


# -- dropouts


@pytest.mark.parametrize("readding", MODES)
@pytest.mark.parametrize("kind", [Kind.CONFIG, Kind.CONTEXT, Kind.COMMIT, Kind.ROSTER, Kind.UPLOAD])
def test_two_agents_that_are_lost_at_any_stage_cost_nothing_but_themselves(
    make_world: Any, readding: str, kind: Kind
) -> None:
    world = make_world(readding=readding)
    lost = ("agent-01", "agent-04")

    def wire(out: Outgoing) -> list[Outgoing]:
        downstream = out.recipient in lost and out.data[7] == kind
        return [] if downstream or is_from(world, out, kind, *lost) else [out]

    session = world.session(wire=wire, tolerant=True).run()
    result = session.aggregator.result()
    assert {name for name, _ in session.errors} <= set(lost)  # what they get makes no sense to them
    assert result.survivors == tuple(name for name in world.names if name not in lost)
    assert (result.vector == world.ideal(result.survivors)).all()


@pytest.mark.parametrize("kind", [Kind.COMMIT, Kind.UPLOAD])
def test_with_one_agent_less_than_the_floor_nothing_is_opened(world: Any, kind: Kind) -> None:
    session = world.session(wire=lossy(world, kind, *world.names[:3])).run()
    with pytest.raises(RoundAborted) as caught:
        session.aggregator.result()
    assert caught.value.code == "ThresholdNotMet"
    assert "2 answers" in str(caught.value)
    assert "3 needed" in str(caught.value)
    assert "decrypt" not in world.log
    assert not [out for out in session.carried if out.data[7] == Kind.SEALED]


@pytest.mark.parametrize(
    ("readding", "who", "kind", "phase"),
    [
        ("key-authority", "key-authority", Kind.CONTEXT, "collect-context"),
        ("key-authority", "key-authority", Kind.ROSTER, "collect-roster"),
        ("key-authority", "key-authority", Kind.OPENING, "collect-opening"),
        ("auditor", "auditor", Kind.ATTESTATION, "collect-attestation"),
        ("auditor", "key-authority", Kind.OPENING, "collect-opening"),
    ],
)
def test_a_silent_service_ends_the_round(
    make_world: Any, readding: str, who: str, kind: Kind, phase: str
) -> None:
    world = make_world(readding=readding)
    session = world.session(wire=lossy(world, kind, who))
    session.reach("coordinator", AggregatorPhase(phase))
    assert session.aggregator.waiting_for == (who,)
    session.run()
    with pytest.raises(RoundAborted, match=f"Deadline: {who} did not answer"):
        session.aggregator.result()
    assert session.aggregator._uploads is None
    assert session.aggregator._sealed is None


def test_a_phase_that_is_closed_early_goes_on_with_those_who_answered(world: Any) -> None:
    session = world.session()
    for name in world.names[:3]:
        commit = session.intercept("coordinator", Kind.COMMIT)
        session.aggregator.receive(commit)
        assert name not in session.aggregator.waiting_for
    (proposal,) = session.aggregator.close_phase()
    late = session.intercept("coordinator", Kind.COMMIT)
    with pytest.raises(RemoteProtocolError, match="not accepted during collect-roster"):
        session.aggregator.receive(late)
    session.queue = [proposal]
    session.run()
    assert session.aggregator.result().survivors == world.names[:3]


def test_a_phase_that_is_closed_before_anybody_answered_ends_the_round(world: Any) -> None:
    aggregator = world.session().aggregator
    assert aggregator.close_phase() == []
    with pytest.raises(RoundAborted, match="Deadline: key-authority did not answer in time"):
        aggregator.result()


def test_it_waits_for_those_who_have_not_answered(world: Any) -> None:
    session = world.session().reach("coordinator", AggregatorPhase.COLLECT_COMMITS)
    assert session.aggregator.waiting_for == world.names
    frame = session.intercept("coordinator", Kind.COMMIT)
    session.aggregator.receive(frame)
    sender = world.parse(frame).sender
    assert session.aggregator.waiting_for == tuple(n for n in world.names if n != sender)


# -- contexts, commitments and rosters


@pytest.mark.parametrize(
    "change", [{"not_after": 0}, {"not_after": 2**53 - 1}, {"cfg": b"q" * 32}, {"sender": NAME}]
)
def test_a_bad_context_is_refused_and_the_good_one_still_counts(
    world: Any, change: dict[str, Any]
) -> None:
    session = world.session()
    honest = session.intercept("coordinator", Kind.CONTEXT)
    with pytest.raises(RemoteProtocolError):
        session.aggregator.receive(world.forge(honest, **change))
    assert session.aggregator.phase is AggregatorPhase.COLLECT_CONTEXT
    session.queue += session.aggregator.receive(honest)
    session.run()
    assert session.aggregator.result().survivors == world.names


@pytest.mark.parametrize(
    "spoil",
    [
        lambda key: b"\xff" * len(key),
        lambda key: key[:-1],
        lambda key: key + b"\0",
        lambda key: b"",
        lambda key: key[: len(key) // 2],
    ],
    ids=["not below the primes", "short", "long", "empty", "half"],
)
def test_a_public_key_that_is_none_of_these_parameters_reaches_no_agent(
    world: Any, spoil: Any
) -> None:
    """Signed and pinned by the authority itself; without this, every agent would end its round."""
    session = world.session()
    honest = session.intercept("coordinator", Kind.CONTEXT)
    bad = world.forge(honest, attachment=spoil(world.attachment(honest)))
    with pytest.raises(RemoteProtocolError, match=r"(below its prime|must be)"):
        session.aggregator.receive(bad)
    assert session.aggregator.phase is AggregatorPhase.COLLECT_CONTEXT
    assert session.aggregator.waiting_for == ("key-authority",)
    session.queue += session.aggregator.receive(honest)
    session.run()
    assert (session.aggregator.result().vector == world.ideal(world.names)).all()


def test_one_residue_of_the_public_key_at_its_prime_is_noticed(world: Any) -> None:
    session = world.session()
    honest = session.intercept("coordinator", Kind.CONTEXT)
    chosen = world.parameters.parameter_set
    residues = unpack(world.attachment(honest), chosen.primes, chosen.degree, 1).copy()
    residues[0, 1, -1, -1] = chosen.primes[-1]
    spoilt = pack(residues, chosen.primes)
    with pytest.raises(RemoteProtocolError, match="below its prime"):
        session.aggregator.receive(world.forge(honest, attachment=spoilt))
    residues[0, 1, -1, -1] -= np.uint64(1)
    passed = world.forge(honest, attachment=pack(residues, chosen.primes))
    assert len(session.aggregator.receive(passed)) == world.n


def test_a_context_after_the_rounds_time_is_refused(world: Any) -> None:
    session = world.session()
    honest = session.intercept("coordinator", Kind.CONTEXT)
    world.now += LIFETIME + 1
    with pytest.raises(RemoteProtocolError, match="ContextExpired"):
        session.aggregator.receive(honest)


def test_a_second_context_is_refused(world: Any) -> None:
    session = world.session().reach("coordinator", AggregatorPhase.COLLECT_COMMITS)
    with pytest.raises(RemoteProtocolError, match="context is not accepted"):
        session.aggregator.receive(session.frame(Kind.CONTEXT))
    session.run()
    assert session.aggregator.result().survivors == world.names


def test_an_agent_that_commits_to_two_things_is_out(world: Any) -> None:
    session = world.session()
    first = session.intercept("coordinator", Kind.COMMIT)
    name = world.parse(first).sender
    session.aggregator.receive(first)
    with pytest.raises(RemoteProtocolError, match="two different things"):
        session.aggregator.receive(world.forge(first, commitment=b"q" * 32))
    for again in (first, world.forge(first, commitment=b"z" * 32)):
        with pytest.raises(RemoteProtocolError, match="not expected"):
            session.aggregator.receive(again)
    session.tolerant = True  # it still waits for its roster and gets none
    session.run()
    assert session.aggregator.result().survivors == tuple(n for n in world.names if n != name)
    assert session.errors == []


def test_frames_of_strangers_wrong_roles_rounds_and_keys_change_nothing(world: Any) -> None:
    session = world.session()
    honest = session.intercept("coordinator", Kind.COMMIT)
    stranger = Identity.generate("stranger", DeterministicEntropy(b"x"))
    impostor = Identity.generate("agent-00", DeterministicEntropy(b"x"))
    unknown = session.message(Kind.COMMIT, sender="stranger")
    before = session.aggregator.waiting_for
    for data, error in (
        (encode_frame(unknown, stranger), AuthenticationFailed),
        (encode_frame(session.message(Kind.COMMIT), impostor), AuthenticationFailed),
        (world.forge(honest, sender="auditor"), RemoteProtocolError),
        (world.forge(honest, cfg=b"q" * 32), RemoteProtocolError),
        (world.forge(honest, key=b"q" * 32), RemoteProtocolError),
        (honest[:-1], RemoteProtocolError),
        (b"", RemoteProtocolError),
    ):
        with pytest.raises(error) as caught:
            session.aggregator.receive(data)
        assert isinstance(caught.value, ProtocolError)
        assert session.aggregator.waiting_for == before
    session.queue.insert(0, Outgoing("coordinator", honest))
    session.run()
    assert session.aggregator.result().survivors == world.names


@pytest.mark.parametrize(
    "change",
    [
        lambda w, m: {"commitments": b"q" * 32 + m.commitments[32:]},
        lambda w, m: {"commitments": m.commitments[:-1]},
        lambda w, m: {"members": w.members(w.names[:4]), "commitments": m.commitments[:128]},
        lambda w, m: {"members": w.members(w.names[:1]), "commitments": m.commitments[:32]},
        lambda w, m: {"members": b"\x3f"},
    ],
)
def test_a_roster_that_is_not_the_proposed_one_is_refused(world: Any, change: Any) -> None:
    session = world.session()
    honest = session.intercept("coordinator", Kind.ROSTER)
    with pytest.raises(RemoteProtocolError):
        session.aggregator.receive(world.forge(honest, **change(world, world.parse(honest))))
    assert session.aggregator.phase is AggregatorPhase.COLLECT_ROSTER
    session.queue.insert(0, Outgoing("coordinator", honest))
    session.run()
    assert session.aggregator.result().survivors == world.names


# -- uploads


def test_an_upload_that_is_not_the_promised_one_is_refused(world: Any) -> None:
    session = world.session()
    honest = session.intercept("coordinator", Kind.UPLOAD)
    attached = world.attachment(honest)
    changed = bytearray(attached)
    changed[0] ^= 1
    for change in (
        {"attachment": bytes(changed)},
        {"attachment": attached[:-1]},
        {"attachment": b""},
        {"roster": b"q" * 32},
        {"sender": "agent-04"},
        {"key": b"q" * 32},
    ):
        with pytest.raises(RemoteProtocolError):
            session.aggregator.receive(world.forge(honest, **change))
        assert session.aggregator._uploads.names == frozenset()
    session.queue += session.aggregator.receive(honest)
    with pytest.raises(RemoteProtocolError, match="has contributed already"):
        session.aggregator.receive(honest)
    session.run()
    assert (session.aggregator.result().vector == world.ideal(world.names)).all()


def test_an_upload_from_outside_the_roster_is_refused(world: Any) -> None:
    session = world.session(wire=lossy(world, Kind.COMMIT, "agent-04"))
    honest = session.intercept("coordinator", Kind.UPLOAD)
    with pytest.raises(RemoteProtocolError, match="agent-04 is not in the roster"):
        session.aggregator.receive(world.forge(honest, sender="agent-04"))


def test_an_agent_that_promised_what_is_no_ciphertext_is_out(world: Any) -> None:
    """It keeps its promise, and nothing of it gets into the sum."""
    session = world.session()
    junk = b"\xff" * world.parameters.ciphertext_bytes

    def wire(out: Outgoing) -> list[Outgoing]:
        if is_from(world, out, Kind.COMMIT, NAME):
            promised = commitment(session.cfg, session.key, NAME, junk)
            return [Outgoing("coordinator", world.forge(out.data, commitment=promised))]
        if out.recipient == NAME and out.data[7] == Kind.ROSTER:
            fields = {"sender": NAME, "roster": session.authority._roster.digest}
            upload = session.frame(Kind.UPLOAD, attachment=junk, **fields)
            with pytest.raises(RemoteProtocolError, match="below its prime"):
                session.aggregator.receive(upload)
            return []
        return [out]

    session.wire = wire
    session.tolerant = True
    session.run()
    assert session.aggregator.result().survivors == tuple(n for n in world.names if n != NAME)


# -- the ledger


@pytest.mark.parametrize("readding", MODES)
def test_the_ledger_is_charged_once_before_anything_is_asked(
    make_world: Any, readding: str
) -> None:
    world = make_world(readding=readding)
    told: list[tuple[tuple[str, ...], bool]] = []

    def charge(names: tuple[str, ...]) -> bytes:
        asked = [out for out in (*session.carried, *session.queue) if out.data[7] == Kind.SEALED]
        told.append((names, bool(asked)))
        return b"L" * 32

    session = world.session(
        wire=lossy(world, Kind.UPLOAD, "agent-01"), aggregator_changes={"before_open": charge}
    )
    session.run()
    left = tuple(name for name in world.names if name != "agent-01")
    assert told == [(left, False)]
    heads = {
        world.parse(out.data).ledger_head for out in session.carried if out.data[7] == Kind.SEALED
    }
    assert heads == {b"L" * 32}


@pytest.mark.parametrize("missing", [(), ("agent-01",)])
@pytest.mark.parametrize(
    "error", [BudgetExceeded("spent"), OSError("disk"), KeyboardInterrupt(), SystemExit(2)]
)
def test_a_ledger_that_refuses_ends_the_round_and_nothing_is_asked(
    world: Any, error: BaseException, missing: tuple[str, ...]
) -> None:
    """Both where the last upload and where the deadline completes the phase."""

    def refuse(names: tuple[str, ...]) -> bytes:
        raise error

    session = world.session(
        wire=lossy(world, Kind.UPLOAD, *missing), aggregator_changes={"before_open": refuse}
    )
    with pytest.raises(type(error)) as caught:
        session.run()
    assert caught.value is error
    assert session.aggregator.phase is AggregatorPhase.ABORTED
    assert session.aggregator._uploads is None
    with pytest.raises(RoundAborted, match="LocalFault"):
        session.aggregator.result()
    assert not [out for out in session.queue if out.data[7] == Kind.SEALED]
    assert "decrypt" not in world.log


@pytest.mark.parametrize(
    "head",
    [b"", b"L" * 31, b"L" * 33, None, "L" * 32, bytes(32)],
    ids=["empty", "short", "long", "none", "text", "zeros"],
)
def test_nothing_is_asked_without_the_head_of_a_ledger(world: Any, head: Any) -> None:
    """32 bytes that name an entry; zeros name none."""
    session = world.session(aggregator_changes={"before_open": lambda names: head})
    with pytest.raises(LocalProtocolError, match="before_open must give the 32 bytes"):
        session.run()
    assert not [out for out in session.carried if out.data[7] == Kind.SEALED]
    assert session.aggregator.phase is AggregatorPhase.ABORTED


def test_giving_up_from_the_ledger_hook_asks_for_nothing(world: Any) -> None:
    def charge(names: tuple[str, ...]) -> bytes:
        session.aggregator.abort()
        return b"L" * 32

    session = world.session(aggregator_changes={"before_open": charge})
    with pytest.raises(LocalProtocolError):
        session.run()
    assert not [out for out in session.queue if out.data[7] == Kind.SEALED]
    assert session.aggregator.phase is AggregatorPhase.ABORTED
    assert session.aggregator._uploads is None
    with pytest.raises(RoundAborted):
        session.aggregator.result()


# -- attestation and opening


@pytest.mark.parametrize(
    "change",
    [
        {"roster": b"q" * 32},
        {"contributors": b"\x0f"},
        {"sealed": b"q" * 32},
        {"cfg": b"q" * 32},
        {"key": b"q" * 32},
        {"sender": "key-authority"},
    ],
)
def test_an_attestation_for_another_sum_is_refused(make_world: Any, change: Any) -> None:
    world = make_world(readding="auditor")
    session = world.session()
    honest = session.intercept("coordinator", Kind.ATTESTATION)
    with pytest.raises(RemoteProtocolError):
        session.aggregator.receive(world.forge(honest, **change))
    assert session.aggregator.phase is AggregatorPhase.COLLECT_ATTESTATION
    (asked,) = session.aggregator.receive(honest)
    assert asked.recipient == "key-authority"
    assert world.parse(asked.data).attestation == honest
    session.queue = [asked]
    session.run()
    assert session.aggregator.result().record.attestation == honest


def _receipt(world: Any, opening: Any, **changes: Any) -> dict[str, bytes]:
    return {"receipt": world.forge(opening.receipt, **changes)}


BAD_OPENINGS: list[Any] = [
    lambda w, m, words: {"attachment": bytes([words[0] ^ 1]) + words[1:]},
    lambda w, m, words: {"attachment": bytes(len(words))},
    lambda w, m, words: {"attachment": words[:-4]},
    lambda w, m, words: {"attachment": words[:-1]},
    lambda w, m, words: {"attachment": b""},
    lambda w, m, words: {"receipt": b""},
    lambda w, m, words: {"receipt": w.unsigned(m.receipt)},
    lambda w, m, words: _receipt(w, m, cfg=b"q" * 32),
    lambda w, m, words: _receipt(w, m, key=b"q" * 32),
    lambda w, m, words: _receipt(w, m, roster=b"q" * 32),
    lambda w, m, words: _receipt(w, m, contributors=b"\x0f"),
    lambda w, m, words: _receipt(w, m, sealed=b"q" * 32),
    lambda w, m, words: _receipt(w, m, total=b"q" * 32),
    lambda w, m, words: _receipt(w, m, readding="none"),
    lambda w, m, words: _receipt(w, m, sender="coordinator"),
    lambda w, m, words: {"cfg": b"q" * 32},
    lambda w, m, words: {"key": b"q" * 32},
    lambda w, m, words: {"sender": "auditor"},
]


@pytest.mark.parametrize("index", range(len(BAD_OPENINGS)))
def test_an_opening_that_its_receipt_does_not_pin_is_refused(world: Any, index: int) -> None:
    session = world.session()
    honest = session.intercept("coordinator", Kind.OPENING)
    changes = BAD_OPENINGS[index](world, world.parse(honest), world.attachment(honest))
    with pytest.raises((RemoteProtocolError, AuthenticationFailed)):
        session.aggregator.receive(world.forge(honest, **changes))
    assert session.aggregator.phase is AggregatorPhase.COLLECT_OPENING
    with pytest.raises(LocalProtocolError):
        session.aggregator.result()
    session.queue += session.aggregator.receive(honest)
    session.run()
    assert (session.aggregator.result().vector == world.ideal(world.names)).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda words: b"",
        lambda words: words[:-1],
        lambda words: words[:-4],
        lambda words: words + b"\0",
        lambda words: words + bytes(4),
        lambda words: words * 2,
    ],
)
def test_a_sum_of_another_length_is_refused_although_its_receipt_pins_it(
    world: Any, change: Any
) -> None:
    """The authority is consistent with itself, but not with the parameters."""
    session = world.session()
    honest = session.intercept("coordinator", Kind.OPENING)
    other = change(world.attachment(honest))
    receipt = world.forge(world.parse(honest).receipt, total=sum_digest(session.cfg, other))
    with pytest.raises(RemoteProtocolError, match=r"(another length|must be <=)"):
        session.aggregator.receive(world.forge(honest, attachment=other, receipt=receipt))
    assert session.aggregator.phase is AggregatorPhase.COLLECT_OPENING
    session.queue += session.aggregator.receive(honest)
    session.run()
    assert (session.aggregator.result().vector == world.ideal(world.names)).all()


def test_a_receipt_of_another_round_opens_nothing(world: Any) -> None:
    other = type(world)(seed=world.seed).session(round=2).run()
    foreign = other.shown("coordinator", Kind.OPENING)
    session = world.session()
    honest = session.intercept("coordinator", Kind.OPENING)
    with pytest.raises(RemoteProtocolError):
        session.aggregator.receive(foreign)
    mixed = {"receipt": world.parse(foreign).receipt, "attachment": world.attachment(foreign)}
    with pytest.raises(RemoteProtocolError, match="another sum"):
        session.aggregator.receive(world.forge(honest, **mixed))


def test_the_receipt_pins_the_sealed_sum_and_the_vector(world: Any) -> None:
    session = world.session().run()
    result = session.aggregator.result()
    sealed = world.attachment(session.shown("key-authority", Kind.SEALED))
    words = result.vector.astype("<u4").tobytes()
    assert result.receipt.sealed == sealed_digest(session.cfg, session.key, sealed)
    assert result.receipt.total == sum_digest(session.cfg, words)
    assert result.config == world.parse(session.config)
