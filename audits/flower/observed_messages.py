"""What a reply shows and what a request may ask."""

from __future__ import annotations

from typing import Any

from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.secaggplus_constants import Key, Stage
from flwr.server.workflow import SecAggPlusWorkflow
from observation import draw, id_of, kept_by, logged, nodes_with, observation, small_round
from rounds import edited, names, play
from seams import Node, config


@observation(
    "finding",
    "weights (num_examples) and metrics travel in clear beside the masked vector",
    documented="'sending both, a weighting factor and a weighted version of the locally updated "
    "parameters, both of which are masked'",
)
def weights_and_metrics_travel_in_clear() -> dict[str, Any]:
    """The updated parameters are removed from the reply, but num_examples and the metrics of
    the fit stay in it. The masked weight then protects nothing and gives a known word of
    plaintext; metrics such as a mean reward or a loss reach the server per client. The
    strategy's interface needs them, so a note in the documentation may be the better remedy.
    """
    nodes = {
        name: Node(name, row, weight=100 + index, metrics={"mean_reward": 20.0 + index})
        for index, (name, row) in enumerate(zip(names(4), draw(4, 4), strict=True))
    }
    done = play(SecAggPlusWorkflow(1.0, 3), nodes, (4,))
    reply = done.replies[Stage.COLLECT_MASKED_VECTORS, names(3)[2]].content
    return {
        "client_had": {"num_examples": 102, "mean_reward": 22.0},
        "reply_shows": {k: dict(v) for k, v in reply.metric_records.items()}
        | {k: dict(v) for k, v in reply.config_records.items() if k == "fitres.metrics"},
        "parameters_left_in_clear": sum(len(each) for each in reply.array_records.values()),
    }


@observation("unclaimed", "the two lists of the last stage may overlap")
def both_shares_of_one_node_are_returned() -> dict[str, Any]:
    """A client answers for every identifier in either list and does not compare the lists, so
    a server that breaks the protocol gets the share of the seed and that of the key. The
    documentation claims nothing against such a server; one comparison in the client would
    close it.
    """
    both: dict[str, int] = {}

    def on_request(stage: str, name: str, message: Any) -> Any:
        if stage == Stage.UNMASK:
            everyone = [id_of(index) for index in range(6)]
            edited(message, ACTIVE_NODE_ID_LIST=everyone, DEAD_NODE_ID_LIST=everyone)
        return message

    done = small_round(on_request=on_request)
    for (stage, _), reply in done.replies.items():
        if stage == Stage.UNMASK:
            listed = list(config(reply)[Key.NODE_ID_LIST])
            for node in set(listed):
                both[str(listed.count(node))] = both.get(str(listed.count(node)), 0) + 1
    return {"refusals": done.raised(), "shares_of_one_node_in_one_reply": both}


@observation("unclaimed", "the client accepts the server's threshold and modulus whatever they are")
def threshold_and_modulus_are_not_checked() -> dict[str, Any]:
    """The server's parameters are taken as sent. At a threshold of 0 or 1 each share is the
    secret. Documented nowhere as a guarantee; a lower bound in the client's own configuration
    would give the client a say.
    """
    seen: dict[str, Any] = {}

    def on_request(stage: str, name: str, message: Any) -> Any:
        if stage == Stage.SETUP:
            edited(message, THRESHOLD=0, MOD_RANGE=2)
        return message

    done = small_round(on_request=on_request)
    state = kept_by(done, names(1)[0])
    seen["threshold_kept"], seen["modulus_kept"] = state["threshold"], state["mod_range"]
    seen["refusals"] = done.raised()
    shares = create_shares(bytes(range(32)), 0, 6)
    seen["one_share_at_threshold_0_opens_the_secret"] = combine_shares(shares[:1]) == bytes(
        range(32)
    )
    return seen


@observation("unclaimed", "a set-up in mid-round starts over with a warning")
def setup_in_mid_round_only_warns() -> dict[str, Any]:
    """A second set-up is accepted at any time, also after the masked vector has left, so a
    client can be made to mask the same update twice with two sets of neighbours.
    """
    nodes = nodes_with(draw(6, 8))
    first = play(SecAggPlusWorkflow(1.0, 4), nodes, (8,), lost=dict.fromkeys(nodes, Stage.UNMASK))
    with logged() as warned:
        second = play(SecAggPlusWorkflow(1.0, 4), nodes, (8,))
    return {
        "first_round_ended_without_a_sum": first.mean is None,
        "masked_vectors_of_one_client_in_round_1": sum(
            (Stage.COLLECT_MASKED_VECTORS, names(1)[0]) in each.replies for each in (first, second)
        ),
        "second_attempt_gave_a_sum": second.mean is not None,
        "warnings": sorted(set(warned)),
    }
