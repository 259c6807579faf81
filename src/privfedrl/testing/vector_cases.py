"""What a refused input is made from, and how it is written down.

Guarantee: a case names the state of one party, one input, and the error that must follow; the
error is stated by hand, never recorded from what the code happens to do.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from privfedrl.parties.binding import label
from privfedrl.parties.frames import HEADER_BYTES
from privfedrl.parties.members import Members
from privfedrl.primitives.key_agreement import KeyPair
from privfedrl.primitives.signing import SIGNATURE_BYTES
from privfedrl.secagg.phases import AbortCode
from privfedrl.secagg.sizes import MessageType
from privfedrl.testing.vector_federation import Federation, Round, parse, world_of

__all__ = ["CLOSE", "Case", "Scene", "aborts", "refuses", "unauthentic"]

CLOSE: Final = None
"""As an input of the coordinator: its deadline."""

_KNOWN: Final = frozenset(kind.value for kind in MessageType)
_HEADER: Final = struct.Struct(">4sHHI")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One party, its state, one input and what must come of it.

    Attributes:
        before: how many of the party's frames or events of the round it has seen.
        error, code: class, and abort code where the class is RoundAborted.
        afterwards: the abort code that any later input gives; None if nothing has changed.
        settings: what differs from the world's values (clock, plan_digest ...).
    """

    id: str
    claim: str
    scene: Scene = field(repr=False)
    party: str
    before: int
    input: bytes | None = field(repr=False)
    error: str
    code: str | None
    afterwards: str | None
    settings: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """The content of the case's file."""
        scene = self.scene
        shared = scene.file is not None
        before: Any = self.before
        if not shared:
            before = [data.hex() for data in scene.shown[: self.before]]
        return {
            "claim": self.claim,
            "world": scene.file if shared else world_of(scene.round, names=(scene.name,)),
            "party": self.party,
            "name": scene.name if self.party == "client" else scene.federation.coordinator,
            "settings": dict(self.settings),
            "before": before,
            "input": None if self.input is None else self.input.hex(),
            "error": self.error,
            "code": self.code,
            "afterwards": self.afterwards,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A played round, seen from the client called ``name``; ``file`` is where it is stored."""

    round: Round
    name: str
    file: str | None

    @property
    def federation(self) -> Federation:
        return self.round.federation

    @property
    def shown(self) -> list[bytes]:
        """What the coordinator sent to the client, in order."""
        return self.round.shown[self.name]

    def other(self, name: str, stage: int) -> bytes:
        """Frame number ``stage`` that the client called ``name`` sent."""
        return self.round.sent[name][stage]

    def forge(self, stage: int, **changes: Any) -> bytes:
        """Frame number ``stage`` shown to the client, changed and signed by the coordinator."""
        return self.federation.forge(self.shown[stage], **changes)

    def parsed(self, stage: int) -> Any:
        """The message in frame number ``stage`` shown to the client."""
        return parse(self.shown[stage])

    def signed(
        self,
        kind: int,
        payload: bytes,
        *,
        by: str | None = None,
        version: int = 0x0101,
        magic: bytes = b"PFRL",
        length: int | None = None,
    ) -> bytes:
        """Any envelope around any payload, with a right signature over it."""
        size = len(payload) if length is None else length
        frame = _HEADER.pack(magic, version, kind, size) + payload
        text = MessageType(kind).label if kind in _KNOWN else "unknown"
        return frame + self.federation.identity(by or self.federation.coordinator).sign(
            label(text) + hashlib.sha256(frame).digest()
        )

    def payload(self, stage: int) -> bytes:
        """The payload of frame number ``stage`` shown to the client."""
        return self.shown[stage][HEADER_BYTES:-SIGNATURE_BYTES]

    def bitmap(self, names: Sequence[str]) -> bytes:
        """The set of ``names``."""
        registry = self.federation.registry
        return Members.of(map(registry.index_of, names), len(registry.agents)).to_bytes()

    def named(self, encoded: bytes) -> list[str]:
        """Inverse of :meth:`bitmap`."""
        agents = self.federation.registry.agents
        return [agents[index] for index in Members.from_bytes(encoded, len(agents)).indices()]

    def key(self, name: str, which: int) -> KeyPair:
        """The one-round share key (0) or mask key (1) of ``name``."""
        return KeyPair.from_secret_bytes(self.round.entropies[name].drawn[which])

    def case(self, identifier: str, claim: str, before: int, data: bytes, **more: Any) -> Case:
        """A case of the client; see :func:`refuses` and :func:`aborts` for ``more``."""
        more.setdefault("settings", {})
        return Case(
            id=identifier,
            claim=claim,
            scene=self,
            party=more.pop("party", "client"),
            before=before,
            input=data,
            **more,
        )


def refuses() -> dict[str, Any]:
    """Typed refusal of bytes that change nothing."""
    return {"error": "RemoteProtocolError", "code": None, "afterwards": None}


def unauthentic() -> dict[str, Any]:
    """Opaque refusal of bytes that change nothing."""
    return {"error": "AuthenticationFailed", "code": None, "afterwards": None}


def aborts(code: AbortCode, **settings: Any) -> dict[str, Any]:
    """The end of the round for this party."""
    return {
        "error": "RoundAborted",
        "code": code.value,
        "afterwards": code.value,
        "settings": settings,
    }
