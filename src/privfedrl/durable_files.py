"""Files that are replaced as a whole or not at all, also when the power goes.

Guarantee: after :func:`write_atomically` returns, the new content is on disk; if it raises or the
process dies inside it, the old content is there, beside at most one file that begins with
``PARTIAL``.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from privfedrl.errors import StorageError

__all__ = ["PARTIAL", "write_atomically"]

PARTIAL = ".privfedrl-partial-"
"""Begins the name of a file that is still being written; nothing else has it."""


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace ``path`` by ``data``.

    Args:
        mode: permissions of the file; it is never readable by more than these.
    Raises:
        StorageError: disk full, no permission, no such folder; the old content stays.
    """
    partial = ""
    try:
        # mkstemp creates with mode 0600, so a secret is never readable while it is written
        descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f"{PARTIAL}{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        if isinstance(error, OSError):
            raise StorageError(f"{str(path)!r} cannot be written: {error.strerror}") from error
        raise


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
