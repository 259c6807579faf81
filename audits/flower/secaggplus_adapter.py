"""Flower's SecAgg+ under the kit: the real ``secaggplus_mod`` against the real workflow.

Guarantee: nothing of the protocol is written here. A client is a ``ClientApp`` with
``secaggplus_mod`` and its ``Context``; the server is ``SecAggPlusWorkflow.__call__`` with
``FedAvg``, in a thread because it pulls; a packet is Flower's own protobuf encoding of a
``Message``. Written here are only the seams (see ``seams.py`` for the two ends of the wire), and:

Exactness: a residue is cut into 16-bit limbs v; each is one parameter v - 2^15; the clipping range
is 2^15, the quantisation range 2^16, the weight is max_weight. Quantisation is then the identity on
v, its random rounding never acts, and the mean times the number of survivors is the exact sum of
the limbs (n < 2^16). So the kit's exact-sum oracle applies as it is, with no tolerance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.common import bytes_to_ndarray
from flwr.common.secure_aggregation.secaggplus_constants import Key, Stage
from flwr.server.workflow import SecAggPlusWorkflow
from seams import Node, Server, config, decode, encode

from privfedrl.testing.adapter import (
    Aggregate,
    AggregationAdapter,
    Claim,
    Packet,
    Reveal,
    RingVector,
    RoundSpec,
    Store,
)

__all__ = ["SecAggPlusAdapter"]

LIMB = 1 << 16
WEIGHT = 1000
SEED_SHARE_BYTES = 52  # an index and three blocks; a share of the PEM key has twenty blocks


def _reply(stage: str) -> str:
    return f"{stage} reply"


class SecAggPlusAdapter(AggregationAdapter):
    """SecAgg+ with every node as a neighbour (``num_shares=1.0``); see the base for the methods."""

    name = "flwr 1.41.0 SecAgg+"
    claims = frozenset({Claim.EXACT_SUM, Claim.DROPOUTS, Claim.UNIFORM_MASKS})
    errors = (Exception,)  # a SuperNode reports whatever its app raises; there is no error tree

    def make_client(self, spec: RoundSpec, name: str, vector: RingVector, store: Store) -> Node:
        limbs = vector.astype(vector.dtype.newbyteorder("<")).view("<u2") - LIMB / 2
        return Node(name, limbs, weight=WEIGHT, store=store)

    def make_server(self, spec: RoundSpec) -> Server:
        workflow = SecAggPlusWorkflow(
            1.0,
            self.quorum(spec),
            max_weight=WEIGHT,
            clipping_range=LIMB / 2,
            quantization_range=LIMB,
        )
        shape = spec.vector_length, spec.modulus_bits // 16
        return Server(workflow, self.client_names(spec), shape, round=spec.round)

    def start(self, server: Server) -> list[Packet]:
        return self._packets(server, server.open())

    def deliver(self, party: Node | Server, packet: Packet) -> list[Packet]:
        message = decode(packet.data)
        if isinstance(party, Server):
            return self._packets(party, party.take(message))
        return [
            Packet(party.name, self.server, encode(reply), _reply(party.stage))
            for reply in party.take(message)
        ]

    def close_phase(self, server: Server) -> list[Packet]:
        return self._packets(server, server.deadline())

    def finished(self, party: Node | Server) -> bool:
        return party.finished

    def result(self, server: Server) -> Aggregate:
        mean, averaged = server.outcome()
        sums = np.rint((mean + LIMB / 2) * len(averaged)).astype(np.uint64).reshape(server.shape)
        total = (sums << 16 * np.arange(sums.shape[1], dtype=np.uint64)).sum(1, dtype=np.uint64)
        return Aggregate(total=total.astype(f"u{2 * sums.shape[1]}"), survivors=averaged)

    def waiting_for(self, server: Server) -> tuple[str, ...]:
        return server.waiting_for

    def quorum(self, spec: RoundSpec) -> int:
        return spec.threshold or (spec.num_clients + spec.max_colluding) // 2 + 1

    def residues(self, spec: RoundSpec, packet: Packet) -> RingVector | None:
        if packet.kind != _reply(Stage.COLLECT_MASKED_VECTORS):
            return None
        _weight, limbs = config(decode(packet.data))[Key.MASKED_PARAMETERS]
        low = bytes_to_ndarray(limbs)[:: spec.modulus_bits // 16]  # one per residue, masked alike
        return low.astype(f"u{spec.modulus_bits // 8}")

    def reveals(self, spec: RoundSpec, server: Server, packet: Packet) -> tuple[Reveal, ...]:
        if packet.kind != _reply(Stage.UNMASK):
            return ()
        record = config(decode(packet.data))
        return tuple(
            Reveal(server.names[owner], packet.sender, _kind(share))
            for owner, share in zip(record[Key.NODE_ID_LIST], record[Key.SHARE_LIST], strict=True)
        )

    def _packets(self, server: Server, messages: list[Any]) -> list[Packet]:
        return [
            Packet(self.server, server.names[each.metadata.dst_node_id], encode(each), server.stage)
            for each in messages
        ]


def _kind(share: bytes) -> str:
    return "self" if len(share) == SEED_SHARE_BYTES else "pair"
