"""What a client refuses, whoever asks: attacks of the coordinator, the network and its own past."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
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
from privfedrl.parties import Identity, Participation, Registry, SqliteJournal
from privfedrl.parties.opening import CLOCK_TOLERANCE_S
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.secagg import ClientPhase, SecAggParameters, ServerPhase, read_config
from privfedrl.secagg.messages import (
    Advertise,
    UnmaskRequest,
    config_digest,
    encode_frame,
)
from privfedrl.secagg.sizes import MessageType

NAME = "agent-02"
MODEL = b"m" * 32
NOW = 1_800_000_000


def meets(
    session: Any, kind: MessageType, forge: Callable[[bytes], bytes], *, name: str = NAME
) -> str:
    """Show ``name`` the forged frame in place of the honest one of ``kind``; its abort code."""
    client = session.clients[name]
    while True:
        honest = next(out for out in session.out if out.recipient == name)
        if honest.data[7] == kind:
            break
        session.step()
    held = len(session.sent[name])
    with pytest.raises(RoundAborted) as caught:
        client.receive(forge(honest.data))
    assert client.phase is ClientPhase.ABORTED
    assert client._round_keys is None
    assert not client._held_shares
    assert len(session.sent[name]) == held
    with pytest.raises(RoundAborted):  # and the honest frame comes too late
        client.receive(honest.data)
    return str(caught.value.code)


# -- the config


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"plan_digest": b"q" * 32}, "PlanMismatch"),
        ({"model_digest": b"q" * 32}, "ModelMismatch"),
        ({"registry_digest": b"q" * 32}, "RegistryMismatch"),
        ({"parameters": bytes(96)}, "InfeasibleParameters"),
        ({"suite": 2}, "InfeasibleParameters"),
    ],
)
def test_a_config_that_is_not_the_pinned_one_ends_the_round(
    world: Any, change: dict[str, Any], code: str
) -> None:
    session = world.session()
    config = world.forge(session.out[0].data, **change)
    client = session.clients[NAME]
    with pytest.raises(RoundAborted) as caught:
        client.start(config, world.vectors[NAME], model_digest=MODEL)
    assert caught.value.code == code
    assert client.phase is ClientPhase.ABORTED
    with pytest.raises(LocalProtocolError):
        client.start(session.out[0].data, world.vectors[NAME], model_digest=MODEL)


@pytest.mark.parametrize(
    "weaker", [{"threshold": 5}, {"max_colluding": 0}, {"min_honest": 2}, {"ring_bits": 64}]
)
def test_the_coordinator_cannot_choose_the_parameters(world: Any, weaker: dict[str, int]) -> None:
    session = world.session()
    given = {"num_clients": world.n, "max_colluding": 1, "vector_length": world.length} | weaker
    chosen = SecAggParameters(**given).canonical_bytes()
    if chosen == world.parameters.canonical_bytes():
        chosen = SecAggParameters(**(given | {"threshold": 6})).canonical_bytes()
    config = world.forge(session.out[0].data, parameters=chosen)
    with pytest.raises(RoundAborted) as caught:
        session.clients[NAME].start(config, world.vectors[NAME], model_digest=MODEL)
    assert caught.value.code == "InfeasibleParameters"


def test_a_config_can_be_read_and_checked_before_training(world: Any) -> None:
    session = world.session()
    pinned = {
        "registry": world.registry,
        "parameters": world.parameters,
        "plan_digest": b"p" * 32,
        "now": world.now,
    }
    config = read_config(session.out[0].data, **pinned)
    assert (config.round, config.attempt, config.model_digest) == (1, 0, MODEL)
    assert config.decoded_parameters() == world.parameters
    with pytest.raises(AuthenticationFailed):
        read_config(session.out[0].data[:-64] + bytes(64), **pinned)
    with pytest.raises(RoundAborted, match="PlanMismatch"):
        read_config(session.out[0].data, **(pinned | {"plan_digest": b"x" * 32}))


def test_an_unsigned_config_changes_nothing(world: Any) -> None:
    session = world.session()
    client, config = session.clients[NAME], session.out[0].data
    with pytest.raises(AuthenticationFailed):
        client.start(config[:-1] + bytes([config[-1] ^ 1]), world.vectors[NAME], model_digest=MODEL)
    assert client.phase is ClientPhase.IDLE
    session.run()
    assert NAME in session.server.result().survivors


@pytest.mark.parametrize(
    "vector",
    [
        [1, 2, 3, 4, 5],
        np.zeros(5),
        np.zeros(5, np.int32),
        np.zeros(5, np.uint64),
        np.zeros(4, np.uint32),
        np.zeros((5, 1), np.uint32),
    ],
)
def test_a_vector_of_another_form_changes_nothing(world: Any, vector: Any) -> None:
    session = world.session()
    client = session.clients[NAME]
    with pytest.raises(LocalProtocolError, match="vector must be"):
        client.start(session.out[0].data, vector, model_digest=MODEL)
    assert client.phase is ClientPhase.IDLE


def test_the_callers_vector_is_copied(world: Any) -> None:
    session = world.session()
    kept = world.vectors[NAME].copy()
    session.step()
    world.vectors[NAME][:] = 0
    session.run()
    world.vectors[NAME][:] = kept
    assert (session.server.result().vector == world.ideal(world.names)).all()


def test_pieces_that_do_not_fit_build_no_client(world: Any) -> None:
    other = Identity.generate(NAME, DeterministicEntropy(b"other"))
    stranger = Identity.generate("stranger", DeterministicEntropy(b"other"))
    small = Registry([*world.registry.entries[:-2], world.coordinator.entry("coordinator")])
    for change in (
        {"identity": other},
        {"identity": stranger},
        {"identity": world.coordinator},
        {"registry": small},
        {"plan_digest": b"short"},
    ):
        with pytest.raises(ConfigurationError):
            world.client(NAME, **change)


# -- the roster


def test_a_roster_without_this_client_is_refused(world: Any) -> None:
    session = world.session()

    def forge(data: bytes) -> bytes:
        others = {name: frame for name, frame in session.adverts().items() if name != NAME}
        return bytes(world.forge_roster(data, others, shown=others))

    assert meets(session, MessageType.ROSTER, forge) == "RosterMismatch"


def test_a_roster_that_shows_this_client_but_does_not_name_it_is_refused(world: Any) -> None:
    session = world.session()

    def forge(data: bytes) -> bytes:
        others = [name for name in world.names if name != NAME]
        return bytes(world.forge(data, members=world.members(others).to_bytes()))

    assert meets(session, MessageType.ROSTER, forge) == "RosterMismatch"


def _replace_advert(world: Any, data: bytes, name: str, change: Callable[[bytes], bytes]) -> bytes:
    adverts = tuple(
        change(a) if world.parse(a).sender == name else a for a in world.parse(data).adverts
    )
    return bytes(world.forge(data, adverts=adverts))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"share_key": bytes(32)}, "BadSignature"),  # low order
        ({"mask_key": (1).to_bytes(32, "little")}, "BadSignature"),
        ({"mask_key": b"\xff" * 32}, "BadSignature"),  # not canonical
        ({"cfg": b"x" * 32}, "BadSignature"),  # of another round
    ],
)
def test_an_advert_with_unusable_keys_is_refused_although_signed(
    world: Any, change: dict[str, bytes], code: str
) -> None:
    def forge(data: bytes) -> bytes:
        return _replace_advert(world, data, "agent-04", lambda a: world.forge(a, **change))

    assert meets(world.session(), MessageType.ROSTER, forge) == code


def test_a_substituted_key_is_refused(world: Any) -> None:
    def forge(data: bytes) -> bytes:
        def swap(advert: bytes) -> bytes:
            message = world.parse(advert)
            fresh = world.forge(advert, share_key=message.mask_key, mask_key=message.share_key)
            return bytes(fresh[:-64] + advert[-64:])  # the coordinator has no agent's key

        return _replace_advert(world, data, "agent-04", swap)

    assert meets(world.session(), MessageType.ROSTER, forge) == "BadSignature"


def test_equal_keys_are_refused(world: Any) -> None:
    def forge(data: bytes) -> bytes:
        theirs = world.parse(world.parse(data).adverts[0])
        return _replace_advert(
            world, data, "agent-04", lambda a: world.forge(a, mask_key=theirs.mask_key)
        )

    assert meets(world.session(), MessageType.ROSTER, forge) == "DuplicateKey"

    def own_twice(data: bytes) -> bytes:
        return _replace_advert(
            world,
            data,
            "agent-04",
            lambda a: world.forge(a, mask_key=world.parse(a).share_key),
        )

    again = type(world)()
    assert meets(again.session(), MessageType.ROSTER, own_twice) == "BadSignature"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda adverts: adverts[::-1], "RosterMismatch"),
        (lambda adverts: (adverts[0], *adverts[:5]), "RosterMismatch"),
        (lambda adverts: adverts[:4], "RosterMismatch"),  # two members are not shown
        (lambda adverts: (*adverts[:5], b"junk"), "BadSignature"),
    ],
)
def test_a_roster_of_another_form_is_refused(
    world: Any, change: Callable[[Any], Any], code: str
) -> None:
    def forge(data: bytes) -> bytes:
        return bytes(world.forge(data, adverts=change(world.parse(data).adverts)))

    assert meets(world.session(), MessageType.ROSTER, forge) == code


def test_a_roster_below_the_floor_is_refused(world: Any) -> None:
    session = world.session()

    def forge(data: bytes) -> bytes:
        few = {name: session.adverts()[name] for name in world.names[:4]}
        return bytes(world.forge_roster(data, few))

    assert meets(session, MessageType.ROSTER, forge) == "CohortTooSmall"


def test_an_advert_of_a_non_member_is_refused(make_world: Any) -> None:
    world = make_world(n=8)
    session = world.session()

    def forge(data: bytes) -> bytes:
        """agent-07 has advertised and is shown, but is not in the set."""
        seven = world.members(world.names[:-1])
        return bytes(world.forge(data, members=seven.to_bytes()))

    assert meets(session, MessageType.ROSTER, forge) == "RosterMismatch"


def _other_bytes(encoded: bytes) -> list[bytes]:
    """Bitmaps of six agents that are none: padding bits, another length, nothing."""
    flags = encoded[0]
    return [bytes([flags | 0x40]), bytes([flags | 0x80]), encoded + b"\0", b"\0" + encoded, b""]


@pytest.mark.parametrize("variant", range(5))
@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (MessageType.ROSTER, "RosterMismatch"),
        (MessageType.DELIVERY, "RosterMismatch"),
        (MessageType.SURVIVORS, "SurvivorMismatch"),
    ],
)
def test_a_bitmap_with_padding_bits_or_of_another_length_is_refused(
    world: Any, kind: MessageType, code: str, variant: int
) -> None:
    def forge(data: bytes) -> bytes:
        return bytes(world.forge(data, members=_other_bytes(world.parse(data).members)[variant]))

    assert meets(world.session(), kind, forge) == code


@pytest.mark.parametrize("kind", [MessageType.ROSTER, MessageType.DELIVERY, MessageType.SURVIVORS])
@pytest.mark.parametrize("change", [lambda p: p + bytes(32), lambda p: p + b"x", lambda p: p[:-1]])
def test_a_proof_of_another_length_is_refused(
    sparse_world: Any, kind: MessageType, change: Callable[[bytes], bytes]
) -> None:
    world = sparse_world()

    def forge(data: bytes) -> bytes:
        proof = world.parse(data).proof
        assert proof
        return bytes(world.forge(data, proof=change(proof)))

    expected = "SurvivorMismatch" if kind is MessageType.SURVIVORS else "RosterMismatch"
    assert meets(world.session(), kind, forge) == expected


@pytest.mark.parametrize("kind", [MessageType.DELIVERY, MessageType.SURVIVORS])
def test_a_path_with_a_wrong_sibling_is_refused(world: Any, kind: MessageType) -> None:
    def forge(data: bytes) -> bytes:
        proof = world.parse(data).proof
        return bytes(world.forge(data, proof=proof[:-32] + b"z" * 32))

    expected = "SurvivorMismatch" if kind is MessageType.SURVIVORS else "RosterMismatch"
    assert meets(world.session(), kind, forge) == expected


@pytest.mark.parametrize("kind", [MessageType.ROSTER, MessageType.SURVIVORS])
def test_a_message_for_somebody_else_changes_nothing(world: Any, kind: MessageType) -> None:
    session = world.session()
    while next(out for out in session.out).data[7] != kind:
        session.step()
    other = session.shown_to("agent-00", kind)
    with pytest.raises(RemoteProtocolError, match="another client"):
        session.clients[NAME].receive(other)
    session.run()
    assert session.server.result().survivors == world.names


# -- time


@pytest.mark.parametrize("off", [-CLOCK_TOLERANCE_S - 1, CLOCK_TOLERANCE_S + 1, -(10**9)])
def test_a_round_of_another_time_is_refused(world: Any, off: int) -> None:
    session = world.session()
    client = world.client(NAME, clock=lambda: world.now + off)
    with pytest.raises(RoundAborted, match="opened_at") as caught:
        client.start(session.out[0].data, world.vectors[NAME], model_digest=MODEL)
    assert caught.value.code == "WrongTime"
    assert client.phase is ClientPhase.ABORTED


@pytest.mark.parametrize("off", [-CLOCK_TOLERANCE_S, 0, CLOCK_TOLERANCE_S])
def test_a_clock_that_is_an_hour_off_is_forgiven(world: Any, off: int) -> None:
    session = world.session()
    client = world.client(NAME, clock=lambda: world.now + off)
    assert client.start(session.out[0].data, world.vectors[NAME], model_digest=MODEL)


@pytest.mark.parametrize(("dates", "opened_at"), [((0, NOW), NOW + 1), ((NOW, 2 * NOW), NOW - 1)])
def test_a_coordinator_that_is_not_valid_opens_no_round(
    make_world: Any, dates: tuple[int, int], opened_at: int
) -> None:
    world = make_world(validity={"coordinator": dates})
    session = world.session()
    config = world.forge(session.out[0].data, opened_at=opened_at)  # with its real key
    with pytest.raises(RoundAborted, match="coordinator is not valid") as caught:
        session.clients[NAME].start(config, world.vectors[NAME], model_digest=MODEL)
    assert caught.value.code == "UnknownIdentity"
    world.now = opened_at
    with pytest.raises(LocalProtocolError, match="not valid"):
        world.session()


@pytest.mark.parametrize("dates", [(0, NOW - 1), (NOW + 1, 2 * NOW)])
def test_a_client_that_is_not_valid_takes_no_part(make_world: Any, dates: tuple[int, int]) -> None:
    world = make_world(n=8, validity={NAME: dates})
    session = world.session()
    assert NAME not in {out.recipient for out in session.out}
    with pytest.raises(RoundAborted, match="own identity") as caught:
        session.clients[NAME].start(session.out[0].data, world.vectors[NAME], model_digest=MODEL)
    assert caught.value.code == "UnknownIdentity"


def test_the_last_valid_second_still_counts(make_world: Any) -> None:
    world = make_world(validity={NAME: (NOW, NOW), "coordinator": (NOW, NOW)})
    assert world.session().run().server.result().survivors == world.names


def test_an_expired_peer_is_refused_although_it_advertised(make_world: Any) -> None:
    """The coordinator invites somebody whose key was withdrawn, and who still answers."""
    world = make_world(n=8, validity={"agent-04": (0, NOW - 1)})
    session = world.session()
    cfg = _cfg_of(session.out[0].data)
    stray = encode_frame(
        Advertise(cfg=cfg, sender="agent-04", share_key=b"\x09" * 32, mask_key=b"\x0a" * 32),
        world.agents["agent-04"],
    )

    def forge(data: bytes) -> bytes:
        return bytes(world.forge_roster(data, session.adverts() | {"agent-04": stray}))

    assert meets(session, MessageType.ROSTER, forge) == "UnknownIdentity"


def test_an_expired_member_is_refused_even_by_those_who_do_not_mask_with_it(
    sparse_world: Any,
) -> None:
    """Its advert is not shown to them; that the set names it is enough."""
    expired = "agent-39"
    world = sparse_world(validity={expired: (0, NOW - 1)})
    session = world.session()
    session.step()
    message = Advertise(
        cfg=_cfg_of(session.shown[NAME][0]),
        sender=expired,
        share_key=b"\x09" * 32,
        mask_key=b"\x0a" * 32,
    )
    adverts = session.adverts() | {expired: encode_frame(message, world.agents[expired])}
    near = world.cohort_of(adverts).neighbours(expired)
    others = [name for name in world.names if name not in (*near, expired)]
    assert len(near) == 8
    for name in others[:3]:
        honest = session.shown_to(name, MessageType.ROSTER)
        with pytest.raises(RoundAborted) as caught:
            session.clients[name].receive(world.forge_roster(honest, adverts))
        assert caught.value.code == "UnknownIdentity"


def _cfg_of(config: bytes) -> bytes:
    return config_digest(config[12:-64])


# -- the delivery


Leaves = dict[str, bytes]


def _few(leaves: Leaves) -> Leaves:
    return dict(list(leaves.items())[:3])


def _without_me(leaves: Leaves) -> Leaves:
    return {name: leaf for name, leaf in leaves.items() if name != NAME}


def _not_mine(leaves: Leaves) -> Leaves:
    return leaves | {NAME: b"z" * 32}


def _somebody_else(leaves: Leaves) -> Leaves:
    return leaves | {"agent-07": b"z" * 32}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda m: {"sealed": m.sealed[::-1]}, "ShareRejected"),
        (lambda m: {"sealed": (bytes(88), *m.sealed[1:])}, "ShareRejected"),
        (lambda m: {"sealed": m.sealed[1:]}, "Malformed"),
        (lambda m: {"roster": b"z" * 32}, "RosterMismatch"),
        (lambda m: {"root": b"z" * 32}, "RosterMismatch"),
    ],
)
def test_a_delivery_that_does_not_fit_is_refused(
    world: Any, change: Callable[[Any], dict[str, Any]], code: str
) -> None:
    def forge(data: bytes) -> bytes:
        return bytes(world.forge(data, **change(world.parse(data))))

    assert meets(world.session(), MessageType.DELIVERY, forge) == code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (_few, "CohortTooSmall"),
        (_without_me, "RosterMismatch"),
        (_not_mine, "RosterMismatch"),  # another commitment than this client's, rightly proved
        (_somebody_else, "RosterMismatch"),  # registered, but not in the roster
    ],
)
def test_a_well_proved_u2_that_does_not_fit_is_refused(
    make_world: Any, change: Callable[[Leaves], Leaves], code: str
) -> None:
    world = make_world(n=8)
    session = world.session(drop={"agent-07": 0})

    def forge(data: bytes) -> bytes:
        leaves = change(session.commitments())
        near = [name for name in leaves if name != NAME]
        return bytes(world.forge_set(data, leaves, sealed=(bytes(88),) * len(near)))

    assert meets(session, MessageType.DELIVERY, forge) == code


def test_shares_that_are_no_residues_are_refused(world: Any) -> None:
    from privfedrl.secagg.masks import seal_shares

    session = world.session()

    def forge(data: bytes) -> bytes:
        giver = session.clients["agent-00"]
        bad = seal_shares(
            b"\xff" * 72,
            cohort=giver._cohort,
            pair=giver._keys.share_pair,
            sender="agent-00",
            recipient=NAME,
        )
        return bytes(world.forge(data, sealed=(bad, *world.parse(data).sealed[1:])))

    assert meets(session, MessageType.DELIVERY, forge) == "ShareRejected"


def test_a_delivery_for_somebody_else_changes_nothing(world: Any) -> None:
    session = world.session().run(until=ServerPhase.COLLECT_MASKED)
    other = next(out for out in session.out if out.recipient == "agent-00")
    with pytest.raises(RemoteProtocolError, match="another client"):
        session.clients[NAME].receive(other.data)
    session.run()
    assert session.server.result().survivors == world.names


# -- the survivors


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (_few, "CohortTooSmall"),
        (_without_me, "SurvivorMismatch"),
        (_not_mine, "SurvivorMismatch"),  # another vector than this client's, rightly proved
        (_somebody_else, "SurvivorMismatch"),  # in the roster, but not in U2
    ],
)
def test_a_well_proved_survivor_set_that_does_not_fit_is_refused(
    make_world: Any, change: Callable[[Leaves], Leaves], code: str
) -> None:
    world = make_world(n=8)
    session = world.session(drop={"agent-07": 1})

    def forge(data: bytes) -> bytes:
        return bytes(world.forge_set(data, change(session.vector_digests())))

    assert meets(session, MessageType.SURVIVORS, forge) == code


@pytest.mark.parametrize("change", [{"root": b"z" * 32}, {"roster": b"z" * 32}])
def test_survivors_under_another_root_or_roster_are_refused(
    world: Any, change: dict[str, Any]
) -> None:
    def forge(data: bytes) -> bytes:
        return bytes(world.forge(data, **change))

    code = "RosterMismatch" if "roster" in change else "SurvivorMismatch"
    assert meets(world.session(), MessageType.SURVIVORS, forge) == code


# -- the unmask request


def test_two_survivor_sets_cannot_both_be_opened(make_world: Any) -> None:
    """The coordinator shows U3 to some and U3 without one agent to the others."""
    world = make_world(n=8)
    session = world.session().run(until=ServerPhase.COLLECT_CONSISTENCY)
    full = {out.recipient: out.data for out in session.out}
    fewer = dict(list(session.vector_digests().items())[:-1])
    shown_full, shown_short = world.names[:4], world.names[4:-1]
    short = {name: world.forge_set(full[name], fewer) for name in shown_short}
    consents = [session.clients[name].receive(full[name])[0].data for name in shown_full]
    split = [session.clients[name].receive(short[name])[0].data for name in shown_short]
    mixed = sorted([*consents, *split], key=lambda data: world.parse(data).sender)
    for name in (*shown_full, *shown_short):
        client = session.clients[name]
        shown = full[name] if name in shown_full else short[name]
        with pytest.raises(RoundAborted) as caught:
            client.receive(request := unmask_request(world, name, mixed))
        assert caught.value.code == "Equivocation"
        first, second, third = caught.value.evidence
        assert first == shown
        assert third == request  # signed by the coordinator: a colluding client cannot frame it
        assert second in (split if name in shown_full else consents)
        assert client.phase is ClientPhase.ABORTED


def unmask_request(world: Any, recipient: str, consents: list[bytes]) -> bytes:
    consent = world.parse(consents[0])
    message = UnmaskRequest(
        cfg=consent.cfg,
        sender="coordinator",
        recipient=recipient,
        roster=consent.roster,
        consents=tuple(consents),
        receipts=(),
    )
    return encode_frame(message, world.coordinator)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda w, c: c[:3], "ThresholdNotMet"),
        (lambda w, c: (), "ThresholdNotMet"),
        (lambda w, c: (*c[:5], c[0]), "SurvivorMismatch"),  # one signature twice
        (lambda w, c: (*c[:5], c[5][:-64] + bytes(64)), "BadSignature"),
        (lambda w, c: (*c[:5], w.forge(c[5], roster=b"z" * 32)), "Replay"),
        (lambda w, c: (*c[:5], w.forge(c[5], cfg=b"z" * 32)), "Replay"),
        (lambda w, c: (*c[:5], w.forge(c[5], survivors=b"z" * 32)), "Equivocation"),
    ],
)
def test_without_enough_signatures_on_one_set_no_share_leaves(
    world: Any, change: Callable[[Any, Any], Any], code: str
) -> None:
    def forge(data: bytes) -> bytes:
        return bytes(world.forge(data, consents=tuple(change(world, world.parse(data).consents))))

    assert meets(world.session(), MessageType.UNMASK_REQUEST, forge) == code


def test_signatures_of_clients_outside_u3_do_not_count(make_world: Any) -> None:
    world = make_world(n=8)
    session = world.session(drop={"agent-07": 2})

    def forge(data: bytes) -> bytes:
        consents = world.parse(data).consents
        extra = encode_frame(
            type(world.parse(consents[0]))(
                cfg=world.parse(consents[0]).cfg,
                sender="agent-07",
                roster=world.parse(consents[0]).roster,
                survivors=world.parse(consents[0]).survivors,
            ),
            world.agents["agent-07"],
        )
        return bytes(world.forge(data, consents=(*consents, extra)))

    assert meets(session, MessageType.UNMASK_REQUEST, forge) == "SurvivorMismatch"


# -- one share per peer


@pytest.mark.parametrize("dropped", [0, 1, 2])
def test_never_both_shares_of_a_peer_leave_a_client(make_world: Any, dropped: int) -> None:
    world = make_world(n=9)
    gone = world.names[-dropped:] if dropped else ()
    session = world.session(drop=dict.fromkeys(gone, 2)).run(until=ServerPhase.COLLECT_UNMASK)
    held = {name: dict(client._held_shares) for name, client in session.clients.items()}
    session.run()
    for name in (n for n in world.names if n not in gone):
        left = b"".join(session.sent[name])
        for peer, (share_b, share_s) in held[name].items():
            assert (share_b in left) == (peer not in gone)
            assert (share_s in left) == (peer in gone)
        assert not session.clients[name]._held_shares


def test_a_second_unmask_request_gives_nothing(world: Any) -> None:
    session = world.session().run()
    client, request = session.clients[NAME], session.shown[NAME][-1]
    assert client.receive(request) == []
    consents = world.parse(request).consents
    with pytest.raises(RemoteProtocolError, match="after the end"):
        client.receive(world.forge(request, consents=consents[:-1]))
    assert client.phase is ClientPhase.DONE


# -- replay, restart, equivocation


def test_messages_of_another_round_change_nothing(world: Any) -> None:
    old = world.session().run()
    new = world.session(round=2).run(until=ServerPhase.COLLECT_SHARES)
    for data in old.shown[NAME]:
        with pytest.raises(RemoteProtocolError, match="another round"):
            new.clients[NAME].receive(data)
    assert new.run().server.result().survivors == world.names


def test_identical_messages_are_ignored(world: Any) -> None:
    session = world.session()
    while not session.server.finished:
        session.step()
        for name in world.names:
            for data in session.shown[name]:
                assert session.clients[name].receive(data) == []
    assert session.server.result().survivors == world.names


@pytest.mark.parametrize(
    "kind", [MessageType.CONFIG, MessageType.ROSTER, MessageType.DELIVERY, MessageType.SURVIVORS]
)
def test_two_different_messages_in_one_slot_end_the_round_with_evidence(
    world: Any, kind: MessageType
) -> None:
    session = world.session().run(until=ServerPhase.COLLECT_UNMASK)
    client = session.clients[NAME]
    first = next(data for data in session.shown[NAME] if data[7] == kind)
    change = {"round_seed": b"z" * 32} if kind is MessageType.CONFIG else {"roster": b"z" * 32}
    change = {"adverts": ()} if kind is MessageType.ROSTER else change
    second = world.forge(first, **change)
    with pytest.raises(RoundAborted) as caught:
        client.receive(second)
    assert caught.value.code == "Equivocation"
    assert caught.value.evidence == (first, second)


def test_a_restart_after_the_masked_vector_releases_nothing(world: Any, tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal.db")
    world.journals[NAME] = journal
    world.session().run(until=ServerPhase.COLLECT_CONSISTENCY)
    journal.close()
    world.journals = {name: type(j)() for name, j in world.journals.items() if name != NAME}
    world.journals[NAME] = SqliteJournal(tmp_path / "journal.db")
    again = world.session()
    again.run(until=ServerPhase.COLLECT_MASKED)
    delivery = next(out.data for out in again.out if out.recipient == NAME)
    with pytest.raises(LocalProtocolError, match="not newer"):
        again.clients[NAME].receive(delivery)
    assert again.clients[NAME].phase is ClientPhase.ABORTED
    world.journals[NAME].close()


def test_a_survivor_set_is_signed_once_whatever_happens(world: Any) -> None:
    session = world.session().run(until=ServerPhase.COLLECT_CONSISTENCY)
    world.journals[NAME].spend_consistency(  # by an earlier life of the client
        b"t" * 32,
        Participation(
            round=1, attempt=0, model_digest=MODEL, members=world.members(world.names).to_bytes()
        ),
        floor=0,
        scope="model",
    )
    survivors = next(out.data for out in session.out if out.recipient == NAME)
    with pytest.raises(LocalProtocolError):
        session.clients[NAME].receive(survivors)
    assert session.clients[NAME].phase is ClientPhase.ABORTED


def test_a_new_attempt_after_a_lost_round_is_possible(world: Any) -> None:
    world.session().run(until=ServerPhase.COLLECT_CONSISTENCY)
    result = world.session(attempt=1).run().server.result()
    assert (result.vector == world.ideal(world.names)).all()


# -- the differencing guard


def _second_sum(world: Any, gone: int, model: bytes) -> tuple[Any, bytes]:
    """A client of a second round, and the survivors frame it is shown: all without ``gone``."""
    world.session().run().server.result()
    again = world.session(round=2, model=model, drop=dict.fromkeys(world.names[-gone:], 2))
    while again.server.phase is not ServerPhase.COLLECT_CONSISTENCY:
        again.step()
    return again.clients[NAME], again.shown_to(NAME, MessageType.SURVIVORS)


@pytest.mark.parametrize(
    ("scope", "model", "refused"),
    [
        ("off", MODEL, False),
        ("off", b"n" * 32, False),
        ("model", MODEL, True),
        ("model", b"n" * 32, False),
        ("task", MODEL, True),
        ("task", b"n" * 32, True),
    ],
)
def test_a_difference_of_two_sums_that_isolates_a_few_is_not_signed(
    make_world: Any, scope: str, model: bytes, refused: bool
) -> None:
    world = make_world(n=12, settings={"differencing": scope})
    client, survivors = _second_sum(world, 1, model)
    if not refused:
        assert client.receive(survivors)
        return
    with pytest.raises(RoundAborted) as caught:
        client.receive(survivors)
    assert caught.value.code == "Differencing"
    assert client.phase is ClientPhase.ABORTED
    assert client.survivors == ()
    with pytest.raises(RoundAborted) as caught:
        client.receive(survivors)
    assert caught.value.code == "Differencing"
    assert len(world.journals[NAME].participations(b"t" * 32)) == 1  # nothing was recorded


@pytest.mark.parametrize(("gone", "refused"), [(3, True), (4, False)])
def test_clients_that_may_collude_do_not_count_in_an_isolated_group(
    make_world: Any, gone: int, refused: bool
) -> None:
    """Three honest ones must stay together, so with one colluder a group of three is too small."""
    world = make_world(n=12, settings={"differencing": "model", "min_honest": 3})
    client, survivors = _second_sum(world, gone, MODEL)
    if refused:
        with pytest.raises(RoundAborted, match="isolate 3 clients, floor is 4"):
            client.receive(survivors)
    else:
        assert client.receive(survivors)


# -- charge before release


def test_nothing_leaves_when_the_charge_is_refused(world: Any) -> None:
    def refuse() -> None:
        raise BudgetExceeded("epsilon is spent")

    session = world.session()
    client = session.clients[NAME]
    session.sent[NAME] += [
        out.data
        for out in client.start(
            session.out[0].data, world.vectors[NAME], model_digest=MODEL, before_release=refuse
        )
    ]
    advert = session.sent[NAME][0]
    session.server.receive(advert)
    session.out = [out for out in session.out if out.recipient != NAME]
    session.step()
    session.step()
    delivery = next(out.data for out in session.out if out.recipient == NAME)
    with pytest.raises(BudgetExceeded):
        client.receive(delivery)
    assert client.phase is ClientPhase.ABORTED
    with pytest.raises(RoundAborted) as caught:
        client.receive(delivery)
    assert caught.value.code == "LocalFault"


def test_the_charge_comes_once_and_before_the_vector(world: Any) -> None:
    session = world.session()
    client, charges = session.clients[NAME], []
    config = session.out[0].data
    session.out = [out for out in session.out if out.recipient != NAME]
    first = client.start(
        config,
        world.vectors[NAME],
        model_digest=MODEL,
        before_release=lambda: charges.append(client.phase),
    )
    session.server.receive(first[0].data)
    session.run()
    assert charges == [ClientPhase.SHARED]


def test_a_callback_may_raise_any_abort(world: Any) -> None:
    def refuse() -> None:
        raise RoundAborted("SomethingElse", "of the caller")

    session = world.session()
    client = session.clients[NAME]
    config = session.out[0].data
    session.out = [out for out in session.out if out.recipient != NAME]
    session.server.receive(
        client.start(config, world.vectors[NAME], model_digest=MODEL, before_release=refuse)[0].data
    )
    session.step()
    session.step()
    with pytest.raises(RoundAborted, match="SomethingElse"):
        client.receive(next(out.data for out in session.out if out.recipient == NAME))
    assert client.phase is ClientPhase.ABORTED


# -- network noise and secrecy


def test_bytes_that_do_not_authenticate_change_nothing(world: Any) -> None:
    session = world.session()
    while not session.server.finished:
        for out in session.out:
            client = session.clients[out.recipient]
            if client.phase is not ClientPhase.IDLE:
                for junk in (b"", b"junk", out.data[:-1], out.data[:-1] + b"\x00\x00"):
                    with pytest.raises(ProtocolError):
                        client.receive(junk)
        session.step()
    assert session.server.result().survivors == world.names


def test_a_client_shows_its_phase_and_nothing_else(world: Any) -> None:
    session = world.session().run(until=ServerPhase.COLLECT_SHARES)
    client = session.clients[NAME]
    assert repr(client) == "SecAggClient(agent-02, advertised)"
    assert repr(client._keys) == "RoundKeys(<secret>)"
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(LocalProtocolError):
            leave(client)
    with pytest.raises(LocalProtocolError, match="forgotten"):
        world.client(NAME)._keys  # noqa: B018 - reading is the test


def test_a_client_knows_who_is_in_the_sum_it_signed(world: Any) -> None:
    session = world.session()
    assert session.clients[NAME].survivors == ()
    session.run()
    assert session.clients[NAME].survivors == session.server.result().survivors


def test_keys_are_forgotten_as_soon_as_they_have_been_used(world: Any) -> None:
    session = world.session().run(until=ServerPhase.COLLECT_CONSISTENCY)
    assert all(client._round_keys is None for client in session.clients.values())
    session.run()
    assert all(not client._held_shares for client in session.clients.values())
    assert all(client.phase is ClientPhase.DONE for client in session.clients.values())


@pytest.mark.parametrize("how", ["closes", "raises"])
def test_a_hook_that_ends_the_round_keeps_the_vector_in(world: Any, how: str) -> None:
    """It may close the round itself, or raise an error whose code is anything at all."""

    def hook() -> None:
        if how == "closes":
            client.close_phase()
            return
        error: Any = ValueError("of the caller")
        error.code = ["not", "hashable"]
        raise error

    session = world.session()
    client = session.clients[NAME]
    config = session.out[0].data
    session.out = [out for out in session.out if out.recipient != NAME]
    session.server.receive(
        client.start(config, world.vectors[NAME], model_digest=MODEL, before_release=hook)[0].data
    )
    session.step()
    session.step()
    expected = RoundAborted if how == "closes" else ValueError
    with pytest.raises(expected):
        client.receive(next(out.data for out in session.out if out.recipient == NAME))
    assert client.phase is ClientPhase.ABORTED
    assert client._held_shares == {}
