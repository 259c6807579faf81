"""What goes wrong in a round, as a value: written to JSON, replayed as a script, made smaller.

Guarantee: a schedule holds everything that a network did. Played again against an adapter whose
parties are deterministic, it gives the same packets, the same refusals and the same result.

Two notations, which may be combined. *Events* are rules ("the masked vector of client-002 is lost")
and suit tests written by hand. *Steps* are what was done, packet by packet (packets are numbered in
the order in which they were made), and are what a state machine or a finished run writes down.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from typing import Any, Final

import msgspec

from privfedrl.errors import ConfigurationError
from privfedrl.testing.adapter import Packet, RoundSpec

__all__ = ["Action", "Edit", "EditKind", "Event", "Fault", "Schedule", "Step", "shrink"]


class Fault(Enum):
    """What the network does to the packets that an event names."""

    DROP = "drop"
    DUPLICATE = "duplicate"
    REORDER = "reorder"
    DELAY = "delay"
    REPLAY = "replay"
    TAMPER = "tamper"
    RESTART = "restart"


class Action(Enum):
    """One thing that was done to the running network."""

    OPEN = "open"
    DELIVER = "deliver"
    DROP = "drop"
    TAMPER = "tamper"
    SUBSTITUTE = "substitute"
    REDIRECT = "redirect"
    CUT = "cut"
    JOIN = "join"
    RESTART = "restart"
    FORK = "fork"
    CLOSE = "close"
    FINISH = "finish"


class EditKind(Enum):
    """How bytes are changed."""

    BIT = "bit"
    BYTE = "byte"
    TRUNCATE = "truncate"
    EXTEND = "extend"


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A change of bytes that never leaves them as they were.

    Attributes:
        kind: flip one bit, replace one byte, cut the end off, or append bytes.
        position: bit or byte index, or the length that is kept; taken modulo what there is.
        value: xor of the byte (0 counts as 1), or number of zero bytes appended (at least 1).
    """

    kind: EditKind = EditKind.BIT
    position: int = 0
    value: int = 1

    def apply(self, data: bytes) -> bytes:
        """``data`` with the change; empty data can only grow."""
        if self.kind is EditKind.EXTEND or not data:
            return data + bytes(max(1, self.value))
        if self.kind is EditKind.TRUNCATE:
            return data[: self.position % len(data)]
        changed = bytearray(data)
        if self.kind is EditKind.BIT:
            position = self.position % (8 * len(data))
            changed[position // 8] ^= 1 << position % 8
        else:
            changed[self.position % len(data)] ^= self.value % 256 or 1
        return bytes(changed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A rule: ``fault`` happens to every packet that matches; an empty name matches all.

    Attributes:
        argument: DUPLICATE: extra copies (0 counts as 1). DELAY: for how many exchanges (0 counts
            as 1). REPLAY: 0 repeats the packet one exchange later; k > 0 delivers, just before it,
            the packet of the same kind and names of k rounds ago. RESTART: 0 before the packet is
            delivered to the client, 1 after. Else unused.
        edit: of TAMPER; the changed bytes replace the packet.
    """

    fault: Fault
    kind: str = ""
    sender: str = ""
    recipient: str = ""
    argument: int = 0
    edit: Edit = Edit()

    def matches(self, packet: Packet) -> bool:
        """Whether the rule is about ``packet``."""
        return (
            self.kind in ("", packet.kind)
            and self.sender in ("", packet.sender)
            and self.recipient in ("", packet.recipient)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Something that was done.

    Attributes:
        packet: its number; -1 where none is meant.
        name: of the client that is cut, joined, restarted or left out, or who gets the packet.
        argument: SUBSTITUTE: number of the packet whose bytes are used. FORK: the stage from which
            the client's packets are withheld, -1 for a server without any history. CLOSE: the
            server view, 0 for the first.
        audience: FORK: the clients that are shown the new view from now on, and no other.
    """

    action: Action
    packet: int = -1
    name: str = ""
    argument: int = 0
    edit: Edit = Edit()
    audience: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Everything that happens between honest parties.

    Attributes:
        events: rules for packets.
        kept: per client, how many of its first messages arrive; all if absent.
        order: client names; their messages of one exchange arrive in this order, others last.
        steps: done first, in this order, before the round goes on by the rules.
    """

    events: tuple[Event, ...] = ()
    kept: tuple[tuple[str, int], ...] = ()
    order: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()

    def to_json(self) -> str:
        """One canonical line; what has its default value is left out."""
        return msgspec.json.encode(_lean(self)).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Schedule:
        """Inverse of :meth:`to_json`.

        Raises:
            ConfigurationError: not a schedule.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, binascii.Error, ValueError) as error:
            raise ConfigurationError(f"not a schedule: {error}") from error

    def script(
        self,
        adapter: str,
        *,
        spec: RoundSpec | None = None,
        seed: int = 0,
        coalition: bool = False,
    ) -> str:
        """A Python program that plays this and says what broke; exit status 1 if anything did.

        Args:
            adapter: "module:name" of an adapter, its class or a function that makes it.
            spec: the round that was played.
            seed: of the clients' vectors (``draw_vectors``).
            coalition: whether the first ``spec.max_colluding`` clients collude with the server.
        """
        return _SCRIPT.format(
            adapter=adapter,
            spec=msgspec.json.encode(_lean(spec or RoundSpec())).decode(),
            seed=seed,
            schedule=self.to_json(),
            coalition=coalition,
        )

    def smaller(self) -> Iterator[Schedule]:
        """Schedules with one thing less, the largest cuts first."""
        for name in ("steps", "events", "kept"):
            values = getattr(self, name)
            size = len(values)
            while size:
                for start in range(0, len(values), size):
                    yield replace(self, **{name: values[:start] + values[start + size :]})
                size //= 2
        if self.order:
            yield replace(self, order=())


def shrink(
    schedule: Schedule, fails: Callable[[Schedule], bool], *, tries: int = 10_000
) -> Schedule:
    """The smallest schedule that greedy removal reaches in ``tries`` and that still ``fails``."""
    candidates = schedule.smaller()
    for _ in range(tries):
        candidate = next(candidates, None)
        if candidate is None:
            break
        if fails(candidate):
            schedule, candidates = candidate, candidate.smaller()
    return schedule


def _lean(value: Any) -> Any:
    """``value`` as plain JSON types, without fields that have their default."""
    if is_dataclass(value) and not isinstance(value, type):
        return {
            each.name: _lean(getattr(value, each.name))
            for each in fields(value)
            if getattr(value, each.name) != each.default
        }
    if isinstance(value, tuple | list):
        return [_lean(each) for each in value]
    return msgspec.to_builtins(value)


_SCRIPT: Final = """\
# Replays one schedule: prints what broke and exits with 1, or exits with 0.
import sys

from privfedrl.testing.replay import replay

SPEC = r'''{spec}'''
SCHEDULE = r'''{schedule}'''
sys.exit(replay("{adapter}", spec=SPEC, schedule=SCHEDULE, seed={seed}, coalition={coalition}))
"""
