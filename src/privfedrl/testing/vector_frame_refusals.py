"""Frames and configs that a client must refuse.

Guarantee: each input differs from the honest one in the named way only, and carries right
signatures wherever the claim does not say otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import msgspec

from privfedrl.secagg import AbortCode, SecAggParameters
from privfedrl.secagg.sizes import MessageType
from privfedrl.testing.vector_cases import Case, Scene, aborts, refuses, unauthentic
from privfedrl.testing.vector_federation import COMPLETE, NOW, opened

__all__ = ["frame_cases"]

OTHER: Final = b"\xaa" * 32


def frame_cases(s: Scene) -> Iterator[Case]:
    """Envelopes, payloads and configs."""
    yield from _envelopes(s)
    yield from _payloads(s)
    yield from _configs(s)


def _envelopes(s: Scene) -> Iterator[Case]:
    good, kind, payload = s.shown[1], MessageType.ROSTER, s.payload(1)
    limit = s.federation.parameters.frame_limit(kind)
    for name, claim, data in (
        ("magic", "a frame starts with PFRL", s.signed(kind, payload, magic=b"PFRM")),
        ("version", "the protocol is number 1", s.signed(kind, payload, version=0x0201)),
        ("suite", "the suite is number 1", s.signed(kind, payload, version=0x0102)),
        ("type", "there is no type 99", s.signed(99, payload)),
        ("length_short", "length is that of the payload", s.signed(kind, payload, length=9)),
        (
            "length_huge",
            "a length of 2^32 - 1 is refused before anything is allocated",
            s.signed(kind, payload, length=2**32 - 1),
        ),
        ("truncated", "a frame is whole", good[:-1]),
        ("empty", "a frame has a header and a signature", b""),
        ("trailing_frame_bytes", "nothing follows the signature", good + b"\x00"),
        (
            "oversized",
            "a frame longer than the size limit of its type is refused unread",
            s.signed(kind, bytes(limit + 1 - 76)),
        ),
    ):
        yield s.case(name, claim, 1, data, **refuses())
    yield s.case(
        "own_type", "a client takes no client's message", 1, s.other(s.name, 0), **refuses()
    )
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    yield s.case("signature", "the signature verifies", 1, flipped, **unauthentic())
    relabelled = s.signed(MessageType.DELIVERY, payload)
    yield s.case(
        "signature_label",
        "a signature holds for one type only",
        1,
        relabelled[:6] + good[6:-64] + relabelled[-64:],
        **unauthentic(),
    )


def _payloads(s: Scene) -> Iterator[Case]:
    kind, payload = MessageType.ROSTER, s.payload(1)
    fields = msgspec.msgpack.decode(payload)
    encode = msgspec.msgpack.encode
    for name, claim, data in (
        ("trailing_payload_bytes", "nothing follows the array", payload + b"\xc0"),
        ("missing_field", "an array has all its fields", encode(fields[:-1])),
        ("extra_field", "an array has no field more", encode([*fields, 0])),
        ("wrong_tag", "the first element is the type", encode([4, *fields[1:]])),
        ("map", "a payload is an array", encode(dict(enumerate(fields)))),
        ("text_for_bytes", "bytes are no text", encode([*fields[:-1], ""])),
        ("short_digest", "a digest has 32 bytes", encode([fields[0], OTHER[:31], *fields[2:]])),
        ("nesting", "deep nesting is refused", b"\x91" * 2000 + b"\xc0"),
        ("array_header", "a count of 2^32 - 1 allocates nothing", b"\xdd\xff\xff\xff\xff"),
        (
            "name_form",
            "a name has 1 to 64 of its characters",
            encode([*fields[:3], "a b", *fields[4:]]),
        ),
    ):
        yield s.case(f"payload_{name}", claim, 1, s.signed(kind, data), **refuses())
    stranger = s.federation.forge(s.shown[1], by="stranger")
    yield s.case("unknown_sender", "a sender is registered", 1, stranger, **unauthentic())
    agent = s.federation.forge(s.shown[1], by="agent-1")
    yield s.case("sender_role", "only the coordinator sends a roster", 1, agent, **refuses())
    yield s.case("wrong_round", "cfg is that of this round", 1, s.forge(1, cfg=OTHER), **refuses())
    yield s.case(
        "recipient",
        "a frame is addressed to its reader",
        1,
        s.forge(1, recipient="agent-1"),
        **refuses(),
    )


def _configs(s: Scene) -> Iterator[Case]:
    code, federation = AbortCode, s.federation
    other = SecAggParameters(
        num_clients=10, max_colluding=0, vector_length=5, min_clients=5, min_honest=3
    )
    for name, claim, data, expected in (
        ("plan", "the plan is the pinned one", {"plan_digest": OTHER}, code.PLAN_MISMATCH),
        ("model", "the model is the agent's", {"model_digest": OTHER}, code.MODEL_MISMATCH),
        ("registry", "the registry is pinned", {"registry_digest": OTHER}, code.REGISTRY_MISMATCH),
        (
            "parameters",
            "the parameters are the pinned ones, even where others are sound",
            {"parameters": other.canonical_bytes()},
            code.INFEASIBLE_PARAMETERS,
        ),
        ("config_suite", "the suite exists", {"suite": 2}, code.INFEASIBLE_PARAMETERS),
    ):
        yield s.case(name, claim, 0, s.forge(0, **data), **aborts(expected))
    for name, claim, now in (
        ("time_ahead", "a round is not from the future", NOW - 3601),
        ("time_behind", "a round is not from the past", NOW + 3601),
    ):
        yield s.case(name, claim, 0, s.shown[0], **aborts(code.WRONG_TIME, clock=now))
    for name, claim, who in (
        ("expired_coordinator", "the coordinator is valid at opened_at", federation.coordinator),
        ("expired_self", "the client itself is valid at opened_at", s.name),
    ):
        done = opened(replace(COMPLETE, validity={who: (NOW - 10, NOW - 1)}), s.name)
        scene = Scene(round=done, name=s.name, file=None)
        yield scene.case(name, claim, 0, scene.shown[0], **aborts(code.UNKNOWN_IDENTITY))
    yield s.case("config_type", "a client starts with a config", 0, s.shown[1], **refuses())
