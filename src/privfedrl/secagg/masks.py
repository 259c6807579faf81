"""Key derivations and masks of the pairwise protocol, as pure functions.

Guarantee: every key is bound to the roster (and through it to config, plan, model and round) and to
the names of its two ends; the pairwise masks of a fixed set cancel in the sum of its members.

Notation: b_i = self-mask seed, s_i/S_i = mask key pair, c_i/C_i = share key pair, G = keystream,
y_i = x_i + G(self_i) + sum_{j > i} G(p_ij) - sum_{j < i} G(p_ij), order by name as in the roster.
Reference: Bonawitz et al., CCS 2017, figure 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from privfedrl.parties.binding import join, label
from privfedrl.primitives.key_agreement import KeyPair
from privfedrl.primitives.shamir import SHARE_BYTES
from privfedrl.primitives.stream import RingVector
from privfedrl.secagg.agreement import Cohort
from privfedrl.secagg.edges import Edges, OwnEdges

__all__ = [
    "apply_own_masks",
    "open_shares",
    "pair_key",
    "remove_masks_of_dropped",
    "seal_shares",
    "self_key",
]

_OWN: Final = OwnEdges()


def self_key(cohort: Cohort, name: str, seed: bytes) -> bytes:
    """The stream key of the self mask that belongs to ``seed``."""
    info = label("self") + join(name.encode("ascii"))
    return cohort.suite.derive(seed, salt=cohort.roster, info=info)


def pair_key(cohort: Cohort, pair: KeyPair, owner: str, peer: str, edges: Edges = _OWN) -> bytes:
    """p_ij: the stream key that ``owner``, who holds ``pair``, shares with ``peer``."""
    low, high = (owner, peer) if owner < peer else (peer, owner)  # ASCII: as the bytes are ordered
    info = label("pair") + _tag(low) + _tag(high)
    return edges.derive(cohort.suite, pair, cohort.mask_keys[peer], salt=cohort.roster, info=info)


def apply_own_masks(
    vector: RingVector,
    *,
    cohort: Cohort,
    name: str,
    pair: KeyPair,
    seed: bytes,
    peers: Sequence[str],
    edges: Edges,
) -> None:
    """Turn x_i into y_i in place; ``peers`` are the neighbours of ``name`` in U2."""
    keys = {peer: pair_key(cohort, pair, name, peer, edges) for peer in peers}
    edges.mask(
        vector,
        suite=cohort.suite,
        roster=cohort.roster,
        name=name,
        add={peer: key for peer, key in keys.items() if peer > name},
        subtract={peer: key for peer, key in keys.items() if peer < name},
        self_key=self_key(cohort, name, seed),
    )


def remove_masks_of_dropped(
    total: RingVector, *, cohort: Cohort, dropped: str, pair: KeyPair, survivors: Sequence[str]
) -> None:
    """Take out of ``total`` what each survivor masked against ``dropped``, in place."""
    keys = {name: pair_key(cohort, pair, dropped, name) for name in survivors}
    cohort.suite.apply_keystreams(
        total,
        add=[key for name, key in keys.items() if name > dropped],
        subtract=[key for name, key in keys.items() if name < dropped],
    )


def seal_shares(
    plaintext: bytes,
    *,
    cohort: Cohort,
    pair: KeyPair,
    sender: str,
    recipient: str,
    edges: Edges = _OWN,
) -> bytes:
    """Encrypt a pair of shares (72 bytes) from ``sender``, who holds ``pair``: 88 bytes."""
    info = _box_info(sender, recipient)
    key = edges.derive(
        cohort.suite, pair, cohort.share_keys[recipient], salt=cohort.roster, info=info
    )
    return cohort.suite.seal(key, plaintext, context=_context(cohort, sender, recipient))


def open_shares(
    sealed: bytes,
    *,
    cohort: Cohort,
    pair: KeyPair,
    sender: str,
    recipient: str,
    edges: Edges = _OWN,
) -> tuple[bytes, bytes]:
    """The share of the sender's self-mask seed and that of its mask key, 36 bytes each.

    Raises:
        AuthenticationFailed: not sealed by ``sender`` for ``recipient`` in this round.
    """
    info = _box_info(sender, recipient)
    key = edges.derive(cohort.suite, pair, cohort.share_keys[sender], salt=cohort.roster, info=info)
    plaintext = cohort.suite.open_sealed(key, sealed, context=_context(cohort, sender, recipient))
    return plaintext[:SHARE_BYTES], plaintext[SHARE_BYTES:]


def _box_info(sender: str, recipient: str) -> bytes:
    return label("share") + _tag(sender) + _tag(recipient)


def _context(cohort: Cohort, sender: str, recipient: str) -> bytes:
    point = join(cohort.points[recipient].to_bytes(4, "big"))
    return _context_of_roster(cohort.cfg, cohort.roster) + _tag(sender) + _tag(recipient) + point


@lru_cache(maxsize=1 << 16)
def _tag(name: str) -> bytes:
    """One part of a join: a join is the concatenation of its parts' own."""
    return join(name.encode("ascii"))


@lru_cache(maxsize=4)
def _context_of_roster(cfg: bytes, roster: bytes) -> bytes:
    return label("share") + join(cfg, roster)
