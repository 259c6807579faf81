"""What an agent refuses, whoever asks: coordinator, key authority, network and its own past."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from privfedrl.errors import (
    AuthenticationFailed,
    BudgetExceeded,
    ConfigurationError,
    LocalProtocolError,
    RemoteProtocolError,
    RoundAborted,
)
from privfedrl.he import ClientPhase, HEClient, HEParameters, ParameterSet, read_config
from privfedrl.he.digests import commitment
from privfedrl.he.frames import Kind
from privfedrl.parties import Identity, Outgoing, Registry, SqliteJournal
from privfedrl.parties.opening import CLOCK_TOLERANCE_S
from privfedrl.primitives.random import DeterministicEntropy

NAME = "agent-02"
PLAN = b"p" * 32
LIFETIME = 6 * 3600
OPEN = [phase for phase in ClientPhase if phase.name not in ("DONE", "ABORTED")]


def assert_gone(client: HEClient, world: Any, carried: list[Outgoing]) -> None:
    """It has left, holds nothing, and no upload of its ever went out."""
    assert client.phase is ClientPhase.ABORTED
    assert client.finished
    assert client._vector is None
    assert client._ciphertexts is None
    assert not [out for out in carried if uploaded_by(world, out, NAME)]


def uploaded_by(world: Any, out: Outgoing, name: str) -> bool:
    return out.data[7] == Kind.UPLOAD and world.parse(out.data).sender == name


def meets(session: Any, kind: Kind, forge: Callable[[bytes], bytes]) -> str:
    """Show NAME the forged frame in place of the honest one; its abort code."""
    client = session.parts[NAME]
    frame = session.intercept(NAME, kind)
    with pytest.raises(RoundAborted) as caught:
        client.receive(forge(frame))
    if kind is not Kind.RECEIPT:
        assert_gone(client, session.world, session.carried)
    assert client.phase is ClientPhase.ABORTED
    assert client.survivors == ()
    with pytest.raises(RoundAborted):  # the honest one comes too late
        client.receive(frame)
    return str(caught.value.code)


# -- construction


def test_pieces_that_do_not_fit_build_no_client(world: Any) -> None:
    other = Identity.generate(NAME, DeterministicEntropy(b"other"))
    stranger = Identity.generate("stranger", DeterministicEntropy(b"other"))
    small = Registry(entry for entry in world.registry.entries if entry.name != "agent-04")
    for change in (
        {"identity": other},
        {"identity": stranger},
        {"identity": world.identities["coordinator"]},
        {"identity": world.identities["key-authority"]},
        {"registry": small},
        {"plan_digest": b"short"},
        {"plan_digest": "p" * 32},
    ):
        with pytest.raises(ConfigurationError):
            world.client(NAME, **change)


# -- the config


def _parameters(world: Any, **changes: Any) -> dict[str, bytes]:
    given = {
        name: getattr(world.parameters, name) for name in world.parameters.__dataclass_fields__
    }
    chosen = HEParameters(**(given | changes))
    return {"parameters": chosen.canonical_bytes(), "parameters_digest": chosen.digest}


BAD_CONFIGS: list[tuple[Callable[[Any], dict[str, Any]], str]] = [
    (lambda w: {"plan_digest": b"q" * 32}, "PlanMismatch"),
    (lambda w: {"registry_digest": b"q" * 32}, "RegistryMismatch"),
    (lambda w: {"parameters": bytes(len(w.parameters.canonical_bytes()))}, "InfeasibleParameters"),
    (lambda w: {"parameters_digest": b"q" * 32}, "InfeasibleParameters"),
    (lambda w: _parameters(w, threshold=5), "InfeasibleParameters"),
    (lambda w: _parameters(w, min_clients=4), "InfeasibleParameters"),
    (lambda w: _parameters(w, min_honest=1 + 1, max_colluding=0), "InfeasibleParameters"),
    (lambda w: _parameters(w, vector_length=6), "InfeasibleParameters"),
    (lambda w: _parameters(w, ring_bits=64), "InfeasibleParameters"),
    (lambda w: _parameters(w, value_bits=31, sum_bits=31), "InfeasibleParameters"),
    (lambda w: _parameters(w, sum_bits=31), "InfeasibleParameters"),
    (lambda w: _parameters(w, lifetime_s=LIFETIME + 1), "InfeasibleParameters"),
    (lambda w: _parameters(w, readding="none"), "InfeasibleParameters"),
    (lambda w: _parameters(w, differencing="task"), "InfeasibleParameters"),
    (
        lambda w: _parameters(w, parameter_set=ParameterSet.named("bfv-4096-compact")),
        "InfeasibleParameters",
    ),
    (lambda w: {"opened_at": w.now + CLOCK_TOLERANCE_S + 1}, "WrongTime"),
    (lambda w: {"opened_at": w.now - CLOCK_TOLERANCE_S - 1}, "WrongTime"),
]


@pytest.mark.parametrize("name", [NAME, "key-authority", "auditor"])
@pytest.mark.parametrize("index", range(len(BAD_CONFIGS)))
def test_an_authentic_config_that_is_not_the_pinned_one_ends_the_round_for_good(
    make_world: Any, index: int, name: str
) -> None:
    world = make_world(readding="auditor")
    session = world.session()
    changes, code = BAD_CONFIGS[index]
    with pytest.raises(RoundAborted) as caught:
        session.begin(name, world.forge(session.config, **changes(world)))
    assert caught.value.code == code
    assert session.parts[name].phase.name == "ABORTED"
    with pytest.raises(RoundAborted, match=f"^{code}: "):
        session.parts[name].receive(session.config)
    with pytest.raises(LocalProtocolError, match="start must come first"):
        session.begin(name, session.config)
    assert world.vaults == []
    assert world.log == []


@pytest.mark.parametrize("name", [NAME, "key-authority", "auditor"])
def test_a_config_that_names_another_suite_ends_the_round(make_world: Any, name: str) -> None:
    """The frame's own version says which suite it is in; the config must not say otherwise."""
    session = make_world(readding="auditor").session()
    with pytest.raises(RoundAborted) as caught:
        session.begin(name, session.world.forge(session.config, suite=2))
    assert caught.value.code == "InfeasibleParameters"


@pytest.mark.parametrize("name", [NAME, "key-authority", "auditor"])
def test_whoever_refused_an_authentic_config_has_left_for_good(make_world: Any, name: str) -> None:
    session = make_world(readding="auditor").session()
    part = session.parts[name]
    with pytest.raises(RoundAborted):
        session.begin(name, session.world.forge(session.config, plan_digest=b"q" * 32))
    assert part.phase.name == "ABORTED"
    with pytest.raises(LocalProtocolError):
        session.begin(name, session.config)
    assert session.world.vaults == []


def test_a_config_for_another_model_ends_the_round(world: Any) -> None:
    session = world.session()
    with pytest.raises(RoundAborted) as caught:
        session.begin(NAME, world.forge(session.config, model_digest=b"q" * 32))
    assert caught.value.code == "ModelMismatch"
    assert_gone(session.parts[NAME], world, session.carried)


@pytest.mark.parametrize("off", [-CLOCK_TOLERANCE_S, CLOCK_TOLERANCE_S])
def test_a_config_within_the_tolerance_of_the_clock_is_accepted(world: Any, off: int) -> None:
    session = world.session()
    config = world.forge(session.config, opened_at=world.now + off)
    assert session.begin(NAME, config) == []
    assert session.parts[NAME].phase is ClientPhase.JOINED


def test_an_agent_that_has_trained_since_goes_by_when_the_config_came(world: Any) -> None:
    session = world.session()
    came = world.now
    world.now += 2 * CLOCK_TOLERANCE_S
    with pytest.raises(RoundAborted, match="WrongTime"):
        session.begin("agent-01", session.config)
    session.begin(NAME, session.config, received_at=came)
    assert session.parts[NAME].phase is ClientPhase.JOINED


@pytest.mark.parametrize("name", [NAME, "key-authority", "auditor"])
def test_a_frame_that_is_no_authentic_config_changes_nothing(make_world: Any, name: str) -> None:
    world = make_world(readding="auditor")
    session = world.session()
    config = session.config
    for data, error in (
        (world.unsigned(config), AuthenticationFailed),
        (config[:-1], RemoteProtocolError),
        (b"", RemoteProtocolError),
        (session.frame(Kind.SEALED), RemoteProtocolError),
        (session.frame(Kind.CONFIG, sender=world.names[0]), RemoteProtocolError),
        (session.frame(Kind.CONFIG, sender="key-authority"), RemoteProtocolError),
    ):
        with pytest.raises(error):
            session.begin(name, data)
        assert session.parts[name].phase.name == "IDLE"
    session.run()
    assert session.aggregator.result().survivors == world.names


@pytest.mark.parametrize(
    ("expired", "who"),
    [
        ("coordinator", NAME),
        ("coordinator", "key-authority"),
        ("coordinator", "auditor"),
        (NAME, NAME),
        ("key-authority", "key-authority"),
        ("auditor", "auditor"),
    ],
)
@pytest.mark.parametrize("span", [(0, 1_799_999_999), (1_800_000_001, 2**53 - 1)])
def test_nobody_joins_a_round_outside_its_own_or_the_coordinators_validity(
    make_world: Any, expired: str, who: str, span: tuple[int, int]
) -> None:
    """The coordinator's clock is wrong by an hour, so it signs a config all the same."""
    inside = make_world(readding="auditor").session().config
    world = make_world(readding="auditor", validity={expired: span})
    config = world.forge(inside, registry_digest=world.registry.digest)
    part = {"key-authority": world.authority, "auditor": world.auditor}.get(
        who, lambda: world.client(NAME)
    )()
    vector = {"vector": world.vectors[NAME], "model_digest": b"m" * 32} if who == NAME else {}
    with pytest.raises(RoundAborted) as caught:
        part.start(config, **vector)
    assert caught.value.code == "UnknownIdentity"
    assert part.phase.name == "ABORTED"
    assert world.vaults == []


@pytest.mark.parametrize("edge", [(1_800_000_000, 2**53 - 1), (0, 1_800_000_000)])
def test_both_ends_of_a_validity_are_inside_it(make_world: Any, edge: tuple[int, int]) -> None:
    names = ("coordinator", "key-authority", "auditor", NAME)
    world = make_world(readding="auditor", validity=dict.fromkeys(names, edge))
    assert world.session().run().aggregator.result().survivors == world.names


def test_a_config_can_be_read_and_checked_before_training(world: Any) -> None:
    session = world.session()
    pinned = {
        "registry": world.registry,
        "parameters": world.parameters,
        "plan_digest": PLAN,
        "now": world.now,
    }
    config, cfg = read_config(session.config, **pinned)
    assert (config.round, config.attempt, cfg) == (1, 0, session.cfg)
    with pytest.raises(AuthenticationFailed):
        read_config(world.unsigned(session.config), **pinned)
    with pytest.raises(RoundAborted, match="PlanMismatch"):
        read_config(session.config, **(pinned | {"plan_digest": b"x" * 32}))


@pytest.mark.parametrize(
    "vector",
    [
        [1, 2, 3, 4, 5],
        None,
        np.zeros(5),
        np.zeros(5, np.int32),
        np.zeros(5, np.uint64),
        np.zeros(4, np.uint32),
        np.zeros((5, 1), np.uint32),
    ],
)
def test_a_vector_of_another_form_changes_nothing(world: Any, vector: Any) -> None:
    session = world.session()
    with pytest.raises(LocalProtocolError, match="vector must be"):
        session.begin(NAME, session.config, vector=vector)
    assert session.parts[NAME].phase is ClientPhase.IDLE


def test_the_callers_vector_is_copied(world: Any) -> None:
    session = world.session()
    expected = world.ideal(world.names)
    session.reach(NAME, ClientPhase.JOINED)
    world.vectors[NAME][:] = 0
    session.run()
    assert (session.aggregator.result().vector == expected).all()


# -- what is about another round, or is not authentic


@pytest.mark.parametrize(
    ("kind", "reached"),
    [
        (Kind.CONTEXT, ClientPhase.JOINED),
        (Kind.ROSTER, ClientPhase.COMMITTED),
        (Kind.RECEIPT, ClientPhase.UPLOADED),
    ],
)
def test_what_is_about_another_round_or_key_is_refused_and_does_no_harm(
    world: Any, kind: Kind, reached: ClientPhase
) -> None:
    session = world.session()
    client = session.parts[NAME]
    honest = session.intercept(NAME, kind)
    assert client.phase is reached
    bad = [
        world.forge(honest, cfg=b"q" * 32),
        world.unsigned(honest),
        honest[:-1],
        session.frame(Kind.CONFIG, round=2),
        session.frame(Kind.CONFIG, attempt=1),
        session.frame(Kind.CONFIG, task_id=b"q" * 32),
    ]
    if kind is not Kind.CONTEXT:
        bad.append(world.forge(honest, key=b"q" * 32))
    for data in bad:
        with pytest.raises((RemoteProtocolError, AuthenticationFailed)):
            client.receive(data)
        assert client.phase is reached
    session.queue.insert(0, Outgoing(NAME, honest))
    session.run()
    assert session.aggregator.result().survivors == world.names
    assert client.phase is ClientPhase.DONE


# -- the context


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda m, key: {"not_after": m.not_after + 1}, "ContextExpired"),
        (lambda m, key: {"not_after": m.not_after - 1}, "ContextExpired"),
        (lambda m, key: {"not_after": 0}, "ContextExpired"),
        (lambda m, key: {"attachment": key[:-1]}, "Malformed"),
        (lambda m, key: {"attachment": b""}, "Malformed"),
        (lambda m, key: {"attachment": b"\xff" * len(key)}, "Malformed"),
    ],
)
def test_a_context_that_is_not_a_fresh_key_of_these_parameters_ends_the_round(
    world: Any, change: Any, code: str
) -> None:
    def forge(data: bytes) -> bytes:
        return bytes(world.forge(data, **change(world.parse(data), world.attachment(data))))

    assert meets(world.session(), Kind.CONTEXT, forge) == code


def test_a_context_of_an_expired_key_authority_ends_the_round(make_world: Any) -> None:
    """Only the clients notice: authority and coordinator play along."""
    world = make_world()
    session = world.session()
    honest = session.intercept(NAME, Kind.CONTEXT)
    expired = make_world(validity={"key-authority": (0, world.now - 1)})
    client = expired.client(NAME)
    config = expired.forge(session.config, registry_digest=expired.registry.digest)
    client.start(config, world.vectors[NAME], model_digest=session.model)
    with pytest.raises(RoundAborted) as caught:
        client.receive(expired.forge(honest, cfg=client._cfg))
    assert caught.value.code == "UnknownIdentity"
    assert_gone(client, world, [])


def test_two_public_keys_in_one_round_are_evidence_against_the_authority(world: Any) -> None:
    session = world.session()
    client = session.parts[NAME]
    first = session.intercept(NAME, Kind.CONTEXT)
    client.receive(first)
    second = session.frame(Kind.CONTEXT)
    with pytest.raises(RoundAborted) as caught:
        client.receive(second)
    assert (caught.value.code, caught.value.evidence) == ("Equivocation", (first, second))
    assert_gone(client, world, session.carried)


def test_the_vector_is_forgotten_once_it_is_encrypted(world: Any) -> None:
    session = world.session()
    client = session.parts[NAME]
    session.reach(NAME, ClientPhase.JOINED)
    assert client._vector is not None
    session.reach(NAME, ClientPhase.COMMITTED)
    assert client._vector is None
    assert client._ciphertexts is not None
    session.reach(NAME, ClientPhase.UPLOADED)
    assert client._ciphertexts is None


def test_nothing_but_a_commitment_leaves_before_the_roster(world: Any) -> None:
    session = world.session()
    client = session.parts[NAME]
    (out,) = client_answers(session, Kind.CONTEXT)
    message = world.parse(out.data)
    assert out.recipient == "coordinator"
    expected = commitment(session.cfg, client._key, NAME, client._ciphertexts)
    assert (message.commitment, message.key) == (expected, session.key)
    assert len(out.data) < 400  # a few digests and a signature: no ciphertext
    (upload,) = client_answers(session, Kind.ROSTER, first=out)
    assert world.parse(upload.data).commitment == expected
    sent = world.attachment(upload.data)
    assert commitment(session.cfg, session.key, NAME, sent) == expected


def client_answers(session: Any, kind: Kind, *, first: Outgoing | None = None) -> list[Outgoing]:
    """What NAME answers to the honest frame of ``kind``."""
    if first is not None:
        session.queue.insert(0, first)
    return list(session.parts[NAME].receive(session.intercept(NAME, kind)))


def test_equal_vectors_give_unequal_commitments_and_ciphertexts(world: Any) -> None:
    world.vectors["agent-03"] = world.vectors[NAME]
    session = world.session().run()
    uploads = [world.attachment(out.data) for out in session.carried if out.data[7] == Kind.UPLOAD]
    commits = [world.parse(out.data) for out in session.carried if out.data[7] == Kind.COMMIT]
    assert len(set(uploads)) == world.n
    assert len({commit.commitment for commit in commits}) == world.n


# -- the roster


def _without(world: Any, message: Any, name: str) -> dict[str, bytes]:
    at = 32 * world.names.index(name)
    left = [other for other in world.names if other != name]
    digests = message.commitments
    return {"members": world.members(left), "commitments": digests[:at] + digests[at + 32 :]}


BAD_ROSTERS: list[tuple[Callable[[Any, Any], dict[str, bytes]], str]] = [
    (lambda w, m: _without(w, m, NAME), "RosterMismatch"),
    (lambda w, m: {"commitments": b"q" * 32 * w.n}, "RosterMismatch"),
    (
        lambda w, m: {"commitments": m.commitments[:64] + b"q" * 32 + m.commitments[96:]},
        "RosterMismatch",
    ),
    (lambda w, m: {"commitments": m.commitments[32:] + m.commitments[:32]}, "RosterMismatch"),
    (lambda w, m: {"commitments": m.commitments[:-32]}, "RosterMismatch"),
    (lambda w, m: {"commitments": m.commitments[:-1]}, "RosterMismatch"),
    (lambda w, m: {"commitments": m.commitments + b"q" * 32}, "RosterMismatch"),
    (lambda w, m: {"commitments": b""}, "RosterMismatch"),
    (lambda w, m: {"members": m.members + b"\0"}, "RosterMismatch"),
    (lambda w, m: {"members": b""}, "RosterMismatch"),
    (lambda w, m: {"members": b"\x3f"}, "RosterMismatch"),  # a sixth of five
    (
        lambda w, m: {"members": w.members([NAME, "agent-04"]), "commitments": bytes(64)},
        "CohortTooSmall",
    ),
    (lambda w, m: {"members": b"\0", "commitments": b""}, "CohortTooSmall"),
]


@pytest.mark.parametrize("index", range(len(BAD_ROSTERS)))
def test_the_vector_does_not_leave_under_a_roster_of_another_form_or_without_its_promise(
    world: Any, index: int
) -> None:
    change, code = BAD_ROSTERS[index]

    def forge(data: bytes) -> bytes:
        return bytes(world.forge(data, **change(world, world.parse(data))))

    session = world.session()
    assert meets(session, Kind.ROSTER, forge) == code
    # what did not leave was not recorded as having left
    world.journals[NAME].spend_masked(session.task, session.round, session.attempt)


def test_a_roster_that_leaves_others_out_or_alters_theirs_is_accepted_by_the_rest(
    world: Any,
) -> None:
    """Each agent speaks for its own promise; a roster above the floor is the authority's choice."""
    session = world.session()
    honest = session.intercept(NAME, Kind.ROSTER)
    changed = world.forge(honest, **_without(world, world.parse(honest), "agent-04"))
    assert len(session.parts[NAME].receive(changed)) == 1


def test_a_roster_that_names_an_agent_out_of_its_validity_ends_the_round(make_world: Any) -> None:
    world = make_world(validity={"agent-04": (0, 1)})
    session = world.session()

    def forge(data: bytes) -> bytes:
        digests = world.parse(data).commitments
        changes = {"members": world.members(world.names), "commitments": digests + bytes(32)}
        return bytes(world.forge(data, **changes))

    assert meets(session, Kind.ROSTER, forge) == "UnknownIdentity"


def test_two_rosters_in_one_round_are_evidence_against_the_authority(world: Any) -> None:
    session = world.session()
    client = session.parts[NAME]
    first = session.intercept(NAME, Kind.ROSTER)
    client.receive(first)
    second = world.forge(first, commitments=bytes(32 * world.n))
    with pytest.raises(RoundAborted) as caught:
        client.receive(second)
    assert (caught.value.code, caught.value.evidence) == ("Equivocation", (first, second))
    assert client.phase is ClientPhase.ABORTED


# -- the release


def test_journal_and_hook_come_before_the_upload_and_the_journal_first(world: Any) -> None:
    events: list[str] = []

    class Noting:
        def spend_masked(self, *point: Any) -> None:
            assert point == (session.task, 1, 0)
            events.append("journal")

        def __getattr__(self, name: str) -> Any:
            raise AssertionError(name)

    world.journals[NAME] = Noting()
    session = world.session()
    session.begin(NAME, session.config, before_release=lambda: events.append("hook"))
    session.queue = [out for out in session.queue if out.recipient != NAME]
    client_context = session.intercept(NAME, Kind.CONTEXT)
    session.queue += session.parts[NAME].receive(client_context)
    roster = session.intercept(NAME, Kind.ROSTER)
    assert events == []
    answer = session.parts[NAME].receive(roster)
    assert events == ["journal", "hook"]
    assert len(answer) == 1
    assert session.parts[NAME].receive(roster) == []  # a repeat releases nothing and calls nobody
    assert events == ["journal", "hook"]


@pytest.mark.parametrize(
    "error", [BudgetExceeded("spent"), OSError("disk"), KeyboardInterrupt(), SystemExit(3)]
)
def test_a_hook_that_raises_keeps_the_vector_in(world: Any, error: BaseException) -> None:
    def refuse() -> None:
        raise error

    session = world.session(start_changes={"before_release": refuse})
    roster = session.intercept(NAME, Kind.ROSTER)
    with pytest.raises(type(error)) as caught:
        session.parts[NAME].receive(roster)
    assert caught.value is error
    assert_gone(session.parts[NAME], world, session.carried)
    with pytest.raises(RoundAborted, match="LocalFault"):
        session.parts[NAME].receive(roster)
    with pytest.raises(LocalProtocolError, match="not newer"):  # the attempt stays spent
        world.journals[NAME].spend_masked(session.task, 1, 0)


def test_a_hook_that_raises_an_error_with_an_odd_code_keeps_the_vector_in(world: Any) -> None:
    """The abort code is looked up in the error; whatever it finds there must not stop the end."""

    class Odd(Exception):
        code = ["a", "list"]  # noqa: RUF012 - unhashable on purpose

    def refuse() -> None:
        raise Odd

    session = world.session(start_changes={"before_release": refuse})
    roster = session.intercept(NAME, Kind.ROSTER)
    with pytest.raises(Odd):
        session.parts[NAME].receive(roster)
    assert_gone(session.parts[NAME], world, session.carried)


def test_a_hook_that_leaves_the_round_keeps_the_vector_in(world: Any) -> None:
    """ABORTED is final, also where the hook itself has closed the client."""
    session = world.session()
    client = session.parts[NAME]
    session.begin(NAME, session.config, before_release=client.close_phase)
    session.queue = [out for out in session.queue if out.recipient != NAME]
    context = session.intercept(NAME, Kind.CONTEXT)
    session.queue += client.receive(context)
    roster = session.intercept(NAME, Kind.ROSTER)
    for _ in range(2):
        with pytest.raises(RoundAborted, match="Deadline: this agent has left the round"):
            client.receive(roster)
    assert_gone(client, world, session.carried)
    with pytest.raises(LocalProtocolError, match="not newer"):  # the attempt stays spent
        world.journals[NAME].spend_masked(session.task, 1, 0)


def test_a_journal_that_cannot_record_keeps_the_vector_in(world: Any, tmp_path: Path) -> None:
    called: list[int] = []
    journal = SqliteJournal(tmp_path / "journal.db")
    session = world.session(
        client_changes={"journal": journal},
        start_changes={"before_release": lambda: called.append(1)},
    )
    roster = session.intercept(NAME, Kind.ROSTER)
    journal.close()
    with pytest.raises(OSError, match="cannot record"):
        session.parts[NAME].receive(roster)
    assert_gone(session.parts[NAME], world, session.carried)
    assert called == []


def test_a_restarted_agent_uploads_nothing_more_in_the_same_attempt(
    world: Any, tmp_path: Path
) -> None:
    """It dies after its upload; the same journal, opened anew, says what has left."""
    world.journals[NAME] = SqliteJournal(tmp_path / "journal.db")
    session = world.session().reach(NAME, ClientPhase.UPLOADED)
    world.journals[NAME].close()
    world.journals[NAME] = SqliteJournal(tmp_path / "journal.db")
    again = type(world)(seed=world.seed)
    again.journals[NAME] = world.journals[NAME]
    called: list[int] = []
    second = again.session(start_changes={"before_release": lambda: called.append(1)})
    roster = second.intercept(NAME, Kind.ROSTER)
    before = len(called)
    with pytest.raises(LocalProtocolError, match="not newer"):
        second.parts[NAME].receive(roster)
    assert_gone(second.parts[NAME], again, second.carried)
    assert len(called) == before
    third = again.session(attempt=1, authority_changes={"journal": _fresh(again)})
    third.run()
    assert NAME in third.aggregator.result().survivors
    assert session.parts[NAME].phase is ClientPhase.UPLOADED
    again.journals[NAME].close()


def _fresh(world: Any) -> Any:
    return type(world.journals["key-authority"])(world.log)


def test_an_agent_that_restarts_before_its_upload_may_join_again(world: Any) -> None:
    """Nothing has left, so nothing is spent; the other agents never notice."""
    session = world.session().reach(NAME, ClientPhase.JOINED)
    session.parts[NAME] = world.client(NAME)
    session.begin(NAME, session.config)
    session.run()
    assert session.aggregator.result().survivors == world.names


# -- the receipt


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda w, m: {"roster": b"q" * 32}, "RosterMismatch"),
        (lambda w, m: {"contributors": w.members(w.names[:2])}, "CohortTooSmall"),
        (lambda w, m: {"contributors": b"\0"}, "CohortTooSmall"),
        (lambda w, m: {"contributors": b"\x3f"}, "RosterMismatch"),
        (lambda w, m: {"contributors": b"\x1f\0"}, "RosterMismatch"),
    ],
)
def test_a_receipt_about_another_roster_or_too_few_is_refused(
    world: Any, change: Any, code: str
) -> None:
    def forge(data: bytes) -> bytes:
        return bytes(world.forge(data, **change(world, world.parse(data))))

    assert meets(world.session(), Kind.RECEIPT, forge) == code


def test_a_receipt_that_names_somebody_outside_the_roster_is_refused(world: Any) -> None:
    session = world.session(wire=lambda out: [] if _from(world, out, "agent-04") else [out])

    def forge(data: bytes) -> bytes:
        return bytes(world.forge(data, contributors=world.members(world.names)))

    assert meets(session, Kind.RECEIPT, forge) == "RosterMismatch"


def _from(world: Any, out: Outgoing, name: str) -> bool:
    return out.data[7] == Kind.COMMIT and world.parse(out.data).sender == name


def test_an_agent_learns_whose_vectors_are_in_the_sum(world: Any) -> None:
    session = world.session(
        wire=lambda out: [] if uploaded_by(world, out, "agent-01") else [out]
    ).run()
    left = tuple(name for name in world.names if name != "agent-01")
    for name in world.names:  # also the one whose upload was lost
        assert session.parts[name].survivors == left
        assert session.parts[name].phase is ClientPhase.DONE


def test_a_receipt_may_come_after_the_rounds_time(world: Any) -> None:
    """It releases nothing, and without it the agent would not know what it has spent."""
    session = world.session()
    receipt = session.intercept(NAME, Kind.RECEIPT)
    world.now += 10 * LIFETIME
    assert session.parts[NAME].receive(receipt) == []
    assert session.parts[NAME].survivors == world.names


# -- time


@pytest.mark.parametrize("kind", [Kind.CONTEXT, Kind.ROSTER])
def test_the_last_second_of_a_round_is_still_in_time(world: Any, kind: Kind) -> None:
    session = world.session()
    frame = session.intercept(NAME, kind)
    world.now += LIFETIME
    assert len(session.parts[NAME].receive(frame)) == 1


@pytest.mark.parametrize("kind", [Kind.CONTEXT, Kind.ROSTER])
def test_one_second_after_a_rounds_time_nothing_leaves(world: Any, kind: Kind) -> None:
    def forge(data: bytes) -> bytes:
        world.now += LIFETIME + 1
        return data

    assert meets(world.session(), kind, forge) == "ContextExpired"


def test_the_config_of_a_client_is_what_every_later_frame_must_name(world: Any) -> None:
    """Two rounds of one task: nothing of the first is taken in the second."""
    first, second = world.session(), type(world)(seed=world.seed).session(round=2).run()
    foreign = [out.data for out in second.carried if out.recipient == NAME][1:]
    first.reach(NAME, ClientPhase.JOINED)
    for data in foreign:
        with pytest.raises(RemoteProtocolError):
            first.parts[NAME].receive(data)
    assert first.parts[NAME].phase is ClientPhase.JOINED


def test_a_field_of_a_forged_frame_is_really_changed(world: Any) -> None:
    """The oracle of this file: forging without a change gives the honest frame back."""
    session = world.session().run()
    for out in session.carried:
        assert world.forge(out.data) == out.data
        message, attachment = world.parse(out.data), world.attachment(out.data)
        assert world.sign(msgspec.structs.replace(message), attachment) == out.data
        assert world.unsigned(out.data) != out.data
