"""The state machines of a homomorphic round, as tables that the code reads.

    client      IDLE -CONFIG-> JOINED -CONTEXT-> COMMITTED -ROSTER-> UPLOADED -RECEIPT-> DONE
    authority   IDLE -CONFIG-> KEYED -PROPOSAL-> FIXED (-UPLOAD-> FIXED)* -SEALED-> DONE
    auditor     IDLE -CONFIG-> WAITING -ROSTER-> READY (-UPLOAD-> READY)* -SEALED-> DONE
    aggregator  COLLECT_CONTEXT -> COLLECT_COMMITS -> COLLECT_ROSTER -> COLLECT_UPLOADS
                -> COLLECT_ATTESTATION (with an auditor) -> COLLECT_OPENING -> DONE

Guarantee: a message of the coordinator or the authority that is not in the table of its receiver
never changes the receiver for the better: client, authority and auditor leave the round for good.
An upload that is not in the table is refused without a change, so that no agent can end a round;
so does the aggregator with everything. ABORTED and DONE are final, and nobody in them holds a key.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from privfedrl.he.frames import Kind

__all__ = [
    "AGGREGATOR_COLLECTS",
    "AUDITOR_TRANSITIONS",
    "AUTHORITY_TRANSITIONS",
    "CLIENT_TRANSITIONS",
    "AbortCode",
    "AggregatorPhase",
    "AuditorPhase",
    "AuthorityPhase",
    "ClientPhase",
]


class ClientPhase(Enum):
    """Where an agent is."""

    IDLE = "idle"
    JOINED = "joined"
    COMMITTED = "committed"
    UPLOADED = "uploaded"
    DONE = "done"
    ABORTED = "aborted"


class AuthorityPhase(Enum):
    """Where the key authority is; it holds a key in KEYED and FIXED only."""

    IDLE = "idle"
    KEYED = "keyed"
    FIXED = "fixed"
    DONE = "done"
    ABORTED = "aborted"


class AuditorPhase(Enum):
    """Where the auditor is."""

    IDLE = "idle"
    WAITING = "waiting"
    READY = "ready"
    DONE = "done"
    ABORTED = "aborted"


class AggregatorPhase(Enum):
    """What the aggregator waits for."""

    IDLE = "idle"
    COLLECT_CONTEXT = "collect-context"
    COLLECT_COMMITS = "collect-commits"
    COLLECT_ROSTER = "collect-roster"
    COLLECT_UPLOADS = "collect-uploads"
    COLLECT_ATTESTATION = "collect-attestation"
    COLLECT_OPENING = "collect-opening"
    DONE = "done"
    ABORTED = "aborted"


CLIENT_TRANSITIONS: Final = {
    (ClientPhase.IDLE, Kind.CONFIG): ClientPhase.JOINED,
    (ClientPhase.JOINED, Kind.CONTEXT): ClientPhase.COMMITTED,
    (ClientPhase.COMMITTED, Kind.ROSTER): ClientPhase.UPLOADED,
    (ClientPhase.UPLOADED, Kind.RECEIPT): ClientPhase.DONE,
}
"""{(phase, received kind): next phase}; absent means abort."""

AUTHORITY_TRANSITIONS: Final = {
    (AuthorityPhase.IDLE, Kind.CONFIG): AuthorityPhase.KEYED,
    (AuthorityPhase.KEYED, Kind.PROPOSAL): AuthorityPhase.FIXED,
    (AuthorityPhase.FIXED, Kind.UPLOAD): AuthorityPhase.FIXED,
    (AuthorityPhase.FIXED, Kind.SEALED): AuthorityPhase.DONE,
}
"""As above. UPLOAD only where the authority is the one who re-adds."""

AUDITOR_TRANSITIONS: Final = {
    (AuditorPhase.IDLE, Kind.CONFIG): AuditorPhase.WAITING,
    (AuditorPhase.WAITING, Kind.ROSTER): AuditorPhase.READY,
    (AuditorPhase.READY, Kind.UPLOAD): AuditorPhase.READY,
    (AuditorPhase.READY, Kind.SEALED): AuditorPhase.DONE,
}
"""As above."""

AGGREGATOR_COLLECTS: Final = {
    AggregatorPhase.COLLECT_CONTEXT: Kind.CONTEXT,
    AggregatorPhase.COLLECT_COMMITS: Kind.COMMIT,
    AggregatorPhase.COLLECT_ROSTER: Kind.ROSTER,
    AggregatorPhase.COLLECT_UPLOADS: Kind.UPLOAD,
    AggregatorPhase.COLLECT_ATTESTATION: Kind.ATTESTATION,
    AggregatorPhase.COLLECT_OPENING: Kind.OPENING,
}
"""{phase: the kind that it accepts}; everything else is refused."""


class AbortCode(Enum):
    """Why a round ended without a sum; the value is ``RoundAborted.code``."""

    BAD_SIGNATURE = "BadSignature"
    COHORT_TOO_SMALL = "CohortTooSmall"
    CONTEXT_EXPIRED = "ContextExpired"
    DEADLINE = "Deadline"
    DIFFERENCING = "Differencing"
    EQUIVOCATION = "Equivocation"
    INFEASIBLE_PARAMETERS = "InfeasibleParameters"
    LOCAL_FAULT = "LocalFault"
    MALFORMED = "Malformed"
    MODEL_MISMATCH = "ModelMismatch"
    PERMIT_MISSING = "PermitMissing"
    PLAN_MISMATCH = "PlanMismatch"
    REGISTRY_MISMATCH = "RegistryMismatch"
    ROSTER_MISMATCH = "RosterMismatch"
    SUM_MISMATCH = "SumMismatch"
    THRESHOLD_NOT_MET = "ThresholdNotMet"
    UNEXPECTED_MESSAGE = "UnexpectedMessage"
    UNKNOWN_IDENTITY = "UnknownIdentity"
    VAULT_FAULT = "VaultFault"
    WRONG_TIME = "WrongTime"
