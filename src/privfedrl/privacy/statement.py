"""The guarantee statement: 18 fields, and no epsilon unless every one of them is known.

Guarantee: :meth:`Statement.epsilon_text`, :meth:`Statement.render` and :meth:`Statement.sign` raise
PrivacyError while any field is missing, null, blank or "unknown"; a run with a deterministic
generator or without noise prints a stamp and no epsilon at all.

Notation: a = false positive rate of an attacker who tests whether a unit took part, TPR(a) = the
true positive rate that he can reach. (eps, delta)-DP in both directions implies
TPR(a) <= min(e^eps a + delta, 1 - e^-eps (1 - delta - a)) and, for even prior odds, a share of
right guesses of at most (e^eps + delta)/(1 + e^eps) (Kairouz, Oh and Viswanath 2015).
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Iterator
from datetime import date
from decimal import ROUND_CEILING, Context, Decimal
from importlib import resources
from typing import Annotated, Any

import msgspec
from cryptography.exceptions import InvalidSignature
from msgspec import Meta, Struct

from privfedrl.errors import AuthenticationFailed, ConfigurationError, PrivacyError
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

__all__ = [
    "UNSIGNED",
    "Statement",
    "bayes_accuracy",
    "generated_schema",
    "max_true_positive_rate",
    "schema",
]

UNSIGNED = "not applicable: not signed"
_LABEL = b"privfedrl/statement/v1\x00"
_SIGNATURE_PREFIX = "ed25519:"
_BLANK = {"", "?", "n/a", "na", "null", "tbd", "todo", "not applicable"}
_RULE = {
    "trajectory": "maximum over rounds",
    "person": "sum over participations",
    "agent": "sum over participations",
}
_DETERMINISTIC = "NO PRIVACY: deterministic generator"
_IN_THE_CLEAR = "NO CRYPTOGRAPHIC PROTECTION"
_NO_NOISE = "NO DIFFERENTIAL PRIVACY"


def max_true_positive_rate(epsilon: float, delta: float, false_positive_rate: float) -> float:
    """Highest TPR of any membership attack at a false positive rate, implied by (eps, delta)."""
    _check_claim(epsilon, delta)
    if not 0 <= false_positive_rate <= 1:
        raise ConfigurationError(
            f"false_positive_rate must lie in [0, 1], got {false_positive_rate!r}"
        )
    # exp(700) is near the largest float; anything times it is above 1
    first = math.exp(min(epsilon, 700.0)) * false_positive_rate + delta
    second = 1 - math.exp(-epsilon) * (1 - delta - false_positive_rate)
    return min(1.0, max(0.0, min(first, second)))


def bayes_accuracy(epsilon: float, delta: float) -> float:
    """Highest share of right membership guesses at even prior odds: (e^eps + delta)/(1 + e^eps)."""
    _check_claim(epsilon, delta)
    return 1 - (1 - delta) * math.exp(-epsilon) / (1 + math.exp(-epsilon))


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
        for name in ("date", "valid_until"):
            _check_date(f"identity.{name}", getattr(self.identity, name))
        if self.accountant.rule != _RULE[self.unit.unit]:
            raise PrivacyError(
                f"accountant.rule must be {_RULE[self.unit.unit]!r} for the unit "
                f"{self.unit.unit!r}, got {self.accountant.rule!r}"
            )
        if not self.voided and isinstance(self.epsilon.claims, str):
            raise PrivacyError("epsilon.claims must list claims for a run with noise, got text")
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

    def epsilon_text(self) -> str:
        """One line per adversary; epsilon is rounded up.

        Raises:
            PrivacyError: a field is unknown, fields disagree, or the run states no epsilon.
        """
        self.check()
        if self.voided:
            raise PrivacyError(f"no epsilon can be stated: {'; '.join(self.stamps)}")
        unit = f"one {self.unit.unit} ({self.adjacency.relation})"
        return "\n".join(
            f"epsilon = {_up(claim.epsilon)} at delta = {claim.delta:g} for {unit} against "
            f"{_printable(claim.adversary)} [{_printable(claim.bound)}]"
            for claim in self._claims()
        )

    def render(self) -> str:
        """The statement as plain text for people, stamps first.

        Raises:
            PrivacyError: a field is unknown or fields disagree; nothing is rendered.
        """
        self.check()
        lines = [f"*** {stamp} ***" for stamp in self.stamps]
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
        text = self.identity.signature
        try:
            if not text.startswith(_SIGNATURE_PREFIX):
                raise AuthenticationFailed
            signature = bytes.fromhex(text.removeprefix(_SIGNATURE_PREFIX))
            accepted = verifier(signature, self.canonical_bytes())
        except (InvalidSignature, ValueError) as error:
            raise AuthenticationFailed from error
        if accepted is False:
            raise AuthenticationFailed

    def _claims(self) -> tuple[Claim, ...]:
        return () if isinstance(self.epsilon.claims, str) else self.epsilon.claims

    def _checked(self) -> dict[str, Any]:
        """Builtins of this statement, after the same type checks as decoding."""
        builtins: dict[str, Any] = msgspec.to_builtins(self)
        try:
            msgspec.convert(builtins, Statement)
            json.dumps(builtins, allow_nan=False)
        except (msgspec.ValidationError, ValueError, TypeError) as error:
            raise ConfigurationError(f"statement: {error}") from error
        return builtins

    def _section(self, name: str) -> Iterator[str]:
        if name == "epsilon":
            yield from self._epsilon_section()
            return
        value = msgspec.to_builtins(getattr(self, name))
        if name == "accountant" and self.voided:
            # a budget beside a stamp would read like a promise
            value = {k: v for k, v in value.items() if k not in ("prior_spend", "lifetime_budget")}
        for row in value if isinstance(value, (list, tuple)) else [value]:
            yield from _wrap(
                "; ".join(f"{k.replace('_', ' ')}: {_text(v)}" for k, v in row.items())
            )

    def _epsilon_section(self) -> Iterator[str]:
        if self.voided:
            yield "   not stated, see the stamp above"
            return
        yield from (f"   {line}" for line in self.epsilon_text().splitlines())
        for claim in self._claims():
            points = ", ".join(f"({d:g}, {_up(e)})" for d, e in claim.curve)
            yield from _wrap(
                f"curve [{_printable(claim.curve_kind)}] of (delta, epsilon): {points}"
            )
            rates = [max_true_positive_rate(claim.epsilon, claim.delta, a) for a in (0.001, 0.01)]
            yield from _wrap(
                f"attacks by {_printable(claim.adversary)}, derived from this (epsilon, delta) "
                f"alone: TPR <= {_up(rates[0])} at FPR 0.1 %, TPR <= {_up(rates[1])} at FPR 1 %, "
                f"Bayes accuracy <= {_up(bayes_accuracy(claim.epsilon, claim.delta))} at even odds"
            )


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


def _check_claim(epsilon: float, delta: float) -> None:
    if not epsilon >= 0:
        raise ConfigurationError(f"epsilon must be >= 0, got {epsilon!r}")
    if not 0 <= delta <= 1:
        raise ConfigurationError(f"delta must lie in [0, 1], got {delta!r}")


def _check_date(name: str, text: str) -> None:
    try:
        date.fromisoformat(text)
    except ValueError as error:
        raise PrivacyError(f"{name} must be a date like 2030-01-31, got {text!r}") from error


def _is_head(text: str) -> bool:
    return len(text) == 64 and all(c in "0123456789abcdef" for c in text)


def _up(value: float) -> str:
    """Four significant digits, rounded up: a printed bound is never below the proven one."""
    rounded = Context(prec=4, rounding=ROUND_CEILING).create_decimal(Decimal(value))
    return f"{rounded:g}" if rounded < 10**6 else f"{rounded:.3e}"


def _printable(text: str) -> str:
    """Text that cannot forge lines or steer a terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    return _printable(str(value))


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent="   ", subsequent_indent="     ")
