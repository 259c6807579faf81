"""The auditor of a round: it adds the uploads up again, and says so, without any key.

Guarantee: an attestation is signed once per round, for the sum that this object has itself formed
from ciphertexts that the key authority's roster names, each from its own registered agent.

Whoever re-adds holds the uploads. The auditor cannot open them; it must not collude with the key
authority, exactly as the aggregator must not, nor with the aggregator: its false word would have a
single upload opened.
"""

from __future__ import annotations

from typing import ClassVar

from privfedrl.errors import ConfigurationError, RemoteProtocolError
from privfedrl.he.agreement import (
    abort,
    read_roster,
)
from privfedrl.he.digests import sealed_digest
from privfedrl.he.frames import (
    Attestation,
    Kind,
    Roster,
    Sealed,
)
from privfedrl.he.parameters import HEParameters
from privfedrl.he.participant import Participant, present
from privfedrl.he.phases import AUDITOR_TRANSITIONS, AbortCode, AuditorPhase
from privfedrl.he.uploads import UploadSum
from privfedrl.parties.frames import Frame, Outgoing
from privfedrl.parties.identity import Identity, Registry
from privfedrl.primitives.random import Clock, system_clock

__all__ = ["HEAuditor"]


class HEAuditor(Participant):
    """One round of the auditor. Make a new one for each round.

    Args:
        identity: signs the attestation; must be the auditor of ``registry``.
        registry, parameters, plan_digest: pinned, as everybody has pinned them; the parameters
            must ask for an auditor.
        clock: the auditor's own time.
    Raises:
        ConfigurationError: these do not fit together.
    """

    role = "auditor"
    phases = AuditorPhase
    transitions = AUDITOR_TRANSITIONS

    def __init__(
        self,
        *,
        identity: Identity,
        registry: Registry,
        parameters: HEParameters,
        plan_digest: bytes,
        clock: Clock = system_clock,
    ) -> None:
        super().__init__(
            identity=identity,
            registry=registry,
            parameters=parameters,
            plan_digest=plan_digest,
            clock=clock,
        )
        if parameters.readding != "auditor":
            raise ConfigurationError(
                f"readding must be 'auditor' for an auditor, got {parameters.readding!r}"
            )
        self._uploads: UploadSum | None = None
        self._roster = b""

    def start(self, config: bytes) -> list[Outgoing]:
        """Take note of a round. Sends nothing.

        Raises:
            LocalProtocolError: called twice.
            RemoteProtocolError, AuthenticationFailed, RoundAborted: as for the key authority.
        """
        self._require_idle()
        found, cfg = self._join(config, self._clock())
        self._opened(found, cfg, config)
        return []

    def _on_roster(self, frame: Frame) -> list[Outgoing]:
        message: Roster = frame.message
        roster = read_roster(
            message,
            config=present(self._config),
            registry=self._registry,
            parameters=self._parameters,
        )
        self._key, self._roster = message.key, roster.digest
        self._uploads = UploadSum(self._parameters, roster, self._registry)
        return []

    def _on_sealed(self, frame: Frame) -> list[Outgoing]:
        message: Sealed = frame.message
        uploads = present(self._uploads)
        contributors = uploads.contributors.to_bytes()
        sealed = sealed_digest(self._cfg, self._key, uploads.ciphertexts())
        claimed = message.roster, message.contributors, message.sealed
        if claimed != (self._roster, contributors, sealed):
            raise abort(AbortCode.SUM_MISMATCH, "the sum is not that of the uploads")
        if len(uploads.contributors) < self._parameters.floor:
            raise abort(AbortCode.COHORT_TOO_SMALL, "the sum is over too few contributors")
        word = Attestation(
            cfg=self._cfg,
            key=self._key,
            sender=self._identity.name,
            roster=self._roster,
            contributors=contributors,
            sealed=sealed,
        )
        return self._answer(word)

    def _on_upload(self, frame: Frame) -> list[Outgoing]:
        if self._uploads is None:
            raise RemoteProtocolError("upload is not allowed before the roster")
        self._uploads.take(frame)
        return []

    def _forget(self) -> None:
        self._uploads = None

    handlers: ClassVar = {Kind.ROSTER: _on_roster, Kind.SEALED: _on_sealed}
    unstaged: ClassVar = {Kind.UPLOAD: _on_upload}
