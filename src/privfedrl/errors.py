"""Every exception that privfedrl raises on purpose.

    PrivfedrlError
    ├── ConfigurationError         what a plan, argument or file asks for is impossible or unsound
    ├── EncodingError              a vector does not fit the ring under its declared bound
    ├── EnvironmentFault           an environment raised, lied about its spaces or went non-finite
    ├── StorageError               a run directory or file is locked, full or unreadable
    ├── ProtocolError
    │   ├── LocalProtocolError     this participant was driven wrongly by its caller
    │   ├── RemoteProtocolError    a peer sent bytes that the protocol does not allow here
    │   ├── AuthenticationFailed   a signature, tag or commitment did not verify (opaque)
    │   └── RoundAborted           the round ended without a result; carries an AbortCode
    ├── PrivacyError
    │   ├── BudgetExceeded         the next release would cost more than the budget allows
    │   ├── UnsupportedMechanism   the accountant has no proven bound for what was asked
    │   └── LedgerIntegrity        the ledger is edited, truncated, forked, locked or unreadable
    └── MissingExtraError          an optional dependency is absent; prints the install line

Messages name the parameter, what was expected and what was found. They never contain key bytes,
update values or anything computed from a trajectory.
"""

from __future__ import annotations

__all__ = [
    "AuthenticationFailed",
    "BudgetExceeded",
    "ConfigurationError",
    "EncodingError",
    "EnvironmentFault",
    "LedgerIntegrity",
    "LocalProtocolError",
    "MissingExtraError",
    "PrivacyError",
    "PrivfedrlError",
    "ProtocolError",
    "RemoteProtocolError",
    "RoundAborted",
    "StorageError",
    "UnsupportedMechanism",
    "shown",
]


class PrivfedrlError(Exception):
    """Base of every error that this library raises on purpose."""


class ConfigurationError(PrivfedrlError, ValueError):
    """A plan, argument or file asks for something impossible or unsound.

    ``problems`` holds one line per problem, so that a plan can report all of them at once.
    """

    def __init__(self, message: str, *, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems or (message,)


class EncodingError(PrivfedrlError, ValueError):
    """A vector cannot be represented in the ring under its declared bound."""


class EnvironmentFault(PrivfedrlError):
    """An environment raised, lied about its spaces or returned non-finite values."""


class StorageError(PrivfedrlError, OSError):
    """A run directory or file cannot be used: locked, full or unreadable."""


class ProtocolError(PrivfedrlError):
    """A protocol participant cannot go on with what it was given."""


class LocalProtocolError(ProtocolError):
    """This participant was driven wrongly by its own caller."""


class RemoteProtocolError(ProtocolError):
    """A peer sent bytes that the protocol does not allow here."""


class AuthenticationFailed(ProtocolError):
    """A signature, tag or commitment did not verify. Deliberately says nothing more."""

    def __init__(self, message: str = "authentication failed") -> None:
        super().__init__(message)


class RoundAborted(ProtocolError):
    """The round ended without a result.

    ``code`` is one of the names in ``AbortCode`` of ``privfedrl.secagg.phases`` or
    ``privfedrl.he.phases``, or of the caller's own making; ``evidence`` holds the signed frames
    that prove somebody's fault to a third party, where there are any.
    """

    def __init__(self, code: str, message: str, *, evidence: tuple[bytes, ...] = ()) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.evidence = evidence


class PrivacyError(PrivfedrlError):
    """A privacy guarantee would be lost or cannot be stated."""


class BudgetExceeded(PrivacyError):
    """The next release would cost more than the budget allows; nothing was released."""


class UnsupportedMechanism(PrivacyError):
    """The accountant has no proven bound for what was asked."""


class LedgerIntegrity(PrivacyError):
    """The ledger is edited, truncated, forked, locked or unreadable."""


class MissingExtraError(PrivfedrlError, ImportError):
    """An optional dependency is absent."""

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(
            f"{package} is not installed; it belongs to the extra '{extra}': "
            f'pip install "privfedrl[{extra}]"'
        )


def shown(value: object) -> str:
    """``value`` for a message; integers too long to print are named by their length."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)
