"""Plans: what a federation does and promises, as values that every party pins.

sections        the tables of a plan file and their fields
rules           what must hold between values
training_rules  what must hold between algorithm, unit and policy
values          TOML, types and the canonical form
plan            all of it as one frozen value with a digest
"""

from privfedrl.plan.plan import Plan
from privfedrl.plan.sections import (
    AdaptiveClip,
    AgentLearner,
    EncodingPlan,
    FederationPlan,
    FleetPlan,
    MeanReturnRelease,
    PolicyPlan,
    PrivacyPlan,
    ProtectionPlan,
    SimulationPlan,
    TrainingPlan,
)

__all__ = [
    "AdaptiveClip",
    "AgentLearner",
    "EncodingPlan",
    "FederationPlan",
    "FleetPlan",
    "MeanReturnRelease",
    "Plan",
    "PolicyPlan",
    "PrivacyPlan",
    "ProtectionPlan",
    "SimulationPlan",
    "TrainingPlan",
]
