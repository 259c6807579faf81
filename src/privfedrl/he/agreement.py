"""What the four roles of a round check alike.

Guarantee: a config, context or roster that one role accepts, every other role with the same plan,
registry and clock accepts as well.

Notation: cfg = digest of the config, key = digest of cfg and the round's public key, roster =
digest of who may contribute and of what each has committed to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from privfedrl.errors import (
    ConfigurationError,
    LocalProtocolError,
    RemoteProtocolError,
    RoundAborted,
)
from privfedrl.he.frames import SUITE, Context, FrameReader, HEConfig, Kind, Roster, config_digest
from privfedrl.he.parameters import HEParameters, RingVector
from privfedrl.he.phases import AbortCode
from privfedrl.parties.binding import DIGEST_BYTES, digest
from privfedrl.parties.identity import Registry
from privfedrl.parties.members import Members
from privfedrl.parties.opening import check_time

__all__ = [
    "NO_HEAD",
    "FixedRoster",
    "abort",
    "check_config",
    "check_context",
    "check_contributors",
    "check_fresh",
    "check_roles",
    "checked_head",
    "little_endian",
    "names_of",
    "read_config",
    "read_members",
    "read_roster",
]

NO_HEAD = bytes(DIGEST_BYTES)
"""Stands for no ledger entry; no permit."""


def abort(code: AbortCode, message: str, *, evidence: tuple[bytes, ...] = ()) -> RoundAborted:
    """The error that ends a round with ``code``."""
    return RoundAborted(code.value, message, evidence=evidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedRoster:
    """Who may contribute, and the digest of the ciphertexts that each has promised."""

    members: Members
    commitments: Mapping[str, bytes]
    digest: bytes


def read_config(
    data: bytes, *, registry: Registry, parameters: HEParameters, plan_digest: bytes, now: int
) -> tuple[HEConfig, bytes]:
    """The verified config of a round and its digest, before anything is trained or sent.

    Args:
        now: the reader's own time in seconds since 1970-01-01 UTC.
    Raises:
        RemoteProtocolError, AuthenticationFailed: not a config signed by the coordinator.
        RoundAborted: signed, but for another plan, registry, time or other parameters.
    """
    frame = FrameReader(registry, parameters).read(data, frozenset({Kind.CONFIG}))
    config: HEConfig = frame.message
    check_config(config, registry=registry, parameters=parameters, plan_digest=plan_digest)
    check_time(config, registry=registry, now=now)
    return config, config_digest(frame.payload)


def check_config(
    config: HEConfig, *, registry: Registry, parameters: HEParameters, plan_digest: bytes
) -> None:
    """Compare an authentic config with what this participant has pinned."""
    if config.plan_digest != plan_digest:
        raise abort(AbortCode.PLAN_MISMATCH, "the config names another plan than the pinned one")
    if config.suite != SUITE:
        raise abort(AbortCode.INFEASIBLE_PARAMETERS, f"suite must be {SUITE}, got {config.suite}")
    if config.registry_digest != registry.digest:
        raise abort(AbortCode.REGISTRY_MISMATCH, "the config names another registry")
    pinned = parameters.canonical_bytes(), parameters.digest
    if (config.parameters, config.parameters_digest) != pinned:
        raise abort(AbortCode.INFEASIBLE_PARAMETERS, "the config's parameters are not the plan's")


def check_context(
    context: Context, *, config: HEConfig, registry: Registry, parameters: HEParameters, now: int
) -> None:
    """Refuse a public key that is stale, or whose owner is not valid (RoundAborted)."""
    if context.not_after != config.opened_at + parameters.lifetime_s:
        raise abort(AbortCode.CONTEXT_EXPIRED, "the context has another end than the plan says")
    check_fresh(config, parameters, now)
    if not registry.valid_at(context.sender, config.opened_at):
        raise abort(AbortCode.UNKNOWN_IDENTITY, f"{context.sender} is not valid at opened_at")


def check_fresh(config: HEConfig, parameters: HEParameters, now: int) -> None:
    """Refuse to go on with a round whose time is over (RoundAborted)."""
    late = now - (config.opened_at + parameters.lifetime_s)
    if late > 0:
        raise abort(AbortCode.CONTEXT_EXPIRED, f"the round's time was over {late} s ago")


def read_members(data: bytes, registry: Registry, *, floor: int) -> Members:
    """A set of registered agents of at least ``floor``; else RoundAborted."""
    try:
        members = Members.from_bytes(data, len(registry.agents))
    except RemoteProtocolError as error:
        raise abort(AbortCode.ROSTER_MISMATCH, str(error)) from error
    if len(members) < floor:
        raise abort(
            AbortCode.COHORT_TOO_SMALL, f"a set must have >= {floor} members, got {len(members)}"
        )
    return members


def read_roster(
    message: Roster, *, config: HEConfig, registry: Registry, parameters: HEParameters
) -> FixedRoster:
    """The roster as a value.

    Raises:
        RoundAborted: too few members, one that is not valid, or not one digest each.
    """
    members = read_members(message.members, registry, floor=parameters.floor)
    names = names_of(members, registry)
    if not all(registry.valid_at(name, config.opened_at) for name in names):
        raise abort(AbortCode.UNKNOWN_IDENTITY, "the roster names somebody who is not valid")
    if len(message.commitments) != DIGEST_BYTES * len(names):
        raise abort(AbortCode.ROSTER_MISMATCH, f"the roster must hold {len(names)} digests")
    parts = (
        message.commitments[at : at + DIGEST_BYTES]
        for at in range(0, len(message.commitments), DIGEST_BYTES)
    )
    return FixedRoster(
        members=members,
        commitments=dict(zip(names, parts, strict=True)),
        digest=digest("he-roster", message.cfg, message.key, message.members, message.commitments),
    )


def check_contributors(data: bytes, roster: FixedRoster, registry: Registry, floor: int) -> Members:
    """A set of contributors: large enough, and all in the roster; else RoundAborted."""
    contributors = read_members(data, registry, floor=floor)
    if not contributors <= roster.members:
        raise abort(AbortCode.ROSTER_MISMATCH, "somebody outside the roster contributed")
    return contributors


def names_of(members: Members, registry: Registry) -> tuple[str, ...]:
    """The members' names, sorted."""
    return tuple(registry.agents[index] for index in members.indices())


def check_roles(registry: Registry, parameters: HEParameters) -> None:
    """Refuse a registry without a party that these parameters need (ConfigurationError)."""
    needed = {"key-authority": registry.key_authority}
    if parameters.readding == "auditor":
        needed["auditor"] = registry.auditor
    problems = tuple(
        f"the registry must name one {role} for homomorphic aggregation"
        for role, name in needed.items()
        if name is None
    )
    if problems:
        raise ConfigurationError("; ".join(problems), problems=problems)


def checked_head(hook: str, head: object) -> bytes:
    """The head of a ledger as a caller's hook gave it: 32 bytes that name an entry.

    Raises:
        LocalProtocolError: it gave something else; nothing is opened without a charge.
    """
    if not isinstance(head, bytes) or len(head) != DIGEST_BYTES or head == NO_HEAD:
        raise LocalProtocolError(f"{hook} must give the {DIGEST_BYTES} bytes of a ledger's head")
    return head


def little_endian(vector: RingVector) -> bytes:
    """The words of a vector as they are sent and hashed."""
    return vector.astype(vector.dtype.newbyteorder("<"), copy=False).tobytes()
