"""The differencing guard: what it lets pass isolates nobody, by an independent exact oracle."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedrl.errors import ConfigurationError, RoundAborted
from privfedrl.parties import participation as module
from privfedrl.parties.participation import (
    Participation,
    Scope,
    check_participation,
    smallest_isolated_group,
)

MODEL, OTHER = b"m" * 32, b"o" * 32
Rows = list[list[int]]


def row(bits: Sequence[int], *, number: int = 0, model: bytes = MODEL) -> Participation:
    value = sum(bit << index for index, bit in enumerate(bits))
    members = value.to_bytes((len(bits) + 7) // 8, "little")
    return Participation(round=number, attempt=0, model_digest=model, members=members)


def rows_of(matrix: Rows) -> list[Participation]:
    return [row(bits, number=index) for index, bits in enumerate(matrix)]


def without(clients: int, *absent: int) -> list[int]:
    return [int(index not in absent) for index in range(clients)]


def rank(matrix: Sequence[Sequence[int]]) -> int:
    """Over the rationals, by fractions."""
    left = [[Fraction(value) for value in line] for line in matrix]
    found = 0
    for column in range(len(left[0]) if left else 0):
        pivot = next((i for i in range(found, len(left)) if left[i][column]), None)
        if pivot is None:
            continue
        left[found], left[pivot] = left[pivot], left[found]
        for i in range(found + 1, len(left)):
            factor = left[i][column] / left[found][column]
            left[i] = [a - factor * b for a, b in zip(left[i], left[found], strict=True)]
        found += 1
    return found


def smallest_by_brute_force(matrix: Rows) -> int | None:
    """Some combination lives on T alone iff leaving out the columns of T lowers the rank."""
    full, clients = rank(matrix), len(matrix[0])
    for size in range(1, clients + 1):
        for group in combinations(range(clients), size):
            rest = [[bit for i, bit in enumerate(line) if i not in group] for line in matrix]
            if rank(rest) < full:
                return size
    return None


def verdict(matrix: Rows, floor: int, scope: Scope = "task") -> bool:
    *earlier, new = rows_of(matrix)
    try:
        check_participation(earlier, new, floor=floor, scope=scope)
    except RoundAborted:
        return False
    return True


@given(data=st.data(), clients=st.integers(1, 6), height=st.integers(1, 6))
def test_the_smallest_isolated_group_is_that_of_every_rational_combination(
    data: st.DataObject, clients: int, height: int
) -> None:
    line = st.lists(st.integers(0, 1), min_size=clients, max_size=clients)
    matrix = data.draw(st.lists(line, min_size=height, max_size=height))
    smallest = smallest_by_brute_force(matrix)
    assert smallest_isolated_group(rows_of(matrix)) == smallest
    for floor in range(clients + 2):
        assert verdict(matrix, floor) == (smallest is None or smallest >= floor)


@pytest.mark.parametrize("density", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("clients", [9, 11])
def test_groups_above_two_are_found_and_not_invented(clients: int, density: float) -> None:
    rng = random.Random(clients)
    seen = set()
    for _ in range(12):
        height = rng.randint(2, 5)
        matrix = [[int(rng.random() < density) for _ in range(clients)] for _ in range(height)]
        smallest = smallest_by_brute_force(matrix)
        assert smallest_isolated_group(rows_of(matrix)) == smallest
        assert smallest is None or verdict(matrix, smallest)
        assert smallest is None or not verdict(matrix, smallest + 1)
        seen.add(smallest)
    assert len(seen) > 1


def test_two_sets_of_one_model_that_differ_by_a_few_clients_are_refused() -> None:
    everybody, some = row(without(10), number=4), row(without(10, 2, 7), number=5)
    with pytest.raises(
        RoundAborted, match=r"rounds 4 and of round 5 .* isolate 2 clients"
    ) as caught:
        check_participation([everybody], some, floor=3, scope="model")
    assert caught.value.code == "Differencing"
    check_participation([everybody], some, floor=2, scope="model")
    check_participation([everybody], everybody, floor=3, scope="model")


def test_a_set_below_the_floor_is_refused_by_itself() -> None:
    with pytest.raises(RoundAborted, match=r"the sum of round 0 .* isolate 2 clients"):
        check_participation([], row([1, 0, 1, 0]), floor=3, scope="model")


def test_three_sums_isolate_one_client_though_no_two_do() -> None:
    """S1 + S2 - S3 is twice nothing but one client, and all pairwise differences are large."""
    left, right, both = [1, 1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1, 1], [1] * 9
    assert sum(a != b for a, b in zip(left, right, strict=True)) == 8
    with pytest.raises(RoundAborted, match="isolate 1 clients"):
        check_participation([row(left), row(right)], row(both), floor=4, scope="model")
    check_participation([row(left)], row(right), floor=4, scope="model")


def test_a_rational_combination_counts_not_only_sums_and_differences() -> None:
    """Three sets that cover four clients in pairs: half their sum, minus one set, is one client."""
    pairs = [[1, 1, 0], [0, 1, 1], [1, 0, 1]]
    matrix = [[bit for bit in line for _ in range(2)] + [1, 1] for line in pairs]
    assert smallest_isolated_group(rows_of(matrix)) == smallest_by_brute_force(matrix)


def test_scope_says_which_rounds_are_combined() -> None:
    earlier = [row(without(10), number=1, model=OTHER)]
    new = row(without(10, 3), number=2)
    check_participation(earlier, new, floor=3, scope="model")
    with pytest.raises(RoundAborted, match="isolate 1 clients"):
        check_participation(earlier, new, floor=3, scope="task")


def test_the_earlier_rows_count_in_any_order_and_however_often() -> None:
    matrix = [without(12, 0, 1, 2), without(12, 3, 4, 5), without(12, 0, 1, 2, 3, 4, 5)]
    rows = rows_of(matrix)
    for order in (rows, rows[::-1], rows * 3):
        assert smallest_isolated_group(order) == smallest_by_brute_force(matrix) == 3


@pytest.mark.parametrize("floor", [-1, 0, 1])
def test_a_floor_of_one_allows_everything(floor: int) -> None:
    check_participation([row([1, 1])], row([1, 0]), floor=floor, scope="task")


def test_nobody_at_all_is_no_group() -> None:
    assert smallest_isolated_group([]) is None
    assert smallest_isolated_group([row([0, 0, 0])]) is None
    check_participation([row([0] * 8)], row([1] * 8), floor=8, scope="task")


def test_rows_of_another_registry_are_refused() -> None:
    with pytest.raises(RoundAborted, match="registry has changed"):
        check_participation([row([1] * 20)], row([1] * 8), floor=2, scope="task")
    check_participation([row([1] * 20, model=OTHER)], row([1] * 8), floor=2, scope="model")
    with pytest.raises(ConfigurationError, match="same length"):
        smallest_isolated_group([row([1] * 20), row([1] * 8)])


def test_an_unknown_scope_is_refused_whatever_the_floor() -> None:
    with pytest.raises(ConfigurationError, match="scope"):
        check_participation([], row([1]), floor=0, scope="all")  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    "change",
    [
        {"round": -1},
        {"round": 2**63},
        {"round": True},
        {"attempt": 2**32},
        {"attempt": 1.0},
        {"model_digest": b"short"},
        {"model_digest": "m" * 32},
        {"members": b""},
        {"members": bytearray(4)},
    ],
)
def test_other_values_are_no_participation(change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"round": 1, "attempt": 0, "model_digest": MODEL, "members": b"\x07"}
    with pytest.raises(ConfigurationError):
        Participation(**(fields | change))


def test_a_message_names_rounds_but_never_members_and_stays_short() -> None:
    matrix = [without(24, index, index + 1, index + 2) for index in range(20)]
    *earlier, new = rows_of(matrix)
    with pytest.raises(RoundAborted) as caught:
        check_participation(earlier, new, floor=5, scope="task")
    assert len(str(caught.value)) < 200
    assert "round 19" in str(caught.value)


def test_a_prime_that_divides_a_minor_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The determinant of the three pairs is 2: modulo 2 the rank falls and the group is hidden."""
    matrix = [[1, 1, 0], [0, 1, 1], [1, 0, 1]]
    columns = np.array(matrix, dtype=np.int64)
    assert len(module._reduce(columns, 2)[0]) == 2
    monkeypatch.setattr(module, "_primes", lambda: iter([2, 3, 5, 7]))
    assert smallest_isolated_group(rows_of(matrix)) == 1
    space = module._certified_space(columns, np.ones(3, dtype=np.int64))
    assert (space.dimension, space.prime) == (3, 3)


def test_a_deficient_rank_is_believed_only_after_enough_primes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = []

    def primes() -> Any:
        for prime in (11, 13, 17, 19, 23, 29):
            used.append(prime)
            yield prime

    monkeypatch.setattr(module, "_primes", primes)
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 2, (6, 12))
    columns = np.concatenate([matrix, matrix[:3]]).astype(np.int64)  # rank 6 of 9 rows
    assert module._certified_space(columns, np.ones(12, dtype=np.int64)).dimension == 6
    assert np.prod(used) > module._largest_minor(7)


def test_hadamards_bound_holds_and_is_met() -> None:
    best = {1: 1, 2: 1, 3: 2, 4: 3, 5: 5, 6: 9, 7: 32}  # largest determinants of 0/1 matrices
    for size, largest in best.items():
        assert largest <= module._largest_minor(size) <= 4 * largest


def test_the_primes_are_prime_and_products_of_residues_fit() -> None:
    primes = module._primes()
    first = [next(primes) for _ in range(3)]
    assert first == [2**31 - 1, 2147483629, 2147483587]
    assert (first[0] - 1) ** 2 + first[0] < 2**63


def test_a_history_longer_than_a_chunk_is_eliminated_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = random.Random(5)
    matrix = [[int(rng.random() < 0.7) for _ in range(9)] for _ in range(7)]
    whole = smallest_isolated_group(rows_of(matrix))
    monkeypatch.setattr(module, "_CHUNK", 2)
    assert smallest_isolated_group(rows_of(matrix)) == whole == smallest_by_brute_force(matrix)


def test_a_search_that_is_too_large_ends_in_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(6)
    matrix = [[int(rng.random() < 0.5) for _ in range(40)] for _ in range(20)]
    assert verdict(matrix, 4)
    monkeypatch.setattr(module, "_MAX_WORK", 10)
    *earlier, new = rows_of(matrix)
    with pytest.raises(RoundAborted, match="too many to exclude a group below 4"):
        check_participation(earlier, new, floor=4, scope="task")
    with pytest.raises(ConfigurationError, match="bounded work"):
        smallest_isolated_group(rows_of(matrix))
    assert verdict(matrix, 3)  # groups of one and two need no search


def test_blocks_of_full_rank_bound_every_weight_from_below() -> None:
    rng = random.Random(8)
    for _ in range(20):
        matrix = [[int(rng.random() < 0.5) for _ in range(30)] for _ in range(3)]
        columns, weights = module._classes(np.array(matrix, dtype=np.uint8))
        bound = module._least_weight(columns, weights, 10, 2**31 - 1)
        smallest = smallest_isolated_group(rows_of(matrix))
        assert smallest is not None
        assert bound <= smallest


@pytest.mark.parametrize("density", [0.5, 0.97])
@pytest.mark.parametrize("height", [60, 200])
def test_a_hundred_clients_over_two_hundred_rounds_take_a_moment(
    height: int, density: float
) -> None:
    rng = random.Random(7)
    matrix = [[int(rng.random() < density) for _ in range(100)] for _ in range(height)]
    start = time.process_time()
    verdict(matrix, 3)
    assert time.process_time() - start < 1.0  # 0.03 s where it was measured


def test_a_certificate_from_blocks_spares_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two random sets of many clients: no combination is light, and no elimination is needed."""
    rng = random.Random(9)
    matrix = [[int(rng.random() < 0.5) for _ in range(400)] for _ in range(12)]
    monkeypatch.setattr(module, "_certified_space", None)
    assert verdict(matrix, 8)


def test_a_branch_that_the_blocks_certify_is_not_searched() -> None:
    """One heavy class hides from the first certificate, not from the one after it has vanished."""
    rng = random.Random(10)
    matrix = [[1] * 50 + [int(rng.random() < 0.5) for _ in range(200)] for _ in range(12)]
    matrix.append([1] * 50 + [0] * 200)
    assert verdict(matrix, 6)
