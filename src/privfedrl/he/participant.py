"""What agent, key authority and auditor have in common: a table, and the rule for leaving it.

Guarantee: bytes that do not authenticate, or that are about another round or key, raise and change
nothing. An authentic message that the table does not allow, a second one that differs from the
first, or one that a handler refuses ends the round for good, and what was secret is forgotten
before the error is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any, ClassVar, Final, NoReturn, TypeVar

from privfedrl.errors import LocalProtocolError, RemoteProtocolError
from privfedrl.he.agreement import abort, check_config, check_fresh
from privfedrl.he.frames import FrameReader, HEConfig, Kind, config_digest, encode_frame
from privfedrl.he.parameters import HEParameters
from privfedrl.he.phases import AbortCode
from privfedrl.parties.frames import Frame, Outgoing
from privfedrl.parties.identity import Identity, Registry, Role
from privfedrl.parties.opening import check_pinned, check_time
from privfedrl.primitives.random import Clock

__all__ = ["Participant", "present"]

_T = TypeVar("_T")
_CODES: Final[dict[object, AbortCode]] = {code.value: code for code in AbortCode}


def present(value: _T | None) -> _T:
    """The value, or LocalProtocolError where it was not set or has been forgotten."""
    if value is None:
        raise LocalProtocolError("this is not known yet, or has been forgotten")
    return value


def _code_of(error: BaseException) -> AbortCode:
    code = getattr(error, "code", None)  # anything at all, if the error is a caller's own
    return _CODES.get(code if isinstance(code, str) else "", AbortCode.LOCAL_FAULT)


class Participant:
    """Somebody who gets its messages through the coordinator. Make a new one for each round.

    Subclasses give ``role``, ``phases``, ``transitions`` and ``handlers``; ``unstaged`` handles
    kinds that change no phase and whose refusal harms nobody.
    """

    role: ClassVar[Role]
    phases: ClassVar[type[Enum]]
    transitions: ClassVar[Mapping[tuple[Any, Kind], Any]]
    handlers: ClassVar[Mapping[Kind, Callable[[Any, Frame], list[Outgoing]]]]
    unstaged: ClassVar[Mapping[Kind, Callable[[Any, Frame], list[Outgoing]]]] = {}

    def __init__(
        self,
        *,
        identity: Identity,
        registry: Registry,
        parameters: HEParameters,
        plan_digest: bytes,
        clock: Clock,
    ) -> None:
        check_pinned(identity, registry, parameters, plan_digest, role=self.role)
        self._identity = identity
        self._registry = registry
        self._parameters = parameters
        self._plan_digest = plan_digest
        self._clock = clock
        self._reader = FrameReader(registry, parameters)
        self._phase = self.phases["IDLE"]
        self._abort_code = AbortCode.LOCAL_FAULT
        self._slots: dict[Kind, bytes] = {}
        self._config: HEConfig | None = None
        self._cfg = self._key = b""

    @property
    def phase(self) -> Any:
        """Where this participant is, a member of ``phases``; DONE and ABORTED are final."""
        return self._phase

    @property
    def finished(self) -> bool:
        """Whether nothing more will be sent; nothing secret is held any more."""
        return self._phase.name in ("DONE", "ABORTED")

    def receive(self, data: bytes) -> list[Outgoing]:
        """Take one frame. Returns the answer, or nothing where there is none and for a repeat.

        Raises:
            LocalProtocolError: not started; or the journal knows this round already (final).
            RemoteProtocolError, AuthenticationFailed: not a frame for this round and key, or after
                the end; nothing changes.
            RoundAborted: an authentic message broke the protocol; final.
        """
        if self._phase is self.phases["IDLE"]:
            raise LocalProtocolError("start must be called before receive")
        if self._phase is self.phases["ABORTED"]:
            raise abort(self._abort_code, f"this {self.role} has left the round")
        if isinstance(data, bytes) and data in self._slots.values():
            return []
        frame = self._reader.read(data, frozenset(kind for _, kind in self.transitions))
        self._check_address(frame)
        if self.finished:
            raise RemoteProtocolError(f"{frame.type.label} came after the end of the round")
        if frame.type in self.unstaged:
            return self.unstaged[frame.type](self, frame)
        with self._fail_closed():
            return self._step(frame, data)

    def close_phase(self) -> list[Outgoing]:
        """The caller's deadline has passed: leave the round. Sends nothing."""
        if not self.finished:
            self._end(self.phases["ABORTED"], AbortCode.DEADLINE)
        return []

    def _require_idle(self) -> None:
        if self._phase is not self.phases["IDLE"]:
            raise LocalProtocolError(
                f"start must come first, this {self.role} is {self._phase.value}"
            )

    def _join(self, data: bytes, now: int) -> tuple[HEConfig, bytes]:
        """The verified config and its digest. An authentic one that does not fit is final."""
        frame = self._reader.read(data, frozenset({Kind.CONFIG}))
        found: HEConfig = frame.message
        with self._fail_closed():
            check_config(
                found,
                registry=self._registry,
                parameters=self._parameters,
                plan_digest=self._plan_digest,
            )
            check_time(found, registry=self._registry, now=now)
            self._require_valid(self._identity.name, found.opened_at)
        return found, config_digest(frame.payload)

    def _opened(self, config: HEConfig, cfg: bytes, data: bytes) -> None:
        """The config was accepted, and nobody closed the round meanwhile."""
        if self._phase is not self.phases["IDLE"]:
            raise abort(self._abort_code, f"this {self.role} has left the round")
        self._config, self._cfg = config, cfg
        self._slots[Kind.CONFIG] = data
        self._phase = self.transitions[self.phases["IDLE"], Kind.CONFIG]

    def _require_valid(self, name: str, opened_at: int) -> None:
        if not self._registry.valid_at(name, opened_at):
            raise abort(AbortCode.UNKNOWN_IDENTITY, f"{name} is not valid at opened_at")

    def _step(self, frame: Frame, data: bytes) -> list[Outgoing]:
        if frame.type in self._slots:
            raise abort(
                AbortCode.EQUIVOCATION,
                f"two different {frame.type.label} messages",
                evidence=(self._slots[frame.type], data),
            )
        following = self.transitions.get((self._phase, frame.type))
        if following is None:
            raise abort(
                AbortCode.UNEXPECTED_MESSAGE,
                f"{frame.type.label} is not allowed while {self._phase.value}",
            )
        if frame.type is not Kind.RECEIPT:  # which may come late, and releases nothing
            check_fresh(present(self._config), self._parameters, self._clock())
        answer = self.handlers[frame.type](self, frame)
        if self.finished:  # a hook of the caller's closed the round under the handler
            raise abort(self._abort_code, f"this {self.role} has left the round")
        self._slots[frame.type] = data
        if following is self.phases["DONE"]:
            self._end(following, AbortCode.LOCAL_FAULT)
        self._phase = following
        return answer

    def _check_address(self, frame: Frame) -> None:
        """Refuse, without harm, an authentic frame that is not about this round or key."""
        if frame.type is Kind.CONFIG:
            other, own = frame.message, present(self._config)
            here = (own.task_id, own.round, own.attempt)
            if (other.task_id, other.round, other.attempt) != here:
                raise RemoteProtocolError("config belongs to another round")
            return
        if frame.message.cfg != self._cfg:
            raise RemoteProtocolError(f"{frame.type.label} belongs to another round")
        if frame.type is not Kind.CONTEXT and self._key and frame.message.key != self._key:
            raise RemoteProtocolError(f"{frame.type.label} belongs to another key")

    def _answer(self, message: Any, attachment: bytes = b"") -> list[Outgoing]:
        data = encode_frame(message, self._identity, attachment)
        return [Outgoing(self._registry.coordinator, data)]

    @contextmanager
    def _fail_closed(self) -> Iterator[None]:
        """Whatever goes wrong inside ends the round, before the error is seen."""
        try:
            yield
        except BaseException as error:
            self._end(self.phases["ABORTED"], _code_of(error))
            raise

    def _end(self, phase: Enum, code: AbortCode) -> None:
        self._phase, self._abort_code = phase, code
        self._forget()

    def _forget(self) -> None:
        """Drop what must not outlive the round."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._identity.name}, {self._phase.value})"

    def __reduce__(self) -> NoReturn:
        raise LocalProtocolError(f"a {self.role} of a round refuses to be pickled or copied")
