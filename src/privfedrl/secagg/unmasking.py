"""The coordinator's last step: recover what M5 allows and strip the masks off the sum.

Guarantee: nothing is stripped with a value that does not match the owner's commitment (self masks)
or its advertised public key (mask keys of dropped clients), so a wrong share can stop the round but
never change the sum.

Notation: U2/U3 and holders as in ``agreement``; r = holders of one owner that answered M5,
r >= t = threshold.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privfedrl.primitives import shamir
from privfedrl.primitives.key_agreement import KeyPair
from privfedrl.primitives.stream import RingVector
from privfedrl.secagg.agreement import Cohort, abort, commitment
from privfedrl.secagg.masks import remove_masks_of_dropped, self_key
from privfedrl.secagg.phases import AbortCode

Share = NDArray[np.uint16]

__all__ = ["MAX_TRIES", "Recovered", "recover", "strip_masks"]

MAX_TRIES: Final = 512
"""Subsets of shares that are tried before the round is given up.

One liar among r answers is always outvoted: leaving out each run of r - t consecutive answers in
turn takes at most r tries, and r is at most 256, or the degree of a sparse graph.
"""


@dataclass(slots=True)
class Recovered:
    """Checked self-mask seeds of U3 and mask keys of U2 without U3, and who sent wrong shares."""

    seeds: dict[str, bytes] = field(default_factory=dict, repr=False)
    pairs: dict[str, KeyPair] = field(default_factory=dict, repr=False)
    suspects: tuple[str, ...] = ()


def recover(
    answers: Mapping[str, Mapping[str, Share]],
    *,
    cohort: Cohort,
    commitments: Mapping[str, bytes],
    survivors: Collection[str],
) -> Recovered:
    """Reconstruct and check what the shares in ``answers`` stand for.

    The first t shares of everybody are tried at once; only where they fail, others are.

    Args:
        answers: per owner of U2 its shares by holder, uint16 [18] each.
        commitments: to the self masks, per member of U2.
        survivors: U3, within U2.
    Raises:
        RoundAborted: ThresholdNotMet, naming owners of whom too few shares came;
            ShareInconsistent, naming the owners that no tried subset gave.
    """
    recovered, suspects, threshold = Recovered(), set(), cohort.threshold
    owners = list(commitments)
    first = {owner: sorted(answers.get(owner, ()))[:threshold] for owner in owners}
    short = [owner for owner, holders in first.items() if len(holders) < threshold]
    if short:
        raise abort(
            AbortCode.THRESHOLD_NOT_MET,
            f"fewer than {threshold} shares came for {', '.join(short[:8])}",
        )
    points = np.array([[cohort.points[name] for name in first[owner]] for owner in owners])
    rows = np.array([[answers[owner][name] for name in first[owner]] for owner in owners])
    pending = [
        owner
        for owner, secret in zip(owners, shamir.combine_each(rows, points), strict=True)
        if secret is None or not _accept(recovered, secret, owner, cohort, commitments, survivors)
    ]
    for holders, group in _by_holders(answers, pending).items():
        # [holder, owner, limb]
        matrix = np.stack([np.stack([answers[owner][name] for owner in group]) for name in holders])
        at = [cohort.points[name] for name in holders]
        suspects |= _recover_alike(
            recovered, matrix, holders, at, group, cohort, commitments, survivors
        )
    recovered.suspects = tuple(sorted(suspects))
    return recovered


def _by_holders(
    answers: Mapping[str, Mapping[str, Share]], owners: Iterable[str]
) -> dict[tuple[str, ...], list[str]]:
    """Owners whose shares came from the same holders: one group on a complete graph."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for owner in owners:
        groups.setdefault(tuple(sorted(answers[owner])), []).append(owner)
    return groups


def _recover_alike(
    recovered: Recovered,
    matrix: NDArray[np.uint16],
    holders: Sequence[str],
    points: Sequence[int],
    owners: Sequence[str],
    cohort: Cohort,
    commitments: Mapping[str, bytes],
    survivors: Collection[str],
) -> set[str]:
    """Recover ``owners``, who all have shares at the same ``points``. Returns who lied."""
    pending, suspects = list(range(len(owners))), set()
    for tries, subset in enumerate(_subsets(len(holders), cohort.threshold)):
        at = [points[index] for index in subset]
        rows = matrix[np.ix_(subset, pending)]
        found = [
            owner
            for owner, secret in zip(pending, shamir.combine(rows, at), strict=True)
            if secret is not None
            and _accept(recovered, secret, owners[owner], cohort, commitments, survivors)
        ]
        if tries and found:
            suspects |= _liars(matrix, holders, points, subset, found)
        pending = [owner for owner in pending if owner not in found]
        if not pending:
            return suspects
    names = ", ".join(owners[owner] for owner in pending[:8])
    raise abort(AbortCode.SHARE_INCONSISTENT, f"the shares of {names} do not fit together")


def strip_masks(
    total: RingVector, recovered: Recovered, *, cohort: Cohort, survivors: Sequence[str]
) -> None:
    """Turn the sum of masked vectors over U3 into the sum of vectors, in place."""
    keys = [self_key(cohort, name, recovered.seeds[name]) for name in survivors]
    cohort.suite.apply_keystreams(total, subtract=keys)
    alive = set(survivors)
    for name, pair in recovered.pairs.items():
        near = [peer for peer in cohort.neighbours(name) if peer in alive]
        remove_masks_of_dropped(total, cohort=cohort, dropped=name, pair=pair, survivors=near)


def _accept(
    recovered: Recovered,
    secret: bytes,
    name: str,
    cohort: Cohort,
    commitments: Mapping[str, bytes],
    survivors: Collection[str],
) -> bool:
    """Keep ``secret`` if it is what its owner committed to or advertised."""
    if name in survivors:
        if commitment(cohort.roster, name, secret) != commitments[name]:
            return False
        recovered.seeds[name] = secret
        return True
    pair = cohort.suite.restore(secret)
    if pair.public != cohort.mask_keys[name]:
        return False
    recovered.pairs[name] = pair
    return True


def _liars(
    matrix: NDArray[np.uint16],
    responders: Sequence[str],
    points: Sequence[int],
    subset: Sequence[int],
    owners: Sequence[int],
) -> set[str]:
    """Responders whose share of an owner is off the polynomial that the right secret fixed."""
    rows = matrix[np.ix_(subset, owners)]
    at = [points[index] for index in subset]
    return {
        name
        for index, name in enumerate(responders)
        if index not in subset
        and (shamir.extrapolate(rows, at, points[index]) != matrix[index, owners]).any()
    }


def _subsets(count: int, size: int) -> Iterator[tuple[int, ...]]:
    """Up to MAX_TRIES subsets of ``size`` out of ``count`` positions.

    First those that leave out a run of consecutive positions, which together outvote any one liar;
    then all others in lexicographic order.
    """
    spare = count - size
    runs = range(size, -1, -spare) if spare else (0,)
    outvoting = [
        tuple(index for index in range(count) if not start <= index < start + spare)
        for start in (*runs, *((0,) if spare and runs[-1] else ()))
    ]
    yield from outvoting
    tried = set(outvoting)
    rest = (subset for subset in combinations(range(count), size) if subset not in tried)
    yield from islice(rest, MAX_TRIES - len(outvoting))
