"""Seeded defects of the client: checks that it leaves out, things that it does twice or too late.

Guarantee: each row removes one protection, whatever number of lines that protection has.
"""

# private names of the protocol are what a defect is made of

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import msgspec
import numpy as np

from privfedrl.parties import MemoryJournal
from privfedrl.parties.identity import Registry
from privfedrl.secagg import client as client_module
from privfedrl.secagg import messages as messages_module
from privfedrl.secagg import server as server_module
from privfedrl.secagg.client import SecAggClient
from privfedrl.secagg.sizes import MessageType
from privfedrl.testing.adapter import Packet, RingVector, RoundSpec, Store
from privfedrl.testing.mutant_seeded import Patch, Seeded, always, seeded, substituted
from privfedrl.testing.pairwise import PairwiseAdapter

__all__ = ["CLIENT_MUTANTS"]

_HANDLERS: Final = client_module._HANDLERS


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
        "told-parameters",
        "thresholds, floors and sizes are the server's",
        "accepts threshold 0 and modulus 2, as SecAgg+ of Flower; attack A10",
        ("A10-parameters",),
        Patch(client_module, "check_config", _told_parameters),
        Patch(SecAggClient, "_join", _join_as_told),
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
        "any-time",
        "the time of the config is not compared with the own clock",
        "an old config, replayed; attack A7",
        ("A7-times",),
        Patch(client_module, "check_time", always(lambda config, *, registry, now: None)),
    ),
    seeded(
        "never-expires",
        "the validity of registered keys is ignored",
        "a key that was withdrawn; attack A5",
        ("A5-expired",),
        Patch(Registry, "valid_at", always(lambda self, name, when: name in self)),
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
