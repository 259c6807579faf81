"""``privfedrl statement``: who signed, whether it still holds, and no epsilon where that fails."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from privfedrl.parties.identity import Identity, Registry
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.privacy import Statement
from privfedrl.privacy.statement import UNSIGNED

SMALL_ORDER = "01" + "00" * 31  # the neutral point: "signatures" under it mean nothing


def identity(name: str) -> Identity:
    return Identity.generate(name, DeterministicEntropy(name.encode()))


COORDINATOR, AGENT, STRANGER = identity("coordinator"), identity("agent-000"), identity("stranger")
ENTRIES = (COORDINATOR.entry("coordinator"), AGENT.entry("agent"))


@pytest.fixture
def run(trained: Any, tmp_path: Path) -> Path:
    """A directory with the statement of a real run, unsigned and without a registry."""
    home = tmp_path / "run"
    home.mkdir()
    data = json.loads((trained[1] / "statement.json").read_text())
    data["identity"]["signature"] = UNSIGNED
    (home / "statement.json").write_text(json.dumps(data))
    return home


def read(home: Path) -> Statement:
    return Statement.from_json((home / "statement.json").read_text())


def sign(home: Path, by: Identity) -> None:
    (home / "statement.json").write_text(read(home).sign(by.sign).to_json())


def tamper(home: Path) -> None:
    """A smaller epsilon, under the same signature."""
    data = json.loads((home / "statement.json").read_text())
    data["epsilon"]["claims"][0]["epsilon"] *= 0.5
    (home / "statement.json").write_text(json.dumps(data))


def test_an_unsigned_statement_says_so(call: Any, run: Path) -> None:
    result = call("statement", run)
    assert result.exit_code == 0
    assert "epsilon = " in result.stdout
    assert "signature: none" in result.stderr


def test_a_signature_is_verified_against_the_registry_of_the_directory(
    call: Any, run: Path
) -> None:
    sign(run, COORDINATOR)
    alone = call("statement", run)
    assert alone.exit_code == 0
    assert "NOT VERIFIED" in alone.stderr
    Registry(ENTRIES).save(run / "registry.json")
    result = call("statement", run)
    assert result.exit_code == 0
    assert "verified, by the coordinator 'coordinator'" in result.stderr
    assert COORDINATOR.verify_key.hex() in result.stderr
    assert "same directory" in result.stderr


def test_a_signature_is_verified_against_a_registry_or_key_from_elsewhere(
    call: Any, run: Path, tmp_path: Path
) -> None:
    sign(run, COORDINATOR)
    Registry(ENTRIES).save(tmp_path / "registry.json")
    by_registry = call("statement", run, "--registry", tmp_path / "registry.json")
    by_key = call("statement", run, "--key", COORDINATOR.verify_key.hex().upper())
    for result in (by_registry, by_key):
        assert result.exit_code == 0
        assert "verified" in result.stderr
        assert COORDINATOR.verify_key.hex() in result.stderr
        assert "same directory" not in result.stderr
        assert "epsilon = " in result.stdout


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    "case", ["edited", "by an agent", "by a stranger", "another key", "malformed", "unsigned"]
)
def test_a_wrong_signature_exits_with_1_and_prints_no_epsilon(
    call: Any, run: Path, tmp_path: Path, case: str, as_json: bool
) -> None:
    Registry(ENTRIES).save(tmp_path / "registry.json")
    if case != "unsigned":
        signer = {"by an agent": AGENT, "by a stranger": STRANGER}.get(case, COORDINATOR)
        sign(run, signer)
    if case == "edited":
        tamper(run)
    if case == "malformed":
        data = json.loads((run / "statement.json").read_text())
        data["identity"]["signature"] = "ed25519:zz"
        (run / "statement.json").write_text(json.dumps(data))
    demands: list[tuple[object, ...]] = [("--registry", tmp_path / "registry.json")]
    if case == "another key":
        demands = [("--key", STRANGER.verify_key.hex())]
    if case != "unsigned" and case != "another key":  # what is found beside it counts as well
        shutil.copy(tmp_path / "registry.json", run / "registry.json")
        demands.append(())
    for demand in demands:
        result = call("statement", run, *demand, *(["--json"] if as_json else []))
        assert result.exit_code == 1
        assert "epsilon" not in result.stdout
        error = "PrivacyError" if case == "malformed" else "AuthenticationFailed"
        assert error in result.stderr
        if as_json:
            assert json.loads(result.stdout)["error"] == error
        else:
            assert result.stdout == ""


def test_a_coordinator_whose_key_was_not_valid_on_the_day_is_refused(
    call: Any, run: Path, tmp_path: Path
) -> None:
    sign(run, COORDINATOR)
    day = int(datetime.fromisoformat(read(run).identity.date).replace(tzinfo=UTC).timestamp())
    registry = tmp_path / "registry.json"
    for first, last, code in (
        (0, day, 0),
        (day + 86_399, day + 86_399, 0),
        (0, day - 1, 1),
        (day + 86_400, day + 90_000, 1),
    ):
        Registry([COORDINATOR.entry("coordinator", not_before=first, not_after=last)]).save(
            registry
        )
        result = call("statement", run, "--registry", registry)
        assert result.exit_code == code
        assert ("was not valid on" in result.stderr) is bool(code)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--key", "zz"), "64 hex digits"),
        (("--key", ""), "Ed25519 public key"),
        (("--key", "00" * 31), "Ed25519 public key"),
        (("--key", "ff" * 32), "Ed25519 public key"),
        (("--key", SMALL_ORDER), "small order"),
        (("--registry", "absent.json"), "absent.json"),
        (("--key", "ab" * 32, "--registry", "absent.json"), "not both"),
        (("--at", "yesterday"), "expected a date"),
    ],
)
def test_arguments_that_mean_nothing_exit_with_2_and_print_no_epsilon(
    call: Any, run: Path, arguments: tuple[str, ...], message: str
) -> None:
    sign(run, COORDINATOR)
    result = call("statement", run, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in " ".join(result.stderr.split())


def test_a_damaged_registry_beside_a_signed_statement_exits_with_2(call: Any, run: Path) -> None:
    (run / "registry.json").write_text("{}")
    assert call("statement", run).exit_code == 0  # unsigned: nothing to verify
    sign(run, COORDINATOR)
    result = call("statement", run)
    assert result.exit_code == 2
    assert result.stdout == ""


@pytest.mark.parametrize("as_json", [False, True])
def test_an_expired_statement_is_printed_says_so_and_exits_with_1(
    call: Any, run: Path, as_json: bool
) -> None:
    found, option = read(run), ["--json"] if as_json else []
    last = found.identity.valid_until
    assert call("statement", run, "--at", last, *option).exit_code == 0
    late = call("statement", run, "--at", "2999-01-01", *option)
    assert late.exit_code == 1
    assert f"EXPIRED: valid until {last}, read on 2999-01-01" in late.stderr
    if as_json:
        assert late.stdout == found.to_json()
    else:
        assert late.stdout.startswith("*** EXPIRED: ")
    early = call("statement", run, "--at", "2001-01-01T00:00:00Z", *option)
    assert early.exit_code == 1
    assert "NOT YET VALID" in early.stderr


def test_json_is_the_statement_that_was_checked_and_signed(call: Any, run: Path) -> None:
    """A file that says a field twice is printed as it was read, not as it was written."""
    sign(run, COORDINATOR)
    text = (run / "statement.json").read_text()
    first = json.dumps({**json.loads(text)["unit"], "unit": "agent"})
    doubled = text.replace("{", f'{{"unit": {first},', 1)
    assert json.loads(doubled) == json.loads(text)
    (run / "statement.json").write_text(doubled)
    result = call("statement", run, "--json", "--key", COORDINATOR.verify_key.hex())
    assert result.exit_code == 0
    assert result.stdout == text
    assert len(json.loads(result.stdout)) == 18


def test_attack_figures_that_the_curve_does_not_support_are_refused(call: Any, run: Path) -> None:
    data = json.loads((run / "statement.json").read_text())
    data["epsilon"]["claims"][0]["attacks"]["tpr_at_fpr_1_percent"] = 0.0101
    (run / "statement.json").write_text(json.dumps(data))
    result = call("statement", run)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "attacks.tpr_at_fpr_1_percent" in result.stderr


def test_the_printed_statement_translates_epsilon_into_attacks(call: Any, run: Path) -> None:
    text = " ".join(call("statement", run).stdout.split())
    assert "membership attacks: TPR <= " in text
    assert "reconstruction attacks: success <= " in text
    assert "at prior 0.001" in text
    assert "replaced by another unit: epsilon " in text
    assert "committed regime" in text
