"""What a coordinator tells each client after a phase, as pure functions of what it has collected.

Guarantee: two clients are told the same sets and roots; only the proofs, and what comes from a
client's own neighbours, differ. Nothing here is secret.

Notation: U1, U2, U3, U4, holders and neighbours as in ``agreement``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from privfedrl.parties.members import Members
from privfedrl.secagg.agreement import Cohort, SignedSet
from privfedrl.secagg.merkle import MerkleTree
from privfedrl.secagg.messages import Delivery, Roster, Shares, Survivors, UnmaskRequest

__all__ = ["SetTree", "deliveries", "rosters", "survivor_lists", "unmask_requests"]


class SetTree:
    """A set with one digest per member under a Merkle root.

    Args:
        members: the set. names: its members in order. leaves: one per name.
    """

    __slots__ = ("_ranks", "members", "signed", "tree")

    def __init__(self, members: Members, names: Sequence[str], leaves: Sequence[bytes]) -> None:
        self.members = members.to_bytes()
        self.tree = MerkleTree(leaves)
        self.signed = SignedSet(members=members, root=self.tree.root)
        self._ranks = {name: rank for rank, name in enumerate(names)}

    def path(self, name: str) -> bytes:
        """The proof that leads from the leaf of ``name`` to the root."""
        return self.tree.proof([self._ranks[name]])


def rosters(
    cohort: Cohort, *, sender: str, frames: Mapping[str, bytes], tree: MerkleTree
) -> Callable[[str], Roster]:
    """Answer to M1: U1, with the recipient's and its neighbours' adverts out of ``frames``."""
    members = cohort.members.to_bytes()

    def for_one(recipient: str) -> Roster:
        shown = sorted((*cohort.neighbours(recipient), recipient))
        return Roster(
            cfg=cohort.cfg,
            sender=sender,
            recipient=recipient,
            members=members,
            adverts=tuple(frames[name] for name in shown),
            proof=tree.proof([cohort.rank(name) for name in shown]),
        )

    return for_one


def deliveries(
    cohort: Cohort, *, sender: str, shares: Mapping[str, Shares], shared: SetTree
) -> Callable[[str], Delivery]:
    """Answer to M2: U2, with what the recipient's neighbours in it have sealed for it."""
    places = {
        name: {peer: at for at, peer in enumerate(cohort.neighbours(name))} for name in shares
    }

    def for_one(recipient: str) -> Delivery:
        return Delivery(
            cfg=cohort.cfg,
            sender=sender,
            recipient=recipient,
            roster=cohort.roster,
            members=shared.members,
            root=shared.tree.root,
            proof=shared.path(recipient),
            sealed=tuple(
                shares[peer].sealed[places[peer][recipient]]
                for peer in places[recipient]
                if peer in shares
            ),
        )

    return for_one


def survivor_lists(
    cohort: Cohort, *, sender: str, survivors: SetTree
) -> Callable[[str], Survivors]:
    """Answer to M3: U3, with the path of the recipient's own vector."""

    def for_one(recipient: str) -> Survivors:
        return Survivors(
            cfg=cohort.cfg,
            sender=sender,
            recipient=recipient,
            roster=cohort.roster,
            members=survivors.members,
            root=survivors.tree.root,
            proof=survivors.path(recipient),
        )

    return for_one


def unmask_requests(
    cohort: Cohort,
    *,
    sender: str,
    survivors: Collection[str],
    consents: Mapping[str, bytes],
    receipts: Mapping[str, bytes],
) -> Callable[[str], UnmaskRequest]:
    """Answer to M4: of the recipient's holders in U3 the consents, or else the receipts."""

    def for_one(recipient: str) -> UnmaskRequest:
        asked = [name for name in cohort.holders(recipient) if name in survivors]
        return UnmaskRequest(
            cfg=cohort.cfg,
            sender=sender,
            recipient=recipient,
            roster=cohort.roster,
            consents=tuple(consents[name] for name in asked if name in consents),
            receipts=tuple((name, receipts[name]) for name in asked if name not in consents),
        )

    return for_one
