"""AES-256-GCM: known answer, and no plaintext unless every bit agrees."""

from __future__ import annotations

import pytest

from privfedrl.errors import AuthenticationFailed
from privfedrl.primitives.sealing import TAG_BYTES, open_sealed, seal

KEY = bytes(range(32))


def test_gcm_specification_test_case_14() -> None:
    sealed = seal(bytes(32), bytes(16), context=b"")
    assert sealed.hex() == "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"


def test_what_was_sealed_opens() -> None:
    sealed = seal(KEY, b"plaintext", context=b"context")
    assert len(sealed) == 9 + TAG_BYTES
    assert open_sealed(KEY, sealed, context=b"context") == b"plaintext"


def test_every_flipped_bit_is_noticed() -> None:
    sealed = seal(KEY, b"text", context=b"context")
    for position in range(8 * len(sealed)):
        forged = bytearray(sealed)
        forged[position // 8] ^= 1 << position % 8
        with pytest.raises(AuthenticationFailed):
            open_sealed(KEY, bytes(forged), context=b"context")


@pytest.mark.parametrize("sealed", [b"", bytes(15), bytes(16)])
def test_short_input_is_refused(sealed: bytes) -> None:
    with pytest.raises(AuthenticationFailed):
        open_sealed(KEY, sealed, context=b"")


def test_another_context_or_key_is_refused() -> None:
    sealed = seal(KEY, b"text", context=b"context")
    with pytest.raises(AuthenticationFailed):
        open_sealed(KEY, sealed, context=b"other")
    with pytest.raises(AuthenticationFailed):
        open_sealed(bytes(32), sealed, context=b"context")
