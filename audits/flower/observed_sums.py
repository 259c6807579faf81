"""When there is a sum and how exact it is."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.common.secure_aggregation.secaggplus_constants import Stage
from flwr.server.workflow import SecAggPlusWorkflow
from observation import draw, logged, nodes_with, observation, small_round
from rounds import names, play


@observation(
    "finding",
    "a client lost at one of the first two stages costs the round",
    documented="'allowing for the recovery of contributions from dropped clients'",
)
def early_losses_end_the_round() -> dict[str, Any]:
    """The list of lost nodes includes those that left before they had shared a key; nobody holds a
    share of them, so each survivor raises KeyError at the last stage. One line more at the end of
    the share-keys stage, the cohort being who has shared keys, gave the sum in our trial: the masks
    of the others were never added.
    """
    seen: dict[str, Any] = {}
    for stage in (Stage.SETUP, Stage.SHARE_KEYS):
        done = small_round(lost={names(1)[0]: stage})
        seen[f"one of 6 lost at {stage}"] = {"sum": done.mean is not None, **done.raised()}
        kept = play(Narrowed(1.0, 4), nodes_with(draw(6, 8)), (8,), lost={names(1)[0]: stage})
        seen[f"{stage}, cohort narrowed after {Stage.SHARE_KEYS}"] = {"sum": kept.mean is not None}
    return seen


class Narrowed(SecAggPlusWorkflow):
    """The workflow with one line more, to try a remedy."""

    def share_keys_stage(self, grid: Any, context: Any, state: Any) -> bool:
        """From here on the cohort is who has shared keys."""
        enough = super().share_keys_stage(grid, context, state)
        state.sampled_node_ids = set(state.active_node_ids)
        return enough


@observation(
    "finding",
    "an even num_shares below the cohort never gives a sum",
    documented="log: 'Number of shares in the SecAgg+ protocol should be odd.'",
)
def even_num_shares_never_gives_a_sum() -> dict[str, Any]:
    """The number of shares is made odd after it was written into the clients' configuration, so
    there is one share fewer than nodes in a neighbourhood. Rounding before that, as is done for a
    fraction, would be enough. The log line names the cause well.
    """
    seen: dict[str, Any] = {}
    for shares in (3, 4, 5):
        with logged() as warned:
            done = play(SecAggPlusWorkflow(shares, 2), nodes_with(draw(6, 8)), (8,))
        seen[f"num_shares {shares} of 6"] = {
            "sum": done.mean is not None,
            **done.raised(),
            "warnings": sorted(set(warned)),
        }
    return seen


@observation(
    "finding",
    "the ring overflows silently when clients times quantisation range reach the modulus",
    documented="a warning when num_shares exceeds modulus_range / quantization_range",
)
def overflow_is_silent() -> dict[str, Any]:
    """The check at construction compares num_shares, but what is summed is one vector per
    client, each up to the quantisation range times its weight. With the default parameters
    the capacity is 1,024 clients of full weight. A check of the cohort's size in the set-up
    stage would catch it.
    """
    seen: dict[str, Any] = {}
    for bits, count in ((28, 15), (28, 16), (28, 17), (22, 1000), (22, 1100)):
        values = draw(count, 100)
        workflow = SecAggPlusWorkflow(3, 2, quantization_range=2**bits)
        with logged() as warned, np.errstate(all="ignore"):
            done = play(workflow, nodes_with(values), (100,))
        with np.errstate(all="ignore"):
            error = float(np.abs(done.mean - values.mean(0)).max())
        seen[f"{count} clients, 2^{bits} levels, capacity {2 ** (32 - bits)}"] = {
            "max_abs_error": error if np.isfinite(error) else str(error),
            "mean_abs_value": float(np.abs(values.mean(0)).mean()),
            "warnings": sorted(set(warned)),
        }
    return seen


@observation("unclaimed", "an update with NaN enters the sum", documented="values are clipped")
def nan_enters_the_sum() -> dict[str, Any]:
    """Infinities and values out of range are clipped as documented. NaN passes through the
    clip and becomes some integer, so one client's NaN silently spoils a coordinate for all.
    """
    seen: dict[str, Any] = {}
    for label, bad in (("NaN", np.nan), ("+inf", np.inf), ("all zero", 0.0)):
        values = draw(6, 8)
        values[0, 0] = bad
        values[0] = 0.0 if label == "all zero" else values[0]
        with np.errstate(all="ignore"), logged() as warned:
            done = play(SecAggPlusWorkflow(1.0, 4), nodes_with(values), (8,))
        others = float(np.clip(np.nan_to_num(values[:, 0], nan=0.0), -8, 8).mean())
        seen[label] = {
            "refusals": done.raised(),
            "released": None if done.mean is None else float(done.mean[0]),
            "clipped_mean_with_NaN_as_0": others,
            "warnings": sorted(set(warned)),
        }
    return seen


@observation(
    "limit",
    "precision falls with num_examples",
    documented="'Too large max_weight may compromise the precision of the quantization'",
)
def precision_falls_with_num_examples() -> dict[str, Any]:
    """The weight scales the values before they are rounded, so a client with few examples
    uses few levels. Documented; the figures help to choose max_weight.
    """
    values = draw(10, 10_000)
    seen: dict[str, Any] = {}
    for weight in (1000, 100, 5, 1):
        done = play(SecAggPlusWorkflow(3, 2), nodes_with(values, weight), (10_000,))
        seen[f"num_examples {weight}"] = float(np.abs(done.mean - values.mean(0)).max())
    return {"max_abs_error_of_the_mean": seen}
