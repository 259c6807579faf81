"""The parties beside agents and coordinator that a homomorphic plan needs, round after round.

Guarantee: a :class:`Trustee` holds a key for one round at most, and decrypts nothing that its own
ledger has not durably charged before. A :class:`SumAuditor` holds no key at all.

Both take bytes and give bytes, as agents do: no socket, thread or timer. In a deployment the
trustee is a process of its own, best on a machine that neither the coordinator nor an agent
controls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from privfedrl.errors import ConfigurationError, LocalProtocolError, RemoteProtocolError
from privfedrl.federation.backends import Homomorphic
from privfedrl.federation.central_noise import with_central_noise
from privfedrl.federation.setup import RoundSetup, round_setup
from privfedrl.he import HEAuditor, HEConfig, HEParameters, KeyAuthority, Vault
from privfedrl.he.frames import Kind, frame_limit, peek
from privfedrl.he.vault import SecretKey
from privfedrl.parties import Identity, Journal, Outgoing, Registry
from privfedrl.plan import Plan
from privfedrl.primitives.random import Clock, Entropy, system_clock, system_entropy
from privfedrl.privacy import Ledger

__all__ = ["SumAuditor", "Trustee"]


class _Role(Protocol):
    @property
    def finished(self) -> bool: ...
    def start(self, config: bytes) -> list[Outgoing]: ...
    def receive(self, data: bytes) -> list[Outgoing]: ...
    def close_phase(self) -> list[Outgoing]: ...


class _Rounds(ABC):
    """Hands each frame to the participant of its round; a new config begins a new one."""

    def __init__(self, parameters: HEParameters) -> None:
        self._parameters = parameters
        self._role: _Role | None = None
        self._config = b""

    @abstractmethod
    def _new_role(self) -> _Role:
        """A participant for one more round."""

    @property
    def finished(self) -> bool:
        """True when no round is in progress."""
        return self._role is None or self._role.finished

    def receive(self, data: bytes) -> list[Outgoing]:
        """Take one frame of the coordinator, or an upload that it forwards.

        An authentic config of another round ends the round in progress, if there is one.

        Raises:
            ProtocolError: refused; see :class:`~privfedrl.he.KeyAuthority`.
            PrivacyError: the ledger refuses the opening; the key is gone.
        """
        if self._is_config(data) and data != self._config:
            role = self._new_role()
            answer = role.start(data)  # raises for anything but an authentic, new round
            self.abandon()
            self._role, self._config = role, data
            return answer
        if self._role is None:
            raise RemoteProtocolError("no round was opened; a config must come first")
        return self._role.receive(data)

    def close_phase(self) -> list[Outgoing]:
        """The caller's deadline: leave the round in progress; its key is ended."""
        self.abandon()
        return []

    def abandon(self) -> None:
        """Forget the round in progress; what was charged stands."""
        if self._role is not None:
            self._role.close_phase()
        self._role, self._config = None, b""

    def _is_config(self, data: bytes) -> bool:
        try:
            peek(data, Kind.CONFIG, limit=frame_limit(Kind.CONFIG, self._parameters))
        except RemoteProtocolError:
            return False
        return True


class Trustee(_Rounds):
    """The key authority of a plan. Use it as a context manager, or call :meth:`close`.

    Args:
        plan: its own copy; nothing in it is taken from the coordinator.
        identity: its name must be the key authority of ``registry``.
        ledger: its own; charged before a key is used.
        journal: durable record of rounds keyed and sums opened. It must outlive the process.
        clock: seconds since 1970-01-01 UTC.
        entropy: of central noise, where the plan has it; keys have a source of their own.
        vault: where a secret key lives; a process for each round unless a caller says otherwise.
    Raises:
        ConfigurationError: the plan does not encrypt.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        identity: Identity,
        registry: Registry,
        ledger: Ledger,
        journal: Journal,
        clock: Clock = system_clock,
        entropy: Entropy = system_entropy,
        vault: Callable[[], SecretKey] = Vault,
    ) -> None:
        self._setup, parameters = _homomorphic(plan)
        super().__init__(parameters)
        self._identity, self._registry = identity, registry
        self._ledger, self._journal, self._clock = ledger, journal, clock
        self._new_vault, self._entropy = vault, entropy
        self._spare: SecretKey | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every key and process; a closed trustee opens no round."""
        self._closed = True
        self.abandon()
        if self._spare is not None:
            self._spare.destroy()
        self._spare = None

    def _new_role(self) -> KeyAuthority:
        if self._closed:
            raise LocalProtocolError("this trustee is closed")
        return KeyAuthority(
            identity=self._identity,
            registry=self._registry,
            parameters=self._parameters,
            plan_digest=self._setup.plan.digest,
            journal=self._journal,
            before_decrypt=self._charge,
            before_showing=lambda total: with_central_noise(self._setup, total, self._entropy),
            vault=self._take_vault,
            clock=self._clock,
        )

    def _take_vault(self) -> SecretKey:
        """A vault that has started already, and the next one begins to start."""
        ready, self._spare = self._spare or self._new_vault(), None
        self._spare = self._new_vault()
        return ready

    def _charge(self, config: HEConfig, contributors: tuple[str, ...]) -> bytes:
        """Reserve and settle this opening in the trustee's ledger; its head is the permit."""
        release_id = f"{config.task_id.hex()}/{config.round}/{config.attempt}"
        reservation = self._ledger.reserve(self._setup.charge(release_id, group=release_id))
        self._ledger.settle(
            reservation,
            self._setup.settled(len(contributors)),
            note=f"contributors={len(contributors)}",
        )
        return bytes.fromhex(self._ledger.head)


class SumAuditor(_Rounds):
    """The auditor of a plan with ``protection.readding = "auditor"``.

    Args: as for :class:`Trustee`; ``identity`` must be the auditor of ``registry``.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        identity: Identity,
        registry: Registry,
        clock: Clock = system_clock,
    ) -> None:
        setup, parameters = _homomorphic(plan)
        if parameters.readding != "auditor":
            raise ConfigurationError(
                f"protection.readding must be 'auditor' for an auditor, got {parameters.readding!r}"
            )
        super().__init__(parameters)
        self._identity, self._registry, self._clock = identity, registry, clock
        self._plan_digest = setup.plan.digest

    def _new_role(self) -> HEAuditor:
        return HEAuditor(
            identity=self._identity,
            registry=self._registry,
            parameters=self._parameters,
            plan_digest=self._plan_digest,
            clock=self._clock,
        )


def _homomorphic(plan: Plan) -> tuple[RoundSetup, HEParameters]:
    setup = round_setup(plan)
    if not isinstance(setup.backend, Homomorphic):
        raise ConfigurationError(
            f"protection.kind must be 'bfv' or 'ckks' here, got {plan.protection.kind!r}"
        )
    return setup, setup.backend.parameters
