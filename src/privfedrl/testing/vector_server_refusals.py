"""Inputs that a coordinator, and a reader of transcripts, must refuse.

Guarantee: each input differs from the honest one in the named way only, and carries right
signatures wherever the claim does not say otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from privfedrl.secagg import AbortCode
from privfedrl.secagg.sizes import MessageType
from privfedrl.testing.vector_cases import CLOSE, Case, Scene, refuses, unauthentic
from privfedrl.testing.vector_federation import parse

__all__ = ["coordinator_cases", "transcript_cases"]

OTHER: Final = b"\xaa" * 32


def coordinator_cases(complete: Scene) -> Iterator[Case]:
    """All cases of the coordinator."""
    yield from _refused(complete)
    yield from _ended(complete)


def _at(s: Scene, name: str, kind: MessageType) -> int:
    """Where in the coordinator's events that frame of ``name`` is."""
    return next(
        index
        for index, event in enumerate(s.round.events)
        if event and event[0] == name and int.from_bytes(event[1][6:8], "big") == kind
    )


def _case(s: Scene, name: str, claim: str, before: int, data: bytes | None, **more: Any) -> Case:
    more.setdefault("settings", {})
    return Case(
        id=f"coordinator_{name}",
        claim=claim,
        scene=s,
        party="coordinator",
        before=before,
        input=data,
        **more,
    )


def _refused(s: Scene) -> Iterator[Case]:
    kinds, federation = MessageType, s.federation
    frames = {kind: s.other(s.name, stage) for stage, kind in enumerate(_SENT)}
    unmask = frames[kinds.UNMASK]
    high_limb = b"\xf1\xff" + bytes(unmask[-64 - 36 * 8 + 2 : -64])
    for name, claim, kind, data in (
        ("type", "a coordinator takes clients' messages only", kinds.SHARES, s.shown[1]),
        (
            "early",
            "a masked vector is not taken before U2 is fixed",
            kinds.SHARES,
            frames[kinds.MASKED],
        ),
        (
            "wrong_round",
            "cfg is that of this round",
            kinds.SHARES,
            federation.forge(frames[kinds.SHARES], cfg=OTHER),
        ),
        (
            "outsider",
            "who did not advertise cannot share",
            kinds.SHARES,
            federation.forge(frames[kinds.SHARES], by="Clinic.10"),
        ),
        (
            "foreign_key",
            "no advert holds somebody else's key",
            kinds.ADVERTISE,
            federation.forge(
                frames[kinds.ADVERTISE], share_key=parse(s.other("Clinic.1", 0)).share_key
            ),
        ),
        (
            "low_order_key",
            "no advert holds a key of low order",
            kinds.ADVERTISE,
            federation.forge(frames[kinds.ADVERTISE], share_key=bytes(32)),
        ),
        (
            "box_count",
            "there is one box per neighbour",
            kinds.SHARES,
            federation.forge(frames[kinds.SHARES], sealed=()),
        ),
        (
            "roster",
            "shares are for this roster",
            kinds.SHARES,
            federation.forge(frames[kinds.SHARES], roster=OTHER),
        ),
        (
            "other_sharers",
            "a vector is masked for U2",
            kinds.MASKED,
            federation.forge(frames[kinds.MASKED], shared=OTHER),
        ),
        (
            "vector_length",
            "a vector has its length",
            kinds.MASKED,
            federation.forge(frames[kinds.MASKED], vector=bytes(16)),
        ),
        (
            "other_survivors",
            "a consent is to U3",
            kinds.CONSISTENCY,
            federation.forge(frames[kinds.CONSISTENCY], survivors=OTHER),
        ),
        (
            "share_count",
            "one share per member of U2 whose shares the sender holds",
            kinds.UNMASK,
            federation.forge(unmask, shares=bytes(36)),
        ),
        (
            "share_range",
            "every limb of a share is below 65521",
            kinds.UNMASK,
            federation.forge(unmask, shares=high_limb),
        ),
    ):
        yield _case(s, name, claim, _at(s, s.name, kind), data, **refuses())
    yield _case(
        s,
        "receipt",
        "a receipt is the sender's signature on U2",
        _at(s, s.name, kinds.MASKED),
        federation.forge(frames[kinds.MASKED], receipt=bytes(64)),
        **unauthentic(),
    )
    altered = frames[kinds.SHARES]
    yield _case(
        s,
        "signature",
        "the signature verifies",
        _at(s, s.name, kinds.SHARES),
        altered[:-1] + bytes([altered[-1] ^ 1]),
        **unauthentic(),
    )
    yield _case(
        s,
        "equivocation",
        "two different frames of one type shut their signer out; both are kept as evidence",
        _at(s, s.name, kinds.SHARES) + 1,
        federation.forge(altered, commitment=OTHER),
        **(refuses() | {"afterwards": "refused"}),
    )


_SENT: Final = (
    MessageType.ADVERTISE,
    MessageType.SHARES,
    MessageType.MASKED,
    MessageType.CONSISTENCY,
    MessageType.UNMASK,
)


def _ended(s: Scene) -> Iterator[Case]:
    kinds, code = MessageType, AbortCode
    for name, claim, kind, who, expected in (
        (
            "few_adverts",
            "fewer than threshold adverts end the round",
            kinds.ADVERTISE,
            "agent-1",
            code.THRESHOLD_NOT_MET,
        ),
        (
            "few_vectors",
            "fewer than threshold vectors end the round",
            kinds.MASKED,
            "bank",
            code.THRESHOLD_NOT_MET,
        ),
        (
            "few_unmasks",
            "fewer than threshold answers to the request end the round",
            kinds.UNMASK,
            "bank",
            code.THRESHOLD_NOT_MET,
        ),
    ):
        yield _case(s, name, claim, _at(s, who, kind), CLOSE, **_ends(expected))
    last = [event for event in s.round.events if event][-1]
    shares = s.federation.forge(last[1], shares=bytes(36 * 8))
    yield _case(
        s,
        "wrong_shares",
        "shares that fit no commitment end the round",
        _at(s, last[0], kinds.UNMASK),
        shares,
        **_ends(code.SHARE_INCONSISTENT),
    )


def _ends(code: AbortCode) -> dict[str, Any]:
    """The round ends without a result; the input itself raises nothing."""
    return {"error": "RoundAborted", "code": code.value, "afterwards": code.value}


def transcript_cases(complete: Scene, sparse: Scene) -> Iterator[Case]:
    """All cases of whoever verifies a transcript; ``before`` is not used."""
    s = complete
    federation, data = s.federation, s.round.transcript().to_bytes()
    body = parse(data)

    def changed(**changes: Any) -> bytes:
        return federation.forge(data, **changes)

    names = s.named(body.survivors)
    remote: list[tuple[str, str, bytes]] = [
        ("config", "the config is a frame", changed(config=b"junk")),
        ("adverts", "every member's advert is there", changed(adverts=body.adverts[1:])),
        ("advert_order", "adverts are sorted", changed(adverts=body.adverts[::-1])),
        ("digests", "there is one vector digest per survivor", changed(vectors=body.vectors[32:])),
        (
            "vector",
            "the signed vectors are the recorded ones",
            changed(vectors=OTHER + body.vectors[32:]),
        ),
        (
            "commitment",
            "the signed commitments are the recorded ones",
            changed(commitments=OTHER + body.commitments[32:]),
        ),
        ("quorum", "threshold survivors have signed", changed(consents=body.consents[1:])),
        ("consent_order", "consents are sorted", changed(consents=body.consents[::-1])),
        (
            "consent_repeated",
            "a consent counts once",
            changed(consents=(body.consents[0], *body.consents)),
        ),
        (
            "outsider",
            "signers are survivors",
            changed(
                consents=tuple(
                    sorted(
                        (*body.consents, federation.forge(body.consents[0], by="agent_2")),
                        key=lambda frame: str(parse(frame).sender),
                    )
                )
            ),
        ),
        ("trailing", "nothing follows the signature", data + b"\0"),
    ]
    for name, claim, frame in remote:
        yield _record(s, name, claim, frame, **refuses())
    for name, claim, frame in (
        ("signature", "the coordinator's signature verifies", data[:-1] + bytes([data[-1] ^ 1])),
        (
            "config_signature",
            "the config's signature verifies",
            changed(config=body.config[:-1] + bytes([body.config[-1] ^ 1])),
        ),
    ):
        yield _record(s, name, claim, frame, **unauthentic())
    for name, claim, changes, code in (
        (
            "padding",
            "unused bits of a bitmap are zero",
            {"survivors": body.survivors[:-1] + bytes([body.survivors[-1] | 0x80])},
            AbortCode.SURVIVOR_MISMATCH,
        ),
        (
            "too_small",
            "a sum is over stage_floor survivors",
            {"survivors": s.bitmap(names[:5]), "vectors": body.vectors[: 5 * 32]},
            AbortCode.COHORT_TOO_SMALL,
        ),
        (
            "roster",
            "a roster has at least floor members",
            {"members": s.bitmap(names[:5]), "adverts": body.adverts[:5]},
            AbortCode.COHORT_TOO_SMALL,
        ),
    ):
        expected = {"error": "RoundAborted", "code": code.value, "afterwards": None}
        yield _record(s, name, claim, changed(**changes), **expected)
    sum_frame = changed(sum_digest=OTHER)
    yield _record(
        s,
        "sum",
        "the published sum is the recorded one",
        sum_frame,
        settings={"vector": s.round.server.result().vector.astype("<u4").tobytes().hex()},
        **unauthentic(),
    )
    yield _record(
        s,
        "previous",
        "a transcript follows the one before it",
        data,
        settings={"previous": OTHER.hex()},
        **refuses(),
    )
    yield from _sparse_transcripts(sparse)


def _sparse_transcripts(s: Scene) -> Iterator[Case]:
    """On a sparse graph every member of U2 needs a quorum of its own neighbours."""
    data = s.round.transcript().to_bytes()
    quorum = s.federation.parameters.topology(len(s.round.server.result().record.members)).threshold
    yield _record(
        s,
        "sparse_quorum",
        "every member of U2 has threshold signatures among its own neighbours",
        s.federation.forge(data, consents=parse(data).consents[: quorum + 2]),
        **refuses(),
    )


def _record(s: Scene, name: str, claim: str, data: bytes, **more: Any) -> Case:
    more.setdefault("settings", {})
    return Case(
        id=f"transcript_{name}",
        claim=claim,
        scene=s,
        party="transcript",
        before=0,
        input=data,
        **more,
    )
