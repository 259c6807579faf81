"""Inputs that a client must refuse, one per check of the protocol.

Guarantee: each input differs from the honest one in the named way only, and carries right
signatures wherever the claim does not say otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from privfedrl.parties.members import Members
from privfedrl.primitives.key_agreement import LOW_ORDER_POINTS
from privfedrl.secagg import AbortCode, SecAggParameters
from privfedrl.secagg.agreement import Cohort
from privfedrl.secagg.masks import seal_shares
from privfedrl.secagg.merkle import merkle_root
from privfedrl.secagg.suite import DEFAULT_SUITE
from privfedrl.testing.vector_cases import Case, Scene, aborts, refuses
from privfedrl.testing.vector_federation import COMPLETE, COMPLETE_KEEP, NOW, parse, play
from privfedrl.testing.vector_frame_refusals import frame_cases

__all__ = ["client_cases"]

OTHER: Final = b"\xaa" * 32


def client_cases(complete: Scene, sparse: Scene) -> Iterator[Case]:
    """All cases of clients, from the two golden rounds."""
    yield from frame_cases(complete)
    yield from _rosters(complete)
    yield from _sparse_rosters(sparse)
    yield from _deliveries(complete)
    yield from _survivors(complete)
    yield from _requests(complete)
    yield from _ends(complete)


def _rosters(s: Scene) -> Iterator[Case]:
    code, adverts = AbortCode, s.parsed(1).adverts
    names, own = [parse(data).sender for data in adverts], s.other(s.name, 0)
    first, federation = adverts[0], s.federation
    keys = parse(adverts[1])

    def without(*left_out: str) -> dict[str, object]:
        kept = [name for name in names if name not in left_out]
        return {
            "members": s.bitmap(kept),
            "adverts": tuple(data for data in adverts if parse(data).sender in kept),
        }

    def instead(data: bytes) -> dict[str, object]:
        return {"adverts": (data, *adverts[1:])}

    bits = s.parsed(1).members
    low_order = sorted(LOW_ORDER_POINTS)[2].to_bytes(32, "little")
    for name, claim, changes, expected in (
        (
            "roster_without_client",
            "a client is in its roster",
            without(s.name),
            code.ROSTER_MISMATCH,
        ),
        (
            "roster_own_advert",
            "a client's own advert is the one it sent, byte for byte",
            {
                "adverts": tuple(
                    federation.forge(data, share_key=OTHER) if data == own else data
                    for data in adverts
                )
            },
            code.ROSTER_MISMATCH,
        ),
        (
            "roster_padding",
            "unused bits of a bitmap are zero",
            {"members": bits[:-1] + bytes([bits[-1] | 0x80])},
            code.ROSTER_MISMATCH,
        ),
        (
            "roster_long_bitmap",
            "a bitmap has its length",
            {"members": bits + b"\0"},
            code.ROSTER_MISMATCH,
        ),
        ("roster_unsorted", "adverts are sorted", {"adverts": adverts[::-1]}, code.ROSTER_MISMATCH),
        (
            "roster_repeated",
            "an advert is shown once",
            {"adverts": (first, *adverts)},
            code.ROSTER_MISMATCH,
        ),
        (
            "roster_missing_advert",
            "every neighbour's advert is shown",
            {"adverts": adverts[1:]},
            code.ROSTER_MISMATCH,
        ),
        (
            "roster_extra_advert",
            "no advert is shown of somebody outside the roster",
            {"members": without(names[0])["members"]},
            code.ROSTER_MISMATCH,
        ),
        (
            "roster_proof_on_complete",
            "no proof where every leaf is known",
            {"proof": OTHER},
            code.ROSTER_MISMATCH,
        ),
        (
            "roster_too_small",
            "a roster has at least floor members",
            without(*[name for name in names if name != s.name][:4]),
            code.COHORT_TOO_SMALL,
        ),
        (
            "roster_advert_signature",
            "every advert's signature verifies",
            instead(first[:-1] + bytes([first[-1] ^ 1])),
            code.BAD_SIGNATURE,
        ),
        (
            "roster_advert_round",
            "every advert is of this round",
            instead(federation.forge(first, cfg=OTHER)),
            code.BAD_SIGNATURE,
        ),
        (
            "roster_low_order_key",
            "no key has low order",
            instead(federation.forge(first, mask_key=low_order)),
            code.BAD_SIGNATURE,
        ),
        (
            "roster_non_canonical_key",
            "keys are below 2^255 - 19",
            instead(federation.forge(first, mask_key=b"\xff" * 31 + b"\x7f")),
            code.BAD_SIGNATURE,
        ),
        (
            "roster_equal_keys",
            "the two keys of an advert differ",
            instead(federation.forge(first, mask_key=parse(first).share_key)),
            code.BAD_SIGNATURE,
        ),
        (
            "roster_duplicate_key",
            "no two members have a key in common",
            instead(federation.forge(first, mask_key=keys.mask_key)),
            code.DUPLICATE_KEY,
        ),
    ):
        yield s.case(name, claim, 1, s.forge(1, **changes), **aborts(expected))
    expired = replace(COMPLETE, validity={"b": (NOW - 10, NOW - 1)})
    scene = Scene(round=play(expired, COMPLETE_KEEP), name=s.name, file=None)
    members = scene.bitmap([*scene.named(scene.parsed(1).members), "b"])
    yield scene.case(
        "roster_expired_member",
        "every member is valid at opened_at",
        1,
        scene.forge(1, members=members),
        **aborts(code.UNKNOWN_IDENTITY),
    )
    yield s.case(
        "unexpected_message",
        "no delivery before the roster",
        1,
        s.shown[2],
        **aborts(code.UNEXPECTED_MESSAGE),
    )
    yield s.case(
        "second_config",
        "one config per round and attempt",
        1,
        s.forge(0, round_seed=OTHER),
        **aborts(code.EQUIVOCATION),
    )
    yield s.case(
        "second_roster",
        "one roster per round",
        2,
        s.forge(1, **without(names[0])),
        **aborts(code.EQUIVOCATION),
    )


def _sparse_rosters(s: Scene) -> Iterator[Case]:
    message = s.parsed(1)
    proof, code = message.proof, AbortCode.ROSTER_MISMATCH
    for name, claim, changes in (
        ("short_proof", "a proof has its length", {"proof": proof[:-32]}),
        ("long_proof", "a proof has its length", {"proof": proof + OTHER}),
        (
            "wrong_proof",
            "another root is another graph, with other neighbours",
            {"proof": OTHER + proof[32:]},
        ),
        ("missing_neighbour", "every neighbour is shown", {"adverts": message.adverts[1:]}),
    ):
        yield s.case(f"sparse_{name}", claim, 1, s.forge(1, **changes), **aborts(code))
    few = s.named(s.parsed(2).members)[3:]
    yield s.case(
        "sparse_too_many_dropouts",
        "a roster loses at most max_dropouts members",
        2,
        s.forge(2, members=s.bitmap(few)),
        **aborts(AbortCode.COHORT_TOO_SMALL),
    )


def _deliveries(s: Scene) -> Iterator[Case]:
    code, message = AbortCode, s.parsed(2)
    names, sealed = s.named(message.members), message.sealed
    peer = next(name for name in names if name != s.name)
    for name, claim, changes, expected in (
        ("delivery_roster", "the roster is this one", {"roster": OTHER}, code.ROSTER_MISMATCH),
        (
            "delivery_stranger",
            "U2 is within U1",
            {"members": s.bitmap([*names, "Clinic.10"])},
            code.ROSTER_MISMATCH,
        ),
        (
            "delivery_without_client",
            "a client that shared is in U2",
            {"members": s.bitmap([name for name in names if name != s.name])},
            code.ROSTER_MISMATCH,
        ),
        (
            "delivery_commitment",
            "U2 holds the commitment that the client sent",
            {"root": OTHER},
            code.ROSTER_MISMATCH,
        ),
        ("delivery_proof", "a proof has its length", {"proof": b""}, code.ROSTER_MISMATCH),
        (
            "delivery_too_small",
            "U2 has at least stage_floor members",
            {"members": s.bitmap([s.name, *names[:3]])},
            code.COHORT_TOO_SMALL,
        ),
        (
            "delivery_count",
            "one box per neighbour in U2",
            {"sealed": sealed[1:]},
            code.MALFORMED,
        ),
        (
            "delivery_altered_box",
            "every box opens",
            {"sealed": (bytes([sealed[0][0] ^ 1]) + sealed[0][1:], *sealed[1:])},
            code.SHARE_REJECTED,
        ),
        (
            "delivery_swapped_boxes",
            "a box is for one sender",
            {"sealed": (sealed[1], sealed[0], *sealed[2:])},
            code.SHARE_REJECTED,
        ),
        (
            "delivery_share_range",
            "every limb of a share is below 65521",
            {"sealed": (_sealed(s, peer, b"\xf1\xff" + bytes(70)), *sealed[1:])},
            code.SHARE_REJECTED,
        ),
    ):
        yield s.case(name, claim, 2, s.forge(2, **changes), **aborts(expected))
    spent = [[s.federation.round, s.federation.attempt]]
    yield s.case(
        "replayed_round",
        "a round in which a masked vector left is never masked again",
        2,
        s.shown[2],
        settings={"masked": spent},
        error="LocalProtocolError",
        code=None,
        afterwards=code.LOCAL_FAULT.value,
    )


def _sealed(s: Scene, sender: str, plaintext: bytes) -> bytes:
    """What ``sender`` could have sealed for the scene's client."""
    roster = s.parsed(1)
    adverts = [parse(data) for data in roster.adverts]
    registry, parameters = s.federation.registry, s.federation.parameters
    members = Members.from_bytes(roster.members, len(registry.agents))
    cohort = Cohort.of(
        cfg=roster.cfg,
        suite=DEFAULT_SUITE,
        registry=registry,
        members=members,
        topology=parameters.topology(len(members)),
        root=merkle_root(roster.adverts),
        adverts=adverts,
    )
    return seal_shares(
        plaintext, cohort=cohort, pair=s.key(sender, 0), sender=sender, recipient=s.name
    )


def _survivors(s: Scene) -> Iterator[Case]:
    code, names = AbortCode, s.named(s.parsed(3).members)
    for name, claim, changes, expected in (
        ("survivors_roster", "the roster is this one", {"roster": OTHER}, code.ROSTER_MISMATCH),
        (
            "survivors_stranger",
            "U3 is within U2",
            {"members": s.bitmap([*names, "agent-0"])},
            code.SURVIVOR_MISMATCH,
        ),
        (
            "survivors_without_client",
            "a client whose vector is out signs nothing",
            {"members": s.bitmap([*[name for name in names if name != s.name], "agent_2"])},
            code.SURVIVOR_MISMATCH,
        ),
        (
            "survivors_vector",
            "U3 holds the vector that the client sent",
            {"root": OTHER},
            code.SURVIVOR_MISMATCH,
        ),
        (
            "survivors_too_small",
            "U3 has at least stage_floor members",
            {"members": s.bitmap([s.name, *names[:3]])},
            code.COHORT_TOO_SMALL,
        ),
    ):
        yield s.case(name, claim, 3, s.forge(3, **changes), **aborts(expected))
    guarded = replace(
        COMPLETE,
        title="complete graph, differencing guard",
        parameters=SecAggParameters(
            num_clients=10,
            max_colluding=1,
            vector_length=5,
            min_clients=5,
            min_honest=3,
            differencing="model",
        ),
    )
    scene = Scene(round=play(guarded, COMPLETE_KEEP), name=s.name, file=None)
    earlier = scene.bitmap(scene.named(scene.parsed(3).members)[1:])
    signed = [[guarded.round, 1, guarded.pinned("model").hex(), earlier.hex()]]
    yield scene.case(
        "differencing",
        "two survivor sets of one model do not differ by one client",
        3,
        scene.shown[3],
        **aborts(code.DIFFERENCING, signed=signed),
    )


def _requests(s: Scene) -> Iterator[Case]:
    code, consents, federation = AbortCode, s.parsed(4).consents, s.federation
    ((absent, receipt),) = s.parsed(4).receipts  # of the one that vanished after its vector
    first, rest = consents[0], consents[1:]
    outside = federation.forge(first, by="agent_2")
    for name, claim, changes, expected in (
        ("request_roster", "the roster is this one", {"roster": OTHER}, code.ROSTER_MISMATCH),
        (
            "request_too_few",
            "a share leaves against threshold signatures only",
            {"consents": rest},
            code.THRESHOLD_NOT_MET,
        ),
        (
            "request_signature",
            "every consent's signature verifies",
            {"consents": (first[:-1] + bytes([first[-1] ^ 1]), *rest)},
            code.BAD_SIGNATURE,
        ),
        (
            "request_type",
            "a consent is a consistency frame",
            {"consents": (s.other(s.name, 0), *rest)},
            code.BAD_SIGNATURE,
        ),
        (
            "request_other_round",
            "every consent is of this round",
            {"consents": (federation.forge(first, cfg=OTHER), *rest)},
            code.REPLAY,
        ),
        (
            "request_other_set",
            "every consent is to the set that this client signed",
            {"consents": (federation.forge(first, survivors=OTHER), *rest)},
            code.EQUIVOCATION,
        ),
        (
            "request_repeated",
            "signers are counted once",
            {"consents": (*consents, first)},
            code.SURVIVOR_MISMATCH,
        ),
        (
            "request_without_receipt",
            "every survivor is shown to have masked for the client's own U2",
            {"receipts": ()},
            code.SURVIVOR_MISMATCH,
        ),
        (
            "request_receipt_signature",
            "every receipt is a signature on the client's own U2",
            {"receipts": ((absent, receipt[:-1] + bytes([receipt[-1] ^ 1])),)},
            code.BAD_SIGNATURE,
        ),
        (
            "request_receipt_of_another",
            "a receipt is its own member's signature",
            {"receipts": ((absent, parse(s.other(s.name, 2)).receipt),)},
            code.BAD_SIGNATURE,
        ),
        (
            "request_receipt_of_stranger",
            "a receipt is that of a member of the roster",
            {"receipts": (("Clinic.10", receipt), (absent, receipt))},
            code.BAD_SIGNATURE,
        ),
        (
            "request_outsider",
            "signers are survivors",
            {"consents": (*consents, outside)},
            code.SURVIVOR_MISMATCH,
        ),
    ):
        yield s.case(name, claim, 4, s.forge(4, **changes), **aborts(expected))
    yield s.case(
        "second_survivors",
        "a client signs one survivor set",
        4,
        s.forge(3, root=OTHER),
        **aborts(code.EQUIVOCATION),
    )


def _ends(s: Scene) -> Iterator[Case]:
    yield s.case(
        "after_the_end",
        "a client that is done answers nothing new",
        5,
        s.forge(3, root=OTHER),
        **refuses(),
    )
    yield s.case(
        "after_the_deadline",
        "a client that has left the round takes nothing",
        1,
        s.shown[1],
        **aborts(AbortCode.DEADLINE, closed=True),
    )
