"""M2 and the first half of M3 at a client: give shares to holders, open what others gave.

Guarantee: what is opened was sealed by its sender for this recipient in this round and consists of
residues; otherwise the round ends with the sender's name.

Notation: b_i = self-mask seed, s_i = mask key; a pair of shares = one of b_i and one of s_i.
"""

from __future__ import annotations

from collections.abc import Mapping

from privfedrl.errors import ProtocolError, RoundAborted
from privfedrl.primitives import shamir
from privfedrl.primitives.key_agreement import KeyPair
from privfedrl.primitives.random import Entropy
from privfedrl.primitives.stream import RingVector
from privfedrl.secagg.agreement import Cohort, abort
from privfedrl.secagg.edges import Edges
from privfedrl.secagg.masks import open_shares, seal_shares
from privfedrl.secagg.phases import AbortCode

__all__ = ["RoundKeys", "SharePair", "open_all", "share_out"]

SharePair = tuple[bytes, bytes]
"""A share of b_i and one of s_i, 36 bytes each."""

_PAIR_BYTES = 2 * shamir.SHARE_BYTES


class RoundKeys:
    """What the masked vector is made of. Dropped as a whole once that vector has been built."""

    __slots__ = ("mask_pair", "seed", "share_pair", "vector")

    def __init__(
        self, *, share_pair: KeyPair, mask_pair: KeyPair, seed: bytes, vector: RingVector
    ) -> None:
        self.share_pair = share_pair
        self.mask_pair = mask_pair
        self.seed = seed
        self.vector = vector

    def __repr__(self) -> str:
        return "RoundKeys(<secret>)"


def share_out(
    secrets: tuple[bytes, bytes],
    *,
    cohort: Cohort,
    name: str,
    pair: KeyPair,
    entropy: Entropy,
    edges: Edges,
) -> tuple[SharePair | None, tuple[bytes, ...]]:
    """Share b_i and s_i of ``name`` among its holders.

    Args:
        secrets: b_i and the secret bytes of s_i. pair: of the owner, for sealing.
    Returns:
        the pair that the owner keeps, if it is a holder of its own; and one box per neighbour, in
        order.
    """
    holders = cohort.holders(name)
    shares = shamir.split(
        secrets,
        threshold=cohort.threshold,
        points=[cohort.points[holder] for holder in holders],
        entropy=entropy,
    )
    encoded = shamir.encode_share(shares)
    texts = {
        holder: encoded[at : at + _PAIR_BYTES]
        for holder, at in zip(holders, range(0, len(encoded), _PAIR_BYTES), strict=True)
    }
    own = texts.pop(name, None)
    sealed = tuple(
        seal_shares(text, cohort=cohort, pair=pair, sender=name, recipient=holder, edges=edges)
        for holder, text in texts.items()
    )
    kept = None if own is None else (own[: shamir.SHARE_BYTES], own[shamir.SHARE_BYTES :])
    return kept, sealed


def open_all(
    boxes: Mapping[str, bytes], *, cohort: Cohort, name: str, pair: KeyPair, edges: Edges
) -> dict[str, SharePair]:
    """What the senders of ``boxes`` have sealed for ``name``, who holds ``pair``.

    Raises:
        RoundAborted: ShareRejected, naming the first sender whose shares do not open.
    """
    opened = {
        sender: _open(sealed, cohort=cohort, pair=pair, sender=sender, name=name, edges=edges)
        for sender, sealed in boxes.items()
    }
    every = b"".join([half for shares in opened.values() for half in shares])
    try:
        shamir.decode_shares(every, count=2 * len(opened))
    except ProtocolError:
        for sender, shares in opened.items():
            _check(sender, shares)
        raise
    return opened


def _open(
    sealed: bytes, *, cohort: Cohort, pair: KeyPair, sender: str, name: str, edges: Edges
) -> SharePair:
    try:
        return open_shares(
            sealed, cohort=cohort, pair=pair, sender=sender, recipient=name, edges=edges
        )
    except ProtocolError as error:
        raise _rejected(sender) from error


def _check(sender: str, shares: SharePair) -> None:
    try:
        shamir.decode_shares(b"".join(shares), count=2)
    except ProtocolError as error:
        raise _rejected(sender) from error


def _rejected(sender: str) -> RoundAborted:
    return abort(AbortCode.SHARE_REJECTED, f"the shares from {sender} do not open")
