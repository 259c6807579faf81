"""What clients and rounds do well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.common.secure_aggregation.secaggplus_constants import Key, Stage
from flwr.server.workflow import SecAggPlusWorkflow
from observation import draw, id_of, nodes_with, observation, small_round
from rounds import names, play
from seams import config
from secaggplus_adapter import SecAggPlusAdapter

from privfedrl.testing.adapter import Claim
from privfedrl.testing.attacks import run_attacks


@observation("strength", "sums with clients lost at the last two stages", documented="claimed")
def late_losses_are_survived() -> dict[str, Any]:
    """Two of six clients may vanish before they send their vector, or after it: the mean over
    those who sent one comes out within one quantisation step.
    """
    values = draw(6, 1000)
    worst: dict[str, float] = {}
    for stage in (Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK):
        for count in (0, 1, 2):
            lost = dict.fromkeys(names(count), stage)
            done = play(SecAggPlusWorkflow(1.0, 4), nodes_with(values), (1000,), lost=lost)
            rows = [
                row for name, row in zip(names(6), values, strict=True) if name in done.averaged
            ]
            worst[f"{count} lost at {stage}"] = float(np.abs(done.mean - np.mean(rows, 0)).max())
    return {"max_abs_error_of_the_mean": worst, "quantisation_step": 16 / 2**22}


@observation("strength", "clients refuse what they can check")
def clients_refuse_what_they_can_check() -> dict[str, Any]:
    """Stage order, types, own keys, distinct keys, authenticity and origin of every encrypted
    share are checked by the client; an honest reader of the code finds these checks easily.
    """

    def lie(at: str, change: Callable[[Any], None]) -> dict[str, int]:
        def on_request(stage: str, name: str, message: Any) -> Any:
            if stage == at and name == names(1)[0]:
                change(config(message))
            return message

        return small_round(on_request=on_request).raised()

    def own_keys(record: Any) -> None:
        own, other = str(id_of(0)), str(id_of(1))
        record[own], record[other] = record[other], record[own]

    def twin_keys(record: Any) -> None:
        record[str(id_of(1))] = record[str(id_of(2))]

    def flip(record: Any) -> None:
        first, *rest = record[Key.CIPHERTEXT_LIST]
        record[Key.CIPHERTEXT_LIST] = [first[:-5] + bytes([first[-5] ^ 1]) + first[-4:], *rest]

    def other_source(record: Any) -> None:
        first, second, *rest = record[Key.SOURCE_LIST]
        record[Key.SOURCE_LIST] = [second, first, *rest]

    def skip(record: Any) -> None:
        record[Key.STAGE] = Stage.UNMASK

    return {
        "own keys replaced": lie(Stage.SHARE_KEYS, own_keys),
        "two peers with the same keys": lie(Stage.SHARE_KEYS, twin_keys),
        "one bit of an encrypted share": lie(Stage.COLLECT_MASKED_VECTORS, flip),
        "shares attributed to another node": lie(Stage.COLLECT_MASKED_VECTORS, other_source),
        "a stage skipped": lie(Stage.COLLECT_MASKED_VECTORS, skip),
    }


@observation("strength", "keys are fresh in every round")
def keys_are_fresh_in_every_round() -> dict[str, Any]:
    """Both key pairs are made anew in each round, so what is revealed about one round does
    not touch another.
    """
    nodes = nodes_with(draw(4, 4))
    seen = [
        bytes(config(reply)[key])
        for _ in range(2)
        for (stage, _name), reply in play(SecAggPlusWorkflow(1.0, 3), nodes, (4,)).replies.items()
        if stage == Stage.SETUP
        for key in (Key.PUBLIC_KEY_1, Key.PUBLIC_KEY_2)
    ]
    return {"public_keys_seen": len(seen), "distinct": len(set(seen))}


@observation("strength", "masks of different rounds and clients are unrelated")
def masks_are_unrelated() -> dict[str, Any]:
    """Not claimed in so many words, so not in the verdict; the kit's attacks found nothing."""
    verdict = run_attacks(FreshMasks(), only=["A8"])
    return {each.id: each.status.value for each in verdict.outcomes}


class FreshMasks(SecAggPlusAdapter):
    """The adapter with one claim more."""

    claims = SecAggPlusAdapter.claims | {Claim.FRESH_MASKS}
