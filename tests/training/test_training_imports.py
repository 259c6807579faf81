from __future__ import annotations

import subprocess
import sys

import pytest

import privfedrl.training as training


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_importing_training_loads_no_torch():
    code = (
        "import sys, privfedrl.training as t; t.LocalUpdate, t.clip_rows; "
        "print([m for m in ('torch', 'opacus', 'gymnasium', 'safetensors') if m in sys.modules])"
    )
    assert run(code) == "[]"


def test_a_name_that_needs_torch_says_which_extra_is_missing():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import privfedrl.training as t\n"
        "try: t.LocalTrainer\n"
        "except ImportError as e: print(type(e).__name__, e)"
    )
    found = run(code)
    assert found.startswith("MissingExtraError")
    assert "privfedrl[rl]" in found


def test_every_public_name_resolves():
    assert list(training.__all__) == sorted(training.__all__)
    for name in training.__all__:
        assert getattr(training, name) is not None
    with pytest.raises(AttributeError):
        _ = training.absent
