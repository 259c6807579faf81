"""The key authority of a round: it makes the key, opens one sum, and ends the key.

Guarantee: one key per (task, round, attempt), in a process of its own, used for at most one
decryption; before it, the set of contributors passed the policy, was recorded durably and was
charged to the authority's own ledger; after it, or after anything that went wrong, the key is gone.

What the policy cannot see: whether a sum is one. Without re-adding (``HEParameters.readding``) an
aggregator that lies can have a single upload opened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from privfedrl.he.agreement import (
    NO_HEAD,
    FixedRoster,
    abort,
    check_contributors,
    check_fresh,
    checked_head,
    little_endian,
    names_of,
    read_roster,
)
from privfedrl.he.digests import key_digest, sealed_digest, sum_digest
from privfedrl.he.frames import (
    Attestation,
    Commit,
    Context,
    DecryptionReceipt,
    HEConfig,
    Kind,
    Opening,
    Proposal,
    Roster,
    Sealed,
    encode_frame,
)
from privfedrl.he.lattice import SEAL_VERSION
from privfedrl.he.parameters import HEParameters
from privfedrl.he.participant import Participant, present
from privfedrl.he.phases import AUTHORITY_TRANSITIONS, AbortCode, AuthorityPhase
from privfedrl.he.uploads import UploadSum
from privfedrl.he.vault import SecretKey, Vault
from privfedrl.parties.frames import Frame, Outgoing
from privfedrl.parties.identity import Identity, Registry
from privfedrl.parties.journal import Journal
from privfedrl.parties.members import Members
from privfedrl.parties.participation import Participation
from privfedrl.primitives.random import Clock, system_clock

__all__ = ["KeyAuthority", "check_range"]


class KeyAuthority(Participant):
    """One round of the key authority. Make a new one for each round.

    Args:
        identity: signs every message; must be the key authority of ``registry``.
        registry, parameters, plan_digest: pinned, as the agents have pinned them.
        journal: durable memory of what was keyed and opened; one per authority, for ever.
        before_decrypt: (config, contributors) -> head of the authority's own ledger, 32 bytes, in
            which this opening has been charged durably. If it raises, nothing is decrypted, the
            key is ended and its error propagates.
        before_showing: what is stated instead of the decrypted sum, as a function of it: central
            noise. Everybody but this authority sees only that.
        vault: holds the secret key; a process of its own unless a caller says otherwise.
        clock: the authority's own time.
    Raises:
        ConfigurationError: these do not fit together.
    """

    role = "key-authority"
    phases = AuthorityPhase
    transitions = AUTHORITY_TRANSITIONS

    def __init__(
        self,
        *,
        identity: Identity,
        registry: Registry,
        parameters: HEParameters,
        plan_digest: bytes,
        journal: Journal,
        before_decrypt: Callable[[HEConfig, tuple[str, ...]], bytes],
        before_showing: Callable[[NDArray[Any]], NDArray[Any]] = lambda total: total,
        vault: Callable[[], SecretKey] = Vault,
        clock: Clock = system_clock,
    ) -> None:
        super().__init__(
            identity=identity,
            registry=registry,
            parameters=parameters,
            plan_digest=plan_digest,
            clock=clock,
        )
        self._journal = journal
        self._before_decrypt = before_decrypt
        self._before_showing = before_showing
        self._new_vault = vault
        self._vault: SecretKey | None = None
        self._roster: FixedRoster | None = None
        self._uploads: UploadSum | None = None
        self._receipt: DecryptionReceipt | None = None

    def start(self, config: bytes) -> list[Outgoing]:
        """Make this round's key pair. Returns the signed public context.

        Raises:
            LocalProtocolError: called twice, or the journal has a key for this round; final.
            RemoteProtocolError, AuthenticationFailed: not a config of the coordinator; nothing
                changes.
            RoundAborted: for another plan, registry, time or parameters, or the vault failed.
        """
        self._require_idle()
        now = self._clock()
        found, cfg = self._join(config, now)
        with self._fail_closed():
            check_fresh(found, self._parameters, now)
            self._journal.spend_masked(found.task_id, found.round, found.attempt)
            self._vault = self._new_vault()
            public_key = self._vault.open(self._parameters.parameter_set)
            self._key = key_digest(cfg, public_key)
            self._opened(found, cfg, config)
            return self._answer(
                Context(
                    cfg=cfg,
                    key=self._key,
                    sender=self._identity.name,
                    not_after=found.opened_at + self._parameters.lifetime_s,
                ),
                public_key,
            )

    def result(self) -> DecryptionReceipt:
        """What was opened, for the authority's own files.

        Raises:
            RoundAborted: the round ended without an opening.
            LocalProtocolError: it has not ended.
        """
        if self._phase is AuthorityPhase.ABORTED:
            raise abort(self._abort_code, "nothing was opened")
        if self._receipt is None:
            raise LocalProtocolError(f"there is no receipt yet, this one is {self._phase.value}")
        return self._receipt

    def _on_proposal(self, frame: Frame) -> list[Outgoing]:
        """Fix who contributes what, once, before any ciphertext has left an agent."""
        message: Proposal = frame.message
        commits = [self._read_commit(data) for data in message.commits]
        names = [commit.sender for commit in commits]
        if names != sorted(set(names)):
            raise abort(AbortCode.ROSTER_MISMATCH, "commits must be sorted, one per agent")
        indices = map(self._registry.index_of, names)
        roster = Roster(
            cfg=self._cfg,
            key=self._key,
            sender=self._identity.name,
            members=Members.of(indices, len(self._registry.agents)).to_bytes(),
            commitments=b"".join(commit.commitment for commit in commits),
        )
        self._roster = read_roster(
            roster,
            config=present(self._config),
            registry=self._registry,
            parameters=self._parameters,
        )
        self._uploads = UploadSum(self._parameters, self._roster, self._registry)
        return self._answer(roster)

    def _read_commit(self, data: bytes) -> Commit:
        try:
            commit: Commit = self._reader.read(data, frozenset({Kind.COMMIT})).message
        except ProtocolError as error:
            raise abort(AbortCode.BAD_SIGNATURE, f"a commit was refused: {error}") from error
        if (commit.cfg, commit.key) != (self._cfg, self._key):
            raise abort(AbortCode.ROSTER_MISMATCH, f"{commit.sender}'s commit is of another round")
        return commit

    def _on_upload(self, frame: Frame) -> list[Outgoing]:
        """Re-add one upload, where that is this authority's part."""
        if self._parameters.readding != "key-authority":
            raise RemoteProtocolError("this authority does not re-add; it must not see uploads")
        if self._uploads is None:
            raise RemoteProtocolError(f"upload is not allowed while {self._phase.value}")
        self._uploads.take(frame)
        return []

    def _on_sealed(self, frame: Frame) -> list[Outgoing]:
        """Policy, journal, ledger, and only then the one decryption."""
        message: Sealed = frame.message
        config, roster = present(self._config), present(self._roster)
        if message.roster != roster.digest:
            raise abort(AbortCode.ROSTER_MISMATCH, "the sum is for another roster")
        contributors = check_contributors(
            message.contributors, roster, self._registry, self._parameters.floor
        )
        if message.ledger_head == NO_HEAD:
            raise abort(AbortCode.PERMIT_MISSING, "no ledger entry permits this opening")
        self._check_sum(message, contributors)
        if len(frame.attachment) != self._parameters.ciphertext_bytes:
            raise abort(AbortCode.MALFORMED, "the sum has another length than the parameters say")
        self._record(config, contributors)
        names = names_of(contributors, self._registry)
        head = checked_head("before_decrypt", self._before_decrypt(config, names))
        slots = self._decrypt(bytes(frame.attachment))
        check_range(slots, self._parameters, len(contributors))
        vector = self._before_showing(self._parameters.from_slots(slots, len(contributors)))
        words = little_endian(vector)
        self._receipt = DecryptionReceipt(
            cfg=self._cfg,
            key=self._key,
            sender=self._identity.name,
            roster=roster.digest,
            contributors=message.contributors,
            sealed=message.sealed,
            total=sum_digest(self._cfg, words),
            ledger_head=head,
            readding=self._parameters.readding,
            seal=SEAL_VERSION,
        )
        return self._answer(
            Opening(
                cfg=self._cfg,
                key=self._key,
                sender=self._identity.name,
                receipt=encode_frame(self._receipt, self._identity),
                total=self._receipt.total,
            ),
            words,
        )

    def _check_sum(self, message: Sealed, contributors: Members) -> None:
        """Compare with what was re-added, by this authority or by the auditor."""
        if self._parameters.readding == "key-authority":
            uploads = present(self._uploads)
            again = sealed_digest(self._cfg, self._key, uploads.ciphertexts())
            if (uploads.contributors, again) != (contributors, message.sealed):
                raise abort(AbortCode.SUM_MISMATCH, "the sum is not that of the uploads")
        if self._parameters.readding == "auditor":
            attested = self._read_attestation(message.attestation)
            expected = present(self._roster).digest, message.contributors, message.sealed
            if (attested.roster, attested.contributors, attested.sealed) != expected:
                raise abort(AbortCode.SUM_MISMATCH, "the auditor attested to another sum")

    def _read_attestation(self, data: bytes) -> Attestation:
        try:
            found: Attestation = self._reader.read(data, frozenset({Kind.ATTESTATION})).message
        except ProtocolError as error:
            raise abort(AbortCode.BAD_SIGNATURE, f"the attestation: {error}") from error
        if (found.cfg, found.key) != (self._cfg, self._key):
            raise abort(AbortCode.SUM_MISMATCH, "the attestation is of another round")
        self._require_valid(found.sender, present(self._config).opened_at)
        return found

    def _record(self, config: HEConfig, contributors: Members) -> None:
        """Durable before the key is used; refuses what would single somebody out."""
        scope = self._parameters.differencing
        self._journal.spend_consistency(
            config.task_id,
            Participation(
                round=config.round,
                attempt=config.attempt,
                model_digest=config.model_digest,
                members=contributors.to_bytes(),
            ),
            # colluding agents can be subtracted from a group, so they do not count
            floor=0
            if scope == "off"
            else self._parameters.min_honest + self._parameters.max_colluding,
            scope="model" if scope == "off" else scope,
        )

    def _decrypt(self, ciphertexts: bytes) -> NDArray[Any]:
        vault = present(self._vault)
        try:
            return vault.decrypt(ciphertexts, self._parameters.ciphertexts)
        except RemoteProtocolError as error:
            raise abort(AbortCode.MALFORMED, f"the sum: {error}") from error
        finally:
            vault.destroy()

    def _forget(self) -> None:
        if self._vault is not None:
            self._vault.destroy()
        self._vault = self._uploads = None

    handlers: ClassVar = {Kind.PROPOSAL: _on_proposal, Kind.SEALED: _on_sealed}
    unstaged: ClassVar = {Kind.UPLOAD: _on_upload}


def check_range(slots: NDArray[Any], parameters: HEParameters, contributors: int) -> None:
    """Refuse a sum that no ``contributors`` well-formed uploads within range can have.

    Ranges of single uploads cannot be proved under encryption. But whoever adds a multiple of the
    secret key, or anything else that it cannot see, hits the honest range of a slot by chance
    only, at most 2^-guard_bits for each; and a slot out of range is not shown to anybody.

    This comes before :attr:`before_showing`: whether it refuses is a bit about the sum without any
    noise that is added there.

    Raises:
        RoundAborted: a number behind the vector's end, in an empty slot, above the lanes or in a
            lane is not one of an honest sum. It does not say where.
    """
    per = parameters.slots_per_ciphertext
    flat, empty = slots[:, :per].reshape(-1), slots[:, per:]
    used, unused = flat[: parameters.slots], flat[parameters.slots :]
    if parameters.parameter_set.exact:
        honest = _lanes_honest(used, parameters, contributors)
    else:
        bound = contributors << (parameters.value_bits - 1)
        honest = bool(np.all((used >= -bound) & (used < bound)))
    vector, half = parameters.from_slots(slots, contributors), 1 << (parameters.sum_bits - 1)
    centred = vector.view(np.dtype(f"int{parameters.ring_bits}")).astype(np.int64)
    within = bool(np.all((centred >= -half) & (centred < half)))
    if np.any(unused) or np.any(empty) or not honest or not within:
        raise abort(AbortCode.SUM_MISMATCH, "the sum is out of range; it is not shown to anybody")


def _lanes_honest(used: NDArray[Any], parameters: HEParameters, contributors: int) -> bool:
    """Whether every lane is at most what ``contributors`` values with their offsets add up to.

    And nothing lies above the lanes or behind the vector's end, where there are no offsets either.
    """
    most = np.uint64(contributors * ((1 << parameters.value_bits) - 1))
    mask = np.uint64((1 << parameters.lane_bits) - 1)
    rest, left = used, parameters.vector_length
    for _ in range(parameters.lanes):
        lane = rest & mask
        if np.any(lane > most) or np.any(lane[max(0, left) :]):
            return False
        rest, left = rest >> np.uint64(parameters.lane_bits), left - parameters.slots
    return not np.any(rest)
