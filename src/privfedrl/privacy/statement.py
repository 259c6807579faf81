"""The guarantee statement: 18 fields, and no epsilon unless every one of them is known.

Guarantee: :meth:`Statement.epsilon_text`, :meth:`Statement.render` and :meth:`Statement.sign` raise
PrivacyError while any field is missing, null, blank or "unknown", while two fields contradict each
other, and while an attack figure is below what its claim's own curve implies; a run with a
deterministic generator or without noise prints a stamp and no epsilon at all.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from datetime import date
from importlib import resources
from typing import Annotated, Any

import msgspec
from cryptography.exceptions import InvalidSignature
from msgspec import Meta, Struct

from privfedrl.errors import AuthenticationFailed, ConfigurationError, PrivacyError
from privfedrl.privacy.claims import check_claim
from privfedrl.privacy.statement_fields import (
    AccountantField,
    AdjacencyField,
    AuditEvidenceField,
    CaveatsField,
    Claim,
    DeltaContextField,
    EpsilonField,
    IdentityField,
    ImplementationField,
    LedgerField,
    MechanismField,
    NotCoveredField,
    PartyView,
    RandomnessField,
    Release,
    SamplingField,
    SecureAggregationField,
    SideReleasesField,
    UnitField,
)
from privfedrl.privacy.statement_text import claim_lines, epsilon_line, rows

__all__ = ["UNSIGNED", "Statement", "generated_schema", "schema"]

UNSIGNED = "not applicable: not signed"
_LABEL = b"privfedrl/statement/v1\x00"
_SIGNATURE_PREFIX = "ed25519:"
# one spelling per signature: bytes.fromhex would also take blanks and capitals
_SIGNATURE = re.compile(r"ed25519:([0-9a-f]{128})")
_BLANK = {"", "?", "n/a", "na", "null", "tbd", "todo", "not applicable"}
# a trajectory that is used once is in one round; one that is used again takes part in several
_RULES = {
    "trajectory": {"maximum over rounds", "sum over participations"},
    "person": {"sum over participations"},
    "agent": {"sum over participations"},
}
_DETERMINISTIC = "NO PRIVACY: deterministic generator"
_IN_THE_CLEAR = "NO CRYPTOGRAPHIC PROTECTION"
_NO_NOISE = "NO DIFFERENTIAL PRIVACY"


def schema() -> dict[str, Any]:
    """The committed JSON schema (draft 2020-12) of a statement."""
    text = resources.files("privfedrl.privacy").joinpath("statement_schema.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def generated_schema() -> dict[str, Any]:
    """The schema that the types imply; the committed file equals it."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **msgspec.json.schema(Statement),
    }


class Statement(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run promises, to whom, and what that rests on. Field order is that of the print."""

    identity: IdentityField
    unit: UnitField
    adjacency: AdjacencyField
    epsilon: EpsilonField
    delta_context: DeltaContextField
    mechanism: MechanismField
    sampling: SamplingField
    accountant: AccountantField
    trust_model: Annotated[tuple[PartyView, ...], Meta(min_length=1)]
    releases: Annotated[tuple[Release, ...], Meta(min_length=1)]
    side_releases: SideReleasesField
    not_covered: NotCoveredField
    randomness: RandomnessField
    implementation: ImplementationField
    secure_aggregation: SecureAggregationField
    audit_evidence: AuditEvidenceField
    caveats: CaveatsField
    ledger: LedgerField

    @classmethod
    def from_json(cls, data: str | bytes) -> Statement:
        """Decode; a missing, extra, null or wrongly typed field is an error.

        Raises:
            ConfigurationError: names the field.
        """
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ConfigurationError(f"statement: {error}") from error

    def to_json(self) -> str:
        """Readable JSON with sorted keys; :meth:`from_json` inverts it.

        Raises:
            ConfigurationError: a field has the wrong type or a number is not finite.
        """
        return json.dumps(self._checked(), sort_keys=True, indent=2, ensure_ascii=False) + "\n"

    def unknown_fields(self) -> tuple[str, ...]:
        """Paths such as "sampling.assumption" whose value says nothing."""
        return tuple(
            path for name in self.__struct_fields__ for path in _unknown(name, getattr(self, name))
        )

    def check(self) -> None:
        """Raise unless every field is known and the fields agree with each other.

        Raises:
            PrivacyError: a field is unknown, or two fields contradict each other.
            ConfigurationError: a field has the wrong type.
        """
        if unknown := self.unknown_fields():
            raise PrivacyError(
                f"no epsilon is stated while fields are unknown: {', '.join(unknown)}"
            )
        self._checked()
        self._check_dates()
        if self.accountant.rule not in (allowed := _RULES[self.unit.unit]):
            raise PrivacyError(
                f"accountant.rule must be one of {sorted(allowed)} for the unit "
                f"{self.unit.unit!r}, got {self.accountant.rule!r}"
            )
        if not self.voided and isinstance(self.epsilon.claims, str):
            raise PrivacyError("epsilon.claims must list claims for a run with noise, got text")
        self._check_claims()
        signature = self.identity.signature
        if not (_SIGNATURE.fullmatch(signature) or signature.startswith("not applicable: ")):
            raise PrivacyError(
                "identity.signature must be 'ed25519:' and 128 hex digits in small letters, or "
                f"'not applicable: ' and a reason, got {signature!r}"
            )
        if not (_is_head(self.ledger.head) or self.voided):
            raise PrivacyError("ledger.head must be 64 hex digits: epsilon rests on the ledger")

    @property
    def stamps(self) -> tuple[str, ...]:
        """What must be printed first: reasons why this run does not protect as usual."""
        found = (
            (self.randomness.deterministic, _DETERMINISTIC),
            (not self.secure_aggregation.cryptographic, _IN_THE_CLEAR),
            (not self.mechanism.noise_added, _NO_NOISE),
        )
        return tuple(text for applies, text in found if applies)

    @property
    def voided(self) -> bool:
        """Whether no epsilon may be stated at all."""
        return self.randomness.deterministic or not self.mechanism.noise_added

    @property
    def signed(self) -> bool:
        """Whether it carries something that says it is a signature; :meth:`verify` tells."""
        return self.identity.signature.startswith(_SIGNATURE_PREFIX)

    def lapse(self, day: date) -> str | None:
        """Why the statement may not be relied on on ``day`` because of its dates; None if it may.

        Raises:
            PrivacyError: a date of field 1 is none, or the last is before the first.
        """
        first, last = self._check_dates()
        if day > last:
            return f"EXPIRED: valid until {last.isoformat()}, read on {day.isoformat()}"
        if day < first:
            return f"NOT YET VALID: dated {first.isoformat()}, read on {day.isoformat()}"
        return None

    def epsilon_text(self) -> str:
        """One line per adversary; epsilon is rounded up.

        Raises:
            PrivacyError: a field is unknown, fields disagree, or the run states no epsilon.
        """
        self.check()
        if self.voided:
            raise PrivacyError(f"no epsilon can be stated: {'; '.join(self.stamps)}")
        return "\n".join(epsilon_line(claim, self._protected) for claim in self._claims())

    def render(self, *, on: date | None = None) -> str:
        """The statement as plain text for people, stamps first.

        Args:
            on: the day on which it is read: a statement that has lapsed by then says so first.
        Raises:
            PrivacyError: a field is unknown or fields disagree; nothing is rendered.
        """
        self.check()
        lapse = None if on is None else self.lapse(on)
        lines = [f"*** {stamp} ***" for stamp in (lapse, *self.stamps) if stamp is not None]
        if _IN_THE_CLEAR in self.stamps:
            lines.append("The coordinator sees each agent's vector, not only the sum.")
        lines.append("GUARANTEE STATEMENT")
        for number, name in enumerate(self.__struct_fields__, start=1):
            lines.append(f"{number:2d} {name.replace('_', ' ').upper()}")
            lines.extend(self._section(name))
        return "\n".join(lines) + "\n"

    def canonical_bytes(self) -> bytes:
        """What a signature covers: every field except the signature itself."""
        data = self._checked()
        del data["identity"]["signature"]
        return _LABEL + json.dumps(data, sort_keys=True, separators=(",", ":")).encode()

    def sign(self, signer: Callable[[bytes], bytes]) -> Statement:
        """This statement with ``signer(canonical_bytes())``, an Ed25519 signature, in field 1.

        Before, ``identity.signature`` holds :data:`UNSIGNED`.

        Raises:
            PrivacyError: the statement is not complete.
        """
        self.check()
        signature = _SIGNATURE_PREFIX + signer(self.canonical_bytes()).hex()
        identity = msgspec.structs.replace(self.identity, signature=signature)
        return msgspec.structs.replace(self, identity=identity)

    def verify(self, verifier: Callable[[bytes, bytes], object]) -> None:
        """Call ``verifier(signature, message)``, e.g. ``Ed25519PublicKey.verify``.

        Raises:
            AuthenticationFailed: unsigned, malformed, or the verifier raised or returned False.
        """
        found = _SIGNATURE.fullmatch(self.identity.signature)
        if found is None:
            raise AuthenticationFailed
        try:
            accepted = verifier(bytes.fromhex(found[1]), self.canonical_bytes())
        except (InvalidSignature, ValueError) as error:
            raise AuthenticationFailed from error
        if accepted is False:
            raise AuthenticationFailed

    @property
    def _protected(self) -> str:
        return f"one {self.unit.unit} ({self.adjacency.relation})"

    def _claims(self) -> tuple[Claim, ...]:
        return () if isinstance(self.epsilon.claims, str) else self.epsilon.claims

    def _check_dates(self) -> tuple[date, date]:
        """The first and the last day of field 1."""
        first, last = (
            _day(f"identity.{name}", getattr(self.identity, name))
            for name in ("date", "valid_until")
        )
        if last < first:
            raise PrivacyError(
                f"identity.valid_until must not be before identity.date = {first}, got {last}"
            )
        return first, last

    def _check_claims(self) -> None:
        for index, claim in enumerate(self._claims()):
            name = f"epsilon.claims[{index}]"
            check_claim(claim, name=name)
            if self.adjacency.relation == "replace-one" and claim.epsilon_replace != claim.epsilon:
                raise PrivacyError(
                    f"{name}.epsilon_replace must be epsilon itself where adjacency.relation is "
                    f"'replace-one', got {claim.epsilon_replace!r} and {claim.epsilon!r}"
                )

    def _checked(self) -> dict[str, Any]:
        """Builtins of this statement, after the same type checks as decoding."""
        try:
            # converted back and forth: 12 and 12.0 are one number and must have one signature
            typed = msgspec.convert(msgspec.to_builtins(self), Statement)
            builtins: dict[str, Any] = msgspec.to_builtins(typed)
            json.dumps(builtins, allow_nan=False, ensure_ascii=False).encode()
        except (msgspec.ValidationError, ValueError, TypeError) as error:
            raise ConfigurationError(f"statement: {error}") from error
        return builtins

    def _section(self, name: str) -> Iterator[str]:
        if name == "epsilon" and self.voided:
            yield "   not stated, see the stamp above"
            return
        if name == "epsilon":
            for claim in self._claims():
                yield from claim_lines(claim, self._protected)
            return
        value = msgspec.to_builtins(getattr(self, name))
        if name == "accountant" and self.voided:
            # a budget beside a stamp would read like a promise
            value = {k: v for k, v in value.items() if k not in ("prior_spend", "lifetime_budget")}
        yield from rows(value)


def _unknown(path: str, value: object) -> Iterator[str]:
    """Paths below ``path`` that are None, blank, empty, NaN or say "unknown"."""
    if isinstance(value, Struct):
        for name in value.__struct_fields__:
            yield from _unknown(f"{path}.{name}", getattr(value, name))
    elif isinstance(value, (list, tuple)) and value:
        for index, item in enumerate(value):
            yield from _unknown(f"{path}[{index}]", item)
    elif isinstance(value, str):
        text = value.strip().casefold().rstrip(" :.")
        if text in _BLANK or text.startswith("unknown"):
            yield path
    elif not isinstance(value, (int, float)) or math.isnan(value):
        yield path


def _day(name: str, text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise PrivacyError(f"{name} must be a date like 2030-01-31, got {text!r}") from error


def _is_head(text: str) -> bool:
    return len(text) == 64 and all(c in "0123456789abcdef" for c in text)
