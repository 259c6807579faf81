"""The command line in this process, a tiny plan, and one finished run for all readers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    # typer 0.20, which flwr asks for, imports names that click 8.5 deprecates
    warnings.simplefilter("ignore", DeprecationWarning)
    from typer.testing import CliRunner

    from privfedrl.cli.main import app

PLAN = """
name = "tiny"
[fleet]
environment = "CartPole-v1"
agents = 5
trajectories = 4
horizon = 60
[policy]
observations = 4
actions = 2
hidden = [8]
[federation]
rounds = 2
[privacy]
unit = "trajectory"
max_colluding = 1
epsilon = 5.0
[privacy.mean_return]
low = 0.0
high = 60.0
[protection]
min_clients = 4
[simulation]
evaluation_episodes = 2
"""


@pytest.fixture(scope="session")
def plan_text() -> str:
    return PLAN


@pytest.fixture(scope="session")
def call() -> Callable[..., Any]:
    """Run a command; the result has exit_code, stdout and stderr apart."""

    def run(*arguments: object) -> Any:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception  # the library's own errors never come this far
        return result

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, call: Callable[..., Any]) -> Any:
    """One `train --json`: (plan file, run directory, result)."""
    folder: Path = tmp_path_factory.mktemp("trained")
    (folder / "plan.toml").write_text(PLAN)
    arguments = ("--out", folder / "run", "--seed", 7, "--workers", 1, "--json")
    return folder / "plan.toml", folder / "run", call("train", folder / "plan.toml", *arguments)
