"""The differencing guard: no sums of several rounds may together single out a small group.

Guarantee: if :func:`check_participation` returns, no non-zero linear combination of the sums in
scope depends on fewer than ``floor`` clients, over the rationals and without rounding. It may
refuse a set that would have been safe (see below); it never lets an unsafe one pass.

It is a statement about sums of inputs that stay (nearly) the same from round to round, as after
aborted attempts on one model. Inputs that change from round to round are covered by noise alone:
differential privacy is what bounds the loss of a person who takes part again and again. Clients
that share their inputs with the coordinator can be subtracted from any group, so ``floor`` should
count them on top of the honest ones.

Notation: row = a survivor set as a 0/1 vector over the agents, A = the matrix of all rows, class =
clients with the same column of A (no combination can tell them apart), weight of a vector v =
number of clients with v_i != 0, V = the row space of A. Sought: a v != 0 in V of weight < floor.

Method. Eliminate modulo a 31-bit prime p. With r the rank over Q and r_p the rank modulo p: v in V
with support T exists iff rank(A) > rank(A without the columns T); ranks can only fall modulo p; so
where r_p = r every group that exists over Q is found. r_p = r is certified: a rank of at least
r_p + 1 would mean a non-zero minor of that size which every prime tried divides, and by Hadamard's
bound such a minor is smaller than the product of enough primes. A group that exists modulo p alone
is a needless refusal; it takes a minor divisible by p, impossible up to 22 rows or classes.
Finding the lightest vector of a space is NP-hard in general: groups of one and two are found by
sorting, larger ones by a search whose work is bounded; when it ends early the answer is a refusal.
Reference: Lam et al. 2021, gradient disaggregation (arXiv 2106.06089), is the attack.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError, RoundAborted

__all__ = ["Participation", "Scope", "check_participation", "smallest_isolated_group"]

Scope = Literal["model", "task"]
"""Which sums are combined: those of one model's attempts, or all of a task's rounds."""

_Bits = NDArray[np.uint8]
_Words = NDArray[np.int64]
# elements of matrices touched by one search: a few seconds; beyond it the answer is a refusal
_MAX_WORK: Final = 2 * 10**8
_CHUNK: Final = 512  # rows eliminated at a time, so that memory follows the rank, not the history
_SLACK: Final = 8  # columns beyond the rank that make full rank of a block likely
_NAMED: Final = 8  # rounds that a message lists before it says "and others"


class _SearchTooLarge(Exception):
    """The bounded search for a light vector has used up its work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Participation:
    """One survivor set that a client has agreed to: public data.

    Attributes:
        model_digest: 32 bytes, the model that the inputs were computed from.
        members: bitmap over the registered agents, byte i // 8, bit i % 8, least significant first.
            Rows mean the same under one registry only.
    Raises:
        ConfigurationError: a field is not of this form.
    """

    round: int
    attempt: int
    model_digest: bytes
    members: bytes

    def __post_init__(self) -> None:
        for name, value, end in (("round", self.round, 2**63), ("attempt", self.attempt, 2**32)):
            if type(value) is not int or not 0 <= value < end:
                raise ConfigurationError(f"{name} must be an integer in 0..{end - 1}")
        if not isinstance(self.model_digest, bytes) or len(self.model_digest) != 32:
            raise ConfigurationError("model_digest must be 32 bytes")
        if not isinstance(self.members, bytes) or not self.members:
            raise ConfigurationError("members must be a bitmap of at least one byte")


def check_participation(
    earlier: Sequence[Participation], new: Participation, *, floor: int, scope: Scope
) -> None:
    """Refuse ``new`` if its sum and earlier ones would isolate fewer than ``floor`` clients.

    Args:
        earlier: what was agreed to before under this registry, in any order; repeats do no harm.
        floor: smallest group that may be told apart; 1 or less allows everything.
        scope: "model" combines rows of ``new``'s model, "task" all that are given. The second
            treats inputs as constant all the time and soon refuses where many agents drop out.
    Raises:
        RoundAborted: code "Differencing"; the message names rounds and size, never members.
        ConfigurationError: unknown scope.
    """
    if scope not in ("model", "task"):
        raise ConfigurationError(f"scope must be 'model' or 'task', got {scope!r}")
    if floor <= 1:
        return
    rows = [row for row in earlier if scope == "task" or row.model_digest == new.model_digest]
    if any(len(row.members) != len(new.members) for row in rows):
        raise _refusal(new, rows, "cover another number of agents: the registry has changed")
    _check_pairs(rows, new, floor)
    try:
        size = _lightest(_matrix([new, *rows]), limit=floor - 1)
    except _SearchTooLarge:
        raise _refusal(new, rows, f"are too many to exclude a group below {floor}") from None
    if size is not None:
        raise _refusal(new, rows, f"isolate {size} clients, floor is {floor}")


def smallest_isolated_group(rows: Sequence[Participation]) -> int | None:
    """Size of the smallest group that some combination of the rows' sums depends on.

    Returns:
        The size, or None without any member. Exact up to 22 distinct rows or classes; otherwise
        never too large.
    Raises:
        ConfigurationError: bitmaps of different lengths, or the search is too large to finish.
    """
    if len({len(row.members) for row in rows}) > 1:
        raise ConfigurationError("members must have the same length in every row")
    if not rows:
        return None
    matrix = _matrix(rows)
    try:
        return _lightest(matrix, limit=matrix.shape[1])
    except _SearchTooLarge:
        raise ConfigurationError(
            f"rows must leave a search of bounded work, got {matrix.shape[0]} distinct sets"
        ) from None


def _refusal(new: Participation, rows: Sequence[Participation], finding: str) -> RoundAborted:
    names = sorted({row.round for row in rows})
    listed = ", ".join(str(name) for name in names[:_NAMED]) + (
        " and others" if len(names) > _NAMED else ""
    )
    sums = f"the sums of rounds {listed} and of round" if names else "the sum of round"
    return RoundAborted(
        "Differencing", f"{sums} {new.round} attempt {new.attempt} together {finding}"
    )


def _check_pairs(rows: Sequence[Participation], new: Participation, floor: int) -> None:
    """The plain case, for its precise message: the set itself, and its difference to one other."""
    own = int.from_bytes(new.members, "little")
    if 0 < own.bit_count() < floor:
        raise _refusal(new, [], f"isolate {own.bit_count()} clients, floor is {floor}")
    for row in rows:
        size = (own ^ int.from_bytes(row.members, "little")).bit_count()
        if 0 < size < floor:
            raise _refusal(new, [row], f"isolate {size} clients, floor is {floor}")


def _matrix(rows: Sequence[Participation]) -> _Bits:
    """The distinct rows as 0/1 [R, agents]; agents that appear in none are left out."""
    distinct = sorted({row.members for row in rows})
    packed = np.frombuffer(b"".join(distinct), dtype=np.uint8).reshape(len(distinct), -1)
    bits = np.unpackbits(packed, axis=1, bitorder="little")
    return np.ascontiguousarray(bits[:, bits.any(axis=0)])


def _lightest(matrix: _Bits, *, limit: int) -> int | None:
    """Weight of the lightest non-zero vector of the row space, or None if it is above ``limit``."""
    if matrix.size == 0:
        return None
    columns, weights = _classes(matrix)
    if _least_weight(columns, weights, limit + 1, next(_primes())) > limit:
        return None
    return _search(_certified_space(columns, weights), limit)


def _classes(matrix: _Bits) -> tuple[_Words, _Words]:
    """Distinct columns [R, m] in no particular order, and how many clients share each [m]."""
    packed = np.ascontiguousarray(np.packbits(matrix, axis=0).T)
    keys = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    # sorted neighbours are alike; mixed, blocks of columns have high rank. Only speed depends on it
    mixed = np.random.default_rng(0).permutation(len(first))
    return matrix[:, first[mixed]].astype(np.int64), counts[mixed].astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Space:
    """A row space modulo ``prime``, reduced: column ``pivots[i]`` is 1 in row i and 0 elsewhere.

    rows: [d, m]; weights: [m], clients per column. No row is zero.
    """

    rows: _Words
    pivots: _Words
    weights: _Words
    prime: int

    @property
    def dimension(self) -> int:
        return len(self.rows)

    def vanish(self, column: int) -> _Space:
        """The subspace that is zero at ``column``, without that column."""
        touched = np.flatnonzero(self.rows[:, column])
        rows = self.rows.copy()
        if touched.size:
            source = int(touched[0])
            _clear(rows, source, column, self.prime)
            rows = np.delete(rows, source, axis=0)
        return self._less(rows, np.delete(self.pivots, touched[:1]), column)

    def release(self, column: int) -> _Space:
        """The space with ``column`` left out; no vector may live on that column alone."""
        owner = np.flatnonzero(self.pivots == column)
        if not owner.size:
            return self._less(self.rows, self.pivots, column)
        row = int(owner[0])
        others = np.flatnonzero(self.rows[row])
        others = others[others != column]
        rows, pivots = self.rows.copy(), self.pivots.copy()
        _clear(rows, row, int(others[0]), self.prime)
        pivots[row] = others[0]
        return self._less(rows, pivots, column)

    def vanish_above(self, budget: int) -> _Space:
        """The subspace that is zero wherever one column alone outweighs ``budget``."""
        space = self
        while space.dimension and (heavy := np.flatnonzero(space.weights > budget)).size:
            space = space.vanish(int(heavy[-1]))
        return space

    def _less(self, rows: _Words, pivots: _Words, column: int) -> _Space:
        return _Space(
            rows=np.delete(rows, column, axis=1),
            pivots=pivots - (pivots > column),
            weights=np.delete(self.weights, column),
            prime=self.prime,
        )


def _clear(rows: _Words, source: int, column: int, prime: int) -> None:
    """Make ``column`` 1 in row ``source`` and 0 in all others, in place."""
    rows[source] = rows[source] * pow(int(rows[source, column]), -1, prime) % prime
    touched = np.flatnonzero(rows[:, column])
    touched = touched[touched != source]
    # products are below 2^62
    rows[touched] = (rows[touched] - rows[touched, column, None] * rows[source]) % prime


def _reduce(rows: _Words, prime: int) -> tuple[_Words, _Words]:
    """Reduced rows and their pivots, for any rows modulo ``prime``."""
    basis, pivots = rows[:0], np.zeros(0, dtype=np.int64)
    for start in range(0, len(rows), _CHUNK):
        stack = np.concatenate([basis, rows[start : start + _CHUNK]])
        found = []
        for row in range(len(stack)):
            nonzero = np.flatnonzero(stack[row])
            if nonzero.size:
                _clear(stack, row, int(nonzero[0]), prime)
                found.append((row, int(nonzero[0])))
        basis = stack[[row for row, _ in found]]
        pivots = np.array([column for _, column in found], dtype=np.int64)
        if len(basis) == rows.shape[1]:
            break  # the whole space: no row can add to it
    return basis, pivots


def _certified_space(columns: _Words, weights: _Words) -> _Space:
    """The row space modulo a prime for which its rank is that over the rationals."""
    best, product = None, 1
    for prime in _primes():
        rows, pivots = _reduce(columns, prime)
        if best is None or len(rows) > best.dimension:
            best = _Space(rows=rows, pivots=pivots, weights=weights, prime=prime)
        product *= prime
        if best.dimension == min(columns.shape) or product > _largest_minor(best.dimension + 1):
            return best
    raise AssertionError("unreachable: there are more primes than any history needs")


def _largest_minor(size: int) -> int:
    """Hadamard's bound on the determinant of a 0/1 matrix: (k + 1)^((k + 1) / 2) / 2^k, up."""
    power: int = (size + 1) ** (size + 1)
    return (math.isqrt(power) >> size) + 1


def _primes() -> Iterator[int]:
    """Primes below 2^31, from the largest down; products of two residues fit in 63 bits."""
    divisors = np.arange(3, 2**16, 2, dtype=np.int64)  # up to the square root of 2^31
    return (candidate for candidate in range(2**31 - 1, 2**16, -2) if (candidate % divisors).all())


def _search(space: _Space, limit: int) -> int | None:
    """Branch and bound over columns: a light vector is zero there, or pays for the column.

    The branch that pays comes first: it is short, and a vector found tightens the limit. The stack
    then holds at most one waiting branch per column paid for.
    """
    best, work = None, 0
    stack = [(space.vanish_above(limit), 0)]
    while stack:
        space, paid = stack.pop()
        budget = limit - paid
        if budget < 1:
            continue  # found something as light meanwhile
        space = space.vanish_above(budget)
        found = _light(space, budget)
        if found is not None:
            best, limit = paid + found, paid + found - 1
            stack.append((space, paid))  # again, under the tighter limit
        elif space.dimension > 1 and budget > 2:
            work += space.rows.size * space.dimension
            if work > _MAX_WORK:
                raise _SearchTooLarge
            if _least_weight(space.rows, space.weights, budget + 1, space.prime) > budget:
                continue
            column = int(space.weights.argmax())
            cost = int(space.weights[column])
            stack.append((space.vanish(column), paid))
            # _light found no vector on one column alone, so none is lost here
            stack.append((space.release(column), paid + cost))
    return best


def _least_weight(rows: _Words, weights: _Words, enough: int, prime: int) -> int:
    """A lower bound on the weight of every non-zero combination, taken no further than ``enough``.

    Where a block of columns has full row rank, a vector is determined by its entries there: one of
    them at least is not zero, in every such block. A block of full rank also proves that the rows
    are independent over the rationals.
    """
    total, width = 0, len(rows) + _SLACK
    blocks = [slice(start, start + width) for start in range(0, len(weights), width)]
    if sum(int(weights[block].min()) for block in blocks) < enough:
        return 0  # could not be enough, so not worth the elimination
    for block in blocks:
        if total >= enough:
            break
        if len(_reduce(rows[:, block], prime)[0]) == len(rows):
            total += int(weights[block].min())
    return total


def _light(space: _Space, budget: int) -> int | None:
    """Weight of a vector on one row, one column or two, if it is within ``budget``.

    Complete for spaces of dimension 1, and where ``budget`` is at most 2.
    """
    if not space.dimension:
        return None
    weights = (space.rows != 0) @ space.weights  # of the reduced rows themselves
    lightest = int(weights.min())
    if space.dimension > 1 and lightest > 2 and budget > 1 and _has_parallel_pair(space):
        lightest = 2
    return lightest if lightest <= budget else None


def _has_parallel_pair(space: _Space) -> bool:
    """Whether two reduced rows agree, up to a factor, outside their pivots of one client each."""
    rest = space.rows.copy()
    rest[np.arange(len(rest)), space.pivots] = 0
    rest = rest[space.weights[space.pivots] == 1]
    leading = rest[np.arange(len(rest)), (rest != 0).argmax(axis=1)]
    scales = [pow(int(value), -1, space.prime) for value in leading]  # no row is a pivot alone
    scaled = rest * np.array(scales, dtype=np.int64)[:, None] % space.prime
    return len({row.tobytes() for row in scaled}) < len(scaled)
