"""The key authority and the auditor of a plan: charged first, one key a round."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from privfedrl.errors import (
    AuthenticationFailed,
    BudgetExceeded,
    ConfigurationError,
    LocalProtocolError,
    PrivacyError,
    ProtocolError,
    RemoteProtocolError,
    RoundAborted,
)
from privfedrl.federation.trustee import SumAuditor, Trustee
from privfedrl.he import LocalVault, Vault
from privfedrl.he.frames import Kind
from privfedrl.parties import Identity, Outgoing, Registry, SqliteJournal
from privfedrl.parties.identity import Role
from privfedrl.plan import Plan
from privfedrl.primitives.random import system_clock
from privfedrl.privacy import Charge, Ledger

AUTHORITY, AUDITOR = "key-authority", "auditor"
ROLES: dict[str, Role] = {
    "coordinator": "coordinator",
    AUTHORITY: "key-authority",
    AUDITOR: "auditor",
}
READDINGS = ["key-authority", "auditor", "none"]


class Killed(BaseException):
    """Stands for the end of the process: no handler of the library may swallow it."""


class WatchedVault(LocalVault):
    """A real vault that notes what is asked of it; ``fault`` is raised in place of decrypting."""

    def __init__(self, log: list[str], fault: BaseException | None = None) -> None:
        super().__init__()
        self._log, self._fault = log, fault
        log.append("vault")

    def open(self, parameters: Any) -> bytes:
        self._log.append("key")
        return super().open(parameters)

    def decrypt(self, ciphertexts: bytes, count: int) -> Any:
        if self._fault is not None:
            raise self._fault
        self._log.append("decrypt")
        return super().decrypt(ciphertexts, count)


class WatchedLedger:
    """A real ledger that notes its writes."""

    def __init__(self, ledger: Ledger, log: list[str]) -> None:
        self._ledger, self._log = ledger, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def reserve(self, charge: Charge) -> int:
        row = self._ledger.reserve(charge)
        self._log.append("reserve")
        return row

    def settle(self, row_id: int, event: Any, *, note: str = "") -> int:
        row = self._ledger.settle(row_id, event, note=note)
        self._log.append("settle")
        return row


@dataclass
class Deployment:
    """A world with a key authority and an auditor, and the bytes that went to them."""

    world: Any
    log: list[str] = field(default_factory=list)
    vaults: list[Any] = field(default_factory=list)
    sent: dict[str, list[bytes]] = field(default_factory=dict)
    services: dict[str, Any] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        world, keys = self.world, self.world.entropy.fork(b"services")
        for name in (AUTHORITY, AUDITOR):
            world.identities[name] = Identity.generate(name, keys)
        world.registry = Registry(
            one.entry(ROLES.get(name, "agent")) for name, one in world.identities.items()
        )
        world.agents = {name: world.agent(name) for name in world.names}
        self.ledger = Ledger.open(world.home / "authority.db")
        self.journal = SqliteJournal(world.home / "authority.jnl")
        self.services[AUTHORITY] = self.trustee()
        if world.plan.protection.readding == "auditor":
            self.services[AUDITOR] = self.auditor()

    def close(self) -> None:
        self.services[AUTHORITY].close()
        self.ledger.close()
        self.journal.close()

    def vault(self, fault: BaseException | None = None) -> WatchedVault:
        self.vaults.append(WatchedVault(self.log, fault))
        return self.vaults[-1]

    def trustee(self, **changes: Any) -> Trustee:
        given: dict[str, Any] = {
            "identity": self.world.identities[AUTHORITY],
            "registry": self.world.registry,
            "ledger": WatchedLedger(self.ledger, self.log),
            "journal": self.journal,
            "vault": self.vault,
        }
        return Trustee(changes.pop("plan", self.world.plan), **(given | changes))

    def auditor(self, **changes: Any) -> SumAuditor:
        given = {"identity": self.world.identities[AUDITOR], "registry": self.world.registry}
        return SumAuditor(changes.pop("plan", self.world.plan), **(given | changes))

    def answers(self, message: Outgoing) -> list[bytes]:
        """What its recipient sends back."""
        name = message.recipient
        if name not in self.services:
            answer: list[bytes] = self.world.answer(message)
            return answer
        self.sent.setdefault(name, []).append(message.data)
        if name in self.silent:
            return []
        return [one.data for one in self.services[name].receive(message.data)]

    def play(
        self,
        coordinator: Any,
        messages: list[Outgoing],
        *,
        until: tuple[str, Kind] | None = None,
        absent: frozenset[str] = frozenset(),
    ) -> Outgoing | None:
        """Carry messages to the end, or up to the first ``until`` = (recipient, kind), unsent."""
        waiting = deque(messages)
        while not coordinator.finished:
            if not waiting:
                waiting += coordinator.close_phase()
                continue
            message = waiting.popleft()
            if message.recipient in absent:
                continue
            if until is not None and message.recipient == until[0] and kind(message) is until[1]:
                return message
            for data in self.answers(message):
                waiting += coordinator.receive(data)
        for message in waiting:  # the receipts
            if message.recipient not in absent:
                self.answers(message)
        return None

    def run(self, **how: Any) -> Any:
        """A whole round; the world's state moves on."""
        coordinator = self.world.coordinator()
        self.play(coordinator, coordinator.open_round(), **how)
        coordinator.result()
        self.world.state = coordinator.state
        return coordinator

    def open(self) -> tuple[Any, bytes]:
        """A coordinator that has opened a round, and its config."""
        coordinator = self.world.coordinator()
        return coordinator, config_of(coordinator.open_round())

    def quit(self) -> None:
        """Everybody leaves the round in progress."""
        for one in (*self.world.agents.values(), *self.services.values()):
            one.abandon()


def kind(message: Outgoing) -> Kind | None:
    """Of a frame; None for what is not one, as the broadcast to an agent."""
    return Kind(message.data[7]) if message.data[:4] == b"PFHE" else None


def config_of(messages: list[Outgoing]) -> bytes:
    (config,) = {one.data for one in messages if one.recipient == AUTHORITY}
    return config


def altered(data: bytes) -> bytes:
    """The same frame with one bit of its signature flipped."""
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.fixture
def deploy(
    make_world: Callable[..., Any], make_plan: Callable[..., Plan]
) -> Iterator[Callable[..., Deployment]]:
    made: list[Deployment] = []

    def make(*layers: Any, **protection: Any) -> Deployment:
        plan = make_plan(*layers, protection={"kind": "bfv"} | protection)
        made.append(Deployment(make_world(plan)))
        return made[-1]

    yield make
    for one in made:
        one.close()


# --- what is charged, and when ------------------------------------------------------------------


@pytest.mark.parametrize("readding", READDINGS)
@pytest.mark.parametrize("kind_of_plan", ["bfv", "ckks"])
def test_the_ledger_is_charged_and_settled_before_the_one_decryption_of_a_round(
    deploy: Callable[..., Deployment], readding: str, kind_of_plan: str
) -> None:
    made = deploy(kind=kind_of_plan, readding=readding)
    made.run()
    made.run()
    assert [word for word in made.log if word != "vault"] == [
        *("key", "reserve", "settle", "decrypt"),
        *("key", "reserve", "settle", "decrypt"),
    ]
    assert made.ledger.verify().settled == 2


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_the_settled_event_is_that_of_the_contributors_less_the_colluders(
    deploy: Callable[..., Deployment], gone: int
) -> None:
    made = deploy()
    made.run(absent=frozenset(made.world.names[:gone]))
    (held,) = made.ledger.reservations()
    assert held.charge.event == made.world.setup.worst_event
    assert held.charge.adversary == "coordinator+1"
    assert held.charge.plan_digest == made.world.plan.digest
    assert held.charge.release_id == f"{bytes(32).hex()}/0/0"
    assert held.realised == made.world.setup.event(6 - gone - 1)
    for name in made.world.names[gone:]:  # agents come to the same figure by themselves
        (own,) = made.world.ledgers[name].reservations()
        assert own.realised == held.realised
    (third,) = made.world.ledger.reservations()
    assert third.realised == held.realised


def test_the_receipt_names_the_head_of_the_trustees_own_ledger(
    deploy: Callable[..., Deployment],
) -> None:
    from privfedrl.he import HETranscript

    made = deploy()
    result = made.run().result()
    transcript = HETranscript.from_bytes(result.transcript)
    transcript.verify(made.world.registry)
    assert transcript.receipt.ledger_head.hex() == made.ledger.head
    assert transcript.ledger_head.hex() == made.world.ledger.head


@pytest.mark.parametrize("step", ["reserve", "settle"])
def test_a_ledger_that_fails_opens_nothing_and_ends_the_key(
    deploy: Callable[..., Deployment], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    made = deploy()

    def failing(*_: Any, **__: Any) -> None:
        raise PrivacyError("on purpose")

    monkeypatch.setattr(WatchedLedger, step, failing)
    coordinator = made.world.coordinator()
    with pytest.raises(PrivacyError, match="on purpose"):
        made.play(coordinator, coordinator.open_round())
    assert "decrypt" not in made.log
    assert not made.vaults[0].alive
    assert made.services[AUTHORITY].finished
    assert len(made.ledger.reservations()) == (step == "settle")  # the worst case stands


def test_an_exhausted_budget_is_refused_before_decryption_and_the_key_is_gone(
    deploy: Callable[..., Deployment], agent_unit: dict[str, dict[str, Any]]
) -> None:
    made = deploy(agent_unit)
    plan, setup = made.world.plan, made.world.setup
    for index in range(plan.federation.rounds):
        made.ledger.reserve(
            Charge(
                plan_digest=plan.digest,
                release_id=f"earlier/{index}",
                group=f"earlier/{index}",
                unit=plan.unit,
                adversary=setup.adversary,
                event=setup.worst_event,
                epsilon=setup.budget,
                delta=setup.accounted_delta,
            )
        )
    head = made.ledger.head
    coordinator = made.world.coordinator()
    with pytest.raises(BudgetExceeded, match="nothing was charged"):
        made.play(coordinator, coordinator.open_round())
    assert made.ledger.head == head
    assert made.log.count("key") == 1
    assert "decrypt" not in made.log
    assert not made.vaults[0].alive
    assert made.services[AUTHORITY].finished
    coordinator.close_phase()
    with pytest.raises(RoundAborted, match="Deadline"):
        coordinator.result()
    assert np.array_equal(coordinator.state.parameters, made.world.parameters)


# --- death between two writes -------------------------------------------------------------------


def test_a_trustee_that_died_between_charge_and_decryption_never_opens_that_attempt(
    deploy: Callable[..., Deployment],
) -> None:
    """The next process, with the same files, refuses the config, the roster and the sum."""
    made = deploy()
    made.services[AUTHORITY] = made.trustee(vault=lambda: made.vault(Killed()))
    coordinator = made.world.coordinator()
    invitations = coordinator.open_round()
    with pytest.raises(Killed):
        made.play(coordinator, invitations)
    assert made.log[-2:] == ["reserve", "settle"]
    assert not any(vault.alive for vault in made.vaults[:1])
    made.ledger.close()
    made.journal.close()

    made.ledger = Ledger.open(made.world.home / "authority.db")
    made.journal = SqliteJournal(made.world.home / "authority.jnl")
    assert made.ledger.verify().settled == 1
    reborn = made.services[AUTHORITY] = made.trustee()
    earlier, made.sent = made.sent[AUTHORITY], {}
    assert [Kind(data[7]) for data in earlier][-1] is Kind.SEALED
    with pytest.raises(LocalProtocolError, match="not newer"):
        reborn.receive(earlier[0])
    for data in earlier[1:]:
        with pytest.raises(RemoteProtocolError, match="a config must come first"):
            reborn.receive(data)
    assert "decrypt" not in made.log
    assert made.ledger.verify().reservations == 1

    coordinator.close_phase()
    made.quit()
    retry = made.run()
    assert retry.result().attempt == 1
    assert made.log.count("decrypt") == 1
    assert [one.charge.release_id[-4:] for one in made.ledger.reservations()] == ["/0/0", "/0/1"]
    for data in earlier:  # and the new round does not take the old frames either
        with pytest.raises(ProtocolError):
            reborn.receive(data)
    assert made.log.count("decrypt") == 1


def test_a_trustee_that_died_before_it_charged_opens_nothing_and_hides_nothing(
    deploy: Callable[..., Deployment], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = deploy()

    def dying(*_: Any) -> None:
        raise Killed

    coordinator = made.world.coordinator()
    invitations = coordinator.open_round()
    with monkeypatch.context() as patch:
        patch.setattr(WatchedLedger, "reserve", dying)
        with pytest.raises(Killed):
            made.play(coordinator, invitations)
    assert made.ledger.verify().reservations == 0
    reborn = made.services[AUTHORITY] = made.trustee()
    with pytest.raises(LocalProtocolError, match="not newer"):
        reborn.receive(config_of(invitations))
    assert "decrypt" not in made.log


# --- round after round --------------------------------------------------------------------------


def test_every_round_has_a_process_of_its_own_and_close_leaves_none(
    deploy: Callable[..., Deployment],
) -> None:
    made = deploy()
    vaults: list[Vault] = []

    def vault() -> Vault:
        vaults.append(Vault())
        return vaults[-1]

    made.services[AUTHORITY].close()
    with made.trustee(vault=vault) as trustee:
        made.services[AUTHORITY] = trustee
        assert vaults == []  # a trustee that nobody asks starts nothing
        for done in (1, 2):
            made.run()
            assert trustee.finished
            # those of finished rounds are gone, and the next one starts ahead of its round
            assert [one.alive for one in vaults] == [False] * done + [True]
    assert [one.alive for one in vaults] == [False] * 3
    assert len({one._process.pid for one in vaults}) == 3
    trustee.close()
    assert len(vaults) == 3


def test_closing_in_the_middle_of_a_round_ends_its_process_too(
    deploy: Callable[..., Deployment],
) -> None:
    made = deploy()
    vaults: list[Vault] = []

    def vault() -> Vault:
        vaults.append(Vault())
        return vaults[-1]

    trustee = made.trustee(vault=vault)
    _, config = made.open()
    trustee.receive(config)
    assert [one.alive for one in vaults] == [True, True]
    trustee.close()
    assert [one.alive for one in vaults] == [False, False]


@pytest.mark.parametrize("way", ["close_phase", "abandon"])
def test_leaving_a_round_ends_its_key_and_keeps_the_warm_one(
    deploy: Callable[..., Deployment], way: str
) -> None:
    made = deploy()
    trustee = made.services[AUTHORITY]
    coordinator, config = made.open()
    assert trustee.receive(config)
    assert not trustee.finished
    assert getattr(trustee, way)() in ([], None)
    assert trustee.finished
    assert [one.alive for one in made.vaults] == [False, True]
    with pytest.raises(LocalProtocolError, match="not newer"):
        trustee.receive(config)
    coordinator.close_phase()
    assert made.run().result().attempt == 1
    assert len(made.vaults) == 3


def test_nothing_can_come_before_a_config(deploy: Callable[..., Deployment]) -> None:
    made = deploy(readding="auditor")
    coordinator = made.world.coordinator()
    message = made.play(coordinator, coordinator.open_round(), until=(AUDITOR, Kind.ROSTER))
    assert message is not None
    for fresh in (made.trustee(), made.auditor()):
        assert fresh.finished
        assert fresh.close_phase() == []
        for data in (b"", b"PFHE", message.data):
            with pytest.raises(RemoteProtocolError, match="a config must come first"):
                fresh.receive(data)


@pytest.mark.parametrize("role", [AUTHORITY, AUDITOR])
def test_an_inauthentic_config_never_ends_the_round_in_progress(
    deploy: Callable[..., Deployment], role: str
) -> None:
    made = deploy(readding="auditor")
    service = made.services[role]
    coordinator = made.world.coordinator()
    message = made.play(coordinator, coordinator.open_round(), until=(role, Kind.SEALED))
    assert message is not None
    made.world.state = coordinator.state
    _, other = made.open()
    hostile = [altered(other), other[:-1], other + b"\x00", other[:40]]
    stranger = Identity.generate("coordinator", made.world.entropy.fork(b"stranger"))
    forged = made.world.coordinator(
        identity=stranger,
        registry=Registry(
            [
                *(one for one in made.world.registry.entries if one.role != "coordinator"),
                stranger.entry("coordinator"),
            ]
        ),
    )
    hostile.append(config_of(forged.open_round()))
    for data in hostile:
        with pytest.raises((RemoteProtocolError, AuthenticationFailed)):
            service.receive(data)
        assert not service.finished
    made.play(coordinator, [message])
    assert coordinator.result().survivors == made.world.names


def test_a_config_of_another_plan_never_ends_the_round_in_progress(
    deploy: Callable[..., Deployment],
) -> None:
    """It is signed by the right coordinator, and still not about what these two have pinned."""
    made = deploy(readding="auditor")
    coordinator = made.world.coordinator()
    message = made.play(coordinator, coordinator.open_round(), until=(AUDITOR, Kind.SEALED))
    assert message is not None
    other = made.world.plan.replace("privacy", epsilon=4.0)
    with Ledger.open(made.world.home / "second-server.db") as ledger:
        config = config_of(made.world.coordinator(plan=other, ledger=ledger).open_round())
    for service in made.services.values():
        with pytest.raises(RoundAborted, match="PlanMismatch"):
            service.receive(config)
        assert not service.finished
    made.play(coordinator, [message])
    assert coordinator.result().survivors == made.world.names
    assert made.log.count("key") == 1


@pytest.mark.parametrize("role", [AUTHORITY, AUDITOR])
def test_an_authentic_new_config_ends_the_round_in_progress(
    deploy: Callable[..., Deployment], role: str
) -> None:
    made = deploy(readding="auditor")
    service = made.services[role]
    coordinator = made.world.coordinator()
    message = made.play(coordinator, coordinator.open_round(), until=(role, Kind.SEALED))
    assert message is not None
    _, config = made.open()  # the next attempt
    answer = service.receive(config)
    assert [kind(one) for one in answer] == ([Kind.CONTEXT] if role == AUTHORITY else [])
    assert not service.finished
    if role == AUTHORITY:
        assert [one.alive for one in made.vaults] == [False, True, True]
    with pytest.raises(ProtocolError):
        service.receive(message.data)
    assert "decrypt" not in made.log
    assert made.ledger.verify().reservations == 0


def test_a_second_config_for_the_same_attempt_makes_no_second_key(
    deploy: Callable[..., Deployment],
) -> None:
    """Also after the round; the coordinator's ledger cannot see this, the trustee's journal can."""
    made = deploy()
    trustee = made.services[AUTHORITY]
    _, config = made.open()
    with Ledger.open(made.world.home / "second-server.db") as forgetful:
        entropy = made.world.entropy.fork(b"second")
        twice = made.world.coordinator(ledger=forgetful, entropy=entropy)
        other = config_of(twice.open_round())
    assert other != config
    first = trustee.receive(config)
    assert [kind(one) for one in first] == [Kind.CONTEXT]
    assert trustee.receive(config) == []  # a repeat of the very same bytes
    with pytest.raises(LocalProtocolError, match="not newer"):
        trustee.receive(other)
    assert not trustee.finished  # the first is still good
    assert made.log.count("key") == 1
    trustee.abandon()
    for data in (config, other):
        with pytest.raises(LocalProtocolError, match="not newer"):
            trustee.receive(data)
    assert made.log.count("key") == 1


def test_a_config_of_an_earlier_round_makes_no_second_key(
    deploy: Callable[..., Deployment],
) -> None:
    made = deploy()
    made.run()
    first = made.sent[AUTHORITY][0]
    made.run()
    trustee = made.services[AUTHORITY]
    with pytest.raises(LocalProtocolError, match="not newer"):
        trustee.receive(first)
    assert made.log.count("key") == 2


def test_the_auditor_serves_round_after_round_and_holds_nothing_in_between(
    deploy: Callable[..., Deployment],
) -> None:
    made = deploy(readding="auditor")
    auditor = made.services[AUDITOR]
    for _ in range(2):
        made.run()
        assert auditor.finished
        assert auditor._role is not None
        assert auditor._role._uploads is None
    kinds = [Kind(data[7]) for data in made.sent[AUDITOR]]
    whole = [Kind.CONFIG, Kind.ROSTER, *[Kind.UPLOAD] * 6, Kind.SEALED]
    assert kinds == [*whole, *whole]
    assert Kind.UPLOAD not in [Kind(data[7]) for data in made.sent[AUTHORITY]]


def test_only_the_one_who_re_adds_is_given_uploads(deploy: Callable[..., Deployment]) -> None:
    for readding, expected in zip(READDINGS, (6, 0, 0), strict=True):
        made = deploy(readding=readding)
        made.run()
        kinds = [Kind(data[7]) for data in made.sent[AUTHORITY]]
        assert kinds.count(Kind.UPLOAD) == expected
        assert [one for one in kinds if one is not Kind.UPLOAD] == [
            Kind.CONFIG,
            Kind.PROPOSAL,
            Kind.SEALED,
        ]


@pytest.mark.parametrize("role", [AUTHORITY, AUDITOR])
def test_a_silent_service_ends_the_round_and_the_next_attempt_works(
    deploy: Callable[..., Deployment], role: str
) -> None:
    made = deploy(readding="auditor")
    made.silent = {role}
    coordinator = made.world.coordinator()
    made.play(coordinator, coordinator.open_round())
    with pytest.raises(RoundAborted, match=f"Deadline: {role} did not answer"):
        coordinator.result()
    assert "decrypt" not in made.log
    made.silent = set()
    made.quit()
    assert made.run().result().attempt == 1
    calls = made.world.calls
    assert {(name, attempt) for name, _, attempt, _ in calls} == set(
        itertools.product(made.world.names, (0, 1))
    )
    groups = [
        one.charge.group for ledger in made.world.ledgers.values() for one in ledger.reservations()
    ]
    assert len(set(groups)) == len(groups)  # no trajectory was charged to two attempts


# --- without noise ------------------------------------------------------------------------------


def test_without_noise_the_trustee_refuses_two_sums_that_differ_by_one_agent(
    deploy: Callable[..., Deployment],
) -> None:
    """A control plan has no noise to cover the difference, so the journal guards it."""
    made = deploy({"privacy": {"mechanism": "none"}})
    made.run()
    again = made.world.coordinator()
    invitations = again.open_round(made.world.parameters)  # the model of the first round
    with pytest.raises(RoundAborted, match="Differencing"):
        made.play(again, invitations, absent=frozenset({"agent-000"}))
    assert made.log.count("decrypt") == 1
    assert not made.vaults[1].alive
    assert len(made.ledger.reservations()) == 1


# --- who may be one -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind_of_plan", ["pairwise", "none"])
def test_a_plan_that_does_not_encrypt_has_no_trustee_and_no_auditor(
    deploy: Callable[..., Deployment], make_plan: Callable[..., Plan], kind_of_plan: str
) -> None:
    made, plan = deploy(), make_plan(protection={"kind": kind_of_plan})
    for make in (made.trustee, made.auditor):
        with pytest.raises(ConfigurationError, match=rf"protection\.kind .* got '{kind_of_plan}'"):
            make(plan=plan)


@pytest.mark.parametrize("readding", ["key-authority", "none"])
def test_a_plan_that_asks_for_no_auditor_has_none(
    deploy: Callable[..., Deployment], readding: str
) -> None:
    made = deploy(readding=readding)
    with pytest.raises(ConfigurationError, match=rf"protection\.readding .* got '{readding}'"):
        made.auditor()


def test_only_the_registered_key_authority_and_auditor_serve(
    deploy: Callable[..., Deployment],
) -> None:
    made = deploy(readding="auditor")
    _, config = made.open()
    for make, role in ((made.trustee, "key-authority"), (made.auditor, "auditor")):
        service = make(identity=made.world.identities["agent-000"])
        with pytest.raises(ConfigurationError, match=role):
            service.receive(config)
        assert service.finished
    assert "key" not in made.log


def test_a_stale_config_is_refused_by_the_services_own_clock(
    deploy: Callable[..., Deployment],
) -> None:
    made = deploy(readding="auditor")
    _, config = made.open()

    def tomorrow() -> int:
        return system_clock() + 86_400

    for service in (made.trustee(clock=tomorrow), made.auditor(clock=tomorrow)):
        with pytest.raises(RoundAborted, match="WrongTime"):
            service.receive(config)
        assert service.finished
    assert "key" not in made.log
