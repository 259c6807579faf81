"""What the participants of a round agree on, and the digests that pin it.

Guarantee: a client and its coordinator derive the same keys only if config (plan, model, registry,
parameters, round), roster, commitments and survivors are the same on both sides.

Notation: cfg = digest of the config, U1 = the roster, U2/U3 = who shared keys / sent a vector.
Index = position in the sorted roster; the Shamir point x is index + 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from privfedrl.errors import ConfigurationError, ProtocolError, RemoteProtocolError, RoundAborted
from privfedrl.secagg.binding import DIGEST_BYTES, digest
from privfedrl.secagg.identity import Identity, Registry, Role
from privfedrl.secagg.messages import Advertise, FrameReader, RoundConfig
from privfedrl.secagg.parameters import SecAggParameters
from privfedrl.secagg.phases import AbortCode
from privfedrl.secagg.sizes import MessageType
from privfedrl.secagg.suite import Suite, suite_of

__all__ = [
    "Cohort",
    "Pairs",
    "abort",
    "check_advert",
    "check_config",
    "check_pairs",
    "check_pinned",
    "commitment",
    "read_config",
    "read_roster",
    "shared_digest",
    "sum_digest",
    "survivors_digest",
    "too_small",
    "vector_digest",
]

Pairs = tuple[tuple[str, bytes], ...]
"""Names in sorted order, each with a 32-byte digest."""


def abort(code: AbortCode, message: str) -> RoundAborted:
    """The error that ends a round with ``code``."""
    return RoundAborted(code.value, message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """U1: the members of a round in roster order, with their one-round public keys."""

    cfg: bytes
    roster: bytes
    names: tuple[str, ...]
    share_keys: Mapping[str, bytes]
    mask_keys: Mapping[str, bytes]
    suite: Suite

    def point(self, name: str) -> int:
        """The Shamir point of ``name``: its index plus one."""
        return self.names.index(name) + 1

    @classmethod
    def of(
        cls, cfg: bytes, suite: Suite, frames: Sequence[bytes], adverts: Sequence[Advertise]
    ) -> Cohort:
        """The cohort of adverts that are verified, distinct and sorted by sender."""
        return cls(
            cfg=cfg,
            roster=digest("roster", cfg, len(frames).to_bytes(4, "big"), *frames),
            names=tuple(advert.sender for advert in adverts),
            share_keys={advert.sender: advert.share_key for advert in adverts},
            mask_keys={advert.sender: advert.mask_key for advert in adverts},
            suite=suite,
        )


def check_pinned(
    identity: Identity,
    registry: Registry,
    parameters: SecAggParameters,
    plan_digest: bytes,
    *,
    role: Role,
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


def read_config(
    data: bytes, *, registry: Registry, parameters: SecAggParameters, plan_digest: bytes
) -> RoundConfig:
    """The verified config of a round, before anything is trained or sent.

    Raises:
        RemoteProtocolError, AuthenticationFailed: not a config signed by the coordinator.
        RoundAborted: signed, but for another plan, registry, suite or other parameters.
    """
    frame = FrameReader(registry, parameters).read(data, frozenset({MessageType.CONFIG}))
    config: RoundConfig = frame.message
    check_config(config, registry=registry, parameters=parameters, plan_digest=plan_digest)
    return config


def check_config(
    config: RoundConfig, *, registry: Registry, parameters: SecAggParameters, plan_digest: bytes
) -> None:
    """Compare an authentic config with what this participant has pinned."""
    if config.plan_digest != plan_digest:
        raise abort(AbortCode.PLAN_MISMATCH, "the config names another plan than the pinned one")
    if config.registry_digest != registry.digest:
        raise abort(AbortCode.REGISTRY_MISMATCH, "the config names another registry")
    if config.parameters != parameters.canonical_bytes():
        raise abort(AbortCode.INFEASIBLE_PARAMETERS, "the config's parameters are not the plan's")
    try:
        suite_of(config.suite)
    except RemoteProtocolError as error:
        raise abort(AbortCode.INFEASIBLE_PARAMETERS, str(error)) from error


def read_roster(
    frames: Sequence[bytes],
    *,
    cfg: bytes,
    suite: Suite,
    reader: FrameReader,
    parameters: SecAggParameters,
) -> Cohort:
    """Verify the adverts of U1 and build the cohort.

    Raises:
        RoundAborted: a signature, name, order or key is wrong, or the cohort is too small.
    """
    adverts = []
    for frame in frames:
        try:
            advert: Advertise = reader.read(frame, frozenset({MessageType.ADVERTISE})).message
            check_advert(advert, cfg=cfg, suite=suite)
        except ProtocolError as error:
            raise abort(AbortCode.BAD_SIGNATURE, f"an advert was refused: {error}") from error
        adverts.append(advert)
    names = [advert.sender for advert in adverts]
    if names != sorted(set(names)):
        raise abort(AbortCode.ROSTER_MISMATCH, "roster must be sorted and name everybody once")
    keys = [key for advert in adverts for key in (advert.share_key, advert.mask_key)]
    if len(set(keys)) != len(keys):
        raise abort(AbortCode.DUPLICATE_KEY, "two keys of the roster are equal")
    if len(names) < parameters.floor:
        raise too_small("roster", len(names), parameters)
    return Cohort.of(cfg, suite, frames, adverts)


def check_advert(advert: Advertise, *, cfg: bytes, suite: Suite) -> None:
    """Refuse an authentic advert of another round or with unusable keys (RemoteProtocolError)."""
    if advert.cfg != cfg:
        raise RemoteProtocolError("advert belongs to another round")
    suite.check_public_key(advert.share_key)
    suite.check_public_key(advert.mask_key)
    if advert.share_key == advert.mask_key:
        raise RemoteProtocolError("share key and mask key must differ")


def check_pairs(
    pairs: Pairs, *, within: Sequence[str], code: AbortCode, parameters: SecAggParameters
) -> tuple[str, ...]:
    """The names of a sorted, duplicate-free, large enough subset of ``within``; else abort."""
    names = tuple(name for name, _ in pairs)
    if list(names) != sorted(set(names)) or not set(names) <= set(within):
        raise abort(code, "the set must be sorted, without repeats and within the previous one")
    if len(names) < parameters.floor:
        raise too_small("set", len(names), parameters)
    return names


def too_small(what: str, size: int, parameters: SecAggParameters) -> RoundAborted:
    """The abort of a set below the floor."""
    return abort(
        AbortCode.COHORT_TOO_SMALL,
        f"{what} must have >= max(threshold, min_clients) = {parameters.floor} members, got {size}",
    )


def commitment(roster: bytes, name: str, seed: bytes) -> bytes:
    """com_i: binds the owner to its self-mask seed; hiding, as the seed is 32 uniform bytes."""
    return digest("b", roster, name.encode("ascii"), seed)


def shared_digest(roster: bytes, shared: Pairs) -> bytes:
    """Pins U2 and every commitment in it."""
    return digest("shared", roster, *_flat(shared))


def survivors_digest(roster: bytes, shared: bytes, survivors: Pairs) -> bytes:
    """Pins U3 and every masked vector in it, on top of U2: what clients sign in M4."""
    return digest("survivors", roster, shared, *_flat(survivors))


def vector_digest(roster: bytes, name: str, vector: bytes) -> bytes:
    """Pins one masked vector to its sender and round."""
    return digest("vector", roster, name.encode("ascii"), vector)


def sum_digest(cfg: bytes, vector: bytes) -> bytes:
    """Pins the opened sum (little-endian words) to its round."""
    return digest("sum", cfg, vector)


def _flat(pairs: Pairs) -> list[bytes]:
    return [part for name, value in pairs for part in (name.encode("ascii"), value)]
