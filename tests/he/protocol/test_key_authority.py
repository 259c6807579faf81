"""What the key authority opens, and what it would not open for anybody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfedrl.errors import (
    BudgetExceeded,
    ConfigurationError,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    RoundAborted,
)
from privfedrl.he import AuthorityPhase, HEParameters, LocalVault, ParameterSet
from privfedrl.he.digests import commitment, sealed_digest, sum_digest
from privfedrl.he.frames import Kind
from privfedrl.he.key_authority import check_range
from privfedrl.he.lattice import Encryptor
from privfedrl.he.residues import add_into, pack, unpack
from privfedrl.parties import Identity, Outgoing, Registry, SqliteJournal
from privfedrl.primitives.random import DeterministicEntropy

NAME = "agent-02"
LIFETIME = 6 * 3600
MODES = ("key-authority", "auditor", "none")


def assert_nothing_opened(session: Any, *, recorded: bool = False) -> None:
    """Aborted, the key is gone, nothing was decrypted, and no opening left."""
    world, authority = session.world, session.authority
    assert authority.phase is AuthorityPhase.ABORTED
    assert authority._vault is None
    assert authority._uploads is None
    assert all(not vault.alive for vault in world.vaults)
    assert "decrypt" not in world.log
    assert ("recorded" in world.log) is recorded
    assert not [out for out in session.carried if out.data[7] == Kind.OPENING]
    with pytest.raises(RoundAborted):
        authority.result()


def meets(
    session: Any, kind: Kind, forge: Callable[[bytes], bytes], *, recorded: bool = False
) -> str:
    """Show the authority the forged frame in place of the honest one; its abort code."""
    frame = session.intercept("key-authority", kind)
    with pytest.raises(RoundAborted) as caught:
        session.authority.receive(forge(frame))
    assert_nothing_opened(session, recorded=recorded)
    with pytest.raises(RoundAborted):  # the honest one comes too late
        session.authority.receive(frame)
    return str(caught.value.code)


def is_from(world: Any, out: Outgoing, kind: Kind, name: str) -> bool:
    return out.data[7] == kind and world.parse(out.data).sender == name


def total_of(world: Any, uploads: list[bytes]) -> bytes:
    """The packed sum of these upload frames' ciphertexts, formed anew."""
    chosen, count = world.parameters.parameter_set, world.parameters.ciphertexts
    parts = [
        unpack(world.attachment(data), chosen.sent_primes, chosen.degree, count) for data in uploads
    ]
    total = parts[0]
    for part in parts[1:]:
        add_into(total, part, chosen.sent_primes)
    return bytes(pack(total, chosen.sent_primes))


# -- construction and start


def test_pieces_that_do_not_fit_build_no_authority(world: Any) -> None:
    other = Identity.generate("key-authority", DeterministicEntropy(b"other"))
    for change in (
        {"identity": other},
        {"identity": world.identities[NAME]},
        {"identity": world.identities["coordinator"]},
        {"identity": world.identities["auditor"]},
        {"plan_digest": b""},
        {"registry": Registry(e for e in world.registry.entries if e.name != NAME)},
    ):
        with pytest.raises(ConfigurationError):
            world.authority(**change)


def test_no_key_is_made_before_the_round_is_recorded(world: Any) -> None:
    session = world.session()
    (context,) = session.begin("key-authority", session.config)
    assert world.log == ["masked", "open"]
    message = world.parse(context.data)
    assert context.recipient == "coordinator"
    assert message.not_after == world.now + LIFETIME
    assert message.cfg == session.cfg


def test_every_round_has_another_key(world: Any) -> None:
    keys = []
    for number in (1, 2, 3):
        session = world.session(round=number)
        (context,) = session.begin("key-authority", session.config)
        keys.append(world.attachment(context.data))
    assert len(set(keys)) == 3


@pytest.mark.parametrize(
    ("round_number", "attempt"), [(2, 0), (1, 9), (0, 0)], ids=["same", "older attempt", "older"]
)
def test_a_round_is_keyed_once_and_never_after_a_newer_one(
    world: Any, tmp_path: Path, round_number: int, attempt: int
) -> None:
    """Also across a restart: the journal is a file."""
    path = tmp_path / "authority.db"
    world.journals["key-authority"] = SqliteJournal(path)
    world.session(round=2).reach("key-authority", AuthorityPhase.KEYED)
    world.journals["key-authority"].close()
    world.journals["key-authority"] = SqliteJournal(path)
    made = len(world.vaults)
    again = world.session(round=round_number, attempt=attempt)
    with pytest.raises(LocalProtocolError):
        again.begin("key-authority", again.config)
    assert again.authority.phase is AuthorityPhase.ABORTED
    assert len(world.vaults) == made
    with pytest.raises(LocalProtocolError, match="start must come first"):
        again.begin("key-authority", again.config)
    world.journals["key-authority"].close()


class _Broken(LocalVault):
    """A vault whose child process is gone at the step of that name."""

    def __init__(self, step: str, error: Exception) -> None:
        super().__init__()
        self._step, self._error = step, error

    def open(self, parameters: Any) -> bytes:
        if self._step == "open":
            raise self._error
        return super().open(parameters)

    def _decrypt(self, *arguments: Any) -> Any:
        if self._step == "decrypt":
            raise self._error
        return super()._decrypt(*arguments)


FAULT = RoundAborted("VaultFault", "the child ended without an answer")


@pytest.mark.parametrize("step", ["make", "open"])
def test_a_vault_that_fails_at_first_ends_the_round(world: Any, step: str) -> None:
    def make() -> Any:
        if step == "make":
            raise FAULT
        world.vaults.append(_Broken(step, FAULT))
        return world.vaults[-1]

    session = world.session(authority_changes={"vault": make})
    with pytest.raises(RoundAborted, match="VaultFault"):
        session.begin("key-authority", session.config)
    assert_nothing_opened(session)
    with pytest.raises(RoundAborted, match="VaultFault"):
        session.authority.receive(session.config)


def test_a_vault_that_fails_at_the_decryption_ends_the_round_without_the_key(world: Any) -> None:
    def make() -> Any:
        world.vaults.append(_Broken("decrypt", FAULT))
        return world.vaults[-1]

    session = world.session(authority_changes={"vault": make})
    assert meets(session, Kind.SEALED, lambda data: data, recorded=True) == "VaultFault"


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: b""])
def test_a_sum_of_another_length_is_never_charged(make_world: Any, change: Any) -> None:
    """Nobody re-adds here; it is refused before journal, ledger and vault."""
    world = make_world(readding="none")

    def forge(data: bytes) -> bytes:
        return bytes(world.forge(data, attachment=change(world.attachment(data))))

    assert meets(world.session(), Kind.SEALED, forge) == "Malformed"
    assert world.log == ["masked", "open", "destroy"]


def test_what_the_vault_says_of_the_ciphertexts_ends_the_round(world: Any) -> None:
    def make() -> Any:
        error = RemoteProtocolError("a residue must be below its prime")
        world.vaults.append(_Broken("decrypt", error))
        return world.vaults[-1]

    session = world.session(authority_changes={"vault": make})
    assert meets(session, Kind.SEALED, lambda data: data, recorded=True) == "Malformed"


# -- the honest round


@pytest.mark.parametrize("readding", MODES)
@pytest.mark.parametrize("differencing", ["off", "model", "task"])
def test_it_records_then_charges_then_decrypts_once_then_ends_the_key(
    make_world: Any, readding: str, differencing: str
) -> None:
    world = make_world(readding=readding, settings={"differencing": differencing})
    session = world.session().run()
    charge = ("charge", 1, world.names)
    assert world.log == ["masked", "open", "recorded", charge, "decrypt", "destroy"]
    assert [vault.alive for vault in world.vaults] == [False]
    assert session.authority._vault is None
    assert (session.aggregator.result().vector == world.ideal(world.names)).all()
    (row,) = world.journals["key-authority"].participations(session.task)
    assert (row.round, row.attempt, row.model_digest) == (1, 0, session.model)
    assert row.members == world.members(world.names)


@pytest.mark.parametrize("readding", MODES)
def test_the_receipt_says_what_was_opened_for_whom_and_who_readded(
    make_world: Any, readding: str
) -> None:
    world = make_world(readding=readding)
    session = world.session().run()
    receipt, result = session.authority.result(), session.aggregator.result()
    assert receipt == result.receipt
    sealed = world.attachment(session.shown("key-authority", Kind.SEALED))
    assert receipt.sealed == sealed_digest(session.cfg, session.key, sealed)
    words = result.vector.astype("<u4").tobytes()
    assert receipt.total == sum_digest(session.cfg, words)
    assert (receipt.ledger_head, receipt.readding, receipt.seal) == (b"a" * 32, readding, "4.3")
    assert receipt.contributors == world.members(world.names)


@pytest.mark.parametrize("phase", [AuthorityPhase.IDLE, AuthorityPhase.KEYED, AuthorityPhase.FIXED])
def test_there_is_no_receipt_before_the_opening(world: Any, phase: AuthorityPhase) -> None:
    session = world.session().reach("key-authority", phase)
    with pytest.raises(LocalProtocolError, match=f"this one is {phase.value}"):
        session.authority.result()


# -- the roster


def test_the_roster_holds_the_signed_promises_and_nothing_else(world: Any) -> None:
    session = world.session(
        wire=lambda out: [] if is_from(world, out, Kind.COMMIT, "agent-01") else [out]
    )
    roster = world.parse(session.intercept(NAME, Kind.ROSTER))
    left = [name for name in world.names if name != "agent-01"]
    commits = {
        world.parse(out.data).sender: world.parse(out.data).commitment
        for out in session.carried
        if out.data[7] == Kind.COMMIT
    }
    assert roster.members == world.members(left)
    assert roster.commitments == b"".join(commits[name] for name in left)


BAD_PROPOSALS: list[tuple[Callable[[Any, Any], tuple[bytes, ...]], str]] = [
    (lambda w, c: (), "CohortTooSmall"),
    (lambda w, c: c[:2], "CohortTooSmall"),
    (lambda w, c: c[::-1], "RosterMismatch"),
    (lambda w, c: (c[1], c[0], *c[2:]), "RosterMismatch"),
    (lambda w, c: (c[0], *c), "RosterMismatch"),
    (lambda w, c: (*c, c[-1]), "RosterMismatch"),
    (lambda w, c: (c[0], w.forge(c[0], commitment=b"q" * 32), *c[2:]), "RosterMismatch"),
    (lambda w, c: (w.forge(c[0], cfg=b"q" * 32), *c[1:]), "RosterMismatch"),
    (lambda w, c: (w.forge(c[0], key=b"q" * 32), *c[1:]), "RosterMismatch"),
    (lambda w, c: (w.unsigned(c[0]), *c[1:]), "BadSignature"),
    (lambda w, c: (c[0][:-1], *c[1:]), "BadSignature"),
    (lambda w, c: (b"", *c[1:]), "BadSignature"),
    (lambda w, c: (w.forge(c[0], sender="coordinator"), *c[1:]), "BadSignature"),
    (lambda w, c: (*c, w.session(round=9).config), "BadSignature"),
]


@pytest.mark.parametrize("index", range(len(BAD_PROPOSALS)))
def test_a_proposal_that_is_not_one_promise_of_each_of_enough_agents_ends_the_round(
    world: Any, index: int
) -> None:
    change, code = BAD_PROPOSALS[index]

    def forge(data: bytes) -> bytes:
        return bytes(world.forge(data, commits=change(world, world.parse(data).commits)))

    assert meets(world.session(), Kind.PROPOSAL, forge) == code


def test_a_proposal_with_an_agent_out_of_its_validity_ends_the_round(make_world: Any) -> None:
    world = make_world(validity={"agent-04": (0, 1)})
    session = world.session()

    def forge(data: bytes) -> bytes:
        late = session.frame(Kind.COMMIT, sender="agent-04")
        return bytes(world.forge(data, commits=(*world.parse(data).commits, late)))

    assert meets(session, Kind.PROPOSAL, forge) == "UnknownIdentity"


@pytest.mark.parametrize(("name", "value"), [("threshold", 5), ("min_clients", 5)])
def test_the_floor_is_the_larger_of_threshold_and_min_clients(
    make_world: Any, name: str, value: int
) -> None:
    world = make_world(settings={name: value})

    def forge(data: bytes) -> bytes:
        return bytes(world.forge(data, commits=world.parse(data).commits[:4]))

    assert meets(world.session(), Kind.PROPOSAL, forge) == "CohortTooSmall"


def test_a_second_proposal_is_evidence_against_the_coordinator(world: Any) -> None:
    session = world.session()
    first = session.intercept("key-authority", Kind.PROPOSAL)
    session.authority.receive(first)
    second = world.forge(first, commits=world.parse(first).commits[:4])
    with pytest.raises(RoundAborted) as caught:
        session.authority.receive(second)
    assert (caught.value.code, caught.value.evidence) == ("Equivocation", (first, second))
    assert_nothing_opened(session)


def test_a_second_config_is_evidence_against_the_coordinator(world: Any) -> None:
    session = world.session().reach("key-authority", AuthorityPhase.KEYED)
    second = session.frame(Kind.CONFIG)
    with pytest.raises(RoundAborted) as caught:
        session.authority.receive(second)
    assert caught.value.evidence == (session.config, second)
    assert_nothing_opened(session)


# -- the uploads


def test_an_upload_before_the_roster_is_refused_without_harm(world: Any) -> None:
    session = world.session().reach("key-authority", AuthorityPhase.KEYED)
    with pytest.raises(RemoteProtocolError, match="not allowed while keyed"):
        session.authority.receive(session.frame(Kind.UPLOAD))
    session.run()
    assert session.aggregator.result().survivors == world.names


@pytest.mark.parametrize("readding", ["auditor", "none"])
def test_an_authority_that_does_not_readd_refuses_to_see_uploads(
    make_world: Any, readding: str
) -> None:
    """What it cannot see it cannot open one by one."""
    world = make_world(readding=readding)
    session = world.session()
    upload = session.intercept("coordinator", Kind.UPLOAD)
    assert session.authority.phase is AuthorityPhase.FIXED
    with pytest.raises(RemoteProtocolError, match="must not see uploads"):
        session.authority.receive(upload)
    assert session.authority._uploads.names == frozenset()
    session.queue.insert(0, Outgoing("coordinator", upload))
    session.run()
    assert session.aggregator.result().survivors == world.names
    assert not [
        out
        for out in session.carried
        if out.recipient == "key-authority" and out.data[7] == Kind.UPLOAD
    ]


# -- the sum


def test_a_sum_before_the_roster_ends_the_round(world: Any) -> None:
    session = world.session()

    def forge(_: bytes) -> bytes:
        return bytes(session.frame(Kind.SEALED))

    assert meets(session, Kind.PROPOSAL, forge) == "UnexpectedMessage"


BAD_SEALED: list[tuple[Callable[[Any, Any], dict[str, Any]], str]] = [
    (lambda w, m: {"roster": b"q" * 32}, "RosterMismatch"),
    (lambda w, m: {"contributors": w.members(w.names[:2])}, "CohortTooSmall"),
    (lambda w, m: {"contributors": w.members(w.names[:1])}, "CohortTooSmall"),
    (lambda w, m: {"contributors": b"\0"}, "CohortTooSmall"),
    (lambda w, m: {"contributors": b"\x3f"}, "RosterMismatch"),
    (lambda w, m: {"contributors": b""}, "RosterMismatch"),
    (lambda w, m: {"contributors": m.contributors + b"\0"}, "RosterMismatch"),
    (lambda w, m: {"ledger_head": bytes(32)}, "PermitMissing"),
]


@pytest.mark.parametrize("readding", MODES)
@pytest.mark.parametrize("index", range(len(BAD_SEALED)))
def test_a_sum_that_policy_forbids_is_not_opened(
    make_world: Any, index: int, readding: str
) -> None:
    change, code = BAD_SEALED[index]
    world = make_world(readding=readding)

    def forge(data: bytes) -> bytes:
        return bytes(world.forge(data, **change(world, world.parse(data))))

    assert meets(world.session(), Kind.SEALED, forge) == code


@pytest.mark.parametrize("readding", MODES)
def test_a_sum_with_somebody_outside_the_roster_is_not_opened(
    make_world: Any, readding: str
) -> None:
    world = make_world(readding=readding)
    session = world.session(
        wire=lambda out: [] if is_from(world, out, Kind.COMMIT, "agent-04") else [out]
    )

    def forge(data: bytes) -> bytes:
        return bytes(world.forge(data, contributors=world.members(world.names)))

    assert meets(session, Kind.SEALED, forge) == "RosterMismatch"


def _one_upload(world: Any, session: Any) -> dict[str, Any]:
    """The attack that re-adding is for: one agent's upload instead of the sum."""
    upload = next(
        out.data for out in session.carried if is_from(world, out, Kind.UPLOAD, "agent-03")
    )
    return {"attachment": world.attachment(upload)}


def _less_one(world: Any, session: Any) -> dict[str, Any]:
    uploads = {
        world.parse(out.data).sender: out.data
        for out in session.carried
        if out.data[7] == Kind.UPLOAD
    }
    uploads.pop("agent-03")
    return {"attachment": total_of(world, list(uploads.values()))}


BAD_SUMS: list[Callable[[Any, Any], dict[str, Any]]] = [
    _one_upload,
    _less_one,
    lambda w, s: {"attachment": bytes(w.parameters.ciphertext_bytes)},
    lambda w, s: {"attachment": b""},
    lambda w, s: {"contributors": w.members(w.names[:4])},
]


@pytest.mark.parametrize("readding", ["key-authority", "auditor"])
@pytest.mark.parametrize("index", range(len(BAD_SUMS)))
def test_with_readding_only_the_sum_of_the_named_uploads_is_opened(
    make_world: Any, index: int, readding: str
) -> None:
    world = make_world(readding=readding)
    session = world.session()

    def forge(data: bytes) -> bytes:
        return bytes(world.forge(data, **BAD_SUMS[index](world, session)))

    assert meets(session, Kind.SEALED, forge) == "SumMismatch"


def test_without_readding_a_single_upload_can_be_opened(make_world: Any) -> None:
    """Not a guarantee but its absence, as the documentation says it."""
    world = make_world(readding="none")
    session = world.session()
    frame = session.intercept("key-authority", Kind.SEALED)
    (answer,) = session.authority.receive(world.forge(frame, **_one_upload(world, session)))
    opened = np.frombuffer(world.attachment(answer.data), dtype="<u4")
    assert (opened == world.ideal(["agent-03"])).all()


def test_a_sum_that_comes_before_all_its_uploads_is_not_opened(world: Any) -> None:
    lost: list[Outgoing] = []

    def wire(out: Outgoing) -> list[Outgoing]:
        if out.recipient == "key-authority" and is_from(world, out, Kind.UPLOAD, "agent-03"):
            lost.append(out)
            return []
        return [out]

    session = world.session(wire=wire)
    assert meets(session, Kind.SEALED, lambda data: data) == "SumMismatch"
    assert len(lost) == 1


def test_a_second_sum_after_the_opening_is_refused(world: Any) -> None:
    session = world.session().run()
    first = session.shown("key-authority", Kind.SEALED)
    assert session.authority.receive(first) == []
    second = world.forge(first, contributors=world.members(world.names[:4]))
    with pytest.raises(RemoteProtocolError, match="after the end"):
        session.authority.receive(second)
    assert world.log.count("decrypt") == 1


# -- the attestation


def _foreign(world: Any, session: Any) -> bytes:
    """An honest attestation, of the same federation's next round."""
    other = type(world)(seed=world.seed, readding="auditor").session(round=2).run()
    return bytes(other.shown("coordinator", Kind.ATTESTATION))


BAD_ATTESTATIONS: list[tuple[Callable[[Any, Any, bytes], bytes], str]] = [
    (lambda w, s, a: b"", "BadSignature"),
    (lambda w, s, a: b"junk", "BadSignature"),
    (lambda w, s, a: w.unsigned(a), "BadSignature"),
    (lambda w, s, a: a[:-1], "BadSignature"),
    (lambda w, s, a: s.shown("coordinator", Kind.COMMIT), "BadSignature"),
    (lambda w, s, a: w.forge(a, sender="coordinator"), "BadSignature"),
    (lambda w, s, a: w.forge(a, sender=NAME), "BadSignature"),
    (lambda w, s, a: _foreign(w, s), "SumMismatch"),
    (lambda w, s, a: w.forge(a, cfg=b"q" * 32), "SumMismatch"),
    (lambda w, s, a: w.forge(a, key=b"q" * 32), "SumMismatch"),
    (lambda w, s, a: w.forge(a, roster=b"q" * 32), "SumMismatch"),
    (lambda w, s, a: w.forge(a, contributors=w.members(w.names[:4])), "SumMismatch"),
    (lambda w, s, a: w.forge(a, sealed=b"q" * 32), "SumMismatch"),
]


@pytest.mark.parametrize("index", range(len(BAD_ATTESTATIONS)))
def test_with_an_auditor_nothing_is_opened_without_its_word_for_this_very_sum(
    make_world: Any, index: int
) -> None:
    world = make_world(readding="auditor")
    session = world.session()
    change, code = BAD_ATTESTATIONS[index]

    def forge(data: bytes) -> bytes:
        attestation = change(world, session, world.parse(data).attestation)
        return bytes(world.forge(data, attestation=attestation))

    assert meets(session, Kind.SEALED, forge) == code


def test_the_word_of_an_expired_auditor_counts_for_nothing(make_world: Any) -> None:
    """Coordinator and auditor collude with a wrong clock; the authority's own clock decides."""
    world = make_world(readding="auditor", validity={"auditor": (0, 1_799_999_990)})
    session = world.session(aggregator_changes={"clock": lambda: 1_799_999_990})
    authority = world.authority()
    config = world.forge(session.config, opened_at=world.now)
    authority.start(config)
    session.authority, session.config = authority, config
    commits = tuple(session.frame(Kind.COMMIT, sender=name) for name in world.names)
    (roster,) = authority.receive(session.frame(Kind.PROPOSAL, commits=commits))
    message = session.message(Kind.SEALED, roster=authority._roster.digest)
    word = session.frame(
        Kind.ATTESTATION,
        roster=message.roster,
        sealed=message.sealed,
    )
    assert roster.recipient == "coordinator"
    with pytest.raises(RoundAborted, match="UnknownIdentity: auditor"):
        authority.receive(session.frame(Kind.SEALED, roster=message.roster, attestation=word))
    assert authority.phase is AuthorityPhase.ABORTED
    assert not any(vault.alive for vault in world.vaults)


# -- the ledger


@pytest.mark.parametrize(
    "error", [BudgetExceeded("spent"), OSError("disk"), KeyboardInterrupt(), SystemExit(2)]
)
def test_a_ledger_that_refuses_means_no_decryption_and_no_key(
    world: Any, error: BaseException
) -> None:
    def refuse(config: Any, names: tuple[str, ...]) -> bytes:
        raise error

    session = world.session(authority_changes={"before_decrypt": refuse})
    frame = session.intercept("key-authority", Kind.SEALED)
    with pytest.raises(type(error)) as caught:
        session.authority.receive(frame)
    assert caught.value is error
    assert_nothing_opened(session, recorded=True)
    with pytest.raises(RoundAborted, match="LocalFault"):
        session.authority.receive(frame)


def test_a_ledger_error_with_an_odd_code_means_no_key_either(world: Any) -> None:
    class Odd(Exception):
        code = {"not": "hashable"}  # noqa: RUF012 - on purpose

    def refuse(config: Any, names: tuple[str, ...]) -> bytes:
        raise Odd

    session = world.session(authority_changes={"before_decrypt": refuse})
    frame = session.intercept("key-authority", Kind.SEALED)
    with pytest.raises(Odd):
        session.authority.receive(frame)
    assert_nothing_opened(session, recorded=True)


@pytest.mark.parametrize(
    "head",
    [b"", b"a" * 31, b"a" * 33, None, "a" * 32, bytes(32)],
    ids=["empty", "short", "long", "none", "text", "zeros"],
)
def test_nothing_is_decrypted_without_the_head_of_a_ledger(world: Any, head: Any) -> None:
    """Else the one decryption is spent and its receipt can be read by nobody, or names nothing."""
    session = world.session(authority_changes={"before_decrypt": lambda config, names: head})
    frame = session.intercept("key-authority", Kind.SEALED)
    with pytest.raises(LocalProtocolError, match="before_decrypt must give the 32 bytes"):
        session.authority.receive(frame)
    assert_nothing_opened(session, recorded=True)


def test_the_ledger_is_told_the_round_and_the_contributors(world: Any) -> None:
    told: list[Any] = []

    def charge(config: Any, names: tuple[str, ...]) -> bytes:
        told.append((config, names))
        return b"a" * 32

    session = world.session(
        wire=lambda out: [] if is_from(world, out, Kind.UPLOAD, "agent-01") else [out],
        authority_changes={"before_decrypt": charge},
    ).run()
    left = tuple(name for name in world.names if name != "agent-01")
    assert told == [(world.parse(session.config), left)]
    assert session.authority.result().contributors == world.members(left)


@pytest.mark.parametrize("readding", MODES)
def test_closing_the_authority_from_its_own_ledger_hook_means_no_decryption(
    make_world: Any, readding: str
) -> None:
    def close(config: Any, names: tuple[str, ...]) -> bytes:
        session.authority.close_phase()
        return b"a" * 32

    world = make_world(readding=readding)
    session = world.session(authority_changes={"before_decrypt": close})
    frame = session.intercept("key-authority", Kind.SEALED)
    with pytest.raises(ProtocolError):
        session.authority.receive(frame)
    assert_nothing_opened(session, recorded=True)
    with pytest.raises(RoundAborted):
        session.authority.receive(frame)


def test_an_opening_that_was_recorded_but_not_made_stays_spent(world: Any, tmp_path: Path) -> None:
    """The process dies between journal and decryption: the round is over, the key is gone."""

    def die(config: Any, names: tuple[str, ...]) -> bytes:
        raise SystemExit(9)

    path = tmp_path / "authority.db"
    world.journals["key-authority"] = SqliteJournal(path)
    session = world.session(authority_changes={"before_decrypt": die})
    frame = session.intercept("key-authority", Kind.SEALED)
    with pytest.raises(SystemExit):
        session.authority.receive(frame)
    world.journals["key-authority"].close()
    world.journals["key-authority"] = SqliteJournal(path)
    assert len(world.journals["key-authority"].participations(session.task)) == 1
    again = world.authority()
    with pytest.raises(LocalProtocolError, match="not newer"):
        again.start(session.config)
    world.journals["key-authority"].close()


# -- differencing


def _round_without(world: Any, missing: str | None, number: int, **changes: Any) -> Any:
    def wire(out: Outgoing) -> list[Outgoing]:
        lost = missing is not None and is_from(world, out, Kind.UPLOAD, missing)
        return [] if lost else [out]

    return world.session(wire=wire, round=number, tolerant=True, **changes).run()


@pytest.mark.parametrize(
    ("scope", "model", "opened"),
    [
        ("off", b"m" * 32, True),
        ("model", b"m" * 32, False),
        ("model", b"n" * 32, True),
        ("task", b"n" * 32, False),
    ],
)
def test_two_sums_that_single_somebody_out_are_not_both_opened(
    make_world: Any, scope: str, model: bytes, opened: bool
) -> None:
    world = make_world(settings={"differencing": scope})
    assert _round_without(world, None, 1).aggregator.result()
    second = _round_without(world, "agent-03", 2, model=model)
    assert (second.authority.phase is AuthorityPhase.DONE) is opened
    assert world.log.count("decrypt") == (2 if opened else 1)
    assert not any(vault.alive for vault in world.vaults)
    if not opened:
        ((recipient, error),) = second.errors
        assert recipient == "key-authority"
        assert isinstance(error, RoundAborted)
        assert error.code == "Differencing"
        assert len(world.journals["key-authority"].participations(second.task)) == 1


def test_a_group_as_large_as_min_honest_and_the_colluding_may_be_told_apart(
    make_world: Any,
) -> None:
    """n = 8, floor 5 of them: two sums that differ in three agents, one of them colluding."""
    world = make_world(n=8, settings={"differencing": "model", "max_colluding": 1})
    assert _round_without(world, None, 1).aggregator.result()

    def wire(out: Outgoing, lost: tuple[str, ...]) -> list[Outgoing]:
        return [] if any(is_from(world, out, Kind.UPLOAD, name) for name in lost) else [out]

    two = world.session(wire=lambda out: wire(out, world.names[:2]), round=2, tolerant=True).run()
    assert two.authority.phase is AuthorityPhase.ABORTED
    three = world.session(wire=lambda out: wire(out, world.names[:3]), round=3).run()
    assert three.authority.phase is AuthorityPhase.DONE


# -- time


@pytest.mark.parametrize("kind", [Kind.PROPOSAL, Kind.SEALED])
def test_one_second_after_a_rounds_time_the_key_is_gone(world: Any, kind: Kind) -> None:
    def forge(data: bytes) -> bytes:
        world.now += LIFETIME + 1
        return data

    assert meets(world.session(), kind, forge) == "ContextExpired"


@pytest.mark.parametrize("kind", [Kind.PROPOSAL, Kind.SEALED])
def test_the_last_second_of_a_round_is_still_in_time_for_the_authority(
    world: Any, kind: Kind
) -> None:
    session = world.session()
    frame = session.intercept("key-authority", kind)
    world.now += LIFETIME
    assert len(session.authority.receive(frame)) == 1


def test_no_key_is_made_for_a_round_whose_time_is_over(make_world: Any) -> None:
    """The config is within the clock's tolerance, yet older than the round may last."""
    world = make_world(settings={"lifetime_s": 60})
    session = world.session()
    world.now += 61
    with pytest.raises(RoundAborted, match="ContextExpired"):
        session.begin("key-authority", session.config)
    assert session.authority.phase is AuthorityPhase.ABORTED
    assert world.vaults == []
    assert world.log == []  # the attempt is not spent either


# -- overflow


def parameters_of(**changes: Any) -> HEParameters:
    given: dict[str, Any] = {
        "num_clients": 4,
        "max_colluding": 1,
        "vector_length": 7,
        "threshold": 3,
        "value_bits": 16,
    }
    return HEParameters(**(given | changes))


BFV = parameters_of()
CKKS = parameters_of(parameter_set=ParameterSet.named("ckks-4096-add"))


def slots_of(parameters: HEParameters, changes: dict[int, int]) -> Any:
    kind = np.uint64 if parameters.parameter_set.exact else np.int64
    slots = np.zeros((parameters.ciphertexts, parameters.parameter_set.slots), dtype=kind)
    for place, value in changes.items():
        slots.reshape(-1)[place] = value
    return slots


def test_the_parameters_of_the_overflow_tests_are_what_they_say() -> None:
    assert (BFV.lanes, BFV.lane_bits, BFV.slots) == (2, 18, 4)
    assert (CKKS.lanes, CKKS.slots) == (1, 7)


MOST = 3 * 0xFFFF


@pytest.mark.parametrize(
    ("changes", "fine"),
    [
        ({}, True),
        ({0: MOST, 2: MOST << 18, 3: MOST}, True),
        ({0: MOST | MOST << 18}, True),
        ({0: MOST + 1}, False),
        ({1: (1 << 18) - 1}, False),
        ({2: (MOST + 1) << 18}, False),
        ({0: 1 << 36}, False),  # above both lanes
        ({3: 1 << 43}, False),
        ({4: 1}, False),  # behind the vector's end
        ({4095: 1}, False),
    ],
)
def test_a_bfv_slot_that_no_honest_uploads_can_sum_to_is_noticed(
    changes: dict[int, int], fine: bool
) -> None:
    slots = slots_of(BFV, changes)
    if fine:
        check_range(slots, BFV, 3)
        return
    with pytest.raises(RoundAborted) as caught:
        check_range(slots, BFV, 3)
    assert caught.value.code == "SumMismatch"


@pytest.mark.parametrize("value", [1, 0xFFFF, MOST])
def test_an_unused_lane_at_the_vectors_end_is_noticed(value: int) -> None:
    """Seven coordinates in four slots of two lanes: lane 1 of slot 3 belongs to nobody."""
    check_range(slots_of(BFV, {3: value}), BFV, 3)
    with pytest.raises(RoundAborted):
        check_range(slots_of(BFV, {3: value << 18}), BFV, 3)


@pytest.mark.parametrize("length", range(1, 14))
def test_a_number_is_let_through_only_where_a_coordinate_lies(length: int) -> None:
    """Every lane of every slot that a vector fills, and the slots behind: four lanes of 10 bits."""
    parameters = parameters_of(vector_length=length, value_bits=8)
    assert (parameters.lanes, parameters.lane_bits) == (4, 10)
    for slot in (*range(parameters.slots + 1), 4094, 4095):
        for lane in range(parameters.lanes):
            slots = slots_of(parameters, {slot: 1 << (10 * lane)})
            if slot < parameters.slots and lane * parameters.slots + slot < length:
                check_range(slots, parameters, 3)
                continue
            with pytest.raises(RoundAborted) as caught:
                check_range(slots, parameters, 3)
            assert caught.value.code == "SumMismatch"


FULL = {"vector_length": 2 * 2 * 4095}


def test_the_last_slot_of_every_bfv_ciphertext_is_empty_and_must_stay_so() -> None:
    """Two ciphertexts that the vector fills to the last lane."""
    parameters = parameters_of(**FULL)
    assert (parameters.ciphertexts, parameters.slots_per_ciphertext) == (2, 4095)
    everywhere = np.full(4 * 4095, 0x7FFF, dtype=np.uint32)
    filled = parameters.to_slots(everywhere)
    check_range(filled, parameters, 3)
    assert (filled[:, :4095] == 0xFFFF | 0xFFFF << 18).all()
    for ciphertext in range(2):
        for value in (1, MOST, 1 << 18, 1 << 43):
            slots = filled.copy()
            slots[ciphertext, 4095] = value
            with pytest.raises(RoundAborted) as caught:
                check_range(slots, parameters, 3)
            assert caught.value.code == "SumMismatch"


@pytest.mark.parametrize("length", [1, 7, 4 * 4095])
def test_a_constant_that_is_added_to_all_slots_alike_is_noticed(length: int) -> None:
    """What a coefficient of the key would do: in range wherever a coordinate lies, but for one."""
    parameters = parameters_of(vector_length=length)
    for ciphertext in range(parameters.ciphertexts):
        for constant in (1, 2, 0xFFFF):
            slots = slots_of(parameters, {})
            slots[ciphertext] += np.uint64(constant)
            with pytest.raises(RoundAborted) as caught:
                check_range(slots, parameters, 3)
            assert caught.value.code == "SumMismatch"


def test_a_ckks_vector_uses_every_slot() -> None:
    """There is no empty slot that would tell: a perturbation can be as small as one likes."""
    chosen = ParameterSet.named("ckks-4096-add")
    parameters = parameters_of(vector_length=2048, parameter_set=chosen)
    assert (parameters.ciphertexts, parameters.slots_per_ciphertext) == (1, 2048)
    check_range(slots_of(parameters, {2047: -1}), parameters, 3)


@pytest.mark.parametrize(
    ("changes", "fine"),
    [
        ({}, True),
        ({0: (3 << 15) - 1, 6: -(3 << 15)}, True),
        ({0: 3 << 15}, False),
        ({6: -(3 << 15) - 1}, False),
        ({7: 1}, False),
        ({2047: -1}, False),
    ],
)
def test_a_ckks_slot_that_no_honest_uploads_can_sum_to_is_noticed(
    changes: dict[int, int], fine: bool
) -> None:
    slots = slots_of(CKKS, changes)
    if fine:
        check_range(slots, CKKS, 3)
        return
    with pytest.raises(RoundAborted):
        check_range(slots, CKKS, 3)


@pytest.mark.parametrize("ring_bits", [32, 64])
@pytest.mark.parametrize("name", ["bfv-4096-std", "ckks-4096-add"])
@pytest.mark.parametrize(
    ("value", "fine"), [(2047, True), (2048, False), (-2048, True), (-2049, False), (32767, False)]
)
def test_a_sum_outside_the_declared_range_is_not_shown(
    name: str, ring_bits: int, value: int, fine: bool
) -> None:
    """sum_bits = 12 of 16: centred sums from -2^11 to 2^11 - 1."""
    parameters = parameters_of(
        sum_bits=12, ring_bits=ring_bits, parameter_set=ParameterSet.named(name)
    )
    vectors = np.zeros((3, 7), dtype=np.int64)
    vectors[:, 1] = value - 1999 - 2002, 1999, 2002
    dtype = np.dtype(f"uint{ring_bits}")
    slots = np.add.reduce([parameters.to_slots(vector.astype(dtype)) for vector in vectors])
    if fine:
        check_range(slots, parameters, 3)
        return
    with pytest.raises(RoundAborted) as caught:
        check_range(slots, parameters, 3)
    assert caught.value.code == "SumMismatch"
    assert str(value) not in str(caught.value)


@pytest.mark.parametrize(("value", "fine"), [(100, True), (500, False)])
def test_an_honest_sum_out_of_range_is_charged_and_not_shown(
    make_world: Any, value: int, fine: bool
) -> None:
    world = make_world(settings={"value_bits": 16, "sum_bits": 12})
    for vector in world.vectors.values():
        vector[:] = value
    session = world.session()
    frame = session.intercept("key-authority", Kind.SEALED)
    if fine:
        assert len(session.authority.receive(frame)) == 1
        return
    with pytest.raises(RoundAborted) as caught:
        session.authority.receive(frame)
    assert caught.value.code == "SumMismatch"
    assert "2500" not in str(caught.value)
    assert ("charge", 1, world.names) in world.log
    assert session.authority.phase is AuthorityPhase.ABORTED
    assert not any(vault.alive for vault in world.vaults)
    with pytest.raises(RoundAborted):
        session.authority.result()


@pytest.mark.parametrize("contributors", [3, 4])
def test_the_bound_follows_the_number_of_contributors(contributors: int) -> None:
    slots = slots_of(BFV, {0: contributors * 0xFFFF})
    check_range(slots, BFV, contributors)
    with pytest.raises(RoundAborted):
        check_range(slots, BFV, contributors - 1)


@contextmanager
def encrypting(monkeypatch: pytest.MonkeyPatch, slots: Any) -> Iterator[None]:
    """An agent that encrypts these slots with its own Encryptor, whatever it was given."""
    with monkeypatch.context() as patch:
        patch.setattr(HEParameters, "to_slots", lambda self, vector: slots)
        yield


def cheated(world: Any, monkeypatch: pytest.MonkeyPatch, changes: dict[int, int]) -> Any:
    """A round in which agent-01 encrypts these slots and everybody else zeros, before it opens."""
    assert (world.parameters.lanes, world.parameters.lane_bits) == (2, 19)
    for vector in world.vectors.values():
        vector[:] = 0
    session = world.session()
    context = session.intercept("agent-01", Kind.CONTEXT)
    with encrypting(monkeypatch, slots_of(world.parameters, changes)):
        commit = session.parts["agent-01"].receive(context)
    session.queue += commit
    return session


@pytest.mark.parametrize(
    "changes",
    [{0: 1 << 43}, {0: 5 * 0xFFFF + 1}, {2: (1 << 19) - 1 << 19}, {4: 1}, {4095: 7}],
    ids=["above all lanes", "lane 0", "lane 1", "behind the end", "the last slot"],
)
@pytest.mark.parametrize("readding", MODES)
def test_a_client_that_encrypts_out_of_range_slots_ends_the_round(
    make_world: Any, monkeypatch: pytest.MonkeyPatch, readding: str, changes: dict[int, int]
) -> None:
    world = make_world(length=7, readding=readding, settings={"value_bits": 16})
    session = cheated(world, monkeypatch, changes)
    assert meets_after_charge(session) == "SumMismatch"


@pytest.mark.parametrize(
    ("length", "changes"),
    [(2 * 4095, {4095: 1}), (2 * 4095, {4095: 1 << 19}), (7, {3: 1 << 19}), (1, {0: 1 << 19})],
    ids=["the empty slot", "its upper lane", "the unused top lane", "all of the top lane"],
)
def test_a_client_that_encrypts_into_what_stays_empty_ends_the_round(
    make_world: Any, monkeypatch: pytest.MonkeyPatch, length: int, changes: dict[int, int]
) -> None:
    world = make_world(length=length, settings={"value_bits": 16})
    session = cheated(world, monkeypatch, changes)
    assert meets_after_charge(session) == "SumMismatch"


def meets_after_charge(session: Any) -> str:
    """Show the authority the honest sum; it is charged, opened, and shown to nobody."""
    frame = session.intercept("key-authority", Kind.SEALED)
    with pytest.raises(RoundAborted) as caught:
        session.authority.receive(frame)
    assert session.world.log[-2:] == ["decrypt", "destroy"]
    assert session.authority.phase is AuthorityPhase.ABORTED
    assert not any(vault.alive for vault in session.world.vaults)
    with pytest.raises(RoundAborted):
        session.authority.result()
    return str(caught.value.code)


def test_a_client_that_claims_what_all_together_might_have_is_not_noticed(
    make_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of what can be seen, as the documentation says it: ranges cannot be proved.

    The four others have zeros and bring an offset of 2^15 each. With one of its own, the cheat's
    lane stands for 4 * (2^15 - 1) + (2^15 - 1), the most that all five can have together.
    """
    world = make_world(length=7, settings={"value_bits": 16})
    own = {0: 5 * 0xFFFF - 4 * 2**15 | 2**15 << 19, 3: 2**15}
    own |= dict.fromkeys((1, 2), 2**15 | 2**15 << 19)
    session = cheated(world, monkeypatch, own).run()
    most = 5 * (2**15 - 1) % 2**16  # as residues go
    assert session.aggregator.result().vector.tolist() == [most, 0, 0, 0, 0, 0, 0]


def test_ciphertexts_under_another_key_are_noticed(world: Any) -> None:
    """They add up without complaint; what comes out is noise, and out of range."""
    other = LocalVault()
    key = other.open(world.parameters.parameter_set)
    session = world.session()
    client = session.parts[NAME]
    context = session.intercept(NAME, Kind.CONTEXT)
    session.queue += client.receive(context)
    slots = world.parameters.to_slots(world.vectors[NAME])
    ciphertexts = Encryptor(world.parameters.parameter_set, key).encrypt(slots)
    promised = commitment(session.cfg, session.key, NAME, ciphertexts)
    session.queue[-1] = Outgoing(
        "coordinator", world.forge(session.queue[-1].data, commitment=promised)
    )

    def wire(out: Outgoing) -> list[Outgoing]:
        if out.recipient != NAME or out.data[7] != Kind.ROSTER:
            return [out]
        roster = session.authority._roster.digest
        fields = {"sender": NAME, "roster": roster, "attachment": ciphertexts}
        session.queue.append(Outgoing("coordinator", session.frame(Kind.UPLOAD, **fields)))
        return []

    session.wire = wire
    frame = session.intercept("key-authority", Kind.SEALED)
    with pytest.raises(RoundAborted, match="SumMismatch"):
        session.authority.receive(frame)
    other.destroy()


# -- leaving


@pytest.mark.parametrize("phase", [AuthorityPhase.KEYED, AuthorityPhase.FIXED])
def test_closing_the_phase_destroys_the_key(world: Any, phase: AuthorityPhase) -> None:
    session = world.session().reach("key-authority", phase)
    assert world.vaults[0].alive
    assert session.authority.close_phase() == []
    assert_nothing_opened(session)


@pytest.mark.parametrize(
    "change",
    [{"cfg": b"q" * 32}, {"key": b"q" * 32}],
)
@pytest.mark.parametrize("kind", [Kind.PROPOSAL, Kind.SEALED])
def test_what_is_about_another_round_or_key_does_no_harm(
    world: Any, kind: Kind, change: dict[str, bytes]
) -> None:
    session = world.session()
    frame = session.intercept("key-authority", kind)
    before = session.authority.phase
    for data in (world.forge(frame, **change), world.unsigned(frame), frame[:-1]):
        with pytest.raises(ProtocolError) as caught:
            session.authority.receive(data)
        assert not isinstance(caught.value, RoundAborted)
        assert session.authority.phase is before
        assert world.vaults[0].alive
    session.queue.insert(0, Outgoing("key-authority", frame))
    session.run()
    assert session.aggregator.result().survivors == world.names


@pytest.mark.parametrize("where", ["clock", "journal", "make", "open"])
def test_an_authority_that_is_closed_while_it_starts_has_left_and_holds_no_key(
    world: Any, where: str
) -> None:
    """ABORTED is final: also where a handler of the caller's closes it while the child starts."""

    def close(step: str) -> None:
        if step == where:
            session.authority.close_phase()

    class Journal(type(world.journals["key-authority"])):  # type: ignore[misc]  # as conftest has
        def spend_masked(self, *point: Any) -> None:
            super().spend_masked(*point)
            close("journal")

    class Closing(LocalVault):
        def open(self, parameters: Any) -> bytes:
            public_key = super().open(parameters)
            close("open")
            return public_key

    def make() -> LocalVault:
        world.vaults.append(Closing())
        close("make")
        return world.vaults[-1]

    def clock() -> int:
        close("clock")
        return int(world.now)

    changes = {"journal": Journal(world.log), "vault": make, "clock": clock}
    session = world.session(authority_changes=changes)
    with pytest.raises(ProtocolError):
        session.begin("key-authority", session.config)
    assert session.authority.phase is AuthorityPhase.ABORTED
    assert session.authority._vault is None
    assert not any(vault.alive for vault in world.vaults)
