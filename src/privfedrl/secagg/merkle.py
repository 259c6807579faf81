"""Merkle trees of RFC 9162 with SHA-256, and proofs that cover many leaves at once.

Guarantee: for a given root and number of leaves, nobody finds a proof under which a leaf that is
not in the tree, or not at the stated index, is accepted, short of a collision of SHA-256. The
number of leaves must be known beside the root: a path can be the same in trees of two sizes.

Notation: n = number of leaves. Leaf digest = SHA-256(0x00 || leaf), node = SHA-256(0x01 || left ||
right); a tree is split at the largest power of two below n. Node (h, i) covers the leaves from
i 2^h up to, not including, min((i + 1) 2^h, n). A proof is the digests of the largest nodes without
a known leaf, from left to right, which is also their order in a pre-order walk.
Reference: RFC 9162, section 2.1.1 (trees); RFC 6962 defines the same trees.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Final

from privfedrl.errors import ConfigurationError, RemoteProtocolError

__all__ = [
    "DIGEST_BYTES",
    "MerkleTree",
    "merkle_proof",
    "merkle_root",
    "merkle_tree",
    "root_from_proof",
]

DIGEST_BYTES: Final = 32
_LEAF: Final = b"\x00"
_NODE: Final = b"\x01"


class MerkleTree:
    """All digests of a tree, level by level: proofs cost one look-up per digest.

    Args:
        leaves: n byte strings of any length; n may be 0, such a tree has a root but no proofs.
    """

    __slots__ = ("_levels", "count", "root")

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.count = len(leaves)
        level = [sha256(_LEAF + leaf).digest() for leaf in leaves]
        self._levels = [level]
        while len(level) > 1:
            pairs = zip(level[::2], level[1::2], strict=False)
            above = [sha256(_NODE + left + right).digest() for left, right in pairs]
            level = above + level[len(level) & ~1 :]  # a last node without a partner moves up
            self._levels.append(level)
        self.root: bytes = level[0] if level else sha256().digest()

    def proof(self, indices: Iterable[int]) -> bytes:
        """What a holder of the leaves at ``indices`` lacks to compute the root.

        Args:
            indices: one or more positions below n, in any order; repeats count once.
        Returns:
            the 32-byte digests one after the other; empty if all leaves are held.
        Raises:
            ConfigurationError: no index, or one that is out of range.
        """
        known = sorted(set(indices))
        if not known or known[0] < 0 or known[-1] >= self.count:
            raise ConfigurationError(
                f"indices must be one or more, from 0 to {self.count - 1}, got {len(known)} of them"
            )
        levels = self._levels
        return b"".join([levels[h][i] for h, i in _unknown_nodes(known, self.count)])

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f"MerkleTree({self.count} leaves, root={self.root.hex()[:16]})"


def merkle_tree(leaves: Sequence[bytes]) -> MerkleTree:
    """The tree of ``leaves``, kept for many proofs."""
    return MerkleTree(leaves)


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The 32-byte root of ``leaves``; of none: SHA-256 of nothing (RFC 9162, section 2.1.1)."""
    return MerkleTree(leaves).root


def merkle_proof(leaves: Sequence[bytes], indices: Iterable[int]) -> bytes:
    """:meth:`MerkleTree.proof` of a tree that is used once."""
    return MerkleTree(leaves).proof(indices)


def root_from_proof(known: Mapping[int, bytes], count: int, proof: bytes) -> bytes:
    """The root that the leaves in ``known`` and ``proof`` stand for; compare it with a trusted one.

    Args:
        known: one or more leaves by index.
        count: n, from a trusted place; a wrong n is not always noticed (see the module's header).
        proof: as :meth:`MerkleTree.proof` gives it.
    Raises:
        RemoteProtocolError: nothing is known, an index is out of range, n < 1, or ``proof`` has
            another length than these need.
    """
    indices = sorted(known)
    if not indices or indices[0] < 0 or indices[-1] >= count:
        raise RemoteProtocolError(f"leaves must be known, at indices from 0 to {count - 1}")
    pending: list[bytes] = []  # digests of full nodes, one per bit of ``position``
    position = offset = 0
    for index in indices:
        while position < index:
            size = _largest_node(position, index)
            _append(pending, proof[offset : offset + DIGEST_BYTES], position, size)
            position, offset = position + size, offset + DIGEST_BYTES
        _append(pending, sha256(_LEAF + known[index]).digest(), position, 1)
        position += 1
    while position < count:
        size = position & -position
        if position + size >= count:  # the last node may cover less than its size
            pending.append(proof[offset : offset + DIGEST_BYTES])
        else:
            _append(pending, proof[offset : offset + DIGEST_BYTES], position, size)
        position, offset = position + size, offset + DIGEST_BYTES
    if offset != len(proof):
        raise RemoteProtocolError(f"proof must be {offset} bytes, got {len(proof)}")
    node = pending.pop()
    while pending:
        node = sha256(_NODE + pending.pop() + node).digest()
    return node


def _append(pending: list[bytes], node: bytes, position: int, size: int) -> None:
    """Add a full node of ``size`` leaves at ``position``, as one adds to a binary counter."""
    while position & size:
        node = sha256(_NODE + pending.pop() + node).digest()
        size <<= 1
    pending.append(node)


def _unknown_nodes(known: Sequence[int], count: int) -> Iterator[tuple[int, int]]:
    """(h, i) of the largest nodes that hold none of the sorted indices, from left to right."""
    position = 0
    for index in known:
        while position < index:
            size = _largest_node(position, index)
            level = size.bit_length() - 1
            yield level, position >> level
            position += size
        position += 1
    while position < count:
        size = position & -position
        level = size.bit_length() - 1
        yield level, position >> level
        position += size


def _largest_node(start: int, stop: int) -> int:
    """The size of the largest full node from ``start`` that ends at or before ``stop``."""
    fits = 1 << (stop - start).bit_length() - 1
    aligned = start & -start
    return min(fits, aligned) if aligned else fits
