"""Seeded defects of a client's agreement: signatures, survivor sets and the shares that follow.

Guarantee: as in ``mutant_client``.
"""

# private names of the protocol are what a defect is made of

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np

from privfedrl.parties.binding import label
from privfedrl.primitives import shamir
from privfedrl.secagg import client as client_module
from privfedrl.secagg import messages as messages_module
from privfedrl.secagg import server as server_module
from privfedrl.secagg.agreement import Cohort, SignedSet, members_of
from privfedrl.secagg.client import SecAggClient
from privfedrl.secagg.messages import Consistency, Unmask
from privfedrl.secagg.phases import ClientPhase
from privfedrl.secagg.sizes import MessageType
from privfedrl.secagg.suite import DEFAULT_SUITE
from privfedrl.testing.adapter import Packet, Reveal, RoundSpec
from privfedrl.testing.mutant_seeded import Patch, Seeded, always, seeded, substituted

__all__ = ["VIEW_MUTANTS"]

_HANDLERS: Final = client_module._HANDLERS
_CONSISTENCY: Final = frozenset({MessageType.CONSISTENCY})


def _unsigned(kind: MessageType) -> Patch:
    """Signatures of one kind of message are not looked at."""
    prefix = label(kind.label)

    def make(verify: Any) -> Any:
        def lenient(key: bytes, signature: bytes, message: bytes) -> None:
            if not message.startswith(prefix):
                verify(key, signature, message)

        return lenient

    return Patch(DEFAULT_SUITE, "verify", make)


def _on_request(change: Any) -> Patch:
    """``change(old, client, message)`` in place of the answer to the unmask request."""

    def make(old: Any) -> Any:
        return lambda self, message: change(old, self, message)

    return Patch(_HANDLERS, MessageType.UNMASK_REQUEST, make)


def _consents_below(offset: int) -> Any:
    lower = property(lambda self: self.topology.threshold - offset)

    def change(old: Any, self: Any, message: Any) -> Any:
        with substituted(Cohort, "threshold", lower):
            return old(self, message)

    return change


def _count_repeats(old: Any, self: Any, message: Any) -> Any:
    distinct = tuple(dict.fromkeys(message.consents))
    spare = len(message.consents) - len(distinct)
    lower = property(lambda cohort: cohort.topology.threshold - spare)
    with substituted(Cohort, "threshold", lower):
        return old(self, msgspec.structs.replace(message, consents=distinct))


def _any_view(self: Any, data: bytes) -> str:
    consent: Consistency = self._reader.read(data, _CONSISTENCY).message
    return consent.sender


def _step_anew(old: Any) -> Any:
    """A client that answers each survivor set and request as if it were the first."""

    def step(self: Any, frame: Any, data: bytes) -> Any:
        before = {
            MessageType.SURVIVORS: ClientPhase.MASKED,
            MessageType.UNMASK_REQUEST: ClientPhase.AGREED,
        }
        if frame.type in self._slots and frame.type in before:
            del self._slots[frame.type]
        if frame.type in before and self._phase in _LATE:
            self._phase = before[frame.type]
        held = dict(self._held_shares)
        answer = old(self, frame, data)
        self._held_shares.update(held)
        return answer

    return step


_LATE: Final = (ClientPhase.MASKED, ClientPhase.AGREED, ClientPhase.DONE)


def _receive_anew(old: Any) -> Any:
    """... even after its end."""

    def receive(self: Any, data: bytes) -> Any:
        if self._phase is ClientPhase.DONE and data not in self._slots.values():
            self._phase = ClientPhase.AGREED
        return old(self, data)

    return receive


class _Both(Seeded):
    """The unmask message holds both shares, and the adapter says so."""

    def reveals(self, spec: RoundSpec, server: Any, packet: Packet) -> tuple[Reveal, ...]:
        return tuple(
            Reveal(found.owner, found.holder, kind)
            for found in super().reveals(spec, server, packet)
            for kind in ("self", "pair")
        )


def _send_both(old: Any, self: Any, message: Any) -> Any:
    held = dict(self._held_shares)
    old(self, message)
    shares = b"".join(b"".join(held[owner]) for owner in sorted(held))
    return self._answer(
        Unmask(cfg=self._cfg, sender=self._identity.name, roster=self._cohort.roster, shares=shares)
    )


def _take_both(_: Any) -> Any:
    def take(self: Any, frame: Any) -> Any:
        owners = self._owners(frame.sender)
        pairs = shamir.decode_shares(frame.message.shares, count=2 * len(owners))
        alive = set(self._now.survivors)
        return np.stack([pairs[2 * at + (owner not in alive)] for at, owner in enumerate(owners)])

    return take


def _twice_as_long(limit: Any) -> Any:
    return lambda kind, limits: limit(kind, limits) * (2 if kind is MessageType.UNMASK else 1)


def _trusting_set(self: Any, message: Any, *, within: Any, own: bytes, code: Any) -> SignedSet:
    members = members_of(
        message.members,
        registry=self._registry,
        within=within,
        floor=self._parameters.stage_floor(len(self._cohort.members)),
        code=code,
    )
    return SignedSet(members=members, root=message.root)


VIEW_MUTANTS: Final = (
    seeded(
        "advert-signatures",
        "signatures of advertised keys are not checked",
        "unsigned keys, as in SecAgg+ of Flower; attack A5",
        ("A16-damaged", "I6"),
        _unsigned(MessageType.ADVERTISE),
    ),
    seeded(
        "consent-signatures",
        "signatures of the agreement on survivors are not checked",
        "a server that agrees with itself; attack A4",
        ("A4-consents", "I6"),
        _unsigned(MessageType.CONSISTENCY),
    ),
    seeded(
        "no-agreement",
        "agreement on any survivor set counts for the own one",
        "no consistency round; attack A4",
        ("A4-borrowed", "A4-consents"),
        Patch(SecAggClient, "_read_consent", always(_any_view)),
    ),
    seeded(
        "forgets-what-it-signed",
        "a further survivor set and request are answered like the first",
        "share kinds chosen by the last message; attack A3",
        ("A3-both-shares",),
        Patch(SecAggClient, "_step", _step_anew),
        Patch(SecAggClient, "receive", _receive_anew),
        Patch(SecAggClient, "_end", lambda old: lambda self, phase, code: None),
        Patch(SecAggClient, "_spend_consistency", always(lambda self, survivors: None)),
    ),
    seeded(
        "both-shares",
        "the unmask message holds both shares of every peer",
        "the client that returns both shares of one node in SecAgg+ of Flower; attack A3",
        ("A3-both-shares",),
        _on_request(_send_both),
        Patch(server_module._TAKERS, MessageType.UNMASK, _take_both),
        Patch(messages_module, "frame_limit", _twice_as_long),
        base=_Both,
    ),
    seeded(
        "one-consent-less",
        "shares are revealed for t - 1 agreements",
        "an off-by-one threshold; attack A4",
        ("A4-consents", "A4-lax"),
        _on_request(_consents_below(1)),
    ),
    seeded(
        "repeated-consents",
        "an agreement that is shown twice counts twice",
        "counting messages instead of signers; attack A4",
        ("A4-consents",),
        _on_request(_count_repeats),
    ),
    seeded(
        "foreign-set",
        "a survivor set need not hold what the client has sent",
        "trusting the server's list; attack A4",
        ("A4-foreign-set",),
        Patch(SecAggClient, "_read_set", always(_trusting_set)),
    ),
)
"""What a client can get wrong about what the others have agreed to."""
