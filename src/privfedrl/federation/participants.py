"""The people of a simulation: their keys, ledgers and journals on disk.

Guarantee: every simulated agent has its own key, its own ledger file and its own journal file, as
it would on its own machine; a resumed run finds the same ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from privfedrl.errors import LedgerIntegrity
from privfedrl.federation.run_directory import RunDirectory
from privfedrl.parties import Identity, Registry, SqliteJournal
from privfedrl.parties.identity import Role
from privfedrl.plan import Plan
from privfedrl.primitives.random import Entropy
from privfedrl.privacy import Ledger, ParticipationRegister, Unit

__all__ = ["AUDITOR", "COORDINATOR", "KEY_AUTHORITY", "Participants"]

COORDINATOR, KEY_AUTHORITY, AUDITOR = "coordinator", "key-authority", "auditor"
_ROLES: Final[dict[str, Role]] = {
    COORDINATOR: "coordinator",
    KEY_AUTHORITY: "key-authority",
    AUDITOR: "auditor",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Participants:
    """Everybody who takes part.

    Attributes:
        agents: their names in order.
        services: names of the key authority and the auditor, where the plan needs them.
        identities: signing keys by name, the coordinator's among them.
        registry: who may take part.
        ledger: the coordinator's.
        ledgers, journals: of the agents and the key authority, by name.
        participation: of the agents, by name, for unit "person".
    """

    agents: tuple[str, ...]
    services: tuple[str, ...]
    identities: dict[str, Identity]
    registry: Registry
    ledger: Ledger
    ledgers: dict[str, Ledger]
    journals: dict[str, SqliteJournal]
    participation: dict[str, ParticipationRegister]

    @classmethod
    @contextlib.contextmanager
    def open(cls, directory: RunDirectory, plan: Plan, entropy: Entropy) -> Iterator[Participants]:
        """Load or create everything; files are closed at the end of the block."""
        agents = tuple(f"agent-{index:03d}" for index in range(plan.fleet.agents))
        services = _services(plan)
        names = (*agents, COORDINATOR, *services)
        identities = {name: _identity(directory, name, entropy) for name in names}
        with contextlib.ExitStack() as stack:
            ledgers, journals = {}, {}
            for name in _with_ledgers(plan, agents, services):
                home = directory.agent(name)
                home.mkdir(parents=True, exist_ok=True)
                ledgers[name] = stack.enter_context(Ledger.open(home / "ledger.db"))
                journals[name] = stack.enter_context(
                    contextlib.closing(SqliteJournal(home / "journal.db"))
                )
            participation = {}
            for name in agents if plan.unit is Unit.PERSON else ():
                home = directory.agent(name)
                home.mkdir(parents=True, exist_ok=True)
                participation[name] = stack.enter_context(
                    ParticipationRegister(home / "participation.db")
                )
            yield cls(
                agents=agents,
                services=services,
                identities=identities,
                registry=_registry(directory, identities),
                ledger=stack.enter_context(Ledger.open(directory.ledger)),
                ledgers=ledgers,
                journals=journals,
                participation=participation,
            )

    def heads(self) -> dict[str, str]:
        """The newest ledger entry of everybody: anchors for :meth:`verify`."""
        return {name: ledger.head for name, ledger in self._all_ledgers().items()}

    def verify(self, anchors: Mapping[str, str]) -> None:
        """Refuse ledgers that were cut, replaced or rolled back since ``anchors`` were taken.

        Raises:
            LedgerIntegrity: one of them does not hold its anchor.
        """
        ledgers = self._all_ledgers()
        for name, anchor in anchors.items():
            if name not in ledgers:
                raise LedgerIntegrity(f"the ledger of {name!r} is gone")
            ledgers[name].verify(anchor=anchor)

    def _all_ledgers(self) -> dict[str, Ledger]:
        return {**self.ledgers, COORDINATOR: self.ledger}


def _identity(directory: RunDirectory, name: str, entropy: Entropy) -> Identity:
    path = directory.key(name)
    if path.exists():
        return Identity.load(path)
    identity = Identity.generate(name, entropy)
    identity.save(path)
    return identity


def _services(plan: Plan) -> tuple[str, ...]:
    if not plan.protection.homomorphic:
        return ()
    return (KEY_AUTHORITY, AUDITOR) if plan.protection.readding == "auditor" else (KEY_AUTHORITY,)


def _with_ledgers(
    plan: Plan, agents: tuple[str, ...], services: tuple[str, ...]
) -> tuple[str, ...]:
    """Who charges a ledger of its own; the auditor releases nothing."""
    if plan.protection.kind == "none":
        return ()
    return (*agents, *(name for name in services if name == KEY_AUTHORITY))


def _registry(directory: RunDirectory, identities: dict[str, Identity]) -> Registry:
    registry = Registry(
        tuple(identity.entry(_ROLES.get(name, "agent")) for name, identity in identities.items())
    )
    registry.save(directory.registry)
    return registry
