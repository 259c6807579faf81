"""The audit of stored uploads: the honest sum passes, and every other set of uploads is named."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from privfedrl.audit import verify_uploads
from privfedrl.errors import AuthenticationFailed, ProtocolError, RemoteProtocolError
from privfedrl.he import HETranscript
from privfedrl.parties import Registry


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_uploads_of_an_honest_round_add_up_to_what_was_opened(
    encrypted_rounds: Any, number: int
) -> None:
    made = encrypted_rounds
    names = verify_uploads(made.frames[number], iter(made.uploads[number]), made.registry)
    assert names == HETranscript.from_bytes(made.frames[number]).survivors(made.registry)
    assert len(names) == (4 if number == 1 else 5)


def test_the_order_of_uploads_does_not_matter(encrypted_rounds: Any) -> None:
    made = encrypted_rounds
    verify_uploads(made.frames[0], reversed(made.uploads[0]), made.registry)


def test_a_missing_upload_is_named(encrypted_rounds: Any) -> None:
    made = encrypted_rounds
    with pytest.raises(RemoteProtocolError, match="5 contributors, the uploads are of 4") as found:
        verify_uploads(made.frames[0], made.uploads[0][1:], made.registry)
    assert "agent-" in str(found.value)


def test_an_upload_twice_or_of_another_round_is_refused(encrypted_rounds: Any) -> None:
    made = encrypted_rounds
    with pytest.raises(RemoteProtocolError, match="has contributed already"):
        verify_uploads(made.frames[0], [*made.uploads[0], made.uploads[0][0]], made.registry)
    with pytest.raises(RemoteProtocolError, match="another round or key"):
        verify_uploads(made.frames[0], made.uploads[2], made.registry)


def test_an_altered_upload_is_refused(encrypted_rounds: Any) -> None:
    made = encrypted_rounds
    altered = bytearray(made.uploads[0][0])
    altered[-1] ^= 1
    with pytest.raises(AuthenticationFailed):
        verify_uploads(made.frames[0], [bytes(altered), *made.uploads[0][1:]], made.registry)


def test_a_record_under_another_registry_is_refused(encrypted_rounds: Any) -> None:
    made = encrypted_rounds
    others = Registry(one for one in made.registry.entries if one.name != "office")
    with pytest.raises(ProtocolError):
        verify_uploads(made.frames[0], made.uploads[0], others)


def test_the_audit_loads_no_tenseal() -> None:
    code = "import sys, privfedrl.audit; sys.exit(any('tenseal' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
