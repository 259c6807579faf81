"""What the party that adds correlated noise keeps between rounds: secret, durable, one file.

Guarantee: what :func:`unpack_memory` returns was packed for this plan and this run, whole and
unchanged; anything else is refused. A memory that is saved holds the release that follows from it,
so a round whose noised sum may have left is never noised a second time.

Whoever reads it learns the exact sums of the last b - 1 rounds. Keep it like a key: readable by its
owner only, never in a backup that is restored by itself (an older copy is found out by round
numbers, see ``releases.recovered``, but only if the state, or a later round in the ledger, is there
to compare with: state and memory put back by one release look like a crash before it).

Format of the bytes: SHA-256 of the rest, then msgpack of ``_Packed``. The digest finds damage, not
an adversary: whoever can write the file can write a digest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from privfedrl.durable_files import write_atomically
from privfedrl.errors import ConfigurationError, LedgerIntegrity, StorageError
from privfedrl.federation.setup import RoundSetup
from privfedrl.privacy.correlated import SumHistory

__all__ = [
    "AdderMemory",
    "MixedRelease",
    "SumFile",
    "SumMemory",
    "check_memory",
    "pack_memory",
    "unpack_memory",
]

_FORMAT = "privfedrl-sums/1"
_DIGEST_BYTES = 32


class SumMemory(Protocol):
    """Where the bytes live. One writer; give each run one of its own."""

    def load(self) -> bytes | None:
        """What was saved last, or None where nothing ever was. StorageError if unreadable."""

    def save(self, data: bytes) -> None:
        """Replace it, durably: after this returns, a crash must not bring back what was there.

        StorageError if it may not be there; then nothing is released.
        """


@dataclass(frozen=True, slots=True)
class SumFile:
    """A file that its owner alone can read, replaced as a whole."""

    path: Path

    def load(self) -> bytes | None:
        """See :class:`SumMemory`."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{str(self.path)!r} cannot be read: {error.strerror}") from error

    def save(self, data: bytes) -> None:
        """See :class:`SumMemory`."""
        write_atomically(self.path, data, mode=0o600)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MixedRelease:
    """A noised mixture that may have left, and what else its round's result is made of. Public.

    Attributes:
        round, attempt: which try of which round it was.
        model_digest: of what the round was opened with, 32 bytes.
        survivors: names of the agents in the newest sum.
        vector: uint32 or uint64 [words], y.
        transcript, transcript_digest: the signed record and its 32 bytes.
    """

    round: int
    attempt: int
    model_digest: bytes
    survivors: tuple[str, ...]
    vector: NDArray[np.unsignedinteger]
    transcript: bytes
    transcript_digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AdderMemory:
    """Between two rounds. ``history`` is secret; its repr shows no sum.

    Attributes:
        rounds: releases so far.
        history: residues (int64 [words]) of the last exact sums, and their release ids.
        last: the last release; None before the first.
    """

    rounds: int = 0
    history: SumHistory
    last: MixedRelease | None = None


class _Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    round: int
    attempt: int
    model_digest: bytes
    survivors: tuple[str, ...]
    vector: bytes
    transcript: bytes
    transcript_digest: bytes


class _Packed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    format: str
    plan_digest: bytes
    task_id: bytes
    rounds: int
    sums: tuple[bytes, ...]
    units: tuple[tuple[str, ...], ...]
    last: _Release | None


def check_memory(setup: RoundSetup, memory: SumMemory | None) -> None:
    """Refuse a missing memory where the plan needs one, and one that it would not use."""
    if setup.correlated is not None and memory is None:
        raise ConfigurationError(
            "history must be a SumMemory (for example a SumFile): the plan's "
            f"privacy.correlation_bands = {setup.correlated.bands} mixes past sums"
        )
    if setup.correlated is None and memory is not None:
        raise ConfigurationError(
            "history must be None: only a plan with privacy.correlation_bands keeps past sums"
        )


def pack_memory(setup: RoundSetup, task_id: bytes, held: AdderMemory) -> bytes:
    """Bytes to save; secret."""
    kind, last = _dtype(setup), held.last
    body = msgspec.msgpack.encode(
        _Packed(
            format=_FORMAT,
            plan_digest=setup.plan.digest,
            task_id=task_id,
            rounds=held.rounds,
            sums=tuple(residues.astype(kind).tobytes() for residues in held.history.sums),
            units=tuple(tuple(sorted(names)) for names in held.history.units),
            last=None
            if last is None
            else _Release(
                round=last.round,
                attempt=last.attempt,
                model_digest=last.model_digest,
                survivors=last.survivors,
                vector=last.vector.astype(kind).tobytes(),
                transcript=last.transcript,
                transcript_digest=last.transcript_digest,
            ),
        )
    )
    return hashlib.sha256(body).digest() + body


def unpack_memory(setup: RoundSetup, task_id: bytes, data: bytes) -> AdderMemory:
    """What was packed for this plan and run.

    Raises:
        StorageError: damaged, or not of this version.
        LedgerIntegrity: of another plan or another run.
    """
    digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise StorageError("the memory of past sums is damaged: its digest does not match")
    try:
        packed = msgspec.msgpack.decode(body, type=_Packed)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StorageError("the memory of past sums is not one of this version") from error
    if packed.format != _FORMAT:
        raise StorageError(
            f"the memory of past sums must have format {_FORMAT!r}, got {packed.format!r}"
        )
    if (packed.plan_digest, packed.task_id) != (setup.plan.digest, task_id):
        raise LedgerIntegrity("the memory of past sums belongs to another plan or another run")
    _check_counts(setup, packed)
    last = packed.last
    return AdderMemory(
        rounds=packed.rounds,
        history=SumHistory(
            sums=tuple(_vector(setup, one).astype(np.int64) for one in packed.sums),
            units=tuple(frozenset(names) for names in packed.units),
        ),
        last=None
        if last is None
        else MixedRelease(
            round=last.round,
            attempt=last.attempt,
            model_digest=last.model_digest,
            survivors=last.survivors,
            vector=_vector(setup, last.vector),
            transcript=last.transcript,
            transcript_digest=last.transcript_digest,
        ),
    )


def _check_counts(setup: RoundSetup, packed: _Packed) -> None:
    bands = 1 if setup.correlated is None else setup.correlated.bands
    kept, newest = min(packed.rounds, bands - 1), packed.rounds - 1
    found = -1 if packed.last is None else packed.last.round
    if not (len(packed.sums) == len(packed.units) == kept and found == newest >= -1):
        raise StorageError(
            f"the memory of past sums must hold {kept} sums and the release of round {newest}, "
            f"got {len(packed.sums)} and round {found}"
        )


def _dtype(setup: RoundSetup) -> np.dtype[np.unsignedinteger]:
    return np.dtype(f"<u{setup.codec.ring_bits // 8}")


def _vector(setup: RoundSetup, data: bytes) -> NDArray[np.unsignedinteger]:
    kind = _dtype(setup)
    if len(data) != setup.codec.words * kind.itemsize:
        raise StorageError(
            f"the memory of past sums must hold vectors of {setup.codec.words} words, "
            f"got {len(data)} bytes"
        )
    return np.frombuffer(data, dtype=kind).astype(kind.newbyteorder("="))
