"""Where a sqlite file is, and whether it is still the one that was opened.

Guarantee: :func:`checked_path` returns text that names a file (or ":memory:") and nothing else; two
equal results of :func:`file_identity` are about one file, whatever it is called by now.
"""

from __future__ import annotations

import os

from privfedrl.errors import ConfigurationError, shown

__all__ = ["checked_path", "file_identity"]

# sqlite counts milliseconds in 31 bits
_LONGEST_WAIT_S = 2_000_000.0


def checked_path(what: str, path: object, timeout_s: object) -> str:
    """``path`` as text.

    Args:
        what: "ledger" or "register", for messages.
        timeout_s: how long to wait for another process, checked here as well.
    Raises:
        ConfigurationError: no path, or no time in 0 .. 2,000,000 s.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigurationError(f"path of the {what} must be a path, got {type(path).__name__}")
    name = os.fspath(path)
    if not isinstance(name, str) or not name or "\0" in name:
        raise ConfigurationError(f"path of the {what} must be text without zero bytes: {name!r}")
    if not (isinstance(timeout_s, (int, float)) and 0 <= timeout_s <= _LONGEST_WAIT_S):
        raise ConfigurationError(
            f"timeout_s must lie in 0 .. {_LONGEST_WAIT_S:g} seconds, got {shown(timeout_s)}"
        )
    return name


def file_identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Which file ``path`` leads to; None if to none that can be seen."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
