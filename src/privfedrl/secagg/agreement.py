"""What the participants of a round agree on, and the digests that pin it.

Guarantee: a client and its coordinator derive the same keys only if config (plan, model, registry,
parameters, round), roster, commitments and survivors are the same on both sides.

Notation: cfg = digest of the config, U1 = the roster, U2/U3 = who shared keys / sent a vector.
index = position among the registry's agents, rank = position among the members of U1; the Shamir
point x of a member is rank + 1. neighbours(i) mask with i; holders(i) hold the shares of i and sign
for i: all of U1 on a complete graph, the neighbours without i on a sparse one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from privfedrl.errors import (
    ConfigurationError,
    ProtocolError,
    RemoteProtocolError,
    RoundAborted,
)
from privfedrl.parties.binding import digest, join, label
from privfedrl.parties.identity import Registry
from privfedrl.parties.members import Members
from privfedrl.parties.opening import check_time
from privfedrl.secagg.graph import Graph
from privfedrl.secagg.merkle import root_from_proof
from privfedrl.secagg.messages import Advertise, FrameReader, Roster, RoundConfig
from privfedrl.secagg.parameters import SecAggParameters, Topology
from privfedrl.secagg.phases import AbortCode
from privfedrl.secagg.sizes import MessageType
from privfedrl.secagg.suite import Suite, suite_of

__all__ = [
    "Cohort",
    "SignedSet",
    "abort",
    "check_advert",
    "check_config",
    "check_subset",
    "commitment",
    "feasible",
    "members_of",
    "proved_root",
    "read_config",
    "read_roster",
    "receipt_text",
    "roster_digest",
    "shared_digest",
    "sum_digest",
    "survivors_digest",
    "too_small",
    "vector_digest",
]


def abort(code: AbortCode, message: str, *, evidence: tuple[bytes, ...] = ()) -> RoundAborted:
    """The error that ends a round with ``code``."""
    return RoundAborted(code.value, message, evidence=evidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedSet:
    """U2 or U3 as the coordinator announced it: ``root`` is over one digest per member."""

    members: Members
    root: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """U1, who masks with whom in it, and the one-round public keys that the owner has seen.

    A client holds the keys and Shamir points of itself and its neighbours, the coordinator
    everybody's.
    """

    cfg: bytes
    roster: bytes
    registry: Registry
    members: Members
    topology: Topology
    graph: Graph
    share_keys: Mapping[str, bytes]
    mask_keys: Mapping[str, bytes]
    points: Mapping[str, int]
    suite: Suite
    _near: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def threshold(self) -> int:
        """t: how many holders must answer for each member."""
        return self.topology.threshold

    def rank(self, name: str) -> int:
        """Position of ``name`` in U1, from 0."""
        return self.members.rank(self.registry.index_of(name))

    def neighbours(self, name: str) -> tuple[str, ...]:
        """Who masks with ``name``, in order."""
        near = self._near.get(name)
        if near is None:
            indices, agents = self.members.indices(), self.registry.agents
            ranks = self.graph.neighbours(self.rank(name))
            near = self._near[name] = tuple([agents[indices[rank]] for rank in ranks])
        return near

    def holders(self, name: str) -> tuple[str, ...]:
        """Who holds shares of ``name`` and whose signatures count for it, in order."""
        near = self.neighbours(name)
        return near if self.topology.server else tuple(sorted((*near, name)))

    @classmethod
    def of(
        cls,
        *,
        cfg: bytes,
        suite: Suite,
        registry: Registry,
        members: Members,
        topology: Topology,
        root: bytes,
        adverts: Iterable[Advertise],
    ) -> Cohort:
        """The cohort of ``members`` whose adverts have the Merkle root ``root``."""
        roster = roster_digest(cfg, members, root)
        known = tuple(adverts)
        ranks = {advert.sender: members.rank(registry.index_of(advert.sender)) for advert in known}
        return cls(
            cfg=cfg,
            roster=roster,
            registry=registry,
            members=members,
            topology=topology,
            graph=topology.graph(roster),
            share_keys={advert.sender: advert.share_key for advert in known},
            mask_keys={advert.sender: advert.mask_key for advert in known},
            points={name: rank + 1 for name, rank in ranks.items()},
            suite=suite,
        )


def read_config(
    data: bytes, *, registry: Registry, parameters: SecAggParameters, plan_digest: bytes, now: int
) -> RoundConfig:
    """The verified config of a round, before anything is trained or sent.

    Args:
        now: the reader's own time in seconds since 1970-01-01 UTC.
    Raises:
        RemoteProtocolError, AuthenticationFailed: not a config signed by the coordinator.
        RoundAborted: signed, but for another plan, registry, suite, time or other parameters.
    """
    frame = FrameReader(registry, parameters).read(data, frozenset({MessageType.CONFIG}))
    config: RoundConfig = frame.message
    check_config(config, registry=registry, parameters=parameters, plan_digest=plan_digest)
    check_time(config, registry=registry, now=now)
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


def members_of(
    data: bytes, *, registry: Registry, within: Members | None, floor: int, code: AbortCode
) -> Members:
    """A set that is well-formed, within an earlier one and large enough; else RoundAborted."""
    try:
        members = Members.from_bytes(data, len(registry.agents))
    except RemoteProtocolError as error:
        raise abort(code, str(error)) from error
    check_subset(members, within=within, floor=floor, code=code)
    return members


def check_subset(members: Members, *, within: Members | None, floor: int, code: AbortCode) -> None:
    """Refuse a set that is not within an earlier one, or below ``floor`` (RoundAborted)."""
    if within is not None and not members <= within:
        raise abort(code, "the set must be within the previous one")
    if len(members) < floor:
        raise too_small("set", len(members), floor)


def read_roster(
    message: Roster,
    *,
    cfg: bytes,
    config: RoundConfig,
    reader: FrameReader,
    registry: Registry,
    parameters: SecAggParameters,
) -> Cohort:
    """Verify U1 as the coordinator shows it to ``message.recipient``, and build the cohort.

    Raises:
        RoundAborted: the set is too small, or a signature, name, order, key, proof or neighbour is
            wrong.
    """
    members = members_of(
        message.members,
        registry=registry,
        within=None,
        floor=parameters.floor,
        code=AbortCode.ROSTER_MISMATCH,
    )
    if members.mask & ~_valid_mask(registry, config.opened_at):
        raise abort(
            AbortCode.UNKNOWN_IDENTITY, "the roster names somebody who is not valid at opened_at"
        )
    topology = feasible(parameters, len(members))
    suite = suite_of(config.suite)
    adverts = [
        _read_advert(frame, cfg=cfg, suite=suite, reader=reader) for frame in message.adverts
    ]
    names = [advert.sender for advert in adverts]
    if names != sorted(set(names)):
        raise abort(AbortCode.ROSTER_MISMATCH, "adverts must be sorted, one per name")
    indices = [registry.index_of(name) for name in names]
    if not all(index in members for index in indices):
        raise abort(AbortCode.ROSTER_MISMATCH, "an advert is shown of somebody outside the roster")
    keys = [key for advert in adverts for key in (advert.share_key, advert.mask_key)]
    if len(set(keys)) != len(keys):
        raise abort(AbortCode.DUPLICATE_KEY, "two keys of the roster are equal")
    leaves = dict(zip(map(members.rank, indices), message.adverts, strict=True))
    cohort = Cohort.of(
        cfg=cfg,
        suite=suite,
        registry=registry,
        members=members,
        topology=topology,
        root=proved_root(leaves, len(members), message.proof, code=AbortCode.ROSTER_MISMATCH),
        adverts=adverts,
    )
    if registry.index_of(message.recipient) not in members or tuple(names) != tuple(
        sorted((*cohort.neighbours(message.recipient), message.recipient))
    ):
        raise abort(AbortCode.ROSTER_MISMATCH, "the adverts are not those of the neighbours")
    return cohort


def feasible(parameters: SecAggParameters, roster_size: int) -> Topology:
    """The topology of a roster of that size, if it keeps what the parameters promise.

    Raises:
        RoundAborted: no graph meets the bounds, it takes more neighbours than frames have room
            for, or it lets fewer than min_honest honest clients be isolated.
    """
    try:
        topology = parameters.topology(roster_size)
    except ConfigurationError as error:
        raise abort(AbortCode.INFEASIBLE_PARAMETERS, str(error)) from error
    if topology.degree > parameters.max_neighbours:
        raise abort(
            AbortCode.INFEASIBLE_PARAMETERS,
            f"a roster of {roster_size} takes {topology.degree} neighbours, "
            f"at most {parameters.max_neighbours} are allowed",
        )
    if topology.smallest_opened < parameters.min_honest:
        raise abort(
            AbortCode.INFEASIBLE_PARAMETERS,
            f"a roster of {roster_size} would let {topology.smallest_opened} honest clients be "
            f"isolated, min_honest is {parameters.min_honest}",
        )
    return topology


@lru_cache(maxsize=4)
def _valid_mask(registry: Registry, when: int) -> int:
    """Who is valid then, as a mask; the many clients of a simulation ask for the same one."""
    agents = registry.agents
    valid = (index for index, name in enumerate(agents) if registry.valid_at(name, when))
    return Members.of(valid, len(agents)).mask


def _read_advert(frame: bytes, *, cfg: bytes, suite: Suite, reader: FrameReader) -> Advertise:
    try:
        advert: Advertise = reader.read(frame, frozenset({MessageType.ADVERTISE})).message
        check_advert(advert, cfg=cfg, suite=suite)
    except ProtocolError as error:
        raise abort(AbortCode.BAD_SIGNATURE, f"an advert was refused: {error}") from error
    return advert


def check_advert(advert: Advertise, *, cfg: bytes, suite: Suite) -> None:
    """Refuse an authentic advert of another round or with unusable keys (RemoteProtocolError)."""
    if advert.cfg != cfg:
        raise RemoteProtocolError("advert belongs to another round")
    suite.check_public_key(advert.share_key)
    suite.check_public_key(advert.mask_key)
    if advert.share_key == advert.mask_key:
        raise RemoteProtocolError("share key and mask key must differ")


def proved_root(leaves: Mapping[int, bytes], count: int, proof: bytes, *, code: AbortCode) -> bytes:
    """The Merkle root that ``proof`` leads to; a proof of the wrong form aborts with ``code``."""
    try:
        return root_from_proof(leaves, count, proof)
    except RemoteProtocolError as error:
        raise abort(code, str(error)) from error


def too_small(what: str, size: int, floor: int) -> RoundAborted:
    """The abort of a set below its floor."""
    return abort(
        AbortCode.COHORT_TOO_SMALL, f"{what} must have at least {floor} members, got {size}"
    )


def roster_digest(cfg: bytes, members: Members, root: bytes) -> bytes:
    """Pins U1 and every advert in it."""
    return digest("roster", cfg, members.to_bytes(), root)


def commitment(roster: bytes, name: str, seed: bytes) -> bytes:
    """com_i: binds the owner to its self-mask seed; hiding, as the seed is 32 uniform bytes."""
    return digest("b", roster, name.encode("ascii"), seed)


def shared_digest(roster: bytes, shared: SignedSet) -> bytes:
    """Pins U2 and every commitment in it."""
    return digest("shared", roster, shared.members.to_bytes(), shared.root)


def receipt_text(cfg: bytes, roster: bytes, shared: bytes) -> bytes:
    """What a client signs beside its masked vector: the set U2 that it has masked for.

    Whoever holds its shares gives away that of its self mask only to a coordinator that proves the
    same U2: a consistency signature proves it too, but a client may vanish before it gives one.
    """
    return label("receipt") + join(cfg, roster, shared)


def survivors_digest(roster: bytes, shared: bytes, survivors: SignedSet) -> bytes:
    """Pins U3 and every masked vector in it, on top of U2: what clients sign in M4."""
    return digest("survivors", roster, shared, survivors.members.to_bytes(), survivors.root)


def vector_digest(roster: bytes, name: str, vector: bytes | memoryview) -> bytes:
    """Pins one masked vector to its sender and round."""
    return digest("vector", roster, name.encode("ascii"), vector)


def sum_digest(cfg: bytes, vector: bytes) -> bytes:
    """Pins the opened sum (little-endian words) to its round."""
    return digest("sum", cfg, vector)
