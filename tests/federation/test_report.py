"""The report is drawn from files alone, and says what it lacks before anything else happens."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from privfedrl.errors import MissingExtraError, StorageError
from privfedrl.federation.report import require_matplotlib, write_report


def test_a_missing_matplotlib_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"privfedrl\[report\]"):
        require_matplotlib()


def test_a_directory_without_a_run_gives_no_report(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"plan\.toml"):
        write_report(tmp_path)
