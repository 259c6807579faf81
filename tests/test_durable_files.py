"""A file is replaced as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from privfedrl.durable_files import PARTIAL, write_atomically
from privfedrl.errors import StorageError


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_the_new_content_replaces_the_old_with_the_mode_that_was_asked_for(
    tmp_path: Path, mode: int
) -> None:
    path = tmp_path / "value"
    path.write_bytes(b"old")
    write_atomically(path, b"new", mode=mode)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == mode
    assert [entry.name for entry in tmp_path.iterdir()] == ["value"]


@pytest.mark.parametrize("broken", ["fsync", "replace", "fchmod"])
def test_a_write_that_fails_keeps_the_old_content_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "value"
    path.write_bytes(b"old")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, full)
    with pytest.raises(StorageError, match="No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["value"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="absent"):
        write_atomically(tmp_path / "absent" / "value", b"new")


def test_a_partial_file_is_known_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def record(source: str, target: Path) -> None:
        seen.append(Path(source).name)
        raise OSError(5, "stopped here")

    monkeypatch.setattr(os, "replace", record)
    with pytest.raises(StorageError):
        write_atomically(tmp_path / "value", b"new")
    assert seen[0].startswith(f"{PARTIAL}value.")
