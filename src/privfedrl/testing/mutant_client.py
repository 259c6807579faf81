"""Seeded defects of the client: checks that it leaves out, things that it does twice or too late.

Guarantee: each row removes one protection, whatever number of lines that protection has.
"""

# private names of the protocol are what a defect is made of
# ruff: noqa: SLF001

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import msgspec
import numpy as np

from privfedrl.primitives import shamir
from privfedrl.secagg import MemoryJournal
from privfedrl.secagg import client as client_module
from privfedrl.secagg import messages as messages_module
from privfedrl.secagg import server as server_module
from privfedrl.secagg.agreement import Cohort, SignedSet, members_of
from privfedrl.secagg.binding import label
from privfedrl.secagg.client import SecAggClient
from privfedrl.secagg.messages import Consistency, Unmask
from privfedrl.secagg.phases import ClientPhase
from privfedrl.secagg.server import SecAggServer
from privfedrl.secagg.sizes import MessageType
from privfedrl.secagg.suite import DEFAULT_SUITE
from privfedrl.testing.adapter import Packet, Reveal, RingVector, RoundSpec, Store
from privfedrl.testing.mutant_seeded import Patch, Seeded, always, seeded, substituted
from privfedrl.testing.pairwise import PairwiseAdapter

__all__ = ["CLIENT_MUTANTS"]

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


def _told_parameters(old: Any) -> Any:
    def check(config: Any, *, registry: Any, parameters: Any, plan_digest: bytes) -> None:
        told = config.decoded_parameters()
        old(config, registry=registry, parameters=told, plan_digest=plan_digest)

    return check


def _join_as_told(old: Any) -> Any:
    def join(self: Any, frame: Any, vector: RingVector, model_digest: bytes) -> Any:
        self._parameters = frame.message.decoded_parameters()
        return old(self, frame, vector, model_digest)

    return join


def _any_model(old: Any) -> Any:
    return lambda self, frame, vector, _: old(self, frame, vector, frame.message.model_digest)


def _any_plan(old: Any) -> Any:
    def check(config: Any, *, registry: Any, parameters: Any, plan_digest: bytes) -> None:
        old(config, registry=registry, parameters=parameters, plan_digest=config.plan_digest)

    return check


class _Forgetful(Seeded):
    def make_client(self, spec: RoundSpec, name: str, vector: RingVector, store: Store) -> Any:
        return super().make_client(spec, name, vector, {})


class _Boastful(Seeded):
    def parameters(self, spec: RoundSpec) -> Any:
        return PairwiseAdapter.parameters(self, spec)


def _not_yet(old: Any) -> Any:
    def handler(self: Any, message: Any) -> Any:
        with substituted(MemoryJournal, "spend_masked", lambda *_: None):
            return old(self, message)

    return handler


def _now_at_last(old: Any) -> Any:
    def handler(self: Any, message: Any) -> Any:
        config = self._config
        self._journal.spend_masked(config.task_id, config.round, config.attempt)
        return old(self, message)

    return handler


def _charge_later(old: Any) -> Any:
    def handler(self: Any, message: Any) -> Any:
        charge, self._before_release = self._before_release, lambda: None
        answer = old(self, message)
        self._before_release = charge
        return answer

    return handler


def _charge_now(old: Any) -> Any:
    def handler(self: Any, message: Any) -> Any:
        self._before_release()
        return old(self, message)

    return handler


class _TellingClient(SecAggClient):
    def __repr__(self) -> str:
        keys = self._round_keys
        return f"SecAggClient({self._identity.name}, {None if keys is None else keys.vector})"


class _Telling(Seeded):
    def make_client(self, spec: RoundSpec, name: str, vector: RingVector, store: Store) -> Any:
        client = super().make_client(spec, name, vector, store)
        client.party.__class__ = _TellingClient  # it is asked outside of every method
        return client


def _cast(self: Any, vector: Any) -> RingVector:
    wide = np.resize(np.asarray(vector), self._parameters.vector_length)
    with np.errstate(all="ignore"):
        return np.array(np.nan_to_num(wide)).astype(f"uint{self._parameters.ring_bits}")


class _Padded(Seeded):
    """Masked vectors are followed by a byte for each zero of the input, up to eight."""

    def residues(self, spec: RoundSpec, packet: Packet) -> RingVector | None:
        found = super().residues(spec, packet) if len(packet.data) % 4 == 0 else None
        return found if packet.kind != MessageType.MASKED.label else _unpadded(spec, packet)


def _unpadded(spec: RoundSpec, packet: Packet) -> RingVector:
    data = messages_module.peek(packet.data, MessageType.MASKED, limit=len(packet.data)).vector
    return np.frombuffer(data, f"<u{spec.modulus_bits // 8}", count=spec.vector_length)


def _pad(old: Any) -> Any:
    def masked(self: Any, peers: tuple[str, ...]) -> Any:
        zeros = int(np.count_nonzero(self._keys.vector == 0))
        found = old(self, peers)
        return msgspec.structs.replace(found, vector=bytes(found.vector) + bytes(min(zeros, 8)))

    return masked


def _unpad(old: Any) -> Any:
    def take(self: Any, frame: Any) -> Any:
        vector = frame.message.vector[: self._parameters.vector_bytes]
        message = msgspec.structs.replace(frame.message, vector=vector)
        return old(self, replace(frame, message=message))

    return take


CLIENT_MUTANTS: Final = (
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
        "told-parameters",
        "thresholds, floors and sizes are the server's",
        "accepts threshold 0 and modulus 2, as SecAgg+ of Flower; attack A10",
        ("A10-parameters",),
        Patch(client_module, "check_config", _told_parameters),
        Patch(SecAggClient, "_join", _join_as_told),
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
    seeded(
        "no-journal",
        "nothing is remembered over a restart",
        "a set-up restart that only warns, as in SecAgg+ of Flower; attack A11",
        ("A11-rewind", "A11-restart", "I5"),
        base=_Forgetful,
    ),
    seeded(
        "spent-too-late",
        "a round is spent one message after the masked vector has left",
        "a journal that is written after the release; attack A11",
        ("A11-restart", "I5"),
        Patch(_HANDLERS, MessageType.DELIVERY, _not_yet),
        Patch(_HANDLERS, MessageType.SURVIVORS, _now_at_last),
    ),
    seeded(
        "any-model",
        "the model of the config is not compared with the own one",
        "inconsistent models; attacks A1 and A2",
        ("A2-crafted-model", "A1-split-model"),
        Patch(SecAggClient, "_join", _any_model),
    ),
    seeded(
        "any-plan",
        "the plan of the config is not compared with the own one",
        "a server-chosen clip norm; attack A10",
        ("A2-crafted-model", "A1-split-model"),
        Patch(client_module, "check_config", _any_plan),
    ),
    seeded(
        "charged-too-late",
        "the ledger is asked after the masked vector has left",
        "release without a reservation; attack A22",
        ("A22-uncharged",),
        Patch(_HANDLERS, MessageType.DELIVERY, _charge_later),
        Patch(_HANDLERS, MessageType.SURVIVORS, _charge_now),
    ),
    seeded(
        "telling-repr",
        "the repr of a client shows its vector",
        "inputs in logs and tracebacks; attack A20",
        ("A20-errors",),
        base=_Telling,
    ),
    seeded(
        "silent-cast",
        "inputs of another type or length are cast and cut to fit",
        "not-a-number and overflow go unnoticed; attack A15",
        ("A15-inputs",),
        Patch(SecAggClient, "_checked_copy", always(_cast)),
    ),
    seeded(
        "telling-sizes",
        "a masked vector is longer the more zeros its input has",
        "sparse or compressed updates; attack A20",
        ("A20-sizes",),
        Patch(SecAggClient, "_masked", _pad),
        Patch(server_module._TAKERS, MessageType.MASKED, _unpad),
        base=_Padded,
    ),
    seeded(
        "any-address",
        "frames for other clients and of other rounds are taken",
        "no recipient in what is signed; attack A7",
        ("A7-recipients", "A7-other-rounds"),
        Patch(SecAggClient, "_check_address", always(lambda self, frame: None)),
    ),
    seeded(
        "no-guard",
        "the differencing guard is claimed and off",
        "averaging over nearly equal cohorts; attacks A12 and A14",
        ("A14-attempts", "A12-rounds"),
        base=_Boastful,
    ),
)
"""What a client can get wrong."""
