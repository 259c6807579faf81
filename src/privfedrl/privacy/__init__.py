"""Units, mechanisms, accounting: what a release was, what it costs, and who it protects.

Nothing here knows of secure aggregation or of learning; numpy and scipy only.
"""

from __future__ import annotations

from privfedrl.privacy.accountant import Spent, compose, epsilon, parallel
from privfedrl.privacy.calibration import (
    Target,
    calibrate_skellam,
    least_noise,
    mechanism_epsilon,
    most_rounds,
    smallest_cohort,
)
from privfedrl.privacy.composition import Composition
from privfedrl.privacy.events import (
    DiscreteGaussianEvent,
    DpEvent,
    GaussianEvent,
    NoReleaseEvent,
    PoissonSampledEvent,
    SkellamEvent,
    UnboundedEvent,
    event_from_dict,
    event_to_dict,
)
from privfedrl.privacy.filters import Filter
from privfedrl.privacy.gdp import gaussian_delta, gaussian_epsilon, gaussian_noise_multiplier
from privfedrl.privacy.ledger import (
    Account,
    Budget,
    Charge,
    Entry,
    Ledger,
    OdometerRow,
    Reservation,
    Verified,
)
from privfedrl.privacy.ledger_checkpoint import Checkpoint, ed25519_verifier
from privfedrl.privacy.mechanisms import (
    CentralDiscreteGaussian,
    DistributedDiscreteGaussian,
    DistributedSkellam,
    LocalSkellam,
    Mechanism,
)
from privfedrl.privacy.participation import ParticipationRegister
from privfedrl.privacy.rdp import ORDERS, gaussian_rdp, rdp_to_epsilon, skellam_rdp
from privfedrl.privacy.samplers import (
    DiscreteGaussianSampler,
    SkellamSampler,
    delta_of_sampler,
)
from privfedrl.privacy.statement import Statement
from privfedrl.privacy.units import Adjacency, IntegerSensitivity, Unit

__all__ = [
    "ORDERS",
    "Account",
    "Adjacency",
    "Budget",
    "CentralDiscreteGaussian",
    "Charge",
    "Checkpoint",
    "Composition",
    "DiscreteGaussianEvent",
    "DiscreteGaussianSampler",
    "DistributedDiscreteGaussian",
    "DistributedSkellam",
    "DpEvent",
    "Entry",
    "Filter",
    "GaussianEvent",
    "IntegerSensitivity",
    "Ledger",
    "LocalSkellam",
    "Mechanism",
    "NoReleaseEvent",
    "OdometerRow",
    "ParticipationRegister",
    "PoissonSampledEvent",
    "Reservation",
    "SkellamEvent",
    "SkellamSampler",
    "Spent",
    "Statement",
    "Target",
    "UnboundedEvent",
    "Unit",
    "Verified",
    "calibrate_skellam",
    "compose",
    "delta_of_sampler",
    "ed25519_verifier",
    "epsilon",
    "event_from_dict",
    "event_to_dict",
    "gaussian_delta",
    "gaussian_epsilon",
    "gaussian_noise_multiplier",
    "gaussian_rdp",
    "least_noise",
    "mechanism_epsilon",
    "most_rounds",
    "parallel",
    "rdp_to_epsilon",
    "skellam_rdp",
    "smallest_cohort",
]
