"""``keys``, ``registry`` and ``audit``: from fresh keys to a verified run, and every refusal."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfedrl.cli.keys import seconds_of
from privfedrl.errors import ConfigurationError
from privfedrl.parties import Identity, Registry, RegistryEntry
from privfedrl.primitives.signing import verify
from privfedrl.secagg import IdealRecord, Transcript

NAMES = ("agent-1", "agent-2", "server")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fleet(folder: Path, call: Any) -> Path:
    """Three keys and the registry built from them."""
    for name in NAMES:
        role = "coordinator" if name == "server" else "agent"
        assert call("keys", "new", name, "--role", role).exit_code == 0
    entries = [f"{name}.pub.json" for name in NAMES]
    assert call("registry", "build", *entries, "--out", "registry.json").exit_code == 0
    return folder


# --- keys ---------------------------------------------------------------------------------------


def test_a_new_key_is_private_and_its_entry_public(folder: Path, call: Any) -> None:
    result = call("keys", "new", "agent-1", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert (folder / "agent-1.key").stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(folder)) == ["agent-1.key", "agent-1.pub.json"]
    identity = Identity.load("agent-1.key")
    entry = RegistryEntry.from_json((folder / "agent-1.pub.json").read_bytes())
    assert found["verify_key"] == identity.verify_key.hex() == entry.verify_key.hex()
    assert entry == identity.entry("agent")
    verify(entry.verify_key, identity.sign(b"x"), b"x")


def test_no_command_prints_the_secret(folder: Path, call: Any) -> None:
    outputs = [call("keys", "new", "agent-1"), call("keys", "show", "agent-1.key")]
    outputs += [call("keys", "show", "agent-1.key", flag) for flag in ("--public", "--json")]
    secret = json.loads((folder / "agent-1.key").read_text())["secret_key"]
    for output in outputs:
        assert output.exit_code == 0
        assert secret not in output.stdout + output.stderr
    assert secret not in (folder / "agent-1.pub.json").read_text()


@pytest.mark.parametrize("present", ["a.key", "a.pub.json"])
def test_an_existing_file_is_never_replaced(folder: Path, call: Any, present: str) -> None:
    (folder / present).write_text("precious")
    result = call("keys", "new", "a", "--out", "a.key", "--json")
    assert result.exit_code == 2
    assert "exists already" in json.loads(result.stdout)["message"]
    assert os.listdir(folder) == [present]
    assert (folder / present).read_text() == "precious"


def test_a_key_that_cannot_be_written_leaves_nothing(folder: Path, call: Any) -> None:
    assert call("keys", "new", "a", "--out", "absent/a.key").exit_code == 2
    assert call("keys", "new", "not a name", "--out", "a.key").exit_code == 2
    assert call("keys", "new", "a", "--role", "admin").exit_code == 2
    backwards = ("--not-before", "2027-01-02", "--not-after", "2027-01-01")
    assert call("keys", "new", "a", *backwards).exit_code == 2
    assert os.listdir(folder) == []


def test_show_gives_the_entry_anew_with_another_validity(folder: Path, call: Any) -> None:
    call("keys", "new", "a", "--not-after", "2027-01-31")
    first = RegistryEntry.from_json((folder / "a.pub.json").read_bytes())
    assert first.not_after == seconds_of("2027-01-31T23:59:59Z")
    result = call("keys", "show", "a.key", "--public", "--not-before", "2027-02-01T12:00:00Z")
    entry = RegistryEntry.from_json(result.stdout)
    assert entry.not_before == seconds_of("2027-02-01T12:00:00+00:00")
    assert entry.verify_key == first.verify_key
    shown = call("keys", "show", "a.key")
    assert f"a  {entry.verify_key.hex()}" in shown.stderr
    assert call("keys", "show", "a.pub.json").exit_code == 2
    assert call("keys", "show", "absent").exit_code == 2


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("1970-01-01", 0, 86399),
        ("2027-01-31", 1801353600, 1801439999),
        ("2027-01-31T00:00:00Z", 1801353600, 1801353600),
        ("2027-01-31T02:00:00+02:00", 1801353600, 1801353600),
    ],
)
def test_a_date_is_a_whole_day_in_utc_and_a_time_is_a_second(
    text: str, start: int, end: int
) -> None:
    assert seconds_of(text) == start
    assert seconds_of(text, end_of_day=True) == end


@pytest.mark.parametrize(
    "text",
    ["", "soon", "2027-13-01", "2027-01-31T12:00:00", "2027-01-31T12:00:00.5Z", "1969-12-31", "12"],
)
def test_other_dates_are_refused(text: str, call: Any, folder: Path) -> None:
    with pytest.raises(ConfigurationError):
        seconds_of(text)
    assert call("keys", "new", "a", "--not-before", text).exit_code == 2
    assert os.listdir(folder) == []


# --- registry -----------------------------------------------------------------------------------


def test_a_registry_is_built_from_public_entries_in_any_order(fleet: Path, call: Any) -> None:
    registry = Registry.load("registry.json")
    assert registry.agents == ("agent-1", "agent-2")
    assert registry.coordinator == "server"
    entries = [f"{name}.pub.json" for name in reversed(NAMES)]
    result = call("registry", "build", *entries, "--out", "again.json", "--json")
    assert json.loads(result.stdout)["digest"] == registry.digest.hex()
    assert (fleet / "again.json").read_bytes() == (fleet / "registry.json").read_bytes()


def test_a_registry_is_not_overwritten(fleet: Path, call: Any) -> None:
    before = (fleet / "registry.json").read_bytes()
    result = call("registry", "build", "server.pub.json", "--out", "registry.json")
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert (fleet / "registry.json").read_bytes() == before


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["agent-1.pub.json"], "one coordinator"),
        (["server.pub.json", "agent-1.pub.json", "agent-1.pub.json"], "repeated"),
        (["server.pub.json", "agent-1.key"], "agent-1.key"),
        (["server.pub.json", "absent"], "absent"),
    ],
)
def test_unsound_entries_make_no_registry(
    fleet: Path, call: Any, entries: list[str], message: str
) -> None:
    result = call("registry", "build", *entries, "--out", "other.json")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (fleet / "other.json").exists()
    assert "secret" not in result.stderr


def test_show_says_who_is_valid_when(folder: Path, call: Any) -> None:
    call("keys", "new", "server", "--role", "coordinator")
    call("keys", "new", "old", "--not-after", "2020-06-30")
    call("keys", "new", "new", "--not-before", "2020-06-30T12:00:00Z")
    entries = [f"{name}.pub.json" for name in ("server", "old", "new")]
    call("registry", "build", *entries, "--out", "r.json")

    def valid(*at: str) -> set[str]:
        result = call("registry", "show", "r.json", *at, "--json")
        return {row["name"] for row in json.loads(result.stdout)["entries"] if row["valid"]}

    assert valid("--at", "2020-06-30") == {"server", "old"}
    assert valid("--at", "2020-06-30T12:00:00Z") == {"server", "old", "new"}
    assert valid("--at", "2020-07-01") == {"server", "new"}
    assert valid() == {"server", "new"}  # now
    table = call("registry", "show", "r.json", "--at", "2020-07-01")
    assert table.exit_code == 0
    assert "2 of 3 valid at 2020-07-01T00:00:00Z" in table.stderr
    assert "2020-06-30T23:59:59Z" in table.stderr
    assert table.stdout == ""


def test_a_validity_beyond_the_calendar_is_still_shown(fleet: Path, call: Any) -> None:
    entry = Identity.load("agent-1.key").entry("agent", not_before=1, not_after=2**50)
    server = Identity.load("server.key").entry("coordinator")
    Registry([entry, server]).save(fleet / "far.json")
    rows = json.loads(call("registry", "show", "far.json", "--json").stdout)["entries"]
    assert rows[0]["not_after"] == f"{2**50} s after 1970"
    assert rows[1]["not_after"] is None


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", None])
def test_another_file_is_no_registry(folder: Path, call: Any, content: bytes | None) -> None:
    if content is not None:
        (folder / "r.json").write_bytes(content)
    result = call("registry", "show", "r.json", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["message"]


def test_a_key_authority_and_an_auditor_are_made_built_in_and_shown(fleet: Path, call: Any) -> None:
    for name, role in (("trustee", "key-authority"), ("office", "auditor")):
        made = call("keys", "new", name, "--role", role, "--json")
        assert json.loads(made.stdout)["role"] == role
        assert RegistryEntry.from_json((fleet / f"{name}.pub.json").read_bytes()).role == role
    entries = [f"{name}.pub.json" for name in (*NAMES, "trustee", "office")]
    built = json.loads(call("registry", "build", *entries, "--out", "two.json", "--json").stdout)
    assert (built["agents"], built["coordinator"]) == (2, "server")
    assert (built["key_authority"], built["auditor"]) == ("trustee", "office")
    assert Registry.load("two.json").digest.hex() == built["digest"]
    rows = json.loads(call("registry", "show", "two.json", "--json").stdout)["entries"]
    assert {row["name"]: row["role"] for row in rows} == {
        "agent-1": "agent",
        "agent-2": "agent",
        "server": "coordinator",
        "trustee": "key-authority",
        "office": "auditor",
    }
    text = call("registry", "build", *entries, "--out", "three.json").stderr
    expected = "three.json: 2 agents, coordinator server, key authority trustee, auditor office"
    assert expected in text
    assert "key-authority" in call("registry", "show", "two.json").stderr


def test_a_role_that_nobody_holds_is_not_printed(fleet: Path, call: Any) -> None:
    entries = [f"{name}.pub.json" for name in NAMES]
    built = json.loads(call("registry", "build", *entries, "--out", "two.json", "--json").stdout)
    assert sorted(built) == ["agents", "coordinator", "digest", "file"]


def test_two_key_authorities_are_refused_by_name(fleet: Path, call: Any) -> None:
    for name in ("trustee", "other"):
        call("keys", "new", name, "--role", "key-authority")
    entries = [f"{name}.pub.json" for name in (*NAMES, "trustee", "other")]
    result = call("registry", "build", *entries, "--out", "two.json", "--json")
    assert result.exit_code == 2
    message = json.loads(result.stdout)["message"]
    assert message == "registry must name at most one key-authority, got 2: other, trustee"
    assert not (fleet / "two.json").exists()


# --- audit --------------------------------------------------------------------------------------


def test_the_list_names_every_claim_and_its_limits(call: Any) -> None:
    rows = json.loads(call("audit", "list", "--json").stdout)
    assert [row["name"] for row in rows] == ["secagg-transcript"]
    assert all(row["shows"] and row["limits"] for row in rows)
    assert "secagg-transcript" in call("audit", "list").stdout


def test_a_trained_run_is_verified(trained: Any, call: Any) -> None:
    _, out, _ = trained
    result = call("audit", "run", "secagg-transcript", out, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["ok"] is True
    assert report["registry_is_own"] is False
    assert [one["round"] for one in report["rounds"]] == [0, 1]
    assert len({one["ledger_head"] for one in report["rounds"]}) == 2
    assert {one["protection"] for one in report["rounds"]} == {"pairwise masking"}
    table = call("audit", "run", "secagg-transcript", out)
    assert table.exit_code == 0
    assert table.stdout == ""
    for text in ("verified: 2 records", "pairwise masking", "5 of 5", "compare it with your own"):
        assert text in table.stderr


def test_records_alone_take_a_registry_an_anchor_and_a_start(trained: Any, call: Any) -> None:
    _, out, _ = trained
    first, second = sorted((out / "transcript").glob("*.bin"))
    pinned = ("--registry", out / "registry.json", "--json")
    whole = call("audit", "run", "secagg-transcript", out / "transcript", *pinned)
    assert whole.exit_code == 0
    report = json.loads(whole.stdout)
    assert report["registry_is_own"] is True
    start = report["rounds"][0]["digest"]
    run = ("audit", "run", "secagg-transcript")
    assert call(*run, first, second, *pinned, "--anchor", report["head"]).exit_code == 0
    assert call(*run, second, *pinned).exit_code == 1
    assert call(*run, second, *pinned, "--previous", start).exit_code == 0
    assert call(*run, second, first, *pinned).exit_code == 1
    cut = call(*run, first, *pinned, "--anchor", report["head"])
    assert cut.exit_code == 1
    assert "anchor" in json.loads(cut.stdout)["problems"][0]
    assert "anchor" in call(*run, first, *pinned[:2], "--anchor", report["head"]).stderr


@pytest.mark.parametrize("content", [b"", b"PFRL", b"\x00" * 500, b"PFRL\x01\x01\x00\x0b" * 99])
def test_hostile_bytes_are_a_finding(
    trained: Any, call: Any, tmp_path: Path, content: bytes
) -> None:
    _, out, _ = trained
    (tmp_path / "[red]1.bin").write_bytes(content)
    pinned = ("--registry", out / "registry.json")
    for flags in ((), ("--json",)):
        result = call("audit", "run", "secagg-transcript", tmp_path, *pinned, *flags)
        assert result.exit_code == 1
        assert ("[red]1.bin" in result.stderr) == (not flags)


@pytest.mark.parametrize(
    "arguments",
    [
        ["other-claim", "RUN"],
        ["secagg-transcript", "RUN/transcript"],
        ["secagg-transcript", "RUN", "RUN"],
        ["secagg-transcript", "RUN/agents"],
        ["secagg-transcript", "RUN/absent.bin", "--registry", "RUN/registry.json"],
        ["secagg-transcript", "RUN/agents", "--registry", "RUN/registry.json"],
        ["secagg-transcript", "RUN", "--registry", "RUN/plan.toml"],
        ["secagg-transcript", "RUN", "--anchor", "zz"],
        ["secagg-transcript", "RUN", "--previous", "00"],
        ["secagg-transcript", "RUN", "--sums", "RUN/absent"],
    ],
)
def test_bad_input_is_told_from_a_finding(trained: Any, call: Any, arguments: list[str]) -> None:
    _, out, _ = trained
    words = [word.replace("RUN", str(out)) for word in arguments]
    result = call("audit", "run", *words, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["message"]


def _ideal_run(fleet: Path) -> None:
    total = np.arange(4, dtype=np.uint32)
    record = IdealRecord(
        task_id=b"t" * 32,
        round=7,
        attempt=0,
        plan_digest=b"p" * 32,
        model_digest=b"m" * 32,
        registry=Registry.load(fleet / "registry.json"),
        previous_transcript=bytes(32),
        survivors=("agent-1", "agent-2"),
        vector=total,
    )
    identity = Identity.load(fleet / "server.key")
    signed = Transcript.sign(record, identity=identity, ledger_head=b"h" * 32)
    (fleet / "transcript").mkdir()
    (fleet / "transcript" / "000007.bin").write_bytes(signed.to_bytes())
    (fleet / "sums").mkdir()
    np.save(fleet / "sums" / "7.npy", total)


def test_an_ideal_run_says_that_nothing_protected_it(fleet: Path, call: Any) -> None:
    _ideal_run(fleet)
    refused = call("audit", "run", "secagg-transcript", ".")
    assert refused.exit_code == 1
    assert "NOT verified" in refused.stderr
    arguments = ("audit", "run", "secagg-transcript", ".", "--allow-ideal", "--json")
    allowed = call(*arguments)
    assert allowed.exit_code == 0
    assert json.loads(allowed.stdout)["rounds"][0]["protection"] == "no cryptographic protection"


def test_sums_are_compared_where_they_are_given(fleet: Path, call: Any) -> None:
    _ideal_run(fleet)
    arguments = ("audit", "run", "secagg-transcript", ".", "--allow-ideal", "--sums", "sums")
    assert json.loads(call(*arguments, "--json").stdout)["rounds"][0]["sum_checked"] is True
    assert "ok, sum" in call(*arguments).stderr
    np.save(fleet / "sums" / "7.npy", np.zeros(4, dtype=np.uint32))
    assert call(*arguments).exit_code == 1


@pytest.mark.parametrize("kind", ["float", "matrix", "pickle", "name", "text"])
def test_other_files_are_no_sums(fleet: Path, call: Any, kind: str) -> None:
    _ideal_run(fleet)
    path = fleet / "sums" / ("x.npy" if kind == "name" else "7.npy")
    values: dict[str, Any] = {
        "float": np.zeros(4),
        "matrix": np.zeros((2, 2), dtype=np.uint32),
        "pickle": np.array([{}], dtype=object),
        "name": np.zeros(4, dtype=np.uint32),
    }
    if kind == "text":
        path.write_text("no array")
    else:
        np.save(path, values[kind], allow_pickle=True)
    arguments = ("audit", "run", "secagg-transcript", ".", "--allow-ideal", "--sums", "sums")
    result = call(*arguments)
    assert result.exit_code == 2
    assert "--sums" in result.stderr
