"""The table of claims: every name is runnable, and every row says what a pass does not show."""

from __future__ import annotations

import re

import pytest

from privfedrl.audit import CLAIMS, AuditClaim


@pytest.mark.parametrize("name", sorted(CLAIMS))
def test_a_row_is_complete_and_named_as_it_is_typed(name: str) -> None:
    claim = CLAIMS[name]
    assert isinstance(claim, AuditClaim)
    assert claim.name == name
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name)
    assert claim.shows
    assert claim.needs
    assert claim.limits


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        CLAIMS["x"] = CLAIMS["secagg-transcript"]  # type: ignore[index]  # wrong on purpose
