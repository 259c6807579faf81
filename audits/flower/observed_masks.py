"""Seeds, ranges and what a short seed means."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from flwr.common import bytes_to_ndarray
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.secaggplus_constants import Key, Stage
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
)
from observation import ISSUE, draw, id_of, kept_by, nodes_with, observation
from rounds import Round, names, play
from seams import config


@observation(
    "finding",
    "mask seeds are folded to 32 bits",
    documented="'random mask entries are uniformly sampled'",
    reference=ISSUE,
)
def mask_seeds_are_folded_to_32_bits() -> dict[str, Any]:
    """The 32-byte secret behind a mask is reduced to 32 bits by XOR; pairwise secrets are
    base64 text, whose bytes have their top bit clear, so 28 remain. A stream cipher or an
    extendable-output function keyed with the whole secret would keep all of it; the issue and
    the pull request #7570 that refers to it propose just that.
    """
    seed = bytes(range(32))
    reordered = b"".join(reversed([seed[at : at + 4] for at in range(0, 32, 4)]))
    same = [pseudo_rand_gen(each, 2**32, [(16,)])[0].tolist() for each in (seed, reordered)]
    keys = [generate_key_pairs() for _ in range(65)]
    folds = [_fold(generate_shared_key(a, b)) for a, _ in keys[:32] for _, b in keys[32:]]
    always_zero = ~np.bitwise_or.reduce(folds) & 0xFFFFFFFF
    always_one = np.bitwise_and.reduce(folds)
    return {
        "reordered_seed_gives_the_same_mask": same[0] == same[1],
        "pairwise_seeds_examined": len(folds),
        "pairwise_seed_bytes": 44,
        "bits_always_zero": f"{int(always_zero):#010x}",
        "bits_always_one": f"{int(always_one):#010x}",
        "bits_left_at_most": 32 - int(always_zero | always_one).bit_count(),
        **_search_rates(),
    }


def _fold(seed: bytes) -> int:
    return int(np.bitwise_xor.reduce(np.frombuffer(seed, "<u4")))


def _search_rates() -> dict[str, Any]:
    """Candidates per second of CPU: Flower's own generator, and only its first word in numpy."""
    start, count = time.process_time(), 4_000
    for seed in range(count):
        pseudo_rand_gen(seed.to_bytes(4, "little"), 2**32, [(1,)])
    middle = time.process_time()
    words = [
        _first_words(np.arange(at, at + 2**14, dtype=np.uint32)) for at in range(0, 2**19, 2**14)
    ]
    own, bare = count / (middle - start), 2**19 / (time.process_time() - middle)
    checked = [pseudo_rand_gen(k.to_bytes(4, "little"), 2**32, [(1,)])[0][0] for k in range(256)]
    return {
        "candidates_per_cpu_second": {"pseudo_rand_gen": round(own), "first_word": round(bare)},
        "first_word_agrees_with_pseudo_rand_gen": words[0][:256].tolist() == checked,
        "one_core_minutes_for_2^28_candidates": round(2**28 / bare / 60, 1),
    }


def _first_words(seeds: Any) -> Any:
    """uint32 [n], the first output of MT19937 for each seed (init_genrand and one twist)."""
    state, kept = seeds.copy(), dict[int, Any]()
    for index in range(1, 398):
        state = np.uint32(1812433253) * (state ^ (state >> np.uint32(30))) + np.uint32(index)
        if index in (1, 397):
            kept[index] = state
    y = (seeds & np.uint32(0x80000000)) | (kept[1] & np.uint32(0x7FFFFFFF))
    y = kept[397] ^ (y >> np.uint32(1)) ^ ((y & np.uint32(1)) * np.uint32(0x9908B0DF))
    y ^= y >> np.uint32(11)
    y ^= (y << np.uint32(7)) & np.uint32(0x9D2C5680)
    y ^= (y << np.uint32(15)) & np.uint32(0xEFC60000)
    return y ^ (y >> np.uint32(18))


@observation(
    "finding",
    "a pairwise mask can be searched for",
    documented="'without accessing any individual integer vector'",
    reference=ISSUE,
)
def a_pairwise_mask_can_be_searched_for() -> dict[str, Any]:
    """Two clients and a server that follows the protocol and keeps what it saw. It knows one
    word of the masked vector, because the weight in it is in clear beside it. To stay short
    the search covers one slice of 2^20 that holds the seed (looked up in the client's
    context); all 2^28 candidates are 256 such slices. Shows in minutes what the previous item
    means; the remedy is the same.
    """
    values = draw(2, 100)
    done = play(SecAggPlusWorkflow(1.0, 1.0), nodes_with(values), (100,))
    (first, second) = names(2)
    shapes: list[tuple[int, ...]] = [(1,), (100,)]
    y = _opened_by_the_server(done, first, shapes)
    sign = 1 if id_of(0) > id_of(1) else -1
    word = np.uint32(sign * (int(y[0][0]) - 2**22) % 2**32)  # weight 1000 of 1000 is 2^22
    seed = _shared_seed(done, first, second)
    start = time.process_time()
    found = _search_slice(word, seed)
    seconds = time.process_time() - start
    mask = pseudo_rand_gen(found[0].to_bytes(4, "little"), 2**32, shapes)
    vector = (y[1] - sign * mask[1]) % 2**32 * 16 / 2**22 - 8
    return {
        "clients": 2,
        "candidates_in_the_slice": 2**20,
        "candidates_that_fit": len(found),
        "max_abs_error_of_the_update_found": float(np.abs(vector - values[0]).max()),
        "cpu_seconds_for_the_slice": round(seconds, 2),
        "slices_in_all": 256,
    }


def _opened_by_the_server(done: Round, name: str, shapes: Any) -> Any:
    """What remains of a client's vector after the self mask that the server rightly removes."""
    index = list(done.nodes).index(name)
    shares = [
        share
        for (stage, _), reply in done.replies.items()
        if stage == Stage.UNMASK
        for owner, share in zip(
            config(reply)[Key.NODE_ID_LIST], config(reply)[Key.SHARE_LIST], strict=True
        )
        if owner == id_of(index)
    ]
    parts = config(done.replies[Stage.COLLECT_MASKED_VECTORS, name])[Key.MASKED_PARAMETERS]
    own = pseudo_rand_gen(combine_shares(shares), 2**32, shapes)
    return [bytes_to_ndarray(part) - mask for part, mask in zip(parts, own, strict=True)]


def _shared_seed(done: Round, first: str, second: str) -> int:
    kept = kept_by(done, first)
    peer = config(done.replies[Stage.SETUP, second])[Key.PUBLIC_KEY_1]
    return _fold(generate_shared_key(bytes_to_private_key(kept["sk1"]), bytes_to_public_key(peer)))


def _search_slice(word: Any, seed: int) -> list[int]:
    """Seeds that give ``word``, among the 2^20 that share the upper eight free bits of ``seed``."""
    low = np.arange(2**20, dtype=np.uint32)
    spread: Any = (low & 0x7F) | (low & 0x3F80) << 1 | (low & 0xFC000) << 2
    candidates = spread | np.uint32(seed & 0x7F400000)
    return [
        int(each)
        for block in candidates.reshape(-1, 2**14)
        for each in block[_first_words(block) == word]
    ]


@observation(
    "finding",
    "the top value of the ring is never a mask",
    documented="entries from [0, modulus_range-1]",
)
def mask_range_leaves_out_the_top_value() -> dict[str, Any]:
    """The upper bound of numpy's randint is exclusive, so one value of the ring is never
    drawn. At the default modulus of 2^32 that is one value in 2^32 and has no practical
    effect; it is visible at a modulus of 8.
    """
    draws = pseudo_rand_gen(b"\1\2\3\4", 8, [(1_000_000,)])[0]
    counts = np.bincount(draws, minlength=8)
    return {
        "modulus": 8,
        "draws": int(counts.sum()),
        "rarest_of_0_to_6": int(counts[:7].min()),
        "commonest_of_0_to_6": int(counts[:7].max()),
        "count_of_7": int(counts[7]),
    }
