"""The people of a simulation: their keys, ledgers and journals on disk.

Guarantee: every simulated agent has its own key, its own ledger file and its own journal file, as
it would on its own machine; a resumed run finds the same ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from privfedrl.errors import LedgerIntegrity
from privfedrl.federation.run_directory import RunDirectory
from privfedrl.parties import Identity, Registry, SqliteJournal
from privfedrl.plan import Plan
from privfedrl.primitives.random import Entropy
from privfedrl.privacy import Ledger

__all__ = ["Participants"]

COORDINATOR = "coordinator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Participants:
    """Everybody who takes part.

    Attributes:
        agents: their names in order.
        identities: signing keys by name, the coordinator's among them.
        registry: who may take part.
        ledger: the coordinator's.
        ledgers, journals: of the agents, by name.
    """

    agents: tuple[str, ...]
    identities: dict[str, Identity]
    registry: Registry
    ledger: Ledger
    ledgers: dict[str, Ledger]
    journals: dict[str, SqliteJournal]

    @classmethod
    @contextlib.contextmanager
    def open(cls, directory: RunDirectory, plan: Plan, entropy: Entropy) -> Iterator[Participants]:
        """Load or create everything; files are closed at the end of the block."""
        agents = tuple(f"agent-{index:03d}" for index in range(plan.fleet.agents))
        identities = {name: _identity(directory, name, entropy) for name in (*agents, COORDINATOR)}
        with contextlib.ExitStack() as stack:
            ledgers, journals = {}, {}
            for name in agents if plan.protection.kind == "pairwise" else ():
                home = directory.agent(name)
                home.mkdir(parents=True, exist_ok=True)
                ledgers[name] = stack.enter_context(Ledger.open(home / "ledger.db"))
                journals[name] = stack.enter_context(
                    contextlib.closing(SqliteJournal(home / "journal.db"))
                )
            yield cls(
                agents=agents,
                identities=identities,
                registry=_registry(directory, identities),
                ledger=stack.enter_context(Ledger.open(directory.ledger)),
                ledgers=ledgers,
                journals=journals,
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


def _registry(directory: RunDirectory, identities: dict[str, Identity]) -> Registry:
    registry = Registry(
        tuple(
            identity.entry("coordinator" if name == COORDINATOR else "agent")
            for name, identity in identities.items()
        )
    )
    registry.save(directory.registry)
    return registry
