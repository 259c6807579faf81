"""Seeded defects of the server, of frames and of the record.

Guarantee: as in ``mutant_client``.
"""

# private names of the protocol are what a defect is made of

from __future__ import annotations

from typing import Any, Final

import numpy as np

from privfedrl.parties.binding import digest
from privfedrl.parties.frames import HEADER_BYTES, Wire
from privfedrl.secagg import client as client_module
from privfedrl.secagg import messages as messages_module
from privfedrl.secagg import server as server_module
from privfedrl.secagg import transcript as transcript_module
from privfedrl.secagg.messages import RoundConfig
from privfedrl.secagg.parameters import SecAggParameters
from privfedrl.secagg.phases import ServerPhase
from privfedrl.secagg.server import SecAggServer
from privfedrl.secagg.sizes import MessageType
from privfedrl.secagg.transcript import Transcript
from privfedrl.testing.mutant_seeded import Patch, always, seeded

__all__ = ["SERVER_MUTANTS"]

_MASKED: Final = frozenset({MessageType.MASKED})


def _add(server: Any, vector: bytes) -> None:
    words = np.frombuffer(vector, server._total.dtype.newbyteorder("<"))
    if words.size == server._total.size:
        np.add(server._total, words, out=server._total)


def _is_masked(data: Any) -> bool:
    return isinstance(data, bytes) and data[6:8] == MessageType.MASKED.to_bytes(2, "big")


def _add_late(old: Any) -> Any:
    late = (ServerPhase.COLLECT_CONSISTENCY, ServerPhase.COLLECT_UNMASK)

    def receive(self: Any, data: bytes) -> Any:
        if self._phase in late and _is_masked(data):
            frame = self._reader.read(data, _MASKED)
            if frame.message.cfg == self._now.cfg and frame.sender not in self._now.survivors:
                _add(self, frame.message.vector)
                return []
        return old(self, data)

    return receive


def _add_again(old: Any) -> Any:
    def receive(self: Any, data: bytes) -> Any:
        if self._phase is ServerPhase.COLLECT_MASKED and _is_masked(data):
            frame = self._reader.read(data, _MASKED)
            earlier = self._answers[MessageType.MASKED].get(frame.sender)
            if earlier is not None and earlier.digest == frame.digest:
                _add(self, frame.message.vector)
        return old(self, data)

    return receive


def _add_second(old: Any) -> Any:
    def refuse(self: Any, frame: Any, earlier: Any, data: bytes) -> None:
        if frame.type is MessageType.MASKED and self._phase is ServerPhase.COLLECT_MASKED:
            _add(self, frame.message.vector)
        old(self, frame, earlier, data)

    return refuse


def _saturate(old: Any) -> Any:
    def take(self: Any, frame: Any) -> Any:
        before = self._total.copy()
        found = old(self, frame)
        wrapped = self._total < before
        self._total[wrapped] = np.iinfo(self._total.dtype).max
        return found

    return take


def _only_threshold(_: Any) -> Any:
    return property(lambda self: self.threshold)


def _any_round(payload: bytes) -> bytes:
    config: RoundConfig = messages_module._WIRE.decode(MessageType.CONFIG, payload)
    return digest("config", config.plan_digest, config.model_digest)


def _raw_decode(self: Any, kind: MessageType, payload: bytes) -> Any:
    return self._decoders[kind].decode(payload)


def _reserve(old: Any) -> Any:
    def split(self: Any, data: bytes, *given: Any) -> Any:
        if isinstance(data, bytes) and len(data) >= HEADER_BYTES:
            announced = int.from_bytes(data[8:12], "big")
            room = bytearray(min(announced, 1 << 26))
            del room
        return old(self, data, *given)

    return split


def _keep_state(old: Any) -> Any:
    """A frame is noted before it is looked at."""

    def receive(self: Any, data: bytes) -> Any:
        waiting = sorted(self._awaited)
        if isinstance(data, bytes) and waiting and data[:4] != b"PFRL":
            self._awaited.discard(waiting[0])
        return old(self, data)

    return receive


SERVER_MUTANTS: Final = (
    seeded(
        "late-vector",
        "a masked vector that comes after its phase is added",
        "stragglers; attack A14",
        ("A14-late-vector",),
        Patch(SecAggServer, "receive", _add_late),
    ),
    seeded(
        "added-twice",
        "a masked vector that arrives twice is added twice",
        "a transport that delivers at least once; attack A7",
        ("A7-duplicates",),
        Patch(SecAggServer, "receive", _add_again),
    ),
    seeded(
        "second-vector",
        "a second, different vector of one client is added as well",
        "a client that contradicts itself is kept in; attack A15",
        ("A14-twins",),
        Patch(SecAggServer, "_refuse", _add_second),
    ),
    seeded(
        "saturating-sum",
        "the sum stops at the top of the ring",
        "silent overflow, as in SecAgg+ of Flower; attack A15",
        ("A15-wrap",),
        Patch(server_module._TAKERS, MessageType.MASKED, _saturate),
    ),
    seeded(
        "no-floor",
        "min_clients is not looked at",
        "small cohorts; attack A9",
        ("A9-floor",),
        Patch(SecAggParameters, "floor", _only_threshold),
    ),
    seeded(
        "any-round",
        "messages are not bound to task, round and attempt",
        "replay; attack A7",
        ("A7-other-rounds",),
        Patch(client_module, "config_digest", always(_any_round)),
        Patch(server_module, "config_digest", always(_any_round)),
        Patch(transcript_module, "config_digest", always(_any_round)),
    ),
    seeded(
        "untyped-errors",
        "the decoder's own errors get through",
        "a KeyError that ends the server; attack A16",
        ("A16-hostile", "A16-damaged"),
        Patch(Wire, "decode", always(_raw_decode)),
    ),
    seeded(
        "believed-length",
        "as much memory is reserved as a header announces",
        "decompression bombs; attack A16",
        ("A16-memory",),
        Patch(Wire, "split", _reserve),
    ),
    seeded(
        "noted-before-checked",
        "a frame that is refused counts as an answer all the same",
        "state that changes on garbage; attack A16",
        ("A16-hostile", "I6"),
        Patch(SecAggServer, "receive", _keep_state),
    ),
    seeded(
        "unverified-record",
        "the public record is not verified",
        "an audit that cannot fail",
        ("A16-transcript",),
        Patch(Transcript, "verify", always(lambda self, registry, *, previous=None: None)),
    ),
)
"""What a server can get wrong."""
