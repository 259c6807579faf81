"""A run on disk: what survives a crash, and how a run goes on from it.

Guarantee: a round counts as done only when its checkpoint has replaced the last one in a single
rename; whatever a crash leaves behind after that point is cut off on resume. Two processes never
share a directory. The ledger is written before anything here and is never rolled back, so a crash
can cost one more reserved round and never hide one.

    run.json  plan.toml  registry.json  keys/  ledger.db  agents/NAME/{ledger,journal}.db
    past_sums.bin (secret, with correlated noise only)
    heterogeneity_simulation_only.json
    checkpoint.bin  metrics.jsonl  oracle_simulation_only.jsonl  transcript/  policy.safetensors
    statement.json  report.html  *.png
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from privfedrl.durable_files import PARTIAL, write_atomically
from privfedrl.errors import ConfigurationError, StorageError
from privfedrl.federation.coordinator import FederationState
from privfedrl.federation.strategies import OptimizerState
from privfedrl.plan import Plan

__all__ = ["HETEROGENEITY", "RunDirectory", "RunHeader", "check_same_run"]

FORMAT = "privfedrl-run/1"
METRICS, ORACLE = "metrics.jsonl", "oracle_simulation_only.jsonl"
HETEROGENEITY = "heterogeneity_simulation_only.json"
_ROWS = (METRICS, ORACLE)


class RunHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a run is, written once, last of all when a directory is set up."""

    format: str
    plan_digest: str
    task_id: str
    seed: int
    deterministic: bool


class _Checkpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    task_id: bytes
    round: int
    step: int
    parameters: bytes
    first: bytes
    second: bytes
    transcript: bytes
    clip: float | None
    past: tuple[bytes, ...] = ()
    average: bytes | None = None
    sums: dict[str, float]
    anchors: dict[str, str]
    rows: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths and durable values of one run; use :meth:`locked` around everything that writes."""

    path: Path

    @property
    def ledger(self) -> Path:
        """The coordinator's ledger."""
        return self.path / "ledger.db"

    @property
    def past_sums(self) -> Path:
        """Exact sums that the coordinator keeps for correlated noise; secret, mode 0600."""
        return self.path / "past_sums.bin"

    @property
    def registry(self) -> Path:
        """Names and verification keys of everybody."""
        return self.path / "registry.json"

    @property
    def policy(self) -> Path:
        """The trained policy."""
        return self.path / "policy.safetensors"

    @property
    def statement(self) -> Path:
        """The guarantee, machine readable."""
        return self.path / "statement.json"

    @property
    def report(self) -> Path:
        """The human-readable report."""
        return self.path / "report.html"

    def key(self, name: str) -> Path:
        """Signing key of one participant of a simulation."""
        return self.path / "keys" / f"{name}.json"

    def agent(self, name: str) -> Path:
        """The private directory of one simulated agent."""
        return self.path / "agents" / name

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for this process.

        Raises:
            StorageError: another process holds it, or it cannot be created.
        """
        try:
            (self.path / "transcript").mkdir(parents=True, exist_ok=True)
            (self.path / "keys").mkdir(mode=0o700, exist_ok=True)
            handle = open(self.path / "lock", "w")  # noqa: SIM115 - held until the block ends
        except OSError as error:
            raise StorageError(f"run directory {str(self.path)!r}: {error}") from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StorageError(
                    f"run directory {str(self.path)!r} is in use by another process"
                ) from error
            yield

    def header(self) -> RunHeader | None:
        """The header, or None where no run was set up to the end."""
        path = self.path / "run.json"
        if not path.exists():
            return None
        try:
            header = msgspec.json.decode(path.read_bytes(), type=RunHeader)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise StorageError(f"{str(path)!r} is not a run header: {error}") from error
        if header.format != FORMAT:
            raise StorageError(f"{str(path)!r} must have format {FORMAT!r}, got {header.format!r}")
        return header

    def plan(self) -> Plan:
        """The plan that the run was started with."""
        return Plan.from_toml(self.path / "plan.toml")

    def create(self, header: RunHeader, plan: Plan) -> None:
        """Write plan and header; from here on the directory holds a run."""
        write_atomically(self.path / "plan.toml", plan.to_toml().encode())
        write_atomically(self.path / "run.json", msgspec.json.encode(header))

    def save(
        self, state: FederationState, sums: Mapping[str, float], *, anchors: Mapping[str, str]
    ) -> None:
        """Commit a completed round: one file, one rename.

        Args:
            sums: running totals of the run.
            anchors: ledger heads by owner, so that a ledger that was rolled back is found out.
        """
        body = msgspec.msgpack.encode(
            _Checkpoint(
                task_id=state.task_id,
                round=state.round,
                step=state.optimizer.step,
                parameters=_pack(state.parameters),
                first=_pack(state.optimizer.first),
                second=_pack(state.optimizer.second),
                transcript=state.transcript,
                clip=state.clip,
                past=tuple(_pack(decoded) for decoded in state.past),
                average=None if state.average is None else _pack(state.average),
                sums=dict(sums),
                anchors=dict(anchors),
                rows={name: _digest(self._lines(name)[: state.round]) for name in _ROWS},
            )
        )
        write_atomically(self.path / "checkpoint.bin", hashlib.sha256(body).digest() + body)

    def restore(self) -> tuple[FederationState, dict[str, float]] | None:
        """The last completed round and running sums, or None before the first.

        Raises:
            StorageError: the checkpoint is damaged.
        """
        saved = self._checkpoint()
        if saved is None:
            return None
        state = FederationState(
            task_id=saved.task_id,
            round=saved.round,
            parameters=_unpack(saved.parameters),
            optimizer=OptimizerState(
                step=saved.step, first=_unpack(saved.first), second=_unpack(saved.second)
            ),
            transcript=saved.transcript,
            clip=saved.clip,
            past=tuple(_unpack(decoded) for decoded in saved.past),
            average=None if saved.average is None else _unpack(saved.average),
        )
        return state, saved.sums

    def anchors(self) -> dict[str, str]:
        """Ledger heads at the last completed round; empty before the first. Raises as restore."""
        saved = self._checkpoint()
        return {} if saved is None else saved.anchors

    def _checkpoint(self) -> _Checkpoint | None:
        path = self.path / "checkpoint.bin"
        if not path.exists():
            return None
        data = _read(path)
        digest, body = data[:32], data[32:]
        if hashlib.sha256(body).digest() != digest:
            raise StorageError(f"checkpoint {str(path)!r} is damaged: its digest does not match")
        try:
            return msgspec.msgpack.decode(body, type=_Checkpoint)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise StorageError(f"checkpoint {str(path)!r} is not one of this version") from error

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one line to a .jsonl file."""
        try:
            with open(self.path / name, "a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())  # the checkpoint that counts this row must not outlive it
        except OSError as error:
            raise StorageError(f"{name} cannot be written: {error}") from error

    def _lines(self, name: str) -> list[bytes]:
        """The whole lines of a file; a line that a crash cut short is left out."""
        path = self.path / name
        return _read(path).split(b"\n")[:-1] if path.exists() else []

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a .jsonl file; a line that a crash cut short is left out.

        Raises:
            StorageError: unreadable or damaged.
        """
        try:
            rows: list[dict[str, Any]] = [json.loads(line) for line in self._lines(name)]
        except ValueError as error:
            raise StorageError(f"{str(self.path / name)!r} is damaged: {error}") from error
        return rows

    def cut(self) -> None:
        """Drop what a crash left behind after the last checkpoint.

        Raises:
            StorageError: what came before the checkpoint is no longer as it was.
        """
        saved = self._checkpoint()
        rounds = 0 if saved is None else saved.round
        for name in _ROWS:
            kept = self._lines(name)[:rounds]
            if saved is not None and _digest(kept) != saved.rows.get(name):
                raise StorageError(
                    f"{str(self.path / name)!r} is damaged: its first {rounds} rows are not "
                    "those of the last checkpoint"
                )
            write_atomically(self.path / name, b"".join(line + b"\n" for line in kept))
        for path in sorted((self.path / "transcript").glob("*.bin")):
            if int(path.stem) >= rounds:
                path.unlink()
        for folder in (self.path, self.path / "transcript", self.path / "keys"):
            for path in folder.glob(f"{PARTIAL}*"):  # a write that never came to its rename
                path.unlink()

    def save_transcript(self, round_index: int, data: bytes) -> None:
        """Keep the signed record of a round."""
        write_atomically(self.path / "transcript" / f"{round_index:06d}.bin", data)


def check_same_run(header: RunHeader, plan: Plan, *, seed: int | None) -> None:
    """Refuse to continue a run under another plan or seed."""
    if header.plan_digest != plan.digest.hex():
        raise ConfigurationError(
            f"the directory holds a run of plan {header.plan_digest[:12]}…, "
            f"got plan {plan.digest.hex()[:12]}…; a run cannot change its plan"
        )
    if seed is not None and seed != header.seed:
        raise ConfigurationError(f"seed must be {header.seed} to resume this run, got {seed}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"{str(path)!r} cannot be read: {error}") from error


def _digest(lines: Sequence[bytes]) -> bytes:
    return hashlib.sha256(b"".join(line + b"\n" for line in lines)).digest()


def _pack(vector: NDArray[np.float64]) -> bytes:
    return np.ascontiguousarray(vector, dtype="<f8").tobytes()


def _unpack(data: bytes) -> NDArray[np.float64]:
    return np.frombuffer(data, dtype="<f8").astype(np.float64)
