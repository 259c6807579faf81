"""Secure aggregation by pairwise masking: the coordinator learns a sum over survivors, or nothing.

    config -> M1 advertise -> roster -> M2 shares -> delivery -> M3 masked vector
    -> survivors -> M4 consistency -> unmask request -> M5 unmask -> sum

Start with :class:`SecAggClient` and :class:`SecAggServer`: bytes in, bytes out, no input or output
of their own. ``audits/proofs/pairwise_masking.md`` states what is assumed and what is proved.
"""

from privfedrl.secagg.agreement import read_config
from privfedrl.secagg.client import SecAggClient
from privfedrl.secagg.edges import Edges, OwnEdges, SharedEdges
from privfedrl.secagg.graph_parameters import GraphParameters, graph_parameters
from privfedrl.secagg.ideal import ideal_sum
from privfedrl.secagg.messages import RoundConfig
from privfedrl.secagg.parameters import SecAggParameters, SparseGraph
from privfedrl.secagg.phases import AbortCode, ClientPhase, ServerPhase
from privfedrl.secagg.result import SecureSum
from privfedrl.secagg.server import SecAggServer
from privfedrl.secagg.transcript import IdealRecord, RoundRecord, Transcript

__all__ = [
    "AbortCode",
    "ClientPhase",
    "Edges",
    "GraphParameters",
    "IdealRecord",
    "OwnEdges",
    "RoundConfig",
    "RoundRecord",
    "SecAggClient",
    "SecAggParameters",
    "SecAggServer",
    "SecureSum",
    "ServerPhase",
    "SharedEdges",
    "SparseGraph",
    "Transcript",
    "graph_parameters",
    "ideal_sum",
    "read_config",
]
