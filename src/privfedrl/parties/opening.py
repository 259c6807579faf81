"""What every protocol checks before a round begins: that the pieces fit and the time is now.

Guarantee: a participant whose identity, role, key or cohort is not the registry's is never built,
and a round that claims to be opened more than an hour from the reader's own clock, or by somebody
who was not valid then, is refused.
"""

from __future__ import annotations

from typing import Final, Protocol

from privfedrl.errors import ConfigurationError, LocalProtocolError, RoundAborted
from privfedrl.parties.binding import DIGEST_BYTES
from privfedrl.parties.identity import Identity, Registry, Role

__all__ = ["CLOCK_TOLERANCE_S", "Opened", "check_arguments", "check_pinned", "check_time"]

CLOCK_TOLERANCE_S: Final = 3600
"""How far a config's ``opened_at`` may be from a reader's own clock, either way.

An hour forgives badly kept clocks; expired identities are usually expired for longer.
"""


class Opened(Protocol):
    """The fields of a config that this module looks at."""

    @property
    def sender(self) -> str:
        """Who opened the round."""

    @property
    def opened_at(self) -> int:
        """When, in seconds since 1970-01-01 UTC."""


class _Cohort(Protocol):
    @property
    def num_clients(self) -> int: ...


def check_pinned(
    identity: Identity, registry: Registry, parameters: _Cohort, plan_digest: bytes, *, role: Role
) -> None:
    """Refuse to build a participant from pieces that do not fit together (ConfigurationError)."""
    problems = []
    if identity.name not in registry or registry.role_of(identity.name) != role:
        problems.append(f"identity {identity.name} must be registered as {role}")
    elif registry.verify_key_of(identity.name) != identity.verify_key:
        problems.append(f"identity {identity.name} has another verify key in the registry")
    if len(registry.agents) != parameters.num_clients:
        problems.append(
            f"num_clients must be the number of registered agents, {len(registry.agents)}, "
            f"got {parameters.num_clients}"
        )
    if not isinstance(plan_digest, bytes) or len(plan_digest) != DIGEST_BYTES:
        problems.append(f"plan_digest must be {DIGEST_BYTES} bytes")
    if problems:
        raise ConfigurationError("; ".join(problems), problems=tuple(problems))


def check_arguments(config: object) -> None:
    """Refuse to sign a config with a field out of its range (LocalProtocolError)."""
    for name in ("task_id", "model_digest", "previous_transcript", "round_seed"):
        value = getattr(config, name)
        if not isinstance(value, bytes) or len(value) != DIGEST_BYTES:
            raise LocalProtocolError(f"{name} must be {DIGEST_BYTES} bytes")
    for name, bits in (("round", 63), ("attempt", 32), ("opened_at", 53)):
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**bits:
            raise LocalProtocolError(f"{name} must be an integer from 0 to 2^{bits} - 1")


def check_time(config: Opened, *, registry: Registry, now: int) -> None:
    """Refuse a round that claims another time than ``now``, or whose coordinator has expired.

    Raises:
        RoundAborted: code "WrongTime" or "UnknownIdentity".
    """
    if abs(config.opened_at - now) > CLOCK_TOLERANCE_S:
        raise RoundAborted(
            "WrongTime",
            f"opened_at must be within {CLOCK_TOLERANCE_S} s of this participant's clock, "
            f"it is {config.opened_at - now:+d} s off",
        )
    if not registry.valid_at(config.sender, config.opened_at):
        raise RoundAborted("UnknownIdentity", f"{config.sender} is not valid at opened_at")
