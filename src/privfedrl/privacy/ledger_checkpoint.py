"""A signed head of a privacy ledger: what somebody else keeps so that history cannot be rewritten.

Guarantee: :meth:`Checkpoint.verify` returns only if the signature covers the ledger's identity, the
number of entries, the head, the time and the signer's name; ``Ledger.verify(checkpoint=...)``
returns only if that head stands at that place of that ledger.

    signed bytes = "privfedrl/ledger-checkpoint/v1" || 0x00 || canonical JSON of the five fields

A checkpoint reveals how many entries there are, and nothing of what they say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from privfedrl.errors import AuthenticationFailed, ConfigurationError, LedgerIntegrity, shown
from privfedrl.privacy.ledger_rows import canonical

__all__ = [
    "MAX_CHECKPOINT_BYTES",
    "Checkpoint",
    "Verifier",
    "check_place",
    "ed25519_verifier",
    "parse_head",
]

MAX_CHECKPOINT_BYTES: Final = 4096
"""The longest document that is read: the fields take less than 600."""

Verifier = Callable[[bytes, bytes], object]
"""Called with signature and message; raises, or returns False, if the signature is wrong."""

_LABEL: Final = b"privfedrl/ledger-checkpoint/v1\x00"
_FORMAT: Final = "pfrl-ledger-checkpoint/1"
# the names that a registry can hold
_NAME: Final = re.compile(r"\A[A-Za-z0-9._-]{1,64}\Z")
_HEX: Final = {"ledger_id": 32, "head": 64, "signature": 128}
_LARGEST: Final = 2**53 - 1


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["pfrl-ledger-checkpoint/1"]
    ledger_id: str
    entries: int
    head: str
    unix_time: int
    name: str
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Who saw which head of which ledger, and when.

    Attributes:
        ledger_id: identity of the ledger, 32 hex digits.
        entries: number of entries up to and with the head.
        head: 64 hex digits.
        unix_time: what the signer's clock said, in whole seconds; no rule depends on it.
        name: the signer's name in the registry.
        signature: 128 hex digits, over the other fields.
    Raises:
        ConfigurationError: a field is not of this form.
    """

    ledger_id: str
    entries: int
    head: str
    unix_time: int
    name: str
    signature: str

    def __post_init__(self) -> None:
        for field, digits in _HEX.items():
            value = getattr(self, field)
            if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
                raise ConfigurationError(f"{field} must be {digits} lower-case hex digits")
        for field, least in (("entries", 0), ("unix_time", -_LARGEST)):
            value = getattr(self, field)
            if type(value) is not int or not least <= value <= _LARGEST:
                raise ConfigurationError(
                    f"{field} must be an integer in {least} .. 2^53-1, got {shown(value)}"
                )
        if not isinstance(self.name, str) or not _NAME.search(self.name):
            raise ConfigurationError(
                f"name must be 1 to 64 characters of A-Z a-z 0-9 . _ -, got {shown(self.name)}"
            )

    @classmethod
    def make(
        cls,
        *,
        ledger_id: str,
        entries: int,
        head: str,
        unix_time: int,
        name: str,
        sign: Callable[[bytes], bytes],
    ) -> Checkpoint:
        """Sign the head; ``sign`` returns a 64-byte signature, e.g. that of an ``Identity``.

        Raises:
            ConfigurationError: ``sign`` returned something else, or a field is out of range.
        """
        unsigned = cls(
            ledger_id=ledger_id,
            entries=entries,
            head=head,
            unix_time=unix_time,
            name=name,
            signature="00" * 64,
        )
        signature = sign(unsigned.signed_bytes())
        if not isinstance(signature, bytes) or len(signature) != 64:
            raise ConfigurationError("sign must return a signature of 64 bytes")
        return replace(unsigned, signature=signature.hex())

    def signed_bytes(self) -> bytes:
        """What the signature is about, as in the module header."""
        fields = {name: value for name, value in asdict(self).items() if name != "signature"}
        return _LABEL + canonical(fields).encode()

    def verify(self, verifier: Verifier) -> None:
        """Check the signature; ``verifier`` belongs to the key of ``name``.

        Raises:
            AuthenticationFailed: it is wrong (or whatever ``verifier`` raises).
        """
        accepted = verifier(bytes.fromhex(self.signature), self.signed_bytes())
        # some libraries say no instead of raising
        if accepted is False:
            raise AuthenticationFailed

    def to_json(self) -> str:
        """One canonical line of JSON, to be kept where the ledger's owner cannot write."""
        return msgspec.json.encode(_File(format=_FORMAT, **asdict(self))).decode() + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Checkpoint:
        """Inverse of :meth:`to_json`; raises ConfigurationError for anything else."""
        if not isinstance(text, (str, bytes)) or len(text) > MAX_CHECKPOINT_BYTES:
            raise ConfigurationError(
                f"a {_FORMAT} document is text of at most {MAX_CHECKPOINT_BYTES} characters"
            )
        try:
            found = msgspec.json.decode(text, type=_File)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ConfigurationError(f"not a {_FORMAT} document: {error}") from error
        fields = msgspec.structs.asdict(found)
        del fields["format"]
        return cls(**fields)


def ed25519_verifier(verify_key: bytes) -> Verifier:
    """A verifier for a 32-byte Ed25519 public key that the caller has reason to trust.

    Raises:
        ConfigurationError: the key has another length.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(verify_key)
    except (ValueError, TypeError) as error:
        raise ConfigurationError("verify_key must be a 32-byte Ed25519 public key") from error

    def verify(signature: bytes, message: bytes) -> None:
        try:
            key.verify(signature, message)
        except InvalidSignature:
            raise AuthenticationFailed from None

    return verify


def check_place(checkpoint: Checkpoint, ledger_id: str, heads: Sequence[bytes]) -> None:
    """Refuse a ledger in which the checkpoint's head does not stand where it says.

    Args:
        heads: the hash of every row, the genesis row included.
    Raises:
        LedgerIntegrity: another ledger, fewer entries, or another history.
    """
    who = f"the checkpoint of {checkpoint.name!r}"
    if checkpoint.ledger_id != ledger_id:
        raise LedgerIntegrity(
            f"{who} is about ledger {checkpoint.ledger_id}, this is ledger {ledger_id}"
        )
    if checkpoint.entries >= len(heads):
        raise LedgerIntegrity(
            f"{who} saw {checkpoint.entries} entries, the ledger has {len(heads) - 1}: rows were "
            "cut off, or this is an older copy"
        )
    if heads[checkpoint.entries].hex() != checkpoint.head:
        raise LedgerIntegrity(
            f"{who} saw another entry {checkpoint.entries}: the ledger was forked or rewritten"
        )


def parse_head(text: str) -> bytes:
    """The 32 bytes of a head that a caller gives as an anchor; raises ConfigurationError."""
    try:
        raw = bytes.fromhex(text)
    except (TypeError, ValueError):
        raw = b""
    if len(raw) != 32:
        raise ConfigurationError("anchor must be a ledger head of 64 hex digits")
    return raw
