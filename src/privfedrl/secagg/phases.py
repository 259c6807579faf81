"""The two state machines of a round, as tables that the code reads.

Guarantee: a message that is not in the table of its receiver never changes the receiver for the
better: a client that gets one from its coordinator aborts for good, a coordinator refuses it.

    client   IDLE -CONFIG-> ADVERTISED -ROSTER-> SHARED -DELIVERY-> MASKED -SURVIVORS-> AGREED
             -UNMASK_REQUEST-> DONE
    server   COLLECT_ADVERTS -> COLLECT_SHARES -> COLLECT_MASKED -> COLLECT_CONSISTENCY
             -> COLLECT_UNMASK -> DONE, one step when everybody answered or the phase is closed

ABORTED and DONE are final, and a participant in them holds no key.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from privfedrl.secagg.sizes import MessageType

__all__ = [
    "CLIENT_TRANSITIONS",
    "SERVER_COLLECTS",
    "SERVER_NEXT",
    "AbortCode",
    "ClientPhase",
    "ServerPhase",
]


class ClientPhase(Enum):
    """Where a client is, named for what it has sent last."""

    IDLE = "idle"
    ADVERTISED = "advertised"
    SHARED = "shared"
    MASKED = "masked"
    AGREED = "agreed"
    DONE = "done"
    ABORTED = "aborted"


class ServerPhase(Enum):
    """Where a coordinator is, named for what it waits for."""

    IDLE = "idle"
    COLLECT_ADVERTS = "collect-adverts"
    COLLECT_SHARES = "collect-shares"
    COLLECT_MASKED = "collect-masked"
    COLLECT_CONSISTENCY = "collect-consistency"
    COLLECT_UNMASK = "collect-unmask"
    DONE = "done"
    ABORTED = "aborted"


CLIENT_TRANSITIONS: Final = {
    (ClientPhase.IDLE, MessageType.CONFIG): ClientPhase.ADVERTISED,
    (ClientPhase.ADVERTISED, MessageType.ROSTER): ClientPhase.SHARED,
    (ClientPhase.SHARED, MessageType.DELIVERY): ClientPhase.MASKED,
    (ClientPhase.MASKED, MessageType.SURVIVORS): ClientPhase.AGREED,
    (ClientPhase.AGREED, MessageType.UNMASK_REQUEST): ClientPhase.DONE,
}
"""{(phase, received type): next phase}; absent means abort."""

SERVER_COLLECTS: Final = {
    (ServerPhase.COLLECT_ADVERTS, MessageType.ADVERTISE): ServerPhase.COLLECT_ADVERTS,
    (ServerPhase.COLLECT_SHARES, MessageType.SHARES): ServerPhase.COLLECT_SHARES,
    (ServerPhase.COLLECT_MASKED, MessageType.MASKED): ServerPhase.COLLECT_MASKED,
    (ServerPhase.COLLECT_CONSISTENCY, MessageType.CONSISTENCY): ServerPhase.COLLECT_CONSISTENCY,
    (ServerPhase.COLLECT_UNMASK, MessageType.UNMASK): ServerPhase.COLLECT_UNMASK,
}
"""{(phase, received type): same phase}; absent means that the message is refused."""

SERVER_NEXT: Final = {
    ServerPhase.COLLECT_ADVERTS: ServerPhase.COLLECT_SHARES,
    ServerPhase.COLLECT_SHARES: ServerPhase.COLLECT_MASKED,
    ServerPhase.COLLECT_MASKED: ServerPhase.COLLECT_CONSISTENCY,
    ServerPhase.COLLECT_CONSISTENCY: ServerPhase.COLLECT_UNMASK,
    ServerPhase.COLLECT_UNMASK: ServerPhase.DONE,
}
"""What follows when a phase is complete or closed."""


class AbortCode(Enum):
    """Why a round ended without a result; the value is ``RoundAborted.code``."""

    BAD_SIGNATURE = "BadSignature"
    COHORT_TOO_SMALL = "CohortTooSmall"
    DEADLINE = "Deadline"
    DIFFERENCING = "Differencing"
    DUPLICATE_KEY = "DuplicateKey"
    EQUIVOCATION = "Equivocation"
    INFEASIBLE_PARAMETERS = "InfeasibleParameters"
    LOCAL_FAULT = "LocalFault"
    MALFORMED = "Malformed"
    MODEL_MISMATCH = "ModelMismatch"
    PLAN_MISMATCH = "PlanMismatch"
    REGISTRY_MISMATCH = "RegistryMismatch"
    REPLAY = "Replay"
    ROSTER_MISMATCH = "RosterMismatch"
    SHARE_INCONSISTENT = "ShareInconsistent"
    SHARE_REJECTED = "ShareRejected"
    SURVIVOR_MISMATCH = "SurvivorMismatch"
    THRESHOLD_NOT_MET = "ThresholdNotMet"
    UNEXPECTED_MESSAGE = "UnexpectedMessage"
    UNKNOWN_IDENTITY = "UnknownIdentity"
    WRONG_TIME = "WrongTime"
