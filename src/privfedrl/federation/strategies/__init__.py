"""How released sums become the next policy."""

from privfedrl.federation.strategies.aggregation import ReleasedMean, released_mean
from privfedrl.federation.strategies.server_optimizer import (
    OptimizerState,
    initial_state,
    learning_rate,
    server_step,
)

__all__ = [
    "OptimizerState",
    "ReleasedMean",
    "initial_state",
    "learning_rate",
    "released_mean",
    "server_step",
]
