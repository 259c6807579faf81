"""What stays after a round, bytes and time."""

from __future__ import annotations

import time
from typing import Any

from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.secaggplus_constants import Stage
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.supercore.primitives.asymmetric import (
    generate_key_pairs,
    private_key_to_bytes,
)
from observation import draw, kept_by, nodes_with, observation, small_round
from rounds import names, play


@observation("unclaimed", "secrets stay in the node's context after the round")
def secrets_stay_in_the_context() -> dict[str, Any]:
    """The private keys, the seed and the shares of the neighbours remain in the context after
    the last stage until the next set-up overwrites them. Clearing the record at the end would
    shorten their life.
    """
    done = small_round()
    state = kept_by(done, names(1)[0])
    return {
        "round_finished": done.mean is not None,
        "bytes_kept": {
            key: len(bytes(state[key])) for key in ("sk1", "sk2", "rd_seed") if state.get(key)
        },
        "private_key_in_clear": bytes(state["sk1"]).startswith(b"-----BEGIN PRIVATE KEY"),
        "shares_kept": len(state["sk1_share_dict:V"]) + len(state["rd_seed_share_dict:V"]),
    }


@observation("limit", "bytes of one masked coordinate")
def masked_coordinate_takes_eight_bytes() -> dict[str, Any]:
    """Residues of 32 bits travel as 64-bit integers; half the bytes would do."""
    sizes = {
        length: play(SecAggPlusWorkflow(3, 2), nodes_with(draw(4, length)), (length,)).sizes
        for length in (1_000, 11_000)
    }
    stage = Stage.COLLECT_MASKED_VECTORS
    return {
        "bytes_per_coordinate": (sizes[11_000][stage] - sizes[1_000][stage]) / 10_000,
        "modulus_bits": 32,
    }


@observation("limit", "cost of sharing one private key")
def cost_of_sharing_a_key() -> dict[str, Any]:
    """The key is shared as its PEM text in blocks of 16 bytes with polynomial arithmetic in
    Python, and all shares received are combined, not only as many as the threshold. Sharing
    the 48-byte scalar and combining no more than the threshold would cut most of it.
    """
    key = private_key_to_bytes(generate_key_pairs()[0])
    seen: dict[str, Any] = {"private_key_bytes": len(key)}
    for count in (10, 50, 100):
        threshold = 2 * count // 3 + 1
        start = time.process_time()
        shares = create_shares(key, threshold, count)
        middle = time.process_time()
        combine_shares(shares)  # the workflow combines every share that it has
        seen[f"{threshold} of {count}"] = {
            "create_cpu_ms": round(1e3 * (middle - start), 1),
            "combine_cpu_ms": round(1e3 * (time.process_time() - middle), 1),
        }
    return seen
