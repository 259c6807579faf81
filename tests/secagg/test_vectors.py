"""The files of tests/vectors: made again byte for byte, and replayed by the library's parties."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import privfedrl.errors
from privfedrl.errors import ProtocolError, RemoteProtocolError, RoundAborted
from privfedrl.parties import Identity, MemoryJournal, Participation, Registry
from privfedrl.primitives.signing import Ed25519Signer
from privfedrl.secagg import (
    AbortCode,
    ClientPhase,
    SecAggClient,
    SecAggParameters,
    SecAggServer,
    ServerPhase,
    Transcript,
    read_config,
)
from privfedrl.secagg.messages import peek
from privfedrl.secagg.sizes import MessageType
from privfedrl.testing import vectors

FOLDER = Path(__file__).parents[1] / "vectors"
ROUNDS = ("secagg_round_complete.json", "secagg_round_sparse.json")
BAD = sorted(path.name for path in FOLDER.glob("secagg_bad_*.json"))


def load(name: str) -> Any:
    return json.loads((FOLDER / name).read_bytes())


# the files are what the generator makes


def test_the_generator_makes_every_file_again_byte_for_byte() -> None:
    made = vectors.files()
    present = {path.name for path in FOLDER.glob("secagg_*.json")}
    assert made.keys() == present
    assert [name for name in made if made[name] != (FOLDER / name).read_bytes()] == []


def test_check_finds_a_changed_a_missing_and_a_stray_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vectors.main(["--out", str(tmp_path), "--write"]) == 0
    assert vectors.main(["--out", str(tmp_path), "--check"]) == 0
    (tmp_path / "secagg_graphs.json").write_bytes(b"{}")
    (tmp_path / ROUNDS[0]).unlink()
    (tmp_path / "secagg_bad_stray.json").write_bytes(b"{}")
    assert vectors.main(["--out", str(tmp_path), "--check"]) == 1
    named = capsys.readouterr().err
    assert all(name in named for name in ("secagg_graphs", ROUNDS[0], "stray"))
    assert vectors.main(["--out", str(tmp_path), "--write"]) == 0
    assert vectors.main(["--out", str(tmp_path), "--check"]) == 0


# replays through the library


class Parties:
    """The parties of a file's world, with the draws that it lists."""

    def __init__(self, world: dict[str, Any], settings: dict[str, Any] | None = None) -> None:
        self.world, self.settings = world, settings or {}
        self.registry = Registry.from_json(json.dumps(world["registry"]))
        self.parameters = SecAggParameters.from_canonical_bytes(bytes.fromhex(world["parameters"]))
        self.plan = bytes.fromhex(world["plan_digest"])
        self.model = bytes.fromhex(world["model_digest"])
        self.clock = self.settings.get("clock", world["clock"])
        self.task = b""

    def identity(self, name: str) -> Identity:
        return Identity(name, Ed25519Signer(bytes.fromhex(self.world["signing_seeds"][name])))

    def client(self, name: str) -> SecAggClient:
        draws = iter([bytes.fromhex(text) for text in self.world["drawn"].get(name, ())])
        journal = MemoryJournal()
        for round_index, attempt in self.settings.get("masked", ()):
            journal.spend_masked(self.task, round_index, attempt)
        for round_index, attempt, model, members in self.settings.get("signed", ()):
            row = Participation(
                round=round_index,
                attempt=attempt,
                model_digest=bytes.fromhex(model),
                members=bytes.fromhex(members),
            )
            journal.spend_consistency(self.task, row, floor=0, scope="model")
        return SecAggClient(
            identity=self.identity(name),
            registry=self.registry,
            parameters=self.parameters,
            plan_digest=self.plan,
            journal=journal,
            entropy=lambda n: next(draws, bytes(n)),
            clock=lambda: self.clock,
        )

    def vector(self, name: str) -> Any:
        word = np.dtype(f"<u{self.parameters.ring_bits // 8}")
        data = bytes.fromhex(self.world["vectors"][name])
        return np.frombuffer(data, word).astype(word.newbyteorder("="))

    def server(self, config: dict[str, Any]) -> tuple[SecAggServer, list[Any]]:
        server = SecAggServer(
            identity=self.identity(config["sender"]),
            registry=self.registry,
            parameters=self.parameters,
            plan_digest=self.plan,
            clock=lambda: config["opened_at"],
        )
        out = server.start(
            bytes.fromhex(config["task_id"]),
            config["round"],
            config["attempt"],
            bytes.fromhex(config["model_digest"]),
            bytes.fromhex(config["previous_transcript"]),
            bytes.fromhex(config["round_seed"]),
        )
        return server, out


@pytest.mark.parametrize("file", ROUNDS)
def test_a_client_with_the_listed_draws_sends_the_listed_frames(file: str) -> None:
    document = load(file)
    parties, log = Parties(document["world"]), document["client"]
    client = parties.client(log["name"])
    config, *others = [bytes.fromhex(text) for text in log["received"]]
    sent = client.start(config, parties.vector(log["name"]), model_digest=parties.model)
    for data in others:
        sent += client.receive(data)
    assert [message.data.hex() for message in sent] == log["sent"]
    assert client.phase is ClientPhase.DONE
    assert list(client.survivors) == document["survivors"]


@pytest.mark.parametrize("file", ROUNDS)
def test_a_coordinator_answers_the_listed_events_with_the_listed_frames(file: str) -> None:
    document = load(file)
    parties = Parties(document["world"])
    server, out = parties.server(document["config"])
    for event in document["coordinator"]["events"]:
        out += server.close_phase() if "close" in event else server.receive(_frame(event))
    assert [(message.recipient, message.data.hex()) for message in out] == [
        (entry["peer"], entry["frame"]) for entry in document["coordinator"]["sent"]
    ]
    result = server.result()
    word = result.vector.dtype.newbyteorder("<")
    assert result.vector.astype(word).tobytes().hex() == document["sum"]
    assert list(result.survivors) == document["survivors"]
    signed = Transcript.sign(
        result.record,
        identity=parties.identity(document["config"]["sender"]),
        ledger_head=bytes.fromhex(document["ledger_head"]),
    )
    assert signed.to_bytes().hex() == document["transcript"]
    signed.verify(
        parties.registry, previous=bytes.fromhex(document["config"]["previous_transcript"])
    )
    signed.verify_sum(result.vector)


def _frame(event: dict[str, Any]) -> bytes:
    return bytes.fromhex(event["frame"])


# inputs that must be refused


def _world(document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The case's world, and the round that it is from (empty if the case stands alone)."""
    world = document["world"]
    if isinstance(world, str):
        stored = load(world)
        return stored["world"], stored
    return world, {}


def _expected(document: dict[str, Any]) -> type[Exception]:
    return getattr(privfedrl.errors, document["error"])


@pytest.mark.parametrize("file", [name for name in BAD if load(name)["party"] == "client"])
def test_a_client_refuses(file: str) -> None:
    document = load(file)
    world, stored = _world(document)
    parties = Parties(world, document["settings"])
    name, before, data = document["name"], document["before"], bytes.fromhex(document["input"])
    log = [bytes.fromhex(text) for text in (stored["client"]["received"] if stored else before)]
    before = before if stored else len(before)
    parties.task = peek(log[0], MessageType.CONFIG, limit=len(log[0])).task_id if log else b""
    client = parties.client(name)
    sent = [message for frame in log[:before] for message in _give(parties, client, name, frame)]
    if document["settings"].get("closed"):
        client.close_phase()
    if not before and document["code"] not in ("ModelMismatch", None):
        _read_config_agrees(parties, document, data)
    phase = client.phase
    with pytest.raises(_expected(document)) as caught:
        _give(parties, client, name, data)
    assert type(caught.value) is _expected(document)
    if isinstance(caught.value, RoundAborted):
        assert caught.value.code == document["code"]
    if document["afterwards"] is None:
        assert client.phase is phase
        if stored:  # nothing has changed: the honest rest of the round gives the golden frames
            sent += [m for frame in log[before:] for m in _give(parties, client, name, frame)]
            assert [message.data.hex() for message in sent] == stored["client"]["sent"]
        return
    assert client.phase is ClientPhase.ABORTED
    for frame in (data, *log):
        with pytest.raises(RoundAborted) as again:
            client.receive(frame)
        assert again.value.code == document["afterwards"]


def _read_config_agrees(parties: Parties, document: dict[str, Any], data: bytes) -> None:
    """What is wrong with a config is seen before anything is trained, too."""
    if "itself" in document["claim"]:
        return  # read_config does not know who reads
    with pytest.raises(RoundAborted) as caught:
        read_config(
            data,
            registry=parties.registry,
            parameters=parties.parameters,
            plan_digest=parties.plan,
            now=parties.clock,
        )
    assert caught.value.code == document["code"]


def _give(parties: Parties, client: SecAggClient, name: str, data: bytes) -> list[Any]:
    if client.phase is ClientPhase.IDLE:
        vector = np.zeros(parties.parameters.vector_length, f"u{parties.parameters.ring_bits // 8}")
        if name in parties.world["vectors"]:
            vector = parties.vector(name)
        return client.start(data, vector, model_digest=parties.model)
    return client.receive(data)


@pytest.mark.parametrize("file", [name for name in BAD if load(name)["party"] == "coordinator"])
def test_a_coordinator_refuses(file: str) -> None:
    document = load(file)
    world, stored = _world(document)
    events = stored["coordinator"]["events"]
    server, _ = Parties(world, document["settings"]).server(stored["config"])
    _drive(server, events[: document["before"]])
    phase = server.phase
    if document["error"] == "RoundAborted":
        if document["input"] is None:
            assert server.close_phase() == []
        else:
            assert server.receive(bytes.fromhex(document["input"])) == []
        assert server.phase is ServerPhase.ABORTED
        for ask in (server.result, lambda: server.receive(_frame(events[0]))):
            with pytest.raises(RoundAborted) as caught:
                ask()
            assert caught.value.code == document["code"] == document["afterwards"]
        return
    data = bytes.fromhex(document["input"])
    with pytest.raises(_expected(document)) as refused:
        server.receive(data)
    assert type(refused.value) is _expected(document)
    assert server.phase is phase
    if document["afterwards"] == "refused":
        (proof,) = server.evidence
        assert (proof.first, proof.second) == (_frame(events[document["before"] - 1]), data)
        with pytest.raises(RemoteProtocolError):
            server.receive(data)
        return
    _drive(server, events[document["before"] :])
    assert server.result().vector.tobytes().hex() == stored["sum"]
    assert server.evidence == []


def _drive(server: SecAggServer, events: Sequence[dict[str, Any]]) -> None:
    for event in events:
        if "close" in event:
            server.close_phase()
        else:
            server.receive(_frame(event))


@pytest.mark.parametrize("file", [name for name in BAD if load(name)["party"] == "transcript"])
def test_a_reader_of_transcripts_refuses(file: str) -> None:
    document = load(file)
    world, _ = _world(document)
    parties, settings = Parties(world), document["settings"]
    previous = settings.get("previous")

    def verify() -> None:
        transcript = Transcript.from_bytes(bytes.fromhex(document["input"]))
        transcript.verify(
            parties.registry, previous=None if previous is None else bytes.fromhex(previous)
        )
        if "vector" in settings:
            transcript.verify_sum(np.frombuffer(bytes.fromhex(settings["vector"]), "<u4"))

    with pytest.raises(_expected(document)) as caught:
        verify()
    assert type(caught.value) is _expected(document)
    assert getattr(caught.value, "code", None) == document["code"]


def test_the_cases_cover_every_abort_code_and_every_class_of_refusal() -> None:
    found = [load(name) for name in BAD]
    assert {case["code"] for case in found} | {case["afterwards"] for case in found} >= {
        code.value for code in AbortCode
    }
    assert {case["error"] for case in found} == {
        *("RemoteProtocolError", "AuthenticationFailed", "LocalProtocolError", "RoundAborted")
    }
    assert all(issubclass(_expected(case), ProtocolError) for case in found)
